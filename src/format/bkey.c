/*
 * Keys: packed headers, search positions, rules of the header.
 *
 * A packed header is one little-endian integer N of key_u64s words. Its six fields lie in it from the top down, without
 * gaps, in the order of enum bkey_field; the low 24 bits are u64s, format and type, what is left between them is spare:
 *
 *	| inode | offset | snapshot | size | version.hi | version.lo | spare | type | format | u64s |
 *	 ^ bit 64 * key_u64s                                                               bit 0 ^
 *
 * As the position is on top, keys packed in one format are ordered by their top bits. The unpacked header is the same
 * scheme at full width, so its top bits are ordered just so, and searching needs no case of its own for it.
 *
 * Unpacking: 8 bytes loaded at the byte with a field's lowest bit hold the whole field, unless it is more than 57 bits
 * wide and not at a byte boundary; then a ninth byte has the rest. Formats made by bkey_format_finish() mostly have
 * their wide fields at byte boundaries, so formats with such a field take a second copy of the code, and the first one
 * has no branches. The loads never leave the header: a field near the top is shifted down from the last 8 bytes.
 *
 * Packing relies on rule 2 of 02 §2.3 (offset + 2^bits - 1 is within the field): if a value lies below the offset, the
 * difference wraps around to something above 2^bits - 1, so one comparison finds both kinds of misfit.
 */
#include "format/bkey.h"

#include <inttypes.h>

#include "base/strbuf.h"
#include "base/util.h"
#include "format/error_ids.h"
#include "format/key_types.h"

enum {
	HEADER_BITS = 24, /* u64s, format, type */
	POS_FIELD_NR = BKEY_FIELD_SNAPSHOT + 1,
};

/* clang-format off */
static const struct {
	const char *name;
	unsigned bits;			/* full width */
} fields[BKEY_FIELD_NR] = {
	[BKEY_FIELD_INODE]	= { "inode",		64 },
	[BKEY_FIELD_OFFSET]	= { "offset",		64 },
	[BKEY_FIELD_SNAPSHOT]	= { "snapshot",		32 },
	[BKEY_FIELD_SIZE]	= { "size",		32 },
	[BKEY_FIELD_VERSION_HI]	= { "version.hi",	32 },
	[BKEY_FIELD_VERSION_LO]	= { "version.lo",	64 },
};
/* clang-format on */

/* No field of a valid format is wider than the table says, and key_u64s follows from the widths. */
_Static_assert(BKEY_PACKED_U64S_MAX == (HEADER_BITS + 64 + 64 + 32 + 32 + 32 + 64 + 63) / 64,
	       "longest header of a valid format");
_Static_assert(BKEY_PACKED_U64S_MAX + BKEY_VALUE_U64S_MAX == BKEY_U64S_MAX, "u64s of a packed key can't overflow");

static inline uint64_t bits_mask(unsigned bits) { return bits ? UINT64_MAX >> (64 - bits) : 0; }
static inline unsigned key_format(const uint8_t *src) { return src[1] & 0x7f; }

/* --- unpacking --- */

static inline __attribute__((always_inline)) uint64_t field_unpack(const struct bkey_format *f, const uint8_t *src,
								   unsigned i, bool may_straddle)
{
	uint64_t v = le64_load(src + f->byte[i]) >> f->shift[i];

	if (may_straddle && f->shift[i] + f->bits[i] > 64)
		v |= (uint64_t)src[f->byte[i] + 8] << (64 - f->shift[i]);
	return (v & f->mask[i]) + f->offset[i];
}

static inline __attribute__((always_inline)) struct bpos pos_unpack(const struct bkey_format *f, const uint8_t *src,
								    bool may_straddle)
{
	return BPOS(field_unpack(f, src, BKEY_FIELD_INODE, may_straddle),
		    field_unpack(f, src, BKEY_FIELD_OFFSET, may_straddle),
		    (uint32_t)field_unpack(f, src, BKEY_FIELD_SNAPSHOT, may_straddle));
}

