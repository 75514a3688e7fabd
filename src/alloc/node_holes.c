/*
 * Holes: places of nodes that have been replaced, in buckets that other nodes are still in.
 *
 * A bucket is used again when all of it is empty. Where nodes have few blocks that is too late: their logs are soon
 * full, each that is replaced leaves a hole, and what describes buckets is in such nodes itself. On a full filesystem
 * all free buckets would be used up by nodes that leave holes, and nobody could move the rest together any more, as
 * that takes nodes, too. So who has to have a place, and finds no free bucket, takes holes: write-back, and copygc for
 * the keys that it changes. With them, nodes need no more space than they have keys for, and what is under way.
 *
 * Nodes of many blocks are replaced less often, and buckets kept for write-back nearly always suffice. But copygc moves
 * data, too: a pass of it may change so many keys that writing them back takes more nodes than there are buckets for,
 * each of which leaves holes. So there, too, holes are what write-back goes on with; but only then, as each that is at
 * hand keeps copygc from a bucket.
 *
 * A hole may be written to when the commit that took the pointer away is durable (02 §12.2). It belongs to one life of
 * its bucket: when the bucket is opened for another, its holes are forgotten. Who takes one opens the bucket, so that
 * nobody empties, frees or moves it until a key points there.
 *
 * The table has what was replaced last; how many there are doesn't grow with the filesystem. What it doesn't know (all,
 * after opening) is looked for in the fragmentation LRU and in backpointers, when there is no free bucket.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "alloc/internal.h"

enum {
	SCAN_BUCKETS = 16, /* looked at together */
	CHOICES_NR = 8,
};

bool node_holes_are_kept(const struct allocator *a, unsigned dev)
{
	return a->devs[dev].bucket_sectors >= 2 * a->super->kctx.node_sectors;
}

static uint64_t bucket_of_hole(const struct allocator *a, const struct node_hole *h)
{
	return h->sector / a->devs[h->dev].bucket_sectors;
}

/* --- the table; open_buckets.lock is held --- */

static void hole_add(struct allocator *a, const struct node_hole *h)
{
	struct node_holes *t = &a->open.holes;

	for (unsigned i = 0; i < t->nr; i++)
		if (t->v[i].dev == h->dev && t->v[i].sector == h->sector)
			return;
	if (t->nr == NODE_HOLES_MAX) {
		/* What is oldest may be of a bucket that has gone. */
		t->nr_of[t->v[t->oldest].dev]--;
		t->v[t->oldest] = *h;
		t->oldest = (t->oldest + 1) % NODE_HOLES_MAX;
	} else {
		t->v[t->nr++] = *h;
	}
	t->nr_of[h->dev]++;
}

static void hole_remove(struct node_holes *t, unsigned i)
{
	t->nr_of[t->v[i].dev]--;
	t->v[i] = t->v[--t->nr];
	t->oldest = 0;
}

void node_holes_forget(struct allocator *a, unsigned dev, uint64_t bucket)
{
	struct node_holes *t = &a->open.holes;

	for (unsigned i = t->nr; i--;)
		if (t->v[i].dev == dev && bucket_of_hole(a, &t->v[i]) == bucket)
			hole_remove(t, i);
}

/* --- making them --- */

/*
 * Of a transaction that takes a pointer away: remembered until it is committed, unless its bucket becomes empty by
 * that, or the pointer has only come into another key, or been left without others beside it.
 */
int alloc_txn_hole(struct allocator *a, struct btree_txn *txn, const struct extent_ptr *ptr)
{
	struct alloc_txn *t = alloc_txn_of(txn);

	if (!node_holes_are_kept(a, ptr->dev))
		return 0;
	if (alloc_txn_array_grow(txn, &t->holes, t->hole_nr, &t->hole_max, sizeof(*t->holes)))
		return -ENOMEM;
	t->holes[t->hole_nr++] = (struct node_hole){ .sector = ptr->sector, .dev = ptr->dev, .gen = ptr->gen };
	return 0;
}

void alloc_txn_holes_drop(struct allocator *a, struct alloc_txn *t, unsigned dev, uint64_t bucket)
{
	for (size_t i = t->hole_nr; i--;)
		if (t->holes[i].dev == dev && bucket_of_hole(a, &t->holes[i]) == bucket)
			t->holes[i] = t->holes[--t->hole_nr];
}

