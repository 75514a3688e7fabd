/*
 * Many objects at once: each is what was asked for, whatever became of the others, and whatever way its contents took.
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

#include <cmocka.h>

#include "base/clock.h"
#include "base/sanitizer.h"
#include "base/sync.h"
#include "base/util.h"
#include "engine/whole.h"

enum { OBJECTS_MAX = 600, TASKS = 3 };

struct world {
	char path[32];
	kiln_fs *fs;
	struct rng rng;
};

/* An object as it is to be, and what became of it. */
struct made {
	struct kiln_new asked;
	char name[32];
	char target[1100];
	uint64_t stamp;
	int error;
	struct kiln_node node;
};

/* --- filesystems --- */

static void world_open(struct world *w, uint64_t bytes, const char *options)
{
	struct kiln_format_device dev = { .path = w->path, .file_bytes = bytes };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(dev),
					      .flags = KILN_FORMAT_FORCE,
					      .options = options };
	char why[KILN_ERROR_BYTES];

	rng_init(&w->rng, seed_print());
	strcpy(w->path, "/tmp/kiln-batch-XXXXXX");
	int fd = mkstemp(w->path);
	assert_true(fd >= 0);
	close(fd);
	if (kiln_format(&dev, 1, &format, &w->fs, why))
		fail_msg("%s", why);
}

static void world_reopen(struct world *w)
{
	assert_int_equal(kiln_shutdown(w->fs), 0);
	kiln_close(w->fs);
	w->fs = must_open(w->path, KILN_OPEN_WRITE);
	must_be_consistent(w->fs);
}

static void world_close(struct world *w)
{
	world_reopen(w);
	assert_int_equal(kiln_shutdown(w->fs), 0);
	kiln_close(w->fs);
	unlink(w->path);
}

static struct kiln_node directory(kiln_fs *fs, struct kiln_node parent, const char *name, uint32_t mode)
{
	struct kiln_create attr = { .mode = S_IFDIR | mode, .gid = 77 };
	struct kiln_stat st;

	assert_int_equal(kiln_create(fs, parent, name, strlen(name), &attr, &st), 0);
	return st.node;
}

/* --- objects --- */

static void fill(uint8_t *to, uint64_t stamp, uint64_t size)
{
	for (uint64_t i = 0; i < size; i++)
		to[i] = (uint8_t)(stamp + i * 13 + (i >> 9) * stamp);
}

static uint64_t draw_size(struct rng *rng)
{
	static const uint64_t edges[] = { 0, 1, 7, 8, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 65536, 65537 };

	switch (rng_below(rng, 4)) {
	case 0: return edges[rng_below(rng, ARRAY_NR(edges))];
	case 1: return rng_below(rng, 300000);
	default: return rng_below(rng, 9000);
	}
}

static void draw_object(struct made *o, struct rng *rng, struct kiln_node dir, unsigned nr)
{
	static const uint32_t types[] = { S_IFREG, S_IFREG, S_IFREG,  S_IFREG, S_IFREG,
					  S_IFLNK, S_IFIFO, S_IFSOCK, S_IFCHR, S_IFDIR };

	*o = (struct made){ .stamp = rng_u64(rng), .error = 1 };
	snprintf(o->name, sizeof(o->name), "object%05u", nr);
	o->asked = (struct kiln_new){
		.dir = dir,
		.name = o->name,
		.len = strlen(o->name),
		.mode = types[rng_below(rng, ARRAY_NR(types))] | (uint32_t)rng_below(rng, 010000),
		.uid = (uint32_t)rng_below(rng, 5) * 500,
		.gid = (uint32_t)rng_below(rng, 5) * 500,
		.atime = { (int64_t)rng_below(rng, 1u << 31), (uint32_t)rng_below(rng, 1000000000) },
		.mtime = { (int64_t)rng_below(rng, 1u << 31), (uint32_t)rng_below(rng, 1000000000) },
		.ctx = o,
	};
	if (S_ISCHR(o->asked.mode))
		o->asked.rdev_major = 4, o->asked.rdev_minor = (uint32_t)rng_below(rng, 100);
	if (S_ISREG(o->asked.mode))
		o->asked.size = draw_size(rng);
	if (S_ISLNK(o->asked.mode)) {
		memset(o->target, 't', 1 + rng_below(rng, 250));
		o->asked.target = o->target;
	}
}

