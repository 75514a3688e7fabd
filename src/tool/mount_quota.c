/* Quotas of a mounted filesystem: both ends of the talk. See mount_quota.h. */
#include "tool/mount_quota.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/strbuf.h"
#include "base/util.h"
#include "engine/fs_write.h"
#include "tool/mount_control.h"
#include "tool/mounted.h"
#include "tool/tool.h"

enum { TYPES = 3 };

/* --- who is asked --- */

static int row_add(void *ctx, const struct kiln_quota *q)
{
	strbuf_printf(ctx, "%" PRIu32 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
		      q->id, q->space.used, q->space.soft, q->space.hard, q->inodes.used, q->inodes.soft,
		      q->inodes.hard);
	return 0;
}

/* How far the scan is; NULL: it has ended, well or not. */
static json_t *counting_json(kiln_fs *fs)
{
	struct quotas *q = fs->is_writable ? allocator_quotas(fs->allocator) : NULL;
	uint64_t done = 0, of = 0;
	const char *text;

	if (!q || job_look(quotas_job(q), &text) == JOB_STOPPED)
		return NULL;
	job_progress_look(quotas_job(q), &text, &done, &of);
	return json_pack("{s:I, s:I}", "done", (json_int_t)done, "of", (json_int_t)of);
}

static int answer_info(kiln_fs *fs, json_t *reply)
{
	json_t *types = json_array();

	for (unsigned type = 0; type < TYPES; type++) {
		struct kiln_quota_info info;

		kiln_quota_info(fs, (enum kiln_quota_type)type, &info);
		json_array_append_new(types, json_pack("{s:b, s:b, s:b, s:I, s:I}", "enabled", (int)info.is_enabled,
						       "counted", (int)info.is_counted, "partial", (int)info.is_partial,
						       "space_grace", (json_int_t)info.space_grace, "inodes_grace",
						       (json_int_t)info.inodes_grace));
	}
	return json_object_set_new(reply, "types", types);
}

/*
 * The scan of what is on isn't waited for here: the filesystem couldn't be unmounted meanwhile. Types that are off are
 * counted, and that is waited for.
 */
static int answer_list(kiln_fs *fs, enum kiln_quota_type type, json_t *reply)
{
	struct strbuf rows = strbuf_growing();
	struct kiln_quota_info info;
	int err = kiln_quota_info(fs, type, &info);
	json_t *counting = fs->is_writable && info.is_enabled && !info.is_counted ? counting_json(fs) : NULL;

	if (counting)
		return json_object_set_new(reply, "counting", counting);
	if (!err)
		err = kiln_quota_list(fs, type, row_add, &rows);
	if (err == -ESRCH)
		err = kiln_quota_count(fs, type, row_add, &rows);
	if (!err)
		err = json_object_set_new(reply, "rows", json_string(strbuf_text(&rows))) ? -ENOMEM : 0;
	strbuf_free(&rows);
	return err;
}

static uint64_t number_at(const json_t *array, size_t i)
{
	return (uint64_t)json_integer_value(json_array_get(array, i));
}

static int answer_set(kiln_fs *fs, enum kiln_quota_type type, const json_t *request)
{
	const json_t *limits = json_object_get(request, "limits");
	const struct kiln_quota_limits set = {
		.fields = (unsigned)json_integer_value(json_object_get(request, "fields")),
		.space_soft = number_at(limits, 0),
		.space_hard = number_at(limits, 1),
		.inodes_soft = number_at(limits, 2),
		.inodes_hard = number_at(limits, 3),
	};

	return kiln_quota_set(fs, type, (uint32_t)json_integer_value(json_object_get(request, "id")), &set);
}

static int answer_grace(kiln_fs *fs, enum kiln_quota_type type, const json_t *request)
{
	const json_t *periods = json_object_get(request, "periods");

	return kiln_quota_set_grace(fs, type, (uint32_t)number_at(periods, 0), (uint32_t)number_at(periods, 1));
}

static const char *readonly_text(kiln_fs *fs)
{
	if (fs->is_writable)
		return "after an error nothing can be changed any more: `kiln status` says why, and what to do";
	return kiln_write_refused(fs)
		       ? kiln_write_refused(fs)
		       : "it is mounted read-only: unmount it, then set them on its devices, or mount it "
			 "for writing";
}

int mount_quota_answer(kiln_fs *fs, const json_t *request, json_t *reply)
{
	const char *action = json_string_value(json_object_get(request, "action"));
	json_int_t type_nr = json_integer_value(json_object_get(request, "type"));
	enum kiln_quota_type type = (enum kiln_quota_type)type_nr;
	int err = -EINVAL;

	if (!action || type_nr < 0 || type_nr >= TYPES)
		return err;
	if (!strcmp(action, "info"))
		err = answer_info(fs, reply);
	else if (!strcmp(action, "list"))
		err = answer_list(fs, type, reply);
	else if (!strcmp(action, "set"))
		err = answer_set(fs, type, request);
	else if (!strcmp(action, "grace"))
		err = answer_grace(fs, type, request);
	else if (!strcmp(action, "commit"))
		err = kiln_sync(fs);
	if (err)
		json_object_set_new(reply, "errno", json_integer(-err));
	if (err == -EROFS)
		json_object_set_new(reply, "error", json_string(readonly_text(fs)));
	return err;
}

/* --- who asks --- */

enum mount_control_found mount_quota_find(struct mount_quota *m, const char *fs_arg)
{
	*m = (struct mount_quota){ 0 };
	return mount_control_find(fs_arg, &m->server);
}

