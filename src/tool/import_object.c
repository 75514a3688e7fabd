/* Single objects of an import: making them, and everything about them. See import.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "engine/fs.h"
#include "tool/import_private.h"

/* --- what isn't imported --- */

bool import_own_find(struct import *x)
{
	const struct super *s = x->fs->super;

	x->own = calloc(max(s->member_nr, 1u), sizeof(*x->own));
	for (unsigned i = 0; x->own && i < s->member_nr; i++) {
		struct stat st;

		if (super_member_online(s, i) && !stat(s->members[i].dev->name, &st))
			x->own[x->own_nr++] = (struct import_own){ st.st_dev, st.st_ino };
	}
	return x->own;
}

/* --- names --- */

static struct kiln_create create_of(const struct import *x, const struct stat *st)
{
	return (struct kiln_create){
		.mode = st->st_mode,
		.uid = x->options.keeps_owner ? st->st_uid : x->options.uid,
		.gid = x->options.keeps_owner ? st->st_gid : x->options.gid,
		.rdev_major = major(st->st_rdev),
		.rdev_minor = minor(st->st_rdev),
	};
}

static int make_new(struct import *x, struct kiln_node dir, const char *name, const struct stat *st, const char *target,
		    struct kiln_node *node)
{
	struct kiln_create attr = create_of(x, st);
	struct kiln_stat made;

	int err = S_ISLNK(st->st_mode) ? kiln_symlink(x->fs, dir, name, strlen(name), target, &attr, &made)
				       : kiln_create(x->fs, dir, name, strlen(name), &attr, &made);
	if (!err)
		*node = made.node;
	return err;
}

/*
 * Directories that exist are merged into, as tar and cp do. Other objects are replaced if that was asked for, but
 * neither a directory by something else nor the other way round.
 */
int import_make(struct import *x, struct kiln_node dir, const char *name, const struct stat *st, const char *target,
		struct kiln_node *node)
{
	struct kiln_stat old;

	int err = make_new(x, dir, name, st, target, node);
	if (err != -EEXIST || !(x->options.overwrite || S_ISDIR(st->st_mode)))
		return err;
	err = kiln_lookup(x->fs, dir, name, strlen(name), &old);
	if (err)
		return err;
	if (S_ISDIR(old.mode) || S_ISDIR(st->st_mode)) {
		*node = old.node;
		return S_ISDIR(old.mode) && S_ISDIR(st->st_mode) ? 0 : -EEXIST;
	}
	err = kiln_unlink(x->fs, dir, name, strlen(name), 0);
	return err ? err : make_new(x, dir, name, st, target, node);
}

int import_make_link(struct import *x, struct kiln_node node, struct kiln_node dir, const char *name)
{
	struct kiln_stat old;

	int err = kiln_link(x->fs, node, dir, name, strlen(name));
	if (err == -EEXIST && x->options.overwrite) {
		/* The same file twice: nothing to replace, and replacing might delete the last name. */
		err = kiln_lookup(x->fs, dir, name, strlen(name), &old);
		if (!err && old.node.ino == node.ino && old.node.subvol == node.subvol)
			return 0;
		if (!err && S_ISDIR(old.mode))
			return -EEXIST;
		err = err ? err : kiln_unlink(x->fs, dir, name, strlen(name), 0);
		err = err ? err : kiln_link(x->fs, node, dir, name, strlen(name));
	}
	return err;
}

/* --- attributes --- */

int import_set_attributes(struct import *x, struct kiln_node node, const struct stat *st, off_t size)
{
	struct kiln_setattr attr = {
		.fields = KILN_SET_ATIME | KILN_SET_MTIME | KILN_SET_UID | KILN_SET_GID,
		.atime = { st->st_atim.tv_sec, (uint32_t)st->st_atim.tv_nsec },
		.mtime = { st->st_mtim.tv_sec, (uint32_t)st->st_mtim.tv_nsec },
		.uid = x->options.keeps_owner ? st->st_uid : x->options.uid,
		.gid = x->options.keeps_owner ? st->st_gid : x->options.gid,
	};

	/* Inheritance (setgid, default ACLs) and writing may have changed it. */
	if (!S_ISLNK(st->st_mode)) {
		attr.fields |= KILN_SET_MODE;
		attr.mode = st->st_mode & 07777;
	}
	if (size >= 0) {
		attr.fields |= KILN_SET_SIZE;
		attr.size = (uint64_t)size;
	}
	return kiln_setattr(x->fs, node, &attr, NULL);
}

bool import_xattr_is_left_out(const char *name)
{
	return !strncmp(name, "bcachefs", 8) || !strncmp(name, "btrfs.", 6) || !strcmp(name, "security.evm");
}

static ssize_t xattr_list(int fd, const char *path, char *list, size_t size)
{
	return fd >= 0 ? flistxattr(fd, list, size) : llistxattr(path, list, size);
}

bool import_has_xattrs(int fd, const char *path)
{
	char names[256];
	ssize_t len = xattr_list(fd, path, names, sizeof(names));

	if (len < 0)
		return errno != EOPNOTSUPP && errno != ENOSYS;
	for (ssize_t at = 0; at < len; at += (ssize_t)strlen(names + at) + 1)
		if (!import_xattr_is_left_out(names + at))
			return true;
	return false;
}

