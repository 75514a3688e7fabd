/*
 * A mount from its begin to its end.
 *
 * It ends when it is unmounted: the kernel then has written back what it had cached, and reading requests fails. A
 * signal (SIGTERM, SIGINT, SIGHUP) asks for the same: serving goes on, while a task unmounts as umount(8) would. If
 * that fails because files are in use, what the kernel has cached is written back, the mount is taken out of the
 * namespace, and whoever still has files open gets errors. A second signal ends without waiting for any of that.
 */
#include "mount/session.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "mount/protocol.h"

enum {
	THREADS_IDLE_MAX = 16,
	THREADS_MAX = 256, /* requests that wait for something at once */
};

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

struct ending {
	struct mount_server *server;
	struct task *task;
};

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

/* Have the kernel write back what it has cached of the mount. */
static void write_back_cached(const char *mountpoint)
{
	int fd = open(mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (syncfs(fd))
		fuse_log(FUSE_LOG_ERR, "what was cached can't be written back: %s", strerror(errno));
	close(fd);
}

static void end_mount(void *arg)
{
	struct ending *e = arg;
	const char *mountpoint = e->server->options->mountpoint;
	int err = unmount(mountpoint, false);

	if (err == -EBUSY) {
		fuse_log(FUSE_LOG_WARNING,
			 "%s is in use: it is unmounted all the same, and what is open there gives errors", mountpoint);
		write_back_cached(mountpoint);
		err = unmount(mountpoint, true);
	}
	if (err)
		fuse_log(FUSE_LOG_ERR, "can't unmount %s: %s", mountpoint, strerror(-err));
	/* Unmounted, serving ends by itself; where files are still open it must be told. */
	fuse_session_exit(e->server->session);
	kill(getpid(), SIGTERM);
}

/* --- serving --- */

static int serve_until_end(struct fuse_session *session)
{
	struct fuse_loop_config *config = fuse_loop_cfg_create();

	if (!config)
		return -ENOMEM;
	fuse_loop_cfg_set_clone_fd(config, 1);
	fuse_loop_cfg_set_idle_threads(config, THREADS_IDLE_MAX);
	fuse_loop_cfg_set_max_threads(config, THREADS_MAX);
	int ret = fuse_session_loop_mt(session, config);
	fuse_loop_cfg_destroy(config);
	return ret;
}

static int serve(struct mount_server *s)
{
	struct ending ending = { .server = s };
	int ret = serve_until_end(s->session);

	/* Positive: the signal that asks for the end. */
	if (ret > 0 && !task_start(&ending.task, "unmount", end_mount, &ending)) {
		fuse_session_reset(s->session);
		ret = serve_until_end(s->session);
		task_join(ending.task);
	}
	return min(ret, 0);
}

int session_run(struct mount_server *s, const struct fuse_lowlevel_ops *ops, size_t ops_bytes,
		void (*mounted)(void *ctx), void *ctx)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	int err = build_args(&args, s->options);

	s->session = err ? NULL : fuse_session_new(&args, ops, ops_bytes, s);
	if (!err && !s->session)
		err = -EINVAL;
	if (!err)
		err = protocol_extend(s->session);
	if (!err && fuse_set_signal_handlers(s->session))
		err = -EIO;
	if (!err && fuse_session_mount(s->session, s->options->mountpoint)) {
		fuse_remove_signal_handlers(s->session);
		err = -EIO;
	} else if (!err) {
		mounted(ctx);
		err = serve(s);
		fuse_session_unmount(s->session);
		fuse_remove_signal_handlers(s->session);
	}
	if (s->session)
		fuse_session_destroy(s->session);
	fuse_opt_free_args(&args);
	return err;
}
