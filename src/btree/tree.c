/*
 * Trees: roots, and the way down from one to the node that serves a position.
 *
 * An interior node maps positions to children: the child for P is the first live pointer at or after P, where the
 * journal keys of the node's level count as its own keys (02 §8, 03 §8.2). What a pointer says is checked against what
 * is expected of it: the child's range must hold P, and the node it leads to must agree with the pointer (node.c).
 * Where no child holds P there is a gap, and the positions in it are lost.
 *
 * A way down ends whatever the bytes say: each step goes one level down, and levels are bounded. It holds one lock at a
 * time. A reference to the child is taken while the parent is locked, which doesn't wait; then the parent is let go,
 * and the child read if it must be. So what the pointer said of the child was current when the child came into the
 * cache, where it stays while it is changed. When the child has been replaced in between, the way down starts again.
 */
#include <errno.h>
#include <string.h>

#include "base/strbuf.h"
#include "btree/internal.h"
#include "format/error_ids.h"

enum { NODE_SECTORS_MAX = 1024 };

/* --- open, close, set up --- */

int btrees_open(const struct btrees_opts *opts, struct btrees **out)
{
	uint32_t node_sectors = opts->kctx->node_sectors, block_sectors = opts->kctx->block_sectors;

	*out = NULL;
	if (!node_sectors || node_sectors > NODE_SECTORS_MAX || !block_sectors || block_sectors > node_sectors ||
	    opts->memory_bytes < BTREE_CACHE_BYTES_MIN((size_t)node_sectors * SECTOR_BYTES))
		return -EINVAL;

	struct btrees *trees = calloc(1, sizeof(*trees));
	if (!trees)
		return -ENOMEM;
	trees->opts = *opts;
	trees->node_bytes = (size_t)node_sectors * SECTOR_BYTES;
	int err = cache_init(&trees->cache, opts->memory_bytes, trees->node_bytes);
	if (err) {
		free(trees);
		return err;
	}
	mutex_init(&trees->reported.lock);
	background_init(&trees->background);
	for (unsigned i = 0; i < BTREE_NR_MAX; i++)
		root_lock_init(trees, i);
	*out = trees;
	return 0;
}

void btrees_close(struct btrees *trees)
{
	if (!trees)
		return;
	key_cache_close(trees);
	background_destroy(&trees->background);
	mutex_destroy(&trees->reported.lock);
	for (unsigned i = 0; i < BTREE_NR_MAX; i++)
		six_lock_destroy(&trees->roots[i].lock);
	cache_free(&trees->cache);
	overlay_free(&trees->overlay);
	free(trees);
}

struct background *btrees_background(struct btrees *trees) { return &trees->background; }

int btrees_set_overlay(struct btrees *trees, struct overlay_builder *builder)
{
	return overlay_init(&trees->overlay, builder);
}

void btrees_set_snapshots(struct btrees *trees, struct btree_snapshots snapshots) { trees->snapshots = snapshots; }

static int root_check(const struct btrees *trees, unsigned id, unsigned level, const struct bkey_ref *key,
		      struct node_ptr *p, struct fault *fault)
{
	if (level > BTREE_LEVEL_MAX)
		return fault_set(fault, ERROR_btree_root_bkey_invalid, "level of root", "at most 3", "%u", level);
	int err = node_ptr_decode(trees, id, level, *key, p, fault);
	if (err)
		return err;
	if (!bpos_eq(p->max_key, SPOS_MAX))
		return fault_set(fault, ERROR_btree_root_bad_max_key, "max_key of root", "SPOS_MAX",
				 "a lower position");
	if (!bpos_eq(p->ptr.min_key, POS_MIN))
		return fault_set(fault, ERROR_btree_root_bad_min_key, "min_key of root", "POS_MIN",
				 "a higher position");
	return 0;
}

