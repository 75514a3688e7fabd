/*
 * Btrees in memory, for tests: two devices full of nodes that can be damaged, a recorder of reports, random keys, and
 * the model that a btree is compared with.
 */
#ifndef KILN_TESTS_BTREE_FIXTURE_H
#define KILN_TESTS_BTREE_FIXTURE_H

#include <stdatomic.h>

#include "base/sync.h"

#include "seeds.h"
#include "tree_builder.h"

enum { FIXTURE_DEVS = 2, FIXTURE_SLOT_SECTORS = 1024 };

struct stored_node {
	size_t bytes;
	uint8_t *copy[FIXTURE_DEVS];
};

struct fixture {
	struct key_context kctx;
	struct member_geometry members[FIXTURE_DEVS];
	struct tree_builder b;
	unsigned replicas;
	struct stored_node *nodes; /* node i lies at sector (i + 1) * FIXTURE_SLOT_SECTORS of every device */
	size_t node_nr, node_capacity;
	int dev_err[FIXTURE_DEVS]; /* what reading from a device gives */
	atomic_uint reads, reads_at_once, reads_at_once_max;
	atomic_uint bad_replicas;
	/* Reports so far, by level, and the last one. */
	struct mutex reports_lock;
	unsigned reports[REPORT_FATAL + 1];
	uint32_t last_id;
	int last_err;
	char last_device[32], last_position[256];
	struct report_sink sink;
	struct btrees *trees;
};

void fixture_init(struct fixture *f, uint64_t seed, uint32_t node_bytes, uint32_t block_bytes);
/* Open the trees with the builder's journal keys. @memory_bytes 0: plenty. */
void fixture_open(struct fixture *f, uint64_t memory_bytes);
void fixture_build(struct fixture *f, unsigned btree_id, const struct bkey_ref *keys, size_t nr);
void fixture_set_root(struct fixture *f, unsigned btree_id, const struct built_root *root);
void fixture_free(struct fixture *f);
struct btree_backend fixture_backend(struct fixture *f);
/* Index of a node in f->nodes by its pointer. */
size_t fixture_node_idx(const struct btree_ptr *ptr);
/* Compute the checksum of the set at @offset of a stored node anew, after a change. */
void fixture_reseal(struct fixture *f, size_t node_idx, size_t offset);

/* --- model --- */

enum { MODEL_VALUE_U64S_MAX = 12 };

struct model_key {
	struct bkey k;
	uint64_t value[MODEL_VALUE_U64S_MAX];
};

/* Sorted by position, each position once, no deleted ones. */
struct model {
	struct model_key *keys;
	size_t nr, capacity;
};

void model_put(struct model *m, const struct model_key *k);
void model_delete(struct model *m, struct bpos p);
/* Index of the first key at or after @p. */
size_t model_find(const struct model *m, struct bpos p);
struct bkey_ref model_ref(const struct model_key *k);
/* All of them, for tree_build(); free() it. They point into the model. */
struct bkey_ref *model_refs(const struct model *m);
void model_free(struct model *m);

/* A random key for @btree_id: cookies, which no btree has rules for; extents get a size. */
struct model_key random_key(struct rng *rng, unsigned btree_id, uint64_t inode_nr, uint64_t offset_nr,
			    uint32_t snapshot_nr);
void assert_key_equal(const struct bkey_ref *k, const struct model_key *expected);
/*
 * Give the builder journal keys that change @m, at level 0: overwrites, inserts, deletions, each with older versions
 * that don't count. @m becomes what a reader must see.
 */
void random_overlay(struct fixture *f, unsigned btree_id, struct model *m, unsigned changes, uint64_t inode_nr,
		    uint64_t offset_nr, uint32_t snapshot_nr);

#endif
