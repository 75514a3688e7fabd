/* Promises of journal_read.h, shown on journals written to memory devices. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../super/fs_build.h"
#include "base/clock.h"
#include "btree/btree.h"
#include "format/error_ids.h"
#include "journal/journal_read.h"

static struct reports reports;
static struct report_sink sink;

/* What a test opened, freed by done(). */
struct opened {
	struct super *s;
	struct journal_state *j;
};

static int open_and_read(struct fs *fs, struct journal_read_opts opts, struct opened *o)
{
	struct device *devices[FS_DEVS_MAX];
	struct super_open_opts super_opts = { .devices = devices, .is_very_degraded_ok = true };

	*o = (struct opened){ 0 };
	fs_write_sb(fs);
	for (unsigned i = 0; i < FS_DEVS_MAX; i++)
		if (fs->dev[i])
			devices[super_opts.device_nr++] = fs->dev[i];
	memset(fs->dev, 0, sizeof(fs->dev));
	sink = reports_sink(&reports);
	int err = super_open(NULL, 0, &super_opts, NULL, &sink, &o->s);
	return err ? err : journal_read(o->s, &opts, &o->j);
}

static void done(struct opened *o)
{
	journal_state_free(o->j);
	super_close(o->s);
}

/* --- short ways to write entries --- */

enum { FLUSH = 0, NOFLUSH = 1, BAD = 2 };

/* An entry with one key at offset 100 + seq and the root of btree 2, written by the entry. One 8-sector block each. */
static unsigned put(const struct fs *fs, unsigned dev, unsigned ring_idx, unsigned at, uint64_t seq, uint64_t last_seq,
		    unsigned flags)
{
	static struct subs subs;
	struct entry_spec e = {
		.seq = seq, .last_seq = last_seq, .is_noflush = flags & NOFLUSH, .is_bad = flags & BAD
	};

	subs.len = 0;
	subs_add_key(&subs, JSET_ENTRY_BTREE_KEYS, BTREE_SUBVOLUMES, 100 + seq);
	subs_add_root(&subs, BTREE_DIRENTS, 1, seq);
	subs_add_usage(&subs, 1, 0, 1000 + seq);
	return fs_write_entry(fs, dev, ring_idx, at, &e, &subs);
}

static unsigned put_subs(const struct fs *fs, unsigned at, uint64_t seq, uint64_t last_seq, const struct subs *subs)
{
	return fs_write_entry(fs, 0, 0, at, &(struct entry_spec){ .seq = seq, .last_seq = last_seq }, subs);
}

static uint64_t root_seq(const struct opened *o) { return le64_load(o->j->roots[BTREE_DIRENTS].value + 8); }

/* Offsets of the keys handed out, as text. */
static int collect_key(void *ctx, const struct journal_entry *e, uint32_t offset_words, unsigned btree_id,
		       unsigned level, const struct bkey_disk *key)
{
	char *text = ctx;
	size_t len = strlen(text);

	snprintf(text + len, 4096 - len, "%s%llu", len ? " " : "", (unsigned long long)bpos_load(&key->p).offset);
	return 0;
}

static const char *keys_of(const struct opened *o)
{
	static char text[4096];

	text[0] = 0;
	assert_int_equal(journal_for_each_key(o->j, collect_key, text), 0);
	return text;
}

static void assert_range(const struct opened *o, uint64_t last, uint64_t flushed, uint64_t highest)
{
	assert_int_equal(o->j->seq_last, last);
	assert_int_equal(o->j->seq_flushed, flushed);
	assert_int_equal(o->j->seq_highest, highest);
}

/* Entries from @start on, before @end. */
static void blacklist(struct fs *fs, uint64_t start, uint64_t end)
{
	fs->blacklist[0][0] = start;
	fs->blacklist[0][1] = end;
	fs->blacklist_nr = 1;
}

static void assert_missing(const struct opened *o, size_t i, uint64_t start, uint64_t end)
{
	assert_true(i < o->j->missing_nr);
	assert_int_equal(o->j->missing[i].start, start);
	assert_int_equal(o->j->missing[i].end, end);
}

/* --- choosing --- */

static void newest_flush_entry_ends_what_is_replayed(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH);
	at = put(&fs, 0, 0, at, 3, 0, NOFLUSH);
	put(&fs, 0, 0, at, 4, 2, FLUSH);
	at = put(&fs, 0, 1, 0, 5, 0, NOFLUSH);
	put(&fs, 0, 1, at, 6, 0, NOFLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 2, 4, 6);
	assert_int_equal(o.j->seq_next, 6 + 1 + 8);
	assert_false(o.j->was_clean);
	assert_int_equal(o.j->entry_nr, 3);
	assert_string_equal(keys_of(&o), "102 103 104");
	assert_int_equal(root_seq(&o), 4);
	assert_int_equal(o.j->roots[BTREE_DIRENTS].level, 1);
	assert_false(o.j->roots[BTREE_INODES].exists);
	assert_true(o.j->has_usage);
	assert_int_equal(o.j->nr_inodes, 1004);
	assert_int_equal(o.j->entries[0].locations[0].offset_sectors, 8);
	assert_string_equal(reports.text, "");
	done(&o);
}

static void torn_newest_entry_is_passed_over_in_silence(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH);
	put(&fs, 0, 0, at, 3, 3, FLUSH | BAD);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	/* and its last_seq prunes nothing */
	assert_range(&o, 1, 2, 3);
	assert_string_equal(keys_of(&o), "101 102");
	assert_string_equal(reports.text, "");
	done(&o);
}

static void several_damaged_entries_at_the_end_are_passed_and_reported(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH);
	at = put(&fs, 0, 0, at, 3, 3, FLUSH | BAD);
	at = put(&fs, 0, 0, at, 4, 4, FLUSH | BAD);
	put(&fs, 0, 0, at, 5, 5, FLUSH | BAD);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 1, 2, 5);
	assert_string_equal(keys_of(&o), "101 102");
	assert_int_equal(reports.ids[ERROR_journal_entries_missing], 1);
	assert_non_null(strstr(reports.text, "entries 3-5"));
	done(&o);
}

