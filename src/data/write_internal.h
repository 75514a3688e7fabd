/*
 * What the files of the write side share.
 *
 *   write.c       data_write(): blocks from bytes, chunks in flight
 *   write_key.c   a chunk: space, I/O, keys
 *   write_encode.c what its bytes are stored as: compressed, encrypted, checksummed
 *   crew.c        all cores compute at once
 *   in_place.c    blocks of nocow files overwritten where they are
 *   write_put.c   transactions that put keys and bring the inode along
 *   write_batch.c contents of many new files in one chunk
 *   truncate.c    sizes and holes
 *   fallocate.c   space promised
 *   copy.c        ranges copied, and what they share
 *   shift.c       ranges inserted and taken out
 *   logged_op.c   operations of many transactions, and finishing those that an error stopped
 *
 * One call at a time changes the data of an inode (inode_lock()): so what a call reads to complete partial blocks is
 * still there when it puts them, and sizes only change under it.
 */
#ifndef KILN_DATA_WRITE_INTERNAL_H
#define KILN_DATA_WRITE_INTERNAL_H

#include "data/bucket_locks.h"
#include "data/crew.h"
#include "data/internal.h"
#include "data/write.h"
#include "format/key_edit.h"
#include "journal/journal.h"

/* Most that a key can say, in whole blocks of any size. */
#define HOLE_SECTORS_MAX (UINT32_MAX & ~0xffffu)

enum {
	RESERVATION_REPLICAS_MAX = 4, /* that a reservation key can promise */
	INODE_LOCK_NR = 256,
	CHUNK_BYTES = 1 << 20,	/* allocated, written and put together */
	CHUNK_EXTENTS_MAX = 16, /* pieces it may lie in */
	CHUNKS_IN_FLIGHT = 3,
	WRITE_BUFFERS = 2,		    /* that a chunk needs, of its size */
	WRITE_MEMORY_MAX = 3 * CHUNK_BYTES, /* that one call needs: a chunk, and what it copies */
	PUTS_PER_TXN_MAX = 16,		    /* extents that one transaction puts: a chunk's, mostly */
	PLACE_DEVS_MAX = 64,		    /* devices whose data may be overwritten in place */
};

/* What was overwritten in place (in_place.c). */
struct place_state {
	struct bucket_locks locks;
	/* Of each device: how many writes have ended, and how many of them a flush has covered. */
	_Atomic uint64_t written[PLACE_DEVS_MAX], flushed[PLACE_DEVS_MAX];
	_Atomic uint64_t last[INODE_LOCK_NR][PLACE_DEVS_MAX]; /* number of the last one of these inodes */
	_Atomic uint64_t seq[INODE_LOCK_NR];		      /* data_in_place_seq() */
};

struct copygc;

struct data_writer {
	struct allocator *allocator;
	struct journal *journal;
	struct copygc *copygc; /* NULL: not running */
	struct crew crew;
	struct mutex inode_locks[INODE_LOCK_NR];
	struct place_state in_place;
	struct mutex shared_lock; /* of what follows: the end of the reflink btree */
	bool has_shared_end;
	uint64_t shared_end;
	struct mutex ops_lock; /* of what follows: operations that an error stopped on the way */
	struct write_op_left *ops_left;
};

/* Which of the locks is an inode's. */
static inline unsigned inode_lock_place(uint64_t inum)
{
	_Static_assert(INODE_LOCK_NR == 256, "8 bits");
	return (inum * 0x9e3779b97f4a7c15ull) >> 56;
}
struct mutex *inode_lock(struct data *data, uint64_t inum);

/* What a file's data is to be in the end. */
struct rebalance_aim {
	struct extent_rebalance wanted;
	uint64_t devs; /* of its target; 0: anywhere */
};
/* As the inode says, else the filesystem; only the latter where the inode is all zero. */
struct rebalance_aim rebalance_aim_of(const struct data *data, const struct inode *inode);
/*
 * Let the key say what is left to be done in the background (06 §12.2), or nothing. @is_shared: a reflink_v, which goes
 * on wanting what it has wanted.
 */
