/*
 * What a server tells about itself over its control socket: its commands are one table, each makes a JSON object.
 *
 * While requests are answered the filesystem stays open. Many are at a time, as some take long: with no lock held. One
 * that is ending tells no more than that.
 */
#include "tool/mount_facts.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "data/copygc.h"
#include "data/repair.h"
#include "engine/fs_write.h"
#include "namespace/change.h"
#include "tool/mount_quota.h"
#include "tool/usage.h"

static json_t *u64_json(uint64_t v) { return json_integer((json_int_t)v); }

/* --- the parts --- */

static json_t *usage_json(kiln_fs *fs)
{
	struct kiln_usage u;

	if (kiln_usage(fs, &u))
		return json_null();
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "capacity", u64_json(u.capacity), "used",
			 u64_json(u.used), "available", u64_json(u.available), "cached", u64_json(u.cached), "reserved",
			 u64_json(u.reserved), "hidden", u64_json(u.hidden), "inodes", u64_json(u.inodes));
}

static json_t *errors_json(const uint64_t errors[SUPER_ERROR_KINDS])
{
	return json_pack("{s:o, s:o, s:o}", "read", u64_json(errors[SUPER_ERROR_READ]), "write",
			 u64_json(errors[SUPER_ERROR_WRITE]), "checksum", u64_json(errors[SUPER_ERROR_CHECKSUM]));
}

static json_t *devices_json(const struct mount_facts_of *f)
{
	const kiln_fs *fs = f->fs;
	json_t *array = json_array();
	struct super_errors errors;

	for (unsigned i = 0; i < fs->super->member_nr; i++) {
		const struct super_member *m = &fs->super->members[i];
		const char *name = f->device_names && f->device_names[i] ? f->device_names[i] : m->name;

		if (!m->m.exists)
			continue;
		super_member_errors(fs->super, i, &errors);
		json_array_append_new(
			array,
			json_pack("{s:i, s:o, s:b, s:s, s:o, s:o, s:o}", "device", (int)i, "name",
				  tool_json_bytes(name, strlen(name)), "is_online", (int)(m->dev != NULL), "state",
				  member_state_name(__atomic_load_n(&m->m.state, __ATOMIC_RELAXED)), "bytes",
				  u64_json(m->m.nbuckets * m->m.bucket_sectors * 512), "errors_since_mount",
				  errors_json(errors.since_open), "errors", errors_json(errors.total)));
	}
	return array;
}

static json_t *cache_json(kiln_fs *fs)
{
	struct btrees_usage u;

	btrees_usage(fs->trees, &u);
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "bytes", u64_json(u.cache_bytes), "bytes_max",
			 u64_json(u.cache_bytes_max), "nodes", u64_json(u.nodes), "hits", u64_json(u.hits), "misses",
			 u64_json(u.misses), "evictions", u64_json(u.evictions));
}

static json_t *kernel_json(const struct mount_facts_of *f)
{
	struct mount_kernel_facts k = mount_kernel_facts(f->server);

	return json_pack("{s:o, s:o, s:o}", "objects", u64_json(k.objects), "deleted_in_use", u64_json(k.dead), "bytes",
			 u64_json(k.bytes));
}

static json_t *journal_json(kiln_fs *fs)
{
	struct journal_usage u;

	if (!fs->is_writable)
		return json_null();
	journal_usage(fs->journal_writer, &u);
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:b}", "seq", u64_json(u.seq),
			 "seq_flushed", u64_json(u.seq_flushed), "last_seq", u64_json(u.last_seq), "entries_written",
			 u64_json(u.entries_written), "flushes", u64_json(u.flushes), "bytes_written",
			 u64_json(u.bytes_written), "reservations_waited", u64_json(u.reservations_waited),
			 "buckets_free", u64_json(u.buckets_free), "buckets", u64_json(u.buckets_total),
			 "buckets_for_reclaim", u64_json(u.buckets_for_reclaim), "is_space_low", (int)u.is_space_low);
}

