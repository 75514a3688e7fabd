/*
 * The public API on an image made for the purpose: paths, walks, opening what can't be opened, many threads at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/sync.h"
#include "builder/image.h"
#include "engine/fs.h"
#include "kiln/kiln.h"

enum { SEED = 7, BIG_BYTES = 3 << 20, FILES = 300 };

static char folder[] = "/tmp/kiln-engine-XXXXXX", image_path[64];
static uint64_t big_inum;

/*
 * /dir/sub/file, /dir/big, /many/f000..., symlinks of all kinds, and a directory that contains one of its ancestors.
 */
static int make_image(void **state)
{
	struct image image;
	struct image_options options = image_options_default;
	struct image_dir root;
	char name[16];

	assert_non_null(mkdtemp(folder));
	snprintf(image_path, sizeof(image_path), "%s/image", folder);
	options.seed = SEED;
	image_begin(&image, image_path, &options, &root);
	struct image_dir dir = image_add_dir(&image, root, "dir", 0755);
	struct image_dir sub = image_add_dir(&image, dir, "sub", 0700);
	image_add_file(&image, sub, "file", 0644, 100);
	big_inum = image_add_file(&image, dir, "big", 0644, BIG_BYTES);
	struct image_dir many = image_add_dir(&image, root, "many", 0755);
	for (unsigned i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "f%03u", i);
		image_add_file(&image, many, name, 0644, i * 64);
	}
	image_add_symlink(&image, root, "relative", "dir/sub/../sub/file");
	image_add_symlink(&image, dir, "absolute", "/dir/sub");
	image_add_symlink(&image, root, "loop", "loop");
	image_add_symlink(&image, root, "dangling", "dir/nothing");
	image_put_dirent(&image, sub, "up", 2, S_IFDIR >> 12, dir.inum, 0);
	image_finish(&image);
	return 0;
}

static int remove_image(void **state)
{
	unlink(image_path);
	rmdir(folder);
	return 0;
}

static kiln_fs *open_image(void)
{
	const char *path = image_path;
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;

	if (kiln_open(&path, 1, NULL, &fs, why))
		fail_msg("%s", why);
	return fs;
}

/* --- paths --- */

static void paths_follow_symlinks_within_the_filesystem(void **state)
{
	static const struct {
		const char *path;
		unsigned flags;
		int err;
		uint32_t type;
	} cases[] = {
		{ "/", 0, 0, S_IFDIR },
		{ "", 0, 0, S_IFDIR },
		{ "dir", 0, 0, S_IFDIR },
		{ "//dir//sub/./file", 0, 0, S_IFREG },
		{ "/dir/sub/../../dir/big", 0, 0, S_IFREG },
		{ "/../..", 0, 0, S_IFDIR },
		{ "relative", 0, 0, S_IFLNK },
		{ "relative", KILN_FOLLOW, 0, S_IFREG },
		{ "relative/", 0, -ENOTDIR, 0 },
		{ "dir/absolute/file", 0, 0, S_IFREG },
		{ "dir/absolute", 0, 0, S_IFLNK },
		{ "dir/absolute/", 0, 0, S_IFDIR },
		{ "loop", 0, 0, S_IFLNK },
		{ "loop", KILN_FOLLOW, -ELOOP, 0 },
		{ "loop/x", 0, -ELOOP, 0 },
		{ "dangling", 0, 0, S_IFLNK },
		{ "dangling", KILN_FOLLOW, -ENOENT, 0 },
		{ "nothing", 0, -ENOENT, 0 },
		{ "dir/sub/file/x", 0, -ENOTDIR, 0 },
		{ "dir/sub/file/", 0, -ENOTDIR, 0 },
	};
	kiln_fs *fs = open_image();

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct kiln_stat st;
		int err = kiln_lookup_path(fs, cases[i].path, cases[i].flags, &st);

		if (err != cases[i].err || (!err && (st.mode & S_IFMT) != cases[i].type))
			fail_msg("'%s': error %d, mode %o", cases[i].path, err, err ? 0 : st.mode);
	}

	char long_path[5000];
	struct kiln_stat st;
	memset(long_path, '/', sizeof(long_path));
	long_path[sizeof(long_path) - 1] = 0;
	assert_int_equal(kiln_lookup_path(fs, long_path, 0, &st), -ENAMETOOLONG);
	kiln_close(fs);
}

static void wrong_kinds_of_objects_are_refused(void **state)
{
	kiln_fs *fs = open_image();
	struct kiln_node root = kiln_root(fs), nowhere = { .ino = 999999, .subvol = 1 },
			 no_subvol = { .ino = 4096, .subvol = 99 };
	struct kiln_stat st;
	char buf[16];

	assert_int_equal(kiln_read(fs, root, 0, buf, sizeof(buf)), -EISDIR);
	assert_int_equal(kiln_readlink(fs, root, buf, sizeof(buf)), -EINVAL);
	assert_int_equal(kiln_stat(fs, nowhere, &st), -ENOENT);
	assert_int_equal(kiln_stat(fs, no_subvol, &st), -ENOENT);
	assert_int_equal(kiln_lookup_path(fs, "dir/big", 0, &st), 0);
	assert_int_equal(kiln_readdir(fs, st.node, 0, NULL, NULL, NULL, NULL), -ENOTDIR);
	assert_int_equal(kiln_lookup(fs, st.node, "x", 1, &st), -ENOTDIR);
	kiln_close(fs);
}

