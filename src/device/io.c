/*
 * Groups of I/Os: checks on the way in, bounce buffers, completion, waiting.
 *
 * An I/O in flight is in its group's pending list from io_submit() until it is finished, then in the done list until it
 * is taken. I/Os that a wrapper or the bounce code makes on behalf of another (they have a `complete` function) are in
 * neither: their parent is. Those of either sort that are served but must not be seen yet are in the delayed list too.
 *
 * Nobody but the owner touches a group, so nothing here locks. Only a device's statistics are shared.
 */
#include "device/device.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/lock_order.h"
#include "base/util.h"
#include "device/ring.h"

/* A read into an aligned buffer on behalf of @parent, whose range is inside. */
struct bounce {
	struct device_io io;
	struct iovec iov;
	struct device_io *parent;
};

enum { FLUSH_SLOT_NR = 64, FLUSH_POLL_NS = 50000 };

static const uint64_t LATENCY_HALF_NS = 4000000000; /* not read for so long: half of the average is forgotten */
static const uint64_t LATENCY_LEAST_NS = 1000, LATENCY_FAILED_MAX_NS = 1000000000;

static int flush_check(const struct device *dev);
static void flush_begin(struct device_io *io);
static void flush_settle(struct device_io *io);
static int io_check(const struct device_io *io);
static bool io_is_aligned(const struct device_io *io);
static void io_start(struct device_io *io);
static void io_finish(struct device_io *io, int err);
static void io_account(const struct device_io *io, int err);
static void latency_add(const struct device_io *io, bool has_failed);
static uint64_t latency_at(const struct device *dev, uint64_t now_ns);
static void bounce_start(struct device_io *parent);
static void bounce_complete(struct device_io *io);
static void pending_add(struct io_group *group, struct device_io *io);
static void pending_remove(struct io_group *group, struct device_io *io);
static void delayed_finish_due(struct io_group *group);
/* @any: one that is done already is enough. */
static void group_progress(struct io_group *group, unsigned wait_nr, bool any);
static void group_drop_ring(struct io_group *group);

void io_group_init(struct io_group *group) { *group = (struct io_group){ 0 }; }

void io_group_init_for(struct io_group *group, unsigned nr) { *group = (struct io_group){ .is_sync = nr == 1 }; }

void io_submit(struct io_group *group, struct device_io *io)
{
	task_may_wait(NULL); /* some devices do it at once */
	io->err = 0;
	io->is_done = false;
	io->done_bytes = 0;
	io->group = group;
	io->complete = NULL;
	pending_add(group, io);

	int err = io_check(io);
	bool has_nothing_to_do = io->op == DEVICE_FLUSH ? io->dev->is_readonly : !io->len_bytes;
	if (err || has_nothing_to_do)
		io_finish(io, err);
	else if (io_is_aligned(io)) {
		if (io->op == DEVICE_FLUSH)
			flush_begin(io);
		io_start(io);
	} else if (io->op == DEVICE_READ)
		bounce_start(io);
	else
		io_finish(io, -EINVAL);
}

void io_submit_below(struct device_io *child, struct device_io *parent, void (*complete)(struct device_io *child))
{
	child->err = 0;
	child->is_done = false;
	child->done_bytes = 0;
	child->group = parent->group;
	child->complete = complete;
	io_start(child);
}

struct device_io *io_group_next(struct io_group *group)
{
	while (!group->done_first && group->in_flight)
		group_progress(group, 1, true);
	/* While others may wait for its own, it must not wait for theirs. */
	if (group->done_first && group->done_first->op == DEVICE_FLUSH) {
		while (group->in_flight)
			group_progress(group, group->in_flight, false);
		flush_settle(group->done_first);
	}
	if (!group->in_flight)
		group_drop_ring(group);

	struct device_io *io = group->done_first;
	if (io) {
		group->done_first = io->next;
		if (!group->done_first)
			group->done_last = NULL;
		io->next = NULL;
	}
	return io;
}

