/*
 * Closures: what happens when the last of several things has happened.
 *
 * A closure counts what is still under way: it starts with 1 for the task that makes it, and each thing that is started
 * (a write to a device, say) gets it once more and puts it when done. The last put either ends the wait of one task, or
 * has one *continuation* run by a worker:
 *
 *	closure_init(&c, NULL, NULL);			closure_init(&w->closure, write_done, worker);
 *	for (each device)				for (each device)
 *		closure_get(&c), submit(...);			closure_get(&w->closure), submit(...);
 *	closure_wait(&c);				closure_put(&w->closure);
 *	// all are done					// write_done(&w->closure) runs when all are done
 *
 * closure_put() neither locks, blocks nor allocates: devices call it from their completion callbacks. The continuation
 * may do all of that.
 *
 * A *worker* is a task that runs the continuations of the closures that were made for it, one at a time, in the order
 * of their last puts. What may wait for what is decided by giving each kind of work a worker of its own.
 *
 * For work that begins when I/O of another task ends. Who waits for I/O of its own has a group (device/device.h), which
 * its thread alone touches, and which needs no atomic counts; so far that is everybody.
 */
#ifndef KILN_BASE_CLOSURE_H
#define KILN_BASE_CLOSURE_H

#include <stdint.h>

#include "base/sync.h"

struct closure;
struct closure_worker;
typedef void (*closure_fn)(struct closure *closure);

/* Members are private to base/closure.c. */
struct closure {
	uint32_t count;
	closure_fn fn; /* NULL: a task waits */
	struct closure_worker *worker;
	struct closure *next;  /* in the worker's queue */
	struct countdown over; /* for the task that waits */
};

/*
 * Make a closure whose last put has @worker run @fn, or with both NULL one for closure_wait(). The count is 1.
 *
 * @fn may free the closure, or make it anew for the next step. A closure with a continuation must reach zero some time:
 * its worker can't stop before.
 */
void closure_init(struct closure *closure, closure_fn fn, struct closure_worker *worker);
/* One more to wait for; the count must not have reached zero. */
void closure_get(struct closure *closure);
/*
 * One less. Who puts the last one does not touch the closure afterwards. May be called on any thread and from
 * fiber_sim_at(). Not a switch point.
 */
void closure_put(struct closure *closure);
/* Put, and wait until all others have put theirs; then the closure is over, its memory free for use. Switch point. */
void closure_wait(struct closure *closure);

struct closure_worker {
	struct task *task;
	struct closure *queue;	     /* youngest first; pushed by anybody, taken as a whole by the worker */
	struct countdown wake_up;    /* what the worker sleeps on */
	struct countdown unfinished; /* closures that were made and have not run, and 1 until stop */
	struct closure last;	     /* tells the worker to end */
};

/* Start a worker; @name is that of its task. Returns 0 or -EAGAIN/-ENOMEM. Switch point. */
int closure_worker_start(struct closure_worker *worker, const char *name);
/*
 * Wait until every closure made for @worker has run, those included that the last ones make, and end its task. When
 * that is under way no other task may make closures for it. Not to be called by the worker. Switch point.
 */
void closure_worker_stop(struct closure_worker *worker);

#endif
