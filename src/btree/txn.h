/*
 * Transactions: how btrees change.
 *
 * A transaction is a function that reads keys and puts new ones. btree_txn_run() runs it, commits what it put, all or
 * nothing, and runs it again from the start when something it had read was changed by another in the meantime.
 *
 *	static int touch(struct btree_txn *txn, void *ctx)
 *	{
 *		struct bkey_ref k;
 *		int found = btree_txn_get(txn, BTREE_INODES, pos, BTREE_GET_VISIBLE, &k);
 *		if (found <= 0)
 *			return found ? found : -ENOENT;
 *		...
 *		return btree_txn_put(txn, BTREE_INODES, &new_key, value, 0);
 *	}
 *	err = btree_txn_run(trees, &(struct btree_commit_opts){ .name = "touch" }, touch, &args);
 *
 * Life of a transaction:
 *
 * 1. *Run.* No lock is held. Each read remembers the node it came from, the node's lock sequence number, and what was
 *    found; a read sees the transaction's own puts. The function may not wait for anything but reads, and must be ready
 *    to be run again: it changes nothing but its transaction.
 * 2. *Triggers.* hooks.trigger is called for each update with the old and the new key, and puts more, until none is
 *    left that wasn't triggered; those of the alloc btree come last, once per key (07 §8.1).
 * 3. *Prepare.* hooks.prepare sees the whole transaction, still without locks: what must be durable before the entry
 *    (replicas entries, features), and space.
 * 4. *Lock.* All leaves that were read or will be changed, in the total order (btree, level from the root down,
 *    position), for intent. What was read is validated: a node whose sequence number is the one remembered is
 *    unchanged; else what is in the range that was read is compared. So transactions that touch different keys of one
 *    node don't disturb each other. Keys that are cached (key_cache.c) have locks and versions of their own, and leaves
 *    that have nothing else to do with the transaction aren't locked.
 * 5. *Room.* A leaf too full for what comes: unlock all, split it, go to 4.
 * 6. *Journal.* A reservation, without waiting; else unlock all, wait, go to 4.
 * 7. *Commit.* Write locks, in order; hooks.commit (the journal seq is known: last changes to new keys); keys into the
 *    nodes and the journal; pins; usage deltas; unlock.
 *
 * A run that conflicted is repeated; after BTREE_TXN_OPTIMISTIC_MAX times it runs alone (a gate that commits hold
 * shared is held exclusively), so it ends. Node locks are taken in order or not at all: no deadlock.
 *
 * Write-buffered btrees (lru, backpointers, deleted_inodes, rebalance_work) take *blind* puts: journalled like others,
 * kept in memory, applied sorted and in batches later. Whoever reads such a btree calls btree_write_buffer_flush()
 * first, outside of transactions; a transaction that must decide from one uses btree_txn_get() after that, and
 * validates like every other.
 */
#ifndef KILN_BTREE_TXN_H
#define KILN_BTREE_TXN_H

#include "base/watermark.h"
#include "btree/btree.h"
#include "journal/journal.h"

struct btree_txn;

enum { BTREE_TXN_OPTIMISTIC_MAX = 8 };

enum btree_commit_flags {
	BTREE_COMMIT_NO_SPLIT = 1,    /* put more into a leaf than fits on disk, rather than split: interior commits */
	BTREE_COMMIT_NO_JOURNAL = 2,  /* journal replay: the keys are in the journal already, see btree_replay() */
	BTREE_COMMIT_NO_TRIGGERS = 4, /* derived state is not to be touched: replay, and deleting a whole device */
	/* Reclaim may wait for it: it gets what is kept for reclaim. Other than such commits it passes the gate. */
	BTREE_COMMIT_MAKES_ROOM = 8,
};

struct btree_commit_opts {
	const char *name; /* for the journal (03 §3.3) and statistics; 32 bytes are used */
	enum watermark watermark;
	unsigned flags;
	uint64_t *journal_seq; /* out, may be NULL: where it was committed; unchanged when it put nothing */
	/*
	 * For hooks.prepare: sectors of disk space that this transaction may consume (alloc/reservation.h). NULL: it
	 * consumes none, or may always.
	 */
	void *reservation;
};

/*
 * 0 or what @fn or the commit failed with (never -KILN_E_RESTART). A negative result of @fn aborts: nothing happened.
 * It is validated like a commit: when what @fn read wasn't there at one time, it runs again instead. So @fn may see a
 * name whose inode is gone, say, and fail; the caller never hears of it.
 */
typedef int (*btree_txn_fn)(struct btree_txn *txn, void *ctx);
int btree_txn_run(struct btrees *trees, const struct btree_commit_opts *opts, btree_txn_fn fn, void *ctx);

/* --- inside a transaction --- */

