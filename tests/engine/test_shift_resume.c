/*
 * Inserting a range, taking one out, or cutting a file of many extents, and what stops it on the way.
 *
 * A process that dies: whoever opens the filesystem for writing next finishes it. A lack of space: whoever changes the
 * file next does, or closes the filesystem; and where it's deleted first, there is nothing to finish.
 *
 * The victim has another task sync all the time, and doesn't die before a sync that began after the first step has
 * ended: then the operation's beginning is durable, and it has to be finished, not undone.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/sync.h"
#include "base/util.h"
#include "btree/internal.h"
#include "data/write_internal.h"
#include "engine/fs.h"

enum {
	BLOCK = 4096,
	PIECES = 600,
	SHIFT_BLOCKS = 3,
	AT_BLOCK = 7,
	STEPS_BEFORE_DEATH = 300,
	STEPS_BEFORE_SCARCITY = 50,
	CUT = 1u << 30, /* instead of a mode of fallocate */
	CUT_BYTES = AT_BLOCK * BLOCK + 1,
	PAUSE_US = 20000,
	DEATH_STATUS = 7,
	VICTIMS_MAX = 20
};

/* The lock of a process that died goes away when the kernel has cleaned up behind it. */
static kiln_fs *must_open(const char *path, unsigned flags)
{
	enum { ATTEMPTS = 3000 };
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = flags };
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;
	int err = -EBUSY;

	for (unsigned i = 0; i < ATTEMPTS && err == -EBUSY; i++) {
		err = kiln_open(&path, 1, &options, &fs, why);
		if (err == -EBUSY)
			usleep(PAUSE_US);
	}
	if (err)
		fail_msg("%s", why);
	assert_null(kiln_write_refused(fs));
	return fs;
}

/* A block in every other place: what can't be merged. */
static void make(const char *path, const char *options)
{
	struct kiln_format_device dev = { .path = path, .file_bytes = 128 << 20 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(dev),
					      .options = options,
					      .flags = KILN_FORMAT_FORCE };
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	char why[KILN_ERROR_BYTES], block[BLOCK];
	struct kiln_stat st;
	kiln_fs *fs;

	if (kiln_format(&dev, 1, &format, &fs, why))
		fail_msg("%s", why);
	assert_int_equal(kiln_create(fs, kiln_root(fs), "file", 4, &attr, &st), 0);
	for (unsigned i = 0; i < PIECES; i++) {
		memset(block, (int)(1 + i % 255), BLOCK);
		assert_int_equal(kiln_write(fs, st.node, (uint64_t)i * 2 * BLOCK, block, BLOCK), BLOCK);
	}
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
}

struct victim {
	kiln_fs *fs;
	unsigned steps;
	bool is_cut;
	_Atomic unsigned syncs; /* That have ended. */
	unsigned syncs_at_first_step;
};

/* A cut is told of once, when it begins; then extents go. */
static bool is_step(const struct victim *v, const struct btree_update *u)
{
	if (v->is_cut && v->steps)
		return u->btree_id == BTREE_EXTENTS;
	return u->btree_id == BTREE_LOGGED_OPS &&
	       u->new.k.type == (v->is_cut ? KEY_LOGGED_OP_TRUNCATE : KEY_LOGGED_OP_FINSERT);
}

static void die_at_step(void *ctx, uint64_t seq, const struct btree_update *u)
{
	struct victim *v = ctx;

	(void)seq;
	if (!is_step(v, u))
		return;
	if (++v->steps == 1)
		v->syncs_at_first_step = v->syncs;
	if (v->steps < STEPS_BEFORE_DEATH)
		return;
	/* One may have been under way at the first step, so that the second is the first to count. */
	if (v->syncs >= v->syncs_at_first_step + 2)
		_exit(DEATH_STATUS);
	usleep(PAUSE_US);
}

static void sync_task(void *arg)
{
	struct victim *v = arg;

	while (!kiln_sync(v->fs))
		v->syncs++;
}

