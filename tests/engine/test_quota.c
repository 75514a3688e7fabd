/*
 * Quotas: what is counted is what a walk over all files adds up to, whatever was changed meanwhile and by how many; and
 * nobody gets more than the limits allow.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "alloc/quota_internal.h"
#include "base/clock.h"
#include "base/sync.h"
#include "base/util.h"
#include "data/write.h"
#include "engine/fs.h"
#include "kiln/kiln.h"

enum { TASKS = 4, IDS = 5, FILES = 20, FILLERS = 1200, BYTES_MAX = 30000, TYPES = 3, BLOCK = 4096 };

#ifndef OPS
#define OPS 250
#endif

/* An assertion of cmocka works in the main task only. */
#define MUST(cond)                                                                              \
	do {                                                                                    \
		if (!(cond)) {                                                                  \
			fprintf(stderr, "%s:%d: %s doesn't hold\n", __FILE__, __LINE__, #cond); \
			abort();                                                                \
		}                                                                               \
	} while (0)

/* --- a filesystem in a file --- */

struct volume {
	char path[64];
	kiln_fs *fs;
};

static void volume_make(struct volume *v, const char *options)
{
	char why[KILN_ERROR_BYTES];
	struct kiln_format_device dev = { .path = v->path, .file_bytes = 128 << 20 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(dev),
					      .options = options,
					      .flags = KILN_FORMAT_FORCE };

	strcpy(v->path, "/tmp/kiln-quota-XXXXXX");
	int fd = mkstemp(v->path);
	assert_true(fd >= 0);
	close(fd);
	if (kiln_format(&dev, 1, &format, &v->fs, why))
		fail_msg("%s", why);
}

static void volume_open(struct volume *v, unsigned flags)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = flags };
	const char *path = v->path;
	char why[KILN_ERROR_BYTES];

	if (kiln_open(&path, 1, &options, &v->fs, why))
		fail_msg("%s", why);
	assert_null(kiln_write_refused(v->fs));
}

static void volume_close(struct volume *v)
{
	assert_int_equal(kiln_shutdown(v->fs), 0);
	kiln_close(v->fs);
}

/* Open for reading: nothing is done in the background. */
static void volume_check(struct volume *v)
{
	struct kiln_check_result *result = calloc(1, sizeof(*result));

	assert_int_equal(kiln_check(v->fs, NULL, result), 0);
	for (unsigned i = 0; i < result->kind_nr; i++)
		print_error("%" PRIu64 " x %s\n", result->kinds[i].count, result->kinds[i].name);
	assert_int_equal(result->errors, 0);
	free(result);
}

static void volume_remove(struct volume *v)
{
	volume_close(v);
	volume_open(v, 0);
	volume_check(v);
	kiln_close(v->fs);
	unlink(v->path);
}

/* --- counting by walking --- */

struct tally {
	uint64_t space[TYPES][IDS], inodes[TYPES][IDS];
	/* What was listed. */
	uint64_t listed_space[TYPES][IDS], listed_inodes[TYPES][IDS];
	int64_t last_id;
};

static int tally_add(void *ctx, const struct kiln_walk_entry *e)
{
	struct tally *t = ctx;

	if (e->event == KILN_WALK_LEAVE)
		return 0;
	assert_int_equal(e->event, KILN_WALK_ENTER);
	const uint32_t ids[TYPES] = { e->st->uid, e->st->gid, e->st->project };
	/* Files with two names are made with one name only in these tests. */
	for (unsigned type = 0; type < TYPES; type++) {
		assert_true(ids[type] < IDS);
		t->space[type][ids[type]] += e->st->sectors * 512;
		t->inodes[type][ids[type]]++;
	}
	return 0;
}

static int tally_list(void *ctx, const struct kiln_quota *q)
{
	struct tally *t = ctx;

	assert_true(q->id < IDS);
	assert_true((int64_t)q->id > t->last_id);
	t->last_id = q->id;
	t->listed_space[q->type][q->id] = q->space.used;
	t->listed_inodes[q->type][q->id] = q->inodes.used;
	return 0;
}

static void counts_must_be_right(struct volume *v)
{
	struct tally t = { 0 };

	assert_int_equal(kiln_deletions_wait(v->fs), 0);
	assert_int_equal(kiln_walk(v->fs, kiln_root(v->fs), tally_add, &t), 0);
	for (unsigned type = 0; type < TYPES; type++) {
		t.last_id = -1;
		assert_int_equal(kiln_quota_list(v->fs, (enum kiln_quota_type)type, tally_list, &t), 0);
		for (unsigned id = 0; id < IDS; id++) {
			struct kiln_quota q;

			if (t.space[type][id] != t.listed_space[type][id] ||
			    t.inodes[type][id] != t.listed_inodes[type][id])
				fail_msg("type %u id %u: %" PRIu64 " bytes in %" PRIu64 " inodes, counted %" PRIu64
					 " in %" PRIu64,
					 type, id, t.space[type][id], t.inodes[type][id], t.listed_space[type][id],
					 t.listed_inodes[type][id]);
			assert_int_equal(kiln_quota_get(v->fs, (enum kiln_quota_type)type, id, &q), 0);
			assert_int_equal(q.space.used, t.space[type][id]);
			assert_int_equal(q.inodes.used, t.inodes[type][id]);
		}
	}
}

