/* Many readers at once, with the least memory there can be, in threads and in simulations. */
#include <errno.h>

#include "../base/both_modes.h"
#include "volume.h"

enum {
	LARGE_SECTORS = 8192,
	LARGE_BYTES = LARGE_SECTORS * SECTOR_BYTES,
	LARGE_NR = 2,
	SMALL_SECTORS = 128,
	SMALL_NR = 40
};
enum {
	FILE_SECTORS = LARGE_NR * LARGE_SECTORS + SMALL_NR * SMALL_SECTORS,
	READERS = 5,
	READS = 6,
	CONCURRENT_SEEDS = KILN_SANITIZED ? 8 : 25
};

struct shared {
	struct volume v;
	uint8_t *bytes;
};

struct one_reader {
	struct shared *s;
	uint64_t seed;
};

/* Half of the reads of a region from one device see a bit that is wrong. */
static void region_fault(struct shared *s, const struct stored_region *r, unsigned idx)
{
	uint64_t begin = r->ptrs[idx].sector;

	volume_fault(&s->v, r->ptrs[idx].dev, FAULT_BITFLIP, begin, begin + r->crc.compressed_sectors, 500000);
}

/*
 * Regions of the largest size, compressed, read in part: each takes all the memory there is. Bad is by turns what one
 * device has and what the other has: which of them is read depends on how long their last reads took, and after one
 * that was kept waiting for a processor hardly any goes to that device. Whatever is chosen, much of it is bad.
 */
static void shared_make(struct shared *s)
{
	uint64_t pos = 0;

	volume_init(&s->v, 1);
	s->bytes = malloc((size_t)FILE_SECTORS * SECTOR_BYTES);
	CHECK(s->bytes);
	for (unsigned i = 0; i < LARGE_NR + SMALL_NR; i++) {
		uint32_t n = i < LARGE_NR ? LARGE_SECTORS : SMALL_SECTORS;
		struct region_spec spec = {
			.csum_type = i % 3 ? CHECKSUM_CRC32C : CHECKSUM_CHACHA20_POLY1305_128,
			.compression = i % 4 == 3 ? COMPRESSION_NONE
				       : i % 2	  ? COMPRESSION_ZSTD
						  : COMPRESSION_LZ4,
			.devs = 3,
		};
		uint8_t *at = s->bytes + pos * SECTOR_BYTES;

		fill_text(&s->v.rng, at, (size_t)n * SECTOR_BYTES);
		/* Half of it doesn't compress, so that the stored region is large too. */
		if (i < LARGE_NR)
			fill_random(&s->v.rng, at, LARGE_BYTES / 8 * 5);
		struct stored_region r = volume_region_store(&s->v, &spec, at, n);
		volume_region_add(&s->v, BTREE_EXTENTS, &r, pos, 0, n);
		region_fault(s, &r, i % 2);
		pos += n;
	}
	volume_open(&s->v, DATA_MEMORY_MIN);
}

static void shared_free(struct shared *s)
{
	volume_free(&s->v);
	free(s->bytes);
}

static void read_some(void *arg)
{
	struct one_reader *o = arg;
	struct data_file file = { VOLUME_INUM, VOLUME_SNAPSHOT, (uint64_t)FILE_SECTORS * SECTOR_BYTES };
	uint64_t larges = (uint64_t)LARGE_NR * LARGE_BYTES;
	struct rng rng;

	rng_init(&rng, o->seed);
	for (unsigned i = 0; i < READS; i++) {
		bool is_large = rng_below(&rng, 4) == 0;
		uint64_t offset =
			is_large ? rng_below(&rng, larges) : larges + rng_below(&rng, file.size_bytes - larges);
		size_t len = 1 + (size_t)rng_below(&rng, is_large ? 100000 : 700000);
		size_t expected = (size_t)min((uint64_t)len, file.size_bytes - offset);
		uint8_t *buf = malloc(len);

		CHECK(buf);
		CHECK(data_read(o->s->v.data, &file, offset, buf, len, NULL, NULL) == (ssize_t)expected);
		CHECK(!memcmp(buf, o->s->bytes + offset, expected));
		free(buf);
	}
}

static void readers_run(void *arg)
{
	struct one_reader readers[READERS];
	struct task *tasks[READERS];

	for (unsigned i = 0; i < READERS; i++) {
		readers[i] = (struct one_reader){ arg, test_seed * READERS + i };
		tasks[i] = start("reader", read_some, &readers[i]);
	}
	for (unsigned i = 0; i < READERS; i++)
		task_join(tasks[i]);
}

static void readers_in_threads_share_the_least_memory(void **state)
{
	struct shared s;

	shared_make(&s);
	for (test_seed = 1; test_seed <= 4; test_seed++)
		readers_run(&s);
	struct data_stats stats;
	data_stats(s.v.data, &stats);
	assert_true(stats.retries_csum > 0);
	assert_int_equal(stats.damaged_bytes, 0);
	shared_free(&s);
}

/* Objects belong to one mode, so each simulation opens and closes the data room for itself. */
static void simulation_body(void *arg)
{
	struct shared *s = arg;

	volume_reopen(&s->v);
	readers_run(s);
	data_close(s->v.data);
	s->v.data = NULL;
	btrees_close(s->v.f.trees);
	s->v.f.trees = NULL;
}

static void readers_never_wait_for_each_other_for_ever(void **state)
{
	struct shared s;

	shared_make(&s);
	data_close(s.v.data);
	s.v.data = NULL;
	btrees_close(s.v.f.trees);
	s.v.f.trees = NULL;
	uint64_t end = getenv("KILN_TEST_SEED") ? seed_end() : 1 + CONCURRENT_SEEDS;
	for (uint64_t seed = seed_first(); seed < end; seed++)
		simulate(seed, simulation_body, &s);
	shared_free(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(readers_in_threads_share_the_least_memory),
		cmocka_unit_test(readers_never_wait_for_each_other_for_ever),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
