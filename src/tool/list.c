/*
 * kiln list: the keys of btrees, or their nodes, as they are: with the journal's keys over them, all snapshots, nothing
 * interpreted.
 *
 * Memory stays bounded whatever is listed: keys are streamed. Behind damage the listing goes on; each damaged range is
 * told on standard error, and with --json also in its place among the keys.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "tool/raw_text.h"

static const char usage[] =
	"usage: kiln list [OPTIONS] FS\n"
	"\n"
	"List the keys of a btree in order, decoded, one a line (some values take several). What is in the journal and "
	"not\n"
	"yet in the btree is included, except counters (btree accounting), which are shown as the btree has them.\n"
	"\n"
	"  -b, --btree NAME        which btree, by name or number, or all (default extents)\n"
	"  -s, --start POS         first position: INODE[:OFFSET[:SNAPSHOT]]; numbers, U64_MAX, U32_MAX, or POS_MIN, "
	"...\n"
	"  -e, --end POS           last position, included. In extents, a position is the end of a range of sectors\n"
	"  -l, --level N           keys of this level instead of the leaves (0); with nodes and formats, only this "
	"level\n"
	"  -m, --mode MODE         keys (the default), nodes (where nodes are and what is in them), formats (of their "
	"keys)\n"
	"  --snapshot N            only what is visible in this snapshot; the default is everything\n"
	"  --json                  one JSON object a line\n" TOOL_OPEN_USAGE;

enum list_mode { LIST_KEYS, LIST_NODES, LIST_FORMATS };

enum { BTREE_ALL = -1 };

struct list {
	struct raw_output out;
	kiln_fs *fs;
	enum list_mode mode;
	int btree; /* or BTREE_ALL */
	unsigned level;
	bool has_level, has_snapshot, is_json;
	uint32_t snapshot;
	struct bpos start, end;
	unsigned btree_id; /* now being listed */
	bool has_heading;
	int status;
};

/* --- keys --- */

/* The name of the btree before its first line, where there may be several. */
static void show_heading(struct list *l)
{
	if (l->btree == BTREE_ALL && !l->is_json && !l->has_heading) {
		strbuf_add(&l->out.text, "==== btree ");
		raw_add_btree(&l->out.text, l->btree_id);
		strbuf_add_char(&l->out.text, '\n');
	}
	l->has_heading = true;
}

static void show_key(struct list *l, struct bkey_ref k)
{
	const struct key_context *kctx = &l->fs->super->kctx;

	if (l->is_json) {
		raw_output_json(&l->out, raw_json_key(l->btree_id, l->level, k, kctx), false);
		return;
	}
	show_heading(l);
	key_to_text(&l->out.text, k, kctx);
	strbuf_add_char(&l->out.text, '\n');
	raw_output_flush(&l->out);
}

/* What was lost: the report on standard error says why; here is where, among the keys. */
static void show_damage(struct list *l, struct bpos first, struct bpos last, int err)
{
	l->status = TOOL_DAMAGE;
	if (l->is_json)
		raw_output_json(&l->out,
				json_pack("{s:o, s:i, s:{s:o, s:o, s:s}}", "btree", raw_json_btree(l->btree_id),
					  "level", (int)l->level, "damage", "first", raw_json_pos(first), "last",
					  raw_json_pos(last), "error", error_name(err)),
				false);
}

static int list_keys(struct list *l)
{
	struct btree_iter it;
	struct bkey_ref k;
	int n, err = 0;

	if (l->level)
		btree_iter_open_level(&it, l->fs->trees, l->btree_id, l->level, l->start);
	else
		btree_iter_open(&it, l->fs->trees, l->btree_id, l->start,
				l->has_snapshot ? 0 : BTREE_ITER_ALL_SNAPSHOTS, l->snapshot);
	it.end = l->end;
	while (!err && !raw_output_is_stopped(&l->out) && (n = btree_iter_peek(&it, &k)) != 0) {
		if (n > 0) {
			show_key(l, k);
			btree_iter_advance(&it);
		} else if (n == -ENOMEM || n == -EINVAL) {
			err = n;
		} else {
			show_damage(l, bpos_lt(it.damage_min, l->start) ? l->start : it.damage_min, it.damage_max, n);
			btree_iter_skip_damage(&it);
		}
	}
	btree_iter_close(&it);
	return err;
}

/* --- nodes --- */

