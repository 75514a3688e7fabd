/*
 * The power goes while a passphrase is set and taken away, at every other write (every sixth with sanitizers): after it
 * the filesystem opens as it did before or as it was to, with all devices saying the same, and it can be changed again.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/sanitizer.h"
#include "device/power.h"
#include "engine/format.h"
#include "engine/fs.h"
#include "engine/whole.h"

enum { DISKS = 2, DISK_BYTES = 64 << 20, IOS_MAX = 100, CUT_EVERY = KILN_SANITIZED ? 6 : 2 };

static const char passphrase[] = "secret";

static struct power *power;
static struct crypt_key user_key; /* what the passphrase makes: deriving it takes long on purpose */

static void disks_open(struct device *devices[DISKS])
{
	for (unsigned i = 0; i < DISKS; i++)
		assert_int_equal(power_disk_open(power, i, &devices[i]), 0);
}

static int open_with(const uint8_t *key, enum fs_depth depth, struct kiln_fs **fs)
{
	struct kiln_open_options options = {
		.struct_bytes = sizeof(options), .flags = KILN_OPEN_WRITE, .memory_bytes = KILN_MEMORY_MIN, .key = key
	};
	struct device *devices[DISKS];
	char why[KILN_ERROR_BYTES] = "";

	disks_open(devices);
	int err = fs_open(NULL, 0, devices, DISKS, &options, depth, fs, why);
	if (!err && depth == FS_SUPER) {
		err = fs_passphrase_unlock(*fs, &options, why);
		if (err)
			kiln_close(*fs);
	}
	if (err && err != -ENOKEY)
		fail_msg("%s", why);
	return err;
}

static void make(void)
{
	struct kiln_format_device format_devs[DISKS] = { { .path = "a" }, { .path = "b" } };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(format_devs[0]),
					      .flags = KILN_FORMAT_ENCRYPTED,
					      .options = "metadata_replicas=2,data_replicas=2",
					      .superblock_bytes = 64 << 10 };
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct device *devices[DISKS];
	char why[KILN_ERROR_BYTES] = "";
	struct kiln_stat st;
	struct kiln_fs *fs;

	for (unsigned i = 0; i < DISKS; i++)
		assert_int_equal(power_disk_add(power, DISK_BYTES, 512), i);
	disks_open(devices);
	if (fs_format_devices(devices, format_devs, DISKS, &format, why))
		fail_msg("%s", why);
	for (unsigned i = 0; i < DISKS; i++)
		device_close(devices[i]);
	assert_int_equal(open_with(NULL, FS_NAMESPACE, &fs), 0);
	assert_int_equal(kiln_create(fs, kiln_root(fs), "file", 4, &attr, &st), 0);
	assert_int_equal(kiln_write(fs, st.node, 0, "content", 7), 7);
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
}

/* Whether it opens; then what it holds is read. */
static bool opens_with(const uint8_t *key)
{
	struct kiln_stat st;
	struct kiln_fs *fs;
	char got[8] = "";

	if (open_with(key, FS_NAMESPACE, &fs))
		return false;
	assert_int_equal(kiln_lookup(fs, kiln_root(fs), "file", 4, &st), 0);
	assert_int_equal(kiln_read(fs, st.node, 0, got, 7), 7);
	assert_string_equal(got, "content");
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	return true;
}

static void key_derive(void)
{
	struct sb_crypt c;
	struct kiln_fs *fs;

	assert_int_equal(open_with(NULL, FS_SUPER, &fs), 0);
	assert_true(sb_crypt(fs->super->sb, &c));
	sb_crypt_kdf_choose(&c);
	assert_int_equal(sb_crypt_derive(&c, passphrase, strlen(passphrase), &user_key), 0);
	kiln_close(fs);
}

static void a_change_is_made_or_not_made(void **state)
{
	bool is_set = false, is_through = false;
	unsigned kept = 0, changed = 0;
	uint64_t seed = seed_print();

	(void)state;
	power = power_new(seed);
	make();
	key_derive();
	for (uint64_t ios = 1 + seed % 2; !is_through && ios < IOS_MAX; ios += CUT_EVERY) {
		char why[KILN_ERROR_BYTES] = "";
		struct kiln_fs *fs;

		assert_int_equal(open_with(user_key.bytes, FS_SUPER, &fs), 0);
		power_cut_after(power, ios);
		int err = fs_passphrase_set(fs, is_set ? NULL : passphrase, strlen(passphrase), why);
		is_through = !power_is_off(power);
		assert_true(!is_through || !err);
		if (is_through)
			power_cut(power);
		kiln_close(fs);
		power_restore(power);

		bool was_set = is_set;
		is_set = !opens_with(NULL);
		assert_true(opens_with(user_key.bytes));
		assert_true(is_set != was_set || err); /* what was said to be done is */
		changed += is_set != was_set;
		kept += is_set == was_set;
	}
	assert_true(is_through && changed);
	print_message("%u times as before, %u times as it was to be\n", kept, changed);
	power_free(power);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(a_change_is_made_or_not_made) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
