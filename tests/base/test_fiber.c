/* Simulations: equal seeds give equal runs, different seeds find different ones; time, callbacks, deadlocks. */
#include "both_modes.h"

#include <errno.h>

#include "base/clock.h"
#include "base/strbuf.h"

static const uint64_t second_ns = 1000000000;

/* --- determinism --- */

struct trace {
	struct mutex lock;
	struct waitq changed;
	uint8_t steps[256];
	unsigned nr;
	uint8_t random[40];
	uint64_t realtime_ns;
};

struct traced_worker {
	struct trace *trace;
	uint8_t id;
};

static void trace_steps(void *arg)
{
	struct traced_worker *w = arg;
	struct trace *t = w->trace;

	for (int i = 0; i < 8; i++) {
		mutex_lock(&t->lock);
		t->steps[t->nr++] = w->id;
		waitq_wake_one(&t->changed);
		waitq_wait_until(&t->changed, &t->lock, clock_monotonic_ns() + random_u64() % 1000);
		mutex_unlock(&t->lock);
		sleep_ns(random_u64() % 500);
	}
}

static void trace_callback(void *arg)
{
	struct trace *t = arg;

	t->steps[t->nr++] = 0xff;
	waitq_wake_all(&t->changed);
}

static void trace_body(void *arg)
{
	struct trace *t = arg;
	struct traced_worker workers[3];
	struct task *tasks[3];

	mutex_init_ranked(&t->lock, LOCK_UNORDERED);
	waitq_init(&t->changed);
	for (uint64_t i = 0; i < 20; i++)
		fiber_sim_at(i * 100, trace_callback, t);
	for (uint8_t i = 0; i < 3; i++) {
		workers[i] = (struct traced_worker){ t, i };
		tasks[i] = start("worker", trace_steps, &workers[i]);
	}
	for (int i = 0; i < 3; i++)
		task_join(tasks[i]);
	random_bytes(t->random, sizeof(t->random));
	t->realtime_ns = clock_realtime_ns();
	waitq_destroy(&t->changed);
	mutex_destroy(&t->lock);
}

static void the_same_seed_gives_the_same_run(void **state)
{
	for (uint64_t seed = seed_first(); seed < seed_end(); seed++) {
		struct trace a = { 0 }, b = { 0 };
		struct fiber_sim_result first = simulate(seed, trace_body, &a);
		struct fiber_sim_result second = simulate(seed, trace_body, &b);

		assert_int_equal(first.schedule_hash, second.schedule_hash);
		assert_int_equal(first.switches, second.switches);
		assert_int_equal(first.simulated_ns, second.simulated_ns);
		assert_int_equal(a.nr, b.nr);
		assert_memory_equal(a.steps, b.steps, sizeof(a.steps));
		assert_memory_equal(a.random, b.random, sizeof(a.random));
		assert_int_equal(a.realtime_ns, b.realtime_ns);
	}
}

static void different_seeds_give_different_runs(void **state)
{
	uint64_t hashes[50];

	for (unsigned i = 0; i < ARRAY_NR(hashes); i++) {
		struct trace t = { 0 };

		hashes[i] = simulate(i + 1, trace_body, &t).schedule_hash;
		for (unsigned j = 0; j < i; j++)
			assert_int_not_equal(hashes[i], hashes[j]);
	}
}

static void yield_a_lot(void *arg)
{
	for (int i = 0; i < 100; i++)
		task_yield();
}

static void yield_beside_another(void *arg)
{
	struct task *other = start("other", yield_a_lot, NULL);

	yield_a_lot(NULL);
	task_join(other);
}

static void the_hash_tells_schedules_apart_that_take_no_time(void **state)
{
	struct fiber_sim_result first = simulate(1, yield_beside_another, NULL);
	struct fiber_sim_result second = simulate(2, yield_beside_another, NULL);

	assert_int_equal(first.simulated_ns, 0);
	assert_int_not_equal(first.schedule_hash, second.schedule_hash);
}

static void draw_random(void *arg)
{
	uint8_t(*draws)[16] = arg;

	random_bytes(draws[0], 16);
	random_bytes(draws[1], 16);
}

static void random_bytes_follow_the_seed(void **state)
{
	uint8_t draws[3][2][16];

	simulate(1, draw_random, draws[0]);
	simulate(1, draw_random, draws[1]);
	simulate(2, draw_random, draws[2]);
	assert_memory_equal(draws[0], draws[1], sizeof(draws[0]));
	assert_memory_not_equal(draws[0][0], draws[0][1], 16);
	assert_memory_not_equal(draws[0][0], draws[2][0], 16);
}

