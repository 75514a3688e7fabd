/*
 * The rings (03 §5.2, §5.6): where entries go, and which buckets are free.
 *
 * Of a ring, [discard_idx .. cur_idx] (cyclic) is in use; what lies behind cur_idx up to before discard_idx is free. A
 * bucket becomes free when all in it is below last_seq of the newest flush entry that is durable: nothing in memory
 * counts. One bucket is kept in hand for a flush entry that frees another.
 *
 * An entry can be opened when it is certain that it can be written, as often as metadata_replicas asks for: its size is
 * bounded when it is opened, and the entries before it that wait for being written are placed first, in thought, each
 * on every ring. So the journal is as full as the smallest ring that is needed for the copies. A ring without any space
 * left, not even in hand, isn't waited for: only an entry that is elsewhere can make some of it free.
 *
 * Space is low when fewer rings than there are to be copies have more than a quarter free, in small ones more, those
 * that wait counted in. Rings count for as many copies as the durability of their device.
 * From then on every entry is a flush entry, and new reservations are for reclaim only, whose commits let pins go.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/mutant.h"
#include "device/device.h"
#include "format/alloc.h"
#include "journal/journal_internal.h"
#include "journal/journal_private.h"
#include "super/format.h"

/* Of looking for places: in the target; anywhere; taking what is kept in hand, for as few copies as are required. */
enum { ROUND_TARGET, ROUND_ALL, ROUND_DESPERATE };

enum {
	TARGET_DEVS = 256, /* a target is a device + 1, or a label + 257 (10 §5.1) */
	RING_BUCKETS_MIN = 4,
	RECLAIM_SECTORS = 512, /* left to reclaim, */
	RECLAIM_EIGHTHS = 5,   /* but of no more than so much of the ring, or others would never get in */
	LOW_BUCKETS_MIN = 2,   /* of an entry opened above that, one in hand and one for reclaim are left */
};

/* --- starting --- */

static unsigned ring_free_nr(const struct journal_ring *r) { return (r->discard_idx + r->nr - r->cur_idx - 1) % r->nr; }

static bool member_is_usable(const struct super_member *m)
{
	return m->dev && !m->dev->is_readonly && m->m.state == MEMBER_RW && m->m.data_allowed & 1u << DATA_JOURNAL;
}

static void ring_groups_read(struct journal_ring *r, const struct super *s)
{
	unsigned group = s->members[r->dev].m.group;

	while (group && group <= sb_disk_group_nr(s->sb) && r->group_nr < JOURNAL_GROUP_DEPTH_MAX) {
		struct disk_group g;

		r->groups[r->group_nr++] = group;
		sb_disk_group(s->sb, group - 1, &g);
		group = g.parent;
	}
}

/* 0: none, or of a device that was cut off, where some may not be there. */
static unsigned ring_bucket_nr(const struct super_member *m)
{
	uint64_t nr = 0;

	if (!m->dev || !m->sb)
		return 0;
	for (unsigned i = 0; i < sb_journal_range_nr(m->sb); i++) {
		uint64_t start, n;

		sb_journal_range(m->sb, i, &start, &n);
		nr += n;
	}
	return nr > m->dev->size_bytes / ((uint64_t)m->m.bucket_sectors << SECTOR_SHIFT) || nr > UINT32_MAX
		       ? 0
		       : (unsigned)nr;
}

/* In smaller ones, taking what is kept in hand wouldn't mean that space is low. */
static bool ring_is_usable(const struct super_member *m)
{
	return member_is_usable(m) && m->m.durability && ring_bucket_nr(m) >= RING_BUCKETS_MIN;
}

static int ring_init(struct journal *j, struct journal_ring *r, unsigned dev)
{
	const struct super *s = j->super;
	const struct super_member *m = &s->members[dev];
	unsigned nr = ring_bucket_nr(m);

	*r = (struct journal_ring){ .dev = dev };
	if (!nr)
		return 0;
	r->nr = nr;
	r->bucket_sectors = m->m.bucket_sectors;
	r->durability = m->m.durability;
	r->has_discard = m->m.has_discard;
	ring_groups_read(r, s);
	r->is_usable = ring_is_usable(m);
	r->bucket = calloc(nr, sizeof(*r->bucket));
	r->bucket_seq = calloc(nr, sizeof(*r->bucket_seq));
	if (!r->bucket || !r->bucket_seq)
		return -ENOMEM;
	for (unsigned i = 0, at = 0; i < sb_journal_range_nr(m->sb); i++) {
		uint64_t start, n;

		sb_journal_range(m->sb, i, &start, &n);
		while (n--)
			r->bucket[at++] = start++;
	}
	return 0;
}

