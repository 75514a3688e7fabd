/* Loop devices, which are a file's bytes under another name. Private to the device room. See loop.c. */
#ifndef KILN_DEVICE_LOOP_H
#define KILN_DEVICE_LOOP_H

#include <stdbool.h>
#include <sys/stat.h>

#include "device/file_lock.h"

/* What a loop device, or a partition of one, is a name for. */
struct loop_backing {
	struct stat file; /* st_dev and st_ino only */
	struct file_range range;
};

/* @fd is open on a block device: whether it is a loop device. */
bool loop_backing_read(int fd, struct loop_backing *backing);
/*
 * Open the file behind the loop device that @fd is open on, for its lock: its descriptor and (@path) name; or a
 * negative errno, when the kernel's name for it leads nowhere from here, for one.
 */
int loop_backing_open(int fd, const struct loop_backing *backing, bool is_writer, char path[4096]);
/*
 * Whether somebody, the kernel included, has claimed a loop device that names bytes of @range of @file; then its name.
 * Not looked at: the disk that the block device @except is, or is a partition of (0: none).
 */
bool loop_is_claimed(const struct stat *file, struct file_range range, dev_t except, char name[32]);

#endif
