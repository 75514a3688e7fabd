/*
 * Blind puts to write-buffered btrees (lru, backpointers, deleted_inodes, rebalance_work), until they are applied.
 *
 * Such a put needs nothing of what is in the btree, and its position has little to do with those of others at the time:
 * put one by one, each would dirty a leaf of its own. So a commit only journals them and adds them to the buffer; later
 * they are sorted, of each position the newest is kept, and they go into the btree in its order.
 *
 * There are two batches: commits add to the *incoming* one, while the other is *applied*. A batch pins the journal
 * entry of its oldest key until all of it is in nodes, which then pin what they need themselves. Reclaim that wants an
 * entry back has the buffer flushed.
 *
 * Bounds: a commit reserves room for its keys before it takes any lock, and flushes the buffer itself when there is
 * none. So the incoming batch holds at most keys_max keys and those of commits under way. Commits of reclaim and of
 * interior updates get room always, because the flush may wait for them; they are few.
 *
 * Within a batch the order of keys is that of the journal, whatever order they were added in. Between batches it is
 * that of adding: two transactions that put at one position must be kept apart by the lock of a node or of a cached key
 * that both change. They are: what is put here follows from a key (of a bucket, an inode, an extent), and one position
 * from one key only.
 *
 * Lock order: the buffer's lock, then the journal's for pins. Neither is held over anything that waits.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/mutant.h"
#include "base/util.h"
#include "btree/internal.h"

enum {
	KEYS_MAX_MIN = 1024,
	KEYS_MAX_MAX = 1 << 16,
	KEY_BYTES_TYPICAL = 128, /* index and value, twice */
	MEMORY_SHARE = 32,	 /* that part of the node cache's budget, at most */
	APPLY_KEYS = 512,	 /* at a time */
};

struct buffered_key {
	struct bpos p;
	uint64_t seq;
	uint32_t order; /* in entry @seq */
	uint32_t size;
	struct bversion version;
	uint8_t btree_id, type, value_u64s;
	size_t value_at; /* word in the batch's values */
};

struct batch {
	struct buffered_key *keys;
	size_t key_nr, key_max;
	uint64_t *values;
	size_t value_u64s, value_max;
	uint64_t seq_oldest; /* 0: empty */
	struct journal_pin pin;
	struct write_buffer *wb;
};

struct write_buffer {
	struct btrees *trees;
	size_t keys_max;

	struct mutex lock; /* guards the members below, but the batch that is applied belongs to who applies it */
	struct waitq changed;
	unsigned waiters;
	struct batch batches[2];
	unsigned incoming; /* index */
	size_t keys_reserved, u64s_reserved;
	uint64_t batches_closed, batches_applied;
	bool is_applying;
	struct waitq work; /* for the task */
	bool is_wanted, is_stopping;
	struct task *task; /* NULL: stopped */
	struct job job;
};

/*
 * What it fails with, who wants room is told, and whoever asked asks again. But where a node can't be read the pins
 * stay, so the journal would fill up and everybody wait for good: an error that lasts is the end of writing.
 */
static void flush_or_give_up(struct btrees *trees)
{
	unsigned tries = 0;
	int err;

	do {
		err = btree_write_buffer_flush(trees);
	} while (write_may_retry(trees, err, &tries));
	if (err && err != -ENOMEM && err != -ENOSPC && err != -EAGAIN && !write_error(trees))
		write_failed(trees, err);
}

static void flush_task(void *arg)
{
	struct write_buffer *wb = arg;

	task_rank_set(TASK_RECLAIM);
	mutex_lock(&wb->lock);
	while (!wb->is_stopping) {
		if (!wb->is_wanted) {
			job_waits(&wb->job, "few keys are there, and the journal has space");
			waitq_wait(&wb->work, &wb->lock);
			continue;
		}
		wb->is_wanted = false;
		job_works(&wb->job, "many keys are there, or the journal wants it");
		mutex_unlock(&wb->lock);
		flush_or_give_up(wb->trees);
		mutex_lock(&wb->lock);
	}
	job_stops(&wb->job);
	mutex_unlock(&wb->lock);
}

const struct job *write_buffer_job(const struct write_buffer *wb) { return &wb->job; }

/* Lock held. */
static void want_flush(struct write_buffer *wb)
{
	if (wb->is_wanted)
		return;
	wb->is_wanted = true;
	waitq_wake_one(&wb->work);
}

int write_buffer_open(struct btrees *trees, struct write_buffer **wb)
{
	struct write_buffer *b = calloc(1, sizeof(*b));
	uint64_t keys_max = trees->opts.memory_bytes / MEMORY_SHARE / KEY_BYTES_TYPICAL;

	*wb = b;
	if (!b)
		return -ENOMEM;
	b->trees = trees;
	b->keys_max = (size_t)min(max(keys_max, (uint64_t)KEYS_MAX_MIN), (uint64_t)KEYS_MAX_MAX);
	for (unsigned i = 0; i < ARRAY_NR(b->batches); i++)
		b->batches[i].wb = b;
	mutex_init_ranked(&b->lock, LOCK_WRITE_BUFFER);
	waitq_init(&b->changed);
	waitq_init(&b->work);
	job_init(&b->job, "write buffer", "puts keys into their btrees that so far only the journal has");
	int err = task_start(&b->task, "btree-buffer", flush_task, b);
	if (err) {
		write_buffer_close(b);
		*wb = NULL;
	}
	return err;
}

