/*
 * Sizes and holes: truncation, punching, and the extents of an inode that is being deleted (04 §6, §7, §8).
 *
 * Making a hole takes as many transactions as it must; each goes over the first extents that are left and takes their
 * sectors off the inode, so what is counted is right wherever it is cut short. A truncation that one transaction can't
 * hold is a logged operation: the key that says what is to be done is put together with the new size, and goes away
 * with the last of it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "data/write_internal.h"
#include "format/logged_op.h"

/* A truncation of so many extents is one transaction. */
enum { TRUNCATE_EXTENTS_ATOMIC = 4 };

/* --- holes --- */

struct hole_args {
	const struct data_write_target *file;
	uint64_t from, to; /* sectors */
	/* of the last run */
	uint64_t next;
	bool is_done;
};

/* Where the first extent begins that ends behind @from and begins before @to: 1, 0 when there is none, or an error. */
static int first_extent(struct btree_txn *txn, const struct data_write_target *file, uint64_t from, uint64_t to,
			uint64_t *begin)
{
	struct btree_iter it;
	struct bkey_ref k;

	if (from >= to)
		return 0;
	write_extents_open(&it, txn, file, from);
	int ret = btree_iter_peek(&it, &k);
	if (ret > 0) {
		*begin = max(bkey_start_offset(&k.k), from);
		ret = *begin < to;
	}
	btree_iter_close(&it);
	return ret;
}

/* Go over the first extents of the hole; *@sectors changes by what they had. *@next: the hole is done up to there. */
static int hole_put(struct btree_txn *txn, const struct data_write_target *file, uint64_t from, uint64_t to,
		    uint64_t *next, int64_t *sectors)
{
	struct btree_extent_change change = { 0 };
	uint64_t begin;
	int ret = first_extent(txn, file, from, to, &begin);

	*next = to;
	if (ret <= 0)
		return ret;
	uint32_t size = (uint32_t)min(to - begin, (uint64_t)HOLE_SECTORS_MAX);
	struct bkey hole = { .p = BPOS(file->inum, begin + size, file->snapshot), .size = size, .type = KEY_DELETED };

	ret = btree_txn_put_extent(txn, BTREE_EXTENTS, &hole, NULL, &change);
	*next = change.end_offset;
	*sectors += change.sectors;
	return ret;
}

static int hole_run(struct btree_txn *txn, void *ctx)
{
	struct hole_args *a = ctx;
	struct inode inode;
	int64_t sectors = 0;
	int err = hole_put(txn, a->file, a->from, a->to, &a->next, &sectors);

	if (err || !sectors)
		return err;
	err = inode_txn_get(txn, a->file->inum, a->file->snapshot, &inode);
	if (err)
		return err;
	inode_sectors_add(&inode, sectors);
	return inode_txn_put(txn, &inode);
}

int write_hole_make(struct data *data, const struct data_write_target *file, uint64_t from, uint64_t to,
		    uint64_t *journal_seq)
{
	struct btree_commit_opts opts = { .name = "make_hole",
					  .watermark = WATERMARK_NORMAL,
					  .journal_seq = journal_seq };
	struct hole_args a = { .file = file, .from = from, .to = to };
	int err = 0;

	while (!err && a.from < to) {
		err = btree_txn_run(data->trees, &opts, hole_run, &a);
		a.from = a.next;
	}
	return err;
}

int data_delete_extents(struct data *data, const struct data_write_target *file, uint64_t *journal_seq)
{
	return write_hole_make(data, file, 0, UINT64_MAX, journal_seq);
}

int data_txn_delete_extents(struct btree_txn *txn, const struct data_write_target *file)
{
	int64_t sectors = 0;
	uint64_t next = 0;
	int err = 0;

	for (unsigned i = 0; !err && next < UINT64_MAX; i++) {
		if (i == TRUNCATE_EXTENTS_ATOMIC)
			return 1;
		err = hole_put(txn, file, next, UINT64_MAX, &next, &sectors);
	}
	return err;
}

/* --- the size --- */

struct size_args {
	const struct data_write_target *file;
	const struct data_write_times *times;
	uint64_t size;
	uint64_t hole_from; /* sectors: from here on there is to be nothing */
	bool is_logged;	    /* put the logged operation; else the hole, which is small */
	uint64_t op_nr;	    /* out */
	bool is_too_big;    /* out: the hole doesn't fit one transaction */
};

static int logged_op_put(struct btree_txn *txn, struct size_args *a)
{
	struct logged_op_truncate op = { .subvol = a->file->subvol, .inum = a->file->inum, .new_size_bytes = a->size };
	uint8_t value[LOGGED_OP_TRUNCATE_BYTES];
	int err = write_op_nr_new(txn, &a->op_nr);

	if (err)
		return err;
	struct bkey k = { .p = BPOS(0, a->op_nr, 0),
			  .type = KEY_LOGGED_OP_TRUNCATE,
			  .value_u64s = LOGGED_OP_TRUNCATE_BYTES / 8 };
	logged_op_truncate_encode(&op, value);
	return btree_txn_put(txn, BTREE_LOGGED_OPS, &k, value, 0);
}

