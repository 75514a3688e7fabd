/* Editing keys: what 06 §19.3, §19.4 and 07 §19.6 show, and every rule of merging and of pointers. */
#include "key_test.h"

#include "format/key_edit.h"

#define P(inode, end) BPOS(inode, end, UINT32_MAX)

static struct key_buf buf_of(struct bkey_ref k)
{
	struct key_buf b;

	key_buf_load(&b, k);
	return b;
}

static struct key_context context(void)
{
	struct key_context ctx = test_context(VERSION_1_4);

	ctx.encoded_extent_max_sectors = 128;
	ctx.has_key = true;
	return ctx;
}

static void assert_buf(const struct key_buf *b, unsigned type, struct bpos p, uint32_t size, const char *hex)
{
	uint8_t expected[BKEY_VALUE_U64S_MAX * 8];
	size_t bytes = hex_decode(hex, expected, sizeof(expected));

	assert_int_equal(b->k.type, type);
	assert_true(bpos_eq(b->k.p, p));
	assert_int_equal(b->k.size, size);
	assert_int_equal(bkey_value_bytes(&b->k), bytes);
	assert_memory_equal(b->value, expected, bytes);
}

/* --- trimming --- */

static void trimming_leaves_what_upstream_left(void **state)
{
	struct key_context ctx = context();
	struct bkey_ref whole = key_of_hex(KEY_EXTENT, P(4099, 128), 128, "feff000573e2a8a8 8100020000000000");
	struct key_buf b = buf_of(whole);

	key_cut_back(&b, 24, &ctx);
	assert_buf(&b, KEY_EXTENT, P(4099, 24), 24, "feff000573e2a8a8 8100020000000000");
	b = buf_of(whole);
	key_cut_front(&b, 40, &ctx);
	assert_buf(&b, KEY_EXTENT, P(4099, 128), 88, "feff280573e2a8a8 8100020000000000");

	/* crc64, encrypted, with a nonce */
	b = buf_of(key_of_hex(KEY_EXTENT, P(4099, 128), 88, "bc7205000a03b7848a5d59fce6ecac41 0103020000000000"));
	key_cut_front(&b, 72, &ctx);
	assert_buf(&b, KEY_EXTENT, P(4099, 128), 56, "bc7205040a03b7848a5d59fce6ecac41 0103020000000000");
}

static void pointers_without_descriptor_move_themselves(void **state)
{
	struct key_context ctx = context();
	struct key_buf b =
		buf_of(key_of_hex(KEY_EXTENT, P(4098, 16), 16, "0100020000000000 1e1e0005ba4d93c1 0190010000000100"));

	key_cut_front(&b, 8, &ctx);
	assert_buf(&b, KEY_EXTENT, P(4098, 16), 8, "8100020000000000 1e1e0805ba4d93c1 0190010000000100");

	b = buf_of(key_of_hex(KEY_REFLINK_V, BPOS(0, 16, 0), 16, "0500000000000000 0100020000000000"));
	key_cut_front(&b, 8, &ctx);
	assert_buf(&b, KEY_REFLINK_V, BPOS(0, 16, 0), 8, "0500000000000000 8100020000000000");
}

static void wide_descriptors_are_trimmed(void **state)
{
	struct key_context ctx = context();
	struct key_buf b = buf_of(key_of_hex(KEY_EXTENT, P(4098, 2048), 2048,
					     "f87ffe0f00000003d4bfe3826c1e0c4f2259000000000000 01000c0000000000"));
	struct extent_value v;

	key_cut_front(&b, 1208, &ctx);
	assert_int_equal(b.k.size, 840);
	assert_int_equal(extent_value_load(&v, key_buf_ref(&b), &ctx), 0);
	assert_int_equal(v.ptrs[0].crc.offset_sectors, 1208);
	assert_int_equal(v.ptrs[0].crc.uncompressed_sectors, 2048);
	assert_true(v.ptrs[0].ptr.sector == 49152);
}

static void nothing_left_is_deleted(void **state)
{
	struct key_context ctx = context();
	struct bkey_ref k = key_of_hex(KEY_EXTENT, P(4098, 16), 8, "0100020000000000");
	struct key_buf b = buf_of(k);

	key_cut_front(&b, 16, &ctx);
	assert_buf(&b, KEY_DELETED, P(4098, 16), 0, "");
	b = buf_of(k);
	key_cut_back(&b, 8, &ctx);
	assert_buf(&b, KEY_DELETED, P(4098, 8), 0, "");
}

