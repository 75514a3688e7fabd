/*
 * Data reaches a device whose cache then can't be flushed, before the key that points at it is committed. The device is
 * left, as everything that was on it is on another one too; that data isn't, so its write is refused. What was
 * acknowledged is there after the power went.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fiber.h"
#include "device/power.h"
#include "engine/format.h"
#include "engine/fs.h"
#include "engine/whole.h"

enum { DISKS = 2, DISK_BYTES = 64 << 20, DATA_BYTES = 64 << 10, SEEDS = 5 };

struct world {
	uint64_t seed;
	struct power *power;
	struct kiln_fs *fs;
	struct device *failing; /* that data goes to */
	struct kiln_node file;
	ssize_t written;
	int fsynced;
};

static void disks_open(struct world *w, struct device *devices[DISKS])
{
	for (unsigned i = 0; i < DISKS; i++)
		assert_int_equal(power_disk_open(w->power, i, &devices[i]), 0);
}

static struct kiln_node create(struct world *w, const char *name)
{
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_stat st;

	assert_int_equal(kiln_create(w->fs, kiln_root(w->fs), name, strlen(name), &attr, &st), 0);
	return st.node;
}

static void make(struct world *w)
{
	struct kiln_format_device format_devs[DISKS] = {
		{ .path = "a", .data_allowed = 1u << DATA_JOURNAL | 1u << DATA_BTREE }, { .path = "b" }
	};
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(format_devs[0]),
					      .options = "metadata_replicas=2",
					      .superblock_bytes = 64 << 10 };
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE };
	struct device *devices[DISKS];
	char why[KILN_ERROR_BYTES] = "";

	w->power = power_new(w->seed);
	for (unsigned i = 0; i < DISKS; i++)
		assert_int_equal(power_disk_add(w->power, DISK_BYTES, 512), i);
	disks_open(w, devices);
	assert_int_equal(device_wrap_fault(devices[1], w->seed, &devices[1]), 0);
	w->failing = devices[1];
	if (fs_format_devices(devices, format_devs, DISKS, &format, why) ||
	    fs_initialize(devices, DISKS, &open, &w->fs, why))
		fail_msg("%s", why);
	w->file = create(w, "file");
	assert_int_equal(btrees_flush_all(w->fs->trees), 0);
	assert_int_equal(kiln_sync(w->fs), 0);
}

static void write_task(void *arg)
{
	struct world *w = arg;
	uint8_t *bytes = malloc(DATA_BYTES);

	memset(bytes, 0x5a, DATA_BYTES);
	w->written = kiln_write(w->fs, w->file, 0, bytes, DATA_BYTES);
	w->fsynced = w->written > 0 ? kiln_fsync(w->fs, w->file) : -EIO;
	free(bytes);
}

/* The next write of the device is there at once, and known to be a second later. */
static void write_while_flushes_fail(struct world *w)
{
	const struct device_fault late = { .kind = FAULT_LATENCY,
					   .op = DEVICE_WRITE,
					   .per_million = 1000000,
					   .latency_ns = 1000000000,
					   .remaining = 1 };
	const struct device_fault no_flush = {
		.kind = FAULT_ERROR, .op = DEVICE_FLUSH, .per_million = 1000000, .err = -EIO, .remaining = UINT64_MAX
	};
	uint64_t counts[FAULT_KIND_NR] = { 0 };
	struct task *task;

	assert_int_equal(device_fault_add(w->failing, &late), 0);
	assert_int_equal(task_start(&task, "writer", write_task, w), 0);
	for (; !counts[FAULT_LATENCY]; device_fault_counts(w->failing, counts))
		sleep_ns(1000000);
	assert_int_equal(device_fault_add(w->failing, &no_flush), 0);
	create(w, "other");
	assert_int_equal(kiln_sync(w->fs), 0);
	assert_int_equal(w->fs->super->members[1].m.state, MEMBER_FAILED);
	assert_int_equal(w->written, 0); /* still under way */
	task_join(task);
}

static void power_goes(struct world *w)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_WRITE | KILN_OPEN_DEGRADED };
	struct device *devices[DISKS];
	char why[KILN_ERROR_BYTES] = "";

	power_cut(w->power);
	kiln_close(w->fs);
	power_restore(w->power);
	disks_open(w, devices);
	if (fs_open(NULL, 0, devices, DISKS, &options, FS_NAMESPACE, &w->fs, why))
		fail_msg("%s", why);
}

static void what_was_acknowledged_is_there(struct world *w)
{
	uint8_t *bytes = calloc(1, DATA_BYTES);
	struct kiln_stat st;

	assert_int_equal(kiln_lookup(w->fs, kiln_root(w->fs), "other", 5, &st), 0);
	assert_int_equal(kiln_lookup(w->fs, kiln_root(w->fs), "file", 4, &st), 0);
	ssize_t n = kiln_read(w->fs, st.node, 0, bytes, DATA_BYTES);
	assert_int_equal(n, w->fsynced ? 0 : DATA_BYTES);
	for (ssize_t i = 0; i < n; i++)
		assert_int_equal(bytes[i], 0x5a);
	must_be_consistent(w->fs);
	free(bytes);
}

static void write_to_what_fails(void *arg)
{
	struct world *w = arg;

	make(w);
	write_while_flushes_fail(w);
	power_goes(w);
	what_was_acknowledged_is_there(w);
	assert_int_equal(kiln_shutdown(w->fs), 0);
	kiln_close(w->fs);
	power_free(w->power);
}

static void data_that_no_flush_covers_is_not_acknowledged(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		struct world w = { .seed = seed };

		assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, write_to_what_fails, &w, NULL),
				 0);
		assert_int_equal(w.written, -EIO);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(data_that_no_flush_covers_is_not_acknowledged),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
