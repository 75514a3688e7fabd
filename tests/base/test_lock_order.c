/*
 * The checker of lock orders: what is out of order ends the program, what is in order doesn't, with threads (where they
 * are checked) and in simulations.
 */
#include "both_modes.h"

#include "base/clock.h"
#include "base/lock_order.h"
#include "base/six.h"
#include "base/strbuf.h"

static struct mutex inodes[2], super, journal, innermost, other;
static struct waitq queue;
static struct six_lock nodes[3], unordered[2];

/* Nodes are in the order of their places in the array. */
static int node_compare(const struct six_lock *a, const struct six_lock *b) { return a < b ? -1 : a > b; }
static void node_describe(struct strbuf *out, const struct six_lock *lock) { strbuf_add(out, "node"); }
static const struct six_class node_class = { node_compare, node_describe };

static void all_init(void)
{
	for (unsigned i = 0; i < ARRAY_NR(inodes); i++)
		mutex_init_ranked(&inodes[i], LOCK_INODES);
	mutex_init_ranked(&super, LOCK_SUPERS);
	mutex_init_ranked(&journal, LOCK_JOURNAL);
	mutex_init(&innermost);
	mutex_init(&other);
	waitq_init(&queue);
	for (unsigned i = 0; i < ARRAY_NR(nodes); i++)
		six_lock_init(&nodes[i], &node_class);
	for (unsigned i = 0; i < ARRAY_NR(unordered); i++)
		six_lock_init(&unordered[i], NULL);
}

static void all_destroy(void)
{
	for (unsigned i = 0; i < ARRAY_NR(nodes); i++)
		six_lock_destroy(&nodes[i]);
	for (unsigned i = 0; i < ARRAY_NR(unordered); i++)
		six_lock_destroy(&unordered[i]);
	waitq_destroy(&queue);
	for (unsigned i = 0; i < ARRAY_NR(inodes); i++)
		mutex_destroy(&inodes[i]);
	mutex_destroy(&super);
	mutex_destroy(&journal);
	mutex_destroy(&innermost);
	mutex_destroy(&other);
}

/* --- what is in order --- */

static void mutexes_from_the_outermost(void)
{
	mutex_lock(&inodes[0]);
	mutex_lock(&inodes[1]);
	mutex_lock(&super);
	sleep_ns(1); /* what these three may be held over */
	six_lock_read(&nodes[2]);
	mutex_lock(&journal);
	mutex_lock(&innermost);
	mutex_unlock(&journal); /* they are released in any order */
	mutex_unlock(&innermost);
	six_unlock_read(&nodes[2]);
	mutex_unlock(&inodes[0]);
	mutex_unlock(&super);
	mutex_unlock(&inodes[1]);
}

static void nodes_as_a_commit_does(void)
{
	for (unsigned i = 0; i < ARRAY_NR(nodes); i++)
		six_lock_intent(&nodes[i]);
	for (unsigned i = 0; i < ARRAY_NR(nodes); i++)
		six_lock_write(&nodes[i]);
	for (unsigned i = ARRAY_NR(nodes); i-- > 0;) {
		six_unlock_write(&nodes[i]);
		six_unlock_intent(&nodes[i]);
	}
}

/* Who never waits can't be in a deadlock. */
static void trying_in_any_order(void)
{
	mutex_lock(&innermost);
	CHECK(mutex_trylock(&super));
	CHECK(six_trylock_read(&nodes[1]));
	CHECK(six_trylock_intent(&nodes[0]));
	six_unlock_intent(&nodes[0]);
	six_unlock_read(&nodes[1]);
	mutex_unlock(&super);
	mutex_unlock(&innermost);
}

static void waiting_for_lower_tasks(void)
{
	task_may_wait_for(TASK_COPYGC);
	enum task_rank before = task_rank_lower(TASK_RECLAIM);
	CHECK(task_rank_lower(TASK_COPYGC) != TASK_COPYGC); /* not raised by that */
	task_may_wait_for(TASK_WRITE_BUFFER);
	task_rank_set(before);
	task_may_wait_for(TASK_COPYGC);
}

/* More than are remembered: what comes on top isn't checked, and nothing is confused by it. */
static void very_many(void)
{
	enum { NR = HELD_LOCKS_MAX + 10 };
	struct six_lock many[NR];

	for (unsigned i = 0; i < NR; i++) {
		six_lock_init(&many[i], &node_class);
		six_lock_intent(&many[i]);
	}
	for (unsigned i = 0; i < NR; i++) {
		six_unlock_intent(&many[i]);
		six_lock_destroy(&many[i]);
	}
	six_lock_read(&nodes[0]);
	six_unlock_read(&nodes[0]);
}

