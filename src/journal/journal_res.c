/* Reservations, and opening and closing entries. See journal_internal.h for the state word. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "device/device.h"
#include "journal/journal_internal.h"

enum {
	WORTHWHILE_U64S = 4096, /* content; for less the rest of a bucket isn't worth an entry */
};

/* So long who makes room for others waits for some while nothing goes on. */
static const uint64_t standstill_ns = 120000000000;

unsigned journal_reserved_u64s(struct journal *j)
{
	/* A btree that has no root yet may get one in this entry, but then it's a reservation that brings it. */
	return JSET_HEADER_U64S + (BTREE_NR_1_4 + j->unknown_root_nr) * JSET_ROOT_U64S_MAX +
	       j->ops.tail_u64s_max(j->ops.ctx);
}

void journal_entry_close_locked(struct journal *j)
{
	uint64_t old = __atomic_load_n(&j->state, __ATOMIC_ACQUIRE), new;

	do {
		if (state_left(old) == JOURNAL_CLOSED)
			return;
		new = old | JOURNAL_CLOSED;
	} while (!__atomic_compare_exchange_n(&j->state, &old, new, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));

	struct journal_buf *buf = &j->buf[state_buf(old)];
	buf->u64s = buf->limit_u64s - state_left(old);
	buf->last_seq = journal_last_seq(j, buf->seq);
	buf->is_closed = true;
	journal_space_update(j);
	waitq_wake_all(&j->write_work);
}

void journal_entry_close(struct journal *j)
{
	mutex_lock(&j->lock);
	journal_entry_close_locked(j);
	mutex_unlock(&j->lock);
}

/* Room for an entry in @buf, whose content is no longer needed. Without memory what it has may do for @needed bytes. */
static int buf_make_room(struct journal *j, struct journal_buf *buf, uint64_t needed)
{
	if (buf->bytes >= j->entry_bytes)
		return 0;
	void *data = io_buffer_alloc(j->entry_bytes);
	if (!data)
		return buf->bytes >= needed ? 0 : -ENOMEM;
	io_buffer_free(buf->data);
	buf->data = data;
	buf->bytes = j->entry_bytes;
	return 0;
}

