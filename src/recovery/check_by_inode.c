/*
 * Walking the inodes btree side by side with another one. See check_internal.h.
 *
 * Memory: the versions of one inode number, at most one per snapshot.
 */
#include <errno.h>
#include <string.h>

#include "base/array.h"
#include "recovery/check_internal.h"

struct check_version *check_owner_exact(struct check_owner *o, uint32_t s)
{
	size_t low = 0, high = o->nr;

	while (low < high) {
		size_t middle = (low + high) / 2;
		if (o->v[middle].snapshot < s)
			low = middle + 1;
		else
			high = middle;
	}
	return low < o->nr && o->v[low].snapshot == s ? &o->v[low] : NULL;
}

struct check_version *check_owner_at(struct check *c, struct check_owner *o, uint32_t s)
{
	uint32_t view = check_snapshot_view(c, s);

	s = view ? view : s;
	for (size_t i = 0; i < o->nr; i++)
		if (o->v[i].snapshot >= s && check_is_ancestor(c, s, o->v[i].snapshot))
			return o->v[i].is_hole ? NULL : &o->v[i];
	return NULL;
}

/* False: the key is in a snapshot that doesn't exist, and that has been told. */
static bool snapshot_exists(struct check *c, unsigned btree_id, const struct bkey *k)
{
	if (c->snapshots.is_incomplete || snapshot_table_find(&c->snapshots, k->p.snapshot))
		return true;
	check_report_pos(c, ERROR_bkey_in_missing_snapshot, btree_id, k->p, "a snapshot that exists", "%u",
			 k->p.snapshot);
	return false;
}

static int owner_add(struct check *c, struct check_owner *o, struct bkey_ref k)
{
	struct check_version v = { .snapshot = k.k.p.snapshot };

	if (!snapshot_exists(c, BTREE_INODES, &k.k))
		return 0;
	v.is_hole = k.k.type != KEY_INODE_V3 && k.k.type != KEY_INODE_V2 && k.k.type != KEY_INODE;
	v.view = check_snapshot_view(c, v.snapshot);
	/* Versions of one chain come from its end on. */
	for (size_t i = o->nr; v.view != v.snapshot && i-- > 0;)
		if (o->v[i].view == v.view)
			v.view = 0;
	if (!v.is_hole && inode_unpack(k, &v.inode, NULL))
		return 0;
	if (array_grow(&o->v, &o->capacity, o->nr + 1, sizeof(*o->v)))
		return -ENOMEM;
	o->v[o->nr++] = v;
	return 0;
}

/* All versions of inode @inum; the stream is at or before them. */
static int owner_load(struct check *c, struct check_stream *inodes, struct check_owner *o, uint64_t inum)
{
	o->inum = inum;
	o->nr = 0;
	while (check_stream_peek(inodes) && inodes->k.k.p.offset <= inum) {
		int err = inodes->k.k.p.offset == inum ? owner_add(c, o, inodes->k) : 0;

		if (err)
			return err;
		check_stream_next(inodes);
	}
	return inodes->err;
}

int check_each_inode(struct check *c, unsigned btree_id, const struct check_by_inode *ops, void *ctx)
{
	struct check_stream inodes, other = { 0 };
	struct check_owner o = { 0 };
	bool has_snapshots = btree_flags(btree_id) & BTREE_HAS_SNAPSHOTS;
	int err = 0;

	check_stream_open(c, &inodes, BTREE_INODES, POS_MIN, SPOS_MAX);
	if (btree_id != BTREE_NR_MAX)
		check_stream_open(c, &other, btree_id, POS_MIN, SPOS_MAX);
	while (!err) {
		bool has_inode = check_stream_peek(&inodes), has_other = check_stream_peek(&other);
		uint64_t inum = UINT64_MAX;

		err = inodes.err ? inodes.err : other.err;
		if (err || (!has_inode && !has_other))
			break;
		if (has_inode)
			inum = inodes.k.k.p.offset;
		if (has_other)
			inum = min(inum, ops->is_offset ? other.k.k.p.offset : other.k.k.p.inode);
		err = owner_load(c, &inodes, &o, inum);
		if (!err && ops->begin)
			err = ops->begin(ctx, &o);
		while (!err && check_stream_peek(&other) &&
		       (ops->is_offset ? other.k.k.p.offset : other.k.k.p.inode) == inum) {
			if (!has_snapshots || snapshot_exists(c, btree_id, &other.k.k))
				err = ops->key(ctx, &o, other.k);
			check_stream_next(&other);
		}
		if (!err && ops->end)
			err = ops->end(ctx, &o);
	}
	check_stream_close(&inodes);
	check_stream_close(&other);
	free(o.v);
	return err;
}
