/*
 * New inodes and new names: create, mkdir, mknod, O_TMPFILE, symlink, link (04 §7).
 *
 * One transaction each: the directory with its new times, the dirent at the first free slot, the inode that points back
 * at it, and the ACLs it inherits. A symlink's target is stored in the same transaction where it fits inline; a longer
 * one is written to an inode without a name, which then gets one.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "namespace/change_internal.h"
#include "namespace/create_many.h"

struct create_args {
	struct namespace *ns;
	struct object dir;
	const char *name; /* NULL: none */
	size_t len;
	const struct create_attr *attr;
	const char *target; /* symlinks: target to store inline, or NULL */
	size_t target_len;
	uint64_t now, hash_seed;
	struct inum_claim claim;
	struct inode inode; /* result */
};

/* The mode by umask or the directory's default ACL, and the ACLs that the new inode inherits from it. */
static int acls_inherit(struct btree_txn *txn, struct create_args *a, const struct inode *dir)
{
	struct inode *inode = &a->inode;
	struct xattr x = { 0 };
	uint8_t acl[ACL_STORED_BYTES_MAX];
	bool is_minimal;

	/* Links have all permissions, always. */
	if (S_ISLNK(inode->mode))
		return 0;
	int ret = a->ns->super->options[OPT_ACL] ? xattr_txn_get(txn, dir, XATTR_ACL_DEFAULT, "", &x) : 0;
	if (ret < 0)
		return ret;
	if (!ret) {
		inode->mode = (uint16_t)(inode->mode & ~(a->attr->umask & 0777));
		return 0;
	}

	if (S_ISDIR(inode->mode) && (ret = xattr_txn_put(txn, inode, &x)))
		return ret;
	memcpy(acl, x.value, x.value_len);
	inode->mode = (uint16_t)acl_inherit(acl, x.value_len, inode->mode, &is_minimal);
	if (is_minimal)
		return 0;
	return xattr_txn_put(txn, inode,
			     &(struct xattr){ .type = XATTR_ACL_ACCESS, .value = acl, .value_len = x.value_len });
}

/* What a new inode is, from who makes it and where (04 §1.11). */
static int inode_create(struct btree_txn *txn, struct create_args *a, const struct inode *dir)
{
	struct inode *inode = &a->inode;

	inode_init(a->ns->super, a->now, a->hash_seed, inode);
	int err = change_room_check(a->ns);
	if (!err)
		err = inum_txn_use(txn, &a->claim, dir->snapshot, inode);
	if (err)
		return err;
	inode->mode = (uint16_t)a->attr->mode;
	inode->uid = a->attr->uid;
	inode->gid = a->attr->gid;
	if (S_ISCHR(inode->mode) || S_ISBLK(inode->mode))
		inode->dev = a->attr->rdev_major << 20 | a->attr->rdev_minor;
	if (dir->mode & S_ISGID) {
		inode->gid = dir->gid;
		if (S_ISDIR(inode->mode))
			inode->mode |= S_ISGID;
	}
	memcpy(inode->opts, dir->opts, sizeof(inode->opts[0]) * INODE_OPT_NR_1_4);
	return acls_inherit(txn, a, dir);
}

int symlink_target_put(struct btree_txn *txn, const struct namespace *ns, const char *target, size_t len,
		       struct inode *inode)
{
	uint32_t block_sectors = ns->super->kctx.block_sectors;
	struct bkey k = { .p = BPOS(inode->inum, block_sectors, inode->snapshot),
			  .type = KEY_INLINE_DATA,
			  .size = block_sectors,
			  .value_u64s = (uint8_t)div_round_up_u64(len, 8) };
	uint8_t value[BKEY_VALUE_U64S_MAX * 8] = { 0 };
	struct btree_extent_change change = { 0 };

	memcpy(value, target, len);
	int err = btree_txn_put_extent(txn, BTREE_EXTENTS, &k, value, &change);
	inode->size = len;
	inode->sectors = (uint64_t)change.sectors;
	return err;
}

