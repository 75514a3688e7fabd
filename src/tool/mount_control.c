/*
 * kiln status, sync and debug: what the servers of mounted filesystems say and do.
 *
 * Servers are found by their sockets, one per process and named after it. Root finds those of others as well, and what
 * these say counts only where the mount table bears it out: they may be anybody's programs. A socket that nobody
 * listens at is left from a server that was killed: it is passed over, and removed when there is no such process. Those
 * that are meant are asked all at once, so one that is stuck holds up none; what the file beside its socket says of it
 * is told instead.
 */
#include "tool/mount_control.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <grp.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/strbuf.h"
#include "base/sync.h"
#include "mount/control.h"
#include "tool/mounted.h"
#include "tool/tool.h"

enum { REPLY_BYTES_MAX = 256 << 20 }; /* with quotas of a million users */
enum { OTHERS_SECONDS_MAX = 600 };    /* for what they are told to do */
enum { STATUS_SECONDS_MAX = 5, SOCKETS_OF_ANOTHER_MAX = 32, NS_PER_S = 1000000000, NS_PER_MS = 1000000 };

/* --- sockets --- */

struct server_socket {
	char path[CONTROL_PATH_BYTES];
	uid_t uid; /* whose it is */
};

static bool is_of_another(const struct server_socket *s) { return s->uid != geteuid(); }

static void sockets_add(struct server_socket **sockets, size_t *nr, const struct control_place *place)
{
	char pattern[CONTROL_PATH_BYTES];
	glob_t found = { 0 };

	snprintf(pattern, sizeof(pattern), "%s/*.sock", place->path);
	if (glob(pattern, 0, NULL, &found))
		found.gl_pathc = 0;
	struct server_socket *longer = reallocarray(*sockets, *nr + found.gl_pathc + 1, sizeof(*longer));
	*sockets = longer ? longer : *sockets;
	/* Others may have filled theirs with anything. */
	size_t most = place->uid == geteuid() ? found.gl_pathc : min(found.gl_pathc, (size_t)SOCKETS_OF_ANOTHER_MAX);
	for (size_t i = 0; longer && i < most; i++) {
		if (strlen(found.gl_pathv[i]) >= sizeof(longer->path))
			continue;
		longer[*nr].uid = place->uid;
		strcpy(longer[(*nr)++].path, found.gl_pathv[i]);
	}
	globfree(&found);
}

/* Those that may be asked, this user's own first. Their number, and *@sockets to be freed. */
static size_t sockets_list(struct server_socket **sockets)
{
	struct control_place *places;
	size_t nr = 0, place_nr = control_places(&places);

	*sockets = NULL;
	for (size_t i = 0; i < place_nr; i++)
		sockets_add(sockets, &nr, &places[i]);
	free(places);
	return nr;
}

/* --- a request --- */

/* The file beside a socket, which says whose it is. To be freed; NULL when memory is short. */
static char *about_path(const char *socket_path)
{
	size_t len = strlen(socket_path) - strlen("sock");
	char *path = NULL;

	return asprintf(&path, "%.*sjson", (int)len, socket_path) < 0 ? NULL : path;
}

static pid_t pid_of(const char *socket_path)
{
	const char *name = strrchr(socket_path, '/');

	return name ? (pid_t)atoi(name + 1) : 0;
}

/* Nobody listens at @path, unless its server is about to. */
static void left_over_remove(const char *path)
{
	pid_t pid = pid_of(path);

	if (pid <= 0 || !kill(pid, 0) || errno != ESRCH)
		return;
	CLEANUP_FREE char *about = about_path(path);
	if (about)
		unlink(about);
	unlink(path);
}

/* False: not before @deadline_ns. */
static bool wait_for_bytes(int fd, uint64_t deadline_ns)
{
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	uint64_t now_ns = clock_monotonic_ns();
	int nr;

	while ((nr = poll(&ready, 1,
			  deadline_ns == UINT64_MAX ? -1
			  : deadline_ns <= now_ns   ? 0
						    : (int)((deadline_ns - now_ns) / NS_PER_MS + 1))) < 0 &&
	       errno == EINTR && !tool_interrupted)
		now_ns = clock_monotonic_ns();
	return nr > 0;
}

/* All that comes until the other end is closed: 0; -ETIMEDOUT, or another negative errno. */
static int receive_all(int fd, uint64_t deadline_ns, struct strbuf *reply)
{
	char part[4096];

	for (;;) {
		if (!wait_for_bytes(fd, deadline_ns))
			return -ETIMEDOUT;
		ssize_t n = recv(fd, part, sizeof(part), 0);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (!n)
			return 0;
		if (n > 0)
			strbuf_add_bytes(reply, part, (size_t)n);
		if (reply->len > REPLY_BYTES_MAX)
			return -EMSGSIZE;
	}
}

