/* Directory entries and extended attributes: vectors of 04 §3, §4 and 12 §7.3, ACLs, and one bad key for each rule. */
#include "key_test.h"

#include <errno.h>

#include "format/dirent.h"
#include "format/xattr.h"

#define DIR_POS	  BPOS(4096, 1000, UINT32_MAX)
#define XATTR_POS BPOS(4100, 1000, UINT32_MAX)

static void dirents_decode_and_encode(void **state)
{
	static const struct {
		const char *hex, *name;
		struct dirent d;
		const char *text;
	} cases[] = {
		{ "0110000000000000 04 6c6f73742b666f756e64 0000000000",
		  "lost+found",
		  { .type = 4, .inum = 4097 },
		  "lost+found -> 4097 type dir" },
		{ "0410000000000000 08 68656c6c6f2e747874 000000000000",
		  "hello.txt",
		  { .type = 8, .inum = 4100 },
		  "hello.txt -> 4100 type reg" },
		{ "0600000001000000 10 736e61702d726f",
		  "snap-ro",
		  { .type = DIRENT_TYPE_SUBVOL, .child_subvol = 6, .parent_subvol = 1 },
		  "snap-ro -> 6 type subvol" },
		{ "0410000000000000 0a 61000000000000", "a", { .type = 10, .inum = 4100 }, "a -> 4100 type lnk" },
	};
	struct key_context ctx = test_context(VERSION_1_4);

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct bkey_ref k = key_of_hex(KEY_DIRENT, DIR_POS, 0, cases[i].hex);
		struct fault fault;
		struct dirent d;
		uint8_t value[64];

		assert_key_valid(k, &ctx);
		assert_int_equal(dirent_decode(k, &d, &fault), 0);
		assert_int_equal(d.type, cases[i].d.type);
		assert_false(d.is_casefolded);
		assert_true(d.inum == cases[i].d.inum);
		assert_int_equal(d.child_subvol, cases[i].d.child_subvol);
		assert_int_equal(d.parent_subvol, cases[i].d.parent_subvol);
		assert_int_equal(d.name_len, strlen(cases[i].name));
		assert_memory_equal(d.name, cases[i].name, d.name_len);
		assert_ptr_equal(d.folded, d.name);
		assert_int_equal(d.folded_len, d.name_len);
		assert_int_equal(dirent_encode(&d, value, sizeof(value)), bkey_value_bytes(&k.k));
		assert_memory_equal(value, k.value, bkey_value_bytes(&k.k));
		assert_value_text(k, &ctx, cases[i].text);
	}
}

static void names_of_every_length_survive(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	uint8_t name[DIRENT_NAME_MAX + 1], value[DIRENT_NAME_MAX + 16];

	memset(name, 'x', sizeof(name));
	for (uint16_t len = 1; len <= DIRENT_NAME_MAX; len++) {
		struct dirent d = { .type = 8, .inum = 5000, .name = name, .name_len = len }, back;
		size_t bytes = dirent_encode(&d, value, sizeof(value));

		assert_int_equal(bytes, max(round_up_u64(9u + len, 8), (uint64_t)16));
		struct bkey_ref k = key_of_bytes(KEY_DIRENT, DIR_POS, 0, value, bytes);
		assert_key_valid(k, &ctx);
		assert_int_equal(dirent_decode(k, &back, NULL), 0);
		assert_int_equal(back.name_len, len);
	}
	struct dirent too_long = { .type = 8, .inum = 5000, .name = name, .name_len = DIRENT_NAME_MAX + 1 };
	assert_int_equal(dirent_encode(&too_long, value, sizeof(value)), 0);
	struct dirent empty = { .type = 8, .inum = 5000, .name = name };
	assert_int_equal(dirent_encode(&empty, value, sizeof(value)), 0);
	struct dirent fits_not = { .type = 8, .inum = 5000, .name = name, .name_len = 8 };
	assert_int_equal(dirent_encode(&fits_not, value, 16), 0);
}

