/*
 * Reading the journal: from the rings to a journal_state.
 *
 * A filesystem that was shut down cleanly has its roots and counters in the superblock's clean section, and the journal
 * isn't looked at. Otherwise: scan all rings (journal_scan.c), decide which entries count (journal_choose.c), read
 * those again one by one (journal_entries.c), and take over what they say in ascending order (journal_apply.c).
 *
 * Reading never gives up where something is left to go on with. Holes are reported and replayed around; a journal
 * without a single flush entry still yields what stands in the old clean section and behind it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "format/version.h"
#include "journal/journal_private.h"

enum { HOLE_REPORTS_MAX = 32 };

struct clean_section {
	bool exists;
	uint64_t seq;
	struct jset_walk walk;
};

void journal_report(const struct journal_state *state, enum report_level level, unsigned id, const char *position,
		    const char *expected, const char *found, const char *advice)
{
	report_emit(state->super->reports, &(struct report){ .level = level,
							     .id = id,
							     .structure = "journal",
							     .position = position,
							     .expected = expected,
							     .found = found,
							     .advice = advice });
}

/* --- the index --- */

/* Copies of one seq should be equal; damaged ones don't matter while another is good. */
static void report_copies(const struct journal_state *state, const struct journal_location *copies, size_t nr)
{
	char position[64];

	snprintf(position, sizeof(position), "entry %" PRIu64, copies[0].seq);
	for (size_t i = 1; i < nr; i++) {
		bool is_different = copies[i].is_csum_good && copies[i].hash != copies[0].hash;

		if (copies[i].is_csum_good && !is_different)
			continue;
		report_emit(state->super->reports,
			    &(struct report){ .level = is_different ? REPORT_DAMAGE : REPORT_RECOVERED,
					      .id = is_different ? ERROR_journal_entry_replicas_data_mismatch : 0,
					      .device = state->super->members[copies[i].dev].name,
					      .structure = "journal entry",
					      .position = position,
					      .expected = "equal to the other copies",
					      .found = is_different ? "good, but different" : "a damaged copy",
					      .advice = "The first good copy is used." });
	}
}

/* Does the entry take part in what the state is made of? */
static bool entry_is_needed(const struct journal_state *state, const struct journal_location *f)
{
	if (!f->is_csum_good || journal_seq_is_blacklisted(state, f->seq))
		return false;
	return (f->seq >= state->seq_last && f->seq <= state->seq_flushed) || journal_seq_is_rewound(state, f->seq);
}

/* Index the entries that are needed, or all, in ascending order. */
static int entries_index(struct journal_state *state, const struct journal_scan *scan,
			 const struct journal_read_opts *opts)
{
	size_t nr = 0;

	for (size_t i = 0; i < scan->nr; i = journal_group_end(scan, i))
		nr += opts->read_all || entry_is_needed(state, &scan->found[i]);
	free(state->entries);
	state->entry_nr = 0;
	state->entries = calloc(nr + 1, sizeof(*state->entries));
	if (!state->entries)
		return -ENOMEM;

	for (size_t i = 0, end; i < scan->nr; i = end) {
		struct journal_location *f = &scan->found[i];
		bool is_needed = entry_is_needed(state, f);

		end = journal_group_end(scan, i);
		if (!opts->read_all && !is_needed)
			continue;
		if (is_needed)
			report_copies(state, f, end - i);
		state->entries[state->entry_nr++] = (struct journal_entry){
			.seq = f->seq,
			.locations = f,
			.location_nr = (unsigned)(end - i),
			.is_csum_good = f->is_csum_good,
			.is_blacklisted = journal_seq_is_blacklisted(state, f->seq),
		};
	}
	return 0;
}

