/* Private to the journal room: what a scan of the rings found, and the steps that make a journal_state of it. */
#ifndef KILN_JOURNAL_JOURNAL_PRIVATE_H
#define KILN_JOURNAL_JOURNAL_PRIVATE_H

#include "format/error_ids.h"
#include "journal/journal_read.h"

/* One copy of an entry, as seen while scanning: enough to decide without keeping the entry itself. */
struct journal_found {
	uint64_t seq, last_seq;
	uint64_t hash; /* of the bytes as stored: do copies agree? */
	uint64_t bucket;
	uint32_t ring_idx;
	uint32_t offset_sectors;
	uint32_t bytes; /* cut at the end of the bucket */
	uint8_t dev;
	bool is_csum_good, is_noflush;
};

/* All copies found, by ascending seq; of one seq the good ones first. Copies of one seq are a *group*. */
struct journal_scan {
	struct journal_found *found;
	size_t nr, capacity;
};

/*
 * Read the rings of all online devices. Copies that can't be an entry of this journal (a seq far from all others) are
 * left out. 0, -ENOMEM.
 */
int journal_scan_devices(const struct super *s, struct journal_scan *scan);
void journal_scan_free(struct journal_scan *scan);

/* First copy behind the group that starts at @i; first copy of the group that ends before @end > 0. */
size_t journal_group_end(const struct journal_scan *scan, size_t i);
size_t journal_group_begin(const struct journal_scan *scan, size_t end);

/*
 * Read a whole journal bucket into @buf (bucket size). Parts that can't be read are zero, and reported to @reports.
 */
void journal_bucket_read(const struct super *s, unsigned dev, uint64_t bucket, void *buf,
			 const struct report_sink *reports);

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

/* Take roots, counters and clocks from sub-entries; what came before is replaced. @where names them in reports. */
int journal_apply(struct journal_state *state, struct jset_walk walk, const char *where);

/* Unfinished rewinds among the entries to replay (12 §5.3): fill in state->rewinds. */
int journal_rewinds_find(struct journal_state *state);
/* Is @seq in a rewound range? */
bool journal_seq_is_rewound(const struct journal_state *state, uint64_t seq);

/* Report about the journal as a whole, or the entries named by @position. */
void journal_report(const struct journal_state *state, enum report_level level, unsigned id, const char *position,
		    const char *expected, const char *found, const char *advice);

#endif
