/*
 * Pins: which entries must stay replayable.
 *
 * One list per seq, in an array that is used as a ring and grows when the distance between the oldest and the newest
 * entry does. pin_front moves up when the lists at its end are empty and their entries written. After a crash any
 * number of entries may be to be replayed; memory for lists is bounded, so those that are far back share the list of
 * one seq, and all are pinned as long as one of them is.
 *
 * Reclaim calls a pin's flush function without the lock; meanwhile nobody may free the pin, so who drops it waits until
 * the call is over. (The one exception is the call itself.) The call is like a lock: it may take what comes after it in
 * the order of locks, and who waits for it may hold what comes before, locks of nodes too.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "journal/journal_internal.h"

enum {
	PINS_MIN = 1024,
	ASK_AGAIN_NS = 10000000,
};

/* The seq in whose list those of @seq are. */
static uint64_t pin_seq(const struct journal *j, uint64_t seq) { return max(seq, j->folded_front); }
static struct journal_pin_list *pin_list(struct journal *j, uint64_t seq) { return &j->pins[seq & (j->pin_nr - 1)]; }

static void list_init(struct journal_pin_list *l) { l->head.next = l->head.prev = &l->head; }
static bool list_is_empty(const struct journal_pin_list *l) { return l->head.next == &l->head; }

static void list_add(struct journal_pin_list *l, struct journal_pin *pin)
{
	pin->next = &l->head;
	pin->prev = l->head.prev;
	pin->prev->next = pin->next->prev = pin;
}

static void list_remove(struct journal_pin *pin)
{
	pin->prev->next = pin->next;
	pin->next->prev = pin->prev;
	pin->next = pin->prev = NULL;
}

/* Move the lists to an array of @nr. */
static int pins_resize(struct journal *j, uint64_t nr)
{
	struct journal_pin_list *pins = malloc(nr * sizeof(*pins));

	if (!pins)
		return -ENOMEM;
	for (uint64_t i = 0; i < nr; i++)
		list_init(&pins[i]);
	for (uint64_t seq = j->pin_front; j->pins && seq < j->seq_next; seq++) {
		struct journal_pin_list *from = pin_list(j, seq), *to = &pins[seq & (nr - 1)];

		while (!list_is_empty(from)) {
			struct journal_pin *pin = from->head.next;

			list_remove(pin);
			list_add(to, pin);
		}
	}
	free(j->pins);
	j->pins = pins;
	j->pin_nr = nr;
	return 0;
}

int journal_pins_init(struct journal *j)
{
	uint64_t nr = PINS_MIN;

	if (j->seq_next - j->pin_front > JOURNAL_REPLAY_SEQS_MAX) {
		j->folded_seq = j->pin_front;
		j->folded_front = j->pin_front = j->seq_next - JOURNAL_REPLAY_SEQS_MAX;
		j->replay_seq = pin_seq(j, j->replay_seq);
	}
	while (nr < j->seq_next - j->pin_front + 1)
		nr *= 2;
	return pins_resize(j, nr);
}

void journal_pins_free(struct journal *j) { free(j->pins); }

/* Forget lists that nobody needs. Reservations in entries that aren't written may still add pins. */
static void front_advance(struct journal *j)
{
	uint64_t limit = j->replay_seq ? j->replay_seq : j->seq_unwritten;
	uint64_t old = j->pin_front;

	while (j->pin_front < limit && list_is_empty(pin_list(j, j->pin_front)))
		j->pin_front++;
	if (j->pin_front == old)
		return;
	waitq_wake_all(&j->changed);
	/* An entry that says so may free a bucket. */
	if (j->watermark_min == WATERMARK_RECLAIM)
		waitq_wake_all(&j->reclaim_work);
}

int journal_pins_grow(struct journal *j, uint64_t seq)
{
	front_advance(j);
	return seq - j->pin_front < j->pin_nr ? 0 : pins_resize(j, j->pin_nr * 2);
}

uint64_t journal_last_seq(struct journal *j, uint64_t seq)
{
	front_advance(j);
	return min(j->pin_front == j->folded_front ? j->folded_seq : j->pin_front, seq);
}

bool journal_has_pins(struct journal *j, uint64_t seq)
{
	seq = pin_seq(j, seq);
	for (uint64_t s = j->pin_front; s <= seq && s < j->seq_next; s++)
		if (!list_is_empty(pin_list(j, s)))
			return true;
	return false;
}

bool journal_is_pinned(struct journal *j, uint64_t seq)
{
	mutex_lock(&j->lock);
	bool is_pinned = (j->replay_seq && j->replay_seq <= pin_seq(j, seq)) || journal_has_pins(j, seq);
	mutex_unlock(&j->lock);
	return is_pinned;
}

