/*
 * Interior updates: replacing nodes (split, merge, rewrite), and new roots.
 *
 * There is one at a time per btree: a sleeping lock, taken with no other lock held. While it is held, which nodes there
 * are, and which pointer leads to which, changes by its owner alone.
 *
 * 1. *Reserve* the new nodes' space. This may wait, so it comes before everything else.
 * 2. *Build*, with intent locks from the root down to the nodes that are to be replaced, so that they can't change: the
 *    new nodes in memory, and what will be written of them (their set 0). If the parent has no room for the pointers,
 *    it is replaced in its turn, with the new pointers in it; so upwards, up to a new root.
 * 3. *Switch*, under write locks: the pointers in the topmost node that stays (or the root) change, the old nodes
 *    retire. From here on everybody uses the new nodes. What changes in them is collected as in every node, but they
 *    may not be written, and neither may that topmost node, whose pointers lead to nodes that aren't on disk yet. The
 *    pins of the old nodes go to the update.
 * 4. *Finish* (another task, unless the btrees live in memory): write the new nodes; then commit the pointers, with all
 *    that their triggers make of them. With that, the new nodes are reachable after a crash; the update's pins go, and
 *    the next update may come.
 *
 * Journal keys that lie over a replaced node are taken into the new ones. A node with lost keys is not replaced: what
 * takes their place in a new node would say that there was nothing.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/clock.h"
#include "base/mutant.h"
#include "btree/internal.h"
#include "device/device.h"
#include "format/btree_node_write.h"

enum {
	PATH_MAX_NR = BTREE_LEVEL_MAX + 1,
	PTR_KEY_U64S_MAX = BKEY_U64S + BTREE_PTR_V2_VALUE_U64S_MAX,
	POLL_NS = 1000 * 1000
};

/* A pointer to a node, as a key. */
struct ptr_key {
	struct bkey_ref k;
	uint64_t value[BTREE_PTR_V2_VALUE_U64S_MAX];
};

struct interior_new {
	struct btree_node *node; /* referenced */
	void *image;		 /* its set 0, to be sealed and written; io_buffer_free() */
	size_t bytes;
	unsigned failed; /* replicas that could not be written */
};

struct interior_old {
	struct node_ptr ptr;
};

struct interior_update {
	struct interior_update *next;
	struct btrees *trees;
	unsigned btree_id;
	struct btree_node_reserve *reserve;
	unsigned reserved_nr; /* left in it */
	struct btree_ptr
		lacking; /* of an old node that has more copies than there is room for; no pointers: none has */
	struct interior_new *news;
	size_t new_nr, new_max;
	struct interior_old *olds;
	size_t old_nr, old_max;
	struct btree_node *parent; /* the topmost changed node that stays, referenced; NULL: the root is new */
	struct node_ptr root;	   /* then the new one */
	struct journal_pin pin;
};

/* --- one at a time --- */

static int slot_take(struct btrees *trees, unsigned btree_id, bool can_wait)
{
	struct write_state *w = trees->write;
	int err = 0;

	if (can_wait)
		task_may_wait_for(TASK_INTERIOR);
	mutex_lock(&w->interior_lock);
	while (w->interior_is_busy[btree_id] && can_wait && !write_error(trees))
		waitq_wait(&w->interior_changed, &w->interior_lock);
	if (write_error(trees))
		err = -EROFS;
	else if (w->interior_is_busy[btree_id])
		err = -EAGAIN;
	else
		w->interior_is_busy[btree_id] = true;
	mutex_unlock(&w->interior_lock);
	return err;
}

/* It wasn't used. */
static void slot_give_back(struct btrees *trees, unsigned btree_id)
{
	struct write_state *w = trees->write;

	mutex_lock(&w->interior_lock);
	w->interior_is_busy[btree_id] = false;
	waitq_wake_all(&w->interior_changed);
	mutex_unlock(&w->interior_lock);
}

static void slot_give(struct btrees *trees, unsigned btree_id)
{
	slot_give_back(trees, btree_id);
	node_write_kick(trees);
}

/* --- lists of keys --- */

struct key_item {
	struct bkey_ref k; /* the value stays where it is */
	uint32_t u64s;	   /* at most, in the new node */
};

struct key_list {
	struct key_item *items;
	size_t nr, max;
	uint64_t u64s;
};

static int key_list_add(struct key_list *l, struct bkey_ref k, uint32_t u64s)
{
	if (array_grow(&l->items, &l->max, l->nr + 1, sizeof(*l->items)))
		return -ENOMEM;
	l->items[l->nr++] = (struct key_item){ k, u64s };
	l->u64s += u64s;
	return 0;
}

/* All that @node has, journal keys included, ascending. */
static int key_list_add_node(struct btrees *trees, struct key_list *l, const struct btree_node *node)
{
	const struct node_keys *keys = &node->keys;
	struct keys_walk w =
		keys_walk_begin(trees, node->id.btree_id, node->id.level, keys, node->id.ptr.min_key, node->id.max_key);
	struct bkey_ref k;

	while (keys_walk_next(&w, &k)) {
		uint32_t u64s = bkey_packed_u64s(&keys->format, &k.k);
		int err = key_list_add(l, k, u64s);

		if (err)
			return err;
	}
	return 0;
}

/* --- new nodes --- */

static void ptr_key_make(struct ptr_key *key, const struct node_ptr *p)
{
	key->k.k = (struct bkey){ .p = p->max_key, .type = KEY_BTREE_PTR_V2 };
	key->k.k.value_u64s = (uint8_t)btree_ptr_encode(&p->ptr, key->value);
	key->k.value = key->value;
}

