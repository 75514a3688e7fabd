/* Bounds on what the kernel makes the server remember. See prune.c. */
#ifndef KILN_MOUNT_PRUNE_H
#define KILN_MOUNT_PRUNE_H

#include "mount/server.h"

/* Between mounting and the first request that is served. */
void prune_start(struct mount_server *s);
/* While requests are still served: it asks no more of the kernel. */
void prune_stop(struct mount_server *s);
/* When none is served any more. */
void prune_free(struct mount_server *s);
/* There may be more than there should be: have that seen to. Cheap, and doesn't wait. */
void prune_look(struct mount_server *s);

#endif
