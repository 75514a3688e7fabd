/* Keys: vectors of 02 §14.3 and §14.4, and random formats and keys against a model that works bit by bit. */
#include "format_test.h"

#include "base/strbuf.h"
#include "base/util.h"
#include "format/bkey.h"
#include "format/btrees.h"
#include "format/error_ids.h"
#include "format/key_types.h"

static const unsigned field_bits[BKEY_FIELD_NR] = { 64, 64, 32, 32, 32, 64 };

static uint64_t mask_of(unsigned bits) { return bits ? UINT64_MAX >> (64 - bits) : 0; }

struct format_spec {
	uint8_t bits[BKEY_FIELD_NR];
	uint64_t offset[BKEY_FIELD_NR];
};

static struct bkey_format_disk format_disk(const struct format_spec *spec)
{
	struct bkey_format_disk d = { .nr_fields = BKEY_FIELD_NR };
	unsigned bits = 24;

	for (unsigned i = 0; i < BKEY_FIELD_NR; i++) {
		d.bits_per_field[i] = spec->bits[i];
		d.field_offset[i] = le64_of(spec->offset[i]);
		bits += spec->bits[i];
	}
	d.key_u64s = (uint8_t)((bits + 63) / 64);
	return d;
}

static struct bkey_format format_of(const struct format_spec *spec)
{
	struct bkey_format_disk d = format_disk(spec);
	struct bkey_format f;
	struct fault fault;

	assert_int_equal(bkey_format_load(&f, &d, &fault), 0);
	return f;
}

static void assert_keys_equal(const struct bkey *a, const struct bkey *b)
{
	assert_true(bpos_eq(a->p, b->p));
	assert_int_equal(a->size, b->size);
	assert_int_equal(a->version.hi, b->version.hi);
	assert_true(a->version.lo == b->version.lo);
	assert_int_equal(a->type, b->type);
	assert_int_equal(a->value_u64s, b->value_u64s);
}

/* --- vectors --- */

static const struct {
	struct format_spec format;
	const char *hex;
	struct bkey k;
} packed_vectors[] = {
	{ { { 0, 8, 32 }, { 0, 4452 } },
	  "0e001dffffffff00",
	  { .p = { 0, 4452, UINT32_MAX }, .type = KEY_INODE_V3, .value_u64s = 13 } },
	{ { { 8, 8, 32, 16 }, { 4896, 8 } },
	  "0400060000000000 0800ffffffff0001",
	  { .p = { 4897, 8, UINT32_MAX }, .type = KEY_EXTENT, .size = 8, .value_u64s = 2 } },
	{ { { 8, 8, 32, 16 }, { 4896, 8 } },
	  "0f00110000000000 0800ffffffff0002",
	  { .p = { 4898, 8, UINT32_MAX }, .type = KEY_INLINE_DATA, .size = 8, .value_u64s = 13 } },
	{ { { 8, 64, 32 }, { 4098 } },
	  "06000affffffff15 6631904285486800",
	  { .p = { 4098, 7514402499201164821, UINT32_MAX }, .type = KEY_DIRENT, .value_u64s = 4 } },
	{ { { 64, 64, 32, 16 }, { 0 } },
	  "0600060000000000 00001000ffffffff 6002000000000000 d617000000000000",
	  { .p = { 6102, 608, UINT32_MAX }, .type = KEY_EXTENT, .size = 16, .value_u64s = 2 } },
	{ { { 8, 16, 32, 16 }, { 5900, 8 } },
	  "0200000000000000 00ffffffff2800ca",
	  { .p = { 6102, 48, UINT32_MAX }, .type = KEY_DELETED } },
	{ { { 0, 32 }, { 0 } }, "0100000000005106", { .p = { 0, 105971712, 0 }, .type = KEY_DELETED } },
	{ { { 64, 64, 32 }, { 0 } },
	  "09001200ffffffff 0800000000000000 0114000000000000",
	  { .p = { 5121, 8, UINT32_MAX }, .type = KEY_BTREE_PTR_V2, .value_u64s = 6 } },
};