int journal_open_entry(struct journal *j, unsigned u64s, bool is_flush)
{
	struct journal_buf *buf = &j->buf[j->seq_next % JOURNAL_BUF_NR];

	if (__atomic_load_n(&j->error, __ATOMIC_ACQUIRE))
		return -EROFS;
	if (journal_is_open(j))
		return 0;
	if (buf->seq)
		return -EAGAIN;
	unsigned reserved = journal_reserved_u64s(j);
	uint32_t bytes = journal_space_next(j, reserved + u64s,
					    reserved + (is_flush ? u64s : max(u64s, (unsigned)WORTHWHILE_U64S)));
	if (!bytes)
		return -EAGAIN;
	int err = buf_make_room(j, buf, ((uint64_t)reserved + u64s) * 8);
	if (!err)
		err = journal_pins_grow(j, j->seq_next);
	if (err)
		return err;

	bool is_bound_by_memory = bytes > buf->bytes;
	bytes = min(bytes, buf->bytes);
	if (bytes / 8 < reserved + u64s)
		return -EAGAIN;
	*buf = (struct journal_buf){
		.seq = j->seq_next++,
		.data = buf->data,
		.bytes = buf->bytes,
		.limit_u64s = bytes / 8 - reserved,
		.reserved_u64s = reserved,
		.opened_ns = clock_monotonic_ns(),
		.is_bound_by_memory = is_bound_by_memory,
	};
	/* Counts of the other buffers may fall meanwhile. */
	uint64_t old = __atomic_load_n(&j->state, __ATOMIC_ACQUIRE), new;
	do {
		new = (old & ~0x3fffffull) | (buf->seq % JOURNAL_BUF_NR) << 20 | buf->limit_u64s;
	} while (!__atomic_compare_exchange_n(&j->state, &old, new, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
	waitq_wake_all(&j->write_work);
	waitq_wake_all(&j->changed);
	return 0;
}

int journal_open_flush_entry(struct journal *j, uint64_t *seq)
{
	int err = journal_open_entry(j, 0, true);

	if (err)
		return err;
	*seq = j->seq_next - 1;
	j->buf[*seq % JOURNAL_BUF_NR].must_flush = true;
	journal_entry_close_locked(j);
	return 0;
}

/* 0; -EAGAIN: the entry is closed or full, or the watermark too low. */
static int res_try(struct journal *j, struct journal_res *res, unsigned u64s, enum watermark watermark)
{
	uint64_t old = __atomic_load_n(&j->state, __ATOMIC_ACQUIRE), new;
	unsigned left, buf;

	if (__atomic_load_n(&j->error, __ATOMIC_ACQUIRE))
		return -EROFS;
	if (watermark < __atomic_load_n(&j->watermark_min, __ATOMIC_ACQUIRE))
		return -EAGAIN;
	do {
		left = state_left(old);
		buf = state_buf(old);
		if (left == JOURNAL_CLOSED || u64s > left || state_count(old, buf) == JOURNAL_COUNT_MAX)
			return -EAGAIN;
		new = old - u64s + (1ull << state_count_shift(buf));
	} while (!__atomic_compare_exchange_n(&j->state, &old, new, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
	/* Now that it is counted, the buffer stays that entry's. */
	*res = (struct journal_res){
		.seq = j->buf[buf].seq,
		.buf = buf,
		.at = j->buf[buf].limit_u64s - left,
		.u64s = u64s,
	};
	return 0;
}

/* With the lock: make room, by closing a full entry and opening the next. */
static int res_try_slow(struct journal *j, struct journal_res *res, unsigned u64s, enum watermark watermark)
{
	if (watermark < j->watermark_min)
		return __atomic_load_n(&j->error, __ATOMIC_ACQUIRE) ? -EROFS : -EAGAIN;
	int err = res_try(j, res, u64s, watermark);
	if (err != -EAGAIN)
		return err;
	uint64_t s = __atomic_load_n(&j->state, __ATOMIC_ACQUIRE);
	if (state_left(s) != JOURNAL_CLOSED) {
		/* Room, but more reservations at a time than can be counted: one of them will be put. */
		if (state_left(s) >= u64s)
			return -EAGAIN;
		/* Full: the next ones may be larger. */
		if (j->buf[state_buf(s)].is_bound_by_memory)
			j->entry_bytes = min(j->entry_bytes * 2, j->entry_bytes_max);
		journal_entry_close_locked(j);
	}
	while (((uint64_t)u64s + journal_reserved_u64s(j)) * 8 > j->entry_bytes && j->entry_bytes < j->entry_bytes_max)
		j->entry_bytes = min(j->entry_bytes * 2, j->entry_bytes_max);
	err = journal_open_entry(j, u64s, false);
	return err ? err : res_try(j, res, u64s, watermark);
}

/* More than the largest entry that will ever be? */
static bool is_too_big(struct journal *j, unsigned u64s)
{
	return ((uint64_t)u64s + journal_reserved_u64s(j)) * 8 > j->entry_bytes_max;
}

/* What goes on while a ring that is full is about to get room. */
struct standstill {
	uint64_t since_ns; /* 0: it doesn't stand still, as far as is known */
	uint64_t pin_front, seq_unwritten;
};

/*
 * Wait for a change. Who makes room for everybody else mustn't wait for ever: when all of a ring is pinned by what
 * can't be written back without a place in it, nobody will make any. How large a ring must be for that never to happen
 * is known for filesystems that Kiln makes; of others it isn't. So if neither a pin goes nor an entry is written for
 * long enough, that is the end of writing, and said so. Lock held on entry and return.
 */
static void wait_for_space(struct journal *j, enum watermark watermark, struct standstill *s)
{
	uint64_t now = clock_monotonic_ns();

	if (watermark < WATERMARK_RECLAIM) {
		waitq_wait(&j->changed, &j->lock);
		return;
	}
	if (!s->since_ns || s->pin_front != j->pin_front || s->seq_unwritten != j->seq_unwritten ||
	    j->seq_unwritten < j->seq_next)
		*s = (struct standstill){ now, j->pin_front, j->seq_unwritten };
	if (now - s->since_ns < standstill_ns) {
		waitq_wait_until(&j->changed, &j->lock, s->since_ns + standstill_ns);
		return;
	}
	journal_fail_tell(j, -ENOSPC,
			  &(struct report){
				  .level = REPORT_FATAL,
				  .err = -ENOSPC,
				  .structure = "journal",
				  .expected = "room for what writes btree nodes back",
				  .found = "none, and nothing that makes any, for two minutes",
				  .advice = "It is too small for this filesystem's nodes. The next mount makes it "
					    "larger, if there is space, and goes on.",
			  });
}

int journal_res_get(struct journal *j, struct journal_res *res, unsigned u64s, enum watermark watermark, unsigned flags)
{
	int err = res_try(j, res, u64s, watermark);
	struct standstill standstill = { 0 };

	if (err != -EAGAIN)
		return err;
	mutex_lock(&j->lock);
	while ((err = is_too_big(j, u64s) ? -E2BIG : res_try_slow(j, res, u64s, watermark)) == -EAGAIN) {
		waitq_wake_all(&j->reclaim_work);
		if (flags & JOURNAL_RES_TRY)
			break;
		task_may_wait_for(watermark == WATERMARK_RECLAIM ? TASK_JOURNAL_WRITER : TASK_RECLAIM);
		j->stats.reservations_waited++;
		wait_for_space(j, watermark, &standstill);
	}
	mutex_unlock(&j->lock);
	return err;
}

/* The count of a buffer has fallen, @s being the state since: one who couldn't be counted may try again. */
static void count_fell(struct journal *j, uint64_t s, unsigned buf)
{
	if (state_count(s, buf) != JOURNAL_COUNT_MAX - 1)
		return;
	mutex_lock(&j->lock);
	waitq_wake_all(&j->changed);
	mutex_unlock(&j->lock);
}

/* Make @res, of which nothing was used, undone, if it is the last of its entry; else it is put. */
static void res_give_back(struct journal *j, struct journal_res *res)
{
	uint64_t old = __atomic_load_n(&j->state, __ATOMIC_ACQUIRE), new;

	do {
		unsigned left = state_left(old);

		if (left == JOURNAL_CLOSED || state_buf(old) != res->buf ||
		    j->buf[res->buf].limit_u64s - left != res->at + res->u64s) {
			journal_res_put(j, res);
			return;
		}
		new = old + res->u64s - (1ull << state_count_shift(res->buf));
	} while (!__atomic_compare_exchange_n(&j->state, &old, new, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
	count_fell(j, new, res->buf);
}

int journal_res_wait(struct journal *j, unsigned u64s, enum watermark watermark)
{
	struct journal_res res;
	int err;

	/* A reservation that is given back at once tells best whether there is one. */
	err = journal_res_get(j, &res, u64s, watermark, 0);
	if (!err)
		res_give_back(j, &res);
	return err;
}

bool journal_admits(struct journal *j, enum watermark watermark)
{
	return watermark >= __atomic_load_n(&j->watermark_min, __ATOMIC_ACQUIRE) ||
	       __atomic_load_n(&j->error, __ATOMIC_ACQUIRE);
}

static uint64_t *res_words(struct journal *j, const struct journal_res *res)
{
	return (uint64_t *)(j->buf[res->buf].data + 1) + res->at;
}

void *journal_res_add(struct journal *j, struct journal_res *res, unsigned type, unsigned btree_id, unsigned level,
		      unsigned payload_u64s)
{
	struct jset_entry_disk *e = (struct jset_entry_disk *)(res_words(j, res) + res->used);

	assert(res->used + 1 + payload_u64s <= res->u64s);
	*e = (struct jset_entry_disk){
		.u64s = le16_of((uint16_t)payload_u64s),
		.btree_id = (uint8_t)btree_id,
		.level = (uint8_t)level,
		.type = (uint8_t)type,
	};
	res->used += 1 + payload_u64s;
	return e + 1;
}

void journal_res_add_key(struct journal *j, struct journal_res *res, unsigned type, unsigned btree_id, unsigned level,
			 const struct bkey *k, const void *value)
{
	struct bkey_disk *d = journal_res_add(j, res, type, btree_id, level, BKEY_U64S + k->value_u64s);

	bkey_store(d, k);
	if (k->value_u64s)
		memcpy(d + 1, value, bkey_value_bytes(k));
}

void journal_res_put(struct journal *j, struct journal_res *res)
{
	/* Zero words are empty sub-entries. */
	memset(res_words(j, res) + res->used, 0, (size_t)(res->u64s - res->used) * 8);
	uint64_t s = __atomic_sub_fetch(&j->state, 1ull << state_count_shift(res->buf), __ATOMIC_ACQ_REL);
	bool is_open_one = state_left(s) != JOURNAL_CLOSED && state_buf(s) == res->buf;

	count_fell(j, s, res->buf);
	if (!state_count(s, res->buf) && !is_open_one) {
		mutex_lock(&j->lock);
		waitq_wake_all(&j->write_work);
		mutex_unlock(&j->lock);
	}
	*res = (struct journal_res){ 0 };
}