/* Has who listens the right to that socket's name? In a folder of another user a link may lead elsewhere. */
static bool is_peer_right(int fd, const struct server_socket *to)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	return !is_of_another(to) || (!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) && peer.uid == to->uid &&
				      peer.pid == pid_of(to->path));
}

/* One that is about to end may hang up, and one that is stuck not take the connection. */
static int connect_to(const struct server_socket *server, uint64_t deadline_ns)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	const struct timeval limit = { .tv_sec = deadline_ns == UINT64_MAX ? 0 : STATUS_SECONDS_MAX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	strcpy(to.sun_path, server->path);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)); /* of connecting too */
	int err = connect(fd, (struct sockaddr *)&to, sizeof(to)) ? -errno : 0;
	if (!err && is_peer_right(fd, server))
		return fd;
	close(fd);
	if (!err)
		return -EPERM;
	if (err == -EAGAIN)
		return -ETIMEDOUT;
	if (err == -ECONNREFUSED && !is_of_another(server))
		left_over_remove(server->path);
	return err;
}

/* The answer to @request, a line; NULL: there is none. *@is_late: none by then. */
static json_t *ask_at(const struct server_socket *server, const char *request, uint64_t deadline_ns, bool *is_late)
{
	struct strbuf text = strbuf_growing();
	size_t len = strlen(request);
	json_t *reply = NULL;
	int fd = connect_to(server, deadline_ns);
	int err = min(fd, 0);

	/* No reason to be killed by a signal if it ends. */
	if (!err && send(fd, request, len, MSG_NOSIGNAL) != (ssize_t)len)
		err = -errno;
	if (!err)
		err = receive_all(fd, deadline_ns, &text);
	if (!err)
		reply = json_loads(strbuf_text(&text), JSON_DISABLE_EOF_CHECK, NULL);
	if (fd >= 0)
		close(fd);
	strbuf_free(&text);
	*is_late = err == -ETIMEDOUT;
	return reply;
}

/* --- who is meant --- */

struct wanted {
	const char *which; /* NULL: all */
	char *path;	   /* of the directory that it may be */
	char *devices;
	/* The mount table. */
	struct mounted *mounts;
	size_t mount_nr;
};

static struct wanted wanted_new(const char *which)
{
	struct wanted w = { .which = which };

	w.mount_nr = mounted_list(&w.mounts);
	if (!which)
		return w;
	const struct mounted *m = mounted_find(w.mounts, w.mount_nr, which);
	w.path = m ? strdup(m->mount_point) : realpath(which, NULL);
	w.devices = m ? strdup(m->source) : mounted_devices(which);
	return w;
}

static void wanted_free(const struct wanted *w)
{
	free(w->path);
	free(w->devices);
	mounted_free(w->mounts, w->mount_nr);
}

static bool is_meant(const json_t *about, const struct wanted *w)
{
	const char *mountpoint = json_string_value(json_object_get(about, "mountpoint"));
	const char *source = json_string_value(json_object_get(about, "source"));
	const char *uuid = json_string_value(json_object_get(about, "uuid"));

	if (!mountpoint || !source)
		return false;
	if (!w->which || !strcmp(w->path ? w->path : w->which, mountpoint))
		return true;
	return mounted_lists_meet(w->devices ? w->devices : w->which, source) ||
	       (uuid && !strncasecmp(w->which, "UUID=", strlen("UUID=")) &&
		!strcasecmp(w->which + strlen("UUID="), uuid));
}

/* Another user's server: does the mount table say that this user has mounted what is meant (at @mountpoint)? */
static bool is_borne_out(const char *mountpoint, const struct server_socket *server, const struct wanted *w)
{
	const char *devices = w->devices ? w->devices : w->which, *path = w->path ? w->path : w->which;
	bool is_there = false;

	for (size_t i = 0; i < w->mount_nr && !is_there; i++) {
		const struct mounted *m = &w->mounts[i];

		is_there = m->is_kiln && m->user == server->uid &&
			   (!mountpoint || !strcmp(m->mount_point, mountpoint)) &&
			   (!w->which || !strcmp(m->mount_point, path) ||
			    (mounted_is_believed(m) && mounted_lists_meet(devices, m->source)));
	}
	return is_there;
}

/* --- asking --- */

/* A server that is asked for its status. */
struct asked {
	const struct server_socket *server;
	json_t *about; /* NULL: unknown */
	uint64_t deadline_ns;
	struct task *task; /* NULL: there is none */
	json_t *status;	   /* NULL: no answer */
	bool is_late;
};

