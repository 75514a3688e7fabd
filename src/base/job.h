/*
 * Jobs in the background: what each does right now, and why, for people who look at a running filesystem.
 *
 * A job is a task that works when there is something to do, and else waits for that. It says so itself, with stores
 * that others may look at any time: there is no lock, and what they see is one moment of the job, if not the newest.
 * All texts are constants, and read on from the job's name: "discards: waiting: nothing has become empty".
 */
#ifndef KILN_BASE_JOB_H
#define KILN_BASE_JOB_H

#include <stddef.h>
#include <stdint.h>

enum job_state { JOB_STOPPED, JOB_WAITING, JOB_WORKING };

struct job {
	const char *name;		     /* one word or two; NULL: there is no such job */
	const char *what;		     /* it does */
	_Atomic(const char *) waits_because; /* NULL: it doesn't wait */
	_Atomic(const char *) works_because; /* NULL: it never has, or is over */
	_Atomic uint64_t turns;		     /* times that it began to work */
};

/* Stopped. What it said before is forgotten, its turns aren't. */
void job_init(struct job *job, const char *name, const char *what);
void job_waits(struct job *job, const char *because);
/* Another piece of work; again for the next one. */
void job_works(struct job *job, const char *because);
/* The task is over. */
void job_stops(struct job *job);

/* *@because: "" for one that is stopped. */
enum job_state job_look(const struct job *job, const char **because);
const char *job_state_name(enum job_state state);

/* Those of several rooms, which each adds its own; good as long as what they belong to is open. */
enum { JOBS_MAX = 16 };
struct job_list {
	const struct job *jobs[JOBS_MAX];
	size_t nr;
};
void job_list_add(struct job_list *list, const struct job *job);

#endif
