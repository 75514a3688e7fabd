/*
 * Transactions: what was committed is there, across splits, evictions and conflicts. On the backend in memory and on
 * that of a filesystem.
 */
#include "memory_trees.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/sanitizer.h"
#include "base/sync.h"
#include "btree/internal.h"

enum { NODE_BYTES = 4096, ID = BTREE_XATTRS };

/* With little memory; the least that a filesystem takes is more than these keys need. */
static void trees_open(struct memory_trees *v, void **state)
{
	enum trees_place place = trees_place_of(state);

	memory_trees_open_at(v, place, NODE_BYTES,
			     place == TREES_ON_DISK ? 32 << 20 : BTREE_CACHE_BYTES_MIN(NODE_BYTES) * 4);
}

struct put {
	uint64_t at, value;
	unsigned words; /* 0: delete */
};

static int put_txn(struct btree_txn *txn, void *ctx)
{
	const struct put *p = ctx;
	struct bkey k = { .p = BPOS(1, p->at, UINT32_MAX), .type = p->words ? KEY_COOKIE : KEY_DELETED };
	uint64_t value[BKEY_VALUE_U64S_MAX];

	k.value_u64s = (uint8_t)p->words;
	for (unsigned i = 0; i < p->words; i++)
		value[i] = p->value + i;
	return btree_txn_put(txn, ID, &k, value, 0);
}

static const struct btree_commit_opts opts = { .name = "test" };

static void put(struct memory_trees *v, uint64_t at, uint64_t value, unsigned words)
{
	struct put p = { at, value, words };

	assert_int_equal(btree_txn_run(v->trees, &opts, put_txn, &p), 0);
}

enum { KEYS = 3000 };

struct model {
	struct put at[KEYS];
};

