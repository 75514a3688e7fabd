/*
 * kiln list-journal: the entries of the journal, and what recovery makes of each.
 *
 * The journal is read as recovery reads it, but every entry found is indexed, and read again to be shown. Entries are
 * shown by ascending seq: a header that says whether the entry is replayed, and if not, why; then its sub-entries.
 * Filters by btree and position work on single keys, shown with the log line of the transaction they are part of;
 * entries in which nothing matches are left out.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "tool/raw_text.h"

static const char usage[] =
	"usage: kiln list-journal [OPTIONS] FS\n"
	"\n"
	"List the journal entries that a mount would replay, oldest first, with what they change. \"written at\" is\n"
	"DEVICE:BUCKET:SECTOR, the bucket counted in the device's journal, and the sector on the device in "
	"parentheses.\n"
	"\n"
	"  -a, --all               every entry that can be found, and why it is not replayed; its lines begin with *\n"
	"  -n, --last N            only the last N of them\n"
	"  -b, --btree NAME        only keys of this btree (name or number)\n"
	"  -k, --key POS           only keys at INODE[:OFFSET[:SNAPSHOT]]; extents that reach over OFFSET match, too\n"
	"      --headers           no contents\n"
	"  --json                  one JSON object a line\n" TOOL_OPEN_USAGE;

struct list_journal {
	struct raw_output out;
	kiln_fs *fs;
	bool is_all, has_only_headers, is_json;
	uint64_t last_nr; /* 0: all */
	int btree;	  /* -1: any */
	bool has_pos;
	struct bpos pos;
	unsigned pos_parts;
};

/* --- which entries, and why --- */

enum entry_state {
	ENTRY_REPLAYED,
	ENTRY_CLEAN,
	ENTRY_DAMAGED,
	ENTRY_BLACKLISTED,
	ENTRY_OLD,
	ENTRY_UNFLUSHED,
	ENTRY_IGNORED
};

static const struct {
	const char *name, *why;
} entry_states[] = {
	[ENTRY_REPLAYED] = { "replayed", "is replayed" },
	[ENTRY_CLEAN] = { "clean", "of the clean shutdown: nothing to replay" },
	[ENTRY_DAMAGED] = { "damaged", "not replayed: no copy has a good checksum" },
	[ENTRY_BLACKLISTED] = { "blacklisted", "not replayed: blacklisted, an earlier recovery dropped it" },
	[ENTRY_OLD] = { "old", "not replayed: older than the last_seq of the newest flush entry" },
	[ENTRY_UNFLUSHED] = { "unflushed", "not replayed: newer than the newest good flush entry" },
	[ENTRY_IGNORED] = { "ignored", "not replayed: the filesystem was shut down cleanly" },
};

static enum entry_state entry_state(const struct journal_state *state, const struct journal_entry *e)
{
	if (!e->is_ignored)
		return state->was_clean ? ENTRY_CLEAN : ENTRY_REPLAYED;
	if (!e->is_csum_good)
		return ENTRY_DAMAGED;
	if (e->is_blacklisted)
		return ENTRY_BLACKLISTED;
	if (e->seq < state->seq_last)
		return ENTRY_OLD;
	return e->seq > state->seq_flushed ? ENTRY_UNFLUSHED : ENTRY_IGNORED;
}

static bool entry_is_listed(const struct list_journal *l, const struct journal_entry *e)
{
	return l->is_all || !e->is_ignored;
}

/* --- filters --- */

static bool has_filter(const struct list_journal *l) { return l->btree >= 0 || l->has_pos; }

static bool pos_matches(const struct list_journal *l, unsigned btree_id, const struct bkey *k)
{
	if (!l->has_pos)
		return true;
	if (k->p.inode != l->pos.inode || (l->pos_parts > 2 && k->p.snapshot != l->pos.snapshot))
		return false;
	if (l->pos_parts < 2 || k->p.offset == l->pos.offset)
		return true;
	return btree_flags(btree_id) & BTREE_IS_EXTENTS && l->pos.offset < k->p.offset &&
	       k->p.offset - l->pos.offset <= k->size;
}

/* A sub-entry that holds just one key of another. */
struct single_key {
	struct jset_entry_disk head;
	uint8_t key[BKEY_U64S_MAX * 8];
};

