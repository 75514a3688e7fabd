/*
 * What the files of the mover share.
 *
 *   move.c       batches: taking keys, reading, writing
 *   move_key.c   changing the pointers of one key
 */
#ifndef KILN_DATA_MOVE_INTERNAL_H
#define KILN_DATA_MOVE_INTERNAL_H

#include "data/internal.h"
#include "data/move.h"
#include "data/write_internal.h"
#include "format/key_edit.h"

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
	unsigned source; /* which pointer was read */
	bool is_unwritten;
	uint8_t *in; /* what was read: the region of the source, or its live part where it isn't encoded */
	uint32_t in_sectors;
	uint8_t *own;	  /* a buffer that only it uses: io_buffer_free(); NULL else */
	uint8_t *decoded; /* the region, decompressed, the same way */
	uint8_t *recoded; /* what is live of it, compressed anew, the same way */
	int err;
};

/* A part of a key with a new copy: what becomes one key. */
struct move_part {
	struct move_item *item;
	uint64_t begin, end; /* sectors, in the key's own positions */
	const uint8_t *bytes;
	uint32_t stored_sectors;
	struct extent_crc crc; /* of the new copies */
	bool has_crc;
	unsigned space;	       /* which of the mover's extents it lies in */
	uint32_t space_offset; /* sectors */
	bool may_merge;	       /* what lies before or behind it is moved along, to before or behind it */
	unsigned ptr_nr;       /* new pointers; 0: none */
	struct extent_ptr ptrs[ALLOC_PTRS_MAX];
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

#endif
