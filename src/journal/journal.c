/* The journal's write side: starting, stopping, durability. See journal.h and journal_internal.h. */
#include "journal/journal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "device/device.h"
#include "journal/journal_internal.h"

enum { NS_PER_MS = 1000000, TAIL_U64S_MAX = JOURNAL_ENTRY_BYTES_MAX / 8 };

/* --- starting --- */

static void roots_take(struct journal *j, const struct journal_state *state)
{
	for (unsigned i = 0; i < BTREE_NR_MAX; i++) {
		const struct btree_root *root = &state->roots[i];
		struct jset_entry_disk *e = (struct jset_entry_disk *)j->roots[i].entry;

		if (!root->exists || root->is_damaged)
			continue;
		*e = (struct jset_entry_disk){
			.u64s = le16_of((uint16_t)(BKEY_U64S + root->key.value_u64s)),
			.btree_id = (uint8_t)i,
			.level = root->level,
			.type = JSET_ENTRY_BTREE_ROOT,
		};
		bkey_store((struct bkey_disk *)(e + 1), &root->key);
		memcpy((struct bkey_disk *)(e + 1) + 1, root->value, bkey_value_bytes(&root->key));
		/* mem_ptr of the pointer is scratch memory of whoever wrote it. */
		if (root->key.value_u64s)
			memset((struct bkey_disk *)(e + 1) + 1, 0, 8);
		j->roots[i].u64s = 1u + BKEY_U64S + root->key.value_u64s;
		j->unknown_root_nr += i >= BTREE_NR_1_4;
	}
}

static int journal_init(struct journal *j, const struct journal_opts *opts)
{
	const struct super *s = opts->super;

	j->super = opts->super;
	j->ops = opts->ops;
	j->reports = opts->reports;
	j->magic = jset_magic(s->sb->uuid);
	j->csum_type = super_metadata_csum_type(s);
	j->may_noflush = sb_has_feature(s->sb, SB_FEATURE_JOURNAL_NO_FLUSH);
	j->flush_delay_ns = max(s->options[OPT_JOURNAL_FLUSH_DELAY], (uint64_t)1) * NS_PER_MS;
	j->reclaim_delay_ns = max(s->options[OPT_JOURNAL_RECLAIM_DELAY], (uint64_t)1) * NS_PER_MS;
	j->state = JOURNAL_CLOSED;
	j->seq_next = opts->seq_next;
	j->pin_front = min(opts->seq_pinned, opts->seq_next);
	j->replay_seq = opts->seq_pinned < opts->seq_next ? opts->seq_pinned : 0;
	j->entry_bytes = JOURNAL_ENTRY_BYTES_MIN;
	j->is_first_due = true;
	j->flushed_ns = clock_monotonic_ns();
	roots_take(j, opts->state);
	j->last_roots_max = BTREE_NR_MAX * (1 + BKEY_U64S_MAX);
	j->last_roots = malloc((size_t)j->last_roots_max * 8);
	j->last_tail = malloc((size_t)TAIL_U64S_MAX * 8); /* of which only what is used takes memory */
	if (!j->last_roots || !j->last_tail)
		return -ENOMEM;
	int err = journal_rings_init(j, opts->state);
	if (err)
		return err;
	j->seq_unwritten = j->seq_unplaced = j->seq_next;
	j->seq_flushed = j->seq_next - 1;
	j->last_seq_ondisk = j->pin_front;
	j->entry_bytes = min(j->entry_bytes, j->entry_bytes_max);
	return journal_pins_init(j);
}

int journal_start(const struct journal_opts *opts, struct journal **out)
{
	struct journal *j = calloc(1, sizeof(*j));

	*out = NULL;
	if (!j)
		return -ENOMEM;
	mutex_init_ranked(&j->lock, LOCK_JOURNAL);
	waitq_init(&j->changed);
	waitq_init(&j->write_work);
	waitq_init(&j->reclaim_work);
	waitq_init(&j->flush_done);
	job_init(&j->reclaim_job, "journal reclaim",
		 "sees that what the oldest entries say is written back, so that they can go");
	int err = journal_init(j, opts);
	if (!err) {
		mutex_lock(&j->lock);
		journal_space_update(j);
		mutex_unlock(&j->lock);
		err = task_start(&j->writer, "journal", journal_writer_task, j);
	}
	if (!err)
		err = task_start(&j->reclaimer, "journal-reclaim", journal_reclaim_task, j);
	if (err) {
		journal_abort(j);
		journal_free(j);
		return err;
	}
	*out = j;
	return 0;
}

void journal_replay_done(struct journal *j)
{
	mutex_lock(&j->lock);
	j->replay_seq = 0;
	journal_last_seq(j, j->seq_next);
	waitq_wake_all(&j->reclaim_work);
	mutex_unlock(&j->lock);
}

/* --- stopping --- */

static void tasks_stop(struct journal *j)
{
	mutex_lock(&j->lock);
	j->is_stopping = true;
	waitq_wake_all(&j->write_work);
	waitq_wake_all(&j->reclaim_work);
	waitq_wake_all(&j->changed);
	mutex_unlock(&j->lock);
	if (j->reclaimer)
		task_join(j->reclaimer);
	if (j->writer)
		task_join(j->writer);
	j->writer = j->reclaimer = NULL;
}

