/* Whether a filesystem is mounted on this machine, by this tool or by a kernel. */
#ifndef KILN_TOOL_MOUNTED_H
#define KILN_TOOL_MOUNTED_H

#include <stdbool.h>

#include "base/strbuf.h"

/* A mount point of the filesystem that @fs_arg (DEV[:DEV...] or UUID=...) names, to be freed; NULL if there is none. */
char *mounted_at(const char *fs_arg);
/* The same, but what is seen there is the root, and a server of ours that lives serves it. */
char *mounted_whole_at(const char *fs_arg);
/* The other way: the devices of what is mounted at @directory, to be freed; NULL if nothing of ours is. */
char *mounted_source(const char *directory);
/* Are these devices what is mounted at @directory, as the mount table spells it? */
bool mounted_is_at(const char *devices, const char *directory);
/* Tell where @fs_arg is mounted, and what to do about it. False, with nothing told, when it isn't. */
bool mounted_tell(const char *fs_arg);
/* Is @path what is left of a mount whose server has gone without unmounting? */
bool mounted_is_dead(const char *path);
/* Is any device of the list @a one of the list @b? A name as a whole is tried first: it may hold colons. */
bool mounted_lists_meet(const char *a, const char *b);

#endif
