/*
 * Small journals with the smallest nodes: what it takes to write back what one bucket says is several times that, and
 * must have room. Files are made, all are deleted, and it is shut down: none of that comes to a standstill. Nor does it
 * where others made the journal: with that it does, but it is made larger when it is opened. And where nodes can't be
 * written any more, nobody waits for the space that this would have given.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/sync.h"
#include "base/util.h"
#include "device/power.h"
#include "engine/format.h"
#include "engine/fs.h"
#include "engine/ring.h"
#include "engine/whole.h"

enum {
	BUCKET_BYTES = 32 << 10,
	FILES_MAX = 8000,
	PIECES_MAX = 6,
	PIECE_DISTANCE = 8192,
	STANDSTILL_SECONDS = 100, /* a hundred times what it takes */
};

static void make_files(struct kiln_fs *fs, unsigned files, struct rng *rng)
{
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	static const char block[4 * SECTOR_BYTES];

	for (unsigned i = 0; i < files; i++) {
		char name[16];
		int len = snprintf(name, sizeof(name), "%u", i);
		struct kiln_stat st;

		assert_int_equal(kiln_create(fs, kiln_root(fs), name, (size_t)len, &attr, &st), 0);
		for (uint64_t k = 1 + rng_below(rng, PIECES_MAX); k--;) {
			size_t bytes = SECTOR_BYTES * (1 + rng_below(rng, 4));

			assert_int_equal(kiln_write(fs, st.node, k * PIECE_DISTANCE, block, bytes), bytes);
		}
	}
	assert_int_equal(kiln_sync(fs), 0);
}

/* In any order, so that what is deleted is everywhere. */
static void delete_files(struct kiln_fs *fs, unsigned files, struct rng *rng)
{
	static unsigned order[FILES_MAX];

	for (unsigned i = 0; i < files; i++) {
		unsigned k = (unsigned)rng_below(rng, i + 1);

		order[i] = order[k];
		order[k] = i;
	}
	for (unsigned i = 0; i < files; i++) {
		char name[16];
		int len = snprintf(name, sizeof(name), "%u", order[i]);

		assert_int_equal(kiln_unlink(fs, kiln_root(fs), name, (size_t)len, 0), 0);
	}
}

/* Nodes of eight blocks, in small buckets. */
static void small_nodes_format(struct device **dev)
{
	struct kiln_format_device format_dev = { .path = "a", .bucket_bytes = BUCKET_BYTES };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(format_dev),
					      .options = "block_size=512,btree_node_size=4k",
					      .superblock_bytes = 64 << 10 };
	char why[KILN_ERROR_BYTES] = "";

	if (fs_format_devices(dev, &format_dev, 1, &format, why))
		fail_msg("%s", why);
}

/* @preset: the journal that it is made with, if that isn't what format gives. */
static void files_come_and_go(unsigned buckets, unsigned preset, unsigned journal_buckets, unsigned files)
{
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE };
	struct power *power = power_new(1);
	char why[KILN_ERROR_BYTES] = "";
	struct journal_usage usage;
	struct kiln_fs *fs = NULL;
	struct device *dev;
	struct rng rng;

	rng_init(&rng, seed_print());
	alarm(STANDSTILL_SECONDS);
	assert_int_equal(power_disk_add(power, (uint64_t)buckets * BUCKET_BYTES, SECTOR_BYTES), 0);
	assert_int_equal(power_disk_open(power, 0, &dev), 0);
	small_nodes_format(&dev);
	if (preset)
		ring_preset(dev, preset);
	if (fs_initialize(&dev, 1, &open, preset ? NULL : &fs, why))
		fail_msg("%s", why);
	if (preset) {
		assert_int_equal(power_disk_open(power, 0, &dev), 0);
		assert_int_equal(ring_buckets(dev), preset);
		if (fs_open(NULL, 0, &dev, 1, &open, FS_NAMESPACE, &fs, why))
			fail_msg("%s", why);
	}
	journal_usage(fs->journal_writer, &usage);
	assert_int_equal(usage.buckets_total, journal_buckets);
	make_files(fs, files, &rng);
	delete_files(fs, files, &rng);
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	alarm(0);

	assert_int_equal(power_disk_open(power, 0, &dev), 0);
	if (fs_open(NULL, 0, &dev, 1, &open, FS_NAMESPACE, &fs, why))
		fail_msg("%s", why);
	must_be_consistent(fs);
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	power_free(power);
}

/* One bucket more, and the journal has nine. */
static void the_smallest_ring_goes_on(void **state)
{
	(void)state;
	files_come_and_go(143, 0, 8, 270);
}

