/*
 * Scanning the journal rings.
 *
 * A ring is an array of buckets on one device; a bucket holds entries back to back, each starting on a block boundary,
 * and after the last one whatever was there before: zeroes or entries of an earlier lap. The scan reads every bucket
 * with one I/O, looks at each block for the journal's magic, verifies what it finds and notes where it was and what its
 * header says. Entries themselves aren't kept: which ones are needed is known only when all have been seen, and then
 * they are read again (journal_entries.c). So memory is a few dozen bytes for each entry on disk.
 *
 * A damaged entry doesn't hide the ones behind it: its length isn't trustworthy, so the search goes on block by block.
 * That may also turn up entries of an earlier lap, which is harmless: a seq is never used twice with different
 * contents, so a good entry is what it says wherever it is found. The work for one bucket is bounded all the same: when
 * too much has been checksummed in vain, damaged entries are skipped by the length they claim.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "journal/journal_private.h"

enum {
	VAIN_BUCKETS_MAX = 4,	 /* bytes checksummed in vain before lengths of bad entries are believed */
	RETRY_BYTES = 4096,	 /* unit of reading a bucket that can't be read in one piece */
	RETRY_FAILURES_MAX = 16, /* after that the rest of the bucket is given up */
};
/* Seqs further than this from the others are no seqs (03 §4.2). */
static const uint64_t seq_distance_max = 1ull << 31;

static uint64_t seq_distance(uint64_t a, uint64_t b) { return a > b ? a - b : b - a; }

unsigned journal_pieces_read(struct device *dev, uint64_t offset_bytes, void *buf, size_t bytes)
{
	unsigned failures = 0;

	for (size_t at = 0; at < bytes; at += RETRY_BYTES) {
		size_t len = min((size_t)RETRY_BYTES, bytes - at);

		if (failures == RETRY_FAILURES_MAX || device_read(dev, offset_bytes + at, (uint8_t *)buf + at, len)) {
			memset((uint8_t *)buf + at, 0, len);
			failures += failures < RETRY_FAILURES_MAX;
		}
	}
	return failures;
}

/* Read a whole journal bucket into @buf (bucket size). Parts that can't be read are zero, and reported. */
static void bucket_read(const struct super *s, unsigned dev, uint64_t bucket, void *buf)
{
	const struct super_member *m = &s->members[dev];
	size_t bytes = (size_t)m->m.bucket_sectors << SECTOR_SHIFT;
	int first_err = device_read(m->dev, bucket * bytes, buf, bytes);

	if (!first_err)
		return;
	unsigned failures = journal_pieces_read(m->dev, bucket * bytes, buf, bytes);

	char position[48];
	snprintf(position, sizeof(position), "bucket %" PRIu64, bucket);
	report_emit(s->reports,
		    &(struct report){ .level = failures ? REPORT_DAMAGE : REPORT_RECOVERED,
				      .err = first_err,
				      .device = m->name,
				      .structure = "journal",
				      .position = position,
				      .expected = "readable",
				      .found = error_name(first_err),
				      .advice = failures ? "Entries that stand there are taken as missing." : NULL });
}

static int scan_add(const struct super *s, struct journal_scan *scan, const struct journal_location *f)
{
	if (scan->memory_max_bytes && (scan->nr + 1) * JOURNAL_INDEX_BYTES > scan->memory_max_bytes) {
		char found[64];

		snprintf(found, sizeof(found), "more than %zu entries", scan->nr);
		report_emit(s->reports,
			    &(struct report){ .level = REPORT_FATAL,
					      .err = -ENOMEM,
					      .structure = "journal",
					      .expected = "not more entries than the memory for their index allows",
					      .found = found,
					      .advice = "Allow more memory." });
		return -ENOMEM;
	}
	if (array_grow(&scan->found, &scan->capacity, scan->nr + 1, sizeof(*f)))
		return -ENOMEM;
	scan->found[scan->nr++] = *f;
	return 0;
}

