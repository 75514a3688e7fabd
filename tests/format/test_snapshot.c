/* Snapshots, trees and subvolumes: vectors of 05 §2.4 and 12 §16.4, tombstones, and one bad key for each rule. */
#include "key_test.h"

#include "format/snapshot.h"

#define ID(id) BPOS(0, id, 0)

static void snapshots_decode(void **state)
{
	static const struct {
		uint32_t id;
		const char *hex;
		struct snapshot s;
		const char *text;
	} cases[] = {
		{ 0xfffffffe,
		  "0000000000000000 fdfffffffcffffff 0000000002000000 0000000000000000 0000000000000000",
		  { .children = { 0xfffffffd, 0xfffffffc }, .tree = 2 },
		  "is_subvol 0 deleted 0 parent          0 children 4294967293 4294967292 subvol 0 tree 2 depth 0 "
		  "skiplist 0 0 0" },
		{ 0xfffffffd,
		  "02000000feffffff 0000000000000000 0300000002000000 01000000feffffff fefffffffeffffff",
		  { .is_subvol = true,
		    .parent = 0xfffffffe,
		    .subvol = 3,
		    .tree = 2,
		    .depth = 1,
		    .skip = { 0xfffffffe, 0xfffffffe, 0xfffffffe } },
		  "is_subvol 1 deleted 0 parent 4294967294 children          0          0 subvol 3 tree 2 depth 1 "
		  "skiplist 4294967294 4294967294 4294967294" },
		{ 0xfffffffc,
		  "02000000feffffff 0000000000000000 0200000002000000 01000000feffffff fefffffffeffffff",
		  { .is_subvol = true,
		    .parent = 0xfffffffe,
		    .subvol = 2,
		    .tree = 2,
		    .depth = 1,
		    .skip = { 0xfffffffe, 0xfffffffe, 0xfffffffe } },
		  "is_subvol 1 deleted 0 parent 4294967294 children          0          0 subvol 2 tree 2 depth 1 "
		  "skiplist 4294967294 4294967294 4294967294" },
		/* of before format 1.1: no depth, no skip list */
		{ 0xffffffff,
		  "0300000000000000 0000000000000000 0100000001000000",
		  { .will_delete = true, .is_subvol = true, .subvol = 1, .tree = 1 },
		  "is_subvol 1 deleted 1 parent          0 children          0          0 subvol 1 tree 1 depth 0 "
		  "skiplist 0 0 0" },
	};
	struct key_context ctx = test_context(VERSION_1_4);

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct bkey_ref k = key_of_hex(KEY_SNAPSHOT, ID(cases[i].id), 0, cases[i].hex);
		struct snapshot s;

		assert_key_valid(k, &ctx);
		snapshot_decode(k, &s);
		assert_int_equal(s.will_delete, cases[i].s.will_delete);
		assert_int_equal(s.is_subvol, cases[i].s.is_subvol);
		assert_false(s.is_deleted || s.has_no_keys);
		assert_int_equal(s.parent, cases[i].s.parent);
		assert_memory_equal(s.children, cases[i].s.children, sizeof(s.children));
		assert_int_equal(s.subvol, cases[i].s.subvol);
		assert_int_equal(s.tree, cases[i].s.tree);
		assert_int_equal(s.depth, cases[i].s.depth);
		assert_memory_equal(s.skip, cases[i].s.skip, sizeof(s.skip));
		assert_value_text(k, &ctx, cases[i].text);
	}
}

#define ZEROES_16 "0000000000000000 0000000000000000"

/* flags, then zeroes up to the state word at byte 56 */
#define WITH_STATE(flags, state) \
	flags "00000000"         \
	      "0000000000000000" ZEROES_16 ZEROES_16 "0000000000000000" state "00000000"

static void state_words_overrule_flags_if_they_are_known(void **state)
{
	static const struct {
		const char *hex;
		bool will_delete, has_no_keys, is_deleted;
	} cases[] = {
		{ WITH_STATE("02000000", "a2477c75"), false, false, false },
		{ WITH_STATE("0f000000", "a2477c75"), false, false, false },
		{ WITH_STATE("00000000", "d2a81633"), true, false, false },
		{ WITH_STATE("00000000", "015a2b37"), false, true, false },
		{ WITH_STATE("00000000", "25a2d47c"), false, false, true },
		{ WITH_STATE("04000000", "00000000"), false, false, true },
		{ WITH_STATE("09000000", "12345678"), true, true, false },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct snapshot s;

		snapshot_decode(key_of_hex(KEY_SNAPSHOT, ID(UINT32_MAX), 0, cases[i].hex), &s);
		assert_int_equal(s.will_delete, cases[i].will_delete);
		assert_int_equal(s.has_no_keys, cases[i].has_no_keys);
		assert_int_equal(s.is_deleted, cases[i].is_deleted);
	}
}

