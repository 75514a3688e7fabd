/*
 * Jobs in the background: what each does right now, and why, for people who look at a running filesystem.
 *
 * A job is a task that works when there is something to do, and else waits for that. It says so itself, with stores
 * that others may look at any time: there is no lock, and what they see is one moment of the job, if not the newest.
 * All texts are constants, and read on from the job's name: "discards: waiting: nothing has become empty".
 */
#ifndef KILN_BASE_JOB_H
#define KILN_BASE_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum job_state { JOB_STOPPED, JOB_WAITING, JOB_WORKING };

struct job {
	const char *name;		     /* one word or two; NULL: there is no such job */
	const char *what;		     /* it does */
	_Atomic(const char *) waits_because; /* NULL: it doesn't wait */
	_Atomic(const char *) works_because; /* NULL: it never has, or is over */
	_Atomic uint64_t turns;		     /* times that it began to work */
	/* Of the work in hand: */
	_Atomic(const char *) unit; /* NULL: it doesn't say how far it is */
	_Atomic uint64_t done, of;  /* @of: 0 if nobody knows */
};

/* Stopped. What it said before is forgotten, its turns aren't. */
void job_init(struct job *job, const char *name, const char *what);
void job_waits(struct job *job, const char *because);
/* Another piece of work; again for the next one. */
void job_works(struct job *job, const char *because);
/*
 * How far it is: @done of @of (0: nobody knows how many there are) @unit, in the plural. Holds until the next piece of
 * work begins.
 */
void job_progress(struct job *job, const char *unit, uint64_t done, uint64_t of);
/* The task is over. */
void job_stops(struct job *job);

/* *@because: "" for one that is stopped. */
enum job_state job_look(const struct job *job, const char **because);
/* Of a job that works. False: it doesn't, or doesn't say. */
bool job_progress_look(const struct job *job, const char **unit, uint64_t *done, uint64_t *of);
const char *job_state_name(enum job_state state);

/* Those of several rooms, which each adds its own; good as long as what they belong to is open. */
enum { JOBS_MAX = 16 };
struct job_list {
	const struct job *jobs[JOBS_MAX];
	size_t nr;
};
void job_list_add(struct job_list *list, const struct job *job);

#endif
