/*
 * Shared extents: their counts against the ranges that refer to them, and the list of what rebalance has to do (06 §12,
 * §13).
 *
 * References come in the order of files, shared extents in that of their index. Starts and ends of all references are
 * sorted, each by itself; then the references that touch [a, b) are those that start before b, less those that end at
 * or before a.
 *
 * Memory: two check_tables, 28 bytes per reference each.
 */
#include "recovery/check_internal.h"

enum { RECORD_BYTES = 28 }; /* index, then the key that refers */

struct reflinks {
	struct check *c;
	struct check_table starts, ends;
	uint64_t started, ended;
	uint64_t covered; /* up to here there are extents, or holes that were told */
};

static int table_add(struct check_table *t, uint64_t idx, struct bpos p)
{
	uint8_t record[RECORD_BYTES];

	check_be64(record, idx);
	check_be64(record + 8, p.inode);
	check_be64(record + 16, p.offset);
	check_be32(record + 24, p.snapshot);
	return check_table_add(t, record);
}

static struct bpos record_pos(const uint8_t *r)
{
	return BPOS(check_be64_get(r + 8), check_be64_get(r + 16), check_be32_get(r + 24));
}

static int add_reference(void *ctx, struct bkey_ref k)
{
	struct reflinks *r = ctx;
	struct reflink_p p;

	if (k.k.type != KEY_REFLINK_P || reflink_p_decode(k, &p) || p.is_error || p.idx < p.front_pad ||
	    p.idx > UINT64_MAX / 2)
		return 0;
	int err = table_add(&r->starts, p.idx - p.front_pad, k.k.p);
	return err ? err : table_add(&r->ends, p.idx + k.k.size + p.back_pad, k.k.p);
}

/* Go over the references that start before @idx; those that start inside of [from, idx) are too short. */
static void start_until(struct reflinks *r, uint64_t from, uint64_t idx)
{
	const uint8_t *record;

	for (; (record = check_table_peek(&r->starts)) && check_be64_get(record) < idx; check_table_next(&r->starts)) {
		r->started++;
		if (check_be64_get(record) > from)
			check_report_pos(r->c, CHECK_reflink_p_pad_too_small, BTREE_EXTENTS, record_pos(record),
					 "to begin where an indirect extent does", "begins at %llu",
					 (unsigned long long)check_be64_get(record));
	}
}

static void end_until(struct reflinks *r, uint64_t from, uint64_t idx)
{
	const uint8_t *record;

	for (; (record = check_table_peek(&r->ends)) && check_be64_get(record) <= idx; check_table_next(&r->ends)) {
		r->ended++;
		if (check_be64_get(record) > from && check_be64_get(record) < idx)
			check_report_pos(r->c, CHECK_reflink_p_pad_too_small, BTREE_EXTENTS, record_pos(record),
					 "to end where an indirect extent does", "ends at %llu",
					 (unsigned long long)check_be64_get(record));
	}
}

/* Nothing is in [r->covered, idx): nothing may refer to it. */
static void check_hole(struct reflinks *r, uint64_t idx)
{
	uint64_t from = r->covered;
	const uint8_t *record;

	if (from >= idx)
		return;
	while ((record = check_table_peek(&r->starts)) && check_be64_get(record) < idx) {
		r->started++;
		check_table_next(&r->starts);
	}
	if (r->started > r->ended)
		check_report_pos(r->c, ERROR_reflink_p_to_missing_reflink_v, BTREE_REFLINK, BPOS(0, from, 0),
				 "indirect extents where something refers to them",
				 "none up to %llu, for %llu references", (unsigned long long)idx,
				 (unsigned long long)(r->started - r->ended));
	while ((record = check_table_peek(&r->ends)) && check_be64_get(record) <= idx) {
		r->ended++;
		check_table_next(&r->ends);
	}
}

static int check_indirect(void *ctx, struct bkey_ref k)
{
	struct reflinks *r = ctx;
	uint64_t start = bkey_start_offset(&k.k), end = k.k.p.offset;
	bool is_unwritten;

	check_extent_key(r->c, BTREE_REFLINK, k, &is_unwritten);
	end_until(r, r->covered, r->covered);
	check_hole(r, start);
	end_until(r, start, start);
	start_until(r, start, end);
	uint64_t refcount = reflink_v_decode(k).refcount, counted = r->started - r->ended;
	if ((k.k.type == KEY_REFLINK_V || k.k.type == KEY_INDIRECT_INLINE_DATA) && refcount != counted)
		check_report_pos(r->c, ERROR_reflink_v_refcount_wrong, BTREE_REFLINK, k.k.p, "the number of references",
				 "%llu instead of %llu", (unsigned long long)refcount, (unsigned long long)counted);
	end_until(r, start, end);
	r->covered = end;
	return 0;
}

