/*
 * Changes of names and attributes. See serve.c.
 *
 * The kernel has checked permissions, and holds its locks on the directories, when a request comes.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "base/util.h"
#include "mount/atime.h"
#include "mount/protocol.h"

/* Who asks, for a new object. The umask counts only where the directory has no default ACL, so it comes apart. */
static struct kiln_create create_of(fuse_req_t req, mode_t mode)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	return (struct kiln_create){ .mode = mode, .umask = ctx->umask, .uid = ctx->uid, .gid = ctx->gid };
}

void serve_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t dev)
{
	struct kiln_create attr = create_of(req, mode);
	struct kiln_node dir;
	struct kiln_stat st;

	if (!request_node(req, parent, &dir))
		return;
	attr.rdev_major = major(dev);
	attr.rdev_minor = minor(dev);
	struct mount_server *s = server_of(req);
	struct room_try try = room_try_begin(&s->room);
	int err;
	do
		err = kiln_create(s->fs, dir, name, strlen(name), &attr, &st);
	while (room_try_again(&s->room, &try, err));
	reply_entry(req, err, &st);
}

/*
 * O_TMPFILE. Other creates are not served: the kernel then sends a mknod, and has no open file to release later. The
 * file is dead from the start, held by the library until the kernel forgets it or it gets a name.
 */
void serve_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	struct mount_server *s = server_of(req);
	struct kiln_create attr = create_of(req, mode);
	struct fuse_entry_param e;
	struct kiln_node dir;
	struct kiln_stat st;

	(void)name;
	if ((fi->flags & O_TMPFILE) != O_TMPFILE) {
		fuse_reply_err(req, ENOSYS);
		return;
	}
	if (!request_node(req, parent, &dir))
		return;
	struct room_try try = room_try_begin(&s->room);
	int err;
	do
		err = kiln_create_unnamed(s->fs, dir, &attr, &st);
	while (room_try_again(&s->room, &try, err));
	if (!err) {
		err = entry_fill(s, &st, &e);
		if (err)
			kiln_release(s->fs, st.node);
		else
			nodes_mark_unnamed(s->nodes, st.node);
	}
	fi->keep_cache = 1;
	if (err)
		fuse_reply_err(req, -err);
	else if (fuse_reply_create(req, &e, fi))
		server_forget(s, e.ino, 1);
}

void serve_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	serve_mknod(req, parent, name, S_IFDIR | mode, 0);
}

void serve_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	struct kiln_create attr = create_of(req, S_IFLNK | 0777);
	struct kiln_node dir;
	struct kiln_stat st;

	if (!request_node(req, parent, &dir))
		return;
	struct mount_server *s = server_of(req);
	struct room_try try = room_try_begin(&s->room);
	int err;
	do
		err = kiln_symlink(s->fs, dir, name, strlen(name), target, &attr, &st);
	while (room_try_again(&s->room, &try, err));
	reply_entry(req, err, &st);
}

void serve_link(fuse_req_t req, fuse_ino_t id, fuse_ino_t parent, const char *name)
{
	struct mount_server *s = server_of(req);
	struct kiln_node node, dir;
	struct kiln_stat st;

	if (!request_node(req, id, &node) || !request_node(req, parent, &dir))
		return;
	struct room_try try = room_try_begin(&s->room);
	int err;
	do
		err = kiln_link(s->fs, node, dir, name, strlen(name));
	while (room_try_again(&s->room, &try, err));
	if (!err)
		err = kiln_stat(s->fs, node, &st);
	reply_entry(req, err, &st);
}

static void unlink_with(fuse_req_t req, fuse_ino_t parent, const char *name, unsigned flags)
{
	struct kiln_node dir;

	if (request_node(req, parent, &dir))
		fuse_reply_err(req, -kiln_unlink(server_of(req)->fs, dir, name, strlen(name), flags));
}

void serve_unlink(fuse_req_t req, fuse_ino_t parent, const char *name) { unlink_with(req, parent, name, 0); }

void serve_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	unlink_with(req, parent, name, KILN_UNLINK_DIR);
}

void serve_rename(fuse_req_t req, fuse_ino_t from_parent, const char *from, fuse_ino_t to_parent, const char *to,
		  unsigned flags)
{
	_Static_assert(KILN_RENAME_NOREPLACE == 1 && KILN_RENAME_EXCHANGE == 2, "the numbers of renameat2()");
	struct kiln_node from_dir, to_dir;

	if (!request_node(req, from_parent, &from_dir) || !request_node(req, to_parent, &to_dir))
		return;
	struct mount_server *s = server_of(req);
	struct room_try try = room_try_begin(&s->room);
	int err;
	do
		err = kiln_rename(s->fs, from_dir, from, strlen(from), to_dir, to, strlen(to), flags);
	while (room_try_again(&s->room, &try, err));
	fuse_reply_err(req, -err);
}

