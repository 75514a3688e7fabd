/*
 * What the files of the data room share.
 *
 *   read.c      data_read(): pieces of a file, each served as its kind demands; regions in flight
 *   map.c       which keys cover a range of a file
 *   region.c    one stored region: choose a replica, read, verify, decode, copy out
 *   repair.c    replace copies that were found bad
 *   stripe.c    rebuild part of a block from the rest of its stripe
 *   pool.c      buffers within a budget
 *   compress.c  the codecs
 *   seek.c      SEEK_DATA and SEEK_HOLE
 *
 * A read runs on its caller's thread from beginning to end. Readers share the pools and the counters, nothing else.
 */
#ifndef KILN_DATA_INTERNAL_H
#define KILN_DATA_INTERNAL_H

#include <stdatomic.h>

#include "base/clock.h"
#include "base/sync.h"
#include "data/data.h"
#include "data/pool.h"

enum {
	DATA_REGION_SECTORS_MAX = 8192, /* what the widest crc entry can say */
	DATA_PLAIN_SECTORS_MAX = 2048,	/* longer runs without checksum are read in parts */
	DATA_REGIONS_MAX = 64,		/* in flight for one read */
	DATA_READERS_IDLE_MAX = 16,
};

/* What struct data_stats tells. */
enum data_counter {
	COUNTER_BYTES_READ,
	COUNTER_IOS,
	COUNTER_RETRIES_IO,
	COUNTER_RETRIES_CSUM,
	COUNTER_RECONSTRUCTED,
	COUNTER_DAMAGED_BYTES,
	COUNTER_NR,
};

struct reader;
struct repair_list;
struct data_writer;

struct data {
	const struct super *super;
	struct btrees *trees;
	const struct report_sink *reports;
	/* Who takes from which: pool.h. */
	struct pool regions, stripes, moves, writes;
	struct mutex lock; /* of what follows */
	struct reader *readers_idle;
	unsigned readers_idle_nr;
	_Atomic uint64_t counters[COUNTER_NR];
	struct repair_list *repairs;
	struct data_writer *writer; /* NULL: nothing is written */
};

static inline void data_count(struct data *data, enum data_counter counter, uint64_t n)
{
	atomic_fetch_add_explicit(&data->counters[counter], n, memory_order_relaxed);
}

/* Is the stored form read as a whole, because of its checksum or because it is compressed? */
static inline bool crc_is_encoded(const struct extent_crc *crc)
{
	return crc->csum_type || compression_is_compressed(crc->compression);
}

/* For how many copies a pointer counts; the state of its device isn't asked. */
static inline unsigned ptr_durability(const struct super *s, const struct extent_ptr *p)
{
	return p->is_cached || p->dev >= s->member_nr ? 0 : s->members[p->dev].m.durability;
}

/* The bucket on its device; the member's buckets have a size. */
static inline uint64_t ptr_bucket(const struct super *s, const struct extent_ptr *p)
{
	return p->sector / s->members[p->dev].m.bucket_sectors;
}

/* Is what a descriptor says possible, and are the first @end_bytes of its region, decompressed, inside of it? */
static inline bool crc_is_sane(const struct extent_crc *crc, uint64_t end_bytes)
{
	bool is_compressed = compression_is_compressed(crc->compression);
	uint32_t sectors = is_compressed ? crc->uncompressed_sectors : crc->compressed_sectors;

	if (crc->csum_type >= CHECKSUM_TYPE_NR || crc->compression >= COMPRESSION_TYPE_NR || !crc->compressed_sectors)
		return false;
	if (crc_is_encoded(crc) &&
	    (crc->compressed_sectors > DATA_REGION_SECTORS_MAX || crc->uncompressed_sectors > DATA_REGION_SECTORS_MAX))
		return false;
	return end_bytes <= (uint64_t)sectors * SECTOR_BYTES;
}

