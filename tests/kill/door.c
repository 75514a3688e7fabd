/* Changing a filesystem through the library or a mount. See door.h. */
#include "door.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/util.h"

enum { PATH_BYTES = 4096 + 64 };

struct door door_of_library(kiln_fs *fs) { return (struct door){ .fs = fs, .held_fd = -1 }; }

struct door door_of_mount(const char *mountpoint, uint64_t seed)
{
	struct door d = { .mountpoint = mountpoint, .held_fd = -1 };

	rng_init(&d.rng, seed);
	return d;
}

static int dir_find(const struct door *d, const char *dir, struct kiln_node *node)
{
	struct kiln_stat st;
	int err = kiln_lookup(d->fs, kiln_root(d->fs), dir, strlen(dir), &st);

	*node = st.node;
	return err;
}

static int object_find(const struct door *d, const char *dir, const char *name, struct kiln_node *node)
{
	struct kiln_stat st;
	int err = dir_find(d, dir, node);

	if (!err)
		err = kiln_lookup(d->fs, *node, name, strlen(name), &st);
	*node = st.node;
	return err;
}

static const char *path_of(const struct door *d, const char *dir, const char *name, char path[PATH_BYTES])
{
	snprintf(path, PATH_BYTES, "%s/%s/%s", d->mountpoint, dir, name);
	return path;
}

static int errno_of(int result) { return result < 0 ? -errno : 0; }

/* --- data --- */

static int hold(struct door *d, const char *dir, const char *name)
{
	char path[PATH_BYTES];

	if (d->held_fd < 0)
		d->held_fd = open(path_of(d, dir, name, path), O_RDWR | O_CLOEXEC);
	return errno_of(d->held_fd);
}

/* Through a shared mapping. */
static int write_mapped(int fd, uint64_t offset, const void *bytes, size_t len)
{
	size_t head = offset % 4096;
	uint8_t *at = mmap(NULL, head + len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)(offset - head));

	if (at == MAP_FAILED)
		return -errno;
	memcpy(at + head, bytes, len);
	munmap(at, head + len);
	return 0;
}

static int write_at_mount(struct door *d, uint64_t offset, const void *bytes, size_t len)
{
	enum { HOW_MAPPED, HOW_DIRECT, HOW_NR = 5 };
	uint64_t how = rng_below(&d->rng, HOW_NR);
	struct stat st;

	if (fstat(d->held_fd, &st))
		return -errno;
	/* A file grows only by writing: with a size of its own it would have states of its own. */
	if (how == HOW_MAPPED && offset + len <= (uint64_t)st.st_size)
		return write_mapped(d->held_fd, offset, bytes, len);
	/* One that grows the file would be there before what the page cache has of the piece, as in other filesystems.
	 */
	if (how == HOW_DIRECT && offset + len > (uint64_t)st.st_size &&
	    sync_file_range(d->held_fd, 0, 0,
			    SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER))
		return -errno;
	int flags = fcntl(d->held_fd, F_GETFL);
	if (how == HOW_DIRECT && fcntl(d->held_fd, F_SETFL, flags | O_DIRECT))
		return -errno;
	ssize_t n = pwrite(d->held_fd, bytes, len, (off_t)offset);
	int err = n == (ssize_t)len ? 0 : n < 0 ? -errno : -EIO;
	if (how == HOW_DIRECT)
		fcntl(d->held_fd, F_SETFL, flags);
	return err;
}

int door_write(struct door *d, const char *dir, const char *name, uint64_t offset, const void *bytes, size_t len)
{
	struct kiln_node node;

	if (d->mountpoint) {
		int err = hold(d, dir, name);

		d->holds_data = true;
		return err ? err : write_at_mount(d, offset, bytes, len);
	}
	int err = object_find(d, dir, name, &node);
	ssize_t n = err ? err : kiln_write(d->fs, node, offset, bytes, len);
	return n == (ssize_t)len ? 0 : n < 0 ? (int)n : -ENOSPC;
}