static void compare(struct memory_trees *v, const struct model *m)
{
	struct btree_iter it;
	struct bkey_ref k;

	btree_iter_open(&it, v->trees, ID, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (unsigned i = 0; i < KEYS; i++) {
		if (!m->at[i].words)
			continue;
		assert_int_equal(btree_iter_peek(&it, &k), 1);
		assert_int_equal(k.k.p.offset, i);
		assert_int_equal(k.k.value_u64s, m->at[i].words);
		for (unsigned w = 0; w < m->at[i].words; w++)
			assert_true(le64_load((const uint8_t *)k.value + (size_t)w * 8) == m->at[i].value + w);
		btree_iter_advance(&it);
	}
	assert_int_equal(btree_iter_peek(&it, &k), 0);
	btree_iter_close(&it);
}

static void random_puts_are_what_a_table_says(void **state)
{
	static struct model m;
	const char *env = getenv("KILN_TEST_SEED");
	uint64_t seed = env ? strtoull(env, NULL, 0) : random_u64();
	struct memory_trees v;
	struct rng rng;

	printf("KILN_TEST_SEED=%llu\n", (unsigned long long)seed);
	rng_init(&rng, seed);
	memset(&m, 0, sizeof(m));
	trees_open(&v, state);
	for (unsigned i = 0; i < (v.memory && !KILN_TSAN ? 30000 : 10000); i++) {
		uint64_t at = rng_below(&rng, KEYS);
		unsigned words = rng_below(&rng, 3) ? 1 + (unsigned)rng_below(&rng, rng_below(&rng, 50) ? 8 : 200) : 0;

		m.at[at] = (struct put){ at, rng_u64(&rng), words };
		put(&v, at, m.at[at].value, words);
		if (i % 5000 == 0)
			compare(&v, &m);
	}
	compare(&v, &m);
	assert_int_equal(btrees_flush_all(v.trees), 0);
	compare(&v, &m);
	if (v.memory) { /* a filesystem has tasks of its own, which put keys */
		struct btrees_write_stats stats;

		btrees_write_stats(v.trees, &stats);
		assert_int_equal(stats.nodes_dirty, 0);
	}
	memory_trees_reopen(&v);
	compare(&v, &m);
	assert_true(v.stats.splits > 0 && v.stats.sets_appended > 0);
	memory_trees_close(&v);
}

/* What is deleted makes nodes small, and small neighbours become one. */
static void nodes_that_become_small_are_merged(void **state)
{
	static struct model m;
	struct btrees_write_stats stats;
	struct memory_trees v;

	memset(&m, 0, sizeof(m));
	trees_open(&v, state);
	for (unsigned i = 0; i < KEYS; i++) {
		m.at[i] = (struct put){ i, i, 5 };
		put(&v, i, i, 5);
	}
	assert_int_equal(btrees_flush_all(v.trees), 0);
	for (unsigned i = 0; i < KEYS; i++) {
		if (i % 200 == 0)
			continue;
		m.at[i].words = 0;
		put(&v, i, 0, 0);
	}
	for (unsigned i = 0; i < 10; i++) {
		put(&v, 0, 0, 5);
		assert_int_equal(btrees_flush_all(v.trees), 0);
	}
	btrees_write_stats(v.trees, &stats);
	assert_true(stats.merges > 10);
	compare(&v, &m);
	memory_trees_close(&v);
}

static int rewrite_all(void *ctx, const struct btree_node_info *info, int err)
{
	struct memory_trees *v = ctx;

	return err ? err : btree_node_rewrite(v->trees, info->btree_id, info->level, info->max_key, NULL);
}

static void rewritten_nodes_hold_what_they_held(void **state)
{
	static struct model m;
	struct memory_trees v;

	memset(&m, 0, sizeof(m));
	trees_open(&v, state);
	for (unsigned i = 0; i < KEYS; i++) {
		m.at[i] = (struct put){ i, i, 5 };
		put(&v, i, i, 5);
	}
	assert_int_equal(btree_nodes_walk(v.trees, ID, rewrite_all, &v), 0);
	compare(&v, &m);
	assert_int_equal(btrees_flush_all(v.trees), 0);
	assert_int_equal(btree_nodes_walk(v.trees, ID, rewrite_all, &v), 0);
	compare(&v, &m);
	memory_trees_close(&v);
}

/* --- many tasks --- */

enum { TASKS = 4, ROUNDS = 2000, COUNTERS = 50 };

struct counting {
	struct memory_trees *v;
	uint64_t seed;
};

/* Move one from a counter to another: the sum stays. */
static int move_txn(struct btree_txn *txn, void *ctx)
{
	const uint64_t *which = ctx;
	uint64_t value[2];

	for (unsigned i = 0; i < 2; i++) {
		struct bkey_ref k;
		int found = btree_txn_get(txn, ID, BPOS(2, which[i], UINT32_MAX), 0, &k);

		if (found < 0)
			return found;
		value[i] = (found ? le64_load(k.value) : 0) + (i ? 1 : UINT64_MAX);
		if (which[0] == which[1])
			return 0;
	}
	for (unsigned i = 0; i < 2; i++) {
		struct bkey k = { .p = BPOS(2, which[i], UINT32_MAX), .type = KEY_COOKIE, .value_u64s = 1 };
		int err = btree_txn_put(txn, ID, &k, &value[i], 0);

		if (err)
			return err;
	}
	return 0;
}

static void count_task(void *arg)
{
	struct counting *c = arg;
	struct rng rng;

	rng_init(&rng, c->seed);
	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t which[2] = { rng_below(&rng, COUNTERS), rng_below(&rng, COUNTERS) };

		if (btree_txn_run(c->v->trees, &opts, move_txn, which))
			abort();
		/* Some noise that splits nodes. */
		if (i % 8 == 0) {
			struct put p = { rng_u64(&rng) >> 1, i, 4 };

			if (btree_txn_run(c->v->trees, &opts, put_txn, &p))
				abort();
		}
	}
}

/* --- errors that pass --- */

static struct {
	int (*read)(void *ctx, const struct btree_ptr *p, unsigned replica, void *buf, size_t bytes);
	atomic_uint fail_nr; /* so many reads fail, the next ones */
} flaky;

static int flaky_read(void *ctx, const struct btree_ptr *p, unsigned replica, void *buf, size_t bytes)
{
	unsigned nr = atomic_load(&flaky.fail_nr);

	while (nr && !atomic_compare_exchange_weak(&flaky.fail_nr, &nr, nr - 1))
		;
	return nr ? -EIO : flaky.read(ctx, p, replica, buf, bytes);
}

/* All that nobody holds. */
static void evict(struct memory_trees *v)
{
	uint64_t bytes_max = v->trees->cache.bytes_max;

	v->trees->cache.bytes_max = 0;
	cache_shrink(v->trees);
	cache_shrink(v->trees);
	v->trees->cache.bytes_max = bytes_max;
}

