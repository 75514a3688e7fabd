/*
 * The indexes of buckets: freespace, need_discard and bucket_gens against alloc keys, in both directions (07 §18.2).
 *
 * All are walked side by side with the alloc btree. The free space of buckets with genbits g lies in a range of its
 * own, so there is a walk for each g that occurs (0..15; nearly always 0 alone): runs of free buckets, from keys and
 * from the gaps between them, against the ranges of the freespace btree.
 *
 * Memory: none that grows.
 */
#include <errno.h>
#include <string.h>

#include "recovery/check_internal.h"

enum { GENBITS_SHIFT = 56, GENBITS_NR = 16 };

static unsigned alloc_genbits(const struct alloc *a) { return (uint8_t)(a->gen - a->oldest_gen) >> 4; }

static bool bucket_exists(const struct check *c, uint64_t dev, uint64_t nr)
{
	const struct member_geometry *m = dev < c->super->member_nr ? check_member(c, (unsigned)dev) : NULL;

	return m && nr >= m->first_bucket && nr < m->bucket_nr;
}

/* --- freespace --- */

/* A range of buckets, [start, end). */
struct range {
	uint64_t start, end;
	bool is_hole; /* no alloc keys */
};

/* Two lists of ascending ranges, side by side; a range is what is left of it. */
struct free_compare {
	struct check *c;
	unsigned dev, genbits;
	struct check_stream alloc, free;
	uint64_t next;	       /* first bucket of the device not looked at yet */
	unsigned genbits_seen; /* bits */
	struct range should, is;
	struct bpos is_pos; /* of the key of @is */
	uint64_t last_end;  /* where the freespace key before ended */
};

/* The next run of buckets that should be free with these genbits. False at the end of the device. */
static bool next_should(struct free_compare *w)
{
	const struct member_geometry *m = check_member(w->c, w->dev);

	while (w->next < m->bucket_nr) {
		struct alloc a;
		bool has = check_stream_peek(&w->alloc);
		uint64_t key_at = has ? w->alloc.k.k.p.offset : m->bucket_nr;

		if (w->alloc.err)
			return false;
		if (key_at > w->next) {
			w->should = (struct range){ max(w->next, (uint64_t)m->first_bucket), min(key_at, m->bucket_nr),
						    true };
			w->next = w->should.end;
			if (!w->genbits && w->should.start < w->should.end)
				return true;
			continue;
		}
		int err = alloc_decode(w->alloc.k, &a, NULL);
		check_stream_next(&w->alloc);
		if (key_at < w->next)
			continue;
		w->next = key_at + 1;
		if (err || a.data_type != DATA_FREE || key_at < m->first_bucket)
			continue;
		w->genbits_seen |= 1u << alloc_genbits(&a);
		if (alloc_genbits(&a) == w->genbits) {
			w->should = (struct range){ key_at, key_at + 1, false };
			return true;
		}
	}
	return false;
}

static bool next_is(struct free_compare *w)
{
	uint64_t bits = (uint64_t)w->genbits << GENBITS_SHIFT;

	if (!check_stream_peek(&w->free))
		return false;
	const struct bkey *k = &w->free.k.k;
	w->is_pos = k->p;
	w->is = (struct range){ bkey_start_offset(k) - bits, k->p.offset - bits, false };
	if (bkey_start_offset(k) < bits || k->size > k->p.offset)
		w->is.start = 0;
	if (w->last_end == w->is.start && w->last_end)
		check_report_pos(w->c, CHECK_freespace_not_merged, BTREE_FREESPACE, k->p, "one key for the range",
				 "a key that begins where the one before ends");
	w->last_end = w->is.end;
	check_stream_next(&w->free);
	return true;
}

static void report_missing(struct free_compare *w, uint64_t end)
{
	check_report_bucket(w->c, w->should.is_hole ? ERROR_freespace_hole_missing : ERROR_freespace_key_wrong, w->dev,
			    w->should.start, "to be in the freespace btree", "not there, up to bucket %llu",
			    (unsigned long long)(end - 1));
	w->should.start = end;
}

static void report_stray(struct free_compare *w, uint64_t end)
{
	const struct member_geometry *m = check_member(w->c, w->dev);
	bool is_outside = w->is.start < m->first_bucket || w->is.start >= m->bucket_nr;

	if (w->is.start < m->first_bucket)
		end = min(end, (uint64_t)m->first_bucket);
	else if (w->is.start < m->bucket_nr)
		end = min(end, m->bucket_nr);
	check_report_pos(w->c,
			 is_outside ? ERROR_need_discard_freespace_key_to_invalid_dev_bucket
				    : ERROR_need_discard_freespace_key_bad,
			 BTREE_FREESPACE, w->is_pos, is_outside ? "buckets that exist" : "buckets that are free",
			 "buckets %llu to %llu", (unsigned long long)w->is.start, (unsigned long long)(end - 1));
	w->is.start = end;
}