static int create_run(struct btree_txn *txn, void *ctx)
{
	struct create_args *a = ctx;
	struct inode dir;
	struct bkey_ref old;
	uint32_t snapshot;
	uint64_t slot;

	int ret = subvol_txn_snapshot(txn, a->dir.subvol, &snapshot);
	if (!ret)
		ret = dir_txn_get(txn, a->dir.inum, snapshot, &dir);
	if (ret)
		return ret;

	struct hash_table t = hash_table_of(&dir, BTREE_DIRENTS, a->dir.subvol);
	ret = hash_table_find(txn, &t, &(struct hash_name){ 0, a->name, a->len }, &slot, &old);
	if (ret)
		return ret < 0 ? ret : -EEXIST;
	ret = inode_create(txn, a, &dir);
	if (ret)
		return ret;
	struct dirent d = { .type = inode_dirent_type(&a->inode),
			    .inum = a->inode.inum,
			    .name = (const uint8_t *)a->name,
			    .name_len = (uint16_t)a->len };
	ret = dirent_txn_put(txn, &t, slot, &d);
	if (!ret && a->target)
		ret = symlink_target_put(txn, a->ns, a->target, a->target_len, &a->inode);
	if (ret)
		return ret;

	a->inode.dir = dir.inum;
	a->inode.dir_offset = slot;
	if (S_ISDIR(a->inode.mode) && (ret = inode_link_add(&dir)))
		return ret;
	ret = inode_txn_put(txn, &a->inode);
	return ret ? ret : dir_txn_put(txn, &dir, a->now);
}

static int create_unnamed_run(struct btree_txn *txn, void *ctx)
{
	struct create_args *a = ctx;
	struct inode dir;
	uint32_t snapshot;

	int err = subvol_txn_snapshot(txn, a->dir.subvol, &snapshot);
	if (!err)
		err = dir_txn_get(txn, a->dir.inum, snapshot, &dir);
	if (!err)
		err = inode_create(txn, a, &dir);
	if (err)
		return err;
	a->inode.flags |= INODE_UNLINKED;
	return inode_txn_put(txn, &a->inode);
}

/* Run with a number that nobody else has. */
static int create_with_number(struct create_args *a, const char *name, btree_txn_fn fn, uint64_t *journal_seq)
{
	int err;

	a->now = change_time(a->ns->super);
	a->hash_seed = random_u64();
	do {
		err = inum_claim(a->ns, &a->claim);
		if (err)
			break;
		err = change_run(a->ns, name, journal_seq, fn, a);
		inum_unclaim(a->ns, &a->claim);
	} while (err == -KILN_E_NOT_FOUND_HERE);
	return err;
}

static void create_result(const struct create_args *a, struct object *created, struct inode *inode)
{
	if (created)
		*created = (struct object){ a->dir.subvol, a->inode.inum };
	if (inode)
		*inode = a->inode;
}

int change_type_check(uint32_t mode, uint32_t rdev_major, uint32_t rdev_minor)
{
	bool is_device = S_ISCHR(mode) || S_ISBLK(mode);

	if (!is_device && !S_ISREG(mode) && !S_ISDIR(mode) && !S_ISFIFO(mode) && !S_ISSOCK(mode))
		return -EINVAL;
	return is_device && (rdev_major >> 12 || rdev_minor >> 20) ? -EINVAL : 0;
}

static int attr_check(const struct create_attr *attr)
{
	return change_type_check(attr->mode, attr->rdev_major, attr->rdev_minor);
}

int namespace_create(struct namespace *ns, struct object dir, const char *name, size_t len,
		     const struct create_attr *attr, struct object *created, struct inode *inode, uint64_t *journal_seq)
{
	struct create_args a = { .ns = ns, .dir = dir, .name = name, .len = len, .attr = attr };
	int err = change_name_check(name, len);

	if (!err)
		err = attr_check(attr);
	if (!err)
		err = create_with_number(&a, S_ISDIR(attr->mode) ? "mkdir" : "create", create_run, journal_seq);
	if (!err)
		create_result(&a, created, inode);
	return err;
}

int namespace_create_unnamed(struct namespace *ns, struct object dir, const struct create_attr *attr,
			     struct object *created, struct inode *inode, uint64_t *journal_seq)
{
	struct create_args a = { .ns = ns, .dir = dir, .attr = attr };
	int err = attr_check(attr);

	if (!err && S_ISDIR(attr->mode))
		err = -EINVAL;
	if (!err)
		err = create_with_number(&a, "create_unnamed", create_unnamed_run, journal_seq);
	if (err)
		return err;

	struct object o = { dir.subvol, a.inode.inum };
	namespace_hold(ns, o);
	deletions_add(ns, o);
	create_result(&a, created, inode);
	return 0;
}

/* --- symlinks --- */

/* Longest data that is stored inline (06 §9.2). */
size_t symlink_inline_bytes_max(const struct super *super)
{
	enum { INLINE_BYTES_MAX = 1024 };

	if (!super->options[OPT_INLINE_DATA])
		return 0;
	return min((size_t)super->kctx.block_sectors * SECTOR_BYTES / 2, (size_t)INLINE_BYTES_MAX);
}

