/* Reports and log lines on their way to the user. See fs.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/strbuf.h"
#include "engine/fs.h"
#include "format/error_ids.h"

enum { REPORT_BYTES = 1024, AGAIN_SECONDS = 60 };

static const uint64_t SOON_NS = 2000000000, SECOND_NS = 1000000000;

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

/* The same text, or the same but for its place. */
static uint64_t report_hash(const struct report *r, const char *text)
{
	struct report elsewhere = *r;
	char buf[REPORT_BYTES];
	struct strbuf without_place = strbuf_fixed(buf, sizeof(buf));

	if (!r->is_any_place)
		return text_hash(text);
	elsewhere.position = NULL;
	report_to_text(&without_place, &elsewhere);
	return text_hash(buf);
}

/* Is it to be told? Then *@times is how often it happened since it was told last, this time included. */
static bool is_to_be_told(struct reporter *reporter, uint64_t hash, uint32_t *times)
{
	struct reporter_told *told = &reporter->told[hash % ARRAY_NR(reporter->told)];
	uint32_t now = (uint32_t)(clock_monotonic_ns() / SECOND_NS);
	bool is_same = told->hash == hash;

	*times = is_same ? told->times_since + 1 : 1;
	if (is_same && now - told->at_seconds < AGAIN_SECONDS) {
		told->times_since = *times;
		return false;
	}
	*told = (struct reporter_told){ .hash = hash, .at_seconds = now };
	return true;
}

static void reporter_emit(void *ctx, const struct report *r)
{
	struct reporter *reporter = ctx;
	char buf[REPORT_BYTES];
	struct strbuf text = strbuf_fixed(buf, sizeof(buf));
	uint32_t times;

	report_to_text(&text, r);
	uint64_t hash = report_hash(r, buf);

	mutex_lock(&reporter->lock);
	bool is_told = is_to_be_told(reporter, hash, &times);
	if (is_told && times > 1)
		strbuf_printf(&text, " (%" PRIu32 " times since this was told last)", times);
	if (is_told) {
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
	if (r->level != REPORT_INFO && !reporter->has_errors) {
		reporter->has_errors = true;
		waitq_wake_all(&reporter->errors_changed);
	}
	mutex_unlock(&reporter->lock);
	struct super *counting = __atomic_load_n(&reporter->counting, __ATOMIC_ACQUIRE);
	if (is_told && counting && r->id && r->level != REPORT_INFO) {
		super_error_count(counting, r->id);
		if (r->level >= REPORT_DAMAGE)
			super_error_note(counting, false);
	}
	if (is_told && !reporter->user_report)
		log_printf(&reporter->log, log_level_of(r->level), "%s", buf);
}

/* --- errors in superblocks --- */

/* Sleep with the lock released, unless it is to end. */
static void task_sleep_until(struct reporter *r, uint64_t until_ns)
{
	while (!r->is_stopping && clock_monotonic_ns() < until_ns)
		waitq_wait_until(&r->errors_changed, &r->lock, until_ns);
}

static void errors_task(void *arg)
{
	struct reporter *r = arg;
	uint64_t again_ns = 0;

	mutex_lock(&r->lock);
	while (!r->is_stopping) {
		if (!r->has_errors) {
			job_waits(&r->errors_job, "nothing went wrong since they were written");
			waitq_wait(&r->errors_changed, &r->lock);
			continue;
		}
		job_waits(&r->errors_job, "what goes wrong next is written with it");
		task_sleep_until(r, max(again_ns, clock_monotonic_ns() + SOON_NS));
		if (r->is_stopping)
			break;
		mutex_unlock(&r->lock);
		job_works(&r->errors_job, "something went wrong");
		super_errors_update(r->counting);
		mutex_lock(&r->lock);
		/* What this itself met is no reason to write once more. */
		r->has_errors = false;
		again_ns = clock_monotonic_ns() + AGAIN_SECONDS * SECOND_NS;
	}
	job_stops(&r->errors_job);
	mutex_unlock(&r->lock);
}

int reporter_count_start(struct reporter *r, struct super *super)
{
	r->is_stopping = false;
	__atomic_store_n(&r->counting, super, __ATOMIC_RELEASE);
	return task_start(&r->errors_task, "error-counts", errors_task, r);
}

void reporter_count_stop(struct reporter *r)
{
	struct task *task = r->errors_task;

	r->errors_task = NULL;
	mutex_lock(&r->lock);
	r->is_stopping = true;
	waitq_wake_all(&r->errors_changed);
	mutex_unlock(&r->lock);
	if (task)
		task_join(task);
	__atomic_store_n(&r->counting, NULL, __ATOMIC_RELEASE);
}

/* --- the user's callbacks --- */

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
	waitq_init(&r->errors_changed);
	job_init(&r->errors_job, "error counts", "writes what went wrong with devices into the superblocks");
}

enum report_level reporter_last(struct reporter *r, char text[KILN_ERROR_BYTES])
{
	mutex_lock(&r->lock);
	memcpy(text, r->last, KILN_ERROR_BYTES);
	enum report_level level = r->last_level;
	mutex_unlock(&r->lock);
	return level;
}

void reporter_destroy(struct reporter *r)
{
	waitq_destroy(&r->errors_changed);
	mutex_destroy(&r->lock);
}
