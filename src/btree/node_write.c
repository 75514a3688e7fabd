/*
 * Writing nodes back (02 §12.1).
 *
 * Dirty nodes are on a list, each with a reference that keeps it in the cache. One task, the *writer*, takes those that
 * are wanted: by journal reclaim through their pins, by btrees_flush_all(), or, the oldest first, because there are too
 * many. It works in batches:
 *
 * 1. *Collect*, under the node's write lock: what is dirty becomes a set in a buffer, and the node clean. The node's
 * pin becomes the set's.
 * 2. Make the journal durable up to the newest change in any of the sets.
 * 3. Write the sets.
 * 4. Commit the new ends of the logs: pointers in the parents, which become dirty by that, or roots.
 * 5. Drop the sets' pins.
 *
 * A node whose log has no room for the set, or that has lost a copy which a new one would have again, is replaced
 * (interior.c), which needs no set: all that was dirty goes into the new node. What can't be written now is deferred
 * until node_write_kick(): new nodes and their parents before their interior update is committed, and nodes to be
 * replaced while there is another interior update.
 *
 * All of that reads nodes: parents, and what the triggers of pointers change. Where one can't be read nothing is lost
 * yet, since what is dirty stays so and pinned; so it is tried again for some seconds, in case it passes. An error that
 * lasts is the end of writing: without its pins going the journal would fill up, and everybody would wait for good.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mutant.h"
#include "btree/internal.h"
#include "device/device.h"
#include "format/btree_node_write.h"

enum { BATCH_MAX = 16, DIRTY_MIN = 8, DEFER_NS = 100 * 1000 * 1000, THROTTLE_NS = DEFER_NS };
static const uint64_t room_wait_ns = 10000000000;
enum { RETRIES_MAX = 6, RETRY_NS = 50 * 1000 * 1000 }; /* the last one after 1.6 s, all in all 3.2 */

/* --- the list --- */

static void dirty_ring_add(struct write_state *w, struct btree_node *node)
{
	if (w->dirty) {
		node->dirty_next = w->dirty;
		node->dirty_prev = w->dirty->dirty_prev;
		node->dirty_prev->dirty_next = node->dirty_next->dirty_prev = node;
	} else {
		w->dirty = node->dirty_next = node->dirty_prev = node;
	}
	w->dirty_nr++;
}

static void dirty_ring_remove(struct write_state *w, struct btree_node *node)
{
	node->dirty_prev->dirty_next = node->dirty_next;
	node->dirty_next->dirty_prev = node->dirty_prev;
	if (w->dirty == node)
		w->dirty = w->dirty_nr > 1 ? node->dirty_next : NULL;
	w->dirty_nr--;
	w->wanted_nr -= (size_t)node->is_write_wanted + node->is_room_wanted;
	node->is_write_wanted = node->is_room_wanted = node->is_deferred = false;
}

void node_write_want(struct btree_node *node)
{
	struct write_state *w = node->trees->write;

	mutex_lock(&w->lock);
	if (node->dirty_next && !node->is_write_wanted) {
		node->is_write_wanted = true;
		w->wanted_nr++;
		waitq_wake_all(&w->work);
	}
	mutex_unlock(&w->lock);
}

/* Journal reclaim wants the node's pin gone. */
static void pin_flush_node(struct journal *j, struct journal_pin *pin, uint64_t seq)
{
	(void)j;
	(void)seq;
	node_write_want(container_of(pin, struct btree_node, pin));
}

/* Nothing to be asked for: whoever holds it is at work. */
static void pin_flush_nothing(struct journal *j, struct journal_pin *pin, uint64_t seq)
{
	(void)j;
	(void)pin;
	(void)seq;
}

void node_set_dirty(struct btrees *trees, struct btree_node *node, uint64_t seq)
{
	struct write_state *w = trees->write;

	node->seq_max = max(node->seq_max, seq);
	if (trees->write_opts.journal && seq)
		journal_pin_add(trees->write_opts.journal, &node->pin, seq, pin_flush_node);
	if (node->is_dirty)
		return;
	node->is_dirty = true;
	node_get_again(node);
	mutex_lock(&w->lock);
	dirty_ring_add(w, node);
	if (w->dirty_nr > w->dirty_max / 2)
		waitq_wake_all(&w->work);
	mutex_unlock(&w->lock);
}

/* Take @node, locked for write, off the list; the list's reference becomes the caller's. */
static void node_set_clean(struct btrees *trees, struct btree_node *node)
{
	struct write_state *w = trees->write;

	node->is_dirty = false;
	node->seq_max = 0;
	mutex_lock(&w->lock);
	dirty_ring_remove(w, node);
	node->dirty_next = node->dirty_prev = NULL;
	waitq_wake_all(&w->done);
	mutex_unlock(&w->lock);
}

