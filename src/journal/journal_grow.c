/*
 * Rings that get more buckets.
 *
 * They come behind the bucket that is being filled, so they are free at once: those behind that one may hold entries
 * that are still needed, and a ring that is full of these must grow, too. For the order of entries it makes no
 * difference: going around the ring from the bucket that is being filled, the oldest come first, and then the newer
 * ones.
 *
 * Entries that recovery has read know their buckets by number, not by the place in the ring: that may change.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "journal/journal_internal.h"

unsigned journal_ring_bucket_nr(struct journal *j, unsigned dev)
{
	mutex_lock(&j->lock);
	unsigned nr = dev < j->ring_nr && j->rings[dev].is_usable ? j->rings[dev].nr : 0;
	mutex_unlock(&j->lock);
	return nr;
}

/* What the ring will be: its buckets in order, and the highest seq in each. */
struct grown {
	uint64_t *bucket, *bucket_seq;
	struct sb_journal_range *ranges; /* the same, as the superblock has it */
	unsigned nr, range_nr;
	unsigned at; /* the new ones lie in [at, at + added) */
	unsigned added;
};

static void grown_free(struct grown *g)
{
	free(g->bucket);
	free(g->bucket_seq);
	free(g->ranges);
}

static void ranges_make(struct grown *g)
{
	for (unsigned i = 0; i < g->nr; i++) {
		struct sb_journal_range *last = &g->ranges[g->range_nr - (g->range_nr != 0)];

		if (g->range_nr && g->bucket[i] == last->start + last->nr)
			last->nr++;
		else
			g->ranges[g->range_nr++] = (struct sb_journal_range){ g->bucket[i], 1 };
	}
}

static int grown_make(const struct journal_ring *r, const struct sb_journal_range *more, size_t more_nr,
		      struct grown *g)
{
	*g = (struct grown){ .at = r->cur_idx + 1 };
	for (size_t i = 0; i < more_nr; i++)
		g->added += (unsigned)more[i].nr;
	g->nr = r->nr + g->added;
	g->bucket = calloc(g->nr, sizeof(*g->bucket));
	g->bucket_seq = calloc(g->nr, sizeof(*g->bucket_seq));
	g->ranges = calloc(g->nr, sizeof(*g->ranges));
	if (!g->bucket || !g->bucket_seq || !g->ranges) {
		grown_free(g);
		return -ENOMEM;
	}
	memcpy(g->bucket, r->bucket, g->at * sizeof(*g->bucket));
	memcpy(g->bucket_seq, r->bucket_seq, g->at * sizeof(*g->bucket_seq));
	for (size_t i = 0, at = g->at; i < more_nr; i++)
		for (uint64_t k = 0; k < more[i].nr; k++)
			g->bucket[at++] = more[i].start + k;
	memcpy(g->bucket + g->at + g->added, r->bucket + g->at, (r->nr - g->at) * sizeof(*g->bucket));
	memcpy(g->bucket_seq + g->at + g->added, r->bucket_seq + g->at, (r->nr - g->at) * sizeof(*g->bucket_seq));
	ranges_make(g);
	return 0;
}

/* What lies behind the new ones has moved. */
static unsigned idx_behind(const struct grown *g, unsigned idx) { return idx >= g->at ? idx + g->added : idx; }

int journal_ring_grow(struct journal *j, unsigned dev, const struct sb_journal_range *more, size_t more_nr)
{
	struct journal_ring *r = &j->rings[dev];
	struct grown g;

	int err = grown_make(r, more, more_nr, &g);
	if (err)
		return err;
	err = super_journal_set(j->super, dev, g.ranges, g.range_nr);
	if (err) {
		grown_free(&g);
		return err;
	}
	mutex_lock(&j->lock);
	free(r->bucket);
	free(r->bucket_seq);
	r->bucket = g.bucket;
	r->bucket_seq = g.bucket_seq;
	r->nr = g.nr;
	r->cur_idx = idx_behind(&g, r->cur_idx);
	r->discard_idx = idx_behind(&g, r->discard_idx);
	r->discarded_idx = idx_behind(&g, r->discarded_idx);
	journal_space_update(j);
	mutex_unlock(&j->lock);
	free(g.ranges);
	return 0;
}
