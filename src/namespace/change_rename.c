/*
 * rename, overwriting and exchanging (04 §7).
 *
 * One transaction: both dirents, both directories, the moved inode's backpointer, and the inode that is overwritten.
 *
 * The two dirents may lie in one hash table, on one probe path. The new one is put first; taking the old one away then
 * sees it, and leaves a whiteout where the new one is probed through that slot. Only where the new one would go to a
 * free slot behind the old one, on a path that leads through it, it takes the old one's slot instead.
 *
 * A subvolume's dirent is renamed as well, but neither exchanged nor overwritten. Only its own subvolume sees it, so
 * the old one is really removed, from whatever snapshot it lives in; and as the root inode may have versions in several
 * snapshots, which all must point back at a dirent, all of them are changed (05 §5.4).
 *
 * A directory must not move below itself. So its new place's directories up to the root are read in the transaction:
 * whoever moves one of them at the same time makes this one run again.
 */
#include <errno.h>
#include <sys/stat.h>

#include "namespace/change_internal.h"

/* One side: a name in a directory, and what it leads to. */
struct rename_side {
	struct object dir;
	const char *name;
	size_t len;
	/* found by the run */
	struct hash_table table;
	uint64_t slot; /* of the entry; of to: where it goes when there is none */
	bool is_there;
	uint32_t key_snapshot; /* where the dirent's key lives */
	struct dirent d;
	struct inode inode; /* of a subvolume: of its root, in its snapshot */
};

struct rename_args {
	struct namespace *ns;
	struct rename_side from, to;
	unsigned flags;
	uint64_t now;
	/* of the run */
	struct inode dirs[2]; /* from's and to's; only the first when they are one */
	struct inode *from_dir, *to_dir;
	/* result */
	bool is_dead; /* the overwritten inode */
};

static bool is_subvol(const struct rename_side *s) { return s->is_there && s->d.type == DIRENT_TYPE_SUBVOL; }
static bool is_dir(const struct rename_side *s) { return s->is_there && S_ISDIR(s->inode.mode); }
/* Subvolume roots don't count as links of the directory they are in. */
static bool counts_as_link(const struct rename_side *s) { return is_dir(s) && !is_subvol(s); }

/* Look a side's name up. */
static int side_find(struct btree_txn *txn, struct rename_side *s, const struct inode *dir)
{
	struct bkey_ref k;

	s->table = hash_table_of(dir, BTREE_DIRENTS, s->dir.subvol);
	int ret = hash_table_find(txn, &s->table, &(struct hash_name){ 0, s->name, s->len }, &s->slot, &k);
	if (ret < 0)
		return ret;
	s->is_there = ret;
	if (!ret)
		return 0;
	if (dirent_decode(k, &s->d, NULL))
		return -EIO;
	s->key_snapshot = k.k.p.snapshot;
	if (s->d.type == DIRENT_TYPE_SUBVOL) {
		struct subvolume sv;

		ret = subvol_txn_get(txn, s->d.child_subvol, &sv);
		if (!ret)
			ret = inode_txn_get(txn, sv.inode, sv.snapshot, &s->inode);
	} else {
		ret = inode_txn_get(txn, s->d.inum, dir->snapshot, &s->inode);
	}
	return ret == -ENOENT ? -EIO : ret;
}

/* Do both names lead to the same? Numbers of inodes are the same in subvolume and snapshot. */
static bool is_same(const struct rename_side *a, const struct rename_side *b)
{
	return a->inode.inum == b->inode.inum && is_subvol(a) == is_subvol(b) &&
	       (!is_subvol(a) || a->d.child_subvol == b->d.child_subvol);
}

/* -EINVAL when @dir is @below or lies somewhere below it. */
static int check_not_below(struct btree_txn *txn, const struct inode *dir, uint64_t below)
{
	struct inode at = *dir;

	while (at.inum != below) {
		if (!at.dir || at.subvol)
			return 0;
		int err = inode_txn_get(txn, at.dir, dir->snapshot, &at);
		if (err)
			return err == -ENOENT ? -EIO : err;
	}
	return -EINVAL;
}

static int check_flags(const struct rename_args *a)
{
	uint32_t fixed = INODE_IMMUTABLE | INODE_APPEND;

	if (a->from_dir->flags & INODE_APPEND || a->from.inode.flags & fixed)
		return -EPERM;
	if (a->to.is_there && (a->to_dir->flags & INODE_APPEND || a->to.inode.flags & fixed))
		return -EPERM;
	return 0;
}

