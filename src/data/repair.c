/* Read repair. See repair.h. */
#include "data/repair.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "data/move.h"
#include "data/write_internal.h"

enum {
	LIST_MAX = 4096,
	BATCH_MAX = 64, /* taken from it at a time */
};

static const uint64_t PAUSE_NS_MAX = 100000000;

/* A bad copy: at @ptr, of the key or node at @pos. */
struct bad_copy {
	unsigned btree_id, level; /* 0: an extent; else the level of the node + 1 */
	struct bpos pos;
	struct extent_ptr ptr;
	int err;
};

struct repair_list {
	struct mutex lock;
	struct waitq work, idle;
	struct bad_copy copies[LIST_MAX]; /* a ring */
	unsigned first, nr;
	bool is_busy, is_stopping;
	unsigned waiters;  /* data_repair_wait() */
	struct task *task; /* NULL: not running */
	struct job job;
	struct data_repair_stats stats;
};

int repair_list_new(struct repair_list **list)
{
	struct repair_list *l = calloc(1, sizeof(*l));

	if (!l)
		return -ENOMEM;
	mutex_init(&l->lock);
	job_init(&l->job, "read repair", "replaces copies that reads found bad");
	waitq_init(&l->work);
	waitq_init(&l->idle);
	*list = l;
	return 0;
}

void repair_list_free(struct repair_list *l)
{
	if (!l)
		return;
	waitq_destroy(&l->idle);
	waitq_destroy(&l->work);
	mutex_destroy(&l->lock);
	free(l);
}

/* --- what was found --- */

/* A device that isn't there, or a key that is, says nothing about what is stored. */
static bool is_repairable(int err)
{
	return err != -ENODEV && err != -ENOMEM && err != -KILN_E_NEED_PASSPHRASE && err != -KILN_E_STALE;
}

static bool is_listed(const struct repair_list *l, const struct bad_copy *c)
{
	for (unsigned i = 0; i < l->nr; i++) {
		const struct bad_copy *other = &l->copies[(l->first + i) % LIST_MAX];

		if (other->btree_id == c->btree_id && other->level == c->level && bpos_eq(other->pos, c->pos) &&
		    extent_ptr_is_same(&other->ptr, &c->ptr))
			return true;
	}
	return false;
}

static void bad_copy_note(struct data *data, const struct bad_copy *c)
{
	struct repair_list *l = data->repairs;

	if (!is_repairable(c->err))
		return;
	mutex_lock(&l->lock);
	l->stats.found++;
	if (!is_listed(l, c)) {
		if (l->nr < LIST_MAX)
			l->copies[(l->first + l->nr++) % LIST_MAX] = *c;
		else
			l->stats.dropped++;
		waitq_wake_one(&l->work);
	}
	mutex_unlock(&l->lock);
}

void repair_extent(struct data *data, unsigned btree_id, struct bpos pos, const struct extent_ptr *ptr, int err)
{
	bad_copy_note(data, &(struct bad_copy){ .btree_id = btree_id, .pos = pos, .ptr = *ptr, .err = err });
}

void data_repair_node(struct data *data, unsigned btree_id, unsigned level, struct bpos pos,
		      const struct extent_ptr *ptr, int err)
{
	bad_copy_note(data, &(struct bad_copy){
				    .btree_id = btree_id, .level = level + 1, .pos = pos, .ptr = *ptr, .err = err });
}

/* --- repairing --- */

/* Does the pointer lead to the bad copy, of a key that has lost so many sectors in front since it was looked up? */
static bool is_bad(const struct extent_ptr_decoded *p, const struct bad_copy *c, uint64_t skipped)
{
	struct extent_ptr at = p->ptr;

	at.sector -= p->has_crc ? 0 : skipped;
	return extent_ptr_is_same(&at, &c->ptr);
}

/*
 * Pointers of the key, as it is by now, that lead to one of the bad copies of it in the batch; 0 where that are all.
 * But they may have their bad blocks in different places where blocks can be read apart.
 */
