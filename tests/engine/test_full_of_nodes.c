/*
 * Small filesystems of nodes of few blocks, many of which share a bucket, filled to the last block: each node that is
 * replaced leaves a hole in its bucket. Such a filesystem goes on, neither read-only nor at a standstill, and what was
 * written into holes survives losses of power like everything else.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/sanitizer.h"
#include "base/sync.h"
#include "base/util.h"
#include "data/write_internal.h"
#include "device/power.h"
#include "engine/format.h"
#include "engine/fs.h"
#include "engine/whole.h"

enum {
	MIB = 1 << 20,
	BUCKET_BYTES = 64 << 10,
	DISKS_MAX = 3,
	NAMES_MAX = 1 << 16,
	NAME_BYTES = 180, /* so that many nodes are needed */
	FULL_TIMES = 40,
	CHANGES = 600,
	ROUNDS = 3,
	CUTS = 6,
	CUT_IOS_MAX = 2000,
	STANDSTILL_SECONDS = 300, /* much more than it takes */
	PIECES = 1000,
	PIECES_BLOCKS_MAX = 1 << 14,
	SHIFTS = 60,
	SHIFT_BLOCKS_MAX = 8,
	SHIFT_BUSY = 4, /* files that come or go in between, at most */
};

struct small_fs {
	struct power *power;
	unsigned disk_nr;
	unsigned missing; /* one disk isn't there: its number + 1 */
	bool has_no_data; /* names and inodes alone */
	struct kiln_fs *fs;
	struct rng rng;
	unsigned names[NAMES_MAX], nr, next;
};

static unsigned disks_open(struct small_fs *s, struct device *devs[DISKS_MAX])
{
	unsigned nr = 0;

	for (unsigned i = 0; i < s->disk_nr; i++)
		if (i + 1 != s->missing)
			assert_int_equal(power_disk_open(s->power, i, &devs[nr++]), 0);
	return nr;
}

static void small_fs_open(struct small_fs *s)
{
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE };
	char why[KILN_ERROR_BYTES] = "";
	struct device *devs[DISKS_MAX];

	open.flags |= s->missing ? KILN_OPEN_DEGRADED : 0u;
	unsigned nr = disks_open(s, devs);
	if (fs_open(NULL, 0, devs, nr, &open, FS_NAMESPACE, &s->fs, why))
		fail_msg("%s", why);
	assert_null(kiln_write_refused(s->fs));
}

static void small_fs_make(struct small_fs *s, unsigned disk_nr, unsigned mib, const char *node_size)
{
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE };
	struct kiln_format_device format_devs[DISKS_MAX] = { { .path = "a", .bucket_bytes = BUCKET_BYTES },
							     { .path = "b", .bucket_bytes = BUCKET_BYTES },
							     { .path = "c", .bucket_bytes = BUCKET_BYTES } };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(format_devs[0]),
					      .superblock_bytes = 64 << 10 };
	char why[KILN_ERROR_BYTES] = "", options[128];
	struct device *devs[DISKS_MAX];
	unsigned copies = min(disk_nr, 2u);

	snprintf(options, sizeof(options), "block_size=512,btree_node_size=%s,metadata_replicas=%u,data_replicas=%u",
		 node_size, copies, copies);
	format.options = options;
	memset(s, 0, sizeof(*s));
	uint64_t seed = seed_print();
	rng_init(&s->rng, seed);
	s->power = power_new(seed);
	s->disk_nr = disk_nr;
	alarm(STANDSTILL_SECONDS);
	for (unsigned i = 0; i < disk_nr; i++)
		assert_int_equal(power_disk_add(s->power, (uint64_t)mib * MIB, SECTOR_BYTES), i);
	disks_open(s, devs);
	if (fs_format_devices(devs, format_devs, disk_nr, &format, why) ||
	    fs_initialize(devs, disk_nr, &open, &s->fs, why))
		fail_msg("%s", why);
}

