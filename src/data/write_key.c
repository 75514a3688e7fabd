/*
 * One chunk of a write: regions, space, I/O, and the keys that will say where it is (06 §9.3 - §9.5).
 *
 * The chunk's bytes lie in one buffer, what they are stored as (write_encode.c) there or in another one. Regions are
 * laid behind one another in the pieces of space that the allocator gives; each piece is one write per replica, each
 * region one key.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "data/write_internal.h"
#include "device/device.h"

int write_chunk_init(struct write_chunk *c, struct write_op *op)
{
	*c = (struct write_chunk){ .op = op };
	c->buf = write_buffer_take(op->data->writer);
	c->ios = calloc(ARRAY_NR(c->extents) * ALLOC_PTRS_MAX, sizeof(*c->ios));
	return c->buf && c->ios ? 0 : -ENOMEM;
}

void write_chunk_destroy(struct write_chunk *c)
{
	write_buffer_give(c->op->data->writer, c->buf);
	write_buffer_give(c->op->data->writer, c->stored);
	free(c->regions);
	free(c->ios);
	free(c->iovs);
	free(c->keys);
}

/* --- space --- */

static uint64_t stored_sectors(const struct write_chunk *c, size_t from)
{
	uint64_t sectors = 0;

	for (size_t i = from; i < c->region_nr; i++)
		sectors += c->regions[i].crc.compressed_sectors;
	return sectors;
}

struct alloc_request write_space_request(const struct write_op *op)
{
	return (struct alloc_request){
		.data_type = DATA_USER,
		.watermark = op->makes_room ? WATERMARK_BTREE : WATERMARK_NORMAL,
		.target = op->target,
		.replicas = op->replicas,
		.replicas_required = (unsigned)max(op->data->super->options[OPT_DATA_REPLICAS_REQUIRED], (uint64_t)1),
		.writer = op->file->inum,
		.can_wait = true,
	};
}

/* A piece of space for the regions from @i on. */
static int extent_get(struct write_chunk *c, size_t i)
{
	struct alloc_request req = write_space_request(c->op);

	if (c->extent_nr == ARRAY_NR(c->extents))
		return -ENOBUFS;
	int err = allocator_extent_get(c->op->data->writer->allocator, &req, (uint32_t)stored_sectors(c, i),
				       &c->extents[c->extent_nr]);
	c->extent_nr += !err;
	return err;
}

/*
 * A place for each region. Where a piece ends, a region is divided; so are compressed ones, which may leave a little of
 * it. When there is no more space the chunk ends earlier.
 */
static int regions_place(struct write_chunk *c)
{
	uint32_t room = 0;
	size_t i = 0;
	int err = 0;

	c->extent_nr = 0;
	while (i < c->region_nr) {
		bool is_last_in_piece = false;

		if (!room) {
			err = extent_get(c, i);
			if (err)
				break;
			room = c->extents[c->extent_nr - 1].sectors;
		}
		if (c->regions[i].crc.compressed_sectors > room) {
			err = write_region_divide(c, i, room);
			if (err)
				break;
			is_last_in_piece = true;
		}
		struct write_region *r = &c->regions[i++];
		r->extent = c->extent_nr - 1;
		r->extent_offset = c->extents[r->extent].sectors - room;
		room = is_last_in_piece ? 0 : room - r->crc.compressed_sectors;
	}
	if (!i || err == -ENOMEM)
		return err;
	c->region_nr = i;
	c->end = c->begin + c->regions[i - 1].at + c->regions[i - 1].crc.uncompressed_sectors;
	return 0;
}

/* --- keys --- */

static int key_make(struct write_chunk *c, const struct write_region *r, struct key_buf *key)
{
	const struct alloc_extent *e = &c->extents[r->extent];
	struct extent_value v = { .ptr_nr = e->ptr_nr };

	for (unsigned i = 0; i < e->ptr_nr; i++) {
		v.ptrs[i] = (struct extent_ptr_decoded){ .ptr = e->ptrs[i],
							 .crc = r->crc,
							 .has_crc = r->crc.csum_type || r->crc.compression };
		v.ptrs[i].ptr.sector += r->extent_offset;
	}
	rebalance_refresh(c->op->data, &c->op->rebalance, false, &v);
	key->k = (struct bkey){
		.p = BPOS(c->op->file->inum, c->begin + r->at + r->crc.uncompressed_sectors, c->op->file->snapshot),
		.version = r->version,
		.size = r->crc.uncompressed_sectors,
		.type = KEY_EXTENT,
	};
	return extent_value_store(&v, key);
}

