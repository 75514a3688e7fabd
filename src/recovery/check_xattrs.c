/*
 * Attributes: their inode, and their place in the hash table (04 §2.2, §11).
 *
 * Memory: that of check_hash.c.
 */
#include "recovery/check_hash.h"

static int xattrs_begin(void *ctx, struct check_owner *o)
{
	check_hash_begin(ctx, o);
	return 0;
}

static int xattrs_key(void *ctx, struct check_owner *o, struct bkey_ref k)
{
	struct check_hash *h = ctx;

	int err = check_hash_key(h, o, k);

	if (!err && k.k.type == KEY_XATTR && check_hash_is_seen(h) && !check_owner_at(h->c, o, k.k.p.snapshot))
		check_report_pos(h->c, ERROR_xattr_in_missing_inode, BTREE_XATTRS, k.k.p, "an inode", "none");
	return err;
}

static int xattrs_end(void *ctx, struct check_owner *o)
{
	check_hash_end(ctx, o);
	return 0;
}

int check_xattrs(struct check *c)
{
	static const struct check_by_inode ops = { .begin = xattrs_begin, .key = xattrs_key, .end = xattrs_end };
	struct check_hash h = { .c = c, .btree_id = BTREE_XATTRS };

	c->total = c->keys[BTREE_INODES] + c->keys[BTREE_XATTRS];
	if (!check_is_whole(c, CHECK_BTREE(BTREE_INODES) | CHECK_BTREE(BTREE_XATTRS)))
		return 0;
	int err = check_each_inode(c, BTREE_XATTRS, &ops, &h);
	check_hash_free(&h);
	return err;
}
