/* What the files about quotas share. See quota.h.
 *
 *   quota.c       rows, limits, promises
 *   quota_scan.c  which version counts; the scan
 *   quota_txn.c   what a transaction changes
 */
#ifndef KILN_ALLOC_QUOTA_INTERNAL_H
#define KILN_ALLOC_QUOTA_INTERNAL_H

#include "alloc/quota.h"
#include "base/sync.h"

/* Rows live as long as their quotas. What is in them is guarded by quotas.lock. */
struct quota_row {
	struct quota_row *next;
	unsigned type;
	uint32_t id;
	/* Inodes may claim any number of sectors: these sums are exact, and what goes is what came. */
	__int128 used[QUOTA_COUNTER_NR];
	__int128 taken[QUOTA_COUNTER_NR]; /* by transactions under way, and promised */
	struct quota limits;
	uint64_t grace_end[QUOTA_COUNTER_NR];
};

struct quotas {
	struct btrees *trees;
	unsigned types;
	struct mutex
		lock; /* short; taken by commits with node locks held, so nothing is taken or waited for under it */
	struct waitq changed; /* of cursor, err, is_stopping, must_run */
	struct quota_row **buckets;
	size_t bucket_nr, row_nr; /* a power of 2; ever more than rows, as far as memory goes */
	struct sb_quota timelimits;
	uint64_t cursor;		/* inodes below are counted */
	uint64_t counted_nr, inodes_nr; /* inodes, up to the cursor, and in all when the scan began: an estimate */
	uint64_t recount_nr;		/* how often it went back to the start */
	bool is_partial;		/* as in quota_state */
	bool is_stopping;
	int err; /* of the scan: it has ended */
	struct task *task;
	struct job job;
	const void **privileged; /* identities of tasks */
	size_t privileged_nr, privileged_capacity;
};

static inline bool quotas_are_counted(const struct quotas *q) { return q->cursor == UINT64_MAX; }
static inline bool quota_is_counted(const struct quotas *q, unsigned type) { return q->types >> type & 1; }

/* What an inode (as some key has it) costs its owners. */
struct quota_share {
	bool is_there;
	struct quota_owner owner;
	uint64_t sectors;
};
void quota_share_of(struct bkey_ref k, struct quota_share *share);
static inline bool quota_shares_are_same(const struct quota_share *a, const struct quota_share *b)
{
	return a->is_there == b->is_there &&
	       (!a->is_there || (a->sectors == b->sectors && !memcmp(&a->owner, &b->owner, sizeof(a->owner))));
}

/* --- quota.c; lock held --- */

/* Made if need be. NULL: no memory. */
struct quota_row *quota_row_get(struct quotas *q, unsigned type, uint32_t id);
/* Start or end grace periods by what is used now. */
void quota_row_grace_update(struct quotas *q, struct quota_row *row, uint64_t now_seconds);
void quota_grace_update_all(struct quotas *q);
uint64_t quota_now_seconds(void);
/* May the row have that much more? */
bool quota_row_allows(const struct quota_row *row, enum quota_counter counter, uint64_t amount, uint64_t now_seconds);
/* Do limits hold for the calling task, now? */
bool quotas_are_enforced(const struct quotas *q);
/* Begin anew. */
void quotas_recount(struct quotas *q);

/* --- quota_scan.c --- */

/* Of a snapshot: what matters for its inodes. */
struct quota_view {
	uint32_t master; /* snapshot that sees the versions that count; 0: none does */
	bool has_parent; /* @snapshot inherits from others */
};
/* Read in @txn, or (NULL) just so. 0 or an error. */
int quota_view_get(struct btrees *trees, struct btree_txn *txn, uint32_t snapshot, struct quota_view *view);

#endif
