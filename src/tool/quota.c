/*
 * kiln quota: what users, groups and projects use, and may use.
 *
 * One command with a few actions, as they share arguments: WHO is TYPE:ID everywhere, and what is printed is the same
 * row. What is mounted is asked for and told to its server; else looking opens the filesystem for reading, where
 * everything is counted anew.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tool/change.h"
#include "tool/mount_quota.h"
#include "tool/owner.h"
#include "tool/raw_text.h"

static const char usage[] =
	"usage: kiln quota [OPTIONS] FS report [TYPE...]\n"
	"       kiln quota [OPTIONS] FS get WHO...\n"
	"       kiln quota [OPTIONS] FS set WHO... [LIMITS]\n"
	"       kiln quota [OPTIONS] FS grace TYPE [PERIODS]\n"
	"\n"
	"Show and change quotas. TYPE is user, group or project; WHO is TYPE:ID, like user:1000 (or the name of a user "
	"or\n"
	"group on this machine) or project:7. FS may be mounted, and then be the directory. Limits hold where the "
	"option "
	"of\n"
	"their type is set: `kiln set-option FS usrquota=1` (grpquota, prjquota), or `kiln mount -o usrquota`.\n"
	"\n"
	"  --space-soft SIZE, --space-hard SIZE\n"
	"                          set: limits of space; 0 for none. Others stay as they are\n"
	"  --inodes-soft N, --inodes-hard N\n"
	"                          set: limits of the number of files, directories and all else\n"
	"  --space-period TIME, --inodes-period TIME\n"
	"                          grace: how long use may be above a soft limit: seconds, or 12h, 7d\n"
	"  -h, --human             report, get: sizes with units\n"
	"  --json                  report, get: as JSON; sizes are bytes\n" TOOL_OPEN_USAGE;

static const char *const type_names[] = { "user", "group", "project" };
static const char *const type_options[] = { "usrquota", "grpquota", "prjquota" };
enum { TYPES = ARRAY_NR(type_names) };

enum {
	OPT_SPACE_SOFT = TOOL_OPT_COMMAND,
	OPT_SPACE_HARD,
	OPT_INODES_SOFT,
	OPT_INODES_HARD,
	OPT_SPACE_PERIOD,
	OPT_INODES_PERIOD,
};

struct quota_args {
	struct change change;
	struct mount_quota *served; /* by whom it is mounted; NULL: it isn't, or may be read by force */
	struct kiln_quota_limits limits;
	bool has_period[2];
	uint32_t periods[2];
	bool is_human;
	struct raw_output out;
	json_t *json;
};

/* --- arguments --- */

/* A type at the begin of @text, which ends at @end or its NUL. -EINVAL. */
static int type_parse(const char *text, char end, const char **rest)
{
	for (int type = 0; type < TYPES; type++) {
		size_t len = strlen(type_names[type]);

		if (strncmp(text, type_names[type], len) || text[len] != end)
			continue;
		if (rest)
			*rest = text + len + 1;
		return type;
	}
	return -EINVAL;
}

static int who_parse(const char *text, enum kiln_quota_type *type, uint32_t *id)
{
	char with_colon[64];
	struct owner owner;
	uint64_t number;
	const char *name;
	int found = type_parse(text, ':', &name);

	if (found < 0 || !*name)
		return -EINVAL;
	*type = (enum kiln_quota_type)found;
	if (!raw_u64_parse(name, UINT32_MAX, &number)) {
		*id = (uint32_t)number;
		return 0;
	}
	bool is_group = *type == KILN_QUOTA_GROUP;
	if (*type == KILN_QUOTA_PROJECT || strchr(name, ':') ||
	    snprintf(with_colon, sizeof(with_colon), "%s%s", is_group ? ":" : "", name) >= (int)sizeof(with_colon) ||
	    owner_parse(with_colon, &owner))
		return -EINVAL;
	*id = is_group ? owner.gid : owner.uid;
	return 0;
}

