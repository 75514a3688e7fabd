/*
 * What the commands that change a filesystem share: opening it for writing, closing it cleanly, paths, whole trees.
 *
 * They refuse a mounted filesystem, and one that can only be read. However they end, interrupted too, the filesystem is
 * consistent; after exit status 0 it has been shut down cleanly.
 */
#ifndef KILN_TOOL_CHANGE_H
#define KILN_TOOL_CHANGE_H

#include "tool/tool.h"

struct change {
	const struct command *self;
	struct tool_open open;
	kiln_fs *fs;
	bool has_failed; /* something was told by change_failed() */
	bool is_over;	 /* what was told will be so with every other path, too */
};

/* Open @fs_arg for writing and catch signals. False after a message. */
bool change_open(struct change *c, const char *fs_arg);
/* Shut it down, close it; the exit status. */
int change_close(struct change *c);
/*
 * Go over the arguments: option handling is the caller's; then open argv[0], call @fn with each path behind it until it
 * is interrupted or c->is_over, close. @fn returns 0 or a negative errno, which is told with the path.
 */
typedef int (*change_path_fn)(struct change *c, void *ctx, const char *path);
int change_each(struct change *c, char **args, int nr, change_path_fn fn, void *ctx);

/* Say that @path (bytes from anywhere) failed with @err; @what (may be NULL) tells what that was about. */
void change_failed(struct change *c, const char *path, int err, const char *what);

/* The directory that the last name of a path is in, and that name, without slashes around it. */
struct change_place {
	struct kiln_node dir;
	const char *name;
	size_t len;
	bool is_dir;	  /* it was written with a slash at the end */
	const char *into; /* path of @dir if the name is another path's last one; else NULL */
};
/* -EBUSY for a path without a last name: "/", and ones that end in "." or "..". */
int change_place(kiln_fs *fs, const char *path, struct change_place *place);
/* Last name of a path, "" where there is none ("/", "a/..", "."). *@len: without slashes behind it. */
const char *change_last_name(const char *path, size_t *len);
/*
 * The same for a name that something is to get. With a slash behind it, it must be a directory that exists, or what
 * gets it must be one (@is_for_dir): else -ENOENT or -ENOTDIR.
 */
int change_new_place(kiln_fs *fs, const char *path, bool is_for_dir, struct change_place *place);
/*
 * Where @source (a directory: @is_for_dir) goes that shall go to @dest: into it under its own name if that is a
 * directory, else @dest itself, as change_new_place() has it.
 */
int change_target(kiln_fs *fs, const char *source, const char *dest, bool must_be_dir, bool is_for_dir,
		  struct change_place *place);
/* change_failed() of a place that was found for @dest. */
void change_failed_at(struct change *c, const char *dest, const struct change_place *place, int err);

/*
 * All of a tree, entries of a directory before it if @post, else after it. Other than with kiln_walk(), @fn may change
 * what it is at. It returns 0 to go on, or what stops the walk. Errors of the walk itself are told by change_failed().
 */
struct change_entry {
	struct kiln_node dir; /* that it is in */
	const char *name;
	size_t len;
	const char *path; /* for messages */
	const struct kiln_stat *st;
};
typedef int (*change_tree_fn)(struct change *c, void *ctx, const struct change_entry *entry);
int change_tree(struct change *c, const char *path, struct kiln_node top, bool post, change_tree_fn fn, void *ctx);

#endif