void write_buffer_stop(struct write_buffer *wb)
{
	if (!wb || !wb->task)
		return;
	mutex_lock(&wb->lock);
	wb->is_stopping = true;
	waitq_wake_all(&wb->work);
	mutex_unlock(&wb->lock);
	task_join(wb->task);
	wb->task = NULL;
}

void write_buffer_close(struct write_buffer *wb)
{
	if (!wb)
		return;
	write_buffer_stop(wb);
	for (unsigned i = 0; i < ARRAY_NR(wb->batches); i++) {
		journal_pin_drop(wb->trees->write_opts.journal, &wb->batches[i].pin);
		free(wb->batches[i].keys);
		free(wb->batches[i].values);
	}
	waitq_destroy(&wb->work);
	waitq_destroy(&wb->changed);
	mutex_destroy(&wb->lock);
	free(wb);
}

uint64_t write_buffer_key_nr(const struct write_buffer *wb)
{
	struct write_buffer *b = (struct write_buffer *)wb; /* for its lock only */

	mutex_lock(&b->lock);
	uint64_t nr = b->batches[0].key_nr + b->batches[1].key_nr;
	mutex_unlock(&b->lock);
	return nr;
}

static int batch_grow(struct batch *b, size_t keys, size_t u64s)
{
	int err = array_grow(&b->keys, &b->key_max, b->key_nr + keys, sizeof(*b->keys));

	return err ? err : array_grow(&b->values, &b->value_max, b->value_u64s + u64s, sizeof(*b->values));
}

static void wake_waiters(struct write_buffer *wb)
{
	if (wb->waiters)
		waitq_wake_all(&wb->changed);
}

static void wait_for_change(struct write_buffer *wb)
{
	task_may_wait_for(TASK_WRITE_BUFFER);
	wb->waiters++;
	waitq_wait(&wb->changed, &wb->lock);
	wb->waiters--;
}

/* --- adding --- */

int write_buffer_reserve(struct btrees *trees, size_t key_nr, size_t u64s, enum watermark watermark)
{
	struct write_buffer *wb = trees->write_buffer;
	bool may_exceed = watermark == WATERMARK_RECLAIM;
	int err = 0;

	mutex_lock(&wb->lock);
	for (;;) {
		size_t used = wb->batches[wb->incoming].key_nr + wb->keys_reserved;

		/* What commits under way have reserved can't be flushed; and they may wait for the one that asks. */
		if (may_exceed || used + key_nr <= wb->keys_max || !wb->batches[wb->incoming].key_nr)
			break;
		mutex_unlock(&wb->lock);
		err = btree_write_buffer_flush(trees);
		if (err)
			return err;
		mutex_lock(&wb->lock);
	}
	err = batch_grow(&wb->batches[wb->incoming], wb->keys_reserved + key_nr, wb->u64s_reserved + u64s);
	if (!err) {
		wb->keys_reserved += key_nr;
		wb->u64s_reserved += u64s;
	}
	mutex_unlock(&wb->lock);
	return err;
}

static void unreserve(struct write_buffer *wb, size_t key_nr, size_t u64s)
{
	assert(wb->keys_reserved >= key_nr && wb->u64s_reserved >= u64s);
	wb->keys_reserved -= key_nr;
	wb->u64s_reserved -= u64s;
	wake_waiters(wb);
}

void write_buffer_unreserve(struct btrees *trees, size_t key_nr, size_t u64s)
{
	struct write_buffer *wb = trees->write_buffer;

	mutex_lock(&wb->lock);
	unreserve(wb, key_nr, u64s);
	mutex_unlock(&wb->lock);
}

static void flush_for_reclaim(struct journal *j, struct journal_pin *pin, uint64_t seq);

void write_buffer_add(struct btrees *trees, unsigned btree_id, const struct bkey *k, const void *value, uint64_t seq,
		      uint32_t order)
{
	struct write_buffer *wb = trees->write_buffer;

	mutex_lock(&wb->lock);
	struct batch *b = &wb->batches[wb->incoming];
	assert(b->key_nr < b->key_max && b->value_max - b->value_u64s >= k->value_u64s);
	b->keys[b->key_nr++] = (struct buffered_key){
		.p = k->p,
		.seq = seq,
		.order = order,
		.size = k->size,
		.version = k->version,
		.btree_id = (uint8_t)btree_id,
		.type = k->type,
		.value_u64s = k->value_u64s,
		.value_at = b->value_u64s,
	};
	if (k->value_u64s)
		memcpy(b->values + b->value_u64s, value, bkey_value_bytes(k));
	b->value_u64s += k->value_u64s;
	if (!b->seq_oldest || seq < b->seq_oldest) {
		b->seq_oldest = seq;
		if (!is_mutant(MUTANT_BUFFER_PIN))
			journal_pin_add(trees->write_opts.journal, &b->pin, seq, flush_for_reclaim);
	}
	if (b->key_nr > wb->keys_max / 2)
		want_flush(wb);
	unreserve(wb, 1, BKEY_U64S + k->value_u64s);
	mutex_unlock(&wb->lock);
}