bool journal_can_be_written(const struct super *s)
{
	bool any = false;

	for (unsigned i = 0; i < s->member_nr; i++)
		any |= ring_is_usable(&s->members[i]);
	return any;
}

bool journal_entries_fit(const struct super *s, uint64_t *bytes, uint64_t *needed)
{
	*needed = super_journal_entry_bytes_now(s);
	*bytes = UINT64_MAX;
	for (unsigned i = 0; i < s->member_nr; i++)
		if (ring_is_usable(&s->members[i]))
			*bytes = min(*bytes, (uint64_t)s->members[i].m.bucket_sectors << SECTOR_SHIFT);
	return *bytes >= *needed;
}

/* See journal_scan_newest(); and of which entries everything is known. */
struct newest {
	struct journal_location *v;
	size_t nr;
	bool is_scanned;
};

/*
 * May @bad, the newest entry on its device, be written over? A torn one that began the last bucket of a full ring would
 * else take all the space there is. Not if what its header says of its seq is as wrong as the rest, and entries that
 * are to be replayed are behind it; nor after a clean shutdown, whose last entry is the only one, and there is space.
 */
static bool is_worthless(const struct journal *j, const struct newest *newest, const struct journal_location *bad)
{
	if (!newest->is_scanned || j->pin_front == j->seq_next)
		return false;
	for (size_t i = 0; i < newest->nr; i++) {
		const struct journal_location *l = &newest->v[i];

		if (l->dev == bad->dev && l->ring_idx == bad->ring_idx && l->is_csum_good &&
		    l->offset_sectors > bad->offset_sectors && l->seq >= j->pin_front)
			return false;
	}
	return true;
}

/*
 * Behind the newest entry that is on the device, good or not, whatever the superblock says (03 §13.1); in the place of
 * a torn one.
 */
static void ring_find_place(struct journal *j, struct journal_ring *r, const struct newest *newest)
{
	uint32_t block = j->super->kctx.block_sectors;
	uint64_t seq = 0;

	for (size_t i = 0; i < newest->nr; i++) {
		const struct journal_location *l = &newest->v[i];

		if (l->dev != r->dev || l->ring_idx >= r->nr)
			continue;
		r->bucket_seq[l->ring_idx] = max(r->bucket_seq[l->ring_idx], l->seq);
		if (l->seq < seq)
			continue;
		seq = l->seq;
		uint32_t end = l->offset_sectors;
		if (!is_mutant(MUTANT_WRITE_BEHIND))
			end += (l->bytes + SECTOR_BYTES - 1) / SECTOR_BYTES;
		end = (uint32_t)round_up_u64(end, block);
		r->cur_idx = l->ring_idx;
		if (!l->is_csum_good) /* its length can't be trusted: else leave the rest of its bucket */
			end = is_worthless(j, newest, l) ? l->offset_sectors : r->bucket_sectors;
		r->sectors_free = end < r->bucket_sectors ? r->bucket_sectors - end : 0;
	}
	if (!seq) {
		r->cur_idx = r->nr - 1;
		r->sectors_free = 0;
	}
	r->discard_idx = r->discarded_idx = (r->cur_idx + 1) % r->nr;
}

/* No seq twice, whatever the superblock says: it may be behind what is on the devices, or list ranges to come. */
static int seq_next_choose(struct journal *j, const struct journal_state *state, const struct newest *newest)
{
	bool has_replay = j->pin_front < j->seq_next;

	for (size_t i = 0; i < newest->nr; i++)
		j->seq_next = max(j->seq_next, newest->v[i].seq + 1);
	if (state->blacklist_nr)
		j->seq_next = max(j->seq_next, state->blacklist[state->blacklist_nr - 1].end);
	if (j->seq_next >= UINT64_MAX >> 1)
		return -KILN_E_INVALID;
	if (!has_replay)
		j->pin_front = j->seq_next;
	return 0;
}