static int xattr_copy(struct import *x, int fd, const char *path, struct kiln_node node, const char *name, char *value,
		      size_t value_bytes)
{
	ssize_t size = fd >= 0 ? fgetxattr(fd, name, value, value_bytes) : lgetxattr(path, name, value, value_bytes);

	if (size < 0)
		return errno == ENODATA ? 0 : -errno;
	return kiln_setxattr(x->fs, node, name, value, (size_t)size, 0);
}

int import_xattrs(struct import *x, int fd, const char *path, struct kiln_node node)
{
	enum { XATTR_BYTES_MAX = 64 << 10 };
	char few[256];
	int first_err = 0;
	ssize_t len = xattr_list(fd, path, few, sizeof(few));

	if (len <= 0 && !(len < 0 && errno == ERANGE))
		return len < 0 && errno != EOPNOTSUPP && errno != ENOSYS ? -errno : 0;
	CLEANUP_FREE char *names = malloc(XATTR_BYTES_MAX);
	CLEANUP_FREE char *value = malloc(XATTR_BYTES_MAX);
	if (!names || !value)
		return -ENOMEM;
	len = xattr_list(fd, path, names, XATTR_BYTES_MAX);
	if (len < 0)
		return -errno;
	for (ssize_t at = 0; at < len; at += (ssize_t)strlen(names + at) + 1) {
		if (import_xattr_is_left_out(names + at))
			continue;
		int err = xattr_copy(x, fd, path, node, names + at, value, XATTR_BYTES_MAX);
		/* A fatal error must not hide behind one that isn't. */
		first_err = !first_err || err == -ENOSPC || err == -EROFS ? (err ? err : first_err) : first_err;
	}
	return first_err;
}

bool import_hands_on_acl(struct import *x, struct kiln_node dir)
{
	return kiln_getxattr(x->fs, dir, "system.posix_acl_default", NULL, 0) > 0;
}

int import_acls_drop(struct import *x, struct kiln_node node)
{
	static const char *const names[] = { "system.posix_acl_access", "system.posix_acl_default" };

	for (size_t i = 0; i < ARRAY_NR(names); i++) {
		int err =
			kiln_getxattr(x->fs, node, names[i], NULL, 0) > 0 ? kiln_removexattr(x->fs, node, names[i]) : 0;
		if (err)
			return err;
	}
	return 0;
}

/* --- contents --- */

int import_write(struct import *x, struct kiln_node node, off_t offset, const char *buf, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = kiln_write(x->fs, node, (uint64_t)offset + done, buf + done, len - done);

		if (n <= 0)
			return n ? (int)n : -ENOSPC;
		done += (size_t)n;
	}
	if (x->options.progress)
		x->options.progress(x->options.ctx, len, 0);
	return 0;
}

/* Copy what lies from @offset up to @end, all data. *@written: where the last byte went. */
static int copy_range(struct import *x, int fd, struct kiln_node node, off_t offset, off_t end, char *buf,
		      uint64_t *bytes, off_t *written)
{
	while (offset < end) {
		int stop = import_stopped(x);
		if (stop)
			return stop;
		ssize_t n = pread(fd, buf, (size_t)min((off_t)IMPORT_BUFFER_BYTES, end - offset), offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : 0; /* it shrank while it was read */
		int err = import_write(x, node, offset, buf, (size_t)n);
		if (err)
			return err;
		offset += n;
		*bytes += (uint64_t)n;
		*written = offset;
	}
	return 0;
}

/* Contents with their holes. *@written: where the last byte went. */
static int copy_contents(struct import *x, int fd, struct kiln_node node, const struct stat *st, char *buf,
			 uint64_t *bytes, off_t *written)
{
	bool may_have_holes = st->st_blocks < (st->st_size + 511) / 512;
	int err = 0;

	for (off_t at = 0; at < st->st_size && !err;) {
		off_t data = at, hole = st->st_size;

		if (may_have_holes) {
			data = lseek(fd, at, SEEK_DATA);
			if (data < 0 && errno == ENXIO)
				break;
			data = data < 0 ? at : data; /* a filesystem that doesn't know */
			hole = lseek(fd, data, SEEK_HOLE);
			hole = hole < 0 ? st->st_size : min(hole, st->st_size);
		}
		err = copy_range(x, fd, node, data, hole, buf, bytes, written);
		at = hole;
	}
	return err;
}

int import_fill(struct import *x, int fd, const char *path, struct kiln_node node, const struct stat *st, char *buffer)
{
	bool has_contents = S_ISREG(st->st_mode) && st->st_size;
	uint64_t bytes = 0;
	off_t written = 0;

	int err = has_contents ? copy_contents(x, fd, node, st, buffer, &bytes, &written) : 0;
	if (err)
		return err;
	/* An attribute that can't be kept leaves the others, and the times. */
	err = import_xattrs(x, fd, path, node);
	int attr_err = import_set_attributes(x, node, st, has_contents && written != st->st_size ? st->st_size : -1);
	if (!attr_err)
		import_count(x, st->st_mode, bytes);
	return attr_err ? attr_err : err;
}
