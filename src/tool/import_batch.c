/*
 * Small objects of an import, made many at a time (kiln_batch). See import.h.
 *
 * Each task has a batch of its own. A job that fits is read into it and stays with it until it is written; the others
 * are done one by one, as before there were batches: large files, sparse ones, long symlinks, and what gets in the way
 * of something that exists.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/util.h"
#include "tool/import_private.h"

struct import_batch {
	struct import *x;
	kiln_batch *objects;
	char *buffer;			 /* for what is done by itself after all */
	struct import_job *first, *last; /* in the order in which they were added */
};

/* A larger file has enough to itself. */
enum { BATCH_FILE_BYTES_MAX = KILN_BATCH_BYTES / 2 };

struct import_batch *import_batch_new(struct import *x, char *buffer)
{
	struct import_batch *b = calloc(1, sizeof(*b));

	if (b)
		*b = (struct import_batch){ .x = x, .objects = kiln_batch_new(x->fs), .buffer = buffer };
	if (b && b->objects)
		return b;
	free(b);
	return NULL;
}

void import_batch_free(struct import_batch *b)
{
	if (b)
		kiln_batch_free(b->objects);
	free(b);
}

bool import_batch_is_empty(const struct import_batch *b) { return !b->first; }

/* --- adding --- */

static struct kiln_new object_of_job(const struct import_batch *b, struct import_job *job)
{
	const struct import_options *options = &b->x->options;
	const struct stat *st = &job->st;

	return (struct kiln_new){
		.dir = job->dir->node,
		.name = job->as,
		.len = strlen(job->as),
		.mode = st->st_mode,
		.uid = options->keeps_owner ? st->st_uid : options->uid,
		.gid = options->keeps_owner ? st->st_gid : options->gid,
		.rdev_major = major(st->st_rdev),
		.rdev_minor = minor(st->st_rdev),
		.atime = { st->st_atim.tv_sec, (uint32_t)st->st_atim.tv_nsec },
		.mtime = { st->st_mtim.tv_sec, (uint32_t)st->st_mtim.tv_nsec },
		.size = S_ISREG(st->st_mode) ? (uint64_t)st->st_size : 0,
		.target = job->target,
		.ctx = job,
	};
}

/* Read a file's contents to where they are written from. False: they aren't what was announced. */
static bool contents_read(int fd, char *to, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = pread(fd, to + done, size - done, (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

static bool has_holes(int fd, const struct stat *st)
{
	return st->st_blocks < (st->st_size + 511) / 512 && lseek(fd, 0, SEEK_HOLE) < st->st_size;
}

static int file_add(struct import_batch *b, struct import_job *job)
{
	struct kiln_new object = object_of_job(b, job);
	void *contents = NULL;

	int err = kiln_batch_add(b->objects, &object, &contents);
	if (err == -ENOBUFS) {
		import_batch_write(b);
		err = kiln_batch_add(b->objects, &object, &contents);
	}
	if (!err && object.size && !contents_read(job->fd, contents, object.size)) {
		kiln_batch_drop_last(b->objects);
		err = -EAGAIN;
	}
	return err;
}

/* Does the object fit in with others, and is it in the batch now? */
static bool object_add(struct import_batch *b, struct import_job *job)
{
	bool is_file = S_ISREG(job->st.st_mode);

	if (is_file && job->st.st_size > BATCH_FILE_BYTES_MAX)
		return false;
	return !import_job_open(job) && !(is_file && has_holes(job->fd, &job->st)) && !file_add(b, job);
}

bool import_batch_add(struct import_batch *b, struct import_job *job)
{
	char path[IMPORT_JOB_PATH_BYTES];

	if (!object_add(b, job)) {
		import_job_close(job);
		return false;
	}
	import_job_path(job, path);
	job->has_xattrs = import_has_xattrs(job->fd, path);
	/* The descriptor stays open only as long as it is needed. */
	if (!job->has_xattrs && job->fd >= 0) {
		close(job->fd);
		job->fd = -1;
	}
	job->next = NULL;
	if (b->first)
		b->last->next = job;
	else
		b->first = job;
	b->last = job;
	return true;
}

/* --- writing --- */

/* Callbacks may not use the filesystem: what follows waits for the end of the call. */
static void object_made(void *ctx, const struct kiln_new *object, int error, struct kiln_node node)
{
	struct import_job *job = object->ctx;

	job->err = error;
	job->node = node;
}

static void job_finish(struct import_batch *b, struct import_job *job)
{
	char path[IMPORT_JOB_PATH_BYTES];
	int err = job->err;

	/* Something of that name exists: what is to be done then is known elsewhere. */
	if (err == -EEXIST) {
		import_job_close(job);
		import_job_run(b->x, job, b->buffer);
		return;
	}
	if (!err) {
		import_count(b->x, job->st.st_mode, S_ISREG(job->st.st_mode) ? (uint64_t)job->st.st_size : 0);
		if (b->x->options.progress)
			b->x->options.progress(b->x->options.ctx, (uint64_t)job->st.st_size, 0);
	}
	if (!err && job->has_xattrs) {
		import_job_path(job, path);
		err = import_xattrs(b->x, job->fd, path, job->node);
		/* ACLs are the mode, too. */
		int attr_err = import_set_attributes(b->x, job->node, &job->st, -1);
		err = attr_err ? attr_err : err;
	}
	import_job_end(b->x, job, err);
}

void import_batch_write(struct import_batch *b)
{
	kiln_batch_write(b->objects, object_made, NULL);
	while (b->first) {
		struct import_job *job = b->first;

		b->first = job->next;
		job_finish(b, job);
	}
}