static void single_key_fill(struct single_key *s, const struct jset_entry_disk *e, struct bkey_ref k)
{
	struct bkey_disk d;

	s->head = *e;
	s->head.u64s = le16_of((uint16_t)(BKEY_U64S + k.k.value_u64s));
	bkey_store(&d, &k.k);
	memcpy(s->key, &d, sizeof(d));
	if (k.k.value_u64s)
		memcpy(s->key + sizeof(d), k.value, bkey_value_bytes(&k.k));
}

/* --- as text --- */

/* Lines of an entry that isn't replayed begin with a star. */
static const char *line_start(const struct journal_entry *e) { return e->is_ignored ? "* " : "  "; }

static void header_text(struct list_journal *l, const struct journal_entry *e, const struct jset_disk *j)
{
	enum entry_state state = entry_state(l->fs->journal, e);
	struct strbuf *out = &l->out.text;
	const char *start = line_start(e);

	strbuf_printf(out, "%sjournal entry     %" PRIu64 "\n", e->is_ignored ? "ignored " : "", e->seq);
	strbuf_printf(out, "%sversion         %u\n", start, le32_get(j->version));
	strbuf_printf(out, "%slast seq        %" PRIu64 "\n", start, le64_get(j->last_seq));
	strbuf_printf(out, "%sflush           %u\n", start, !jset_is_noflush(j));
	strbuf_printf(out, "%sbytes           %" PRIu64 "\n", start, jset_bytes(j));
	strbuf_printf(out, "%schecksum        %s\n", start, e->is_csum_good ? "good" : "bad");
	strbuf_printf(out, "%sstate           %s\n", start, entry_states[state].why);
	strbuf_printf(out, "%swritten at     ", start);
	for (unsigned i = 0; i < e->location_nr; i++) {
		const struct journal_location *at = &e->locations[i];
		uint64_t bucket_sectors = l->fs->super->members[at->dev].m.bucket_sectors;

		strbuf_printf(out, " %u:%u:%u (sector %" PRIu64 ")%s", at->dev, at->ring_idx, at->offset_sectors,
			      at->bucket * bucket_sectors + at->offset_sectors, at->is_csum_good ? "" : " (bad)");
	}
	strbuf_add_char(out, '\n');
}

/* Several lines of text, each with the entry's start and indentation. */
static void add_indented(struct strbuf *out, const char *start, const char *text)
{
	for (const char *line = text; *line;) {
		size_t len = strcspn(line, "\n");

		strbuf_printf(out, "%s  ", start);
		strbuf_add_bytes(out, line, len);
		strbuf_add_char(out, '\n');
		line += len + (line[len] == '\n');
	}
}

/* A log line of level 0 begins a transaction. */
static bool begins_transaction(const struct jset_entry_disk *e) { return e->type == JSET_ENTRY_LOG && !e->level; }

struct entry_text {
	struct list_journal *l;
	const struct journal_entry *e;
	const struct jset_disk *jset;
	bool has_header;
	const struct jset_entry_disk *transaction; /* log line not shown yet */
};

static void sub_entry_text(struct entry_text *t, const struct jset_entry_disk *e)
{
	struct strbuf text = strbuf_growing();

	if (!t->has_header)
		header_text(t->l, t->e, t->jset);
	t->has_header = true;
	if (begins_transaction(e))
		strbuf_add_char(&t->l->out.text, '\n');
	jset_entry_to_text(&text, e, &t->l->fs->super->kctx);
	add_indented(&t->l->out.text, line_start(t->e), strbuf_text(&text));
	if (text.truncated)
		t->l->out.text.truncated = true;
	strbuf_free(&text);
	raw_output_flush(&t->l->out);
}

/* What of a sub-entry matches the filter. */
static void sub_entry_filter_text(struct entry_text *t, const struct jset_entry_disk *e)
{
	struct jset_key_walk w = jset_key_walk_of(e);
	struct single_key single;
	struct bkey_ref k;
	int more;

	if (t->l->btree >= 0 && e->btree_id != t->l->btree)
		w.pos = w.end;
	while ((more = jset_key_walk_next(&w, &k, NULL))) {
		if (more < 0 || !pos_matches(t->l, e->btree_id, &k.k))
			continue;
		if (t->transaction)
			sub_entry_text(t, t->transaction);
		t->transaction = NULL;
		single_key_fill(&single, e, k);
		sub_entry_text(t, &single.head);
	}
	if (begins_transaction(e))
		t->transaction = e;
}

