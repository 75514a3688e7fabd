/*
 * One stored region: choose a replica, read it, verify, decrypt, decompress, copy out (06 §10).
 *
 * A region is what one checksum covers, so it is read as a whole even if one block is wanted; only data that is neither
 * checksummed nor compressed is read in part. Stored bytes go straight to the caller where they are what he wants, else
 * through a buffer.
 *
 * An attempt that fails leaves its pointer in the mask of failed ones, and the next best is tried: first devices that
 * should be readable, by latency; then the stripe; at last devices that were marked as failed but are there. Every
 * pointer has its own descriptor (a cached copy may be compressed when the others aren't), so sizes and places are
 * computed anew for each attempt.
 *
 * When all have failed, some because of their devices, what has neither checksum nor compression is tried again in
 * parts: half as large after one that no source gives, twice as large after one that some source gave, whoever gave the
 * last one first. So each block is taken from whoever can give it, exactly those that nobody can are lost, and reading
 * what is left of a disk takes few attempts for each bad place, and one for each bad block.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "alloc/gens.h"
#include "base/mutant.h"
#include "data/compress.h"
#include "data/internal.h"
#include "data/repair.h"
#include "data/write_internal.h"
#include "format/error_ids.h"
#include "format/version.h"

enum { BUFFER_STORED, BUFFER_DECOMPRESSED };
enum { PTR_NONE = EXTENT_PTRS_MAX };

/* --- geometry --- */

/* Where the wanted bytes are in the region, decompressed. */
static uint64_t live_bytes(const struct region *r, const struct extent_crc *crc)
{
	return (uint64_t)crc->offset_sectors * SECTOR_BYTES + r->skip_bytes;
}

/* Sectors of the stored region to read: [*begin, *end). */
static void read_range(const struct region *r, const struct extent_crc *crc, uint64_t *begin, uint64_t *end)
{
	*begin = 0;
	*end = crc->compressed_sectors;
	if (!crc_is_encoded(crc)) {
		*begin = live_bytes(r, crc) / SECTOR_BYTES;
		*end = div_round_up_u64(live_bytes(r, crc) + r->len_bytes, SECTOR_BYTES);
	}
}

/* True if the region is nothing but what is wanted, when decompressed. */
static bool is_wholly_wanted(const struct region *r, const struct extent_crc *crc)
{
	return !live_bytes(r, crc) && r->len_bytes == (uint64_t)crc->uncompressed_sectors * SECTOR_BYTES;
}

static struct device *ptr_device(const struct region *r, unsigned i)
{
	const struct super *s = r->reader->data->super;

	return super_member_online(s, r->ptrs[i].ptr.dev) ? s->members[r->ptrs[i].ptr.dev].dev : NULL;
}

/* May the stored bytes be read straight into the caller's memory? */
static bool ptr_is_direct(const struct region *r, unsigned i)
{
	const struct extent_crc *crc = &r->ptrs[i].crc;
	const struct device *dev = ptr_device(r, i);
	uint64_t begin, end;

	read_range(r, crc, &begin, &end);
	if (compression_is_compressed(crc->compression) || (end - begin) * SECTOR_BYTES != r->len_bytes ||
	    live_bytes(r, crc) != begin * SECTOR_BYTES)
		return false;
	return !dev || (!((uintptr_t)r->out % max(dev->mem_align_bytes, 1u)) &&
			!((r->ptrs[i].ptr.sector + begin) * SECTOR_BYTES % max(dev->io_align_bytes, 1u)) &&
			!(r->len_bytes % max(dev->io_align_bytes, 1u)));
}

void region_buffer_sizes(const struct region *r, size_t sizes[2])
{
	sizes[BUFFER_STORED] = sizes[BUFFER_DECOMPRESSED] = 0;
	for (unsigned i = 0; i < r->ptr_nr; i++) {
		const struct extent_crc *crc = &r->ptrs[i].crc;
		uint64_t begin, end;

		if (r->failed & r->rebuild_failed & 1u << i)
			continue;
		read_range(r, crc, &begin, &end);
		if (!ptr_is_direct(r, i))
			sizes[BUFFER_STORED] = max(sizes[BUFFER_STORED], (size_t)(end - begin) * SECTOR_BYTES);
		if (compression_is_compressed(crc->compression) && !is_wholly_wanted(r, crc))
			sizes[BUFFER_DECOMPRESSED] =
				max(sizes[BUFFER_DECOMPRESSED], (size_t)crc->uncompressed_sectors * SECTOR_BYTES);
	}
}

