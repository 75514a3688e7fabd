/*
 * SIX locks: shared, intent, exclusive. The locks of btree nodes.
 *
 *			beside read	beside intent	beside write
 *	read		yes		yes		no
 *	intent		yes		no		no
 *	write		no		its own		no
 *
 * Many tasks may hold a lock for *read*. One may hold it for *intent*: it alone may go on to change the object, readers
 * don't disturb it and it doesn't disturb them. Only the task with intent may take *write*, for the short time of the
 * change itself; that waits until the readers are gone. So a task can decide what it will change in many objects, and
 * keep everybody else from changing them, while all of them stay readable.
 *
 * Every lock has a sequence number that counts up when it is locked and when it is unlocked for write: odd while being
 * written. Who remembers it may let the lock go and take it again with relock, which succeeds only when nobody wrote
 * meanwhile: what was learned before still holds. It has 32 bits; who remembers one over 2^31 writes is deceived.
 *
 * Who waits for whom:
 * - Waiting for read: while a task holds write, or waits for it. At its unlock all readers that wait are admitted
 *   together, before anybody can write again. So no reader waits for more than one write.
 * - Waiting for intent: while another task holds it. It is handed on in the order of asking; none can come in between.
 * - Waiting for write: until those who held read at the time have let go, with the increments they add meanwhile.
 *   Nobody else gets in, so readers can't hold off a writer for ever.
 * - trylock and relock never wait and never pass anybody who waits.
 * Threads look at the lock for some microseconds before they begin to wait in this sense: until then others may come
 * first.
 *
 * One rule follows for a task that takes the same lock twice. Who holds it for read must not lock it for read again (a
 * writer may wait between the two, for ever): use six_increment(). Who holds it for intent needs no read besides, and
 * must have none when it locks for write, because it would wait for itself.
 *
 * And one for a task that takes many locks. Taking them in one total order prevents deadlock among read and intent, but
 * a writer always waits for tasks that may wait in turn, in order, for what the writer holds. Lock for write with
 * trylock or six_lock_or_stop(), or when holding nothing that a reader of this lock can wait for.
 *
 * Locks belong to tasks (base/sync.h): the task that took one releases it. Works in thread mode and in fiber mode.
 */
#ifndef KILN_BASE_SIX_H
#define KILN_BASE_SIX_H

#include <stdbool.h>
#include <stdint.h>

enum six_mode { SIX_READ, SIX_INTENT, SIX_WRITE, SIX_MODE_NR };

struct six_class;
struct six_waiter;

/* 56 bytes; all members but `class` are private to base/six.c. */
struct six_lock {
	uint64_t state;
	uint32_t guard;				      /* of the members below */
	uint32_t intent_increments;		      /* only the task with intent looks here */
	struct six_waiter *waiters_last[SIX_MODE_NR]; /* the youngest of each queue, a ring through `next` */
	const void *intent_task;		      /* who holds intent, NULL: nobody (or not known yet) */
	const struct six_class *class;		      /* its place in the order of locks (base/lock_order.h), or NULL */
};

_Static_assert(sizeof(struct six_lock) <= 64, "there is one in every btree node");

/* Works from either mode. A new lock has sequence number 0. @class (or NULL) must outlive it. */
void six_lock_init(struct six_lock *lock, const struct six_class *class);
/* Nobody may hold the lock or wait for it. */
void six_lock_destroy(struct six_lock *lock);

/* Take @lock; waits as long as it must. SIX_WRITE: the task must hold intent. Switch point. */
void six_lock(struct six_lock *lock, enum six_mode mode);
/*
 * The same, but when it would have to wait it asks @should_stop(@ctx) once, before it has changed anything and with no
 * internal lock held, and gives up on true. Returns 0, or -KILN_E_RESTART. Switch point.
 */
int six_lock_or_stop(struct six_lock *lock, enum six_mode mode, bool (*should_stop)(void *ctx), void *ctx);
/* Take @lock if that is possible at once; true: taken. */
bool six_trylock(struct six_lock *lock, enum six_mode mode);
/*
 * Take @lock (not for write) if that is possible at once and its sequence number still is @seq. When this fails, the
 * object may have changed or not.
 */
bool six_relock(struct six_lock *lock, enum six_mode mode, uint32_t seq);
/* Switch point. When the object's owner allows it, @lock may be gone on return. */
void six_unlock(struct six_lock *lock, enum six_mode mode);

/* Hold @lock once more in a mode (not write) that the task holds already. Never waits. Each needs its own unlock. */
void six_increment(struct six_lock *lock, enum six_mode mode);
/* Read becomes intent, unless somebody has intent (the task itself included): then returns false, still with read. */
bool six_tryupgrade(struct six_lock *lock);
/* Intent (one increment of it) becomes read. The task must not hold write. Switch point. */
void six_downgrade(struct six_lock *lock);

/* The sequence number, for a later relock. The task must hold @lock, and not for write. */
uint32_t six_seq(const struct six_lock *lock);

/* Asserts that this task holds @lock for intent or write; for read, that any task does. */
void six_assert_held(const struct six_lock *lock, enum six_mode mode);

static inline void six_lock_read(struct six_lock *lock) { six_lock(lock, SIX_READ); }
static inline void six_lock_intent(struct six_lock *lock) { six_lock(lock, SIX_INTENT); }
static inline void six_lock_write(struct six_lock *lock) { six_lock(lock, SIX_WRITE); }
static inline bool six_trylock_read(struct six_lock *lock) { return six_trylock(lock, SIX_READ); }
static inline bool six_trylock_intent(struct six_lock *lock) { return six_trylock(lock, SIX_INTENT); }
static inline bool six_trylock_write(struct six_lock *lock) { return six_trylock(lock, SIX_WRITE); }
static inline bool six_relock_read(struct six_lock *lock, uint32_t seq) { return six_relock(lock, SIX_READ, seq); }
static inline bool six_relock_intent(struct six_lock *lock, uint32_t seq) { return six_relock(lock, SIX_INTENT, seq); }
static inline void six_unlock_read(struct six_lock *lock) { six_unlock(lock, SIX_READ); }
static inline void six_unlock_intent(struct six_lock *lock) { six_unlock(lock, SIX_INTENT); }
static inline void six_unlock_write(struct six_lock *lock) { six_unlock(lock, SIX_WRITE); }

#endif
