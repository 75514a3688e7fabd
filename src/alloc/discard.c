/*
 * From empty to free (07 §15.1): buckets in need_discard, once a flush entry of the journal says durably that they are
 * empty and nobody has them open, get the generation they still lack, are discarded where the device wants that, and
 * become free. One task does it, when something became empty, a flush is through, or somebody waits for a bucket.
 */
#include <errno.h>
#include <string.h>

#include "alloc/internal.h"
#include "base/clock.h"

enum { BATCH_NR = 64 };
static const uint64_t wait_max_ns = 10000000000;

void discards_init(struct discards *d)
{
	memset(d, 0, sizeof(*d));
	mutex_init(&d->lock);
	waitq_init(&d->work);
	waitq_init(&d->freed);
}

void discards_destroy(struct discards *d)
{
	waitq_destroy(&d->freed);
	waitq_destroy(&d->work);
	mutex_destroy(&d->lock);
}

/* --- one bucket --- */

struct discard_args {
	struct allocator *a;
	unsigned dev;
	uint64_t bucket;
	uint32_t flags_clear;
};

static int discard_txn(struct btree_txn *txn, void *ctx)
{
	const struct discard_args *args = ctx;
	struct alloc v;
	int err = alloc_key_get(args->a, txn, args->dev, args->bucket, &v);

	if (err || v.data_type != DATA_NEED_DISCARD)
		return err;
	v.flags &= ~args->flags_clear;
	return alloc_key_put(txn, args->dev, args->bucket, &v, 0);
}

static int discard_commit(const struct discard_args *args)
{
	static const struct btree_commit_opts opts = { .name = "discard", .watermark = WATERMARK_BTREE_COPYGC };

	return btree_txn_run(args->a->trees, &opts, discard_txn, (void *)args);
}

/* Tell the device that a bucket holds nothing. Where it can't be told, or fails, the bucket is as free. */
static void discard_issue(struct allocator *a, unsigned dev, uint64_t bucket)
{
	struct device *device = a->super->members[dev].dev;
	uint64_t bytes = (uint64_t)a->devs[dev].bucket_sectors << SECTOR_SHIFT;

	if (!device || !a->devs[dev].has_discard || !a->super->options[OPT_DISCARD])
		return;
	if (!device_discard(device, bucket * bytes, bytes))
		atomic_fetch_add(&a->discards_done, 1);
}

/* 1: handled; 0: not now, and *@waiting_seq says if it is the journal that it waits for; or an error. */
static int discard_bucket(struct allocator *a, unsigned dev, uint64_t bucket, uint64_t *waiting_seq)
{
	struct discard_args args = { .a = a, .dev = dev, .bucket = bucket };
	struct alloc_dev *d = alloc_dev_of(a, dev);
	struct alloc v;

	if (!d || bucket < d->first_bucket || bucket >= d->bucket_nr || open_bucket_is_open(a, dev, bucket))
		return 0;
	int err = alloc_key_lookup(a, dev, bucket, &v);
	if (err || v.data_type != DATA_NEED_DISCARD)
		return err;
	if (!alloc_seq_is_durable(a, v.journal_seq)) {
		*waiting_seq = max(*waiting_seq, v.journal_seq);
		return 0;
	}
	/* It was open when it became empty: the trigger makes up for it. */
	if (v.flags & ALLOC_NEED_INC_GEN)
		err = discard_commit(&args);
	if (err)
		return err;
	discard_issue(a, dev, bucket);
	args.flags_clear = ALLOC_NEED_DISCARD;
	err = discard_commit(&args);
	if (!err)
		atomic_fetch_add(&a->buckets_freed, 1);
	return err ? err : 1;
}

/* --- all --- */