static void packed_keys_of_real_nodes_are_read_and_written(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_NR(packed_vectors); i++) {
		struct bkey_format f = format_of(&packed_vectors[i].format);
		uint8_t bytes[40], packed[40] = { 0 };
		size_t len = hex_decode(packed_vectors[i].hex, bytes, sizeof(bytes));
		const void *value;

		assert_int_equal(len, f.key_u64s * 8);
		struct bkey k = bkey_unpack(&f, bytes, &value);
		assert_keys_equal(&k, &packed_vectors[i].k);
		assert_ptr_equal(value, bytes + len);
		assert_true(bpos_eq(bkey_unpack_pos(&f, bytes), k.p));

		assert_true(bkey_pack(&f, packed, &packed_vectors[i].k));
		assert_memory_equal(packed, bytes, len);
	}
}

static void unpacked_key_of_a_real_node_is_read_and_written(void **state)
{
	(void)state;
	struct format_spec spec = { { 64, 64, 32 }, { 0 } };
	struct bkey_format f = format_of(&spec);
	struct bkey_disk d, stored;
	const void *value;

	hex_decode("05011900 0000000000000000 00000000 045f0000 00000000 fc5f000000000000 0000000000000000", &d,
		   sizeof(d));
	struct bkey k = bkey_unpack(&f, &d, &value);
	struct bkey expected = { .p = BPOS(0, 24572, 0), .size = 24324, .type = KEY_SET };
	assert_keys_equal(&k, &expected);
	assert_ptr_equal(value, &d + 1);

	bkey_store(&stored, &k);
	assert_memory_equal(&stored, &d, sizeof(d));

	/* The size is what keeps it from being packed. */
	uint8_t packed[40];
	assert_false(bkey_pack(&f, packed, &k));
	k.size = 0;
	assert_true(bkey_pack(&f, packed, &k));
}

static void needs_whiteout_and_spare_bits_are_ignored(void **state)
{
	(void)state;
	struct format_spec spec = { { 8, 8, 32, 16 }, { 4896, 8 } };
	struct bkey_format f = format_of(&spec);
	struct bkey expected = { .p = BPOS(4897, 8, UINT32_MAX), .type = KEY_EXTENT, .size = 8, .value_u64s = 2 };
	uint8_t bytes[16];
	const void *value;

	hex_decode("048006ffffffffff 0800ffffffff0001", bytes, sizeof(bytes));
	struct bkey k = bkey_unpack(&f, bytes, &value);
	assert_keys_equal(&k, &expected);
}

static const struct {
	struct bpos min, max;
	unsigned key_nr;
	struct bkey keys[2];
	uint8_t key_u64s;
	struct format_spec result;
} format_vectors[] = {
	{ .min = POS_MIN, .max = SPOS_MAX, .key_u64s = 3, .result = { { 64, 64, 32 }, { 0 } } },
	{ .min = BPOS(4896, 9, 0),
	  .max = BPOS(5121, 8, UINT32_MAX),
	  .key_nr = 2,
	  .keys = { { .p = BPOS(4897, 8, UINT32_MAX), .size = 8 }, { .p = BPOS(5121, 24, UINT32_MAX), .size = 24 } },
	  .key_u64s = 2,
	  .result = { { 8, 8, 32, 16 }, { 4896, 8 } } },
	{ .min = BPOS(0, 4452, 0),
	  .max = BPOS(0, 4590, UINT32_MAX),
	  .key_nr = 2,
	  .keys = { { .p = BPOS(0, 4452, UINT32_MAX) }, { .p = BPOS(0, 4589, UINT32_MAX) } },
	  .key_u64s = 1,
	  .result = { { 0, 8, 32 }, { 0, 4452 } } },
	{ .min = BPOS(4098, 7380317414579294993, 0),
	  .max = BPOS(4099, 3637514284195169641, UINT32_MAX),
	  .key_nr = 2,
	  .keys = { { .p = BPOS(4099, 31564227154545306, UINT32_MAX) },
		    { .p = BPOS(4098, 9119855151549516900, UINT32_MAX) } },
	  .key_u64s = 2,
	  .result = { { 8, 64, 32 }, { 4098 } } },
	{ .min = BPOS(5, 10, 4294967290),
	  .max = BPOS(5, 20, 4294967295),
	  .key_u64s = 1,
	  .result = { { 0, 8, 8 }, { 5, 10, 4294967040 } } },
};

