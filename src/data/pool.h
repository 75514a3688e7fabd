/*
 * Buffers within a budget, shared by many.
 *
 * Whoever needs buffers takes all of them at once, and while it waits for them holds none: so there is no deadlock as
 * long as who holds buffers waits for nobody who may be waiting for them. Waiting is first come, first served, so that
 * large needs get through; one that is larger than the budget is met when nobody holds anything.
 *
 * The data room has a pool for each kind of user, as they wait for one another:
 *
 *	regions	who reads. Holders wait for devices alone. They are waited for by who frees buckets (read sections)
 *	stripes	who rebuilds, for a reader: the same
 *	moves	copygc. Its holder waits for devices, buckets of its watermark, the journal: never for who writes
 *	writes	who writes, copies, or replaces bad copies. Holders wait for space, and so for copygc, and for regions
 *
 * Were any two of them one, a writer that waits for space could hold what copygc, or a reader in whose section the last
 * free bucket is, waits for. Buffers are taken with locks of inodes held, or none; who holds them takes no such lock
 * any more.
 */
#ifndef KILN_DATA_POOL_H
#define KILN_DATA_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/sync.h"

enum {
	POOL_BUFFER_BYTES_MIN = 4096,
	POOL_BUFFER_BYTES_MAX = 4 << 20,
	POOL_CLASS_NR = 11, /* sizes are powers of two between these */
};

struct pool {
	struct mutex lock;
	struct waitq changed;
	uint64_t bytes_max;
	uint64_t bytes_used, bytes_idle; /* together not above bytes_max */
	uint64_t bytes_used_peak;
	uint64_t ticket_next, ticket_served;
	void *idle[POOL_CLASS_NR]; /* lists; the link is in the buffer */
};

/* A buffer aligned for any device. @bytes is its size class; @data NULL: none. */
struct pool_buffer {
	void *data;
	size_t bytes;
};

void pool_init(struct pool *p, uint64_t bytes_max);
/* All buffers have been given back. */
void pool_destroy(struct pool *p);
/*
 * Take @nr buffers of at least @sizes bytes each, 0 for none. Returns 0,
 * -ENOMEM, or -EAGAIN when they aren't free now and @may_wait is false; after an error the buffers are NULL. A caller
 * that may wait holds no buffers of @p. Switch point.
 */
int pool_take(struct pool *p, const size_t *sizes, struct pool_buffer *buffers, unsigned nr, bool may_wait);
/* Give back what pool_take() gave; the buffers become NULL. */
void pool_give(struct pool *p, struct pool_buffer *buffers, unsigned nr);

#endif