/* The next keys at or behind *@pos. Their number, or an error. */
static int batch_read(struct allocator *a, struct bpos *pos, struct bpos batch[BATCH_NR])
{
	struct btree_iter it;
	struct bkey_ref k;
	int found = 0, nr = 0;

	btree_iter_open(&it, a->trees, BTREE_NEED_DISCARD, *pos, BTREE_ITER_ALL_SNAPSHOTS, 0);
	while (nr < BATCH_NR && (found = btree_iter_peek(&it, &k)) > 0) {
		batch[nr++] = k.k.p;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	if (nr)
		*pos = bpos_successor(batch[nr - 1]);
	return found < 0 ? found : nr;
}

int discards_run(struct allocator *a, uint64_t *waiting_seq)
{
	struct bpos batch[BATCH_NR], pos = POS_MIN;
	int nr, handled = 0;

	*waiting_seq = 0;
	while ((nr = batch_read(a, &pos, batch)) > 0) {
		readers_wait(&a->readers);
		for (int i = 0; i < nr; i++) {
			int ret = batch[i].inode < ALLOC_DEVS_MAX
					  ? discard_bucket(a, (unsigned)batch[i].inode, batch[i].offset, waiting_seq)
					  : 0;
			if (ret < 0)
				return ret;
			handled += ret;
		}
	}
	return nr < 0 ? nr : handled;
}

/* --- the task --- */

/* Is there so little left that waiting for the journal's own rhythm may stop somebody? */
static bool space_is_low(struct allocator *a)
{
	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		if (a->devs[dev].is_member &&
		    open_buckets_available(a, dev, WATERMARK_NORMAL) < a->devs[dev].bucket_nr >> 5)
			return true;
	return false;
}

static void task_round(struct allocator *a, bool is_flush_wanted)
{
	uint64_t waiting_seq = 0;

	invalidate_run(a);
	discards_run(a, &waiting_seq);
	if (waiting_seq && a->journal && (is_flush_wanted || space_is_low(a))) {
		atomic_fetch_add(&a->journal_waits, 1);
		journal_flush_async(a->journal, waiting_seq);
	}
}

static void discards_task(void *arg)
{
	struct allocator *a = arg;
	struct discards *d = &a->discards;

	mutex_lock(&d->lock);
	while (!d->is_stopping) {
		if (!d->is_wanted) {
			waitq_wait(&d->work, &d->lock);
			continue;
		}
		bool is_flush_wanted = d->is_flush_wanted;
		d->is_wanted = d->is_flush_wanted = false;
		mutex_unlock(&d->lock);
		task_round(a, is_flush_wanted);
		mutex_lock(&d->lock);
	}
	mutex_unlock(&d->lock);
}

int discards_start(struct allocator *a)
{
	a->discards.is_stopping = false;
	a->discards.is_wanted = true;
	return task_start(&a->discards.task, "discard", discards_task, a);
}

void discards_stop(struct allocator *a)
{
	struct discards *d = &a->discards;

	mutex_lock(&d->lock);
	struct task *task = d->task;
	d->task = NULL;
	d->is_stopping = true;
	waitq_wake_all(&d->work);
	waitq_wake_all(&d->freed);
	mutex_unlock(&d->lock);
	if (task)
		task_join(task);
}

void discards_kick(struct allocator *a)
{
	struct discards *d = &a->discards;

	mutex_lock(&d->lock);
	d->is_wanted = true;
	waitq_wake_one(&d->work);
	mutex_unlock(&d->lock);
}

void discards_freed(struct allocator *a)
{
	struct discards *d = &a->discards;

	mutex_lock(&d->lock);
	d->freed_nr++;
	waitq_wake_all(&d->freed);
	mutex_unlock(&d->lock);
}

/* Is there a bucket that could become free without anybody deleting anything? */
static bool something_is_coming(struct allocator *a)
{
	static const uint8_t types[] = { DATA_NEED_DISCARD, DATA_NEED_GC_GENS, DATA_CACHED };

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		for (unsigned i = 0; i < ARRAY_NR(types); i++)
			if (counters_dev_buckets(&a->counters, dev, types[i]))
				return true;
	return false;
}

bool discards_wait(struct allocator *a, uint64_t seen)
{
	struct discards *d = &a->discards;
	uint64_t deadline_ns = clock_monotonic_ns() + wait_max_ns;
	bool is_coming = something_is_coming(a), is_in_time = true;

	mutex_lock(&d->lock);
	if (d->freed_nr == seen && is_coming) {
		d->is_wanted = d->is_flush_wanted = true;
		waitq_wake_one(&d->work);
	}
	while (d->freed_nr == seen && is_coming && is_in_time && !d->is_stopping)
		is_in_time = waitq_wait_until(&d->freed, &d->lock, deadline_ns);
	bool has_freed = d->freed_nr != seen;
	mutex_unlock(&d->lock);
	return has_freed;
}

void allocator_journal_flushed(struct allocator *a, uint64_t seq)
{
	(void)seq;
	discards_kick(a);
}
