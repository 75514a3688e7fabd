/*
 * data_read(): from a range of a file to bytes (06 §10).
 *
 *	spans		what each key of the extents btree covers of the range (map.c)
 *	pieces		a span, or the part of it that one indirect extent covers
 *	regions		a piece that must be read from a device (region.c)
 *
 * Holes, inline data and losses are served at once. Regions are started as they are found, and while more are found;
 * when too many are in flight, or buffers are short, the reader finishes some first. So the devices work while the
 * processor verifies and decompresses what has come, all on the caller's thread.
 *
 * A piece that can't be read becomes zeroes and a note; the notes are told in order at the end. What has no checksum is
 * lost block by block only.
 */
#include "data/data.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/array.h"
#include "data/compress.h"
#include "data/internal.h"
#include "data/repair.h"
#include "data/write_internal.h"
#include "format/error_ids.h"
#include "format/file_data.h"

static struct reader *reader_get(struct data *data);
static void reader_put(struct reader *r);
static void reader_run(struct reader *r);
static void reader_drain(struct reader *r);
static void damage_tell(struct reader *r, data_damage_fn damage, void *ctx);

/* --- the room --- */

/*
 * Share the budget out: a part for each pool (pool.h), in which its usual needs fit. For writes it is more than the
 * largest, as who waits at a mount keeps a request, which is as large.
 */
static void pools_init(struct data *d, uint64_t bytes)
{
	enum {
		STRIPES_BYTES = STRIPE_SCRATCH_BYTES * STRIPE_REBUILDS_MAX,
		REGIONS_MIN = 4 << 20,
		WRITES_MIN = 8 << 20,
		MOVES_MIN = 3 << 20, /* data_mover_new() */
		MOVES_MAX = 5 << 20,
	};
	_Static_assert(DATA_MEMORY_MIN == STRIPES_BYTES + REGIONS_MIN + WRITES_MIN + MOVES_MIN, "all have their part");
	_Static_assert((unsigned)WRITES_MIN >= (unsigned)WRITE_MEMORY_MAX, "a call's memory is there");
	uint64_t moves = min(max(bytes / 8, (uint64_t)MOVES_MIN), (uint64_t)MOVES_MAX);
	uint64_t others = bytes - STRIPES_BYTES - moves, writes = max(others / 2, (uint64_t)WRITES_MIN);

	writes = min(writes, others - REGIONS_MIN);
	pool_init(&d->stripes, STRIPES_BYTES);
	pool_init(&d->moves, moves);
	pool_init(&d->writes, writes);
	pool_init(&d->regions, others - writes);
}

int data_open(const struct super *super, struct btrees *trees, uint64_t memory_bytes, const struct report_sink *reports,
	      struct data **data)
{
	struct data *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	if (repair_list_new(&d->repairs)) {
		free(d);
		return -ENOMEM;
	}
	d->super = super;
	d->trees = trees;
	d->reports = reports;
	mutex_init(&d->lock);
	pools_init(d, max(memory_bytes, (uint64_t)DATA_MEMORY_MIN));
	*data = d;
	return 0;
}

void data_close(struct data *data)
{
	struct reader *r;

	if (!data)
		return;
	while ((r = data->readers_idle)) {
		data->readers_idle = r->next;
		free(r->damage);
		free(r);
	}
	compress_contexts_free();
	pool_destroy(&data->writes);
	pool_destroy(&data->moves);
	pool_destroy(&data->stripes);
	pool_destroy(&data->regions);
	mutex_destroy(&data->lock);
	repair_list_free(data->repairs);
	free(data);
}

void data_stats(struct data *data, struct data_stats *stats)
{
	uint64_t *values[COUNTER_NR] = {
		[COUNTER_BYTES_READ] = &stats->bytes_read,	 [COUNTER_IOS] = &stats->ios,
		[COUNTER_RETRIES_IO] = &stats->retries_io,	 [COUNTER_RETRIES_CSUM] = &stats->retries_csum,
		[COUNTER_RECONSTRUCTED] = &stats->reconstructed, [COUNTER_DAMAGED_BYTES] = &stats->damaged_bytes,
	};

	for (unsigned i = 0; i < COUNTER_NR; i++)
		*values[i] = atomic_load_explicit(&data->counters[i], memory_order_relaxed);
}

