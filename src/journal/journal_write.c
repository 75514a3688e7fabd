/*
 * The writer: one task that closes, completes and writes entries, in order, one at a time (03 §5).
 *
 * Completing an entry: the roots of all btrees that it doesn't bring itself, then counters. The table of roots is
 * learnt from the entries as they are written, so an entry's roots are those after it and no later ones.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mutant.h"
#include "device/device.h"
#include "format/alloc.h"
#include "journal/journal_internal.h"

void journal_fail(struct journal *j, int err)
{
	if (!__atomic_load_n(&j->error, __ATOMIC_ACQUIRE))
		__atomic_store_n(&j->error, err, __ATOMIC_RELEASE);
	waitq_wake_all(&j->changed);
	waitq_wake_all(&j->write_work);
	waitq_wake_all(&j->reclaim_work);
}

void journal_fail_tell(struct journal *j, int err, const struct report *report)
{
	bool is_first = !journal_error(j);

	journal_fail(j, err);
	mutex_unlock(&j->lock);
	if (is_first && report)
		report_emit(j->reports, report);
	if (is_first && j->ops.failed)
		j->ops.failed(j->ops.ctx, err);
	mutex_lock(&j->lock);
}

/* --- completing --- */

/* What a reader would refuse must not be written: an error of whoever committed it. */
static int sub_entry_check(const struct journal *j, const struct journal_buf *buf, const struct jset_entry_disk *e)
{
	struct fault fault = { 0 };
	char position[64];

	int err = jset_entry_validate(e, &j->super->kctx, &fault);
	if (!err && e->type == JSET_ENTRY_BTREE_ROOT &&
	    (e->btree_id >= BTREE_NR_MAX || le16_get(e->u64s) >= ARRAY_NR(j->roots[0].entry)))
		err = fault_set(&fault, 0, "btree_root", "of a known size", "%u words", le16_get(e->u64s));
	if (!err)
		return 0;
	snprintf(position, sizeof(position), "entry %" PRIu64 ", to be written", buf->seq);
	report_fault(j->reports, REPORT_FATAL, &fault, NULL, "journal entry", position);
	return err;
}

static void root_learn(struct journal *j, const struct jset_entry_disk *e)
{
	struct journal_root *root = &j->roots[e->btree_id];

	if (!root->u64s && e->btree_id >= BTREE_NR_1_4) {
		mutex_lock(&j->lock);
		j->unknown_root_nr++;
		mutex_unlock(&j->lock);
	}
	root->u64s = 1u + le16_get(e->u64s);
	memcpy(root->entry, e, (size_t)root->u64s * 8);
}

/* Append the roots that @buf doesn't bring itself. *@u64s: words used so far. */
static int roots_complete(struct journal *j, struct journal_buf *buf, unsigned *u64s)
{
	bool is_here[BTREE_NR_MAX] = { false };
	uint64_t *words = (uint64_t *)(buf->data + 1);
	struct jset_walk walk = { (uint8_t *)words, (uint8_t *)(words + *u64s) };
	const struct jset_entry_disk *e;
	int more, err = 0;

	while (!err && (more = jset_walk_next(&walk, &e, NULL)) != 0) {
		err = more < 0 ? more : sub_entry_check(j, buf, e);
		if (err || e->type != JSET_ENTRY_BTREE_ROOT)
			continue;
		is_here[e->btree_id] = true;
		root_learn(j, e);
	}
	for (unsigned i = 0; !err && i < BTREE_NR_MAX; i++) {
		const struct journal_root *root = &j->roots[i];

		if (!root->u64s || is_here[i])
			continue;
		memcpy(words + *u64s, root->entry, (size_t)root->u64s * 8);
		*u64s += root->u64s;
	}
	return err;
}

static void tail_complete(struct journal *j, struct journal_buf *buf, unsigned *u64s)
{
	uint64_t *at = (uint64_t *)(buf->data + 1) + *u64s;
	/* Space was promised for so much. */
	unsigned room = buf->u64s + buf->reserved_u64s - (unsigned)sizeof(struct jset_disk) / 8 - *u64s;
	unsigned used = j->ops.tail(j->ops.ctx, buf->seq, at, room);

	assert(used <= room);
	j->last_tail_u64s = used;
	memcpy(j->last_tail, at, (size_t)used * 8);
	*u64s += used;
}

static void header_complete(struct journal *j, struct journal_buf *buf, unsigned u64s, bool is_flush)
{
	*buf->data = (struct jset_disk){
		.magic = le64_of(j->magic),
		.seq = le64_of(buf->seq),
		.version = le32_of(le16_get(j->super->sb->version)),
		.flags = le32_of(is_flush ? 0 : 1u << 5),
		.u64s = le32_of(u64s),
		.last_seq = le64_of(is_flush ? buf->last_seq : 0),
	};
	jset_seal(buf->data, j->csum_type, j->super->key);
}

