/*
 * Transactions: running them, what they read and what they put. Committing is commit.c.
 *
 * A transaction's memory is an arena that is emptied for every run. Updates are kept sorted in the order in which
 * commits lock and journal them: (btree, level descending, position).
 *
 * What is read is remembered as ranges of positions, with a hash of all the keys that the btree has there. As long as
 * the node's lock has the same sequence number, a range is known to be unchanged; else commit makes the hash again and
 * compares. So a change of other keys of the node doesn't disturb, and neither does a change there and back.
 *
 * Every update reads what it replaces, like a get, unless the btree is write-buffered. So a commit knows the old keys.
 *
 * What has been got at a place is remembered, too: mostly what a transaction got it puts, and triggers ask for it
 * again. Would it be another thing by now, the commit couldn't be valid anyway. And who reads in a leaf again doesn't
 * look for it from the root.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "btree/internal.h"

/* --- memory --- */

enum { CHUNK_BYTES = 8 << 10 };

struct txn_chunk {
	struct txn_chunk *next;
	size_t used, size;
	uint64_t bytes[];
};

void *btree_txn_alloc(struct btree_txn *txn, size_t bytes)
{
	struct txn_chunk *chunk = txn->chunks;

	bytes = (size_t)round_up_u64(bytes, 16);
	if (!chunk || chunk->size - chunk->used < bytes) {
		size_t size = max(bytes, (size_t)CHUNK_BYTES);

		chunk = malloc(sizeof(*chunk) + size);
		if (!chunk)
			return NULL;
		*chunk = (struct txn_chunk){ .next = txn->chunks, .size = size };
		txn->chunks = chunk;
	}
	void *mem = (uint8_t *)chunk->bytes + chunk->used;
	chunk->used += bytes;
	return mem;
}

/* Keep one chunk for the next run. */
static void txn_memory_reset(struct btree_txn *txn, bool is_over)
{
	while (txn->chunks && (is_over || txn->chunks->next)) {
		struct txn_chunk *chunk = txn->chunks;

		txn->chunks = chunk->next;
		free(chunk);
	}
	if (txn->chunks)
		txn->chunks->used = 0;
}

static const void *value_copy(struct btree_txn *txn, const struct bkey *k, const void *value)
{
	void *copy = btree_txn_alloc(txn, max(bkey_value_bytes(k), (size_t)1));

	if (copy && k->value_u64s)
		memcpy(copy, value, bkey_value_bytes(k));
	return copy;
}

struct btrees *btree_txn_trees(const struct btree_txn *txn) { return txn->trees; }
const struct btree_commit_opts *btree_txn_opts(const struct btree_txn *txn) { return txn->opts; }
unsigned btree_txn_run_nr(const struct btree_txn *txn) { return txn->run_nr; }

unsigned btree_txn_batch(struct btree_txn *txn, unsigned nr)
{
	unsigned may = max(nr >> txn->batch_shift, 1u);

	txn->has_batch |= may > 1;
	return may;
}
void *btree_txn_hook_data(const struct btree_txn *txn) { return txn->hook_data; }

/* --- what was read --- */

static uint64_t hash_word(uint64_t h, uint64_t w)
{
	/* The finalizer of splitmix64. */
	h = (h ^ w) + 0x9e3779b97f4a7c15ull;
	h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
	h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
	return h ^ (h >> 31);
}

static uint64_t hash_key(uint64_t h, struct bkey_ref k)
{
	h = hash_word(h, k.k.p.inode);
	h = hash_word(h, k.k.p.offset);
	h = hash_word(h, (uint64_t)k.k.p.snapshot << 32 | k.k.size);
	h = hash_word(h, k.k.version.lo);
	h = hash_word(h, (uint64_t)k.k.version.hi << 16 | k.k.type << 8 | k.k.value_u64s);
	for (unsigned i = 0; i < k.k.value_u64s; i++)
		h = hash_word(h, le64_load((const uint8_t *)k.value + (size_t)i * 8));
	return h;
}

/* That there is such a key. */
static uint64_t hash_place(uint64_t h, const struct bkey *k)
{
	h = hash_word(h, k->p.inode);
	h = hash_word(h, k->p.offset);
	return hash_word(h, (uint64_t)k->p.snapshot << 32 | k->type);
}

