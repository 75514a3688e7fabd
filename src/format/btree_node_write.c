/*
 * Building btree nodes. See btree_node_write.h.
 *
 * Keys are appended as they come: order, and that a position occurs once, is the caller's. A key is packed when its
 * fields fit the node's format, else it stands unpacked; readers take any mixture.
 */
#include "format/btree_node_write.h"

#include <assert.h>

#include "base/util.h"

void btree_node_header_store(void *node, const struct btree_node_header *h)
{
	uint64_t flags = 0;

	flags = bits_set(flags, 0, 4, h->btree_id);
	flags = bits_set(flags, 4, 8, h->level);
	flags = bits_set(flags, 8, 9, 1); /* extents are trimmed by whoever overwrites them */
	flags = bits_set(flags, 9, 25, h->btree_id >> 4);
	flags = bits_set(flags, 32, 64, h->generation);

	struct btree_node_disk d = { .magic = le64_of(h->magic), .flags = le64_of(flags) };
	bpos_store(&d.min_key, h->min_key);
	bpos_store(&d.max_key, h->max_key);
	bkey_format_store(&d.format, &h->format);
	/* Not the bset header, which the set's writer may have stored already. */
	memcpy(node, &d, offsetof(struct btree_node_disk, keys));
}

/* --- one set --- */

void bset_writer_begin(struct bset_writer *w, void *set, size_t offset, size_t bytes, const struct bkey_format *format)
{
	size_t header = bset_header_bytes(offset);

	assert(bytes >= header);
	*w = (struct bset_writer){
		.set = set,
		.offset = offset,
		.room_u64s = min((bytes - header) / 8, (size_t)UINT16_MAX),
		.format = *format,
	};
}

static uint8_t *writer_room(struct bset_writer *w, size_t u64s)
{
	if (u64s > w->room_u64s - w->u64s)
		return NULL;
	uint8_t *at = w->set + bset_header_bytes(w->offset) + w->u64s * 8;
	w->u64s += u64s;
	return at;
}

bool bset_writer_add(struct bset_writer *w, const struct bkey *k, const void *value)
{
	uint64_t header[BKEY_PACKED_U64S_MAX];
	size_t header_u64s = w->format.key_u64s;

	if (!bkey_pack(&w->format, header, k)) {
		struct bkey_disk d;

		bkey_store(&d, k);
		memcpy(header, &d, sizeof(d));
		header_u64s = BKEY_U64S;
	}

	uint8_t *at = writer_room(w, header_u64s + k->value_u64s);
	if (!at)
		return false;
	memcpy(at, header, header_u64s * 8);
	if (k->value_u64s)
		memcpy(at + header_u64s * 8, value, bkey_value_bytes(k));
	return true;
}

bool bset_writer_copy(struct bset_writer *w, const struct bkey_format *from, const void *src)
{
	const uint8_t *s = src;

	if ((s[1] & 0x7f) == BKEY_FORMAT_PACKED && bkey_format_eq(from, &w->format)) {
		uint8_t *at = writer_room(w, s[0]);

		if (!at)
			return false;
		memcpy(at, s, (size_t)s[0] * 8);
		at[1] = BKEY_FORMAT_PACKED; /* without needs_whiteout */
		return true;
	}

	const void *value;
	struct bkey k = bkey_unpack(from, src, &value);
	return bset_writer_add(w, &k, value);
}

size_t bset_writer_finish(struct bset_writer *w, const struct bset_seal_opts *opts)
{
	size_t header = bset_header_bytes(w->offset);
	size_t bytes = header + w->u64s * 8, padded = round_up_u64(bytes, opts->block_bytes);
	uint32_t flags = (uint32_t)bits_set(0, 16, 32, w->offset / SECTOR_BYTES);
	struct bset_disk d = {
		.seq = le64_of(opts->seq),
		.journal_seq = le64_of(opts->journal_seq),
		.flags = le32_of(flags),
		.version = le16_of((uint16_t)opts->version),
		.u64s = le16_of((uint16_t)w->u64s),
	};

	memcpy(w->set + header - sizeof(d), &d, sizeof(d));
	memset(w->set + bytes, 0, padded - bytes);
	bset_seal_at(w->set, w->offset, opts->csum_type, opts->key);
	return padded;
}

/* --- formats --- */

unsigned bkey_packed_u64s(const struct bkey_format *format, const struct bkey *k)
{
	uint64_t header[BKEY_PACKED_U64S_MAX];

	return (bkey_pack(format, header, k) ? format->key_u64s : (unsigned)BKEY_U64S) + k->value_u64s;
}

bool bkey_format_eq(const struct bkey_format *a, const struct bkey_format *b)
{
	return a == b || (a->key_u64s == b->key_u64s && !memcmp(a->bits, b->bits, sizeof(a->bits)) &&
			  !memcmp(a->offset, b->offset, sizeof(a->offset)));
}

static struct bkey array_key(const struct bkey_array *a, uint32_t i)
{
	const void *value;

	return bkey_unpack(a->format, (const uint8_t *)a->words + (size_t)a->offset_u64s[i] * 8, &value);
}

/* Words that all keys take in @format. */
static size_t arrays_u64s(const struct bkey_array *arrays, unsigned nr, const struct bkey_format *format)
{
	size_t u64s = 0;

	for (unsigned a = 0; a < nr; a++)
		for (uint32_t i = 0; i < arrays[a].nr; i++) {
			struct bkey k = array_key(&arrays[a], i);

			u64s += bkey_packed_u64s(format, &k);
		}
	return u64s;
}

void btree_node_format_choose(const struct bkey_array *arrays, unsigned nr, struct bpos min_key, struct bpos max_key,
			      size_t u64s_max, struct bkey_format *format, size_t *u64s)
{
	struct bkey_format_builder b;

	bkey_format_begin(&b);
	bkey_format_add_pos(&b, min_key);
	bkey_format_add_pos(&b, max_key);
	for (unsigned a = 0; a < nr; a++)
		for (uint32_t i = 0; i < arrays[a].nr; i++) {
			struct bkey k = array_key(&arrays[a], i);

			bkey_format_add_key(&b, &k);
		}
	bkey_format_finish(&b, format);

	size_t total = arrays_u64s(arrays, nr, format);
	if (total > u64s_max && nr) {
		*format = *arrays[0].format;
		total = arrays_u64s(arrays, nr, format);
	}
	if (u64s)
		*u64s = total;
}
