/*
 * Btrees that can be written, for tests: on the backend in memory, or on that of a filesystem in a file, with its
 * allocator and its journal.
 */
#ifndef KILN_TESTS_BTREE_MEMORY_TREES_H
#define KILN_TESTS_BTREE_MEMORY_TREES_H

#include "btree/txn.h"

struct memory_trees {
	struct key_context kctx; /* what was asked for; fill in before opening or let memory_trees_open() */
	struct member_geometry member;
	struct report_sink sink;
	unsigned reports;
	struct btree_memory *memory;
	uint64_t memory_bytes;
	struct btree_snapshots snapshots; /* kept over reopening; set both */
	struct btrees *trees;
	struct btrees_write_stats stats; /* of all that was closed or reopened */
	/* On disk. */
	struct kiln_fs *fs; /* NULL: in memory */
	char path[32];
};

/* @memory_bytes of node cache, 0: plenty. Fails the test when that doesn't work. */
void memory_trees_open(struct memory_trees *m, uint32_t node_bytes, uint64_t memory_bytes);
/* The same in a new filesystem. There are keys already, of its root directory. */
void memory_trees_open_on_disk(struct memory_trees *m, uint32_t node_bytes, uint64_t memory_bytes);
/*
 * Write everything back, and open what is in the backend anew: from there on it is what was written that is read. Not
 * while anybody uses the trees.
 */
void memory_trees_reopen(struct memory_trees *m);
/* Write everything back, and close. Nothing may have been reported. */
void memory_trees_close(struct memory_trees *m);

#endif