int journal_rings_init(struct journal *j, const struct journal_state *state)
{
	struct newest newest = { state->bucket_newest, state->bucket_newest_nr, state->is_scanned };
	bool any = false;
	int err = 0;

	j->ring_nr = j->super->member_nr;
	j->entry_bytes_max = JOURNAL_ENTRY_BYTES_MAX;
	j->rings = calloc(max(j->ring_nr, 1u), sizeof(*j->rings));
	if (!j->rings)
		return -ENOMEM;
	if (!state->is_scanned)
		err = journal_scan_heads(j->super, j->seq_next, &newest.v, &newest.nr);
	if (err)
		return err;
	for (unsigned i = 0; i < j->ring_nr && !err; i++) {
		struct journal_ring *r = &j->rings[i];

		err = ring_init(j, r, i);
		if (!err && r->nr)
			ring_find_place(j, r, &newest);
		if (r->is_usable)
			j->entry_bytes_max = min(j->entry_bytes_max, r->bucket_sectors << SECTOR_SHIFT);
		any |= r->is_usable;
	}
	if (!err)
		err = seq_next_choose(j, state, &newest);
	if (!state->is_scanned)
		free(newest.v);
	return err ? err : any ? 0 : -ENOSPC;
}

void journal_rings_free(struct journal *j)
{
	for (unsigned i = 0; i < j->ring_nr && j->rings; i++) {
		free(j->rings[i].bucket);
		free(j->rings[i].bucket_seq);
	}
	free(j->rings);
}

/* --- which may be used --- */

static bool ring_is_in_target(const struct journal *j, const struct journal_ring *r)
{
	const uint64_t *options = j->super->options;
	uint64_t target = options[OPT_METADATA_TARGET] ? options[OPT_METADATA_TARGET] : options[OPT_FOREGROUND_TARGET];
	bool has_label = false;

	if (target <= TARGET_DEVS)
		return !target || target - 1 == r->dev;
	/* Labels contain the labels below them. */
	for (unsigned i = 0; i < r->group_nr; i++)
		has_label |= r->groups[i] == target - TARGET_DEVS;
	return has_label;
}

unsigned journal_replicas_required(const struct journal *j)
{
	return max((unsigned)j->super->options[OPT_METADATA_REPLICAS_REQUIRED], 1u);
}

static unsigned replicas_wanted(const struct journal *j)
{
	unsigned wanted = min((unsigned)j->super->options[OPT_METADATA_REPLICAS], (unsigned)JOURNAL_COPIES_MAX);

	return max(wanted, journal_replicas_required(j));
}

/* --- space --- */

uint32_t journal_entry_sectors(const struct journal *j, uint64_t u64s)
{
	return (uint32_t)round_up_u64(div_round_up_u64(u64s * 8, SECTOR_BYTES), j->super->kctx.block_sectors);
}

/*
 * What will be left of @r when those entries are placed that are closed and wait: *@rest of the bucket that is filled
 * then; free buckets are returned, -1: they don't all fit.
 */
static int ring_behind_waiting(const struct journal *j, const struct journal_ring *r, uint32_t *rest)
{
	int free_nr = (int)ring_free_nr(r);

	*rest = r->sectors_free;
	for (uint64_t seq = j->seq_unplaced; seq < j->seq_next; seq++) {
		const struct journal_buf *buf = &j->buf[seq % JOURNAL_BUF_NR];
		uint32_t sectors = journal_entry_sectors(j, buf->u64s + buf->reserved_u64s);

		if (!buf->is_closed)
			break;
		if (sectors > *rest) {
			if (--free_nr < 0)
				return -1;
			*rest = r->bucket_sectors;
		}
		*rest -= min(sectors, *rest);
	}
	return free_nr;
}

/* What last_seq of an entry that is opened now will be at least. */
static uint64_t last_seq_next(struct journal *j) { return journal_last_seq(j, j->seq_next); }

static bool ring_would_free(const struct journal_ring *r, uint64_t last_seq)
{
	return r->discard_idx != r->cur_idx && r->bucket_seq[r->discard_idx] < last_seq;
}

bool journal_space_would_free(struct journal *j)
{
	uint64_t last_seq = last_seq_next(j);

	for (unsigned i = 0; i < j->ring_nr; i++)
		if (j->rings[i].is_usable && ring_would_free(&j->rings[i], last_seq))
			return true;
	return false;
}

