/* Promises of super.h about writing, shown on superblocks in memory, some of them behind devices that fail. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/sanitizer.h"
#include "base/sync.h"
#include "format/jset.h"
#include "format/sb_sections.h"
#include "fs_build.h"
#include "super/super.h"

static struct reports reports;
static struct report_sink sink;

/* Writes of all devices in order, with what they wrote; flushes mark how far each device is safe. */
struct recording {
	struct {
		const void *dev;
		bool is_flush;
		uint64_t offset;
		size_t bytes;
		uint8_t *data;
	} v[64];
	unsigned nr;
};

/*
 * A device that stays when the super closes it, so that it can be opened again: what is on it survives.
 */
struct kept {
	struct device dev;
	struct device *below;
	unsigned writes, flushes;
	struct recording *recording; /* NULL: nothing is recorded */
	uint64_t written_first[8];   /* offsets in order */
};

static void kept_submit(struct device *dev, struct device_io *io)
{
	struct kept *k = (struct kept *)dev;
	int err = 0;

	if (io->op == DEVICE_WRITE && k->writes < ARRAY_NR(k->written_first))
		k->written_first[k->writes] = io->offset_bytes;
	k->writes += io->op == DEVICE_WRITE;
	if (k->recording && (io->op == DEVICE_WRITE || io->op == DEVICE_FLUSH)) {
		unsigned n = k->recording->nr++;

		assert_true(n < ARRAY_NR(k->recording->v));
		k->recording->v[n].dev = k;
		k->recording->v[n].is_flush = io->op == DEVICE_FLUSH;
		k->recording->v[n].offset = io->offset_bytes;
		k->recording->v[n].bytes = io->len_bytes;
		k->recording->v[n].data = NULL;
		if (io->op == DEVICE_WRITE) {
			k->recording->v[n].data = malloc(io->len_bytes);
			assert_non_null(k->recording->v[n].data);
			memcpy(k->recording->v[n].data, io->iov[0].iov_base, io->len_bytes);
		}
	}
	k->flushes += io->op == DEVICE_FLUSH;
	for (unsigned i = 0; i < io->iov_nr && !err; i++) {
		err = io->op == DEVICE_READ
			      ? device_read(k->below, io->offset_bytes, io->iov[i].iov_base, io->len_bytes)
		      : io->op == DEVICE_WRITE
			      ? device_write(k->below, io->offset_bytes, io->iov[i].iov_base, io->len_bytes)
			      : 0;
	}
	io_done(io, err);
}

static void kept_close(struct device *dev) { (void)dev; }

static const struct device_ops kept_ops = { .kind = "kept", .submit = kept_submit, .close = kept_close };

/* A filesystem whose devices are opened again and again, each behind a wrapper that can be told to fail. */
struct disks {
	struct fs fs;
	struct kept kept[FS_DEVS_MAX];
	struct device *fault[FS_DEVS_MAX]; /* of the current opening */
};

static void disks_init(struct disks *d, unsigned nr)
{
	fs_init(&d->fs, nr);
	fs_write_sb(&d->fs);
	for (unsigned i = 0; i < nr; i++) {
		struct device *below = d->fs.dev[i];

		d->kept[i] = (struct kept){ .dev = *below, .below = below };
		d->kept[i].dev.ops = &kept_ops;
	}
}

static void disks_free(struct disks *d) { fs_close(&d->fs); }

static int disks_open_with(struct disks *d, struct super_open_opts opts, unsigned devices, struct super **s)
{
	struct device *list[FS_DEVS_MAX];
	size_t nr = 0;

	for (unsigned i = 0; i < d->fs.dev_nr; i++) {
		if (!(devices & 1u << i))
			continue;
		assert_int_equal(device_wrap_fault(&d->kept[i].dev, 1, &d->fault[i]), 0);
		list[nr++] = d->fault[i];
	}
	opts.devices = list;
	opts.device_nr = nr;
	sink = reports_sink(&reports);
	return super_open(NULL, 0, &opts, NULL, &sink, s);
}

static void disks_open(struct disks *d, struct super **s)
{
	assert_int_equal(disks_open_with(d, (struct super_open_opts){ .is_write = true }, ~0u, s), 0);
}

static void disks_look(struct disks *d, struct super **s)
{
	assert_int_equal(disks_open_with(d, (struct super_open_opts){ .is_very_degraded_ok = true }, ~0u, s), 0);
}

/* Nothing is odd about any copy. */
static void disks_are_in_order(struct disks *d)
{
	struct super *s;

	disks_look(d, &s);
	assert_string_equal(reports.text, "");
	super_close(s);
}

static void recording_free(struct recording *r)
{
	for (unsigned n = 0; n < r->nr; n++)
		free(r->v[n].data);
}

static struct sb_disk *copy_read(struct disks *d, unsigned dev, unsigned copy)
{
	static uint8_t buf[16384] __attribute__((aligned(8)));

	assert_int_equal(device_read(d->fs.dev[dev], fs_copy_sector(copy) * 512, buf, sizeof(buf)), 0);
	return (struct sb_disk *)buf;
}

static void fail_io(struct device *fault, enum device_op op, uint64_t begin, uint64_t end)
{
	struct device_fault f = { .kind = FAULT_ERROR,
				  .op = op,
				  .begin_bytes = begin,
				  .end_bytes = end,
				  .per_million = 1000000,
				  .err = -EIO,
				  .remaining = UINT64_MAX };

	assert_int_equal(device_fault_add(fault, &f), 0);
}

static void update_writes_all_copies_primary_first(void **state)
{
	struct disks d;
	struct super *s;

	disks_init(&d, 2);
	disks_open(&d, &s);
	assert_int_equal(super_mark_dirty(s), 0);
	assert_false(SB_CLEAN_FLAG(s->sb));
	super_close(s);

	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(d.kept[i].writes, FS_COPIES);
		assert_int_equal(d.kept[i].flushes, 2);
		for (unsigned c = 0; c < FS_COPIES; c++) {
			struct sb_disk *sb = copy_read(&d, i, c);
			uint64_t start, nr;

			assert_int_equal(d.kept[i].written_first[c], fs_copy_sector(c) * 512);
			assert_int_equal(sb_check_header(sb, NULL), 0);
			assert_int_equal(sb_verify(sb, NULL), 0);
			assert_int_equal(sb_validate(sb, false, NULL), 0);
			assert_int_equal(le64_get(sb->offset), fs_copy_sector(c));
			assert_int_equal(le64_get(sb->seq), 8);
			assert_int_equal(sb->dev_idx, i);
			assert_int_equal(sb_journal_range_nr(sb), 1);
			sb_journal_range(sb, 0, &start, &nr);
			assert_int_equal(start, FS_JOURNAL_BUCKET);
			for (unsigned m = 0; m < 2; m++) {
				struct member member;

				sb_member(sb, m, &member);
				assert_int_equal(member.seq, 8);
				assert_true(member.last_mount);
			}
		}
	}
	disks_are_in_order(&d);
	disks_free(&d);
}

