/* Talking to the servers of mounted filesystems, over their control sockets (mount/control.h). */
#ifndef KILN_TOOL_MOUNT_CONTROL_H
#define KILN_TOOL_MOUNT_CONTROL_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

/*
 * Ask every server of this user that is mounted at @which (a directory), or has one of its devices (DEV[:DEV...] or
 * UUID=...); NULL: all. An array of their answers, to be freed; empty when there is none. One that doesn't say in time
 * who it is is among them, with the state "stuck", and an error that says what to do.
 */
json_t *mount_control_ask(const char *which, const char *command);
bool mount_control_is_stuck(const json_t *reply);
enum mount_control_found { MOUNT_CONTROL_NONE, MOUNT_CONTROL_FOUND, MOUNT_CONTROL_STUCK };
/*
 * The server that has @fs_arg mounted (DEV[:DEV...], UUID=..., or a directory), if it may be asked. That it is stuck
 * has been told.
 */
enum mount_control_found mount_control_find(const char *fs_arg, pid_t *server);
/* What one server, by the "pid" of its answers, says to @request: to be freed; NULL: it hung up. */
json_t *mount_control_request(pid_t server, const json_t *request);
/* Is a server of the filesystem, whose mount is gone, still writing back what it has? */
bool mount_control_is_ending(const char *fs_arg);

#endif