static int period_parse(const char *text, uint32_t *seconds)
{
	static const struct {
		char unit;
		uint32_t seconds;
	} units[] = { { 0, 1 }, { 's', 1 }, { 'm', 60 }, { 'h', 3600 }, { 'd', 24 * 3600 }, { 'w', 7 * 24 * 3600 } };
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	for (size_t i = 0; i < ARRAY_NR(units); i++)
		if (*end == units[i].unit && (!*end || !end[1]) && !errno && value <= UINT32_MAX / units[i].seconds) {
			*seconds = (uint32_t)value * units[i].seconds;
			return 0;
		}
	return -EINVAL;
}

/* An option with a value. TOOL_OK, or the exit status after a message. */
static int option_take(const struct command *self, struct quota_args *q, int c)
{
	struct kiln_quota_limits *l = &q->limits;
	uint64_t *const values[] = { &l->space_soft, &l->space_hard, &l->inodes_soft, &l->inodes_hard };
	static const unsigned fields[] = { KILN_QUOTA_SPACE_SOFT, KILN_QUOTA_SPACE_HARD, KILN_QUOTA_INODES_SOFT,
					   KILN_QUOTA_INODES_HARD };
	int err;

	if (c == 'h') {
		q->is_human = true;
		return TOOL_OK;
	}
	if (c >= OPT_SPACE_PERIOD) {
		unsigned i = (unsigned)(c - OPT_SPACE_PERIOD);

		q->has_period[i] = true;
		return period_parse(optarg, &q->periods[i]) ? tool_usage_error(self, "'%s' is no period", optarg)
							    : TOOL_OK;
	}
	unsigned i = (unsigned)(c - OPT_SPACE_SOFT);
	err = c < OPT_INODES_SOFT ? tool_parse_size(optarg, values[i]) : raw_u64_parse(optarg, INT64_MAX, values[i]);
	if (err || *values[i] > INT64_MAX)
		return tool_usage_error(self, "'%s' is no %s", optarg, c < OPT_INODES_SOFT ? "size" : "number");
	l->fields |= fields[i];
	return TOOL_OK;
}

/* --- the filesystem, or its server --- */

static int info_of(struct quota_args *q, kiln_fs *fs, enum kiln_quota_type type, struct kiln_quota_info *info)
{
	return q->served ? mount_quota_info(q->served, type, info) : kiln_quota_info(fs, type, info);
}

static int list_of(struct quota_args *q, kiln_fs *fs, enum kiln_quota_type type, kiln_quota_fn fn)
{
	return q->served ? mount_quota_list(q->served, type, fn, q) : kiln_quota_list(fs, type, fn, q);
}

static int get_of(struct quota_args *q, kiln_fs *fs, enum kiln_quota_type type, uint32_t id, struct kiln_quota *quota)
{
	return q->served ? mount_quota_get(q->served, type, id, quota) : kiln_quota_get(fs, type, id, quota);
}

static void store_failed(struct quota_args *q, const char *whose, int err, const char *what)
{
	struct strbuf text = strbuf_growing();

	strbuf_printf(&text, "%s: %s", what, q->served ? q->served->why : strerror(-err));
	change_failed(&q->change, whose, 0, strbuf_text(&text));
	strbuf_free(&text);
}

/* --- what is shown --- */

static void value_add(struct quota_args *q, uint64_t value, bool is_limit, bool is_space)
{
	char text[32];
	struct strbuf t = strbuf_fixed(text, sizeof(text));

	if (is_limit && !value)
		strbuf_add(&t, "-");
	else if (is_space && q->is_human)
		strbuf_add_size(&t, value);
	else
		strbuf_printf(&t, "%" PRIu64, value);
	strbuf_printf(&q->out.text, " %14s", text);
}

