/*
 * kiln mount: serve a filesystem at a directory, through FUSE.
 *
 * In the background (the default) a child opens and mounts, and says over a pipe how that went; only then does the
 * command end, so a failure is seen by whoever called it. The child asks for the passphrase itself, while it still has
 * the terminal.
 */
#include <errno.h>
#include <fcntl.h>
#include <fuse_log.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "mount/control.h"
#include "mount/mount.h"
#include "mount/watchdog.h"
#include "tool/mount_facts.h"
#include "tool/mounted.h"
#include "tool/tool.h"

static const char usage[] =
	"usage: kiln mount [OPTIONS] [-o OPTION,...] FS DIRECTORY\n"
	"\n"
	"Mount a filesystem at a directory, with FUSE. Unmount with `umount DIRECTORY` (or `fusermount3 -u DIRECTORY` "
	"as "
	"an\n"
	"ordinary user). With -o ro nothing is written to the devices, and an unclean filesystem is shown as it will "
	"be "
	"after\n"
	"recovery.\n"
	"\n"
	"  -o OPTIONS              ro, degraded, very_degraded, allow_other, noallow_other, and the mount "
	"options of\n"
	"                          kiln-mount(1); passphrase_file=FILE, passphrase_fd=N; options of FUSE itself are\n"
	"                          handed on (max_read=, ...)\n"
	"  -f                      stay in the foreground\n"
	"  -d                      stay in the foreground and log every request\n" TOOL_OPEN_USAGE;

struct mount_command {
	struct tool_open open;
	struct mount_options mount;
	const char *fs_arg;
	bool is_foreground;
	struct strbuf fs_options, fuse_options;
	const char *bad_remember; /* NULL: it is all right */
	char real_mountpoint[PATH_MAX];
	int ready_fd; /* where the background child reports; -1 in the foreground */
};

/* What the kernel makes the server remember may be an eighth of the budget, above it: 32 bytes for an object. */
#define REMEMBERED_DEFAULT UINT64_MAX
enum { MEMORY_BYTES_USUAL = 256 << 20, MEMORY_PER_REMEMBERED = 8 * 32 };

static void option_append(struct strbuf *list, const char *item)
{
	if (list->len)
		strbuf_add_char(list, ',');
	strbuf_add(list, item);
}

/* Options that FUSE or mount(8) handle. */
static bool is_fuse_option(const char *item)
{
	static const char *const prefixes[] = { "max_read=",   "user=",	       "context=", "fscontext=",
						"defcontext=", "rootcontext=", "blksize=" };
	static const char *const words[] = { "dev",	"nodev",	"suid",	  "nosuid", "exec", "noexec",
					     "noatime", "auto_unmount", "blkdev", "sync",   "async" };

	for (size_t i = 0; i < ARRAY_NR(prefixes); i++)
		if (!strncmp(item, prefixes[i], strlen(prefixes[i])))
			return true;
	for (size_t i = 0; i < ARRAY_NR(words); i++)
		if (!strcmp(item, words[i]))
			return true;
	return false;
}

static void options_warn(const struct mount_command *m)
{
	CLEANUP_FREE char *list = m->fs_options.len ? strdup(strbuf_text(&m->fs_options)) : NULL;
	char *save = NULL;

	for (char *item = list ? strtok_r(list, ",", &save) : NULL; item; item = strtok_r(NULL, ",", &save)) {
		char *value = strchr(item, '=');

		if (value)
			*value++ = 0;
		tool_option_warn(item, value);
	}
}

static bool is_number(const char *text) { return *text && !text[strspn(text, "0123456789")]; }