static void formats_are_chosen_as_upstream_chooses_them(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_NR(format_vectors); i++) {
		struct bkey_format_builder b;
		struct bkey_format f;

		bkey_format_begin(&b);
		bkey_format_add_pos(&b, format_vectors[i].min);
		bkey_format_add_pos(&b, format_vectors[i].max);
		for (unsigned j = 0; j < format_vectors[i].key_nr; j++)
			bkey_format_add_key(&b, &format_vectors[i].keys[j]);
		bkey_format_finish(&b, &f);

		assert_int_equal(f.key_u64s, format_vectors[i].key_u64s);
		assert_memory_equal(f.bits, format_vectors[i].result.bits, sizeof(f.bits));
		assert_memory_equal(f.offset, format_vectors[i].result.offset, sizeof(f.offset));
	}
}

static void invalid_formats_are_refused(void **state)
{
	(void)state;
	static const struct format_spec bad[] = {
		{ { 65 }, { 0 } }, /* wider than the field */
		{ { 255 }, { 0 } },
		{ { 0, 0, 33 }, { 0 } },
		{ { 64 }, { 1 } }, /* overflows 64 bits */
		{ { 8 }, { UINT64_MAX - 254 } },
		{ { 0, 0, 32 }, { 0, 0, 1 } }, /* overflows 32 bits */
		{ { 0, 0, 0, 0, 1 }, { [4] = UINT32_MAX } },
		{ { 0, 0, 0 }, { 0, 0, 1ull << 32 } },
	};
	struct format_spec good = { { 8, 0, 0, 0, 1, 0 }, { UINT64_MAX - 255, [4] = UINT32_MAX - 1 } };
	struct bkey_format f;
	struct fault fault;

	for (size_t i = 0; i < ARRAY_NR(bad); i++) {
		struct bkey_format_disk d = format_disk(&bad[i]);

		assert_int_equal(bkey_format_load(&f, &d, &fault), -KILN_E_INVALID);
		assert_int_equal(fault.id, ERROR_btree_node_bad_format);
	}

	struct bkey_format_disk d = format_disk(&good);
	assert_int_equal(bkey_format_load(&f, &d, &fault), 0);
	d.nr_fields = 5;
	assert_int_equal(bkey_format_load(&f, &d, &fault), -KILN_E_INVALID);
	d.nr_fields = 6;
	for (unsigned key_u64s = 0; key_u64s < 256; key_u64s++) {
		d.key_u64s = (uint8_t)key_u64s;
		assert_int_equal(bkey_format_load(&f, &d, NULL), key_u64s == 1 ? 0 : -KILN_E_INVALID);
	}
}

/* --- model --- */

/* Bit by bit, as 02 §2.2 says it. */
static struct bkey model_unpack(const struct bkey_format_disk *d, const uint8_t *src)
{
	unsigned pos = d->key_u64s * 64u;
	uint64_t v[BKEY_FIELD_NR];

	for (unsigned i = 0; i < BKEY_FIELD_NR; i++) {
		pos -= d->bits_per_field[i];
		v[i] = 0;
		for (unsigned b = 0; b < d->bits_per_field[i]; b++)
			v[i] |= (uint64_t)(src[(pos + b) / 8] >> (pos + b) % 8 & 1) << b;
		v[i] += le64_get(d->field_offset[i]);
	}
	return (struct bkey){ .p = BPOS(v[0], v[1], (uint32_t)v[2]),
			      .size = (uint32_t)v[3],
			      .version = { .hi = (uint32_t)v[4], .lo = v[5] },
			      .type = src[2],
			      .value_u64s = (uint8_t)(src[0] - d->key_u64s) };
}

static bool model_fits(const struct format_spec *spec, const struct bkey *k)
{
	const uint64_t v[BKEY_FIELD_NR] = { k->p.inode, k->p.offset,   k->p.snapshot,
					    k->size,	k->version.hi, k->version.lo };

	for (unsigned i = 0; i < BKEY_FIELD_NR; i++)
		if (v[i] < spec->offset[i] || v[i] - spec->offset[i] > mask_of(spec->bits[i]))
			return false;
	return true;
}

/* Widths of all kinds: none, full, whole bytes, anything. */
static struct format_spec random_format(struct rng *r)
{
	struct format_spec spec = { 0 };