static void row_text(struct quota_args *q, const struct kiln_quota *quota)
{
	const struct kiln_quota_value *values[] = { &quota->space, &quota->inodes };

	strbuf_printf(&q->out.text, "%-7s %10" PRIu32, type_names[quota->type], quota->id);
	for (unsigned i = 0; i < ARRAY_NR(values); i++) {
		const struct kiln_quota_value *v = values[i];
		bool is_over = (v->soft && v->used > v->soft) || (v->hard && v->used > v->hard);

		value_add(q, v->used, false, !i);
		strbuf_add_char(&q->out.text, is_over ? '+' : ' ');
		value_add(q, v->soft, true, !i);
		value_add(q, v->hard, true, !i);
	}
	strbuf_add_char(&q->out.text, '\n');
	raw_output_flush(&q->out);
}

static json_t *value_json(const struct kiln_quota_value *v)
{
	return json_pack("{s:o, s:o, s:o}", "used", raw_json_u64(v->used), "soft", raw_json_u64(v->soft), "hard",
			 raw_json_u64(v->hard));
}

static int row_show(void *ctx, const struct kiln_quota *quota)
{
	struct quota_args *q = ctx;

	if (q->json)
		json_array_append_new(q->json, json_pack("{s:s, s:I, s:o, s:o}", "type", type_names[quota->type], "id",
							 (json_int_t)quota->id, "space", value_json(&quota->space),
							 "inodes", value_json(&quota->inodes)));
	else
		row_text(q, quota);
	return raw_output_is_stopped(&q->out) ? -EINTR : 0;
}

static void type_text(struct quota_args *q, unsigned type, const struct kiln_quota_info *info)
{
	strbuf_printf(&q->out.text, "%s quotas: %s; grace periods: space %" PRIu32 " s, inodes %" PRIu32 " s\n",
		      type_names[type], info->is_enabled ? "on" : "off", info->space_grace, info->inodes_grace);
}

static void header_text(struct quota_args *q)
{
	strbuf_printf(&q->out.text, "%-7s %10s %14s  %14s %14s %14s  %14s %14s\n", "type", "id", "space", "soft",
		      "hard", "inodes", "soft", "hard");
}

static void output_begin(struct quota_args *q)
{
	raw_output_begin(&q->out);
	if (q->change.open.is_json)
		q->json = json_array();
}

static int output_end(struct quota_args *q, json_t *value, int status)
{
	if (q->change.open.is_json)
		raw_output_json(&q->out, value, true);
	else
		raw_output_flush(&q->out);
	return raw_output_end(&q->out, status);
}

/* --- the actions: @args behind the action's name --- */

static int show_failed(const struct quota_args *q, int err)
{
	if (err == -EINTR)
		return TOOL_FAILED;
	tool_error("what is used can't be counted: %s", q->served ? q->served->why : strerror(-err));
	return TOOL_FAILED;
}

static int report(struct quota_args *q, kiln_fs *fs, char **args, size_t nr)
{
	json_t *states = json_object();
	struct kiln_quota_info info = { 0 };
	bool is_wanted[TYPES] = { false };
	int err = 0;

	for (size_t i = 0; i < nr; i++)
		is_wanted[type_parse(args[i], 0, NULL)] = true;
	for (unsigned type = 0; type < TYPES && !err; type++) {
		is_wanted[type] |= !nr;
		if (!is_wanted[type])
			continue;
		err = info_of(q, fs, (enum kiln_quota_type)type, &info);
		if (err)
			break;
		if (!q->json)
			type_text(q, type, &info);
		json_object_set_new(states, type_names[type],
				    json_pack("{s:b, s:I, s:I}", "enabled", (int)info.is_enabled, "space_grace",
					      (json_int_t)info.space_grace, "inodes_grace",
					      (json_int_t)info.inodes_grace));
	}
	if (!q->json && !err)
		header_text(q);
	for (unsigned type = 0; type < TYPES && !err; type++)
		if (is_wanted[type])
			err = list_of(q, fs, (enum kiln_quota_type)type, row_show);
	err = err ? err : info_of(q, fs, KILN_QUOTA_USER, &info);
	if (!err && info.is_partial)
		tool_error("some inodes can't be read: what they use is missing");
	json_t *whole = json_pack("{s:o, s:b, s:O}", "types", states, "partial", (int)info.is_partial, "quotas",
				  q->json ? q->json : json_null());
	int status = output_end(q, q->json ? whole : NULL, err ? show_failed(q, err) : TOOL_OK);
	if (!q->json)
		json_decref(whole);
	json_decref(q->json);
	return status;
}

