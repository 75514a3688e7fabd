/*
 * Disks that rot: with two copies everything reads right, and reading replaces the bad ones; with one copy of the data
 * exactly what is damaged is said. KILN_TEST_ROTS places (10000 is what the long run takes).
 *
 * And what this format can't detect (docs/promises.md): that it stays at that.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/util.h"
#include "data/repair.h"
#include "device/power.h"
#include "engine/format.h"
#include "engine/fs_write.h"
#include "engine/whole.h"

enum {
	DISKS = 2,
	DISK_BYTES = 64 << 20,
	ROTS_DEFAULT = 400,
	ROT_BEGIN = 8 << 20, /* behind the superblocks at the front: that they may be bad is tested elsewhere */
	ROT_END = DISK_BYTES - (4 << 20),
	FILES = 24,
	FILE_BYTES = 1 << 20,
	WRITE_BYTES = 20 << 10,
	/*
	 * Readers take either copy, until they meet a bad one: then those of that device. The third is for what was
	 * read before that, and after a busy machine took longer than a device is suspect.
	 */
	PASSES_MAX = 3,
	BATCH_ROTS = 32,
	NODE_PASSES_MAX = 100,
};

struct world {
	struct power *power;
	struct kiln_fs *fs;
	struct rng rng;
	unsigned disks_missing;
	struct kiln_node files[FILES];
	uint64_t recovered; /* reports */
	uint64_t told;	    /* of errors that have a number */
	uint8_t *bytes, *buf;
};

static unsigned rots_nr(void)
{
	const char *text = getenv("KILN_TEST_ROTS");

	return text ? (unsigned)strtoul(text, NULL, 0) : ROTS_DEFAULT;
}

static void on_report(void *ctx, const struct kiln_report *report)
{
	struct world *w = ctx;

	w->recovered += report->level == KILN_REPORT_RECOVERED;
	w->told += report->level != KILN_REPORT_INFO && report->error_id;
}

static struct kiln_open_options open_options(struct world *w)
{
	return (struct kiln_open_options){ .struct_bytes = sizeof(struct kiln_open_options),
					   .flags = KILN_OPEN_WRITE | (w->disks_missing ? KILN_OPEN_DEGRADED : 0),
					   .ctx = w,
					   .report = on_report };
}

static unsigned disks_open(struct world *w, struct device *devices[DISKS])
{
	unsigned nr = 0;

	for (unsigned i = 0; i < DISKS; i++)
		if (!(w->disks_missing >> i & 1))
			assert_int_equal(power_disk_open(w->power, i, &devices[nr++]), 0);
	return nr;
}

static void world_reopen(struct world *w)
{
	struct kiln_open_options options = open_options(w);
	struct device *devices[DISKS];
	char why[KILN_ERROR_BYTES] = "";
	unsigned nr = disks_open(w, devices);

	if (fs_open(NULL, 0, devices, nr, &options, FS_NAMESPACE, &w->fs, why))
		fail_msg("%s", why);
	assert_null(kiln_write_refused(w->fs));
}

static void world_shut(struct world *w)
{
	assert_int_equal(kiln_shutdown(w->fs), 0);
	kiln_close(w->fs);
	w->fs = NULL;
	for (unsigned i = 0; i < DISKS; i++)
		power_disk_settle(w->power, i);
}

static uint8_t *bytes_of(struct world *w, unsigned file) { return w->bytes + (size_t)file * FILE_BYTES; }

