/*
 * Locks and waiting in fiber mode, on top of the scheduler's lists of waiting fibers.
 *
 * Only one fiber runs at a time and it leaves the processor only in fiber_yield() and fiber_wait(), so plain fields do
 * for all state. Every call that may switch does so even when it need not wait: each is a place where real threads
 * could be interleaved, and finding what goes wrong then is what fiber mode is for.
 */
#include <assert.h>

#include "base/fiber_sched.h"

/* One wait in so many ends without cause, as the interface allows. */
enum { SPURIOUS_WAKE_ONE_IN = 16 };

static void mutex_take(struct mutex *m)
{
	struct fiber *self = fiber_current_may_wait();

	assert(m->owner != self); /* not recursive */
	/* A fiber that was woken for the mutex can find that another one was faster: then it waits again. */
	while (m->owner)
		fiber_wait(&m->waiters, FIBER_WAIT_MUTEX, m, UINT64_MAX);
	m->owner = self;
}

static void mutex_release(struct mutex *m)
{
	struct fiber *self = fiber_current_may_wait();

	assert(m->owner == self);
	m->owner = NULL;
	fiber_wake_one(&m->waiters);
}

void fiber_mutex_lock(struct mutex *m)
{
	assert(m->owner != fiber_current_may_wait());
	fiber_yield();
	mutex_take(m);
}

bool fiber_mutex_trylock(struct mutex *m)
{
	struct fiber *self = fiber_current();

	assert(self);
	if (m->owner)
		return false;
	m->owner = self;
	return true;
}

void fiber_mutex_unlock(struct mutex *m)
{
	mutex_release(m);
	fiber_yield(); /* from here on @m may be gone */
}

bool fiber_waitq_wait_until(struct waitq *q, struct mutex *m, uint64_t deadline_ns)
{
	bool was_woken = true;

	mutex_release(m);
	if (fiber_choose(SPURIOUS_WAKE_ONE_IN) == 0)
		fiber_yield();
	else
		was_woken = fiber_wait(&q->waiters, FIBER_WAIT_WAITQ, q, deadline_ns);
	mutex_take(m);
	return was_woken;
}

void fiber_countdown_put(struct countdown *c)
{
	assert(c->count);
	if (--c->count == 0)
		fiber_wake_all(&c->waiters);
}

void fiber_countdown_wait(struct countdown *c)
{
	fiber_yield();
	while (c->count)
		fiber_wait(&c->waiters, FIBER_WAIT_COUNTDOWN, c, UINT64_MAX);
}