static void victim(const char *path, unsigned mode)
{
	struct victim v = { .fs = must_open(path, KILN_OPEN_WRITE), .is_cut = mode == CUT };
	struct btree_watch watch = { die_at_step, &v };
	struct task *task;
	struct kiln_stat st;

	btrees_set_watch(v.fs->trees, &watch);
	assert_int_equal(kiln_lookup_path(v.fs, "/file", 0, &st), 0);
	assert_int_equal(task_start(&task, "sync", sync_task, &v), 0);
	if (v.is_cut)
		kiln_setattr(v.fs, st.node, &(struct kiln_setattr){ .fields = KILN_SET_SIZE, .size = CUT_BYTES }, NULL);
	else
		kiln_fallocate(v.fs, st.node, mode, AT_BLOCK * BLOCK, SHIFT_BLOCKS * BLOCK);
	_exit(0);
}

/* Byte of a block of the file as it was made. */
static int byte_of(unsigned block) { return block < PIECES * 2 && block % 2 == 0 ? 1 + block / 2 % 255 : 0; }

static void must_be_shifted(kiln_fs *fs, unsigned mode)
{
	bool is_insert = mode == KILN_FALLOC_INSERT_RANGE;
	unsigned blocks = PIECES * 2 - 1 + (is_insert ? SHIFT_BLOCKS : -SHIFT_BLOCKS);
	char got[BLOCK];
	struct kiln_stat st;

	assert_int_equal(kiln_lookup_path(fs, "/file", 0, &st), 0);
	assert_int_equal(st.size, blocks * BLOCK);
	for (unsigned i = 0; i < blocks; i++) {
		int want = i < AT_BLOCK			 ? byte_of(i)
			   : !is_insert			 ? byte_of(i + SHIFT_BLOCKS)
			   : i < AT_BLOCK + SHIFT_BLOCKS ? 0
							 : byte_of(i - SHIFT_BLOCKS);

		assert_int_equal(kiln_read(fs, st.node, (uint64_t)i * BLOCK, got, BLOCK), BLOCK);
		for (unsigned k = 0; k < BLOCK; k += 512)
			assert_int_equal((uint8_t)got[k], want);
	}
}

static void must_be_cut(kiln_fs *fs)
{
	char got[CUT_BYTES + 1];
	struct kiln_stat st;

	assert_int_equal(kiln_lookup_path(fs, "/file", 0, &st), 0);
	assert_int_equal(st.size, CUT_BYTES);
	assert_int_equal(kiln_read(fs, st.node, 0, got, sizeof(got)), CUT_BYTES);
	for (unsigned i = 0; i < CUT_BYTES; i += 512)
		assert_int_equal((uint8_t)got[i], byte_of(i / BLOCK));
	assert_int_equal(st.sectors, (AT_BLOCK / 2 + 1) * BLOCK / 512);
}

static void must_be_whole(kiln_fs *fs, unsigned mode)
{
	if (mode == CUT)
		must_be_cut(fs);
	else
		must_be_shifted(fs, mode);
}

static void must_be_consistent(kiln_fs *fs)
{
	struct kiln_check_options options = { .struct_bytes = sizeof(options) };
	struct kiln_check_result *result = calloc(1, sizeof(*result));

	assert_int_equal(kiln_check(fs, &options, result), 0);
	assert_int_equal(result->errors, 0);
	free(result);
}

static void is_finished_after(unsigned mode)
{
	char path[] = "/tmp/kiln-shift-XXXXXX";
	int status = 0, fd = mkstemp(path);

	assert_true(fd >= 0);
	close(fd);
	/* On a busy machine it may be through before two syncs are. */
	for (unsigned i = 0; i < VICTIMS_MAX && status != DEATH_STATUS << 8; i++) {
		make(path, NULL);
		pid_t pid = fork();
		if (!pid)
			victim(path, mode);
		assert_int_equal(waitpid(pid, &status, 0), pid);
	}
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == DEATH_STATUS);
	kiln_fs *fs = must_open(path, KILN_OPEN_WRITE);
	must_be_whole(fs, mode);
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	fs = must_open(path, 0);
	must_be_whole(fs, mode);
	must_be_consistent(fs);
	kiln_close(fs);
	unlink(path);
}

static void an_insertion_is_finished_after_the_process_died(void **state)
{
	(void)state;
	is_finished_after(KILN_FALLOC_INSERT_RANGE);
}

