/*
 * Writes btrees, for tests: from sorted keys to nodes on disk, in every shape that a reader must understand.
 *
 * Nodes get several sets, with older versions of keys and deleted ones in the earlier sets; formats that some keys
 * don't fit, so that packed and unpacked keys mix; and, if wanted, parts of the interior that exist only as journal
 * keys, over pointers that lead nowhere.
 *
 * Nodes are handed to a callback that finds a place for them, so that it serves trees in memory as well as images.
 */
#ifndef KILN_TESTS_TREE_BUILDER_H
#define KILN_TESTS_TREE_BUILDER_H

#include "base/clock.h"
#include "btree/btree.h"

struct tree_builder {
	/* What to write. */
	uint64_t magic;
	uint16_t version; /* of sets */
	unsigned csum_type;
	const struct crypt_key *key; /* for MAC types */
	uint32_t node_bytes, block_bytes;
	unsigned keys_per_node;	   /* at most, as long as they fit */
	unsigned sets_per_node;	   /* at most */
	unsigned level_min;	   /* height of the tree, at least */
	bool has_history;	   /* overwritten and deleted keys in earlier sets */
	bool has_narrow_formats;   /* formats made for some of the keys only */
	bool has_interior_overlay; /* some pointers are only in the journal */
	struct rng rng;
	/* Find a place for a node, store it, and fill in the pointers. */
	void (*place)(void *ctx, const void *node, size_t bytes, struct btree_ptr *ptr);
	void *ctx;

	/* Journal keys, to be given to btrees_set_overlay() (which owns them then); NULL: none. */
	struct overlay_builder *overlay;

	/* private */
	unsigned btree_id;
	struct arena_block *arena;
};

/* A root that was written; its value lives as long as the builder. */
struct built_root {
	struct bkey_ref key;
	unsigned level;
};

/* Keys' values are not copied and must live until the end of the call. Keys ascend. */
struct built_root tree_build(struct tree_builder *b, unsigned btree_id, const struct bkey_ref *keys, size_t nr);
/* Add a journal key (copied). */
void tree_overlay_add(struct tree_builder *b, unsigned btree_id, unsigned level, uint64_t seq, uint32_t offset,
		      const struct bkey_ref *k);
/* Memory that lives as long as the builder. */
void *tree_builder_alloc(struct tree_builder *b, size_t bytes);
void tree_builder_free(struct tree_builder *b);

/* A node in its making, for tests that want a certain one. */
struct node_writer {
	const struct tree_builder *b;
	uint8_t *buf; /* node_bytes, zeroed by node_writer_begin() */
	size_t end;   /* of the last set, rounded up to the block: sectors_written */
	uint64_t seq;
	struct bkey_format format;
};
void node_writer_begin(struct node_writer *w, const struct tree_builder *b, uint8_t *buf, unsigned btree_id,
		       unsigned level, struct bpos min_key, struct bpos max_key, const struct bkey_format *format,
		       uint64_t seq);
/* Append a set. Returns false when it doesn't fit; the node is as before then. */
bool node_writer_set(struct node_writer *w, uint64_t journal_seq, const struct bkey_ref *keys, size_t nr);
/* The pointer key for a node that was placed at @ptr's pointers. */
struct bkey_ref btree_ptr_key(struct tree_builder *b, struct bpos max_key, const struct btree_ptr *ptr);

#endif
