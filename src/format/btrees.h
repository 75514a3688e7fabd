/* The btrees: ids, names and what kind of keys they hold. One table (btrees.c). */
#ifndef KILN_FORMAT_BTREES_H
#define KILN_FORMAT_BTREES_H

#include <stdbool.h>
#include <stdint.h>

enum btree_id {
	BTREE_EXTENTS,
	BTREE_INODES,
	BTREE_DIRENTS,
	BTREE_XATTRS,
	BTREE_ALLOC,
	BTREE_QUOTAS,
	BTREE_STRIPES,
	BTREE_REFLINK,
	BTREE_SUBVOLUMES,
	BTREE_SNAPSHOTS,
	BTREE_LRU,
	BTREE_FREESPACE,
	BTREE_NEED_DISCARD,
	BTREE_BACKPOINTERS,
	BTREE_BUCKET_GENS,
	BTREE_SNAPSHOT_TREES,
	BTREE_DELETED_INODES,
	BTREE_LOGGED_OPS,
	BTREE_REBALANCE_WORK,
	BTREE_NR_1_4, /* the ones that format 1.4 knows */
	BTREE_SUBVOLUME_CHILDREN = BTREE_NR_1_4,
	BTREE_ACCOUNTING,
	BTREE_RECONCILE_HIPRI,
	BTREE_RECONCILE_PENDING,
	BTREE_RECONCILE_SCAN,
	BTREE_RECONCILE_WORK_PHYS,
	BTREE_RECONCILE_HIPRI_PHYS,
	BTREE_BUCKET_TO_STRIPE,
	BTREE_STRIPE_BACKPOINTERS,
	BTREE_DAMAGE,
	BTREE_NR_KNOWN,
	BTREE_NR_MAX = 63, /* ids 0..62 are possible; roots of unknown ones are kept, not interpreted */
};

enum btree_flags {
	BTREE_IS_EXTENTS = 1,	      /* positions are ends of ranges, keys have sizes */
	BTREE_HAS_SNAPSHOTS = 2,      /* leaf keys must have a snapshot, and are filtered by it */
	BTREE_HAS_SNAPSHOT_FIELD = 4, /* snapshot is just part of the position */
	BTREE_HAS_DATA = 8,	      /* keys point at user data */
	BTREE_IS_WRITE_BUFFERED = 16,
};

enum { BTREE_LEVEL_MAX = 3 }; /* 0 is a leaf */

/* Name ("extents") or NULL for unknown ids. */
const char *btree_name(unsigned id);
/* Flags above; 0 for unknown ids with BTREE_HAS_SNAPSHOT_FIELD set, so that nothing is refused. */
unsigned btree_flags(unsigned id);
/* Id of a name or decimal number; -ENOENT. */
int btree_id_parse(const char *name);

#endif
