/* How many nodes a btree has, and how many it needn't have, for tests. */
#ifndef KILN_TESTS_BTREE_NODE_COUNT_H
#define KILN_TESTS_BTREE_NODE_COUNT_H

#include "btree/btree.h"

struct node_count {
	unsigned nodes, leaves, levels;
	unsigned mergeable; /* pairs of neighbours below one parent that should be one node */
	uint64_t leaf_u64s; /* of all keys */
};
/* Count the nodes of a btree. All of it must be readable. */
void node_count(struct btrees *trees, unsigned btree_id, struct node_count *c);

#endif