bool region_is_plain(const struct region *r)
{
	for (unsigned i = 0; i < r->ptr_nr; i++)
		if (crc_is_encoded(&r->ptrs[i].crc))
			return false;
	return true;
}

/* --- reports --- */

static void checksum_to_text(char *text, size_t size, unsigned type, struct checksum c)
{
	if (c.hi)
		snprintf(text, size, "%s %" PRIx64 ":%" PRIx64, checksum_name(type), c.hi, c.lo);
	else
		snprintf(text, size, "%s %" PRIx64, checksum_name(type), c.lo);
}

static unsigned failure_id(const struct region_failure *f, bool is_recovered)
{
	if (f->err == -KILN_E_CHECKSUM)
		return is_recovered ? ERROR_data_read_csum_err_recovered : ERROR_data_read_csum_err;
	if (f->err == -KILN_E_INVALID)
		return ERROR_data_decompress_err_unknown;
	if (f->err == -KILN_E_STALE)
		return ERROR_stale_dirty_ptr;
	return is_recovered ? ERROR_data_read_io_err_recovered : ERROR_data_read_io_err;
}

static void failure_report(struct region *r, const struct region_failure *f, bool is_recovered)
{
	const struct super *s = r->reader->data->super;
	const struct extent_ptr_decoded *p = &r->ptrs[f->ptr_idx];
	char expected[80] = "", found[80] = "", where[160], key[80];
	struct strbuf key_text = strbuf_fixed(key, sizeof(key));

	if (f->err == -KILN_E_CHECKSUM) {
		checksum_to_text(expected, sizeof(expected), p->crc.csum_type, p->crc.csum);
		checksum_to_text(found, sizeof(found), p->crc.csum_type, f->found);
	} else if (f->err == -KILN_E_INVALID) {
		snprintf(expected, sizeof(expected), "%s data of %u sectors", compression_name(p->crc.compression),
			 p->crc.uncompressed_sectors);
		snprintf(found, sizeof(found), "data that doesn't decompress to that");
	}
	bpos_to_text(&key_text, r->k.p);
	snprintf(where, sizeof(where), "%s %s, sector %" PRIu64 "%s", btree_name(r->btree_id), key, p->ptr.sector,
		 f->was_rebuild ? " (rebuilt from its stripe)" : "");
	reader_report(r->reader,
		      &(struct report){
			      .level = is_recovered ? REPORT_RECOVERED : REPORT_DAMAGE,
			      .id = failure_id(f, is_recovered),
			      .err = f->err,
			      .device = p->ptr.dev < s->member_nr ? s->members[p->ptr.dev].name : NULL,
			      .structure = "extent",
			      .expected = expected[0] ? expected : NULL,
			      .found = found[0] ? found : NULL,
			      .advice = f->err == -KILN_E_NEED_PASSPHRASE ? "Unlock the filesystem first." : NULL,
		      },
		      r->file_offset_bytes, where);
}

/* One report for the key as a whole. */
static void region_report_lost(struct region *r, unsigned id, const char *expected, const char *found,
			       const char *advice)
{
	char where[120], key[80];
	struct strbuf key_text = strbuf_fixed(key, sizeof(key));

	bpos_to_text(&key_text, r->k.p);
	snprintf(where, sizeof(where), "%s %s", btree_name(r->btree_id), key);
	reader_report(r->reader,
		      &(struct report){
			      .level = REPORT_DAMAGE,
			      .id = id,
			      .err = -EIO,
			      .structure = "extent",
			      .expected = expected,
			      .found = found,
			      .advice = advice,
		      },
		      r->file_offset_bytes, where);
}

static void failures_report(struct region *r, bool is_recovered)
{
	for (unsigned i = 0; i < r->failure_nr; i++)
		failure_report(r, &r->failures[i], is_recovered);
}

/* Another copy served. */
static void failures_recovered(struct region *r)
{
	failures_report(r, true);
	for (unsigned i = 0; i < r->failure_nr; i++)
		if (!r->failures[i].was_rebuild)
			repair_extent(r->reader->data, r->btree_id, r->k.p, &r->ptrs[r->failures[i].ptr_idx].ptr,
				      r->failures[i].err);
}

/* --- choosing --- */

