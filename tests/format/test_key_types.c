/*
 * The table of key types: sizes, the small types that have no test of their own, and hostile values of every type
 * through every decoder, printer and check.
 */
#include "key_test.h"

#include "format/alloc.h"
#include "format/dirent.h"
#include "format/extent.h"
#include "format/file_data.h"
#include "format/inode.h"
#include "format/logged_op.h"
#include "format/quota.h"
#include "format/snapshot.h"
#include "format/stripe.h"
#include "format/xattr.h"

static void every_type_has_a_row(void **state)
{
	for (unsigned i = 0; i < KEY_TYPE_NR; i++) {
		assert_non_null(key_type(i));
		assert_non_null(key_type(i)->name);
		for (unsigned j = 0; j < i; j++)
			assert_string_not_equal(key_type(i)->name, key_type(j)->name);
	}
	assert_null(key_type(KEY_TYPE_NR));
	assert_null(key_type(255));
	assert_string_equal(key_type(KEY_ALLOC_V4)->name, "alloc_v4");
	assert_string_equal(key_type(38)->name, "damage");
}

static void size_rules_hold_for_every_type(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	uint8_t zeroes[BKEY_VALUE_U64S_MAX * 8] = { 0 };

	for (unsigned i = 0; i < KEY_TYPE_NR; i++) {
		const struct key_type *type = key_type(i);

		if (type->value_bytes_min)
			assert_key_fault(key_of_bytes(i, BPOS(0, 5000, 1), 0, zeroes, type->value_bytes_min - 8u), &ctx,
					 ERROR_bkey_val_size_too_small, type->name);
		if (type->is_value_empty) {
			assert_key_fault(key_of_bytes(i, BPOS(0, 5000, 1), 0, zeroes, 8), &ctx,
					 ERROR_bkey_val_size_nonzero, type->name);
			assert_key_valid(key_of_bytes(i, BPOS(0, 5000, 1), 0, zeroes, 0), &ctx);
		}
	}
}

/* Newer versions append fields. */
static void longer_values_are_tolerated(void **state)
{
	static const struct {
		unsigned type;
		struct bpos p;
		const char *hex;
	} cases[] = {
		{ KEY_COOKIE, { 0, 1, 1 }, "02" },
		{ KEY_RESERVATION, { 4098, 8, 1 }, "0000000001" },
		{ KEY_INODE_GENERATION, { 0, 4100, 1 }, "01" },
		{ KEY_QUOTA, { 0, 1, 0 }, "01" },
		{ KEY_STRIPE, { 0, 1, 0 }, "0001 00 01 00 07 00 00 01d0010000000100 0000" },
		{ KEY_REFLINK_P, { 4098, 8, 1 }, "08" },
		{ KEY_SUBVOLUME, { 0, 1, 0 }, "01" },
		{ KEY_SNAPSHOT, { 0, 1, 0 }, "02" },
		{ KEY_ALLOC_V4, { 0, 30, 0 }, "0000000000000000 18" },
		{ KEY_BACKPOINTER, { 0, 0x640000, 0 }, "0b0103" },
		{ KEY_INODE_V3, { 0, 4100, 1 }, "0000000000000000 0000000000000000 0000300003000800" },
		{ KEY_SNAPSHOT_TREE, { 0, 1, 0 }, "01" },
		{ KEY_LOGGED_OP_TRUNCATE, { 0, 1, 0 }, "01" },
		{ KEY_LOGGED_OP_FINSERT, { 0, 1, 0 }, "01" },
		{ KEY_ACCOUNTING, { 0, 0, 0 }, "01" },
		{ KEY_INODE_ALLOC_CURSOR, { 1, 1, 0 }, "01" },
		{ KEY_LOGGED_OP_STRIPE_UPDATE, { 0, 1, 0 }, "01" },
	};
	struct key_context ctx = test_context(VERSION_1_4);

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		uint8_t value[128] = { 0 };

		hex_decode(cases[i].hex, value, sizeof(value));
		assert_key_valid(key_of_bytes(cases[i].type, cases[i].p, 8, value, sizeof(value)), &ctx);
	}
}

