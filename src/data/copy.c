/*
 * Copying ranges of files, by sharing what can be shared (06 §13).
 *
 * Whole blocks that lie at the same place in a block on both sides are shared: the extent of the source moves to the
 * reflink btree, with a reference count, and both files get a reflink_p that refers to it. Counts and pads are the
 * triggers' business. Holes become holes, inline data is copied with its key. What is left, the ends of an unaligned
 * range or all of it, is read and written.
 *
 * Extents that become shared get a new index behind all others; below it are holes that nothing fills. The end of the
 * btree is looked for once, then it only grows in memory.
 */
#include <errno.h>
#include <string.h>

#include "data/write_internal.h"
#include "device/device.h"

/* --- indices of shared extents --- */

/* Readers take the lower 56 bits (12 §8.5). */
#define SHARED_INDEX_MAX ((1ull << 56) - 1)

/* The end of the last key of the reflink btree, by bisection: 0 while there is none. */
static int shared_end_find(struct btrees *trees, uint64_t *end)
{
	uint64_t none_above = UINT64_MAX;
	struct btree_iter it;
	struct bkey_ref k;
	int found = 0;

	*end = 0;
	btree_iter_open(&it, trees, BTREE_REFLINK, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(0, UINT64_MAX, UINT32_MAX);
	while (*end < none_above) {
		uint64_t middle = *end + (none_above - *end) / 2;

		btree_iter_seek(&it, BPOS(0, middle + 1, 0));
		found = btree_iter_peek(&it, &k);
		if (found < 0)
			break;
		if (found)
			*end = k.k.p.offset;
		else
			none_above = middle;
	}
	btree_iter_close(&it);
	return min(found, 0);
}

static int shared_index_prepare(struct data *data)
{
	struct data_writer *w = data->writer;
	int err = 0;

	mutex_lock(&w->shared_lock);
	if (!w->has_shared_end) {
		err = shared_end_find(data->trees, &w->shared_end);
		w->has_shared_end = !err;
	}
	mutex_unlock(&w->shared_lock);
	return err;
}

/* A place for @sectors. -EOPNOTSUPP: there is none. */
static int shared_index_take(struct data *data, uint32_t sectors, uint64_t *idx)
{
	struct data_writer *w = data->writer;
	int err = 0;

	mutex_lock(&w->shared_lock);
	*idx = w->shared_end;
	if (w->shared_end > SHARED_INDEX_MAX - sectors)
		err = -EOPNOTSUPP;
	else
		w->shared_end += sectors;
	mutex_unlock(&w->shared_lock);
	return err;
}

int write_share_prepare(struct data *data)
{
	int err = super_feature_set((struct super *)data->super, SB_FEATURE_REFLINK);

	return err ? err : shared_index_prepare(data);
}

/* --- keys --- */

static void reference_make(struct key_buf *b, struct bpos p, uint32_t sectors, uint64_t idx)
{
	b->k = (struct bkey){ .p = p, .size = sectors, .type = KEY_REFLINK_P, .value_u64s = REFLINK_P_BYTES / 8 };
	reflink_p_encode(&(struct reflink_p){ .idx = idx }, b->value);
}

int write_share_key(struct data *data, struct btree_txn *txn, struct key_buf *key, struct share_index *index)
{
	struct key_buf *shared = btree_txn_alloc(txn, sizeof(*shared));
	size_t bytes = bkey_value_bytes(&key->k);
	int err = 0;

	if (!shared)
		return -ENOMEM;
	if (bytes + 8 > sizeof(shared->value))
		return -EOPNOTSUPP;
	/* The transaction may be run again: with another key, perhaps. */
	if (index->sectors < key->k.size) {
		err = shared_index_take(data, key->k.size, &index->idx);
		index->sectors = err ? 0 : key->k.size;
	}
	if (err)
		return err;
	shared->k = (struct bkey){
		.p = BPOS(0, index->idx + key->k.size, 0),
		.size = key->k.size,
		.version = key->k.version,
		.type = KEY_REFLINK_V,
		.value_u64s = (uint8_t)(key->k.value_u64s + 1),
	};
	le64_store(shared->value, 0); /* the triggers of what refers to it count */
	memcpy(shared->value + 8, key->value, bytes);
	err = btree_txn_put(txn, BTREE_REFLINK, &shared->k, shared->value, 0);
	if (err)
		return err;
	struct bversion version = key->k.version;
	reference_make(key, key->k.p, key->k.size, index->idx);
	key->k.version = version;
	return btree_txn_put(txn, BTREE_EXTENTS, &key->k, key->value, 0);
}

/* --- sharing --- */

struct copy_op {
	struct data *data;
	const struct data_write_target *from, *to;
	const struct data_write_times *times;
	uint64_t size; /* what the copy's size becomes, if it is larger than it was */
	uint64_t *journal_seq;
};

struct share_args {
	const struct copy_op *op;
	uint64_t at, end; /* sectors of the source: what is left to share */
	uint64_t to_at;	  /* where @at goes */
	struct share_index index;
	/* of the last run */
	uint64_t next;
	bool is_hole; /* [at, next) has nothing to share */
};

/* Is there nothing at @at of the source? @k: what is next, NULL if nothing is. *@next, @end at most: so far. */
static bool source_is_hole(const struct data *data, const struct bkey_ref *k, uint64_t at, uint64_t end, uint64_t *next)
{
	bool is_gap = !k || bkey_start_offset(&k->k) > at;

	*next = !k ? end : min(is_gap ? bkey_start_offset(&k->k) : k->k.p.offset, end);
	return is_gap || key_is_hole(data, *k);
}

/* The key of the source that covers a->at, into @key. 1; 0: nothing does before a->next; or an error. */
static int source_get(struct btree_txn *txn, struct share_args *a, struct key_buf *key)
{
	struct btree_iter it;
	struct bkey_ref k;

	write_extents_open(&it, txn, a->op->from, a->at);
	int found = btree_iter_peek(&it, &k);
	if (found >= 0)
		a->is_hole = source_is_hole(a->op->data, found ? &k : NULL, a->at, a->end, &a->next);
	if (found > 0)
		key_buf_load(key, k);
	btree_iter_close(&it);
	return found < 0 ? found : !a->is_hole;
}

/* What is to be put into the copy for the key of the source, for the same sectors as yet; the source may change. */
static int key_share(struct btree_txn *txn, struct share_args *a, struct key_buf *key)
{
	struct reflink_p p;

	switch (key->k.type) {
	case KEY_INLINE_DATA: return 0;
	case KEY_EXTENT: return write_share_key(a->op->data, txn, key, &a->index);
	case KEY_REFLINK_P:
		if (reflink_p_decode(key_buf_ref(key), &p) || p.is_error)
			return -EIO;
		reference_make(key, key->k.p, key->k.size, p.idx);
		return 0;
	default: return -EIO;
	}
}

static int share_run(struct btree_txn *txn, void *ctx)
{
	struct share_args *a = ctx;
	const struct key_context *kctx = &a->op->data->super->kctx;
	const struct data_write_target *to = a->op->to;
	struct key_buf *key = btree_txn_alloc(txn, sizeof(*key));
	struct btree_extent_change change = { 0 };
	struct inode inode;

	if (!key)
		return -ENOMEM;
	int ret = source_get(txn, a, key);
	if (ret <= 0)
		return ret;
	int err = key_share(txn, a, key);
	if (err)
		return err;
	key_cut_back(key, a->next, kctx);
	key_cut_front(key, a->at, kctx);
	key->k.p = BPOS(to->inum, a->to_at + key->k.size, to->snapshot);
	key->k.version = (struct bversion){ 0 };
	err = btree_txn_put_extent(txn, BTREE_EXTENTS, &key->k, key->value, &change);
	a->next = a->at + (change.end_offset - a->to_at);
	if (!err)
		err = inode_txn_get(txn, to->inum, to->snapshot, &inode);
	if (err)
		return err;
	inode_sectors_add(&inode, change.sectors);
	inode.size = max(inode.size, min(change.end_offset << SECTOR_SHIFT, a->op->size));
	return inode_txn_put(txn, &inode);
}

/*
 * What is shared takes no space, but counts for who owns the copy: where the source has something, and the copy has
 * nothing yet. Where it's the other way round the copy gives back what it has; so *@most, from the front on, is what it
 * has more than before at any time.
 */
static int share_sectors_most(const struct copy_op *op, uint64_t at, uint64_t end, uint64_t to_at, uint64_t *most)
{
	struct btree_iter it;
	struct bkey_ref k;
	int64_t more = 0;
	int ret = 0;

	*most = 0;
	extents_open(&it, op->data->trees, op->from->inum, op->from->snapshot, at);
	while (at < end && (ret = btree_iter_peek(&it, &k)) >= 0) {
		uint64_t next, added, unused;
		bool is_hole = source_is_hole(op->data, ret ? &k : NULL, at, end, &next);

		ret = write_new_sectors(op->data, op->to, to_at, to_at + (next - at), UINT64_MAX, &added, &unused);
		if (ret)
			break;
		more += (int64_t)added - (is_hole ? (int64_t)(next - at) : 0);
		*most = max(*most, (uint64_t)max(more, (int64_t)0));
		to_at += next - at;
		at = next;
		btree_iter_seek(&it, pos_of_sector(op->from->inum, at));
	}
	btree_iter_close(&it);
	return min(ret, 0);
}

static int share_quota_take(const struct copy_op *op, const struct inode *to, uint64_t at, uint64_t end, uint64_t to_at,
			    struct disk_reservation *reservation)
{
	struct allocator *allocator = op->data->writer->allocator;
	uint64_t most;

	if (!allocator_quotas(allocator))
		return 0;
	int err = share_sectors_most(op, at, end, to_at, &most);
	return err ? err : allocator_quota_reserve(allocator, reservation, to, op->to->snapshot, most);
}

/* Share the sectors [at, end) of the source, whole blocks. *@done: how far it got. */
static int range_share(const struct copy_op *op, const struct inode *to, uint64_t at, uint64_t end, uint64_t to_at,
		       uint64_t *done)
{
	struct disk_reservation reservation = { 0 };
	struct btree_commit_opts opts = { .name = "share_data",
					  .watermark = WATERMARK_NORMAL,
					  .journal_seq = op->journal_seq,
					  .reservation = &reservation };
	struct share_args a = { .op = op, .at = at, .end = end, .to_at = to_at };
	int err = write_share_prepare(op->data);

	if (!err)
		err = share_quota_take(op, to, at, end, to_at, &reservation);

	while (!err && a.at < end) {
		err = btree_txn_run(op->data->trees, &opts, share_run, &a);
		if (!err && a.is_hole)
			err = write_hole_make(op->data, op->to, a.to_at, a.to_at + (a.next - a.at), op->journal_seq);
		if (err)
			break;
		a.to_at += a.next - a.at;
		a.at = a.next;
		a.index = (struct share_index){ 0 };
	}
	disk_reservation_put(op->data->writer->allocator, &reservation);
	*done = a.at;
	return err;
}

/* --- copying --- */

/*
 * Up to @len bytes of data, through memory. What they are written with is taken together with what they are read into:
 * who holds one mustn't wait for the other.
 */
static ssize_t bytes_copy(const struct copy_op *op, const struct data_file *from, uint64_t at, size_t len,
			  uint64_t to_at)
{
	size_t chunk = write_memory_bytes(op->data, len);
	struct pool_buffer memory[1 + WRITE_BUFFERS];
	bool is_damaged = false;
	int err = pool_take(&op->data->writes, (size_t[]){ len, chunk, chunk }, memory, ARRAY_NR(memory), true);

	if (err)
		return err;
	ssize_t n = data_read(op->data, from, at, memory->data, len, data_damage_note, &is_damaged);
	if (n <= 0 || is_damaged)
		n = n < 0 ? n : -EIO;
	else
		n = write_locked(op->data, op->to, to_at, memory->data, (size_t)n, false, memory + 1, op->journal_seq);
	pool_give(&op->data->writes, memory, ARRAY_NR(memory));
	return n;
}

/* One piece of [at, end) of the source: a hole, or data. */
static int piece_copy(const struct copy_op *op, uint64_t size, uint64_t at, uint64_t end, uint64_t to_at,
		      uint64_t *done)
{
	struct data_file from = { .inum = op->from->inum, .snapshot = op->from->snapshot, .size_bytes = size };
	uint64_t data_at;
	int err = data_seek(op->data, &from, at, true, &data_at);

	if (err == -ENXIO)
		data_at = end;
	else if (err)
		return err;
	if (data_at > at) {
		data_at = min(data_at, end);
		err = write_punch(op->data, op->to, to_at, to_at + (data_at - at), NULL, op->journal_seq);
		*done = err ? at : data_at;
		return err;
	}
	ssize_t n = bytes_copy(op, &from, at, (size_t)min(end - at, (uint64_t)CHUNK_BYTES), to_at);
	*done = at + (uint64_t)max(n, (ssize_t)0);
	return (int)min(n, (ssize_t)0);
}

/* Copy the bytes [at, end), which are within the source's @size. *@done: how far it got. */
static int range_copy(const struct copy_op *op, uint64_t size, uint64_t at, uint64_t end, uint64_t to_at,
		      uint64_t *done)
{
	int err = 0;

	*done = at;
	while (!err && *done < end)
		err = piece_copy(op, size, *done, end, to_at + (*done - at), done);
	return err;
}

/* --- for callers --- */

/* Which part of [at, end) of the source can be shared, if any. */
static void shareable_range(const struct copy_op *op, const struct inode *from, const struct inode *to, uint64_t at,
			    uint64_t end, uint64_t to_at, uint64_t *first, uint64_t *last)
{
	uint64_t block = block_bytes_of(op->data);
	/* The last block of a file may be shared with what is behind its end, if it becomes the last there, too. */
	bool has_tail = end == from->size && to_at + (end - at) >= to->size;

	*first = round_up_u64(at, block);
	*last = has_tail ? round_up_u64(end, block) : end / block * block;
	if (at % block != to_at % block || *first >= *last)
		*first = *last = end;
}

static int copy_locked(const struct copy_op *op, const struct inode *from, const struct inode *to, uint64_t at,
		       uint64_t end, uint64_t to_at, unsigned flags, uint64_t *done)
{
	uint64_t first, last, shared = 0;
	int err = 0;

	shareable_range(op, from, to, at, end, to_at, &first, &last);
	if (flags & DATA_COPY_SHARE_ONLY && (first != at || last < end))
		return -EINVAL;
	*done = at;
	if (at < first)
		err = range_copy(op, from->size, at, min(first, end), to_at, done);
	if (!err && *done == first && first < last) {
		err = range_share(op, to, first >> SECTOR_SHIFT, last >> SECTOR_SHIFT,
				  (to_at + (first - at)) >> SECTOR_SHIFT, &shared);
		*done = min(shared << SECTOR_SHIFT, end);
		/* What the format can't share can be copied. */
		if (err == -EOPNOTSUPP && !(flags & DATA_COPY_SHARE_ONLY))
			err = 0;
	}
	if (!err && *done < end)
		err = range_copy(op, from->size, *done, end, to_at + (*done - at), done);
	return err;
}

static void inode_lock_both(struct data *data, uint64_t a, uint64_t b, bool is_locking)
{
	struct mutex *first = inode_lock(data, a), *second = inode_lock(data, b);

	if (first > second) {
		struct mutex *other = first;

		first = second;
		second = other;
	}
	if (!is_locking && first != second)
		mutex_unlock(second);
	(is_locking ? mutex_lock : mutex_unlock)(first);
	if (is_locking && first != second)
		mutex_lock(second);
}

static ssize_t copy_run(struct copy_op *op, uint64_t at, uint64_t to_at, uint64_t len, unsigned flags)
{
	struct inode from, to;
	uint64_t done = at;
	int err = write_ops_finish(op->data, op->from->inum, op->from->snapshot);

	if (!err)
		err = write_inode_read(op->data, op->from, &from);
	if (!err)
		err = write_inode_begin(op->data, op->to, to_at, &to);
	if (err)
		return err;
	if (flags & DATA_COPY_SHARE_ONLY && (at > from.size || len > from.size - at))
		return -EINVAL;
	if (at >= from.size)
		return 0;
	len = min(len, from.size - at);
	op->size = to_at + len;
	err = copy_locked(op, &from, &to, at, at + len, to_at, flags, &done);
	if (done == at)
		return err;
	/* A hole at the end made no size of its own. */
	int size_err = write_size_raise(op->data, op->to, to_at + (done - at), op->times, op->journal_seq);
	return size_err ? size_err : (ssize_t)(done - at);
}

ssize_t data_copy_range(struct data *data, const struct data_write_target *from, uint64_t from_offset,
			const struct data_write_target *to, uint64_t to_offset, uint64_t len_bytes, unsigned flags,
			const struct data_write_times *times, uint64_t *journal_seq)
{
	struct copy_op op = { .data = data, .from = from, .to = to, .times = times, .journal_seq = journal_seq };

	if (!data->writer)
		return -EROFS;
	if (from_offset > INT64_MAX || to_offset > INT64_MAX || len_bytes > (uint64_t)INT64_MAX - to_offset)
		return -EFBIG;
	len_bytes = min(len_bytes, (uint64_t)INT64_MAX - from_offset);
	if (from->inum == to->inum && from->snapshot == to->snapshot && from_offset < to_offset + len_bytes &&
	    to_offset < from_offset + len_bytes)
		return -EINVAL;
	if (!len_bytes)
		return 0;
	inode_lock_both(data, from->inum, to->inum, true);
	ssize_t ret = copy_run(&op, from_offset, to_offset, len_bytes, flags);
	inode_lock_both(data, from->inum, to->inum, false);
	return ret;
}
