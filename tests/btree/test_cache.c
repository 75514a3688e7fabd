/* The cache: many tasks share nodes, each node is read once, and memory stays within the budget. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "base/fiber.h"
#include "fixture.h"

enum { ID = BTREE_ALLOC, TASKS = 8, NODE_BYTES = 16 << 10, SIMULATIONS = 30 };

/* In tasks cmocka's assertions can't unwind. */
#define CHECK(condition)                                                                          \
	do {                                                                                      \
		if (!(condition)) {                                                               \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                  \
		}                                                                                 \
	} while (0)

struct shared {
	struct fixture f;
	struct model m;
	unsigned rounds;
	uint64_t bytes_limit;
};

struct reader {
	struct shared *s;
	uint64_t seed;
};

static void shared_make(struct shared *s, uint64_t seed, uint64_t memory_bytes)
{
	memset(s, 0, sizeof(*s));
	fixture_init(&s->f, seed, NODE_BYTES, 512);
	s->f.b.has_interior_overlay = true;
	for (unsigned i = 0; i < 3000; i++) {
		struct model_key k = random_key(&s->f.b.rng, ID, 10, 1 << 16, 1);

		model_put(&s->m, &k);
	}
	struct bkey_ref *refs = model_refs(&s->m);
	struct built_root root = tree_build(&s->f.b, ID, refs, s->m.nr);
	free(refs);
	fixture_open(&s->f, memory_bytes);
	fixture_set_root(&s->f, ID, &root);
	s->rounds = 300;
	/* Each reader holds two iterators; reads under way are counted in full. */
	s->bytes_limit =
		max(memory_bytes, 2 * TASKS * BTREE_NODE_BYTES_MAX(NODE_BYTES) + BTREE_NODE_READ_BYTES(NODE_BYTES));
}

static void shared_free(struct shared *s)
{
	model_free(&s->m);
	fixture_free(&s->f);
}

static void check_next_key(struct btree_iter *it, const struct model *m, size_t i)
{
	struct bkey_ref k;
	int found = btree_iter_peek(it, &k);

	CHECK(found == (i < m->nr));
	if (!found)
		return;
	CHECK(bpos_eq(k.k.p, m->keys[i].k.p));
	CHECK(!memcmp(k.value, m->keys[i].value, bkey_value_bytes(&k.k)));
}

/* Scans with one iterator while seeking about with another, so that it waits for nodes while it holds one. */
static void reader_run(void *arg)
{
	struct reader *r = arg;
	const struct model *m = &r->s->m;
	struct btree_iter scan, seek;
	struct rng rng;
	size_t i;

	rng_init(&rng, r->seed);
	i = rng_below(&rng, m->nr);
	btree_iter_open(&scan, r->s->f.trees, ID, m->keys[i].k.p, 0, 0);
	btree_iter_open(&seek, r->s->f.trees, ID, POS_MIN, 0, 0);
	for (unsigned round = 0; round < r->s->rounds; round++, i++) {
		size_t j = rng_below(&rng, m->nr);
		struct btrees_usage usage;
		struct bkey_ref k;

		check_next_key(&scan, m, i);
		btree_iter_seek(&seek, m->keys[j].k.p);
		check_next_key(&seek, m, j);
		btree_iter_advance(&scan);
		CHECK(btree_iter_peek(&scan, &k) >= 0);
		btrees_usage(r->s->f.trees, &usage);
		CHECK(usage.cache_bytes <= r->s->bytes_limit);
	}
	btree_iter_close(&scan);
	btree_iter_close(&seek);
}

static void readers_run(void *arg)
{
	struct shared *s = arg;
	struct reader readers[TASKS];
	struct task *tasks[TASKS];

	for (unsigned i = 0; i < TASKS; i++) {
		readers[i] = (struct reader){ s, i + 1 };
		CHECK(!task_start(&tasks[i], "reader", reader_run, &readers[i]));
	}
	for (unsigned i = 0; i < TASKS; i++)
		task_join(tasks[i]);
}

static void readers_share_one_read_of_each_node(void **state)
{
	struct btrees_usage usage;
	struct shared s;

	shared_make(&s, 1, 0);
	readers_run(&s);
	btrees_usage(s.f.trees, &usage);
	assert_true(s.f.reads <= s.f.node_nr);
	assert_int_equal(usage.misses, s.f.reads);
	assert_int_equal(usage.nodes, s.f.reads);
	assert_int_equal(usage.evictions, 0);
	assert_true(usage.hits > 0);
	shared_free(&s);
}

static void readers_get_by_with_the_least_memory(void **state)
{
	struct btrees_usage usage;
	struct shared s;

	shared_make(&s, 2, BTREE_CACHE_BYTES_MIN(NODE_BYTES));
	readers_run(&s);
	btrees_usage(s.f.trees, &usage);
	assert_true(usage.evictions > 0);
	assert_true(s.f.reads > s.f.node_nr);
	shared_free(&s);
}

static void memory_stays_in_the_budget_when_little_is_held(void **state)
{
	struct btrees_usage usage;
	struct btree_iter it;
	struct bkey_ref k;
	struct shared s;

	shared_make(&s, 3, BTREE_CACHE_BYTES_MIN(NODE_BYTES));
	btree_iter_open(&it, s.f.trees, ID, POS_MIN, 0, 0);
	for (size_t i = 0; btree_iter_peek(&it, &k) == 1; btree_iter_advance(&it), i++) {
		assert_key_equal(&k, &s.m.keys[i]);
		btrees_usage(s.f.trees, &usage);
		assert_true(usage.cache_bytes <= usage.cache_bytes_max);
	}
	btree_iter_close(&it);
	assert_int_equal(s.f.reads_at_once_max, 1);
	shared_free(&s);
}

static void a_budget_below_the_minimum_is_refused(void **state)
{
	struct fixture f;
	struct btrees *trees;

	fixture_init(&f, 1, NODE_BYTES, 512);
	struct btrees_opts opts = { .memory_bytes = BTREE_CACHE_BYTES_MIN(NODE_BYTES) - 1, .kctx = &f.kctx };
	assert_int_equal(btrees_open(&opts, &trees), -EINVAL);
	assert_null(trees);
	fixture_free(&f);
}

/* Everything that has locks is made and freed inside the simulation. */
static void simulated_readers_run(void *arg)
{
	struct shared s;
	uint64_t seed = *(uint64_t *)arg;

	shared_make(&s, seed, BTREE_CACHE_BYTES_MIN(NODE_BYTES));
	s.rounds = 40;
	readers_run(&s);
	shared_free(&s);
}

static void check_simulated(uint64_t seed)
{
	struct fiber_sim_result result;

	assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, simulated_readers_run, &seed, &result),
			 0);
}

static void no_schedule_deadlocks_with_the_least_memory(void **state) { seeds_run(check_simulated, SIMULATIONS); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(readers_share_one_read_of_each_node),
		cmocka_unit_test(readers_get_by_with_the_least_memory),
		cmocka_unit_test(memory_stays_in_the_budget_when_little_is_held),
		cmocka_unit_test(a_budget_below_the_minimum_is_refused),
		cmocka_unit_test_teardown(no_schedule_deadlocks_with_the_least_memory, seeds_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