int btrees_set_root(struct btrees *trees, unsigned id, unsigned level, const struct bkey_ref *key, bool is_damaged)
{
	if (id >= BTREE_NR_MAX)
		return -EINVAL;

	struct tree_root *root = &trees->roots[id];
	root->exists = true;
	root->is_damaged = is_damaged;
	root->ptr = (struct node_ptr){ .btree_id = id,
				       .level = min(level, (unsigned)BTREE_LEVEL_MAX),
				       .max_key = SPOS_MAX };
	if (is_damaged)
		return 0;

	struct fault fault = { 0 };
	struct node_ptr p;
	if (root_check(trees, id, level, key, &p, &fault)) {
		const char *name = btree_name(id);

		root->is_damaged = true;
		if (!fault.id)
			fault.id = ERROR_btree_root_bkey_invalid;
		report_fault(trees->opts.reports, REPORT_DAMAGE, &fault, NULL, "btree root",
			     name ? name : "unknown btree");
	} else {
		root->ptr = p;
	}
	return 0;
}

int btree_root_level(struct btrees *trees, unsigned btree_id)
{
	int level = -1;

	if (btree_id < BTREE_NR_MAX) {
		struct tree_root *root = &trees->roots[btree_id];

		six_lock_read(&root->lock);
		if (root->exists)
			level = (int)root->ptr.level;
		six_unlock_read(&root->lock);
	}
	return level;
}

/* --- interior nodes --- */

/* Pointers of an interior node, journal keys included, in order. */
static struct keys_walk children_begin(const struct btrees *trees, const struct node_ptr *p,
				       const struct node_keys *keys, struct bpos pos)
{
	return keys_walk_begin(trees, p->btree_id, p->level, keys, pos, p->max_key);
}

static void children_report(struct btrees *trees, const struct node_ptr *p, struct bpos pos, const struct fault *fault)
{
	char position_text[320];
	struct strbuf position = strbuf_fixed(position_text, sizeof(position_text));

	if (!report_is_new(trees, p, REPORT_KIND_CHILDREN))
		return;
	node_ptr_to_text(&position, p);
	strbuf_add(&position, ", child ");
	bpos_to_text(&position, pos);
	report_fault(trees->opts.reports, REPORT_DAMAGE, fault, NULL, "btree topology", position_text);
}

static int bounds_fault(struct fault *fault, uint32_t id, const char *field, struct bpos expected, struct bpos found)
{
	char expected_text[96], found_text[96];
	struct strbuf e = strbuf_fixed(expected_text, sizeof(expected_text));
	struct strbuf f = strbuf_fixed(found_text, sizeof(found_text));

	bpos_to_text(&e, expected);
	bpos_to_text(&f, found);
	return fault_set(fault, id, field, expected_text, "%s", found_text);
}

void tree_children_check(struct btrees *trees, const struct node_ptr *p, const struct node_keys *keys)
{
	struct keys_walk w = children_begin(trees, p, keys, p->ptr.min_key);
	struct bpos expected = p->ptr.min_key, last = p->ptr.min_key;
	struct fault fault = { 0 };
	struct bkey_ref k;
	bool any = false;
	int err = 0;

	while (!err && keys_walk_next(&w, &k)) {
		struct node_ptr child;

		any = true;
		last = k.k.p;
		err = node_ptr_decode(trees, p->btree_id, p->level - 1, k, &child, &fault);
		if (!err && !bpos_eq(child.ptr.min_key, expected))
			err = bounds_fault(&fault, ERROR_btree_node_topology_bad_min_key, "min_key", expected,
					   child.ptr.min_key);
		expected = bpos_successor(k.k.p);
	}
	if (!err && !any)
		err = fault_set(&fault, ERROR_btree_node_topology_interior_node_empty, "children", "at least 1", "0");
	if (!err && !bpos_eq(last, p->max_key))
		err = bounds_fault(&fault, ERROR_btree_node_topology_bad_max_key, "position of the last child",
				   p->max_key, last);
	if (err)
		children_report(trees, p, last, &fault);
}

/*
 * The child of @node for @pos. 0, or an error with the range that can't be reached in @min..@max, which begins at or
 * before @pos and doesn't end before it.
 */
