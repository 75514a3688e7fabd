/* Options: syntax (10 §3), what superblocks store, and the vectors of 10 §12. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/strbuf.h"
#include "base/util.h"
#include "format/options.h"
#include "sb_vector.h"

static int parse(enum option_id id, const char *text, uint64_t *value)
{
	char why[256];
	struct strbuf out = strbuf_fixed(why, sizeof(why));
	int err = option_parse(id, text, NULL, value, &out);

	assert_int_equal(!!err, out.len != 0); /* an error says why */
	return err;
}

static void assert_parses(enum option_id id, const char *text, uint64_t expected)
{
	uint64_t value = ~0ull;

	if (parse(id, text, &value))
		fail_msg("%s=%s is refused", option_table[id].name, text ? text : "(no value)");
	assert_int_equal(value, expected);
}

static void assert_refused(enum option_id id, const char *text)
{
	uint64_t value;

	if (parse(id, text, &value) != -EINVAL)
		fail_msg("%s=%s is accepted", option_table[id].name, text ? text : "(no value)");
}

static void assert_prints(enum option_id id, uint64_t value, const char *expected)
{
	char text[64];
	struct strbuf out = strbuf_fixed(text, sizeof(text));

	option_to_text(&out, id, value, NULL);
	assert_string_equal(text, expected);
}

static void table_is_complete_and_consistent(void **state)
{
	for (unsigned id = 0; id < OPT_NR; id++) {
		const struct option_def *o = &option_table[id];

		assert_non_null(o->name);
		assert_non_null(o->help);
		assert_int_equal(option_id_parse(o->name), id);
		assert_true(option_is_valid(id, o->initial));
		if (o->sb.word >= 0)
			assert_true(o->sb.word < 7 && o->sb.lo < o->sb.hi && o->sb.hi <= 64);
	}
	assert_int_equal(option_id_parse("nosuchoption"), -ENOENT);
	assert_int_equal(OPT_VERSION_UPGRADE, 55);
	assert_int_equal(OPT_BTREE_NODE_PREFETCH, 65);
}

/* No two options share a bit of the superblock, nor one with the flags that aren't options. */
static void stored_fields_do_not_overlap(void **state)
{
	uint64_t used[7] = { 0 };

	used[0] = 0xff | 7ull << 60; /* initialized, clean, checksum type; error and endian flags */
	used[1] = 0xfull << 10;	     /* encryption */
	for (unsigned id = 0; id < OPT_NR; id++) {
		const struct option_def *o = &option_table[id];
		uint64_t low = o->sb.word < 0 ? 0 : bits_set(0, o->sb.lo, o->sb.hi, ~0ull);
		uint64_t high = o->sb_high.word < 0 ? 0 : bits_set(0, o->sb_high.lo, o->sb_high.hi, ~0ull);

		if (low) {
			assert_int_equal(used[o->sb.word] & low, 0);
			used[o->sb.word] |= low;
		}
		if (high) {
			assert_int_equal(used[o->sb_high.word] & high, 0);
			used[o->sb_high.word] |= high;
		}
	}
}

static void sizes_with_suffixes(void **state)
{
	static const char *const four_k[] = { "4k",  "4KiB", "4.0k", "4 k",    "4096B", "4096",
					      "+4k", "4K",   "4kiB", "4096\n", "4 KiB", "0.00390625M" };

	for (size_t i = 0; i < ARRAY_NR(four_k); i++)
		assert_parses(OPT_BTREE_NODE_SIZE, four_k[i], 4096);
	assert_parses(OPT_GC_RESERVE_BYTES, "4.5k", 4608);
	assert_parses(OPT_GC_RESERVE_BYTES, "1.5M", 1572864);
	assert_parses(OPT_GC_RESERVE_BYTES, "1G", 1ull << 30);
	assert_parses(OPT_GC_RESERVE_BYTES, "3MiB", 3 << 20);
	assert_parses(OPT_GC_RESERVE_BYTES, "15E", 15ull << 60);
	assert_parses(OPT_GC_RESERVE_BYTES, "0Y", 0);
	assert_parses(OPT_GC_RESERVE_BYTES, "18446744073709551104", UINT64_MAX - 511);

	static const char *const bad[] = { "",
					   "-4k",
					   "4kB",
					   "0x1000",
					   "4096b",
					   "4k ",
					   "4  k",
					   "4 ",
					   ".5k",
					   "4.k",
					   "4.5.",
					   "k",
					   "16E",
					   "1Y",
					   "1Z",
					   "4k4",
					   "18446744073709551616",
					   "1.0000000000000000001k",
					   "513" };
	for (size_t i = 0; i < ARRAY_NR(bad); i++)
		assert_refused(OPT_GC_RESERVE_BYTES, bad[i]);
}