static json_t *btrees_json(kiln_fs *fs)
{
	struct btrees_write_stats w;

	if (!fs->is_writable)
		return json_null();
	btrees_write_stats(fs->trees, &w);
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "commits", u64_json(w.commits),
			 "restarts", u64_json(w.restarts), "splits", u64_json(w.splits), "merges", u64_json(w.merges),
			 "rewrites", u64_json(w.rewrites), "nodes_written", u64_json(w.nodes_written), "sets_appended",
			 u64_json(w.sets_appended), "bytes_written", u64_json(w.bytes_written), "nodes_dirty",
			 u64_json(w.nodes_dirty), "cached_keys", u64_json(w.cached_keys), "cached_keys_dirty",
			 u64_json(w.cached_keys_dirty));
}

static json_t *allocator_json(kiln_fs *fs)
{
	struct allocator_stats a;

	if (!fs->is_writable)
		return json_null();
	allocator_stats(fs->allocator, &a);
	return json_pack("{s:o, s:o, s:o, s:o, s:o}", "buckets_opened", u64_json(a.buckets_opened), "buckets_freed",
			 u64_json(a.buckets_freed), "discards", u64_json(a.discards), "waits_for_journal",
			 u64_json(a.waits_for_journal), "open_buckets", u64_json(a.open_buckets));
}

static json_t *copygc_json(kiln_fs *fs)
{
	struct copygc_stats c;

	if (!fs->is_writable)
		return json_null();
	copygc_stats(fs->data, &c);
	json_t *j = json_pack(
		"{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "passes", u64_json(c.passes), "passes_needed",
		u64_json(c.passes_needed), "passes_gainless", u64_json(c.passes_gainless), "buckets_emptied",
		u64_json(c.buckets_emptied), "buckets_left_alone", u64_json(c.buckets_left_alone), "bytes_moved",
		u64_json(c.bytes_moved), "extents_moved", u64_json(c.extents_moved), "extents_changed_meanwhile",
		u64_json(c.extents_changed), "nodes_rewritten", u64_json(c.nodes_rewritten));
	if (c.wait_bytes && c.wait_bytes != UINT64_MAX)
		json_object_set_new(j, "bytes_to_be_written", u64_json(c.wait_bytes));
	return j;
}

static json_t *data_json(kiln_fs *fs)
{
	struct data_repair_stats r;
	struct data_stats d;

	data_stats(fs->data, &d);
	data_repair_stats(fs->data, &r);
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "bad_copies_found", u64_json(r.found),
			 "extents_repaired", u64_json(r.extents), "nodes_repaired", u64_json(r.nodes), "repairs_failed",
			 u64_json(r.failed), "bytes_read", u64_json(d.bytes_read), "reads", u64_json(d.ios),
			 "retries_after_errors", u64_json(d.retries_io), "retries_after_checksums",
			 u64_json(d.retries_csum), "reconstructed", u64_json(d.reconstructed), "damaged_bytes",
			 u64_json(d.damaged_bytes));
}

static json_t *repairs_json(kiln_fs *fs)
{
	struct data_repair_stats r;

	if (!fs->is_writable)
		return json_null();
	data_repair_stats(fs->data, &r);
	return json_pack("{s:o, s:o, s:o, s:o}", "found", u64_json(r.found), "copies", u64_json(r.extents), "nodes",
			 u64_json(r.nodes), "failed", u64_json(r.failed));
}

static json_t *reports_json(kiln_fs *fs)
{
	uint64_t counts[4];

	kiln_report_counts(fs, counts);
	return json_pack("{s:o, s:o, s:o}", "recovered", u64_json(counts[KILN_REPORT_RECOVERED]), "damage",
			 u64_json(counts[KILN_REPORT_DAMAGE]), "fatal", u64_json(counts[KILN_REPORT_FATAL]));
}

static json_t *deletions_json(kiln_fs *fs)
{
	uint64_t queued, done;

	if (!fs->is_writable)
		return json_null();
	namespace_deletions_count(fs->ns, &queued, &done);
	return json_pack("{s:o, s:o}", "left", u64_json(queued - done), "done", u64_json(done));
}

