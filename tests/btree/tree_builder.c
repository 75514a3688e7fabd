/* Writes btrees, for tests (see tree_builder.h). */
#include "tree_builder.h"

#include <assert.h>
#include <string.h>

#include "base/array.h"

struct arena_block {
	struct arena_block *next;
	uint8_t bytes[] __attribute__((aligned(16)));
};

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

void *tree_builder_alloc(struct tree_builder *b, size_t bytes)
{
	struct arena_block *block = must(calloc(1, sizeof(*block) + bytes));

	block->next = b->arena;
	b->arena = block;
	return block->bytes;
}

void tree_builder_free(struct tree_builder *b)
{
	while (b->arena) {
		struct arena_block *block = b->arena;

		b->arena = block->next;
		free(block);
	}
	overlay_builder_free(b->overlay);
	b->overlay = NULL;
}

void tree_overlay_add(struct tree_builder *b, unsigned btree_id, unsigned level, uint64_t seq, uint32_t offset,
		      const struct bkey_ref *k)
{
	struct {
		struct bkey_disk d;
		uint8_t value[BKEY_VALUE_U64S_MAX * 8];
	} key;

	bkey_store(&key.d, &k->k);
	if (k->k.value_u64s)
		memcpy(key.value, k->value, bkey_value_bytes(&k->k));
	if (!b->overlay)
		b->overlay = must(overlay_builder_new(false));
	if (overlay_builder_add(b->overlay, btree_id, level, seq, offset, &key.d))
		abort();
}

/* --- one node --- */

void node_writer_begin(struct node_writer *w, const struct tree_builder *b, uint8_t *buf, unsigned btree_id,
		       unsigned level, struct bpos min_key, struct bpos max_key, const struct bkey_format *format,
		       uint64_t seq)
{
	struct btree_node_disk *n = (struct btree_node_disk *)buf;

	*w = (struct node_writer){ .b = b, .buf = buf, .seq = seq, .format = *format };
	memset(buf, 0, b->node_bytes);
	n->magic = le64_of(b->magic);
	n->flags =
		le64_of((btree_id & 15) | (uint64_t)level << 4 | 1 << 8 | (uint64_t)(btree_id >> 4) << 9 | 1ull << 32);
	bpos_store(&n->min_key, min_key);
	bpos_store(&n->max_key, max_key);
	bkey_format_store(&n->format, format);
}

/* Returns the words written, 0 if there is no room. */
static size_t key_write(const struct bkey_format *format, uint8_t *dst, size_t avail_u64s, const struct bkey_ref *k)
{
	uint8_t packed[BKEY_U64S_MAX * 8] = { 0 };
	size_t key_u64s = format->key_u64s;

	if (!bkey_pack(format, packed, &k->k)) {
		bkey_store((struct bkey_disk *)packed, &k->k);
		key_u64s = BKEY_U64S;
	}
	size_t u64s = key_u64s + k->k.value_u64s;
	if (u64s > avail_u64s)
		return 0;
	packed[0] = (uint8_t)u64s;
	memcpy(dst, packed, key_u64s * 8);
	if (k->k.value_u64s)
		memcpy(dst + key_u64s * 8, k->value, bkey_value_bytes(&k->k));
	return u64s;
}

bool node_writer_set(struct node_writer *w, uint64_t journal_seq, const struct bkey_ref *keys, size_t nr)
{
	const struct tree_builder *b = w->b;
	size_t start = w->end, header_bytes = bset_header_bytes(start);

	if (start + header_bytes > b->node_bytes)
		return false;
	size_t keys_at = start + header_bytes, at = keys_at;
	for (size_t i = 0; i < nr; i++) {
		size_t u64s = key_write(&w->format, w->buf + at, (b->node_bytes - at) / 8, &keys[i]);

		if (!u64s) {
			memset(w->buf + keys_at, 0, at - keys_at);
			return false;
		}
		at += u64s * 8;
	}

	struct bset_disk *set = bset_at(w->buf, start);
	*set = (struct bset_disk){
		.seq = le64_of(w->seq),
		.journal_seq = le64_of(journal_seq),
		.flags = le32_of((uint32_t)(start / SECTOR_BYTES) << 16),
		.version = le16_of(b->version),
		.u64s = le16_of((uint16_t)((at - keys_at) / 8)),
	};
	bset_seal(w->buf, start, b->csum_type, b->key);
	w->end = round_up_u64(at, b->block_bytes);
	return true;
}

