/* Upgrades and recovery of filesystems that are damaged: what is wrong is left to repair, whatever it is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "engine/format.h"
#include "engine/fs_write.h"
#include "format/inode.h"
#include "format/logged_op.h"
#include "format/snapshot.h"
#include "format/version.h"
#include "recovery/passes.h"
#include "recovery/upgrade.h"

static int chain_put(struct btree_txn *txn, void *ctx)
{
	/* The parent of the parent isn't there. */
	static const struct {
		uint32_t id, parent;
	} chain[] = { { 100, 200 }, { 200, 300 } };
	int err = 0;

	(void)ctx;
	for (unsigned i = 0; i < ARRAY_NR(chain) && !err; i++) {
		const struct snapshot s = { .parent = chain[i].parent, .tree = 1, .depth = 7 };
		const struct bkey k = { .p = BPOS(0, chain[i].id, 0),
					.type = KEY_SNAPSHOT,
					.value_u64s = SNAPSHOT_BYTES / 8 };
		uint8_t value[SNAPSHOT_BYTES];

		snapshot_encode(&s, value);
		err = btree_txn_put(txn, BTREE_SNAPSHOTS, &k, value, 0);
	}
	return err;
}

static struct kiln_fs *filesystem_make(void)
{
	struct kiln_format_device format_dev = { .path = "a", .bucket_bytes = 256 << 10 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(format_dev),
					      .superblock_bytes = 64 << 10 };
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE };
	char why[KILN_ERROR_BYTES] = "";
	struct device *device;
	struct kiln_fs *fs;

	assert_int_equal(device_open_memory("memory", 64 << 20, 512, &device), 0);
	assert_int_equal(fs_format_devices(&device, &format_dev, 1, &format, why), 0);
	assert_int_equal(fs_initialize(&device, 1, &open, &fs, why), 0);
	return fs;
}

static void a_snapshot_without_all_its_ancestors_stays(void **state)
{
	const struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };
	struct kiln_fs *fs = filesystem_make();
	struct bkey_copy copy;
	struct snapshot s;

	assert_int_equal(btree_txn_run(fs->trees, &opts, chain_put, NULL), 0);
	assert_int_equal(upgrade_snapshots(&(struct recovery){ .trees = fs->trees }), 0);
	for (unsigned id = 100; id <= 200; id += 100) {
		assert_int_equal(btree_lookup(fs->trees, BTREE_SNAPSHOTS, BPOS(0, id, 0), &copy), 1);
		snapshot_decode(copy.k, &s);
		assert_int_equal(s.depth, 7);
	}
	kiln_shutdown(fs);
	kiln_close(fs);
}

/* Where an operation can't be, and where no other can be behind it; of a subvolume that isn't there. */
static int ops_put(struct btree_txn *txn, void *ctx)
{
	static const struct bpos places[] = { { .offset = 3 }, { .offset = UINT64_MAX }, { .inode = 5, .offset = 3 } };
	uint8_t value[LOGGED_OP_TRUNCATE_BYTES];
	int err = 0;

	(void)ctx;
	logged_op_truncate_encode(&(struct logged_op_truncate){ .subvol = 99, .inum = 4097 }, value);
	for (unsigned i = 0; i < ARRAY_NR(places) && !err; i++) {
		const struct bkey k = { .p = places[i],
					.type = KEY_LOGGED_OP_TRUNCATE,
					.value_u64s = LOGGED_OP_TRUNCATE_BYTES / 8 };

		err = btree_txn_put(txn, BTREE_LOGGED_OPS, &k, value, 0);
	}
	return err;
}

static void operations_that_cant_be_finished_are_passed_over(void **state)
{
	const struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };
	struct kiln_fs *fs = filesystem_make();
	struct recovery recovery = { .trees = fs->trees, .ns = fs->ns, .data = fs->data, .log = &fs->reporter.log };

	(void)state;
	assert_int_equal(btree_txn_run(fs->trees, &opts, ops_put, NULL), 0);
	assert_int_equal(recovery_pass(PASS_RESUME_LOGGED_OPS)->run(&recovery), 0);
	kiln_shutdown(fs);
	kiln_close(fs);
}

/* --- damage --- */

