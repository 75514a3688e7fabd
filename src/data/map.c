/*
 * Which keys cover a range of a file.
 *
 * The extents btree is sorted by the ends of extents, and the iterator filters by snapshot, per end. That leaves two
 * things to this file:
 *
 * - Extents visible in one snapshot should not overlap, but writers up to 1.4.1 could leave an ancestor's stale piece
 *   under a nearer extent (05 §4.3). The nearer one, which has the smaller snapshot id, wins; the other is cut. As the
 *   winner may end behind the range asked for, some keys more are looked at, but only where what was found is
 * inherited.
 *
 * - When a node or a key can't be read, the extents that end in its range are unknown. They may begin before that
 * range, so what is lost begins where the last known extent ends; what later keys cover is known again.
 */
#include <errno.h>
#include <string.h>

#include "data/internal.h"

void extents_open(struct btree_iter *it, struct btrees *trees, uint64_t inum, uint32_t snapshot, uint64_t sector)
{
	btree_iter_open(it, trees, BTREE_EXTENTS, pos_of_sector(inum, sector), 0, snapshot);
	it->end = BPOS(inum, UINT64_MAX, UINT32_MAX);
}

void map_open(struct map *m, struct btrees *trees, const struct data_file *file)
{
	m->inum = file->inum;
	m->snapshot = file->snapshot;
	m->span_nr = 0;
	extents_open(&m->iter, trees, file->inum, file->snapshot, 0);
}

void map_close(struct map *m) { btree_iter_close(&m->iter); }

enum span_kind span_kind(unsigned key_type)
{
	switch (key_type) {
	case KEY_EXTENT: return SPAN_EXTENT;
	case KEY_REFLINK_P: return SPAN_REFLINK;
	case KEY_INLINE_DATA: return SPAN_INLINE;
	case KEY_DELETED:
	case KEY_WHITEOUT:
	case KEY_EXTENT_WHITEOUT:
	case KEY_COOKIE:
	case KEY_RESERVATION: return SPAN_HOLE;
	default: return SPAN_LOST;
	}
}

bool key_is_unwritten(const struct data *data, struct bkey_ref k)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];

	/* All pointers of a key are, or none. */
	return k.k.type == KEY_EXTENT && extent_decode(k, &data->super->kctx, ptrs, NULL, NULL) > 0 &&
	       ptrs[0].ptr.is_unwritten;
}

bool key_is_hole(const struct data *data, struct bkey_ref k)
{
	return span_kind(k.k.type) == SPAN_HOLE || key_is_unwritten(data, k);
}

/* Where two overlap: does @old stay? What couldn't be looked up always gives way. */
static bool span_stays(const struct span *old, const struct span *new)
{
	if (old->err || new->err)
		return !old->err;
	return old->k.p.snapshot <= new->k.p.snapshot;
}

static void span_push(struct map *m, const struct span *s, uint64_t begin, uint64_t end)
{
	if (begin >= end)
		return;
	m->spans[m->span_nr] = *s;
	m->spans[m->span_nr].begin = begin;
	m->spans[m->span_nr].end = end;
	m->span_nr++;
}

/* Add a span that ends behind all others. It grows the list by at most as many as there are, and one. */
static void span_add(struct map *m, const struct span *new)
{
	struct span old[MAP_KEYS_MAX];
	unsigned first = m->span_nr;

	while (first && m->spans[first - 1].end > new->begin)
		first--;
	unsigned old_nr = m->span_nr - first;
	memcpy(old, m->spans + first, old_nr * sizeof(old[0]));
	m->span_nr = first;

	uint64_t begin = new->begin; /* of what isn't placed yet */
	for (unsigned i = 0; i < old_nr; i++) {
		if (!span_stays(&old[i], new)) {
			span_push(m, &old[i], old[i].begin, min(old[i].end, new->begin));
			continue;
		}
		span_push(m, new, begin, old[i].begin);
		span_push(m, &old[i], old[i].begin, old[i].end);
		begin = max(begin, old[i].end);
	}
	span_push(m, new, begin, new->end);
}

/* Take a key; its value is copied, as it goes away with the next move of the iterator. */
static void key_add(struct map *m, struct bkey_ref k)
{
	size_t bytes = bkey_value_bytes(&k.k);
	uint8_t *value = m->values + m->values_used;
	struct span new = {
		.begin = k.k.p.offset > k.k.size ? bkey_start_offset(&k.k) : 0,
		.end = k.k.p.offset,
		.k = k.k,
		.value = value,
	};

	if (bytes)
		memcpy(value, k.value, bytes);
	m->values_used += bytes;
	span_add(m, &new);
}

static uint64_t spans_end(const struct map *m, uint64_t begin)
{
	return m->span_nr ? max(begin, m->spans[m->span_nr - 1].end) : begin;
}

/* The node or key that comes next is lost: what is behind the last known extent up to its end is lost. False: all of
 * it.
 */
static bool damage_add(struct map *m, uint64_t begin, int err)
{
	struct bpos was = m->iter.pos, damage_end = m->iter.damage_max;
	struct span lost = {
		.begin = spans_end(m, begin),
		.end = damage_end.inode == m->inum ? damage_end.offset : UINT64_MAX,
		.err = err,
	};

	btree_iter_skip_damage(&m->iter);
	if (damage_end.inode < m->inum || bpos_le(m->iter.pos, was))
		lost.end = UINT64_MAX;
	if (lost.begin < lost.end)
		span_add(m, &lost);
	return lost.end != UINT64_MAX;
}

int map_fill(struct map *m, uint64_t begin, uint64_t *end)
{
	bool is_inherited = false;
	unsigned keys_behind = 0;

	m->span_nr = 0;
	m->values_used = 0;
	btree_iter_seek(&m->iter, pos_of_sector(m->inum, begin));
	for (;;) {
		struct bkey_ref k;
		int n = btree_iter_peek(&m->iter, &k);

		if (n == -ENOMEM)
			return n;
		if (n < 0) {
			if (keys_behind || !damage_add(m, begin, n))
				return 0;
		} else if (!n) {
			return 0;
		} else {
			bool is_behind = k.k.p.offset - min(k.k.p.offset, (uint64_t)k.k.size) >= *end;

			if (is_behind && (!is_inherited || keys_behind++ == MAP_LOOKAHEAD_MAX))
				return 0;
			is_inherited = is_inherited || k.k.p.snapshot != m->snapshot;
			if (!is_behind && k.k.size)
				key_add(m, k);
			btree_iter_advance(&m->iter);
		}
		/* Behind a lost range a key may come that begins inside it, and then that part isn't lost. */
		bool is_last_lost = m->span_nr && m->spans[m->span_nr - 1].err;
		if (spans_end(m, begin) >= *end && !is_inherited && !is_last_lost)
			return 0;
		if (m->span_nr >= MAP_KEYS_MAX || m->values_used + BKEY_VALUE_U64S_MAX * 8 > sizeof(m->values)) {
			*end = min(*end, spans_end(m, begin));
			return 0;
		}
	}
}