/*
 * Where the nodes above one that is written back can't be read for a moment, both when it is appended to and replaced.
 * In memory only: the tasks of a filesystem read nodes too, and would meet the error instead.
 */
/* --- reading twice --- */

struct twice {
	struct memory_trees *v;
	unsigned runs;
};

static uint64_t value_got(struct btree_txn *txn, uint64_t at, unsigned flags)
{
	struct bkey_ref k;
	int found = btree_txn_get(txn, ID, BPOS(1, at, UINT32_MAX), flags, &k);

	assert_true(found >= 0);
	return found ? le64_load(k.value) : 0;
}

/* Adds one to what is at 7. In the first run another one comes between, which changes that, and what isn't at 8. */
static int twice_txn(struct btree_txn *txn, void *ctx)
{
	struct twice *t = ctx;
	uint64_t seven = value_got(txn, 7, 0), eight = value_got(txn, 8, 0);

	if (!t->runs++) {
		assert_int_equal(seven, 70);
		assert_int_equal(eight, 0);
		put(t->v, 7, 77, 1);
		put(t->v, 8, 88, 1);
	}
	assert_int_equal(value_got(txn, 7, 0), seven);
	assert_int_equal(value_got(txn, 8, 0), eight);
	int err = put_txn(txn, &(struct put){ 7, seven + 1, 1 });

	/* But its own puts it sees, and what is below them if it wants. */
	assert_int_equal(value_got(txn, 7, 0), seven + 1);
	assert_int_equal(value_got(txn, 7, BTREE_GET_BELOW_PUTS), seven);
	return err;
}

static int seven_txn(struct btree_txn *txn, void *ctx)
{
	*(uint64_t *)ctx = value_got(txn, 7, 0);
	return 0;
}

static void what_is_read_twice_is_the_same(void **state)
{
	struct memory_trees v;
	struct twice t = { &v, 0 };
	uint64_t seven;

	trees_open(&v, state);
	put(&v, 7, 70, 1);
	assert_int_equal(btree_txn_run(v.trees, &opts, twice_txn, &t), 0);
	assert_int_equal(t.runs, 2);
	assert_int_equal(btree_txn_run(v.trees, &opts, seven_txn, &seven), 0);
	assert_int_equal(seven, 78);
	memory_trees_close(&v);
}