static void reflinks_and_inline_data_are_trimmed(void **state)
{
	struct key_context ctx = context();
	struct key_buf b = buf_of(key_of_hex(KEY_REFLINK_P, P(4102, 48), 48, "0000000000000000 00000000 28000000"));
	uint8_t bytes[2000];

	key_cut_front(&b, 16, &ctx);
	assert_buf(&b, KEY_REFLINK_P, P(4102, 48), 32, "1000000000000000 00000000 28000000");

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i / 512);
	for (unsigned type = 0; type < 2; type++) {
		size_t header = type ? 8 : 0;
		struct bkey_ref k =
			key_of_bytes(type ? KEY_INDIRECT_INLINE_DATA : KEY_INLINE_DATA, P(4098, 8), 8, bytes, 1600);

		b = buf_of(k);
		key_cut_front(&b, 1, &ctx);
		assert_int_equal(bkey_value_bytes(&b.k), 1600 - 512);
		assert_memory_equal(b.value, bytes, header);
		assert_memory_equal(b.value + header, bytes + header + 512, 1600 - 512 - header);
		key_cut_front(&b, 7, &ctx);
		assert_int_equal(bkey_value_bytes(&b.k), header);

		b = buf_of(k);
		key_cut_back(&b, 2, &ctx);
		assert_int_equal(bkey_value_bytes(&b.k), header + 1024);
		b = buf_of(k);
		key_cut_back(&b, 7, &ctx);
		assert_int_equal(bkey_value_bytes(&b.k), 1600);
	}
}

/* --- merging --- */

static struct bkey_ref plain_extent(uint64_t start, uint32_t size, const char *hex)
{
	return key_of_hex(KEY_EXTENT, P(4098, start + size), size, hex);
}

/* A crc32c extent of 8 sectors at @start that is stored at device sector 8704 + start. */
static struct bkey_ref letter_extent(uint64_t start, char letter)
{
	struct extent_value v = { .ptr_nr = 1 };
	struct key_buf b = { .k = { .p = P(4098, start + 8), .type = KEY_EXTENT, .size = 8 } };
	uint8_t block[4096];

	memset(block, letter, sizeof(block));
	v.ptrs[0] = (struct extent_ptr_decoded){
		.ptr = { .sector = 8704 + start },
		.has_crc = true,
		.crc = { 8, 8, 0, 0, CHECKSUM_CRC32C, 0,
			 checksum_compute(CHECKSUM_CRC32C, NULL, (struct nonce){ { 0 } }, block, sizeof(block)) },
	};
	assert_int_equal(extent_value_store(&v, &b), 0);
	return key_of_bytes(KEY_EXTENT, b.k.p, 8, b.value, bkey_value_bytes(&b.k));
}

static void adjacent_writes_merge_with_their_checksums(void **state)
{
	struct key_context ctx = context();
	struct key_buf b = buf_of(letter_extent(0, 'A'));
	struct extent_value v;

	assert_true(key_merge(&b, letter_extent(8, 'B'), &ctx));
	assert_int_equal(extent_value_load(&v, key_buf_ref(&b), &ctx), 0);
	assert_int_equal(v.ptrs[0].crc.csum.lo, 0x7abdeeae);
	assert_true(key_merge(&b, letter_extent(16, 'C'), &ctx));
	assert_buf(&b, KEY_EXTENT, P(4098, 24), 24, "5e2e00051f315d3e 0120020000000000");
	assert_false(key_merge(&b, letter_extent(32, 'D'), &ctx));

	ctx.encoded_extent_max_sectors = 24;
	assert_false(key_merge(&b, letter_extent(24, 'D'), &ctx));
	assert_buf(&b, KEY_EXTENT, P(4098, 24), 24, "5e2e00051f315d3e 0120020000000000");
}

static void pieces_of_one_extent_merge_again(void **state)
{
	struct key_context ctx = context();
	/* gzip: 16 sectors stored; and encrypted, narrowed */
	static const char *const values[] = {
		"3efe00252ae004e8 010d020000000000",
		"feff000573e2a8a8 8100020000000000",
		"fcf3070000031a5746efef5d95e11727 8100020000000000",
		"1e0e0005ba4d93c1 0100020000000000 2000000000530000",
	};

	for (size_t i = 0; i < ARRAY_NR(values); i++) {
		uint32_t size = i == 3 ? 8 : 128, cut = i == 3 ? 3 : 40;
		struct bkey_ref k = plain_extent(0, size, values[i]);
		struct key_buf l = buf_of(k), r = buf_of(k);

		key_cut_back(&l, cut, &ctx);
		key_cut_front(&r, cut, &ctx);
		assert_true(key_merge(&l, key_buf_ref(&r), &ctx));
		assert_buf(&l, KEY_EXTENT, k.k.p, size, values[i]);
	}
}

