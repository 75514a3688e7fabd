/*
 * Iterators: the keys of one btree at one level in order, nodes and journal merged, filtered by snapshot if wanted.
 *
 * An iterator stands in one node, its *leaf* (of whatever level it iterates), and holds a reference to it. Within the
 * leaf two cursors run side by side, one over the node's keys and one over the journal's; the smaller key is next, and
 * at equal positions the journal's wins. In a transaction its own puts go before both. When all have run out, the next
 * leaf is found by going down from the root again, which costs little next to what a leaf holds, and keeps the number
 * of nodes an iterator holds at one.
 *
 * The leaf is locked for read only during a call, and what is found is copied out. The next call finds the cursors
 * where they were, if the lock's sequence number tells that nothing has changed; else it searches again. A leaf that
 * has been replaced is let go, and looked for from the root.
 *
 * Invariant: while has_leaf, `pos` is in leaf_min..leaf_max. Once iter_cursors_put() has run, the cursors stand at the
 * first keys at or after it, or behind that at the first ones that are live.
 *
 * Positions only grow while it goes forward, so it ends: every key returned or passed over moves `pos` behind it.
 */
#include <errno.h>
#include <string.h>

#include "btree/internal.h"

/* Steps by which a cursor may be moved before a search is cheaper. */
enum { LINEAR_STEPS_MAX = 4 };

/* --- the leaf and its cursors; all but iter_leaf_put() with the leaf locked --- */

static void iter_leaf_put(struct btree_iter *it)
{
	node_put(it->leaf);
	it->leaf = NULL;
	it->has_leaf = false;
}

static bool iter_has_leaf_key(const struct btree_iter *it) { return it->leaf && it->leaf_idx < it->leaf->keys.key_nr; }

static bool iter_has_overlay(struct btree_iter *it)
{
	struct overlay_range range = { it->overlay, it->overlay_end };
	bool has_overlay = overlay_range_skip(&range);

	it->overlay = range.begin;
	return has_overlay;
}

static void iter_leaf_key_load(struct btree_iter *it)
{
	if (it->is_leaf_key_loaded)
		return;
	it->leaf_key = node_keys_get(&it->leaf->keys, it->leaf_idx);
	it->is_leaf_key_loaded = true;
}

static void iter_leaf_key_next(struct btree_iter *it)
{
	it->leaf_idx++;
	it->is_leaf_key_loaded = false;
}

/* Put both cursors to it->pos, from anywhere in the leaf. */
static void iter_cursors_find(struct btree_iter *it)
{
	struct overlay_range range =
		overlay_range_get(&it->trees->overlay, it->btree_id, it->level, it->pos, it->leaf_max);

	it->overlay = range.begin;
	it->overlay_end = range.end;
	it->leaf_idx = it->leaf ? node_keys_lower_bound(&it->leaf->keys, it->pos) : 0;
	it->is_leaf_key_loaded = false;
}

/* Put both cursors to it->pos, which is ahead of them. Returns false when that takes too many steps. */
static bool iter_cursors_step(struct btree_iter *it)
{
	unsigned steps = 0;

	while (it->overlay < it->overlay_end && bpos_lt(it->overlay->p, it->pos)) {
		if (steps++ == LINEAR_STEPS_MAX)
			return false;
		it->overlay++;
	}
	while (iter_has_leaf_key(it)) {
		iter_leaf_key_load(it);
		if (bpos_le(it->pos, it->leaf_key.k.p))
			break;
		if (steps++ == LINEAR_STEPS_MAX)
			return false;
		iter_leaf_key_next(it);
	}
	return true;
}

static void iter_cursors_put(struct btree_iter *it)
{
	if (it->cursors == BTREE_CURSORS_LOST || (it->cursors == BTREE_CURSORS_BEHIND && !iter_cursors_step(it)))
		iter_cursors_find(it);
	it->cursors = BTREE_CURSORS_THERE;
}

/* --- finding the leaf --- */

/*
 * Versions of the last (inode, offset) are lost, so in an iterator that filters, those behind the damage can't be told
 * to be the nearest.
 */