/* Sort a list of options out to those who want them. */
static void options_split(struct mount_command *m, char *list)
{
	char *save = NULL;

	for (char *item = strtok_r(list, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
		if (!strcmp(item, "noatime"))
			m->mount.atime = MOUNT_NOATIME;
		if (!strcmp(item, "nodiratime"))
			m->mount.keeps_diratime = true;
		else if (!strcmp(item, "diratime"))
			m->mount.keeps_diratime = false;
		else if (!strcmp(item, "allow_other"))
			m->mount.allow_other = true;
		else if (!strcmp(item, "noallow_other"))
			m->mount.allow_other = false;
		else if (!strcmp(item, "io_uring"))
			m->mount.io_uring = MOUNT_IO_URING_WANTED;
		else if (!strcmp(item, "noio_uring"))
			m->mount.io_uring = MOUNT_IO_URING_NEVER;
		else if (!strncmp(item, "remember=", 9) && is_number(item + 9))
			m->mount.remembered_max = strtoull(item + 9, NULL, 10);
		else if (!strncmp(item, "remember=", 9))
			m->bad_remember = item + 9;
		else if (!strcmp(item, "strictatime"))
			m->mount.atime = MOUNT_STRICTATIME;
		else if (!strcmp(item, "relatime"))
			m->mount.atime = MOUNT_RELATIME;
		else if (!strncmp(item, "passphrase_file=", strlen("passphrase_file=")))
			m->open.passphrase.file = item + strlen("passphrase_file=");
		else if (!strncmp(item, "passphrase_fd=", strlen("passphrase_fd=")) &&
			 passphrase_fd_parse(item + strlen("passphrase_fd="), &m->open.passphrase.fd))
			continue;
		else
			option_append(is_fuse_option(item) ? &m->fuse_options : &m->fs_options, item);
	}
}

/* --- mounting, and telling how it went --- */

static void tell_parent(struct mount_command *m, char outcome)
{
	if (m->ready_fd < 0)
		return;
	if (write(m->ready_fd, &outcome, 1) != 1)
		tool_error("the process that started the mount is gone");
	close(m->ready_fd);
	m->ready_fd = -1;
}

/*
 * Tell systemd, or whoever set $NOTIFY_SOCKET, how far we are (sd_notify(3)): one datagram. Who didn't set it isn't
 * waiting, and a failure can't be told to anybody.
 */
static void notify_service_manager(const char *state)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	const char *path = getenv("NOTIFY_SOCKET");
	size_t len = path ? strlen(path) : 0;

	if (!len || len >= sizeof(to.sun_path) || (path[0] != '/' && path[0] != '@'))
		return;
	memcpy(to.sun_path, path, len);
	/* An abstract name begins with NUL, written as @. */
	if (path[0] == '@')
		to.sun_path[0] = 0;
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	if (sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&to,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0)
		tool_error("can't notify %s: %s", path, strerror(errno));
	close(fd);
}

/* The mount is in place: let the caller go, and leave its terminal. */
static void mounted(void *ctx)
{
	struct mount_command *m = ctx;

	notify_service_manager("READY=1");
	if (m->ready_fd < 0)
		return;
	setsid();
	if (chdir("/"))
		tool_error("can't change to /: %s", strerror(errno));
	tell_parent(m, 0);

	/* What is found damaged from here on is told to the system log. */
	tool_log_to_syslog();
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int fd = 0; null >= 0 && fd < 3; fd++)
		dup2(null, fd);
	if (null > 2)
		close(null);
}

/* Full paths of all members, while relative ones still lead to them. NULL when memory is short. */
static char **member_paths(const kiln_fs *fs)
{
	char **paths = calloc(fs->super->member_nr, sizeof(*paths));

	for (unsigned i = 0; paths && i < fs->super->member_nr; i++) {
		const struct super_member *m = &fs->super->members[i];

		paths[i] = m->dev ? realpath(m->dev->name, NULL) : NULL;
	}
	return paths;
}

static void member_paths_free(char **paths, unsigned nr)
{
	for (unsigned i = 0; paths && i < nr; i++)
		free(paths[i]);
	free(paths);
}

