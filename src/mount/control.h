/*
 * The control socket of a server: what it is doing, asked for by other processes of the same user.
 *
 * It is PLACE/PID.sock, PLACE being /run/kiln for root and /run/user/UID/kiln for others, or /tmp/kiln-UID where that
 * can't be made: who has mounted and who asks agree on it, whatever is in their environments. A client sends one line,
 * a JSON object {"command": NAME}, and gets one line, a JSON object: {"ok": true, ...} or {"ok": false, "error": TEXT}.
 * Then the connection is closed. Commands: "status", "debug", "sync" (docs/man/kiln-status.1.scd), "quota"
 * (tool/mount_quota.h). Many are answered at a time.
 *
 * Beside it lies PLACE/PID.json, which tells who it is to whom it doesn't answer.
 *
 * The socket is there until the devices are free again, so that whoever wants to open them can tell a server that is
 * ending from one that serves.
 */
#ifndef KILN_MOUNT_CONTROL_H
#define KILN_MOUNT_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum { CONTROL_PATH_BYTES = 108, CONTROL_REQUEST_BYTES_MAX = 4096 };

/* Answer a request (without its newline) with a text of one line, malloced; NULL closes the connection. By many tasks.
 */
typedef char *(*control_fn)(void *ctx, const char *request);

struct control;

/* A folder where the sockets of a user are. */
struct control_place {
	char path[CONTROL_PATH_BYTES - sizeof("/4294967295.sock")];
	uid_t uid;
};
/*
 * Those of this user, and then, for root, those of all others: who may put anything there can lie about what it serves.
 * Their number, and *@places to be freed (NULL when memory is short).
 */
size_t control_places(struct control_place **places);
/*
 * Listen, and answer with @fn from tasks of its own. @about: a line for the file beside the socket. 0 or a negative
 * errno: a server works without it, too.
 */
int control_start(struct control **control, const char *about, control_fn fn, void *ctx);
/* What is being answered is waited for. NULL is allowed. */
void control_stop(struct control *control);

#endif
