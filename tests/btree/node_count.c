/* See node_count.h. */
#include "node_count.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "btree/internal.h"

struct counting {
	const struct btrees *trees;
	struct node_count *c;
	/* Of each level the node seen last, until the next one above it. */
	bool has_last[BTREE_LEVEL_MAX + 1];
	uint32_t last_u64s[BTREE_LEVEL_MAX + 1];
};

/* What merge.c promises: they leave two thirds free, and the two steps that each of them may be off. */
static bool should_be_one(const struct btrees *trees, uint32_t a, uint32_t b)
{
	uint32_t u64s_max = node_u64s_max(trees);

	return a + b <= u64s_max / 3 - u64s_max / 12;
}

static int node_seen(void *ctx, const struct btree_node_info *info, int err)
{
	struct counting *n = ctx;
	unsigned level = info->level;

	assert_int_equal(err, 0);
	n->c->nodes++;
	n->c->levels = max(n->c->levels, level + 1);
	if (!level) {
		n->c->leaves++;
		n->c->leaf_u64s += info->live_u64s;
	}
	if (n->has_last[level] && should_be_one(n->trees, n->last_u64s[level], info->live_u64s))
		n->c->mergeable++;
	n->has_last[level] = true;
	n->last_u64s[level] = info->live_u64s;
	if (level)
		n->has_last[level - 1] = false;
	return 0;
}

void node_count(struct btrees *trees, unsigned btree_id, struct node_count *c)
{
	struct counting n = { .trees = trees, .c = c };

	memset(c, 0, sizeof(*c));
	assert_int_equal(btree_nodes_walk(trees, btree_id, node_seen, &n), 0);
}
