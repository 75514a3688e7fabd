/*
 * The simulator's workload at a real mount, by system calls.
 *
 *	mounted [--seeds FIRST-LAST] [--ops N] [--rounds N]
 *
 * The operations are drawn from the model as in the simulator, and must be answered as it says. After each round it is
 * unmounted, and what the library then reads must be the model, in order by all that the checker knows. Exit 77 where
 * nothing can be mounted.
 *
 * Left out is what system calls, or FUSE, haven't: batches, ranges taken out and inserted, access times (reading at a
 * mount changes them) and times of birth, and, of files without a name, another one.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "acl.h"
#include "base/util.h"
#include "mount/mount.h"
#include "operation.h"

enum { OBJECTS_MAX = 1024, SECONDS_MAX = 240, IMAGE_BYTES = 192 << 20, PATH_BYTES = 4096 };

struct mounted {
	uint64_t seed;
	char dir[32], image[64], mountpoint[64];
	struct model model;
	int held[OBJECTS_MAX]; /* descriptors of what is held, by its number in the model; -1 */
	int last_unnamed;
	char why[KILN_ERROR_BYTES];
};

static int failed(const struct mounted *t, const char *what, const char *detail)
{
	printf("FAILED seed %llu: %s%s%s\n", (unsigned long long)t->seed, what, detail[0] ? ": " : "", detail);
	fflush(stdout);
	return -EPROTO;
}

static ssize_t errno_of(ssize_t result) { return result < 0 ? -errno : result; }

/* --- where objects are --- */

static bool join(char path[PATH_BYTES], const char *parent, const char *name)
{
	size_t len = strlen(parent), more = strlen(name);

	if (len + 1 + more >= PATH_BYTES)
		return false;
	memcpy(path, parent, len);
	path[len] = '/';
	memcpy(path + len + 1, name, more + 1);
	return true;
}

/* By any of its names. False: it has none, or it is too long. */
static bool path_of(const struct mounted *t, unsigned id, char path[PATH_BYTES])
{
	char parent[PATH_BYTES];

	if (id == MODEL_ROOT)
		return snprintf(path, PATH_BYTES, "%s", t->mountpoint) > 0;
	for (unsigned dir = 0; dir < t->model.nr; dir++)
		for (size_t i = 0; i < t->model.objects[dir].entries_nr; i++)
			if (t->model.objects[dir].entries[i].id == id)
				return path_of(t, dir, parent) &&
				       join(path, parent, t->model.objects[dir].entries[i].name);
	return false;
}

static bool name_path(const struct mounted *t, unsigned dir, const char *name, char path[PATH_BYTES])
{
	char parent[PATH_BYTES];

	return path_of(t, dir, parent) && join(path, parent, name);
}

/* A descriptor of a file or directory, for the caller to close. */
static int open_object(const struct mounted *t, unsigned id)
{
	const struct model_object *o = &t->model.objects[id];
	char path[PATH_BYTES];

	if (t->held[id] >= 0 && !o->nlink)
		return dup(t->held[id]);
	if (!path_of(t, id, path))
		return -1;
	return open(path, (S_ISDIR(o->mode) ? O_RDONLY | O_DIRECTORY : O_RDWR) | O_CLOEXEC);
}

/* --- operations --- */

/* Owner and group are given afterwards; of a setgid directory the group is handed on. */
static ssize_t own(const struct mounted *t, const struct operation *op, const char *path)
{
	bool keeps_group = t->model.objects[op->dir].mode & S_ISGID;
	struct stat st;

	if (lchown(path, op->uid, keeps_group ? (gid_t)-1 : op->gid) || lstat(path, &st))
		return -errno;
	/* mkdir() takes no setgid. */
	if (op->kind == OP_CREATE && S_ISDIR(op->mode) && op->mode & S_ISGID)
		return errno_of(chmod(path, (st.st_mode & 07777) | S_ISGID));
	return 0;
}

static ssize_t run_creation(const struct mounted *t, const struct operation *op)
{
	char path[PATH_BYTES], target[1024];
	ssize_t result;

	name_path(t, op->dir, op->name, path);
	umask(op->umask);
	if (op->kind == OP_SYMLINK) {
		operation_target(op, target);
		result = symlink(target, path);
	} else if (S_ISDIR(op->mode)) {
		result = mkdir(path, op->mode & 07777);
	} else if (S_ISREG(op->mode)) {
		result = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, op->mode & 0777);
		if (result >= 0)
			result = close((int)result);
	} else {
		result = mknod(path, op->mode, makedev(op->rdev_major, op->rdev_minor));
	}
	result = errno_of(result);
	umask(0);
	return result ? result : own(t, op, path);
}

