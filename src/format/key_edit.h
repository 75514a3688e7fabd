/*
 * Editing keys: trimming and joining extents (06 §5.1, §5.3), and changing the pointers of one (06 §5.4).
 *
 * What differs between key types is in their row (format/key_types.h); callers use the functions here, which work on
 * every type. A key is edited in a buffer of its own.
 */
#ifndef KILN_FORMAT_KEY_EDIT_H
#define KILN_FORMAT_KEY_EDIT_H

#include "format/extent.h"
#include "format/key_types.h"

/* A key that owns its value. */
struct key_buf {
	struct bkey k;
	uint8_t value[BKEY_VALUE_U64S_MAX * 8] __attribute__((aligned(8)));
};
void key_buf_load(struct key_buf *b, struct bkey_ref k);
static inline struct bkey_ref key_buf_ref(const struct key_buf *b)
{
	return (struct bkey_ref){ .k = b->k, .value = b->value };
}

/* --- extents as ranges --- */

/*
 * The extent loses what lies before @start, or from @end on; both within [its start, its end]. What nothing is left of
 * becomes a deleted key, at the same position.
 */
void key_cut_front(struct key_buf *b, uint64_t start, const struct key_context *ctx);
void key_cut_back(struct key_buf *b, uint64_t end, const struct key_context *ctx);
/*
 * Make one key of two extents when one can say what they say: then @left grows by @right, and takes its position. Of
 * one inode and snapshot and version, @right starting where @left ends; whether a descendant snapshot minds is the
 * caller's question. False: nothing has changed.
 */
bool key_merge(struct key_buf *left, struct bkey_ref right, const struct key_context *ctx);

/* --- pointers (of extent and reflink_v keys) --- */

/* A value taken apart, to be changed and put together again. */
struct extent_value {
	unsigned ptr_nr;
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX]; /* those without descriptor first, as in the value */
	bool has_rebalance;
	struct extent_rebalance rebalance;
};
/* 0, -KILN_E_INVALID, or -KILN_E_UNSUPPORTED for entries that a newer version wrote. */
int extent_value_load(struct extent_value *v, struct bkey_ref k, const struct key_context *ctx);
/*
 * Write the entries into @b->value (behind the reference count, in a reflink_v) and set value_u64s. Each descriptor
 * takes the smallest form that holds it, and is left out where it says nothing (06 §2.3). 0, or -KILN_E_INVALID for a
 * descriptor that no form holds.
 */
int extent_value_store(const struct extent_value *v, struct key_buf *b);

/* Add a pointer with its descriptor, where 06 §5.4 puts it. -KILN_E_INVALID: too many. */
int key_ptr_add(struct key_buf *b, const struct extent_ptr_decoded *ptr, const struct key_context *ctx);
/*
 * Drop pointers; bit i of @mask means pointer i in the order of the value. If no dirty one is left that was there, the
 * key becomes `error`: its data is lost; if there were only cached ones and none is left, `deleted`.
 */
int key_ptrs_drop(struct key_buf *b, uint32_t mask, const struct key_context *ctx);
/* Make pointers cached ones, which no stripe counts on. */
int key_ptrs_set_cached(struct key_buf *b, uint32_t mask, const struct key_context *ctx);
/* Drop the cached pointers that @is_stale says are so. */
int key_ptrs_normalise(struct key_buf *b, bool (*is_stale)(void *arg, const struct extent_ptr *ptr), void *arg,
		       const struct key_context *ctx);
/* Set, replace or (NULL) remove the rebalance entry. */
int key_rebalance_set(struct key_buf *b, const struct extent_rebalance *r, const struct key_context *ctx);

/* --- rows of key types --- */

void extent_cut_front(struct key_buf *b, uint32_t sectors, const struct key_context *ctx);
bool extent_merge(struct key_buf *left, struct bkey_ref right, const struct key_context *ctx);
void reflink_p_cut_front(struct key_buf *b, uint32_t sectors, const struct key_context *ctx);
void inline_data_cut_front(struct key_buf *b, uint32_t sectors, const struct key_context *ctx);
void inline_data_cut_back(struct key_buf *b, const struct key_context *ctx);
bool reservation_merge(struct key_buf *left, struct bkey_ref right, const struct key_context *ctx);
bool set_merge(struct key_buf *left, struct bkey_ref right, const struct key_context *ctx);

#endif
