/*
 * What follows from keys with pointers (07 §8.3): the alloc key of each bucket pointed at, a backpointer for each dirty
 * pointer, sectors of the replicas entries, and rebalance_work.
 *
 * The old key is subtracted, then the new one added. A transaction can move a pointer from one key to another, and the
 * order in which the two are triggered is not ours: so a backpointer that is to be deleted is left alone when what was
 * put there in this transaction isn't what the old key had.
 */
#include <errno.h>
#include <string.h>

#include "alloc/internal.h"
#include "base/array.h"
#include "format/error_ids.h"

/* One key, being subtracted or added. */
struct pointers {
	struct allocator *a;
	struct btree_txn *txn;
	const struct btree_update *u;
	struct bkey_ref k;
	bool is_pointer_to_node;
	unsigned ptr_nr;
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
};

/* --- which keys --- */

static bool key_has_pointers(const struct btree_update *u, const struct bkey *k)
{
	if (u->level || u->is_root)
		return k->type == KEY_BTREE_PTR_V2;
	return k->type == KEY_EXTENT || k->type == KEY_REFLINK_V;
}

/* The part of a value that pointers are in: a reference count or a node's state may change alone. */
static size_t value_skipped(const struct bkey *k)
{
	return k->type == KEY_BTREE_PTR_V2 ? BTREE_PTR_V2_HEADER_BYTES : k->type == KEY_REFLINK_V ? 8 : 0;
}

static bool pointers_are_same(const struct btree_update *u)
{
	size_t skip = value_skipped(&u->new.k);

	return u->old.k.type == u->new.k.type && u->old.k.size == u->new.k.size &&
	       u->old.k.value_u64s == u->new.k.value_u64s &&bkey_value_bytes(&u->new.k) >= skip &&
	       !memcmp((const uint8_t *)u->old.value + skip, (const uint8_t *)u->new.value + skip,
		       bkey_value_bytes(&u->new.k) - skip);
}

static int pointers_decode(struct pointers *p)
{
	struct fault fault;
	struct btree_ptr node;

	if (!p->is_pointer_to_node) {
		int nr = extent_decode(p->k, alloc_kctx(p->a), p->ptrs, NULL, &fault);

		p->ptr_nr = nr > 0 ? (unsigned)nr : 0;
		return min(nr, 0);
	}
	int err = btree_ptr_decode(p->k, alloc_kctx(p->a), &node, &fault);
	if (err)
		return err;
	p->ptr_nr = node.ptr_nr;
	for (unsigned i = 0; i < node.ptr_nr; i++)
		p->ptrs[i] = (struct extent_ptr_decoded){ .ptr = node.ptrs[i] };
	return 0;
}

/* --- one pointer --- */

static unsigned pointer_type(const struct pointers *p, const struct extent_ptr_decoded *q)
{
	return p->is_pointer_to_node ? DATA_BTREE : q->has_stripe ? DATA_STRIPE : DATA_USER;
}

static uint32_t pointer_crc_offset(const struct extent_ptr_decoded *q)
{
	return q->has_crc ? q->crc.offset_sectors : 0;
}

static bool types_are_compatible(unsigned bucket_type, unsigned type)
{
	if (bucket_type_is_empty(bucket_type))
		return true;
	if (type == DATA_BTREE)
		return bucket_type == DATA_BTREE;
	return bucket_type == DATA_USER || bucket_type == DATA_STRIPE || bucket_type == DATA_CACHED;
}

/*
 * Add @sectors to the bucket of a pointer. 1: done; 0: the pointer is stale, nothing is to be done for it; or an error.
 */
