/*
 * What the files of the btree room share.
 *
 *   overlay.c       journal keys, sorted, by (btree, level)
 *   node.c          a node from its replicas: verify, merge its sets
 *   node_keys.c     the keys of a node in memory, which can be changed
 *   cache.c         nodes in memory: one copy each, within a budget
 *   tree.c          roots, and the way down from one
 *   iter.c          iterators
 *   txn.c           transactions: what they read and put, triggers
 *   commit.c        locking, validation, the journal, putting keys into nodes
 *   interior.c      split, merge, rewrite, new roots
 *   locks.c         the order of node locks, for its checker
 *   key_cache.c     keys that change often, apart from their leaves; and (key_cache_write.c) how they get there
 *   merge.c         joining nodes that have little left
 *   node_write.c    writing dirty nodes back
 *   write_buffer.c  puts to write-buffered btrees, until they are applied
 *   replay.c        journal keys into nodes
 *
 * A node in memory is guarded by its SIX lock: read to look at its keys, intent to keep others from changing it, write
 * to change it. Who remembers the lock's sequence number can tell later whether the node is as it was. Only reading a
 * node waits for a device, and no lock is held over it.
 *
 * Lock order. Readers hold one node lock at a time. Who changes nodes first holds references to all of them, then takes
 * intent locks in the total order (btree, level from the root down, position), and then write locks; the lock of a root
 * comes before those of its nodes, and those of cached keys behind all nodes (locks.c). Mutexes (cache shard, budget,
 * writer) are innermost, and none is taken while another is held; but the write buffer has the journal's below its own.
 */
#ifndef KILN_BTREE_INTERNAL_H
#define KILN_BTREE_INTERNAL_H

#include <stdatomic.h>

#include "base/six.h"
#include "base/spill.h"
#include "base/sync.h"
#include "btree/btree.h"
#include "btree/txn.h"

/* --- overlay.c --- */

struct overlay_key {
	struct bpos p;
	uint8_t btree_id, level;
	atomic_bool is_overwritten; /* the node has something newer, or the same: it doesn't count any more */
	uint32_t offset;	    /* in the entry: order among keys of one entry */
	uint64_t seq;
	union {
		size_t at; /* while they are collected: where the key is in the memory of keys */
		const struct bkey_disk *key;
	};
};

/* Journal keys in order of position: of one (btree, level), or a part of these. */
struct overlay_range {
	struct overlay_key *begin, *end;
};

struct overlay {
	struct spill index; /* of struct overlay_key */
	struct spill bytes; /* headers and values */
	struct overlay_range by_level[BTREE_NR_MAX][BTREE_LEVEL_MAX + 1];
};

/* Takes over @builder, on error too. 0 or -ENOMEM. */
int overlay_init(struct overlay *o, struct overlay_builder *builder);
void overlay_free(struct overlay *o);
/* Is there no key that counts? */
bool overlay_is_empty(const struct overlay *o);
/* Journal keys of a node: the ones at @min..@max, overwritten ones included. */
struct overlay_range overlay_range_get(const struct overlay *o, unsigned btree_id, unsigned level, struct bpos min,
				       struct bpos max);
struct bkey_ref overlay_key_load(const struct overlay_key *k);
/* Take the first key off @range if it doesn't count any more, and the next, ...: is there one that counts? */
static inline bool overlay_range_skip(struct overlay_range *range)
{
	while (range->begin < range->end && atomic_load_explicit(&range->begin->is_overwritten, memory_order_relaxed))
		range->begin++;
	return range->begin < range->end;
}
/* The node (locked for write) has something newer at @pos, or what the journal has. */
void overlay_set_overwritten(const struct overlay *o, unsigned btree_id, unsigned level, struct bpos pos);

/* --- node.c --- */

/* The pointer to a node, and by that its identity. */
struct node_ptr {
	unsigned btree_id, level;
	struct bpos max_key;
	struct btree_ptr ptr; /* ptr_nr > 0 */
};

/*
 * Keys of a node in memory: live ones in ascending order, each position once. They lie in a heap of words that only
 * grows (what is overwritten stays as garbage until the heap is made anew); `offset` is the index.
 *
 * `dirty` is a second index, of what changed since the node was last written: keys that are in `offset` too, and
 * deleted keys, where what a written set says must be hidden. It is the set to be written next.
 *
 * A leaf's key that breaks a rule is a *lost* key: its place is kept, as a header without value, so that nobody takes
 * it for free.
 */
