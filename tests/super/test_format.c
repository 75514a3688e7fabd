/* Promises of super/format.h: against the documents' superblocks, and one that upstream made. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../format/sb_vector.h"
#include "fixtures.h"
#include "format/alloc.h"
#include "format/sb_sections.h"
#include "fs_build.h"
#include "super/format.h"

static struct reports reports;
static struct report_sink sink;
static char why[512];

/* Options by name, as a command line gives them. */
struct given {
	uint64_t options[OPT_NR];
	bool set[OPT_NR];
	const char *targets[OPT_NR];
	struct super_format_opts opts;
};

static void give(struct given *g, const char *name, const char *value)
{
	int id = option_id_parse(name);

	assert_true(id >= 0);
	if (option_table[id].type == OPTION_TARGET) {
		g->targets[id] = value;
		return;
	}
	assert_int_equal(option_parse((enum option_id)id, value, NULL, &g->options[id], NULL), 0);
	g->set[id] = true;
}

static const struct super_format_opts *given_opts(struct given *g)
{
	g->opts.options = g->options;
	g->opts.options_set = g->set;
	g->opts.targets = g->targets;
	return &g->opts;
}

static struct device *memory(const char *name, uint64_t size)
{
	struct device *dev;

	assert_int_equal(device_open_memory(name, size, 512, &dev), 0);
	return dev;
}

static const uint64_t MIB = 1 << 20;

static struct sb_disk *copy_at(struct device *dev, uint64_t sector)
{
	static uint8_t buf[65536] __attribute__((aligned(8)));

	assert_int_equal(device_read(dev, sector * 512, buf, sizeof(buf)), 0);
	assert_int_equal(sb_check_header((struct sb_disk *)buf, NULL), 0);
	assert_int_equal(sb_verify((struct sb_disk *)buf, NULL), 0);
	assert_int_equal(sb_validate((struct sb_disk *)buf, false, NULL), 0);
	assert_int_equal(le64_get(((struct sb_disk *)buf)->offset), sector);
	return (struct sb_disk *)buf;
}

static struct super *open_write(struct device **devices, size_t nr)
{
	struct super *s;
	struct super_open_opts opts = { .is_write = true, .devices = devices, .device_nr = nr };

	sink = reports_sink(&reports);
	assert_int_equal(super_open(NULL, 0, &opts, NULL, &sink, &s), 0);
	return s;
}

static void the_documents_superblock_comes_out_byte_by_byte(void **state)
{
	static struct sb_buffer want;
	static const uint64_t sums[3][2] = { { 8, 0x84e108c3 }, { 2056, 0x2bcdd2f1 }, { 129024, 0x02288158 } };
	struct given g = { 0 };
	uint8_t member[1][16], layout[512];
	struct device *dev = memory("a", 64 * MIB);
	struct super_format_device d = { .dev = dev, .durability = 1 };

	sb_vector_init(&want);
	for (unsigned i = 0; i < 16; i++)
		member[0][i] = (uint8_t)(0xa0 + i);
	g.opts = (struct super_format_opts){ .label = "kiln",
					     .uuid = want.sb.uuid,
					     .user_uuid = want.sb.user_uuid,
					     .member_uuids = (const uint8_t(*)[16])member,
					     .time_ns = 1700000000ull * 1000000000 };
	assert_int_equal(super_format(&d, 1, given_opts(&g), why), 0);
	for (unsigned i = 0; i < 3; i++) {
		struct sb_disk *sb = copy_at(dev, sums[i][0]);

		assert_int_equal(le64_load(sb->csum), sums[i][1]);
		assert_int_equal(sb_bytes(sb), SB_VECTOR_BYTES);
		memcpy(sb->csum, want.sb.csum, 16);
		sb->offset = want.sb.offset;
		assert_memory_equal(sb, want.bytes, SB_VECTOR_BYTES);
	}
	assert_int_equal(device_read(dev, 3584, layout, sizeof(layout)), 0);
	assert_memory_equal(layout, &want.sb.layout, sizeof(layout));
	assert_int_equal(d.bucket_bytes, 128 << 10);
	assert_int_equal(d.size_bytes, 64 * MIB);
	device_close(dev);
}