static void draw_file(struct made *o, struct rng *rng, struct kiln_node dir, unsigned nr, uint64_t size)
{
	draw_object(o, rng, dir, nr);
	o->asked.mode = S_IFREG | 0644;
	o->asked.rdev_major = o->asked.rdev_minor = 0;
	o->asked.size = size;
}

static void object_made(void *ctx, const struct kiln_new *asked, int error, struct kiln_node node)
{
	struct made *o = asked->ctx;

	++*(unsigned *)ctx;
	o->error = error;
	o->node = node;
}

static unsigned batch_write(kiln_batch *batch)
{
	unsigned told = 0;

	kiln_batch_write(batch, object_made, &told);
	return told;
}

static void object_add(kiln_batch *batch, struct made *o)
{
	void *contents = NULL;
	int err = kiln_batch_add(batch, &o->asked, &contents);

	if (err == -ENOBUFS) {
		assert_true(batch_write(batch) > 0);
		err = kiln_batch_add(batch, &o->asked, &contents);
	}
	assert_int_equal(err, 0);
	if (S_ISREG(o->asked.mode) && o->asked.size)
		fill(contents, o->stamp, o->asked.size);
}

static void object_check(kiln_fs *fs, const struct made *o)
{
	const struct kiln_new *a = &o->asked;
	char target[1100];
	struct kiln_stat st;

	assert_int_equal(o->error, 0);
	assert_int_equal(kiln_lookup(fs, a->dir, a->name, a->len, &st), 0);
	assert_int_equal(st.node.ino, o->node.ino);
	assert_int_equal(st.mode, S_ISLNK(a->mode) ? S_IFLNK | 0777 : a->mode);
	assert_int_equal(st.uid, a->uid);
	assert_int_equal(st.gid, a->gid);
	assert_int_equal(st.rdev_major, a->rdev_major);
	assert_int_equal(st.rdev_minor, a->rdev_minor);
	assert_int_equal(st.nlink, S_ISDIR(a->mode) ? 2 : 1);
	assert_int_equal(st.mtime.sec, a->mtime.sec);
	assert_int_equal(st.mtime.nsec, a->mtime.nsec);
	assert_int_equal(st.atime.sec, a->atime.sec);
	if (S_ISLNK(a->mode)) {
		assert_int_equal(kiln_readlink(fs, st.node, target, sizeof(target)), strlen(a->target));
		assert_memory_equal(target, a->target, strlen(a->target));
	}
	if (!S_ISREG(a->mode))
		return;
	assert_int_equal(st.size, a->size);
	uint8_t *got = malloc(a->size + 1), *want = malloc(a->size + 1);
	fill(want, o->stamp, a->size);
	assert_int_equal(kiln_read(fs, st.node, 0, got, a->size + 1), a->size);
	assert_memory_equal(got, want, a->size);
	free(got);
	free(want);
}

/* --- the tests --- */