static uint32_t bad_pointers(const struct data *data, struct bkey_ref k, const struct bad_copy *batch, unsigned nr,
			     const struct bad_copy *of, uint64_t skipped, bool *is_any_good)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	uint32_t mask = 0;

	if (k.k.type != KEY_EXTENT && k.k.type != KEY_REFLINK_V)
		return 0;
	int ptr_nr = extent_decode(k, &data->super->kctx, ptrs, NULL, NULL);
	for (int i = 0; i < ptr_nr; i++)
		for (unsigned b = 0; b < nr; b++)
			if (!batch[b].level && batch[b].btree_id == of->btree_id && bpos_eq(batch[b].pos, of->pos) &&
			    is_bad(&ptrs[i], &batch[b], skipped))
				mask |= 1u << i;
	*is_any_good = ptr_nr > 0 && mask != (1u << ptr_nr) - 1;
	for (int i = 0; i < ptr_nr && !*is_any_good; i++)
		if (crc_is_encoded(&ptrs[i].crc))
			return 0;
	return mask;
}

static int mover_run(struct data_mover *m, struct data_repair_stats *stats)
{
	struct data_move_stats moved = { 0 };
	int err = data_mover_run(m, &moved);

	stats->extents += moved.pointers_replaced;
	stats->failed += moved.keys_failed;
	data_mover_begin(m);
	return err;
}

static void extent_repair(struct data *data, struct data_mover *m, const struct bad_copy *batch, unsigned nr,
			  const struct bad_copy *c, struct data_repair_stats *stats)
{
	struct bkey_copy copy;
	struct data_move move = { .watermark = WATERMARK_STRIPE };
	uint64_t from = 0, first = UINT64_MAX; /* what is before it has been tried; where the key began */
	bool is_any_good;
	int err;

	/* Where the bits are wrong but the device works, the new copy is wanted in the same place as the old one. */
	move.target = (uint16_t)(c->err == -KILN_E_CHECKSUM ? TARGET_DEVICE_FIRST + c->ptr.dev : 0);
	do {
		if (btree_lookup(data->trees, c->btree_id, c->pos, &copy) <= 0 || !bpos_eq(copy.k.k.p, c->pos) ||
		    bkey_start_offset(&copy.k.k) < from)
			return;
		first = min(first, bkey_start_offset(&copy.k.k));
		move.rewrite =
			bad_pointers(data, copy.k, batch, nr, c, bkey_start_offset(&copy.k.k) - first, &is_any_good);
		move.avoid = is_any_good ? move.rewrite : 0;
		if (!move.rewrite)
			return;
		err = data_mover_add(m, c->btree_id, copy.k, &move);
		if (err == 1)
			from = bkey_start_offset(&copy.k.k) + 1;
	} while ((err == -ENOBUFS || err == 1) && (mover_run(m, stats), true));
	stats->failed += err && err != -EINVAL;
}

/* One move takes all bad pointers of a key, so the key's others in the batch are done with it. */
static bool is_first_of_key(const struct bad_copy *batch, unsigned i)
{
	for (unsigned k = 0; k < i; k++)
		if (!batch[k].level && batch[k].btree_id == batch[i].btree_id && bpos_eq(batch[k].pos, batch[i].pos))
			return false;
	return true;
}

static bool has_extents(const struct bad_copy *batch, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		if (!batch[i].level)
			return true;
	return false;
}

/* @m: to move extents with, freed by this; NULL when there are none, or no memory. */
static void batch_repair(struct data *data, struct data_mover *m, const struct bad_copy *batch, unsigned nr,
			 struct data_repair_stats *stats)
{
	if (m)
		data_mover_begin(m);
	for (unsigned i = 0; i < nr; i++)
		if (!batch[i].level && m && is_first_of_key(batch, i))
			extent_repair(data, m, batch, nr, &batch[i], stats);
	if (m)
		mover_run(m, stats);
	for (unsigned i = 0; i < nr && !m; i++)
		stats->failed += !batch[i].level;
	/* Who waits for places of nodes mustn't keep buckets from becoming free, as who reads does. */
	data_mover_free(m);
	for (unsigned i = 0; i < nr; i++) {
		const struct bad_copy *c = &batch[i];
		int err = c->level ? btree_node_rewrite(data->trees, c->btree_id, c->level - 1, c->pos, &c->ptr) : 0;

		stats->nodes += c->level && !err;
		stats->failed += err && err != -ENOENT;
	}
}

