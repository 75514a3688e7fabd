/*
 * The keys of a node in memory: a heap, and two sorted indexes into it (struct node_keys).
 *
 * A change puts the new version of a key behind all others in the heap, and moves the index. What it replaces becomes
 * garbage. When the heap is full, node_keys_reserve() makes it anew, without garbage; node_keys_set() itself allocates
 * nothing, so that it can't fail in the middle of a commit.
 *
 * Invariants: `offset` and `dirty` ascend strictly by position. A dirty key that isn't deleted is in `offset`, as the
 * same word. A deleted key in `dirty` hides something in a written set, so its entry has NODE_KEY_IS_WRITTEN, and
 * `offset` has nothing there. live_u64s and dirty_u64s are the sums of their keys' words.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "btree/internal.h"
#include "format/btree_node_write.h"

enum { KEY_U64S_BYTE, KEY_FORMAT_BYTE, KEY_TYPE_BYTE };

static const uint64_t *key_at(const struct node_keys *keys, uint32_t offset)
{
	return keys->words + (offset & ~NODE_KEY_FLAGS);
}

static unsigned key_u64s_at(const struct node_keys *keys, uint32_t offset)
{
	return ((const uint8_t *)key_at(keys, offset))[KEY_U64S_BYTE];
}

void node_keys_free(struct node_keys *keys)
{
	free(keys->offset);
	free(keys->dirty);
	free(keys->words);
	*keys = (struct node_keys){ 0 };
}

size_t node_keys_bytes(const struct node_keys *keys)
{
	return (size_t)keys->word_max * 8 + ((size_t)keys->key_max + keys->dirty_max) * sizeof(uint32_t);
}

/* --- looking --- */

static uint32_t index_lower_bound(const struct node_keys *keys, const uint32_t *index, uint32_t nr, struct bpos pos)
{
	struct bkey_search search;
	uint32_t begin = 0;

	bkey_search_init(&search, &keys->format, pos);
	while (nr) {
		uint32_t half = nr / 2;

		if (bkey_search_cmp(&search, key_at(keys, index[begin + half])) < 0) {
			begin += half + 1;
			nr -= half + 1;
		} else {
			nr = half;
		}
	}
	return begin;
}

uint32_t node_keys_lower_bound(const struct node_keys *keys, struct bpos pos)
{
	return index_lower_bound(keys, keys->offset, keys->key_nr, pos);
}

struct bkey_ref node_keys_get(const struct node_keys *keys, uint32_t idx)
{
	struct bkey_ref k;

	k.k = bkey_unpack(&keys->format, node_keys_at(keys, idx), &k.value);
	return k;
}

/* --- room --- */

static int index_grow(uint32_t **index, uint32_t *index_max, uint32_t needed)
{
	if (needed <= *index_max)
		return 0;
	uint32_t grown_max = max(max(needed, *index_max + *index_max / 2), 16u);
	uint32_t *grown = realloc(*index, grown_max * sizeof(*grown));

	if (!grown)
		return -ENOMEM;
	*index = grown;
	*index_max = grown_max;
	return 0;
}

/* Is the key of dirty[i] a deleted one, which `offset` doesn't have? */
static bool dirty_is_deleted(const struct node_keys *keys, uint32_t i)
{
	return ((const uint8_t *)key_at(keys, keys->dirty[i]))[KEY_TYPE_BYTE] == KEY_DELETED;
}

static uint32_t key_move(struct node_keys *keys, uint64_t *to, uint32_t *to_nr, uint32_t offset)
{
	unsigned u64s = key_u64s_at(keys, offset);
	uint32_t at = *to_nr;

	memcpy(to + at, key_at(keys, offset), (size_t)u64s * 8);
	*to_nr += u64s;
	return at | (offset & NODE_KEY_FLAGS);
}