/* Take the copies of indexed entries over from @scan, in as much memory as they need. */
static void entries_take_locations(struct journal_state *state, struct journal_scan *scan)
{
	size_t nr = 0;

	for (size_t i = 0; i < state->entry_nr; i++) {
		const struct journal_entry *e = &state->entries[i];

		memmove(&scan->found[nr], e->locations, e->location_nr * sizeof(*e->locations));
		nr += e->location_nr;
	}
	if (!nr)
		return;
	struct journal_location *shrunk = realloc(scan->found, nr * sizeof(*shrunk));
	state->locations = shrunk ? shrunk : scan->found;
	*scan = (struct journal_scan){ 0 };

	nr = 0;
	for (size_t i = 0; i < state->entry_nr; i++) {
		state->entries[i].locations = state->locations + nr;
		nr += state->entries[i].location_nr;
	}
}

/* --- what is to be replayed --- */

/* Mark what isn't replayed; with @has_range false: nothing is. */
static void entries_mark(struct journal_state *state, bool has_range)
{
	for (size_t i = 0; i < state->entry_nr; i++) {
		struct journal_entry *e = &state->entries[i];

		e->is_ignored = !has_range || !e->is_csum_good || e->is_blacklisted || e->seq < state->seq_last ||
				e->seq > state->seq_flushed;
	}
}

static int entries_find_missing(struct journal_state *state)
{
	uint64_t next = state->seq_last;
	int err = 0;

	for (size_t i = 0; i < state->entry_nr && !err; i++) {
		uint64_t seq = state->entries[i].seq;

		if (state->entries[i].is_ignored)
			continue;
		err = journal_missing_add(state, next, seq);
		next = seq + 1;
	}
	if (!err && next <= state->seq_flushed)
		err = journal_missing_add(state, next, state->seq_flushed + 1);

	for (size_t i = 0; i < state->missing_nr && i < HOLE_REPORTS_MAX; i++) {
		char position[64], expected[96];

		snprintf(position, sizeof(position), "entries %" PRIu64 "-%" PRIu64, state->missing[i].start,
			 state->missing[i].end - 1);
		snprintf(expected, sizeof(expected), "all entries %" PRIu64 "-%" PRIu64, state->seq_last,
			 state->seq_flushed);
		journal_report(state, REPORT_DAMAGE, ERROR_journal_entries_missing, position, expected,
			       i + 1 == HOLE_REPORTS_MAX && state->missing_nr > HOLE_REPORTS_MAX
				       ? "missing or damaged; there are more such holes, which aren't listed"
				       : "missing or damaged",
			       "The rest is replayed. What these entries changed may be stale or inconsistent.");
	}
	return err;
}

static int entries_check_versions(const struct journal_state *state)
{
	for (size_t i = 0; i < state->entry_nr; i++) {
		const struct journal_entry *e = &state->entries[i];
		uint32_t version = e->locations[0].version;
		char position[48], found[32];

		if (e->is_ignored || (VERSION_MAJOR(version) == 1 && version >= VERSION_MIN_READABLE))
			continue;
		snprintf(position, sizeof(position), "entry %" PRIu64, e->seq);
		snprintf(found, sizeof(found), "%u.%u", VERSION_MAJOR(version), VERSION_MINOR(version));
		journal_report(state, REPORT_FATAL, ERROR_jset_unsupported_version, position,
			       "version 1.0 or a later minor of 1", found,
			       "Mount it once with the implementation that wrote this journal.");
		return -KILN_E_UNSUPPORTED;
	}
	return 0;
}

/* Does a replicas entry of the superblock say that journal entries may be on exactly these devices? */
static bool journal_replicas_marked(const struct super *s, const struct journal_entry *e)
{
	enum { DATA_TYPE_JOURNAL = 2 };
	struct replicas_walk w = sb_replicas_walk(s->sb);
	struct replicas_entry r;

	while (sb_replicas_next(&w, &r, NULL) > 0) {
		unsigned hits = 0;

		for (unsigned i = 0; r.data_type == DATA_TYPE_JOURNAL && i < e->location_nr; i++)
			for (unsigned j = 0; j < r.nr_devs; j++)
				hits += r.devs[j] == e->locations[i].dev;
		if (hits && hits == e->location_nr && hits == r.nr_devs)
			return true;
	}
	return false;
}