struct node_keys {
	struct bkey_format format;
	uint32_t key_nr, key_max; /* key_nr counts lost ones too */
	uint32_t lost_nr;
	uint32_t live_u64s;
	uint32_t set_nr;
	uint32_t bad_key_nr;
	uint32_t dirty_nr, dirty_max;
	uint32_t dirty_u64s; /* words of the keys in `dirty` */
	uint32_t word_nr, word_max;
	uint32_t *offset; /* of each key in words, with NODE_KEY_* */
	uint32_t *dirty;
	uint64_t *words; /* the keys, packed or not, as they stand on disk */
};

#define NODE_KEY_IS_LOST    0x80000000u
#define NODE_KEY_IS_WRITTEN 0x40000000u /* a written set has something at this position */
#define NODE_KEY_FLAGS	    (NODE_KEY_IS_LOST | NODE_KEY_IS_WRITTEN)

/* Decode and check a pointer key. @k is at the level above the node (for a root: SPOS_MAX). 0 or -KILN_E_INVALID. */
int node_ptr_decode(const struct btrees *trees, unsigned btree_id, unsigned level, struct bkey_ref k,
		    struct node_ptr *p, struct fault *fault);
/*
 * Read a node from the first replica that is good, and report the ones that are not. 0 with *@keys (node_keys_free()
 * them) and *@generation; -EIO or -KILN_E_UNSUPPORTED when there is none; -ENOMEM.
 */
int node_read(struct btrees *trees, const struct node_ptr *p, struct node_keys *keys, uint32_t *generation);

/* --- node_keys.c --- */

void node_keys_free(struct node_keys *keys);
/* Memory of @keys. */
size_t node_keys_bytes(const struct node_keys *keys);
/* Index of the first key at or after @pos; key_nr: none. */
uint32_t node_keys_lower_bound(const struct node_keys *keys, struct bpos pos);
static inline const uint64_t *node_keys_at(const struct node_keys *keys, uint32_t idx)
{
	return keys->words + (keys->offset[idx] & ~NODE_KEY_FLAGS);
}
struct bkey_ref node_keys_get(const struct node_keys *keys, uint32_t idx);
static inline bool node_keys_is_lost(const struct node_keys *keys, uint32_t idx)
{
	return keys->offset[idx] & NODE_KEY_IS_LOST;
}
/*
 * Have room for @key_nr more keys of @u64s words together (as unpacked ones), so that node_keys_set() can't fail. May
 * move everything. 0 or -ENOMEM.
 */
int node_keys_reserve(struct node_keys *keys, uint32_t key_nr, uint32_t u64s);
/* Is there already? */
static inline bool node_keys_has_room(const struct node_keys *keys, uint32_t key_nr, uint32_t u64s)
{
	return keys->key_nr + key_nr <= keys->key_max && keys->dirty_nr + key_nr <= keys->dirty_max &&
	       keys->word_nr + u64s <= keys->word_max;
}
/* Words that @k, put in place of what is there, makes all keys longer. */
uint32_t node_keys_growth(const struct node_keys *keys, const struct bkey *k);
/* Put a key at its position; KEY_DELETED deletes. There is room. */
void node_keys_set(struct node_keys *keys, const struct bkey *k, const void *value);
/* A key for a node that is being built, behind all others, and taken for written. There is room. */
void node_keys_append(struct node_keys *keys, const struct bkey *k, const void *value);
/* Everything is being written: nothing is dirty any more. */
void node_keys_clean(struct node_keys *keys);

/*
 * The keys of a part of a node in order, journal keys laid over: at equal positions the journal's counts, and a deleted
 * one hides. @keys may be NULL: there is no node.
 */
struct keys_walk {
	const struct node_keys *keys;
	uint32_t idx;
	struct overlay_range overlay;
	struct bpos max;
	bool is_lost; /* the key returned last is a lost one */
};
struct keys_walk keys_walk_begin(const struct btrees *trees, unsigned btree_id, unsigned level,
				 const struct node_keys *keys, struct bpos min, struct bpos max);
