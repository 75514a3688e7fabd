/*
 * One chunk of a write: space, checksums, I/O, and the keys that will say where it is (06 §9.3 - §9.5).
 *
 * The chunk's bytes lie in one buffer; each piece that the allocator gives is one write per replica, and as many keys
 * as regions with a checksum of their own fit (encoded_extent_max). Without checksum a piece is one key.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "data/write_internal.h"
#include "device/device.h"

int write_chunk_init(struct write_chunk *c, struct write_op *op)
{
	unsigned ios_max = ARRAY_NR(c->extents) * ALLOC_PTRS_MAX;

	*c = (struct write_chunk){ .op = op };
	c->buf = write_buffer_take(op->data->writer);
	c->ios = calloc(ios_max, sizeof(*c->ios));
	c->iovs = calloc(ios_max, sizeof(*c->iovs));
	return c->buf && c->ios && c->iovs ? 0 : -ENOMEM;
}

void write_chunk_destroy(struct write_chunk *c)
{
	write_buffer_give(c->op->data->writer, c->buf);
	free(c->ios);
	free(c->iovs);
	free(c->keys);
	free(c->key_extent);
}

static uint32_t region_sectors_max(const struct write_op *op)
{
	uint64_t bytes = op->data->super->options[OPT_ENCODED_EXTENT_MAX];
	uint64_t block = block_bytes_of(op->data);

	if (op->csum_type == CHECKSUM_NONE)
		return UINT32_MAX;
	return (uint32_t)(max(bytes / block * block, block) >> SECTOR_SHIFT);
}

/* Space for [c->begin, c->end): pieces, until the chunk is full or the array is. */
static int extents_get(struct write_chunk *c)
{
	const struct write_op *op = c->op;
	struct alloc_request req = {
		.data_type = DATA_USER,
		.watermark = WATERMARK_NORMAL,
		.target = op->target,
		.replicas = op->replicas,
		.replicas_required = (unsigned)max(op->data->super->options[OPT_DATA_REPLICAS_REQUIRED], (uint64_t)1),
		.writer = op->file->inum,
		.can_wait = true,
	};
	uint64_t at = c->begin;
	int err = 0;

	c->extent_nr = 0;
	while (at < c->end && c->extent_nr < ARRAY_NR(c->extents)) {
		struct alloc_extent *e = &c->extents[c->extent_nr];

		err = allocator_extent_get(op->data->writer->allocator, &req, (uint32_t)(c->end - at), e);
		if (err)
			break;
		at += e->sectors;
		c->extent_nr++;
	}
	if (at == c->begin)
		return err;
	c->end = at;
	return 0;
}

/* A key for the region [begin, begin + sectors) of the file, at @offset sectors of piece @e. */
static int key_make(struct write_chunk *c, const struct alloc_extent *e, uint64_t begin, uint32_t sectors,
		    uint32_t offset)
{
	const struct write_op *op = c->op;
	struct extent_value v = { .ptr_nr = e->ptr_nr };
	struct key_buf *key = &c->keys[c->key_nr];
	struct extent_crc crc = { .compressed_sectors = sectors,
				  .uncompressed_sectors = sectors,
				  .csum_type = (uint8_t)op->csum_type };

	if (op->csum_type)
		crc.csum = checksum_compute(op->csum_type, NULL, (struct nonce){ 0 },
					    (uint8_t *)c->buf + ((begin - c->begin) << SECTOR_SHIFT),
					    (size_t)sectors << SECTOR_SHIFT);
	for (unsigned i = 0; i < e->ptr_nr; i++) {
		v.ptrs[i] = (struct extent_ptr_decoded){ .ptr = e->ptrs[i], .crc = crc, .has_crc = op->csum_type != 0 };
		v.ptrs[i].ptr.sector += offset;
	}
	key->k = (struct bkey){
		.p = BPOS(op->file->inum, begin + sectors, op->file->snapshot),
		.size = sectors,
		.type = KEY_EXTENT,
	};
	c->key_extent[c->key_nr++] = (uint32_t)(e - c->extents);
	return extent_value_store(&v, key);
}

static int keys_make(struct write_chunk *c)
{
	uint32_t region_max = region_sectors_max(c->op);
	uint64_t at = c->begin;
	size_t nr = c->cut_nr;
	unsigned cut = 0;
	int err = 0;

	for (unsigned i = 0; i < c->extent_nr; i++)
		nr += (c->extents[i].sectors - 1) / region_max + 1;
	c->key_nr = 0;
	if (nr > c->key_max) {
		free(c->keys);
		free(c->key_extent);
		c->keys = malloc(nr * sizeof(*c->keys));
		c->key_extent = malloc(nr * sizeof(*c->key_extent));
		c->key_max = c->keys && c->key_extent ? nr : 0;
		if (!c->key_max)
			return -ENOMEM;
	}
	for (unsigned i = 0; i < c->extent_nr && !err; i++) {
		const struct alloc_extent *e = &c->extents[i];

		for (uint32_t offset = 0; offset < e->sectors && !err;) {
			uint32_t sectors = min(region_max, e->sectors - offset);

			while (cut < c->cut_nr && c->cuts[cut] <= at)
				cut++;
			if (cut < c->cut_nr)
				sectors = (uint32_t)min((uint64_t)sectors, c->cuts[cut] - at);
			err = key_make(c, e, at, sectors, offset);
			at += sectors;
			offset += sectors;
		}
	}
	return err;
}