static int child_find(struct btrees *trees, const struct btree_node *node, struct bpos pos, struct node_ptr *child,
		      struct bpos *min, struct bpos *max)
{
	struct keys_walk w = children_begin(trees, &node->id, &node->keys, pos);
	struct bkey_ref k;

	*min = pos;
	*max = node->id.max_key;
	if (!keys_walk_next(&w, &k))
		return -EIO;
	*max = k.k.p;
	if (node_ptr_decode(trees, node->id.btree_id, node->id.level - 1, k, child, NULL))
		return -EIO;
	if (bpos_lt(pos, child->ptr.min_key)) {
		*max = bpos_predecessor(child->ptr.min_key);
		return -EIO;
	}
	*min = child->ptr.min_key;
	return 0;
}

/*
 * A reference to the root node, or, in a btree without one, the lock on that. 1, 0 when there is no such level, or an
 * error. While the root is locked its pointer is current, so the reference is taken under its lock.
 */
static int root_ref(struct btrees *trees, unsigned btree_id, unsigned level, struct btree_node **node, bool *must_load)
{
	struct tree_root *root = &trees->roots[btree_id];
	int ret = 1;

	six_lock_read(&root->lock);
	*node = NULL;
	if (!root->exists) {
		if (!level)
			return 1;
		ret = 0;
	} else if (level > root->ptr.level) {
		ret = 0;
	} else if (root->is_damaged) {
		ret = -EIO;
	} else {
		*node = node_ref(trees, &root->ptr, must_load);
		if (!*node)
			ret = -ENOMEM;
	}
	six_unlock_read(&root->lock);
	return ret;
}

/* One step down from @place->node, which is locked: to a reference to the child. */
static int child_ref(struct btrees *trees, struct bpos pos, struct tree_place *place, struct btree_node **child,
		     bool *must_load)
{
	struct node_ptr p;
	int err = child_find(trees, place->node, pos, &p, &place->min, &place->max);

	if (err)
		return err;
	*child = node_ref(trees, &p, must_load);
	return *child ? 0 : -ENOMEM;
}

int tree_descend(struct btrees *trees, unsigned btree_id, unsigned level, struct bpos pos, struct tree_place *place)
{
	if (btree_id >= BTREE_NR_MAX) {
		*place = (struct tree_place){ .min = POS_MIN, .max = SPOS_MAX };
		return -EINVAL;
	}
again:
	*place = (struct tree_place){ .min = POS_MIN, .max = SPOS_MAX };

	struct btree_node *node;
	bool must_load;
	int ret = root_ref(trees, btree_id, level, &node, &must_load);

	if (ret <= 0 || !node)
		return ret;
	for (;;) {
		int err = node_load(trees, node, must_load);

		if (err)
			return err;
		six_lock_read(&node->lock);
		if (node->is_retired) {
			six_unlock_read(&node->lock);
			node_put(node);
			goto again;
		}
		place->node = node;
		if (node->id.level == level)
			return 1;
		err = child_ref(trees, pos, place, &node, &must_load);
		six_unlock_read(&place->node->lock);
		node_put(place->node);
		place->node = NULL;
		if (err)
			return err;
	}
}

/* --- all nodes of a tree --- */

struct nodes_walk {
	struct btrees *trees;
	int (*fn)(void *ctx, const struct btree_node_info *info, int err);
	void *ctx;
};

static struct btree_node_info node_info_of_ptr(const struct node_ptr *p)
{
	return (struct btree_node_info){
		.btree_id = p->btree_id,
		.level = p->level,
		.min_key = p->ptr.min_key,
		.max_key = p->max_key,
		.seq = p->ptr.seq,
		.ptr = p->ptr,
	};
}

/* Everything that a visit tells of a node. */
static struct btree_node_info node_info(const struct btree_node *node)
{
	const struct node_keys *keys = &node->keys;
	struct btree_node_info info = node_info_of_ptr(&node->id);

	info.format = keys->format;
	info.set_nr = keys->set_nr;
	info.live_u64s = keys->live_u64s;
	info.written_sectors = node->id.ptr.sectors_written;
	info.key_nr = keys->key_nr - keys->lost_nr;
	info.bad_key_nr = keys->bad_key_nr;
	return info;
}