int journal_stop_clean(struct journal *j, uint64_t *seq)
{
	task_may_wait_for(TASK_RECLAIM);
	int err = journal_flush(j);

	if (err)
		return err;
	mutex_lock(&j->lock);
	/* When everything is written, it has nothing in it and nothing before it is needed. */
	j->pin_waiters++;
	while (!(err = journal_error(j))) {
		bool is_rest_written = j->seq_unwritten == (journal_is_open(j) ? j->seq_next - 1 : j->seq_next);

		if (is_rest_written && !journal_has_pins(j, j->seq_next) &&
		    (err = journal_open_flush_entry(j, seq)) != -EAGAIN)
			break;
		waitq_wait(&j->changed, &j->lock);
	}
	j->pin_waiters--;
	if (!err) {
		const struct journal_buf *buf = &j->buf[*seq % JOURNAL_BUF_NR];

		if (buf->last_seq != *seq || buf->u64s)
			err = -EBUSY; /* somebody still commits, or pins */
	}
	while (!err && !(err = journal_error(j)) && j->seq_flushed < *seq)
		waitq_wait(&j->changed, &j->lock);
	mutex_unlock(&j->lock);
	tasks_stop(j);
	return err;
}

const void *journal_last_roots(const struct journal *j, unsigned *u64s)
{
	*u64s = j->last_roots_u64s;
	return j->last_roots;
}

const void *journal_last_tail(const struct journal *j, unsigned *u64s)
{
	*u64s = j->last_tail_u64s;
	return j->last_tail;
}

void journal_refuse(struct journal *j)
{
	mutex_lock(&j->lock);
	journal_fail(j, -EROFS);
	mutex_unlock(&j->lock);
}

void journal_abort(struct journal *j)
{
	journal_refuse(j);
	tasks_stop(j);
}

void journal_free(struct journal *j)
{
	if (!j)
		return;
	if (j->writer || j->reclaimer)
		journal_abort(j);
	for (unsigned i = 0; i < JOURNAL_BUF_NR; i++)
		io_buffer_free(j->buf[i].data);
	journal_rings_free(j);
	journal_pins_free(j);
	free(j->last_roots);
	free(j->last_tail);
	waitq_destroy(&j->flush_done);
	waitq_destroy(&j->reclaim_work);
	waitq_destroy(&j->write_work);
	waitq_destroy(&j->changed);
	mutex_destroy(&j->lock);
	free(j);
}

/* --- durability --- */

int journal_error(const struct journal *j) { return __atomic_load_n(&j->error, __ATOMIC_ACQUIRE); }

uint64_t journal_seq(const struct journal *jc)
{
	struct journal *j = (struct journal *)jc;

	mutex_lock(&j->lock);
	uint64_t seq = journal_is_open(j) ? j->seq_next - 1 : j->seq_next;
	mutex_unlock(&j->lock);
	return seq;
}

uint64_t journal_seq_flushed(const struct journal *jc)
{
	struct journal *j = (struct journal *)jc;

	mutex_lock(&j->lock);
	uint64_t seq = j->seq_flushed;
	mutex_unlock(&j->lock);
	return seq;
}

static void flush_want(struct journal *j, uint64_t seq)
{
	/* What isn't opened yet has nothing in it. */
	seq = min(seq, j->seq_next - 1);
	if (seq <= j->flush_wanted)
		return;
	j->flush_wanted = seq;
	waitq_wake_all(&j->write_work);
}

int journal_flush_seq(struct journal *j, uint64_t seq)
{
	int err = 0;

	mutex_lock(&j->lock);
	seq = min(seq, j->seq_next - 1);
	flush_want(j, seq);
	if (j->seq_flushed < seq)
		task_may_wait_for(TASK_JOURNAL_WRITER);
	while (j->seq_flushed < seq && !(err = journal_error(j)))
		waitq_wait(&j->changed, &j->lock);
	mutex_unlock(&j->lock);
	return err;
}

int journal_flush(struct journal *j) { return journal_flush_seq(j, UINT64_MAX); }

void journal_flush_async(struct journal *j, uint64_t seq)
{
	mutex_lock(&j->lock);
	flush_want(j, seq);
	mutex_unlock(&j->lock);
}

void journal_jobs(struct journal *j, struct job_list *list) { job_list_add(list, &j->reclaim_job); }

void journal_usage(struct journal *j, struct journal_usage *usage)
{
	mutex_lock(&j->lock);
	*usage = j->stats;
	usage->seq = j->seq_next;
	usage->seq_flushed = j->seq_flushed;
	usage->last_seq = journal_last_seq(j, j->seq_next);
	usage->last_seq_ondisk = j->last_seq_ondisk;
	usage->is_space_low = j->is_space_low;
	usage->buckets_free = UINT64_MAX;
	for (unsigned i = 0; i < j->ring_nr; i++) {
		const struct journal_ring *r = &j->rings[i];
		unsigned free_nr = r->nr ? (r->discard_idx + r->nr - r->cur_idx - 1) % r->nr : 0;

		if (r->is_usable && free_nr < usage->buckets_free) {
			usage->buckets_free = free_nr;
			usage->buckets_total = r->nr;
			usage->buckets_for_reclaim = journal_ring_low_nr(j, r);
		}
	}
	mutex_unlock(&j->lock);
}