/* A pair that merges, and the change of the right one that keeps it from it. */
static void each_rule_of_merging_is_kept(void **state)
{
	struct key_context ctx = context();
	static const struct {
		const char *what, *left, *right;
		bool merges;
	} cases[] = {
		{ "plain", "0100020000000000", "8100020000000000", true },
		{ "a gap on the device", "0100020000000000", "9100020000000000", false },
		{ "another device", "0100020000000000", "8100020000000100", false },
		{ "another generation", "0100020000000000", "8100020000000001", false },
		{ "cached and dirty", "0100020000000000", "8300020000000000", false },
		{ "both cached", "0300020000000000", "8300020000000000", true },
		{ "unwritten and written", "0900020000000000", "8100020000000000", false },
		{ "both unwritten", "0900020000000000", "8900020000000000", true },
		{ "across buckets", "810f020000000000", "0110020000000000", false },
		{ "one and two pointers", "0100020000000000", "8100020000000000 8190010000000100", false },
		{ "descriptor and none", "0100020000000000", "1e0e0005ba4d93c1 8100020000000000", false },
		{ "xxhash doesn't merge", "3c70000000070000a44409b73d941a00 0100020000000000",
		  "3c70000000070000a44409b73d941a00 8100020000000000", false },
		{ "crc64 merges", "3c70000000060000235c1491d299862f 0100020000000000",
		  "3c70000000060000235c1491d299862f 8100020000000000", true },
		{ "another compression", "1e0e0005ba4d93c1 0100020000000000", "1e0e0055ba4d93c1 8100020000000000",
		  false },
		{ "incompressible", "1e0e0055ba4d93c1 0100020000000000", "1e0e0055ba4d93c1 8100020000000000", true },
		{ "checksums of two kinds", "3c70000000060000235c1491d299862f 0100020000000000",
		  "3c70000000050000ba4d93c100000000 8100020000000000", false },
		{ "two stripes", "1020020000000000 0100020000000000", "1020040000000000 8100020000000000", false },
		{ "one stripe", "1020020000000000 0100020000000000", "1020020000000000 8100020000000000", true },
		{ "rebalance entries differ", "0100020000000000 2000000000530000", "8100020000000000 2000000000000301",
		  false },
		{ "rebalance entry and none", "0100020000000000 2000000000530000", "8100020000000000", false },
		{ "rebalance entries agree", "0100020000000000 2000000000530000", "8100020000000000 2000000000530000",
		  true },
		/* Region at 8192 of 4 sectors, live from 0; region at 8200, live from 0: contiguous by arithmetic. */
		{ "two compressed regions", "0efe00450e3b5b96 0100020000000000", "0efe00450e3b5b96 8100020000000000",
		  false },
		{ "macs of two regions", "3c7000000003 7ec89841498fd94c4fdd 0100020000000000",
		  "3c7000000003 7ec89841498fd94c4fdd 8100020000000000", false },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct bkey_ref l = plain_extent(0, 8, cases[i].left), r = plain_extent(8, 8, cases[i].right);
		struct key_buf b = buf_of(l);

		if (key_merge(&b, r, &ctx) != cases[i].merges)
			fail_msg("%s: expected merged %d", cases[i].what, cases[i].merges);
		if (cases[i].merges)
			assert_key_valid(key_buf_ref(&b), &ctx);
		else
			assert_buf(&b, KEY_EXTENT, l.k.p, 8, cases[i].left);
	}
}

static void versions_inodes_and_snapshots_must_agree(void **state)
{
	struct key_context ctx = context();
	struct bkey_ref l = plain_extent(0, 8, "0100020000000000");
	struct bkey_ref right = plain_extent(8, 8, "8100020000000000"), r = right;
	struct key_buf b = buf_of(l);

	r.k.version.lo = 1;
	assert_false(key_merge(&b, r, &ctx));
	r = right;
	r.k.p.snapshot--;
	assert_false(key_merge(&b, r, &ctx));
	r = right;
	r.k.p.inode++;
	assert_false(key_merge(&b, r, &ctx));
	r = right;
	r.k.p.offset++;
	assert_false(key_merge(&b, r, &ctx));
	r = right;
	assert_true(key_merge(&b, r, &ctx));
	assert_buf(&b, KEY_EXTENT, P(4098, 16), 16, "0100020000000000");

	b = buf_of(l);
	b.k.p.offset = b.k.size = UINT32_MAX;
	r.k.p.offset = UINT32_MAX + 8ull;
	assert_false(key_merge(&b, r, &ctx));
}

