/*
 * A mount from its begin to its end. See session.c.
 */
#ifndef KILN_MOUNT_SESSION_H
#define KILN_MOUNT_SESSION_H

#include <stdlib.h>

#include "mount/server.h"

/*
 * Mount, serve, call @mounted, go on until unmounted or told to end by a signal; then it is unmounted. 0 or a negative
 * errno.
 */
int session_run(struct mount_server *s, const struct fuse_lowlevel_ops *ops, size_t ops_bytes,
		void (*mounted)(void *ctx), void *ctx);

/* See mount_server_failed(). A process has one. */
void session_failed(void);

#endif