static void pin_put(struct journal *j, struct journal_pin *pin, uint64_t seq,
		    void (*flush)(struct journal *, struct journal_pin *, uint64_t))
{
	seq = pin_seq(j, seq);
	assert(seq >= j->pin_front && seq < j->seq_next);
	pin->seq = seq;
	pin->flush = flush;
	list_add(pin_list(j, seq), pin);
}

static void pin_take(struct journal *j, struct journal_pin *pin)
{
	list_remove(pin);
	pin->seq = 0;
	front_advance(j);
	/* For those who wait until nothing up to some seq is pinned. */
	if (j->pin_waiters)
		waitq_wake_all(&j->changed);
}

/* Until nobody calls @pin's flush function, unless that is the caller. */
static void wait_not_flushing(struct journal *j, struct journal_pin *pin)
{
	while (j->flushing == pin && j->flushing_task != task_identity())
		waitq_wait_for_lock(&j->flush_done, &j->lock, LOCK_PIN_FLUSH);
}

void journal_pin_add(struct journal *j, struct journal_pin *pin, uint64_t seq,
		     void (*flush)(struct journal *, struct journal_pin *, uint64_t))
{
	mutex_lock(&j->lock);
	if (pin->seq && pin->seq > seq)
		pin_take(j, pin);
	if (!pin->seq)
		pin_put(j, pin, seq, flush);
	mutex_unlock(&j->lock);
}

void journal_pin_drop(struct journal *j, struct journal_pin *pin)
{
	mutex_lock(&j->lock);
	wait_not_flushing(j, pin);
	if (pin->seq)
		pin_take(j, pin);
	mutex_unlock(&j->lock);
}

void journal_pin_move(struct journal *j, struct journal_pin *to, struct journal_pin *from,
		      void (*flush)(struct journal *, struct journal_pin *, uint64_t))
{
	mutex_lock(&j->lock);
	wait_not_flushing(j, from);
	uint64_t seq = from->seq;
	if (seq) {
		/* The new holder first: the entry is pinned all the time. */
		if (to->seq && to->seq > seq)
			pin_take(j, to);
		if (!to->seq)
			pin_put(j, to, seq, flush);
		pin_take(j, from);
	}
	mutex_unlock(&j->lock);
}

uint64_t journal_pins_ask(struct journal *j, uint64_t seq)
{
	uint64_t asked = 0;

	seq = pin_seq(j, seq);
	for (uint64_t s = j->pin_front; s <= seq && s < j->seq_next; s = max(s + 1, j->pin_front)) {
		uint64_t nr = 0;

		for (struct journal_pin *pin = pin_list(j, s)->head.next; pin != &pin_list(j, s)->head; pin = pin->next)
			nr++;
		/* Each that is asked goes to the end of its list; new ones may come. */
		while (nr-- && s >= j->pin_front && !list_is_empty(pin_list(j, s))) {
			struct journal_pin *pin = pin_list(j, s)->head.next;
			void (*flush)(struct journal *, struct journal_pin *, uint64_t) = pin->flush;

			list_remove(pin);
			list_add(pin_list(j, s), pin);
			if (!flush)
				continue;
			j->flushing = pin;
			j->flushing_task = task_identity();
			mutex_unlock(&j->lock);
			lock_order_taken(&j->flushing, LOCK_PIN_FLUSH);
			flush(j, pin, s);
			lock_order_released(&j->flushing);
			mutex_lock(&j->lock);
			j->flushing = NULL;
			waitq_wake_all(&j->flush_done);
			asked++;
		}
	}
	return asked;
}

int journal_flush_pins(struct journal *j, uint64_t seq, uint64_t *flushed)
{
	uint64_t asked = 0;
	int err;

	task_may_wait_for(TASK_RECLAIM);
	mutex_lock(&j->lock);
	while (!(err = journal_error(j)) && journal_has_pins(j, seq)) {
		/* One task at a time calls flush functions. */
		while (j->flushing)
			waitq_wait(&j->flush_done, &j->lock);
		asked += journal_pins_ask(j, seq);
		/* Who was asked is at work; asking each of them again whenever one has let go would be many calls. */
		uint64_t again = clock_monotonic_ns() + ASK_AGAIN_NS;
		j->pin_waiters++;
		while (clock_monotonic_ns() < again && !journal_error(j) && journal_has_pins(j, seq))
			waitq_wait_until(&j->changed, &j->lock, again);
		j->pin_waiters--;
	}
	mutex_unlock(&j->lock);
	if (flushed)
		*flushed = asked;
	return err;
}
