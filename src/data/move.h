/*
 * Moving data: new copies of what extents point at, and then the pointers changed (06 §11).
 *
 * A *move* is a key with pointers (an extent or reflink_v) and what is to become of each of them: replaced by a copy
 * somewhere else, dropped, or left. Everything that relocates data is a move: copygc, rebalance, promotion, repair of
 * a bad replica, emptying a device.
 *
 * Moves are made in batches, by one task each:
 *
 * 1. *Take.* data_mover_begin(); look keys up; data_mover_add() those to be moved. From begin to run, what the keys
 *    point at isn't used again, whatever happens to the keys.
 * 2. *Read.* Stored regions are read as they are, those that lie behind one another in one I/O, and verified; where
 *    one is bad another replica serves, and if none does the key stays as it is. What has no checksum is taken block by
 *    block then, from whichever replica gives it; blocks that none gives stay where they are, without what is between.
 * 3. *Write.* The stored bytes go to new space as they are, compressed and encrypted. Of a region that isn't
 *    compressed only what the key still needs, with a checksum of its own (narrowing, 06 §6.4); of one that is, that
 *    part compressed anew where it takes less, and, where it has shrunk below its size on disk, at least decompressed.
 *    What a device doesn't take goes to others.
 * 4. *Put.* Transactions change the pointers, each key only where it still is what it was when it was read: what was
 *    overwritten, trimmed or moved meanwhile is passed over, or taken for the part that is left.
 *
 * What is moved to where it is to be in the end is compressed and checksummed on the way as its file's options ask by
 * now, where it isn't encrypted and doesn't take more than before. What is lacking then the key says. What goes is
 * replaced by as many copies as make up what the file asks for by now, but by no more than it counted for: they take
 * space that copygc hasn't; and by one at least: to do without is a matter of having read those that remain.
 *
 * What is read is a MiB at most, and what it becomes when it is decompressed and compressed anew takes bounded memory
 * as well: 3 and 4 are done in rounds where a batch takes more.
 *
 * The keys aren't locked from 1 to 4, so a move that loses a race costs work and nothing else. What may be overwritten
 * in place is kept from that from 2 to 4, by locks of its buckets (bucket_locks.h).
 */
#ifndef KILN_DATA_MOVE_H
#define KILN_DATA_MOVE_H

#include "data/pool.h"
#include "data/write.h"

/* Masks have a bit for each pointer, in the order of the value (extent_decode()). */
struct data_move {
	uint32_t rewrite;	  /* get new copies in their place, and go; cached ones just go */
	uint32_t avoid;		  /* known to be bad: not read from */
	uint16_t target;	  /* where new copies go; 0: anywhere */
	bool is_to_background;	  /* instead: where, and stored how, the file's data is to be in the end */
	bool is_form_kept;	  /* but it needn't be made smaller now: that takes time */
	enum watermark watermark; /* WATERMARK_COPYGC, or WATERMARK_STRIPE for other background work */
};

struct data_move_stats {
	uint64_t keys_moved, keys_changed; /* changed: were others when they were to be put, wholly or in part */
	uint64_t keys_failed;		   /* couldn't be read, or found no space */
	uint64_t pointers_replaced; /* to be rewritten, of keys that were moved to their last sector, once each */
	uint64_t sectors_read, sectors_written;
};

struct data_mover;

/* Least memory for what is decompressed and compressed anew; the largest region that is made fits, both ways. */
enum { DATA_MOVE_FORM_BYTES_MIN = 2 << 20 };

/*
 * Its buffers are taken from @pool, which is waited for: a MiB for what is read together, and two or four for what it
 * is decompressed to and compressed anew. A batch that needs more than that is written and put in rounds. Only a region
 * larger than a MiB, which others may have made, takes more (three times 4 MiB at most). NULL: no memory. Switch point.
 */
struct data_mover *data_mover_new(struct data *data, struct pool *pool);
void data_mover_free(struct data_mover *m); /* NULL is allowed */
void data_mover_begin(struct data_mover *m);
/*
 * Move @k, as it is in @btree_id (extents, reflink). It is copied. 0; 1: its front alone, as it is long and needn't be
 * read as a whole: run, and then add what is there of it; -ENOBUFS: the batch is full, run it first; -EINVAL: there is
 * nothing to be done; -EOPNOTSUPP: it can't be moved (stripes); -KILN_E_INVALID: it can't be understood.
 */
int data_mover_add(struct data_mover *m, unsigned btree_id, struct bkey_ref k, const struct data_move *move);
/*
 * Do what was added since begin, which may be nothing, and forget it. 0 when all keys were moved or needn't be; else
 * the first error, after having tried all: -ENOSPC, -EAGAIN, -EIO (reported), -EROFS, -ENOMEM. @stats is added to.
 */
int data_mover_run(struct data_mover *m, struct data_move_stats *stats);

#endif
