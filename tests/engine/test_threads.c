/*
 * Many tasks change one filesystem at once: nothing is lost, nothing is damaged, and what is written is there after
 * opening it again.
 *
 * Each task owns files by name and knows what must be in them; all of them work in the same few directories, so that
 * their transactions meet in the same nodes.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/sync.h"
#include "base/util.h"
#include "data/copygc.h"
#include "engine/fs.h"
#include "engine/whole.h"

enum {
	TASKS = 4,
	DIRS = 3,
	FILES = 24,
	BYTES_MAX = 40000,
	COMMON_STAMP = 12345,
	PATH_BYTES = 32,
	APPENDS = 50,
	APPEND_BYTES = 8192
};

#ifndef OPS
#define OPS 400
#endif

struct owned {
	bool exists;
	unsigned dir;
	uint64_t size, stamp; /* byte i is a function of stamp and i */
};

struct crew {
	kiln_fs *fs;
	unsigned id;
	uint64_t seed;
	struct kiln_node *dirs;
	struct kiln_node common; /* a file that all tasks clone; byte i as of COMMON_STAMP */
	struct owned files[FILES];
};

/* An assertion of cmocka works in the main task only. */
#define MUST(cond)                                                                                               \
	do {                                                                                                     \
		if (!(cond)) {                                                                                   \
			fprintf(stderr, "%s:%d: %s doesn't hold (task %u)\n", __FILE__, __LINE__, #cond, c->id); \
			abort();                                                                                 \
		}                                                                                                \
	} while (0)

static void fill(uint8_t *buf, uint64_t stamp, uint64_t size)
{
	for (uint64_t i = 0; i < size; i++)
		buf[i] = (uint8_t)(stamp * 31 + i * 7 + (i >> 8));
}

static size_t name_of(const struct crew *c, unsigned file, char name[32])
{
	return (size_t)snprintf(name, 32, "task%u-file%02u", c->id, file);
}

static void file_check(const struct crew *c, unsigned i)
{
	static _Thread_local uint8_t got[BYTES_MAX + 1], want[BYTES_MAX + 1];
	const struct owned *f = &c->files[i];
	struct kiln_stat st;
	char name[32];
	size_t len = name_of(c, i, name);

	for (unsigned d = 0; d < DIRS; d++) {
		int err = kiln_lookup(c->fs, c->dirs[d], name, len, &st);

		MUST(err == (f->exists && f->dir == d ? 0 : -ENOENT));
		if (err)
			continue;
		MUST(st.size == f->size);
		MUST(kiln_read(c->fs, st.node, 0, got, sizeof(got)) == (ssize_t)f->size);
		fill(want, f->stamp, f->size);
		MUST(!memcmp(got, want, f->size));
	}
}

/* The file, made if it isn't there, and empty. */
static struct kiln_node file_empty(struct crew *c, struct rng *rng, unsigned i)
{
	struct owned *f = &c->files[i];
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_setattr cut = { .fields = KILN_SET_SIZE };
	struct kiln_stat st;
	char name[32];
	size_t len = name_of(c, i, name);

	if (!f->exists) {
		f->dir = (unsigned)rng_below(rng, DIRS);
		MUST(!kiln_create(c->fs, c->dirs[f->dir], name, len, &attr, &st));
		f->exists = true;
	} else {
		MUST(!kiln_lookup(c->fs, c->dirs[f->dir], name, len, &st));
	}
	MUST(!kiln_setattr(c->fs, st.node, &cut, NULL));
	return st.node;
}

/* The same bytes as another file has, one of its own or the one that all share with. */
static void file_clone(struct crew *c, struct rng *rng, unsigned i)
{
	unsigned from = (unsigned)rng_below(rng, FILES);
	struct kiln_node source = c->common;
	struct owned *f = &c->files[i];
	uint64_t size = BYTES_MAX, stamp = COMMON_STAMP;

	if (from != i && c->files[from].exists && rng_below(rng, 2)) {
		struct kiln_stat st;
		char name[32];
		size_t len = name_of(c, from, name);

		MUST(!kiln_lookup(c->fs, c->dirs[c->files[from].dir], name, len, &st));
		source = st.node;
		size = c->files[from].size;
		stamp = c->files[from].stamp;
	}
	struct kiln_node node = file_empty(c, rng, i);
	MUST(kiln_copy_range(c->fs, source, 0, node, 0, size, rng_below(rng, 2) ? KILN_COPY_SHARE : 0) ==
	     (ssize_t)size);
	f->size = size;
	f->stamp = stamp;
}

/* Space promised, and a range put in and taken out again: the bytes stay. */
static void file_stir(struct crew *c, struct rng *rng, unsigned i)
{
	struct owned *f = &c->files[i];
	struct kiln_stat st;
	char name[32];
	size_t len = name_of(c, i, name);
	uint64_t at = rng_below(rng, f->size + 1) / 4096 * 4096, bytes = 4096 * (1 + rng_below(rng, 4));

	if (!f->exists)
		return;
	MUST(!kiln_lookup(c->fs, c->dirs[f->dir], name, len, &st));
	MUST(!kiln_fallocate(c->fs, st.node, KILN_FALLOC_KEEP_SIZE, at, 1 + rng_below(rng, BYTES_MAX)));
	if (at >= f->size)
		return;
	MUST(!kiln_fallocate(c->fs, st.node, KILN_FALLOC_INSERT_RANGE, at, bytes));
	MUST(!kiln_fallocate(c->fs, st.node, KILN_FALLOC_ZERO_RANGE, at + 1, bytes - 1));
	MUST(!kiln_fallocate(c->fs, st.node, KILN_FALLOC_COLLAPSE_RANGE, at, bytes));
}

static void file_write(struct crew *c, struct rng *rng, unsigned i)
{
	static _Thread_local uint8_t buf[BYTES_MAX];
	struct owned *f = &c->files[i];
	struct kiln_node node = file_empty(c, rng, i);

	f->size = rng_below(rng, 3) ? rng_below(rng, BYTES_MAX) : rng_below(rng, 600);
	f->stamp = rng_u64(rng);
	fill(buf, f->stamp, f->size);
	for (uint64_t at = 0; at < f->size;) {
		uint64_t n = min(f->size - at, 1 + rng_below(rng, BYTES_MAX));

		MUST(kiln_write(c->fs, node, at, buf + at, n) == (ssize_t)n);
		at += n;
	}
}

static void file_move(struct crew *c, struct rng *rng, unsigned i)
{
	struct owned *f = &c->files[i];
	unsigned to = (unsigned)rng_below(rng, DIRS);
	char name[32];
	size_t len = name_of(c, i, name);

	if (!f->exists)
		return;
	MUST(!kiln_rename(c->fs, c->dirs[f->dir], name, len, c->dirs[to], name, len, 0));
	f->dir = to;
}

static void crew_task(void *arg)
{
	struct crew *c = arg;
	struct rng rng;

	rng_init(&rng, c->seed);
	for (unsigned op = 0; op < OPS; op++) {
		unsigned i = (unsigned)rng_below(&rng, FILES);
		struct owned *f = &c->files[i];
		char name[32];
		size_t len = name_of(c, i, name);

		switch (rng_below(&rng, 12)) {
		case 0:
			if (f->exists)
				MUST(!kiln_unlink(c->fs, c->dirs[f->dir], name, len, 0));
			f->exists = false;
			break;
		case 1:
		case 2: file_move(c, &rng, i); break;
		case 3: file_check(c, i); break;
		case 5:
		case 6: file_clone(c, &rng, i); break;
		case 7:
		case 8: file_stir(c, &rng, i); break;
		case 4:
			if (!rng_below(&rng, 4))
				MUST(!kiln_sync(c->fs));
			break;
		default: file_write(c, &rng, i); break;
		}
	}
}

/* A fresh filesystem in a file of @bytes, whose path is put into @path. */
static kiln_fs *fresh(char path[PATH_BYTES], uint64_t bytes)
{
	struct kiln_format_device dev = { .path = path, .file_bytes = bytes };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(dev),
					      .flags = KILN_FORMAT_FORCE };
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;

	snprintf(path, PATH_BYTES, "/tmp/kiln-threads-XXXXXX");
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	close(fd);
	if (kiln_format(&dev, 1, &format, &fs, why))
		fail_msg("%s", why);
	return fs;
}