/* --- writing --- */

static void report_device(const struct journal *j, unsigned dev, enum report_level level, int err, const char *expected,
			  const char *advice)
{
	report_emit(j->reports, &(struct report){ .level = level,
						  .err = err,
						  .device = j->super->members[dev].name,
						  .structure = "journal",
						  .expected = expected,
						  .found = error_name(err),
						  .advice = advice });
}

/*
 * A device's cache could not be flushed: which of what it was given since the last time is there, nobody knows, and
 * asking it again would only seem to tell. So it is left, if everything is on others too. 0 or an error.
 */
static int device_leave(struct journal *j, unsigned dev, int flush_err)
{
	mutex_lock(&j->lock);
	bool was_left = j->rings[dev].is_left;
	mutex_unlock(&j->lock);
	if (was_left)
		return 0;
	int err = j->ops.device_lost ? j->ops.device_lost(j->ops.ctx, dev) : -EROFS;
	if (err) {
		report_device(j, dev, REPORT_FATAL, flush_err, "a flush of its cache",
			      "What it was given since the last one may be lost: check it.");
		return flush_err;
	}
	report_device(j, dev, REPORT_RECOVERED, flush_err, "a flush of its cache",
		      "It is marked as failed, and the others go on without it. Replace it.");
	mutex_lock(&j->lock);
	j->rings[dev].is_left = true;
	j->rings[dev].is_usable = false;
	mutex_unlock(&j->lock);
	return 0;
}

static bool device_is_flushed(struct journal *j, unsigned i)
{
	const struct super_member *m = &j->super->members[i];

	return m->dev && !m->dev->is_readonly && super_member_state(j->super, i) != MEMBER_FAILED &&
	       !j->rings[i].is_left;
}

/*
 * Flush the caches of all members that may be written: what the entry refers to may be on any of them. 0, also when
 * those where it failed can be left; else nothing is acknowledged any more.
 */
static int devices_flush(struct journal *j)
{
	struct io_group group;
	struct device_io ios[256];
	unsigned nr = 0, devs[256];
	int err = 0;

	io_group_init_for(&group, j->super->member_nr);
	for (unsigned i = 0; i < j->super->member_nr && nr < ARRAY_NR(ios); i++) {
		if (!device_is_flushed(j, i) || (is_mutant(MUTANT_PREFLUSH) && nr))
			continue;
		devs[nr] = i;
		ios[nr] = (struct device_io){ .op = DEVICE_FLUSH, .dev = j->super->members[i].dev };
		io_submit(&group, &ios[nr++]);
	}
	io_group_wait(&group);
	for (unsigned i = 0; i < nr && !err; i++)
		if (ios[i].err)
			err = device_leave(j, devs[i], ios[i].err);
	return err;
}

/* Leave out the places on rings that got unusable. 0 if enough copies are left. */
static int places_keep_usable(struct journal *j, struct journal_place *places, unsigned *place_nr)
{
	unsigned kept = 0, durability = 0;

	mutex_lock(&j->lock);
	for (unsigned i = 0; i < *place_nr; i++)
		if (places[i].ring->is_usable) {
			durability += places[i].ring->durability;
			places[kept++] = places[i];
		}
	mutex_unlock(&j->lock);
	*place_nr = kept;
	return durability >= journal_replicas_required(j) ? 0 : -EIO;
}

/* Drop the places whose I/O failed. 0 if enough copies are left. */
static int places_keep_good(struct journal *j, enum device_op op, const struct device_io *ios,
			    struct journal_place *places, unsigned *place_nr)
{
	int err = 0, io_err = 0;

	for (unsigned i = 0; i < *place_nr; i++) {
		if (!ios[i].err)
			continue;
		io_err = ios[i].err;
		if (op == DEVICE_FLUSH && !err)
			err = device_leave(j, places[i].ring->dev, io_err);
		mutex_lock(&j->lock);
		places[i].ring->is_usable = false;
		mutex_unlock(&j->lock);
	}
	if (!err && io_err && places_keep_usable(j, places, place_nr))
		err = io_err;
	return err;
}

/* Write the entry to its places, or flush those; the ones that fail are dropped. 0 if enough are left. */
static int places_io(struct journal *j, enum device_op op, struct journal_buf *buf, uint32_t sectors,
		     struct journal_place *places, unsigned *place_nr)
{
	struct iovec iov = { buf->data, (size_t)sectors << SECTOR_SHIFT };
	struct device_io ios[JOURNAL_COPIES_MAX];
	struct io_group group;