static ssize_t run_unnamed(struct mounted *t, const struct operation *op)
{
	bool keeps_group = t->model.objects[op->dir].mode & S_ISGID;
	char path[PATH_BYTES];

	path_of(t, op->dir, path);
	umask(op->umask);
	t->last_unnamed = open(path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	umask(0);
	if (t->last_unnamed < 0)
		return -errno;
	return errno_of(fchown(t->last_unnamed, op->uid, keeps_group ? (gid_t)-1 : op->gid));
}

static ssize_t run_names(const struct mounted *t, const struct operation *op)
{
	char path[PATH_BYTES], path2[PATH_BYTES];

	name_path(t, op->dir, op->name, path);
	switch (op->kind) {
	case OP_LINK: path_of(t, op->id, path2); return errno_of(link(path2, path));
	case OP_UNLINK: return errno_of(unlink(path));
	case OP_RMDIR: return errno_of(rmdir(path));
	default:
		name_path(t, op->dir2, op->name2, path2);
		return errno_of(renameat2(AT_FDCWD, path, AT_FDCWD, path2, op->flags));
	}
}

static ssize_t run_copy(const struct mounted *t, const struct operation *op, int fd)
{
	int from = open_object(t, op->id2);
	off_t from_at = (off_t)op->offset2, at = (off_t)op->offset;
	uint64_t from_size = t->model.objects[op->id2].size;
	/* Of one file, the end moves meanwhile. */
	size_t len = op->offset2 < from_size ? min(op->len, from_size - op->offset2) : 0, left = len;
	ssize_t n = from < 0 ? -1 : 1;

	while (left && n > 0) {
		n = copy_file_range(from, &from_at, fd, &at, left, 0);
		left -= n > 0 ? (size_t)n : 0;
	}
	ssize_t result = n < 0 ? -errno : (ssize_t)(len - left);
	if (from >= 0)
		close(from);
	return result;
}

static ssize_t run_read(const struct operation *op, const struct model_object *o, int fd)
{
	size_t want = op->offset < o->size ? min(op->len, o->size - op->offset) : 0;
	CLEANUP_FREE uint8_t *bytes = malloc(op->len + 1);
	ssize_t n = bytes ? pread(fd, bytes, op->len, (off_t)op->offset) : -1;

	if (n < 0)
		return -errno;
	return (size_t)n != want || (n && memcmp(bytes, o->data + op->offset, want)) ? 1 : 0;
}

static ssize_t run_content(const struct mounted *t, const struct operation *op)
{
	CLEANUP_FREE void *bytes = op->kind == OP_WRITE ? operation_bytes(op) : NULL;
	int fd = open_object(t, op->id);
	ssize_t result;

	if (fd < 0)
		return -errno;
	switch (op->kind) {
	case OP_WRITE: result = errno_of(pwrite(fd, bytes, op->len, (off_t)op->offset)); break;
	case OP_TRUNCATE: result = errno_of(ftruncate(fd, (off_t)op->offset)); break;
	case OP_PUNCH:
		result = errno_of(
			fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, (off_t)op->offset, (off_t)op->len));
		break;
	case OP_FALLOCATE: result = errno_of(fallocate(fd, (int)op->flags, (off_t)op->offset, (off_t)op->len)); break;
	case OP_COPY: result = run_copy(t, op, fd); break;
	case OP_READ: result = run_read(op, &t->model.objects[op->id], fd); break;
	default: result = errno_of(fsync(fd)); break;
	}
	return close(fd) ? -errno : result;
}

static ssize_t run_setattr(const struct mounted *t, const struct operation *op)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { op->mtime.sec, op->mtime.nsec } };
	uid_t uid = op->fields & KILN_SET_UID ? op->uid : (uid_t)-1;
	gid_t gid = op->fields & KILN_SET_GID ? op->gid : (gid_t)-1;
	bool is_nameless = !t->model.objects[op->id].nlink;
	int fd = is_nameless ? open_object(t, op->id) : -1;
	char path[PATH_BYTES] = "";
	int err = 0;

	if (is_nameless ? fd < 0 : !path_of(t, op->id, path))
		return -EBADF;
	if (op->fields & (KILN_SET_UID | KILN_SET_GID))
		err = is_nameless ? fchown(fd, uid, gid) : lchown(path, uid, gid);
	if (!err && op->fields & KILN_SET_MODE)
		err = is_nameless ? fchmod(fd, op->mode) : chmod(path, op->mode);
	if (!err && op->fields & KILN_SET_MTIME)
		err = is_nameless ? futimens(fd, times) : utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
	ssize_t result = errno_of(err);
	if (fd >= 0)
		close(fd);
	return result;
}

