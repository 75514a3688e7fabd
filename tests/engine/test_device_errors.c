/*
 * Devices that fail: how that is told, and counted in the superblocks of the others before anybody unmounts.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fiber.h"
#include "device/power.h"
#include "engine/format.h"
#include "engine/fs_write.h"
#include "engine/whole.h"

enum { DISKS_MAX = 2, DISK_BYTES = 64 << 20, FILES = 8, FILE_BYTES = 256 << 10, TEXT_BYTES = 1024 };

static const uint64_t SECOND_NS = 1000000000;

struct world {
	unsigned disks;
	struct power *power;
	struct kiln_fs *fs;
	struct device *failing; /* the last one */
	struct kiln_node files[FILES];
	unsigned told; /* of data that wasn't written */
	char text[TEXT_BYTES];
};

static void on_report(void *ctx, const struct kiln_report *r)
{
	struct world *w = ctx;

	if (!strstr(r->text, "file data"))
		return;
	w->told++;
	snprintf(w->text, sizeof(w->text), "%s", r->text);
}

static void disks_open(struct world *w, struct device *devices[DISKS_MAX])
{
	for (unsigned i = 0; i < w->disks; i++)
		assert_int_equal(power_disk_open(w->power, i, &devices[i]), 0);
	assert_int_equal(device_wrap_fault(devices[w->disks - 1], 1, &devices[w->disks - 1]), 0);
	w->failing = devices[w->disks - 1];
}

static struct kiln_open_options open_options(struct world *w)
{
	return (struct kiln_open_options){ .struct_bytes = sizeof(struct kiln_open_options),
					   .flags = KILN_OPEN_WRITE,
					   .ctx = w,
					   .report = on_report };
}

static void make(struct world *w)
{
	struct kiln_format_device format_devs[DISKS_MAX] = { { .path = "a" }, { .path = "b" } };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(format_devs[0]),
					      .options = w->disks > 1 ? "metadata_replicas=2,data_replicas=2" : "",
					      .superblock_bytes = 64 << 10 };
	struct kiln_open_options open = open_options(w);
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct device *devices[DISKS_MAX];
	char why[KILN_ERROR_BYTES] = "", name[8];
	struct kiln_stat st;

	w->power = power_new(1);
	for (unsigned i = 0; i < w->disks; i++)
		assert_int_equal(power_disk_add(w->power, DISK_BYTES, 512), i);
	disks_open(w, devices);
	if (fs_format_devices(devices, format_devs, w->disks, &format, why) ||
	    fs_initialize(devices, w->disks, &open, &w->fs, why))
		fail_msg("%s", why);
	for (unsigned i = 0; i < FILES; i++) {
		int len = snprintf(name, sizeof(name), "%u", i);

		assert_int_equal(kiln_create(w->fs, kiln_root(w->fs), name, (size_t)len, &attr, &st), 0);
		w->files[i] = st.node;
	}
	assert_int_equal(kiln_sync(w->fs), 0);
}

static void reopen(struct world *w)
{
	struct kiln_open_options open = open_options(w);
	struct device *devices[DISKS_MAX];
	char why[KILN_ERROR_BYTES] = "";

	disks_open(w, devices);
	if (fs_open(NULL, 0, devices, w->disks, &open, FS_NAMESPACE, &w->fs, why))
		fail_msg("%s", why);
	assert_null(kiln_write_refused(w->fs));
}

static void fail_all(struct world *w, enum device_op op)
{
	const struct device_fault fault = {
		.kind = FAULT_ERROR, .op = op, .per_million = 1000000, .err = -EIO, .remaining = UINT64_MAX
	};

	assert_int_equal(device_fault_add(w->failing, &fault), 0);
}

static ssize_t write_file(struct world *w, unsigned file, uint64_t at)
{
	static uint8_t bytes[FILE_BYTES];

	memset(bytes, 0x5a, sizeof(bytes));
	return kiln_write(w->fs, w->files[file], at, bytes, sizeof(bytes));
}

static uint64_t errors_of(const struct world *w, enum super_error_kind kind, bool is_total)
{
	struct super_errors errors;

	super_member_errors(w->fs->super, w->disks - 1, &errors);
	return is_total ? errors.total[kind] : errors.since_open[kind];
}

/* --- told --- */

