/*
 * Counting what is used: the scan of the inodes btree, and which version of an inode counts. See quota.h.
 *
 * The scan goes in batches of whole inode numbers. Each is a transaction that only reads; its sums are added, and the
 * cursor moves, when it is valid and all its nodes are locked.
 */
#include <errno.h>
#include <string.h>

#include "alloc/quota_internal.h"
#include "format/snapshot.h"

/* Small enough that what others change meanwhile seldom makes it run again. */
enum { BATCH_KEYS = 128, VIEWS_KEPT = 8 };

/* --- which version counts --- */

/* A key without snapshots, with its value in @copy or the transaction. 1, 0, or an error. */
static int key_get(struct btrees *trees, struct btree_txn *txn, unsigned btree_id, uint64_t offset, unsigned type,
		   struct bkey_copy *copy)
{
	int ret = txn ? btree_txn_get(txn, btree_id, BPOS(0, offset, 0), 0, &copy->k)
		      : btree_lookup(trees, btree_id, BPOS(0, offset, 0), copy);

	return ret > 0 ? copy->k.k.type == type : ret;
}

int quota_view_get(struct btrees *trees, struct btree_txn *txn, uint32_t snapshot, struct quota_view *view)
{
	struct bkey_copy copy;
	struct snapshot s;
	struct snapshot_tree tree;
	struct subvolume master;

	*view = (struct quota_view){ 0 };
	int ret = key_get(trees, txn, BTREE_SNAPSHOTS, snapshot, KEY_SNAPSHOT, &copy);
	if (ret <= 0)
		return ret;
	snapshot_decode(copy.k, &s);
	view->has_parent = s.parent;
	ret = key_get(trees, txn, BTREE_SNAPSHOT_TREES, s.tree, KEY_SNAPSHOT_TREE, &copy);
	if (ret <= 0)
		return ret;
	snapshot_tree_decode(copy.k, &tree);
	ret = key_get(trees, txn, BTREE_SUBVOLUMES, tree.master_subvol, KEY_SUBVOLUME, &copy);
	if (ret <= 0)
		return ret;
	subvolume_decode(copy.k, &master);
	if (!master.is_snapshot && !master.is_deleted)
		view->master = master.snapshot;
	return 0;
}

/* --- a batch --- */

struct counted {
	struct quota_row *rows[QUOTA_TYPE_NR];
	uint64_t sectors;
};

struct batch {
	struct quotas *q;
	struct btree_txn *txn;
	uint64_t recount_nr;
	uint64_t begin, end; /* inode numbers */
	bool is_partial;
	struct counted *counted; /* of the transaction's memory */
	size_t counted_nr, counted_max;
	/* Snapshots that were seen last. */
	struct {
		uint32_t snapshot;
		struct quota_view view;
	} views[VIEWS_KEPT];
	unsigned view_nr;
};

static int batch_view(struct batch *b, uint32_t snapshot, struct quota_view *view)
{
	for (unsigned i = 0; i < min(b->view_nr, (unsigned)VIEWS_KEPT); i++)
		if (b->views[i].snapshot == snapshot) {
			*view = b->views[i].view;
			return 0;
		}
	int err = quota_view_get(b->q->trees, b->txn, snapshot, view);
	if (!err) {
		b->views[b->view_nr % VIEWS_KEPT].snapshot = snapshot;
		b->views[b->view_nr++ % VIEWS_KEPT].view = *view;
	}
	return err;
}