static ssize_t run_xattr(const struct mounted *t, const struct operation *op)
{
	CLEANUP_FREE void *bytes = op->kind == OP_SETXATTR ? operation_bytes(op) : NULL;
	char path[PATH_BYTES] = "", name[MODEL_XATTR_NAME_BYTES];
	uint8_t acl[ACL_BYTES_MAX];
	const void *value = bytes;
	size_t len = op->len;
	int flags = op->kind == OP_SETXATTR ? (int)op->flags : 0;

	model_xattr_name(op->xattr, name);
	if (op->kind == OP_SETACL) {
		len = operation_acl(op, acl);
		value = acl;
	} else if (op->kind == OP_SETOPTION) {
		value = operation_option(op);
		len = strlen(value);
	}
	if (!t->model.objects[op->id].nlink) {
		int fd = open_object(t, op->id);
		ssize_t result = errno_of(op->kind == OP_REMOVEXATTR ? fremovexattr(fd, name)
								     : fsetxattr(fd, name, value, len, flags));

		close(fd);
		return result;
	}
	path_of(t, op->id, path);
	return errno_of(op->kind == OP_REMOVEXATTR ? lremovexattr(path, name)
						   : lsetxattr(path, name, value, len, flags));
}

/* How many names are missing, or too many. */
static ssize_t run_list(struct mounted *t, const struct operation *op)
{
	ssize_t found = 0, odd = 0;
	char path[PATH_BYTES];

	path_of(t, op->id, path);
	DIR *dir = opendir(path);
	if (!dir)
		return -errno;
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		const struct model_entry *entry = model_entry_find(&t->model, op->id, e->d_name);

		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (entry && (uint32_t)DTTOIF(e->d_type) == (t->model.objects[entry->id].mode & S_IFMT))
			found++;
		else
			odd++;
	}
	closedir(dir);
	return odd + (ssize_t)t->model.objects[op->id].entries_nr - found;
}

static ssize_t run_sync(const struct mounted *t)
{
	int fd = open(t->mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ssize_t result = errno_of(fd < 0 ? -1 : syncfs(fd));

	if (fd >= 0)
		close(fd);
	return result;
}

static ssize_t run_hold(struct mounted *t, const struct operation *op)
{
	if (t->held[op->id] < 0)
		t->held[op->id] = open_object(t, op->id);
	return t->held[op->id] < 0 ? -errno : 0;
}

static ssize_t run_release(struct mounted *t, const struct operation *op)
{
	if (t->model.objects[op->id].held > 1)
		return 0;
	int err = close(t->held[op->id]);
	t->held[op->id] = -1;
	return errno_of(err);
}

static ssize_t run_at_mount(void *ctx, struct operation *op, struct model *m)
{
	struct mounted *t = ctx;

	(void)m;
	switch (op->kind) {
	case OP_CREATE:
	case OP_SYMLINK: return run_creation(t, op);
	case OP_UNNAMED: return run_unnamed(t, op);
	case OP_LINK:
	case OP_UNLINK:
	case OP_RMDIR:
	case OP_RENAME: return run_names(t, op);
	case OP_SETATTR: return run_setattr(t, op);
	case OP_SETXATTR:
	case OP_SETACL:
	case OP_SETOPTION:
	case OP_REMOVEXATTR: return run_xattr(t, op);
	case OP_HOLD: return run_hold(t, op);
	case OP_RELEASE: return run_release(t, op);
	case OP_SYNC: return run_sync(t);
	case OP_LIST: return run_list(t, op);
	case OP_WAIT: return 0;
	default: return run_content(t, op);
	}
}

/* Does it make sense here? What system calls haven't is taken out of it. */
static bool is_possible(const struct mounted *t, struct operation *op)
{
	const struct model_object *o = &t->model.objects[op->id];
	char path[PATH_BYTES];

	if (!path_of(t, op->dir, path) || !path_of(t, op->dir2, path) || strlen(path) > PATH_BYTES / 2)
		return false;
	op->fields &= ~(unsigned)(KILN_SET_ATIME | KILN_SET_BTIME | KILN_SET_FLAGS);
	if (op->kind == OP_COPY)
		op->flags = 0;
	switch (op->kind) {
	case OP_LINK: return o->nlink;
	case OP_FSYNC: return S_ISREG(o->mode) || S_ISDIR(o->mode);
	case OP_SETACL: /* which of two things that are wrong is told is the kernel's choice */
		return !S_ISLNK(o->mode) && (op->xattr == MODEL_XATTR_ACL_ACCESS || S_ISDIR(o->mode));
	case OP_FALLOCATE: return !(op->flags & (KILN_FALLOC_COLLAPSE_RANGE | KILN_FALLOC_INSERT_RANGE));
	default: return true;
	}
}

/* --- mounting --- */

static void on_mounted(void *ctx)
{
	const int *ready_fd = ctx;

	if (write(*ready_fd, "", 1) != 1)
		abort();
}

static int serve(struct mounted *t, int ready_fd)
{
	struct mount_options options = { .mountpoint = t->mountpoint, .source = "mounted", .has_acls = true };
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE };
	const char *images[] = { t->image };
	kiln_fs *fs;

	alarm(SECONDS_MAX);
	if (kiln_open(images, 1, &open, &fs, t->why))
		return failed(t, "open", t->why);
	struct mount_server *server = mount_server_new(fs, &options);
	int err = server ? mount_serve(server, on_mounted, &ready_fd) : -ENOMEM;
	mount_server_free(server);
	if (!err)
		err = kiln_shutdown(fs);
	kiln_close(fs);
	return err ? failed(t, "serving", strerror(-err)) : 0;
}