static void unknown_types_pass(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct strbuf text = strbuf_growing();
	struct bkey_ref k = key_of_hex(77, BPOS(1, 2, 3), 0, "ffffffffffffffff");

	assert_key_valid(k, &ctx);
	key_to_text(&text, k, &ctx);
	assert_string_equal(strbuf_text(&text), "u64s 6 type 77 1:2:3 len 0 ver 0");
	strbuf_free(&text);
}

static void headers_are_checked_before_values(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k = key_of_hex(KEY_EXTENT, BPOS(4098, 8, UINT32_MAX), 8, "0100020000000000");
	struct fault fault;

	assert_int_equal(key_validate(k, BTREE_EXTENTS, 0, &ctx, &fault), 0);
	k.k.size = 9;
	assert_int_equal(key_validate(k, BTREE_EXTENTS, 0, &ctx, &fault), -KILN_E_INVALID);
	assert_int_equal(fault.id, ERROR_bkey_extent_size_greater_than_offset);
	k = key_of_hex(KEY_EXTENT, BPOS(4098, 8, UINT32_MAX), 8, "0000000000000000");
	assert_int_equal(key_validate(k, BTREE_EXTENTS, 0, &ctx, &fault), -KILN_E_INVALID);
	assert_int_equal(fault.id, ERROR_extent_ptrs_invalid_entry);
}

static void keys_print_as_header_and_value(void **state)
{
	static const struct {
		unsigned type;
		struct bpos p;
		uint32_t size;
		const char *hex, *text;
	} cases[] = {
		{ KEY_SNAPSHOT_TREE,
		  { 0, 2, 0 },
		  0,
		  "02000000 feffffff",
		  "u64s 6 type snapshot_tree 0:2:0 len 0 ver 0: subvol 2 root snapshot 4294967294" },
		{ KEY_WHITEOUT, { 4104, 7, 4294967290 }, 0, "", "u64s 5 type whiteout 4104:7:4294967290 len 0 ver 0" },
		{ KEY_SET, { 2, 1272, 0 }, 1243, "", "u64s 5 type set 2:1272:0 len 1243 ver 0" },
		{ KEY_REFLINK_P,
		  { 4169, 96, UINT32_MAX },
		  24,
		  "a800000000000000 00000000 68000000",
		  "u64s 7 type reflink_p 4169:96:U32_MAX len 24 ver 0: idx 168 front_pad 0 back_pad 104" },
		{ KEY_SNAPSHOT_TREE,
		  { 0, 2, 0 },
		  0,
		  "",
		  "u64s 5 type snapshot_tree 0:2:0 len 0 ver 0: (value of 0 bytes)" },
	};
	struct key_context ctx = test_context(VERSION_1_4);

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct strbuf text = strbuf_growing();

		key_to_text(&text, key_of_hex(cases[i].type, cases[i].p, cases[i].size, cases[i].hex), &ctx);
		assert_string_equal(strbuf_text(&text), cases[i].text);
		strbuf_free(&text);
	}
}

/* --- small types --- */

static void reservations_and_cookies_decode(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k = key_of_hex(KEY_RESERVATION, BPOS(4098, 8, 1), 8, "0000000001000000");
	uint8_t value[RESERVATION_BYTES];
	struct reservation r;

	assert_key_valid(k, &ctx);
	reservation_decode(k, &r);
	assert_int_equal(r.nr_replicas, 1);
	reservation_encode(&r, value);
	assert_memory_equal(value, k.value, sizeof(value));
	assert_value_text(k, &ctx, "generation 0 replicas 1");

	k = key_of_hex(KEY_COOKIE, BPOS(0, UINT64_MAX - 1, UINT32_MAX), 0, "0200000000000000");
	assert_key_valid(k, &ctx);
	assert_true(cookie_decode(k) == 2);
	assert_value_text(k, &ctx, "2");
}

