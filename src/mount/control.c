/*
 * The control socket. See control.h.
 *
 * One task accepts, and has each connection answered by a task of its own: some requests wait for devices, and then who
 * asks what the server does mustn't wait for them. Clients are few; beyond CONNECTIONS_MAX they wait to be accepted.
 * One that says nothing is dropped after a moment.
 */
#include "mount/control.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/sync.h"
#include "base/util.h"

enum { CONNECTIONS_MAX = 64 };

struct connection {
	struct control *control;
	struct task *task; /* NULL: there is none */
	/* Under the lock: */
	int fd; /* -1: it is over */
};

struct control {
	control_fn fn;
	void *ctx;
	struct task *task;
	int listen_fd, stop_fd;
	struct sockaddr_un address;
	char about_path[CONTROL_PATH_BYTES]; /* empty: there is no such file */
	struct mutex lock;
	struct waitq over; /* a connection is */
	bool is_stopping;
	struct connection connections[CONNECTIONS_MAX];
};

/* --- where sockets are --- */

enum { PLACES_MAX = 256 };

/* Nobody but its owner may put anything there. */
static bool place_is_private(const struct control_place *place)
{
	struct stat st;

	return !lstat(place->path, &st) && S_ISDIR(st.st_mode) && st.st_uid == place->uid &&
	       !(st.st_mode & (S_IRWXG | S_IRWXO));
}

static struct control_place place_of(uid_t uid, bool is_runtime)
{
	struct control_place place = { .uid = uid };

	if (!is_runtime)
		snprintf(place.path, sizeof(place.path), "/tmp/kiln-%u", uid);
	else if (uid)
		snprintf(place.path, sizeof(place.path), "/run/user/%u/kiln", uid);
	else
		snprintf(place.path, sizeof(place.path), "/run/kiln");
	return place;
}

static void places_add(struct control_place *places, size_t *nr, const struct control_place *place)
{
	if (*nr < PLACES_MAX && place_is_private(place))
		places[(*nr)++] = *place;
}

/* Those of others: @directory has them, by the user's number behind @prefix. */
static void places_add_others(struct control_place *places, size_t *nr, const char *directory, const char *prefix,
			      bool is_runtime)
{
	size_t len = strlen(prefix);
	DIR *dir = opendir(directory);
	const struct dirent *entry;
	char *end;

	while (dir && (entry = readdir(dir))) {
		const char *number = entry->d_name + len;

		if (strncmp(entry->d_name, prefix, len) || *number < '0' || *number > '9')
			continue;
		uint64_t uid = strtoull(number, &end, 10);
		struct control_place place = place_of((uid_t)uid, is_runtime);
		if (!*end && uid <= UINT32_MAX && uid != geteuid())
			places_add(places, nr, &place);
	}
	if (dir)
		closedir(dir);
}

size_t control_places(struct control_place **places)
{
	size_t nr = 0;

	*places = calloc(PLACES_MAX, sizeof(**places));
	if (!*places)
		return 0;
	for (int is_runtime = 1; is_runtime >= 0; is_runtime--) {
		struct control_place place = place_of(geteuid(), is_runtime);

		places_add(*places, &nr, &place);
	}
	if (!geteuid()) {
		places_add_others(*places, &nr, "/run/user", "", true);
		places_add_others(*places, &nr, "/tmp", "kiln-", false);
	}
	return nr;
}

/* --- talking --- */

static bool send_all(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		text += n;
		len -= (size_t)n;
	}
	return true;
}

/* The first line that comes; false when it is none, or too long. */
static bool receive_line(int fd, char *line, size_t size)
{
	size_t len = 0;

	while (len < size) {
		ssize_t n = recv(fd, line + len, size - len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		char *end = memchr(line + len, '\n', (size_t)n);
		if (end) {
			*end = 0;
			return true;
		}
		len += (size_t)n;
	}
	return false;
}

static void answer(const struct control *c, int fd)
{
	struct timeval patience = { .tv_sec = 10 };
	char request[CONTROL_REQUEST_BYTES_MAX];

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (!receive_line(fd, request, sizeof(request)))
		return;
	CLEANUP_FREE char *reply = c->fn(c->ctx, request);
	if (reply && send_all(fd, reply, strlen(reply)))
		send_all(fd, "\n", 1);
}

static void connection_run(void *arg)
{
	struct connection *k = arg;
	struct control *c = k->control;

	answer(c, k->fd);
	mutex_lock(&c->lock);
	close(k->fd);
	k->fd = -1;
	waitq_wake_all(&c->over);
	mutex_unlock(&c->lock);
}

/* One that is over, or never was. */
static struct connection *connection_free(struct control *c)
{
	for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
		if (c->connections[i].fd < 0)
			return &c->connections[i];
	return NULL;
}

static void connection_begin(struct control *c, int fd)
{
	struct connection *k;

	mutex_lock(&c->lock);
	while (!(k = connection_free(c)) && !c->is_stopping)
		waitq_wait(&c->over, &c->lock);
	if (k)
		k->fd = fd;
	mutex_unlock(&c->lock);
	if (!k) {
		close(fd);
		return;
	}
	if (k->task)
		task_join(k->task);
	/* Without a thread this one does it. */
	if (task_start(&k->task, "control-answer", connection_run, k)) {
		k->task = NULL;
		connection_run(k);
	}
}

static void control_run(void *arg)
{
	struct control *c = arg;
	struct pollfd fds[] = { { .fd = c->listen_fd, .events = POLLIN }, { .fd = c->stop_fd, .events = POLLIN } };

	for (;;) {
		if (poll(fds, ARRAY_NR(fds), -1) < 0 && errno != EINTR)
			return;
		if (fds[1].revents)
			return;
		int fd = fds[0].revents ? accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC) : -1;
		if (fd >= 0)
			connection_begin(c, fd);
	}
}