enum btree_get_flags {
	/* In btrees with snapshots: the version that pos.snapshot sees (05 §3.2). Else exactly @pos. */
	BTREE_GET_VISIBLE = 1,
	/* As if the transaction had put nothing. */
	BTREE_GET_BELOW_PUTS = 2,
};

/*
 * Key at a position: 1 with *@k, which stays valid until the transaction ends or is run again; 0 none (a deleted one or
 * a whiteout counts as none, the latter unless VISIBLE is missing); or an error.
 */
int btree_txn_get(struct btree_txn *txn, unsigned btree_id, struct bpos pos, unsigned flags, struct bkey_ref *k);

/*
 * Iterate: as btree_iter_open(), with the transaction's own puts overlaid, and what is passed over remembered for
 * validation. Close it before @fn returns.
 */
void btree_txn_iter_open(struct btree_iter *it, struct btree_txn *txn, unsigned btree_id, struct bpos pos,
			 unsigned flags, uint32_t snapshot);

enum btree_put_flags {
	BTREE_PUT_NO_TRIGGER = 1, /* this one has none: what it implies is done by the caller */
	/* For hooks: told to the trigger with the update, private meaning (alloc: invalidation of a cached bucket). */
	BTREE_PUT_HOOK_FLAG = 1 << 16,
};

/*
 * Put a key at exactly k->p of a leaf, replacing what is there. KEY_DELETED deletes. @k and @value are copied. In
 * extent btrees the caller sees to overlaps: use btree_txn_put_extent(). 0, -ENOMEM, or -KILN_E_INVALID for a key that
 * breaks a rule (a bug in the caller: it is reported).
 */
int btree_txn_put(struct btree_txn *txn, unsigned btree_id, const struct bkey *k, const void *value, unsigned flags);
/*
 * Delete what is visible at @pos (btrees with snapshots, not extents): a whiteout where an ancestor's version would
 * show through, else deleted (05 §3.3).
 */
int btree_txn_delete_visible(struct btree_txn *txn, unsigned btree_id, struct bpos pos);
/* At another level: pointers to nodes. For the btree room and recovery. */
int btree_txn_put_level(struct btree_txn *txn, unsigned btree_id, unsigned level, const struct bkey *k,
			const void *value, unsigned flags);

/*
 * Call @fn in the moment in which this run is committed: all that it read is as it was read, and stays so until @fn
 * returns, because what would change it waits for the locks. Also for a transaction that puts nothing (@seq is 0 then).
 * The same rules as for hooks.committed. Call at most once per run.
 */
void btree_txn_at_commit(struct btree_txn *txn, void (*fn)(void *ctx, uint64_t seq), void *ctx);

/*
 * How many of @nr things that could be transactions of their own this run may do: fewer, but at least one, when a run
 * with more was too big for an entry of the journal. A function that takes fewer than it has says where it got to.
 */
unsigned btree_txn_batch(struct btree_txn *txn, unsigned nr);
/* Memory that lives until the transaction ends or is run again. NULL: none left. */
void *btree_txn_alloc(struct btree_txn *txn, size_t bytes);
struct btrees *btree_txn_trees(const struct btree_txn *txn);
const struct btree_commit_opts *btree_txn_opts(const struct btree_txn *txn);
/*
 * How often it was run before: from BTREE_TXN_OPTIMISTIC_MAX on what contradicts itself is no conflict with others, but
 * damage.
 */
unsigned btree_txn_run_nr(const struct btree_txn *txn);
/* hooks.txn_bytes of memory for the hooks, zero at the start of every run. */
void *btree_txn_hook_data(const struct btree_txn *txn);

/* --- extents (txn_extent.c) --- */

/* Does a key of an extent btree count in bi_sectors (04 §1.7)? */
bool btree_key_is_allocated(unsigned type);

struct btree_extent_change {
	int64_t sectors; /* change of the sum of sizes of keys that count as allocated (04 §1.7), seen from snapshot */
	uint64_t end_offset; /* how far it got: below the end asked for when the transaction would get too big */
};
/*
 * Put an extent (or, with KEY_DELETED and k->size set, make a hole) over whatever is visible in [start, end) from
 * k->p.snapshot: trims and splits what it overlaps, writes whiteouts (05 §4.2, §4.3; 06 §5.2), merges with neighbours
 * where the key type's merge allows. May stop early, at change->end_offset: put what is left in another transaction.
 * Works on extents, reflink and freespace. @change may be NULL where the key can't be stopped early (freespace).
 */
int btree_txn_put_extent(struct btree_txn *txn, unsigned btree_id, const struct bkey *k, const void *value,
			 struct btree_extent_change *change);

/* --- what the rooms above fill in --- */