static void world_make(struct world *w, const char *options)
{
	struct kiln_format_device format_devs[DISKS] = { 0 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(format_devs[0]),
					      .options = options,
					      .superblock_bytes = 64 << 10 };
	struct kiln_open_options open = open_options(w);
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct device *devices[DISKS];
	char why[KILN_ERROR_BYTES] = "", name[16];
	struct kiln_stat st;

	uint64_t seed = seed_print();
	memset(w, 0, sizeof(*w));
	rng_init(&w->rng, seed);
	w->power = power_new(seed);
	open.ctx = w;
	w->bytes = malloc((size_t)FILES * FILE_BYTES);
	w->buf = malloc(FILE_BYTES);
	for (unsigned i = 0; i < DISKS; i++) {
		assert_int_equal(power_disk_add(w->power, DISK_BYTES, 512), i);
		format_devs[i] = (struct kiln_format_device){ .path = i ? "b" : "a", .bucket_bytes = 128 << 10 };
	}
	disks_open(w, devices);
	if (fs_format_devices(devices, format_devs, DISKS, &format, why) ||
	    fs_initialize(devices, DISKS, &open, &w->fs, why))
		fail_msg("format: %s", why);
	for (size_t i = 0; i < (size_t)FILES * FILE_BYTES; i++)
		w->bytes[i] = (uint8_t)rng_u64(&w->rng);
	for (unsigned i = 0; i < FILES; i++) {
		int len = snprintf(name, sizeof(name), "%u", i);

		assert_int_equal(kiln_create(w->fs, kiln_root(w->fs), name, (size_t)len, &attr, &st), 0);
		w->files[i] = st.node;
		/* In extents of different sizes, which don't fill buckets when they are moved: some are divided. */
		for (unsigned at = 0, len; at < FILE_BYTES; at += len) {
			len = min((unsigned)WRITE_BYTES, FILE_BYTES - at);
			assert_int_equal(kiln_write(w->fs, st.node, at, bytes_of(w, i) + at, len), len);
		}
	}
	world_shut(w);
}

static void world_end(struct world *w)
{
	if (w->fs)
		world_shut(w);
	power_free(w->power);
	free(w->bytes);
	free(w->buf);
}

static void rot(struct world *w, unsigned disk, uint64_t at)
{
	power_disk_bytes(w->power, disk)[at] ^= (uint8_t)(1u << rng_below(&w->rng, 8));
}

static void files_check(struct world *w)
{
	for (unsigned i = 0; i < FILES; i++) {
		assert_int_equal(kiln_read(w->fs, w->files[i], 0, w->buf, FILE_BYTES), FILE_BYTES);
		assert_memory_equal(w->buf, bytes_of(w, i), FILE_BYTES);
	}
}

/* How many copies of data are bad. */
static uint64_t bad_copies(struct world *w)
{
	struct kiln_check_options options = { .struct_bytes = sizeof(options), .flags = KILN_CHECK_DATA };
	struct kiln_check_result *result = calloc(1, sizeof(*result));
	uint64_t nr = 0;

	assert_int_equal(kiln_check(w->fs, &options, result), 0);
	for (unsigned i = 0; i < result->kind_nr; i++)
		nr += strcmp(result->kinds[i].name, "data_replica_bad") ? 0 : result->kinds[i].count;
	free(result);
	return nr;
}

static uint64_t checksum_errors(struct world *w, unsigned dev)
{
	struct member m;

	assert_int_equal(super_update(w->fs->super), 0);
	sb_member(w->fs->super->sb, dev, &m);
	return m.errors[2];
}

static void bad_copies_are_replaced_when_they_are_read(void **state)
{
	struct data_repair_stats stats;
	struct world w;

	world_make(&w, "block_size=512,btree_node_size=8k,encoded_extent_max=16k,metadata_replicas=2,data_replicas=2");
	unsigned disk = (unsigned)rng_below(&w.rng, DISKS);
	for (unsigned i = rots_nr(); i; i--)
		rot(&w, disk, ROT_BEGIN + rng_below(&w.rng, ROT_END - ROT_BEGIN));
	world_reopen(&w);
	uint64_t bad = bad_copies(&w), left = bad, passes = 0;
	assert_true(bad > 0);
	for (; left && passes < PASSES_MAX; passes++) {
		files_check(&w);
		data_repair_wait(w.fs->data);
		data_repair_stats(w.fs->data, &stats);
		left = bad_copies(&w);
	}
	assert_int_equal(left, 0);
	print_message("%" PRIu64 " bad copies: %" PRIu64 " extents and %" PRIu64 " nodes repaired in %" PRIu64
		      " passes\n",
		      bad, stats.extents, stats.nodes, passes);
	assert_int_equal(stats.extents, bad);
	assert_int_equal(stats.failed, 0);
	/* Sooner or later somebody reads while it works. */
	for (unsigned i = 0; i < 1000 && !stats.pauses; i++) {
		for (unsigned k = 0; k < BATCH_ROTS; k++)
			rot(&w, disk, ROT_BEGIN + rng_below(&w.rng, ROT_END - ROT_BEGIN));
		files_check(&w);
		data_repair_stats(w.fs->data, &stats);
	}
	assert_true(stats.pauses > 0);
	assert_true(checksum_errors(&w, disk) >= bad);
	assert_int_equal(checksum_errors(&w, !disk), 0);
	assert_true(w.recovered > 0);
	world_shut(&w);
	/* Of nodes, which stay in memory, some copies that nobody read may be bad still. */
	w.disks_missing = 1u << disk;
	world_reopen(&w);
	files_check(&w);
	world_end(&w);
}

