/* Superblock: the vectors of 01 §15, and that each rule of 01 §9.3 and 12 §1.4 is kept. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/strbuf.h"
#include "base/util.h"
#include "format/alloc.h"
#include "format/options.h"
#include "format/sb_edit.h"
#include "format/sb_sections.h"
#include "sb_vector.h"

static int validate(struct sb_buffer *b, struct fault *fault)
{
	int err;

	sb_seal(&b->sb, CHECKSUM_CRC32C_NONZERO);
	if ((err = sb_check_header(&b->sb, fault)) || (err = sb_verify(&b->sb, fault)))
		return err;
	return sb_validate(&b->sb, false, fault);
}

static void assert_valid(struct sb_buffer *b)
{
	struct fault fault;

	if (validate(b, &fault))
		fail_msg("refused: %s should be %s, is %s", fault.field, fault.expected, fault.found);
}

/* Refused with @err, and the fault is about @field. */
static void assert_refused(struct sb_buffer *b, int err, const char *field)
{
	struct fault fault = { 0 };

	assert_int_equal(validate(b, &fault), err);
	assert_string_equal(fault.field, field);
	assert_true(fault.expected[0] && fault.found[0]);
}

static void put_flag(struct sb_buffer *b, unsigned word, unsigned lo, unsigned hi, uint64_t value)
{
	b->sb.flags[word] = le64_of(bits_set(le64_get(b->sb.flags[word]), lo, hi, value));
}

static void make_newer(struct sb_buffer *b) { b->sb.version = b->sb.version_min = le16_of(VERSION(1, 39)); }

/* --- the vector --- */

static void vector_is_valid(void **state)
{
	static struct sb_buffer b;
	struct fault fault;

	sb_vector_init(&b);
	assert_int_equal(sb_bytes(&b.sb), SB_VECTOR_BYTES);
	assert_int_equal(sb_check_header(&b.sb, &fault), 0);
	assert_int_equal(sb_verify(&b.sb, &fault), 0);
	assert_int_equal(sb_validate(&b.sb, false, &fault), 0);
	assert_int_equal(sb_layout_validate(&b.sb.layout, &fault), 0);

	b.bytes[0x250] ^= 1;
	assert_int_equal(sb_verify(&b.sb, &fault), -KILN_E_CHECKSUM);
}

static void vector_has_these_checksums(void **state)
{
	static const struct {
		unsigned type;
		uint64_t sector, csum;
	} vectors[] = {
		{ 1, 8, 0x84e108c3 },	      { 1, 2056, 0x2bcdd2f1 },
		{ 1, 129024, 0x02288158 },    { 2, 8, 0x6ceaa57c276de48d },
		{ 5, 8, 0x7349e6ae },	      { 6, 8, 0x5bf90a68bb77dcb6 },
		{ 7, 8, 0x46e380d0fe96d3be }, { 0, 8, 0 },
	};
	static struct sb_buffer b;

	for (size_t i = 0; i < ARRAY_NR(vectors); i++) {
		sb_vector_init(&b);
		b.sb.offset = le64_of(vectors[i].sector);
		sb_seal(&b.sb, vectors[i].type);
		assert_int_equal(checksum_load(b.sb.csum).lo, vectors[i].csum);
		assert_int_equal(checksum_load(b.sb.csum).hi, 0);
		assert_int_equal(SB_CSUM_TYPE(&b.sb), vectors[i].type);
		assert_int_equal(sb_verify(&b.sb, NULL), 0);
	}
}

static void checksum_types_that_superblocks_never_have(void **state)
{
	static const unsigned types[] = { 3, 4, 8, 63 };
	static struct sb_buffer b;

	for (size_t i = 0; i < ARRAY_NR(types); i++) {
		sb_vector_init(&b);
		put_flag(&b, 0, 2, 8, types[i]);
		assert_int_equal(sb_verify(&b.sb, NULL), -KILN_E_CHECKSUM);
	}
}

static void vector_decodes(void **state)
{
	static struct sb_buffer b;
	struct key_context ctx;
	struct member m;
	bool in_range;

	sb_vector_init(&b);
	assert_false(SB_INITIALIZED(&b.sb));
	assert_false(SB_CLEAN_FLAG(&b.sb));
	assert_int_equal(SB_BTREE_NODE_SECTORS(&b.sb), 256);
	assert_int_equal(SB_ENCRYPTION_TYPE(&b.sb), 0);
	assert_int_equal(sb_upgrade_complete(&b.sb), VERSION_1_4);
	assert_true(sb_has_feature(&b.sb, SB_FEATURE_NEW_SIPHASH));
	assert_false(sb_has_feature(&b.sb, SB_FEATURE_LZ4));
	assert_int_equal(option_from_sb(OPT_ENCODED_EXTENT_MAX, &b.sb, &in_range), 65536);

	sb_member(&b.sb, 0, &m);
	assert_true(m.exists);
	assert_int_equal(m.nbuckets, 512);
	assert_int_equal(m.bucket_sectors, 256);
	assert_int_equal(m.state, MEMBER_RW);
	assert_int_equal(m.durability, 1);
	assert_int_equal(m.data_allowed, 1 << DATA_JOURNAL | 1 << DATA_BTREE | 1 << DATA_USER);
	assert_int_equal(m.uuid[15], 0xaf);
	sb_member(&b.sb, 1, &m);
	assert_false(m.exists);

	sb_key_context(&b.sb, false, &ctx);
	assert_int_equal(ctx.version, VERSION_1_4);
	assert_int_equal(ctx.block_sectors, 8);
	assert_int_equal(ctx.node_sectors, 256);
	assert_int_equal(ctx.backpointer_shift, 10);
	assert_int_equal(ctx.time_base_ns, 1700000000000000000);
	assert_int_equal(ctx.time_precision_ns, 1);
	assert_false(ctx.is_newer);
}

