/*
 * Finding a free bucket (07 §14.4): a walk over freespace, from where the last search ended and once around. While
 * freespace isn't there yet (a new filesystem, a new device), over the alloc keys instead.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "alloc/internal.h"
#include "base/array.h"
#include "format/error_ids.h"
#include "super/format.h"

struct bucket_search {
	struct allocator *a;
	struct alloc_dev *d;
	unsigned dev, data_type;
	enum watermark watermark;
	uint16_t idx; /* found */
};

/* --- superblocks and journal --- */

bool bucket_is_reserved(struct allocator *a, unsigned dev, uint64_t bucket)
{
	const struct alloc_dev *d = &a->devs[dev];

	for (size_t i = 0; i < d->range_nr; i++)
		if (bucket >= d->ranges[i].start && bucket < d->ranges[i].end)
			return true;
	return false;
}

static int range_add(struct alloc_dev *d, uint64_t start, uint64_t end)
{
	if (array_grow(&d->ranges, &d->range_max, d->range_nr + 1, sizeof(*d->ranges)))
		return -ENOMEM;
	d->ranges[d->range_nr++] = (struct bucket_range){ start, end };
	return 0;
}

static int ranges_read_dev(struct allocator *a, unsigned dev)
{
	const struct sb_disk *sb = a->super->members[dev].sb;
	struct alloc_dev *d = &a->devs[dev];
	int err = range_add(d, 0, div_round_up_u64(SB_SECTOR, d->bucket_sectors));

	for (unsigned i = 0; !err && i < min((unsigned)sb->layout.nr_superblocks, (unsigned)SB_LAYOUT_COPIES_MAX);
	     i++) {
		uint64_t start = le64_get(sb->layout.sb_offset[i]);
		uint64_t end = start + (1ull << min(sb->layout.sb_max_size_bits, (uint8_t)SB_SIZE_BITS_MAX));

		err = range_add(d, start / d->bucket_sectors, div_round_up_u64(end, d->bucket_sectors));
	}
	for (unsigned i = 0; !err && i < sb_journal_range_nr(sb); i++) {
		uint64_t start, nr;

		sb_journal_range(sb, i, &start, &nr);
		err = range_add(d, start, start + nr);
	}
	return err;
}

int bucket_ranges_read(struct allocator *a)
{
	int err = 0;

	for (unsigned dev = 0; !err && dev < a->dev_nr; dev++) {
		a->devs[dev].range_nr = 0;
		if (a->devs[dev].is_member && a->super->members[dev].sb)
			err = ranges_read_dev(a, dev);
	}
	return err;
}

/* --- one candidate --- */

/*
 * Open @bucket if it is free: then nobody else can have opened it in the meantime. 1 opened, 0 not this one, or an
 * error, -ENOSPC when there may be none at all.
 */
static int candidate_try(struct bucket_search *s, uint64_t bucket, bool *is_used)
{
	struct allocator *a = s->a;
	struct alloc v;

	*is_used = false;
	if (bucket < s->d->first_bucket || bucket >= s->d->bucket_nr || bucket_is_reserved(a, s->dev, bucket))
		return 0;
	int err = open_bucket_enter(a, s->dev, bucket, s->data_type, s->watermark, &s->idx);
	if (err)
		return err == -EEXIST ? 0 : err;
	err = alloc_key_lookup(a, s->dev, bucket, &v);
	if (!err && v.data_type == DATA_FREE && alloc_seq_is_durable(a, v.journal_seq)) {
		a->open.buckets[s->idx].gen = v.gen;
		return 1;
	}
	*is_used = !err && v.data_type != DATA_FREE;
	open_bucket_put(a, s->idx);
	return err;
}