static int stray_snapshot_put(struct btree_txn *txn, void *ctx)
{
	const struct snapshot s = { .parent = 0, .tree = 99 };
	const struct bkey k = { .p = BPOS(0, 100, 0), .type = KEY_SNAPSHOT, .value_u64s = SNAPSHOT_BYTES / 8 };
	uint8_t value[SNAPSHOT_BYTES];

	(void)ctx;
	snapshot_encode(&s, value);
	return btree_txn_put(txn, BTREE_SNAPSHOTS, &k, value, 0);
}

/* Directories have no size. */
static int sized_directory_put(struct btree_txn *txn, void *ctx)
{
	struct bkey k = { .p = BPOS(0, 4242, UINT32_MAX), .type = KEY_INODE_V3 };
	const struct inode inode = { .inum = 4242, .mode = S_IFDIR | 0755, .size = 5 };
	uint8_t value[INODE_V3_BYTES_MAX];

	(void)ctx;
	k.value_u64s = (uint8_t)(inode_pack(&inode, value) / 8);
	return btree_txn_put(txn, BTREE_INODES, &k, value, 0);
}

static void superblock_make_old(const char *path, unsigned version)
{
	struct super_open_opts opts = { .is_write = true };
	struct super *s;

	assert_int_equal(super_open((char *const *)&path, 1, &opts, NULL, NULL, &s), 0);
	s->sb->version = s->sb->version_min = le16_of((uint16_t)version);
	sb_flag_set(s->sb, 5, 0, 16, version);
	assert_int_equal(super_update(s), 0);
	super_close(s);
}

static unsigned superblock_version(const char *path, uint64_t *seq)
{
	struct super_open_opts opts = { 0 };
	struct super *s;

	assert_int_equal(super_open((char *const *)&path, 1, &opts, NULL, NULL, &s), 0);
	unsigned version = le16_get(s->sb->version);
	*seq = le64_get(s->sb->seq);
	super_close(s);
	return version;
}

/* A filesystem of 1.@minor on a file, with what @put puts; "" or why it isn't written. */
static void opened(unsigned minor, btree_txn_fn put, char why[KILN_ERROR_BYTES])
{
	const struct btree_commit_opts commit = { .name = "test", .watermark = WATERMARK_NORMAL };
	char path[] = "/tmp/kiln-upgrade-XXXXXX";
	int fd = mkstemp(path);
	const char *device = path;
	struct kiln_format_device dev = { .path = path, .file_bytes = 32 << 20 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format), .device_struct_bytes = sizeof(dev) };
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE | KILN_OPEN_NO_SCAN };
	uint64_t seq[2];
	kiln_fs *fs;

	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(kiln_format(&dev, 1, &format, &fs, why), 0);
	if (put)
		assert_int_equal(btree_txn_run(fs->trees, &commit, put, NULL), 0);
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	superblock_make_old(path, VERSION(1, minor));

	assert_int_equal(superblock_version(path, &seq[0]), VERSION(1, minor));
	assert_int_equal(kiln_open(&device, 1, &open, &fs, why), 0);
	const char *refused = kiln_write_refused(fs);
	snprintf(why, KILN_ERROR_BYTES, "%s", refused ? refused : "");
	struct kiln_stat st;
	assert_int_equal(kiln_lookup_path(fs, "lost+found", 0, &st), 0);
	kiln_close(fs);
	assert_int_equal(superblock_version(path, &seq[1]), refused ? VERSION(1, minor) : VERSION_1_4);
	if (refused)
		assert_int_equal(seq[0], seq[1]);
	unlink(path);
}

static void what_cant_be_upgraded_is_read_as_it_is(void **state)
{
	char why[KILN_ERROR_BYTES];

	(void)state;
	opened(0, NULL, why);
	assert_string_equal(why, "");
	opened(0, stray_snapshot_put, why);
	assert_non_null(strstr(why, "from 1.0 needs what check_snapshots finds"));
	opened(1, sized_directory_put, why);
	assert_non_null(strstr(why, "from 1.1 needs what check_inodes finds"));
	/* The upgrade doesn't touch it. */
	opened(2, stray_snapshot_put, why);
	assert_string_equal(why, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(operations_that_cant_be_finished_are_passed_over),
		cmocka_unit_test(a_snapshot_without_all_its_ancestors_stays),
		cmocka_unit_test(what_cant_be_upgraded_is_read_as_it_is),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
