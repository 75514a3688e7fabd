/* Allocation keys: vectors of 07 §19 and 12 §10-11, older and newer forms, and one bad key for each rule. */
#include "key_test.h"

#include "format/alloc.h"

#define BUCKET BPOS(0, 30, 0)

static const struct alloc_vector {
	const char *hex;
	struct alloc a;
} alloc_vectors[] = {
	{ "0100000000000000 1f00000000000100 0001000000000000 0100000000000000 0001000000000000 0000000000000000 "
	  "0000000000000000",
	  { 1, 0x1f, 0, 0, DATA_SB, 0, 256, 0, { 1, 256 }, 0, 0, 0, 0 } },
	{ "0100000000000000 1f00000000000200 0001000000000000 0100000000000000 0001000000000000 0000000000000000 "
	  "0000000000000000",
	  { 1, 0x1f, 0, 0, DATA_JOURNAL, 0, 256, 0, { 1, 256 }, 0, 0, 0, 0 } },
	{ "0600000000000000 1f00000000000400 c800000000000000 0100000000000000 6811000000000000 0000000000000000 "
	  "0000006400000000",
	  { 6, 0x1f, 0, 0, DATA_USER, 0, 200, 0, { 1, 0x1168 }, 0, 0, 0x64000000, 0 } },
	{ "1901000000000000 1f00000003000400 8000000000000000 b8a1000000000000 c874040000000000 0000000000000000 "
	  "0000004000000000",
	  { 0x119, 0x1f, 3, 0, DATA_USER, 0, 128, 0, { 0xa1b8, 0x474c8 }, 0, 0, 0x40000000, 0 } },
	{ "0900000000000000 1f00000000000500 0000000098000000 e024000000000000 a849000000000000 0000000000000000 "
	  "0000000000000000",
	  { 9, 0x1f, 0, 0, DATA_CACHED, 0, 0, 152, { 9440, 0x49a8 }, 0, 0, 0, 0 } },
	{ "2200000000000000 1d00000001000900 0000000000000000 0100000000000000 0002000000000000 0000000000000000 "
	  "0000000000000000",
	  { 0x22, 0x1d, 1, 0, DATA_NEED_DISCARD, 0, 0, 0, { 1, 512 }, 0, 0, 0, 0 } },
	{ "1f01000000000000 1f00000000000900 0000000000000000 f054000000000000 f823040000000000 0000000000000000 "
	  "0000000000000000",
	  { 0x11f, 0x1f, 0, 0, DATA_NEED_DISCARD, 0, 0, 0, { 0x54f0, 0x423f8 }, 0, 0, 0, 0 } },
	{ "1f00000000000000 1c00000001000000 0000000000000000 0100000000000000 0809000000000000 0000000000000000 "
	  "0000000000000000",
	  { 31, 0x1c, 1, 0, DATA_FREE, 0, 0, 0, { 1, 0x908 }, 0, 0, 0, 0 } },
	{ "0600000000000000 1f00000000000601 0001000000000000 0100000000000000 0012000000000000 0100000000000000 "
	  "0000000000000000",
	  { 6, 0x1f, 0, 0, DATA_PARITY, 1, 256, 0, { 1, 0x1200 }, 1, 0, 0, 0 } },
	{ "0700000000000000 1f00000000000701 0000000000000000 0100000000000000 001d000000000000 0300000000000000 "
	  "0000000000000000",
	  { 7, 0x1f, 0, 0, DATA_STRIPE, 1, 0, 0, { 1, 0x1d00 }, 3, 0, 0, 0 } },
	/* 08 §17 */
	{ "0200000000000000 1f00000000000601 0001000000000000 0100000000000000 0019000000000000 0100000000000000 "
	  "0000000000000000",
	  { 2, 0x1f, 0, 0, DATA_PARITY, 1, 256, 0, { 1, 0x1900 }, 1, 0, 0, 0 } },
	{ "0200000000000000 1f00000000000701 0001000000000000 0100000000000000 0010000000000000 0200000000000000 "
	  "0000000000000000",
	  { 2, 0x1f, 0, 0, DATA_STRIPE, 1, 256, 0, { 1, 0x1000 }, 2, 0, 0, 0 } },
};

