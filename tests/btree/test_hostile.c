/* Whatever bytes nodes and journal keys are made of, every call comes back, and positions only grow. */
#include <errno.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "fixture.h"

enum { ROUNDS = 400, KEYS_MAX = 1000000, ID_NR = 3 };

static const unsigned ids[ID_NR] = { BTREE_EXTENTS, BTREE_XATTRS, BTREE_ALLOC };

static bool is_ancestor(void *ctx, uint32_t id, uint32_t ancestor) { return id <= ancestor && (id ^ ancestor) % 3; }

/* Change bytes somewhere in the sets of a node, mostly so that its checksum is good again. */
static void node_mutate(struct fixture *f, size_t idx)
{
	struct rng *rng = &f->b.rng;
	struct stored_node *node = &f->nodes[idx];
	bool is_sealed = rng_below(rng, 4);

	for (unsigned n = 1 + (unsigned)rng_below(rng, 6); n; n--) {
		size_t at = rng_below(rng, rng_below(rng, 2) ? min(node->bytes, (size_t)400) : node->bytes);
		uint8_t byte = (uint8_t)(rng_below(rng, 2) ? rng_u64(rng) : 0xff * rng_below(rng, 2));

		/* Of the first bytes only what a hostile writer would leave: magic and seq are what the pointer says.
		 */
		if (at < 24 || (at >= 136 && at < 144))
			continue;
		node->copy[0][at] = byte;
	}
	if (is_sealed && bset_csum_type(bset_at(node->copy[0], 0)) < CHECKSUM_TYPE_NR &&
	    160 + 8u * le16_get(bset_at(node->copy[0], 0)->u64s) <= node->bytes)
		fixture_reseal(f, idx, 0);
}

/* A journal key of anything, at any level. */
static void overlay_mutate(struct fixture *f, unsigned btree_id)
{
	struct rng *rng = &f->b.rng;
	uint8_t value[BKEY_VALUE_U64S_MAX * 8];
	struct bkey_ref k = {
		.k = { .type = (uint8_t)(rng_below(rng, 2) ? KEY_BTREE_PTR_V2 : rng_below(rng, 40)),
		       .value_u64s = (uint8_t)rng_below(rng, 12),
		       .size = (uint32_t)rng_below(rng, 3),
		       .p = BPOS(4096 + rng_below(rng, 4), rng_below(rng, 2000), (uint32_t)-rng_below(rng, 3)) },
		.value = value,
	};

	if (rng_below(rng, 10) == 0)
		k.k.p = rng_below(rng, 2) ? SPOS_MAX : POS_MIN;
	for (size_t i = 0; i < sizeof(value); i++)
		value[i] = (uint8_t)(rng_below(rng, 2) ? rng_u64(rng) : 0);
	tree_overlay_add(&f->b, btree_id, (unsigned)rng_below(rng, 6), rng_below(rng, 3), 0, &k);
}

/* Read every byte of a value, for the sanitizers to see. */
static void value_touch(const struct bkey_ref *k)
{
	uint8_t copy[BKEY_VALUE_U64S_MAX * 8];

	assert_true(bkey_value_bytes(&k->k) <= sizeof(copy));
	if (k->k.value_u64s) {
		memcpy(copy, k->value, bkey_value_bytes(&k->k));
		assert_memory_equal(copy, k->value, bkey_value_bytes(&k->k));
	}
}

static void check_scan(struct btree_iter *it)
{
	struct bpos last = POS_MIN;
	struct bkey_ref k;
	unsigned nr = 0, errors = 0;
	int found;

	while ((found = btree_iter_peek(it, &k))) {
		assert_true(nr + errors < KEYS_MAX);
		if (found < 0) {
			assert_true(bpos_le(it->pos, it->damage_max) && bpos_le(it->damage_min, it->damage_max));
			btree_iter_skip_damage(it);
			errors++;
			continue;
		}
		assert_true(!nr++ || bpos_lt(last, k.k.p));
		last = k.k.p;
		value_touch(&k);
		btree_iter_advance(it);
	}
	btree_iter_close(it);
}

static int node_count(void *ctx, const struct btree_node_info *info, int err) { return ++*(unsigned *)ctx > KEYS_MAX; }

static void check_hostile(uint64_t seed)
{
	struct built_root roots[ID_NR];
	struct fixture f;

	fixture_init(&f, seed, 8 << 10, 512);
	f.b.keys_per_node = 40;
	f.b.sets_per_node = 2;
	f.b.has_interior_overlay = rng_below(&f.b.rng, 2);
	f.b.csum_type = rng_below(&f.b.rng, 2) ? CHECKSUM_NONE : CHECKSUM_CRC32C_NONZERO;
	f.kctx.is_newer = rng_below(&f.b.rng, 2);
	for (unsigned i = 0; i < ID_NR; i++) {
		struct model m = { 0 };

		for (unsigned n = 0; n < 300; n++) {
			struct model_key k = random_key(&f.b.rng, ids[i], 3, 2000, 3);

			model_put(&m, &k);
		}
		struct bkey_ref *refs = model_refs(&m);
		roots[i] = tree_build(&f.b, ids[i], refs, m.nr);
		free(refs);
		model_free(&m);
	}
	for (unsigned n = (unsigned)rng_below(&f.b.rng, 6); n; n--)
		node_mutate(&f, rng_below(&f.b.rng, f.node_nr));
	for (unsigned n = (unsigned)rng_below(&f.b.rng, 4); n; n--)
		overlay_mutate(&f, ids[rng_below(&f.b.rng, ID_NR)]);
	fixture_open(&f, BTREE_CACHE_BYTES_MIN(8 << 10));
	btrees_set_snapshots(f.trees, (struct btree_snapshots){ is_ancestor, NULL });

	for (unsigned i = 0; i < ID_NR; i++) {
		unsigned nodes = 0;
		struct btree_iter it;

		/* Sometimes the root of another tree. */
		unsigned from = rng_below(&f.b.rng, 8) ? i : (unsigned)rng_below(&f.b.rng, ID_NR);
		btrees_set_root(f.trees, ids[i], roots[from].level, &roots[from].key, false);
		btree_iter_open(&it, f.trees, ids[i], POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
		check_scan(&it);
		btree_iter_open(&it, f.trees, ids[i], POS_MIN, 0, UINT32_MAX - 1);
		check_scan(&it);
		btree_iter_open_level(&it, f.trees, ids[i], 1, POS_MIN);
		check_scan(&it);
		btree_nodes_walk(f.trees, ids[i], node_count, &nodes);
		for (unsigned n = 0; n < 30; n++) {
			struct bkey_copy copy;

			btree_lookup(f.trees, ids[i], random_key(&f.b.rng, ids[i], 3, 2000, 3).k.p, &copy);
		}
	}
	fixture_free(&f);
}

static void hostile_nodes_and_journal_keys_are_survived(void **state) { seeds_run(check_hostile, ROUNDS); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(hostile_nodes_and_journal_keys_are_survived, seeds_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
