/* Iteration, seeking and lookup agree with a sorted array, whatever shape the tree has. */
#include <errno.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "base/spill.h"
#include "fixture.h"

enum { ROUNDS = 200 };

static void model_fill(struct model *m, struct rng *rng, unsigned btree_id, size_t nr, uint64_t inode_nr,
		       uint64_t offset_nr, uint32_t snapshot_nr)
{
	for (size_t i = 0; i < nr; i++) {
		struct model_key k = random_key(rng, btree_id, inode_nr, offset_nr, snapshot_nr);

		model_put(m, &k);
	}
}

static void check_iteration(struct fixture *f, unsigned btree_id, const struct model *m)
{
	struct btree_iter it;
	struct bkey_ref k;
	size_t i = 0;

	btree_iter_open(&it, f->trees, btree_id, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (; btree_iter_peek(&it, &k) == 1; btree_iter_advance(&it), i++) {
		assert_true(i < m->nr);
		assert_key_equal(&k, &m->keys[i]);
	}
	assert_int_equal(i, m->nr);
	assert_int_equal(btree_iter_peek(&it, &k), 0);
	btree_iter_close(&it);
}

/* A position near a key, or anywhere. */
static struct bpos random_pos(struct rng *rng, const struct model *m)
{
	if (!m->nr || rng_below(rng, 8) == 0)
		return BPOS(rng_u64(rng) >> rng_below(rng, 64), rng_u64(rng) >> rng_below(rng, 64),
			    (uint32_t)rng_u64(rng));

	struct bpos p = m->keys[rng_below(rng, m->nr)].k.p;
	switch (rng_below(rng, 4)) {
	case 0: return bpos_successor(p);
	case 1: return bpos_predecessor(p);
	case 2: return bpos_nosnap_successor(p);
	default: return p;
	}
}

static void check_seeks(struct fixture *f, unsigned btree_id, const struct model *m, unsigned seeks)
{
	struct rng *rng = &f->b.rng;
	struct btree_iter it;
	struct bpos at = POS_MIN;

	btree_iter_open(&it, f->trees, btree_id, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (unsigned s = 0; s < seeks; s++) {
		/* Far, or a few keys on or back from where it is. */
		size_t near = model_find(m, at) + rng_below(rng, 12);
		if (rng_below(rng, 2) && near < m->nr + 6 && near >= 6)
			at = m->keys[min(near - 6, m->nr - 1)].k.p;
		else
			at = random_pos(rng, m);
		it.end = rng_below(rng, 3) ? SPOS_MAX : random_pos(rng, m);
		btree_iter_seek(&it, at);

		size_t i = model_find(m, at);
		for (unsigned steps = (unsigned)rng_below(rng, 6);; steps--, i++) {
			struct bkey_ref k;
			bool is_there = i < m->nr && bpos_le(m->keys[i].k.p, it.end);

			assert_int_equal(btree_iter_peek(&it, &k), is_there);
			if (!is_there)
				break;
			assert_key_equal(&k, &m->keys[i]);
			if (!steps)
				break;
			btree_iter_advance(&it);
		}
	}
	btree_iter_close(&it);
}

static void check_lookups(struct fixture *f, unsigned btree_id, const struct model *m, unsigned lookups)
{
	if (btree_flags(btree_id) & BTREE_HAS_SNAPSHOTS)
		return;
	for (unsigned l = 0; l < lookups; l++) {
		struct bpos p = random_pos(&f->b.rng, m);
		struct bkey_copy copy;
		size_t i = model_find(m, p);
		bool is_there = i < m->nr && bpos_eq(m->keys[i].k.p, p);

		assert_int_equal(btree_lookup(f->trees, btree_id, p, &copy), is_there);
		if (is_there)
			assert_key_equal(&copy.k, &m->keys[i]);
	}
}

static void check_random_tree(uint64_t seed)
{
	static const unsigned ids[] = { BTREE_EXTENTS, BTREE_XATTRS,	     BTREE_ALLOC, BTREE_LOGGED_OPS,
					BTREE_REFLINK, BTREE_REBALANCE_WORK, 40 };
	static const uint32_t node_kib[] = { 8, 16, 64, 256 };
	struct fixture f;
	struct rng rng;
	struct model m = { 0 };

	rng_init(&rng, seed);
	uint32_t node_bytes = node_kib[rng_below(&rng, ARRAY_NR(node_kib))] << 10;
	fixture_init(&f, rng_u64(&rng), node_bytes, rng_below(&rng, 2) ? 512 : 4096);
	unsigned btree_id = ids[rng_below(&rng, ARRAY_NR(ids))];
	uint64_t inode_nr = 1 + rng_below(&rng, 40), offset_nr = 1ull << (8 + rng_below(&rng, 55));
	uint32_t snapshot_nr = 1 + (uint32_t)rng_below(&rng, 5);
	size_t nr = rng_below(&rng, 4) ? rng_below(&rng, 3000) : rng_below(&rng, 10);

	f.b.keys_per_node = 50 + (unsigned)rng_below(&rng, 400);
	f.b.sets_per_node = node_bytes <= 8192 ? 2 : 1 + (unsigned)rng_below(&rng, 7);
	f.b.has_interior_overlay = rng_below(&rng, 2);
	f.b.level_min = (unsigned)rng_below(&rng, 4);
	f.b.csum_type = (unsigned[]){ 0, 1, 2, 4, 7 }[rng_below(&rng, 5)];
	struct crypt_key key = { "not a very random key" };
	f.b.key = &key;

	model_fill(&m, &rng, btree_id, nr, inode_nr, offset_nr, snapshot_nr);
	struct bkey_ref *refs = model_refs(&m);
	struct built_root root = tree_build(&f.b, btree_id, refs, m.nr);
	free(refs);
	random_overlay(&f, btree_id, &m, (unsigned)rng_below(&rng, 500), inode_nr, offset_nr, snapshot_nr);
	fixture_open(&f, 0);
	fixture_set_root(&f, btree_id, &root);

	check_iteration(&f, btree_id, &m);
	check_seeks(&f, btree_id, &m, 1000);
	check_lookups(&f, btree_id, &m, 500);
	for (unsigned level = REPORT_INFO; level <= REPORT_FATAL; level++)
		assert_int_equal(f.reports[level], 0);
	model_free(&m);
	fixture_free(&f);
}

static void iteration_seeks_and_lookups_agree_with_a_sorted_array(void **state)
{
	seeds_run(check_random_tree, ROUNDS);
}

static void a_btree_without_root_has_its_journal_keys(void **state)
{
	struct fixture f;
	struct model m = { 0 };
	struct bkey_ref k;
	struct btree_iter it;

	fixture_init(&f, 1, 16 << 10, 4096);
	random_overlay(&f, BTREE_ALLOC, &m, 300, 3, 1000, 1);
	/* No node to lie over. */
	struct model_key above = random_key(&f.b.rng, BTREE_ALLOC, 1, 1, 1);
	struct bkey_ref ref = model_ref(&above);
	tree_overlay_add(&f.b, BTREE_ALLOC, 1, 7, 7, &ref);
	fixture_open(&f, 0);

	assert_int_equal(btree_root_level(f.trees, BTREE_ALLOC), -1);
	check_iteration(&f, BTREE_ALLOC, &m);
	check_seeks(&f, BTREE_ALLOC, &m, 500);
	check_lookups(&f, BTREE_ALLOC, &m, 200);
	btree_iter_open_level(&it, f.trees, BTREE_ALLOC, 1, POS_MIN);
	assert_int_equal(btree_iter_peek(&it, &k), 0);
	btree_iter_close(&it);
	model_free(&m);
	fixture_free(&f);
}

static void journal_keys_of_one_position_do_not_accumulate(void **state)
{
	enum { ADDS = 60000, INODES = 3, OFFSETS = 1000 };
	struct overlay_usage usage;
	struct fixture f;
	struct model m = { 0 };
	size_t added_bytes = 0;

	fixture_init(&f, 1, 16 << 10, 4096);
	for (unsigned i = 0; i < ADDS; i++) {
		struct model_key key = random_key(&f.b.rng, BTREE_ALLOC, INODES, OFFSETS, 1);
		bool is_deleted = !rng_below(&f.b.rng, 4);

		if (is_deleted) {
			key.k.type = KEY_DELETED;
			key.k.value_u64s = 0;
			model_delete(&m, key.k.p);
		} else {
			model_put(&m, &key);
		}
		struct bkey_ref ref = model_ref(&key);
		tree_overlay_add(&f.b, BTREE_ALLOC, 0, i / 100, i % 100, &ref);
		added_bytes += sizeof(struct bkey_disk) + bkey_value_bytes(&key.k);
		overlay_builder_usage(f.b.overlay, &usage);
		assert_true(usage.keys <= max((size_t)2 * INODES * OFFSETS, (size_t)OVERLAY_KEYS_MIN));
	}
	assert_true(usage.keys_max <= max((size_t)2 * INODES * OFFSETS, (size_t)OVERLAY_KEYS_MIN));
	assert_true(usage.memory_max < added_bytes);

	fixture_open(&f, 0);
	check_iteration(&f, BTREE_ALLOC, &m);
	check_lookups(&f, BTREE_ALLOC, &m, 200);
	model_free(&m);
	fixture_free(&f);
}

/* More than fits in ordinary memory, in an order that is none: on disk, and without room there, in a memory file. */
static void check_many_journal_keys(bool is_secret)
{
	enum { NR = 1 << 18, STEP = 100003 }; /* STEP is odd, so every index comes once */
	struct overlay_usage usage;
	struct fixture f;
	struct btree_iter it;
	struct bkey_ref k;

	fixture_init(&f, 1, 16 << 10, 4096);
	f.b.overlay = overlay_builder_new(is_secret);
	for (uint32_t i = 0; i < NR; i++) {
		uint64_t value = (uint64_t)i * STEP % NR;
		struct bkey_ref ref = { { .p = BPOS(1, value, 0), .type = KEY_COOKIE, .value_u64s = 1 }, &value };

		tree_overlay_add(&f.b, BTREE_ALLOC, 0, 1, i, &ref);
	}
	overlay_builder_usage(f.b.overlay, &usage);
	assert_int_equal(usage.keys, NR);
	assert_true(usage.memory_max > SPILL_MEMORY_MAX);
	fixture_open(&f, 0);

	btree_iter_open(&it, f.trees, BTREE_ALLOC, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (uint64_t i = 0; i < NR; i++) {
		assert_int_equal(btree_iter_peek(&it, &k), 1);
		assert_true(k.k.p.inode == 1 && k.k.p.offset == i && le64_load(k.value) == i);
		btree_iter_advance(&it);
	}
	assert_int_equal(btree_iter_peek(&it, &k), 0);
	btree_iter_close(&it);
	fixture_free(&f);
}

static void more_journal_keys_than_memory_are_in_order_all_the_same(void **state)
{
	check_many_journal_keys(false);
	check_many_journal_keys(true);
	setenv("TMPDIR", "/nonexistent", 1);
	check_many_journal_keys(false);
	unsetenv("TMPDIR");
}

static void an_end_keeps_nodes_behind_it_from_being_read(void **state)
{
	struct fixture f;
	struct model m = { 0 };
	struct btree_iter it;
	struct bkey_ref k;

	fixture_init(&f, 1, 16 << 10, 4096);
	f.b.has_history = false;
	model_fill(&m, &f.b.rng, BTREE_ALLOC, 2000, 1, 1 << 20, 1);
	struct bkey_ref *refs = model_refs(&m);
	fixture_build(&f, BTREE_ALLOC, refs, m.nr);
	free(refs);

	btree_iter_open(&it, f.trees, BTREE_ALLOC, m.keys[0].k.p, 0, 0);
	it.end = bpos_predecessor(m.keys[1].k.p);
	assert_int_equal(btree_iter_peek(&it, &k), 1);
	unsigned reads = f.reads;
	btree_iter_advance(&it);
	assert_int_equal(btree_iter_peek(&it, &k), 0);
	assert_int_equal(f.reads, reads);
	btree_iter_close(&it);
	model_free(&m);
	fixture_free(&f);
}

struct walk_seen {
	unsigned nodes, by_level[BTREE_LEVEL_MAX + 1], keys;
	struct bpos next[BTREE_LEVEL_MAX + 1];
};

static int node_seen(void *ctx, const struct btree_node_info *info, int err)
{
	struct walk_seen *seen = ctx;

	assert_int_equal(err, 0);
	assert_true(bpos_eq(info->min_key, seen->next[info->level]));
	seen->next[info->level] = bpos_successor(info->max_key);
	seen->nodes++;
	seen->by_level[info->level]++;
	if (!info->level)
		seen->keys += info->key_nr;
	return 0;
}

static int node_stop(void *ctx, const struct btree_node_info *info, int err)
{
	return ++*(unsigned *)ctx == 3 ? 42 : 0;
}

static void a_walk_sees_every_node_once_in_order(void **state)
{
	struct fixture f;
	struct model m = { 0 };
	struct walk_seen seen = { 0 };
	struct btree_iter it;
	struct bkey_ref k;
	unsigned pointers = 0, calls = 0;

	fixture_init(&f, 5, 16 << 10, 512);
	f.b.has_interior_overlay = true;
	f.b.keys_per_node = 40;
	model_fill(&m, &f.b.rng, BTREE_ALLOC, 3000, 9, 1 << 20, 1);
	struct bkey_ref *refs = model_refs(&m);
	fixture_build(&f, BTREE_ALLOC, refs, m.nr);
	free(refs);

	assert_int_equal(btree_nodes_walk(f.trees, BTREE_ALLOC, node_seen, &seen), 0);
	assert_int_equal(seen.nodes, f.node_nr);
	assert_int_equal(seen.keys, m.nr);
	btree_iter_open_level(&it, f.trees, BTREE_ALLOC, 1, POS_MIN);
	for (; btree_iter_peek(&it, &k) == 1; btree_iter_advance(&it)) {
		assert_int_equal(k.k.type, KEY_BTREE_PTR_V2);
		pointers++;
	}
	btree_iter_close(&it);
	assert_int_equal(pointers, seen.by_level[0]);
	assert_int_equal(btree_nodes_walk(f.trees, BTREE_ALLOC, node_stop, &calls), 42);
	assert_int_equal(btree_nodes_walk(f.trees, BTREE_INODES, node_stop, &calls), 0);
	assert_int_equal(calls, 3);
	model_free(&m);
	fixture_free(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(iteration_seeks_and_lookups_agree_with_a_sorted_array, seeds_teardown),
		cmocka_unit_test(a_btree_without_root_has_its_journal_keys),
		cmocka_unit_test(journal_keys_of_one_position_do_not_accumulate),
		cmocka_unit_test(more_journal_keys_than_memory_are_in_order_all_the_same),
		cmocka_unit_test(an_end_keeps_nodes_behind_it_from_being_read),
		cmocka_unit_test(a_walk_sees_every_node_once_in_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
