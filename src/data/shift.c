/*
 * Inserting a range into a file, and taking one out: what is behind it moves, key by key (06 §14.3).
 *
 * The logged operation says what is being done and how far it is. Each step is one transaction that moves one extent
 * and says so in the operation, so whoever finds the operation goes on from there. From the front to the end when
 * moving down, from the end to the front when moving up: so an extent never moves over one that hasn't moved yet.
 *
 *	insert:    start: size += len, operation put      steps      finish: operation deleted
 *	collapse:  start: operation put    hole    steps             finish: size -= len, operation deleted
 *
 * An extent that is inherited from an ancestor snapshot stays there, too: it becomes a shared one (copy.c), and a
 * reference to it is what moves. Two keys of extents never point at the same space.
 */
#include <errno.h>
#include <stdlib.h>

#include "data/write_internal.h"

struct shift_op {
	struct data *data;
	const struct data_write_target *file;
	const struct data_write_times *times;
	uint64_t *journal_seq;
	uint64_t nr;
	struct logged_op_finsert op;
	struct rebalance_aim aim; /* what the file's data is to be in the end */
	bool can_share;
};

static bool is_insert(const struct shift_op *s) { return (int64_t)(s->op.dst_sector - s->op.src_sector) > 0; }

static uint64_t shift_sectors(const struct shift_op *s)
{
	uint64_t up = s->op.dst_sector - s->op.src_sector;

	return is_insert(s) ? up : -up;
}

static int shift_txn(struct shift_op *s, const char *name, btree_txn_fn fn, void *args)
{
	struct btree_commit_opts opts = { .name = name, .watermark = WATERMARK_NORMAL, .journal_seq = s->journal_seq };

	return btree_txn_run(s->data->trees, &opts, fn, args);
}

/* --- which extent is next --- */

/* The first extent that ends above @at, if it begins before @before: 1 with its range, 0, or an error. */
static int extent_after(struct btree_iter *it, uint64_t inum, uint64_t at, uint64_t before, uint64_t *begin,
			uint64_t *end)
{
	struct bkey_ref k;

	if (at == UINT64_MAX)
		return 0;
	btree_iter_seek(it, pos_of_sector(inum, at));
	int found = btree_iter_peek(it, &k);
	if (found <= 0 || bkey_start_offset(&k.k) >= before)
		return min(found, 0);
	*begin = bkey_start_offset(&k.k);
	*end = k.k.p.offset;
	return 1;
}

/*
 * The last extent that begins before @before and ends above @above: 1 with its range, 0, or an error. Iterators go
 * forward only; so it is searched for by bisection, from the end in steps that double, as it is usually near.
 */
static int extent_before(struct btree_iter *it, uint64_t inum, uint64_t above, uint64_t before, uint64_t *begin,
			 uint64_t *end)
{
	uint64_t low = above, high = before; /* none ends above high; the last one found ends at low */
	int found = extent_after(it, inum, low, before, begin, end);

	if (found <= 0)
		return found;
	low = *end;
	for (uint64_t step = 1; low < high && step && step < before - low; step *= 2) {
		found = extent_after(it, inum, before - step, before, begin, end);
		if (found < 0)
			return found;
		if (found) {
			low = *end;
			break;
		}
		high = before - step;
	}
	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		found = extent_after(it, inum, middle, before, begin, end);
		if (found < 0)
			return found;
		if (found)
			low = *end;
		else
			high = middle;
	}
	return 1;
}

static int extent_next(struct shift_op *s, uint64_t *begin, uint64_t *end)
{
	uint64_t inum = s->file->inum, src = s->op.src_sector;
	struct btree_iter it;

	extents_open(&it, s->data->trees, inum, s->file->snapshot, 0);
	int found = is_insert(s) ? extent_before(&it, inum, src, s->op.pos_sector, begin, end)
				 : extent_after(&it, inum, max(s->op.pos_sector, src), UINT64_MAX, begin, end);
	btree_iter_close(&it);
	return found;
}