	for (unsigned i = 0; i < BKEY_FIELD_NR; i++) {
		uint64_t bits = rng_below(r, field_bits[i] + 1);

		switch (rng_below(r, 5)) {
		case 0: bits = 0; break;
		case 1: bits = field_bits[i]; break;
		case 2: bits = bits / 8 * 8; break;
		}
		spec.bits[i] = (uint8_t)bits;

		uint64_t room = mask_of(field_bits[i]) - mask_of(spec.bits[i]);
		switch (rng_below(r, 3)) {
		case 0: spec.offset[i] = 0; break;
		case 1: spec.offset[i] = room; break;
		case 2: spec.offset[i] = rng_u64(r) & room; break;
		}
	}
	return spec;
}

/* A value for field @i: mostly in the format's range, at its ends or just outside, or anything. */
static uint64_t random_value(struct rng *r, const struct format_spec *spec, unsigned i, bool inside)
{
	uint64_t mask = mask_of(spec->bits[i]);
	uint64_t v = spec->offset[i] + (rng_u64(r) & mask);

	switch (rng_below(r, 8)) {
	case 0: v = spec->offset[i]; break;
	case 1: v = spec->offset[i] + mask; break;
	case 2: v = inside ? v : spec->offset[i] - 1; break;
	case 3: v = inside ? v : spec->offset[i] + mask + 1; break;
	case 4: v = inside ? v : rng_u64(r); break;
	}
	return v & mask_of(field_bits[i]);
}

static struct bkey random_key(struct rng *r, const struct format_spec *spec, bool inside)
{
	return (struct bkey){ .p.inode = random_value(r, spec, 0, inside),
			      .p.offset = random_value(r, spec, 1, inside),
			      .p.snapshot = (uint32_t)random_value(r, spec, 2, inside),
			      .size = (uint32_t)random_value(r, spec, 3, inside),
			      .version.hi = (uint32_t)random_value(r, spec, 4, inside),
			      .version.lo = random_value(r, spec, 5, inside),
			      .type = (uint8_t)rng_u64(r),
			      .value_u64s = (uint8_t)rng_below(r, BKEY_VALUE_U64S_MAX + 1) };
}

static void packing_succeeds_exactly_when_fields_fit_and_loses_nothing(void **state)
{
	(void)state;
	struct rng r = test_rng();
	unsigned packed_nr = 0, misfit_nr = 0;

	for (unsigned round = 0; round < 2000; round++) {
		struct format_spec spec = random_format(&r);
		struct bkey_format_disk d = format_disk(&spec);
		struct bkey_format f = format_of(&spec);
		uint8_t *bytes = malloc(f.key_u64s * 8);

		assert_non_null(bytes);
		for (unsigned i = 0; i < 20; i++) {
			struct bkey k = random_key(&r, &spec, i % 4);
			const void *value;

			memset(bytes, 0xa5, f.key_u64s * 8);
			if (!model_fits(&spec, &k)) {
				misfit_nr++;
				assert_false(bkey_pack(&f, bytes, &k));
				assert_int_equal(bytes[0], 0xa5);
				continue;
			}
			packed_nr++;
			assert_true(bkey_pack(&f, bytes, &k));
			struct bkey back = bkey_unpack(&f, bytes, &value);
			assert_keys_equal(&back, &k);
			back = model_unpack(&d, bytes);
			assert_keys_equal(&back, &k);
			assert_true(bpos_eq(bkey_unpack_pos(&f, bytes), k.p));
		}
		free(bytes);
	}
	assert_true(packed_nr > 1000 && misfit_nr > 1000);
}

static void unpacking_any_bytes_gives_what_the_model_gives(void **state)
{
	(void)state;
	struct rng r = test_rng();

	for (unsigned round = 0; round < 20000; round++) {
		struct format_spec spec = random_format(&r);
		struct bkey_format_disk d = format_disk(&spec);
		struct bkey_format f = format_of(&spec);
		uint8_t bytes[40];
		const void *value;

		for (unsigned i = 0; i < sizeof(bytes); i++)
			bytes[i] = (uint8_t)rng_u64(&r);
		bytes[0] = (uint8_t)(f.key_u64s + rng_below(&r, 10));
		bytes[1] &= 0x80;

		uint8_t *exact = exact_copy(bytes, f.key_u64s * 8);
		struct bkey k = bkey_unpack(&f, exact, &value);
		struct bkey expected = model_unpack(&d, exact);
		assert_keys_equal(&k, &expected);
		free(exact);
	}
}