/* null: it doesn't work, or doesn't say how far it is. */
static json_t *progress_json(const struct job *job)
{
	uint64_t done, of;
	const char *unit;

	if (!job_progress_look(job, &unit, &done, &of))
		return json_null();
	return json_pack("{s:s, s:o, s:o}", "unit", unit, "done", u64_json(done), "of",
			 of ? u64_json(of) : json_null());
}

/* What goes on in the background, and why it does or doesn't. */
static json_t *jobs_json(kiln_fs *fs)
{
	json_t *array = json_array();
	struct job_list list;
	const char *because;

	fs_jobs(fs, &list);
	for (size_t i = 0; i < list.nr; i++) {
		enum job_state state = job_look(list.jobs[i], &because);

		json_array_append_new(array,
				      json_pack("{s:s, s:s, s:s, s:s, s:o, s:o}", "job", list.jobs[i]->name, "what",
						list.jobs[i]->what, "state", job_state_name(state), "why", because,
						"turns", u64_json(atomic_load(&list.jobs[i]->turns)), "progress",
						progress_json(list.jobs[i])));
	}
	return array;
}

/* --- commands --- */

static int add_status(struct mount_facts_of *f, const json_t *request, json_t *reply)
{
	bool has_failed = __atomic_load_n(&f->fs->shut_down, __ATOMIC_ACQUIRE);
	const char *why = kiln_write_refused(f->fs);
	char error[KILN_ERROR_BYTES];

	(void)request;
	if (has_failed) {
		reporter_last(&f->fs->reporter, error);
		why = error;
	}
	json_object_set_new(reply, "state", json_string(has_failed ? "failed" : "serving"));
	json_object_set_new(reply, "is_readonly", json_boolean(f->is_readonly));
	if (why)
		json_object_set_new(reply, "why", tool_json_bytes(why, strlen(why)));
	json_object_set_new(reply, "devices", devices_json(f));
	json_object_set_new(reply, "usage", usage_json(f->fs));
	json_object_set_new(reply, "cache", cache_json(f->fs));
	json_object_set_new(reply, "journal", journal_json(f->fs));
	json_object_set_new(reply, "kernel", kernel_json(f));
	json_object_set_new(reply, "jobs", jobs_json(f->fs));
	json_object_set_new(reply, "copygc", copygc_json(f->fs));
	json_object_set_new(reply, "deletions", deletions_json(f->fs));
	json_object_set_new(reply, "repairs", repairs_json(f->fs));
	json_object_set_new(reply, "reports", reports_json(f->fs));
	return 0;
}

static int add_debug(struct mount_facts_of *f, const json_t *request, json_t *reply)
{
	json_object_set_new(reply, "btrees", btrees_json(f->fs));
	json_object_set_new(reply, "allocator", allocator_json(f->fs));
	json_object_set_new(reply, "data", data_json(f->fs));
	return add_status(f, request, reply);
}

static int do_sync(struct mount_facts_of *f, const json_t *request, json_t *reply)
{
	int err = mount_server_sync(f->server);
	char why[KILN_ERROR_BYTES];

	(void)request;
	if (err && __atomic_load_n(&f->fs->shut_down, __ATOMIC_ACQUIRE)) {
		reporter_last(&f->fs->reporter, why);
		json_object_set_new(reply, "error", tool_json_bytes(why, strlen(why)));
	}
	return err;
}

static int do_usage(struct mount_facts_of *f, const json_t *request, json_t *reply)
{
	return usage_answer(f->fs, request, reply);
}

static int do_quota(struct mount_facts_of *f, const json_t *request, json_t *reply)
{
	return mount_quota_answer(f->fs, request, reply);
}

/* Options that a remount changes: {"atime": "noatime", "diratime": true}, or one of them. */
static int do_remount(struct mount_facts_of *f, const json_t *request, json_t *reply)
{
	static const char *const names[] = {
		[MOUNT_RELATIME] = "relatime", [MOUNT_NOATIME] = "noatime", [MOUNT_STRICTATIME] = "strictatime"
	};
	const char *name = json_string_value(json_object_get(request, "atime"));
	const json_t *diratime = json_object_get(request, "diratime");
	bool keeps_diratime = json_is_false(diratime);
	enum mount_atime atime = 0;

	(void)reply;
	while (name && atime < ARRAY_NR(names) && strcmp(names[atime], name))
		atime++;
	if (atime == ARRAY_NR(names))
		return -EINVAL;
	mount_server_atime_set(f->server, name ? &atime : NULL, diratime ? &keeps_diratime : NULL);
	return 0;
}