static json_t *format_json(const struct bkey_format *f)
{
	static const char *const fields[BKEY_FIELD_NR] = { "inode", "offset",	  "snapshot",
							   "size",  "version_hi", "version_lo" };
	json_t *array = json_array();

	for (unsigned i = 0; i < BKEY_FIELD_NR; i++)
		json_array_append_new(array, json_pack("{s:s, s:i, s:o}", "field", fields[i], "bits", (int)f->bits[i],
						       "offset", raw_json_u64(f->offset[i])));
	return array;
}

static json_t *node_json(const struct list *l, const struct btree_node_info *info, int err)
{
	json_t *ptrs = json_array();
	json_t *j = json_pack("{s:o, s:i, s:o, s:o, s:o, s:o}", "btree", raw_json_btree(info->btree_id), "level",
			      (int)info->level, "min", raw_json_pos(info->min_key), "max", raw_json_pos(info->max_key),
			      "seq", json_sprintf("%" PRIx64, info->seq), "ptrs", ptrs);

	for (unsigned i = 0; i < info->ptr.ptr_nr; i++)
		json_array_append_new(ptrs, json_pack("{s:i, s:o, s:i}", "device", (int)info->ptr.ptrs[i].dev, "sector",
						      raw_json_u64(info->ptr.ptrs[i].sector), "gen",
						      (int)info->ptr.ptrs[i].gen));
	if (err) {
		json_object_set_new(j, "error", json_string(error_name(err)));
		return j;
	}
	json_object_set_new(j, "written_sectors", json_integer(info->written_sectors));
	json_object_set_new(j, "sets", json_integer(info->set_nr));
	json_object_set_new(j, "keys", json_integer(info->key_nr));
	json_object_set_new(j, "live_u64s", json_integer(info->live_u64s));
	json_object_set_new(j, "bad_keys", json_integer(info->bad_key_nr));
	if (l->mode == LIST_FORMATS)
		json_object_set_new(j, "format", format_json(&info->format));
	return j;
}

static void node_text(struct list *l, const struct btree_node_info *info, int err)
{
	struct strbuf *out = &l->out.text;

	show_heading(l);
	strbuf_printf(out, "level %u ", info->level);
	bpos_to_text(out, info->min_key);
	strbuf_add(out, " to ");
	bpos_to_text(out, info->max_key);
	strbuf_printf(out, ": seq %" PRIx64, info->seq);
	if (err)
		strbuf_printf(out, " unreadable (%s)", error_name(err));
	else if (l->mode == LIST_FORMATS)
		strbuf_add_char(out, ' ');
	else
		strbuf_printf(out, " written %u sets %u keys %u live_u64s %u", info->written_sectors, info->set_nr,
			      info->key_nr, info->live_u64s);
	if (!err && l->mode == LIST_FORMATS)
		bkey_format_to_text(out, &info->format);
	if (!err && info->bad_key_nr)
		strbuf_printf(out, " bad_keys %u", info->bad_key_nr);
	for (unsigned i = 0; i < info->ptr.ptr_nr && (err || l->mode == LIST_NODES); i++) {
		strbuf_add(out, " ptr: ");
		extent_ptr_location_to_text(out, &info->ptr.ptrs[i], &l->fs->super->kctx);
		strbuf_printf(out, " gen %u", info->ptr.ptrs[i].gen);
	}
	strbuf_add_char(out, '\n');
	raw_output_flush(&l->out);
}

static int show_node(void *ctx, const struct btree_node_info *info, int err)
{
	struct list *l = ctx;

	if (raw_output_is_stopped(&l->out))
		return 1;
	if (err)
		l->status = TOOL_DAMAGE;
	bool is_wanted = (!l->has_level || info->level == l->level) && bpos_le(info->min_key, l->end) &&
			 bpos_le(l->start, info->max_key);
	if (!is_wanted)
		return 0;
	if (l->is_json)
		raw_output_json(&l->out, node_json(l, info, err), false);
	else
		node_text(l, info, err);
	return 0;
}

/* --- the command --- */

static int list_btree(struct list *l, unsigned id)
{
	l->btree_id = id;
	l->has_heading = false;
	if (l->mode == LIST_KEYS)
		return list_keys(l);
	int err = btree_nodes_walk(l->fs->trees, id, show_node, l);
	return err == -ENOMEM ? err : 0;
}

