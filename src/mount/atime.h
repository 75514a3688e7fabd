/* Times of access that are written later: see atime.c. NULL is allowed for all, and stands for "they don't change". */
#ifndef KILN_MOUNT_ATIME_H
#define KILN_MOUNT_ATIME_H

#include <stdbool.h>

#include "kiln/kiln.h"
#include "mount/mount.h"

struct atimes;

/* NULL when memory is short. */
struct atimes *atimes_new(kiln_fs *fs, enum mount_atime mode);
/* Which reads count from now on. Those that were noted before do, as they would now or with relatime. */
void atimes_set_mode(struct atimes *atimes, enum mount_atime mode);
/* Write all, and from then on only when asked to. */
void atimes_stop(struct atimes *atimes);
void atimes_free(struct atimes *atimes);

/* An object is being read. Before the answer: who asks then for its attributes hears of it. */
void atimes_note(struct atimes *atimes, struct kiln_node node);
/* atime of an object that has been looked at, with what isn't written yet. */
struct kiln_timespec atimes_show(struct atimes *atimes, const struct kiln_stat *st);
/* Reads before now don't count: its atime is about to be set, or it is gone. */
void atimes_forget(struct atimes *atimes, struct kiln_node node);
/* Write all to the inodes; it is not durable then. */
void atimes_write(struct atimes *atimes);

#endif