/* Add memory to @nr pieces of it: what goes on where the last one ends becomes part of that. Their number. */
static inline unsigned iovs_append(struct iovec *iovs, unsigned nr, const uint8_t *bytes, size_t len)
{
	if (nr && (uint8_t *)iovs[nr - 1].iov_base + iovs[nr - 1].iov_len == bytes)
		iovs[nr - 1].iov_len += len;
	else
		iovs[nr++] = (struct iovec){ (void *)(uintptr_t)bytes, len };
	return nr;
}

/* --- map.c --- */

/* A sector is at offset + 1, as positions are ends. */
static inline struct bpos pos_of_sector(uint64_t inum, uint64_t sector) { return BPOS(inum, sector + 1, 0); }
/* The extents of a file, as @snapshot sees them, from the one on that covers @sector. */
void extents_open(struct btree_iter *it, struct btrees *trees, uint64_t inum, uint32_t snapshot, uint64_t sector);
/* Is it space that hasn't been written yet? */
bool key_is_unwritten(const struct data *data, struct bkey_ref k);
/* Does it read as zeroes, and take no reading: nothing, or space that is promised or unwritten? */
bool key_is_hole(const struct data *data, struct bkey_ref k);

enum {
	MAP_KEYS_MAX = 64,		      /* taken at a time */
	MAP_SPANS_MAX = 2 * MAP_KEYS_MAX + 2, /* overlapping keys cut each other */
	MAP_LOOKAHEAD_MAX = 8,		      /* keys looked at behind a range whose own keys are inherited */
	MAP_VALUES_BYTES = 32 << 10,
};

/* A range of the file that one key covers, or that couldn't be looked up. */
struct span {
	uint64_t begin, end; /* sectors of the file */
	struct bkey k;
	const uint8_t *value; /* in the map; 8-byte aligned */
	int err;	      /* the btree can't be read here; no key then */
};

/* What covers a range of a file, taken some keys at a time. */
struct map {
	struct btree_iter iter;
	uint64_t inum;
	uint32_t snapshot;
	struct span spans[MAP_SPANS_MAX]; /* ascending, not overlapping; between them are holes */
	unsigned span_nr;
	uint64_t values_used;
	uint8_t values[MAP_VALUES_BYTES] __attribute__((aligned(8)));
};

void map_open(struct map *m, struct btrees *trees, const struct data_file *file);
void map_close(struct map *m);
/*
 * Fill in the spans of [@begin, *@end) sectors. Where there are too many, *@end becomes less, but stays above @begin.
 * 0 or -ENOMEM.
 */
int map_fill(struct map *m, uint64_t begin, uint64_t *end);

/* What a key of the extents btree is for a reader. */
enum span_kind { SPAN_HOLE, SPAN_EXTENT, SPAN_REFLINK, SPAN_INLINE, SPAN_LOST };
enum span_kind span_kind(unsigned key_type);

/* --- region.c --- */

/* A replica that failed, for the report once it is known whether another one served. */
struct region_failure {
	uint8_t ptr_idx;
	bool was_rebuild; /* it was the stripe that failed */
	int err;
	struct checksum found; /* err -KILN_E_CHECKSUM */
};

/* A region on its way into the caller's buffer: a slot of a reader. */
struct region {
	struct region *next; /* free slots */
	struct reader *reader;

	/* what is wanted */
	uint64_t file_offset_bytes;
	uint8_t *out;
	size_t len_bytes;
	uint64_t skip_bytes; /* where the wanted bytes begin in the key's live data */

