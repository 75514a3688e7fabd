/* Extents, node pointers and reflinks: vectors of 06 §19.2-19.4, 08 §17 and 12 §8, and one bad key for each rule. */
#include "key_test.h"

#include "format/extent.h"
#include "format/file_data.h"

#define P(i, o) BPOS(i, o, UINT32_MAX)

struct ptr_expected {
	unsigned dev;
	uint64_t sector;
	bool is_cached;
	bool has_crc;
	uint32_t c, u, offset, nonce;
	unsigned csum_type, compression;
	uint64_t csum_lo, csum_hi;
};

static const struct extent_vector {
	const char *hex;
	uint32_t size;
	unsigned nr;
	struct ptr_expected ptrs[2];
} vectors[] = {
	{ "1e0e0005ba4d93c1 0100020000000000", 8, 1, { { 0, 8192, false, true, 8, 8, 0, 0, 5, 0, 0xc1934dba } } },
	{ "3c70000000060000235c1491d299862f 0100020000000000",
	  8,
	  1,
	  { { 0, 8192, false, true, 8, 8, 0, 0, 6, 0, 0x2f8699d291145c23 } } },
	{ "3c70000000070000a44409b73d941a00 0100020000000000",
	  8,
	  1,
	  { { 0, 8192, false, true, 8, 8, 0, 0, 7, 0, 0x001a943db70944a4 } } },
	{ "0100020000000000", 8, 1, { { 0, 8192, false, false, 8, 8 } } },
	{ "1e0e0055ba4d93c1 0100020000000000", 8, 1, { { 0, 8192, false, true, 8, 8, 0, 0, 5, 5, 0xc1934dba } } },
	{ "3efe00252ae004e8 010d020000000000", 128, 1, { { 0, 8400, false, true, 16, 128, 0, 0, 5, 2, 0xe804e02a } } },
	{ "5efe00356cfaadf9 010d020000000000", 128, 1, { { 0, 8400, false, true, 24, 128, 0, 0, 5, 3, 0xf9adfa6c } } },
	{ "1efe00450e3b5b96 010d020000000000", 128, 1, { { 0, 8400, false, true, 8, 128, 0, 0, 5, 4, 0x965b3b0e } } },
	{ "fcff1f000055000053ed6d2f00000000 01000c0000000000",
	  512,
	  1,
	  { { 0, 49152, false, true, 512, 512, 0, 0, 5, 5, 0x2f6ded53 } } },
	{ "1e0e0005ba4d93c1 01e0010000000000 01c0010000000100",
	  8,
	  2,
	  { { 0, 7680, false, true, 8, 8, 0, 0, 5, 0, 0xc1934dba },
	    { 1, 7168, false, true, 8, 8, 0, 0, 5, 0, 0xc1934dba } } },
	{ "1e0e0005ba4d93c1 0190010000000100 0300020000000000",
	  8,
	  2,
	  { { 1, 6400, false, true, 8, 8, 0, 0, 5, 0, 0xc1934dba },
	    { 0, 8192, true, true, 8, 8, 0, 0, 5, 0, 0xc1934dba } } },
	{ "1e0e000560108b9d 0390010000000000 0100020000000100",
	  8,
	  2,
	  { { 0, 6400, true, true, 8, 8, 0, 0, 5, 0, 0x9d8b1060 },
	    { 1, 8192, false, true, 8, 8, 0, 0, 5, 0, 0x9d8b1060 } } },
	{ "78000e00000000041889e128097fd0d7b305d8f6773f10f6 0100020000000000",
	  8,
	  1,
	  { { 0, 8192, false, true, 8, 8, 0, 0, 4, 0, 0xd7d07f0928e18918, 0xf6103f77f6d805b3 } } },
	{ "f87ffe0f00000003d4bfe3826c1e0c4f2259000000000000 01000c0000000000",
	  2048,
	  1,
	  { { 0, 49152, false, true, 2048, 2048, 0, 0, 3, 0, 0x4f0c1e6c82e3bfd4, 0x5922 } } },
	{ "78348e0600c0250309fef607dba35638e9ff000000000000 814b0c0000000000",
	  840,
	  1,
	  { { 0, 50360, false, true, 840, 840, 0, 1208, 3, 0, 0x3856a3db07f6fe09, 0xffe9 } } },
	/* trimmed and narrowed, 06 §19.3 */
	{ "feff000573e2a8a8 8100020000000000", 24, 1, { { 0, 8200, false, true, 128, 128, 0, 0, 5, 0, 0xa8a8e273 } } },
	{ "feff280573e2a8a8 8100020000000000", 88, 1, { { 0, 8200, false, true, 128, 128, 40, 0, 5, 0, 0xa8a8e273 } } },
	{ "5e2e00055c6fda51 8100020000000000", 24, 1, { { 0, 8200, false, true, 24, 24, 0, 0, 5, 0, 0x51da6f5c } } },
	{ "5eaf00054290ecc5 0103020000000000", 88, 1, { { 0, 8240, false, true, 88, 88, 0, 0, 5, 0, 0xc5ec9042 } } },
	{ "fcf3070000031a5746efef5d95e11727 8100020000000000",
	  128,
	  1,
	  { { 0, 8200, false, true, 128, 128, 0, 0, 3, 0, 0x2717e1955defef46, 0x571a } } },
	{ "bc7205000a03b7848a5d59fce6ecac41 0103020000000000",
	  88,
	  1,
	  { { 0, 8240, false, true, 88, 88, 0, 40, 3, 0, 0x41acece6fc595d8a, 0x84b7 } } },
	{ "bc7205040a03b7848a5d59fce6ecac41 0103020000000000",
	  56,
	  1,
	  { { 0, 8240, false, true, 88, 88, 32, 40, 3, 0, 0x41acece6fc595d8a, 0x84b7 } } },
	{ "5e2e00051f315d3e 0120020000000000", 24, 1, { { 0, 8704, false, true, 24, 24, 0, 0, 5, 0, 0x3e5d311f } } },
	{ "3c70000000037ec89841498fd94c4fdd 0120020000000000",
	  8,
	  1,
	  { { 0, 8704, false, true, 8, 8, 0, 0, 3, 0, 0xdd4f4cd98f494198, 0xc87e } } },
	/* 07 §19.2: 112 sectors live of a zstd region */
	{ "3efe10451154f6cc 0104020000000000", 112, 1, { { 0, 8256, false, true, 16, 128, 16, 0, 5, 4, 0xccf65411 } } },
};

