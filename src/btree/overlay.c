/*
 * The overlay: keys from the journal that lie over the nodes (03 §8).
 *
 * One array, sorted by (btree, level, position), every position once: the last key of a position by (journal sequence
 * number, offset in the entry) is the one that counts. `deleted` keys stay in it, because they hide what nodes hold.
 *
 * It is made once, before the first read, and doesn't change: readers need no lock.
 */
#include "btree/internal.h"

static int overlay_key_cmp(const void *va, const void *vb)
{
	const struct overlay_key *a = va, *b = vb;

	if (a->btree_id != b->btree_id)
		return a->btree_id < b->btree_id ? -1 : 1;
	if (a->level != b->level)
		return a->level < b->level ? -1 : 1;
	int c = bpos_cmp(a->p, b->p);
	if (c)
		return c;
	if (a->seq != b->seq)
		return a->seq < b->seq ? -1 : 1;
	if (a->offset != b->offset)
		return a->offset < b->offset ? -1 : 1;
	return 0;
}

static bool overlay_key_is_same_place(const struct overlay_key *a, const struct overlay_key *b)
{
	return a->btree_id == b->btree_id && a->level == b->level && bpos_eq(a->p, b->p);
}

void overlay_init(struct overlay *o, struct overlay_key *keys, size_t nr)
{
	/* What no lookup can reach goes first; ids and levels index a table from here on. */
	size_t kept = 0;
	for (size_t i = 0; i < nr; i++)
		if (keys[i].btree_id < BTREE_NR_MAX && keys[i].level <= BTREE_LEVEL_MAX &&
		    keys[i].key->u64s >= BKEY_U64S)
			keys[kept++] = keys[i];
	nr = kept;
	if (nr)
		qsort(keys, nr, sizeof(*keys), overlay_key_cmp);

	kept = 0;
	for (size_t i = 0; i < nr; i++)
		if (i + 1 == nr || !overlay_key_is_same_place(&keys[i], &keys[i + 1]))
			keys[kept++] = keys[i];

	*o = (struct overlay){ .keys = keys, .nr = kept };
	for (size_t i = 0; i < kept;) {
		size_t start = i;
		struct overlay_range *range = &o->by_level[keys[i].btree_id][keys[i].level];

		while (i < kept && keys[i].btree_id == keys[start].btree_id && keys[i].level == keys[start].level)
			i++;
		*range = (struct overlay_range){ keys + start, keys + i };
	}
}

void overlay_free(struct overlay *o)
{
	free(o->keys);
	*o = (struct overlay){ 0 };
}

/* First key at or after @pos; behind it, if @is_after. */
static const struct overlay_key *overlay_bound(struct overlay_range range, struct bpos pos, bool is_after)
{
	const struct overlay_key *begin = range.begin;
	size_t nr = (size_t)(range.end - range.begin);

	while (nr) {
		size_t half = nr / 2;

		if (bpos_cmp(begin[half].p, pos) < (int)is_after) {
			begin += half + 1;
			nr -= half + 1;
		} else {
			nr = half;
		}
	}
	return begin;
}

struct overlay_range overlay_range_get(const struct overlay *o, unsigned btree_id, unsigned level, struct bpos min,
				       struct bpos max)
{
	struct overlay_range range = o->by_level[btree_id][level];

	if (range.begin == range.end || bpos_lt(max, min))
		return (struct overlay_range){ range.begin, range.begin };
	range.begin = overlay_bound(range, min, false);
	range.end = overlay_bound(range, max, true);
	return range;
}

struct bkey_ref overlay_key_load(const struct overlay_key *k)
{
	return (struct bkey_ref){ .k = bkey_load(k->key), .value = k->key + 1 };
}