static void chosen_formats_are_valid_and_hold_all_their_inputs(void **state)
{
	(void)state;
	struct rng r = test_rng();

	for (unsigned round = 0; round < 3000; round++) {
		struct format_spec spec = random_format(&r);
		struct bkey keys[8];
		size_t nr = rng_below(&r, ARRAY_NR(keys) + 1);
		struct bkey_format_builder b;
		struct bkey_format f, loaded;
		struct bkey_format_disk d;
		uint8_t bytes[40];

		bkey_format_begin(&b);
		for (size_t i = 0; i < nr; i++) {
			keys[i] = random_key(&r, &spec, false);
			bkey_format_add_key(&b, &keys[i]);
		}
		bkey_format_finish(&b, &f);
		bkey_format_store(&d, &f);
		assert_int_equal(bkey_format_load(&loaded, &d, NULL), 0);
		for (size_t i = 0; i < nr; i++)
			assert_true(bkey_pack(&loaded, bytes, &keys[i]));
	}
}

/* --- comparing and searching --- */

static int order_keys(const void *a, const void *b)
{
	return bpos_cmp(((const struct bkey *)a)->p, ((const struct bkey *)b)->p);
}

enum { SEARCH_KEYS_MAX = 64 };

struct key_array {
	struct bkey keys[SEARCH_KEYS_MAX];
	uint32_t offset_u64s[SEARCH_KEYS_MAX];
	uint8_t *bytes;
	unsigned nr;
};

/* Sorted keys, packed where they fit, some unpacked nevertheless, without values. */
static void key_array_random(struct key_array *a, struct rng *r, const struct format_spec *spec,
			     const struct bkey_format *f)
{
	uint8_t bytes[SEARCH_KEYS_MAX * sizeof(struct bkey_disk)];
	size_t len = 0;

	a->nr = (unsigned)rng_below(r, SEARCH_KEYS_MAX + 1);
	for (unsigned i = 0; i < a->nr; i++) {
		a->keys[i] = random_key(r, spec, rng_below(r, 4));
		a->keys[i].value_u64s = 0;
		/* Neighbours that differ in their last field only. */
		if (i && rng_below(r, 3)) {
			struct bkey *k = &a->keys[i];

			k->p = a->keys[i - 1].p;
			k->p.snapshot = (uint32_t)random_value(r, spec, 2, true);
			if (rng_below(r, 2))
				k->p.offset = random_value(r, spec, 1, true);
		}
	}
	qsort(a->keys, a->nr, sizeof(a->keys[0]), order_keys);
	for (unsigned i = 0; i < a->nr; i++) {
		a->offset_u64s[i] = (uint32_t)(len / 8);
		if (rng_below(r, 8) && bkey_pack(f, bytes + len, &a->keys[i])) {
			len += f->key_u64s * 8u;
		} else {
			struct bkey_disk d;

			bkey_store(&d, &a->keys[i]);
			memcpy(bytes + len, &d, sizeof(d));
			len += sizeof(d);
		}
	}
	a->bytes = exact_copy(bytes, len);
}

/* Positions of keys, their neighbours, and anything else. */
static struct bpos search_pos(struct rng *r, const struct format_spec *spec, const struct key_array *a)
{
	struct bpos p = random_key(r, spec, false).p;

	if (a->nr && rng_below(r, 2))
		p = a->keys[rng_below(r, a->nr)].p;
	switch (rng_below(r, 6)) {
	case 0: return bpos_successor(p);
	case 1: return bpos_predecessor(p);
	case 2: return bpos_nosnap_successor(p);
	}
	return p;
}

static void searching_gives_what_comparing_unpacked_positions_gives(void **state)
{
	(void)state;
	struct rng r = test_rng();
	unsigned lossy_nr = 0, exact_nr = 0;

	for (unsigned round = 0; round < 1500; round++) {
		struct format_spec spec = random_format(&r);
		struct bkey_format f = format_of(&spec);
		struct key_array a;

		key_array_random(&a, &r, &spec, &f);
		for (unsigned i = 0; i < 40; i++) {
			struct bpos pos = search_pos(&r, &spec, &a);
			struct bkey at_pos = { .p = pos,
					       .size = (uint32_t)spec.offset[3],
					       .version = { .hi = (uint32_t)spec.offset[4], .lo = spec.offset[5] } };
			struct bkey_search s;
			unsigned first = a.nr;

			bkey_search_init(&s, &f, pos);
			assert_int_equal(s.is_exact, model_fits(&spec, &at_pos));
			lossy_nr += !s.is_exact;
			exact_nr += s.is_exact;
			for (unsigned j = a.nr; j-- > 0;) {
				const uint8_t *src = a.bytes + a.offset_u64s[j] * 8;
				int expected = bpos_cmp(a.keys[j].p, pos);

				assert_int_equal(bkey_cmp_pos(&f, src, pos), expected);
				assert_int_equal(bkey_search_cmp(&s, src), expected);
				if (expected >= 0)
					first = j;
			}
			assert_int_equal(bkey_search_first(&s, a.bytes, a.offset_u64s, a.nr), first);
		}
		free(a.bytes);
	}
	assert_true(lossy_nr > 1000 && exact_nr > 1000);
}

