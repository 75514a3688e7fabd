/*
 * Committing: lock what a transaction read and will change, validate, and put everything into the nodes and the journal
 * at once (steps 4 to 7 of txn.h).
 *
 * All locks are intent locks, of nodes that were only read too: intent is taken in the total order and so never in a
 * circle, and then write locks wait for readers alone, which hold one lock and wait for nothing. Nodes are found before
 * the first lock is taken, because finding takes locks of interior nodes. When a node turns out to have been replaced,
 * everything is let go, and what was read there is looked for again.
 *
 * What a commit can't have at once (room in a leaf, room in the journal) it waits for with no lock held (txn_need), and
 * starts again with locking. A transaction that runs alone (the gate) leaves the gate first, because what it waits for
 * may take commits of others; it is run again then.
 *
 * Commits with WATERMARK_RECLAIM don't look at the gate: others wait for them.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "btree/internal.h"

enum {
	NAME_U64S = 4,
	/* After so many splits for one commit, what it puts is too much for any leaf: it goes in all the same. */
	SPLITS_MAX = 4,
};

/* Private to this file: txn->need says what to wait for. */
#define COMMIT_AGAIN 1

uint32_t node_u64s_max(const struct btrees *trees)
{
	return (uint32_t)((trees->node_bytes - sizeof(struct btree_node_disk)) / 8) - 1;
}

/* --- the nodes of a commit --- */

/* Order of the places where leaves begin. Cached keys come behind them. */
static int leaf_begin_cmp(const struct txn_leaf *a, const struct txn_leaf *b)
{
	if ((a->level == LEVEL_CACHED) != (b->level == LEVEL_CACHED))
		return a->level == LEVEL_CACHED ? 1 : -1;
	if (a->btree_id != b->btree_id)
		return a->btree_id < b->btree_id ? -1 : 1;
	if (a->level != b->level)
		return a->level > b->level ? -1 : 1;
	return bpos_cmp(a->min, b->min);
}

/*
 * Order of locks; total, also where a node that has been replaced stands beside its successors. These have another seq;
 * nodes of one tree end at different places, also where it is damaged, because a descent goes to the first child that
 * reaches far enough.
 */
static int leaf_cmp(const struct txn_leaf *a, const struct txn_leaf *b)
{
	int c = leaf_begin_cmp(a, b);

	if (c || a->node == b->node)
		return c;
	if (a->seq != b->seq)
		return a->seq < b->seq ? -1 : 1;
	c = bpos_cmp(a->max, b->max);
	assert(c);
	return c;
}

/* Index of the first leaf behind @l, or of @l if it is there already. @is_past_begin: behind all that begin where it
 * does. */
static size_t leaf_bound(const struct btree_txn *txn, const struct txn_leaf *l, bool is_past_begin)
{
	size_t begin = 0, nr = txn->leaf_nr;

	while (nr) {
		size_t half = nr / 2;
		const struct txn_leaf *other = &txn->leaves[begin + half];

		if (is_past_begin ? leaf_begin_cmp(other, l) <= 0 : leaf_cmp(other, l) < 0) {
			begin += half + 1;
			nr -= half + 1;
		} else {
			nr = half;
		}
	}
	return begin;
}

/* The leaf for a place: the last one that begins at or before it, if it reaches as far. */
static struct txn_leaf *leaf_find(const struct btree_txn *txn, unsigned btree_id, unsigned level, struct bpos pos)
{
	const struct txn_leaf place = { .btree_id = btree_id, .level = level, .min = pos };
	size_t i = leaf_bound(txn, &place, true);

	if (!i)
		return NULL;
	struct txn_leaf *l = &txn->leaves[i - 1];
	return l->btree_id == btree_id && l->level == level && bpos_le(pos, l->max) ? l : NULL;
}