static void member_flags_decode(void **state)
{
	static const struct {
		uint64_t flags;
		bool discard, freespace;
		uint8_t data_allowed, durability;
		uint16_t group;
	} vectors[] = {
		{ 0x600e0000, false, true, 0x1c, 1, 0 },  { 0x702e4000, true, true, 0x1c, 2, 2 },
		{ 0x503e4000, true, true, 0x1c, 0, 3 },	  { 0x60464000, true, true, 0x0c, 1, 4 },
		{ 0x000e0000, false, false, 0x1c, 1, 0 }, /* old: durability not stored */
	};
	static struct sb_buffer b;

	sb_vector_init(&b);
	for (size_t i = 0; i < ARRAY_NR(vectors); i++) {
		struct member m;

		le64_store(b.bytes + 0x300 + 40, vectors[i].flags);
		sb_member(&b.sb, 0, &m);
		assert_int_equal(m.has_discard, vectors[i].discard);
		assert_int_equal(m.is_freespace_initialized, vectors[i].freespace);
		assert_int_equal(m.data_allowed, vectors[i].data_allowed);
		assert_int_equal(m.durability, vectors[i].durability);
		assert_int_equal(m.group, vectors[i].group);
	}
}

static void members_v1_serves_when_v2_is_absent(void **state)
{
	static struct sb_buffer b;
	struct member m;

	sb_vector_init(&b);
	memmove(b.bytes + 0x2f0, b.bytes + 0x380, 64);
	b.sb.u64s = le32_of(8);
	le32_store(b.bytes + 0x2f0 + 8 + 52, 77); /* iops[1], the last it has */
	assert_valid(&b);
	sb_member(&b.sb, 0, &m);
	assert_true(m.exists);
	assert_int_equal(m.nbuckets, 512);
	assert_int_equal(m.iops[1], 77);
	assert_int_equal(m.iops[2], 0);
	assert_int_equal(m.seq, 0);
}

static void text_of_the_vector(void **state)
{
	static struct sb_buffer b;
	struct strbuf out = strbuf_growing();

	sb_vector_init(&b);
	sb_to_text(&out, &b.sb, true, ~0u);
	static const char *const lines[] = {
		"External UUID:                              11111111-2222-3333-4444-555555555555\n",
		"Internal UUID:                              00112233-4455-6677-8899-aabbccddeeff\n",
		"Magic number:                               c68573f6-66ce-90a9-d96a-60cf803df7ef\n",
		"Label:                                      kiln\n",
		"Version:                                    1.4: member_seq\n",
		"Version upgrade complete:                   0.0: (unknown version)\n",
		"Created:                                    Tue Nov 14 22:13:20 2023\n",
		"Time of last write:                         Thu Jan  1 00:00:00 1970\n",
		"Superblock size:                            960\n",
		"Sections:                                   members_v1,members_v2\n",
		"\nOptions:\n  block_size:                               4.00 KiB\n",
		"  errors:                                   continue [ro] panic \n",
		"  compression:                              none\n",
		"\nlayout:\n  Type:                    0\n  Superblock max size:     1.00 MiB\n",
		"  Offsets:                 8, 2056, 129024\n",
		"\nmembers_v2 (size 144):\nDevice:                                     0\n",
		"  Size:                                     64.0 MiB\n",
		"  Last mount:                               (never)\n",
		"  Data allowed:                             journal,btree,user\n",
		"  Has data:                                 (none)\n",
		"\nmembers_v1 (size 64):\n",
	};
	for (size_t i = 0; i < ARRAY_NR(lines); i++)
		if (!strstr(strbuf_text(&out), lines[i]))
			fail_msg("missing: %s in:\n%s", lines[i], strbuf_text(&out));
	assert_null(strstr(strbuf_text(&out), "casefold"));

	strbuf_reset(&out);
	sb_to_text(&out, &b.sb, false, 1u << SB_MEMBERS_V1);
	assert_null(strstr(strbuf_text(&out), "layout:"));
	assert_null(strstr(strbuf_text(&out), "members_v2 ("));
	strbuf_free(&out);
}

/* --- sections --- */

static void assert_section_prints(struct sb_buffer *b, unsigned type, const char *expected)
{
	struct strbuf out = strbuf_growing();

	sb_section_to_text(&out, &b->sb, sb_section(&b->sb, type));
	assert_string_equal(strbuf_text(&out), expected);
	strbuf_free(&out);
}

static void journal_sections(void **state)
{
	static struct sb_buffer b;
	uint64_t start, nr;

	sb_vector_init(&b);
	sb_append(&b, "03000000 00000000 2a00000000000000 0700000000000000");
	assert_valid(&b);
	assert_int_equal(sb_journal_range_nr(&b.sb), 2);
	sb_journal_range(&b.sb, 1, &start, &nr);
	assert_int_equal(start, 7);
	assert_int_equal(nr, 1);

	sb_append(&b, "03000000 09000000 1100000000000000 0800000000000000");
	assert_valid(&b);
	assert_int_equal(sb_journal_range_nr(&b.sb), 1);
	sb_journal_range(&b.sb, 0, &start, &nr);
	assert_int_equal(start, 17);
	assert_int_equal(nr, 8);
	assert_section_prints(&b, SB_JOURNAL_V2, "Buckets:  17-25\n");
	assert_section_prints(&b, SB_JOURNAL, "Buckets:  42 7\n");
}

static void replicas_sections(void **state)
{
	static struct sb_buffer b;
	struct replicas_entry e;

	sb_vector_init(&b);
	sb_append(&b, "02000000 03000000 03 01 00 02 01 00 00 00");
	assert_valid(&b);
	struct replicas_walk w = sb_replicas_walk(&b.sb);
	assert_int_equal(sb_replicas_next(&w, &e, NULL), 1);
	assert_true(e.data_type == DATA_BTREE && e.nr_devs == 1 && e.nr_required == 1 && e.devs[0] == 0);
	assert_int_equal(sb_replicas_next(&w, &e, NULL), 1);
	assert_true(e.data_type == DATA_JOURNAL && e.nr_devs == 1 && e.devs[0] == 0);
	assert_int_equal(sb_replicas_next(&w, &e, NULL), 0);
	assert_section_prints(&b, SB_REPLICAS_V0, "btree: 1 [0] journal: 1 [0]\n");

	sb_append(&b, "02000000 07000000 04 01 00 00 00000000");
	w = sb_replicas_walk(&b.sb);
	assert_int_equal(sb_replicas_next(&w, &e, NULL), 1);
	assert_true(e.data_type == DATA_USER && e.nr_required == 0);
	assert_valid(&b);
	assert_section_prints(&b, SB_REPLICAS, "user: 0/1 [0]\n");
}

