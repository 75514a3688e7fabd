/*
 * Open buckets: a fixed table, found by (device, bucket) through a hash of chains.
 *
 * A bucket enters the table before its alloc key is looked at for the last time (bucket_find.c). From then on nobody
 * else allocates from it, so when the key says that it is free, it stays so. A bucket isn't opened again before it was
 * free again: so whether it is open can be asked without a lock against opening, by whoever knows that it isn't free.
 */
#include <errno.h>
#include <string.h>

#include "alloc/internal.h"

void open_buckets_init(struct open_buckets *o)
{
	memset(o, 0, sizeof(*o));
	mutex_init_ranked(&o->lock, LOCK_OPEN_BUCKETS);
	for (unsigned i = 0; i < OPEN_BUCKETS_MAX; i++) {
		o->hash[i] = OPEN_BUCKET_NONE;
		o->buckets[i].hash_next = i + 1 < OPEN_BUCKETS_MAX ? (uint16_t)(i + 1) : (uint16_t)OPEN_BUCKET_NONE;
	}
}

void open_buckets_destroy(struct open_buckets *o) { mutex_destroy(&o->lock); }

static uint16_t *chain_of(struct open_buckets *o, unsigned dev, uint64_t bucket)
{
	return &o->hash[((bucket + dev * 0x9e3779b9ull) * 0x9e3779b97f4a7c15ull) >> 54];
}
_Static_assert(OPEN_BUCKETS_MAX == 1 << 10, "ten bits of hash");

static struct open_bucket *bucket_find(struct open_buckets *o, unsigned dev, uint64_t bucket)
{
	uint16_t idx = *chain_of(o, dev, bucket);

	for (; idx != OPEN_BUCKET_NONE; idx = o->buckets[idx].hash_next)
		if (o->buckets[idx].dev == dev && o->buckets[idx].bucket == bucket)
			return &o->buckets[idx];
	return NULL;
}

bool open_bucket_is_open(struct allocator *a, unsigned dev, uint64_t bucket)
{
	mutex_lock(&a->open.lock);
	bool is_open = bucket_find(&a->open, dev, bucket);
	mutex_unlock(&a->open.lock);
	return is_open;
}

void open_bucket_set_used(struct allocator *a, unsigned dev, uint64_t bucket, bool is_free)
{
	mutex_lock(&a->open.lock);
	struct open_bucket *b = bucket_find(&a->open, dev, bucket);
	if (b && b->is_free_on_disk != is_free) {
		b->is_free_on_disk = is_free;
		a->open.free_on_disk_nr[dev] += is_free ? 1u : -1u;
	}
	mutex_unlock(&a->open.lock);
}

void open_bucket_set_emptied(struct allocator *a, unsigned dev, uint64_t bucket, bool is_empty)
{
	mutex_lock(&a->open.lock);
	struct open_bucket *b = bucket_find(&a->open, dev, bucket);
	if (b && b->was_emptied != is_empty) {
		b->was_emptied = is_empty;
		a->open.emptied_nr[dev] += is_empty ? 1u : -1u;
	}
	if (is_empty)
		node_holes_forget(a, dev, bucket);
	mutex_unlock(&a->open.lock);
}

bool open_bucket_is_reopened(struct allocator *a, uint16_t idx)
{
	mutex_lock(&a->open.lock);
	bool is_reopened = a->open.buckets[idx].is_reopened;
	mutex_unlock(&a->open.lock);
	return is_reopened;
}

bool open_bucket_was_emptied(struct allocator *a, uint16_t idx)
{
	mutex_lock(&a->open.lock);
	bool was_emptied = a->open.buckets[idx].was_emptied;
	mutex_unlock(&a->open.lock);
	return was_emptied;
}

/* --- how many there may be --- */

/* Free buckets of a device that a request may have. open_buckets.lock is held. */
static uint64_t available_locked(struct allocator *a, unsigned dev, enum watermark watermark)
{
	uint64_t free_nr = (uint64_t)counters_dev_buckets(&a->counters, dev, DATA_FREE);
	uint64_t taken = a->open.free_on_disk_nr[dev] + alloc_watermark_reserve(&a->devs[dev], watermark);

	return free_nr > taken ? free_nr - taken : 0;
}

