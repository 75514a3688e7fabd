/*
 * The pool of io_uring rings.
 *
 * The pool is a handful of slots, each empty or holding an idle ring. Borrowing swaps a slot with NULL, giving back
 * swaps NULL with the ring; where no slot is free the ring is closed. So there is no lock, nothing to initialise, and
 * idle rings are bounded. Whoever holds a ring is its only user.
 *
 * A ring is shared memory between this process and the kernel. A child after fork() maps the same memory as its parent,
 * so a ring remembers its process, and one found in the pool of another is closed (which doesn't disturb the parent's).
 *
 * No more is in flight than the completion queue can hold: beyond that the kernel would keep completions on a list of
 * its own (or lose them, before Linux 5.5).
 */
#include "device/ring.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"

enum {
	SQ_ENTRIES = 64,
	CQ_ENTRIES = 2 * SQ_ENTRIES, /* what the kernel gives by default */
	POOL_SLOTS = 16,
	RETRY_NS = 1000000,
};

struct ring {
	struct io_uring uring;
	pid_t process;
	unsigned in_flight; /* queued or with the kernel, not completed */
};

static struct ring *pool[POOL_SLOTS];

static int ring_new(struct ring **ring);
static void ring_free(struct ring *ring);
static void ring_reap(struct ring *ring, ring_complete_fn complete);
static void ring_enter(struct ring *ring, unsigned wait_nr, ring_complete_fn complete);

int ring_borrow(struct ring **ring)
{
	pid_t self = getpid();

	for (unsigned i = 0; i < POOL_SLOTS; i++) {
		if (!__atomic_load_n(&pool[i], __ATOMIC_RELAXED))
			continue;
		struct ring *r = __atomic_exchange_n(&pool[i], NULL, __ATOMIC_ACQ_REL);
		if (!r)
			continue;
		if (r->process == self) {
			*ring = r;
			return 0;
		}
		ring_free(r);
	}
	return ring_new(ring);
}

void ring_give_back(struct ring *ring)
{
	for (unsigned i = 0; i < POOL_SLOTS; i++) {
		struct ring *empty = NULL;

		if (__atomic_compare_exchange_n(&pool[i], &empty, ring, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			return;
	}
	ring_free(ring);
}

static int ring_new(struct ring **ring)
{
	struct ring *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	int err = io_uring_queue_init(SQ_ENTRIES, &r->uring, 0);
	if (err < 0) {
		free(r);
		return err;
	}
	r->process = getpid();
	*ring = r;
	return 0;
}

static void ring_free(struct ring *ring)
{
	io_uring_queue_exit(&ring->uring);
	free(ring);
}

struct io_uring_sqe *ring_queue(struct ring *ring, ring_complete_fn complete)
{
	struct io_uring_sqe *sqe;

	while (ring->in_flight >= CQ_ENTRIES)
		ring_poll(ring, 1, complete);
	while (!(sqe = io_uring_get_sqe(&ring->uring)))
		ring_enter(ring, 0, complete);
	ring->in_flight++;
	return sqe;
}

bool ring_poll(struct ring *ring, unsigned wait_nr, ring_complete_fn complete)
{
	if (!ring->in_flight)
		return false;

	unsigned stop_at = wait_nr < ring->in_flight ? ring->in_flight - wait_nr : 0;
	do {
		ring_reap(ring, complete);
		if (io_uring_sq_ready(&ring->uring) || ring->in_flight > stop_at) {
			unsigned missing = ring->in_flight > stop_at ? ring->in_flight - stop_at : 0;

			ring_enter(ring, missing, complete);
		}
	} while (ring->in_flight > stop_at || io_uring_sq_ready(&ring->uring));
	return true;
}

/*
 * One visit to the kernel, which may submit less and wait shorter than asked.
 *
 * -EAGAIN and -EBUSY mean that it is short of memory, or that completions must be taken first. Any other refusal can't
 * be answered: I/O may be in flight into buffers that would be freed, with no way to learn when it ends.
 */
static void ring_enter(struct ring *ring, unsigned wait_nr, ring_complete_fn complete)
{
	int n = wait_nr ? io_uring_submit_and_wait(&ring->uring, wait_nr) : io_uring_submit(&ring->uring);

	if (n == -EAGAIN || n == -EBUSY) {
		sleep_ns(RETRY_NS);
	} else if (n < 0 && n != -EINTR) {
		fprintf(stderr, "io_uring_enter: error %d, with I/O in flight: can't go on\n", -n);
		abort();
	}
	ring_reap(ring, complete);
}

static void ring_reap(struct ring *ring, ring_complete_fn complete)
{
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(&ring->uring, &cqe)) {
		struct device_io *io = io_uring_cqe_get_data(cqe);
		int result = cqe->res;

		io_uring_cqe_seen(&ring->uring, cqe);
		ring->in_flight--;
		complete(io, result);
	}
}
