/*
 * What a transaction changes in the use of its owners. See quota.h.
 *
 * The trigger remembers of each inode the version that counted before, and the one that will. In most cases these are
 * the old and the new key of the one update; where versions of several snapshots matter, they are looked up when all
 * puts are known. Before the commit what is added is taken from the rows; at the commit it becomes use, if the scan has
 * been there.
 */
#include <errno.h>
#include <string.h>

#include "alloc/quota_internal.h"
#include "base/mutant.h"
#include "format/snapshot.h"

struct quota_change {
	struct quota_change *next;
	uint64_t inum;
	uint32_t master;   /* snapshot that sees the version that counts */
	uint32_t snapshot; /* of the first update */
	bool must_look;	   /* the versions are not the keys of one update */
	struct quota_share old, new;
	/* Made by quota_prepare(). */
	struct quota_row *old_rows[QUOTA_TYPE_NR], *new_rows[QUOTA_TYPE_NR];
	uint64_t promised;				 /* sectors that come out of the reservation */
	uint64_t taken[QUOTA_TYPE_NR][QUOTA_COUNTER_NR]; /* by this transaction */
};

struct quota_limits_update {
	struct quota_limits_update *next;
	struct quota_row *row;
	struct quota limits;
};

void quota_share_of(struct bkey_ref k, struct quota_share *share)
{
	struct inode inode;

	*share = (struct quota_share){ 0 };
	if ((k.k.type != KEY_INODE && k.k.type != KEY_INODE_V2 && k.k.type != KEY_INODE_V3) ||
	    inode_unpack(k, &inode, NULL))
		return;
	share->is_there = true;
	share->sectors = inode.sectors;
	quota_owner_of(&inode, &share->owner);
}

/* --- triggers --- */

static struct quota_change *change_find(struct quota_txn *t, uint64_t inum, uint32_t master)
{
	struct quota_change *c = t->changes;

	while (c && (c->inum != inum || c->master != master))
		c = c->next;
	return c;
}

/* Does the key alone decide what its snapshot sees? */
static bool is_decisive(const struct bkey *k, const struct quota_view *view)
{
	return k->type != KEY_DELETED || !view->has_parent;
}

static int inode_trigger(struct quotas *q, struct btree_txn *txn, struct quota_txn *t, const struct btree_update *u)
{
	struct quota_share old, new;
	struct quota_view view;
	uint32_t snapshot = u->new.k.p.snapshot;

	quota_share_of(u->old, &old);
	quota_share_of(u->new, &new);
	/* Most updates change times, or nothing that counts. */
	if (old.is_there && quota_shares_are_same(&old, &new))
		return 0;
	int err = quota_view_get(q->trees, txn, snapshot, &view);
	if (err || !view.master)
		return err;

	struct quota_change *c = change_find(t, u->new.k.p.offset, view.master);
	if (!c) {
		c = btree_txn_alloc(txn, sizeof(*c));
		if (!c)
			return -ENOMEM;
		*c = (struct quota_change){ .next = t->changes,
					    .inum = u->new.k.p.offset,
					    .master = view.master,
					    .snapshot = snapshot,
					    .old = old };
		t->changes = c;
	}
	c->new = new;
	c->must_look |= snapshot != view.master || snapshot != c->snapshot || !is_decisive(&u->old.k, &view) ||
			!is_decisive(&u->new.k, &view);
	return 0;
}

static int limits_trigger(struct quotas *q, struct btree_txn *txn, struct quota_txn *t, const struct btree_update *u)
{
	if (u->new.k.p.inode >= QUOTA_TYPE_NR || u->new.k.p.offset > UINT32_MAX)
		return 0;
	mutex_lock(&q->lock);
	struct quota_row *row = quota_row_get(q, (unsigned)u->new.k.p.inode, (uint32_t)u->new.k.p.offset);
	mutex_unlock(&q->lock);
	if (!row)
		return -ENOMEM;
	struct quota_limits_update *l = t->limits;
	while (l && l->row != row)
		l = l->next;
	if (!l) {
		l = btree_txn_alloc(txn, sizeof(*l));
		if (!l)
			return -ENOMEM;
		*l = (struct quota_limits_update){ .next = t->limits, .row = row };
		t->limits = l;
	}
	l->limits = (struct quota){ 0 };
	if (u->new.k.type == KEY_QUOTA)
		quota_decode(u->new, &l->limits);
	return 0;
}

