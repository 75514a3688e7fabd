/*
 * The key types: one table with the name, the smallest value, and the functions that validate,
 * print and edit a value.
 */
#ifndef KILN_FORMAT_KEY_TYPES_H
#define KILN_FORMAT_KEY_TYPES_H

#include "format/bkey.h"
#include "format/btrees.h"

struct strbuf;
struct key_buf;

enum bkey_type {
	KEY_DELETED,
	KEY_WHITEOUT,
	KEY_ERROR,
	KEY_COOKIE,
	KEY_HASH_WHITEOUT,
	KEY_BTREE_PTR,
	KEY_EXTENT,
	KEY_RESERVATION,
	KEY_INODE,
	KEY_INODE_GENERATION,
	KEY_DIRENT,
	KEY_XATTR,
	KEY_ALLOC,
	KEY_QUOTA,
	KEY_STRIPE,
	KEY_REFLINK_P,
	KEY_REFLINK_V,
	KEY_INLINE_DATA,
	KEY_BTREE_PTR_V2,
	KEY_INDIRECT_INLINE_DATA,
	KEY_ALLOC_V2,
	KEY_SUBVOLUME,
	KEY_SNAPSHOT,
	KEY_INODE_V2,
	KEY_ALLOC_V3,
	KEY_SET,
	KEY_LRU,
	KEY_ALLOC_V4,
	KEY_BACKPOINTER,
	KEY_INODE_V3,
	KEY_BUCKET_GENS,
	KEY_SNAPSHOT_TREE,
	KEY_LOGGED_OP_TRUNCATE,
	KEY_LOGGED_OP_FINSERT,
	KEY_ACCOUNTING,
	KEY_INODE_ALLOC_CURSOR,
	KEY_EXTENT_WHITEOUT,
	KEY_LOGGED_OP_STRIPE_UPDATE,
	KEY_DAMAGE,
	KEY_TYPE_NR,
};

/* One device slot, as far as pointers must agree with it. */
struct member_geometry {
	bool exists; /* false: free slot, or a deleted one */
	uint16_t bucket_sectors;
	uint16_t first_bucket;
	uint64_t bucket_nr;
	uint8_t durability_stored; /* as in the member's flags: durability + 1; 0 means 1. For to_text */
};

/*
 * What validation must know of the filesystem a key is from. Rules that a newer version relaxed (12 §1.4) are relaxed
 * here when version > 1.4 (is_newer).
 */
struct key_context {
	uint32_t version;	   /* of the superblock */
	uint32_t upgrade_complete; /* VERSION_UPGRADE_COMPLETE: decides where layouts can't be told from the data */
	bool is_newer;		   /* version above 1.4: relaxed rules */
	bool has_key;		   /* the filesystem has an encryption key: MAC checksum types are allowed */
	uint8_t block_sectors;
	uint16_t node_sectors;
	uint32_t encoded_extent_max_sectors; /* of a checksummed or compressed region */
	unsigned member_nr;
	const struct member_geometry *members;
	uint8_t entry_type_u64s[32]; /* superblock section 16: words of each extent entry type; 0 unknown */
	uint32_t backpointer_shift;  /* EXTENT_BP_SHIFT, 10 at 1.4 */
	uint64_t time_base_ns;	     /* inode times are relative to it (04 §1.5) */
	uint32_t time_precision_ns;
};

/* The member @dev, or NULL when there is none (dev 255, free and deleted slots). */
static inline const struct member_geometry *key_context_member(const struct key_context *ctx, unsigned dev)
{
	return dev < ctx->member_nr && ctx->members[dev].exists && ctx->members[dev].bucket_sectors ? &ctx->members[dev]
												    : NULL;
}

/* The version that decides where a layout can't be told from the data (12 §1.1): 0 in the superblock means `version`.
 */
static inline uint32_t key_context_layout_version(const struct key_context *ctx)
{
	return ctx->upgrade_complete ? ctx->upgrade_complete : ctx->version;
}

struct key_type {
	const char *name;
	uint16_t value_bytes_min;
	bool is_value_empty; /* a value must not be there (error 91) */
	/* Value rules; the size rules of the row have been checked. NULL: none. */
	int (*validate)(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
	/* The value, as 11 §8 prints it. NULL: nothing to print. */
	void (*to_text)(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
	/* What format/key_edit.h needs; NULL: trimming doesn't touch the value; keys never merge. */
	/* The value of a key whose front was cut off by @sectors; size has been set already. */
	void (*cut_front)(struct key_buf *b, uint32_t sectors, const struct key_context *ctx);
	/* The value of a key that was cut back to size. */
	void (*cut_back)(struct key_buf *b, const struct key_context *ctx);
	/*
	 * The value of @left becomes that of both, which is of one extent, one after the other, and of equal version.
	 * False, and nothing is changed, when they can't be one key.
	 */
	bool (*merge)(struct key_buf *left, struct bkey_ref right, const struct key_context *ctx);
};

/* Row of @type, or NULL for types that aren't known (which is no error on reading). */
const struct key_type *key_type(unsigned type);

/* Size rules and the type's own rules. Unknown types pass. Returns 0 or -KILN_E_INVALID. */
int key_validate_value(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
/* bkey_validate() and key_validate_value(). For keys from the journal, the clean section, and writers. */
int key_validate(struct bkey_ref k, unsigned btree_id, unsigned level, const struct key_context *ctx,
		 struct fault *fault);
/* Header and value. */
void key_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);

/* True for the types that hide what an ancestor snapshot has, and show nothing themselves: 0, 1, 36. */
static inline bool key_type_is_whiteout(unsigned type)
{
	return type == KEY_DELETED || type == KEY_WHITEOUT || type == KEY_EXTENT_WHITEOUT;
}

#endif