static void small_fs_free(struct small_fs *s)
{
	alarm(0);
	power_free(s->power);
}

static int name_of(unsigned id, char name[NAME_BYTES + 16])
{
	return snprintf(name, NAME_BYTES + 16, "%u-%0*u", id, NAME_BYTES, id);
}

static int file_make(struct small_fs *s)
{
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	static const char block[2 * SECTOR_BYTES];
	char name[NAME_BYTES + 16];
	struct kiln_stat st;
	unsigned id = s->next++;

	assert_true(s->nr < NAMES_MAX);
	int err = kiln_create(s->fs, kiln_root(s->fs), name, (size_t)name_of(id, name), &attr, &st);
	if (err)
		return err;
	s->names[s->nr++] = id;
	if (s->has_no_data)
		return 0;
	int64_t ret = kiln_write(s->fs, st.node, 0, block, SECTOR_BYTES * (1 + rng_below(&s->rng, 2)));
	return ret < 0 ? (int)ret : 0;
}

static int file_delete(struct small_fs *s)
{
	unsigned at = (unsigned)rng_below(&s->rng, s->nr);
	char name[NAME_BYTES + 16];

	int err = kiln_unlink(s->fs, kiln_root(s->fs), name, (size_t)name_of(s->names[at], name), 0);
	if (!err)
		s->names[at] = s->names[--s->nr];
	return err;
}

static void fill(struct small_fs *s)
{
	for (unsigned full = 0; full < FULL_TIMES;) {
		int err = file_make(s);

		assert_true(!err || err == -ENOSPC);
		full += err != 0;
	}
}

static void empty(struct small_fs *s, unsigned left)
{
	while (s->nr > left)
		assert_int_equal(file_delete(s), 0);
}

/* Of a full one. Errors but -ENOSPC end it. */
static int change(struct small_fs *s, unsigned times)
{
	int err = 0;

	for (unsigned i = 0; i < times && (!err || err == -ENOSPC); i++)
		err = rng_below(&s->rng, 2) || !s->nr ? file_make(s) : file_delete(s);
	return err == -ENOSPC ? 0 : err;
}

static uint64_t holes_taken(struct small_fs *s)
{
	struct allocator_stats stats;

	allocator_stats(s->fs->allocator, &stats);
	return stats.holes_taken;
}

/* It can be opened again, and is in order. */
static void small_fs_end(struct small_fs *s)
{
	assert_int_equal(kiln_shutdown(s->fs), 0);
	kiln_close(s->fs);
	small_fs_open(s);
	must_be_consistent(s->fs);
	kiln_close(s->fs);
	small_fs_free(s);
}

static void filled_and_emptied(unsigned disk_nr, unsigned mib)
{
	static struct small_fs s;

	small_fs_make(&s, disk_nr, mib, "4k");
	fill(&s);
	empty(&s, s.nr / 2);
	fill(&s);
	assert_int_equal(change(&s, CHANGES), 0);
	assert_true(holes_taken(&s) > 0);
	assert_int_equal(kiln_shutdown(s.fs), 0);
	kiln_close(s.fs);

	/* As full as it was, and nothing is known of holes. */
	small_fs_open(&s);
	must_be_consistent(s.fs);
	assert_int_equal(change(&s, CHANGES), 0);
	empty(&s, 0);
	small_fs_end(&s);
}

static void a_filesystem_full_of_small_nodes_goes_on(void **state)
{
	(void)state;
	filled_and_emptied(1, 8);
}

static void so_does_one_of_two_copies(void **state)
{
	(void)state;
	/* Room for nodes is waited for some seconds, which is not enough where all takes ten times as long. */
	if (KILN_SANITIZED)
		skip();
	filled_and_emptied(2, 12);
}

/*
 * Names and inodes alone, so that it is full of nodes. What the missing device had a copy of has one left: who replaces
 * it takes no more than that, so nothing that is done takes more than it gives back.
 */