/* All members: whoever names one of them later, by whatever path, finds the mount. */
static char *members_list(char **paths, unsigned nr)
{
	enum { SOURCE_BYTES_MAX = 3000 }; /* the kernel takes a page, with commas and backslashes escaped */
	struct strbuf list = strbuf_growing();

	for (unsigned i = 0; paths && i < nr; i++)
		if (paths[i])
			strbuf_printf(&list, "%s%s", list.len ? ":" : "", paths[i]);
	char *text = list.len && list.len < SOURCE_BYTES_MAX ? strdup(strbuf_text(&list)) : NULL;
	strbuf_free(&list);
	return text;
}

/* Messages of the FUSE library, and of the server through it: to where ours go. Its levels are those of syslog. */
static void fuse_message(enum fuse_log_level level, const char *fmt, va_list args)
{
	tool_message((int)level, fmt, args);
}

/* --- the end --- */

/* Says what a shutdown is at that takes long. */
struct shutdown {
	const struct mount_command *m;
	kiln_fs *fs;
};

static void shutdown_tell(void *ctx, uint64_t waited_s)
{
	const struct shutdown *d = ctx;
	const char *step = __atomic_load_n(&d->fs->stop_step, __ATOMIC_ACQUIRE);

	tool_error("%s: still writing back after %llu s: %s", d->m->fs_arg, (unsigned long long)waited_s,
		   step ? step : "waiting for changes that are under way");
}

static int shut_down_watched(const struct mount_command *m, kiln_fs *fs, struct mount_facts_of *facts)
{
	struct shutdown d = { .m = m, .fs = fs };
	struct watchdog *w = watchdog_start(shutdown_tell, &d);

	mount_facts_end(facts);
	int err = kiln_shutdown(fs);

	watchdog_stop(w);
	return err;
}

static void on_fatal(void *ctx) { mount_server_failed(ctx); }

/* Serve, and close when that ends. The control socket says so until the devices are free. */
static int serve_with_control(struct mount_command *m, kiln_fs *fs, struct mount_server *server, char **device_names)
{
	struct mount_facts_of facts = { .fs = fs,
					.server = server,
					.mountpoint = m->mount.mountpoint,
					.source = m->mount.source,
					.device_names = device_names,
					.is_readonly = m->mount.is_readonly };
	struct control *control;

	mount_facts_init(&facts);
	CLEANUP_FREE char *about = mount_facts_about(&facts);
	int err = control_start(&control, about ? about : "{}", mount_facts_answer, &facts);
	if (err)
		tool_error("warning: there is no control socket, so `kiln status` and `kiln sync` won't find it: %s",
			   strerror(-err));
	fuse_set_log_func(fuse_message);
	m->open.fatal_ctx = server;
	__atomic_store_n(&m->open.fatal, on_fatal, __ATOMIC_RELEASE);
	/* Before there was anybody to tell. */
	if (__atomic_load_n(&fs->shut_down, __ATOMIC_ACQUIRE))
		mount_server_failed(server);
	err = mount_serve(server, mounted, m);
	notify_service_manager("STOPPING=1");

	int shut_err = shut_down_watched(m, fs, &facts);
	if (shut_err)
		tool_error("%s is not clean: %s. What was synced is safe, and the next mount recovers the rest; "
			   "`kiln check %s` says before whether it is in order",
			   m->fs_arg, strerror(-shut_err), m->fs_arg);
	__atomic_store_n(&m->open.fatal, NULL, __ATOMIC_RELEASE);
	mount_server_free(server);
	kiln_close(fs);
	control_stop(control);
	mount_facts_destroy(&facts);
	return err ? err : shut_err;
}

