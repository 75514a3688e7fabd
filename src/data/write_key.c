/*
 * One chunk of a write: regions, space, I/O, and the keys that will say where it is (06 §9.3 - §9.5).
 *
 * The chunk's bytes lie in one buffer, what they are stored as (write_encode.c) there or in another one, both of the
 * data room's budget, until they are written. Regions are laid into the pieces of space that the allocator gives,
 * behind one another but where a piece ends, where any that fill it will do; each piece is one write per replica, each
 * region one key.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/mutant.h"
#include "data/write_internal.h"
#include "device/device.h"

int write_chunk_init(struct write_chunk *c, struct write_op *op)
{
	*c = (struct write_chunk){ .op = op };
	c->ios = calloc(ARRAY_NR(c->extents) * ALLOC_PTRS_MAX, sizeof(*c->ios));
	return c->ios ? 0 : -ENOMEM;
}

size_t write_memory_bytes(const struct data *data, size_t len_bytes)
{
	uint64_t block = block_bytes_of(data);

	return (size_t)min(round_up_u64(len_bytes, block) + block, (uint64_t)CHUNK_BYTES);
}

/* Bytes that are stored in another form need no place as they are, unless they have to be put together first. */
int write_chunk_memory_take(struct write_chunk *c, bool may_wait)
{
	const struct write_op *op = c->op;
	bool is_encoded = op->compression || checksum_is_mac(op->csum_type), has_buf = c->buf;
	size_t bytes = (c->end - c->begin) << SECTOR_SHIFT;
	size_t sizes[WRITE_BUFFERS] = { has_buf || (c->given && is_encoded) ? 0 : bytes, is_encoded ? bytes : 0 };
	const struct pool_buffer *memory = op->memory ? op->memory : c->memory;

	_Static_assert(WRITE_MEMORY_MAX >= (WRITE_BUFFERS + 1) * CHUNK_BYTES, "it is what a copy takes");
	int err = op->memory ? 0 : pool_take(&op->data->writes, sizes, c->memory, WRITE_BUFFERS, may_wait);
	if (err)
		return err;
	if (sizes[0])
		c->buf = memory[0].data;
	if (sizes[1])
		c->stored = memory[1].data;
	return 0;
}

static void memory_give(struct write_chunk *c)
{
	if (c->memory[0].data)
		c->buf = NULL;
	c->stored = NULL;
	pool_give(&c->op->data->writes, c->memory, WRITE_BUFFERS);
}

void write_chunk_destroy(struct write_chunk *c)
{
	memory_give(c);
	free(c->regions);
	free(c->ios);
	free(c->iovs);
	free(c->keys);
}

/* --- space --- */