/* An update as hooks see it. */
struct btree_update {
	unsigned btree_id, level;
	bool is_root;	     /* pointer to a root (position SPOS_MAX, level = root's level + 1) */
	unsigned flags;	     /* btree_put_flags */
	struct bkey_ref old; /* what is in the btree; type KEY_DELETED when nothing */
	struct bkey_ref new; /* type KEY_DELETED when it goes away */
	void *new_value;     /* hooks.trigger and hooks.commit may change bytes of it in place */
};

struct btree_hooks {
	size_t txn_bytes; /* btree_txn_hook_data() */
	/* Put what follows from @u; called without locks, once per update and run. 0 or an error. */
	int (*trigger)(void *ctx, struct btree_txn *txn, const struct btree_update *u);
	/* Everything is known but the journal seq. May wait (superblock writes). 0 or an error. */
	int (*prepare)(void *ctx, struct btree_txn *txn);
	/* For each update, locks held, @seq is where it goes. Must not wait, allocate or fail. */
	void (*commit)(void *ctx, struct btree_txn *txn, const struct btree_update *u, uint64_t seq);
	/* Once, locks and reservation still held: usage deltas for @seq. Must not wait but for short mutexes. */
	void (*committed)(void *ctx, struct btree_txn *txn, uint64_t seq);
	/* A run is over without commit: give back what hook data holds. */
	void (*aborted)(void *ctx, struct btree_txn *txn);
	void *ctx;
};

/*
 * Commit hook: sees every committed key in the order of commits to its node, locks held. For the simulator's model and
 * online repair. One at a time. Set while nothing commits.
 */
struct btree_watch {
	void (*committed)(void *ctx, uint64_t seq, const struct btree_update *u);
	void *ctx;
};

/* --- going read-write --- */

struct btrees_write_opts {
	struct journal *journal; /* NULL with a backend in memory */
	struct btree_hooks hooks;
	bool has_txn_names; /* option journal_transaction_names: log names and overwritten keys */
	/* Mask of btrees whose keys are cached (key_cache.c): neither extents nor write-buffered ones. */
	uint32_t cached_btrees;
	unsigned csum_type; /* of nodes written */
	uint32_t version;   /* bset.version */
	/*
	 * Encrypted, and not cleanly unmounted: what lies behind the end of a node's log may be a set that was
	 * encrypted with the nonce that the next one would get. So nodes from before are rewritten rather than appended
	 * to.
	 */
	bool must_rewrite_old;
	/*
	 * Nodes became so wrong that nothing may be written any more (write error on all replicas). Called once. When
	 * it returns, the journal must have been refused: what is lost in memory is pinned no longer from then on.
	 */
	void (*failed)(void *ctx, int err);
	void *ctx;
};
/* Start the tasks that write nodes and finish interior updates. Before that, all puts fail with -EROFS. */
int btrees_start_write(struct btrees *trees, const struct btrees_write_opts *opts);
void btrees_set_watch(struct btrees *trees, const struct btree_watch *watch); /* NULL: none */
/*
 * Put every overlay key into its node (03 §8.3, §12.4 of 02): interior levels first, the highest level first, then
 * leaves in order; not journalled, no triggers, the original seq is what nodes pin. Afterwards the overlay is empty.
 */
int btrees_replay(struct btrees *trees);
/*
 * Write back everything: write buffer, dirty nodes, interior updates, until a round changes nothing.
 * It goes on as long as others commit; for a clean shutdown, nobody does any more. 0 or an error.
 */
int btrees_flush_all(struct btrees *trees);
/* Stop the tasks. After an error nothing more is written; else btrees_flush_all() was called. */
void btrees_stop_write(struct btrees *trees);
/* Apply pending write-buffer updates. Waits; not inside transactions. 0 or an error. */
int btree_write_buffer_flush(struct btrees *trees);
/*
 * Rewrite the node at @pos to a new place (moving it off a bucket, or an old one to a new form), if it is at the device
 * and sector of @at (NULL: wherever it is). It has left its old place when the interior update is finished, a little
 * later. -ENOENT: there is no such node.
 */
int btree_node_rewrite(struct btrees *trees, unsigned btree_id, unsigned level, struct bpos pos,
		       const struct extent_ptr *at);
/* Until all nodes that were rewritten before have left their old places. */
void btree_rewrites_settle(struct btrees *trees);

struct btrees_write_stats {
	uint64_t commits, restarts, splits, merges, rewrites, roots_raised;
	uint64_t nodes_written, sets_appended, bytes_written;
	uint64_t nodes_dirty, write_buffer_keys, cached_keys, cached_keys_dirty;
};
void btrees_write_stats(struct btrees *trees, struct btrees_write_stats *stats);
/* Add what its background does to @list. */
void btrees_jobs(struct btrees *trees, struct job_list *list);

#endif
