/*
 * Reading what is to be moved: everything at once, then what failed again, one by one, from other copies.
 *
 * Of what has neither checksum nor compression each block may come from another copy. Blocks that none gives are the
 * item's gaps: what is between them is moved, they stay where they are.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "alloc/gens.h"
#include "base/array.h"
#include "base/strbuf.h"
#include "data/move_internal.h"
#include "device/device.h"
#include "format/error_ids.h"

/* --- sources --- */

bool move_ptr_is_readable(const struct data_mover *m, const struct move_item *item, unsigned i)
{
	const struct super *s = m->data->super;
	const struct extent_ptr *p = &item->v.ptrs[i].ptr;
	const struct extent_crc *crc = &item->v.ptrs[i].crc;
	uint8_t gen;

	if (!super_member_online(s, p->dev) ||
	    !crc_is_sane(crc, ((uint64_t)crc->offset_sectors + item->k.size) << SECTOR_SHIFT))
		return false;
	if (!p->is_cached)
		return true;
	return bucket_gen_lookup(m->data->trees, p->dev, p->sector / s->members[p->dev].m.bucket_sectors, &gen) > 0 &&
	       gen == p->gen;
}

unsigned move_source_next(const struct data_mover *m, const struct move_item *item, uint32_t tried)
{
	for (unsigned pass = 0; pass < 2; pass++)
		for (unsigned i = 0; i < item->v.ptr_nr; i++) {
			bool is_first = (item->move.rewrite >> i & 1) && !item->v.ptrs[i].ptr.is_cached;

			if (is_first == !pass && !(tried >> i & 1) && move_ptr_is_readable(m, item, i))
				return i;
		}
	return EXTENT_PTRS_MAX;
}

/* --- reading --- */

/* Of a region that is read as a whole its begin; else that of what is live, which may lie behind it. */
static uint64_t source_offset_bytes(const struct move_item *item)
{
	const struct extent_ptr_decoded *source = &item->v.ptrs[item->source];
	uint32_t skipped = crc_is_encoded(&source->crc) ? 0 : source->crc.offset_sectors;

	return (source->ptr.sector + skipped) << SECTOR_SHIFT;
}

/* Is the I/O that [the item] goes on with there: the one before, in the same place on the device and in memory? */
static struct device_io *read_before(struct data_mover *m, const struct device *dev, const struct move_item *item)
{
	struct device_io *io = m->io_nr ? &m->ios[m->io_nr - 1] : NULL;

	if (!io || io->dev != dev || io->offset_bytes + io->len_bytes != source_offset_bytes(item) ||
	    (uint8_t *)io->iov->iov_base + io->len_bytes != item->in)
		return NULL;
	return io;
}

static void read_all(struct data_mover *m)
{
	struct io_group group;

	m->io_nr = 0;
	for (unsigned i = 0; i < m->item_nr; i++) {
		struct move_item *item = &m->items[i];
		size_t bytes = (size_t)item->in_sectors << SECTOR_SHIFT;

		if (!bytes)
			continue;
		struct device *dev = m->data->super->members[item->v.ptrs[item->source].ptr.dev].dev;
		struct device_io *io = read_before(m, dev, item);

		if (!io) {
			struct iovec *iov = &m->iovs[m->io_nr];

			io = &m->ios[m->io_nr++];
			*iov = (struct iovec){ item->in, 0 };
			*io = (struct device_io){ .op = DEVICE_READ,
						  .dev = dev,
						  .offset_bytes = source_offset_bytes(item),
						  .iov = iov,
						  .iov_nr = 1 };
		}
		io->iov->iov_len += bytes;
		io->len_bytes += bytes;
		m->io_of[i] = (uint8_t)(io - m->ios);
	}
	io_group_init_for(&group, m->io_nr);
	for (unsigned i = 0; i < m->io_nr; i++)
		io_submit(&group, &m->ios[i]);
	io_group_wait(&group);
}