static void objects_are_what_was_asked_for(void **state)
{
	static const char *const options[] = {
		NULL, "str_hash=crc32c", "block_size=512,data_checksum=none",
		"data_checksum=xxhash,encoded_extent_max=16k,btree_node_size=16k,block_size=1k",
		"encoded_extent_max=4k,btree_node_size=4k,block_size=512"
	};
	struct made *objects = calloc(OBJECTS_MAX, sizeof(*objects));

	(void)state;
	for (size_t k = 0; k < ARRAY_NR(options); k++) {
		struct world w;

		world_open(&w, 256 << 20, options[k]);
		struct kiln_node root = kiln_root(w.fs);
		/* The one hands on its group, the other an option. */
		struct kiln_node dirs[] = { root, directory(w.fs, root, "setgid", 02775),
					    directory(w.fs, root, "nocsum", 0755) };
		assert_int_equal(kiln_setxattr(w.fs, dirs[2], "bcachefs.data_checksum", "crc64", 5, 0), 0);
		kiln_batch *batch = kiln_batch_new(w.fs);
		assert_non_null(batch);
		for (unsigned i = 0; i < OBJECTS_MAX; i++) {
			draw_object(&objects[i], &w.rng, dirs[rng_below(&w.rng, ARRAY_NR(dirs))], i);
			object_add(batch, &objects[i]);
			if (!rng_below(&w.rng, 20)) {
				kiln_batch_drop_last(batch);
				object_add(batch, &objects[i]);
			}
		}
		batch_write(batch);
		assert_int_equal(batch_write(batch), 0);
		kiln_batch_free(batch);
		world_reopen(&w);
		for (unsigned i = 0; i < OBJECTS_MAX; i++)
			object_check(w.fs, &objects[i]);
		world_close(&w);
	}
	free(objects);
}

static void names_that_exist_fail_alone(void **state)
{
	enum { NR = 40 };
	struct made *objects = calloc(NR, sizeof(*objects));
	struct world w;

	(void)state;
	world_open(&w, 256 << 20, NULL);
	struct kiln_node root = kiln_root(w.fs), dir = directory(w.fs, root, "dir", 0755);
	kiln_batch *batch = kiln_batch_new(w.fs);
	for (unsigned i = 0; i < NR; i++)
		draw_file(&objects[i], &w.rng, dir, i, 5000);
	directory(w.fs, dir, objects[3].name, 0755);
	objects[8].asked.name = objects[7].name;
	objects[9].asked.dir = directory(w.fs, root, "gone", 0755);
	assert_int_equal(kiln_unlink(w.fs, root, "gone", 4, KILN_UNLINK_DIR), 0);
	for (unsigned i = 0; i < NR; i++)
		object_add(batch, &objects[i]);
	batch_write(batch);
	for (unsigned i = 0; i < NR; i++) {
		if (i == 3 || i == 8)
			assert_int_equal(objects[i].error, -EEXIST);
		else if (i == 9)
			assert_int_equal(objects[i].error, -ENOENT);
		else
			object_check(w.fs, &objects[i]);
	}
	struct made bad = objects[0];
	bad.asked.len = 0;
	assert_int_equal(kiln_batch_add(batch, &bad.asked, NULL), -ENOENT);
	bad.asked.name = "a/b";
	bad.asked.len = 3;
	assert_int_equal(kiln_batch_add(batch, &bad.asked, NULL), -EINVAL);
	bad.asked.name = "..";
	bad.asked.len = 2;
	assert_int_equal(kiln_batch_add(batch, &bad.asked, NULL), -EEXIST);
	bad.asked.name = "big";
	bad.asked.len = 3;
	bad.asked.size = KILN_BATCH_BYTES + 1;
	assert_int_equal(kiln_batch_add(batch, &bad.asked, NULL), -EFBIG);
	kiln_batch_free(batch);
	world_close(&w);
	free(objects);
}

static void what_has_no_space_says_so(void **state)
{
	struct made *objects = calloc(OBJECTS_MAX, sizeof(*objects));
	struct kiln_usage usage;
	unsigned made = 0, full = 0;
	struct world w;

	(void)state;
	world_open(&w, 48 << 20, NULL);
	kiln_batch *batch = kiln_batch_new(w.fs);
	for (unsigned i = 0; i < OBJECTS_MAX; i++) {
		draw_file(&objects[i], &w.rng, kiln_root(w.fs), i, 100000);
		object_add(batch, &objects[i]);
	}
	batch_write(batch);
	kiln_batch_free(batch);
	world_reopen(&w);
	for (unsigned i = 0; i < OBJECTS_MAX; i++) {
		if (!objects[i].error) {
			object_check(w.fs, &objects[i]);
			made++;
			continue;
		}
		full++;
		assert_int_equal(objects[i].error, -ENOSPC);
		int err = kiln_unlink(w.fs, kiln_root(w.fs), objects[i].name, objects[i].asked.len, 0);
		assert_true(!err || err == -ENOENT);
	}
	assert_true(made > 50 && full > 50);
	/* Space that was taken and not used isn't lost. */
	for (unsigned i = 0; i < OBJECTS_MAX; i++)
		if (!objects[i].error)
			assert_int_equal(kiln_unlink(w.fs, kiln_root(w.fs), objects[i].name, objects[i].asked.len, 0),
					 0);
	assert_int_equal(kiln_deletions_wait(w.fs), 0);
	world_reopen(&w);
	assert_int_equal(kiln_usage(w.fs, &usage), 0);
	assert_int_equal(usage.inodes, 2); /* the root, and lost+found */
	world_close(&w);
	free(objects);
}