/* The format for some keys, and what they take in it: the old one where the new one would be too large (02 §2.4). */
static uint32_t format_choose(const struct btrees *trees, const struct key_item *items, size_t nr, struct bpos min_key,
			      struct bpos max_key, const struct bkey_format *old, struct bkey_format *format)
{
	struct bkey_format_builder b;
	uint64_t u64s = 0;

	bkey_format_begin(&b);
	bkey_format_add_pos(&b, min_key);
	bkey_format_add_pos(&b, max_key);
	for (size_t i = 0; i < nr; i++)
		bkey_format_add_key(&b, &items[i].k.k);
	bkey_format_finish(&b, format);
	for (size_t i = 0; i < nr; i++)
		u64s += bkey_packed_u64s(format, &items[i].k.k);
	if (u64s <= node_u64s_max(trees) || !old)
		return (uint32_t)u64s;
	*format = *old;
	u64s = 0;
	for (size_t i = 0; i < nr; i++)
		u64s += bkey_packed_u64s(format, &items[i].k.k);
	return (uint32_t)u64s;
}

/* Set 0 of a new node, unsealed. */
static int image_make(struct btrees *trees, struct interior_new *n, const struct key_item *items, size_t nr,
		      uint32_t u64s)
{
	struct btree_node *node = n->node;
	uint32_t block_bytes = trees->opts.kctx->block_sectors * SECTOR_BYTES;
	struct bset_writer w;

	n->bytes = (size_t)round_up_u64(sizeof(struct btree_node_disk) + (uint64_t)u64s * 8, block_bytes);
	n->image = io_buffer_alloc(n->bytes);
	if (!n->image)
		return -ENOMEM;
	btree_node_header_store(n->image, &(struct btree_node_header){
						  .btree_id = node->id.btree_id,
						  .level = node->id.level,
						  .generation = node->generation,
						  .magic = trees->opts.magic,
						  .min_key = node->id.ptr.min_key,
						  .max_key = node->id.max_key,
						  .format = node->keys.format,
					  });
	bset_writer_begin(&w, n->image, 0, n->bytes, &node->keys.format);
	for (size_t i = 0; i < nr; i++)
		if (!bset_writer_add(&w, &items[i].k.k, items[i].k.value))
			return -EIO;
	/* Sealed by the one who writes it, but its size must be known. */
	bset_of(n->image, 0)->u64s = le16_of((uint16_t)w.u64s);
	return 0;
}

static uint64_t seq_random(void)
{
	uint64_t seq;

	while (!(seq = random_u64()))
		;
	return seq;
}

/* One node more: @items of @btree_id at @level, covering @min_key..@max_key. */
static int new_node_add(struct interior_update *u, unsigned level, struct bpos min_key, struct bpos max_key,
			uint32_t generation, const struct key_item *items, size_t nr, const struct bkey_format *old)
{
	struct btrees *trees = u->trees;
	struct node_ptr p = { .btree_id = u->btree_id, .level = level, .max_key = max_key };
	struct bkey_format format;
	uint32_t u64s = format_choose(trees, items, nr, min_key, max_key, old, &format);

	if (u64s > node_u64s_max(trees))
		return -ENOBUFS;
	if (array_grow(&u->news, &u->new_max, u->new_nr + 1, sizeof(*u->news)))
		return -ENOMEM;
	p.ptr.min_key = min_key;
	p.ptr.seq = seq_random();
	struct btree_node *node = node_new(trees, &p);
	if (!node)
		return -ENOMEM;
	struct interior_new *n = &u->news[u->new_nr++];
	*n = (struct interior_new){ .node = node };

	node->keys.format = format;
	node->keys.set_nr = 1;
	node->generation = generation;
	node->is_unpublished = node->is_new = true;
	int err = node_keys_reserve(&node->keys, (uint32_t)nr, u64s + BKEY_U64S_MAX);
	if (err)
		return err;
	for (size_t i = 0; i < nr; i++)
		node_keys_append(&node->keys, &items[i].k.k, items[i].k.value);
	err = image_make(trees, n, items, nr, u64s);
	if (err)
		return err;
	u->reserved_nr--;
	trees->opts.backend.node_alloc(trees->opts.backend.ctx, u->reserve, &node->id.ptr);
	node->id.ptr.sectors_written = (uint16_t)(n->bytes / SECTOR_BYTES);
	node->log_sectors = node->id.ptr.sectors_written;
	return 0;
}

/* --- building --- */

/* How the content of a place is cut into nodes. */
struct cut {
	unsigned level;
	struct bpos min_key, max_key;
	uint32_t generation;
	const struct bkey_format *format; /* old one */
	unsigned pieces_min;
};

/* How many words a new node has at most, if it can: a third of it, and four blocks, are left for its log. */
static uint64_t node_u64s_target(const struct btrees *trees)
{
	uint64_t u64s_max = node_u64s_max(trees);
	uint64_t log_u64s = (uint64_t)trees->opts.kctx->block_sectors * SECTOR_BYTES / 8 * 4;

	return min(u64s_max * 2 / 3, u64s_max - min(log_u64s, u64s_max / 2));
}

/*
 * Number of nodes for @u64s words. A split gives the left one three fifths, since most btrees grow at the right end.
 */
static unsigned pieces_nr(const struct btrees *trees, uint64_t u64s, unsigned pieces_min)
{
	uint64_t target = node_u64s_target(trees);

	if (u64s <= target)
		return pieces_min;
	return max(pieces_min, max(2u, (unsigned)div_round_up_u64(u64s, target)));
}

/*
 * Where the piece that begins at @begin ends: the index behind its last key. Not more than fits into a node; else at
 * least one key is left for each other piece.
 */
