/* The public calls of include/kiln/kiln.h: thin, and the place where private error codes become errno values. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/strbuf.h"
#include "engine/api.h"
#include "format/version.h"

#ifndef KILN_VERSION
#error "the build defines KILN_VERSION"
#endif

const char *kiln_version(void) { return KILN_VERSION; }

static ssize_t door(ssize_t ret) { return ret < 0 ? error_to_errno((int)ret) : ret; }

void kiln_report_counts(kiln_fs *fs, uint64_t counts[4])
{
	mutex_lock(&fs->reporter.lock);
	memcpy(counts, fs->reporter.counts, sizeof(fs->reporter.counts));
	mutex_unlock(&fs->reporter.lock);
}

const char *kiln_fallback(kiln_fs *fs) { return namespace_fallback(fs->ns); }

/* --- looking things up --- */

/* FS_*_FL of linux/fs.h: the numbers that lsattr shows. */
static const struct {
	uint32_t inode, fs;
} flag_map[] = {
	{ INODE_SYNC, 0x8 },	{ INODE_IMMUTABLE, 0x10 }, { INODE_APPEND, 0x20 },
	{ INODE_NODUMP, 0x40 }, { INODE_NOATIME, 0x80 },
};

static uint32_t flags_to_fs(uint32_t flags)
{
	uint32_t out = 0;

	for (size_t i = 0; i < ARRAY_NR(flag_map); i++)
		if (flags & flag_map[i].inode)
			out |= flag_map[i].fs;
	return out;
}

int api_flags_of_fs(uint32_t fs_flags, uint32_t *flags)
{
	*flags = 0;
	for (size_t i = 0; i < ARRAY_NR(flag_map); i++)
		if (fs_flags & flag_map[i].fs) {
			*flags |= flag_map[i].inode;
			fs_flags &= ~flag_map[i].fs;
		}
	return fs_flags ? -EOPNOTSUPP : 0;
}

static struct kiln_timespec time_of(const struct kiln_fs *fs, uint64_t t)
{
	struct inode_time it = inode_time_decode(&fs->super->kctx, t);

	return (struct kiln_timespec){ it.sec, it.nsec };
}

void api_stat_fill(const struct kiln_fs *fs, struct object o, const struct inode *inode, bool is_readonly,
		   struct kiln_stat *st)
{
	*st = (struct kiln_stat){
		.node = node_of(o),
		.mode = inode->mode,
		.nlink = inode_nlink(inode),
		.uid = inode->uid,
		.gid = inode->gid,
		.size = inode->size,
		.sectors = inode->sectors,
		.block_bytes = (uint32_t)fs->super->kctx.block_sectors << SECTOR_SHIFT,
		.atime = time_of(fs, inode->atime),
		.mtime = time_of(fs, inode->mtime),
		.ctime = time_of(fs, inode->ctime),
		.btime = time_of(fs, inode->otime),
		.flags = flags_to_fs(inode->flags),
		.generation = inode->generation,
		.project = inode->opts[INODE_OPT_PROJECT] ? inode->opts[INODE_OPT_PROJECT] - 1 : 0,
		.is_subvol_root = inode->subvol != 0,
		.is_readonly = is_readonly,
	};
	if (S_ISCHR(inode->mode) || S_ISBLK(inode->mode))
		inode_dev(inode, &st->rdev_major, &st->rdev_minor);
	/* Directories have no size on disk (12 §1.2, row 10); symlinks may count a NUL (04 §5), corrected by
	 * kiln_stat(). */
	if (S_ISDIR(inode->mode))
		st->size = 0;
}

struct kiln_node kiln_root(kiln_fs *fs)
{
	struct object root;

	/* The namespace doesn't open without subvolume 1. */
	if (namespace_subvol_root(fs->ns, SUBVOL_ROOT, &root))
		root = (struct object){ SUBVOL_ROOT, INODE_NR_ROOT };
	return node_of(root);
}

static int stat_object(kiln_fs *fs, struct object o, struct kiln_stat *st)
{
	struct inode inode;
	struct subvolume sv;

	int err = namespace_inode(fs->ns, o, &inode);
	if (!err)
		err = namespace_subvol(fs->ns, o.subvol, &sv);
	if (err)
		return err;
	api_stat_fill(fs, o, &inode, sv.is_readonly, st);

	if (S_ISLNK(st->mode)) {
		char target[PATH_MAX];
		ssize_t len = namespace_readlink(fs->ns, o, target, sizeof(target));

		if (len >= 0)
			st->size = (uint64_t)len;
	}
	return 0;
}

int kiln_stat(kiln_fs *fs, struct kiln_node node, struct kiln_stat *st)
{
	return error_to_errno(stat_object(fs, object_of(node), st));
}

