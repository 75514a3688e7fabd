/*
 * From empty to free (07 §15.1): buckets in need_discard, once a flush entry of the journal says durably that they are
 * empty and nobody has them open, get the generation they still lack, are discarded where the device wants that, and
 * become free. One task does it, when something became empty, a flush is through, or somebody waits for a bucket. While
 * a filesystem is shut down it rests, as making buckets free changes keys again, which are to be written: then only for
 * who waits.
 */
#include <errno.h>
#include <string.h>

#include "alloc/internal.h"
#include "base/clock.h"
#include "base/mutant.h"

enum {
	BATCH_NR = 64, /* looked at between two waits for readers */
	GROUP_NR = 16, /* freed by one transaction: about 7 KiB of journal; fewer where an entry has less */
};
static const uint64_t wait_max_ns = 10000000000, journal_poll_ns = 5000000;

void discards_init(struct discards *d)
{
	memset(d, 0, sizeof(*d));
	mutex_init(&d->lock);
	waitq_init(&d->work);
	waitq_init(&d->freed);
	job_init(&d->job, "discards", "makes buckets free that have become empty, and takes back cached ones");
}

void discards_destroy(struct discards *d)
{
	waitq_destroy(&d->freed);
	waitq_destroy(&d->work);
	mutex_destroy(&d->lock);
}

/* --- a group of buckets, in two transactions --- */

struct group_bucket {
	unsigned dev;
	uint64_t bucket;
	bool lacks_gen; /* it was open when it became empty */
	bool is_bad;	/* an index contradicts it: it stays as it is */
};

struct group {
	struct allocator *a;
	struct group_bucket buckets[GROUP_NR];
	unsigned nr;
	bool is_done;	    /* they need no discard any more; else only what lacks its generation is touched */
	bool is_one_by_one; /* to find the bad ones */
	unsigned at, to;    /* of the transaction that is run */
};

static int group_txn(struct btree_txn *txn, void *ctx)
{
	struct group *g = ctx;
	int err = 0;

	g->to = min(g->at + (g->is_one_by_one ? 1u : btree_txn_batch(txn, GROUP_NR)), g->nr);
	for (unsigned i = g->at; i < g->to && !err; i++) {
		const struct group_bucket *b = &g->buckets[i];
		struct alloc v;

		if (b->is_bad || (!g->is_done && !b->lacks_gen))
			continue;
		err = alloc_key_get(g->a, txn, b->dev, b->bucket, &v);
		if (err || v.data_type != DATA_NEED_DISCARD)
			continue;
		/* Without a change: the trigger makes up for the generation. */
		v.flags &= g->is_done ? ~(uint32_t)ALLOC_NEED_DISCARD : ~0u;
		err = alloc_key_put(txn, b->dev, b->bucket, &v, 0);
	}
	return err;
}

/* Where write-back lacks buckets, the journal that is waited for here waits for write-back, and that for this task. */
int discards_txn_run(struct allocator *a, const char *name, btree_txn_fn fn, void *ctx)
{
	struct btree_commit_opts opts = {
		.name = name,
		.watermark = WATERMARK_BTREE_COPYGC,
		.flags = BTREE_COMMIT_MAKES_ROOM,
	};

	while (a->journal && !journal_admits(a->journal, WATERMARK_BTREE_COPYGC) &&
	       !atomic_load(&a->nodes.is_writeback_starved)) {
		task_may_wait_for(TASK_RECLAIM);
		sleep_ns(journal_poll_ns);
	}
	return btree_txn_run(a->trees, &opts, fn, ctx);
}

