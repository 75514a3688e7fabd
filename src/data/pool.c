/* Buffers within a budget (see pool.h). */
#include "data/pool.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "device/device.h"

_Static_assert(POOL_BUFFER_BYTES_MIN << (POOL_CLASS_NR - 1) == POOL_BUFFER_BYTES_MAX, "classes cover the sizes");

static size_t class_bytes(unsigned class) { return (size_t)POOL_BUFFER_BYTES_MIN << class; }

static unsigned class_of(size_t bytes)
{
	return bytes <= POOL_BUFFER_BYTES_MIN ? 0 : bit_length_u64((bytes - 1) / POOL_BUFFER_BYTES_MIN);
}

void pool_init(struct pool *p, uint64_t bytes_max)
{
	memset(p, 0, sizeof(*p));
	mutex_init(&p->lock);
	waitq_init(&p->changed);
	p->bytes_max = bytes_max;
}

/* Unlink the first idle buffer of @class, or NULL. */
static void *idle_pop(struct pool *p, unsigned class)
{
	void *buf = p->idle[class];

	if (buf) {
		memcpy(&p->idle[class], buf, sizeof(buf));
		p->bytes_idle -= class_bytes(class);
	}
	return buf;
}

static void idle_push(struct pool *p, unsigned class, void *buf)
{
	memcpy(buf, &p->idle[class], sizeof(buf));
	p->idle[class] = buf;
	p->bytes_idle += class_bytes(class);
}

/* Free idle buffers, large ones first, until used and idle ones together are within the budget. */
static void idle_shrink(struct pool *p)
{
	for (unsigned class = POOL_CLASS_NR; class --&&p->bytes_used + p->bytes_idle > p->bytes_max;) {
		void *buf;
		while (p->bytes_used + p->bytes_idle > p->bytes_max && (buf = idle_pop(p, class)))
			io_buffer_free(buf);
	}
}

void pool_destroy(struct pool *p)
{
	for (unsigned class = 0; class < POOL_CLASS_NR; class ++) {
		void *buf;
		while ((buf = idle_pop(p, class)))
			io_buffer_free(buf);
	}
	waitq_destroy(&p->changed);
	mutex_destroy(&p->lock);
}

static bool is_free(const struct pool *p, uint64_t bytes)
{
	return p->bytes_used + bytes <= p->bytes_max || !p->bytes_used;
}

/* Wait until @bytes are free and it is our turn. The lock is held. */
static int budget_wait(struct pool *p, uint64_t bytes, bool may_wait)
{
	if (is_free(p, bytes) && p->ticket_served == p->ticket_next)
		return 0;
	if (!may_wait)
		return -EAGAIN;

	uint64_t ticket = p->ticket_next++;
	while (p->ticket_served != ticket || !is_free(p, bytes))
		waitq_wait(&p->changed, &p->lock);
	p->ticket_served++;
	waitq_wake_all(&p->changed);
	return 0;
}

int pool_take(struct pool *p, const size_t *sizes, struct pool_buffer *buffers, unsigned nr, bool may_wait)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < nr; i++) {
		buffers[i] = (struct pool_buffer){ .bytes = sizes[i] ? class_bytes(class_of(sizes[i])) : 0 };
		bytes += buffers[i].bytes;
	}
	if (!bytes)
		return 0;

	mutex_lock(&p->lock);
	int err = budget_wait(p, bytes, may_wait);
	if (!err) {
		for (unsigned i = 0; i < nr; i++)
			if (buffers[i].bytes)
				buffers[i].data = idle_pop(p, class_of(buffers[i].bytes));
		p->bytes_used += bytes;
		p->bytes_used_peak = max(p->bytes_used_peak, p->bytes_used);
		idle_shrink(p);
	}
	mutex_unlock(&p->lock);
	if (err) {
		memset(buffers, 0, nr * sizeof(*buffers));
		return err;
	}

	bool is_complete = true;
	for (unsigned i = 0; i < nr; i++) {
		if (buffers[i].bytes && !buffers[i].data)
			buffers[i].data = io_buffer_alloc(buffers[i].bytes);
		is_complete = is_complete && (!buffers[i].bytes || buffers[i].data);
	}
	if (is_complete)
		return 0;
	pool_give(p, buffers, nr);
	return -ENOMEM;
}

void pool_give(struct pool *p, struct pool_buffer *buffers, unsigned nr)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < nr; i++)
		bytes += buffers[i].bytes;
	if (!bytes)
		return;

	mutex_lock(&p->lock);
	for (unsigned i = 0; i < nr; i++) {
		if (buffers[i].data)
			idle_push(p, class_of(buffers[i].bytes), buffers[i].data);
		buffers[i].data = NULL;
	}
	p->bytes_used -= bytes;
	idle_shrink(p);
	for (unsigned i = 0; i < nr; i++)
		buffers[i].bytes = 0;
	waitq_wake_all(&p->changed);
	mutex_unlock(&p->lock);
}