static uint64_t quota_errors(struct volume *v)
{
	struct kiln_check_options options = { .struct_bytes = sizeof(options), .passes = "check_quotas" };
	struct kiln_check_result *result = calloc(1, sizeof(*result));

	assert_int_equal(kiln_check(v->fs, &options, result), 0);
	uint64_t errors = result->errors;
	free(result);
	return errors;
}

/* --- many at once --- */

struct crew {
	kiln_fs *fs;
	unsigned id;
	uint64_t seed;
	bool exists[FILES];
	bool may_refuse; /* there are limits */
};

static bool is_done(const struct crew *c, int err)
{
	MUST(!err || (c->may_refuse && err == -EDQUOT));
	return !err;
}

static struct kiln_create attr_random(struct rng *rng, uint32_t type)
{
	return (struct kiln_create){ .mode = type | 0755,
				     .uid = (uint32_t)rng_below(rng, IDS),
				     .gid = (uint32_t)rng_below(rng, IDS) };
}

static void file_make(struct crew *c, struct rng *rng, unsigned i, const char *name, size_t len)
{
	static const uint32_t types[] = { S_IFREG, S_IFREG, S_IFREG, S_IFDIR, S_IFIFO };
	struct kiln_create attr = attr_random(rng, types[rng_below(rng, ARRAY_NR(types))]);

	if (rng_below(rng, 6))
		c->exists[i] = is_done(c, kiln_create(c->fs, kiln_root(c->fs), name, len, &attr, NULL));
	else
		c->exists[i] = is_done(c, kiln_symlink(c->fs, kiln_root(c->fs), name, len, "somewhere", &attr, NULL));
}

static void unnamed_make(struct crew *c, struct rng *rng, unsigned i, const char *name, size_t len)
{
	static const uint8_t zeroes[BYTES_MAX];
	struct kiln_create attr = attr_random(rng, S_IFREG);
	struct kiln_stat st;

	if (!is_done(c, kiln_create_unnamed(c->fs, kiln_root(c->fs), &attr, &st)))
		return;
	ssize_t n = kiln_write(c->fs, st.node, rng_below(rng, BYTES_MAX), zeroes, rng_below(rng, BYTES_MAX));
	MUST(n >= 0 || is_done(c, (int)n) || true);
	if (!c->exists[i] && rng_below(rng, 2))
		c->exists[i] = !kiln_link(c->fs, st.node, kiln_root(c->fs), name, len);
	kiln_release(c->fs, st.node);
}

static void file_change(struct crew *c, struct rng *rng, const struct kiln_stat *st)
{
	static const uint8_t zeroes[BYTES_MAX];
	struct kiln_setattr set = { .size = rng_below(rng, 2 * BYTES_MAX),
				    .uid = (uint32_t)rng_below(rng, IDS),
				    .gid = (uint32_t)rng_below(rng, IDS) };
	char project[16];
	ssize_t n;

	switch (rng_below(rng, 8)) {
	case 0:
		set.fields = rng_below(rng, 2) ? KILN_SET_UID : KILN_SET_UID | KILN_SET_GID;
		is_done(c, kiln_setattr(c->fs, st->node, &set, NULL));
		break;
	case 1:
		n = snprintf(project, sizeof(project), "%u", (unsigned)rng_below(rng, IDS));
		is_done(c, kiln_setxattr(c->fs, st->node, "bcachefs.project", project, (size_t)n, 0));
		break;
	case 2:
		if (!S_ISREG(st->mode))
			break;
		set.fields = KILN_SET_SIZE;
		is_done(c, kiln_setattr(c->fs, st->node, &set, NULL));
		break;
	case 3:
		if (S_ISREG(st->mode) && rng_below(rng, 2))
			is_done(c, kiln_fallocate(c->fs, st->node, 0, rng_below(rng, BYTES_MAX),
						  1 + rng_below(rng, BYTES_MAX)));
		else if (S_ISREG(st->mode))
			is_done(c,
				kiln_punch(c->fs, st->node, rng_below(rng, BYTES_MAX), 1 + rng_below(rng, BYTES_MAX)));
		break;
	default:
		if (!S_ISREG(st->mode))
			break;
		n = kiln_write(c->fs, st->node, rng_below(rng, BYTES_MAX), zeroes,
			       rng_below(rng, 3) ? rng_below(rng, BYTES_MAX) : rng_below(rng, 500));
		MUST(n >= 0 || is_done(c, (int)n) || c->may_refuse);
	}
}