static struct bkey_ref extent_of(const struct extent_vector *v)
{
	return key_of_hex(KEY_EXTENT, P(4098, 4096), v->size, v->hex);
}

static void assert_ptr(const struct extent_ptr_decoded *p, const struct ptr_expected *e)
{
	assert_int_equal(p->ptr.dev, e->dev);
	assert_true(p->ptr.sector == e->sector);
	assert_int_equal(p->ptr.gen, 0);
	assert_int_equal(p->ptr.is_cached, e->is_cached);
	assert_false(p->ptr.is_unwritten);
	assert_int_equal(p->has_crc, e->has_crc);
	assert_int_equal(p->crc.compressed_sectors, e->c);
	assert_int_equal(p->crc.uncompressed_sectors, e->u);
	assert_int_equal(p->crc.offset_sectors, e->offset);
	assert_int_equal(p->crc.nonce_sectors, e->nonce);
	assert_int_equal(p->crc.csum_type, e->csum_type);
	assert_int_equal(p->crc.compression, e->compression);
	assert_true(p->crc.csum.lo == e->csum_lo);
	assert_true(p->crc.csum.hi == e->csum_hi);
	assert_false(p->has_stripe);
}

static void extents_decode_to_what_upstream_wrote(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);

	ctx.has_key = true;
	for (size_t i = 0; i < ARRAY_NR(vectors); i++) {
		struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
		struct bkey_ref k = extent_of(&vectors[i]);
		struct fault fault;
		bool is_poisoned = true;

		/* One vector is of a device with larger buckets. */
		if (vectors[i].size <= TEST_BUCKET_SECTORS)
			assert_key_valid(k, &ctx);
		assert_int_equal(extent_decode(k, &ctx, ptrs, &is_poisoned, &fault), vectors[i].nr);
		assert_false(is_poisoned);
		for (unsigned j = 0; j < vectors[i].nr; j++)
			assert_ptr(&ptrs[j], &vectors[i].ptrs[j]);
	}
}

