/*
 * kiln check: is everything consistent? Looks, and changes nothing.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/strbuf.h"
#include "recovery/check.h"
#include "tool/raw_text.h"

static const char usage[] =
	"usage: kiln check [OPTIONS] FS\n"
	"\n"
	"Check all that must hold in a consistent filesystem, without changing anything. One that was not cleanly\n"
	"unmounted is checked as it will be after recovery. What is wrong is told on standard error.\n"
	"\n"
	"  --data                  also read and verify all data, of every replica\n"
	"  --passes=NAME,NAME,...  only these passes (`--passes=list` shows them)\n"
	"  --max-reports N         tell no more than N errors of each kind, count the others (default 100; 0: all)\n"
	"  --tables SIZE           memory for tables, besides --memory (default 64M, at least 1M)\n"
	"  --json                  results as a JSON object\n" TOOL_OPEN_USAGE "\n"
	"Exit status: 0 nothing is wrong, 4 errors were found, 8 the check could not be done, 2 wrong arguments.\n";

enum { OPT_DATA = TOOL_OPT_COMMAND, OPT_PASSES, OPT_MAX_REPORTS, OPT_TABLES };
enum { CHECK_EXIT_ERRORS = 4, CHECK_EXIT_FAILED = 8 };

/* --- progress: one line on a terminal --- */

static const uint64_t redraw_ns = 200 * 1000 * 1000;

struct show {
	struct tool_open open;
	bool has_terminal, is_drawn;
	const char *pass;
	uint64_t pass_ns, drawn_ns; /* when it began, and was drawn last */
};

static void erase(struct show *s)
{
	if (s->is_drawn)
		fputs("\r\033[K", stderr);
	s->is_drawn = false;
}

static void draw(struct show *s, uint64_t now, uint64_t done, uint64_t total, const char *position)
{
	char buf[200];
	struct strbuf line = strbuf_fixed(buf, sizeof(buf));
	double seconds = (double)(now - s->pass_ns) / 1e9, rate = seconds > 0 ? (double)done / seconds : 0;

	strbuf_printf(&line, "%s: ", s->pass);
	if (total)
		strbuf_printf(&line, "%u%%, ", (unsigned)(100.0 * (double)min(done, total) / (double)total));
	strbuf_printf(&line, "%.0f/s", rate);
	if (total > done && rate > 1) {
		uint64_t left = (uint64_t)((double)(total - done) / rate);

		strbuf_printf(&line, ", left %" PRIu64 ":%02u", left / 60, (unsigned)(left % 60));
	}
	if (*position)
		strbuf_printf(&line, ", %s", position);
	fprintf(stderr, "\r%.78s\033[K", buf);
	s->is_drawn = true;
	s->drawn_ns = now;
}

static int show_progress(void *ctx, const char *pass, uint64_t done, uint64_t total, const char *position)
{
	struct show *s = ctx;
	uint64_t now = clock_monotonic_ns();

	if (pass != s->pass) {
		s->pass = pass;
		s->pass_ns = now;
	}
	if (s->has_terminal && now - s->drawn_ns >= redraw_ns)
		draw(s, now, done, total, position);
	return tool_interrupted ? -EINTR : 0;
}

static void show_report(void *ctx, const struct kiln_report *report)
{
	struct show *s = ctx;

	erase(s);
	tool_print_report(&s->open, report);
}

/* --- results --- */

static const char *state_text(enum kiln_check_state state)
{
	switch (state) {
	case KILN_CHECK_DONE: return "done";
	case KILN_CHECK_PARTIAL: return "partly: damaged btrees keep it from comparing all";
	case KILN_CHECK_LEFT_OUT: return "left out: for versions up to 1.4";
	default: return "not run";
	}
}

/* Nothing is inconsistent about that, but a device that fails takes it along. */
static struct usage_fewer_copies fewer_copies(kiln_fs *fs)
{
	struct usage_fewer_copies fewer = { 0, 0 };
	struct usage u;