static void tasks_that_share_directories_lose_nothing(void **state)
{
	uint64_t seed = seed_print();
	char path[PATH_BYTES], name[8];
	struct kiln_create dir_attr = { .mode = S_IFDIR | 0755 };
	struct kiln_node dirs[DIRS];
	struct crew *crew = calloc(TASKS, sizeof(*crew));
	struct task *tasks[TASKS];
	struct kiln_stat st;
	kiln_fs *fs = fresh(path, 256 << 20);

	(void)state;
	for (unsigned d = 0; d < DIRS; d++) {
		snprintf(name, sizeof(name), "d%u", d);
		assert_int_equal(kiln_create(fs, kiln_root(fs), name, 2, &dir_attr, &st), 0);
		dirs[d] = st.node;
	}
	struct kiln_create file_attr = { .mode = S_IFREG | 0644 };
	uint8_t *bytes = malloc(BYTES_MAX);
	fill(bytes, COMMON_STAMP, BYTES_MAX);
	assert_int_equal(kiln_create(fs, kiln_root(fs), "common", 6, &file_attr, &st), 0);
	assert_int_equal(kiln_write(fs, st.node, 0, bytes, BYTES_MAX), BYTES_MAX);
	free(bytes);
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < TASKS; i++) {
			crew[i].fs = fs;
			crew[i].id = i;
			crew[i].seed = seed * TASKS + i + round * 1000;
			crew[i].dirs = dirs;
			crew[i].common = st.node;
			assert_int_equal(task_start(&tasks[i], "crew", crew_task, &crew[i]), 0);
		}
		for (unsigned i = 0; i < TASKS; i++)
			task_join(tasks[i]);
		assert_int_equal(kiln_shutdown(fs), 0);
		kiln_close(fs);
		fs = must_open(path, KILN_OPEN_WRITE);
		for (unsigned i = 0; i < TASKS; i++) {
			crew[i].fs = fs;
			for (unsigned f = 0; f < FILES; f++)
				file_check(&crew[i], f);
		}
		must_be_consistent(fs);
	}
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	unlink(path);
	free(crew);
}

