/*
 * Bounce buffers within a budget, shared by all readers.
 *
 * Whoever needs buffers takes all of them at once, and while it waits for them holds none: so there is no deadlock as
 * long as the largest such need fits the budget. Waiting is first come, first served, so that large needs get through.
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
 * Take @nr buffers (at most 2) of at least @sizes bytes each, 0 for none; together they fit the budget. Returns 0,
 * -ENOMEM, or -EAGAIN when they aren't free now and @may_wait is false; after an error the buffers are NULL. A caller
 * that may wait holds no buffers of @p. Switch point.
 */
int pool_take(struct pool *p, const size_t *sizes, struct pool_buffer *buffers, unsigned nr, bool may_wait);
/* Give back what pool_take() gave; the buffers become NULL. */
void pool_give(struct pool *p, struct pool_buffer *buffers, unsigned nr);

#endif
