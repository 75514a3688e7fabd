/*
 * Taking back buckets that hold nothing but cached copies, the longest unread first (07 §15.2, transition 12 of §9).
 * Their generation is raised, which makes the pointers into them stale; the keys that hold these aren't touched.
 */
#include <errno.h>

#include "alloc/internal.h"
#include "base/mutant.h"

enum { BATCH_NR = 64 };

struct invalidate_args {
	struct allocator *a;
	unsigned dev;
	uint64_t bucket, time;
	bool is_taken; /* out: it was as the LRU says, and nobody has it open */
};

static int invalidate_txn(struct btree_txn *txn, void *ctx)
{
	struct invalidate_args *args = ctx;
	struct alloc v;
	int err = alloc_key_get(args->a, txn, args->dev, args->bucket, &v);

	args->is_taken = false;
	if (err || v.data_type != DATA_CACHED || v.io_time[0] != args->time ||
	    open_bucket_is_open(args->a, args->dev, args->bucket))
		return err;
	v.cached_sectors = 0;
	v.gen += !is_mutant(MUTANT_CACHED_GEN);
	v.flags &= ~(uint32_t)ALLOC_NEED_INC_GEN;
	v.io_time[0] = alloc_clock(args->a, 0);
	v.io_time[1] = alloc_clock(args->a, 1);
	args->is_taken = true;
	return alloc_key_put(txn, args->dev, args->bucket, &v, BTREE_PUT_HOOK_FLAG);
}

/*
 * How many buckets of a device should be taken back now. Those that are open already aren't there for others: with them
 * counted, who waits for a bucket might wait in vain.
 */
static uint64_t buckets_wanted(struct allocator *a, unsigned dev)
{
	uint64_t above = open_buckets_available(a, dev, WATERMARK_STRIPE);
	uint64_t coming = (uint64_t)counters_dev_buckets(&a->counters, dev, DATA_NEED_DISCARD);
	uint64_t keep = max(a->devs[dev].bucket_nr >> 7, (uint64_t)1);

	return min(keep > above + coming ? keep - above - coming : 0,
		   (uint64_t)counters_dev_buckets(&a->counters, dev, DATA_CACHED));
}

/* Of a batch, until *@wanted more have been taken back. 0 or an error. */
static int batch_invalidate(struct allocator *a, unsigned dev, const struct bpos *batch, int nr, uint64_t *wanted)
{
	const uint64_t low = (1ull << LRU_TIME_BITS) - 1;
	int err = 0;

	for (int i = 0; i < nr && *wanted && !err; i++) {
		struct invalidate_args args = {
			.a = a, .dev = dev, .bucket = batch[i].offset & low, .time = batch[i].inode & low
		};

		if (batch[i].offset >> LRU_TIME_BITS != dev || args.bucket >= a->devs[dev].bucket_nr)
			continue;
		err = discards_txn_run(a, "invalidate", invalidate_txn, &args);
		if (!err && args.is_taken)
			--*wanted;
	}
	return err;
}

static int invalidate_dev(struct allocator *a, unsigned dev, uint64_t wanted)
{
	/* Its read LRU. */
	struct bpos batch[BATCH_NR], pos = bucket_lru_pos(dev, 0, 0, 0),
				     end = bpos_predecessor(bucket_lru_pos(dev + 1, 0, 0, 0));
	int err = read_times_put(a, 0), nr = 0;

	if (!err)
		err = btree_write_buffer_flush(a->trees);
	while (!err && wanted && (nr = alloc_positions_next(a, BTREE_LRU, &pos, end, batch, BATCH_NR)) > 0)
		err = batch_invalidate(a, dev, batch, nr, &wanted);
	return err ? err : min(nr, 0);
}

int invalidate_run(struct allocator *a)
{
	int err = 0;

	for (unsigned dev = 0; !err && dev < a->dev_nr; dev++) {
		uint64_t wanted = a->devs[dev].is_member ? buckets_wanted(a, dev) : 0;

		if (wanted)
			err = invalidate_dev(a, dev, wanted);
	}
	return err;
}
