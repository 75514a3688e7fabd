/*
 * Putting the keys of a write, and what they mean for the inode (04 §1.7): sectors by what the keys cover anew, size by
 * how far the bytes reach, times with the last. A transaction takes a few keys; one that overlaps much may take less
 * than the whole of a key, and the rest is put by the next.
 */
#include <errno.h>

#include "data/write_internal.h"

void write_extents_open(struct btree_iter *it, struct btree_txn *txn, const struct data_write_target *file,
			uint64_t sector)
{
	btree_txn_iter_open(it, txn, BTREE_EXTENTS, pos_of_sector(file->inum, sector), 0, file->snapshot);
	it->end = BPOS(file->inum, UINT64_MAX, UINT32_MAX);
}

struct put_args {
	struct write_op *op;
	struct key_buf *keys;
	size_t nr;
	bool is_last;
	size_t at;	/* first key that isn't there */
	uint64_t begin; /* and how far that one is */
	/* of the last run */
	size_t next_at;
	uint64_t next_begin;
};

/* What is left of a key that starts at @begin. */
static void key_rest(const struct put_args *a, size_t i, uint64_t begin, struct key_buf *rest)
{
	*rest = a->keys[i];
	if (begin > bkey_start_offset(&rest->k))
		key_cut_front(rest, begin, &a->op->data->super->kctx);
}

void write_times_set(struct inode *inode, const struct data_write_times *times)
{
	if (!times)
		return;
	if (times->is_set) {
		inode->mtime = times->mtime;
		inode->ctime = times->ctime;
	}
	/* Setgid without group execution is a mark for mandatory locks, not a privilege. */
	if (times->clear_setid)
		inode->mode &= (uint16_t) ~(04000 | (inode->mode & 0010 ? 02000 : 0));
}

static int put_run(struct btree_txn *txn, void *ctx)
{
	struct put_args *a = ctx;
	const struct data_write_target *file = a->op->file;
	struct key_buf *rest = btree_txn_alloc(txn, sizeof(*rest));
	unsigned puts_max = btree_txn_batch(txn, PUTS_PER_TXN_MAX);
	int64_t sectors = 0;
	struct inode inode;

	if (!rest)
		return -ENOMEM;
	a->next_at = a->at;
	a->next_begin = a->begin;
	for (unsigned puts = 0; puts < puts_max && a->next_at < a->nr; puts++) {
		struct btree_extent_change change = { 0 };

		key_rest(a, a->next_at, a->next_begin, rest);
		int err = btree_txn_put_extent(txn, BTREE_EXTENTS, &rest->k, rest->value, &change);
		if (err)
			return err;
		sectors += change.sectors;
		a->next_begin = change.end_offset;
		if (change.end_offset < rest->k.p.offset)
			break;
		a->next_at++;
	}
	int err = inode_txn_get(txn, file->inum, file->snapshot, &inode);
	if (err)
		return err;
	inode_sectors_add(&inode, sectors);
	if (!a->op->is_size_kept)
		inode.size = max(inode.size, min(a->next_begin << SECTOR_SHIFT, a->op->end_bytes));
	if (a->is_last && a->next_at == a->nr)
		write_times_set(&inode, a->op->times);
	return inode_txn_put(txn, &inode);
}

int write_put_keys(struct write_op *op, struct key_buf *keys, size_t nr, bool is_last, size_t *done)
{
	struct btree_commit_opts opts = { .name = "data_write",
					  .watermark = WATERMARK_NORMAL,
					  .journal_seq = op->journal_seq,
					  .reservation = &op->reservation };
	struct put_args a = { .op = op, .keys = keys, .nr = nr, .is_last = is_last };
	int err = 0;

	a.begin = nr ? bkey_start_offset(&keys[0].k) : 0;
	while (!err && a.at < a.nr) {
		err = btree_txn_run(op->data->trees, &opts, put_run, &a);
		if (err)
			break;
		a.at = a.next_at;
		a.begin = a.next_begin;
	}
	*done = a.at;
	return err;
}
