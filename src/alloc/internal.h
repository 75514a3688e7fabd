/*
 * Inside the alloc room.
 *
 * Locks, in this order; none is held while waiting for a transaction or a device but write_point.lock, which is held
 * while freespace is read:
 *
 *	write_point.lock  >  node_pool.lock  >  open_buckets.lock  >  counters.lock
 *	discards.lock, gc_gens.lock, quotas.lock, key_versions.lock, read_times.lock: none under them
 *
 * All but write_point.lock, node_pool.lock, key_versions.lock and read_times.lock are also taken by commits, which
 * hold node locks: short, and last of all.
 */
#ifndef KILN_ALLOC_INTERNAL_H
#define KILN_ALLOC_INTERNAL_H

#include <stdatomic.h>

#include "alloc/allocator.h"
#include "alloc/bucket.h"
#include "alloc/quota.h"
#include "base/sync.h"
#include "format/superblock.h"

enum { ALLOC_DEVS_MAX = 64 }; /* all that format 1.4 has: sb_validate() refuses more */

/* --- counters.c --- */

/*
 * Counters have numbers: the fixed ones first, then a row per replicas entry. Of each there is the value now and the
 * value at the end of the journal entry written last, which the deltas of committed transactions are folded into.
 */
enum {
	COUNTER_INODES,
	COUNTER_RESERVED, /* four, by number of replicas */
	COUNTER_DEVS = COUNTER_RESERVED + 4,
	COUNTER_DEV_BUCKETS = 0,
	COUNTER_DEV_SECTORS,
	COUNTER_DEV_FRAGMENTED,
	COUNTER_DEV_NR,
	COUNTER_ROWS = COUNTER_DEVS + ALLOC_DEVS_MAX * DATA_NR_1_4 * COUNTER_DEV_NR,
};
static inline unsigned counter_dev(unsigned dev, unsigned type, unsigned what)
{
	return COUNTER_DEVS + (dev * DATA_NR_1_4 + type) * COUNTER_DEV_NR + what;
}

struct counter_delta {
	uint32_t counter;
	int64_t delta;
};
/* What one or more transactions of one journal entry changed. */
struct counter_record {
	struct counter_record *next;
	uint64_t seq;
	size_t nr, max;
	struct counter_delta deltas[];
};

struct counter_row {
	struct usage_replicas entry;
	int64_t now, base;
};

struct counters {
	struct mutex lock;
	int64_t now[COUNTER_ROWS], base[COUNTER_ROWS];
	struct counter_row *rows;
	size_t row_nr, row_max;
	atomic_size_t tail_row_nr;	/* entries opened from now on have room for so many, and TAIL_ROWS_SPARE more */
	struct counter_record *records; /* committed and not folded, in no order */
	uint64_t online_reserved;	/* sectors promised to running operations */
};

/* The place of a node that has been replaced, in a bucket with others (node_holes.c). */
struct node_hole {
	uint64_t sector;
	uint64_t seq; /* the entry that takes the pointer away: durable before anything is written there */
	uint8_t dev, gen;
};

/* What the deltas of a transaction add up to, and what else its triggers found out. Memory of the transaction. */
struct alloc_txn {
	struct alloc_txn_row {
		struct usage_replicas entry;
		int64_t delta;
	} * rows;
	size_t row_nr, row_max;
	struct counter_delta *deltas;
	size_t delta_nr, delta_max;
	/* Backpointers put by this transaction. */
	struct alloc_txn_backpointer {
		struct bpos p;
		uint8_t value[BACKPOINTER_BYTES];
	} * backpointers;
	size_t backpointer_nr, backpointer_max;
	/* Shared extents that lost their last reference in this transaction, and may get one again. */
	struct alloc_txn_shared {
		struct alloc_txn_shared *next;
		struct bkey k;
		uint64_t value[];
	} * unshared;
	struct node_hole *holes;
	size_t hole_nr, hole_max;
	struct counter_record *record; /* made by prepare */
	int64_t disk_sectors;	       /* that count in used space: more than before, by this much */
	bool has_need_discard, has_need_gc_gens, has_freed, has_cached;
	uint64_t unindexed_devs; /* bit per device: it is counted in unindexed_txns there */
	struct quota_txn quota;
};
struct alloc_txn *alloc_txn_of(struct btree_txn *txn);
/* As array_grow(), in the transaction's memory. */
int alloc_txn_array_grow(struct btree_txn *txn, void *array, size_t nr, size_t *capacity, size_t elem_size);
/* Does something that it puts point there? */
bool alloc_txn_puts_backpointer(struct alloc_txn *t, struct bpos pos);
/* Add to what the transaction changes. 0 or -ENOMEM. */
int alloc_txn_count(struct btree_txn *txn, unsigned counter, int64_t delta);
int alloc_txn_count_replicas(struct btree_txn *txn, unsigned data_type, unsigned nr_required, const uint8_t *devs,
			     unsigned dev_nr, int64_t sectors);

