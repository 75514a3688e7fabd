/*
 * Records that may be more than fit in memory: in the order in which they were added, or sorted.
 *
 * They lie in pieces: eight of a sixteenth of the table's memory each, then such as base/spill.h puts into files, which
 * the kernel keeps in memory only as far as there is room. Runs of at most a quarter of the memory are sorted, each by
 * itself, and all are merged when they are read: an external merge sort (Knuth, TAOCP 5.4). Records compare bytewise,
 * so what they are ordered by stands first, big-endian.
 *
 * Memory that counts: half of what the table is given for records, a quarter at most for a copy of the run that is
 * being sorted (qsort_r() may make one), 24 bytes per run, and what the kernel wants to keep. Room in $TMPDIR: the
 * records.
 */
#ifndef KILN_RECOVERY_CHECK_TABLE_H
#define KILN_RECOVERY_CHECK_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/spill.h"

struct check_piece {
	struct spill spill;
	size_t nr;
};

/* Records of one piece that are in order. */
struct check_run {
	size_t piece, next, end;
};

struct check_table {
	size_t record_bytes;
	size_t memory_bytes;
	bool is_secret; /* not to be written to disk in the clear */
	struct check_piece *pieces;
	size_t piece_nr, piece_capacity;
	uint64_t nr;
	struct check_run *heap; /* while merging: by their next records */
	size_t heap_nr;
};

/* @memory_bytes: what it may take; at least CHECK_TABLE_MEMORY_MIN. Records have at most 256 bytes. */
enum { CHECK_TABLE_MEMORY_MIN = 128 << 10 };
void check_table_init(struct check_table *t, size_t record_bytes, uint64_t memory_bytes, bool is_secret);
void check_table_free(struct check_table *t);
/* 0 or -ENOMEM. */
int check_table_add(struct check_table *t, const void *record);
/* Record @i in the order they were added, before sorting. */
void *check_table_at(const struct check_table *t, uint64_t i);

/* Sort, and start reading from the first. 0 or -ENOMEM. Nothing may be added from here on. */
int check_table_sort(struct check_table *t);
/* The next record in order, or NULL at the end; stays valid. */
const void *check_table_peek(const struct check_table *t);
void check_table_next(struct check_table *t);

static inline void check_be64(uint8_t *at, uint64_t v)
{
	for (unsigned i = 0; i < 8; i++)
		at[i] = (uint8_t)(v >> (56 - 8 * i));
}
static inline void check_be32(uint8_t *at, uint32_t v)
{
	for (unsigned i = 0; i < 4; i++)
		at[i] = (uint8_t)(v >> (24 - 8 * i));
}
static inline uint64_t check_be64_get(const uint8_t *at)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < 8; i++)
		v = v << 8 | at[i];
	return v;
}
static inline uint32_t check_be32_get(const uint8_t *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

#endif
