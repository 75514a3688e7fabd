/*
 * Ordered parallel work. See inorder.h.
 *
 * A ring: jobs between @taken and @filled are under way, job number n lies at n % nr. Tasks take the oldest that waits.
 */
#include "tool/inorder.h"

#include <stdint.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/sync.h"
#include "base/util.h"

enum job_state { JOB_FREE, JOB_WAITING, JOB_BUSY, JOB_READY };
enum { TASKS_MAX = 8 };

struct inorder {
	char *jobs;
	size_t nr, job_bytes;
	void (*work)(void *ctx, void *job);
	void (*finish)(void *ctx, void *job);
	void *ctx;
	struct mutex lock;
	struct waitq submitted, done;
	bool is_ending;
	uint64_t filled, taken, started; /* jobs so far; all before @started are at least busy */
	enum job_state *states;
	struct task *tasks[TASKS_MAX];
	unsigned task_nr;
};

/* Oldest job that waits for a task, or -1. */
static int64_t job_waiting(struct inorder *o)
{
	for (; o->started < o->filled; o->started++)
		if (o->states[o->started % o->nr] == JOB_WAITING)
			return (int64_t)(o->started++ % o->nr);
	return -1;
}

static void work_task(void *arg)
{
	struct inorder *o = arg;

	mutex_lock(&o->lock);
	while (!o->is_ending) {
		int64_t i = job_waiting(o);
		if (i < 0) {
			waitq_wait(&o->submitted, &o->lock);
			continue;
		}
		o->states[i] = JOB_BUSY;
		mutex_unlock(&o->lock);
		o->work(o->ctx, o->jobs + (size_t)i * o->job_bytes);
		mutex_lock(&o->lock);
		o->states[i] = JOB_READY;
		if ((uint64_t)i == o->taken % o->nr)
			waitq_wake_one(&o->done);
	}
	mutex_unlock(&o->lock);
}

struct inorder *inorder_start(void *jobs, size_t nr, size_t job_bytes, void (*work)(void *ctx, void *job),
			      void (*finish)(void *ctx, void *job), void *ctx)
{
	struct inorder *o = calloc(1, sizeof(*o));
	enum job_state *states = calloc(nr, sizeof(*states));

	if (!o || !states) {
		free(o);
		free(states);
		return NULL;
	}
	*o = (struct inorder){ .jobs = jobs,
			       .nr = nr,
			       .job_bytes = job_bytes,
			       .work = work,
			       .finish = finish,
			       .ctx = ctx,
			       .states = states };
	mutex_init(&o->lock);
	waitq_init(&o->submitted);
	waitq_init(&o->done);
	/* More than processors: most of the time a task waits for its read. */
	unsigned want = min(2 * cpu_nr(), (unsigned)TASKS_MAX);
	for (; o->task_nr < want; o->task_nr++)
		if (task_start(&o->tasks[o->task_nr], "objects", work_task, o))
			break;
	if (o->task_nr)
		return o;
	inorder_end(o);
	return NULL;
}

void inorder_end(struct inorder *o)
{
	if (!o)
		return;
	mutex_lock(&o->lock);
	o->is_ending = true;
	waitq_wake_all(&o->submitted);
	mutex_unlock(&o->lock);
	for (unsigned i = 0; i < o->task_nr; i++)
		task_join(o->tasks[i]);
	waitq_destroy(&o->done);
	waitq_destroy(&o->submitted);
	mutex_destroy(&o->lock);
	free(o->states);
	free(o);
}

/* Wait for the oldest job and finish it. @o->lock is held, but not while finishing. */
static void finish_oldest(struct inorder *o)
{
	size_t i = (size_t)(o->taken % o->nr);

	while (o->states[i] != JOB_READY)
		waitq_wait(&o->done, &o->lock);
	mutex_unlock(&o->lock);
	o->finish(o->ctx, o->jobs + i * o->job_bytes);
	mutex_lock(&o->lock);
	o->states[i] = JOB_FREE;
	o->taken++;
}

void *inorder_next(struct inorder *o)
{
	mutex_lock(&o->lock);
	if (o->filled - o->taken == o->nr)
		finish_oldest(o);
	mutex_unlock(&o->lock);
	return o->jobs + (size_t)(o->filled % o->nr) * o->job_bytes;
}

void inorder_submit(struct inorder *o, bool has_work)
{
	mutex_lock(&o->lock);
	o->states[o->filled % o->nr] = has_work ? JOB_WAITING : JOB_READY;
	o->filled++;
	if (has_work)
		waitq_wake_one(&o->submitted);
	mutex_unlock(&o->lock);
}

void inorder_drain(struct inorder *o)
{
	mutex_lock(&o->lock);
	while (o->taken < o->filled)
		finish_oldest(o);
	mutex_unlock(&o->lock);
}