static void casefolded_dirents_have_two_names(void **state)
{
	static const struct {
		const char *hex;
		uint64_t inum;
		const char *name, *folded, *text;
	} cases[] = {
		{ "0710000000000000 88 0000 0b00 0b00 53747261c39f652e545854 737472617373652e747874 000000", 4103,
		  "Stra\xc3\x9f"
		  "e.TXT",
		  "strasse.txt",
		  "Stra\xc3\x9f"
		  "e.TXT (casefold strasse.txt) -> 4103 type reg" },
		{ "0510000000000000 88 0000 0900 0d00 c384c396c39c2dc3a9 61cc886fcc8875cc882d65cc81 000000", 4101,
		  "\xc3\x84\xc3\x96\xc3\x9c-\xc3\xa9", "a\xcc\x88o\xcc\x88u\xcc\x88-e\xcc\x81",
		  "\xc3\x84\xc3\x96\xc3\x9c-\xc3\xa9 (casefold a\xcc\x88o\xcc\x88u\xcc\x88-e\xcc\x81) -> 4101 type "
		  "reg" },
	};
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct bkey_ref k = key_of_hex(KEY_DIRENT, DIR_POS, 0, cases[i].hex);
		struct dirent d;

		assert_key_valid(k, &ctx);
		assert_int_equal(dirent_decode(k, &d, NULL), 0);
		assert_true(d.is_casefolded);
		assert_int_equal(d.type, 8);
		assert_true(d.inum == cases[i].inum);
		assert_int_equal(d.name_len, strlen(cases[i].name));
		assert_memory_equal(d.name, cases[i].name, d.name_len);
		assert_int_equal(d.folded_len, strlen(cases[i].folded));
		assert_memory_equal(d.folded, cases[i].folded, d.folded_len);
		assert_value_text(k, &ctx, cases[i].text);
	}
}

static void names_cannot_steer_the_terminal(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);

	assert_value_text(key_of_hex(KEY_DIRENT, DIR_POS, 0, "0410000000000000 08 1b5b6d5cd0bf7f"), &ctx,
			  "\\x1b[m\\x5c\xd0\xbf\\x7f -> 4100 type reg");
	/* a C1 control, a surrogate, a long form, a cut character; then good ones of three and four bytes */
	assert_value_text(
		key_of_hex(KEY_DIRENT, DIR_POS, 0, "0410000000000000 08 c29b eda080 c0af e282 e282ac f09f9880 f8"),
		&ctx,
		"\\xc2\\x9b\\xed\\xa0\\x80\\xc0\\xaf\\xe2\\x82\xe2\x82\xac\xf0\x9f\x98\x80\\xf8 -> 4100 type reg");
}

static void xattrs_decode_and_encode(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k = key_of_hex(KEY_XATTR, XATTR_POS, 0, "00 03 0300 666f6f 626172 000000000000");
	uint8_t value[64];
	struct xattr x;

	assert_key_valid(k, &ctx);
	assert_int_equal(xattr_decode(k, &x, NULL), 0);
	assert_int_equal(x.type, XATTR_USER);
	assert_int_equal(x.name_len, 3);
	assert_memory_equal(x.name, "foo", 3);
	assert_int_equal(x.value_len, 3);
	assert_memory_equal(x.value, "bar", 3);
	assert_int_equal(xattr_encode(&x, value, sizeof(value)), 16);
	assert_memory_equal(value, k.value, 16);
	assert_int_equal(xattr_encode(&x, value, 15), 0);
	assert_value_text(k, &ctx, "user.foo:bar");

	/* name + value of 1996 bytes is the longest that fits a key */
	static uint8_t big[2048];
	static uint8_t big_value[2048];
	struct xattr longest = { .type = XATTR_TRUSTED, .name = big, .name_len = 96, .value = big, .value_len = 1900 };
	assert_int_equal(xattr_encode(&longest, big_value, sizeof(big_value)), 2000);
	longest.value_len++;
	assert_int_equal(xattr_encode(&longest, big_value, sizeof(big_value)), 0);

	/* room for four more bytes is no error */
	assert_key_valid(key_of_hex(KEY_XATTR, XATTR_POS, 0, "00 03 0200 666f6f 6261 00000000000000"), &ctx);
}