static void clean_and_dirty_follow_each_other(void **state)
{
	static struct subs tail, roots;
	struct disks d;
	struct super *s;
	const uint8_t *begin, *end;
	uint64_t seq;

	tail.len = roots.len = 0;
	subs_add_usage(&tail, 1, 0, 2);
	subs_add_root(&roots, 0, 1, 99);
	disks_init(&d, 1);
	disks_open(&d, &s);
	assert_int_equal(super_mark_dirty(s), 0);
	assert_int_equal(
		super_mark_clean(s, 42, tail.bytes, (unsigned)tail.len / 8, roots.bytes, (unsigned)roots.len / 8), 0);
	super_close(s);

	disks_look(&d, &s);
	assert_true(SB_CLEAN_FLAG(s->sb));
	assert_int_equal(le64_get(s->sb->features[0]), 0x78a80);
	assert_int_equal(le64_get(s->sb->compat[0]), 0xf);
	assert_true(sb_clean(s->sb, &seq, &begin, &end));
	assert_int_equal(seq, 42);
	assert_int_equal(end - begin, tail.len + roots.len);
	assert_memory_equal(begin, tail.bytes, tail.len);
	assert_memory_equal(begin + tail.len, roots.bytes, roots.len);
	super_close(s);

	disks_open(&d, &s);
	assert_int_equal(super_mark_dirty(s), 0);
	assert_false(SB_CLEAN_FLAG(s->sb));
	assert_int_equal(le64_get(s->sb->features[0]), 0x7ba80);
	assert_true(sb_clean(s->sb, &seq, &begin, &end)); /* stale, but there */
	super_close(s);
	disks_free(&d);
}

static void replicas_choose_their_section(void **state)
{
	static const uint8_t both[] = { 0, 1 }, reversed[] = { 1, 0 }, one[] = { 1 };
	struct disks d;
	struct super *s;

	disks_init(&d, 2);
	disks_open(&d, &s);
	assert_int_equal(super_replicas_mark(s, 3, 1, both, 2), 0);
	assert_int_equal(super_replicas_mark(s, 2, 1, one, 1), 0);
	assert_true(sb_section(s->sb, SB_REPLICAS_V0) && !sb_section(s->sb, SB_REPLICAS));
	unsigned writes = d.kept[0].writes;
	assert_int_equal(super_replicas_mark(s, 3, 1, both, 2), 0);
	assert_int_equal(super_replicas_mark(s, 3, 1, reversed, 2), 0);
	assert_int_equal(d.kept[0].writes, writes);

	assert_int_equal(super_replicas_mark(s, 4, 0, both, 2), 0);
	assert_true(!sb_section(s->sb, SB_REPLICAS_V0) && sb_section(s->sb, SB_REPLICAS));
	super_close(s);

	disks_open(&d, &s);
	writes = d.kept[0].writes;
	assert_int_equal(super_replicas_mark(s, 3, 1, both, 2), 0);
	assert_int_equal(super_replicas_mark(s, 2, 1, one, 1), 0);
	assert_int_equal(super_replicas_mark(s, 4, 0, both, 2), 0);
	assert_int_equal(d.kept[0].writes, writes);
	/* A rule of the format is broken: a device that doesn't exist. Nothing is written, nothing has changed. */
	static const uint8_t none[] = { 7 };
	assert_int_equal(super_replicas_mark(s, 3, 1, none, 1), -KILN_E_INVALID);
	assert_int_equal(d.kept[0].writes, writes);
	assert_int_equal(super_update(s), 0);
	super_close(s);
	disks_free(&d);
}

static void assert_blacklist(const struct super *s, const uint64_t (*ranges)[2], unsigned nr)
{
	assert_int_equal(sb_blacklist_nr(s->sb), nr);
	for (unsigned i = 0; i < nr; i++) {
		uint64_t start, end;

		sb_blacklist_range(s->sb, i, &start, &end);
		assert_int_equal(start, ranges[i][0]);
		assert_int_equal(end, ranges[i][1]);
	}
}

static void blacklist_ranges_that_touch_become_one(void **state)
{
	struct disks d;
	struct super *s;

	disks_init(&d, 1);
	disks_open(&d, &s);
	assert_int_equal(super_blacklist_add(s, 10, 18), 0);
	assert_true(sb_has_feature(s->sb, SB_FEATURE_JOURNAL_SEQ_BLACKLIST_V3));
	assert_int_equal(super_blacklist_add(s, 30, 40), 0);
	assert_int_equal(super_blacklist_add(s, 50, 60), 0);
	assert_blacklist(s, (const uint64_t[][2]){ { 10, 18 }, { 30, 40 }, { 50, 60 } }, 3);
	assert_int_equal(super_blacklist_add(s, 18, 20), 0);
	assert_int_equal(super_blacklist_add(s, 35, 50), 0);
	assert_blacklist(s, (const uint64_t[][2]){ { 10, 20 }, { 30, 60 } }, 2);
	assert_int_equal(super_blacklist_add(s, 1, 100), 0);
	assert_blacklist(s, (const uint64_t[][2]){ { 1, 100 } }, 1);
	assert_int_equal(super_blacklist_add(s, 5, 5), -EINVAL);
	super_close(s);
	disks_look(&d, &s);
	assert_blacklist(s, (const uint64_t[][2]){ { 1, 100 } }, 1);
	super_close(s);
	disks_free(&d);
}

/* As a newer version or upstream notes it. */
static void passes_require(struct super *s, uint64_t passes)
{
	struct sb_ext_disk *ext = (struct sb_ext_disk *)sb_section(s->sb, SB_EXT);

	assert_non_null(ext);
	ext->passes_required[0] = le64_of(passes);
	assert_int_equal(super_update(s), 0);
}

