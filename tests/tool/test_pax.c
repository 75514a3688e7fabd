/* Tar headers: what fits into a ustar header, what goes into an extended one, and how. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "tool/pax.h"

static struct kiln_stat plain_stat(void)
{
	return (struct kiln_stat){ .mode = S_IFREG | 0640, .uid = 1000, .gid = 100, .mtime = { 1234567890, 0 } };
}

static struct strbuf header(const struct pax_entry *e, const struct strbuf *records)
{
	struct strbuf out = strbuf_growing(), none = strbuf_growing();

	pax_add_header(&out, e, records ? records : &none);
	assert_int_equal(out.len % PAX_BLOCK_BYTES, 0);
	assert_false(out.truncated);
	return out;
}

/* Does the extended header that @out begins with hold @record (with its length and newline)? */
static bool has_record(const struct strbuf *out, const char *record)
{
	assert_int_equal(out->text[156], 'x');
	return memmem(out->text + PAX_BLOCK_BYTES, out->len - PAX_BLOCK_BYTES, record, strlen(record));
}

static void what_fits_needs_one_block(void **state)
{
	struct kiln_stat st = plain_stat();
	struct pax_entry e = { .type = PAX_FILE, .path = "dir/file", .st = &st, .stored_bytes = 1000 };
	struct strbuf out = header(&e, NULL);
	unsigned sum = 0;

	assert_int_equal(out.len, PAX_BLOCK_BYTES);
	assert_string_equal(out.text, "dir/file");
	assert_string_equal(out.text + 100, "0000640");
	assert_string_equal(out.text + 108, "0001750");
	assert_string_equal(out.text + 116, "0000144");
	assert_string_equal(out.text + 124, "00000001750");
	assert_string_equal(out.text + 136, "11145401322");
	assert_int_equal(out.text[156], '0');
	assert_memory_equal(out.text + 257, "ustar\00000", 8);
	for (unsigned i = 0; i < PAX_BLOCK_BYTES; i++)
		sum += i >= 148 && i < 156 ? ' ' : (unsigned char)out.text[i];
	assert_int_equal(strtoul(out.text + 148, NULL, 8), sum);
	strbuf_free(&out);
}

static void what_does_not_fit_becomes_records(void **state)
{
	struct kiln_stat st = plain_stat();
	struct pax_entry e = { .type = PAX_SYMLINK, .path = "gr\303\274n", .link = "\303\244", .st = &st };

	e.stored_bytes = 8ull << 30;
	st.uid = 4294967294;
	st.gid = 1 << 21;
	struct strbuf out = header(&e, NULL);
	assert_true(has_record(&out, "14 path=gr\303\274n\n"));
	assert_true(has_record(&out, "15 linkpath=\303\244\n"));
	assert_true(has_record(&out, "18 uid=4294967294\n"));
	assert_true(has_record(&out, "15 gid=2097152\n"));
	assert_true(has_record(&out, "19 size=8589934592\n"));
	assert_string_equal(out.text + out.len - PAX_BLOCK_BYTES + 108, "0000000");
	strbuf_free(&out);

	/* The largest that fit. */
	e = (struct pax_entry){ .type = PAX_FILE, .st = &st, .stored_bytes = (8ull << 30) - 1 };
	char path[101] = { 0 };
	memset(path, 'p', 100);
	e.path = path;
	st.uid = st.gid = (1 << 21) - 1;
	out = header(&e, NULL);
	assert_int_equal(out.len, PAX_BLOCK_BYTES);
	strbuf_free(&out);
}

static void times_are_exact_on_both_sides_of_1970(void **state)
{
	static const struct {
		struct kiln_timespec t;
		const char *record;
	} cases[] = {
		{ { 1, 5 }, "21 mtime=1.000000005\n" },
		{ { -1, 0 }, "12 mtime=-1\n" },
		{ { -1, 999999999 }, "22 mtime=-0.000000001\n" },
		{ { -86401, 999999995 }, "26 mtime=-86400.000000005\n" },
		{ { 8589934592, 0 }, "20 mtime=8589934592\n" },
	};
	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct kiln_stat st = plain_stat();
		struct pax_entry e = { .type = PAX_FILE, .path = "f", .st = &st };

		st.mtime = cases[i].t;
		struct strbuf out = header(&e, NULL);
		assert_true(has_record(&out, cases[i].record));
		strbuf_free(&out);
	}
}