void node_set_retired(struct btrees *trees, struct btree_node *node, struct journal_pin *pin)
{
	node->is_retired = true;
	if (trees->write_opts.journal)
		journal_pin_move(trees->write_opts.journal, pin, &node->pin, pin_flush_nothing);
	if (!node->is_dirty)
		return;
	node_set_clean(trees, node);
	node_put(node);
}

void node_write_kick(struct btrees *trees)
{
	struct write_state *w = trees->write;
	struct btree_node *node;

	mutex_lock(&w->lock);
	node = w->dirty;
	for (size_t i = 0; i < w->dirty_nr; i++, node = node->dirty_next)
		node->is_deferred = false;
	waitq_wake_all(&w->work);
	waitq_wake_all(&w->done);
	mutex_unlock(&w->lock);
}

void node_write_wait(struct btrees *trees, struct btree_node *node)
{
	struct write_state *w = trees->write;
	bool is_writing = true;

	task_may_wait_for(TASK_NODE_WRITER);
	while (is_writing && !write_error(trees)) {
		six_lock_read(&node->lock);
		is_writing = node->is_writing;
		six_unlock_read(&node->lock);
		if (!is_writing)
			break;
		/* It may be over by now; then there is nothing to wait for: ask again soon. */
		mutex_lock(&w->lock);
		if (w->writing_nr)
			waitq_wait_until(&w->done, &w->lock, clock_monotonic_ns() + 1000 * 1000);
		mutex_unlock(&w->lock);
	}
}

/*
 * How many of @dirty_nr nodes may have to be replaced when they are written. Each write takes a block of the log at
 * least, and the log is what a third of the node leaves: every fifth write or so of a node of 16 blocks, say.
 */
static uint64_t replaced_estimate(const struct btrees *trees, uint64_t dirty_nr)
{
	enum { FULL_AFTER = 8 }; /* in parts of the blocks of a node: so every second one, and some more */
	uint64_t blocks = trees->node_bytes / ((uint64_t)trees->opts.kctx->block_sectors * SECTOR_BYTES);

	return div_round_up_u64(dirty_nr * FULL_AFTER, max(blocks, (uint64_t)FULL_AFTER));
}

/*
 * How many nodes are dirty, or about to be: what is dirty in the key cache makes leaves dirty when it comes into them.
 * Mostly these are neighbours, of which a leaf has many; a quarter of what it could hold is reckoned with. The lock is
 * held.
 */
static uint64_t dirty_estimate(const struct btrees *trees)
{
	enum { CACHED_KEY_BYTES = 128 };
	uint64_t keys = trees->key_cache ? key_cache_dirty_nr(trees->key_cache) : 0;

	return trees->write->dirty_nr + div_round_up_u64(keys * CACHED_KEY_BYTES * 4, trees->node_bytes);
}

/*
 * For a while only: the writer may wait for space, and that for the caller. So this slows down who makes nodes dirty
 * faster than they can be written, and can't stop anybody for good.
 */
void node_write_throttle(struct btrees *trees, bool may_wait_for_space)
{
	const struct btree_backend *backend = &trees->opts.backend;
	struct write_state *w = trees->write;
	uint64_t deadline = 0;

	mutex_lock(&w->lock);
	while (w->dirty_nr > w->dirty_max && !atomic_load(&w->err) && !w->is_stopping) {
		if (!deadline)
			deadline = clock_monotonic_ns() + THROTTLE_NS;
		if (!waitq_wait_until(&w->done, &w->lock, deadline))
			break;
	}
	uint64_t nodes = replaced_estimate(trees, dirty_estimate(trees));
	mutex_unlock(&w->lock);
	cache_shrink(trees);
	if (may_wait_for_space && backend->room_wait)
		backend->room_wait(backend->ctx, nodes);
}

int write_error(struct btrees *trees) { return trees->write ? atomic_load(&trees->write->err) : 0; }

bool write_may_retry(struct btrees *trees, int err, unsigned *tries)
{
	if ((err != -EIO && err != -KILN_E_HOST_FULL) || *tries == RETRIES_MAX || write_error(trees))
		return false;
	sleep_ns((uint64_t)RETRY_NS << (*tries)++);
	cache_forget_failures(trees);
	return true;
}

int write_txn_run(struct btrees *trees, const struct btree_commit_opts *opts, btree_txn_fn fn, void *ctx)
{
	unsigned tries = 0;
	int err;

	do {
		err = btree_txn_run(trees, opts, fn, ctx);
	} while (write_may_retry(trees, err, &tries));
	return err;
}

/*
 * Whoever comes second waits until the first has had the journal refused: what it does next is to drop its pins, and an
 * entry that went out after that would say that what they held is in nodes.
 */
