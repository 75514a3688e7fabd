/*
 * Reading the journal (03 §4, §7.3, §10; 12 §5): which entries count, and what they say.
 *
 * The outcome is a `struct journal_state`: btree roots, counters, and for an unclean filesystem the entries to replay
 * in ascending order. Nothing is written.
 */
#ifndef KILN_JOURNAL_JOURNAL_READ_H
#define KILN_JOURNAL_JOURNAL_READ_H

#include "format/btrees.h"
#include "format/jset.h"
#include "super/super.h"

/* One copy of an entry on a device. */
struct journal_location {
	uint8_t dev;
	uint32_t ring_idx; /* index in the device's ring */
	uint64_t bucket;
	uint32_t offset_sectors; /* in the bucket */
	bool is_csum_good;
};

enum { JOURNAL_LOCATIONS_MAX = 4 };

/*
 * An entry found. @jset is decrypted if it was good, and its jset_bytes() lie in memory in any case; the memory belongs
 * to the journal_state.
 */
struct journal_entry {
	struct jset_disk *jset;
	bool is_csum_good; /* some copy was good, and that is the one at jset */
	bool is_ignored;   /* not to be replayed: blacklisted, below last_seq, after the last flush */
	bool is_blacklisted;
	unsigned location_nr;
	struct journal_location locations[JOURNAL_LOCATIONS_MAX];
};

struct btree_root {
	bool exists;
	bool is_damaged; /* there was a root, but its key is invalid (error 58) */
	uint8_t level;
	struct bkey key;
	uint8_t value[BKEY_VALUE_U64S_MAX * 8];
};

struct seq_range {
	uint64_t start, end; /* [start, end) */
};

struct journal_state {
	bool was_clean;		       /* state comes from the clean section */
	bool is_from_stale_clean;      /* no usable flush entry: clean section plus what follows it (03 §4.4) */
	uint64_t seq_highest;	       /* H: highest found at all, 0 none */
	uint64_t seq_flushed;	       /* F: newest good flush entry, or the clean section's journal_seq */
	uint64_t seq_last;	       /* L: first to replay */
	uint64_t seq_next;	       /* what a writer would use next */
	struct journal_entry *entries; /* ascending seq; every entry found, when everything was asked for */
	size_t entry_nr;
	struct btree_root roots[BTREE_NR_MAX];
	uint64_t nr_inodes, key_version, reserved[4];
	bool has_usage; /* usage entries were there (1.4; not from 1.9 on) */
	uint64_t io_clock[2];
	struct seq_range *missing; /* holes: entries that should be there */
	size_t missing_nr;
	struct seq_range *blacklist; /* from the superblock */
	size_t blacklist_nr;
	struct seq_range *rewinds; /* unfinished rewinds (12 §5.3): entries in [start, end) are to be undone */
	size_t rewind_nr;
	const struct super *super; /* where it was read from; must outlive the state */
};

struct journal_read_opts {
	bool read_all;		   /* keep every entry found (list-journal), and read although clean */
	uint64_t memory_max_bytes; /* of entries kept; 0: no bound */
};

/*
 * Read the state. Bad and missing entries are reported; reading goes on with what is there (is_damaged roots and
 * missing ranges tell what that means). Fails with -KILN_E_UNSUPPORTED (versions, missing features of an unclean
 * filesystem, unfinished rewind without overwrites), -KILN_E_INVALID (dirty, and no journal at all), -ENOMEM.
 */
int journal_read(const struct super *s, const struct journal_read_opts *opts, struct journal_state **state);
void journal_state_free(struct journal_state *state);

/*
 * Call @fn for every key that recovery would replay: what the btree room lays over the nodes. Keys are valid for their
 * btree and level; those that aren't are reported (errors 15-18) and left out. Of several keys at one (btree, level,
 * position) the one with the highest (seq of @e->jset, @offset_words) counts; keys don't come in that order. Accounting
 * keys (btree 20) are deltas that all count.
 *
 * Of @e only what orders it may be used, the header at @e->jset. @key lies in memory of the state. A non-zero result of
 * @fn stops the walk and is returned.
 */
int journal_for_each_key(const struct journal_state *state,
			 int (*fn)(void *ctx, const struct journal_entry *e, uint32_t offset_words, unsigned btree_id,
				   unsigned level, const struct bkey_disk *key),
			 void *ctx);

bool journal_seq_is_blacklisted(const struct journal_state *state, uint64_t seq);

#endif