/* --- one read --- */

ssize_t data_read(struct data *data, const struct data_file *file, uint64_t offset_bytes, void *buf, size_t len_bytes,
		  data_damage_fn damage, void *damage_ctx)
{
	if (offset_bytes >= file->size_bytes || !len_bytes)
		return 0;

	struct reader *r = reader_get(data);
	if (!r)
		return -ENOMEM;
	uint64_t len = min(min((uint64_t)len_bytes, file->size_bytes - offset_bytes), (uint64_t)SSIZE_MAX);
	r->file = file;
	r->buf = buf;
	r->begin_bytes = offset_bytes;
	r->end_bytes = offset_bytes + len;

	struct allocator *allocator = data->writer ? data->writer->allocator : NULL;
	struct read_section section = { 0 };

	if (allocator)
		section = allocator_read_begin(allocator);
	reader_run(r);
	reader_drain(r);
	if (allocator)
		allocator_read_end(allocator, section);

	int err = r->err;
	if (allocator)
		allocator_clock_add(allocator, false, r->bytes_read / SECTOR_BYTES);
	if (!err)
		damage_tell(r, damage, damage_ctx);
	reader_put(r);
	return err ? err : (ssize_t)len;
}

static struct reader *reader_get(struct data *data)
{
	mutex_lock(&data->lock);
	struct reader *r = data->readers_idle;
	if (r) {
		data->readers_idle = r->next;
		data->readers_idle_nr--;
	}
	mutex_unlock(&data->lock);

	if (!r) {
		r = malloc(sizeof(*r));
		if (!r)
			return NULL;
		r->data = data;
		rng_init(&r->rng, random_u64());
		r->free = NULL;
		for (unsigned i = 0; i < DATA_REGIONS_MAX; i++) {
			r->regions[i].reader = r;
			memset(r->regions[i].buffers, 0, sizeof(r->regions[i].buffers));
			r->regions[i].next = r->free;
			r->free = &r->regions[i];
		}
		r->damage = NULL;
		r->damage_capacity = 0;
	}
	io_group_init(&r->group);
	r->in_flight = 0;
	r->err = 0;
	r->damage_nr = 0;
	r->bytes_read = 0;
	return r;
}

static void reader_put(struct reader *r)
{
	struct data *data = r->data;

	mutex_lock(&data->lock);
	bool is_kept = data->readers_idle_nr < DATA_READERS_IDLE_MAX;
	if (is_kept) {
		r->next = data->readers_idle;
		data->readers_idle = r;
		data->readers_idle_nr++;
	}
	mutex_unlock(&data->lock);
	if (!is_kept) {
		free(r->damage);
		free(r);
	}
}

/* --- damage and reports --- */

void data_position_text(char text[DATA_POSITION_BYTES], uint64_t inum, uint32_t snapshot, uint64_t offset_bytes)
{
	snprintf(text, DATA_POSITION_BYTES, "inode %" PRIu64 " snapshot %" PRIu32 " offset %" PRIu64, inum, snapshot,
		 offset_bytes);
}

void reader_report(struct reader *r, const struct report *report, uint64_t offset_bytes, const char *where)
{
	struct report full = *report;
	char place[DATA_POSITION_BYTES], position[320];

	data_position_text(place, r->file->inum, r->file->snapshot, offset_bytes);
	snprintf(position, sizeof(position), "%s%s%s", place, where ? ", " : "", where ? where : "");
	full.position = position;
	report_emit(r->data->reports, &full);
}

/* Parts of a file are always given as bytes [begin, end) inside of what is being read. */
static uint8_t *out_of(const struct reader *r, uint64_t begin) { return r->buf + (begin - r->begin_bytes); }

static void part_zero(struct reader *r, uint64_t begin, uint64_t end)
{
	if (begin < end)
		memset(out_of(r, begin), 0, end - begin);
}

