/* Reports and log lines on their way to the user. See fs.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/strbuf.h"
#include "engine/fs.h"
#include "format/error_ids.h"

/* One line: "level: device: structure position: expected X, found Y (error name). Advice." */
static void report_to_text(struct strbuf *out, const struct report *r)
{
	if (r->device && *r->device)
		strbuf_printf(out, "%s: ", r->device);
	if (r->structure)
		strbuf_add(out, r->structure);
	if (r->position && *r->position)
		strbuf_printf(out, "%s%s", r->structure ? " " : "", r->position);
	if (r->expected && *r->expected)
		strbuf_printf(out, "%sexpected %s", out->len ? ": " : "", r->expected);
	if (r->found && *r->found)
		strbuf_printf(out, "%s%s", r->expected && *r->expected ? ", found " : out->len ? ": " : "", r->found);
	if (r->id)
		strbuf_printf(out, " [%s]", error_id_name(r->id) ? error_id_name(r->id) : "unknown error id");
	else if (r->err && !(r->found && *r->found))
		strbuf_printf(out, ": %s", error_name(r->err));
	if (r->advice && *r->advice)
		strbuf_printf(out, ". %s", r->advice);
}

/* FNV-1a (Fowler, Noll, Vo). */
static uint64_t text_hash(const char *text)
{
	uint64_t h = 0xcbf29ce484222325;

	for (; *text; text++)
		h = (h ^ (uint8_t)*text) * 0x100000001b3;
	return h;
}

static enum log_level log_level_of(enum report_level level)
{
	switch (level) {
	case REPORT_INFO: return LOG_LEVEL_INFO;
	case REPORT_RECOVERED: return LOG_LEVEL_WARNING;
	default: return LOG_LEVEL_ERROR;
	}
}

static void reporter_emit(void *ctx, const struct report *r)
{
	struct reporter *reporter = ctx;
	char buf[1024];
	struct strbuf text = strbuf_fixed(buf, sizeof(buf));

	report_to_text(&text, r);
	uint64_t hash = text_hash(buf);

	mutex_lock(&reporter->lock);
	uint64_t *slot = &reporter->seen[hash % ARRAY_NR(reporter->seen)];
	bool is_new = *slot != hash;
	*slot = hash;
	if (is_new) {
		reporter->counts[r->level]++;
		if (r->level >= reporter->last_level) {
			reporter->last_level = r->level;
			snprintf(reporter->last, sizeof(reporter->last), "%.*s", (int)sizeof(reporter->last) - 1, buf);
		}
		if (reporter->user_report)
			reporter->user_report(
				reporter->ctx,
				&(struct kiln_report){ .level = (enum kiln_report_level)r->level,
						       .error = error_to_errno(r->err),
						       .error_id = r->id,
						       .error_id_name = r->id ? error_id_name(r->id) : NULL,
						       .device = r->device,
						       .structure = r->structure,
						       .position = r->position,
						       .expected = r->expected,
						       .found = r->found,
						       .advice = r->advice,
						       .text = buf });
	}
	mutex_unlock(&reporter->lock);
	struct super *counting = __atomic_load_n(&reporter->counting, __ATOMIC_ACQUIRE);
	if (is_new && counting && r->id && r->level != REPORT_INFO) {
		super_error_count(counting, r->id);
		if (r->level >= REPORT_DAMAGE)
			super_error_note(counting, false);
	}
	if (is_new && !reporter->user_report)
		log_printf(&reporter->log, log_level_of(r->level), "%s", buf);
}

static void reporter_log(void *ctx, enum log_level level, const char *line)
{
	struct reporter *r = ctx;

	mutex_lock(&r->lock);
	r->user_log(r->ctx, (enum kiln_log_level)level, line);
	mutex_unlock(&r->lock);
}

const char *fs_error_text(int err)
{
	switch (err) {
	case -E2BIG:
		return "What must be written at once is more than an entry of the journal can hold: the buckets are "
		       "too "
		       "small.";
	case -EROFS: return "Writing was given up after an error.";
	case -ENOSPC: return "There is no space left.";
	case -ENOMEM: return "Memory ran out.";
	default: return err > -KILN_E_FIRST ? strerror(-err) : error_name(err);
	}
}

void reporter_init(struct reporter *r, const struct kiln_open_options *options)
{
	*r = (struct reporter){
		.sink = { .emit = reporter_emit, .ctx = r },
		.ctx = options->ctx,
		.user_report = options->report,
		.user_log = options->log,
	};
	if (options->log)
		r->log = (struct log_sink){ .write = reporter_log,
					    .ctx = r,
					    .level_max = (enum log_level)options->log_level };
	mutex_init(&r->lock);
}

void reporter_last(struct reporter *r, char text[KILN_ERROR_BYTES])
{
	mutex_lock(&r->lock);
	memcpy(text, r->last, KILN_ERROR_BYTES);
	mutex_unlock(&r->lock);
}

void reporter_destroy(struct reporter *r) { mutex_destroy(&r->lock); }