static void single_facts_are_kept(void **state)
{
	static const struct sb_journal_range ranges[] = { { 30, 4 }, { 40, 1 }, { 33 + 3, 2 } };
	struct disks d;
	struct super *s;
	struct sb_error e;
	struct sb_ext ext;

	disks_init(&d, 2);
	disks_open(&d, &s);
	assert_int_equal(super_feature_set(s, SB_FEATURE_INLINE_DATA), 0);
	assert_int_equal(super_member_flags_set(s, 1, MEMBER_FLAG_STATE_LO, MEMBER_FLAG_STATE_HI, MEMBER_RO), 0);
	assert_int_equal(s->members[1].m.state, MEMBER_RO);
	assert_int_equal(super_journal_set(s, 1, ranges, 3), 0);
	assert_int_equal(super_option_set(s, OPT_COMPRESSION, 0x53), 0);
	assert_int_equal(super_option_set(s, OPT_METADATA_CHECKSUM, 3), 0);
	assert_int_equal(super_option_set(s, OPT_DATA_REPLICAS, 4), -EINVAL);
	assert_int_equal(super_option_set(s, OPT_VERBOSE, 1), -EINVAL);
	assert_int_equal(super_mark_recovered(s), 0); /* makes the section */
	passes_require(s, 1 << 5);
	for (unsigned i = 0; i < 3; i++)
		super_error_count(s, 75);
	super_error_count(s, 12);
	super_error_note(s, false);
	assert_int_equal(super_update(s), 0);
	super_error_count(s, 75);
	assert_int_equal(super_update(s), 0);
	super_close(s);

	disks_look(&d, &s);
	assert_true(sb_has_feature(s->sb, SB_FEATURE_INLINE_DATA) && sb_has_feature(s->sb, SB_FEATURE_ZSTD));
	assert_int_equal(s->members[1].m.state, MEMBER_RO);
	assert_int_equal(s->members[0].m.state, MEMBER_RW);
	assert_int_equal(sb_journal_range_nr(s->members[1].sb), 3);
	assert_int_equal(sb_journal_range_nr(s->members[0].sb), 1);
	assert_int_equal(s->options[OPT_COMPRESSION], 0x53);
	assert_int_equal(SB_CSUM_TYPE(s->sb), CHECKSUM_XXHASH);
	assert_true(SB_HAS_ERRORS(s->sb) && !SB_HAS_TOPOLOGY_ERRORS(s->sb));
	assert_int_equal(sb_error_nr(s->sb, SB_ERRORS), 2);
	sb_error(s->sb, SB_ERRORS, 0, &e);
	assert_int_equal(e.id, 12);
	sb_error(s->sb, SB_ERRORS, 1, &e);
	assert_int_equal(e.id, 75);
	assert_int_equal(e.count, 4);
	sb_ext(s->sb, &ext);
	assert_int_equal(ext.passes_required[0], 1 << 5);
	super_close(s);

	/* What needs repair isn't opened for writing. */
	assert_int_equal(disks_open_with(&d, (struct super_open_opts){ .is_write = true }, ~0u, &s),
			 -KILN_E_UNSUPPORTED);
	assert_non_null(strstr(reports.text, "needs repair"));
	disks_free(&d);
}

static void journal_buckets_are_validated(void **state)
{
	static const struct sb_journal_range twice[] = { { 30, 4 }, { 33, 2 } };
	struct disks d;
	struct super *s;

	disks_init(&d, 1);
	disks_open(&d, &s);
	assert_int_equal(super_journal_set(s, 0, twice, 2), -KILN_E_INVALID);
	assert_int_equal(sb_journal_range_nr(s->members[0].sb), 1);
	assert_int_equal(super_update(s), 0);
	super_close(s);
	disks_free(&d);
}

static void full_superblock_refuses_and_goes_on(void **state)
{
	struct disks d;
	struct super *s;
	int err = 0;
	unsigned added = 0;
	static uint8_t roots[1 << 20];
	struct sb_error e;

	disks_init(&d, 1);
	disks_open(&d, &s);
	uint64_t errors[3];
	memcpy(errors, s->members[0].m.errors, sizeof(errors));
	assert_int_equal(super_mark_clean(s, 1, NULL, 0, roots, sizeof(roots) / 8), -ENOSPC);
	assert_false(SB_CLEAN_FLAG(s->sb));
	assert_int_equal(super_mark_clean(s, 1, NULL, 0, roots, sizeof(roots) / 8 - 1000), 0);
	for (;; added++) {
		super_error_count(s, 75);
		super_checksum_error_count(s, 0);
		s->members[0].dev->read_errors++;
		err = super_blacklist_add(s, 10ull + 10 * added, 11ull + 10 * added);
		if (err)
			break;
	}
	assert_int_equal(err, -ENOSPC);
	assert_non_null(strstr(reports.text, "no space in superblock"));
	assert_int_equal(sb_blacklist_nr(s->sb), added);
	/* What was counted until the one that failed comes with the next. */
	assert_int_equal(super_update(s), 0);
	super_close(s);
	disks_look(&d, &s);
	assert_int_equal(sb_blacklist_nr(s->sb), added);
	sb_error(s->sb, SB_ERRORS, 0, &e);
	assert_int_equal(e.id, 75);
	assert_int_equal(e.count, added + 1);
	assert_int_equal(s->members[0].m.errors[0], errors[0] + added + 1);
	assert_int_equal(s->members[0].m.errors[2], errors[2] + added + 1);
	super_close(s);
	disks_free(&d);
}

static void failed_member_drops_out_and_the_rest_goes_on(void **state)
{
	static const uint8_t both[] = { 0, 1 };
	struct disks d;
	struct super *s;

	disks_init(&d, 2);
	disks_open(&d, &s);
	assert_int_equal(super_replicas_mark(s, 3, 1, both, 2), 0);
	fail_io(d.fault[1], DEVICE_WRITE, 0, 0);
	assert_int_equal(super_mark_dirty(s), 0);
	assert_non_null(strstr(reports.text, "dev1"));
	assert_int_equal(le64_get(copy_read(&d, 0, 2)->seq), 9);
	assert_int_equal(le64_get(copy_read(&d, 1, 0)->seq), 8);

	/* It comes back: what its primary says doesn't matter then. */
	device_fault_clear(d.fault[1]);
	assert_int_equal(super_update(s), 0);
	assert_int_equal(le64_get(copy_read(&d, 1, 0)->seq), 10);
	super_close(s);
	disks_free(&d);
}

