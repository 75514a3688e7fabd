/*
 * Btrees, read side: roots, node cache, journal overlay, iterators.
 *
 * The btree room knows keys and bytes, not what they mean. Nodes come from a *tree backend*; the snapshot tree is an
 * interface that `namespace` fills in. A node in the cache is all its sets merged: one sorted index of packed keys. Who
 * reads one holds a reference to it, and its lock for as long as it takes to copy a key.
 *
 * Journal keys (03 §8) lie over the nodes at every level: at equal position the journal key wins, and a deleted one
 * hides.
 */
#ifndef KILN_BTREE_BTREE_H
#define KILN_BTREE_BTREE_H

#include "base/background.h"
#include "base/report.h"
#include "base/watermark.h"
#include "format/btree_node.h"
#include "format/btrees.h"
#include "format/extent.h"
#include "format/key_types.h"

struct btrees;
struct btree_node;
struct btree_node_reserve;

struct btree_bad_replica {
	unsigned btree_id, level;
	struct bpos pos; /* of the node */
	struct extent_ptr ptr;
	int err;
	bool has_served; /* another replica */
};

/* Where nodes come from. Filled in by `engine` for disks; tests use memory. */
struct btree_backend {
	/*
	 * Read the first @bytes of the node at @p->ptrs[@replica] into @buf (io_buffer_alloc'ed). 0 or -errno;
	 * -ENODEV: that device isn't there.
	 */
	int (*read)(void *ctx, const struct btree_ptr *p, unsigned replica, void *buf, size_t bytes);
	/*
	 * Which replica to read next, of those not in the mask @tried, which aren't all. NULL: in their order. With
	 * locks held.
	 */
	unsigned (*replica_choose)(void *ctx, const struct btree_ptr *p, uint32_t tried);
	/* Name of the device of that replica, for reports. */
	const char *(*device_name)(void *ctx, unsigned dev);
	/* A replica was found bad, unless its device isn't there. Called with locks held. May be NULL. */
	void (*replica_bad)(void *ctx, const struct btree_bad_replica *bad);

	/* --- writing; all NULL where nothing is written --- */

	/*
	 * Have room for @nr whole nodes at hand, so that node_alloc() can't fail. Called without locks; may wait for
	 * space, but not with WATERMARK_RECLAIM, as others wait for who has that. Where space is short they have no
	 * more copies than are left of @replaced, which they take the place of (NULL: all). 0 with *@reserve, or
	 * -ENOSPC, -EROFS.
	 */
	int (*reserve)(void *ctx, unsigned nr, const struct btree_ptr *replaced, enum watermark watermark,
		       struct btree_node_reserve **reserve);
	/* Have nodes of this reserve at least as many copies as are left of @p? With locks held. NULL: always. */
	bool (*keeps_copies)(void *ctx, const struct btree_node_reserve *reserve, const struct btree_ptr *p);
	/* Take one: fills in p->ptrs and p->ptr_nr, all replicas, current generations. Not more than were reserved. */
	void (*node_alloc)(void *ctx, struct btree_node_reserve *reserve, struct btree_ptr *p);
	/* Give back what hasn't been taken of it. */
	void (*reserve_trim)(void *ctx, struct btree_node_reserve *reserve);
	/* Give back what is left of it. The buckets of nodes taken from it may be reused as their keys say from here
	 * on. */
	void (*reserve_put)(void *ctx, struct btree_node_reserve *reserve);
	/*
	 * Write @bytes at byte @offset of the node to all replicas, and wait. *@failed gets a bit for each replica
	 * (index in p->ptrs) that could not be written. 0, or an error when none could, or too few.
	 */
	int (*write)(void *ctx, const struct btree_ptr *p, const void *buf, size_t offset, size_t bytes,
		     unsigned *failed);
	/*
	 * Would a new node have more copies than are left of this one? Then it isn't appended to. With locks held.
	 * NULL: never.
	 */
	bool (*lacks_copies)(void *ctx, const struct btree_ptr *p);
	/*
	 * A node that nothing points at any more, neither here nor in any journal entry that could be replayed: only
	 * backends without journal need it, to free the space at once. NULL otherwise.
	 */
	void (*node_free)(void *ctx, const struct btree_ptr *p);
	/*
	 * Something was committed, by somebody who may wait for space, and as it stands @nodes may have to be replaced
	 * when they are written: where room for so many and some more is lacking, wait for who makes it. Called without
	 * locks. NULL: there always is enough.
	 */
	void (*room_wait)(void *ctx, uint64_t nodes);
	void *ctx;
};