bool keys_walk_next(struct keys_walk *w, struct bkey_ref *k);

/* --- cache.c --- */

struct btree_node {
	/*
	 * btree_id, level, seq, bounds and the first pointer don't change while the node is in the cache; what else the
	 * pointer says is guarded by `lock`.
	 */
	struct node_ptr id;
	struct btrees *trees;
	enum { NODE_LOADING, NODE_READY, NODE_FAILED } state; /* guarded by the shard's lock, final but for may_retry */
	int err;
	bool may_retry;	       /* NODE_FAILED: who comes next reads it again; guarded by the shard's lock */
	struct six_lock lock;  /* guards the members below, down to `bytes` */
	struct node_keys keys; /* NODE_READY */
	uint32_t generation;
	bool is_retired;       /* replaced: go back to the root */
	bool is_dirty;	       /* on the writer's list, which holds a reference */
	bool is_writing;       /* a set of it is on its way to the disk: it can't be replaced */
	bool is_new;	       /* made since the btrees were opened for writing */
	bool is_unpublished;   /* new: nothing may be appended before the pointer to it is committed */
	uint32_t merge_u64s;   /* most words, and 1, since a merge of it was tried; 0: not tried (merge.c) */
	unsigned write_blocks; /* interior updates that must commit before it may be written */
	uint32_t log_sectors;  /* end of the log, sets on their way to the disk included */
	uint64_t seq_max;      /* newest journal seq of what is dirty */
	struct journal_pin pin, write_pin; /* oldest of what is dirty; of what is being written */
	size_t bytes;			   /* charged to the budget */
	atomic_uint refs;		   /* 0 -> 1 only under the shard's lock */
	bool is_used;			   /* since the clock's hand passed; guarded by the shard's lock */
	struct btree_node *hash_next;
	struct btree_node *clock_next, *clock_prev;
	/* guarded by the writer's lock */
	struct btree_node *dirty_next, *dirty_prev;
	bool is_write_wanted;
	bool is_room_wanted; /* if its log has no room for what is dirty, it is to be replaced */
	bool is_deferred;    /* can't be written now: wait for node_write_kick() */
};

enum { CACHE_SHARD_NR = 16, REPORTED_NR = 4096 };

struct cache_shard {
	struct mutex lock;
	struct waitq loaded; /* a node left NODE_LOADING */
	struct btree_node **buckets;
	struct btree_node *hand; /* of the clock: a ring of all nodes of the shard */
	size_t node_nr;
} __attribute__((aligned(64)));

struct cache {
	struct cache_shard *shards;
	size_t bucket_nr;	 /* per shard, a power of two */
	size_t read_bytes;	 /* reserved for a read under way */
	atomic_uint evict_shard; /* where the next eviction starts */

	struct mutex budget_lock; /* guards the members below */
	struct waitq read_done;	  /* a read under way has ended */
	uint64_t bytes, bytes_max;
	unsigned reads; /* under way */

	atomic_uint_fast64_t hits, misses, evictions, read_retries;
};

int cache_init(struct cache *c, uint64_t bytes_max, size_t node_bytes);
void cache_free(struct cache *c);
/*
 * Getting a node takes two steps, so that the first can be done with the parent locked: what @p says is current then.
 * node_ref() gives a reference (node_put() gives it back) without waiting; NULL: no memory. *@must_load: the caller
 * must go on with node_load(). Then node_load() waits for the node to be there, or reads it; it gives the reference
 * back on error. Errors are node_read()'s; a node that can't be read is remembered, so that it isn't read again.
 */
