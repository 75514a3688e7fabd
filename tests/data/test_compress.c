/* The codecs: what goes in comes out, and bytes that aren't what they should be do no harm. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "data/compress.h"
#include "volume.h"

static const unsigned types[] = { COMPRESSION_LZ4_OLD, COMPRESSION_GZIP, COMPRESSION_LZ4, COMPRESSION_ZSTD };
enum { GUARD_BYTES = 64 };

/* A buffer of exactly @len bytes, so that memory checkers see every step over its end. */
static uint8_t *exact(size_t len)
{
	uint8_t *p = malloc(len);

	assert_non_null(p);
	return p;
}

static void check_round_trip(uint64_t seed)
{
	struct rng rng;

	rng_init(&rng, seed);
	for (unsigned i = 0; i < ARRAY_NR(types); i++) {
		size_t len = SECTOR_BYTES * (2 + rng_below(&rng, 500)), room = len + 1024;
		uint8_t *plain = exact(len), *stored = exact(room), *out = exact(len);

		fill_text(&rng, plain, len);
		size_t used = region_compress(types[i], plain, len, stored, room);
		assert_true(used > 0);
		size_t region = round_up_u64(used, SECTOR_BYTES);
		assert_true(region <= room);
		uint8_t *padded = exact(region);
		memset(padded, 0, region);
		memcpy(padded, stored, used);

		assert_int_equal(decompress_region(types[i], padded, region, out, len), 0);
		assert_memory_equal(out, plain, len);

		/* An lz4 block doesn't say how long it is; the others must give exactly what they hold. */
		uint8_t *longer = exact(len + SECTOR_BYTES);
		if (types[i] == COMPRESSION_GZIP || types[i] == COMPRESSION_ZSTD) {
			assert_int_equal(decompress_region(types[i], padded, region, longer, len + SECTOR_BYTES), -EIO);
			assert_int_equal(decompress_region(types[i], padded, region, out, len - SECTOR_BYTES), -EIO);
		}
		/* Cut off. */
		assert_int_equal(decompress_region(types[i], padded, used / 2, out, len), -EIO);
		free(longer);
		free(padded);
		free(plain);
		free(stored);
		free(out);
	}
}

static void regions_decompress_to_what_was_compressed(void **state)
{
	seeds_run(check_round_trip, 20);
	compress_contexts_free();
}

static void check_mutations(uint64_t seed)
{
	size_t len = 16 << 10;
	uint8_t *plain = exact(len), *stored = exact(len), *out = exact(len + GUARD_BYTES);
	struct rng rng;

	rng_init(&rng, seed);
	for (unsigned i = 0; i < ARRAY_NR(types); i++) {
		fill_text(&rng, plain, len);
		size_t region = round_up_u64(region_compress(types[i], plain, len, stored, len), SECTOR_BYTES);
		size_t n = 1 + rng_below(&rng, region), out_len = 1 + rng_below(&rng, len);
		uint8_t *mutated = exact(n);

		memcpy(mutated, stored, n);
		for (uint64_t flips = rng_below(&rng, 20); flips; flips--)
			mutated[rng_below(&rng, n)] ^= (uint8_t)(1 << rng_below(&rng, 8));
		memset(out, 0xa5, len + GUARD_BYTES);
		int err = decompress_region(types[i], mutated, n, out, out_len);
		assert_true(!err || err == -EIO);
		for (unsigned g = 0; g < GUARD_BYTES; g++)
			assert_int_equal(out[out_len + g], 0xa5);
		free(mutated);
	}
	free(plain);
	free(stored);
	free(out);
}

static void damaged_regions_stay_within_their_buffers(void **state)
{
	seeds_run(check_mutations, 400);
	compress_contexts_free();
}

static void lengths_and_types_that_make_no_sense_are_refused(void **state)
{
	uint8_t buf[64] = { 0 }, out[64];

	for (unsigned type = 0; type < 16; type++) {
		assert_int_equal(decompress_region(type, buf, 0, out, sizeof(out)), -EIO);
		assert_int_equal(decompress_region(type, buf, sizeof(buf), out, 0), -EIO);
	}
	assert_int_equal(decompress_region(COMPRESSION_NONE, buf, sizeof(buf), out, sizeof(out)), -EIO);
	assert_int_equal(decompress_region(COMPRESSION_INCOMPRESSIBLE, buf, sizeof(buf), out, sizeof(out)), -EIO);
	/* A zstd length that reaches behind the region, or has no room. */
	le32_store(buf, sizeof(buf) - 3);
	assert_int_equal(decompress_region(COMPRESSION_ZSTD, buf, sizeof(buf), out, sizeof(out)), -EIO);
	le32_store(buf, UINT32_MAX);
	assert_int_equal(decompress_region(COMPRESSION_ZSTD, buf, sizeof(buf), out, sizeof(out)), -EIO);
	assert_int_equal(decompress_region(COMPRESSION_ZSTD, buf, 3, out, sizeof(out)), -EIO);
	compress_contexts_free();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(regions_decompress_to_what_was_compressed, seeds_teardown),
		cmocka_unit_test_teardown(damaged_regions_stay_within_their_buffers, seeds_teardown),
		cmocka_unit_test(lengths_and_types_that_make_no_sense_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