static void replicas_rules(void **state)
{
	static const struct {
		const char *hex, *field;
	} bad[] = {
		{ "02000000 03000000 03 07 00 02 01 00 00 00", "replicas entry" },
		{ "02000000 03000000 03 00 02 01 00 00 00 00", "replicas nr_devs" },
		{ "02000000 03000000 0a 01 00 00 00 00 00 00", "replicas data_type" },
		{ "02000000 03000000 03 01 01 00 00 00 00 00", "replicas devs" },
		{ "02000000 03000000 03 02 00 00 00 00 00 00", "replicas devs" },
		{ "02000000 03000000 03 01 00 03 01 00 00 00", "replicas entries" },
		{ "02000000 07000000 03 01 02 00 00 00 00 00", "replicas nr_required" },
		{ "02000000 07000000 03 01 00 00 03 01 00 00", "replicas entries" },
		{ "02000000 07000000 03 01 00 00 03 01 01 00", NULL },
	};
	static struct sb_buffer b;

	for (size_t i = 0; i < ARRAY_NR(bad); i++) {
		sb_vector_init(&b);
		sb_append(&b, bad[i].hex);
		if (bad[i].field)
			assert_refused(&b, -KILN_E_INVALID, bad[i].field);
		else
			assert_valid(&b);
	}
}

static void replicas_of_newer_formats(void **state)
{
	static struct sb_buffer b;
	struct replicas_entry e;

	sb_vector_init(&b);
	make_newer(&b);
	/* an unknown data type, a device that is gone, "no device" twice */
	sb_append(&b, "03000000 03000000 0c 01 00 04 02 07 00 04 03 00 ff ff 00 00 00 00");
	assert_valid(&b);
	struct replicas_walk w = sb_replicas_walk(&b.sb);
	assert_int_equal(sb_replicas_next(&w, &e, NULL), 1);
	assert_true(e.data_type == DATA_USER && e.nr_devs == 2 && e.devs[0] == 7);
	assert_int_equal(sb_replicas_next(&w, &e, NULL), 1);
	assert_int_equal(e.nr_devs, 3);
	assert_int_equal(sb_replicas_next(&w, &e, NULL), 0);
}

static void blacklist_section(void **state)
{
	static struct sb_buffer b;
	uint64_t start, end;

	sb_vector_init(&b);
	uint8_t *s =
		sb_append(&b, "05000000 08000000 0a00000000000000 1200000000000000 1200000000000000 1400000000000000");
	assert_valid(&b);
	assert_int_equal(sb_blacklist_nr(&b.sb), 2);
	sb_blacklist_range(&b.sb, 0, &start, &end);
	assert_true(start == 10 && end == 18);
	assert_section_prints(&b, SB_JOURNAL_SEQ_BLACKLIST, "10-18 18-20\n");

	s[24] = 0x11; /* overlaps the first */
	assert_refused(&b, -KILN_E_INVALID, "journal_seq_blacklist");
	s[24] = 0x14; /* empty */
	assert_refused(&b, -KILN_E_INVALID, "journal_seq_blacklist");
}

static void put_group(uint8_t *section, unsigned idx, const char *label, unsigned parent, bool is_deleted)
{
	uint8_t *p = section + 8 + idx * 48;

	memset(p, 0, 48);
	memcpy(p, label, strlen(label));
	le64_store(p + 32, 0x3e | (uint64_t)parent << 6 | is_deleted);
}

static void disk_groups_section(void **state)
{
	static struct sb_buffer b;
	char path[64];

	sb_vector_init(&b);
	uint8_t *s = sb_append_empty(&b, SB_DISK_GROUPS, 1 + 4 * 6);
	put_group(s, 0, "ssd", 0, false);
	put_group(s, 1, "fast", 1, false);
	put_group(s, 2, "slow", 1, false);
	put_group(s, 3, "hdd", 0, false);
	le64_store(b.bytes + 0x300 + 40, 0x702e4000); /* member 0: ssd.fast */
	assert_valid(&b);
	assert_int_equal(sb_disk_group_nr(&b.sb), 4);

	struct strbuf out = strbuf_fixed(path, sizeof(path));
	sb_target_to_text(&out, &b.sb, 259);
	assert_string_equal(path, "ssd.slow");
	strbuf_reset(&out);
	sb_target_to_text(&out, &b.sb, 261);
	assert_string_equal(path, "invalid label 4");
	strbuf_reset(&out);
	sb_target_to_text(&out, &b.sb, 1);
	assert_string_equal(path, "dev 0");
	strbuf_reset(&out);
	sb_target_to_text(&out, &b.sb, 2);
	assert_string_equal(path, "invalid dev 1");
	assert_section_prints(&b, SB_DISK_GROUPS,
			      "[parent 0 name ssd] [parent 1 name fast] [parent 1 name slow] [parent 0 name hdd]\n");

	put_group(s, 1, "fast", 1, true);
	assert_refused(&b, -KILN_E_INVALID, "member group");
	put_group(s, 1, "slow", 1, false);
	assert_refused(&b, -KILN_E_INVALID, "disk group labels");
	put_group(s, 1, "", 1, false);
	assert_refused(&b, -KILN_E_INVALID, "disk group label");
	put_group(s, 1, "fast", 3, false);
	put_group(s, 2, "slow", 2, false); /* 1 and 2 are each other's parents */
	assert_refused(&b, -KILN_E_INVALID, "disk group parents");
	put_group(s, 1, "fast", 6, false);
	assert_refused(&b, -KILN_E_INVALID, "disk group parent");
	put_group(s, 0, "ssd", 0, true);
	put_group(s, 1, "fast", 1, false);
	assert_refused(&b, -KILN_E_INVALID, "disk group parent");
}