/* What grows: attributes, options and longer names as much as files. */
enum { GROW_FILE, GROW_ATTRIBUTE, GROW_ACL, GROW_OPTION, GROW_NAME, GROW_NR };

static const char short_name[] = "f", long_name[] = "a name that is longer than that";

static int grow(struct world *w, struct kiln_node node, unsigned what, unsigned try)
{
	/* user::rw-, user 1: r--, group::r--, mask::r--, other::r-- */
	static const uint8_t acl[] = {
		2, 0, 0,    0,	  1,	0,    6,    0, 0xff, 0xff, 0xff, 0xff, 2,    0,	   4,
		0, 1, 0,    0,	  0,	4,    0,    4, 0,    0xff, 0xff, 0xff, 0xff, 0x10, 0,
		4, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 4,    0,	   0xff, 0xff, 0xff, 0xff,
	};
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_node root = kiln_root(w->fs);
	char name[32];
	int err;

	switch (what) {
	case GROW_FILE:
		snprintf(name, sizeof(name), "new %u", try);
		return kiln_create(w->fs, root, name, strlen(name), &attr, NULL);
	case GROW_ATTRIBUTE: return kiln_setxattr(w->fs, node, "user.more", "1", 1, 0);
	case GROW_ACL: return kiln_setxattr(w->fs, node, "system.posix_acl_access", acl, sizeof(acl), 0);
	case GROW_OPTION: return kiln_setxattr(w->fs, node, "bcachefs.compression", "zstd", 4, 0);
	default:
		err = kiln_rename(w->fs, root, short_name, strlen(short_name), root, long_name, strlen(long_name), 0);
		if (!err)
			assert_int_equal(kiln_rename(w->fs, root, long_name, strlen(long_name), root, short_name,
						     strlen(short_name), 0),
					 0);
		return err;
	}
}

/* To the last block. */
static void fill_up(struct world *w, struct kiln_node filler, uint64_t *at)
{
	for (uint64_t step = 64 << 20; step >= 512;) {
		int err = kiln_fallocate(w->fs, filler, 0, *at, step);

		assert_true(!err || err == -ENOSPC);
		if (err)
			step /= 2;
		else
			*at += step;
	}
}

/* And what gives some back must do without. */
static void what_grows_is_refused_when_it_is_full(void **state)
{
	enum { TRIES_MAX = 1000 };
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_stat st, filler;
	struct world w;
	uint64_t at = 0;

	(void)state;
	/* With larger blocks, what is left below one counts as space. */
	world_open(&w, 48 << 20, "block_size=512");
	struct kiln_node root = kiln_root(w.fs);
	assert_int_equal(kiln_create(w.fs, root, short_name, strlen(short_name), &attr, &st), 0);
	assert_int_equal(kiln_setxattr(w.fs, st.node, "user.there", "1", 1, 0), 0);
	assert_int_equal(kiln_setxattr(w.fs, st.node, "bcachefs.compression", "lz4", 3, 0), 0);
	assert_int_equal(kiln_create(w.fs, root, "filler", 6, &attr, &filler), 0);
	for (unsigned what = 0; what < GROW_NR; what++) {
		unsigned try = 0;
		int err;

		/* Nodes that are written back free others, so there may be some again. */
		do {
			fill_up(&w, filler.node, &at);
			err = grow(&w, st.node, what, try);
		} while (!err && ++try < TRIES_MAX);
		assert_int_equal(err, -ENOSPC);
	}
	assert_int_equal(kiln_rename(w.fs, root, short_name, strlen(short_name), root, "h", 1, 0), 0);
	assert_int_equal(kiln_removexattr(w.fs, st.node, "user.there"), 0);
	assert_int_equal(kiln_removexattr(w.fs, st.node, "bcachefs.compression"), 0);
	assert_int_equal(kiln_rename(w.fs, root, "h", 1, root, "filler", 6, 0), 0);
	assert_int_equal(kiln_deletions_wait(w.fs), 0);

	assert_int_equal(kiln_rename(w.fs, root, "filler", 6, root, short_name, strlen(short_name), 0), 0);
	for (unsigned what = 0; what < GROW_NR; what++)
		assert_int_equal(grow(&w, st.node, what, TRIES_MAX), 0);
	world_close(&w);
}