void alloc_txn_holes_commit(struct allocator *a, struct alloc_txn *t, uint64_t seq)
{
	if (!t->hole_nr)
		return;
	mutex_lock(&a->open.lock);
	for (size_t i = 0; i < t->hole_nr; i++) {
		struct node_hole *h = &t->holes[i];
		struct extent_ptr ptr = { .sector = h->sector, .dev = h->dev };

		h->seq = seq;
		if (!alloc_txn_puts_backpointer(t, bucket_backpointer_pos(&ptr, 0)) &&
		    !open_bucket_is_scanned(a, h->dev, bucket_of_hole(a, h)))
			hole_add(a, h);
	}
	mutex_unlock(&a->open.lock);
	t->hole_nr = 0;
}

/* A place that nothing leads to, in a bucket that the caller has open. */
static void place_give_back(struct allocator *a, const struct extent_ptr *ptr, uint16_t idx, uint64_t seq)
{
	const struct open_bucket *b = &a->open.buckets[idx];

	if (!node_holes_are_kept(a, ptr->dev))
		return;
	mutex_lock(&a->open.lock);
	if (!b->was_emptied && !b->is_free_on_disk)
		hole_add(a, &(struct node_hole){ .sector = ptr->sector, .seq = seq, .dev = ptr->dev, .gen = ptr->gen });
	mutex_unlock(&a->open.lock);
}

void node_holes_add_rest(struct allocator *a, const struct open_bucket *b)
{
	uint32_t node = a->super->kctx.node_sectors;
	uint64_t end = (b->bucket + 1) * a->devs[b->dev].bucket_sectors;

	if (b->data_type != DATA_BTREE || b->was_emptied || b->is_free_on_disk || !node_holes_are_kept(a, b->dev))
		return;
	for (uint32_t left = b->sectors_free; left >= node; left -= node)
		hole_add(a, &(struct node_hole){ .sector = end - left, .dev = b->dev, .gen = b->gen });
}

/* --- taking them --- */

static unsigned holes_in_bucket(const struct allocator *a, unsigned dev, uint64_t bucket)
{
	const struct node_holes *t = &a->open.holes;
	unsigned nr = 0;

	for (unsigned i = 0; i < t->nr; i++)
		nr += t->v[i].dev == dev && bucket_of_hole(a, &t->v[i]) == bucket;
	return nr;
}

/*
 * One on @dev that may be written to; open_buckets.lock is held. Its index, or their number: there is none.
 *
 * Each bucket that something is put into has keys that change for it, so the bucket that the last one was in comes
 * first; then those with most holes, but for those that are empty for more than half, which are left to copygc. Copygc
 * has the fullest.
 */
static unsigned hole_choose(struct allocator *a, unsigned dev, bool is_copygc, uint64_t *waiting_seq)
{
	struct node_holes *t = &a->open.holes;
	unsigned half = a->devs[dev].bucket_sectors / a->super->kctx.node_sectors / 2;
	unsigned best = t->nr, best_rank = UINT_MAX, looked = 0;

	for (unsigned i = t->nr; i-- && looked < CHOICES_NR;) {
		if (t->v[i].dev != dev)
			continue;
		if (!alloc_seq_is_durable(a, t->v[i].seq)) {
			*waiting_seq = max(*waiting_seq, t->v[i].seq);
			continue;
		}
		uint64_t bucket = bucket_of_hole(a, &t->v[i]);
		if (bucket == t->last_bucket[dev] && !is_copygc)
			return i;
		unsigned nr = holes_in_bucket(a, dev, bucket);
		unsigned rank = is_copygc || nr > half ? nr : half - nr;
		if (rank < best_rank) {
			best = i;
			best_rank = rank;
		}
		looked++;
	}
	if (best < t->nr && !is_copygc)
		t->last_bucket[dev] = bucket_of_hole(a, &t->v[best]);
	return best;
}

/*
 * One on @dev, with a reference to its bucket. 0; -EAGAIN: what there is waits for the journal, up to *@waiting_seq;
 * -ENOSPC: there is none; or an error of reading.
 */
static int hole_take(struct allocator *a, unsigned dev, bool is_copygc, struct extent_ptr *ptr, uint16_t *idx,
		     uint64_t *waiting_seq)
{
	struct node_holes *t = &a->open.holes;

	for (;;) {
		struct node_hole h;
		struct alloc v;
		int err = -ENOSPC;

		mutex_lock(&a->open.lock);
		unsigned i = hole_choose(a, dev, is_copygc, waiting_seq);
		if (i < t->nr) {
			h = t->v[i];
			err = open_bucket_reopen(a, dev, bucket_of_hole(a, &h), h.gen, false, idx);
		}
		if (!err)
			hole_remove(t, i);
		t->taken += !err;
		mutex_unlock(&a->open.lock);
		if (err)
			return *waiting_seq ? -EAGAIN : err;
		err = alloc_key_lookup(a, dev, bucket_of_hole(a, &h), &v);
		if (!err && v.data_type == DATA_BTREE && v.gen == h.gen) {
			*ptr = (struct extent_ptr){ .sector = h.sector, .dev = h.dev, .gen = h.gen };
			return 0;
		}
		open_bucket_put(a, *idx);
		if (err)
			return err;
	}
}

