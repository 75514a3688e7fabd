/* Promises of super.h, shown on superblocks in memory. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/fiber.h"
#include "fs_build.h"
#include "super/super.h"

static struct reports reports;
static struct report_sink sink;

/* Open all devices of @fs that are there; they belong to the super afterwards, or are closed. */
static int fs_open_with(struct fs *fs, struct super_open_opts opts, struct super **s)
{
	struct device *devices[FS_DEVS_MAX];
	size_t nr = 0;

	for (unsigned i = 0; i < FS_DEVS_MAX; i++)
		if (fs->dev[i])
			devices[nr++] = fs->dev[i];
	memset(fs->dev, 0, sizeof(fs->dev));
	opts.devices = devices;
	opts.device_nr = nr;
	sink = reports_sink(&reports);
	return super_open(NULL, 0, &opts, NULL, &sink, s);
}

static int fs_open(struct fs *fs, struct super **s) { return fs_open_with(fs, (struct super_open_opts){ 0 }, s); }

static void opens_with_members_geometry_and_options(void **state)
{
	struct fs fs;
	struct super *s;
	uint64_t values[OPT_NR] = { [OPT_DATA_REPLICAS] = 3 };
	bool set[OPT_NR] = { [OPT_DATA_REPLICAS] = true };

	fs_init(&fs, 2);
	fs_write_sb(&fs);
	assert_int_equal(
		fs_open_with(&fs, (struct super_open_opts){ .mount_options = values, .mount_options_set = set }, &s),
		0);
	assert_int_equal(s->member_nr, 2);
	assert_true(super_member_online(s, 0) && super_member_online(s, 1));
	assert_false(super_member_online(s, 2));
	assert_string_equal(s->members[1].name, "dev1");
	assert_int_equal(s->members[1].sb->dev_idx, 1);
	assert_int_equal(s->geometry[1].bucket_nr, FS_BUCKETS);
	assert_ptr_equal(s->kctx.members, s->geometry);
	assert_int_equal(s->options[OPT_DATA_REPLICAS], 3);
	assert_int_equal(s->options[OPT_METADATA_REPLICAS], 1);
	assert_int_equal(s->options[OPT_BTREE_NODE_SIZE], FS_BUCKET_SECTORS * 512);
	assert_int_equal(s->options[OPT_JOURNAL_FLUSH_DELAY], 1000);
	assert_false(s->is_degraded);
	assert_string_equal(reports.text, "");
	super_close(s);
}

static void newest_copy_wins_and_disagreement_is_reported(void **state)
{
	struct fs fs;
	struct super *s;

	for (unsigned newest = 0; newest < FS_COPIES; newest++) {
		fs_init(&fs, 1);
		fs_write_sb(&fs);
		fs.seq = 9;
		fs_write_copies(&fs, 0, 1u << newest);
		assert_int_equal(fs_open(&fs, &s), 0);
		assert_int_equal(le64_get(s->sb->seq), 9);
		assert_int_equal(reports.levels[REPORT_RECOVERED], 1);
		assert_non_null(strstr(reports.text, "seq 7 at sector"));
		super_close(s);
	}
}

static void equal_copies_are_not_reported(void **state)
{
	struct fs fs;
	struct super *s;

	fs_init(&fs, 1);
	fs_write_sb(&fs);
	assert_int_equal(fs_open(&fs, &s), 0);
	assert_string_equal(reports.text, "");
	super_close(s);
}

static void damaged_primary_is_replaced_by_what_the_layout_block_lists(void **state)
{
	struct fs fs;
	struct super *s;

	fs_init(&fs, 1);
	fs_write_sb(&fs);
	fs_zero_sectors(fs.dev[0], 8, 8);
	assert_int_equal(fs_open(&fs, &s), 0);
	assert_non_null(strstr(reports.text, "copy at sector 8"));
	super_close(s);
}