uint64_t txn_range_hash(const struct btrees *trees, unsigned btree_id, unsigned level, const struct btree_node *leaf,
			struct bpos min_pos, struct bpos max_pos, uint64_t hash)
{
	struct keys_walk w = keys_walk_begin(trees, btree_id, level, leaf ? &leaf->keys : NULL, min_pos, max_pos);
	bool is_cached = key_cache_has(trees, btree_id, level);
	struct bkey_ref k;

	while (keys_walk_next(&w, &k)) {
		if (w.is_lost)
			k.k.value_u64s = 0;
		hash = is_cached ? hash_place(hash, &k.k) : hash_key(hash, k);
	}
	return hash;
}

/* Enough to catch a read right after another one, and the same one again. */
enum { READS_BACK = 8 };

static struct txn_read *read_new(struct btree_txn *txn)
{
	if (array_grow(&txn->reads, &txn->read_max, txn->read_nr + 1, sizeof(*txn->reads)))
		return NULL;
	return &txn->reads[txn->read_nr++];
}

int txn_cached_note(struct btree_txn *txn, unsigned btree_id, struct bpos pos, struct cached_read read)
{
	struct txn_read *r = read_new(txn);

	if (!r) {
		cached_key_put(read.key);
		return -ENOMEM;
	}
	*r = (struct txn_read){ .btree_id = btree_id, .min = pos, .max = pos, .cached = read.key, .seq = read.version };
	return 0;
}

int txn_read_note(struct btree_txn *txn, const struct btree_iter *it, struct bpos min_pos, struct bpos max_pos,
		  const struct bkey_ref *only)
{
	unsigned btree_id = it->btree_id, level = it->level;
	bool is_of_cached = key_cache_has(txn->trees, btree_id, level);
	struct btree_node *leaf = it->leaf;
	struct six_lock *lock = tree_leaf_lock(txn->trees, btree_id, leaf);
	uint32_t seq = six_seq(lock);

	for (size_t i = txn->read_nr; i && i + READS_BACK > txn->read_nr; i--) {
		struct txn_read *r = &txn->reads[i - 1];

		if (r->btree_id != btree_id || r->level != level || r->node != leaf || r->cached || r->seq != seq ||
		    r->is_stale || r->is_of_cached != is_of_cached)
			continue;
		if (bpos_le(r->min, min_pos) && bpos_le(max_pos, r->max))
			return 0;
		if (!bpos_eq(r->max, SPOS_MAX) && bpos_eq(bpos_successor(r->max), min_pos)) {
			r->hash = txn_range_hash(txn->trees, btree_id, level, leaf, min_pos, max_pos, r->hash);
			r->max = max_pos;
			return 0;
		}
	}
	struct txn_read *r = read_new(txn);
	if (!r)
		return -ENOMEM;
	if (leaf)
		node_get_again(leaf);
	*r = (struct txn_read){
		.btree_id = btree_id,
		.level = level,
		.min = min_pos,
		.max = max_pos,
		.leaf_min = it->leaf_min,
		.leaf_max = it->leaf_max,
		.node = leaf,
		.is_of_cached = is_of_cached,
		.seq = seq,
		.hash = only && !is_of_cached
				? hash_key(TXN_HASH_BEGIN, *only)
				: txn_range_hash(txn->trees, btree_id, level, leaf, min_pos, max_pos, TXN_HASH_BEGIN),
	};
	return 0;
}

bool txn_leaf_known(const struct btree_txn *txn, unsigned btree_id, unsigned level, struct bpos pos,
		    struct tree_place *place)
{
	for (size_t i = txn->read_nr; i && i + READS_BACK > txn->read_nr; i--) {
		const struct txn_read *r = &txn->reads[i - 1];

		if (!r->node || r->btree_id != btree_id || r->level != level || bpos_lt(pos, r->leaf_min) ||
		    bpos_lt(r->leaf_max, pos))
			continue;
		six_lock_read(&r->node->lock);
		if (r->node->is_retired) {
			six_unlock_read(&r->node->lock);
			return false;
		}
		node_get_again(r->node);
		*place = (struct tree_place){ .node = r->node, .min = r->leaf_min, .max = r->leaf_max };
		return true;
	}
	return false;
}

void btree_txn_iter_open(struct btree_iter *it, struct btree_txn *txn, unsigned btree_id, struct bpos pos,
			 unsigned flags, uint32_t snapshot)
{
	btree_iter_open(it, txn->trees, btree_id, pos, flags, snapshot);
	it->txn = txn;
}

