/*
 * What copygc (data/copygc.h) and those who lack space know of each other.
 *
 * Buckets that are used in part are in the fragmentation LRU. Copygc moves what is in them somewhere else, a *pass* at
 * a time: when what is fragmented is more than half of what is available (07 §16), or when somebody waits for a
 * bucket. Who waits goes on waiting as long as passes gain something: only a pass that began after him, went over all
 * there is, and gained nothing, says that there is no space.
 */
#include <errno.h>
#include <string.h>

#include "alloc/internal.h"
#include "base/clock.h"

static const uint64_t freed_wait_max_ns = 100000000;

void evacuation_init(struct evacuation *e)
{
	memset(e, 0, sizeof(*e));
	waitq_init(&e->work);
	atomic_init(&e->due, UINT64_MAX);
}

void evacuation_destroy(struct evacuation *e) { waitq_destroy(&e->work); }

/* --- which buckets --- */

static int fragment_read(struct allocator *a, struct bpos pos, uint64_t devs, struct allocator_fragment *f)
{
	const uint64_t low = (1ull << LRU_TIME_BITS) - 1;
	uint64_t dev = pos.offset >> LRU_TIME_BITS, bucket = pos.offset & low;
	struct alloc_dev *d = dev < ALLOC_DEVS_MAX && devs >> dev & 1 ? alloc_dev_of(a, (unsigned)dev) : NULL;
	struct alloc v;

	if (!d || bucket < d->first_bucket || bucket >= d->bucket_nr || open_bucket_is_open(a, (unsigned)dev, bucket))
		return 0;
	int err = alloc_key_lookup(a, (unsigned)dev, bucket, &v);
	/* One that has become fuller since is another time's. */
	if (err || !v.fragmentation_lru || v.fragmentation_lru > (pos.inode & low) || v.data_type == DATA_STRIPE)
		return err;
	*f = (struct allocator_fragment){ .dev = (unsigned)dev,
					  .bucket = bucket,
					  .gen = v.gen,
					  .data_type = v.data_type,
					  .sectors = v.dirty_sectors,
					  .bucket_sectors = d->bucket_sectors };
	return 1;
}

int allocator_fragments_next(struct allocator *a, uint64_t devs, struct bpos *pos, struct allocator_fragment *out,
			     unsigned max)
{
	const struct bpos first = bucket_lru_pos(LRU_FRAGMENTATION, 0, 0, 0);
	struct bpos batch[64];
	unsigned nr = 0;

	*pos = bpos_lt(*pos, first) ? first : *pos;
	while (nr < max) {
		int batch_nr = alloc_positions_next(a, BTREE_LRU, pos, SPOS_MAX, batch,
						    min((unsigned)ARRAY_NR(batch), max - nr));

		if (batch_nr < 0)
			return batch_nr;
		if (!batch_nr)
			break;
		for (int i = 0; i < batch_nr; i++) {
			int ret = fragment_read(a, batch[i], devs, &out[nr]);

			if (ret < 0)
				return ret;
			nr += (unsigned)ret;
		}
	}
	return (int)nr;
}

int allocator_fragment_update(struct allocator *a, struct allocator_fragment *f)
{
	struct alloc v;
	int err = alloc_key_lookup(a, f->dev, f->bucket, &v);

	if (!err)
		f->sectors = v.gen == f->gen ? v.dirty_sectors : 0;
	return err;
}

/* --- when --- */

uint64_t alloc_dev_available(struct allocator *a, unsigned dev, enum watermark watermark)
{
	struct counters *c = &a->counters;

	/* One after the other: each takes a lock, and the compiler would choose in which order. */
	uint64_t nr = open_buckets_available(a, dev, watermark);

	nr += (uint64_t)counters_dev_buckets(c, dev, DATA_CACHED);
	nr += (uint64_t)counters_dev_buckets(c, dev, DATA_NEED_GC_GENS);
	nr += (uint64_t)counters_dev_buckets(c, dev, DATA_NEED_DISCARD);
	return nr;
}

uint64_t allocator_evacuation_level(struct allocator *a, uint64_t devs)
{
	uint64_t nr = 0;

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		if (devs >> dev & 1 && a->devs[dev].is_member)
			nr += alloc_dev_available(a, dev, WATERMARK_RECLAIM);
	mutex_lock(&a->open.lock);
	nr += a->open.opened_by_users;
	mutex_unlock(&a->open.lock);
	return nr;
}