void mount_quota_done(struct mount_quota *m)
{
	for (unsigned type = 0; type < TYPES; type++)
		json_decref(m->replies[type]);
}

/* The answer, to be freed; NULL after an error: *@err, and m->why. */
static json_t *ask(struct mount_quota *m, const char *action, json_t *request, int *err)
{
	json_t *reply = NULL;

	json_object_set_new(request, "command", json_string("quota"));
	json_object_set_new(request, "action", json_string(action));
	reply = mount_control_request(m->server, request);
	json_decref(request);
	*err = 0;
	if (json_is_true(json_object_get(reply, "ok")))
		return reply;
	const char *why = json_string_value(json_object_get(reply, "error"));
	*err = -(int)json_integer_value(json_object_get(reply, "errno"));
	*err = *err ? *err : -EIO;
	snprintf(m->why, sizeof(m->why), "%s", why ? why : "the server has ended meanwhile");
	json_decref(reply);
	return NULL;
}

/* Where nothing but success is answered. */
static int tell(struct mount_quota *m, const char *action, json_t *request)
{
	int err;

	json_decref(ask(m, action, request, &err));
	return err;
}

int mount_quota_info(struct mount_quota *m, enum kiln_quota_type type, struct kiln_quota_info *info)
{
	int err;
	json_t *reply = ask(m, "info", json_object(), &err);
	const json_t *of = json_array_get(json_object_get(reply, "types"), type);

	*info = (struct kiln_quota_info){
		.is_enabled = json_is_true(json_object_get(of, "enabled")),
		.is_counted = json_is_true(json_object_get(of, "counted")),
		.is_partial = json_is_true(json_object_get(of, "partial")),
		.space_grace = (uint32_t)json_integer_value(json_object_get(of, "space_grace")),
		.inodes_grace = (uint32_t)json_integer_value(json_object_get(of, "inodes_grace")),
	};
	json_decref(reply);
	return err;
}

static void tell_counting(const json_t *counting)
{
	uint64_t done = (uint64_t)json_integer_value(json_object_get(counting, "done"));
	uint64_t of = (uint64_t)json_integer_value(json_object_get(counting, "of"));

	tool_error("inodes are still being counted, since it was mounted (%" PRIu64 " of %" PRIu64
		   " so far): waiting for that",
		   min(done, of), of);
}

/* The rows of a type, asked for once. 0, or a negative errno with m->why. */
static int rows_load(struct mount_quota *m, enum kiln_quota_type type)
{
	enum { LOOK_AGAIN_NS = 100000000 };
	bool is_told = false;
	int err = 0;

	while (!m->replies[type]) {
		json_t *reply = ask(m, "list", json_pack("{s:i}", "type", (int)type), &err);
		const json_t *counting = json_object_get(reply, "counting");

		if (err)
			return err;
		if (!counting) {
			m->replies[type] = reply;
			break;
		}
		if (!is_told)
			tell_counting(counting);
		is_told = true;
		json_decref(reply);
		if (tool_interrupted)
			return -EINTR;
		sleep_ns(LOOK_AGAIN_NS);
	}
	return 0;
}

/* The row at *@at, which then is the next; false: there is none. */
static bool row_next(const char **at, enum kiln_quota_type type, struct kiln_quota *q)
{
	uint64_t id, *const columns[] = {
		&id, &q->space.used, &q->space.soft, &q->space.hard, &q->inodes.used, &q->inodes.soft, &q->inodes.hard
	};

	*q = (struct kiln_quota){ .type = type };
	for (size_t i = 0; i < ARRAY_NR(columns); i++) {
		char *end = NULL;

		*columns[i] = *at ? strtoull(*at, &end, 10) : 0;
		if (end == *at)
			return false;
		*at = end;
	}
	q->id = (uint32_t)id;
	return true;
}

int mount_quota_list(struct mount_quota *m, enum kiln_quota_type type, kiln_quota_fn fn, void *ctx)
{
	struct kiln_quota q;
	int ret = rows_load(m, type);
	const char *at = json_string_value(json_object_get(m->replies[type], "rows"));

	while (!ret && row_next(&at, type, &q))
		ret = fn(ctx, &q);
	return ret;
}

int mount_quota_get(struct mount_quota *m, enum kiln_quota_type type, uint32_t id, struct kiln_quota *quota)
{
	int err = rows_load(m, type);
	const char *at = json_string_value(json_object_get(m->replies[type], "rows"));

	while (!err && row_next(&at, type, quota))
		if (quota->id == id)
			return 0;
	*quota = (struct kiln_quota){ .type = type, .id = id };
	return err;
}

int mount_quota_set(struct mount_quota *m, enum kiln_quota_type type, uint32_t id, const struct kiln_quota_limits *l)
{
	return tell(m, "set",
		    json_pack("{s:i, s:I, s:i, s:[I, I, I, I]}", "type", (int)type, "id", (json_int_t)id, "fields",
			      (int)l->fields, "limits", (json_int_t)l->space_soft, (json_int_t)l->space_hard,
			      (json_int_t)l->inodes_soft, (json_int_t)l->inodes_hard));
}

int mount_quota_set_grace(struct mount_quota *m, enum kiln_quota_type type, uint32_t space_seconds,
			  uint32_t inodes_seconds)
{
	return tell(m, "grace",
		    json_pack("{s:i, s:[I, I]}", "type", (int)type, "periods", (json_int_t)space_seconds,
			      (json_int_t)inodes_seconds));
}

int mount_quota_commit(struct mount_quota *m) { return tell(m, "commit", json_object()); }