void txn_iter_open_level(struct btree_iter *it, struct btree_txn *txn, unsigned btree_id, unsigned level,
			 struct bpos pos)
{
	btree_iter_open_level(it, txn->trees, btree_id, level, pos);
	it->txn = txn;
}

/* What the iterator finds up to @end, copied. */
static int txn_peek(struct btree_txn *txn, struct btree_iter *it, struct bpos end, struct bkey_ref *k)
{
	it->end = end;
	int found = btree_iter_peek(it, k);

	btree_iter_close(it);
	if (found <= 0)
		return found;
	k->value = value_copy(txn, &k->k, k->value);
	return k->value ? 1 : -ENOMEM;
}

/* The key cache has it: 1 with a copy, 0 no, or an error. */
static int txn_get_cached(struct btree_txn *txn, unsigned btree_id, struct bpos pos, struct bkey_ref *k)
{
	uint64_t value[BKEY_VALUE_U64S_MAX];
	struct cached_read read;

	if (!key_cache_read(txn->trees, btree_id, pos, k, value, &read))
		return 0;
	if (txn_cached_note(txn, btree_id, pos, read))
		return -ENOMEM;
	k->value = value_copy(txn, &k->k, value);
	return k->value ? 1 : -ENOMEM;
}

/* What is at a place below the transaction's own puts, not remembered yet, copied: 1, 0 or an error. */
static int txn_look(struct btree_txn *txn, unsigned btree_id, unsigned level, struct bpos pos, bool is_visible,
		    struct bkey_ref *k)
{
	struct btree_iter it;
	int found = level ? 0 : txn_get_cached(txn, btree_id, pos, k);

	if (found)
		return found;
	if (is_visible) {
		btree_txn_iter_open(&it, txn, btree_id, pos, 0, pos.snapshot);
	} else {
		txn_iter_open_level(&it, txn, btree_id, level, pos);
	}
	it.is_below_puts = true;
	return txn_peek(txn, &it, pos, k);
}

/* What is at a place below the transaction's own puts, copied: 1, 0 or an error. */
static int txn_get_below(struct btree_txn *txn, unsigned btree_id, unsigned level, struct bpos pos, bool is_visible,
			 struct bkey_ref *k)
{
	for (size_t i = 0; i < min(txn->get_nr, (size_t)TXN_GETS_NR); i++) {
		const struct txn_get *g = &txn->gets[i];
		/* What is visible may be what is there. */
		bool is_same = g->is_visible == is_visible || (g->is_visible && g->found && bpos_eq(g->k.k.p, pos));

		if (g->btree_id == btree_id && g->level == level && is_same && bpos_eq(g->pos, pos)) {
			*k = g->k;
			return g->found;
		}
	}
	int found = txn_look(txn, btree_id, level, pos, is_visible, k);

	if (found < 0)
		return found;
	txn->gets[txn->get_nr++ % TXN_GETS_NR] = (struct txn_get){ btree_id, level, pos, is_visible, found, *k };
	return found;
}

/* What is visible at a place, with the transaction's own puts. */
static int txn_get_visible(struct btree_txn *txn, unsigned btree_id, struct bpos pos, struct bkey_ref *k)
{
	struct btree_iter it;

	btree_txn_iter_open(&it, txn, btree_id, pos, 0, pos.snapshot);
	return txn_peek(txn, &it, pos, k);
}

int btree_txn_get(struct btree_txn *txn, unsigned btree_id, struct bpos pos, unsigned flags, struct bkey_ref *k)
{
	bool is_visible = (flags & BTREE_GET_VISIBLE) && (btree_flags(btree_id) & BTREE_HAS_SNAPSHOTS);
	bool is_below_puts = flags & BTREE_GET_BELOW_PUTS;
	const struct btree_update *own = is_below_puts ? NULL : txn_update_find(txn, btree_id, 0, pos);

	if (!is_visible && own && bpos_eq(own->new.k.p, pos)) {
		*k = own->new;
		return k->k.type != KEY_DELETED;
	}
	/* Own puts of other versions, in snapshots from its own on. */
	if (is_visible && own && own->new.k.p.inode == pos.inode && own->new.k.p.offset == pos.offset)
		return txn_get_visible(txn, btree_id, pos, k);
	return txn_get_below(txn, btree_id, 0, pos, is_visible, k);
}

/* --- what is put --- */

