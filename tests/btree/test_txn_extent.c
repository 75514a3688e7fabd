/*
 * Extents put over extents, in a tree of snapshots: what every snapshot shows is compared with an array of sectors per
 * snapshot, and the worked examples of the format documents come out key by key. In memory and in a filesystem, where
 * what follows from the keys is counted as well.
 */
#include "fixture.h"
#include "memory_trees.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "btree/internal.h"
#include "format/file_data.h"

enum { FILE_SECTORS = 96, SNAPSHOTS_MAX = 24, INODE = 4100, RESERVED = -1, MIXED = 3 };

/* --- the model: a tree of snapshots, each with what its sectors hold --- */

struct model_snapshot {
	uint32_t parent; /* index + 1, 0 none */
	bool has_children;
	int64_t sectors[FILE_SECTORS]; /* where on the device; 0: a hole; RESERVED */
	int64_t sector_nr;	       /* as the changes add up */
};

struct world {
	struct memory_trees m;
	struct model_snapshot snapshots[SNAPSHOTS_MAX];
	unsigned snapshot_nr;
	uint64_t base;	      /* sector of the device from which on all is free */
	uint64_t next_sector; /* free */
	struct rng rng;
};

static uint32_t id_of(unsigned idx) { return UINT32_MAX - idx; }
static unsigned idx_of(uint32_t id) { return UINT32_MAX - id; }

static bool model_is_ancestor(void *ctx, uint32_t id, uint32_t ancestor)
{
	struct world *w = ctx;

	while (id && id != ancestor && idx_of(id) < w->snapshot_nr) {
		uint32_t parent = w->snapshots[idx_of(id)].parent;

		id = parent ? id_of(parent - 1) : 0;
	}
	return id == ancestor;
}

static bool model_has_children(void *ctx, uint32_t id)
{
	struct world *w = ctx;

	return idx_of(id) < w->snapshot_nr && w->snapshots[idx_of(id)].has_children;
}

static void world_open(struct world *w, enum trees_place place, uint64_t seed)
{
	memset(w, 0, sizeof(*w));
	rng_init(&w->rng, seed);
	memory_trees_open_at(&w->m, place, 4096, 0);
	struct btree_snapshots s = { .is_ancestor = model_is_ancestor, .ctx = w };
	if (rng_below(&w->rng, 2))
		s.has_children = model_has_children;
	background_pause(btrees_background(w->m.trees)); /* a filesystem's tasks have begun already */
	btrees_set_snapshots(w->m.trees, s);
	background_resume(btrees_background(w->m.trees));
	w->m.snapshots = s;
	w->snapshot_nr = 1;
	if (place == TREES_ON_DISK)
		w->base = (uint64_t)TREES_FREE_BUCKET * TREES_BUCKET_SECTORS;
	w->next_sector = w->base + TREES_BUCKET_SECTORS;
}

/* The leaf becomes interior, with two leaves below it. */
static void world_snapshot(struct world *w, unsigned idx)
{
	w->snapshots[idx].has_children = true;
	for (unsigned i = 0; i < 2; i++) {
		struct model_snapshot *child = &w->snapshots[w->snapshot_nr++];

		*child = w->snapshots[idx];
		child->parent = idx + 1;
		child->has_children = false;
	}
}

/* --- keys --- */

static void value_of(struct bkey *k, uint8_t value[16], int64_t sector)
{
	if (sector == RESERVED) {
		k->type = KEY_RESERVATION;
		k->value_u64s = 1;
		reservation_encode(&(struct reservation){ .nr_replicas = 1 }, value);
	} else if (sector) {
		struct extent_ptr ptr = { .sector = (uint64_t)sector };

		k->type = KEY_EXTENT;
		k->value_u64s = 1;
		extent_ptr_store(value, &ptr);
	}
}

struct put {
	struct bkey k;
	uint8_t value[16];
	struct btree_extent_change change;
};

static int put_fn(struct btree_txn *txn, void *ctx)
{
	struct put *p = ctx;

	return btree_txn_put_extent(txn, BTREE_EXTENTS, &p->k, p->value, &p->change);
}

