/*
 * What follows from alloc keys (07 §8.7, §8.8): generation, times and type of the bucket itself, and its place in
 * freespace, need_discard, the LRUs and bucket_gens. Called last, with what all pointers of the transaction have made
 * of the key; changes that in place.
 */
#include <errno.h>
#include <string.h>

#include "alloc/internal.h"
#include "format/error_ids.h"

struct bucket_change {
	struct allocator *a;
	struct btree_txn *txn;
	struct alloc_dev *d;
	struct bkey_ref k; /* for reports */
	unsigned dev;
	uint64_t bucket;
	struct alloc old, new;
};

/* --- freespace, need_discard --- */

int freespace_is_covered(struct btree_txn *txn, unsigned dev, uint64_t offset)
{
	struct btree_iter it;
	struct bkey_ref k;

	btree_txn_iter_open(&it, txn, BTREE_FREESPACE, BPOS(dev, offset + 1, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(dev, UINT64_MAX, UINT32_MAX);
	int found = btree_iter_peek(&it, &k);
	btree_iter_close(&it);
	return found > 0 ? bkey_start_offset(&k.k) <= offset : found;
}

int freespace_put(struct btree_txn *txn, unsigned dev, uint64_t offset, bool is_set)
{
	struct bkey k = { .p = BPOS(dev, offset + 1, 0), .size = 1, .type = is_set ? KEY_SET : KEY_DELETED };

	return btree_txn_put_extent(txn, BTREE_FREESPACE, &k, NULL, NULL);
}

/* Put the bucket into the index that is for its type, or take it out. */
static int index_put(struct bucket_change *c, const struct alloc *v, bool is_set)
{
	struct bpos pos = BPOS(c->dev, c->bucket, 0);
	bool is_free = v->data_type == DATA_FREE;
	struct bkey_ref k;

	if (!is_free && v->data_type != DATA_NEED_DISCARD)
		return 0;
	uint64_t offset = bucket_freespace_offset(c->bucket, v);
	int found = is_free ? freespace_is_covered(c->txn, c->dev, offset)
			    : btree_txn_get(c->txn, BTREE_NEED_DISCARD, pos, 0, &k);
	if (found < 0)
		return found;
	if (found != is_set)
		return is_free ? freespace_put(c->txn, c->dev, offset, is_set)
			       : alloc_put_set(c->txn, BTREE_NEED_DISCARD, pos, is_set);
	if (freespace_init_is_marked(c->a, c->dev, c->bucket))
		return 0;
	return alloc_inconsistent(c->a, c->txn, is_free ? ERROR_freespace_key_wrong : ERROR_need_discard_key_wrong,
				  c->k, is_set ? "not to be in the index yet" : "to be in the index", "%s %s",
				  is_set ? "it is in" : "it isn't in", is_free ? "freespace" : "need_discard");
}

static int index_update(struct bucket_change *c)
{
	bool is_moved = c->new.data_type == DATA_FREE &&bucket_freespace_offset(c->bucket, &c->old) !=
			bucket_freespace_offset(c->bucket, &c->new);

	if ((c->old.data_type == c->new.data_type && !is_moved) ||
	    !freespace_init_enter(c->a, c->txn, c->dev, c->bucket))
		return 0;
	int err = index_put(c, &c->old, false);
	return err ? err : index_put(c, &c->new, true);
}

/* --- LRUs, bucket_gens --- */

static int lru_update(struct bucket_change *c, unsigned lru_id, uint64_t old_time, uint64_t new_time)
{
	int err = 0;

	if (old_time == new_time)
		return 0;
	if (old_time)
		err = alloc_put_set(c->txn, BTREE_LRU, bucket_lru_pos(lru_id, old_time, c->dev, c->bucket), false);
	if (!err && new_time)
		err = alloc_put_set(c->txn, BTREE_LRU, bucket_lru_pos(lru_id, new_time, c->dev, c->bucket), true);
	return err;
}

static int bucket_gens_update(struct bucket_change *c)
{
	struct bkey k = { .p = BPOS(c->dev, c->bucket / BUCKET_GENS_PER_KEY, 0),
			  .type = KEY_BUCKET_GENS,
			  .value_u64s = BUCKET_GENS_PER_KEY / 8 };
	uint8_t gens[BUCKET_GENS_PER_KEY] = { 0 };
	struct bkey_ref found;

	if (c->old.gen == c->new.gen)
		return 0;
	int ret = btree_txn_get(c->txn, BTREE_BUCKET_GENS, k.p, 0, &found);
	if (ret < 0)
		return ret;
	if (ret && found.k.type == KEY_BUCKET_GENS)
		bucket_gens_decode(found, gens);
	gens[c->bucket % BUCKET_GENS_PER_KEY] = c->new.gen;
	return btree_txn_put(c->txn, BTREE_BUCKET_GENS, &k, gens, 0);
}

/* --- counters of the device --- */

static int counters_add(struct bucket_change *c, const struct alloc *v, int sign)
{
	uint64_t fragmented = bucket_sectors_fragmented(v, c->d->bucket_sectors);
	int err = alloc_txn_count(c->txn, counter_dev(c->dev, v->data_type, COUNTER_DEV_BUCKETS), sign);

	if (!err && v->data_type != DATA_CACHED && v->dirty_sectors)
		err = alloc_txn_count(c->txn, counter_dev(c->dev, v->data_type, COUNTER_DEV_SECTORS),
				      sign * (int64_t)v->dirty_sectors);
	if (!err && v->cached_sectors)
		err = alloc_txn_count(c->txn, counter_dev(c->dev, DATA_CACHED, COUNTER_DEV_SECTORS),
				      sign * (int64_t)v->cached_sectors);
	if (!err && fragmented)
		err = alloc_txn_count(c->txn, counter_dev(c->dev, v->data_type, COUNTER_DEV_FRAGMENTED),
				      sign * (int64_t)fragmented);
	return err;
}

/* --- the trigger --- */

/* Steps 1 to 3, 5 and 7 of 07 §8.7: the key itself. */
static void bucket_finish(struct bucket_change *c)
{
	struct alloc *v = &c->new;

	v->data_type = (uint8_t)alloc_data_type(v, v->data_type);
	if ((uint64_t)v->dirty_sectors + v->cached_sectors > (uint64_t)c->old.dirty_sectors + c->old.cached_sectors) {
		v->io_time[0] = alloc_clock(c->a, 0);
		v->io_time[1] = alloc_clock(c->a, 1);
		v->flags |= ALLOC_NEED_DISCARD | ALLOC_NEED_INC_GEN;
	}
	/* One that several nodes were in may be opened before this is committed (node_holes.c): its turn comes later.
	 */
	bool had_nodes = c->old.data_type == DATA_BTREE && node_holes_are_kept(c->a, c->dev);
	if (bucket_type_is_empty(v->data_type) && v->flags & ALLOC_NEED_INC_GEN && !had_nodes &&
	    !open_bucket_is_open(c->a, c->dev, c->bucket)) {
		v->gen++;
		v->flags &= ~(uint32_t)ALLOC_NEED_INC_GEN;
		v->data_type = (uint8_t)alloc_data_type(v, v->data_type);
	}
	if (v->data_type == DATA_CACHED && !v->io_time[0])
		v->io_time[0] = alloc_clock(c->a, 0);
	v->fragmentation_lru = bucket_fragmentation(v, c->d->bucket_sectors);
}

static int bucket_decode(struct bkey_ref k, struct alloc *v)
{
	*v = (struct alloc){ 0 };
	return k.k.type == KEY_DELETED ? 0 : alloc_decode(k, v, NULL) ? -KILN_E_INVALID : 0;
}

int trigger_alloc(struct allocator *a, struct btree_txn *txn, const struct btree_update *u)
{
	struct bucket_change c = {
		.a = a, .txn = txn, .k = u->new, .dev = (unsigned)u->new.k.p.inode, .bucket = u->new.k.p.offset
	};

	c.d = u->new.k.p.inode < ALLOC_DEVS_MAX ? alloc_dev_of(a, c.dev) : NULL;
	if (!c.d || c.bucket < c.d->first_bucket || c.bucket >= c.d->bucket_nr)
		return alloc_inconsistent(a, txn, ERROR_alloc_key_to_missing_dev_bucket, u->new, "a bucket that exists",
					  "none");
	int err = bucket_decode(u->old, &c.old);
	if (!err)
		err = bucket_decode(u->new, &c.new);
	if (err)
		return err;

	bucket_finish(&c);
	if (bucket_type_is_empty(c.new.data_type))
		alloc_txn_holes_drop(a, alloc_txn_of(txn), c.dev, c.bucket);
	alloc_encode(&c.new, u->new_value);
	err = index_update(&c);
	if (!err)
		err = lru_update(&c, c.dev, bucket_read_time(&c.old), bucket_read_time(&c.new));
	if (!err)
		err = lru_update(&c, LRU_FRAGMENTATION, c.old.fragmentation_lru, c.new.fragmentation_lru);
	if (!err)
		err = bucket_gens_update(&c);
	if (!err && u->flags & BTREE_PUT_HOOK_FLAG && c.old.cached_sectors) {
		uint8_t dev = (uint8_t)c.dev;

		err = alloc_txn_count_replicas(txn, DATA_CACHED, 1, &dev, 1, -(int64_t)c.old.cached_sectors);
	}
	if (!err)
		err = counters_add(&c, &c.old, -1);
	return err ? err : counters_add(&c, &c.new, 1);
}

void commit_alloc(struct allocator *a, struct btree_txn *txn, const struct btree_update *u, uint64_t seq)
{
	struct alloc_txn *t = alloc_txn_of(txn);
	struct alloc old, new;

	if (bucket_decode(u->old, &old) || bucket_decode(u->new, &new) || u->new.k.type == KEY_DELETED)
		return;
	bool was_empty = bucket_type_is_empty(old.data_type), is_empty = bucket_type_is_empty(new.data_type);
	if (was_empty != is_empty) {
		/*
		 * Also when it was empty before in this entry: being open, it may have been emptied and used again in
		 * it, and what is durable still leads to what it held first.
		 */
		new.journal_seq = seq;
		alloc_encode(&new, u->new_value);
	}
	bool was_free = old.data_type == DATA_FREE, is_free = new.data_type == DATA_FREE;
	if (was_free != is_free)
		open_bucket_set_used(a, (unsigned)u->new.k.p.inode, u->new.k.p.offset, is_free);
	bool has_waited = old.data_type == DATA_NEED_DISCARD, waits = new.data_type == DATA_NEED_DISCARD;
	if (has_waited != waits)
		open_bucket_set_emptied(a, (unsigned)u->new.k.p.inode, u->new.k.p.offset, waits);
	t->has_need_discard |= new.data_type == DATA_NEED_DISCARD;
	t->has_need_gc_gens |= new.data_type == DATA_NEED_GC_GENS;
	t->has_freed |= is_free && !was_free;
	t->has_cached |= new.data_type == DATA_CACHED &&old.data_type != DATA_CACHED;
}