static inline __attribute__((always_inline)) struct bkey header_unpack(const struct bkey_format *f, const uint8_t *src,
								       bool may_straddle)
{
	return (struct bkey){
		.p = pos_unpack(f, src, may_straddle),
		.size = (uint32_t)field_unpack(f, src, BKEY_FIELD_SIZE, may_straddle),
		.version.hi = (uint32_t)field_unpack(f, src, BKEY_FIELD_VERSION_HI, may_straddle),
		.version.lo = field_unpack(f, src, BKEY_FIELD_VERSION_LO, may_straddle),
		.type = src[2],
		.value_u64s = (uint8_t)(src[0] - f->key_u64s),
	};
}

/* Out of line, so that it doesn't weigh on the usual case. */
static __attribute__((noinline)) struct bkey header_unpack_straddling(const struct bkey_format *f, const uint8_t *src)
{
	return header_unpack(f, src, true);
}

struct bkey bkey_unpack(const struct bkey_format *f, const void *src, const void **value)
{
	const uint8_t *s = src;

	if (key_format(s) != BKEY_FORMAT_PACKED) {
		*value = s + sizeof(struct bkey_disk);
		return bkey_load(src);
	}
	*value = s + f->key_u64s * 8;
	return f->has_straddling ? header_unpack_straddling(f, s) : header_unpack(f, s, false);
}

struct bpos bkey_unpack_pos(const struct bkey_format *f, const void *src)
{
	const uint8_t *s = src;

	if (key_format(s) != BKEY_FORMAT_PACKED)
		return bpos_load(&((const struct bkey_disk *)src)->p);
	return f->has_straddling ? pos_unpack(f, s, true) : pos_unpack(f, s, false);
}

struct bkey bkey_load(const struct bkey_disk *d)
{
	return (struct bkey){
		.p = bpos_load(&d->p),
		.version = { .lo = le64_get(d->version_lo), .hi = le32_get(d->version_hi) },
		.size = le32_get(d->size),
		.type = d->type,
		.value_u64s = (uint8_t)(d->u64s - BKEY_U64S),
	};
}

void bkey_store(struct bkey_disk *d, const struct bkey *k)
{
	*d = (struct bkey_disk){
		.u64s = (uint8_t)(BKEY_U64S + k->value_u64s),
		.format = BKEY_FORMAT_UNPACKED,
		.type = k->type,
		.version_lo = le64_of(k->version.lo),
		.version_hi = le32_of(k->version.hi),
		.size = le32_of(k->size),
	};
	bpos_store(&d->p, k->p);
}

int bkey_check_frame(const struct bkey_format *f, const void *src, size_t avail_u64s, struct fault *fault)
{
	const uint8_t *s = src;
	unsigned u64s = s[0];
	unsigned format = key_format(s);

	if (u64s > avail_u64s)
		return fault_set(fault, ERROR_btree_node_bkey_past_bset_end, "u64s", "within the set",
				 "%u words, %zu are left", u64s, avail_u64s);
	if (format > BKEY_FORMAT_UNPACKED)
		return fault_set(fault, ERROR_btree_node_bkey_bad_format, "format", "0 or 1", "%u", format);

	unsigned header_u64s = format == BKEY_FORMAT_PACKED ? f->key_u64s : (unsigned)BKEY_U64S;
	if (u64s < header_u64s)
		return fault_set(fault, ERROR_bkey_u64s_too_small, "u64s", "at least the header", "%u, header %u", u64s,
				 header_u64s);
	if (u64s - header_u64s > BKEY_VALUE_U64S_MAX)
		return fault_set(fault, ERROR_btree_node_bad_bkey, "value words", "at most 250", "%u",
				 u64s - header_u64s);
	return (int)u64s;
}

/* --- packing --- */

/* @v << @n for 1 <= @n <= 64. */
static inline uint64_t shift_up(uint64_t v, unsigned n) { return v << 1 << (n - 1); }

/* For formats of one or two words, as most are: every field on its own. */
static inline void fields_place_2(uint64_t words[2], const struct bkey_format *f, const uint64_t stored[BKEY_FIELD_NR])
{
	uint64_t low = 0, high = 0;

	for (unsigned i = 0; i < BKEY_FIELD_NR; i++) {
		unsigned bit = f->byte[i] * 8u + f->shift[i];

		if (bit < 64) {
			low |= stored[i] << bit;
			high |= stored[i] >> 1 >> (63 - bit);
		} else {
			high |= stored[i] << (bit - 64);
		}
	}
	words[0] = low;
	words[1] = high;
}