/* The power went, and then in the first entry after recovery: each left one. */
static void entries_torn_by_two_power_cuts_are_passed_over_in_silence(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	blacklist(&fs, 3, 12);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH);
	at = put(&fs, 0, 0, at, 3, 3, FLUSH | BAD);
	put(&fs, 0, 0, at, 12, 1, FLUSH | BAD);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 1, 2, 12);
	assert_string_equal(keys_of(&o), "101 102");
	assert_string_equal(reports.text, "");
	done(&o);
}

static void damaged_middle_entry_is_missing(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH | BAD);
	put(&fs, 0, 0, at, 3, 1, FLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 1, 3, 3);
	assert_int_equal(o.j->missing_nr, 1);
	assert_missing(&o, 0, 2, 3);
	assert_string_equal(keys_of(&o), "101 103");
	done(&o);
}

static void holes_are_reported_once_per_run(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	unsigned at = put(&fs, 0, 0, 0, 3, 1, FLUSH);
	put(&fs, 0, 0, at, 7, 1, FLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_int_equal(o.j->missing_nr, 2);
	assert_missing(&o, 0, 1, 3);
	assert_missing(&o, 1, 4, 7);
	assert_int_equal(reports.ids[ERROR_journal_entries_missing], 2);
	assert_non_null(strstr(reports.text, "entries 4-6"));
	done(&o);
}

static void blacklisted_entries_are_neither_replayed_nor_missed(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	blacklist(&fs, 3, 12);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH);
	at = put(&fs, 0, 0, at, 3, 1, FLUSH); /* torn at the time, and dropped */
	at = put(&fs, 0, 0, at, 12, 1, FLUSH);
	put(&fs, 0, 0, at, 13, 1, FLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 1, 13, 13);
	assert_int_equal(o.j->missing_nr, 0);
	assert_string_equal(keys_of(&o), "101 102 112 113");
	assert_true(journal_seq_is_blacklisted(o.j, 3) && journal_seq_is_blacklisted(o.j, 11));
	assert_false(journal_seq_is_blacklisted(o.j, 2) || journal_seq_is_blacklisted(o.j, 12));
	done(&o);
}

static void blacklisted_flush_entry_is_no_end(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	blacklist(&fs, 3, 11);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH);
	put(&fs, 0, 0, at, 3, 1, FLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 1, 2, 3);
	assert_int_equal(reports.ids[ERROR_jset_seq_blacklisted], 1);
	done(&o);
}

static void last_seq_above_seq_counts_as_seq(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	put(&fs, 0, 0, at, 2, 9, FLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 2, 2, 2);
	assert_int_equal(reports.ids[ERROR_jset_last_seq_newer_than_seq], 1);
	done(&o);
}

/* --- scanning --- */

static void entries_of_an_earlier_lap_are_left_alone(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	/* lap 1 wrote 1-3 and 4-6; lap 2 overwrites the beginning of the first bucket */
	unsigned at = put(&fs, 0, 0, 0, 7, 6, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH);
	put(&fs, 0, 0, at, 3, 1, FLUSH);
	at = put(&fs, 0, 1, 0, 4, 4, FLUSH);
	at = put(&fs, 0, 1, at, 5, 5, FLUSH);
	put(&fs, 0, 1, at, 6, 6, FLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ .read_all = true }, &o), 0);
	assert_range(&o, 6, 7, 7);
	assert_int_equal(o.j->entry_nr, 4);
	assert_string_equal(keys_of(&o), "106 107");
	done(&o);
}

static void destroyed_header_does_not_hide_what_follows(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH);
	put(&fs, 0, 0, at, 3, 1, FLUSH);
	fs_zero_sectors(fs.dev[0], FS_JOURNAL_BUCKET * FS_BUCKET_SECTORS, 8);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 1, 3, 3);
	assert_int_equal(o.j->missing_nr, 1);
	assert_missing(&o, 0, 1, 2);
	assert_string_equal(keys_of(&o), "102 103");
	done(&o);
}

static void absurd_seq_is_no_seq(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH);
	put(&fs, 0, 0, at, 1ull << 60, 1, FLUSH | BAD);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 1, 2, 2);
	assert_non_null(strstr(reports.text, "seq 1152921504606846976"));
	done(&o);
}

static void devices_are_merged_by_seq(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 2);
	for (unsigned seq = 1, at = 0; seq <= 7; seq += 2)
		at = put(&fs, 0, 0, at, seq, 1, FLUSH);
	for (unsigned seq = 2, at = 0; seq <= 6; seq += 2)
		at = put(&fs, 1, 3, at, seq, 1, FLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 1, 7, 7);
	assert_string_equal(keys_of(&o), "101 102 103 104 105 106 107");
	assert_int_equal(o.j->entries[1].locations[0].dev, 1);
	assert_int_equal(o.j->entries[1].locations[0].ring_idx, 3);
	assert_int_equal(o.j->entries[1].locations[0].bucket, FS_JOURNAL_BUCKET + 3);
	done(&o);
}

static void good_copy_serves_for_a_damaged_one(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 2);
	for (unsigned dev = 0; dev < 2; dev++) {
		unsigned at = put(&fs, dev, 0, 0, 1, 1, dev == 0 ? BAD : 0);
		put(&fs, dev, 0, at, 2, 1, dev == 1 ? BAD : 0);
	}
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 1, 2, 2);
	assert_int_equal(o.j->missing_nr, 0);
	assert_string_equal(keys_of(&o), "101 102");
	assert_int_equal(o.j->entries[0].location_nr, 2);
	assert_int_equal(reports.levels[REPORT_RECOVERED], 2);
	assert_int_equal(reports.levels[REPORT_DAMAGE], 0);
	done(&o);
}