/* The new size, and either what makes it true at once or the promise to. */
static int size_run(struct btree_txn *txn, void *ctx)
{
	struct size_args *a = ctx;
	int64_t sectors = 0;
	struct inode inode;
	uint64_t next = a->hole_from;
	int err = 0;

	a->is_too_big = false;
	if (a->is_logged)
		err = logged_op_put(txn, a);
	for (unsigned i = 0; !a->is_logged && !err && next < UINT64_MAX; i++) {
		a->is_too_big = i == TRUNCATE_EXTENTS_ATOMIC;
		if (a->is_too_big)
			return -E2BIG;
		err = hole_put(txn, a->file, next, UINT64_MAX, &next, &sectors);
	}
	if (!err)
		err = inode_txn_get(txn, a->file->inum, a->file->snapshot, &inode);
	if (err)
		return err;
	inode.size = a->size;
	inode_sectors_add(&inode, sectors);
	write_times_set(&inode, a->times);
	return inode_txn_put(txn, &inode);
}

struct op_end_args {
	uint64_t nr;
};

static int op_end_run(struct btree_txn *txn, void *ctx)
{
	const struct op_end_args *a = ctx;

	return write_op_delete(txn, a->nr);
}

static int op_end(struct data *data, uint64_t nr, uint64_t *journal_seq)
{
	struct btree_commit_opts opts = { .name = "truncate_done",
					  .watermark = WATERMARK_NORMAL,
					  .journal_seq = journal_seq };

	return btree_txn_run(data->trees, &opts, op_end_run, &(struct op_end_args){ nr });
}

static int size_set(struct data *data, struct size_args *a, uint64_t *journal_seq)
{
	struct btree_commit_opts opts = { .name = "truncate",
					  .watermark = WATERMARK_NORMAL,
					  .journal_seq = journal_seq };
	int err = btree_txn_run(data->trees, &opts, size_run, a);

	if (err != -E2BIG || !a->is_too_big)
		return err;
	struct write_op_left *left = write_op_left_new(a->file->inum, a->file->snapshot);
	a->is_logged = true;
	err = left ? btree_txn_run(data->trees, &opts, size_run, a) : -ENOMEM;
	if (err) {
		free(left);
		return err;
	}
	err = write_hole_make(data, a->file, a->hole_from, UINT64_MAX, journal_seq);
	if (!err)
		err = op_end(data, a->op_nr, journal_seq);
	write_op_end(data, left, a->op_nr, err, "to be cut to its new size");
	return err;
}

/*
 * --- partial blocks ---
 *
 * What is left of a block is written anew. On a full filesystem there is no room for that before what lies in whole
 * blocks is gone, so then that goes first. Btrees may have taken what was promised to nobody; but who deletes is not
 * refused because of what is counted, only where there really is no place for a block.
 */

/* Is anything but a hole at @offset? */
static int has_data_at(struct data *data, const struct data_write_target *file, uint64_t size, uint64_t offset,
		       bool *has_data)
{
	struct data_file f = { .inum = file->inum, .snapshot = file->snapshot, .size_bytes = size };
	uint64_t found;
	int err = data_seek(data, &f, offset, true, &found);

	*has_data = !err && found == offset;
	return err == -ENXIO ? 0 : err;
}

/* [begin, end) lies in one block. */
static int zero_part(struct data *data, const struct data_write_target *file, uint64_t size, uint64_t begin,
		     uint64_t end, bool makes_room, uint64_t *journal_seq)
{
	static const uint8_t zeroes[4096];
	bool has_data;

	end = min(end, size);
	if (begin >= end)
		return 0;
	int err = has_data_at(data, file, size, begin, &has_data);
	if (err || !has_data)
		return err;
	ssize_t ret = write_locked(data, file, begin, zeroes, (size_t)(end - begin), makes_room, NULL, journal_seq);
	return ret < 0 ? (int)ret : ret == (ssize_t)(end - begin) ? 0 : -ENOSPC;
}

int write_zero_edges(struct data *data, const struct data_write_target *file, uint64_t size, uint64_t begin,
		     uint64_t end, bool makes_room, uint64_t *journal_seq)
{
	uint64_t block = block_bytes_of(data), first = round_up_u64(begin, block), last = end / block * block;
	int err = zero_part(data, file, size, begin, min(first, end), makes_room, journal_seq);

	if (!err && last >= first)
		err = zero_part(data, file, size, max(last, begin), end, makes_room, journal_seq);
	return err;
}

/* --- for callers --- */