/*
 * A backend in memory (btree_memory.c): nodes in a memory file, published and retired at once; no journal, no triggers.
 * For tests, and for what online check and repair sort. Node size as in @kctx. Nodes are on a device of their own,
 * which the trees' context must know: give btrees_open() btree_memory_context(), which is @kctx and that device.
 */
struct btree_memory;
/* 0 or -ENOMEM. */
int btree_memory_open(const struct key_context *kctx, struct btree_memory **memory);
/* After btrees_close(). NULL is allowed. */
void btree_memory_close(struct btree_memory *memory);
const struct key_context *btree_memory_context(const struct btree_memory *memory);
void btree_memory_backend(struct btree_memory *memory, struct btree_backend *backend);

/* The snapshot tree: is @ancestor the snapshot @id or an ancestor of it? */
struct btree_snapshots {
	bool (*is_ancestor)(void *ctx, uint32_t id, uint32_t ancestor);
	void *ctx;
	/* Does any snapshot descend from @id? May be NULL: every one may have some, which costs lookups. */
	bool (*has_children)(void *ctx, uint32_t id);
};

/*
 * Journal keys on their way to lie over the trees. Of each (btree, level, position) the last key by (seq, offset)
 * counts; the others are dropped every time the memory is full, which then becomes twice what is left. So there are at
 * most twice as many keys in memory as positions, or OVERLAY_KEYS_MIN. Memory is of the kind that can go to a file
 * (base/spill.h).
 */
struct overlay_builder;
struct overlay_key;
enum { OVERLAY_KEYS_MIN = 4096 };

/* @is_secret: the filesystem is encrypted, so what its keys say must not be written to disk. NULL: no memory. */
struct overlay_builder *overlay_builder_new(bool is_secret);
void overlay_builder_free(struct overlay_builder *b); /* NULL is allowed */
/*
 * Add a copy of the unpacked key (header and value, u64s words) at @key, in any order; @offset: order among keys of one
 * @seq. What no lookup can reach is left out. Keys of btree 20 (accounting) are deltas and must not be given here.
 * 0 or -ENOMEM.
 */
int overlay_builder_add(struct overlay_builder *b, unsigned btree_id, unsigned level, uint64_t seq, uint32_t offset,
			const struct bkey_disk *key);

struct overlay_usage {
	size_t keys, keys_max;	      /* now, and at most ever */
	size_t key_bytes, memory_max; /* of the keys now; reserved for keys and their index at most ever */
};
void overlay_builder_usage(const struct overlay_builder *b, struct overlay_usage *usage);

/*
 * Memory of the node cache, for nodes of @node_bytes on disk. A node in memory is its live keys and four bytes per
 * key, of which the smallest has eight. While it is being read there are also the buffer, and two words of 32 bits
 * per key for the merge.
 */
enum { BTREE_NODE_OVERHEAD_BYTES = 16 << 10 };
#define BTREE_NODE_BYTES_MAX(node_bytes)  ((uint64_t)(node_bytes)*3 / 2 + BTREE_NODE_OVERHEAD_BYTES)
#define BTREE_NODE_READ_BYTES(node_bytes) (BTREE_NODE_BYTES_MAX(node_bytes) + 2 * (uint64_t)(node_bytes))
/*
 * Smallest budget: one node at rest and one being read. Any number of tasks make progress with it, because a read waits
 * only for other reads under way, never for a reference. An open iterator holds one node, btree_nodes_walk() one per
 * level; when all that is in memory is held like that, one read at a time goes over the budget: memory is at most
 * max(budget, held nodes + one read). Fixed tables (under 128 KiB, and a thousandth of the budget) and journal keys,
 * which can go to a file, come on top.
 */