/* An unmarked set of devices is no danger to a reader that searches all devices, but it was one to others. */
static void entries_check_replicas(const struct journal_state *state)
{
	const struct super *s = state->super;

	if (s->is_degraded || (!sb_section(s->sb, SB_REPLICAS) && !sb_section(s->sb, SB_REPLICAS_V0)))
		return;
	for (size_t i = 0; i < state->entry_nr; i++) {
		const struct journal_entry *e = &state->entries[i];
		bool has_bad_copy = false;
		char position[48];

		for (unsigned l = 0; l < e->location_nr; l++)
			has_bad_copy |= !e->locations[l].is_csum_good;
		if (e->is_ignored || e->seq == state->seq_last || has_bad_copy || journal_replicas_marked(s, e))
			continue;
		snprintf(position, sizeof(position), "entry %" PRIu64, e->seq);
		journal_report(state, REPORT_INFO, ERROR_journal_entry_replicas_not_marked, position,
			       "its devices in a replicas entry of the superblock", "no such replicas entry", NULL);
		return;
	}
}

/* A rewind needs every entry it undoes, with the old values in it. */
static int rewinds_check(const struct journal_state *state)
{
	for (size_t r = 0; r < state->rewind_nr; r++) {
		uint64_t next = state->rewinds[r].start;
		bool is_complete = true;

		for (size_t i = 0; i < state->entry_nr; i++) {
			const struct journal_entry *e = &state->entries[i];

			if (e->seq < state->rewinds[r].start || e->seq >= state->rewinds[r].end || !e->is_csum_good ||
			    e->is_blacklisted)
				continue;
			is_complete &=
				journal_seq_skip_blacklisted(state, next) >= e->seq && e->locations[0].has_overwrites;
			next = e->seq + 1;
		}
		if (is_complete && journal_seq_skip_blacklisted(state, next) >= state->rewinds[r].end)
			continue;
		journal_report(state, REPORT_FATAL, 0, "unfinished rewind",
			       "all entries to be undone, with the old values",
			       "entries that are missing or don't hold them",
			       "Mount it once with the implementation that was asked to rewind.");
		return -KILN_E_UNSUPPORTED;
	}
	return 0;
}

/* Take over what an entry says. */
static int entry_apply(void *ctx, const struct journal_entry *e, const struct jset_disk *jset)
{
	struct journal_state *state = ctx;
	char where[48];

	int err = journal_rewinds_find(state, jset);
	if (err)
		return err;
	snprintf(where, sizeof(where), "entry %" PRIu64, e->seq);
	return journal_apply(state, jset_walk_of(jset), where);
}

/* Index [L, F], and take over what it says; then index what an unfinished rewind needs besides. */
static int entries_read(struct journal_state *state, const struct journal_scan *scan,
			const struct journal_read_opts *opts)
{
	int err = entries_index(state, scan, opts);

	if (err)
		return err;
	entries_mark(state, true);
	err = entries_check_versions(state);
	if (!err)
		err = entries_find_missing(state);
	if (err)
		return err;
	entries_check_replicas(state);
	err = journal_for_each_entry(state, entry_apply, state);
	if (err || !state->rewind_nr)
		return err;

	err = entries_index(state, scan, opts);
	if (err)
		return err;
	entries_mark(state, true);
	return rewinds_check(state);
}

/* --- the two ways a filesystem can have been left --- */

static struct clean_section clean_section_of(const struct super *s)
{
	struct clean_section c = { 0 };

	c.exists = sb_clean(s->sb, &c.seq, &c.walk.pos, &c.walk.end);
	return c;
}

static void clean_set_seqs(struct journal_state *state, const struct clean_section *clean)
{
	state->was_clean = true;
	state->seq_flushed = state->seq_last = clean->seq;
	state->seq_highest = max(state->seq_highest, clean->seq);
	state->seq_next = state->seq_highest + 1;
}

static int clean_apply(struct journal_state *state, const struct clean_section *clean)
{
	return journal_apply(state, clean->walk, "clean section");
}

/*
 * No usable flush entry, and not clean (03 §4.4). The old clean section with the unbroken run of entries behind it is a
 * complete state. Without that, the newest unbroken run is the best there is: entries older than needed do no harm, as
 * the newer ones in the run replace them.
 */