/* Data that was written before a device failed is to be pointed at after that. */
static void nothing_new_is_only_on_failed_members(void **state)
{
	static const uint8_t both[] = { 0, 1 }, first[] = { 0 }, second[] = { 1 };
	struct disks d;
	struct super *s;

	disks_init(&d, 2);
	disks_open(&d, &s);
	assert_int_equal(super_replicas_mark(s, 3, 1, first, 1), 0);
	/* What is only there would be lost. */
	assert_int_equal(super_member_fail(s, 0), -EROFS);
	assert_int_equal(super_member_fail(s, 1), 0);
	assert_int_equal(super_replicas_mark(s, 3, 1, second, 1), -EIO);
	assert_int_equal(super_replicas_mark(s, 5, 2, both, 2), -EIO);
	assert_int_equal(super_replicas_mark(s, 3, 1, both, 2), 0);
	assert_int_equal(super_replicas_mark(s, 3, 1, first, 1), 0);
	super_close(s);

	disks_open(&d, &s);
	assert_int_equal(super_replicas_mark(s, 3, 1, second, 1), -EIO);
	super_close(s);
	disks_free(&d);
}

static void update_fails_for_good_when_too_little_was_written(void **state)
{
	static const uint8_t second[] = { 1 };
	struct disks d;
	struct super *s;

	/* A failed write and a failed flush, of any copy, of the device that holds the only copy of something. */
	for (unsigned kind = 0; kind < 3; kind++) {
		disks_init(&d, 2);
		disks_open(&d, &s);
		assert_int_equal(super_replicas_mark(s, 3, 1, second, 1), 0);
		if (kind == 0)
			fail_io(d.fault[1], DEVICE_WRITE, 0, 0);
		else if (kind == 1)
			fail_io(d.fault[1], DEVICE_FLUSH, 0, 0);
		else
			fail_io(d.fault[1], DEVICE_WRITE, fs_copy_sector(2) * 512, (fs_copy_sector(2) + 2048) * 512);
		assert_int_equal(super_mark_dirty(s), -EIO);
		device_fault_clear(d.fault[1]);
		assert_int_equal(super_update(s), -EIO);
		assert_int_equal(super_blacklist_add(s, 1, 2), -EIO);
		super_close(s);
		disks_free(&d);
	}

	disks_init(&d, 1);
	disks_open(&d, &s);
	fail_io(d.fault[0], DEVICE_WRITE, 0, 0);
	assert_int_equal(super_mark_dirty(s), -EIO);
	assert_non_null(strstr(reports.text, "no device could be written"));
	super_close(s);
	disks_free(&d);
}

static void failure_between_copies_leaves_a_whole_one(void **state)
{
	struct disks d;
	struct super *s;

	disks_init(&d, 1);
	disks_open(&d, &s);
	fail_io(d.fault[0], DEVICE_WRITE, fs_copy_sector(1) * 512, (fs_copy_sector(1) + 2048) * 512);
	assert_int_equal(super_blacklist_add(s, 5, 9), -EIO);
	super_close(s);
	disks_look(&d, &s);
	assert_int_equal(le64_get(s->sb->seq), 8);
	assert_int_equal(sb_blacklist_nr(s->sb), 1);
	super_close(s);
	disks_free(&d);
}

/*
 * Put onto the devices what may be there when power fails behind the first @cut steps of @r: all that was flushed, and
 * of the rest any sectors.
 */
static void replay(const struct recording *r, unsigned cut, struct rng *rng)
{
	for (unsigned i = 0; i < cut; i++) {
		const struct kept *k = r->v[i].dev;
		bool is_safe = false;

		if (r->v[i].is_flush)
			continue;
		for (unsigned f = i + 1; f < cut; f++)
			is_safe = is_safe || (r->v[f].is_flush && r->v[f].dev == k);
		uint64_t kind = is_safe ? 0 : rng_below(rng, 3); /* whole, lost, torn */
		for (size_t at = 0; at < r->v[i].bytes && kind != 1; at += 512) {
			if (kind == 2 && rng_below(rng, 2))
				continue;
			uint8_t *sector = io_buffer_alloc(512);
			memcpy(sector, r->v[i].data + at, 512);
			assert_int_equal(device_write(k->below, r->v[i].offset + at, sector, 512), 0);
			io_buffer_free(sector);
		}
	}
}

static void power_cuts_leave_the_old_or_the_new_state(void **state)
{
	static const uint8_t both[] = { 0, 1 };
	static uint8_t before[2][FS_COPIES][32768] __attribute__((aligned(4096)));
	static uint8_t roots[6000]; /* so that a copy has more sectors than fit into one block */
	const char *env = getenv("KILN_TEST_SEED");
	uint64_t seed = env ? strtoull(env, NULL, 0) : random_u64();
	struct rng rng;
	unsigned news = 0, olds = 0;

	print_message("KILN_TEST_SEED=%llu\n", (unsigned long long)seed);
	rng_init(&rng, seed);
	for (unsigned round = 0; round < (KILN_SANITIZED ? 15 : 60); round++) {
		struct recording r = { .nr = 0 };
		struct disks d;
		struct super *s;

		/* The update, recorded, on devices that are then put back to what they were. */
		disks_init(&d, 2);
		disks_open(&d, &s);
		/* Without checksums of metadata too a torn copy must not be taken for a whole one. */
		if (round % 2)
			s->options[OPT_METADATA_CHECKSUM] = 0;
		assert_int_equal(super_replicas_mark(s, 3, 1, both, 2), 0);
		assert_int_equal(super_mark_clean(s, 1, NULL, 0, roots, sizeof(roots) / 8), 0);
		super_close(s);
		for (unsigned i = 0; i < 2; i++) {
			for (unsigned c = 0; c < FS_COPIES; c++)
				assert_int_equal(device_read(d.fs.dev[i], fs_copy_sector(c) * 512, before[i][c],
							     sizeof(before[i][c])),
						 0);
			d.kept[i].recording = &r;
		}
		disks_open(&d, &s);
		if (round % 2)
			s->options[OPT_METADATA_CHECKSUM] = 0;
		assert_int_equal(super_mark_dirty(s), 0);
		super_close(s);
		for (unsigned i = 0; i < 2; i++) {
			d.kept[i].recording = NULL;
			for (unsigned c = 0; c < FS_COPIES; c++)
				assert_int_equal(device_write(d.fs.dev[i], fs_copy_sector(c) * 512, before[i][c],
							      sizeof(before[i][c])),
						 0);
		}

		/* Before the first write, behind the last, and in between. */
		unsigned done = round == 0 ? 0 : round == 1 ? r.nr : (unsigned)rng_below(&rng, r.nr + 1);
		replay(&r, done, &rng);
		assert_int_equal(disks_open_with(&d, (struct super_open_opts){ 0 }, ~0u, &s), 0);
		assert_true(super_member_online(s, 0) && super_member_online(s, 1));
		uint64_t seq = le64_get(s->sb->seq);
		assert_true(seq == 9 || seq == 10);
		assert_int_equal(SB_CLEAN_FLAG(s->sb), seq == 9);
		news += seq == 10;
		olds += seq == 9;
		super_close(s);

		/* And it can be written again, which makes all copies equal. */
		disks_open(&d, &s);
		assert_int_equal(super_mark_dirty(s), 0);
		super_close(s);
		disks_are_in_order(&d);
		recording_free(&r);
		disks_free(&d);
	}
	assert_true(news && olds);
}