#define BTREE_CACHE_BYTES_MIN(node_bytes) (BTREE_NODE_BYTES_MAX(node_bytes) + BTREE_NODE_READ_BYTES(node_bytes))

struct btrees_opts {
	uint64_t memory_bytes; /* budget of the node cache; at least BTREE_CACHE_BYTES_MIN(node size) */
	const struct key_context *kctx;
	uint64_t magic; /* btree_node_magic() */
	uint32_t version_min;
	const struct crypt_key *key;
	struct btree_backend backend;
	const struct report_sink *reports;
	bool (*is_blacklisted)(void *ctx, uint64_t journal_seq); /* 02 §11; NULL: none are */
	void *blacklist_ctx;
};

/*
 * 0; -EINVAL for sizes that can't be, a budget below the minimum among them; -ENOMEM. @opts is copied, what it points
 * at is not.
 */
int btrees_open(const struct btrees_opts *opts, struct btrees **trees);
/* No iterator may be open. */
void btrees_close(struct btrees *trees);
/*
 * Set a root (key: btree_ptr_v2 at SPOS_MAX, copied), before the first read. @is_damaged: there is one, but its key is
 * unusable (@key is not looked at): reads fail. A key that breaks a rule is reported and makes the root damaged. 0, or
 * -EINVAL when there can't be such a btree id.
 */
int btrees_set_root(struct btrees *trees, unsigned id, unsigned level, const struct bkey_ref *key, bool is_damaged);
/* What tasks change that nobody waits for: they do it inside of this, so that it can be paused. */
struct background *btrees_background(struct btrees *trees);
/*
 * Lay journal keys over the trees. Takes @builder over, on error too. Call once, before the first read. 0 or -ENOMEM.
 */
int btrees_set_overlay(struct btrees *trees, struct overlay_builder *builder);
/*
 * The snapshot table can be read only with the trees open: set it later, before other tasks use them. Until then
 * iterators that filter by snapshot get -EINVAL.
 */
void btrees_set_snapshots(struct btrees *trees, struct btree_snapshots snapshots);

struct btrees_usage {
	uint64_t cache_bytes, cache_bytes_max, nodes, hits, misses, evictions, read_retries;
};
void btrees_usage(struct btrees *trees, struct btrees_usage *usage);

/* --- iterators --- */

enum btree_iter_flags {
	BTREE_ITER_ALL_SNAPSHOTS = 1, /* every version; else filter by `snapshot` in btrees that have snapshots */
};

/*
 * An iterator walks the live keys of one btree at one level in ascending order. One task at a time may use it; it holds
 * a reference to a node, so it must be closed.
 *
 * Extents: a position is the end of a range, so to find what covers sector X start at offset X + 1 (02 §8).
 */