struct crew {
	struct world *w;
	struct made *objects;
	struct kiln_node dir;
	unsigned nr, id;
};

static void crew_task(void *arg)
{
	struct crew *c = arg;
	kiln_batch *batch = kiln_batch_new(c->w->fs);
	struct kiln_create attr = { .mode = S_IFDIR | 0755 };
	unsigned told = 0;
	char name[32];

	for (unsigned i = 0; batch && i < c->nr; i++) {
		struct made *o = &c->objects[i];
		void *contents = NULL;

		if (kiln_batch_add(batch, &o->asked, &contents)) {
			kiln_batch_write(batch, object_made, &told);
			if (kiln_batch_add(batch, &o->asked, &contents))
				abort();
		}
		if (S_ISREG(o->asked.mode) && o->asked.size)
			fill(contents, o->stamp, o->asked.size);
		if (i % 16)
			continue;
		/* Something that gets in the way of the others' transactions. */
		snprintf(name, sizeof(name), "between%u-%u", c->id, i);
		if (kiln_create(c->w->fs, c->dir, name, strlen(name), &attr, NULL))
			abort();
	}
	if (batch)
		kiln_batch_write(batch, object_made, &told);
	kiln_batch_free(batch);
}

static void tasks_that_share_a_directory_lose_nothing(void **state)
{
	enum { EACH = OBJECTS_MAX / TASKS };
	struct made *objects = calloc(OBJECTS_MAX, sizeof(*objects));
	struct crew crew[TASKS];
	struct task *tasks[TASKS];
	struct kiln_stat st;
	unsigned dirs = 0;
	struct world w;

	(void)state;
	world_open(&w, 256 << 20, NULL);
	struct kiln_node dir = directory(w.fs, kiln_root(w.fs), "shared", 0755);
	for (unsigned i = 0; i < OBJECTS_MAX; i++) {
		draw_object(&objects[i], &w.rng, dir, i);
		objects[i].asked.size = min(objects[i].asked.size, (uint64_t)20000);
		dirs += S_ISDIR(objects[i].asked.mode);
	}
	for (unsigned i = 0; i < TASKS; i++) {
		crew[i] = (struct crew){ &w, objects + (size_t)i * EACH, dir, EACH, i };
		assert_int_equal(task_start(&tasks[i], "crew", crew_task, &crew[i]), 0);
	}
	for (unsigned i = 0; i < TASKS; i++)
		task_join(tasks[i]);
	world_reopen(&w);
	for (unsigned i = 0; i < OBJECTS_MAX; i++)
		object_check(w.fs, &objects[i]);
	assert_int_equal(kiln_stat(w.fs, dir, &st), 0);
	assert_int_equal(st.nlink, 2 + dirs + TASKS * ((EACH + 15) / 16));
	world_close(&w);
	free(objects);
}

/* --- a large directory --- */

/* $KILN_TEST_NAMES: how many it has. */
static unsigned names_nr(void)
{
	const char *text = getenv("KILN_TEST_NAMES");

	return text ? (unsigned)strtoul(text, NULL, 0) : KILN_SANITIZED ? 500 : 3000;
}