struct btree_node *node_ref(struct btrees *trees, const struct node_ptr *p, bool *must_load);
int node_load(struct btrees *trees, struct btree_node *node, bool must_load);
void node_put(struct btree_node *node); /* NULL is allowed */
/* One more, for who has one. */
static inline void node_get_again(struct btree_node *node)
{
	atomic_fetch_add_explicit(&node->refs, 1, memory_order_relaxed);
}
/* Nodes that couldn't be read are read again by who comes next. */
void cache_forget_failures(struct btrees *trees);
/* Put a new node into the cache, which has one reference. */
void cache_insert(struct btrees *trees, struct btree_node *node);
/* A node that isn't in the cache yet; NULL: no memory. */
struct btree_node *node_new(struct btrees *trees, const struct node_ptr *p);
/* Free one that never came into it. */
void node_free(struct btree_node *node);
/* The size of a node (locked for intent or write, or new) has changed: charge the difference. */
void cache_recharge(struct btrees *trees, struct btree_node *node);
/* What the pointer to @node, locked for write, says has changed: the log's end, or replicas were given up. */
void cache_set_ptr(struct btrees *trees, struct btree_node *node, const struct btree_ptr *ptr);
/* Evict what is over the budget, as far as that goes. With no lock held. */
void cache_shrink(struct btrees *trees);

/* --- tree.c --- */

struct tree_root {
	struct six_lock lock;
	uint8_t btree_id;
	bool exists;
	bool is_damaged;
	struct node_ptr ptr;
};

/*
 * What has been reported, as hashes, so that a node that is evicted and read again isn't reported again. Open
 * addressing; once it is full, reports can come twice.
 */
struct reported {
	struct mutex lock;
	uint64_t hash[REPORTED_NR];
};

struct write_state; /* node_write.c: what there is only after btrees_start_write() */
struct write_buffer;
struct key_cache;
struct merger;

struct btrees {
	struct btrees_opts opts;
	size_t node_bytes;
	struct tree_root roots[BTREE_NR_MAX];
	struct overlay overlay;
	struct btree_snapshots snapshots;
	struct cache cache;
	struct reported reported;
	struct background background;

	/* Set by btrees_start_write(). */
	struct btrees_write_opts write_opts;
	const struct btree_watch *watch;
	struct write_state *write;	   /* NULL: read-only */
	struct write_buffer *write_buffer; /* NULL: no journal, puts are ordinary */
	struct key_cache *key_cache;	   /* NULL: all keys are in their leaves; stays until the trees are closed */
	struct merger *merger;		   /* NULL: nothing is merged */
};

/* --- locks.c --- */

void root_lock_init(struct btrees *trees, unsigned btree_id);
/* @node's id is set. */
void node_lock_init(struct btree_node *node);
/* Of a cached key. */
void cached_lock_init(struct six_lock *lock);

/* --- key_cache.c, key_cache_write.c --- */

struct cached_key;

struct cached_id {
	struct bpos pos;
	unsigned btree_id;
};

/* What a transaction read in the cache. */
struct cached_read {
	struct cached_key *key; /* referenced; NULL: nothing */
	uint32_t version;
};

/* Memory for what is cached of @btrees (a mask), and then the task that writes it back. Nothing is cached yet. */
int key_cache_open(struct btrees *trees, uint32_t btrees);
int key_cache_start(struct btrees *trees);
/* From here on: no journal key lies over a leaf any more. */
void key_cache_begin(struct btrees *trees);
bool key_cache_is_on(const struct btrees *trees);
/* Stop the task. What is dirty stays, and what is changed after that; in the end it isn't to pin the journal. */
void key_cache_stop(struct btrees *trees);
void key_cache_unpin(struct btrees *trees);
void key_cache_close(struct btrees *trees);
/* Are keys at that level cached? */
bool key_cache_has(const struct btrees *trees, unsigned btree_id, unsigned level);
/*
 * The key at exactly @pos, if there is an entry, copied to *@k and @value. @read (NULL: not wanted) gets a reference:
 * cached_key_put() it.
 */
bool key_cache_read(struct btrees *trees, unsigned btree_id, struct bpos pos, struct bkey_ref *k, uint64_t *value,
		    struct cached_read *read);
/*
 * @k is what a leaf, locked for read, has: make an entry of it if there is none (nor is to be: whiteouts), and copy to
 * *@k and @value, where *@k may be already, what it says. 0 or -ENOMEM.
 */
int key_cache_enter(struct btrees *trees, unsigned btree_id, struct bkey_ref *k, uint64_t *value,
		    struct cached_read *read);