void counters_init(struct counters *c);
void counters_destroy(struct counters *c);
/* Read them from what recovery found. */
int counters_read(struct allocator *a);
/* What users may still write (07 §12.6). */
uint64_t counters_sectors_available(struct allocator *a);
int64_t counters_dev_buckets(struct counters *c, unsigned dev, unsigned type);
/* Sectors lost in buckets of data and nodes that are used in part. */
uint64_t counters_dev_fragmented(struct counters *c, unsigned dev);

/* --- open_bucket.c --- */

enum { OPEN_BUCKETS_MAX = 1024, OPEN_BUCKET_NONE = UINT16_MAX };

struct open_bucket {
	uint64_t bucket;
	uint32_t sectors_free; /* guarded by whoever owns it: a write point, or the partial list's lock */
	uint8_t dev, gen, data_type;
	bool is_partial;      /* on the partial list */
	bool is_free_on_disk; /* nothing committed refers to it: it is counted as free still */
	bool was_emptied;     /* all that was in it has gone while it was open: it waits for being discarded, or used */
	bool is_reopened;     /* it was in use: closing it gives nobody anything, unless it was emptied */
	bool is_scanned;      /* its holes are being looked for */
	uint32_t refs;
	uint16_t hash_next; /* in its chain, or in the list of unused ones */
};

enum { NODE_HOLES_MAX = 2048, NODE_PLACES_MAX = 1024 /* in a bucket */ };
struct node_holes {
	struct node_hole v[NODE_HOLES_MAX];
	unsigned nr, oldest;
	unsigned nr_of[ALLOC_DEVS_MAX]; /* by device */
	uint64_t last_bucket[ALLOC_DEVS_MAX];
	uint64_t taken; /* ever */
};

struct open_buckets {
	struct mutex lock;
	struct open_bucket buckets[OPEN_BUCKETS_MAX];
	uint16_t hash[OPEN_BUCKETS_MAX]; /* heads of chains */
	uint16_t unused;
	unsigned nr, partial_nr;
	uint32_t free_on_disk_nr[ALLOC_DEVS_MAX]; /* open ones that are counted as free */
	uint32_t emptied_nr[ALLOC_DEVS_MAX];	  /* open ones that wait for being discarded */
	uint64_t opened, opened_by_users;	  /* ever */
	struct node_holes holes;
};

void open_buckets_init(struct open_buckets *o);
void open_buckets_destroy(struct open_buckets *o);
bool open_bucket_is_open(struct allocator *a, unsigned dev, uint64_t bucket);
/* A commit has changed whether a bucket counts as free. */
void open_bucket_set_used(struct allocator *a, unsigned dev, uint64_t bucket, bool is_free);
/* Was it in use when it was opened, for holes in it? */
bool open_bucket_is_reopened(struct allocator *a, uint16_t idx);
/* Has all that was in an open bucket gone? */
bool open_bucket_was_emptied(struct allocator *a, uint16_t idx);
/*
 * A commit makes a bucket wait for being discarded, or no longer. If it is open, that is looked at again when it is
 * closed.
 */
void open_bucket_set_emptied(struct allocator *a, unsigned dev, uint64_t bucket, bool is_empty);
void open_bucket_get(struct allocator *a, uint16_t idx);
/* The last reference closes it. */
void open_bucket_put(struct allocator *a, uint16_t idx);
/* Give up the caller's reference and leave the bucket for others to go on with. */
void open_bucket_put_partial(struct allocator *a, uint16_t idx);
/* Take one from the partial list: of this type, on a device of @devs, with at least @sectors_min left. */
uint16_t open_bucket_take_partial(struct allocator *a, unsigned data_type, uint64_t devs, uint32_t sectors_min);
/*
 * Close those on the partial list: all, or (not 0) those that have another type than @data_type_kept or less than
 * @sectors_min left; then not those with places for nodes: single ones are kept at hand, and without the rest of its
 * bucket each would have a bucket of its own.
 */