/* Can it be that another subvolume counts from here on, or none? A subvolume that gets a new snapshot sees the same. */
static bool is_other_master(const struct btree_update *u)
{
	struct subvolume old, new;

	if (u->old.k.type == KEY_DELETED)
		return false;
	if (u->btree_id == BTREE_SNAPSHOT_TREES || u->new.k.type != KEY_SUBVOLUME || u->old.k.type != KEY_SUBVOLUME)
		return true;
	subvolume_decode(u->old, &old);
	subvolume_decode(u->new, &new);
	return old.is_snapshot != new.is_snapshot || old.is_deleted != new.is_deleted;
}

int quota_trigger(struct quotas *q, struct btree_txn *txn, struct quota_txn *t, const struct btree_update *u)
{
	if (!q || u->level || u->is_root)
		return 0;
	switch (u->btree_id) {
	case BTREE_INODES: return inode_trigger(q, txn, t, u);
	case BTREE_QUOTAS: return limits_trigger(q, txn, t, u);
	case BTREE_SNAPSHOT_TREES:
	case BTREE_SUBVOLUMES: t->must_recount |= is_other_master(u); return 0;
	default: return 0;
	}
}

/* --- before the commit --- */

static int share_look(struct btree_txn *txn, const struct quota_change *c, unsigned flags, struct quota_share *share)
{
	struct bkey_ref k;
	int ret = btree_txn_get(txn, BTREE_INODES, BPOS(0, c->inum, c->master), BTREE_GET_VISIBLE | flags, &k);

	*share = (struct quota_share){ 0 };
	if (ret > 0)
		quota_share_of(k, share);
	return min(ret, 0);
}

/* Lock held, as below. */
static int rows_get(struct quotas *q, const struct quota_share *share, struct quota_row *rows[QUOTA_TYPE_NR])
{
	for (unsigned type = 0; type < QUOTA_TYPE_NR; type++) {
		rows[type] = NULL;
		if (!share->is_there || !quota_is_counted(q, type))
			continue;
		rows[type] = quota_row_get(q, type, share->owner.ids[type]);
		if (!rows[type])
			return -ENOMEM;
	}
	return 0;
}

/* What the row of the new version gets more than it had. */
static uint64_t change_added(const struct quota_change *c, unsigned type, unsigned counter)
{
	bool is_same_row = c->old_rows[type] == c->new_rows[type];
	uint64_t had = counter == QUOTA_SPACE ? c->old.sectors : 1, has = counter == QUOTA_SPACE ? c->new.sectors : 1;

	if (!c->new_rows[type])
		return 0;
	return !is_same_row ? has : has > had ? has - had : 0;
}

/* Sectors that a promise covers: it was made to the same owners, and each of them gets as many. */
static uint64_t change_promised(const struct quota_change *c, const struct quota_reservation *r, uint64_t left)
{
	for (unsigned type = 0; type < QUOTA_TYPE_NR; type++)
		if (c->new_rows[type] != r->rows[type] || c->old_rows[type] != c->new_rows[type])
			return 0;
	return c->new.sectors > c->old.sectors ? min(left, c->new.sectors - c->old.sectors) : 0;
}

static int change_take(struct quota_change *c, bool is_enforced, uint64_t now)
{
	for (unsigned type = 0; type < QUOTA_TYPE_NR; type++)
		for (unsigned i = 0; i < QUOTA_COUNTER_NR; i++) {
			uint64_t amount =
				change_added(c, type, i) - (i == QUOTA_SPACE && c->new_rows[type] ? c->promised : 0);

			if (!amount)
				continue;
			if (is_enforced && !quota_row_allows(c->new_rows[type], i, amount, now))
				return -EDQUOT;
			c->new_rows[type]->taken[i] += amount;
			c->taken[type][i] = amount;
		}
	return 0;
}