/* Look at the entry at @j, of which @available bytes lie in the bucket. Decrypts it if it is good. */
static struct journal_location entry_look(const struct super *s, struct jset_disk *j, size_t available)
{
	uint64_t bytes = jset_bytes(j);
	struct journal_location f = { .seq = le64_get(j->seq), .bytes = (uint32_t)min(bytes, (uint64_t)available) };

	f.hash = checksum_compute(CHECKSUM_XXHASH, NULL, (struct nonce){ 0 }, j, f.bytes).lo;
	f.is_csum_good = bytes <= available && f.seq && !jset_is_big_endian(j) && !jset_verify(j, s->key, NULL);
	f.is_noflush = jset_is_noflush(j);
	f.has_overwrites = jset_has_overwrites(j);
	f.last_seq = le64_get(j->last_seq);
	f.version = le32_get(j->version);
	return f;
}

static int scan_bucket(const struct super *s, struct journal_scan *scan, struct journal_location place, uint8_t *buf,
		       uint64_t magic)
{
	size_t bucket_bytes = (size_t)s->members[place.dev].m.bucket_sectors << SECTOR_SHIFT;
	size_t block_bytes = (size_t)max(s->kctx.block_sectors, (uint8_t)1) << SECTOR_SHIFT;
	uint64_t vain_bytes = 0, newest_seq = 0;

	for (size_t at = 0; at + sizeof(struct jset_disk) <= bucket_bytes;) {
		struct jset_disk *j = (struct jset_disk *)(buf + at);

		if (le64_get(j->magic) != magic) {
			at += block_bytes;
			continue;
		}
		struct journal_location f = entry_look(s, j, bucket_bytes - at);
		if (f.is_csum_good && f.seq < newest_seq)
			break; /* the rest is from an earlier lap */

		f.dev = place.dev;
		f.ring_idx = place.ring_idx;
		f.bucket = place.bucket;
		f.offset_sectors = (uint32_t)(at >> SECTOR_SHIFT);
		if (f.seq && f.seq >= newest_seq && scan_add(s, scan, &f))
			return -ENOMEM;

		if (f.is_csum_good)
			newest_seq = f.seq;
		else
			vain_bytes += f.bytes;
		bool is_length_believed = f.is_csum_good || vain_bytes > (uint64_t)VAIN_BUCKETS_MAX * bucket_bytes;
		at += is_length_believed ? round_up_u64(f.bytes, block_bytes) : block_bytes;
	}
	return 0;
}

static int scan_device(const struct super *s, struct journal_scan *scan, unsigned dev)
{
	const struct super_member *m = &s->members[dev];
	uint64_t bucket_bytes = (uint64_t)m->m.bucket_sectors << SECTOR_SHIFT;
	uint64_t buckets_there = bucket_bytes ? m->dev->size_bytes / bucket_bytes : 0;
	struct journal_location place = { .dev = (uint8_t)dev };
	uint64_t magic = jset_magic(s->sb->uuid), beyond = 0;
	int err = 0;

	if (!sb_journal_range_nr(m->sb))
		return 0;
	uint8_t *buf = io_buffer_alloc(bucket_bytes);
	if (!buf)
		return -ENOMEM;
	for (unsigned i = 0; i < sb_journal_range_nr(m->sb) && !err; i++) {
		uint64_t start, nr;

		sb_journal_range(m->sb, i, &start, &nr);
		for (uint64_t b = start; b - start < nr && !err; b++, place.ring_idx++) {
			if (b >= buckets_there) { /* the device was cut off */
				beyond += nr - (b - start);
				place.ring_idx += (uint32_t)(nr - (b - start));
				break;
			}
			place.bucket = b;
			bucket_read(s, dev, b, buf);
			err = scan_bucket(s, scan, place, buf, magic);
		}
	}
	io_buffer_free(buf);
	if (beyond)
		report_emit(s->reports, &(struct report){ .level = REPORT_DAMAGE,
							  .device = m->name,
							  .structure = "journal",
							  .expected = "all its buckets on the device",
							  .found = "buckets beyond the device's end",
							  .advice = "Entries that stood there are taken as missing." });
	return err;
}