static void iter_set_damage(struct btree_iter *it, struct bpos min_pos, struct bpos max_pos)
{
	it->damage_min = min_pos;
	it->damage_max = max_pos;
	if (it->is_filtered)
		it->damage_max.snapshot = UINT32_MAX;
}

/* Lock the leaf that is held already. False: it has been replaced, and was let go. */
static bool iter_leaf_relock(struct btree_iter *it)
{
	struct six_lock *lock = tree_leaf_lock(it->trees, it->btree_id, it->leaf);

	six_lock_read(lock);
	if (it->leaf ? it->leaf->is_retired : it->trees->roots[it->btree_id].exists) {
		six_unlock_read(lock);
		iter_leaf_put(it);
		return false;
	}
	if (six_seq(lock) != it->leaf_seq)
		it->cursors = BTREE_CURSORS_LOST;
	it->leaf_seq = six_seq(lock);
	return true;
}

/* Find and lock the leaf of it->pos: 1, 0 when there is no such level, or an error with the damage told. */
static int iter_leaf_lock(struct btree_iter *it)
{
	struct tree_place place;

	if (it->has_leaf && iter_leaf_relock(it))
		return 1;

	bool is_known = it->txn && txn_leaf_known(it->txn, it->btree_id, it->level, it->pos, &place);
	int found = is_known ? 1 : tree_descend(it->trees, it->btree_id, it->level, it->pos, &place);

	if (found < 0)
		iter_set_damage(it, place.min, place.max);
	if (found <= 0)
		return found;
	it->has_leaf = true;
	it->leaf = place.node;
	it->leaf_min = place.min;
	it->leaf_max = place.max;
	it->leaf_seq = six_seq(tree_leaf_lock(it->trees, it->btree_id, it->leaf));
	it->cursors = BTREE_CURSORS_LOST;
	return 1;
}

/* --- moving --- */

/* Set `pos`, which may leave the leaf's range. */
static void iter_pos_set(struct btree_iter *it, struct bpos pos)
{
	if (bpos_lt(pos, it->pos))
		it->cursors = BTREE_CURSORS_LOST;
	else if (it->cursors == BTREE_CURSORS_THERE)
		it->cursors = BTREE_CURSORS_BEHIND;
	it->pos = pos;
	it->is_at_end = false;
}

/* Go behind @pos. In an iterator that filters, versions below its snapshot are none of its business. */
static void iter_pos_set_behind(struct btree_iter *it, struct bpos pos)
{
	if (bpos_eq(pos, SPOS_MAX)) {
		it->is_at_end = true;
		return;
	}
	pos = bpos_successor(pos);
	if (it->is_filtered)
		pos.snapshot = max(pos.snapshot, it->snapshot);
	iter_pos_set(it, pos);
}

/* Go behind everything that an iterator takes for @pos: all its versions, if it filters. */
static void iter_pos_set_behind_key(struct btree_iter *it, struct bpos pos)
{
	if (it->is_filtered)
		pos.snapshot = UINT32_MAX;
	iter_pos_set_behind(it, pos);
}

/* After a move, with the leaf unlocked. */
static void iter_leaf_leave(struct btree_iter *it)
{
	if (it->has_leaf && (bpos_lt(it->pos, it->leaf_min) || bpos_lt(it->leaf_max, it->pos)))
		iter_leaf_put(it);
}

/* --- keys; with the leaf locked --- */

/* What stands at a position: a key, or the place of one that is lost (node.c). */
enum { FOUND_KEY = 1, FOUND_LOST = 2 };

/* First live key of node and journal at the cursors. FOUND_*, or 0: none in this leaf. */
static int iter_key_of_leaf(struct btree_iter *it, struct bkey_ref *k)
{
	for (;;) {
		bool has_leaf_key = iter_has_leaf_key(it), has_overlay = iter_has_overlay(it);

		if (!has_leaf_key && !has_overlay)
			return 0;
		if (has_leaf_key)
			iter_leaf_key_load(it);
		if (has_leaf_key && (!has_overlay || bpos_lt(it->leaf_key.k.p, it->overlay->p))) {
			*k = it->leaf_key;
			return node_keys_is_lost(&it->leaf->keys, it->leaf_idx) ? FOUND_LOST : FOUND_KEY;
		}
		*k = overlay_key_load(it->overlay);
		if (k->k.type != KEY_DELETED)
			return FOUND_KEY;
		/* It hides what the node has there. */
		if (has_leaf_key && bpos_eq(it->leaf_key.k.p, k->k.p))
			iter_leaf_key_next(it);
		it->overlay++;
	}
}