void cached_key_put(struct cached_key *e); /* NULL is allowed */
void cached_key_get_again(struct cached_key *e);
struct six_lock *cached_key_lock(struct cached_key *e);
struct cached_id cached_key_id(const struct cached_key *e);
struct cached_id cached_key_id_of_lock(const struct six_lock *lock);
/* May another one become dirty? Else what changes goes into the leaf, too. */
bool cached_key_may_be_dirty(const struct cached_key *e);
/* For these @e is locked for intent. */
bool cached_key_is_retired(const struct cached_key *e);
uint32_t cached_key_version(const struct cached_key *e);
int cached_key_reserve(struct cached_key *e, unsigned value_u64s); /* so that setting it can't fail; 0 or -ENOMEM */
/* A change, of the same type, that the leaf doesn't get yet: pins @seq (0: nothing to pin). */
void cached_key_set(struct cached_key *e, const struct bkey *k, const void *value, uint64_t seq);
/* The leaf, locked for write, has got it: the entry is clean, or, if it became something else, retired. */
void cached_key_set_in_leaf(struct cached_key *e, const struct bkey *k, const void *value);
/* Have all that is dirty now put into leaves, and wait for it. Returns whether there was any. Not inside transactions.
 */
bool key_cache_flush(struct btrees *trees);
/* After an error: who waits looks again. */
void key_cache_kick(struct btrees *trees);
const struct job *key_cache_job(const struct key_cache *kc);
uint64_t key_cache_key_nr(struct key_cache *kc);
uint64_t key_cache_dirty_nr(const struct key_cache *kc);

/* --- the way down --- */

/* A node, and the range it serves. */
struct tree_place {
	struct btree_node *node; /* referenced; NULL for the empty leaf of a btree without root */
	struct bpos min, max;
};
/*
 * The node at @level whose range holds @pos, locked for read. 1; 0 when the btree has no such level; an error with the
 * lost range in @place. The empty leaf of a btree without root has no node, and its lock is the root's: use
 * tree_leaf_lock(). Holds one reference to a node that has been read at most at any time.
 */
int tree_descend(struct btrees *trees, unsigned btree_id, unsigned level, struct bpos pos, struct tree_place *place);
/* Of a leaf, or NULL for the empty one of @btree_id. */
static inline struct six_lock *tree_leaf_lock(struct btrees *trees, unsigned btree_id, struct btree_node *leaf)
{
	return leaf ? &leaf->lock : &trees->roots[btree_id].lock;
}
/*
 * Child pointers of an interior node that has just been read, journal keys included, must cover its range without gap
 * or overlap (02 §7.2). Reports the first violation.
 */
void tree_children_check(struct btrees *trees, const struct node_ptr *p, const struct node_keys *keys);

/* A name for a node in reports: "extents level 0 4098:8:U32_MAX". */
void node_ptr_to_text(struct strbuf *out, const struct node_ptr *p);
/* Has this kind of thing been reported of this node already? Notes that it has now. */
enum report_kind { REPORT_KIND_REPLICAS, REPORT_KIND_BAD_KEYS, REPORT_KIND_SET, REPORT_KIND_CHILDREN };
bool report_is_new(struct btrees *trees, const struct node_ptr *p, enum report_kind kind);
uint64_t node_ptr_hash(const struct node_ptr *p);

/* --- txn.c --- */

struct txn_update {
	struct btree_update u;
	struct bkey_ref trigger_old; /* what the next trigger is told to be replaced */
	bool has_old;		     /* u.old is known */
	bool is_triggered;
	bool is_buffered;  /* goes to the write buffer */
	bool is_cached;	   /* goes to a cached key, and not to its leaf */
	bool is_in_memory; /* the nodes have it already: interior updates */
};

/*
 * What was read: all that @min..@max holds, of which @hash was made; in a leaf of a btree whose keys are cached only
 * which keys there are. Or one such key.
 */
struct txn_read {
	unsigned btree_id, level;
	struct bpos min, max;
	struct bpos leaf_min, leaf_max; /* of the node, as it was found from the root */
	struct btree_node *node;	/* where it was found, referenced; NULL: the empty leaf, or is_stale */
	struct cached_key *cached;	/* the key, referenced; then there is no node */
	bool is_stale;			/* that node has been replaced */
	bool is_of_cached;		/* the hash is of which keys there are */
	uint32_t seq;			/* of the node's lock, or the version of the cached key */
	uint64_t hash;
};

