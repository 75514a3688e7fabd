/*
 * String builder over a caller's buffer, or growing.
 *
 * A fixed builder never allocates: text that doesn't fit is dropped and `truncated` set; the text is always
 * NUL-terminated. A growing builder owns its memory. to_text functions take a `struct strbuf *` and serve both.
 */
#ifndef KILN_BASE_STRBUF_H
#define KILN_BASE_STRBUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"

struct strbuf {
	char *text;
	size_t len;
	size_t size; /* bytes at text, terminator included */
	bool can_grow;
	bool truncated; /* a fixed builder was full, or memory ran out */
};

/* A fixed builder over @text. */
static inline struct strbuf strbuf_fixed(char *text, size_t size)
{
	if (size)
		text[0] = 0;
	return (struct strbuf){ .text = text, .size = size };
}

/* A growing builder; free with strbuf_free(). */
static inline struct strbuf strbuf_growing(void) { return (struct strbuf){ .can_grow = true }; }
void strbuf_free(struct strbuf *s);
void strbuf_reset(struct strbuf *s);

void strbuf_add(struct strbuf *s, const char *text);
void strbuf_add_char(struct strbuf *s, char c);
void strbuf_add_bytes(struct strbuf *s, const void *bytes, size_t len);
void strbuf_printf(struct strbuf *s, const char *fmt, ...) PRINTF_LIKE(2, 3);
void strbuf_vprintf(struct strbuf *s, const char *fmt, va_list args);

/* Bytes as a name people can read: outside 0x20..0x7e and backslash become \xNN. */
void strbuf_add_escaped(struct strbuf *s, const void *bytes, size_t len);
void strbuf_add_hex(struct strbuf *s, const void *bytes, size_t len);
/* 16 raw bytes in the usual 8-4-4-4-12 form. */
void strbuf_add_uuid(struct strbuf *s, const uint8_t uuid[16]);
/* Three significant digits: "0 B", "4.00 KiB", "12.0 KiB", "121 MiB". */
void strbuf_add_size(struct strbuf *s, uint64_t bytes);

/* The text; "" when empty, never NULL. */
const char *strbuf_text(const struct strbuf *s);

#endif
