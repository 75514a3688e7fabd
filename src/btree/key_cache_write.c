/*
 * The key cache's other half: keys change in it, and come into their leaves.
 *
 * Dirty entries are on one of two lists. One task takes those that are wanted, because journal reclaim wants their pins
 * back or everything is to be written (key_cache_flush()); and when very many are dirty, those that have been longest.
 * It puts them into their leaves in the order of positions, those of a leaf at once, under the leaf's and their own
 * locks. From there on the leaf pins the journal, by the newest change: older ones of the same key are as good as that.
 *
 * Nothing is journalled by that: what comes into the leaf has been. Leaves that have no room are split. Where there is
 * no space for that others are written meanwhile; it is tried again, and so it is when a leaf can't be read, like the
 * writing of nodes (node_write.c), and when that doesn't help, nothing may be written any more.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mutant.h"
#include "btree/key_cache.h"

enum {
	BATCH_MAX = 128, /* entries put into leaves at a time */
	LEAF_MAX = 32,	 /* and locked at a time */
	RETRY_NS = 100 * 1000 * 1000,
	RETRY_SOON_NS = 1000 * 1000,
};

/* --- changing; the entry is locked for intent --- */

static void entry_set(struct cached_key *e, const struct bkey *k, const void *value)
{
	struct key_shard *shard = entry_shard_lock(e);

	assert(k->type == e->k.type && k->value_u64s <= e->value_max);
	e->k = *k;
	if (k->value_u64s)
		memcpy(e->value, value, bkey_value_bytes(k));
	e->version++;
	mutex_unlock(&shard->lock);
}

bool cached_key_may_be_dirty(const struct cached_key *e)
{
	const struct key_cache *kc = e->cache;

	return atomic_load_explicit(&kc->dirty_nr, memory_order_relaxed) < kc->dirty_max;
}

/* Move @e, which is dirty, to another list. The cache's lock is held. */
static void list_move(struct key_cache *kc, struct cached_key *e, enum key_list list)
{
	if (e->list != LIST_NONE)
		TAILQ_REMOVE(&kc->lists[e->list], e, dirty);
	kc->wanted_nr -= e->list == LIST_WANTED;
	kc->wanted_nr += list == LIST_WANTED;
	if (list != LIST_NONE)
		TAILQ_INSERT_TAIL(&kc->lists[list], e, dirty);
	e->list = list;
}

/* Journal reclaim wants the pin gone: only start that. */
static void pin_flush_key(struct journal *j, struct journal_pin *pin, uint64_t seq)
{
	struct cached_key *e = container_of(pin, struct cached_key, pin);
	struct key_cache *kc = e->cache;

	(void)j;
	(void)seq;
	mutex_lock(&kc->lock);
	if (e->list == LIST_DIRTY) {
		list_move(kc, e, LIST_WANTED);
		waitq_wake_all(&kc->work);
	}
	mutex_unlock(&kc->lock);
}

/* So much is dirty that some of it is to be written. */
static bool is_much(const struct key_cache *kc) { return atomic_load(&kc->dirty_nr) > kc->dirty_max / 2; }

void cached_key_set(struct cached_key *e, const struct bkey *k, const void *value, uint64_t seq)
{
	struct key_cache *kc = e->cache;
	struct journal *j = kc->trees->write_opts.journal;
	bool is_pinned = e->seq; /* by an older entry: they come in order, as who changes it does */

	entry_set(e, k, value);
	e->seq = max(e->seq, seq);
	if (!e->is_dirty) {
		e->is_dirty = true;
		cached_key_get_again(e);
		mutex_lock(&kc->lock);
		list_move(kc, e, LIST_DIRTY);
		atomic_fetch_add(&kc->dirty_nr, 1);
		if (is_much(kc))
			waitq_wake_all(&kc->work);
		mutex_unlock(&kc->lock);
	}
	if (j && seq && !is_pinned && !is_mutant(MUTANT_KEY_CACHE_PIN))
		journal_pin_add(j, &e->pin, seq, pin_flush_key);
}