static void a_collapse_is_finished_after_the_process_died(void **state)
{
	(void)state;
	is_finished_after(KILN_FALLOC_COLLAPSE_RANGE);
}

static void a_cut_is_finished_after_the_process_died(void **state)
{
	(void)state;
	is_finished_after(CUT);
}

/* --- no space --- */

/* Stands before the hook that sees whole transactions: ordinary ones find no space. */
static struct scarcity {
	int (*prepare)(void *ctx, struct btree_txn *txn);
	_Atomic unsigned steps;
	_Atomic bool is_on;
} scarcity;

static int scarce_prepare(void *ctx, struct btree_txn *txn)
{
	bool is_ordinary = btree_txn_opts(txn)->watermark == WATERMARK_NORMAL;

	if (is_ordinary && ++scarcity.steps == STEPS_BEFORE_SCARCITY)
		scarcity.is_on = true;
	return is_ordinary && scarcity.is_on ? -ENOSPC : scarcity.prepare(ctx, txn);
}

/* What was in the block, once more. */
static int rewrite(kiln_fs *fs, struct kiln_node node)
{
	char block[BLOCK];

	memset(block, byte_of(0), BLOCK);
	int64_t ret = kiln_write(fs, node, 0, block, BLOCK);
	return ret < 0 ? (int)ret : 0;
}

/* A file that was being changed when space ended. */
static kiln_fs *must_stop(const char *path, unsigned mode, struct kiln_node *node)
{
	struct kiln_stat st;
	int err;

	make(path, NULL);
	kiln_fs *fs = must_open(path, KILN_OPEN_WRITE);
	struct btree_hooks *hooks = &fs->trees->write_opts.hooks;

	scarcity = (struct scarcity){ .prepare = hooks->prepare };
	hooks->prepare = scarce_prepare;
	assert_int_equal(kiln_lookup_path(fs, "/file", 0, &st), 0);
	*node = st.node;
	if (mode == CUT)
		err = kiln_setattr(fs, st.node, &(struct kiln_setattr){ .fields = KILN_SET_SIZE, .size = CUT_BYTES },
				   NULL);
	else
		err = kiln_fallocate(fs, st.node, mode, AT_BLOCK * BLOCK, SHIFT_BLOCKS * BLOCK);
	assert_int_equal(err, -ENOSPC);
	/* As long as there is none, the file stays as it is, and nothing is lost. */
	assert_int_equal(rewrite(fs, *node), -ENOSPC);
	return fs;
}

static void must_be_in_order(const char *path, unsigned flags, unsigned mode)
{
	kiln_fs *fs = must_open(path, flags);

	must_be_whole(fs, mode);
	if (flags & KILN_OPEN_WRITE)
		assert_int_equal(kiln_shutdown(fs), 0);
	else
		must_be_consistent(fs);
	kiln_close(fs);
}

static const unsigned modes[] = { KILN_FALLOC_INSERT_RANGE, KILN_FALLOC_COLLAPSE_RANGE, CUT };

static void what_a_lack_of_space_stopped_is_finished_by_the_next_change(void **state)
{
	struct kiln_node node;

	for (unsigned i = 0; i < ARRAY_NR(modes); i++) {
		kiln_fs *fs = must_stop(*state, modes[i], &node);

		scarcity.is_on = false;
		assert_int_equal(rewrite(fs, node), 0);
		must_be_whole(fs, modes[i]);
		assert_int_equal(kiln_shutdown(fs), 0);
		kiln_close(fs);
		must_be_in_order(*state, 0, modes[i]);
	}
}

static void or_when_the_filesystem_is_closed(void **state)
{
	struct kiln_node node;

	for (unsigned i = 0; i < ARRAY_NR(modes); i++) {
		kiln_fs *fs = must_stop(*state, modes[i], &node);

		scarcity.is_on = false;
		assert_int_equal(kiln_shutdown(fs), 0);
		kiln_close(fs);
		must_be_in_order(*state, 0, modes[i]);
	}
}

