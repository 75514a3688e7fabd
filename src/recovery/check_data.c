/*
 * Data: every replica of every extent is read, and its checksum verified; of stripes all blocks, checksums and parity
 * (06 §6, 08 §2, §4).
 *
 * A region that several keys refer to is read for each of them. Pointers that are cached and stale mean nothing.
 *
 * Memory: one region, at most that of the largest checksummed extent; of each block of a stripe what one checksum
 * covers.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "alloc/gens.h"
#include "data/data.h"
#include "format/stripe.h"
#include "recovery/check_internal.h"

enum { PLAIN_SECTORS = 2048 };

struct data_check {
	struct check *c;
	unsigned btree_id;
	void *buf;
	size_t buf_bytes;
};

static int report_data(struct data_check *d, const struct bkey *k, const struct extent_ptr *p, const char *found)
{
	char buf[CHECK_TEXT_BYTES];
	struct strbuf position = strbuf_fixed(buf, sizeof(buf));

	strbuf_printf(&position, "%s ", btree_name(d->btree_id));
	bpos_to_text(&position, k->p);
	strbuf_printf(&position, ", sector %llu", (unsigned long long)p->sector);
	return check_report(d->c, CHECK_data_replica_bad, d->c->super->members[p->dev].name, "extent", buf, "good data",
			    "%s", found);
}

static int buf_grow(struct data_check *d, size_t bytes)
{
	if (bytes <= d->buf_bytes)
		return 0;
	io_buffer_free(d->buf);
	d->buf = io_buffer_alloc(bytes);
	d->buf_bytes = d->buf ? bytes : 0;
	return d->buf ? 0 : -ENOMEM;
}

/* Is it a copy that is gone? 1, 0, -ENOMEM. */
static int is_stale(struct data_check *d, const struct extent_ptr *p)
{
	uint64_t bucket;
	uint8_t gen;

	if (!p->is_cached || !check_pointer_bucket(d->c, p, &bucket))
		return 0;
	int n = bucket_gen_lookup(d->c->trees, p->dev, bucket, &gen);
	if (n <= 0)
		return n == -ENOMEM ? n : 0;
	return gen != p->gen;
}

/* Without a checksum the device alone can say whether it is good. */
static int check_plain(struct data_check *d, const struct bkey *k, const struct extent_ptr_decoded *p)
{
	struct device *dev = d->c->super->members[p->ptr.dev].dev;

	for (uint32_t at = 0; at < p->crc.compressed_sectors; at += PLAIN_SECTORS) {
		size_t bytes = (size_t)min(p->crc.compressed_sectors - at, (uint32_t)PLAIN_SECTORS) << SECTOR_SHIFT;
		int err = buf_grow(d, bytes);

		if (err)
			return err;
		err = device_read(dev, (p->ptr.sector + at) << SECTOR_SHIFT, d->buf, bytes);
		if (err)
			return report_data(d, k, &p->ptr, error_name(err));
	}
	return 0;
}

static int check_replica(struct data_check *d, const struct bkey *k, const struct extent_ptr_decoded *p)
{
	size_t bytes = (size_t)p->crc.compressed_sectors << SECTOR_SHIFT;
	int err = is_stale(d, &p->ptr);

	if (err)
		return err < 0 ? err : 0;
	if (!p->crc.csum_type)
		return check_plain(d, k, p);
	err = buf_grow(d, bytes);
	if (err)
		return err;
	err = device_read(d->c->super->members[p->ptr.dev].dev, p->ptr.sector << SECTOR_SHIFT, d->buf, bytes);
	if (err)
		return report_data(d, k, &p->ptr, error_name(err));
	if (!data_region_verify(d->c->super, &p->crc, k->version, d->buf, bytes))
		return report_data(d, k, &p->ptr, "another checksum");
	return 0;
}

static int check_extent(void *ctx, struct bkey_ref k)
{
	struct data_check *d = ctx;
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	bool is_poisoned = false;

	if (k.k.type != KEY_EXTENT && k.k.type != KEY_REFLINK_V)
		return 0;
	int nr = extent_decode(k, d->c->kctx, ptrs, &is_poisoned, NULL);
	for (int i = 0; i < nr && !is_poisoned; i++) {
		if (ptrs[i].ptr.is_unwritten || !check_device_counts(d->c, ptrs[i].ptr.dev))
			continue;
		int err = check_replica(d, &k.k, &ptrs[i]);
		if (!err)
			err = check_step(d->c, ptrs[i].crc.compressed_sectors, d->btree_id, k.k.p);
		if (err)
			return err;
	}
	return 0;
}

/* --- stripes --- */

/* x * 2 in GF(2^8) (08 §4). */
static uint8_t gf_double(uint8_t x) { return (uint8_t)(x << 1 ^ (x & 0x80 ? 0x1d : 0)); }