/* What was found at one place, below the transaction's own puts. */
struct txn_get {
	unsigned btree_id, level;
	struct bpos pos;
	bool is_visible; /* what pos.snapshot sees, else exactly pos */
	int found;
	struct bkey_ref k;
};
/* Between the first read of a key and the last, by the triggers of what was put, others are read. */
enum { TXN_GETS_NR = 16 };

/* A lock that a commit takes. */
enum { LEVEL_ROOT = BTREE_LEVEL_MAX + 1, LEVEL_CACHED };
struct txn_leaf {
	unsigned btree_id, level;  /* LEVEL_ROOT: the root's lock, LEVEL_CACHED: a cached key's; there is no node */
	struct btree_node *node;   /* referenced */
	struct cached_key *cached; /* referenced */
	struct six_lock *lock;
	struct bpos min, max;
	uint64_t seq;	       /* the node's: tells those apart that begin in one place */
	uint32_t key_nr, u64s; /* of what will be put */
	bool is_changed, is_write_locked;
};

/* What a commit must wait for before it can go on. */
struct txn_need {
	enum { NEED_NOTHING, NEED_SPLIT, NEED_ROOT, NEED_JOURNAL } kind;
	struct btree_node *node; /* referenced */
	unsigned btree_id;
	unsigned u64s;
};

struct txn_chunk;

struct btree_txn {
	struct btrees *trees;
	const struct btree_commit_opts *opts;
	struct txn_chunk *chunks; /* memory, the newest first */
	void *hook_data;
	struct txn_update **updates; /* in order of (btree, level descending, position) */
	size_t update_nr, update_max;
	struct txn_read *reads;
	size_t read_nr, read_max;
	struct txn_get *gets; /* TXN_GETS_NR of them, the last ones: get_nr % TXN_GETS_NR is the next */
	size_t get_nr;
	struct txn_leaf *leaves; /* during commit, in lock order */
	size_t leaf_nr, leaf_max, locked_nr;
	unsigned run_nr;      /* it was run before */
	unsigned batch_shift; /* see btree_txn_batch() */
	bool has_batch, is_too_big;
	bool is_exclusive; /* runs alone */
	bool has_cache;	   /* keys were cached when its commit looked for them */
	struct txn_need need;
	/* Called when it is committed, reservation and locks held: btree_txn_at_commit(). */
	void (*committed)(void *ctx, uint64_t seq);
	void *committed_ctx;
	struct btree_node *extra_node; /* to be locked for write too; not referenced */
};

/* The first put of @txn at or after @pos. NULL: none. */
const struct btree_update *txn_update_find(const struct btree_txn *txn, unsigned btree_id, unsigned level,
					   struct bpos pos);
/*
 * @txn has read @min..@max in the leaf where @it stands, which is locked: everything that is there matters to it. @only
 * is what is there, if that is known and one key, else NULL. 0 or -ENOMEM.
 */
int txn_read_note(struct btree_txn *txn, const struct btree_iter *it, struct bpos min, struct bpos max,
		  const struct bkey_ref *only);
/* @txn has read a cached key. Takes over the reference, on error too. 0 or -ENOMEM. */
int txn_cached_note(struct btree_txn *txn, unsigned btree_id, struct bpos pos, struct cached_read read);
/* A leaf that @txn has read from, and @pos lies in: locked for read and referenced. False: none that is still there. */
bool txn_leaf_known(const struct btree_txn *txn, unsigned btree_id, unsigned level, struct bpos pos,
		    struct tree_place *place);
/* What txn_read_note() makes of a range of a leaf, going on from @hash. */
uint64_t txn_range_hash(const struct btrees *trees, unsigned btree_id, unsigned level, const struct btree_node *leaf,
			struct bpos min, struct bpos max, uint64_t hash);
enum { TXN_HASH_BEGIN = 1 };
/* The pointer to a root, of a tree whose root has level @level - 1. */
int txn_put_root(struct btree_txn *txn, unsigned btree_id, unsigned level, const struct bkey_ref *old,
		 const struct bkey *k, const void *value, unsigned flags);
/* A change that the nodes (or a root) in memory have already: it is journalled, and has its triggers run. */
int txn_put_in_memory(struct btree_txn *txn, unsigned btree_id, unsigned level, bool is_root,
		      const struct bkey_ref *old, const struct bkey_ref *new);
