/* Helping hands for work that is all computing. See crew.h. */
#include "data/crew.h"

#include <stddef.h>

#include "base/clock.h"
#include "base/util.h"

struct crew_job {
	struct crew_job *next;
	void (*fn)(void *ctx, unsigned i);
	void *ctx;
	unsigned nr, taken, done;
};

void crew_init(struct crew *c)
{
	*c = (struct crew){ .slots_nr = cpu_nr() };
	mutex_init(&c->lock);
	waitq_init(&c->work);
	waitq_init(&c->done);
	waitq_init(&c->slot);
}

void crew_destroy(struct crew *c)
{
	mutex_lock(&c->lock);
	c->must_stop = true;
	waitq_wake_all(&c->work);
	mutex_unlock(&c->lock);
	while (c->helper_nr)
		task_join(c->helpers[--c->helper_nr]);
	waitq_destroy(&c->work);
	waitq_destroy(&c->done);
	waitq_destroy(&c->slot);
	mutex_destroy(&c->lock);
}

static void job_unlink(struct crew *c, struct crew_job *job)
{
	struct crew_job **at = &c->jobs;

	while (*at != job)
		at = &(*at)->next;
	*at = job->next;
}

/* Do one piece. The lock is held, and let go while it is done; the job may be over then. */
static void piece_do(struct crew *c, struct crew_job *job)
{
	unsigned i = job->taken++;

	if (job->taken == job->nr)
		job_unlink(c, job);
	mutex_unlock(&c->lock);
	job->fn(job->ctx, i);
	mutex_lock(&c->lock);
	if (++job->done == job->nr)
		waitq_wake_all(&c->done);
}

static void helper_run(void *arg)
{
	struct crew *c = arg;

	mutex_lock(&c->lock);
	for (;;) {
		if (c->jobs)
			piece_do(c, c->jobs);
		else if (c->must_stop)
			break;
		else
			waitq_wait(&c->work, &c->lock);
	}
	mutex_unlock(&c->lock);
}

/* The first time. Tasks that can't be started aren't missed. The lock is held. */
static void helpers_start(struct crew *c)
{
	unsigned nr = min(cpu_nr() - 1, (unsigned)CREW_HELPERS_MAX);

	c->is_started = true;
	while (c->helper_nr < nr && !task_start(&c->helpers[c->helper_nr], "kiln-crew", helper_run, c))
		c->helper_nr++;
}

void crew_run(struct crew *c, unsigned nr, void (*fn)(void *ctx, unsigned i), void *ctx)
{
	struct crew_job job = { .fn = fn, .ctx = ctx, .nr = nr };

	if (nr < 2) {
		if (nr)
			fn(ctx, 0);
		return;
	}
	mutex_lock(&c->lock);
	if (!c->is_started)
		helpers_start(c);
	struct crew_job **at = &c->jobs;
	while (*at)
		at = &(*at)->next;
	*at = &job;
	waitq_wake_all(&c->work);
	while (job.taken < nr)
		piece_do(c, &job);
	while (job.done < nr)
		waitq_wait(&c->done, &c->lock);
	mutex_unlock(&c->lock);
}

void crew_slot_take(struct crew *c)
{
	mutex_lock(&c->lock);
	while (c->slots_taken == c->slots_nr)
		waitq_wait(&c->slot, &c->lock);
	c->slots_taken++;
	mutex_unlock(&c->lock);
}

void crew_slot_give(struct crew *c)
{
	mutex_lock(&c->lock);
	c->slots_taken--;
	waitq_wake_one(&c->slot);
	mutex_unlock(&c->lock);
}