static int compare_free(struct free_compare *w)
{
	struct bpos start = BPOS(w->dev, (uint64_t)w->genbits << GENBITS_SHIFT, 0);
	/* A range that ends exactly where the next genbits begin still has these. */
	struct bpos end = BPOS(w->dev, ((uint64_t)(w->genbits + 1) << GENBITS_SHIFT), 0);
	bool has_should, has_is;

	if (w->genbits == GENBITS_NR - 1)
		end.offset = UINT64_MAX;
	start.offset++;
	w->next = w->last_end = 0;
	check_stream_open(w->c, &w->alloc, BTREE_ALLOC, BPOS(w->dev, 0, 0), BPOS(w->dev, UINT64_MAX, UINT32_MAX));
	check_stream_open(w->c, &w->free, BTREE_FREESPACE, start, end);
	has_should = next_should(w);
	has_is = next_is(w);
	while (has_should || has_is) {
		if (has_is && (!has_should || w->is.start < w->should.start))
			report_stray(w, has_should ? min(w->is.end, w->should.start) : w->is.end);
		else if (has_should && (!has_is || w->should.start < w->is.start))
			report_missing(w, has_is ? min(w->should.end, w->is.start) : w->should.end);
		else
			w->should.start = w->is.start = min(w->should.end, w->is.end);
		if (has_should && w->should.start >= w->should.end)
			has_should = next_should(w);
		if (has_is && w->is.start >= w->is.end)
			has_is = next_is(w);
	}
	int err = w->alloc.err ? w->alloc.err : w->free.err;
	check_stream_close(&w->alloc);
	check_stream_close(&w->free);
	return err;
}

static int note_genbits(void *ctx, struct bkey_ref k)
{
	struct free_compare *w = ctx;

	w->genbits_seen |= 1u << min((k.k.p.offset - 1) >> GENBITS_SHIFT, (uint64_t)GENBITS_NR - 1);
	return 0;
}

static int compare_device(struct check *c, unsigned dev)
{
	struct free_compare w = { .c = c, .dev = dev };
	int err = compare_free(&w);

	if (!err)
		err = check_keys(c, BTREE_FREESPACE, 0, BPOS(dev, (1ull << GENBITS_SHIFT) + 1, 0),
				 BPOS(dev, UINT64_MAX, UINT32_MAX), note_genbits, &w);
	for (w.genbits = 1; !err && w.genbits < GENBITS_NR; w.genbits++)
		if (w.genbits_seen >> w.genbits & 1)
			err = compare_free(&w);
	return err;
}

/* Keys of devices that don't exist. */
static int free_of_no_device(void *ctx, struct bkey_ref k)
{
	struct check *c = ctx;

	if (k.k.p.inode >= c->super->member_nr || !check_member(c, (unsigned)k.k.p.inode))
		check_report_pos(c, ERROR_need_discard_freespace_key_to_invalid_dev_bucket, BTREE_FREESPACE, k.k.p,
				 "a device that exists", "%llu", (unsigned long long)k.k.p.inode);
	return 0;
}

/* --- need_discard, and alloc keys of what isn't there --- */

static bool is_initialized(const struct check *c, uint64_t dev)
{
	return dev < c->super->member_nr && c->super->members[dev].m.is_freespace_initialized;
}

static void stray_discard(struct check *c, struct bpos p)
{
	if (!bucket_exists(c, p.inode, p.offset))
		check_report_pos(c, ERROR_need_discard_freespace_key_to_invalid_dev_bucket, BTREE_NEED_DISCARD, p,
				 "a bucket that exists", "none");
	else
		check_report_pos(c, ERROR_need_discard_freespace_key_bad, BTREE_NEED_DISCARD, p,
				 "a bucket that needs a discard", "one that doesn't");
}

static int compare_discards(struct check *c)
{
	struct check_stream alloc, discard;

	check_stream_open(c, &alloc, BTREE_ALLOC, POS_MIN, SPOS_MAX);
	check_stream_open(c, &discard, BTREE_NEED_DISCARD, POS_MIN, SPOS_MAX);
	for (;;) {
		bool has_alloc = check_stream_peek(&alloc), has_discard = check_stream_peek(&discard);
		int cmp = !has_alloc ? 1 : !has_discard ? -1 : bpos_cmp(alloc.k.k.p, discard.k.k.p);
		struct alloc a = { 0 };

		if ((!has_alloc && !has_discard) || alloc.err || discard.err)
			break;
		if (cmp <= 0) {
			struct bpos p = alloc.k.k.p;
			bool is_good = !alloc_decode(alloc.k, &a, NULL);

			if (!bucket_exists(c, p.inode, p.offset))
				check_report_pos(c, ERROR_alloc_key_to_missing_dev_bucket, BTREE_ALLOC, p,
						 "a bucket that exists", "none");
			else if (is_good && is_initialized(c, p.inode) && a.data_type == DATA_NEED_DISCARD && cmp)
				check_report_bucket(c, ERROR_need_discard_key_wrong, (unsigned)p.inode, p.offset,
						    "to be in the need_discard btree", "not there");
			else if (is_good && a.data_type != DATA_NEED_DISCARD && !cmp)
				stray_discard(c, p);
			check_stream_next(&alloc);
		} else {
			stray_discard(c, discard.k.k.p);
		}
		if (cmp >= 0)
			check_stream_next(&discard);
	}
	int err = alloc.err ? alloc.err : discard.err;
	check_stream_close(&alloc);
	check_stream_close(&discard);
	return err;
}