static void assert_allocs_equal(const struct alloc *a, const struct alloc *b)
{
	assert_true(a->journal_seq == b->journal_seq);
	assert_int_equal(a->flags, b->flags);
	assert_int_equal(a->gen, b->gen);
	assert_int_equal(a->oldest_gen, b->oldest_gen);
	assert_int_equal(a->data_type, b->data_type);
	assert_int_equal(a->stripe_redundancy, b->stripe_redundancy);
	assert_int_equal(a->dirty_sectors, b->dirty_sectors);
	assert_int_equal(a->cached_sectors, b->cached_sectors);
	assert_true(a->io_time[0] == b->io_time[0] && a->io_time[1] == b->io_time[1]);
	assert_int_equal(a->stripe, b->stripe);
	assert_int_equal(a->external_backpointers, b->external_backpointers);
	assert_true(a->fragmentation_lru == b->fragmentation_lru);
	assert_int_equal(a->stripe_sectors, b->stripe_sectors);
}

static void alloc_keys_decode_and_encode(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);

	for (size_t i = 0; i < ARRAY_NR(alloc_vectors); i++) {
		struct bkey_ref k = key_of_hex(KEY_ALLOC_V4, BUCKET, 0, alloc_vectors[i].hex);
		uint8_t value[ALLOC_V4_BYTES];
		struct alloc a;

		assert_key_valid(k, &ctx);
		assert_int_equal(alloc_decode(k, &a, NULL), 0);
		assert_allocs_equal(&a, &alloc_vectors[i].a);
		assert_int_equal(alloc_data_type(&a, a.data_type), a.data_type);
		alloc_encode(&a, value);
		assert_int_equal(bkey_value_bytes(&k.k), sizeof(value));
		assert_memory_equal(value, k.value, sizeof(value));
	}
}

static void alloc_keys_print_as_upstream_does(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);

	assert_value_text(key_of_hex(KEY_ALLOC_V4, BUCKET, 0, alloc_vectors[2].hex), &ctx,
			  "\n"
			  "  gen 0 oldest_gen 0 data_type user\n"
			  "  journal_seq       6\n"
			  "  need_discard      1\n"
			  "  need_inc_gen      1\n"
			  "  dirty_sectors     200\n"
			  "  cached_sectors    0\n"
			  "  stripe            0\n"
			  "  stripe_redundancy 0\n"
			  "  io_time[READ]     1\n"
			  "  io_time[WRITE]    4456\n"
			  "  fragmentation     1677721600\n"
			  "  bp_start          7\n");
}

/* 48 bytes, then an inline backpointer that must not be taken for the fields that came later. */
static void alloc_keys_of_before_are_shorter(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k = key_of_hex(
		KEY_ALLOC_V4, BUCKET, 0,
		"0600000000000000 1b01000000000400 c800000000000000 0100000000000000 6811000000000000 0000000000000000"
		"ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff");
	struct alloc a;

	assert_key_valid(k, &ctx);
	assert_int_equal(alloc_decode(k, &a, NULL), 0);
	assert_int_equal(a.dirty_sectors, 200);
	assert_true(a.fragmentation_lru == 0);

	/* alloc_v3: six fields */
	k = key_of_hex(KEY_ALLOC_V3, BUCKET, 0, "0500000000000000 03000000 06 02 01 04 0102 0402 0a 00 00 00");
	assert_key_valid(k, &ctx);
	assert_int_equal(alloc_decode(k, &a, NULL), 0);
	assert_true(a.journal_seq == 5);
	assert_int_equal(a.flags, ALLOC_NEED_DISCARD | ALLOC_NEED_INC_GEN);
	assert_int_equal(a.gen, 2);
	assert_int_equal(a.oldest_gen, 1);
	assert_int_equal(a.data_type, DATA_USER);
	assert_true(a.io_time[0] == 128 && a.io_time[1] == 2);
	assert_int_equal(a.dirty_sectors, 1);

	/* alloc_v2 is kept, but has no meaning any more. */
	k = key_of_hex(KEY_ALLOC_V2, BUCKET, 0, "0000000000000000");
	assert_key_valid(k, &ctx);
	assert_int_equal(alloc_decode(k, &a, NULL), -KILN_E_UNSUPPORTED);
}

static void alloc_keys_of_newer_versions_are_longer(void **state)
{
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);
	struct bkey_ref k =
		key_of_hex(KEY_ALLOC_V4, BUCKET, 0,
			   "0600000000000000 2300000007000700 0000000000000000 0100000000000000 6811000000000000"
			   "0100000000000000 2a00000000000000 4000000000000000");
	struct alloc a;

	assert_key_valid(k, &ctx);
	assert_int_equal(alloc_decode(k, &a, NULL), 0);
	assert_int_equal(a.gen, 7);
	assert_int_equal(a.stripe_sectors, 64);
	assert_true(a.fragmentation_lru == 42);
}