/* Make the heap anew, in order, with room for @u64s more words. */
static int heap_compact(struct node_keys *keys, uint32_t u64s)
{
	uint32_t taken = keys->live_u64s + keys->dirty_u64s; /* at most: deleted keys are in `dirty` alone */
	uint32_t words_max = taken + u64s + taken / 2 + 64, word_nr = 0;
	uint64_t *words = malloc((size_t)words_max * 8);

	if (!words)
		return -ENOMEM;
	for (uint32_t i = 0, d = 0; i < keys->key_nr || d < keys->dirty_nr;) {
		bool is_both = i < keys->key_nr && d < keys->dirty_nr &&
			       (keys->offset[i] & ~NODE_KEY_FLAGS) == (keys->dirty[d] & ~NODE_KEY_FLAGS);

		if (is_both) {
			keys->offset[i] = key_move(keys, words, &word_nr, keys->offset[i]);
			keys->dirty[d++] = keys->offset[i++];
		} else if (d < keys->dirty_nr && (i == keys->key_nr || dirty_is_deleted(keys, d))) {
			/* Somewhere among the live ones: its place in the heap doesn't matter. */
			keys->dirty[d] = key_move(keys, words, &word_nr, keys->dirty[d]);
			d++;
		} else {
			keys->offset[i] = key_move(keys, words, &word_nr, keys->offset[i]);
			i++;
		}
	}
	free(keys->words);
	keys->words = words;
	keys->word_nr = word_nr;
	keys->word_max = words_max;
	return 0;
}

int node_keys_reserve(struct node_keys *keys, uint32_t key_nr, uint32_t u64s)
{
	if (index_grow(&keys->offset, &keys->key_max, keys->key_nr + key_nr) ||
	    index_grow(&keys->dirty, &keys->dirty_max, keys->dirty_nr + key_nr))
		return -ENOMEM;
	return keys->word_nr + u64s <= keys->word_max ? 0 : heap_compact(keys, u64s);
}

/* --- changing --- */

/* Append the key to the heap. Returns its offset. */
static uint32_t heap_add(struct node_keys *keys, const struct bkey *k, const void *value)
{
	uint32_t at = keys->word_nr;
	uint64_t *key = keys->words + at;
	unsigned header_u64s = keys->format.key_u64s;

	/* Packed keys are shorter, but for formats as wide as an unpacked key. */
	if (keys->word_max - at < (unsigned)BKEY_U64S + k->value_u64s)
		abort();
	if (!bkey_pack(&keys->format, key, k)) {
		bkey_store((struct bkey_disk *)key, k);
		header_u64s = BKEY_U64S;
	}
	((uint8_t *)key)[KEY_U64S_BYTE] = (uint8_t)(header_u64s + k->value_u64s);
	if (k->value_u64s)
		memcpy(key + header_u64s, value, bkey_value_bytes(k));
	keys->word_nr += header_u64s + k->value_u64s;
	return at;
}

static void index_insert(uint32_t *index, uint32_t *nr, uint32_t i, uint32_t offset)
{
	memmove(index + i + 1, index + i, (*nr - i) * sizeof(*index));
	index[i] = offset;
	++*nr;
}

static void index_remove(uint32_t *index, uint32_t *nr, uint32_t i)
{
	memmove(index + i, index + i + 1, (*nr - i - 1) * sizeof(*index));
	--*nr;
}

static bool index_has(const struct node_keys *keys, const uint32_t *index, uint32_t nr, uint32_t i, struct bpos pos)
{
	return i < nr && bpos_eq(bkey_unpack_pos(&keys->format, key_at(keys, index[i])), pos);
}

uint32_t node_keys_growth(const struct node_keys *keys, const struct bkey *k)
{
	uint32_t i = node_keys_lower_bound(keys, k->p);
	bool is_live = index_has(keys, keys->offset, keys->key_nr, i, k->p);
	unsigned old_u64s = is_live ? key_u64s_at(keys, keys->offset[i]) : 0;

	return max(bkey_packed_u64s(&keys->format, k), old_u64s) - old_u64s;
}

/* @offset: the key's new version, deleted or not, with its flags. */
static void dirty_set(struct node_keys *keys, uint32_t i, bool is_there, uint32_t offset)
{
	if (is_there) {
		keys->dirty_u64s -= key_u64s_at(keys, keys->dirty[i]);
		keys->dirty[i] = offset;
	} else {
		index_insert(keys->dirty, &keys->dirty_nr, i, offset);
	}
	keys->dirty_u64s += key_u64s_at(keys, offset);
}

