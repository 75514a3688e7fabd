/*
 * Checking the orders of locks and of tasks (see base/lock_order.h).
 *
 * What a task holds is a short list of its own, in its fiber or in memory of its thread, so nothing is shared and
 * nothing is locked. Only asking is checked: who takes a lock without waiting (trylock) can't be part of a deadlock by
 * that.
 *
 * Rules of SIX locks with a class, and why they suffice:
 * - Read is asked for with no other SIX lock held. So a reader waits for nobody while it holds a node.
 * - Intent is asked for in the order of the class, with none held for read.
 * - Write is asked for in the order of the class too. It waits for readers alone, who wait for nobody.
 */
#include "base/lock_order.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/fiber_sched.h"
#include "base/six.h"
#include "base/strbuf.h"
#include "base/sync.h"
#include "base/util.h"

static const char *const rank_names[LOCK_RANK_NR] = {
	[LOCK_UNORDERED] = "unordered",
	[LOCK_OUTERMOST] = "outermost",
	[LOCK_DRAIN] = "draining",
	[LOCK_ATIMES] = "times of access",
	[LOCK_USAGE] = "usage",
	[LOCK_BATCHES] = "batches",
	[LOCK_INODES] = "inodes",
	[LOCK_SHARED_EXTENTS] = "shared extents",
	[LOCK_INODE_NUMBERS] = "inode numbers",
	[LOCK_BUCKETS] = "buckets",
	[LOCK_SUPERS] = "superblocks",
	[LOCK_WRITE_POINT] = "write point",
	[LOCK_NODES] = "SIX",
	[LOCK_PIN_FLUSH] = "flushing of pins",
	[LOCK_NODE_POOL] = "node pool",
	[LOCK_OPEN_BUCKETS] = "open buckets",
	[LOCK_WRITE_BUFFER] = "write buffer",
	[LOCK_JOURNAL] = "journal",
	[LOCK_COUNTERS] = "counters",
	[LOCK_INNERMOST] = "innermost",
};

static const char *const task_names[TASK_RANK_NR] = {
	[TASK_JOURNAL_WRITER] = "journal writer",
	[TASK_NODE_WRITER] = "node writer",
	[TASK_INTERIOR] = "interior",
	[TASK_WRITE_BUFFER] = "write buffer",
	[TASK_RECLAIM] = "reclaim",
	[TASK_DISCARD] = "discard",
	[TASK_COPYGC] = "copygc",
	[TASK_DELETIONS] = "deletions",
	[TASK_USER] = "user",
};

/* Those that may be held while waiting for others: for devices, the journal, buckets. */
static bool may_sleep_with(const struct held_lock *l)
{
	if (l->rank == LOCK_NODES)
		return !((const struct six_lock *)l->lock)->class;
	return l->rank <= LOCK_WRITE_POINT;
}

/* Of this task. NULL: nothing is checked. */
static struct held_locks *held_self(void)
{
	if (fiber_mode()) {
		struct fiber *self = fiber_current();

		return self ? &self->locks : NULL;
	}
#ifdef KILN_CHECK_LOCKS
	static _Thread_local struct held_locks thread;

	return &thread;
#else
	return NULL;
#endif
}

static enum task_rank rank_of(const struct held_locks *h) { return TASK_USER - h->is_below_user; }

/* --- reports --- */

static void lock_describe(struct strbuf *out, const struct held_lock *l)
{
	static const char *const modes[SIX_MODE_NR] = { "read", "intent", "write" };
	const struct six_lock *six = l->lock;

	if (l->rank != LOCK_NODES) {
		strbuf_printf(out, "%s (%p)", rank_names[l->rank], l->lock);
		return;
	}
	strbuf_printf(out, "%s of ", modes[l->mode]);
	if (six->class)
		six->class->describe(out, six);
	else
		strbuf_printf(out, "%p", l->lock);
}

static _Noreturn void violation(const struct held_locks *h, const char *what, const struct held_lock *asked)
{
	struct strbuf text = strbuf_growing();

	strbuf_printf(&text, "lock order: a task of rank '%s' %s", task_names[rank_of(h)], what);
	if (asked) {
		strbuf_add_char(&text, ' ');
		lock_describe(&text, asked);
	}
	strbuf_add(&text, h->nr ? "; it holds" : "; it holds nothing");
	for (uint32_t i = 0; i < h->nr; i++) {
		strbuf_add(&text, i ? ", " : " ");
		lock_describe(&text, &h->held[i]);
	}
	fprintf(stderr, "%s\nSee docs/locking.md.\n", strbuf_text(&text));
	abort();
}

