/* Positions and the table of btrees. */
#include "format_test.h"

#include <errno.h>

#include "base/strbuf.h"
#include "format/bpos.h"
#include "format/btrees.h"

static void steps_carry_from_snapshot_to_offset_to_inode(void **state)
{
	(void)state;
	static const struct {
		struct bpos p, next;
	} cases[] = {
		{ BPOS(4896, 8, UINT32_MAX), BPOS(4896, 9, 0) },
		{ BPOS(0, 113573888, 0), BPOS(0, 113573888, 1) },
		{ BPOS(5121, 8, UINT32_MAX), BPOS(5121, 9, 0) },
		{ BPOS(7, UINT64_MAX, UINT32_MAX), BPOS(8, 0, 0) },
		{ POS_MIN, BPOS(0, 0, 1) },
		{ BPOS(UINT64_MAX, UINT64_MAX, UINT32_MAX - 1), SPOS_MAX },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_true(bpos_eq(bpos_successor(cases[i].p), cases[i].next));
		assert_true(bpos_eq(bpos_predecessor(cases[i].next), cases[i].p));
		assert_true(bpos_lt(cases[i].p, cases[i].next));
	}
	assert_true(bpos_eq(bpos_successor(SPOS_MAX), SPOS_MAX));
	assert_true(bpos_eq(bpos_predecessor(POS_MIN), POS_MIN));
}

static void nosnap_step_leaves_all_snapshots_of_a_position(void **state)
{
	(void)state;
	assert_true(bpos_eq(bpos_nosnap_successor(BPOS(5, 6, 7)), BPOS(5, 7, 0)));
	assert_true(bpos_eq(bpos_nosnap_successor(BPOS(5, UINT64_MAX, 7)), BPOS(6, 0, 0)));
	assert_true(bpos_eq(bpos_nosnap_successor(BPOS(UINT64_MAX, UINT64_MAX, 3)), SPOS_MAX));
}

static void order_is_inode_then_offset_then_snapshot(void **state)
{
	(void)state;
	const struct bpos ascending[] = { POS_MIN,	 BPOS(0, 0, 9),		 BPOS(0, 1, 0),
					  BPOS(1, 0, 0), BPOS(1, 0, UINT32_MAX), BPOS(1, UINT64_MAX, 0),
					  BPOS(2, 3, 4), BPOS(UINT64_MAX, 0, 1), POS_MAX,
					  SPOS_MAX };

	for (size_t i = 0; i < sizeof(ascending) / sizeof(ascending[0]); i++)
		for (size_t j = 0; j < sizeof(ascending) / sizeof(ascending[0]); j++)
			assert_int_equal(bpos_cmp(ascending[i], ascending[j]), (i > j) - (i < j));
	assert_int_equal(bpos_key_cmp(BPOS(1, 2, 3), BPOS(1, 2, 4)), 0);
	assert_int_equal(bpos_key_cmp(BPOS(1, 2, 3), BPOS(1, 3, 0)), -1);
}

static void disk_form_is_snapshot_offset_inode(void **state)
{
	(void)state;
	struct bpos_disk d;
	uint8_t expected[20];

	bpos_store(&d, BPOS(0x1122334455667788, 0x99aabbccddeeff00, 0x01020304));
	hex_decode("04030201 00ffeeddccbbaa99 8877665544332211", expected, sizeof(expected));
	assert_memory_equal(&d, expected, sizeof(d));
	assert_true(bpos_eq(bpos_load(&d), BPOS(0x1122334455667788, 0x99aabbccddeeff00, 0x01020304)));
}

static void text_spells_out_extremes(void **state)
{
	(void)state;
	static const struct {
		struct bpos p;
		const char *text;
	} cases[] = {
		{ POS_MIN, "POS_MIN" },
		{ POS_MAX, "POS_MAX" },
		{ SPOS_MAX, "SPOS_MAX" },
		{ BPOS(4098, 8, UINT32_MAX), "4098:8:U32_MAX" },
		{ BPOS(1, UINT64_MAX, 2), "1:U64_MAX:2" },
		{ BPOS(UINT64_MAX, 0, 0), "U64_MAX:0:0" },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char text[80];
		struct strbuf out = strbuf_fixed(text, sizeof(text));

		bpos_to_text(&out, cases[i].p);
		assert_string_equal(strbuf_text(&out), cases[i].text);
	}
}

static void btrees_are_found_by_name_and_number(void **state)
{
	(void)state;
	for (unsigned id = 0; id < BTREE_NR_KNOWN; id++) {
		assert_non_null(btree_name(id));
		assert_int_equal(btree_id_parse(btree_name(id)), id);
	}
	assert_null(btree_name(BTREE_NR_KNOWN));
	assert_int_equal(btree_id_parse("13"), BTREE_BACKPOINTERS);
	assert_int_equal(btree_id_parse("62"), 62);
	assert_int_equal(btree_id_parse("63"), -ENOENT);
	assert_int_equal(btree_id_parse("99999999999999999999"), -ENOENT);
	assert_int_equal(btree_id_parse(""), -ENOENT);
	assert_int_equal(btree_id_parse("extent"), -ENOENT);
	assert_int_equal(btree_id_parse("-1"), -ENOENT);
}

static void unknown_btrees_refuse_no_snapshot(void **state)
{
	(void)state;
	assert_int_equal(btree_flags(BTREE_NR_KNOWN), BTREE_HAS_SNAPSHOT_FIELD);
	assert_int_equal(btree_flags(BTREE_FREESPACE), BTREE_IS_EXTENTS);
	assert_true(btree_flags(BTREE_DIRENTS) & BTREE_HAS_SNAPSHOTS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(steps_carry_from_snapshot_to_offset_to_inode),
		cmocka_unit_test(nosnap_step_leaves_all_snapshots_of_a_position),
		cmocka_unit_test(order_is_inode_then_offset_then_snapshot),
		cmocka_unit_test(disk_form_is_snapshot_offset_inode),
		cmocka_unit_test(text_spells_out_extremes),
		cmocka_unit_test(btrees_are_found_by_name_and_number),
		cmocka_unit_test(unknown_btrees_refuse_no_snapshot),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
