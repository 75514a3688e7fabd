/* A tree of this machine into a filesystem. See import.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/strbuf.h"
#include "tool/import_private.h"

/* --- failures --- */

int import_stopped(struct import *x)
{
	if (*x->options.stop)
		return -EINTR;
	mutex_lock(&x->lock);
	int err = x->fatal;
	mutex_unlock(&x->lock);
	return err;
}

int import_failed(struct import *x, const char *path, int err, const char *what)
{
	bool is_fatal = err == -ENOSPC || err == -EROFS || err == -ENOMEM || err == -EINTR;

	mutex_lock(&x->lock);
	bool is_news = !x->fatal;
	if (is_fatal && is_news)
		x->fatal = err;
	if (is_news && err != -EINTR) {
		x->counts.failed++;
		x->options.report(x->options.ctx, path, err, what);
	}
	mutex_unlock(&x->lock);
	return is_fatal ? err : 0;
}

void import_count(struct import *x, mode_t mode, uint64_t bytes)
{
	struct import_counts *c = &x->counts;

	mutex_lock(&x->lock);
	++*(S_ISREG(mode) ? &c->files : S_ISDIR(mode) ? &c->directories : S_ISLNK(mode) ? &c->symlinks : &c->specials);
	c->bytes += bytes;
	mutex_unlock(&x->lock);
	if (x->options.progress)
		x->options.progress(x->options.ctx, 0, 1);
}

void import_count_hardlink(struct import *x)
{
	mutex_lock(&x->lock);
	x->counts.hardlinks++;
	mutex_unlock(&x->lock);
	if (x->options.progress)
		x->options.progress(x->options.ctx, 0, 1);
}

/* --- hardlinks --- */

static struct import_link **link_bucket(struct import *x, const struct stat *st)
{
	uint64_t h = ((uint64_t)st->st_ino ^ (uint64_t)st->st_dev << 40) * 0x9e3779b97f4a7c15ull;

	return &x->links[h >> 52 & (IMPORT_LINK_BUCKETS - 1)];
}

static bool link_take(struct import *x, const struct stat *st, struct kiln_node *node)
{
	mutex_lock(&x->lock);
	struct import_link **at = link_bucket(x, st);
	while (*at && ((*at)->ino != st->st_ino || (*at)->dev != st->st_dev))
		at = &(*at)->next;
	struct import_link *l = *at;
	bool is_known = l;
	if (is_known) {
		*node = l->node;
		/* Sources may overlap: what was met in another one may be met again. */
		l->met_nr = l->source_nr == x->source_nr ? l->met_nr + 1 : 1;
		l->source_nr = x->source_nr;
		if (l->met_nr >= st->st_nlink) {
			*at = l->next;
			free(l);
		}
	}
	mutex_unlock(&x->lock);
	return is_known;
}

static int link_remember(struct import *x, const struct stat *st, struct kiln_node node)
{
	struct import_link *l = malloc(sizeof(*l));

	if (!l)
		return -ENOMEM;
	mutex_lock(&x->lock);
	struct import_link **bucket = link_bucket(x, st);
	*l = (struct import_link){ .dev = st->st_dev,
				   .ino = st->st_ino,
				   .node = node,
				   .source_nr = x->source_nr,
				   .met_nr = 1,
				   .next = *bucket };
	*bucket = l;
	mutex_unlock(&x->lock);
	return 0;
}

/* Its first name was imported already: make another one. Returns 1 if so. */
static int make_hardlink(struct import *x, struct import_dir *dir, const char *as, const struct stat *st)
{
	struct kiln_node node;

	if (S_ISDIR(st->st_mode) || st->st_nlink < 2 || !link_take(x, st, &node))
		return 0;
	int err = import_make_link(x, node, dir->node, as);
	if (!err)
		import_count_hardlink(x);
	return err ? err : 1;
}

/* --- one object that is no directory --- */