/* Keys at one level as of @pos, as the transaction sees them. */
void txn_iter_open_level(struct btree_iter *it, struct btree_txn *txn, unsigned btree_id, unsigned level,
			 struct bpos pos);

/* --- commit.c --- */

/* 0; -KILN_E_RESTART: run it again, after waiting for txn->need; or an error. */
int txn_commit(struct btree_txn *txn);
/* Wait for what kept a commit from going on. No lock is held. 0 or an error. */
int txn_need_wait(struct btree_txn *txn);
/* Words that the keys of a node may take: what a set in an empty node has room for. */
uint32_t node_u64s_max(const struct btrees *trees);

/*
 * A key that goes into its node as it is: not journalled (it has been, in entry @seq, which the caller keeps pinned
 * until this returns), no triggers. For what the write buffer has collected, and for replay.
 */
struct btree_applied_key {
	unsigned btree_id, level;
	struct bkey_ref k;
	uint64_t seq; /* 0: nothing to pin */
	/* The journal key it is. When a commit has overtaken that meanwhile it isn't put any more. NULL: none. */
	const struct overlay_key *overlay;
};
/*
 * Put keys into their nodes, in ascending order of (btree, level descending, position), each position once. Splits
 * nodes; waits; not inside transactions. 0 or an error, after which an unknown part has been put (which may be
 * repeated).
 */
int btree_apply(struct btrees *trees, const struct btree_applied_key *keys, size_t nr);

/* --- interior.c --- */

struct interior_update;

enum interior_kind {
	INTERIOR_SPLIT,	  /* into two or more */
	INTERIOR_REWRITE, /* into as many as it takes */
	INTERIOR_MERGE,	  /* with a sibling, if both are small; else nothing is done */
};
/*
 * Updates commit with what the journal keeps for reclaim. One that isn't urgent waits before it begins, until everybody
 * with this watermark may have room there. 0 or the journal's error.
 */
int interior_journal_wait(struct btrees *trees, enum watermark watermark);
/*
 * Replace @node, which the caller has a reference to. Waits for other interior updates of the btree, or gives up with
 * -EAGAIN if !@can_wait. 0 when it has been replaced, by whomever.
 */
int interior_replace(struct btrees *trees, struct btree_node *node, enum interior_kind kind, enum watermark watermark,
		     bool can_wait);
/* Does @node (referenced) seem to have a neighbour that it can be merged with? */
bool interior_can_merge(struct btrees *trees, struct btree_node *node);
/* Give a btree that has none its first root. 0 when there is one. */
int interior_root_create(struct btrees *trees, unsigned btree_id, enum watermark watermark);
/* Write new nodes, and make them reachable. For the task that does it. */
void interior_update_finish(struct btrees *trees, struct interior_update *update);
struct interior_update *interior_update_next(const struct interior_update *update);

/* --- node_write.c --- */

struct write_stats {
	atomic_uint_fast64_t commits, restarts, splits, merges, rewrites, roots_raised;
	atomic_uint_fast64_t nodes_written, sets_appended, bytes_written;
};

/* Whether it is worth waiting for room for nodes: since when nothing has been written that might make some. {}: no wait
 * yet. */
struct room_hope {
	uint64_t since_ns, done_nr;
};

struct write_state {
	struct mutex lock;	  /* guards the members below */
	struct waitq work;	  /* for the writer */
	struct waitq done;	  /* a set has been written, or a node needn't be */
	struct btree_node *dirty; /* a ring, the longest dirty first */
	size_t dirty_nr, dirty_max, wanted_nr, writing_nr;
	bool writer_is_busy;
	bool is_stopping;
	atomic_int err; /* nothing is written any more */

	struct mutex gate_lock; /* guards the members below */
	struct waitq gate_opened;
	unsigned gate_shared_nr, gate_exclusive_waiting;
	bool gate_is_exclusive;

	struct mutex interior_lock; /* guards the members below */
	struct waitq interior_changed;
	bool is_refused; /* after an error: the journal writes nothing any more either */
	bool interior_is_busy[BTREE_NR_MAX];
	struct interior_update *updates, **updates_end; /* to be finished */
	unsigned update_nr;				/* not finished yet */
	uint64_t updates_submitted, updates_finished;
	bool finisher_is_stopping;