/* --- passphrases --- */

/* Every copy of both devices, to @copies or back. */
static void copies_move(struct disks *d, uint8_t copies[2][FS_COPIES][4096], bool is_back)
{
	for (unsigned i = 0; i < 2; i++)
		for (unsigned c = 0; c < FS_COPIES; c++) {
			uint64_t at = fs_copy_sector(c) * 512;
			int err = is_back ? device_write(d->fs.dev[i], at, copies[i][c], 4096)
					  : device_read(d->fs.dev[i], at, copies[i][c], 4096);

			assert_int_equal(err, 0);
		}
}

static void user_key_make(struct super *s, const char *passphrase, struct crypt_key *user_key)
{
	struct sb_crypt c;

	assert_true(sb_crypt(s->sb, &c) && c.is_sealed);
	assert_int_equal(sb_crypt_derive(&c, passphrase, strlen(passphrase), user_key), 0);
}

/* Which of the keys opens what these devices say: 0 or 1; always exactly one. */
static unsigned opens_with(struct disks *d, unsigned devices, const struct crypt_key keys[2])
{
	struct super *s;
	unsigned which;

	assert_int_equal(disks_open_with(d, (struct super_open_opts){ .is_degraded_ok = true }, devices, &s), 0);
	assert_true(s->needs_passphrase);
	for (which = 0; which < 2 && super_unlock_key(s, &keys[which]); which++)
		;
	assert_true(which < 2 && !s->needs_passphrase);
	assert_int_equal(s->key->bytes[0], 0x5a);
	assert_int_equal(s->key->bytes[31], 0x5a);
	super_close(s);
	return which;
}

static void power_cuts_leave_the_old_or_the_new_passphrase(void **state)
{
	static uint8_t before[2][FS_COPIES][4096] __attribute__((aligned(4096)));
	uint8_t crypt[56] = { [16] = 'b', 'c', 'h', '*', '*', 'k', 'e', 'y' };
	struct recording r = { .nr = 0 };
	struct crypt_key keys[2];
	unsigned found[2] = { 0 };
	struct disks d;
	struct super *s;
	struct rng rng;

	memset(crypt + 24, 0x5a, 32);
	rng_init(&rng, 1);
	fs_init(&d.fs, 2);
	d.fs.encryption_type = 1;
	d.fs.crypt = crypt;
	fs_write_sb(&d.fs);
	for (unsigned i = 0; i < 2; i++) {
		d.kept[i] = (struct kept){ .dev = *d.fs.dev[i], .below = d.fs.dev[i] };
		d.kept[i].dev.ops = &kept_ops;
	}
	disks_open(&d, &s);
	assert_int_equal(super_passphrase_set(s, "old", 3), 0);
	user_key_make(s, "old", &keys[0]);
	copies_move(&d, before, false);
	for (unsigned i = 0; i < 2; i++)
		d.kept[i].recording = &r;
	assert_int_equal(super_passphrase_set(s, "new", 3), 0);
	for (unsigned i = 0; i < 2; i++)
		d.kept[i].recording = NULL;
	user_key_make(s, "new", &keys[1]);
	super_close(s);

	for (unsigned round = 0; round < 6 * (r.nr + 1); round++) {
		copies_move(&d, before, true);
		replay(&r, round / 6, &rng);
		found[opens_with(&d, ~0u, keys)]++;
		opens_with(&d, 1, keys);
		opens_with(&d, 2, keys);
	}
	assert_true(found[0] && found[1]);

	/* Not while one is missing, which would go on with the old one. */
	assert_int_equal(
		disks_open_with(&d, (struct super_open_opts){ .is_write = true, .is_degraded_ok = true }, 1, &s), 0);
	assert_int_equal(super_unlock_key(s, &keys[1]), 0);
	assert_int_equal(super_passphrase_set(s, NULL, 0), -ENODEV);
	super_close(s);

	disks_open(&d, &s);
	assert_int_equal(super_passphrase_set(s, NULL, 0), -EINVAL);
	assert_int_equal(super_unlock_key(s, &keys[1]), 0);
	assert_int_equal(super_passphrase_set(s, NULL, 0), 0);
	super_close(s);
	disks_open(&d, &s);
	assert_false(s->needs_passphrase);
	super_close(s);
	recording_free(&r);
	disks_free(&d);
}

static void foreign_write_stops_everything(void **state)
{
	struct disks d;
	struct super *s;

	for (unsigned seq = 6; seq <= 8; seq += 2) {
		disks_init(&d, 1);
		disks_open(&d, &s);
		d.fs.seq = seq;
		fs_write_copies(&d.fs, 0, 1);
		assert_int_equal(super_mark_dirty(s), -EROFS);
		assert_non_null(strstr(reports.text, seq == 8 ? "somebody else" : "lost a write"));
		assert_int_equal(super_update(s), -EROFS);
		assert_int_equal(d.kept[0].writes, 0);
		super_close(s);
		disks_free(&d);
	}
	/* Formatted anew, under us. */
	disks_init(&d, 1);
	disks_open(&d, &s);
	d.fs.uuid[0] ^= 1;
	fs_write_copies(&d.fs, 0, 1);
	assert_int_equal(super_mark_dirty(s), -EROFS);
	assert_non_null(strstr(reports.text, "of another filesystem"));
	super_close(s);
	disks_free(&d);
}