/* --- what is held --- */

static void held_add(struct held_locks *h, const void *lock, unsigned rank, unsigned mode)
{
	if (h->nr < HELD_LOCKS_MAX)
		h->held[h->nr++] = (struct held_lock){ lock, (uint8_t)rank, (uint8_t)mode };
	else
		h->unnamed_nr++;
}

/* The youngest first: most are released soon. */
static void held_remove(struct held_locks *h, const void *lock, unsigned mode)
{
	uint32_t i = h->nr;

	while (i-- > 0)
		if (h->held[i].lock == lock && h->held[i].mode == mode)
			break;
	if (i == UINT32_MAX) {
		assert(h->unnamed_nr);
		h->unnamed_nr--;
		return;
	}
	h->nr--;
	for (; i < h->nr; i++)
		h->held[i] = h->held[i + 1];
}

/* --- mutexes, and what is held like them --- */

void lock_order_ask(const void *what, enum lock_rank rank, const struct mutex *let_go)
{
	struct held_locks *h = held_self();

	if (!h || rank == LOCK_UNORDERED)
		return;
	const struct held_lock asked = { what, (uint8_t)rank, 0 };
	for (uint32_t i = 0; i < h->nr; i++) {
		const struct held_lock *l = &h->held[i];
		bool is_in_order = l->rank < rank ||
				   (l->rank == rank && rank == LOCK_INODES && (uintptr_t)l->lock < (uintptr_t)what);

		if (!is_in_order && l->lock != let_go)
			violation(h, "asks for", &asked);
	}
}

void lock_order_taken(const void *what, enum lock_rank rank)
{
	struct held_locks *h = held_self();

	if (h)
		held_add(h, what, rank, 0);
}

void lock_order_released(const void *what)
{
	struct held_locks *h = held_self();

	if (h)
		held_remove(h, what, 0);
}

/* --- SIX locks --- */

static bool six_is_in_order(const struct held_lock *l, const struct six_lock *lock, unsigned mode)
{
	const struct six_lock *held = l->lock;

	if (l->rank < LOCK_NODES)
		return true;
	if (l->rank > LOCK_NODES)
		return false;
	/* One of those without an order may be in order with every other. */
	if (!held->class || !lock->class)
		return true;
	/* Intent on all of them is had before write is asked for on the first. */
	if (mode == SIX_WRITE && l->mode == SIX_INTENT)
		return true;
	return mode != SIX_READ && l->mode != SIX_READ && held->class->compare(held, lock) < 0;
}

void lock_order_six_ask(const struct six_lock *lock, unsigned mode)
{
	struct held_locks *h = held_self();

	if (!h)
		return;
	const struct held_lock asked = { lock, LOCK_NODES, (uint8_t)mode };
	for (uint32_t i = 0; i < h->nr; i++)
		if (!six_is_in_order(&h->held[i], lock, mode))
			violation(h, "asks for", &asked);
}

void lock_order_six_taken(const struct six_lock *lock, unsigned mode)
{
	struct held_locks *h = held_self();

	if (h)
		held_add(h, lock, LOCK_NODES, mode);
}

void lock_order_six_released(const struct six_lock *lock, unsigned mode)
{
	struct held_locks *h = held_self();

	if (h)
		held_remove(h, lock, mode);
}

/* --- waiting --- */

void task_may_wait(const struct mutex *m)
{
	struct held_locks *h = held_self();

	if (!h)
		return;
	for (uint32_t i = 0; i < h->nr; i++)
		if (h->held[i].lock != m && !may_sleep_with(&h->held[i]))
			violation(h, "waits for others", NULL);
}

void task_rank_set(enum task_rank rank)
{
	struct held_locks *h = held_self();

	if (h)
		h->is_below_user = TASK_USER - rank;
}

enum task_rank task_rank_lower(enum task_rank rank)
{
	struct held_locks *h = held_self();
	enum task_rank before = h ? rank_of(h) : TASK_USER;

	if (h && rank < before)
		h->is_below_user = TASK_USER - rank;
	return before;
}

void task_may_wait_for(enum task_rank whom)
{
	struct held_locks *h = held_self();
	char what[64];

	if (!h || rank_of(h) > whom)
		return;
	struct strbuf text = strbuf_fixed(what, sizeof(what));
	strbuf_printf(&text, "waits for one of rank '%s'", task_names[whom]);
	violation(h, what, NULL);
}
