/*
 * Pointers to btree nodes: btree_ptr_v2 (18), and its predecessor btree_ptr (5), which can be checked and printed but
 * is not followed, since images at 1.0 and above hold none. 02 §7.1, 12 §8.3.
 *
 * The key's position is the last position of the node. Every pointer stands for a whole node, so its size is the
 * node's, not the key's.
 */
#include <assert.h>
#include <inttypes.h>

#include "format/error_ids.h"
#include "format/extent.h"
#include "format/value.h"

struct btree_ptr_v2_disk {
	le64 mem_ptr; /* scratch of whoever wrote it: ignored */
	le64 seq;
	le16 sectors_written;
	le16 flags; /* [0,1) range updated */
	struct bpos_disk min_key;
};
_Static_assert(sizeof(struct btree_ptr_v2_disk) == BTREE_PTR_V2_HEADER_BYTES, "header of btree_ptr_v2 is 40 bytes");

/* Words of a value, at most. */
enum { BTREE_PTR_U64S_MAX = 4, BTREE_PTR_V2_U64S_MAX_1_4 = 9, BTREE_PTR_V2_U64S_MAX = 15 };

static bool is_allowed_in_btree_ptr(unsigned entry_type, const struct key_context *ctx)
{
	return entry_type == EXTENT_ENTRY_PTR || (ctx->is_newer && entry_type > EXTENT_ENTRY_FLAGS);
}

int btree_ptr_decode(struct bkey_ref k, const struct key_context *ctx, struct btree_ptr *p, struct fault *fault)
{
	struct extent_walk w = { .entry_u64s = ctx->entry_type_u64s };
	struct btree_ptr_v2_disk d;
	struct extent_entry entry;
	int more;

	if (k.k.type != KEY_BTREE_PTR_V2 || bkey_value_bytes(&k.k) < sizeof(d)) {
		fault_set(fault, 0, "pointer to btree node", "btree_ptr_v2 of 40 bytes or more", "type %u, %zu bytes",
			  k.k.type, bkey_value_bytes(&k.k));
		return k.k.type == KEY_BTREE_PTR ? -KILN_E_UNSUPPORTED : -KILN_E_INVALID;
	}
	value_load(&d, sizeof(d), k);
	*p = (struct btree_ptr){
		.seq = le64_get(d.seq),
		.sectors_written = le16_get(d.sectors_written),
		.is_range_updated = le16_get(d.flags) & 1,
		.min_key = bpos_load(&d.min_key),
	};

	extent_entries_of(k, &w.pos, &w.end);
	while ((more = extent_walk_next(&w, &entry, fault)) > 0) {
		if (entry.type != EXTENT_ENTRY_PTR)
			continue;
		if (p->ptr_nr == EXTENT_PTRS_MAX)
			return fault_set(fault, ERROR_extent_ptrs_too_many_ptrs, "pointers", "at most 16", "more");
		p->ptrs[p->ptr_nr++] = extent_ptr_load(entry.bytes);
	}
	return more;
}

unsigned btree_ptr_encode(const struct btree_ptr *p, void *value)
{
	struct btree_ptr_v2_disk d = {
		.seq = le64_of(p->seq),
		.sectors_written = le16_of(p->sectors_written),
		.flags = le16_of(p->is_range_updated),
	};
	uint8_t *at = (uint8_t *)value + sizeof(d);

	assert(p->ptr_nr <= EXTENT_PTRS_MAX);
	bpos_store(&d.min_key, p->min_key);
	memcpy(value, &d, sizeof(d));
	for (unsigned i = 0; i < p->ptr_nr; i++, at += 8)
		extent_ptr_store(at, &p->ptrs[i]);
	return BTREE_PTR_V2_HEADER_BYTES / 8 + p->ptr_nr;
}

static int entries_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	struct extent_walk w = { .entry_u64s = ctx->entry_type_u64s };
	struct extent_entry entry;
	struct dev_set seen = { 0 };
	unsigned ptr_nr = 0;
	int more, err;

	extent_entries_of(k, &w.pos, &w.end);
	while ((more = extent_walk_next(&w, &entry, fault)) > 0) {
		if (!is_allowed_in_btree_ptr(entry.type, ctx))
			return fault_set(fault, ERROR_btree_ptr_has_non_ptr, "extent entry type", "pointers only", "%u",
					 entry.type);
		if (entry.type != EXTENT_ENTRY_PTR)
			continue;
		struct extent_ptr p = extent_ptr_load(entry.bytes);
		if (p.is_unwritten)
			return fault_set(fault, ERROR_extent_ptrs_unwritten, "pointer", "written", "unwritten");
		if ((err = extent_ptr_validate(&p, ctx->node_sectors, ctx, &seen, fault)))
			return err;
		ptr_nr++;
	}
	if (more)
		return more;
	if (!ptr_nr)
		return fault_set(fault, ERROR_extent_ptrs_no_ptrs, "pointers", "at least 1", "0");
	return 0;
}

int btree_ptr_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	bool is_v2 = k.k.type == KEY_BTREE_PTR_V2;
	unsigned u64s_max = !is_v2	    ? BTREE_PTR_U64S_MAX
			    : ctx->is_newer ? BTREE_PTR_V2_U64S_MAX
					    : BTREE_PTR_V2_U64S_MAX_1_4;

	if (k.k.value_u64s > u64s_max)
		return fault_set(fault, is_v2 ? ERROR_btree_ptr_v2_val_too_big : ERROR_btree_ptr_val_too_big, "value",
				 is_v2 ? (ctx->is_newer ? "at most 15 words" : "at most 9 words") : "at most 4 words",
				 "%u", k.k.value_u64s);
	if (is_v2) {
		struct btree_ptr_v2_disk d;

		value_load(&d, sizeof(d), k);
		if (bpos_lt(k.k.p, bpos_load(&d.min_key)))
			return fault_set(fault, ERROR_btree_ptr_v2_min_key_bad, "min_key", "at most the key's position",
					 "a later one");
	}
	return entries_validate(k, ctx, fault);
}

void btree_ptr_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	if (k.k.type == KEY_BTREE_PTR_V2) {
		struct btree_ptr_v2_disk d;

		value_load(&d, sizeof(d), k);
		strbuf_printf(out, "seq %" PRIx64 " written %u%s min_key ", le64_get(d.seq),
			      le16_get(d.sectors_written), le16_get(d.flags) & 1 ? " range_updated" : "");
		bpos_to_text(out, bpos_load(&d.min_key));
		strbuf_add_char(out, ' ');
	}
	extent_to_text(out, k, ctx);
}
