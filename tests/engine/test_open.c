/*
 * Opening what can't be opened, and the passphrase: the error, and the reason told, for each. On packed images of
 * tests/images; skipped where there is no zstd.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "alloc/usage.h"
#include "base/sync.h"
#include "base/util.h"
#include "engine/fs.h"
#include "format/jset.h"
#include "kiln/kiln.h"
#include "super/super.h"

static char folder[] = "/tmp/kiln-open-XXXXXX";

static const char *path_of(const char *name)
{
	static char paths[4][128];
	static unsigned next;
	char *path = paths[next++ % ARRAY_NR(paths)];

	snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
	return path;
}

/* Unpack NAME.img.zst of tests/images, once. */
static const char *unpacked(const char *name)
{
	char file[] = __FILE__, command[1024];
	const char *path = path_of(name);

	if (!access(path, F_OK))
		return path;
	snprintf(command, sizeof(command), "zstd -dqf --sparse --long=31 '%s/../images/%s.img.zst' -o '%s'",
		 dirname(file), name, path);
	if (system("command -v zstd >/dev/null")) {
		print_message("SKIPPED: no zstd\n");
		skip();
	}
	assert_int_equal(system(command), 0);
	return path;
}

static void opening_fails(const char *path, const struct kiln_open_options *options, int want, const char *says)
{
	char why[KILN_ERROR_BYTES] = "";
	kiln_fs *fs = NULL;
	int err = kiln_open(&path, 1, options, &fs, why);

	if (err != want || !strstr(why, says))
		fail_msg("%s: error %d (%s), expected %d (%s)", path, err, why, want, says);
}

static int make_folder(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
	char command[64];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf '%s'", folder);
	return system(command);
}

/* --- devices --- */

static void bytes_that_are_no_filesystem_are_told_as_such(void **state)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = KILN_OPEN_NO_SCAN };
	const char *path = path_of("noise");
	FILE *file = fopen(path, "w");

	(void)state;
	assert_non_null(file);
	for (unsigned i = 0; i < 4 << 20; i++)
		fputc((int)(i * 2654435761u >> 24), file);
	assert_int_equal(fclose(file), 0);
	opening_fails(path, &options, -EUCLEAN, path);
	opening_fails(path, &options, -EUCLEAN, "intact copy");
}

static void a_device_of_another_filesystem_is_refused_by_name(void **state)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = KILN_OPEN_NO_SCAN };
	char why[KILN_ERROR_BYTES] = "";
	const char *devices[] = { unpacked("v1.4-empty"), unpacked("v1.39-casefold") };
	kiln_fs *fs;

	(void)state;
	assert_int_not_equal(kiln_open(devices, 2, &options, &fs, why), 0);
	if (!strstr(why, "v1.39-casefold") && !strstr(why, "v1.4-empty"))
		fail_msg("which device isn't told: %s", why);
}

static void a_missing_member_is_named(void **state)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = KILN_OPEN_NO_SCAN };

	(void)state;
	opening_fails(unpacked("small-zstd-replicas2.dev0"), &options, -ENODEV, "device 1");
	opening_fails(unpacked("small-zstd-replicas2.dev1"), &options, -ENODEV, "device 0");
	options.mount_options = "degraded";
	const char *device = unpacked("small-zstd-replicas2.dev1");
	kiln_fs *fs;
	assert_int_equal(kiln_open(&device, 1, &options, &fs, NULL), 0);
	kiln_close(fs);
}

/* --- counters --- */

static struct kiln_format_options formatting(void)
{
	return (struct kiln_format_options){ .struct_bytes = sizeof(struct kiln_format_options),
					     .device_struct_bytes = sizeof(struct kiln_format_device),
					     .flags = KILN_FORMAT_FORCE };
}