void open_buckets_drop_partial(struct allocator *a, unsigned data_type_kept, uint32_t sectors_min);
/* Buckets that a request may still take. */
uint64_t open_buckets_available(struct allocator *a, unsigned dev, enum watermark watermark);
/* Is there one of @devs on which users get hardly any? */
bool open_buckets_are_low(struct allocator *a, uint64_t devs);
/*
 * Find a free bucket and open it, with one reference for the caller. 0; -ENOSPC: none that this watermark may have; or
 * an error of reading.
 */
int open_bucket_new(struct allocator *a, unsigned dev, unsigned data_type, enum watermark watermark, uint16_t *idx);
/* For open_bucket_new(): enter it into the table unless it is there, or may not be had. -EEXIST, -ENOSPC. */
int open_bucket_enter(struct allocator *a, unsigned dev, uint64_t bucket, unsigned data_type, enum watermark watermark,
		      uint16_t *idx);

/*
 * Open a bucket that isn't free, or have it open once more, unless @is_alone; the lock is held. The caller looks at its
 * key then, as it may be another by now. 0, -EEXIST, or -ENOSPC: the table is full.
 */
int open_bucket_reopen(struct allocator *a, unsigned dev, uint64_t bucket, uint8_t gen, bool is_alone, uint16_t *idx);
/* Are its places being looked at? The lock is held. */
bool open_bucket_is_scanned(struct allocator *a, unsigned dev, uint64_t bucket);

/* --- node_holes.c --- */

/* A transaction takes this pointer to a node away. 0 or -ENOMEM. */
int alloc_txn_hole(struct allocator *a, struct btree_txn *txn, const struct extent_ptr *ptr);
/* It leaves nothing in this bucket. */
void alloc_txn_holes_drop(struct allocator *a, struct alloc_txn *t, unsigned dev, uint64_t bucket);
void alloc_txn_holes_commit(struct allocator *a, struct alloc_txn *t, uint64_t seq);
/* The bucket is empty, or has another life. open_buckets.lock is held. */
void node_holes_forget(struct allocator *a, unsigned dev, uint64_t bucket);
/* A bucket is closed: its rest are holes. open_buckets.lock is held. */
void node_holes_add_rest(struct allocator *a, const struct open_bucket *b);
/*
 * Room for @replicas copies of a node on some of @all, as far as possible in holes. 0 or -EAGAIN; then *@waiting_seq,
 * if not 0, is what must be durable before there is more.
 */
int node_holes_slot(struct allocator *a, uint64_t all, unsigned replicas, enum watermark watermark,
		    struct alloc_extent *slot, uint64_t *waiting_seq);
/* The slot isn't used: what was allocated for it are holes. */
void node_slot_drop(struct allocator *a, struct alloc_extent *slot);
uint64_t node_holes_nr(struct allocator *a, unsigned dev);
/* Do the device's buckets hold several nodes? */
bool node_holes_are_kept(const struct allocator *a, unsigned dev);
/* Look for holes that aren't known. No locks held; waits as a flush of the write buffer does. 0 or an error. */
int node_holes_scan(struct allocator *a);

/* --- bucket_find.c --- */

/* A bucket for superblock or journal: never used for anything else, whatever its key says. */
bool bucket_is_reserved(struct allocator *a, unsigned dev, uint64_t bucket);
/* Find out which ones these are. Before any task is started. */
int bucket_ranges_read(struct allocator *a);

/* --- write_point.c --- */

enum {
	WRITE_POINTS_USER = 32,
	WRITE_POINT_BTREE = WRITE_POINTS_USER,
	WRITE_POINT_COPYGC,
	WRITE_POINT_MOVE,
	WRITE_POINTS_NR
};