static void crew_task(void *arg)
{
	struct crew *c = arg;
	struct kiln_stat st;
	struct rng rng;

	rng_init(&rng, c->seed);
	for (unsigned op = 0; op < OPS; op++) {
		unsigned i = (unsigned)rng_below(&rng, FILES);
		char name[32];
		size_t len = (size_t)snprintf(name, sizeof(name), "task%u-%02u", c->id, i);

		if (!rng_below(&rng, 12)) {
			unnamed_make(c, &rng, i, name, len);
		} else if (!c->exists[i]) {
			file_make(c, &rng, i, name, len);
		} else {
			MUST(!kiln_lookup(c->fs, kiln_root(c->fs), name, len, &st));
			if (rng_below(&rng, 8)) {
				file_change(c, &rng, &st);
			} else {
				MUST(!kiln_unlink(c->fs, kiln_root(c->fs), name, len,
						  S_ISDIR(st.mode) ? KILN_UNLINK_DIR : 0));
				c->exists[i] = false;
			}
		}
	}
}

static void crew_run(struct volume *v, struct crew *crew, uint64_t seed, bool may_refuse)
{
	struct task *tasks[TASKS];

	for (unsigned i = 0; i < TASKS; i++) {
		crew[i].fs = v->fs;
		crew[i].id = i;
		crew[i].seed = seed * TASKS + i;
		crew[i].may_refuse = may_refuse;
		assert_int_equal(task_start(&tasks[i], "crew", crew_task, &crew[i]), 0);
	}
	for (unsigned i = 0; i < TASKS; i++)
		task_join(tasks[i]);
}

/* So many inodes that the scan takes a while. */
static void fillers_make(struct volume *v, struct rng *rng)
{
	struct kiln_stat dir;
	char name[32];

	assert_int_equal(
		kiln_create(v->fs, kiln_root(v->fs), "fill", 4, &(struct kiln_create){ .mode = S_IFDIR | 0755 }, &dir),
		0);
	for (unsigned i = 0; i < FILLERS; i++) {
		struct kiln_create attr = attr_random(rng, S_IFREG);
		size_t len = (size_t)snprintf(name, sizeof(name), "f%u", i);

		assert_int_equal(kiln_create(v->fs, dir.node, name, len, &attr, NULL), 0);
	}
}

static void limits_set(struct volume *v, unsigned type, uint32_t id, uint64_t space_hard, uint64_t inodes_hard)
{
	struct kiln_quota_limits limits = { .fields = KILN_QUOTA_SPACE_HARD | KILN_QUOTA_INODES_HARD,
					    .space_hard = space_hard,
					    .inodes_hard = inodes_hard };

	assert_int_equal(kiln_quota_set(v->fs, (enum kiln_quota_type)type, id, &limits), 0);
}

static void counts_are_those_of_a_walk_whatever_happens(void **state)
{
	const char *seed_text = getenv("KILN_TEST_SEED");
	uint64_t seed = seed_text ? strtoull(seed_text, NULL, 0) : random_u64();
	struct crew *crew = calloc(TASKS, sizeof(*crew));
	struct volume v;
	struct rng rng;

	(void)state;
	print_message("KILN_TEST_SEED=%" PRIu64 "\n", seed);
	rng_init(&rng, seed);
	volume_make(&v, "usrquota,grpquota,prjquota");
	fillers_make(&v, &rng);
	counts_must_be_right(&v);
	for (unsigned round = 0; round < 4; round++) {
		bool has_limits = round >= 2;

		if (round == 2) {
			limits_set(&v, KILN_QUOTA_USER, 1, 40 * BLOCK, 0);
			limits_set(&v, KILN_QUOTA_GROUP, 2, 0, FILLERS / IDS + 10);
			limits_set(&v, KILN_QUOTA_PROJECT, 3, 10 * BLOCK, 5);
		}
		/* The scan begins when it is opened, and meets all that the crew does. */
		volume_close(&v);
		volume_open(&v, KILN_OPEN_WRITE);
		crew_run(&v, crew, seed + round, has_limits);
		counts_must_be_right(&v);
		assert_int_equal(quota_errors(&v), 0);
		crew_run(&v, crew, seed + round + 100, has_limits);
		counts_must_be_right(&v);
		volume_close(&v);
		volume_open(&v, 0);
		counts_must_be_right(&v);
		volume_check(&v);
		kiln_close(v.fs);
		volume_open(&v, KILN_OPEN_WRITE);
	}
	volume_remove(&v);
	free(crew);
}

/* --- limits --- */

static int file_new(struct volume *v, const char *name, uint32_t type, uint32_t uid, uint32_t gid, struct kiln_stat *st)
{
	return kiln_create(v->fs, kiln_root(v->fs), name, strlen(name),
			   &(struct kiln_create){ .mode = type | 0755, .uid = uid, .gid = gid }, st);
}

static struct kiln_quota quota_of(struct volume *v, unsigned type, uint32_t id)
{
	struct kiln_quota q;

	assert_int_equal(kiln_quota_get(v->fs, (enum kiln_quota_type)type, id, &q), 0);
	return q;
}

