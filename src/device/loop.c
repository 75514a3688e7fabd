/*
 * Loop devices. A filesystem that is mounted from /dev/loop0 must not be changed through the file behind it, nor the
 * other way round, nor through a second loop device of the same file. So whoever opens a loop device also locks the
 * bytes of the file that it stands for (two partitions, or two images in one file, don't exclude each other), and
 * whoever opens a file, by whatever name, asks whether one of its loop devices is claimed: that is what the kernel does
 * with what it has mounted, and what programs do by opening with O_EXCL.
 *
 * The kernel tells of a loop device which file it has (device and inode number) and from where on; sysfs has the name.
 */
#include "device/loop.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/util.h"
#include "device/device.h"

enum { SYSFS_PATH_BYTES = 96 };

/* The first line of /sys/dev/block/MAJOR:MINOR/@name, or of the whole disk's file of that name. */
static bool sysfs_read(dev_t device, const char *name, char *line, size_t size)
{
	static const char *const folders[] = { "", "../" };

	for (size_t i = 0; i < ARRAY_NR(folders); i++) {
		char path[SYSFS_PATH_BYTES];

		snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s%s", major(device), minor(device), folders[i],
			 name);
		FILE *f = fopen(path, "re");
		if (!f)
			continue;
		bool is_read = fgets(line, (int)size, f);
		fclose(f);
		line[is_read ? strcspn(line, "\n") : 0] = 0;
		return is_read;
	}
	return false;
}

/* Where a partition begins on its disk; 0 for whole disks. */
static uint64_t partition_begin_bytes(dev_t device)
{
	char line[SYSFS_PATH_BYTES];

	return sysfs_read(device, "start", line, sizeof(line)) ? strtoull(line, NULL, 10) * SECTOR_BYTES : 0;
}

/* The disk that a partition is on; of a whole disk itself. */
static dev_t disk_of(dev_t device)
{
	char line[SYSFS_PATH_BYTES];
	unsigned disk_major, disk_minor;

	if (sysfs_read(device, "../dev", line, sizeof(line)) && sscanf(line, "%u:%u", &disk_major, &disk_minor) == 2)
		device = makedev(disk_major, disk_minor);
	return device;
}

bool loop_backing_read(int fd, struct loop_backing *backing)
{
	char name[PATH_MAX];
	struct loop_info64 info;
	uint64_t size_bytes;
	struct stat st;

	if (fstat(fd, &st) || !S_ISBLK(st.st_mode) || !sysfs_read(st.st_rdev, "loop/backing_file", name, sizeof(name)))
		return false;
	if (ioctl(fd, LOOP_GET_STATUS64, &info) || ioctl(fd, BLKGETSIZE64, &size_bytes))
		return false;
	*backing = (struct loop_backing){ .file = { .st_dev = info.lo_device, .st_ino = info.lo_inode } };
	backing->range.begin_bytes = info.lo_offset + partition_begin_bytes(st.st_rdev);
	backing->range.len_bytes = size_bytes;
	return true;
}

static bool is_same(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

int loop_backing_open(int fd, const struct loop_backing *backing, bool is_writer, char path[4096])
{
	struct stat device, found;

	if (fstat(fd, &device))
		return -errno;
	if (!sysfs_read(device.st_rdev, "loop/backing_file", path, PATH_MAX))
		return -ENOENT;
	/* Opening anything but what is meant could have effects. */
	if (stat(path, &found))
		return -errno;
	if (!is_same(&found, &backing->file))
		return -ENOENT;
	int file_fd = open(path, (is_writer ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
	if (file_fd < 0)
		return -errno;
	if (fstat(file_fd, &found) || !is_same(&found, &backing->file)) {
		close(file_fd);
		return -ENOENT;
	}
	return file_fd;
}

static bool is_overlapping(struct file_range a, struct file_range b)
{
	bool a_reaches_b = !a.len_bytes || a.begin_bytes + a.len_bytes > b.begin_bytes;
	bool b_reaches_a = !b.len_bytes || b.begin_bytes + b.len_bytes > a.begin_bytes;

	return a_reaches_b && b_reaches_a;
}

/* One of /sys/block: is it a loop device of that file, and claimed? */
static bool is_claimed(const char *path, const struct stat *file, struct file_range range, dev_t except)
{
	struct loop_backing backing;
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return false;
	bool is_meant = !fstat(fd, &st) && st.st_rdev != except && loop_backing_read(fd, &backing) &&
			is_same(&backing.file, file) && is_overlapping(backing.range, range);
	close(fd);
	if (!is_meant)
		return false;
	fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return errno == EBUSY;
	close(fd);
	return false;
}

bool loop_is_claimed(const struct stat *file, struct file_range range, dev_t except, char name[32])
{
	DIR *dir = opendir("/sys/block");
	const struct dirent *entry;
	bool found = false;

	except = except ? disk_of(except) : 0;
	while (dir && !found && (entry = readdir(dir))) {
		char attached[sizeof("/sys/block//loop") + NAME_MAX];

		if (strncmp(entry->d_name, "loop", 4))
			continue;
		snprintf(attached, sizeof(attached), "/sys/block/%s/loop", entry->d_name);
		if (access(attached, F_OK) || (size_t)snprintf(name, 32, "/dev/%s", entry->d_name) >= 32)
			continue;
		found = is_claimed(name, file, range, except);
	}
	if (dir)
		closedir(dir);
	return found;
}

/* What @path leads to; for a loop device, the file behind it. */
static bool identity_read(const char *path, struct stat *st, struct file_range *range)
{
	char name[PATH_MAX];
	struct loop_backing backing;

	*range = (struct file_range){ 0, 0 };
	if (stat(path, st))
		return false;
	if (!S_ISBLK(st->st_mode) || !sysfs_read(st->st_rdev, "loop/backing_file", name, sizeof(name)))
		return true;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return true;
	if (loop_backing_read(fd, &backing)) {
		*st = backing.file;
		*range = backing.range;
	}
	close(fd);
	return true;
}

bool device_is_same(const char *a, const char *b)
{
	struct stat a_st, b_st;
	struct file_range a_range, b_range;

	if (!identity_read(a, &a_st, &a_range) || !identity_read(b, &b_st, &b_range))
		return false;
	if (S_ISBLK(a_st.st_mode) && S_ISBLK(b_st.st_mode))
		return a_st.st_rdev == b_st.st_rdev;
	return is_same(&a_st, &b_st) && is_overlapping(a_range, b_range);
}
