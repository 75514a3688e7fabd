/*
 * An allocator with nothing but what it needs, for tests: superblocks on devices in memory, and btrees in memory with
 * the allocator's hooks. There is no journal, so every commit counts as durable; nodes are somewhere else.
 *
 * What points at space is what the test puts: extents, reflink_v, and pretended nodes. space_check() recomputes from
 * these everything that must follow (07 §18) and compares.
 */
#ifndef KILN_TESTS_ALLOC_SPACE_H
#define KILN_TESTS_ALLOC_SPACE_H

#include "alloc/internal.h"
#include "base/clock.h"

enum { SPACE_DEVS_MAX = 4, SPACE_NODES_MAX = 64 };

/* A pointer to a node that isn't there; the first replica is at ptrs[0]. */
struct space_node {
	bool exists;
	struct bpos pos;
	struct btree_ptr ptr;
};

struct space {
	unsigned dev_nr;
	struct super *super;
	struct journal_state state;
	struct btree_memory *memory;
	struct btrees *trees;
	struct allocator *allocator;
	struct report_sink sink;
	unsigned reports;
	unsigned replicas_marked;
	struct space_node nodes[SPACE_NODES_MAX];
	struct mutex lock; /* of reports and nodes */
};

struct space_opts {
	unsigned dev_nr;
	uint64_t dev_bytes;
	uint32_t node_bytes;		     /* 0: 64 KiB */
	unsigned metadata_replicas;	     /* 0: one */
	unsigned durability[SPACE_DEVS_MAX]; /* of each device, when is_durability_set */
	bool is_durability_set, is_freespace_late;
	const char *label[SPACE_DEVS_MAX];
};

void space_open(struct space *s, const struct space_opts *opts);
void space_close(struct space *s);
/* Compare. Nobody changes anything meanwhile; the discard task is stopped for it. */
void space_check(struct space *s);

/* Run a function in a transaction that must succeed. */
void space_run(struct space *s, btree_txn_fn fn, void *ctx, struct disk_reservation *r);

#endif