static void inode_limits_hold(void **state)
{
	struct volume v;
	struct kiln_stat st;

	(void)state;
	volume_make(&v, "usrquota,grpquota,prjquota");
	assert_int_equal(kiln_quota_wait(v.fs), 0);
	limits_set(&v, KILN_QUOTA_USER, 1, 0, 3);
	assert_int_equal(file_new(&v, "a", S_IFREG, 1, 0, &st), 0);
	assert_int_equal(file_new(&v, "b", S_IFDIR, 1, 0, &st), 0);
	assert_int_equal(kiln_symlink(v.fs, kiln_root(v.fs), "c", 1, "a", &(struct kiln_create){ .uid = 1 }, &st), 0);
	assert_int_equal(file_new(&v, "d", S_IFREG, 1, 0, &st), -EDQUOT);
	assert_int_equal(file_new(&v, "d", S_IFDIR, 1, 0, &st), -EDQUOT);
	assert_int_equal(kiln_create_unnamed(v.fs, kiln_root(v.fs), &(struct kiln_create){ .uid = 1 }, &st), -EDQUOT);
	assert_int_equal(kiln_lookup(v.fs, kiln_root(v.fs), "d", 1, &st), -ENOENT);
	assert_int_equal(file_new(&v, "d", S_IFREG, 2, 0, &st), 0);
	/* A file can't be given away to somebody who may not have it. */
	struct kiln_setattr chown = { .fields = KILN_SET_UID, .uid = 1 };
	assert_int_equal(kiln_setattr(v.fs, st.node, &chown, NULL), -EDQUOT);
	assert_int_equal(kiln_stat(v.fs, st.node, &st), 0);
	assert_int_equal(st.uid, 2);
	assert_int_equal(kiln_unlink(v.fs, kiln_root(v.fs), "a", 1, 0), 0);
	assert_int_equal(kiln_deletions_wait(v.fs), 0);
	assert_int_equal(kiln_setattr(v.fs, st.node, &chown, NULL), 0);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 1).inodes.used, 3);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 2).inodes.used, 0);
	/* Groups and projects are no different. */
	limits_set(&v, KILN_QUOTA_GROUP, 3, 0, 1);
	assert_int_equal(file_new(&v, "g", S_IFREG, 2, 3, &st), 0);
	assert_int_equal(file_new(&v, "h", S_IFREG, 2, 3, &st), -EDQUOT);
	limits_set(&v, KILN_QUOTA_PROJECT, 4, 0, 1);
	assert_int_equal(kiln_setxattr(v.fs, st.node, "bcachefs.project", "4", 1, 0), 0);
	assert_int_equal(file_new(&v, "i", S_IFREG, 2, 2, &st), 0);
	assert_int_equal(kiln_setxattr(v.fs, st.node, "bcachefs.project", "4", 1, 0), -EDQUOT);
	/* Limits that are lowered take nothing away; and without them there are none. */
	limits_set(&v, KILN_QUOTA_USER, 1, 0, 1);
	assert_int_equal(file_new(&v, "j", S_IFREG, 1, 0, &st), -EDQUOT);
	limits_set(&v, KILN_QUOTA_USER, 1, 0, 0);
	assert_int_equal(file_new(&v, "j", S_IFREG, 1, 0, &st), 0);
	counts_must_be_right(&v);
	volume_remove(&v);
}

