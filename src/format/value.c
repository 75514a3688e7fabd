/* Printing what a value holds: see value.h. */
#include "format/value.h"

/*
 * Length of the character at @p if it is printable UTF-8: no control character, shortest form, no surrogate. Else 0.
 */
static size_t utf8_printable_len(const uint8_t *p, size_t left)
{
	static const uint32_t code_min[] = { 0, 0x20, 0xa0, 0x800, 0x10000 };
	uint32_t code = p[0];
	size_t len = 1;

	if (code >= 0x80) {
		len = code >= 0xf0 ? 4 : code >= 0xe0 ? 3 : 2;
		if (code < 0xc0 || code >= 0xf8 || len > left)
			return 0;
		code &= 0x7fu >> len;
	}
	for (size_t i = 1; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (p[i] & 0x3f);
	}
	if (code < code_min[len] || code == 0x7f || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
		return 0;
	return len;
}

void value_add_name(struct strbuf *out, const uint8_t *name, size_t len)
{
	for (size_t i = 0; i < len;) {
		size_t n = name[i] == '\\' ? 0 : utf8_printable_len(name + i, len - i);

		if (n)
			strbuf_add_bytes(out, name + i, n);
		else
			strbuf_printf(out, "\\x%02x", name[i]);
		i += n ? n : 1;
	}
}