/* Has been reported. */
static void part_lost(struct reader *r, uint64_t begin, uint64_t end, int err)
{
	if (begin >= end)
		return;
	part_zero(r, begin, end);
	data_count(r->data, COUNTER_DAMAGED_BYTES, end - begin);
	if (array_grow(&r->damage, &r->damage_capacity, r->damage_nr + 1, sizeof(*r->damage))) {
		r->err = -ENOMEM;
		return;
	}
	r->damage[r->damage_nr++] = (struct damage){ begin, end - begin, error_to_errno(err) };
}

static void part_report_lost(struct reader *r, uint64_t begin, uint64_t end, unsigned id, int err,
			     const char *structure, const char *expected, const char *found)
{
	if (begin >= end)
		return;
	reader_report(r,
		      &(struct report){ .level = REPORT_DAMAGE,
					.id = id,
					.err = err,
					.structure = structure,
					.expected = expected,
					.found = found },
		      begin, NULL);
	part_lost(r, begin, end, err);
}

static int damage_cmp(const void *a, const void *b)
{
	const struct damage *x = a, *y = b;

	return x->offset_bytes < y->offset_bytes ? -1 : x->offset_bytes > y->offset_bytes;
}

static void damage_tell(struct reader *r, data_damage_fn damage, void *ctx)
{
	if (!damage || !r->damage_nr)
		return;

	qsort(r->damage, r->damage_nr, sizeof(*r->damage), damage_cmp);
	for (size_t i = 0; i < r->damage_nr;) {
		struct damage d = r->damage[i];

		for (i++; i < r->damage_nr; i++) {
			const struct damage *next = &r->damage[i];
			if (next->offset_bytes != d.offset_bytes + d.len_bytes || next->err != d.err)
				break;
			d.len_bytes += next->len_bytes;
		}
		damage(ctx, d.offset_bytes, d.len_bytes, d.err);
	}
}

/* --- regions in flight --- */

/* Note how a region stands; its slot becomes free unless it, or the next part of it, is in flight. */
static void region_settle(struct region *region, enum region_result result)
{
	struct reader *r = region->reader;

	for (;;) {
		uint64_t begin = region->file_offset_bytes, end = begin + region->len_bytes;

		switch (result) {
		case REGION_IN_FLIGHT: r->in_flight++; return;
		case REGION_DONE: break;
		case REGION_ZEROES: part_zero(r, begin, end); break;
		case REGION_LOST: part_lost(r, begin, end, -EIO); break;
		}
		if (r->err || !region_next_part(region, result))
			break;
		result = region_start(region);
	}
	pool_give(&r->data->regions, region->buffers, ARRAY_NR(region->buffers));
	region->next = r->free;
	r->free = region;
}

/* Wait for one region's I/O, and go on with it. */
static void region_reap(struct reader *r)
{
	struct device_io *io = io_group_next(&r->group);
	struct region *region = io->ctx;

	r->in_flight--;
	region_settle(region, region_continue(region));
}

static void reader_drain(struct reader *r)
{
	while (r->in_flight)
		region_reap(r);
}

/* Take the buffers that a region needs. Only a reader that holds none waits for them. */
static int region_buffers_take(struct region *region)
{
	struct reader *r = region->reader;
	size_t sizes[2];
	int err;

	region_buffer_sizes(region, sizes);
	while ((err = pool_take(&r->data->regions, sizes, region->buffers, ARRAY_NR(sizes), !r->in_flight)) == -EAGAIN)
		region_reap(r);
	return err;
}

/*
 * Bytes [@begin, @end) of the file are at @skip_bytes in the live data of an extent or indirect extent: start reading
 * them.
 */