/* --- a step --- */

struct step_args {
	struct shift_op *s;
	uint64_t end; /* of the extent that is next */
	struct share_index index;
	/* of the last run */
	bool must_share;	     /* and can't yet: nothing was done */
	struct logged_op_finsert op; /* what it is now */
};

static int op_put(struct btree_txn *txn, uint64_t nr, const struct logged_op_finsert *op)
{
	struct bkey k = { .p = BPOS(0, nr, 0),
			  .type = KEY_LOGGED_OP_FINSERT,
			  .value_u64s = LOGGED_OP_FINSERT_BYTES / 8 };
	uint8_t value[LOGGED_OP_FINSERT_BYTES];

	logged_op_finsert_encode(op, value);
	return btree_txn_put(txn, BTREE_LOGGED_OPS, &k, value, 0);
}

/* Move what is in @key by the operation's distance: away where it is, there where it goes. */
static int key_move(struct btree_txn *txn, const struct shift_op *s, struct key_buf *key, int64_t *sectors)
{
	struct btree_extent_change away = { 0 }, there = { 0 };
	struct bkey hole = { .p = BPOS(s->file->inum, key->k.p.offset, s->file->snapshot),
			     .size = key->k.size,
			     .type = KEY_DELETED };
	int err = btree_txn_put_extent(txn, BTREE_EXTENTS, &hole, NULL, &away);

	if (err)
		return err;
	key->k.p.offset += s->op.dst_sector - s->op.src_sector;
	key->k.p.snapshot = s->file->snapshot;
	err = btree_txn_put_extent(txn, BTREE_EXTENTS, &key->k, key->value, &there);
	if (!err && (away.end_offset != hole.p.offset || there.end_offset != key->k.p.offset))
		err = -EUCLEAN; /* extents that overlap */
	*sectors = away.sectors + there.sectors;
	return err;
}

static int sectors_add(struct btree_txn *txn, const struct shift_op *s, int64_t sectors)
{
	struct inode inode;
	int err = sectors ? inode_txn_get(txn, s->file->inum, s->file->snapshot, &inode) : 0;

	if (err || !sectors)
		return err;
	inode_sectors_add(&inode, sectors);
	return inode_txn_put(txn, &inode);
}

/* Options may have changed since it was written: what is put anew says what it lacks of them. */
static int key_refresh(const struct shift_op *s, struct btree_txn *txn, struct key_buf *key)
{
	struct extent_value *v = key->k.type == KEY_EXTENT ? btree_txn_alloc(txn, sizeof(*v)) : NULL;

	if (key->k.type != KEY_EXTENT)
		return 0;
	if (!v)
		return -ENOMEM;
	/* What a newer version wrote goes as it is. */
	if (extent_value_load(v, key_buf_ref(key), &s->data->super->kctx))
		return 0;
	rebalance_refresh(s->data, &s->aim, false, v);
	return extent_value_store(v, key);
}

static int step_run(struct btree_txn *txn, void *ctx)
{
	struct step_args *a = ctx;
	struct shift_op *s = a->s;
	uint64_t src = s->op.src_sector;
	struct key_buf *key = btree_txn_alloc(txn, sizeof(*key));
	int64_t sectors = 0;
	struct bkey_ref k;

	a->op = s->op;
	a->must_share = false;
	if (!key)
		return -ENOMEM;
	int ret = btree_txn_get(txn, BTREE_EXTENTS, BPOS(s->file->inum, a->end, s->file->snapshot), BTREE_GET_VISIBLE,
				&k);
	if (ret <= 0)
		return ret; /* it is cut otherwise by now: looked for again */
	key_buf_load(key, k);
	if (key->k.p.snapshot != s->file->snapshot && key->k.type == KEY_EXTENT) {
		a->must_share = !s->can_share;
		ret = a->must_share ? 0 : write_share_key(s->data, txn, key, &a->index);
		if (ret || a->must_share)
			return ret;
	}
	uint64_t begin = bkey_start_offset(&key->k);
	if (!is_insert(s) && begin < src + shift_sectors(s))
		return -EUCLEAN;
	if (begin < src)
		key_cut_front(key, src, &s->data->super->kctx);
	a->op.state = FINSERT_SHIFT_EXTENTS;
	a->op.pos_sector = is_insert(s) ? max(begin, src) : key->k.p.offset;
	int err = key_refresh(s, txn, key);
	if (!err)
		err = key_move(txn, s, key, &sectors);
	if (!err)
		err = sectors_add(txn, s, sectors);
	return err ? err : op_put(txn, s->nr, &a->op);
}