static void damaged_primary_is_written_anew_but_a_different_one_is_not(void **state)
{
	struct disks d;
	struct super *s;

	disks_init(&d, 1);
	fs_zero_sectors(d.fs.dev[0], 8, 8);
	disks_open(&d, &s);
	assert_int_equal(super_mark_dirty(s), 0);
	assert_int_equal(le64_get(copy_read(&d, 0, 0)->seq), 8);
	super_close(s);

	d.fs.seq = 6;
	fs_write_copies(&d.fs, 0, 1);
	assert_int_equal(disks_open_with(&d, (struct super_open_opts){ .is_write = true }, ~0u, &s), -EROFS);
	assert_non_null(strstr(reports.text, "primary"));
	disks_free(&d);
}

/* Rot, or somebody who wiped it: what is no superblock any more can't tell of another writer, and is written anew. */
static void a_primary_that_is_damaged_while_open_is_written_anew(void **state)
{
	/* sequence number, uuid, what only the checksum covers, all of it */
	static const unsigned at_byte[] = { offsetof(struct sb_disk, seq), offsetof(struct sb_disk, uuid), 0, 0 };

	for (unsigned how = 0; how < ARRAY_NR(at_byte); how++) {
		struct disks d;
		struct super *s;
		struct member m;

		disks_init(&d, 2);
		if (how == 3) /* nothing but the primary was whole */
			for (unsigned copy = 1; copy < FS_COPIES; copy++)
				fs_zero_sectors(d.fs.dev[1], fs_copy_sector(copy), 1);
		disks_open(&d, &s);
		if (how >= 2) {
			fs_zero_sectors(d.fs.dev[1], fs_copy_sector(0), 8);
		} else {
			uint8_t sector[512];

			assert_int_equal(device_read(d.fs.dev[1], fs_copy_sector(0) * 512, sector, 512), 0);
			sector[at_byte[how]] ^= 1;
			assert_int_equal(device_write(d.fs.dev[1], fs_copy_sector(0) * 512, sector, 512), 0);
		}
		assert_int_equal(super_mark_dirty(s), 0);
		assert_non_null(strstr(reports.text, "primary"));
		assert_int_equal(le64_get(copy_read(&d, 1, 0)->seq), 8);
		/* It was counted, and is a member like the other. */
		assert_int_equal(super_update(s), 0);
		sb_member(s->sb, 1, &m);
		assert_int_equal(m.errors[2], 1);
		assert_int_equal(le64_get(copy_read(&d, 1, 0)->seq), 9);
		super_close(s);
		disks_are_in_order(&d);
		disks_free(&d);
	}
}

/* Would the power go again, while the only good copy is written, none would be left. */
static void copies_that_an_update_tore_are_made_whole_before_the_primary_is_written(void **state)
{
	enum { NONE_STALE, TORN, OLDER };

	for (unsigned how = NONE_STALE; how <= OLDER; how++) {
		struct recording r = { .nr = 0 };
		struct disks d;
		struct super *s;
		unsigned renewed = 0, at = 0;

		disks_init(&d, 2);
		for (unsigned copy = 1; copy < FS_COPIES && how == TORN; copy++)
			fs_zero_sectors(d.fs.dev[1], fs_copy_sector(copy), 1);
		if (how == OLDER) {
			d.fs.seq--;
			fs_write_copies(&d.fs, 1, 2);
			d.fs.seq++;
		}
		disks_open(&d, &s);
		d.kept[1].recording = &r;
		assert_int_equal(super_mark_dirty(s), 0);
		d.kept[1].recording = NULL;
		for (; r.v[at].is_flush || r.v[at].offset != fs_copy_sector(0) * 512; at++)
			if (!r.v[at].is_flush) {
				const struct sb_disk *sb = (struct sb_disk *)r.v[at].data;

				assert_int_equal(le64_get(sb->seq), 7);
				assert_int_equal(le64_get(sb->offset), r.v[at].offset / 512);
				assert_int_equal(sb_verify(sb, NULL), 0);
				renewed++;
			}
		assert_int_equal(renewed, how == NONE_STALE ? 0 : FS_COPIES - 1);
		assert_true(!at || r.v[at - 1].is_flush);
		super_close(s);
		disks_are_in_order(&d);
		recording_free(&r);
		disks_free(&d);
	}
}

/* The same for those that an update couldn't write. */
static void copies_that_could_not_be_written_are_made_equal_before_the_primary_is_written(void **state)
{
	const uint64_t copy_bytes = 2048 * 512;
	struct recording r = { .nr = 0 };
	struct disks d;
	struct super *s;
	unsigned nr = 0;

	disks_init(&d, 2);
	disks_open(&d, &s);
	fail_io(d.fault[1], DEVICE_WRITE, fs_copy_sector(2) * 512, fs_copy_sector(2) * 512 + copy_bytes);
	assert_int_equal(super_mark_dirty(s), 0);
	/* As long as one can be written, the primary is. */
	assert_int_equal(super_update(s), 0);
	assert_int_equal(le64_get(copy_read(&d, 1, 0)->seq), 9);
	assert_int_equal(le64_get(copy_read(&d, 1, 1)->seq), 9);
	assert_int_equal(le64_get(copy_read(&d, 1, 2)->seq), 7);
	device_fault_clear(d.fault[1]);
	d.kept[1].recording = &r;
	assert_int_equal(super_update(s), 0);
	d.kept[1].recording = NULL;
	for (; r.v[nr].is_flush || r.v[nr].offset != fs_copy_sector(0) * 512; nr++)
		if (!r.v[nr].is_flush)
			assert_int_equal(le64_get(((struct sb_disk *)r.v[nr].data)->seq), 9);
	assert_int_equal(nr, FS_COPIES - 1 + 1);
	assert_true(r.v[nr - 1].is_flush);

	/* With none of them it isn't, until one can. */
	fail_io(d.fault[1], DEVICE_WRITE, fs_copy_sector(1) * 512, fs_copy_sector(2) * 512 + copy_bytes);
	assert_int_equal(super_update(s), 0);
	assert_int_equal(super_update(s), 0);
	assert_int_equal(le64_get(copy_read(&d, 0, 0)->seq), 12);
	assert_int_equal(le64_get(copy_read(&d, 1, 0)->seq), 11);
	device_fault_clear(d.fault[1]);
	/* Nor is there anything to make them equal to, once it is damaged. */
	fs_zero_sectors(d.fs.dev[1], fs_copy_sector(0), 8);
	assert_int_equal(super_update(s), 0);
	assert_int_equal(le64_get(copy_read(&d, 1, 0)->seq), 13);
	super_close(s);
	disks_are_in_order(&d);
	recording_free(&r);
	disks_free(&d);
}