static void the_length_of_a_record_counts_its_own_digits(void **state)
{
	char value[2000];

	memset(value, 'v', sizeof(value));
	for (size_t len = 0; len < sizeof(value); len++) {
		struct strbuf s = strbuf_growing();

		pax_add_record(&s, "k", value, len);
		assert_int_equal(strtoul(strbuf_text(&s), NULL, 10), s.len);
		assert_int_equal(s.text[s.len - 1], '\n');
		strbuf_free(&s);
	}
}

static void attributes_and_acls_are_what_other_tools_read(void **state)
{
	static const uint8_t acl[] = { 2,  0, 0, 0, 1,	 0,   6,   0,	255, 255, 255, 255, 2,	 0,   7,   0,  232, 3,
				       0,  0, 4, 0, 4,	 0,   255, 255, 255, 255, 8,   0,   5,	 0,   208, 7,  0,   0,
				       16, 0, 7, 0, 255, 255, 255, 255, 32,  0,	  1,   0,   255, 255, 255, 255 };
	struct strbuf s = strbuf_growing();

	assert_int_equal(pax_add_xattr(&s, "user.a=b%", "x\0y", 3), 0);
	assert_int_equal(s.len, 34);
	assert_memory_equal(s.text, "34 SCHILY.xattr.user.a%3Db%25=x\0y\n", 34);
	strbuf_reset(&s);
	assert_int_equal(pax_add_xattr(&s, "system.posix_acl_access", acl, sizeof(acl)), 0);
	assert_non_null(strstr(
		s.text, " SCHILY.acl.access=user::rw-,user:1000:rwx,group::r--,group:2000:r-x,mask::rwx,other::--x\n"));
	strbuf_reset(&s);
	/* Not an ACL: wrong version, half an entry, unknown tag. */
	uint8_t bad[sizeof(acl)];
	memcpy(bad, acl, sizeof(acl));
	bad[0] = 3;
	assert_int_equal(pax_add_xattr(&s, "system.posix_acl_default", bad, sizeof(bad)), -EINVAL);
	assert_int_equal(pax_add_xattr(&s, "system.posix_acl_default", acl, sizeof(acl) - 1), -EINVAL);
	bad[0] = 2;
	bad[4] = 3;
	assert_int_equal(pax_add_xattr(&s, "system.posix_acl_default", bad, sizeof(bad)), -EINVAL);
	assert_int_equal(s.len, 0);
	strbuf_free(&s);
}

static void sparse_files_begin_with_their_map(void **state)
{
	static const struct pax_range ranges[] = { { 4096, 512 }, { 1ull << 46, 0 } };
	struct kiln_stat st = plain_stat();
	struct pax_entry e = {
		.type = PAX_FILE, .path = "dir/sparse", .st = &st, .stored_bytes = 1024, .is_sparse = true
	};
	struct strbuf map = strbuf_growing();

	st.size = 1ull << 46;
	struct strbuf out = header(&e, NULL);
	assert_true(has_record(&out, "22 GNU.sparse.major=1\n"));
	assert_true(has_record(&out, "22 GNU.sparse.minor=0\n"));
	assert_true(has_record(&out, "30 GNU.sparse.name=dir/sparse\n"));
	assert_true(has_record(&out, "38 GNU.sparse.realsize=70368744177664\n"));
	pax_add_sparse_map(&map, ranges, ARRAY_NR(ranges));
	assert_int_equal(map.len, PAX_BLOCK_BYTES);
	assert_string_equal(map.text, "2\n4096\n512\n70368744177664\n0\n");
	strbuf_free(&map);
	strbuf_free(&out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_fits_needs_one_block),
		cmocka_unit_test(what_does_not_fit_becomes_records),
		cmocka_unit_test(times_are_exact_on_both_sides_of_1970),
		cmocka_unit_test(the_length_of_a_record_counts_its_own_digits),
		cmocka_unit_test(attributes_and_acls_are_what_other_tools_read),
		cmocka_unit_test(sparse_files_begin_with_their_map),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
