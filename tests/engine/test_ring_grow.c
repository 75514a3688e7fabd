/*
 * Journals that are too small for their btree nodes get more buckets when they are opened for writing: whenever the
 * power goes on the way, what was there is there, and the next opening ends it. Nothing that lies in the new buckets is
 * taken for an entry.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/sanitizer.h"
#include "base/util.h"
#include "device/power.h"
#include "engine/format.h"
#include "engine/fs.h"
#include "engine/ring.h"
#include "engine/whole.h"

enum {
	DISKS = 2,
	BUCKET_BYTES = 32 << 10,
	BUCKETS = 192,
	DISK_BYTES = BUCKETS * BUCKET_BYTES,
	PRESET = 8,
	GROWN = 24,	/* 2 KiB for each bucket, and each of two copies */
	GROWN_ONE = 12, /* where there is one */
	FILES = 20,
	IOS_MAX = 1000,
	CUT_EVERY = KILN_SANITIZED ? 8 : 2,
	SEQ_PLANTED = 1 << 20,
};

static struct power *power;

/* --- one filesystem on two disks --- */

/* Open, with the journal as it was preset. */
static struct kiln_fs *make(const char *options)
{
	struct kiln_format_device format_devs[DISKS] = { { .path = "a", .bucket_bytes = BUCKET_BYTES },
							 { .path = "b", .bucket_bytes = BUCKET_BYTES } };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(format_devs[0]),
					      .options = options,
					      .superblock_bytes = 64 << 10 };
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE };
	struct device *devs[DISKS];
	char why[KILN_ERROR_BYTES] = "";
	struct kiln_fs *fs;

	for (unsigned i = 0; i < DISKS; i++) {
		assert_int_equal(power_disk_add(power, DISK_BYTES, SECTOR_BYTES), i);
		assert_int_equal(power_disk_open(power, i, &devs[i]), 0);
	}
	if (fs_format_devices(devs, format_devs, DISKS, &format, why))
		fail_msg("%s", why);
	for (unsigned i = 0; i < DISKS; i++)
		ring_preset(devs[i], PRESET);
	if (fs_initialize(devs, DISKS, &open, &fs, why))
		fail_msg("%s", why);
	return fs;
}

static int try_open(unsigned flags, struct kiln_fs **fs, char why[KILN_ERROR_BYTES])
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = flags,
					     .memory_bytes = KILN_MEMORY_MIN };
	struct device *devs[DISKS];

	for (unsigned i = 0; i < DISKS; i++)
		assert_int_equal(power_disk_open(power, i, &devs[i]), 0);
	return fs_open(NULL, 0, devs, DISKS, &options, FS_NAMESPACE, fs, why);
}

static struct kiln_fs *open_for(unsigned flags)
{
	char why[KILN_ERROR_BYTES] = "";
	struct kiln_fs *fs;

	if (try_open(flags, &fs, why))
		fail_msg("%s", why);
	return fs;
}

static void shut(struct kiln_fs *fs)
{
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
}

static void crash(struct kiln_fs *fs)
{
	power_cut(power);
	kiln_close(fs);
	power_restore(power);
}

static uint64_t disk_ring_buckets(unsigned disk)
{
	struct device *dev;

	assert_int_equal(power_disk_open(power, disk, &dev), 0);
	uint64_t nr = ring_buckets(dev);
	device_close(dev);
	return nr;
}

static int file_make(struct kiln_fs *fs, unsigned i)
{
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_stat st;
	char name[16];
	int len = snprintf(name, sizeof(name), "%u", i);

	int err = kiln_create(fs, kiln_root(fs), name, (size_t)len, &attr, &st);
	return err ? err : kiln_sync(fs);
}

static void files_must_be_there(struct kiln_fs *fs, unsigned nr)
{
	struct kiln_stat st;
	char name[16];

	for (unsigned i = 0; i < nr; i++) {
		int len = snprintf(name, sizeof(name), "%u", i);

		assert_int_equal(kiln_lookup(fs, kiln_root(fs), name, (size_t)len, &st), 0);
	}
}

/* --- what files may hold --- */

static bool is_zero(const uint8_t *p, size_t bytes) { return !p[0] && !memcmp(p, p + 1, bytes - 1); }

