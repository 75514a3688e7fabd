/*
 * Logged operations (04 §8): changes of a file that take many transactions. A key says what is being done and how far
 * it is; the first transaction puts it, and the last deletes it.
 *
 * One that an error stops on the way, like a lack of space, is remembered: whoever changes the file next finishes it
 * before anything else, and so does who closes the filesystem. After a crash recovery goes on with all there are.
 *
 * What is remembered may be over: a file that is deleted takes its operations with it, and their numbers are used
 * again. So the key is looked at, and where it is gone or another file's there is nothing to do. A file is known by its
 * snapshot here: who takes one has to finish what is left first.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mutant.h"
#include "data/write_internal.h"

/* --- their keys --- */

int write_op_nr_new(struct btree_txn *txn, uint64_t *nr)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	*nr = 1;
	btree_txn_iter_open(&it, txn, BTREE_LOGGED_OPS, BPOS(0, 0, 0), 0, 0);
	it.end = BPOS(0, UINT64_MAX, 0);
	while ((ret = btree_iter_peek(&it, &k)) > 0) {
		*nr = k.k.p.offset + 1;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return ret;
}

int write_op_delete(struct btree_txn *txn, uint64_t nr)
{
	struct bkey k = { .p = BPOS(0, nr, 0), .type = KEY_DELETED };

	return is_mutant(MUTANT_OP_END) ? 0 : btree_txn_put(txn, BTREE_LOGGED_OPS, &k, NULL, 0);
}

/* 0: it is no operation that is known here. */
static uint64_t op_inum(struct bkey_ref k)
{
	uint32_t subvol;
	uint64_t inum;

	return logged_op_file(k, &subvol, &inum) ? inum : 0;
}

static int op_resume(struct data *data, uint64_t nr, uint32_t snapshot, struct bkey_ref k)
{
	struct logged_op_truncate truncate;
	struct logged_op_finsert finsert;

	switch (k.k.type) {
	case KEY_LOGGED_OP_TRUNCATE:
		logged_op_truncate_decode(k, &truncate);
		return write_resume_truncate(data, nr, snapshot, &truncate);
	case KEY_LOGGED_OP_FINSERT:
		logged_op_finsert_decode(k, &finsert);
		return write_resume_shift(data, nr, snapshot, &finsert);
	default: return 0; /* of newer versions: theirs to finish */
	}
}

/* --- those that are left; their files are locked --- */

struct write_op_left *write_op_left_new(uint64_t inum, uint32_t snapshot)
{
	struct write_op_left *left = calloc(1, sizeof(*left));

	if (left)
		*left = (struct write_op_left){ .inum = inum, .snapshot = snapshot };
	return left;
}

static void left_add(struct data_writer *w, struct write_op_left *left, uint64_t nr)
{
	left->nr = nr;
	mutex_lock(&w->ops_lock);
	left->next = w->ops_left;
	__atomic_store_n(&w->ops_left, left, __ATOMIC_RELAXED);
	mutex_unlock(&w->ops_lock);
}

static void left_remove(struct data_writer *w, struct write_op_left *left)
{
	struct write_op_left **at = &w->ops_left;

	mutex_lock(&w->ops_lock);
	while (*at != left)
		at = &(*at)->next;
	__atomic_store_n(at, left->next, __ATOMIC_RELAXED);
	mutex_unlock(&w->ops_lock);
	free(left);
}

static struct write_op_left *left_find(struct data_writer *w, uint64_t inum, uint32_t snapshot)
{
	if (!__atomic_load_n(&w->ops_left, __ATOMIC_RELAXED))
		return NULL;
	mutex_lock(&w->ops_lock);
	struct write_op_left *left = w->ops_left;
	while (left && (left->inum != inum || left->snapshot != snapshot))
		left = left->next;
	mutex_unlock(&w->ops_lock);
	return left;
}

void write_op_end(struct data *data, struct write_op_left *left, uint64_t nr, int err, const char *what)
{
	char position[64];

	if (!err) {
		free(left);
		return;
	}
	snprintf(position, sizeof(position), "inode %llu", (unsigned long long)left->inum);
	/* A lack of space is no damage; and that nothing at all is written any more has been told. */
	if (err != -EROFS && err != -ENOSPC)
		report_emit(data->reports,
			    &(struct report){
				    .level = REPORT_DAMAGE,
				    .err = err,
				    .structure = "file",
				    .position = position,
				    .expected = what,
				    .found = error_name(err),
				    .advice = "It is tried again before the file is changed next, and when the "
					      "filesystem is opened anew.",
			    });
	left_add(data->writer, left, nr);
}

static int left_finish(struct data *data, const struct write_op_left *left)
{
	struct bkey_copy key;
	int found = btree_lookup(data->trees, BTREE_LOGGED_OPS, BPOS(0, left->nr, 0), &key);

	if (found <= 0)
		return found;
	return op_inum(key.k) == left->inum ? op_resume(data, left->nr, left->snapshot, key.k) : 0;
}

int write_ops_finish(struct data *data, uint64_t inum, uint32_t snapshot)
{
	struct write_op_left *left;
	int err = 0;

	while (!err && (left = left_find(data->writer, inum, snapshot))) {
		err = left_finish(data, left);
		if (!err)
			left_remove(data->writer, left);
	}
	return err;
}

void write_ops_forget(struct data_writer *w)
{
	while (w->ops_left)
		left_remove(w, w->ops_left);
}

/* --- for callers --- */

int data_txn_drop_op(struct data *data, struct btree_txn *txn, uint64_t inum, uint32_t snapshot)
{
	struct write_op_left *left = data->writer ? left_find(data->writer, inum, snapshot) : NULL;
	struct bkey_ref k;
	int ret = left ? btree_txn_get(txn, BTREE_LOGGED_OPS, BPOS(0, left->nr, 0), 0, &k) : 0;

	return ret > 0 && op_inum(k) == inum ? write_op_delete(txn, left->nr) : min(ret, 0);
}

int data_finish_ops(struct data *data)
{
	struct data_writer *w = data->writer;
	int err = 0;

	while (!err && w->ops_left) {
		uint64_t inum = w->ops_left->inum;
		struct mutex *lock = inode_lock(data, inum);

		mutex_lock(lock);
		err = write_ops_finish(data, inum, w->ops_left->snapshot);
		mutex_unlock(lock);
	}
	return err;
}

int data_resume_op(struct data *data, uint64_t nr, uint32_t snapshot, struct bkey_ref k)
{
	struct write_op_left *left = write_op_left_new(op_inum(k), snapshot);
	int err = left ? op_resume(data, nr, snapshot, k) : -ENOMEM;

	if (err == -ENOSPC) {
		left_add(data->writer, left, nr);
		return 0;
	}
	free(left);
	return err;
}