struct write_point {
	struct mutex lock;
	uint16_t open[ALLOC_PTRS_MAX];
	unsigned open_nr;
	uint64_t next[ALLOC_DEVS_MAX]; /* devices are tried in ascending order of these (07 §14.3) */
};

void write_points_init(struct allocator *a);
void write_points_destroy(struct allocator *a);
/* Let go of all buckets: they are closed, or left on the partial list. */
void write_points_drop(struct allocator *a, bool to_partial);
/* Devices on which a bucket helps who needs one for this type: one of durability 0 doesn't. */
uint64_t write_point_devs(const struct allocator *a, unsigned data_type);
/*
 * A bucket was allocated on @dev, which has @available ones; @devs: what it was chosen from. What others gave is left
 * as it is: a target that gives the first copy each time would make those of the other copies look equal.
 */
void write_point_stripe(uint64_t next[ALLOC_DEVS_MAX], uint64_t devs, unsigned dev, uint64_t available);
/* Devices of a target, one bit each; all for 0 and for targets that don't exist. */
uint64_t target_devs(const struct allocator *a, unsigned target);
/* Of all @devs together. */
unsigned devs_durability(const struct allocator *a, uint64_t devs);

/* --- node_reserve.c --- */

/* Copies of each node that are wanted. */
unsigned node_replicas(const struct allocator *a);

enum { NODE_POOL_TARGET = 12, NODE_POOL_RECLAIM = 8, NODE_POOL_MIN = 16, NODE_POOL_BUCKETS = 8, NODE_POOL_MAX = 64 };
enum { NODE_POOL_FEW = 8 };
enum { NODE_ROOM_MIN = 56 }; /* nodes: twice what those for ordinary updates leave alone (07 §13) */

struct node_pool {
	struct mutex lock;
	struct waitq low; /* the refill task waits here */
	struct alloc_extent slots[NODE_POOL_MAX];
	unsigned nr;
	struct alloc_extent few[NODE_POOL_FEW]; /* room for fewer copies, given back by who asked for that */
	unsigned few_nr;
	bool is_stopping; /* nothing is kept any more */
	/* How many more nodes there is room for in free buckets, and whether one has been taken since. */
	atomic_uint_fast64_t room;
	atomic_bool is_room_old;
	atomic_uint_fast64_t room_retry_ns; /* before that nobody waits for room, as moving gains nothing */
	atomic_uint waiting_nr;		    /* tasks that wait for room */
	atomic_bool is_writeback_starved;   /* there was none the last time that write-back asked */
	struct task *task;
	struct job job;
};

void node_pool_init(struct node_pool *p);
void node_pool_destroy(struct node_pool *p);
int node_pool_start(struct allocator *a);
/* Give up slots that aren't of use any more. */
void node_pool_sift(struct allocator *a);
/*
 * Somebody finds no space for data: give up slots that aren't wanted just now. Their buckets are open, so they aren't
 * free, and copygc doesn't empty them.
 */
void node_pool_yield(struct allocator *a);
/* End the task and give up what is there; what comes back later isn't kept. */
void node_pool_stop(struct allocator *a);

/* --- evacuation.c --- */

/* Guarded by discards.lock; the atomics are read without. */
struct evacuation {
	struct waitq work;    /* for who moves */
	uint64_t wanted_devs; /* a bit per device on which somebody waits for a bucket */
	uint64_t passes_begun;
	uint64_t pass_gainless;	      /* number of the last needed one that gained nothing */
	uint64_t progress_nr;	      /* grows as long as something is moved */
	uint64_t freed_nr;	      /* discards.freed_nr when the last pass began */
	atomic_uint_fast64_t written; /* sectors, of data and of nodes that were made for it, since it was opened */
	atomic_uint_fast64_t due;     /* when so many have been, the next pass is to be made */
	bool is_due, is_needed, has_mover, has_gained, is_stopping;
};

/* Buckets that are free, or become so without anything being moved, beyond what is kept for @watermark. */
uint64_t alloc_dev_available(struct allocator *a, unsigned dev, enum watermark watermark);
void evacuation_init(struct evacuation *e);
void evacuation_destroy(struct evacuation *e);
/* Users wrote so much more. */
void evacuation_written(struct allocator *a, uint64_t sectors);
/* Buckets are wanted on these devices. discards.lock is held. */
void evacuation_want(struct allocator *a, uint64_t devs);