/* Every entry that has an encoder, encoded again: upstream chose the smallest form too. */
static void entries_encode_to_the_bytes_they_came_from(void **state)
{
	for (size_t i = 0; i < ARRAY_NR(vectors); i++) {
		struct bkey_ref k = extent_of(&vectors[i]);
		struct extent_walk w = { .pos = k.value, .end = (const uint8_t *)k.value + bkey_value_bytes(&k.k) };
		struct extent_entry e;

		while (extent_walk_next(&w, &e, NULL) > 0) {
			uint8_t bytes[24] = { 0 };
			int u64s = 1;

			if (e.type == EXTENT_ENTRY_PTR) {
				struct extent_ptr p = extent_ptr_load(e.bytes);

				extent_ptr_store(bytes, &p);
			} else {
				struct extent_crc crc = extent_crc_load(e.type, e.bytes);

				u64s = extent_crc_store(bytes, &crc);
			}
			assert_int_equal(u64s, e.u64s);
			assert_memory_equal(bytes, e.bytes, (size_t)u64s * 8);
		}
		assert_ptr_equal(w.pos, w.end);
	}
}

static void descriptors_take_the_smallest_form_that_holds_them(void **state)
{
	static const struct {
		struct extent_crc crc;
		int u64s;
	} cases[] = {
		{ { .compressed_sectors = 128, .uncompressed_sectors = 128, .offset_sectors = 127, .csum_type = 5 },
		  1 },
		{ { .compressed_sectors = 128, .uncompressed_sectors = 129, .csum_type = 5 }, 2 },
		{ { .compressed_sectors = 8, .uncompressed_sectors = 8, .csum_type = 6 }, 2 },
		{ { .compressed_sectors = 8, .uncompressed_sectors = 8, .nonce_sectors = 1, .csum_type = 3 }, 2 },
		{ { .compressed_sectors = 512, .uncompressed_sectors = 512, .nonce_sectors = 1023, .csum_type = 3 },
		  2 },
		{ { .compressed_sectors = 8, .uncompressed_sectors = 8, .nonce_sectors = 1024, .csum_type = 3 }, 3 },
		{ { .compressed_sectors = 8, .uncompressed_sectors = 8, .csum_type = 4 }, 3 },
		{ { .compressed_sectors = 1, .uncompressed_sectors = 8192, .nonce_sectors = 8191, .compression = 4 },
		  3 },
		{ { .compressed_sectors = 1, .uncompressed_sectors = 8193 }, -KILN_E_INVALID },
		{ { .compressed_sectors = 1, .uncompressed_sectors = 1, .nonce_sectors = 8192 }, -KILN_E_INVALID },
		{ { .compressed_sectors = 0, .uncompressed_sectors = 1 }, -KILN_E_INVALID },
		{ { .compressed_sectors = 1, .uncompressed_sectors = 0 }, -KILN_E_INVALID },
		{ { .compressed_sectors = 1, .uncompressed_sectors = 1, .csum_type = 8 }, -KILN_E_INVALID },
		{ { .compressed_sectors = 1, .uncompressed_sectors = 1, .compression = 6 }, -KILN_E_INVALID },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		static const unsigned types[] = { 0, EXTENT_ENTRY_CRC32, EXTENT_ENTRY_CRC64, EXTENT_ENTRY_CRC128 };
		uint8_t bytes[24];
		int u64s = extent_crc_store(bytes, &cases[i].crc);

		assert_int_equal(u64s, cases[i].u64s);
		if (u64s < 0)
			continue;
		struct extent_crc back = extent_crc_load(types[u64s], bytes);
		assert_int_equal(back.compressed_sectors, cases[i].crc.compressed_sectors);
		assert_int_equal(back.uncompressed_sectors, cases[i].crc.uncompressed_sectors);
		assert_int_equal(back.offset_sectors, cases[i].crc.offset_sectors);
		assert_int_equal(back.nonce_sectors, cases[i].crc.nonce_sectors);
		assert_int_equal(back.csum_type, cases[i].crc.csum_type);
		assert_int_equal(back.compression, cases[i].crc.compression);
	}
}