/* --- rebalance_work --- */

static bool has_rebalance_entry(struct check *c, struct bkey_ref k)
{
	struct extent_walk w = { .entry_u64s = c->kctx->entry_type_u64s };
	struct extent_entry e;

	if (!extent_entries_of(k, &w.pos, &w.end))
		return false;
	while (extent_walk_next(&w, &e, NULL) > 0)
		if (e.type == EXTENT_ENTRY_REBALANCE)
			return true;
	return false;
}

/* Work on the keys of one btree; @work: the stream, at its first. */
static int compare_work(struct check *c, unsigned btree_id, struct check_stream *work)
{
	struct check_stream keys;

	check_stream_open(c, &keys, btree_id, POS_MIN, SPOS_MAX);
	for (;;) {
		bool has_key = check_stream_peek(&keys), has_work = check_stream_peek(work);
		int cmp = !has_key ? 1 : !has_work ? -1 : bpos_cmp(keys.k.k.p, work->k.k.p);

		if ((!has_key && !has_work) || keys.err || work->err)
			break;
		bool is_needed = cmp <= 0 && has_rebalance_entry(c, keys.k);
		/* A shared extent may keep its entry when nothing is left to do. */
		if (is_needed && cmp && keys.k.k.type != KEY_REFLINK_V)
			check_report_pos(c, CHECK_rebalance_work_wrong, btree_id, keys.k.k.p, "to be in rebalance_work",
					 "not there");
		if (cmp >= 0 && !is_needed && work->k.k.type == KEY_SET)
			check_report_pos(c, CHECK_rebalance_work_wrong, BTREE_REBALANCE_WORK, work->k.k.p,
					 "an extent that needs it", "none");
		if (cmp <= 0)
			check_stream_next(&keys);
		if (cmp >= 0)
			check_stream_next(work);
	}
	int err = keys.err ? keys.err : work->err;
	check_stream_close(&keys);
	return err;
}

int check_rebalance_work(struct check *c)
{
	struct check_stream work;
	int err = 0;

	c->total = c->keys[BTREE_EXTENTS] + c->keys[BTREE_REFLINK] + c->keys[BTREE_REBALANCE_WORK];
	if (check_is_whole(c, CHECK_BTREE(BTREE_REFLINK) | CHECK_BTREE(BTREE_REBALANCE_WORK))) {
		check_stream_open(c, &work, BTREE_REBALANCE_WORK, POS_MIN, BPOS(0, UINT64_MAX, UINT32_MAX));
		err = compare_work(c, BTREE_REFLINK, &work);
		check_stream_close(&work);
	}
	if (!err && check_is_whole(c, CHECK_BTREE(BTREE_EXTENTS) | CHECK_BTREE(BTREE_REBALANCE_WORK))) {
		check_stream_open(c, &work, BTREE_REBALANCE_WORK, BPOS(1, 0, 0), SPOS_MAX);
		err = compare_work(c, BTREE_EXTENTS, &work);
		check_stream_close(&work);
	}
	return err;
}

/* --- the pass --- */

int check_indirect_extents(struct check *c)
{
	struct reflinks r = { .c = c };

	c->total = c->keys[BTREE_EXTENTS] + c->keys[BTREE_REFLINK];
	if (!check_is_whole(c, CHECK_BTREE(BTREE_EXTENTS) | CHECK_BTREE(BTREE_REFLINK)))
		return 0;
	check_table_init(&r.starts, RECORD_BYTES, c->memory_bytes / 2, c->is_secret);
	check_table_init(&r.ends, RECORD_BYTES, c->memory_bytes / 2, c->is_secret);
	int err = check_keys(c, BTREE_EXTENTS, 0, POS_MIN, SPOS_MAX, add_reference, &r);
	if (!err)
		err = check_table_sort(&r.starts);
	if (!err)
		err = check_table_sort(&r.ends);
	if (!err)
		err = check_keys(c, BTREE_REFLINK, 0, POS_MIN, SPOS_MAX, check_indirect, &r);
	if (!err && check_is_whole(c, CHECK_BTREE(BTREE_EXTENTS) | CHECK_BTREE(BTREE_REFLINK)))
		check_hole(&r, UINT64_MAX);
	check_table_free(&r.starts);
	check_table_free(&r.ends);
	if (!err)
		check_features(c);
	return err;
}
