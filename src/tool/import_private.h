/* What the files of import.h share. */
#ifndef KILN_TOOL_IMPORT_PRIVATE_H
#define KILN_TOOL_IMPORT_PRIVATE_H

#include <sys/stat.h>

#include "base/sync.h"
#include "tool/import.h"

struct import_job;

/* A file with several links, by where it came from. */
struct import_link {
	dev_t dev;
	ino_t ino;
	struct kiln_node node;
	struct import_link *next;
};
enum { IMPORT_LINK_BUCKETS = 4096 };

struct import {
	kiln_fs *fs;
	struct import_options options;
	struct kiln_node root;
	struct mutex lock; /* guards the members below */
	struct waitq has_job, has_room;
	struct import_job *first, *last;
	unsigned queued, busy;
	bool is_ending;
	int fatal; /* what made going on pointless */
	struct import_counts counts;
	struct import_link *links[IMPORT_LINK_BUCKETS];
	char *walk_buffer; /* IMPORT_BUFFER_BYTES, for the task that walks */
	struct task **tasks;
	unsigned task_nr;
};

/* Report and count a failure; returns it if it makes going on pointless, else 0. */
int import_failed(struct import *x, const char *path, int err, const char *what);
/* 0, or why to stop. */
int import_stopped(struct import *x);
/* One more object, and @bytes of contents. */
void import_count(struct import *x, mode_t mode, uint64_t bytes);
void import_count_hardlink(struct import *x);

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
