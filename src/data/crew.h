/*
 * Helping hands for work that is all computing: one task has many pieces of it, and every core takes some.
 *
 * The helpers are as many as there are cores besides the caller's, and start when there is work for the first time.
 * Without any, the caller does it all.
 */
#ifndef KILN_DATA_CREW_H
#define KILN_DATA_CREW_H

#include <stdbool.h>

#include "base/sync.h"

enum { CREW_HELPERS_MAX = 15 };

struct crew_job;

struct crew {
	struct mutex lock;
	struct waitq work;     /* for helpers */
	struct waitq done;     /* for callers */
	struct crew_job *jobs; /* with pieces that nobody has taken; the oldest first */
	struct waitq slot;     /* for crew_slot_take() */
	unsigned slots_nr, slots_taken;
	struct task *helpers[CREW_HELPERS_MAX];
	unsigned helper_nr;
	bool is_started, must_stop;
};

void crew_init(struct crew *c);
/* Nobody is in crew_run(). Switch point. */
void crew_destroy(struct crew *c);
/*
 * Have @fn(@ctx, i) done for each i below @nr, at the same time and in any order, and wait for the last. It must not
 * wait for anything but a slot. Switch point.
 */
void crew_run(struct crew *c, unsigned nr, void (*fn)(void *ctx, unsigned i), void *ctx);
/*
 * For what needs much memory while it computes, up to 17 MiB for the highest levels of zstd: no more at once than there
 * are cores, however many tasks there are. Between the two nothing is waited for. Switch point.
 */
void crew_slot_take(struct crew *c);
void crew_slot_give(struct crew *c);

#endif
