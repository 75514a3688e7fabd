/*
 * Filling freespace and need_discard of a device from its alloc keys (07 §17.1 step 4). From bucket 0 on, a few keys
 * per transaction; the frontier says how far it got, and the alloc trigger keeps up what lies below (trigger_alloc.c).
 * A crash on the way leaves the flag clear: the next mount starts by removing what is there.
 */
#include <errno.h>
#include <string.h>

#include "alloc/internal.h"

enum { KEYS_PER_TXN = 16 };

struct init_args {
	struct allocator *a;
	unsigned dev;
	uint64_t at; /* buckets below are done */
	uint64_t to; /* out: how far this transaction got */
	struct bpos next;
};

static const struct btree_commit_opts init_opts = { .name = "freespace_init", .watermark = WATERMARK_BTREE };

/* --- removing what an earlier attempt left --- */

/* Some keys of the device, from args->next on. */
static int clear_txn(struct btree_txn *txn, void *ctx, unsigned btree_id)
{
	struct init_args *args = ctx;
	struct bpos keys[KEYS_PER_TXN];
	struct btree_iter it;
	struct bkey_ref k;
	unsigned nr = 0;
	int found = 0, err = 0;

	btree_txn_iter_open(&it, txn, btree_id, BPOS(args->dev, 0, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(args->dev, UINT64_MAX, UINT32_MAX);
	while (nr < KEYS_PER_TXN && (found = btree_iter_peek(&it, &k)) > 0) {
		keys[nr++] = k.k.p;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	for (unsigned i = 0; !err && i < nr; i++)
		err = alloc_put_set(txn, btree_id, keys[i], false);
	args->to = nr;
	return found < 0 ? found : err;
}

static int clear_freespace_txn(struct btree_txn *txn, void *ctx) { return clear_txn(txn, ctx, BTREE_FREESPACE); }
static int clear_need_discard_txn(struct btree_txn *txn, void *ctx) { return clear_txn(txn, ctx, BTREE_NEED_DISCARD); }

static int clear_all(struct init_args *args, btree_txn_fn fn)
{
	int err;

	do
		err = btree_txn_run(args->a->trees, &init_opts, fn, args);
	while (!err && args->to);
	return err;
}

/* --- filling --- */

static int gap_put(struct btree_txn *txn, unsigned dev, uint64_t start, uint64_t end)
{
	int err = 0;

	for (; !err && start < end; start += min(end - start, (uint64_t)UINT32_MAX)) {
		uint64_t size = min(end - start, (uint64_t)UINT32_MAX);
		struct bkey k = { .p = BPOS(dev, start + size, 0), .size = (uint32_t)size, .type = KEY_SET };

		err = btree_txn_put_extent(txn, BTREE_FREESPACE, &k, NULL, NULL);
	}
	return err;
}

/* A key that is there: its entry. */
static int bucket_put(struct btree_txn *txn, unsigned dev, uint64_t bucket, struct bkey_ref k)
{
	struct alloc v;

	if (alloc_decode(k, &v, NULL))
		return -KILN_E_INVALID;
	if (v.data_type == DATA_FREE) {
		uint64_t offset = bucket_freespace_offset(bucket, &v);
		struct bkey set = { .p = BPOS(dev, offset + 1, 0), .size = 1, .type = KEY_SET };

		return btree_txn_put_extent(txn, BTREE_FREESPACE, &set, NULL, NULL);
	}
	return v.data_type == DATA_NEED_DISCARD ? alloc_put_set(txn, BTREE_NEED_DISCARD, BPOS(dev, bucket, 0), true)
						: 0;
}

/* Find the next alloc key of the device at or behind @from. 1 with its copy, 0 none, or an error. */
static int alloc_key_next(struct btree_txn *txn, unsigned dev, uint64_t from, uint64_t end, struct bkey_copy *copy)
{
	struct btree_iter it;
	struct bkey_ref k;

	btree_txn_iter_open(&it, txn, BTREE_ALLOC, BPOS(dev, from, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(dev, end - 1, 0);
	int found = btree_iter_peek(&it, &k);
	if (found > 0) {
		copy->k.k = k.k;
		memcpy(copy->value, k.value, bkey_value_bytes(&k.k));
		copy->k.value = copy->value;
	}
	btree_iter_close(&it);
	return found;
}

static int fill_txn(struct btree_txn *txn, void *ctx)
{
	struct init_args *args = ctx;
	struct alloc_dev *d = &args->a->devs[args->dev];
	struct alloc_txn *t = alloc_txn_of(txn);
	uint64_t at = args->at;
	int err = 0;

	for (unsigned i = 0; !err && i < KEYS_PER_TXN && at < d->bucket_nr; i++) {
		struct bkey_copy copy;
		int found = alloc_key_next(txn, args->dev, at, d->bucket_nr, &copy);

		if (found < 0)
			return found;
		uint64_t bucket = found ? copy.k.k.p.offset : d->bucket_nr;
		err = gap_put(txn, args->dev, at, bucket);
		if (!err && found)
			err = bucket_put(txn, args->dev, bucket, copy.k);
		at = bucket + found;
	}
	args->to = at;
	t->has_frontier = true;
	t->frontier_dev = args->dev;
	t->frontier = at;
	return err;
}

static int init_device(struct allocator *a, unsigned dev)
{
	struct init_args args = { .a = a, .dev = dev };
	struct alloc_dev *d = &a->devs[dev];
	int err = clear_all(&args, clear_freespace_txn);

	if (!err)
		err = clear_all(&args, clear_need_discard_txn);
	for (args.at = d->first_bucket; !err && args.at < d->bucket_nr; args.at = args.to)
		err = btree_txn_run(a->trees, &init_opts, fill_txn, &args);
	/* What the flag promises must be durable before it. */
	if (!err && a->journal)
		err = journal_flush(a->journal);
	if (!err)
		err = super_member_flags_set(a->super, dev, MEMBER_FLAG_FREESPACE_INITIALIZED,
					     MEMBER_FLAG_FREESPACE_INITIALIZED + 1, 1);
	if (!err) {
		atomic_store(&d->frontier, UINT64_MAX);
		atomic_store(&d->cursor, 0);
	}
	return err;
}

int allocator_freespace_init(struct allocator *a)
{
	int err = 0;

	for (unsigned dev = 0; !err && dev < a->dev_nr; dev++)
		if (a->devs[dev].is_member && a->super->members[dev].dev &&
		    atomic_load(&a->devs[dev].frontier) != UINT64_MAX)
			err = init_device(a, dev);
	return err;
}
