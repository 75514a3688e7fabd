/*
 * SIX locks (see base/six.h). The idea of the three modes and of relocking by sequence number is bcachefs's.
 *
 * All that decides about taking and releasing is one word, changed by one atomic operation:
 *
 *	bits 0-23	how many hold read
 *	bit 24		somebody holds intent
 *	bits 25-27	somebody waits for read, for intent, for write
 *	bits 32-63	sequence number; odd: somebody holds write
 *
 * The queues of waiting tasks have a small lock of their own, the guard, that is only touched when somebody must
 * wait or be woken. The bits that say that somebody waits change only under it, together with the queues. A lock is
 * granted: whoever releases takes it on behalf of those who wait, in the same atomic operation, and then wakes them.
 * So a task that wakes up has the lock, and none can get ahead of it.
 *
 * Invariants:
 * - write is held			=>  intent is held by the same task, and nobody holds read
 * - somebody waits for read		=>  write is held or waited for
 * - somebody waits for intent		=>  intent is held
 * - somebody waits for write		=>  it is the task with intent, and somebody holds read or is in grant()
 *
 * From these follows who must wake whom: unlock of write all readers, of intent the next one in the queue, the last
 * unlock of read the writer. No other release can make anything possible that somebody waits for; and because exactly
 * one task can be the one who has to wake, it finds the waiters still there when it has taken the guard.
 *
 * No release touches the lock's memory after the woken task may run, so a task may free the object as soon as it has
 * got write and nobody else can find the object.
 */
#include "base/six.h"

#include <assert.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fiber_sched.h"
#include "base/lock_order.h"
#include "base/report.h"
#include "base/sync.h"

enum { SPIN_NS = 10000 };

#define READER	     1ull
#define READERS	     ((1ull << 24) - 1)
#define INTENT	     (1ull << 24)
#define READ_WAITS   (1ull << 25)
#define INTENT_WAITS (1ull << 26)
#define WRITE_WAITS  (1ull << 27)
#define SEQ_SHIFT    32
#define SEQ_ONE	     (1ull << SEQ_SHIFT)
#define SEQ	     (UINT64_MAX << SEQ_SHIFT)
#define WRITTEN	     SEQ_ONE /* odd */

static const struct rule {
	uint64_t blocked_by; /* can't be taken while any of these is set */
	uint64_t take;	     /* what taking adds */
	uint64_t waits;
} rules[SIX_MODE_NR] = {
	[SIX_READ] = { WRITTEN | WRITE_WAITS, READER, READ_WAITS },
	[SIX_INTENT] = { INTENT, INTENT, INTENT_WAITS },
	[SIX_WRITE] = { READERS, SEQ_ONE, WRITE_WAITS },
};

/* A task that waits, on its stack. */
struct six_waiter {
	struct six_waiter *next;
	struct countdown granted;
};

static inline bool state_change_if(struct six_lock *lock, uint64_t mask, uint64_t expected, uint64_t change);
static void wait_for_grant(struct six_lock *lock, enum six_mode mode);
static void release(struct six_lock *lock, uint64_t change, enum six_mode next);
static void grant(struct six_lock *lock, uint64_t change, enum six_mode mode);

static uint64_t state_load(const struct six_lock *lock) { return __atomic_load_n(&lock->state, __ATOMIC_RELAXED); }

void six_lock_init(struct six_lock *lock, const struct six_class *class)
{
	*lock = (struct six_lock){ .class = class };
}

void six_lock_destroy(struct six_lock *lock)
{
	assert(!(state_load(lock) & (~SEQ | WRITTEN)));
	assert(!lock->waiters_last[SIX_READ] && !lock->waiters_last[SIX_INTENT] && !lock->waiters_last[SIX_WRITE]);
}

/* --- tasks --- */

/* The fiber that runs; NULL in thread mode. */
static inline struct fiber *fiber_self(void)
{
	struct fiber *self;

	if (!fiber_mode())
		return NULL;
	self = fiber_current();
	assert(self); /* not in a callback */
	return self;
}

