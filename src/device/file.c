/*
 * Files and block devices, through io_uring where the kernel allows it, else through preadv and pwritev.
 *
 * Direct I/O is used where it works: opening with O_DIRECT succeeds and so does a read of the smallest aligned unit.
 * Otherwise I/O is buffered and takes any alignment.
 *
 * With io_uring an I/O is queued on the ring of its group (ring.h) and the kernel starts it at the next poll, so a
 * group costs one system call, not one per I/O. What the ring doesn't finish in one go (short transfers, interruptions,
 * more pieces than the kernel takes at once) is finished synchronously, which is rare enough. These are served
 * synchronously from the start: I/O of groups that have only one (is_sync), discards of block devices (an ioctl),
 * everything in fiber mode, and everything where io_uring is forbidden, as it often is in containers. The result is the
 * same.
 *
 * Small reads that may be cached (device_io.may_be_cached) go through a second, buffered descriptor: waiting for one
 * small direct read after the other leaves the disk idle most of the time, whereas the kernel reads ahead.
 *
 * A failed fdatasync() is reported once by the kernel: it isn't repeated (io.c remembers it), unless it was
 * interrupted.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fiber.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "base/util.h"
#include "device/device.h"
#include "device/loop.h"
#include "device/ring.h"

struct file_device {
	struct device dev;
	int fd;
	int cached_fd; /* -1: none */
	int behind_fd; /* of a loop device's file, with the lock on it; -1: none */
	bool is_block;
	bool has_uring;
};

enum {
	BUFFER_ALIGN_MAX = 4096, /* what io_buffer_alloc() gives */
	IO_ALIGN_MAX = 65536,
	PUNCH_MODE = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
	RETRY_NR_MAX = 1000,
	RETRY_NS = 1000000,
};

static int file_fd_open(const char *path, unsigned flags, bool *is_block, struct strbuf *why);
static int file_lock_all(struct file_device *f, const char *path, bool is_writer, struct strbuf *why);
static void file_claim_explain(const char *path, struct strbuf *why);
static int file_geometry_read(struct file_device *f);
static void file_direct_try(struct file_device *f);
static bool file_direct_works(int fd, uint32_t io_align_bytes, uint32_t mem_align_bytes);
static void file_cached_open(struct file_device *f, const char *path, unsigned flags);
static bool file_uring_works(const char *path, const struct log_sink *log);

static void file_submit(struct device *dev, struct device_io *io);
static void file_queue(struct file_device *f, struct device_io *io);
static bool file_poll(struct device *dev, struct io_group *group, unsigned wait_nr);
static void file_uring_complete(struct device_io *io, int result);
static int file_run(struct file_device *f, struct device_io *io);
static int file_transfer(struct file_device *f, struct device_io *io);
static int file_flush(struct file_device *f);
static int file_discard(struct file_device *f, const struct device_io *io);
static unsigned iov_rest(const struct device_io *io, uint64_t skip_bytes, struct iovec *rest, unsigned rest_nr_max);
static void file_close(struct device *dev);

static const struct device_ops file_ops = {
	.kind = "file",
	.submit = file_submit,
	.poll = file_poll,
	.close = file_close,
};

static const struct device_ops block_ops = {
	.kind = "block",
	.submit = file_submit,
	.poll = file_poll,
	.close = file_close,
};

int device_open_file(const char *path, unsigned flags, const struct log_sink *log, struct device **dev, char why[256])
{
	char ignored[256];
	struct strbuf reason = strbuf_fixed(why ? why : ignored, sizeof(ignored));
	struct file_device *f = calloc(1, sizeof(*f));
	int err;

	if (!f) {
		strbuf_printf(&reason, "%s: out of memory", path);
		return -ENOMEM;
	}
	f->cached_fd = -1;
	f->behind_fd = -1;
	f->fd = file_fd_open(path, flags, &f->is_block, &reason);
	if (f->fd < 0) {
		err = f->fd;
		free(f);
		return err;
	}
	err = file_lock_all(f, path, flags & DEVICE_OPEN_WRITE, &reason);
	if (err == -EBUSY && (flags & DEVICE_OPEN_FORCE) && !(flags & DEVICE_OPEN_WRITE)) {
		log_printf(log, LOG_LEVEL_WARNING, "%s", strbuf_text(&reason));
		strbuf_reset(&reason);
		err = 0;
	}
	if (err)
		goto fail;

	f->dev.ops = f->is_block ? &block_ops : &file_ops;
	f->dev.is_readonly = !(flags & DEVICE_OPEN_WRITE);
	snprintf(f->dev.name, sizeof(f->dev.name), "%s", path);
	err = file_geometry_read(f);
	if (err) {
		strbuf_printf(&reason, "%s: cannot learn its size: %s", path, strerror(-err));
		goto fail;
	}
	if (!(flags & DEVICE_OPEN_NO_DIRECT)) {
		file_direct_try(f);
		if (!f->dev.is_direct)
			log_printf(log, LOG_LEVEL_INFO, "%s: direct I/O doesn't work here, using buffered I/O", path);
	}
	if (f->dev.is_direct && f->dev.is_readonly)
		file_cached_open(f, path, flags);
	f->has_uring = !(flags & DEVICE_OPEN_NO_URING) && !fiber_mode() && file_uring_works(path, log);
	*dev = &f->dev;
	return 0;
fail:
	file_close(&f->dev);
	return err;
}

