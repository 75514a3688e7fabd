/*
 * The overlay: keys from the journal that lie over the nodes (03 §8).
 *
 * An index, sorted by (btree, level, position), every position once: the last key of a position by (journal sequence
 * number, offset in the entry) is the one that counts. `deleted` keys stay in it, because they hide what nodes hold.
 * What the keys say stands beside the index, in the same order. Both are made once, before the first read, and don't
 * change but for one flag: that a key has come into its node, or a newer one. It is set under the node's write lock.
 *
 * While keys are collected, both are filled from the front. When either is full, the index is sorted, what doesn't
 * count is dropped, and both are made anew with twice the room that is taken. Each time costs at least as many new keys
 * as were kept the time before, so all of them together cost little more than the last one. The sort merges runs from
 * one piece of spill memory to another, front to back, so that it works on a file as well as in memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "btree/internal.h"

enum {
	KEY_BYTES_MAX = UINT8_MAX * 8,
	KEYS_BYTES_MIN = OVERLAY_KEYS_MIN * 128,
	SORT_RUN_KEYS = 1 << 14, /* sorted by qsort(), which may allocate as much */
};

struct overlay_builder {
	bool is_secret;
	struct spill index, bytes;
	size_t nr, bytes_used;
	size_t nr_max, memory_max; /* ever */
};

static struct overlay_key *builder_keys(const struct overlay_builder *b) { return b->index.mem; }

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

struct overlay_builder *overlay_builder_new(bool is_secret)
{
	struct overlay_builder *b = calloc(1, sizeof(*b));

	if (b)
		b->is_secret = is_secret;
	return b;
}

void overlay_builder_free(struct overlay_builder *b)
{
	if (!b)
		return;
	spill_free(&b->index);
	spill_free(&b->bytes);
	free(b);
}

void overlay_builder_usage(const struct overlay_builder *b, struct overlay_usage *usage)
{
	*usage = (struct overlay_usage){
		.keys = b->nr, .keys_max = b->nr_max, .key_bytes = b->bytes_used, .memory_max = b->memory_max
	};
}

static void builder_note_memory(struct overlay_builder *b, size_t other_bytes)
{
	b->memory_max = max(b->memory_max, b->index.bytes + b->bytes.bytes + other_bytes);
}

/* --- sorting --- */

/* Merge the sorted @a and @b to @to. */
static void runs_merge(struct overlay_key *to, const struct overlay_key *a, size_t a_nr, const struct overlay_key *b,
		       size_t b_nr)
{
	while (a_nr && b_nr) {
		bool is_a = overlay_key_cmp(a, b) <= 0;

		*to++ = is_a ? *a++ : *b++;
		a_nr -= is_a;
		b_nr -= !is_a;
	}
	memcpy(to, a, a_nr * sizeof(*a));
	memcpy(to + a_nr, b, b_nr * sizeof(*b));
}

/* Merge sort of the builder's index, from short runs up. */
static int index_sort(struct overlay_builder *b)
{
	struct spill other = { 0 };

	for (size_t i = 0; i < b->nr; i += SORT_RUN_KEYS)
		qsort(builder_keys(b) + i, min(b->nr - i, (size_t)SORT_RUN_KEYS), sizeof(struct overlay_key),
		      overlay_key_cmp);
	if (b->nr > SORT_RUN_KEYS && spill_alloc(&other, b->index.bytes, b->is_secret))
		return -ENOMEM;
	for (size_t run = SORT_RUN_KEYS; run < b->nr; run *= 2) {
		struct overlay_key *from = b->index.mem, *to = other.mem;

		for (size_t i = 0; i < b->nr; i += 2 * run) {
			size_t first = min(run, b->nr - i), second = min(run, b->nr - i - first);

			runs_merge(to + i, from + i, first, from + i + first, second);
		}
		struct spill swap = b->index;
		b->index = other;
		other = swap;
	}
	builder_note_memory(b, other.bytes);
	spill_free(&other);
	return 0;
}

/* --- collecting --- */

/* Sort the index and keep what counts. Returns the bytes that its keys take. */
static int index_compact(struct overlay_builder *b, size_t *bytes_kept)
{
	struct overlay_key *keys;
	size_t kept = 0;

	*bytes_kept = 0;
	if (index_sort(b))
		return -ENOMEM;
	keys = builder_keys(b);
	for (size_t i = 0; i < b->nr; i++) {
		if (i + 1 < b->nr && overlay_key_is_same_place(&keys[i], &keys[i + 1]))
			continue;
		const struct bkey_disk *key = (const void *)((const uint8_t *)b->bytes.mem + keys[i].at);

		*bytes_kept += (size_t)key->u64s * 8;
		keys[kept++] = keys[i];
	}
	b->nr = kept;
	return 0;
}