static int unclean_rescue(struct journal_state *state, const struct journal_scan *scan,
			  const struct clean_section *clean)
{
	struct journal_choice choice;
	bool has_newest = journal_choose_run(state, scan, 0, &choice);
	bool is_clean_usable = clean->exists && (!has_newest || choice.flushed <= clean->seq);

	if (scan->nr)
		journal_report(state, REPORT_DAMAGE, ERROR_dirty_but_no_journal_entries_post_drop_nonflushes, NULL,
			       "a good flush entry", "only entries that were never flushed, or damaged ones", NULL);
	if (clean->exists && !is_clean_usable) {
		struct journal_choice behind;
		is_clean_usable = journal_choose_run(state, scan, clean->seq + 1, &behind);
		if (is_clean_usable)
			choice = behind;
	} else if (is_clean_usable) {
		choice = (struct journal_choice){ .last = clean->seq + 1, .flushed = clean->seq };
	}

	if (!is_clean_usable && !has_newest) {
		journal_report(state, REPORT_FATAL, ERROR_dirty_but_no_journal_entries, NULL, "journal entries",
			       "none, and no usable clean section",
			       "Without a journal it isn't known where the btrees are. Are all devices there?");
		return -KILN_E_INVALID;
	}
	journal_report(state, REPORT_DAMAGE, ERROR_dirty_but_no_journal_entries, NULL, "a good flush entry",
		       is_clean_usable ? "the state of the last clean shutdown, and what follows it"
				       : "entries of unknown age",
		       "The last changes may be lost: check the filesystem.");

	state->is_from_stale_clean = is_clean_usable;
	state->seq_last = choice.last;
	state->seq_flushed = choice.flushed;
	state->seq_highest = max(state->seq_highest, choice.flushed);
	return is_clean_usable ? clean_apply(state, clean) : 0;
}

/*
 * What a mount may begin with: behind everything that may have been written before, seen or not. On encrypted
 * filesystems a seq is a nonce, and a torn entry may have lost its header, which says its seq, but not what follows. No
 * more than JOURNAL_SEQ_MARGIN entries come behind a durable one; and mounts that found none of their own, as they
 * ended with their first entry, began where what they blacklisted ends.
 */
static uint64_t unclean_seq_next(const struct journal_state *state)
{
	uint64_t begun = state->blacklist_nr ? state->blacklist[state->blacklist_nr - 1].end : 0;

	/* No mount begins there: journal_start() refuses. */
	if (begun >= UINT64_MAX >> 1)
		begun = 0;
	return max(state->seq_highest, begun) + 1 + JOURNAL_SEQ_MARGIN;
}

static int unclean_read(struct journal_state *state, const struct journal_scan *scan, struct journal_choice choice,
			const struct clean_section *clean, const struct journal_read_opts *opts)
{
	int err = 0;

	if (choice.has_flush) {
		state->seq_last = choice.last;
		state->seq_flushed = choice.flushed;
	} else {
		err = unclean_rescue(state, scan, clean);
	}
	state->seq_next = unclean_seq_next(state);
	return err ? err : entries_read(state, scan, opts);
}

/* Nothing to replay: no keys, and nothing before it needed. */
static bool entry_is_empty(const struct jset_disk *j)
{
	struct jset_walk w = jset_walk_of(j);
	const struct jset_entry_disk *e;

	if (le64_get(j->last_seq) != le64_get(j->seq))
		return false;
	while (jset_walk_next(&w, &e, NULL) > 0)
		if (e->type == JSET_ENTRY_BTREE_KEYS && jset_entry_payload_bytes(e))
			return false;
	return true;
}

static bool roots_equal(const struct btree_root *a, const struct btree_root *b)
{
	if (a->exists != b->exists || !a->exists)
		return a->exists == b->exists;
	return a->level == b->level && a->is_damaged == b->is_damaged && a->key.type == b->key.type &&
	       a->key.value_u64s == b->key.value_u64s && bpos_eq(a->key.p, b->key.p) &&
	       !memcmp(a->value, b->value, bkey_value_bytes(&a->key));
}