static size_t piece_end(const struct btrees *trees, const struct key_list *l, size_t begin, unsigned pieces_left,
			uint64_t u64s_left)
{
	uint64_t u64s_max = node_u64s_max(trees), u64s = 0;
	uint64_t target = pieces_left == 1 ? u64s_left : pieces_left == 2 ? u64s_left * 3 / 5 : u64s_left / pieces_left;

	/* Where that would leave too little room, both get the same. */
	if (pieces_left == 2 && target > node_u64s_target(trees))
		target = u64s_left / 2;

	size_t end_max = l->nr - min((size_t)pieces_left - 1, l->nr - begin - 1), end = begin;

	while (end < end_max && (u64s < target || end == begin)) {
		if (end > begin && u64s + l->items[end].u64s > u64s_max)
			break;
		u64s += l->items[end++].u64s;
	}
	return end;
}

static int pieces_make(struct interior_update *u, const struct cut *cut, const struct key_list *l)
{
	unsigned pieces = (unsigned)min((size_t)pieces_nr(u->trees, l->u64s, cut->pieces_min), max(l->nr, (size_t)1));
	struct bpos min_key = cut->min_key;
	uint64_t u64s_left = l->u64s;
	size_t begin = 0;

	do {
		size_t end = l->nr ? piece_end(u->trees, l, begin, pieces, u64s_left) : 0;
		struct bpos max_key = end == l->nr ? cut->max_key : l->items[end - 1].k.k.p;

		if (!u->reserved_nr)
			return -ENOSPC;
		int err = new_node_add(u, cut->level, min_key, max_key, cut->generation,
				       l->nr ? &l->items[begin] : NULL, end - begin, cut->format);
		if (err)
			return err;
		for (; begin < end; begin++)
			u64s_left -= l->items[begin].u64s;
		if (begin < l->nr)
			min_key = bpos_successor(max_key);
		pieces = max(pieces - 1, 1u);
	} while (begin < l->nr);
	return 0;
}

/* The way down to what is replaced. */
struct path {
	struct btree_node *nodes[PATH_MAX_NR]; /* by level, referenced; from the replaced ones' up to the root */
	struct btree_node *sibling;	       /* the right one of two that are merged, at the lowest level */
	unsigned level, root_level;
	bool is_root_new;
	unsigned top; /* the topmost level that is replaced */
	bool is_locked;
};

/* -ENOSPC, too, where new ones would have fewer copies. */
static int old_add(struct interior_update *u, const struct btree_node *node)
{
	const struct btree_backend *backend = &u->trees->opts.backend;

	if (backend->keeps_copies && !backend->keeps_copies(backend->ctx, u->reserve, &node->id.ptr)) {
		u->lacking = node->id.ptr;
		return -ENOSPC;
	}
	if (array_grow(&u->olds, &u->old_max, u->old_nr + 1, sizeof(*u->olds)))
		return -ENOMEM;
	u->olds[u->old_nr++] = (struct interior_old){ node->id };
	return 0;
}

/* The keys of the parent @node, with the pointers to news[first..] in place of those to what they replace. */
static int parent_list_make(struct interior_update *u, const struct btree_node *node, size_t first,
			    struct ptr_key *ptrs, struct key_list *l)
{
	struct key_list had = { 0 };
	struct bpos min_key = u->news[first].node->id.ptr.min_key;
	size_t n = first;
	int err = key_list_add_node(u->trees, &had, node);

	for (size_t i = 0; !err && i < had.nr; i++) {
		struct bpos max_key = u->news[u->new_nr - 1].node->id.max_key;
		bool is_old = bpos_le(min_key, had.items[i].k.k.p) && bpos_le(had.items[i].k.k.p, max_key);

		if (!is_old) {
			err = key_list_add(l, had.items[i].k, had.items[i].u64s);
			continue;
		}
		for (; !err && n < u->new_nr; n++) {
			ptr_key_make(&ptrs[n - first], &u->news[n].node->id);
			err = key_list_add(l, ptrs[n - first].k, (uint32_t)BKEY_U64S + ptrs[n - first].k.k.value_u64s);
		}
	}
	free(had.items);
	return err;
}

/* Can @parent take the pointers to news[first..], in place of those that they replace? */
static bool parent_has_room(const struct interior_update *u, const struct btree_node *parent, size_t first)
{
	const struct node_keys *keys = &parent->keys;
	uint64_t u64s = keys->live_u64s + (u->new_nr - first) * PTR_KEY_U64S_MAX;

	for (size_t i = 0; i < u->old_nr; i++) {
		const struct node_ptr *p = &u->olds[i].ptr;

		if (p->level + 1 != parent->id.level)
			continue;
		uint32_t idx = node_keys_lower_bound(keys, p->max_key);
		if (idx == keys->key_nr)
			continue;
		struct bkey_ref k = node_keys_get(keys, idx);
		if (bpos_eq(k.k.p, p->max_key))
			u64s -= bkey_packed_u64s(&keys->format, &k.k);
	}
	return u64s <= node_u64s_max(u->trees);
}

/* Replace the parent at @level too, with the new pointers in it. */
static int parent_replace(struct interior_update *u, struct path *path, unsigned level, size_t first)
{
	struct btree_node *node = path->nodes[level];
	size_t ptr_nr = u->new_nr - first;
	struct ptr_key *ptrs = malloc(ptr_nr * sizeof(*ptrs));
	struct key_list l = { 0 };
	int err = ptrs ? parent_list_make(u, node, first, ptrs, &l) : -ENOMEM;

	if (!err)
		err = old_add(u, node);
	if (!err)
		err = pieces_make(u,
				  &(struct cut){ .level = level,
						 .min_key = node->id.ptr.min_key,
						 .max_key = node->id.max_key,
						 .generation = node->generation + 1,
						 .format = &node->keys.format,
						 .pieces_min = 2 },
				  &l);
	free(l.items);
	free(ptrs);
	path->top = level;
	return err;
}