/* Freespace had it as free. Somebody may have used it since; if both still say what they said, one is wrong. */
static void conflict_report(struct bucket_search *s, uint64_t offset)
{
	struct btree_iter it;
	struct bkey_ref k;
	struct alloc v;
	char position[64], found_text[32];

	btree_iter_open(&it, s->a->trees, BTREE_FREESPACE, BPOS(s->dev, offset + 1, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(s->dev, UINT64_MAX, UINT32_MAX);
	int found = btree_iter_peek(&it, &k);
	bool is_covered = found > 0 && bkey_start_offset(&k.k) <= offset;
	btree_iter_close(&it);
	if (!is_covered || freespace_init_is_marked(s->a, s->dev, bucket_of_freespace_offset(offset)) ||
	    alloc_key_lookup(s->a, s->dev, bucket_of_freespace_offset(offset), &v) || v.data_type == DATA_FREE)
		return;
	snprintf(position, sizeof(position), "device %u bucket %llu", s->dev,
		 (unsigned long long)bucket_of_freespace_offset(offset));
	snprintf(found_text, sizeof(found_text), "%s", data_type_name(v.data_type));
	report_emit(s->a->reports, &(struct report){ .level = REPORT_DAMAGE,
						     .id = ERROR_freespace_key_wrong,
						     .err = -KILN_E_INVALID,
						     .structure = "freespace",
						     .position = position,
						     .expected = "a free bucket",
						     .found = found_text,
						     .advice = "The bucket is left alone. `kiln check` tells more." });
	super_error_note(s->a->super, false);
}

/* --- walks --- */

/* Freespace in [@from, @to). 1 with s->idx, 0 none, or an error. */
static int freespace_walk(struct bucket_search *s, uint64_t from, uint64_t to)
{
	struct btree_iter it;
	struct bkey_ref k;
	int found, ret = 0;

	btree_iter_open(&it, s->a->trees, BTREE_FREESPACE, BPOS(s->dev, from, UINT32_MAX), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(s->dev, UINT64_MAX, UINT32_MAX);
	while (!ret && (found = btree_iter_peek(&it, &k)) != 0) {
		if (found < 0) {
			ret = found;
			break;
		}
		uint64_t end = min(k.k.p.offset, to);
		for (uint64_t at = max(bkey_start_offset(&k.k), from); !ret && at < end; at++) {
			bool is_used;

			if (bucket_of_freespace_offset(at) >= s->d->bucket_nr)
				break;
			ret = candidate_try(s, bucket_of_freespace_offset(at), &is_used);
			if (ret > 0)
				atomic_store_explicit(&s->d->cursor, at + 1, memory_order_relaxed);
			else if (is_used)
				conflict_report(s, at);
		}
		if (bkey_start_offset(&k.k) >= to)
			break;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return ret;
}

/* The buckets themselves, in [@from, @to): where freespace isn't there yet. */
static int buckets_walk(struct bucket_search *s, uint64_t from, uint64_t to)
{
	int ret = 0;

	for (uint64_t bucket = from; !ret && bucket < to; bucket++) {
		bool is_used;

		ret = candidate_try(s, bucket, &is_used);
		if (ret > 0)
			atomic_store_explicit(&s->d->cursor, bucket + 1, memory_order_relaxed);
	}
	return ret;
}

int open_bucket_new(struct allocator *a, unsigned dev, unsigned data_type, enum watermark watermark, uint16_t *idx)
{
	struct bucket_search s = {
		.a = a, .d = &a->devs[dev], .dev = dev, .data_type = data_type, .watermark = watermark
	};
	uint64_t cursor = atomic_load_explicit(&s.d->cursor, memory_order_relaxed);
	bool has_freespace = atomic_load(&s.d->index) == ALLOC_INDEX_READY;
	int ret;

	if (!open_buckets_available(a, dev, watermark))
		return -ENOSPC;
	if (has_freespace) {
		ret = freespace_walk(&s, cursor, UINT64_MAX);
		if (!ret && cursor)
			ret = freespace_walk(&s, 0, cursor);
	} else {
		cursor = min(cursor, s.d->bucket_nr);
		ret = buckets_walk(&s, cursor, s.d->bucket_nr);
		if (!ret)
			ret = buckets_walk(&s, s.d->first_bucket, cursor);
	}
	if (ret > 0)
		*idx = s.idx;
	return ret > 0 ? 0 : ret ? ret : -ENOSPC;
}