int io_group_wait(struct io_group *group)
{
	int err = 0;

	task_may_wait(NULL);
	while (group->in_flight)
		group_progress(group, group->in_flight, false);

	for (struct device_io *io; (io = io_group_next(group));)
		if (!err)
			err = io->err;
	return err;
}

void io_group_push(struct io_group *group)
{
	for (struct device_io *io = group->pending_first, *next; io; io = next) {
		next = io->next;
		/* All that the group has with a device is pushed by one call: which may finish any of them. */
		if (io->dev->ops->poll && io->dev->ops->poll(io->dev, group, 0))
			break;
	}
}

void io_done(struct device_io *io, int err)
{
	/* What another one was told meanwhile goes for this one too. */
	if (!err && io->op == DEVICE_FLUSH)
		err = flush_check(io->dev);
	if (!err)
		io->done_bytes = io->len_bytes;
	/* An image on a full filesystem is a device that fails, not one whose filesystem is full. */
	if (err == -ENOSPC || err == -EDQUOT)
		err = -KILN_E_HOST_FULL;
	io_account(io, err);
	if (io->op == DEVICE_FLUSH && !io->complete)
		__atomic_fetch_and(&io->dev->flushes_open, ~(1ull << io->flush_slot), __ATOMIC_ACQ_REL);
	io_finish(io, err);
}

void io_done_at(struct device_io *io, int err, uint64_t due_ns)
{
	struct device_io **link = &io->group->delayed_first;

	if (due_ns <= clock_monotonic_ns()) {
		io_done(io, err);
		return;
	}
	io->err = err;
	io->due_ns = due_ns;
	while (*link && (*link)->due_ns <= due_ns)
		link = &(*link)->delayed_next;
	io->delayed_next = *link;
	*link = io;
}

uint64_t device_read_latency(const struct device *dev) { return latency_at(dev, clock_monotonic_ns()); }

void device_read_latency_forget(struct device *dev) { __atomic_store_n(&dev->read_latency_ns, 0, __ATOMIC_RELAXED); }

/* Can a flush of the device still say something? */
static int flush_check(const struct device *dev)
{
	return __atomic_load_n(&dev->has_failed_flush, __ATOMIC_ACQUIRE) ? -EIO : 0;
}

/* Take a bit of the device. They go round, so that who waits for one isn't kept by its next user. */
static void flush_begin(struct device_io *io)
{
	uint64_t *open = &io->dev->flushes_open, old = __atomic_load_n(open, __ATOMIC_ACQUIRE);
	unsigned first = __atomic_fetch_add(&io->dev->flushes_begun, 1, __ATOMIC_RELAXED) % FLUSH_SLOT_NR;

	do {
		while (!~old) {
			sleep_ns(FLUSH_POLL_NS);
			old = __atomic_load_n(open, __ATOMIC_ACQUIRE);
		}
		io->flush_slot = first;
		while (old >> io->flush_slot & 1)
			io->flush_slot = (io->flush_slot + 1) % FLUSH_SLOT_NR;
	} while (!__atomic_compare_exchange_n(open, &old, old | 1ull << io->flush_slot, false, __ATOMIC_ACQ_REL,
					      __ATOMIC_ACQUIRE));
}

/*
 * A flush has ended. If it went well, the failure of another one that was under way meanwhile may not have come to
 * light yet: its owner has it, or will see it soon, and waits for nothing but his I/O.
 */
static void flush_settle(struct device_io *io)
{
	const struct device *dev = io->dev;
	uint64_t others = __atomic_load_n(&dev->flushes_open, __ATOMIC_ACQUIRE);

	while (!io->err && others) {
		sleep_ns(FLUSH_POLL_NS);
		others &= __atomic_load_n(&dev->flushes_open, __ATOMIC_ACQUIRE);
	}
	if (!io->err)
		io->err = flush_check(dev);
}