void rebalance_refresh(const struct data *data, const struct rebalance_aim *aim, bool is_shared,
		       struct extent_value *v);

/* What a write is, as all its chunks see it. */
struct write_op {
	struct data *data;
	const struct data_write_target *file;
	const struct data_write_times *times; /* NULL: none */
	uint64_t end_bytes;		      /* where the bytes that were given end: the new size, if that is larger */
	uint64_t size_bytes;		      /* of the file as it is */
	bool changes_inode;		      /* whatever is written where */
	bool has_failed_in_place;	      /* copies differ until the data has been written elsewhere */
	bool is_nocow;			      /* in place where that can be */
	bool is_size_kept;		      /* rewriting what is there: the size doesn't change */
	unsigned csum_type;
	unsigned compression;	    /* option encoding (06 §7.1) */
	unsigned replicas;	    /* wanted */
	unsigned replicas_possible; /* of these, what the devices that are written now can have */
	/* On the whole: it may have what is kept for btrees, and isn't asked what was promised to whom. */
	bool makes_room;
	struct pool_buffer *memory; /* WRITE_BUFFERS, that the caller has taken; NULL: what is needed is taken */
	uint16_t target;
	struct rebalance_aim rebalance;
	struct disk_reservation reservation;
	uint64_t *journal_seq;
};

/* Where the bytes of the blocks come from: what was given, and around it what is there. */
struct write_source {
	const uint8_t *buf;
	uint64_t begin, end;		 /* bytes given */
	uint64_t block_begin, block_end; /* whole blocks around them */
	uint8_t *head, *tail;		 /* first and last block, where they are partial; NULL else */
};
/* Bytes [@at, @at + @len) of the blocks. */
void write_source_copy(const struct write_source *s, uint64_t block, uint64_t at, uint8_t *to, size_t len);
/* The same where they are; NULL: not all in one place. */
const uint8_t *write_source_at(const struct write_source *s, uint64_t at, size_t len);

/* --- in_place.c; the inode is locked --- */

/* Overwrite what can be, from the front: up to *@done_to, in sectors. What is left is to be written elsewhere. */
int write_in_place(struct write_op *op, const struct write_source *s, uint64_t *done_to);

/* --- write_put.c --- */

/* As extents_open(), in a transaction. */
void write_extents_open(struct btree_iter *it, struct btree_txn *txn, const struct data_write_target *file,
			uint64_t sector);
/*
 * Put @nr keys, ascending and without overlap, and what they mean for the inode; the times with the last. In as many
 * transactions as it takes. *@done counts keys that are there for good (the next one may be there in part).
 */
int write_put_keys(struct write_op *op, struct key_buf *keys, size_t nr, bool is_last, size_t *done);

/* --- write_key.c --- */

/* A part of a chunk that is stored, and read, as a whole: what a key says where it is. */
struct write_region {
	uint32_t at;		 /* first sector in the chunk */
	struct extent_crc crc;	 /* as the key has it */
	const uint8_t *bytes;	 /* the stored form: crc.compressed_sectors, in c->buf or c->stored */
	struct bversion version; /* of its key: encrypted ones have one, which nothing else ever has */
	bool has_place;
	unsigned extent; /* the piece of space it is in */
	uint32_t extent_offset;
	int err;
};