static void values_refused_by_the_document(void **state)
{
	assert_refused(OPT_METADATA_REPLICAS, "4");
	assert_refused(OPT_METADATA_REPLICAS, "0");
	assert_refused(OPT_METADATA_REPLICAS, "2k");
	assert_refused(OPT_ENCODED_EXTENT_MAX, "2M");
	assert_refused(OPT_ENCODED_EXTENT_MAX, "100k");
	assert_refused(OPT_BTREE_NODE_SIZE, "1M");
	assert_refused(OPT_GC_RESERVE_PERCENT, "4");
	assert_refused(OPT_GC_RESERVE_PERCENT, "21");
	assert_refused(OPT_COMPRESSION, "zstd:16");
	assert_refused(OPT_COMPRESSION, "none:1");
	assert_refused(OPT_COMPRESSION, "zst");
	assert_refused(OPT_COMPRESSION, "zstd:");
	assert_refused(OPT_COMPRESSION, "zstd:5x");
	assert_refused(OPT_ACL, "yes");
	assert_refused(OPT_ACL, "2");
	assert_refused(OPT_ACL, "");
	assert_refused(OPT_JOURNAL_FLUSH_DELAY, "0");
	assert_refused(OPT_JOURNAL_FLUSH_DELAY, "4294967295");
	assert_refused(OPT_MOVE_IOS_IN_FLIGHT, "1024");
	assert_refused(OPT_DATA_CHECKSUM, NULL);
	assert_refused(OPT_DATA_CHECKSUM, "CRC32C");
	assert_refused(OPT_ERRORS, "remount");
	assert_refused(OPT_DURABILITY, "3");
	assert_refused(OPT_FOREGROUND_TARGET, "ssd"); /* no superblock to look it up in */
}

static void values_accepted_by_the_document(void **state)
{
	assert_parses(OPT_ACL, NULL, 1);
	assert_parses(OPT_ACL, "0", 0);
	assert_parses(OPT_COMPRESSION, "lz4", 0x01);
	assert_parses(OPT_COMPRESSION, "zstd", 0x03);
	assert_parses(OPT_COMPRESSION, "zstd:5", 0x53);
	assert_parses(OPT_COMPRESSION, "gzip:9", 0x92);
	assert_parses(OPT_COMPRESSION, "zstd:15", 0xf3);
	assert_parses(OPT_COMPRESSION, "none:0", 0);
	assert_parses(OPT_ERRORS, "panic", OPTION_ERRORS_PANIC);
	assert_parses(OPT_FIX_ERRORS, NULL, OPTION_FIX_ERRORS_YES);
	assert_parses(OPT_FIX_ERRORS, "ask", OPTION_FIX_ERRORS_ASK);
	assert_parses(OPT_FOREGROUND_TARGET, "none", TARGET_NONE);
	assert_parses(OPT_FOREGROUND_TARGET, "", TARGET_NONE);
	assert_parses(OPT_SB, "2056", 2056);
	assert_parses(OPT_JOURNAL_RECLAIM_DELAY, "0", 0);
}

static void values_print_as_people_read_them(void **state)
{
	assert_prints(OPT_BLOCK_SIZE, 4096, "4.00 KiB");
	assert_prints(OPT_GC_RESERVE_BYTES, 0, "0 B");
	assert_prints(OPT_ENCODED_EXTENT_MAX, 65536, "64.0 KiB");
	assert_prints(OPT_COMPRESSION, 0x53, "zstd:5");
	assert_prints(OPT_COMPRESSION, 0, "none");
	assert_prints(OPT_ERRORS, 1, "ro");
	assert_prints(OPT_ACL, 1, "1");
	assert_prints(OPT_JOURNAL_FLUSH_DELAY, 1000, "1000");
	assert_prints(OPT_FOREGROUND_TARGET, 3, "dev 2");
	assert_prints(OPT_FIX_ERRORS, 3, "ask");
}

static void set(struct sb_disk *sb, enum option_id id, const char *text)
{
	uint64_t value;

	assert_int_equal(option_parse(id, text, sb, &value, NULL), 0);
	assert_int_equal(option_to_sb(id, sb, value), 0);
}

