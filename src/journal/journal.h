/*
 * The journal, write side (03 §5-§7).
 *
 * Transactions append sub-entries to the open *entry*; the *writer*, one task, closes entries, completes them (roots
 * and counters), and writes them in order, one at a time. An entry is written when somebody waits for durability, when
 * it is full, or `journal_flush_delay` after it was opened. A *flush* entry is a durability point: all devices are
 * flushed before it, and it after; others (*noflush*) only count once a later flush entry is there.
 *
 * A *pin* says that an entry must stay replayable, because what it says is not yet in the btrees on disk. last_seq of
 * an entry is the oldest seq pinned when it is closed. *Reclaim*, another task, asks the holders of the oldest pins to
 * write back when the ring gets full.
 *
 * Who waits: journal_res_get() with JOURNAL_RES_TRY never does. Between getting a reservation and putting it nothing
 * may block. The writer waits for devices only, and for reservations under way. Reclaim calls the holders' flush
 * functions, which commit with WATERMARK_RECLAIM: a part of the ring is kept for these.
 *
 * Roots and counters of an entry are the state after it and nothing later. For roots the writer keeps a table that it
 * updates from the btree_root sub-entries of each entry as it writes it; counters come from the tail callback, which
 * folds what was given for that seq. Both happen in seq order.
 *
 * When a device fails to write its copy of an entry, it gets no entries any more, and the journal goes on with the
 * others as long as metadata_replicas_required allows. When the cache of one can't be flushed, nobody knows what of it
 * is lost: it is left for good (device_lost()) if everything is on others too. Any other failure is final:
 * journal_error() is set, waiters and later reservations get it (-EROFS for new ones), and no entry is written any
 * more.
 */
#ifndef KILN_JOURNAL_JOURNAL_H
#define KILN_JOURNAL_JOURNAL_H

#include "base/job.h"
#include "base/sync.h"
#include "base/watermark.h"
#include "format/jset.h"
#include "journal/journal_read.h"
#include "super/super.h"

struct journal;

/* --- opening --- */

struct journal_ops {
	/*
	 * Append what follows the roots in every entry (03 §5.1 step 3: usage, data_usage, dev_usage, clock) to @at, of
	 * which @max_u64s words may be used: the counters after all transactions of entries up to @seq. Called by the
	 * writer in seq order, once per entry, noflush ones included. Returns the words used.
	 */
	unsigned (*tail)(void *ctx, uint64_t seq, void *at, unsigned max_u64s);
	/* At most this many words: reserved in each entry. */
	unsigned (*tail_u64s_max)(void *ctx);
	/* An entry that went to exactly these devices is about to be written: see that the superblock says so, durably.
	 */
	int (*replicas_mark)(void *ctx, const uint8_t *devs, unsigned dev_nr);
	/*
	 * The cache of this device could not be flushed, so what it was given since the last flush may be lost. 0: it
	 * has been seen to, durably, that nothing depends on it any more; else an error. NULL: everything does.
	 */
	int (*device_lost)(void *ctx, unsigned dev);
	/* A flush entry with this seq is durable. Must not block; for waiting buckets. */
	void (*flushed)(void *ctx, uint64_t seq);
	/* Journal died: the filesystem goes read-only. Called once. */
	void (*failed)(void *ctx, int err);
	void *ctx;
};

struct journal_opts {
	struct super *super;
	const struct journal_state *state; /* as read at mount; only looked at during journal_start() */
	uint64_t seq_next;		   /* first seq to write */
	uint64_t seq_pinned;		   /* oldest entry that is still to be replayed, or seq_next */
	struct journal_ops ops;
	const struct report_sink *reports;
};

/* Is there a ring of buckets that entries may go to, and is it large enough? Else journal_start() gives -ENOSPC. */
bool journal_can_be_written(const struct super *s);
/* Do the largest entries fit its buckets? Else *@bytes says what these have, and *@needed what they should. */
bool journal_entries_fit(const struct super *s, uint64_t *bytes, uint64_t *needed);
/*
 * Start the journal: find the place behind the newest entry of each device (whatever the clean section says: 03 §13.1),
 * start the writer and reclaim tasks. The first entry will be a flush entry. The superblock must say dirty already,
 * with [F+1, seq_next) blacklisted if that isn't empty. Entries from seq_pinned on stay pinned until
 * journal_replay_done(). 0 or an error.
 */
int journal_start(const struct journal_opts *opts, struct journal **journal);
/*
 * The device's ring gets these buckets on top, durably, and they are free at once; @more is what the superblock says of
 * nobody else, and nothing in them may look like an entry. Before the first reservation. 0, or an error of
 * super_journal_set(), after which the ring is as it was.
 */
int journal_ring_grow(struct journal *j, unsigned dev, const struct sb_journal_range *more, size_t more_nr);
/* How many buckets it has; 0 if it gets no entries. */
unsigned journal_ring_bucket_nr(struct journal *j, unsigned dev);
/* Replay has put what entries before seq_next say into btree nodes, which hold pins of their own now. */
void journal_replay_done(struct journal *j);
/*
 * Write a last entry: flush, empty, last_seq = seq. Nothing may be pinned and nobody commit. *@seq is its number;
 * @roots and the tail words are what it says, for the clean section (03 §7.2). Stops the tasks; only journal_free()
 * may follow.
 */
