/*
 * What jobs say about themselves. See job.h.
 *
 * A reader looks at waits_because first. A job that begins to work sets works_because before it takes the other away,
 * so who finds none there finds the reason that came with that, or a newer one.
 *
 * How far it is belongs to one piece of work if the number of turns is the same behind it as before.
 */
#include "base/job.h"

#include <assert.h>
#include <stdatomic.h>

void job_init(struct job *job, const char *name, const char *what)
{
	job->name = name;
	job->what = what;
	job_stops(job);
}

void job_waits(struct job *job, const char *because) { atomic_store(&job->waits_because, because); }

void job_works(struct job *job, const char *because)
{
	atomic_store(&job->unit, NULL);
	atomic_store(&job->works_because, because);
	atomic_store(&job->waits_because, NULL);
	atomic_fetch_add(&job->turns, 1);
}

void job_progress(struct job *job, const char *unit, uint64_t done, uint64_t of)
{
	atomic_store_explicit(&job->done, done, memory_order_release);
	atomic_store_explicit(&job->of, of, memory_order_release);
	atomic_store(&job->unit, unit);
}

void job_stops(struct job *job)
{
	atomic_store(&job->works_because, NULL);
	atomic_store(&job->waits_because, NULL);
}

enum job_state job_look(const struct job *job, const char **because)
{
	const char *waits = atomic_load(&job->waits_because), *works = waits ? NULL : atomic_load(&job->works_because);

	*because = waits ? waits : works ? works : "";
	return waits ? JOB_WAITING : works ? JOB_WORKING : JOB_STOPPED;
}

bool job_progress_look(const struct job *job, const char **unit, uint64_t *done, uint64_t *of)
{
	uint64_t turn = atomic_load(&job->turns);
	const char *because;

	*unit = atomic_load(&job->unit);
	*done = atomic_load(&job->done);
	*of = atomic_load(&job->of);
	return *unit && job_look(job, &because) == JOB_WORKING && atomic_load(&job->turns) == turn;
}

const char *job_state_name(enum job_state state)
{
	static const char *const names[] = {
		[JOB_STOPPED] = "stopped", [JOB_WAITING] = "waiting", [JOB_WORKING] = "working"
	};

	return names[state];
}

void job_list_add(struct job_list *list, const struct job *job)
{
	assert(list->nr < JOBS_MAX);
	list->jobs[list->nr++] = job;
}
