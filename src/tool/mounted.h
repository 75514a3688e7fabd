/* Whether a filesystem is mounted on this machine, by this tool or by a kernel. */
#ifndef KILN_TOOL_MOUNTED_H
#define KILN_TOOL_MOUNTED_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/strbuf.h"

/* A line of the mount table. */
struct mounted {
	char *mount_point, *source;
	char *device;  /* major:minor */
	bool is_kiln;  /* a server of this tool, or was */
	bool is_ours;  /* some bcachefs filesystem */
	bool is_whole; /* its root is what is seen there */
	uid_t user;    /* who mounted it, for FUSE */
	gid_t group;
};

/* The mount table: the number of its lines, and *@list, to be freed with mounted_free() (NULL when there is none). */
size_t mounted_list(struct mounted **list);
void mounted_free(struct mounted *list, size_t nr);
/*
 * What @which means among them: where that directory is, as df(1) takes it, or one of whose devices it names
 * (DEV[:DEV...] or UUID=...). NULL: nothing of bcachefs is.
 */
const struct mounted *mounted_find(const struct mounted *list, size_t nr, const char *which);

/* Is @path a directory? Also if that can't be said. Without asking a server of FUSE. */
bool mounted_may_be_directory(const char *path);
/* The devices that @fs_arg names, DEV[:DEV...]: itself, or those that have the UUID. To be freed; NULL: there are none.
 */
char *mounted_devices(const char *fs_arg);
/* A mount point of the filesystem that @fs_arg (DEV[:DEV...] or UUID=...) names, to be freed; NULL if there is none. */
char *mounted_at(const char *fs_arg);
/* The same, but what is seen there is the root, and a server of ours that lives serves it. */
char *mounted_whole_at(const char *fs_arg);
/* Are these devices what is mounted at @directory, as the mount table spells it? */
bool mounted_is_at(const char *devices, const char *directory);
/* Tell where @fs_arg is mounted, and what to do about it. False, with nothing told, when it isn't. */
bool mounted_tell(const char *fs_arg);
/* Is @path what is left of a mount whose server has gone without unmounting? Then what to do about it can be told. */
bool mounted_is_dead(const char *path);
void mounted_tell_dead(const char *path);
/*
 * May its source be believed? With FUSE any user may name anything as that: believed is root, who asks, and who owns
 * all that it names.
 */
bool mounted_is_believed(const struct mounted *mount);
/* Is any device of the list @a one of the list @b? A name as a whole is tried first: it may hold colons. */
bool mounted_lists_meet(const char *a, const char *b);

#endif