	io_group_init_for(&group, *place_nr);
	for (unsigned i = 0; i < *place_nr; i++) {
		ios[i] = (struct device_io){ .op = op, .dev = j->super->members[places[i].ring->dev].dev };
		if (op == DEVICE_WRITE) {
			ios[i].offset_bytes = places[i].sector << SECTOR_SHIFT;
			ios[i].iov = &iov;
			ios[i].iov_nr = 1;
			ios[i].len_bytes = iov.iov_len;
		}
		io_submit(&group, &ios[i]);
	}
	io_group_wait(&group);
	for (unsigned i = 0; i < *place_nr; i++)
		if (ios[i].err && op == DEVICE_WRITE)
			report_device(j, places[i].ring->dev, REPORT_RECOVERED, ios[i].err, "a journal entry written",
				      "The device gets no journal entries any more.");
	return places_keep_good(j, op, ios, places, place_nr);
}

static int places_mark(struct journal *j, const struct journal_place *places, unsigned place_nr)
{
	uint8_t devs[JOURNAL_COPIES_MAX];

	for (unsigned i = 0; i < place_nr; i++) {
		unsigned at = i;

		for (; at && devs[at - 1] > places[i].ring->dev; at--)
			devs[at] = devs[at - 1];
		devs[at] = (uint8_t)places[i].ring->dev;
	}
	return j->ops.replicas_mark(j->ops.ctx, devs, place_nr);
}

/*
 * Discard buckets that have become free, where the device wants that. Done when they do, and at the latest before
 * anything is placed, so never in one that is in use again. Errors are no matter.
 */
static void buckets_discard(struct journal *j)
{
	for (unsigned i = 0; i < j->ring_nr; i++) {
		struct journal_ring *r = &j->rings[i];
		uint64_t bytes = (uint64_t)r->bucket_sectors << SECTOR_SHIFT;

		if (!r->nr)
			continue;
		mutex_lock(&j->lock);
		unsigned to = r->discard_idx;
		bool is_wanted = r->has_discard && r->is_usable;
		mutex_unlock(&j->lock);
		for (; is_wanted && r->discarded_idx != to; r->discarded_idx = (r->discarded_idx + 1) % r->nr)
			device_discard(j->super->members[r->dev].dev, r->bucket[r->discarded_idx] * bytes, bytes);
		r->discarded_idx = to;
	}
}

/* Everything that is in the entry, and the block's end behind it. */
static int entry_complete(struct journal *j, struct journal_buf *buf, bool is_flush, uint32_t *sectors)
{
	unsigned u64s = buf->u64s;
	int err = roots_complete(j, buf, &u64s);

	if (err)
		return err;
	tail_complete(j, buf, &u64s);
	uint64_t bytes = sizeof(struct jset_disk) + (uint64_t)u64s * 8;
	*sectors = journal_entry_sectors(j, bytes / 8);
	memset((uint8_t *)buf->data + bytes, 0, ((size_t)*sectors << SECTOR_SHIFT) - bytes);
	header_complete(j, buf, u64s, is_flush);
	return 0;
}

static int entry_write(struct journal *j, struct journal_buf *buf, bool is_flush, uint32_t *sectors)
{
	struct journal_place places[JOURNAL_COPIES_MAX];
	unsigned place_nr = 0;

	int err = entry_complete(j, buf, is_flush, sectors);
	if (err)
		return err;
	buckets_discard(j);
	mutex_lock(&j->lock);
	err = journal_space_place(j, buf->seq, is_flush ? buf->last_seq : 0, *sectors, places, &place_nr);
	mutex_unlock(&j->lock);
	if (!err)
		err = places_mark(j, places, place_nr);
	unsigned marked_nr = place_nr;
	if (!err && is_flush)
		err = devices_flush(j);
	if (!err && is_flush)
		err = places_keep_usable(j, places, &place_nr);
	if (!err)
		err = places_io(j, DEVICE_WRITE, buf, *sectors, places, &place_nr);
	if (!err && is_flush && !is_mutant(MUTANT_ENTRY_FLUSH))
		err = places_io(j, DEVICE_FLUSH, buf, *sectors, places, &place_nr);
	if (!err && place_nr < marked_nr)
		err = places_mark(j, places, place_nr);
	return err;
}

/* --- the task --- */

/* Keep the roots of the entry that has just been written for a clean section. */
static void last_roots_keep(struct journal *j)
{
	j->last_roots_u64s = 0;
	for (unsigned i = 0; i < BTREE_NR_MAX; i++) {
		memcpy(j->last_roots + j->last_roots_u64s, j->roots[i].entry, (size_t)j->roots[i].u64s * 8);
		j->last_roots_u64s += j->roots[i].u64s;
	}
}