static void space_limits_hold(void **state)
{
	static uint8_t data[64 * BLOCK];
	struct kiln_stat st, other;
	struct volume v;

	(void)state;
	memset(data, 1, sizeof(data));
	volume_make(&v, "usrquota,grpquota,prjquota,block_size=4k");
	limits_set(&v, KILN_QUOTA_USER, 1, 40 * BLOCK, 0);
	assert_int_equal(kiln_quota_wait(v.fs), 0);
	assert_int_equal(file_new(&v, "a", S_IFREG, 1, 0, &st), 0);
	/* As much as fits, then nothing. */
	assert_int_equal(kiln_write(v.fs, st.node, 0, data, sizeof(data)), 40 * BLOCK);
	assert_int_equal(kiln_write(v.fs, st.node, 40 * BLOCK, data, BLOCK), -EDQUOT);
	assert_int_equal(kiln_write(v.fs, st.node, 40 * BLOCK, data, 100), -EDQUOT);
	/* What is there can be written over, in part or as a whole; and a hole takes nothing. */
	assert_int_equal(kiln_write(v.fs, st.node, 0, data, 40 * BLOCK), 40 * BLOCK);
	assert_int_equal(kiln_write(v.fs, st.node, 5, data, 10 * BLOCK), 10 * BLOCK);
	assert_int_equal(kiln_write(v.fs, st.node, 39 * BLOCK, data, 2 * BLOCK), BLOCK);
	assert_int_equal(kiln_write(v.fs, st.node, 39 * BLOCK + 7, data, 2 * BLOCK), BLOCK - 7);
	assert_int_equal(
		kiln_setattr(v.fs, st.node, &(struct kiln_setattr){ .fields = KILN_SET_SIZE, .size = 1 << 30 }, NULL),
		0);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 1).space.used, 40 * BLOCK);
	/* Holes are filled one by one. */
	assert_int_equal(kiln_punch(v.fs, st.node, 2 * BLOCK, BLOCK), 0);
	assert_int_equal(kiln_punch(v.fs, st.node, 4 * BLOCK, BLOCK), 0);
	assert_int_equal(kiln_write(v.fs, st.node, BLOCK, data, 39 * BLOCK), 39 * BLOCK);
	assert_int_equal(kiln_setattr(v.fs, st.node,
				      &(struct kiln_setattr){ .fields = KILN_SET_SIZE, .size = 30 * BLOCK + 1 }, NULL),
			 0);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 1).space.used, 31 * BLOCK);
	/* Space that is only promised counts. */
	assert_int_equal(kiln_fallocate(v.fs, st.node, 0, 31 * BLOCK, 10 * BLOCK), -EDQUOT);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 1).space.used, 31 * BLOCK);
	assert_int_equal(kiln_fallocate(v.fs, st.node, 0, 30 * BLOCK, 10 * BLOCK), 0);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 1).space.used, 40 * BLOCK);
	assert_int_equal(kiln_write(v.fs, st.node, 25 * BLOCK, data, 15 * BLOCK), 15 * BLOCK);
	assert_int_equal(kiln_setattr(v.fs, st.node,
				      &(struct kiln_setattr){ .fields = KILN_SET_SIZE, .size = 31 * BLOCK }, NULL),
			 0);
	/* Somebody else's file can't come with more than there is room for. */
	struct kiln_setattr chown = { .fields = KILN_SET_UID, .uid = 1 };
	assert_int_equal(file_new(&v, "b", S_IFREG, 2, 0, &other), 0);
	assert_int_equal(kiln_write(v.fs, other.node, 0, data, 10 * BLOCK), 10 * BLOCK);
	assert_int_equal(kiln_setattr(v.fs, other.node, &chown, NULL), -EDQUOT);
	assert_int_equal(kiln_punch(v.fs, other.node, 0, BLOCK), 0);
	assert_int_equal(kiln_setattr(v.fs, other.node, &chown, NULL), 0);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 1).space.used, 40 * BLOCK);
	/* What is shared counts for both; where there is something already, it adds nothing. */
	struct kiln_stat third;
	assert_int_equal(file_new(&v, "c", S_IFREG, 2, 0, &third), 0);
	assert_int_equal(kiln_write(v.fs, third.node, 0, data, 10 * BLOCK), 10 * BLOCK);
	assert_int_equal(kiln_copy_range(v.fs, third.node, 0, other.node, 10 * BLOCK, 10 * BLOCK, 0), -EDQUOT);
	assert_int_equal(kiln_copy_range(v.fs, third.node, 0, st.node, 0, 10 * BLOCK, 0), 10 * BLOCK);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 1).space.used, 40 * BLOCK);
	/* Who is privileged isn't held up, and others still are. */
	assert_int_equal(kiln_quota_privileged(v.fs, true), 0);
	assert_int_equal(kiln_write(v.fs, other.node, 20 * BLOCK, data, 4 * BLOCK), 4 * BLOCK);
	assert_int_equal(kiln_quota_privileged(v.fs, false), 0);
	assert_int_equal(kiln_write(v.fs, other.node, 30 * BLOCK, data, 4 * BLOCK), -EDQUOT);
	counts_must_be_right(&v);
	/* One that is larger than all there is isn't taken for none. */
	limits_set(&v, KILN_QUOTA_GROUP, 1, UINT64_MAX, 0);
	assert_int_equal(quota_of(&v, KILN_QUOTA_GROUP, 1).space.hard, UINT64_MAX);
	/* Limits are stored. */
	volume_close(&v);
	volume_open(&v, KILN_OPEN_WRITE);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 1).space.hard, 40 * BLOCK);
	assert_int_equal(kiln_write(v.fs, other.node, 30 * BLOCK, data, 4 * BLOCK), -EDQUOT);
	volume_remove(&v);
}

