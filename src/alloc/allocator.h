/*
 * Space: which bucket next, what is used by what, and the counters (07).
 *
 * The alloc btree says of every bucket what is in it. Everything else that says so follows from it or from the pointers
 * themselves, and is kept by the triggers here (allocator_hooks()): freespace, need_discard, the LRUs, bucket_gens,
 * backpointers, and usage counters. The rooms above put keys with pointers; no caller updates derived state by hand.
 *
 * An *open bucket* is one that is being allocated from. It stays open until everything allocated from it has been
 * referred to by a committed key (or given up), because until then nothing on disk says that it is in use; while it is
 * open nobody else gets it and its generation isn't raised. A *write point* is a stream of allocations that lie behind
 * one another; it holds one open bucket per replica.
 *
 * A bucket that became empty in journal entry S is not discarded or handed out before a flush entry >= S is durable
 * (07 §8.8).
 *
 * The counters (usage) at the end of journal entry N are the state after all transactions up to N: deltas of a commit
 * are collected per entry and folded into the base when the journal writes that entry (allocator_journal_tail()).
 */
#ifndef KILN_ALLOC_ALLOCATOR_H
#define KILN_ALLOC_ALLOCATOR_H

#include "alloc/quota.h"
#include "alloc/usage.h"
#include "base/watermark.h"
#include "btree/txn.h"
#include "format/alloc.h"
#include "journal/journal.h"
#include "super/super.h"

struct allocator;

struct allocator_opts {
	struct super *super;
	struct btrees *trees;
	struct journal_state *state; /* counters and clocks to go on from */
	/*
	 * See that the superblocks of all devices have this replicas entry (07 §12.2), durably, before it returns.
	 * Called without locks; super_replicas_mark() of `super`.
	 */
	int (*replicas_mark)(void *ctx, const struct usage_replicas *entry);
	void *ctx;
	const struct report_sink *reports;
};

/* Reads generations (bucket_gens) and counters. Nothing is written. 0 or an error. */
int allocator_open(const struct allocator_opts *opts, struct allocator **allocator);
/*
 * Count what users, groups and projects use, as far as options ask for it: from here on in the background. When
 * recovery is done. 0 or an error.
 */
int allocator_quota_start(struct allocator *a);
/* Start the tasks: discards, node reserve. Before it every allocation fails with -EROFS. */
int allocator_start(struct allocator *a, struct journal *journal);
/*
 * Drop write points, give up open buckets and reserves that nobody uses, let pending discards finish as far as they
 * can without waiting for more journal writes. Before a clean shutdown's last flush of the btrees, which may need so
 * many buckets for nodes that those they leave must be made free meanwhile: that goes on.
 */
void allocator_quiesce(struct allocator *a);
/* Were buckets made free since then, or the last call? Then keys have changed: the btrees are to be flushed again. */
bool allocator_stirred(struct allocator *a);
/*
 * Nothing is to be written on this device any more. -EROFS, and nothing has changed, when the others can't hold
 * metadata as often as is required.
 */
int allocator_device_leave(struct allocator *a, unsigned dev);
/* The filesystem is read-only from here on: who waits for space, now or later, gets -EROFS. From any thread. */
void allocator_refuse(struct allocator *a);
void allocator_stop(struct allocator *a);
void allocator_close(struct allocator *a);

/* --- for the engine's tables --- */

/* The triggers of keys that point at space, of alloc keys, of inodes (counting them), reservations, reflink_p. */
size_t allocator_txn_bytes(void);
int allocator_trigger(struct allocator *a, struct btree_txn *txn, const struct btree_update *u);
int allocator_prepare(struct allocator *a, struct btree_txn *txn);
void allocator_commit(struct allocator *a, struct btree_txn *txn, const struct btree_update *u, uint64_t seq);
void allocator_committed(struct allocator *a, struct btree_txn *txn, uint64_t seq);
void allocator_aborted(struct allocator *a, struct btree_txn *txn);
/* journal_ops */
unsigned allocator_journal_tail(struct allocator *a, uint64_t seq, void *at, unsigned max_u64s);
unsigned allocator_journal_tail_u64s_max(struct allocator *a);
void allocator_journal_flushed(struct allocator *a, uint64_t seq);
/* btree_backend: reserve, keeps_copies, node_alloc, reserve_trim, reserve_put, room_wait */
int allocator_node_reserve(struct allocator *a, unsigned nr, const struct btree_ptr *replaced, enum watermark watermark,
			   struct btree_node_reserve **reserve);