/* The kind is looked up first: opening a pipe or a tape drive would have effects. */
static int file_fd_open(const char *path, unsigned flags, bool *is_block, struct strbuf *why)
{
	int open_flags = O_CLOEXEC | (flags & DEVICE_OPEN_WRITE ? O_RDWR : O_RDONLY);
	struct stat before, after;
	int fd = -1, err = 0, is_protected = 0;

	if (stat(path, &before)) {
		err = -errno;
	} else if (!S_ISBLK(before.st_mode) && !S_ISREG(before.st_mode)) {
		err = -ENOTBLK;
	} else {
		*is_block = S_ISBLK(before.st_mode);
		if (*is_block && (flags & DEVICE_OPEN_WRITE))
			open_flags |= O_EXCL;
		fd = open(path, open_flags);
		if (fd < 0 || fstat(fd, &after))
			err = -errno;
		else if ((after.st_mode & S_IFMT) != (before.st_mode & S_IFMT))
			err = -ENOTBLK;
		else if (*is_block && flags & DEVICE_OPEN_WRITE && !ioctl(fd, BLKROGET, &is_protected) && is_protected)
			err = -EROFS;
	}
	if (!err)
		return fd;

	if (fd >= 0)
		close(fd);
	if (err == -ENOTBLK)
		strbuf_printf(why, "%s is neither a file nor a block device", path);
	else if (err == -EBUSY)
		file_claim_explain(path, why);
	else
		strbuf_printf(why, "%s: cannot open it%s: %s%s", path, flags & DEVICE_OPEN_WRITE ? " for writing" : "",
			      strerror(-err),
			      flags & DEVICE_OPEN_WRITE && !access(path, R_OK)
				      ? ". It can be read: mount it with -o ro, and use commands that only read"
				      : "");
	return err;
}

/*
 * The lock on what was opened, and on the file behind a loop device; and a look at who has claimed the same bytes under
 * the name of a (another) loop device. Where the file behind can't be opened from here, its lock is left out.
 */
static int file_lock_all(struct file_device *f, const char *path, bool is_writer, struct strbuf *why)
{
	char behind[PATH_MAX], claimed[32];
	struct loop_backing backing = { .range = { 0, 0 } };
	struct stat st;

	int err = file_lock(f->fd, path, backing.range, is_writer, why);
	if (!err && fstat(f->fd, &st))
		err = -errno;
	if (err)
		return err;
	dev_t own = f->is_block ? st.st_rdev : 0;
	if (f->is_block && loop_backing_read(f->fd, &backing)) {
		f->behind_fd = loop_backing_open(f->fd, &backing, is_writer, behind);
		if (f->behind_fd >= 0)
			err = file_lock(f->behind_fd, behind, backing.range, is_writer, why);
	} else {
		backing.file = st;
	}
	if (err || !loop_is_claimed(&backing.file, backing.range, own, claimed))
		return err;
	strbuf_printf(
		why, "%s is being used as %s, which is mounted, or part of another device. Unmount or stop that first.",
		path, claimed);
	return -EBUSY;
}

/* Who has the block device for itself: somebody like us, or the kernel. */
static void file_claim_explain(const char *path, struct strbuf *why)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || !file_lock_is_held(fd, path, true, why))
		strbuf_printf(why, "%s is in use: mounted, or part of another device. Unmount or stop that first.",
			      path);
	if (fd >= 0)
		close(fd);
}

/* Size and block size, and the alignments of buffered I/O. */
static int file_geometry_read(struct file_device *f)
{
	struct device *dev = &f->dev;

	dev->io_align_bytes = 1;
	dev->mem_align_bytes = 1;
	dev->logical_block_bytes = SECTOR_BYTES;
	if (f->is_block) {
		int block_bytes;

		if (ioctl(f->fd, BLKSSZGET, &block_bytes) || ioctl(f->fd, BLKGETSIZE64, &dev->size_bytes))
			return -errno;
		if (block_bytes < SECTOR_BYTES || block_bytes > IO_ALIGN_MAX || !is_power_of_2((unsigned)block_bytes))
			return -EINVAL;
		dev->logical_block_bytes = (uint32_t)block_bytes;
	} else {
		struct stat st;

		if (fstat(f->fd, &st))
			return -errno;
		dev->size_bytes = (uint64_t)st.st_size;
	}
	dev->size_bytes = round_down_u64(dev->size_bytes, dev->logical_block_bytes);
	return 0;
}