/* --- frames, header rules, text --- */

static void frames_that_dont_hold_a_key_are_refused(void **state)
{
	(void)state;
	struct format_spec spec = { { 8, 8, 32, 16 }, { 0 } };
	struct bkey_format f = format_of(&spec);
	static const struct {
		uint8_t u64s, format;
		size_t avail;
		int expected;
		uint32_t id;
	} cases[] = {
		{ 2, 0, 2, 2, 0 },
		{ 2, 0x80, 100, 2, 0 },
		{ 5, 1, 5, 5, 0 },
		{ 255, 1, 255, 255, 0 },
		{ 252, 0, 300, 252, 0 },
		{ 3, 0, 2, -KILN_E_INVALID, ERROR_btree_node_bkey_past_bset_end },
		{ 4, 1, 10, -KILN_E_INVALID, ERROR_bkey_u64s_too_small },
		{ 1, 0, 10, -KILN_E_INVALID, ERROR_bkey_u64s_too_small },
		{ 0, 0, 10, -KILN_E_INVALID, ERROR_bkey_u64s_too_small },
		{ 5, 2, 10, -KILN_E_INVALID, ERROR_btree_node_bkey_bad_format },
		{ 5, 0xff, 10, -KILN_E_INVALID, ERROR_btree_node_bkey_bad_format },
		{ 253, 0, 300, -KILN_E_INVALID, ERROR_btree_node_bad_bkey },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		uint8_t word[8] = { cases[i].u64s, cases[i].format };
		struct fault fault = { 0 };

		assert_int_equal(bkey_check_frame(&f, word, cases[i].avail, &fault), cases[i].expected);
		assert_int_equal(fault.id, cases[i].id);
	}
}

static void header_rules_depend_on_btree_and_level(void **state)
{
	(void)state;
	static const struct {
		struct bkey k;
		unsigned btree_id, level;
		uint32_t id;
	} cases[] = {
		{ { .p = BPOS(1, 8, 1), .size = 8, .type = KEY_EXTENT }, BTREE_EXTENTS, 0, 0 },
		{ { .p = BPOS(1, 8, 1), .size = 9, .type = KEY_EXTENT },
		  BTREE_EXTENTS,
		  0,
		  ERROR_bkey_extent_size_greater_than_offset },
		{ { .p = BPOS(1, 8, 1), .type = KEY_EXTENT }, BTREE_EXTENTS, 0, ERROR_bkey_extent_size_zero },
		{ { .p = BPOS(1, 8, 1), .type = KEY_DELETED }, BTREE_EXTENTS, 0, 0 },
		{ { .p = BPOS(1, 8, 1), .type = KEY_EXTENT_WHITEOUT }, BTREE_EXTENTS, 0, 0 },
		{ { .p = BPOS(1, 8, 1), .size = 1, .type = KEY_WHITEOUT }, BTREE_EXTENTS, 0, ERROR_bkey_size_nonzero },
		{ { .p = BPOS(1, 8, 1), .size = 1, .type = KEY_BTREE_PTR_V2 },
		  BTREE_EXTENTS,
		  1,
		  ERROR_bkey_size_nonzero },
		{ { .p = BPOS(1, 8, 0), .type = KEY_BTREE_PTR_V2 }, BTREE_EXTENTS, 1, 0 },
		{ { .p = BPOS(1, 8, 0), .size = 8, .type = KEY_EXTENT }, BTREE_EXTENTS, 0, ERROR_bkey_snapshot_zero },
		{ { .p = BPOS(1, 8, 0), .type = KEY_INODE_V3 }, BTREE_INODES, 0, ERROR_bkey_snapshot_zero },
		{ { .p = BPOS(1, 8, 0), .type = KEY_ALLOC_V4 }, BTREE_ALLOC, 0, 0 },
		{ { .p = BPOS(1, 8, 1), .type = KEY_ALLOC_V4 }, BTREE_ALLOC, 0, ERROR_bkey_snapshot_nonzero },
		{ { .p = BPOS(1, 8, 1), .type = KEY_SET }, BTREE_DELETED_INODES, 0, 0 },
		{ { .p = BPOS(1, 8, 0), .type = KEY_SET }, BTREE_DELETED_INODES, 0, 0 },
		{ { .p = BPOS(0, 24572, 0), .size = 24324, .type = KEY_SET }, BTREE_FREESPACE, 0, 0 },
		{ { .p = POS_MAX, .type = KEY_ALLOC_V4 }, BTREE_ALLOC, 0, ERROR_bkey_at_pos_max },
		{ { .p = SPOS_MAX, .type = KEY_DIRENT }, BTREE_DIRENTS, 0, ERROR_bkey_at_pos_max },
		{ { .p = SPOS_MAX, .type = KEY_BTREE_PTR_V2 }, BTREE_DIRENTS, 1, 0 },
		{ { .p = BPOS(1, 8, 7), .size = 3, .type = 77 }, 40, 0, 0 },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct fault fault = { 0 };
		int err = bkey_validate(&cases[i].k, cases[i].btree_id, cases[i].level, &fault);

		assert_int_equal(fault.id, cases[i].id);
		assert_int_equal(err, cases[i].id ? -KILN_E_INVALID : 0);
	}
}

