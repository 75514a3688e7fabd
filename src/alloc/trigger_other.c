/* What follows from inodes, reservations and references to shared extents (07 §8.4 to §8.6). */
#include <errno.h>
#include <string.h>

#include "alloc/internal.h"
#include "format/error_ids.h"
#include "format/file_data.h"
#include "format/inode.h"

/* --- inodes --- */

static bool is_inode(const struct bkey *k)
{
	return k->type == KEY_INODE || k->type == KEY_INODE_V2 || k->type == KEY_INODE_V3;
}

static bool is_unlinked(struct bkey_ref k)
{
	struct inode inode;

	return is_inode(&k.k) && !inode_unpack(k, &inode, NULL) && inode.flags & INODE_UNLINKED;
}

int trigger_inode(struct allocator *a, struct btree_txn *txn, const struct btree_update *u)
{
	bool was_unlinked = is_unlinked(u->old), is_unlinked_now = is_unlinked(u->new);
	int err = alloc_txn_count(txn, COUNTER_INODES, is_inode(&u->new.k) - is_inode(&u->old.k));

	(void)a;
	if (!err && was_unlinked != is_unlinked_now)
		err = alloc_put_set(txn, BTREE_DELETED_INODES, u->new.k.p, is_unlinked_now);
	return err;
}

/* --- reservations --- */

static int reservation_count(struct btree_txn *txn, struct bkey_ref k, int sign)
{
	struct reservation r;

	if (k.k.type != KEY_RESERVATION)
		return 0;
	reservation_decode(k, &r);
	if (!r.nr_replicas)
		return 0;
	return alloc_txn_count(txn, COUNTER_RESERVED + min(r.nr_replicas, 4u) - 1,
			       sign * (int64_t)((uint64_t)k.k.size * r.nr_replicas));
}

int trigger_reservation(struct allocator *a, struct btree_txn *txn, const struct btree_update *u)
{
	int err = reservation_count(txn, u->old, -1);

	(void)a;
	return err ? err : reservation_count(txn, u->new, 1);
}

/* --- references to shared extents --- */

/* One that this transaction took the last reference from, and that covers @offset. */
static const struct alloc_txn_shared *unshared_find(struct btree_txn *txn, uint64_t offset)
{
	for (const struct alloc_txn_shared *s = alloc_txn_of(txn)->unshared; s; s = s->next)
		if (bkey_start_offset(&s->k) <= offset && offset < s->k.p.offset)
			return s;
	return NULL;
}

static int unshared_remember(struct btree_txn *txn, struct bkey_ref k)
{
	struct alloc_txn *t = alloc_txn_of(txn);
	struct alloc_txn_shared *s = btree_txn_alloc(txn, sizeof(*s) + bkey_value_bytes(&k.k));

	if (!s)
		return -ENOMEM;
	s->k = k.k;
	memcpy(s->value, k.value, bkey_value_bytes(&k.k));
	s->next = t->unshared;
	t->unshared = s;
	return 0;
}

/* The shared extent that ends above @offset, with its value in @value. 1, 0 or an error. */
static int shared_extent_find(struct btree_txn *txn, uint64_t offset, struct bkey *k,
			      uint64_t value[BKEY_VALUE_U64S_MAX])
{
	struct btree_iter it;
	struct bkey_ref found;

	btree_txn_iter_open(&it, txn, BTREE_REFLINK, BPOS(0, offset + 1, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(0, UINT64_MAX, UINT32_MAX);
	int ret = btree_iter_peek(&it, &found);
	if (ret > 0) {
		*k = found.k;
		memcpy(value, found.value, bkey_value_bytes(&found.k));
	}
	btree_iter_close(&it);
	if (ret < 0 || (ret && bkey_start_offset(k) <= offset))
		return ret;
	const struct alloc_txn_shared *s = unshared_find(txn, offset);
	if (!s)
		return ret;
	*k = s->k;
	memcpy(value, s->value, bkey_value_bytes(&s->k));
	return 1;
}

/*
 * Change the reference count of the shared extent at or behind @offset. 1 with its range, 0 none, or an error. Which of
 * a transaction's references is counted first isn't ours to say: one that goes away now may come back.
 */
static int shared_extent_count(struct allocator *a, struct btree_txn *txn, uint64_t offset, int sign, uint64_t *start,
			       uint64_t *end)
{
	uint64_t value[BKEY_VALUE_U64S_MAX];
	struct bkey_ref k = { .value = value };
	int found = shared_extent_find(txn, offset, &k.k, value), err = 0;

	if (found <= 0)
		return found;
	*start = bkey_start_offset(&k.k);
	*end = k.k.p.offset;
	if ((k.k.type != KEY_REFLINK_V && k.k.type != KEY_INDIRECT_INLINE_DATA) || bkey_value_bytes(&k.k) < 8)
		return 0;

	uint64_t refcount = le64_load(value);
	if (sign < 0 && !refcount)
		return alloc_inconsistent(a, txn, ERROR_reflink_v_refcount_wrong, k, "a reference count above 0", "0");
	refcount += (uint64_t)(int64_t)sign;
	le64_store(value, refcount);
	if (!refcount) {
		err = unshared_remember(txn, k);
		k.k = (struct bkey){ .p = k.k.p, .type = KEY_DELETED };
	}
	if (!err)
		err = btree_txn_put(txn, BTREE_REFLINK, &k.k, value, 0);
	return err ? err : 1;
}

/* All shared extents that [@at, @end) reaches into. *@first, *@last: where they start and end. */
static int shared_range_count(struct allocator *a, struct btree_txn *txn, struct bkey_ref k, uint64_t at, uint64_t end,
			      int sign, uint64_t *first, uint64_t *last)
{
	*first = at;
	*last = end;
	for (bool is_first = true; at < end; is_first = false) {
		uint64_t extent_start, extent_end;
		int found = shared_extent_count(a, txn, at, sign, &extent_start, &extent_end);

		if (found < 0)
			return found;
		if (!found || extent_start > at)
			return alloc_inconsistent(a, txn, ERROR_reflink_p_to_missing_reflink_v, k,
						  "shared extents for all of its range", "none at %llu",
						  (unsigned long long)at);
		if (is_first)
			*first = extent_start;
		at = extent_end;
	}
	*last = max(at, end);
	return 0;
}

/* What follows idx in a reflink_p's value. */
enum { REFLINK_P_FRONT_PAD = 8, REFLINK_P_BACK_PAD = 12 };

int trigger_reflink_p(struct allocator *a, struct btree_txn *txn, const struct btree_update *u)
{
	struct reflink_p p;
	uint64_t first, last;
	int err = 0;

	if (!reflink_p_decode(u->old, &p))
		err = shared_range_count(a, txn, u->old, p.idx - min(p.idx, (uint64_t)p.front_pad),
					 p.idx + u->old.k.size + p.back_pad, -1, &first, &last);
	if (err || reflink_p_decode(u->new, &p))
		return err;
	err = shared_range_count(a, txn, u->new, p.idx, p.idx + u->new.k.size, 1, &first, &last);
	if (err)
		return err;
	uint8_t *value = u->new_value;
	le32_store(value + REFLINK_P_FRONT_PAD, (uint32_t)(p.idx - first));
	le32_store(value + REFLINK_P_BACK_PAD, (uint32_t)(last - p.idx - u->new.k.size));
	return 0;
}
