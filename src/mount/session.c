/*
 * A mount from its begin to its end.
 *
 * It ends when it is unmounted: the kernel then has written back what it had cached, and reading requests fails. A
 * signal (SIGTERM, SIGINT, SIGHUP) asks for the same: serving goes on, while a task unmounts as umount(8) would,
 * wherever the filesystem is mounted (`mount --bind`). If that fails because files are in use, what the kernel has
 * cached is written back, the mount is taken out of the namespace, and whoever still has files open gets errors. A
 * second signal ends without waiting for any of that.
 *
 * After an error that makes writing unsafe, the mount table is made to say "read-only", so that who writes hears it at
 * once and not when the page cache is written back. The kernel refuses as long as a file is open for writing, so that
 * is tried again and again; by a child, as the system call waits for requests of its own.
 *
 * How long the end takes is up to devices, and to how much the kernel has cached. So from a signal on, or when the
 * mount is seen to have gone from the mount table, it is said now and then what is waited for (watchdog.h).
 */
#include "mount/session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "mount/loop.h"
#include "mount/mountinfo.h"
#include "mount/protocol.h"
#include "mount/prune.h"
#include "mount/watchdog.h"

/* --- arguments of libfuse --- */

static int add_option(struct fuse_args *args, const char *fmt, const char *value)
{
	CLEANUP_FREE char *text = NULL;

	if (asprintf(&text, fmt, value) < 0) {
		text = NULL;
		return -ENOMEM;
	}
	return fuse_opt_add_arg(args, "-o") || fuse_opt_add_arg(args, text) ? -ENOMEM : 0;
}

static int build_args(struct fuse_args *args, const struct mount_options *o)
{
	int err = fuse_opt_add_arg(args, "kiln") ? -ENOMEM : 0;

	if (!err)
		err = add_option(args, "default_permissions,subtype=kiln%s", o->allow_other ? ",allow_other" : "");
	/* What another filesystem would be mounted with; an option of the user comes later, and counts. */
	if (!err && !geteuid())
		err = add_option(args, "%s", "dev,suid");
	if (!err && o->is_readonly)
		err = add_option(args, "%s", "ro");
	/* A comma in the source would end the option: FUSE wants it escaped. */
	CLEANUP_FREE char *source = calloc(2, strlen(o->source) + 1);
	if (!source)
		return -ENOMEM;
	char *to = source;
	for (const char *from = o->source; *from; from++) {
		if (*from == ',' || *from == '\\')
			*to++ = '\\';
		*to++ = *from;
	}
	if (!err)
		err = add_option(args, "fsname=%s", source);
	if (!err && o->fuse_options && *o->fuse_options)
		err = add_option(args, "%s", o->fuse_options);
	if (!err && o->is_debug)
		err = fuse_opt_add_arg(args, "-d") ? -ENOMEM : 0;
	return err;
}

/* --- ending --- */

/* What the main thread waits for: one byte each, in a pipe that a signal's handler can write to. */
enum event {
	EVENT_SIGNAL = 's',
	EVENT_SERVED = 'e',
	EVENT_UNMOUNTED = 'u',
	EVENT_FAILED = 'f',
	/* From no pipe: */
	EVENT_TABLE = 't', /* the mount table has changed */
	EVENT_NONE = 0,
};

/* The pipe's end for writing. Handlers of signals have no argument: the one piece of state that is the process's. */
static volatile int events_write_fd = -1;
static const int end_signals[] = { SIGTERM, SIGINT, SIGHUP };

struct ending {
	struct mount_server *server;
	struct loop *loop;
	dev_t device; /* as the mount table has it */
	struct task *task;
	struct watchdog *watchdog;
	const char *step;     /* that is being waited for; atomic */
	uint64_t begin_bytes; /* had been written when it was begun to watch */
	uint64_t told_bytes;  /* the watchdog's own */
};