void write_failed(struct btrees *trees, int err)
{
	struct write_state *w = trees->write;
	int none = 0;

	bool is_first = atomic_compare_exchange_strong(&w->err, &none, err);
	if (is_first && trees->write_opts.failed)
		trees->write_opts.failed(trees->write_opts.ctx, err);
	if (is_first) {
		node_write_kick(trees);
		key_cache_kick(trees);
	}
	mutex_lock(&w->interior_lock);
	w->is_refused |= is_first;
	waitq_wake_all(&w->interior_changed);
	while (!w->is_refused)
		waitq_wait(&w->interior_changed, &w->interior_lock);
	mutex_unlock(&w->interior_lock);
}

/* --- one node --- */

struct set_write {
	struct btree_node *node; /* referenced */
	void *buf;
	size_t offset, bytes;
	uint64_t seq;
	unsigned failed;      /* replicas */
	struct btree_ptr ptr; /* with the new end of the log */
};

enum { COLLECTED_SET, COLLECTED_NOTHING, COLLECT_LATER, COLLECT_REPLACE, COLLECT_KEEP };

/* Bytes of the set that what is dirty makes. */
static size_t set_bytes(const struct btrees *trees, const struct node_keys *keys)
{
	return (size_t)round_up_u64(sizeof(struct btree_node_entry_disk) + (uint64_t)keys->dirty_u64s * 8,
				    (uint64_t)trees->opts.kctx->block_sectors * SECTOR_BYTES);
}

static bool must_replace(const struct btrees *trees, const struct btree_node *node, size_t bytes)
{
	const struct btree_backend *backend = &trees->opts.backend;

	if (trees->write_opts.must_rewrite_old && !node->is_new && !is_mutant(MUTANT_NODE_NONCES))
		return true;
	/* Once: that there are more devices doesn't say that there is room on them. */
	if (!node->is_new && backend->lacks_copies && backend->lacks_copies(backend->ctx, &node->id.ptr))
		return true;
	return (size_t)node->log_sectors * SECTOR_BYTES + bytes > trees->node_bytes - sizeof(uint64_t) ||
	       node->keys.live_u64s > node_u64s_max(trees);
}

/* Make a set of what is dirty. @node is locked for write. */
static int set_make(struct btrees *trees, struct btree_node *node, struct set_write *set)
{
	struct node_keys *keys = &node->keys;
	size_t block_bytes = (size_t)trees->opts.kctx->block_sectors * SECTOR_BYTES;
	struct bset_writer w;

	set->bytes = set_bytes(trees, keys);
	if (must_replace(trees, node, set->bytes))
		return COLLECT_REPLACE;
	set->buf = io_buffer_alloc(set->bytes);
	if (!set->buf)
		return COLLECT_LATER;
	set->offset = (size_t)node->log_sectors * SECTOR_BYTES;
	set->seq = max(node->seq_max, (uint64_t)1);
	bset_writer_begin(&w, set->buf, set->offset, set->bytes, &keys->format);
	for (uint32_t i = 0; i < keys->dirty_nr; i++)
		if (!bset_writer_copy(&w, &keys->format, keys->words + (keys->dirty[i] & ~NODE_KEY_FLAGS)))
			abort();
	bset_writer_finish(&w, &(struct bset_seal_opts){
				       .seq = node->id.ptr.seq,
				       .journal_seq = set->seq,
				       .version = trees->write_opts.version,
				       .csum_type = trees->write_opts.csum_type,
				       .key = trees->opts.key,
				       .block_bytes = (uint32_t)block_bytes,
			       });
	node_keys_clean(keys);
	keys->set_nr++;
	node->log_sectors += (uint32_t)(set->bytes / SECTOR_BYTES);
	set->ptr = node->id.ptr;
	set->ptr.sectors_written = (uint16_t)node->log_sectors;
	return COLLECTED_SET;
}

/*
 * Only room is wanted. There must be some for what is dirty, and in an interior node, whose children write theirs
 * first, for the new ends of their logs: half of the node, or as much as a new one has.
 */
static int node_collect_room(struct btrees *trees, struct btree_node *node)
{
	size_t bytes = set_bytes(trees, &node->keys);

	if (node->id.level && node->keys.set_nr > 1)
		bytes += trees->node_bytes / 2;
	return node->keys.dirty_nr && must_replace(trees, node, bytes) ? COLLECT_REPLACE : COLLECT_KEEP;
}

/* What is wanted of it; false: only room. */
static bool node_is_write_wanted(struct write_state *w, struct btree_node *node)
{
	mutex_lock(&w->lock);
	bool is_wanted = node->is_write_wanted || !node->is_room_wanted;
	mutex_unlock(&w->lock);
	return is_wanted;
}

