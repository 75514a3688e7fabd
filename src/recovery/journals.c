/* Journals that are too small get more buckets. See journals.h. */
#include "recovery/journals.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "super/format.h"

enum { RANGES_MAX = 256 }; /* of the new buckets */

/* No old content may look like entries: files can hold copies of some. */
static int ranges_wipe(const struct super_member *m, const struct sb_journal_range *ranges, int nr)
{
	uint64_t bucket_bytes = (uint64_t)m->m.bucket_sectors << SECTOR_SHIFT;
	int err = 0;

	for (int i = 0; i < nr && !err; i++)
		err = device_wipe(m->dev, ranges[i].start * bucket_bytes,
				  (ranges[i].start + ranges[i].nr) * bucket_bytes);
	return err ? err : device_flush(m->dev);
}

/* As many as can be had go into the ring. 0, or why there are none, *@is_final: the superblocks can't be written. */
static int ring_grow(struct super *s, struct journal *journal, struct allocator *a, unsigned dev, uint64_t wanted,
		     bool *is_final)
{
	struct sb_journal_range *ranges = calloc(RANGES_MAX, sizeof(*ranges));

	if (!ranges)
		return -ENOMEM;
	int nr = allocator_journal_room(a, dev, wanted, ranges, RANGES_MAX);
	int err = nr > 0 ? ranges_wipe(&s->members[dev], ranges, nr) : nr;

	if (!err && nr) {
		err = journal_ring_grow(journal, dev, ranges, (size_t)nr);
		*is_final = err && err != -ENOSPC && err != -ENOMEM && err != -KILN_E_INVALID;
	}
	free(ranges);
	return err;
}

int journals_grow(struct super *s, struct journal *journal, struct allocator *a, const struct log_sink *log,
		  bool *has_grown)
{
	bool is_final = false;
	int err = 0;

	*has_grown = false;
	for (unsigned dev = 0; dev < s->member_nr && !is_final; dev++) {
		uint64_t had = journal_ring_bucket_nr(journal, dev), due = super_journal_bucket_min(s, dev);

		if (!had || had >= due)
			continue;
		err = ring_grow(s, journal, a, dev, due - had, &is_final);
		uint64_t has = journal_ring_bucket_nr(journal, dev);

		*has_grown |= has > had;
		if (has > had)
			log_printf(log, LOG_LEVEL_INFO,
				   "%s: its journal had %" PRIu64 " buckets, and has %" PRIu64
				   " now, as btree nodes of few blocks need",
				   s->members[dev].name, had, has);
		if (has < due)
			log_printf(log, LOG_LEVEL_WARNING,
				   "%s: its journal has %" PRIu64 " buckets and should have %" PRIu64
				   ", but %s: while much is changed, writing may come to a standstill",
				   s->members[dev].name, has, due, err ? error_name(err) : "too little space is free");
	}
	return is_final ? err : 0;
}