static void xattr_names_parse(void **state)
{
	static const struct {
		const char *full;
		int err;
		uint8_t type;
		const char *name;
	} cases[] = {
		{ "user.foo", 0, XATTR_USER, "foo" },
		{ "trusted.overlay.opaque", 0, XATTR_TRUSTED, "overlay.opaque" },
		{ "security.capability", 0, XATTR_SECURITY, "capability" },
		{ "system.posix_acl_access", 0, XATTR_ACL_ACCESS, "" },
		{ "system.posix_acl_default", 0, XATTR_ACL_DEFAULT, "" },
		{ "system.posix_acl_accessx", -EOPNOTSUPP, 0, NULL },
		{ "system.other", -EOPNOTSUPP, 0, NULL },
		{ "user.", -EOPNOTSUPP, 0, NULL },
		{ "user", -EOPNOTSUPP, 0, NULL },
		{ "", -EOPNOTSUPP, 0, NULL },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		uint8_t type = 99;
		const char *name = NULL;

		assert_int_equal(xattr_name_parse(cases[i].full, &type, &name), cases[i].err);
		if (cases[i].err)
			continue;
		assert_int_equal(type, cases[i].type);
		assert_string_equal(name, cases[i].name);
		assert_int_equal(strncmp(cases[i].full, xattr_prefix(type), strlen(xattr_prefix(type))), 0);
	}
	assert_null(xattr_prefix(XATTR_TYPE_NR));
}

#define ACL_STORED "01000000 0100 0600 0200 0700 e8030000 0400 0500 1000 0700 2000 0400"
#define ACL_USER \
	"02000000 0100 0600 ffffffff 0200 0700 e8030000 0400 0500 ffffffff 1000 0700 ffffffff 2000 0400 ffffffff"

static void acls_convert_both_ways(void **state)
{
	uint8_t stored[64], user[64], out[64];
	size_t stored_len = hex_decode(ACL_STORED, stored, sizeof(stored));
	size_t user_len = hex_decode(ACL_USER, user, sizeof(user));

	assert_int_equal(acl_to_user(stored, stored_len, out, sizeof(out)), user_len);
	assert_memory_equal(out, user, user_len);
	assert_int_equal(acl_from_user(user, user_len, out, sizeof(out)), stored_len);
	assert_memory_equal(out, stored, stored_len);

	assert_int_equal(acl_to_user(stored, stored_len, NULL, 0), user_len);
	assert_int_equal(acl_from_user(user, user_len, NULL, 0), stored_len);
	for (size_t size = 1; size < user_len; size++) {
		uint8_t *exact = malloc(size);

		assert_int_equal(acl_to_user(stored, stored_len, exact, size), -ERANGE);
		free(exact);
	}
	/* An entry ends where the whole does: every cut that isn't between two entries is refused. */
	for (size_t len = 0; len < stored_len; len++) {
		bool is_whole = len == 4 || len == 8 || len == 16 || len == 20 || len == 24;
		uint8_t *exact = exact_copy(stored, len);

		assert_int_equal(acl_to_user(exact, len, NULL, 0) < 0, !is_whole);
		free(exact);
	}
	stored[0] = 2;
	assert_int_equal(acl_to_user(stored, stored_len, out, sizeof(out)), -EINVAL);
	stored[0] = 1, stored[4] = 0x40;
	assert_int_equal(acl_to_user(stored, stored_len, out, sizeof(out)), -EINVAL);
	user[4] = 0x40;
	assert_int_equal(acl_from_user(user, user_len, out, sizeof(out)), -EINVAL);
	assert_int_equal(acl_from_user(user, user_len - 1, out, sizeof(out)), -EINVAL);
}

