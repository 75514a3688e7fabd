/*
 * Raising oldest_gen (07 §10): a bucket can be reused only while its generation is less than 96 ahead of the oldest
 * pointer into it. Pointers to cached data become stale and stay where they are; a walk over all keys now and then
 * finds how old the oldest is for each bucket, and drops those that are too far behind.
 *
 * Keys change during the walk. A key that is put behind it can hold an old pointer only if it is what is left of
 * another key, or a copy: so commits tell of all pointers that are put meanwhile (gc_gens_commit()), from before the
 * walk begins. What was committed before that, it meets.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/internal.h"
#include "base/clock.h"
#include "format/key_edit.h"

enum {
	POINTER_AGE_MAX = 16, /* pointers that are staler are dropped */
	RUN_EVERY = 16,	      /* once for every 1/16 of the capacity that was written */
	PIECE_KEYS = 4096,    /* between two looks whether it is to end */
};
static const uint64_t retry_ns = 1000000000;

void gc_gens_init(struct gc_gens *g)
{
	memset(g, 0, sizeof(*g));
	mutex_init(&g->lock);
	waitq_init(&g->work);
	job_init(&g->job, "generations", "finds out how old the pointers to buckets are at most");
}

void gc_gens_destroy(struct gc_gens *g)
{
	waitq_destroy(&g->work);
	mutex_destroy(&g->lock);
}

/* --- the oldest generation of each bucket, while it walks --- */

static void generations_free(struct generations *all)
{
	for (unsigned dev = 0; dev < ALLOC_DEVS_MAX; dev++) {
		free(all->gens[dev]);
		free(all->oldest[dev]);
	}
}

static int generations_alloc(struct allocator *a, struct generations *all)
{
	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		if (!a->devs[dev].is_member)
			continue;
		all->gens[dev] = calloc(a->devs[dev].bucket_nr, 1);
		all->oldest[dev] = calloc(a->devs[dev].bucket_nr, 1);
		if (!all->gens[dev] || !all->oldest[dev])
			return -ENOMEM;
	}
	return 0;
}

