/* Private to the journal room: what a scan of the rings found, and the steps that make a journal_state of it. */
#ifndef KILN_JOURNAL_JOURNAL_PRIVATE_H
#define KILN_JOURNAL_JOURNAL_PRIVATE_H

#include "format/error_ids.h"
#include "journal/journal_read.h"

/* All copies found, by ascending seq; of one seq the good ones first. Copies of one seq are a *group*. */
struct journal_scan {
	struct journal_location *found;
	size_t nr, capacity;
	uint64_t memory_max_bytes; /* 0: no bound */
};

/*
 * Read the rings of all online devices. Copies that can't be an entry of this journal (a seq far from all others) are
 * left out. @memory_max_bytes: of the index that can be made of it. 0, -ENOMEM.
 */
int journal_scan_devices(const struct super *s, uint64_t memory_max_bytes, struct journal_scan *scan);
void journal_scan_free(struct journal_scan *scan);

/*
 * The newest entry of each bucket of a scan, good or not, and if it is bad the newest good one too. *@newest is
 * malloc'ed. 0 or -ENOMEM.
 */
int journal_scan_newest(const struct super *s, const struct journal_scan *scan, struct journal_location **newest,
			size_t *nr);
/*
 * The same without reading all of the journal: of each bucket the first block, and all of the one with the newest
 * entries. For the others, the seq is an upper bound, and where the entry lies isn't said. What is further than can be
 * from @seq_near is left out. For filesystems that were shut down cleanly.
 */
int journal_scan_heads(const struct super *s, uint64_t seq_near, struct journal_location **newest, size_t *nr);

/* First copy behind the group that starts at @i; first copy of the group that ends before @end > 0. */
size_t journal_group_end(const struct journal_scan *scan, size_t i);
size_t journal_group_begin(const struct journal_scan *scan, size_t end);

/*
 * Read a range that can't be read in one piece in small ones. Those that can't be read either are zero; returns their
 * number. After too many of them the rest is given up, and zero.
 */
unsigned journal_pieces_read(struct device *dev, uint64_t offset_bytes, void *buf, size_t bytes);

/* What is to be replayed. */
struct journal_choice {
	bool has_flush;
	uint64_t flushed; /* F */
	uint64_t last;	  /* L */
};

/* Find F and L (03 §4.3). Sets state->seq_highest. */
struct journal_choice journal_choose_flushed(struct journal_state *state, const struct journal_scan *scan);
/* The longest unbroken run of good entries from @from on (or, @from 0, up to the newest good one); false: none at all.
 */
bool journal_choose_run(const struct journal_state *state, const struct journal_scan *scan, uint64_t from,
			struct journal_choice *choice);

/* Blacklist (03 §6): from the superblock; and the legacy way to extend it. */
int journal_blacklist_load(struct journal_state *state);
int journal_blacklist_append(struct journal_state *state, uint64_t start, uint64_t end);

/* First seq from @seq on that isn't blacklisted. */
uint64_t journal_seq_skip_blacklisted(const struct journal_state *state, uint64_t seq);

/* Append what of [start, end) isn't blacklisted to state->missing. */
int journal_missing_add(struct journal_state *state, uint64_t start, uint64_t end);
/* Put a single seq in its place in state->missing. */
int journal_missing_insert(struct journal_state *state, uint64_t seq);

/* Take roots, counters and clocks from sub-entries; what came before is replaced. @where names them in reports. */
int journal_apply(struct journal_state *state, struct jset_walk walk, const char *where);

/* An unfinished rewind that an entry to replay asks for (12 §5.3): add it to state->rewinds. */
int journal_rewinds_find(struct journal_state *state, const struct jset_disk *jset);
/* Is @seq in a rewound range? */
bool journal_seq_is_rewound(const struct journal_state *state, uint64_t seq);

/* Report about the journal as a whole, or the entries named by @position. */
void journal_report(const struct journal_state *state, enum report_level level, unsigned id, const char *position,
		    const char *expected, const char *found, const char *advice);

#endif