	/* the key */
	unsigned btree_id;
	struct bkey k;
	unsigned ptr_nr;
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];

	/* the attempt in progress */
	unsigned ptr_idx;
	bool is_rebuild;  /* from the stripe */
	bool is_direct;	  /* stored bytes go straight to @out */
	bool must_bounce; /* what was read directly didn't verify: once more, where nobody else writes */
	uint64_t device_sector;
	uint32_t read_sectors;
	struct device_io io;
	struct iovec iov;
	struct pool_buffer buffers[2]; /* stored; decompressed */

	/* attempts made */
	uint32_t failed; /* mask of ptrs */
	uint32_t rebuild_failed;
	unsigned failure_nr;
	struct region_failure failures[2 * EXTENT_PTRS_MAX];

	/* parts: no source gave the whole, so what is wanted, above, is a part of it */
	bool is_divided;
	bool is_lost_run;				 /* the part before was lost */
	uint64_t part_blocks;				 /* the part, in blocks */
	uint64_t rest_bytes;				 /* wanted behind it */
	uint32_t divided_failed, divided_rebuild_failed; /* sources that aren't tried for any part */
	unsigned served_idx;				 /* the last one that gave a part; EXTENT_PTRS_MAX: none */
};

enum region_result { REGION_IN_FLIGHT, REGION_DONE, REGION_ZEROES, REGION_LOST };

/*
 * Decode the key of @r, whose "what is wanted" and @k are filled in. Returns 1 when it must be read, 0 when it reads as
 * zeroes, or an error, which was reported.
 */
int region_decode(struct region *r, const void *value);
/* Sizes of the buffers that reading may need, whichever replica serves. */
void region_buffer_sizes(const struct region *r, size_t sizes[2]);
/* True when every replica may be read in parts of any size. */
bool region_is_plain(const struct region *r);
/* Start reading from the best replica. */
enum region_result region_start(struct region *r);
/* Its I/O is done: finish, or try another replica. */
enum region_result region_continue(struct region *r);
/*
 * The region, or a part of it, came to @result, which was noted. True: what is wanted is now the next part, which is to
 * be started.
 */
bool region_next_part(struct region *r, enum region_result result);

/* --- stripe.c --- */

enum {
	STRIPE_PIECE_BYTES = 32 << 10,
	STRIPE_SCRATCH_BYTES = 16 * STRIPE_PIECE_BYTES, /* a piece of every block */
	STRIPE_REBUILDS_MAX = 4,			/* at a time */
};

/*
 * Rebuild @sectors at @ptr from the other blocks of the stripe it belongs to, into @out. -EIO (and what failed was
 * reported), -ENOMEM. Waits for its I/O.
 */
int stripe_rebuild(struct data *data, const struct extent_stripe_ptr *stripe_ptr, const struct extent_ptr *ptr,
		   uint64_t sector, uint32_t sectors, void *out);

/* --- read.c --- */

struct damage {
	uint64_t offset_bytes, len_bytes;
	int err;
};

/* One data_read(). Large, so kept for the next one. */
struct reader {
	struct reader *next; /* idle */
	struct data *data;
	const struct data_file *file;
	struct rng rng;
	struct io_group group;
	struct region *free;
	unsigned in_flight;
	int err; /* that makes the whole read impossible */
	uint8_t *buf;
	uint64_t begin_bytes, end_bytes;
	uint64_t bytes_read; /* from devices */
	struct damage *damage;
	size_t damage_nr, damage_capacity;
	struct map map;
	struct region regions[DATA_REGIONS_MAX];
};

/*
 * Reads of few bytes: small files, and what the kernel asks for first when a file is read. The next ones will often be
 * right behind on the device. Large reads keep the device busy by themselves.
 */
enum { READ_SMALL_BYTES = 128 << 10 };
static inline bool reader_is_small(const struct reader *r) { return r->end_bytes - r->begin_bytes <= READ_SMALL_BYTES; }

/* "inode 4098 snapshot 4294967295 offset 8192": where in a file. */
enum { DATA_POSITION_BYTES = 80 };
void data_position_text(char text[DATA_POSITION_BYTES], uint64_t inum, uint32_t snapshot, uint64_t offset_bytes);
/* Report something at @offset_bytes of the file of @r. Any text may be NULL. */
void reader_report(struct reader *r, const struct report *report, uint64_t offset_bytes, const char *where);

#endif