static bool region_is_good(const struct data_mover *m, const struct move_item *item)
{
	const struct extent_crc *crc = &item->v.ptrs[item->source].crc;

	return data_region_verify(m->data->super, crc, item->k.version, item->in,
				  (size_t)item->in_sectors << SECTOR_SHIFT);
}

void move_item_report(const struct data_mover *m, const struct move_item *item, enum report_level level, unsigned id,
		      int err, const char *expected)
{
	const struct super *s = m->data->super;
	unsigned dev = item->source < EXTENT_PTRS_MAX ? item->v.ptrs[item->source].ptr.dev : UINT32_MAX;
	char position[120], key[80];
	struct strbuf text = strbuf_fixed(key, sizeof(key));

	bpos_to_text(&text, item->k.p);
	snprintf(position, sizeof(position), "%s %s", btree_name(item->btree_id), key);
	report_emit(m->data->reports, &(struct report){
					      .level = level,
					      .id = id,
					      .err = err,
					      .device = dev < s->member_nr ? s->members[dev].name : NULL,
					      .structure = "extent to be moved",
					      .position = position,
					      .expected = expected,
					      .found = error_name(err),
				      });
}

/* Through the source's pointer, to where the item's memory is. */
static int source_read(const struct data_mover *m, const struct move_item *item)
{
	return device_read(m->data->super->members[item->v.ptrs[item->source].ptr.dev].dev, source_offset_bytes(item),
			   item->in, (size_t)item->in_sectors << SECTOR_SHIFT);
}

/* --- block by block --- */

static int gap_add(struct move_item *item, uint32_t begin, uint32_t end)
{
	if (item->gap_nr && item->gaps[item->gap_nr - 1].end == begin) {
		item->gaps[item->gap_nr - 1].end = end;
		return 0;
	}
	if (array_grow(&item->gaps, &item->gap_max, item->gap_nr + 1, sizeof(*item->gaps)))
		return -ENOMEM;
	item->gaps[item->gap_nr++] = (struct move_gap){ begin, end };
	return 0;
}

/* May parts of the key's data be read through pointer @i? */
static bool ptr_has_blocks(const struct data_mover *m, const struct move_item *item, unsigned i)
{
	return !crc_is_encoded(&item->v.ptrs[i].crc) && move_ptr_is_readable(m, item, i);
}

/* Sectors of the key, from @at on, from whoever gives them: who gave the last ones (the source) is asked first. */
static int blocks_read(struct data_mover *m, struct move_item *item, uint32_t at, uint32_t sectors)
{
	uint8_t *to = item->in + ((size_t)at << SECTOR_SHIFT);
	unsigned first = item->source;

	for (unsigned k = 0; k < item->v.ptr_nr; k++) {
		unsigned i = (first + k) % item->v.ptr_nr;
		const struct extent_ptr_decoded *p = &item->v.ptrs[i];

		if (!ptr_has_blocks(m, item, i))
			continue;
		item->source = i;
		if (!device_read(m->data->super->members[p->ptr.dev].dev,
				 (p->ptr.sector + p->crc.offset_sectors + at) << SECTOR_SHIFT, to,
				 (size_t)sectors << SECTOR_SHIFT))
			return 0;
		data_count(m->data, COUNTER_RETRIES_IO, 1);
	}
	item->source = first;
	return -EIO;
}

static void gaps_report(const struct data_mover *m, const struct move_item *item)
{
	for (size_t i = 0; i < item->gap_nr; i++) {
		char position[120], key[80];
		struct strbuf text = strbuf_fixed(key, sizeof(key));

		bpos_to_text(&text, item->k.p);
		snprintf(position, sizeof(position), "%s %s, its sectors %" PRIu32 " to %" PRIu32,
			 btree_name(item->btree_id), key, item->gaps[i].begin, item->gaps[i].end - 1);
		report_emit(m->data->reports, &(struct report){ .level = REPORT_DAMAGE,
								.id = ERROR_data_read_io_err,
								.err = -EIO,
								.structure = "extent to be moved",
								.position = position,
								.expected = "a replica that can be read" });
	}
}