/* Who knows that, and wants to write all the same, can say so. */
static void with_fewer_devices_than_copies_required_it_is_only_read(void **state)
{
	const char *paths[] = { path_of("required-0"), path_of("required-1") };
	struct kiln_format_device devs[] = { { .path = paths[0], .file_bytes = 32 << 20 },
					     { .path = paths[1], .file_bytes = 32 << 20 } };
	struct kiln_format_options format = formatting();
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_NO_SCAN | KILN_OPEN_WRITE | KILN_OPEN_DEGRADED };
	static const char *const required[] = { "metadata_replicas_required", "data_replicas_required" };
	struct kiln_create create = { .mode = 0644 };
	struct kiln_stat st;
	char text[80];
	kiln_fs *fs;

	(void)state;
	format.options = text;
	for (size_t i = 0; i < ARRAY_NR(required); i++) {
		snprintf(text, sizeof(text), "metadata_replicas=2,data_replicas=2,%s=2", required[i]);
		assert_int_equal(kiln_format(devs, 2, &format, NULL, NULL), 0);
		options.mount_options = NULL;
		for (unsigned nr = 2; nr; nr--) {
			assert_int_equal(kiln_open(paths, nr, &options, &fs, NULL), 0);
			const char *why = kiln_write_refused(fs);
			assert_int_equal(!why, nr == 2);
			assert_true(!why ||
				    strstr(why, i ? "(data_replicas_required)" : "(metadata_replicas_required)"));
			assert_int_equal(kiln_create(fs, kiln_root(fs), "0", 1, &create, &st), why ? -EROFS : 0);
			assert_int_equal(kiln_shutdown(fs), 0);
			kiln_close(fs);
		}
		snprintf(text, sizeof(text), "%s=1", required[i]);
		options.mount_options = text;
		assert_int_equal(kiln_open(paths, 1, &options, &fs, NULL), 0);
		assert_null(kiln_write_refused(fs));
		assert_int_equal(kiln_create(fs, kiln_root(fs), "1", 1, &create, &st), 0);
		assert_int_equal(kiln_shutdown(fs), 0);
		kiln_close(fs);
	}
}

/* --- damage --- */

static int node_remember(void *ctx, const struct btree_node_info *info, int err)
{
	assert_int_equal(err, 0);
	*(uint64_t *)ctx = info->ptr.ptrs[0].sector * SECTOR_BYTES;
	return 0;
}

/* Whatever was written then nobody would find. */
static void without_a_root_directory_it_is_only_read(void **state)
{
	static const unsigned btrees[] = { BTREE_INODES, BTREE_DIRENTS };
	static const uint8_t nothing[4096];
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_NO_SCAN | KILN_OPEN_WRITE };
	const char *path = path_of("root");
	struct kiln_format_device dev = { .path = path, .file_bytes = 32 << 20 };
	struct kiln_format_options format = formatting();
	struct kiln_create create = { .mode = 0644 };
	struct kiln_stat st;
	kiln_fs *fs;

	(void)state;
	for (unsigned i = 0; i < ARRAY_NR(btrees); i++) {
		uint64_t at = 0;

		assert_int_equal(kiln_format(&dev, 1, &format, &fs, NULL), 0);
		assert_int_equal(kiln_shutdown(fs), 0);
		assert_int_equal(btree_nodes_walk(fs->trees, btrees[i], node_remember, &at), 0);
		kiln_close(fs);
		int fd = open(path, O_WRONLY);
		assert_int_equal(pwrite(fd, nothing, sizeof(nothing), (off_t)at), sizeof(nothing));
		close(fd);
		assert_int_equal(kiln_open(&path, 1, &options, &fs, NULL), 0);
		assert_non_null(strstr(kiln_write_refused(fs), "root directory"));
		assert_int_equal(kiln_create(fs, kiln_root(fs), "0", 1, &create, &st), -EROFS);
		kiln_close(fs);
	}
}

/* --- fewer copies --- */

static bool is_warned;

static void on_log(void *ctx, enum kiln_log_level level, const char *line)
{
	(void)ctx;
	is_warned |= level <= KILN_LOG_WARNING && strstr(line, "fewer copies");
}

/* Open these, change something everywhere, close: bytes of metadata that have one copy then. */
static uint64_t written_with(const char **paths, unsigned nr, unsigned round)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_NO_SCAN | KILN_OPEN_WRITE | KILN_OPEN_DEGRADED,
					     .log = on_log,
					     .log_level = KILN_LOG_WARNING };
	struct kiln_create create = { .mode = 0644 };
	char why[KILN_ERROR_BYTES] = "", name[32];
	struct kiln_stat st;
	struct usage u;
	kiln_fs *fs;

	is_warned = false;
	if (kiln_open(paths, nr, &options, &fs, why))
		fail_msg("%s", why);
	assert_null(kiln_write_refused(fs));
	for (unsigned i = 0; i < 600; i++) {
		int len = snprintf(name, sizeof(name), "%u in round %u", i, round);

		assert_int_equal(kiln_create(fs, kiln_root(fs), name, (size_t)len, &create, &st), 0);
		assert_int_equal(kiln_write(fs, st.node, 0, why, sizeof(why)), sizeof(why));
	}
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	options.flags &= ~(unsigned)KILN_OPEN_WRITE;
	assert_int_equal(kiln_open(paths, nr, &options, &fs, NULL), 0);
	assert_int_equal(usage_read(fs->super, fs->journal, fs->trees, &u), 0);
	assert_true(u.is_known);
	uint64_t bytes = usage_fewer_copies(fs->super, &u).metadata_sectors * SECTOR_BYTES;
	usage_free(&u);
	kiln_close(fs);
	return bytes;
}