/* The leaf for a place, or the empty one of a btree without root. */
static struct txn_leaf *leaf_find_or_empty(const struct btree_txn *txn, unsigned btree_id, unsigned level,
					   struct bpos pos)
{
	struct txn_leaf *l = leaf_find(txn, btree_id, level, pos);

	return l || level ? l : leaf_find(txn, btree_id, LEVEL_ROOT, pos);
}

/* Add what isn't there yet, with references. */
static int leaf_insert(struct btree_txn *txn, struct txn_leaf l)
{
	size_t i = leaf_bound(txn, &l, false);

	if (i < txn->leaf_nr && !leaf_cmp(&txn->leaves[i], &l))
		return 0;
	if (array_grow(&txn->leaves, &txn->leaf_max, txn->leaf_nr + 1, sizeof(*txn->leaves)))
		return -ENOMEM;
	memmove(txn->leaves + i + 1, txn->leaves + i, (txn->leaf_nr - i) * sizeof(*txn->leaves));
	if (l.node)
		node_get_again(l.node);
	if (l.cached)
		cached_key_get_again(l.cached);
	txn->leaves[i] = l;
	txn->leaf_nr++;
	return 0;
}

static int leaf_add_cached(struct btree_txn *txn, struct cached_key *e)
{
	struct cached_id id = cached_key_id(e);

	return leaf_insert(txn, (struct txn_leaf){
					.btree_id = id.btree_id,
					.level = LEVEL_CACHED,
					.cached = e,
					.lock = cached_key_lock(e),
					.min = id.pos,
					.max = id.pos,
				});
}

/* Add a node, or (NULL) the root's lock. */
static int leaf_add(struct btree_txn *txn, unsigned btree_id, struct btree_node *node)
{
	struct txn_leaf l = {
		.btree_id = btree_id,
		.level = node ? node->id.level : (unsigned)LEVEL_ROOT,
		.node = node,
		.lock = node ? &node->lock : &txn->trees->roots[btree_id].lock,
		.min = node ? node->id.ptr.min_key : POS_MIN,
		.max = node ? node->id.max_key : SPOS_MAX,
		.seq = node ? node->id.ptr.seq : 0,
	};

	return leaf_insert(txn, l);
}

/* Find the nodes of a range, from the root. */
static int leaves_find(struct btree_txn *txn, unsigned btree_id, unsigned level, struct bpos pos, struct bpos end)
{
	for (;;) {
		struct tree_place place;
		int ret = tree_descend(txn->trees, btree_id, level, pos, &place);

		if (ret < 0)
			return ret;
		if (!ret)
			return -EIO; /* a level that isn't there any more: trees don't shrink */
		six_unlock_read(tree_leaf_lock(txn->trees, btree_id, place.node));
		int err = leaf_add(txn, btree_id, place.node);
		node_put(place.node);
		if (err)
			return err;
		if (!place.node || bpos_le(end, place.max))
			return 0;
		pos = bpos_successor(place.max);
	}
}

static void leaves_put(struct btree_txn *txn)
{
	for (size_t i = 0; i < txn->leaf_nr; i++) {
		node_put(txn->leaves[i].node);
		cached_key_put(txn->leaves[i].cached);
	}
	txn->leaf_nr = 0;
}

static bool update_has_node(const struct txn_update *u) { return !u->is_in_memory && !u->is_buffered; }

static struct txn_leaf *update_leaf(const struct btree_txn *txn, const struct txn_update *u)
{
	return u->u.is_root ? leaf_find(txn, u->u.btree_id, LEVEL_ROOT, SPOS_MAX)
			    : leaf_find(txn, u->u.btree_id, u->u.level, u->u.new.k.p);
}

static struct txn_leaf *update_cached(const struct btree_txn *txn, const struct txn_update *u)
{
	if (u->u.level)
		return NULL;
	return leaf_find(txn, u->u.btree_id, LEVEL_CACHED, u->u.new.k.p);
}

