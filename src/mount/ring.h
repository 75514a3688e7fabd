/* Requests that come through io_uring instead of read(2). See ring.c. */
#ifndef KILN_MOUNT_RING_H
#define KILN_MOUNT_RING_H

#include <sys/uio.h>

#include "mount/server.h"

struct rings;

/*
 * Threads with rings, so many that the kernel can be promised to be served by them, which serve nothing before
 * rings_start(). Each request that comes is told to @noted. 0 or a negative errno: the system doesn't have what it
 * takes.
 */
int rings_new(struct mount_server *s, void (*noted)(void *ctx), void *ctx, struct rings **rings);
/* The kernel was promised it, on @fd, in the answer to INIT. */
void rings_start(struct rings *r, int fd);
/*
 * Wait until what the kernel was to write back has been answered, or until then. 0, -ETIMEDOUT, or -ESHUTDOWN. At any
 * time before rings_free().
 */
int rings_drain(struct rings *r, uint64_t until_ns);
/* Requests under way are finished, no more are taken. NULL is fine. */
void rings_stop(struct rings *r);
void rings_free(struct rings *r); /* likewise */

/*
 * Whether @iov, an answer as it would be written to the kernel's device, is that to the request that this thread has
 * from a ring; then it has been given.
 */
bool ring_answer(const struct iovec *iov, int count);
/*
 * Where the data of the answer may be put, so that it needn't be copied there: REQUEST_BYTES_MAX, which begin on a
 * page. NULL: this thread has no request from a ring. Only for requests without data of their own.
 */
void *ring_answer_buffer(void);

#endif
