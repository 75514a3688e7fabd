/*
 * Transactions on btrees in memory, and on those of a filesystem: against a sorted array, and against each other. Nodes
 * are small, so that trees of a few thousand keys have three levels.
 *
 * In memory only: with little memory, since the least that a filesystem takes holds all of these btrees; and in fibers,
 * since a filesystem in a file waits for a real disk, where no schedule is repeated. tests/sim has one on simulated
 * disks.
 */
#include "fixture.h"
#include "memory_trees.h"
#include "node_count.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fiber.h"
#include "base/sanitizer.h"
#include "base/util.h"

enum { SMALL_NODE = 4096, LARGE_NODE = 64 << 10 };

/* Where the test that is running has its btrees: what seeds_run() calls is told nothing but the seed. */
static enum trees_place place;

/* --- against a sorted array --- */

static const unsigned model_btrees[] = { BTREE_QUOTAS, BTREE_DIRENTS, BTREE_STRIPES };

struct history {
	struct memory_trees m;
	struct model models[ARRAY_NR(model_btrees)];
	struct rng rng;
	uint64_t offset_nr;
};

/* A transaction of some puts, and what must be true within it and after it. */
struct script {
	struct history *h;
	unsigned tree;
	struct model_key keys[12];
	bool is_deletion[12];
	unsigned nr;
	int result;
	unsigned runs;
};

static int script_put(struct btree_txn *txn, const struct script *s, unsigned i)
{
	struct bkey deleted = { .p = s->keys[i].k.p, .type = KEY_DELETED };
	const struct bkey *k = s->is_deletion[i] ? &deleted : &s->keys[i].k;

	return btree_txn_put(txn, model_btrees[s->tree], k, s->keys[i].value, 0);
}

/* The last put of the script at a position; -1: none. */
static int script_last(const struct script *s, struct bpos p)
{
	int last = -1;

	for (unsigned i = 0; i < s->nr; i++)
		if (bpos_eq(s->keys[i].k.p, p))
			last = (int)i;
	return last;
}

static int script_fn(struct btree_txn *txn, void *ctx)
{
	struct script *s = ctx;
	struct bkey_ref k;
	int err = 0;

	s->runs++;
	for (unsigned i = 0; !err && i < s->nr; i++)
		err = script_put(txn, s, i);
	/* It sees its own puts. */
	for (unsigned i = 0; !err && i < s->nr; i++) {
		int last = script_last(s, s->keys[i].k.p);
		int found = btree_txn_get(txn, model_btrees[s->tree], s->keys[i].k.p, 0, &k);

		if (found < 0)
			return found;
		assert_int_equal(found, !s->is_deletion[last]);
		if (found)
			assert_key_equal(&k, &s->keys[last]);
	}
	return err ? err : s->result;
}

static void script_run(struct history *h, unsigned tree, bool mostly_deletes)
{
	struct model *m = &h->models[tree];
	struct script s = { .h = h, .tree = tree, .nr = 1 + (unsigned)rng_below(&h->rng, ARRAY_NR(s.keys)) };

	for (unsigned i = 0; i < s.nr; i++) {
		s.keys[i] = random_key(&h->rng, model_btrees[tree], 4, h->offset_nr, 3);
		if (m->nr && rng_below(&h->rng, 2))
			s.keys[i].k.p = m->keys[rng_below(&h->rng, m->nr)].k.p;
		s.is_deletion[i] = rng_below(&h->rng, 8) < (mostly_deletes ? 7 : 2);
	}
	s.result = rng_below(&h->rng, 10) ? 0 : -ECANCELED;
	assert_int_equal(btree_txn_run(h->m.trees, &(struct btree_commit_opts){ .name = "script" }, script_fn, &s),
			 s.result);
	assert_int_equal(s.runs, 1);
	for (unsigned i = 0; !s.result && i < s.nr; i++)
		if (s.is_deletion[i])
			model_delete(m, s.keys[i].k.p);
		else
			model_put(m, &s.keys[i]);
}

