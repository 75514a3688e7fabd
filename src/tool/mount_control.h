/* Talking to the servers of mounted filesystems, over their control sockets (mount/control.h). */
#ifndef KILN_TOOL_MOUNT_CONTROL_H
#define KILN_TOOL_MOUNT_CONTROL_H

#include <jansson.h>
#include <stdbool.h>

/*
 * Ask every server of this user that is mounted at @which (a directory), or has one of its devices (DEV[:DEV...] or
 * UUID=...); NULL: all. An array of their answers, to be freed; empty when there is none.
 */
json_t *mount_control_ask(const char *which, const char *command);
/* Is a server of the filesystem, whose mount is gone, still writing back what it has? */
bool mount_control_is_ending(const char *fs_arg);

#endif
