/*
 * Iterators: the keys of one btree at one level in order, nodes and journal merged, filtered by snapshot if wanted.
 *
 * An iterator stands in one node, its *leaf* (of whatever level it iterates), and holds a reference to it. Within the
 * leaf two cursors run side by side, one over the node's keys and one over the journal's; the smaller key is next, and
 * at equal positions the journal's wins. When both have run out, the next leaf is found by going down from the root
 * again, which costs little next to what a leaf holds, and keeps the number of nodes an iterator holds at one.
 *
 * Invariant: while has_leaf, `pos` is in leaf_min..leaf_max, and the cursors stand at the first keys at or after
 * it, or behind that at the first ones that are live.
 *
 * Positions only grow while it goes forward, so it ends: every key returned or passed over moves `pos` behind it.
 */
#include <errno.h>
#include <string.h>

#include "btree/internal.h"

/* Steps by which a cursor may be moved before a search is cheaper. */
enum { LINEAR_STEPS_MAX = 4 };

/* --- the leaf and its cursors --- */

static void iter_leaf_put(struct btree_iter *it)
{
	node_put(it->leaf);
	it->leaf = NULL;
	it->has_leaf = it->is_leaf_key_loaded = false;
}

static bool iter_has_leaf_key(const struct btree_iter *it) { return it->leaf && it->leaf_idx < it->leaf->keys->key_nr; }

