/*
 * The writer: one task that closes, completes and writes entries, in order, one at a time (03 §5).
 *
 * Completing an entry: the roots of all btrees that it doesn't bring itself, then counters. The table of roots is
 * learnt from the entries as they are written, so an entry's roots are those after it and no later ones.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
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

/* --- completing --- */

static void root_learn(struct journal *j, const struct jset_entry_disk *e)
{
	unsigned u64s = 1 + le16_get(e->u64s);

	if (e->btree_id >= BTREE_NR_MAX || u64s > ARRAY_NR(j->roots[0].entry))
		return;
	j->roots[e->btree_id].u64s = u64s;
	memcpy(j->roots[e->btree_id].entry, e, (size_t)u64s * 8);
}

/* Append roots to @buf, and keep a copy of them all for the clean section. */
static void roots_complete(struct journal *j, struct journal_buf *buf)
{
	bool is_here[BTREE_NR_MAX] = { false };
	struct jset_walk walk = { (uint8_t *)(buf->data + 1), (uint8_t *)((uint64_t *)(buf->data + 1) + buf->u64s) };
	const struct jset_entry_disk *e;
	uint64_t *words = (uint64_t *)(buf->data + 1);

	while (jset_walk_next(&walk, &e, NULL) > 0)
		if (e->type == JSET_ENTRY_BTREE_ROOT && e->btree_id < BTREE_NR_MAX) {
			is_here[e->btree_id] = true;
			root_learn(j, e);
		}
	for (unsigned i = 0; i < BTREE_NR_MAX; i++) {
		const struct journal_root *root = &j->roots[i];

		if (!root->u64s || is_here[i])
			continue;
		memcpy(words + buf->u64s, root->entry, (size_t)root->u64s * 8);
		buf->u64s += root->u64s;
	}
}

static void tail_complete(struct journal *j, struct journal_buf *buf)
{
	uint64_t *at = (uint64_t *)(buf->data + 1) + buf->u64s;
	unsigned room = buf->bytes / 8 - sizeof(struct jset_disk) / 8 - buf->u64s;
	unsigned used = j->ops.tail(j->ops.ctx, buf->seq, at, room);

	if (used <= j->last_tail_max) {
		memcpy(j->last_tail, at, (size_t)used * 8);
		j->last_tail_u64s = used;
	}
	buf->u64s += used;
}

static void header_complete(struct journal *j, struct journal_buf *buf, bool is_flush)
{
	*buf->data = (struct jset_disk){
		.magic = le64_of(j->magic),
		.seq = le64_of(buf->seq),
		.version = j->super->sb->version.b[0] || j->super->sb->version.b[1]
				   ? le32_of(le16_get(j->super->sb->version))
				   : le32_of(0),
		.flags = le32_of(is_flush ? 0 : 1u << 5),
		.u64s = le32_of(buf->u64s),
		.last_seq = le64_of(is_flush ? buf->last_seq : 0),
	};
	jset_seal(buf->data, j->csum_type, j->super->key);
}

/* --- writing --- */

/* Flush the caches of all members that may be written. */
static int devices_flush(struct journal *j, const struct journal_place *places, unsigned place_nr, bool all)
{
	struct io_group group;
	struct device_io ios[256];
	unsigned nr = 0;

	io_group_init(&group);
	for (unsigned i = 0; i < j->super->member_nr && nr < ARRAY_NR(ios); i++) {
		struct device *dev = j->super->members[i].dev;
		bool is_wanted = all;

		for (unsigned k = 0; k < place_nr; k++)
			is_wanted |= places[k].ring->dev == i;
		if (!dev || dev->is_readonly || !is_wanted)
			continue;
		ios[nr] = (struct device_io){ .op = DEVICE_FLUSH, .dev = dev };
		io_submit(&group, &ios[nr++]);
	}
	return io_group_wait(&group);
}

/*
 * Write the entry to its places; those that fail are dropped. 0 if one is left.
 */