static void entry_text(struct list_journal *l, const struct journal_entry *e, const struct jset_disk *jset)
{
	struct entry_text t = { .l = l, .e = e, .jset = jset };
	struct jset_walk w = jset_walk_of(jset);
	const struct jset_entry_disk *sub;
	struct fault fault;
	int more;

	if (!has_filter(l)) {
		header_text(l, e, jset);
		t.has_header = true;
	}
	/* What a damaged entry holds can't be told from noise, and may be encrypted. */
	while (e->is_csum_good && !l->has_only_headers && !raw_output_is_stopped(&l->out) &&
	       (more = jset_walk_next(&w, &sub, &fault))) {
		if (more < 0)
			strbuf_printf(&l->out.text, "%s  (bad sub-entry: %s %s)\n", line_start(e), fault.field,
				      fault.found);
		else if (has_filter(l))
			sub_entry_filter_text(&t, sub);
		else
			sub_entry_text(&t, sub);
	}
	raw_output_flush(&l->out);
}

/* --- as JSON --- */

static json_t *header_json(const struct list_journal *l, const struct journal_entry *e, const struct jset_disk *j)
{
	json_t *locations = json_array();

	for (unsigned i = 0; i < e->location_nr; i++) {
		const struct journal_location *at = &e->locations[i];
		uint64_t bucket_sectors = l->fs->super->members[at->dev].m.bucket_sectors;

		json_array_append_new(locations,
				      json_pack("{s:i, s:I, s:o, s:I, s:o, s:b}", "device", at->dev, "journal_bucket",
						(json_int_t)at->ring_idx, "bucket", raw_json_u64(at->bucket),
						"offset_sectors", (json_int_t)at->offset_sectors, "sector",
						raw_json_u64(at->bucket * bucket_sectors + at->offset_sectors),
						"checksum_good", at->is_csum_good));
	}
	return json_pack("{s:o, s:o, s:I, s:b, s:o, s:b, s:b, s:s, s:o}", "seq", raw_json_u64(e->seq), "last_seq",
			 raw_json_u64(le64_get(j->last_seq)), "version", (json_int_t)le32_get(j->version), "flush",
			 !jset_is_noflush(j), "bytes", raw_json_u64(jset_bytes(j)), "checksum_good", e->is_csum_good,
			 "replayed", !e->is_ignored && !l->fs->journal->was_clean, "state",
			 entry_states[entry_state(l->fs->journal, e)].name, "written_at", locations);
}

static json_t *type_json(unsigned type)
{
	const char *name = jset_entry_type_name(type);

	return name ? json_string(name) : json_integer(type);
}

/* One object for each key that passes the filter. */
static void keys_json(const struct list_journal *l, const struct jset_entry_disk *e, json_t *array)
{
	struct jset_key_walk w = jset_key_walk_of(e);
	struct bkey_ref k;
	struct fault fault;
	int more;

	if (l->btree >= 0 && e->btree_id != l->btree)
		return;
	while ((more = jset_key_walk_next(&w, &k, &fault))) {
		json_t *j = NULL;

		if (more > 0 && !pos_matches(l, e->btree_id, &k.k))
			continue;
		if (more > 0 && !key_validate_value(k, &l->fs->super->kctx, &fault))
			j = raw_json_key(e->btree_id, e->level, k, &l->fs->super->kctx);
		else if (!l->has_pos)
			j = json_pack("{s:s++}", "bad_key", fault.field, " ", fault.found);
		if (!j)
			continue;
		json_t *entry = json_pack("{s:o}", "entry", type_json(e->type));
		json_object_update(entry, j);
		json_decref(j);
		json_array_append_new(array, entry);
	}
}

static void sub_entry_json(const struct list_journal *l, const struct jset_entry_disk *e, json_t *array)
{
	bool has_keys = jset_key_walk_of(e).pos != jset_key_walk_of(e).end;
	struct strbuf text = strbuf_growing();

	if (has_keys)
		keys_json(l, e, array);
	else if (!has_filter(l))
		jset_entry_to_text(&text, e, &l->fs->super->kctx);
	if (text.len)
		json_array_append_new(
			array, json_pack("{s:o, s:o}", "entry", type_json(e->type), "text", raw_json_text(&text)));
	strbuf_free(&text);
}