static void model_compare(struct history *h, unsigned tree)
{
	const struct model *m = &h->models[tree];
	struct btree_iter it;
	struct bkey_ref k;
	size_t i = 0;
	int found;

	btree_iter_open(&it, h->m.trees, model_btrees[tree], POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (; (found = btree_iter_peek(&it, &k)) > 0; i++) {
		assert_true(i < m->nr);
		assert_key_equal(&k, &m->keys[i]);
		btree_iter_advance(&it);
	}
	assert_int_equal(found, 0);
	assert_int_equal(i, m->nr);
	btree_iter_close(&it);
}

/* From a random position, through a transaction that has put something. */
static int iterate_fn(struct btree_txn *txn, void *ctx)
{
	struct script *s = ctx;
	const struct model *m = &s->h->models[s->tree];
	struct bpos from = s->keys[0].k.p;
	struct btree_iter it;
	struct bkey_ref k;
	int err = script_put(txn, s, 0);
	size_t i = model_find(m, from);
	bool was_there = i < m->nr && bpos_eq(m->keys[i].k.p, from);

	if (err)
		return err;
	btree_txn_iter_open(&it, txn, model_btrees[s->tree], from, BTREE_ITER_ALL_SNAPSHOTS, 0);
	if (!s->is_deletion[0]) {
		assert_int_equal(btree_iter_peek(&it, &k), 1);
		assert_key_equal(&k, &s->keys[0]);
		btree_iter_advance(&it);
	}
	i += was_there;
	for (unsigned n = 0; n < 50 && i < m->nr; n++, i++) {
		assert_int_equal(btree_iter_peek(&it, &k), 1);
		assert_key_equal(&k, &m->keys[i]);
		btree_iter_advance(&it);
	}
	if (i == m->nr)
		assert_int_equal(btree_iter_peek(&it, &k), 0);
	btree_iter_close(&it);
	return -ECANCELED;
}

static void iterate(struct history *h, unsigned tree)
{
	struct script s = { .h = h, .tree = tree, .nr = 1 };

	s.keys[0] = random_key(&h->rng, model_btrees[tree], 4, h->offset_nr, 3);
	s.is_deletion[0] = rng_below(&h->rng, 2);
	assert_int_equal(btree_txn_run(h->m.trees, &(struct btree_commit_opts){ .name = "iterate" }, iterate_fn, &s),
			 -ECANCELED);
}

static void models_compare(struct history *h)
{
	for (unsigned i = 0; i < ARRAY_NR(model_btrees); i++)
		model_compare(h, i);
}

/* Begin with what is there: a new filesystem isn't empty. */
static void model_take(struct history *h, unsigned tree)
{
	struct btree_iter it;
	struct bkey_ref k;
	int found;

	btree_iter_open(&it, h->m.trees, model_btrees[tree], POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	while ((found = btree_iter_peek(&it, &k)) > 0) {
		struct model_key key = { .k = k.k };

		assert_true(k.k.value_u64s <= MODEL_VALUE_U64S_MAX);
		memcpy(key.value, k.value, bkey_value_bytes(&k.k));
		model_put(&h->models[tree], &key);
		btree_iter_advance(&it);
	}
	assert_int_equal(found, 0);
	btree_iter_close(&it);
}

/* Some of the btrees are cached, or none or all. */
static void cache_some(struct history *h)
{
	uint32_t btrees = 0;

	for (unsigned i = 0; i < ARRAY_NR(model_btrees); i++)
		if (rng_below(&h->rng, 3))
			btrees |= 1u << model_btrees[i];
	memory_trees_cache(&h->m, btrees);
}

/* Grows, shrinks, grows, shrinks; and is read again from what was written, now and then. */
static void history_run(uint64_t seed, uint32_t node_bytes, uint64_t memory_bytes, unsigned txn_nr)
{
	static struct history h;

	memset(&h, 0, sizeof(h));
	rng_init(&h.rng, seed);
	h.offset_nr = 1 + (seed % 3 ? 2000 : 50);
	memory_trees_open_at(&h.m, place, node_bytes, memory_bytes);
	cache_some(&h);
	for (unsigned i = 0; i < ARRAY_NR(model_btrees); i++)
		model_take(&h, i);
	for (unsigned i = 0; i < txn_nr; i++) {
		unsigned tree = (unsigned)rng_below(&h.rng, ARRAY_NR(model_btrees));

		script_run(&h, tree, i * 4 / txn_nr % 2);
		if (rng_below(&h.rng, 8) == 0)
			iterate(&h, tree);
		if (rng_below(&h.rng, txn_nr / 8) == 0)
			models_compare(&h);
		if (rng_below(&h.rng, txn_nr / 4) == 0) {
			memory_trees_reopen(&h.m);
			models_compare(&h);
		}
	}
	models_compare(&h);
	memory_trees_reopen(&h.m);
	models_compare(&h);
	memory_trees_close(&h.m);
	for (unsigned i = 0; i < ARRAY_NR(model_btrees); i++)
		model_free(&h.models[i]);
}

/* The disk takes its time: fewer seeds there. */
static void seeds_run_at(void **state, void (*check)(uint64_t seed), uint64_t nr)
{
	place = trees_place_of(state);
	seeds_run(check, place == TREES_ON_DISK ? min(nr, (uint64_t)2) : nr);
}

static void small_nodes_seed(uint64_t seed) { history_run(seed, SMALL_NODE, 0, 4000); }
static void little_memory_seed(uint64_t seed)
{
	history_run(seed, SMALL_NODE, BTREE_CACHE_BYTES_MIN(SMALL_NODE) + (seed % 4 << 16), 1500);
}
static void large_nodes_seed(uint64_t seed) { history_run(seed, LARGE_NODE, 0, 12000); }

static void a_btree_is_a_sorted_array(void **state) { seeds_run_at(state, small_nodes_seed, 6); }
static void a_btree_with_little_memory_is_a_sorted_array(void **state) { seeds_run_at(state, little_memory_seed, 4); }
static void a_btree_of_large_nodes_is_a_sorted_array(void **state) { seeds_run_at(state, large_nodes_seed, 2); }

/* In order, which is how most btrees grow, and all deleted again: nodes merge. */
static void one_by_one(void **state)
{
	enum { KEYS = 5000 };
	struct history h = { .rng = { { 1, 2, 3, 4 } }, .offset_nr = KEYS };
	struct btrees_write_stats stats;

	memory_trees_open_at(&h.m, trees_place_of(state), SMALL_NODE, 0);
	for (unsigned pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < KEYS; i++) {
			struct script s = { .h = &h, .nr = 1 };

			s.keys[0] = random_key(&h.rng, BTREE_QUOTAS, 1, 1, 1);
			s.keys[0].k.p.offset = i;
			s.is_deletion[0] = pass;
			assert_int_equal(
				btree_txn_run(h.m.trees, &(struct btree_commit_opts){ .name = "one" }, script_fn, &s),
				0);
			if (pass)
				h.models[0].nr = 0;
			else
				model_put(&h.models[0], &s.keys[0]);
		}
		model_compare(&h, 0);
		btrees_write_stats(h.m.trees, &stats);
		assert_true(stats.commits >= KEYS * (pass + 1));
		assert_true(stats.splits > 10);
		assert_true(stats.roots_raised >= 2 || !pass);
	}
	memory_trees_reopen(&h.m);
	assert_true(h.m.stats.merges > 0); /* as nodes are written back */
	model_compare(&h, 0);
	memory_trees_close(&h.m);
	model_free(&h.models[0]);
}

/* --- shrinking --- */

enum { MANY = KILN_TSAN ? 4000 : 6000, LEFT_STEP = 40 };

static int one_put(struct btree_txn *txn, void *ctx) { return script_put(txn, ctx, 0); }

/* Put, or delete, the key at a position. */
static void one_run(struct history *h, uint64_t offset, bool is_deletion)
{
	struct script s = { .h = h, .nr = 1, .is_deletion = { is_deletion } };

	s.keys[0] = random_key(&h->rng, BTREE_QUOTAS, 1, 1, 1);
	s.keys[0].k.p.offset = offset;
	assert_int_equal(btree_txn_run(h->m.trees, &(struct btree_commit_opts){ .name = "one" }, one_put, &s), 0);
}

/* Delete what lies in @begin..@end - 1, in order or not, but for every LEFT_STEP-th if @some_stay. */
static void many_delete(struct history *h, uint64_t begin, uint64_t end, bool some_stay)
{
	uint64_t nr = end - begin, step = 1;

	if (rng_below(&h->rng, 2)) /* a prime that doesn't divide it goes through all of them */
		step = nr % 7919 ? 7919 : 1;
	for (uint64_t i = 0; i < nr; i++) {
		uint64_t offset = begin + i * step % nr;

		if (!some_stay || offset % LEFT_STEP)
			one_run(h, offset, true);
		if (rng_below(&h->rng, nr) < 3)
			assert_int_equal(btrees_flush_all(h->m.trees), 0);
	}
}

static void shrink_seed(uint64_t seed)
{
	static struct history h;
	struct node_count full, some, none;

	memset(&h, 0, sizeof(h));
	rng_init(&h.rng, seed);
	memory_trees_open_at(&h.m, place, SMALL_NODE, 0);
	cache_some(&h);
	for (unsigned round = 0; round < (KILN_TSAN ? 1 : 3); round++) {
		for (uint64_t i = 0; i < MANY; i++)
			one_run(&h, i, false);
		assert_int_equal(btrees_flush_all(h.m.trees), 0);
		node_count(h.m.trees, BTREE_QUOTAS, &full);
		assert_true(full.leaves > 100 && full.levels >= 3);
		/* A half, and what is left of it; then most of the other, so that some leaves keep a few keys. */
		many_delete(&h, 0, MANY / 2, false);
		many_delete(&h, MANY / 2, MANY, true);
		memory_trees_reopen(&h.m);
		node_count(h.m.trees, BTREE_QUOTAS, &some);
		assert_int_equal(some.mergeable, 0);
		assert_true(some.leaf_u64s > 0);
		assert_true(some.nodes <= 2 * some.levels + 8 * (uint32_t)(some.leaf_u64s * 8 / SMALL_NODE + 1));
		many_delete(&h, MANY / 2, MANY, false);
		memory_trees_reopen(&h.m);
		node_count(h.m.trees, BTREE_QUOTAS, &none);
		assert_int_equal(none.leaf_u64s, 0);
		assert_int_equal(none.nodes, none.levels);
	}
	memory_trees_close(&h.m);
}

static void a_btree_shrinks_with_what_is_in_it(void **state) { seeds_run_at(state, shrink_seed, KILN_TSAN ? 1 : 3); }

/* --- against each other --- */

enum {
	COUNTERS = 300,
	COUNTER_STEP = 7, /* between positions; filler keys that come and go lie between */
	COUNTER_START = 1000,
	MOVERS = 4,
	MOVES = KILN_TSAN ? 150 : 400,
	READS = KILN_TSAN ? 10 : 25,
	FILLERS = KILN_TSAN ? 100 : 300,
};

static struct memory_trees bank;
static uint64_t bank_seed;

/* Tasks can't use cmocka's assertions, which unwind. */
#define CHECK(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: not true: %s (KILN_TEST_SEED=%llu)\n", __FILE__, __LINE__, #condition, \
				(unsigned long long)bank_seed);                                                        \
			abort();                                                                                       \
		}                                                                                                      \
	} while (0)

