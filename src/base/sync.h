/*
 * Waiting: every place in Kiln that can block goes through these primitives.
 *
 * There are two implementations behind one interface. In *thread mode* tasks are threads of the system. In *fiber mode*
 * all tasks of a simulation run as fibers in one real thread, and a seeded scheduler picks the next one at exactly the
 * points where a primitive may switch (every call below that says "switch point"); time is simulated and advances only
 * when no fiber can run. Code above `base` can't tell the difference and is written in blocking style.
 *
 * Which mode a call uses follows from where it runs: inside fiber_sim_run() (base/fiber.h) it is fiber mode, else
 * thread mode. An object must only be used from one mode during its life.
 *
 * Locks are not recursive and must be released by the task that took them.
 */
#ifndef KILN_BASE_SYNC_H
#define KILN_BASE_SYNC_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/lock_order.h"

struct fiber;

/* Fibers that wait for the same thing. */
struct fiber_list {
	struct fiber *first, *last;
	uint32_t nr;
};

/*
 * Mutual exclusion. Zero-initialised state is not valid: call mutex_init(). Initialising and destroying works from
 * either mode, so a test may prepare objects before it starts a simulation.
 */
struct mutex {
	pthread_mutex_t thread;
	struct fiber *owner;
	struct fiber_list waiters;
	enum lock_rank rank;
};

/* One that is innermost: nothing is taken under it. */
void mutex_init(struct mutex *m);
/* One that has another place in the order of locks. */
void mutex_init_ranked(struct mutex *m, enum lock_rank rank);
void mutex_destroy(struct mutex *m);
void mutex_lock(struct mutex *m);    /* switch point */
bool mutex_trylock(struct mutex *m); /* true: taken */
void mutex_unlock(struct mutex *m);  /* switch point */

/* Condition: tasks wait for something guarded by a mutex to change. */
struct waitq {
	pthread_cond_t thread;
	struct fiber_list waiters;
};

void waitq_init(struct waitq *q);
void waitq_destroy(struct waitq *q);
/*
 * Release @m, wait until woken, take @m again. May wake without cause (fiber mode does it on purpose): wait in a loop.
 * Switch point.
 */
void waitq_wait(struct waitq *q, struct mutex *m);
/* The same, for what is held like a lock of @rank (base/lock_order.h): what comes before may be held meanwhile. */
void waitq_wait_for_lock(struct waitq *q, struct mutex *m, enum lock_rank rank);
/*
 * The same with a limit on clock_monotonic_ns() (UINT64_MAX: none); returns false when the deadline passed without a
 * wake-up.
 */
bool waitq_wait_until(struct waitq *q, struct mutex *m, uint64_t deadline_ns);
/* Neither is a switch point; holding the mutex is usual but not required. */
void waitq_wake_one(struct waitq *q);
void waitq_wake_all(struct waitq *q);

/*
 * A countdown: made with a count, counted down from anywhere, reaches zero once. One task may wait for it.
 * countdown_put() neither locks, blocks nor allocates and may be called from a device's completion callback: on any
 * thread, and from fiber_sim_at(). Once it has counted the last one it does not touch the countdown again, so the
 * waiter may free it as soon as countdown_wait() returns. Not a switch point.
 */
struct countdown {
	uint32_t count;
	struct fiber_list waiters;
};

void countdown_init(struct countdown *c, uint32_t count);
void countdown_destroy(struct countdown *c);
void countdown_get(struct countdown *c); /* one more to wait for; count must not have reached zero */
void countdown_put(struct countdown *c);
void countdown_wait(struct countdown *c); /* until zero; switch point */

/* A task: a thread, or a fiber. It must hold no lock when it ends, and be joined by one other. */
struct task;
typedef void (*task_fn)(void *arg);
/* Start @fn(@arg); @name (copied, 15 bytes used) is for debuggers and traces. Returns 0 or -EAGAIN/-ENOMEM. Switch
 * point. */
int task_start(struct task **task, const char *name, task_fn fn, void *arg);
/* Wait for the end of @task and free it. Switch point. */
void task_join(struct task *task);
/* Let others run. Switch point. */
void task_yield(void);
/* Tells tasks apart while they live. */
const void *task_identity(void);

#endif
