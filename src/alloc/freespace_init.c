/*
 * Filling freespace and need_discard of a device from its alloc keys (07 §17.1 step 4), while others change these.
 *
 * While it is filled, triggers leave both alone and mark the buckets whose entries they should have changed. Then they
 * begin to keep them up; when no transaction is under way any more that may not know yet, the marked buckets are looked
 * at one by one, and put right. Until then what is there of marked buckets may be wrong, and nobody takes offence.
 *
 * A crash on the way leaves the member's flag clear: the next mount starts by removing what is there.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/internal.h"
#include "base/clock.h"

enum { KEYS_PER_TXN = 16, GENBITS_NR = 16, POLL_NS = 1000000 };

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
	unsigned key_nr = btree_txn_batch(txn, KEYS_PER_TXN);
	uint64_t at = args->at;
	int err = 0;

	for (unsigned i = 0; !err && i < key_nr && at < d->bucket_nr; i++) {
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
	return err;
}

/* --- what others changed meanwhile --- */

int freespace_init_prepare(struct allocator *a)
{
	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		struct alloc_dev *d = &a->devs[dev];

		if (!d->is_member || atomic_load(&d->index) == ALLOC_INDEX_READY)
			continue;
		d->unindexed = calloc(div_round_up_u64(d->bucket_nr, 8), sizeof(*d->unindexed));
		if (!d->unindexed)
			return -ENOMEM;
	}
	return 0;
}

static void bucket_mark(struct alloc_dev *d, uint64_t bucket)
{
	atomic_fetch_or(&d->unindexed[bucket / 8], (uint_fast8_t)(1u << bucket % 8));
}

static void bucket_unmark(struct alloc_dev *d, uint64_t bucket)
{
	atomic_fetch_and(&d->unindexed[bucket / 8], (uint_fast8_t) ~(1u << bucket % 8));
}

bool freespace_init_is_marked(struct allocator *a, unsigned dev, uint64_t bucket)
{
	const struct alloc_dev *d = &a->devs[dev];

	return d->unindexed && atomic_load(&d->unindexed[bucket / 8]) >> bucket % 8 & 1;
}

bool freespace_init_enter(struct allocator *a, struct btree_txn *txn, unsigned dev, uint64_t bucket)
{
	struct alloc_dev *d = &a->devs[dev];
	struct alloc_txn *t = alloc_txn_of(txn);

	if (!d->unindexed)
		return true;
	/* Counted before it looks: who isn't counted sees what was set before. */
	bool was_counted = t->unindexed_devs >> dev & 1;
	if (!was_counted)
		atomic_fetch_add(&d->unindexed_txns, 1);
	if (atomic_load(&d->index) != ALLOC_INDEX_NONE) {
		if (!was_counted)
			atomic_fetch_sub(&d->unindexed_txns, 1);
		return true;
	}
	t->unindexed_devs |= 1ull << dev;
	bucket_mark(d, bucket);
	return false;
}

void freespace_init_leave(struct allocator *a, struct alloc_txn *t)
{
	for (unsigned dev = 0; t->unindexed_devs && dev < a->dev_nr; dev++)
		if (t->unindexed_devs >> dev & 1)
			atomic_fetch_sub(&a->devs[dev].unindexed_txns, 1);
	t->unindexed_devs = 0;
}

/* Put one bucket's entries right: args->at. */
static int sync_txn(struct btree_txn *txn, void *ctx)
{
	const struct init_args *args = ctx;
	struct bpos pos = BPOS(args->dev, args->at, 0);
	struct bkey_ref k;
	struct alloc v;
	int err = alloc_key_get(args->a, txn, args->dev, args->at, &v);

	for (uint64_t bits = 0; !err && bits < GENBITS_NR; bits++) {
		uint64_t offset = args->at | bits << BUCKET_GENBITS_SHIFT;
		bool is_wanted = v.data_type == DATA_FREE && offset == bucket_freespace_offset(args->at, &v);
		int covered = freespace_is_covered(txn, args->dev, offset);

		err = min(covered, 0);
		if (!err && covered != is_wanted)
			err = freespace_put(txn, args->dev, offset, is_wanted);
	}
	if (err)
		return err;
	bool is_wanted = v.data_type == DATA_NEED_DISCARD;
	int found = btree_txn_get(txn, BTREE_NEED_DISCARD, pos, 0, &k);
	if (found < 0 || found == is_wanted)
		return min(found, 0);
	return alloc_put_set(txn, BTREE_NEED_DISCARD, pos, is_wanted);
}

static int sync_marked(struct init_args *args)
{
	struct alloc_dev *d = &args->a->devs[args->dev];
	int err = 0;

	atomic_store(&d->index, ALLOC_INDEX_SYNCING);
	while (atomic_load(&d->unindexed_txns))
		sleep_ns(POLL_NS);
	for (args->at = 0; !err && args->at < d->bucket_nr; args->at++) {
		if (!freespace_init_is_marked(args->a, args->dev, args->at))
			continue;
		err = btree_txn_run(args->a->trees, &init_opts, sync_txn, args);
		if (!err)
			bucket_unmark(d, args->at);
	}
	return err;
}

/* --- all of it --- */

static int init_device(struct allocator *a, unsigned dev)
{
	struct init_args args = { .a = a, .dev = dev };
	struct alloc_dev *d = &a->devs[dev];
	int err = clear_all(&args, clear_freespace_txn);

	if (!err)
		err = clear_all(&args, clear_need_discard_txn);
	for (args.at = d->first_bucket; !err && args.at < d->bucket_nr; args.at = args.to)
		err = btree_txn_run(a->trees, &init_opts, fill_txn, &args);
	if (!err)
		err = sync_marked(&args);
	/* What the flag promises must be durable before it. */
	if (!err && a->journal)
		err = journal_flush(a->journal);
	if (!err)
		err = super_member_flags_set(a->super, dev, MEMBER_FLAG_FREESPACE_INITIALIZED,
					     MEMBER_FLAG_FREESPACE_INITIALIZED + 1, 1);
	if (!err) {
		atomic_store(&d->cursor, 0);
		atomic_store(&d->index, ALLOC_INDEX_READY);
		discards_kick(a);
	}
	return err;
}

int allocator_freespace_init(struct allocator *a)
{
	int err = 0;

	for (unsigned dev = 0; !err && dev < a->dev_nr; dev++)
		if (a->devs[dev].is_member && a->super->members[dev].dev &&
		    atomic_load(&a->devs[dev].index) != ALLOC_INDEX_READY)
			err = init_device(a, dev);
	return err;
}