static void soft_limits_hold_after_the_grace_period(void **state)
{
	static uint8_t data[64 * BLOCK];
	struct kiln_quota_limits soft = { .fields = KILN_QUOTA_SPACE_SOFT, .space_soft = 10 * BLOCK };
	struct kiln_quota_info info;
	struct kiln_quota q;
	struct kiln_stat st;
	struct volume v;

	(void)state;
	volume_make(&v, "usrquota,block_size=4k");
	assert_int_equal(kiln_quota_info(v.fs, KILN_QUOTA_USER, &info), 0);
	assert_true(info.is_enabled && info.space_grace == 7 * 24 * 3600);
	assert_int_equal(kiln_quota_info(v.fs, KILN_QUOTA_GROUP, &info), 0);
	assert_false(info.is_enabled);
	assert_int_equal(kiln_quota_get(v.fs, KILN_QUOTA_GROUP, 1, &q), -ESRCH);
	assert_int_equal(kiln_quota_set_grace(v.fs, KILN_QUOTA_USER, 1, 100), 0);
	assert_int_equal(kiln_quota_set(v.fs, KILN_QUOTA_USER, 1, &soft), 0);
	assert_int_equal(kiln_quota_wait(v.fs), 0);
	assert_int_equal(file_new(&v, "a", S_IFREG, 1, 0, &st), 0);
	assert_int_equal(kiln_write(v.fs, st.node, 0, data, 10 * BLOCK), 10 * BLOCK);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 1).space.grace_end, 0);
	assert_int_equal(kiln_write(v.fs, st.node, 10 * BLOCK, data, BLOCK), BLOCK);
	assert_true(quota_of(&v, KILN_QUOTA_USER, 1).space.grace_end != 0);
	sleep_ns(2100000000);
	assert_int_equal(kiln_write(v.fs, st.node, 11 * BLOCK, data, BLOCK), -EDQUOT);
	assert_int_equal(kiln_write(v.fs, st.node, 10 * BLOCK, data, BLOCK), BLOCK);
	/* Back at the limit, it begins anew. */
	assert_int_equal(kiln_punch(v.fs, st.node, 0, BLOCK), 0);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 1).space.grace_end, 0);
	assert_int_equal(kiln_write(v.fs, st.node, 11 * BLOCK, data, BLOCK), BLOCK);
	/* The grace period is stored. */
	volume_close(&v);
	volume_open(&v, KILN_OPEN_WRITE);
	assert_int_equal(kiln_quota_info(v.fs, KILN_QUOTA_USER, &info), 0);
	assert_int_equal(info.space_grace, 1);
	assert_int_equal(info.inodes_grace, 100);
	volume_remove(&v);
}

static void types_that_are_not_counted_can_be_for_a_call(void **state)
{
	static const uint8_t data[8 * BLOCK];
	struct tally t = { 0 };
	struct kiln_stat st;
	struct volume v;

	(void)state;
	volume_make(&v, "usrquota,block_size=4k");
	assert_int_equal(file_new(&v, "a", S_IFREG, 1, 2, &st), 0);
	assert_int_equal(kiln_write(v.fs, st.node, 0, data, 8 * BLOCK), 8 * BLOCK);
	assert_int_equal(file_new(&v, "b", S_IFREG, 3, 3, &st), 0);
	limits_set(&v, KILN_QUOTA_GROUP, 3, 7 * BLOCK, 0);
	assert_int_equal(kiln_quota_list(v.fs, KILN_QUOTA_GROUP, tally_list, &t), -ESRCH);
	assert_int_equal(kiln_walk(v.fs, kiln_root(v.fs), tally_add, &t), 0);
	for (unsigned type = 0; type < TYPES; type++) {
		t.last_id = -1;
		assert_int_equal(kiln_quota_count(v.fs, (enum kiln_quota_type)type, tally_list, &t), 0);
	}
	assert_memory_equal(t.listed_space, t.space, sizeof(t.space));
	assert_memory_equal(t.listed_inodes, t.inodes, sizeof(t.inodes));
	assert_int_equal(t.space[KILN_QUOTA_GROUP][2], 8 * BLOCK);
	assert_int_equal(kiln_quota_count(v.fs, (enum kiln_quota_type)TYPES, tally_list, &t), -EINVAL);
	volume_remove(&v);
}

struct greedy {
	kiln_fs *fs;
	struct kiln_node node;
	uint64_t written;
};

static void greedy_task(void *arg)
{
	static const uint8_t zeroes[3 * BLOCK];
	struct greedy *g = arg;
	ssize_t n;

	while ((n = kiln_write(g->fs, g->node, g->written, zeroes, sizeof(zeroes))) > 0)
		g->written += (uint64_t)n;
	MUST(n == -EDQUOT);
}

static void all_together_get_what_the_limit_allows(void **state)
{
	struct greedy greedy[TASKS];
	struct task *tasks[TASKS];
	struct kiln_stat st;
	struct volume v;
	uint64_t sum = 0;

	(void)state;
	volume_make(&v, "usrquota,block_size=4k");
	limits_set(&v, KILN_QUOTA_USER, 1, 500 * BLOCK, 0);
	assert_int_equal(kiln_quota_wait(v.fs), 0);
	for (unsigned i = 0; i < TASKS; i++) {
		char name[8];

		snprintf(name, sizeof(name), "f%u", i);
		assert_int_equal(file_new(&v, name, S_IFREG, 1, 0, &st), 0);
		greedy[i] = (struct greedy){ v.fs, st.node, 0 };
		assert_int_equal(task_start(&tasks[i], "greedy", greedy_task, &greedy[i]), 0);
	}
	for (unsigned i = 0; i < TASKS; i++) {
		task_join(tasks[i]);
		sum += greedy[i].written;
	}
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 1).space.used, sum);
	/* One that is refused may have seen what another took and gave back. */
	assert_in_range(sum, (500 - 3 * TASKS) * BLOCK, 500 * BLOCK);
	volume_remove(&v);
}

