/* Locks, wait queues, countdowns and tasks keep their promises with threads and in every simulated schedule. */
#include "both_modes.h"

#include "base/clock.h"

/* --- mutex --- */

enum { WORKER_NR = 4, ROUND_NR = 25 };

struct guarded {
	struct mutex lock;
	bool is_inside;
	int total;
};

static void add_under_lock(void *arg)
{
	struct guarded *g = arg;

	for (int i = 0; i < ROUND_NR; i++) {
		int before;

		mutex_lock(&g->lock);
		CHECK(!g->is_inside);
		g->is_inside = true;
		before = g->total;
		task_yield();
		g->total = before + 1;
		g->is_inside = false;
		mutex_unlock(&g->lock);
	}
}

static void mutex_admits_one_body(void *arg)
{
	struct guarded g = { 0 };
	struct task *workers[WORKER_NR];

	mutex_init_ranked(&g.lock, LOCK_UNORDERED);
	for (int i = 0; i < WORKER_NR; i++)
		workers[i] = start("worker", add_under_lock, &g);
	for (int i = 0; i < WORKER_NR; i++)
		task_join(workers[i]);
	CHECK(g.total == WORKER_NR * ROUND_NR);
	mutex_destroy(&g.lock);
}

static void mutex_admits_one_task_at_a_time(void **state) { run_in_both_modes(mutex_admits_one_body); }

static void try_what_is_held(void *arg) { CHECK(!mutex_trylock(arg)); }

static void take_and_release(void *arg)
{
	CHECK(mutex_trylock(arg));
	mutex_unlock(arg);
}

static void trylock_body(void *arg)
{
	struct mutex m;

	mutex_init_ranked(&m, LOCK_UNORDERED);
	CHECK(mutex_trylock(&m));
	task_join(start("other", try_what_is_held, &m));
	mutex_unlock(&m);
	task_join(start("other", take_and_release, &m));
	mutex_lock(&m);
	mutex_unlock(&m);
	mutex_destroy(&m);
}

static void trylock_takes_exactly_what_is_free(void **state) { run_in_both_modes(trylock_body); }

/* --- wait queues --- */

enum { PRODUCER_NR = 2, CONSUMER_NR = 3, ITEM_NR = 24, QUEUE_ROOM = 3 };

struct queue {
	struct mutex lock;
	struct waitq not_full, not_empty;
	int items[QUEUE_ROOM];
	unsigned begin, nr;
	int item_next; /* to produce */
	int taken_nr;
	int times_taken[ITEM_NR];
};

static void produce(void *arg)
{
	struct queue *q = arg;

	mutex_lock(&q->lock);
	while (q->item_next < ITEM_NR) {
		int item = q->item_next++;

		while (q->nr == QUEUE_ROOM)
			waitq_wait(&q->not_full, &q->lock);
		q->items[(q->begin + q->nr++) % QUEUE_ROOM] = item;
		waitq_wake_one(&q->not_empty);
	}
	mutex_unlock(&q->lock);
}

static void consume(void *arg)
{
	struct queue *q = arg;

	mutex_lock(&q->lock);
	while (q->taken_nr < ITEM_NR) {
		if (!q->nr) {
			waitq_wait(&q->not_empty, &q->lock);
			continue;
		}
		CHECK(q->nr <= QUEUE_ROOM);
		q->times_taken[q->items[q->begin]]++;
		q->begin = (q->begin + 1) % QUEUE_ROOM;
		q->nr--;
		if (++q->taken_nr == ITEM_NR)
			waitq_wake_all(&q->not_empty);
		waitq_wake_one(&q->not_full);
	}
	mutex_unlock(&q->lock);
}

static void queue_body(void *arg)
{
	struct queue q = { 0 };
	struct task *tasks[PRODUCER_NR + CONSUMER_NR];

	mutex_init_ranked(&q.lock, LOCK_UNORDERED);
	waitq_init(&q.not_full);
	waitq_init(&q.not_empty);
	for (unsigned i = 0; i < ARRAY_NR(tasks); i++)
		tasks[i] = i < PRODUCER_NR ? start("producer", produce, &q) : start("consumer", consume, &q);
	for (unsigned i = 0; i < ARRAY_NR(tasks); i++)
		task_join(tasks[i]);
	for (int i = 0; i < ITEM_NR; i++)
		CHECK(q.times_taken[i] == 1);
	waitq_destroy(&q.not_empty);
	waitq_destroy(&q.not_full);
	mutex_destroy(&q.lock);
}