/* --- nodes --- */

static int node_rot(void *ctx, const struct btree_node_info *info, int err)
{
	struct world *w = ctx;

	assert_int_equal(err, 0);
	assert_int_equal(info->ptr.ptr_nr, 2);
	const struct extent_ptr *p = &info->ptr.ptrs[rng_below(&w->rng, 2)];
	rot(w, p->dev, p->sector * SECTOR_BYTES + rng_below(&w->rng, SECTOR_BYTES));
	return 0;
}

/* Read all btrees. How many copies of nodes are bad. */
static uint64_t nodes_read(struct world *w)
{
	struct kiln_check_options options = { .struct_bytes = sizeof(options) };
	struct kiln_check_result *result = calloc(1, sizeof(*result));

	assert_int_equal(kiln_check(w->fs, &options, result), 0);
	data_repair_wait(w->fs->data);
	uint64_t bad = result->errors;
	free(result);
	return bad;
}

static uint64_t errors_counted(struct world *w)
{
	const struct sb_disk *sb = w->fs->super->sb;
	struct sb_error e;
	uint64_t sum = 0;

	for (unsigned i = 0; i < sb_error_nr(sb, SB_ERRORS); i++) {
		sb_error(sb, SB_ERRORS, i, &e);
		sum += e.count;
	}
	return sum;
}

/* Whichever copy it is: readers take any of them, so it takes them a few times to meet all. */
static void bad_nodes_are_rewritten(void **state)
{
	struct data_repair_stats stats;
	struct world w;
	uint64_t bad, bad_first = 0, rewritten = 0;
	unsigned passes = 0;

	world_make(&w, "block_size=512,btree_node_size=8k,encoded_extent_max=16k,metadata_replicas=2,data_replicas=2");
	world_reopen(&w);
	for (unsigned id = 0; id < BTREE_NR_1_4; id++)
		assert_int_equal(btree_nodes_walk(w.fs->trees, id, node_rot, &w), 0);
	fs_write_abort(w.fs);
	kiln_close(w.fs);
	do {
		world_reopen(&w);
		bad = nodes_read(&w);
		bad_first = max(bad_first, bad);
		data_repair_stats(w.fs->data, &stats);
		rewritten += stats.nodes;
		assert_int_equal(stats.failed, 0);
		world_shut(&w);
	} while (bad && ++passes < NODE_PASSES_MAX);
	print_message("%" PRIu64 " bad copies of nodes, %" PRIu64 " rewritten in %u passes\n", bad_first, rewritten,
		      passes);
	assert_true(rewritten > 10);
	assert_int_equal(bad, 0);
	/* Those that were met on the way to being writable, too. */
	world_reopen(&w);
	assert_int_equal(errors_counted(&w), w.told);
	world_shut(&w);
	w.disks_missing = 1u << rng_below(&w.rng, DISKS);
	world_reopen(&w);
	files_check(&w);
	world_end(&w);
}

/* --- one copy --- */

struct expected {
	uint8_t *is_bad; /* by block of the file */
	unsigned wrong;
};

enum { BLOCK = 4096 };

static void damage_is_expected(void *ctx, uint64_t offset, uint64_t len, int err)
{
	struct expected *e = ctx;

	(void)err;
	for (uint64_t at = offset; at < offset + len; at += BLOCK) {
		e->wrong += e->is_bad[at / BLOCK] != 1;
		e->is_bad[at / BLOCK] = 2;
	}
}

