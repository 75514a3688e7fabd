/*
 * Putting extents over extents, in snapshots (05 §4.2, §4.3; 06 §5.2), and deleting what is visible (05 §3.3).
 *
 * A new extent N = [start, end) of snapshot S goes over whatever is visible there from S. Each extent K that it
 * overlaps is in S itself or in an ancestor A of it, and what must remain of K remains in K's own snapshot:
 *
 *	K in A:       |------------------------|            ends at ke
 *	N in S:               |========|
 *	becomes:      |-------|--------|-------|            three pieces in A: for A's other descendants nothing changed
 *	                      |========|                    N in S hides the middle one, having the same end
 *
 * As extents are found by their ends, a piece with an end of its own can become visible in other descendants of A that
 * had hidden K (with a key at ke). They get a whiteout at the new end, unless something hides the piece there already.
 * Where K ends within N, a whiteout in S at ke hides it.
 *
 * Btrees without snapshots are the simple case: K's are all in "S", and nobody descends from anything.
 *
 * Everything here is reads and puts of one transaction; iterators are closed before anything is put.
 */
#include <assert.h>
#include <errno.h>

#include "base/util.h"
#include "btree/internal.h"
#include "btree/txn.h"
#include "format/key_edit.h"

/*
 * Extents that one transaction goes over, at most: each costs up to four puts and their triggers, and all must fit into
 * one journal entry.
 */
enum { EXTENTS_OVERLAPPED_MAX = 8 };

struct extent_put {
	struct btree_txn *txn;
	const struct key_context *kctx;
	const struct btree_snapshots *snapshots;
	unsigned btree_id;
	bool has_snapshots;
	uint64_t inode, start, end; /* what N is put over; end goes down when it is stopped early */
	uint32_t snapshot;
	bool is_hole;
	struct key_buf new;    /* N, which merging lets grow to both sides */
	struct key_buf old;    /* K, ... */
	struct key_buf piece;  /* ... and what is left of it */
	bool is_hidden_by_new; /* the last K: it ends at end, where the put of N is what hides it */
	struct bpos last;      /* its position */
	int64_t sectors;
};

static bool is_ancestor(const struct btree_snapshots *s, uint32_t id, uint32_t ancestor)
{
	return id == ancestor || (s->is_ancestor && s->is_ancestor(s->ctx, id, ancestor));
}

static bool may_have_children(const struct extent_put *p, uint32_t snapshot)
{
	return p->has_snapshots &&
	       (!p->snapshots->has_children || p->snapshots->has_children(p->snapshots->ctx, snapshot));
}

/* Does a key of this type count in an inode's sectors (06 §5.5)? */
bool btree_key_is_allocated(unsigned type)
{
	return type == KEY_EXTENT || type == KEY_RESERVATION || type == KEY_REFLINK_P || type == KEY_INLINE_DATA ||
	       type == KEY_ERROR;
}

static int put_type(struct btree_txn *txn, unsigned btree_id, struct bpos pos, unsigned type)
{
	struct bkey k = { .p = pos, .type = (uint8_t)type };

	return btree_txn_put(txn, btree_id, &k, NULL, 0);
}

/* --- deleting --- */

/*
 * What hides the key at @pos from its own snapshot: a whiteout if the nearest ancestor has a live version there, else
 * nothing. Returns the type of key to put, or -ENOENT when nothing is to be done: there is nothing at @pos.
 */