static int node_collect(struct btrees *trees, struct btree_node *node, struct set_write *set)
{
	struct journal *j = trees->write_opts.journal;
	struct write_state *w = trees->write;
	int ret = COLLECTED_NOTHING;

	*set = (struct set_write){ .node = node };
	six_lock_intent(&node->lock);
	six_lock_write(&node->lock);
	if (node->is_retired || !node->is_dirty)
		goto out;
	if (node->write_blocks || node->is_unpublished) {
		ret = COLLECT_LATER;
		goto out;
	}
	if (!node_is_write_wanted(w, node)) {
		ret = node_collect_room(trees, node);
		merge_want(trees, node);
	} else if (node->keys.dirty_nr) {
		ret = set_make(trees, node, set);
	}
	if (ret == COLLECTED_SET) {
		node->is_writing = true;
		if (j)
			journal_pin_move(j, &node->write_pin, &node->pin, pin_flush_nothing);
		mutex_lock(&w->lock);
		w->writing_nr++;
		mutex_unlock(&w->lock);
	} else if (ret == COLLECTED_NOTHING && j) {
		/* What changed has been taken back. */
		journal_pin_drop(j, &node->pin);
	}
	if (ret == COLLECTED_SET || ret == COLLECTED_NOTHING) {
		node_set_clean(trees, node);
		node_put(node); /* the list's; the writer has one */
	}
out:
	six_unlock_write(&node->lock);
	six_unlock_intent(&node->lock);
	return ret;
}

static void node_defer(struct btrees *trees, struct btree_node *node)
{
	struct write_state *w = trees->write;

	mutex_lock(&w->lock);
	if (node->dirty_next)
		node->is_deferred = true;
	mutex_unlock(&w->lock);
}

/* Its log has the room that was wanted. */
static void node_keep(struct btrees *trees, struct btree_node *node)
{
	struct write_state *w = trees->write;

	mutex_lock(&w->lock);
	w->wanted_nr -= node->is_room_wanted;
	node->is_room_wanted = false;
	waitq_wake_all(&w->done);
	mutex_unlock(&w->lock);
	node_put(node);
}

/* --- the new ends of the logs --- */

struct set_batch {
	struct btrees *trees;
	struct set_write sets[BATCH_MAX];
	unsigned nr;
};

static int set_put(struct btree_txn *txn, const struct set_write *set)
{
	const struct btree_node *node = set->node;
	uint64_t value[BTREE_PTR_V2_VALUE_U64S_MAX];
	uint64_t old_value[BTREE_PTR_V2_VALUE_U64S_MAX];
	struct bkey k = { .p = node->id.max_key, .type = KEY_BTREE_PTR_V2 };
	struct bkey_ref old = { .k = k, .value = old_value };
	/* What it takes on disk changes only when a replica is given up. */
	unsigned flags = set->failed ? 0 : BTREE_PUT_NO_TRIGGER;

	k.value_u64s = (uint8_t)btree_ptr_encode(&set->ptr, value);
	old.k.value_u64s = (uint8_t)btree_ptr_encode(&node->id.ptr, old_value);
	/* Nodes that are being written aren't replaced, and so neither is the root above them. */
	if (btree_root_level(txn->trees, node->id.btree_id) == (int)node->id.level)
		return txn_put_root(txn, node->id.btree_id, node->id.level + 1, &old, &k, value, flags);
	return btree_txn_put_level(txn, node->id.btree_id, node->id.level + 1, &k, value, flags);
}

static int batch_txn(struct btree_txn *txn, void *ctx)
{
	const struct set_batch *b = ctx;
	int err = 0;

	for (unsigned i = 0; !err && i < b->nr; i++)
		err = set_put(txn, &b->sets[i]);
	return err;
}

static int batch_commit(struct set_batch *b)
{
	const struct btree_commit_opts opts = {
		.name = "btree_node_write",
		.watermark = WATERMARK_RECLAIM,
		.flags = BTREE_COMMIT_NO_SPLIT,
	};

	return write_txn_run(b->trees, &opts, batch_txn, b);
}

/* Replicas that lack the set are no good any more. */
static void ptrs_drop(struct btree_ptr *p, unsigned failed)
{
	unsigned nr = 0;

	for (unsigned i = 0; i < p->ptr_nr; i++)
		if (!(failed & 1u << i))
			p->ptrs[nr++] = p->ptrs[i];
	p->ptr_nr = nr;
}

static int batch_write(struct set_batch *b)
{
	struct btrees *trees = b->trees;
	const struct btree_backend *backend = &trees->opts.backend;
	uint64_t seq = 0;
	int err = write_error(trees);

	for (unsigned i = 0; i < b->nr; i++)
		seq = max(seq, b->sets[i].seq);
	if (!err && trees->write_opts.journal)
		err = journal_flush_seq(trees->write_opts.journal, seq);
	if (!err && is_mutant(MUTANT_SET_BEFORE_END))
		err = batch_commit(b);
	for (unsigned i = 0; !err && i < b->nr; i++) {
		struct set_write *set = &b->sets[i];

		err = backend->write(backend->ctx, &set->ptr, set->buf, set->offset, set->bytes, &set->failed);
		if (!err && set->failed)
			ptrs_drop(&set->ptr, set->failed);
		if (is_mutant(MUTANT_SET_PIN) && trees->write_opts.journal)
			journal_pin_drop(trees->write_opts.journal, &set->node->write_pin);
		stat_add(&trees->write->stats.sets_appended, 1);
		stat_add(&trees->write->stats.bytes_written, set->bytes);
	}
	return err || is_mutant(MUTANT_SET_BEFORE_END) ? err : batch_commit(b);
}

