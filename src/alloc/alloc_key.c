/* Alloc keys in transactions, and what is done when triggers find that keys don't fit each other. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "alloc/internal.h"
#include "base/mutant.h"
#include "base/strbuf.h"

enum { RECLAIM_RUNS_MAX = 100 };

static int value_decode(struct bkey_ref k, struct alloc *value)
{
	return alloc_decode(k, value, NULL) ? -KILN_E_INVALID : 0;
}

int alloc_key_get(struct allocator *a, struct btree_txn *txn, unsigned dev, uint64_t bucket, struct alloc *value)
{
	struct bkey_ref k;
	int found = btree_txn_get(txn, BTREE_ALLOC, BPOS(dev, bucket, 0), 0, &k);

	(void)a;
	*value = (struct alloc){ 0 };
	return found > 0 ? value_decode(k, value) : found;
}

int alloc_key_lookup(struct allocator *a, unsigned dev, uint64_t bucket, struct alloc *value)
{
	struct bkey_copy copy;
	int found = btree_lookup(a->trees, BTREE_ALLOC, BPOS(dev, bucket, 0), &copy);

	*value = (struct alloc){ 0 };
	return found > 0 ? value_decode(copy.k, value) : found;
}

int alloc_key_put(struct btree_txn *txn, unsigned dev, uint64_t bucket, struct alloc *value, unsigned flags)
{
	struct bkey k = { .p = BPOS(dev, bucket, 0), .type = KEY_ALLOC_V4, .value_u64s = ALLOC_V4_BYTES / 8 };
	uint8_t bytes[ALLOC_V4_BYTES];

	value->data_type = (uint8_t)alloc_data_type(value, value->data_type);
	alloc_encode(value, bytes);
	return btree_txn_put(txn, BTREE_ALLOC, &k, bytes, flags);
}

int alloc_put_set(struct btree_txn *txn, unsigned btree_id, struct bpos pos, bool is_set)
{
	struct bkey k = { .p = pos, .type = is_set ? KEY_SET : KEY_DELETED };

	return btree_txn_put(txn, btree_id, &k, NULL, 0);
}

int alloc_inconsistent(struct allocator *a, struct btree_txn *txn, unsigned error_id, struct bkey_ref k,
		       const char *expected, const char *found_fmt, ...)
{
	unsigned runs_max =
		btree_txn_opts(txn)->watermark == WATERMARK_RECLAIM ? RECLAIM_RUNS_MAX : BTREE_TXN_OPTIMISTIC_MAX;
	char found[128];
	va_list args;

	/* Those of reclaim never run alone: try longer. */
	if (btree_txn_run_nr(txn) < runs_max)
		return -KILN_E_RESTART;

	struct strbuf pos = strbuf_growing();
	va_start(args, found_fmt);
	vsnprintf(found, sizeof(found), found_fmt, args);
	va_end(args);
	key_to_text(&pos, k, alloc_kctx(a));
	report_emit(a->reports, &(struct report){
					.level = REPORT_DAMAGE,
					.id = error_id,
					.err = -KILN_E_INVALID,
					.structure = "allocation",
					.position = strbuf_text(&pos),
					.expected = expected,
					.found = found,
					.advice = "`kiln check` tells more.",
				});
	strbuf_free(&pos);
	super_error_note(a->super, false);
	return -KILN_E_INVALID;
}

int alloc_positions_next(struct allocator *a, unsigned btree_id, struct bpos *pos, struct bpos end, struct bpos *found,
			 unsigned max)
{
	struct btree_iter it;
	struct bkey_ref k;
	unsigned nr = 0;
	int ret = 0;

	btree_iter_open(&it, a->trees, btree_id, *pos, BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = end;
	while (nr < max && (ret = btree_iter_peek(&it, &k)) > 0) {
		found[nr++] = k.k.p;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	if (nr)
		*pos = bpos_successor(found[nr - 1]);
	return ret < 0 ? ret : (int)nr;
}

bool alloc_seq_is_durable(const struct allocator *a, uint64_t seq)
{
	return is_mutant(MUTANT_BUCKET_REUSE) || !a->journal || seq < a->seq_first ||
	       seq <= journal_seq_flushed(a->journal);
}

uint64_t alloc_watermark_reserve(const struct alloc_dev *d, enum watermark watermark)
{
	switch (watermark) {
	case WATERMARK_STRIPE: return 2 * (d->bucket_nr >> 6) + 2 * d->btree_reserve;
	case WATERMARK_NORMAL: return (d->bucket_nr >> 6) + 2 * d->btree_reserve;
	/*
	 * Less than what 07 §13 has, and than what nodes for ordinary updates get: who makes these waits for copygc
	 * when there are no more buckets, so copygc must still have some.
	 */
	case WATERMARK_COPYGC: return d->btree_reserve / 2;
	case WATERMARK_BTREE: return d->btree_reserve;
	default: return 0;
	}
}
