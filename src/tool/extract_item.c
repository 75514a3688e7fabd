/*
 * Making single objects at the destination: contents, then owner, extended attributes, mode, and times last. The order
 * matters: writing and changing the owner drop set-id bits and capabilities, and everything changes the times.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/array.h"
#include "tool/extract_private.h"

static int contents_copy(struct extract *x, struct item *o);
static void metadata_apply(struct extract *x, struct item *o, int fd);

static const char *item_name(const struct item *o) { return tree_basename(strbuf_text(&o->path)); }

/* --- making --- */

int item_make_room(struct extract *x, struct item *o)
{
	const char *path = strbuf_text(&o->path);
	struct stat st;

	if (o->dir_is_ours) {
		extract_tell(x, path, EXTRACT_REFUSED, -EEXIST,
			     "its directory has this name twice; the second was left out");
		return -EEXIST;
	}
	if (!x->o.overwrite) {
		extract_tell(x, path, EXTRACT_FAILED, -EEXIST, "exists at the destination (--overwrite replaces it)");
		return -EEXIST;
	}
	if (!fstatat(o->dir_fd, item_name(o), &st, AT_SYMLINK_NOFOLLOW) && S_ISDIR(st.st_mode)) {
		extract_tell(x, path, EXTRACT_FAILED, -EISDIR, "a directory is in its place at the destination");
		return -EEXIST;
	}
	if (unlinkat(o->dir_fd, item_name(o), 0) && errno != ENOENT) {
		extract_tell(x, path, EXTRACT_FAILED, -errno, "can't replace what exists");
		return -EEXIST;
	}
	return 0;
}

/* Make the entry of a non-file: 0 or a negative errno. */
static int entry_make(struct item *o, const char *target)
{
	mode_t type = o->st.mode & S_IFMT;
	int ret;

	if (target)
		ret = symlinkat(target, o->dir_fd, item_name(o));
	else
		ret = mknodat(o->dir_fd, item_name(o), type | 0600, makedev(o->st.rdev_major, o->st.rdev_minor));
	return ret ? -errno : 0;
}

/* A link, fifo, socket or device node. */
static void special_make(struct extract *x, struct item *o, const char *target)
{
	int err = entry_make(o, target);

	if (err == -EEXIST) {
		if (item_make_room(x, o))
			return;
		err = entry_make(o, target);
	}
	if (err) {
		extract_tell(x, strbuf_text(&o->path), EXTRACT_FAILED, err, "can't be made");
		return;
	}
	o->is_made = true;
	metadata_apply(x, o, -1);
	mutex_lock(&x->lock);
	if (target)
		x->counts.symlinks++;
	else
		x->counts.specials++;
	mutex_unlock(&x->lock);
}

static void symlink_make(struct extract *x, struct item *o)
{
	ssize_t len = kiln_readlink(x->fs, o->st.node, o->buf, ITEM_BUF_BYTES - 1);

	if (len <= 0 || len >= ITEM_BUF_BYTES - 1) {
		extract_tell(x, strbuf_text(&o->path), EXTRACT_LOST, len < 0 ? (int)len : -EINVAL,
			     "the target of the symlink can't be read");
		return;
	}
	o->buf[len] = 0;
	special_make(x, o, o->buf);
}