int node_replicas_drop(struct btrees *trees, struct btree_node *node, unsigned failed)
{
	struct set_batch batch = { .trees = trees, .nr = 1 };

	batch.sets[0] = (struct set_write){ .node = node, .failed = failed, .ptr = node->id.ptr };
	ptrs_drop(&batch.sets[0].ptr, failed);
	int err = batch_commit(&batch);
	if (err)
		return err;
	six_lock_intent(&node->lock);
	six_lock_write(&node->lock);
	cache_set_ptr(trees, node, &batch.sets[0].ptr);
	six_unlock_write(&node->lock);
	six_unlock_intent(&node->lock);
	return 0;
}

static void set_done(struct btrees *trees, struct set_write *set, int err)
{
	struct btree_node *node = set->node;
	struct write_state *w = trees->write;

	six_lock_intent(&node->lock);
	six_lock_write(&node->lock);
	if (!err)
		cache_set_ptr(trees, node, &set->ptr);
	node->is_writing = false;
	if (!err)
		merge_want(trees, node);
	six_unlock_write(&node->lock);
	six_unlock_intent(&node->lock);
	if (trees->write_opts.journal)
		journal_pin_drop(trees->write_opts.journal, &node->write_pin);
	io_buffer_free(set->buf);
	/* Only now: who waits for quiet waits for what is to be merged, too. */
	mutex_lock(&w->lock);
	w->writing_nr--;
	waitq_wake_all(&w->done);
	mutex_unlock(&w->lock);
	node_put(node);
}

/* --- the writer --- */

static bool node_is_due(const struct write_state *w, const struct btree_node *node)
{
	return !node->is_deferred && (node->is_write_wanted || node->is_room_wanted || w->dirty_nr > w->dirty_max / 2);
}

/* Take what is due, with references. The lock is held. */
static unsigned batch_pick(struct write_state *w, struct btree_node **nodes)
{
	struct btree_node *node = w->dirty;
	unsigned nr = 0;

	for (size_t i = 0; i < w->dirty_nr && nr < BATCH_MAX; i++, node = node->dirty_next) {
		if (!node_is_due(w, node))
			continue;
		node_get_again(node);
		nodes[nr++] = node;
	}
	return nr;
}

static uint64_t nodes_replaced_nr(const struct btrees *trees)
{
	const struct write_stats *s = &trees->write->stats;

	return atomic_load(&s->splits) + atomic_load(&s->merges) + atomic_load(&s->rewrites);
}

bool room_may_come(struct btrees *trees, struct room_hope *hope)
{
	uint64_t now = clock_monotonic_ns(),
		 done_nr = nodes_replaced_nr(trees) + atomic_load(&trees->write->stats.sets_appended);

	if (!hope->since_ns || done_nr != hope->done_nr)
		*hope = (struct room_hope){ .since_ns = now, .done_nr = done_nr };
	return now - hope->since_ns < room_wait_ns && !write_error(trees);
}

/* A node whose log is full. Where there is no room for another one now, others are written meanwhile. */
static void node_replace_full(struct btrees *trees, struct btree_node *node)
{
	unsigned tries = 0;
	int err;

	do {
		err = interior_replace(trees, node, INTERIOR_REWRITE, WATERMARK_RECLAIM, false);
	} while (write_may_retry(trees, err, &tries));
	if (!err)
		trees->write->hope = (struct room_hope){ 0 };
	if (err == -EAGAIN || err == -ENOMEM || (err == -ENOSPC && room_may_come(trees, &trees->write->hope)))
		node_defer(trees, node);
	else if (err)
		write_failed(trees, err);
	node_put(node);
}

static void batch_run(struct btrees *trees, struct btree_node **nodes, unsigned nr)
{
	struct set_batch batch = { .trees = trees };
	struct btree_node *full[BATCH_MAX];
	unsigned full_nr = 0;

	for (unsigned i = 0; i < nr; i++) {
		switch (node_collect(trees, nodes[i], &batch.sets[batch.nr])) {
		case COLLECTED_SET: batch.nr++; break;
		case COLLECT_REPLACE: full[full_nr++] = nodes[i]; break;
		case COLLECT_KEEP: node_keep(trees, nodes[i]); break;
		case COLLECT_LATER:
			node_defer(trees, nodes[i]);
			node_put(nodes[i]);
			break;
		default: node_put(nodes[i]);
		}
	}
	if (batch.nr) {
		int err = batch_write(&batch);

		if (err)
			write_failed(trees, err);
		for (unsigned i = 0; i < batch.nr; i++)
			set_done(trees, &batch.sets[i], err);
		node_write_kick(trees);
	}
	for (unsigned i = 0; i < full_nr; i++)
		node_replace_full(trees, full[i]);
	cache_shrink(trees);
}