static void or_when_it_is_opened_anew(void **state)
{
	struct kiln_node node;

	for (unsigned i = 0; i < ARRAY_NR(modes); i++) {
		kiln_fs *fs = must_stop(*state, modes[i], &node);

		assert_int_equal(kiln_shutdown(fs), -ENOSPC);
		kiln_close(fs);
		must_be_in_order(*state, KILN_OPEN_WRITE, modes[i]);
		must_be_in_order(*state, 0, modes[i]);
	}
}

static void what_recovery_finds_no_space_for_is_finished_later(void **state)
{
	struct kiln_node node;
	struct bkey_copy op;

	for (unsigned i = 0; i < ARRAY_NR(modes); i++) {
		kiln_fs *fs = must_stop(*state, modes[i], &node);

		/* As recovery has it: nothing is known but the key. */
		write_ops_forget(fs->data->writer);
		assert_int_equal(btree_lookup(fs->trees, BTREE_LOGGED_OPS, BPOS(0, 1, 0), &op), 1);
		assert_int_equal(data_resume_op(fs->data, 1, UINT32_MAX, op.k), 0);
		assert_int_equal(rewrite(fs, node), -ENOSPC);
		scarcity.is_on = false;
		assert_int_equal(rewrite(fs, node), 0);
		must_be_whole(fs, modes[i]);
		assert_int_equal(kiln_shutdown(fs), 0);
		kiln_close(fs);
	}
}

/* Inode numbers are used again: what was to be done to the file isn't done to another. */
static void it_is_over_when_the_file_is_deleted(void **state)
{
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_node node;
	struct kiln_stat st;
	char got[BLOCK];
	int err;

	for (unsigned i = 0; i < ARRAY_NR(modes); i++) {
		kiln_fs *fs = must_stop(*state, modes[i], &node);

		scarcity.is_on = false;
		assert_int_equal(kiln_unlink(fs, kiln_root(fs), "file", 4, 0), 0);
		do { /* until the number is free */
			assert_int_equal(kiln_sync(fs), 0);
			assert_int_equal(kiln_create(fs, kiln_root(fs), "next", 4, &attr, &st), 0);
			err = st.node.ino != node.ino ? kiln_unlink(fs, kiln_root(fs), "next", 4, 0) : 0;
			assert_int_equal(err, 0);
		} while (st.node.ino != node.ino);
		assert_int_equal(rewrite(fs, st.node), 0);
		assert_int_equal(rewrite(fs, st.node), 0);
		assert_int_equal(kiln_shutdown(fs), 0);
		kiln_close(fs);
		fs = must_open(*state, KILN_OPEN_WRITE);
		assert_int_equal(kiln_stat(fs, st.node, &st), 0);
		assert_int_equal(st.size, BLOCK);
		assert_int_equal(kiln_read(fs, st.node, 0, got, BLOCK), BLOCK);
		for (unsigned k = 0; k < BLOCK; k++)
			assert_int_equal((uint8_t)got[k], byte_of(0));
		must_be_consistent(fs);
		assert_int_equal(kiln_shutdown(fs), 0);
		kiln_close(fs);
	}
}

static int path_make(void **state)
{
	static char path[32];

	strcpy(path, "/tmp/kiln-shift-XXXXXX");
	int fd = mkstemp(path);
	*state = path;
	return fd < 0 ? -1 : close(fd);
}

static int path_unlink(void **state) { return unlink(*state); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_insertion_is_finished_after_the_process_died),
		cmocka_unit_test(a_collapse_is_finished_after_the_process_died),
		cmocka_unit_test(a_cut_is_finished_after_the_process_died),
		cmocka_unit_test_setup_teardown(what_a_lack_of_space_stopped_is_finished_by_the_next_change, path_make,
						path_unlink),
		cmocka_unit_test_setup_teardown(or_when_the_filesystem_is_closed, path_make, path_unlink),
		cmocka_unit_test_setup_teardown(or_when_it_is_opened_anew, path_make, path_unlink),
		cmocka_unit_test_setup_teardown(what_recovery_finds_no_space_for_is_finished_later, path_make,
						path_unlink),
		cmocka_unit_test_setup_teardown(it_is_over_when_the_file_is_deleted, path_make, path_unlink),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