int door_fsync(struct door *d, const char *dir, const char *name)
{
	struct kiln_node node;
	int err;

	if (d->mountpoint) {
		err = hold(d, dir, name);
		return err ? err : errno_of(fsync(d->held_fd));
	}
	err = object_find(d, dir, name, &node);
	return err ? err : kiln_fsync(d->fs, node);
}

int door_let_go(struct door *d)
{
	int err = d->held_fd < 0 ? 0 : errno_of(close(d->held_fd));

	d->held_fd = -1;
	d->holds_data = false;
	return err;
}

int door_sync(struct door *d) { return d->mountpoint ? -EOPNOTSUPP : kiln_sync(d->fs); }

/* --- names --- */

int door_create(struct door *d, const char *dir, const char *name, unsigned mode)
{
	struct kiln_create create = { .mode = mode };
	struct kiln_node node;
	char path[PATH_BYTES];

	assert(d->held_fd < 0);
	if (d->mountpoint) {
		d->held_fd = open(path_of(d, dir, name, path), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
		return errno_of(d->held_fd);
	}
	int err = dir_find(d, dir, &node);
	return err ? err : kiln_create(d->fs, node, name, strlen(name), &create, NULL);
}

int door_unlink(struct door *d, const char *dir, const char *name)
{
	struct kiln_node node;
	char path[PATH_BYTES];

	if (d->mountpoint)
		return errno_of(unlink(path_of(d, dir, name, path)));
	int err = dir_find(d, dir, &node);
	return err ? err : kiln_unlink(d->fs, node, name, strlen(name), 0);
}

int door_rename(struct door *d, const char *from_dir, const char *from, const char *to_dir, const char *to,
		unsigned flags)
{
	_Static_assert(KILN_RENAME_NOREPLACE == RENAME_NOREPLACE && KILN_RENAME_EXCHANGE == RENAME_EXCHANGE,
		       "the numbers of renameat2()");
	struct kiln_node from_node, to_node;
	char from_path[PATH_BYTES], to_path[PATH_BYTES];

	if (d->mountpoint)
		return errno_of(renameat2(AT_FDCWD, path_of(d, from_dir, from, from_path), AT_FDCWD,
					  path_of(d, to_dir, to, to_path), flags));
	int err = dir_find(d, from_dir, &from_node);
	if (!err)
		err = dir_find(d, to_dir, &to_node);
	return err ? err : kiln_rename(d->fs, from_node, from, strlen(from), to_node, to, strlen(to), flags);
}

int door_link(struct door *d, const char *from_dir, const char *from, const char *to_dir, const char *to)
{
	struct kiln_node from_node, to_node;
	char from_path[PATH_BYTES], to_path[PATH_BYTES];

	if (d->mountpoint)
		return errno_of(link(path_of(d, from_dir, from, from_path), path_of(d, to_dir, to, to_path)));
	int err = object_find(d, from_dir, from, &from_node);
	if (!err)
		err = dir_find(d, to_dir, &to_node);
	return err ? err : kiln_link(d->fs, from_node, to_node, to, strlen(to));
}

/* --- attributes --- */

int door_setxattr(struct door *d, const char *dir, const char *name, const char *key, const void *value, size_t len)
{
	struct kiln_node node;
	char path[PATH_BYTES];

	if (d->mountpoint)
		return errno_of(setxattr(path_of(d, dir, name, path), key, value, len, 0));
	int err = object_find(d, dir, name, &node);
	return err ? err : kiln_setxattr(d->fs, node, key, value, len, 0);
}

int door_removexattr(struct door *d, const char *dir, const char *name, const char *key)
{
	struct kiln_node node;
	char path[PATH_BYTES];

	if (d->mountpoint)
		return errno_of(removexattr(path_of(d, dir, name, path), key));
	int err = object_find(d, dir, name, &node);
	return err ? err : kiln_removexattr(d->fs, node, key);
}