static void errors_ext_and_downgrade_sections(void **state)
{
	static struct sb_buffer b;
	struct sb_downgrade d;
	struct sb_error error;
	struct sb_ext ext;

	sb_vector_init(&b);
	sb_append(&b, "070000000c000000 4a000100000000009891006b00000000 d8000100000000009891006b00000000"
		      "e5000100000000009891006b00000000");
	sb_append(&b, "0b0000000d000000 20fc3eff05000000 0000000000000000 0000000000000000 0000000000000000"
		      "0000000000000003 0000000000001000 0000000000000000 0000000000000000 0000000000000000"
		      "0000000000000000");
	uint8_t *s = sb_append(&b, "040000000e000000 0504 0000000900000000 0000000000000000 0200 d100 e700");
	assert_valid(&b);

	assert_int_equal(sb_error_nr(&b.sb, SB_ERRORS), 3);
	sb_error(&b.sb, SB_ERRORS, 2, &error);
	assert_true(error.id == 229 && error.count == 1 && error.last_time == 1795199384);
	assert_section_prints(&b, SB_ERRORS,
			      "fs_usage_nr_inodes_wrong                    1               Fri Nov 20 18:29:44 2026\n"
			      "extent_in_missing_inode                     1               Fri Nov 20 18:29:44 2026\n"
			      "dirent_to_missing_inode                     1               Fri Nov 20 18:29:44 2026\n");

	sb_ext(&b.sb, &ext);
	assert_int_equal(ext.passes_required[0], 0x5ff3efc20);
	for (unsigned id = 0; id < 512; id++)
		assert_int_equal(ext.errors_silent[id / 64] >> id % 64 & 1, id == 184 || id == 185 || id == 244);

	struct sb_downgrade_walk w = sb_downgrade_walk(&b.sb);
	assert_int_equal(sb_downgrade_next(&w, &d, NULL), 1);
	assert_int_equal(d.version, VERSION(1, 5));
	assert_int_equal(d.passes[0], 1ull << 24 | 1ull << 27);
	assert_int_equal(d.error_nr, 2);
	assert_int_equal(le16_load(d.errors), 209);
	assert_int_equal(le16_load(d.errors + 2), 231);
	assert_int_equal(sb_downgrade_next(&w, &d, NULL), 0);
	assert_section_prints(&b, SB_DOWNGRADE,
			      "version:                                    1.5: subvolume_fs_parent\n"
			      "recovery passes:                            check_inodes,check_dirents\n"
			      "errors:                                     inode_wrong_nlink,dirent_to_itself\n");

	s[26] = 3; /* one error more than there is room for */
	assert_refused(&b, -KILN_E_INVALID, "downgrade nr_errors");
	s[26] = 2;
	s[9] = 8; /* version 2.5 */
	assert_refused(&b, -KILN_E_INVALID, "downgrade version");
}

static void downgrade_of_a_newer_format(void **state)
{
	static struct sb_buffer b;

	sb_vector_init(&b);
	make_newer(&b);
	sb_append(&b, "080000000e000000 2604 0004000000000000 0000000000000000 0300 7c00 7200 7b00"
		      "2704 2088000000000000 0000000000000000 0300 8300 6900 1001 00000000");
	assert_valid(&b);
	assert_section_prints(
		&b, SB_DOWNGRADE,
		"version:                                    1.38: need_discard_by_journal_seq\n"
		"recovery passes:                            check_alloc_info\n"
		"errors:                                     need_discard_freespace_key_bad,need_discard_key_wrong,"
		"need_discard_freespace_key_to_invalid_dev_bucket\n"
		"version:                                    1.39: per_dev_fragmentation_lru\n"
		"recovery passes:                            check_allocations,check_lrus,check_alloc_to_lru_refs\n"
		"errors:                                     lru_entry_bad,alloc_key_to_missing_lru_entry,"
		"accounting_mismatch\n");
}

static void error_ids_ascend_and_count(void **state)
{
	static struct sb_buffer b;

	sb_vector_init(&b);
	uint8_t *s =
		sb_append(&b, "050000000c000000 4a000100000000009891006b00000000 d8000100000000009891006b00000000");
	s[24] = 0x4a;
	assert_refused(&b, -KILN_E_INVALID, "errors ids");
	s[24] = 0x4b;
	s[26] = 0;
	assert_refused(&b, -KILN_E_INVALID, "errors count");
}

static void sections_of_newer_formats(void **state)
{
	static struct sb_buffer b;
	struct key_context ctx;
	struct sb_error error;

	sb_vector_init(&b);
	make_newer(&b);
	sb_append(&b, "03000000 10000000 01010203010101010100000000000000");
	/* id 0x101, count 5, last 1000000, first 999999 */
	sb_append(&b, "03000000 11000000 0101050000004042 0f00003f420f0000");
	sb_append(&b, "05000000 0f000000 00000000000000000000000000000000 0a00000000000000 0700000001000000");
	put_flag(&b, 6, 40, 48, 16);
	assert_valid(&b);

	sb_key_context(&b.sb, true, &ctx);
	assert_true(ctx.is_newer && ctx.has_key);
	assert_int_equal(ctx.entry_type_u64s[3], 3);
	assert_int_equal(ctx.entry_type_u64s[8], 1);
	assert_int_equal(ctx.entry_type_u64s[9], 0);
	assert_int_equal(ctx.backpointer_shift, 16);

	sb_error(&b.sb, SB_ERRORS_V2, 0, &error);
	assert_int_equal(error.id, 0x101);
	assert_int_equal(error.count, 5);
	assert_int_equal(error.last_time, 1000000);
	assert_int_equal(error.first_time, 999999);

	struct sb_recovery_pass p;
	sb_recovery_pass(&b.sb, 1, &p);
	assert_true(p.last_run == 10 && p.last_runtime == 7 && p.is_not_ratelimited);
	sb_recovery_pass(&b.sb, 2, &p);
	assert_int_equal(p.last_run, 0);
}