/* Should the primary become unreadable meanwhile, it is written anew all the same. */
static void a_primary_that_cannot_be_read_is_written_though_others_are_older(void **state)
{
	struct disks d;
	struct super *s;

	disks_init(&d, 2);
	for (unsigned copy = 1; copy < FS_COPIES; copy++)
		fs_zero_sectors(d.fs.dev[1], fs_copy_sector(copy), 1);
	disks_open(&d, &s);
	fail_io(d.fault[1], DEVICE_READ, fs_copy_sector(0) * 512, fs_copy_sector(1) * 512);
	assert_int_equal(super_mark_dirty(s), 0);
	assert_int_equal(le64_get(copy_read(&d, 1, 0)->seq), 8);
	super_close(s);
	disks_are_in_order(&d);
	disks_free(&d);
}

/*
 * The first sector of an update reached one primary when the power went. Would the next update have the same seq, and
 * be torn there too, so that just the rest of it is written, both together could be the whole first one, which no other
 * device has.
 */
static void the_seq_of_a_torn_update_is_not_used_again(void **state)
{
	static const struct {
		uint64_t torn, next;
	} cases[] = { { 8, 9 }, { 10, 11 }, { 7 + 5000, 8 } /* that isn't an update cut off, but damage */ };

	for (unsigned i = 0; i < ARRAY_NR(cases); i++) {
		struct disks d;
		struct super *s;

		disks_init(&d, 2);
		struct sb_disk *sb = copy_read(&d, 1, 0);
		sb->seq = le64_of(cases[i].torn);
		assert_int_equal(device_write(d.fs.dev[1], fs_copy_sector(0) * 512, sb, 512), 0);
		disks_open(&d, &s);
		assert_int_equal(super_mark_dirty(s), 0);
		for (unsigned dev = 0; dev < 2; dev++)
			assert_int_equal(le64_get(copy_read(&d, dev, 0)->seq), cases[i].next);
		super_close(s);
		disks_look(&d, &s);
		assert_false(s->is_degraded);
		super_close(s);
		disks_free(&d);
	}
}

static void nothing_is_written_before_initialisation(void **state)
{
	static const struct sb_journal_range ranges[] = { { 20, 8 } };
	struct disks d;
	struct super *s;

	fs_init(&d.fs, 1);
	d.fs.is_initialized = false;
	d.fs.seq = 0;
	fs_write_sb(&d.fs);
	d.kept[0] = (struct kept){ .dev = *d.fs.dev[0], .below = d.fs.dev[0] };
	d.kept[0].dev.ops = &kept_ops;
	disks_open(&d, &s);
	assert_int_equal(super_journal_set(s, 0, ranges, 1), 0);
	assert_int_equal(super_mark_dirty(s), 0);
	assert_int_equal(super_member_flags_set(s, 0, 30, 31, 1), 0);
	assert_int_equal(d.kept[0].writes, 0);
	assert_int_equal(super_mark_initialized(s), 0);
	assert_int_equal(d.kept[0].writes, FS_COPIES);
	super_close(s);
	disks_look(&d, &s);
	assert_true(SB_INITIALIZED(s->sb) && s->members[0].m.is_freespace_initialized);
	assert_int_equal(le64_get(s->sb->flags[5]), 0x404);
	assert_int_equal(sb_journal_range_nr(s->members[0].sb), 1);
	super_close(s);
	disks_free(&d);
}

static void what_cannot_be_written_is_refused_by_name(void **state)
{
	static const struct {
		unsigned version;
		uint64_t features;
		const char *says;
	} cases[] = {
		{ 0x405, 0x7ba80, "1.5" },
		{ 0x404, 0x7ba90, "erasure" },
	};
	struct disks d;
	struct super *s;

	for (unsigned i = 0; i < ARRAY_NR(cases); i++) {
		fs_init(&d.fs, 1);
		d.fs.version = d.fs.version_min = cases[i].version;
		d.fs.features = cases[i].features;
		fs_write_sb(&d.fs);
		d.kept[0] = (struct kept){ .dev = *d.fs.dev[0], .below = d.fs.dev[0] };
		d.kept[0].dev.ops = &kept_ops;
		assert_int_equal(disks_open_with(&d, (struct super_open_opts){ .is_write = true }, 1, &s),
				 -KILN_E_UNSUPPORTED);
		assert_null(s);
		assert_non_null(strstr(reports.text, cases[i].says));
		/* Reading works. */
		char why[256];
		assert_int_equal(disks_open_with(&d,
						 (struct super_open_opts){ .is_write = true, .is_readonly_ok = true },
						 1, &s),
				 0);
		assert_true(super_write_unsupported(s, why) && strstr(why, cases[i].says));
		assert_null(s->write);
		super_close(s);
		disks_free(&d);
	}
}

/* What begins where a bucket does would not begin with a block, and what fills one would not end with one. */
static void buckets_that_are_no_whole_blocks_are_not_written(void **state)
{
	struct disks d;
	struct super *s;

	fs_init(&d.fs, 1);
	d.fs.bucket_sectors = FS_BUCKET_SECTORS + FS_BLOCK_SECTORS / 2;
	fs_write_sb(&d.fs);
	d.kept[0] = (struct kept){ .dev = *d.fs.dev[0], .below = d.fs.dev[0] };
	d.kept[0].dev.ops = &kept_ops;
	assert_int_equal(disks_open_with(&d, (struct super_open_opts){ .is_write = true }, 1, &s), -EROFS);
	assert_non_null(strstr(reports.text, "whole blocks"));
	assert_int_equal(disks_open_with(&d, (struct super_open_opts){ .is_write = false }, 1, &s), 0);
	super_close(s);
	disks_free(&d);
}