/* Of the regions from @from on that have no place yet. */
static uint64_t stored_sectors(const struct write_chunk *c, size_t from)
{
	uint64_t sectors = 0;

	for (size_t i = from; i < c->region_nr; i++)
		sectors += c->regions[i].has_place ? 0 : c->regions[i].crc.compressed_sectors;
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
		/* Copies there can't be overwritten in place, and so the others couldn't be. */
		.is_without_caches = op->is_nocow,
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

/* Where the next region goes: what is left of the last piece of space. */
static void region_place(struct write_chunk *c, size_t i, unsigned piece, uint32_t *room)
{
	struct write_region *r = &c->regions[i];

	r->extent = piece;
	r->extent_offset = c->extents[piece].sectors - *room;
	r->has_place = true;
	*room -= r->crc.compressed_sectors;
}

/* Sums that sizes of regions have, in blocks: a bit each. */
enum { SUMS_WORDS = 4, SUMS_MAX = 64 * SUMS_WORDS - 1, SUMS_REGIONS_MAX = 32 };
struct sums {
	uint64_t bits[SUMS_WORDS];
};

static bool sums_has(const struct sums *s, uint32_t sum) { return s->bits[sum / 64] >> sum % 64 & 1; }

/* Those of @s, and each with @blocks more. */
static struct sums sums_add(const struct sums *s, uint32_t blocks)
{
	unsigned words = blocks / 64, bits = blocks % 64;
	struct sums all = *s;

	for (unsigned w = words; w < SUMS_WORDS; w++) {
		all.bits[w] |= s->bits[w - words] << bits;
		if (bits && w > words)
			all.bits[w] |= s->bits[w - words - 1] >> (64 - bits);
	}
	return all;
}

/*
 * Place regions from @from on that fill the @room that is left to its last block, early ones rather than late ones.
 * False: there are none.
 */
static bool regions_fit(struct write_chunk *c, size_t from, unsigned piece, uint32_t *room)
{
	uint32_t block = c->op->data->super->kctx.block_sectors;
	struct sums sums[SUMS_REGIONS_MAX + 1]; /* [i]: of the regions from @from + i on */
	size_t nr = min(c->region_nr - from, (size_t)SUMS_REGIONS_MAX);

	if (*room / block > SUMS_MAX)
		return false;
	sums[nr] = (struct sums){ { 1 } };
	for (size_t i = nr; i--;) {
		const struct write_region *r = &c->regions[from + i];

		sums[i] = r->has_place ? sums[i + 1] : sums_add(&sums[i + 1], r->crc.compressed_sectors / block);
	}
	if (!sums_has(&sums[0], *room / block))
		return false;
	for (size_t i = 0; *room; i++) {
		const struct write_region *r = &c->regions[from + i];

		if (!r->has_place && r->crc.compressed_sectors <= *room &&
		    sums_has(&sums[i + 1], (*room - r->crc.compressed_sectors) / block))
			region_place(c, from + i, piece, room);
	}
	return true;
}

/* The region that goes beyond the piece if all from @i on follow one another; c->region_nr: none does. */
static size_t region_beyond(const struct write_chunk *c, size_t i, uint32_t room)
{
	for (; i < c->region_nr; i++) {
		uint32_t sectors = c->regions[i].has_place ? 0 : c->regions[i].crc.compressed_sectors;

		if (sectors > room)
			break;
		room -= sectors;
	}
	return i;
}

/*
 * Regions for a piece of space, from @i on, where the first is that has no place. One that goes beyond the end is
 * divided, which for a compressed one means compressing all of it once more: so first others are looked for that end
 * there, unless they must be @in_order.
 */
static int piece_fill(struct write_chunk *c, unsigned piece, size_t i, bool in_order)
{
	uint32_t block = c->op->data->super->kctx.block_sectors, room = c->extents[piece].sectors;
	size_t beyond = region_beyond(c, i, room);
	bool is_fitted =
		!in_order && beyond < c->region_nr && compression_is_compressed(c->regions[beyond].crc.compression);

	for (; i < c->region_nr && room; i++) {
		if (c->regions[i].has_place)
			continue;
		if (is_fitted && room / block <= SUMS_MAX) {
			if (regions_fit(c, i, piece, &room))
				break;
			is_fitted = false;
		}
		bool is_last = c->regions[i].crc.compressed_sectors > room;
		int err = is_last ? write_region_divide(c, i, room) : 0;
		if (err)
			return err;
		region_place(c, i, piece, &room);
		if (is_last)
			break;
	}
	return 0;
}

/*
 * Pieces of space for all regions; @in_order: those that there are, and one region behind the other. *@nr: how many
 * from the front have a place.
 */
static int pieces_fill(struct write_chunk *c, bool in_order, size_t *nr)
{
	int err = 0;

	for (size_t i = 0; i < c->region_nr; i++)
		c->regions[i].has_place = false;
	*nr = 0;
	for (unsigned piece = 0; *nr < c->region_nr && !err; piece++) {
		if (piece == c->extent_nr)
			err = in_order ? -ENOSPC : extent_get(c, *nr);
		if (!err)
			err = piece_fill(c, piece, *nr, in_order);
		while (*nr < c->region_nr && c->regions[*nr].has_place)
			++*nr;
	}
	return err;
}

static bool is_any_placed(const struct write_chunk *c, size_t from)
{
	for (size_t i = from; i < c->region_nr; i++)
		if (c->regions[i].has_place)
			return true;
	return false;
}

/*
 * A place for each region. When there is no more space the chunk ends earlier, and then all that there is of it is
 * for the front.
 */
static int regions_place(struct write_chunk *c)
{
	size_t nr;

	c->extent_nr = 0;
	int err = pieces_fill(c, false, &nr);
	if (err && err != -ENOMEM && is_any_placed(c, nr) && pieces_fill(c, true, &nr) == -ENOMEM)
		err = -ENOMEM;
	if (!nr || err == -ENOMEM)
		return err;
	c->region_nr = nr;
	c->end = c->begin + c->regions[nr - 1].at + c->regions[nr - 1].crc.uncompressed_sectors;
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

/* The region that lies at @offset of piece @e; looked for from *@i on, all the way round. NULL: there is none. */
static const struct write_region *region_at(const struct write_chunk *c, unsigned e, uint32_t offset, size_t *i)
{
	for (size_t nr = 0; nr < c->region_nr; nr++) {
		const struct write_region *r = &c->regions[*i];

		if (r->extent == e && r->extent_offset == offset)
			return r;
		*i = (*i + 1) % c->region_nr;
	}
	return NULL;
}

/*
 * The memory of piece @e: @iovs, as few as possible. Their number. *@i is where its first region is, or a little
 * before, and moves on.
 */
static unsigned iovs_make(const struct write_chunk *c, unsigned e, size_t *i, struct iovec *iovs, size_t *len)
{
	const struct write_region *r;
	unsigned nr = 0;

	*len = 0;
	while ((r = region_at(c, e, (uint32_t)(*len >> SECTOR_SHIFT), i))) {
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

/* Copy @k of piece @i, which has the regions of one place in the file or of several: the first is told. */
static void copy_failed(const struct write_chunk *c, unsigned i, unsigned k, int err)
{
	const struct data_write_target *file = c->op->file;
	char position[DATA_POSITION_BYTES] = "";
	size_t r = 0;

	while (r < c->region_nr && c->regions[r].extent != i)
		r++;
	/* A batch is of files that have no number yet. */
	if (!c->cuts && r < c->region_nr)
		data_position_text(position, file->inum, file->snapshot, (c->begin + c->regions[r].at) << SECTOR_SHIFT);
	report_emit(c->op->data->reports, &(struct report){
						  .level = c->extents[i].ptr_nr > 1 ? REPORT_RECOVERED : REPORT_DAMAGE,
						  .err = err,
						  .device = c->op->data->super->members[c->extents[i].ptrs[k].dev].name,
						  .structure = "file data",
						  .position = position,
						  .expected = "to be written",
						  .found = error_name(err),
						  .is_any_place = true,
					  });
}

bool write_chunk_is_written(const struct write_chunk *c) { return !c->group.in_flight; }

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
			copy_failed(c, i, k, io->err);
		}
		if (failed && !err && !is_mutant(MUTANT_FAILED_COPIES))
			err = failed_drop(c, i, failed);
	}
	memory_give(c);
	return err;
}

void write_chunk_release(struct write_chunk *c)
{
	for (unsigned i = 0; i < c->extent_nr; i++)
		allocator_extent_put(c->op->data->writer->allocator, &c->extents[i]);
	c->extent_nr = 0;
	memory_give(c);
}