/* Tells tasks apart; @self: from fiber_self(). */
static inline const void *task_of(const struct fiber *self)
{
	static _Thread_local char thread;

	return self ? (const void *)self : &thread;
}

static inline void note_taken(struct six_lock *lock, enum six_mode mode, struct fiber *self)
{
	if (mode == SIX_INTENT)
		__atomic_store_n(&lock->intent_task, task_of(self), __ATOMIC_RELAXED);
	lock_order_six_taken(lock, mode);
}

static inline bool has_intent(const struct six_lock *lock, const struct fiber *self)
{
	return __atomic_load_n(&lock->intent_task, __ATOMIC_RELAXED) == task_of(self);
}

static inline void assert_held(const struct six_lock *lock, enum six_mode mode, const struct fiber *self)
{
	switch (mode) {
	case SIX_READ: assert(state_load(lock) & READERS); break;
	case SIX_WRITE: assert(state_load(lock) & WRITTEN); /* fall through */
	case SIX_INTENT: assert(has_intent(lock, self)); break;
	default: assert(!"a mode");
	}
}

void six_assert_held(const struct six_lock *lock, enum six_mode mode) { assert_held(lock, mode, fiber_self()); }

/* --- taking --- */

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* What must hold before a task may ask for @mode. */
static inline void assert_may_ask(const struct six_lock *lock, enum six_mode mode, const struct fiber *self)
{
	if (mode == SIX_WRITE)
		assert(has_intent(lock, self) && !(state_load(lock) & WRITTEN));
	else
		assert(mode < SIX_MODE_NR && (state_load(lock) & READERS) != READERS);
}

static inline bool try_take(struct six_lock *lock, enum six_mode mode)
{
	const struct rule *rule = &rules[mode];

	return state_change_if(lock, rule->blocked_by, 0, rule->take);
}

/*
 * What is held is mostly let go within a microsecond or two, and sleeping takes ten times that: look again for as long
 * as waking up would take. Where there is another processor for who has it.
 */
static bool take_soon(struct six_lock *lock, enum six_mode mode)
{
	static unsigned cpus;
	unsigned nr = __atomic_load_n(&cpus, __ATOMIC_RELAXED);

	if (!nr)
		__atomic_store_n(&cpus, nr = cpu_nr(), __ATOMIC_RELAXED);
	if (nr < 2)
		return false;
	uint64_t end = clock_monotonic_ns() + SPIN_NS;
	do {
		cpu_relax();
		if (!(state_load(lock) & rules[mode].blocked_by) && try_take(lock, mode))
			return true;
	} while (clock_monotonic_ns() < end);
	return false;
}

/* try_take() has failed. */
static void take_waiting(struct six_lock *lock, enum six_mode mode, struct fiber *self)
{
	/* Else the task would wait for itself. */
	assert(mode == SIX_WRITE || !has_intent(lock, self));
	if (self || !take_soon(lock, mode))
		wait_for_grant(lock, mode);
}

void six_lock(struct six_lock *lock, enum six_mode mode)
{
	struct fiber *self = fiber_self();

	assert_may_ask(lock, mode, self);
	lock_order_six_ask(lock, mode);
	if (self)
		fiber_yield();
	if (!try_take(lock, mode))
		take_waiting(lock, mode, self);
	note_taken(lock, mode, self);
}

int six_lock_or_stop(struct six_lock *lock, enum six_mode mode, bool (*should_stop)(void *ctx), void *ctx)
{
	struct fiber *self = fiber_self();

	assert_may_ask(lock, mode, self);
	if (self)
		fiber_yield();
	if (!try_take(lock, mode)) {
		if (should_stop(ctx))
			return -KILN_E_RESTART;
		lock_order_six_ask(lock, mode);
		take_waiting(lock, mode, self);
	}
	note_taken(lock, mode, self);
	return 0;
}