static int get(struct quota_args *q, kiln_fs *fs, char **args, size_t nr)
{
	enum kiln_quota_type type;
	struct kiln_quota quota;
	uint32_t id;
	int err = 0;

	if (!q->json)
		header_text(q);
	for (size_t i = 0; i < nr && !err; i++) {
		who_parse(args[i], &type, &id);
		err = get_of(q, fs, type, id, &quota);
		if (!err)
			err = row_show(q, &quota);
	}
	return output_end(q, q->json, err ? show_failed(q, err) : TOOL_OK);
}

/* What keeps stored limits from holding, if anything does. */
static void tell_not_held(const struct quota_args *q, unsigned type, const struct kiln_quota_info *info)
{
	if (!info->is_enabled)
		tool_error("stored, but quotas of this type are off: `kiln set-option FS %s=1`%s makes them hold",
			   type_options[type], q->served ? " while it isn't mounted" : "");
	else if (q->served && !info->is_counted)
		tool_error("stored; limits hold as soon as all inodes are counted, which has gone on since it was "
			   "mounted (`kiln status` says how far it is)");
}

static int set(struct quota_args *q, kiln_fs *fs, char **args, size_t nr)
{
	bool is_told[TYPES] = { false };

	for (size_t i = 0; i < nr; i++) {
		struct kiln_quota_info info;
		enum kiln_quota_type type;
		uint32_t id;

		who_parse(args[i], &type, &id);
		int err = q->served ? mount_quota_set(q->served, type, id, &q->limits)
				    : kiln_quota_set(fs, type, id, &q->limits);
		if (err) {
			store_failed(q, args[i], err, "limits can't be stored");
			break;
		}
		if (!is_told[type] && !info_of(q, fs, type, &info))
			tell_not_held(q, type, &info);
		is_told[type] = true;
	}
	return TOOL_OK;
}

static int grace(struct quota_args *q, kiln_fs *fs, char **args, size_t nr)
{
	enum kiln_quota_type type = (enum kiln_quota_type)type_parse(args[0], 0, NULL);
	struct kiln_quota_info info = { 0 };

	int err = info_of(q, fs, type, &info);
	uint32_t space = q->has_period[0] ? q->periods[0] : info.space_grace;
	uint32_t inodes = q->has_period[1] ? q->periods[1] : info.inodes_grace;
	if (!err)
		err = q->served ? mount_quota_set_grace(q->served, type, space, inodes)
				: kiln_quota_set_grace(fs, type, space, inodes);
	if (err)
		store_failed(q, args[0], err, "grace periods can't be stored");
	return TOOL_OK;
}

static const struct action {
	const char *name;
	bool is_change;
	bool takes_types; /* its arguments are types, else who */
	size_t args_min, args_max;
	int (*run)(struct quota_args *q, kiln_fs *fs, char **args, size_t nr);
} actions[] = {
	{ "report", false, true, 0, SIZE_MAX, report },
	{ "get", false, false, 1, SIZE_MAX, get },
	{ "set", true, false, 1, SIZE_MAX, set },
	{ "grace", true, true, 1, 1, grace },
};

/* TOOL_OK, or the exit status after a message. */
static int args_check(const struct command *self, const struct quota_args *q, const struct action *a, char **args,
		      size_t nr)
{
	enum kiln_quota_type type;
	uint32_t id;

	if (nr < a->args_min || nr > a->args_max)
		return tool_usage_error(self, "%s needs %s", a->name,
					a->takes_types ? "one type" : "one or more TYPE:ID");
	for (size_t i = 0; i < nr; i++) {
		if (a->takes_types && type_parse(args[i], 0, NULL) < 0)
			return tool_usage_error(self, "'%s' is not user, group or project", args[i]);
		if (!a->takes_types && who_parse(args[i], &type, &id))
			return tool_usage_error(self, "'%s' is nobody: use user:ID, group:ID or project:ID", args[i]);
	}
	if ((a->run == set) != (q->limits.fields != 0))
		return tool_usage_error(self, a->run == set ? "set needs a limit" : "limits are for set");
	if ((a->run == grace) != (q->has_period[0] || q->has_period[1]))
		return tool_usage_error(self, a->run == grace ? "grace needs a period" : "periods are for grace");
	if (a->is_change && q->change.open.is_json)
		return tool_usage_error(self, "--json is for report and get");
	return TOOL_OK;
}

