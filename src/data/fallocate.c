/*
 * Space promised to a file: fallocate, with and without zeroing (06 §14.2).
 *
 * A promise is a `reservation` key: it counts as used space (so many sectors times so many replicas), reads as zeroes,
 * and has no place on a device yet. A write puts an extent over it, and what the extent takes is what the promise
 * gives back, so it can't fail for want of space.
 *
 * Of a nocow file the promise is the place itself: an extent that says *unwritten*, which reads as zeroes, too.
 *
 * Only what belongs to the snapshot that is written to counts: a reservation of an ancestor stays with the ancestor,
 * whatever is written here, and so does its data.
 */
#include <errno.h>

#include "alloc/bucket.h"
#include "data/write_internal.h"
#include "format/file_data.h"

struct allocate_op {
	struct data *data;
	const struct data_write_target *file;
	const struct inode *inode;
	unsigned replicas;
	bool is_zeroing; /* data goes as well */
	struct disk_reservation reservation;
	uint64_t *journal_seq;
	struct write_op write; /* how the file is written */
};

/* In how many replicas the sectors of a key are promised or stored to the snapshot @snapshot already. */
static unsigned key_replicas(const struct data *data, struct bkey_ref k, uint32_t snapshot)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct reservation r;
	unsigned replicas = 0;

	if (k.k.p.snapshot != snapshot)
		return 0;
	if (k.k.type == KEY_RESERVATION) {
		reservation_decode(k, &r);
		return r.nr_replicas;
	}
	int nr = k.k.type == KEY_EXTENT ? extent_decode(k, &data->super->kctx, ptrs, NULL, NULL) : 0;
	for (int i = 0; i < nr; i++)
		replicas += !ptrs[i].ptr.is_cached && !compression_is_compressed(ptrs[i].crc.compression);
	return replicas;
}

static bool key_is_promise(const struct data *data, struct bkey_ref k)
{
	return k.k.type == KEY_RESERVATION || key_is_unwritten(data, k);
}

/* For how many copies the places count that an unwritten extent has. */
static unsigned key_durability(const struct data *data, struct bkey_ref k)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	int nr = extent_decode(k, &data->super->kctx, ptrs, NULL, NULL);
	unsigned sum = 0;

	for (int i = 0; i < nr; i++)
		sum += ptr_durability(data->super, &ptrs[i].ptr);
	return sum;
}

/* Is a reservation to be put over this key? */
static bool key_must_go(const struct allocate_op *op, struct bkey_ref k)
{
	if (key_is_promise(op->data, k)) {
		bool is_place = k.k.type == KEY_EXTENT && k.k.p.snapshot == op->file->snapshot;

		return (is_place ? key_durability(op->data, k) : key_replicas(op->data, k, op->file->snapshot)) <
		       op->replicas;
	}
	return op->is_zeroing || span_kind(k.k.type) == SPAN_HOLE;
}

/*
 * The first range in [at, to) that lacks a promise, as far as it goes on: 1 with [*begin, *end), and in *@sectors what
 * it takes, in all replicas; 0: there is none; or an error.
 */
static int lack_next(struct allocate_op *op, uint64_t at, uint64_t to, uint64_t *begin, uint64_t *end,
		     uint64_t *sectors)
{
	struct btree_iter it;
	struct bkey_ref k;
	int found = 1;

	*begin = UINT64_MAX;
	*sectors = 0;
	extents_open(&it, op->data->trees, op->file->inum, op->file->snapshot, at);
	while (at < to) {
		found = found ? btree_iter_peek(&it, &k) : 0;
		if (found < 0)
			break;
		uint64_t start = found ? max(bkey_start_offset(&k.k), at) : to, next = min(start, to);
		unsigned has = 0;

		if (start <= at) { /* not a hole */
			next = min(k.k.p.offset, to);
			has = key_replicas(op->data, k, op->file->snapshot);
			bool is_lacking = key_must_go(op, k);
			btree_iter_advance(&it);
			if (!is_lacking && *begin != UINT64_MAX)
				break;
			if (!is_lacking) {
				at = max(next, at);
				continue;
			}
		}
		*begin = min(*begin, at);
		*sectors += next > at ? (next - at) * (op->replicas - min(has, op->replicas)) : 0;
		at = max(next, at);
	}
	btree_iter_close(&it);
	*end = at;
	return found < 0 ? found : *begin != UINT64_MAX;
}

/* What all of [from, to) lacks. */
static int lack_sum(struct allocate_op *op, uint64_t from, uint64_t to, uint64_t *sectors)
{
	uint64_t begin, end, some;
	int ret;

	*sectors = 0;
	while ((ret = lack_next(op, from, to, &begin, &end, &some)) > 0) {
		*sectors += some;
		from = end;
	}
	return ret;
}