static void bucket_types_follow_from_the_counts(void **state)
{
	static const struct {
		struct alloc a;
		unsigned type, expected;
	} cases[] = {
		{ { 0 }, DATA_FREE, DATA_FREE },
		{ { .dirty_sectors = 1 }, DATA_BTREE, DATA_BTREE },
		{ { .dirty_sectors = 1, .cached_sectors = 1 }, DATA_USER, DATA_USER },
		{ { .cached_sectors = 1 }, DATA_USER, DATA_CACHED },
		{ { .stripe = 1, .dirty_sectors = 1 }, DATA_USER, DATA_STRIPE },
		{ { .stripe = 1, .dirty_sectors = 1 }, DATA_PARITY, DATA_PARITY },
		{ { .flags = ALLOC_NEED_DISCARD }, DATA_USER, DATA_NEED_DISCARD },
		{ { .gen = 40, .oldest_gen = 200 }, DATA_USER, DATA_NEED_GC_GENS },
		{ { .gen = 39, .oldest_gen = 200 }, DATA_USER, DATA_FREE },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++)
		assert_int_equal(alloc_data_type(&cases[i].a, cases[i].type), cases[i].expected);
}

static void backpointers_decode_and_encode(void **state)
{
	static const struct {
		uint64_t offset;
		const char *hex;
		struct backpointer b;
		const char *text;
	} cases[] = {
		{ 0x640000,
		  "0b01030000000000 00010000ffffffff ffffffffffffffff ffffffffffffffff",
		  { BTREE_FREESPACE, 1, DATA_BTREE, 0, 0, 256, SPOS_MAX },
		  "bucket=0:25:0 btree=freespace l=1 offset=0:0 len=256 pos=SPOS_MAX" },
		{ 0x7e0000,
		  "0000070000020000 80000000ffffffff 0006000000000000 0210000000000000",
		  { BTREE_EXTENTS, 0, DATA_STRIPE, 0, 0x20000, 128, BPOS(4098, 1536, UINT32_MAX) },
		  "bucket=0:31:0 btree=extents l=0 offset=128:0 len=128 pos=4098:1536:U32_MAX" },
		{ 8454160,
		  "0000041000010000 0e000000ffffffff 8001000000000000 0210000000000000",
		  { BTREE_EXTENTS, 0, DATA_USER, 0, 65552, 14, BPOS(4098, 384, UINT32_MAX) },
		  "bucket=0:32:0 btree=extents l=0 offset=64:16 len=14 pos=4098:384:U32_MAX" },
	};
	struct key_context ctx = test_context(VERSION_1_4);

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct bkey_ref k = key_of_hex(KEY_BACKPOINTER, BPOS(0, cases[i].offset, 0), 0, cases[i].hex);
		uint8_t value[BACKPOINTER_BYTES];
		struct backpointer b;

		assert_key_valid(k, &ctx);
		backpointer_decode(k, &ctx, &b);
		assert_int_equal(b.btree_id, cases[i].b.btree_id);
		assert_int_equal(b.level, cases[i].b.level);
		assert_int_equal(b.data_type, cases[i].b.data_type);
		assert_true(b.bucket_offset == cases[i].b.bucket_offset);
		assert_int_equal(b.bucket_sectors, cases[i].b.bucket_sectors);
		assert_true(bpos_eq(b.pos, cases[i].b.pos));
		backpointer_encode(&b, value);
		assert_memory_equal(value, k.value, sizeof(value));
		assert_value_text(k, &ctx, cases[i].text);
	}
}

static void the_version_decides_what_a_backpointer_holds(void **state)
{
	static const char *hex = "0000040500000000 80000000ffffffff 0006000000000000 0210000000000000";
	struct bkey_ref k = key_of_hex(KEY_BACKPOINTER, BPOS(0, 789839872, 0), 0, hex);
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);
	struct backpointer b;

	assert_key_valid(k, &ctx);
	backpointer_decode(k, &ctx, &b);
	assert_int_equal(b.bucket_gen, 5);
	assert_true(b.bucket_offset == 0);

	/* A crash during an upgrade leaves the new version, and the old layouts. */
	ctx.upgrade_complete = VERSION(1, 13);
	backpointer_decode(k, &ctx, &b);
	assert_int_equal(b.bucket_gen, 0);
	assert_true(b.bucket_offset == 5);
}