static int bucket_count(struct pointers *p, const struct extent_ptr_decoded *q, int64_t sectors)
{
	struct alloc_dev *d = alloc_dev_of(p->a, q->ptr.dev);
	unsigned type = pointer_type(p, q);
	struct alloc v;

	if (!d || q->ptr.sector / d->bucket_sectors < d->first_bucket ||
	    q->ptr.sector / d->bucket_sectors >= d->bucket_nr)
		return alloc_inconsistent(p->a, p->txn, ERROR_ptr_to_invalid_device, p->k,
					  "a pointer into a bucket that exists", "device %u", q->ptr.dev);
	uint64_t bucket = q->ptr.sector / d->bucket_sectors;
	int err = alloc_key_get(p->a, p->txn, q->ptr.dev, bucket, &v);
	if (err)
		return err;

	int age = gen_cmp(v.gen, q->ptr.gen);
	if (age > 0 && age <= BUCKET_GENS_DISTANCE_MAX && q->ptr.is_cached)
		return 0;
	if (age)
		return alloc_inconsistent(p->a, p->txn,
					  age < 0 ? ERROR_ptr_gen_newer_than_bucket_gen : ERROR_stale_dirty_ptr, p->k,
					  "the generation of its bucket", "%u, bucket %u", q->ptr.gen, v.gen);
	if (!types_are_compatible(v.data_type, type))
		return alloc_inconsistent(p->a, p->txn, ERROR_ptr_bucket_data_type_mismatch, p->k,
					  "a bucket of the pointer's type", "%s", data_type_name(v.data_type));

	int64_t count = (q->ptr.is_cached ? v.cached_sectors : v.dirty_sectors) + sectors;
	if (count < 0 || count > UINT32_MAX)
		return alloc_inconsistent(p->a, p->txn, ERROR_bucket_sector_count_overflow, p->k,
					  "a count of sectors that fits", "%lld", (long long)count);
	if (q->ptr.is_cached)
		v.cached_sectors = (uint32_t)count;
	else
		v.dirty_sectors = (uint32_t)count;
	if (!v.dirty_sectors && !v.cached_sectors)
		v.data_type = DATA_FREE;
	else if (v.data_type != DATA_STRIPE)
		v.data_type = (uint8_t)type;
	err = alloc_key_put(p->txn, q->ptr.dev, bucket, &v, 0);
	return err ? err : 1;
}

static struct alloc_txn_backpointer *backpointer_of_txn(struct alloc_txn *t, struct bpos pos)
{
	for (size_t i = 0; i < t->backpointer_nr; i++)
		if (bpos_eq(t->backpointers[i].p, pos))
			return &t->backpointers[i];
	return NULL;
}

bool alloc_txn_puts_backpointer(struct alloc_txn *t, struct bpos pos) { return backpointer_of_txn(t, pos) != NULL; }

static int backpointer_remember(struct pointers *p, struct bpos pos, const uint8_t value[BACKPOINTER_BYTES])
{
	struct alloc_txn *t = alloc_txn_of(p->txn);
	struct alloc_txn_backpointer *b = backpointer_of_txn(t, pos);

	if (!b && alloc_txn_array_grow(p->txn, &t->backpointers, t->backpointer_nr, &t->backpointer_max,
				       sizeof(*t->backpointers)))
		return -ENOMEM;
	if (!b)
		b = &t->backpointers[t->backpointer_nr++];
	b->p = pos;
	memcpy(b->value, value, BACKPOINTER_BYTES);
	return 0;
}

static int backpointer_put(struct pointers *p, const struct extent_ptr_decoded *q, uint64_t sectors, bool is_insert)
{
	uint32_t crc_offset = pointer_crc_offset(q);
	struct backpointer b = {
		.btree_id = (uint8_t)p->u->btree_id,
		.level = (uint8_t)p->u->level,
		.data_type = (uint8_t)pointer_type(p, q),
		.bucket_offset = bucket_backpointer_offset(&q->ptr, crc_offset, p->a->devs[q->ptr.dev].bucket_sectors),
		.bucket_sectors = (uint32_t)sectors,
		.pos = p->k.k.p,
	};
	struct bkey k = { .p = bucket_backpointer_pos(&q->ptr, crc_offset) };
	uint8_t value[BACKPOINTER_BYTES];

	backpointer_encode(&b, value);
	if (is_insert) {
		int err = backpointer_remember(p, k.p, value);
		if (err)
			return err;
		k.type = KEY_BACKPOINTER;
		k.value_u64s = BACKPOINTER_BYTES / 8;
	} else {
		const struct alloc_txn_backpointer *put = backpointer_of_txn(alloc_txn_of(p->txn), k.p);

		if (put && memcmp(put->value, value, BACKPOINTER_BYTES))
			return 0;
	}
	return btree_txn_put(p->txn, BTREE_BACKPOINTERS, &k, value, 0);
}

/* --- a key --- */