static void different_good_copies_are_reported_and_the_first_used(void **state)
{
	static struct subs subs;
	struct fs fs;
	struct opened o;

	fs_init(&fs, 2);
	put(&fs, 0, 0, 0, 1, 1, FLUSH);
	subs.len = 0;
	subs_add_key(&subs, JSET_ENTRY_BTREE_KEYS, BTREE_SUBVOLUMES, 555);
	fs_write_entry(&fs, 1, 0, 0, &(struct entry_spec){ .seq = 1, .last_seq = 1 }, &subs);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_string_equal(keys_of(&o), "101");
	assert_int_equal(reports.ids[ERROR_journal_entry_replicas_data_mismatch], 1);
	done(&o);
}

static void unreadable_sectors_cost_only_what_stands_there(void **state)
{
	struct fs fs;
	struct opened o;
	uint64_t bucket = (uint64_t)FS_JOURNAL_BUCKET * FS_BUCKET_SECTORS * 512;
	struct device_fault fault = { .kind = FAULT_ERROR,
				      .op = DEVICE_READ,
				      .begin_bytes = bucket + 4096,
				      .end_bytes = bucket + 8192,
				      .per_million = 1000000,
				      .err = -EIO,
				      .remaining = UINT64_MAX };
	struct device *broken;

	fs_init(&fs, 1);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH);
	put(&fs, 0, 0, at, 3, 1, FLUSH);
	assert_int_equal(device_wrap_fault(fs.dev[0], 1, &broken), 0);
	fs.dev[0] = broken;
	assert_int_equal(device_fault_add(broken, &fault), 0);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_string_equal(keys_of(&o), "101 103");
	assert_missing(&o, 0, 2, 3);
	assert_non_null(strstr(reports.text, "bucket 20"));
	done(&o);
}

static void everything_found_is_indexed_when_asked_for(void **state)
{
	struct fs fs;
	struct opened o;
	static const bool ignored[] = { true, false, false, true, true };

	fs_init(&fs, 1);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 2, 1, FLUSH);
	at = put(&fs, 0, 0, at, 3, 2, FLUSH);
	at = put(&fs, 0, 0, at, 4, 0, NOFLUSH);
	put(&fs, 0, 0, at, 5, 4, FLUSH | BAD);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ .read_all = true }, &o), 0);
	assert_int_equal(o.j->entry_nr, ARRAY_NR(ignored));
	for (size_t i = 0; i < o.j->entry_nr; i++) {
		assert_int_equal(o.j->entries[i].seq, i + 1);
		assert_int_equal(o.j->entries[i].is_ignored, ignored[i]);
	}
	assert_false(o.j->entries[4].is_csum_good);
	assert_string_equal(keys_of(&o), "102 103");
	done(&o);
}

static void memory_bound_of_the_index_is_kept(void **state)
{
	struct fs fs;
	struct opened o;

	for (unsigned bound = 0; bound < 2; bound++) {
		fs_init(&fs, 1);
		unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
		put(&fs, 0, 0, at, 2, 1, FLUSH);
		struct journal_read_opts opts = { .memory_max_bytes = bound ? 100 : 4096 };
		assert_int_equal(open_and_read(&fs, opts, &o), bound ? -ENOMEM : 0);
		done(&o);
	}
}

/* --- entries that go bad between the first reading and the second --- */

static struct device_fault range_fault(enum device_fault_kind kind, uint64_t begin, uint64_t end)
{
	return (struct device_fault){ .kind = kind,
				      .op = DEVICE_READ,
				      .begin_bytes = begin,
				      .end_bytes = end,
				      .per_million = 1000000,
				      .err = kind == FAULT_ERROR ? -EIO : 0,
				      .remaining = UINT64_MAX };
}

/* Entries 1 to 3, one block each; after they were read and taken over, the second goes bad in the way of @kind. */
static void second_entry_goes_bad(enum device_fault_kind kind, bool has_copy)
{
	const uint64_t begin = (uint64_t)FS_JOURNAL_BUCKET * FS_BUCKET_SECTORS * 512;
	struct device_fault fault = range_fault(kind, begin + 4096, begin + 4096 + 100);
	struct device *broken;
	struct fs fs;
	struct opened o;

	fs_init(&fs, 2);
	for (unsigned dev = 0; dev <= has_copy; dev++)
		for (unsigned seq = 1, at = 0; seq <= 3; seq++)
			at = put(&fs, dev, 0, at, seq, 1, FLUSH);
	assert_int_equal(device_wrap_fault(fs.dev[0], 1, &broken), 0);
	fs.dev[0] = broken;
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_string_equal(keys_of(&o), "101 102 103");
	assert_int_equal(o.j->missing_nr, 0);
	assert_int_equal(reports.levels[REPORT_DAMAGE], 0);

	assert_int_equal(device_fault_add(broken, &fault), 0);
	for (unsigned again = 0; again < 2; again++) { /* reported once */
		assert_string_equal(keys_of(&o), has_copy ? "101 102 103" : "101 103");
		assert_int_equal(reports.levels[REPORT_DAMAGE], !has_copy);
		assert_int_equal(reports.levels[REPORT_RECOVERED], has_copy);
		assert_int_equal(reports.ids[ERROR_journal_entries_missing], !has_copy);
		assert_int_equal(o.j->missing_nr, !has_copy);
		if (!has_copy)
			assert_missing(&o, 0, 2, 3);
		assert_int_equal(o.j->entries[1].is_csum_good, has_copy);
		assert_int_equal(o.j->entries[1].is_ignored, !has_copy);
	}
	assert_non_null(strstr(reports.text, "entry 2"));
	done(&o);
}

static void entry_that_cannot_be_read_again_is_reported_and_missing(void **state)
{
	second_entry_goes_bad(FAULT_ERROR, false);
	second_entry_goes_bad(FAULT_SHORT_READ, false);
}

static void entry_that_reads_differently_the_second_time_is_reported_and_missing(void **state)
{
	second_entry_goes_bad(FAULT_BITFLIP, false);
}

static void another_copy_serves_for_one_that_has_gone_bad(void **state)
{
	second_entry_goes_bad(FAULT_ERROR, true);
	second_entry_goes_bad(FAULT_BITFLIP, true);
}