/* --- attributes --- */

static unsigned setattr_fields(int to_set)
{
	static const struct {
		int fuse;
		unsigned kiln;
	} map[] = {
		{ FUSE_SET_ATTR_MODE, KILN_SET_MODE },
		{ FUSE_SET_ATTR_UID, KILN_SET_UID },
		{ FUSE_SET_ATTR_GID, KILN_SET_GID },
		{ FUSE_SET_ATTR_SIZE, KILN_SET_SIZE },
		{ FUSE_SET_ATTR_ATIME, KILN_SET_ATIME },
		{ FUSE_SET_ATTR_MTIME, KILN_SET_MTIME },
		{ FUSE_SET_ATTR_ATIME_NOW, KILN_SET_ATIME_NOW },
		{ FUSE_SET_ATTR_MTIME_NOW, KILN_SET_MTIME_NOW },
		{ FUSE_SET_ATTR_CTIME, KILN_SET_CTIME },
	};
	unsigned fields = 0;

	for (size_t i = 0; i < ARRAY_NR(map); i++)
		if (to_set & map[i].fuse)
			fields |= map[i].kiln;
	return fields;
}

static struct kiln_timespec timespec_of(struct timespec t)
{
	return (struct kiln_timespec){ .sec = t.tv_sec, .nsec = (uint32_t)t.tv_nsec };
}

/*
 * With writeback caching the kernel keeps mtime: it sends what writing has made it, which comes without atime, and
 * its own idea of now, which comes with the atime of now.
 */
static bool has_times_of_write(int to_set)
{
	return to_set & FUSE_SET_ATTR_MTIME && (!(to_set & FUSE_SET_ATTR_ATIME) || to_set & FUSE_SET_ATTR_ATIME_NOW);
}

/*
 * Whoever deletes a file changes its ctime: with writeback caching the kernel has that written, when it drops the file.
 * Of one that is gone for good nobody ever reads it.
 */
static bool is_times_of_gone(struct mount_server *s, struct kiln_node node, int to_set)
{
	return to_set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_CTIME) &&
	       !(to_set & ~(FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_CTIME)) && nodes_is_gone(s->nodes, node);
}

void serve_setattr(fuse_req_t req, fuse_ino_t id, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	struct kiln_setattr set = {
		.fields = setattr_fields(to_set),
		.mode = attr->st_mode,
		.uid = attr->st_uid,
		.gid = attr->st_gid,
		.size = (uint64_t)attr->st_size,
		.atime = timespec_of(attr->st_atim),
		.mtime = timespec_of(attr->st_mtim),
		.ctime = timespec_of(attr->st_ctim),
	};
	struct kiln_node node;
	struct kiln_stat st;

	if (!(fi && fi->fh & PROTOCOL_KILL_SETID))
		set.fields |= KILN_SET_KEEP_SETID;
	if (has_times_of_write(to_set))
		set.fields |= KILN_SET_TIMES_OF_WRITE;
	if (!request_node(req, id, &node))
		return;
	if (set.fields & (KILN_SET_ATIME | KILN_SET_ATIME_NOW))
		atimes_forget(server_of(req)->atimes, node);
	struct mount_server *s = server_of(req);
	bool is_gone = is_times_of_gone(s, node, to_set);
	struct room_try try = room_try_begin(&s->room);
	int err;
	do
		err = is_gone ? kiln_stat(s->fs, node, &st) : kiln_setattr(s->fs, node, &set, &st);
	while (room_try_again(&s->room, &try, err));
	reply_attr(req, err, &st);
}

/* --- chattr, lsattr --- */

/* The same flags in two words: of FS_IOC_GETFLAGS, and of the structure that has the project, too. */
static const struct {
	uint32_t flag, xflag;
} flag_map[] = {
	{ FS_SYNC_FL, FS_XFLAG_SYNC },	   { FS_IMMUTABLE_FL, FS_XFLAG_IMMUTABLE }, { FS_APPEND_FL, FS_XFLAG_APPEND },
	{ FS_NODUMP_FL, FS_XFLAG_NODUMP }, { FS_NOATIME_FL, FS_XFLAG_NOATIME },
};

static struct fsxattr fsxattr_of(const struct kiln_stat *st)
{
	struct fsxattr x = { .fsx_projid = st->project };

	for (size_t i = 0; i < ARRAY_NR(flag_map); i++)
		if (st->flags & flag_map[i].flag)
			x.fsx_xflags |= flag_map[i].xflag;
	return x;
}

static int flags_set(kiln_fs *fs, struct kiln_node node, uint32_t flags)
{
	return kiln_setattr(fs, node, &(struct kiln_setattr){ .fields = KILN_SET_FLAGS, .flags = flags }, NULL);
}

