/*
 * The fiber scheduler as the other files of `base` see it. Private: everybody else uses base/sync.h and base/clock.h.
 *
 * Unless said otherwise, functions here are called in fiber mode only.
 */
#ifndef KILN_BASE_FIBER_SCHED_H
#define KILN_BASE_FIBER_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/fiber.h"
#include "base/fiber_context.h"
#include "base/lock_order.h"
#include "base/sync.h"

struct task {
	task_fn fn;
	void *arg;
	char name[16];
	pthread_t thread; /* thread mode */
};

/* What a fiber waits for: the text of a deadlock report. */
enum fiber_wait {
	FIBER_WAIT_NONE,
	FIBER_WAIT_MUTEX,
	FIBER_WAIT_WAITQ,
	FIBER_WAIT_COUNTDOWN,
	FIBER_WAIT_TASK,
	FIBER_WAIT_SLEEP,
};

/* An entry of the queue of future events: a fiber's deadline, or a callback. */
struct fiber_timer {
	uint64_t when_ns;
	uint64_t order;	     /* drawn from the seed: decides among equal times */
	size_t position;     /* in the queue, 1 is the first; 0: not in it */
	struct fiber *fiber; /* whose deadline; NULL: a callback */
	task_fn fn;
	void *arg;
};

struct fiber {
	struct task task;
	struct fiber_context context;
	uint32_t id; /* in the order of starting, from 1 */
	struct held_locks locks;
	bool has_ended;
	bool is_abandoned; /* left over by a deadlock */
	size_t position;   /* among the fibers of the simulation */

	/* while it waits */
	enum fiber_wait wait;
	const void *wait_object;      /* struct mutex, waitq, countdown, fiber */
	struct fiber_list *wait_list; /* which list it is in, with the neighbours there */
	struct fiber *wait_prev, *wait_next;
	struct fiber_timer deadline;
	bool has_timed_out;

	struct fiber_list joiners;
};

/* The fiber that runs; asserts that there is one, and that it may wait. */
struct fiber *fiber_current_may_wait(void);
/* The fiber that runs, NULL in a callback. */
struct fiber *fiber_current(void);

/* Let others run. */
void fiber_yield(void);
/*
 * Wait in @list (may be NULL) until woken, or until @deadline_ns (UINT64_MAX: no limit). Returns false when the
 * deadline passed first.
 */
bool fiber_wait(struct fiber_list *list, enum fiber_wait wait, const void *object, uint64_t deadline_ns);
/* Wake one of @list, chosen by the seed, or all. Not switch points. */
void fiber_wake_one(struct fiber_list *list);
void fiber_wake_all(struct fiber_list *list);

int fiber_start(struct fiber **fiber, const char *name, task_fn fn, void *arg);
void fiber_join(struct fiber *fiber);

/* The simulation's own choices. */
uint64_t fiber_choose(uint64_t bound);
struct rng *fiber_random(void);
uint64_t fiber_monotonic_ns(void);
uint64_t fiber_realtime_ns(void);
unsigned fiber_cpu_nr(void);

/* base/sync.h in fiber mode (base/sync_fiber.c) */
void fiber_mutex_lock(struct mutex *m);
bool fiber_mutex_trylock(struct mutex *m);
void fiber_mutex_unlock(struct mutex *m);
bool fiber_waitq_wait_until(struct waitq *q, struct mutex *m, uint64_t deadline_ns);
void fiber_countdown_put(struct countdown *c);
void fiber_countdown_wait(struct countdown *c);

/* countdown_wait() of a lock whose order has been checked (either mode). */
void countdown_wait_for_lock(struct countdown *c);

/* A task's name, cut to fit (either mode). */
void task_init(struct task *task, const char *name, task_fn fn, void *arg);

#endif
