/*
 * The order of locks and who may wait for whom, checked while the program runs.
 *
 * docs/locking.md says what the orders are and why; here are the same two tables for a machine to compare with. Each
 * mutex has a rank, each SIX lock a class, each task a rank. A task that takes a lock out of turn, waits with a lock
 * that must not be held so long, or waits for a task that may be waiting for it, ends the program, with a message that
 * names what it holds and what it asked for. That such a wait would have been over soon this time doesn't save it: so
 * one run of one task finds what else only many in an unlucky moment would.
 *
 * It is checked in every simulation, and with threads in builds with KILN_CHECK_LOCKS (those with sanitizers have it).
 */
#ifndef KILN_BASE_LOCK_ORDER_H
#define KILN_BASE_LOCK_ORDER_H

#include <stdbool.h>
#include <stdint.h>

struct mutex;
struct six_lock;
struct strbuf;

/* Of mutexes, from the outermost to the innermost. A task takes them in this order, of each rank one. */
enum lock_rank {
	LOCK_UNORDERED, /* in order with all others, and may be held over any wait: for tests of the primitives */
	LOCK_OUTERMOST, /* of programs and the mount, over calls of others */
	LOCK_DRAIN,	/* of the mount, while what the kernel writes back is waited for */
	LOCK_ATIMES,	/* of the mount, while one is written */
	LOCK_USAGE,
	LOCK_BATCHES,
	LOCK_INODES, /* two of them: the one at the lower address first */
	LOCK_SHARED_EXTENTS,
	LOCK_INODE_NUMBERS,
	LOCK_BUCKETS, /* not mutexes: a table of locks, of which a task takes all that it needs at once */
	LOCK_SUPERS,
	LOCK_WRITE_POINT,
	LOCK_NODES,	/* SIX locks, which have an order of their own */
	LOCK_PIN_FLUSH, /* not a mutex: held by the task that calls flush functions of journal pins */
	LOCK_NODE_POOL,
	LOCK_OPEN_BUCKETS,
	LOCK_WRITE_BUFFER,
	LOCK_JOURNAL,
	LOCK_COUNTERS,
	LOCK_INNERMOST, /* all others */
	LOCK_RANK_NR
};

/* An order among SIX locks. Locks without a class are in no order, and may be taken in any. */
struct six_class {
	/* < 0: @a is to be taken before @b, another one. Both are of classes that have this function. */
	int (*compare)(const struct six_lock *a, const struct six_lock *b);
	void (*describe)(struct strbuf *out, const struct six_lock *lock);
};

/* Of tasks: each waits only for those before it. All wait for devices, which wait for none. */
enum task_rank {
	TASK_JOURNAL_WRITER,
	TASK_NODE_WRITER,
	TASK_INTERIOR,	   /* finishes interior updates */
	TASK_WRITE_BUFFER, /* applies what is in it, or in the key cache */
	TASK_RECLAIM,
	TASK_DISCARD, /* and invalidates, and keeps generations young */
	TASK_COPYGC,
	TASK_DELETIONS, /* of inodes without names */
	TASK_USER,	/* everything else, and what tasks are at first */
	TASK_RANK_NR
};

/* From here on this task is of @rank. */
void task_rank_set(enum task_rank rank);
/* The same, unless its rank is lower already. Returns what it was, to be set again. */
enum task_rank task_rank_lower(enum task_rank rank);
/* This task is about to wait for something that tasks of @whom do. */
void task_may_wait_for(enum task_rank whom);
/* This task is about to wait for a device or for another task. It lets @m go for that; NULL: none. */
void task_may_wait(const struct mutex *m);

/*
 * For what is held like a lock but isn't one: @what is guarded by a mutex, and waited for with waitq_wait_for_lock().
 * This task has it, or has let it go.
 */
void lock_order_taken(const void *what, enum lock_rank rank);
void lock_order_released(const void *what);

/* --- for the other files of base --- */

enum { HELD_LOCKS_MAX = 64 }; /* what a task holds beyond is not checked */

struct held_lock {
	const void *lock;
	uint8_t rank; /* enum lock_rank */
	uint8_t mode; /* enum six_mode */
};

/* What a task holds, and is. */
struct held_locks {
	struct held_lock held[HELD_LOCKS_MAX];
	uint32_t nr, unnamed_nr;
	uint8_t is_below_user; /* TASK_USER - its rank, so that zeroes are right at first */
};

/* This task is about to wait for @what, held by its like; it lets @let_go go for that. NULL: nothing. */
void lock_order_ask(const void *what, enum lock_rank rank, const struct mutex *let_go);
/* @mode is of enum six_mode. */
void lock_order_six_ask(const struct six_lock *lock, unsigned mode);
void lock_order_six_taken(const struct six_lock *lock, unsigned mode);
void lock_order_six_released(const struct six_lock *lock, unsigned mode);

#endif