uint64_t allocator_evacuation_due(struct allocator *a, bool is_eager, uint64_t *devs)
{
	uint64_t wait = UINT64_MAX;

	*devs = 0;
	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		const struct alloc_dev *d = &a->devs[dev];

		if (!d->is_member || !d->is_writable)
			continue;
		uint64_t available = alloc_dev_available(a, dev, WATERMARK_STRIPE);
		uint64_t allowed = is_eager ? 0 : available * d->bucket_sectors / 2;
		uint64_t fragmented = counters_dev_fragmented(&a->counters, dev);

		if (fragmented >= allowed && fragmented >= d->bucket_sectors)
			*devs |= 1ull << dev;
		else
			wait = min(wait, max(allowed, (uint64_t)d->bucket_sectors) - min(fragmented, allowed));
	}
	return *devs ? 0 : wait;
}

void evacuation_written(struct allocator *a, uint64_t sectors)
{
	struct evacuation *e = &a->evacuation;
	uint64_t written = atomic_fetch_add_explicit(&e->written, sectors, memory_order_relaxed) + sectors;

	if (written < atomic_load_explicit(&e->due, memory_order_relaxed))
		return;
	mutex_lock(&a->discards.lock);
	if (written >= atomic_load(&e->due)) {
		e->is_due = true;
		atomic_store(&e->due, UINT64_MAX);
		waitq_wake_all(&e->work);
	}
	mutex_unlock(&a->discards.lock);
}

void evacuation_want(struct allocator *a, uint64_t devs)
{
	struct evacuation *e = &a->evacuation;

	e->wanted_devs |= devs;
	waitq_wake_all(&e->work);
}

/* --- the one who moves --- */

void allocator_evacuator_start(struct allocator *a)
{
	mutex_lock(&a->discards.lock);
	a->evacuation.has_mover = true;
	a->evacuation.is_stopping = false;
	a->evacuation.is_due = true;
	mutex_unlock(&a->discards.lock);
}

void allocator_evacuator_stop(struct allocator *a)
{
	mutex_lock(&a->discards.lock);
	a->evacuation.has_mover = false;
	a->evacuation.is_stopping = true;
	a->discards.freed_nr++; /* nobody waits for it any more, neither does it */
	waitq_wake_all(&a->evacuation.work);
	waitq_wake_all(&a->discards.freed);
	mutex_unlock(&a->discards.lock);
}

bool allocator_evacuator_is_stopping(struct allocator *a)
{
	mutex_lock(&a->discards.lock);
	bool is_stopping = a->evacuation.is_stopping;
	mutex_unlock(&a->discards.lock);
	return is_stopping;
}

/*
 * What was emptied has to be flushed and discarded before it is of use: moving more meanwhile only costs. Unless some
 * of it was, since the pass began.
 */
static void freed_wait(struct allocator *a)
{
	struct discards *d = &a->discards;
	struct evacuation *e = &a->evacuation;
	uint64_t deadline_ns = clock_monotonic_ns() + freed_wait_max_ns;
	bool is_in_time = true;

	task_may_wait_for(TASK_DISCARD);
	while (e->has_gained && d->freed_nr == e->freed_nr && !e->is_stopping && is_in_time) {
		discards_want(d);
		is_in_time = waitq_wait_until(&d->freed, &d->lock, deadline_ns);
	}
}

bool allocator_evacuator_wait(struct allocator *a, uint64_t sectors, uint64_t *wanted_devs)
{
	struct evacuation *e = &a->evacuation;
	uint64_t now = atomic_load(&e->written);

	mutex_lock(&a->discards.lock);
	if (sectors)
		atomic_store(&e->due, sectors > UINT64_MAX - now ? UINT64_MAX : now + sectors);
	else
		e->is_due = true;
	while (!e->is_stopping && !e->is_due && !e->wanted_devs)
		waitq_wait(&e->work, &a->discards.lock);
	if (e->wanted_devs)
		freed_wait(a);
	*wanted_devs = e->wanted_devs;
	e->wanted_devs = 0;
	e->is_due = false;
	e->is_needed = *wanted_devs != 0;
	e->freed_nr = a->discards.freed_nr;
	e->passes_begun++;
	bool is_stopping = e->is_stopping;
	mutex_unlock(&a->discards.lock);
	return !is_stopping;
}

void allocator_evacuator_progress(struct allocator *a)
{
	mutex_lock(&a->discards.lock);
	a->evacuation.progress_nr++;
	mutex_unlock(&a->discards.lock);
}

void allocator_evacuator_done(struct allocator *a, bool has_gained)
{
	struct evacuation *e = &a->evacuation;

	mutex_lock(&a->discards.lock);
	e->has_gained = has_gained;
	e->progress_nr++;
	if (!has_gained && e->is_needed)
		e->pass_gainless = e->passes_begun;
	waitq_wake_all(&a->discards.freed);
	mutex_unlock(&a->discards.lock);
}