static int file_open(struct item *o)
{
	int fd = openat(o->dir_fd, item_name(o), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

	return fd < 0 ? -errno : fd;
}

static void file_make(struct extract *x, struct item *o)
{
	const char *path = strbuf_text(&o->path);

	o->fd = file_open(o);
	if (o->fd == -EEXIST) {
		if (item_make_room(x, o))
			return;
		o->fd = file_open(o);
	}
	if (o->fd < 0) {
		extract_tell(x, path, EXTRACT_FAILED, o->fd, "can't be created");
		return;
	}

	int err = contents_copy(x, o);
	if (!err && o->written_end < o->st.size && ftruncate(o->fd, (off_t)o->st.size))
		err = -errno;
	if (!err)
		metadata_apply(x, o, o->fd);
	if (close(o->fd) && !err)
		err = -errno;
	if (err) {
		/* Half a file is worse than none: its name would say that all is there. */
		unlinkat(o->dir_fd, item_name(o), 0);
		if (err != -EINTR)
			extract_tell(x, path, EXTRACT_FAILED, err, "can't be written");
		return;
	}
	o->is_made = true;
	mutex_lock(&x->lock);
	x->counts.files++;
	x->counts.damaged_files += o->damaged_bytes > 0;
	x->counts.damaged_bytes += o->damaged_bytes;
	mutex_unlock(&x->lock);
	if (x->o.progress)
		x->o.progress(x->o.ctx, 0, 1);
}

void item_make(struct extract *x, struct item *o)
{
	const char *path = strbuf_text(&o->path);

	o->is_made = false;
	if (extract_is_stopped(x))
		return;
	switch (o->st.mode & S_IFMT) {
	case S_IFREG: file_make(x, o); return;
	case S_IFLNK: symlink_make(x, o); return;
	case S_IFCHR:
	case S_IFBLK:
		if (!x->o.is_root) {
			extract_tell(x, path, EXTRACT_SKIPPED, -EPERM, "a device node: only root can make it");
			return;
		}
		special_make(x, o, NULL);
		return;
	case S_IFIFO:
	case S_IFSOCK: special_make(x, o, NULL); return;
	default:
		extract_tell(x, path, EXTRACT_REFUSED, -EINVAL, "unknown type of file (mode %07o)", o->st.mode);
		return;
	}
}

/* --- contents --- */

static void damage_flush(struct extract *x, struct item *o)
{
	if (o->damage.len)
		extract_tell_damage(x, strbuf_text(&o->path), &o->damage);
	o->damaged_bytes += o->damage.len;
	o->damage.len = 0;
}

/* Ranges come in ascending order; those that touch are told as one. */
static void damage_add(struct extract *x, struct item *o, uint64_t offset, uint64_t len, int error)
{
	struct pump_damage *d = &o->damage;

	if (d->len && d->offset + d->len == offset && d->error == error) {
		d->len += len;
		return;
	}
	damage_flush(x, o);
	*d = (struct pump_damage){ offset, len, error };
}

/* Returns 0, or what ends this file. */
static int bytes_write(struct extract *x, struct item *o, uint64_t offset, const char *data, uint64_t len)
{
	uint64_t end = offset + len;

	if (!len)
		return 0;
	while (offset < end) {
		ssize_t n = pwrite(o->fd, data, (size_t)(end - offset), (off_t)offset);
		if (n < 0 && errno != EINTR)
			return o->write_error = -errno;
		n = max(n, (ssize_t)0);
		data += n;
		offset += (uint64_t)n;
		if (extract_is_interrupted(x))
			return o->write_error = -EINTR;
	}
	o->written_end = end;
	mutex_lock(&x->lock);
	x->counts.bytes += len;
	mutex_unlock(&x->lock);
	if (x->o.progress)
		x->o.progress(x->o.ctx, len, 0);
	return 0;
}

/* Write what was read, but for what is damaged: that is left a hole, since it may be far longer than the data it hides.
 */
static int contents_write(struct extract *x, struct item *o, uint64_t offset, const char *data, uint64_t len,
			  const struct pump_damage *damage, size_t damage_nr)
{
	uint64_t pos = offset, end = offset + len;
	int err = 0;

	for (size_t i = 0; i < damage_nr && !err; i++) {
		err = bytes_write(x, o, pos, data + (pos - offset), damage[i].offset - pos);
		damage_add(x, o, damage[i].offset, damage[i].len, damage[i].error);
		pos = damage[i].offset + damage[i].len;
	}
	if (!err)
		err = bytes_write(x, o, pos, data + (pos - offset), end - pos);
	if (!err && extract_is_interrupted(x))
		err = o->write_error = -EINTR;
	return err;
}

static void note_damage(void *ctx, uint64_t offset, uint64_t len, int error)
{
	struct item *o = ctx;

	if (array_grow(&o->read_damage, &o->read_damage_capacity, o->read_damage_nr + 1, sizeof(o->read_damage[0]))) {
		/* No memory to say which: say all between. */
		if (o->read_damage_nr)
			o->read_damage[o->read_damage_nr - 1].len =
				offset + len - o->read_damage[o->read_damage_nr - 1].offset;
		return;
	}
	o->read_damage[o->read_damage_nr++] = (struct pump_damage){ offset, len, error };
}

/* [pos, end) of a file, which the buffer can hold. */
static int range_copy(struct extract *x, struct item *o, uint64_t pos, uint64_t end)
{
	int err = 0;

	while (pos < end && !err) {
		o->read_damage_nr = 0;
		ssize_t n = kiln_read_rescue(x->fs, o->st.node, pos, o->buf, (size_t)(end - pos), note_damage, o);
		if (n <= 0) {
			damage_add(x, o, pos, end - pos, n ? (int)n : -EIO);
			return 0;
		}
		err = contents_write(x, o, pos, o->buf, (uint64_t)n, o->read_damage, o->read_damage_nr);
		pos += (uint64_t)n;
	}
	return err;
}

static int contents_copy_small(struct extract *x, struct item *o)
{
	/* As many sectors as bytes: there are no holes to look for. */
	bool has_holes = o->st.sectors < div_round_up_u64(o->st.size, SECTOR_BYTES);
	uint64_t pos = 0, end = o->st.size;
	int err = 0;

	while (pos < o->st.size && !err) {
		if (has_holes) {
			int64_t data = kiln_seek_data(x->fs, o->st.node, pos);
			int64_t hole = data < 0 ? data : kiln_seek_hole(x->fs, o->st.node, (uint64_t)data);

			if (data == -ENXIO)
				break;
			pos = hole < 0 ? pos : (uint64_t)data;
			end = hole < 0 ? o->st.size : min((uint64_t)hole, o->st.size);
		}
		err = range_copy(x, o, pos, end);
		pos = end;
	}
	return err;
}

struct large_file {
	struct extract *x;
	struct item *o;
};

static int take_chunk(void *ctx, const struct pump_chunk *c)
{
	struct large_file *f = ctx;

	if (c->len < 0)
		return (int)c->len;
	if (c->is_lost) {
		damage_add(f->x, f->o, c->damage[0].offset, c->damage[0].len, c->damage[0].error);
		return 0;
	}
	return contents_write(f->x, f->o, c->offset, c->data, (uint64_t)c->len, c->damage, c->damage_nr);
}

static int contents_copy_large(struct extract *x, struct item *o)
{
	struct large_file f = { x, o };

	if (!x->pump)
		x->pump = pump_start(x->fs);
	int err = x->pump ? pump_file(x->pump, o->st.node, o->st.size, true, take_chunk, &f) : -ENOMEM;
	/* Not even where its data lies can be found out: what is there stays, the rest is lost. */
	if (err && !o->write_error)
		damage_add(x, o, o->written_end, o->st.size - o->written_end, err);
	return o->write_error;
}

static int contents_copy(struct extract *x, struct item *o)
{
	o->written_end = 0;
	o->write_error = 0;
	o->damage.len = 0;
	o->damaged_bytes = 0;
	int err = o->st.size > ITEM_BUF_BYTES ? contents_copy_large(x, o) : contents_copy_small(x, o);
	damage_flush(x, o);
	return err;
}

/* --- metadata: each for a descriptor, or (fd < 0) for what can't be opened, by name --- */

static bool owner_apply(struct extract *x, struct item *o, int fd)
{
	int ret;

	if (!x->o.is_root) {
		if (o->st.uid != geteuid() || o->st.gid != getegid())
			extract_not_kept(x, strbuf_text(&o->path), KEPT_OWNER, -EPERM);
		return false;
	}
	if (fd >= 0)
		ret = fchown(fd, o->st.uid, o->st.gid);
	else
		ret = fchownat(o->dir_fd, item_name(o), o->st.uid, o->st.gid, AT_SYMLINK_NOFOLLOW);
	if (ret)
		extract_not_kept(x, strbuf_text(&o->path), KEPT_OWNER, -errno);
	return !ret;
}

static void mode_apply(struct extract *x, struct item *o, int fd, bool is_owner_set)
{
	mode_t mode = o->st.mode & 07777, set_id = S_ISUID | S_ISGID;
	int ret;

	if (S_ISLNK(o->st.mode))
		return;
	/* With the owner left behind, a set-id bit would give the rights of somebody else. */
	if ((mode & set_id) && !is_owner_set) {
		extract_not_kept(x, strbuf_text(&o->path), KEPT_SET_ID, x->o.is_root ? 0 : -EPERM);
		mode &= ~set_id;
	}
	if (fd >= 0)
		ret = fchmod(fd, mode);
	else
		ret = fchmodat(o->dir_fd, item_name(o), mode, AT_SYMLINK_NOFOLLOW);
	if (ret)
		extract_tell(x, strbuf_text(&o->path), EXTRACT_FAILED, -errno, "its mode can't be set");
}

static struct timespec system_time(struct kiln_timespec t)
{
	/* Above a billion lie the special values of utimensat(). */
	return (struct timespec){ .tv_sec = t.sec, .tv_nsec = min(t.nsec, 999999999u) };
}

static void times_apply(struct extract *x, struct item *o, int fd)
{
	struct timespec times[2] = { system_time(o->st.atime), system_time(o->st.mtime) };
	int ret = fd >= 0 ? futimens(fd, times) : utimensat(o->dir_fd, item_name(o), times, AT_SYMLINK_NOFOLLOW);

	if (ret)
		extract_not_kept(x, strbuf_text(&o->path), KEPT_TIMES, -errno);
}

static const struct xattr_class {
	const char *prefix;
	enum extract_kept kept;
	bool needs_root;
	bool is_virtual; /* options of the inode: for bcachefs only, others need not be told */
} xattr_classes[] = {
	{ "user.", KEPT_USER, false, false },		{ "trusted.", KEPT_TRUSTED, true, false },
	{ "security.", KEPT_SECURITY, true, false },	{ "system.posix_acl_", KEPT_ACL, false, false },
	{ "bcachefs.", KEPT_XATTR_OTHER, false, true }, { "bcachefs_effective.", KEPT_XATTR_OTHER, false, true },
	{ "", KEPT_XATTR_OTHER, false, false },
};

static const struct xattr_class *xattr_class(const char *name)
{
	const struct xattr_class *c = xattr_classes;

	while (strncmp(name, c->prefix, strlen(c->prefix)))
		c++;
	return c;
}

/* Where an entry is reached by name in its directory, for calls that only take paths. A symlink at the end is not
 * followed. */
struct proc_path {
	char text[64 + NAME_MAX];
};

static struct proc_path proc_path(const struct item *o)
{
	struct proc_path p;

	snprintf(p.text, sizeof(p.text), "/proc/self/fd/%d/%s", o->dir_fd, item_name(o));
	return p;
}

static int xattr_set(const struct item *o, int fd, const char *name, const void *value, size_t len)
{
	int ret = fd >= 0 ? fsetxattr(fd, name, value, len, 0) : lsetxattr(proc_path(o).text, name, value, len, 0);

	return ret ? -errno : 0;
}

/* Entries of a directory with a default ACL begin with one that isn't theirs. */
static void inherited_acl_remove(const struct item *o, int fd)
{
	static const char *const names[] = { "system.posix_acl_access", "system.posix_acl_default" };

	for (size_t i = 0; o->dir_gives_acl && !S_ISLNK(o->st.mode) && i < ARRAY_NR(names); i++) {
		if (fd >= 0)
			fremovexattr(fd, names[i]);
		else
			lremovexattr(proc_path(o).text, names[i]);
	}
}

static void xattr_apply(struct extract *x, struct item *o, int fd, const char *name, void *value, size_t size)
{
	const struct xattr_class *class = xattr_class(name);
	const char *path = strbuf_text(&o->path);

	/* What applies through inheritance is not the inode's own. */
	if (!strncmp(name, "bcachefs_effective.", strlen("bcachefs_effective.")))
		return;
	if (class->needs_root && !x->o.is_root) {
		extract_not_kept(x, path, class->kept, -EPERM);
		return;
	}
	ssize_t len = kiln_getxattr(x->fs, o->st.node, name, value, size);
	if (len < 0) {
		extract_tell(x, path, EXTRACT_LOST, (int)len, "the extended attribute %s can't be read", name);
		return;
	}
	int err = xattr_set(o, fd, name, value, (size_t)len);
	if (!err || class->is_virtual)
		return;
	if (err == -EOPNOTSUPP || err == -EPERM)
		extract_not_kept(x, path, class->kept, err);
	else
		extract_tell(x, path, EXTRACT_FAILED, err, "the extended attribute %s can't be set", name);
}

static void xattrs_apply(struct extract *x, struct item *o, int fd)
{
	/* Contents are written by now: their buffer is free. Values are up to 64 KiB. */
	enum { LIST_BYTES = ITEM_BUF_BYTES / 2 };
	CLEANUP_FREE char *long_list = NULL;
	char *list = o->buf;
	ssize_t bytes = kiln_listxattr(x->fs, o->st.node, list, LIST_BYTES);

	if (bytes == -ERANGE) {
		bytes = kiln_listxattr(x->fs, o->st.node, NULL, 0);
		list = long_list = bytes > 0 ? malloc((size_t)bytes) : NULL;
		bytes = list ? kiln_listxattr(x->fs, o->st.node, list, (size_t)bytes) : min(bytes, (ssize_t)-ENOMEM);
	}
	if (bytes < 0)
		extract_tell(x, strbuf_text(&o->path), EXTRACT_LOST, (int)bytes,
			     "its extended attributes can't be read");
	for (const char *name = list; bytes > 0 && name < list + bytes; name += strlen(name) + 1)
		xattr_apply(x, o, fd, name, o->buf + LIST_BYTES, ITEM_BUF_BYTES - LIST_BYTES);
}

static void metadata_apply(struct extract *x, struct item *o, int fd)
{
	bool is_owner_set = owner_apply(x, o, fd);

	inherited_acl_remove(o, fd);
	xattrs_apply(x, o, fd);
	mode_apply(x, o, fd, is_owner_set);
	times_apply(x, o, fd);
}

void item_finish_directory(struct extract *x, struct item *o)
{
	if (!o->keeps_metadata)
		metadata_apply(x, o, o->own_fd);
	close(o->own_fd);
}