static void options_body(void *arg)
{
	const struct fiber_sim_opts *opts = arg;

	CHECK(fiber_mode());
	CHECK(clock_monotonic_ns() == 0);
	CHECK(clock_realtime_ns() == (opts->start_realtime_ns ? opts->start_realtime_ns : 946684800 * second_ns));
	CHECK(cpu_nr() == (opts->cpu_nr ? opts->cpu_nr : 4));
}

static void options_say_what_the_world_looks_like(void **state)
{
	struct fiber_sim_opts opts[] = { { 0 }, { .start_realtime_ns = 5 * second_ns, .cpu_nr = 64 } };

	assert_false(fiber_mode());
	for (unsigned i = 0; i < ARRAY_NR(opts); i++)
		assert_int_equal(fiber_sim_run(&opts[i], options_body, &opts[i], NULL), 0);
	assert_false(fiber_mode());
}

/* --- races are found --- */

struct race {
	struct mutex lock;
	bool has_lock;
	int total;
};

static void race_add(void *arg)
{
	struct race *r = arg;
	int before;

	if (r->has_lock)
		mutex_lock(&r->lock);
	before = r->total;
	task_yield();
	r->total = before + 1;
	if (r->has_lock)
		mutex_unlock(&r->lock);
}

static void race_body(void *arg)
{
	struct race *r = arg;
	struct task *a, *b;

	a = start("a", race_add, r);
	b = start("b", race_add, r);
	task_join(a);
	task_join(b);
}

static unsigned lost_updates(bool has_lock)
{
	unsigned lost_nr = 0;

	for (uint64_t seed = 1; seed <= SEED_NR; seed++) {
		struct race r = { .has_lock = has_lock };

		mutex_init_ranked(&r.lock, LOCK_UNORDERED);
		simulate(seed, race_body, &r);
		mutex_destroy(&r.lock);
		lost_nr += r.total != 2;
	}
	return lost_nr;
}

static void some_seeds_lose_an_update_without_a_lock_and_some_do_not(void **state)
{
	unsigned lost_nr = lost_updates(false);

	assert_in_range(lost_nr, 1, SEED_NR - 1);
	assert_int_equal(lost_updates(true), 0);
}

enum { WAIT_NR = 200 };

/* Nobody wakes: a wait that comes back before its deadline does so without cause. */
static void wait_often(void *arg)
{
	struct trace *t = arg;

	mutex_init_ranked(&t->lock, LOCK_UNORDERED);
	waitq_init(&t->changed);
	mutex_lock(&t->lock);
	for (int i = 0; i < WAIT_NR; i++) {
		uint64_t deadline_ns = clock_monotonic_ns() + second_ns;
		bool was_woken = waitq_wait_until(&t->changed, &t->lock, deadline_ns);

		CHECK(was_woken == (clock_monotonic_ns() < deadline_ns));
		t->nr += was_woken;
	}
	mutex_unlock(&t->lock);
	waitq_destroy(&t->changed);
	mutex_destroy(&t->lock);
}

static void some_waits_end_without_cause(void **state)
{
	for (uint64_t seed = 1; seed <= 10; seed++) {
		struct trace t = { 0 };
		uint64_t simulated_ns = simulate(seed, wait_often, &t).simulated_ns;

		assert_in_range(t.nr, 1, WAIT_NR / 4);
		assert_int_equal(simulated_ns, (WAIT_NR - t.nr) * second_ns);
	}
}

/* --- time --- */

static void sleep_a_year(void *arg) { sleep_ns(365 * 86400 * second_ns); }

static void sleeping_moves_time_at_once(void **state)
{
	assert_int_equal(simulate(1, sleep_a_year, NULL).simulated_ns, 365 * 86400 * second_ns);
}

static void lock_often(void *arg)
{
	struct mutex lock;

	mutex_init_ranked(&lock, LOCK_UNORDERED);
	for (unsigned i = 0; i < 1000; i++) {
		mutex_lock(&lock);
		mutex_unlock(&lock);
	}
	mutex_destroy(&lock);
}

static void on_a_busy_machine_time_goes_on_between_steps(void **state)
{
	const struct fiber_sim_opts opts = { .seed = 1, .pause_one_in = 50 };
	struct fiber_sim_result result;

	assert_int_equal(simulate(1, lock_often, NULL).simulated_ns, 0);
	assert_int_equal(fiber_sim_run(&opts, lock_often, NULL, &result), 0);
	/* About 20 times 5 ms. */
	assert_in_range(result.simulated_ns, 20000000, 500000000);
}

