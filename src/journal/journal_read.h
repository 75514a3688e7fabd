/*
 * Reading the journal (03 §4, §7.3, §10; 12 §5): which entries count, and what they say.
 *
 * The outcome is a `struct journal_state`: btree roots, counters, and for an unclean filesystem an index of the entries
 * to replay, in ascending order. Nothing is written.
 *
 * The entries themselves, which may be gigabytes, stay on the devices: whoever wants to know what they say walks over
 * them, and each is read again when its turn comes. What has gone bad in between is reported once and missing from
 * there on, like what was bad from the start. One task at a time may walk over the entries of a state.
 */
#ifndef KILN_JOURNAL_JOURNAL_READ_H
#define KILN_JOURNAL_JOURNAL_READ_H

#include "format/btrees.h"
#include "format/jset.h"
#include "super/super.h"

/* One copy of an entry on a device, as it was seen when the journal was scanned. */
struct journal_location {
	uint64_t seq, last_seq;
	uint64_t hash; /* of the bytes as stored: do copies agree, is it still the same? */
	uint64_t bucket;
	uint32_t ring_idx;	 /* index in the device's ring */
	uint32_t offset_sectors; /* in the bucket */
	uint32_t bytes;		 /* cut at the end of the bucket */
	uint32_t version;
	uint8_t dev;
	bool is_csum_good, is_noflush, has_overwrites;
};

/* An entry found. Its copies belong to the journal_state; good ones come first. */
struct journal_entry {
	uint64_t seq;
	struct journal_location *locations;
	unsigned location_nr;
	bool is_csum_good; /* some copy is good */
	bool is_ignored;   /* not to be replayed: blacklisted, below last_seq, after the last flush */
	bool is_blacklisted;
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

/* Seqs skipped after an unclean shutdown (03 §10). */
enum { JOURNAL_SEQ_MARGIN = 8 };

struct journal_state {
	bool was_clean;		       /* state comes from the clean section */
	bool is_from_stale_clean;      /* no usable flush entry: clean section plus what follows it (03 §4.4) */
	uint64_t seq_highest;	       /* H: highest found at all, 0 none */
	uint64_t seq_flushed;	       /* F: newest good flush entry, or the clean section's journal_seq */
	uint64_t seq_last;	       /* L: first to replay */
	uint64_t seq_next;	       /* what a writer would use next */
	struct journal_entry *entries; /* ascending seq; every entry found, when everything was asked for */
	size_t entry_nr;
	struct journal_location *locations; /* of the entries, in their order */
	struct btree_root roots[BTREE_NR_MAX];
	uint64_t nr_inodes, key_version, reserved[4];
	bool has_usage; /* usage entries were there (1.4; not from 1.9 on) */
	/* Of the other counters of 1.4: is it there, bit per number of replicas, bit per member. */
	bool has_key_version;
	unsigned has_reserved;
	uint64_t has_dev_usage;
	uint64_t io_clock[2];
	struct seq_range *missing; /* holes, ascending: entries that should be there */
	size_t missing_nr;
	struct seq_range *blacklist; /* from the superblock */
	size_t blacklist_nr;
	struct seq_range *rewinds; /* unfinished rewinds (12 §5.3): entries in [start, end) are to be undone */
	size_t rewind_nr;
	/* If the rings were scanned: the newest entry of each bucket, good or not, and if it is bad the newest good
	 * one; in any order. */
	bool is_scanned;
	struct journal_location *bucket_newest;
	size_t bucket_newest_nr;
	const struct super *super; /* where it was read from; must outlive the state */
};

struct journal_read_opts {
	bool read_all;		   /* index every entry found (list-journal), and read although clean */
	uint64_t memory_max_bytes; /* of the index, which has JOURNAL_INDEX_BYTES per copy at most; 0: no bound */
};
enum { JOURNAL_INDEX_BYTES = sizeof(struct journal_location) + sizeof(struct journal_entry) };

/*
 * Read the state. Bad and missing entries are reported; reading goes on with what is there (is_damaged roots and
 * missing ranges tell what that means). Fails with -KILN_E_UNSUPPORTED (versions, missing features of an unclean
 * filesystem, unfinished rewind without overwrites), -KILN_E_INVALID (dirty, and no journal at all), -ENOMEM.
 *
 * Memory besides the index: one journal bucket while scanning, and a journal_reader.
 */
int journal_read(const struct super *s, const struct journal_read_opts *opts, struct journal_state **state);
void journal_state_free(struct journal_state *state);

/*
 * Call @fn for every key that recovery would replay: what the btree room lays over the nodes. Keys are valid for their
 * btree and level; those that aren't are reported (errors 15-18) and left out. Of several keys at one (btree, level,
 * position) the one with the highest (@e->seq, @offset_words) counts; keys don't come in that order. Accounting keys
 * (btree 20) are deltas that all count.
 *
 * Of @e only what orders it may be used, its seq. @key is valid during the call. A non-zero result of @fn stops the
 * walk and is returned; so is -ENOMEM.
 */
int journal_for_each_key(struct journal_state *state,
			 int (*fn)(void *ctx, const struct journal_entry *e, uint32_t offset_words, unsigned btree_id,
				   unsigned level, const struct bkey_disk *key),
			 void *ctx);

/* Call @fn for every entry to be replayed, ascending, with what it says, which is valid during the call. As above. */
int journal_for_each_entry(struct journal_state *state,
			   int (*fn)(void *ctx, const struct journal_entry *e, const struct jset_disk *jset),
			   void *ctx);

/*
 * Reading entries one by one, best in ascending order: it reads ahead, at most 1 MiB in each of four devices, and an
 * entry larger than that by itself.
 */
struct journal_reader;
int journal_reader_open(struct journal_state *state, struct journal_reader **reader);
void journal_reader_close(struct journal_reader *reader); /* NULL is allowed */
/*
 * Read @e, an entry of the state, from its first good copy. *@jset is valid until the next call, and its jset_bytes()
 * lie in memory in any case; it is verified and decrypted if @e->is_csum_good is true *afterwards*: a good entry that
 * isn't any more, or can't be read, has been reported, becomes a bad one that isn't replayed, and is added to
 * state->missing if it would have been. Of bad ones the bytes are given as far as they can be read. 0 or -ENOMEM.
 */
int journal_entry_load(struct journal_reader *reader, struct journal_entry *e, const struct jset_disk **jset);

/*
 * Are the counters there that each entry of 1.4 has (03 §5.1), of all members? One that isn't reads as 0, which is not
 * what it was. (A row of data_usage may be missing: what was marked in superblocks only is 0.)
 */
bool journal_has_counters(const struct journal_state *state);

/* Of ranges that ascend: the first one that ends above @seq, or @nr. */
size_t seq_ranges_find(const struct seq_range *ranges, size_t nr, uint64_t seq);
bool journal_seq_is_blacklisted(const struct journal_state *state, uint64_t seq);

#endif