static void text_is_what_upstream_prints(void **state)
{
	(void)state;
	static const struct {
		struct bkey k;
		const char *text;
	} cases[] = {
		{ { .p = BPOS(4158, 7789568806967909529, UINT32_MAX), .type = KEY_DIRENT, .value_u64s = 2 },
		  "u64s 7 type dirent 4158:7789568806967909529:U32_MAX len 0 ver 0" },
		{ { .p = BPOS(4371, 8, UINT32_MAX), .type = KEY_INLINE_DATA, .size = 8, .value_u64s = 3 },
		  "u64s 8 type inline_data 4371:8:U32_MAX len 8 ver 0" },
		{ { .p = POS_MIN, .type = KEY_ACCOUNTING, .value_u64s = 1, .version.lo = 1211180777477 },
		  "u64s 6 type accounting POS_MIN len 0 ver 1211180777477" },
		{ { .p = SPOS_MAX, .type = 200, .version = { .hi = 1, .lo = 2 } },
		  "u64s 5 type 200 SPOS_MAX len 0 ver 1:2" },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		char text[200];
		struct strbuf out = strbuf_fixed(text, sizeof(text));

		bkey_to_text(&out, &cases[i].k);
		assert_string_equal(strbuf_text(&out), cases[i].text);
	}

	char text[200];
	struct strbuf out = strbuf_fixed(text, sizeof(text));
	struct format_spec spec = { { 8, 8, 32, 16 }, { 4896, 8 } };
	struct bkey_format f = format_of(&spec);
	bkey_format_to_text(&out, &f);
	assert_string_equal(strbuf_text(&out), "u64s 2 fields 8:4896 8:8 32:0 16:0 0:0 0:0");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(packed_keys_of_real_nodes_are_read_and_written),
		cmocka_unit_test(unpacked_key_of_a_real_node_is_read_and_written),
		cmocka_unit_test(needs_whiteout_and_spare_bits_are_ignored),
		cmocka_unit_test(formats_are_chosen_as_upstream_chooses_them),
		cmocka_unit_test(invalid_formats_are_refused),
		cmocka_unit_test(packing_succeeds_exactly_when_fields_fit_and_loses_nothing),
		cmocka_unit_test(unpacking_any_bytes_gives_what_the_model_gives),
		cmocka_unit_test(chosen_formats_are_valid_and_hold_all_their_inputs),
		cmocka_unit_test(searching_gives_what_comparing_unpacked_positions_gives),
		cmocka_unit_test(frames_that_dont_hold_a_key_are_refused),
		cmocka_unit_test(header_rules_depend_on_btree_and_level),
		cmocka_unit_test(text_is_what_upstream_prints),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