/*
 * Does @u go to a cached key alone? What it replaces was read, so if it is in the key cache when the commit is valid,
 * it is among what was read there, and locked.
 */
static bool update_is_cached(const struct btree_txn *txn, const struct txn_update *u)
{
	const struct txn_leaf *l = update_cached(txn, u);

	return l && cached_key_may_be_dirty(l->cached) && u->u.old.k.type == u->u.new.k.type;
}

static int update_find(struct btree_txn *txn, struct txn_update *u)
{
	const struct btree_update *b = &u->u;

	if (b->is_root)
		return leaf_add(txn, b->btree_id, NULL);
	u->is_cached = update_is_cached(txn, u);
	if (u->is_cached || leaf_find_or_empty(txn, b->btree_id, b->level, b->new.k.p))
		return 0;
	return leaves_find(txn, b->btree_id, b->level, b->new.k.p, b->new.k.p);
}

/* Find all nodes of the commit. What is read and put has been looked up before, so that this is mostly bookkeeping. */
static int commit_find(struct btree_txn *txn)
{
	int err = 0;

	txn->has_cache = key_cache_is_on(txn->trees);
	for (size_t i = 0; !err && i < txn->read_nr; i++) {
		struct txn_read *r = &txn->reads[i];

		err = r->cached	    ? leaf_add_cached(txn, r->cached)
		      : r->is_stale ? leaves_find(txn, r->btree_id, r->level, r->min, r->max)
				    : leaf_add(txn, r->btree_id, r->node);
	}
	for (size_t i = 0; !err && i < txn->update_nr; i++) {
		if (update_has_node(txn->updates[i]))
			err = update_find(txn, txn->updates[i]);
	}
	if (!err && txn->extra_node)
		err = leaf_add(txn, txn->extra_node->id.btree_id, txn->extra_node);
	return err;
}

/* --- locks --- */

static void commit_unlock(struct btree_txn *txn)
{
	for (size_t i = txn->locked_nr; i; i--) {
		struct txn_leaf *l = &txn->leaves[i - 1];

		if (l->is_write_locked)
			six_unlock_write(l->lock);
		l->is_write_locked = false;
	}
	while (txn->locked_nr)
		six_unlock_intent(txn->leaves[--txn->locked_nr].lock);
}

/* What was read in @node, which has been replaced, must be found again. */
static void reads_set_stale(struct btree_txn *txn, unsigned btree_id, const struct btree_node *node)
{
	for (size_t i = 0; i < txn->read_nr; i++) {
		struct txn_read *r = &txn->reads[i];

		if (r->is_stale || r->cached || r->btree_id != btree_id || r->node != node)
			continue;
		node_put(r->node);
		r->node = NULL;
		r->is_stale = true;
	}
}

/* Was what was taken for the empty leaf of a btree used as that? */
static bool reads_have_empty(const struct btree_txn *txn, unsigned btree_id)
{
	for (size_t i = 0; i < txn->read_nr; i++)
		if (txn->reads[i].btree_id == btree_id && !txn->reads[i].node && !txn->reads[i].cached &&
		    !txn->reads[i].is_stale)
			return true;
	return false;
}

/* All intent locks. False: some node has been replaced. */
static bool commit_lock(struct btree_txn *txn)
{
	bool is_good = true;

	for (; is_good && txn->locked_nr < txn->leaf_nr; txn->locked_nr++) {
		struct txn_leaf *l = &txn->leaves[txn->locked_nr];

		six_lock_intent(l->lock);
		if (l->cached)
			continue;
		if (l->node ? l->node->is_retired
			    : txn->trees->roots[l->btree_id].exists && reads_have_empty(txn, l->btree_id)) {
			reads_set_stale(txn, l->btree_id, l->node);
			is_good = false;
		}
	}
	return is_good;
}

static void commit_lock_write(struct btree_txn *txn)
{
	for (size_t i = 0; i < txn->leaf_nr; i++) {
		struct txn_leaf *l = &txn->leaves[i];

		if (!l->is_changed)
			continue;
		six_lock_write(l->lock);
		l->is_write_locked = true;
	}
}