struct btree_iter {
	struct btrees *trees;
	unsigned btree_id, level;
	unsigned flags;
	uint32_t snapshot;
	struct bpos pos; /* where the next peek starts; move it with btree_iter_seek() */
	/*
	 * Keys above it are not looked at: set it, to read no more nodes than needed. SPOS_MAX after opening. Its
	 * snapshot doesn't count in an iterator that filters by snapshot.
	 */
	struct bpos end;
	struct bpos damage_min, damage_max; /* after an error: the range that couldn't be read */
	/* private */
	bool is_filtered; /* shows one version per (inode, offset) */
	bool is_at_end;	  /* moved behind the last position there is */
	bool has_leaf;	  /* the members below are set; "leaf" is a node at `level` */
	bool is_leaf_key_loaded;
	bool is_below_puts; /* doesn't see the transaction's own puts */
	bool is_own;	    /* the key returned last is one of these */
	enum { BTREE_CURSORS_LOST, BTREE_CURSORS_BEHIND, BTREE_CURSORS_THERE } cursors; /* against pos */
	struct btree_txn *txn;	 /* its puts are seen too, and what is read is remembered for it; or NULL */
	struct btree_node *leaf; /* referenced; NULL: the empty leaf of a btree without root */
	uint32_t leaf_seq;	 /* of its lock when the cursors were put */
	struct bpos leaf_min, leaf_max;
	uint32_t leaf_idx;			   /* its first key at or after pos */
	struct bkey_ref leaf_key;		   /* that key, once loaded; not when the leaf is unlocked */
	struct overlay_key *overlay, *overlay_end; /* journal keys at or after pos, up to leaf_max */
	uint64_t value[BKEY_VALUE_U64S_MAX];	   /* of the key returned last */
};

void btree_iter_open(struct btree_iter *it, struct btrees *trees, unsigned btree_id, struct bpos pos, unsigned flags,
		     uint32_t snapshot);
/* At another level than the leaves: what `list --nodes` and checks need. */
void btree_iter_open_level(struct btree_iter *it, struct btrees *trees, unsigned btree_id, unsigned level,
			   struct bpos pos);
void btree_iter_close(struct btree_iter *it);
/*
 * First visible key at or after it->pos and not above it->end. 1 with *@k (valid until the next call on @it), 0 at the
 * end, or an error: -EIO and others when a node on the way can't be read, or what stands at a position broke a rule and
 * isn't known. It has been reported once (per node), and damage_min..damage_max is what is lost;
 * btree_iter_skip_damage() goes on behind it. After -ENOMEM nothing is lost: try again.
 *
 * Filtered by snapshot (05 §3.2): per (inode, offset), the key nearest to `snapshot` on the way to its root, unless
 * that is a whiteout. The snapshot of it->pos doesn't count then.
 */
int btree_iter_peek(struct btree_iter *it, struct bkey_ref *k);
/* Go behind the key that the last call, btree_iter_peek(), returned. */
void btree_iter_advance(struct btree_iter *it);
/* After an error of btree_iter_peek(). */
void btree_iter_skip_damage(struct btree_iter *it);
/* Move anywhere; cheap when the target is in the same leaf. */
void btree_iter_seek(struct btree_iter *it, struct bpos pos);

/*
 * The visible key at (inode, offset) in snapshot @pos.snapshot; in btrees without snapshots, the key at exactly @pos.
 * Copies it. 1 found, 0 not, or an error.
 */
struct bkey_copy {
	struct bkey_ref k;
	uint8_t value[BKEY_VALUE_U64S_MAX * 8] __attribute__((aligned(8)));
};
int btree_lookup(struct btrees *trees, unsigned btree_id, struct bpos pos, struct bkey_copy *copy);

/* Depth of a btree: level of its root, or -1 when it is empty (no root). */
int btree_root_level(struct btrees *trees, unsigned btree_id);

/* --- looking at nodes, for tools --- */

struct btree_node_info {
	unsigned btree_id, level;
	struct bpos min_key, max_key;
	struct bkey_format format;
	uint64_t seq;
	unsigned set_nr;
	uint32_t live_u64s, written_sectors, key_nr; /* of the node itself, without journal keys */
	uint32_t bad_key_nr;			     /* keys that break a rule: what they said is lost */
	struct btree_ptr ptr;
};
/*
 * Call @fn for every node of a btree: a node, then what is below it, left to right. Unreadable nodes get @err, and of
 * @info only id, level, bounds, seq and ptr are set. Non-zero from @fn stops and is returned. A damaged root is one
 * call with no pointer (ptr_nr 0).
 */
int btree_nodes_walk(struct btrees *trees, unsigned btree_id,
		     int (*fn)(void *ctx, const struct btree_node_info *info, int err), void *ctx);

#endif
