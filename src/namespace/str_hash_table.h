/*
 * Hash tables of names inside of transactions: dirents of a directory, xattrs of an inode (04 §2.2).
 *
 * Open addressing with linear probing over the offsets of one inode's keys, in one snapshot's view. An entry stands at
 * its name's hash or behind it, with no empty slot in between: where an entry goes away that a later one is probed
 * through, a hash_whiteout stays in its place.
 *
 * Dirents of subvolumes belong to the view of one subvolume. In others they are *invisible*: a lookup goes on behind
 * them (as the read side does), and a new entry may be put into their slot, where upstream's lookup finds it, which
 * stops at an invisible entry.
 *
 * Slots are read one by one, by position: transactions that touch different names of a directory don't disturb each
 * other here.
 */
#ifndef KILN_NAMESPACE_STR_HASH_TABLE_H
#define KILN_NAMESPACE_STR_HASH_TABLE_H

#include "btree/txn.h"
#include "format/inode.h"

struct hash_table {
	unsigned btree_id; /* BTREE_DIRENTS or BTREE_XATTRS */
	uint64_t inum;
	uint32_t snapshot;
	uint32_t subvol; /* whose view it is */
	uint64_t seed;
	uint8_t type; /* enum str_hash_type */
	bool is_31bit;
};

/* The table of @owner's dirents or xattrs, changed in the snapshot that @owner says. */
struct hash_table hash_table_of(const struct inode *owner, unsigned btree_id, uint32_t subvol);

struct hash_name {
	uint8_t xattr_type; /* xattrs only */
	const void *name;
	size_t len;
};

/* Slot where the search for @n starts. */
uint64_t hash_table_start(const struct hash_table *t, const struct hash_name *n);
/*
 * Look for @n. 1: found, *@k is the entry (valid as btree_txn_get() says) at *@slot. 0: not there, and *@slot is where
 * it must be put: the first slot without a visible entry. -ENOSPC: no slot is left (a hostile image); or an error.
 */
int hash_table_find(struct btree_txn *txn, const struct hash_table *t, const struct hash_name *n, uint64_t *slot,
		    struct bkey_ref *k);
/*
 * Take the entry at @slot away: a hash_whiteout where a later entry needs the slot, else nothing (or a whiteout over an
 * ancestor's version). Sees what the transaction has put so far, so put the other half of a rename first.
 */
int hash_table_delete(struct btree_txn *txn, const struct hash_table *t, uint64_t slot);

#endif