/* The object a name leads to, without its inode. */
static int lookup_object(kiln_fs *fs, struct object dir, const char *name, size_t len, struct object *found)
{
	struct inode inode;
	unsigned type;

	int err = namespace_inode(fs->ns, dir, &inode);
	/* The entries of a directory whose inode can't be read may be whole. */
	if (err && err != -EIO)
		return err;
	if (!err && !S_ISDIR(inode.mode))
		return -ENOTDIR;
	if (len == 1 && name[0] == '.') {
		*found = dir;
		return 0;
	}
	if (len == 2 && name[0] == '.' && name[1] == '.')
		return namespace_parent(fs->ns, dir, found);
	if (!len || len > DIRENT_NAME_READ_MAX)
		return len ? -ENAMETOOLONG : -ENOENT;
	return namespace_lookup(fs->ns, dir, name, len, found, &type);
}

/* An entry leads to an inode that isn't there: damage, not absence. */
static int stat_found(kiln_fs *fs, struct object found, struct kiln_stat *st)
{
	int err = stat_object(fs, found, st);

	return err == -ENOENT ? -EIO : err;
}

int kiln_lookup(kiln_fs *fs, struct kiln_node dir, const char *name, size_t len, struct kiln_stat *st)
{
	struct object found;
	int err = lookup_object(fs, object_of(dir), name, len, &found);

	return error_to_errno(err ? err : stat_found(fs, found, st));
}

/* A walk along a path. @rest is what is still to go; symlinks put their target in front of it. */
struct path_walk {
	struct kiln_fs *fs;
	char rest[2 * PATH_MAX];
	unsigned links;
};

static int path_follow(struct path_walk *w, struct object link, const char *behind)
{
	enum { LINKS_MAX = 40 };
	char target[PATH_MAX];

	if (++w->links > LINKS_MAX)
		return -ELOOP;
	ssize_t len = namespace_readlink(w->fs->ns, link, target, sizeof(target) - 1);
	if (len < 0)
		return (int)len;

	if (!len)
		return -ENOENT;

	/* @behind is empty or begins with a slash. */
	size_t behind_len = strlen(behind);
	if ((size_t)len + behind_len + 1 > sizeof(w->rest))
		return -ENAMETOOLONG;
	memmove(w->rest + len, behind, behind_len + 1);
	memcpy(w->rest, target, (size_t)len);
	return 0;
}

int kiln_lookup_path(kiln_fs *fs, const char *path, unsigned flags, struct kiln_stat *st)
{
	struct object root = object_of(kiln_root(fs)), at = root;
	struct path_walk w = { .fs = fs };

	if (strlen(path) >= PATH_MAX)
		return -ENAMETOOLONG;
	strcpy(w.rest, path);

	for (;;) {
		char *name = w.rest + strspn(w.rest, "/");
		size_t len = strcspn(name, "/");
		if (!len)
			break;

		struct object found;
		int err = lookup_object(fs, at, name, len, &found);
		if (!err)
			err = stat_found(fs, found, st);
		if (err)
			return error_to_errno(err);

		/* A slash behind a name means that it must lead to a directory, through a symlink too. */
		char *behind = name + len;
		if (S_ISLNK(st->mode) && (*behind || flags & KILN_FOLLOW)) {
			err = path_follow(&w, found, behind);
			if (err)
				return error_to_errno(err);
			if (w.rest[0] == '/')
				at = root;
			continue;
		}
		if (*behind && !S_ISDIR(st->mode))
			return -ENOTDIR;
		at = found;
		memmove(w.rest, behind, strlen(behind) + 1);
	}
	return error_to_errno(stat_object(fs, at, st));
}

struct readdir_adapter {
	kiln_dirent_fn fn;
	void *ctx;
	int stopped;
};

static int readdir_adapt(void *ctx, const struct dir_entry *e)
{
	struct readdir_adapter *a = ctx;
	char name[DIRENT_NAME_READ_MAX + 1];
	size_t len = min(e->name_len, (size_t)DIRENT_NAME_READ_MAX);

	memcpy(name, e->name, len);
	name[len] = 0;
	a->stopped = a->fn(a->ctx, &(struct kiln_dirent){ .node = node_of(e->object),
							  .name = name,
							  .name_len = len,
							  .type = e->type,
							  .next_cookie = e->next_cookie });
	return a->stopped ? 1 : 0;
}

int kiln_readdir(kiln_fs *fs, struct kiln_node dir, uint64_t cookie, kiln_dirent_fn fn, void *ctx, bool *at_end,
		 uint64_t *resume)
{
	struct readdir_adapter a = { .fn = fn, .ctx = ctx };
	struct inode inode;
	bool at_end_unused;

	if (!at_end)
		at_end = &at_end_unused;
	*at_end = false;
	int err = namespace_inode(fs->ns, object_of(dir), &inode);
	if (!err && !S_ISDIR(inode.mode))
		err = -ENOTDIR;
	/* The entries of a directory whose inode can't be read may be whole. */
	if (!err || err == -EIO)
		err = namespace_readdir(fs->ns, object_of(dir), cookie, readdir_adapt, &a, at_end, resume);
	return error_to_errno(err);
}

/* --- reading --- */

static int open_for_data(kiln_fs *fs, struct kiln_node node, struct data_file *file)
{
	struct inode inode;
	int err = namespace_inode(fs->ns, object_of(node), &inode);

	if (!err && !S_ISREG(inode.mode))
		err = S_ISDIR(inode.mode) ? -EISDIR : -EINVAL;
	return err ? err : namespace_data_file(fs->ns, object_of(node), &inode, file);
}

