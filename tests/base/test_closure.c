/* Closures end once and not before their last put, wherever that comes from; workers run all, in order, and drain. */
#include "both_modes.h"

#include "base/clock.h"
#include "base/closure.h"

static struct closure_worker *worker_start(void)
{
	struct closure_worker *worker = malloc(sizeof(*worker));

	CHECK(worker && closure_worker_start(worker, "worker") == 0);
	return worker;
}

/* The sanitizers see whoever still touches it. */
static void worker_end(struct closure_worker *worker)
{
	closure_worker_stop(worker);
	free(worker);
}

/* --- waiting --- */

enum { PUTTER_NR = 4, PUT_NR = 3 };

struct waited {
	struct closure closure;
	unsigned put_nr;
};

static void put_some(void *arg)
{
	struct waited *w = arg;

	for (int i = 0; i < PUT_NR; i++) {
		__atomic_fetch_add(&w->put_nr, 1, __ATOMIC_RELAXED);
		closure_put(&w->closure);
	}
}

static void wait_body(void *arg)
{
	for (int round = 0; round < 10; round++) {
		struct waited *w = malloc(sizeof(*w));
		struct task *putters[PUTTER_NR];

		CHECK(w);
		closure_init(&w->closure, NULL, NULL);
		w->put_nr = 0;
		for (int i = 0; i < PUTTER_NR; i++) {
			for (int n = 0; n < PUT_NR; n++)
				closure_get(&w->closure);
			putters[i] = start("putter", put_some, w);
		}
		closure_wait(&w->closure);
		CHECK(w->put_nr == PUTTER_NR * PUT_NR);
		free(w);
		for (int i = 0; i < PUTTER_NR; i++)
			task_join(putters[i]);
	}
}

static void wait_returns_after_the_last_put_and_the_closure_may_be_freed(void **state) { run_in_both_modes(wait_body); }

static void wait_alone_body(void *arg)
{
	struct closure c;

	closure_init(&c, NULL, NULL);
	closure_wait(&c);
}

static void wait_for_nothing_returns(void **state) { run_in_both_modes(wait_alone_body); }

/* --- continuations --- */

struct work {
	struct closure closure;
	unsigned puts_left;
	unsigned *run_nr;
};

static void work_done(struct closure *c)
{
	struct work *w = container_of(c, struct work, closure);

	CHECK(w->puts_left == 0);
	__atomic_fetch_add(w->run_nr, 1, __ATOMIC_RELAXED);
	free(w);
}

static struct work *work_new(struct closure_worker *worker, closure_fn fn, unsigned *run_nr)
{
	struct work *w = malloc(sizeof(*w));

	CHECK(w);
	w->puts_left = 0;
	w->run_nr = run_nr;
	closure_init(&w->closure, fn, worker);
	return w;
}

static void put_one(void *arg)
{
	struct work *w = arg;

	__atomic_fetch_sub(&w->puts_left, 1, __ATOMIC_RELAXED);
	closure_put(&w->closure);
}

static void continuation_body(void *arg)
{
	struct closure_worker *worker = worker_start();
	struct task *tasks[8];
	unsigned nr = 0, run_nr = 0;

	for (int i = 0; i < 4; i++) {
		struct work *w = work_new(worker, work_done, &run_nr);

		for (int n = 0; n < 2; n++) {
			closure_get(&w->closure);
			__atomic_fetch_add(&w->puts_left, 1, __ATOMIC_RELAXED);
			tasks[nr++] = start("putter", put_one, w);
		}
		closure_put(&w->closure);
	}
	worker_end(worker);
	CHECK(run_nr == 4);
	while (nr)
		task_join(tasks[--nr]);
}

static void a_continuation_runs_once_after_the_last_put(void **state) { run_in_both_modes(continuation_body); }

struct blocking {
	struct closure closure;
	struct mutex lock;
	struct countdown done;
};

static void lock_and_finish(struct closure *c)
{
	struct blocking *b = container_of(c, struct blocking, closure);

	mutex_lock(&b->lock);
	mutex_unlock(&b->lock);
	countdown_put(&b->done);
}

