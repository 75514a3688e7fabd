/*
 * kiln status, sync and debug: what the servers of mounted filesystems say and do.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "tool/mount_control.h"
#include "tool/mounted.h"
#include "tool/tool.h"

/* --- what is printed --- */

static uint64_t number(const json_t *object, const char *part, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(json_object_get(object, part), name));
}

/* "7.36 GiB", in turns: as many as one printf() takes. */
static const char *size(uint64_t bytes)
{
	enum { TEXTS = 4 };
	static char texts[TEXTS][32];
	static unsigned next;
	char *text = texts[next++ % TEXTS];
	struct strbuf out = strbuf_fixed(text, sizeof(texts[0]));

	strbuf_add_size(&out, bytes);
	return text;
}

/* "  job      quota scan: working, no limit holds before all inodes are counted: 1200 of 4800 inodes, 25 %" */
static void print_job(const json_t *job)
{
	const char *why = json_string_value(json_object_get(job, "why"));
	uint64_t done = number(job, "progress", "done"), of = number(job, "progress", "of");

	printf("  job      %s: %s%s%s", json_string_value(json_object_get(job, "job")),
	       json_string_value(json_object_get(job, "state")), why && *why ? ", " : "", why ? why : "");
	if (json_is_object(json_object_get(job, "progress"))) {
		const char *unit = json_string_value(json_object_get(json_object_get(job, "progress"), "unit"));

		if (of)
			printf(": %" PRIu64 " of %" PRIu64 " %s, %.0f %%", done, of, unit,
			       100.0 * (double)min(done, of) / (double)of);
		else
			printf(": %" PRIu64 " %s so far", done, unit);
	}
	putchar('\n');
}

/* Those that have nothing to do in one line: "  jobs     waiting: discards, copygc" */
static void print_jobs(const json_t *jobs)
{
	struct strbuf waiting = strbuf_growing();
	const json_t *job;
	size_t i;

	json_array_foreach(jobs, i, job)
	{
		const char *state = json_string_value(json_object_get(job, "state"));

		if (!state || strcmp(state, "waiting"))
			print_job(job);
		else
			strbuf_printf(&waiting, "%s%s", waiting.len ? ", " : "",
				      json_string_value(json_object_get(job, "job")));
	}
	if (waiting.len)
		printf("  jobs     waiting: %s\n", strbuf_text(&waiting));
	strbuf_free(&waiting);
}

static bool has_errors(const json_t *errors)
{
	const char *kind;
	json_t *nr;

	json_object_foreach((json_t *)errors, kind, nr) if (json_integer_value(nr)) return true;
	return false;
}

static void print_errors(const json_t *errors)
{
	const char *kind, *separator = "";
	json_t *nr;

	json_object_foreach((json_t *)errors, kind, nr) if (json_integer_value(nr))
	{
		printf("%s%llu %s", separator, (unsigned long long)json_integer_value(nr), kind);
		separator = ", ";
	}
}

/*
 * "  device   /dev/sdb: rw, 512 MiB"
 * "  device   /dev/sdc: rw, 512 MiB; errors: 12 read, 794 write; since it was mounted: 794 write"
 */
static void print_device(const json_t *device)
{
	const json_t *errors = json_object_get(device, "errors");
	const json_t *since = json_object_get(device, "errors_since_mount");

	printf("  device   %s: %s, %s%s", json_string_value(json_object_get(device, "name")),
	       json_string_value(json_object_get(device, "state")),
	       size((uint64_t)json_integer_value(json_object_get(device, "bytes"))),
	       json_is_true(json_object_get(device, "is_online")) ? "" : ", missing");
	if (has_errors(errors)) {
		printf("; errors: ");
		print_errors(errors);
	}
	if (has_errors(since)) {
		printf("; since it was mounted: ");
		print_errors(since);
	}
	putchar('\n');
}

