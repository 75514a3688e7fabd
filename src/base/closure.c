/*
 * Closures and their workers (see base/closure.h).
 *
 * A worker's queue is a list that anybody pushes to with compare-and-swap, and that the worker takes as a whole and
 * turns around (the stack of R. K. Treiber; taken as a whole it has no ABA problem). When the worker finds it empty it
 * puts the mark `asleep` in place of the list and sleeps on a countdown of 1. Whoever replaces the mark by a closure is
 * the one who wakes the worker: there is exactly one, so the countdown reaches zero exactly once, and is made anew
 * before the next mark is placed.
 *
 * A push touches the worker last when it has placed its closure, or when it has woken the worker that slept. In either
 * case the worker still has that closure to run, so it can't have ended.
 */
#include "base/closure.h"

#include <assert.h>
#include <stddef.h>

/* Only its address counts. */
static struct closure asleep;

static void worker_push(struct closure_worker *worker, struct closure *closure);
static void worker_main(void *arg);

void closure_init(struct closure *closure, closure_fn fn, struct closure_worker *worker)
{
	assert(!fn == !worker);
	*closure = (struct closure){ .count = 1, .fn = fn, .worker = worker };
	if (worker)
		countdown_get(&worker->unfinished);
	else
		countdown_init(&closure->over, 1);
}

void closure_get(struct closure *closure)
{
	uint32_t before = __atomic_fetch_add(&closure->count, 1, __ATOMIC_RELAXED);

	assert(before && before != UINT32_MAX);
}

void closure_put(struct closure *closure)
{
	uint32_t before = __atomic_fetch_sub(&closure->count, 1, __ATOMIC_ACQ_REL);

	assert(before);
	if (before != 1)
		return;
	if (closure->fn)
		worker_push(closure->worker, closure);
	else
		countdown_put(&closure->over);
}

void closure_wait(struct closure *closure)
{
	assert(!closure->fn);
	closure_put(closure);
	countdown_wait(&closure->over);
	countdown_destroy(&closure->over);
}

/* --- workers --- */

int closure_worker_start(struct closure_worker *worker, const char *name)
{
	*worker = (struct closure_worker){ 0 };
	countdown_init(&worker->unfinished, 1);
	return task_start(&worker->task, name, worker_main, worker);
}

void closure_worker_stop(struct closure_worker *worker)
{
	countdown_put(&worker->unfinished);
	countdown_wait(&worker->unfinished);
	worker_push(worker, &worker->last);
	task_join(worker->task);
	countdown_destroy(&worker->unfinished);
}

/* Runs in device callbacks. */
static void worker_push(struct closure_worker *worker, struct closure *closure)
{
	struct closure *youngest = __atomic_load_n(&worker->queue, __ATOMIC_RELAXED);

	do
		closure->next = youngest == &asleep ? NULL : youngest;
	while (!__atomic_compare_exchange_n(&worker->queue, &youngest, closure, true, __ATOMIC_ACQ_REL,
					    __ATOMIC_RELAXED));
	if (youngest == &asleep)
		countdown_put(&worker->wake_up);
}

/* Sleep, unless the queue is not empty. */
static void worker_sleep(struct closure_worker *worker)
{
	struct closure *empty = NULL;

	countdown_init(&worker->wake_up, 1);
	if (__atomic_compare_exchange_n(&worker->queue, &empty, &asleep, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
		countdown_wait(&worker->wake_up);
}

/* All that is in the queue, oldest first. */
static struct closure *worker_take_all(struct closure_worker *worker)
{
	struct closure *closure = __atomic_exchange_n(&worker->queue, NULL, __ATOMIC_ACQUIRE);
	struct closure *oldest = NULL;

	while (closure) {
		struct closure *older = closure->next;

		closure->next = oldest;
		oldest = closure;
		closure = older;
	}
	return oldest;
}

static void worker_main(void *arg)
{
	struct closure_worker *worker = arg;

	for (;;) {
		struct closure *closure = worker_take_all(worker);

		if (!closure)
			worker_sleep(worker);
		while (closure) {
			struct closure *next = closure->next; /* afterwards @closure may be gone */

			if (closure == &worker->last)
				return;
			closure->fn(closure);
			countdown_put(&worker->unfinished);
			closure = next;
		}
	}
}
