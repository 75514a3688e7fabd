/*
 * Crash after crash: the list of sequence numbers that are never used stays short, nothing that was synced is lost, and
 * what is still needed of the list stays in it.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/util.h"
#include "device/power.h"
#include "engine/format.h"
#include "engine/fs.h"
#include "engine/whole.h"

enum {
	DISK_BYTES = 32 << 20,
	LIST_LONG = 128,     /* ranges that may be dropped, from which on they are */
	LIST_MAX = 128 + 16, /* those of the last mounts may still be needed */
};

static struct power *power;

static struct kiln_fs *fs_reopen(void)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_WRITE,
					     .memory_bytes = KILN_MEMORY_MIN };
	char why[KILN_ERROR_BYTES] = "";
	struct device *dev;
	struct kiln_fs *fs;

	assert_int_equal(power_disk_open(power, 0, &dev), 0);
	if (fs_open(NULL, 0, &dev, 1, &options, FS_NAMESPACE, &fs, why))
		fail_msg("%s", why);
	if (kiln_write_refused(fs))
		fail_msg("%s", kiln_write_refused(fs));
	return fs;
}

static struct kiln_fs *make(uint64_t seed)
{
	struct kiln_format_device format_dev = { .path = "a" };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(format_dev),
					      .options = "block_size=512,btree_node_size=8k",
					      .superblock_bytes = 64 << 10 };
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE };
	char why[KILN_ERROR_BYTES] = "";
	struct device *dev;
	struct kiln_fs *fs = NULL;

	power = power_new(seed);
	assert_int_equal(power_disk_add(power, DISK_BYTES, 512), 0);
	assert_int_equal(power_disk_open(power, 0, &dev), 0);
	if (fs_format_devices(&dev, &format_dev, 1, &format, why) || fs_initialize(&dev, 1, &open, &fs, why))
		fail_msg("%s", why);
	return fs;
}

static void shut(struct kiln_fs *fs)
{
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
}

static int name_of(unsigned file, char name[16]) { return snprintf(name, 16, "file-%u", file); }

/* A file that is there after it, and the power goes. */
static void make_file_and_crash(struct kiln_fs *fs, unsigned file)
{
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_stat st;
	char name[16];
	int len = name_of(file, name);

	assert_int_equal(kiln_create(fs, kiln_root(fs), name, (size_t)len, &attr, &st), 0);
	assert_int_equal(kiln_sync(fs), 0);
	power_cut(power);
	kiln_close(fs);
	power_restore(power);
}

static void files_are_there(struct kiln_fs *fs, unsigned nr)
{
	struct kiln_stat st;
	char name[16];

	for (unsigned i = 0; i < nr; i++) {
		int len = name_of(i, name);

		assert_int_equal(kiln_lookup(fs, kiln_root(fs), name, (size_t)len, &st), 0);
	}
}

/* --- crashes --- */

/* So many ranges of one each, every other seq, ahead of all that were used. Returns the first. */
static uint64_t ranges_add(struct kiln_fs *fs, unsigned nr)
{
	uint64_t start = fs->journal->seq_next + 1000;

	for (unsigned i = 0; i < nr; i++)
		assert_int_equal(super_blacklist_add(fs->super, start + 2ul * i, start + 2ul * i + 1), 0);
	return start;
}

static void many_crashes_leave_a_short_list(void **state)
{
	enum { CRASHES = 40 };
	struct kiln_fs *fs = make(seed_print());
	unsigned most = 0, least = LIST_MAX;

	(void)state;
	/* As if many had been before. */
	ranges_add(fs, LIST_LONG - CRASHES / 2);
	shut(fs);
	fs = fs_reopen();
	for (unsigned i = 0; i < CRASHES; i++) {
		make_file_and_crash(fs, i);
		fs = fs_reopen();
		unsigned nr = sb_blacklist_nr(fs->super->sb);

		most = max(most, nr);
		if (i > CRASHES / 2)
			least = min(least, nr);
	}
	print_message("at most %u ranges, at least %u\n", most, least);
	/* Otherwise nothing has been tested. */
	assert_true(most > LIST_LONG);
	assert_true(most <= LIST_MAX);
	assert_true(least < LIST_LONG / 4);
	files_are_there(fs, CRASHES);
	must_be_consistent(fs);
	shut(fs);
	power_free(power);
}

/* --- sets that are left behind --- */

static bool is_listed(const struct kiln_fs *fs, uint64_t seq)
{
	for (unsigned i = 0; i < sb_blacklist_nr(fs->super->sb); i++) {
		uint64_t start, end;

		sb_blacklist_range(fs->super->sb, i, &start, &end);
		if (start <= seq && seq < end)
			return true;
	}
	return false;
}

static int node_take(void *ctx, const struct btree_node_info *info, int err)
{
	assert_int_equal(err, 0);
	*(struct btree_node_info *)ctx = *info;
	return 0;
}

/* Behind the sets of a node, where a crash in the midst of appending leaves it. */
static void set_leave_behind(const struct btree_node_info *node, uint64_t journal_seq)
{
	const struct extent_ptr *ptr = &node->ptr.ptrs[0];
	uint64_t sector = ptr->sector + node->ptr.sectors_written;
	struct btree_node_entry_disk *set = (void *)(power_disk_bytes(power, 0) + sector * SECTOR_BYTES);

	set->keys.seq = le64_of(node->seq);
	set->keys.journal_seq = le64_of(journal_seq);
}

static void what_a_set_is_in_stays(void **state)
{
	enum { RANGES = 200, NEEDED = 77 };
	struct btree_node_info node = { 0 };
	struct kiln_fs *fs = make(seed_print());

	(void)state;
	shut(fs);
	fs = fs_reopen();
	assert_int_equal(btree_nodes_walk(fs->trees, BTREE_SUBVOLUMES, node_take, &node), 0);
	assert_int_equal(node.ptr.ptr_nr, 1);
	uint64_t first = ranges_add(fs, RANGES);
	shut(fs);
	set_leave_behind(&node, first + 2 * NEEDED);
	/* The next entries are above the ranges: not before there are such, and none below, are these dropped. */
	fs = fs_reopen();
	assert_true(sb_blacklist_nr(fs->super->sb) >= RANGES);
	shut(fs);
	fs = fs_reopen();
	for (unsigned i = 0; i < RANGES; i++)
		assert_int_equal(is_listed(fs, first + 2 * i), i == NEEDED || i == RANGES - 1);
	must_be_consistent(fs);
	shut(fs);
	power_free(power);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(many_crashes_leave_a_short_list),
		cmocka_unit_test(what_a_set_is_in_stays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
