/* Upgrades of filesystems that are damaged: they are left to repair, whatever is missing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/format.h"
#include "engine/fs_write.h"
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

static void a_snapshot_without_all_its_ancestors_stays(void **state)
{
	struct kiln_format_device format_dev = { .path = "a", .bucket_bytes = 256 << 10 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(format_dev),
					      .superblock_bytes = 64 << 10 };
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE };
	const struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };
	char why[KILN_ERROR_BYTES] = "";
	struct device *device;
	struct bkey_copy copy;
	struct snapshot s;
	struct kiln_fs *fs;

	assert_int_equal(device_open_memory("memory", 64 << 20, 512, &device), 0);
	assert_int_equal(fs_format_devices(&device, &format_dev, 1, &format, why), 0);
	assert_int_equal(fs_initialize(&device, 1, &open, &fs, why), 0);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_snapshot_without_all_its_ancestors_stays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
