/* Persistent counters: names by their index in the superblock's section (01 appendix B, 12 appendix B). */
#ifndef KILN_FORMAT_COUNTER_IDS_H
#define KILN_FORMAT_COUNTER_IDS_H

enum { COUNTER_NR_1_4 = 79, COUNTER_NR_KNOWN = 136 };

/* Some were renamed later: @version of the superblock decides. NULL for unknown ones. */
const char *counter_name(unsigned index, unsigned version);

#endif
