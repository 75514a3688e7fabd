/* What the files of import.h share. */
#ifndef KILN_TOOL_IMPORT_PRIVATE_H
#define KILN_TOOL_IMPORT_PRIVATE_H

#include <limits.h>
#include <sys/stat.h>

#include "base/sync.h"
#include "tool/import.h"

/*
 * A directory being filled. Each entry under way holds a reference, and so does the walk while it is in it; the last
 * one gives the directory its times.
 */
struct import_dir {
	struct kiln_node node;
	struct stat st;
	int fd;		   /* of where it came from */
	char *path;	   /* the same for people */
	unsigned refs;	   /* guarded by import.lock */
	bool is_filled;	   /* made here, or merged into: gets attributes */
	bool hands_on_acl; /* what is made in it inherits one */
};

/* An object to be made, which is no directory. */
struct import_job {
	struct import_job *next;
	struct import_dir *dir;
	struct stat st;
	char *name;   /* in the source */
	char *as;     /* in the filesystem */
	int fd;	      /* of a regular file; -1: not open */
	char *target; /* of a symlink; NULL: not read */
	/* in a batch */
	bool has_xattrs;
	int err;
	struct kiln_node node;
};

/* A file with several links, by where it came from, until as many as it has are met in one source. */
struct import_link {
	dev_t dev;
	ino_t ino;
	struct kiln_node node;
	unsigned source_nr; /* the last source that it was met in, */
	nlink_t met_nr;	    /* and how often it was there */
	struct import_link *next;
};
enum { IMPORT_LINK_BUCKETS = 4096 };

/* A file that the filesystem itself is on. */
struct import_own {
	dev_t dev;
	ino_t ino;
};

struct import {
	kiln_fs *fs;
	struct import_options options;
	struct mutex lock; /* guards the members below */
	struct waitq has_job, has_room;
	struct import_job *first, *last;
	unsigned queued, busy;
	bool is_draining; /* there won't be more jobs for now: tasks write what they have collected */
	bool is_ending;
	int fatal; /* what made going on pointless */
	struct import_counts counts;
	struct import_link *links[IMPORT_LINK_BUCKETS];
	unsigned source_nr; /* sources begun */
	struct import_own *own;
	unsigned own_nr;
	char *walk_buffer; /* IMPORT_BUFFER_BYTES, for the task that walks */
	struct task **tasks;
	unsigned task_nr;
};

/* Report and count a failure (@err may be 0 if @what says all); returns it if it makes going on pointless, else 0. */
int import_failed(struct import *x, const char *path, int err, const char *what);
/* 0, or why to stop. */
int import_stopped(struct import *x);
/* One more object, and @bytes of contents. */
void import_count(struct import *x, mode_t mode, uint64_t bytes);
void import_count_hardlink(struct import *x);

/* --- import.c --- */

/* Open a regular file, or read a symlink's target. 0 or an error. */
int import_job_open(struct import_job *job);
void import_job_close(struct import_job *job);
/* Path of the object that needs no resolving of what leads to its directory, for calls that take no descriptor. */
enum { IMPORT_JOB_PATH_BYTES = NAME_MAX + 64 };
void import_job_path(const struct import_job *job, char path[IMPORT_JOB_PATH_BYTES]);
/* Make it by itself, and end it. @buffer: IMPORT_BUFFER_BYTES. */
void import_job_run(struct import *x, struct import_job *job, char *buffer);
/* Report @err, if it is one, and free the job. */
void import_job_end(struct import *x, struct import_job *job, int err);

/* --- import_batch.c --- */

/* Small objects that are made together. One for each task. @buffer: IMPORT_BUFFER_BYTES, the task's. */
struct import_batch;
struct import_batch *import_batch_new(struct import *x, char *buffer);
void import_batch_free(struct import_batch *b); /* NULL is allowed */
/* Take the job over, if it is one for a batch; what is there already may be written first. Else the caller runs it. */
bool import_batch_add(struct import_batch *b, struct import_job *job);
bool import_batch_is_empty(const struct import_batch *b);
/* Make all objects that were added, and end their jobs. */
void import_batch_write(struct import_batch *b);

/* --- import_object.c --- */

/* Find the files that the filesystem itself is on: x->own. False: no memory. */
bool import_own_find(struct import *x);

/*
 * Make @name in @dir, or find the directory that is there already; what is there otherwise is replaced if the options
 * say so. 0 with *@node. @st says type, mode, owner, device; @target is a symlink's.
 */
int import_make(struct import *x, struct kiln_node dir, const char *name, const struct stat *st, const char *target,
		struct kiln_node *node);
/* Another name for @node. */
int import_make_link(struct import *x, struct kiln_node node, struct kiln_node dir, const char *name);
/* Mode, owner, times, and the size if @size isn't negative. */
int import_set_attributes(struct import *x, struct kiln_node node, const struct stat *st, off_t size);
/* Does an attribute of this name belong to where a file lies rather than to the file? */
bool import_xattr_is_left_out(const char *name);
/* Has the object any that would be copied? Also if nobody can tell: then copying them will. */
bool import_has_xattrs(int fd, const char *path);
/* Extended attributes of the object open at @fd, or if that is negative of @path. */
int import_xattrs(struct import *x, int fd, const char *path, struct kiln_node node);
/*
 * Does @dir have a default ACL, which what is made in it inherits? Such ACLs aren't the source's: they are dropped
 * before the source's attributes are set.
 */
bool import_hands_on_acl(struct import *x, struct kiln_node dir);
int import_acls_drop(struct import *x, struct kiln_node node);
/*
 * Everything about an object but its name. @fd: a regular file's contents, else -1; @path: of the object, for what
 * needs one. @buffer: IMPORT_BUFFER_BYTES.
 */
int import_fill(struct import *x, int fd, const char *path, struct kiln_node node, const struct stat *st, char *buffer);
/* Write all of it; 0 or why not. */
int import_write(struct import *x, struct kiln_node node, off_t offset, const char *buf, size_t len);

#endif