static struct bpos counter_pos(uint64_t idx) { return BPOS(4096, 1 + idx * COUNTER_STEP, 0); }

static int counter_put(struct btree_txn *txn, uint64_t idx, uint64_t value)
{
	uint64_t words[4] = { value };
	struct bkey k = { .p = counter_pos(idx), .type = KEY_COOKIE, .value_u64s = ARRAY_NR(words) };

	return btree_txn_put(txn, BTREE_STRIPES, &k, words, 0);
}

static int counter_get(struct btree_txn *txn, uint64_t idx, uint64_t *value)
{
	struct bkey_ref k;
	int found = btree_txn_get(txn, BTREE_STRIPES, counter_pos(idx), 0, &k);

	if (found > 0)
		*value = le64_load(k.value);
	return found > 0 ? 0 : found ? found : -ENOENT;
}

static int bank_fill_fn(struct btree_txn *txn, void *ctx)
{
	uint64_t *idx = ctx;

	return counter_put(txn, *idx, COUNTER_START);
}

/* Move between counters, with more of a read in it than it needs. */
struct move {
	uint64_t from, to, amount, other;
};

static int move_fn(struct btree_txn *txn, void *ctx)
{
	const struct move *m = ctx;
	uint64_t from, to, other;
	int err = counter_get(txn, m->from, &from);

	if (!err)
		err = counter_get(txn, m->to, &to);
	if (!err)
		err = counter_get(txn, m->other, &other);
	if (!err && from < m->amount)
		return -EAGAIN; /* a decision that must have been made from one state */
	if (!err && m->from != m->to)
		err = counter_put(txn, m->from, from - m->amount);
	if (!err && m->from != m->to)
		err = counter_put(txn, m->to, to + m->amount);
	return err;
}