static void full_without_a_device(unsigned mib, const char *node_size)
{
	static struct small_fs s;

	small_fs_make(&s, 3, mib, node_size);
	s.has_no_data = true;
	fill(&s);
	assert_int_equal(kiln_shutdown(s.fs), 0);
	kiln_close(s.fs);
	s.missing = 1 + (unsigned)rng_below(&s.rng, s.disk_nr);
	small_fs_open(&s);
	assert_int_equal(change(&s, CHANGES), 0);
	empty(&s, s.nr / 2);
	fill(&s);
	assert_int_equal(change(&s, CHANGES), 0);
	assert_int_equal(kiln_shutdown(s.fs), 0);
	kiln_close(s.fs);
	small_fs_open(&s);
	must_be_consistent(s.fs);
	empty(&s, 0);
	fill(&s);
	assert_int_equal(kiln_shutdown(s.fs), 0);
	kiln_close(s.fs);

	/* And with all devices again. */
	s.missing = 0;
	small_fs_open(&s);
	empty(&s, 0);
	small_fs_end(&s);
}

static void without_one_of_its_devices_it_goes_on(void **state)
{
	(void)state;
	if (KILN_SANITIZED)
		skip();
	full_without_a_device(8, "4k");
}

static void so_does_one_of_larger_nodes_without_a_device(void **state)
{
	(void)state;
	if (KILN_SANITIZED)
		skip();
	full_without_a_device(8, "16k");
}

/*
 * Copygc moves data, a block here and there, and what that changes is written back before it has come to nodes: these
 * take more buckets than there are.
 */
static void a_filesystem_of_two_copies_goes_on_when_copygc_moves_data(void **state)
{
	static struct small_fs s;

	(void)state;
	if (KILN_SANITIZED)
		skip();
	small_fs_make(&s, 3, 15, "16k");
	for (unsigned round = 0; round < ROUNDS; round++) {
		fill(&s);
		assert_int_equal(change(&s, CHANGES), 0);
		empty(&s, 0);
	}
	small_fs_end(&s);
}

static void holes_survive_losses_of_power(void **state)
{
	static struct small_fs s;
	uint64_t taken = 0;

	(void)state;
	small_fs_make(&s, 1, 8, "4k");
	fill(&s);
	for (unsigned i = 0; i < CUTS; i++) {
		assert_int_equal(kiln_sync(s.fs), 0);
		power_cut_after(s.power, 1 + rng_below(&s.rng, CUT_IOS_MAX));
		change(&s, CHANGES);
		power_cut(s.power);
		taken += holes_taken(&s);
		kiln_shutdown(s.fs);
		kiln_close(s.fs);
		power_restore(s.power);
		small_fs_open(&s);
		must_be_consistent(s.fs);
		/* Which names survived isn't known any more: others from here on. */
		s.nr = 0;
		s.next += NAMES_MAX;
	}
	assert_true(taken > 0);
	assert_int_equal(kiln_shutdown(s.fs), 0);
	kiln_close(s.fs);
	small_fs_free(&s);
}

/* --- a file in many pieces, which ranges are inserted into and taken out of --- */

struct pieces {
	struct kiln_node node;
	uint8_t blocks[PIECES_BLOCKS_MAX]; /* what each is full of; 0: a hole */
	unsigned nr;
};

static int pieces_write(struct small_fs *s, struct pieces *p, unsigned at, uint8_t byte)
{
	char block[SECTOR_BYTES];

	memset(block, byte, sizeof(block));
	int64_t ret = kiln_write(s->fs, p->node, (uint64_t)at * SECTOR_BYTES, block, sizeof(block));
	if (ret < 0)
		return (int)ret;
	p->blocks[at] = byte;
	p->nr = max(p->nr, at + 1);
	return 0;
}