/* Every option that is stored gets its default, as format does it. */
static void set_defaults(struct sb_disk *sb, const char *node_size)
{
	for (unsigned id = 0; id < OPT_NR; id++)
		if (option_is_stored(id))
			assert_int_equal(option_to_sb(id, sb, option_table[id].initial), 0);
	set(sb, OPT_BTREE_NODE_SIZE, node_size);
}

static void assert_flags(const struct sb_disk *sb, const uint64_t expected[7])
{
	for (unsigned i = 0; i < 7; i++)
		assert_int_equal(le64_get(sb->flags[i]), expected[i]);
}

static void defaults_are_stored_as_format_does(void **state)
{
	struct sb_disk sb = { 0 };

	set_defaults(&sb, "128k");
	assert_flags(&sb, (const uint64_t[7]){ 0x0111110080100100, 0x000000000111c102, 0, 0x000000fa30000000,
					       0x0000000100000064 });
	assert_int_equal(le16_get(sb.block_size), 8);
	set(&sb, OPT_ENCODED_EXTENT_MAX, "1M");
	assert_int_equal(le64_get(sb.flags[1]), 0x000000000112c102);
	set(&sb, OPT_GC_RESERVE_BYTES, "1G");
	assert_int_equal(le64_get(sb.flags[2]), 2097152ull << 4);
}

/* disk_groups: ssd, ssd.fast, ssd.slow, hdd */
static void append_groups(struct sb_buffer *b)
{
	static const struct {
		const char *label;
		uint64_t flags;
	} groups[] = { { "ssd", 0x3e }, { "fast", 0x7e }, { "slow", 0x7e }, { "hdd", 0x3e } };
	uint8_t *s = sb_append_empty(b, SB_DISK_GROUPS, 1 + 4 * 6);

	for (unsigned i = 0; i < ARRAY_NR(groups); i++) {
		memcpy(s + 8 + i * 48, groups[i].label, strlen(groups[i].label));
		le64_store(s + 8 + i * 48 + 32, groups[i].flags);
	}
	sb_seal(&b->sb, CHECKSUM_CRC32C_NONZERO);
}

static void targets_and_compression_are_stored_as_upstream_does(void **state)
{
	static struct sb_buffer b;
	struct sb_disk *sb = &b.sb;

	sb_vector_init(&b);
	append_groups(&b);
	memset(sb->flags, 0, sizeof(sb->flags));
	set_defaults(sb, "128k");
	set(sb, OPT_METADATA_REPLICAS, "2");
	set(sb, OPT_DATA_REPLICAS, "2");
	set(sb, OPT_COMPRESSION, "zstd:5");
	set(sb, OPT_BACKGROUND_COMPRESSION, "lz4");
	set(sb, OPT_FOREGROUND_TARGET, "ssd");
	set(sb, OPT_PROMOTE_TARGET, "ssd.fast");
	set(sb, OPT_METADATA_TARGET, "hdd");
	assert_int_equal(option_to_sb(OPT_BACKGROUND_TARGET, sb, 3), 0);
	assert_flags(sb, (const uint64_t[7]){ 0x0122110080100100, 0x003101102111c132, 1, 0x000000fa31040000,
					      0x0500000100000064 });

	char text[64];
	struct strbuf out = strbuf_fixed(text, sizeof(text));
	bool in_range;
	option_to_text(&out, OPT_PROMOTE_TARGET, option_from_sb(OPT_PROMOTE_TARGET, sb, &in_range), sb);
	assert_string_equal(text, "ssd.fast");
	assert_int_equal(option_from_sb(OPT_COMPRESSION, sb, &in_range), 0x53);
	assert_int_equal(option_from_sb(OPT_PROMOTE_TARGET, sb, &in_range), 258);

	uint64_t value;
	assert_int_equal(option_parse(OPT_FOREGROUND_TARGET, "ssd.none", sb, &value, NULL), -EINVAL);
	assert_int_equal(option_parse(OPT_FOREGROUND_TARGET, "fast", sb, &value, NULL), -EINVAL);
	assert_int_equal(option_parse(OPT_FOREGROUND_TARGET, "ssd.", sb, &value, NULL), -EINVAL);
	assert_int_equal(option_parse(OPT_FOREGROUND_TARGET, "dev 1", sb, &value, NULL), -EINVAL);
	assert_int_equal(option_parse(OPT_FOREGROUND_TARGET, "dev 0", sb, &value, NULL), 0);
	assert_int_equal(value, 1);
}

