/*
 * What the files of the mover share.
 *
 *   move.c       batches: taking keys, writing
 *   move_read.c  reading what is to be moved
 *   move_key.c   changing the pointers of one key
 */
#ifndef KILN_DATA_MOVE_INTERNAL_H
#define KILN_DATA_MOVE_INTERNAL_H

#include "data/internal.h"
#include "data/move.h"
#include "data/write_internal.h"
#include "format/key_edit.h"

/* Sectors of a key, from its start, that no copy of it gives. */
struct move_gap {
	uint32_t begin, end;
};

/* A key that is being moved. */
struct move_item {
	unsigned btree_id;
	struct bkey k;
	const uint8_t *value; /* in the mover's memory */
	struct data_move move;
	struct extent_value v;
	struct rebalance_aim aim;
	unsigned replicas;		 /* of its file */
	unsigned csum_type, compression; /* as its options ask; CHECKSUM_TYPE_NR: as it is */
	uint32_t kill;			 /* cached pointers that go */
	unsigned wanted;		 /* durability of new copies; 0: only pointers go */
	uint64_t failed_devs;		 /* a bit for each that didn't take a copy: it gets none */
	uint64_t kept_devs;
	unsigned source;	     /* which pointer was read */
	bool is_unwritten, is_front; /* front: the rest of the key comes later */
	uint8_t *in; /* what was read: the region of the source, or its live part where it isn't encoded */
	uint32_t in_sectors;
	struct move_gap *gaps; /* ascending; they stay where they are */
	size_t gap_nr, gap_max;
	uint8_t *decoded; /* the region, decompressed; NULL: isn't yet */
	int err;
	uint64_t put_sectors; /* of it, with their new pointers */
};

/* A part of a key with a new copy: what becomes one key. */
struct move_part {
	struct move_item *item;
	uint64_t begin, end; /* sectors, in the key's own positions */
	const uint8_t *bytes;
	uint32_t stored_sectors;
	struct extent_crc crc; /* of the new copies */
	bool has_crc;
	unsigned space;	 /* which of the mover's extents it lies in */
	bool may_merge;	 /* what lies before or behind it is moved along, to before or behind it */
	unsigned ptr_nr; /* new pointers; 0: none */
	struct extent_ptr ptrs[ALLOC_PTRS_MAX];
	uint64_t put_sectors; /* by the transaction under way */
};

enum {
	MOVE_ITEMS_MAX = 128,
	MOVE_BYTES = 1 << 20, /* read together */
	MOVE_LARGE_MAX = 3,   /* read, decompressed, compressed anew */
	MOVE_VALUES_BYTES = 64 << 10,
};

/* Space for parts that lie behind one another. */
struct move_space {
	struct alloc_extent e;
	uint32_t used;	      /* sectors */
	size_t first, nr;     /* of its parts */
	uint64_t failed_devs; /* a bit for each that didn't take its copy */
};

struct data_mover {
	struct data *data;
	struct pool *pool;
	struct pool_buffer memory[2]; /* what is read; what that is decompressed to, and compressed anew */
	size_t in_used, form_used;    /* of them */
	void *large[MOVE_LARGE_MAX];  /* io_buffer_free(): for a single item that doesn't fit into them */
	unsigned large_nr;
	bool has_section; /* readers are counted: buckets stay */
	struct read_section section;
	struct move_item items[MOVE_ITEMS_MAX];
	unsigned item_nr;
	struct device_io ios[MOVE_ITEMS_MAX];
	struct iovec iovs[MOVE_ITEMS_MAX];
	unsigned io_nr;
	uint8_t io_of[MOVE_ITEMS_MAX];
	unsigned round_end; /* the items up to it are written, and put, together */
	struct move_part *parts;
	size_t part_nr, part_max;
	/* Held from reading to putting: who overwrites data in place stays out. */
	uint16_t *locks;
	size_t lock_nr, lock_max;
	struct move_space *spaces;
	size_t space_nr, space_max;
	struct disk_reservation reservation;
	size_t values_used;
	uint8_t values[MOVE_VALUES_BYTES] __attribute__((aligned(8)));
};

static inline struct bkey_ref move_item_key(const struct move_item *i)
{
	return (struct bkey_ref){ .k = i->k, .value = i->value };
}

/*
 * In a transaction: put the new pointers of @part into what is there now of [@from, part->end), as far as one
 * transaction goes: *@done_to. *@sectors: how many now have them.
 */
int move_part_put(struct data *data, struct btree_txn *txn, const struct move_part *part, uint64_t from,
		  uint64_t *done_to, uint64_t *sectors);

/* --- move_read.c --- */

/* What is read through pointer @i. */
static inline uint32_t move_sectors_to_read(const struct move_item *item, unsigned i)
{
	const struct extent_crc *crc = &item->v.ptrs[i].crc;

	return crc_is_encoded(crc) ? crc->compressed_sectors : item->k.size;
}
bool move_ptr_is_readable(const struct data_mover *m, const struct move_item *item, unsigned i);
/*
 * The next pointer to read, of those that are not in @tried: what is to be replaced first, because that is what lies
 * together. EXTENT_PTRS_MAX: none.
 */
unsigned move_source_next(const struct data_mover *m, const struct move_item *item, uint32_t tried);
/* Read and verify all items. What can't be read has an error, or gaps. */
void move_items_read(struct data_mover *m, struct data_move_stats *stats);
void move_item_report(const struct data_mover *m, const struct move_item *item, enum report_level level, unsigned id,
		      int err, const char *expected);

#endif
