/* Names of the metadata versions. */
#include "format/version.h"

#include <stddef.h>

#include "base/util.h"

static const char *const version_names_major_0[] = {
	[10] = "bkey_renumber",
	[11] = "inode_btree_change",
	[12] = "snapshot",
	[13] = "inode_backpointers",
	[14] = "btree_ptr_sectors_written",
	[15] = "snapshot_2",
	[16] = "reflink_p_fix",
	[17] = "subvol_dirent",
	[18] = "inode_v2",
	[19] = "freespace",
	[20] = "alloc_v4",
	[21] = "new_data_types",
	[22] = "backpointers",
	[23] = "inode_v3",
	[24] = "unwritten_extents",
	[25] = "bucket_gens",
	[26] = "lru_v2",
	[27] = "fragmentation_lru",
	[28] = "no_bps_in_alloc_keys",
	[29] = "snapshot_trees",
};

static const char *const version_names_major_1[] = {
	[0] = "major_minor",
	[1] = "snapshot_skiplists",
	[2] = "deleted_inodes",
	[3] = "rebalance_work",
	[4] = "member_seq",
	[5] = "subvolume_fs_parent",
	[6] = "btree_subvolume_children",
	[7] = "mi_btree_bitmap",
	[8] = "bucket_stripe_sectors",
	[9] = "disk_accounting_v2",
	[10] = "disk_accounting_v3",
	[11] = "disk_accounting_inum",
	[12] = "rebalance_work_acct_fix",
	[13] = "inode_has_child_snapshots",
	[14] = "backpointer_bucket_gen",
	[15] = "disk_accounting_big_endian",
	[16] = "reflink_p_may_update_opts",
	[17] = "inode_depth",
	[18] = "persistent_inode_cursors",
	[19] = "autofix_errors",
	[20] = "directory_size",
	[21] = "cached_backpointers",
	[22] = "stripe_backpointers",
	[23] = "stripe_lru",
	[24] = "casefolding",
	[25] = "extent_flags",
	[26] = "snapshot_deletion_v2",
	[27] = "fast_device_removal",
	[28] = "inode_has_case_insensitive",
	[29] = "extent_snapshot_whiteouts",
	[30] = "31bit_dirent_offset",
	[31] = "btree_node_accounting",
	[32] = "sb_field_extent_type_u64s",
	[33] = "reconcile",
	[34] = "extented_key_type_error", /* sic */
	[35] = "bucket_stripe_index",
	[36] = "no_sb_user_data_replicas",
	[37] = "erasure_coding",
	[38] = "need_discard_by_journal_seq",
	[39] = "per_dev_fragmentation_lru",
};
_Static_assert(ARRAY_NR(version_names_major_1) == VERSION_MINOR(VERSION_NEWEST_KNOWN) + 1, "newest version has a name");

const char *version_name(unsigned version)
{
	unsigned minor = VERSION_MINOR(version);

	switch (VERSION_MAJOR(version)) {
	case 0: return minor < ARRAY_NR(version_names_major_0) ? version_names_major_0[minor] : NULL;
	case 1: return minor < ARRAY_NR(version_names_major_1) ? version_names_major_1[minor] : NULL;
	default: return NULL;
	}
}