static void event_tell(enum event event)
{
	char byte = (char)event;

	/* A full pipe tells enough. */
	if (write(events_write_fd, &byte, 1) < 0)
		return;
}

static void on_signal(int signal)
{
	int saved = errno;

	(void)signal;
	event_tell(EVENT_SIGNAL);
	errno = saved;
}

static int events_begin(int fds[2], struct sigaction old[ARRAY_NR(end_signals)])
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	fcntl(fds[1], F_SETFL, O_NONBLOCK);
	events_write_fd = fds[1];
	for (size_t i = 0; i < ARRAY_NR(end_signals); i++)
		sigaction(end_signals[i], &action, &old[i]);
	return 0;
}

static void events_end(int fds[2], const struct sigaction old[ARRAY_NR(end_signals)])
{
	for (size_t i = 0; i < ARRAY_NR(end_signals); i++)
		sigaction(end_signals[i], &old[i], NULL);
	events_write_fd = -1;
	close(fds[0]);
	close(fds[1]);
}

void session_failed(void)
{
	if (events_write_fd >= 0)
		event_tell(EVENT_FAILED);
}

/* EVENT_NONE: none came for @timeout_ms (-1: there is no end to waiting). @table_fd: proc(5)'s mountinfo, or -1. */
static enum event event_wait(int fd, int table_fd, int timeout_ms)
{
	struct pollfd fds[] = { { .fd = fd, .events = POLLIN }, { .fd = table_fd, .events = POLLPRI } };
	char byte;

	for (;;) {
		int nr = poll(fds, ARRAY_NR(fds), timeout_ms);

		if (!nr)
			return EVENT_NONE;
		if (nr > 0 && fds[0].revents && read(fd, &byte, 1) == 1)
			return (enum event)byte;
		if (nr > 0 && fds[1].revents)
			return EVENT_TABLE;
	}
}

/* As umount(8) does; whoever isn't root needs fusermount3 for it. 0 or a negative errno. */
static int unmount(const char *mountpoint, bool is_lazy)
{
	const char *argv[] = { "fusermount3", is_lazy ? "-uzq" : "-uq", "--", mountpoint, NULL };
	extern char **environ;
	pid_t pid;
	int status;

	if (!umount2(mountpoint, UMOUNT_NOFOLLOW | (is_lazy ? MNT_DETACH : 0)))
		return 0;
	if (errno != EPERM)
		return -errno;
	int err = posix_spawnp(&pid, argv[0], NULL, NULL, (char **)argv, environ);
	if (err)
		return -err;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) && !WEXITSTATUS(status) ? 0 : -EBUSY;
}

static const char step_write_back[] = "the kernel writes back what it has cached";
static const char step_unmount[] = "the kernel unmounts it";
static const char step_gone[] =
	"it is no longer mounted, but the kernel still writes back what it had cached, or files are open";
static const char step_answers[] = "requests that are being answered";

/* What comes last stays, also where a second signal didn't wait for what is before it. */
static void step_set(struct ending *e, const char *step)
{
	if (__atomic_load_n(&e->step, __ATOMIC_ACQUIRE) != step_answers)
		__atomic_store_n(&e->step, step, __ATOMIC_RELEASE);
}

static void ending_tell(void *ctx, uint64_t waited_s)
{
	struct ending *e = ctx;
	const struct mount_server *s = e->server;
	const char *step = __atomic_load_n(&e->step, __ATOMIC_ACQUIRE);
	unsigned writes_nr = __atomic_load_n(&s->writes_nr, __ATOMIC_RELAXED);
	uint64_t bytes = __atomic_load_n(&s->written_bytes, __ATOMIC_RELAXED);
	bool is_idle = !writes_nr && bytes == e->told_bytes;

	e->told_bytes = bytes;
	/* Files may be open for as long as somebody likes. */
	if (step == step_gone && is_idle)
		return;
	fuse_log(
		FUSE_LOG_WARNING,
		"%s: still ending after %llu s: %s (%u writes under way, %.1f MiB written meanwhile). `kiln status %s` "
		"tells more; `kill %s%d` ends it without waiting, and what isn't written then is lost",
		s->options->mountpoint, (unsigned long long)waited_s, step, writes_nr,
		(double)(bytes - e->begin_bytes) / (1 << 20), s->options->source, step == step_answers ? "-9 " : "",
		(int)getpid());
}

