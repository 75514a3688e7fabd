/*
 * Shortening the list of sequence numbers that are never used (03 §6).
 *
 * Every crash adds a range to it, and a superblock has room for only so many. A range is needed as long as there is
 * something that must be ignored because its number is in it: an entry of the journal that a reader might look at, or a
 * set in a node that something leads to. So when the list has become long, all nodes are looked at, and ranges are
 * dropped that none of their sets is in.
 */
#ifndef KILN_RECOVERY_BLACKLIST_H
#define KILN_RECOVERY_BLACKLIST_H

#include "btree/btree.h"
#include "journal/journal.h"
#include "super/super.h"

/*
 * Drop what isn't needed any more, if the list is long: before anything else is written, with the journal lying over
 * the trees as it was read. If a node, or one of its copies, can't be read, all ranges stay. 0, or an error of writing
 * the superblocks.
 */
int blacklist_collect(struct super *s, struct btrees *trees, const struct journal_state *state);
/*
 * What of a long list is left because the journal isn't past it: have what was replayed written back, so that the
 * entries of today say that they are, and the next opening can drop it. After replay. 0 or the journal's error.
 */
int blacklist_outgrow(struct super *s, struct journal *journal, const struct journal_state *state);

#endif