static void inline_data_is_the_value(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k = key_of_hex(KEY_INLINE_DATA, BPOS(4098, 8, 1), 8, "7400000000000000");
	const uint8_t *bytes;

	assert_key_valid(k, &ctx);
	assert_int_equal(inline_data_bytes(k, &bytes), 8);
	assert_ptr_equal(bytes, k.value);
	assert_value_text(k, &ctx, "datalen 8: 7400000000000000");
	assert_int_equal(inline_data_bytes(key_of_hex(KEY_INLINE_DATA, BPOS(4098, 8, 1), 8, ""), &bytes), 0);
}

static void quotas_decode_and_encode(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k = key_of_hex(KEY_QUOTA, BPOS(QUOTA_PROJECT, 1000, 0), 0,
				       "0008000000000000 0004000000000000 6400000000000000 3200000000000000");
	uint8_t value[QUOTA_BYTES];
	struct quota q;

	assert_key_valid(k, &ctx);
	quota_decode(k, &q);
	assert_true(q.limits[QUOTA_SPACE].hard == 2048 && q.limits[QUOTA_SPACE].soft == 1024);
	assert_true(q.limits[QUOTA_INODES].hard == 100 && q.limits[QUOTA_INODES].soft == 50);
	quota_encode(&q, value);
	assert_memory_equal(value, k.value, sizeof(value));
	assert_value_text(k, &ctx, "space hardlimit 2048 softlimit 1024 inodes hardlimit 100 softlimit 50");
}

static void logged_truncates_decode_and_encode(void **state)
{
	static const struct {
		const char *hex;
		struct logged_op_truncate op;
		const char *text;
	} cases[] = {
		{ "0100000000000000 0210000000000000 1027000000000000",
		  { 1, 4098, 10000 },
		  "subvol=1 inum=4098 new_i_size=10000" },
		{ "0100000000000000 0610000000000000 a086010000000000",
		  { 1, 4102, 100000 },
		  "subvol=1 inum=4102 new_i_size=100000" },
	};
	struct key_context ctx = test_context(VERSION_1_4);

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct bkey_ref k = key_of_hex(KEY_LOGGED_OP_TRUNCATE, BPOS(0, 1, 0), 0, cases[i].hex);
		uint8_t value[LOGGED_OP_TRUNCATE_BYTES];
		struct logged_op_truncate op;

		assert_key_valid(k, &ctx);
		logged_op_truncate_decode(k, &op);
		assert_int_equal(op.subvol, cases[i].op.subvol);
		assert_true(op.inum == cases[i].op.inum && op.new_size_bytes == cases[i].op.new_size_bytes);
		logged_op_truncate_encode(&op, value);
		assert_memory_equal(value, k.value, sizeof(value));
		assert_value_text(k, &ctx, cases[i].text);
	}
}

static void logged_inserts_decode_and_encode(void **state)
{
	static const struct {
		const char *hex;
		struct logged_op_finsert op;
		const char *text;
	} cases[] = {
		{ "00000000 01000000 0310000000000000 6000000000000000 2000000000000000 ffffffffffffffff",
		  { FINSERT_START, 1, 4099, 96, 32, UINT64_MAX },
		  "subvol=1 inum=4099 dst_offset=96 src_offset=32 pos=18446744073709551615 state=start" },
		{ "00000000 01000000 0310000000000000 f0ffffffffffffff 1000000000000000 1000000000000000",
		  { FINSERT_START, 1, 4099, (uint64_t)-16, 16, 16 },
		  "subvol=1 inum=4099 dst_offset=-16 src_offset=16 pos=16 state=start" },
		{ "01000000 01000000 0310000000000000 f0ffffffffffffff 1000000000000000 8000000000000000",
		  { FINSERT_SHIFT_EXTENTS, 1, 4099, (uint64_t)-16, 16, 128 },
		  "subvol=1 inum=4099 dst_offset=-16 src_offset=16 pos=128 state=shift_extents" },
	};
	struct key_context ctx = test_context(VERSION_1_4);

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct bkey_ref k = key_of_hex(KEY_LOGGED_OP_FINSERT, BPOS(0, 1, 0), 0, cases[i].hex);
		uint8_t value[LOGGED_OP_FINSERT_BYTES];
		struct logged_op_finsert op;

		assert_key_valid(k, &ctx);
		logged_op_finsert_decode(k, &op);
		assert_int_equal(op.state, cases[i].op.state);
		assert_int_equal(op.subvol, cases[i].op.subvol);
		assert_true(op.inum == cases[i].op.inum && op.dst_sector == cases[i].op.dst_sector);
		assert_true(op.src_sector == cases[i].op.src_sector && op.pos_sector == cases[i].op.pos_sector);
		logged_op_finsert_encode(&op, value);
		assert_memory_equal(value, k.value, sizeof(value));
		assert_value_text(k, &ctx, cases[i].text);
	}
}