/* For any format: fill words from the top down. The header's bits keep word 0 from ever being filled. */
static void fields_place_any(uint64_t words[BKEY_PACKED_U64S_MAX], const struct bkey_format *f,
			     const uint64_t stored[BKEY_FIELD_NR])
{
	unsigned out = f->key_u64s - 1u;
	unsigned room = 64;
	uint64_t word = 0;

	for (unsigned i = 0; i < BKEY_FIELD_NR; i++) {
		unsigned bits = f->bits[i];

		if (bits < room) {
			room -= bits;
			word |= shift_up(stored[i], room);
		} else {
			unsigned over = bits - room;

			words[out--] = word | stored[i] >> over;
			room = 64 - over;
			word = shift_up(stored[i], room);
		}
	}
	words[out] = word;
	while (out)
		words[--out] = 0;
}

/* Lay the stored values of all fields into the words of N; spare bits and the common header are 0. Each value fits. */
static inline void fields_place(uint64_t words[BKEY_PACKED_U64S_MAX], const struct bkey_format *f,
				const uint64_t stored[BKEY_FIELD_NR])
{
	if (__builtin_expect(f->key_u64s <= 2, true))
		fields_place_2(words, f, stored);
	else
		fields_place_any(words, f, stored);
}

/* What is stored for a value; it doesn't fit if some bit of *@misfit is set then. */
static inline uint64_t field_store(const struct bkey_format *f, unsigned i, uint64_t v, uint64_t *misfit)
{
	v -= f->offset[i];
	*misfit |= v & ~f->mask[i];
	return v;
}

bool bkey_pack(const struct bkey_format *f, void *dst, const struct bkey *k)
{
	uint64_t misfit = 0;
	const uint64_t stored[BKEY_FIELD_NR] = {
		field_store(f, BKEY_FIELD_INODE, k->p.inode, &misfit),
		field_store(f, BKEY_FIELD_OFFSET, k->p.offset, &misfit),
		field_store(f, BKEY_FIELD_SNAPSHOT, k->p.snapshot, &misfit),
		field_store(f, BKEY_FIELD_SIZE, k->size, &misfit),
		field_store(f, BKEY_FIELD_VERSION_HI, k->version.hi, &misfit),
		field_store(f, BKEY_FIELD_VERSION_LO, k->version.lo, &misfit),
	};
	if (misfit)
		return false;

	uint64_t words[BKEY_PACKED_U64S_MAX];
	fields_place(words, f, stored);
	words[0] |=
		(unsigned)(f->key_u64s + k->value_u64s) | (uint64_t)BKEY_FORMAT_PACKED << 8 | (uint64_t)k->type << 16;
	for (unsigned i = 0; i < f->key_u64s; i++)
		le64_store((uint8_t *)dst + i * 8, words[i]);
	return true;
}

/* --- comparing and searching --- */

int bkey_cmp_pos(const struct bkey_format *f, const void *src, struct bpos p)
{
	return bpos_cmp(bkey_unpack_pos(f, src), p);
}

/*
 * The first field that doesn't fit decides: all keys that agree in the fields above it lie on one side of the position.
 * Then the rest becomes the lowest (the highest) there is, so that any such key not equal to the target compares right,
 * and an equal one is settled by the tie.
 */
static void search_target_init(struct bkey_search_target *t, const struct bkey_format *f, struct bpos pos)
{
	uint64_t stored[BKEY_FIELD_NR] = { pos.inode, pos.offset, pos.snapshot };

	t->tie = 0;
	for (unsigned i = 0; i < POS_FIELD_NR; i++) {
		bool is_below = stored[i] < f->offset[i];

		stored[i] -= f->offset[i];
		if (!t->tie && stored[i] > f->mask[i])
			t->tie = is_below ? 1 : -1;
		if (t->tie)
			stored[i] = t->tie > 0 ? 0 : f->mask[i];
	}

	uint64_t words[BKEY_PACKED_U64S_MAX];
	fields_place(words, f, stored);
	for (unsigned i = 0; i < ARRAY_NR(t->word); i++) {
		t->byte[i] = f->pos_byte[i];
		t->mask[i] = f->pos_mask[i];
		t->word[i] = words[f->pos_byte[i] / 8] & f->pos_mask[i];
	}
}