/* A root above the new nodes news[first..]. */
static int root_raise(struct interior_update *u, struct path *path, size_t first)
{
	size_t ptr_nr = u->new_nr - first;
	struct ptr_key *ptrs = malloc(ptr_nr * sizeof(*ptrs));
	struct key_list l = { 0 };
	int err = ptrs ? 0 : -ENOMEM;

	if (path->root_level == BTREE_LEVEL_MAX)
		err = -ENOBUFS;
	for (size_t i = 0; !err && i < ptr_nr; i++) {
		ptr_key_make(&ptrs[i], &u->news[first + i].node->id);
		err = key_list_add(&l, ptrs[i].k, (uint32_t)BKEY_U64S + ptrs[i].k.k.value_u64s);
	}
	if (!err)
		err = pieces_make(u,
				  &(struct cut){ .level = path->root_level + 1,
						 .min_key = POS_MIN,
						 .max_key = SPOS_MAX,
						 .pieces_min = 1 },
				  &l);
	free(l.items);
	free(ptrs);
	if (!err)
		stat_add(&u->trees->write->stats.roots_raised, 1);
	return err;
}

/* All new nodes, from the lowest level up. The path is locked. */
static int update_build(struct interior_update *u, struct path *path, unsigned pieces_min)
{
	struct btree_node *node = path->nodes[path->level], *last = path->sibling ? path->sibling : node;
	struct key_list l = { 0 };
	int err = old_add(u, node);

	if (!err && path->sibling)
		err = old_add(u, path->sibling);
	if (!err)
		err = key_list_add_node(u->trees, &l, node);
	if (!err && path->sibling)
		err = key_list_add_node(u->trees, &l, path->sibling);
	if (!err)
		err = pieces_make(u,
				  &(struct cut){ .level = path->level,
						 .min_key = node->id.ptr.min_key,
						 .max_key = last->id.max_key,
						 .generation = max(node->generation, last->generation) + 1,
						 .format = &node->keys.format,
						 .pieces_min = pieces_min },
				  &l);
	free(l.items);
	path->top = path->level;

	size_t first = 0;
	for (unsigned level = path->level + 1; !err && level <= path->root_level; level++) {
		if (parent_has_room(u, path->nodes[level], first))
			return 0;
		size_t next = u->new_nr;
		err = parent_replace(u, path, level, first);
		first = next;
	}
	if (err)
		return err;
	path->is_root_new = true;
	return u->new_nr - first > 1 ? root_raise(u, path, first) : 0;
}

/* --- the path --- */

static void path_put(struct path *path)
{
	for (unsigned i = 0; i < PATH_MAX_NR; i++)
		node_put(path->nodes[i]);
	node_put(path->sibling);
	*path = (struct path){ 0 };
}

/* @node and all nodes above it. 0; -ESTALE: it has been replaced; or an error. The slot is held. */
static int path_find(struct btrees *trees, struct btree_node *node, struct path *path)
{
	unsigned btree_id = node->id.btree_id;

	*path = (struct path){ .level = node->id.level, .root_level = (unsigned)btree_root_level(trees, btree_id) };
	for (unsigned level = node->id.level; level <= path->root_level; level++) {
		struct tree_place place;
		int ret = tree_descend(trees, btree_id, level, node->id.max_key, &place);

		if (ret < 0)
			return ret;
		if (!ret || !place.node) {
			if (!ret)
				return -EIO;
			six_unlock_read(&trees->roots[btree_id].lock);
			return -EIO;
		}
		six_unlock_read(&place.node->lock);
		path->nodes[level] = place.node;
		if (level == node->id.level && place.node != node)
			return -ESTALE;
	}
	return 0;
}

static void path_lock(struct btrees *trees, struct path *path)
{
	six_lock_intent(&trees->roots[path->nodes[path->level]->id.btree_id].lock);
	for (unsigned level = path->root_level + 1; level-- > path->level;)
		six_lock_intent(&path->nodes[level]->lock);
	if (path->sibling)
		six_lock_intent(&path->sibling->lock);
	path->is_locked = true;
}

static void path_unlock(struct btrees *trees, struct path *path)
{
	if (!path->is_locked)
		return;
	if (path->sibling)
		six_unlock_intent(&path->sibling->lock);
	for (unsigned level = path->level; level <= path->root_level; level++)
		six_unlock_intent(&path->nodes[level]->lock);
	six_unlock_intent(&trees->roots[path->nodes[path->level]->id.btree_id].lock);
	path->is_locked = false;
}

/* The node of the path that has a set on its way to the disk. It can't be replaced before that is over. */
static struct btree_node *path_writing(const struct path *path)
{
	if (path->sibling && path->sibling->is_writing)
		return path->sibling;
	for (unsigned level = path->level; level <= path->root_level; level++)
		if (path->nodes[level]->is_writing)
			return path->nodes[level];
	return NULL;
}

/* --- the switch --- */

/* The journal keys that lie over @node are in the new nodes now, and in their entries until these can be reached. */
static void overlay_take(struct interior_update *u, const struct btree_node *node)
{
	struct journal *j = u->trees->write_opts.journal;
	struct overlay_range range = overlay_range_get(&u->trees->overlay, node->id.btree_id, node->id.level,
						       node->id.ptr.min_key, node->id.max_key);

	for (; overlay_range_skip(&range); range.begin++) {
		if (j)
			journal_pin_add(j, &u->pin, range.begin->seq, NULL);
		atomic_store_explicit(&range.begin->is_overwritten, true, memory_order_relaxed);
	}
}