int quota_prepare(struct quotas *q, struct btree_txn *txn, struct quota_txn *t, const struct quota_reservation *r)
{
	uint64_t now = quota_now_seconds(), left = r ? r->sectors : 0;
	int err = 0;

	if (!q || !t->changes)
		return 0;
	for (struct quota_change *c = t->changes; c && !err; c = c->next) {
		if (!c->must_look)
			continue;
		err = share_look(txn, c, BTREE_GET_BELOW_PUTS, &c->old);
		if (!err)
			err = share_look(txn, c, 0, &c->new);
	}
	if (err)
		return err;
	mutex_lock(&q->lock);
	bool is_enforced = quotas_are_enforced(q);
	t->has_taken = true;
	for (struct quota_change *c = t->changes; c && !err; c = c->next) {
		err = rows_get(q, &c->old, c->old_rows);
		if (!err)
			err = rows_get(q, &c->new, c->new_rows);
		if (err)
			break;
		c->promised = left ? change_promised(c, r, left) : 0;
		left -= c->promised;
		err = change_take(c, is_enforced, now);
	}
	mutex_unlock(&q->lock);
	return err;
}

/* --- at the commit, or instead of it; lock held --- */

static void change_give_back(struct quota_change *c)
{
	for (unsigned type = 0; type < QUOTA_TYPE_NR; type++)
		for (unsigned i = 0; i < QUOTA_COUNTER_NR; i++)
			if (c->taken[type][i]) {
				c->new_rows[type]->taken[i] -= c->taken[type][i];
				c->taken[type][i] = 0;
			}
}

static void change_apply(struct quotas *q, struct quota_change *c, uint64_t now)
{
	for (unsigned type = 0; type < QUOTA_TYPE_NR; type++) {
		struct quota_row *old = c->old_rows[type], *new = c->new_rows[type];

		if (old && (new || !is_mutant(MUTANT_QUOTAS))) {
			old->used[QUOTA_SPACE] -= c->old.sectors;
			old->used[QUOTA_INODES]--;
		}
		if (new) {
			new->used[QUOTA_SPACE] += c->new.sectors;
			new->used[QUOTA_INODES]++;
		}
		if (!quotas_are_counted(q))
			continue;
		if (old)
			quota_row_grace_update(q, old, now);
		if (new)
			quota_row_grace_update(q, new, now);
	}
}

void quota_committed(struct quotas *q, struct quota_txn *t, struct quota_reservation *r)
{
	if (!q || (!t->changes && !t->limits && !t->must_recount))
		return;
	uint64_t now = quota_now_seconds();
	mutex_lock(&q->lock);
	for (struct quota_change *c = t->changes; c; c = c->next) {
		change_give_back(c);
		for (unsigned type = 0; type < QUOTA_TYPE_NR && c->promised; type++)
			if (r->rows[type])
				r->rows[type]->taken[QUOTA_SPACE] -= c->promised;
		if (c->promised)
			r->sectors -= c->promised;
		if (c->inum < q->cursor)
			change_apply(q, c, now);
	}
	for (struct quota_limits_update *l = t->limits; l; l = l->next) {
		l->row->limits = l->limits;
		if (quotas_are_counted(q))
			quota_row_grace_update(q, l->row, now);
	}
	if (t->must_recount)
		quotas_recount(q);
	t->has_taken = false;
	mutex_unlock(&q->lock);
}

void quota_aborted(struct quotas *q, struct quota_txn *t)
{
	mutex_lock(&q->lock);
	for (struct quota_change *c = t->changes; c; c = c->next)
		change_give_back(c);
	mutex_unlock(&q->lock);
	t->has_taken = false;
}