/* 12 §16.4, §6.2, §8.5, §13 */
static void types_of_newer_versions_decode(void **state)
{
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);
	struct bkey_ref k = key_of_hex(KEY_INODE_ALLOC_CURSOR, BPOS(1, 1, 0), 0, "00000000 00000000 0100008000000000");
	struct inode_alloc_cursor cursor;

	assert_key_valid(k, &ctx);
	inode_alloc_cursor_decode(k, &cursor);
	assert_true(cursor.next_inum == 2147483649);
	assert_int_equal(cursor.generation, 0);
	assert_value_text(k, &ctx, "idx 2147483649 generation 0");

	k = key_of_hex(KEY_LOGGED_OP_STRIPE_UPDATE, BPOS(0, 1, 0), 0,
		       "0600000000000000 0700000000000000 02 0301 0000000000000000000000000000 00000000000000");
	struct logged_op_stripe_update op;
	assert_key_valid(k, &ctx);
	logged_op_stripe_update_decode(k, &op);
	assert_true(op.old_idx == 6 && op.new_idx == 7);
	assert_int_equal(op.old_block_nr, 2);
	assert_int_equal(op.old_block_map[0], 3);
	assert_value_text(k, &ctx, "old_idx 6 new_idx 7 old_blocks 2 map 3 1");

	k = key_of_hex(KEY_ERROR, BPOS(4098, 8, 1), 8, "0100000000000000");
	assert_key_valid(k, &ctx);
	assert_int_equal(error_key_reason(k), 1);
	assert_value_text(k, &ctx, "reason device_removed");
	assert_int_equal(error_key_reason(key_of_hex(KEY_ERROR, BPOS(4098, 8, 1), 8, "")), 0);

	/* error 392, five times, last 0x0201030201, first 0x0504030201 */
	k = key_of_hex(KEY_DAMAGE, BPOS(0, 4098, 1), 0, "8801 05000000 0102 030102 0102030405");
	struct damage_entry e;
	assert_key_valid(k, &ctx);
	assert_true(damage_entry_decode(k, 0, &e));
	assert_int_equal(e.error_id, ERROR_data_read_csum_err);
	assert_int_equal(e.count, 5);
	assert_true(e.last_sec == 0x0201030201 && e.first_sec == 0x0504030201);
	assert_false(damage_entry_decode(k, 1, &e));
	assert_value_text(k, &ctx, "data_read_csum_err=5");
}

static const struct bad_key bad_keys[] = {
	{ "error with a value", 91, FINE_WHEN_NEWER, KEY_ERROR, BPOS(4098, 8, 1), 8, "0100000000000000" },
	{ "reservation for 0 replicas", 164, SAME_WHEN_NEWER, KEY_RESERVATION, BPOS(4098, 8, 1), 8,
	  "0000000000000000" },
	{ "reservation for 5 replicas", 164, SAME_WHEN_NEWER, KEY_RESERVATION, BPOS(4098, 8, 1), 8,
	  "0000000005000000" },
	{ "quota type 3", 232, SAME_WHEN_NEWER, KEY_QUOTA, BPOS(3, 1000, 0), 0,
	  "0000000000000000 0000000000000000 0000000000000000 0000000000000000" },
	{ "half a damage entry", 387, SAME_WHEN_NEWER, KEY_DAMAGE, BPOS(0, 4098, 1), 0, "8801050000000000" },
};

