/*
 * Backpointers against pointers, in both directions (07 §7, §18.3): every dirty pointer of a node, root or extent has
 * exactly the backpointer it gives, and there are no others.
 *
 * Pointers come in the order of files, backpointers in that of devices: what pointers give is sorted, then merged with
 * the btree, and that with the alloc btree, which has the same order.
 *
 * Memory: a check_table, 56 bytes per dirty pointer.
 */
#include <string.h>

#include "recovery/check_internal.h"

enum { RECORD_POS_BYTES = 16, RECORD_BYTES = RECORD_POS_BYTES + BACKPOINTER_BYTES };

struct backpointers {
	struct check *c;
	struct check_table expected; /* device, offset; value */
	struct check_stream alloc;
	/* of the records at the position last looked at */
	uint8_t at[RECORD_POS_BYTES];
};

static int expect_of_pointers(void *ctx, const struct check_pointers *p)
{
	struct backpointers *b = ctx;

	for (unsigned i = 0; i < p->nr; i++) {
		const struct extent_ptr_decoded *d = &p->ptrs[i];
		const struct member_geometry *m = check_member(b->c, d->ptr.dev);
		uint8_t record[RECORD_BYTES];
		uint64_t bucket;

		if (d->ptr.is_cached || !check_pointer_bucket(b->c, &d->ptr, &bucket))
			continue;
		struct backpointer bp = {
			.btree_id = (uint8_t)p->btree_id,
			.level = (uint8_t)p->level,
			.data_type = p->level	     ? DATA_BTREE
				     : d->has_stripe ? DATA_STRIPE
						     : DATA_USER,
			.bucket_offset = (d->ptr.sector % m->bucket_sectors << b->c->kctx->backpointer_shift) +
					 (p->level ? 0 : d->crc.offset_sectors),
			.bucket_sectors = check_pointer_sectors(b->c, p, i),
			.pos = p->k.p,
		};
		check_be64(record, d->ptr.dev);
		check_be64(record + 8,
			   (bucket * m->bucket_sectors << b->c->kctx->backpointer_shift) + bp.bucket_offset);
		backpointer_encode(&bp, record + RECORD_POS_BYTES);
		int err = check_table_add(&b->expected, record);
		if (err)
			return err;
	}
	return 0;
}

static void report_missing(struct backpointers *b, const uint8_t *record)
{
	struct bkey_ref k = { { .type = KEY_BACKPOINTER, .value_u64s = BACKPOINTER_BYTES / 8 },
			      record + RECORD_POS_BYTES };
	char buf[CHECK_TEXT_BYTES];
	struct strbuf out = strbuf_fixed(buf, sizeof(buf));
	struct backpointer bp;

	backpointer_decode(k, b->c->kctx, &bp);
	bpos_to_text(&out, BPOS(check_be64_get(record), check_be64_get(record + 8), 0));
	check_report_pos(b->c, ERROR_ptr_to_missing_backpointer, bp.btree_id, bp.pos, "a backpointer of its pointer",
			 "none at %s, for level %u", buf, bp.level);
}

static void check_bucket(struct backpointers *b, struct bpos p)
{
	struct check *c = b->c;
	const struct member_geometry *m = p.inode < c->super->member_nr ? check_member(c, (unsigned)p.inode) : NULL;

	if (!m) {
		check_report_pos(c, ERROR_backpointer_to_missing_device, BTREE_BACKPOINTERS, p, "a device that exists",
				 "device %llu", (unsigned long long)p.inode);
		return;
	}
	struct bpos bucket = BPOS(p.inode, (p.offset >> c->kctx->backpointer_shift) / m->bucket_sectors, 0);
	while (check_stream_peek(&b->alloc) && bpos_lt(b->alloc.k.k.p, bucket))
		check_stream_next(&b->alloc);
	bool is_damaged = c->damaged & CHECK_BTREE(BTREE_ALLOC);
	if (!is_damaged && (!check_stream_peek(&b->alloc) || !bpos_eq(b->alloc.k.k.p, bucket)))
		check_report_pos(c, ERROR_backpointer_to_missing_alloc, BTREE_BACKPOINTERS, p,
				 "an alloc key of its bucket", "none for bucket %llu",
				 (unsigned long long)bucket.offset);
}

static int compare_backpointer(void *ctx, struct bkey_ref k)
{
	struct backpointers *b = ctx;
	uint8_t at[RECORD_POS_BYTES], value[BACKPOINTER_BYTES] = { 0 };
	const uint8_t *record;
	bool is_found = false;
	int cmp = 1;

	memcpy(value, k.value, min(sizeof(value), bkey_value_bytes(&k.k)));
	check_be64(at, k.k.p.inode);
	check_be64(at + 8, k.k.p.offset);
	while ((record = check_table_peek(&b->expected)) && (cmp = memcmp(record, at, sizeof(at))) <= 0) {
		bool is_same = !cmp && !is_found && !memcmp(record + RECORD_POS_BYTES, value, sizeof(value));

		if (!is_same)
			report_missing(b, record);
		is_found |= is_same;
		check_table_next(&b->expected);
	}
	check_bucket(b, k.k.p);
	if (!is_found && check_is_whole(b->c, UINT64_MAX))
		check_report_pos(b->c, ERROR_backpointer_to_missing_ptr, BTREE_BACKPOINTERS, k.k.p,
				 "a pointer that gives this backpointer", "none");
	return b->alloc.err;
}

int check_backpointers(struct check *c)
{
	struct backpointers b = { .c = c };
	const uint8_t *record;

	if (!check_is_whole(c, CHECK_BTREE(BTREE_BACKPOINTERS)))
		return 0;
	c->total = c->keys[BTREE_EXTENTS] + c->keys[BTREE_REFLINK] + c->keys[BTREE_BACKPOINTERS] + c->keys[BTREE_ALLOC];
	check_table_init(&b.expected, RECORD_BYTES, c->memory_bytes, c->is_secret);
	check_stream_open(c, &b.alloc, BTREE_ALLOC, POS_MIN, SPOS_MAX);
	int err = check_each_pointers(c, expect_of_pointers, &b);
	if (!err)
		err = check_table_sort(&b.expected);
	if (!err)
		err = check_keys(c, BTREE_BACKPOINTERS, 0, POS_MIN, SPOS_MAX, compare_backpointer, &b);
	while (!err && (record = check_table_peek(&b.expected))) {
		report_missing(&b, record);
		check_table_next(&b.expected);
	}
	check_stream_close(&b.alloc);
	check_table_free(&b.expected);
	return err;
}
