/* Journals of real images: what upstream replays is what is chosen here. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../super/fixtures.h"
#include "../super/fs_build.h"
#include "format/error_ids.h"
#include "journal/journal_read.h"

static struct reports reports;
static struct report_sink sink;

struct opened {
	struct fixture f;
	struct super *s;
	struct journal_state *j;
};

static int open_fixture(struct opened *o, const char *name, struct journal_read_opts opts)
{
	*o = (struct opened){ 0 };
	fixture_unpack(&o->f, name);
	sink = reports_sink(&reports);
	struct super_open_opts super_opts = { .is_degraded_ok = true };
	int err = super_open(o->f.paths, o->f.nr, &super_opts, NULL, &sink, &o->s);
	if (!err && o->s->needs_passphrase) /* the only passphrases among the fixtures */
		err = super_unlock(o->s, "correct horse battery staple", 28) ? super_unlock(o->s, "pass phrase 2", 13)
									     : 0;
	return err ? err : journal_read(o->s, &opts, &o->j);
}

static void done(struct opened *o)
{
	journal_state_free(o->j);
	super_close(o->s);
	fixture_remove(&o->f);
}

static int count_key(void *ctx, const struct journal_entry *e, uint32_t offset_words, unsigned btree_id, unsigned level,
		     const struct bkey_disk *key)
{
	(*(size_t *)ctx)++;
	return 0;
}

static size_t key_nr(const struct opened *o)
{
	size_t nr = 0;

	assert_int_equal(journal_for_each_key(o->j, count_key, &nr), 0);
	return nr;
}

static unsigned root_nr(const struct opened *o)
{
	unsigned nr = 0;

	for (unsigned i = 0; i < BTREE_NR_MAX; i++) {
		assert_false(o->j->roots[i].is_damaged);
		nr += o->j->roots[i].exists;
	}
	return nr;
}

static const struct journal_entry *entry_of(const struct opened *o, uint64_t seq)
{
	for (size_t i = 0; i < o->j->entry_nr; i++)
		if (o->j->entries[i].seq == seq)
			return &o->j->entries[i];
	return NULL;
}

/* One entry as upstream listed it. */
struct listed {
	unsigned long long seq, last_seq;
	int flush;
};

/* Every entry that was listed is found, and says the same. Returns the highest seq listed. */
static unsigned long long compare_listing(const struct opened *o, FILE *text, const char *name, bool *has_range,
					  unsigned long long range[2])
{
	char line[4096];
	unsigned long long highest = 0;
	struct listed l = { 0 };

	*has_range = false;
	while (fgets(line, sizeof(line), text)) {
		const char *at = strstr(line, "replaying entries ");
		const struct journal_entry *e;

		if (at && !*has_range)
			*has_range = sscanf(at, "replaying entries %llu-%llu", &range[0], &range[1]) == 2;
		if ((at = strstr(line, "journal entry  "))) {
			l = (struct listed){ .seq = strtoull(at + 13, NULL, 10) };
			highest = l.seq > highest ? l.seq : highest;
		} else if ((at = strstr(line, "  last seq  "))) {
			l.last_seq = strtoull(at + 10, NULL, 10);
		} else if (l.seq && (at = strstr(line, "  flush  "))) {
			l.flush = atoi(at + 8);
			e = entry_of(o, l.seq);
			if (!e || e->locations[0].last_seq != l.last_seq || e->locations[0].is_noflush == l.flush)
				fail_msg("%s: entry %llu is listed, and %s", name, l.seq, e ? "differs" : "not found");
			l.seq = 0;
		}
	}
	return highest;
}