static void lost_layout_block_leads_to_the_usual_places(void **state)
{
	struct fs fs;
	struct super *s;

	/* behind the primary; and with that one lost too, at the device's end */
	for (unsigned lost = 1; lost <= 2; lost++) {
		fs_init(&fs, 1);
		fs_write_sb(&fs);
		fs_zero_sectors(fs.dev[0], 0, 16);
		if (lost == 2)
			fs_zero_sectors(fs.dev[0], 2056, 8);
		assert_int_equal(fs_open(&fs, &s), 0);
		super_close(s);
	}
}

static void guessed_copy_must_name_its_sector(void **state)
{
	struct fs fs;
	struct super *s;
	uint8_t buf[8192] __attribute__((aligned(4096))) = { 0 };

	fs_init(&fs, 1);
	fs_write_sb(&fs);
	fs_zero_sectors(fs.dev[0], 0, 16);
	fs_zero_sectors(fs.dev[0], fs_copy_sector(2), 8);
	fs_sb_make(&fs, 0, 8, buf);
	assert_int_equal(device_write(fs.dev[0], 2056 * 512, buf, sizeof(buf)), 0);
	assert_int_equal(fs_open(&fs, &s), -KILN_E_INVALID);
	assert_non_null(strstr(reports.text, "the sector it was found at"));
}

static void device_without_any_copy_is_refused_with_advice(void **state)
{
	struct fs fs;
	struct super *s;

	fs_init(&fs, 1);
	assert_int_equal(fs_open(&fs, &s), -KILN_E_INVALID);
	assert_int_equal(reports.levels[REPORT_FATAL], 1);
	assert_non_null(strstr(reports.text, "--sb"));
	assert_null(s);
}

static void explicit_sector_is_the_only_one_read(void **state)
{
	struct fs fs;
	struct super *s;

	fs_init(&fs, 1);
	fs_write_sb(&fs);
	fs.seq = 3;
	fs_write_copies(&fs, 0, 1u << 1);
	assert_int_equal(fs_open_with(&fs, (struct super_open_opts){ .sb_sector = 2056 }, &s), 0);
	assert_int_equal(le64_get(s->sb->seq), 3);
	super_close(s);

	fs_init(&fs, 1);
	fs_write_sb(&fs);
	assert_int_equal(fs_open_with(&fs, (struct super_open_opts){ .sb_sector = 16 }, &s), -KILN_E_INVALID);
}

static void newer_major_version_is_refused_though_an_older_copy_is_readable(void **state)
{
	struct fs fs;
	struct super *s;

	fs_init(&fs, 1);
	fs_write_sb(&fs);
	fs.version = fs.version_min = 0x801;
	fs.seq = 8;
	fs_write_copies(&fs, 0, 1);
	assert_int_equal(fs_open(&fs, &s), -KILN_E_UNSUPPORTED);
	assert_int_equal(reports.levels[REPORT_FATAL], 1);

	/* but a damaged version field is just a damaged copy */
	fs_init(&fs, 1);
	fs_write_sb(&fs);
	uint8_t block[4096] __attribute__((aligned(4096)));
	assert_int_equal(device_read(fs.dev[0], 8 * 512, block, sizeof(block)), 0);
	((struct sb_disk *)block)->version = le16_of(0x801);
	assert_int_equal(device_write(fs.dev[0], 8 * 512, block, sizeof(block)), 0);
	assert_int_equal(fs_open(&fs, &s), 0);
	assert_int_equal(reports.levels[REPORT_RECOVERED], 1);
	super_close(s);
}

static void versions_before_1_0_are_refused(void **state)
{
	struct fs fs;
	struct super *s;

	fs_init(&fs, 1);
	fs.version_min = 0x1d;
	fs_write_sb(&fs);
	assert_int_equal(fs_open(&fs, &s), -KILN_E_UNSUPPORTED);
	assert_int_equal(reports.levels[REPORT_FATAL], 1);
}

static void unknown_feature_is_refused(void **state)
{
	struct fs fs;
	struct super *s;

	fs_init(&fs, 1);
	fs.features |= 1ull << 40;
	fs_write_sb(&fs);
	assert_int_equal(fs_open(&fs, &s), -KILN_E_UNSUPPORTED);
}

