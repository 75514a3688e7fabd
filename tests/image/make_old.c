/*
 * Turn a filesystem of version 1.4 into one that an older version of major 1 could have left.
 *
 *	make_old [--crash] VERSION DEVICE...	(VERSION: 1.0 to 1.3)
 *
 * With --crash it isn't closed, but left as by a machine that lost its power: the changes are in the journal.
 * What the versions after it brought is taken out: below 1.3 the keys of rebalance_work; below 1.2 deleted_inodes, and
 *a file is left that lost its name while it was in use (its inode number is printed); at 1.0 depth and skip list of
 * snapshots. Then every copy of the superblock says so, without the sections that came with these versions' successors.
 * Nodes and journal entries keep saying 1.4, which a reader has to accept.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "btree/txn.h"
#include "engine/fs.h"
#include "format/sb_edit.h"
#include "format/superblock.h"

enum { SNAPSHOT_BYTES_1_0 = 24, COPY_BYTES_MAX = 1 << 20 };

static int failed(const char *what, const char *detail)
{
	fprintf(stderr, "%s: %s\n", what, detail);
	return 1;
}

static void on_report(void *ctx, const struct kiln_report *report)
{
	(void)ctx;
	fprintf(stderr, "%s\n", report->text);
}

/* --- keys --- */

/* A key that is replaced by an older form of it, or deleted. */
struct old_key {
	unsigned btree_id;
	struct bkey_copy found;
};

static int put_old(struct btree_txn *txn, void *ctx)
{
	const struct old_key *old = ctx;
	struct bkey key = old->found.k.k;
	bool is_snapshot = old->btree_id == BTREE_SNAPSHOTS;

	key.type = is_snapshot ? KEY_SNAPSHOT : KEY_DELETED;
	key.value_u64s = is_snapshot ? SNAPSHOT_BYTES_1_0 / 8 : 0;
	return btree_txn_put(txn, old->btree_id, &key, old->found.value, 0);
}

static int make_keys_old(kiln_fs *fs, unsigned btree_id)
{
	struct btree_commit_opts opts = { .name = "make_old", .watermark = WATERMARK_NORMAL };
	struct old_key old = { .btree_id = btree_id };
	struct bpos from = POS_MIN;
	int ret, err = btree_write_buffer_flush(fs->trees);

	while (!err) {
		struct btree_iter it;
		struct bkey_ref k;

		btree_iter_open(&it, fs->trees, btree_id, from, BTREE_ITER_ALL_SNAPSHOTS, 0);
		ret = btree_iter_peek(&it, &k);
		if (ret > 0) {
			old.found.k = k;
			memcpy(old.found.value, k.value, bkey_value_bytes(&k.k));
			from = bpos_successor(k.k.p);
		}
		btree_iter_close(&it);
		if (ret <= 0)
			return ret;
		err = btree_txn_run(fs->trees, &opts, put_old, &old);
	}
	return err;
}

/* A file that nobody can see any more, but that is held. */
static int leave_unlinked(kiln_fs *fs)
{
	static const char name[] = "was in use", contents[100000];
	struct kiln_create create = { .mode = 0644 };
	struct kiln_stat st;
	int err = kiln_create(fs, kiln_root(fs), name, strlen(name), &create, &st);

	if (!err && kiln_write(fs, st.node, 0, contents, sizeof(contents)) < 0)
		err = -EIO;
	if (!err)
		err = kiln_hold(fs, st.node);
	if (!err)
		err = kiln_unlink(fs, kiln_root(fs), name, strlen(name), 0);
	if (!err)
		printf("%" PRIu64 "\n", st.node.ino);
	return err;
}

