/*
 * The simulator: what its files share. Its head is sim.c.
 *
 * A *run* is what one seed makes of the arguments: a filesystem on simulated disks, and *episodes*. In each the *tasks*
 * of the workload run beside one another, something happens to the disks or doesn't, and at the end the filesystem is
 * opened anew and compared with what it must be.
 */
#ifndef KILN_TESTS_SIM_SIM_H
#define KILN_TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/sync.h"
#include "device/power.h"
#include "engine/fs.h"
#include "operation.h"

enum { DISKS_MAX = 4, TASKS_MAX = 4, DEPTH_MAX = 8, KEEP_MAX = 4096, OPTIONS_MAX = 256 };

/* What an episode does to the filesystem. The table is in episode.c. */
enum episode_kind {
	EPISODE_CLEAN, /* closed cleanly */
	EPISODE_CUT,   /* power lost at a random write */
	EPISODE_READ_ERRORS,
	EPISODE_READ_ERRORS_LASTING,
	EPISODE_WRITE_ERRORS,
	EPISODE_WRITE_ERRORS_LASTING,
	EPISODE_FLUSH_ERRORS,
	EPISODE_FLUSH_ERRORS_LASTING,
	EPISODE_SLOW,
	EPISODE_FULL,
	EPISODE_NO_MEMORY,
	EPISODE_ROT,
	EPISODE_LOST_WRITES,
	EPISODE_MISDIRECTED_WRITES,
	EPISODE_VANISH,
	EPISODE_FOREIGN,
	EPISODE_ROLLED_BACK, /* a whole disk is as it was some time ago */
	EPISODE_KIND_NR,
};
extern const char *const episode_names[EPISODE_KIND_NR];

/* An operation, or with UINT32_MAX as its number an episode, in the order in which a failure is made smaller. */
struct step_id {
	uint32_t episode, task, nr;
};

struct arguments {
	const char *program, *mutant; /* NULL: none */
	uint64_t seed, seed_last;
	uint64_t ops; /* of each task in an episode, at most */
	unsigned episodes, tasks_max;
	uint32_t kinds;		    /* of episodes, a bit each */
	bool is_exhaustive;	    /* the power goes at every write of the workload */
	unsigned depth;		    /* ... and of so many recoveries after it */
	uint64_t cut_at[DEPTH_MAX]; /* instead: at these only */
	unsigned cut_at_nr;
	const char *export_dir;
	bool is_verbose, is_traced, is_hashed, is_single;
	bool may_shrink, stops_at_failure;
	struct step_id *keep; /* only these; NULL: all */
	size_t keep_nr;
};

/* What was done, of all seeds together: in memory that the processes share. All atomic. */
struct totals {
	uint64_t seeds, ops, ops_at_once, commits_cut, cuts, cuts_at_risk, recovery_cuts, recovery_cuts_at_risk;
	uint64_t torn_writes, lost_writes, reopens, checks, no_space;
	uint64_t episodes[EPISODE_KIND_NR], faults[EPISODE_KIND_NR]; /* faults: how often it fired */
	uint64_t went_readonly, failed_ops, unreadable_objects, objects_beside;
	uint64_t cached_made, cached_taken_back, cached_read, cached_read_after_crash;
	struct {
		char text[48]; /* "name=value" */
		uint64_t nr;
	} options[OPTIONS_MAX];
	/* Of the run that failed last. */
	char failure[128];
	uint32_t steps_nr;
	struct step_id steps[KEEP_MAX];
};
#define COUNT(s, what, n) __atomic_add_fetch(&(s)->totals->what, (uint64_t)(n), __ATOMIC_RELAXED)

/* An operation of the log of what isn't known to be durable. */
struct logged {
	struct operation op;
	/* Journal entries in which it was committed are in this range. */
	uint64_t seq_begin, seq_end;
	bool is_in_doubt; /* it failed in a way that leaves open how much of it happened */
};

/* One task of the workload. What it works on is its own; the root directory they share. */
struct workload {
	struct sim *s;
	unsigned nr;
	struct rng rng;
	struct model model;
	struct model promised; /* after operation number promised_op */
	uint64_t promised_op;
	struct logged *log; /* operations behind it */
	size_t log_nr, log_capacity;
	uint64_t op_nr;
	/*
	 * Of files that are overwritten in place: what they were before operations that were promised, but whose data
	 * wasn't; and the last operations that changed the contents of those whose contents were promised (versions
	 * without data).
	 */
	struct model_versions doubts, floors;
	bool has_stopped; /* something failed: what is there is not known before the filesystem is opened anew */
	struct task *task;
};

