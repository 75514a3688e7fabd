/*
 * The extents of an inode that is being deleted (04 §6). Declared in write.h.
 *
 * As many transactions as it takes; each makes a hole over the first extents that are left and takes their sectors off
 * the inode, so that what is counted is right wherever it is cut short.
 */
#include <errno.h>

#include "data/internal.h"
#include "data/write.h"

/* Most that a key can say, in whole blocks of any size. */
#define HOLE_SECTORS_MAX (UINT32_MAX & ~0xffffu)

struct delete_args {
	const struct data_write_target *file;
	uint64_t from; /* no extents before it */
	/* of the last run */
	uint64_t next;
	bool is_done;
};

/* Where the first extent begins that ends behind @from: 1, 0 when there is none, or an error. */
static int first_extent(struct btree_txn *txn, const struct data_write_target *file, uint64_t from, uint64_t *begin)
{
	struct btree_iter it;
	struct bkey_ref k;

	btree_txn_iter_open(&it, txn, BTREE_EXTENTS, BPOS(file->inum, from + 1, file->snapshot), 0, file->snapshot);
	it.end = BPOS(file->inum, UINT64_MAX, UINT32_MAX);
	int ret = btree_iter_peek(&it, &k);
	if (ret > 0)
		*begin = bkey_start_offset(&k.k);
	btree_iter_close(&it);
	return ret;
}

static int delete_run(struct btree_txn *txn, void *ctx)
{
	struct delete_args *a = ctx;
	struct btree_extent_change change = { 0 };
	struct inode inode;
	uint64_t begin;
	int ret = first_extent(txn, a->file, a->from, &begin);

	a->is_done = !ret;
	if (ret <= 0)
		return ret;
	uint32_t sectors = (uint32_t)min(UINT64_MAX - begin, (uint64_t)HOLE_SECTORS_MAX);
	struct bkey hole = { .p = BPOS(a->file->inum, begin + sectors, a->file->snapshot),
			     .size = sectors,
			     .type = KEY_DELETED };
	ret = btree_txn_put_extent(txn, BTREE_EXTENTS, &hole, NULL, &change);
	if (!ret)
		ret = inode_txn_get(txn, a->file->inum, a->file->snapshot, &inode);
	if (ret)
		return ret;
	a->next = change.end_offset;
	inode.sectors += (uint64_t)change.sectors;
	return inode_txn_put(txn, &inode);
}

int data_delete_extents(struct data *data, const struct data_write_target *file, uint64_t *journal_seq)
{
	struct btree_commit_opts opts = { .name = "delete_extents",
					  .watermark = WATERMARK_NORMAL,
					  .journal_seq = journal_seq };
	struct delete_args a = { .file = file };
	int err;

	do {
		err = btree_txn_run(data->trees, &opts, delete_run, &a);
		a.from = a.next;
	} while (!err && !a.is_done);
	return err;
}