void bkey_search_init(struct bkey_search *s, const struct bkey_format *f, struct bpos pos)
{
	s->pos = pos;
	search_target_init(&s->target[BKEY_FORMAT_PACKED], f, pos);
	s->is_exact = !s->target[BKEY_FORMAT_PACKED].tie;
	s->target[BKEY_FORMAT_UNPACKED] = (struct bkey_search_target){
		.word = { pos.inode, pos.offset, (uint64_t)pos.snapshot << 32 },
		.mask = { UINT64_MAX, UINT64_MAX, (uint64_t)UINT32_MAX << 32 },
		.byte = { 32, 24, 16 },
	};
}

static inline uint64_t target_word(const struct bkey_search_target *t, const uint8_t *src, unsigned i)
{
	return le64_load(src + t->byte[i]) & t->mask[i];
}

static inline int target_cmp(const struct bkey_search_target *t, const uint8_t *src)
{
	for (unsigned i = 0; i < ARRAY_NR(t->word); i++) {
		uint64_t word = target_word(t, src, i);

		if (word != t->word[i])
			return word < t->word[i] ? -1 : 1;
	}
	return t->tie;
}

int bkey_search_cmp(const struct bkey_search *s, const void *src)
{
	return target_cmp(&s->target[key_format(src) != BKEY_FORMAT_PACKED], src);
}

/*
 * Does the target lie behind the key? In which word they differ is nearly always the same in a search, and predicted;
 * how they compare there can't be, so the one comparison that tells isn't to become a branch here or in the caller.
 */
static inline bool target_is_after(const struct bkey_search_target *t, const uint8_t *src)
{
	uint64_t word = target_word(t, src, 0), target = t->word[0];

	if (__builtin_expect(word == target, false)) {
		word = target_word(t, src, 1);
		target = t->word[1];
		if (__builtin_expect(word == target, false)) {
			word = target_word(t, src, 2);
			target = t->word[2];
			if (word == target)
				return t->tie < 0;
		}
	}
	return word < target;
}

unsigned bkey_search_first(const struct bkey_search *s, const void *keys, const uint32_t *offset_u64s, unsigned nr)
{
	const uint8_t *base = keys;
	unsigned first = 0;

	/* The answer is in [first, first + nr]. */
	while (nr) {
		unsigned half = (nr + 1) / 2;
		const uint8_t *src = base + (size_t)offset_u64s[first + half - 1] * 8;
		/* Hardly any keys are unpacked: as a branch this is predicted, and the loads behind don't wait for it.
		 */
		bool is_after = __builtin_expect(key_format(src) == BKEY_FORMAT_PACKED, true)
					? target_is_after(&s->target[BKEY_FORMAT_PACKED], src)
					: target_is_after(&s->target[BKEY_FORMAT_UNPACKED], src);

		first += half & -(unsigned)is_after;
		nr -= half;
	}
	return first;
}

/* --- formats --- */

/* Fill in what is derived from key_u64s and bits. */
static void format_derive(struct bkey_format *f)
{
	unsigned last_byte = f->key_u64s * 8u - 8;
	unsigned bit = f->key_u64s * 64u;

	f->has_straddling = false;
	for (unsigned i = 0; i < BKEY_FIELD_NR; i++) {
		bit -= f->bits[i];
		f->mask[i] = bits_mask(f->bits[i]);
		f->byte[i] = (uint8_t)min(bit / 8, last_byte);
		/* A field of no bits may lie at the very top, beyond the last byte; its mask makes any load right. */
		f->shift[i] = f->bits[i] ? (uint8_t)(bit - f->byte[i] * 8u) : 0;
		f->has_straddling |= f->shift[i] + f->bits[i] > 64;
	}

	unsigned pos_bits = f->bits[BKEY_FIELD_INODE] + f->bits[BKEY_FIELD_OFFSET] + f->bits[BKEY_FIELD_SNAPSHOT];
	for (unsigned i = 0; i < ARRAY_NR(f->pos_byte); i++) {
		unsigned bits = pos_bits > i * 64 ? min(pos_bits - i * 64, 64u) : 0;

		f->pos_mask[i] = ~bits_mask(64 - bits);
		f->pos_byte[i] = bits ? (uint8_t)(last_byte - i * 8) : 0;
	}
}