static void node_retire(struct interior_update *u, struct btree_node *node)
{
	overlay_take(u, node);
	node_set_retired(u->trees, node, &u->pin);
}

/* Put the pointers to the new nodes of its children's level into the node that stays. There is room. */
static void parent_change(struct interior_update *u, struct btree_node *parent)
{
	struct btrees *trees = u->trees;
	unsigned level = parent->id.level;

	for (size_t i = 0; i < u->old_nr; i++) {
		const struct node_ptr *p = &u->olds[i].ptr;
		const struct bkey deleted = { .p = p->max_key, .type = KEY_DELETED };

		if (p->level + 1 != level)
			continue;
		node_keys_set(&parent->keys, &deleted, NULL);
		overlay_set_overwritten(&trees->overlay, u->btree_id, level, p->max_key);
	}
	for (size_t i = 0; i < u->new_nr; i++) {
		struct ptr_key key;

		if (u->news[i].node->id.level + 1 != level)
			continue;
		ptr_key_make(&key, &u->news[i].node->id);
		node_keys_set(&parent->keys, &key.k.k, key.k.value);
		overlay_set_overwritten(&trees->overlay, u->btree_id, level, key.k.k.p);
	}
	parent->write_blocks++;
	node_set_dirty(trees, parent, 0);
}

/* Everything is built, and the path has intent locks. Takes and gives back the write locks. 0 or -ENOMEM. */
static int update_switch(struct interior_update *u, struct path *path)
{
	struct btrees *trees = u->trees;
	struct tree_root *root = &trees->roots[u->btree_id];
	struct btree_node *parent = path->is_root_new ? NULL : path->nodes[path->top + 1];
	int err = 0;

	if (path->is_root_new)
		six_lock_write(&root->lock);
	else
		six_lock_write(&parent->lock);
	if (parent) {
		uint32_t key_nr = (uint32_t)(u->new_nr + u->old_nr);

		err = node_keys_reserve(&parent->keys, key_nr, key_nr * PTR_KEY_U64S_MAX);
		cache_recharge(trees, parent);
	}
	for (unsigned level = path->top + 1; !err && level-- > path->level;)
		six_lock_write(&path->nodes[level]->lock);
	if (!err && path->sibling)
		six_lock_write(&path->sibling->lock);
	if (!err) {
		for (size_t i = 0; i < u->new_nr; i++)
			cache_insert(trees, u->news[i].node);
		if (parent) {
			node_get_again(parent);
			u->parent = parent;
			parent_change(u, parent);
		} else {
			u->root = root->ptr = u->news[u->new_nr - 1].node->id;
			root->exists = true;
		}
		for (unsigned level = path->level; level <= path->top; level++)
			node_retire(u, path->nodes[level]);
		if (path->sibling)
			node_retire(u, path->sibling);
	}
	if (!err && path->sibling)
		six_unlock_write(&path->sibling->lock);
	for (unsigned level = path->level; !err && level <= path->top; level++)
		six_unlock_write(&path->nodes[level]->lock);
	if (parent)
		six_unlock_write(&parent->lock);
	else
		six_unlock_write(&root->lock);
	return err;
}

/* --- updates --- */

static void news_free(struct interior_update *u, bool is_in_cache)
{
	for (size_t i = 0; i < u->new_nr; i++) {
		io_buffer_free(u->news[i].image);
		if (is_in_cache)
			node_put(u->news[i].node);
		else
			node_free(u->news[i].node);
	}
	u->new_nr = u->old_nr = 0;
}

static void update_free(struct interior_update *u, bool is_in_cache)
{
	const struct btree_backend *backend = &u->trees->opts.backend;

	news_free(u, is_in_cache);
	node_put(u->parent);
	if (u->reserve)
		backend->reserve_put(backend->ctx, u->reserve);
	free(u->news);
	free(u->olds);
	free(u);
}

/* Whoever needs nodes for his work is preferred to others who do the same. */
static enum watermark watermark_of_nodes(enum watermark w)
{
	return w < WATERMARK_COPYGC ? WATERMARK_BTREE : w == WATERMARK_COPYGC ? WATERMARK_BTREE_COPYGC : w;
}

/*
 * With the watermark of reclaim the backend doesn't wait, as others wait for who has that. Here it is tried again, if
 * @can_wait, while nodes are being written that might make room.
 */
static int nodes_reserve(struct btrees *trees, unsigned nr, const struct btree_ptr *replaced, enum watermark watermark,
			 bool can_wait, struct btree_node_reserve **reserve)
{
	enum { ROOM_POLL_NS = 10 * 1000 * 1000 };
	const struct btree_backend *backend = &trees->opts.backend;
	struct room_hope hope = { 0 };
	int err;

	while ((err = backend->reserve(backend->ctx, nr, replaced, watermark, reserve)) == -ENOSPC && can_wait &&
	       watermark == WATERMARK_RECLAIM && room_may_come(trees, &hope))
		sleep_ns(ROOM_POLL_NS);
	return err;
}

static struct interior_update *update_new(struct btrees *trees, unsigned btree_id, unsigned node_nr,
					  const struct btree_ptr *replaced, enum watermark watermark, bool can_wait,
					  int *err)
{
	struct interior_update *u = calloc(1, sizeof(*u));

	*err = -ENOMEM;
	if (!u)
		return NULL;
	u->trees = trees;
	u->btree_id = btree_id;
	*err = nodes_reserve(trees, node_nr, replaced, watermark_of_nodes(watermark), can_wait, &u->reserve);
	if (*err) {
		free(u);
		return NULL;
	}
	u->reserved_nr = node_nr;
	return u;
}

struct interior_update *interior_update_next(const struct interior_update *u) { return u->next; }