static void sizes_are_chosen_as_documented(void **state)
{
	static const struct {
		uint64_t size, bucket;
	} cases[] = { { 7, 64 << 10 },		{ 8, 128 << 10 },	  { 64, 128 << 10 },
		      { 1 << 10, 128 << 10 },	{ 2 << 10, 256 << 10 },	  { 32 << 10, 256 << 10 },
		      { 200 << 10, 256 << 10 }, { 512 << 10, 512 << 10 }, { 3 << 20, 512 << 10 } };

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct given g = { 0 };
		struct device *dev = memory("a", cases[i].size * MIB);
		struct super_format_device d = { .dev = dev, .durability = 1 };

		assert_int_equal(super_format(&d, 1, given_opts(&g), why), 0);
		assert_int_equal(d.bucket_bytes, cases[i].bucket);
		assert_int_equal(SB_BTREE_NODE_SECTORS(copy_at(dev, 8)) * 512ull,
				 min(d.bucket_bytes, (uint64_t)256 << 10));
		device_close(dev);
	}
}

static void options_are_stored_as_documented(void **state)
{
	struct given g = { 0 };
	struct device *devs[4];
	struct super_format_device d[4] = { { .label = "ssd.fast", .durability = 2, .has_discard = true },
					    { .label = "ssd.slow", .durability = 0, .has_discard = true },
					    { .label = "hdd",
					      .durability = 1,
					      .has_discard = true,
					      .data_allowed = 1 << DATA_JOURNAL | 1 << DATA_BTREE },
					    { .durability = 1 } };
	static const uint64_t flags[4] = { 0x302e4000, 0x103e4000, 0x20464000, 0x200e0000 };

	for (unsigned i = 0; i < 4; i++)
		d[i].dev = devs[i] = memory((const char *[]){ "/dev/a", "/dev/b", "/dev/c", "/dev/d" }[i], 64 * MIB);
	give(&g, "metadata_replicas", "2");
	give(&g, "data_replicas", "2");
	give(&g, "foreground_target", "ssd");
	give(&g, "promote_target", "ssd.fast");
	give(&g, "background_target", "/dev/c");
	give(&g, "metadata_target", "hdd");
	assert_int_equal(super_format(d, 4, given_opts(&g), why), 0);

	struct sb_disk *sb = copy_at(devs[2], 8);
	assert_int_equal(sb->dev_idx, 2);
	assert_int_equal(sb->nr_devices, 4);
	assert_int_equal(le64_get(sb->flags[0]), 0x0122110080100104); /* and the checksum's type */
	/* The groups are numbered ssd 0, ssd.fast 1, ssd.slow 2, hdd 3. */
	assert_int_equal(le64_get(sb->flags[1]), 0x003101102111c102);
	assert_int_equal(le64_get(sb->flags[3]), 0x000000fa31040000);
	assert_int_equal(sb_section_bytes(sb_section(sb, SB_DISK_GROUPS)), 200);
	for (unsigned i = 0; i < 4; i++) {
		struct member m;

		sb_member(sb, i, &m);
		assert_int_equal(m.flags, flags[i]);
	}
	struct super *s = open_write(devs, 4);
	assert_int_equal(s->members[1].m.durability, 0);
	super_close(s);
}