	if (fs->super->member_nr > 1 && !usage_read(fs->super, fs->journal, fs->trees, &u)) {
		fewer = usage_fewer_copies(fs->super, &u);
		usage_free(&u);
	}
	return fewer;
}

static void show_fewer_copies(struct raw_output *out, const char *what, uint64_t sectors, uint64_t wanted)
{
	if (!sectors)
		return;
	strbuf_add_size(&out->text, sectors << SECTOR_SHIFT);
	strbuf_printf(
		&out->text,
		" of %s have fewer than %" PRIu64
		" copies, as what is written while a device is missing has (`kiln usage` shows where they are).\n",
		what, wanted);
}

static void show_text(struct raw_output *out, const struct kiln_check_result *r, kiln_fs *fs)
{
	struct usage_fewer_copies fewer = fewer_copies(fs);

	strbuf_printf(&out->text, "%-28s %12s %10s %8s  %s\n", "pass", "items", "errors", "seconds", "state");
	for (unsigned i = 0; i < r->pass_nr; i++)
		if (r->passes[i].state != KILN_CHECK_NOT_RUN)
			strbuf_printf(&out->text, "%-28s %12" PRIu64 " %10" PRIu64 " %8.1f  %s\n", r->passes[i].name,
				      r->passes[i].items, r->passes[i].errors, (double)r->passes[i].ns / 1e9,
				      state_text(r->passes[i].state));
	if (r->kind_nr)
		strbuf_add(&out->text, "\nerrors:\n");
	for (unsigned i = 0; i < r->kind_nr; i++)
		strbuf_printf(&out->text, "%10" PRIu64 "  %s (%u)\n", r->kinds[i].count, r->kinds[i].name,
			      r->kinds[i].id);
	if (!r->errors)
		strbuf_add(&out->text, "\nNothing is wrong in what was checked.\n");
	show_fewer_copies(out, "metadata", fewer.metadata_sectors, fs->super->options[OPT_METADATA_REPLICAS]);
	show_fewer_copies(out, "data", fewer.data_sectors, fs->super->options[OPT_DATA_REPLICAS]);
	raw_output_flush(out);
}

static void show_json(struct raw_output *out, const struct kiln_check_result *r, kiln_fs *fs)
{
	struct usage_fewer_copies fewer = fewer_copies(fs);
	json_t *passes = json_array(), *kinds = json_array();

	for (unsigned i = 0; i < r->pass_nr; i++)
		json_array_append_new(passes, json_pack("{s:s, s:s, s:o, s:o, s:f}", "name", r->passes[i].name, "state",
							r->passes[i].state == KILN_CHECK_DONE	    ? "done"
							: r->passes[i].state == KILN_CHECK_PARTIAL  ? "partial"
							: r->passes[i].state == KILN_CHECK_LEFT_OUT ? "left_out"
												    : "not_run",
							"items", raw_json_u64(r->passes[i].items), "errors",
							raw_json_u64(r->passes[i].errors), "seconds",
							(double)r->passes[i].ns / 1e9));
	for (unsigned i = 0; i < r->kind_nr; i++)
		json_array_append_new(kinds, json_pack("{s:i, s:s, s:o}", "id", (int)r->kinds[i].id, "name",
						       r->kinds[i].name, "count", raw_json_u64(r->kinds[i].count)));
	raw_output_json(out,
			json_pack("{s:o, s:o, s:o, s:{s:o, s:o}}", "errors", raw_json_u64(r->errors), "kinds", kinds,
				  "passes", passes, "fewer_copies_bytes", "metadata",
				  raw_json_u64(fewer.metadata_sectors << SECTOR_SHIFT), "data",
				  raw_json_u64(fewer.data_sectors << SECTOR_SHIFT)),
			true);
}

/* --- the command --- */

