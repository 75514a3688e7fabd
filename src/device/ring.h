/*
 * A pool of io_uring rings that groups of I/Os borrow. Private to the device room.
 *
 * A ring belongs to one group at a time, and so to one thread: it needs no lock. Every file device can use any ring.
 */
#ifndef KILN_DEVICE_RING_H
#define KILN_DEVICE_RING_H

#include <liburing.h>

#include "device/device.h"

struct ring;

/* Called for each completed I/O with the kernel's result: a count of bytes or a negative errno. */
typedef void (*ring_complete_fn)(struct device_io *io, int result);

/* Returns 0, or a negative errno when the kernel refuses to make a ring (-EPERM and -ENOSYS in containers). */
int ring_borrow(struct ring **ring);
/* Nothing may be queued or in flight. */
void ring_give_back(struct ring *ring);

/*
 * An entry for the caller to fill in, with the I/O as its user data; it goes to the kernel with the next ring_poll().
 * Makes room by submitting, and by completing other I/Os, when the ring is full. @complete is the same in every call.
 */
struct io_uring_sqe *ring_queue(struct ring *ring, ring_complete_fn complete);

/*
 * Submit what is queued, wait until at least @wait_nr I/Os (or all there are) are completed, and complete those that
 * are. Returns false if the ring had none.
 */
bool ring_poll(struct ring *ring, unsigned wait_nr, ring_complete_fn complete);

#endif