static void other_options_and_sizes(void **state)
{
	struct given g = { 0 };
	struct device *dev = memory("a", 64 * MIB);
	struct super_format_device d = {
		.dev = dev, .durability = 1, .bucket_bytes = 96 << 10, .size_bytes = 32 * MIB
	};

	give(&g, "block_size", "512");
	give(&g, "errors", "panic");
	give(&g, "str_hash", "crc32c");
	give(&g, "metadata_checksum", "crc64");
	give(&g, "data_checksum", "xxhash");
	give(&g, "encoded_extent_max", "1M");
	give(&g, "gc_reserve_bytes", "1G");
	give(&g, "acl", "0");
	g.opts.superblock_bytes = 256 << 10;
	assert_int_equal(super_format(&d, 1, given_opts(&g), why), 0);

	struct sb_disk *sb = copy_at(dev, 8);
	bool in_range;
	assert_int_equal(le16_get(sb->block_size), 1);
	assert_int_equal(SB_CSUM_TYPE(sb), CHECKSUM_CRC64_NONZERO);
	assert_int_equal(sb->layout.sb_max_size_bits, 9);
	assert_int_equal(SB_BTREE_NODE_SECTORS(sb), 128); /* the power of two below the bucket size */
	assert_int_equal(option_from_sb(OPT_ENCODED_EXTENT_MAX, sb, &in_range), 1 << 20);
	assert_int_equal(option_from_sb(OPT_DATA_CHECKSUM, sb, &in_range), 3);
	assert_int_equal(option_from_sb(OPT_ERRORS, sb, &in_range), 2);
	assert_int_equal(option_from_sb(OPT_STR_HASH, sb, &in_range), 0);
	assert_int_equal(option_from_sb(OPT_ACL, sb, &in_range), 0);
	assert_int_equal(le64_get(sb->flags[2]), 2097152ull << 4);
	struct member m;
	sb_member(sb, 0, &m);
	assert_int_equal(m.nbuckets, 32 * MIB / (96 << 10));
	uint64_t last = le64_get(sb->layout.sb_offset[2]);
	assert_int_equal(last, (32 * MIB - (256 << 10)) / (96 << 10) * 192);
	copy_at(dev, last);
	copy_at(dev, 8 + 512);
	device_close(dev);
}

static void nonsense_is_refused_with_a_sentence(void **state)
{
	static const struct {
		const char *option, *value;
		struct super_format_device d;
		unsigned size_mib;
		const char *says;
		int err;
	} cases[] = {
		{ "metadata_replicas", "2", { .durability = 1 }, 64, "can hold only 1", -EINVAL },
		{ "data_replicas_required", "2", { .durability = 1 }, 64, "required", -EINVAL },
		{ "block_size", "8k", { .durability = 1 }, 64, "512 bytes to 4 KiB", -EINVAL },
		{ "btree_node_size", "512", { .durability = 1 }, 64, "at least 8 blocks", -EINVAL },
		{ "btree_node_size",
		  "256k",
		  { .durability = 1, .bucket_bytes = 128 << 10 },
		  64,
		  "can't hold btree",
		  -EINVAL },
		{ "block_size",
		  "512",
		  { .durability = 1, .bucket_bytes = 8 << 10 },
		  64,
		  "with 1 device and 1 replica they need at least 16.0 KiB",
		  -EINVAL },
		{ NULL, NULL, { .durability = 1, .bucket_bytes = 100000 }, 64, "multiple of the block", -EINVAL },
		{ NULL, NULL, { .durability = 1, .bucket_bytes = 2 << 20 }, 64, "only 32 buckets", -ENOSPC },
		{ NULL, NULL, { .durability = 1, .bucket_bytes = 32 << 20 }, 4096, "as large as", -EINVAL },
		{ NULL, NULL, { .durability = 1, .size_bytes = 1ull << 40 }, 64, "less than the size", -EINVAL },
		{ NULL, NULL, { .durability = 1 }, 2, "three superblocks", -ENOSPC },
		{ NULL, NULL, { .durability = 3 }, 64, "durability", -EINVAL },
		{ NULL, NULL, { .durability = 0 }, 64, "No device may hold", -EINVAL },
		{ NULL, NULL, { .durability = 1, .data_allowed = 1 << DATA_BTREE }, 64, "hold the journal", -EINVAL },
		{ NULL, NULL, { .durability = 1, .label = "a..b" }, 64, "is no label", -EINVAL },
		{ "foreground_target", "ssd", { .durability = 1 }, 64, "foreground_target: 'ssd'", -EINVAL },
		{ "erasure_code", "1", { .durability = 1 }, 64, "erasure_code", -EOPNOTSUPP },
		{ "verbose", "1", { .durability = 1 }, 64, "verbose", -EINVAL },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct given g = { 0 };
		struct super_format_device d = cases[i].d;
		uint8_t head[8192] = { 0 }, zero[8192] = { 0 };

		d.dev = memory("a", cases[i].size_mib * MIB);
		if (cases[i].option)
			give(&g, cases[i].option, cases[i].value);
		assert_int_equal(super_format(&d, 1, given_opts(&g), why), cases[i].err);
		if (!strstr(why, cases[i].says))
			fail_msg("'%s' doesn't say '%s'", why, cases[i].says);
		assert_int_equal(device_read(d.dev, 0, head, sizeof(head)), 0);
		assert_memory_equal(head, zero, sizeof(head));
		device_close(d.dev);
	}
}