static int list_run_on(struct list *l)
{
	unsigned first = l->btree == BTREE_ALL ? 0 : (unsigned)l->btree;
	unsigned last = l->btree == BTREE_ALL ? BTREE_NR_MAX - 1 : first;
	int err = 0;

	for (unsigned id = first; id <= last && !err && !raw_output_is_stopped(&l->out); id++)
		err = list_btree(l, id);
	if (err) {
		tool_error("can't go on: %s", error_name(err));
		return TOOL_FAILED;
	}
	return l->status;
}

static int mode_parse(const char *text, enum list_mode *mode)
{
	static const char *const names[] = { [LIST_KEYS] = "keys", [LIST_NODES] = "nodes", [LIST_FORMATS] = "formats" };

	for (unsigned i = 0; i < ARRAY_NR(names); i++)
		if (!strcmp(text, names[i])) {
			*mode = (enum list_mode)i;
			return 0;
		}
	return -EINVAL;
}

/* What the argument of an option should have been. */
static const char *option_meaning(int c)
{
	switch (c) {
	case 'b': return "btree (all, or a name like extents, or a number up to 62)";
	case 's':
	case 'e': return "position (INODE[:OFFSET[:SNAPSHOT]])";
	case 'l': return "level (0 to 3)";
	case 'm': return "mode (keys, nodes or formats)";
	default: return "snapshot number";
	}
}

/* Handle an option of our own; false: its argument is wrong. */
static bool list_option(struct list *l, int c, int opt_snapshot)
{
	uint64_t number;

	switch (c) {
	case 'b':
		l->btree = strcmp(optarg, "all") ? btree_id_parse(optarg) : BTREE_ALL;
		return l->btree == BTREE_ALL ? !strcmp(optarg, "all") : l->btree >= 0 && l->btree < BTREE_NR_MAX;
	case 's': return !raw_pos_parse(optarg, false, &l->start);
	case 'e': return !raw_pos_parse(optarg, true, &l->end);
	case 'l':
		if (raw_u64_parse(optarg, BTREE_LEVEL_MAX, &number))
			return false;
		l->level = (unsigned)number;
		return l->has_level = true;
	case 'm': return !mode_parse(optarg, &l->mode);
	default:
		if (c != opt_snapshot)
			return true;
		if (raw_u64_parse(optarg, UINT32_MAX, &number))
			return false;
		l->snapshot = (uint32_t)number;
		return l->has_snapshot = true;
	}
}

static int list_run(const struct command *self, int argc, char **argv)
{
	enum { OPT_SNAPSHOT = TOOL_OPT_COMMAND };
	static const struct option options[] = { TOOL_OPEN_OPTIONS,
						 { "json", no_argument, NULL, TOOL_OPT_JSON },
						 { "btree", required_argument, NULL, 'b' },
						 { "start", required_argument, NULL, 's' },
						 { "end", required_argument, NULL, 'e' },
						 { "level", required_argument, NULL, 'l' },
						 { "mode", required_argument, NULL, 'm' },
						 { "snapshot", required_argument, NULL, OPT_SNAPSHOT },
						 { 0 } };
	struct tool_open open = tool_open_defaults();
	struct list l = { .btree = BTREE_EXTENTS, .start = POS_MIN, .end = SPOS_MAX };
	int c, status;

	while ((c = getopt_long(argc, argv, "b:s:e:l:m:", options, NULL)) != -1) {
		if (tool_open_option(self, c, &open, &status) < 0)
			return status;
		if (!list_option(&l, c, OPT_SNAPSHOT))
			return tool_usage_error(self, "'%s' is no %s", optarg, option_meaning(c));
	}
	if (argc - optind != 1)
		return raw_usage_fs(self);
	if (l.has_snapshot && (l.mode != LIST_KEYS || l.level))
		return tool_usage_error(self, "--snapshot is for keys of level 0");

	l.is_json = open.is_json;
	raw_output_begin(&l.out);
	/* Which snapshots are visible in which is known only where the namespace is. */
	l.fs = tool_open_fs(&open, argv[optind], l.has_snapshot ? FS_NAMESPACE : FS_BTREES);
	if (!l.fs)
		return raw_output_end(&l.out, TOOL_FAILED);
	status = list_run_on(&l);
	return tool_close_fs(l.fs, raw_output_end(&l.out, status));
}

const struct command command_list = {
	.name = "list",
	.summary = "show the keys or nodes of btrees",
	.usage = usage,
	.run = list_run,
};