static int change_keys(char **devices, size_t nr, unsigned version, bool is_crash)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_WRITE | KILN_OPEN_NO_SCAN,
					     .report = on_report };
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;

	if (kiln_open((const char *const *)devices, nr, &options, &fs, why))
		return failed("open", why);
	if (kiln_write_refused(fs))
		return failed("open", kiln_write_refused(fs));
	int err = version < VERSION(1, 2) ? leave_unlinked(fs) : 0;
	if (!err && version < VERSION(1, 1))
		err = make_keys_old(fs, BTREE_SNAPSHOTS);
	if (!err && version < VERSION(1, 2))
		err = make_keys_old(fs, BTREE_DELETED_INODES);
	if (!err && version < VERSION(1, 3))
		err = make_keys_old(fs, BTREE_REBALANCE_WORK);
	if (!err && is_crash) {
		err = kiln_sync(fs);
		if (!err)
			_exit(0);
	}
	if (!err)
		err = kiln_shutdown(fs);
	kiln_close(fs);
	return err ? failed("changing keys", strerror(-err)) : 0;
}

/* --- superblocks --- */

static void make_superblock_old(struct sb_edit *e, unsigned version)
{
	static const enum sb_section_type newer[] = { SB_MEMBERS_V2, SB_ERRORS, SB_EXT, SB_DOWNGRADE };

	for (size_t i = 0; i < ARRAY_NR(newer); i++)
		if (newer[i] != SB_MEMBERS_V2 || version < VERSION(1, 3))
			sb_section_delete(e, newer[i]);
	e->sb->version = e->sb->version_min = le16_of((uint16_t)version);
	sb_flag_set(e->sb, 5, 0, 16, version);
	sb_seal(e->sb, CHECKSUM_CRC32C_NONZERO);
}

static int change_superblocks(const char *device, unsigned version)
{
	int fd = open(device, O_RDWR | O_CLOEXEC), err = 0;
	struct sb_layout_disk layout;
	struct sb_edit e = { .sb = malloc(COPY_BYTES_MAX), .bytes_max = COPY_BYTES_MAX };

	if (fd < 0 || !e.sb || pread(fd, &layout, sizeof(layout), SB_LAYOUT_SECTOR * SECTOR_BYTES) != sizeof(layout))
		return failed(device, "can't be read");
	for (unsigned i = 0; i < layout.nr_superblocks && !err; i++) {
		off_t at = (off_t)le64_get(layout.sb_offset[i]) * SECTOR_BYTES;

		memset(e.sb, 0, COPY_BYTES_MAX);
		if (pread(fd, e.sb,
			  (size_t)min((uint64_t)COPY_BYTES_MAX, (uint64_t)SECTOR_BYTES << layout.sb_max_size_bits),
			  at) < (ssize_t)sizeof(*e.sb))
			return failed(device, "can't be read");
		make_superblock_old(&e, version);
		size_t bytes = round_up_u64(sb_bytes(e.sb), 4096);
		if (pwrite(fd, e.sb, bytes, at) != (ssize_t)bytes)
			err = failed(device, "can't be written");
	}
	close(fd);
	free(e.sb);
	return err;
}

/* In a process of its own, which ends in the middle of it. */
static int change_keys_and_crash(char **devices, size_t nr, unsigned version)
{
	pid_t child = fork();
	int status;

	if (!child)
		_exit(change_keys(devices, nr, version, true));
	return child < 0 || waitpid(child, &status, 0) < 0 || status ? failed("changing keys", "the process failed")
								     : 0;
}

int main(int argc, char **argv)
{
	bool is_crash = argc > 1 && !strcmp(argv[1], "--crash");
	unsigned minor;

	argc -= is_crash;
	argv += is_crash;
	if (argc < 3 || sscanf(argv[1], "1.%u", &minor) != 1 || minor > 3) {
		fprintf(stderr, "usage: see the head of make_old.c\n");
		return 2;
	}
	int err = (is_crash ? change_keys_and_crash(argv + 2, (size_t)argc - 2, VERSION(1, minor))
			    : change_keys(argv + 2, (size_t)argc - 2, VERSION(1, minor), false));
	for (int i = 2; i < argc && !err; i++)
		err = change_superblocks(argv[i], VERSION(1, minor));
	return err;
}