static void iter_leaf_key_load(struct btree_iter *it)
{
	if (it->is_leaf_key_loaded)
		return;
	it->leaf_key = node_keys_get(it->leaf->keys, it->leaf_idx);
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
	it->leaf_idx = it->leaf ? node_keys_lower_bound(it->leaf->keys, it->pos) : 0;
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

/* Find the leaf of it->pos: 1, 0 when there is no such level, or an error with the damage told. */
static int iter_leaf_get(struct btree_iter *it)
{
	struct tree_place place;
	int found = tree_descend(it->trees, it->btree_id, it->level, it->pos, &place);

	if (found < 0)
		iter_set_damage(it, place.min, place.max);
	if (found <= 0)
		return found;
	it->has_leaf = true;
	it->leaf = place.node;
	it->leaf_min = place.min;
	it->leaf_max = place.max;
	iter_cursors_find(it);
	return 1;
}

static void iter_move(struct btree_iter *it, struct bpos pos)
{
	bool is_ahead = bpos_le(it->pos, pos);

	it->pos = pos;
	it->is_at_end = false;
	if (!it->has_leaf)
		return;
	if (bpos_lt(pos, it->leaf_min) || bpos_lt(it->leaf_max, pos))
		iter_leaf_put(it);
	else if (!is_ahead || !iter_cursors_step(it))
		iter_cursors_find(it);
}

/* Go behind @pos. In an iterator that filters, versions below its snapshot are none of its business. */
static void iter_move_behind(struct btree_iter *it, struct bpos pos)
{
	if (bpos_eq(pos, SPOS_MAX)) {
		it->is_at_end = true;
		return;
	}
	pos = bpos_successor(pos);
	if (it->is_filtered)
		pos.snapshot = max(pos.snapshot, it->snapshot);
	iter_move(it, pos);
}

/* Go behind everything that an iterator takes for @pos: all its versions, if it filters. */
static void iter_move_behind_key(struct btree_iter *it, struct bpos pos)
{
	if (it->is_filtered)
		pos.snapshot = UINT32_MAX;
	iter_move_behind(it, pos);
}

/* --- keys --- */

/* What stands at a position: a key, or the place of one that is lost (node.c). */
enum { FOUND_KEY = 1, FOUND_LOST = 2 };

/* First live key at or after it->pos, of any snapshot. FOUND_*, 0 at the end, or an error. */
static int iter_peek_any(struct btree_iter *it, struct bkey_ref *k)
{
	struct bpos end = it->end;

	if (it->is_filtered)
		end.snapshot = UINT32_MAX;
	while (!it->is_at_end && bpos_le(it->pos, end)) {
		if (!it->has_leaf) {
			int found = iter_leaf_get(it);

			if (found <= 0)
				return found;
		}
		bool has_leaf_key = iter_has_leaf_key(it), has_overlay = it->overlay < it->overlay_end;
		if (!has_leaf_key && !has_overlay) {
			if (bpos_le(end, it->leaf_max))
				return 0;
			iter_move(it, bpos_successor(it->leaf_max));
			continue;
		}
		if (has_leaf_key)
			iter_leaf_key_load(it);
		if (has_leaf_key && (!has_overlay || bpos_lt(it->leaf_key.k.p, it->overlay->p))) {
			*k = it->leaf_key;
			if (bpos_lt(end, k->k.p))
				return 0;
			return node_keys_is_lost(it->leaf->keys, it->leaf_idx) ? FOUND_LOST : FOUND_KEY;
		}
		*k = overlay_key_load(it->overlay);
		if (k->k.type != KEY_DELETED)
			return bpos_le(k->k.p, end) ? FOUND_KEY : 0;
		/* It hides what the node has there. */
		if (has_leaf_key && bpos_eq(it->leaf_key.k.p, k->k.p))
			iter_leaf_key_next(it);
		it->overlay++;
	}
	return 0;
}

/* --- for callers --- */

void btree_iter_open(struct btree_iter *it, struct btrees *trees, unsigned btree_id, struct bpos pos, unsigned flags,
		     uint32_t snapshot)
{
	*it = (struct btree_iter){
		.trees = trees,
		.btree_id = btree_id,
		.flags = flags,
		.snapshot = snapshot,
		.is_filtered = !(flags & BTREE_ITER_ALL_SNAPSHOTS) && (btree_flags(btree_id) & BTREE_HAS_SNAPSHOTS),
		.end = SPOS_MAX,
	};
	btree_iter_seek(it, pos);
}

void btree_iter_open_level(struct btree_iter *it, struct btrees *trees, unsigned btree_id, unsigned level,
			   struct bpos pos)
{
	*it = (struct btree_iter){
		.trees = trees,
		.btree_id = btree_id,
		.level = level,
		.flags = BTREE_ITER_ALL_SNAPSHOTS,
		.pos = pos,
		.end = SPOS_MAX,
	};
}

void btree_iter_close(struct btree_iter *it) { iter_leaf_put(it); }

int btree_iter_peek(struct btree_iter *it, struct bkey_ref *k)
{
	const struct btree_snapshots *snapshots = &it->trees->snapshots;
	int found;

	if (it->is_filtered && !snapshots->is_ancestor)
		return -EINVAL;
	while ((found = iter_peek_any(it, k)) > 0 && it->is_filtered) {
		if (k->k.p.snapshot < it->snapshot)
			iter_move(it, BPOS(k->k.p.inode, k->k.p.offset, it->snapshot));
		else if (!snapshots->is_ancestor(snapshots->ctx, it->snapshot, k->k.p.snapshot))
			iter_move_behind(it, k->k.p);
		else if (found == FOUND_KEY && key_type_is_whiteout(k->k.type))
			iter_move_behind_key(it, k->k.p);
		else
			break;
	}
	if (found > 0)
		it->pos = k->k.p;
	if (found != FOUND_LOST)
		return found;
	iter_set_damage(it, k->k.p, k->k.p);
	return -EIO;
}

void btree_iter_advance(struct btree_iter *it) { iter_move_behind_key(it, it->pos); }

void btree_iter_skip_damage(struct btree_iter *it) { iter_move_behind_key(it, it->damage_max); }

void btree_iter_seek(struct btree_iter *it, struct bpos pos)
{
	if (it->is_filtered)
		pos.snapshot = it->snapshot;
	iter_move(it, pos);
}

int btree_lookup(struct btrees *trees, unsigned btree_id, struct bpos pos, struct bkey_copy *copy)
{
	struct btree_iter it;
	struct bkey_ref k;

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