/* With the lock held. What was deferred is tried again after a while, whether or not somebody says so. */
static void writer_sleep(struct write_state *w)
{
	struct btree_node *node = w->dirty;
	bool any = false;

	for (size_t i = 0; i < w->dirty_nr; i++, node = node->dirty_next)
		any |= node->is_deferred;
	job_waits(&w->writer_job, atomic_load(&w->err) ? "an error keeps everything from being written"
				  : any		       ? "there was no room for some nodes: again in a moment"
				  : w->dirty_nr	       ? "few nodes have changed, and the journal has space"
						       : "no node has changed");
	if (waitq_wait_until(&w->work, &w->lock, any ? clock_monotonic_ns() + DEFER_NS : UINT64_MAX))
		return;
	node = w->dirty;
	for (size_t i = 0; i < w->dirty_nr; i++, node = node->dirty_next)
		node->is_deferred = false;
}

static void writer_task(void *arg)
{
	struct btrees *trees = arg;
	struct write_state *w = trees->write;
	struct btree_node *nodes[BATCH_MAX];

	task_rank_set(TASK_NODE_WRITER);
	mutex_lock(&w->lock);
	while (!w->is_stopping) {
		unsigned nr = atomic_load(&w->err) ? 0 : batch_pick(w, nodes);

		if (!nr) {
			writer_sleep(w);
			continue;
		}
		w->writer_is_busy = true;
		job_works(&w->writer_job, w->dirty_nr > w->dirty_max / 2 ? "many nodes have changed"
									 : "the journal, or a full node, wants it");
		mutex_unlock(&w->lock);
		batch_run(trees, nodes, nr);
		mutex_lock(&w->lock);
		w->writer_is_busy = false;
		waitq_wake_all(&w->done);
	}
	job_stops(&w->writer_job);
	mutex_unlock(&w->lock);
}

/* The task that finishes interior updates. */
static void finisher_task(void *arg)
{
	struct btrees *trees = arg;
	struct write_state *w = trees->write;

	task_rank_set(TASK_INTERIOR);
	mutex_lock(&w->interior_lock);
	for (;;) {
		struct interior_update *u = w->updates;

		if (!u && w->finisher_is_stopping)
			break;
		if (!u) {
			job_waits(&w->finisher_job, "no node has been replaced");
			waitq_wait(&w->interior_changed, &w->interior_lock);
			continue;
		}
		job_works(&w->finisher_job, "nodes were split, merged or rewritten");
		w->updates = interior_update_next(u);
		if (!w->updates)
			w->updates_end = &w->updates;
		mutex_unlock(&w->interior_lock);
		interior_update_finish(trees, u);
		mutex_lock(&w->interior_lock);
	}
	job_stops(&w->finisher_job);
	mutex_unlock(&w->interior_lock);
}

/* --- starting, flushing, stopping --- */

static struct write_state *write_state_new(const struct btrees *trees)
{
	struct write_state *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	mutex_init(&w->lock);
	waitq_init(&w->work);
	waitq_init(&w->done);
	mutex_init(&w->gate_lock);
	waitq_init(&w->gate_opened);
	mutex_init(&w->interior_lock);
	waitq_init(&w->interior_changed);
	mutex_init(&w->watch_lock);
	w->updates_end = &w->updates;
	job_init(&w->writer_job, "node write-back", "writes nodes that have changed");
	job_init(&w->finisher_job, "interior updates", "makes nodes that replace others reachable");
	w->dirty_max = max((size_t)DIRTY_MIN, (size_t)(trees->opts.memory_bytes / 2 / trees->node_bytes));
	return w;
}

static void write_state_free(struct write_state *w)
{
	mutex_destroy(&w->watch_lock);
	waitq_destroy(&w->interior_changed);
	mutex_destroy(&w->interior_lock);
	waitq_destroy(&w->gate_opened);
	mutex_destroy(&w->gate_lock);
	waitq_destroy(&w->done);
	waitq_destroy(&w->work);
	mutex_destroy(&w->lock);
	free(w);
}

/* The writer first: it hands updates to the finisher. */
static void tasks_stop(struct write_state *w)
{
	mutex_lock(&w->lock);
	w->is_stopping = true;
	waitq_wake_all(&w->work);
	waitq_wake_all(&w->done);
	mutex_unlock(&w->lock);
	if (w->writer)
		task_join(w->writer);
	mutex_lock(&w->interior_lock);
	w->finisher_is_stopping = true;
	waitq_wake_all(&w->interior_changed);
	mutex_unlock(&w->interior_lock);
	if (w->finisher)
		task_join(w->finisher);
}