static void pointers_before_descriptors_are_plain_and_stripes_qualify_one_pointer(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	/* ptr; crc32; stripe_ptr; ptr; ptr */
	struct bkey_ref k =
		key_of_hex(KEY_EXTENT, P(4098, 128), 128,
			   "0100020000000000 feff0005ede34e7a 1020020000000000 01d0010000000100 01d0010000000200");

	assert_key_valid(k, &ctx);
	assert_int_equal(extent_decode(k, &ctx, ptrs, NULL, NULL), 3);
	assert_false(ptrs[0].has_crc);
	assert_int_equal(ptrs[0].crc.uncompressed_sectors, 128);
	assert_int_equal(ptrs[0].crc.csum_type, 0);
	assert_true(ptrs[1].has_crc && ptrs[2].has_crc);
	assert_false(ptrs[0].has_stripe || ptrs[2].has_stripe);
	assert_true(ptrs[1].has_stripe);
	assert_int_equal(ptrs[1].stripe.block, 0);
	assert_int_equal(ptrs[1].stripe.redundancy, 1);
	assert_int_equal(ptrs[1].stripe.idx, 1);

	uint8_t bytes[8];
	extent_stripe_ptr_store(bytes, &ptrs[1].stripe);
	assert_memory_equal(bytes, (const uint8_t *)k.value + 16, 8);
}

static void a_stripe_pointer_may_stand_before_the_descriptor(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct bkey_ref k =
		key_of_hex(KEY_EXTENT, P(4098, 128), 128, "1020020000000000 feff0005ede34e7a 01d0010000000100");

	assert_key_valid(k, &ctx);
	assert_int_equal(extent_decode(k, &ctx, ptrs, NULL, NULL), 1);
	assert_true(ptrs[0].has_stripe && ptrs[0].has_crc);
}

static void unwritten_and_rebalance_entries_decode(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct bkey_ref k = key_of_hex(KEY_EXTENT, P(4098, 8), 8, "0920020000000000");

	assert_key_valid(k, &ctx);
	assert_int_equal(extent_decode(k, &ctx, ptrs, NULL, NULL), 1);
	assert_true(ptrs[0].ptr.is_unwritten);
	assert_true(ptrs[0].ptr.sector == 8704);

	k = key_of_hex(KEY_EXTENT, P(4098, 128), 128, "feff0005b0e78d50 0120020000000000 2000000000530000");
	assert_key_valid(k, &ctx);
	assert_int_equal(extent_decode(k, &ctx, ptrs, NULL, NULL), 1);
	struct extent_rebalance r = extent_rebalance_load((const uint8_t *)k.value + 16);
	assert_int_equal(r.compression, 0x53);
	assert_int_equal(r.target, 0);

	k = key_of_hex(KEY_EXTENT, P(4098, 8), 8, "1e0e0005ba4d93c1 0100020000000000 2000000000000301");
	assert_key_valid(k, &ctx);
	r = extent_rebalance_load((const uint8_t *)k.value + 16);
	assert_int_equal(r.compression, 0);
	assert_int_equal(r.target, 259);
}

/* --- newer versions --- */

static void newer_entries_are_read_around(void **state)
{
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	bool is_poisoned;
	/* flags: poisoned; crc32; ptr; reconcile (12 §8.1); reconcile_bp */
	struct bkey_ref k =
		key_of_hex(KEY_EXTENT, P(4098, 8), 8,
			   "c000000000000000 1e0e0005ba4d93c1 0100020000000000 800010a020000000 0001000000000000");

	assert_key_valid(k, &ctx);
	assert_int_equal(extent_decode(k, &ctx, ptrs, &is_poisoned, NULL), 1);
	assert_true(is_poisoned);
	assert_true(ptrs[0].has_crc);
	assert_true(ptrs[0].ptr.sector == 8192);

	struct key_context old = test_context(VERSION_1_4);
	assert_key_fault(k, &old, ERROR_extent_ptrs_invalid_entry, "entries of newer versions at 1.4");
}

static void unknown_entries_are_skipped_by_the_listed_size(void **state)
{
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	/* type 12, two words; ptr */
	struct bkey_ref k = key_of_hex(KEY_EXTENT, P(4098, 8), 8, "0010000000000000 ffffffffffffffff 0100020000000000");

	/* Not listed: kept, so that it can't be taken for a hole, but it can't be read. */
	assert_key_valid(k, &ctx);
	assert_int_equal(extent_decode(k, &ctx, ptrs, NULL, NULL), -KILN_E_INVALID);

	ctx.entry_type_u64s[12] = 2;
	assert_key_valid(k, &ctx);
	assert_int_equal(extent_decode(k, &ctx, ptrs, NULL, NULL), 1);
	assert_true(ptrs[0].ptr.sector == 8192);

	/* Listed, but with more words than there are. */
	ctx.entry_type_u64s[12] = 4;
	assert_int_equal(extent_decode(k, &ctx, ptrs, NULL, NULL), -KILN_E_INVALID);
	/* Types that section 16 has no room for. */
	k = key_of_hex(KEY_EXTENT, P(4098, 8), 8, "0000000000000080 0100020000000000");
	assert_int_equal(extent_decode(k, &ctx, ptrs, NULL, NULL), -KILN_E_INVALID);
}