static void reservations_and_free_space_merge(void **state)
{
	struct key_context ctx = context();
	struct key_buf b = buf_of(key_of_hex(KEY_RESERVATION, P(4098, 8), 8, "0000000001000000"));

	assert_false(key_merge(&b, key_of_hex(KEY_RESERVATION, P(4098, 16), 8, "0000000002000000"), &ctx));
	assert_true(key_merge(&b, key_of_hex(KEY_RESERVATION, P(4098, 16), 8, "0000000001000000"), &ctx));
	assert_buf(&b, KEY_RESERVATION, P(4098, 16), 16, "0000000001000000");

	b = buf_of(key_of_hex(KEY_SET, BPOS(0, 8, 0), 8, ""));
	assert_true(key_merge(&b, key_of_hex(KEY_SET, BPOS(0, 9, 0), 1, ""), &ctx));
	assert_buf(&b, KEY_SET, BPOS(0, 9, 0), 9, "");
	/* Elsewhere a set has no size, and what stands at one position isn't a range. */
	b = buf_of(key_of_hex(KEY_SET, BPOS(0, 8, 0), 0, ""));
	assert_false(key_merge(&b, key_of_hex(KEY_SET, BPOS(0, 8, 0), 0, ""), &ctx));

	b = buf_of(key_of_hex(KEY_REFLINK_P, P(4098, 8), 8, "0000000000000000 0000000000000000"));
	assert_false(
		key_merge(&b, key_of_hex(KEY_REFLINK_P, P(4098, 16), 8, "0800000000000000 0000000000000000"), &ctx));
}

/* --- pointers --- */

#define CRC  "1e0e0005ba4d93c1"
#define PTR0 "01e0010000000000"
#define PTR1 "01c0010000000100"

static struct extent_ptr_decoded ptr_of(struct bkey_ref k, unsigned idx, const struct key_context *ctx)
{
	struct extent_value v;

	assert_int_equal(extent_value_load(&v, k, ctx), 0);
	assert_true(idx < v.ptr_nr);
	return v.ptrs[idx];
}