struct sleeper {
	uint64_t for_ns;
	uint64_t woke_ns;
};

static void sleep_and_note(void *arg)
{
	struct sleeper *s = arg;

	sleep_ns(s->for_ns);
	s->woke_ns = clock_monotonic_ns();
}

/* Computing takes no time, so all start at 0 and each wakes exactly when it asked to. */
static void sleepers_body(void *arg)
{
	struct sleeper sleepers[100];
	struct task *tasks[100];
	uint64_t longest_ns = 0;

	for (int i = 0; i < 100; i++) {
		sleepers[i] = (struct sleeper){ .for_ns = random_u64() % 1000000 };
		longest_ns = max(longest_ns, sleepers[i].for_ns);
		tasks[i] = start("sleeper", sleep_and_note, &sleepers[i]);
	}
	for (int i = 0; i < 100; i++) {
		task_join(tasks[i]);
		CHECK(sleepers[i].woke_ns == sleepers[i].for_ns);
	}
	CHECK(clock_monotonic_ns() == longest_ns);
}

static void every_sleeper_wakes(void **state)
{
	for (uint64_t seed = seed_first(); seed < seed_end(); seed++)
		simulate(seed, sleepers_body, NULL);
}

/* --- callbacks --- */

struct callbacks {
	struct countdown pending;
	unsigned order[64];
	unsigned nr;
	uint64_t last_ns;
};

struct callback {
	struct callbacks *all;
	uint64_t when_ns;
	unsigned id;
};

static void callback_run(void *arg)
{
	struct callback *c = arg;

	CHECK(fiber_mode());
	CHECK(clock_monotonic_ns() >= c->when_ns);
	CHECK(clock_monotonic_ns() >= c->all->last_ns);
	c->all->last_ns = clock_monotonic_ns();
	c->all->order[c->all->nr++] = c->id;
	countdown_put(&c->all->pending);
}

static void callbacks_body(void *arg)
{
	static const uint64_t times_ns[] = { 500, 100, 900, 0, 300, 700, 200, 800, 600, 400 };
	static const unsigned expected[] = { 3, 1, 6, 4, 9, 0, 8, 5, 7, 2 };
	struct callbacks all = { 0 };
	struct callback callbacks[ARRAY_NR(times_ns)];

	countdown_init(&all.pending, ARRAY_NR(times_ns));
	for (unsigned i = 0; i < ARRAY_NR(times_ns); i++) {
		callbacks[i] = (struct callback){ &all, times_ns[i], i };
		fiber_sim_at(times_ns[i], callback_run, &callbacks[i]);
	}
	countdown_wait(&all.pending);
	CHECK(memcmp(all.order, expected, sizeof(expected)) == 0);
	CHECK(clock_monotonic_ns() == 900);
	countdown_destroy(&all.pending);
}

static void callbacks_run_in_the_order_of_their_times(void **state)
{
	for (uint64_t seed = seed_first(); seed < seed_end(); seed++)
		assert_int_equal(simulate(seed, callbacks_body, NULL).simulated_ns, 900);
}

static void equal_times_body(void *arg)
{
	struct callbacks *all = arg;
	struct callback callbacks[2] = { { all, 10, 0 }, { all, 10, 1 } };

	countdown_init(&all->pending, 2);
	fiber_sim_at(10, callback_run, &callbacks[0]);
	fiber_sim_at(10, callback_run, &callbacks[1]);
	countdown_wait(&all->pending);
}

static void callbacks_at_the_same_time_run_in_any_order(void **state)
{
	unsigned first_nr[2] = { 0, 0 };

	for (uint64_t seed = 1; seed <= SEED_NR; seed++) {
		struct callbacks all = { 0 };

		simulate(seed, equal_times_body, &all);
		first_nr[all.order[0]]++;
	}
	assert_true(first_nr[0] && first_nr[1]);
}

static void callback_again(void *arg)
{
	struct callback *c = arg;

	c->when_ns = clock_monotonic_ns();
	if (++c->id < 5)
		fiber_sim_at(c->when_ns + 10, callback_again, c);
	countdown_put(&c->all->pending);
}