/* --- files that only grow --- */

struct appender {
	kiln_fs *fs;
	struct kiln_node node;
	bool by_copying;
	unsigned id, written;
};

/* Append at what seems to be the end: another one may be quicker. What is written takes long enough for that. */
static void append_task(void *arg)
{
	static const uint8_t bytes[APPEND_BYTES];
	struct appender *c = arg;
	struct kiln_stat st;

	for (unsigned i = 0; i < APPENDS; i++) {
		MUST(!kiln_stat(c->fs, c->node, &st));
		ssize_t n = c->by_copying ? kiln_copy_range(c->fs, c->node, 0, c->node, st.size, APPEND_BYTES, 0)
					  : kiln_write(c->fs, c->node, st.size, bytes, APPEND_BYTES);
		MUST(n == APPEND_BYTES || n == -EPERM);
		c->written += n > 0;
	}
}

static void nobody_overwrites_what_was_appended_meanwhile(void **state)
{
	struct kiln_setattr only_grows = { .fields = KILN_SET_FLAGS, .flags = FS_APPEND_FL },
			    is_fixed = { .fields = KILN_SET_FLAGS, .flags = FS_IMMUTABLE_FL },
			    first = { .fields = KILN_SET_SIZE, .size = APPEND_BYTES },
			    cut = { .fields = KILN_SET_SIZE };
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct appender appender[TASKS];
	struct task *tasks[TASKS];
	struct kiln_stat st;
	uint64_t written = 0;
	char path[PATH_BYTES];
	kiln_fs *fs = fresh(path, 64 << 20);

	(void)state;
	assert_int_equal(kiln_create(fs, kiln_root(fs), "log", 3, &attr, &st), 0);
	struct kiln_node log = st.node;
	assert_int_equal(kiln_setattr(fs, log, &first, NULL), 0);
	assert_int_equal(kiln_setattr(fs, log, &only_grows, NULL), 0);
	for (unsigned i = 0; i < TASKS; i++) {
		appender[i] = (struct appender){ .fs = fs, .node = log, .id = i, .by_copying = i % 2 };
		assert_int_equal(task_start(&tasks[i], "append", append_task, &appender[i]), 0);
	}
	for (unsigned i = 0; i < TASKS; i++) {
		task_join(tasks[i]);
		written += appender[i].written;
	}
	assert_int_equal(kiln_stat(fs, log, &st), 0);
	assert_int_equal(st.size, (1 + written) * APPEND_BYTES);

	assert_int_equal(kiln_setattr(fs, log, &cut, NULL), -EPERM);
	assert_int_equal(kiln_punch(fs, log, 0, 1), -EPERM);
	assert_int_equal(kiln_fallocate(fs, log, 0, st.size, 1), 0);
	assert_int_equal(kiln_setattr(fs, log, &is_fixed, NULL), 0);
	assert_int_equal(kiln_write(fs, log, st.size + 1, "x", 1), -EPERM);
	assert_int_equal(kiln_copy_range(fs, log, 0, log, st.size + 1, 1, 0), -EPERM);
	assert_int_equal(kiln_fallocate(fs, log, 0, st.size, 2), -EPERM);
	must_be_consistent(fs);
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	unlink(path);
}

/* --- overwritten in place, and moved --- */

enum { BLOCK_BYTES = 4096, PIECE_BLOCKS_MAX = 8 };

/* A task has every so-many-th run of blocks of one file to itself: all lie in the same buckets. */
struct overwriter {
	kiln_fs *fs;
	struct kiln_node node;
	unsigned id;
	uint64_t seed, runs, ops;
	uint32_t *versions; /* of the file's blocks; 0: a hole */
};

