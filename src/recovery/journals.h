/*
 * Journals that are too small for what is to be written (super_journal_bucket_min()): others make such ones for nodes
 * of few blocks. They get more buckets, once and for good.
 *
 * The order: zeroes in the new buckets, durably, as files may hold what looks like entries; the superblock, from when
 * on nobody else gets them; the ring in memory, in which they are free at once. That they are the journal's is said in
 * their alloc keys by a pass that runs at every mount (allocator_mark_device()), and made durable soon. So wherever it
 * ends in between, the next mount goes on; only a checker that looks first says that these keys are missing.
 */
#ifndef KILN_RECOVERY_JOURNALS_H
#define KILN_RECOVERY_JOURNALS_H

#include "alloc/allocator.h"
#include "journal/journal.h"
#include "super/super.h"

/*
 * Of each device that is written, as far as there is space: between the start of the journal and anything that goes to
 * it, so that replay has it, too. *@has_grown: after the passes the journal should be flushed. 0, also where none could
 * be had, or an error after which nothing can be written.
 */
int journals_grow(struct super *s, struct journal *journal, struct allocator *a, const struct log_sink *log,
		  bool *has_grown);

#endif
