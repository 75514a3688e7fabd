/*
 * Recovery passes: what is done, in which order, between reading a filesystem's superblocks and letting users change it
 * (09 §4-§6).
 *
 * One table, in order. The place in it is the pass's number; the stable id (format/pass_ids.h) is what superblocks
 * store. When a pass runs is in its row; all run when the upgrade from an older version asks for them. Filesystems
 * whose superblocks ask for passes need repair, and open read-only.
 *
 * Opening read-only runs none of these: the journal lies over the btrees, and what a pass would finish is shown as it
 * is. All passes here run while the filesystem is writable already but nobody else uses it.
 */
#ifndef KILN_RECOVERY_PASSES_H
#define KILN_RECOVERY_PASSES_H

#include "alloc/allocator.h"
#include "data/write.h"
#include "format/pass_ids.h"
#include "journal/journal.h"
#include "namespace/change.h"
#include "super/super.h"

/* What passes work on: the rooms, opened and writable. */
struct recovery {
	struct super *super;
	struct btrees *trees;
	struct journal *journal;
	const struct journal_state *state;
	struct allocator *allocator;
	struct data *data;
	struct namespace *ns;
	const struct report_sink *reports;
	const struct log_sink *log;
	uint64_t requested; /* bit per stable id: must run, whatever the table says */
};

/*
 * When a pass runs that nobody asks for (01 appendix C). Upstream has one more, after unclean shutdowns; the one pass
 * of that kind, delete_dead_inodes, is always run here.
 */
enum recovery_when {
	RECOVERY_ALWAYS,
	RECOVERY_CHECK,	    /* when everything is checked: not when mounting */
	RECOVERY_ON_DEMAND, /* never */
};

struct recovery_pass {
	enum pass_id id;
	enum recovery_when when;
	/*
	 * 0 or an error, which ends recovery. NULL: what the pass does is part of opening (the comment in the table
	 * says where), or of the checker (recovery/check.h), which doesn't run at mount.
	 */
	int (*run)(struct recovery *r);
};

/* The row of a pass, NULL for ids that aren't known. */
const struct recovery_pass *recovery_pass(unsigned id);

/* Run what must run, in the table's order. 0, or the first error; then the filesystem must not be used read-write. */
int recovery_run(struct recovery *r);

/*
 * What upgrading from @from (VERSION_UPGRADE_COMPLETE) to 1.4 asks for (09 §1): bits of passes that must run. 0 where
 * nothing but the number changes.
 */
uint64_t recovery_upgrade_passes(unsigned from);

#endif
