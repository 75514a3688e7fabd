/* Buffers within a budget: never more than it or one need, and everybody's turn comes. In threads and in simulations.
 */
#include <errno.h>

#include "../base/both_modes.h"
#include "base/clock.h"
#include "data/pool.h"

enum { MAX_BYTES = 4 << 20, ALL_BYTES = 6 << 20, TAKERS = 6, TAKES = 20, BUFFERS = 3 };

struct shared {
	struct pool pool;
	uint64_t bytes; /* atomic: held by all, as they know it */
	unsigned large; /* atomic: large needs that were met */
};

struct taker {
	struct shared *s;
	uint64_t seed;
	bool is_large;
};

static void hold(struct shared *s, struct pool_buffer *buffers, const size_t *sizes)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < BUFFERS; i++) {
		CHECK(!!buffers[i].data == !!sizes[i] && buffers[i].bytes >= sizes[i]);
		if (buffers[i].data)
			memset(buffers[i].data, (int)i, sizes[i]);
		bytes += buffers[i].bytes;
	}
	uint64_t all = __atomic_add_fetch(&s->bytes, bytes, __ATOMIC_RELAXED);
	CHECK(all <= MAX_BYTES || all == bytes || !bytes);
	sleep_ns(1000);
	for (unsigned i = 0; i < BUFFERS; i++)
		for (size_t at = 0; at < sizes[i]; at += 4096)
			CHECK(((uint8_t *)buffers[i].data)[at] == i);
	__atomic_sub_fetch(&s->bytes, bytes, __ATOMIC_RELAXED);
}

/* Many small needs, or now and then all that there is, and more; while waiting nothing is held. */
static void take_some(void *arg)
{
	struct taker *t = arg;
	struct rng rng;

	rng_init(&rng, t->seed);
	for (unsigned i = 0; i < (t->is_large ? TAKES / 4 : TAKES); i++) {
		size_t sizes[BUFFERS] = { 1 << 20, 1 << 20, i % 2 ? 2 << 20 : 4 << 20 };
		struct pool_buffer buffers[BUFFERS];

		for (unsigned b = 0; b < BUFFERS && !t->is_large; b++)
			sizes[b] = (size_t)rng_below(&rng, 2) * rng_below(&rng, 1 << 20);
		bool may_wait = t->is_large || rng_below(&rng, 2);
		int err = pool_take(&t->s->pool, sizes, buffers, BUFFERS, may_wait);
		CHECK(!err || (err == -EAGAIN && !may_wait));
		if (err) {
			CHECK(!buffers[0].data && !buffers[1].data && !buffers[2].data);
			continue;
		}
		hold(t->s, buffers, sizes);
		__atomic_add_fetch(&t->s->large, t->is_large, __ATOMIC_RELAXED);
		pool_give(&t->s->pool, buffers, BUFFERS);
		CHECK(!buffers[0].data);
	}
}

static void takers_run(void *arg)
{
	struct shared s = { .bytes = 0 };
	struct taker takers[TAKERS];
	struct task *tasks[TAKERS];

	(void)arg;
	pool_init(&s.pool, MAX_BYTES);
	for (unsigned i = 0; i < TAKERS; i++) {
		takers[i] = (struct taker){ &s, test_seed * TAKERS + i, i == 0 };
		tasks[i] = start("taker", take_some, &takers[i]);
	}
	for (unsigned i = 0; i < TAKERS; i++)
		task_join(tasks[i]);
	CHECK(s.large == TAKES / 4);
	CHECK(s.pool.bytes_used == 0 && s.pool.bytes_used_peak == ALL_BYTES);
	CHECK(s.pool.bytes_idle <= MAX_BYTES);
	pool_destroy(&s.pool);
}

static void large_needs_are_met_among_many_small_ones(void **state)
{
	(void)state;
	run_in_both_modes(takers_run);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(large_needs_are_met_among_many_small_ones),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
