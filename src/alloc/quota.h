/*
 * Quotas: what users, groups and projects use, and may use (04 §9).
 *
 * On disk are only limits. Use is counted in memory, per *row* (type, id): the sectors and the number of the inodes
 * that belong to it. Which version of an inode counts is the one that the master subvolume of its snapshot tree sees;
 * so snapshots of a subvolume are free of charge.
 *
 * The numbers come from a scan of the inodes btree, in order of inode numbers, while others commit. It has a *cursor*:
 * inodes before it are counted, and every commit that changes one of them changes the counts by the difference of its
 * old and new keys; what a commit does to inodes at or behind the cursor, the scan will see. The cursor moves in the
 * moment in which a read transaction of the scan is valid, all its nodes locked, and commits look at it with theirs
 * locked: so every inode is counted once. Nothing is derived from what operations mean to do, only from keys, so there
 * is no drift. When the master of a tree changes, the scan begins anew.
 *
 * Limits hold as soon as the scan is done. A transaction that adds to a row takes what it adds before its commit, so
 * that two at a time can't both get the last of it, and fails with -EDQUOT: beyond the hard limit; or beyond the soft
 * one, when the row has been there for longer than the grace period. Who writes data takes it before data is written
 * (allocator_quota_reserve()). Deleting never fails. The grace periods are in the superblock; when they began is only
 * in memory, as upstream has it. They end when use is back at the soft limit (upstream: at the unmount).
 *
 * Memory: 144 bytes per id that owns something or has limits.
 */
#ifndef KILN_ALLOC_QUOTA_H
#define KILN_ALLOC_QUOTA_H

#include "btree/txn.h"
#include "format/inode.h"
#include "format/quota.h"
#include "format/superblock.h"

struct quotas;
struct quota_row;

/* Ids by type that an inode is charged to. */
struct quota_owner {
	uint32_t ids[QUOTA_TYPE_NR];
};
void quota_owner_of(const struct inode *inode, struct quota_owner *owner);

/*
 * @types: bit per quota_type to count. @timelimits: grace periods, NULL for the usual ones. Counting begins with
 * quotas_start() or quotas_count(), but what is committed before, with hooks, is not missed. 0 or -ENOMEM.
 */
int quotas_open(struct btrees *trees, unsigned types, const struct sb_quota *timelimits, struct quotas **quotas);
void quotas_close(struct quotas *q); /* NULL is allowed */

/* Read the limits, and start the task that counts. @inodes_nr: some so many, for people. 0 or an error. */
int quotas_start(struct quotas *q, uint64_t inodes_nr);
/* The scan. */
const struct job *quotas_job(const struct quotas *q);
/* End the task. */
void quotas_stop(struct quotas *q);
/* Read the limits and count, now, in the caller's task. For filesystems that are only read, and checks. 0 or error. */
int quotas_count(struct quotas *q);
/* Wait until all is counted. 0, or the error that keeps it from ending. */
int quotas_wait(struct quotas *q);

struct quota_state {
	unsigned types; /* bit per type that is counted */
	bool is_counted;
	bool is_partial; /* some inodes can't be read: what they use is missing */
	uint64_t cursor; /* inode number; UINT64_MAX: counted */
	struct sb_quota timelimits;
};
void quotas_state(struct quotas *q, struct quota_state *state);

struct quota_info {
	unsigned type;
	uint32_t id;
	uint64_t used[QUOTA_COUNTER_NR]; /* sectors, inodes */
	struct quota limits;
	uint64_t grace_end[QUOTA_COUNTER_NR]; /* seconds since 1970; 0: not above the soft limit */
};
/* As it is now. Rows that don't exist are all zero. */
void quotas_get(struct quotas *q, unsigned type, uint32_t id, struct quota_info *info);
/*
 * All rows of a type that use something or have limits, in ascending order of ids. *@infos is malloc'ed. 0 or -ENOMEM.
 */
int quotas_list(struct quotas *q, unsigned type, struct quota_info **infos, size_t *nr);

/* From now on grace periods are these; those that run already go on. */
void quotas_set_timelimits(struct quotas *q, const struct sb_quota *timelimits);
/* Limits don't hold for what the calling task does, from now on or not any more. 0 or -ENOMEM. */
int quotas_set_privileged(struct quotas *q, bool is_privileged);

/* Store limits of a row: those for which @is_set, [counter][soft, hard]. None left: the key goes away. 0 or an error.
 */
enum { QUOTA_SOFT, QUOTA_HARD };
struct quota_limits_change {
	unsigned type;
	uint32_t id;
	bool is_set[QUOTA_COUNTER_NR][2];
	uint64_t limits[QUOTA_COUNTER_NR][2]; /* sectors, inodes; 0: no limit */
};
int quota_limits_store(struct btrees *trees, const struct quota_limits_change *change);

/* Sectors promised to the owners of a file, before data is written. Zero: none. */
struct quota_reservation {
	uint64_t sectors;
	struct quota_row *rows[QUOTA_TYPE_NR];
};
/* 0, also when nothing needs to be promised; -EDQUOT; or an error. @snapshot: where the file is written. */
int quota_reservation_get(struct quotas *q, struct quota_reservation *r, const struct quota_owner *owner,
			  uint32_t snapshot, uint64_t sectors);
void quota_reservation_put(struct quotas *q, struct quota_reservation *r);
/* Sectors that could be promised. */
uint64_t quota_room(struct quotas *q, const struct quota_owner *owner);

/* --- for the hooks of the alloc room (quota_txn.c); @q may be NULL --- */

struct quota_change;
struct quota_limits_update;
/* What the triggers found out. Part of the hook data. */
struct quota_txn {
	struct quota_change *changes;
	struct quota_limits_update *limits;
	bool must_recount;
	bool has_taken; /* prepare took something for it */
};
int quota_trigger(struct quotas *q, struct btree_txn *txn, struct quota_txn *t, const struct btree_update *u);
/* @r: what was promised before; NULL: nothing. */
int quota_prepare(struct quotas *q, struct btree_txn *txn, struct quota_txn *t, const struct quota_reservation *r);
void quota_committed(struct quotas *q, struct quota_txn *t, struct quota_reservation *r);
/* When t->has_taken. */
void quota_aborted(struct quotas *q, struct quota_txn *t);

#endif