int region_decode(struct region *r, const void *value)
{
	struct bkey_ref k = { r->k, value };
	struct fault fault = { 0 };
	bool is_poisoned;

	r->is_divided = false;
	r->rest_bytes = 0;
	int nr = extent_decode(k, &r->reader->data->super->kctx, r->ptrs, &is_poisoned, &fault);

	if (nr < 0) {
		region_report_lost(r, fault.id, fault.expected, fault.found, NULL);
		return -EIO;
	}
	if (is_poisoned) {
		region_report_lost(r, ERROR_data_read_csum_err, "good data", "data that was corrupt when it was moved",
				   "Restore the file from a backup.");
		return -EIO;
	}
	r->ptr_nr = (unsigned)nr;
	r->failed = r->rebuild_failed = 0;
	r->failure_nr = 0;
	r->must_bounce = false;
	for (unsigned i = 0; i < r->ptr_nr; i++) {
		if (r->ptrs[i].ptr.is_unwritten)
			return 0;
		if (!r->ptrs[i].has_stripe)
			r->rebuild_failed |= 1u << i;
	}
	for (unsigned i = 0; i < r->ptr_nr; i++)
		if (!crc_is_sane(&r->ptrs[i].crc, live_bytes(r, &r->ptrs[i].crc) + r->len_bytes)) {
			r->failed |= 1u << i;
			r->rebuild_failed |= 1u << i;
		}
	if (r->ptr_nr && r->failed == (1u << r->ptr_nr) - 1) {
		region_report_lost(r, ERROR_ptr_crc_uncompressed_size_mismatch, "sizes that hold the extent", "others",
				   NULL);
		return -EIO;
	}
	return 1;
}

/* Before 1.33 this state means that the device isn't to be used; since then, that it is being emptied. */
static bool device_is_distrusted(const struct super *s, unsigned dev)
{
	return super_member_state(s, dev) == MEMBER_FAILED && s->kctx.version < VERSION(1, 33);
}

static unsigned replica_choose(struct region *r, bool is_distrusted)
{
	const struct super *s = r->reader->data->super;
	uint8_t devs[EXTENT_PTRS_MAX];
	uint32_t excluded = r->failed, verifiable = 0;

	for (unsigned i = 0; i < r->ptr_nr; i++) {
		devs[i] = r->ptrs[i].ptr.dev;
		verifiable |= (uint32_t)(r->ptrs[i].crc.csum_type != 0) << i;
		if (super_member_online(s, devs[i]) && device_is_distrusted(s, devs[i]) != is_distrusted)
			excluded |= 1u << i;
	}
	/* Who gave the part before hasn't failed just now. */
	if (r->is_divided && r->served_idx < r->ptr_nr && !(excluded >> r->served_idx & 1))
		return r->served_idx;
	uint32_t suspect = super_suspect_copies(s, devs, r->ptr_nr) & verifiable & ~excluded;
	unsigned i = super_replica_choose(s, devs, r->ptr_nr, suspect ? ~suspect : excluded, rng_u64(&r->reader->rng));
	return i < r->ptr_nr ? i : (unsigned)PTR_NONE;
}

static void failure_add(struct region *r, int err, struct checksum found)
{
	if (r->is_rebuild)
		r->rebuild_failed |= 1u << r->ptr_idx;
	else
		r->failed |= 1u << r->ptr_idx;
	if (r->failure_nr < ARRAY_NR(r->failures))
		r->failures[r->failure_nr++] = (struct region_failure){
			.ptr_idx = (uint8_t)r->ptr_idx, .was_rebuild = r->is_rebuild, .err = err, .found = found
		};
}

/*
 * Is the pointer, whose bucket has become newer, still in the btree? If it isn't, somebody moved or overwrote the data
 * while it is being read; then the bucket stays as it was until the read is over (allocator_read_begin()).
 */
static bool ptr_is_still_there(const struct region *r, const struct extent_ptr *p)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	const struct data *data = r->reader->data;
	struct bkey_copy copy;

	if (!data->writer || btree_lookup(data->trees, r->btree_id, r->k.p, &copy) <= 0)
		return !data->writer;
	int nr = copy.k.k.type == KEY_EXTENT || copy.k.k.type == KEY_REFLINK_V
			 ? extent_decode(copy.k, &data->super->kctx, ptrs, NULL, NULL)
			 : 0;
	for (int i = 0; i < nr; i++)
		if (!ptrs[i].ptr.is_cached && extent_ptr_is_same(&ptrs[i].ptr, p))
			return true;
	return false;
}

