/*
 * Trimming and joining extents, for every key type. What a type has to do to its value is in its row.
 */
#include "format/key_edit.h"

#include <assert.h>
#include <string.h>

#include "base/util.h"
#include "format/file_data.h"

void key_buf_load(struct key_buf *b, struct bkey_ref k)
{
	b->k = k.k;
	if (k.k.value_u64s)
		memcpy(b->value, k.value, bkey_value_bytes(&k.k));
}

static void key_become_deleted(struct key_buf *b) { b->k = (struct bkey){ .p = b->k.p, .type = KEY_DELETED }; }

void key_cut_front(struct key_buf *b, uint64_t start, const struct key_context *ctx)
{
	const struct key_type *type = key_type(b->k.type);

	assert(start >= bkey_start_offset(&b->k) && start <= b->k.p.offset);
	uint32_t sectors = (uint32_t)(start - bkey_start_offset(&b->k));

	if (!sectors)
		return;
	if (start == b->k.p.offset) {
		key_become_deleted(b);
		return;
	}
	b->k.size -= sectors;
	if (type && type->cut_front)
		type->cut_front(b, sectors, ctx);
}

void key_cut_back(struct key_buf *b, uint64_t end, const struct key_context *ctx)
{
	const struct key_type *type = key_type(b->k.type);

	assert(end >= bkey_start_offset(&b->k) && end <= b->k.p.offset);
	uint32_t sectors = (uint32_t)(b->k.p.offset - end);

	if (!sectors)
		return;
	b->k.p.offset = end;
	if (sectors == b->k.size) {
		key_become_deleted(b);
		return;
	}
	b->k.size -= sectors;
	if (type && type->cut_back)
		type->cut_back(b, ctx);
}

bool key_merge(struct key_buf *left, struct bkey_ref right, const struct key_context *ctx)
{
	const struct key_type *type = key_type(left->k.type);
	const struct bkey *l = &left->k, *r = &right.k;

	if (!type || !type->merge || l->type != r->type || !l->size || !r->size)
		return false;
	if (l->p.inode != r->p.inode || l->p.snapshot != r->p.snapshot || l->p.offset != bkey_start_offset(r))
		return false;
	if (l->version.lo != r->version.lo || l->version.hi != r->version.hi ||
	    (uint64_t)l->size + r->size > UINT32_MAX || !type->merge(left, right, ctx))
		return false;

	left->k.size += right.k.size;
	left->k.p = right.k.p;
	return true;
}

/* --- types with simple values --- */

void reflink_p_cut_front(struct key_buf *b, uint32_t sectors, const struct key_context *ctx)
{
	/* The pads are set anew when the key is inserted. The flags of newer versions are above the sector. */
	uint64_t word = le64_load(b->value);

	le64_store(b->value, bits_set(word, 0, 56, bits_get(word, 0, 56) + sectors));
}

static size_t inline_header_bytes(const struct bkey *k)
{
	return min(k->type == KEY_INDIRECT_INLINE_DATA ? (size_t)8 : 0, bkey_value_bytes(k));
}

void inline_data_cut_front(struct key_buf *b, uint32_t sectors, const struct key_context *ctx)
{
	size_t header = inline_header_bytes(&b->k);
	size_t bytes = bkey_value_bytes(&b->k) - header;
	size_t cut = (size_t)min((uint64_t)bytes, (uint64_t)sectors * SECTOR_BYTES);

	memmove(b->value + header, b->value + header + cut, bytes - cut);
	b->k.value_u64s = (uint8_t)((header + bytes - cut) / 8);
}

void inline_data_cut_back(struct key_buf *b, const struct key_context *ctx)
{
	size_t header = inline_header_bytes(&b->k);
	size_t bytes = bkey_value_bytes(&b->k) - header;

	bytes = (size_t)min((uint64_t)bytes, (uint64_t)b->k.size * SECTOR_BYTES);
	b->k.value_u64s = (uint8_t)((header + bytes) / 8);
}

bool reservation_merge(struct key_buf *left, struct bkey_ref right, const struct key_context *ctx)
{
	struct reservation l, r;

	reservation_decode(key_buf_ref(left), &l);
	reservation_decode(right, &r);
	return l.generation == r.generation && l.nr_replicas == r.nr_replicas;
}

/* Of freespace, where `set` covers a range of buckets; elsewhere it has no size, and nothing to merge. */
bool set_merge(struct key_buf *left, struct bkey_ref right, const struct key_context *ctx) { return true; }