static int delete_type(struct btree_txn *txn, unsigned btree_id, struct bpos pos)
{
	const struct btree_snapshots *s = &btree_txn_trees(txn)->snapshots;
	struct btree_iter it;
	struct bkey_ref k;
	int type = -ENOENT, found;

	btree_txn_iter_open(&it, txn, btree_id, pos, BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(pos.inode, pos.offset, btree_flags(btree_id) & BTREE_HAS_SNAPSHOTS ? UINT32_MAX : pos.snapshot);
	while ((found = btree_iter_peek(&it, &k)) > 0) {
		if (k.k.p.snapshot == pos.snapshot) {
			type = KEY_DELETED;
		} else if (is_ancestor(s, pos.snapshot, k.k.p.snapshot)) {
			if (!key_type_is_whiteout(k.k.type))
				type = KEY_WHITEOUT;
			break;
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return found < 0 ? found : type;
}

int btree_txn_delete_visible(struct btree_txn *txn, unsigned btree_id, struct bpos pos)
{
	int type = delete_type(txn, btree_id, pos);

	if (type < 0)
		return type == -ENOENT ? 0 : type;
	return put_type(txn, btree_id, pos, (unsigned)type);
}

/* --- other descendants --- */

/* Snapshots of the keys at one end position that descend from @ancestor, ascending. Memory of the transaction. */
struct overriders {
	uint32_t *snapshots;
	size_t nr, max;
};

static int overriders_add(struct extent_put *p, struct overriders *o, uint32_t snapshot)
{
	if (o->nr == o->max) {
		size_t new_max = o->max ? o->max * 2 : 8;
		uint32_t *grown = btree_txn_alloc(p->txn, new_max * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		if (o->nr)
			memcpy(grown, o->snapshots, o->nr * sizeof(*grown));
		o->snapshots = grown;
		o->max = new_max;
	}
	o->snapshots[o->nr++] = snapshot;
	return 0;
}

static int overriders_find(struct extent_put *p, uint64_t offset, uint32_t ancestor, struct overriders *o)
{
	struct btree_iter it;
	struct bkey_ref k;
	int found, err = 0;

	*o = (struct overriders){ 0 };
	if (!may_have_children(p, ancestor))
		return 0;
	btree_txn_iter_open(&it, p->txn, p->btree_id, BPOS(p->inode, offset, 1), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(p->inode, offset, ancestor - 1);
	while (!err && (found = btree_iter_peek(&it, &k)) > 0) {
		if (is_ancestor(p->snapshots, k.k.p.snapshot, ancestor))
			err = overriders_add(p, o, k.k.p.snapshot);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return err ? err : min(found, 0);
}

/*
 * A piece of an extent of @ancestor is about to be put at @new_end, which had only been found at @old_end: descendants
 * that hide it there must not see it now (05 §4.3). Of each branch the topmost one decides for those below.
 */
static int hide_from_overriders(struct extent_put *p, uint32_t ancestor, uint64_t old_end, uint64_t new_end)
{
	struct overriders o;
	int err = overriders_find(p, old_end, ancestor, &o);
	size_t handled = o.nr; /* [handled, nr) of the array are the topmost ones so far */

	/* Ids grow towards the root, so from the end a snapshot comes before its descendants. */
	for (size_t i = o.nr; !err && i--;) {
		struct bpos pos = BPOS(p->inode, new_end, o.snapshots[i]);
		struct bkey_ref k;
		bool is_below = false;

		for (size_t h = handled; h < o.nr && !is_below; h++)
			is_below = is_ancestor(p->snapshots, pos.snapshot, o.snapshots[h]);
		if (is_below)
			continue;
		int found = btree_txn_get(p->txn, p->btree_id, pos, BTREE_GET_VISIBLE, &k);
		if (!found)
			err = put_type(p->txn, p->btree_id, pos, KEY_WHITEOUT);
		else
			err = min(found, 0);
		o.snapshots[--handled] = pos.snapshot;
	}
	return err;
}

/* --- one extent that is overlapped --- */

static int put_piece(struct extent_put *p, uint64_t from, uint64_t to)
{
	uint64_t old_end = p->old.k.p.offset;

	p->piece = p->old;
	key_cut_back(&p->piece, to, p->kctx);
	key_cut_front(&p->piece, from, p->kctx);
	int err = to == old_end ? 0 : hide_from_overriders(p, p->old.k.p.snapshot, old_end, to);
	return err ? err : btree_txn_put(p->txn, p->btree_id, &p->piece.k, p->piece.value, 0);
}

/* K ends within what is put: hide it from S where it ends. */
static int hide_old(struct extent_put *p, struct bpos old)
{
	struct bpos pos = BPOS(p->inode, old.offset, p->snapshot);

	if (old.snapshot != p->snapshot)
		return put_type(p->txn, p->btree_id, pos, KEY_WHITEOUT);
	return btree_txn_delete_visible(p->txn, p->btree_id, pos);
}

static int overlap_one(struct extent_put *p)
{
	uint64_t old_start = bkey_start_offset(&p->old.k), old_end = p->old.k.p.offset;
	uint64_t from = max(old_start, p->start), to = min(old_end, p->end);
	bool has_front = old_start<p->start, has_back = old_end> p->end;
	bool is_inherited = p->old.k.p.snapshot != p->snapshot;
	int err = 0;

	if (btree_key_is_allocated(p->old.k.type))
		p->sectors -= (int64_t)(to - from);
	if (has_front)
		err = put_piece(p, old_start, p->start);
	if (!err && is_inherited && (has_front || has_back))
		err = put_piece(p, from, to);
	if (!err && !is_inherited && has_back) /* N, or nothing, ends where K didn't */
		err = hide_from_overriders(p, p->snapshot, old_end, p->end);
	p->is_hidden_by_new = old_end == p->end && !p->is_hole;
	if (!err && !has_back && !p->is_hidden_by_new)
		err = hide_old(p, p->old.k.p);
	if (!err && has_back)
		err = put_piece(p, p->end, old_end);
	/* A hole has nothing that hides the middle piece. */
	if (!err && p->is_hole && is_inherited && has_back)
		err = put_type(p->txn, p->btree_id, BPOS(p->inode, p->end, p->snapshot), KEY_WHITEOUT);
	return err;
}

/* --- the whole --- */

/* The first extent visible from S that ends above @offset, into p->old. 1, 0, or an error. */
static int find_old(struct extent_put *p, uint64_t offset)
{
	struct btree_iter it;
	struct bkey_ref k;

	if (offset == UINT64_MAX)
		return 0;
	btree_txn_iter_open(&it, p->txn, p->btree_id, BPOS(p->inode, offset + 1, p->snapshot), 0, p->snapshot);
	it.end = BPOS(p->inode, UINT64_MAX, UINT32_MAX);
	int found = btree_iter_peek(&it, &k);
	if (found > 0)
		key_buf_load(&p->old, k);
	btree_iter_close(&it);
	return found;
}

/* May N and the extent in p->old, which touch at @offset, become one? Not if a descendant has other ideas of the ends.
 */
static int may_merge(struct extent_put *p, uint64_t left_end, uint64_t right_end)
{
	struct overriders o;
	int err = 0;

	if (p->old.k.p.snapshot != p->snapshot)
		return 0;
	err = overriders_find(p, left_end, p->snapshot, &o);
	if (!err && !o.nr)
		err = overriders_find(p, right_end, p->snapshot, &o);
	return err ? err : !o.nr;
}

/* The extent that ends where N starts becomes a part of it. */
static int merge_left(struct extent_put *p)
{
	int found = find_old(p, p->start - 1);

	if (found <= 0 || p->old.k.p.offset != p->start)
		return min(found, 0);
	p->piece = p->old;
	if (!key_merge(&p->piece, key_buf_ref(&p->new), p->kctx))
		return 0;
	int err = may_merge(p, p->start, p->end);
	if (err <= 0)
		return err;
	p->new = p->piece;
	return btree_txn_delete_visible(p->txn, p->btree_id, p->old.k.p);
}

/* N becomes a part of the extent that starts where it ends. */
static int merge_right(struct extent_put *p)
{
	int found = find_old(p, p->end);

	if (found <= 0 || bkey_start_offset(&p->old.k) != p->end)
		return min(found, 0);
	p->piece = p->new;
	if (!key_merge(&p->piece, key_buf_ref(&p->old), p->kctx))
		return 0;
	int err = may_merge(p, p->end, p->old.k.p.offset);
	if (err <= 0)
		return err;
	p->new = p->piece;
	return p->is_hidden_by_new ? hide_old(p, p->last) : 0;
}

static int overlap_all(struct extent_put *p, bool may_stop)
{
	unsigned overlapped = 0, may = may_stop ? btree_txn_batch(p->txn, EXTENTS_OVERLAPPED_MAX) : 0;
	uint64_t at = p->start;
	int found = 0, err = 0;

	while (!err && at < p->end && (found = find_old(p, at)) > 0) {
		at = p->old.k.p.offset;
		if (bkey_start_offset(&p->old.k) >= p->end)
			break;
		if (may_stop && ++overlapped == may && at < p->end) {
			p->end = at;
			key_cut_back(&p->new, at, p->kctx);
		}
		err = overlap_one(p);
		p->last = p->old.k.p;
	}
	return err ? err : min(found, 0);
}

static bool type_can_merge(unsigned type)
{
	const struct key_type *t = key_type(type);

	return t && t->merge;
}

int btree_txn_put_extent(struct btree_txn *txn, unsigned btree_id, const struct bkey *k, const void *value,
			 struct btree_extent_change *change)
{
	struct btrees *trees = btree_txn_trees(txn);
	struct extent_put p = {
		.txn = txn,
		.kctx = trees->opts.kctx,
		.snapshots = &trees->snapshots,
		.btree_id = btree_id,
		.has_snapshots = btree_flags(btree_id) & BTREE_HAS_SNAPSHOTS,
		.inode = k->p.inode,
		.start = bkey_start_offset(k),
		.end = k->p.offset,
		.snapshot = k->p.snapshot,
		.is_hole = key_type_is_whiteout(k->type),
	};
	bool merges = type_can_merge(k->type);
	int err;

	assert(k->size && k->size <= k->p.offset && (btree_flags(btree_id) & BTREE_IS_EXTENTS));
	key_buf_load(&p.new, (struct bkey_ref){ .k = *k, .value = value });

	err = overlap_all(&p, change);
	if (!err && btree_key_is_allocated(k->type))
		p.sectors += (int64_t)(p.end - p.start);
	if (!err && merges && p.start)
		err = merge_left(&p);
	if (!err && merges && p.end == k->p.offset)
		err = merge_right(&p);
	if (!err && !p.is_hole)
		err = btree_txn_put(txn, btree_id, &p.new.k, p.new.value, 0);
	if (!err && change)
		*change = (struct btree_extent_change){ .sectors = p.sectors, .end_offset = p.end };
	return err;
}