/* --- readers.c --- */

struct readers {
	atomic_uint epoch;
	atomic_uint nr[2]; /* sections of even and odd epochs */
	struct mutex lock;
	struct waitq changed;
};
void readers_init(struct readers *r);
void readers_destroy(struct readers *r);
/* Until everybody is done who was in a read section at the call. One task at a time. Switch point. */
void readers_wait(struct readers *r);

/* --- discard.c --- */

struct discards {
	struct mutex lock;
	struct waitq work;  /* for the task */
	struct waitq freed; /* for who waits for buckets */
	uint64_t freed_nr;  /* grows whenever a bucket can have become available */
	bool is_wanted, is_flush_wanted, is_stopping;
	bool is_refused; /* nothing is written any more */
	bool is_working, is_resting;
	unsigned waiting_nr;  /* those who wait for buckets */
	uint64_t rounds_done; /* by the task */
	uint64_t rounds_asked, rounds_seen;
	int round_freed; /* by the last one, or its error */
	struct task *task;
	struct job job;
	int err_told[3]; /* the task's own: of taking buckets back, of making them free, and of times of reads */
};

void discards_init(struct discards *d);
void discards_destroy(struct discards *d);
int discards_start(struct allocator *a);
/* End the task. */
void discards_stop(struct allocator *a);
/* What can become free now does; from then on the task works only when somebody waits for a bucket. */
void discards_rest(struct allocator *a);
/* Has it worked since it was to rest, or since the last call? Waits until it rests again. */
bool discards_stirred(struct allocator *a);
void discards_kick(struct allocator *a);
/* Somebody waits for space: the journal is flushed for what waits for that. discards.lock is held. */
void discards_want(struct discards *d);
/* Tell those who wait for buckets that there may be some. */
void discards_freed(struct allocator *a);
/*
 * Handle what can be handled now. *@waiting_seq: the newest entry that something else must wait for, 0 if nothing must.
 * Returns the number of buckets handled, or an error.
 */
int discards_run(struct allocator *a, uint64_t *waiting_seq);
/*
 * A transaction that makes buckets free, or may have to be made before that: when the journal has space for it, with
 * the watermark of reclaim.
 */
int discards_txn_run(struct allocator *a, const char *name, btree_txn_fn fn, void *ctx);
/*
 * Wait until some bucket of @devs may have become available, after a look at discards.freed_nr that gave @seen. Starts
 * what it takes, with @may_move moving data included. False: nothing is on its way there, or it took too long.
 */
bool discards_wait(struct allocator *a, uint64_t seen, uint64_t devs, bool may_move);
/* What who has waited in vain is told: -ENOSPC, or -EROFS since allocator_refuse(). */
int discards_wait_error(struct allocator *a);

/* --- invalidate.c: part of the discard task --- */

/* Take back buckets with cached data, as many as are wanted. 0 or an error. */
int invalidate_run(struct allocator *a);

/* --- read_times.c --- */

enum { READ_NOTES_NR = 4096, READ_NOTES_MANY = 1024 };

/* Both are changed under the lock. */
struct read_note {
	atomic_uint_fast64_t place; /* device and bucket */
	atomic_uint_fast64_t time;  /* and, in the highest bit, whether it is new: the key doesn't know it */
};
struct read_times {
	struct mutex lock;
	unsigned new_nr;
	bool is_kicked; /* the discard task is to put them into keys */
	struct read_note notes[READ_NOTES_NR];
};
void read_times_init(struct allocator *a);
void read_times_destroy(struct allocator *a);
/* Put what is new into the alloc keys, if it is that many. 0 or an error. One task at a time. */
int read_times_put(struct allocator *a, unsigned new_min);

/* --- gc_gens.c --- */

/* Of each bucket of each device: the generation when a walk began, and of the oldest pointer so far. */
struct generations {
	uint8_t *gens[ALLOC_DEVS_MAX], *oldest[ALLOC_DEVS_MAX];
};

struct gc_gens {
	struct mutex lock;
	struct waitq work;
	bool is_wanted, is_stopping;
	uint64_t clock_last;	/* write clock when it ran last */
	struct generations all; /* while it walks */
	atomic_bool is_walking;
	struct task *task;
	struct job job;
	int err_told; /* the task's own */
};

