/* Upgrades and recovery of filesystems that are damaged: what is wrong is left to repair, whatever it is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/format.h"
#include "engine/fs_write.h"
#include "format/logged_op.h"
#include "format/snapshot.h"
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(operations_that_cant_be_finished_are_passed_over),
		cmocka_unit_test(a_snapshot_without_all_its_ancestors_stays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
