/*
 * File data, write side (06 §5, §9, §14).
 *
 * A write goes to new space: allocate, checksum, write to every replica, wait; then one transaction per few extents
 * puts the keys over what was there and updates the inode (bi_sectors, bi_size). What is not block aligned is read,
 * merged and written as whole blocks. A short tail becomes inline data. When a call returns, everybody sees the data;
 * it is durable when the journal has been flushed up to *@journal_seq.
 *
 * Calls on one file that change overlapping ranges are ordered by a lock per inode (hashed); the rest runs in parallel.
 * Whether a file's flags and size let it be changed is looked at under that lock: what is said before is old by then.
 */
#ifndef KILN_DATA_WRITE_H
#define KILN_DATA_WRITE_H

#include "alloc/allocator.h"
#include "data/data.h"
#include "format/inode.h"
#include "format/logged_op.h"

/* Give the data room what it needs for writing. Before it, writes fail with -EROFS. */
int data_start_write(struct data *data, struct allocator *allocator, struct journal *journal);
void data_stop_write(struct data *data);
/* Add what its background does to @list. */
void data_jobs(struct data *data, struct job_list *list);

/*
 * Operations that take many transactions (logged_op.c). Go on with one found after a crash, in the snapshot of its
 * subvolume, and delete its key. Where there is no space for that now, it stays for later (0).
 */
int data_resume_op(struct data *data, uint64_t nr, uint32_t snapshot, struct bkey_ref k);
/* Finish those that an error has stopped. An error: there is one left, the filesystem isn't clean. No calls go on. */
int data_finish_ops(struct data *data);
/* In the transaction in which an inode goes: so does what was stopped of its file. */
int data_txn_drop_op(struct data *data, struct btree_txn *txn, uint64_t inum, uint32_t snapshot);

/*
 * Inodes in transactions, for data and namespace alike (inode_txn.c). Get: the inode that @snapshot sees, with
 * inode->snapshot = @snapshot, so that put writes the version of that snapshot even where the one read is an
 * ancestor's. 0, -ENOENT, -EIO for a value that can't be decoded, or what btree_txn_get() fails with. Put: 0, or as
 * btree_txn_put(); bi_journal_seq is set by the commit.
 */
int inode_txn_get(struct btree_txn *txn, uint64_t inum, uint32_t snapshot, struct inode *inode);
int inode_txn_put(struct btree_txn *txn, const struct inode *inode);
/* So many sectors more, or less. What damage left of the count stays a number that can be. */
static inline void inode_sectors_add(struct inode *inode, int64_t sectors)
{
	inode->sectors = u64_clamp((__int128)inode->sectors + sectors);
}

struct data_write_target {
	uint64_t inum;
	uint32_t snapshot;
	uint32_t subvol; /* for truncation: what a logged operation says; resuming knows its snapshot */
	/* Flags of the inode that forbid to change the file: -EPERM. And those that forbid it before the file's end. */
	uint32_t forbidding, forbidding_inside;
};

/* What else changes in the inode with the write, in the same transaction as the last part of it. */
struct data_write_times {
	bool is_set;	       /* mtime and ctime */
	uint64_t mtime, ctime; /* units of the filesystem */
	bool clear_setid;      /* drop setuid/setgid as POSIX has it */
};

/*
 * Write @len bytes at @offset. Returns bytes written (fewer only when space ran out part way), or -ENOSPC, -EIO,
 * -EROFS, -EFBIG, -ENOENT (no such inode), -EPERM (its flags forbid it).
 */
ssize_t data_write(struct data *data, const struct data_write_target *file, uint64_t offset_bytes, const void *buf,
		   size_t len_bytes, const struct data_write_times *times, uint64_t *journal_seq);
/*
 * Change the size. Down: the partial block behind the new end is zeroed, then a logged operation (04 §7) removes what
 * is behind. Up: only the size changes.
 */
int data_truncate(struct data *data, const struct data_write_target *file, uint64_t size_bytes,
		  const struct data_write_times *times, uint64_t *journal_seq);
/* Make a hole: whole blocks are removed, partial ones zeroed. */
int data_punch(struct data *data, const struct data_write_target *file, uint64_t offset_bytes, uint64_t len_bytes,
	       const struct data_write_times *times, uint64_t *journal_seq);
enum data_allocate_flags {
	DATA_ALLOCATE_KEEP_SIZE = 1,
	DATA_ALLOCATE_ZERO = 2, /* what is in the range becomes zeroes, whole blocks of it without being written */
};
/*
 * Promise space to all blocks of the range that have none, so that writing them can't fail for want of it. The size
 * grows to the end of the range. -ENOSPC: nothing was done. Zeroing is done even where there is no space to promise.
 */
int data_allocate(struct data *data, const struct data_write_target *file, uint64_t offset_bytes, uint64_t len_bytes,
		  unsigned flags, const struct data_write_times *times, uint64_t *journal_seq);
/*
 * Insert a hole of @len at @offset, what is behind it moving up; or take a range out, what is behind it moving down.
 * Both are logged operations (06 §14.3): done whole, after a crash by recovery. Offset and length are whole blocks
 * (-EINVAL), the offset (of what is taken out, the end as well) lies before the end of the file (-EINVAL). No data is
 * read or written. When an error stops it on the way, which is told, whoever changes the file next finishes it first,
 * or gets the error in his turn.
 */
int data_insert_range(struct data *data, const struct data_write_target *file, uint64_t offset_bytes,
		      uint64_t len_bytes, const struct data_write_times *times, uint64_t *journal_seq);
int data_collapse_range(struct data *data, const struct data_write_target *file, uint64_t offset_bytes,
			uint64_t len_bytes, const struct data_write_times *times, uint64_t *journal_seq);

enum data_copy_flags { DATA_COPY_SHARE_ONLY = 1 }; /* -EINVAL rather than copy what isn't whole blocks on both sides */
/*
 * Make a range of @to what a range of @from is, sharing whole blocks where they lie alike, else copying. Returns bytes
 * done: fewer than asked for at the end of @from, or when an error came on the way. -EINVAL: ranges of one file that
 * overlap; with SHARE_ONLY also a range that is not within @from.
 */
ssize_t data_copy_range(struct data *data, const struct data_write_target *from, uint64_t from_offset,
			const struct data_write_target *to, uint64_t to_offset, uint64_t len_bytes, unsigned flags,
			const struct data_write_times *times, uint64_t *journal_seq);
/* Remove all extents of an inode that is being deleted; its bi_sectors is kept right on the way. */
int data_delete_extents(struct data *data, const struct data_write_target *file, uint64_t *journal_seq);
/* The same as a part of the transaction in which the inode goes, if they are few. 1: they are too many. */
int data_txn_delete_extents(struct btree_txn *txn, const struct data_write_target *file);

/*
 * No entry of the journal covers what was overwritten in place (nocow files): flush the devices that such writes of the
 * inode (NULL: of any) went to since they were flushed last. Then flush the journal: of an inode at least up to
 * data_in_place_seq(). 1, or 0 when there was nothing to flush. *@failed has a bit for each device that may have lost
 * them; it must not be relied on any more, as the next flush can't tell.
 */
int data_flush_in_place(struct data *data, const uint64_t *inum, uint64_t *failed);
/* What was overwritten in place is where keys of this entry of the journal, or older ones, say. */
uint64_t data_in_place_seq(const struct data *data, uint64_t inum);

#endif
