/*
 * A device in memory: a memfd. Sparse: pages exist once written, and discard gives them back. It is mapped in pieces,
 * each when it is first touched and until the device is closed: address space isn't without bounds (under
 * ThreadSanitizer a few TiB are), and devices may be large.
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
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "base/sanitizer.h"
#include "base/util.h"
#include "device/device.h"

static const uint64_t PIECE_BYTES = 1 << 30;

struct memory_device {
	struct device dev;
	int fd;
	uint8_t **pieces; /* NULL: not mapped yet; set once, by whoever is first */
	uint64_t pieces_nr;
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
	m->pieces_nr = div_round_up_u64(size_bytes, PIECE_BYTES);
	m->pieces = calloc(m->pieces_nr, sizeof(*m->pieces));
	if (!m->pieces) {
		err = -ENOMEM;
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

static uint64_t piece_bytes(const struct memory_device *m, uint64_t nr)
{
	return min(PIECE_BYTES, m->dev.size_bytes - nr * PIECE_BYTES);
}

/* The mapping of piece @nr, made if need be; NULL when the system refuses. */
static uint8_t *piece_get(struct memory_device *m, uint64_t nr)
{
	uint8_t *bytes = __atomic_load_n(&m->pieces[nr], __ATOMIC_ACQUIRE), *first = NULL;

	if (bytes)
		return bytes;
	bytes = mmap(NULL, piece_bytes(m, nr), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m->fd,
		     (off_t)(nr * PIECE_BYTES));
	if (bytes == MAP_FAILED)
		return NULL;
	if (__atomic_compare_exchange_n(&m->pieces[nr], &first, bytes, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return bytes;
	munmap(bytes, piece_bytes(m, nr));
	return first;
}

#if defined(__SSE2__) && !KILN_SANITIZED
/*
 * Past the processor's caches: like what is on a disk, it will hardly be read again soon, and what it would take the
 * place of is, the buffers that are written next.
 */
static void bytes_store(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
	enum { LINE_BYTES = 64, PART_BYTES = 16, PART_NR = LINE_BYTES / PART_BYTES };

	if ((uintptr_t)to % LINE_BYTES == 0) {
		for (; bytes >= LINE_BYTES; to += LINE_BYTES, from += LINE_BYTES, bytes -= LINE_BYTES) {
			__m128i part[PART_NR];

			for (unsigned i = 0; i < PART_NR; i++)
				part[i] = _mm_loadu_si128((const __m128i *)from + i);
			for (unsigned i = 0; i < PART_NR; i++)
				_mm_stream_si128((__m128i *)to + i, part[i]);
		}
		_mm_sfence();
	}
	memcpy(to, from, bytes);
}
#else
static void bytes_store(uint8_t *to, const uint8_t *from, uint64_t bytes) { memcpy(to, from, bytes); }
#endif

static int memory_copy(struct memory_device *m, enum device_op op, uint64_t offset_bytes, uint8_t *buf, uint64_t bytes)
{
	while (bytes) {
		uint64_t nr = offset_bytes / PIECE_BYTES, within = offset_bytes % PIECE_BYTES;
		uint64_t part = min(bytes, piece_bytes(m, nr) - within);
		uint8_t *piece = piece_get(m, nr);

		if (!piece)
			return -ENOMEM;
		if (op == DEVICE_READ)
			memcpy(buf, piece + within, part);
		else
			bytes_store(piece + within, buf, part);
		offset_bytes += part;
		buf += part;
		bytes -= part;
	}
	return 0;
}

static void memory_submit(struct device *dev, struct device_io *io)
{
	struct memory_device *m = container_of(dev, struct memory_device, dev);
	uint64_t at = io->offset_bytes, left = io->len_bytes;
	int err = 0;

	if (io->op == DEVICE_DISCARD) {
		int failed = fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)io->offset_bytes,
				       (off_t)io->len_bytes);

		io_done(io, failed ? -errno : 0);
		return;
	}
	for (unsigned i = 0; i < io->iov_nr && left && !err; i++) {
		uint64_t bytes = min(left, io->iov[i].iov_len);

		err = memory_copy(m, io->op, at, io->iov[i].iov_base, bytes);
		at += bytes;
		left -= bytes;
	}
	io_done(io, err);
}

static void memory_close(struct device *dev)
{
	struct memory_device *m = container_of(dev, struct memory_device, dev);

	for (uint64_t nr = 0; nr < m->pieces_nr; nr++)
		if (m->pieces[nr])
			munmap(m->pieces[nr], piece_bytes(m, nr));
	free(m->pieces);
	close(m->fd);
	free(m);
}