static void each_rule_is_enforced(void **state) { assert_bad_keys(bad_keys, ARRAY_NR(bad_keys)); }

/* --- hostile values --- */

static void decode_name_types(struct bkey_ref k)
{
	struct fault fault;
	struct dirent d;
	struct xattr x;
	struct inode inode;
	uint8_t out[64];

	if (!dirent_decode(k, &d, &fault)) {
		assert_true(d.name >= (const uint8_t *)k.value);
		assert_true(d.name + d.name_len <= (const uint8_t *)k.value + bkey_value_bytes(&k.k));
		assert_true(d.folded + d.folded_len <= (const uint8_t *)k.value + bkey_value_bytes(&k.k));
	}
	if (!xattr_decode(k, &x, &fault)) {
		assert_true(x.value + x.value_len <= (const uint8_t *)k.value + bkey_value_bytes(&k.k));
		acl_to_user(x.value, x.value_len, out, sizeof(out));
		acl_from_user(x.value, x.value_len, out, sizeof(out));
	}
	inode_unpack(k, &inode, &fault);
}

/* Every decoder, whatever the type: they are called on keys that nobody validated, too. */
static void decode_all(struct bkey_ref k, const struct key_context *ctx)
{
	union {
		struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
		struct btree_ptr btree_ptr;
		struct reflink_p reflink_p;
		struct stripe stripe;
		struct snapshot snapshot;
		struct subvolume subvolume;
		struct snapshot_tree tree;
		struct alloc alloc;
		struct backpointer backpointer;
		struct accounting accounting;
		struct damage_entry damage;
		struct logged_op_finsert finsert;
		uint8_t gens[BUCKET_GENS_PER_KEY];
	} u;
	const uint8_t *bytes;
	struct fault fault;
	bool is_poisoned;

	assert_true(extent_decode(k, ctx, u.ptrs, &is_poisoned, &fault) <= EXTENT_PTRS_MAX);
	btree_ptr_decode(k, ctx, &u.btree_ptr, &fault);
	reflink_p_decode(k, &u.reflink_p);
	if (!stripe_decode(k, &u.stripe, &fault))
		for (unsigned i = 0; i < u.stripe.nr_blocks; i++)
			stripe_checksum(&u.stripe, i, u.stripe.csums_per_block - 1);
	snapshot_decode(k, &u.snapshot);
	subvolume_decode(k, &u.subvolume);
	snapshot_tree_decode(k, &u.tree);
	alloc_decode(k, &u.alloc, &fault);
	backpointer_decode(k, ctx, &u.backpointer);
	accounting_decode(k, ctx, &u.accounting);
	damage_entry_decode(k, 0, &u.damage);
	logged_op_finsert_decode(k, &u.finsert);
	bucket_gens_decode(k, u.gens);
	assert_true(inline_data_bytes(k, &bytes) <= bkey_value_bytes(&k.k));
	decode_name_types(k);
}

static void random_context(struct rng *rng, struct key_context *ctx, struct member_geometry *members)
{
	*ctx = test_context(rng_below(rng, 2) ? VERSION_1_4 : (uint32_t)VERSION(1, 4 + rng_below(rng, 36)));
	memcpy(members, ctx->members, TEST_MEMBER_NR * sizeof(*members));
	members[rng_below(rng, TEST_MEMBER_NR)].exists = false;
	members[rng_below(rng, TEST_MEMBER_NR)].bucket_sectors = (uint16_t)rng_below(rng, 3);
	ctx->members = members;
	ctx->member_nr = (unsigned)rng_below(rng, TEST_MEMBER_NR + 1);
	ctx->has_key = rng_below(rng, 2);
	ctx->backpointer_shift = (uint32_t)rng_below(rng, 70);
	for (unsigned i = 0; i < sizeof(ctx->entry_type_u64s); i++)
		ctx->entry_type_u64s[i] = rng_below(rng, 4) ? 0 : (uint8_t)rng_u64(rng);
}