struct overwriter {
	kiln_fs *fs;
	struct kiln_node node;
	atomic_bool must_stop;
};

static void overwriter_task(void *arg)
{
	static const uint8_t zeroes[20 * BLOCK];
	struct overwriter *o = arg;

	while (!atomic_load(&o->must_stop))
		MUST(kiln_write(o->fs, o->node, 0, zeroes, sizeof(zeroes)) == sizeof(zeroes));
}

/* Not for a moment. */
static void what_is_overwritten_takes_nothing_from_others(void **state)
{
	static const uint8_t zeroes[20 * BLOCK];
	struct overwriter o = { .must_stop = false };
	struct kiln_stat st;
	struct task *task;
	struct volume v;

	(void)state;
	volume_make(&v, "usrquota,block_size=4k");
	limits_set(&v, KILN_QUOTA_USER, 1, 40 * BLOCK, 0);
	assert_int_equal(kiln_quota_wait(v.fs), 0);
	assert_int_equal(file_new(&v, "a", S_IFREG, 1, 0, &st), 0);
	assert_int_equal(kiln_write(v.fs, st.node, 0, zeroes, sizeof(zeroes)), sizeof(zeroes));
	o.fs = v.fs;
	o.node = st.node;
	assert_int_equal(file_new(&v, "b", S_IFREG, 1, 0, &st), 0);
	assert_int_equal(task_start(&task, "overwriter", overwriter_task, &o), 0);
	for (unsigned i = 0; i < OPS; i++) {
		assert_int_equal(kiln_write(v.fs, st.node, 0, zeroes, sizeof(zeroes)), sizeof(zeroes));
		assert_int_equal(kiln_punch(v.fs, st.node, 0, sizeof(zeroes)), 0);
	}
	atomic_store(&o.must_stop, true);
	task_join(task);
	volume_remove(&v);
}

static void the_checker_sees_wrong_counts(void **state)
{
	static const struct {
		unsigned type, counter;
		uint32_t id;
	} wrongs[] = { { QUOTA_USER, QUOTA_SPACE, 0 },
		       { QUOTA_GROUP, QUOTA_INODES, 1 },
		       { QUOTA_USER, QUOTA_SPACE, 77 } };
	struct volume v;

	(void)state;
	volume_make(&v, "usrquota,grpquota");
	assert_int_equal(file_new(&v, "a", S_IFREG, 0, 1, NULL), 0);
	assert_int_equal(quota_errors(&v), 0);
	for (size_t i = 0; i < ARRAY_NR(wrongs); i++) {
		struct quotas *q = allocator_quotas(v.fs->allocator);

		mutex_lock(&q->lock);
		__int128 *used = &quota_row_get(q, wrongs[i].type, wrongs[i].id)->used[wrongs[i].counter];
		mutex_unlock(&q->lock);
		*used += 1;
		assert_int_equal(quota_errors(&v), 1);
		*used -= 1;
	}
	assert_int_equal(quota_errors(&v), 0);
	volume_remove(&v);
}

/* What a copy shares counts where there was nothing, and what it loses where the source has a hole makes room. */
static void a_copy_takes_what_it_has_more(void **state)
{
	enum { BLOCKS = 20 };
	static char data[BLOCKS * BLOCK], got[BLOCKS * BLOCK];
	struct kiln_stat a, b;
	struct volume v;

	(void)state;
	memset(data, 1, sizeof(data));
	volume_make(&v, "usrquota,grpquota,prjquota,block_size=4k");
	assert_int_equal(kiln_quota_wait(v.fs), 0);
	assert_int_equal(file_new(&v, "a", S_IFREG, 1, 0, &a), 0);
	assert_int_equal(file_new(&v, "b", S_IFREG, 2, 0, &b), 0);
	/* Every other block, and promises in between. */
	for (unsigned i = 0; i < BLOCKS; i += 2) {
		assert_int_equal(kiln_write(v.fs, a.node, i * BLOCK, data, BLOCK), BLOCK);
		assert_int_equal(kiln_write(v.fs, b.node, i * BLOCK, data, BLOCK), BLOCK);
	}
	assert_int_equal(kiln_fallocate(v.fs, a.node, 0, 0, BLOCKS * BLOCK), 0);
	limits_set(&v, KILN_QUOTA_USER, 2, BLOCKS / 2 * BLOCK, 0);
	assert_int_equal(kiln_copy_range(v.fs, a.node, 0, b.node, 0, BLOCKS * BLOCK, 0), BLOCKS * BLOCK);
	assert_int_equal(kiln_copy_range(v.fs, a.node, 0, b.node, 0, BLOCKS * BLOCK, 0), BLOCKS * BLOCK);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 2).space.used, BLOCKS / 2 * BLOCK);
	/* The same number of blocks somewhere else: the first of the copy go before it gets those behind. */
	assert_int_equal(kiln_punch(v.fs, a.node, 0, BLOCKS / 2 * BLOCK), 0);
	assert_int_equal(kiln_write(v.fs, a.node, BLOCKS / 2 * BLOCK, data, BLOCKS / 2 * BLOCK), BLOCKS / 2 * BLOCK);
	assert_int_equal(kiln_copy_range(v.fs, a.node, 0, b.node, 0, BLOCKS * BLOCK, 0), BLOCKS * BLOCK);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 2).space.used, BLOCKS / 2 * BLOCK);
	assert_int_equal(kiln_read(v.fs, b.node, 0, got, sizeof(got)), sizeof(got));
	memset(data, 0, sizeof(data) / 2);
	assert_memory_equal(got, data, sizeof(data));
	/* A block more is one too many, and nothing is done. */
	assert_int_equal(kiln_write(v.fs, a.node, 0, data, BLOCK), BLOCK);
	assert_int_equal(kiln_copy_range(v.fs, a.node, 0, b.node, 0, BLOCKS * BLOCK, 0), -EDQUOT);
	assert_int_equal(quota_of(&v, KILN_QUOTA_USER, 2).space.used, BLOCKS / 2 * BLOCK);
	counts_must_be_right(&v);
	volume_remove(&v);
}