static void blocking_body(void *arg)
{
	struct closure_worker *worker = worker_start();
	struct blocking b;

	mutex_init(&b.lock);
	for (int round = 0; round < 5; round++) {
		countdown_init(&b.done, 1);
		closure_init(&b.closure, lock_and_finish, worker);
		mutex_lock(&b.lock);
		closure_put(&b.closure); /* would wait for itself if it ran the continuation */
		task_yield();
		CHECK(b.done.count == 1);
		mutex_unlock(&b.lock);
		countdown_wait(&b.done);
		countdown_destroy(&b.done);
	}
	worker_end(worker);
	mutex_destroy(&b.lock);
}

static void a_continuation_may_block_and_runs_on_the_worker(void **state) { run_in_both_modes(blocking_body); }

enum { ORDERED_NR = 30 };

struct ordered {
	unsigned run_nr;
	bool is_running;
};

struct numbered {
	struct closure closure;
	struct ordered *all;
	unsigned nr;
};

static void check_order(struct closure *c)
{
	struct numbered *n = container_of(c, struct numbered, closure);

	CHECK(!n->all->is_running);
	n->all->is_running = true;
	task_yield();
	CHECK(n->all->run_nr == n->nr);
	n->all->run_nr++;
	n->all->is_running = false;
}

static void order_body(void *arg)
{
	struct closure_worker *worker = worker_start();
	struct ordered all = { 0 };
	struct numbered numbered[ORDERED_NR];

	for (unsigned i = 0; i < ORDERED_NR; i++) {
		numbered[i].all = &all;
		numbered[i].nr = i;
		closure_init(&numbered[i].closure, check_order, worker);
	}
	for (unsigned i = 0; i < ORDERED_NR; i++) {
		closure_put(&numbered[i].closure);
		if (i % 4 == 0)
			task_yield();
		if (i % 10 == 0)
			sleep_ns(1000); /* the worker goes to sleep */
	}
	worker_end(worker);
	CHECK(all.run_nr == ORDERED_NR);
}

static void continuations_run_one_at_a_time_in_the_order_of_their_last_puts(void **state)
{
	run_in_both_modes(order_body);
}

struct chain {
	struct closure closure;
	struct closure_worker *worker;
	unsigned steps_left;
};

static void chain_step(struct closure *c)
{
	struct chain *chain = container_of(c, struct chain, closure);

	if (--chain->steps_left == 0) {
		free(chain);
		return;
	}
	closure_init(c, chain_step, chain->worker);
	closure_put(c);
	task_yield();
}

static void drain_body(void *arg)
{
	struct closure_worker *worker = worker_start();
	struct task *putter;
	unsigned run_nr = 0;
	struct work *late = work_new(worker, work_done, &run_nr);
	struct chain *chain = malloc(sizeof(*chain));

	/* One is still under way when the worker is stopped, one makes itself anew many times. */
	CHECK(chain);
	*chain = (struct chain){ .worker = worker, .steps_left = 20 };
	closure_init(&chain->closure, chain_step, worker);
	closure_put(&chain->closure);
	late->puts_left = 1;
	putter = start("putter", put_one, late);
	worker_end(worker);
	CHECK(run_nr == 1);
	task_join(putter);
}

static void stop_waits_until_all_have_run(void **state) { run_in_both_modes(drain_body); }

static void idle_body(void *arg) { worker_end(worker_start()); }

static void a_worker_without_work_stops(void **state) { run_in_both_modes(idle_body); }

struct two_workers {
	struct closure ping, pong;
	struct closure_worker *ping_worker, *pong_worker;
	unsigned left;
	struct closure finished;
};

static void pong(struct closure *c);

static void ping(struct closure *c)
{
	struct two_workers *t = container_of(c, struct two_workers, ping);

	if (t->left-- == 0) {
		closure_put(&t->finished);
		return;
	}
	closure_init(&t->pong, pong, t->pong_worker);
	closure_put(&t->pong);
}

static void pong(struct closure *c)
{
	struct two_workers *t = container_of(c, struct two_workers, pong);

	closure_init(&t->ping, ping, t->ping_worker);
	closure_put(&t->ping);
}

static void ping_pong_body(void *arg)
{
	struct two_workers t = { .ping_worker = worker_start(), .pong_worker = worker_start(), .left = 100 };

	closure_init(&t.finished, NULL, NULL);
	closure_get(&t.finished);
	closure_init(&t.ping, ping, t.ping_worker);
	closure_put(&t.ping);
	closure_wait(&t.finished);
	worker_end(t.ping_worker);
	worker_end(t.pong_worker);
}