/* --- applying --- */

static int key_cmp(const void *left, const void *right)
{
	const struct buffered_key *l = left, *r = right;

	if (l->btree_id != r->btree_id)
		return l->btree_id < r->btree_id ? -1 : 1;
	int cmp = bpos_cmp(l->p, r->p);
	if (cmp)
		return cmp;
	if (l->seq != r->seq)
		return l->seq < r->seq ? -1 : 1;
	return (l->order > r->order) - (l->order < r->order);
}

static bool is_same_place(const struct buffered_key *a, const struct buffered_key *b)
{
	return a->btree_id == b->btree_id && bpos_eq(a->p, b->p);
}

/* Sort, and keep of each position the newest key, which comes last. Returns how many are left. */
static size_t keys_sort(struct buffered_key *keys, size_t nr)
{
	size_t kept = 0;

	qsort(keys, nr, sizeof(*keys), key_cmp);
	for (size_t i = 0; i < nr; i++)
		if (i + 1 == nr || !is_same_place(&keys[i], &keys[i + 1]))
			keys[kept++] = keys[i];
	return kept;
}

static struct btree_applied_key applied_key(const struct batch *b, const struct buffered_key *k)
{
	return (struct btree_applied_key){
		.btree_id = k->btree_id,
		.k = {
			.k = { .p = k->p, .version = k->version, .size = k->size, .type = k->type,
			       .value_u64s = k->value_u64s },
			.value = k->value_u64s ? b->values + k->value_at : NULL,
		},
		.seq = k->seq,
	};
}

/* Put the first @key_nr keys of a batch into the btrees. After an error it can be done again. */
static int batch_apply(struct btrees *trees, const struct batch *b, size_t key_nr)
{
	struct btree_applied_key *keys = malloc(APPLY_KEYS * sizeof(*keys));
	int err = keys ? 0 : -ENOMEM;

	for (size_t done = 0; !err && done < key_nr;) {
		size_t nr = min(key_nr - done, (size_t)APPLY_KEYS);

		for (size_t i = 0; i < nr; i++)
			keys[i] = applied_key(b, &b->keys[done + i]);
		err = btree_apply(trees, keys, nr);
		done += nr;
	}
	free(keys);
	return err;
}

/*
 * Close the incoming batch, if the other one was applied: it changes places with it. Lock held. 1: there is a batch to
 * apply; 0: there is none; or -ENOMEM.
 */
static int batch_next(struct write_buffer *wb)
{
	struct batch *closed = &wb->batches[wb->incoming], *other = &wb->batches[!wb->incoming];

	if (other->key_nr)
		return 1; /* of a flush that failed */
	if (!closed->key_nr)
		return 0;
	/* What was reserved will be added to the other one. */
	int err = batch_grow(other, wb->keys_reserved, wb->u64s_reserved);
	if (err)
		return err;
	wb->incoming = !wb->incoming;
	wb->batches_closed++;
	return 1;
}

/* One batch. Lock held, and given up meanwhile. */
static int apply_one(struct write_buffer *wb)
{
	int err = batch_next(wb);

	if (err <= 0)
		return err;
	struct batch *b = &wb->batches[!wb->incoming];
	size_t key_nr = b->key_nr;
	wb->is_applying = true;
	mutex_unlock(&wb->lock);

	enum task_rank rank = task_rank_lower(TASK_WRITE_BUFFER);
	key_nr = keys_sort(b->keys, key_nr);
	err = batch_apply(wb->trees, b, key_nr);
	if (!err)
		journal_pin_drop(wb->trees->write_opts.journal, &b->pin);
	task_rank_set(rank);

	mutex_lock(&wb->lock);
	wb->is_applying = false;
	b->key_nr = key_nr;
	if (!err) {
		b->key_nr = b->value_u64s = 0;
		b->seq_oldest = 0;
		wb->batches_applied++;
	}
	wake_waiters(wb);
	return err;
}

/* What is in the buffer now is in the btrees on return. */
int btree_write_buffer_flush(struct btrees *trees)
{
	struct write_buffer *wb = trees->write_buffer;
	int err = 0;

	if (!wb)
		return 0;
	mutex_lock(&wb->lock);
	uint64_t target = wb->batches_closed + (wb->batches[wb->incoming].key_nr != 0);
	while (!err && wb->batches_applied < target) {
		if (wb->is_applying)
			wait_for_change(wb);
		else
			err = apply_one(wb);
	}
	mutex_unlock(&wb->lock);
	return err;
}

/* Reclaim wants entries back: only start that. The journal waits for this function before it drops the pin. */
static void flush_for_reclaim(struct journal *j, struct journal_pin *pin, uint64_t seq)
{
	struct write_buffer *wb = container_of(pin, struct batch, pin)->wb;

	mutex_lock(&wb->lock);
	want_flush(wb);
	mutex_unlock(&wb->lock);
}
