/*
 * File data, read side (06 §10, 08 §11, 12 §8-9).
 *
 * A read resolves the extents that cover a range, starts the I/O of all of them at once, and then, as each completes,
 * verifies, decrypts, decompresses and copies out; what fails is tried again on another replica, at last from the other
 * blocks of the stripe. Work in flight is bounded. Nothing is cached here: the kernel's page cache (mount) or the
 * caller's buffers do that.
 */
#ifndef KILN_DATA_DATA_H
#define KILN_DATA_DATA_H

#include <sys/types.h>

#include "btree/btree.h"
#include "super/super.h"

struct data;

/*
 * @super and @trees must outlive it. @memory_bytes bounds the buffers of all that read, write and move data; it is
 * raised to DATA_MEMORY_MIN: what rebuilding from stripes takes, what copygc does, some writes, and two regions as
 * large as any that is made, stored and decompressed. A larger one is read when no other is.
 */
enum { DATA_MEMORY_MIN = 17 << 20 };
int data_open(const struct super *super, struct btrees *trees, uint64_t memory_bytes, const struct report_sink *reports,
	      struct data **data);
void data_close(struct data *data);

/* Which bytes: an inode in a snapshot view. */
struct data_file {
	uint64_t inum;
	uint32_t snapshot;
	uint64_t size_bytes; /* reads are clipped to it */
};

/*
 * Called for each damaged range of a read, in ascending order, before data_read() returns. The buffer holds zeroes
 * there. The damage has been reported too (device, position; deduplication is the sink's business).
 */
typedef void (*data_damage_fn)(void *ctx, uint64_t offset_bytes, uint64_t len_bytes, int err);

/*
 * Read. Any offset and length. Returns the bytes delivered (short only at the end of the file; damaged ranges count),
 * or a negative error that made the whole read impossible (-ENOMEM).
 */
ssize_t data_read(struct data *data, const struct data_file *file, uint64_t offset_bytes, void *buf, size_t len_bytes,
		  data_damage_fn damage, void *damage_ctx);

/*
 * SEEK_DATA (@want_data) or SEEK_HOLE from @offset_bytes: 0 and *@found, or -ENXIO (no data behind; offset beyond the
 * end). Reservations, unwritten extents and gaps are holes; the end of the file is a hole. A range of the btree that
 * can't be read counts as data, so that a copy trips over it instead of leaving it out.
 */
int data_seek(struct data *data, const struct data_file *file, uint64_t offset_bytes, bool want_data, uint64_t *found);

/*
 * The next range at or behind @offset_bytes whose extents can't be looked up, because a btree node can't be read: all
 * reads of it fail whatever their size, and it may be far longer than any data. 0 with [*@begin, *@end), or -ENXIO when
 * there is none. Looks at every extent on the way.
 */
int data_seek_lost(struct data *data, const struct data_file *file, uint64_t offset_bytes, uint64_t *begin,
		   uint64_t *end);

struct data_stats {
	uint64_t bytes_read, ios;	   /* from devices */
	uint64_t retries_io, retries_csum; /* replicas that failed, by cause */
	uint64_t reconstructed;		   /* regions rebuilt from stripes */
	uint64_t damaged_bytes;		   /* delivered as zeroes */
};
void data_stats(struct data *data, struct data_stats *stats);

/*
 * The read path's own verification of one stored region: checksum over @len bytes as on disk. Exposed for the
 * benchmark.
 */
bool data_region_verify(const struct super *super, const struct extent_crc *crc, struct bversion version,
			const void *stored, size_t len);

#endif