/* --- several devices --- */

/* Two devices, of which the second is written from @second, a changed copy of the first's description. */
static int open_pair(struct fs *first, const struct fs *second, struct super_open_opts opts, struct super **s)
{
	struct fs other = *second;

	memcpy(other.dev, first->dev, sizeof(other.dev));
	fs_write_copies(first, 0, 7);
	fs_write_copies(&other, 1, 7);
	return fs_open_with(first, opts, s);
}

static void foreign_device_fails_the_open(void **state)
{
	struct fs a, b;
	struct super *s;

	fs_init(&a, 2);
	b = a;
	b.uuid[3] ^= 1;
	assert_int_equal(open_pair(&a, &b, (struct super_open_opts){ 0 }, &s), -KILN_E_FOREIGN_MEMBER);
	assert_non_null(strstr(reports.text, "another filesystem"));
	assert_non_null(strstr(reports.text, "'s filesystem "));
}

static void different_block_size_fails_the_open(void **state)
{
	struct fs a, b;
	struct super *s;

	fs_init(&a, 2);
	b = a;
	b.block_sectors = 1;
	assert_int_equal(open_pair(&a, &b, (struct super_open_opts){ 0 }, &s), -KILN_E_INVALID);
}

static void two_devices_for_one_slot_fail_the_open(void **state)
{
	struct fs fs;
	struct super *s;

	fs_init(&fs, 2);
	fs_write_sb(&fs);
	struct fs copy = fs;
	copy.dev[0] = fs.dev[1];
	fs_write_copies(&copy, 0, 7);
	assert_int_equal(fs_open(&fs, &s), -KILN_E_INVALID);
	assert_non_null(strstr(reports.text, "device 0, which dev0 is too"));
}

static void removed_and_replaced_devices_are_dropped(void **state)
{
	struct fs a, b;
	struct super *s;

	fs_init(&a, 2);
	b = a;
	a.seq = 8;
	a.member[1].uuid_byte = 0; /* removed */
	assert_int_equal(open_pair(&a, &b, (struct super_open_opts){ 0 }, &s), 0);
	assert_false(super_member_online(s, 1));
	assert_non_null(strstr(reports.text, "removed"));
	super_close(s);

	fs_init(&a, 2);
	b = a;
	a.seq = 8;
	a.member[1].uuid_byte = 0x77; /* another device took the slot */
	assert_int_equal(open_pair(&a, &b, (struct super_open_opts){ .is_degraded_ok = true }, &s), 0);
	assert_false(super_member_online(s, 1));
	assert_true(s->is_degraded);
	assert_non_null(strstr(reports.text, "replaced"));
	super_close(s);
}

/* Both started alone and reached the same seq: write_time decides. */
static void split_brain_make(struct fs *a, struct fs *b)
{
	fs_init(a, 2);
	*b = *a;
	a->seq = b->seq = 12;
	a->member[0].seq = 12;
	b->member[1].seq = 12;
	a->write_time = 2000;
	b->write_time = 3000;
}

static void split_brain_drops_the_older_branch(void **state)
{
	struct fs a, b;
	struct super *s;

	split_brain_make(&a, &b);
	assert_int_equal(open_pair(&a, &b, (struct super_open_opts){ .is_degraded_ok = true }, &s), 0);
	assert_true(super_member_online(s, 1));
	assert_false(super_member_online(s, 0));
	assert_non_null(strstr(reports.text, "split brain"));
	super_close(s);
	/* both were named, so that isn't asked for */
	split_brain_make(&a, &b);
	assert_int_equal(open_pair(&a, &b, (struct super_open_opts){ 0 }, &s), -ENODEV);
	assert_non_null(strstr(reports.text, "left out, as was told"));
	assert_null(strstr(reports.text, "Name all devices"));

	/* the other one went on alone behind what the newest knows of it */
	fs_init(&a, 2);
	b = a;
	a.seq = 15;
	a.member[0].seq = 15;
	a.member[1].seq = 7;
	b.seq = 12;
	assert_int_equal(open_pair(&a, &b, (struct super_open_opts){ .is_degraded_ok = true }, &s), 0);
	assert_true(super_member_online(s, 0));
	assert_false(super_member_online(s, 1));
	super_close(s);

	/* a dropped member is a missing one */
	fs_init(&a, 2);
	b = a;
	a.seq = 15;
	a.member[1].seq = 7;
	b.seq = 12;
	assert_int_equal(open_pair(&a, &b, (struct super_open_opts){ 0 }, &s), -ENODEV);
}

