/*
 * Arithmetic of buckets: positions in the btrees that index them, and the values of their keys (07 §1-§7). Pure.
 */
#ifndef KILN_ALLOC_BUCKET_H
#define KILN_ALLOC_BUCKET_H

#include "format/alloc.h"
#include "format/extent.h"

enum {
	BUCKET_GENS_DISTANCE_MAX = 96, /* gen - oldest_gen from which on a bucket can't be used */
	BUCKET_GENBITS_SHIFT = 56,
	LRU_TIME_BITS = 48,
	LRU_FRAGMENTATION = 0xffff, /* id of the fragmentation LRU; those of devices are their indexes */
	BACKPOINTER_SHIFT = 10,
};

static inline bool bucket_type_is_empty(unsigned type)
{
	return type == DATA_FREE || type == DATA_NEED_GC_GENS || type == DATA_NEED_DISCARD;
}

/* Offset in the freespace btree of a free bucket (07 §4): those that were reused least come first. */
static inline uint64_t bucket_freespace_offset(uint64_t bucket, const struct alloc *a)
{
	return bucket | (uint64_t)((uint8_t)(a->gen - a->oldest_gen) >> 4) << BUCKET_GENBITS_SHIFT;
}
static inline uint64_t bucket_of_freespace_offset(uint64_t offset)
{
	return offset & ((1ull << BUCKET_GENBITS_SHIFT) - 1);
}

static inline struct bpos bucket_lru_pos(unsigned lru_id, uint64_t time, unsigned dev, uint64_t bucket)
{
	return BPOS((uint64_t)lru_id << LRU_TIME_BITS | (time & ((1ull << LRU_TIME_BITS) - 1)),
		    (uint64_t)dev << LRU_TIME_BITS | bucket, 0);
}
/* Time in the read LRU; 0: not in it. */
static inline uint64_t bucket_read_time(const struct alloc *a)
{
	return a->data_type == DATA_CACHED ? a->io_time[0] : 0;
}
/* Time in the fragmentation LRU (07 §6.2): the emptier the lower; 0: not in it. */
uint64_t bucket_fragmentation(const struct alloc *a, uint32_t bucket_sectors);
/* Sectors that are lost in a bucket until it becomes empty (07 §12.1). */
uint64_t bucket_sectors_fragmented(const struct alloc *a, uint32_t bucket_sectors);

/* Sectors that @size sectors of a key, described by @crc, take on each device. */
uint64_t bucket_sectors_of_extent(const struct extent_crc *crc, uint32_t size_sectors);

/*
 * Where the backpointer of a pointer lies (07 §7), and the offset that it says. @crc_offset: sectors into the region
 * that the pointer points at, 0 without descriptor.
 */
struct bpos bucket_backpointer_pos(const struct extent_ptr *ptr, uint32_t crc_offset);
uint64_t bucket_backpointer_offset(const struct extent_ptr *ptr, uint32_t crc_offset, uint32_t bucket_sectors);

/* Buckets of a device with @bucket_sectors that are kept for btree nodes (07 §13). */
uint64_t bucket_btree_reserve(uint32_t bucket_sectors, uint32_t node_sectors);

#endif