static void chain_body(void *arg)
{
	struct callbacks all = { 0 };
	struct callback c = { &all, 0, 0 };

	sleep_ns(100);
	countdown_init(&all.pending, 5);
	fiber_sim_at(1, callback_again, &c); /* in the past: now */
	countdown_wait(&all.pending);
	CHECK(clock_monotonic_ns() == 140);
}

static void callbacks_may_ask_for_callbacks(void **state) { simulate(1, chain_body, NULL); }

static void must_not_run(void *arg) { *(bool *)arg = true; }

static void leave_callback_behind(void *arg) { fiber_sim_at(second_ns, must_not_run, arg); }

static void a_run_ends_with_its_last_fiber(void **state)
{
	bool has_run = false;

	assert_int_equal(simulate(1, leave_callback_behind, &has_run).simulated_ns, 0);
	assert_false(has_run);
}

/* --- deadlocks --- */

struct log_text {
	char text[2000];
	struct strbuf buf;
};

static void log_collect(void *ctx, enum log_level level, const char *line)
{
	struct log_text *log = ctx;

	strbuf_printf(&log->buf, "%s\n", line);
}

static int simulate_logged(uint64_t seed, task_fn fn, void *arg, struct log_text *log)
{
	struct log_sink sink = { .write = log_collect, .ctx = log, .level_max = LOG_LEVEL_INFO };

	test_seed = seed;
	log->buf = strbuf_fixed(log->text, sizeof(log->text));
	return fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed, .log = &sink }, fn, arg, NULL);
}

struct two_locks {
	struct mutex first, second;
};

static void lock_in_order(void *arg)
{
	struct two_locks *l = arg;

	mutex_lock(&l->first);
	mutex_lock(&l->second);
	mutex_unlock(&l->second);
	mutex_unlock(&l->first);
}

static void lock_out_of_order(void *arg)
{
	struct two_locks *l = arg;

	mutex_lock(&l->second);
	mutex_lock(&l->first);
	mutex_unlock(&l->first);
	mutex_unlock(&l->second);
}

static void two_locks_body(void *arg)
{
	struct task *a = start("in-order", lock_in_order, arg);
	struct task *b = start("out-of-order", lock_out_of_order, arg);

	task_join(a);
	task_join(b);
}

static void locks_in_opposite_orders_deadlock_under_some_seeds(void **state)
{
	unsigned deadlock_nr = 0;

	for (uint64_t seed = 1; seed <= SEED_NR; seed++) {
		struct two_locks l;
		struct log_text log;
		int err;

		mutex_init_ranked(&l.first, LOCK_UNORDERED);
		mutex_init_ranked(&l.second, LOCK_UNORDERED);
		err = simulate_logged(seed, two_locks_body, &l, &log);
		if (!err) {
			assert_string_equal(log.text, "");
			continue;
		}
		assert_int_equal(err, -EDEADLK);
		assert_non_null(strstr(log.text, "fiber 2 'in-order' waits for mutex"));
		assert_non_null(strstr(log.text, "held by fiber 3 'out-of-order'"));
		assert_non_null(strstr(log.text, "fiber 3 'out-of-order' waits for mutex"));
		assert_non_null(strstr(log.text, "held by fiber 2 'in-order'"));
		assert_non_null(strstr(log.text, "fiber 1 'main' waits for the end of fiber 2 'in-order'"));
		deadlock_nr++;
	}
	assert_in_range(deadlock_nr, 1, SEED_NR - 1);
}

struct never {
	struct mutex lock;
	struct waitq wake;
	struct countdown zero;
};

static void wait_for_wake(void *arg)
{
	struct never *n = arg;

	mutex_lock(&n->lock);
	for (;;)
		waitq_wait_until(&n->wake, &n->lock, UINT64_MAX);
}

static void wait_for_zero(void *arg) { countdown_wait(&((struct never *)arg)->zero); }

static void never_body(void *arg)
{
	start("wake-waiter", wait_for_wake, arg);
	start("zero-waiter", wait_for_zero, arg);
	sleep_ns(77);
}

static void a_deadlock_report_says_who_waits_for_what(void **state)
{
	struct never n;
	struct log_text log;

	mutex_init_ranked(&n.lock, LOCK_UNORDERED);
	waitq_init(&n.wake);
	countdown_init(&n.zero, 3);
	assert_int_equal(simulate_logged(9, never_body, &n, &log), -EDEADLK);
	assert_non_null(strstr(log.text, "simulated time 77 ns, seed 9"));
	assert_non_null(strstr(log.text, "'wake-waiter' waits for a wake-up in wait queue"));
	assert_non_null(strstr(log.text, "'zero-waiter' waits for countdown"));
	assert_non_null(strstr(log.text, "which is at 3"));
	assert_null(strstr(log.text, "'main'"));

	/* The next simulation starts afresh. */
	assert_int_equal(simulate(1, sleep_a_year, NULL).simulated_ns, 365 * 86400 * second_ns);
}

