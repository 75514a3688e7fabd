/*
 * What the kernel's protocol has and libfuse 3.14 doesn't: made to fit what libfuse does know. See protocol.c.
 */
#ifndef KILN_MOUNT_PROTOCOL_H
#define KILN_MOUNT_PROTOCOL_H

#include "mount/server.h"

/* Notes on a request, in fi->fh, which is free as nothing is ever opened. */
enum protocol_note {
	PROTOCOL_KILL_SETID = 1, /* write, setattr: who asks may not keep setuid and setgid on it */
	PROTOCOL_STATX = 2,	 /* getattr: answer with protocol_reply_statx() */
};

/* Have @session, which isn't mounted yet, speak more: between fuse_session_new() and fuse_session_mount(). */
int protocol_extend(struct fuse_session *session);
/* A request as the kernel sends it, before libfuse has it: @bytes, which may be changed. */
void protocol_request(struct mount_server *s, void *request, size_t bytes);
/* Answer with all that statx() tells, the time of birth too. */
void protocol_reply_statx(fuse_req_t req, const struct kiln_stat *st);

#endif