static int group_commit(struct group *g)
{
	int err = 0;

	g->is_one_by_one = false;
	for (g->at = 0; g->at < g->nr && !err; g->at = g->to) {
		err = discards_txn_run(g->a, "discard", group_txn, g);
		if (err != -KILN_E_INVALID)
			continue;
		/* It has been reported. The others have nothing to do with it. */
		g->buckets[g->at].is_bad = g->is_one_by_one;
		g->to = g->at + g->is_one_by_one;
		g->is_one_by_one = true;
		err = 0;
	}
	return err;
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

/* Their number, and @g is empty again; or an error. */
static int group_free(struct group *g)
{
	unsigned nr = g->nr, freed_nr = 0;
	bool lacks_gen = false;
	int err = 0;

	for (unsigned i = 0; i < nr; i++)
		lacks_gen |= g->buckets[i].lacks_gen;
	g->is_done = false;
	if (lacks_gen)
		err = group_commit(g);
	for (unsigned i = 0; i < nr && !err; i++)
		if (!g->buckets[i].is_bad)
			discard_issue(g->a, g->buckets[i].dev, g->buckets[i].bucket);
	g->is_done = true;
	if (!err && nr)
		err = group_commit(g);
	g->nr = 0;
	if (err)
		return err;
	for (unsigned i = 0; i < nr; i++)
		freed_nr += !g->buckets[i].is_bad;
	atomic_fetch_add(&g->a->buckets_freed, freed_nr);
	return (int)freed_nr;
}

/*
 * Add a bucket if it can become free now; if it is the journal that it waits for, *@waiting_seq says so. It stays as it
 * is until the group is free: only here does a bucket leave need_discard, but for those that are open. One that became
 * empty behind @seq_durable may have been read again since readers were waited for: it was open, and had got new data.
 */
static int group_add(struct group *g, unsigned dev, uint64_t bucket, uint64_t seq_durable, uint64_t *waiting_seq)
{
	struct alloc_dev *d = alloc_dev_of(g->a, dev);
	struct alloc v;

	if (!d || bucket < d->first_bucket || bucket >= d->bucket_nr || open_bucket_is_open(g->a, dev, bucket))
		return 0;
	int err = alloc_key_lookup(g->a, dev, bucket, &v);
	if (err || v.data_type != DATA_NEED_DISCARD)
		return err;
	if (!alloc_seq_is_durable(g->a, v.journal_seq) ||
	    (v.journal_seq >= g->a->seq_first && v.journal_seq > seq_durable)) {
		*waiting_seq = max(*waiting_seq, v.journal_seq);
		return 0;
	}
	g->buckets[g->nr++] =
		(struct group_bucket){ .dev = dev, .bucket = bucket, .lacks_gen = v.flags & ALLOC_NEED_INC_GEN };
	return 0;
}

/* --- all --- */

/* What can become free of a batch. Their number, or an error. */
static int batch_free(struct allocator *a, const struct bpos *batch, int nr, uint64_t seq_durable,
		      uint64_t *waiting_seq)
{
	struct group g = { .a = a };
	int handled = 0, ret = 0;

	for (int i = 0; i < nr && ret >= 0; i++) {
		if (batch[i].inode < ALLOC_DEVS_MAX)
			ret = group_add(&g, (unsigned)batch[i].inode, batch[i].offset, seq_durable, waiting_seq);
		if (ret >= 0 && (g.nr == GROUP_NR || i == nr - 1)) {
			ret = group_free(&g);
			handled += max(ret, 0);
		}
	}
	return ret < 0 ? ret : handled;
}

int discards_run(struct allocator *a, uint64_t *waiting_seq)
{
	struct bpos batch[BATCH_NR], pos = POS_MIN;
	int nr, handled = 0;

	*waiting_seq = 0;
	while ((nr = alloc_positions_next(a, BTREE_NEED_DISCARD, &pos, SPOS_MAX, batch, BATCH_NR)) > 0) {
		bool must_wait = a->journal && !is_mutant(MUTANT_BUCKET_REUSE);
		uint64_t seq_durable = must_wait ? journal_seq_flushed(a->journal) : UINT64_MAX;
		readers_wait(&a->readers);
		int ret = batch_free(a, batch, nr, seq_durable, waiting_seq);
		if (ret < 0)
			return ret;
		handled += ret;
		job_progress(&a->discards.job, "buckets", (uint64_t)handled, 0);
	}
	return nr < 0 ? nr : handled;
}

/* --- the task --- */

/* What is to be waited for then. *@freed: how many buckets, or an error. */
static const char *task_round(struct allocator *a, bool is_flush_wanted, unsigned read_notes_min, int *freed)
{
	uint64_t waiting_seq = 0;

	/* Places for nodes that are kept at hand may be all that buckets are still open for. */
	if (is_flush_wanted || open_buckets_are_low(a, UINT64_MAX))
		node_pool_sift(a);
	alloc_task_result(a, "noting what was read", read_times_put(a, read_notes_min), &a->discards.err_told[2]);
	alloc_task_result(a, "taking back cached buckets", invalidate_run(a), &a->discards.err_told[0]);
	*freed = discards_run(a, &waiting_seq);
	alloc_task_result(a, "making empty buckets free", *freed, &a->discards.err_told[1]);
	/* Waiting for the journal's own rhythm might stop somebody. */
	if (waiting_seq && a->journal && (is_flush_wanted || open_buckets_are_low(a, UINT64_MAX))) {
		atomic_fetch_add(&a->journal_waits, 1);
		journal_flush_async(a->journal, waiting_seq);
	}
	return waiting_seq ? "that buckets are empty isn't durable before the journal's next flush"
			   : "nothing has become empty";
}

static bool task_may_rest(const struct discards *d)
{
	return !d->is_wanted || (d->is_resting && !d->waiting_nr && d->rounds_done >= d->rounds_asked);
}

static void discards_task(void *arg)
{
	struct allocator *a = arg;
	struct discards *d = &a->discards;
	const char *waits_because = "nothing has become empty";

	task_rank_set(TASK_DISCARD);
	mutex_lock(&d->lock);
	while (!d->is_stopping) {
		if (task_may_rest(d)) {
			job_waits(&d->job, waits_because);
			waitq_wait(&d->work, &d->lock);
			continue;
		}
		/* What has become empty since who waits asked is wanted, too. */
		bool is_flush_wanted = d->is_flush_wanted || d->waiting_nr;
		unsigned read_notes_min = d->is_resting ? 0 : READ_NOTES_MANY;
		int freed = 0;
		d->is_wanted = d->is_flush_wanted = false;
		d->is_working = true;
		mutex_unlock(&d->lock);
		background_enter(btrees_background(a->trees), &d->job,
				 is_flush_wanted ? "somebody waits for space"
						 : "some may have become empty, or durably so");
		waits_because = task_round(a, is_flush_wanted, read_notes_min, &freed);
		background_leave(btrees_background(a->trees));
		mutex_lock(&d->lock);
		d->is_working = false;
		d->rounds_done++;
		d->round_freed = freed;
		if (d->is_resting)
			waitq_wake_all(&d->freed);
	}
	job_stops(&d->job);
	mutex_unlock(&d->lock);
}

int discards_start(struct allocator *a)
{
	struct discards *d = &a->discards;

	/* Tasks that were started before may already kick. */
	mutex_lock(&d->lock);
	d->is_stopping = d->is_resting = false;
	d->is_wanted = true;
	mutex_unlock(&d->lock);
	return task_start(&d->task, "discard", discards_task, a);
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

/* One round that begins now or later is done; discards.lock is held. */
static void round_wait(struct discards *d)
{
	d->rounds_asked = d->rounds_done + (d->is_working ? 2 : 1);
	d->is_wanted = true;
	waitq_wake_one(&d->work);
	while (d->task && !d->is_stopping && d->rounds_done < d->rounds_asked)
		waitq_wait(&d->freed, &d->lock);
}

void discards_rest(struct allocator *a)
{
	struct discards *d = &a->discards;

	task_may_wait_for(TASK_DISCARD);
	background_need(btrees_background(a->trees));
	mutex_lock(&d->lock);
	d->is_resting = true;
	do
		round_wait(d);
	while (d->task && !d->is_stopping && d->round_freed > 0);
	d->rounds_seen = d->rounds_done;
	mutex_unlock(&d->lock);
	background_need_end(btrees_background(a->trees));
}

bool discards_stirred(struct allocator *a)
{
	struct discards *d = &a->discards;

	task_may_wait_for(TASK_DISCARD);
	background_need(btrees_background(a->trees));
	mutex_lock(&d->lock);
	while (d->is_working && !d->is_stopping)
		waitq_wait(&d->freed, &d->lock);
	bool has_stirred = d->rounds_done != d->rounds_seen;
	d->rounds_seen = d->rounds_done;
	mutex_unlock(&d->lock);
	background_need_end(btrees_background(a->trees));
	return has_stirred;
}

void discards_want(struct discards *d)
{
	d->is_wanted = d->is_flush_wanted = true;
	waitq_wake_one(&d->work);
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

/*
 * Is there a bucket on @devs that could become free without anybody deleting anything? Not one that somebody has open,
 * who may be waiting, too: when he closes it, that is told.
 */
static bool something_is_coming(struct allocator *a, uint64_t devs)
{
	static const uint8_t types[] = { DATA_NEED_DISCARD, DATA_NEED_GC_GENS, DATA_CACHED };

	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		int64_t nr = 0;

		if (!(devs >> dev & 1))
			continue;
		mutex_lock(&a->open.lock);
		int64_t open_nr = a->open.emptied_nr[dev];
		mutex_unlock(&a->open.lock);
		for (unsigned i = 0; i < ARRAY_NR(types); i++)
			nr += counters_dev_buckets(&a->counters, dev, types[i]);
		if (nr > open_nr)
			return true;
	}
	return false;
}

bool discards_wait(struct allocator *a, uint64_t seen, uint64_t devs, bool may_move)
{
	uint64_t move_devs = may_move ? devs : 0;
	struct discards *d = &a->discards;
	struct evacuation *e = &a->evacuation;
	uint64_t deadline_ns = clock_monotonic_ns() + wait_max_ns, progress = UINT64_MAX;
	bool is_in_time = true;

	task_may_wait_for(move_devs ? TASK_COPYGC : TASK_DISCARD);
	background_need(btrees_background(a->trees));
	mutex_lock(&d->lock);
	/* A pass that is under way may have been past what could be gained; one that begins from here on is for us too.
	 */
	uint64_t pass = e->passes_begun + 1;
	d->waiting_nr++;
	if (move_devs && d->freed_nr == seen)
		evacuation_want(a, move_devs);
	while (is_in_time && d->freed_nr == seen && !d->is_stopping && !d->is_refused) {
		mutex_unlock(&d->lock);
		bool is_coming = something_is_coming(a, devs);
		mutex_lock(&d->lock);
		/* Whatever wakes from here on may have come meanwhile. */
		bool can_move = move_devs && e->has_mover && e->pass_gainless < pass;
		if (d->freed_nr != seen || d->is_stopping || d->is_refused || (!is_coming && !can_move))
			break;
		if (e->progress_nr != progress) {
			progress = e->progress_nr;
			deadline_ns = clock_monotonic_ns() + wait_max_ns;
			discards_want(d);
		}
		if (can_move)
			evacuation_want(a, move_devs);
		is_in_time = waitq_wait_until(&d->freed, &d->lock, deadline_ns);
	}
	d->waiting_nr--;
	/* Who is refused doesn't go on trying, though buckets go to and fro. */
	bool has_freed = d->freed_nr != seen && !d->is_refused;
	mutex_unlock(&d->lock);
	background_need_end(btrees_background(a->trees));
	return has_freed;
}

int discards_wait_error(struct allocator *a)
{
	struct discards *d = &a->discards;

	mutex_lock(&d->lock);
	int err = d->is_refused ? -EROFS : -ENOSPC;
	mutex_unlock(&d->lock);
	return err;
}

void allocator_refuse(struct allocator *a)
{
	struct discards *d = &a->discards;

	mutex_lock(&d->lock);
	d->is_refused = true;
	waitq_wake_all(&d->freed);
	mutex_unlock(&d->lock);
}

void allocator_journal_flushed(struct allocator *a, uint64_t seq)
{
	(void)seq;
	key_versions_flushed(&a->versions);
	discards_kick(a);
}