/*
 * Take the roots of the clean section, then those of @newest, which stay in the state. Returns the number of btrees
 * where they differ, or an error.
 */
static int clean_compare_roots(struct journal_state *state, const struct clean_section *clean,
			       const struct jset_disk *newest, bool is_reported)
{
	struct btree_root *clean_roots = malloc(sizeof(state->roots));
	int different = 0;

	if (!clean_roots)
		return -ENOMEM;
	int err = clean_apply(state, clean);
	memcpy(clean_roots, state->roots, sizeof(state->roots));
	memset(state->roots, 0, sizeof(state->roots));
	if (!err)
		err = journal_apply(state, jset_walk_of(newest), "newest entry");

	for (unsigned i = 0; i < BTREE_NR_MAX && !err; i++) {
		char position[32];

		if (roots_equal(&clean_roots[i], &state->roots[i]))
			continue;
		different++;
		if (!is_reported)
			continue;
		snprintf(position, sizeof(position), "root of btree %u", i);
		journal_report(state, REPORT_DAMAGE, ERROR_sb_clean_btree_root_mismatch, position,
			       "equal in the clean section and the journal", "different",
			       "The journal's root is used.");
	}
	free(clean_roots);
	return err ? err : different;
}

/*
 * A clean filesystem whose journal was read all the same: does it say what the clean section says (03 §7.3)? 1 when it
 * was shut down cleanly, and the state then has the roots and counters; 0 when it must be treated as if it wasn't.
 *
 * Upstream 1.36 writes an empty entry after it has marked the superblock clean. As long as no root differs, nothing has
 * changed since.
 */
static int clean_agrees(struct journal_state *state, const struct clean_section *clean, const struct jset_disk *newest)
{
	uint64_t seq = newest ? le64_get(newest->seq) : 0;
	char position[64], found[64];

	snprintf(position, sizeof(position), "entry %" PRIu64, seq);
	snprintf(found, sizeof(found), "%" PRIu64 " in the clean section", clean->seq);
	if (!newest || seq < clean->seq) {
		journal_report(state, REPORT_RECOVERED,
			       newest ? 0 : ERROR_dirty_but_no_journal_entries_post_drop_nonflushes,
			       newest ? position : NULL, "the entry of the clean shutdown", found,
			       "The journal's end is missing or damaged; the clean section is newer and is used.");
		int err = clean_apply(state, clean);
		return err ? err : 1;
	}
	if (!entry_is_empty(newest)) {
		journal_report(state, REPORT_DAMAGE, ERROR_clean_but_journal_not_empty, position,
			       "nothing to replay after a clean shutdown", "keys",
			       "The filesystem is treated as not shut down cleanly.");
		return 0;
	}
	int different = clean_compare_roots(state, clean, newest, seq == clean->seq);
	if (different < 0 || seq == clean->seq)
		return different < 0 ? different : 1;

	journal_report(state, different ? REPORT_DAMAGE : REPORT_INFO, ERROR_sb_clean_journal_seq_mismatch, position,
		       "equal journal seqs", found,
		       different ? "The clean section is ignored." : "Nothing has changed between them.");
	return !different;
}

static int clean_read_journal(struct journal_state *state, const struct journal_scan *scan,
			      struct journal_choice choice, const struct clean_section *clean,
			      const struct journal_read_opts *opts)
{
	struct journal_reader *reader;
	const struct jset_disk *newest = NULL;
	bool has_clean_seq = false;
	int ret = 0;

	if (choice.has_flush) {
		state->seq_last = choice.last;
		state->seq_flushed = choice.flushed;
	}
	int err = entries_index(state, scan, opts);
	if (err)
		return err;
	entries_mark(state, choice.has_flush);
	err = entries_check_versions(state);
	if (!err)
		err = journal_reader_open(state, &reader);
	if (err)
		return err;
	for (size_t i = 0; i < state->entry_nr && !ret; i++) {
		struct journal_entry *e = &state->entries[i];

		if (e->is_ignored || e->seq != choice.flushed)
			continue;
		ret = journal_entry_load(reader, e, &newest);
		if (!e->is_csum_good)
			newest = NULL;
	}
	if (!ret)
		ret = clean_agrees(state, clean, newest);
	has_clean_seq = newest && choice.flushed == clean->seq;
	journal_reader_close(reader);
	if (ret < 0)
		return ret;
	if (!ret) {
		memset(state->roots, 0, sizeof(state->roots));
		return unclean_read(state, scan, choice, clean, opts);
	}
	clean_set_seqs(state, clean);
	entries_mark(state, has_clean_seq);
	return 0;
}

