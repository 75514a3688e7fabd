/*
 * Inode numbers (04 §1.10), and what every new inode starts with.
 *
 * A number may be used when no key stands at it in any snapshot, or only the inode_generation that its last deletion
 * left: then the new inode goes on from that generation, so that old handles don't fit it, and what deletions leave
 * behind doesn't grow for ever. Numbers are looked for in ascending order from a hint. When as many have been given
 * back as half of those that were passed, the search starts over: numbers stay dense, and each restart is paid for by
 * the deletions before it.
 *
 * Who looks for a number claims it, so that two inodes under construction never get the same; the transaction itself
 * only reads the one position that it writes, and so doesn't conflict with its neighbours.
 */
#include <errno.h>

#include "format/str_hash.h"
#include "namespace/change_internal.h"

enum { INUM_BITS_SHORT = 31, INUM_BITS = 63, RESTART_FREED_MIN = 4096 };

void inum_allocator_init(struct inum_allocator *a, const struct super *super)
{
	unsigned bits = super->options[OPT_INODES_32BIT] ? INUM_BITS_SHORT : INUM_BITS;

	*a = (struct inum_allocator){ .min = INODE_NR_FIRST, .max = 1ull << bits, .hint = INODE_NR_FIRST };
	mutex_init_ranked(&a->lock, LOCK_INODE_NUMBERS);
}

void inum_allocator_destroy(struct inum_allocator *a) { mutex_destroy(&a->lock); }

static bool inum_is_claimed(const struct inum_allocator *a, uint64_t inum)
{
	for (const struct inum_claim *c = a->claims; c; c = c->next)
		if (c->inum == inum)
			return true;
	return false;
}

/* Keys of one number, as the search comes by. */
struct inum_keys {
	uint64_t inum;
	bool is_used;
	uint32_t generation;
};

static void inum_keys_add(struct inum_keys *keys, struct bkey_ref k)
{
	if (k.k.type == KEY_INODE_GENERATION)
		keys->generation = max(keys->generation, inode_generation_decode(k));
	else
		keys->is_used = true;
}

static bool inum_keys_allow(const struct inum_allocator *a, const struct inum_keys *keys, struct inum_claim *claim)
{
	if (keys->is_used || inum_is_claimed(a, keys->inum))
		return false;
	claim->inum = keys->inum;
	claim->generation = keys->generation;
	return true;
}

/* The first free number in [@from, @end). 1, 0, or an error. Lock held. */
static int inum_search(struct namespace *ns, uint64_t from, uint64_t end, struct inum_claim *claim)
{
	const struct inum_allocator *a = &ns->write->inums;
	struct inum_keys keys = { .inum = from };
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_iter_open(&it, ns->trees, BTREE_INODES, BPOS(0, from, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	while ((ret = btree_iter_peek(&it, &k)) && ret != -ENOMEM) {
		if (ret < 0) {
			/* Nobody knows which numbers of an unreadable range are used: all of them. */
			keys = (struct inum_keys){ .inum = it.damage_max.inode ? end : it.damage_max.offset + 1 };
			btree_iter_skip_damage(&it);
			continue;
		}
		uint64_t at = k.k.p.inode ? UINT64_MAX : k.k.p.offset;

		/* The numbers up to this key's are complete, and all but the first of them have no key. */
		while (keys.inum < min(at, end) && !inum_keys_allow(a, &keys, claim))
			keys = (struct inum_keys){ .inum = keys.inum + 1 };
		if (claim->inum || at >= end)
			break;
		inum_keys_add(&keys, k);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	if (ret < 0)
		return ret;
	while (!claim->inum && keys.inum < end && !inum_keys_allow(a, &keys, claim))
		keys = (struct inum_keys){ .inum = keys.inum + 1 };
	return claim->inum != 0;
}

int inum_claim(struct namespace *ns, struct inum_claim *claim)
{
	if (!ns->write)
		return -EROFS;
	struct inum_allocator *a = &ns->write->inums;

	*claim = (struct inum_claim){ 0 };
	mutex_lock(&a->lock);
	if (a->freed_nr >= RESTART_FREED_MIN && a->freed_nr >= (a->hint - a->min) / 2) {
		a->hint = a->min;
		a->freed_nr = 0;
	}
	int ret = inum_search(ns, a->hint, a->max, claim);
	if (!ret) {
		a->freed_nr = 0;
		ret = inum_search(ns, a->min, a->hint, claim);
	}
	if (ret > 0) {
		a->hint = claim->inum + 1;
		claim->next = a->claims;
		a->claims = claim;
	}
	mutex_unlock(&a->lock);
	return ret > 0 ? 0 : ret ? ret : -ENOSPC;
}

void inum_unclaim(struct namespace *ns, struct inum_claim *claim)
{
	struct inum_allocator *a = &ns->write->inums;
	struct inum_claim **at = &a->claims;

	mutex_lock(&a->lock);
	while (*at && *at != claim)
		at = &(*at)->next;
	if (*at)
		*at = claim->next;
	mutex_unlock(&a->lock);
}

int inum_txn_use(struct btree_txn *txn, const struct inum_claim *claim, uint32_t snapshot, struct inode *inode)
{
	struct bkey_ref k;
	int ret = btree_txn_get(txn, BTREE_INODES, BPOS(0, claim->inum, snapshot), 0, &k);

	if (ret < 0)
		return ret;
	if (ret && k.k.type != KEY_INODE_GENERATION)
		return -KILN_E_NOT_FOUND_HERE;
	inode->inum = claim->inum;
	inode->snapshot = snapshot;
	inode->generation = ret ? max(claim->generation, inode_generation_decode(k)) : claim->generation;
	return 0;
}

void inum_freed(struct namespace *ns)
{
	struct inum_allocator *a = &ns->write->inums;

	mutex_lock(&a->lock);
	a->freed_nr++;
	mutex_unlock(&a->lock);
}

void inode_init(const struct super *super, uint64_t now, uint64_t hash_seed, struct inode *inode)
{
	/* Values of the option str_hash; what siphash means depends on the filesystem's age (04 §2.1). */
	enum { STR_HASH_OPTION_CRC32C, STR_HASH_OPTION_CRC64, STR_HASH_OPTION_SIPHASH };
	bool has_new_siphash = super_has_feature(super, SB_FEATURE_NEW_SIPHASH);

	*inode = (struct inode){ .hash_seed = hash_seed };
	inode->atime = inode->ctime = inode->mtime = inode->otime = now;
	switch (super->options[OPT_STR_HASH]) {
	case STR_HASH_OPTION_CRC32C: inode->str_hash = STR_HASH_CRC32C; break;
	case STR_HASH_OPTION_CRC64: inode->str_hash = STR_HASH_CRC64; break;
	default: inode->str_hash = has_new_siphash ? STR_HASH_SIPHASH : STR_HASH_SIPHASH_OLD;
	}
}