static void unclean_images_replay_what_upstream_replays(void **state)
{
	size_t nr, compared = 0;

	fixtures_require();
	char **names = fixture_names(&nr);
	for (size_t i = 0; i < nr; i++) {
		FILE *text = strstr(names[i], "unclean") ? fixture_text(names[i], ".journal.txt") : NULL;
		unsigned long long range[2];
		struct opened o;
		bool has_range;

		if (text) {
			int err = open_fixture(&o, names[i], (struct journal_read_opts){ .read_all = true });
			if (err || reports.text[0])
				fail_msg("%s: %d, %s", names[i], err, reports.text);
			unsigned long long highest = compare_listing(&o, text, names[i], &has_range, range);
			if (!has_range) { /* the newest entry listed says it */
				range[0] = entry_of(&o, highest)->locations[0].last_seq;
				range[1] = highest;
			}
			assert_int_equal(o.j->seq_last, range[0]);
			assert_int_equal(o.j->seq_flushed, range[1]);
			assert_true(o.j->seq_highest >= highest);
			assert_int_equal(o.j->seq_next, o.j->seq_highest + 9);
			assert_int_equal(o.j->missing_nr, 0);
			assert_int_equal(o.j->blacklist_nr, 0);
			assert_true(root_nr(&o) >= 8);
			size_t keys = key_nr(&o);
			assert_true(keys > 0);
			done(&o);
			fclose(text);

			/* Reading only what is needed comes to the same. */
			assert_int_equal(open_fixture(&o, names[i], (struct journal_read_opts){ 0 }), 0);
			assert_int_equal(o.j->entry_nr, range[1] - range[0] + 1);
			assert_int_equal(key_nr(&o), keys);
			assert_string_equal(reports.text, "");
			done(&o);
			compared++;
		}
		free(names[i]);
	}
	free(names);
	assert_true(compared >= 10);
}

static void clean_images_need_no_journal_and_agree_with_it(void **state)
{
	size_t nr;

	fixtures_require();
	char **names = fixture_names(&nr);
	for (size_t i = 0; i < nr; i++) {
		struct opened o;

		for (unsigned read_all = 0; read_all < 2 && !strstr(names[i], "unclean"); read_all++) {
			int err = open_fixture(&o, names[i], (struct journal_read_opts){ .read_all = read_all });
			if (err || reports.levels[REPORT_RECOVERED] || reports.levels[REPORT_DAMAGE])
				fail_msg("%s: %d, %s", names[i], err, reports.text);
			assert_true(o.j->was_clean);
			assert_true(root_nr(&o) >= 8);
			assert_int_equal(key_nr(&o), 0);
			assert_int_equal(o.j->entry_nr != 0, read_all);
			done(&o);
		}
		free(names[i]);
	}
	free(names);
}

static void blacklist_of_an_upgraded_image_is_loaded(void **state)
{
	struct opened o;

	fixtures_require();
	assert_int_equal(open_fixture(&o, "v1.39-upgraded-from-1.4", (struct journal_read_opts){ 0 }), 0);
	assert_int_equal(o.j->blacklist_nr, 1);
	assert_int_equal(o.j->blacklist[0].start, 48);
	assert_int_equal(o.j->blacklist[0].end, 4144);
	done(&o);
}

static void damaged_journals_lose_only_what_was_damaged(void **state)
{
	struct opened o;

	fixtures_require();

	assert_int_equal(open_fixture(&o, "corrupt/journal-newest-entry", (struct journal_read_opts){ 0 }), 0);
	assert_int_equal(o.j->seq_highest, 627);
	assert_int_equal(o.j->seq_flushed, 626);
	assert_int_equal(o.j->seq_last, 458);
	assert_int_equal(o.j->missing_nr, 0);
	done(&o);

	assert_int_equal(open_fixture(&o, "corrupt/journal-middle-entry", (struct journal_read_opts){ 0 }), 0);
	assert_int_equal(o.j->seq_flushed, 627);
	assert_int_equal(o.j->missing_nr, 1);
	assert_int_equal(o.j->missing[0].start, 543);
	assert_int_equal(o.j->missing[0].end, 544);
	done(&o);

	/* Upstream loses 458-470 here: all that stood in the same bucket. */
	assert_int_equal(open_fixture(&o, "corrupt/journal-oldest-needed-zeroed", (struct journal_read_opts){ 0 }), 0);
	assert_int_equal(o.j->seq_flushed, 627);
	assert_int_equal(o.j->missing_nr, 1);
	assert_int_equal(o.j->missing[0].start, 458);
	assert_int_equal(o.j->missing[0].end, 459);
	assert_int_equal(reports.ids[ERROR_journal_entries_missing], 1);
	done(&o);

	assert_int_equal(
		open_fixture(&o, "corrupt/journal-clean-last-entry", (struct journal_read_opts){ .read_all = true }),
		0);
	assert_true(o.j->was_clean);
	assert_int_equal(o.j->seq_next, 133);
	assert_int_equal(key_nr(&o), 0);
	done(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(unclean_images_replay_what_upstream_replays),
		cmocka_unit_test(clean_images_need_no_journal_and_agree_with_it),
		cmocka_unit_test(blacklist_of_an_upgraded_image_is_loaded),
		cmocka_unit_test(damaged_journals_lose_only_what_was_damaged),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