static const struct {
	const char *name;
	/* Adds to @reply; 0 or a negative errno. */
	int (*fn)(struct mount_facts_of *f, const json_t *request, json_t *reply);
	int ending_err; /* what it comes to when the server is ending */
} control_commands[] = {
	/* clang-format off */
	{ "status", add_status, 0 },
	{ "debug", add_debug, 0 },
	{ "sync", do_sync, -ESHUTDOWN },
	{ "usage", do_usage, -ESHUTDOWN },
	{ "quota", do_quota, -ESHUTDOWN },
	{ "remount", do_remount, -ESHUTDOWN },
	/* clang-format on */
};

static const char *error_text(int err)
{
	switch (err) {
	case -EINVAL: return "unknown command";
	case -ESHUTDOWN: return "it has been unmounted: all is durable when it has ended";
	case -ETIMEDOUT: return "so much is written and read that what is cached can't be waited for";
	default: return strerror(-err);
	}
}

static json_t *about_json(const struct mount_facts_of *f)
{
	return json_pack("{s:i, s:o, s:o, s:s}", "pid", (int)getpid(), "mountpoint",
			 tool_json_bytes(f->mountpoint, strlen(f->mountpoint)), "source",
			 tool_json_bytes(f->source, strlen(f->source)), "uuid", f->uuid);
}

static bool ask_begin(struct mount_facts_of *f)
{
	mutex_lock(&f->lock);
	bool is_ending = f->is_ending;
	f->asking_nr += !is_ending;
	mutex_unlock(&f->lock);
	return !is_ending;
}

static void ask_end(struct mount_facts_of *f)
{
	mutex_lock(&f->lock);
	f->asking_nr--;
	waitq_wake_all(&f->asked);
	mutex_unlock(&f->lock);
}

static json_t *answer(struct mount_facts_of *f, const char *request)
{
	json_t *parsed = json_loads(request, 0, NULL);
	const char *name = parsed ? json_string_value(json_object_get(parsed, "command")) : NULL;
	json_t *reply = about_json(f);
	bool is_there = ask_begin(f);
	int err = -EINVAL;

	json_object_set_new(reply, "state", json_string("ending"));
	for (size_t i = 0; name && i < ARRAY_NR(control_commands); i++)
		if (!strcmp(name, control_commands[i].name))
			err = is_there ? control_commands[i].fn(f, parsed, reply) : control_commands[i].ending_err;
	if (is_there)
		ask_end(f);
	json_object_set_new(reply, "ok", json_boolean(!err));
	if (err && !json_object_get(reply, "error"))
		json_object_set_new(reply, "error", json_string(error_text(err)));
	json_decref(parsed);
	return reply;
}

char *mount_facts_answer(void *ctx, const char *request)
{
	json_t *reply = answer(ctx, request);
	char *text = reply ? json_dumps(reply, JSON_COMPACT) : NULL;

	json_decref(reply);
	return text;
}

char *mount_facts_about(const struct mount_facts_of *f)
{
	json_t *about = about_json(f);
	char *text = json_dumps(about, JSON_COMPACT);

	json_decref(about);
	return text;
}

/* --- begin and end --- */

void mount_facts_init(struct mount_facts_of *f)
{
	struct strbuf uuid = strbuf_fixed(f->uuid, sizeof(f->uuid));

	strbuf_add_uuid(&uuid, f->fs->super->sb->user_uuid);
	mutex_init(&f->lock);
	waitq_init(&f->asked);
}

void mount_facts_destroy(struct mount_facts_of *f)
{
	waitq_destroy(&f->asked);
	mutex_destroy(&f->lock);
}

void mount_facts_end(struct mount_facts_of *f)
{
	mutex_lock(&f->lock);
	f->is_ending = true;
	while (f->asking_nr)
		waitq_wait(&f->asked, &f->lock);
	mutex_unlock(&f->lock);
}