/* A run of blocks on its way: [begin, end) sectors of the file. */
struct write_chunk {
	struct write_op *op;
	uint64_t begin, end;
	struct pool_buffer memory[WRITE_BUFFERS]; /* write_chunk_memory_take() */
	void *buf;				  /* the file's bytes, when they are sealed; NULL: they aren't kept */
	void *stored;				  /* what is stored in another form, or would be */
	const uint8_t *given;			  /* where the bytes are until then, if that isn't buf; NULL else */
	/* Ascending sectors where keys end, besides the ends of regions: of one file behind another (write_batch.c). */
	const uint32_t *cuts;
	unsigned cut_nr;
	struct write_region *regions; /* ascending */
	size_t region_nr, region_max;
	struct alloc_extent extents[CHUNK_EXTENTS_MAX];
	unsigned extent_nr;
	bool is_alone; /* nothing else is done until it is written */
	struct device_io *ios;
	unsigned io_nr;
	struct iovec *iovs; /* of the stored forms, in the order of regions */
	size_t iov_max;
	uint8_t io_of[CHUNK_EXTENTS_MAX][ALLOC_PTRS_MAX]; /* which of ios[] writes each replica of each piece */
	struct io_group group;
	struct key_buf *keys; /* of the regions */
	size_t key_nr, key_max;
};
/* What the allocator is asked for. */
struct alloc_request write_space_request(const struct write_op *op);
int write_chunk_init(struct write_chunk *c, struct write_op *op);
void write_chunk_destroy(struct write_chunk *c);
/*
 * What the chunk, whose bounds and c->given are known, needs. A chunk that has a buf of its own keeps it. Given back
 * when it has been written, or is released. 0, -ENOMEM, or -EAGAIN if it would be waited for and @may_wait is false.
 */
int write_chunk_memory_take(struct write_chunk *c, bool may_wait);
/*
 * Encode, allocate and submit what is in c->buf, or given. Fewer sectors than asked for may be taken: c->end says. 0 or
 * error.
 */
int write_chunk_start(struct write_chunk *c);
/* Is there nothing left to wait for? Where nobody has looked yet, there may be. */
bool write_chunk_is_written(const struct write_chunk *c);
/* Wait for it; keys of what was written remain. 0 or -EIO. */
int write_chunk_finish(struct write_chunk *c);
/* Its keys are there, or never will be. */
void write_chunk_release(struct write_chunk *c);

/* --- write_encode.c --- */

/* Divide what is in c->buf, or given, into regions, and compress them if that is asked for. */
int write_regions_make(struct write_chunk *c);
/*
 * Region @i, whose stored form is larger than @room sectors (whole blocks, at least one), becomes one that isn't, and
 * what is left another one behind it.
 */
int write_region_divide(struct write_chunk *c, size_t i, uint32_t room);
/* When all have their place: encrypt, or copy what was given, and checksum what is stored. 0 or an error. */
int write_regions_seal(struct write_chunk *c);

/* --- write.c --- */

/* How far sectors [@begin, @end) can be filled when @room are new at most: *@to; and how many are new: *@added. */
int write_new_sectors(struct data *data, const struct data_write_target *file, uint64_t begin, uint64_t end,
		      uint64_t room, uint64_t *added, uint64_t *to);
/*
 * data_write() without the lock: for part of another call, which has begun with the inode and sets the times.
 * @makes_room, @memory: as in write_op.
 */
ssize_t write_locked(struct data *data, const struct data_write_target *file, uint64_t offset_bytes, const void *buf,
		     size_t len_bytes, bool makes_room, struct pool_buffer *memory, uint64_t *journal_seq);
/* Room for the blocks of a write of @len_bytes anywhere, or the part of them that is written together. */
size_t write_memory_bytes(const struct data *data, size_t len_bytes);
/* How a write to @inode is to be done: what it says, else the filesystem. 0 or -EOPNOTSUPP. */
int write_options_take(struct write_op *op, const struct inode *inode);
/* See that the superblock has the features that this takes. Not in transactions. */
int write_features_mark(const struct write_op *op);
/* Would both write the same bytes in the same way? */
bool write_options_are_same(const struct write_op *a, const struct write_op *b);
/* Longest data that may be inline; 0: none. */
size_t write_inline_bytes_max(const struct data *data);
/* A data_damage_fn that sets a bool. */
void data_damage_note(void *ctx, uint64_t offset, uint64_t len, int err);
/* The inode of a file as it is now. 0, -ENOENT or an error. */
int write_inode_read(struct data *data, const struct data_write_target *file, struct inode *inode);
/*
 * The same where a call begins that changes the file from @offset on: what was stopped half way is finished. -EPERM
 * when the inode has flags that @file says forbid it.
 */