static void ending_watch(struct ending *e, const char *step)
{
	step_set(e, step);
	if (e->watchdog)
		return;
	e->begin_bytes = e->told_bytes = __atomic_load_n(&e->server->written_bytes, __ATOMIC_RELAXED);
	e->watchdog = watchdog_start(ending_tell, e);
}

enum { NOT_THERE = 255 };

/*
 * syncfs(2), which asks this server in its turn: who waits for that in the kernel can't be killed as long as somebody
 * has the session's descriptor. A thread of the server would have it, and neither could ever die; so it is a process
 * without it, and should the server be killed, its wait ends. It shares the server's memory: a copy would take what
 * devices are writing into buffers (open(2), of O_DIRECT). 0, an errno, or NOT_THERE.
 */
static int sync_apart(const char *mountpoint)
{
	int status = 0;
	sigset_t all, old;

	/* Signals that end the server are not for it: each would be counted twice. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	/* NOLINTBEGIN(clang-analyzer-security.insecureAPI.vfork, clang-analyzer-unix.Vfork): this thread waits */
	pid_t child = vfork();
	if (!child) {
		close_range(STDERR_FILENO + 1, ~0u, 0);
		int fd = open(mountpoint, O_RDONLY | O_DIRECTORY);
		_exit(fd < 0 ? NOT_THERE : syncfs(fd) ? errno : 0);
	}
	/* NOLINTEND(clang-analyzer-security.insecureAPI.vfork, clang-analyzer-unix.Vfork) */
	int err = child < 0 ? errno : 0;
	sigprocmask(SIG_SETMASK, &old, NULL);
	while (!err && waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	return err ? err : WEXITSTATUS(status);
}

/* Have the kernel write back what it has cached of the mount, and wait for it. */
static void write_back_cached(struct ending *e, const char *mountpoint)
{
	step_set(e, step_write_back);
	int err = sync_apart(mountpoint);

	if (err == NOT_THERE)
		return;
	if (err)
		fuse_log(FUSE_LOG_ERR, "what was cached can't be written back: %s", strerror(err));
	/* After a second signal it is as that asked for. */
	if (loop_drain(e->loop) == -ETIMEDOUT)
		fuse_log(FUSE_LOG_ERR, "what was cached isn't all written back, as so much is read and written");
}

/* Whoever looks a path up, or at what others have open, holds a mount for a moment. That is no use of it. */
static int unmount_unless_in_use(const char *mountpoint)
{
	enum { TRIES = 20, AGAIN_NS = 50 * 1000 * 1000 };
	int err = unmount(mountpoint, false);

	for (unsigned i = 1; i < TRIES && err == -EBUSY; i++) {
		sleep_ns(AGAIN_NS);
		err = unmount(mountpoint, false);
	}
	return err;
}

/* The last place of the mount table where it is mounted; NULL when there is none. To be freed. */
static char *mounted_last(dev_t device)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL, *path, *last = NULL;
	unsigned major_nr, minor_nr;
	size_t size = 0;

	if (!f)
		return NULL;
	while (getline(&line, &size, f) > 0) {
		if (sscanf(line, "%*d %*d %u:%u %*s %ms", &major_nr, &minor_nr, &path) != 3)
			continue;
		bool is_it = makedev(major_nr, minor_nr) == device;
		free(is_it ? last : path);
		last = is_it ? path : last;
	}
	free(line);
	fclose(f);
	if (last)
		mountinfo_unescape(last);
	return last;
}