static void pointers_without_a_device_are_tolerated_in_newer_images(void **state)
{
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	/* ptr dev 0; ptr dev 255 twice; ptr dev 77 far outside */
	struct bkey_ref k = key_of_hex(KEY_EXTENT, P(4098, 8), 8,
				       "0100020000000000 010002000000ff00 010002000000ff00 f1ffffffffff4d00");

	assert_key_valid(k, &ctx);
	assert_int_equal(extent_decode(k, &ctx, ptrs, NULL, NULL), 4);
	assert_int_equal(ptrs[1].ptr.dev, DEV_NONE);
	assert_int_equal(ptrs[3].ptr.dev, 77);
}

/* --- btree_ptr_v2 --- */

#define NODE_HEAD "1122334455667788 b8d6124059743742 1000 0100"
#define NODE_MIN  "00000000 0000000000000000 0000000000000000"

static void node_pointers_decode(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k =
		key_of_hex(KEY_BTREE_PTR_V2, SPOS_MAX, 0,
			   NODE_HEAD "05000000 0600000000000000 0700000000000000 01e0010000000003 01c0010000000102");
	struct btree_ptr p;

	assert_key_valid(k, &ctx);
	assert_int_equal(btree_ptr_decode(k, &ctx, &p, NULL), 0);
	assert_true(p.seq == 0x423774594012d6b8);
	assert_int_equal(p.sectors_written, 16);
	assert_true(p.is_range_updated);
	assert_true(bpos_eq(p.min_key, BPOS(7, 6, 5)));
	assert_int_equal(p.ptr_nr, 2);
	assert_int_equal(p.ptrs[0].dev, 0);
	assert_int_equal(p.ptrs[0].gen, 3);
	assert_true(p.ptrs[0].sector == 7680);
	assert_int_equal(p.ptrs[1].dev, 1);
	assert_value_text(k, &ctx,
			  "seq 423774594012d6b8 written 16 range_updated min_key 7:6:5 durability: 2 ptr: 0:30:0 gen 3 "
			  "ptr: 1:28:0 gen 2");
}

static void node_pointers_of_newer_versions_have_more_entries(void **state)
{
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);
	struct bkey_ref k =
		key_of_hex(KEY_BTREE_PTR_V2, SPOS_MAX, 0,
			   NODE_HEAD NODE_MIN "01e0010000000000 800010a020000000 0003000000000000 010002000000ff00");
	struct btree_ptr p;

	assert_key_valid(k, &ctx);
	assert_int_equal(btree_ptr_decode(k, &ctx, &p, NULL), 0);
	assert_int_equal(p.ptr_nr, 2);
	assert_int_equal(p.ptrs[1].dev, DEV_NONE);
}

static void obsolete_node_pointers_are_refused(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k = key_of_hex(KEY_BTREE_PTR, SPOS_MAX, 0, "01e0010000000000");
	struct fault fault;
	struct btree_ptr p;

	assert_key_valid(k, &ctx);
	assert_int_equal(btree_ptr_decode(k, &ctx, &p, &fault), -KILN_E_UNSUPPORTED);
}

/* --- reflink --- */

static void reflinks_decode(void **state)
{
	static const struct {
		const char *hex;
		struct reflink_p p;
		const char *text;
	} cases[] = {
		{ "b000000000000000 00000000 68000000", { 176, 0, 104, false }, "idx 176 front_pad 0 back_pad 104" },
		{ "0000000000000000 00000000 28000000", { 0, 0, 40, false }, "idx 0 front_pad 0 back_pad 40" },
		{ "1000000000000000 10000000 10000000", { 16, 16, 16, false }, "idx 16 front_pad 16 back_pad 16" },
		{ "b900000000000002 0000000000000000", { 185, 0, 0, false }, "idx 185 front_pad 0 back_pad 0" },
		{ "b900000000000001 0000000000000000", { 185, 0, 0, true }, "idx 185 front_pad 0 back_pad 0 error" },
	};
	struct key_context ctx = test_context(VERSION_1_4);

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct bkey_ref k = key_of_hex(KEY_REFLINK_P, P(4102, 200), 24, cases[i].hex);
		struct reflink_p p;

		assert_key_valid(k, &ctx);
		assert_int_equal(reflink_p_decode(k, &p), 0);
		assert_true(p.idx == cases[i].p.idx);
		assert_int_equal(p.front_pad, cases[i].p.front_pad);
		assert_int_equal(p.back_pad, cases[i].p.back_pad);
		assert_int_equal(p.is_error, cases[i].p.is_error);
		assert_value_text(k, &ctx, cases[i].text);
	}
}

