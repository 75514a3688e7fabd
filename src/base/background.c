/* Pausing the background. See background.h. */
#include <assert.h>

#include "base/background.h"

void background_init(struct background *b)
{
	mutex_init(&b->lock);
	waitq_init(&b->changed);
	b->inside = b->paused = b->needed = 0;
	b->begun_nr = 0;
}

void background_destroy(struct background *b)
{
	assert(!b->inside && !b->paused);
	waitq_destroy(&b->changed);
	mutex_destroy(&b->lock);
}

void background_enter(struct background *b, struct job *job, const char *because)
{
	mutex_lock(&b->lock);
	while (b->paused && !b->needed) {
		job_waits(job, "somebody wants quiet in the background for a moment");
		waitq_wait(&b->changed, &b->lock);
	}
	job_works(job, because);
	b->inside++;
	b->begun_nr++;
	mutex_unlock(&b->lock);
}

void background_leave(struct background *b)
{
	mutex_lock(&b->lock);
	assert(b->inside);
	if (!--b->inside)
		waitq_wake_all(&b->changed);
	mutex_unlock(&b->lock);
}

void background_pause(struct background *b)
{
	task_may_wait_for(TASK_DELETIONS);
	mutex_lock(&b->lock);
	while (b->inside)
		waitq_wait(&b->changed, &b->lock);
	b->paused++;
	mutex_unlock(&b->lock);
}

void background_resume(struct background *b)
{
	mutex_lock(&b->lock);
	assert(b->paused);
	if (!--b->paused)
		waitq_wake_all(&b->changed);
	mutex_unlock(&b->lock);
}

void background_need(struct background *b)
{
	mutex_lock(&b->lock);
	b->needed++;
	waitq_wake_all(&b->changed);
	mutex_unlock(&b->lock);
}

void background_need_end(struct background *b)
{
	mutex_lock(&b->lock);
	assert(b->needed);
	b->needed--;
	mutex_unlock(&b->lock);
}

uint64_t background_begun_nr(struct background *b)
{
	mutex_lock(&b->lock);
	uint64_t nr = b->begun_nr;
	mutex_unlock(&b->lock);
	return nr;
}
