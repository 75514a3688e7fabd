/*
 * Reclaim: has what the oldest entries say written back to the btrees, so that their buckets become free (03 §5.5).
 *
 * It keeps about half of each ring free. Letting a pin go isn't enough: only a flush entry with a newer last_seq frees
 * buckets, so when space is short and the oldest pins are gone one is asked for.
 */
#include <errno.h>

#include "base/clock.h"
#include "journal/journal_internal.h"

void journal_reclaim_task(void *arg)
{
	struct journal *j = arg;

	mutex_lock(&j->lock);
	while (!j->is_stopping && !__atomic_load_n(&j->error, __ATOMIC_ACQUIRE)) {
		uint64_t seq = journal_space_reclaim_seq(j);

		if (seq && !j->flushing && journal_has_pins(j, seq))
			journal_pins_ask(j, seq);
		bool is_urgent = j->watermark_min == WATERMARK_RECLAIM;
		bool would_free = journal_last_seq(j, j->seq_next) > j->last_seq_ondisk;
		if (is_urgent && would_free && j->seq_next - 1 > j->seq_flushed) {
			j->flush_wanted = max(j->flush_wanted, j->seq_next - 1);
			waitq_wake_all(&j->write_work);
		} else if (is_urgent && would_free && j->seq_unwritten == j->seq_next) {
			/* All is durable, but pins have gone since: an empty entry says so. */
			if (!journal_open_entry(j, true)) {
				j->buf[(j->seq_next - 1) % JOURNAL_BUF_NR].must_flush = true;
				journal_close_entry(j);
			}
		}
		journal_space_update(j);
		waitq_wait_until(&j->reclaim_work, &j->lock,
				 clock_monotonic_ns() + (is_urgent ? j->reclaim_delay_ns / 20 : j->reclaim_delay_ns));
	}
	mutex_unlock(&j->lock);
}