static void print_counts(const json_t *r)
{
	printf("  cache    %s of %s in %" PRIu64 " btree nodes\n", size(number(r, "cache", "bytes")),
	       size(number(r, "cache", "bytes_max")), number(r, "cache", "nodes"));
	if (json_is_object(json_object_get(r, "journal")))
		printf("  journal  %" PRIu64 " of %" PRIu64 " buckets free, %" PRIu64 " entries and %" PRIu64
		       " flushes so far\n",
		       number(r, "journal", "buckets_free"), number(r, "journal", "buckets"),
		       number(r, "journal", "entries_written"), number(r, "journal", "flushes"));
	if (json_is_object(json_object_get(r, "copygc")))
		printf("  copygc   %s moved, %" PRIu64 " buckets emptied\n", size(number(r, "copygc", "bytes_moved")),
		       number(r, "copygc", "buckets_emptied"));
	if (json_is_object(json_object_get(r, "deletions")))
		printf("  deleted  %" PRIu64 " objects in the background, %" PRIu64 " are left to be deleted\n",
		       number(r, "deletions", "done"), number(r, "deletions", "left"));
	printf("  kernel   remembers %" PRIu64 " objects (%s here), %" PRIu64 " of them deleted but in use\n",
	       number(r, "kernel", "objects"), size(number(r, "kernel", "bytes")),
	       number(r, "kernel", "deleted_in_use"));
	printf("  reports  %" PRIu64 " recovered, %" PRIu64 " damage, %" PRIu64 " fatal\n",
	       number(r, "reports", "recovered"), number(r, "reports", "damage"), number(r, "reports", "fatal"));
}

static void print_status(const json_t *r)
{
	const char *mountpoint = json_string_value(json_object_get(r, "mountpoint"));
	const json_t *user = json_object_get(r, "user"), *device;
	size_t i;

	printf("%s\n", mountpoint ? mountpoint : "a mount of unknown place");
	printf("  state    %s%s%s, process %d", json_string_value(json_object_get(r, "state")),
	       json_is_true(json_object_get(r, "is_readonly")) ? ", read-only" : "",
	       json_is_false(json_object_get(r, "is_mounted")) ? ", no longer mounted here" : "",
	       (int)json_integer_value(json_object_get(r, "pid")));
	if (user)
		printf(" of user %u", (unsigned)json_integer_value(user));
	putchar('\n');
	if (json_object_get(r, "why"))
		printf("  why      %s\n", json_string_value(json_object_get(r, "why")));
	if (!json_object_get(r, "usage"))
		return;
	json_array_foreach(json_object_get(r, "devices"), i, device) print_device(device);
	printf("  space    %s used of %s, %s available, %" PRIu64 " inodes\n", size(number(r, "usage", "used")),
	       size(number(r, "usage", "capacity")), size(number(r, "usage", "available")),
	       number(r, "usage", "inodes"));
	print_counts(r);
	print_jobs(json_object_get(r, "jobs"));
}

enum { OPT_JSON = TOOL_OPT_COMMAND, OPT_HELP };

/* --- what is common --- */

/* Options, and the one argument, which may be left out: *@which is NULL then. -1: go on. */
static int parse(const struct command *self, int argc, char **argv, bool *is_json, const char **which)
{
	static const struct option options[] = { { "json", no_argument, NULL, OPT_JSON },
						 { "help", no_argument, NULL, OPT_HELP },
						 { 0 } };
	int c;

	*which = NULL;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == OPT_HELP) {
			fputs(self->usage, stdout);
			return TOOL_OK;
		}
		if (c != OPT_JSON)
			return tool_usage_error(self, "unknown option");
		*is_json = true;
	}
	if (argc - optind > 1)
		return tool_usage_error(self, "takes one mount point or filesystem");
	if (optind < argc)
		*which = argv[optind];
	return -1;
}

/* A mount whose server hasn't answered. */
static void tell_unanswered(const struct mounted *m)
{
	if (!m->is_kiln)
		tool_error("%s is mounted at %s, but not by kiln", m->source, m->mount_point);
	else if (geteuid() && m->user != geteuid())
		tool_error("%s is mounted at %s by user %u: only that user and root can ask its server", m->source,
			   m->mount_point, m->user);
	else if (mounted_is_dead(m->mount_point))
		mounted_tell_dead(m->mount_point);
	else
		tool_error("%s is mounted at %s, but its server doesn't answer, or has no socket here "
			   "(kiln-status(1))",
			   m->source, m->mount_point);
}

static bool is_answered(const json_t *replies, const struct mounted *m)
{
	bool is_answered = false;
	const json_t *reply;
	size_t i;

	json_array_foreach(replies, i, reply)
	{
		const char *mountpoint = json_string_value(json_object_get(reply, "mountpoint"));
		const char *source = json_string_value(json_object_get(reply, "source"));

		is_answered |=
			mountpoint && source && (!strcmp(mountpoint, m->mount_point) || !strcmp(source, m->source));
	}
	return is_answered;
}

/*
 * Tell what is mounted, as asked for, and isn't among @replies: a server may be gone, or have no socket. 0, or that
 * there was any; or that what was asked for isn't mounted at all.
 */