static int found_cmp(const void *pa, const void *pb)
{
	const struct journal_location *a = pa, *b = pb;

	if (a->seq != b->seq)
		return a->seq < b->seq ? -1 : 1;
	if (a->is_csum_good != b->is_csum_good)
		return a->is_csum_good ? -1 : 1;
	if (a->dev != b->dev)
		return a->dev < b->dev ? -1 : 1;
	if (a->ring_idx != b->ring_idx)
		return a->ring_idx < b->ring_idx ? -1 : 1;
	return a->offset_sectors < b->offset_sectors ? -1 : a->offset_sectors > b->offset_sectors;
}

/* The seq in the middle of the good copies (of all, if none is good): what the others can be compared with. */
static uint64_t scan_middle_seq(const struct journal_scan *scan)
{
	size_t good_nr = 0, seen = 0;

	for (size_t i = 0; i < scan->nr; i++)
		good_nr += scan->found[i].is_csum_good;
	if (!good_nr)
		return scan->found[scan->nr / 2].seq;
	for (size_t i = 0;; i++) {
		seen += scan->found[i].is_csum_good;
		if (seen > good_nr / 2)
			return scan->found[i].seq;
	}
}

/* A damaged seq field must not move H, nor make everything else look old. */
static void scan_drop_outliers(const struct super *s, struct journal_scan *scan)
{
	if (!scan->nr)
		return;
	uint64_t middle = scan_middle_seq(scan);
	size_t kept = 0;

	for (size_t i = 0; i < scan->nr; i++) {
		const struct journal_location *f = &scan->found[i];
		char position[64], found[48];

		if (seq_distance(f->seq, middle) <= seq_distance_max) {
			scan->found[kept++] = *f;
			continue;
		}
		snprintf(position, sizeof(position), "bucket %" PRIu64 ", sector %" PRIu32, f->bucket,
			 f->offset_sectors);
		snprintf(found, sizeof(found), "seq %" PRIu64, f->seq);
		report_emit(s->reports, &(struct report){ .level = REPORT_DAMAGE,
							  .device = s->members[f->dev].name,
							  .structure = "journal entry",
							  .position = position,
							  .expected = "a seq near the others",
							  .found = found });
	}
	scan->nr = kept;
}

int journal_scan_devices(const struct super *s, uint64_t memory_max_bytes, struct journal_scan *scan)
{
	*scan = (struct journal_scan){ .memory_max_bytes = memory_max_bytes };
	for (unsigned dev = 0; dev < s->member_nr; dev++) {
		bool is_failed = s->members[dev].m.state == MEMBER_FAILED && !s->kctx.is_newer;

		if (!super_member_online(s, dev) || is_failed)
			continue;
		int err = scan_device(s, scan, dev);
		if (err) {
			journal_scan_free(scan);
			return err;
		}
	}
	if (scan->nr)
		qsort(scan->found, scan->nr, sizeof(*scan->found), found_cmp);
	scan_drop_outliers(s, scan);
	return 0;
}

/* --- the newest entry of each bucket --- */

/* Buckets of the device's ring that are there. */
static uint64_t ring_bucket_nr(const struct super *s, unsigned dev)
{
	const struct super_member *m = &s->members[dev];
	uint64_t bucket_bytes = (uint64_t)m->m.bucket_sectors << SECTOR_SHIFT, nr = 0;

	if (!super_member_online(s, dev) || !bucket_bytes)
		return 0;
	for (unsigned i = 0; i < sb_journal_range_nr(m->sb); i++) {
		uint64_t start, n;

		sb_journal_range(m->sb, i, &start, &n);
		nr += n;
	}
	return min(nr, m->dev->size_bytes / bucket_bytes);
}