static void trees_decode(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k = key_of_hex(KEY_SNAPSHOT_TREE, ID(2), 0, "02000000 feffffff");
	struct snapshot_tree t;

	assert_key_valid(k, &ctx);
	snapshot_tree_decode(k, &t);
	assert_int_equal(t.master_subvol, 2);
	assert_int_equal(t.root_snapshot, 0xfffffffe);
	assert_value_text(k, &ctx, "subvol 2 root snapshot 4294967294");
}

static void subvolumes_decode(void **state)
{
	static const struct {
		const char *hex;
		uint32_t version;
		struct subvolume s;
		const char *text;
	} cases[] = {
		{ "00000000ffffffff 0010000000000000 0000000000000000 0000000000000000 0000000000000000",
		  VERSION_1_4,
		  { .snapshot = UINT32_MAX, .inode = 4096 },
		  "root 4096 snapshot id 4294967295 parent 0" },
		{ "02000000feffffff 0010000000000000 0100000000000000 e5f4000200000000 0000000000000000",
		  VERSION_1_4,
		  { .is_snapshot = true,
		    .snapshot = 0xfffffffe,
		    .inode = 4096,
		    .creation_parent = 1,
		    .otime = 0x200f4e5 },
		  "root 4096 snapshot id 4294967294 parent 1" },
		{ "01000000feffffff 0010000000000000",
		  VERSION_1_4,
		  { .is_readonly = true, .snapshot = 0xfffffffe, .inode = 4096 },
		  "root 4096 snapshot id 4294967294 parent 0" },
		{ "03000000feffffff 0010000000000000 0200000001000000" ZEROES_16 "7e44d54a00000000",
		  VERSION_NEWEST_KNOWN,
		  { .is_readonly = true,
		    .is_snapshot = true,
		    .snapshot = 0xfffffffe,
		    .inode = 4096,
		    .creation_parent = 2,
		    .fs_path_parent = 1 },
		  "root 4096 snapshot id 4294967294 parent 2 fs_parent 1 ro snapshot" },
		{ "00000000feffffff 0010000000000000 0200000001000000" ZEROES_16 "4c2d6b3c00000000",
		  VERSION_NEWEST_KNOWN,
		  { .is_unlinked = true,
		    .is_deleted = true,
		    .snapshot = 0xfffffffe,
		    .inode = 4096,
		    .creation_parent = 2,
		    .fs_path_parent = 1 },
		  "root 4096 snapshot id 4294967294 parent 2 fs_parent 1 unlinked deleted" },
		{ "04000000feffffff 0010000000000000 0000000000000000" ZEROES_16 "8f8e352d00000000",
		  VERSION_NEWEST_KNOWN,
		  { .is_unlinked = true, .snapshot = 0xfffffffe, .inode = 4096 },
		  "root 4096 snapshot id 4294967294 parent 0 fs_parent 0 unlinked" },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct key_context ctx = test_context(cases[i].version);
		struct bkey_ref k = key_of_hex(KEY_SUBVOLUME, ID(1), 0, cases[i].hex);
		struct subvolume s;

		assert_key_valid(k, &ctx);
		subvolume_decode(k, &s);
		assert_int_equal(s.is_readonly, cases[i].s.is_readonly);
		assert_int_equal(s.is_snapshot, cases[i].s.is_snapshot);
		assert_int_equal(s.is_unlinked, cases[i].s.is_unlinked);
		assert_int_equal(s.is_deleted, cases[i].s.is_deleted);
		assert_int_equal(s.snapshot, cases[i].s.snapshot);
		assert_true(s.inode == cases[i].s.inode);
		assert_int_equal(s.creation_parent, cases[i].s.creation_parent);
		assert_int_equal(s.fs_path_parent, cases[i].s.fs_path_parent);
		assert_true(s.otime == cases[i].s.otime);
		assert_value_text(k, &ctx, cases[i].text);
	}
}

/* The tombstone seen at 1.39 (12 §7.5), whose child has another parent by now, and one that is all stale. */
static void tombstones_may_hold_anything(void **state)
{
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);

	assert_key_valid(
		key_of_hex(KEY_SNAPSHOT, ID(4294967284), 0,
			   "04000000f8ffffff f2ffffff00000000 0000000002000000 0000000000000000 0000000000000000"),
		&ctx);
	assert_key_valid(key_of_hex(KEY_SNAPSHOT, ID(100), 0, "0400000001000000 c8000000c8000000 0000000002000000"),
			 &ctx);
}