/* Switch to direct I/O, if it works, with the smallest alignment that does. */
static void file_direct_try(struct file_device *f)
{
	struct device *dev = &f->dev;
	uint32_t candidates[][2] = { { dev->logical_block_bytes, dev->logical_block_bytes }, { 4096, 4096 } };
	int old_flags = fcntl(f->fd, F_GETFL);

	if (old_flags < 0 || fcntl(f->fd, F_SETFL, old_flags | O_DIRECT))
		return;
#ifdef STATX_DIOALIGN
	struct statx st;

	if (!statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) && (st.stx_mask & STATX_DIOALIGN) &&
	    st.stx_dio_offset_align) {
		candidates[0][0] = max(st.stx_dio_offset_align, dev->logical_block_bytes);
		candidates[0][1] = max(st.stx_dio_mem_align, 1u);
	}
#endif
	for (unsigned i = 0; i < ARRAY_NR(candidates); i++)
		if (candidates[i][0] >= dev->logical_block_bytes &&
		    file_direct_works(f->fd, candidates[i][0], candidates[i][1])) {
			dev->io_align_bytes = candidates[i][0];
			dev->mem_align_bytes = candidates[i][1];
			dev->is_direct = true;
			return;
		}
	fcntl(f->fd, F_SETFL, old_flags);
}

/* A read that is aligned no better than asked for. A file too short for it holds no filesystem. */
static bool file_direct_works(int fd, uint32_t io_align_bytes, uint32_t mem_align_bytes)
{
	if (io_align_bytes > IO_ALIGN_MAX || mem_align_bytes > BUFFER_ALIGN_MAX || !is_power_of_2(io_align_bytes) ||
	    !is_power_of_2(mem_align_bytes))
		return false;

	char *buffer = io_buffer_alloc(mem_align_bytes + io_align_bytes);
	ssize_t n = -1;
	if (buffer)
		do
			n = pread(fd, buffer + mem_align_bytes, io_align_bytes, io_align_bytes);
		while (n < 0 && errno == EINTR);
	io_buffer_free(buffer);
	return n == (ssize_t)io_align_bytes;
}

/*
 * The buffered descriptor, if the path still leads to the same file. Not where somebody else may be writing: the page
 * cache doesn't see what goes to the disk around it.
 */
static void file_cached_open(struct file_device *f, const char *path, unsigned flags)
{
	struct stat direct, cached;

	if (flags & DEVICE_OPEN_FORCE)
		return;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (fstat(f->fd, &direct) || fstat(fd, &cached) || direct.st_dev != cached.st_dev ||
	    direct.st_ino != cached.st_ino) {
		close(fd);
		return;
	}
	/* The answer doesn't matter: it only makes the kernel read further ahead. */
	posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	f->cached_fd = fd;
}

static int file_fd_for(const struct file_device *f, const struct device_io *io)
{
	return io->may_be_cached && io->op == DEVICE_READ && f->cached_fd >= 0 ? f->cached_fd : f->fd;
}

static bool file_uring_works(const char *path, const struct log_sink *log)
{
	struct ring *ring;
	int err = ring_borrow(&ring);

	if (err)
		log_printf(log, LOG_LEVEL_INFO, "%s: io_uring can't be used here (%s), using pread and pwrite", path,
			   strerror(-err));
	else
		ring_give_back(ring);
	return !err;
}

static void file_submit(struct device *dev, struct device_io *io)
{
	struct file_device *f = container_of(dev, struct file_device, dev);
	struct io_group *group = io->group;
	bool use_ring = f->has_uring && !group->is_sync && !(io->op == DEVICE_DISCARD && f->is_block);

	/* With no ring to be had (too many open files, say) there is still the other way. */
	if (use_ring && !group->ring && ring_borrow(&group->ring))
		use_ring = false;
	if (use_ring)
		file_queue(f, io);
	else
		io_done(io, file_run(f, io));
}