static int truncate_locked(struct data *data, const struct data_write_target *file, uint64_t size,
			   const struct data_write_times *times, uint64_t *journal_seq)
{
	uint64_t block = block_bytes_of(data), block_end = round_up_u64(size, block);
	struct size_args a = { .file = file, .times = times, .size = size, .hole_from = block_end >> SECTOR_SHIFT };
	struct inode inode;

	int err = write_inode_begin(data, file, size, &inode);
	if (!err && size < inode.size)
		err = zero_part(data, file, inode.size, size, block_end, false, journal_seq);
	if (err == -ENOSPC) {
		struct size_args whole = a;

		whole.size = min(block_end, inode.size);
		err = size_set(data, &whole, journal_seq);
		if (!err)
			err = zero_part(data, file, whole.size, size, block_end, true, journal_seq);
	}
	/*
	 * Growing: what lies behind the old end are promises of space at most, and they stay. Setting the size that it
	 * has is how one gives them back.
	 */
	if (!err && size > inode.size)
		a.hole_from = UINT64_MAX;
	return err ? err : size_set(data, &a, journal_seq);
}

int data_truncate(struct data *data, const struct data_write_target *file, uint64_t size_bytes,
		  const struct data_write_times *times, uint64_t *journal_seq)
{
	if (!data->writer)
		return -EROFS;
	if (size_bytes > INT64_MAX)
		return -EFBIG;
	struct mutex *lock = inode_lock(data, file->inum);
	mutex_lock(lock);
	int err = truncate_locked(data, file, size_bytes, times, journal_seq);
	mutex_unlock(lock);
	return err;
}

static int size_raise_run(struct btree_txn *txn, void *ctx)
{
	const struct size_args *a = ctx;
	struct inode inode;
	int err = inode_txn_get(txn, a->file->inum, a->file->snapshot, &inode);

	if (err)
		return err;
	inode.size = max(inode.size, a->size);
	write_times_set(&inode, a->times);
	return inode_txn_put(txn, &inode);
}

int write_size_raise(struct data *data, const struct data_write_target *file, uint64_t size,
		     const struct data_write_times *times, uint64_t *journal_seq)
{
	struct btree_commit_opts opts = { .name = "size_raise",
					  .watermark = WATERMARK_NORMAL,
					  .journal_seq = journal_seq };
	struct size_args a = { .file = file, .times = times, .size = size };

	return size || times ? btree_txn_run(data->trees, &opts, size_raise_run, &a) : 0;
}

int write_punch(struct data *data, const struct data_write_target *file, uint64_t begin, uint64_t end,
		const struct data_write_times *times, uint64_t *journal_seq)
{
	uint64_t block = block_bytes_of(data), first = round_up_u64(begin, block);
	struct inode inode;

	int err = write_inode_read(data, file, &inode);
	/* The rest of the last block holds nothing. */
	if (!err && end >= inode.size)
		end = round_up_u64(end, block);
	uint64_t last = end / block * block;
	if (err)
		return err;
	err = write_zero_edges(data, file, inode.size, begin, end, false, journal_seq);
	bool is_hole_first = err == -ENOSPC && last > first;
	if ((!err || is_hole_first) && last > first)
		err = write_hole_make(data, file, first >> SECTOR_SHIFT, last >> SECTOR_SHIFT, journal_seq);
	if (!err && is_hole_first)
		err = write_zero_edges(data, file, inode.size, begin, end, true, journal_seq);
	return err ? err : write_size_raise(data, file, 0, times, journal_seq);
}

int data_punch(struct data *data, const struct data_write_target *file, uint64_t offset_bytes, uint64_t len_bytes,
	       const struct data_write_times *times, uint64_t *journal_seq)
{
	struct inode inode;

	if (!data->writer)
		return -EROFS;
	if (offset_bytes > INT64_MAX || !len_bytes)
		return offset_bytes > INT64_MAX ? -EFBIG : -EINVAL;
	struct mutex *lock = inode_lock(data, file->inum);
	mutex_lock(lock);
	int err = write_inode_begin(data, file, offset_bytes, &inode);
	if (!err)
		err = write_punch(data, file, offset_bytes,
				  offset_bytes + min(len_bytes, (uint64_t)INT64_MAX - offset_bytes), times,
				  journal_seq);
	mutex_unlock(lock);
	return err;
}

int write_resume_truncate(struct data *data, uint64_t op_nr, uint32_t snapshot, const struct logged_op_truncate *op)
{
	struct data_write_target file = { .inum = op->inum, .snapshot = snapshot };
	uint64_t block_end = round_up_u64(op->new_size_bytes, block_bytes_of(data));
	struct inode inode;

	if (op->new_size_bytes > INT64_MAX)
		return -EUCLEAN;
	int err = write_inode_read(data, &file, &inode);
	/* The inode may have been deleted since. */
	if (!err && inode.size != op->new_size_bytes) {
		struct size_args a = { .file = &file, .size = op->new_size_bytes, .hole_from = UINT64_MAX };

		err = size_set(data, &a, NULL);
	}
	if (!err)
		err = write_hole_make(data, &file, block_end >> SECTOR_SHIFT, UINT64_MAX, NULL);
	return err && err != -ENOENT ? err : op_end(data, op_nr, NULL);
}
