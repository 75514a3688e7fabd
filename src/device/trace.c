/*
 * A wrapper that writes down every I/O, to look at or to replay.
 *
 * The trace is text, a line per completed I/O in order of completion, fields separated by one blank. The first line is
 *
 *	# kiln device trace 1 SIZE_BYTES LOGICAL_BLOCK_BYTES OPENED_NS
 *
 * and each other line
 *
 *	DONE_NS TOOK_NS OP OFFSET_BYTES LEN_BYTES RESULT DATA
 *
 * OPENED_NS	clock_monotonic_ns() then: what traces of several devices are put beside each other by
 * DONE_NS	since the trace was opened
 * TOOK_NS	from submission to completion
 * OP		R read, W write, F flush (offset and length 0), D discard
 * RESULT	0 or a negative errno
 * DATA		offset in PATH.data of the LEN_BYTES that were to be written, or - if they aren't kept
 *
 * If lines couldn't be written (the disk is full) a last line `# lost N` says how many; the I/Os themselves go on.
 *
 * Lines and data are written straight away, with one system call each: a crash of the process loses none, and threads
 * need no lock, since a line is one append and the place of data is claimed by an atomic addition. So this is the one
 * completion that may block; tracing isn't free.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/strbuf.h"
#include "base/util.h"
#include "device/wrap.h"

struct trace_device {
	struct wrap_device wrap;
	int fd;
	int data_fd; /* -1: data isn't kept */
	uint64_t opened_ns;
	uint64_t data_end_bytes; /* atomic */
	uint64_t lines_lost;	 /* atomic */
};

struct trace_io {
	struct device_io io;
	struct device_io *parent;
	uint64_t started_ns;
};

static void trace_submit(struct device *dev, struct device_io *io);
static void trace_complete(struct device_io *child);
static bool trace_data_write(struct trace_device *t, const struct device_io *io, uint64_t *data_bytes);
static void trace_line_write(struct trace_device *t, const struct strbuf *line);
static void trace_close(struct device *dev);

static const struct device_ops trace_ops = {
	.kind = "trace",
	.submit = trace_submit,
	.poll = wrap_poll,
	.close = trace_close,
};

static const char op_letter[] = {
	[DEVICE_READ] = 'R',
	[DEVICE_WRITE] = 'W',
	[DEVICE_FLUSH] = 'F',
	[DEVICE_DISCARD] = 'D',
};

int device_wrap_trace(struct device *below, const char *path, bool with_data, struct device **dev)
{
	enum { OPEN_FLAGS = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC };
	struct trace_device *t = calloc(1, sizeof(*t));
	struct strbuf data_path = strbuf_growing();
	char text[128];
	struct strbuf head = strbuf_fixed(text, sizeof(text));
	int err = 0;

	strbuf_printf(&data_path, "%s.data", path);
	if (!t || data_path.truncated) {
		err = -ENOMEM;
		goto out;
	}
	t->data_fd = -1;
	t->fd = open(path, OPEN_FLAGS | O_APPEND, 0666);
	if (t->fd >= 0 && with_data)
		t->data_fd = open(strbuf_text(&data_path), OPEN_FLAGS, 0666);
	if (t->fd < 0 || (with_data && t->data_fd < 0)) {
		err = -errno;
		if (t->fd >= 0)
			close(t->fd);
		goto out;
	}
	wrap_init(&t->wrap, &trace_ops, below);
	t->opened_ns = clock_monotonic_ns();
	strbuf_printf(&head, "# kiln device trace 1 %llu %u %llu\n", (unsigned long long)below->size_bytes,
		      below->logical_block_bytes, (unsigned long long)t->opened_ns);
	trace_line_write(t, &head);
	*dev = &t->wrap.dev;
out:
	strbuf_free(&data_path);
	if (err)
		free(t);
	return err;
}

static void trace_submit(struct device *dev, struct device_io *io)
{
	struct trace_device *t = container_of(dev, struct trace_device, wrap.dev);
	struct trace_io *child = malloc(sizeof(*child));

	if (!child) {
		io_done(io, -ENOMEM);
		return;
	}
	wrap_io_init(&child->io, io, &t->wrap);
	child->parent = io;
	child->started_ns = clock_monotonic_ns();
	io_submit_below(&child->io, io, trace_complete);
}

static void trace_complete(struct device_io *io)
{
	struct trace_io *child = container_of(io, struct trace_io, io);
	struct device_io *parent = child->parent;
	struct trace_device *t = container_of(parent->dev, struct trace_device, wrap.dev);
	uint64_t now = clock_monotonic_ns();
	uint64_t data_bytes = 0;
	bool has_data = io->op == DEVICE_WRITE && t->data_fd >= 0 && trace_data_write(t, io, &data_bytes);
	char text[192];
	struct strbuf line = strbuf_fixed(text, sizeof(text));

	strbuf_printf(&line, "%llu %llu %c %llu %llu %d ", (unsigned long long)(now - t->opened_ns),
		      (unsigned long long)(now - child->started_ns), op_letter[io->op],
		      (unsigned long long)io->offset_bytes, (unsigned long long)io->len_bytes, io->err);
	if (has_data)
		strbuf_printf(&line, "%llu\n", (unsigned long long)data_bytes);
	else
		strbuf_add(&line, "-\n");
	trace_line_write(t, &line);

	parent->done_bytes = io->done_bytes;
	int err = io->err;
	free(child);
	io_done(parent, err);
}

/* Sets @data_bytes to where it was written. Data that can't be kept is left out, and the line says so. */
static bool trace_data_write(struct trace_device *t, const struct device_io *io, uint64_t *data_bytes)
{
	uint64_t at = __atomic_fetch_add(&t->data_end_bytes, io->len_bytes, __ATOMIC_RELAXED);

	*data_bytes = at;
	for (unsigned i = 0; i < io->iov_nr; i++) {
		const char *from = io->iov[i].iov_base;
		size_t left = io->iov[i].iov_len;

		while (left) {
			ssize_t n = pwrite(t->data_fd, from, left, (off_t)at);

			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0)
				return false;
			from += n;
			left -= (size_t)n;
			at += (uint64_t)n;
		}
	}
	return true;
}

static void trace_line_write(struct trace_device *t, const struct strbuf *line)
{
	ssize_t n;

	do
		n = write(t->fd, line->text, line->len);
	while (n < 0 && errno == EINTR);
	if (n != (ssize_t)line->len)
		__atomic_fetch_add(&t->lines_lost, 1, __ATOMIC_RELAXED);
}

static void trace_close(struct device *dev)
{
	struct trace_device *t = container_of(dev, struct trace_device, wrap.dev);

	if (t->lines_lost) {
		char text[64];
		struct strbuf line = strbuf_fixed(text, sizeof(text));

		strbuf_printf(&line, "# lost %llu\n", (unsigned long long)t->lines_lost);
		trace_line_write(t, &line);
	}
	device_close(t->wrap.below);
	close(t->fd);
	if (t->data_fd >= 0)
		close(t->data_fd);
	free(t);
}
