/*
 * Changing the pointers of one key that was moved (06 §11 step 6).
 *
 * What is there when the new copy is put may be another key than the one that was read: overwritten in part, trimmed,
 * split, moved by somebody else. A key that is there is the same data as far as one of its pointers leads to the same
 * sectors of the same bucket and generation, for the same place of the file: a bucket isn't used again before its
 * generation is raised. Where it is the same, the new pointers count; where it isn't, what is there stays.
 */
#include <errno.h>

#include "alloc/gens.h"
#include "base/mutant.h"
#include "data/move_internal.h"

/* A piece of what is there, being changed. */
struct piece {
	struct data *data;
	const struct move_part *part;
	uint64_t begin, end;
	struct key_buf key;
	struct extent_value v;
	/* Of the pointers of v: the one of the key that was read that it is, EXTENT_PTRS_MAX: none. */
	uint8_t was[EXTENT_PTRS_MAX];
	uint32_t goes; /* mask */
};

static const struct key_context *kctx_of(const struct piece *p) { return &p->data->super->kctx; }

/* Do two pointers, of keys that start at these places, lead to the same data? */
static bool ptrs_are_same(uint64_t start_a, const struct extent_ptr_decoded *a, uint64_t start_b,
			  const struct extent_ptr_decoded *b)
{
	uint64_t offset_a = a->crc.offset_sectors - start_a, offset_b = b->crc.offset_sectors - start_b;

	if (a->ptr.dev != b->ptr.dev || a->ptr.gen != b->ptr.gen || a->ptr.is_unwritten != b->ptr.is_unwritten)
		return false;
	if (compression_is_compressed(a->crc.compression) || compression_is_compressed(b->crc.compression))
		return a->ptr.sector == b->ptr.sector && offset_a == offset_b &&
		       a->crc.compression == b->crc.compression &&
		       a->crc.compressed_sectors == b->crc.compressed_sectors &&
		       a->crc.uncompressed_sectors == b->crc.uncompressed_sectors;
	return a->ptr.sector + offset_a == b->ptr.sector + offset_b;
}

/* Which of the pointers that are there are which that were read. False: none. */
static bool ptrs_recognise(struct piece *p)
{
	const struct move_item *item = p->part->item;
	bool any = false;

	for (unsigned i = 0; i < p->v.ptr_nr; i++) {
		p->was[i] = EXTENT_PTRS_MAX;
		for (unsigned k = 0; k < item->v.ptr_nr; k++)
			if ((i == k && is_mutant(MUTANT_MOVE_RACE)) ||
			    ptrs_are_same(p->begin, &p->v.ptrs[i], bkey_start_offset(&item->k), &item->v.ptrs[k]))
				p->was[i] = (uint8_t)k;
		any |= p->was[i] != EXTENT_PTRS_MAX;
	}
	return any;
}

/* What the move says of the pointers. False: there is nothing (left) to be done. */
static bool ptrs_decide(struct piece *p)
{
	const struct move_item *item = p->part->item;
	bool has_rewrite = false;

	p->goes = 0;
	for (unsigned i = 0; i < p->v.ptr_nr; i++) {
		uint32_t was = p->was[i] == EXTENT_PTRS_MAX ? 0 : 1u << p->was[i];

		if (was & (item->kill | item->move.rewrite))
			p->goes |= 1u << i;
		has_rewrite |= was & item->move.rewrite && !p->v.ptrs[i].ptr.is_cached;
	}
	if (item->move.rewrite && !has_rewrite)
		return p->part->ptr_nr == 0 && p->goes;
	return p->goes || p->part->ptr_nr;
}

/* The new pointers that still add something, as they are for this piece. Their number. */
static unsigned ptrs_new(const struct piece *p, struct extent_ptr_decoded new[ALLOC_PTRS_MAX])
{
	const struct move_part *part = p->part;
	uint32_t skipped = (uint32_t)(p->begin - part->begin);
	unsigned nr = 0;

	for (unsigned n = 0; n < part->ptr_nr; n++) {
		bool is_there = false;

		for (unsigned i = 0; i < p->v.ptr_nr; i++)
			is_there |= p->v.ptrs[i].ptr.dev == part->ptrs[n].dev && !p->v.ptrs[i].ptr.is_cached &&
				    !(p->goes >> i & 1);
		if (is_there)
			continue;
		new[nr] = (struct extent_ptr_decoded){ .ptr = part->ptrs[n],
						       .crc = part->has_crc ? part->crc : extent_crc_of_key(&p->key.k),
						       .has_crc = part->has_crc };
		if (part->has_crc)
			new[nr].crc.offset_sectors += skipped;
		else
			new[nr].ptr.sector += skipped;
		nr++;
	}
	return nr;
}

static bool ptr_is_stale(const struct piece *p, const struct extent_ptr *ptr)
{
	const struct super *s = p->data->super;
	uint8_t gen;

	if (!ptr->is_cached || ptr->dev >= s->member_nr || !s->members[ptr->dev].m.bucket_sectors)
		return false;
	return bucket_gen_lookup(p->data->trees, ptr->dev, ptr->sector / s->members[ptr->dev].m.bucket_sectors, &gen) >
		       0 &&
	       gen_cmp(gen, ptr->gen) > 0;
}

/* Of two pointers on one device the old one goes; so do cached ones that mean nothing any more. */
static void ptrs_drop_superseded(struct piece *p, const struct extent_ptr_decoded *new, unsigned new_nr)
{
	for (unsigned i = 0; i < p->v.ptr_nr; i++) {
		for (unsigned n = 0; n < new_nr; n++)
			if (p->v.ptrs[i].ptr.dev == new[n].ptr.dev)
				p->goes |= 1u << i;
		if (ptr_is_stale(p, &p->v.ptrs[i].ptr))
			p->goes |= 1u << i;
	}
}