static int list_passes(bool is_json)
{
	const struct check_pass *pass;

	if (is_json) {
		json_t *passes = json_array();

		for (unsigned i = 0; (pass = check_pass(i)); i++)
			json_array_append_new(passes, json_pack("{s:s, s:s, s:b}", "name", pass->name, "what",
								pass->what, "only_with_data", pass->is_optional));
		return tool_print_json(passes);
	}
	for (unsigned i = 0; (pass = check_pass(i)); i++)
		printf("%-28s %s%s\n", pass->name, pass->what, pass->is_optional ? " (only with --data)" : "");
	return TOOL_OK;
}

static int check(struct show *s, struct kiln_check_options *options, const char *fs_arg)
{
	struct kiln_check_result *result = calloc(1, sizeof(*result));
	struct raw_output out;

	raw_output_begin(&out);
	kiln_fs *fs = result ? tool_open_fs(&s->open, fs_arg, FS_BTREES) : NULL;
	if (!fs) {
		free(result);
		raw_output_end(&out, TOOL_FAILED);
		return CHECK_EXIT_FAILED;
	}
	options->ctx = s;
	options->report = show_report;
	options->progress = show_progress;
	int err = kiln_check(fs, options, result);
	erase(s);
	if (err == -EINVAL)
		tool_error("too little memory for tables");
	else if (err)
		tool_error("the check was not finished: %s", err == -EINTR ? "interrupted" : error_name(err));
	if (err != -EINVAL) {
		if (s->open.is_json)
			show_json(&out, result, fs);
		else
			show_text(&out, result, fs);
	}
	int status = err ? CHECK_EXIT_FAILED : result->errors ? CHECK_EXIT_ERRORS : 0;
	/* What opening met is damage, too. */
	if (!status && tool_close_fs(fs, TOOL_OK) == TOOL_DAMAGE)
		status = CHECK_EXIT_ERRORS;
	else if (status)
		tool_close_fs(fs, TOOL_OK);
	if (raw_output_end(&out, TOOL_OK) != TOOL_OK)
		status = CHECK_EXIT_FAILED;
	free(result);
	return status;
}

static int check_main(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS,
						 { "json", no_argument, NULL, TOOL_OPT_JSON },
						 { "data", no_argument, NULL, OPT_DATA },
						 { "passes", required_argument, NULL, OPT_PASSES },
						 { "max-reports", required_argument, NULL, OPT_MAX_REPORTS },
						 { "tables", required_argument, NULL, OPT_TABLES },
						 { 0 } };
	struct show s = { .open = tool_open_defaults(), .has_terminal = isatty(STDERR_FILENO) };
	struct kiln_check_options o = { .struct_bytes = sizeof(o), .report_max = 100 };
	uint32_t passes; /* looked at again by kiln_check() */
	int c, status;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (tool_open_option(self, c, &s.open, &status) < 0)
			return status;
		switch (c) {
		case OPT_DATA: o.flags |= KILN_CHECK_DATA; break;
		case OPT_PASSES: o.passes = optarg; break;
		case OPT_MAX_REPORTS:
			if (raw_u64_parse(optarg, UINT64_MAX, &o.report_max))
				return tool_usage_error(self, "--max-reports needs a number");
			break;
		case OPT_TABLES:
			if (tool_parse_size(optarg, &o.memory_bytes) || o.memory_bytes < 1 << 20)
				return tool_usage_error(self, "--tables needs a size of at least 1M");
			break;
		default: break;
		}
	}
	if (o.passes && !strcmp(o.passes, "list"))
		return list_passes(s.open.is_json);
	if (check_passes_parse(o.passes, &passes))
		return tool_usage_error(self, "no such pass in '%s'; --passes=list shows them", o.passes);
	if (argc - optind != 1)
		return raw_usage_fs(self);
	return check(&s, &o, argv[optind]);
}

const struct command command_check = {
	.name = "check",
	.summary = "check whether everything is consistent",
	.usage = usage,
	.run = check_main,
};