uint64_t open_buckets_available(struct allocator *a, unsigned dev, enum watermark watermark)
{
	mutex_lock(&a->open.lock);
	uint64_t nr = available_locked(a, dev, watermark);
	mutex_unlock(&a->open.lock);
	return nr;
}

bool open_buckets_are_low(struct allocator *a, uint64_t devs)
{
	enum { LOW_SHIFT = 5 };

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		if (devs >> dev & 1 && a->devs[dev].is_member &&
		    open_buckets_available(a, dev, WATERMARK_NORMAL) < a->devs[dev].bucket_nr >> LOW_SHIFT)
			return true;
	return false;
}

/* Entries of the table that requests with a watermark leave for those above (07 §13). */
static unsigned table_reserve(enum watermark watermark)
{
	switch (watermark) {
	case WATERMARK_RECLAIM: return 0;
	case WATERMARK_BTREE:
	case WATERMARK_BTREE_COPYGC: return OPEN_BUCKETS_MAX / 4;
	case WATERMARK_COPYGC: return OPEN_BUCKETS_MAX / 3;
	default: return OPEN_BUCKETS_MAX / 2;
	}
}

static uint16_t insert_locked(struct open_buckets *o, const struct open_bucket *bucket)
{
	uint16_t idx = o->unused, *chain = chain_of(o, bucket->dev, bucket->bucket);

	o->unused = o->buckets[idx].hash_next;
	o->buckets[idx] = *bucket;
	o->buckets[idx].hash_next = *chain;
	*chain = idx;
	o->nr++;
	return idx;
}

int open_bucket_enter(struct allocator *a, unsigned dev, uint64_t bucket, unsigned data_type, enum watermark watermark,
		      uint16_t *idx)
{
	struct open_buckets *o = &a->open;
	int err = 0;

	mutex_lock(&o->lock);
	if (bucket_find(o, dev, bucket))
		err = -EEXIST;
	else if (OPEN_BUCKETS_MAX - o->nr <= table_reserve(watermark) || !available_locked(a, dev, watermark))
		err = -ENOSPC;
	if (!err) {
		*idx = insert_locked(o, &(struct open_bucket){
						.bucket = bucket,
						.sectors_free = a->devs[dev].bucket_sectors,
						.dev = (uint8_t)dev,
						.data_type = (uint8_t)data_type,
						.is_free_on_disk = true,
						.refs = 1,
					});
		node_holes_forget(a, dev, bucket);
		o->opened++;
		o->opened_by_users += data_type == DATA_USER && watermark <= WATERMARK_NORMAL;
		o->free_on_disk_nr[dev]++;
		atomic_store_explicit(&a->nodes.is_room_old, true, memory_order_relaxed);
	}
	mutex_unlock(&o->lock);
	return err;
}

int open_bucket_reopen(struct allocator *a, unsigned dev, uint64_t bucket, uint8_t gen, bool is_alone, uint16_t *idx)
{
	struct open_buckets *o = &a->open;
	struct open_bucket *b = bucket_find(o, dev, bucket);

	if (b && is_alone)
		return -EEXIST;
	if (!b && o->nr == OPEN_BUCKETS_MAX)
		return -ENOSPC;
	if (b)
		b->refs++;
	*idx = b ? (uint16_t)(b - o->buckets)
		 : insert_locked(o, &(struct open_bucket){ .bucket = bucket,
							   .dev = (uint8_t)dev,
							   .gen = gen,
							   .data_type = DATA_BTREE,
							   .is_reopened = true,
							   .refs = 1 });
	return 0;
}

bool open_bucket_is_scanned(struct allocator *a, unsigned dev, uint64_t bucket)
{
	const struct open_bucket *b = bucket_find(&a->open, dev, bucket);

	return b && b->is_scanned;
}

