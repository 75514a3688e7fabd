/*
 * Waiting in thread mode, and the choice between the two modes (see base/sync.h).
 *
 * Each function asks fiber_mode(), one thread-local pointer, and either goes to the scheduler (base/sync_fiber.c) or to
 * the system.
 */
#include "base/sync.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/fiber_sched.h"
#include "base/strbuf.h"
#include "base/util.h"

/* --- mutex --- */

void mutex_init_ranked(struct mutex *m, enum lock_rank rank)
{
	*m = (struct mutex){ .rank = rank };
	pthread_mutex_init(&m->thread, NULL);
}

void mutex_init(struct mutex *m) { mutex_init_ranked(m, LOCK_INNERMOST); }

void mutex_destroy(struct mutex *m)
{
	assert(!m->owner && !m->waiters.nr);
	pthread_mutex_destroy(&m->thread);
}

void mutex_lock(struct mutex *m)
{
	lock_order_ask(m, m->rank, NULL);
	if (fiber_mode())
		fiber_mutex_lock(m);
	else
		pthread_mutex_lock(&m->thread);
	lock_order_taken(m, m->rank);
}

bool mutex_trylock(struct mutex *m)
{
	bool is_taken = fiber_mode() ? fiber_mutex_trylock(m) : pthread_mutex_trylock(&m->thread) == 0;

	if (is_taken)
		lock_order_taken(m, m->rank);
	return is_taken;
}

void mutex_unlock(struct mutex *m)
{
	lock_order_released(m);
	if (fiber_mode())
		fiber_mutex_unlock(m);
	else
		pthread_mutex_unlock(&m->thread);
}

/* --- wait queue --- */

void waitq_init(struct waitq *q)
{
	pthread_condattr_t attr;

	*q = (struct waitq){ 0 };
	pthread_condattr_init(&attr);
	/* Deadlines must not move when somebody sets the clock. */
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&q->thread, &attr);
	pthread_condattr_destroy(&attr);
}

void waitq_destroy(struct waitq *q)
{
	assert(!q->waiters.nr);
	pthread_cond_destroy(&q->thread);
}

static void queue_wait(struct waitq *q, struct mutex *m)
{
	if (fiber_mode())
		fiber_waitq_wait_until(q, m, UINT64_MAX);
	else
		pthread_cond_wait(&q->thread, &m->thread);
}

void waitq_wait(struct waitq *q, struct mutex *m)
{
	task_may_wait(m);
	queue_wait(q, m);
}

void waitq_wait_for_lock(struct waitq *q, struct mutex *m, enum lock_rank rank)
{
	lock_order_ask(q, rank, m);
	queue_wait(q, m);
}

bool waitq_wait_until(struct waitq *q, struct mutex *m, uint64_t deadline_ns)
{
	const uint64_t second_ns = 1000000000;
	struct timespec deadline = { .tv_sec = (time_t)(deadline_ns / second_ns),
				     .tv_nsec = (long)(deadline_ns % second_ns) };

	task_may_wait(m);
	if (fiber_mode())
		return fiber_waitq_wait_until(q, m, deadline_ns);
	return pthread_cond_timedwait(&q->thread, &m->thread, &deadline) != ETIMEDOUT;
}

void waitq_wake_one(struct waitq *q)
{
	if (fiber_mode())
		fiber_wake_one(&q->waiters);
	else
		pthread_cond_signal(&q->thread);
}

void waitq_wake_all(struct waitq *q)
{
	if (fiber_mode())
		fiber_wake_all(&q->waiters);
	else
		pthread_cond_broadcast(&q->thread);
}

/* --- countdown --- */

void countdown_init(struct countdown *c, uint32_t count) { *c = (struct countdown){ .count = count }; }

void countdown_destroy(struct countdown *c) { assert(!c->waiters.nr); }

void countdown_get(struct countdown *c)
{
	uint32_t before = __atomic_fetch_add(&c->count, 1, __ATOMIC_RELAXED);

	assert(before && before != UINT32_MAX);
}

/*
 * Thread mode waits on the count itself with a futex. The decrement is the last access of the countdown's memory: the
 * wake-up after it names only an address, and when the waiter has seen zero by itself and freed the memory, it wakes
 * nobody, or somebody who waits at the same address for another reason and who must expect that.
 */
void countdown_put(struct countdown *c)
{
	uint32_t before;

	if (fiber_mode()) {
		fiber_countdown_put(c);
		return;
	}
	before = __atomic_fetch_sub(&c->count, 1, __ATOMIC_ACQ_REL);
	assert(before);
	if (before == 1)
		syscall(SYS_futex, &c->count, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void countdown_wait(struct countdown *c)
{
	task_may_wait(NULL);
	countdown_wait_for_lock(c);
}

void countdown_wait_for_lock(struct countdown *c)
{
	uint32_t count;

	if (fiber_mode()) {
		fiber_countdown_wait(c);
		return;
	}
	while ((count = __atomic_load_n(&c->count, __ATOMIC_ACQUIRE)))
		syscall(SYS_futex, &c->count, FUTEX_WAIT_PRIVATE, count, NULL, NULL, 0);
}

/* --- tasks --- */

void task_init(struct task *task, const char *name, task_fn fn, void *arg)
{
	struct strbuf text = strbuf_fixed(task->name, sizeof(task->name));

	strbuf_add(&text, name);
	task->fn = fn;
	task->arg = arg;
}

static void *thread_main(void *arg)
{
	struct task *task = arg;

	pthread_setname_np(pthread_self(), task->name);
	task->fn(task->arg);
	return NULL;
}

/*
 * Signals belong to the program that uses the library: its handlers must not run on our threads. Those that a thread
 * causes by itself stay, or a crash would go past the handlers that report it.
 */
static void signals_for_threads(sigset_t *set)
{
	static const int own_faults[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF };

	sigfillset(set);
	for (unsigned i = 0; i < ARRAY_NR(own_faults); i++)
		sigdelset(set, own_faults[i]);
}

static int thread_start(struct task **task, const char *name, task_fn fn, void *arg)
{
	struct task *new_task = calloc(1, sizeof(*new_task));
	sigset_t blocked, before;
	int err;

	if (!new_task)
		return -ENOMEM;
	task_init(new_task, name, fn, arg);

	signals_for_threads(&blocked);
	pthread_sigmask(SIG_SETMASK, &blocked, &before);
	err = pthread_create(&new_task->thread, NULL, thread_main, new_task);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err) {
		free(new_task);
		return -err;
	}
	*task = new_task;
	return 0;
}

int task_start(struct task **task, const char *name, task_fn fn, void *arg)
{
	struct fiber *fiber;
	int err;

	if (!fiber_mode())
		return thread_start(task, name, fn, arg);

	err = fiber_start(&fiber, name, fn, arg);
	if (err)
		return err;
	*task = &fiber->task;
	fiber_yield();
	return 0;
}

void task_join(struct task *task)
{
	task_may_wait(NULL);
	if (fiber_mode()) {
		fiber_join(container_of(task, struct fiber, task));
	} else {
		pthread_join(task->thread, NULL);
		free(task);
	}
}

void task_yield(void)
{
	if (fiber_mode())
		fiber_yield();
	else
		sched_yield();
}

const void *task_identity(void)
{
	static _Thread_local char thread;

	return fiber_mode() ? (const void *)fiber_current() : &thread;
}
