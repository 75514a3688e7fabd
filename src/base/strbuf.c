/* String builder (see base/strbuf.h). Every append goes through strbuf_reserve(), the one place that grows or refuses.
 */
#include "base/strbuf.h"

#include <stdio.h>
#include <string.h>

#include "base/array.h"

static const char hex_digits[16] = "0123456789abcdef";

void strbuf_free(struct strbuf *s)
{
	if (s->can_grow)
		free(s->text);
	*s = (struct strbuf){ .can_grow = s->can_grow };
}

void strbuf_reset(struct strbuf *s)
{
	s->len = 0;
	s->truncated = false;
	if (s->size)
		s->text[0] = 0;
}

const char *strbuf_text(const struct strbuf *s) { return s->size ? s->text : ""; }

/* Make room for @len more bytes and the terminator. Returns how many of them there is room for. */
static size_t strbuf_reserve(struct strbuf *s, size_t len)
{
	size_t room, needed;

	if (s->can_grow && !__builtin_add_overflow(s->len, len, &needed) && needed < SIZE_MAX)
		(void)array_grow(&s->text, &s->size, needed + 1, 1);
	room = s->size ? s->size - s->len - 1 : 0;
	if (room < len)
		s->truncated = true;
	return min(room, len);
}

void strbuf_add_bytes(struct strbuf *s, const void *bytes, size_t len)
{
	size_t room = strbuf_reserve(s, len);

	if (!s->size)
		return;
	if (room)
		memcpy(s->text + s->len, bytes, room);
	s->len += room;
	s->text[s->len] = 0;
}

void strbuf_add(struct strbuf *s, const char *text) { strbuf_add_bytes(s, text, strlen(text)); }

void strbuf_add_char(struct strbuf *s, char c) { strbuf_add_bytes(s, &c, 1); }

void strbuf_printf(struct strbuf *s, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	strbuf_vprintf(s, fmt, args);
	va_end(args);
}

void strbuf_vprintf(struct strbuf *s, const char *fmt, va_list args)
{
	va_list again;
	size_t room;
	int len;

	va_copy(again, args);
	len = vsnprintf(NULL, 0, fmt, args);
	if (len < 0) {
		s->truncated = true;
	} else {
		room = strbuf_reserve(s, (size_t)len);
		if (s->size) {
			vsnprintf(s->text + s->len, room + 1, fmt, again);
			s->len += room;
		}
	}
	va_end(again);
}

void strbuf_add_escaped(struct strbuf *s, const void *bytes, size_t len)
{
	const uint8_t *in = bytes;

	for (size_t i = 0; i < len; i++) {
		if (in[i] >= 0x20 && in[i] <= 0x7e && in[i] != '\\') {
			strbuf_add_char(s, (char)in[i]);
		} else {
			strbuf_add(s, "\\x");
			strbuf_add_hex(s, in + i, 1);
		}
	}
}

void strbuf_add_hex(struct strbuf *s, const void *bytes, size_t len)
{
	const uint8_t *in = bytes;

	for (size_t i = 0; i < len; i++) {
		strbuf_add_char(s, hex_digits[in[i] >> 4]);
		strbuf_add_char(s, hex_digits[in[i] & 15]);
	}
}

void strbuf_add_uuid(struct strbuf *s, const uint8_t uuid[16])
{
	static const uint8_t group_bytes[] = { 4, 2, 2, 2, 6 };

	for (unsigned i = 0; i < ARRAY_NR(group_bytes); i++) {
		if (i)
			strbuf_add_char(s, '-');
		strbuf_add_hex(s, uuid, group_bytes[i]);
		uuid += group_bytes[i];
	}
}

/* @bytes / 1024^@unit in units of 10^-@decimals, rounded to nearest. */
static uint64_t size_in_unit(uint64_t bytes, unsigned unit, unsigned decimals)
{
	static const unsigned power_of_10[] = { 1, 10, 100 };
	unsigned shift = unit * 10;
	unsigned __int128 scaled = (unsigned __int128)bytes * power_of_10[decimals];

	if (shift)
		scaled += 1ull << (shift - 1);
	return (uint64_t)(scaled >> shift);
}

void strbuf_add_size(struct strbuf *s, uint64_t bytes)
{
	static const char *const names[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	unsigned unit = 0;
	uint64_t n;

	while (size_in_unit(bytes, unit, 0) >= 1024)
		unit++;

	if (unit && (n = size_in_unit(bytes, unit, 2)) < 1000)
		strbuf_printf(s, "%u.%02u %s", (unsigned)(n / 100), (unsigned)(n % 100), names[unit]);
	else if (unit && (n = size_in_unit(bytes, unit, 1)) < 1000)
		strbuf_printf(s, "%u.%u %s", (unsigned)(n / 10), (unsigned)(n % 10), names[unit]);
	else
		strbuf_printf(s, "%u %s", (unsigned)size_in_unit(bytes, unit, 0), names[unit]);
}
