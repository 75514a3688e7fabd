/* Hash tables of names inside of transactions. See str_hash_table.h. */
#include "namespace/str_hash_table.h"

#include <errno.h>
#include <string.h>

#include "format/dirent.h"
#include "format/str_hash.h"
#include "format/xattr.h"

struct hash_table hash_table_of(const struct inode *owner, unsigned btree_id, uint32_t subvol)
{
	return (struct hash_table){
		.btree_id = btree_id,
		.inum = owner->inum,
		.snapshot = owner->snapshot,
		.subvol = subvol,
		.seed = owner->hash_seed,
		.type = owner->str_hash,
		.is_31bit = owner->flags & INODE_31BIT_DIRENT_OFFSET,
	};
}

uint64_t hash_table_start(const struct hash_table *t, const struct hash_name *n)
{
	return t->btree_id == BTREE_DIRENTS ? str_hash_dirent(t->type, t->seed, n->name, n->len, t->is_31bit)
					    : str_hash_xattr(t->type, t->seed, n->xattr_type, n->name, n->len);
}

static unsigned entry_type(const struct hash_table *t) { return t->btree_id == BTREE_DIRENTS ? KEY_DIRENT : KEY_XATTR; }

/* What stands in a slot. */
enum slot_state {
	SLOT_EMPTY,
	SLOT_WHITEOUT,
	SLOT_INVISIBLE, /* an entry of another subvolume's view */
	SLOT_ENTRY,
};

/* Look at a slot: enum slot_state, or an error. *@name of entries points into the key; len 0: can't be decoded. */
static int slot_get(struct btree_txn *txn, const struct hash_table *t, uint64_t slot, struct bkey_ref *k,
		    struct hash_name *name)
{
	int ret = btree_txn_get(txn, t->btree_id, BPOS(t->inum, slot, t->snapshot), BTREE_GET_VISIBLE, k);

	*name = (struct hash_name){ 0 };
	if (ret <= 0)
		return ret < 0 ? ret : SLOT_EMPTY;
	if (k->k.type == KEY_HASH_WHITEOUT)
		return SLOT_WHITEOUT;
	if (k->k.type != entry_type(t))
		return SLOT_EMPTY;

	struct dirent d;
	struct xattr x;
	if (t->btree_id == BTREE_XATTRS) {
		if (!xattr_decode(*k, &x, NULL))
			*name = (struct hash_name){ x.type, x.name, x.name_len };
		return SLOT_ENTRY;
	}
	if (dirent_decode(*k, &d, NULL))
		return SLOT_ENTRY;
	*name = (struct hash_name){ 0, d.folded, d.folded_len };
	return d.type == DIRENT_TYPE_SUBVOL && d.parent_subvol != t->subvol ? SLOT_INVISIBLE : SLOT_ENTRY;
}

static bool names_equal(const struct hash_name *a, const struct hash_name *b)
{
	return a->xattr_type == b->xattr_type && a->len == b->len && (!a->len || !memcmp(a->name, b->name, a->len));
}

int hash_table_find(struct btree_txn *txn, const struct hash_table *t, const struct hash_name *n, uint64_t *slot,
		    struct bkey_ref *k)
{
	bool has_free = false;

	for (uint64_t q = hash_table_start(t, n); q != UINT64_MAX; q++) {
		struct hash_name at;
		int state = slot_get(txn, t, q, k, &at);

		if (state < 0)
			return state;
		/* An xattr's name may be empty (ACLs), a value that can't be decoded has no name at all. */
		if (state == SLOT_ENTRY && at.name && names_equal(&at, n)) {
			*slot = q;
			return 1;
		}
		if (state != SLOT_ENTRY && !has_free) {
			*slot = q;
			has_free = true;
		}
		if (state == SLOT_EMPTY)
			return 0;
	}
	return has_free ? 0 : -ENOSPC;
}

/* Is the slot needed to reach an entry behind it? 1, 0, or an error. */
static int slot_is_needed(struct btree_txn *txn, const struct hash_table *t, uint64_t slot)
{
	for (uint64_t q = slot + 1; q != UINT64_MAX; q++) {
		struct bkey_ref k;
		struct hash_name at;
		int state = slot_get(txn, t, q, &k, &at);

		if (state <= 0)
			return state;
		if (state == SLOT_WHITEOUT)
			continue;
		/* What can't be decoded might hash to anything. */
		if (!at.name || hash_table_start(t, &at) <= slot)
			return 1;
	}
	return 0;
}

int hash_table_delete(struct btree_txn *txn, const struct hash_table *t, uint64_t slot)
{
	struct bpos pos = BPOS(t->inum, slot, t->snapshot);
	int ret = slot_is_needed(txn, t, slot);

	if (ret < 0)
		return ret;
	if (!ret)
		return btree_txn_delete_visible(txn, t->btree_id, pos);
	return btree_txn_put(txn, t->btree_id, &(struct bkey){ .p = pos, .type = KEY_HASH_WHITEOUT }, NULL, 0);
}