static int keys_make(struct write_chunk *c)
{
	int err = 0;

	c->key_nr = 0;
	if (array_grow(&c->keys, &c->key_max, c->region_nr, sizeof(*c->keys)))
		return -ENOMEM;
	for (size_t i = 0; i < c->region_nr && !err; i++) {
		err = key_make(c, &c->regions[i], &c->keys[i]);
		c->key_nr++;
	}
	return err;
}

/* --- I/O --- */

/* The memory of piece @e, whose first region is *@i: @iovs, as few as possible. Their number; *@i and *@len move on. */
static unsigned iovs_make(const struct write_chunk *c, unsigned e, size_t *i, struct iovec *iovs, size_t *len)
{
	unsigned nr = 0;

	for (*len = 0; *i < c->region_nr && c->regions[*i].extent == e; ++*i) {
		const struct write_region *r = &c->regions[*i];
		size_t bytes = (size_t)r->crc.compressed_sectors << SECTOR_SHIFT;

		nr = iovs_append(iovs, nr, r->bytes, bytes);
		*len += bytes;
	}
	return nr;
}

/* The I/O that [offset, ...) of @dev, from the memory at @iovs on, goes on with; NULL: none. */
static struct device_io *io_before(struct write_chunk *c, const struct device *dev, uint64_t offset,
				   const struct iovec *iovs)
{
	for (unsigned i = 0; i < c->io_nr; i++) {
		struct device_io *io = &c->ios[i];

		if (io->dev == dev && io->offset_bytes + io->len_bytes == offset && io->iov + io->iov_nr == iovs)
			return io;
	}
	return NULL;
}

/* Pieces that lie behind one another on a device are one I/O: the write point's buckets often do. */
static int ios_make(struct write_chunk *c)
{
	size_t region = 0, len;

	c->io_nr = 0;
	if (array_grow(&c->iovs, &c->iov_max, c->region_nr, sizeof(*c->iovs)))
		return -ENOMEM;
	struct iovec *iovs = c->iovs;
	for (unsigned i = 0; i < c->extent_nr; i++) {
		const struct alloc_extent *e = &c->extents[i];
		unsigned iov_nr = iovs_make(c, i, &region, iovs, &len);

		for (unsigned k = 0; k < e->ptr_nr; k++) {
			struct device *dev = c->op->data->super->members[e->ptrs[k].dev].dev;
			uint64_t offset = e->ptrs[k].sector << SECTOR_SHIFT;
			struct device_io *io = io_before(c, dev, offset, iovs);

			if (!io) {
				io = &c->ios[c->io_nr++];
				*io = (struct device_io){
					.op = DEVICE_WRITE, .dev = dev, .offset_bytes = offset, .iov = iovs
				};
			}
			io->iov_nr += iov_nr;
			io->len_bytes += len;
			c->io_of[i][k] = (uint8_t)(io - c->ios);
		}
		iovs += iov_nr;
	}
	return 0;
}

static void submit(struct write_chunk *c)
{
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
	int err = write_regions_make(c);

	if (err)
		return err;
	err = regions_place(c);
	if (!err)
		err = write_regions_seal(c);
	if (!err)
		err = keys_make(c);
	if (!err)
		err = ios_make(c);
	if (err)
		write_chunk_release(c);
	else
		submit(c);
	return err;
}

/*
 * Take the pointers of replicas that could not be written out of the keys of piece @i. -EIO: what was written of it is
 * less than data_replicas_required asks for.
 */
static int failed_drop(struct write_chunk *c, unsigned i, uint32_t failed)
{
	const struct super *super = c->op->data->super;
	const struct key_context *kctx = &super->kctx;
	unsigned written = 0;

	for (unsigned k = 0; k < c->extents[i].ptr_nr; k++)
		written += failed >> k & 1 ? 0 : ptr_durability(super, &c->extents[i].ptrs[k]);
	if (written < write_space_request(c->op).replicas_required)
		return -EIO;
	for (size_t k = 0; k < c->key_nr; k++)
		if (c->regions[k].extent == i) {
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