static void queue_hands_over_every_item_once(void **state) { run_in_both_modes(queue_body); }

struct flag {
	struct mutex lock;
	struct waitq changed;
	bool is_set;
	int seen_nr;
};

static void flag_init(struct flag *f)
{
	*f = (struct flag){ 0 };
	mutex_init_ranked(&f->lock, LOCK_UNORDERED);
	waitq_init(&f->changed);
}

static void flag_destroy(struct flag *f)
{
	waitq_destroy(&f->changed);
	mutex_destroy(&f->lock);
}

static void flag_set(void *arg)
{
	struct flag *f = arg;

	mutex_lock(&f->lock);
	f->is_set = true;
	waitq_wake_all(&f->changed);
	mutex_unlock(&f->lock);
}

static void flag_await(void *arg)
{
	struct flag *f = arg;

	mutex_lock(&f->lock);
	while (!f->is_set)
		waitq_wait(&f->changed, &f->lock);
	f->seen_nr++;
	mutex_unlock(&f->lock);
}

static void wake_all_body(void *arg)
{
	struct flag f;
	struct task *waiters[WORKER_NR];

	flag_init(&f);
	for (int i = 0; i < WORKER_NR; i++)
		waiters[i] = start("waiter", flag_await, &f);
	flag_set(&f);
	for (int i = 0; i < WORKER_NR; i++)
		task_join(waiters[i]);
	CHECK(f.seen_nr == WORKER_NR);
	flag_destroy(&f);
}

static void wake_all_reaches_every_waiter(void **state) { run_in_both_modes(wake_all_body); }

/* Each woken waiter passes the wake-up on, so the wake-ups of all but the first are wake_one's. */
static void flag_await_and_pass_on(void *arg)
{
	struct flag *f = arg;

	flag_await(f);
	waitq_wake_one(&f->changed);
}

static void flag_set_wake_one(void *arg)
{
	struct flag *f = arg;

	mutex_lock(&f->lock);
	f->is_set = true;
	mutex_unlock(&f->lock);
	waitq_wake_one(&f->changed);
}

static void wake_one_body(void *arg)
{
	struct flag f;
	struct task *waiters[WORKER_NR];

	flag_init(&f);
	for (int i = 0; i < WORKER_NR; i++)
		waiters[i] = start("waiter", flag_await_and_pass_on, &f);
	flag_set_wake_one(&f);
	for (int i = 0; i < WORKER_NR; i++)
		task_join(waiters[i]);
	CHECK(f.seen_nr == WORKER_NR);
	flag_destroy(&f);
}

static void wake_one_is_never_lost(void **state) { run_in_both_modes(wake_one_body); }

static void deadline_body(void *arg)
{
	const uint64_t waits_ns[] = { 0, 1, 300000 };
	struct flag f;

	flag_init(&f);
	mutex_lock(&f.lock);
	for (unsigned i = 0; i < ARRAY_NR(waits_ns); i++) {
		uint64_t deadline_ns = clock_monotonic_ns() + waits_ns[i];

		while (waitq_wait_until(&f.changed, &f.lock, deadline_ns))
			;
		CHECK(clock_monotonic_ns() >= deadline_ns);
	}
	while (waitq_wait_until(&f.changed, &f.lock, 0)) /* long past */
		;
	mutex_unlock(&f.lock);
	flag_destroy(&f);
}

static void waiting_ends_at_the_deadline_and_not_before(void **state) { run_in_both_modes(deadline_body); }

static void wake_before_deadline_body(void *arg)
{
	const uint64_t deadlines_ns[] = { clock_monotonic_ns() + 3600 * 1000000000ull, UINT64_MAX };

	for (unsigned i = 0; i < ARRAY_NR(deadlines_ns); i++) {
		struct flag f;
		struct task *setter;

		flag_init(&f);
		setter = start("setter", flag_set, &f);
		mutex_lock(&f.lock);
		while (!f.is_set)
			CHECK(waitq_wait_until(&f.changed, &f.lock, deadlines_ns[i]));
		mutex_unlock(&f.lock);
		task_join(setter);
		flag_destroy(&f);
	}
}