static void put_through_everything(struct bkey_ref k, const struct key_context *ctx)
{
	struct fault fault = { 0 };
	char fixed[300];
	struct strbuf text = strbuf_fixed(fixed, sizeof(fixed));
	int err = key_validate_value(k, ctx, &fault);

	if (err) {
		assert_int_equal(err, -KILN_E_INVALID);
		assert_true(fault.field[0] && fault.expected[0] && fault.found[0]);
	} else if (!ctx->is_newer && k.k.type == KEY_EXTENT) {
		struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];

		assert_true(extent_decode(k, ctx, ptrs, NULL, NULL) > 0);
	}
	key_to_text(&text, k, ctx);
	decode_all(k, ctx);
}

static const struct {
	uint8_t type;
	uint32_t size;
	const char *hex;
} seeds[] = {
	{ KEY_EXTENT, 8, "1e0e0005ba4d93c1 0190010000000100 0300020000000000" },
	{ KEY_EXTENT, 128, "feff0005ede34e7a 1020020000000000 01d0010000000100 2000000000530000" },
	{ KEY_EXTENT, 8,
	  "c000000000000000 78000e00000000041889e128097fd0d7b305d8f6773f10f6 0100020000000000 800010a020000000" },
	{ KEY_REFLINK_V, 48, "0200000000000000 be5e00054ab787b8 01cd020000000000" },
	{ KEY_REFLINK_P, 24, "b000000000000000 00000000 68000000" },
	{ KEY_BTREE_PTR_V2, 0,
	  "1122334455667788 b8d6124059743742 1000 0100 00000000 0000000000000000 0000000000000000 01e0010000000003" },
	{ KEY_STRIPE, 0,
	  "0001 00 05 01 07 05 00 01d0010000000100 01d0010000000200 01c0010000000300 01c0010000000400 01d0010000000000"
	  "ede34e7a 66c806e4 ffec1003 3145347f 36b2e6f3 93dbf97b 8b4febbe 60eef5de aff25334 a4b83e3e"
	  "0001 0001 0001 0001 0000 000000000000" },
	{ KEY_INODE_V3, 0,
	  "0700000000000000 cfe99116405b7f91 00003015431a0800 0800000000000000 0600000000000000 0000000000000000"
	  "6f45b74b0f00 6f45b74b0f00 6f45b74b0f00 6f45b74b0f00 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00 0940"
	  "ffd493de5eb0fbd826 000000000000" },
	{ KEY_INODE, 0, "1122334455667788 00002088 8081 02 00 04 00 06 00 08 00 0c 10 14 18" },
	{ KEY_DIRENT, 0, "0410000000000000 08 68656c6c6f2e747874 000000000000" },
	{ KEY_DIRENT, 0, "0710000000000000 88 0000 0b00 0b00 53747261c39f652e545854 737472617373652e747874 000000" },
	{ KEY_XATTR, 0, "00 03 0300 666f6f 626172 000000000000" },
	{ KEY_XATTR, 0, "01 00 2400 01000000 0100 0600 0200 0700 e8030000 0400 0500 1000 0700 2000 0400" },
	{ KEY_SNAPSHOT, 0, "02000000feffffff 0000000000000000 0300000002000000 01000000feffffff fefffffffeffffff" },
	{ KEY_ALLOC_V4, 0,
	  "0600000000000000 1f00000000000400 c800000000000000 0100000000000000 6811000000000000 0000000000000000 "
	  "0000006400000000" },
	{ KEY_ALLOC_V3, 0, "0500000000000000 03000000 06 02 01 04 0102 0402 0a 00 00 00" },
	{ KEY_BACKPOINTER, 0, "0b01030000000000 00010000ffffffff ffffffffffffffff ffffffffffffffff" },
	{ KEY_ACCOUNTING, 0, "0100000000000000 0200000000000000 ffffffffffffffff" },
	{ KEY_LOGGED_OP_STRIPE_UPDATE, 0, "0600000000000000 0700000000000000 02 0301" },
};