static void indirect_extents_decode_behind_their_refcount(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct bkey_ref k =
		key_of_hex(KEY_REFLINK_V, BPOS(0, 48, 0), 48, "0200000000000000 be5e00054ab787b8 01cd020000000000");

	assert_key_valid(k, &ctx);
	assert_true(reflink_v_decode(k).refcount == 2);
	assert_int_equal(extent_decode(k, &ctx, ptrs, NULL, NULL), 1);
	assert_int_equal(ptrs[0].crc.uncompressed_sectors, 48);
	assert_true(ptrs[0].ptr.sector == 0x2cd0);
	assert_value_text(k, &ctx,
			  "refcount: 2 durability: 1 crc: c_size 48 size 48 offset 0 nonce 0 csum crc32c compress none "
			  "ptr: 0:44:208 gen 0");

	const uint8_t *bytes;
	k = key_of_hex(KEY_INDIRECT_INLINE_DATA, BPOS(0, 8, 0), 8, "0200000000000000 68656c6c6f200a00");
	assert_key_valid(k, &ctx);
	assert_true(reflink_v_decode(k).refcount == 2);
	assert_int_equal(inline_data_bytes(k, &bytes), 8);
	assert_memory_equal(bytes, "hello \n", 8);
	assert_value_text(k, &ctx, "refcount 2 datalen 8: 68656c6c6f200a00");
}

/* --- text --- */

static void extents_print_as_upstream_does(void **state)
{
	static const struct {
		uint32_t size;
		const char *hex, *text;
	} cases[] = {
		{ 128, "feff0005ede34e7a 1020020000000000 01d0010000000100",
		  "durability: 2 crc: c_size 128 size 128 offset 0 nonce 0 csum crc32c compress none ec: idx 1 block 0 "
		  "ptr: 1:29:0 gen 0" },
		{ 8, "1e0e0005ba4d93c1 0190010000000100 0300020000000000",
		  "durability: 1 crc: c_size 8 size 8 offset 0 nonce 0 csum crc32c compress none ptr: 1:25:0 gen 0 "
		  "ptr: 0:32:0 gen 0 cached" },
		{ 112, "3efe10451154f6cc 0104020000000000",
		  "durability: 1 crc: c_size 16 size 128 offset 16 nonce 0 csum crc32c compress zstd ptr: 0:32:64 gen "
		  "0" },
		{ 8, "0920020000000000", "durability: 1 ptr: 0:34:0 gen 0 unwritten" },
	};
	struct key_context ctx = test_context(VERSION_1_4);

	for (size_t i = 0; i < ARRAY_NR(cases); i++)
		assert_value_text(key_of_hex(KEY_EXTENT, P(4098, 4096), cases[i].size, cases[i].hex), &ctx,
				  cases[i].text);
}

/* --- rules --- */

#define PTR0 "0100020000000000"
#define PTR1 "0190010000000100"
#define CRC8 "1e0e0005ba4d93c1"