static void old_signatures_are_gone(void **state)
{
	struct given g = { 0 };
	struct device *dev = memory("a", 64 * MIB + 192 * 512);
	struct super_format_device d = { .dev = dev, .durability = 1 };
	uint8_t *buf = io_buffer_alloc(MIB);

	memset(buf, 0xee, MIB);
	for (uint64_t at = 0; at < dev->size_bytes; at += MIB)
		assert_int_equal(device_write(dev, at, buf, min(MIB, dev->size_bytes - at)), 0);
	assert_int_equal(super_format(&d, 1, given_opts(&g), why), 0);
	static const uint64_t places[] = { 0, 1024, 65536, MIB, 64 * MIB - 4096, 64 * MIB + 191 * 512 };
	for (size_t i = 0; i < ARRAY_NR(places); i++) {
		assert_int_equal(device_read(dev, places[i], buf, 512), 0);
		for (unsigned k = 0; k < 512; k++)
			assert_int_equal(buf[k], 0);
	}
	assert_int_equal(device_read(dev, 16 * MIB, buf, 512), 0);
	assert_int_equal(buf[0], 0xee);
	io_buffer_free(buf);
	device_close(dev);
}

static void assert_journal(const struct super *s, unsigned dev, uint64_t start, uint64_t nr)
{
	uint64_t have_start, have_nr;

	assert_int_equal(sb_journal_range_nr(s->members[dev].sb), 1);
	sb_journal_range(s->members[dev].sb, 0, &have_start, &have_nr);
	assert_int_equal(have_start, start);
	assert_int_equal(have_nr, nr);
}

static void journals_get_the_lowest_buckets(void **state)
{
	struct given g = { 0 };
	struct device *devs[] = { memory("a", 64 * MIB), memory("b", 256 * MIB) };
	struct super_format_device d[] = { { .dev = devs[0], .durability = 1 }, { .dev = devs[1], .durability = 1 } };

	assert_int_equal(super_journal_bucket_nr(2048, 256, 512, 1, 1), 16);
	assert_int_equal(super_journal_bucket_nr(1536, 256, 512, 1, 1), 12);
	assert_int_equal(super_journal_bucket_nr(64, 256, 512, 1, 1), 8);
	assert_int_equal(super_journal_bucket_nr(1024, 64, 512, 1, 1), 32);
	assert_int_equal(super_journal_bucket_nr(512, 64, 512, 1, 1), 16);
	/* Nodes of few blocks. */
	assert_int_equal(super_journal_bucket_nr(1024, 64, 8, 1, 1), 64);
	assert_int_equal(super_journal_bucket_nr(8192, 128, 64, 8, 1), 256);
	assert_int_equal(super_journal_bucket_nr(8192, 128, 256, 8, 1), 64);
	assert_int_equal(super_journal_bucket_nr(8192, 512, 64, 8, 1), 64);
	/* And many of them in a bucket: a sixteenth of the device, up to 32 MiB. */
	assert_int_equal(super_journal_bucket_nr(192, 128, 8, 1, 1), 12);
	assert_int_equal(super_journal_bucket_nr(192, 128, 8, 1, 2), 24);
	assert_int_equal(super_journal_bucket_nr(96, 256, 8, 1, 1), 8);
	assert_int_equal(super_journal_bucket_nr(512, 256, 8, 1, 1), 32);
	assert_int_equal(super_journal_bucket_nr(8192, 256, 8, 1, 1), 256);
	assert_int_equal(super_journal_bucket_nr(1 << 30, 256, 512, 8, 1), 8192);
	assert_int_equal(super_journal_bucket_nr(1 << 30, 4096, 512, 8, 1), 4096);

	assert_int_equal(super_format(d, 2, given_opts(&g), why), 0);
	struct super *s = open_write(devs, 2);
	assert_int_equal(super_journals_init(s), 0);
	assert_journal(s, 0, 17, 8);
	assert_journal(s, 1, 17, 16);
	unsigned superblock_buckets = 0;
	for (unsigned b = 0; b < 512; b++)
		superblock_buckets += super_bucket_has_superblock(&s->members[0].sb->layout, 256, b);
	assert_int_equal(superblock_buckets, 25);
	super_close(s);
}