/* --- what must hold --- */

static bool read_is_valid(const struct btree_txn *txn, const struct txn_read *r)
{
	uint64_t hash = TXN_HASH_BEGIN;
	struct bpos pos = r->min;

	if (r->cached) {
		const struct txn_leaf *l = leaf_find(txn, r->btree_id, LEVEL_CACHED, r->min);

		return l && l->cached == r->cached && cached_key_version(l->cached) == r->seq;
	}
	/* It was noted before keys were cached, or how doesn't say enough. */
	if (r->is_of_cached != key_cache_has(txn->trees, r->btree_id, r->level))
		return false;
	if (!r->is_stale) {
		const struct txn_leaf *l = leaf_find_or_empty(txn, r->btree_id, r->level, r->min);

		if (l && l->node == r->node && six_seq(l->lock) == r->seq)
			return true;
	}
	for (;;) {
		const struct txn_leaf *l = leaf_find_or_empty(txn, r->btree_id, r->level, pos);

		if (!l)
			return false;
		struct bpos to = bpos_lt(l->max, r->max) ? l->max : r->max;
		hash = txn_range_hash(txn->trees, r->btree_id, r->level, l->node, pos, to, hash);
		if (bpos_eq(to, r->max))
			return hash == r->hash;
		pos = bpos_successor(to);
	}
}

static bool commit_is_valid(const struct btree_txn *txn)
{
	for (size_t i = 0; i < txn->leaf_nr; i++)
		if (txn->leaves[i].cached && cached_key_is_retired(txn->leaves[i].cached))
			return false;
	for (size_t i = 0; i < txn->read_nr; i++)
		if (!read_is_valid(txn, &txn->reads[i]))
			return false;
	return true;
}

static void need_node(struct btree_txn *txn, struct btree_node *node)
{
	node_get_again(node);
	txn->need.kind = NEED_SPLIT;
	txn->need.node = node;
}

/* Count what goes into each leaf. COMMIT_AGAIN: one has none yet, or has been missed. */
static int leaves_count(struct btree_txn *txn)
{
	for (size_t i = 0; i < txn->leaf_nr; i++) {
		struct txn_leaf *l = &txn->leaves[i];

		l->key_nr = l->u64s = 0;
		l->is_changed = l->node && l->node == txn->extra_node;
	}
	for (size_t i = 0; i < txn->update_nr; i++) {
		struct txn_update *u = txn->updates[i];

		if (!update_has_node(u))
			continue;
		struct txn_leaf *l = update_cached(txn, u);
		if (l)
			l->u64s = u->u.new.k.value_u64s;
		if (u->is_cached)
			continue;
		l = update_leaf(txn, u);
		if (!l) {
			bool has_root = txn->trees->roots[u->u.btree_id].exists;

			txn->need.kind = has_root ? NEED_NOTHING : NEED_ROOT;
			txn->need.btree_id = u->u.btree_id;
			return has_root ? -KILN_E_RESTART : COMMIT_AGAIN;
		}
		l->is_changed = true;
		l->key_nr++;
		l->u64s += (unsigned)BKEY_U64S + u->u.new.k.value_u64s;
	}
	return 0;
}

/* Room in the leaves' memory and, unless it may be exceeded, on disk. */
static int commit_room(struct btree_txn *txn, bool may_split)
{
	uint32_t u64s_max = node_u64s_max(txn->trees);
	int err = leaves_count(txn);

	for (size_t i = 0; !err && i < txn->leaf_nr; i++) {
		struct txn_leaf *l = &txn->leaves[i];
		struct node_keys *keys = l->node ? &l->node->keys : NULL;

		if (l->cached)
			err = cached_key_reserve(l->cached, l->u64s);
		if (!keys || !l->key_nr)
			continue;
		if (may_split && keys->live_u64s + l->u64s > u64s_max && keys->key_nr > 1) {
			need_node(txn, l->node);
			return COMMIT_AGAIN;
		}
		if (node_keys_has_room(keys, l->key_nr, l->u64s))
			continue;
		six_lock_write(l->lock);
		err = node_keys_reserve(keys, l->key_nr, l->u64s);
		cache_recharge(txn->trees, l->node);
		six_unlock_write(l->lock);
	}
	return err;
}