static const struct bad_key bad_keys[] = {
	{ "word of 0", 135, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "0000000000000000" PTR0 },
	{ "entry past the end", 135, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, PTR0 "3c70000000060000" },
	{ "crc128 past the end", 135, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8,
	  PTR0 "0800000000000000 0000000000000000" },
	{ "flags entry at 1.4", 135, FINE_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "4000000000000000" PTR0 },
	{ "unknown entry", 135, FINE_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "0002000000000000" PTR0 },
	{ "flags entry not first", 135, 306, KEY_EXTENT, P(4098, 8), 8, PTR0 "4000000000000000" },
	{ "no pointer", 136, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "" },
	{ "rebalance entry only", 136, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "2000000000000000" },
	{ "trailing crc", 138, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, PTR0 CRC8 },
	{ "trailing stripe_ptr", 139, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, PTR0 "1020020000000000" },
	{ "unwritten in reflink_v", 140, SAME_WHEN_NEWER, KEY_REFLINK_V, BPOS(0, 8, 0), 8,
	  "0100000000000000 0920020000000000" },
	{ "written and unwritten", 141, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "0920020000000000" PTR1 },
	{ "no such device", 142, FINE_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "0100020000000600" },
	{ "device 255", 142, FINE_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "010002000000ff00" },
	{ "same device twice", 143, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, PTR0 "0300030000000000" },
	{ "after last bucket", 144, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "0100800000000000" },
	{ "far after last bucket", 144, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "f1ffffffffff0000" },
	{ "before first bucket", 145, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "0110000000000000" },
	{ "end in the next bucket", 146, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 16), 16, "810f020000000000" },
	{ "stored size in the next bucket", 146, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8,
	  "feff000500000000 010a020000000000" },
	{ "cached and erasure coded", 156, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8,
	  "1020020000000000 0300020000000000" },
	{ "uncompressed size too small", 157, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 9), 9, CRC8 PTR0 },
	{ "offset behind the region", 157, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "1e0e0105ba4d93c1" PTR0 },
	{ "checksum type 8", 158, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "1e0e0008ba4d93c1" PTR0 },
	{ "MAC without encryption", 158, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8,
	  "3c70000000037ec89841498fd94c4fdd" PTR0 },
	{ "compression type 6", 159, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, "1e0e0065ba4d93c1" PTR0 },
	{ "two crcs in a row", 160, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, CRC8 CRC8 PTR0 },
	{ "two stripe_ptrs in a row", 163, SAME_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8,
	  "1020020000000000 1020020000000000" PTR0 },
	{ "17 pointers", 142, 137, KEY_EXTENT, P(4098, 8), 8,
	  "010002000000ff00 010002000000ff00 010002000000ff00 010002000000ff00 010002000000ff00 010002000000ff00"
	  "010002000000ff00 010002000000ff00 010002000000ff00 010002000000ff00 010002000000ff00 010002000000ff00"
	  "010002000000ff00 010002000000ff00 010002000000ff00 010002000000ff00 010002000000ff00" },
	{ "rebalance with a bad option", 0, FINE_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8, PTR0 "2000000000040000" },
	{ "rebalance with level but no algorithm", 0, FINE_WHEN_NEWER, KEY_EXTENT, P(4098, 8), 8,
	  PTR0 "2000000000100000" },

	{ "btree_ptr of 5 words", 132, SAME_WHEN_NEWER, KEY_BTREE_PTR, SPOS_MAX, 0, PTR0 PTR0 PTR0 PTR0 PTR0 },
	{ "btree_ptr_v2 of 10 words", 133, 143, KEY_BTREE_PTR_V2, SPOS_MAX, 0,
	  NODE_HEAD NODE_MIN PTR0 PTR0 PTR0 PTR0 PTR0 },
	{ "btree_ptr_v2 of 16 words", 133, 133, KEY_BTREE_PTR_V2, SPOS_MAX, 0,
	  NODE_HEAD NODE_MIN PTR0 PTR0 PTR0 PTR0 PTR0 PTR0 PTR0 PTR0 PTR0 PTR0 PTR0 },
	{ "crc in btree_ptr_v2", 134, SAME_WHEN_NEWER, KEY_BTREE_PTR_V2, SPOS_MAX, 0, NODE_HEAD NODE_MIN CRC8 PTR0 },
	{ "reconcile in btree_ptr_v2", 134, FINE_WHEN_NEWER, KEY_BTREE_PTR_V2, SPOS_MAX, 0,
	  NODE_HEAD NODE_MIN PTR0 "800010a020000000" },
	{ "btree_ptr_v2 without pointers", 136, SAME_WHEN_NEWER, KEY_BTREE_PTR_V2, SPOS_MAX, 0, NODE_HEAD NODE_MIN },
	{ "word of 0 in btree_ptr_v2", 135, SAME_WHEN_NEWER, KEY_BTREE_PTR_V2, SPOS_MAX, 0,
	  NODE_HEAD NODE_MIN "0000000000000000" PTR0 },
	{ "unwritten node", 140, SAME_WHEN_NEWER, KEY_BTREE_PTR_V2, SPOS_MAX, 0,
	  NODE_HEAD NODE_MIN "0920020000000000" },
	{ "node on no device", 142, FINE_WHEN_NEWER, KEY_BTREE_PTR_V2, SPOS_MAX, 0,
	  NODE_HEAD NODE_MIN "0100020000000600" },
	{ "two copies of a node on one device", 143, SAME_WHEN_NEWER, KEY_BTREE_PTR_V2, SPOS_MAX, 0,
	  NODE_HEAD NODE_MIN PTR0 PTR0 },
	{ "node after last bucket", 144, SAME_WHEN_NEWER, KEY_BTREE_PTR_V2, SPOS_MAX, 0,
	  NODE_HEAD NODE_MIN "0100800000000000" },
	{ "node before first bucket", 145, SAME_WHEN_NEWER, KEY_BTREE_PTR_V2, SPOS_MAX, 0,
	  NODE_HEAD NODE_MIN "0100000000000000" },
	{ "node across buckets", 146, SAME_WHEN_NEWER, KEY_BTREE_PTR_V2, SPOS_MAX, 0,
	  NODE_HEAD NODE_MIN "8100020000000000" },
	{ "min_key after the key", 262, SAME_WHEN_NEWER, KEY_BTREE_PTR_V2, BPOS(0, 5, 0), 0,
	  NODE_HEAD "00000000 0600000000000000 0000000000000000" PTR0 },

	{ "front_pad before 0", 245, SAME_WHEN_NEWER, KEY_REFLINK_P, P(4098, 8), 8,
	  "0700000000000000 08000000 00000000" },
};