static int update_cmp(const struct btree_update *u, unsigned btree_id, unsigned level, struct bpos pos)
{
	if (u->btree_id != btree_id)
		return u->btree_id < btree_id ? -1 : 1;
	if (u->level != level)
		return u->level > level ? -1 : 1;
	return bpos_cmp(u->new.k.p, pos);
}

/* Index of the first update at or after a place. */
static size_t update_lower_bound(const struct btree_txn *txn, unsigned btree_id, unsigned level, struct bpos pos)
{
	size_t begin = 0, nr = txn->update_nr;

	while (nr) {
		size_t half = nr / 2;

		if (update_cmp(&txn->updates[begin + half]->u, btree_id, level, pos) < 0) {
			begin += half + 1;
			nr -= half + 1;
		} else {
			nr = half;
		}
	}
	return begin;
}

const struct btree_update *txn_update_find(const struct btree_txn *txn, unsigned btree_id, unsigned level,
					   struct bpos pos)
{
	size_t i = update_lower_bound(txn, btree_id, level, pos);

	if (i == txn->update_nr)
		return NULL;
	const struct btree_update *u = &txn->updates[i]->u;
	return u->btree_id == btree_id && u->level == level ? u : NULL;
}

static int key_check(struct btree_txn *txn, unsigned btree_id, unsigned level, struct bkey_ref k)
{
	const struct btrees_opts *opts = &txn->trees->opts;
	struct fault fault = { 0 };
	int err = key_validate(k, btree_id, level, opts->kctx, &fault);

	if (err)
		report_fault(opts->reports, REPORT_FATAL, &fault, NULL, "key to be written",
			     txn->opts->name ? txn->opts->name : "transaction");
	return err ? -KILN_E_INVALID : 0;
}

static struct txn_update *update_new(struct btree_txn *txn, size_t at)
{
	struct txn_update *u = btree_txn_alloc(txn, sizeof(*u));

	if (!u || array_grow(&txn->updates, &txn->update_max, txn->update_nr + 1, sizeof(struct txn_update *)))
		return NULL;
	*u = (struct txn_update){ 0 };
	memmove(txn->updates + at + 1, txn->updates + at, (txn->update_nr - at) * sizeof(struct txn_update *));
	txn->updates[at] = u;
	txn->update_nr++;
	return u;
}

/* The update at a place, new or not, with @k as what is put there. */
static int update_put(struct btree_txn *txn, unsigned btree_id, unsigned level, const struct bkey *k, const void *value,
		      unsigned flags, struct txn_update **update)
{
	struct bkey key = *k;

	if (!txn->trees->write || write_error(txn->trees))
		return -EROFS;
	if (key.type == KEY_DELETED)
		key = (struct bkey){ .p = k->p, .type = KEY_DELETED };
	int err = key_check(txn, btree_id, level, (struct bkey_ref){ key, value });
	if (err)
		return err;

	const void *copy = value_copy(txn, &key, value);
	if (!copy)
		return -ENOMEM;
	size_t at = update_lower_bound(txn, btree_id, level, key.p);
	bool is_there = at < txn->update_nr && !update_cmp(&txn->updates[at]->u, btree_id, level, key.p);
	struct txn_update *u = is_there ? txn->updates[at] : update_new(txn, at);

	if (!u)
		return -ENOMEM;
	/* What its trigger has done is not undone: the next one goes on from there. */
	if (is_there && u->is_triggered)
		u->trigger_old = u->u.new;
	u->is_triggered = false;
	u->u.btree_id = btree_id;
	u->u.level = level;
	u->u.flags = flags;
	u->u.new = (struct bkey_ref){ key, copy };
	u->u.new_value = (void *)(uintptr_t)copy;
	if (!is_there) {
		u->u.old.k = (struct bkey){ .p = key.p, .type = KEY_DELETED };
		u->trigger_old = u->u.old;
		u->is_buffered =
			!level && txn->trees->write_buffer && (btree_flags(btree_id) & BTREE_IS_WRITE_BUFFERED);
	}
	*update = u;
	return 0;
}

int btree_txn_put_level(struct btree_txn *txn, unsigned btree_id, unsigned level, const struct bkey *k,
			const void *value, unsigned flags)
{
	struct txn_update *u;

	return update_put(txn, btree_id, level, k, value, flags, &u);
}

