/*
 * Which entries count (03 §4.3, §4.4, §6).
 *
 * Only a flush entry is a point that everything before it has reached. So the newest good flush entry, F, ends what is
 * replayed, and its last_seq, L, begins it; what is newer is dropped as if it had never been written. Damaged entries
 * at the end of the journal are normal after a power cut: the search goes on downward past all of them. Blacklisted
 * entries were dropped by an earlier recovery and stay dropped, even if they can be read now.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "journal/journal_private.h"

int journal_blacklist_load(struct journal_state *state)
{
	const struct sb_disk *sb = state->super->sb;

	state->blacklist_nr = sb_blacklist_nr(sb);
	state->blacklist = calloc(state->blacklist_nr + 1, sizeof(*state->blacklist));
	if (!state->blacklist)
		return -ENOMEM;
	for (unsigned i = 0; i < state->blacklist_nr; i++)
		sb_blacklist_range(sb, i, &state->blacklist[i].start, &state->blacklist[i].end);
	return 0;
}

size_t seq_ranges_find(const struct seq_range *ranges, size_t nr, uint64_t seq)
{
	size_t lo = 0, hi = nr;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (ranges[mid].end <= seq)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static size_t blacklist_lower_bound(const struct journal_state *state, uint64_t seq)
{
	return seq_ranges_find(state->blacklist, state->blacklist_nr, seq);
}

bool journal_seq_is_blacklisted(const struct journal_state *state, uint64_t seq)
{
	size_t i = blacklist_lower_bound(state, seq);

	return i < state->blacklist_nr && state->blacklist[i].start <= seq;
}

uint64_t journal_seq_skip_blacklisted(const struct journal_state *state, uint64_t seq)
{
	for (size_t i = blacklist_lower_bound(state, seq); i < state->blacklist_nr && state->blacklist[i].start <= seq;
	     i++)
		seq = state->blacklist[i].end;
	return seq;
}

int journal_blacklist_append(struct journal_state *state, uint64_t start, uint64_t end)
{
	size_t i = blacklist_lower_bound(state, start);

	if (i < state->blacklist_nr && state->blacklist[i].start <= start && end <= state->blacklist[i].end)
		return 0;
	if (start >= end || i < state->blacklist_nr) {
		journal_report(state, REPORT_FATAL, 0, "blacklist sub-entry", "ranges in ascending order",
			       "a range before or across earlier ones",
			       "Mount it once with the implementation that wrote this journal.");
		return -KILN_E_UNSUPPORTED;
	}
	struct seq_range *grown = realloc(state->blacklist, (state->blacklist_nr + 2) * sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	state->blacklist = grown;
	state->blacklist[state->blacklist_nr++] = (struct seq_range){ start, end };
	return 0;
}

int journal_missing_add(struct journal_state *state, uint64_t start, uint64_t end)
{
	for (size_t i = blacklist_lower_bound(state, start); start < end; i++) {
		bool has_range = i < state->blacklist_nr && state->blacklist[i].start < end;
		uint64_t stop = has_range ? state->blacklist[i].start : end;

		if (start < stop) {
			struct seq_range *grown = realloc(state->missing, (state->missing_nr + 1) * sizeof(*grown));
			if (!grown)
				return -ENOMEM;
			state->missing = grown;
			state->missing[state->missing_nr++] = (struct seq_range){ start, stop };
		}
		start = has_range ? max(start, state->blacklist[i].end) : end;
	}
	return 0;
}

int journal_missing_insert(struct journal_state *state, uint64_t seq)
{
	struct seq_range *grown = realloc(state->missing, (state->missing_nr + 1) * sizeof(*grown));
	size_t at = state->missing_nr;

	if (!grown)
		return -ENOMEM;
	state->missing = grown;
	while (at && grown[at - 1].start > seq)
		at--;
	memmove(&grown[at + 1], &grown[at], (state->missing_nr - at) * sizeof(*grown));
	grown[at] = (struct seq_range){ seq, seq + 1 };
	state->missing_nr++;
	return 0;
}

/*
 * Damaged flush entries above F that no earlier recovery has dropped: the newest is what a power cut leaves; more of
 * them mean that flushed data may be lost.
 */