static int pointers_apply(struct pointers *p, bool is_insert)
{
	uint32_t size = p->is_pointer_to_node ? alloc_kctx(p->a)->node_sectors : p->k.k.size;
	uint8_t devs[EXTENT_PTRS_MAX];
	unsigned dev_nr = 0;
	int64_t dirty = 0;
	int err = pointers_decode(p);

	for (unsigned i = 0; !err && i < p->ptr_nr; i++) {
		const struct extent_ptr_decoded *q = &p->ptrs[i];
		uint64_t n = p->is_pointer_to_node ? size : bucket_sectors_of_extent(&q->crc, size);
		int64_t sectors = is_insert ? (int64_t)n : -(int64_t)n;

		if (q->has_stripe)
			return -EOPNOTSUPP; /* the stripe's counts would have to change too */
		int is_current = bucket_count(p, q, sectors);
		if (is_current <= 0) {
			err = is_current;
			continue;
		}
		if (q->ptr.is_cached) {
			err = alloc_txn_count_replicas(p->txn, DATA_CACHED, 1, &q->ptr.dev, 1, sectors);
			continue;
		}
		err = backpointer_put(p, q, n, is_insert);
		if (!err && p->is_pointer_to_node && !is_insert)
			err = alloc_txn_hole(p->a, p->txn, &q->ptr);
		devs[dev_nr++] = q->ptr.dev;
		dirty += sectors;
	}
	if (!err && dev_nr)
		err = alloc_txn_count_replicas(p->txn, p->is_pointer_to_node ? DATA_BTREE : DATA_USER, 1, devs, dev_nr,
					       dirty);
	return err;
}

/* --- rebalance_work --- */

/* Has the key an entry that asks for work? A reflink_v's stays after the work is done (07 §8.3). */
static bool key_needs_rebalance(struct allocator *a, struct bkey_ref k)
{
	const uint8_t *begin, *end;
	struct extent_entry entry;
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	const uint8_t *rebalance = NULL;

	if ((k.k.type != KEY_EXTENT && k.k.type != KEY_REFLINK_V) || !extent_entries_of(k, &begin, &end))
		return false;
	struct extent_walk w = { begin, end, alloc_kctx(a)->entry_type_u64s };
	while (extent_walk_next(&w, &entry, NULL) > 0)
		if (entry.type == EXTENT_ENTRY_REBALANCE)
			rebalance = entry.bytes;
	if (!rebalance || k.k.type == KEY_EXTENT)
		return rebalance;

	struct extent_rebalance r = extent_rebalance_load(rebalance);
	uint64_t devs = r.target ? target_devs(a, r.target) : UINT64_MAX;
	unsigned compression =
		compression_option_is_valid(r.compression) ? compression_option_type(r.compression) : COMPRESSION_NONE;
	int nr = extent_decode(k, alloc_kctx(a), ptrs, NULL, NULL);
	for (int i = 0; i < nr; i++)
		if (extent_ptr_needs_rebalance(&ptrs[i], compression, devs))
			return true;
	return false;
}

static int rebalance_work_put(struct allocator *a, struct btree_txn *txn, const struct btree_update *u)
{
	bool needs_now = key_needs_rebalance(a, u->new);

	if (u->level || u->is_root || needs_now == key_needs_rebalance(a, u->old))
		return 0;
	return alloc_put_set(txn, BTREE_REBALANCE_WORK, u->new.k.p, needs_now);
}

/* --- the trigger --- */

int trigger_pointers(struct allocator *a, struct btree_txn *txn, const struct btree_update *u)
{
	struct pointers p = { .a = a, .txn = txn, .u = u, .is_pointer_to_node = u->level || u->is_root };
	bool had = key_has_pointers(u, &u->old.k), has = key_has_pointers(u, &u->new.k);
	int err = 0;

	if ((had || has) && !(had && has && pointers_are_same(u))) {
		if (had) {
			p.k = u->old;
			err = pointers_apply(&p, false);
		}
		if (!err && has) {
			p.k = u->new;
			err = pointers_apply(&p, true);
		}
		if (!err)
			err = rebalance_work_put(a, txn, u);
	}
	/* The last reference to a shared extent is gone. */
	if (!err && !u->level && u->btree_id == BTREE_REFLINK &&
	    (u->new.k.type == KEY_REFLINK_V || u->new.k.type == KEY_INDIRECT_INLINE_DATA) &&
	    !reflink_v_decode(u->new).refcount)
		err = btree_txn_put(txn, BTREE_REFLINK, &(struct bkey){ .p = u->new.k.p, .type = KEY_DELETED }, NULL,
				    0);
	return err;
}