/* A place on @dev in a free bucket. */
static int place_take(struct allocator *a, unsigned dev, enum watermark watermark, struct extent_ptr *ptr,
		      uint16_t *idx)
{
	struct alloc_request req = {
		.data_type = DATA_BTREE, .watermark = watermark, .replicas = 1, .dev_exclude = ~(1ull << dev)
	};
	struct alloc_extent e;
	int err = allocator_extent_get(a, &req, a->super->kctx.node_sectors, &e);

	if (!err) {
		*ptr = e.ptrs[0];
		*idx = e.open_bucket[0];
	}
	return err;
}

/* The one of @devs with most holes, or else with most free buckets. */
static unsigned dev_with_most(struct allocator *a, uint64_t devs, enum watermark watermark)
{
	uint64_t most_holes = 0, most_buckets = 0;
	unsigned best = ALLOC_DEVS_MAX;

	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		if (!(devs >> dev & 1))
			continue;
		uint64_t holes = node_holes_nr(a, dev), buckets = open_buckets_available(a, dev, watermark);
		bool is_better = holes > most_holes || (holes == most_holes && buckets > most_buckets);

		if (best != ALLOC_DEVS_MAX && !is_better)
			continue;
		best = dev;
		most_holes = holes;
		most_buckets = buckets;
	}
	return best;
}

/* Of @devs, those on which there may be a place. */
static uint64_t devs_with_places(struct allocator *a, uint64_t devs, enum watermark watermark)
{
	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		if (devs >> dev & 1 && !node_holes_nr(a, dev) && !open_buckets_available(a, dev, watermark))
			devs &= ~(1ull << dev);
	return devs;
}

int node_holes_slot(struct allocator *a, uint64_t all, unsigned replicas, enum watermark watermark,
		    struct alloc_extent *slot, uint64_t *waiting_seq)
{
	const uint64_t *options = a->super->options;
	uint64_t devs = devs_with_places(a, all, watermark);
	unsigned required = (unsigned)max(options[OPT_METADATA_REPLICAS_REQUIRED], (uint64_t)1), durability = 0;
	bool is_short = devs != all;

	*slot = (struct alloc_extent){ .sectors = a->super->kctx.node_sectors };
	*waiting_seq = 0;
	if (is_short && devs_durability(a, devs) < replicas)
		return -EAGAIN; /* without taking some and giving them back */
	while (devs && durability < replicas && slot->ptr_nr < ALLOC_PTRS_MAX) {
		unsigned dev = dev_with_most(a, devs, watermark), n = slot->ptr_nr;
		uint64_t seq = 0;

		devs &= ~(1ull << dev);
		int err = hole_take(a, dev, watermark == WATERMARK_BTREE_COPYGC, &slot->ptrs[n], &slot->open_bucket[n],
				    &seq);
		if (err)
			err = place_take(a, dev, watermark, &slot->ptrs[n], &slot->open_bucket[n]);
		if (err) {
			*waiting_seq = max(*waiting_seq, seq);
			is_short = true;
			continue;
		}
		slot->ptr_nr++;
		durability += a->devs[dev].durability;
	}
	bool is_enough = durability >= replicas || (durability >= required && !is_short);
	if (!is_enough)
		node_slot_drop(a, slot);
	return is_enough ? 0 : -EAGAIN;
}

void node_slot_drop(struct allocator *a, struct alloc_extent *slot)
{
	for (unsigned i = 0; i < slot->ptr_nr; i++)
		place_give_back(a, &slot->ptrs[i], slot->open_bucket[i], 0);
	allocator_extent_put(a, slot);
}

uint64_t node_holes_nr(struct allocator *a, unsigned dev)
{
	mutex_lock(&a->open.lock);
	uint64_t nr = a->open.holes.nr_of[dev];
	mutex_unlock(&a->open.lock);
	return nr;
}

/* --- looking for them --- */