int btree_txn_put(struct btree_txn *txn, unsigned btree_id, const struct bkey *k, const void *value, unsigned flags)
{
	return btree_txn_put_level(txn, btree_id, 0, k, value, flags);
}

static int update_set_old(struct btree_txn *txn, struct txn_update *u, const struct bkey_ref *old)
{
	u->u.old = *old;
	u->u.old.value = value_copy(txn, &old->k, old->value);
	u->trigger_old = u->u.old;
	return u->u.old.value ? 0 : -ENOMEM;
}

int txn_put_root(struct btree_txn *txn, unsigned btree_id, unsigned level, const struct bkey_ref *old,
		 const struct bkey *k, const void *value, unsigned flags)
{
	struct txn_update *u;
	int err = update_put(txn, btree_id, level, k, value, flags, &u);

	if (err)
		return err;
	u->u.is_root = true;
	u->has_old = true;
	return update_set_old(txn, u, old);
}

int txn_put_in_memory(struct btree_txn *txn, unsigned btree_id, unsigned level, bool is_root,
		      const struct bkey_ref *old, const struct bkey_ref *new)
{
	struct txn_update *u;
	int err = update_put(txn, btree_id, level, &new->k, new->value, 0, &u);

	if (err)
		return err;
	u->u.is_root = is_root;
	u->is_in_memory = u->has_old = true;
	return old ? update_set_old(txn, u, old) : 0;
}

void btree_txn_at_commit(struct btree_txn *txn, void (*fn)(void *ctx, uint64_t seq), void *ctx)
{
	txn->committed = fn;
	txn->committed_ctx = ctx;
}

/* --- triggers --- */

/* Read what @u replaces. */
static int update_read_old(struct btree_txn *txn, struct txn_update *u)
{
	struct bkey_ref old;

	if (u->has_old || u->is_buffered)
		return 0;
	/* Its own put is what a transaction sees: so look below it. */
	int found = txn_get_below(txn, u->u.btree_id, u->u.level, u->u.new.k.p, false, &old);

	if (found < 0)
		return found;
	u->has_old = true;
	if (found)
		u->u.old = u->trigger_old = old;
	return 0;
}

static bool update_is_of_phase(const struct txn_update *u, bool is_alloc)
{
	return !u->is_triggered && (u->u.btree_id == BTREE_ALLOC && !u->u.level) == is_alloc;
}

static int update_trigger(struct btree_txn *txn, struct txn_update *u)
{
	const struct btree_hooks *hooks = &txn->trees->write_opts.hooks;
	struct btree_update told = u->u;

	u->is_triggered = true;
	if (!hooks->trigger || u->is_buffered || (u->u.flags & BTREE_PUT_NO_TRIGGER) ||
	    (txn->opts->flags & BTREE_COMMIT_NO_TRIGGERS))
		return 0;
	told.old = u->trigger_old;
	return hooks->trigger(hooks->ctx, txn, &told);
}

/*
 * One pass over the updates that weren't triggered yet: those that replace or delete something if @has_old, else the
 * others. Triggers insert into the array, so the place is found again by key. Returns the number, or an error.
 */
static int triggers_pass(struct btree_txn *txn, bool is_alloc, bool has_old)
{
	int nr = 0;

	for (size_t i = 0; i < txn->update_nr; i++) {
		struct txn_update *u = txn->updates[i];

		if (!update_is_of_phase(u, is_alloc))
			continue;
		int err = update_read_old(txn, u);
		if (err)
			return err;
		if ((u->trigger_old.k.type != KEY_DELETED) != has_old)
			continue;
		nr++;
		err = update_trigger(txn, u);
		if (err)
			return err;
		while (txn->updates[i] != u)
			i++;
	}
	return nr;
}

static int triggers_run(struct btree_txn *txn)
{
	static const struct {
		bool is_alloc, has_old;
	} passes[] = { { false, true }, { false, false }, { true, true }, { true, false } };

	for (unsigned i = 0; i < ARRAY_NR(passes);) {
		int nr = triggers_pass(txn, passes[i].is_alloc, passes[i].has_old);

		if (nr < 0)
			return nr;
		i = nr ? 0 : i + 1;
	}
	return 0;
}

/* --- running --- */

static void gate_enter_exclusive(struct write_state *w)
{
	mutex_lock(&w->gate_lock);
	w->gate_exclusive_waiting++;
	while (w->gate_is_exclusive || w->gate_shared_nr)
		waitq_wait(&w->gate_opened, &w->gate_lock);
	w->gate_exclusive_waiting--;
	w->gate_is_exclusive = true;
	mutex_unlock(&w->gate_lock);
}