static int check_missing(const json_t *replies, const char *which)
{
	struct mounted *list;
	size_t nr = mounted_list(&list), told = 0;

	if (which && !json_array_size(replies)) {
		const struct mounted *m = mounted_find(list, nr, which);

		if (m)
			tell_unanswered(m);
		else
			tool_error("%s isn't mounted by a kiln of this user", which);
		told = 1;
	}
	for (size_t i = 0; i < nr && !which; i++) {
		if (!list[i].is_kiln || list[i].user != geteuid() || is_answered(replies, &list[i]))
			continue;
		tell_unanswered(&list[i]);
		told++;
	}
	if (!told && !json_array_size(replies))
		tool_error("nothing is mounted by a kiln of this user");
	mounted_free(list, nr);
	return told ? TOOL_FAILED : TOOL_OK;
}

/* 0, or what is wrong has been told. */
static int check_replies(const json_t *replies)
{
	const json_t *reply;
	int status = TOOL_OK;
	size_t i;

	json_array_foreach(replies, i, reply) if (!json_is_true(json_object_get(reply, "ok")))
	{
		const char *error = json_string_value(json_object_get(reply, "error"));
		const char *mountpoint = json_string_value(json_object_get(reply, "mountpoint"));

		if (mount_control_is_stuck(reply))
			tool_error("process %d, which serves %s: %s",
				   (int)json_integer_value(json_object_get(reply, "pid")),
				   mountpoint ? mountpoint : "a mount", error);
		else
			tool_error("the server says: %s", error ? error : "nothing");
		status = TOOL_FAILED;
	}
	return status;
}

/* Who asks for all wants to know what there is; only what was to be done is a failure where it isn't. */
static int check_all(const json_t *replies, const char *which, bool needs_all)
{
	int missing = check_missing(replies, which), status = check_replies(replies);

	return status || (!which && !needs_all) ? status : missing;
}

/* --- status and debug --- */

/*
 * A lazy unmount takes the mount away while files of it are open, and its server serves them on: tell it from one that
 * is mounted there since.
 */
static void note_mounted(json_t *replies)
{
	const char *source, *mount_point;
	json_t *reply;
	size_t i;

	json_array_foreach(replies, i, reply)
	{
		source = json_string_value(json_object_get(reply, "source"));
		mount_point = json_string_value(json_object_get(reply, "mountpoint"));
		/* One with escaped bytes can't be compared. */
		if (source && mount_point && !strchr(source, '\\') && !strchr(mount_point, '\\'))
			json_object_set_new(reply, "is_mounted", json_boolean(mounted_is_at(source, mount_point)));
	}
}

static int status_run(const struct command *self, int argc, char **argv)
{
	bool is_json = false;
	const char *which;
	int status = parse(self, argc, argv, &is_json, &which);

	if (status >= 0)
		return status;
	json_t *replies = mount_control_ask(which, "status");
	const json_t *reply;
	size_t i;

	status = check_all(replies, which, false);
	note_mounted(replies);
	if (!is_json) {
		json_array_foreach(replies, i, reply) print_status(reply);
		json_decref(replies);
		return status;
	}
	int print_status_code = tool_print_json(replies);
	return status ? status : print_status_code;
}

static int debug_run(const struct command *self, int argc, char **argv)
{
	bool is_json = false;
	const char *which;
	int status = parse(self, argc, argv, &is_json, &which);

	if (status >= 0)
		return status;
	json_t *replies = mount_control_ask(which, "debug");
	status = check_all(replies, which, false);
	int print_status_code = tool_print_json(replies);
	return status ? status : print_status_code;
}

/* --- sync --- */

enum written_back { IS_WRITTEN_BACK, WAS_LOST, CANNOT_BE_WRITTEN };

/*
 * Have the kernel write back what it has cached for a mount. Of a page that could not be written some time before, and
 * that it has dropped since, it tells once: what it says then is no news of what it has now, so it is asked again.
 */
static enum written_back write_back(const char *mountpoint, int *error)
{
	int fd = open(mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	enum written_back result = IS_WRITTEN_BACK;

	if (fd < 0) {
		*error = errno;
		/* In another namespace there is nothing, or something else, at that path. */
		return errno == EACCES ? CANNOT_BE_WRITTEN : IS_WRITTEN_BACK;
	}
	if (syncfs(fd)) {
		*error = errno;
		result = syncfs(fd) ? CANNOT_BE_WRITTEN : WAS_LOST;
	}
	close(fd);
	return result;
}

/* FUSE lets nobody but who has mounted it in, not root either, unless that asked for it: so a child becomes that user.
 */
static enum written_back write_back_as(const struct mounted *m, int *error)
{
	struct {
		enum written_back result;
		int error;
	} got = { CANNOT_BE_WRITTEN, EIO };
	int fds[2];