/* Entry 2 goes bad before the roots are taken from it: the scan reads the bucket, and the next read of it fails. */
static void entry_lost_right_after_the_scan_is_a_hole(void **state)
{
	const uint64_t begin = (uint64_t)FS_JOURNAL_BUCKET * FS_BUCKET_SECTORS * 512;
	struct device_fault pass = range_fault(FAULT_LATENCY, begin + 8192, begin + 12288);
	struct device_fault fault = range_fault(FAULT_ERROR, begin + 8192, begin + 12288);
	struct device *broken;
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	unsigned at = put(&fs, 0, 0, 0, 1, 1, FLUSH);
	at = put(&fs, 0, 0, at, 3, 1, FLUSH);
	put(&fs, 0, 0, at, 5, 1, FLUSH);
	pass.remaining = 1; /* the first rule that matches is the one that applies */
	assert_int_equal(device_wrap_fault(fs.dev[0], 1, &broken), 0);
	fs.dev[0] = broken;
	assert_int_equal(device_fault_add(broken, &pass), 0);
	assert_int_equal(device_fault_add(broken, &fault), 0);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 1, 5, 5);
	assert_int_equal(root_seq(&o), 3);
	assert_string_equal(keys_of(&o), "101 103");
	assert_int_equal(o.j->missing_nr, 3);
	assert_missing(&o, 0, 2, 3);
	assert_missing(&o, 1, 4, 5);
	assert_missing(&o, 2, 5, 6);
	assert_int_equal(reports.ids[ERROR_journal_entries_missing], 3);
	done(&o);
}

/* --- no flush entry --- */

static void make_clean_section(struct fs *fs, struct subs *subs, uint64_t seq, uint64_t node_seq)
{
	subs->len = 0;
	subs_add_usage(subs, 1, 0, 77);
	subs_add_root(subs, BTREE_DIRENTS, 1, node_seq);
	subs_add_root(subs, BTREE_INODES, 0, node_seq);
	fs->clean = subs->bytes;
	fs->clean_bytes = subs->len;
	fs->clean_seq = seq;
}

static void without_flush_entry_the_old_clean_section_and_what_follows_serve(void **state)
{
	static struct subs clean;
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	make_clean_section(&fs, &clean, 6, 600);
	unsigned at = put(&fs, 0, 0, 0, 6, 6, FLUSH | BAD);
	for (unsigned seq = 7; seq <= 9; seq++)
		at = put(&fs, 0, 0, at, seq, 0, NOFLUSH);
	put(&fs, 0, 0, at, 11, 0, NOFLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_true(o.j->is_from_stale_clean);
	assert_false(o.j->was_clean);
	assert_range(&o, 7, 9, 11);
	assert_string_equal(keys_of(&o), "107 108 109");
	assert_int_equal(root_seq(&o), 9);
	assert_true(o.j->roots[BTREE_INODES].exists);
	assert_int_equal(reports.ids[ERROR_dirty_but_no_journal_entries], 1);
	assert_int_equal(reports.ids[ERROR_dirty_but_no_journal_entries_post_drop_nonflushes], 1);
	done(&o);
}

static void without_good_entries_the_old_clean_section_serves_alone(void **state)
{
	static struct subs clean;
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	make_clean_section(&fs, &clean, 6, 600);
	put(&fs, 0, 0, 0, 7, 7, FLUSH | BAD);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_true(o.j->is_from_stale_clean);
	assert_int_equal(root_seq(&o), 600);
	assert_int_equal(o.j->entry_nr, 0);
	assert_int_equal(o.j->seq_flushed, 6);
	assert_int_equal(o.j->seq_next, 7 + 1 + 8);
	done(&o);
}

static void without_a_link_to_the_clean_section_the_newest_run_serves(void **state)
{
	static struct subs clean;
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	make_clean_section(&fs, &clean, 6, 600);
	unsigned at = put(&fs, 0, 0, 0, 8, 0, NOFLUSH);
	at = put(&fs, 0, 0, at, 10, 0, NOFLUSH);
	put(&fs, 0, 0, at, 11, 0, NOFLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_false(o.j->is_from_stale_clean);
	assert_range(&o, 10, 11, 11);
	assert_string_equal(keys_of(&o), "110 111");
	assert_int_equal(root_seq(&o), 11);
	done(&o);
}

static void without_any_journal_a_dirty_filesystem_is_refused(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), -KILN_E_INVALID);
	assert_int_equal(reports.levels[REPORT_FATAL], 1);
	done(&o);
}

/* --- clean --- */

static void clean_filesystem_needs_no_journal(void **state)
{
	static struct subs clean;
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	fs.is_clean = true;
	fs.features = 0x78a80;
	make_clean_section(&fs, &clean, 6, 600);
	put(&fs, 0, 0, 0, 9, 9, FLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_true(o.j->was_clean);
	assert_range(&o, 6, 6, 6);
	assert_int_equal(o.j->seq_next, 7);
	assert_int_equal(o.j->entry_nr, 0);
	assert_int_equal(root_seq(&o), 600);
	assert_int_equal(o.j->nr_inodes, 77);
	assert_string_equal(reports.text, "");
	done(&o);
}

/* A clean filesystem at seq 6 whose journal is read too: @newest is the entry behind 5; what must be reported. */
static void read_clean_with_journal(uint64_t seq, bool has_key, uint64_t node_seq, unsigned flags, struct opened *o)
{
	static struct subs clean, entry;
	struct fs fs;

	fs_init(&fs, 1);
	fs.is_clean = true;
	make_clean_section(&fs, &clean, 6, 600);
	unsigned at = put(&fs, 0, 0, 0, 5, 5, FLUSH);
	make_clean_section(&fs, &entry, 6, node_seq);
	fs.clean = clean.bytes;
	if (has_key)
		subs_add_key(&entry, JSET_ENTRY_BTREE_KEYS, BTREE_SUBVOLUMES, 100 + seq);
	if (seq)
		fs_write_entry(&fs, 0, 0, at,
			       &(struct entry_spec){ .seq = seq, .last_seq = seq, .is_bad = flags & BAD }, &entry);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ .read_all = true }, o), 0);
}