struct large {
	struct world w;
	struct kiln_node dir;
	unsigned nr, made;
	bool *is_there, *is_listed;
};

static void name_made(void *ctx, const struct kiln_new *asked, int error, struct kiln_node node)
{
	struct large *l = ctx;

	(void)asked;
	(void)node;
	l->made += !error;
}

static void large_make(struct large *l)
{
	enum { EACH = 5000 };
	char(*names)[24] = calloc(EACH, sizeof(*names));
	kiln_batch *batch = kiln_batch_new(l->w.fs);

	assert_true(names && batch);
	for (unsigned i = 0; i < l->nr; i++) {
		char *name = names[i % EACH];
		struct kiln_new o = { .dir = l->dir, .name = name, .mode = S_IFREG | 0644 };
		void *contents;

		if (i % EACH == 0)
			kiln_batch_write(batch, name_made, l);
		o.len = (size_t)snprintf(name, sizeof(*names), "name-%u", i);
		int err = kiln_batch_add(batch, &o, &contents);
		if (err == -ENOBUFS) {
			kiln_batch_write(batch, name_made, l);
			err = kiln_batch_add(batch, &o, &contents);
		}
		assert_int_equal(err, 0);
		l->is_there[i] = true;
	}
	kiln_batch_write(batch, name_made, l);
	assert_int_equal(l->made, l->nr);
	kiln_batch_free(batch);
	free(names);
}

static int name_listed(void *ctx, const struct kiln_dirent *entry)
{
	struct large *l = ctx;
	unsigned i;

	if (entry->name[0] == '.')
		return 0;
	if (sscanf(entry->name, "name-%u", &i) != 1 || i >= l->nr || !l->is_there[i] || l->is_listed[i])
		fail_msg("%s is listed", entry->name);
	l->is_listed[i] = true;
	return 0;
}

/* Every name is listed, once; and random ones are found, or not. */
static void large_check(struct large *l)
{
	struct kiln_stat st;
	bool at_end;

	memset(l->is_listed, 0, l->nr);
	assert_int_equal(kiln_readdir(l->w.fs, l->dir, 0, name_listed, l, &at_end, NULL), 0);
	assert_true(at_end);
	assert_memory_equal(l->is_listed, l->is_there, l->nr);
	for (unsigned n = 0; n < l->nr / 4; n++) {
		unsigned i = (unsigned)rng_below(&l->w.rng, l->nr);
		char name[24];
		size_t len = (size_t)snprintf(name, sizeof(name), "name-%u", i);

		assert_int_equal(kiln_lookup(l->w.fs, l->dir, name, len, &st), l->is_there[i] ? 0 : -ENOENT);
	}
}

static void directories_may_be_large(void **state)
{
	struct large l = { .nr = names_nr() };

	(void)state;
	l.is_there = calloc(l.nr, 1);
	l.is_listed = calloc(l.nr, 1);
	assert_true(l.is_there && l.is_listed);
	world_open(&l.w, (256ull << 20) + l.nr * 2048ull, NULL);
	l.dir = directory(l.w.fs, kiln_root(l.w.fs), "large", 0755);
	large_make(&l);
	large_check(&l);
	world_reopen(&l.w);
	for (unsigned i = 0; i < l.nr; i++) {
		char name[24];
		size_t len = (size_t)snprintf(name, sizeof(name), "name-%u", i);

		if (rng_below(&l.w.rng, 3))
			continue;
		assert_int_equal(kiln_unlink(l.w.fs, l.dir, name, len, 0), 0);
		l.is_there[i] = false;
	}
	large_check(&l);
	world_reopen(&l.w);
	large_check(&l);
	world_close(&l.w);
	free(l.is_there);
	free(l.is_listed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(objects_are_what_was_asked_for),
		cmocka_unit_test(names_that_exist_fail_alone),
		cmocka_unit_test(what_has_no_space_says_so),
		cmocka_unit_test(what_grows_is_refused_when_it_is_full),
		cmocka_unit_test(tasks_that_share_a_directory_lose_nothing),
		cmocka_unit_test(directories_may_be_large),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