/* --- walking --- */

struct recorded_walk {
	char text[16384];
	const char *skip;
	unsigned stop_after, calls;
};

static int record(void *ctx, const struct kiln_walk_entry *e)
{
	static const char *const marks[] = { "+", "-", "!" };
	struct recorded_walk *w = ctx;
	size_t len = strlen(w->text);

	snprintf(w->text + len, sizeof(w->text) - len, "%s%s%s ", marks[e->event], e->path,
		 e->error ? strerror(-e->error) : "");
	if (w->stop_after && ++w->calls == w->stop_after)
		return -ECANCELED;
	return e->event == KILN_WALK_ENTER && w->skip && !strcmp(e->path, w->skip) ? KILN_WALK_SKIP : 0;
}

static void walks_are_in_order_and_see_loops(void **state)
{
	static struct recorded_walk w;
	kiln_fs *fs = open_image();
	struct kiln_stat st;

	assert_int_equal(kiln_lookup_path(fs, "dir", 0, &st), 0);
	w = (struct recorded_walk){ 0 };
	assert_int_equal(kiln_walk(fs, st.node, record, &w), 0);
	assert_string_equal(w.text, "+ +absolute +big +sub +sub/file !sub/upToo many levels of symbolic links -sub - ");

	w = (struct recorded_walk){ .skip = "sub" };
	assert_int_equal(kiln_walk(fs, st.node, record, &w), 0);
	assert_string_equal(w.text, "+ +absolute +big +sub - ");

	w = (struct recorded_walk){ .stop_after = 3 };
	assert_int_equal(kiln_walk(fs, st.node, record, &w), -ECANCELED);
	assert_string_equal(w.text, "+ +absolute +big ");

	assert_int_equal(kiln_lookup_path(fs, "dir/big", 0, &st), 0);
	w = (struct recorded_walk){ 0 };
	assert_int_equal(kiln_walk(fs, st.node, record, &w), 0);
	assert_string_equal(w.text, "+ ");
	kiln_close(fs);
}

/* --- opening --- */

static void open_fails(const char *const *paths, size_t nr, const struct kiln_open_options *options, int want,
		       const char *says)
{
	char why[KILN_ERROR_BYTES] = "";
	kiln_fs *fs = NULL;
	int err = kiln_open(paths, nr, options, &fs, why);

	if (err != want || !strstr(why, says))
		fail_msg("error %d, expected %d: %s", err, want, why);
}

static void what_cannot_be_opened_is_told_with_its_reason(void **state)
{
	char missing[96], empty[96];
	const char *p;

	snprintf(missing, sizeof(missing), "%s/missing", folder);
	snprintf(empty, sizeof(empty), "%s/empty", folder);
	close(open(empty, O_CREAT | O_WRONLY, 0600));

	open_fails((p = missing, &p), 1, NULL, -ENOENT, missing);
	open_fails((p = folder, &p), 1, NULL, -ENOTBLK, folder);
	open_fails((p = empty, &p), 1, NULL, -EUCLEAN, "intact copy");
	open_fails((p = "UUID=00000000-1111-2222-3333-444444444444", &p), 1, NULL, -ENOENT, "UUID");
	unlink(empty);

	p = image_path;
	struct kiln_open_options o = { .struct_bytes = 0, .memory_bytes = 1 << 30 };

	open_fails(&p, 1, &o, -EINVAL, "struct_bytes");
	o = (struct kiln_open_options){ .struct_bytes = sizeof(o), .memory_bytes = 1 << 20 };
	open_fails(&p, 1, &o, -EINVAL, "32 MiB");
	o = (struct kiln_open_options){ .struct_bytes = sizeof(o), .mount_options = "ro,no_such_thing=1" };
	open_fails(&p, 1, &o, -EINVAL, "no_such_thing");
	o.mount_options = "errors=maybe";
	open_fails(&p, 1, &o, -EINVAL, "errors");
	o.mount_options = "block_size=4k";
	open_fails(&p, 1, &o, -EINVAL, "block_size");
}

static void mount_options_parse_as_in_fstab(void **state)
{
	uint64_t values[OPT_NR] = { 0 };
	bool is_set[OPT_NR] = { false };
	char why[KILN_ERROR_BYTES];

	assert_int_equal(mount_options_parse("defaults,ro,noacl,degraded,errors=continue,nochanges,sb=2056,quota,"
					     "x-systemd.automount,X-mount.mkdir,comment=mine,iversion,norelatime",
					     NULL, values, is_set, why),
			 0);
	assert_true(is_set[OPT_ACL] && !values[OPT_ACL]);
	assert_true(is_set[OPT_DEGRADED] && values[OPT_DEGRADED]);
	assert_true(is_set[OPT_NOCHANGES] && values[OPT_NOCHANGES]);
	assert_true(is_set[OPT_USRQUOTA] && values[OPT_USRQUOTA]);
	assert_int_equal(values[OPT_SB], 2056);
	assert_false(is_set[OPT_VERY_DEGRADED]);
	assert_int_equal(mount_options_parse("nofix_errors", NULL, values, is_set, why), -EINVAL);
	assert_int_equal(mount_options_parse(NULL, NULL, values, is_set, why), 0);
}