int btrees_start_write(struct btrees *trees, const struct btrees_write_opts *opts)
{
	struct write_state *w = write_state_new(trees);
	int err;

	if (!w)
		return -ENOMEM;
	trees->write_opts = *opts;
	trees->write = w;
	err = task_start(&w->writer, "btree-writer", writer_task, trees);
	if (!err && opts->journal)
		err = task_start(&w->finisher, "btree-interior", finisher_task, trees);
	if (!err)
		err = merger_open(trees, &trees->merger);
	if (!err && opts->journal)
		err = write_buffer_open(trees, &trees->write_buffer);
	if (!err && opts->cached_btrees)
		err = key_cache_open(trees, opts->cached_btrees);
	if (!err && trees->key_cache)
		err = key_cache_start(trees);
	if (err) {
		btrees_stop_write(trees);
		key_cache_close(trees);
	} else if (overlay_is_empty(&trees->overlay)) {
		key_cache_begin(trees);
	}
	return err;
}

void btrees_set_watch(struct btrees *trees, const struct btree_watch *watch) { trees->watch = watch; }

void btrees_stop_write(struct btrees *trees)
{
	struct write_state *w = trees->write;

	if (!w)
		return;
	/* The buffer's task may wait for interior updates, and the commits of these add to the buffer. */
	write_buffer_stop(trees->write_buffer);
	key_cache_stop(trees);
	merger_stop(trees->merger);
	tasks_stop(w);
	key_cache_unpin(trees);
	write_buffer_close(trees->write_buffer);
	trees->write_buffer = NULL;
	merger_close(trees->merger);
	trees->merger = NULL;
	while (w->dirty) {
		struct btree_node *node = w->dirty;

		if (trees->write_opts.journal)
			journal_pin_drop(trees->write_opts.journal, &node->pin);
		node->is_dirty = false;
		dirty_ring_remove(w, node);
		node_put(node);
	}
	write_state_free(w);
	trees->write = NULL;
	trees->write_opts = (struct btrees_write_opts){ 0 };
}

/*
 * Write every node that is dirty now, of one level, or give the dirty ones of all levels room; and wait for that and
 * for what is being written. What becomes dirty meanwhile waits, so that many changes go into one set. A node that is
 * being replaced is no longer dirty before its update is counted, so the writer must have come to rest too. Returns
 * whether there was any.
 */
static bool nodes_flush(struct btrees *trees, bool is_for_room, unsigned level)
{
	struct write_state *w = trees->write;

	task_may_wait_for(TASK_NODE_WRITER);
	mutex_lock(&w->lock);
	bool any = w->writing_nr || w->writer_is_busy;
	struct btree_node *node = w->dirty;
	for (size_t i = 0; i < w->dirty_nr; i++, node = node->dirty_next) {
		bool *wanted = is_for_room ? &node->is_room_wanted : &node->is_write_wanted;

		if (!is_for_room && node->id.level != level)
			continue;
		any = true;
		w->wanted_nr += !*wanted;
		*wanted = true;
	}
	waitq_wake_all(&w->work);
	while ((w->wanted_nr || w->writing_nr || w->writer_is_busy) && !atomic_load(&w->err))
		waitq_wait(&w->done, &w->lock);
	mutex_unlock(&w->lock);
	return any;
}

/* Wait until all interior updates are finished. Returns whether there was any. */
static bool interior_flush(struct btrees *trees)
{
	struct write_state *w = trees->write;

	task_may_wait_for(TASK_INTERIOR);
	mutex_lock(&w->interior_lock);
	bool any = w->update_nr;
	while (w->update_nr && !atomic_load(&w->err))
		waitq_wait(&w->interior_changed, &w->interior_lock);
	mutex_unlock(&w->interior_lock);
	return any;
}

void btree_rewrites_settle(struct btrees *trees)
{
	struct write_state *w = trees->write;

	task_may_wait_for(TASK_INTERIOR);
	mutex_lock(&w->interior_lock);
	uint64_t submitted = w->updates_submitted;
	while (w->updates_finished < submitted && !atomic_load(&w->err))
		waitq_wait(&w->interior_changed, &w->interior_lock);
	mutex_unlock(&w->interior_lock);
}

/*
 * Replace nodes until none that is dirty must be replaced to be written. That changes alloc keys, backpointers and
 * their like, so it makes others dirty; but no set is written meanwhile, so a node that has been replaced keeps its
 * room, and it ends when all that it changes has been. 0 or an error; *@any: there was something to do.
 */