static void block_fill(uint8_t *to, uint64_t block, uint32_t version)
{
	uint64_t word = (block << 32 | version) * (version != 0);

	for (unsigned i = 0; i < BLOCK_BYTES; i += 8)
		memcpy(to + i, &word, 8);
}

static uint64_t run_begin(const struct overwriter *c, uint64_t run) { return (run * TASKS + c->id) * PIECE_BLOCKS_MAX; }

static void run_check(const struct overwriter *c, uint64_t run)
{
	uint8_t got[PIECE_BLOCKS_MAX * BLOCK_BYTES], want[BLOCK_BYTES];
	uint64_t first = run_begin(c, run);

	MUST(kiln_read(c->fs, c->node, first * BLOCK_BYTES, got, sizeof(got)) == sizeof(got));
	for (unsigned i = 0; i < PIECE_BLOCKS_MAX; i++) {
		block_fill(want, first + i, c->versions[first + i]);
		MUST(!memcmp(want, got + i * BLOCK_BYTES, BLOCK_BYTES));
	}
}

static void run_write(struct overwriter *c, uint64_t at, uint64_t nr)
{
	uint8_t bytes[PIECE_BLOCKS_MAX * BLOCK_BYTES];

	for (uint64_t i = 0; i < nr; i++)
		block_fill(bytes + i * BLOCK_BYTES, at + i, ++c->versions[at + i]);
	MUST(kiln_write(c->fs, c->node, at * BLOCK_BYTES, bytes, nr * BLOCK_BYTES) == (ssize_t)(nr * BLOCK_BYTES));
}

static void overwrite_task(void *arg)
{
	struct overwriter *c = arg;
	struct rng rng;

	rng_init(&rng, c->seed);
	for (uint64_t op = 0; op < c->ops; op++) {
		uint64_t run = rng_below(&rng, c->runs), nr = 1 + rng_below(&rng, PIECE_BLOCKS_MAX);
		uint64_t at = run_begin(c, run) + rng_below(&rng, PIECE_BLOCKS_MAX + 1 - nr);

		if (rng_below(&rng, 8)) {
			run_write(c, at, nr);
		} else {
			MUST(!kiln_punch(c->fs, c->node, at * BLOCK_BYTES, nr * BLOCK_BYTES));
			memset(&c->versions[at], 0, nr * sizeof(c->versions[0]));
		}
		run_check(c, rng_below(&rng, c->runs));
	}
}

static void what_is_overwritten_in_place_may_be_moved_meanwhile(void **state)
{
	enum { RUNS = 100, BLOCKS = RUNS * TASKS * PIECE_BLOCKS_MAX, ROUNDS_MAX = 50, MOVED_MIN = 100 };
	uint64_t seed = seed_print();
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct overwriter c[TASKS];
	struct copygc_stats stats = { 0 };
	struct task *tasks[TASKS];
	uint32_t *versions = calloc(BLOCKS, sizeof(*versions));
	struct kiln_stat st;
	char path[PATH_BYTES];
	kiln_fs *fs = fresh(path, 48 << 20);

	(void)state;
	assert_int_equal(kiln_create(fs, kiln_root(fs), "file", 4, &attr, &st), 0);
	assert_int_equal(kiln_setxattr(fs, st.node, "bcachefs.nocow", "1", 1, 0), 0);
	for (unsigned i = 0; i < TASKS; i++) {
		c[i] = (struct overwriter){
			.fs = fs, .node = st.node, .id = i, .runs = RUNS, .ops = OPS, .versions = versions
		};
		for (uint64_t run = 0; run < RUNS; run++)
			run_write(&c[i], run_begin(&c[i], run), PIECE_BLOCKS_MAX);
	}
	copygc_set_eager(fs->data);
	for (unsigned round = 0; round < ROUNDS_MAX && stats.extents_moved < MOVED_MIN; round++) {
		for (unsigned i = 0; i < TASKS; i++) {
			c[i].seed = seed * TASKS + i + round * 1000;
			assert_int_equal(task_start(&tasks[i], "overwrite", overwrite_task, &c[i]), 0);
		}
		for (unsigned i = 0; i < TASKS; i++)
			task_join(tasks[i]);
		copygc_stats(fs->data, &stats);
	}
	assert_true(stats.extents_moved >= MOVED_MIN);
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	fs = must_open(path, 0);
	for (unsigned i = 0; i < TASKS; i++) {
		c[i].fs = fs;
		for (uint64_t run = 0; run < RUNS; run++)
			run_check(&c[i], run);
	}
	must_be_consistent(fs);
	kiln_close(fs);
	unlink(path);
	free(versions);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_overwritten_in_place_may_be_moved_meanwhile),
		cmocka_unit_test(tasks_that_share_directories_lose_nothing),
		cmocka_unit_test(nobody_overwrites_what_was_appended_meanwhile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