static void missing_members_need_degraded(void **state)
{
	static const uint8_t both[] = { 0, 1 };
	struct disks d;
	struct super *s;

	disks_init(&d, 2);
	disks_open(&d, &s);
	assert_int_equal(super_replicas_mark(s, 3, 1, both, 2), 0);
	super_close(s);
	assert_int_equal(disks_open_with(&d, (struct super_open_opts){ .is_write = true }, 1, &s), -ENODEV);
	assert_int_equal(
		disks_open_with(&d, (struct super_open_opts){ .is_write = true, .is_degraded_ok = true }, 1, &s), 0);
	assert_int_equal(super_mark_dirty(s), 0);
	super_close(s);

	/* The other one is behind, and taken in again. */
	disks_open(&d, &s);
	assert_int_equal(super_update(s), 0);
	assert_int_equal(le64_get(copy_read(&d, 1, 0)->seq), le64_get(s->sb->seq));
	super_close(s);
	disks_free(&d);
}

static void version_1_3_is_raised(void **state)
{
	struct disks d;
	struct super *s;

	fs_init(&d.fs, 1);
	d.fs.version = d.fs.version_min = 0x403;
	fs_write_sb(&d.fs);
	d.kept[0] = (struct kept){ .dev = *d.fs.dev[0], .below = d.fs.dev[0] };
	d.kept[0].dev.ops = &kept_ops;
	disks_open(&d, &s);
	assert_int_equal(super_mark_dirty(s), 0);
	assert_int_equal(sb_upgrade_complete(s->sb), 0x404); /* what fs_build.c says */
	assert_int_equal(super_mark_recovered(s), 0);
	super_close(s);
	disks_look(&d, &s);
	assert_int_equal(le16_get(s->sb->version), 0x404);
	assert_int_equal(le16_get(s->sb->version_min), 0x403);
	assert_int_equal(sb_upgrade_complete(s->sb), 0x404);
	super_close(s);
	disks_free(&d);
}

struct marker {
	struct super *s;
	unsigned first;
	int err;
};

/* What everybody looks at without lock. */
static void look_at_members(void *arg)
{
	struct marker *m = arg;

	for (unsigned i = 0; i < 1000 && !m->err; i++) {
		unsigned dev = i % 4, state = super_member_state(m->s, dev);

		if (!super_member_online(m->s, dev) || m->s->members[dev].m.bucket_sectors != m->first ||
		    (state != MEMBER_RW && state != MEMBER_RO))
			m->err = -EIO;
		task_yield();
	}
}

static void mark_many(void *arg)
{
	struct marker *m = arg;

	for (unsigned i = 0; i < 24 && !m->err; i++) {
		unsigned n = (m->first + i) % 12;
		uint8_t devs[] = { (uint8_t)(n % 3), 3 };

		m->err = super_replicas_mark(m->s, 2 + n / 3, 1, devs, 2);
		super_error_count(m->s, 100 + m->first);
	}
}

static void concurrent_marks_share_updates(void **state)
{
	struct disks d;
	struct super *s;
	struct task *tasks[5];
	struct marker markers[5];
	struct replicas_entry e;
	unsigned nr = 0;

	disks_init(&d, 4);
	disks_open(&d, &s);
	for (unsigned i = 0; i < 4; i++) {
		markers[i] = (struct marker){ s, i * 3, 0 };
		assert_int_equal(task_start(&tasks[i], "marker", mark_many, &markers[i]), 0);
	}
	markers[4] = (struct marker){ s, s->members[0].m.bucket_sectors, 0 };
	assert_int_equal(task_start(&tasks[4], "looker", look_at_members, &markers[4]), 0);
	assert_int_equal(super_member_flags_set(s, 2, MEMBER_FLAG_STATE_LO, MEMBER_FLAG_STATE_HI, MEMBER_RO), 0);
	assert_int_equal(super_member_flags_set(s, 2, MEMBER_FLAG_STATE_LO, MEMBER_FLAG_STATE_HI, MEMBER_RW), 0);
	for (unsigned i = 0; i < 5; i++) {
		task_join(tasks[i]);
		assert_int_equal(markers[i].err, 0);
	}
	assert_int_equal(d.kept[0].writes, (12 + 2) * FS_COPIES);
	assert_int_equal(super_update(s), 0);
	super_close(s);
	disks_look(&d, &s);
	for (struct replicas_walk w = sb_replicas_walk(s->sb); sb_replicas_next(&w, &e, NULL) > 0;)
		nr++;
	assert_int_equal(nr, 12);
	assert_int_equal(sb_error_nr(s->sb, SB_ERRORS), 4);
	super_close(s);
	disks_free(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(update_writes_all_copies_primary_first),
		cmocka_unit_test(clean_and_dirty_follow_each_other),
		cmocka_unit_test(replicas_choose_their_section),
		cmocka_unit_test(blacklist_ranges_that_touch_become_one),
		cmocka_unit_test(single_facts_are_kept),
		cmocka_unit_test(journal_buckets_are_validated),
		cmocka_unit_test(full_superblock_refuses_and_goes_on),
		cmocka_unit_test(failed_member_drops_out_and_the_rest_goes_on),
		cmocka_unit_test(nothing_new_is_only_on_failed_members),
		cmocka_unit_test(update_fails_for_good_when_too_little_was_written),
		cmocka_unit_test(failure_between_copies_leaves_a_whole_one),
		cmocka_unit_test(power_cuts_leave_the_old_or_the_new_state),
		cmocka_unit_test(power_cuts_leave_the_old_or_the_new_passphrase),
		cmocka_unit_test(foreign_write_stops_everything),
		cmocka_unit_test(a_primary_that_is_damaged_while_open_is_written_anew),
		cmocka_unit_test(damaged_primary_is_written_anew_but_a_different_one_is_not),
		cmocka_unit_test(copies_that_an_update_tore_are_made_whole_before_the_primary_is_written),
		cmocka_unit_test(copies_that_could_not_be_written_are_made_equal_before_the_primary_is_written),
		cmocka_unit_test(a_primary_that_cannot_be_read_is_written_though_others_are_older),
		cmocka_unit_test(the_seq_of_a_torn_update_is_not_used_again),
		cmocka_unit_test(nothing_is_written_before_initialisation),
		cmocka_unit_test(what_cannot_be_written_is_refused_by_name),
		cmocka_unit_test(buckets_that_are_no_whole_blocks_are_not_written),
		cmocka_unit_test(missing_members_need_degraded),
		cmocka_unit_test(version_1_3_is_raised),
		cmocka_unit_test(concurrent_marks_share_updates),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
