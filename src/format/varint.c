/*
 * Variable-length integers of inode fields.
 *
 * The number of one bits at the low end of the first byte tells how many bytes follow it. With n bytes (n <= 8) the
 * encoding is the little-endian number (v << n) | (2^(n-1) - 1), which leaves 7 bits per byte; a first byte of ff means
 * that all 64 bits follow.
 */
#include "format/varint.h"

#include "base/le.h"
#include "base/report.h"
#include "base/util.h"

enum { VARINT_BITS_PER_BYTE = 7, VARINT_BYTES_MAX = 9 };

size_t varint_encode(uint8_t out[9], uint64_t v)
{
	unsigned bytes = max(1u, (unsigned)div_round_up_u64(bit_length_u64(v), VARINT_BITS_PER_BYTE));

	if (bytes >= VARINT_BYTES_MAX) {
		out[0] = 0xff;
		le64_store(out + 1, v);
		return VARINT_BYTES_MAX;
	}

	uint64_t encoded = v << bytes | ((1ull << (bytes - 1)) - 1);
	uint8_t word[8];
	le64_store(word, encoded);
	memcpy(out, word, bytes);
	return bytes;
}

int varint_decode(const uint8_t *in, size_t len, uint64_t *v)
{
	if (!len)
		return -KILN_E_INVALID;

	unsigned bytes = 1 + (unsigned)__builtin_ctz(~(unsigned)in[0]);
	if (bytes > len)
		return -KILN_E_INVALID;

	if (bytes == VARINT_BYTES_MAX) {
		*v = le64_load(in + 1);
		return VARINT_BYTES_MAX;
	}

	uint8_t word[8] = { 0 };
	memcpy(word, in, bytes);
	*v = le64_load(word) >> bytes;
	return (int)bytes;
}