/*
 * In every bucket behind the journal that nothing was written to, whole entries of this filesystem that say they are
 * the newest.
 */
static void entries_plant(const uint8_t uuid[16], uint64_t ring_end)
{
	for (unsigned disk = 0; disk < DISKS; disk++)
		for (uint64_t bucket = ring_end; bucket < BUCKETS; bucket++) {
			uint8_t *bytes = power_disk_bytes(power, disk) + bucket * BUCKET_BYTES;

			if (!is_zero(bytes, BUCKET_BYTES))
				continue;
			for (uint64_t at = 0; at < BUCKET_BYTES; at += SECTOR_BYTES) {
				struct jset_disk *j = (struct jset_disk *)(bytes + at);
				uint64_t seq = SEQ_PLANTED + at / SECTOR_BYTES;

				*j = (struct jset_disk){ .magic = le64_of(jset_magic(uuid)),
							 .seq = le64_of(seq),
							 .version = le32_of(VERSION_1_4),
							 .last_seq = le64_of(seq) };
				jset_seal(j, CHECKSUM_CRC32C_NONZERO, NULL);
			}
		}
}

/* --- cuts --- */

struct base {
	uint8_t *bytes[DISKS];
};

static void base_take(struct base *b)
{
	for (unsigned i = 0; i < DISKS; i++) {
		power_disk_settle(power, i);
		b->bytes[i] = malloc(DISK_BYTES);
		memcpy(b->bytes[i], power_disk_bytes(power, i), DISK_BYTES);
	}
}

static void base_restore(const struct base *b)
{
	for (unsigned i = 0; i < DISKS; i++) {
		power_disk_settle(power, i);
		memcpy(power_disk_bytes(power, i), b->bytes[i], DISK_BYTES);
		power_disk_settle(power, i);
	}
}

/* Open, and make a file, until the power goes at the @ios-th write. Is the file made for good? */
static bool session_is_cut(uint64_t ios, bool *is_through)
{
	char why[KILN_ERROR_BYTES] = "";
	struct kiln_fs *fs;

	power_cut_after(power, ios);
	int err = try_open(KILN_OPEN_WRITE, &fs, why);
	bool is_made = !err && !file_make(fs, FILES);
	*is_through = !power_is_off(power);
	if (*is_through && err)
		fail_msg("%s", why);
	power_cut(power);
	if (!err)
		kiln_close(fs);
	power_restore(power);
	return is_made;
}

static void must_have_grown(bool has_new_file)
{
	struct kiln_fs *fs = open_for(KILN_OPEN_WRITE);

	assert_null(kiln_write_refused(fs));
	for (unsigned i = 0; i < DISKS; i++)
		assert_int_equal(journal_ring_bucket_nr(fs->journal_writer, i), GROWN);
	assert_true(journal_seq(fs->journal_writer) < SEQ_PLANTED);
	files_must_be_there(fs, FILES + has_new_file);
	must_be_consistent(fs);
	shut(fs);
}

static void growing_is_cut(bool was_clean)
{
	uint64_t seed = seed_print();
	unsigned grown[DISKS + 1] = { 0 };
	bool is_through = false;
	uint64_t start, nr;
	uint8_t uuid[16];
	struct base base;

	power = power_new(seed);
	struct kiln_fs *fs = make("block_size=512,btree_node_size=4k,metadata_replicas=2");
	memcpy(uuid, fs->super->sb->uuid, sizeof(uuid));
	sb_journal_range(fs->super->members[0].sb, 0, &start, &nr);
	/* So that the journal is somewhere in the middle of its ring. */
	for (unsigned i = 0; i < FILES; i++)
		assert_int_equal(file_make(fs, i), 0);
	if (was_clean)
		shut(fs);
	else
		crash(fs);
	entries_plant(uuid, start + nr);
	base_take(&base);
	for (uint64_t ios = 1 + seed % CUT_EVERY; !is_through; ios += CUT_EVERY) {
		unsigned disks = 0;

		assert_true(ios < IOS_MAX);
		base_restore(&base);
		power_reseed(power, seed + ios);
		bool is_made = session_is_cut(ios, &is_through);
		for (unsigned i = 0; i < DISKS; i++)
			disks += disk_ring_buckets(i) == GROWN;
		grown[disks]++;
		must_have_grown(is_made);
	}
	print_message("cut with none, one and both grown: %u, %u, %u\n", grown[0], grown[1], grown[2]);
	assert_true(grown[0] && grown[DISKS]);
	for (unsigned i = 0; i < DISKS; i++)
		free(base.bytes[i]);
	power_free(power);
}