static void device_that_missed_updates_takes_part(void **state)
{
	struct fs a, b;
	struct super *s;

	fs_init(&a, 2);
	b = a;
	a.seq = 15;
	a.member[0].seq = 15;
	assert_int_equal(open_pair(&a, &b, (struct super_open_opts){ 0 }, &s), 0);
	assert_true(super_member_online(s, 1));
	assert_int_equal(le64_get(s->sb->seq), 15);
	super_close(s);
}

static void device_without_superblock_counts_as_missing_when_degraded(void **state)
{
	struct fs fs;
	struct super *s;

	for (unsigned degraded = 0; degraded < 2; degraded++) {
		fs_init(&fs, 2);
		fs_write_copies(&fs, 0, 7);
		assert_int_equal(fs_open_with(&fs, (struct super_open_opts){ .is_degraded_ok = degraded }, &s),
				 degraded ? 0 : -KILN_E_INVALID);
		super_close(s);
	}
}

/* --- enough devices --- */

static int open_without_device_1(struct fs *fs, struct super_open_opts opts, struct super **s)
{
	fs_write_sb(fs);
	device_close(fs->dev[1]);
	fs->dev[1] = NULL;
	return fs_open_with(fs, opts, s);
}

static void missing_member_is_named_and_refused(void **state)
{
	struct fs fs;
	struct super *s;

	fs_init(&fs, 2);
	fs.label = "hdd";
	fs.member[1].group = 1;
	assert_int_equal(open_without_device_1(&fs, (struct super_open_opts){ 0 }, &s), -ENODEV);
	assert_non_null(strstr(reports.text, "device 1 (label hdd, uuid "));
	assert_non_null(strstr(reports.text, "--degraded"));
}

/* What one replicas entry asks for, with device 1 of 2 or 3 missing. */
static void degraded_options_decide_by_replicas(void **state)
{
	static const struct {
		const char *what;
		uint8_t entry[8];
		size_t bytes;
		int plain, degraded, very;
	} cases[] = {
		{ "no entry", { 0 }, 1, -ENODEV, 0, 0 },
		{ "user on 0, 1", { 4, 2, 1, 0, 1 }, 5, -ENODEV, 0, 0 },
		{ "user on 1 alone", { 4, 1, 1, 1 }, 4, -ENODEV, -ENODEV, 0 },
		{ "cached on 1 alone", { 5, 1, 1, 1 }, 4, -ENODEV, 0, 0 },
		{ "stripe of 3, 2 needed", { 6, 3, 2, 0, 1, 2 }, 6, -ENODEV, 0, 0 },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		const int expected[3] = { cases[i].plain, cases[i].degraded, cases[i].very };

		for (unsigned mode = 0; mode < 3; mode++) {
			struct fs fs;
			struct super *s;
			struct super_open_opts opts = { .is_degraded_ok = mode == 1, .is_very_degraded_ok = mode == 2 };

			fs_init(&fs, 3);
			fs.replicas = cases[i].entry;
			fs.replicas_bytes = cases[i].bytes;
			int err = open_without_device_1(&fs, opts, &s);
			if (err != expected[mode])
				fail_msg("%s, mode %u: %d", cases[i].what, mode, err);
			assert_true(err || s->is_degraded);
			super_close(s);
		}
	}
}