/* What is to be written back grows with the filesystem, and so does its journal. KILN_TEST_SOAK: in a larger one. */
static void a_ring_goes_on_that_grew_with_the_filesystem(void **state)
{
	bool is_soak = getenv("KILN_TEST_SOAK");

	(void)state;
	files_come_and_go(is_soak ? 2048 : 512, 0, is_soak ? 128 : 32, is_soak ? FILES_MAX : FILES_MAX / 4);
}

/* Files in this number come to a standstill with the eight. */
static void a_ring_that_others_made_is_made_larger(void **state)
{
	(void)state;
	files_come_and_go(1024, 8, 64, FILES_MAX / 4);
}

/* --- nodes that can't be written --- */

enum { CHANGERS = 3, CHANGES_MAX = 100000, NODE_WRITE_NS = 200000000 };

struct changer {
	struct kiln_fs *fs;
	struct kiln_node node;
	struct task *task;
	int err; /* what it ended with */
};

static void change_until_refused(void *arg)
{
	struct changer *c = arg;

	for (unsigned i = 0; i < CHANGES_MAX && !c->err; i++)
		c->err = kiln_setattr(c->fs, c->node, &(struct kiln_setattr){ .fields = KILN_SET_UID, .uid = i }, NULL);
}

static void writes_behind(struct device *dev, uint64_t begin_bytes, enum device_fault_kind kind)
{
	struct device_fault rule = { .kind = kind,
				     .op = DEVICE_WRITE,
				     .begin_bytes = begin_bytes,
				     .end_bytes = dev->size_bytes,
				     .per_million = 1000000,
				     .latency_ns = NODE_WRITE_NS,
				     .err = -EIO,
				     .remaining = UINT64_MAX };

	assert_int_equal(device_fault_add(dev, &rule), 0);
}

/*
 * Writes of nodes take a while, and then fail. Until then the journal is full, of changes that need no new nodes, and
 * all wait for the space that those writes were to give.
 */
static void nobody_waits_for_nodes_that_cant_be_written(void **state)
{
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE };
	struct changer changers[CHANGERS] = { 0 };
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct journal_usage usage;
	struct kiln_stat st;
	struct power *power = power_new(1);
	char why[KILN_ERROR_BYTES] = "";
	struct device *dev, *failing, *slow;
	uint64_t start, nr, behind = 0;
	struct kiln_fs *fs = NULL;

	(void)state;
	alarm(STANDSTILL_SECONDS);
	assert_int_equal(power_disk_add(power, 143 * BUCKET_BYTES, SECTOR_BYTES), 0);
	assert_int_equal(power_disk_open(power, 0, &dev), 0);
	assert_int_equal(device_wrap_fault(dev, 1, &failing), 0);
	assert_int_equal(device_wrap_fault(failing, 2, &slow), 0);
	small_nodes_format(&slow);
	if (fs_initialize(&slow, 1, &open, &fs, why))
		fail_msg("%s", why);
	for (unsigned i = 0; i < sb_journal_range_nr(fs->super->members[0].sb); i++) {
		sb_journal_range(fs->super->members[0].sb, i, &start, &nr);
		behind = max(behind, (start + nr) * BUCKET_BYTES);
	}
	assert_true(behind);
	for (unsigned i = 0; i < CHANGERS; i++) {
		assert_int_equal(kiln_create(fs, kiln_root(fs), &"abc"[i], 1, &attr, &st), 0);
		changers[i] = (struct changer){ .fs = fs, .node = st.node };
	}
	assert_int_equal(kiln_sync(fs), 0);
	writes_behind(failing, behind, FAULT_ERROR);
	writes_behind(slow, behind, FAULT_LATENCY);
	for (unsigned i = 0; i < CHANGERS; i++)
		assert_int_equal(task_start(&changers[i].task, "changer", change_until_refused, &changers[i]), 0);
	for (unsigned i = 0; i < CHANGERS; i++) {
		task_join(changers[i].task);
		assert_int_equal(changers[i].err, -EROFS);
	}
	journal_usage(fs->journal_writer, &usage);
	assert_true(usage.reservations_waited > 0);
	assert_int_not_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	power_free(power);
	alarm(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(the_smallest_ring_goes_on),
					    cmocka_unit_test(a_ring_goes_on_that_grew_with_the_filesystem),
					    cmocka_unit_test(a_ring_that_others_made_is_made_larger),
					    cmocka_unit_test(nobody_waits_for_nodes_that_cant_be_written) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