/* To append to a node that is on a missing device, too, costs that copy: it gets a new one, where there is a device for
 * it. */
static void what_a_missing_device_had_of_metadata_is_made_again_as_it_is_written(void **state)
{
	const char *paths[] = { path_of("copies-0"), path_of("copies-1"), path_of("copies-2") };
	struct kiln_format_device devs[3];
	struct kiln_format_options format = formatting();

	(void)state;
	for (unsigned i = 0; i < 3; i++)
		devs[i] = (struct kiln_format_device){ .path = paths[i], .file_bytes = 48 << 20 };
	format.options = "metadata_replicas=2,data_replicas=2";
	assert_int_equal(kiln_format(devs, 3, &format, NULL, NULL), 0);
	assert_int_equal(written_with(paths, 3, 0), 0);
	assert_false(is_warned);
	assert_int_equal(written_with(paths, 2, 1), 0);
	assert_true(is_warned);

	/* Where there is none, as soon as there is one again. */
	assert_int_equal(kiln_format(devs, 2, &format, NULL, NULL), 0);
	assert_int_equal(written_with(paths, 2, 0), 0);
	uint64_t fewer = written_with(paths, 1, 1);
	assert_true(is_warned && fewer);
	assert_true(written_with(paths, 2, 2) < fewer / 2);
	assert_false(is_warned);
}

/* Take the entries of one kind out of what a clean shutdown left. */
static void counter_take_out(const char *path, unsigned type, unsigned id, unsigned level)
{
	static uint64_t kept[2][1 << 14]; /* counters, roots */
	unsigned u64s[2] = { 0, 0 };
	struct super_open_opts opts = { .is_write = true };
	const struct jset_entry_disk *e;
	struct jset_walk walk;
	struct super *s;
	uint64_t seq;

	assert_int_equal(super_open((char *const *)&path, 1, &opts, NULL, NULL, &s), 0);
	assert_true(sb_clean(s->sb, &seq, &walk.pos, &walk.end));
	while (jset_walk_next(&walk, &e, NULL) > 0) {
		unsigned is_root = e->type == JSET_ENTRY_BTREE_ROOT, nr = 1u + le16_get(e->u64s);

		if (e->type == type && e->btree_id == id && e->level == level)
			continue;
		assert_true(u64s[is_root] + nr <= ARRAY_NR(kept[0]));
		memcpy(&kept[is_root][u64s[is_root]], e, nr * 8);
		u64s[is_root] += nr;
	}
	assert_int_equal(super_mark_clean(s, seq, kept[0], u64s[0], kept[1], u64s[1]), 0);
	super_close(s);
}

static void without_counters_it_is_only_read(void **state)
{
	static const struct {
		unsigned type, id, level;
	} taken[] = {
		{ JSET_ENTRY_CLOCK, 9, 0 }, /* nothing: there is none */
		{ JSET_ENTRY_USAGE, 0, 2 }, { JSET_ENTRY_USAGE, 1, 0 },
		{ JSET_ENTRY_USAGE, 2, 0 }, { JSET_ENTRY_DEV_USAGE, 0, 0 },
	};
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_NO_SCAN | KILN_OPEN_WRITE };
	const char *path = path_of("counters");
	struct kiln_format_device dev = { .path = path, .file_bytes = 32 << 20 };
	struct kiln_format_options format = formatting();
	struct kiln_stat st;
	kiln_fs *fs;

	(void)state;
	for (unsigned i = 0; i < ARRAY_NR(taken); i++) {
		assert_int_equal(kiln_format(&dev, 1, &format, &fs, NULL), 0);
		assert_int_equal(kiln_shutdown(fs), 0);
		kiln_close(fs);
		counter_take_out(path, taken[i].type, taken[i].id, taken[i].level);
		assert_int_equal(kiln_open(&path, 1, &options, &fs, NULL), 0);
		const char *why = kiln_write_refused(fs);
		if (i && (!why || !strstr(why, "counters")))
			fail_msg("%u: %s", i, why ? why : "it is written");
		if (!i)
			assert_null(why);
		assert_int_equal(kiln_lookup_path(fs, "lost+found", 0, &st), 0);
		kiln_close(fs);
	}
}