/* Write sectors at @sector of the device (or RESERVED, or 0 for a hole) to [start, end) of a snapshot. */
static void world_put(struct world *w, unsigned idx, uint64_t start, uint64_t end, int64_t sector)
{
	struct model_snapshot *s = &w->snapshots[idx];

	for (uint64_t at = start; at < end; at++)
		s->sectors[at] = sector > 0 ? sector + (int64_t)(at - start) : sector;
	while (start < end) {
		struct put p = { .k = { .p = BPOS(INODE, end, id_of(idx)), .size = (uint32_t)(end - start) } };

		value_of(&p.k, p.value, sector);
		assert_int_equal(btree_txn_run(w->m.trees, &(struct btree_commit_opts){ .name = "put" }, put_fn, &p),
				 0);
		assert_true(p.change.end_offset > start && p.change.end_offset <= end);
		s->sector_nr += p.change.sectors;
		sector += sector > 0 ? (int64_t)(p.change.end_offset - start) : 0;
		start = p.change.end_offset;
	}
}

static int64_t sector_at(const struct world *w, uint64_t sector) { return (int64_t)(w->base + sector); }

/* --- comparing --- */

static void sector_compare(const struct model_snapshot *s, struct bkey_ref k, const struct key_context *kctx)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	uint64_t start = bkey_start_offset(&k.k);

	for (uint64_t at = start; at < k.k.p.offset; at++) {
		int64_t found = RESERVED;

		if (k.k.type == KEY_EXTENT) {
			assert_int_equal(extent_decode(k, kctx, ptrs, NULL, NULL), 1);
			found = (int64_t)(ptrs[0].ptr.sector + at - start);
		} else {
			assert_int_equal(k.k.type, KEY_RESERVATION);
		}
		assert_true(at < FILE_SECTORS);
		assert_int_equal(found, s->sectors[at]);
	}
}

static void snapshot_compare(struct world *w, unsigned idx)
{
	const struct model_snapshot *s = &w->snapshots[idx];
	struct btree_iter it;
	struct bkey_ref k;
	uint64_t at = 0;
	int64_t sector_nr = 0;
	int found;

	btree_iter_open(&it, w->m.trees, BTREE_EXTENTS, BPOS(INODE, 0, id_of(idx)), 0, id_of(idx));
	it.end = BPOS(INODE, UINT64_MAX, UINT32_MAX);
	while ((found = btree_iter_peek(&it, &k)) > 0) {
		assert_true(bkey_start_offset(&k.k) >= at);
		for (; at < bkey_start_offset(&k.k); at++)
			assert_int_equal(s->sectors[at], 0);
		sector_compare(s, k, w->m.trees->opts.kctx);
		sector_nr += k.k.size;
		at = k.k.p.offset;
		btree_iter_advance(&it);
	}
	assert_int_equal(found, 0);
	for (; at < FILE_SECTORS; at++)
		assert_int_equal(s->sectors[at], 0);
	assert_int_equal(sector_nr, s->sector_nr);
	btree_iter_close(&it);
}

static void world_compare(struct world *w)
{
	for (unsigned i = 0; i < w->snapshot_nr; i++)
		snapshot_compare(w, i);
}

/* --- random --- */

static int64_t random_content(struct world *w, uint64_t nr)
{
	uint64_t sector = w->next_sector;

	switch (rng_below(&w->rng, 6)) {
	case 0: return 0;
	case 1: return RESERVED;
	case 2:
		w->next_sector += rng_below(&w->rng, 2); /* not contiguous */
		break;
	default: break;
	}
	if (sector / TREES_BUCKET_SECTORS != (sector + nr + 1) / TREES_BUCKET_SECTORS) /* extents are within buckets */
		w->next_sector = sector = (sector / TREES_BUCKET_SECTORS + 1) * TREES_BUCKET_SECTORS;
	sector = w->next_sector;
	w->next_sector += nr;
	return (int64_t)sector;
}

static unsigned random_leaf(struct world *w)
{
	unsigned idx;

	do {
		idx = (unsigned)rng_below(&w->rng, w->snapshot_nr);
	} while (w->snapshots[idx].has_children);
	return idx;
}