/* Superblocks go through the whole life of a first mount and come out as upstream's do. */
static void first_mount_makes_what_upstream_makes(void **state)
{
	struct given g = { 0 };
	struct fixture f;
	struct super *theirs, *ours;
	struct super_open_opts opts = { .is_without_uring = true };
	static const uint8_t devs[] = { 0 };
	const uint8_t *begin, *end;
	uint64_t seq;

	fixtures_require();
	struct device *dev = memory("a", 256 * MIB);
	struct super_format_device d = { .dev = dev, .durability = 1 };

	fixture_unpack(&f, "v1.4-formatted");
	sink = reports_sink(&reports);
	assert_int_equal(super_open(f.paths, f.nr, &opts, NULL, &sink, &theirs), 0);
	assert_true(sb_clean(theirs->sb, &seq, &begin, &end));

	assert_int_equal(super_format(&d, 1, given_opts(&g), why), 0);
	ours = open_write(&dev, 1);
	assert_int_equal(super_journals_init(ours), 0);
	assert_int_equal(super_replicas_mark(ours, DATA_BTREE, 1, devs, 1), 0);
	assert_int_equal(super_replicas_mark(ours, DATA_JOURNAL, 1, devs, 1), 0);
	assert_int_equal(super_member_flags_set(ours, 0, MEMBER_FLAG_FREESPACE_INITIALIZED,
						MEMBER_FLAG_FREESPACE_INITIALIZED + 1, 1),
			 0);
	assert_int_equal(super_mark_initialized(ours), 0);
	assert_int_equal(super_mark_clean(ours, seq, begin, (unsigned)(end - begin) / 8, NULL, 0), 0);

	const struct sb_disk *a = theirs->sb, *b = ours->members[0].sb;
	for (unsigned i = 0; i < 7; i++)
		assert_int_equal(le64_get(a->flags[i]), le64_get(b->flags[i]));
	assert_memory_equal(a->features, b->features, sizeof(a->features));
	assert_memory_equal(a->compat, b->compat, sizeof(a->compat));
	assert_memory_equal(&a->layout, &b->layout, sizeof(a->layout));
	assert_int_equal(sb_bytes(a), sb_bytes(b));
	assert_int_equal(theirs->members[0].m.flags, ours->members[0].m.flags);
	assert_int_equal(theirs->members[0].m.nbuckets, ours->members[0].m.nbuckets);
	for (unsigned type = 0; type < SB_SECTION_NR_KNOWN; type++) {
		const struct sb_section_disk *x = sb_section(a, type), *y = sb_section(b, type);

		assert_int_equal(!x, !y);
		if (!x)
			continue;
		assert_int_equal(sb_section_bytes(x), sb_section_bytes(y));
		if (type != SB_MEMBERS_V1 && type != SB_MEMBERS_V2 && type != SB_COUNTERS && type != SB_REPLICAS_V0)
			assert_memory_equal(x, y, sb_section_bytes(x));
	}
	super_close(theirs);
	super_close(ours);
	fixture_remove(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_documents_superblock_comes_out_byte_by_byte),
		cmocka_unit_test(sizes_are_chosen_as_documented),
		cmocka_unit_test(options_are_stored_as_documented),
		cmocka_unit_test(other_options_and_sizes),
		cmocka_unit_test(nonsense_is_refused_with_a_sentence),
		cmocka_unit_test(old_signatures_are_gone),
		cmocka_unit_test(journals_get_the_lowest_buckets),
		cmocka_unit_test(first_mount_makes_what_upstream_makes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