/*
 * A pointer counts only while its bucket still has the generation it was written in. Buckets that others than cached
 * pointers refer to aren't reused, unless something is broken (06 §4.2); a checksum would show it, so what has one
 * needs no look at the generation. Of those without, only what is known to be stale isn't read.
 */
static bool ptr_is_current(struct region *r, unsigned i)
{
	struct data *data = r->reader->data;
	const struct extent_ptr *p = &r->ptrs[i].ptr;
	uint16_t bucket_sectors = data->super->members[p->dev].m.bucket_sectors;
	uint8_t gen;

	if (p->is_cached ? is_mutant(MUTANT_CACHED_STALE) : r->ptrs[i].crc.csum_type != 0)
		return true;
	int n = bucket_sectors ? bucket_gen_lookup(data->trees, p->dev, p->sector / bucket_sectors, &gen) : -EIO;
	if (!n || (n > 0 && gen == p->gen))
		return true;
	if (!p->is_cached && (n < 0 || gen_cmp(gen, p->gen) < 0 || !ptr_is_still_there(r, p)))
		return true;
	if (n < 0 || !p->is_cached)
		failure_add(r, n < 0 ? n : -KILN_E_STALE, (struct checksum){ 0 });
	r->failed |= 1u << i;
	return false;
}

/* Choose where to read from: r->ptr_idx, is_rebuild. False: nothing is left. */
static bool source_choose(struct region *r)
{
	for (unsigned is_distrusted = 0; is_distrusted < 2; is_distrusted++) {
		r->is_rebuild = false;
		while ((r->ptr_idx = replica_choose(r, is_distrusted)) != PTR_NONE)
			if (ptr_is_current(r, r->ptr_idx))
				return true;
		r->is_rebuild = true;
		for (r->ptr_idx = 0; r->ptr_idx < r->ptr_nr; r->ptr_idx++)
			if (!(r->rebuild_failed & 1u << r->ptr_idx))
				return true;
	}
	return false;
}

/* No source is left. Cached copies may go at any time: without others the key is as good as none (12 §8.4). */
static enum region_result region_give_up(struct region *r)
{
	bool is_cached_only = true;

	for (unsigned i = 0; i < r->ptr_nr; i++)
		is_cached_only = is_cached_only && r->ptrs[i].ptr.is_cached;
	if (is_cached_only && !r->failure_nr && r->ptr_nr)
		return REGION_ZEROES;

	if (r->is_divided && r->is_lost_run)
		return REGION_LOST; /* as the part before it, which was told */
	failures_report(r, false);
	if (!r->failure_nr)
		region_report_lost(r, ERROR_data_lost_device_removed, "a replica on a device that is there", "none",
				   "Attach the missing device and open the filesystem with it.");
	return REGION_LOST;
}

/* --- parts --- */

/* The device said no: it may have other blocks nevertheless. */
static bool is_device_error(int err) { return err > -KILN_E_FIRST && err != -ENODEV && err != -ENOMEM; }

static uint64_t block_bytes(const struct region *r)
{
	return (uint64_t)r->reader->data->super->kctx.block_sectors << SECTOR_SHIFT;
}

/* What is wanted is [file_offset_bytes, @end), so many blocks of it at most; the rest waits. */
static void part_set(struct region *r, uint64_t end, uint64_t blocks)
{
	uint64_t begin = r->file_offset_bytes, block = block_bytes(r);
	uint64_t part_end = min(end, round_down_u64(begin, block) + blocks * block);

	r->part_blocks = blocks;
	r->len_bytes = part_end - begin;
	r->rest_bytes = end - part_end;
	r->failed = r->divided_failed;
	r->rebuild_failed = r->divided_rebuild_failed;
	r->failure_nr = 0;
}