/* A bucket whose last sectors are overwritten gets a new generation: the last sector of each stays in use. */
static void world_hold_buckets(struct world *w)
{
	enum { BUCKETS_MAX = 20 };

	for (uint64_t i = 1; i <= BUCKETS_MAX; i++) {
		struct put p = { .k = { .p = BPOS(INODE + 1, i * 2, id_of(0)), .size = 1 } };

		value_of(&p.k, p.value, sector_at(w, (i + 1) * TREES_BUCKET_SECTORS - 1));
		assert_int_equal(btree_txn_run(w->m.trees, &(struct btree_commit_opts){ .name = "hold" }, put_fn, &p),
				 0);
	}
}

static void every_snapshot_keeps_what_it_shows_seed(enum trees_place place, uint64_t seed)
{
	static struct world w;
	uint64_t last_end = 0;
	unsigned last_leaf = 0;

	world_open(&w, place, seed);
	world_hold_buckets(&w);
	for (unsigned i = 0; i < 150; i++) {
		unsigned leaf = random_leaf(&w);
		uint64_t start = rng_below(&w.rng, FILE_SECTORS), end;

		if (rng_below(&w.rng, 10) == 0 && w.snapshot_nr + 2 <= SNAPSHOTS_MAX) {
			world_snapshot(&w, leaf);
		} else {
			if (rng_below(&w.rng, 3) == 0 && !w.snapshots[last_leaf].has_children &&
			    last_end < FILE_SECTORS) {
				leaf = last_leaf; /* go on where the last write ended */
				start = last_end;
			}
			end = min(start + 1 + rng_below(&w.rng, rng_below(&w.rng, 4) ? 12 : FILE_SECTORS),
				  (uint64_t)FILE_SECTORS);
			world_put(&w, leaf, start, end, random_content(&w, end - start));
			last_leaf = leaf;
			last_end = end;
		}
		world_compare(&w);
	}
	memory_trees_close(&w.m);
}

static void in_memory_seed(uint64_t seed) { every_snapshot_keeps_what_it_shows_seed(TREES_IN_MEMORY, seed); }
static void on_disk_seed(uint64_t seed) { every_snapshot_keeps_what_it_shows_seed(TREES_ON_DISK, seed); }

static void every_snapshot_keeps_what_it_shows(void **state)
{
	if (trees_place_of(state) == TREES_ON_DISK)
		seeds_run(on_disk_seed, 2);
	else
		seeds_run(in_memory_seed, 60);
}

/* --- the worked examples --- */

/* One key as the documents write them: end, snapshot index, length (0: a whiteout). */
struct shown {
	uint64_t end;
	unsigned idx;
	uint32_t size;
};

