/*
 * A device in memory: a memfd, mapped. Sparse: pages exist once written, and discard gives them back.
 *
 * Every I/O is a copy, done before submit() returns. Ranges that two I/Os touch at once hold a mix of both afterwards,
 * as on any disk; callers don't do that.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "device/device.h"

struct memory_device {
	struct device dev;
	int fd;
	uint8_t *bytes; /* all of the device */
};

static void memory_submit(struct device *dev, struct device_io *io);
static void memory_close(struct device *dev);

static const struct device_ops memory_ops = { .kind = "memory", .submit = memory_submit, .close = memory_close };

int device_open_memory(const char *name, uint64_t size_bytes, uint32_t logical_block_bytes, struct device **dev)
{
	if ((logical_block_bytes != 512 && logical_block_bytes != 4096) || !size_bytes ||
	    size_bytes % logical_block_bytes || size_bytes > INT64_MAX)
		return -EINVAL;

	struct memory_device *m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->dev = (struct device){
		.ops = &memory_ops,
		.size_bytes = size_bytes,
		.logical_block_bytes = logical_block_bytes,
		.io_align_bytes = logical_block_bytes,
		.mem_align_bytes = 1,
	};
	snprintf(m->dev.name, sizeof(m->dev.name), "%s", name);

	int err = 0;
	m->fd = memfd_create("kiln-device", MFD_CLOEXEC);
	if (m->fd < 0 || ftruncate(m->fd, (off_t)size_bytes)) {
		err = -errno;
		goto fail;
	}
	m->bytes = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m->fd, 0);
	if (m->bytes == MAP_FAILED) {
		err = -errno;
		goto fail;
	}
	*dev = &m->dev;
	return 0;
fail:
	if (m->fd >= 0)
		close(m->fd);
	free(m);
	return err;
}

static void memory_submit(struct device *dev, struct device_io *io)
{
	struct memory_device *m = container_of(dev, struct memory_device, dev);
	uint8_t *at = m->bytes + io->offset_bytes;
	uint64_t left = io->len_bytes;

	if (io->op == DEVICE_DISCARD) {
		int failed = fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)io->offset_bytes,
				       (off_t)io->len_bytes);

		io_done(io, failed ? -errno : 0);
		return;
	}
	for (unsigned i = 0; i < io->iov_nr && left; i++) {
		size_t bytes = min(left, io->iov[i].iov_len);

		if (bytes && io->op == DEVICE_READ)
			memcpy(io->iov[i].iov_base, at, bytes);
		else if (bytes)
			memcpy(at, io->iov[i].iov_base, bytes);
		at += bytes;
		left -= bytes;
	}
	io_done(io, 0);
}

static void memory_close(struct device *dev)
{
	struct memory_device *m = container_of(dev, struct memory_device, dev);

	munmap(m->bytes, dev->size_bytes);
	close(m->fd);
	free(m);
}
