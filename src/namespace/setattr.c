/*
 * Attributes of an inode, and writing its data with the times that go with it (04 §7).
 *
 * A new size is data's business and takes transactions of its own; whatever else is set follows in one.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "namespace/change_internal.h"

enum { PERM_BITS = 07777 };

struct setattr_args {
	struct namespace *ns;
	struct object o;
	const struct setattr *attr;
	uint64_t now;
	struct inode inode; /* result */
};

/* What the flags immutable and append forbid. */
static int setattr_check(const struct inode *inode, const struct setattr *attr)
{
	unsigned times_set =
		(attr->fields & SETATTR_ATIME && !attr->atime_now ? SETATTR_ATIME : 0u) |
		(attr->fields & SETATTR_MTIME && !attr->mtime_now && !attr->has_times_of_write ? SETATTR_MTIME : 0u);

	/* Reading changes this, which neither forbids. */
	if (attr->fields == SETATTR_ATIME && attr->keeps_ctime)
		return 0;
	if (inode->flags & INODE_IMMUTABLE && attr->fields & ~(unsigned)SETATTR_FLAGS)
		return -EPERM;
	if (inode->flags & INODE_APPEND &&
	    (times_set || attr->fields & (SETATTR_MODE | SETATTR_UID | SETATTR_GID | SETATTR_SIZE)))
		return -EPERM;
	return attr->fields & SETATTR_FLAGS && attr->flags & ~(uint32_t)INODE_USER_FLAGS ? -EOPNOTSUPP : 0;
}

/* chmod: an access ACL says the same as the mode. */
static int mode_set(struct btree_txn *txn, struct inode *inode, uint32_t mode)
{
	struct xattr x;
	uint8_t acl[ACL_STORED_BYTES_MAX];

	if (S_ISLNK(inode->mode))
		return -EOPNOTSUPP;
	inode->mode = (uint16_t)((inode->mode & S_IFMT) | (mode & PERM_BITS));
	int ret = xattr_txn_get(txn, inode, XATTR_ACL_ACCESS, "", &x);
	if (ret <= 0)
		return ret;
	memcpy(acl, x.value, x.value_len);
	acl_set_mode(acl, x.value_len, mode);
	x.value = acl;
	return xattr_txn_put(txn, inode, &x);
}

static void owner_set(struct inode *inode, const struct setattr *attr)
{
	if (attr->fields & SETATTR_UID)
		inode->uid = attr->uid;
	if (attr->fields & SETATTR_GID)
		inode->gid = attr->gid;
	/* Who gets a file isn't to get the power of its former owner with it. */
	if (S_ISDIR(inode->mode) || attr->fields & SETATTR_MODE)
		return;
	inode->mode &= (uint16_t)~S_ISUID;
	if (inode->mode & S_IXGRP)
		inode->mode &= (uint16_t)~S_ISGID;
}

static void times_set(const struct setattr_args *a, struct inode *inode)
{
	const struct setattr *attr = a->attr;
	const struct key_context *kctx = &a->ns->super->kctx;

	if (attr->fields & SETATTR_ATIME)
		inode->atime = attr->atime_now ? a->now : inode_time_encode(kctx, attr->atime);
	if (attr->fields & SETATTR_MTIME)
		inode->mtime = attr->mtime_now ? a->now : inode_time_encode(kctx, attr->mtime);
	if (attr->fields & SETATTR_BTIME)
		inode->otime = inode_time_encode(kctx, attr->btime);
	if (attr->fields & SETATTR_CTIME)
		inode->ctime = inode_time_encode(kctx, attr->ctime);
	else if (!attr->keeps_ctime)
		inode->ctime = a->now;
}