struct sim {
	const struct arguments *args;
	struct totals *totals;
	uint64_t seed;
	struct rng rng;
	/* The filesystem. */
	struct power *power;
	uint64_t node_magic;		  /* of the filesystem's btree nodes */
	struct device *faulty[DISKS_MAX]; /* where faults are told to happen, while it is open */
	unsigned disks_nr;
	unsigned disks_missing; /* a bit each: not given when it is opened */
	uint32_t block_bytes, node_bytes, extent_bytes_max;
	unsigned metadata_replicas, data_replicas, metadata_required;
	bool is_redundant; /* everything has a copy on another disk */
	bool has_checksums, has_data_checksums, is_encrypted, is_nocow, has_acls;
	bool is_restricted, has_cache; /* not every disk takes everything; the last one is a cache */
	char options[512], mount_options[512];
	kiln_fs *fs;
	/* What it must be. */
	struct workload tasks[TASKS_MAX];
	unsigned tasks_nr;
	struct operation_limits limits;
	/* What is going on. */
	unsigned episode, depth;
	enum episode_kind kind;
	uint64_t op_nr;
	uint64_t cut_path[DEPTH_MAX]; /* the writes at which the power went, exhaustively */
	unsigned cut_after_fsyncs;    /* so many, then the power goes; 0: not by that */
	bool writes_back_often;	      /* nodes, between operations */
	bool is_stopping;	      /* tasks come to an end */
	bool is_faulty;		      /* damage is expected: reports don't matter */
	bool has_bad_cache;	      /* ... of that alone: it is told of, and nothing comes of it */
	bool has_damage_reports;      /* there were some */
	bool may_have_bad_copies;     /* something may have left such of data */
	unsigned bad_nodes_max;	      /* of so many nodes, which keys name until they are read */
	bool is_after_crash;	      /* what is read was written before one */
	bool is_over;		      /* no more episodes */
	bool has_failed;
};

/* --- sim.c --- */

/* The command that runs this seed in the same way: with the power lost at these writes, exhaustively. */
void print_command(const struct arguments *args, uint64_t seed, const uint64_t *cut_path, unsigned depth);

/* The run has failed: tell it, once. -EPROTO. */
int failed(struct sim *s, const char *what, const char *detail);

/* The process ends, saying that it hangs, when it has used so much processor time from now on. */
void watchdog(unsigned seconds);

/* --- config.c --- */

/* Nothing counts on what it holds. */
static inline bool is_cache(const struct sim *s, unsigned disk) { return s->has_cache && disk + 1 == s->disks_nr; }

/* Something that was drawn: sim prints how often. */
void option_count(struct sim *s, const char *option);
/* Draw disks and options, and make the filesystem, open for writing. */
int config_make(struct sim *s);
/* Open it. 0, -EIO when the power went, or -EPROTO. */
int fs_reopen(struct sim *s, unsigned flags);
/* Are there fewer devices, since one was marked as failed or is missing, than data must have copies on? */
bool data_is_refused(const struct sim *s);
/* The same, but errors of opening are the caller's, with @why. */
int fs_try_open(struct sim *s, unsigned flags, char why[KILN_ERROR_BYTES]);
void fs_end(struct sim *s);
/* As if the process were killed: nothing more is written. */
void fs_kill(struct sim *s);

/* --- nonces.c --- */

/* See that no nonce is used twice in all mounts of the run from here on. */
void nonces_begin(struct sim *s);
void nonces_end(void);

/* --- cached.c --- */

/* Count cached copies for it from here on. */
void cached_watch(struct sim *s);

/* --- workload.c --- */

/* All tasks do up to @ops operations each, and come to rest. */
void workload_run(struct sim *s, uint64_t ops);
/* The tasks' models from what is there now. */
int workload_init(struct sim *s);
void workload_free(struct sim *s);
/* The same, and it was closed. */
void workload_closed(struct sim *s);
/* A step that was done, for shrinking. */
void workload_remember(struct sim *s, struct step_id id);
/* Everything that was done is durable. */
void workload_promise_all(struct sim *s);

/* --- compare.c --- */

/* Is it as the models say? */
int compare_exactly(struct sim *s);
/* Either that, or damage is told of. */
int compare_unless_told(struct sim *s);
/* Is it one of the states that are allowed, after a crash? The models become that one. */
int compare_after_crash(struct sim *s);
/*
 * What can be read is right, although not everything can be read: every object that is there is as promised or as some
 * later operation made it. Counts what can't be read.
 */
int compare_damaged(struct sim *s);
/* When all rest: nothing is reserved any more; and what is kept of quotas is what is counted anew. */
int compare_reserved(struct sim *s);
int compare_accounts(struct sim *s);
/* All invariants. */
int check(struct sim *s);

/* --- episode.c --- */

/* The whole run. */
int episodes_run(struct sim *s);

/* --- disk.c --- */

/* A disk as the filesystem sees it: @below with what allocation failures must not hit, and traced. Owns @below. */
int disk_wrap(struct device *below, bool is_traced, struct device **dev);

/* --- memory.c --- */

/* From now on every allocation of the engine fails with a chance of 1 in @one_in; 0: none does. */
void memory_fail(uint64_t seed, unsigned one_in);
uint64_t memory_failures(void);
/* Allocations between these can't fail. */
void memory_exempt_begin(void);
void memory_exempt_end(void);

/* --- shrink.c --- */

/* Find fewer steps that fail in the same way, and print the command. */
void shrink(const struct arguments *args, uint64_t seed, struct totals *totals,
	    int (*run)(const struct arguments *args, uint64_t seed, struct totals *totals));
bool is_kept(const struct arguments *args, struct step_id id);

#endif