/*
 * Somebody is about to switch, with the slot held. From here on nothing is quiet: nodes that are taken out are no
 * longer dirty, and what the update commits isn't yet.
 */
static void update_announce(struct write_state *w)
{
	mutex_lock(&w->interior_lock);
	w->update_nr++;
	mutex_unlock(&w->interior_lock);
}

/* It is finished, or came to nothing. */
static void update_end(struct btrees *trees, unsigned btree_id)
{
	struct write_state *w = trees->write;

	mutex_lock(&w->interior_lock);
	w->update_nr--;
	mutex_unlock(&w->interior_lock);
	slot_give(trees, btree_id);
}

/* The switch has been made: let it be finished. */
static void update_submit(struct interior_update *u)
{
	struct btrees *trees = u->trees;
	struct write_state *w = trees->write;

	trees->opts.backend.reserve_trim(trees->opts.backend.ctx, u->reserve);
	mutex_lock(&w->interior_lock);
	w->updates_submitted++;
	if (trees->write_opts.journal) {
		*w->updates_end = u;
		w->updates_end = &u->next;
		waitq_wake_all(&w->interior_changed);
	}
	mutex_unlock(&w->interior_lock);
	if (!trees->write_opts.journal)
		interior_update_finish(trees, u);
}

int interior_journal_wait(struct btrees *trees, enum watermark watermark)
{
	enum { UPDATE_U64S = 256 }; /* what one takes, about */
	struct journal *j = trees->write_opts.journal;

	return j ? journal_res_wait(j, UPDATE_U64S, watermark) : 0;
}

/*
 * Nodes that replacing @node takes, if its parent has room for the pointers; or, @with_parents, that it can take at
 * most, if they are as they seem. It nearly always has: the last places are for as many updates as there are, not for
 * one.
 */
static unsigned nodes_needed(struct btrees *trees, struct btree_node *node, enum interior_kind kind, bool with_parents)
{
	six_lock_read(&node->lock);
	struct overlay_range range = overlay_range_get(&trees->overlay, node->id.btree_id, node->id.level,
						       node->id.ptr.min_key, node->id.max_key);
	uint64_t u64s = node->keys.live_u64s;
	for (; range.begin < range.end; range.begin++)
		u64s += range.begin->key->u64s;
	six_unlock_read(&node->lock);
	if (!with_parents)
		return pieces_nr(trees, u64s, kind == INTERIOR_SPLIT ? 2 : 1);

	int root_level = btree_root_level(trees, node->id.btree_id);
	unsigned levels_above = root_level > (int)node->id.level ? (unsigned)root_level - node->id.level : 0;
	return pieces_nr(trees, u64s, 2) + 1 + 2 * levels_above + 1;
}

/*
 * Would the two, made into one node, leave two thirds of it free? An empty one goes into whatever needn't be split for
 * it.
 */
static bool nodes_are_small(const struct btrees *trees, uint32_t u64s_a, uint32_t u64s_b)
{
	uint32_t u64s = u64s_a + u64s_b;

	return u64s <= node_u64s_max(trees) / 3 || ((!u64s_a || !u64s_b) && pieces_nr(trees, u64s, 1) == 1);
}

/* For a merge: make path->nodes[level] and path->sibling two neighbours. 0, or -ENOENT: there is none that fits. */
static int sibling_find(struct btrees *trees, struct path *path)
{
	struct btree_node *node = path->nodes[path->level];
	struct btree_node *parent = path->level < path->root_level ? path->nodes[path->level + 1] : NULL;

	six_lock_read(&node->lock);
	uint32_t u64s = node->keys.live_u64s;
	six_unlock_read(&node->lock);
	for (unsigned side = 0; parent && side < 2; side++) {
		struct bpos edge = side ? node->id.ptr.min_key : node->id.max_key;
		struct bpos bound = side ? parent->id.ptr.min_key : parent->id.max_key;
		struct tree_place place;

		if (bpos_eq(edge, bound))
			continue;
		edge = side ? bpos_predecessor(edge) : bpos_successor(edge);
		if (tree_descend(trees, node->id.btree_id, path->level, edge, &place) != 1 || !place.node)
			continue;
		bool is_small = nodes_are_small(trees, u64s, place.node->keys.live_u64s);
		six_unlock_read(&place.node->lock);
		if (!is_small) {
			node_put(place.node);
			continue;
		}
		path->sibling = side ? node : place.node;
		path->nodes[path->level] = side ? place.node : node;
		return 0;
	}
	return -ENOENT;
}

bool interior_can_merge(struct btrees *trees, struct btree_node *node)
{
	struct path path;
	int err = path_find(trees, node, &path);

	if (!err)
		err = sibling_find(trees, &path);
	path_put(&path);
	return !err;
}

/* With the slot held. 0 and *@is_switched; -EAGAIN: try again; or an error. */
static int node_replace(struct interior_update *u, struct btree_node *node, enum interior_kind kind,
			struct btree_node **writing, bool *is_switched)
{
	struct btrees *trees = u->trees;
	struct path path;
	int err = path_find(trees, node, &path);

	if (!err && kind == INTERIOR_MERGE)
		err = sibling_find(trees, &path);
	if (err) {
		path_put(&path);
		return err == -ESTALE || err == -ENOENT ? 0 : err;
	}
	path_lock(trees, &path);
	*writing = path_writing(&path);
	struct btree_node *low = path.nodes[path.level];
	if (*writing) {
		node_get_again(*writing);
		err = -EAGAIN;
	} else if (low->keys.lost_nr || (path.sibling && path.sibling->keys.lost_nr)) {
		err = -EIO;
	} else if (path.sibling && !nodes_are_small(trees, low->keys.live_u64s, path.sibling->keys.live_u64s)) {
		err = -ENOENT;
	}
	if (!err)
		err = update_build(u, &path, kind == INTERIOR_SPLIT ? 2 : 1);
	if (!err)
		err = update_switch(u, &path);
	*is_switched = !err;
	if (err)
		news_free(u, false);
	path_unlock(trees, &path);
	path_put(&path);
	return err == -ENOENT ? 0 : err;
}