static int xattr_set(struct mount_server *s, struct kiln_node node, const char *name, const char *value, size_t size,
		     int flags)
{
	struct room_try try = room_try_begin(&s->room);
	int err;

	do
		err = kiln_setxattr(s->fs, node, name, value, size, (unsigned)flags);
	while (room_try_again(&s->room, &try, err));
	return err;
}

static int fsxattr_set(struct mount_server *s, struct kiln_node node, const struct fsxattr *x)
{
	uint32_t flags, unknown = x->fsx_xflags;
	struct kiln_stat st;
	char project[16];
	int err = kiln_stat(s->fs, node, &st);

	if (err)
		return err;
	flags = st.flags;
	for (size_t i = 0; i < ARRAY_NR(flag_map); i++) {
		flags = (flags & ~flag_map[i].flag) | (x->fsx_xflags & flag_map[i].xflag ? flag_map[i].flag : 0);
		unknown &= ~flag_map[i].xflag;
	}
	if (unknown || x->fsx_extsize || x->fsx_cowextsize)
		return -EOPNOTSUPP;
	if (flags != st.flags)
		err = flags_set(s->fs, node, flags);
	if (err || x->fsx_projid == st.project)
		return err;
	int len = snprintf(project, sizeof(project), "%u", x->fsx_projid);
	return xattr_set(s, node, "bcachefs.project", project, (size_t)len, 0);
}

/* Flags are one int, whatever the numbers of the requests say. */
void serve_ioctl(fuse_req_t req, fuse_ino_t id, unsigned cmd, void *arg, struct fuse_file_info *fi, unsigned flags,
		 const void *in_buf, size_t in_bytes, size_t out_bytes)
{
	kiln_fs *fs = server_of(req)->fs;
	struct kiln_node node;
	struct kiln_stat st;
	struct fsxattr x;
	uint32_t fs_flags;
	int err = -ENOTTY;

	(void)arg;
	(void)fi;
	(void)flags;
	if (!request_node(req, id, &node))
		return;
	bool is_set = true;
	if (cmd == FS_IOC_SETFLAGS && in_bytes >= sizeof(fs_flags)) {
		memcpy(&fs_flags, in_buf, sizeof(fs_flags));
		err = flags_set(fs, node, fs_flags);
	} else if (cmd == FS_IOC_FSSETXATTR && in_bytes >= sizeof(x)) {
		memcpy(&x, in_buf, sizeof(x));
		err = fsxattr_set(server_of(req), node, &x);
	} else {
		is_set = false;
	}
	if (is_set && !err) {
		/* ctime */
		server_forget_attributes(server_of(req), id);
		fuse_reply_ioctl(req, 0, NULL, 0);
		return;
	}
	bool is_get = (cmd == FS_IOC_GETFLAGS && out_bytes >= sizeof(fs_flags)) ||
		      (cmd == FS_IOC_FSGETXATTR && out_bytes >= sizeof(x));
	if (is_get)
		err = kiln_stat(fs, node, &st);
	if (err) {
		fuse_reply_err(req, -err);
	} else if (cmd == FS_IOC_GETFLAGS) {
		fuse_reply_ioctl(req, 0, &st.flags, sizeof(st.flags));
	} else {
		x = fsxattr_of(&st);
		fuse_reply_ioctl(req, 0, &x, sizeof(x));
	}
}

/* Who isn't of a file's group can't keep it setgid while changing its permissions, by an ACL no more than by chmod().
 */
static int acl_clear_setgid(fuse_req_t req, struct kiln_node node)
{
	struct mount_server *s = server_of(req);
	struct kiln_stat st;

	if (!fuse_req_ctx(req)->uid)
		return 0;
	int err = kiln_stat(s->fs, node, &st);
	if (err || !(st.mode & S_ISGID) || request_is_of_group(req, st.gid))
		return err;
	return kiln_setattr(s->fs, node,
			    &(struct kiln_setattr){ .fields = KILN_SET_MODE, .mode = st.mode & ~(uint32_t)S_ISGID },
			    NULL);
}

void serve_setxattr(fuse_req_t req, fuse_ino_t id, const char *name, const char *value, size_t size, int flags)
{
	_Static_assert(KILN_XATTR_CREATE == 1 && KILN_XATTR_REPLACE == 2, "the numbers of setxattr()");
	struct kiln_node node;

	if (!request_node(req, id, &node))
		return;
	int err = xattr_set(server_of(req), node, name, value, size, flags);
	if (!err && !strcmp(name, "system.posix_acl_access"))
		err = acl_clear_setgid(req, node);
	fuse_reply_err(req, -err);
}

void serve_removexattr(fuse_req_t req, fuse_ino_t id, const char *name)
{
	struct kiln_node node;

	if (request_node(req, id, &node))
		fuse_reply_err(req, -kiln_removexattr(server_of(req)->fs, node, name));
}