static void quota_counters_and_clean_sections(void **state)
{
	static struct sb_buffer b;
	const uint8_t *begin, *end;
	struct sb_quota q;
	uint64_t seq;

	sb_vector_init(&b);
	assert_false(sb_quota(&b.sb, &q));
	assert_false(sb_clean(&b.sb, &seq, &begin, &end));

	uint8_t *s = sb_append_empty(&b, SB_QUOTA, 10);
	le32_store(s + 8 + 24 + 8, 604800); /* group, space */
	s = sb_append_empty(&b, SB_COUNTERS, 4);
	le64_store(s + 16, 42);
	s = sb_append_empty(&b, SB_CLEAN, 5);
	le64_store(s + 16, 58);
	assert_valid(&b);

	assert_true(sb_quota(&b.sb, &q));
	assert_int_equal(q.timelimit_seconds[1][0], 604800);
	assert_int_equal(q.timelimit_seconds[1][1], 0);
	assert_int_equal(sb_counter_nr(&b.sb), 3);
	assert_int_equal(sb_counter(&b.sb, 1), 42);
	assert_int_equal(sb_counter(&b.sb, 3), 0);
	assert_true(sb_clean(&b.sb, &seq, &begin, &end));
	assert_int_equal(seq, 58);
	assert_int_equal(end - begin, 16);
}

static void too_short_sections(void **state)
{
	static const struct {
		unsigned type;
		uint32_t u64s;
	} shorts[] = { { SB_CRYPT, 7 }, { SB_QUOTA, 9 }, { SB_CLEAN, 2 }, { SB_EXT, 10 } };
	static struct sb_buffer b;

	for (size_t i = 0; i < ARRAY_NR(shorts); i++) {
		sb_vector_init(&b);
		sb_append_empty(&b, shorts[i].type, shorts[i].u64s);
		assert_refused(&b, -KILN_E_INVALID, sb_section_name(shorts[i].type));
		sb_vector_init(&b);
		sb_append_empty(&b, shorts[i].type, shorts[i].u64s + 1);
		assert_valid(&b);
	}
}

static void unknown_and_repeated_sections_are_ignored(void **state)
{
	static struct sb_buffer b;

	sb_vector_init(&b);
	sb_append_empty(&b, SB_EXT, 11);
	sb_append_empty(&b, SB_EXT, 3); /* would be too short */
	sb_append_empty(&b, 4711, 2);
	assert_valid(&b);
	assert_int_equal(sb_section_bytes(sb_section(&b.sb, SB_EXT)), 88);
	assert_non_null(sb_section(&b.sb, 4711));
	assert_null(sb_section_name(4711));
}

/* --- crypt --- */

static void put_uuid(struct sb_buffer *b, const char *hex) { hex_bytes(hex, b->sb.uuid, 16); }

static void passphrase_unwraps_the_key(void **state)
{
	static const struct {
		const char *uuid, *sealed, *passphrase, *key;
	} vectors[] = {
		{ "ba58868346594143a74e8ff25809b214",
		  "0d802eb9a63db912c823d364334d08c601c928505fa0590a9a301bdf00ce4125c2776064e071027d", "secret",
		  "71012c7900f3399f45cf50e05f742504262d22714fc843aad00a2d77ea8c0bde" },
		{ "1eceb76b89aa462b8d9102994e9843c3",
		  "7cea28e2c199567231cbf3ee5727b3f0e6447ec76ff395564a99864bbde8aa4aa813d5036699e33b", "secret123",
		  "af568bc58d83e68422192f9132188f72faab17d32deca9ff33ef99aa0a858f61" },
	};
	static struct sb_buffer b;

	for (size_t i = 0; i < ARRAY_NR(vectors); i++) {
		struct crypt_key key, expected, user_key;
		struct sb_crypt c;

		sb_vector_init(&b);
		put_uuid(&b, vectors[i].uuid);
		assert_false(sb_crypt(&b.sb, &c));
		uint8_t *s = sb_append(&b, "0800000002000000 0000000000000000 0e00030004000000");
		hex_bytes(vectors[i].sealed, s + 24, 40);
		assert_valid(&b);

		assert_true(sb_crypt(&b.sb, &c));
		assert_true(c.is_sealed);
		assert_true(c.scrypt_log2_n == 14 && c.scrypt_log2_r == 3 && c.scrypt_log2_p == 4);
		hex_bytes(vectors[i].key, expected.bytes, 32);
		/* Each takes half a second, on purpose: the right one in two steps, once for all. */
		assert_int_equal(sb_crypt_derive(&c, vectors[i].passphrase, strlen(vectors[i].passphrase), &user_key),
				 0);
		assert_int_equal(sb_crypt_open(&b.sb, &c, &user_key, &key), 0);
		assert_memory_equal(key.bytes, expected.bytes, 32);
		if (i == 0)
			assert_int_equal(sb_crypt_unlock(&b.sb, &c, "Secret", 6, &key), -KILN_E_BAD_PASSPHRASE);

		/* Sealed by us it is the same, bit for bit. */
		struct sb_edit edit = { &b.sb, sizeof(b) };
		struct sb_crypt made = { 0 };
		uint8_t section[64];

		memcpy(section, s, sizeof(section));
		memset(s + 16, 0, 48);
		sb_crypt_kdf_choose(&made);
		sb_crypt_seal(&b.sb, &made, &user_key, &expected);
		assert_int_equal(sb_crypt_set(&edit, &made), 0);
		assert_memory_equal(s, section, sizeof(section));
	}
}