static void part_extent(struct reader *r, unsigned btree_id, const struct bkey *k, const void *value,
			uint64_t skip_bytes, uint64_t begin, uint64_t end)
{
	while (begin < end && !r->err) {
		while (!r->free)
			region_reap(r);

		struct region *region = r->free;
		r->free = region->next;
		region->file_offset_bytes = begin;
		region->out = out_of(r, begin);
		region->len_bytes = end - begin;
		region->skip_bytes = skip_bytes;
		region->btree_id = btree_id;
		region->k = *k;

		int err = region_decode(region, value);
		if (err <= 0) {
			region_settle(region, err ? REGION_LOST : REGION_ZEROES);
			return;
		}
		if (region_is_plain(region)) {
			uint64_t part = (uint64_t)DATA_PLAIN_SECTORS_MAX * SECTOR_BYTES;
			region->len_bytes = min(end, round_down_u64(begin + part, part)) - begin;
		}
		begin += region->len_bytes;
		skip_bytes += region->len_bytes;

		err = region_buffers_take(region);
		if (err)
			r->err = err;
		/* The first one, and the last: nothing else is to be done meanwhile. */
		if (!r->in_flight)
			r->group.is_sync = begin == r->end_bytes;
		region_settle(region, err ? REGION_DONE : region_start(region));
	}
}

/* --- pieces --- */

/* Sectors [@begin, @end) of the file as bytes, as far as they are wanted. */
static void part_of_sectors(const struct reader *r, uint64_t begin, uint64_t end, uint64_t *begin_bytes,
			    uint64_t *end_bytes)
{
	*begin_bytes = max(begin * SECTOR_BYTES, r->begin_bytes);
	*end_bytes = end >= div_round_up_u64(r->end_bytes, SECTOR_BYTES) ? r->end_bytes : end * SECTOR_BYTES;
	*end_bytes = max(*end_bytes, *begin_bytes);
}

static void part_inline(struct reader *r, struct bkey_ref k, uint64_t skip_bytes, uint64_t begin, uint64_t end)
{
	const uint8_t *bytes;
	size_t len = inline_data_bytes(k, &bytes);
	uint64_t copied = skip_bytes < len ? min(len - skip_bytes, end - begin) : 0;

	if (copied)
		memcpy(out_of(r, begin), bytes + skip_bytes, copied);
	part_zero(r, begin + copied, end);
}

/* Part of an indirect extent: from @pos on in the reflink btree. */
static void part_indirect(struct reader *r, struct bkey_ref k, uint64_t pos, uint64_t begin, uint64_t end)
{
	uint64_t skip_bytes = (pos - bkey_start_offset(&k.k)) * SECTOR_BYTES + begin % SECTOR_BYTES;

	switch (k.k.type) {
	case KEY_REFLINK_V: part_extent(r, BTREE_REFLINK, &k.k, k.value, skip_bytes, begin, end); return;
	case KEY_INDIRECT_INLINE_DATA: part_inline(r, k, skip_bytes, begin, end); return;
	case KEY_ERROR:
		part_report_lost(r, begin, end, ERROR_data_read_io_err, -EIO, "indirect extent", "data",
				 "a note that it was lost");
		return;
	default:
		part_report_lost(r, begin, end, ERROR_reflink_p_to_missing_reflink_v, -EIO, "indirect extent",
				 "an indirect extent", "a key of another type");
		return;
	}
}

/*
 * Next key of the reflink btree that covers something of [@pos, @end). 1, 0, or -ENOMEM. Unreadable nodes (which were
 * reported) are passed over: what isn't found is lost, for whatever reason.
 */
static int indirect_next(struct btree_iter *it, uint64_t pos, uint64_t end, struct bkey_ref *k)
{
	for (;;) {
		int n = btree_iter_peek(it, k);

		if (n < 0) {
			struct bpos was = it->pos;

			if (n == -ENOMEM)
				return n;
			btree_iter_skip_damage(it);
			if (bpos_le(it->pos, was))
				return 0;
			continue;
		}
		if (!n || (k->k.size <= k->k.p.offset && bkey_start_offset(&k->k) >= end))
			return 0;
		if (k->k.p.offset > pos && k->k.size && k->k.size <= k->k.p.offset)
			return 1;
		btree_iter_advance(it);
	}
}

