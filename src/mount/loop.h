/* The threads that serve a session's requests. See loop.c. */
#ifndef KILN_MOUNT_LOOP_H
#define KILN_MOUNT_LOOP_H

#include <signal.h>

#include "mount/server.h"

struct loop;

/* Ends a system call that waits for a request; where it means anything, it is blocked elsewhere. */
enum { LOOP_STOP_SIGNAL = SIGUSR1 };

/*
 * Serve requests of @s->session, which is mounted, until the kernel has no more (it was unmounted) or loop_stop().
 * @ended is called once, by one of the threads, in the first case. 0 or a negative errno.
 */
int loop_start(struct mount_server *s, void (*ended)(void *ctx), void *ctx, struct loop **loop);
/* Requests under way are finished, no more are taken. Frees @loop. */
void loop_stop(struct loop *loop);
/* For this thread the signal means something. */
void loop_stop_signal_hear(void);

#endif