struct bkey_ref btree_ptr_key(struct tree_builder *b, struct bpos max_key, const struct btree_ptr *ptr)
{
	uint8_t *value = tree_builder_alloc(b, BTREE_PTR_V2_HEADER_BYTES + ptr->ptr_nr * 8);

	le64_store(value, rng_u64(&b->rng)); /* scratch of upstream's: to be ignored */
	le64_store(value + 8, ptr->seq);
	le16_store(value + 16, ptr->sectors_written);
	le16_store(value + 18, ptr->is_range_updated);
	bpos_store((struct bpos_disk *)(value + 20), ptr->min_key);
	for (unsigned i = 0; i < ptr->ptr_nr; i++)
		extent_ptr_store(value + BTREE_PTR_V2_HEADER_BYTES + i * 8, &ptr->ptrs[i]);
	return (struct bkey_ref){
		.k = { .p = max_key, .type = KEY_BTREE_PTR_V2, .value_u64s = (uint8_t)(5 + ptr->ptr_nr) },
		.value = value,
	};
}

/* --- what goes into the sets of a node --- */

struct key_list {
	struct bkey_ref *keys;
	size_t nr, capacity;
};

static void key_list_add(struct key_list *list, struct bkey_ref k)
{
	if (array_grow(&list->keys, &list->capacity, list->nr + 1, sizeof(*list->keys)))
		abort();
	list->keys[list->nr++] = k;
}

static int key_ref_cmp(const void *a, const void *b)
{
	return bpos_cmp(((const struct bkey_ref *)a)->k.p, ((const struct bkey_ref *)b)->k.p);
}

/* An older version of @k: of the same kind, with another value. */
static struct bkey_ref key_old_version(struct tree_builder *b, struct bkey_ref k)
{
	uint8_t *value = tree_builder_alloc(b, bkey_value_bytes(&k.k));

	if (k.k.type == KEY_BTREE_PTR_V2) {
		/* What appending to a node does to its pointer, backwards. The sector leads nowhere. */
		memcpy(value, k.value, bkey_value_bytes(&k.k));
		le64_store(value + 8, rng_u64(&b->rng) | 1);
	} else {
		for (size_t i = 0; i < bkey_value_bytes(&k.k); i++)
			value[i] = (uint8_t)rng_u64(&b->rng);
	}
	k.value = value;
	return k;
}

static const struct bkey_ref *key_find(const struct bkey_ref *keys, size_t nr, struct bpos p)
{
	struct bkey_ref k = { .k.p = p };

	return nr ? bsearch(&k, keys, nr, sizeof(k), key_ref_cmp) : NULL;
}