/* --- references --- */

void open_bucket_get(struct allocator *a, uint16_t idx)
{
	mutex_lock(&a->open.lock);
	a->open.buckets[idx].refs++;
	mutex_unlock(&a->open.lock);
}

/* Drop a reference. Returns whether the bucket was closed. */
static bool put_locked(struct allocator *a, uint16_t idx)
{
	struct open_buckets *o = &a->open;
	struct open_bucket *b = &o->buckets[idx];

	if (--b->refs)
		return false;
	node_holes_add_rest(a, b);
	uint16_t *link = chain_of(o, b->dev, b->bucket);
	while (*link != idx)
		link = &o->buckets[*link].hash_next;
	*link = b->hash_next;
	o->free_on_disk_nr[b->dev] -= b->is_free_on_disk;
	o->emptied_nr[b->dev] -= b->was_emptied;
	b->hash_next = o->unused;
	o->unused = idx;
	o->nr--;
	return true;
}

/* A bucket was closed: it may be free, or have become empty while it was open, and be passed over since. */
static void closed(struct allocator *a, bool was_emptied)
{
	discards_freed(a);
	if (was_emptied)
		discards_kick(a);
}

void open_bucket_put(struct allocator *a, uint16_t idx)
{
	mutex_lock(&a->open.lock);
	bool was_emptied = a->open.buckets[idx].was_emptied;
	bool is_reopened = a->open.buckets[idx].is_reopened;
	bool is_closed = put_locked(a, idx);
	mutex_unlock(&a->open.lock);
	if (is_closed && (was_emptied || !is_reopened))
		closed(a, was_emptied);
}

/* --- the partial list --- */

void open_bucket_put_partial(struct allocator *a, uint16_t idx)
{
	struct open_bucket *b = &a->open.buckets[idx];

	if (b->sectors_free < a->super->kctx.block_sectors) {
		open_bucket_put(a, idx);
		return;
	}
	mutex_lock(&a->open.lock);
	b->is_partial = true;
	a->open.partial_nr++;
	mutex_unlock(&a->open.lock);
}

uint16_t open_bucket_take_partial(struct allocator *a, unsigned data_type, uint64_t devs, uint32_t sectors_min)
{
	struct open_buckets *o = &a->open;
	uint16_t taken = OPEN_BUCKET_NONE;

	mutex_lock(&o->lock);
	for (uint16_t i = 0; o->partial_nr && i < OPEN_BUCKETS_MAX && taken == OPEN_BUCKET_NONE; i++) {
		struct open_bucket *b = &o->buckets[i];

		if (b->refs && b->is_partial && b->data_type == data_type && devs >> b->dev & 1 &&
		    b->sectors_free >= sectors_min)
			taken = i;
	}
	if (taken != OPEN_BUCKET_NONE) {
		o->buckets[taken].is_partial = false;
		o->partial_nr--;
	}
	mutex_unlock(&o->lock);
	return taken;
}

void open_buckets_drop_partial(struct allocator *a, unsigned data_type_kept, uint32_t sectors_min)
{
	struct open_buckets *o = &a->open;
	bool has_closed = false, was_emptied = false;

	mutex_lock(&o->lock);
	for (uint16_t i = 0; o->partial_nr && i < OPEN_BUCKETS_MAX; i++) {
		struct open_bucket *b = &o->buckets[i];

		bool is_for_nodes = data_type_kept && b->data_type == DATA_BTREE && !b->was_emptied &&
				    b->sectors_free >= a->super->kctx.node_sectors;
		bool is_kept = b->data_type == data_type_kept && b->sectors_free >= sectors_min;

		if (!b->refs || !b->is_partial || is_kept || is_for_nodes)
			continue;
		b->is_partial = false;
		o->partial_nr--;
		if (!put_locked(a, i))
			continue;
		has_closed = true;
		was_emptied |= b->was_emptied;
	}
	mutex_unlock(&o->lock);
	if (has_closed)
		closed(a, was_emptied);
}
