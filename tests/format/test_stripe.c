/* Stripes: vectors of 08 §17, hints of newer versions, and one bad key for each rule. */
#include "key_test.h"

#include "format/stripe.h"

#define STRIPE_POS BPOS(0, 1, 0)
#define STRIPE_4_1                                                                                                    \
	"0001 00 05 01 07 05 00 01d0010000000100 01d0010000000200 01c0010000000300 01c0010000000400 01d0010000000000" \
	"ede34e7a 66c806e4 ffec1003 3145347f 36b2e6f3 93dbf97b 8b4febbe 60eef5de aff25334 a4b83e3e"                   \
	"0001 0001 0001 0001 0000 000000000000"
#define STRIPE_4_2                                                                                   \
	"8000 00 06 02 07 05 00 0170010000000200 0160010000000300 0160010000000400 0160010000000500" \
	"0170010000000000 0170010000000100 8d52591d aa53d73c 7fbbacd4 ab19e4b7 f3a3c642 12b7abc8"    \
	"6000 7000 6800 6800 0000 0000 00000000"

static void a_4_1_stripe_decodes_to_what_upstream_wrote(void **state)
{
	static const struct extent_ptr ptrs[] = { { 7424, 1 }, { 7424, 2 }, { 7168, 3 }, { 7168, 4 }, { 7424, 0 } };
	static const uint32_t csums[][2] = { { 0x7a4ee3ed, 0xe406c866 },
					     { 0x0310ecff, 0x7f344531 },
					     { 0xf3e6b236, 0x7bf9db93 },
					     { 0xbeeb4f8b, 0xdef5ee60 },
					     { 0x3453f2af, 0x3e3eb8a4 } };
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k = key_of_hex(KEY_STRIPE, STRIPE_POS, 0, STRIPE_4_1);
	struct stripe s;

	assert_int_equal(bkey_value_bytes(&k.k), 104);
	assert_key_valid(k, &ctx);
	assert_int_equal(stripe_decode(k, &s, NULL), 0);
	assert_int_equal(s.sectors, 256);
	assert_int_equal(s.algorithm, 0);
	assert_int_equal(s.nr_blocks, 5);
	assert_int_equal(s.nr_redundant, 1);
	assert_int_equal(s.csum_type, CHECKSUM_CRC32C);
	assert_int_equal(s.csums_per_block, 2);
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(s.ptrs[i].dev, ptrs[i].dev);
		assert_true(s.ptrs[i].sector == ptrs[i].sector);
		assert_int_equal(s.ptrs[i].gen, 0);
		assert_int_equal(s.block_sectors[i], i < 4 ? 256 : 0);
		for (unsigned j = 0; j < 2; j++) {
			assert_true(stripe_checksum(&s, i, j).lo == csums[i][j]);
			assert_true(stripe_checksum(&s, i, j).hi == 0);
		}
	}
	/* Out of range: no checksum, rather than bytes of something else. */
	assert_true(stripe_checksum(&s, 5, 0).lo == 0 && stripe_checksum(&s, 0, 2).lo == 0);
}

static void a_4_2_stripe_decodes_to_what_upstream_wrote(void **state)
{
	static const uint16_t sectors[] = { 96, 112, 104, 104, 0, 0 };
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k = key_of_hex(KEY_STRIPE, STRIPE_POS, 0, STRIPE_4_2);
	struct stripe s;

	assert_int_equal(bkey_value_bytes(&k.k), 96);
	assert_key_valid(k, &ctx);
	assert_int_equal(stripe_decode(k, &s, NULL), 0);
	assert_int_equal(s.nr_redundant, 2);
	assert_int_equal(s.csums_per_block, 1);
	assert_true(stripe_checksum(&s, 5, 0).lo == 0xc8abb712);
	assert_memory_equal(s.block_sectors, sectors, sizeof(sectors));
}

static void stripes_print_as_upstream_does(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);

	assert_value_text(
		key_of_hex(KEY_STRIPE, STRIPE_POS, 0, STRIPE_4_1), &ctx,
		"algo 0 sectors 256 blocks 4:1 csum 5 gran 128 1:29:0#256 gen 0 2:29:0#256 gen 0 3:28:0#256 gen 0 "
		"4:28:0#256 gen 0 0:29:0 gen 0");
}