static int end_mount_at(struct ending *e, const char *mountpoint)
{
	/* Where it is in use in another namespace as well, unmounting writes nothing back. */
	write_back_cached(e, mountpoint);
	step_set(e, step_unmount);
	int err = unmount_unless_in_use(mountpoint);

	if (err == -EBUSY) {
		fuse_log(FUSE_LOG_WARNING,
			 "%s is in use: it is unmounted all the same, and what is open there gives errors", mountpoint);
		write_back_cached(e, mountpoint);
		step_set(e, step_unmount);
		err = unmount(mountpoint, true);
	}
	if (err)
		fuse_log(FUSE_LOG_ERR, "can't unmount %s: %s", mountpoint, strerror(-err));
	return err;
}

static void end_mount(void *arg)
{
	struct ending *e = arg;
	char *mountpoint;
	int err = 0;

	while (!err && (mountpoint = mounted_last(e->device))) {
		err = end_mount_at(e, mountpoint);
		free(mountpoint);
	}
	/* Unmounted, serving ends by itself; where files are still open it must be told. */
	event_tell(EVENT_UNMOUNTED);
}

/* --- read-only after an error --- */

enum { REMOUNT_AGAIN_MS = 1000 };

struct remount {
	bool is_due;
	pid_t child; /* 0: none */
};

/* What the mount table says of @mountpoint besides, as mount(2) wants it. */
static unsigned long mount_flags(const char *mountpoint)
{
	static const struct {
		unsigned long told, flag;
	} map[] = { { ST_NOSUID, MS_NOSUID },	{ ST_NODEV, MS_NODEV },		  { ST_NOEXEC, MS_NOEXEC },
		    { ST_NOATIME, MS_NOATIME }, { ST_NODIRATIME, MS_NODIRATIME }, { ST_RELATIME, MS_RELATIME } };
	unsigned long flags = 0;
	struct statvfs st;

	if (statvfs(mountpoint, &st))
		return 0;
	for (size_t i = 0; i < ARRAY_NR(map); i++)
		flags |= st.f_flag & map[i].told ? map[i].flag : 0;
	return flags;
}

static void remount_try(struct remount *r, const char *mountpoint)
{
	int status = 0;

	if (r->child) {
		if (!waitpid(r->child, &status, WNOHANG))
			return;
		r->child = 0;
		r->is_due = WIFEXITED(status) && WEXITSTATUS(status) == EBUSY;
		if (!r->is_due)
			return;
	}
	/* Both calls ask this server: who waits for them must not be a part of it, or it might never die. */
	r->child = fork();
	if (!r->child) {
		/* As long as it had the session's descriptor, its own request would be waited for. */
		close_range(STDERR_FILENO + 1, ~0u, 0);
		_exit(mount(NULL, mountpoint, NULL, mount_flags(mountpoint) | MS_REMOUNT | MS_RDONLY, NULL) ? errno
													    : 0);
	}
	if (r->child < 0)
		r->child = 0;
}

/* --- serving --- */

/* Of what is mounted, without asking who serves it, as nobody does so yet. */
static dev_t device_of(const char *mountpoint)
{
	struct statx st;

	return statx(AT_FDCWD, mountpoint, AT_STATX_DONT_SYNC, STATX_TYPE, &st)
		       ? 0
		       : makedev(st.stx_dev_major, st.stx_dev_minor);
}

/*
 * The kernel reads 128 KiB ahead of who reads a file from front to back: less than a request may carry, and each costs
 * a thread's waking. With 2 MiB twice as much comes in a second; more gains little (bench/README.md). A FUSE server can
 * only ask for less, so it is set by the kernel's own knob, which takes root.
 */
static void read_ahead_set(dev_t device)
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", major(device), minor(device));
	f = fopen(path, "we");
	if (!f)
		return;
	fprintf(f, "%d", READ_AHEAD_BYTES >> 10);
	fclose(f);
}