void gc_gens_init(struct gc_gens *g);
void gc_gens_destroy(struct gc_gens *g);
int gc_gens_start(struct allocator *a);
void gc_gens_stop(struct allocator *a);
/* Look whether it is time to run; it is if @is_wanted. */
void gc_gens_kick(struct allocator *a, bool is_wanted);
/* A key is put, and its node is locked for it. Doesn't wait. */
void gc_gens_commit(struct allocator *a, const struct btree_update *u);
/* All of it, once, now: for the task and tests. 0 or an error. */
int gc_gens_run(struct allocator *a);

/* --- the allocator --- */

/*
 * What the allocator needs of a member, as it was when it was opened: other rooms update the superblock's copies. Only
 * `cursor` and what freespace_init.c keeps change.
 */
struct alloc_dev {
	bool is_member;
	atomic_bool is_writable; /* online, in state rw; ends with allocator_device_leave() */
	bool has_discard;
	uint8_t data_allowed; /* bit = data type */
	uint8_t durability;
	uint8_t group; /* index + 1; 0 none */
	uint64_t first_bucket, bucket_nr;
	uint32_t bucket_sectors;
	uint64_t capacity_sectors;	/* its part of the filesystem's */
	uint64_t btree_reserve;		/* buckets */
	atomic_uint_fast64_t read_step; /* read_times.c */
	atomic_uint_fast64_t cursor;	/* where the next search for a free bucket starts, in freespace */
	/* freespace_init.c: are freespace and need_discard there? */
	atomic_uint index;		     /* enum alloc_index */
	atomic_uint_fast8_t *unindexed;	     /* bit per bucket; NULL where they were there from the start */
	atomic_uint_fast32_t unindexed_txns; /* transactions under way that may leave them alone */
	/* Buckets of superblocks and journal, ascending, [start, end). */
	struct bucket_range {
		uint64_t start, end;
	} * ranges;
	size_t range_nr, range_max;
};

/* --- key_version.c --- */

enum { KEY_VERSIONS_AHEAD = 1 << 16 };

struct key_versions {
	struct mutex lock;
	struct waitq changed;
	atomic_uint_fast64_t used;     /* the highest one; changed under the lock */
	atomic_uint_fast64_t in_entry; /* what the entry made last says */
	uint64_t durable;	       /* what a durable entry says */
	bool is_flushing;
};
/* After an unclean shutdown of an encrypted filesystem, what may have been used is left out. */
void key_versions_init(struct key_versions *v, const struct journal_state *state, bool is_encrypted);
void key_versions_destroy(struct key_versions *v);
/* What the journal entry that is being made says. */
uint64_t key_versions_in_entry(struct key_versions *v);
/* The entry for which that was asked last is durable. */
void key_versions_flushed(struct key_versions *v);

struct allocator {
	struct super *super;
	struct btrees *trees;
	struct journal *journal; /* NULL before allocator_start(), and where there is none */
	struct journal_state *state;
	int (*replicas_mark)(void *ctx, const struct usage_replicas *entry);
	void *ctx;
	const struct report_sink *reports;
	uint64_t seq_first; /* of this mount: everything before is durable */
	atomic_bool is_started;
	uint64_t capacity_sectors;
	unsigned dev_nr;
	struct alloc_dev devs[ALLOC_DEVS_MAX];
	uint64_t group_devs[SB_MEMBERS_MAX]; /* by disk group: its devices */
	unsigned group_nr;
	atomic_uint_fast64_t clock[2];
	struct key_versions versions;
	atomic_uint_fast64_t discards_done, journal_waits, buckets_freed;
	struct counters counters;
	struct open_buckets open;
	struct write_point points[WRITE_POINTS_NR];
	struct node_pool nodes;
	struct discards discards;
	struct evacuation evacuation;
	struct readers readers;
	struct gc_gens gc;
	struct read_times read_times;
	struct quotas *quotas; /* NULL: none are counted */
};