static void a_sleeping_worker_is_woken_every_time(void **state) { run_in_both_modes(ping_pong_body); }

/* --- device callbacks --- */

static void put_waited(void *arg) { closure_put(arg); }

static void device_body(void *arg)
{
	struct closure_worker *worker = worker_start();
	unsigned run_nr = 0;
	struct closure waited;
	uint64_t now_ns = clock_monotonic_ns();

	for (unsigned i = 0; i < 5; i++) {
		struct work *w = work_new(worker, work_done, &run_nr);

		for (unsigned n = 0; n < 3; n++) {
			closure_get(&w->closure);
			w->puts_left++;
			fiber_sim_at(now_ns + 100 * (i + n), put_one, w);
		}
		closure_put(&w->closure);
	}
	closure_init(&waited, NULL, NULL);
	closure_get(&waited);
	fiber_sim_at(now_ns + 5000, put_waited, &waited);
	closure_wait(&waited);
	CHECK(clock_monotonic_ns() == now_ns + 5000 && run_nr == 5);
	worker_end(worker);
}

static void simulated_devices_may_put(void **state)
{
	for (uint64_t seed = seed_first(); seed < seed_end(); seed++)
		simulate(seed, device_body, NULL);
}

/* --- many putters --- */

enum { WORK_NR = 200 };

struct makers {
	struct closure_worker *worker;
	unsigned run_nr;
};

static void make_work(void *arg)
{
	struct makers *m = arg;

	for (int i = 0; i < WORK_NR; i++)
		closure_put(&work_new(m->worker, work_done, &m->run_nr)->closure);
}

static void stress_body(void *arg)
{
	struct makers m = { .worker = worker_start() };
	struct task *tasks[PUTTER_NR];

	for (int i = 0; i < PUTTER_NR; i++)
		tasks[i] = start("maker", make_work, &m);
	for (int i = 0; i < PUTTER_NR; i++)
		task_join(tasks[i]);
	worker_end(m.worker);
	CHECK(m.run_nr == PUTTER_NR * WORK_NR);
}

static void nothing_is_lost_when_many_push(void **state) { run_in_both_modes(stress_body); }

/* --- misuse is caught --- */

static void put_too_often(void *arg)
{
	struct closure c;

	closure_init(&c, NULL, NULL);
	closure_put(&c);
	closure_put(&c);
}

static void get_when_over(void *arg)
{
	struct closure c;

	closure_init(&c, NULL, NULL);
	closure_put(&c);
	closure_get(&c);
}

static void continue_nowhere(void *arg)
{
	struct closure c;

	closure_init(&c, work_done, NULL);
}

static void wait_for_a_continuation(void *arg)
{
	struct closure_worker *worker = worker_start();
	unsigned run_nr = 0;

	closure_wait(&work_new(worker, work_done, &run_nr)->closure);
}

static void use_a_stopped_worker(void *arg)
{
	struct closure_worker worker;
	struct closure c;

	if (closure_worker_start(&worker, "worker") == 0)
		closure_worker_stop(&worker);
	closure_init(&c, work_done, &worker);
}

static void misuse_is_caught(void **state)
{
	assert_true(process_dies_in(put_too_often));
	assert_true(process_dies_in(get_when_over));
	assert_true(process_dies_in(continue_nowhere));
	assert_true(process_dies_in(wait_for_a_continuation));
	assert_true(process_dies_in(use_a_stopped_worker));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wait_returns_after_the_last_put_and_the_closure_may_be_freed),
		cmocka_unit_test(wait_for_nothing_returns),
		cmocka_unit_test(a_continuation_runs_once_after_the_last_put),
		cmocka_unit_test(a_continuation_may_block_and_runs_on_the_worker),
		cmocka_unit_test(continuations_run_one_at_a_time_in_the_order_of_their_last_puts),
		cmocka_unit_test(stop_waits_until_all_have_run),
		cmocka_unit_test(a_worker_without_work_stops),
		cmocka_unit_test(a_sleeping_worker_is_woken_every_time),
		cmocka_unit_test(simulated_devices_may_put),
		cmocka_unit_test(nothing_is_lost_when_many_push),
		cmocka_unit_test(misuse_is_caught),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