static int steps_run(struct shift_op *s)
{
	uint64_t begin, end;
	int ret;

	while ((ret = extent_next(s, &begin, &end)) > 0) {
		struct step_args a = { .s = s, .end = end };

		ret = shift_txn(s, "shift_extent", step_run, &a);
		if (!ret && a.must_share) {
			ret = write_share_prepare(s->data);
			s->can_share = !ret;
		}
		if (ret)
			return ret;
		s->op = a.op;
	}
	return ret;
}

/* --- beginning and end --- */

static int size_check(const struct shift_op *s, uint64_t size)
{
	uint64_t begin = s->op.src_sector << SECTOR_SHIFT, len = shift_sectors(s) << SECTOR_SHIFT;

	if (is_insert(s))
		return begin >= size ? -EINVAL : size > (uint64_t)INT64_MAX - len ? -EFBIG : 0;
	return begin + len >= size ? -EINVAL : 0;
}

/* The operation is put, unless it is there; a file that grows grows now. */
static int start_run(struct btree_txn *txn, void *ctx)
{
	struct step_args *a = ctx;
	struct shift_op *s = a->s;
	struct inode inode;
	int err = inode_txn_get(txn, s->file->inum, s->file->snapshot, &inode);

	if (!err)
		err = size_check(s, inode.size);
	if (!err && !s->nr)
		err = write_op_nr_new(txn, &a->end);
	if (err)
		return err;
	a->op = s->op;
	if (is_insert(s)) {
		a->op.state = FINSERT_SHIFT_EXTENTS;
		inode.size += shift_sectors(s) << SECTOR_SHIFT;
		write_times_set(&inode, s->times);
		err = inode_txn_put(txn, &inode);
	}
	return err ? err : op_put(txn, s->nr ? s->nr : a->end, &a->op);
}

static int finish_run(struct btree_txn *txn, void *ctx)
{
	struct shift_op *s = ctx;
	uint64_t len = shift_sectors(s) << SECTOR_SHIFT;
	struct inode inode;
	int err = inode_txn_get(txn, s->file->inum, s->file->snapshot, &inode);

	if (err)
		return err;
	/* Put in any case: fsync of the file waits for the steps, too. */
	if (!is_insert(s))
		inode.size -= min(len, inode.size);
	write_times_set(&inode, s->times);
	err = inode_txn_put(txn, &inode);
	return err ? err : write_op_delete(txn, s->nr);
}

static int aim_take(struct shift_op *s, const struct inode *inode)
{
	s->aim = rebalance_aim_of(s->data, inode);
	return super_option_features_set((struct super *)s->data->super, OPT_BACKGROUND_COMPRESSION,
					 s->aim.wanted.compression);
}

/* All that follows the start, whatever of it has been done. */
static int shift_run(struct shift_op *s)
{
	uint64_t src = s->op.src_sector;
	int err = 0;

	if (s->op.state == FINSERT_START)
		err = write_hole_make(s->data, s->file, src, src + shift_sectors(s), s->journal_seq);
	if (!err)
		err = steps_run(s);
	return err ? err : shift_txn(s, "shift_done", finish_run, s);
}

static int start(struct shift_op *s)
{
	struct step_args a = { .s = s };
	int err = shift_txn(s, "shift", start_run, &a);

	if (!err && !s->nr)
		s->nr = a.end;
	if (!err)
		s->op = a.op;
	return err;
}