static void bucket_gens_decode_to_a_byte_per_bucket(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	uint8_t gens[BUCKET_GENS_PER_KEY], back[BUCKET_GENS_PER_KEY];

	for (unsigned i = 0; i < sizeof(gens); i++)
		gens[i] = (uint8_t)(i * 7);
	struct bkey_ref k = key_of_bytes(KEY_BUCKET_GENS, BPOS(0, 0, 0), 0, gens, sizeof(gens));
	assert_key_valid(k, &ctx);
	bucket_gens_decode(k, back);
	assert_memory_equal(back, gens, sizeof(gens));

	struct strbuf text = strbuf_growing();
	bucket_gens_to_text(&text, k, &ctx);
	assert_int_equal(strncmp(strbuf_text(&text), "0 7 14 21 ", 10), 0);
	assert_string_equal(strbuf_text(&text) + text.len - 8, " 242 249");
	strbuf_free(&text);
}

static void counters_are_named_by_their_position(void **state)
{
	static const struct {
		uint32_t version;
		struct bpos p;
		const char *hex;
		uint8_t name[20];
		unsigned counter_nr;
		int64_t counters[3];
		const char *text;
	} cases[] = {
		{ VERSION(1, 28),
		  BPOS(144960716812582912, 0, 0),
		  "001e000000000000",
		  { ACCOUNTING_REPLICAS, DATA_BTREE, 1, 1, 0 },
		  1,
		  { 7680 },
		  "replicas btree: 1/1 [0] 7680" },
		{ VERSION(1, 13),
		  BPOS(0, 0, 3),
		  "0100000000000000 0200000000000000 ffffffffffffffff",
		  { ACCOUNTING_DEV_DATA_TYPE, 0, DATA_FREE },
		  3,
		  { 1, 2, -1 },
		  "dev_data_type dev=0 data_type=free 1 2 -1" },
		{ VERSION_NEWEST_KNOWN,
		  BPOS(0, 0, 0),
		  "6900000000000000",
		  { ACCOUNTING_NR_INODES },
		  1,
		  { 105 },
		  "nr_inodes  105" },
		{ VERSION_NEWEST_KNOWN,
		  BPOS(72339069014638592, 0, 0),
		  "3e06000000000000",
		  { ACCOUNTING_PERSISTENT_RESERVED, 1 },
		  1,
		  { 1598 },
		  "persistent_reserved replicas=1 1598" },
		{ VERSION_NEWEST_KNOWN,
		  BPOS(216173881625411584, 0, 0),
		  "1900000000000000 0818000000000000 f800000000000000",
		  { ACCOUNTING_DEV_DATA_TYPE, 0, DATA_SB },
		  3,
		  { 25, 6152, 248 },
		  "dev_data_type dev=0 data_type=sb 25 6152 248" },
		{ VERSION_NEWEST_KNOWN,
		  BPOS(427560489606774784, 0, 0),
		  "0300000000000000 a801000000000000 0000000000000000",
		  { ACCOUNTING_SNAPSHOT, 0xee, 0xff, 0xff, 0xff, 1 },
		  3,
		  { 3, 424, 0 },
		  "snapshot id=4294967278 btree=inodes 3 424 0" },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct key_context ctx = test_context(cases[i].version);
		struct bkey_ref k = key_of_hex(KEY_ACCOUNTING, cases[i].p, 0, cases[i].hex);
		struct accounting a;

		assert_key_valid(k, &ctx);
		assert_int_equal(accounting_decode(k, &ctx, &a), 0);
		assert_memory_equal(a.name, cases[i].name, sizeof(a.name));
		assert_int_equal(a.counter_nr, cases[i].counter_nr);
		assert_memory_equal(a.counters, cases[i].counters, sizeof(a.counters));
		assert_true(bpos_eq(accounting_pos(&ctx, a.name), cases[i].p));
		assert_value_text(k, &ctx, cases[i].text);
	}

	struct key_context ctx = test_context(VERSION(1, 9));
	struct accounting a;
	assert_int_equal(accounting_decode(key_of_hex(KEY_ACCOUNTING, POS_MIN, 0, "0000000000000000"), &ctx, &a),
			 -KILN_E_UNSUPPORTED);
}

#define ALLOC(flags, gens_type, dirty, cached, stripe)                                                        \
	"0100000000000000" flags gens_type dirty cached "0100000000000000 0001000000000000" stripe "00000000" \
	"0000000000000000"