bool six_trylock(struct six_lock *lock, enum six_mode mode)
{
	struct fiber *self = fiber_self();

	assert_may_ask(lock, mode, self);
	if (!try_take(lock, mode))
		return false;
	note_taken(lock, mode, self);
	return true;
}

bool six_relock(struct six_lock *lock, enum six_mode mode, uint32_t seq)
{
	struct fiber *self = fiber_self();
	const struct rule *rule = &rules[mode];

	assert(mode != SIX_WRITE && !(seq & 1));
	assert_may_ask(lock, mode, self);
	if (!state_change_if(lock, SEQ | rule->blocked_by, (uint64_t)seq << SEQ_SHIFT, rule->take))
		return false;
	note_taken(lock, mode, self);
	return true;
}

void six_increment(struct six_lock *lock, enum six_mode mode)
{
	struct fiber *self = fiber_self();

	assert(mode != SIX_WRITE);
	assert_may_ask(lock, mode, self);
	assert_held(lock, mode, self);
	if (mode == SIX_INTENT)
		lock->intent_increments++;
	else
		__atomic_fetch_add(&lock->state, READER, __ATOMIC_RELAXED);
	note_taken(lock, mode, self);
}

bool six_tryupgrade(struct six_lock *lock)
{
	struct fiber *self = fiber_self();

	assert_held(lock, SIX_READ, self);
	/* Nobody has intent, so no writer waits for this reader to go. */
	if (!state_change_if(lock, INTENT, 0, INTENT - READER))
		return false;
	lock_order_six_released(lock, SIX_READ);
	note_taken(lock, SIX_INTENT, self);
	return true;
}

/* --- releasing --- */

static void unlock_read(struct six_lock *lock)
{
	uint64_t before = __atomic_fetch_sub(&lock->state, READER, __ATOMIC_RELEASE);

	assert(before & READERS);
	if ((before & (READERS | WRITE_WAITS)) == (READER | WRITE_WAITS))
		grant(lock, 0, SIX_WRITE);
}

/* Give up intent or one increment of it, and add @change to the state in the same step. */
static void unlock_intent(struct six_lock *lock, uint64_t change)
{
	if (lock->intent_increments) {
		lock->intent_increments--;
		__atomic_fetch_add(&lock->state, change, __ATOMIC_RELEASE);
		return;
	}
	assert(!(state_load(lock) & WRITTEN));
	__atomic_store_n(&lock->intent_task, NULL, __ATOMIC_RELAXED);
	release(lock, change - INTENT, SIX_INTENT);
}

void six_unlock(struct six_lock *lock, enum six_mode mode)
{
	struct fiber *self = fiber_self();

	assert_held(lock, mode, self);
	lock_order_six_released(lock, mode);
	switch (mode) {
	case SIX_READ: unlock_read(lock); break;
	case SIX_INTENT: unlock_intent(lock, 0); break;
	default: release(lock, SEQ_ONE, SIX_READ);
	}
	if (self)
		fiber_yield();
}

void six_downgrade(struct six_lock *lock)
{
	struct fiber *self = fiber_self();

	assert_held(lock, SIX_INTENT, self);
	assert(!(state_load(lock) & WRITTEN));
	lock_order_six_released(lock, SIX_INTENT);
	note_taken(lock, SIX_READ, self);
	unlock_intent(lock, READER);
	if (self)
		fiber_yield();
}

uint32_t six_seq(const struct six_lock *lock)
{
	uint64_t state = state_load(lock);

	assert((state & (READERS | INTENT)) && !(state & WRITTEN));
	return (uint32_t)(state >> SEQ_SHIFT);
}

/* --- the state --- */

/* Add @change when the bits in @mask are as @expected; else returns false. */
static inline bool state_change_if(struct six_lock *lock, uint64_t mask, uint64_t expected, uint64_t change)
{
	uint64_t state = state_load(lock);

	while ((state & mask) == expected)
		if (__atomic_compare_exchange_n(&lock->state, &state, state + change, true, __ATOMIC_ACQUIRE,
						__ATOMIC_RELAXED))
			return true;
	return false;
}