int journal_stop_clean(struct journal *j, uint64_t *seq);
/* Roots and tail of the last entry written, as sub-entries: @roots[i] words, for the superblock's clean section. */
const void *journal_last_roots(const struct journal *j, unsigned *u64s);
const void *journal_last_tail(const struct journal *j, unsigned *u64s);
/* Stop without writing anything any more: after an error, or to simulate a crash. */
void journal_abort(struct journal *j);
/* Nothing is written any more: who waits for space is told -EROFS. Any context that may take a lock. */
void journal_refuse(struct journal *j);
void journal_free(struct journal *j);

/* --- reservations --- */

struct journal_res {
	uint64_t seq;
	uint32_t buf;  /* which of the entries in memory */
	uint32_t at;   /* word in it */
	uint32_t u64s; /* reserved */
	uint32_t used; /* so far */
};

enum journal_res_flags {
	JOURNAL_RES_TRY = 1, /* don't wait: -EAGAIN when there is no room now */
};

/*
 * Room for @u64s words in the open entry, all in one entry. @watermark: when space is short only RECLAIM gets in.
 * 0; -EAGAIN (only with TRY; then journal_res_wait()); -E2BIG more than an entry can ever hold; -EROFS after an error.
 * The hot path is one compare-and-swap. Switch point without TRY.
 */
int journal_res_get(struct journal *j, struct journal_res *res, unsigned u64s, enum watermark watermark,
		    unsigned flags);
/* Wait, with no lock held, until it is worth trying again. 0 or -EROFS. */
int journal_res_wait(struct journal *j, unsigned u64s, enum watermark watermark);
/* Are those with this watermark let in now? Also true after an error, which they get then. */
bool journal_admits(struct journal *j, enum watermark watermark);
/* From here on no reservation is in an entry that is open now: its tail has room for what was known when it was opened.
 */
void journal_entry_close(struct journal *j);
/*
 * Append a sub-entry to the reservation: @payload_u64s words of which the caller fills in all. Returns where the
 * payload goes. Asserts that there is room.
 */
void *journal_res_add(struct journal *j, struct journal_res *res, unsigned type, unsigned btree_id, unsigned level,
		      unsigned payload_u64s);
/* A sub-entry with one unpacked key. */
void journal_res_add_key(struct journal *j, struct journal_res *res, unsigned type, unsigned btree_id, unsigned level,
			 const struct bkey *k, const void *value);
static inline unsigned journal_key_u64s(const struct bkey *k) { return 1 + BKEY_U64S + k->value_u64s; }
/* Done: unused words become empty sub-entries. What the entry says may be written from now on. */
void journal_res_put(struct journal *j, struct journal_res *res);

/* --- durability --- */

/* The seq that a reservation would get now. */
uint64_t journal_seq(const struct journal *j);
/* Newest flush entry that is durable. */
uint64_t journal_seq_flushed(const struct journal *j);
/*
 * Wait until everything up to @seq is durable: an entry >= seq written as a flush entry. Concurrent callers share one.
 * 0 or the journal's error. Switch point.
 */
int journal_flush_seq(struct journal *j, uint64_t seq);
/* All that was committed before the call. */
int journal_flush(struct journal *j);
/* Start a flush of @seq and don't wait. */
void journal_flush_async(struct journal *j, uint64_t seq);
/* 0, or why the journal died. */
int journal_error(const struct journal *j);

/* --- pins --- */

/*
 * Holds entry @seq (and so all after it). @flush is called by reclaim, without locks, to make the holder let go; it may
 * only start that and return; it is called again later. Dropping and moving wait for such a call to end, so that a pin
 * can be freed afterwards: the function must not wait for what those who drop the pin hold, or do. The pin's owner
 * guards against races between adding and dropping it; the journal has a lock of its own inside.
 */
struct journal_pin {
	uint64_t seq; /* 0: holds nothing */
	void (*flush)(struct journal *j, struct journal_pin *pin, uint64_t seq);
	struct journal_pin *next, *prev;
};

/* Pin @seq, which the caller holds by a reservation or another pin. If @pin holds an older one already: nothing. */
void journal_pin_add(struct journal *j, struct journal_pin *pin, uint64_t seq,
		     void (*flush)(struct journal *, struct journal_pin *, uint64_t));
void journal_pin_drop(struct journal *j, struct journal_pin *pin); /* nothing when it holds none */
/* Move what @from holds to @to (which takes the older of both); @from holds nothing then. */
void journal_pin_move(struct journal *j, struct journal_pin *to, struct journal_pin *from,
		      void (*flush)(struct journal *, struct journal_pin *, uint64_t));
/* Is @seq or anything before it pinned by somebody (open entries don't count)? */
bool journal_is_pinned(struct journal *j, uint64_t seq);
/*
 * Have all pins of entries <= @seq flushed, and wait until none is left. For shutdown and tests. 0 or the error.
 * Returns the number of pins that were flushed in *@flushed (may be NULL).
 */
int journal_flush_pins(struct journal *j, uint64_t seq, uint64_t *flushed);

/* --- state, for `status` and tests --- */

struct journal_usage {
	uint64_t seq, seq_flushed, last_seq, last_seq_ondisk;
	uint64_t entries_written, flushes, bytes_written, reservations_waited;
	uint64_t buckets_free, buckets_total, buckets_for_reclaim; /* of the fullest device */
	bool is_space_low;
};
void journal_usage(struct journal *j, struct journal_usage *usage);
/* Add what its background does to @list. */
void journal_jobs(struct journal *j, struct job_list *list);

#endif
