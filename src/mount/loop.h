/* The threads that serve a session's requests. See loop.c. */
#ifndef KILN_MOUNT_LOOP_H
#define KILN_MOUNT_LOOP_H

#include "mount/server.h"

struct loop;

/*
 * Serve requests of @session, which is mounted, until the kernel has no more (it was unmounted) or loop_stop(). @ended
 * is called once, by one of the threads, in the first case. 0 or a negative errno.
 */
int loop_start(struct fuse_session *session, void (*ended)(void *ctx), void *ctx, struct loop **loop);
/* Requests under way are finished, no more are taken. Frees @loop. */
void loop_stop(struct loop *loop);

#endif
