/*
 * A namespace that can be written, over btrees in memory, without journal and space: what the tests of the write side
 * stand on. Names that collide in every directory come with it.
 */
#ifndef KILN_TESTS_NAMESPACE_WORLD_H
#define KILN_TESTS_NAMESPACE_WORLD_H

#include <stdatomic.h>

#include "btree/txn.h"
#include "namespace/change.h"

struct world {
	struct key_context kctx;
	struct super super;
	struct sb_disk sb;
	struct btree_memory *memory;
	struct btrees *trees;
	struct data *data;
	struct namespace *ns;
	atomic_int inode_nr; /* what the counter of inodes would say */
	atomic_uint reports, last_id;
	struct report_sink sink;
	bool has_snapshot;
};

/* A fresh filesystem whose directories hash with CRC-32C. */
void world_open(struct world *w);
void world_close(struct world *w);
/*
 * Make a snapshot of subvolume 1, subvolume WORLD_SNAPSHOT, that can be written as well (it has no name). Once, while
 * nothing is held; what is there goes to an interior snapshot.
 */
enum { WORLD_SNAPSHOT = 2 };
void world_take_snapshot(struct world *w);
/* Close and open the namespace alone, as after a crash: what is in memory only is forgotten. */
void world_reopen_namespace(struct world *w);

extern const struct object world_root;

/*
 * Names of one length whose hashes differ by an exclusive or of @delta (below 4) whatever the seed: CRCs are linear. So
 * they share one or neighbouring slots in every directory. @type: -1 for dirents, else of xattrs.
 */
enum { NAME_LEN = 12 };
void world_colliding_names(int type, unsigned nr, char (*names)[NAME_LEN + 1]);

/* Check every relation of 04 §11 between the keys that each subvolume sees; fails the test where one is broken. */
void world_check(struct world *w);
/* Type of the key in a slot: KEY_DELETED when there is none. */
unsigned world_slot_type(struct world *w, unsigned btree_id, uint64_t inum, uint64_t slot);
/* Number of keys of an inode in a btree, of any type. */
unsigned world_key_nr(struct world *w, unsigned btree_id, uint64_t inum);
/* Change an inode behind the namespace's back. */
void world_inode_edit(struct world *w, uint64_t inum, void (*edit)(struct inode *inode));
void world_put(struct world *w, unsigned btree_id, const struct bkey *k, const void *value);

#endif