/* Pass over what node and journal have at @pos, where the cursors stand. */
static void iter_leaf_skip(struct btree_iter *it, struct bpos pos)
{
	if (iter_has_overlay(it) && bpos_eq(it->overlay->p, pos))
		it->overlay++;
	if (iter_has_leaf_key(it) && bpos_eq(it->leaf_key.k.p, pos))
		iter_leaf_key_next(it);
}

/* First live key at or after it->pos, the transaction's own puts included. FOUND_*, or 0: none in this leaf. */
static int iter_key(struct btree_iter *it, struct bkey_ref *k)
{
	struct bpos own_from = it->pos;

	for (;;) {
		int found = iter_key_of_leaf(it, k);

		it->is_own = false;
		const struct btree_update *u = it->txn && !it->is_below_puts
						       ? txn_update_find(it->txn, it->btree_id, it->level, own_from)
						       : NULL;

		if (!u || bpos_lt(it->leaf_max, u->new.k.p) || (found && bpos_lt(k->k.p, u->new.k.p)))
			return found;
		struct bpos pos = u->new.k.p;
		if (found && bpos_eq(k->k.p, pos))
			iter_leaf_skip(it, pos);
		*k = u->new;
		it->is_own = true;
		if (k->k.type != KEY_DELETED)
			return FOUND_KEY;
		if (bpos_eq(pos, SPOS_MAX))
			return 0;
		own_from = bpos_successor(pos);
	}
}

/* First key that the iterator shows, up to @end, in this leaf. FOUND_* or 0. Moves `pos`, perhaps out of the leaf. */
static int iter_leaf_peek(struct btree_iter *it, struct bpos end, struct bkey_ref *k)
{
	const struct btree_snapshots *snapshots = &it->trees->snapshots;

	while (!it->is_at_end && bpos_le(it->pos, it->leaf_max)) {
		iter_cursors_put(it);
		int found = iter_key(it, k);

		if (!found || bpos_lt(end, k->k.p))
			return 0;
		if (!it->is_filtered)
			return found;
		if (k->k.p.snapshot < it->snapshot)
			iter_pos_set(it, BPOS(k->k.p.inode, k->k.p.offset, it->snapshot));
		else if (!snapshots->is_ancestor(snapshots->ctx, it->snapshot, k->k.p.snapshot))
			iter_pos_set_behind(it, k->k.p);
		else if (found == FOUND_KEY && key_type_is_whiteout(k->k.type))
			iter_pos_set_behind_key(it, k->k.p);
		else
			return found;
	}
	return 0;
}

/* Copy the key that was found in the leaf, or what the key cache has of it, out of there. 0 or -ENOMEM. */
static int iter_value_take(struct btree_iter *it, struct bkey_ref *k)
{
	bool may_be_cached = !it->is_own && key_cache_has(it->trees, it->btree_id, it->level);
	struct cached_read read;

	if (may_be_cached && !it->txn && key_cache_read(it->trees, it->btree_id, k->k.p, k, it->value, NULL))
		return 0;
	if (may_be_cached && it->txn) {
		int err = key_cache_enter(it->trees, it->btree_id, k, it->value, &read);

		if (err || read.key)
			return err ? err : txn_cached_note(it->txn, it->btree_id, k->k.p, read);
	}
	if (k->k.value_u64s)
		memcpy(it->value, k->value, bkey_value_bytes(&k->k));
	k->value = it->value;
	return 0;
}