static int open_and_serve(struct mount_command *m)
{
	kiln_fs *fs = tool_open_fs(&m->open, m->fs_arg, FS_NAMESPACE);
	if (!fs)
		return TOOL_FAILED;
	struct kiln_stat root;
	int err = kiln_stat(fs, kiln_root(fs), &root);
	if (err)
		tool_error("its root directory can't be read: %s. What is below may be, by its path; `kiln check %s` "
			   "tells "
			   "what is damaged, and `kiln get -r %s / DIRECTORY` copies out what there is",
			   strerror(-err), m->fs_arg, m->fs_arg);
	if (!m->mount.is_readonly && kiln_write_refused(fs)) {
		tool_error("mounted read-only: %s", kiln_write_refused(fs));
		m->mount.is_readonly = true;
	}
	/* No error, so not among those. */
	if (!fs->journal->was_clean) {
		printf("%s wasn't unmounted cleanly: %s\n", m->fs_arg,
		       m->mount.is_readonly ? "it is shown as it will be after recovery" : "it has been recovered");
		fflush(stdout);
	}
	m->mount.has_acls = fs->super->options[OPT_ACL];
	unsigned member_nr = fs->super->member_nr;
	char **paths = member_paths(fs);
	CLEANUP_FREE char *members = members_list(paths, member_nr);
	m->mount.source = members ? members : m->fs_arg;

	struct mount_server *server = mount_server_new(fs, &m->mount);
	err = server ? serve_with_control(m, fs, server, paths) : -ENOMEM;
	member_paths_free(paths, member_nr);
	if (err && err != -ECANCELED)
		tool_error("can't serve %s at %s: %s", m->fs_arg, m->mount.mountpoint, strerror(-err));
	return err ? TOOL_FAILED : TOOL_OK;
}

static volatile pid_t background_child;

static void hand_on(int sig) { kill(background_child, sig); }

/*
 * The child may be asking on the terminal, which has no echo then: it hears of signals, and the terminal is waited for
 * before whoever called gets it back. Until the child is known they wait.
 */
static pid_t fork_and_hand_on(void)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
	struct sigaction to_child = { .sa_handler = hand_on, .sa_flags = SA_RESTART };
	sigset_t blocked, before;

	sigemptyset(&blocked);
	for (size_t i = 0; i < ARRAY_NR(signals); i++)
		sigaddset(&blocked, signals[i]);
	sigprocmask(SIG_BLOCK, &blocked, &before);
	background_child = fork();
	for (size_t i = 0; i < ARRAY_NR(signals) && background_child > 0; i++)
		sigaction(signals[i], &to_child, NULL);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return background_child;
}

/* It ended without a word over the pipe; what went wrong it has written to stderr. */
static int failed_in_background(void)
{
	int status = 0;

	waitpid(background_child, &status, 0);
	if (!WIFSIGNALED(status))
		return TOOL_FAILED;
	/* To whoever called it is one process. */
	int sig = WTERMSIG(status);
	if (sig == SIGINT || sig == SIGTERM || sig == SIGHUP || sig == SIGQUIT) {
		signal(sig, SIG_DFL);
		raise(sig);
	}
	tool_error("the mount was ended by signal %d", sig);
	return TOOL_FAILED;
}

static int serve_in_background(struct mount_command *m)
{
	int fds[2];
	char outcome;

	if (pipe2(fds, O_CLOEXEC)) {
		tool_error("can't make a pipe: %s", strerror(errno));
		return TOOL_FAILED;
	}
	pid_t pid = fork_and_hand_on();
	if (pid < 0) {
		tool_error("can't start a process: %s", strerror(errno));
		return TOOL_FAILED;
	}
	if (!pid) {
		close(fds[0]);
		m->ready_fd = fds[1];
		_exit(open_and_serve(m));
	}

	close(fds[1]);
	if (read(fds[0], &outcome, 1) == 1)
		return TOOL_OK;
	return failed_in_background();
}

/* Is something of ours mounted at @path itself, so that what is wrong with that is its affair? */
static bool is_mounted_tell(const char *path)
{
	CLEANUP_FREE char *directory = realpath(path, NULL);
	struct mounted *list;
	size_t nr = mounted_list(&list);
	const struct mounted *m = directory ? mounted_find(list, nr, directory) : NULL;
	bool is_it = m && !strcmp(m->mount_point, directory);

	if (is_it)
		tool_error("%s is mounted at %s, and gives errors (`kiln status %s` tells why): `umount %s` first",
			   m->source, path, path, path);
	mounted_free(list, nr);
	return is_it;
}

