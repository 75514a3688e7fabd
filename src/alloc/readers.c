/*
 * Readers: who has looked up where data is, and reads it, keeps the buckets from being used again.
 *
 * A read section is counted in the current epoch. Before buckets that became empty are made free, the epoch is turned,
 * and the sections of the one before are waited for: whoever looked the buckets up before they became empty is done
 * then, and nobody finds them since. (Sleepable RCU, with one task that waits.)
 */
#include <stdatomic.h>

#include "alloc/internal.h"

void readers_init(struct readers *r)
{
	*r = (struct readers){ 0 };
	mutex_init(&r->lock);
	waitq_init(&r->changed);
}

void readers_destroy(struct readers *r)
{
	waitq_destroy(&r->changed);
	mutex_destroy(&r->lock);
}

static void section_end(struct readers *r, unsigned epoch)
{
	if (atomic_fetch_sub(&r->nr[epoch & 1], 1) > 1 || atomic_load(&r->epoch) == epoch)
		return;
	/* The last of an epoch that is over. */
	mutex_lock(&r->lock);
	waitq_wake_all(&r->changed);
	mutex_unlock(&r->lock);
}

struct read_section allocator_read_begin(struct allocator *a)
{
	struct readers *r = &a->readers;
	/* It is waited for, by who makes buckets free: so it waits for nobody who may wait for free buckets. */
	enum task_rank rank = task_rank_lower(TASK_DISCARD);

	for (;;) {
		unsigned epoch = atomic_load(&r->epoch);

		atomic_fetch_add(&r->nr[epoch & 1], 1);
		if (atomic_load(&r->epoch) == epoch)
			return (struct read_section){ epoch, rank };
		/* It was turned in between, by a task that may not have seen this section. */
		section_end(r, epoch);
	}
}

void allocator_read_end(struct allocator *a, struct read_section section)
{
	section_end(&a->readers, section.epoch);
	task_rank_set(section.rank);
}

void readers_wait(struct readers *r)
{
	mutex_lock(&r->lock);
	unsigned epoch = atomic_fetch_add(&r->epoch, 1);
	while (atomic_load(&r->nr[epoch & 1]))
		waitq_wait(&r->changed, &r->lock);
	mutex_unlock(&r->lock);
}