static void order_body(void *arg)
{
	all_init();
	mutexes_from_the_outermost();
	nodes_as_a_commit_does();
	trying_in_any_order();
	waiting_for_lower_tasks();
	very_many();
	six_lock_read(&unordered[1]);
	six_lock_read(&unordered[0]);
	six_unlock_read(&unordered[0]);
	six_unlock_read(&unordered[1]);
	mutex_lock(&journal);
	waitq_wait_until(&queue, &journal, clock_monotonic_ns() + 1);
	mutex_unlock(&journal);
	all_destroy();
}

static void what_is_in_order_is_not_caught(void **state) { run_in_both_modes(order_body); }

/* --- what is not --- */

static void outer_under_inner(void *arg)
{
	mutex_lock(&journal);
	mutex_lock(&super);
}

static void innermost_twice(void *arg)
{
	mutex_lock(&innermost);
	mutex_lock(&other);
}

static void inodes_downwards(void *arg)
{
	mutex_lock(&inodes[1]);
	mutex_lock(&inodes[0]);
}

static void super_under_node(void *arg)
{
	six_lock_read(&nodes[0]);
	mutex_lock(&super);
}

static void node_under_journal(void *arg)
{
	mutex_lock(&journal);
	six_lock_read(&nodes[0]);
}

static void node_under_tried_journal(void *arg)
{
	CHECK(mutex_trylock(&journal));
	six_lock_read(&nodes[0]);
}

static void nodes_downwards(void *arg)
{
	six_lock_intent(&nodes[1]);
	six_lock_intent(&nodes[0]);
}

static void writes_downwards(void *arg)
{
	six_lock_intent(&nodes[0]);
	six_lock_intent(&nodes[1]);
	six_lock_write(&nodes[1]);
	six_lock_write(&nodes[0]);
}

static void read_beside_read(void *arg)
{
	six_lock_read(&nodes[0]);
	six_lock_read(&nodes[1]);
}

static void read_beside_intent(void *arg)
{
	six_lock_intent(&nodes[0]);
	six_lock_read(&nodes[1]);
}

static void intent_beside_read(void *arg)
{
	six_lock_read(&nodes[0]);
	six_lock_intent(&nodes[1]);
}

static void sleep_with_a_node(void *arg)
{
	six_lock_read(&nodes[0]);
	sleep_ns(1);
}

static void wait_with_another_mutex(void *arg)
{
	mutex_lock(&journal);
	mutex_lock(&innermost);
	waitq_wait_until(&queue, &innermost, clock_monotonic_ns() + 1);
}

static void wait_for_its_like(void *arg)
{
	task_rank_set(TASK_DISCARD);
	task_may_wait_for(TASK_DISCARD);
}

static void wait_for_a_higher_one(void *arg)
{
	task_rank_set(TASK_JOURNAL_WRITER);
	task_may_wait_for(TASK_RECLAIM);
}

static void downgraded_is_read(void *arg)
{
	six_lock_intent(&nodes[0]);
	six_downgrade(&nodes[0]);
	six_lock_intent(&nodes[1]);
}

static const task_fn violations[] = {
	outer_under_inner,	 innermost_twice,	   inodes_downwards,	  super_under_node,
	node_under_journal,	 node_under_tried_journal, nodes_downwards,	  writes_downwards,
	read_beside_read,	 read_beside_intent,	   intent_beside_read,	  sleep_with_a_node,
	wait_with_another_mutex, wait_for_its_like,	   wait_for_a_higher_one, downgraded_is_read,
};

/* Gone before the simulation finds fault with locks that are still held. */
static void violate_and_exit(void *arg)
{
	(*(task_fn *)arg)(NULL);
	_exit(0);
}

static void in_simulation(void *arg) { simulate(1, violate_and_exit, arg); }

static void what_is_out_of_order_is_caught(void **state)
{
	all_init();
	for (unsigned i = 0; i < ARRAY_NR(violations); i++) {
		task_fn fn = violations[i];

		if (!process_dies_in_arg(in_simulation, &fn))
			fail_msg("violation %u was not caught in a simulation", i);
#ifdef KILN_CHECK_LOCKS
		if (!process_dies_in(fn))
			fail_msg("violation %u was not caught in a thread", i);
#endif
	}
	all_destroy();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_in_order_is_not_caught),
		cmocka_unit_test(what_is_out_of_order_is_caught),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
