/* Hex strings of the format documents as bytes; blanks between digits are ignored. */
#ifndef KILN_TESTS_FORMAT_HEX_H
#define KILN_TESTS_FORMAT_HEX_H

#include <stddef.h>
#include <stdint.h>

static inline int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Returns the number of bytes; stops when @out is full. */
static inline size_t hex_bytes(const char *hex, uint8_t *out, size_t size)
{
	size_t nibbles = 0;

	for (; *hex && nibbles < size * 2; hex++) {
		int digit = hex_digit(*hex);

		if (digit < 0)
			continue;
		out[nibbles / 2] = (uint8_t)(nibbles % 2 ? out[nibbles / 2] << 4 | digit : digit);
		nibbles++;
	}
	return nibbles / 2;
}

#endif