static void report_damaged_end(const struct journal_state *state, uint64_t damaged_nr, uint64_t newest,
			       uint64_t flushed)
{
	char position[64], found[64];

	if (damaged_nr < 2)
		return;
	snprintf(position, sizeof(position), "entries %" PRIu64 "-%" PRIu64, flushed + 1, newest);
	snprintf(found, sizeof(found), "%" PRIu64 " damaged", damaged_nr);
	journal_report(state, REPORT_DAMAGE, ERROR_journal_entries_missing, position,
		       "at most one flush entry torn by a power cut", found,
		       "What was written since the entry before them may be lost.");
}

struct journal_choice journal_choose_flushed(struct journal_state *state, const struct journal_scan *scan)
{
	struct journal_choice choice = { 0 };
	uint64_t damaged_flush_nr = 0;

	if (!scan->nr)
		return choice;
	state->seq_highest = scan->found[scan->nr - 1].seq;

	for (size_t end = scan->nr; end;) {
		size_t i = journal_group_begin(scan, end);
		const struct journal_location *f = &scan->found[i];
		char position[48];

		end = i;
		if (f->is_noflush)
			continue;
		if (!f->is_csum_good) {
			damaged_flush_nr += !journal_seq_is_blacklisted(state, f->seq);
			continue;
		}
		snprintf(position, sizeof(position), "entry %" PRIu64, f->seq);
		if (journal_seq_is_blacklisted(state, f->seq)) {
			journal_report(state, REPORT_INFO, ERROR_jset_seq_blacklisted, position, "not blacklisted",
				       "a good flush entry that an earlier recovery dropped", NULL);
			continue;
		}
		choice = (struct journal_choice){ .has_flush = true, .flushed = f->seq, .last = f->last_seq };
		if (f->last_seq > f->seq) {
			journal_report(state, REPORT_DAMAGE, ERROR_jset_last_seq_newer_than_seq, position,
				       "last_seq not above seq", "a higher one", NULL);
			choice.last = f->seq;
		}
		choice.last = max(choice.last, (uint64_t)1);
		break;
	}
	if (choice.has_flush)
		report_damaged_end(state, damaged_flush_nr, state->seq_highest, choice.flushed);
	return choice;
}

/* Can @seq directly follow @prev in an unbroken run, with only blacklisted seqs between them? */
static bool run_continues(const struct journal_state *state, uint64_t prev, uint64_t seq)
{
	return journal_seq_skip_blacklisted(state, prev + 1) >= seq;
}

static bool found_is_usable(const struct journal_state *state, const struct journal_location *f)
{
	return f->is_csum_good && !journal_seq_is_blacklisted(state, f->seq);
}

bool journal_choose_run(const struct journal_state *state, const struct journal_scan *scan, uint64_t from,
			struct journal_choice *choice)
{
	*choice = (struct journal_choice){ 0 };
	if (from) {
		uint64_t prev = from - 1;
		for (size_t i = 0; i < scan->nr; i = journal_group_end(scan, i)) {
			const struct journal_location *f = &scan->found[i];
			if (f->seq < from || !found_is_usable(state, f))
				continue;
			if (!run_continues(state, prev, f->seq))
				break;
			prev = f->seq;
		}
		choice->last = from;
		choice->flushed = prev;
		return prev >= from;
	}

	for (size_t end = scan->nr; end;) {
		size_t i = journal_group_begin(scan, end);
		const struct journal_location *f = &scan->found[i];

		end = i;
		if (!found_is_usable(state, f))
			continue;
		if (choice->flushed && !run_continues(state, f->seq, choice->last))
			break;
		choice->last = f->seq;
		choice->flushed = max(choice->flushed, f->seq);
	}
	return choice->flushed != 0;
}