static void tell_of_writes(void *arg)
{
	struct world *w = arg;
	char place[64];

	make(w);
	/* The superblocks aren't written meanwhile, which fails, too. */
	fail_all(w, DEVICE_WRITE);
	for (unsigned i = 0; i < FILES; i++)
		assert_int_equal(write_file(w, i, 0), FILE_BYTES);
	uint64_t failed = errors_of(w, SUPER_ERROR_WRITE, false);
	assert_true(failed >= FILES);
	assert_int_equal(w->told, 1);
	snprintf(place, sizeof(place), "inode %" PRIu64 " snapshot 4294967295 offset 0:", w->files[0].ino);
	assert_non_null(strstr(w->text, place));
	assert_null(strstr(w->text, "times"));

	sleep_ns(61 * SECOND_NS);
	assert_int_equal(write_file(w, 1, 1 << 20), FILE_BYTES);
	assert_int_equal(w->told, 2);
	snprintf(place, sizeof(place), "inode %" PRIu64 " snapshot 4294967295 offset %u:", w->files[1].ino, 1 << 20);
	assert_non_null(strstr(w->text, place));
	const char *times = strchr(w->text, '(');
	assert_non_null(times);
	assert_non_null(strstr(times, " times since this was told last)"));
	assert_in_range(strtoul(times + 1, NULL, 10), FILES, 4 * FILES);

	/* A failure much later is no old story. */
	sleep_ns(7ull * 24 * 3600 * SECOND_NS);
	assert_int_equal(write_file(w, 2, 1 << 20), FILE_BYTES);
	assert_int_equal(w->told, 3);
	device_fault_clear(w->failing);
	assert_int_equal(kiln_shutdown(w->fs), 0);
	kiln_close(w->fs);
}

/* --- counted --- */

static void count_before_a_crash(void *arg)
{
	struct world *w = arg;

	make(w);
	fail_all(w, DEVICE_WRITE);
	assert_int_equal(write_file(w, 0, 0), FILE_BYTES);
	uint64_t failed = errors_of(w, SUPER_ERROR_WRITE, false);
	assert_true(failed > 0);
	sleep_ns(5 * SECOND_NS);
	/* Not for each of the next. */
	uint64_t seq = le64_get(w->fs->super->sb->seq);
	for (unsigned i = 1; i < FILES; i++) {
		assert_int_equal(write_file(w, i, 0), FILE_BYTES);
		sleep_ns(5 * SECOND_NS);
	}
	assert_int_equal(le64_get(w->fs->super->sb->seq), seq);
	sleep_ns(60 * SECOND_NS);
	assert_int_equal(le64_get(w->fs->super->sb->seq), seq + 1);
	failed = errors_of(w, SUPER_ERROR_WRITE, true);
	power_cut(w->power);
	kiln_close(w->fs);
	power_restore(w->power);
	reopen(w);
	assert_int_equal(errors_of(w, SUPER_ERROR_WRITE, false), 0);
	uint64_t total = errors_of(w, SUPER_ERROR_WRITE, true);
	/* But for what the last update met itself. */
	assert_in_range(total, failed - 8, failed);
	assert_int_equal(kiln_shutdown(w->fs), 0);
	kiln_close(w->fs);
}

/* A device that can't be read well, and not be written at all for a while, is no worse off for what is noted there. */
static void go_on_when_it_cannot_be_noted(void *arg)
{
	static uint8_t bytes[FILE_BYTES];
	struct world *w = arg;

	make(w);
	assert_int_equal(write_file(w, 0, 0), FILE_BYTES);
	assert_int_equal(kiln_sync(w->fs), 0);
	sleep_ns(10 * SECOND_NS);
	uint64_t seq = le64_get(w->fs->super->sb->seq);
	fail_all(w, DEVICE_READ);
	fail_all(w, DEVICE_WRITE);
	assert_int_equal(kiln_read(w->fs, w->files[0], 0, bytes, sizeof(bytes)), -EIO);
	uint64_t failed = errors_of(w, SUPER_ERROR_READ, true);
	assert_true(failed > 0);
	sleep_ns(5 * SECOND_NS);
	assert_true(errors_of(w, SUPER_ERROR_WRITE, false) > 0);
	assert_int_equal(le64_get(w->fs->super->sb->seq), seq);
	device_fault_clear(w->failing);
	assert_int_equal(super_update(w->fs->super), 0);
	assert_int_equal(write_file(w, 1, 0), FILE_BYTES);
	assert_int_equal(kiln_shutdown(w->fs), 0);
	kiln_close(w->fs);
	reopen(w);
	assert_true(errors_of(w, SUPER_ERROR_READ, true) >= failed);
	assert_int_equal(kiln_read(w->fs, w->files[0], 0, bytes, sizeof(bytes)), FILE_BYTES);
	assert_int_equal(kiln_shutdown(w->fs), 0);
	kiln_close(w->fs);
}

static void run(task_fn fn, unsigned disks)
{
	for (uint64_t seed = 1; seed <= 3; seed++) {
		struct world w = { .disks = disks };

		assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, fn, &w, NULL), 0);
		power_free(w.power);
	}
}

static void writes_that_fail_are_told_by_place_and_once_a_minute(void **state) { run(tell_of_writes, 2); }
static void errors_are_in_the_superblocks_before_a_crash(void **state) { run(count_before_a_crash, 2); }
static void errors_that_cannot_be_noted_do_no_harm(void **state) { run(go_on_when_it_cannot_be_noted, 1); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(writes_that_fail_are_told_by_place_and_once_a_minute),
		cmocka_unit_test(errors_are_in_the_superblocks_before_a_crash),
		cmocka_unit_test(errors_that_cannot_be_noted_do_no_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