/* --- the journal --- */

static bool update_logs_old(const struct btree_txn *txn, const struct txn_update *u)
{
	return txn->trees->write_opts.has_txn_names && !u->u.is_root && !u->is_buffered &&
	       !(u->is_in_memory && u->u.level);
}

static bool commit_is_journalled(const struct btree_txn *txn)
{
	return txn->trees->write_opts.journal && !(txn->opts->flags & BTREE_COMMIT_NO_JOURNAL);
}

static unsigned commit_journal_u64s(const struct btree_txn *txn)
{
	unsigned u64s = txn->trees->write_opts.has_txn_names ? 1 + NAME_U64S : 0;

	for (size_t i = 0; i < txn->update_nr; i++) {
		const struct txn_update *u = txn->updates[i];

		u64s += journal_key_u64s(&u->u.new.k);
		if (update_logs_old(txn, u))
			u64s += journal_key_u64s(&u->u.old.k);
	}
	return u64s;
}

static void journal_add_update(const struct btree_txn *txn, struct journal_res *res, const struct txn_update *u)
{
	struct journal *j = txn->trees->write_opts.journal;
	const struct btree_update *b = &u->u;

	if (update_logs_old(txn, u))
		journal_res_add_key(j, res, JSET_ENTRY_OVERWRITE, b->btree_id, b->level, &b->old.k, b->old.value);
	if (b->is_root)
		journal_res_add_key(j, res, JSET_ENTRY_BTREE_ROOT, b->btree_id, b->level - 1, &b->new.k, b->new.value);
	else
		journal_res_add_key(j, res, JSET_ENTRY_BTREE_KEYS, b->btree_id, b->level, &b->new.k, b->new.value);
}

/* The sub-entries in the order of 03 §9. */
static void commit_journal_add(const struct btree_txn *txn, struct journal_res *res)
{
	struct journal *j = txn->trees->write_opts.journal;

	if (txn->trees->write_opts.has_txn_names) {
		char *name = journal_res_add(j, res, JSET_ENTRY_LOG, 0, 0, NAME_U64S);

		memset(name, 0, NAME_U64S * 8);
		if (txn->opts->name)
			memcpy(name, txn->opts->name, strnlen(txn->opts->name, NAME_U64S * 8));
	}
	for (size_t i = 0; i < txn->update_nr; i++)
		if (!txn->updates[i]->u.is_root && !txn->updates[i]->is_buffered)
			journal_add_update(txn, res, txn->updates[i]);
	for (size_t i = 0; i < txn->update_nr; i++)
		if (txn->updates[i]->u.is_root)
			journal_add_update(txn, res, txn->updates[i]);
	for (size_t i = 0; i < txn->update_nr; i++)
		if (txn->updates[i]->is_buffered)
			journal_add_update(txn, res, txn->updates[i]);
}

/* --- putting it in --- */

static void root_set(struct btree_txn *txn, const struct btree_update *u)
{
	struct tree_root *root = &txn->trees->roots[u->btree_id];

	/* It has been validated when it was put. */
	if (node_ptr_decode(txn->trees, u->btree_id, u->level - 1, u->new, &root->ptr, NULL))
		abort();
	root->exists = true;
}