static inline const struct key_context *alloc_kctx(const struct allocator *a) { return &a->super->kctx; }
/* The device, or NULL if there is no such member. */
static inline struct alloc_dev *alloc_dev_of(struct allocator *a, unsigned dev)
{
	return dev < a->dev_nr && a->devs[dev].is_member ? &a->devs[dev] : NULL;
}
/* Is entry @seq durable, as a flush entry or with one after it? */
bool alloc_seq_is_durable(const struct allocator *a, uint64_t seq);
/* Clocks never read 0 (07 §6.3). */
static inline uint64_t alloc_clock(struct allocator *a, unsigned rw)
{
	uint64_t now = atomic_load_explicit(&a->clock[rw], memory_order_relaxed);

	return (now ? now : 1) & ((1ull << LRU_TIME_BITS) - 1);
}
/*
 * What became of work in the background for which nobody waits. An error is reported when it is another than *@told,
 * the last one; not what passes (no memory, no space), nor what ends all writing, which others tell.
 */
void alloc_task_result(struct allocator *a, const char *work, int err, int *told);
/* Buckets that requests with @watermark leave alone (07 §13). */
uint64_t alloc_watermark_reserve(const struct alloc_dev *d, enum watermark watermark);

/* --- freespace_init.c --- */

enum alloc_index {
	ALLOC_INDEX_NONE,    /* triggers leave freespace and need_discard of the device alone, and mark the bucket */
	ALLOC_INDEX_SYNCING, /* they keep them up; what is there of marked buckets may be wrong */
	ALLOC_INDEX_READY,
};

int freespace_init_prepare(struct allocator *a);
/* For the trigger: must the index be kept up for this bucket? Else the bucket is marked. */
bool freespace_init_enter(struct allocator *a, struct btree_txn *txn, unsigned dev, uint64_t bucket);
/* The transaction is over. */
void freespace_init_leave(struct allocator *a, struct alloc_txn *t);
/* May the index be wrong for this bucket? */
bool freespace_init_is_marked(struct allocator *a, unsigned dev, uint64_t bucket);

/* --- keys in transactions (alloc_key.c) --- */

/* The alloc key of a bucket as the transaction sees it; all zero where there is none. 0 or an error. */
int alloc_key_get(struct allocator *a, struct btree_txn *txn, unsigned dev, uint64_t bucket, struct alloc *value);
/* Put it; data_type is what the counts make of it (07 §2.1). */
int alloc_key_put(struct btree_txn *txn, unsigned dev, uint64_t bucket, struct alloc *value, unsigned flags);
/* Where the next @max keys of a btree are, from *@pos to @end, which *@pos is behind then. Their number, or an error.
 */
int alloc_positions_next(struct allocator *a, unsigned btree_id, struct bpos *pos, struct bpos end, struct bpos *found,
			 unsigned max);
/* The key in the btree, outside of transactions. 0 or an error. */
int alloc_key_lookup(struct allocator *a, unsigned dev, uint64_t bucket, struct alloc *value);
/* A key without value: @is_set puts, else deletes. */
int alloc_put_set(struct btree_txn *txn, unsigned btree_id, struct bpos pos, bool is_set);
/*
 * Something that a trigger saw doesn't fit. As long as others may have committed between its reads it is run again;
 * what is still there then is damage: reported, and the transaction fails.
 */
int alloc_inconsistent(struct allocator *a, struct btree_txn *txn, unsigned error_id, struct bkey_ref k,
		       const char *expected, const char *found_fmt, ...) PRINTF_LIKE(6, 7);

/* --- triggers --- */

int trigger_pointers(struct allocator *a, struct btree_txn *txn, const struct btree_update *u);
int trigger_alloc(struct allocator *a, struct btree_txn *txn, const struct btree_update *u);
int trigger_inode(struct allocator *a, struct btree_txn *txn, const struct btree_update *u);
int trigger_reservation(struct allocator *a, struct btree_txn *txn, const struct btree_update *u);
int trigger_reflink_p(struct allocator *a, struct btree_txn *txn, const struct btree_update *u);
/* Alloc keys: what is known only when it is committed (07 §8.8). */
void commit_alloc(struct allocator *a, struct btree_txn *txn, const struct btree_update *u, uint64_t seq);
/* Is the position in freespace covered by a key? 1, 0 or an error. And cover it, or not. */
int freespace_is_covered(struct btree_txn *txn, unsigned dev, uint64_t offset);
int freespace_put(struct btree_txn *txn, unsigned dev, uint64_t offset, bool is_set);

#endif