static void an_error_that_passes_does_not_end_writing(void **state)
{
	enum { SPREAD = 500, ROUNDS = 12 };
	struct btrees_write_stats before, after;
	struct btree_iter it;
	struct bkey_ref k;
	struct memory_trees v;

	memory_trees_open(&v, NODE_BYTES, 64 << 20);
	for (unsigned i = 0; i < SPREAD; i++)
		put(&v, i, i, 50);
	assert_int_equal(btrees_flush_all(v.trees), 0);
	assert_true(btree_root_level(v.trees, ID) > 0);
	flaky.read = v.trees->opts.backend.read;
	v.trees->opts.backend.read = flaky_read;
	btrees_write_stats(v.trees, &before);
	for (unsigned round = 0; round < ROUNDS; round++) {
		put(&v, 100, round, 50);
		evict(&v);
		atomic_store(&flaky.fail_nr, 1);
		assert_int_equal(btrees_flush_all(v.trees), 0);
		assert_int_equal(atomic_load(&flaky.fail_nr), 0);
	}
	btrees_write_stats(v.trees, &after);
	assert_true(after.sets_appended > before.sets_appended && after.rewrites > before.rewrites);
	evict(&v);
	btree_iter_open(&it, v.trees, ID, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (unsigned i = 0; i < SPREAD; i++) {
		assert_int_equal(btree_iter_peek(&it, &k), 1);
		assert_true(le64_load(k.value) == (i == 100 ? ROUNDS - 1 : i));
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	v.reports = 0; /* of reads that failed */
	memory_trees_close(&v);
}

static void transfers_keep_the_sum(void **state)
{
	struct task *tasks[TASKS];
	struct counting c[TASKS];
	struct btree_iter it;
	struct bkey_ref k;
	struct memory_trees v;
	uint64_t sum = 0;

	trees_open(&v, state);
	for (unsigned i = 0; i < TASKS; i++) {
		c[i] = (struct counting){ &v, i + 1 };
		assert_int_equal(task_start(&tasks[i], "count", count_task, &c[i]), 0);
	}
	for (unsigned i = 0; i < TASKS; i++)
		task_join(tasks[i]);
	btree_iter_open(&it, v.trees, ID, BPOS(2, 0, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	while (btree_iter_peek(&it, &k) == 1) {
		sum += le64_load(k.value);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	assert_true(sum == 0);
	assert_int_equal(btrees_flush_all(v.trees), 0);
	memory_trees_close(&v);
}

/* --- buffered puts --- */

enum { BUFFERED_ID = BTREE_REBALANCE_WORK, POSITIONS = 700, BUFFERED_PUTS = KILN_TSAN ? 1500 : 6000 };

struct putter {
	struct memory_trees *v;
	unsigned nr;
	uint64_t value[POSITIONS]; /* 0: there is none */
};

/* Positions of different tasks lie between one another, in the same leaves. */
static uint64_t position_of(const struct putter *p, unsigned i) { return (uint64_t)i * TASKS + p->nr; }

struct buffered_put {
	uint64_t at, value;
};

static int buffered_txn(struct btree_txn *txn, void *ctx)
{
	const struct buffered_put *p = ctx;
	struct bkey k = { .p = BPOS(1, p->at, 1),
			  .type = p->value ? KEY_COOKIE : KEY_DELETED,
			  .value_u64s = p->value != 0 };

	return btree_txn_put(txn, BUFFERED_ID, &k, &p->value, 0);
}

static void putter_task(void *arg)
{
	struct putter *p = arg;
	struct rng rng;

	rng_init(&rng, p->nr + 1);
	for (unsigned n = 0; n < BUFFERED_PUTS; n++) {
		unsigned i = (unsigned)rng_below(&rng, POSITIONS);

		p->value[i] = rng_below(&rng, 3) ? rng_u64(&rng) | 1 : 0;
		if (btree_txn_run(p->v->trees, &opts, buffered_txn,
				  &(struct buffered_put){ position_of(p, i), p->value[i] }))
			abort();
		if (!rng_below(&rng, 1000) && btree_write_buffer_flush(p->v->trees))
			abort();
	}
}

static void buffered_compare(struct memory_trees *v, const struct putter *putters)
{
	struct btree_iter it;
	struct bkey_ref k;

	btree_iter_open(&it, v->trees, BUFFERED_ID, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (unsigned i = 0; i < POSITIONS; i++)
		for (const struct putter *p = putters; p < putters + TASKS; p++) {
			if (!p->value[i])
				continue;
			assert_int_equal(btree_iter_peek(&it, &k), 1);
			assert_int_equal(k.k.p.offset, position_of(p, i));
			assert_true(le64_load(k.value) == p->value[i]);
			btree_iter_advance(&it);
		}
	assert_int_equal(btree_iter_peek(&it, &k), 0);
	btree_iter_close(&it);
}

/*
 * Puts to a btree with a write buffer. The buffer is there where there is a journal: on disk. In memory the same puts
 * go into the leaves at once, and a flush has nothing to do.
 */
static void buffered_puts_are_there_after_a_flush(void **state)
{
	static struct putter putters[TASKS];
	struct task *tasks[TASKS];
	struct memory_trees v;

	trees_open(&v, state);
	assert_int_equal(v.trees->write_buffer != NULL, trees_place_of(state) == TREES_ON_DISK);
	for (unsigned i = 0; i < TASKS; i++) {
		putters[i] = (struct putter){ .v = &v, .nr = i };
		assert_int_equal(task_start(&tasks[i], "putter", putter_task, &putters[i]), 0);
	}
	for (unsigned i = 0; i < TASKS; i++)
		task_join(tasks[i]);
	assert_int_equal(btree_write_buffer_flush(v.trees), 0);
	buffered_compare(&v, putters);
	memory_trees_reopen(&v);
	buffered_compare(&v, putters);
	memory_trees_close(&v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TREES_TESTS(random_puts_are_what_a_table_says, NULL),
		TREES_TESTS(nodes_that_become_small_are_merged, NULL),
		TREES_TESTS(rewritten_nodes_hold_what_they_held, NULL),
		TREES_TEST_IN_MEMORY(an_error_that_passes_does_not_end_writing, NULL),
		TREES_TESTS(what_is_read_twice_is_the_same, NULL),
		TREES_TESTS(transfers_keep_the_sum, NULL),
		TREES_TESTS(buffered_puts_are_there_after_a_flush, NULL),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