/* Whether the device can be asked to do this at all. */
static int io_check(const struct device_io *io)
{
	const struct device *dev = io->dev;
	uint64_t len_bytes = 0;

	if (io->op == DEVICE_FLUSH)
		return flush_check(dev);
	if (io->op != DEVICE_READ && dev->is_readonly)
		return -EROFS;
	if (io->op == DEVICE_DISCARD) {
		if ((io->offset_bytes | io->len_bytes) % dev->logical_block_bytes)
			return -EINVAL;
	} else {
		for (unsigned i = 0; i < io->iov_nr; i++)
			if (__builtin_add_overflow(len_bytes, io->iov[i].iov_len, &len_bytes))
				return -EINVAL;
		if (len_bytes != io->len_bytes)
			return -EINVAL;
	}
	if (io->offset_bytes > dev->size_bytes || io->len_bytes > dev->size_bytes - io->offset_bytes)
		return -EIO;
	return 0;
}

/* Alignments are powers of two. Direct I/O wants each piece aligned, not just the whole. */
static bool io_is_aligned(const struct device_io *io)
{
	const struct device *dev = io->dev;
	uint64_t sizes = io->offset_bytes, addresses = 0;

	if (io->op != DEVICE_READ && io->op != DEVICE_WRITE)
		return true;
	for (unsigned i = 0; i < io->iov_nr; i++) {
		sizes |= io->iov[i].iov_len;
		addresses |= (uintptr_t)io->iov[i].iov_base;
	}
	return !(sizes & (dev->io_align_bytes - 1)) && !(addresses & (dev->mem_align_bytes - 1));
}

static void io_start(struct device_io *io)
{
	io->submitted_ns = clock_monotonic_ns();
	io->dev->ops->submit(io->dev, io);
}

static void io_finish(struct device_io *io, int err)
{
	struct io_group *group = io->group;

	io->err = err;
	io->is_done = true;
	if (io->complete) {
		io->complete(io);
		return;
	}
	pending_remove(group, io);
	group->in_flight--;
	io->next = NULL;
	if (group->done_last)
		group->done_last->next = io;
	else
		group->done_first = io;
	group->done_last = io;
}

/* What the device is known by. Not atomic as a whole: a lost update of an average does no harm. */
static void io_account(const struct device_io *io, int err)
{
	struct device *dev = io->dev;

	if (err) {
		uint64_t *count = io->op == DEVICE_READ ? &dev->read_errors : &dev->write_errors;

		if (io->op == DEVICE_FLUSH)
			__atomic_store_n(&dev->has_failed_flush, true, __ATOMIC_RELEASE);
		if (err != -EOPNOTSUPP)
			__atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
	}
	if (io->op == DEVICE_READ)
		latency_add(io, err != 0);
}

/*
 * What has failed counts as slow: of several times in a row each doubles the average. So a device that is dead, and
 * tells so at once, isn't the fastest of all, and one with a few bad places is read as before.
 */
static void latency_add(const struct device_io *io, bool has_failed)
{
	struct device *dev = io->dev;
	uint64_t now = clock_monotonic_ns();
	uint64_t took = now > io->submitted_ns ? now - io->submitted_ns : 0;
	uint64_t average = latency_at(dev, now);
	if (has_failed)
		took = max(took, min(8 * (average + LATENCY_LEAST_NS), LATENCY_FAILED_MAX_NS));
	average = average ? average - average / 8 + took / 8 : took;
	__atomic_store_n(&dev->read_latency_ns, average, __ATOMIC_RELAXED);
	__atomic_store_n(&dev->read_latency_at_ns, now, __ATOMIC_RELAXED);
}

/* The average is halved with each LATENCY_HALF_NS that have passed, in a straight line in between. */
static uint64_t latency_at(const struct device *dev, uint64_t now_ns)
{
	uint64_t average = __atomic_load_n(&dev->read_latency_ns, __ATOMIC_RELAXED);
	uint64_t at = __atomic_load_n(&dev->read_latency_at_ns, __ATOMIC_RELAXED);
	uint64_t age = now_ns > at ? now_ns - at : 0, halves = age / LATENCY_HALF_NS;

	if (halves >= 64)
		return 0;
	average >>= halves;
	return average - (uint64_t)((double)average / 2 * (double)(age % LATENCY_HALF_NS) / (double)LATENCY_HALF_NS);
}