/* --- stacks, misuse --- */

static uint64_t stack_use(unsigned depth)
{
	uint8_t page[1000];

	memset(page, 1, sizeof(page));
	__asm__ volatile("" : : "r"(page) : "memory"); /* all of it is used, for all the compiler knows */
	return depth ? stack_use(depth - 1) + page[depth % sizeof(page)] : 0;
}

static void use_stack(void *arg) { CHECK(stack_use(*(unsigned *)arg) > 0); }

static void a_fiber_has_the_stack_that_was_asked_for(void **state)
{
	unsigned depth = 800;

	assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .stack_bytes = 1 << 20 }, use_stack, &depth, NULL), 0);
}

enum { NEIGHBOUR_NR = 16 };

/*
 * Overflow by a few stacks. New mappings go below older ones, so without guard pages the neighbours' stacks would take
 * it silently. They never run again.
 */
static void overflow_into_neighbours(void *arg)
{
	unsigned depth = 6000;

	for (int i = 0; i < NEIGHBOUR_NR; i++)
		start("neighbour", sleep_a_year, NULL);
	use_stack(&depth);
	_exit(0);
}

static void overflow_stack(void *arg)
{
	fiber_sim_run(&(struct fiber_sim_opts){ .stack_bytes = 1 << 20 }, overflow_into_neighbours, NULL, NULL);
}

static void stack_overflow_hits_the_guard_page(void **state) { assert_true(process_dies_in(overflow_stack)); }

static void lock_twice(void *arg)
{
	struct mutex m;

	mutex_init_ranked(&m, LOCK_UNORDERED);
	mutex_lock(&m);
	mutex_lock(&m);
}

static void unlock_free_mutex(void *arg)
{
	struct mutex m;

	mutex_init_ranked(&m, LOCK_UNORDERED);
	mutex_unlock(&m);
}

static void end_with_lock(void *arg)
{
	static struct mutex m;

	mutex_init_ranked(&m, LOCK_UNORDERED);
	mutex_lock(&m);
}

static void yield_now(void *arg) { task_yield(); }

static void yield_in_callback(void *arg)
{
	fiber_sim_at(0, yield_now, NULL);
	sleep_ns(1);
}

static task_fn misuse;

static void simulate_misuse(void *arg) { fiber_sim_run(&(struct fiber_sim_opts){ 0 }, misuse, NULL, NULL); }

static void misuse_is_caught_in_fiber_mode(void **state)
{
	static const task_fn misuses[] = { lock_twice, unlock_free_mutex, end_with_lock, yield_in_callback };

	for (unsigned i = 0; i < ARRAY_NR(misuses); i++) {
		misuse = misuses[i];
		assert_true(process_dies_in(simulate_misuse));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_same_seed_gives_the_same_run),
		cmocka_unit_test(different_seeds_give_different_runs),
		cmocka_unit_test(the_hash_tells_schedules_apart_that_take_no_time),
		cmocka_unit_test(random_bytes_follow_the_seed),
		cmocka_unit_test(options_say_what_the_world_looks_like),
		cmocka_unit_test(some_seeds_lose_an_update_without_a_lock_and_some_do_not),
		cmocka_unit_test(some_waits_end_without_cause),
		cmocka_unit_test(sleeping_moves_time_at_once),
		cmocka_unit_test(on_a_busy_machine_time_goes_on_between_steps),
		cmocka_unit_test(every_sleeper_wakes),
		cmocka_unit_test(callbacks_run_in_the_order_of_their_times),
		cmocka_unit_test(callbacks_at_the_same_time_run_in_any_order),
		cmocka_unit_test(callbacks_may_ask_for_callbacks),
		cmocka_unit_test(a_run_ends_with_its_last_fiber),
		cmocka_unit_test(locks_in_opposite_orders_deadlock_under_some_seeds),
		cmocka_unit_test(a_deadlock_report_says_who_waits_for_what),
		cmocka_unit_test(a_fiber_has_the_stack_that_was_asked_for),
		cmocka_unit_test(stack_overflow_hits_the_guard_page),
		cmocka_unit_test(misuse_is_caught_in_fiber_mode),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