static void gate_leave_exclusive(struct write_state *w)
{
	mutex_lock(&w->gate_lock);
	w->gate_is_exclusive = false;
	waitq_wake_all(&w->gate_opened);
	mutex_unlock(&w->gate_lock);
}

static void txn_reset(struct btree_txn *txn)
{
	for (size_t i = 0; i < txn->read_nr; i++) {
		node_put(txn->reads[i].node);
		cached_key_put(txn->reads[i].cached);
	}
	txn->read_nr = txn->update_nr = txn->get_nr = 0;
	txn->committed = NULL;
	txn->extra_node = NULL;
	txn_memory_reset(txn, false);
}

static int txn_begin(struct btree_txn *txn)
{
	size_t hook_bytes = txn->trees->write_opts.hooks.txn_bytes;

	txn_reset(txn);
	txn->hook_data = NULL;
	if (!hook_bytes)
		return 0;
	txn->hook_data = btree_txn_alloc(txn, hook_bytes);
	if (!txn->hook_data)
		return -ENOMEM;
	memset(txn->hook_data, 0, hook_bytes);
	return 0;
}

/*
 * A run failed. That counts only if all it read was there at one time: else it may have failed because of what it
 * seemed to see, and must run again. So commit what it read, without what it put. The error, or -KILN_E_RESTART.
 */
static int failure_check(struct btree_txn *txn, int err)
{
	if (err == -ENOMEM || err == -KILN_E_RESTART)
		return err;
	txn->update_nr = 0;
	txn->committed = NULL;
	txn->extra_node = NULL;
	return txn_commit(txn) == -KILN_E_RESTART ? -KILN_E_RESTART : err;
}

static int txn_run_once(struct btree_txn *txn, btree_txn_fn fn, void *ctx)
{
	const struct btree_hooks *hooks = &txn->trees->write_opts.hooks;
	int err = txn_begin(txn);

	if (err)
		return err;
	err = min(fn(txn, ctx), 0);
	if (!err)
		err = triggers_run(txn);
	if (!err && hooks->prepare && txn->update_nr)
		err = hooks->prepare(hooks->ctx, txn);
	err = err ? failure_check(txn, err) : txn_commit(txn);
	if (err && hooks->aborted)
		hooks->aborted(hooks->ctx, txn);
	return err;
}

/* No entry of the journal can hold what this run put: may it be run again, with half as much? */
static bool batch_halve(struct btree_txn *txn)
{
	bool may_run = txn->is_too_big && txn->has_batch;

	txn->batch_shift += may_run;
	txn->is_too_big = txn->has_batch = false;
	return may_run;
}

int btree_txn_run(struct btrees *trees, const struct btree_commit_opts *opts, btree_txn_fn fn, void *ctx)
{
	struct txn_get gets[TXN_GETS_NR];
	struct btree_txn txn = { .trees = trees, .opts = opts, .gets = gets };
	struct write_state *w = trees->write;
	int err;

	for (unsigned run = 0;; run++) {
		/* Commits that others wait for don't pass the gate: see commit.c. */
		txn.run_nr = run;
		bool is_exclusive = w && run >= BTREE_TXN_OPTIMISTIC_MAX && opts->watermark < WATERMARK_RECLAIM;

		txn.is_exclusive = is_exclusive;
		if (is_exclusive)
			gate_enter_exclusive(w);
		err = txn_run_once(&txn, fn, ctx);
		if (is_exclusive)
			gate_leave_exclusive(w);
		if (err == -KILN_E_RESTART) {
			if (w)
				stat_add(&w->stats.restarts, 1);
			err = txn_need_wait(&txn);
			if (!err)
				continue;
		}
		if (err != -E2BIG || !batch_halve(&txn))
			break;
	}
	txn_reset(&txn);
	txn_memory_reset(&txn, true);
	free(txn.updates);
	free(txn.reads);
	free(txn.leaves);
	if (w && !err && opts->watermark < WATERMARK_RECLAIM &&
	    !(opts->flags & (BTREE_COMMIT_NO_SPLIT | BTREE_COMMIT_MAKES_ROOM)))
		node_write_throttle(trees, opts->watermark < WATERMARK_COPYGC);
	return err;
}