int write_inode_begin(struct data *data, const struct data_write_target *file, uint64_t offset_bytes,
		      struct inode *inode);

/* Copies that the file's data is to have. */
unsigned write_replicas(const struct data *data, const struct inode *inode);

/* --- truncate.c; the inode is locked --- */

/* Make [from, to) a hole; in sectors, whole blocks. */
int write_hole_make(struct data *data, const struct data_write_target *file, uint64_t from, uint64_t to,
		    uint64_t *journal_seq);
/*
 * Zero what of [begin, end) is of no whole block; not behind @size, nor where there is nothing but zeroes. That takes a
 * new block for each end; @makes_room: as in write_op.
 */
int write_zero_edges(struct data *data, const struct data_write_target *file, uint64_t size, uint64_t begin,
		     uint64_t end, bool makes_room, uint64_t *journal_seq);
/* Make [begin, end), bytes, read as zeroes without space. */
int write_punch(struct data *data, const struct data_write_target *file, uint64_t begin, uint64_t end,
		const struct data_write_times *times, uint64_t *journal_seq);
/* The size becomes @size unless it is larger; and times, unless NULL. */
int write_size_raise(struct data *data, const struct data_write_target *file, uint64_t size,
		     const struct data_write_times *times, uint64_t *journal_seq);
/* Go on with a truncation, and delete its key. 0, also where the file is gone, or an error. */
int write_resume_truncate(struct data *data, uint64_t op_nr, uint32_t snapshot, const struct logged_op_truncate *op);

/* --- shift.c; the same for it --- */

int write_resume_shift(struct data *data, uint64_t op_nr, uint32_t snapshot, const struct logged_op_finsert *op);

/* --- logged_op.c; the inode is locked --- */

/* The number of a new logged operation: one higher than the highest (04 §8). Its key goes away with the last of it. */
int write_op_nr_new(struct btree_txn *txn, uint64_t *nr);
int write_op_delete(struct btree_txn *txn, uint64_t nr);
/* What it takes to remember an operation that may fail on the way: made before it begins. NULL: -ENOMEM. */
struct write_op_left {
	struct write_op_left *next;
	uint64_t nr, inum;
	uint32_t snapshot;
};
struct write_op_left *write_op_left_new(uint64_t inum, uint32_t snapshot);
/*
 * Operation @nr is over, and @left is freed; or an error, which is reported where it isn't an ordinary one, has stopped
 * it, and @left is kept. @what was to happen to the file.
 */
void write_op_end(struct data *data, struct write_op_left *left, uint64_t nr, int err, const char *what);
/* Finish what was stopped of the file. Until that is done (0) it mustn't be changed. */
int write_ops_finish(struct data *data, uint64_t inum, uint32_t snapshot);
void write_ops_forget(struct data_writer *w);

/* --- fallocate.c --- */

/*
 * What [from, to), sectors of the file, has in space that a write of @replicas copies over it gives back (06 §5.5), in
 * all replicas.
 */
int write_space_held(struct data *data, const struct data_write_target *file, uint64_t from, uint64_t to,
		     unsigned replicas, uint64_t *sectors);

/* --- copy.c --- */

/* Before anything is shared: the feature is marked, and the end of the reflink btree known. */
int write_share_prepare(struct data *data);
/* Where a shared extent of so many sectors goes: taken once, although a transaction may run more often. Starts as 0. */
struct share_index {
	uint64_t idx;
	uint32_t sectors;
};
/*
 * In a transaction: @key, an extent as it is in the btree, becomes a shared one, and @key what refers to it, as it is
 * put in its place. -EOPNOTSUPP: it can't be shared.
 */
int write_share_key(struct data *data, struct btree_txn *txn, struct key_buf *key, struct share_index *index);

/* Times and mode of an inode whose data was changed. */
void write_times_set(struct inode *inode, const struct data_write_times *times);

static inline uint64_t block_bytes_of(const struct data *data)
{
	return (uint64_t)data->super->kctx.block_sectors << SECTOR_SHIFT;
}

#endif