/*
 * Drop what doesn't count, and make room: as much again as is taken if @is_growing, else none. The keys' bytes are in
 * the index's order afterwards.
 */
static int builder_compact(struct overlay_builder *b, bool is_growing)
{
	size_t bytes_kept, at = 0;
	struct spill index, bytes;

	if (index_compact(b, &bytes_kept))
		return -ENOMEM;
	size_t index_room = is_growing ? max(2 * b->nr, (size_t)OVERLAY_KEYS_MIN) : b->nr;
	size_t bytes_room = is_growing ? max(2 * bytes_kept, (size_t)KEYS_BYTES_MIN) : bytes_kept;

	if (spill_alloc(&index, index_room * sizeof(struct overlay_key), b->is_secret))
		return -ENOMEM;
	if (spill_alloc(&bytes, bytes_room, b->is_secret)) {
		spill_free(&index);
		return -ENOMEM;
	}
	struct overlay_key *from = builder_keys(b), *to = index.mem;
	for (size_t i = 0; i < b->nr; i++) {
		const struct bkey_disk *key = (const void *)((const uint8_t *)b->bytes.mem + from[i].at);
		size_t key_bytes = (size_t)key->u64s * 8;

		memcpy((uint8_t *)bytes.mem + at, key, key_bytes);
		to[i] = from[i];
		to[i].at = at;
		at += key_bytes;
	}
	builder_note_memory(b, index.bytes + bytes.bytes);
	spill_free(&b->index);
	spill_free(&b->bytes);
	b->index = index;
	b->bytes = bytes;
	b->bytes_used = at;
	return 0;
}

int overlay_builder_add(struct overlay_builder *b, unsigned btree_id, unsigned level, uint64_t seq, uint32_t offset,
			const struct bkey_disk *key)
{
	size_t key_bytes = (size_t)key->u64s * 8;

	_Static_assert(KEYS_BYTES_MIN >= 2 * KEY_BYTES_MAX, "there is room for a key after making room");
	if (btree_id >= BTREE_NR_MAX || level > BTREE_LEVEL_MAX || key->u64s < BKEY_U64S)
		return 0;
	if ((b->nr + 1) * sizeof(struct overlay_key) > b->index.bytes || b->bytes_used + key_bytes > b->bytes.bytes) {
		int err = builder_compact(b, true);
		if (err)
			return err;
	}
	builder_keys(b)[b->nr++] = (struct overlay_key){
		.p = bpos_load(&key->p),
		.btree_id = (uint8_t)btree_id,
		.level = (uint8_t)level,
		.offset = offset,
		.seq = seq,
		.at = b->bytes_used,
	};
	memcpy((uint8_t *)b->bytes.mem + b->bytes_used, key, key_bytes);
	b->bytes_used += key_bytes;
	b->nr_max = max(b->nr_max, b->nr);
	return 0;
}

/* --- the overlay --- */

int overlay_init(struct overlay *o, struct overlay_builder *b)
{
	int err = builder_compact(b, false);

	*o = (struct overlay){ 0 };
	if (err) {
		overlay_builder_free(b);
		return err;
	}
	struct overlay_key *keys = builder_keys(b);
	for (size_t i = 0; i < b->nr;) {
		size_t start = i;
		struct overlay_range *range = &o->by_level[keys[i].btree_id][keys[i].level];

		for (; i < b->nr && keys[i].btree_id == keys[start].btree_id && keys[i].level == keys[start].level; i++)
			keys[i].key = (const void *)((const uint8_t *)b->bytes.mem + keys[i].at);
		*range = (struct overlay_range){ keys + start, keys + i };
	}
	o->index = b->index;
	o->bytes = b->bytes;
	free(b);
	return 0;
}

void overlay_free(struct overlay *o)
{
	spill_free(&o->index);
	spill_free(&o->bytes);
	*o = (struct overlay){ 0 };
}

bool overlay_is_empty(const struct overlay *o)
{
	for (unsigned id = 0; id < BTREE_NR_MAX; id++)
		for (unsigned level = 0; level <= BTREE_LEVEL_MAX; level++) {
			struct overlay_range range = o->by_level[id][level];

			if (overlay_range_skip(&range))
				return false;
		}
	return true;
}

/* First key at or after @pos; behind it, if @is_after. */
static struct overlay_key *overlay_bound(struct overlay_range range, struct bpos pos, bool is_after)
{
	struct overlay_key *begin = range.begin;
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

void overlay_set_overwritten(const struct overlay *o, unsigned btree_id, unsigned level, struct bpos pos)
{
	struct overlay_range range = overlay_range_get(o, btree_id, level, pos, pos);

	for (; range.begin < range.end; range.begin++)
		atomic_store_explicit(&range.begin->is_overwritten, true, memory_order_relaxed);
}