static void pieces_make(struct small_fs *s, struct pieces *p)
{
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_stat st;

	assert_int_equal(kiln_create(s->fs, kiln_root(s->fs), "pieces", 6, &attr, &st), 0);
	*p = (struct pieces){ .node = st.node };
	for (unsigned i = 0; i < PIECES; i++)
		assert_int_equal(pieces_write(s, p, 2 * i, (uint8_t)(1 + i % 255)), 0);
}

static void pieces_check(struct small_fs *s, const struct pieces *p)
{
	static uint8_t got[PIECES_BLOCKS_MAX * SECTOR_BYTES];
	struct kiln_stat st;

	assert_int_equal(kiln_stat(s->fs, p->node, &st), 0);
	assert_int_equal(st.size, p->nr * SECTOR_BYTES);
	assert_int_equal(kiln_read(s->fs, p->node, 0, got, sizeof(got)), st.size);
	for (unsigned i = 0; i < p->nr; i++)
		for (unsigned k = 0; k < SECTOR_BYTES; k++)
			assert_int_equal(got[i * SECTOR_BYTES + k], p->blocks[i]);
}

static bool has_stopped(struct small_fs *s) { return s->fs->data->writer->ops_left; }

/* A range somewhere in it. What stops on the way is done when something else is done to the file. */
static int pieces_shift(struct small_fs *s, struct pieces *p, bool is_insert)
{
	unsigned nr = 1 + (unsigned)rng_below(&s->rng, SHIFT_BLOCKS_MAX);
	unsigned at = (unsigned)rng_below(&s->rng, p->nr - nr);
	unsigned behind = p->nr - at - (is_insert ? 0 : nr);
	int err = kiln_fallocate(s->fs, p->node, is_insert ? KILN_FALLOC_INSERT_RANGE : KILN_FALLOC_COLLAPSE_RANGE,
				 (uint64_t)at * SECTOR_BYTES, nr * SECTOR_BYTES);

	if (err && !has_stopped(s))
		return err;
	if (is_insert) {
		memmove(p->blocks + at + nr, p->blocks + at, behind);
		memset(p->blocks + at, 0, nr);
	} else {
		memmove(p->blocks + at, p->blocks + at + nr, behind);
	}
	p->nr = p->nr + (is_insert ? nr : 0) - (is_insert ? 0 : nr);
	return err;
}

static void ranges_are_inserted_and_taken_out_of_a_full_filesystem(void **state)
{
	static struct small_fs s;
	static struct pieces p;
	unsigned refused = 0, stopped = 0;

	(void)state;
	small_fs_make(&s, 1, 8, "4k");
	pieces_make(&s, &p);
	fill(&s);
	for (unsigned i = 0; i < SHIFTS; i++) {
		assert_int_equal(change(&s, (unsigned)rng_below(&s.rng, SHIFT_BUSY)), 0);
		int err = pieces_shift(&s, &p, rng_below(&s.rng, 2));
		assert_true(!err || err == -ENOSPC);
		refused += err != 0;
		stopped += has_stopped(&s);
		if (!has_stopped(&s))
			pieces_check(&s, &p);
	}
	print_message("%u refused, %u stopped on the way\n", refused, stopped);
	empty(&s, s.nr / 2);
	assert_int_equal(pieces_write(&s, &p, 1, 1), 0);
	pieces_check(&s, &p);
	small_fs_end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(a_filesystem_full_of_small_nodes_goes_on),
					    cmocka_unit_test(so_does_one_of_two_copies),
					    cmocka_unit_test(without_one_of_its_devices_it_goes_on),
					    cmocka_unit_test(so_does_one_of_larger_nodes_without_a_device),
					    cmocka_unit_test(a_filesystem_of_two_copies_goes_on_when_copygc_moves_data),
					    cmocka_unit_test(holes_survive_losses_of_power),
					    cmocka_unit_test(ranges_are_inserted_and_taken_out_of_a_full_filesystem) };

	cmocka_set_test_filter(getenv("KILN_TEST_FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