/*
 * The new copy's checksum covers the live part alone; copies that stay hold the same bytes, so it can be theirs
 * (06 §6.4).
 */
static void ptrs_narrow(struct piece *p, const struct extent_ptr_decoded *new)
{
	const struct extent_crc *crc = &new->crc;

	if (!new->has_crc || crc->offset_sectors || crc->uncompressed_sectors != p->key.k.size ||
	    compression_is_compressed(crc->compression))
		return;
	for (unsigned i = 0; i < p->v.ptr_nr; i++) {
		struct extent_ptr_decoded *old = &p->v.ptrs[i];

		if (!old->has_crc || compression_is_compressed(old->crc.compression) || !old->crc.csum_type ||
		    checksum_is_mac(old->crc.csum_type) != checksum_is_mac(crc->csum_type) ||
		    old->crc.uncompressed_sectors == p->key.k.size)
			continue;
		if (checksum_is_mac(crc->csum_type) &&
		    old->crc.nonce_sectors + old->crc.offset_sectors != crc->nonce_sectors)
			continue;
		old->ptr.sector += old->crc.offset_sectors;
		old->crc = *crc;
	}
}

/* Make the piece what it is to be. 1: it is to be put; 0: it stays as it is; or an error. */
static int piece_change(struct piece *p)
{
	struct extent_ptr_decoded new[ALLOC_PTRS_MAX];
	unsigned kept = 0;

	if (extent_value_load(&p->v, key_buf_ref(&p->key), kctx_of(p)))
		return 0;
	if (!ptrs_recognise(p) || !ptrs_decide(p))
		return 0;
	unsigned new_nr = ptrs_new(p, new);
	if (!new_nr && p->part->ptr_nr)
		return 0;
	ptrs_drop_superseded(p, new, new_nr);
	if (new_nr)
		ptrs_narrow(p, new);
	bool has_dirty = false;
	for (unsigned i = 0; i < p->v.ptr_nr; i++) {
		struct extent_ptr_decoded *q = &p->v.ptrs[i];

		if (p->goes >> i & 1)
			continue;
		has_dirty |= !q->ptr.is_cached;
		p->v.ptrs[kept++] = *q;
	}
	p->v.ptr_nr = kept;
	for (unsigned n = 0; n < new_nr; n++)
		has_dirty |= !new[n].ptr.is_cached;
	if (!has_dirty)
		return 0; /* a move never makes data go */
	int err = extent_value_store(&p->v, &p->key);
	for (unsigned n = 0; n < new_nr && !err; n++)
		err = key_ptr_add(&p->key, &new[n], kctx_of(p));
	if (!err)
		err = extent_value_load(&p->v, key_buf_ref(&p->key), kctx_of(p));
	if (err)
		return err;
	rebalance_refresh(p->data, &p->part->item->aim, p->key.k.type == KEY_REFLINK_V, &p->v);
	err = extent_value_store(&p->v, &p->key);
	return err ? err : 1;
}

/* What covers the first of [from, part->end) now, in the snapshot of the key that was read. 1, 0: nothing, or an error.
 */
static int current_find(struct btree_txn *txn, const struct move_part *part, uint64_t from, struct key_buf *now)
{
	const struct move_item *item = part->item;
	struct btree_iter it;
	struct bkey_ref k;

	/* Mostly it is where it was. */
	int found = btree_txn_get(txn, item->btree_id, item->k.p, 0, &k);
	if (found < 0)
		return found;
	if (found && k.k.size && bkey_start_offset(&k.k) <= from) {
		key_buf_load(now, k);
		return 1;
	}
	btree_txn_iter_open(&it, txn, item->btree_id, BPOS(item->k.p.inode, from + 1, item->k.p.snapshot), 0,
			    item->k.p.snapshot);
	it.end = BPOS(item->k.p.inode, UINT64_MAX, UINT32_MAX);
	found = btree_iter_peek(&it, &k);
	if (found > 0 && (!k.k.size || bkey_start_offset(&k.k) >= part->end))
		found = 0;
	if (found > 0)
		key_buf_load(now, k);
	btree_iter_close(&it);
	return found;
}

static int piece_put(struct btree_txn *txn, const struct piece *p, const struct bkey *now)
{
	const struct move_part *part = p->part;
	struct btree_extent_change change = { 0 };

	if (p->begin == bkey_start_offset(now) && p->end == now->p.offset && !part->may_merge)
		return btree_txn_put(txn, part->item->btree_id, &p->key.k, p->key.value, 0);
	return btree_txn_put_extent(txn, part->item->btree_id, &p->key.k, p->key.value, &change);
}

int move_part_put(struct data *data, struct btree_txn *txn, const struct move_part *part, uint64_t from,
		  uint64_t *done_to, uint64_t *sectors)
{
	struct piece *p = btree_txn_alloc(txn, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->data = data;
	p->part = part;
	*done_to = part->end;
	*sectors = 0;
	int found = current_find(txn, part, from, &p->key);
	if (found <= 0)
		return found;
	struct bkey now = p->key.k;
	p->begin = max(from, bkey_start_offset(&now));
	p->end = min(part->end, now.p.offset);
	*done_to = p->end;
	if (now.p.snapshot != part->item->k.p.snapshot || now.type != part->item->k.type ||
	    now.version.lo != part->item->k.version.lo || now.version.hi != part->item->k.version.hi)
		return 0;
	key_cut_back(&p->key, p->end, kctx_of(p));
	key_cut_front(&p->key, p->begin, kctx_of(p));
	int err = piece_change(p);
	if (err <= 0)
		return err;
	*sectors = p->end - p->begin;
	return piece_put(txn, p, &now);
}
