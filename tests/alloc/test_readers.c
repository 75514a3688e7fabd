/* Buckets that somebody reads from aren't given out: the promise of read sections (alloc/readers.c). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "alloc/internal.h"
#include "base/clock.h"
#include "base/fiber.h"

enum { SLOTS = 8, ROUNDS = 3000, READER_NR = 3 };

/*
 * Readers look up the current slot inside a section and use it for a while; the writer moves on to another slot, waits,
 * and then spoils the old one.
 */
struct world {
	struct allocator *a;
	atomic_uint current;
	atomic_uint slot[SLOTS]; /* 1: good */
	atomic_bool is_over;
	uint64_t reads;
};

static void read_task(void *arg)
{
	struct world *w = arg;

	while (!atomic_load(&w->is_over)) {
		struct read_section section = allocator_read_begin(w->a);
		unsigned slot = atomic_load(&w->current);

		for (unsigned i = 0; i < 4; i++) {
			if (atomic_load(&w->slot[slot]) != 1)
				abort(); /* an assertion of cmocka works in the main task only */
			sleep_ns(fiber_mode() ? 1 : 0);
		}
		allocator_read_end(w->a, section);
		__atomic_fetch_add(&w->reads, 1, __ATOMIC_RELAXED);
		sleep_ns(fiber_mode() ? 1 : 0);
	}
}

static void run(void *arg)
{
	struct world *w = arg;
	struct task *tasks[READER_NR];

	readers_init(&w->a->readers);
	for (unsigned i = 0; i < SLOTS; i++)
		atomic_store(&w->slot[i], 1);
	for (unsigned i = 0; i < READER_NR; i++)
		assert_int_equal(task_start(&tasks[i], "reader", read_task, w), 0);
	/* On one processor all could be over before they begin. */
	while (!__atomic_load_n(&w->reads, __ATOMIC_RELAXED))
		sleep_ns(1);
	for (unsigned i = 1; i < ROUNDS; i++) {
		unsigned old = (i - 1) % SLOTS;

		atomic_store(&w->slot[i % SLOTS], 1);
		atomic_store(&w->current, i % SLOTS);
		readers_wait(&w->a->readers);
		atomic_store(&w->slot[old], 0);
		if (i % 16 == 0)
			sleep_ns(1);
	}
	atomic_store(&w->is_over, true);
	for (unsigned i = 0; i < READER_NR; i++)
		task_join(tasks[i]);
	readers_destroy(&w->a->readers);
}

static void nothing_is_spoilt_under_a_reader(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	(void)state;
	w->a = calloc(1, sizeof(*w->a));
	run(w);
	free(w->a);
	free(w);
}

static void nothing_is_spoilt_under_a_reader_in_any_order(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct world *w = calloc(1, sizeof(*w));

		w->a = calloc(1, sizeof(*w->a));
		assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, run, w, NULL), 0);
		free(w->a);
		free(w);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_is_spoilt_under_a_reader),
		cmocka_unit_test(nothing_is_spoilt_under_a_reader_in_any_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