/* What the superblock says must be right before the journal can be trusted to be complete (03 §10, 09 §4). */
static int features_check(const struct journal_state *state, bool is_clean, bool is_journal_needed)
{
	const struct super *s = state->super;
	const char *found = NULL, *advice = "Mount it once with the implementation that wrote it.";
	int err = -KILN_E_UNSUPPORTED;

	if (!SB_INITIALIZED(s->sb)) {
		found = "formatted, but never started: there are no btrees yet";
		advice = "Mount it once read-write.";
	} else if (!sb_has_feature(s->sb, SB_FEATURE_NEW_EXTENT_OVERWRITE)) {
		found = "feature new_extent_overwrite is missing";
	} else if (!is_clean && !sb_has_feature(s->sb, SB_FEATURE_EXTENTS_ABOVE_BTREE_UPDATES)) {
		found = "not shut down cleanly, and feature extents_above_btree_updates is missing";
	} else if (s->has_key && !s->key && is_journal_needed) {
		found = "the journal is encrypted, and the filesystem is locked";
		advice = "Unlock it with the passphrase.";
		err = -KILN_E_NEED_PASSPHRASE;
	}
	if (!found)
		return 0;
	report_emit(s->reports, &(struct report){ .level = REPORT_FATAL,
						  .err = err,
						  .structure = "superblock",
						  .expected = "a filesystem whose journal can be read",
						  .found = found,
						  .advice = advice });
	return err;
}

int journal_read(const struct super *s, const struct journal_read_opts *opts, struct journal_state **result)
{
	struct clean_section clean = clean_section_of(s);
	bool is_clean = SB_CLEAN_FLAG(s->sb) && clean.exists;
	bool is_scan_needed = !is_clean || opts->read_all;
	struct journal_scan scan = { 0 };
	struct journal_state *state = calloc(1, sizeof(*state));

	*result = NULL;
	if (!state)
		return -ENOMEM;
	state->super = s;

	int err = features_check(state, is_clean, is_scan_needed);
	if (!err)
		err = journal_blacklist_load(state);
	if (!err && SB_CLEAN_FLAG(s->sb) && !clean.exists)
		journal_report(state, REPORT_DAMAGE, ERROR_sb_clean_missing, NULL, "a clean section in the superblock",
			       "none", "The filesystem is treated as not shut down cleanly.");
	if (!err && is_scan_needed)
		err = journal_scan_devices(s, opts->memory_max_bytes, &scan);
	if (!err && is_scan_needed) {
		struct journal_choice choice = journal_choose_flushed(state, &scan);
		err = is_clean ? clean_read_journal(state, &scan, choice, &clean, opts)
			       : unclean_read(state, &scan, choice, &clean, opts);
	} else if (!err) {
		clean_set_seqs(state, &clean);
		err = clean_apply(state, &clean);
	}

	if (!err && is_scan_needed)
		err = journal_scan_newest(s, &scan, &state->bucket_newest, &state->bucket_newest_nr);
	state->is_scanned = is_scan_needed;
	if (!err)
		entries_take_locations(state, &scan);
	journal_scan_free(&scan);
	if (err)
		journal_state_free(state);
	else
		*result = state;
	return err;
}

void journal_state_free(struct journal_state *state)
{
	if (!state)
		return;
	free(state->entries);
	free(state->locations);
	free(state->bucket_newest);
	free(state->missing);
	free(state->blacklist);
	free(state->rewinds);
	free(state);
}
