/* Says now and then, while something takes long, that it does. */
#ifndef KILN_MOUNT_WATCHDOG_H
#define KILN_MOUNT_WATCHDOG_H

#include <stdint.h>

struct watchdog;

/*
 * Call @tell after ten seconds, and again and again until it is stopped, less and less often. From a task of its own,
 * which must not be in the way of what is watched. NULL, when memory or threads are short: then nobody tells.
 */
struct watchdog *watchdog_start(void (*tell)(void *ctx, uint64_t waited_s), void *ctx);
/* NULL is allowed. */
void watchdog_stop(struct watchdog *w);

#endif