static bool entry_is_flush(struct journal *j, const struct journal_buf *buf)
{
	bool is_due = clock_monotonic_ns() - j->flushed_ns >= j->flush_delay_ns;
	/* So that after a crash it is known which seqs have been nonces, although nothing may be left of their entries.
	 */
	bool is_last_nonce = checksum_is_mac(j->csum_type) && buf->seq - j->seq_flushed >= (uint64_t)JOURNAL_SEQ_MARGIN;

	return is_last_nonce || !j->may_noflush || j->is_first_due || buf->must_flush ||
	       j->flush_wanted > j->seq_flushed || is_due || j->is_space_low || j->is_stopping;
}

/* Write the oldest entry, which is closed and complete; lock held on entry and return. */
static void entry_take(struct journal *j, struct journal_buf *buf)
{
	bool is_flush = entry_is_flush(j, buf);
	uint32_t sectors = 0;

	mutex_unlock(&j->lock);
	if (is_mutant(MUTANT_LAST_SEQ_AT_CLOSE) && is_flush && !devices_flush(j)) {
		mutex_lock(&j->lock);
		buf->last_seq = journal_last_seq(j, buf->seq);
		mutex_unlock(&j->lock);
	}
	int err = entry_write(j, buf, is_flush, &sectors);
	mutex_lock(&j->lock);

	if (err) {
		journal_fail_tell(j, err, NULL);
		return;
	}
	last_roots_keep(j);
	j->stats.entries_written++;
	j->stats.bytes_written += (uint64_t)sectors << SECTOR_SHIFT;
	j->seq_unwritten = buf->seq + 1;
	if (is_flush) {
		j->stats.flushes++;
		j->seq_flushed = buf->seq;
		j->last_seq_ondisk = buf->last_seq;
		j->flushed_ns = clock_monotonic_ns();
		j->is_first_due = false;
	}
	uint64_t seq = buf->seq;
	buf->seq = 0;
	journal_space_update(j);
	waitq_wake_all(&j->changed);
	if (j->watermark_min == WATERMARK_RECLAIM)
		waitq_wake_all(&j->reclaim_work);
	if (!is_flush)
		return;
	mutex_unlock(&j->lock);
	if (j->ops.flushed)
		j->ops.flushed(j->ops.ctx, seq);
	buckets_discard(j);
	mutex_lock(&j->lock);
}

/* See that somebody's wish for durability, or the clock, closes the open entry. Returns when to look again. */
static uint64_t entry_close_if_due(struct journal *j)
{
	uint64_t newest = j->seq_next - 1, now = clock_monotonic_ns();

	if (journal_is_open(j)) {
		struct journal_buf *buf = &j->buf[newest % JOURNAL_BUF_NR];
		uint64_t due = buf->opened_ns + j->flush_delay_ns;

		/* What was wanted may have been written noflush: then this one makes it durable. */
		bool is_next = j->seq_unwritten == buf->seq;
		bool is_wanted = j->flush_wanted >= buf->seq || (is_next && j->flush_wanted > j->seq_flushed);

		if (is_wanted || now >= due || j->is_stopping)
			journal_entry_close_locked(j);
		else
			return due;
	} else if (j->flush_wanted > j->seq_flushed && j->seq_unwritten == j->seq_next) {
		/* The same, with an empty entry. When there is no room, reclaim makes some. */
		uint64_t seq;

		if (journal_open_flush_entry(j, &seq)) {
			waitq_wake_all(&j->reclaim_work);
			return now + j->reclaim_delay_ns;
		}
	}
	return UINT64_MAX;
}

void journal_writer_task(void *arg)
{
	struct journal *j = arg;

	task_rank_set(TASK_JOURNAL_WRITER);
	mutex_lock(&j->lock);
	while (!__atomic_load_n(&j->error, __ATOMIC_ACQUIRE)) {
		uint64_t due = entry_close_if_due(j);
		struct journal_buf *buf = &j->buf[j->seq_unwritten % JOURNAL_BUF_NR];
		bool is_ready = buf->seq == j->seq_unwritten && buf->is_closed &&
				!state_count(__atomic_load_n(&j->state, __ATOMIC_ACQUIRE),
					     (unsigned)(buf->seq % JOURNAL_BUF_NR));

		if (is_ready)
			entry_take(j, buf);
		else if (j->is_stopping && j->seq_unwritten == j->seq_next)
			break;
		else
			waitq_wait_until(&j->write_work, &j->lock, due);
	}
	mutex_unlock(&j->lock);
}