/* Random bytes as every type: mostly sparse ones, which get further than noise. */
static void random_values_break_nothing(void **state)
{
	struct rng rng = test_rng();

	for (unsigned i = 0; i < 20000; i++) {
		struct member_geometry members[TEST_MEMBER_NR];
		struct key_context ctx;
		unsigned u64s = (unsigned)rng_below(&rng, rng_below(&rng, 8) ? 16 : BKEY_VALUE_U64S_MAX + 1);
		uint64_t sparse = rng_below(&rng, 3);
		uint8_t *value = malloc(u64s * 8 + 1);

		for (unsigned j = 0; j < u64s * 8; j++)
			value[j] = rng_below(&rng, 1 + sparse * 4) ? 0 : (uint8_t)rng_u64(&rng);
		random_context(&rng, &ctx, members);
		void *exact = exact_copy(value, u64s * 8);
		put_through_everything(
			(struct bkey_ref){
				.k = { .p = BPOS(rng_u64(&rng) >> rng_below(&rng, 64),
						 rng_u64(&rng) >> rng_below(&rng, 64), (uint32_t)rng_u64(&rng)),
				       .size = (uint32_t)(rng_u64(&rng) >> (32 + rng_below(&rng, 32))),
				       .type = (uint8_t)rng_below(&rng, KEY_TYPE_NR + 2),
				       .value_u64s = (uint8_t)u64s },
				.value = u64s ? exact : NULL },
			&ctx);
		free(exact);
		free(value);
	}
}

/* Values that were good, with a few bytes changed, words cut off or added. */
static void mutated_values_break_nothing(void **state)
{
	struct rng rng = test_rng();

	for (unsigned i = 0; i < 20000; i++) {
		size_t seed = rng_below(&rng, ARRAY_NR(seeds));
		uint8_t value[256] = { 0 };
		struct member_geometry members[TEST_MEMBER_NR];
		struct key_context ctx;
		size_t bytes = round_up_u64(hex_decode(seeds[seed].hex, value, sizeof(value)), 8);

		for (unsigned j = (unsigned)rng_below(&rng, 4); j--;)
			value[rng_below(&rng, bytes)] ^= (uint8_t)(1u << rng_below(&rng, 8));
		if (!rng_below(&rng, 4))
			value[rng_below(&rng, bytes)] = (uint8_t)rng_u64(&rng);
		if (!rng_below(&rng, 4))
			bytes = rng_below(&rng, bytes / 8 + 3) * 8;
		random_context(&rng, &ctx, members);
		void *exact = exact_copy(value, bytes);
		put_through_everything(
			(struct bkey_ref){ .k = { .p = BPOS(0, rng_below(&rng, 2) ? 5000 : 1, UINT32_MAX),
						  .size = seeds[seed].size,
						  .type = seeds[seed].type,
						  .value_u64s = (uint8_t)(bytes / 8) },
					   .value = exact },
			&ctx);
		free(exact);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_type_has_a_row),
		cmocka_unit_test(size_rules_hold_for_every_type),
		cmocka_unit_test(longer_values_are_tolerated),
		cmocka_unit_test(unknown_types_pass),
		cmocka_unit_test(headers_are_checked_before_values),
		cmocka_unit_test(keys_print_as_header_and_value),
		cmocka_unit_test(reservations_and_cookies_decode),
		cmocka_unit_test(inline_data_is_the_value),
		cmocka_unit_test(quotas_decode_and_encode),
		cmocka_unit_test(logged_truncates_decode_and_encode),
		cmocka_unit_test(logged_inserts_decode_and_encode),
		cmocka_unit_test(types_of_newer_versions_decode),
		cmocka_unit_test(each_rule_is_enforced),
		cmocka_unit_test(random_values_break_nothing),
		cmocka_unit_test(mutated_values_break_nothing),
	};

	return cmocka_run_group_tests_name("key types", tests, NULL, test_keys_free);
}