/* --- begin and end --- */

/* Who can't read it asks. */
static void about_write(struct control *c, const char *about)
{
	unlink(c->about_path);
	int fd = open(c->about_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "w");

	if (!f) {
		if (fd >= 0)
			close(fd);
		return;
	}
	fprintf(f, "%s\n", about);
	fclose(f);
}

static int listen_at(struct control *c, const struct control_place *place, const char *about)
{
	if (mkdir(place->path, 0700) && errno != EEXIST)
		return -errno;
	/* Where anybody may make one of that name, somebody may have. */
	if (!place_is_private(place))
		return -EPERM;
	c->address.sun_family = AF_UNIX;
	int n = snprintf(c->address.sun_path, sizeof(c->address.sun_path), "%s/%d.sock", place->path, (int)getpid());
	if (n < 0 || (size_t)n >= sizeof(c->address.sun_path))
		return -ENAMETOOLONG;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* One of that name belonged to a process that is gone. */
	unlink(c->address.sun_path);
	if (bind(fd, (struct sockaddr *)&c->address, sizeof(c->address)) || listen(fd, CONNECTIONS_MAX)) {
		int err = -errno;

		close(fd);
		return err;
	}
	c->listen_fd = fd;
	snprintf(c->about_path, sizeof(c->about_path), "%s/%d.json", place->path, (int)getpid());
	about_write(c, about);
	return 0;
}

/* In the first place that can be had: there is no /run/user/UID for who never logged in. */
static int listen_somewhere(struct control *c, const char *about)
{
	int err = 0;

	for (int is_runtime = 1; is_runtime >= 0; is_runtime--) {
		struct control_place place = place_of(geteuid(), is_runtime);

		err = listen_at(c, &place, about);
		if (!err)
			break;
	}
	return err;
}

static void control_free(struct control *c)
{
	if (c->about_path[0])
		unlink(c->about_path);
	if (c->listen_fd >= 0) {
		unlink(c->address.sun_path);
		close(c->listen_fd);
	}
	if (c->stop_fd >= 0)
		close(c->stop_fd);
	waitq_destroy(&c->over);
	mutex_destroy(&c->lock);
	free(c);
}

int control_start(struct control **control, const char *about, control_fn fn, void *ctx)
{
	struct control *c = calloc(1, sizeof(*c));

	*control = NULL;
	if (!c)
		return -ENOMEM;
	c->fn = fn;
	c->ctx = ctx;
	mutex_init(&c->lock);
	waitq_init(&c->over);
	for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
		c->connections[i] = (struct connection){ .control = c, .fd = -1 };
	c->listen_fd = -1;
	c->stop_fd = eventfd(0, EFD_CLOEXEC);
	int err = c->stop_fd < 0 ? -errno : listen_somewhere(c, about);
	if (!err)
		err = task_start(&c->task, "control", control_run, c);
	if (err) {
		control_free(c);
		return err;
	}
	*control = c;
	return 0;
}

/* No request is waited for any more, but those that have come are answered. */
static void connections_stop(struct control *c)
{
	mutex_lock(&c->lock);
	c->is_stopping = true;
	for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
		if (c->connections[i].fd >= 0)
			shutdown(c->connections[i].fd, SHUT_RD);
	waitq_wake_all(&c->over);
	mutex_unlock(&c->lock);
}

void control_stop(struct control *c)
{
	if (!c)
		return;
	connections_stop(c);
	/* Eight bytes into a counter that is zero: it can't fail. */
	if (eventfd_write(c->stop_fd, 1) == 0)
		task_join(c->task);
	/* One that came since. */
	connections_stop(c);
	for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
		if (c->connections[i].task)
			task_join(c->connections[i].task);
	control_free(c);
}