int import_job_open(struct import_job *job)
{
	char target[PATH_MAX];

	if (S_ISLNK(job->st.st_mode) && !job->target) {
		ssize_t len = readlinkat(job->dir->fd, job->name, target, sizeof(target) - 1);
		if (len < 0)
			return -errno;
		job->target = strndup(target, (size_t)len);
		return job->target ? 0 : -ENOMEM;
	}
	if (S_ISREG(job->st.st_mode) && job->fd < 0) {
		job->fd = openat(job->dir->fd, job->name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		return job->fd < 0 ? -errno : 0;
	}
	return 0;
}

void import_job_close(struct import_job *job)
{
	if (job->fd >= 0)
		close(job->fd);
	free(job->target);
	job->fd = -1;
	job->target = NULL;
}

void import_job_path(const struct import_job *job, char path[IMPORT_JOB_PATH_BYTES])
{
	snprintf(path, IMPORT_JOB_PATH_BYTES, "/proc/self/fd/%d/%s", job->dir->fd, job->name);
}

static int import_object(struct import *x, struct import_job *job, char *buffer, struct kiln_node *node)
{
	char path[IMPORT_JOB_PATH_BYTES];

	int err = import_job_open(job);
	if (err)
		return err;
	err = import_make(x, job->dir->node, job->as, &job->st, job->target, node);
	if (!err && job->dir->hands_on_acl && !S_ISLNK(job->st.st_mode))
		err = import_acls_drop(x, *node);
	if (err)
		return err;
	import_job_path(job, path);
	return import_fill(x, job->fd, path, *node, &job->st, buffer);
}

/* --- directories --- */

/* As whoever named the source would call it. */
static void path_add(struct strbuf *out, const struct import_dir *dir, const char *name)
{
	bool is_here = !strcmp(dir->path, ".");

	strbuf_printf(out, "%s%s%s", is_here ? "" : dir->path, is_here ? "" : "/", name);
}

/* @fd belongs to it from here on, also on failure. */
static struct import_dir *dir_new(struct kiln_node node, int fd, const struct stat *st, const char *path,
				  bool is_filled)
{
	struct import_dir *dir = malloc(sizeof(*dir));

	if (dir)
		*dir = (struct import_dir){
			.node = node, .st = *st, .fd = fd, .refs = 1, .path = strdup(path), .is_filled = is_filled
		};
	if (dir && dir->path)
		return dir;
	close(fd);
	free(dir);
	return NULL;
}

static void dir_put(struct import *x, struct import_dir *dir)
{
	mutex_lock(&x->lock);
	bool is_last = !--dir->refs;
	bool is_over = x->fatal;
	mutex_unlock(&x->lock);
	if (!is_last)
		return;
	int err = dir->is_filled && !is_over ? import_set_attributes(x, dir->node, &dir->st, -1) : 0;
	if (err)
		import_failed(x, dir->path, err, "its times and mode");
	close(dir->fd);
	free(dir->path);
	free(dir);
}

/* --- tasks --- */

static void job_free(struct import *x, struct import_job *job)
{
	import_job_close(job);
	dir_put(x, job->dir);
	free(job->name);
	free(job->as);
	free(job);
}

void import_job_end(struct import *x, struct import_job *job, int err)
{
	if (err) {
		struct strbuf path = strbuf_growing();

		path_add(&path, job->dir, job->name);
		import_failed(x, strbuf_text(&path), err, NULL);
		strbuf_free(&path);
	}
	job_free(x, job);
}

void import_job_run(struct import *x, struct import_job *job, char *buffer)
{
	struct kiln_node node;

	import_job_end(x, job, import_object(x, job, buffer, &node));
}

/* Take some jobs at a time: neighbours stay together, and so do those who wait for room. Lock held. */
static struct import_job *jobs_take(struct import *x)
{
	enum { JOBS_MAX = 32, JOB_BYTES_MAX = 1 << 20 };
	struct import_job *first = x->first, *last = first;
	off_t bytes = first->st.st_size;
	unsigned nr = 1;

	while (last->next && nr < JOBS_MAX && bytes + last->next->st.st_size <= JOB_BYTES_MAX) {
		last = last->next;
		bytes += last->st.st_size;
		nr++;
	}
	x->first = last->next;
	last->next = NULL;
	x->queued -= nr;
	if (x->queued <= IMPORT_QUEUE_MAX / 2)
		waitq_wake_all(&x->has_room);
	return first;
}

static void jobs_run(struct import *x, struct import_job *jobs, struct import_batch *batch, char *buffer)
{
	while (jobs) {
		struct import_job *job = jobs;

		jobs = job->next;
		int err = import_stopped(x);
		if (err)
			import_job_end(x, job, 0);
		else if (!batch || !import_batch_add(batch, job))
			import_job_run(x, job, buffer);
	}
}

/* What there is to do next, for a task with this batch. False: nothing any more. Lock held. */
static bool work_wait(struct import *x, const struct import_batch *batch)
{
	while (!x->first && !x->is_ending && !(x->is_draining && batch && !import_batch_is_empty(batch)))
		waitq_wait(&x->has_job, &x->lock);
	return x->first || !x->is_ending;
}

static void import_task(void *arg)
{
	struct import *x = arg;
	CLEANUP_FREE char *buffer = malloc(IMPORT_BUFFER_BYTES);
	struct import_batch *batch = buffer ? import_batch_new(x, buffer) : NULL;
	bool is_busy = false;

	if (!batch)
		import_failed(x, "a buffer", -ENOMEM, NULL);
	mutex_lock(&x->lock);
	while (work_wait(x, batch)) {
		struct import_job *jobs = x->first ? jobs_take(x) : NULL;

		x->busy += !is_busy;
		is_busy = true;
		mutex_unlock(&x->lock);
		if (jobs)
			jobs_run(x, jobs, batch, buffer);
		else
			import_batch_write(batch);
		mutex_lock(&x->lock);
		if (batch && !import_batch_is_empty(batch))
			continue;
		/* Nothing of what it took is left with it. */
		is_busy = false;
		x->busy--;
		waitq_wake_all(&x->has_room);
	}
	mutex_unlock(&x->lock);
	import_batch_free(batch);
}

static void job_queue(struct import *x, struct import_job *job)
{
	mutex_lock(&x->lock);
	while (x->queued >= IMPORT_QUEUE_MAX)
		waitq_wait(&x->has_room, &x->lock);
	job->next = NULL;
	if (x->first)
		x->last->next = job;
	else
		x->first = job;
	x->last = job;
	x->queued++;
	waitq_wake_one(&x->has_job);
	mutex_unlock(&x->lock);
}

static void wait_idle(struct import *x)
{
	mutex_lock(&x->lock);
	x->is_draining = true;
	waitq_wake_all(&x->has_job);
	while (x->queued || x->busy)
		waitq_wait(&x->has_room, &x->lock);
	x->is_draining = false;
	mutex_unlock(&x->lock);
}

/* --- the walk --- */

static int walk_dir(struct import *x, struct import_dir *dir);

static int job_make(struct import *x, struct import_dir *dir, const char *name, const char *as, const struct stat *st)
{
	struct import_job *job = malloc(sizeof(*job));

	if (!job)
		return -ENOMEM;
	*job = (struct import_job){ .dir = dir, .st = *st, .name = strdup(name), .as = strdup(as), .fd = -1 };
	mutex_lock(&x->lock);
	dir->refs++;
	mutex_unlock(&x->lock);
	if (!job->name || !job->as) {
		job_free(x, job);
		return -ENOMEM;
	}
	/* Other names of it must find the node: make it before the walk goes on. */
	if (st->st_nlink > 1) {
		struct kiln_node node = { 0 };
		int err = import_object(x, job, x->walk_buffer, &node);

		if (node.ino) {
			int link_err = link_remember(x, st, node);
			err = err ? err : link_err;
		}
		job_free(x, job);
		return err;
	}
	job_queue(x, job);
	return 0;
}

static int subdir_import(struct import *x, struct import_dir *parent, const char *name, const char *as,
			 const struct stat *st, const char *path)
{
	struct kiln_node node;

	if (!x->options.is_recursive)
		return -EISDIR;
	int fd = openat(parent->fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	int err = import_make(x, parent->node, as, st, NULL, &node);
	if (err) {
		close(fd);
		return err;
	}
	struct import_dir *dir = dir_new(node, fd, st, path, true);
	if (!dir)
		return -ENOMEM;
	import_count(x, S_IFDIR, 0);
	err = parent->hands_on_acl ? import_acls_drop(x, node) : 0;
	err = err ? err : import_xattrs(x, fd, path, node);
	if (err)
		err = import_failed(x, path, err, "its extended attributes");
	dir->hands_on_acl = import_hands_on_acl(x, node);
	err = err ? err : walk_dir(x, dir);
	dir_put(x, dir);
	return err;
}

/* Is it an image that the filesystem itself is on? It would grow while it is copied. */
static bool is_own_device(const struct import *x, const struct stat *st)
{
	for (unsigned i = 0; i < x->own_nr; i++)
		if (x->own[i].dev == st->st_dev && x->own[i].ino == st->st_ino)
			return S_ISREG(st->st_mode);
	return false;
}

/* Any object @name of @dir. 0 or what makes going on pointless. */
static int entry_import(struct import *x, struct import_dir *dir, const char *name, const char *as)
{
	struct strbuf path = strbuf_growing();
	struct stat st;

	path_add(&path, dir, name);
	int err = import_stopped(x);
	if (!err && fstatat(dir->fd, name, &st, AT_SYMLINK_NOFOLLOW))
		err = -errno;
	if (!err && is_own_device(x, &st)) {
		import_failed(x, strbuf_text(&path), 0, "is the filesystem that it would be copied into: left out");
	} else if (!err) {
		err = make_hardlink(x, dir, as, &st);
		if (!err)
			err = S_ISDIR(st.st_mode) ? subdir_import(x, dir, name, as, &st, strbuf_text(&path))
						  : job_make(x, dir, name, as, &st);
		err = min(err, 0);
	}
	if (err)
		err = import_failed(x, strbuf_text(&path), err, NULL);
	strbuf_free(&path);
	return err;
}

static int walk_dir(struct import *x, struct import_dir *dir)
{
	int copy = fcntl(dir->fd, F_DUPFD_CLOEXEC, 0);
	DIR *d = copy < 0 ? NULL : fdopendir(copy);
	const struct dirent *e;
	int err = 0;

	if (!d) {
		err = -errno;
		if (copy >= 0)
			close(copy);
		return import_failed(x, dir->path, err, NULL);
	}
	for (errno = 0; !err && (e = readdir(d)); errno = 0)
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			err = entry_import(x, dir, e->d_name, e->d_name);
	if (!err && errno)
		err = import_failed(x, dir->path, -errno, NULL);
	closedir(d);
	return err;
}

/* --- for callers --- */

struct import *import_start(kiln_fs *fs, const struct import_options *options, unsigned task_nr)
{
	struct import *x = calloc(1, sizeof(*x));

	if (!x)
		return NULL;
	x->fs = fs;
	x->options = *options;
	x->walk_buffer = malloc(IMPORT_BUFFER_BYTES);
	mutex_init(&x->lock);
	waitq_init(&x->has_job);
	waitq_init(&x->has_room);
	task_nr = task_nr ? task_nr : max(2 * cpu_nr(), 4u);
	x->tasks = calloc(task_nr, sizeof(*x->tasks));
	bool has_memory = x->tasks && x->walk_buffer && import_own_find(x);
	for (unsigned i = 0; has_memory && i < task_nr; i++)
		if (!task_start(&x->tasks[x->task_nr], "import", import_task, x))
			x->task_nr++;
	if (!x->task_nr) {
		import_end(x);
		return NULL;
	}
	return x;
}

/* The path without slashes at its end, which would follow a symlink. */
static char *trimmed(const char *path)
{
	size_t len = strlen(path);

	while (len > 1 && path[len - 1] == '/')
		len--;
	return strndup(path, len);
}

/* With the directory open that @source is in, or with @name "", that it is. */
static int import_into(struct import *x, struct import_dir *dir, const char *base, const char *name)
{
	dir->hands_on_acl = import_hands_on_acl(x, dir->node);
	if (*name)
		return entry_import(x, dir, base, name);

	int err = import_xattrs(x, dir->fd, dir->path, dir->node);
	if (err)
		err = import_failed(x, dir->path, err, "its extended attributes");
	dir->hands_on_acl = import_hands_on_acl(x, dir->node);
	return err ? err : walk_dir(x, dir);
}

int import_path(struct import *x, const char *source, struct kiln_node node, const char *name)
{
	CLEANUP_FREE char *path = trimmed(source);
	struct stat st;

	char *slash = path ? strrchr(path, '/') : NULL;
	CLEANUP_FREE char *parent = slash ? strndup(path, max((size_t)(slash - path), (size_t)1)) : strdup(".");
	if (!path || !parent)
		return import_failed(x, source, -ENOMEM, NULL);
	const char *opened = *name ? parent : path;
	int fd = open(opened, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return import_failed(x, source, -errno, NULL);
	if (fstat(fd, &st)) {
		int err = import_failed(x, source, -errno, NULL);

		close(fd);
		return err;
	}
	struct import_dir *dir = dir_new(node, fd, &st, !strcmp(opened, "/") ? "" : opened, !*name);
	if (!dir)
		return import_failed(x, source, -ENOMEM, NULL);

	mutex_lock(&x->lock);
	x->source_nr++;
	mutex_unlock(&x->lock);
	int err = import_into(x, dir, slash ? slash + 1 : path, name);
	wait_idle(x);
	dir_put(x, dir);
	return err ? err : import_stopped(x);
}

const struct import_counts *import_counts(const struct import *x) { return &x->counts; }

void import_end(struct import *x)
{
	mutex_lock(&x->lock);
	x->is_ending = true;
	waitq_wake_all(&x->has_job);
	mutex_unlock(&x->lock);
	for (unsigned i = 0; i < x->task_nr; i++)
		task_join(x->tasks[i]);
	for (size_t i = 0; i < IMPORT_LINK_BUCKETS; i++)
		while (x->links[i]) {
			struct import_link *l = x->links[i];
			x->links[i] = l->next;
			free(l);
		}
	waitq_destroy(&x->has_room);
	waitq_destroy(&x->has_job);
	mutex_destroy(&x->lock);
	free(x->own);
	free(x->tasks);
	free(x->walk_buffer);
	free(x);
}