static void file_queue(struct file_device *f, struct device_io *io)
{
	struct io_uring_sqe *sqe = ring_queue(io->group->ring, file_uring_complete);
	unsigned iov_nr = min(io->iov_nr, (unsigned)IOV_MAX);

	switch (io->op) {
	case DEVICE_READ: io_uring_prep_readv(sqe, file_fd_for(f, io), io->iov, iov_nr, io->offset_bytes); break;
	case DEVICE_WRITE: io_uring_prep_writev(sqe, f->fd, io->iov, iov_nr, io->offset_bytes); break;
	case DEVICE_FLUSH: io_uring_prep_fsync(sqe, f->fd, IORING_FSYNC_DATASYNC); break;
	case DEVICE_DISCARD:
		io_uring_prep_fallocate(sqe, f->fd, PUNCH_MODE, (off_t)io->offset_bytes, (off_t)io->len_bytes);
		break;
	}
	io_uring_sqe_set_data(sqe, io);
}

static bool file_poll(struct device *dev, struct io_group *group, unsigned wait_nr)
{
	return group->ring && ring_poll(group->ring, wait_nr, file_uring_complete);
}

static void file_uring_complete(struct device_io *io, int result)
{
	struct file_device *f = container_of(io->dev, struct file_device, dev);
	bool is_transfer = io->op == DEVICE_READ || io->op == DEVICE_WRITE;
	bool must_repeat = result == -EINTR || result == -EAGAIN || result == -ECANCELED;
	int err = 0;

	if (result < 0 && !must_repeat)
		err = result;
	else if (!is_transfer && must_repeat)
		err = file_run(f, io);
	else if (is_transfer) {
		io->done_bytes = result > 0 ? (uint64_t)result : 0;
		err = result == 0 ? -EIO : file_transfer(f, io);
	}
	io_done(io, err);
}

static int file_run(struct file_device *f, struct device_io *io)
{
	switch (io->op) {
	case DEVICE_READ:
	case DEVICE_WRITE: return file_transfer(f, io);
	case DEVICE_FLUSH: return file_flush(f);
	case DEVICE_DISCARD: return file_discard(f, io);
	}
	return -EINVAL;
}

/*
 * Read or write what is missing after done_bytes.
 *
 * A transfer that ends within an alignment unit has met the end of a file that shrank under us: the next one would
 * start unaligned.
 */
static int file_transfer(struct file_device *f, struct device_io *io)
{
	enum { REST_NR = 64 };
	struct iovec rest[REST_NR];
	unsigned retry_nr = 0;

	while (io->done_bytes < io->len_bytes) {
		if (io->done_bytes % f->dev.io_align_bytes)
			return -EIO;

		bool is_whole = !io->done_bytes && io->iov_nr <= IOV_MAX;
		const struct iovec *iov = is_whole ? io->iov : rest;
		int nr = (int)(is_whole ? io->iov_nr : iov_rest(io, io->done_bytes, rest, REST_NR));
		off_t at = (off_t)(io->offset_bytes + io->done_bytes);
		ssize_t n =
			io->op == DEVICE_READ ? preadv(file_fd_for(f, io), iov, nr, at) : pwritev(f->fd, iov, nr, at);

		if (n > 0) {
			io->done_bytes += (uint64_t)n;
		} else if (n == 0) {
			return -EIO;
		} else if (errno == EAGAIN && retry_nr++ < RETRY_NR_MAX) {
			sleep_ns(RETRY_NS);
		} else if (errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

/* The pieces of @io behind its first @skip_bytes, as many as fit. */
static unsigned iov_rest(const struct device_io *io, uint64_t skip_bytes, struct iovec *rest, unsigned rest_nr_max)
{
	unsigned nr = 0;

	for (unsigned i = 0; i < io->iov_nr && nr < rest_nr_max; i++) {
		struct iovec piece = io->iov[i];

		if (skip_bytes >= piece.iov_len) {
			skip_bytes -= piece.iov_len;
			continue;
		}
		rest[nr++] = (struct iovec){ (char *)piece.iov_base + skip_bytes, piece.iov_len - skip_bytes };
		skip_bytes = 0;
	}
	return nr;
}

static int file_flush(struct file_device *f)
{
	int failed;

	do
		failed = fdatasync(f->fd);
	while (failed && errno == EINTR);
	return failed ? -errno : 0;
}

static int file_discard(struct file_device *f, const struct device_io *io)
{
	uint64_t range[2] = { io->offset_bytes, io->len_bytes };
	int failed;

	do
		failed = f->is_block ? ioctl(f->fd, BLKDISCARD, range)
				     : fallocate(f->fd, PUNCH_MODE, (off_t)range[0], (off_t)range[1]);
	while (failed && errno == EINTR);
	return failed ? -errno : 0;
}

static void file_close(struct device *dev)
{
	struct file_device *f = container_of(dev, struct file_device, dev);

	if (f->cached_fd >= 0)
		close(f->cached_fd);
	if (f->behind_fd >= 0)
		close(f->behind_fd);
	close(f->fd);
	free(f);
}