/*
 * Free buckets that are left to reclaim. What it takes to let a bucket's pins go depends on how many nodes they are in,
 * not on the size of buckets: a key of 50 bytes may have a node of its own to be written, for which the journal gets
 * several hundred bytes, and where nodes have few blocks every third time a new one, for a few KiB: there it is as much
 * as others can do without.
 */
unsigned journal_ring_low_nr(const struct journal *j, const struct journal_ring *r)
{
	bool has_small_nodes = super_node_blocks(j->super) < NODE_BLOCKS_MANY;
	unsigned most = r->nr * RECLAIM_EIGHTHS / 8;
	unsigned small = has_small_nodes ? most : min(RECLAIM_SECTORS / r->bucket_sectors, most);

	return max(max(r->nr / 4, (unsigned)LOW_BUCKETS_MIN), small);
}

void journal_space_update(struct journal *j)
{
	unsigned usable = 0, ample = 0; /* by durability */
	bool is_changed = false;
	uint32_t rest;

	for (unsigned i = 0; i < j->ring_nr; i++) {
		struct journal_ring *r = &j->rings[i];
		unsigned old_idx = r->discard_idx;

		while (r->nr && r->discard_idx != r->cur_idx && r->bucket_seq[r->discard_idx] < j->last_seq_ondisk)
			r->discard_idx = (r->discard_idx + 1) % r->nr;
		is_changed |= r->discard_idx != old_idx;
		if (!r->is_usable)
			continue;
		usable += r->durability;
		if (ring_behind_waiting(j, r, &rest) > (int)journal_ring_low_nr(j, r))
			ample += r->durability;
	}
	j->is_space_low = ample < min(replicas_wanted(j), usable);
	bool is_full_of_seqs = j->seq_next - j->pin_front > JOURNAL_SEQS_MAX / 4 * 3;
	unsigned watermark = j->is_space_low || is_full_of_seqs ? WATERMARK_RECLAIM : WATERMARK_STRIPE;
	is_changed |= watermark != j->watermark_min;
	__atomic_store_n(&j->watermark_min, watermark, __ATOMIC_RELEASE);
	if (is_changed && watermark == WATERMARK_RECLAIM)
		waitq_wake_all(&j->reclaim_work);
	if (is_changed)
		waitq_wake_all(&j->changed);
}

/* Sectors that an entry may have on @r behind those that wait; 0: less than @needed. */
static uint32_t ring_space_next(struct journal *j, const struct journal_ring *r, uint32_t needed, uint32_t liked)
{
	/* What is in hand is for an entry that makes another one free; and the first one after a crash. */
	int in_hand = j->is_first_due || ring_would_free(r, last_seq_next(j)) ? 0 : 1;
	uint32_t rest;
	int free_nr = ring_behind_waiting(j, r, &rest);

	if (free_nr < 0)
		return 0;
	/* Those that wait would need what is in hand, but need not get it: then its rest is nobody's. */
	if (free_nr < in_hand && (int)ring_free_nr(r) >= in_hand)
		return 0;
	if (rest >= min(liked, r->bucket_sectors))
		return rest;
	if (free_nr > in_hand)
		return r->bucket_sectors;
	return rest >= needed ? rest : 0;
}

/* No space at all, and nothing under way that could make some free? */
static bool ring_is_stuck(const struct journal *j, const struct journal_ring *r, uint32_t needed)
{
	return !ring_free_nr(r) && r->sectors_free < needed && j->seq_unwritten == j->seq_next;
}

uint32_t journal_space_next(struct journal *j, unsigned u64s, unsigned u64s_liked)
{
	uint32_t needed = journal_entry_sectors(j, u64s), liked = journal_entry_sectors(j, u64s_liked);
	struct {
		uint32_t sectors;
		unsigned durability;
	} room[256];
	unsigned nr = 0, usable = 0, copies = 0;

	/* The largest first: an entry goes to as many as are wanted, and the last of these bounds it. */
	for (unsigned i = 0; i < j->ring_nr && nr < ARRAY_NR(room); i++) {
		const struct journal_ring *r = &j->rings[i];
		unsigned at = nr;

		if (!r->is_usable || ring_is_stuck(j, r, needed))
			continue;
		usable += r->durability;
		uint32_t sectors = ring_space_next(j, r, needed, liked);
		if (!sectors)
			continue;
		for (; at && room[at - 1].sectors < sectors; at--)
			room[at] = room[at - 1];
		room[at].sectors = sectors;
		room[at].durability = r->durability;
		nr++;
	}
	unsigned wanted = min(replicas_wanted(j), usable);
	for (unsigned i = 0; i < nr; i++) {
		copies += room[i].durability;
		if (copies >= wanted)
			return min(room[i].sectors << SECTOR_SHIFT, j->entry_bytes_max);
	}
	return 0;
}

