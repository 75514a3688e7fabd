/* Who may use a file or block device at the same time. Private to the device room. */
#ifndef KILN_DEVICE_FILE_LOCK_H
#define KILN_DEVICE_FILE_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/strbuf.h"

/* Bytes of a file; @len_bytes 0: to its end, wherever that is. */
struct file_range {
	uint64_t begin_bytes, len_bytes;
};

/*
 * Take the lock of a writer or reader on @range of @fd, open on @path. It is gone when @fd is closed.
 * Returns 0, -EBUSY with a sentence added to @why, or another negative errno.
 */
int file_lock(int fd, const char *path, struct file_range range, bool is_writer, struct strbuf *why);

/*
 * Whether somebody holds a lock on the file @fd is open on, that stands in the way of a writer or reader; then a
 * sentence about it is added to @why.
 */
bool file_lock_is_held(int fd, const char *path, bool is_writer, struct strbuf *why);

#endif