/* The server's process, or -1. */
static pid_t server_start(struct mounted *t)
{
	int ready[2];
	char byte;

	fflush(stdout);
	pid_t pid = pipe(ready) ? -1 : fork();
	if (!pid) {
		close(ready[0]);
		int err = serve(t, ready[1]);
		fflush(stdout);
		_exit(err ? 1 : 0);
	}
	if (pid < 0)
		abort();
	close(ready[1]);
	bool is_ready = read(ready[0], &byte, 1) == 1;
	close(ready[0]);
	if (is_ready)
		return pid;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return -1;
}

static int server_end(struct mounted *t, pid_t pid)
{
	enum { TRIES = 3000, AGAIN_US = 20000 };
	int status = 0, err;

	/* Something may look at it for a moment. */
	for (unsigned i = 0; (err = umount2(t->mountpoint, UMOUNT_NOFOLLOW)) && errno == EBUSY && i < TRIES; i++)
		usleep(AGAIN_US);
	if (err) {
		failed(t, "unmounting", strerror(errno));
		umount2(t->mountpoint, MNT_DETACH);
		kill(pid, SIGKILL);
	}
	if (waitpid(pid, &status, 0) < 0 || status)
		err = failed(t, "server", "it ended with a failure");
	return err;
}

/* --- a seed --- */

static int workload(struct mounted *t, const struct operation_limits *limits, uint64_t round, uint64_t ops)
{
	struct strbuf why = strbuf_growing();
	struct operation op;
	struct rng rng;
	int err = 0;

	for (uint64_t nr = 0; nr < ops && !err; nr++) {
		rng_init(&rng, t->seed * 0x9e3779b97f4a7c15 ^ round << 32 ^ nr);
		do
			operation_draw(&op, &rng, &t->model, limits);
		while (!is_possible(t, &op));
		err = operation_run_by(&op, &t->model, run_at_mount, t, nr + 1, &why);
		if (!err && op.kind == OP_UNNAMED)
			t->held[op.new_id] = t->last_unnamed;
		if (err && err != -EPROTO)
			operation_to_text(&op, &why);
		if (!err)
			continue;
		char what[64];
		snprintf(what, sizeof(what), "round %llu, operation %llu", (unsigned long long)round,
			 (unsigned long long)nr);
		failed(t, what, strbuf_text(&why));
	}
	for (unsigned i = 0; i < OBJECTS_MAX; i++) {
		if (t->held[i] >= 0)
			close(t->held[i]);
		t->held[i] = -1;
	}
	strbuf_free(&why);
	return err;
}

