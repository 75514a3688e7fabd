/*
 * The journal against the superblock: the clean section and the last entry say the same (03 §7.3, §12), and the devices
 * of entries are marked.
 *
 * The journal is read anew, all of it. Memory: its index (journal_read.h), within check_opts.memory_bytes, and one
 * entry.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "recovery/check_internal.h"

static bool is_marked(const struct check *c, const struct journal_entry *e)
{
	struct replicas_walk w = sb_replicas_walk(c->super->sb);
	struct replicas_entry r;

	while (sb_replicas_next(&w, &r, NULL) > 0) {
		unsigned found = 0, wanted = 0;

		if (r.data_type != DATA_JOURNAL)
			continue;
		for (unsigned i = 0; i < e->location_nr; i++) {
			bool is_again = false;

			for (unsigned j = 0; j < i; j++)
				is_again |= e->locations[j].dev == e->locations[i].dev;
			if (is_again)
				continue;
			wanted++;
			found += memchr(r.devs, e->locations[i].dev, r.nr_devs) != NULL;
		}
		/* Copies on devices that aren't here aren't seen. */
		if (found == wanted && (r.nr_devs == wanted || c->super->is_degraded))
			return true;
	}
	return false;
}

static int report_entry(struct check *c, unsigned id, uint64_t seq, const char *expected, const char *found)
{
	char position[CHECK_TEXT_BYTES];

	snprintf(position, sizeof(position), "seq %llu", (unsigned long long)seq);
	return check_report(c, id, NULL, "journal entry", position, expected, "%s", found);
}

static void report_last_seq(struct check *c, const struct journal_entry *before, const struct journal_entry *e)
{
	char position[CHECK_TEXT_BYTES], expected[CHECK_TEXT_BYTES];

	snprintf(position, sizeof(position), "seq %llu", (unsigned long long)e->seq);
	snprintf(expected, sizeof(expected), "last_seq %llu or more, as in entry %llu",
		 (unsigned long long)before->locations[0].last_seq, (unsigned long long)before->seq);
	check_report(c, CHECK_journal_last_seq_decreases, c->super->members[e->locations[0].dev].name, "journal entry",
		     position, expected, "%llu", (unsigned long long)e->locations[0].last_seq);
}

static void report_missing(struct check *c, const struct journal_state *state, const struct seq_range *missing)
{
	char position[CHECK_TEXT_BYTES], expected[CHECK_TEXT_BYTES];

	snprintf(position, sizeof(position), "seqs %llu-%llu", (unsigned long long)missing->start,
		 (unsigned long long)missing->end - 1);
	snprintf(expected, sizeof(expected), "all entries to replay, %llu-%llu", (unsigned long long)state->seq_last,
		 (unsigned long long)state->seq_flushed);
	check_report(c, ERROR_journal_entries_missing, NULL, "journal", position, expected, "missing or damaged");
}

/* Is there a sub-entry with the same bytes in [begin, end)? */
static bool has_sub_entry(const uint8_t *begin, const uint8_t *end, const struct jset_entry_disk *wanted)
{
	struct jset_walk w = { begin, end };
	const struct jset_entry_disk *e;
	size_t bytes = sizeof(*wanted) + jset_entry_payload_bytes(wanted);

	while (jset_walk_next(&w, &e, NULL) > 0)
		if (!memcmp(e, wanted, min(bytes, sizeof(*e))) && e->type == wanted->type && !memcmp(e, wanted, bytes))
			return true;
	return false;
}

/* All of one kind in @from are in the other. */
static void compare_sub_entries(struct check *c, uint64_t seq, struct jset_walk from, const uint8_t *begin,
				const uint8_t *end)
{
	const struct jset_entry_disk *e;
	bool is_told = false;

	while (jset_walk_next(&from, &e, NULL) > 0) {
		bool is_root = e->type == JSET_ENTRY_BTREE_ROOT;
		bool is_counter = e->type == JSET_ENTRY_USAGE || e->type == JSET_ENTRY_DATA_USAGE ||
				  e->type == JSET_ENTRY_DEV_USAGE || e->type == JSET_ENTRY_CLOCK;
		char found[CHECK_TEXT_BYTES];

		if ((!is_root && !is_counter) || has_sub_entry(begin, end, e) || (is_counter && is_told))
			continue;
		snprintf(found, sizeof(found), "%s of %s %u differs or is missing", jset_entry_type_name(e->type),
			 is_root ? "btree" : "kind", e->btree_id);
		report_entry(c, is_root ? ERROR_sb_clean_btree_root_mismatch : CHECK_clean_entry_counters_differ, seq,
			     "the same in the clean section and the last entry", found);
		is_told |= is_counter;
	}
}