/* The leaf has what @e says. */
static void entry_set_clean(struct cached_key *e)
{
	struct key_cache *kc = e->cache;

	if (!e->is_dirty)
		return;
	e->is_dirty = false;
	e->seq = 0;
	mutex_lock(&kc->lock);
	list_move(kc, e, LIST_NONE);
	atomic_fetch_sub(&kc->dirty_nr, 1);
	if (!kc->wanted_nr)
		waitq_wake_all(&kc->done);
	mutex_unlock(&kc->lock);
	if (kc->trees->write_opts.journal)
		journal_pin_drop(kc->trees->write_opts.journal, &e->pin);
	cached_key_put(e); /* the list's; the caller has one */
}

void cached_key_set_in_leaf(struct cached_key *e, const struct bkey *k, const void *value)
{
	if (k->type == e->k.type) {
		entry_set(e, k, value);
	} else {
		struct key_shard *shard = entry_shard_lock(e);

		entry_remove(shard, e);
		e->is_retired = true;
		mutex_unlock(&shard->lock);
		cached_key_put(e); /* the table's; the caller has one */
	}
	entry_set_clean(e);
}

/* --- putting keys into their leaves --- */

static int entry_cmp(const void *a, const void *b)
{
	const struct cached_key *x = *(struct cached_key *const *)a, *y = *(struct cached_key *const *)b;

	if (x->id.btree_id != y->id.btree_id)
		return x->id.btree_id < y->id.btree_id ? -1 : 1;
	return bpos_cmp(x->id.pos, y->id.pos);
}

/* How many of the entries, in order, lie in @leaf or before its end. */
static size_t leaf_entries(const struct btree_node *leaf, struct cached_key *const *entries, size_t nr)
{
	size_t n = 0;

	while (n < nr && entries[n]->id.btree_id == leaf->id.btree_id && bpos_le(entries[n]->id.pos, leaf->id.max_key))
		n++;
	return n;
}

/*
 * How many of the entries, which are locked for intent, fit into @leaf from the first on. What isn't longer than what
 * the leaf has always does. *@u64s: words of memory for them.
 */
static size_t leaf_room(const struct btrees *trees, const struct btree_node *leaf, struct cached_key *const *entries,
			size_t nr, uint32_t *u64s)
{
	uint32_t live_u64s = leaf->keys.live_u64s;
	size_t n = 0;

	*u64s = 0;
	for (; n < nr; n++) {
		const struct bkey *k = &entries[n]->k;
		uint32_t growth = entries[n]->is_dirty ? node_keys_growth(&leaf->keys, k) : 0;

		if (growth && live_u64s + growth > node_u64s_max(trees))
			break;
		live_u64s += growth;
		*u64s += (uint32_t)BKEY_U64S + k->value_u64s;
	}
	return n;
}

/* @leaf is locked for intent, and so are the entries. 0 or -ENOMEM. */
static int leaf_put(struct btrees *trees, struct btree_node *leaf, struct cached_key *const *entries, size_t nr,
		    uint32_t u64s)
{
	six_lock_write(&leaf->lock);
	int err = node_keys_reserve(&leaf->keys, (uint32_t)nr, u64s);
	for (size_t i = 0; !err && i < nr; i++) {
		const struct cached_key *e = entries[i];

		if (!e->is_dirty)
			continue;
		node_keys_set(&leaf->keys, &e->k, e->value);
		node_set_dirty(trees, leaf, e->seq);
	}
	cache_recharge(trees, leaf);
	six_unlock_write(&leaf->lock);
	return err;
}

/*
 * Put the first of the entries, in order, into the leaf where the first of them belongs. *@done: how many, which are
 * clean then. -ENOBUFS: there is no room for one.
 */
