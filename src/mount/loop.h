/* The threads that serve a session's requests. See loop.c. */
#ifndef KILN_MOUNT_LOOP_H
#define KILN_MOUNT_LOOP_H

#include <signal.h>

#include "mount/server.h"

struct loop;

/* Ends a system call that waits for a request: who did that comes back. Threads that don't wait for any don't hear it.
 */
enum { LOOP_SIGNAL = SIGUSR1 };

/*
 * Serve requests of @s->session, which is mounted, until the kernel has no more (it was unmounted) or loop_stop().
 * @ended is called once, by one of the threads, in the first case. 0 or a negative errno.
 */
int loop_start(struct mount_server *s, void (*ended)(void *ctx), void *ctx, struct loop **loop);
/*
 * Wait until all that the kernel had begun to write back has been answered: syncfs(2) begins it, and doesn't wait for
 * FUSE servers. 0, -ETIMEDOUT where so much is written and read that no end is to be seen, -ESHUTDOWN when it is
 * stopped. From any thread but those that serve, at any time before loop_free(). NULL is allowed: nothing is served.
 */
int loop_drain(struct loop *loop);
/* Requests under way are finished, no more are taken. */
void loop_stop(struct loop *loop);
/* NULL is allowed. */
void loop_free(struct loop *loop);
/* Is it of those requests that may be made with nobody waiting for them? */
bool loop_is_background(uint32_t opcode);
/* For this thread the signal means something. */
void loop_signal_hear(void);

#endif
