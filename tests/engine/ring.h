/* Filesystems with a journal as small as others make them: with so many buckets, whatever format would give. */
#ifndef KILN_TESTS_ENGINE_RING_H
#define KILN_TESTS_ENGINE_RING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/device.h"
#include "super/format.h"

/*
 * A device that has been formatted and isn't initialised yet: have its superblocks say that these are its journal, the
 * @nr lowest buckets behind the first of them. Who initialises it finds them there.
 */
static inline void ring_preset(struct device *dev, unsigned nr)
{
	struct sb_journal_range range = { .nr = nr };
	struct sb_disk *found;

	assert_int_equal(super_read_device(dev, 0, NULL, &found), 0);
	size_t bytes = SECTOR_BYTES << found->layout.sb_max_size_bits;
	struct sb_edit e = { io_buffer_alloc(bytes), bytes };
	struct member m;

	memset(e.sb, 0, bytes);
	memcpy(e.sb, found, sb_bytes(found));
	free(found);
	sb_member(e.sb, e.sb->dev_idx, &m);
	while (super_bucket_has_superblock(&e.sb->layout, m.bucket_sectors, range.start))
		range.start++;
	assert_int_equal(sb_journal_set(&e, &range, 1), 0);
	for (unsigned i = 0; i < e.sb->layout.nr_superblocks; i++) {
		e.sb->offset = e.sb->layout.sb_offset[i];
		sb_seal(e.sb, CHECKSUM_CRC32C_NONZERO);
		assert_int_equal(device_write(dev, le64_get(e.sb->offset) * SECTOR_BYTES, e.sb,
					      round_up_u64(sb_bytes(e.sb), SECTOR_BYTES)),
				 0);
	}
	io_buffer_free(e.sb);
}

/* How many buckets of journal the device's superblock names. */
static inline uint64_t ring_buckets(struct device *dev)
{
	struct sb_disk *sb;
	uint64_t sum = 0;

	assert_int_equal(super_read_device(dev, 0, NULL, &sb), 0);
	for (unsigned i = 0; i < sb_journal_range_nr(sb); i++) {
		uint64_t start, nr;

		sb_journal_range(sb, i, &start, &nr);
		sum += nr;
	}
	free(sb);
	return sum;
}

#endif