/* To begin with: no pointer is older than the bucket. */
static int generations_read(struct allocator *a, struct generations *all)
{
	uint8_t gens[BUCKET_GENS_PER_KEY];
	struct btree_iter it;
	struct bkey_ref k;
	int found;

	btree_iter_open(&it, a->trees, BTREE_BUCKET_GENS, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	while ((found = btree_iter_peek(&it, &k)) > 0) {
		unsigned dev = k.k.p.inode < ALLOC_DEVS_MAX ? (unsigned)k.k.p.inode : ALLOC_DEVS_MAX;
		uint64_t first = k.k.p.offset * BUCKET_GENS_PER_KEY;
		uint64_t nr = alloc_dev_of(a, dev) ? a->devs[dev].bucket_nr : 0;

		bucket_gens_decode(k, gens);
		if (k.k.type == KEY_BUCKET_GENS && first < nr) {
			memcpy(all->gens[dev] + first, gens, min(nr - first, (uint64_t)BUCKET_GENS_PER_KEY));
			memcpy(all->oldest[dev] + first, gens, min(nr - first, (uint64_t)BUCKET_GENS_PER_KEY));
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return found;
}

/* From now on commits are noted. */
static int walk_begin(struct allocator *a)
{
	struct gc_gens *g = &a->gc;
	struct generations all = { 0 };
	int err = generations_alloc(a, &all);

	if (!err)
		err = generations_read(a, &all);
	if (err) {
		generations_free(&all);
		return err;
	}
	mutex_lock(&g->lock);
	g->all = all;
	atomic_store(&g->is_walking, true);
	mutex_unlock(&g->lock);
	return 0;
}

static void walk_end(struct allocator *a)
{
	struct gc_gens *g = &a->gc;

	mutex_lock(&g->lock);
	struct generations all = g->all;
	atomic_store(&g->is_walking, false);
	g->all = (struct generations){ 0 };
	mutex_unlock(&g->lock);
	generations_free(&all);
}

/* The lock is held. */
static void pointer_note(struct gc_gens *g, const struct extent_ptr *ptr, uint64_t bucket)
{
	uint8_t *oldest = &g->all.oldest[ptr->dev][bucket];

	if (gen_cmp(*oldest, ptr->gen) > 0)
		*oldest = ptr->gen;
}

/* --- the walk over keys --- */

/* Note how old the pointers of a key are. True: one is too old to be kept, and isn't noted unless @is_kept. */
static bool pointers_note(struct allocator *a, struct bkey_ref k, bool is_kept)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct gc_gens *g = &a->gc;
	bool has_too_old = false;

	if (k.k.type != KEY_EXTENT && k.k.type != KEY_REFLINK_V)
		return false;
	int nr = extent_decode(k, alloc_kctx(a), ptrs, NULL, NULL);
	mutex_lock(&g->lock);
	for (int i = 0; i < nr; i++) {
		const struct extent_ptr *p = &ptrs[i].ptr;
		struct alloc_dev *d = alloc_dev_of(a, p->dev);
		uint64_t bucket = d ? p->sector / d->bucket_sectors : 0;

		if (!d || bucket >= d->bucket_nr || !g->all.oldest[p->dev])
			continue;
		bool is_too_old = p->is_cached && gen_cmp(g->all.gens[p->dev][bucket], p->gen) > POINTER_AGE_MAX;

		if (!is_too_old || is_kept)
			pointer_note(g, p, bucket);
		has_too_old |= is_too_old;
	}
	mutex_unlock(&g->lock);
	return has_too_old;
}

void gc_gens_commit(struct allocator *a, const struct btree_update *u)
{
	if (atomic_load(&a->gc.is_walking) && !u->level)
		pointers_note(a, u->new, true);
}

struct drop_args {
	struct allocator *a;
	struct btree_txn *txn;
	unsigned btree_id;
	struct bpos pos;
	int err;
};

static bool ptr_is_stale(void *arg, const struct extent_ptr *ptr)
{
	struct drop_args *args = arg;
	struct alloc_dev *d = alloc_dev_of(args->a, ptr->dev);
	struct alloc v;

	if (!d || args->err)
		return false;
	args->err = alloc_key_get(args->a, args->txn, ptr->dev, ptr->sector / d->bucket_sectors, &v);
	return !args->err && gen_cmp(v.gen, ptr->gen) > 0;
}

static int drop_txn(struct btree_txn *txn, void *ctx)
{
	struct drop_args *args = ctx;
	struct key_buf b;
	struct bkey_ref k;
	int found = btree_txn_get(txn, args->btree_id, args->pos, 0, &k);

	if (found <= 0 || (k.k.type != KEY_EXTENT && k.k.type != KEY_REFLINK_V))
		return found;
	args->txn = txn;
	args->err = 0;
	key_buf_load(&b, k);
	int err = key_ptrs_normalise(&b, ptr_is_stale, args, alloc_kctx(args->a));
	err = err ? err : args->err;
	/* An extent that has nothing else: that it is there counts in its inode. */
	if (!err && b.k.type != k.k.type)
		pointers_note(args->a, k, true);
	else if (!err)
		err = btree_txn_put(txn, args->btree_id, &b.k, b.value, 0);
	return err;
}

static int stale_drop(struct allocator *a, unsigned btree_id, struct bpos pos)
{
	static const struct btree_commit_opts opts = { .name = "gc_gens", .watermark = WATERMARK_BTREE_COPYGC };
	struct drop_args args = { .a = a, .btree_id = btree_id, .pos = pos };

	return btree_txn_run(a->trees, &opts, drop_txn, &args);
}

static bool is_stopping(struct allocator *a)
{
	mutex_lock(&a->gc.lock);
	bool stopping = a->gc.is_stopping;
	mutex_unlock(&a->gc.lock);
	return stopping;
}

/* @looked_nr: keys so far, counted on. */
static int keys_walk(struct allocator *a, unsigned btree_id, uint64_t *looked_nr)
{
	struct bpos pos = POS_MIN;
	int found = 1;

	while (found > 0) {
		struct btree_iter it;
		struct bkey_ref k;
		bool has_too_old = false;

		btree_iter_open(&it, a->trees, btree_id, pos, BTREE_ITER_ALL_SNAPSHOTS, 0);
		for (unsigned i = 0; i < PIECE_KEYS && !has_too_old && (found = btree_iter_peek(&it, &k)) > 0; i++) {
			has_too_old = pointers_note(a, k, false);
			pos = k.k.p;
			++*looked_nr;
			btree_iter_advance(&it);
		}
		btree_iter_close(&it);
		job_progress(&a->gc.job, "keys", *looked_nr, 0);
		if (is_stopping(a))
			return -ECANCELED;
		if (has_too_old) {
			int err = stale_drop(a, btree_id, pos);

			if (err)
				return err;
		}
		if (found > 0)
			pos = bpos_successor(pos);
	}
	return found;
}

/* --- the alloc keys --- */

struct raise_args {
	struct allocator *a;
	struct bpos pos;
};

static uint8_t oldest_get(struct allocator *a, unsigned dev, uint64_t bucket)
{
	mutex_lock(&a->gc.lock);
	uint8_t gen = a->gc.all.oldest[dev][bucket];
	mutex_unlock(&a->gc.lock);
	return gen;
}

/* Is there something to be raised? */
static bool alloc_is_behind(struct allocator *a, const struct alloc *v, unsigned dev, uint64_t bucket)
{
	uint8_t oldest = oldest_get(a, dev, bucket);

	return gen_cmp(oldest, v->oldest_gen) > 0 && gen_cmp(v->gen, oldest) >= 0;
}

static int raise_txn(struct btree_txn *txn, void *ctx)
{
	const struct raise_args *args = ctx;
	unsigned dev = (unsigned)args->pos.inode;
	struct alloc v;
	int err = alloc_key_get(args->a, txn, dev, args->pos.offset, &v);

	if (err || !alloc_is_behind(args->a, &v, dev, args->pos.offset))
		return err;
	v.oldest_gen = oldest_get(args->a, dev, args->pos.offset);
	return alloc_key_put(txn, dev, args->pos.offset, &v, 0);
}

/*
 * Look for an alloc key that is behind, at or behind *@pos, which moves to the last one that was looked at. 1: there
 * may be more; 0: there are no more; or an error.
 */
static int behind_find(struct allocator *a, struct bpos *pos, bool *is_behind)
{
	struct btree_iter it;
	struct bkey_ref k;
	int found = 1;

	*is_behind = false;
	btree_iter_open(&it, a->trees, BTREE_ALLOC, *pos, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (unsigned i = 0; i < PIECE_KEYS && !*is_behind && (found = btree_iter_peek(&it, &k)) > 0; i++) {
		struct alloc v;
		unsigned dev = k.k.p.inode < ALLOC_DEVS_MAX ? (unsigned)k.k.p.inode : ALLOC_DEVS_MAX;

		*pos = k.k.p;
		*is_behind = alloc_dev_of(a, dev) && k.k.p.offset < a->devs[dev].bucket_nr &&
			     !alloc_decode(k, &v, NULL) && alloc_is_behind(a, &v, dev, k.k.p.offset);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return found;
}

static int oldest_write(struct allocator *a)
{
	static const struct btree_commit_opts opts = { .name = "gc_gens", .watermark = WATERMARK_BTREE_COPYGC };
	struct raise_args args = { .a = a, .pos = POS_MIN };
	bool is_behind;
	int found;

	while ((found = behind_find(a, &args.pos, &is_behind)) > 0) {
		int err = is_behind ? btree_txn_run(a->trees, &opts, raise_txn, &args) : 0;

		if (err)
			return err;
		if (is_stopping(a))
			return -ECANCELED;
		args.pos = bpos_successor(args.pos);
	}
	return found;
}

/* --- when --- */

int gc_gens_run(struct allocator *a)
{
	uint64_t looked_nr = 0;
	int err = walk_begin(a);

	if (err)
		return err;
	err = keys_walk(a, BTREE_EXTENTS, &looked_nr);
	if (!err)
		err = keys_walk(a, BTREE_REFLINK, &looked_nr);
	if (!err)
		err = oldest_write(a);
	walk_end(a);
	return err;
}

/* Is it time? The lock is held. */
static bool is_due(struct allocator *a)
{
	struct gc_gens *g = &a->gc;
	uint64_t written = atomic_load_explicit(&a->clock[1], memory_order_relaxed) - g->clock_last;

	return g->is_wanted || written > a->capacity_sectors / RUN_EVERY;
}

static void gc_gens_task(void *arg)
{
	struct allocator *a = arg;
	struct gc_gens *g = &a->gc;
	uint64_t not_before_ns = 0;

	task_rank_set(TASK_DISCARD);
	mutex_lock(&g->lock);
	while (!g->is_stopping) {
		if (!is_due(a)) {
			job_waits(&g->job, "not enough has been written since the last time");
			waitq_wait(&g->work, &g->lock);
			continue;
		}
		if (not_before_ns > clock_monotonic_ns()) {
			job_waits(&g->job, "there was no memory, or no space: again in a while");
			waitq_wait_until(&g->work, &g->lock, not_before_ns);
			continue;
		}
		const char *because =
			g->is_wanted ? "buckets wait for it" : "much has been written since the last time";
		g->is_wanted = false;
		g->clock_last = atomic_load(&a->clock[1]);
		mutex_unlock(&g->lock);
		background_enter(btrees_background(a->trees), &g->job, because);
		int err = gc_gens_run(a);
		background_leave(btrees_background(a->trees));
		alloc_task_result(a, "raising generations", err, &g->err_told);
		mutex_lock(&g->lock);
		/* Buckets may be waiting for it. */
		if (err == -ENOMEM || err == -ENOSPC) {
			g->is_wanted = true;
			not_before_ns = clock_monotonic_ns() + retry_ns;
		}
	}
	job_stops(&g->job);
	mutex_unlock(&g->lock);
}

int gc_gens_start(struct allocator *a)
{
	bool is_wanted = false;

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		is_wanted |= counters_dev_buckets(&a->counters, dev, DATA_NEED_GC_GENS) > 0;
	/* Tasks that were started before may already kick. */
	mutex_lock(&a->gc.lock);
	a->gc.is_stopping = false;
	a->gc.clock_last = atomic_load(&a->clock[1]);
	a->gc.is_wanted |= is_wanted;
	mutex_unlock(&a->gc.lock);
	return task_start(&a->gc.task, "gc-gens", gc_gens_task, a);
}

void gc_gens_stop(struct allocator *a)
{
	struct gc_gens *g = &a->gc;

	mutex_lock(&g->lock);
	struct task *task = g->task;
	g->task = NULL;
	g->is_stopping = true;
	waitq_wake_all(&g->work);
	mutex_unlock(&g->lock);
	if (task)
		task_join(task);
}

void gc_gens_kick(struct allocator *a, bool is_wanted)
{
	struct gc_gens *g = &a->gc;

	mutex_lock(&g->lock);
	g->is_wanted |= is_wanted;
	waitq_wake_one(&g->work);
	mutex_unlock(&g->lock);
}
