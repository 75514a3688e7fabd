/*
 * Fiber mode: a whole simulation in one real thread, deterministic from a seed (see base/sync.h).
 *
 * fiber_sim_run() runs @fn(@arg) as the first fiber and returns when it and every task it started have ended. At each
 * switch point the scheduler picks the next runnable fiber with the seeded generator. When none is runnable, simulated
 * time jumps to the earliest deadline; when there is none either, that is a deadlock: the run stops and says who waits
 * for what. So time stands still while any fiber can run: poll with sleep_ns(), never with task_yield() alone.
 * clock_monotonic_ns() starts at 0.
 *
 * The same seed and the same program give the same schedule, times and random bytes.
 */
#ifndef KILN_BASE_FIBER_H
#define KILN_BASE_FIBER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "base/sync.h"

struct fiber_sim_opts {
	uint64_t seed;
	const struct log_sink *log; /* where a deadlock is told; NULL: standard error */
	uint64_t start_realtime_ns; /* what clock_realtime_ns() says at the start; 0: 2000-01-01 */
	uint32_t stack_bytes;	    /* per fiber; 0: 256 KiB, guard page below; sanitizer builds take more */
	uint32_t cpu_nr;	    /* what cpu_nr() says; 0: 4 */
	/* A busy machine: at one in so many switch points a fiber goes on only some ms later. 0: none does. */
	uint32_t pause_one_in;
};

struct fiber_sim_result {
	uint64_t switches;
	uint64_t simulated_ns;
	uint64_t schedule_hash; /* of every scheduling decision: equal runs have equal hashes */
};

/*
 * Returns 0; -EDEADLK when fibers were left that nothing can wake (logged: which fiber waits for what); or -ENOMEM when
 * the simulation could not start. @result may be NULL. Simulations don't nest. Callbacks of fiber_sim_at() that are not
 * due when the last fiber ends never run. After a deadlock the fibers that were left are gone, but what they held is
 * not: their locks must not be used again, and their memory leaks.
 */
int fiber_sim_run(const struct fiber_sim_opts *opts, task_fn fn, void *arg, struct fiber_sim_result *result);

/* True inside fiber_sim_run(). */
bool fiber_mode(void);

/*
 * Run @fn(@arg) at simulated time @when_ns, between switches, outside of any fiber: how simulated devices complete
 * I/O. @fn must not wait. Times in the past mean now; what is due at the same time runs in an order chosen by the seed,
 * as do fibers that can run then. Only in fiber mode; aborts when memory is short.
 */
void fiber_sim_at(uint64_t when_ns, task_fn fn, void *arg);

#endif