/* An inode without a name, its data, then its name. */
static int symlink_long(struct create_args *a, uint64_t *journal_seq)
{
	struct namespace *ns = a->ns;
	const char *name = a->name;

	a->name = NULL;
	int err = create_with_number(a, "symlink", create_unnamed_run, journal_seq);
	if (err)
		return err;
	struct object o = { a->dir.subvol, a->inode.inum };
	struct data_write_target file = { .inum = o.inum, .snapshot = a->inode.snapshot };

	namespace_hold(ns, o);
	deletions_add(ns, o);
	struct room_wait room = deletions_room_begin(ns);
	do {
		ssize_t n = data_write(ns->data, &file, 0, a->target, a->target_len, NULL, journal_seq);

		err = n < 0 ? (int)n : (size_t)n < a->target_len ? -ENOSPC : 0;
	} while (deletions_give_room(ns, err, &room));
	if (!err)
		err = namespace_link(ns, o, a->dir, name, a->len, journal_seq);
	if (!err)
		err = namespace_inode(ns, o, &a->inode);
	namespace_release(ns, o);
	return err;
}

int namespace_symlink(struct namespace *ns, struct object dir, const char *name, size_t len, const char *target,
		      size_t target_len, const struct create_attr *attr, struct object *created, struct inode *inode,
		      uint64_t *journal_seq)
{
	struct create_attr link_attr = *attr;
	struct create_args a = { .ns = ns, .dir = dir, .name = name, .len = len, .attr = &link_attr };
	int err = change_name_check(name, len);

	if (err)
		return err;
	if (!target_len || memchr(target, 0, target_len))
		return target_len ? -EINVAL : -ENOENT;
	if (target_len > SYMLINK_BYTES_MAX)
		return -ENAMETOOLONG;

	link_attr.mode = S_IFLNK | 0777;
	a.target = target;
	a.target_len = target_len;
	if (target_len > symlink_inline_bytes_max(ns->super)) {
		err = symlink_long(&a, journal_seq);
	} else {
		err = ns->write ? super_feature_set(ns->super, SB_FEATURE_INLINE_DATA) : -EROFS;
		if (!err)
			err = create_with_number(&a, "symlink", create_run, journal_seq);
	}
	if (!err)
		create_result(&a, created, inode);
	return err;
}

/* --- link --- */

struct link_args {
	struct namespace *ns;
	struct object o, dir;
	const char *name;
	size_t len;
	uint64_t now;
};

/* The inode that gets another name. */
static int link_inode_get(struct btree_txn *txn, const struct link_args *a, const struct inode *dir,
			  struct inode *inode)
{
	int err = inode_txn_get(txn, a->o.inum, dir->snapshot, inode);

	if (err)
		return err;
	if (S_ISDIR(inode->mode) || inode->flags & (INODE_IMMUTABLE | INODE_APPEND))
		return -EPERM;
	if (inode->flags & INODE_UNLINKED && !deletions_allow_link(a->ns, a->o))
		return -ENOENT;

	struct inode inherited = *inode;
	return inode_opts_inherit(&inherited, dir) ? -EXDEV : 0;
}

static int link_run(struct btree_txn *txn, void *ctx)
{
	struct link_args *a = ctx;
	struct inode dir, inode;
	struct bkey_ref old;
	uint32_t snapshot;
	uint64_t slot;

	int ret = subvol_txn_snapshot(txn, a->dir.subvol, &snapshot);
	if (!ret)
		ret = dir_txn_get(txn, a->dir.inum, snapshot, &dir);
	if (!ret)
		ret = link_inode_get(txn, a, &dir, &inode);
	if (ret)
		return ret;

	struct hash_table t = hash_table_of(&dir, BTREE_DIRENTS, a->dir.subvol);
	ret = hash_table_find(txn, &t, &(struct hash_name){ 0, a->name, a->len }, &slot, &old);
	if (ret)
		return ret < 0 ? ret : -EEXIST;
	ret = change_room_check(a->ns);
	if (!ret)
		ret = inode_link_add(&inode);
	if (ret)
		return ret;
	struct dirent d = { .type = inode_dirent_type(&inode),
			    .inum = inode.inum,
			    .name = (const uint8_t *)a->name,
			    .name_len = (uint16_t)a->len };
	ret = dirent_txn_put(txn, &t, slot, &d);
	if (ret)
		return ret;
	inode.ctime = a->now;
	inode.dir = dir.inum;
	inode.dir_offset = slot;
	ret = inode_txn_put(txn, &inode);
	return ret ? ret : dir_txn_put(txn, &dir, a->now);
}

int namespace_link(struct namespace *ns, struct object o, struct object dir, const char *name, size_t len,
		   uint64_t *journal_seq)
{
	struct link_args a = { .ns = ns, .o = o, .dir = dir, .name = name, .len = len, .now = change_time(ns->super) };

	if (o.subvol != dir.subvol)
		return -EXDEV;
	int err = change_name_check(name, len);
	return err ? err : change_run(ns, "link", journal_seq, link_run, &a);
}