static unsigned format_bits(const struct bkey_format *f)
{
	unsigned bits = HEADER_BITS;

	for (unsigned i = 0; i < BKEY_FIELD_NR; i++)
		bits += f->bits[i];
	return bits;
}

int bkey_format_load(struct bkey_format *f, const struct bkey_format_disk *d, struct fault *fault)
{
	if (d->nr_fields != BKEY_FIELD_NR)
		return fault_set(fault, ERROR_btree_node_bad_format, "key format, number of fields", "6", "%u",
				 d->nr_fields);

	*f = (struct bkey_format){ .key_u64s = d->key_u64s };
	for (unsigned i = 0; i < BKEY_FIELD_NR; i++) {
		uint64_t field_max = bits_mask(fields[i].bits);

		f->bits[i] = d->bits_per_field[i];
		f->offset[i] = le64_get(d->field_offset[i]);
		if (f->bits[i] > fields[i].bits || f->offset[i] > field_max - bits_mask(f->bits[i])) {
			fault_set(fault, ERROR_btree_node_bad_format, "key format", "values within the field",
				  "%s has %u bits from %" PRIu64, fields[i].name, f->bits[i], f->offset[i]);
			return -KILN_E_INVALID;
		}
	}

	unsigned key_u64s = (format_bits(f) + 63) / 64;
	if (f->key_u64s != key_u64s)
		return fault_set(fault, ERROR_btree_node_bad_format, "key format, words", "as few as hold the fields",
				 "%u, fields need %u", f->key_u64s, key_u64s);
	format_derive(f);
	return 0;
}

void bkey_format_store(struct bkey_format_disk *d, const struct bkey_format *f)
{
	d->key_u64s = f->key_u64s;
	d->nr_fields = BKEY_FIELD_NR;
	for (unsigned i = 0; i < BKEY_FIELD_NR; i++) {
		d->bits_per_field[i] = f->bits[i];
		d->field_offset[i] = le64_of(f->offset[i]);
	}
}

void bkey_format_to_text(struct strbuf *out, const struct bkey_format *f)
{
	strbuf_printf(out, "u64s %u fields", f->key_u64s);
	for (unsigned i = 0; i < BKEY_FIELD_NR; i++)
		strbuf_printf(out, " %u:%" PRIu64, f->bits[i], f->offset[i]);
}

void bkey_format_begin(struct bkey_format_builder *b)
{
	for (unsigned i = 0; i < BKEY_FIELD_NR; i++) {
		b->min[i] = UINT64_MAX;
		b->max[i] = 0;
	}
	/* Extents shrink when they are trimmed, so small sizes must fit whatever the sizes are now. */
	b->min[BKEY_FIELD_SIZE] = 0;
}

static void builder_add(struct bkey_format_builder *b, enum bkey_field field, uint64_t v)
{
	b->min[field] = min(b->min[field], v);
	b->max[field] = max(b->max[field], v);
}

void bkey_format_add_key(struct bkey_format_builder *b, const struct bkey *k)
{
	bkey_format_add_pos(b, k->p);
	builder_add(b, BKEY_FIELD_SIZE, k->size);
	builder_add(b, BKEY_FIELD_VERSION_HI, k->version.hi);
	builder_add(b, BKEY_FIELD_VERSION_LO, k->version.lo);
}

void bkey_format_add_pos(struct bkey_format_builder *b, struct bpos p)
{
	builder_add(b, BKEY_FIELD_INODE, p.inode);
	builder_add(b, BKEY_FIELD_OFFSET, p.offset);
	builder_add(b, BKEY_FIELD_SNAPSHOT, p.snapshot);
}