static int check_types(struct btree_txn *txn, const struct rename_args *a)
{
	bool is_swap = a->flags & RENAME_SWAP;
	int ret = 0;

	if (is_subvol(&a->to) || (is_swap && is_subvol(&a->from)))
		return -EOPNOTSUPP;
	/* This directory is in the subvolume that the other is named in, so it can't be in that. */
	if (a->from_dir != a->to_dir && is_dir(&a->from) && !is_subvol(&a->from))
		ret = check_not_below(txn, a->to_dir, a->from.inode.inum);
	if (!ret && is_swap && a->from_dir != a->to_dir && is_dir(&a->to))
		ret = check_not_below(txn, a->from_dir, a->to.inode.inum);
	if (ret || is_swap || !a->to.is_there)
		return ret;

	if (is_dir(&a->from) && !is_dir(&a->to))
		return -ENOTDIR;
	if (!is_dir(&a->from) && is_dir(&a->to)) {
		/* A directory that the file lies in can't be empty, and that comes first. */
		ret = check_not_below(txn, a->from_dir, a->to.inode.inum);
		return ret == -EINVAL ? -ENOTEMPTY : ret ? ret : -EISDIR;
	}
	ret = is_dir(&a->to) ? dir_txn_has_entries(txn, &a->to.inode) : 0;
	return ret > 0 ? -ENOTEMPTY : ret;
}

/* Read both directories, and find both names. 1: nothing to do, they are one inode. */
static int rename_find(struct btree_txn *txn, struct rename_args *a)
{
	bool is_one_dir = a->from.dir.inum == a->to.dir.inum;
	uint32_t snapshot;

	a->from_dir = &a->dirs[0];
	a->to_dir = &a->dirs[is_one_dir ? 0 : 1];
	int err = subvol_txn_snapshot(txn, a->from.dir.subvol, &snapshot);
	if (!err)
		err = dir_txn_get(txn, a->from.dir.inum, snapshot, a->from_dir);
	if (!err && !is_one_dir)
		err = dir_txn_get(txn, a->to.dir.inum, snapshot, a->to_dir);
	if (!err)
		err = side_find(txn, &a->from, a->from_dir);
	if (!err && !a->from.is_there)
		err = -ENOENT;
	if (!err)
		err = side_find(txn, &a->to, a->to_dir);
	if (err)
		return err;
	if (a->to.is_there && a->flags & RENAME_NO_REPLACE)
		return -EEXIST;
	if (!a->to.is_there && a->flags & RENAME_SWAP)
		return -ENOENT;
	return a->to.is_there && is_same(&a->from, &a->to);
}

/* A dirent of @name that leads to where @target's leads. */
static int side_put(struct btree_txn *txn, const struct rename_side *name, uint64_t slot,
		    const struct rename_side *target)
{
	struct dirent d = target->d;

	d.name = d.folded = (const uint8_t *)name->name;
	d.name_len = d.folded_len = (uint16_t)name->len;
	return dirent_txn_put(txn, &name->table, slot, &d);
}

/* Take the old dirent away, if the new one didn't take its slot (@is_replaced). */
static int rename_remove(struct btree_txn *txn, const struct rename_side *from, bool is_replaced)
{
	bool is_inherited = is_subvol(from) && from->key_snapshot != from->table.snapshot;

	if (!is_inherited)
		return is_replaced ? 0 : hash_table_delete(txn, &from->table, from->slot);
	/* Who sees that snapshot may have entries behind the slot: it stays passable. */
	return btree_txn_put(txn, BTREE_DIRENTS,
			     &(struct bkey){ .p = BPOS(from->table.inum, from->slot, from->key_snapshot),
					     .type = KEY_HASH_WHITEOUT },
			     NULL, 0);
}

/*
 * Names that get longer, over and over, would need as much as new ones. What takes another's name, or a shorter one,
 * is let through: it may be what makes room.
 */
static int check_room(const struct rename_args *a)
{
	return a->to.is_there || a->to.len <= a->from.len ? 0 : change_room_check(a->ns);
}

/* Both dirents. a->to.slot becomes the slot of the new one. */
static int rename_dirents(struct btree_txn *txn, struct rename_args *a)
{
	struct rename_side *from = &a->from, *to = &a->to;
	int err;

	if (a->flags & RENAME_SWAP) {
		err = side_put(txn, to, to->slot, from);
		return err ? err : side_put(txn, from, from->slot, to);
	}

	uint64_t start = hash_table_start(&to->table, &(struct hash_name){ 0, to->name, to->len });
	bool takes_slot = a->from_dir == a->to_dir && !to->is_there && start <= from->slot && from->slot < to->slot;
	if (takes_slot)
		to->slot = from->slot;
	err = side_put(txn, to, to->slot, from);
	return err ? err : rename_remove(txn, from, takes_slot);
}