static void set_option_changes_only_its_bits(void **state)
{
	struct sb_disk sb = { 0 };
	bool in_range;

	set_defaults(&sb, "128k");
	sb.flags[0] = le64_of(le64_get(sb.flags[0]) | 7);
	set(&sb, OPT_COMPRESSION, "zstd:15");
	set(&sb, OPT_ERRORS, "continue");
	set(&sb, OPT_JOURNAL_FLUSH_DELAY, "500");
	set(&sb, OPT_VERSION_UPGRADE, "none");
	set(&sb, OPT_DATA_REPLICAS, "2");
	assert_int_equal(le64_get(sb.flags[0]), 0x0121110080100007);
	assert_int_equal(le64_get(sb.flags[1]), 0x000000000111c132);
	assert_int_equal(le64_get(sb.flags[4]), 0x0f80000100000064);
	assert_int_equal(option_from_sb(OPT_JOURNAL_FLUSH_DELAY, &sb, &in_range), 500);
	assert_true(in_range);
}

static void every_stored_value_reads_back(void **state)
{
	for (unsigned id = 0; id < OPT_NR; id++) {
		const struct option_def *o = &option_table[id];
		struct sb_disk sb = { 0 };
		bool in_range;

		if (!option_is_stored(id)) {
			assert_int_equal(option_to_sb(id, &sb, o->initial), -EINVAL);
			continue;
		}
		set_defaults(&sb, "256k");
		const uint64_t values[] = { o->min, o->max, o->initial };
		for (size_t i = 0; i < ARRAY_NR(values); i++) {
			/* Zero delays read as 1000. */
			if (!option_is_valid(id, values[i]) || (id == OPT_JOURNAL_RECLAIM_DELAY && !values[i]))
				continue;
			/* The field has 60 bits of sectors, less than the range of values. */
			if (id == OPT_GC_RESERVE_BYTES && values[i] == o->max)
				continue;
			assert_int_equal(option_to_sb(id, &sb, values[i]), 0);
			assert_int_equal(option_from_sb(id, &sb, &in_range), values[i]);
			assert_true(in_range);
		}
	}
}

static void stored_values_out_of_range_are_noticed(void **state)
{
	static const struct {
		enum option_id id;
		uint8_t word, lo, hi;
		uint64_t stored;
	} bad[] = {
		{ OPT_ERRORS, 0, 8, 12, 3 },
		{ OPT_ERRORS, 0, 8, 12, 4 },
		{ OPT_BTREE_NODE_SIZE, 0, 12, 28, 0 },
		{ OPT_BTREE_NODE_SIZE, 0, 12, 28, 384 },
		{ OPT_BTREE_NODE_SIZE, 0, 12, 28, 2048 },
		{ OPT_METADATA_CHECKSUM, 0, 40, 44, 4 },
		{ OPT_METADATA_CHECKSUM, 0, 40, 44, 5 },
		{ OPT_METADATA_REPLICAS, 0, 48, 52, 0 },
		{ OPT_METADATA_REPLICAS, 0, 48, 52, 4 },
		{ OPT_METADATA_REPLICAS_REQUIRED, 1, 20, 24, 4 },
		{ OPT_GC_RESERVE_PERCENT, 0, 28, 33, 4 },
		{ OPT_ROOT_RESERVE_PERCENT, 0, 33, 40, 100 },
		{ OPT_STR_HASH, 1, 0, 4, 3 },
		{ OPT_STR_HASH, 1, 0, 4, 4 },
		{ OPT_COMPRESSION, 1, 4, 8, 4 },
		{ OPT_COMPRESSION, 4, 56, 60, 3 },
		{ OPT_ENCODED_EXTENT_MAX, 1, 14, 20, 2 },
		{ OPT_ENCODED_EXTENT_MAX, 1, 14, 20, 12 },
		{ OPT_ENCODED_EXTENT_MAX, 1, 14, 20, 63 },
		{ OPT_ERASURE_CODE, 3, 0, 16, 2 },
		{ OPT_GC_RESERVE_BYTES, 2, 4, 64, 1ull << 55 },
	};

	for (size_t i = 0; i < ARRAY_NR(bad); i++) {
		struct sb_disk sb = { 0 };
		bool in_range = true;

		set_defaults(&sb, "256k");
		sb.flags[bad[i].word] =
			le64_of(bits_set(le64_get(sb.flags[bad[i].word]), bad[i].lo, bad[i].hi, bad[i].stored));
		assert_int_equal(option_from_sb(bad[i].id, &sb, &in_range), option_table[bad[i].id].initial);
		assert_false(in_range);
	}
}