/* --- bucket_gens --- */

static void compare_gens(struct check *c, uint64_t dev, uint64_t block, const uint8_t is[BUCKET_GENS_PER_KEY],
			 const uint8_t should[BUCKET_GENS_PER_KEY], const bool has_key[BUCKET_GENS_PER_KEY])
{
	for (unsigned i = 0; i < BUCKET_GENS_PER_KEY; i++) {
		uint64_t nr = block * BUCKET_GENS_PER_KEY + i;

		if (!bucket_exists(c, dev, nr)) {
			if (is[i])
				check_report_bucket(c, ERROR_bucket_gens_nonzero_for_invalid_buckets, (unsigned)dev, nr,
						    "generation 0 of what isn't a bucket", "%u", is[i]);
		} else if (is[i] != should[i]) {
			check_report_bucket(c, has_key[i] ? ERROR_bucket_gens_key_wrong : ERROR_bucket_gens_hole_wrong,
					    (unsigned)dev, nr, "the generation of the alloc key",
					    "%u in bucket_gens instead of %u", is[i], should[i]);
		}
	}
}

static int compare_bucket_gens(struct check *c)
{
	struct check_stream alloc, gens;

	check_stream_open(c, &alloc, BTREE_ALLOC, POS_MIN, SPOS_MAX);
	check_stream_open(c, &gens, BTREE_BUCKET_GENS, POS_MIN, SPOS_MAX);
	while (!alloc.err && !gens.err) {
		uint8_t is[BUCKET_GENS_PER_KEY] = { 0 }, should[BUCKET_GENS_PER_KEY] = { 0 };
		bool has_key[BUCKET_GENS_PER_KEY] = { false }, has_alloc = check_stream_peek(&alloc),
		     has_gens = check_stream_peek(&gens);
		struct bpos at = SPOS_MAX;

		if (has_alloc)
			at = BPOS(alloc.k.k.p.inode, alloc.k.k.p.offset / BUCKET_GENS_PER_KEY, 0);
		if (has_gens && bpos_key_cmp(gens.k.k.p, at) <= 0)
			at = gens.k.k.p;
		if (!has_alloc && !has_gens)
			break;
		if (has_gens && bpos_eq(at, gens.k.k.p)) {
			const struct member_geometry *m =
				at.inode < c->super->member_nr ? check_member(c, (unsigned)at.inode) : NULL;

			bucket_gens_decode(gens.k, is);
			if (!m || at.offset > m->bucket_nr / BUCKET_GENS_PER_KEY) {
				check_report_pos(
					c, m ? ERROR_bucket_gens_to_invalid_buckets : ERROR_bucket_gens_to_invalid_dev,
					BTREE_BUCKET_GENS, at, "buckets that exist", "others");
				memset(is, 0, sizeof(is));
			}
			check_stream_next(&gens);
		}
		while (check_stream_peek(&alloc) && alloc.k.k.p.inode == at.inode &&
		       alloc.k.k.p.offset / BUCKET_GENS_PER_KEY == at.offset) {
			unsigned i = alloc.k.k.p.offset % BUCKET_GENS_PER_KEY;
			struct alloc a;

			if (!alloc_decode(alloc.k, &a, NULL)) {
				should[i] = a.gen;
				has_key[i] = true;
			}
			check_stream_next(&alloc);
		}
		compare_gens(c, at.inode, at.offset, is, should, has_key);
	}
	int err = alloc.err ? alloc.err : gens.err;
	check_stream_close(&alloc);
	check_stream_close(&gens);
	return err;
}

/* --- the pass --- */

int check_alloc_info(struct check *c)
{
	int err = 0;

	c->total = c->keys[BTREE_ALLOC] * 3 + c->keys[BTREE_FREESPACE] * 2 + c->keys[BTREE_NEED_DISCARD] +
		   c->keys[BTREE_BUCKET_GENS];
	if (check_is_whole(c, CHECK_BTREE(BTREE_ALLOC) | CHECK_BTREE(BTREE_NEED_DISCARD)))
		err = compare_discards(c);
	if (!err && check_is_whole(c, CHECK_BTREE(BTREE_ALLOC) | CHECK_BTREE(BTREE_BUCKET_GENS)))
		err = compare_bucket_gens(c);
	if (err || !check_is_whole(c, CHECK_BTREE(BTREE_ALLOC) | CHECK_BTREE(BTREE_FREESPACE)))
		return err;
	for (unsigned dev = 0; !err && dev < c->super->member_nr; dev++)
		if (check_member(c, dev) && is_initialized(c, dev))
			err = compare_device(c, dev);
	return err ? err : check_keys(c, BTREE_FREESPACE, 0, POS_MIN, SPOS_MAX, free_of_no_device, c);
}
