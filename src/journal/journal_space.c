/*
 * The rings (03 §5.2, §5.6): where entries go, and which buckets are free.
 *
 * Of a ring, [discard_idx .. cur_idx] (cyclic) is in use; what lies behind cur_idx up to before discard_idx is free. A
 * bucket becomes free when all in it is below last_seq of the newest flush entry that is durable: nothing in memory
 * counts. One bucket is kept in hand for a flush entry that frees others.
 *
 * An entry can be opened when it is certain that it can be written: its size is bounded when it is opened, and the
 * entries before it that wait for being written are placed first, in thought.
 */
#include <errno.h>
#include <stdlib.h>

#include "device/device.h"
#include "format/alloc.h"
#include "journal/journal_internal.h"
#include "journal/journal_private.h"

enum { TARGET_DEVS = 256 };	  /* a target is a device + 1, or a label + 257 (10 §5.1) */
enum { SECTORS_WORTHWHILE = 64 }; /* less of the rest of a bucket isn't worth opening an entry for */

/* --- starting --- */

static unsigned ring_free_nr(const struct journal_ring *r) { return (r->discard_idx + r->nr - r->cur_idx - 1) % r->nr; }

static bool ring_is_usable(const struct super *s, const struct super_member *m)
{
	return m->dev && !m->dev->is_readonly && m->m.state == MEMBER_RW && m->m.data_allowed & 1u << DATA_JOURNAL;
}