static void key_in_clear_needs_no_passphrase(void **state)
{
	static struct sb_buffer b;
	struct crypt_key key;
	struct sb_crypt c;

	sb_vector_init(&b);
	uint8_t *s = sb_append_empty(&b, SB_CRYPT, 8);
	memcpy(s + 24, "bch**key", 8);
	s[32] = 0x5a;
	assert_true(sb_crypt(&b.sb, &c));
	assert_false(c.is_sealed);
	assert_int_equal(sb_crypt_unlock(&b.sb, &c, NULL, 0, &key), 0);
	assert_int_equal(key.bytes[0], 0x5a);
}

static void absurd_scrypt_parameters_are_refused(void **state)
{
	static const unsigned bad[][3] = { { 0, 3, 4 },	    { 21, 3, 0 },     { 24, 0, 0 },	{ 14, 3, 11 },
					   { 65535, 3, 4 }, { 14, 65535, 4 }, { 14, 3, 65535 }, { 1, 0, 27 } };
	static struct sb_buffer b;

	sb_vector_init(&b);
	for (size_t i = 0; i < ARRAY_NR(bad); i++) {
		struct sb_crypt c = { .scrypt_log2_n = bad[i][0],
				      .scrypt_log2_r = bad[i][1],
				      .scrypt_log2_p = bad[i][2],
				      .is_sealed = true };
		struct crypt_key key;

		assert_int_equal(sb_crypt_unlock(&b.sb, &c, "x", 1, &key), -EINVAL);
	}

	struct sb_crypt other_kdf = { .kdf_type = 1, .scrypt_log2_n = 14, .is_sealed = true };
	struct crypt_key key;
	assert_int_equal(sb_crypt_unlock(&b.sb, &other_kdf, "x", 1, &key), -KILN_E_UNSUPPORTED);
}

/* --- rules --- */

enum rule_edit {
	VERSION_FIELD,
	VERSION_MIN,
	U64S,
	FEATURES0,
	FEATURES1,
	BLOCK_SIZE,
	USER_UUID,
	UUID,
	NR_DEVICES,
	DEV_IDX,
	PRECISION,
	SIZE_BITS,
	LAYOUT_TYPE,
	LAYOUT_NR,
	LAYOUT_OVERLAP,
	LAYOUT_HUGE,
	LAYOUT_MAGIC,
	MAGIC,
	BIG_ENDIAN_FLAG,
	NODE_SIZE,
	ERRORS_OPTION,
	SECTION_ZERO,
	SECTION_LONG,
	SECTION_V1_GONE,
	NBUCKETS,
	NBUCKETS_HUGE,
	FIRST_BUCKET,
	BUCKET_SIZE,
	BUCKETS_OVERFLOW,
	MEMBER_BYTES
};

static void edit(struct sb_buffer *b, enum rule_edit what, uint64_t value)
{
	uint8_t *member = b->bytes + 0x300;

	switch (what) {
	case VERSION_FIELD: b->sb.version = le16_of((uint16_t)value); break;
	case VERSION_MIN: b->sb.version_min = le16_of((uint16_t)value); break;
	case U64S: b->sb.u64s = le32_of((uint32_t)value); break;
	case FEATURES0: b->sb.features[0] = le64_of(value); break;
	case FEATURES1: b->sb.features[1] = le64_of(value); break;
	case BLOCK_SIZE: b->sb.block_size = le16_of((uint16_t)value); break;
	case USER_UUID: memset(b->sb.user_uuid, 0, 16); break;
	case UUID: memset(b->sb.uuid, 0, 16); break;
	case NR_DEVICES: b->sb.nr_devices = (uint8_t)value; break;
	case DEV_IDX: b->sb.dev_idx = (uint8_t)value; break;
	case PRECISION: b->sb.time_precision = le32_of((uint32_t)value); break;
	case SIZE_BITS: b->sb.layout.sb_max_size_bits = (uint8_t)value; break;
	case LAYOUT_TYPE: b->sb.layout.layout_type = (uint8_t)value; break;
	case LAYOUT_NR: b->sb.layout.nr_superblocks = (uint8_t)value; break;
	case LAYOUT_OVERLAP: b->sb.layout.sb_offset[1] = le64_of(value); break;
	case LAYOUT_HUGE: b->sb.layout.sb_offset[2] = le64_of(value); break;
	case LAYOUT_MAGIC: b->sb.layout.magic[4] ^= 1; break;
	case MAGIC: b->sb.magic[0] ^= 1; break;
	case BIG_ENDIAN_FLAG: put_flag(b, 0, 62, 63, 1); break;
	case NODE_SIZE: put_flag(b, 0, 12, 28, value); break;
	case ERRORS_OPTION: put_flag(b, 0, 8, 12, value); break;
	case SECTION_ZERO: le32_store(b->bytes + 0x380, 0); break;
	case SECTION_LONG: le32_store(b->bytes + 0x380, (uint32_t)value); break;
	case SECTION_V1_GONE: le32_store(b->bytes + 0x384, 999); break;
	case NBUCKETS:
	case NBUCKETS_HUGE: le64_store(member + 16, value); break;
	case FIRST_BUCKET: le16_store(member + 24, (uint16_t)value); break;
	case BUCKET_SIZE: le16_store(member + 26, (uint16_t)value); break;
	case BUCKETS_OVERFLOW: le64_store(member + 16, 1ull << 50); break;
	case MEMBER_BYTES: le16_store(b->bytes + 0x2f8, (uint16_t)value); break;
	}
}