static int report_stripe(struct data_check *d, struct bpos p, unsigned id, unsigned block, const char *found)
{
	return check_report_pos(d->c, id, BTREE_STRIPES, p, "blocks that agree", "block %u: %s", block, found);
}

/* One chunk of all blocks; @blocks lie one after the other. */
static void check_parity(struct data_check *d, struct bpos pos, const struct stripe *s, const uint8_t *blocks,
			 size_t bytes)
{
	unsigned data_nr = s->nr_blocks - (unsigned)s->nr_redundant;
	bool is_p_good = true, is_q_good = true;

	for (size_t i = 0; i < bytes; i++) {
		uint8_t p = 0, q = 0;

		for (unsigned b = data_nr; b-- > 0;) {
			p ^= blocks[b * bytes + i];
			q = gf_double(q) ^ blocks[b * bytes + i];
		}
		is_p_good &= s->nr_redundant < 1 || p == blocks[data_nr * bytes + i];
		is_q_good &= s->nr_redundant < 2 || q == blocks[(data_nr + 1) * bytes + i];
	}
	if (!is_p_good)
		report_stripe(d, pos, CHECK_stripe_parity_wrong, data_nr, "not the parity of the data");
	if (!is_q_good)
		report_stripe(d, pos, CHECK_stripe_parity_wrong, data_nr + 1, "not the parity of the data");
}

static int check_stripe_chunk(struct data_check *d, struct bpos pos, const struct stripe *s, uint32_t at,
			      uint32_t sectors, unsigned csum_idx)
{
	size_t bytes = (size_t)sectors << SECTOR_SHIFT;
	bool is_whole = true;
	int err = buf_grow(d, bytes * s->nr_blocks);

	for (unsigned b = 0; !err && b < s->nr_blocks; b++) {
		const struct extent_ptr *p = &s->ptrs[b];
		uint8_t *block = (uint8_t *)d->buf + b * bytes;

		if (!super_member_online(d->c->super, p->dev)) {
			is_whole = false;
			continue;
		}
		int read =
			device_read(d->c->super->members[p->dev].dev, (p->sector + at) << SECTOR_SHIFT, block, bytes);
		struct extent_crc crc = { .compressed_sectors = sectors,
					  .uncompressed_sectors = sectors,
					  .csum_type = s->csum_type };
		if (!read && s->csum_type)
			crc.csum = stripe_checksum(s, b, csum_idx);
		bool is_good = !read && (!s->csum_type ||
					 data_region_verify(d->c->super, &crc, (struct bversion){ 0 }, block, bytes));
		if (!is_good)
			report_stripe(d, pos, CHECK_stripe_block_bad, b, read ? error_name(read) : "another checksum");
		is_whole &= is_good;
	}
	if (!err && is_whole && s->nr_redundant <= 2)
		check_parity(d, pos, s, d->buf, bytes);
	return err ? err : check_step(d->c, (uint64_t)sectors * s->nr_blocks, BTREE_STRIPES, pos);
}

static int check_stripe(void *ctx, struct bkey_ref k)
{
	struct data_check *d = ctx;
	struct stripe s;
	int err = 0;

	if (k.k.type != KEY_STRIPE || stripe_decode(k, &s, NULL) || s.nr_redundant >= s.nr_blocks ||
	    s.csum_granularity_bits > 15)
		return 0;
	uint32_t granularity = 1u << s.csum_granularity_bits;
	for (uint32_t at = 0, i = 0; !err && at < s.sectors; at += granularity, i++)
		err = check_stripe_chunk(d, k.k.p, &s, at, min(granularity, s.sectors - at), i);
	return err;
}

int check_data(struct check *c)
{
	struct data_check d = { .c = c, .btree_id = BTREE_EXTENTS };
	const struct usage *u = c->t->usage ? c->t->usage : &c->usage;

	for (size_t i = 0; i < u->replicas_nr; i++)
		if (u->replicas[i].data_type == DATA_USER || u->replicas[i].data_type == DATA_CACHED)
			c->total += u->replicas[i].sectors;
	int err = check_keys(c, BTREE_EXTENTS, 0, POS_MIN, SPOS_MAX, check_extent, &d);
	d.btree_id = BTREE_REFLINK;
	if (!err)
		err = check_keys(c, BTREE_REFLINK, 0, POS_MIN, SPOS_MAX, check_extent, &d);
	d.btree_id = BTREE_STRIPES;
	/* Stripes of newer versions are of another form. */
	if (!err && !c->is_newer)
		err = check_keys(c, BTREE_STRIPES, 0, POS_MIN, SPOS_MAX, check_stripe, &d);
	io_buffer_free(d.buf);
	return err;
}
