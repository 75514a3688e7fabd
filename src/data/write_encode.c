/*
 * What the bytes of a chunk are stored as (06 §7.2, §8.6, §9.4): compressed, then encrypted, then checksummed.
 *
 * The chunk is divided into regions, each with a checksum of its own; they are compressed at once, on all cores. Only
 * then it is known how much space they take, and where one ends that is left of a bucket: a region that goes beyond it
 * is divided there. What has its place is sealed, on all cores again where it pays, with a checksum over just what will
 * be on the disk.
 *
 * The stored form of a region lies at the same offset of c->stored as its bytes in c->buf: it is never larger, so no
 * division gets in another's way. What is stored as it came stays where it is, or is copied there from where it was
 * given.
 */
#include <errno.h>
#include <string.h>

#include "base/array.h"
#include "data/compress.h"
#include "data/write_internal.h"

/*
 * A checksum is there by the time that others are awake, unless it is one of much; and a single other one takes as much
 * off as waking it takes.
 */
enum { CREW_CHECKSUM_SECTORS_MIN = 512, CREW_CHECKSUM_CPUS_MIN = 3 };

static uint32_t region_sectors_max(const struct write_op *op)
{
	uint64_t bytes = op->data->super->options[OPT_ENCODED_EXTENT_MAX];
	uint64_t block = block_bytes_of(op->data);

	if (op->csum_type == CHECKSUM_NONE && !op->compression)
		return UINT32_MAX;
	return (uint32_t)(max(bytes / block * block, block) >> SECTOR_SHIFT);
}

static const uint8_t *region_input(const struct write_chunk *c, const struct write_region *r)
{
	return (c->given ? c->given : (const uint8_t *)c->buf) + ((size_t)r->at << SECTOR_SHIFT);
}

static uint8_t *region_output(const struct write_chunk *c, const struct write_region *r)
{
	return (uint8_t *)c->stored + ((size_t)r->at << SECTOR_SHIFT);
}

/* --- compression --- */

/* The region as it came. Where compression is asked for it says that this was tried, so that nobody tries again. */
static void region_leave(const struct write_chunk *c, struct write_region *r)
{
	r->crc.compressed_sectors = r->crc.uncompressed_sectors;
	r->crc.compression = c->op->compression ? COMPRESSION_INCOMPRESSIBLE : COMPRESSION_NONE;
	r->bytes = region_input(c, r);
}

/* Compress the region to @sectors_max sectors at most. 0, -ENOBUFS, or -ENOMEM. */
static int region_compress_to(const struct write_chunk *c, struct write_region *r, uint32_t sectors_max)
{
	size_t block = block_bytes_of(c->op->data), len;
	uint8_t *to = region_output(c, r);
	struct crew *crew = &c->op->data->writer->crew;

	crew_slot_take(crew);
	int err = compress_to_blocks(c->op->compression, region_input(c, r),
				     (size_t)r->crc.uncompressed_sectors << SECTOR_SHIFT, to,
				     (size_t)sectors_max << SECTOR_SHIFT, block, &len);
	crew_slot_give(crew);
	if (err)
		return err;
	r->crc.compressed_sectors = (uint32_t)(len >> SECTOR_SHIFT);
	r->crc.compression = compression_option_type(c->op->compression);
	r->bytes = to;
	return 0;
}

/* Compress the region if a block can be gained. */
static int region_compress(const struct write_chunk *c, struct write_region *r)
{
	uint32_t block = c->op->data->super->kctx.block_sectors, sectors = r->crc.uncompressed_sectors;
	int err = -ENOBUFS;

	if (c->op->compression && sectors > block)
		err = region_compress_to(c, r, sectors - block);
	if (err == -ENOBUFS) {
		region_leave(c, r);
		err = 0;
	}
	return err;
}

static void compress_job(void *ctx, unsigned i)
{
	struct write_chunk *c = ctx;

	c->regions[i].err = region_compress(c, &c->regions[i]);
}

/* --- dividing --- */

static int region_new(struct write_chunk *c, uint32_t at, uint32_t sectors)
{
	if (array_grow(&c->regions, &c->region_max, c->region_nr + 1, sizeof(*c->regions)))
		return -ENOMEM;
	struct write_region *r = &c->regions[c->region_nr++];
	*r = (struct write_region){
		.at = at,
		.crc = { .uncompressed_sectors = sectors, .csum_type = (uint8_t)c->op->csum_type },
	};
	region_leave(c, r);
	return 0;
}

int write_regions_make(struct write_chunk *c)
{
	uint32_t sectors_max = region_sectors_max(c->op), end = (uint32_t)(c->end - c->begin);
	unsigned cut = 0;
	int err = 0;

	c->region_nr = 0;
	for (uint32_t at = 0; at < end && !err;) {
		uint32_t sectors = min(sectors_max, end - at);

		while (cut < c->cut_nr && c->cuts[cut] <= at)
			cut++;
		if (cut < c->cut_nr)
			sectors = min(sectors, c->cuts[cut] - at);
		err = region_new(c, at, sectors);
		at += sectors;
	}
	if (err || !c->op->compression)
		return err;
	crew_run(&c->op->data->writer->crew, c->region_nr, compress_job, c);
	for (size_t i = 0; i < c->region_nr && !err; i++)
		err = c->regions[i].err;
	return err;
}