static void mount_options_without_an_engine_are_refused_by_name(void **state)
{
	static const char *const refused[] = { "fsck", "fix_errors", "fix_errors=ask", "reconstruct_alloc=1",
					       "no_data_io" };
	uint64_t values[OPT_NR] = { 0 };
	bool is_set[OPT_NR] = { false };
	char why[KILN_ERROR_BYTES];

	for (size_t i = 0; i < ARRAY_NR(refused); i++) {
		assert_int_equal(mount_options_parse(refused[i], NULL, values, is_set, why), -EOPNOTSUPP);
		assert_memory_equal(strstr(why, "'") + 1, refused[i], strcspn(refused[i], "="));
	}
	assert_int_equal(
		mount_options_parse("nofsck,fix_errors=no,fix_errors=exit,no_data_io=0", NULL, values, is_set, why), 0);
}

/* --- many threads --- */

struct reader {
	kiln_fs *fs;
	struct kiln_node node;
	uint64_t seed;
	unsigned wrong;
};

static void read_at_random(void *arg)
{
	enum { WORDS = 4096, ROUNDS = 40 };
	static const struct {
		const char *path;
		uint32_t type;
	} paths[] = { { "/many/f200", S_IFREG }, { "/dir/sub", S_IFDIR } };
	struct reader *r = arg;
	uint64_t *buf = malloc(WORDS * 8);
	struct rng rng;

	rng_init(&rng, r->seed);
	for (unsigned round = 0; round < ROUNDS && buf; round++) {
		uint64_t word = rng_below(&rng, BIG_BYTES / 8 - WORDS), n = 1 + rng_below(&rng, WORDS);
		ssize_t got = kiln_read(r->fs, r->node, word * 8, buf, n * 8);

		r->wrong += got != (ssize_t)(n * 8);
		for (uint64_t i = 0; got == (ssize_t)(n * 8) && i < n; i++)
			r->wrong += le64_load(&buf[i]) != image_file_word(SEED, big_inum, word + i);

		struct kiln_stat st;
		size_t which = rng_below(&rng, ARRAY_NR(paths));
		r->wrong +=
			kiln_lookup_path(r->fs, paths[which].path, 0, &st) || (st.mode & S_IFMT) != paths[which].type;
	}
	r->wrong += !buf;
	free(buf);
}

static void many_threads_read_the_same_filesystem(void **state)
{
	enum { READERS = 8 };
	struct reader readers[READERS];
	struct task *tasks[READERS];
	struct kiln_stat st;
	kiln_fs *fs = open_image();

	assert_int_equal(kiln_lookup_path(fs, "dir/big", 0, &st), 0);
	for (unsigned i = 0; i < READERS; i++) {
		readers[i] = (struct reader){ fs, st.node, i + 1, 0 };
		assert_int_equal(task_start(&tasks[i], "reader", read_at_random, &readers[i]), 0);
	}
	for (unsigned i = 0; i < READERS; i++) {
		task_join(tasks[i]);
		assert_int_equal(readers[i].wrong, 0);
	}
	uint64_t counts[4];
	kiln_report_counts(fs, counts);
	assert_int_equal(counts[KILN_REPORT_DAMAGE], 0);
	kiln_close(fs);
}

/* --- reports --- */

static int told;
static void count_report(void *ctx, const struct kiln_report *r) { told += strstr(r->text, "sector 99") != NULL; }

static void a_report_is_told_once(void **state)
{
	static struct reporter reporter;
	struct kiln_open_options options = { .report = count_report };

	told = 0;
	reporter_init(&reporter, &options);
	for (unsigned i = 0; i < 3; i++)
		report_emit(&reporter.sink,
			    &(struct report){ .level = REPORT_DAMAGE, .structure = "extent", .position = "sector 99" });
	assert_int_equal(told, 1);
	assert_int_equal(reporter.counts[REPORT_DAMAGE], 1);
	reporter_destroy(&reporter);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(paths_follow_symlinks_within_the_filesystem),
		cmocka_unit_test(wrong_kinds_of_objects_are_refused),
		cmocka_unit_test(walks_are_in_order_and_see_loops),
		cmocka_unit_test(what_cannot_be_opened_is_told_with_its_reason),
		cmocka_unit_test(mount_options_parse_as_in_fstab),
		cmocka_unit_test(mount_options_without_an_engine_are_refused_by_name),
		cmocka_unit_test(many_threads_read_the_same_filesystem),
		cmocka_unit_test(a_report_is_told_once),
	};

	return cmocka_run_group_tests_name("engine", tests, make_image, remove_image);
}