static void failed_members_need_not_be_there(void **state)
{
	static const uint8_t entry[] = { 4, 1, 1, 1 };
	struct fs fs;
	struct super *s;

	fs_init(&fs, 2);
	fs.member[1].state = MEMBER_FAILED;
	fs.replicas = entry;
	fs.replicas_bytes = sizeof(entry);
	assert_int_equal(open_without_device_1(&fs, (struct super_open_opts){ 0 }, &s), 0);
	assert_false(s->is_degraded);
	super_close(s);
}

static void devices_that_dont_exist_say_nothing_in_newer_replicas(void **state)
{
	static const uint8_t entry[] = { 4, 3, 1, 0, 3, 255 };
	struct fs fs;
	struct super *s;

	fs_init(&fs, 1);
	fs.version = 0x427;
	fs.replicas = entry;
	fs.replicas_bytes = sizeof(entry);
	fs_write_sb(&fs);
	assert_int_equal(fs_open(&fs, &s), 0);
	assert_false(s->is_degraded);
	super_close(s);
}

static void mount_option_degraded_serves_like_the_flag(void **state)
{
	uint64_t values[OPT_NR] = { [OPT_DEGRADED] = 1 };
	bool set[OPT_NR] = { [OPT_DEGRADED] = true };
	struct super_open_opts opts = { .mount_options = values, .mount_options_set = set };
	struct fs fs;
	struct super *s;

	fs_init(&fs, 2);
	assert_int_equal(open_without_device_1(&fs, opts, &s), 0);
	assert_true(s->is_degraded);
	super_close(s);
}

static void lenient_open_looks_at_what_is_there(void **state)
{
	static const uint8_t entry[] = { 4, 1, 1, 1 };
	struct fs fs;
	struct super *s;

	fs_init(&fs, 2);
	fs.replicas = entry;
	fs.replicas_bytes = sizeof(entry);
	assert_int_equal(open_without_device_1(&fs, (struct super_open_opts){ .is_lenient = true }, &s), 0);
	assert_true(s->is_degraded);
	super_close(s);
}

/* --- size, key, options --- */

static void truncated_device_is_reported_and_opened(void **state)
{
	struct fs fs;
	struct super *s;
	struct device *cut;
	uint8_t buf[8192] __attribute__((aligned(4096))) = { 0 };

	fs_init(&fs, 1);
	fs_sb_make(&fs, 0, 8, buf);
	assert_int_equal(device_open_memory("cut", 4 << 20, 512, &cut), 0);
	assert_int_equal(device_write(cut, 8 * 512, buf, sizeof(buf)), 0);
	device_close(fs.dev[0]);
	fs.dev[0] = cut;
	assert_int_equal(fs_open(&fs, &s), 0);
	assert_non_null(strstr(reports.text, "at least 16777216 bytes, found 4194304 bytes"));
	assert_int_equal(device_read(s->members[0].dev, 8 << 20, buf, 512), -EIO);
	super_close(s);
}

/* Vector of 01 §15.2: scrypt, passphrase "secret". */
static const uint8_t sealed_uuid[16] = { 0xba, 0x58, 0x86, 0x83, 0x46, 0x59, 0x41, 0x43,
					 0xa7, 0x4e, 0x8f, 0xf2, 0x58, 0x09, 0xb2, 0x14 };
static const uint8_t sealed_crypt[56] = {
	0,    0,    0,	  0,	0,    0,    0,	  0,	14,   0,    3,	  0,	4,    0,
	0,    0,    0x0d, 0x80, 0x2e, 0xb9, 0xa6, 0x3d, 0xb9, 0x12, 0xc8, 0x23, 0xd3, 0x64,
	0x33, 0x4d, 0x08, 0xc6, 0x01, 0xc9, 0x28, 0x50, 0x5f, 0xa0, 0x59, 0x0a, 0x9a, 0x30,
	0x1b, 0xdf, 0x00, 0xce, 0x41, 0x25, 0xc2, 0x77, 0x60, 0x64, 0xe0, 0x71, 0x02, 0x7d,
};