static void dirty_remove(struct node_keys *keys, uint32_t i)
{
	keys->dirty_u64s -= key_u64s_at(keys, keys->dirty[i]);
	index_remove(keys->dirty, &keys->dirty_nr, i);
}

void node_keys_set(struct node_keys *keys, const struct bkey *k, const void *value)
{
	uint32_t i = node_keys_lower_bound(keys, k->p);
	bool is_live = index_has(keys, keys->offset, keys->key_nr, i, k->p);
	uint32_t d = index_lower_bound(keys, keys->dirty, keys->dirty_nr, k->p);
	bool is_dirty = index_has(keys, keys->dirty, keys->dirty_nr, d, k->p);
	uint32_t flags = (is_live ? keys->offset[i] : is_dirty ? keys->dirty[d] : 0) & NODE_KEY_IS_WRITTEN;

	if (is_live) {
		keys->live_u64s -= key_u64s_at(keys, keys->offset[i]);
		keys->lost_nr -= node_keys_is_lost(keys, i);
	}
	if (k->type != KEY_DELETED) {
		uint32_t offset = heap_add(keys, k, value) | flags;

		if (is_live)
			keys->offset[i] = offset;
		else
			index_insert(keys->offset, &keys->key_nr, i, offset);
		keys->live_u64s += key_u64s_at(keys, offset);
		dirty_set(keys, d, is_dirty, offset);
		return;
	}
	if (is_live)
		index_remove(keys->offset, &keys->key_nr, i);
	if (flags) {
		const struct bkey deleted = { .p = k->p, .type = KEY_DELETED };

		if (is_live)
			dirty_set(keys, d, is_dirty, heap_add(keys, &deleted, NULL) | flags);
	} else if (is_dirty) {
		dirty_remove(keys, d);
	}
}

void node_keys_append(struct node_keys *keys, const struct bkey *k, const void *value)
{
	uint32_t offset = heap_add(keys, k, value) | NODE_KEY_IS_WRITTEN;

	keys->offset[keys->key_nr++] = offset;
	keys->live_u64s += key_u64s_at(keys, offset);
}

void node_keys_clean(struct node_keys *keys)
{
	for (uint32_t i = 0, d = 0; d < keys->dirty_nr; d++) {
		if (dirty_is_deleted(keys, d))
			continue;
		/* In the order of both indexes, so one pass finds all. */
		while ((keys->offset[i] & ~NODE_KEY_FLAGS) != (keys->dirty[d] & ~NODE_KEY_FLAGS))
			i++;
		keys->offset[i] |= NODE_KEY_IS_WRITTEN;
	}
	keys->dirty_nr = keys->dirty_u64s = 0;
}

/* --- with journal keys --- */

struct keys_walk keys_walk_begin(const struct btrees *trees, unsigned btree_id, unsigned level,
				 const struct node_keys *keys, struct bpos min_pos, struct bpos max_pos)
{
	return (struct keys_walk){
		.keys = keys,
		.idx = keys ? node_keys_lower_bound(keys, min_pos) : 0,
		.overlay = overlay_range_get(&trees->overlay, btree_id, level, min_pos, max_pos),
		.max = max_pos,
	};
}

bool keys_walk_next(struct keys_walk *w, struct bkey_ref *k)
{
	for (;;) {
		bool has_node = w->keys && w->idx < w->keys->key_nr, has_overlay = overlay_range_skip(&w->overlay);

		w->is_lost = false;
		if (has_node) {
			*k = node_keys_get(w->keys, w->idx);
			has_node = bpos_le(k->k.p, w->max);
		}
		if (!has_node && !has_overlay)
			return false;
		int c = !has_node ? 1 : !has_overlay ? -1 : bpos_cmp(k->k.p, w->overlay.begin->p);
		if (c < 0) {
			w->is_lost = node_keys_is_lost(w->keys, w->idx++);
			return true;
		}
		w->idx += c == 0;
		*k = overlay_key_load(w->overlay.begin++);
		if (k->k.type != KEY_DELETED)
			return true;
	}
}