static int action_run_served(struct quota_args *q, const struct action *a, char **args, size_t nr)
{
	if (!a->is_change) {
		output_begin(q);
		return a->run(q, NULL, args, nr);
	}
	a->run(q, NULL, args, nr);
	int err = mount_quota_commit(q->served);
	if (err)
		tool_error("what was stored isn't durable: %s", q->served->why);
	return err || q->change.has_failed ? TOOL_FAILED : TOOL_OK;
}

static int action_run_here(struct quota_args *q, const struct action *a, const char *fs_arg, char **args, size_t nr)
{
	if (a->is_change) {
		if (!change_open(&q->change, fs_arg))
			return TOOL_FAILED;
		a->run(q, q->change.fs, args, nr);
		return change_close(&q->change);
	}
	output_begin(q);
	kiln_fs *fs = tool_open_fs(&q->change.open, fs_arg, FS_NAMESPACE);
	if (!fs) {
		json_decref(q->json);
		return raw_output_end(&q->out, TOOL_FAILED);
	}
	return tool_close_fs(fs, a->run(q, fs, args, nr));
}

static int action_run(struct quota_args *q, const struct action *a, const char *fs_arg, char **args, size_t nr)
{
	struct mount_quota served;

	if (q->change.open.flags & KILN_OPEN_FORCE)
		return action_run_here(q, a, fs_arg, args, nr);
	switch (mount_quota_find(&served, fs_arg)) {
	case MOUNT_CONTROL_NONE: return action_run_here(q, a, fs_arg, args, nr);
	case MOUNT_CONTROL_STUCK: return TOOL_FAILED;
	case MOUNT_CONTROL_FOUND: break;
	}
	q->served = &served;
	int status = action_run_served(q, a, args, nr);
	mount_quota_done(&served);
	return status;
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS,
						 { "json", no_argument, NULL, TOOL_OPT_JSON },
						 { "human", no_argument, NULL, 'h' },
						 { "space-soft", required_argument, NULL, OPT_SPACE_SOFT },
						 { "space-hard", required_argument, NULL, OPT_SPACE_HARD },
						 { "inodes-soft", required_argument, NULL, OPT_INODES_SOFT },
						 { "inodes-hard", required_argument, NULL, OPT_INODES_HARD },
						 { "space-period", required_argument, NULL, OPT_SPACE_PERIOD },
						 { "inodes-period", required_argument, NULL, OPT_INODES_PERIOD },
						 { 0 } };
	struct quota_args q = { .change = { .self = self, .open = tool_open_defaults() } };
	int c, status;

	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		int taken = tool_open_option(self, c, &q.change.open, &status);

		if (taken < 0)
			return status;
		if (!taken && (status = option_take(self, &q, c)))
			return status;
	}
	char **args = argv + optind;
	if (argc - optind < 2)
		return tool_usage_error(self, "needs a filesystem and what to do: report, get, set or grace");
	for (size_t i = 0; i < ARRAY_NR(actions); i++) {
		size_t nr = (size_t)(argc - optind) - 2;

		if (strcmp(args[1], actions[i].name))
			continue;
		status = args_check(self, &q, &actions[i], args + 2, nr);
		return status ? status : action_run(&q, &actions[i], args[0], args + 2, nr);
	}
	return tool_usage_error(self, "'%s' is none of report, get, set and grace", args[1]);
}

const struct command command_quota = { "quota", "show and limit what users, groups and projects use", usage, run };
