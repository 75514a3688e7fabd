/* What an iterator shows of a snapshot is what the nearest ancestor has that has anything. */
#include <errno.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "fixture.h"

enum { ROUNDS = 100, SNAPSHOTS_MAX = 24, OFFSETS = 60, INODES = 4, INODE_FIRST = 4096 };

/* Snapshot i has id UINT32_MAX - i, so parents, which come first, have the greater ids. */
struct forest {
	unsigned nr;
	int parent[SNAPSHOTS_MAX]; /* -1: a root */
};

static uint32_t snapshot_id(int i) { return UINT32_MAX - (uint32_t)i; }

static bool is_ancestor(void *ctx, uint32_t id, uint32_t ancestor)
{
	const struct forest *forest = ctx;

	for (int i = (int)(UINT32_MAX - id); i >= 0 && i < (int)forest->nr; i = forest->parent[i])
		if (snapshot_id(i) == ancestor)
			return true;
	return false;
}

static struct forest random_forest(struct rng *rng)
{
	struct forest forest = { .nr = 1 + (unsigned)rng_below(rng, SNAPSHOTS_MAX) };

	for (unsigned i = 0; i < forest.nr; i++)
		forest.parent[i] = i && rng_below(rng, 10) ? (int)rng_below(rng, i) : -1;
	return forest;
}

/* The key that snapshot @s shows at (inode, offset), found by going up from @s; NULL: none. */
static const struct model_key *visible_key(const struct model *m, const struct forest *forest, int s, uint64_t inode,
					   uint64_t offset)
{
	for (; s >= 0; s = forest->parent[s]) {
		struct bpos p = BPOS(inode, offset, snapshot_id(s));
		size_t i = model_find(m, p);

		if (i < m->nr && bpos_eq(m->keys[i].k.p, p))
			return key_type_is_whiteout(m->keys[i].k.type) ? NULL : &m->keys[i];
	}
	return NULL;
}

static void check_snapshot(struct fixture *f, unsigned btree_id, const struct model *m, const struct forest *forest,
			   int s)
{
	struct btree_iter it, seeking;
	struct bkey_ref k;

	btree_iter_open(&it, f->trees, btree_id, BPOS(0, 0, UINT32_MAX), 0, snapshot_id(s));
	btree_iter_open(&seeking, f->trees, btree_id, POS_MIN, 0, snapshot_id(s));
	for (uint64_t inode = INODE_FIRST; inode < INODE_FIRST + INODES; inode++)
		for (uint64_t offset = 1; offset <= OFFSETS; offset++) {
			const struct model_key *expected = visible_key(m, forest, s, inode, offset);
			struct bpos p = BPOS(inode, offset, snapshot_id(s));
			struct bkey_copy copy;

			assert_int_equal(btree_lookup(f->trees, btree_id, p, &copy), expected != NULL);
			seeking.end = BPOS(inode, offset, 0);
			btree_iter_seek(&seeking, p);
			assert_int_equal(btree_iter_peek(&seeking, &k), expected != NULL);
			if (!expected)
				continue;
			assert_key_equal(&copy.k, expected);
			assert_key_equal(&k, expected);
			assert_int_equal(btree_iter_peek(&it, &k), 1);
			assert_key_equal(&k, expected);
			btree_iter_advance(&it);
		}
	assert_int_equal(btree_iter_peek(&it, &k), 0);
	btree_iter_close(&it);
	btree_iter_close(&seeking);
}

static struct model_key random_version(struct rng *rng, unsigned btree_id, const struct forest *forest)
{
	struct model_key k = random_key(rng, btree_id, INODES, OFFSETS, forest->nr);
	unsigned what = (unsigned)rng_below(rng, 5);

	if (what < 2) {
		k.k.type = what || btree_id != BTREE_EXTENTS ? KEY_WHITEOUT : KEY_EXTENT_WHITEOUT;
		k.k.size = k.k.value_u64s = 0;
	}
	return k;
}

static void check_random_snapshots(uint64_t seed)
{
	static const unsigned ids[] = { BTREE_EXTENTS, BTREE_INODES, BTREE_DIRENTS, BTREE_XATTRS };
	struct model m = { 0 };
	struct fixture f;
	struct rng rng;

	rng_init(&rng, seed);
	struct forest forest = random_forest(&rng);
	unsigned btree_id = ids[rng_below(&rng, ARRAY_NR(ids))];
	size_t nr = rng_below(&rng, 2000);

	fixture_init(&f, rng_u64(&rng), 8 << 10, 512);
	f.kctx.is_newer = true;
	f.b.keys_per_node = 4 + (unsigned)rng_below(&rng, 60);
	f.b.sets_per_node = 2;
	f.b.level_min = (unsigned)rng_below(&rng, 2);
	for (size_t i = 0; i < nr; i++) {
		struct model_key k = random_version(&rng, btree_id, &forest);

		model_put(&m, &k);
	}
	struct bkey_ref *refs = model_refs(&m);
	struct built_root root = tree_build(&f.b, btree_id, refs, m.nr);
	free(refs);
	random_overlay(&f, btree_id, &m, 100, INODES, OFFSETS, forest.nr);
	fixture_open(&f, 0);
	fixture_set_root(&f, btree_id, &root);
	btrees_set_snapshots(f.trees, (struct btree_snapshots){ is_ancestor, &forest });

	for (unsigned s = 0; s < forest.nr; s++)
		check_snapshot(&f, btree_id, &m, &forest, (int)s);
	assert_int_equal(f.reports[REPORT_DAMAGE], 0);
	model_free(&m);
	fixture_free(&f);
}

static void a_snapshot_shows_its_nearest_ancestors_versions(void **state) { seeds_run(check_random_snapshots, ROUNDS); }

static void filters_are_refused_before_the_snapshots_are_known(void **state)
{
	struct fixture f;
	struct bkey_copy copy;

	fixture_init(&f, 1, 8 << 10, 512);
	fixture_open(&f, 0);
	assert_int_equal(btree_lookup(f.trees, BTREE_INODES, BPOS(0, 4096, UINT32_MAX), &copy), -EINVAL);
	assert_int_equal(btree_lookup(f.trees, BTREE_ALLOC, BPOS(0, 4096, 0), &copy), 0);
	fixture_free(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(a_snapshot_shows_its_nearest_ancestors_versions, seeds_teardown),
		cmocka_unit_test(filters_are_refused_before_the_snapshots_are_known),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
