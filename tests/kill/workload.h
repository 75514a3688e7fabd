/*
 * Tasks that change a filesystem all at once, and the history of what they did and what they were promised.
 *
 * Each task has objects of its own, in directories that all share: files that are replaced the way careful programs do
 * (write a new one, rename it over the old), moved, linked and deleted; logs that only grow; records of a file that are
 * overwritten in place; extended attributes. What each holds tells its object and generation, and follows from them.
 *
 * The history has of each object its states in order, with the times between which the call that made it ran, and of
 * each fsync and sync the times between which it ran. From that follows what may be there after a crash at any moment:
 *
 * - of each object, one of its states (of a log: also a part of the last piece); not an older one than the last that
 *   was made before a call began that promised it and returned before the crash;
 * - of all together, the states of one moment: nothing later without what was done before it.
 *
 * The history holds no pointers and is written so that it is whole at any time: it can lie in memory that processes
 * share, and outlive the one that is killed.
 */
#ifndef KILN_TESTS_KILL_WORKLOAD_H
#define KILN_TESTS_KILL_WORKLOAD_H

#include "base/strbuf.h"
#include "kiln/kiln.h"

struct workload;

/* In memory that processes forked later share. Aborts when there is none. */
struct workload *workload_new(unsigned tasks_nr);
void workload_free(struct workload *w);

/* Directories and files that are always there; durable on return. On a new filesystem, once. */
int workload_prepare(const struct workload *w, kiln_fs *fs);
/*
 * Read all objects, and begin the history anew with what is there. An error when something can't be read or isn't whole
 * comes with @why.
 */
int workload_find(struct workload *w, kiln_fs *fs, struct strbuf *why);
/* When the history began, in clock_monotonic_ns(). */
uint64_t workload_began_ns(const struct workload *w);

/*
 * Each task makes @ops changes, or as many as there is room for in the history; the seed also says how often they ask
 * for promises. 0, or the first error of a call.
 */
int workload_run(struct workload *w, kiln_fs *fs, uint64_t seed, uint64_t ops);
/* The same by processes, at a directory where the filesystem is mounted. */
int workload_run_mounted(struct workload *w, const char *mountpoint, uint64_t seed, uint64_t ops);
/* All that was done before @begin_ns is durable now: the filesystem was shut down. */
void workload_promise_all(struct workload *w, uint64_t begin_ns);

/* Is what is there what must be after a crash at @crash_ns? Else an error with @why. */
int workload_verify(const struct workload *w, kiln_fs *fs, uint64_t crash_ns, struct strbuf *why);

struct workload_counts {
	uint64_t changes, promises; /* calls that returned */
};
struct workload_counts workload_count(const struct workload *w);

#endif
