/* What a fresh filesystem contains: subvolume 1, its snapshot, root directory and lost+found (04 §10, 05 §2.5). */
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "format/str_hash.h"
#include "namespace/change_internal.h"

enum { SNAPSHOT_FIRST = UINT32_MAX, SNAPSHOT_TREE_FIRST = 1, LOST_FOUND_INUM = INODE_NR_ROOT + 1 };

struct fresh_args {
	const struct super *super;
	uint64_t now, root_seed, lost_found_seed;
};

static int put_value(struct btree_txn *txn, unsigned btree_id, uint64_t offset, uint8_t type, const void *value,
		     size_t bytes)
{
	struct bkey k = { .p = BPOS(0, offset, 0), .type = type, .value_u64s = (uint8_t)(bytes / 8) };

	return btree_txn_put(txn, btree_id, &k, value, 0);
}

static int put_subvol(struct btree_txn *txn)
{
	uint8_t tree[SNAPSHOT_TREE_BYTES], snapshot[SNAPSHOT_BYTES], subvol[SUBVOLUME_BYTES];

	snapshot_tree_encode(&(struct snapshot_tree){ SUBVOL_ROOT, SNAPSHOT_FIRST }, tree);
	snapshot_encode(&(struct snapshot){ .is_subvol = true, .subvol = SUBVOL_ROOT, .tree = SNAPSHOT_TREE_FIRST },
			snapshot);
	subvolume_encode(&(struct subvolume){ .snapshot = SNAPSHOT_FIRST, .inode = INODE_NR_ROOT }, subvol);
	int err = put_value(txn, BTREE_SNAPSHOT_TREES, SNAPSHOT_TREE_FIRST, KEY_SNAPSHOT_TREE, tree, sizeof(tree));
	if (!err)
		err = put_value(txn, BTREE_SNAPSHOTS, SNAPSHOT_FIRST, KEY_SNAPSHOT, snapshot, sizeof(snapshot));
	if (!err)
		err = put_value(txn, BTREE_SUBVOLUMES, SUBVOL_ROOT, KEY_SUBVOLUME, subvol, sizeof(subvol));
	return err;
}

static int fresh_run(struct btree_txn *txn, void *ctx)
{
	static const char name[] = "lost+found";
	const struct fresh_args *a = ctx;
	struct inode root, lost_found;

	inode_init(a->super, a->now, a->root_seed, &root);
	root.inum = INODE_NR_ROOT;
	root.snapshot = SNAPSHOT_FIRST;
	root.mode = S_IFDIR | 0755;
	root.subvol = SUBVOL_ROOT;
	root.nlink = 1;

	struct hash_table t = hash_table_of(&root, BTREE_DIRENTS, SUBVOL_ROOT);
	uint64_t slot = hash_table_start(&t, &(struct hash_name){ 0, name, sizeof(name) - 1 });
	inode_init(a->super, a->now, a->lost_found_seed, &lost_found);
	lost_found.inum = LOST_FOUND_INUM;
	lost_found.snapshot = SNAPSHOT_FIRST;
	lost_found.mode = S_IFDIR | 0700;
	lost_found.dir = INODE_NR_ROOT;
	lost_found.dir_offset = slot;

	int err = put_subvol(txn);
	if (!err)
		err = inode_txn_put(txn, &root);
	if (!err)
		err = inode_txn_put(txn, &lost_found);
	return err ? err
		   : dirent_txn_put(txn, &t, slot,
				    &(struct dirent){ .type = DIRENT_TYPE_DIR,
						      .inum = LOST_FOUND_INUM,
						      .name = (const uint8_t *)name,
						      .name_len = sizeof(name) - 1 });
}

int namespace_init_fresh(struct btrees *trees, const struct super *super)
{
	struct fresh_args a = {
		.super = super,
		.now = change_time(super),
		.root_seed = random_u64(),
		.lost_found_seed = random_u64(),
	};

	return btree_txn_run(trees, &(struct btree_commit_opts){ .name = "fresh", .watermark = WATERMARK_NORMAL },
			     fresh_run, &a);
}
