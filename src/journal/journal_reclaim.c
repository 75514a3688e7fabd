/*
 * Reclaim: has what the oldest entries say written back to the btrees, so that their buckets become free (03 §5.5).
 *
 * It keeps about half of each ring free. Letting a pin go isn't enough: only a flush entry with a newer last_seq frees
 * buckets, so when space is short and the oldest pins are gone one is asked for.
 */
#include <errno.h>

#include "base/clock.h"
#include "journal/journal_internal.h"

enum { URGENCY = 20 }; /* so much more often when space is low */

/* Pins have gone: have an entry written that says so. */
static void free_by_flush(struct journal *j)
{
	uint64_t seq;

	if (j->seq_flushed < j->seq_next - 1) {
		j->flush_wanted = max(j->flush_wanted, j->seq_next - 1);
		waitq_wake_all(&j->write_work);
	} else {
		/* All is durable: an empty entry. */
		journal_open_flush_entry(j, &seq);
	}
}

void journal_reclaim_task(void *arg)
{
	struct journal *j = arg;
	uint64_t asked_seq = 0, ask_again_ns = 0;

	task_rank_set(TASK_RECLAIM);
	mutex_lock(&j->lock);
	while (!j->is_stopping && !__atomic_load_n(&j->error, __ATOMIC_ACQUIRE)) {
		uint64_t seq = journal_space_reclaim_seq(j), now = clock_monotonic_ns();

		/* Who was asked is at work; others, and after a while again. */
		if (seq && !j->flushing && (seq > asked_seq || now >= ask_again_ns) && journal_has_pins(j, seq)) {
			job_works(&j->reclaim_job, j->watermark_min == WATERMARK_RECLAIM
							   ? "hardly any of it is free"
							   : "less than half of it is free");
			journal_pins_ask(j, seq);
			asked_seq = seq;
			ask_again_ns = now + j->reclaim_delay_ns / URGENCY;
		}
		bool is_urgent = j->watermark_min == WATERMARK_RECLAIM;
		bool must_flush = is_urgent && journal_space_would_free(j);
		if (must_flush)
			free_by_flush(j);
		journal_space_update(j);
		job_waits(&j->reclaim_job, must_flush ? "a flush is under way, which makes buckets free"
					   : seq      ? "what it has asked for is being written back"
						      : "enough of the journal is free");
		waitq_wait_until(&j->reclaim_work, &j->lock,
				 clock_monotonic_ns() +
					 (is_urgent ? j->reclaim_delay_ns / URGENCY : j->reclaim_delay_ns));
	}
	job_stops(&j->reclaim_job);
	mutex_unlock(&j->lock);
}
