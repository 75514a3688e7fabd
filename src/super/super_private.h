/* Private to the super room: devices as they are opened, before it is known which of them count. */
#ifndef KILN_SUPER_SUPER_PRIVATE_H
#define KILN_SUPER_SUPER_PRIVATE_H

#include "super/super.h"

/* A device that was given or found, with its best superblock copy. */
struct super_candidate {
	struct device *dev;
	struct sb_disk *sb;
	bool is_found;	 /* by scanning, not named by the user: problems with it are no errors */
	bool is_dropped; /* doesn't take part: stale, split brain, removed */
};

struct super_candidates {
	struct super_candidate *v;
	size_t nr;
};

/*
 * Find out which candidates belong together (01 §10.1). Sets is_dropped, reports every disagreement; *@master is the
 * index of the device whose superblock counts. May be called again after candidates were added.
 */
int super_candidates_agree(struct super_candidates *c, const struct report_sink *reports, size_t *master);

/* What the user accepts: members missing, and data missing with them. */
bool super_accepts_degraded(const struct super_open_opts *opts);
bool super_accepts_very_degraded(const struct super_open_opts *opts);

/* Members that should be there and aren't (01 §10.2, 10 §8). */
bool super_member_is_missing(const struct super *s, unsigned idx);

/*
 * Are enough devices online? 0, or -ENODEV with reports that name what is missing and say which option would help.
 * Sets s->is_degraded.
 */
int super_check_enough_devices(struct super *s, const struct super_open_opts *opts);

#endif