/* What [begin, end) of a key takes, in @replicas copies at most, and gives back when it is overwritten. */
static uint64_t key_space_held(const struct data *data, struct bkey_ref k, uint64_t begin, uint64_t end,
			       uint32_t snapshot, unsigned replicas)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	uint64_t sectors = 0;

	if (k.k.type != KEY_EXTENT || k.k.p.snapshot != snapshot)
		return (end - begin) * min(key_replicas(data, k, snapshot), replicas);
	int nr = extent_decode(k, &data->super->kctx, ptrs, NULL, NULL);
	for (int i = 0; i < nr && replicas; i++) {
		const struct extent_crc *crc = &ptrs[i].crc;

		if (ptrs[i].ptr.is_cached)
			continue;
		/* Each part of what is compressed takes a share, rounded up. */
		uint64_t left = bucket_sectors_of_extent(crc, (uint32_t)(begin - bkey_start_offset(&k.k))) +
				bucket_sectors_of_extent(crc, (uint32_t)(k.k.p.offset - end));
		uint64_t all = bucket_sectors_of_extent(crc, k.k.size);
		sectors += all - min(all, left);
		replicas--;
	}
	return sectors;
}

int write_space_held(struct data *data, const struct data_write_target *file, uint64_t from, uint64_t to,
		     unsigned replicas, uint64_t *sectors)
{
	struct btree_iter it;
	struct bkey_ref k;
	int found;

	*sectors = 0;
	extents_open(&it, data->trees, file->inum, file->snapshot, from);
	while ((found = btree_iter_peek(&it, &k)) > 0 && bkey_start_offset(&k.k) < to) {
		uint64_t begin = max(bkey_start_offset(&k.k), from), end = min(k.k.p.offset, to);

		if (end > begin)
			*sectors += key_space_held(data, k, begin, end, file->snapshot, replicas);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return min(found, 0);
}

/* --- putting them --- */

/* The key of space that has been taken, for [at, at + e->sectors). */
static int unwritten_make(const struct allocate_op *op, uint64_t at, const struct alloc_extent *e, struct key_buf *key)
{
	struct extent_value v = { .ptr_nr = e->ptr_nr };

	key->k = (struct bkey){
		.p = BPOS(op->file->inum, at + e->sectors, op->file->snapshot),
		.size = e->sectors,
		.type = KEY_EXTENT,
	};
	for (unsigned i = 0; i < e->ptr_nr; i++) {
		v.ptrs[i] = (struct extent_ptr_decoded){ .ptr = e->ptrs[i], .crc = extent_crc_of_key(&key->k) };
		v.ptrs[i].ptr.is_unwritten = true;
	}
	return extent_value_store(&v, key);
}

/* For a file that is written in place the promise is the place. */
static int unwritten_put(struct allocate_op *op, uint64_t at, uint64_t end)
{
	struct allocator *allocator = op->data->writer->allocator;
	struct alloc_request req = write_space_request(&op->write);
	int err = 0;

	op->write.reservation = op->reservation;
	while (!err && at < end) {
		uint32_t sectors = (uint32_t)min(end - at, (uint64_t)HOLE_SECTORS_MAX);
		struct alloc_extent e;
		struct key_buf key;
		size_t done;

		err = allocator_extent_get(allocator, &req, sectors, &e);
		if (err)
			break;
		err = unwritten_make(op, at, &e, &key);
		if (!err)
			err = write_put_keys(&op->write, &key, 1, false, &done);
		at += e.sectors;
		allocator_extent_put(allocator, &e);
	}
	op->reservation = op->write.reservation;
	return err;
}

struct promise_args {
	const struct allocate_op *op;
	uint64_t begin, end;
	uint64_t next; /* of the last run: how far it got */
};

static int promise_run(struct btree_txn *txn, void *ctx)
{
	struct promise_args *a = ctx;
	const struct data_write_target *file = a->op->file;
	struct reservation r = { .nr_replicas = (uint8_t)a->op->replicas };
	struct btree_extent_change change = { 0 };
	uint8_t value[RESERVATION_BYTES];
	uint32_t size = (uint32_t)min(a->end - a->begin, (uint64_t)HOLE_SECTORS_MAX);
	struct bkey k = {
		.p = BPOS(file->inum, a->begin + size, file->snapshot),
		.size = size,
		.type = KEY_RESERVATION,
		.value_u64s = RESERVATION_BYTES / 8,
	};
	struct inode inode;

	reservation_encode(&r, value);
	int err = btree_txn_put_extent(txn, BTREE_EXTENTS, &k, value, &change);
	a->next = change.end_offset;
	if (!err)
		err = inode_txn_get(txn, file->inum, file->snapshot, &inode);
	if (err)
		return err;
	inode_sectors_add(&inode, change.sectors);
	return inode_txn_put(txn, &inode);
}

static int promises_put(struct allocate_op *op, uint64_t from, uint64_t to)
{
	struct btree_commit_opts opts = { .name = "fallocate",
					  .watermark = WATERMARK_NORMAL,
					  .journal_seq = op->journal_seq,
					  .reservation = &op->reservation };
	struct promise_args a = { .op = op };
	uint64_t end, sectors;
	int ret;

	while ((ret = lack_next(op, from, to, &a.begin, &end, &sectors)) > 0) {
		a.end = end;
		if (op->write.is_nocow) {
			ret = unwritten_put(op, a.begin, end);
			a.begin = end;
		}
		for (; !(ret < 0) && a.begin < end; a.begin = a.next)
			ret = btree_txn_run(op->data->trees, &opts, promise_run, &a);
		if (ret < 0)
			break;
		from = end;
	}
	return ret;
}

/* What the owners' quotas must promise for [from, to). */
static int range_quota_take(struct allocate_op *op, uint64_t from, uint64_t to)
{
	struct allocator *allocator = op->data->writer->allocator;
	uint64_t added, end;

	if (!allocator_quotas(allocator))
		return 0;
	int err = write_new_sectors(op->data, op->file, from, to, UINT64_MAX, &added, &end);
	return err ? err : allocator_quota_reserve(allocator, &op->reservation, op->inode, op->file->snapshot, added);
}

/* Promise space to all of [from, to) that has none: sectors, whole blocks. -ENOSPC, -EDQUOT: nothing was done. */
static int range_promise(struct allocate_op *op, uint64_t from, uint64_t to)
{
	struct allocator *allocator = op->data->writer->allocator;
	uint64_t sectors = 0;

	if (from >= to)
		return 0;
	int err = lack_sum(op, from, to, &sectors);
	if (!err)
		err = range_quota_take(op, from, to);
	if (!err)
		err = disk_reservation_get(allocator, &op->reservation, sectors, op->replicas, 0);
	if (!err)
		err = promises_put(op, from, to);
	disk_reservation_put(allocator, &op->reservation);
	return err;
}

/* --- for callers --- */

/* The bytes [begin, end) become zeroes: the blocks in them promises, or holes where there is no space for these. */
static int range_zero(struct allocate_op *op, uint64_t size, uint64_t begin, uint64_t end)
{
	uint64_t block = block_bytes_of(op->data);
	uint64_t first = round_up_u64(begin, block), last = end / block * block;

	int err = write_zero_edges(op->data, op->file, size, begin, end, false, op->journal_seq);

	if (err || last <= first)
		return err;
	op->is_zeroing = true;
	err = range_promise(op, first >> SECTOR_SHIFT, last >> SECTOR_SHIFT);
	if (err == -ENOSPC || err == -EDQUOT)
		err = write_hole_make(op->data, op->file, first >> SECTOR_SHIFT, last >> SECTOR_SHIFT, op->journal_seq);
	op->is_zeroing = false;
	return err;
}

static int allocate_locked(struct allocate_op *op, uint64_t begin, uint64_t end, unsigned flags,
			   const struct data_write_times *times)
{
	uint64_t block = block_bytes_of(op->data);
	struct inode inode;
	int err = write_inode_begin(op->data, op->file, begin, &inode);

	if (err)
		return err;
	op->inode = &inode;
	op->write = (struct write_op){
		.data = op->data, .file = op->file, .is_size_kept = true, .journal_seq = op->journal_seq
	};
	err = write_options_take(&op->write, &inode);
	if (err)
		return err;
	/* A promise without a place counts for when all devices are there again; a place can only be where one is. */
	op->replicas = min(op->write.is_nocow ? op->write.replicas_possible : op->write.replicas,
			   (unsigned)RESERVATION_REPLICAS_MAX);
	if (flags & DATA_ALLOCATE_ZERO)
		err = range_zero(op, inode.size, begin, end);
	bool is_zeroed = !err && flags & DATA_ALLOCATE_ZERO;
	if (!err)
		err = range_promise(op, begin / block * block >> SECTOR_SHIFT,
				    round_up_u64(end, block) >> SECTOR_SHIFT);
	/* What is zeroed reads as it should, with space promised or without. */
	if ((err == -ENOSPC || err == -EDQUOT) && is_zeroed)
		err = 0;
	op->inode = NULL;
	if (err)
		return err;
	uint64_t size = flags & DATA_ALLOCATE_KEEP_SIZE ? 0 : end;
	return write_size_raise(op->data, op->file, size, times, op->journal_seq);
}

int data_allocate(struct data *data, const struct data_write_target *file, uint64_t offset_bytes, uint64_t len_bytes,
		  unsigned flags, const struct data_write_times *times, uint64_t *journal_seq)
{
	struct allocate_op op = { .data = data, .file = file, .journal_seq = journal_seq };

	if (!data->writer)
		return -EROFS;
	if (!len_bytes)
		return -EINVAL;
	if (offset_bytes > INT64_MAX || len_bytes > (uint64_t)INT64_MAX - offset_bytes)
		return -EFBIG;
	struct mutex *lock = inode_lock(data, file->inum);
	mutex_lock(lock);
	int err = allocate_locked(&op, offset_bytes, offset_bytes + len_bytes, flags, times);
	mutex_unlock(lock);
	return err;
}