static void sealed_key_needs_the_passphrase(void **state)
{
	static const uint8_t key_begin[4] = { 0x71, 0x01, 0x2c, 0x79 };
	struct fs fs;
	struct super *s;

	fs_init(&fs, 1);
	memcpy(fs.uuid, sealed_uuid, 16);
	fs.crypt = sealed_crypt;
	fs.encryption_type = 1;
	fs_write_sb(&fs);
	assert_int_equal(fs_open(&fs, &s), 0);
	assert_true(s->has_key && s->needs_passphrase && !s->key);
	assert_int_equal(super_unlock(s, "wrong", 5), -KILN_E_BAD_PASSPHRASE);
	assert_true(s->needs_passphrase);
	assert_int_equal(super_unlock(s, "secret", 6), 0);
	assert_false(s->needs_passphrase);
	assert_memory_equal(s->key->bytes, key_begin, sizeof(key_begin));
	assert_int_equal(super_unlock(s, "whatever", 8), 0);
	super_close(s);
}

static void open_key_is_loaded_at_once(void **state)
{
	uint8_t crypt[56] = { 0 };
	struct fs fs;
	struct super *s;

	memcpy(crypt + 16, "bch**key", 8);
	crypt[24] = 0x42;
	fs_init(&fs, 1);
	fs.crypt = crypt;
	fs.encryption_type = 1;
	fs_write_sb(&fs);
	assert_int_equal(fs_open(&fs, &s), 0);
	assert_false(s->needs_passphrase);
	assert_int_equal(s->key->bytes[0], 0x42);
	super_close(s);
}

/* 06 §8: what was encrypted before still needs the key. */
static void a_key_is_loaded_even_if_encryption_was_turned_off(void **state)
{
	uint8_t crypt[56] = { 0 };
	struct fs fs;
	struct super *s;

	memcpy(crypt + 16, "bch**key", 8);
	crypt[24] = 0x42;
	fs_init(&fs, 1);
	fs.crypt = crypt;
	fs_write_sb(&fs);
	assert_int_equal(fs_open(&fs, &s), 0);
	assert_true(s->has_key && s->kctx.has_key);
	assert_int_equal(s->key->bytes[0], 0x42);
	super_close(s);

	fs_init(&fs, 1);
	memcpy(fs.uuid, sealed_uuid, 16);
	fs.crypt = sealed_crypt;
	fs_write_sb(&fs);
	assert_int_equal(fs_open(&fs, &s), 0);
	assert_true(s->has_key && s->needs_passphrase);
	super_close(s);
}

static void encrypted_without_crypt_section_opens_only_for_looking(void **state)
{
	struct fs fs;
	struct super *s;

	for (unsigned lenient = 0; lenient < 2; lenient++) {
		fs_init(&fs, 1);
		fs.encryption_type = 1;
		fs_write_sb(&fs);
		int err = fs_open_with(&fs, (struct super_open_opts){ .is_lenient = lenient }, &s);
		assert_true(lenient ? !err : err < 0);
		super_close(s);
	}
}

static void option_out_of_range_gets_its_default(void **state)
{
	struct fs fs;
	struct super *s;

	fs_init(&fs, 1);
	fs.flags_xor[0] = 0xeull << 52; /* data_replicas 15 */
	fs_write_sb(&fs);
	assert_int_equal(fs_open(&fs, &s), 0);
	assert_int_equal(s->options[OPT_DATA_REPLICAS], option_table[OPT_DATA_REPLICAS].initial);
	assert_non_null(strstr(reports.text, "data_replicas"));
	super_close(s);
}

/* --- anything at all --- */

static uint64_t test_seed(void)
{
	const char *env = getenv("KILN_TEST_SEED");

	return env ? strtoull(env, NULL, 0) : random_u64();
}

