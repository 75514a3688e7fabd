/*
 * Btrees that can be written, for tests: on the backend in memory, or on that of a filesystem in a file, with its
 * allocator and its journal.
 *
 * Not on either: tests of reading (cache, damage, hostile, iterate, snapshots), whose nodes are made up and damaged by
 * hand (fixture.h); of crashes (crash, journalled), whose journal is the test's to stop anywhere; and of the write
 * buffer alone, which stands between two that only take notes.
 */
#ifndef KILN_TESTS_BTREE_MEMORY_TREES_H
#define KILN_TESTS_BTREE_MEMORY_TREES_H

#include "btree/txn.h"

struct memory_trees {
	struct key_context kctx; /* what was asked for; fill in before opening or let memory_trees_open() */
	struct member_geometry member;
	struct report_sink sink;
	unsigned reports;
	uint32_t cached_btrees; /* memory_trees_cache() */
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
/*
 * The same in a new filesystem of 256 MiB, which wants 32 MiB of node cache at least. There are keys already, of its
 * root directory. Buckets are as large as in memory, and none from TREES_FREE_BUCKET on is used before the others are:
 * keys may point there.
 */
enum { TREES_BUCKET_SECTORS = 1024, TREES_FREE_BUCKET = 300 };
void memory_trees_open_on_disk(struct memory_trees *m, uint32_t node_bytes, uint64_t memory_bytes);
/* One or the other, for tests that run on both: two of cmocka's tests, which know by their state where they are. */
enum trees_place { TREES_IN_MEMORY, TREES_ON_DISK };
/* clang-format off */
#define TREES_TEST_IN_MEMORY(test, teardown) { #test " (in memory)", test, NULL, teardown, (void *)(uintptr_t)TREES_IN_MEMORY }
#define TREES_TEST_ON_DISK(test, teardown) { #test " (on disk)", test, NULL, teardown, (void *)(uintptr_t)TREES_ON_DISK }
#define TREES_TESTS(test, teardown) TREES_TEST_IN_MEMORY(test, teardown), TREES_TEST_ON_DISK(test, teardown)
/* clang-format on */
static inline enum trees_place trees_place_of(void **state) { return (enum trees_place)(uintptr_t)*state; }

void memory_trees_open_at(struct memory_trees *m, enum trees_place place, uint32_t node_bytes, uint64_t memory_bytes);
/* Keys of @btrees (a mask) are cached from here on, on disk besides those that a filesystem caches. For empty btrees.
 */
void memory_trees_cache(struct memory_trees *m, uint32_t btrees);
/*
 * Write everything back, and open what is in the backend anew: from there on it is what was written that is read. Not
 * while anybody uses the trees.
 */
void memory_trees_reopen(struct memory_trees *m);
/* Write everything back, and close. Nothing may have been reported. */
void memory_trees_close(struct memory_trees *m);

#endif
