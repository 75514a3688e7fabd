/*
 * Who overwrites data where it is, and who moves it elsewhere (06 §9.8): never both in one bucket.
 *
 * A lock for each bucket, of which a table stands for all: it is held either to *update* what is in the bucket or to
 * *copy* it, by any number of tasks. All that a task needs it takes at once, holding none while it waits. Who updates
 * waits for nothing but devices (and nodes to be read) before he lets go; who copies may wait for space. A task that
 * waits to copy keeps new updates from beginning, so it gets its turn.
 */
#ifndef KILN_DATA_BUCKET_LOCKS_H
#define KILN_DATA_BUCKET_LOCKS_H

#include <stddef.h>
#include <stdint.h>

#include "base/lock_order.h"
#include "base/sync.h"

enum { BUCKET_LOCK_NR = 1024 };
enum bucket_lock_mode { BUCKET_LOCK_UPDATE, BUCKET_LOCK_COPY };

struct bucket_locks {
	struct mutex lock; /* of what follows */
	struct waitq changed;
	uint32_t held[BUCKET_LOCK_NR][2]; /* by mode */
	uint32_t copies_wanted[BUCKET_LOCK_NR];
};

void bucket_locks_init(struct bucket_locks *l);
void bucket_locks_destroy(struct bucket_locks *l);
/* Where in the table a bucket is. */
uint16_t bucket_lock_place(unsigned dev, uint64_t bucket);
/* Places may be there several times. Switch points, both. */
void bucket_locks_take(struct bucket_locks *l, enum bucket_lock_mode mode, const uint16_t *places, size_t nr);
void bucket_locks_put(struct bucket_locks *l, enum bucket_lock_mode mode, const uint16_t *places, size_t nr);

#endif
