/*
 * What the files of the journal's write side share.
 *
 *   journal.c          starting, stopping, durability
 *   journal_res.c      reservations: the hot path
 *   journal_write.c    the writer: closing, completing and writing entries
 *   journal_space.c    rings: where the next entry goes, which buckets are free
 *   journal_grow.c     rings that get more buckets
 *   journal_pin.c      pins by seq, and last_seq
 *   journal_reclaim.c  the task that has pins let go
 *
 * Entries in memory. There are JOURNAL_BUF_NR buffers, used in turn: entry `seq` is in buffer seq % NR. At most one is
 * *open*; those before it are closed and wait for being written, in order, one in flight at a time.
 *
 * The state word says all that a reservation needs, so that getting one is one compare-and-swap:
 *
 *	[0,20)   words left in the open entry; JOURNAL_CLOSED when none is open
 *	[20,22)  its buffer
 *	[22,62)  for each buffer, how many reservations are under way in it
 *
 * It holds what is left, not what is used, so that nothing else must be looked at before the exchange: were the entry
 * replaced by another in the meantime, a reservation would be as good in that one.
 *
 * An open entry closes by setting the words to JOURNAL_CLOSED, after which its buffer's count only falls; at zero it
 * may be written. Everything else is guarded by `lock`.
 *
 * Space. An entry is opened with a bound on its size (content and what completes it) for which there certainly is a
 * place, the entries before it that wait counted in. One bucket of each ring is kept in hand for an entry whose
 *last_seq makes another one free; so the ring may be full of what is pinned, and yet goes on when the pins go.
 *
 * Lock order: `lock` is taken last, nothing is waited for while it is held but itself.
 */
#ifndef KILN_JOURNAL_JOURNAL_INTERNAL_H
#define KILN_JOURNAL_JOURNAL_INTERNAL_H

#include "base/sync.h"
#include "format/btrees.h"
#include "journal/journal.h"

enum {
	JOURNAL_BUF_NR = 4,
	JOURNAL_CLOSED = 0xfffff,
	JOURNAL_COUNT_BITS = 10,
	JOURNAL_COUNT_MAX = (1 << JOURNAL_COUNT_BITS) - 1,
	JOURNAL_ENTRY_BYTES_MIN = 64 << 10,
	JOURNAL_ENTRY_BYTES_MAX = 4 << 20,
	JOURNAL_SEQS_MAX = 32768,	   /* what next seq - last_seq is held below (03 §5.3), but after a crash */
	JOURNAL_REPLAY_SEQS_MAX = 1 << 16, /* to be replayed that are pinned each for itself; what is older is as one */
	JOURNAL_COPIES_MAX = 4,
	JOURNAL_GROUP_DEPTH_MAX = 64, /* what is deeper is no valid label */
};

static inline unsigned state_left(uint64_t s) { return (unsigned)(s & 0xfffff); }
static inline unsigned state_buf(uint64_t s) { return (unsigned)(s >> 20 & 3); }
static inline unsigned state_count_shift(unsigned buf) { return 22 + buf * JOURNAL_COUNT_BITS; }
static inline unsigned state_count(uint64_t s, unsigned buf)
{
	return (unsigned)(s >> state_count_shift(buf)) & JOURNAL_COUNT_MAX;
}

struct journal_buf {
	uint64_t seq; /* 0: free */
	struct jset_disk *data;
	uint32_t bytes;		/* allocated */
	uint32_t limit_u64s;	/* of sub-entries that reservations get */
	uint32_t reserved_u64s; /* header, roots and tail on top of them */
	uint32_t u64s;		/* that reservations got; set when it is closed */
	uint64_t last_seq;	/* fixed when it is closed */
	uint64_t opened_ns;
	bool is_bound_by_memory; /* a larger buffer would have had a higher limit */
	bool is_closed, must_flush;
};

struct journal_ring {
	unsigned dev, nr; /* nr 0: no journal here */
	uint32_t bucket_sectors;
	unsigned durability;
	bool is_usable; /* may get new entries */
	bool is_left;	/* the device's cache couldn't be flushed: it isn't used for anything any more */
	bool has_discard;
	/* Labels that the device has, from its own up: superblocks' sections move when others change them. */
	unsigned group_nr;
	uint32_t groups[JOURNAL_GROUP_DEPTH_MAX];
	uint64_t *bucket;	/* numbers, in ring order */
	uint64_t *bucket_seq;	/* highest seq in it */
	unsigned cur_idx;	/* being filled */
	uint32_t sectors_free;	/* left in it */
	unsigned discard_idx;	/* oldest that is still needed; those between cur_idx and it are free */
	unsigned discarded_idx; /* the writer's own: how far they have been discarded */
};

/* Pins of one seq: a ring through the members of `head`. */
struct journal_pin_list {
	struct journal_pin head;
};

struct journal_root {
	unsigned u64s; /* of `entry`; 0: no such btree */
	uint64_t entry[1 + BKEY_U64S_MAX];
};

struct journal {
	struct super *super;
	struct journal_ops ops;
	const struct report_sink *reports;
	uint64_t magic;
	unsigned csum_type;
	bool may_noflush;
	uint64_t flush_delay_ns, reclaim_delay_ns;

	uint64_t state;		/* atomic */
	unsigned watermark_min; /* atomic: lowest that is let in */
	int error;		/* atomic; set once, under lock */

