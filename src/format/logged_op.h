/*
 * The keys of the logged_ops btree: operations in several transactions that recovery finishes (04 §8), and the cursors
 * that inode numbers are allocated from (12 §7.2). Key types 32, 33, 37 and 35.
 */
#ifndef KILN_FORMAT_LOGGED_OP_H
#define KILN_FORMAT_LOGGED_OP_H

#include "format/key_types.h"

struct logged_op_truncate {
	uint32_t subvol;
	uint64_t inum;
	uint64_t new_size_bytes;
};
enum { LOGGED_OP_TRUNCATE_BYTES = 24 };
void logged_op_truncate_decode(struct bkey_ref k, struct logged_op_truncate *op);
void logged_op_truncate_encode(const struct logged_op_truncate *op, uint8_t value[LOGGED_OP_TRUNCATE_BYTES]);

/* Insert or collapse a range of a file: its extents move by dst - src sectors. */
enum finsert_state { FINSERT_START, FINSERT_SHIFT_EXTENTS, FINSERT_FINISH, FINSERT_STATE_NR };
struct logged_op_finsert {
	uint8_t state; /* enum finsert_state */
	uint32_t subvol;
	uint64_t inum;
	uint64_t dst_sector, src_sector;
	uint64_t pos_sector; /* progress */
};
enum { LOGGED_OP_FINSERT_BYTES = 40 };
void logged_op_finsert_decode(struct bkey_ref k, struct logged_op_finsert *op);
void logged_op_finsert_encode(const struct logged_op_finsert *op, uint8_t value[LOGGED_OP_FINSERT_BYTES]);

/* Whose file is it about? False: an operation of newer versions, theirs to finish. */
bool logged_op_file(struct bkey_ref k, uint32_t *subvol, uint64_t *inum);

/* Newer versions: the blocks of an old stripe that became part of a new one. */
struct logged_op_stripe_update {
	uint64_t old_idx, new_idx;
	uint8_t old_block_nr;
	uint8_t old_block_map[16];
};
void logged_op_stripe_update_decode(struct bkey_ref k, struct logged_op_stripe_update *op);

/* Newer versions: where the search for a free inode number goes on. */
struct inode_alloc_cursor {
	uint8_t bits;
	uint32_t generation;
	uint64_t next_inum;
};
void inode_alloc_cursor_decode(struct bkey_ref k, struct inode_alloc_cursor *c);

void logged_op_truncate_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
void logged_op_finsert_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
void logged_op_stripe_update_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
void inode_alloc_cursor_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);

#endif