static void acls_print_as_upstream_does(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);

	assert_value_text(key_of_hex(KEY_XATTR, XATTR_POS, 0, "01 00 1c00" ACL_STORED), &ctx,
			  "(type 1): user_obj 6 user uid 1000 7 group_obj 5 mask 7 other 4");
}

static const struct bad_key bad_keys[] = {
	{ "no name", 219, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0, "0410000000000000 08 00000000000000" },
	{ "longer than the name", 220, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0,
	  "0410000000000000 08 61620000000000 0000000000000000" },
	{ "zero in the name", 222, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0, "0410000000000000 08 61006200000000" },
	{ "dot", 223, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0, "0410000000000000 08 2e000000000000" },
	{ "dotdot", 223, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0, "0410000000000000 08 2e2e0000000000" },
	{ "slash", 224, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0, "0410000000000000 08 612f6200000000" },
	{ "itself", 231, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0, "0010000000000000 04 61000000000000" },
	{ "casefold names past the value", 304, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0,
	  "0410000000000000 88 0000 0500 0500 61" },
	{ "casefold without a name", 219, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0,
	  "0410000000000000 88 0000 0000 0100 61" },
	{ "casefold without a folded name", 219, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0,
	  "0410000000000000 88 0000 0100 0000 61" },
	{ "bytes after the casefold names", 305, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0,
	  "0410000000000000 88 0000 0100 0100 61 61 00000000 000001" },
	{ "slash in the folded name", 224, SAME_WHEN_NEWER, KEY_DIRENT, DIR_POS, 0,
	  "0410000000000000 88 0000 0100 0100 61 2f 00000000 000000" },
	{ "xattr cut", 233, SAME_WHEN_NEWER, KEY_XATTR, XATTR_POS, 0, "00 03 0300 666f6f 62" },
	{ "xattr too long", 234, SAME_WHEN_NEWER, KEY_XATTR, XATTR_POS, 0,
	  "00 03 0300 666f6f 626172 000000000000 0000000000000000" },
	{ "xattr type 5", 235, SAME_WHEN_NEWER, KEY_XATTR, XATTR_POS, 0, "05 03 0300 666f6f 626172 000000000000" },
	{ "zero in xattr name", 236, SAME_WHEN_NEWER, KEY_XATTR, XATTR_POS, 0,
	  "00 03 0300 66006f 626172 000000000000" },
};

static void each_rule_is_enforced(void **state) { assert_bad_keys(bad_keys, ARRAY_NR(bad_keys)); }

static void a_casefolded_name_of_513_bytes_is_refused(void **state)
{
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);
	static uint8_t value[15 + 513 + 8];

	memset(value, 'a', sizeof(value));
	le64_store(value, 5000);
	value[8] = 0x88, value[9] = value[10] = 0;
	le16_store(value + 11, 513);
	le16_store(value + 13, 8);
	assert_key_fault(key_of_bytes(KEY_DIRENT, DIR_POS, 0, value, sizeof(value)), &ctx, ERROR_dirent_cf_name_too_big,
			 "513 bytes");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(dirents_decode_and_encode),
		cmocka_unit_test(names_of_every_length_survive),
		cmocka_unit_test(casefolded_dirents_have_two_names),
		cmocka_unit_test(names_cannot_steer_the_terminal),
		cmocka_unit_test(xattrs_decode_and_encode),
		cmocka_unit_test(xattr_names_parse),
		cmocka_unit_test(acls_convert_both_ways),
		cmocka_unit_test(acls_print_as_upstream_does),
		cmocka_unit_test(each_rule_is_enforced),
		cmocka_unit_test(a_casefolded_name_of_513_bytes_is_refused),
	};

	return cmocka_run_group_tests_name("dirent", tests, NULL, test_keys_free);
}