static int places_write(struct journal *j, struct journal_buf *buf, uint32_t sectors, struct journal_place *places,
			unsigned *place_nr)
{
	struct iovec iov = { buf->data, (size_t)sectors << SECTOR_SHIFT };
	struct device_io ios[JOURNAL_COPIES_MAX];
	struct io_group group;
	unsigned kept = 0;
	int err = 0;

	io_group_init(&group);
	for (unsigned i = 0; i < *place_nr; i++) {
		ios[i] = (struct device_io){
			.op = DEVICE_WRITE,
			.dev = j->super->members[places[i].ring->dev].dev,
			.offset_bytes = places[i].sector << SECTOR_SHIFT,
			.iov = &iov,
			.iov_nr = 1,
			.len_bytes = iov.iov_len,
		};
		io_submit(&group, &ios[i]);
	}
	io_group_wait(&group);
	for (unsigned i = 0; i < *place_nr; i++) {
		if (!ios[i].err) {
			places[kept++] = places[i];
			continue;
		}
		err = ios[i].err;
		report_emit(j->reports, &(struct report){ .level = REPORT_RECOVERED,
							  .err = ios[i].err,
							  .device = j->super->members[places[i].ring->dev].name,
							  .structure = "journal entry",
							  .expected = "to be written",
							  .found = error_name(ios[i].err),
							  .advice = "The device gets no journal entries any more." });
		mutex_lock(&j->lock);
		places[i].ring->is_usable = false;
		mutex_unlock(&j->lock);
	}
	*place_nr = kept;
	return kept ? 0 : err;
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

/* Buckets that became free, where the device wants to know. Errors are no matter. */
static void buckets_discard(struct journal *j, struct journal_ring *r, unsigned from, unsigned to)
{
	uint64_t bytes = (uint64_t)r->bucket_sectors << SECTOR_SHIFT;

	if (!r->has_discard)
		return;
	for (; from != to; from = (from + 1) % r->nr)
		device_discard(j->super->members[r->dev].dev, r->bucket[from] * bytes, bytes);
}

static int entry_write(struct journal *j, struct journal_buf *buf, bool is_flush, uint32_t *sectors)
{
	struct journal_place places[JOURNAL_COPIES_MAX];
	unsigned place_nr = 0;

	roots_complete(j, buf);
	tail_complete(j, buf);
	uint64_t bytes = sizeof(struct jset_disk) + (uint64_t)buf->u64s * 8;
	*sectors =
		(uint32_t)(round_up_u64(bytes, (uint64_t)j->super->kctx.block_sectors << SECTOR_SHIFT) >> SECTOR_SHIFT);
	memset((uint8_t *)buf->data + bytes, 0, ((size_t)*sectors << SECTOR_SHIFT) - bytes);
	header_complete(j, buf, is_flush);

	mutex_lock(&j->lock);
	int err = journal_space_place(j, buf->seq, *sectors, places, &place_nr);
	mutex_unlock(&j->lock);
	if (!err)
		err = places_mark(j, places, place_nr);
	if (!err && is_flush)
		err = devices_flush(j, NULL, 0, true);
	unsigned wanted_nr = place_nr;
	if (!err)
		err = places_write(j, buf, *sectors, places, &place_nr);
	if (!err && place_nr < wanted_nr)
		err = places_mark(j, places, place_nr);
	if (!err && is_flush)
		err = devices_flush(j, places, place_nr, false);
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

	return !j->may_noflush || j->is_first_due || buf->must_flush || j->flush_wanted > j->seq_flushed || is_due ||
	       j->is_space_low || j->is_stopping;
}

/* Write the oldest entry, which is closed and complete; lock held on entry and return. */
static void entry_take(struct journal *j, struct journal_buf *buf)
{
	bool is_flush = entry_is_flush(j, buf);
	uint32_t sectors = 0;
	unsigned discard_from[256];

	for (unsigned i = 0; i < j->ring_nr && i < ARRAY_NR(discard_from); i++)
		discard_from[i] = j->rings[i].discard_idx;
	mutex_unlock(&j->lock);
	int err = entry_write(j, buf, is_flush, &sectors);
	mutex_lock(&j->lock);

	if (err) {
		journal_fail(j, err);
		mutex_unlock(&j->lock);
		if (j->ops.failed)
			j->ops.failed(j->ops.ctx, err);
		mutex_lock(&j->lock);
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
		j->recent_flush[j->recent_flush_nr++ % ARRAY_NR(j->recent_flush)] = buf->seq;
	}
	uint64_t seq = buf->seq;
	buf->seq = 0;
	journal_space_update(j);
	waitq_wake_all(&j->changed);
	if (!is_flush)
		return;
	mutex_unlock(&j->lock);
	for (unsigned i = 0; i < j->ring_nr && i < ARRAY_NR(discard_from); i++)
		if (j->rings[i].nr)
			buckets_discard(j, &j->rings[i], discard_from[i], j->rings[i].discard_idx);
	if (j->ops.flushed)
		j->ops.flushed(j->ops.ctx, seq);
	mutex_lock(&j->lock);
}

/* See that somebody's wish for durability, or the clock, closes the open entry. Returns when to look again. */
static uint64_t entry_close_if_due(struct journal *j)
{
	uint64_t newest = j->seq_next - 1, now = clock_monotonic_ns();

	if (journal_is_open(j)) {
		struct journal_buf *buf = &j->buf[newest % JOURNAL_BUF_NR];
		uint64_t due = buf->opened_ns + j->flush_delay_ns;

		if (j->flush_wanted >= buf->seq || now >= due || j->is_stopping)
			journal_close_entry(j);
		else
			return due;
	} else if (j->flush_wanted > j->seq_flushed && j->seq_unwritten == j->seq_next) {
		/* What was wanted has been written noflush: an empty entry makes it durable. */
		if (!journal_open_entry(j, true)) {
			j->buf[(j->seq_next - 1) % JOURNAL_BUF_NR].must_flush = true;
			journal_close_entry(j);
		}
	}
	return UINT64_MAX;
}

void journal_writer_task(void *arg)
{
	struct journal *j = arg;

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