	if (pipe2(fds, O_CLOEXEC)) {
		*error = errno;
		return CANNOT_BE_WRITTEN;
	}
	pid_t child = fork();
	if (!child) {
		if (setgroups(0, NULL) || setresgid(m->group, m->group, m->group) ||
		    setresuid(m->user, m->user, m->user))
			got.error = errno;
		else
			got.result = write_back(m->mount_point, &got.error);
		_exit(write(fds[1], &got, sizeof(got)) != sizeof(got));
	}
	close(fds[1]);
	if (child > 0 && read(fds[0], &got, sizeof(got)) != sizeof(got))
		got.error = EIO;
	close(fds[0]);
	if (child > 0)
		waitpid(child, NULL, 0);
	*error = got.error;
	return got.result;
}

static enum written_back write_back_at(const char *mountpoint, int *error)
{
	struct mounted *list;
	size_t nr = mounted_list(&list);
	const struct mounted *m = NULL;

	for (size_t i = 0; i < nr; i++)
		if (list[i].is_kiln && !strcmp(list[i].mount_point, mountpoint))
			m = &list[i];
	bool is_others = m && !geteuid() && m->user;
	enum written_back result = is_others ? write_back_as(m, error) : write_back(mountpoint, error);

	mounted_free(list, nr);
	return result;
}

/* What the kernel has cached comes first: it doesn't hand syncfs() on, but it does write back. */
static int sync_one(const char *mountpoint, json_t *all_replies)
{
	int error = 0;
	enum written_back written_back = write_back_at(mountpoint, &error);
	json_t *replies = mount_control_ask(mountpoint, "sync");
	bool has_ended = !json_array_size(replies);
	int status = has_ended ? TOOL_FAILED : check_replies(replies);

	json_array_extend(all_replies, replies);
	json_decref(replies);
	if (has_ended)
		tool_error("%s: its server has ended meanwhile", mountpoint);
	if (written_back == IS_WRITTEN_BACK)
		return status;
	if (written_back == CANNOT_BE_WRITTEN)
		tool_error("%s: what is cached can't be written back: %s%s", mountpoint, strerror(error),
			   status ? "" : "; all else is durable");
	else
		tool_error("%s: something that was written before could not be written back, and is lost: %s%s",
			   mountpoint, strerror(error), status ? "" : "; all else is durable");
	return TOOL_FAILED;
}

static int sync_run(const struct command *self, int argc, char **argv)
{
	bool is_json = false;
	const char *which;
	int status = parse(self, argc, argv, &is_json, &which);

	if (status >= 0)
		return status;
	json_t *servers = mount_control_ask(which, "status"), *replies = json_array();
	const json_t *server;
	size_t i;

	status = check_all(servers, which, true);
	json_array_foreach(servers, i, server)
	{
		const char *mountpoint = json_string_value(json_object_get(server, "mountpoint"));

		if (mountpoint && !mount_control_is_stuck(server) && sync_one(mountpoint, replies) != TOOL_OK)
			status = TOOL_FAILED;
	}
	json_decref(servers);
	if (!is_json) {
		json_decref(replies);
		return status;
	}
	int print_status_code = tool_print_json(replies);
	return status ? status : print_status_code;
}

const struct command command_status = {
	.name = "status",
	.summary = "what the servers of mounted filesystems are doing",
	.usage = "usage: kiln status [--json] [DIRECTORY|FS]\n"
		 "\n"
		 "What the servers of filesystems that `kiln mount` has mounted say about themselves: one, or all of "
		 "this user\n"
		 "(for root: of all users).\n"
		 "\n"
		 "  --json                  as a JSON array of objects; sizes are bytes\n"
		 "  --help                  this text\n",
	.run = status_run,
};

const struct command command_sync = {
	.name = "sync",
	.summary = "make durable what was written to a mounted filesystem",
	.usage = "usage: kiln sync [--json] [DIRECTORY|FS]\n"
		 "\n"
		 "Have everything that was written to a mounted filesystem (or to all of this user) on its devices, "
		 "durable, on\n"
		 "return. sync(1) isn't enough: the kernel doesn't hand it on to filesystems in userspace.\n"
		 "\n"
		 "  --json                  what each server answered, as a JSON array of objects\n"
		 "  --help                  this text\n",
	.run = sync_run,
};

const struct command command_debug = {
	.name = "debug",
	.summary = "counters of the engine of a mounted filesystem",
	.usage = "usage: kiln debug [DIRECTORY|FS]\n"
		 "\n"
		 "What `kiln status` tells, and the state of btrees, allocator and data path, as a JSON array "
		 "of objects.\n"
		 "The names may change from version to version.\n"
		 "\n"
		 "  --help                  this text\n",
	.run = debug_run,
};