static void every_rule_is_kept(void **state)
{
	static const struct {
		enum rule_edit what;
		uint64_t value;
		int err;
		const char *field;
	} rules[] = {
		{ MAGIC, 0, KILN_E_INVALID, "magic" },
		{ BIG_ENDIAN_FLAG, 0, KILN_E_UNSUPPORTED, "big endian flag" },
		{ VERSION_FIELD, VERSION(2, 0), KILN_E_UNSUPPORTED, "version" },
		{ VERSION_FIELD, VERSION(0, 29), KILN_E_UNSUPPORTED, "version" },
		{ VERSION_FIELD, VERSION(1, 3), KILN_E_INVALID, "version_min" },
		{ VERSION_MIN, VERSION(0, 28), KILN_E_UNSUPPORTED, "version_min" },
		{ U64S, 0x7fffffff, KILN_E_INVALID, "u64s" },
		{ U64S, UINT32_MAX, KILN_E_INVALID, "u64s" },
		{ SIZE_BITS, 17, KILN_E_INVALID, "sb_max_size_bits" },
		{ SIZE_BITS, 255, KILN_E_INVALID, "sb_max_size_bits" },
		{ SIZE_BITS, 0, KILN_E_INVALID, "u64s" },
		{ FEATURES0, 1 << 19, KILN_E_UNSUPPORTED, "features" },
		{ FEATURES0, 1ull << 63, KILN_E_UNSUPPORTED, "features" },
		{ FEATURES1, 1, KILN_E_UNSUPPORTED, "features, second word" },
		{ BLOCK_SIZE, 0, KILN_E_INVALID, "block_size" },
		{ BLOCK_SIZE, 3, KILN_E_INVALID, "block_size" },
		{ BLOCK_SIZE, 16, KILN_E_INVALID, "block_size" },
		{ USER_UUID, 0, KILN_E_INVALID, "user_uuid" },
		{ UUID, 0, KILN_E_INVALID, "uuid" },
		{ NR_DEVICES, 0, KILN_E_INVALID, "nr_devices" },
		{ NR_DEVICES, 65, KILN_E_INVALID, "nr_devices" },
		{ NR_DEVICES, 2, KILN_E_INVALID, "members_v2" },
		{ DEV_IDX, 1, KILN_E_INVALID, "dev_idx" },
		{ PRECISION, 0, KILN_E_INVALID, "time_precision" },
		{ PRECISION, 1000000001, KILN_E_INVALID, "time_precision" },
		{ LAYOUT_MAGIC, 0, KILN_E_INVALID, "layout magic" },
		{ LAYOUT_TYPE, 1, KILN_E_INVALID, "layout type" },
		{ LAYOUT_NR, 0, KILN_E_INVALID, "nr_superblocks" },
		{ LAYOUT_NR, 62, KILN_E_INVALID, "nr_superblocks" },
		{ LAYOUT_OVERLAP, 2055, KILN_E_INVALID, "sb_offset" },
		{ LAYOUT_HUGE, UINT64_MAX - 100, KILN_E_INVALID, "sb_offset" },
		{ NODE_SIZE, 0, KILN_E_INVALID, "btree_node_size" },
		{ NODE_SIZE, 384, KILN_E_INVALID, "btree_node_size" },
		{ NODE_SIZE, 2048, KILN_E_INVALID, "btree_node_size" },
		{ NODE_SIZE, 4, KILN_E_INVALID, "btree_node_size" },
		{ ERRORS_OPTION, 3, KILN_E_INVALID, "errors" },
		{ SECTION_ZERO, 0, KILN_E_INVALID, "section u64s" },
		{ SECTION_LONG, 9, KILN_E_INVALID, "section u64s" },
		{ SECTION_LONG, UINT32_MAX, KILN_E_INVALID, "section u64s" },
		{ SECTION_V1_GONE, 0, KILN_E_INVALID, "sections" },
		{ NBUCKETS, 63, KILN_E_INVALID, "member nbuckets" },
		{ NBUCKETS_HUGE, 1ull << 63, KILN_E_INVALID, "member nbuckets" },
		{ BUCKETS_OVERFLOW, 0, KILN_E_INVALID, "member size" },
		{ FIRST_BUCKET, 449, KILN_E_INVALID, "member nbuckets" },
		{ FIRST_BUCKET, 600, KILN_E_INVALID, "member nbuckets" },
		{ BUCKET_SIZE, 0, KILN_E_INVALID, "member bucket_size" },
		{ BUCKET_SIZE, 128, KILN_E_INVALID, "member bucket_size" },
		{ MEMBER_BYTES, 0, KILN_E_INVALID, "members_v2" },
		{ MEMBER_BYTES, 129, KILN_E_INVALID, "members_v2" },
		{ MEMBER_BYTES, 26, KILN_E_INVALID, "member bucket_size" },
	};
	static struct sb_buffer b;

	for (size_t i = 0; i < ARRAY_NR(rules); i++) {
		struct fault fault = { 0 };

		sb_vector_init(&b);
		edit(&b, rules[i].what, rules[i].value);
		/* Before the size is known to be sane, nothing may be sealed. */
		int err = sb_check_header(&b.sb, &fault);
		if (!err)
			err = validate(&b, &fault);
		if (err != -rules[i].err || strcmp(fault.field, rules[i].field))
			fail_msg("rule %zu: expected %s about \"%s\", got %s about \"%s\"", i,
				 error_name(-rules[i].err), rules[i].field, error_name(err), fault.field);
		assert_true(fault.expected[0] && fault.found[0]);
	}
}

static void journal_bucket_rules(void **state)
{
	static const uint64_t bad[][4] = {
		{ 0, 4, 100, 1 },	   { 4, 0, 100, 1 },	      { 510, 3, 100, 1 }, { 512, 1, 100, 1 },
		{ 10, 10, 19, 2 },	   { 10, 10, 10, 10 },	      { 10, 10, 5, 6 },	  { 10, 10, 12, 1 },
		{ 1, UINT64_MAX, 100, 1 }, { UINT64_MAX, 2, 100, 1 },
	};
	static struct sb_buffer b;

	for (size_t i = 0; i < ARRAY_NR(bad); i++) {
		sb_vector_init(&b);
		uint8_t *s = sb_append_empty(&b, SB_JOURNAL_V2, 5);
		for (unsigned j = 0; j < 4; j++)
			le64_store(s + 8 + j * 8, bad[i][j]);
		assert_refused(&b, -KILN_E_INVALID, "journal buckets");
	}

	/* The order of the ring is free. */
	sb_vector_init(&b);
	uint8_t *s = sb_append_empty(&b, SB_JOURNAL_V2, 5);
	static const uint64_t good[] = { 504, 8, 17, 8 };
	for (unsigned j = 0; j < 4; j++)
		le64_store(s + 8 + j * 8, good[j]);
	assert_valid(&b);
}