static int shift_locked(struct shift_op *s)
{
	struct inode inode;
	int err = write_inode_begin(s->data, s->file, s->op.src_sector << SECTOR_SHIFT, &inode);

	if (!err)
		err = aim_take(s, &inode);
	if (err)
		return err;
	struct write_op_left *left = write_op_left_new(s->file->inum, s->file->snapshot);
	err = left ? start(s) : -ENOMEM;
	if (err) {
		free(left);
		return err;
	}
	err = shift_run(s);
	write_op_end(s->data, left, s->nr, err, is_insert(s) ? "a range to be inserted" : "a range to be taken out");
	return err;
}

/* --- for callers --- */

static int shift(struct data *data, const struct data_write_target *file, uint64_t offset_bytes, uint64_t len_bytes,
		 bool is_inserting, const struct data_write_times *times, uint64_t *journal_seq)
{
	struct shift_op s = { .data = data, .file = file, .times = times, .journal_seq = journal_seq };
	uint64_t block = block_bytes_of(data), offset = offset_bytes >> SECTOR_SHIFT, len = len_bytes >> SECTOR_SHIFT;

	if (!data->writer)
		return -EROFS;
	if (offset_bytes % block || len_bytes % block || !len_bytes)
		return -EINVAL;
	if (offset_bytes > INT64_MAX || len_bytes > (uint64_t)INT64_MAX - offset_bytes)
		return is_inserting ? -EFBIG : -EINVAL;
	s.op = (struct logged_op_finsert){
		.state = FINSERT_START,
		.subvol = file->subvol,
		.inum = file->inum,
		.src_sector = offset,
		.dst_sector = is_inserting ? offset + len : offset - len,
		.pos_sector = is_inserting ? UINT64_MAX : offset,
	};
	struct mutex *lock = inode_lock(data, file->inum);
	mutex_lock(lock);
	int err = shift_locked(&s);
	mutex_unlock(lock);
	return err;
}

int data_insert_range(struct data *data, const struct data_write_target *file, uint64_t offset_bytes,
		      uint64_t len_bytes, const struct data_write_times *times, uint64_t *journal_seq)
{
	return shift(data, file, offset_bytes, len_bytes, true, times, journal_seq);
}

int data_collapse_range(struct data *data, const struct data_write_target *file, uint64_t offset_bytes,
			uint64_t len_bytes, const struct data_write_times *times, uint64_t *journal_seq)
{
	return shift(data, file, offset_bytes, len_bytes, false, times, journal_seq);
}

static int drop_run(struct btree_txn *txn, void *ctx) { return write_op_delete(txn, ((struct shift_op *)ctx)->nr); }

int write_resume_shift(struct data *data, uint64_t op_nr, uint32_t snapshot, const struct logged_op_finsert *op)
{
	struct data_write_target file = { .inum = op->inum, .snapshot = snapshot, .subvol = op->subvol };
	struct shift_op s = { .data = data, .file = &file, .nr = op_nr, .op = *op };
	const uint64_t sectors_max = INT64_MAX >> SECTOR_SHIFT;
	struct inode inode;

	if (op->state >= FINSERT_STATE_NR || op->src_sector > sectors_max || !shift_sectors(&s) ||
	    shift_sectors(&s) > sectors_max || op->src_sector % data->super->kctx.block_sectors ||
	    shift_sectors(&s) % data->super->kctx.block_sectors)
		return -EUCLEAN;
	int err = write_inode_read(data, &file, &inode);
	if (!err)
		err = aim_take(&s, &inode);
	if (!err && op->state == FINSERT_START && is_insert(&s))
		err = start(&s);
	if (!err && s.op.state != FINSERT_FINISH)
		return shift_run(&s);
	/* It is over, or never began: the inode may have been deleted since. */
	return err && err != -ENOENT && err != -EINVAL ? err : shift_txn(&s, "shift_done", drop_run, &s);
}