static void mover_run(void *arg)
{
	struct rng rng;

	rng_init(&rng, bank_seed * 100 + (uint64_t)(uintptr_t)arg);
	for (unsigned i = 0; i < MOVES; i++) {
		struct move m = { .from = rng_below(&rng, COUNTERS),
				  .to = rng_below(&rng, COUNTERS),
				  .amount = rng_below(&rng, COUNTER_START),
				  .other = rng_below(&rng, COUNTERS) };
		if (rng_below(&rng, 4) == 0) { /* many want the same ones */
			m.from %= 4;
			m.to %= 4;
		}
		int err = btree_txn_run(bank.trees, &(struct btree_commit_opts){ .name = "move" }, move_fn, &m);
		CHECK(!err || err == -EAGAIN);
	}
}

static int sum_fn(struct btree_txn *txn, void *ctx)
{
	struct btree_iter it;
	struct bkey_ref k;
	uint64_t sum = 0, nr = 0;
	int found;

	btree_txn_iter_open(&it, txn, BTREE_STRIPES, POS_MIN, 0, 0);
	while ((found = btree_iter_peek(&it, &k)) > 0) {
		if (k.k.p.offset % COUNTER_STEP == 1) {
			sum += le64_load(k.value);
			nr++;
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	*(uint64_t *)ctx = nr == COUNTERS ? sum : 0;
	return found;
}

static void summer_run(void *arg)
{
	for (unsigned i = 0; i < READS; i++) {
		uint64_t sum;

		CHECK(!btree_txn_run(bank.trees, &(struct btree_commit_opts){ .name = "sum" }, sum_fn, &sum));
		CHECK(sum == (uint64_t)COUNTERS * COUNTER_START);
	}
}

/* Large keys between the counters come and go, so that nodes split and merge under everybody. */
struct filler {
	uint64_t offset;
	bool is_deletion;
};

static int filler_fn(struct btree_txn *txn, void *ctx)
{
	const struct filler *f = ctx;
	uint64_t words[40] = { f->offset };
	struct bkey k = { .p = BPOS(4096, f->offset, 0) };

	if (!f->is_deletion) {
		k.type = KEY_COOKIE;
		k.value_u64s = ARRAY_NR(words);
	}
	return btree_txn_put(txn, BTREE_STRIPES, &k, words, 0);
}

static void filler_run(void *arg)
{
	struct rng rng;

	rng_init(&rng, bank_seed);
	for (unsigned i = 0; i < FILLERS; i++) {
		struct filler f = { .offset = 2 + rng_below(&rng, COUNTERS) * COUNTER_STEP + rng_below(&rng, 6),
				    .is_deletion = i > FILLERS / 2 && rng_below(&rng, 2) };

		if (f.offset % COUNTER_STEP != 1)
			CHECK(!btree_txn_run(bank.trees, &(struct btree_commit_opts){ .name = "fill" }, filler_fn, &f));
	}
}

static void bank_run(void *arg)
{
	struct task *tasks[MOVERS + 2];

	bool has_plenty = bank_seed % 2 || place == TREES_ON_DISK;

	memory_trees_open_at(&bank, place, SMALL_NODE, has_plenty ? 0 : BTREE_CACHE_BYTES_MIN(SMALL_NODE) + (64 << 10));
	if (bank_seed / 2 % 2)
		memory_trees_cache(&bank, 1u << BTREE_STRIPES);
	for (uint64_t i = 0; i < COUNTERS; i++)
		CHECK(!btree_txn_run(bank.trees, &(struct btree_commit_opts){ .name = "start" }, bank_fill_fn, &i));
	for (unsigned i = 0; i < MOVERS; i++)
		CHECK(!task_start(&tasks[i], "mover", mover_run, (void *)(uintptr_t)i));
	CHECK(!task_start(&tasks[MOVERS], "summer", summer_run, NULL));
	CHECK(!task_start(&tasks[MOVERS + 1], "filler", filler_run, NULL));
	for (unsigned i = 0; i < ARRAY_NR(tasks); i++)
		task_join(tasks[i]);
	summer_run(NULL);
	memory_trees_reopen(&bank);
	summer_run(NULL);
	memory_trees_close(&bank);
}

static void bank_seed_run(uint64_t seed)
{
	bank_seed = seed;
	assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, bank_run, NULL, NULL), 0);
}

static void transactions_of_fibers_are_isolated(void **state)
{
	seeds_run_at(state, bank_seed_run, KILN_TSAN ? 2 : 10);
}

static void transactions_of_threads_are_isolated(void **state)
{
	place = trees_place_of(state);
	for (bank_seed = 1; bank_seed <= (place == TREES_ON_DISK ? 2 : 4); bank_seed++)
		bank_run(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TREES_TESTS(one_by_one, NULL),
		TREES_TESTS(a_btree_is_a_sorted_array, seeds_teardown),
		TREES_TEST_IN_MEMORY(a_btree_with_little_memory_is_a_sorted_array, seeds_teardown),
		TREES_TESTS(a_btree_of_large_nodes_is_a_sorted_array, seeds_teardown),
		TREES_TESTS(a_btree_shrinks_with_what_is_in_it, seeds_teardown),
		TREES_TEST_IN_MEMORY(transactions_of_fibers_are_isolated, seeds_teardown),
		TREES_TESTS(transactions_of_threads_are_isolated, NULL),
	};

	return cmocka_run_group_tests_name("btree transactions", tests, NULL, NULL);
}