static void damage_anywhere_is_survived(void **state)
{
	uint64_t seed = test_seed();
	struct rng rng;

	print_message("KILN_TEST_SEED=%llu\n", (unsigned long long)seed);
	rng_init(&rng, seed);
	for (unsigned round = 0; round < 300; round++) {
		struct fs fs;
		struct super *s;
		static const uint8_t entry[] = { 4, 2, 1, 0, 1 };

		fs_init(&fs, 2);
		fs.csum_type = 0; /* nothing but the rules stands between the damage and the code */
		fs.replicas = entry;
		fs.replicas_bytes = sizeof(entry);
		fs.label = "hdd";
		fs.blacklist[0][0] = 5;
		fs.blacklist[0][1] = 9;
		fs.blacklist_nr = 1;
		fs_write_sb(&fs);
		for (unsigned d = 0; d < 2; d++) {
			uint8_t block[4096] __attribute__((aligned(4096)));
			uint64_t at = fs_copy_sector((unsigned)rng_below(&rng, FS_COPIES)) * 512;

			assert_int_equal(device_read(fs.dev[d], at, block, sizeof(block)), 0);
			for (unsigned i = 0; i < 1 + rng_below(&rng, 8); i++)
				block[16 + rng_below(&rng, 1600)] = (uint8_t)rng_u64(&rng);
			assert_int_equal(device_write(fs.dev[d], at, block, sizeof(block)), 0);
		}
		if (!fs_open_with(&fs, (struct super_open_opts){ .is_very_degraded_ok = true }, &s)) {
			assert_non_null(s->sb);
			super_close(s);
		}
	}
}

struct shares {
	unsigned after_open, after_slow_read, a_minute_later, while_it_fails, when_it_is_back, after_one_failed;
};

static void latency_set(struct device *dev, uint64_t latency_ns, uint64_t times)
{
	struct device_fault rule = { .kind = FAULT_LATENCY,
				     .op = DEVICE_READ,
				     .per_million = 1000000,
				     .latency_ns = latency_ns,
				     .remaining = times };

	device_fault_clear(dev);
	assert_int_equal(device_fault_add(dev, &rule), 0);
}

static int copy_read(const struct super *s, unsigned dev)
{
	uint8_t block[4096] __attribute__((aligned(4096)));

	return device_read(s->members[dev].dev, 0, block, sizeof(block));
}

/* Of @nr reads with @pause_ns between them, which only fail of the first, how many go to the first of two copies. */
static unsigned share_of_first(const struct super *s, struct rng *rng, unsigned nr, uint64_t pause_ns)
{
	static const uint8_t devs[] = { 0, 1 };
	unsigned first_nr = 0;

	for (unsigned i = 0; i < nr; i++) {
		unsigned copy = super_replica_choose(s, devs, 2, 0, rng_u64(rng));

		assert_true(!copy_read(s, devs[copy]) || copy == 0);
		first_nr += copy == 0;
		sleep_ns(pause_ns);
	}
	return first_nr;
}

static void shares_find(void *arg)
{
	static const uint64_t MS = 1000000;
	struct device_fault rule = {
		.kind = FAULT_ERROR, .op = DEVICE_READ, .err = -EIO, .per_million = 1000000, .remaining = UINT64_MAX
	};
	struct shares *shares = arg;
	struct device *devs[2];
	struct rng rng;
	struct super *s;
	struct fs fs;

	rng_init(&rng, 1);
	fs_init(&fs, 2);
	fs_write_sb(&fs);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(device_wrap_fault(fs.dev[i], 1, &devs[i]), 0);
		fs.dev[i] = devs[i];
		latency_set(devs[i], i ? MS / 20 : 5000 * MS, UINT64_MAX);
	}
	assert_int_equal(fs_open(&fs, &s), 0);
	latency_set(devs[0], MS / 20, UINT64_MAX);
	shares->after_open = share_of_first(s, &rng, 1000, 0);
	latency_set(devs[0], 5000 * MS, 1);
	assert_int_equal(copy_read(s, 0), 0);
	latency_set(devs[0], MS / 20, UINT64_MAX);
	shares->after_slow_read = share_of_first(s, &rng, 1000, 0);
	share_of_first(s, &rng, 60, 1000 * MS);
	shares->a_minute_later = share_of_first(s, &rng, 1000, 0);

	device_fault_clear(devs[0]);
	assert_int_equal(device_fault_add(devs[0], &rule), 0);
	shares->while_it_fails = share_of_first(s, &rng, 1000, MS);
	latency_set(devs[0], MS / 20, UINT64_MAX);
	share_of_first(s, &rng, 60, 1000 * MS);
	shares->when_it_is_back = share_of_first(s, &rng, 1000, 0);
	device_fault_clear(devs[0]);
	assert_int_equal(device_fault_add(devs[0], &rule), 0);
	assert_int_equal(copy_read(s, 0), -EIO);
	latency_set(devs[0], MS / 20, UINT64_MAX);
	shares->after_one_failed = share_of_first(s, &rng, 1000, 0);

	super_close(s);
}

