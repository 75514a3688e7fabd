/*
 * The snapshot tree in memory: which snapshot descends from which (05 §1, §3.1).
 *
 * A sorted array of all snapshot nodes, read once at open and immutable since (this side only reads). 64 bytes per
 * snapshot: one of the few structures that grow with the filesystem, by its number of snapshots.
 *
 * Invariant: every entry's parent and skip entries are 0 or greater than its id, so that walks towards the root always
 * end.
 */
#ifndef KILN_NAMESPACE_SNAPSHOTS_H
#define KILN_NAMESPACE_SNAPSHOTS_H

#include "btree/btree.h"
#include "format/snapshot.h"

struct snapshot_entry {
	uint32_t id;
	struct snapshot s;
};

struct snapshot_table {
	size_t nr, capacity;
	struct snapshot_entry *entries; /* ascending ids */
	bool is_incomplete; /* part of the btree couldn't be read: is_ancestor falls back to comparing ids */
};

/* Read the table. 0, or -ENOMEM. Damage makes it incomplete and is told through @err_out (may be NULL). */
int snapshot_table_read(struct snapshot_table *t, struct btrees *trees, int *err_out);
void snapshot_table_free(struct snapshot_table *t);
const struct snapshot *snapshot_table_find(const struct snapshot_table *t, uint32_t id);
/* Is @ancestor the snapshot @id or one of its ancestors? In the form btrees_set_snapshots() wants; @ctx is the table.
 */
bool snapshot_is_ancestor(void *ctx, uint32_t id, uint32_t ancestor);
/* Might any snapshot descend from @id? In the same form. */
bool snapshot_has_children(void *ctx, uint32_t id);

#endif