/*
 * A new one, with the slot. Who waits for nodes doesn't do so with the slot; who can't wait has it first, as looking
 * for nodes in vain may cost more than that.
 */
static struct interior_update *update_begin(struct btrees *trees, unsigned btree_id, unsigned node_nr,
					    const struct btree_ptr *replaced, enum watermark watermark, bool can_wait,
					    int *err)
{
	if (!can_wait && (*err = slot_take(trees, btree_id, false)))
		return NULL;
	struct interior_update *u = update_new(trees, btree_id, node_nr, replaced, watermark, can_wait, err);

	if (!u && !can_wait)
		slot_give_back(trees, btree_id);
	if (!u)
		return NULL;
	if (can_wait && (*err = slot_take(trees, btree_id, true))) {
		update_free(u, false);
		return NULL;
	}
	update_announce(trees->write);
	return u;
}

int interior_replace(struct btrees *trees, struct btree_node *node, enum interior_kind kind, enum watermark watermark,
		     bool can_wait)
{
	struct write_stats *stats = &trees->write->stats;
	bool with_parents = false;
	unsigned extra = 0;

	six_lock_read(&node->lock);
	struct btree_ptr replaced = node->id.ptr;
	six_unlock_read(&node->lock);
	for (;;) {
		struct btree_node *writing = NULL;
		bool is_switched = false;
		int err;
		unsigned nr = nodes_needed(trees, node, kind, with_parents) + extra;
		struct interior_update *u =
			update_begin(trees, node->id.btree_id, nr, &replaced, watermark, can_wait, &err);

		if (!u)
			return err;
		err = node_replace(u, node, kind, &writing, &is_switched);
		if (is_switched) {
			stat_add(kind == INTERIOR_SPLIT	  ? &stats->splits
				 : kind == INTERIOR_MERGE ? &stats->merges
							  : &stats->rewrites,
				 1);
			update_submit(u);
			return 0;
		}
		bool lacks_copies = err == -ENOSPC && u->lacking.ptr_nr;
		if (lacks_copies)
			replaced = u->lacking;
		update_free(u, false);
		update_end(trees, node->id.btree_id);
		if (writing && can_wait)
			node_write_wait(trees, writing);
		node_put(writing);
		if (lacks_copies)
			continue;
		/* The tree is as high as it can be, or a key too large for any node; or no format suits both nodes. */
		if (err == -ENOBUFS)
			return kind == INTERIOR_MERGE ? 0 : -ENOSPC;
		if (err != -ENOSPC && (err != -EAGAIN || !can_wait))
			return err;
		extra += err == -ENOSPC && with_parents ? 4 : 0;
		with_parents |= err == -ENOSPC;
	}
}

/* --- a first root --- */

static int root_create(struct interior_update *u)
{
	struct btrees *trees = u->trees;
	struct tree_root *root = &trees->roots[u->btree_id];

	/* It replaces the empty leaf of generation 0. */
	int err = new_node_add(u, 0, POS_MIN, SPOS_MAX, 1, NULL, 0, NULL);
	if (err)
		return err;
	six_lock_intent(&root->lock);
	six_lock_write(&root->lock);
	cache_insert(trees, u->news[0].node);
	u->root = root->ptr = u->news[0].node->id;
	root->exists = true;
	six_unlock_write(&root->lock);
	six_unlock_intent(&root->lock);
	return 0;
}

int interior_root_create(struct btrees *trees, unsigned btree_id, enum watermark watermark)
{
	int err;
	struct interior_update *u = update_new(trees, btree_id, 1, NULL, watermark, true, &err);

	if (!u)
		return err;
	/*
	 * Another who makes the root right now has the slot until his update is finished, which may be what the caller
	 * is about to do. So wait for the root, not for the slot.
	 */
	while ((err = slot_take(trees, btree_id, false)) == -EAGAIN && btree_root_level(trees, btree_id) < 0)
		sleep_ns(POLL_NS);
	bool has_slot = !err, exists = btree_root_level(trees, btree_id) >= 0;
	if (has_slot)
		update_announce(trees->write);
	if (has_slot && !exists)
		err = root_create(u);
	if (exists || err) {
		update_free(u, false);
		if (has_slot)
			update_end(trees, btree_id);
		return exists ? 0 : err;
	}
	update_submit(u);
	return 0;
}

/* --- finishing --- */

static int new_node_write(struct btrees *trees, struct interior_new *n)
{
	const struct btree_backend *backend = &trees->opts.backend;
	const struct btree_node *node = n->node;
	struct bset_writer w = {
		.set = n->image,
		.u64s = le16_get(bset_of(n->image, 0)->u64s),
		.room_u64s = (n->bytes - sizeof(struct btree_node_disk)) / 8,
		.format = node->keys.format,
	};

	bset_writer_finish(&w, &(struct bset_seal_opts){
				       .seq = node->id.ptr.seq,
				       .version = trees->write_opts.version,
				       .csum_type = trees->write_opts.csum_type,
				       .key = trees->opts.key,
				       .block_bytes = trees->opts.kctx->block_sectors * SECTOR_BYTES,
			       });
	int err = backend->write(backend->ctx, &node->id.ptr, n->image, 0, n->bytes, &n->failed);
	io_buffer_free(n->image);
	n->image = NULL;
	stat_add(&trees->write->stats.nodes_written, 1);
	stat_add(&trees->write->stats.bytes_written, n->bytes);
	return err;
}