/* Take what was found out of the leaf, which is going to be unlocked, and note what was read. */
static int iter_result_take(struct btree_iter *it, struct bpos from, struct bpos end, int found, struct bkey_ref *k)
{
	struct bpos to = bpos_le(it->leaf_max, end) ? it->leaf_max : end;
	int err = 0;

	if (found) {
		to = k->k.p;
		iter_pos_set(it, to);
	}
	if (found == FOUND_KEY)
		err = iter_value_take(it, k);
	if (!err && it->txn) {
		bool is_all = found == FOUND_KEY && it->is_below_puts && bpos_eq(from, to);

		err = txn_read_note(it->txn, it, from, to, is_all ? k : NULL);
	}
	return err ? err : found;
}

/* --- for callers --- */

static void iter_init(struct btree_iter *it, struct btrees *trees, unsigned btree_id, unsigned level, unsigned flags)
{
	/* `value` is big, and needs no beginning. */
	memset(it, 0, offsetof(struct btree_iter, value));
	it->trees = trees;
	it->btree_id = btree_id;
	it->level = level;
	it->flags = flags;
	it->end = SPOS_MAX;
}

void btree_iter_open(struct btree_iter *it, struct btrees *trees, unsigned btree_id, struct bpos pos, unsigned flags,
		     uint32_t snapshot)
{
	iter_init(it, trees, btree_id, 0, flags);
	it->snapshot = snapshot;
	it->is_filtered = !(flags & BTREE_ITER_ALL_SNAPSHOTS) && (btree_flags(btree_id) & BTREE_HAS_SNAPSHOTS);
	btree_iter_seek(it, pos);
}

void btree_iter_open_level(struct btree_iter *it, struct btrees *trees, unsigned btree_id, unsigned level,
			   struct bpos pos)
{
	iter_init(it, trees, btree_id, level, BTREE_ITER_ALL_SNAPSHOTS);
	it->pos = pos;
}

void btree_iter_close(struct btree_iter *it) { iter_leaf_put(it); }

int btree_iter_peek(struct btree_iter *it, struct bkey_ref *k)
{
	struct bpos end = it->end;

	if (it->is_filtered && !it->trees->snapshots.is_ancestor)
		return -EINVAL;
	if (it->is_filtered)
		end.snapshot = UINT32_MAX;
	while (!it->is_at_end && bpos_le(it->pos, end)) {
		int found = iter_leaf_lock(it);

		if (found <= 0)
			return found;
		struct bpos from = it->pos;
		found = iter_leaf_peek(it, end, k);
		found = iter_result_take(it, from, end, found, k);
		six_unlock_read(tree_leaf_lock(it->trees, it->btree_id, it->leaf));
		if (found == FOUND_LOST) {
			iter_set_damage(it, k->k.p, k->k.p);
			return -EIO;
		}
		if (found)
			return found;
		if (it->is_at_end || bpos_le(end, it->leaf_max))
			return 0;
		if (bpos_le(it->pos, it->leaf_max))
			iter_pos_set(it, bpos_successor(it->leaf_max));
		iter_leaf_leave(it);
	}
	return 0;
}

void btree_iter_advance(struct btree_iter *it)
{
	iter_pos_set_behind_key(it, it->pos);
	iter_leaf_leave(it);
}

void btree_iter_skip_damage(struct btree_iter *it)
{
	iter_pos_set_behind_key(it, it->damage_max);
	iter_leaf_leave(it);
}

void btree_iter_seek(struct btree_iter *it, struct bpos pos)
{
	if (it->is_filtered)
		pos.snapshot = it->snapshot;
	iter_pos_set(it, pos);
	iter_leaf_leave(it);
}

int btree_lookup(struct btrees *trees, unsigned btree_id, struct bpos pos, struct bkey_copy *copy)
{
	struct btree_iter it;
	struct bkey_ref k;

	if (key_cache_read(trees, btree_id, pos, &copy->k, (uint64_t *)copy->value, NULL))
		return 1;
	btree_iter_open(&it, trees, btree_id, pos, 0, pos.snapshot);
	it.end = pos;
	int found = btree_iter_peek(&it, &k);
	if (found > 0) {
		copy->k = k;
		copy->k.value = copy->value;
		if (k.k.value_u64s)
			memcpy(copy->value, k.value, bkey_value_bytes(&k.k));
	}
	btree_iter_close(&it);
	return found;
}