	struct mutex watch_lock; /* one call of the watch at a time */
	struct room_hope hope;	 /* the writer's */
	struct task *writer, *finisher;
	struct job writer_job, finisher_job;
	struct write_stats stats;
};

static inline void stat_add(atomic_uint_fast64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}
/* @node, locked for write, has changed: pin @seq (0: nothing to pin), and put it on the writer's list. */
void node_set_dirty(struct btrees *trees, struct btree_node *node, uint64_t seq);
/* The same for a node that is being replaced: it need not be written. Its pin goes to @pin (or NULL). */
void node_set_retired(struct btrees *trees, struct btree_node *node, struct journal_pin *pin);
/* Ask the writer to write @node, when it is dirty. */
void node_write_want(struct btree_node *node);
/* Wait until no set of @node is on its way to the disk. The caller has a reference, and no lock. */
void node_write_wait(struct btrees *trees, struct btree_node *node);
/* Something that kept nodes from being written is over. */
void node_write_kick(struct btrees *trees);
/* Wait while too much is dirty. */
void node_write_throttle(struct btrees *trees, bool may_wait_for_space);
/* There was no room for nodes: may that change? Not if nothing has been written for some seconds. */
bool room_may_come(struct btrees *trees, struct room_hope *hope);
/* Nothing may be written any more. */
void write_failed(struct btrees *trees, int err);
/*
 * Take the replicas in the mask @failed out of the pointer to a node that nobody else writes or replaces; one must be
 * left. Commits. 0 or an error.
 */
int node_replicas_drop(struct btrees *trees, struct btree_node *node, unsigned failed);
int write_error(struct btrees *trees);
/* It has failed with @err: should it be tried again? Then this has waited, longer each time. *@tries is 0 at first. */
bool write_may_retry(struct btrees *trees, int err, unsigned *tries);
/*
 * btree_txn_run() of what is done to write nodes back: an error of reading, which may pass, is waited out for some
 * seconds. No lock is held. Switch point.
 */
int write_txn_run(struct btrees *trees, const struct btree_commit_opts *opts, btree_txn_fn fn, void *ctx);

/* --- merge.c --- */

/* @node, locked for write, has been written or is new: if it has become small, it is to be merged. */
void merge_want(struct btrees *trees, struct btree_node *node);
int merger_open(struct btrees *trees, struct merger **merger);
/* Wait until there is nothing to be merged. Returns whether there was any. */
bool merger_flush(struct merger *m);
/* Stop its task. NULL is allowed. */
void merger_stop(struct merger *m);
const struct job *merger_job(const struct merger *m);
void merger_close(struct merger *m); /* NULL is allowed */

/* --- write_buffer.c --- */

int write_buffer_open(struct btrees *trees, struct write_buffer **wb);
/* Stop its task. What commits add after that stays in memory. NULL is allowed. */
void write_buffer_stop(struct write_buffer *wb);
void write_buffer_close(struct write_buffer *wb); /* NULL is allowed */
/*
 * Before a commit that is going to add @key_nr keys of @u64s words together (unpacked: header and value). Waits for
 * room, unless @watermark is WATERMARK_RECLAIM, which always gets it. No lock is held. 0, -ENOMEM or the error that
 * keeps the buffer from being applied. What isn't used is given back with write_buffer_unreserve().
 */
int write_buffer_reserve(struct btrees *trees, size_t key_nr, size_t u64s, enum watermark watermark);
void write_buffer_unreserve(struct btrees *trees, size_t key_nr, size_t u64s);
/*
 * In a commit, reservation and locks held; uses up what was reserved for it. Of one position the key with the highest
 * (@seq, @order) counts. Pins @seq. Doesn't wait but for the buffer's mutex, and can't fail.
 */
void write_buffer_add(struct btrees *trees, unsigned btree_id, const struct bkey *k, const void *value, uint64_t seq,
		      uint32_t order);
uint64_t write_buffer_key_nr(const struct write_buffer *wb);
const struct job *write_buffer_job(const struct write_buffer *wb);

#endif
