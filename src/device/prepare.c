/* Before formatting: image files of the right size, and what is on a device already. See device.h. */
#include <blkid/blkid.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "base/util.h"
#include "device/device.h"
#include "device/file_lock.h"
#include "format/superblock.h"

static int make_failed(struct strbuf *why, const char *path, int err)
{
	strbuf_printf(why, "%s: cannot make it that large: %s", path, strerror(-err));
	return err;
}

static int file_grow(int fd, const char *path, uint64_t bytes, struct device_file_change *change, struct strbuf *why)
{
	struct stat st;

	if (fstat(fd, &st))
		return make_failed(why, path, -errno);
	if (!S_ISREG(st.st_mode)) {
		strbuf_printf(why, "%s is no file: only files can be made larger", path);
		return -EINVAL;
	}
	int err = file_lock(fd, path, (struct file_range){ 0 }, true, why);
	if (err)
		return err;
	change->bytes_before = (uint64_t)st.st_size;
	if (change->bytes_before > bytes) {
		strbuf_printf(why,
			      "%s is larger than that: %" PRIu64
			      " bytes. Leave the size out to use all of it, or name another file",
			      path, change->bytes_before);
		return -EINVAL;
	}
	if (change->bytes_before == bytes)
		return 0;
	if (ftruncate(fd, (off_t)bytes))
		return make_failed(why, path, -errno);
	change->has_grown = true;
	return 0;
}

/* In /dev a name that doesn't exist is a mistyped device; what mounts below it hold (/dev/shm) is not meant. */
static bool is_among_devices(const char *path)
{
	CLEANUP_FREE char *copy = strdup(path);
	char *slash = copy ? strrchr(copy, '/') : NULL;
	struct stat dev, folder;

	if (!slash)
		return false;
	slash[slash == copy] = 0;
	CLEANUP_FREE char *real = realpath(copy, NULL);
	return real && (!strcmp(real, "/dev") || !strncmp(real, "/dev/", 5)) && !stat("/dev", &dev) &&
	       !stat(real, &folder) && dev.st_dev == folder.st_dev;
}

int device_file_make(const char *path, uint64_t bytes, struct device_file_change *change, char why[256])
{
	struct strbuf text = strbuf_fixed(why, 256);

	*change = (struct device_file_change){ 0 };
	if (bytes > INT64_MAX)
		return make_failed(&text, path, -EFBIG);

	/* Opening a pipe or a tape drive would have effects. */
	struct stat st;
	bool exists = !stat(path, &st);
	if (exists && !S_ISREG(st.st_mode)) {
		strbuf_printf(&text, "%s is no file: only files can be made larger", path);
		return -EINVAL;
	}
	if (!exists && is_among_devices(path)) {
		strbuf_printf(&text, "there is no device %s, and files aren't made among the devices", path);
		return -ENOENT;
	}
	int fd = open(path, O_RDWR | O_CLOEXEC | (exists ? 0 : O_CREAT | O_EXCL), 0666);
	if (fd < 0) {
		int err = -errno;
		strbuf_printf(&text, "%s: cannot open it: %s", path, strerror(-err));
		return err;
	}
	change->was_made = !exists;
	int err = file_grow(fd, path, bytes, change, &text);
	close(fd);
	if (err)
		device_file_restore(path, change);
	return err;
}

void device_file_restore(const char *path, const struct device_file_change *change)
{
	if (change->was_made)
		unlink(path);
	else if (change->has_grown && truncate(path, (off_t)change->bytes_before))
		return; /* it stays larger than it was, which harms nobody */
}

static void signature_describe(blkid_probe probe, struct strbuf *what)
{
	const char *type = NULL, *label = NULL;

	if (!blkid_probe_lookup_value(probe, "TYPE", &type, NULL)) {
		strbuf_printf(what, "%s", type);
		if (!blkid_probe_lookup_value(probe, "LABEL", &label, NULL)) {
			strbuf_add(what, " labelled \"");
			strbuf_add_escaped(what, label, strlen(label));
			strbuf_add_char(what, '"');
		}
	} else if (!blkid_probe_lookup_value(probe, "PTTYPE", &type, NULL)) {
		strbuf_printf(what, "a partition table (%s)", type);
	} else {
		strbuf_add(what, "something that libblkid knows");
	}
}

/* Older versions of libblkid don't know bcachefs. */
static bool bcachefs_find(const char *path, struct strbuf *what)
{
	struct sb_disk sb;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	bool is_there = fd >= 0 && pread(fd, &sb, sizeof(sb), SB_SECTOR << SECTOR_SHIFT) == sizeof(sb) &&
			(!memcmp(sb.magic, sb_magic, 16) || !memcmp(sb.magic, sb_magic_old, 16));

	if (fd >= 0)
		close(fd);
	if (is_there) {
		strbuf_add(what, "bcachefs");
		if (sb.label[0]) {
			strbuf_add(what, " labelled \"");
			strbuf_add_escaped(what, sb.label, strnlen((char *)sb.label, sizeof(sb.label)));
			strbuf_add_char(what, '"');
		}
	}
	return is_there;
}

int device_signature_find(const char *path, char what[128])
{
	struct strbuf text = strbuf_fixed(what, 128);
	struct stat st;

	if (stat(path, &st))
		return -errno;
	if (S_ISREG(st.st_mode) && !st.st_size)
		return 0;
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return -ENOTBLK;

	if (bcachefs_find(path, &text))
		return 1;

	blkid_probe probe = blkid_new_probe_from_filename(path);
	if (!probe)
		return errno ? -errno : -EIO;
	blkid_probe_enable_superblocks(probe, 1);
	blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_LABEL | BLKID_SUBLKS_USAGE);
	blkid_probe_enable_partitions(probe, 1);
	int found = blkid_do_safeprobe(probe);
	if (found == 0)
		signature_describe(probe, &text);
	else if (found == -2)
		strbuf_add(&text, "signatures of more than one kind");
	blkid_free_probe(probe);
	if (found == -1)
		return -EIO;
	return found != 1;
}
