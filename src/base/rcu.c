/*
 * Read-copy-update (see base/rcu.h).
 *
 * The depth of nested read sections is kept for each thread. In fiber mode that is the whole implementation: no switch
 * happens while it isn't zero, so whoever waits finds every section of every fiber ended.
 */
#include "base/rcu.h"

#include <assert.h>

#include "base/fiber_sched.h"
#include "base/sanitizer.h"

#if KILN_TSAN
#include <pthread.h>
#else
#include <urcu/urcu-bp.h>
#endif

static _Thread_local unsigned section_depth;

#if KILN_TSAN

/* Prefers writers: readers whose sections overlap without end must not hold off rcu_wait() for ever. */
static pthread_rwlock_t sections = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static void system_section_begin(void) { pthread_rwlock_rdlock(&sections); }
static void system_section_end(void) { pthread_rwlock_unlock(&sections); }

static void system_wait(void)
{
	pthread_rwlock_wrlock(&sections);
	pthread_rwlock_unlock(&sections);
}

#else

static void system_section_begin(void) { urcu_bp_read_lock(); }
static void system_section_end(void) { urcu_bp_read_unlock(); }
static void system_wait(void) { urcu_bp_synchronize_rcu(); }

#endif

void rcu_section_begin(void)
{
	if (section_depth++ == 0 && !fiber_mode())
		system_section_begin();
}

void rcu_section_end(void)
{
	assert(section_depth);
	if (--section_depth == 0 && !fiber_mode())
		system_section_end();
}

void rcu_wait(void)
{
	rcu_assert_outside();
	if (fiber_mode())
		fiber_yield();
	else
		system_wait();
}

void rcu_assert_outside(void) { assert(section_depth == 0); }