static int batch_add(struct batch *b, const struct quota_share *share)
{
	if (!share->is_there)
		return 0;
	if (b->counted_nr == b->counted_max) {
		size_t grown_max = b->counted_max ? b->counted_max * 2 : BATCH_KEYS;
		struct counted *grown = btree_txn_alloc(b->txn, grown_max * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		if (b->counted_nr)
			memcpy(grown, b->counted, b->counted_nr * sizeof(*grown));
		b->counted = grown;
		b->counted_max = grown_max;
	}
	struct counted *c = &b->counted[b->counted_nr];
	bool has_memory = true;

	*c = (struct counted){ .sectors = share->sectors };
	mutex_lock(&b->q->lock);
	for (unsigned type = 0; type < QUOTA_TYPE_NR; type++)
		if (quota_is_counted(b->q, type)) {
			c->rows[type] = quota_row_get(b->q, type, share->owner.ids[type]);
			has_memory &= c->rows[type] != NULL;
		}
	mutex_unlock(&b->q->lock);
	b->counted_nr += has_memory;
	return has_memory ? 0 : -ENOMEM;
}

/*
 * A key of an inode number. Each master is looked at once: at the first key that it may matter to, in ascending order
 * of snapshots. @masters: those that this number has had. Most have one key, which the master sees.
 */
struct masters {
	uint32_t ids[VIEWS_KEPT];
	unsigned nr;
};

static int batch_key(struct batch *b, struct bkey_ref k, struct masters *masters)
{
	struct quota_share share;
	struct quota_view view;
	int err = batch_view(b, k.k.p.snapshot, &view);

	if (err || !view.master)
		return err;
	for (unsigned i = 0; i < masters->nr; i++)
		if (masters->ids[i] == view.master)
			return 0;
	/* Numbers aren't shared by trees, so there is one; damage may make it more. */
	if (masters->nr < ARRAY_NR(masters->ids))
		masters->ids[masters->nr++] = view.master;
	if (k.k.p.snapshot != view.master) {
		int ret =
			btree_txn_get(b->txn, BTREE_INODES, BPOS(0, k.k.p.offset, view.master), BTREE_GET_VISIBLE, &k);

		if (ret <= 0)
			return ret;
	}
	quota_share_of(k, &share);
	return batch_add(b, &share);
}

/* Called with all nodes locked that the batch was read from. */
static void batch_committed(void *ctx, uint64_t seq)
{
	struct batch *b = ctx;
	struct quotas *q = b->q;

	(void)seq;
	mutex_lock(&q->lock);
	if (q->recount_nr == b->recount_nr) {
		for (size_t i = 0; i < b->counted_nr; i++)
			for (unsigned type = 0; type < QUOTA_TYPE_NR; type++) {
				struct quota_row *row = b->counted[i].rows[type];

				if (!row)
					continue;
				row->used[QUOTA_SPACE] += b->counted[i].sectors;
				row->used[QUOTA_INODES]++;
			}
		q->is_partial |= b->is_partial;
		q->counted_nr += b->counted_nr;
		q->cursor = b->end;
	}
	mutex_unlock(&q->lock);
}

/*
 * Something can't be read up to @last (an inode number). It is passed over, together with what was found of the number
 * that it begins in.
 */
static void batch_damaged(struct batch *b, uint64_t inum, uint64_t last)
{
	if (b->counted_nr && inum > b->begin) {
		b->end = inum; /* the next batch begins with it */
		return;
	}
	b->counted_nr = 0;
	b->is_partial = true;
	b->end = last == UINT64_MAX ? UINT64_MAX : last + 1;
}

static int batch_run(struct btree_txn *txn, void *ctx)
{
	struct batch *b = ctx;
	struct masters masters = { .nr = 0 };
	uint64_t inum = b->begin;
	unsigned keys = 0;
	struct btree_iter it;
	struct bkey_ref k;
	bool is_damaged;
	int ret;

	b->txn = txn;
	b->counted_nr = b->counted_max = b->view_nr = 0;
	b->is_partial = false;
	b->end = UINT64_MAX;
	btree_txn_iter_open(&it, txn, BTREE_INODES, BPOS(0, b->begin, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	while ((ret = btree_iter_peek(&it, &k)) > 0 && !k.k.p.inode) {
		if (k.k.p.offset != inum) {
			inum = k.k.p.offset;
			masters.nr = 0;
			if (keys >= BATCH_KEYS) {
				b->end = inum;
				break;
			}
		}
		keys++;
		ret = batch_key(b, k, &masters);
		if (ret) {
			it.damage_max = BPOS(0, inum, 0);
			break;
		}
		btree_iter_advance(&it);
	}
	is_damaged = ret < 0 && ret != -ENOMEM && ret != -KILN_E_RESTART;
	if (is_damaged)
		batch_damaged(b, inum, it.damage_max.inode ? UINT64_MAX : it.damage_max.offset);
	btree_iter_close(&it);
	btree_txn_at_commit(txn, batch_committed, b);
	return is_damaged ? 0 : min(ret, 0);
}

static int batch_count(struct quotas *q)
{
	struct btree_commit_opts opts = { .name = "quota_scan", .watermark = WATERMARK_NORMAL };
	struct batch b = { .q = q };

	mutex_lock(&q->lock);
	b.begin = q->cursor;
	b.recount_nr = q->recount_nr;
	mutex_unlock(&q->lock);
	return btree_txn_run(q->trees, &opts, batch_run, &b);
}

/* --- the whole --- */

static int limits_read(struct quotas *q)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_iter_open(&it, q->trees, BTREE_QUOTAS, POS_MIN, 0, 0);
	while ((ret = btree_iter_peek(&it, &k)) > 0) {
		if (k.k.type == KEY_QUOTA && k.k.p.inode < QUOTA_TYPE_NR && k.k.p.offset <= UINT32_MAX) {
			mutex_lock(&q->lock);
			struct quota_row *row = quota_row_get(q, (unsigned)k.k.p.inode, (uint32_t)k.k.p.offset);
			if (row)
				quota_decode(k, &row->limits);
			mutex_unlock(&q->lock);
			if (!row) {
				ret = -ENOMEM;
				break;
			}
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return ret;
}

/* Limits hold from here on. */
static void scan_done(struct quotas *q)
{
	quota_grace_update_all(q);
	waitq_wake_all(&q->changed);
}

static void scan_task(void *arg)
{
	struct quotas *q = arg;

	mutex_lock(&q->lock);
	while (!q->is_stopping && !q->err) {
		if (quotas_are_counted(q)) {
			job_waits(&q->job, "everything is counted");
			waitq_wait(&q->changed, &q->lock);
			continue;
		}
		job_works(&q->job, "no limit holds before all inodes are counted");
		job_progress(&q->job, "inodes", q->counted_nr, q->inodes_nr);
		mutex_unlock(&q->lock);
		int err = batch_count(q);
		mutex_lock(&q->lock);
		q->err = err;
		if (err || quotas_are_counted(q))
			scan_done(q);
	}
	job_stops(&q->job);
	mutex_unlock(&q->lock);
}

const struct job *quotas_job(const struct quotas *q) { return &q->job; }

int quotas_start(struct quotas *q, uint64_t inodes_nr)
{
	int err = limits_read(q);

	q->inodes_nr = inodes_nr;
	return err ? err : task_start(&q->task, "quota", scan_task, q);
}

void quotas_stop(struct quotas *q)
{
	if (!q->task)
		return;
	mutex_lock(&q->lock);
	q->is_stopping = true;
	waitq_wake_all(&q->changed);
	mutex_unlock(&q->lock);
	task_join(q->task);
	q->task = NULL;
}

int quotas_count(struct quotas *q)
{
	int err = limits_read(q);

	while (!err && !quotas_are_counted(q))
		err = batch_count(q);
	mutex_lock(&q->lock);
	scan_done(q);
	mutex_unlock(&q->lock);
	return err;
}

int quotas_wait(struct quotas *q)
{
	mutex_lock(&q->lock);
	while (!quotas_are_counted(q) && !q->err && !q->is_stopping && q->task)
		waitq_wait(&q->changed, &q->lock);
	int err = quotas_are_counted(q) ? 0 : q->err ? q->err : -ESHUTDOWN;
	mutex_unlock(&q->lock);
	return err;
}