static int check_mountpoint(const char *path)
{
	struct stat st;

	if (mounted_is_dead(path)) {
		mounted_tell_dead(path);
		return TOOL_FAILED;
	}
	if (stat(path, &st)) {
		int err = errno;

		if (!is_mounted_tell(path))
			tool_error("can't mount at %s: %s", path, strerror(err));
		return TOOL_FAILED;
	}
	if (!S_ISDIR(st.st_mode)) {
		tool_error("can't mount at %s: it is not a directory", path);
		return TOOL_FAILED;
	}
	return TOOL_OK;
}

static int run_parsed(struct mount_command *m)
{
	int status = check_mountpoint(m->mount.mountpoint);
	if (status)
		return status;
	/* The server leaves this directory, so relative paths must not be needed later. */
	if (realpath(m->mount.mountpoint, m->real_mountpoint))
		m->mount.mountpoint = m->real_mountpoint;

	if (!m->mount.is_readonly)
		m->open.flags |= KILN_OPEN_WRITE;
	/* What is asked for counts for the heap, too (tool_open_fs()). */
	if (!m->open.memory_bytes)
		m->open.memory_bytes = MEMORY_BYTES_USUAL;
	if (m->mount.remembered_max == REMEMBERED_DEFAULT)
		m->mount.remembered_max = m->open.memory_bytes / MEMORY_PER_REMEMBERED;
	m->open.mount_options = m->fs_options.len ? strbuf_text(&m->fs_options) : NULL;
	m->mount.fuse_options = strbuf_text(&m->fuse_options);
	return m->is_foreground ? open_and_serve(m) : serve_in_background(m);
}

/* Options and arguments, then what they say. */
static int parse_and_run(struct mount_command *m, const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS, { 0 } };
	uint64_t values[OPT_NR] = { 0 };
	bool is_set[OPT_NR] = { false };
	char why[KILN_ERROR_BYTES];
	int c, status;

	while ((c = getopt_long(argc, argv, "o:fd", options, NULL)) != -1) {
		if (tool_open_option(self, c, &m->open, &status) < 0)
			return status;
		if (c == 'o')
			options_split(m, optarg);
		m->is_foreground |= c == 'f' || c == 'd';
		m->mount.is_debug |= c == 'd';
	}
	if (argc - optind > 2)
		return tool_usage_error(self, "takes one filesystem and a directory: join its devices with colons "
					      "(DEV:DEV:...)");
	if (argc - optind != 2)
		return tool_usage_error(self, "needs a filesystem and a directory");
	if (m->bad_remember)
		return tool_usage_error(self, "remember= takes a number of objects, not '%s'", m->bad_remember);
	if (mount_options_parse(m->fs_options.len ? strbuf_text(&m->fs_options) : NULL, NULL, values, is_set, why))
		return tool_usage_error(self, "%s", why);
	options_warn(m);
	m->mount.is_readonly = mount_options_forbid_writing(values);
	m->fs_arg = argv[optind];
	m->mount.mountpoint = argv[optind + 1];
	return run_parsed(m);
}

static int mount_run(const struct command *self, int argc, char **argv)
{
	struct mount_command m = {
		.open = tool_open_defaults(),
		.mount = { .allow_other = geteuid() == 0, .remembered_max = REMEMBERED_DEFAULT },
		.fs_options = strbuf_growing(),
		.fuse_options = strbuf_growing(),
		.ready_fd = -1,
	};
	int status = parse_and_run(&m, self, argc, argv);

	strbuf_free(&m.fs_options);
	strbuf_free(&m.fuse_options);
	return status;
}

const struct command command_mount = {
	.name = "mount",
	.summary = "mount at a directory (FUSE)",
	.usage = usage,
	.run = mount_run,
};