bool allocator_node_keeps_copies(const struct allocator *a, const struct btree_node_reserve *reserve,
				 const struct btree_ptr *p);
void allocator_node_alloc(struct allocator *a, struct btree_node_reserve *reserve, struct btree_ptr *p);
void allocator_node_reserve_trim(struct allocator *a, struct btree_node_reserve *reserve);
void allocator_node_reserve_put(struct allocator *a, struct btree_node_reserve *reserve);
void allocator_node_room_wait(struct allocator *a, uint64_t nodes);

/* --- recovery and format --- */

/* Fresh filesystem: everything free; counters start from that. Instead of what allocator_open() reads from `state`. */
int allocator_init_fresh(struct allocator *a);
/* Alloc keys of superblock and journal buckets, made or verified (07 §11). At every read-write mount. */
int allocator_mark_device(struct allocator *a, unsigned dev);
/* Fill freespace and need_discard of devices whose FREESPACE_INITIALIZED flag is clear, then set it (07 §17.1). */
int allocator_freespace_init(struct allocator *a);

/*
 * Free buckets that the journal of this device may have on top, at most @max, in up to @range_max ranges that ascend:
 * no more than a quarter of what users have left (shared by all devices that are written), and nothing of what is kept
 * for nodes. Before allocator_start(), as nothing keeps others from taking them: that does the superblock, once it says
 * that they are the journal's. The number of ranges, 0 if there are none to be had, or an error.
 */
int allocator_journal_room(struct allocator *a, unsigned dev, uint64_t max, struct sb_journal_range *ranges,
			   unsigned range_max);

/* --- space for data --- */

/*
 * Sectors promised in memory to an operation under way (07 §12.6). Commits consume it (btree_commit_opts.reservation);
 * what is left is given back.
 */
struct disk_reservation {
	uint64_t sectors;		/* all copies counted */
	unsigned replicas;		/* of what is promised there are so many */
	struct quota_reservation quota; /* of the owners; allocator_quota_reserve() */
};
enum disk_reservation_flags { DISK_RESERVATION_NOFAIL = 1 };
/*
 * @sectors, which are @replicas copies of something, each on another device; @r was zero, but for the quota's part,
 * which stays. 0 or -ENOSPC.
 */
int disk_reservation_get(struct allocator *a, struct disk_reservation *r, uint64_t sectors, unsigned replicas,
			 unsigned flags);
void disk_reservation_put(struct allocator *a, struct disk_reservation *r); /* of both parts */
/*
 * For what adds keys and takes no blocks: 0 while users may have any space; then -ENOSPC. What is left is for nodes
 * that write-back, deleting and moving make.
 */
int allocator_key_room(struct allocator *a);
/* Are free buckets few on so many devices that the others can't hold all copies of nodes? */
bool allocator_nodes_are_low(struct allocator *a);

/* How many copies of data the devices that are written now can have, as their durability counts. */
unsigned allocator_data_durability(const struct allocator *a);

/* What is counted of users, groups and projects. NULL: nothing is. */
struct quotas *allocator_quotas(struct allocator *a);
/*
 * @sectors more for a file written in @snapshot, promised by its owners' quotas. 0, also where nothing limits them;
 * -EDQUOT, or an error. Commits consume it together with the rest of the reservation.
 */
int allocator_quota_reserve(struct allocator *a, struct disk_reservation *r, const struct inode *inode,
			    uint32_t snapshot, uint64_t sectors);
/* How much would be promised at most. */
uint64_t allocator_quota_room(struct allocator *a, const struct inode *inode);

struct alloc_request {
	uint8_t data_type; /* DATA_USER, ... */
	enum watermark watermark;
	uint16_t target;	    /* 0: any device (10 §5.1) */
	unsigned replicas;	    /* durability wanted */
	unsigned replicas_required; /* at least; fewer: -EROFS or -ENOSPC */
	uint32_t sectors_min;	    /* of data that can't be divided, whole blocks; 0: a block */
	uint64_t writer;	    /* who writes: one stream stays together (write points are hashed by it) */
	uint64_t dev_exclude;	    /* bit per device that must not be used */
	bool is_without_caches;	    /* no copies besides, on devices of durability 0 */
	bool can_wait;		    /* for buckets to be discarded or flushed; else -EAGAIN */
};
/* The devices of a target, by bits; none when nothing can be written to it, or it isn't defined. */
uint64_t allocator_target_devs(const struct allocator *a, uint16_t target);
enum { ALLOC_PTRS_MAX = 5 };
/* What was allocated: the same number of sectors at each pointer, and what keeps the buckets open. */
struct alloc_extent {
	unsigned ptr_nr;
	struct extent_ptr ptrs[ALLOC_PTRS_MAX];
	uint32_t sectors;
	uint16_t open_bucket[ALLOC_PTRS_MAX]; /* references: allocator_extent_put() */
};
/*
 * Up to @sectors_max sectors (a multiple of blocks; at least one block, or req->sectors_min), behind what this writer
 * got before as far as possible. The caller writes the data, commits keys that point there, and then puts the extent.
 * 0, -ENOSPC, -EROFS, -EAGAIN.
 */