/* Damage some extents of a file, each in one place; its blocks are what can't be read any more. How many there were. */
static unsigned file_damage(struct world *w, unsigned file, uint8_t *is_bad)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct btree_iter it;
	struct bkey_ref k;
	unsigned nr = 0;

	btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(w->files[file].ino, 1, UINT32_MAX), 0, UINT32_MAX);
	it.end = BPOS(w->files[file].ino, UINT64_MAX, UINT32_MAX);
	while (btree_iter_peek(&it, &k) > 0) {
		if (k.k.type == KEY_EXTENT && !rng_below(&w->rng, 3)) {
			assert_int_equal(extent_decode(k, &w->fs->super->kctx, ptrs, NULL, NULL), 1);
			uint64_t bytes = (uint64_t)ptrs[0].crc.compressed_sectors * SECTOR_BYTES;

			rot(w, ptrs[0].ptr.dev, ptrs[0].ptr.sector * SECTOR_BYTES + rng_below(&w->rng, bytes));
			for (uint64_t at = bkey_start_offset(&k.k) * SECTOR_BYTES; at < k.k.p.offset * SECTOR_BYTES;
			     at += BLOCK)
				is_bad[at / BLOCK] = 1;
			nr++;
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return nr;
}

static void exactly_what_is_damaged_is_told(void **state)
{
	struct world w;

	world_make(&w, "block_size=4k,encoded_extent_max=32k,metadata_replicas=2,data_replicas=1");
	world_reopen(&w);
	assert_int_equal(super_update(w.fs->super), 0);
	assert_false(SB_HAS_ERRORS(w.fs->super->sb));
	for (unsigned i = 0; i < FILES; i++) {
		uint8_t is_bad[FILE_BYTES / BLOCK] = { 0 };
		struct expected e = { .is_bad = is_bad };

		file_damage(&w, i, is_bad);
		assert_int_equal(kiln_read_rescue(w.fs, w.files[i], 0, w.buf, FILE_BYTES, damage_is_expected, &e),
				 FILE_BYTES);
		assert_int_equal(e.wrong, 0);
		for (unsigned b = 0; b < FILE_BYTES / BLOCK; b++) {
			assert_int_not_equal(is_bad[b], 1);
			if (!is_bad[b])
				assert_memory_equal(w.buf + (size_t)b * BLOCK, bytes_of(&w, i) + (size_t)b * BLOCK,
						    BLOCK);
		}
	}
	assert_true(checksum_errors(&w, 0) + checksum_errors(&w, 1) > 0);
	assert_true(SB_HAS_ERRORS(w.fs->super->sb));
	world_end(&w);
}

/* --- what can't be detected --- */

static void data_without_checksums_rots_alone_and_in_silence(void **state)
{
	uint8_t is_bad[FILE_BYTES / BLOCK] = { 0 };
	unsigned extents = 0, wrong = 0;
	struct world w;

	world_make(&w, "block_size=4k,encoded_extent_max=32k,data_checksum=none");
	world_reopen(&w);
	/* It may have few extents. */
	while (!file_damage(&w, 0, is_bad))
		;
	assert_int_equal(kiln_read(w.fs, w.files[0], 0, w.buf, FILE_BYTES), FILE_BYTES);
	for (unsigned i = 0; i < FILE_BYTES; i++) {
		unsigned bits = w.buf[i] ^ bytes_of(&w, 0)[i];

		assert_true(!(bits & (bits - 1)) && (!bits || is_bad[i / BLOCK]));
		wrong += bits != 0;
	}
	for (unsigned b = 0; b < FILE_BYTES / BLOCK; b++)
		extents += is_bad[b] && (!b || !is_bad[b - 1]);
	assert_true(extents && wrong >= extents);
	memcpy(bytes_of(&w, 0), w.buf, FILE_BYTES);
	files_check(&w);
	must_be_consistent(w.fs);
	assert_false(SB_HAS_ERRORS(w.fs->super->sb));
	world_end(&w);
}

/* The newest of its entries that make durable what is before them. */
static struct jset_disk *newest_flush_entry(struct world *w, const uint8_t uuid[16])
{
	struct jset_disk *newest = NULL;

	for (unsigned disk = 0; disk < DISKS; disk++)
		for (uint64_t at = 0; at < DISK_BYTES; at += SECTOR_BYTES) {
			struct jset_disk *j = (struct jset_disk *)(power_disk_bytes(w->power, disk) + at);

			if (le64_get(j->magic) == jset_magic(uuid) && !jset_is_noflush(j) &&
			    (!newest || le64_get(j->seq) > le64_get(newest->seq)))
				newest = j;
		}
	return newest;
}

static void create_and_sync(struct world *w, const char *name)
{
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_stat st;

	assert_int_equal(kiln_create(w->fs, kiln_root(w->fs), name, strlen(name), &attr, &st), 0);
	assert_int_equal(kiln_sync(w->fs), 0);
}

static void a_lost_newest_entry_takes_what_it_promised_and_nothing_else(void **state)
{
	struct kiln_stat st;
	struct world w;
	uint8_t uuid[16];

	world_make(&w, "");
	world_reopen(&w);
	create_and_sync(&w, "before");
	create_and_sync(&w, "last");
	memcpy(uuid, w.fs->super->sb->uuid, sizeof(uuid));
	fs_write_abort(w.fs);
	kiln_close(w.fs);
	for (unsigned i = 0; i < DISKS; i++)
		power_disk_settle(w.power, i);
	struct jset_disk *j = newest_flush_entry(&w, uuid);
	assert_non_null(j);
	((uint8_t *)j)[sizeof(*j)] ^= 1;
	world_reopen(&w);
	assert_int_equal(kiln_lookup(w.fs, kiln_root(w.fs), "before", 6, &st), 0);
	assert_int_equal(kiln_lookup(w.fs, kiln_root(w.fs), "last", 4, &st), -ENOENT);
	files_check(&w);
	must_be_consistent(w.fs);
	create_and_sync(&w, "last");
	world_end(&w);
}

/* All files are written anew; then one disk is as it was before. How many blocks don't read as they were written, and
 * how many not at all. */
static void roll_back(const char *options, unsigned *old, unsigned *unreadable)
{
	uint8_t *before = malloc(DISK_BYTES);
	struct world w;

	world_make(&w, options);
	unsigned disk = (unsigned)rng_below(&w.rng, DISKS);
	memcpy(before, power_disk_bytes(w.power, disk), DISK_BYTES);
	world_reopen(&w);
	for (unsigned i = 0; i < FILES; i++) {
		for (unsigned b = 0; b < FILE_BYTES; b++)
			bytes_of(&w, i)[b] = (uint8_t)rng_u64(&w.rng);
		assert_int_equal(kiln_write(w.fs, w.files[i], 0, bytes_of(&w, i), FILE_BYTES), FILE_BYTES);
	}
	world_shut(&w);
	memcpy(power_disk_bytes(w.power, disk), before, DISK_BYTES);
	world_reopen(&w);
	*old = *unreadable = 0;
	for (unsigned i = 0; i < FILES; i++)
		for (unsigned at = 0; at < FILE_BYTES; at += BLOCK) {
			ssize_t n = kiln_read(w.fs, w.files[i], at, w.buf, BLOCK);

			*unreadable += n == -EIO;
			if (n == -EIO)
				continue;
			assert_int_equal(n, BLOCK);
			*old += memcmp(w.buf, bytes_of(&w, i) + at, BLOCK) != 0;
		}
	kiln_shutdown(w.fs);
	kiln_close(w.fs);
	w.fs = NULL;
	world_end(&w);
	free(before);
}

static void a_disk_rolled_back_shows_where_there_are_checksums(void **state)
{
	unsigned old, unreadable;

	roll_back("metadata_replicas=2,data_replicas=2", &old, &unreadable);
	assert_int_equal(old, 0);
	assert_int_equal(unreadable, 0);
	roll_back("metadata_replicas=2", &old, &unreadable);
	assert_int_equal(old, 0);
	assert_true(unreadable > 0);
	roll_back("metadata_replicas=2,data_checksum=none", &old, &unreadable);
	assert_true(old > 0);
	assert_int_equal(unreadable, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bad_copies_are_replaced_when_they_are_read),
		cmocka_unit_test(bad_nodes_are_rewritten),
		cmocka_unit_test(exactly_what_is_damaged_is_told),
		cmocka_unit_test(data_without_checksums_rots_alone_and_in_silence),
		cmocka_unit_test(a_lost_newest_entry_takes_what_it_promised_and_nothing_else),
		cmocka_unit_test(a_disk_rolled_back_shows_where_there_are_checksums),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