/* Spread the live keys @keys over @sets, with a past. */
static void sets_fill(struct tree_builder *b, const struct bkey_ref *keys, size_t nr, struct key_list *sets,
		      unsigned set_nr)
{
	for (size_t i = 0; i < nr; i++) {
		unsigned last = (unsigned)rng_below(&b->rng, set_nr);

		key_list_add(&sets[last], keys[i]);
		if (!b->has_history)
			continue;
		for (unsigned s = 0; s < last; s++) {
			if (rng_below(&b->rng, 3))
				continue;
			struct bkey_ref old = key_old_version(b, keys[i]);
			if (rng_below(&b->rng, 4) == 0)
				old = (struct bkey_ref){ .k = { .p = keys[i].k.p, .type = KEY_DELETED } };
			key_list_add(&sets[s], old);
		}
		/* A neighbour that was there for a while. */
		struct bpos p = bpos_predecessor(keys[i].k.p);
		if (last && i && keys[i].k.type != KEY_BTREE_PTR_V2 && bpos_lt(keys[i - 1].k.p, p) &&
		    keys[i].k.p.snapshot > 1 && !key_find(keys, nr, p)) {
			struct bkey_ref gone = key_old_version(b, keys[i]);

			gone.k.p = p;
			if (gone.k.size && gone.k.size > p.offset)
				continue;
			key_list_add(&sets[last - 1], gone);
			key_list_add(&sets[last], (struct bkey_ref){ .k = { .p = p, .type = KEY_DELETED } });
		}
	}
	for (unsigned s = 0; s < set_nr; s++)
		if (sets[s].nr)
			qsort(sets[s].keys, sets[s].nr, sizeof(*sets[s].keys), key_ref_cmp);
}

static struct bkey_format format_choose(struct tree_builder *b, const struct bkey_ref *keys, size_t nr,
					struct bpos min_key, struct bpos max_key)
{
	struct bkey_format_builder fb;
	struct bkey_format format;
	bool is_narrow = b->has_narrow_formats && rng_below(&b->rng, 2);

	bkey_format_begin(&fb);
	for (size_t i = 0; i < nr; i++)
		if (!is_narrow || rng_below(&b->rng, 4) == 0)
			bkey_format_add_key(&fb, &keys[i].k);
	if (!is_narrow) {
		bkey_format_add_pos(&fb, min_key);
		bkey_format_add_pos(&fb, max_key);
	}
	bkey_format_finish(&fb, &format);
	return format;
}

/* Write a node of the live keys @keys. Returns false when they don't fit. */
static bool node_write(struct tree_builder *b, uint8_t *buf, unsigned level, struct bpos min_key, struct bpos max_key,
		       const struct bkey_ref *keys, size_t nr, struct btree_ptr *ptr)
{
	unsigned set_nr = b->sets_per_node > 1 ? 1 + (unsigned)rng_below(&b->rng, b->sets_per_node) : 1;
	struct key_list *sets = must(calloc(set_nr, sizeof(*sets)));
	struct bkey_format format = format_choose(b, keys, nr, min_key, max_key);
	struct node_writer w;
	bool fits = true;

	sets_fill(b, keys, nr, sets, set_nr);
	node_writer_begin(&w, b, buf, b->btree_id, level, min_key, max_key, &format, rng_u64(&b->rng) | 1);
	for (unsigned s = 0; fits && s < set_nr; s++)
		if (!s || sets[s].nr)
			fits = node_writer_set(&w, s, sets[s].keys, sets[s].nr);
	for (unsigned s = 0; s < set_nr; s++)
		free(sets[s].keys);
	free(sets);
	if (!fits)
		return false;

	*ptr = (struct btree_ptr){ .seq = w.seq,
				   .sectors_written = (uint16_t)(w.end / SECTOR_BYTES),
				   .min_key = min_key };
	b->place(b->ctx, buf, w.end, ptr);
	return true;
}

/* --- levels --- */

static struct bkey_ref stale_ptr_key(struct tree_builder *b, struct bpos min_key, struct bpos max_key)
{
	struct btree_ptr ptr = {
		.seq = rng_u64(&b->rng) | 1,
		.sectors_written = (uint16_t)(b->block_bytes / SECTOR_BYTES),
		.min_key = min_key,
		.ptr_nr = 1,
		.ptrs = { { .sector = (1ull << 43) } },
	};

	return btree_ptr_key(b, max_key, &ptr);
}

static struct bpos ptr_key_min(const struct bkey_ref *k)
{
	return bpos_load((const struct bpos_disk *)((const uint8_t *)k->value + 20));
}

/*
 * Of the pointers that belong into an interior node, the ones that are on disk; the rest of the truth becomes journal
 * keys: splits that happened after the node was last written, and merges.
 */