static void update_apply(struct btree_txn *txn, struct txn_update *u, uint64_t seq, uint32_t order)
{
	struct btrees *trees = txn->trees;
	const struct btree_update *b = &u->u;

	if (u->is_in_memory)
		return;
	if (u->is_buffered) {
		write_buffer_add(trees, b->btree_id, &b->new.k, b->new.value, seq, order);
		return;
	}
	if (b->is_root) {
		root_set(txn, b);
		return;
	}
	struct txn_leaf *cached = update_cached(txn, u);
	if (u->is_cached) {
		cached_key_set(cached->cached, &b->new.k, b->new.value, seq);
		return;
	}
	if (cached)
		cached_key_set_in_leaf(cached->cached, &b->new.k, b->new.value);
	struct txn_leaf *l = leaf_find(txn, b->btree_id, b->level, b->new.k.p);
	node_keys_set(&l->node->keys, &b->new.k, b->new.value);
	overlay_set_overwritten(&trees->overlay, b->btree_id, b->level, b->new.k.p);
	node_set_dirty(trees, l->node, seq);
	/* More than fits on disk: be split soon. */
	if (l->node->keys.live_u64s > node_u64s_max(trees))
		node_write_want(l->node);
}

static void commit_watch(struct btree_txn *txn, uint64_t seq)
{
	const struct btree_watch *watch = txn->trees->watch;

	if (!watch)
		return;
	mutex_lock(&txn->trees->write->watch_lock);
	for (size_t i = 0; i < txn->update_nr; i++)
		watch->committed(watch->ctx, seq, &txn->updates[i]->u);
	mutex_unlock(&txn->trees->write->watch_lock);
}

/* All write locks are held. @res is NULL without journal. */
static void commit_apply(struct btree_txn *txn, struct journal_res *res)
{
	const struct btree_hooks *hooks = &txn->trees->write_opts.hooks;
	uint64_t seq = res ? res->seq : 0;

	for (size_t i = 0; hooks->commit && i < txn->update_nr; i++)
		hooks->commit(hooks->ctx, txn, &txn->updates[i]->u, seq);
	for (size_t i = 0; i < txn->update_nr; i++)
		update_apply(txn, txn->updates[i], seq, res ? res->at + (uint32_t)i : (uint32_t)i);
	if (res)
		commit_journal_add(txn, res);
	commit_watch(txn, seq);
	if (hooks->committed)
		hooks->committed(hooks->ctx, txn, seq);
	if (txn->committed)
		txn->committed(txn->committed_ctx, seq);
	if (txn->opts->journal_seq)
		*txn->opts->journal_seq = seq;
}

/* Of what it takes: journal, nodes, room in the write buffer. */
static enum watermark watermark_of(const struct btree_txn *txn)
{
	return txn->opts->flags & BTREE_COMMIT_MAKES_ROOM ? WATERMARK_RECLAIM : txn->opts->watermark;
}

/*
 * Intent locks are held, everything is valid, and there is room: the journal, and the change. The reservation comes
 * last, since nothing may wait while it is held.
 */
static int commit_write(struct btree_txn *txn)
{
	struct journal *j = txn->trees->write_opts.journal;
	struct journal_res res;

	commit_lock_write(txn);
	/* Keys are cached from now on, after replay: readers may have made entries of what is going to change. */
	if (txn->has_cache != key_cache_is_on(txn->trees))
		return -KILN_E_RESTART;
	if (!commit_is_journalled(txn)) {
		commit_apply(txn, NULL);
		return 0;
	}
	unsigned u64s = commit_journal_u64s(txn);
	int err = journal_res_get(j, &res, u64s, watermark_of(txn), JOURNAL_RES_TRY);
	if (err == -EAGAIN) {
		txn->need.kind = NEED_JOURNAL;
		txn->need.u64s = u64s;
		return COMMIT_AGAIN;
	}
	txn->is_too_big = err == -E2BIG;
	if (err)
		return err;
	commit_apply(txn, &res);
	journal_res_put(j, &res);
	return 0;
}

/* --- the whole --- */