static void clean_section_and_its_entry_agree(void **state)
{
	struct opened o;

	read_clean_with_journal(6, false, 600, 0, &o);
	assert_true(o.j->was_clean);
	assert_int_equal(o.j->entry_nr, 2);
	assert_string_equal(keys_of(&o), "");
	assert_string_equal(reports.text, "");
	done(&o);
}

static void clean_section_newer_than_the_journal_is_kept(void **state)
{
	struct opened o;

	for (unsigned damaged = 0; damaged < 2; damaged++) {
		read_clean_with_journal(damaged ? 6 : 0, false, 600, BAD, &o);
		assert_true(o.j->was_clean);
		assert_int_equal(root_seq(&o), 600);
		assert_int_equal(o.j->seq_next, 7);
		assert_string_equal(keys_of(&o), "");
		assert_int_equal(reports.levels[REPORT_RECOVERED], 1);
		assert_int_equal(reports.levels[REPORT_DAMAGE], 0);
		done(&o);
	}
}

static void journal_with_keys_after_a_clean_shutdown_is_replayed(void **state)
{
	struct opened o;

	read_clean_with_journal(7, true, 700, 0, &o);
	assert_false(o.j->was_clean);
	assert_int_equal(root_seq(&o), 700);
	assert_string_equal(keys_of(&o), "107");
	assert_int_equal(reports.ids[ERROR_clean_but_journal_not_empty], 1);
	done(&o);
}

static void empty_entry_newer_than_the_clean_section_wins(void **state)
{
	struct opened o;

	read_clean_with_journal(7, false, 700, 0, &o);
	assert_false(o.j->was_clean);
	assert_int_equal(root_seq(&o), 700);
	assert_int_equal(reports.ids[ERROR_sb_clean_journal_seq_mismatch], 1);
	done(&o);
}

static void empty_entry_after_the_clean_section_changes_nothing_while_roots_agree(void **state)
{
	struct opened o;

	read_clean_with_journal(7, false, 600, 0, &o);
	assert_true(o.j->was_clean);
	assert_int_equal(root_seq(&o), 600);
	assert_int_equal(o.j->seq_next, 8);
	assert_int_equal(reports.levels[REPORT_INFO], 1);
	assert_int_equal(reports.levels[REPORT_DAMAGE], 0);
	done(&o);
}

static void differing_root_of_the_journal_wins(void **state)
{
	struct opened o;

	read_clean_with_journal(6, false, 601, 0, &o);
	assert_true(o.j->was_clean);
	assert_int_equal(root_seq(&o), 601);
	assert_int_equal(reports.ids[ERROR_sb_clean_btree_root_mismatch], 2);
	done(&o);
}

static void missing_clean_section_means_unclean(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	fs.is_clean = true;
	put(&fs, 0, 0, 0, 1, 1, FLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_false(o.j->was_clean);
	assert_int_equal(root_seq(&o), 1);
	assert_int_equal(reports.ids[ERROR_sb_clean_missing], 1);
	done(&o);
}

/* --- refusals --- */

static void what_cannot_be_trusted_is_refused(void **state)
{
	static const struct {
		const char *what;
		uint64_t features;
		bool is_initialized;
		unsigned version;
	} cases[] = {
		{ "no new_extent_overwrite", 0x7ba80 & ~0x200, true, 0 },
		{ "dirty without extents_above_btree_updates", 0x7ba80 & ~0x1000, true, 0 },
		{ "not initialised", 0x7ba80, false, 0 },
		{ "entry older than 1.0", 0x7ba80, true, 0x1d },
		{ "entry of major version 2", 0x7ba80, true, 0x800 },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct fs fs;
		struct opened o;

		fs_init(&fs, 1);
		fs.features = cases[i].features;
		fs.is_initialized = cases[i].is_initialized;
		fs_write_entry(&fs, 0, 0, 0,
			       &(struct entry_spec){ .seq = 1, .last_seq = 1, .version = cases[i].version }, NULL);
		int err = open_and_read(&fs, (struct journal_read_opts){ 0 }, &o);
		if (err != -KILN_E_UNSUPPORTED || !reports.levels[REPORT_FATAL])
			fail_msg("%s: %d", cases[i].what, err);
		done(&o);
	}
}

static void encrypted_entries_need_the_key_and_are_decrypted(void **state)
{
	static struct subs subs;
	struct crypt_key key = { .bytes = { 0x42 } };
	uint8_t crypt[56] = { 0 };

	memcpy(crypt + 16, "bch**key", 8);
	for (unsigned locked = 0; locked < 2; locked++) {
		struct fs fs;
		struct opened o;

		crypt[24] = 0x42;
		crypt[16] = locked ? 'x' : 'b'; /* anything but the magic: a sealed key */
		fs_init(&fs, 1);
		fs.crypt = crypt;
		fs.encryption_type = 1;
		subs.len = 0;
		subs_add_key(&subs, JSET_ENTRY_BTREE_KEYS, BTREE_SUBVOLUMES, 555);
		fs_write_entry(&fs, 0, 0, 0, &(struct entry_spec){ .seq = 5, .last_seq = 5, .key = &key }, &subs);
		assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o),
				 locked ? -KILN_E_NEED_PASSPHRASE : 0);
		if (!locked)
			assert_string_equal(keys_of(&o), "555");
		done(&o);
	}
}

/* --- contents --- */