static const struct bad_key bad_keys[] = {
	{ "inline backpointers past the value", 96, SAME_WHEN_NEWER, KEY_ALLOC_V4, BUCKET, 0,
	  ALLOC("1f010000", "00000400", "c8000000", "00000000", "00000000") },
	{ "fixed part past the value", 96, SAME_WHEN_NEWER, KEY_ALLOC_V4, BUCKET, 0,
	  ALLOC("ff000000", "00000400", "c8000000", "00000000", "00000000") },
	{ "inline backpointers without a start", 97, SAME_WHEN_NEWER, KEY_ALLOC_V4, BUCKET, 0,
	  ALLOC("03010000", "00000400", "c8000000", "00000000",
		"00000000") "0000000000000000 0000000000000000 0000000000000000" },
	{ "user data without sectors", 98, FINE_WHEN_NEWER, KEY_ALLOC_V4, BUCKET, 0,
	  ALLOC("1f000000", "00000400", "00000000", "00000000", "00000000") },
	{ "data type 10", 98, FINE_WHEN_NEWER, KEY_ALLOC_V4, BUCKET, 0,
	  ALLOC("1f000000", "00000a00", "c8000000", "00000000", "00000000") },
	{ "free with sectors", 99, FINE_WHEN_NEWER, KEY_ALLOC_V4, BUCKET, 0,
	  ALLOC("1f000000", "00000000", "c8000000", "00000000", "00000000") },
	{ "need_discard with sectors", 99, FINE_WHEN_NEWER, KEY_ALLOC_V4, BUCKET, 0,
	  ALLOC("1f000000", "00000900", "c8000000", "00000000", "00000000") },
	{ "parity without sectors", 100, FINE_WHEN_NEWER, KEY_ALLOC_V4, BUCKET, 0,
	  ALLOC("1f000000", "00000601", "00000000", "00000000", "01000000") },
	{ "cached with dirty sectors", 103, FINE_WHEN_NEWER, KEY_ALLOC_V4, BUCKET, 0,
	  ALLOC("1f000000", "00000500", "08000000", "98000000", "00000000") },
	{ "alloc_v3 with fields missing", 95, SAME_WHEN_NEWER, KEY_ALLOC_V3, BUCKET, 0,
	  "0500000000000000 03000000 06 02 01 04" },
	{ "alloc_v3 with a wide field", 95, SAME_WHEN_NEWER, KEY_ALLOC_V3, BUCKET, 0,
	  "0500000000000000 03000000 03 02 01 04 00 00 ffffffffffffffffff" },
	{ "bucket_gens of 8 bytes", 117, SAME_WHEN_NEWER, KEY_BUCKET_GENS, POS_MIN, 0, "0000000000000000" },
	{ "backpointer at a place it doesn't name", 125, FINE_WHEN_NEWER, KEY_BACKPOINTER, BPOS(0, 0x640400, 0), 0,
	  "0b01030000000000 00010000ffffffff ffffffffffffffff ffffffffffffffff" },
	{ "backpointer with a snapshot", 125, FINE_WHEN_NEWER, KEY_BACKPOINTER, BPOS(0, 0x640000, 1), 0,
	  "0b01030000000000 00010000ffffffff ffffffffffffffff ffffffffffffffff" },
	{ "lru at time 0", 129, SAME_WHEN_NEWER, KEY_LRU, BPOS(0xffffull << 48, 1, 0), 0, "0000000000000000" },
	{ "lru", 82, SAME_WHEN_NEWER, KEY_LRU, BPOS(904, 26, 0), 0, "0000000000000000" },
};

static void each_rule_is_enforced(void **state) { assert_bad_keys(bad_keys, ARRAY_NR(bad_keys)); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(alloc_keys_decode_and_encode),
		cmocka_unit_test(alloc_keys_print_as_upstream_does),
		cmocka_unit_test(alloc_keys_of_before_are_shorter),
		cmocka_unit_test(alloc_keys_of_newer_versions_are_longer),
		cmocka_unit_test(bucket_types_follow_from_the_counts),
		cmocka_unit_test(backpointers_decode_and_encode),
		cmocka_unit_test(the_version_decides_what_a_backpointer_holds),
		cmocka_unit_test(bucket_gens_decode_to_a_byte_per_bucket),
		cmocka_unit_test(counters_are_named_by_their_position),
		cmocka_unit_test(each_rule_is_enforced),
	};

	return cmocka_run_group_tests_name("alloc", tests, NULL, test_keys_free);
}