	struct mutex lock;
	struct waitq changed;	 /* anything: entries opened or written, space, pins */
	struct waitq write_work; /* for the writer */
	struct waitq reclaim_work;
	struct waitq flush_done; /* `flushing` has changed */
	struct journal_buf buf[JOURNAL_BUF_NR];
	uint64_t seq_next;	  /* of the next entry to open */
	uint64_t seq_unwritten;	  /* oldest entry that is not written; seq_next: none */
	uint64_t seq_unplaced;	  /* oldest entry that has no place yet */
	uint64_t seq_flushed;	  /* newest flush entry that is durable */
	uint64_t last_seq_ondisk; /* its last_seq */
	uint64_t flush_wanted;	  /* entries up to here are to become durable */
	uint64_t flushed_ns;	  /* when the last flush entry was written */
	uint32_t entry_bytes;	  /* buffers get that much when they are used next */
	uint32_t entry_bytes_max; /* the smallest bucket that is written to, or JOURNAL_ENTRY_BYTES_MAX */
	unsigned unknown_root_nr; /* btrees with ids from BTREE_NR_1_4 on that have a root */
	bool is_stopping, is_space_low, is_first_due;

	struct journal_ring *rings;
	unsigned ring_nr;

	/* Pins: list of seq s at pins[s & (pin_nr - 1)], for s in [pin_front, seq_next). */
	struct journal_pin_list *pins;
	uint64_t pin_nr;
	uint64_t pin_front; /* last_seq of an entry that were closed now, if that is not below it */
	unsigned pin_waiters;
	uint64_t folded_front; /* the list of this seq stands for all from folded_seq on too; 0: none does */
	uint64_t folded_seq;
	uint64_t replay_seq;	      /* entries from here on are to be replayed; 0: done */
	struct journal_pin *flushing; /* whose flush function is running */
	const void *flushing_task;    /* in which task */

	/* The writer's own. */
	struct journal_root roots[BTREE_NR_MAX];
	uint64_t *last_roots, *last_tail;
	unsigned last_roots_u64s, last_tail_u64s, last_roots_max;

	struct task *writer, *reclaimer;
	struct job reclaim_job;
	struct journal_usage stats; /* counters of it */
};

/* --- journal_res.c --- */

/* Words of an entry that reservations don't get: header, roots and tail. */
unsigned journal_reserved_u64s(struct journal *j);
/* Close the open entry, if one is; lock held. */
void journal_entry_close_locked(struct journal *j);
/*
 * Open the next entry, with room for a reservation of @u64s, unless one is open; lock held. -EAGAIN when there is no
 * buffer or no space. @is_flush: without content, for durability or a new last_seq: a little room is enough.
 */
int journal_open_entry(struct journal *j, unsigned u64s, bool is_flush);
/* The same for an entry that is closed at once, and must be written as a flush entry. *@seq: which. */
int journal_open_flush_entry(struct journal *j, uint64_t *seq);
static inline bool journal_is_open(const struct journal *j)
{
	return state_left(__atomic_load_n(&j->state, __ATOMIC_ACQUIRE)) != JOURNAL_CLOSED;
}

/* --- journal_write.c --- */

void journal_writer_task(void *arg);
/* Set the error; lock held. */
void journal_fail(struct journal *j, int err);
/*
 * The same; and if it is the first, emit @report (NULL: none), and tell ops.failed: both without the lock, which is
 * held on entry and return.
 */
void journal_fail_tell(struct journal *j, int err, const struct report *report);

/* --- journal_space.c --- */

/* Copies without which an entry isn't durable, counted by durability of devices. */
unsigned journal_replicas_required(const struct journal *j);
int journal_rings_init(struct journal *j, const struct journal_state *state);
void journal_rings_free(struct journal *j);
/* Free what entries below last_seq_ondisk took; watermark and is_space_low follow. Lock held. */
void journal_space_update(struct journal *j);
/* Buckets of a ring that are left to reclaim: space is low when no more are free. */
unsigned journal_ring_low_nr(const struct journal *j, const struct journal_ring *r);
/* Would an entry with a new last_seq make a bucket free? Lock held. */
bool journal_space_would_free(struct journal *j);
/*
 * Bytes that the next entry may have at most, which needs @u64s all in all, and would like to have @u64s_liked. 0: it
 * can't be opened now. Lock held.
 */
uint32_t journal_space_next(struct journal *j, unsigned u64s, unsigned u64s_liked);
uint32_t journal_entry_sectors(const struct journal *j, uint64_t u64s);
/*
 * Places for an entry of @sectors; the rings' cursors move on. @last_seq: 0 of a noflush entry. 0, or -ENOSPC when
 * there are not as many as are required. Lock held.
 */
struct journal_place {
	struct journal_ring *ring;
	uint64_t sector; /* on the device */
};
int journal_space_place(struct journal *j, uint64_t seq, uint64_t last_seq, uint32_t sectors,
			struct journal_place *places, unsigned *place_nr);
/* Seq up to which pins should go so that half of each ring is free; 0: nothing to do. Lock held. */
uint64_t journal_space_reclaim_seq(struct journal *j);

/* --- journal_pin.c --- */

int journal_pins_init(struct journal *j);
void journal_pins_free(struct journal *j);
/* Make room for the list of @seq, which is seq_next. Lock held. */
int journal_pins_grow(struct journal *j, uint64_t seq);
/* Oldest seq that is pinned or not written, or @seq if nothing older is. Lock held. */
uint64_t journal_last_seq(struct journal *j, uint64_t seq);
/* Call the flush functions of pins up to @seq, each once. Lock held on entry and return. Returns their number. */
uint64_t journal_pins_ask(struct journal *j, uint64_t seq);
bool journal_has_pins(struct journal *j, uint64_t seq);

/* --- journal_reclaim.c --- */

void journal_reclaim_task(void *arg);

#endif