static void hints_in_the_algorithm_byte_are_masked(void **state)
{
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);
	struct stripe s;
	/* needs_reconcile and can_widen 5; one block lost (dev 255); no checksums */
	struct bkey_ref k = key_of_hex(KEY_STRIPE, STRIPE_POS, 0,
				       "0001 b0 03 01 07 00 02 01d0010000000100 01d001000000ff00 01d001000000ff00");

	assert_key_fault(k, &ctx, ERROR_stripe_val_size_bad, "no room for sector counts");
	k = key_of_hex(KEY_STRIPE, STRIPE_POS, 0,
		       "0001 b0 03 01 07 00 02 01d0010000000100 01d001000000ff00 01d001000000ff00 0100 0200 0300");
	assert_key_valid(k, &ctx);
	assert_int_equal(stripe_decode(k, &s, NULL), 0);
	assert_int_equal(s.algorithm, 0);
	assert_int_equal(s.ptrs[1].dev, DEV_NONE);
	assert_int_equal(s.block_sectors[2], 3);
	assert_true(stripe_checksum(&s, 0, 0).lo == 0);
}

static void any_granularity_is_taken(void **state)
{
	for (unsigned bits = 0; bits < 256; bits++) {
		uint8_t value[BKEY_VALUE_U64S_MAX * 8] = { 0x80, 0, 0, 1, 0, (uint8_t)bits, CHECKSUM_CRC32C };
		struct bkey_ref k = key_of_bytes(KEY_STRIPE, STRIPE_POS, 0, value, sizeof(value));
		struct stripe s;

		assert_int_equal(stripe_decode(k, &s, NULL), 0);
		assert_int_equal(s.csums_per_block, bits < 7 ? 128u >> bits : 1);
	}
}

#define PTR(dev) "01d0010000000" dev "00"

static const struct bad_key bad_keys[] = {
	{ "idx 0", 167, SAME_WHEN_NEWER, KEY_STRIPE, BPOS(0, 0, 0), 0, STRIPE_4_1 },
	{ "idx of 33 bits", 167, SAME_WHEN_NEWER, KEY_STRIPE, BPOS(0, 1ull << 32, 0), 0, STRIPE_4_1 },
	{ "inode", 167, SAME_WHEN_NEWER, KEY_STRIPE, BPOS(1, 1, 0), 0, STRIPE_4_1 },
	{ "snapshot", 167, SAME_WHEN_NEWER, KEY_STRIPE, BPOS(0, 1, 1), 0, STRIPE_4_1 },
	{ "pointers only", 168, SAME_WHEN_NEWER, KEY_STRIPE, STRIPE_POS, 0,
	  "0001 00 02 01 07 05 00" PTR("1") PTR("2") },
	{ "a checksum too many", 168, SAME_WHEN_NEWER, KEY_STRIPE, STRIPE_POS, 0, "0001 00 01 00 00 05 00" PTR("1") },
	{ "unknown checksum type", 168, SAME_WHEN_NEWER, KEY_STRIPE, STRIPE_POS, 0,
	  "0001 00 01 00 07 08 00" PTR("1") "00000000" },
	{ "no blocks", 136, SAME_WHEN_NEWER, KEY_STRIPE, STRIPE_POS, 0, "0001 00 00 00 07 05 00" },
	{ "17 blocks", 137, SAME_WHEN_NEWER, KEY_STRIPE, STRIPE_POS, 0, "0001 00 11 01 07 05 00" },
	{ "no such device", 142, FINE_WHEN_NEWER, KEY_STRIPE, STRIPE_POS, 0, "0001 00 01 00 07 00 00" PTR("6") "0000" },
	{ "same device twice", 143, SAME_WHEN_NEWER, KEY_STRIPE, STRIPE_POS, 0,
	  "0001 00 02 00 07 00 00" PTR("1") PTR("1") "0000" },
	{ "after last bucket", 144, SAME_WHEN_NEWER, KEY_STRIPE, STRIPE_POS, 0,
	  "0001 00 01 00 07 00 00 0100800000000000 0000" },
	{ "before first bucket", 145, SAME_WHEN_NEWER, KEY_STRIPE, STRIPE_POS, 0,
	  "0001 00 01 00 07 00 00 0100000000000000 0000" },
};

static void each_rule_is_enforced(void **state) { assert_bad_keys(bad_keys, ARRAY_NR(bad_keys)); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_4_1_stripe_decodes_to_what_upstream_wrote),
		cmocka_unit_test(a_4_2_stripe_decodes_to_what_upstream_wrote),
		cmocka_unit_test(stripes_print_as_upstream_does),
		cmocka_unit_test(hints_in_the_algorithm_byte_are_masked),
		cmocka_unit_test(any_granularity_is_taken),
		cmocka_unit_test(each_rule_is_enforced),
	};

	return cmocka_run_group_tests_name("stripe", tests, NULL, test_keys_free);
}