static void readers_replace_options_out_of_range(void **state)
{
	static struct sb_buffer b;

	sb_vector_init(&b);
	put_flag(&b, 0, 8, 12, 3);
	put_flag(&b, 1, 4, 8, 9);
	sb_seal(&b.sb, CHECKSUM_CRC32C_NONZERO);
	assert_int_equal(sb_validate(&b.sb, false, NULL), -KILN_E_INVALID);
	assert_int_equal(sb_validate(&b.sb, true, NULL), 0);
	put_flag(&b, 0, 12, 28, 0); /* without a node size nothing can be read */
	assert_int_equal(sb_validate(&b.sb, true, NULL), -KILN_E_INVALID);
}

static void old_magic_is_accepted(void **state)
{
	static struct sb_buffer b;

	sb_vector_init(&b);
	memcpy(b.sb.magic, sb_magic_old, 16);
	memcpy(b.sb.layout.magic, sb_magic_old, 16);
	assert_valid(&b);
}

static void newer_formats_follow_relaxed_rules(void **state)
{
	static struct sb_buffer b;
	struct member m;

	/* Features up to 23. */
	sb_vector_init(&b);
	make_newer(&b);
	b.sb.features[0] = le64_of((1 << 24) - 1);
	put_flag(&b, 5, 32, 48, VERSION(1, 39));
	assert_valid(&b);
	put_flag(&b, 5, 32, 48, VERSION(1, 40));
	assert_refused(&b, -KILN_E_UNSUPPORTED, "incompatible features in use");
	put_flag(&b, 5, 32, 48, 0);
	b.sb.features[0] = le64_of(1 << 24);
	assert_refused(&b, -KILN_E_UNSUPPORTED, "features");

	/* A minor version that nobody knows yet. */
	sb_vector_init(&b);
	b.sb.version = le16_of(VERSION(1, 99));
	assert_valid(&b);

	/* Blocks of 32 KiB. */
	sb_vector_init(&b);
	make_newer(&b);
	b.sb.block_size = le16_of(64);
	assert_valid(&b);
	b.sb.block_size = le16_of(128);
	assert_refused(&b, -KILN_E_INVALID, "block_size");

	/* Without members_v1; a longer stride; a deleted slot and a free one with nothing in it. */
	sb_vector_init(&b);
	make_newer(&b);
	b.sb.u64s = le32_of(0);
	b.sb.nr_devices = 3;
	uint8_t *s = sb_append_empty(&b, SB_MEMBERS_V2, 2 + 3 * 41);
	le16_store(s + 8, 328);
	hex_bytes("a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 0002000000000000 0000 0001", s + 16, 28);
	hex_bytes("ffffffffffffffff d96a60cf803df7ef", s + 16 + 328, 16);
	memcpy(s + 16 + 144, "0123456789abcdefMODEL", 21);
	assert_valid(&b);
	sb_member(&b.sb, 0, &m);
	assert_true(m.exists);
	assert_string_equal(m.device_name, "0123456789abcdef");
	assert_string_equal(m.device_model, "MODEL");
	sb_member(&b.sb, 1, &m);
	assert_true(!m.exists && m.is_deleted);
	sb_member(&b.sb, 2, &m);
	assert_true(!m.exists && !m.is_deleted);

	/* The same at 1.4 is refused. */
	b.sb.version = b.sb.version_min = le16_of(VERSION_1_4);
	assert_refused(&b, -KILN_E_INVALID, "sections");
}

static void upgrade_complete_defaults_to_version(void **state)
{
	static struct sb_buffer b;

	sb_vector_init(&b);
	make_newer(&b);
	assert_int_equal(sb_upgrade_complete(&b.sb), VERSION(1, 39));
	put_flag(&b, 5, 0, 16, VERSION(1, 13));
	assert_int_equal(sb_upgrade_complete(&b.sb), VERSION(1, 13));

	b.sb.flags[5] = le64_of(0x04270424001e0427);
	assert_int_equal(SB_VERSION_INCOMPAT_ALLOWED(&b.sb), VERSION(1, 39));
	assert_int_equal(SB_VERSION_INCOMPAT(&b.sb), VERSION(1, 36));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(vector_is_valid),
		cmocka_unit_test(vector_has_these_checksums),
		cmocka_unit_test(checksum_types_that_superblocks_never_have),
		cmocka_unit_test(vector_decodes),
		cmocka_unit_test(member_flags_decode),
		cmocka_unit_test(members_v1_serves_when_v2_is_absent),
		cmocka_unit_test(text_of_the_vector),
		cmocka_unit_test(journal_sections),
		cmocka_unit_test(replicas_sections),
		cmocka_unit_test(replicas_rules),
		cmocka_unit_test(replicas_of_newer_formats),
		cmocka_unit_test(blacklist_section),
		cmocka_unit_test(disk_groups_section),
		cmocka_unit_test(errors_ext_and_downgrade_sections),
		cmocka_unit_test(downgrade_of_a_newer_format),
		cmocka_unit_test(error_ids_ascend_and_count),
		cmocka_unit_test(sections_of_newer_formats),
		cmocka_unit_test(quota_counters_and_clean_sections),
		cmocka_unit_test(too_short_sections),
		cmocka_unit_test(unknown_and_repeated_sections_are_ignored),
		cmocka_unit_test(passphrase_unwraps_the_key),
		cmocka_unit_test(key_in_clear_needs_no_passphrase),
		cmocka_unit_test(absurd_scrypt_parameters_are_refused),
		cmocka_unit_test(every_rule_is_kept),
		cmocka_unit_test(journal_bucket_rules),
		cmocka_unit_test(readers_replace_options_out_of_range),
		cmocka_unit_test(old_magic_is_accepted),
		cmocka_unit_test(newer_formats_follow_relaxed_rules),
		cmocka_unit_test(upgrade_complete_defaults_to_version),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