static void entry_json(struct list_journal *l, const struct journal_entry *e, const struct jset_disk *jset)
{
	struct jset_walk w = jset_walk_of(jset);
	const struct jset_entry_disk *sub;
	json_t *j = header_json(l, e, jset), *array = json_array();

	while (e->is_csum_good && !l->has_only_headers && jset_walk_next(&w, &sub, NULL) > 0)
		sub_entry_json(l, sub, array);
	bool is_shown = !has_filter(l) || json_array_size(array);
	if (l->has_only_headers)
		json_decref(array);
	else
		json_object_set_new(j, "entries", array);
	if (is_shown)
		raw_output_json(&l->out, j, false);
	else
		json_decref(j);
}

/* --- the command --- */

static int list_entries(struct list_journal *l)
{
	struct journal_state *state = l->fs->journal;
	uint64_t listed_nr = 0, skip = 0;
	struct journal_reader *reader;

	for (size_t i = 0; i < state->entry_nr; i++)
		listed_nr += entry_is_listed(l, &state->entries[i]);
	if (l->last_nr && listed_nr > l->last_nr)
		skip = listed_nr - l->last_nr;
	if (!listed_nr)
		tool_error("%s", state->was_clean ? "shut down cleanly: nothing is replayed (--all lists every entry)"
						  : "there is nothing to replay");

	int err = journal_reader_open(state, &reader);
	for (size_t i = 0; !err && i < state->entry_nr && !raw_output_is_stopped(&l->out); i++) {
		struct journal_entry *e = &state->entries[i];
		const struct jset_disk *jset;

		if (!entry_is_listed(l, e))
			continue;
		if (skip) {
			skip--;
			continue;
		}
		err = journal_entry_load(reader, e, &jset);
		if (!err && l->is_json)
			entry_json(l, e, jset);
		else if (!err)
			entry_text(l, e, jset);
	}
	journal_reader_close(reader);
	if (err)
		tool_error("can't read the journal: %s", error_name(err));
	return err ? TOOL_FAILED : TOOL_OK;
}

static int list_journal_run(const struct command *self, int argc, char **argv)
{
	enum { OPT_HEADERS = TOOL_OPT_COMMAND };
	static const struct option options[] = { TOOL_OPEN_OPTIONS,
						 { "json", no_argument, NULL, TOOL_OPT_JSON },
						 { "all", no_argument, NULL, 'a' },
						 { "last", required_argument, NULL, 'n' },
						 { "btree", required_argument, NULL, 'b' },
						 { "key", required_argument, NULL, 'k' },
						 { "headers", no_argument, NULL, OPT_HEADERS },
						 { 0 } };
	struct tool_open open = tool_open_defaults();
	struct list_journal l = { .btree = -1 };
	int c, status;

	while ((c = getopt_long(argc, argv, "an:b:k:", options, NULL)) != -1) {
		if (tool_open_option(self, c, &open, &status) < 0)
			return status;
		l.is_all |= c == 'a';
		l.has_only_headers |= c == OPT_HEADERS;
		l.has_pos |= c == 'k';
		if (c == 'n' && (raw_u64_parse(optarg, INT64_MAX, &l.last_nr) || !l.last_nr))
			return tool_usage_error(self, "--last takes a number from 1 on, not '%s'", optarg);
		if (c == 'b' && ((l.btree = btree_id_parse(optarg)) < 0 || l.btree >= BTREE_NR_MAX))
			return tool_usage_error(self, "'%s' is no btree (a name like extents, or a number up to 62)",
						optarg);
		if (c == 'k' && raw_pos_parse_parts(optarg, &l.pos, &l.pos_parts))
			return tool_usage_error(self, "'%s' is no position (INODE[:OFFSET[:SNAPSHOT]])", optarg);
	}
	if (argc - optind != 1)
		return raw_usage_fs(self);
	if (l.has_only_headers && has_filter(&l))
		return tool_usage_error(self, "--headers leaves nothing to look for keys in");

	l.is_json = open.is_json;
	raw_output_begin(&l.out);
	l.fs = tool_open_fs(&open, argv[optind], FS_JOURNAL);
	if (!l.fs)
		return raw_output_end(&l.out, TOOL_FAILED);
	status = list_entries(&l);
	return tool_close_fs(l.fs, raw_output_end(&l.out, status));
}

const struct command command_list_journal = {
	.name = "list-journal",
	.summary = "show what is in the journal",
	.usage = usage,
	.run = list_journal_run,
};