static int node_walk(const struct nodes_walk *walk, const struct node_ptr *p, struct btree_node *node, bool must_load);

/* The children of @node from @pos on. A child is looked up anew each time, since no lock is held between them. */
static int children_walk(const struct nodes_walk *walk, struct btree_node *node)
{
	struct btrees *trees = walk->trees;
	struct bpos pos = node->id.ptr.min_key;
	int err = 0;

	while (!err) {
		struct btree_node *child = NULL;
		struct btree_node_info info;
		struct node_ptr p;
		struct bkey_ref k;
		bool must_load;

		six_lock_read(&node->lock);
		struct keys_walk w = children_begin(trees, &node->id, &node->keys, pos);
		bool is_there = keys_walk_next(&w, &k);
		int child_err = 0;
		if (is_there) {
			child_err = node_ptr_decode(trees, node->id.btree_id, node->id.level - 1, k, &p, NULL);
			if (!child_err)
				child = node_ref(trees, &p, &must_load);
			if (!child_err && !child)
				child_err = -ENOMEM;
		}
		six_unlock_read(&node->lock);
		if (!is_there)
			break;
		if (child) {
			err = node_walk(walk, &p, child, must_load);
		} else {
			info = node_info_of_ptr(&p);
			info.ptr.ptr_nr = 0;
			err = walk->fn(walk->ctx, &info, child_err);
		}
		if (bpos_le(node->id.max_key, p.max_key))
			break;
		pos = bpos_successor(p.max_key);
	}
	return err;
}

/* Recursion is as deep as the tree: BTREE_LEVEL_MAX + 1 at most. Gives the reference to @node back. */
static int node_walk(const struct nodes_walk *walk, const struct node_ptr *p, struct btree_node *node, bool must_load)
{
	struct btree_node_info info = node_info_of_ptr(p);
	int err = node_load(walk->trees, node, must_load);

	if (err)
		return walk->fn(walk->ctx, &info, err);
	six_lock_read(&node->lock);
	info = node_info(node);
	six_unlock_read(&node->lock);
	err = walk->fn(walk->ctx, &info, 0);
	if (!err && node->id.level)
		err = children_walk(walk, node);
	node_put(node);
	return err;
}

int btree_nodes_walk(struct btrees *trees, unsigned btree_id,
		     int (*fn)(void *ctx, const struct btree_node_info *info, int err), void *ctx)
{
	struct nodes_walk walk = { trees, fn, ctx };
	struct btree_node *node;
	bool must_load;

	if (btree_id >= BTREE_NR_MAX)
		return -EINVAL;
	struct tree_root *root = &trees->roots[btree_id];
	int ret = root_ref(trees, btree_id, 0, &node, &must_load);
	if (ret == -EIO) {
		struct btree_node_info info = node_info_of_ptr(&root->ptr);

		return fn(ctx, &info, -EIO);
	}
	if (ret < 0)
		return ret;
	if (!node) {
		six_unlock_read(&root->lock);
		return 0;
	}
	six_lock_read(&root->lock);
	const struct node_ptr p = root->ptr;
	six_unlock_read(&root->lock);
	return node_walk(&walk, &p, node, must_load);
}

/* --- what has been reported --- */

bool report_is_new(struct btrees *trees, const struct node_ptr *p, enum report_kind kind)
{
	struct reported *reported = &trees->reported;
	uint64_t hash = (node_ptr_hash(p) ^ (uint64_t)kind << 60) | 1; /* never 0, which marks a free place */
	unsigned at = (hash >> 1) % REPORTED_NR;
	bool is_new = true;

	mutex_lock(&reported->lock);
	for (unsigned i = 0; i < REPORTED_NR && reported->hash[at]; i++, at = (at + 1) % REPORTED_NR)
		if (reported->hash[at] == hash) {
			is_new = false;
			break;
		}
	if (is_new && !reported->hash[at])
		reported->hash[at] = hash;
	mutex_unlock(&reported->lock);
	return is_new;
}
