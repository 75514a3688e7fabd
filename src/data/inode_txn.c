/*
 * Inodes in transactions: what the data and namespace rooms share. Declared in write.h.
 *
 * All changes of an inode are made to the version of the snapshot that is written to: an inherited one is read through
 * its ancestor and put at the snapshot itself, where it hides the ancestor's (05 §3.3). Legacy forms become inode_v3
 * on the way (04 §1.13).
 */
#include <errno.h>

#include "data/write.h"

static bool key_is_inode(unsigned type) { return type == KEY_INODE || type == KEY_INODE_V2 || type == KEY_INODE_V3; }

int inode_txn_get(struct btree_txn *txn, uint64_t inum, uint32_t snapshot, struct inode *inode)
{
	struct bkey_ref k;
	int ret = btree_txn_get(txn, BTREE_INODES, BPOS(0, inum, snapshot), BTREE_GET_VISIBLE, &k);

	if (ret < 0)
		return ret;
	if (!ret || !key_is_inode(k.k.type))
		return -ENOENT;
	if (inode_unpack(k, inode, NULL))
		return -EIO;
	inode->snapshot = snapshot;
	return 0;
}

int inode_txn_put(struct btree_txn *txn, const struct inode *inode)
{
	uint8_t value[INODE_V3_BYTES_MAX];
	struct bkey k = { .p = BPOS(0, inode->inum, inode->snapshot), .type = KEY_INODE_V3 };

	k.value_u64s = (uint8_t)(inode_pack(inode, value) / 8);
	return btree_txn_put(txn, BTREE_INODES, &k, value, 0);
}