static void delays_of_zero_read_as_a_second(void **state)
{
	struct sb_disk sb = { 0 };
	bool in_range;

	assert_int_equal(option_from_sb(OPT_JOURNAL_FLUSH_DELAY, &sb, &in_range), 1000);
	assert_true(in_range);
	assert_int_equal(option_from_sb(OPT_JOURNAL_RECLAIM_DELAY, &sb, &in_range), 1000);
	assert_true(in_range);
}

static void newer_formats_have_larger_extents(void **state)
{
	struct sb_disk sb = { .version = le16_of(VERSION(1, 39)) };
	bool in_range;

	sb.flags[1] = le64_of(12 << 14);
	assert_int_equal(option_from_sb(OPT_ENCODED_EXTENT_MAX, &sb, &in_range), 2 << 20);
	assert_true(in_range);
}

/* What the manual page has to say of an option: two lines of which the second goes on with prose. */
static void page_entry(enum option_id id, struct strbuf *entry)
{
	const struct option_def *o = &option_table[id];
	const struct {
		bool is_one;
		const char *name;
	} places[] = { { o->where & OPTION_FORMAT, "format" },
		       { o->where & OPTION_MOUNT && option_is_stored(id), "set-option" },
		       { o->where & OPTION_MOUNT, "mount" },
		       { o->where & OPTION_INODE, "file" } };
	const char *between = "";

	strbuf_printf(entry, "*%s*=", o->name);
	option_values_to_text(entry, id);
	strbuf_add(entry, "\n\tdefault ");
	option_default_to_text(entry, id);
	strbuf_add(entry, "; ");
	for (size_t i = 0; i < ARRAY_NR(places); i++)
		if (places[i].is_one) {
			strbuf_printf(entry, "%s%s", between, places[i].name);
			between = ", ";
		}
	strbuf_add(entry, ". ");
}

static void the_manual_page_knows_every_option(void **state)
{
	static char page[1 << 16];
	const char *folder = getenv("KILN_TEST_MAN");
	unsigned expected = 0, found = 0;

	if (!folder)
		skip();
	struct strbuf path = strbuf_growing();
	strbuf_printf(&path, "%s/kiln-options.7.scd", folder);
	FILE *f = fopen(strbuf_text(&path), "r");
	strbuf_free(&path);
	assert_non_null(f);
	size_t len = fread(page, 1, sizeof(page) - 1, f);
	fclose(f);
	assert_in_range(len, 1, sizeof(page) - 2);

	for (unsigned id = 0; id < OPT_NR; id++) {
		struct strbuf entry = strbuf_growing();

		if (!(option_table[id].where & (OPTION_FORMAT | OPTION_MOUNT | OPTION_INODE)))
			continue;
		page_entry(id, &entry);
		if (!strstr(page, strbuf_text(&entry)))
			fail_msg("kiln-options.7.scd lacks: %s", strbuf_text(&entry));
		strbuf_free(&entry);
		expected++;
	}
	for (const char *p = page; (p = strstr(p, "\n\tdefault ")); p++)
		found++;
	assert_int_equal(found, expected);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(table_is_complete_and_consistent),
		cmocka_unit_test(stored_fields_do_not_overlap),
		cmocka_unit_test(sizes_with_suffixes),
		cmocka_unit_test(values_refused_by_the_document),
		cmocka_unit_test(values_accepted_by_the_document),
		cmocka_unit_test(values_print_as_people_read_them),
		cmocka_unit_test(defaults_are_stored_as_format_does),
		cmocka_unit_test(targets_and_compression_are_stored_as_upstream_does),
		cmocka_unit_test(set_option_changes_only_its_bits),
		cmocka_unit_test(every_stored_value_reads_back),
		cmocka_unit_test(stored_values_out_of_range_are_noticed),
		cmocka_unit_test(delays_of_zero_read_as_a_second),
		cmocka_unit_test(newer_formats_have_larger_extents),
		cmocka_unit_test(the_manual_page_knows_every_option),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