/* --- placing an entry --- */

static bool ring_fits(const struct journal_ring *r, uint32_t sectors, unsigned in_hand)
{
	return r->sectors_free >= sectors || (ring_free_nr(r) > in_hand && r->bucket_sectors >= sectors);
}

static void ring_take(struct journal_ring *r, uint64_t seq, uint32_t sectors, struct journal_place *place)
{
	if (r->sectors_free < sectors) {
		r->cur_idx = (r->cur_idx + 1) % r->nr;
		r->sectors_free = r->bucket_sectors;
		r->bucket_seq[r->cur_idx] = 0;
	}
	place->ring = r;
	place->sector = (r->bucket[r->cur_idx] + 1) * r->bucket_sectors - r->sectors_free;
	r->sectors_free -= sectors;
	r->bucket_seq[r->cur_idx] = max(r->bucket_seq[r->cur_idx], seq);
}

/* Free space in the ring, for choosing the emptiest. */
static uint64_t ring_free_sectors(const struct journal_ring *r)
{
	return (uint64_t)ring_free_nr(r) * r->bucket_sectors + r->sectors_free;
}

/* The emptiest ring that has room for another copy, or NULL. */
static struct journal_ring *place_find(struct journal *j, uint64_t last_seq, uint32_t sectors,
				       const struct journal_place *places, unsigned place_nr, unsigned round)
{
	struct journal_ring *best = NULL;

	for (unsigned i = 0; i < j->ring_nr; i++) {
		struct journal_ring *r = &j->rings[i];
		bool may_take_last = round == ROUND_DESPERATE || j->is_first_due || ring_would_free(r, last_seq);
		bool is_taken = false;

		for (unsigned k = 0; k < place_nr; k++)
			is_taken |= places[k].ring == r;
		if (!r->is_usable || is_taken || !ring_fits(r, sectors, may_take_last ? 0 : 1) ||
		    (round == ROUND_TARGET && !ring_is_in_target(j, r)))
			continue;
		if (!best || ring_free_sectors(r) > ring_free_sectors(best))
			best = r;
	}
	return best;
}

int journal_space_place(struct journal *j, uint64_t seq, uint64_t last_seq, uint32_t sectors,
			struct journal_place *places, unsigned *place_nr)
{
	unsigned required = journal_replicas_required(j), wanted = replicas_wanted(j), durability = 0;

	*place_nr = 0;
	j->seq_unplaced = seq + 1;
	for (unsigned round = ROUND_TARGET; round <= ROUND_DESPERATE; round++) {
		if (round == ROUND_DESPERATE)
			wanted = required;
		while (durability < wanted && *place_nr < JOURNAL_COPIES_MAX) {
			struct journal_ring *r = place_find(j, last_seq, sectors, places, *place_nr, round);

			if (!r)
				break;
			ring_take(r, seq, sectors, &places[(*place_nr)++]);
			durability += r->durability;
		}
	}
	return durability >= required ? 0 : -ENOSPC;
}

uint64_t journal_space_reclaim_seq(struct journal *j)
{
	uint64_t target = 0;

	for (unsigned i = 0; i < j->ring_nr; i++) {
		const struct journal_ring *r = &j->rings[i];

		if (!r->is_usable)
			continue;
		/* Half of it; but more must be free than is left to reclaim. */
		unsigned keep = min(r->nr / 2, r->nr - min(journal_ring_low_nr(j, r) + 2, r->nr));
		if (ring_free_nr(r) >= r->nr - keep)
			continue;
		/* The newest bucket that is not to be kept. */
		unsigned idx = (r->cur_idx + r->nr - keep) % r->nr;

		target = max(target, r->bucket_seq[idx]);
	}
	if (j->seq_next - j->pin_front > JOURNAL_SEQS_MAX / 2)
		target = max(target, j->seq_next - JOURNAL_SEQS_MAX / 2);
	return target;
}
