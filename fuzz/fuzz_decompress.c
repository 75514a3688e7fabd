/*
 * Decompression of stored regions, which an attacker who can write checksums controls.
 *
 * Input: type, uncompressed sectors (16 bits), then the stored bytes.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "data/compress.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, data + size };
	unsigned type = (unsigned)input_take(&in, 1) % 7;
	size_t dst_len = (size_t)(input_take(&in, 2) % 2048 + 1) * SECTOR_BYTES, src_len = input_left(&in);
	uint8_t *src = malloc(max(src_len, (size_t)1)), *dst = malloc(dst_len);

	memcpy(src, in.pos, src_len);
	if (!decompress_region(type, src, src_len, dst, dst_len)) {
		unsigned sum = 0;

		for (size_t i = 0; i < dst_len; i++)
			sum += dst[i];
		__asm__ volatile("" : : "r"(sum));
	}
	free(src);
	free(dst);
	return 0;
}