/*
 * As much of the front of a compressed region as compresses to @room sectors; what doesn't compress to less than it
 * is, is stored as it is.
 */
static int region_shorten(const struct write_chunk *c, struct write_region *r, uint32_t room)
{
	uint32_t block = c->op->data->super->kctx.block_sectors, sectors = r->crc.uncompressed_sectors;
	uint64_t likely = (uint64_t)sectors * room / r->crc.compressed_sectors;

	sectors = (uint32_t)round_down_u64(min(likely, (uint64_t)sectors - block), block);
	while (sectors > room) {
		r->crc.uncompressed_sectors = sectors;
		int err = region_compress_to(c, r, room);
		if (err != -ENOBUFS)
			return err;
		sectors -= max(block, (uint32_t)round_down_u64((sectors - room) / 2, block));
	}
	r->crc.uncompressed_sectors = room;
	region_leave(c, r);
	return 0;
}

int write_region_divide(struct write_chunk *c, size_t i, uint32_t room)
{
	struct write_region *r = &c->regions[i];
	uint32_t sectors = r->crc.uncompressed_sectors;
	bool is_compressed = compression_is_compressed(r->crc.compression);
	int err = 0;

	if (is_compressed) {
		err = region_shorten(c, r, room);
	} else {
		r->crc.uncompressed_sectors = room;
		region_leave(c, r);
	}
	if (!err)
		err = region_new(c, r->at + c->regions[i].crc.uncompressed_sectors,
				 sectors - c->regions[i].crc.uncompressed_sectors);
	if (err)
		return err;
	struct write_region rest = c->regions[c->region_nr - 1];
	memmove(&c->regions[i + 2], &c->regions[i + 1], (c->region_nr - i - 2) * sizeof(rest));
	c->regions[i + 1] = rest;
	return is_compressed ? region_compress(c, &c->regions[i + 1]) : 0;
}

/* --- sealing --- */

static bool must_be_copied(const struct write_chunk *c, const struct write_region *r)
{
	return c->given && r->bytes == region_input(c, r);
}

/* What is stored as it was given, and might change there; who reads it next finds it in the processor's cache. */
static void region_copy(const struct write_chunk *c, struct write_region *r)
{
	uint8_t *to = c->buf ? (uint8_t *)c->buf + ((size_t)r->at << SECTOR_SHIFT) : region_output(c, r);

	memcpy(to, r->bytes, (size_t)r->crc.compressed_sectors << SECTOR_SHIFT);
	r->bytes = to;
}

/*
 * What is encrypted goes to c->stored, as the bytes in c->buf may be asked for again (write_batch.c), and written again
 * after a failure: then with another version, so that no key stream ever covers two plaintexts.
 */
static void region_seal(const struct write_chunk *c, struct write_region *r)
{
	const struct crypt_key *key = c->op->data->super->key;
	size_t bytes = (size_t)r->crc.compressed_sectors << SECTOR_SHIFT;

	if (!checksum_is_mac(r->crc.csum_type)) {
		if (must_be_copied(c, r))
			region_copy(c, r);
		if (r->crc.csum_type)
			r->crc.csum = checksum_compute(r->crc.csum_type, NULL, (struct nonce){ 0 }, r->bytes, bytes);
		return;
	}
	struct nonce nonce = nonce_extent(r->crc.uncompressed_sectors, r->crc.nonce_sectors, r->crc.compression,
					  r->version.lo, r->version.hi);
	uint8_t *to = region_output(c, r);
	crypt_encrypt(key, nonce, to, r->bytes, bytes);
	r->crc.csum = crypt_mac(r->crc.csum_type, key, nonce, to, bytes);
	r->bytes = to;
}

static void seal_job(void *ctx, unsigned i)
{
	struct write_chunk *c = ctx;

	region_seal(c, &c->regions[i]);
}

/* Versions for regions that are encrypted. */
static int encryption_prepare(struct write_chunk *c)
{
	uint64_t version;
	int err = allocator_key_versions_get(c->op->data->writer->allocator, (unsigned)c->region_nr, &version);
	if (err)
		return err;
	for (size_t i = 0; i < c->region_nr; i++)
		c->regions[i].version = (struct bversion){ .lo = version++ };
	return 0;
}

static bool is_checksum_shared(const struct write_chunk *c)
{
	return c->op->csum_type && c->end - c->begin >= CREW_CHECKSUM_SECTORS_MIN && cpu_nr() >= CREW_CHECKSUM_CPUS_MIN;
}

int write_regions_seal(struct write_chunk *c)
{
	bool is_encrypted = checksum_is_mac(c->op->csum_type);
	int err = 0;

	if (is_encrypted)
		err = encryption_prepare(c);
	if (err || (!c->op->csum_type && !c->given))
		return err;
	if (is_encrypted || is_checksum_shared(c))
		crew_run(&c->op->data->writer->crew, (unsigned)c->region_nr, seal_job, c);
	else
		for (size_t i = 0; i < c->region_nr; i++)
			region_seal(c, &c->regions[i]);
	return 0;
}