int allocator_extent_get(struct allocator *a, const struct alloc_request *req, uint32_t sectors_max,
			 struct alloc_extent *e);
/* The keys that point at it are committed, or there will be none. */
void allocator_extent_put(struct allocator *a, struct alloc_extent *e);
/*
 * Cached data at @ptr was read: its bucket comes last of those that are taken back. Cheap, and not at once. No locks
 * held.
 */
void allocator_cached_read(struct allocator *a, const struct extent_ptr *ptr);
/* Sectors read or written by users: the io clocks. */
void allocator_clock_add(struct allocator *a, bool is_write, uint64_t sectors);
/* Both together. */
uint64_t allocator_clock(struct allocator *a);

/*
 * While somebody reads data: buckets that were not free at the begin aren't used again before the end, even if all that
 * points at them goes away. Look up where the data is inside. Never wait for space inside.
 */
struct read_section {
	unsigned epoch;
	enum task_rank rank; /* of the task, outside of it */
};
struct read_section allocator_read_begin(struct allocator *a);
void allocator_read_end(struct allocator *a, struct read_section section);

/* --- moving data so that buckets become empty: for data/copygc.h --- */

/* A bucket that is used in part. */
struct allocator_fragment {
	unsigned dev;
	uint64_t bucket;
	uint8_t gen, data_type;
	uint32_t sectors, bucket_sectors; /* in use, and all */
};
/*
 * The next ones at or behind *@pos, emptiest first (POS_MIN: from the beginning), of devices in @devs, a bit each. Open
 * buckets are left out. Flush the write buffer first. Their number, at most @max (0: no more), or an error.
 */
int allocator_fragments_next(struct allocator *a, uint64_t devs, struct bpos *pos, struct allocator_fragment *out,
			     unsigned max);
/* What is in use of it now. 0 or an error. */
int allocator_fragment_update(struct allocator *a, struct allocator_fragment *f);
/*
 * Sectors that users may write before there is too much that is fragmented (07 §16; @is_eager: more than a bucket is);
 * 0: there is, on the devices of *@devs.
 */
uint64_t allocator_evacuation_due(struct allocator *a, bool is_eager, uint64_t *devs);

/*
 * How many buckets are available on these devices, or were given to users: what moving gains shows in it, and only that
 * (nodes that are made meanwhile take from it).
 */
uint64_t allocator_evacuation_level(struct allocator *a, uint64_t devs);

/*
 * One task moves. From start to stop, who lacks space waits for it. Its loop: wait, until so many @sectors have been
 * written (0: go on) or somebody lacks space on *@wanted_devs, false: it is to end; make a pass, and say now and then
 * that it goes on; done. A pass has gained nothing only if it went over all buckets of all devices that were wanted.
 */
void allocator_evacuator_start(struct allocator *a);
bool allocator_evacuator_wait(struct allocator *a, uint64_t sectors, uint64_t *wanted_devs);
void allocator_evacuator_progress(struct allocator *a);
void allocator_evacuator_done(struct allocator *a, bool has_gained);
void allocator_evacuator_stop(struct allocator *a);
bool allocator_evacuator_is_stopping(struct allocator *a);

/* --- counters --- */

/* The counters as they are now in memory. Free with usage_free(). */
int allocator_usage(struct allocator *a, struct usage *usage);
/*
 * @nr key versions in a row, each for one region of encrypted data: nobody ever gets them again (06 §8.5). 0 or the
 * journal's error. May wait for a flush.
 */
int allocator_key_versions_get(struct allocator *a, unsigned nr, uint64_t *first);

struct allocator_stats {
	uint64_t buckets_opened, buckets_freed, discards, waits_for_journal;
	uint64_t holes_taken; /* for copies of nodes, in buckets that were in use */
	unsigned open_buckets;
};
void allocator_stats(struct allocator *a, struct allocator_stats *stats);
/* Add what its background does to @list. */
void allocator_jobs(struct allocator *a, struct job_list *list);

#endif