static void invalid_keys_are_reported_and_left_out(void **state)
{
	static struct subs subs;
	struct bkey_disk bad = { .u64s = BKEY_U64S, .format = BKEY_FORMAT_PACKED, .type = KEY_SET };
	struct bkey_disk sized = {
		.u64s = BKEY_U64S, .format = BKEY_FORMAT_UNPACKED, .type = KEY_SET, .size = le32_of(8)
	};
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	subs.len = 0;
	subs_add(&subs, JSET_ENTRY_BTREE_KEYS, BTREE_SUBVOLUMES, 0, &bad, sizeof(bad));
	subs_add(&subs, JSET_ENTRY_BTREE_KEYS, BTREE_LRU, 0, &sized, sizeof(sized));
	subs_add(&subs, JSET_ENTRY_BTREE_KEYS, BTREE_SUBVOLUMES, 200, &bad, sizeof(bad)); /* no such level */
	subs_add_key(&subs, JSET_ENTRY_OVERWRITE, BTREE_SUBVOLUMES, 1);
	subs_add_key(&subs, JSET_ENTRY_WRITE_BUFFER_KEYS, BTREE_SUBVOLUMES, 2);
	subs_add_key(&subs, JSET_ENTRY_LOG_BKEY, BTREE_SUBVOLUMES, 3);
	subs_add_key(&subs, JSET_ENTRY_BTREE_KEYS, BTREE_SUBVOLUMES, 4);
	put_subs(&fs, 0, 1, 1, &subs);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	reports_clear(&reports);
	assert_string_equal(keys_of(&o), "4");
	assert_int_equal(reports.ids[ERROR_journal_entry_bkey_bad_format], 1);
	assert_int_equal(reports.ids[ERROR_journal_entry_bkey_invalid], 1);
	done(&o);
}

static void unusable_root_is_damaged_not_absent(void **state)
{
	static struct subs subs;
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	subs.len = 0;
	subs_add(&subs, JSET_ENTRY_BTREE_ROOT, BTREE_DIRENTS, 0, NULL, 0);
	subs_add_key(&subs, JSET_ENTRY_BTREE_ROOT, BTREE_INODES, 1); /* not a node pointer */
	subs_add(&subs, JSET_ENTRY_BTREE_ROOT, 200, 0, NULL, 0);     /* no possible btree */
	put_subs(&fs, 0, 1, 1, &subs);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_true(o.j->roots[BTREE_DIRENTS].exists && o.j->roots[BTREE_DIRENTS].is_damaged);
	assert_true(o.j->roots[BTREE_INODES].exists && o.j->roots[BTREE_INODES].is_damaged);
	assert_int_equal(reports.levels[REPORT_DAMAGE], 2);
	done(&o);
}

static void damaged_sub_entries_cost_only_themselves(void **state)
{
	static struct subs subs;
	uint8_t clock[16] = { 7 };
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	subs.len = 0;
	subs_add(&subs, JSET_ENTRY_USAGE, 1, 0, NULL, 0);
	subs_add(&subs, JSET_ENTRY_CLOCK, 0, 0, clock, sizeof(clock));
	subs_add(&subs, 200, 0, 0, clock, sizeof(clock));
	clock[0] = 1;
	clock[8] = 9;
	subs_add(&subs, JSET_ENTRY_CLOCK, 0, 0, clock, sizeof(clock));
	subs_add_usage(&subs, 0, 2, 55);
	subs_add_usage(&subs, 0, 9, 66);
	subs_add_usage(&subs, 2, 0, 44);
	subs_add_root(&subs, BTREE_DIRENTS, 0, 5);
	subs_add(&subs, JSET_ENTRY_LOG, 0, 0, clock, 8);
	le16_store(subs.bytes + subs.len - 16, 500); /* past the end */
	put_subs(&fs, 0, 1, 1, &subs);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_int_equal(o.j->io_clock[1], 9);
	assert_int_equal(o.j->reserved[2], 55);
	assert_int_equal(o.j->key_version, 44);
	assert_int_equal(root_seq(&o), 5);
	assert_false(o.j->has_usage);
	assert_int_equal(reports.ids[ERROR_journal_entry_usage_bad_size], 1);
	assert_int_equal(reports.ids[ERROR_journal_entry_clock_bad_rw], 1);
	assert_int_equal(reports.ids[ERROR_journal_entry_past_jset_end], 1);
	done(&o);
}

static void legacy_blacklist_entries_extend_the_list_in_order(void **state)
{
	static struct subs subs;
	uint8_t range[16] = { 0 };

	for (unsigned out_of_order = 0; out_of_order < 2; out_of_order++) {
		struct fs fs;
		struct opened o;

		fs_init(&fs, 1);
		blacklist(&fs, 30, 40);
		le64_store(range, out_of_order ? 20 : 50);
		le64_store(range + 8, 59);
		subs.len = 0;
		subs_add(&subs, JSET_ENTRY_BLACKLIST_V2, 0, 0, range, 16);
		put_subs(&fs, 0, 1, 1, &subs);
		assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o),
				 out_of_order ? -KILN_E_UNSUPPORTED : 0);
		if (!out_of_order)
			assert_true(journal_seq_is_blacklisted(o.j, 59) && !journal_seq_is_blacklisted(o.j, 60));
		done(&o);
	}
}

static void counters_of_newer_formats_are_not_taken_from_usage(void **state)
{
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	fs.version = 0x427;
	fs.flags_xor[5] = 0x404 ^ 0x427; /* upgrade complete: 1.39 */
	put(&fs, 0, 0, 0, 1, 1, FLUSH);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_false(o.j->has_usage);
	done(&o);
}

/* --- unfinished rewind --- */

/* An entry that overwrites the key at @offset (old: deleted if @is_new) and adds one to the lru btree. */
static unsigned put_overwriting(const struct fs *fs, unsigned at, uint64_t seq, uint64_t last_seq, bool has_overwrites,
				const uint64_t rewind[2])
{
	static struct subs subs;
	uint8_t payload[16];

	subs.len = 0;
	subs_add_key(&subs, JSET_ENTRY_OVERWRITE, BTREE_SUBVOLUMES, 1000 + seq);
	subs_add_key(&subs, JSET_ENTRY_BTREE_KEYS, BTREE_SUBVOLUMES, 2000 + seq);
	subs_add_key(&subs, JSET_ENTRY_BTREE_KEYS, BTREE_LRU, 3000 + seq);
	if (rewind) {
		le64_store(payload, rewind[0]);
		le64_store(payload + 8, rewind[1]);
		subs_add(&subs, JSET_ENTRY_REWIND, 0, 0, payload, 16);
	}
	struct entry_spec e = { .seq = seq, .last_seq = last_seq, .has_overwrites = has_overwrites };
	return fs_write_entry(fs, 0, 0, at, &e, &subs);
}