/* Sectors [@begin, @end) of the file, which a reflink_p covers. */
static void span_indirect(struct reader *r, const struct span *s, uint64_t begin, uint64_t end)
{
	struct bkey_ref k = { s->k, s->value };
	struct reflink_p p;
	struct btree_iter it;
	uint64_t from, to, file_begin = bkey_start_offset(&s->k);
	int n = reflink_p_decode(k, &p);

	if (n || s->k.size > s->k.p.offset) {
		part_of_sectors(r, begin, end, &from, &to);
		part_report_lost(r, from, to, 0, -EIO, "reflink_p key", "a valid key", "an invalid one");
		return;
	}

	/* Sector f of the file is sector f - file_begin + idx of the reflink btree. */
	uint64_t pos = p.idx + (begin - file_begin), pos_end = p.idx + (end - file_begin);

	btree_iter_open(&it, r->data->trees, BTREE_REFLINK, BPOS(0, pos + 1, 0), 0, 0);
	it.end = BPOS(0, UINT64_MAX, UINT32_MAX);
	while (pos < pos_end && !r->err) {
		uint64_t key_begin = pos_end, key_end = pos_end;

		n = indirect_next(&it, pos, pos_end, &k);
		if (n < 0)
			r->err = n;
		if (n > 0) {
			key_begin = max(bkey_start_offset(&k.k), pos);
			key_end = min(k.k.p.offset, pos_end);
		}
		part_of_sectors(r, file_begin + (pos - p.idx), file_begin + (key_begin - p.idx), &from, &to);
		part_report_lost(r, from, to, ERROR_reflink_p_to_missing_reflink_v, -EIO, "reflink_p key",
				 "an indirect extent", "none");
		if (n > 0) {
			part_of_sectors(r, file_begin + (key_begin - p.idx), file_begin + (key_end - p.idx), &from,
					&to);
			part_indirect(r, k, key_begin, from, to);
			btree_iter_advance(&it);
		}
		pos = key_end;
	}
	btree_iter_close(&it);
}

/* Sectors [@begin, @end) of the file, which @s covers. */
static void span_serve(struct reader *r, const struct span *s, uint64_t begin, uint64_t end)
{
	struct bkey_ref k = { s->k, s->value };
	uint64_t from, to;

	part_of_sectors(r, begin, end, &from, &to);
	if (s->err) {
		part_report_lost(r, from, to, ERROR_data_read_io_err, s->err, "extents btree", "keys that can be read",
				 "damaged ones");
		return;
	}

	uint64_t skip_bytes = from - (s->k.p.offset > s->k.size ? bkey_start_offset(&s->k) : 0) * SECTOR_BYTES;
	switch (span_kind(s->k.type)) {
	case SPAN_HOLE: part_zero(r, from, to); return;
	case SPAN_EXTENT: part_extent(r, BTREE_EXTENTS, &s->k, s->value, skip_bytes, from, to); return;
	case SPAN_INLINE: part_inline(r, k, skip_bytes, from, to); return;
	case SPAN_REFLINK: span_indirect(r, s, begin, end); return;
	case SPAN_LOST:
		part_report_lost(r, from, to, ERROR_data_read_io_err, -EIO, "extent", "data",
				 s->k.type == KEY_ERROR ? "a note that it was lost" : "a key of unknown type");
		return;
	}
}

static void sectors_zero(struct reader *r, uint64_t begin, uint64_t end)
{
	uint64_t from, to;

	if (begin >= end)
		return;
	part_of_sectors(r, begin, end, &from, &to);
	part_zero(r, from, to);
}

static void reader_run(struct reader *r)
{
	uint64_t pos = r->begin_bytes / SECTOR_BYTES, end = div_round_up_u64(r->end_bytes, SECTOR_BYTES);

	map_open(&r->map, r->data->trees, r->file);
	while (pos < end && !r->err) {
		uint64_t stretch_end = end;
		int err = map_fill(&r->map, pos, &stretch_end);

		if (err) {
			r->err = err;
			break;
		}
		for (unsigned i = 0; i < r->map.span_nr && !r->err; i++) {
			const struct span *s = &r->map.spans[i];
			uint64_t span_begin = min(max(s->begin, pos), stretch_end), span_end = min(s->end, stretch_end);

			sectors_zero(r, pos, span_begin);
			if (span_begin < span_end)
				span_serve(r, s, span_begin, span_end);
			pos = max(pos, max(span_begin, span_end));
		}
		sectors_zero(r, pos, stretch_end);
		pos = stretch_end;
		io_group_push(&r->group);
	}
	map_close(&r->map);
}