/* --- mount options --- */

/* Changes with every update of the superblocks, and so with every opening for writing. */
static uint64_t superblock_seq(const char *path)
{
	struct super_open_opts opts = { 0 };
	struct super *s;

	assert_int_equal(super_open((char *const *)&path, 1, &opts, NULL, NULL, &s), 0);
	uint64_t seq = le64_get(s->sb->seq);
	super_close(s);
	return seq;
}

/* Leave the device @nr buckets of its journal, or none of it. */
static void journal_cut(const char *path, uint64_t nr)
{
	struct super_open_opts opts = { .is_write = true };
	struct sb_journal_range range;
	struct super *s;

	assert_int_equal(super_open((char *const *)&path, 1, &opts, NULL, NULL, &s), 0);
	sb_journal_range(s->members[0].sb, 0, &range.start, &range.nr);
	range.nr = nr;
	assert_int_equal(super_journal_set(s, 0, &range, !!nr), 0);
	super_close(s);
}

static void without_a_journal_it_is_only_read(void **state)
{
	static const unsigned buckets[] = { 4, 3, 0 };
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_NO_SCAN | KILN_OPEN_WRITE };
	const char *path = path_of("journal");
	struct kiln_format_device dev = { .path = path, .file_bytes = 32 << 20 };
	struct kiln_format_options format = formatting();
	struct kiln_stat st;
	kiln_fs *fs;

	(void)state;
	assert_int_equal(kiln_format(&dev, 1, &format, &fs, NULL), 0);
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	for (unsigned i = 0; i < ARRAY_NR(buckets); i++) {
		journal_cut(path, buckets[i]);
		uint64_t seq = superblock_seq(path);

		assert_int_equal(kiln_open(&path, 1, &options, &fs, NULL), 0);
		const char *why = kiln_write_refused(fs);
		if (!why != !i || (why && !strstr(why, "journal")))
			fail_msg("%u buckets: %s", buckets[i], why ? why : "it is written");
		assert_int_equal(kiln_lookup_path(fs, "lost+found", 0, &st), 0);
		kiln_close(fs);
		assert_int_equal(superblock_seq(path) != seq, !i);
	}
}

static void options_that_forbid_writing_are_heeded_in_every_form(void **state)
{
	static const struct {
		const char *options;
		bool is_written;
	} cases[] = {
		{ "ro", false },
		{ "read_only", false },
		{ "read_only=1", false },
		{ "nochanges", false },
		{ "noacl,nochanges=1", false },
		{ "norecovery", false },
		{ "norecovery=1", false },
		{ "rw,nochanges=1", false },
		{ "rw,ro", false },
		{ "ro,rw", true },
		{ "rw", true },
		{ "read_only=0,nochanges=0,norecovery=0", true },
		{ "noread_only,nonochanges,nonorecovery", true },
	};
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_NO_SCAN | KILN_OPEN_WRITE };
	const char *path = path_of("forbidding");
	struct kiln_format_device dev = { .path = path, .file_bytes = 32 << 20 };
	struct kiln_format_options format = formatting();
	kiln_fs *fs;

	(void)state;
	assert_int_equal(kiln_format(&dev, 1, &format, NULL, NULL), 0);
	for (unsigned i = 0; i < ARRAY_NR(cases); i++) {
		uint64_t seq = superblock_seq(path);

		options.mount_options = cases[i].options;
		assert_int_equal(kiln_open(&path, 1, &options, &fs, NULL), 0);
		struct kiln_create create = { .mode = 0644 };
		struct kiln_stat st;
		int err = kiln_create(fs, kiln_root(fs), &"abcdefghijklm"[i], 1, &create, &st);
		const char *why = kiln_write_refused(fs);
		if (err != (cases[i].is_written ? 0 : -EROFS) || !why != cases[i].is_written)
			fail_msg("%s: error %d, %s", cases[i].options, err, why ? why : "it is written");
		if (why)
			assert_non_null(strstr(why, "forbids writing"));
		kiln_close(fs);
		assert_int_equal(superblock_seq(path) != seq, cases[i].is_written);
	}
	char why[KILN_ERROR_BYTES] = "";
	options.mount_options = "nochanges=1";
	assert_int_equal(kiln_passphrase_set(&path, 1, &options, "new", 3, why), -EINVAL);
	assert_non_null(strstr(why, "nochanges"));
}

