/* The public calls that change a filesystem: thin, as api.c. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mutant.h"
#include "engine/api.h"
#include "engine/fs_write.h"
#include "namespace/change.h"

enum { NAME_BYTES_MAX = 255 };

/* 0 when changes are allowed now. */
static int may_change(const kiln_fs *fs)
{
	return fs->is_writable ? __atomic_load_n(&fs->shut_down, __ATOMIC_ACQUIRE) : -EROFS;
}

static int name_check(const char *name, size_t len)
{
	if (!len)
		return -ENOENT;
	if (len > NAME_BYTES_MAX)
		return -ENAMETOOLONG;
	if (memchr(name, '/', len) || memchr(name, 0, len))
		return -EINVAL;
	return 0;
}

static bool is_dot_name(const char *name, size_t len)
{
	return (len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.');
}

int api_new_name_check(const kiln_fs *fs, const char *name, size_t len)
{
	int err = may_change(fs);

	if (!err)
		err = name_check(name, len);
	return err ? err : is_dot_name(name, len) ? -EEXIST : 0;
}

static struct create_attr create_attr_of(const struct kiln_create *attr)
{
	return (struct create_attr){
		.mode = attr->mode & S_IFMT ? attr->mode : attr->mode | S_IFREG,
		.umask = attr->umask & 0777,
		.uid = attr->uid,
		.gid = attr->gid,
		.rdev_major = attr->rdev_major,
		.rdev_minor = attr->rdev_minor,
	};
}

static void fill(const kiln_fs *fs, int err, struct object o, const struct inode *inode, struct kiln_stat *st)
{
	if (!err && st)
		api_stat_fill(fs, o, inode, false, st);
}

/* --- names --- */

int kiln_create(kiln_fs *fs, struct kiln_node dir, const char *name, size_t len, const struct kiln_create *attr,
		struct kiln_stat *st)
{
	struct create_attr a = create_attr_of(attr);
	struct object created = { 0 };
	struct inode inode = { 0 };

	int err = api_new_name_check(fs, name, len);
	if (!err && S_ISLNK(a.mode))
		err = -EINVAL;
	if (!err)
		err = namespace_create(fs->ns, object_of(dir), name, len, &a, &created, &inode, NULL);
	fill(fs, err, created, &inode, st);
	return error_to_errno(err);
}

int kiln_create_unnamed(kiln_fs *fs, struct kiln_node dir, const struct kiln_create *attr, struct kiln_stat *st)
{
	struct create_attr a = create_attr_of(attr);
	struct object created = { 0 };
	struct inode inode = { 0 };

	int err = may_change(fs);
	if (!err && !S_ISREG(a.mode))
		err = -EINVAL;
	if (!err)
		err = namespace_create_unnamed(fs->ns, object_of(dir), &a, &created, &inode, NULL);
	fill(fs, err, created, &inode, st);
	return error_to_errno(err);
}

int kiln_symlink(kiln_fs *fs, struct kiln_node dir, const char *name, size_t len, const char *target,
		 const struct kiln_create *attr, struct kiln_stat *st)
{
	struct create_attr a = create_attr_of(attr);
	size_t target_len = strnlen(target, PATH_MAX);
	struct object created = { 0 };
	struct inode inode = { 0 };

	a.mode = S_IFLNK | 0777;
	a.umask = 0;
	int err = api_new_name_check(fs, name, len);
	if (!err && !target_len)
		err = -ENOENT;
	if (!err && target_len >= PATH_MAX)
		err = -ENAMETOOLONG;
	if (!err)
		err = namespace_symlink(fs->ns, object_of(dir), name, len, target, target_len, &a, &created, &inode,
					NULL);
	fill(fs, err, created, &inode, st);
	return error_to_errno(err);
}

int kiln_link(kiln_fs *fs, struct kiln_node node, struct kiln_node dir, const char *name, size_t len)
{
	int err = api_new_name_check(fs, name, len);

	return error_to_errno(err ? err : namespace_link(fs->ns, object_of(node), object_of(dir), name, len, NULL));
}

int kiln_unlink(kiln_fs *fs, struct kiln_node dir, const char *name, size_t len, unsigned flags)
{
	int err = may_change(fs);

	if (!err)
		err = flags & ~(unsigned)KILN_UNLINK_DIR ? -EINVAL : name_check(name, len);
	if (!err && is_dot_name(name, len))
		err = !(flags & KILN_UNLINK_DIR) ? -EISDIR : len == 1 ? -EINVAL : -ENOTEMPTY;
	if (!err)
		err = namespace_unlink(fs->ns, object_of(dir), name, len, flags & KILN_UNLINK_DIR, NULL, NULL);
	return error_to_errno(err);
}

int kiln_rename(kiln_fs *fs, struct kiln_node from_dir, const char *from, size_t from_len, struct kiln_node to_dir,
		const char *to, size_t to_len, unsigned flags)
{
	unsigned inner = flags & KILN_RENAME_EXCHANGE	 ? RENAME_SWAP
			 : flags & KILN_RENAME_NOREPLACE ? RENAME_NO_REPLACE
							 : RENAME_OVERWRITE;

	int err = may_change(fs);
	if (!err && (flags & ~(unsigned)(KILN_RENAME_NOREPLACE | KILN_RENAME_EXCHANGE) ||
		     flags == (KILN_RENAME_NOREPLACE | KILN_RENAME_EXCHANGE)))
		err = -EINVAL;
	if (!err)
		err = name_check(from, from_len);
	if (!err)
		err = name_check(to, to_len);
	if (!err && (is_dot_name(from, from_len) || is_dot_name(to, to_len)))
		err = flags & KILN_RENAME_NOREPLACE ? -EEXIST : -EBUSY;
	if (!err)
		err = namespace_rename(fs->ns, object_of(from_dir), from, from_len, object_of(to_dir), to, to_len,
				       inner, NULL);
	return error_to_errno(err);
}

/* --- attributes --- */

static struct inode_time inode_time_of(struct kiln_timespec t) { return (struct inode_time){ t.sec, t.nsec }; }

static unsigned setattr_fields_of(unsigned fields)
{
	static const struct {
		unsigned api, inner;
	} map[] = {
		{ KILN_SET_MODE, SETATTR_MODE },       { KILN_SET_UID, SETATTR_UID },
		{ KILN_SET_GID, SETATTR_GID },	       { KILN_SET_SIZE, SETATTR_SIZE },
		{ KILN_SET_ATIME, SETATTR_ATIME },     { KILN_SET_MTIME, SETATTR_MTIME },
		{ KILN_SET_CTIME, SETATTR_CTIME },     { KILN_SET_FLAGS, SETATTR_FLAGS },
		{ KILN_SET_BTIME, SETATTR_BTIME },     { KILN_SET_ATIME_NOW, SETATTR_ATIME },
		{ KILN_SET_MTIME_NOW, SETATTR_MTIME },
	};
	unsigned inner = 0;

	for (size_t i = 0; i < ARRAY_NR(map); i++)
		if (fields & map[i].api)
			inner |= map[i].inner;
	return inner;
}

int kiln_setattr(kiln_fs *fs, struct kiln_node node, const struct kiln_setattr *attr, struct kiln_stat *st)
{
	struct setattr a = {
		.fields = setattr_fields_of(attr->fields),
		.mode = attr->mode & 07777,
		.uid = attr->uid,
		.gid = attr->gid,
		.size = attr->size,
		.atime = inode_time_of(attr->atime),
		.mtime = inode_time_of(attr->mtime),
		.ctime = inode_time_of(attr->ctime),
		.btime = inode_time_of(attr->btime),
		.atime_now = attr->fields & KILN_SET_ATIME_NOW,
		.mtime_now = attr->fields & KILN_SET_MTIME_NOW,
		.keeps_setid = attr->fields & KILN_SET_KEEP_SETID,
		.has_times_of_write = attr->fields & KILN_SET_TIMES_OF_WRITE,
		.keeps_ctime = attr->fields & KILN_SET_KEEP_CTIME,
	};
	struct inode inode = { 0 };

	int err = may_change(fs);
	if (!err && attr->fields & KILN_SET_FLAGS)
		err = api_flags_of_fs(attr->flags, &a.flags);
	if (!err)
		err = namespace_setattr(fs->ns, object_of(node), &a, &inode, NULL);
	fill(fs, err, object_of(node), &inode, st);
	return error_to_errno(err);
}

int kiln_setxattr(kiln_fs *fs, struct kiln_node node, const char *name, const void *value, size_t size, unsigned flags)
{
	unsigned inner = (flags & KILN_XATTR_CREATE ? XATTR_MUST_CREATE : 0) |
			 (flags & KILN_XATTR_REPLACE ? XATTR_MUST_REPLACE : 0);
	int err = may_change(fs);

	if (!err && flags & ~(unsigned)(KILN_XATTR_CREATE | KILN_XATTR_REPLACE))
		err = -EINVAL;
	if (!err)
		err = namespace_xattr_set(fs->ns, object_of(node), name, value, size, inner, NULL);
	return error_to_errno(err);
}

int kiln_removexattr(kiln_fs *fs, struct kiln_node node, const char *name)
{
	int err = may_change(fs);

	return error_to_errno(err ? err : namespace_xattr_remove(fs->ns, object_of(node), name, NULL));
}

/* --- data --- */

ssize_t kiln_write(kiln_fs *fs, struct kiln_node node, uint64_t offset, const void *buf, size_t len)
{
	return kiln_write_with(fs, node, offset, buf, len, 0);
}

ssize_t kiln_write_with(kiln_fs *fs, struct kiln_node node, uint64_t offset, const void *buf, size_t len,
			unsigned flags)
{
	unsigned inner = (flags & KILN_WRITE_KEEP_TIMES ? WRITE_KEEPS_TIMES : 0) |
			 (flags & KILN_WRITE_KEEP_SETID ? WRITE_KEEPS_SETID : 0);
	int err = may_change(fs);

	if (err)
		return error_to_errno(err);
	/* The result must fit, and the end must be a file size. */
	len = min(len, (size_t)SSIZE_MAX & ~(size_t)0xffff);
	if (offset > INT64_MAX || len > (uint64_t)INT64_MAX - offset)
		return -EFBIG;
	ssize_t ret = namespace_write(fs->ns, object_of(node), offset, buf, len, inner, NULL);
	return ret < 0 ? error_to_errno((int)ret) : ret;
}

/* The combinations of flags that mean something. */
static int fallocate_op_of(unsigned mode)
{
	switch (mode) {
	case 0: return FALLOCATE_EXTEND;
	case KILN_FALLOC_KEEP_SIZE: return FALLOCATE_KEEP_SIZE;
	case KILN_FALLOC_ZERO_RANGE: return FALLOCATE_ZERO_EXTEND;
	case KILN_FALLOC_ZERO_RANGE | KILN_FALLOC_KEEP_SIZE: return FALLOCATE_ZERO_KEEP_SIZE;
	case KILN_FALLOC_PUNCH_HOLE | KILN_FALLOC_KEEP_SIZE: return FALLOCATE_PUNCH;
	case KILN_FALLOC_COLLAPSE_RANGE: return FALLOCATE_COLLAPSE;
	case KILN_FALLOC_INSERT_RANGE: return FALLOCATE_INSERT;
	default: return -EOPNOTSUPP;
	}
}

int kiln_fallocate(kiln_fs *fs, struct kiln_node node, unsigned mode, uint64_t offset, uint64_t len)
{
	int err = may_change(fs), op = fallocate_op_of(mode & ~(unsigned)KILN_FALLOC_KEEP_SETID);

	if (!err)
		err = op < 0 ? op : len ? 0 : -EINVAL;
	if (!err && (offset > INT64_MAX || len > (uint64_t)INT64_MAX - offset) && op != FALLOCATE_PUNCH)
		err = -EFBIG;
	if (!err)
		err = namespace_fallocate(fs->ns, object_of(node), (enum fallocate_op)op, offset, len,
					  mode & KILN_FALLOC_KEEP_SETID, NULL);
	return error_to_errno(err);
}

int kiln_punch(kiln_fs *fs, struct kiln_node node, uint64_t offset, uint64_t len)
{
	return kiln_fallocate(fs, node, KILN_FALLOC_PUNCH_HOLE | KILN_FALLOC_KEEP_SIZE, offset, len);
}

ssize_t kiln_copy_range(kiln_fs *fs, struct kiln_node from, uint64_t from_offset, struct kiln_node to,
			uint64_t to_offset, uint64_t len, unsigned flags)
{
	int err = may_change(fs);

	if (!err && flags & ~(unsigned)(KILN_COPY_SHARE | KILN_COPY_KEEP_SETID))
		err = -EINVAL;
	if (err)
		return error_to_errno(err);
	if (!(flags & KILN_COPY_SHARE))
		len = min(len, (uint64_t)SSIZE_MAX & ~0xffffull);
	ssize_t ret = namespace_copy_range(fs->ns, object_of(from), from_offset, object_of(to), to_offset, len,
					   flags & KILN_COPY_SHARE ? DATA_COPY_SHARE_ONLY : 0,
					   flags & KILN_COPY_KEEP_SETID, NULL);
	return ret < 0 ? error_to_errno((int)ret) : ret;
}

/* --- durability --- */

static int in_place_lost(struct kiln_fs *fs, unsigned dev)
{
	int err = fs_device_leave(fs, dev);

	report_emit(&fs->reporter.sink,
		    &(struct report){ .level = err ? REPORT_FATAL : REPORT_RECOVERED,
				      .err = -EIO,
				      .device = fs->super->members[dev].name,
				      .structure = "file data",
				      .expected = "a flush of the device's cache",
				      .found = error_name(-EIO),
				      .advice = err ? "What was overwritten in place since the last one may be lost."
						    : "It is marked as failed, and the others go on without it." });
	if (err)
		fs_shut_down(fs, -EIO, "data overwritten in place");
	return err;
}

/*
 * What was overwritten in place, of one inode or of all. A device whose cache can't be flushed is left if everything is
 * on others, too; else nothing is acknowledged any more.
 */
static int flush_in_place(struct kiln_fs *fs, const uint64_t *inum)
{
	uint64_t failed;
	int ret = data_flush_in_place(fs->data, inum, &failed), err = 0;

	for (unsigned dev = 0; dev < 64; dev++)
		if (failed >> dev & 1 && in_place_lost(fs, dev))
			err = -EIO;
	/* A flush that failed before, in the journal's task, is not to be made up for by one that doesn't. */
	return err || !ret ? err : __atomic_load_n(&fs->shut_down, __ATOMIC_ACQUIRE);
}

int kiln_fsync(kiln_fs *fs, struct kiln_node node)
{
	struct inode inode = { 0 };

	if (!fs->is_writable || is_mutant(MUTANT_FSYNC))
		return 0;
	int err = namespace_inode(fs->ns, object_of(node), &inode);
	if (!err)
		err = flush_in_place(fs, &node.ino);
	/* An entry that isn't there yet can't hold it: newer inodes don't exist, damaged ones do. */
	if (!err)
		err = inode.journal_seq > journal_seq(fs->journal_writer)
			      ? journal_flush(fs->journal_writer)
			      : journal_flush_seq(fs->journal_writer,
						  max(inode.journal_seq, data_in_place_seq(fs->data, node.ino)));
	return error_to_errno(err);
}

int kiln_sync(kiln_fs *fs)
{
	if (!fs->is_writable)
		return 0;
	int err = flush_in_place(fs, NULL);

	return error_to_errno(err ? err : journal_flush(fs->journal_writer));
}

/* --- objects in use --- */

int kiln_hold(kiln_fs *fs, struct kiln_node node)
{
	if (fs->is_writable)
		namespace_hold(fs->ns, object_of(node));
	return 0;
}

void kiln_release(kiln_fs *fs, struct kiln_node node)
{
	if (fs->is_writable)
		namespace_release(fs->ns, object_of(node));
}

static bool in_use_adapt(void *ctx, struct object o)
{
	kiln_fs *fs = ctx;

	return fs->is_in_use(fs->is_in_use_ctx, node_of(o));
}

void kiln_in_use_set(kiln_fs *fs, bool (*is_in_use)(void *ctx, struct kiln_node node), void *ctx)
{
	if (!fs->is_writable)
		return;
	fs->is_in_use = is_in_use;
	fs->is_in_use_ctx = ctx;
	namespace_in_use_set(fs->ns, is_in_use ? in_use_adapt : NULL, fs);
}

int kiln_deletions_wait(kiln_fs *fs) { return fs->is_writable ? error_to_errno(namespace_deletions_wait(fs->ns)) : 0; }