/*
 * No copy can be read as a whole: each block from whoever gives it, in parts that are halved and doubled as those of a
 * read are (region.c). 0: there may be gaps. -EIO: there is nothing else.
 */
static int item_read_blocks(struct data_mover *m, struct move_item *item)
{
	uint32_t block = m->data->super->kctx.block_sectors, size = item->k.size, at = 0, part = size;
	bool is_any_read = false;

	for (unsigned i = item->v.ptr_nr; i--;)
		if (ptr_has_blocks(m, item, i) && !(item->move.avoid >> i & 1))
			item->source = i;
	if (!ptr_has_blocks(m, item, item->source))
		return -EIO;
	item->in_sectors = size;
	while (at < size) {
		uint32_t sectors = min(part, size - at);

		if (!blocks_read(m, item, at, sectors)) {
			is_any_read = true;
			part = min(2 * sectors, size);
		} else if (sectors > block) {
			part = max(block, (uint32_t)round_down_u64(sectors / 2, block));
			continue;
		} else if (gap_add(item, at, at + sectors)) {
			return -ENOMEM;
		}
		at += sectors;
	}
	if (!is_any_read) {
		item->gap_nr = 0;
		return -EIO;
	}
	gaps_report(m, item);
	return 0;
}

/* --- the items --- */

/* Another replica, until one is good, or what there is of them. 0, -EIO: there is nothing, or -ENOMEM. */
static int read_again(struct data_mover *m, struct move_item *item, int err)
{
	uint32_t tried = item->move.avoid;

	while (err) {
		data_count(m->data, err == -KILN_E_CHECKSUM ? COUNTER_RETRIES_CSUM : COUNTER_RETRIES_IO, 1);
		if (err == -KILN_E_CHECKSUM)
			super_checksum_error_count((struct super *)m->data->super, item->v.ptrs[item->source].ptr.dev);
		tried |= 1u << item->source;
		unsigned next = move_source_next(m, item, tried), bad = item->source;
		int blocks_err = next < EXTENT_PTRS_MAX ? 0 : item_read_blocks(m, item);
		unsigned good = item->source;

		item->source = bad;
		if (blocks_err || !item->gap_nr)
			move_item_report(m, item, blocks_err ? REPORT_DAMAGE : REPORT_RECOVERED,
					 err == -KILN_E_CHECKSUM ? ERROR_data_read_csum_err : ERROR_data_read_io_err,
					 err, NULL);
		item->source = good;
		if (next == EXTENT_PTRS_MAX)
			return blocks_err;
		item->source = next;
		item->in_sectors = move_sectors_to_read(item, next);
		err = source_read(m, item);
		if (!err && !region_is_good(m, item))
			err = -KILN_E_CHECKSUM;
	}
	return 0;
}

void move_items_read(struct data_mover *m, struct data_move_stats *stats)
{
	read_all(m);
	for (unsigned i = 0; i < m->item_nr; i++) {
		struct move_item *item = &m->items[i];

		if (!item->wanted || item->is_unwritten)
			continue;
		if (!item->in_sectors) {
			item->err = -EIO;
			move_item_report(m, item, REPORT_DAMAGE, ERROR_data_read_io_err, -EIO,
					 "a replica that can be read");
			continue;
		}
		const struct device_io *io = &m->ios[m->io_of[i]];
		int err = io->err;
		/* What was read together with it may be all that is bad. */
		if (err && io->len_bytes > (uint64_t)item->in_sectors << SECTOR_SHIFT)
			err = source_read(m, item);
		if (!err && !region_is_good(m, item))
			err = -KILN_E_CHECKSUM;
		item->err = err ? read_again(m, item, err) : 0;
		stats->sectors_read += item->in_sectors;
	}
}
