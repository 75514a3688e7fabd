/* Locks of buckets whose data is overwritten or moved. See bucket_locks.h. */
#include "data/bucket_locks.h"

#include <stdbool.h>

void bucket_locks_init(struct bucket_locks *l)
{
	mutex_init(&l->lock);
	waitq_init(&l->changed);
}

void bucket_locks_destroy(struct bucket_locks *l)
{
	waitq_destroy(&l->changed);
	mutex_destroy(&l->lock);
}

uint16_t bucket_lock_place(unsigned dev, uint64_t bucket)
{
	_Static_assert(BUCKET_LOCK_NR == 1024, "the table has places of 10 bits");
	return (uint16_t)((bucket * 256 + dev) * 0x9e3779b97f4a7c15ull >> 54);
}

static bool can_take(const struct bucket_locks *l, enum bucket_lock_mode mode, const uint16_t *places, size_t nr)
{
	bool is_free = true;

	for (size_t i = 0; i < nr && is_free; i++)
		is_free = !l->held[places[i]][!mode] && (mode == BUCKET_LOCK_COPY || !l->copies_wanted[places[i]]);
	return is_free;
}

static void want_copies(struct bucket_locks *l, const uint16_t *places, size_t nr, int change)
{
	for (size_t i = 0; i < nr; i++)
		l->copies_wanted[places[i]] += (uint32_t)change;
}

void bucket_locks_take(struct bucket_locks *l, enum bucket_lock_mode mode, const uint16_t *places, size_t nr)
{
	mutex_lock(&l->lock);
	if (mode == BUCKET_LOCK_COPY)
		want_copies(l, places, nr, 1);
	while (!can_take(l, mode, places, nr))
		waitq_wait_for_lock(&l->changed, &l->lock, LOCK_BUCKETS);
	if (mode == BUCKET_LOCK_COPY)
		want_copies(l, places, nr, -1);
	for (size_t i = 0; i < nr; i++)
		l->held[places[i]][mode]++;
	mutex_unlock(&l->lock);
	lock_order_taken(&l->held, LOCK_BUCKETS);
}

void bucket_locks_put(struct bucket_locks *l, enum bucket_lock_mode mode, const uint16_t *places, size_t nr)
{
	bool is_free = false;

	lock_order_released(&l->held);
	mutex_lock(&l->lock);
	for (size_t i = 0; i < nr; i++)
		is_free |= !--l->held[places[i]][mode];
	if (is_free)
		waitq_wake_all(&l->changed);
	mutex_unlock(&l->lock);
}