/* What is there now; the model becomes that if it has none. */
static int look(struct mounted *t, bool is_first)
{
	struct kiln_open_options open = { .struct_bytes = sizeof(open) };
	struct kiln_check_options options = { .struct_bytes = sizeof(options), .flags = KILN_CHECK_DATA };
	struct kiln_check_result *result = calloc(1, sizeof(*result));
	struct strbuf why = strbuf_growing();
	const char *images[] = { t->image };
	struct model got = { 0 };
	kiln_fs *fs = NULL;
	int err = result ? kiln_open(images, 1, &open, &fs, t->why) : -ENOMEM;

	if (err)
		failed(t, "open", t->why);
	if (!err && (err = model_read(&got, fs, &why)) != 0)
		failed(t, "unreadable", strbuf_text(&why));
	if (!err && (kiln_check(fs, &options, result) || result->errors))
		err = failed(t, "check", result->kinds[0].name ? result->kinds[0].name : "");
	if (!err && is_first)
		model_copy(&t->model, &got);
	for (unsigned i = 0; !err && is_first && i < t->model.nr; i++)
		t->model.objects[i].has_atime = false;
	if (!err && !model_equal(&got, &t->model, UINT32_MAX, NULL, NULL, &why))
		err = failed(t, "differs from the model", strbuf_text(&why));
	if (!err)
		model_adopt_nodes(&t->model, &got);
	kiln_close(fs);
	model_free(&got);
	strbuf_free(&why);
	free(result);
	return err;
}

static int run_seed(struct mounted *t, uint64_t rounds, uint64_t ops)
{
	static const char *const options[] = { "", "compression=lz4,block_size=512", "nocow=1", "btree_node_size=32k" };
	struct operation_limits limits = operation_limits_default;
	struct kiln_format_device device = { .path = t->image, .file_bytes = IMAGE_BYTES };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(device),
					      .options = options[t->seed % ARRAY_NR(options)] };

	limits.mates_nr = 1;
	limits.is_nocow = t->seed % ARRAY_NR(options) == 2;
	limits.has_data_checksums = true;
	limits.data_replicas_min = limits.data_replicas_max = 1;
	limits.weights[OP_BATCH] = 0;
	memset(t->held, 0xff, sizeof(t->held));
	unlink(t->image);
	if (kiln_format(&device, 1, &format, NULL, t->why))
		return failed(t, "format", t->why);
	int err = look(t, true);
	for (uint64_t round = 0; round < rounds && !err; round++) {
		pid_t server = server_start(t);

		if (server < 0)
			return failed(t, "mounting", "");
		err = workload(t, &limits, round, ops);
		int end_err = server_end(t, server);
		if (!err)
			err = end_err ? end_err : look(t, false);
	}
	model_free(&t->model);
	t->model = (struct model){ 0 };
	return err;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "seeds", required_argument, NULL, 's' },
						 { "ops", required_argument, NULL, 'o' },
						 { "rounds", required_argument, NULL, 'r' },
						 { NULL, 0, NULL, 0 } };
	uint64_t first = 1, last = 4, ops = 300, rounds = 3, failed_nr = 0;
	struct mounted *t = calloc(1, sizeof(*t));
	char *end;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (c) {
		case 's':
			first = last = strtoull(optarg, &end, 0);
			if (*end == '-')
				last = strtoull(end + 1, NULL, 0);
			break;
		case 'o': ops = strtoull(optarg, NULL, 0); break;
		case 'r': rounds = strtoull(optarg, NULL, 0); break;
		default: return 2;
		}
	if (!t || geteuid() || access("/dev/fuse", R_OK | W_OK)) {
		printf("SKIPPED: mounting takes root and /dev/fuse\n");
		return 77;
	}
	snprintf(t->dir, sizeof(t->dir), "/dev/shm/kiln-test-XXXXXX");
	if (!mkdtemp(t->dir))
		return 2;
	snprintf(t->image, sizeof(t->image), "%s/image", t->dir);
	snprintf(t->mountpoint, sizeof(t->mountpoint), "%s/mount", t->dir);
	if (mkdir(t->mountpoint, 0700))
		return 2;
	for (t->seed = first; t->seed <= last; t->seed++)
		failed_nr += run_seed(t, rounds, ops) != 0;
	printf("seeds %llu to %llu: %llu rounds of %llu operations at a mount each, %llu failed\n",
	       (unsigned long long)first, (unsigned long long)last, (unsigned long long)rounds, (unsigned long long)ops,
	       (unsigned long long)failed_nr);
	unlink(t->image);
	rmdir(t->mountpoint);
	rmdir(t->dir);
	free(t);
	return failed_nr != 0;
}