static void check_last(struct check *c, const struct jset_disk *j)
{
	const uint8_t *begin, *end;
	const struct jset_entry_disk *e;
	struct jset_walk w = jset_walk_of(j);
	uint64_t clean_seq, seq = le64_get(j->seq);
	bool has_keys = false;

	if (!sb_clean(c->super->sb, &clean_seq, &begin, &end)) {
		check_report(c, ERROR_sb_clean_missing, NULL, "superblock", "clean section", "to be there", "none");
		return;
	}
	while (jset_walk_next(&w, &e, NULL) > 0)
		has_keys |= e->type == JSET_ENTRY_BTREE_KEYS && le16_get(e->u64s);
	/* Its id is 0, which reports take for none: so the name is told. */
	if (has_keys || (!jset_is_noflush(j) && le64_get(j->last_seq) != seq))
		report_entry(c, ERROR_clean_but_journal_not_empty, seq, "nothing to replay when clean",
			     has_keys ? "keys [clean_but_journal_not_empty]"
				      : "older entries that are needed [clean_but_journal_not_empty]");
	if (clean_seq != seq) {
		char expected[CHECK_TEXT_BYTES];

		snprintf(expected, sizeof(expected), "seq %llu as in the clean section", (unsigned long long)clean_seq);
		report_entry(c, ERROR_sb_clean_journal_seq_mismatch, seq, expected, "another in the last entry");
		return;
	}
	compare_sub_entries(c, seq, jset_walk_of(j), begin, end);
	w = jset_walk_of(j);
	compare_sub_entries(c, seq, (struct jset_walk){ begin, end }, w.pos, w.end);
}

static int check_entries(struct check *c, struct journal_state *state)
{
	struct journal_entry *last = NULL;
	struct journal_reader *reader;
	const struct jset_disk *jset;
	int err;

	for (size_t i = 0; i < state->entry_nr; i++) {
		struct journal_entry *e = &state->entries[i];

		if (!e->is_csum_good || e->is_blacklisted)
			continue;
		if (!e->locations[0].is_noflush) {
			if (last && last->locations[0].last_seq > e->locations[0].last_seq)
				report_last_seq(c, last, e);
			last = e;
		}
		/* Only what could still be replayed must be found. */
		if (e->seq >= state->seq_last && !is_marked(c, e))
			report_entry(c, CHECK_journal_replicas_not_marked, e->seq,
				     "its devices in the replicas section", "not there");
		err = check_step(c, 1, BTREE_NR_MAX, POS_MIN);
		if (err)
			return err;
	}
	for (size_t i = 0; i < state->missing_nr && !c->t->journal->was_clean; i++)
		report_missing(c, state, &state->missing[i]);
	if (!SB_CLEAN_FLAG(c->super->sb) || !last)
		return 0;
	err = journal_reader_open(state, &reader);
	if (err)
		return err;
	err = journal_entry_load(reader, last, &jset);
	if (!err && last->is_csum_good)
		check_last(c, jset);
	journal_reader_close(reader);
	return err;
}

int check_journal(struct check *c)
{
	struct journal_read_opts opts = { .read_all = true, .memory_max_bytes = c->memory_bytes };
	struct journal_state *state;

	if (c->t->is_writable)
		return 0; /* it is being written */
	int err = journal_read(c->super, &opts, &state);
	if (err)
		/* It has been told. */
		return err == -ENOMEM ? err : 0;
	err = check_entries(c, state);
	journal_state_free(state);
	return err;
}