static void on_served(void *ctx)
{
	(void)ctx;
	event_tell(EVENT_SERVED);
}

/*
 * Nobody answers any more: who waits for an answer gets an error. Not to be unmounted again, or what was there before
 * would be, where what is open has kept this one alive: the descriptor is made one that says it is unmounted, to
 * libfuse.
 */
static void sever(struct fuse_session *session)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC))
		return;
	close(fds[0]);
	dup3(fds[1], fuse_session_fd(session), O_CLOEXEC);
	close(fds[1]);
}

/* Does the mount table have it? False where it isn't known as what. */
static bool is_in_table(dev_t device)
{
	char *at = device ? mounted_last(device) : NULL;
	bool is_there = at;

	free(at);
	return is_there;
}

static int serve(struct mount_server *s, int events_fd, void (*mounted)(void *ctx), void *ctx)
{
	struct ending ending = { .server = s, .device = device_of(s->options->mountpoint) };
	struct remount remount = { 0 };
	bool is_over = false;
	struct loop *loop = NULL;

	prune_start(s);
	int err = loop_start(s, on_served, NULL, &loop);
	__atomic_store_n(&s->loop, loop, __ATOMIC_RELEASE);
	ending.loop = loop;
	if (err) {
		prune_stop(s);
		prune_free(s);
		return err;
	}
	mounted(ctx);
	read_ahead_set(ending.device);
	int table_fd = is_in_table(ending.device) ? open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC) : -1;
	/* Before there was a pipe for it. */
	if (__atomic_load_n(&s->has_failed, __ATOMIC_SEQ_CST))
		event_tell(EVENT_FAILED);
	while (!is_over) {
		switch (event_wait(events_fd, ending.watchdog ? -1 : table_fd,
				   remount.is_due ? REMOUNT_AGAIN_MS : -1)) {
		case EVENT_SIGNAL:
			if (!ending.task)
				ending_watch(&ending, step_unmount);
			/* The first signal asks for the end; the second one doesn't wait for it. */
			is_over = ending.task || task_start(&ending.task, "unmount", end_mount, &ending);
			break;
		case EVENT_FAILED: remount.is_due = !s->options->is_readonly && !geteuid(); break;
		case EVENT_TABLE:
			if (!is_in_table(ending.device))
				ending_watch(&ending, step_gone);
			break;
		case EVENT_NONE: remount_try(&remount, s->options->mountpoint); break;
		default: is_over = true; break;
		}
	}
	step_set(&ending, step_answers);
	if (table_fd >= 0)
		close(table_fd);
	/* What it asks of the kernel may wait for requests to be served. */
	prune_stop(s);
	fuse_session_exit(s->session);
	loop_stop(loop);
	prune_free(s);
	if (ending.task) {
		sever(s->session);
		task_join(ending.task);
	}
	watchdog_stop(ending.watchdog);
	/* What it waits for won't come any more once the session is gone. */
	if (remount.child)
		kill(remount.child, SIGKILL);
	return 0;
}

int session_run(struct mount_server *s, const struct fuse_lowlevel_ops *ops, size_t ops_bytes,
		void (*mounted)(void *ctx), void *ctx)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	struct sigaction old[ARRAY_NR(end_signals)];
	int events[2];
	int err = build_args(&args, s->options);

	s->session = err ? NULL : fuse_session_new(&args, ops, ops_bytes, s);
	if (!err && !s->session)
		err = -EINVAL;
	if (!err)
		err = protocol_extend(s->session);
	if (!err)
		err = events_begin(events, old);
	if (!err) {
		err = fuse_session_mount(s->session, s->options->mountpoint) ? -ECANCELED : 0;
		if (!err) {
			err = serve(s, events[0], mounted, ctx);
			fuse_session_unmount(s->session);
		}
		events_end(events, old);
	}
	if (s->session)
		fuse_session_destroy(s->session);
	fuse_opt_free_args(&args);
	return err;
}