static bool new_is_root(const struct interior_update *u, const struct interior_new *n)
{
	return !u->parent && n == &u->news[u->new_nr - 1];
}

/* The new node whose pointer stands where that of @p stood, or NULL. */
static const struct interior_new *new_find(const struct interior_update *u, const struct node_ptr *p)
{
	for (size_t i = 0; i < u->new_nr; i++) {
		const struct node_ptr *id = &u->news[i].node->id;

		if (id->level == p->level && bpos_eq(id->max_key, p->max_key))
			return &u->news[i];
	}
	return NULL;
}

static bool old_is_there(const struct interior_update *u, const struct node_ptr *p)
{
	for (size_t i = 0; i < u->old_nr; i++)
		if (u->olds[i].ptr.level == p->level && bpos_eq(u->olds[i].ptr.max_key, p->max_key))
			return true;
	return false;
}

/* The commit has its seq, and the parent is locked: that is what makes the parent dirty. */
static void update_committed(void *ctx, uint64_t seq)
{
	struct interior_update *u = ctx;

	if (u->parent)
		node_set_dirty(u->trees, u->parent, seq);
}

/* All pointers of the update, as changes that the nodes in memory have already. */
static int update_txn(struct btree_txn *txn, void *ctx)
{
	struct interior_update *u = ctx;
	struct ptr_key old_key, new_key;
	int err = 0;

	for (size_t i = 0; !err && i < u->old_nr; i++) {
		const struct node_ptr *p = &u->olds[i].ptr;
		const struct interior_new *n = new_find(u, p);

		ptr_key_make(&old_key, p);
		if (n)
			ptr_key_make(&new_key, &n->node->id);
		else
			new_key.k = (struct bkey_ref){ .k = { .p = p->max_key, .type = KEY_DELETED } };
		err = txn_put_in_memory(txn, u->btree_id, p->level + 1, n && new_is_root(u, n), &old_key.k, &new_key.k);
	}
	for (size_t i = 0; !err && i < u->new_nr; i++) {
		const struct interior_new *n = &u->news[i];

		if (old_is_there(u, &n->node->id))
			continue;
		ptr_key_make(&new_key, &n->node->id);
		err = txn_put_in_memory(txn, u->btree_id, n->node->id.level + 1, new_is_root(u, n), NULL, &new_key.k);
	}
	txn->extra_node = u->parent;
	txn->committed = update_committed;
	txn->committed_ctx = u;
	return err;
}

static int update_commit(struct interior_update *u)
{
	const struct btree_commit_opts opts = {
		.name = "btree_interior_update",
		.watermark = WATERMARK_RECLAIM,
		.flags = BTREE_COMMIT_NO_SPLIT,
	};

	return write_txn_run(u->trees, &opts, update_txn, u);
}

/*
 * A replica that could not be written may be named by an image of the parent that is on disk already, so the update is
 * committed with all of them; then those are given up. Who reads before that finds another node in that place, or none,
 * and takes the next replica. As the nodes aren't published, nobody else changes their pointers meanwhile.
 */
static int update_drop_failed(struct interior_update *u)
{
	int err = 0;

	for (size_t i = 0; i < u->new_nr && !err; i++)
		if (u->news[i].failed && !is_mutant(MUTANT_FAILED_NODES))
			err = node_replicas_drop(u->trees, u->news[i].node, u->news[i].failed);
	return err;
}

/* Everything is on disk, and in the journal: the new nodes are like any others. */
static void update_publish(struct interior_update *u)
{
	for (size_t i = 0; i < u->new_nr; i++) {
		struct btree_node *node = u->news[i].node;

		six_lock_intent(&node->lock);
		six_lock_write(&node->lock);
		node->is_unpublished = false;
		merge_want(u->trees, node);
		six_unlock_write(&node->lock);
		six_unlock_intent(&node->lock);
	}
	if (u->parent) {
		six_lock_intent(&u->parent->lock);
		six_lock_write(&u->parent->lock);
		u->parent->write_blocks--;
		merge_want(u->trees, u->parent);
		six_unlock_write(&u->parent->lock);
		six_unlock_intent(&u->parent->lock);
	}
}

void interior_update_finish(struct btrees *trees, struct interior_update *u)
{
	const struct btree_backend *backend = &trees->opts.backend;
	unsigned btree_id = u->btree_id;
	int err = write_error(trees);

	if (is_mutant(MUTANT_UPDATE_PIN) && trees->write_opts.journal)
		journal_pin_drop(trees->write_opts.journal, &u->pin);
	if (!err && is_mutant(MUTANT_NODE_BEFORE_POINTER) && trees->write_opts.journal)
		err = update_commit(u);
	for (size_t i = 0; !err && i < u->new_nr; i++)
		err = new_node_write(trees, &u->news[i]);
	if (!err && trees->write_opts.journal && !is_mutant(MUTANT_NODE_BEFORE_POINTER))
		err = update_commit(u);
	if (!err && trees->write_opts.journal)
		err = update_drop_failed(u);
	if (err) {
		write_failed(trees, err);
	} else {
		update_publish(u);
		for (size_t i = 0; !trees->write_opts.journal && backend->node_free && i < u->old_nr; i++)
			backend->node_free(backend->ctx, &u->olds[i].ptr.ptr);
	}
	if (trees->write_opts.journal)
		journal_pin_drop(trees->write_opts.journal, &u->pin);
	update_free(u, true);
	update_end(trees, btree_id);
	mutex_lock(&trees->write->interior_lock);
	trees->write->updates_finished++;
	waitq_wake_all(&trees->write->interior_changed);
	mutex_unlock(&trees->write->interior_lock);
}
