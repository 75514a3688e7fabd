/*
 * Inodes: what must hold within one, between the versions of one number, and with the list of unlinked ones, which has
 * the same order (04 §1, §6, §11). Links are check_dirents' business, sectors check_extents'.
 *
 * Memory: none that grows.
 */
#include <sys/stat.h>

#include "recovery/check_internal.h"

/* Subvolume root, or the type in the mode. */
static unsigned inode_kind(const struct inode *i) { return i->subvol ? DIRENT_TYPE_SUBVOL : i->mode >> 12; }

static bool says_clean(const struct check *c) { return c->t->journal->was_clean && !c->t->is_writable; }

static void check_version(struct check *c, const struct check_version *v)
{
	const struct inode *i = &v->inode;
	struct bpos p = BPOS(0, i->inum, v->snapshot);

	if (i->flags & INODE_UNLINKED && says_clean(c))
		check_report_pos(c, ERROR_inode_unlinked_but_clean, BTREE_INODES, p, "no unlinked inode when clean",
				 "one that waits for its deletion");
	if (i->flags & INODE_SIZE_DIRTY)
		check_report_pos(c, says_clean(c) ? ERROR_inode_i_size_dirty_but_clean : CHECK_inode_flags_dirty,
				 BTREE_INODES, p, "a size that is known", "flag i_size_dirty");
	if (i->flags & INODE_SECTORS_DIRTY)
		check_report_pos(c, says_clean(c) ? ERROR_inode_i_sectors_dirty_but_clean : CHECK_inode_flags_dirty,
				 BTREE_INODES, p, "sectors that are known", "flag i_sectors_dirty");
	if (i->journal_seq >= c->seq_next)
		check_report_pos(c, ERROR_inode_journal_seq_in_future, BTREE_INODES, p, "a journal seq that exists",
				 "%llu", (unsigned long long)i->journal_seq);
	if (S_ISDIR(i->mode) && i->size)
		check_report_pos(c, ERROR_inode_dir_has_nonzero_i_size, BTREE_INODES, p, "size 0 of a directory",
				 "%llu", (unsigned long long)i->size);
}

static int inode_begin(void *ctx, struct check_owner *o)
{
	struct check *c = ctx;
	const struct check_version *first = NULL;

	for (size_t i = 0; i < o->nr; i++) {
		struct check_version *v = &o->v[i];

		v->is_found = false;
		if (v->is_hole || !v->view)
			continue;
		check_version(c, v);
		if (first && (first->inode.hash_seed != v->inode.hash_seed ||
			      inode_kind(&first->inode) != inode_kind(&v->inode)))
			check_report_pos(c, ERROR_inode_snapshot_mismatch, BTREE_INODES, BPOS(0, o->inum, v->snapshot),
					 "type and hash seed of the inode's other versions", "others");
		first = first ? first : v;
	}
	return 0;
}

static int deleted_key(void *ctx, struct check_owner *o, struct bkey_ref k)
{
	struct check_version *v = check_owner_exact(o, k.k.p.snapshot);

	if (k.k.p.inode || !v || v->is_hole)
		return check_report_pos(ctx, ERROR_deleted_inode_missing, BTREE_DELETED_INODES, k.k.p, "an inode",
					"none");
	v->is_found = true;
	if (!(v->inode.flags & INODE_UNLINKED))
		check_report_pos(ctx, ERROR_deleted_inode_not_unlinked, BTREE_DELETED_INODES, k.k.p,
				 "an inode that is unlinked", "one that isn't");
	return 0;
}

/* The list came with 1.2: upgrading makes it. */
static bool has_list(const struct check *c) { return sb_upgrade_complete(c->super->sb) >= VERSION(1, 2); }

static int inode_end(void *ctx, struct check_owner *o)
{
	struct check *c = ctx;

	if (!has_list(c))
		return 0;
	for (size_t i = 0; i < o->nr; i++)
		if (!o->v[i].is_hole && o->v[i].inode.flags & INODE_UNLINKED && !o->v[i].is_found &&
		    check_is_whole(c, CHECK_BTREE(BTREE_DELETED_INODES)))
			check_report_pos(c, ERROR_unlinked_inode_not_on_deleted_list, BTREE_INODES,
					 BPOS(0, o->inum, o->v[i].snapshot), "an entry in deleted_inodes", "none");
	return 0;
}

int check_inodes(struct check *c)
{
	static const struct check_by_inode ops = {
		.begin = inode_begin, .key = deleted_key, .end = inode_end, .is_offset = true
	};

	c->total = c->keys[BTREE_INODES] + c->keys[BTREE_DELETED_INODES];
	if (!check_is_whole(c, CHECK_BTREE(BTREE_INODES)))
		return 0;
	return check_each_inode(c, BTREE_DELETED_INODES, &ops, c);
}