/* The I/O that [offset, ...) of @dev, from @bytes on, goes on with; NULL: none. */
static struct device_io *io_before(struct write_chunk *c, const struct device *dev, uint64_t offset,
				   const uint8_t *bytes)
{
	for (unsigned i = 0; i < c->io_nr; i++) {
		struct device_io *io = &c->ios[i];

		if (io->dev == dev && io->offset_bytes + io->len_bytes == offset &&
		    (uint8_t *)io->iov->iov_base + io->len_bytes == bytes)
			return io;
	}
	return NULL;
}

/* Pieces that lie behind one another on a device are one I/O: the write point's buckets often do. */
static void ios_make(struct write_chunk *c)
{
	uint8_t *bytes = c->buf;

	c->io_nr = 0;
	for (unsigned i = 0; i < c->extent_nr; i++) {
		const struct alloc_extent *e = &c->extents[i];
		size_t len = (size_t)e->sectors << SECTOR_SHIFT;

		for (unsigned k = 0; k < e->ptr_nr; k++) {
			struct device *dev = c->op->data->super->members[e->ptrs[k].dev].dev;
			uint64_t offset = e->ptrs[k].sector << SECTOR_SHIFT;
			struct device_io *io = io_before(c, dev, offset, bytes);

			if (!io) {
				struct iovec *iov = &c->iovs[c->io_nr];

				io = &c->ios[c->io_nr++];
				*iov = (struct iovec){ bytes, 0 };
				*io = (struct device_io){
					.op = DEVICE_WRITE, .dev = dev, .offset_bytes = offset, .iov = iov, .iov_nr = 1
				};
			}
			io->iov->iov_len += len;
			io->len_bytes += len;
			c->io_of[i][k] = (uint8_t)(io - c->ios);
		}
		bytes += len;
	}
}

static void submit(struct write_chunk *c)
{
	ios_make(c);
	io_group_init_for(&c->group, c->is_alone ? c->io_nr : UINT_MAX);
	for (unsigned i = 0; i < c->io_nr; i++) {
		if (c->ios[i].dev)
			io_submit(&c->group, &c->ios[i]);
		else
			c->ios[i].err = -ENODEV;
	}
	io_group_push(&c->group);
}

int write_chunk_start(struct write_chunk *c)
{
	int err = extents_get(c);

	if (err)
		return err;
	err = keys_make(c);
	if (err)
		write_chunk_release(c);
	else
		submit(c);
	return err;
}

/* Take the pointers of replicas that could not be written out of the keys of piece @i. -EIO: no dirty one is left. */
static int failed_drop(struct write_chunk *c, unsigned i, uint32_t failed)
{
	const struct key_context *kctx = &c->op->data->super->kctx;

	if (!(~failed & ((1u << c->extents[i].ptr_nr) - 1)))
		return -EIO;
	for (size_t k = 0; k < c->key_nr; k++)
		if (c->key_extent[k] == i) {
			int err = key_ptrs_drop(&c->keys[k], failed, kctx);
			if (err)
				return err;
			if (c->keys[k].k.type != KEY_EXTENT)
				return -EIO;
		}
	return 0;
}

int write_chunk_finish(struct write_chunk *c)
{
	int err = 0;

	io_group_wait(&c->group);
	for (unsigned i = 0; i < c->extent_nr; i++) {
		uint32_t failed = 0;

		for (unsigned k = 0; k < c->extents[i].ptr_nr; k++) {
			const struct device_io *io = &c->ios[c->io_of[i][k]];

			if (!io->err)
				continue;
			failed |= 1u << k;
			report_emit(c->op->data->reports,
				    &(struct report){
					    .level = c->extents[i].ptr_nr > 1 ? REPORT_RECOVERED : REPORT_DAMAGE,
					    .err = io->err,
					    .device = c->op->data->super->members[c->extents[i].ptrs[k].dev].name,
					    .structure = "file data",
					    .expected = "to be written",
					    .found = error_name(io->err),
				    });
		}
		if (failed && !err)
			err = failed_drop(c, i, failed);
	}
	return err;
}

void write_chunk_release(struct write_chunk *c)
{
	for (unsigned i = 0; i < c->extent_nr; i++)
		allocator_extent_put(c->op->data->writer->allocator, &c->extents[i]);
	c->extent_nr = 0;
}