/*
 * The range is widened to the device's alignment. At the end of a file that isn't a multiple of it the buffer reaches
 * beyond the end, but len_bytes, what must come, does not.
 */
static void bounce_start(struct device_io *parent)
{
	struct device *dev = parent->dev;
	uint64_t begin = round_down_u64(parent->offset_bytes, dev->io_align_bytes);
	uint64_t end = parent->offset_bytes + parent->len_bytes;
	uint64_t buffer_bytes = round_up_u64(end - begin, dev->io_align_bytes);
	struct bounce *bounce = calloc(1, sizeof(*bounce));
	void *buffer = io_buffer_alloc(buffer_bytes);

	if (!bounce || !buffer) {
		free(bounce);
		io_buffer_free(buffer);
		io_finish(parent, -ENOMEM);
		return;
	}
	bounce->parent = parent;
	bounce->iov = (struct iovec){ buffer, buffer_bytes };
	bounce->io = (struct device_io){
		.op = DEVICE_READ,
		.dev = dev,
		.offset_bytes = begin,
		.iov = &bounce->iov,
		.iov_nr = 1,
		.len_bytes = min(buffer_bytes, dev->size_bytes - begin),
		.may_be_cached = parent->may_be_cached,
	};
	io_submit_below(&bounce->io, parent, bounce_complete);
}

static void bounce_complete(struct device_io *io)
{
	struct bounce *bounce = container_of(io, struct bounce, io);
	struct device_io *parent = bounce->parent;
	uint64_t skip = parent->offset_bytes - io->offset_bytes;
	uint64_t left = io->done_bytes > skip ? min(io->done_bytes - skip, parent->len_bytes) : 0;
	const uint8_t *from = (const uint8_t *)bounce->iov.iov_base + skip;
	int err = io->err;

	parent->done_bytes = left;
	for (unsigned i = 0; i < parent->iov_nr && left; i++) {
		size_t bytes = min(left, parent->iov[i].iov_len);

		if (bytes)
			memcpy(parent->iov[i].iov_base, from, bytes);
		from += bytes;
		left -= bytes;
	}
	io_buffer_free(bounce->iov.iov_base);
	free(bounce);
	io_finish(parent, err); /* the device's statistics have counted the child */
}

static void pending_add(struct io_group *group, struct device_io *io)
{
	io->prev = NULL;
	io->next = group->pending_first;
	if (io->next)
		io->next->prev = io;
	group->pending_first = io;
	group->in_flight++;
}

static void pending_remove(struct io_group *group, struct device_io *io)
{
	if (io->next)
		io->next->prev = io->prev;
	if (io->prev)
		io->prev->next = io->next;
	else
		group->pending_first = io->next;
}

static void delayed_finish_due(struct io_group *group)
{
	uint64_t now = group->delayed_first ? clock_monotonic_ns() : 0;

	while (group->delayed_first && group->delayed_first->due_ns <= now) {
		struct device_io *io = group->delayed_first;

		group->delayed_first = io->delayed_next;
		io_done(io, io->err);
	}
}

/*
 * Get something of @group done, up to @wait_nr I/Os. What is with a device goes first, since that is expected to be
 * quicker than simulated delays, which are slept through only when nothing else is left.
 */
static void group_progress(struct io_group *group, unsigned wait_nr, bool any)
{
	delayed_finish_due(group);
	if (group->done_first && any)
		return;
	for (struct device_io *io = group->pending_first; io; io = io->next)
		if (io->dev->ops->poll && io->dev->ops->poll(io->dev, group, wait_nr))
			return;
	if (group->delayed_first) {
		uint64_t now = clock_monotonic_ns();

		if (group->delayed_first->due_ns > now)
			sleep_ns(group->delayed_first->due_ns - now);
	} else {
		assert(!group->in_flight);
	}
}

static void group_drop_ring(struct io_group *group)
{
	if (group->ring) {
		ring_give_back(group->ring);
		group->ring = NULL;
	}
}