static bool gate_is_passed_by(const struct btree_txn *txn)
{
	return !txn->trees->write || txn->is_exclusive || txn->opts->watermark >= WATERMARK_RECLAIM;
}

static void gate_enter_shared(struct write_state *w)
{
	mutex_lock(&w->gate_lock);
	while (w->gate_is_exclusive || w->gate_exclusive_waiting)
		waitq_wait(&w->gate_opened, &w->gate_lock);
	w->gate_shared_nr++;
	mutex_unlock(&w->gate_lock);
}

static void gate_leave_shared(struct write_state *w)
{
	mutex_lock(&w->gate_lock);
	if (!--w->gate_shared_nr)
		waitq_wake_all(&w->gate_opened);
	mutex_unlock(&w->gate_lock);
}

/* From the first lock to the last unlock. 0, COMMIT_AGAIN, or an error. */
static int commit_locked(struct btree_txn *txn, bool may_split)
{
	bool has_changes = txn->update_nr || txn->extra_node;
	int err = 0;

	if (!commit_lock(txn))
		err = COMMIT_AGAIN;
	else if (!commit_is_valid(txn))
		err = -KILN_E_RESTART;
	else if (has_changes)
		err = commit_room(txn, may_split);
	if (!err && has_changes)
		err = commit_write(txn);
	else if (!err && txn->committed)
		txn->committed(txn->committed_ctx, 0);
	commit_unlock(txn);
	return err;
}

static int commit_try(struct btree_txn *txn, bool may_split)
{
	bool has_gate = !gate_is_passed_by(txn);
	int err = commit_find(txn);

	if (!err) {
		if (has_gate)
			gate_enter_shared(txn->trees->write);
		err = commit_locked(txn, may_split);
		if (has_gate)
			gate_leave_shared(txn->trees->write);
	}
	leaves_put(txn);
	return err;
}

/*
 * Room in the write buffer for the updates that go there. Who runs alone doesn't wait for it: applying the buffer can
 * take nodes, and so commits that free buckets, which don't pass the gate.
 */
static int commit_buffer_reserve(struct btree_txn *txn, size_t *key_nr, size_t *u64s)
{
	*key_nr = *u64s = 0;
	for (size_t i = 0; i < txn->update_nr; i++) {
		const struct txn_update *u = txn->updates[i];

		if (!u->is_buffered)
			continue;
		++*key_nr;
		*u64s += (size_t)BKEY_U64S + u->u.new.k.value_u64s;
	}
	enum watermark watermark = txn->is_exclusive ? WATERMARK_RECLAIM : watermark_of(txn);
	return *key_nr ? write_buffer_reserve(txn->trees, *key_nr, *u64s, watermark) : 0;
}

int txn_commit(struct btree_txn *txn)
{
	bool may_split = !(txn->opts->flags & BTREE_COMMIT_NO_SPLIT);
	unsigned splits = 0;
	size_t buffered_nr, buffered_u64s;

	if (!txn->update_nr && txn->read_nr <= 1 && !txn->committed)
		return 0;
	if (txn->update_nr && write_error(txn->trees))
		return -EROFS;
	int err = commit_buffer_reserve(txn, &buffered_nr, &buffered_u64s);
	if (err)
		return err;
	while ((err = commit_try(txn, may_split && splits < SPLITS_MAX)) == COMMIT_AGAIN) {
		splits += txn->need.kind == NEED_SPLIT;
		if (txn->is_exclusive && txn->need.kind != NEED_NOTHING) {
			err = -KILN_E_RESTART;
			break;
		}
		err = txn_need_wait(txn);
		if (err)
			break;
	}
	if (err && buffered_nr)
		write_buffer_unreserve(txn->trees, buffered_nr, buffered_u64s);
	if (!err && txn->update_nr)
		stat_add(&txn->trees->write->stats.commits, 1);
	return err;
}

