/* The order of node locks, for the checker of base/lock_order.h. */
#include "base/lock_order.h"
#include "base/strbuf.h"
#include "btree/internal.h"

/*
 * Where a lock stands in the order: btree, root, levels from the root down, position, seq, end. Cached keys come after
 * all nodes.
 */
struct lock_place {
	bool is_cached;
	unsigned btree_id, level;
	struct bpos min;
	uint64_t seq;
	struct bpos max;
};

static int place_compare(const struct six_lock *a, const struct six_lock *b);
static void place_describe(struct strbuf *out, const struct six_lock *lock);

static const struct six_class root_class = { place_compare, place_describe };
static const struct six_class node_class = { place_compare, place_describe };
static const struct six_class cached_class = { place_compare, place_describe };

static struct lock_place lock_place(const struct six_lock *lock)
{
	if (lock->class == &root_class) {
		const struct tree_root *root = container_of(lock, struct tree_root, lock);

		return (struct lock_place){ .btree_id = root->btree_id, .level = BTREE_LEVEL_MAX + 1 };
	}
	if (lock->class == &cached_class) {
		const struct cached_id id = cached_key_id_of_lock(lock);

		return (struct lock_place){ .is_cached = true, .btree_id = id.btree_id, .min = id.pos };
	}
	const struct btree_node *node = container_of(lock, struct btree_node, lock);

	return (struct lock_place){ .btree_id = node->id.btree_id,
				    .level = node->id.level,
				    .min = node->id.ptr.min_key,
				    .seq = node->id.ptr.seq,
				    .max = node->id.max_key };
}

static int place_compare(const struct six_lock *lock_a, const struct six_lock *lock_b)
{
	const struct lock_place a = lock_place(lock_a), b = lock_place(lock_b);

	if (a.is_cached != b.is_cached)
		return a.is_cached ? 1 : -1;
	if (a.btree_id != b.btree_id)
		return a.btree_id < b.btree_id ? -1 : 1;
	if (a.level != b.level)
		return a.level > b.level ? -1 : 1;
	int c = bpos_cmp(a.min, b.min);

	if (c || a.seq != b.seq)
		return c ? c : a.seq < b.seq ? -1 : 1;
	return bpos_cmp(a.max, b.max);
}

static void place_describe(struct strbuf *out, const struct six_lock *lock)
{
	const struct lock_place p = lock_place(lock);

	if (p.level > BTREE_LEVEL_MAX) {
		strbuf_printf(out, "the root of %s", btree_name(p.btree_id));
		return;
	}
	if (p.is_cached)
		strbuf_printf(out, "cached %s, ", btree_name(p.btree_id));
	else
		strbuf_printf(out, "%s, level %u, ", btree_name(p.btree_id), p.level);
	bpos_to_text(out, p.min);
}

void root_lock_init(struct btrees *trees, unsigned btree_id)
{
	struct tree_root *root = &trees->roots[btree_id];

	root->btree_id = (uint8_t)btree_id;
	six_lock_init(&root->lock, &root_class);
}

void node_lock_init(struct btree_node *node) { six_lock_init(&node->lock, &node_class); }
void cached_lock_init(struct six_lock *lock) { six_lock_init(lock, &cached_class); }
