/*
 * The side that asks. See mount_control.h.
 *
 * Servers are found by their sockets, one per process and named after it. Root finds those of others as well, and what
 * these say counts only where the mount table bears it out: they may be anybody's programs. A socket that nobody
 * listens at is left from a server that was killed: it is passed over, and removed when there is no such process. Those
 * that are meant are asked all at once, so one that is stuck holds up none; what the file beside its socket says of it
 * is told instead.
 */
#include "tool/mount_control.h"

#include <errno.h>
#include <glob.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
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