int journal_scan_newest(const struct super *s, const struct journal_scan *scan, struct journal_location **newest,
			size_t *nr)
{
	uint64_t base[UINT8_MAX + 1], total = 0;

	for (unsigned dev = 0; dev < ARRAY_NR(base) && dev < s->member_nr; dev++) {
		base[dev] = total;
		total += ring_bucket_nr(s, dev);
	}
	*nr = 0;
	/* Of bucket i: the newest of all at 2 * i, behind it the newest good one. */
	*newest = calloc(2 * total + 1, sizeof(**newest));
	if (!*newest)
		return -ENOMEM;
	for (size_t i = 0; i < scan->nr; i++) {
		const struct journal_location *f = &scan->found[i];
		uint64_t at = 2 * (base[f->dev] + f->ring_idx);

		if (at >= 2 * total)
			continue;
		if (f->seq >= (*newest)[at].seq)
			(*newest)[at] = *f;
		if (f->is_csum_good && f->seq >= (*newest)[at + 1].seq)
			(*newest)[at + 1] = *f;
	}
	for (uint64_t i = 0; i < 2 * total; i++) {
		bool is_another = !(i & 1) || !(*newest)[i - 1].is_csum_good;

		if ((*newest)[i].seq && is_another)
			(*newest)[(*nr)++] = (*newest)[i];
	}
	return 0;
}

/* The first entries of a device's buckets, by what their headers say, unverified. */
struct ring_heads {
	struct journal_location *v;
	size_t nr;
};

enum { HEADS_AT_ONCE = 64 };

static void heads_take(const struct super *s, struct ring_heads *heads, const struct journal_location *places,
		       const struct device_io *ios, unsigned nr, uint64_t seq_near)
{
	uint64_t magic = jset_magic(s->sb->uuid);

	for (unsigned i = 0; i < nr; i++) {
		const struct jset_disk *j = ios[i].iov->iov_base;
		uint64_t seq = ios[i].err || le64_get(j->magic) != magic ? 0 : le64_get(j->seq);

		if (!seq || seq_distance(seq, seq_near) > seq_distance_max)
			continue;
		heads->v[heads->nr] = places[i];
		heads->v[heads->nr++].seq = seq;
	}
}

static int heads_read(const struct super *s, unsigned dev, uint64_t seq_near, struct ring_heads *heads)
{
	const struct super_member *m = &s->members[dev];
	size_t bucket_bytes = (size_t)m->m.bucket_sectors << SECTOR_SHIFT;
	size_t head_bytes = (size_t)max(s->kctx.block_sectors, (uint8_t)1) << SECTOR_SHIFT;
	struct journal_location places[HEADS_AT_ONCE], place = { .dev = (uint8_t)dev };
	uint64_t total = ring_bucket_nr(s, dev);
	struct device_io ios[HEADS_AT_ONCE];
	struct iovec iov[HEADS_AT_ONCE];
	unsigned nr = 0;

	uint8_t *buf = io_buffer_alloc(HEADS_AT_ONCE * head_bytes);
	heads->nr = 0;
	heads->v = calloc(total + 1, sizeof(*heads->v));
	if (!buf || !heads->v) {
		io_buffer_free(buf);
		return -ENOMEM;
	}
	for (unsigned i = 0; i < sb_journal_range_nr(m->sb) && place.ring_idx < total; i++) {
		uint64_t start, n;

		sb_journal_range(m->sb, i, &start, &n);
		for (uint64_t b = start; b - start < n && place.ring_idx < total; b++, place.ring_idx++) {
			place.bucket = b;
			places[nr] = place;
			iov[nr] = (struct iovec){ buf + nr * head_bytes, head_bytes };
			ios[nr] = (struct device_io){ .op = DEVICE_READ,
						      .dev = m->dev,
						      .offset_bytes = b * bucket_bytes,
						      .iov = &iov[nr],
						      .iov_nr = 1,
						      .len_bytes = head_bytes };
			if (++nr < HEADS_AT_ONCE && place.ring_idx + 1 < total)
				continue;
			struct io_group group;

			io_group_init(&group);
			for (unsigned k = 0; k < nr; k++)
				io_submit(&group, &ios[k]);
			io_group_wait(&group);
			heads_take(s, heads, places, ios, nr, seq_near);
			nr = 0;
		}
	}
	io_buffer_free(buf);
	return 0;
}

