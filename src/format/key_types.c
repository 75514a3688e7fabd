/*
 * The table of key types (02 §3, 12 §6.2). Adding a type is adding a row.
 *
 * Types that aren't in the table are no error: keys of newer versions are kept, and mean nothing here.
 */
#include "format/key_types.h"

#include "base/strbuf.h"
#include "format/alloc.h"
#include "format/dirent.h"
#include "format/error_ids.h"
#include "format/extent.h"
#include "format/file_data.h"
#include "format/inode.h"
#include "format/key_edit.h"
#include "format/logged_op.h"
#include "format/quota.h"
#include "format/snapshot.h"
#include "format/stripe.h"
#include "format/xattr.h"

/* clang-format off */
static const struct key_type key_types[KEY_TYPE_NR] = {
	/*				  name		min	empty	validate		  to_text; cut_front, cut_back, merge */
	[KEY_DELETED]			= { "deleted",			0, false, NULL,			      NULL },
	[KEY_WHITEOUT]			= { "whiteout",			0, false, NULL,			      NULL },
	[KEY_ERROR]			= { "error",			0, false, error_key_validate,	      error_key_to_text },
	[KEY_COOKIE]			= { "cookie",			8, false, NULL,			      cookie_to_text },
	[KEY_HASH_WHITEOUT]		= { "hash_whiteout",		0, true,  NULL,			      NULL },
	[KEY_BTREE_PTR]			= { "btree_ptr",		0, false, btree_ptr_validate,	      btree_ptr_to_text },
	[KEY_EXTENT]			= { "extent",			0, false, extent_validate,	      extent_to_text, extent_cut_front, NULL, extent_merge },
	[KEY_RESERVATION]		= { "reservation",		8, false, reservation_validate,	      reservation_to_text, NULL, NULL, reservation_merge },
	[KEY_INODE]			= { "inode",		       16, false, inode_validate,	      inode_to_text },
	[KEY_INODE_GENERATION]		= { "inode_generation",		8, false, inode_generation_validate,  inode_generation_to_text },
	[KEY_DIRENT]			= { "dirent",		       16, false, dirent_validate,	      dirent_to_text },
	[KEY_XATTR]			= { "xattr",			8, false, xattr_validate,	      xattr_to_text },
	[KEY_ALLOC]			= { "alloc",			8, false, alloc_validate,	      alloc_to_text },
	[KEY_QUOTA]			= { "quota",		       32, false, quota_validate,	      quota_to_text },
	[KEY_STRIPE]			= { "stripe",			8, false, stripe_validate,	      stripe_to_text },
	[KEY_REFLINK_P]			= { "reflink_p",	       16, false, reflink_p_validate,	      reflink_p_to_text, reflink_p_cut_front },
	[KEY_REFLINK_V]			= { "reflink_v",		8, false, extent_validate,	      reflink_v_to_text, extent_cut_front },
	[KEY_INLINE_DATA]		= { "inline_data",		0, false, NULL,			      inline_data_to_text, inline_data_cut_front, inline_data_cut_back },
	[KEY_BTREE_PTR_V2]		= { "btree_ptr_v2",	       40, false, btree_ptr_validate,	      btree_ptr_to_text },
	[KEY_INDIRECT_INLINE_DATA]	= { "indirect_inline_data",	8, false, NULL,			      indirect_inline_data_to_text, inline_data_cut_front, inline_data_cut_back },
	[KEY_ALLOC_V2]			= { "alloc_v2",			8, false, alloc_validate,	      alloc_to_text },
	[KEY_SUBVOLUME]			= { "subvolume",	       16, false, subvolume_validate,	      subvolume_to_text },
	[KEY_SNAPSHOT]			= { "snapshot",		       24, false, snapshot_validate,	      snapshot_to_text },
	[KEY_INODE_V2]			= { "inode_v2",		       32, false, inode_validate,	      inode_to_text },
	[KEY_ALLOC_V3]			= { "alloc_v3",		       16, false, alloc_validate,	      alloc_to_text },
	[KEY_SET]			= { "set",			0, true,  NULL,			      NULL, NULL, NULL, set_merge },
	[KEY_LRU]			= { "lru",			8, false, lru_validate,		      lru_to_text },
	[KEY_ALLOC_V4]			= { "alloc_v4",		       48, false, alloc_validate,	      alloc_to_text },
	[KEY_BACKPOINTER]		= { "backpointer",	       32, false, backpointer_validate,	      backpointer_to_text },
	[KEY_INODE_V3]			= { "inode_v3",		       48, false, inode_validate,	      inode_to_text },
	[KEY_BUCKET_GENS]		= { "bucket_gens",		0, false, bucket_gens_validate,	      bucket_gens_to_text },
	[KEY_SNAPSHOT_TREE]		= { "snapshot_tree",		8, false, snapshot_tree_validate,     snapshot_tree_to_text },
	[KEY_LOGGED_OP_TRUNCATE]	= { "logged_op_truncate",      24, false, NULL,			      logged_op_truncate_to_text },
	[KEY_LOGGED_OP_FINSERT]		= { "logged_op_finsert",       24, false, NULL,			      logged_op_finsert_to_text },
	[KEY_ACCOUNTING]		= { "accounting",		8, false, NULL,			      accounting_to_text },
	[KEY_INODE_ALLOC_CURSOR]	= { "inode_alloc_cursor",      16, false, NULL,			      inode_alloc_cursor_to_text },
	[KEY_EXTENT_WHITEOUT]		= { "extent_whiteout",		0, true,  NULL,			      NULL },
	[KEY_LOGGED_OP_STRIPE_UPDATE]	= { "logged_op_stripe_update", 40, false, NULL,			      logged_op_stripe_update_to_text },
	[KEY_DAMAGE]			= { "damage",			0, false, damage_validate,	      damage_to_text },
};
/* clang-format on */

const struct key_type *key_type(unsigned type) { return type < KEY_TYPE_NR ? &key_types[type] : NULL; }

static int value_size_validate(const struct key_type *type, const struct bkey *k, struct fault *fault)
{
	size_t bytes = bkey_value_bytes(k);

	if (bytes < type->value_bytes_min) {
		char expected[32];
		struct strbuf text = strbuf_fixed(expected, sizeof(expected));

		strbuf_printf(&text, "at least %u bytes", type->value_bytes_min);
		return fault_set(fault, ERROR_bkey_val_size_too_small, "value", expected, "%zu", bytes);
	}
	if (type->is_value_empty && bytes)
		return fault_set(fault, ERROR_bkey_val_size_nonzero, "value", "none", "%zu bytes", bytes);
	return 0;
}

int key_validate_value(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	const struct key_type *type = key_type(k.k.type);

	if (!type)
		return 0;
	int err = value_size_validate(type, &k.k, fault);
	return err || !type->validate ? err : type->validate(k, ctx, fault);
}

int key_validate(struct bkey_ref k, unsigned btree_id, unsigned level, const struct key_context *ctx,
		 struct fault *fault)
{
	int err = bkey_validate(&k.k, btree_id, level, fault);

	return err ? err : key_validate_value(k, ctx, fault);
}

void key_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	const struct key_type *type = key_type(k.k.type);

	bkey_to_text(out, &k.k);
	if (!type || !type->to_text)
		return;
	strbuf_add(out, ": ");
	if (value_size_validate(type, &k.k, NULL))
		strbuf_printf(out, "(value of %zu bytes)", bkey_value_bytes(&k.k));
	else
		type->to_text(out, k, ctx);
}