/* --- damage --- */

struct claim {
	struct kiln_node node;
	uint64_t sectors;
};

static int claim_run(struct btree_txn *txn, void *ctx)
{
	const struct claim *c = ctx;
	struct inode inode;
	int err = inode_txn_get(txn, c->node.ino, UINT32_MAX, &inode);

	inode.sectors = c->sectors;
	return err ? err : inode_txn_put(txn, &inode);
}

static void sectors_claim(struct volume *v, const char *name, uint64_t sectors)
{
	struct btree_commit_opts opts = { .name = "claim", .watermark = WATERMARK_NORMAL };
	struct kiln_stat st;

	assert_int_equal(kiln_lookup(v->fs, kiln_root(v->fs), name, strlen(name), &st), 0);
	struct claim c = { .node = st.node, .sectors = sectors };
	assert_int_equal(btree_txn_run(v->fs->trees, &opts, claim_run, &c), 0);
}

static uint64_t used_sectors(struct volume *v, uint32_t id)
{
	struct quotas *q = allocator_quotas(v->fs->allocator);
	struct quota_info info;

	assert_int_equal(quotas_wait(q), 0);
	quotas_get(q, QUOTA_USER, id, &info);
	return info.used[QUOTA_SPACE];
}

static void inodes_may_claim_any_number_of_sectors(void **state)
{
	static const char *const names[] = { "a", "b", "c" };
	struct volume v;

	(void)state;
	volume_make(&v, "usrquota");
	assert_int_equal(kiln_quota_wait(v.fs), 0);
	for (size_t i = 0; i < ARRAY_NR(names); i++) {
		assert_int_equal(file_new(&v, names[i], S_IFREG, 1, 1, NULL), 0);
		sectors_claim(&v, names[i], INT64_MAX);
	}
	assert_int_equal(used_sectors(&v, 1), UINT64_MAX);
	/* So has who counts them anew. */
	assert_int_equal(quota_errors(&v), 0);
	sectors_claim(&v, "b", 8);
	sectors_claim(&v, "c", 0);
	assert_int_equal(used_sectors(&v, 1), (uint64_t)INT64_MAX + 8);
	sectors_claim(&v, "a", 0);
	assert_int_equal(used_sectors(&v, 1), 8);
	sectors_claim(&v, "b", 0);
	volume_remove(&v);
}

/* What is given back is no more than there was. */
static void an_inode_that_claims_too_little_has_nothing_left(void **state)
{
	static const char bytes[BLOCK];
	struct kiln_stat st;
	struct volume v;

	(void)state;
	volume_make(&v, "usrquota");
	assert_int_equal(file_new(&v, "a", S_IFREG, 1, 1, &st), 0);
	assert_int_equal(kiln_write(v.fs, st.node, 0, bytes, BLOCK), BLOCK);
	sectors_claim(&v, "a", 1);
	assert_int_equal(
		kiln_setattr(v.fs, st.node, &(struct kiln_setattr){ .fields = KILN_SET_SIZE, .size = 0 }, NULL), 0);
	assert_int_equal(used_sectors(&v, 1), 0);
	volume_remove(&v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(inode_limits_hold),
		cmocka_unit_test(space_limits_hold),
		cmocka_unit_test(soft_limits_hold_after_the_grace_period),
		cmocka_unit_test(types_that_are_not_counted_can_be_for_a_call),
		cmocka_unit_test(the_checker_sees_wrong_counts),
		cmocka_unit_test(a_copy_takes_what_it_has_more),
		cmocka_unit_test(inodes_may_claim_any_number_of_sectors),
		cmocka_unit_test(an_inode_that_claims_too_little_has_nothing_left),
		cmocka_unit_test(all_together_get_what_the_limit_allows),
		cmocka_unit_test(what_is_overwritten_takes_nothing_from_others),
		cmocka_unit_test(counts_are_those_of_a_walk_whatever_happens),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