static void who_is_slow_or_fails_is_read_less_for_a_while(void **state)
{
	struct shares shares = { 0 };

	assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = 1 }, shares_find, &shares, NULL), 0);
	assert_in_range(shares.after_open, 300, 700);
	assert_in_range(shares.after_slow_read, 0, 50);
	assert_in_range(shares.a_minute_later, 300, 700);
	/* It fails at once, so it would be the fastest. */
	assert_in_range(shares.while_it_fails, 5, 50);
	assert_in_range(shares.when_it_is_back, 300, 700);
	assert_in_range(shares.after_one_failed, 250, 700);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(opens_with_members_geometry_and_options),
		cmocka_unit_test(newest_copy_wins_and_disagreement_is_reported),
		cmocka_unit_test(equal_copies_are_not_reported),
		cmocka_unit_test(damaged_primary_is_replaced_by_what_the_layout_block_lists),
		cmocka_unit_test(lost_layout_block_leads_to_the_usual_places),
		cmocka_unit_test(guessed_copy_must_name_its_sector),
		cmocka_unit_test(device_without_any_copy_is_refused_with_advice),
		cmocka_unit_test(explicit_sector_is_the_only_one_read),
		cmocka_unit_test(newer_major_version_is_refused_though_an_older_copy_is_readable),
		cmocka_unit_test(versions_before_1_0_are_refused),
		cmocka_unit_test(unknown_feature_is_refused),
		cmocka_unit_test(foreign_device_fails_the_open),
		cmocka_unit_test(different_block_size_fails_the_open),
		cmocka_unit_test(two_devices_for_one_slot_fail_the_open),
		cmocka_unit_test(removed_and_replaced_devices_are_dropped),
		cmocka_unit_test(split_brain_drops_the_older_branch),
		cmocka_unit_test(device_that_missed_updates_takes_part),
		cmocka_unit_test(device_without_superblock_counts_as_missing_when_degraded),
		cmocka_unit_test(missing_member_is_named_and_refused),
		cmocka_unit_test(degraded_options_decide_by_replicas),
		cmocka_unit_test(failed_members_need_not_be_there),
		cmocka_unit_test(devices_that_dont_exist_say_nothing_in_newer_replicas),
		cmocka_unit_test(mount_option_degraded_serves_like_the_flag),
		cmocka_unit_test(lenient_open_looks_at_what_is_there),
		cmocka_unit_test(truncated_device_is_reported_and_opened),
		cmocka_unit_test(sealed_key_needs_the_passphrase),
		cmocka_unit_test(open_key_is_loaded_at_once),
		cmocka_unit_test(a_key_is_loaded_even_if_encryption_was_turned_off),
		cmocka_unit_test(encrypted_without_crypt_section_opens_only_for_looking),
		cmocka_unit_test(option_out_of_range_gets_its_default),
		cmocka_unit_test(damage_anywhere_is_survived),
		cmocka_unit_test(who_is_slow_or_fails_is_read_less_for_a_while),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