/* --- the task --- */

static unsigned batch_take(struct repair_list *l, struct bad_copy batch[BATCH_MAX])
{
	unsigned nr = 0;

	for (; l->nr && nr < BATCH_MAX; l->nr--) {
		batch[nr++] = l->copies[l->first];
		l->first = (l->first + 1) % LIST_MAX;
	}
	return nr;
}

/*
 * While files are read and written it works half of the time at most; but goes on where somebody waits for it, or the
 * list would run over. The lock is held.
 */
static void pause_after(struct data *data, uint64_t began_ns, uint64_t clock_before)
{
	struct repair_list *l = data->repairs;
	uint64_t now = clock_monotonic_ns(), until = now + min(now - began_ns, PAUSE_NS_MAX);

	if (allocator_clock(data->writer->allocator) == clock_before || now == began_ns)
		return;
	l->stats.pauses++;
	job_waits(&l->job, "files are read and written: half of the time is theirs");
	while (!l->is_stopping && !l->waiters && l->nr < LIST_MAX / 2 && clock_monotonic_ns() < until)
		waitq_wait_until(&l->work, &l->lock, until);
}

static void repair_task(void *arg)
{
	struct data *data = arg;
	struct repair_list *l = data->repairs;
	struct bad_copy batch[BATCH_MAX];
	uint64_t seen = 0; /* since none were known */

	mutex_lock(&l->lock);
	while (!l->is_stopping) {
		struct data_repair_stats done = { 0 };
		unsigned nr = batch_take(l, batch);
		uint64_t of = seen + nr + l->nr;

		l->is_busy = nr;
		if (!nr) {
			seen = 0;
			waitq_wake_all(&l->idle);
			job_waits(&l->job, "no bad copies are known");
			waitq_wait(&l->work, &l->lock);
			continue;
		}
		mutex_unlock(&l->lock);
		/* Its buffers are waited for before anybody can wait for what is done. */
		struct data_mover *m = has_extents(batch, nr) ? data_mover_new(data, &data->writes) : NULL;
		background_enter(btrees_background(data->trees), &l->job, "bad copies were found");
		uint64_t began_ns = clock_monotonic_ns(), clock_before = allocator_clock(data->writer->allocator);
		job_progress(&l->job, "copies", seen, of);
		seen += nr;
		batch_repair(data, m, batch, nr, &done);
		background_leave(btrees_background(data->trees));
		mutex_lock(&l->lock);
		l->stats.extents += done.extents;
		l->stats.nodes += done.nodes;
		l->stats.failed += done.failed;
		pause_after(data, began_ns, clock_before);
	}
	l->is_busy = false;
	job_stops(&l->job);
	waitq_wake_all(&l->idle);
	mutex_unlock(&l->lock);
}

const struct job *repair_job(const struct data *data) { return &data->repairs->job; }

int data_start_repair(struct data *data)
{
	data->repairs->is_stopping = false;
	return task_start(&data->repairs->task, "read-repair", repair_task, data);
}

void data_repair_wait(struct data *data)
{
	struct repair_list *l = data->repairs;

	mutex_lock(&l->lock);
	l->waiters++;
	waitq_wake_all(&l->work);
	while (l->task && !l->is_stopping && (l->nr || l->is_busy))
		waitq_wait(&l->idle, &l->lock);
	l->waiters--;
	mutex_unlock(&l->lock);
}

void repair_stop(struct data *data)
{
	struct repair_list *l = data->repairs;

	mutex_lock(&l->lock);
	struct task *task = l->task;
	l->task = NULL;
	l->is_stopping = true;
	waitq_wake_all(&l->work);
	waitq_wake_all(&l->idle);
	mutex_unlock(&l->lock);
	if (task)
		task_join(task);
}

void data_repair_stats(struct data *data, struct data_repair_stats *stats)
{
	mutex_lock(&data->repairs->lock);
	*stats = data->repairs->stats;
	mutex_unlock(&data->repairs->lock);
}