static int oldest_overwrite_orders_last(void *ctx, const struct journal_entry *e, uint32_t offset_words,
					unsigned btree_id, unsigned level, const struct bkey_disk *key)
{
	uint64_t *order = ctx, offset = bpos_load(&key->p).offset;

	if (offset >= 1000 && offset < 2000)
		order[offset - 1000] = e->seq;
	return 0;
}

static void unfinished_rewind_undoes_its_entries(void **state)
{
	static const uint64_t rewind[2] = { 4, 2 }; /* undo 3 and 4 */
	uint64_t order[8] = { 0 };
	struct fs fs;
	struct opened o;

	fs_init(&fs, 1);
	unsigned at = 0;
	for (unsigned seq = 1; seq <= 4; seq++)
		at = put_overwriting(&fs, at, seq, 1, true, NULL);
	put_overwriting(&fs, at, 5, 4, true, rewind); /* 3 is older than what is replayed */
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_range(&o, 4, 5, 5);
	assert_string_equal(keys_of(&o), "1003 3004 1004 2005 3005");
	assert_int_equal(journal_for_each_key(o.j, oldest_overwrite_orders_last, order), 0);
	assert_true(order[3] > order[4] && order[4] > 1ull << 40);
	done(&o);
}

static void rewind_without_old_values_is_refused(void **state)
{
	static const uint64_t rewind[2] = { 4, 2 };

	for (unsigned is_missing = 0; is_missing < 2; is_missing++) {
		struct fs fs;
		struct opened o;

		fs_init(&fs, 1);
		unsigned at = put_overwriting(&fs, 0, 1, 1, true, NULL);
		if (!is_missing)
			at = put_overwriting(&fs, at, 3, 1, false, NULL);
		at = put_overwriting(&fs, at, 4, 1, true, NULL);
		put_overwriting(&fs, at, 5, 4, true, rewind);
		assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), -KILN_E_UNSUPPORTED);
		done(&o);
	}
}

static uint64_t test_seed(void)
{
	const char *env = getenv("KILN_TEST_SEED");

	return env ? strtoull(env, NULL, 0) : random_u64();
}

/* --- keys laid over btrees --- */

static int lay_over(void *ctx, const struct journal_entry *e, uint32_t offset_words, unsigned btree_id, unsigned level,
		    const struct bkey_disk *key)
{
	return overlay_builder_add(ctx, btree_id, level, e->seq, offset_words, key);
}

enum { REPEATED_POSITIONS = 700, REPEATED_ENTRIES = 24 };

static void add_repeated_key(struct subs *subs, bool is_set, uint64_t offset)
{
	struct bkey k = { .p = BPOS(0, offset, 0), .type = is_set ? KEY_SET : KEY_DELETED };
	struct bkey_disk key;

	bkey_store(&key, &k);
	subs_add(subs, JSET_ENTRY_BTREE_KEYS, BTREE_SUBVOLUMES, 0, &key, sizeof(key));
}

/* Every entry sets or deletes every position; @is_set is what the last one says. */
static void put_repeated_keys(const struct fs *fs, struct rng *rng, bool is_set[REPEATED_POSITIONS])
{
	static struct subs subs;

	for (unsigned i = 0, at = 0; i < REPEATED_ENTRIES; i++) {
		struct entry_spec e = { .seq = i + 1, .last_seq = 1 };

		subs.len = 0;
		for (unsigned p = 0; p < REPEATED_POSITIONS; p++) {
			is_set[p] = rng_below(rng, 2);
			add_repeated_key(&subs, is_set[p], p + 1);
		}
		subs_add_root(&subs, BTREE_DIRENTS, 0, 1);
		at = i % 3 ? at : 0;
		at = fs_write_entry(fs, 0, i / 3, at, &e, &subs);
	}
}