static void pointers_are_added_where_they_belong(void **state)
{
	struct key_context ctx = context();
	struct bkey_ref one = plain_extent(0, 8, CRC PTR0), two = plain_extent(0, 8, CRC PTR1);
	struct extent_ptr_decoded added = ptr_of(two, 0, &ctx);
	struct key_buf b = buf_of(one);

	/* The same descriptor: right behind it. */
	assert_int_equal(key_ptr_add(&b, &added, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, one.k.p, 8, CRC PTR1 PTR0);

	/* Another one: at the end. */
	b = buf_of(one);
	added.crc.csum.lo ^= 0xff;
	assert_int_equal(key_ptr_add(&b, &added, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, one.k.p, 8, CRC PTR0 "1e0e0005454d93c1" PTR1);

	/* None: at the start. */
	b = buf_of(one);
	added = ptr_of(plain_extent(0, 8, PTR1), 0, &ctx);
	assert_int_equal(key_ptr_add(&b, &added, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, one.k.p, 8, PTR1 CRC PTR0);

	/* With its stripe. */
	b = buf_of(one);
	added = ptr_of(plain_extent(0, 8, CRC "1020020000000000" PTR1), 0, &ctx);
	assert_int_equal(key_ptr_add(&b, &added, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, one.k.p, 8, CRC "1020020000000000" PTR1 PTR0);
	assert_key_valid(key_buf_ref(&b), &ctx);
}

static void dropping_pointers_takes_what_only_they_needed(void **state)
{
	struct key_context ctx = context();
	struct bkey_ref k = plain_extent(0, 8, CRC PTR0 "1e0e0005454d93c1 1020020000000000" PTR1);
	struct key_buf b = buf_of(k);

	assert_int_equal(key_ptrs_drop(&b, 2, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, k.k.p, 8, CRC PTR0);
	b = buf_of(k);
	assert_int_equal(key_ptrs_drop(&b, 1, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, k.k.p, 8, "1e0e0005454d93c1 1020020000000000" PTR1);
	assert_int_equal(key_ptrs_drop(&b, 1, &ctx), 0);
	assert_buf(&b, KEY_ERROR, k.k.p, 8, "");

	/* The last dirty one takes the cached ones with it. */
	b = buf_of(plain_extent(0, 8, CRC PTR0 "03c0010000000100"));
	assert_int_equal(key_ptrs_drop(&b, 1, &ctx), 0);
	assert_buf(&b, KEY_ERROR, k.k.p, 8, "");
	/* Only cached ones: there is nothing to lose. */
	b = buf_of(plain_extent(0, 8, CRC "03c0010000000100"));
	assert_int_equal(key_ptrs_drop(&b, 1, &ctx), 0);
	assert_buf(&b, KEY_DELETED, k.k.p, 0, "");
}

static bool is_on_device(void *arg, const struct extent_ptr *ptr) { return ptr->dev == *(const unsigned *)arg; }

static void cached_pointers_lose_their_stripe_and_go_when_stale(void **state)
{
	struct key_context ctx = context();
	struct bkey_ref k = plain_extent(0, 8, CRC PTR0 "1020020000000000" PTR1);
	struct key_buf b = buf_of(k);
	unsigned dev = 0;

	assert_int_equal(key_ptrs_set_cached(&b, 2, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, k.k.p, 8, CRC PTR0 "03c0010000000100");
	assert_int_equal(key_ptrs_normalise(&b, is_on_device, &dev, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, k.k.p, 8, CRC PTR0 "03c0010000000100");
	dev = 1;
	assert_int_equal(key_ptrs_normalise(&b, is_on_device, &dev, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, k.k.p, 8, CRC PTR0);
}

static void rebalance_entries_are_set_and_removed(void **state)
{
	struct key_context ctx = context();
	struct bkey_ref k = plain_extent(0, 8, CRC PTR0);
	struct key_buf b = buf_of(k);
	struct extent_rebalance r = { .compression = 0x53 };

	assert_int_equal(key_rebalance_set(&b, &r, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, k.k.p, 8, CRC PTR0 "2000000000530000");
	r = (struct extent_rebalance){ .target = 259 };
	assert_int_equal(key_rebalance_set(&b, &r, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, k.k.p, 8, CRC PTR0 "2000000000000301");
	assert_int_equal(key_rebalance_set(&b, NULL, &ctx), 0);
	assert_buf(&b, KEY_EXTENT, k.k.p, 8, CRC PTR0);
}

/* Cut at random, the pieces still say of every sector where it is, and merge to what they were. */
static void pieces_at_random_say_what_the_whole_said(void **state)
{
	struct rng rng = test_rng();
	struct key_context ctx = context();
	struct bkey_ref k = plain_extent(0, 120, "feff000573e2a8a8 8100020000000000 0120030000000100");

	for (unsigned round = 0; round < 1000; round++) {
		struct key_buf left = buf_of(k), rest = buf_of(k);
		uint64_t at = 0;
		bool is_first = true;

		while (at < 120) {
			uint64_t end = min(at + 1 + rng_below(&rng, 60), (uint64_t)120);
			struct key_buf piece = rest;
			struct extent_value v;

			key_cut_back(&piece, end, &ctx);
			key_cut_front(&rest, end, &ctx);
			assert_int_equal(extent_value_load(&v, key_buf_ref(&piece), &ctx), 0);
			assert_true(v.ptrs[0].ptr.sector + v.ptrs[0].crc.offset_sectors == 8200 + at);
			if (is_first)
				left = piece;
			else
				assert_true(key_merge(&left, key_buf_ref(&piece), &ctx));
			is_first = false;
			at = end;
		}
		assert_int_equal(rest.k.type, KEY_DELETED);
		assert_int_equal(left.k.size, 120);
		assert_memory_equal(left.value, k.value, bkey_value_bytes(&k.k));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(trimming_leaves_what_upstream_left),
		cmocka_unit_test(pointers_without_descriptor_move_themselves),
		cmocka_unit_test(wide_descriptors_are_trimmed),
		cmocka_unit_test(nothing_left_is_deleted),
		cmocka_unit_test(reflinks_and_inline_data_are_trimmed),
		cmocka_unit_test(adjacent_writes_merge_with_their_checksums),
		cmocka_unit_test(pieces_of_one_extent_merge_again),
		cmocka_unit_test(each_rule_of_merging_is_kept),
		cmocka_unit_test(versions_inodes_and_snapshots_must_agree),
		cmocka_unit_test(reservations_and_free_space_merge),
		cmocka_unit_test(pointers_are_added_where_they_belong),
		cmocka_unit_test(dropping_pointers_takes_what_only_they_needed),
		cmocka_unit_test(cached_pointers_lose_their_stripe_and_go_when_stale),
		cmocka_unit_test(rebalance_entries_are_set_and_removed),
		cmocka_unit_test(pieces_at_random_say_what_the_whole_said),
	};

	return cmocka_run_group_tests_name("key editing", tests, NULL, test_keys_free);
}