static int ring_init(struct journal *j, struct journal_ring *r, unsigned dev)
{
	const struct super *s = j->super;
	const struct super_member *m = &s->members[dev];
	uint64_t nr = 0;

	*r = (struct journal_ring){ .dev = dev };
	if (!m->dev || !m->sb)
		return 0;
	for (unsigned i = 0; i < sb_journal_range_nr(m->sb); i++) {
		uint64_t start, n;

		sb_journal_range(m->sb, i, &start, &n);
		nr += n;
	}
	if (!nr || nr > UINT32_MAX)
		return 0;
	r->nr = (unsigned)nr;
	r->bucket_sectors = m->m.bucket_sectors;
	r->durability = m->m.durability;
	r->has_discard = m->m.has_discard;
	r->is_usable = ring_is_usable(s, m) && r->durability && r->nr > 1;
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

/* Behind the newest entry that is on the device, good or not, whatever the superblock says (03 §13.1). */
static void ring_find_place(struct journal *j, struct journal_ring *r, const struct journal_scan *scan)
{
	uint64_t newest = 0;

	for (size_t i = 0; i < scan->nr; i++) {
		const struct journal_location *l = &scan->found[i];

		if (l->dev != r->dev || l->ring_idx >= r->nr)
			continue;
		r->bucket_seq[l->ring_idx] = max(r->bucket_seq[l->ring_idx], l->seq);
		if (l->seq < newest)
			continue;
		newest = l->seq;
		uint32_t block = j->super->kctx.block_sectors;
		uint32_t end =
			(uint32_t)round_up_u64(l->offset_sectors + (l->bytes + SECTOR_BYTES - 1) / SECTOR_BYTES, block);
		r->cur_idx = l->ring_idx;
		/* The length of a bad one can't be trusted: leave the rest of its bucket. */
		r->sectors_free = l->is_csum_good && end < r->bucket_sectors ? r->bucket_sectors - end : 0;
	}
	if (!newest)
		r->cur_idx = r->nr - 1;
	r->discard_idx = (r->cur_idx + 1) % r->nr;
}

int journal_rings_init(struct journal *j, const struct journal_state *state)
{
	struct journal_scan scan;

	(void)state;
	j->ring_nr = j->super->member_nr;
	j->rings = calloc(max(j->ring_nr, 1u), sizeof(*j->rings));
	if (!j->rings)
		return -ENOMEM;
	int err = journal_scan_devices(j->super, 0, &scan);
	bool any = false;
	for (unsigned i = 0; i < j->ring_nr && !err; i++) {
		err = ring_init(j, &j->rings[i], i);
		if (!err && j->rings[i].nr)
			ring_find_place(j, &j->rings[i], &scan);
		any |= j->rings[i].is_usable;
	}
	if (!err && scan.nr && scan.found[scan.nr - 1].seq >= j->seq_next)
		j->seq_next = scan.found[scan.nr - 1].seq + 1;
	journal_scan_free(&scan);
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

static bool dev_is_in_target(const struct super *s, unsigned dev)
{
	uint64_t target =
		s->options[OPT_METADATA_TARGET] ? s->options[OPT_METADATA_TARGET] : s->options[OPT_FOREGROUND_TARGET];

	if (!target)
		return true;
	if (target <= TARGET_DEVS)
		return target - 1 == dev;
	/* Labels contain the labels below them. The walk is bounded: links of a damaged section may be a circle. */
	unsigned group = s->members[dev].m.group;
	for (unsigned steps = 0; group && steps < UINT8_MAX; steps++) {
		struct disk_group g;

		if (group == target - TARGET_DEVS || group > sb_disk_group_nr(s->sb))
			return group == target - TARGET_DEVS;
		sb_disk_group(s->sb, group - 1, &g);
		group = g.parent;
	}
	return false;
}

static unsigned replicas_wanted(const struct journal *j)
{
	unsigned wanted = (unsigned)j->super->options[OPT_METADATA_REPLICAS];

	return wanted ? min(wanted, (unsigned)JOURNAL_COPIES_MAX) : 1;
}

/* --- space --- */

void journal_space_update(struct journal *j)
{
	bool is_low = true, any_usable = false, is_changed = false;

	for (unsigned i = 0; i < j->ring_nr; i++) {
		struct journal_ring *r = &j->rings[i];
		unsigned old_idx = r->discard_idx;

		while (r->nr && r->discard_idx != r->cur_idx && r->bucket_seq[r->discard_idx] < j->last_seq_ondisk)
			r->discard_idx = (r->discard_idx + 1) % r->nr;
		is_changed |= r->discard_idx != old_idx;
		if (!r->is_usable)
			continue;
		any_usable = true;
		is_low &= ring_free_nr(r) * 4 <= r->nr;
	}
	j->is_space_low = is_low && any_usable;
	bool is_full_of_seqs = j->seq_next - j->pin_front > JOURNAL_SEQS_MAX / 4 * 3;
	unsigned watermark = j->is_space_low || is_full_of_seqs ? WATERMARK_RECLAIM : WATERMARK_STRIPE;
	is_changed |= watermark != j->watermark_min;
	__atomic_store_n(&j->watermark_min, watermark, __ATOMIC_RELEASE);
	if (is_changed && watermark == WATERMARK_RECLAIM)
		waitq_wake_all(&j->reclaim_work);
	if (is_changed)
		waitq_wake_all(&j->changed);
}

static uint32_t entry_sectors(const struct journal *j, uint64_t u64s)
{
	return (uint32_t)round_up_u64((sizeof(struct jset_disk) + u64s * 8 + SECTOR_BYTES - 1) / SECTOR_BYTES,
				      j->super->kctx.block_sectors);
}

/* Sectors that an entry may have on @r behind those that wait. */
static uint32_t ring_space_next(struct journal *j, const struct journal_ring *r, unsigned in_hand)
{
	unsigned free_nr = ring_free_nr(r);
	uint32_t rest = r->sectors_free;

	for (uint64_t seq = j->seq_unwritten; seq < j->seq_next; seq++) {
		uint32_t sectors = entry_sectors(j, j->buf[seq % JOURNAL_BUF_NR].u64s + journal_reserved_u64s(j));

		if (sectors > rest) {
			if (!free_nr)
				return 0;
			free_nr--;
			rest = r->bucket_sectors;
		}
		rest -= min(sectors, rest);
	}
	uint32_t needed = entry_sectors(j, journal_reserved_u64s(j)) + SECTORS_WORTHWHILE;
	if (rest >= needed)
		return rest;
	return free_nr > in_hand ? r->bucket_sectors : 0;
}

uint32_t journal_space_next(struct journal *j, bool is_forced)
{
	unsigned wanted = replicas_wanted(j), durability = 0;
	/* A forced entry takes what is kept in hand, if that makes others free. */
	unsigned in_hand = is_forced || journal_last_seq(j, j->seq_next) > j->last_seq_ondisk ? 0 : 1;
	uint32_t sectors[256];
	unsigned nr = 0;

	/* The largest first: an entry goes to as many as are wanted, and the last of these bounds it. */
	for (unsigned i = 0; i < j->ring_nr && nr < ARRAY_NR(sectors); i++) {
		uint32_t s = j->rings[i].is_usable ? ring_space_next(j, &j->rings[i], in_hand) : 0;
		unsigned at = nr;

		if (!s)
			continue;
		for (; at && sectors[at - 1] < s; at--)
			sectors[at] = sectors[at - 1];
		sectors[at] = s;
		nr++;
	}
	if (!nr)
		return 0;
	durability = min(wanted, nr);
	return min(sectors[durability - 1], (uint32_t)JOURNAL_ENTRY_BYTES_MAX >> SECTOR_SHIFT) << SECTOR_SHIFT;
}

/* --- placing an entry --- */

static bool ring_fits(const struct journal_ring *r, uint32_t sectors)
{
	return r->sectors_free >= sectors || (ring_free_nr(r) && r->bucket_sectors >= sectors);
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

int journal_space_place(struct journal *j, uint64_t seq, uint32_t sectors, struct journal_place *places,
			unsigned *place_nr)
{
	unsigned wanted = replicas_wanted(j), durability = 0;

	*place_nr = 0;
	/* Round 0: of the target; round 1: of all. */
	for (unsigned round = 0; round < 2; round++)
		while (durability < wanted && *place_nr < JOURNAL_COPIES_MAX) {
			struct journal_ring *best = NULL;

			for (unsigned i = 0; i < j->ring_nr; i++) {
				struct journal_ring *r = &j->rings[i];
				bool is_taken = false;

				for (unsigned k = 0; k < *place_nr; k++)
					is_taken |= places[k].ring == r;
				if (!r->is_usable || is_taken || !ring_fits(r, sectors) ||
				    (!round && !dev_is_in_target(j->super, i)))
					continue;
				if (!best || ring_free_sectors(r) > ring_free_sectors(best))
					best = r;
			}
			if (!best)
				break;
			ring_take(best, seq, sectors, &places[(*place_nr)++]);
			durability += best->durability;
		}
	return durability >= max((unsigned)j->super->options[OPT_METADATA_REPLICAS_REQUIRED], 1u) ? 0 : -ENOSPC;
}

uint64_t journal_space_reclaim_seq(struct journal *j)
{
	uint64_t target = 0;

	for (unsigned i = 0; i < j->ring_nr; i++) {
		const struct journal_ring *r = &j->rings[i];

		if (!r->is_usable || ring_free_nr(r) * 2 >= r->nr)
			continue;
		/* The bucket that is half a ring behind. */
		unsigned keep = r->nr / 2, idx = (r->cur_idx + r->nr - keep) % r->nr;

		target = max(target, r->bucket_seq[idx]);
	}
	if (j->seq_next - j->pin_front > JOURNAL_SEQS_MAX / 2)
		target = max(target, j->seq_next - JOURNAL_SEQS_MAX / 2);
	return target;
}