static int room_make(struct btrees *trees, bool *any)
{
	const struct btree_backend *backend = &trees->opts.backend;
	struct write_state *w = trees->write;
	enum { ROUNDS_MAX = 32 }; /* others may be changing things too */
	uint64_t replaced_nr;
	unsigned round = 0;
	int err = 0;

	do {
		replaced_nr = nodes_replaced_nr(trees);
		mutex_lock(&w->lock);
		uint64_t nodes = dirty_estimate(trees);
		mutex_unlock(&w->lock);
		if (backend->room_wait)
			backend->room_wait(backend->ctx, nodes);
		*any |= key_cache_flush(trees);
		*any |= trees->write_buffer && write_buffer_key_nr(trees->write_buffer);
		err = trees->write_buffer ? btree_write_buffer_flush(trees) : 0;
		if (err)
			break;
		*any |= nodes_flush(trees, true, 0);
		*any |= merger_flush(trees->merger);
		*any |= interior_flush(trees);
		err = write_error(trees);
	} while (!err && nodes_replaced_nr(trees) != replaced_nr && ++round < ROUNDS_MAX);
	return err;
}

/*
 * A round is quiet when it found nothing to do, and nothing was committed meanwhile: the commit of an interior update
 * may come between the look at dirty nodes and that at updates.
 *
 * Writing makes nodes dirty: an append changes the parent, and where a log is full, the new node changes alloc keys,
 * backpointers and their like. Nodes of few blocks are full after few appends, so if these were written as they come,
 * there would always be a full one among them, and it would go on like that until space is gone. So all nodes get room
 * first, and are written then: from the leaves up, so that each is appended to once.
 */
int btrees_flush_all(struct btrees *trees)
{
	int err = 0;

	for (bool any = true; any && !err;) {
		uint64_t commits = atomic_load(&trees->write->stats.commits);

		any = false;
		err = room_make(trees, &any);
		for (unsigned level = 0; !err && level <= BTREE_LEVEL_MAX; level++)
			any |= nodes_flush(trees, false, level);
		any |= interior_flush(trees);
		any |= atomic_load(&trees->write->stats.commits) != commits;
		if (!err)
			err = write_error(trees);
	}
	return err;
}

static bool node_is_at(const struct btree_node *node, const struct extent_ptr *at)
{
	const struct btree_ptr *p = &node->id.ptr;

	for (unsigned i = 0; at && i < p->ptr_nr; i++)
		if (p->ptrs[i].dev == at->dev && p->ptrs[i].sector == at->sector)
			return true;
	return !at;
}

int btree_node_rewrite(struct btrees *trees, unsigned btree_id, unsigned level, struct bpos pos,
		       const struct extent_ptr *at)
{
	struct tree_place place;
	int ret = tree_descend(trees, btree_id, level, pos, &place);

	if (ret <= 0)
		return ret ? ret : -ENOENT;
	bool is_there = place.node && node_is_at(place.node, at);
	six_unlock_read(tree_leaf_lock(trees, btree_id, place.node));
	ret = is_there ? 0 : -ENOENT;
	if (!ret)
		ret = trees->write ? interior_journal_wait(trees, WATERMARK_COPYGC) : -EROFS;
	if (!ret)
		ret = interior_replace(trees, place.node, INTERIOR_REWRITE, WATERMARK_BTREE_COPYGC, true);
	node_put(place.node);
	return ret;
}

void btrees_jobs(struct btrees *trees, struct job_list *list)
{
	if (!trees->write)
		return;
	job_list_add(list, &trees->write->writer_job);
	job_list_add(list, &trees->write->finisher_job);
	if (trees->merger)
		job_list_add(list, merger_job(trees->merger));
	if (trees->write_buffer)
		job_list_add(list, write_buffer_job(trees->write_buffer));
	if (trees->key_cache)
		job_list_add(list, key_cache_job(trees->key_cache));
}

void btrees_write_stats(struct btrees *trees, struct btrees_write_stats *stats)
{
	struct write_state *w = trees->write;

	*stats = (struct btrees_write_stats){ 0 };
	if (!w)
		return;
	stats->commits = atomic_load(&w->stats.commits);
	stats->restarts = atomic_load(&w->stats.restarts);
	stats->splits = atomic_load(&w->stats.splits);
	stats->merges = atomic_load(&w->stats.merges);
	stats->rewrites = atomic_load(&w->stats.rewrites);
	stats->roots_raised = atomic_load(&w->stats.roots_raised);
	stats->nodes_written = atomic_load(&w->stats.nodes_written);
	stats->sets_appended = atomic_load(&w->stats.sets_appended);
	stats->bytes_written = atomic_load(&w->stats.bytes_written);
	mutex_lock(&w->lock);
	stats->nodes_dirty = w->dirty_nr;
	mutex_unlock(&w->lock);
	if (trees->write_buffer)
		stats->write_buffer_keys = write_buffer_key_nr(trees->write_buffer);
	if (trees->key_cache) {
		stats->cached_keys = key_cache_key_nr(trees->key_cache);
		stats->cached_keys_dirty = key_cache_dirty_nr(trees->key_cache);
	}
}