/* Give a field @bits bits from @offset on, lowered as far as that must be to stay within the field. */
static void format_set_field(struct bkey_format *f, unsigned i, unsigned bits, uint64_t offset)
{
	f->bits[i] = (uint8_t)min(bits, fields[i].bits);
	f->offset[i] = min(offset, bits_mask(fields[i].bits) - bits_mask(f->bits[i]));
}

/*
 * The narrowest fields that hold all inputs, then widened to whole bytes as far as the last word has room: that costs
 * nothing, and lets later keys fit that lie somewhat outside.
 */
void bkey_format_finish(const struct bkey_format_builder *b, struct bkey_format *f)
{
	*f = (struct bkey_format){ 0 };
	for (unsigned i = 0; i < BKEY_FIELD_NR; i++)
		if (b->min[i] <= b->max[i])
			format_set_field(f, i, bit_length_u64(b->max[i] - b->min[i]), b->min[i]);
	if (f->bits[BKEY_FIELD_SIZE])
		format_set_field(f, BKEY_FIELD_SIZE, f->bits[BKEY_FIELD_SIZE] + 4u, 0);

	unsigned bits = format_bits(f);
	f->key_u64s = (uint8_t)((bits + 63) / 64);

	unsigned spare = f->key_u64s * 64u - bits;
	for (unsigned i = 0; i < BKEY_FIELD_NR; i++) {
		unsigned widen = -f->bits[i] & 7u;

		if (widen <= spare) {
			format_set_field(f, i, f->bits[i] + widen, f->offset[i]);
			spare -= widen;
		}
	}
	format_derive(f);
}

/* --- rules and text --- */

static int snapshot_validate(const struct bkey *k, unsigned flags, struct fault *fault)
{
	if ((flags & BTREE_HAS_SNAPSHOTS) && !k->p.snapshot)
		return fault_set(fault, ERROR_bkey_snapshot_zero, "snapshot", "not 0", "0");
	if (!(flags & (BTREE_HAS_SNAPSHOTS | BTREE_HAS_SNAPSHOT_FIELD)) && k->p.snapshot)
		return fault_set(fault, ERROR_bkey_snapshot_nonzero, "snapshot", "0", "%" PRIu32, k->p.snapshot);
	return 0;
}

static int size_validate(const struct bkey *k, bool is_extent, struct fault *fault)
{
	if (!is_extent)
		return k->size ? fault_set(fault, ERROR_bkey_size_nonzero, "size", "0", "%" PRIu32, k->size) : 0;
	if (!k->size)
		return fault_set(fault, ERROR_bkey_extent_size_zero, "size", "not 0", "0");
	if (k->size > k->p.offset)
		return fault_set(fault, ERROR_bkey_extent_size_greater_than_offset, "size", "at most the offset",
				 "%" PRIu32 ", offset %" PRIu64, k->size, k->p.offset);
	return 0;
}

int bkey_validate(const struct bkey *k, unsigned btree_id, unsigned level, struct fault *fault)
{
	unsigned flags = btree_flags(btree_id);

	if (level)
		return size_validate(k, false, fault);
	if (!btree_name(btree_id))
		return 0; /* a btree of a newer version: its keys are kept as they are */

	int err = size_validate(k, (flags & BTREE_IS_EXTENTS) && !key_type_is_whiteout(k->type), fault);
	if (!err)
		err = snapshot_validate(k, flags, fault);
	if (!err && !bpos_key_cmp(k->p, POS_MAX))
		err = fault_set(fault, ERROR_bkey_at_pos_max, "position", "below POS_MAX", "snapshot %" PRIu32,
				k->p.snapshot);
	return err;
}

void bkey_to_text(struct strbuf *out, const struct bkey *k)
{
	const struct key_type *type = key_type(k->type);

	strbuf_printf(out, "u64s %u type ", BKEY_U64S + k->value_u64s);
	if (type)
		strbuf_add(out, type->name);
	else
		strbuf_printf(out, "%u", k->type);
	strbuf_add_char(out, ' ');
	bpos_to_text(out, k->p);
	strbuf_printf(out, " len %" PRIu32 " ver ", k->size);
	if (k->version.hi)
		strbuf_printf(out, "%" PRIu32 ":", k->version.hi);
	strbuf_printf(out, "%" PRIu64, k->version.lo);
}
