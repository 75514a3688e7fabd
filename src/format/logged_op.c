/*
 * Values of the logged_ops btree (04 §8, 12 §6.2, §7.2). Nothing is validated beyond sizes: what an operation names may
 * be gone, which whoever resumes it must find out.
 */
#include "format/logged_op.h"

#include <inttypes.h>

#include "format/value.h"

struct logged_op_truncate_disk {
	le32 subvol;
	le32 pad;
	le64 inum;
	le64 new_size_bytes;
};
_Static_assert(sizeof(struct logged_op_truncate_disk) == LOGGED_OP_TRUNCATE_BYTES, "logged_op_truncate is 24 bytes");

struct logged_op_finsert_disk {
	uint8_t state;
	uint8_t pad[3];
	le32 subvol;
	le64 inum;
	le64 dst_sector, src_sector, pos_sector;
};
_Static_assert(sizeof(struct logged_op_finsert_disk) == LOGGED_OP_FINSERT_BYTES, "logged_op_finsert is 40 bytes");

struct logged_op_stripe_update_disk {
	le64 old_idx, new_idx;
	uint8_t old_block_nr;
	uint8_t old_block_map[16];
	uint8_t pad[7];
};
_Static_assert(sizeof(struct logged_op_stripe_update_disk) == 40, "logged_op_stripe_update is 40 bytes");

struct inode_alloc_cursor_disk {
	uint8_t bits;
	uint8_t pad[3];
	le32 generation;
	le64 next_inum;
};
_Static_assert(sizeof(struct inode_alloc_cursor_disk) == 16, "inode_alloc_cursor is 16 bytes");

void logged_op_truncate_decode(struct bkey_ref k, struct logged_op_truncate *op)
{
	struct logged_op_truncate_disk d;

	value_load(&d, sizeof(d), k);
	*op = (struct logged_op_truncate){
		.subvol = le32_get(d.subvol),
		.inum = le64_get(d.inum),
		.new_size_bytes = le64_get(d.new_size_bytes),
	};
}

void logged_op_truncate_encode(const struct logged_op_truncate *op, uint8_t value[LOGGED_OP_TRUNCATE_BYTES])
{
	struct logged_op_truncate_disk d = {
		.subvol = le32_of(op->subvol),
		.inum = le64_of(op->inum),
		.new_size_bytes = le64_of(op->new_size_bytes),
	};

	memcpy(value, &d, sizeof(d));
}

void logged_op_finsert_decode(struct bkey_ref k, struct logged_op_finsert *op)
{
	struct logged_op_finsert_disk d;

	value_load(&d, sizeof(d), k);
	*op = (struct logged_op_finsert){
		.state = d.state,
		.subvol = le32_get(d.subvol),
		.inum = le64_get(d.inum),
		.dst_sector = le64_get(d.dst_sector),
		.src_sector = le64_get(d.src_sector),
		.pos_sector = le64_get(d.pos_sector),
	};
}

void logged_op_finsert_encode(const struct logged_op_finsert *op, uint8_t value[LOGGED_OP_FINSERT_BYTES])
{
	struct logged_op_finsert_disk d = {
		.state = op->state,
		.subvol = le32_of(op->subvol),
		.inum = le64_of(op->inum),
		.dst_sector = le64_of(op->dst_sector),
		.src_sector = le64_of(op->src_sector),
		.pos_sector = le64_of(op->pos_sector),
	};

	memcpy(value, &d, sizeof(d));
}

bool logged_op_file(struct bkey_ref k, uint32_t *subvol, uint64_t *inum)
{
	struct logged_op_truncate truncate;
	struct logged_op_finsert finsert;

	switch (k.k.type) {
	case KEY_LOGGED_OP_TRUNCATE:
		logged_op_truncate_decode(k, &truncate);
		*subvol = truncate.subvol;
		*inum = truncate.inum;
		return true;
	case KEY_LOGGED_OP_FINSERT:
		logged_op_finsert_decode(k, &finsert);
		*subvol = finsert.subvol;
		*inum = finsert.inum;
		return true;
	default: return false;
	}
}

void logged_op_stripe_update_decode(struct bkey_ref k, struct logged_op_stripe_update *op)
{
	struct logged_op_stripe_update_disk d;

	value_load(&d, sizeof(d), k);
	*op = (struct logged_op_stripe_update){
		.old_idx = le64_get(d.old_idx),
		.new_idx = le64_get(d.new_idx),
		.old_block_nr = d.old_block_nr,
	};
	memcpy(op->old_block_map, d.old_block_map, sizeof(op->old_block_map));
}

void inode_alloc_cursor_decode(struct bkey_ref k, struct inode_alloc_cursor *c)
{
	struct inode_alloc_cursor_disk d;

	value_load(&d, sizeof(d), k);
	*c = (struct inode_alloc_cursor){
		.bits = d.bits,
		.generation = le32_get(d.generation),
		.next_inum = le64_get(d.next_inum),
	};
}

void logged_op_truncate_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct logged_op_truncate op;

	logged_op_truncate_decode(k, &op);
	strbuf_printf(out, "subvol=%u inum=%" PRIu64 " new_i_size=%" PRIu64, op.subvol, op.inum, op.new_size_bytes);
}

void logged_op_finsert_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	static const char *const states[FINSERT_STATE_NR] = {
		[FINSERT_START] = "start",
		[FINSERT_SHIFT_EXTENTS] = "shift_extents",
		[FINSERT_FINISH] = "finish",
	};
	struct logged_op_finsert op;

	logged_op_finsert_decode(k, &op);
	strbuf_printf(out,
		      "subvol=%u inum=%" PRIu64 " dst_offset=%" PRId64 " src_offset=%" PRIu64 " pos=%" PRIu64
		      " state=%s",
		      op.subvol, op.inum, (int64_t)op.dst_sector, op.src_sector, op.pos_sector,
		      op.state < FINSERT_STATE_NR ? states[op.state] : "unknown");
}

void logged_op_stripe_update_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct logged_op_stripe_update op;

	logged_op_stripe_update_decode(k, &op);
	strbuf_printf(out, "old_idx %" PRIu64 " new_idx %" PRIu64 " old_blocks %u map", op.old_idx, op.new_idx,
		      op.old_block_nr);
	for (unsigned i = 0; i < min(op.old_block_nr, (unsigned)sizeof(op.old_block_map)); i++)
		strbuf_printf(out, " %u", op.old_block_map[i]);
}

void inode_alloc_cursor_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct inode_alloc_cursor c;

	inode_alloc_cursor_decode(k, &c);
	strbuf_printf(out, "idx %" PRIu64 " generation %u", c.next_inum, c.generation);
}
