/*
 * The control socket. See control.h.
 *
 * One task accepts and answers, one connection after the other: clients are few, and their requests short. A client
 * that says nothing is dropped after a moment.
 */
#include "mount/control.h"

#include <errno.h>
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

struct control {
	control_fn fn;
	void *ctx;
	struct task *task;
	int listen_fd, stop_fd;
	struct sockaddr_un address;
};

bool control_directory(char *path, size_t size)
{
	const char *runtime = geteuid() ? getenv("XDG_RUNTIME_DIR") : "/run";
	int n = runtime ? snprintf(path, size, "%s/kiln", runtime) : -1;

	return n > 0 && (size_t)n < size;
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

static void answer(struct control *c, int fd)
{
	struct timeval patience = { .tv_sec = 2 };
	char request[CONTROL_REQUEST_BYTES_MAX];

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (!receive_line(fd, request, sizeof(request)))
		return;
	CLEANUP_FREE char *reply = c->fn(c->ctx, request);
	if (reply && send_all(fd, reply, strlen(reply)))
		send_all(fd, "\n", 1);
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
		if (fd >= 0) {
			answer(c, fd);
			close(fd);
		}
	}
}

/* --- begin and end --- */

static int listen_at(struct control *c)
{
	char directory[CONTROL_PATH_BYTES];

	if (!control_directory(directory, sizeof(directory)))
		return -ENOENT;
	if (mkdir(directory, 0700) && errno != EEXIST)
		return -errno;
	c->address.sun_family = AF_UNIX;
	int n = snprintf(c->address.sun_path, sizeof(c->address.sun_path), "%s/%d.sock", directory, (int)getpid());
	if (n < 0 || (size_t)n >= sizeof(c->address.sun_path))
		return -ENAMETOOLONG;
	c->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->listen_fd < 0)
		return -errno;
	/* One of that name belonged to a process that is gone. */
	unlink(c->address.sun_path);
	if (bind(c->listen_fd, (struct sockaddr *)&c->address, sizeof(c->address)) || listen(c->listen_fd, 16))
		return -errno;
	return 0;
}

static void control_free(struct control *c)
{
	if (c->listen_fd >= 0) {
		unlink(c->address.sun_path);
		close(c->listen_fd);
	}
	if (c->stop_fd >= 0)
		close(c->stop_fd);
	free(c);
}

int control_start(struct control **control, control_fn fn, void *ctx)
{
	struct control *c = calloc(1, sizeof(*c));

	*control = NULL;
	if (!c)
		return -ENOMEM;
	c->fn = fn;
	c->ctx = ctx;
	c->listen_fd = -1;
	c->stop_fd = eventfd(0, EFD_CLOEXEC);
	int err = c->stop_fd < 0 ? -errno : listen_at(c);
	if (!err)
		err = task_start(&c->task, "control", control_run, c);
	if (err) {
		control_free(c);
		return err;
	}
	*control = c;
	return 0;
}

void control_stop(struct control *c)
{
	if (!c)
		return;
	/* Eight bytes into a counter that is zero: it can't fail. */
	if (eventfd_write(c->stop_fd, 1) == 0)
		task_join(c->task);
	control_free(c);
}
