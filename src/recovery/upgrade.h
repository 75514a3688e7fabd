/*
 * What upgrades from 1.0, 1.1 and 1.2 have to make, which those versions didn't have (09 §1): it follows from what is
 * there. Each may be run again after a crash.
 */
#ifndef KILN_RECOVERY_UPGRADE_H
#define KILN_RECOVERY_UPGRADE_H

#include "recovery/passes.h"

/*
 * Before anything is written: is there what upgrading builds upon? What is wrong is reported, and needs repair; then
 * *@pass is the one (enum pass_id) that would do it, else PASS_ID_NR_MAX. 0 or an error. @trees may have the journal's
 * keys over them.
 */
int upgrade_check(const struct super *super, struct journal_state *journal, struct btrees *trees,
		  const struct report_sink *reports, unsigned *pass);

/* 1.1: depth and skip list of every snapshot. */
int upgrade_snapshots(struct recovery *r);
/* 1.2: the list of inodes that have no name. */
int upgrade_deleted_inodes(struct recovery *r);
/* 1.3: the list of extents that are not where or as options of the background want them: by asking for a scan. */
int upgrade_rebalance_work(struct recovery *r);

#endif
