/*
 * Which cached data was read last (07 §6.3): the time in its bucket's alloc key is the place in the read LRU, from
 * which buckets are taken back (invalidate.c).
 *
 * A key that changed with every read would cost more than reading. So readers note the bucket and the time in a table,
 * mostly with nothing but a look: a bucket that was noted less than a *step* ago stays as it is. A step is as much
 * reading as a quarter of the cached data of the device; times that differ by less say little about what will be read
 * next. The discard task puts what was noted into the keys, some of them in one transaction, when that is much, and
 * before anything is taken back. The table forgets: of two buckets with one place in it the later one stays, and the
 * other is noted with its next read.
 */
#include "alloc/internal.h"

enum { GROUP_NR = 16, STEPS = 4 };
#define NOTE_IS_NEW  (1ull << 63)
#define NOTE_IS_NONE UINT64_MAX

static uint64_t note_time(const struct read_note *n)
{
	return atomic_load_explicit(&n->time, memory_order_relaxed) & ~NOTE_IS_NEW;
}

static bool is_step(const struct alloc_dev *d, uint64_t then, uint64_t now)
{
	return now > then && now - then >= atomic_load_explicit(&d->read_step, memory_order_relaxed);
}

/* Is the key to get this time? What lies ahead of the clock isn't a time that it ever had. */
static bool key_is_due(struct allocator *a, unsigned dev, const struct alloc *v, uint64_t time)
{
	return v->cached_sectors && (v->io_time[0] > alloc_clock(a, 0) || is_step(&a->devs[dev], v->io_time[0], time));
}

static void steps_set(struct allocator *a)
{
	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		struct alloc_dev *d = &a->devs[dev];
		uint64_t buckets = (uint64_t)counters_dev_buckets(&a->counters, dev, DATA_CACHED);

		atomic_store_explicit(&d->read_step, max(buckets / STEPS, (uint64_t)1) * d->bucket_sectors,
				      memory_order_relaxed);
	}
}

void read_times_init(struct allocator *a)
{
	mutex_init(&a->read_times.lock);
	for (unsigned i = 0; i < READ_NOTES_NR; i++)
		atomic_init(&a->read_times.notes[i].place, NOTE_IS_NONE);
}

void read_times_destroy(struct allocator *a) { mutex_destroy(&a->read_times.lock); }

/* --- readers --- */

void allocator_cached_read(struct allocator *a, const struct extent_ptr *ptr)
{
	_Static_assert(READ_NOTES_NR == 1 << 12, "twelve bits of hash");
	struct read_times *r = &a->read_times;
	struct alloc_dev *d = alloc_dev_of(a, ptr->dev);
	uint64_t now = alloc_clock(a, 0);

	if (!d)
		return;
	uint64_t place = (uint64_t)ptr->dev << LRU_TIME_BITS | ptr->sector / d->bucket_sectors;
	struct read_note *n = &r->notes[place * 0x9e3779b97f4a7c15ull >> 52];

	if (atomic_load_explicit(&n->place, memory_order_relaxed) == place && !is_step(d, note_time(n), now))
		return;
	mutex_lock(&r->lock);
	r->new_nr += !(atomic_load(&n->time) & NOTE_IS_NEW);
	atomic_store(&n->place, place);
	atomic_store(&n->time, now | NOTE_IS_NEW);
	bool are_many = r->new_nr >= READ_NOTES_MANY && !r->is_kicked;
	r->is_kicked |= are_many;
	mutex_unlock(&r->lock);
	if (are_many)
		discards_kick(a);
}

/* --- keys --- */

struct read_group {
	struct allocator *a;
	unsigned nr;
	struct {
		unsigned dev;
		uint64_t bucket, time;
	} reads[GROUP_NR];
	unsigned at, to; /* of the transaction that is run */
};

static int group_txn(struct btree_txn *txn, void *ctx)
{
	struct read_group *g = ctx;
	int err = 0;

	g->to = min(g->at + btree_txn_batch(txn, GROUP_NR), g->nr);
	for (unsigned i = g->at; i < g->to && !err; i++) {
		struct alloc v;

		err = alloc_key_get(g->a, txn, g->reads[i].dev, g->reads[i].bucket, &v);
		if (err || !key_is_due(g->a, g->reads[i].dev, &v, g->reads[i].time))
			continue;
		v.io_time[0] = g->reads[i].time;
		err = alloc_key_put(txn, g->reads[i].dev, g->reads[i].bucket, &v, 0);
	}
	return err;
}

static int group_commit(struct read_group *g)
{
	int err = 0;

	for (g->at = 0; g->at < g->nr && !err; g->at = g->to)
		err = discards_txn_run(g->a, "read_times", group_txn, g);
	g->nr = 0;
	return err;
}

/* Add a note that is new, unless the key says about the same. 0 or an error. */
static int group_add(struct read_group *g, struct read_note *n)
{
	struct read_times *r = &g->a->read_times;
	struct alloc v;

	if (!(atomic_load_explicit(&n->time, memory_order_relaxed) & NOTE_IS_NEW))
		return 0;
	mutex_lock(&r->lock);
	uint64_t place = atomic_load(&n->place), time = note_time(n);
	atomic_store(&n->time, time);
	r->new_nr--;
	mutex_unlock(&r->lock);

	unsigned dev = (unsigned)(place >> LRU_TIME_BITS);
	uint64_t bucket = place & ((1ull << LRU_TIME_BITS) - 1);
	int err = alloc_key_lookup(g->a, dev, bucket, &v);
	if (!err && key_is_due(g->a, dev, &v, time)) {
		g->reads[g->nr].dev = dev;
		g->reads[g->nr].bucket = bucket;
		g->reads[g->nr++].time = time;
	}
	return err;
}

int read_times_put(struct allocator *a, unsigned new_min)
{
	struct read_times *r = &a->read_times;
	struct read_group g = { .a = a };
	int err = 0;

	steps_set(a);
	mutex_lock(&r->lock);
	bool is_enough = r->new_nr >= max(new_min, 1u);
	r->is_kicked = false;
	mutex_unlock(&r->lock);
	for (unsigned i = 0; i < READ_NOTES_NR && is_enough && !err; i++) {
		err = group_add(&g, &r->notes[i]);
		if (!err && g.nr == GROUP_NR)
			err = group_commit(&g);
	}
	return err ? err : group_commit(&g);
}