static struct key_list interior_on_disk(struct tree_builder *b, unsigned level, const struct bkey_ref *keys, size_t nr)
{
	struct key_list disk = { 0 };

	for (size_t i = 0; i < nr; i++) {
		uint64_t what = b->has_interior_overlay ? rng_below(&b->rng, 8) : 7;

		if (what == 0 && i + 1 < nr) {
			tree_overlay_add(b, b->btree_id, level, 10, (uint32_t)i, &keys[i]);
			tree_overlay_add(b, b->btree_id, level, 10, (uint32_t)i + 1, &keys[i + 1]);
			key_list_add(&disk, stale_ptr_key(b, ptr_key_min(&keys[i]), keys[i + 1].k.p));
			i++;
		} else if (what == 1 && bpos_lt(ptr_key_min(&keys[i]), keys[i].k.p)) {
			struct bpos min_key = ptr_key_min(&keys[i]);
			struct bkey_ref deleted = { .k = { .p = min_key, .type = KEY_DELETED } };

			tree_overlay_add(b, b->btree_id, level, 10, (uint32_t)i, &deleted);
			tree_overlay_add(b, b->btree_id, level, 10, (uint32_t)i, &keys[i]);
			key_list_add(&disk, stale_ptr_key(b, min_key, min_key));
			key_list_add(&disk, stale_ptr_key(b, bpos_successor(min_key), keys[i].k.p));
		} else {
			key_list_add(&disk, keys[i]);
		}
	}
	return disk;
}

static struct bpos node_max_choose(struct tree_builder *b, unsigned level, const struct bkey_ref *keys, size_t nr,
				   size_t end)
{
	if (end == nr)
		return SPOS_MAX;
	/* Leaves may end anywhere before the next key. */
	if (!level && rng_below(&b->rng, 2))
		return bpos_predecessor(keys[end].k.p);
	return keys[end - 1].k.p;
}

/* Write the nodes of one level; their pointers are added to @ptrs. */
static void level_build(struct tree_builder *b, unsigned level, const struct bkey_ref *keys, size_t nr,
			struct key_list *ptrs)
{
	uint8_t *buf = must(aligned_alloc(4096, round_up_u64(b->node_bytes, 4096)));
	struct bpos min_key = POS_MIN;
	size_t start = 0;

	do {
		size_t take = 1 + rng_below(&b->rng, b->keys_per_node);
		struct btree_ptr ptr;
		struct bpos max_key;

		/* An interior node with one child is fine, but trees are at most BTREE_LEVEL_MAX high. */
		if (level)
			take = max(take, level == BTREE_LEVEL_MAX ? nr : 2 + nr / (level == 1 ? 20 : 4));
		for (take = min(take, nr - start);; take = (take + 1) / 2) {
			max_key = node_max_choose(b, level, keys, nr, start + take);
			struct key_list disk = { 0 };
			if (level)
				disk = interior_on_disk(b, level, keys + start, take);
			bool fits = node_write(b, buf, level, min_key, max_key, level ? disk.keys : keys + start,
					       level ? disk.nr : take, &ptr);
			free(disk.keys);
			if (fits)
				break;
			assert(take > 1);
		}
		key_list_add(ptrs, btree_ptr_key(b, max_key, &ptr));
		start += take;
		if (start < nr)
			min_key = bpos_successor(max_key);
	} while (start < nr);
	free(buf);
}

struct built_root tree_build(struct tree_builder *b, unsigned btree_id, const struct bkey_ref *keys, size_t nr)
{
	struct key_list below = { 0 };
	unsigned level = 0;

	b->btree_id = btree_id;
	level_build(b, 0, keys, nr, &below);
	while (below.nr > 1 || level < b->level_min) {
		struct key_list above = { 0 };

		level++;
		assert(level <= BTREE_LEVEL_MAX);
		level_build(b, level, below.keys, below.nr, &above);
		free(below.keys);
		below = above;
	}
	struct built_root root = { .key = below.keys[0], .level = level };
	free(below.keys);
	return root;
}
