/* The snapshot tree in memory. See snapshots.h. */
#include "namespace/snapshots.h"

#include <errno.h>

#include "base/array.h"

static int table_add(struct snapshot_table *t, struct bkey_ref k)
{
	struct snapshot s;
	uint32_t id = (uint32_t)k.k.p.offset;

	snapshot_decode(k, &s);
	/* Tombstones are kept out of the tree; what breaks the ascending order would let walks loop. */
	if (s.is_deleted || k.k.p.inode || k.k.p.offset > UINT32_MAX || !id || (s.parent && s.parent <= id))
		return 0;

	/* A root has no ancestors to skip to, and others none that aren't above them: walks must go up. */
	for (unsigned i = 0; i < ARRAY_NR(s.skip); i++)
		if (!s.parent || s.skip[i] <= id)
			s.skip[i] = 0;

	int err = array_grow(&t->entries, &t->capacity, t->nr + 1, sizeof(t->entries[0]));
	if (err)
		return err;
	t->entries[t->nr++] = (struct snapshot_entry){ .id = id, .s = s };
	return 0;
}

int snapshot_table_read(struct snapshot_table *t, struct btrees *trees, int *err_out)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret, err = 0;

	*t = (struct snapshot_table){ 0 };
	btree_iter_open(&it, trees, BTREE_SNAPSHOTS, POS_MIN, 0, 0);
	while ((ret = btree_iter_peek(&it, &k))) {
		if (ret == -ENOMEM)
			break;
		if (ret < 0) {
			t->is_incomplete = true;
			err = ret;
			btree_iter_skip_damage(&it);
			continue;
		}
		if (k.k.type == KEY_SNAPSHOT) {
			ret = table_add(t, k);
			if (ret)
				break;
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);

	if (ret < 0)
		snapshot_table_free(t);
	else if (err_out)
		*err_out = err;
	return ret;
}

void snapshot_table_free(struct snapshot_table *t)
{
	free(t->entries);
	*t = (struct snapshot_table){ 0 };
}

const struct snapshot *snapshot_table_find(const struct snapshot_table *t, uint32_t id)
{
	size_t lo = 0, hi = t->nr;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (t->entries[mid].id < id)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < t->nr && t->entries[lo].id == id ? &t->entries[lo].s : NULL;
}

bool snapshot_is_ancestor(void *ctx, uint32_t id, uint32_t ancestor)
{
	const struct snapshot_table *t = ctx;

	if (id == ancestor)
		return true;
	if (t->is_incomplete)
		return id <= ancestor;

	while (id && id < ancestor) {
		const struct snapshot *s = snapshot_table_find(t, id);
		if (!s)
			return false;

		uint32_t next = s->parent;
		for (unsigned i = 0; i < ARRAY_NR(s->skip); i++)
			if (s->skip[i] <= ancestor && s->skip[i] > next)
				next = s->skip[i];
		id = next;
	}
	return id == ancestor;
}

bool snapshot_has_children(void *ctx, uint32_t id)
{
	const struct snapshot_table *t = ctx;
	const struct snapshot *s = snapshot_table_find(t, id);

	return t->is_incomplete || !s || s->children[0] || s->children[1];
}
