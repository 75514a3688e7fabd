/*
 * Running one test body in both modes of base/sync.h: with real threads, and in simulations of many seeds.
 *
 * A body runs in tasks, where cmocka's assertions can't unwind, so it uses CHECK(), which aborts the program and says
 * which seed repeats the failure. KILN_TEST_SEED=n in the environment runs that seed only.
 */
#ifndef KILN_TESTS_BASE_BOTH_MODES_H
#define KILN_TESTS_BASE_BOTH_MODES_H

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fiber.h"
#include "base/sanitizer.h"
#include "base/sync.h"
#include "base/util.h"

/* ThreadSanitizer takes long to make a fiber, and finds races of threads. */
enum { THREAD_RUNS = KILN_SANITIZED ? 10 : 20, SEED_NR = KILN_TSAN ? 20 : KILN_ASAN ? 70 : 200 };

/* The seed of the simulation that runs. */
static uint64_t test_seed;

#define CHECK(condition)                                              \
	do {                                                          \
		if (!(condition))                                     \
			check_failed(__FILE__, __LINE__, #condition); \
	} while (0)

static _Noreturn inline void check_failed(const char *file, int line, const char *condition)
{
	fprintf(stderr, "%s:%d: not true: %s\n", file, line, condition);
	if (fiber_mode())
		fprintf(stderr, "repeat with KILN_TEST_SEED=%" PRIu64 "\n", test_seed);
	abort();
}

static inline uint64_t seed_first(void)
{
	const char *text = getenv("KILN_TEST_SEED");

	return text ? strtoull(text, NULL, 0) : 1;
}

static inline uint64_t seed_end(void) { return seed_first() + (getenv("KILN_TEST_SEED") ? 1 : SEED_NR); }

static inline struct fiber_sim_result simulate(uint64_t seed, task_fn body, void *arg)
{
	struct fiber_sim_result result;

	test_seed = seed;
	if (fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, body, arg, &result))
		fail_msg("deadlock; repeat with KILN_TEST_SEED=%" PRIu64, seed);
	return result;
}

/* @body must leave nothing behind: it runs many times. */
static inline void run_in_both_modes(task_fn body)
{
	for (int i = 0; i < THREAD_RUNS; i++)
		body(NULL);
	for (uint64_t seed = seed_first(); seed < seed_end(); seed++)
		simulate(seed, body, NULL);
}

static inline struct task *start(const char *name, task_fn fn, void *arg)
{
	struct task *task;

	CHECK(task_start(&task, name, fn, arg) == 0);
	return task;
}

/* Whether @fn ends its process by a signal or an error; tried in a child. For assertions that must hold. */
static inline bool process_dies_in_arg(task_fn fn, void *arg)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		if (!freopen("/dev/null", "w", stderr))
			_exit(0);
		fn(arg);
		_exit(0);
	}
	assert_true(child > 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

static inline bool process_dies_in(task_fn fn) { return process_dies_in_arg(fn, NULL); }

#endif
