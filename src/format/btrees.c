/* The table of btrees (02 §4, 12 §6.1). */
#include "format/btrees.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/util.h"

static const struct {
	const char *name;
	unsigned flags;
} btrees[BTREE_NR_KNOWN] = {
	/* clang-format off */
	[BTREE_EXTENTS]			= { "extents",			BTREE_IS_EXTENTS | BTREE_HAS_SNAPSHOTS | BTREE_HAS_DATA },
	[BTREE_INODES]			= { "inodes",			BTREE_HAS_SNAPSHOTS },
	[BTREE_DIRENTS]			= { "dirents",			BTREE_HAS_SNAPSHOTS },
	[BTREE_XATTRS]			= { "xattrs",			BTREE_HAS_SNAPSHOTS },
	[BTREE_ALLOC]			= { "alloc",			0 },
	[BTREE_QUOTAS]			= { "quotas",			0 },
	[BTREE_STRIPES]			= { "stripes",			0 },
	[BTREE_REFLINK]			= { "reflink",			BTREE_IS_EXTENTS | BTREE_HAS_DATA },
	[BTREE_SUBVOLUMES]		= { "subvolumes",		0 },
	[BTREE_SNAPSHOTS]		= { "snapshots",		0 },
	[BTREE_LRU]			= { "lru",			BTREE_IS_WRITE_BUFFERED },
	[BTREE_FREESPACE]		= { "freespace",		BTREE_IS_EXTENTS },
	[BTREE_NEED_DISCARD]		= { "need_discard",		0 },	/* write-buffered from 1.38 on */
	[BTREE_BACKPOINTERS]		= { "backpointers",		BTREE_IS_WRITE_BUFFERED },
	[BTREE_BUCKET_GENS]		= { "bucket_gens",		0 },
	[BTREE_SNAPSHOT_TREES]		= { "snapshot_trees",		0 },
	[BTREE_DELETED_INODES]		= { "deleted_inodes",		BTREE_HAS_SNAPSHOT_FIELD | BTREE_IS_WRITE_BUFFERED },
	[BTREE_LOGGED_OPS]		= { "logged_ops",		0 },
	[BTREE_REBALANCE_WORK]		= { "rebalance_work",		BTREE_HAS_SNAPSHOT_FIELD | BTREE_IS_WRITE_BUFFERED },
	[BTREE_SUBVOLUME_CHILDREN]	= { "subvolume_children",	0 },
	[BTREE_ACCOUNTING]		= { "accounting",		BTREE_HAS_SNAPSHOT_FIELD },
	[BTREE_RECONCILE_HIPRI]		= { "reconcile_hipri",		BTREE_HAS_SNAPSHOT_FIELD | BTREE_IS_WRITE_BUFFERED },
	[BTREE_RECONCILE_PENDING]	= { "reconcile_pending",	BTREE_HAS_SNAPSHOT_FIELD | BTREE_IS_WRITE_BUFFERED },
	[BTREE_RECONCILE_SCAN]		= { "reconcile_scan",		0 },
	[BTREE_RECONCILE_WORK_PHYS]	= { "reconcile_work_phys",	BTREE_IS_WRITE_BUFFERED },
	[BTREE_RECONCILE_HIPRI_PHYS]	= { "reconcile_hipri_phys",	BTREE_IS_WRITE_BUFFERED },
	[BTREE_BUCKET_TO_STRIPE]	= { "bucket_to_stripe",		0 },
	[BTREE_STRIPE_BACKPOINTERS]	= { "stripe_backpointers",	BTREE_IS_WRITE_BUFFERED },
	[BTREE_DAMAGE]			= { "damage",			BTREE_HAS_SNAPSHOTS },
	/* clang-format on */
};

const char *btree_name(unsigned id) { return id < BTREE_NR_KNOWN ? btrees[id].name : NULL; }

unsigned btree_flags(unsigned id) { return id < BTREE_NR_KNOWN ? btrees[id].flags : BTREE_HAS_SNAPSHOT_FIELD; }

int btree_id_parse(const char *name)
{
	for (unsigned id = 0; id < BTREE_NR_KNOWN; id++)
		if (!strcmp(name, btrees[id].name))
			return (int)id;

	int id = 0;
	for (const char *c = name; *c; c++) {
		if (*c < '0' || *c > '9')
			return -ENOENT;
		id = id * 10 + (*c - '0');
		if (id >= BTREE_NR_MAX)
			return -ENOENT;
	}
	return *name ? id : -ENOENT;
}