static int leaf_write(struct btrees *trees, struct btree_node *leaf, struct cached_key *const *entries, size_t nr,
		      bool may_exceed, size_t *done)
{
	size_t n = leaf_entries(leaf, entries, min(nr, (size_t)LEAF_MAX));
	uint32_t u64s;

	for (size_t i = 0; i < n; i++)
		six_lock_intent(&entries[i]->lock);
	size_t fits = leaf_room(trees, leaf, entries, n, &u64s);
	if (!fits && (may_exceed || leaf->keys.key_nr <= 1)) {
		fits = 1;
		u64s = (uint32_t)BKEY_U64S + entries[0]->k.value_u64s;
	}
	int err = fits ? leaf_put(trees, leaf, entries, fits, u64s) : -ENOBUFS;
	for (size_t i = 0; i < n; i++) {
		if (!err && i < fits)
			entry_set_clean(entries[i]);
		six_unlock_intent(&entries[i]->lock);
	}
	*done = err ? 0 : fits;
	return err;
}

/*
 * Put dirty entries, in order, into their leaves. Splits leaves; those for which there is no room (-ENOSPC), or that
 * can't be replaced just now (-EAGAIN), are passed over. 0 or an error, after which some may still be dirty.
 */
static int entries_write(struct btrees *trees, struct cached_key *const *entries, size_t nr)
{
	enum { SPLITS_MAX = 4 };
	unsigned splits = 0;
	int passed_over = 0;

	while (nr) {
		struct tree_place place;
		const struct cached_id *id = &entries[0]->id;
		int ret = tree_descend(trees, id->btree_id, 0, id->pos, &place);
		size_t done = 0;

		if (ret < 0)
			return ret;
		struct btree_node *leaf = place.node;
		six_unlock_read(tree_leaf_lock(trees, id->btree_id, leaf));
		if (!leaf)
			return -EIO; /* the key was there */
		six_lock_intent(&leaf->lock);
		ret = leaf->is_retired ? 0 : leaf_write(trees, leaf, entries, nr, splits == SPLITS_MAX, &done);
		six_unlock_intent(&leaf->lock);
		if (ret == -ENOBUFS) {
			splits++;
			ret = interior_replace(trees, leaf, INTERIOR_SPLIT, WATERMARK_RECLAIM, false);
		}
		if (ret == -ENOSPC || ret == -EAGAIN) {
			passed_over = passed_over == -ENOSPC ? passed_over : ret;
			ret = 0;
			done = leaf_entries(leaf, entries, nr);
		}
		if (done)
			splits = 0;
		node_put(leaf);
		if (ret)
			return ret;
		entries += done;
		nr -= done;
	}
	return passed_over;
}

/* --- the task --- */

/* What is to be written next, referenced: what is wanted, or what has been dirty longest. The lock is held. */
static size_t batch_pick(struct key_cache *kc, struct cached_key **entries)
{
	enum key_list list = kc->wanted_nr ? LIST_WANTED : LIST_DIRTY;
	struct cached_key *e;
	size_t nr = 0;

	if (list == LIST_DIRTY && !is_much(kc))
		return 0;
	TAILQ_FOREACH (e, &kc->lists[list], dirty) {
		if (nr == BATCH_MAX)
			break;
		cached_key_get_again(e);
		entries[nr++] = e;
	}
	return nr;
}

/* What couldn't be written lets others go first. */
static void batch_defer(struct key_cache *kc, struct cached_key **entries, size_t nr)
{
	mutex_lock(&kc->lock);
	for (size_t i = 0; i < nr; i++)
		if (entries[i]->list != LIST_NONE)
			list_move(kc, entries[i], entries[i]->list);
	mutex_unlock(&kc->lock);
}