/*
 * Take over @heads, ascending. Entries of one bucket are older than the first of the next; the newest bucket is read
 * for what is in it, and when its first entry is damaged, what its head says is worth nothing.
 */
static int heads_resolve(const struct super *s, struct ring_heads *heads, uint64_t seq_near,
			 struct journal_location *newest, size_t *nr)
{
	struct journal_scan scan = { 0 };
	uint8_t *buf = NULL;
	int err = 0;

	while (heads->nr && !scan.nr && !err) {
		struct journal_location place = heads->v[--heads->nr];
		size_t bytes = (size_t)s->members[place.dev].m.bucket_sectors << SECTOR_SHIFT;

		if (!buf && !(buf = io_buffer_alloc(bytes)))
			return -ENOMEM;
		place.seq = 0;
		bucket_read(s, place.dev, place.bucket, buf);
		err = scan_bucket(s, &scan, place, buf, jset_magic(s->sb->uuid));
		if (scan.nr && !scan.found[0].is_csum_good)
			scan.nr = 0;
	}
	io_buffer_free(buf);
	uint64_t above = scan.nr ? scan.found[0].seq : 0;
	/* Damaged ones behind the first may say anything. */
	while (scan.nr && seq_distance(scan.found[scan.nr - 1].seq, seq_near) > seq_distance_max)
		scan.nr--;
	if (scan.nr)
		newest[(*nr)++] = scan.found[scan.nr - 1];
	free(scan.found);
	for (size_t i = heads->nr; i-- && !err;) {
		uint64_t seq = heads->v[i].seq;

		newest[*nr] = heads->v[i];
		newest[(*nr)++].seq = above - 1;
		above = seq < above ? seq : above;
	}
	return err;
}

static int head_cmp(const void *pa, const void *pb)
{
	const struct journal_location *a = pa, *b = pb;

	return a->seq < b->seq ? -1 : a->seq > b->seq;
}

int journal_scan_heads(const struct super *s, uint64_t seq_near, struct journal_location **newest, size_t *nr)
{
	uint64_t total = 0;
	int err = 0;

	for (unsigned dev = 0; dev < s->member_nr; dev++)
		total += ring_bucket_nr(s, dev);
	*nr = 0;
	*newest = calloc(total + 1, sizeof(**newest));
	if (!*newest)
		return -ENOMEM;
	for (unsigned dev = 0; dev < s->member_nr && !err; dev++) {
		struct ring_heads heads = { 0 };

		if (!ring_bucket_nr(s, dev))
			continue;
		err = heads_read(s, dev, seq_near, &heads);
		if (!err) {
			qsort(heads.v, heads.nr, sizeof(*heads.v), head_cmp);
			err = heads_resolve(s, &heads, seq_near, *newest, nr);
		}
		free(heads.v);
	}
	if (err)
		free(*newest);
	return err;
}

void journal_scan_free(struct journal_scan *scan)
{
	free(scan->found);
	*scan = (struct journal_scan){ 0 };
}

size_t journal_group_end(const struct journal_scan *scan, size_t i)
{
	uint64_t seq = scan->found[i].seq;

	while (i < scan->nr && scan->found[i].seq == seq)
		i++;
	return i;
}

size_t journal_group_begin(const struct journal_scan *scan, size_t end)
{
	uint64_t seq = scan->found[--end].seq;

	while (end && scan->found[end - 1].seq == seq)
		end--;
	return end;
}
