/* One I/O at a time, closing, and buffers: the simple face of a device. */
#include "device/device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int device_io_run(struct device_io *io);

int device_read(struct device *dev, uint64_t offset_bytes, void *buf, size_t len_bytes)
{
	struct iovec iov = { buf, len_bytes };
	struct device_io io = {
		.op = DEVICE_READ,
		.dev = dev,
		.offset_bytes = offset_bytes,
		.iov = &iov,
		.iov_nr = 1,
		.len_bytes = len_bytes,
	};

	return device_io_run(&io);
}

int device_write(struct device *dev, uint64_t offset_bytes, const void *buf, size_t len_bytes)
{
	struct iovec iov = { (void *)buf, len_bytes };
	struct device_io io = {
		.op = DEVICE_WRITE,
		.dev = dev,
		.offset_bytes = offset_bytes,
		.iov = &iov,
		.iov_nr = 1,
		.len_bytes = len_bytes,
	};

	return device_io_run(&io);
}

int device_flush(struct device *dev)
{
	struct device_io io = { .op = DEVICE_FLUSH, .dev = dev };

	return device_io_run(&io);
}

int device_discard(struct device *dev, uint64_t offset_bytes, uint64_t len_bytes)
{
	struct device_io io = {
		.op = DEVICE_DISCARD, .dev = dev, .offset_bytes = offset_bytes, .len_bytes = len_bytes
	};

	return device_io_run(&io);
}

/* A single I/O gains nothing from a ring: the group says so, and files serve it with one system call. */
static int device_io_run(struct device_io *io)
{
	struct io_group group;

	io_group_init(&group);
	group.is_sync = true;
	io_submit(&group, io);
	return io_group_wait(&group);
}

static bool is_zero(const uint8_t *p, size_t bytes) { return !bytes || (!p[0] && !memcmp(p, p + 1, bytes - 1)); }

int device_wipe(struct device *dev, uint64_t from_bytes, uint64_t to_bytes)
{
	enum { CHUNK_BYTES = 256 << 10 };
	uint64_t end =
		round_down_u64(min(to_bytes, dev->size_bytes), max(dev->io_align_bytes, dev->logical_block_bytes));
	uint8_t *buf = io_buffer_alloc(CHUNK_BYTES);
	int err = buf ? 0 : -ENOMEM;

	for (uint64_t at = from_bytes; at < end && !err; at += CHUNK_BYTES) {
		size_t bytes = min((uint64_t)CHUNK_BYTES, end - at);

		/* Where reading fails, writing may heal. */
		if (!device_read(dev, at, buf, bytes) && is_zero(buf, bytes))
			continue;
		memset(buf, 0, bytes);
		err = device_write(dev, at, buf, bytes);
	}
	io_buffer_free(buf);
	return err;
}

void device_close(struct device *dev)
{
	if (dev)
		dev->ops->close(dev);
}

enum { BUFFER_ALIGN_BYTES = 4096 };

void *io_buffer_alloc(size_t bytes)
{
	void *buf;

	return posix_memalign(&buf, BUFFER_ALIGN_BYTES, bytes) ? NULL : buf;
}

void io_buffer_free(void *buf) { free(buf); }
