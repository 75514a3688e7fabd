/*
 * Keys that find other keys from a place on a device: backpointers (07 §7, 12 §10.2), and the obsolete lru type (07
 * §6).
 */
#include <inttypes.h>

#include "format/alloc.h"
#include "format/error_ids.h"
#include "format/value.h"
#include "format/version.h"

struct backpointer_disk {
	uint8_t btree_id, level, data_type;
	uint8_t middle[5]; /* below 1.14: bucket_offset; above: bucket_gen, and flags as le32 */
	le32 bucket_sectors;
	struct bpos_disk pos;
};
_Static_assert(sizeof(struct backpointer_disk) == 32, "backpointer is 32 bytes");

enum { BACKPOINTER_SHIFT_1_4 = 10 };

static bool has_bucket_gen(const struct key_context *ctx) { return key_context_layout_version(ctx) >= VERSION(1, 14); }

static unsigned backpointer_shift(const struct key_context *ctx)
{
	return ctx->backpointer_shift && ctx->backpointer_shift < 64 ? ctx->backpointer_shift : BACKPOINTER_SHIFT_1_4;
}

void backpointer_decode(struct bkey_ref k, const struct key_context *ctx, struct backpointer *b)
{
	struct backpointer_disk d;

	value_load(&d, sizeof(d), k);
	*b = (struct backpointer){
		.btree_id = d.btree_id,
		.level = d.level,
		.data_type = d.data_type,
		.bucket_sectors = le32_get(d.bucket_sectors),
		.pos = bpos_load(&d.pos),
	};
	if (has_bucket_gen(ctx))
		b->bucket_gen = d.middle[0];
	else
		b->bucket_offset = le32_load(d.middle) | (uint64_t)d.middle[4] << 32;
}

void backpointer_encode(const struct backpointer *b, uint8_t value[BACKPOINTER_BYTES])
{
	struct backpointer_disk d = {
		.btree_id = b->btree_id,
		.level = b->level,
		.data_type = b->data_type,
		.bucket_sectors = le32_of(b->bucket_sectors),
	};

	le32_store(d.middle, (uint32_t)b->bucket_offset);
	d.middle[4] = (uint8_t)(b->bucket_offset >> 32);
	bpos_store(&d.pos, b->pos);
	memcpy(value, &d, sizeof(d));
}

int backpointer_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	/* Above 1.4 positions are made in other ways too, and nothing is read through them. */
	if (ctx->is_newer || k.k.p.inode > UINT8_MAX)
		return 0;
	const struct member_geometry *m = key_context_member(ctx, (unsigned)k.k.p.inode);
	if (!m)
		return 0;

	struct backpointer b;
	backpointer_decode(k, ctx, &b);
	uint64_t sector = k.k.p.offset >> BACKPOINTER_SHIFT_1_4;
	uint64_t bucket_start = (sector - sector % m->bucket_sectors) << BACKPOINTER_SHIFT_1_4;

	if (bucket_start + b.bucket_offset != k.k.p.offset || k.k.p.snapshot)
		return fault_set(fault, ERROR_backpointer_pos_wrong, "position", "bucket start + bucket_offset",
				 "0x%" PRIx64 ", 0x%" PRIx64 " + 0x%" PRIx64, k.k.p.offset, bucket_start,
				 b.bucket_offset);
	return 0;
}

void backpointer_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	const struct member_geometry *m =
		k.k.p.inode <= UINT8_MAX ? key_context_member(ctx, (unsigned)k.k.p.inode) : NULL;
	unsigned shift = backpointer_shift(ctx);
	uint64_t sector = k.k.p.offset >> shift, suboffset = k.k.p.offset & ((1ull << shift) - 1);
	struct backpointer b;

	backpointer_decode(k, ctx, &b);
	strbuf_printf(out, "bucket=%" PRIu64 ":", k.k.p.inode);
	if (m)
		strbuf_printf(out, "%" PRIu64 ":0", sector / m->bucket_sectors);
	else
		strbuf_add_char(out, '?');
	strbuf_add(out, " btree=");
	if (btree_name(b.btree_id))
		strbuf_add(out, btree_name(b.btree_id));
	else
		strbuf_printf(out, "%u", b.btree_id);
	strbuf_printf(out, " l=%u offset=%" PRIu64 ":%" PRIu64 " len=%u", b.level,
		      m ? sector % m->bucket_sectors : sector, suboffset, b.bucket_sectors);
	if (has_bucket_gen(ctx))
		strbuf_printf(out, " gen=%u", b.bucket_gen);
	strbuf_add(out, " pos=");
	bpos_to_text(out, b.pos);
}

int lru_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	if (!bits_get(k.k.p.inode, 0, 48))
		return fault_set(fault, ERROR_lru_entry_at_time_0, "time of lru entry", "not 0", "0");
	return fault_set(fault, ERROR_bkey_invalid_type_for_btree, "key type", "set", "lru, which is obsolete");
}

void lru_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	le64 idx;

	value_load(&idx, sizeof(idx), k);
	strbuf_printf(out, "idx %" PRIu64, le64_get(idx));
}