static void keys_repeated_in_many_entries_take_the_room_of_one_each(void **state)
{
	uint64_t seed = test_seed();
	bool is_set[REPEATED_POSITIONS];
	struct overlay_usage usage;
	struct btree_iter it;
	struct btrees *trees;
	struct opened o;
	struct bkey_ref k;
	struct rng rng;
	struct fs fs;

	print_message("KILN_TEST_SEED=%llu\n", (unsigned long long)seed);
	rng_init(&rng, seed);
	fs_init(&fs, 1);
	put_repeated_keys(&fs, &rng, is_set);
	assert_int_equal(open_and_read(&fs, (struct journal_read_opts){ 0 }, &o), 0);
	assert_int_equal(o.j->entry_nr, REPEATED_ENTRIES);

	struct overlay_builder *builder = overlay_builder_new(false);
	assert_int_equal(journal_for_each_key(o.j, lay_over, builder), 0);
	overlay_builder_usage(builder, &usage);
	assert_true(REPEATED_ENTRIES * REPEATED_POSITIONS > 2 * OVERLAY_KEYS_MIN);
	assert_true(usage.keys_max <= max((size_t)2 * REPEATED_POSITIONS, (size_t)OVERLAY_KEYS_MIN));

	struct btrees_opts opts = { .memory_bytes = 64 << 20, .kctx = &o.s->kctx, .reports = &sink };
	assert_int_equal(btrees_open(&opts, &trees), 0);
	assert_int_equal(btrees_set_overlay(trees, builder), 0);
	btree_iter_open(&it, trees, BTREE_SUBVOLUMES, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (unsigned p = 0; p < REPEATED_POSITIONS; p++) {
		if (!is_set[p])
			continue;
		assert_int_equal(btree_iter_peek(&it, &k), 1);
		assert_int_equal(k.k.p.offset, p + 1);
		btree_iter_advance(&it);
	}
	assert_int_equal(btree_iter_peek(&it, &k), 0);
	btree_iter_close(&it);
	btrees_close(trees);
	done(&o);
}

/* --- anything at all --- */

static int touch_key(void *ctx, const struct journal_entry *e, uint32_t offset_words, unsigned btree_id, unsigned level,
		     const struct bkey_disk *key)
{
	*(uint64_t *)ctx += bkey_load(key).p.offset + btree_id + level;
	return 0;
}

/* Entries whose checksum is none, so that damaged ones are good as far as anybody can tell. */
static void damage_anywhere_is_survived(void **state)
{
	uint64_t seed = test_seed(), sum = 0;
	struct rng rng;

	print_message("KILN_TEST_SEED=%llu\n", (unsigned long long)seed);
	rng_init(&rng, seed);
	for (unsigned round = 0; round < 200; round++) {
		static uint8_t area[64 * 1024] __attribute__((aligned(4096)));
		uint64_t start = (uint64_t)FS_JOURNAL_BUCKET * FS_BUCKET_SECTORS * 512;
		struct fs fs;
		struct opened o;
		unsigned at = 0;

		fs_init(&fs, 1);
		for (unsigned seq = 1; seq <= 8; seq++)
			at = put(&fs, 0, 0, at, seq, 1, rng_below(&rng, 2) ? NOFLUSH : FLUSH);
		assert_int_equal(device_read(fs.dev[0], start, area, at * 512), 0);
		for (unsigned i = 0; i < 8; i++) {
			struct jset_disk *j = (struct jset_disk *)(area + i * 4096);

			for (unsigned n = 0; n < rng_below(&rng, 6); n++)
				area[i * 4096 + 24 + rng_below(&rng, 300)] = (uint8_t)rng_u64(&rng);
			memset(j->csum, 0, sizeof(j->csum));
			j->flags = le32_of(le32_get(j->flags) & ~0xfu);
		}
		assert_int_equal(device_write(fs.dev[0], start, area, at * 512), 0);
		struct journal_read_opts opts = { .read_all = rng_below(&rng, 2) };
		if (!open_and_read(&fs, opts, &o)) {
			assert_int_equal(journal_for_each_key(o.j, touch_key, &sum), 0);
			for (size_t i = 1; i < o.j->entry_nr; i++)
				assert_true(o.j->entries[i - 1].seq < o.j->entries[i].seq);
		}
		done(&o);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(newest_flush_entry_ends_what_is_replayed),
		cmocka_unit_test(torn_newest_entry_is_passed_over_in_silence),
		cmocka_unit_test(several_damaged_entries_at_the_end_are_passed_and_reported),
		cmocka_unit_test(entries_torn_by_two_power_cuts_are_passed_over_in_silence),
		cmocka_unit_test(damaged_middle_entry_is_missing),
		cmocka_unit_test(holes_are_reported_once_per_run),
		cmocka_unit_test(blacklisted_entries_are_neither_replayed_nor_missed),
		cmocka_unit_test(blacklisted_flush_entry_is_no_end),
		cmocka_unit_test(last_seq_above_seq_counts_as_seq),
		cmocka_unit_test(entries_of_an_earlier_lap_are_left_alone),
		cmocka_unit_test(destroyed_header_does_not_hide_what_follows),
		cmocka_unit_test(absurd_seq_is_no_seq),
		cmocka_unit_test(devices_are_merged_by_seq),
		cmocka_unit_test(good_copy_serves_for_a_damaged_one),
		cmocka_unit_test(different_good_copies_are_reported_and_the_first_used),
		cmocka_unit_test(unreadable_sectors_cost_only_what_stands_there),
		cmocka_unit_test(everything_found_is_indexed_when_asked_for),
		cmocka_unit_test(memory_bound_of_the_index_is_kept),
		cmocka_unit_test(entry_that_cannot_be_read_again_is_reported_and_missing),
		cmocka_unit_test(entry_that_reads_differently_the_second_time_is_reported_and_missing),
		cmocka_unit_test(another_copy_serves_for_one_that_has_gone_bad),
		cmocka_unit_test(entry_lost_right_after_the_scan_is_a_hole),
		cmocka_unit_test(without_flush_entry_the_old_clean_section_and_what_follows_serve),
		cmocka_unit_test(without_good_entries_the_old_clean_section_serves_alone),
		cmocka_unit_test(without_a_link_to_the_clean_section_the_newest_run_serves),
		cmocka_unit_test(without_any_journal_a_dirty_filesystem_is_refused),
		cmocka_unit_test(clean_filesystem_needs_no_journal),
		cmocka_unit_test(clean_section_and_its_entry_agree),
		cmocka_unit_test(clean_section_newer_than_the_journal_is_kept),
		cmocka_unit_test(journal_with_keys_after_a_clean_shutdown_is_replayed),
		cmocka_unit_test(empty_entry_newer_than_the_clean_section_wins),
		cmocka_unit_test(empty_entry_after_the_clean_section_changes_nothing_while_roots_agree),
		cmocka_unit_test(differing_root_of_the_journal_wins),
		cmocka_unit_test(missing_clean_section_means_unclean),
		cmocka_unit_test(what_cannot_be_trusted_is_refused),
		cmocka_unit_test(encrypted_entries_need_the_key_and_are_decrypted),
		cmocka_unit_test(invalid_keys_are_reported_and_left_out),
		cmocka_unit_test(unusable_root_is_damaged_not_absent),
		cmocka_unit_test(damaged_sub_entries_cost_only_themselves),
		cmocka_unit_test(legacy_blacklist_entries_extend_the_list_in_order),
		cmocka_unit_test(counters_of_newer_formats_are_not_taken_from_usage),
		cmocka_unit_test(unfinished_rewind_undoes_its_entries),
		cmocka_unit_test(rewind_without_old_values_is_refused),
		cmocka_unit_test(keys_repeated_in_many_entries_take_the_room_of_one_each),
		cmocka_unit_test(damage_anywhere_is_survived),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