/* No source is left: go on with half of it, where a part can be read at all. */
static bool region_divide(struct region *r)
{
	uint64_t begin = r->file_offset_bytes, end = begin + r->len_bytes, block = block_bytes(r);
	uint64_t blocks = div_round_up_u64(end, block) - begin / block;
	uint32_t failed = r->failed, rebuild_failed = r->rebuild_failed;

	for (unsigned i = 0; i < r->failure_nr; i++) {
		const struct region_failure *f = &r->failures[i];

		if (!is_device_error(f->err) || crc_is_encoded(&r->ptrs[f->ptr_idx].crc))
			continue;
		if (f->was_rebuild)
			rebuild_failed &= ~(1u << f->ptr_idx);
		else
			failed &= ~(1u << f->ptr_idx);
	}
	if (blocks < 2 || (failed == r->failed && rebuild_failed == r->rebuild_failed))
		return false;
	if (!r->is_divided) {
		r->is_divided = true;
		r->is_lost_run = false;
		r->served_idx = PTR_NONE;
	}
	r->divided_failed = failed;
	r->divided_rebuild_failed = rebuild_failed;
	part_set(r, end + r->rest_bytes, blocks / 2);
	return true;
}

bool region_next_part(struct region *r, enum region_result result)
{
	if (!r->rest_bytes)
		return false;
	uint64_t end = r->file_offset_bytes + r->len_bytes + r->rest_bytes;

	r->is_lost_run = result == REGION_LOST;
	r->file_offset_bytes += r->len_bytes;
	r->out += r->len_bytes;
	r->skip_bytes += r->len_bytes;
	part_set(r, end, r->is_lost_run ? 1 : 2 * r->part_blocks);
	return true;
}

/* --- attempts --- */

static uint8_t *stored_data(const struct region *r) { return r->is_direct ? r->out : r->buffers[BUFFER_STORED].data; }

static bool checksum_verify(const struct super *super, const struct extent_crc *crc, struct bversion version,
			    const void *stored, size_t len, struct checksum *found)
{
	*found = (struct checksum){ 0 };
	if (!crc->csum_type || is_mutant(MUTANT_DATA_CHECKSUM))
		return true;
	if (crc->csum_type >= CHECKSUM_TYPE_NR || (checksum_is_mac(crc->csum_type) && !super->key))
		return false;
	*found = checksum_compute(
		crc->csum_type, super->key,
		nonce_extent(crc->uncompressed_sectors, crc->nonce_sectors, crc->compression, version.lo, version.hi),
		stored, len);
	return checksum_eq(*found, crc->csum);
}

bool data_region_verify(const struct super *super, const struct extent_crc *crc, struct bversion version,
			const void *stored, size_t len)
{
	struct checksum found;

	return checksum_verify(super, crc, version, stored, len, &found);
}

/* Decompress into the caller's memory, or a buffer if he wants part of it. */
static int compressed_copy_out(struct region *r, const struct extent_crc *crc)
{
	size_t stored_bytes = (size_t)crc->compressed_sectors * SECTOR_BYTES;
	size_t bytes = (size_t)crc->uncompressed_sectors * SECTOR_BYTES;
	uint8_t *to = is_wholly_wanted(r, crc) ? r->out : r->buffers[BUFFER_DECOMPRESSED].data;
	int err = decompress_region(crc->compression, stored_data(r), stored_bytes, to, bytes);

	if (err)
		return err == -ENOMEM ? err : -KILN_E_INVALID;
	if (to != r->out)
		memcpy(r->out, to + live_bytes(r, crc), r->len_bytes);
	return 0;
}

/* The stored bytes are there: verify, decrypt, decompress, copy out. */
static int region_finish(struct region *r, struct checksum *found)
{
	const struct super *super = r->reader->data->super;
	const struct extent_crc *crc = &r->ptrs[r->ptr_idx].crc;
	struct bversion version = r->k.version;
	uint8_t *stored = stored_data(r);
	bool is_compressed = compression_is_compressed(crc->compression);

	if (checksum_is_mac(crc->csum_type) && !super->key)
		return -KILN_E_NEED_PASSPHRASE;
	if (!checksum_verify(super, crc, version, stored, (size_t)r->read_sectors * SECTOR_BYTES, found))
		return -KILN_E_CHECKSUM;

	/* The part of the stored bytes that is needed, in whole sectors. */
	uint64_t live = live_bytes(r, crc), begin = 0, end = r->read_sectors;
	if (!is_compressed && crc->csum_type) {
		begin = live / SECTOR_BYTES;
		end = div_round_up_u64(live + r->len_bytes, SECTOR_BYTES);
	}
	if (checksum_is_mac(crc->csum_type)) {
		struct nonce nonce = nonce_extent(crc->uncompressed_sectors, crc->nonce_sectors, crc->compression,
						  version.lo, version.hi);
		crypt_xor(super->key, nonce_add(nonce, begin * SECTOR_BYTES), stored + begin * SECTOR_BYTES,
			  (end - begin) * SECTOR_BYTES);
	}
	if (is_compressed)
		return compressed_copy_out(r, crc);
	if (!r->is_direct)
		memcpy(r->out, stored + begin * SECTOR_BYTES + live % SECTOR_BYTES, r->len_bytes);
	return 0;
}