#define SNAPSHOT(parent, child0, child1, skip0, skip1, skip2) \
	"00000000" parent child0 child1 "0000000001000000"    \
	"00000000" skip0 skip1 skip2
#define NONE "00000000"
#define N50  "32000000"
#define N60  "3c000000"
#define N100 "64000000"
#define N200 "c8000000"
#define N300 "2c010000"

static const struct bad_key bad_keys[] = {
	{ "id 0", 175, SAME_WHEN_NEWER, KEY_SNAPSHOT, ID(0), 0, SNAPSHOT(NONE, NONE, NONE, NONE, NONE, NONE) },
	{ "id of 33 bits", 175, SAME_WHEN_NEWER, KEY_SNAPSHOT, ID(1ull << 32), 0,
	  SNAPSHOT(NONE, NONE, NONE, NONE, NONE, NONE) },
	{ "inode not 0", 175, SAME_WHEN_NEWER, KEY_SNAPSHOT, BPOS(1, 100, 0), 0,
	  SNAPSHOT(NONE, NONE, NONE, NONE, NONE, NONE) },
	{ "parent below the node", 176, SAME_WHEN_NEWER, KEY_SNAPSHOT, ID(100), 0,
	  SNAPSHOT(N50, NONE, NONE, NONE, NONE, NONE) },
	{ "own parent", 176, SAME_WHEN_NEWER, KEY_SNAPSHOT, ID(100), 0, SNAPSHOT(N100, NONE, NONE, NONE, NONE, NONE) },
	{ "children in the wrong order", 177, SAME_WHEN_NEWER, KEY_SNAPSHOT, ID(100), 0,
	  SNAPSHOT(NONE, N50, N60, NONE, NONE, NONE) },
	{ "one child twice", 178, SAME_WHEN_NEWER, KEY_SNAPSHOT, ID(100), 0,
	  SNAPSHOT(NONE, N50, N50, NONE, NONE, NONE) },
	{ "child above the node", 179, SAME_WHEN_NEWER, KEY_SNAPSHOT, ID(100), 0,
	  SNAPSHOT(NONE, N200, NONE, NONE, NONE, NONE) },
	{ "own child", 179, SAME_WHEN_NEWER, KEY_SNAPSHOT, ID(100), 0, SNAPSHOT(NONE, N100, N50, NONE, NONE, NONE) },
	{ "skip list not ascending", 180, SAME_WHEN_NEWER, KEY_SNAPSHOT, ID(100), 0,
	  SNAPSHOT(N200, NONE, NONE, N200, N300, N200) },
	{ "skip list below the parent", 181, SAME_WHEN_NEWER, KEY_SNAPSHOT, ID(100), 0,
	  SNAPSHOT(N200, NONE, NONE, NONE, N60, N200) },
	{ "tree 0", 170, SAME_WHEN_NEWER, KEY_SNAPSHOT_TREE, ID(0), 0, "02000000 feffffff" },
	{ "tree of 33 bits", 170, SAME_WHEN_NEWER, KEY_SNAPSHOT_TREE, ID(1ull << 32), 0, "02000000 feffffff" },
	{ "subvolume 0", 186, SAME_WHEN_NEWER, KEY_SUBVOLUME, ID(0), 0, "00000000ffffffff 0010000000000000" },
	{ "subvolume of 32 bits", 186, SAME_WHEN_NEWER, KEY_SUBVOLUME, ID(1ull << 31), 0,
	  "00000000ffffffff 0010000000000000" },
	{ "subvolume with inode", 186, SAME_WHEN_NEWER, KEY_SUBVOLUME, BPOS(1, 1, 0), 0,
	  "00000000ffffffff 0010000000000000" },
};

static void each_rule_is_enforced(void **state) { assert_bad_keys(bad_keys, ARRAY_NR(bad_keys)); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(snapshots_decode),
		cmocka_unit_test(state_words_overrule_flags_if_they_are_known),
		cmocka_unit_test(trees_decode),
		cmocka_unit_test(subvolumes_decode),
		cmocka_unit_test(tombstones_may_hold_anything),
		cmocka_unit_test(each_rule_is_enforced),
	};

	return cmocka_run_group_tests_name("snapshot", tests, NULL, test_keys_free);
}