/* Release by adding @change, and in the same step grant the lock to who waits for @next, if anybody does. */
static void release(struct six_lock *lock, uint64_t change, enum six_mode next)
{
	uint64_t state = state_load(lock);

	while (!(state & rules[next].waits))
		if (__atomic_compare_exchange_n(&lock->state, &state, state + change, true, __ATOMIC_RELEASE,
						__ATOMIC_RELAXED))
			return;
	grant(lock, change, next);
}

/* --- the queues --- */

/*
 * The guard is held for a few instructions and never over a switch point, so in fiber mode it is always free. In thread
 * mode its holder may lose the processor: who finds it held sleeps (U. Drepper, "Futexes are tricky", mutex 3).
 */
enum { GUARD_FREE, GUARD_HELD, GUARD_HELD_AND_WANTED };

static void guard_take(struct six_lock *lock)
{
	uint32_t before = GUARD_FREE;

	if (__atomic_compare_exchange_n(&lock->guard, &before, GUARD_HELD, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return;
	assert(!fiber_mode());
	while (__atomic_exchange_n(&lock->guard, GUARD_HELD_AND_WANTED, __ATOMIC_ACQUIRE) != GUARD_FREE)
		syscall(SYS_futex, &lock->guard, FUTEX_WAIT_PRIVATE, GUARD_HELD_AND_WANTED, NULL, NULL, 0);
}

/* As in countdown_put(), the wake-up names only an address. */
static void guard_release(struct six_lock *lock)
{
	if (__atomic_exchange_n(&lock->guard, GUARD_FREE, __ATOMIC_RELEASE) == GUARD_HELD_AND_WANTED)
		syscall(SYS_futex, &lock->guard, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void waiter_append(struct six_waiter **last, struct six_waiter *w)
{
	if (*last) {
		w->next = (*last)->next;
		(*last)->next = w;
	} else {
		w->next = w;
	}
	*last = w;
}

/* Remove the oldest waiter, or all, and return them as a list. */
static struct six_waiter *waiters_remove(struct six_waiter **last, bool all)
{
	struct six_waiter *first = (*last)->next;
	struct six_waiter *end = all ? *last : first;

	if (end == *last)
		*last = NULL;
	else
		(*last)->next = end->next;
	end->next = NULL;
	return first;
}

/* Returns with the lock taken. */
static void wait_for_grant(struct six_lock *lock, enum six_mode mode)
{
	const struct rule *rule = &rules[mode];
	struct six_waiter self = { 0 };
	uint64_t state = state_load(lock);
	bool must_wait;

	countdown_init(&self.granted, 1);
	guard_take(lock);
	do
		must_wait = state & rule->blocked_by;
	while (!__atomic_compare_exchange_n(&lock->state, &state, must_wait ? state | rule->waits : state + rule->take,
					    true, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED));
	if (must_wait)
		waiter_append(&lock->waiters_last[mode], &self);
	guard_release(lock);
	if (must_wait)
		countdown_wait_for_lock(&self.granted);
	countdown_destroy(&self.granted);
}

/* Add @change to the state, with what makes those who wait for @mode its holders, and wake them. */
static void grant(struct six_lock *lock, uint64_t change, enum six_mode mode)
{
	const struct rule *rule = &rules[mode];
	struct six_waiter *granted, *w;

	guard_take(lock);
	granted = waiters_remove(&lock->waiters_last[mode], mode == SIX_READ);
	for (w = granted; w; w = w->next)
		change += rule->take;
	if (!lock->waiters_last[mode])
		change -= rule->waits;
	__atomic_fetch_add(&lock->state, change, __ATOMIC_ACQ_REL);
	guard_release(lock);

	while ((w = granted)) {
		granted = w->next;
		countdown_put(&w->granted); /* neither @w nor @lock need exist any more */
	}
}
