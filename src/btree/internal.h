/*
 * What the files of the btree room share.
 *
 *   overlay.c   journal keys, sorted, by (btree, level)
 *   node.c      a node from its replicas: verify, merge its sets
 *   cache.c     nodes in memory: one copy each, within a budget
 *   tree.c      roots, and the way down from one
 *   iter.c      iterators
 *
 * A node in memory never changes once it is loaded, so a reader needs a reference and no lock. Only reading a node
 * waits for a device, and no lock is held over it.
 *
 * Lock order: none is taken while another is held.
 */
#ifndef KILN_BTREE_INTERNAL_H
#define KILN_BTREE_INTERNAL_H

#include <stdatomic.h>

#include "base/spill.h"
#include "base/sync.h"
#include "btree/btree.h"

/* --- overlay.c --- */

struct overlay_key {
	struct bpos p;
	uint8_t btree_id, level;
	uint32_t offset; /* in the entry: order among keys of one entry */
	uint64_t seq;
	union {
		size_t at; /* while they are collected: where the key is in the memory of keys */
		const struct bkey_disk *key;
	};
};

/* Journal keys in order of position: of one (btree, level), or a part of these. */
struct overlay_range {
	const struct overlay_key *begin, *end;
};

struct overlay {
	struct spill index; /* of struct overlay_key */
	struct spill bytes; /* headers and values */
	struct overlay_range by_level[BTREE_NR_MAX][BTREE_LEVEL_MAX + 1];
};

/* Takes over @builder, on error too. 0 or -ENOMEM. */
int overlay_init(struct overlay *o, struct overlay_builder *builder);
void overlay_free(struct overlay *o);
/* Journal keys of a node: the ones at @min..@max. */
struct overlay_range overlay_range_get(const struct overlay *o, unsigned btree_id, unsigned level, struct bpos min,
				       struct bpos max);
struct bkey_ref overlay_key_load(const struct overlay_key *k);

/* --- node.c --- */

/* The pointer to a node, and by that its identity. */
struct node_ptr {
	unsigned btree_id, level;
	struct bpos max_key;
	struct btree_ptr ptr; /* ptr_nr > 0 */
};

/*
 * Content of a node: live keys in ascending order, each position once. One allocation.
 *
 * A leaf's key that breaks a rule is a *lost* key: its place is kept, as a header without value, so that nobody takes
 * it for free.
 */
struct node_keys {
	struct bkey_format format;
	uint32_t key_nr, lost_nr; /* key_nr counts lost ones too */
	uint32_t live_u64s;
	uint32_t set_nr;
	uint32_t bad_key_nr;
	uint32_t *offset; /* of each key in words, in ascending order; NODE_KEY_IS_LOST in some */
	uint64_t words[]; /* the keys, packed or not, as they stand on disk */
};

#define NODE_KEY_IS_LOST 0x80000000u

/* Decode and check a pointer key. @k is at the level above the node (for a root: SPOS_MAX). 0 or -KILN_E_INVALID. */
int node_ptr_decode(const struct btrees *trees, unsigned btree_id, unsigned level, struct bkey_ref k,
		    struct node_ptr *p, struct fault *fault);
/* Memory of @keys. */
size_t node_keys_bytes(const struct node_keys *keys);
/*
 * Read a node from the first replica that is good, and report the ones that are not. 0 with *@keys (free() it),
 * -EIO or -KILN_E_UNSUPPORTED when there is none; -ENOMEM.
 */
int node_read(struct btrees *trees, const struct node_ptr *p, struct node_keys **keys);
/* Index of the first key at or after @pos; key_nr: none. */
uint32_t node_keys_lower_bound(const struct node_keys *keys, struct bpos pos);
struct bkey_ref node_keys_get(const struct node_keys *keys, uint32_t idx);
static inline bool node_keys_is_lost(const struct node_keys *keys, uint32_t idx)
{
	return keys->offset[idx] & NODE_KEY_IS_LOST;
}

/* --- cache.c --- */

struct btree_node {
	struct node_ptr id;
	enum { NODE_LOADING, NODE_READY, NODE_FAILED } state; /* guarded by the shard's lock, final but for -ENOMEM */
	int err;
	struct node_keys *keys; /* NODE_READY */
	size_t bytes;		/* charged to the budget */
	atomic_uint refs;	/* 0 -> 1 only under the shard's lock */
	bool is_used;		/* since the clock's hand passed; guarded by the shard's lock */
	struct btree_node *hash_next;
	struct btree_node *clock_next, *clock_prev;
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
 * The node that @p points at, with a reference that node_put() gives back. Reads it if it isn't there; concurrent
 * callers share one read. Waits. Errors: node_read()'s; a node that can't be read is remembered, so that it isn't read
 * again.
 */
int node_get(struct btrees *trees, const struct node_ptr *p, struct btree_node **node);
void node_put(struct btree_node *node); /* NULL is allowed */

/* --- tree.c --- */

struct tree_root {
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

struct btrees {
	struct btrees_opts opts;
	size_t node_bytes;
	struct tree_root roots[BTREE_NR_MAX];
	struct overlay overlay;
	struct btree_snapshots snapshots;
	struct cache cache;
	struct reported reported;
};

/* A node, and the range it serves. */
struct tree_place {
	struct btree_node *node; /* referenced; NULL for the empty leaf of a btree without root */
	struct bpos min, max;
};
/*
 * The node at @level whose range holds @pos. 1; 0 when the btree has no such level; an error with the lost range in
 * @place. Holds one reference at most at any time.
 */
int tree_descend(struct btrees *trees, unsigned btree_id, unsigned level, struct bpos pos, struct tree_place *place);
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

#endif