ssize_t kiln_read_rescue(kiln_fs *fs, struct kiln_node node, uint64_t offset, void *buf, size_t len,
			 kiln_damage_fn damage, void *ctx)
{
	struct data_file file;
	int err = open_for_data(fs, node, &file);

	return door(err ? err : data_read(fs->data, &file, offset, buf, len, damage, ctx));
}

static void note_first_damage(void *ctx, uint64_t offset, uint64_t len, int error)
{
	uint64_t *first = ctx;

	(void)len;
	(void)error;
	*first = min(*first, offset);
}

ssize_t kiln_read(kiln_fs *fs, struct kiln_node node, uint64_t offset, void *buf, size_t len)
{
	uint64_t damage = UINT64_MAX;
	ssize_t n = kiln_read_rescue(fs, node, offset, buf, len, note_first_damage, &damage);

	if (n <= 0 || damage >= offset + (uint64_t)n)
		return n;
	return damage > offset ? (ssize_t)(damage - offset) : -EIO;
}

static int64_t seek_to(kiln_fs *fs, struct kiln_node node, uint64_t offset, bool want_data)
{
	struct data_file file;
	uint64_t found = 0;
	int err = open_for_data(fs, node, &file);

	if (!err)
		err = data_seek(fs->data, &file, offset, want_data, &found);
	if (!err && found > INT64_MAX)
		err = -EOVERFLOW;
	return err ? error_to_errno(err) : (int64_t)found;
}

int64_t kiln_seek_data(kiln_fs *fs, struct kiln_node node, uint64_t offset) { return seek_to(fs, node, offset, true); }
int64_t kiln_seek_hole(kiln_fs *fs, struct kiln_node node, uint64_t offset) { return seek_to(fs, node, offset, false); }

int kiln_seek_lost(kiln_fs *fs, struct kiln_node node, uint64_t offset, uint64_t *begin, uint64_t *end)
{
	struct data_file file;
	int err = open_for_data(fs, node, &file);

	return error_to_errno(err ? err : data_seek_lost(fs->data, &file, offset, begin, end));
}

ssize_t kiln_readlink(kiln_fs *fs, struct kiln_node node, char *buf, size_t size)
{
	return door(namespace_readlink(fs->ns, object_of(node), buf, size));
}

ssize_t kiln_getxattr(kiln_fs *fs, struct kiln_node node, const char *name, void *value, size_t size)
{
	return door(namespace_xattr_get(fs->ns, object_of(node), name, value, size));
}

ssize_t kiln_listxattr(kiln_fs *fs, struct kiln_node node, char *list, size_t size)
{
	return door(namespace_xattr_list(fs->ns, object_of(node), list, size));
}

/* --- facts --- */

/* Count. While nothing is written, every later call gets the same answer. */
static int usage_count(struct kiln_fs *fs, struct kiln_usage *out)
{
	const struct super *s = fs->super;
	struct usage u;

	int err = fs->is_writable ? allocator_usage(fs->allocator, &u) : usage_read(s, fs->journal, fs->trees, &u);
	if (err)
		return err;

	unsigned version = le16_get(s->sb->version);
	*out = (struct kiln_usage){
		.is_known = u.is_known,
		.capacity = u.capacity_sectors << SECTOR_SHIFT,
		.used = u.used_sectors << SECTOR_SHIFT,
		.cached = u.cached_sectors << SECTOR_SHIFT,
		.reserved = u.reserved_sectors << SECTOR_SHIFT,
		.hidden = u.hidden_sectors << SECTOR_SHIFT,
		.available = u.available_sectors << SECTOR_SHIFT,
		.inodes = u.inodes,
		.block_bytes = (uint64_t)s->kctx.block_sectors << SECTOR_SHIFT,
		.is_clean = !fs->is_writable && SB_CLEAN_FLAG(s->sb), /* it is dirty, and its flags may be changing */
		.is_encrypted = SB_ENCRYPTION_TYPE(s->sb) != 0,
		.is_degraded = s->is_degraded,
	};
	memcpy(out->uuid, s->sb->user_uuid, sizeof(out->uuid));
	memcpy(out->label, s->sb->label, sizeof(s->sb->label));
	snprintf(out->version, sizeof(out->version), "%u.%u", VERSION_MAJOR(version), VERSION_MINOR(version));
	for (unsigned i = 0; i < s->member_nr; i++)
		out->device_nr += s->members[i].m.exists;
	usage_free(&u);
	return 0;
}

int kiln_usage(kiln_fs *fs, struct kiln_usage *out)
{
	int err = 0;

	mutex_lock(&fs->usage_lock);
	if (!fs->has_usage || fs->is_writable)
		err = usage_count(fs, &fs->usage);
	fs->has_usage |= !err;
	if (!err)
		*out = fs->usage;
	mutex_unlock(&fs->usage_lock);
	return err ? error_to_errno(err) : 0;
}