static void ask_status(void *arg)
{
	struct asked *a = arg;

	a->status = ask_at(a->server, "{\"command\": \"status\"}\n", a->deadline_ns, &a->is_late);
}

static bool is_stopped(pid_t pid)
{
	char path[32], state = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	FILE *f = fopen(path, "re");
	if (!f)
		return false;
	/* Behind the name, in parentheses, which is of our program. */
	if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
		state = 0;
	fclose(f);
	return state == 'T' || state == 't';
}

/* What is told of one that says nothing. */
static json_t *stuck_status(const struct asked *a)
{
	json_t *status = a->about ? json_deep_copy(a->about) : json_object();
	struct strbuf why = strbuf_growing();
	pid_t pid = pid_of(a->server->path);
	const char *mountpoint = json_string_value(json_object_get(status, "mountpoint"));

	if (is_stopped(pid))
		strbuf_printf(&why, "it has been stopped: `kill -CONT %d` has it go on", (int)pid);
	else
		strbuf_printf(&why,
			      "no answer in %d s: the system log may say which device it waits for; `kill -9 %d` and "
			      "`umount -l %s` end it, and what was synced is safe",
			      STATUS_SECONDS_MAX, (int)pid, mountpoint ? mountpoint : "DIRECTORY");
	json_object_set_new(status, "pid", json_integer(pid));
	json_object_set_new(status, "state", json_string("stuck"));
	json_object_set_new(status, "ok", json_false());
	json_object_set_new(status, "error", json_string(strbuf_text(&why)));
	strbuf_free(&why);
	return status;
}

bool mount_control_is_stuck(const json_t *reply)
{
	const char *state = json_string_value(json_object_get(reply, "state"));

	return state && !strcmp(state, "stuck");
}

/* Is the answer of another user's server what one would say? */
static bool is_answer_of(const json_t *status, const struct server_socket *server, const struct wanted *wanted)
{
	const char *mountpoint = json_string_value(json_object_get(status, "mountpoint"));

	return mountpoint && json_string_value(json_object_get(status, "source")) &&
	       json_string_value(json_object_get(status, "state")) && !mount_control_is_stuck(status) &&
	       is_borne_out(mountpoint, server, wanted);
}

static json_t *printable_json(const json_t *text)
{
	struct strbuf out = strbuf_growing();

	tool_add_printable(&out, json_string_value(text), json_string_length(text));
	json_t *value = json_string(strbuf_text(&out));
	strbuf_free(&out);
	return value;
}

/* What another user's server says goes to a terminal. */
static void make_printable(json_t *value)
{
	const char *key;
	json_t *part;
	size_t i;
	void *next;

	json_array_foreach(value, i, part)
	{
		make_printable(part);
		if (json_is_string(part))
			json_array_set_new(value, i, printable_json(part));
	}
	json_object_foreach_safe(value, next, key, part)
	{
		make_printable(part);
		if (json_is_string(part))
			json_object_set_new(value, key, printable_json(part));
	}
}

/* What its answer, if there is one, is worth: NULL, nothing. */
static void judge(struct asked *a, const struct wanted *wanted)
{
	bool is_others = is_of_another(a->server);

	if (a->status && !(is_others ? is_answer_of(a->status, a->server, wanted) : is_meant(a->status, wanted))) {
		json_decref(a->status);
		a->status = NULL;
	}
	/* Not what it says: requests go to that process. */
	if (a->status && is_others)
		json_object_set_new(a->status, "pid", json_integer(pid_of(a->server->path)));
	if (a->status && is_others)
		make_printable(a->status);
	/* One that may be another's isn't told of. */
	if (a->is_late && (a->about || (!wanted->which && !is_others)))
		a->status = stuck_status(a);
	if (a->status && is_others)
		json_object_set_new(a->status, "user", json_integer(a->server->uid));
}

/* The status of each of @servers that is meant: a->status, NULL for others. */
static void ask_all(struct asked *asked, const struct server_socket *servers, size_t nr, const struct wanted *wanted)
{
	uint64_t deadline_ns = clock_monotonic_ns() + (uint64_t)STATUS_SECONDS_MAX * NS_PER_S;

	for (size_t i = 0; i < nr; i++) {
		struct asked *a = &asked[i];
		CLEANUP_FREE char *about = is_of_another(&servers[i]) ? NULL : about_path(servers[i].path);

		a->server = &servers[i];
		a->about = about ? json_load_file(about, 0, NULL) : NULL;
		a->deadline_ns = deadline_ns;
		if (is_of_another(a->server) ? !is_borne_out(NULL, a->server, wanted)
					     : a->about && !is_meant(a->about, wanted))
			continue;
		if (task_start(&a->task, "ask", ask_status, a)) {
			a->task = NULL;
			ask_status(a);
		}
	}
	for (size_t i = 0; i < nr; i++) {
		if (asked[i].task)
			task_join(asked[i].task);
		judge(&asked[i], wanted);
	}
}