/* Nobody could open it again. */
static void a_passphrase_is_no_longer_than_is_asked_for(void **state)
{
	static char passphrase[KILN_PASSPHRASE_BYTES_MAX + 1];
	struct kiln_open_options options = { .struct_bytes = sizeof(options) };
	const char *path = path_of("long-passphrase");
	struct kiln_format_device dev = { .path = path, .file_bytes = 32 << 20 };
	struct kiln_format_options format = formatting();
	char why[KILN_ERROR_BYTES] = "";

	(void)state;
	memset(passphrase, 'p', sizeof(passphrase));
	format.flags |= KILN_FORMAT_ENCRYPTED;
	format.passphrase = passphrase;
	format.passphrase_bytes = sizeof(passphrase);
	assert_int_equal(kiln_format(&dev, 1, &format, NULL, why), -EINVAL);
	assert_non_null(strstr(why, "4096"));
	format.passphrase = NULL;
	assert_int_equal(kiln_format(&dev, 1, &format, NULL, why), 0);
	assert_int_equal(kiln_passphrase_set(&path, 1, &options, passphrase, sizeof(passphrase), why), -EINVAL);
	assert_non_null(strstr(why, "4096"));
}

/* Sectors of files that each of two devices holds, after some were written. */
static void data_write(kiln_fs *fs, const char *name, uint64_t sectors[2])
{
	static const char data[1 << 20] = "data";
	struct kiln_create create = { .mode = 0644 };
	struct kiln_stat st;
	struct usage usage;

	assert_null(kiln_write_refused(fs));
	assert_int_equal(kiln_create(fs, kiln_root(fs), name, strlen(name), &create, &st), 0);
	assert_int_equal(kiln_write(fs, st.node, 0, data, sizeof(data)), sizeof(data));
	assert_int_equal(kiln_sync(fs), 0);
	assert_int_equal(allocator_usage(fs->allocator, &usage), 0);
	for (unsigned dev = 0; dev < 2; dev++)
		sectors[dev] = usage.devs[dev].types[DATA_USER].sectors;
	usage_free(&usage);
}

static void targets_hold_for_one_opening(void **state)
{
	enum { SECTORS = (1 << 20) / SECTOR_BYTES };
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_NO_SCAN | KILN_OPEN_WRITE };
	const char *paths[] = { path_of("slow"), path_of("fast") };
	struct kiln_format_device devs[] = { { .path = paths[0], .file_bytes = 32 << 20, .label = "hdd" },
					     { .path = paths[1], .file_bytes = 32 << 20, .label = "ssd.first" } };
	struct kiln_format_options format = formatting();
	char by_name[160], why[KILN_ERROR_BYTES];
	uint64_t sectors[2];
	kiln_fs *fs;

	(void)state;
	snprintf(by_name, sizeof(by_name), "foreground_target=%s", paths[0]);
	assert_int_equal(kiln_format(devs, 2, &format, NULL, NULL), 0);
	const char *const targets[] = { "foreground_target=ssd", by_name, "noacl,foreground_target=dev 1" };
	const uint64_t wanted[][2] = { { 0, SECTORS }, { SECTORS, SECTORS }, { SECTORS, 2 * SECTORS } };
	for (unsigned i = 0; i < ARRAY_NR(targets); i++) {
		options.mount_options = targets[i];
		assert_int_equal(kiln_open(paths, 2, &options, &fs, NULL), 0);
		data_write(fs, (const char *[]){ "a", "b", "c" }[i], sectors);
		for (unsigned dev = 0; dev < 2; dev++)
			assert_int_equal(sectors[dev], wanted[i][dev]);
		kiln_close(fs);
	}
	/* Nothing was stored. */
	options.mount_options = NULL;
	assert_int_equal(kiln_open(paths, 2, &options, &fs, NULL), 0);
	assert_int_equal(fs->super->options[OPT_FOREGROUND_TARGET], TARGET_NONE);
	kiln_close(fs);

	options.mount_options = "foreground_target=tape";
	assert_int_equal(kiln_open(paths, 2, &options, &fs, why), -EINVAL);
	assert_non_null(strstr(why, "foreground_target': no such device or label"));
	options.mount_options = "foreground_target";
	assert_int_equal(kiln_open(paths, 2, &options, &fs, why), -EINVAL);
	assert_non_null(strstr(why, "a value is needed"));
	/* Whoever only reads may be without the device. */
	options.mount_options = "ro,foreground_target=tape";
	assert_int_equal(kiln_open(paths, 2, &options, &fs, why), 0);
	kiln_close(fs);
}