/* Links of both directories (subvolume roots don't count), and their times. */
static int rename_dirs(struct btree_txn *txn, struct rename_args *a)
{
	int err = 0;

	/* First less, then more: in one directory that never goes over the limit on the way. */
	if (counts_as_link(&a->from) && a->from_dir->nlink)
		a->from_dir->nlink--;
	if (counts_as_link(&a->to) && a->to_dir->nlink)
		a->to_dir->nlink--;
	if (counts_as_link(&a->from))
		err = inode_link_add(a->to_dir);
	if (!err && a->flags & RENAME_SWAP && counts_as_link(&a->to))
		err = inode_link_add(a->from_dir);
	if (!err)
		err = dir_txn_put(txn, a->from_dir, a->now);
	if (!err && a->from_dir != a->to_dir)
		err = dir_txn_put(txn, a->to_dir, a->now);
	return err;
}

/* The next version of the subvolume's root after @*snapshot, other than @root itself. 1, 0 or an error. */
static int root_version_next(struct btree_txn *txn, const struct inode *root, uint32_t *snapshot, struct inode *version)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret, found = 0;

	btree_txn_iter_open(&it, txn, BTREE_INODES, BPOS(0, root->inum, *snapshot), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(0, root->inum, UINT32_MAX);
	while (!found && (ret = btree_iter_peek(&it, &k)) > 0) {
		found = k.k.p.snapshot > *snapshot && k.k.p.snapshot != root->snapshot &&
			!inode_unpack(k, version, NULL) && version->subvol == root->subvol;
		*snapshot = k.k.p.snapshot;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return found ? 1 : ret;
}

/* Versions of a subvolume's root in other snapshots point back at its dirent too. */
static int root_versions_move(struct btree_txn *txn, const struct inode *root)
{
	struct inode version;
	uint32_t snapshot = 0;
	int ret;

	while ((ret = root_version_next(txn, root, &snapshot, &version)) > 0) {
		version.dir = root->dir;
		version.dir_offset = root->dir_offset;
		if ((ret = inode_txn_put(txn, &version)))
			break;
	}
	return ret;
}

/* The inode at @s moves to @dir, @slot. */
static int side_move(struct btree_txn *txn, struct rename_args *a, struct rename_side *s, const struct inode *dir,
		     uint64_t slot)
{
	if (inode_opts_inherit(&s->inode, dir) && S_ISDIR(s->inode.mode))
		return -EXDEV;
	s->inode.dir = dir->inum;
	s->inode.dir_offset = slot;
	s->inode.ctime = a->now;
	int err = inode_txn_put(txn, &s->inode);
	return !err && is_subvol(s) ? root_versions_move(txn, &s->inode) : err;
}

/* The inode at a->to loses this name. */
static int side_drop(struct btree_txn *txn, struct rename_args *a)
{
	struct inode *inode = &a->to.inode;
	int err = inode_link_drop(inode);

	if (err)
		return err;
	if (inode->dir == a->to_dir->inum && inode->dir_offset == a->to.slot)
		inode->dir = inode->dir_offset = 0;
	inode->ctime = a->now;
	a->is_dead = inode->flags & INODE_UNLINKED;
	return inode_txn_put(txn, inode);
}

static int rename_run(struct btree_txn *txn, void *ctx)
{
	struct rename_args *a = ctx;

	a->is_dead = false;
	int ret = rename_find(txn, a);
	if (ret)
		return min(ret, 0);
	ret = check_flags(a);
	if (!ret)
		ret = check_types(txn, a);
	if (!ret)
		ret = check_room(a);
	if (!ret)
		ret = rename_dirents(txn, a);
	if (!ret)
		ret = side_move(txn, a, &a->from, a->to_dir, a->to.slot);
	if (!ret && a->flags & RENAME_SWAP)
		ret = side_move(txn, a, &a->to, a->from_dir, a->from.slot);
	else if (!ret && a->to.is_there)
		ret = side_drop(txn, a);
	return ret ? ret : rename_dirs(txn, a);
}

int namespace_rename(struct namespace *ns, struct object from_dir, const char *from, size_t from_len,
		     struct object to_dir, const char *to, size_t to_len, unsigned flags, uint64_t *journal_seq)
{
	struct rename_args a = {
		.ns = ns,
		.from = { .dir = from_dir, .name = from, .len = from_len },
		.to = { .dir = to_dir, .name = to, .len = to_len },
		.flags = flags,
		.now = change_time(ns->super),
	};

	if (flags & ~(unsigned)(RENAME_NO_REPLACE | RENAME_SWAP) || flags == (RENAME_NO_REPLACE | RENAME_SWAP))
		return -EINVAL;
	if (from_dir.subvol != to_dir.subvol)
		return -EXDEV;
	int err = change_name_check(from, from_len);
	if (!err)
		err = change_name_check(to, to_len);
	if (!err)
		err = change_run(ns, "rename", journal_seq, rename_run, &a);
	if (!err && a.is_dead)
		deletions_add(ns, (struct object){ to_dir.subvol, a.to.inode.inum });
	return err;
}