json_t *mount_control_ask(const char *which, const char *command)
{
	struct strbuf request = strbuf_growing();
	struct wanted wanted = wanted_new(which);
	struct server_socket *servers;
	json_t *replies = json_array();
	size_t nr = sockets_list(&servers);
	bool is_late;

	strbuf_printf(&request, "{\"command\": \"%s\"}\n", command);
	struct asked *asked = calloc(nr + 1, sizeof(*asked));
	if (asked)
		ask_all(asked, servers, nr, &wanted);
	uint64_t others_ns = clock_monotonic_ns() + (uint64_t)OTHERS_SECONDS_MAX * NS_PER_S;
	for (size_t i = 0; asked && i < nr; i++) {
		struct asked *a = &asked[i];

		/* First who it is: only those meant are told to do something, which may take as long as it takes. */
		if (a->status && (!strcmp(command, "status") || mount_control_is_stuck(a->status)))
			json_array_append(replies, a->status);
		else if (a->status)
			json_array_append_new(replies,
					      ask_at(a->server, strbuf_text(&request),
						     is_of_another(a->server) ? others_ns : UINT64_MAX, &is_late));
		json_decref(a->status);
		json_decref(a->about);
	}
	free(asked);
	free(servers);
	strbuf_free(&request);
	wanted_free(&wanted);
	return replies;
}

json_t *mount_control_request(pid_t server, const json_t *request)
{
	struct strbuf line = strbuf_growing();
	CLEANUP_FREE char *text = json_dumps(request, JSON_COMPACT);
	struct server_socket *servers;
	json_t *reply = NULL;
	bool is_late;

	if (text)
		strbuf_printf(&line, "%s\n", text);
	size_t nr = text ? sockets_list(&servers) : 0;
	for (size_t i = 0; i < nr && !reply; i++)
		if (pid_of(servers[i].path) == server)
			reply = ask_at(&servers[i], strbuf_text(&line), UINT64_MAX, &is_late);
	if (text)
		free(servers);
	strbuf_free(&line);
	return reply;
}

enum mount_control_found mount_control_find(const char *fs_arg, pid_t *server)
{
	json_t *replies = mount_control_ask(fs_arg, "status");
	enum mount_control_found found = MOUNT_CONTROL_NONE;
	const json_t *reply;
	size_t i;

	*server = 0;
	json_array_foreach(replies, i, reply)
	{
		const char *source = json_string_value(json_object_get(reply, "source"));
		const char *mountpoint = json_string_value(json_object_get(reply, "mountpoint"));
		const char *state = json_string_value(json_object_get(reply, "state"));
		bool is_mounted = source && mountpoint && mounted_is_at(source, mountpoint);

		if (mount_control_is_stuck(reply)) {
			tool_error("process %d, which serves %s: %s",
				   (int)json_integer_value(json_object_get(reply, "pid")), fs_arg,
				   json_string_value(json_object_get(reply, "error")));
			found = found ? found : MOUNT_CONTROL_STUCK;
		} else if (state && strcmp(state, "ending") && (is_mounted || found != MOUNT_CONTROL_FOUND)) {
			*server = (pid_t)json_integer_value(json_object_get(reply, "pid"));
			found = MOUNT_CONTROL_FOUND;
		}
	}
	json_decref(replies);
	return found;
}

/* Its mount goes first; the server hears of that a moment later. */
bool mount_control_is_ending(const char *fs_arg)
{
	CLEANUP_FREE char *mount_point = mounted_at(fs_arg);
	json_t *replies = mount_point ? NULL : mount_control_ask(fs_arg, "status");
	bool is_ending = false;
	const json_t *reply;
	size_t i;

	json_array_foreach(replies, i, reply) is_ending |= !mount_control_is_stuck(reply);
	json_decref(replies);
	return is_ending;
}

/* --- the commands --- */

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

/* Options, and the one argument, which may be left out: *@which is NULL then. -1: go on. */
static int parse(const struct command *self, int argc, char **argv, bool *is_json, const char **which)
{
	static const struct option options[] = { { "json", no_argument, NULL, OPT_JSON },
						 { "help", no_argument, NULL, OPT_HELP },
						 { 0 } };
	int c;

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
	*which = optind < argc ? argv[optind] : NULL;
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