int txn_need_wait(struct btree_txn *txn)
{
	struct btrees *trees = txn->trees;
	struct txn_need need = txn->need;
	int err = 0;

	txn->need = (struct txn_need){ 0 };
	switch (need.kind) {
	case NEED_NOTHING: break;
	case NEED_SPLIT:
		err = interior_replace(trees, need.node, INTERIOR_SPLIT, watermark_of(txn), true);
		node_put(need.node);
		break;
	case NEED_ROOT: err = interior_root_create(trees, need.btree_id, watermark_of(txn)); break;
	case NEED_JOURNAL:
		err = journal_res_wait(trees->write_opts.journal, need.u64s, watermark_of(txn));
		txn->is_too_big = err == -E2BIG;
		break;
	}
	return err;
}

/* --- keys that are in the journal already --- */

/* Put the keys from the first on that lie in the leaf of it. *@done of them. 0, COMMIT_AGAIN or an error. */
static int apply_leaf(struct btrees *trees, const struct btree_applied_key *keys, size_t nr, struct btree_node *node,
		      bool may_split, size_t *done)
{
	struct node_keys *node_keys = &node->keys;
	uint32_t u64s = 0;
	size_t n = 0;

	for (; n < nr && keys[n].btree_id == node->id.btree_id && keys[n].level == node->id.level &&
	       bpos_le(keys[n].k.k.p, node->id.max_key);
	     n++) {
		uint32_t key_u64s = (uint32_t)BKEY_U64S + keys[n].k.k.value_u64s;

		if (node_keys->live_u64s + u64s + key_u64s > node_u64s_max(trees) &&
		    (n || (may_split && node_keys->key_nr > 1)))
			break;
		u64s += key_u64s;
	}
	if (!n)
		return COMMIT_AGAIN;
	six_lock_write(&node->lock);
	int err = node_keys_reserve(node_keys, (uint32_t)n, u64s);
	for (size_t i = 0; !err && i < n; i++) {
		/* Only under the lock is it known that no commit has put something newer there. */
		if (keys[i].overlay && atomic_load(&keys[i].overlay->is_overwritten))
			continue;
		node_keys_set(node_keys, &keys[i].k.k, keys[i].k.value);
		overlay_set_overwritten(&trees->overlay, keys[i].btree_id, keys[i].level, keys[i].k.k.p);
		node_set_dirty(trees, node, keys[i].seq);
	}
	cache_recharge(trees, node);
	six_unlock_write(&node->lock);
	*done = n;
	return err;
}

int btree_apply(struct btrees *trees, const struct btree_applied_key *keys, size_t nr)
{
	unsigned splits = 0;

	while (nr) {
		struct tree_place place;
		int ret = tree_descend(trees, keys->btree_id, keys->level, keys->k.k.p, &place);
		size_t done = 0;

		if (ret < 0)
			return ret;
		if (!ret) { /* keys above the root mean nothing (03 §8.2), nor do they when it rises */
			overlay_set_overwritten(&trees->overlay, keys->btree_id, keys->level, keys->k.k.p);
			keys++, nr--;
			continue;
		}
		struct btree_node *node = place.node;
		six_unlock_read(tree_leaf_lock(trees, keys->btree_id, node));
		if (!node) {
			ret = interior_root_create(trees, keys->btree_id, WATERMARK_RECLAIM);
			if (ret)
				return ret;
			continue;
		}
		six_lock_intent(&node->lock);
		bool may_split = !keys->level && splits < SPLITS_MAX;
		ret = node->is_retired ? 0 : apply_leaf(trees, keys, nr, node, may_split, &done);
		six_unlock_intent(&node->lock);
		if (ret == COMMIT_AGAIN) {
			splits++;
			ret = interior_replace(trees, node, INTERIOR_SPLIT, WATERMARK_RECLAIM, true);
		} else if (done) {
			splits = 0;
		}
		node_put(node);
		if (ret)
			return ret;
		keys += done;
		nr -= done;
	}
	return 0;
}