static void growing_is_cut_after_a_clean_shutdown(void **state)
{
	(void)state;
	growing_is_cut(true);
}

static void growing_is_cut_after_a_crash(void **state)
{
	(void)state;
	growing_is_cut(false);
}

static void of_a_ring_that_has_grown_as_much_is_left_to_reclaim_as_of_others(void **state)
{
	struct journal_usage journal;

	(void)state;
	power = power_new(1);
	shut(make("block_size=512,btree_node_size=4k,metadata_replicas=2"));
	for (unsigned i = 0; i < 2; i++) {
		struct kiln_fs *fs = open_for(KILN_OPEN_WRITE);

		journal_usage(fs->journal_writer, &journal);
		assert_int_equal(journal.buckets_total, GROWN);
		assert_int_equal(journal.buckets_for_reclaim, GROWN * 5 / 8);
		shut(fs);
	}
	power_free(power);
}

/* --- what doesn't grow --- */

static void what_is_only_read_or_has_larger_nodes_is_left_alone(void **state)
{
	static const char *const options[] = { "block_size=512,btree_node_size=4k",
					       "block_size=512,btree_node_size=8k" };

	(void)state;
	for (unsigned i = 0; i < ARRAY_NR(options); i++) {
		power = power_new(1);
		shut(make(options[i]));
		kiln_close(open_for(0));
		assert_int_equal(disk_ring_buckets(0), PRESET);
		shut(open_for(KILN_OPEN_WRITE));
		assert_int_equal(disk_ring_buckets(0), i ? PRESET : GROWN_ONE);
		assert_int_equal(disk_ring_buckets(1), i ? PRESET : GROWN_ONE);
		power_free(power);
	}
}

/* Fill what is free. Its bytes. */
static uint64_t file_fill(struct kiln_fs *fs)
{
	static const char block[64 << 10] = "full";
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_stat st;
	uint64_t at = 0;
	ssize_t ret;

	assert_int_equal(kiln_create(fs, kiln_root(fs), "full", 4, &attr, &st), 0);
	while ((ret = kiln_write(fs, st.node, at, block, sizeof(block))) > 0)
		at += (uint64_t)ret;
	assert_int_equal(ret, -ENOSPC);
	return at;
}

static void without_space_it_goes_on_as_it_is(void **state)
{
	struct kiln_stat st;

	(void)state;
	power = power_new(seed_print());
	struct kiln_fs *fs = make("block_size=512,btree_node_size=4k");
	uint64_t bytes = file_fill(fs);
	shut(fs);
	fs = open_for(KILN_OPEN_WRITE);
	assert_null(kiln_write_refused(fs));
	assert_int_equal(journal_ring_bucket_nr(fs->journal_writer, 0), PRESET);
	assert_int_equal(kiln_lookup(fs, kiln_root(fs), "full", 4, &st), 0);
	assert_int_equal(st.size, bytes);
	assert_int_equal(kiln_unlink(fs, kiln_root(fs), "full", 4, 0), 0);
	shut(fs);
	fs = open_for(KILN_OPEN_WRITE);
	assert_int_equal(journal_ring_bucket_nr(fs->journal_writer, 0), GROWN_ONE);
	must_be_consistent(fs);
	shut(fs);
	power_free(power);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(growing_is_cut_after_a_clean_shutdown),
		cmocka_unit_test(growing_is_cut_after_a_crash),
		cmocka_unit_test(of_a_ring_that_has_grown_as_much_is_left_to_reclaim_as_of_others),
		cmocka_unit_test(what_is_only_read_or_has_larger_nodes_is_left_alone),
		cmocka_unit_test(without_space_it_goes_on_as_it_is),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