static void each_rule_is_enforced(void **state) { assert_bad_keys(bad_keys, ARRAY_NR(bad_keys)); }

static void encrypted_descriptors_must_agree_where_the_key_starts(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	/* nonce 40, offset 32 and nonce 72, offset 0: the same place; then one that isn't */
	struct bkey_ref good = key_of_hex(KEY_EXTENT, P(4098, 56), 56,
					  "bc7205040a03b7848a5d59fce6ecac41 0103020000000000"
					  "bc7205001203b7848a5d59fce6ecac41 0103020000000100");
	struct bkey_ref bad = key_of_hex(KEY_EXTENT, P(4098, 56), 56,
					 "bc7205040a03b7848a5d59fce6ecac41 0103020000000000"
					 "bc7205001303b7848a5d59fce6ecac41 0103020000000100");

	ctx.has_key = true;
	assert_key_valid(good, &ctx);
	assert_key_fault(bad, &ctx, ERROR_ptr_crc_nonce_mismatch, "offset + nonce differ");
}

static void generations_compare_with_wrap(void **state)
{
	assert_true(gen_cmp(1, 0) > 0);
	assert_true(gen_cmp(0, 255) > 0);
	assert_true(gen_cmp(255, 0) < 0);
	assert_int_equal(gen_cmp(7, 7), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(extents_decode_to_what_upstream_wrote),
		cmocka_unit_test(entries_encode_to_the_bytes_they_came_from),
		cmocka_unit_test(descriptors_take_the_smallest_form_that_holds_them),
		cmocka_unit_test(pointers_before_descriptors_are_plain_and_stripes_qualify_one_pointer),
		cmocka_unit_test(a_stripe_pointer_may_stand_before_the_descriptor),
		cmocka_unit_test(unwritten_and_rebalance_entries_decode),
		cmocka_unit_test(newer_entries_are_read_around),
		cmocka_unit_test(unknown_entries_are_skipped_by_the_listed_size),
		cmocka_unit_test(pointers_without_a_device_are_tolerated_in_newer_images),
		cmocka_unit_test(node_pointers_decode),
		cmocka_unit_test(node_pointers_of_newer_versions_have_more_entries),
		cmocka_unit_test(obsolete_node_pointers_are_refused),
		cmocka_unit_test(reflinks_decode),
		cmocka_unit_test(indirect_extents_decode_behind_their_refcount),
		cmocka_unit_test(extents_print_as_upstream_does),
		cmocka_unit_test(each_rule_is_enforced),
		cmocka_unit_test(encrypted_descriptors_must_agree_where_the_key_starts),
		cmocka_unit_test(generations_compare_with_wrap),
	};

	return cmocka_run_group_tests_name("extent", tests, NULL, test_keys_free);
}