static int setattr_run(struct btree_txn *txn, void *ctx)
{
	struct setattr_args *a = ctx;
	const struct setattr *attr = a->attr;
	struct inode *inode = &a->inode;
	uint32_t snapshot;

	int err = subvol_txn_snapshot(txn, a->o.subvol, &snapshot);
	if (!err)
		err = inode_txn_get(txn, a->o.inum, snapshot, inode);
	if (!err)
		err = setattr_check(inode, attr);
	if (!err && attr->fields & (SETATTR_UID | SETATTR_GID))
		owner_set(inode, attr);
	if (!err && attr->fields & SETATTR_MODE)
		err = mode_set(txn, inode, attr->mode);
	if (err)
		return err;
	if (attr->fields & SETATTR_FLAGS)
		inode->flags = (inode->flags & ~(uint32_t)INODE_USER_FLAGS) | attr->flags;
	times_set(a, inode);
	return inode_txn_put(txn, inode);
}

struct view_args {
	struct object o;
	uint32_t snapshot;
};

static int view_run(struct btree_txn *txn, void *ctx)
{
	struct view_args *a = ctx;

	return subvol_txn_snapshot(txn, a->o.subvol, &a->snapshot);
}

int change_file_get(struct namespace *ns, struct object o, struct inode *inode, struct data_write_target *file)
{
	struct view_args view = { .o = o };
	int err = change_run(ns, "subvol", NULL, view_run, &view);

	if (!err)
		err = namespace_inode(ns, o, inode);
	if (err)
		return err;
	*file = (struct data_write_target){
		.inum = o.inum, .snapshot = view.snapshot, .subvol = o.subvol, .forbidding = INODE_IMMUTABLE
	};
	if (S_ISDIR(inode->mode))
		return -EISDIR;
	return S_ISREG(inode->mode) ? 0 : -EINVAL;
}

static int size_set(struct setattr_args *a, uint64_t *journal_seq)
{
	struct data_write_target file;
	struct data_write_times times = { .is_set = true,
					  .mtime = a->now,
					  .ctime = a->now,
					  .clear_setid = !a->attr->keeps_setid && !(a->attr->fields & SETATTR_MODE) };
	int err = change_file_get(a->ns, a->o, &a->inode, &file);

	file.forbidding |= INODE_APPEND;
	/* What else is set comes after the size, and mustn't fail then. */
	if (!err)
		err = setattr_check(&a->inode, a->attr);
	if (err)
		return err;
	struct room_wait room = deletions_room_begin(a->ns);
	do {
		err = data_truncate(a->ns->data, &file, a->attr->size, &times, journal_seq);
	} while (deletions_give_room(a->ns, err, &room));
	return err;
}

int namespace_setattr(struct namespace *ns, struct object o, const struct setattr *attr, struct inode *inode,
		      uint64_t *journal_seq)
{
	struct setattr_args a = { .ns = ns, .o = o, .attr = attr, .now = change_time(ns->super) };
	int err = attr->fields & SETATTR_SIZE ? size_set(&a, journal_seq) : 0;

	if (!err && attr->fields & ~(unsigned)SETATTR_SIZE)
		err = change_run(ns, "setattr", journal_seq, setattr_run, &a);
	else if (!err)
		err = namespace_inode(ns, o, &a.inode);
	if (!err && inode)
		*inode = a.inode;
	return err;
}

ssize_t namespace_write(struct namespace *ns, struct object o, uint64_t offset, const void *buf, size_t len,
			unsigned flags, uint64_t *journal_seq)
{
	bool keeps_times = flags & WRITE_KEEPS_TIMES;
	struct data_write_target file;
	struct inode inode;
	int err = change_file_get(ns, o, &inode, &file);

	if (err)
		return err;
	file.forbidding_inside = keeps_times ? 0 : INODE_APPEND;
	uint64_t now = change_time(ns->super);
	struct data_write_times times = {
		.is_set = !keeps_times, .mtime = now, .ctime = now, .clear_setid = !(flags & WRITE_KEEPS_SETID)
	};
	struct room_wait room = deletions_room_begin(ns);
	size_t done = 0;
	ssize_t ret;
	do {
		ret = data_write(ns->data, &file, offset + done, (const uint8_t *)buf + done, len - done, &times,
				 journal_seq);
		done += ret > 0 ? (size_t)ret : 0;
	} while (done < len && deletions_give_room(ns, ret < 0 ? (int)ret : -ENOSPC, &room));
	return done ? (ssize_t)done : ret;
}