static void attempt_begin(struct region *r)
{
	const struct extent_ptr_decoded *p = &r->ptrs[r->ptr_idx];
	uint64_t begin, end;

	read_range(r, &p->crc, &begin, &end);
	r->device_sector = p->ptr.sector + begin;
	r->read_sectors = (uint32_t)(end - begin);
	/* A part of what was direct, of blocks that are smaller than what the device likes, has no buffer. */
	r->is_direct =
		!r->must_bounce && (ptr_is_direct(r, r->ptr_idx) || (r->is_divided && !r->buffers[BUFFER_STORED].data));
}

static void attempt_submit(struct region *r)
{
	uint64_t bytes = (uint64_t)r->read_sectors * SECTOR_BYTES;

	r->iov = (struct iovec){ stored_data(r), bytes };
	r->io = (struct device_io){
		.op = DEVICE_READ,
		.dev = ptr_device(r, r->ptr_idx),
		.offset_bytes = r->device_sector * SECTOR_BYTES,
		.iov = &r->iov,
		.iov_nr = 1,
		.len_bytes = bytes,
		.may_be_cached = !r->must_bounce && !r->failed && !r->is_divided && reader_is_small(r->reader),
		.ctx = r,
	};
	data_count(r->reader->data, COUNTER_IOS, 1);
	io_submit(&r->reader->group, &r->io);
}

/* A buffer for a region that was read without; not if that would mean to wait. */
static bool bounce_buffer_take(struct region *r)
{
	struct pool_buffer *buffer = &r->buffers[BUFFER_STORED];

	if (buffer->data)
		return buffer->bytes >= r->len_bytes;
	return !pool_take(&r->reader->data->regions, &r->len_bytes, buffer, 1, false);
}

/*
 * The attempt ended: @err, or the stored bytes are there. True when the region is done. Bytes read straight into the
 * caller's memory may be wrong because he writes there; that is seen by reading them once more elsewhere.
 */
static bool attempt_end(struct region *r, int err)
{
	struct data *data = r->reader->data;
	struct checksum found = { 0 };

	if (!err)
		err = region_finish(r, &found);
	if (err == -ENOMEM)
		r->reader->err = err;
	if (!err || err == -ENOMEM)
		return true;
	if (err == -KILN_E_CHECKSUM && r->is_direct && !r->is_rebuild && bounce_buffer_take(r)) {
		r->must_bounce = true;
		return false;
	}
	data_count(data, err == -KILN_E_CHECKSUM ? COUNTER_RETRIES_CSUM : COUNTER_RETRIES_IO, 1);
	if (err == -KILN_E_CHECKSUM && !r->is_rebuild)
		super_checksum_error_count((struct super *)data->super, r->ptrs[r->ptr_idx].ptr.dev);
	failure_add(r, err, found);
	return false;
}

enum region_result region_start(struct region *r)
{
	do {
		while (source_choose(r)) {
			const struct extent_ptr_decoded *p = &r->ptrs[r->ptr_idx];

			attempt_begin(r);
			if (!r->is_rebuild) {
				attempt_submit(r);
				return REGION_IN_FLIGHT;
			}
			if (attempt_end(r, stripe_rebuild(r->reader->data, &p->stripe, &p->ptr, r->device_sector,
							  r->read_sectors, stored_data(r)))) {
				failures_recovered(r);
				return REGION_DONE;
			}
		}
	} while (region_divide(r));
	return region_give_up(r);
}

enum region_result region_continue(struct region *r)
{
	if (!r->io.err) {
		data_count(r->reader->data, COUNTER_BYTES_READ, r->io.len_bytes);
		r->reader->bytes_read += r->io.len_bytes;
	}
	if (!attempt_end(r, r->io.err))
		return region_start(r);
	const struct data *data = r->reader->data;
	r->served_idx = r->ptr_idx;
	if (r->ptrs[r->ptr_idx].ptr.is_cached && data->writer)
		allocator_cached_read(data->writer->allocator, &r->ptrs[r->ptr_idx].ptr);
	failures_recovered(r);
	return REGION_DONE;
}
