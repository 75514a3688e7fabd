/*
 * Where a journal that grows can have buckets. The longest runs of free ones are taken, as what a superblock can say of
 * them is bounded, and looking for a bucket goes over all ranges of the journal.
 */
#include <stdlib.h>

#include "alloc/internal.h"

enum { ROOM_PART = 4 }; /* the rest of what is free stays users' */

/* Ranges found so far: at most @max, the longest ones. */
struct free_runs {
	struct sb_journal_range *v;
	unsigned nr, max;
};

static void run_keep(struct free_runs *runs, uint64_t start, uint64_t nr)
{
	unsigned at = 0;

	if (runs->nr < runs->max) {
		runs->v[runs->nr++] = (struct sb_journal_range){ start, nr };
		return;
	}
	for (unsigned i = 1; i < runs->nr; i++)
		if (runs->v[i].nr < runs->v[at].nr)
			at = i;
	if (runs->nr && runs->v[at].nr < nr)
		runs->v[at] = (struct sb_journal_range){ start, nr };
}

/* How many the device can give. */
static uint64_t room_buckets(struct allocator *a, unsigned dev)
{
	uint64_t writable_nr = 0;

	for (unsigned i = 0; i < a->dev_nr; i++)
		writable_nr += a->devs[i].is_member && a->devs[i].is_writable;
	return min(open_buckets_available(a, dev, WATERMARK_NORMAL) / ROOM_PART,
		   counters_sectors_available(a) / a->devs[dev].bucket_sectors / ROOM_PART /
			   max(writable_nr, (uint64_t)1));
}

/* What freespace says. When there is a run of @enough, only that. */
static int runs_find(struct allocator *a, unsigned dev, uint64_t enough, struct free_runs *runs)
{
	const struct alloc_dev *d = &a->devs[dev];
	struct btree_iter it;
	struct bkey_ref k;
	int found;

	btree_iter_open(&it, a->trees, BTREE_FREESPACE, BPOS(dev, 0, UINT32_MAX), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(dev, UINT64_MAX, UINT32_MAX);
	while ((found = btree_iter_peek(&it, &k)) > 0) {
		uint64_t start = max(bucket_of_freespace_offset(bkey_start_offset(&k.k)), d->first_bucket);
		uint64_t end = min(bucket_of_freespace_offset(k.k.p.offset), d->bucket_nr);

		if (start < end && end - start >= enough) {
			runs->v[0] = (struct sb_journal_range){ start, enough };
			runs->nr = 1;
			break;
		}
		if (start < end)
			run_keep(runs, start, end - start);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return min(found, 0);
}

static int run_is_longer(const void *a, const void *b)
{
	const struct sb_journal_range *x = a, *y = b;

	return x->nr != y->nr ? (x->nr > y->nr ? -1 : 1) : x->start < y->start ? -1 : 1;
}

static int run_is_lower(const void *a, const void *b)
{
	const struct sb_journal_range *x = a, *y = b;

	return x->start < y->start ? -1 : 1;
}

/* Is the bucket free by its own key, too? 1, 0 or an error. */
static int bucket_is_free(struct allocator *a, unsigned dev, uint64_t bucket)
{
	struct alloc v;

	if (bucket_is_reserved(a, dev, bucket))
		return 0;
	int err = alloc_key_lookup(a, dev, bucket, &v);
	return err ? err : v.data_type == DATA_FREE;
}

/* Cut the run where a bucket isn't free. 0 or an error. */
static int run_verify(struct allocator *a, unsigned dev, struct sb_journal_range *run)
{
	for (uint64_t i = 0; i < run->nr; i++) {
		int is_free = bucket_is_free(a, dev, run->start + i);

		if (is_free < 0)
			return is_free;
		if (!is_free)
			run->nr = i;
	}
	return 0;
}

int allocator_journal_room(struct allocator *a, unsigned dev, uint64_t max, struct sb_journal_range *ranges,
			   unsigned range_max)
{
	struct free_runs runs = { .v = ranges, .max = range_max };
	unsigned kept = 0;

	if (!alloc_dev_of(a, dev) || atomic_load(&a->devs[dev].index) != ALLOC_INDEX_READY)
		return 0;
	uint64_t left = min(max, room_buckets(a, dev));
	int err = left ? runs_find(a, dev, left, &runs) : 0;

	qsort(ranges, runs.nr, sizeof(*ranges), run_is_longer);
	for (unsigned i = 0; i < runs.nr && left && !err; i++) {
		struct sb_journal_range run = { ranges[i].start, min(ranges[i].nr, left) };

		err = run_verify(a, dev, &run);
		left -= run.nr;
		if (run.nr)
			ranges[kept++] = run;
	}
	qsort(ranges, kept, sizeof(*ranges), run_is_lower);
	return err ? err : (int)kept;
}
