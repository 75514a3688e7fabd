/* Arithmetic of buckets. See bucket.h. */
#include "alloc/bucket.h"

enum { BTREE_RESERVE_NODES = 28 };

uint64_t bucket_fragmentation(const struct alloc *a, uint32_t bucket_sectors)
{
	bool is_movable = a->data_type == DATA_BTREE || a->data_type == DATA_USER || a->data_type == DATA_STRIPE;

	if (!is_movable || !a->dirty_sectors || a->dirty_sectors >= bucket_sectors)
		return 0;
	return ((uint64_t)a->dirty_sectors << 31) / bucket_sectors;
}

uint64_t bucket_sectors_fragmented(const struct alloc *a, uint32_t bucket_sectors)
{
	return a->dirty_sectors && a->dirty_sectors < bucket_sectors ? bucket_sectors - a->dirty_sectors : 0;
}

uint64_t bucket_sectors_of_extent(const struct extent_crc *crc, uint32_t size_sectors)
{
	if (!compression_is_compressed(crc->compression) || !crc->uncompressed_sectors)
		return size_sectors;
	return div_round_up_u64((uint64_t)size_sectors * crc->compressed_sectors, crc->uncompressed_sectors);
}

struct bpos bucket_backpointer_pos(const struct extent_ptr *ptr, uint32_t crc_offset)
{
	return BPOS(ptr->dev, (ptr->sector << BACKPOINTER_SHIFT) + crc_offset, 0);
}

uint64_t bucket_backpointer_offset(const struct extent_ptr *ptr, uint32_t crc_offset, uint32_t bucket_sectors)
{
	return (ptr->sector % bucket_sectors << BACKPOINTER_SHIFT) + crc_offset;
}

uint64_t bucket_btree_reserve(uint32_t bucket_sectors, uint32_t node_sectors)
{
	uint64_t nodes_per_bucket = node_sectors ? max(bucket_sectors / node_sectors, 1u) : 1;

	return div_round_up_u64(BTREE_RESERVE_NODES, nodes_per_bucket);
}