/* Which places of a bucket, which is open, something points at: a bit each. Their number, or an error. */
static int places_used(struct allocator *a, unsigned dev, uint64_t bucket, uint64_t used[])
{
	uint64_t begin = bucket * a->devs[dev].bucket_sectors, end = begin + a->devs[dev].bucket_sectors;
	uint32_t node = a->super->kctx.node_sectors;
	struct btree_iter it;
	struct bkey_ref k;
	int found = 0, nr = 0;

	btree_iter_open(&it, a->trees, BTREE_BACKPOINTERS, BPOS(dev, begin << BACKPOINTER_SHIFT, 0),
			BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(dev, (end << BACKPOINTER_SHIFT) - 1, UINT32_MAX);
	while ((found = btree_iter_peek(&it, &k)) > 0) {
		uint64_t at = (k.k.p.offset >> BACKPOINTER_SHIFT) - begin, last = at + node - 1;

		for (uint64_t i = at / node; i <= last / node; i++)
			if (i < NODE_PLACES_MAX)
				used[i / 64] |= 1ull << i % 64;
		nr++;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return found < 0 ? found : nr;
}

/*
 * Where fewer backpointers are than the bucket has nodes, some are missing: then it can't be told which places are
 * holes. There may be more, as what was committed last isn't in them yet.
 */
static int bucket_scan(struct allocator *a, unsigned dev, uint64_t bucket, uint16_t idx)
{
	uint64_t used[NODE_PLACES_MAX / 64] = { 0 };
	uint32_t node = a->super->kctx.node_sectors;
	uint64_t nr = min(a->devs[dev].bucket_sectors / node, (uint32_t)NODE_PLACES_MAX);
	uint8_t gen = a->open.buckets[idx].gen;
	struct alloc v;
	int found = places_used(a, dev, bucket, used);
	struct journal_usage journal = { .seq = 1 };

	/* What takes away a pointer that wasn't found any more is in the newest entry that there is, or before. */
	if (a->journal)
		journal_usage(a->journal, &journal);

	int err = found < 0 ? found : alloc_key_lookup(a, dev, bucket, &v);
	if (err || v.data_type != DATA_BTREE || v.gen != gen || (uint64_t)found * node < v.dirty_sectors)
		return err;
	for (uint64_t i = 0; i < nr; i++) {
		struct extent_ptr ptr = { .sector = bucket * a->devs[dev].bucket_sectors + i * node,
					  .dev = (uint8_t)dev,
					  .gen = gen };
		if (!(used[i / 64] >> i % 64 & 1))
			place_give_back(a, &ptr, idx, journal.seq - 1);
	}
	return 0;
}

/*
 * While a bucket is looked at it is open, its holes are forgotten, and those that are made meanwhile aren't remembered:
 * so nobody takes one, and writes there, whose backpointer isn't found yet. What was committed before is in
 * backpointers, once the write buffer has been flushed.
 */
int node_holes_scan(struct allocator *a)
{
	struct allocator_fragment fragments[SCAN_BUCKETS];
	uint16_t open[SCAN_BUCKETS];
	uint64_t devs = write_point_devs(a, DATA_BTREE);
	struct bpos pos = POS_MIN;
	unsigned left = NODE_HOLES_MAX;
	int nr, err = btree_write_buffer_flush(a->trees);

	if (err)
		return err;
	while (!err && left && (nr = allocator_fragments_next(a, devs, &pos, fragments, SCAN_BUCKETS)) > 0) {
		for (int i = 0; i < nr; i++) {
			const struct allocator_fragment *f = &fragments[i];

			open[i] = OPEN_BUCKET_NONE;
			if (f->data_type != DATA_BTREE || !node_holes_are_kept(a, f->dev))
				continue;
			mutex_lock(&a->open.lock);
			if (!open_bucket_reopen(a, f->dev, f->bucket, f->gen, true, &open[i])) {
				a->open.buckets[open[i]].is_scanned = true;
				node_holes_forget(a, f->dev, f->bucket);
			}
			mutex_unlock(&a->open.lock);
		}
		err = btree_write_buffer_flush(a->trees);
		for (int i = 0; i < nr; i++) {
			if (open[i] == OPEN_BUCKET_NONE)
				continue;
			if (!err)
				err = bucket_scan(a, fragments[i].dev, fragments[i].bucket, open[i]);
			mutex_lock(&a->open.lock);
			a->open.buckets[open[i]].is_scanned = false;
			mutex_unlock(&a->open.lock);
			open_bucket_put(a, open[i]);
			left -= min(left, fragments[i].bucket_sectors / a->super->kctx.node_sectors);
		}
	}
	return err;
}