static void a_wake_up_comes_before_a_far_deadline(void **state) { run_in_both_modes(wake_before_deadline_body); }

/* --- countdowns --- */

static void put_three_times(void *arg)
{
	for (int i = 0; i < 3; i++)
		countdown_put(arg);
}

static void countdown_body(void *arg)
{
	for (int round = 0; round < 10; round++) {
		struct countdown *c = malloc(sizeof(*c));
		struct task *putters[WORKER_NR];

		CHECK(c);
		countdown_init(c, 1);
		for (int i = 0; i < WORKER_NR; i++) {
			for (int n = 0; n < 3; n++)
				countdown_get(c);
			putters[i] = start("putter", put_three_times, c);
		}
		countdown_put(c);
		countdown_wait(c);
		CHECK(c->count == 0);
		/* Gone at once: the sanitizers see whoever still touches it. */
		countdown_destroy(c);
		free(c);
		for (int i = 0; i < WORKER_NR; i++)
			task_join(putters[i]);
	}
}

static void countdown_may_be_freed_once_waited_for(void **state) { run_in_both_modes(countdown_body); }

static void countdown_zero_body(void *arg)
{
	struct countdown c;

	countdown_init(&c, 0);
	countdown_wait(&c);
	countdown_destroy(&c);
}

static void countdown_from_zero_does_not_wait(void **state) { run_in_both_modes(countdown_zero_body); }

/* --- tasks, sleeping --- */

static void square(void *arg)
{
	int *n = arg;

	task_yield();
	*n *= *n;
}

static void join_body(void *arg)
{
	int numbers[20];
	struct task *tasks[20];

	for (int i = 0; i < 20; i++) {
		numbers[i] = i;
		tasks[i] = start("a name that is longer than fifteen bytes", square, &numbers[i]);
	}
	for (int i = 19; i >= 0; i--) {
		task_join(tasks[i]);
		CHECK(numbers[i] == i * i);
	}
}

static void join_waits_for_the_end_of_a_task(void **state) { run_in_both_modes(join_body); }

static void start_another(void *arg)
{
	int n = 7;

	task_join(start("inner", square, &n));
	*(int *)arg = n;
}

static void nested_body(void *arg)
{
	int n = 0;

	task_join(start("outer", start_another, &n));
	CHECK(n == 49);
}

static void tasks_may_start_and_join_tasks(void **state) { run_in_both_modes(nested_body); }

static void sleep_body(void *arg)
{
	uint64_t monotonic_ns = clock_monotonic_ns();

	sleep_ns(0);
	sleep_ns(100000);
	CHECK(clock_monotonic_ns() >= monotonic_ns + 100000);
	CHECK(clock_realtime_ns() >= 946684800ull * 1000000000);
	CHECK(cpu_nr() >= 1);
}

static void sleeping_takes_at_least_as_long_as_asked(void **state) { run_in_both_modes(sleep_body); }

/* --- misuse is caught --- */

static void put_too_often(void *arg)
{
	struct countdown c;

	countdown_init(&c, 1);
	countdown_put(&c);
	countdown_put(&c);
}

static void misuse_is_caught_in_thread_mode(void **state) { assert_true(process_dies_in(put_too_often)); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mutex_admits_one_task_at_a_time),
		cmocka_unit_test(trylock_takes_exactly_what_is_free),
		cmocka_unit_test(queue_hands_over_every_item_once),
		cmocka_unit_test(wake_all_reaches_every_waiter),
		cmocka_unit_test(wake_one_is_never_lost),
		cmocka_unit_test(waiting_ends_at_the_deadline_and_not_before),
		cmocka_unit_test(a_wake_up_comes_before_a_far_deadline),
		cmocka_unit_test(countdown_may_be_freed_once_waited_for),
		cmocka_unit_test(countdown_from_zero_does_not_wait),
		cmocka_unit_test(join_waits_for_the_end_of_a_task),
		cmocka_unit_test(tasks_may_start_and_join_tasks),
		cmocka_unit_test(sleeping_takes_at_least_as_long_as_asked),
		cmocka_unit_test(misuse_is_caught_in_thread_mode),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