static void assert_keys(struct world *w, const struct shown *expected, size_t nr)
{
	struct btree_iter it;
	struct bkey_ref k;
	size_t i = 0;

	btree_iter_open(&it, w->m.trees, BTREE_EXTENTS, BPOS(INODE, 0, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (; btree_iter_peek(&it, &k) > 0; i++) {
		assert_true(i < nr);
		assert_int_equal(k.k.p.offset, expected[i].end);
		assert_int_equal(k.k.p.snapshot, id_of(expected[i].idx));
		assert_int_equal(k.k.size, expected[i].size);
		assert_int_equal(k.k.type == KEY_WHITEOUT, !expected[i].size);
		btree_iter_advance(&it);
	}
	assert_int_equal(i, nr);
	btree_iter_close(&it);
}

enum { A = 1, D = 2, C = 3 }; /* A interior, the others its leaves; ids descend in this order */

/* A with one extent of @size; 0xff...fe in the documents. */
static void example_open(struct world *w, enum trees_place place, uint32_t size)
{
	world_open(w, place, 1);
	w->snapshots[1] = (struct model_snapshot){ 0 };
	w->snapshot_nr = 2;
	world_put(w, A, 0, size, sector_at(w, 2048));
	world_snapshot(w, A);
	assert_int_equal(w->snapshot_nr, 4);
}

static void writes_in_two_snapshots_leave_the_keys_of_the_example(void **state)
{
	static struct world w;

	example_open(&w, trees_place_of(state), 64);
	world_put(&w, C, 0, 32, sector_at(&w, 4096));
	world_put(&w, D, 48, 64, sector_at(&w, 8192));
	world_compare(&w);
	static const struct shown f[] = { { 32, C, 32 }, { 32, A, 32 }, { 48, A, 16 }, { 64, D, 16 }, { 64, A, 16 } };
	assert_keys(&w, f, ARRAY_NR(f));
	memory_trees_close(&w.m);

	/* What one had overwritten before doesn't come up in it when the other splits it. */
	example_open(&w, trees_place_of(state), 64);
	world_put(&w, C, 0, 16, sector_at(&w, 4096));
	world_put(&w, C, 16, 64, sector_at(&w, 8192)); /* elsewhere on the device, so they don't merge */
	world_put(&w, D, 16, 32, sector_at(&w, 12288));
	world_compare(&w);
	static const struct shown g[] = { { 16, C, 16 }, { 16, A, 16 }, { 32, C, 0 }, { 32, D, 16 },
					  { 32, A, 16 }, { 64, C, 48 }, { 64, A, 32 } };
	assert_keys(&w, g, ARRAY_NR(g));
	memory_trees_close(&w.m);
}

static void holes_in_inherited_extents_leave_the_keys_of_the_example(void **state)
{
	static struct world w;

	example_open(&w, trees_place_of(state), 64);
	world_put(&w, C, 24, 64, 0);
	static const struct shown truncated[] = { { 24, A, 24 }, { 64, C, 0 }, { 64, A, 40 } };
	assert_keys(&w, truncated, ARRAY_NR(truncated));
	world_put(&w, D, 0, 64, 0);
	static const struct shown deleted[] = {
		{ 24, D, 0 }, { 24, A, 24 }, { 64, C, 0 }, { 64, D, 0 }, { 64, A, 40 }
	};
	world_compare(&w);
	assert_keys(&w, deleted, ARRAY_NR(deleted));
	memory_trees_close(&w.m);
}

static void a_hole_that_ends_inside_an_inherited_extent_hides_it(void **state)
{
	static struct world w;

	world_open(&w, trees_place_of(state), 1);
	w.snapshot_nr = 2;
	w.snapshots[1] = (struct model_snapshot){ 0 };
	world_put(&w, A, 0, 96, sector_at(&w, 2048));
	world_snapshot(&w, A);
	world_put(&w, C, 32, 64, 0);
	world_compare(&w);
	static const struct shown keys[] = { { 32, A, 32 }, { 64, C, 0 }, { 64, A, 32 }, { 96, A, 32 } };
	assert_keys(&w, keys, ARRAY_NR(keys));
	memory_trees_close(&w.m);
}

/* The overwrite of 07 §19.6: 8 sectors into an extent of 128 that has a checksum. */
static void an_overwrite_leaves_what_was_journalled(void **state)
{
	static struct world w;
	struct put p = { .k = { .p = BPOS(INODE, 128, id_of(0)), .size = 128, .type = KEY_EXTENT, .value_u64s = 2 } };
	struct extent_crc crc = { 128, 128, 0, 0, CHECKSUM_CRC32C, 0, { 0x1234, 0 } };
	struct extent_ptr ptr = { 0 };
	static const struct shown keys[] = { { 40, 0, 40 }, { 48, 0, 8 }, { 128, 0, 80 } };
	static const uint32_t offsets[] = { 0, 0, 48 };
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct btree_iter it;
	struct bkey_ref k;

	world_open(&w, trees_place_of(state), 1);
	ptr.sector = w.base + 8192;
	assert_int_equal(extent_crc_store(p.value, &crc), 1);
	extent_ptr_store(p.value + 8, &ptr);
	assert_int_equal(btree_txn_run(w.m.trees, &(struct btree_commit_opts){ .name = "put" }, put_fn, &p), 0);
	assert_int_equal(p.change.sectors, 128);

	p.k.p.offset = 48;
	p.k.size = 8;
	crc.compressed_sectors = crc.uncompressed_sectors = 8;
	ptr.sector = w.base + 9088;
	assert_int_equal(extent_crc_store(p.value, &crc), 1);
	extent_ptr_store(p.value + 8, &ptr);
	assert_int_equal(btree_txn_run(w.m.trees, &(struct btree_commit_opts){ .name = "put" }, put_fn, &p), 0);
	assert_int_equal(p.change.sectors, 0);
	assert_keys(&w, keys, ARRAY_NR(keys));

	btree_iter_open(&it, w.m.trees, BTREE_EXTENTS, POS_MIN, 0, id_of(0));
	for (unsigned i = 0; i < ARRAY_NR(offsets); i++) {
		assert_int_equal(btree_iter_peek(&it, &k), 1);
		assert_int_equal(extent_decode(k, w.m.trees->opts.kctx, ptrs, NULL, NULL), 1);
		assert_int_equal(ptrs[0].crc.offset_sectors, offsets[i]);
		assert_int_equal(ptrs[0].ptr.sector, w.base + (i == 1 ? 9088 : 8192));
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	memory_trees_close(&w.m);
}

/*
 * --- btrees without snapshots ---
 *
 * In memory only: the one that allows keys without meaning is that of free space, which in a filesystem is the
 * allocator's.
 */

struct free_put {
	uint64_t end;
	uint32_t size;
	bool is_free;
};

static int free_put_fn(struct btree_txn *txn, void *ctx)
{
	const struct free_put *p = ctx;
	struct bkey k = { .p = BPOS(0, p->end, 0), .size = p->size, .type = p->is_free ? KEY_SET : KEY_DELETED };

	return btree_txn_put_extent(txn, BTREE_FREESPACE, &k, NULL, NULL);
}

static void free_space_is_one_key_per_run_seed(uint64_t seed)
{
	enum { BUCKETS = 64 };
	bool is_free[BUCKETS + 1] = { 0 };
	struct memory_trees m;
	struct rng rng;

	rng_init(&rng, seed);
	memory_trees_open(&m, 4096, 0);
	for (unsigned i = 0; i < 300; i++) {
		uint64_t start = rng_below(&rng, BUCKETS);
		struct free_put p = { .end = start + 1 + rng_below(&rng, min((uint64_t)4, BUCKETS - start)),
				      .is_free = rng_below(&rng, 2) };
		struct btree_iter it;
		struct bkey_ref k;
		uint64_t at = 0;

		p.size = (uint32_t)(p.end - start);
		assert_int_equal(btree_txn_run(m.trees, &(struct btree_commit_opts){ .name = "free" }, free_put_fn, &p),
				 0);
		for (uint64_t b = start; b < p.end; b++)
			is_free[b] = p.is_free;

		btree_iter_open(&it, m.trees, BTREE_FREESPACE, POS_MIN, 0, 0);
		while (btree_iter_peek(&it, &k) > 0) {
			for (; at < bkey_start_offset(&k.k); at++)
				assert_false(is_free[at]);
			for (; at < k.k.p.offset; at++)
				assert_true(is_free[at]);
			assert_false(is_free[at]); /* else this and the next were one key */
			btree_iter_advance(&it);
		}
		for (; at < BUCKETS; at++)
			assert_false(is_free[at]);
		btree_iter_close(&it);
	}
	memory_trees_close(&m);
}

static void free_space_is_one_key_per_run(void **state) { seeds_run(free_space_is_one_key_per_run_seed, 20); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		TREES_TESTS(writes_in_two_snapshots_leave_the_keys_of_the_example, NULL),
		TREES_TESTS(holes_in_inherited_extents_leave_the_keys_of_the_example, NULL),
		TREES_TESTS(a_hole_that_ends_inside_an_inherited_extent_hides_it, NULL),
		TREES_TESTS(an_overwrite_leaves_what_was_journalled, NULL),
		TREES_TESTS(every_snapshot_keeps_what_it_shows, seeds_teardown),
		TREES_TEST_IN_MEMORY(free_space_is_one_key_per_run, seeds_teardown),
	};

	return cmocka_run_group_tests_name("btree extents", tests, NULL, NULL);
}