/* 0, or how long to wait: there was no room, or no memory, for all of it, or leaves were being replaced. */
static uint64_t batch_write(struct key_cache *kc, struct cached_key **entries, size_t nr)
{
	struct btrees *trees = kc->trees;
	unsigned tries = 0;
	int err;

	qsort(entries, nr, sizeof(struct cached_key *), entry_cmp);
	do {
		err = entries_write(trees, entries, nr);
	} while (write_may_retry(trees, err, &tries));
	if (err)
		batch_defer(kc, entries, nr);
	for (size_t i = 0; i < nr; i++)
		cached_key_put(entries[i]);
	if (!err)
		kc->hope = (struct room_hope){ 0 };
	else if (err == -EAGAIN)
		return RETRY_SOON_NS;
	else if (err == -ENOMEM || (err == -ENOSPC && room_may_come(trees, &kc->hope)))
		return RETRY_NS;
	else
		write_failed(trees, err);
	return 0;
}

static void write_task(void *arg)
{
	struct key_cache *kc = arg;
	struct cached_key *entries[BATCH_MAX];

	task_rank_set(TASK_WRITE_BUFFER);
	mutex_lock(&kc->lock);
	while (!kc->is_stopping) {
		size_t nr = write_error(kc->trees) ? 0 : batch_pick(kc, entries);

		if (!nr) {
			job_waits(&kc->job, "few keys have changed, and the journal has space");
			waitq_wait(&kc->work, &kc->lock);
			continue;
		}
		kc->is_busy = true;
		job_works(&kc->job, "many keys have changed, or the journal wants it");
		mutex_unlock(&kc->lock);
		uint64_t wait_ns = batch_write(kc, entries, nr);
		if (wait_ns)
			sleep_ns(wait_ns);
		node_write_throttle(kc->trees, false);
		mutex_lock(&kc->lock);
		kc->is_busy = false;
		waitq_wake_all(&kc->done);
	}
	job_stops(&kc->job);
	mutex_unlock(&kc->lock);
}

bool key_cache_flush(struct btrees *trees)
{
	struct key_cache *kc = trees->key_cache;
	struct cached_key *e;

	if (!kc)
		return false;
	task_may_wait_for(TASK_WRITE_BUFFER);
	mutex_lock(&kc->lock);
	while ((e = TAILQ_FIRST(&kc->lists[LIST_DIRTY])))
		list_move(kc, e, LIST_WANTED);
	bool any = kc->wanted_nr || kc->is_busy;
	waitq_wake_all(&kc->work);
	while ((kc->wanted_nr || kc->is_busy) && !write_error(trees))
		waitq_wait(&kc->done, &kc->lock);
	mutex_unlock(&kc->lock);
	return any;
}

void key_cache_kick(struct btrees *trees)
{
	struct key_cache *kc = trees->key_cache;

	if (!kc)
		return;
	mutex_lock(&kc->lock);
	waitq_wake_all(&kc->done);
	mutex_unlock(&kc->lock);
}

int key_cache_start(struct btrees *trees)
{
	return task_start(&trees->key_cache->task, "btree-keys", write_task, trees->key_cache);
}

void key_cache_stop(struct btrees *trees)
{
	struct key_cache *kc = trees->key_cache;

	if (!kc || !kc->task)
		return;
	mutex_lock(&kc->lock);
	kc->is_stopping = true;
	waitq_wake_all(&kc->work);
	mutex_unlock(&kc->lock);
	task_join(kc->task);
	kc->task = NULL;
}

void key_cache_unpin(struct btrees *trees)
{
	struct key_cache *kc = trees->key_cache;
	struct cached_key *e;

	for (unsigned i = 0; kc && trees->write_opts.journal && i < LIST_NR; i++)
		TAILQ_FOREACH (e, &kc->lists[i], dirty)
			journal_pin_drop(trees->write_opts.journal, &e->pin);
}

const struct job *key_cache_job(const struct key_cache *kc) { return &kc->job; }
uint64_t key_cache_dirty_nr(const struct key_cache *kc) { return atomic_load(&kc->dirty_nr); }
