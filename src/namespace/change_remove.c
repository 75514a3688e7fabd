/*
 * Names that go away: unlink, rmdir (04 §7).
 *
 * One transaction: the dirent, the directory's times, and the inode with one link less; at none it is flagged as
 * unlinked (by which its trigger puts it on the deleted list) and deleted later, see delete.c.
 */
#include <errno.h>
#include <sys/stat.h>

#include "namespace/change_internal.h"

struct unlink_args {
	struct namespace *ns;
	struct object dir;
	const char *name;
	size_t len;
	bool is_dir;
	uint64_t now;
	/* results */
	struct object removed;
	bool is_dead;
};

/* May it be removed as asked? */
static int unlink_check(struct btree_txn *txn, const struct unlink_args *a, const struct inode *inode)
{
	if (inode->flags & (INODE_IMMUTABLE | INODE_APPEND))
		return -EPERM;
	if (S_ISDIR(inode->mode) != a->is_dir)
		return a->is_dir ? -ENOTDIR : -EISDIR;
	int ret = a->is_dir ? dir_txn_has_entries(txn, inode) : 0;
	return ret > 0 ? -ENOTEMPTY : ret;
}

static int unlink_run(struct btree_txn *txn, void *ctx)
{
	struct unlink_args *a = ctx;
	struct inode dir, inode;
	struct bkey_ref k;
	struct dirent d;
	uint32_t snapshot;
	uint64_t slot;

	int ret = subvol_txn_snapshot(txn, a->dir.subvol, &snapshot);
	if (!ret)
		ret = dir_txn_get(txn, a->dir.inum, snapshot, &dir);
	if (ret)
		return ret;
	if (dir.flags & INODE_APPEND)
		return -EPERM;

	struct hash_table t = hash_table_of(&dir, BTREE_DIRENTS, a->dir.subvol);
	ret = hash_table_find(txn, &t, &(struct hash_name){ 0, a->name, a->len }, &slot, &k);
	if (ret <= 0)
		return ret && ret != -ENOSPC ? ret : -ENOENT;
	if (dirent_decode(k, &d, NULL))
		return -EIO;
	if (d.type == DIRENT_TYPE_SUBVOL)
		return a->is_dir ? -EOPNOTSUPP : -EISDIR;
	ret = inode_txn_get(txn, d.inum, snapshot, &inode);
	if (ret)
		return ret == -ENOENT ? -EIO : ret; /* a name that leads nowhere is damage */
	ret = unlink_check(txn, a, &inode);
	if (!ret)
		ret = hash_table_delete(txn, &t, slot);
	if (!ret)
		ret = inode_link_drop(&inode);
	if (ret)
		return ret;

	inode.ctime = a->now;
	if (inode.dir == dir.inum && inode.dir_offset == slot)
		inode.dir = inode.dir_offset = 0;
	if (a->is_dir && dir.nlink)
		dir.nlink--;
	a->removed = (struct object){ a->dir.subvol, inode.inum };
	a->is_dead = inode.flags & INODE_UNLINKED;
	ret = inode_txn_put(txn, &inode);
	return ret ? ret : dir_txn_put(txn, &dir, a->now);
}

int namespace_unlink(struct namespace *ns, struct object dir, const char *name, size_t len, bool is_dir,
		     struct object *removed, uint64_t *journal_seq)
{
	struct unlink_args a = {
		.ns = ns, .dir = dir, .name = name, .len = len, .is_dir = is_dir, .now = change_time(ns->super)
	};
	int err = change_name_check(name, len);

	if (!err)
		err = change_run(ns, is_dir ? "rmdir" : "unlink", journal_seq, unlink_run, &a);
	if (err)
		return err;
	if (a.is_dead)
		deletions_add(ns, a.removed);
	if (removed)
		*removed = a.removed;
	return 0;
}