/* --- passphrases --- */

struct asked {
	unsigned times;
	const char *answers[4]; /* in turn, then giving up */
};

static ssize_t answer(void *ctx, const char *uuid, unsigned attempt, char *buf, size_t size)
{
	struct asked *a = ctx;

	assert_int_equal(strlen(uuid), 36);
	assert_int_equal(attempt, a->times);
	const char *text = a->answers[a->times++];
	if (!text)
		return -ECANCELED;
	assert_true(strlen(text) <= size);
	memcpy(buf, text, strlen(text));
	return (ssize_t)strlen(text);
}

static void passphrases_are_asked_for_until_one_fits(void **state)
{
	static const char right[] = "a test passphrase";
	struct asked asked = { 0 };
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_NO_SCAN,
					     .ctx = &asked };
	const char *path = unpacked("small-encrypted");
	kiln_fs *fs;

	(void)state;
	opening_fails(path, &options, -ENOKEY, "passphrase");
	options.passphrase = answer;
	opening_fails(path, &options, -ECANCELED, "");
	assert_int_equal(asked.times, 1);

	asked = (struct asked){ .answers = { "wrong", "" } };
	opening_fails(path, &options, -EKEYREJECTED, "wrong passphrase");
	assert_int_equal(asked.times, 3);

	asked = (struct asked){ .answers = { "wrong", right } };
	assert_int_equal(kiln_open(&path, 1, &options, &fs, NULL), 0);
	assert_int_equal(asked.times, 2);
	struct kiln_usage usage;
	assert_int_equal(kiln_usage(fs, &usage), 0);
	assert_true(usage.is_encrypted);
	kiln_close(fs);

	/* One that isn't encrypted asks nobody. */
	asked = (struct asked){ 0 };
	path = unpacked("v1.4-empty");
	assert_int_equal(kiln_open(&path, 1, &options, &fs, NULL), 0);
	assert_int_equal(asked.times, 0);
	kiln_close(fs);
}

/* --- many at once --- */

struct opener {
	const char *path;
	unsigned failed;
};

static void open_and_close(void *arg)
{
	enum { ROUNDS = 5 };
	struct opener *o = arg;

	for (unsigned i = 0; i < ROUNDS; i++) {
		struct kiln_open_options options = { .struct_bytes = sizeof(options),
						     .flags = KILN_OPEN_NO_SCAN,
						     .memory_bytes = KILN_MEMORY_MIN };
		struct kiln_stat st;
		kiln_fs *fs;

		if (kiln_open(&o->path, 1, &options, &fs, NULL)) {
			o->failed++;
			continue;
		}
		o->failed += kiln_lookup_path(fs, "lost+found", 0, &st) != 0;
		kiln_close(fs);
	}
}

static void threads_open_and_close_independently(void **state)
{
	enum { THREADS = 4 };
	struct task *tasks[THREADS];
	struct opener openers[THREADS];
	const char *path = unpacked("v1.4-empty");

	(void)state;
	for (unsigned i = 0; i < THREADS; i++) {
		openers[i] = (struct opener){ .path = path };
		assert_int_equal(task_start(&tasks[i], "opener", open_and_close, &openers[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		task_join(tasks[i]);
		assert_int_equal(openers[i].failed, 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bytes_that_are_no_filesystem_are_told_as_such),
		cmocka_unit_test(a_device_of_another_filesystem_is_refused_by_name),
		cmocka_unit_test(a_missing_member_is_named),
		cmocka_unit_test(with_fewer_devices_than_copies_required_it_is_only_read),
		cmocka_unit_test(without_a_root_directory_it_is_only_read),
		cmocka_unit_test(what_a_missing_device_had_of_metadata_is_made_again_as_it_is_written),
		cmocka_unit_test(without_counters_it_is_only_read),
		cmocka_unit_test(without_a_journal_it_is_only_read),
		cmocka_unit_test(options_that_forbid_writing_are_heeded_in_every_form),
		cmocka_unit_test(targets_hold_for_one_opening),
		cmocka_unit_test(passphrases_are_asked_for_until_one_fits),
		cmocka_unit_test(a_passphrase_is_no_longer_than_is_asked_for),
		cmocka_unit_test(threads_open_and_close_independently),
	};

	return cmocka_run_group_tests_name("open", tests, make_folder, remove_folder);
}
