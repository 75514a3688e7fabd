/*
 * SIX locks: they do at each step what a model says, waiting and waking included; no interleaving of threads breaks
 * what the modes promise; misuse is caught.
 */
#include "both_modes.h"

#include "base/clock.h"
#include "base/report.h"
#include "base/six.h"

static bool always(void *ctx) { return true; }
static bool never(void *ctx) { return false; }

/*
 * --- the model ---
 *
 * Several agents, a task each, do what the test tells them, one thing at a time. Simulated time passes only when no
 * task can run, so after a short sleep the test sees who has got the lock and who waits for it, and compares that with
 * the model: the rules of base/six.h, written down as plainly as possible.
 */

enum { AGENT_NR = 6, STEP_NR = 150, NOT_WAITING = SIX_MODE_NR };

enum action { LOCK, LOCK_OR_STOP, TRYLOCK, RELOCK, UNLOCK, INCREMENT, TRYUPGRADE, DOWNGRADE, ACTION_NR };

struct agent {
	/* the model */
	unsigned holds[SIX_MODE_NR];
	unsigned waits_for;
	unsigned waits_since;
	uint32_t seq_known;

	/* the task */
	struct task *task;
	struct agents *all;
	enum action action;
	enum six_mode mode;
	bool is_busy, must_end;
	bool result;
};

struct agents {
	struct six_lock lock;
	struct mutex mailbox;
	struct waitq changed;
	struct agent agents[AGENT_NR];
	uint32_t seq; /* of the model */
	unsigned step;
};

static bool agent_act(struct six_lock *lock, enum action action, enum six_mode mode, uint32_t seq)
{
	switch (action) {
	case LOCK: six_lock(lock, mode); return true;
	case LOCK_OR_STOP: {
		int err = six_lock_or_stop(lock, mode, always, NULL);

		CHECK(!err || err == -KILN_E_RESTART);
		return !err;
	}
	case TRYLOCK: return six_trylock(lock, mode);
	case RELOCK: return six_relock(lock, mode, seq);
	case UNLOCK: six_unlock(lock, mode); return true;
	case INCREMENT: six_increment(lock, mode); return true;
	case TRYUPGRADE: return six_tryupgrade(lock);
	case DOWNGRADE: six_downgrade(lock); return true;
	default: abort();
	}
}

static void agent_main(void *arg)
{
	struct agent *a = arg;
	struct agents *all = a->all;

	mutex_lock(&all->mailbox);
	for (;;) {
		while (!a->is_busy && !a->must_end)
			waitq_wait(&all->changed, &all->mailbox);
		if (a->must_end)
			break;
		mutex_unlock(&all->mailbox);
		a->result = agent_act(&all->lock, a->action, a->mode, a->seq_known);
		mutex_lock(&all->mailbox);
		a->is_busy = false;
	}
	mutex_unlock(&all->mailbox);
}

static void agents_start(struct agents *all)
{
	*all = (struct agents){ 0 };
	six_lock_init(&all->lock, NULL);
	mutex_init(&all->mailbox);
	waitq_init(&all->changed);
	for (unsigned i = 0; i < AGENT_NR; i++) {
		all->agents[i].all = all;
		all->agents[i].waits_for = NOT_WAITING;
		all->agents[i].task = start("agent", agent_main, &all->agents[i]);
	}
}

static void agents_end(struct agents *all)
{
	mutex_lock(&all->mailbox);
	for (unsigned i = 0; i < AGENT_NR; i++)
		all->agents[i].must_end = true;
	waitq_wake_all(&all->changed);
	mutex_unlock(&all->mailbox);
	for (unsigned i = 0; i < AGENT_NR; i++)
		task_join(all->agents[i].task);
	six_lock_destroy(&all->lock);
	waitq_destroy(&all->changed);
	mutex_destroy(&all->mailbox);
}

static unsigned model_held(const struct agents *all, enum six_mode mode)
{
	unsigned nr = 0;

	for (unsigned i = 0; i < AGENT_NR; i++)
		nr += all->agents[i].holds[mode];
	return nr;
}

static struct agent *model_first_waiter(struct agents *all, enum six_mode mode)
{
	struct agent *first = NULL;

	for (unsigned i = 0; i < AGENT_NR; i++) {
		struct agent *a = &all->agents[i];

		if (a->waits_for == mode && (!first || a->waits_since < first->waits_since))
			first = a;
	}
	return first;
}

static bool model_is_free(struct agents *all, enum six_mode mode)
{
	switch (mode) {
	case SIX_READ: return !model_held(all, SIX_WRITE) && !model_first_waiter(all, SIX_WRITE);
	case SIX_INTENT: return !model_held(all, SIX_INTENT);
	default: return !model_held(all, SIX_READ);
	}
}

static void model_take(struct agents *all, struct agent *a, enum six_mode mode)
{
	a->holds[mode]++;
	a->waits_for = NOT_WAITING;
	all->seq += mode == SIX_WRITE;
}

static void model_wait(struct agents *all, struct agent *a, enum six_mode mode)
{
	a->waits_for = mode;
	a->waits_since = all->step;
}

/* Who waits and need not any more gets the lock. */
static void model_settle(struct agents *all)
{
	struct agent *a;

	if ((a = model_first_waiter(all, SIX_WRITE)) && model_is_free(all, SIX_WRITE))
		model_take(all, a, SIX_WRITE);
	while ((a = model_first_waiter(all, SIX_READ)) && model_is_free(all, SIX_READ))
		model_take(all, a, SIX_READ);
	if ((a = model_first_waiter(all, SIX_INTENT)) && model_is_free(all, SIX_INTENT))
		model_take(all, a, SIX_INTENT);
}

/* What must come of an action; for those that wait, when they are done. */
static bool model_act(struct agents *all, struct agent *a, enum action action, enum six_mode mode)
{
	bool is_free = model_is_free(all, mode);

	switch (action) {
	case LOCK:
		model_wait(all, a, mode);
		if (is_free)
			model_take(all, a, mode);
		return true;
	case RELOCK: is_free = is_free && a->seq_known == all->seq; /* fall through */
	case LOCK_OR_STOP:
	case TRYLOCK:
		if (is_free)
			model_take(all, a, mode);
		return is_free;
	case UNLOCK:
		a->holds[mode]--;
		all->seq += mode == SIX_WRITE;
		break;
	case INCREMENT: a->holds[mode]++; break;
	case TRYUPGRADE:
		is_free = model_is_free(all, SIX_INTENT);
		a->holds[SIX_READ] -= is_free;
		a->holds[SIX_INTENT] += is_free;
		return is_free;
	case DOWNGRADE:
		a->holds[SIX_INTENT]--;
		a->holds[SIX_READ]++;
		break;
	default: abort();
	}
	model_settle(all);
	return true;
}

/* What an agent may do: no misuse, and no waiting for itself or for one who would wait for it. */
static bool model_may(const struct agent *a, enum action action, enum six_mode mode)
{
	bool reads = a->holds[SIX_READ], intends = a->holds[SIX_INTENT], writes = a->holds[SIX_WRITE];

	switch (action) {
	case LOCK:
		if (mode == SIX_WRITE)
			return intends && !writes && !reads;
		return mode == SIX_READ ? !reads && !writes : !reads && !intends;
	case LOCK_OR_STOP:
	case TRYLOCK: return mode != SIX_WRITE || (intends && !writes);
	case RELOCK: return mode != SIX_WRITE;
	case UNLOCK: return a->holds[mode] && (mode != SIX_INTENT || !writes || a->holds[mode] > 1);
	case INCREMENT: return mode != SIX_WRITE && a->holds[mode] && a->holds[mode] < 3;
	case TRYUPGRADE: return mode == SIX_READ && reads;
	case DOWNGRADE: return mode == SIX_INTENT && intends && !writes;
	default: abort();
	}
}

/* Have an agent act; everybody comes to rest; the lock must have done what the model did. */
static void agents_step(struct agents *all, struct agent *a, enum action action, enum six_mode mode)
{
	bool expected;

	all->step++;
	expected = model_act(all, a, action, mode);
	mutex_lock(&all->mailbox);
	a->action = action;
	a->mode = mode;
	a->is_busy = true;
	waitq_wake_all(&all->changed);
	mutex_unlock(&all->mailbox);
	sleep_ns(1);

	for (unsigned i = 0; i < AGENT_NR; i++)
		CHECK(all->agents[i].is_busy == (all->agents[i].waits_for != NOT_WAITING));
	CHECK(a->is_busy || a->result == expected);
	if ((model_held(all, SIX_READ) || model_held(all, SIX_INTENT)) && !model_held(all, SIX_WRITE)) {
		CHECK(six_seq(&all->lock) == all->seq);
		for (unsigned i = 0; i < AGENT_NR; i++)
			if (all->agents[i].holds[SIX_READ] || all->agents[i].holds[SIX_INTENT])
				all->agents[i].seq_known = all->seq;
	}
}

/* Whether something was left to let go. */
static bool agents_release_one(struct agents *all)
{
	for (enum six_mode mode = SIX_MODE_NR; mode-- > 0;)
		for (unsigned i = 0; i < AGENT_NR; i++) {
			struct agent *a = &all->agents[i];

			if (a->waits_for == NOT_WAITING && a->holds[mode]) {
				agents_step(all, a, UNLOCK, mode);
				return true;
			}
		}
	return false;
}

static void model_body(void *arg)
{
	static unsigned outcomes[ACTION_NR][SIX_MODE_NR][2];
	struct agents all;
	struct rng rng;

	rng_init(&rng, test_seed);
	agents_start(&all);
	while (all.step < STEP_NR) {
		struct agent *a = &all.agents[rng_below(&rng, AGENT_NR)];
		enum action action = (enum action)rng_below(&rng, ACTION_NR);
		enum six_mode mode = (enum six_mode)rng_below(&rng, SIX_MODE_NR);

		/* There always is an agent who doesn't wait: the one the others wait for. */
		if (a->waits_for != NOT_WAITING || !model_may(a, action, mode))
			continue;
		agents_step(&all, a, action, mode);
		outcomes[action][mode][a->is_busy || !a->result]++;
	}
	while (agents_release_one(&all))
		;
	for (unsigned i = 0; i < AGENT_NR; i++)
		CHECK(all.agents[i].waits_for == NOT_WAITING);
	agents_end(&all);
	if (arg)
		memcpy(arg, outcomes, sizeof(outcomes));
}

static void every_step_is_the_models(void **state)
{
	unsigned outcomes[ACTION_NR][SIX_MODE_NR][2];

	for (uint64_t seed = seed_first(); seed < seed_end(); seed++)
		simulate(seed, model_body, outcomes);
	if (getenv("KILN_TEST_SEED"))
		return;
	/* The steps were of every kind: what may fail or wait did, and did not. */
	for (enum action action = LOCK; action <= TRYLOCK; action++)
		for (enum six_mode mode = SIX_READ; mode < SIX_MODE_NR; mode++)
			assert_true(outcomes[action][mode][0] && outcomes[action][mode][1]);
	for (enum six_mode mode = SIX_READ; mode <= SIX_INTENT; mode++)
		assert_true(outcomes[RELOCK][mode][0] && outcomes[RELOCK][mode][1]);
	assert_true(outcomes[TRYUPGRADE][SIX_READ][0] && outcomes[TRYUPGRADE][SIX_READ][1]);
}

/* --- single promises --- */

static void seq_body(void *arg)
{
	struct six_lock lock;
	uint32_t seq;

	six_lock_init(&lock, NULL);
	six_lock_read(&lock);
	seq = six_seq(&lock);
	six_unlock_read(&lock);

	/* Reading and intending change nothing. */
	CHECK(six_relock_read(&lock, seq));
	six_unlock_read(&lock);
	six_lock_intent(&lock);
	CHECK(six_relock_read(&lock, seq));
	six_unlock_read(&lock);
	six_unlock_intent(&lock);
	CHECK(six_relock_intent(&lock, seq));

	six_lock_write(&lock);
	CHECK(!six_relock_read(&lock, seq));
	six_unlock_write(&lock);
	CHECK(six_seq(&lock) == seq + 2);
	six_unlock_intent(&lock);
	CHECK(!six_relock_read(&lock, seq));
	CHECK(!six_relock_intent(&lock, seq));
	CHECK(!six_relock_read(&lock, seq + 4));
	CHECK(six_relock_read(&lock, seq + 2));
	six_unlock_read(&lock);
	six_lock_destroy(&lock);
}

static void relock_succeeds_only_when_nothing_was_written(void **state) { run_in_both_modes(seq_body); }

static void write_in_turn(void *arg)
{
	six_lock_intent(arg);
	six_lock_write(arg);
	six_unlock_write(arg);
	six_unlock_intent(arg);
}

/* Returns when a writer waits for this task, which holds read. */
static void await_waiting_writer(struct six_lock *lock)
{
	while (six_trylock_read(lock)) {
		six_unlock_read(lock);
		sleep_ns(1000);
	}
}

static void waiting_writer_body(void *arg)
{
	struct six_lock lock;
	struct task *writer;
	uint32_t seq;

	six_lock_init(&lock, NULL);
	six_lock_read(&lock);
	seq = six_seq(&lock);
	writer = start("writer", write_in_turn, &lock);
	await_waiting_writer(&lock);
	/* Nothing is written yet, but the writer is not held off by another reader either. */
	CHECK(!six_relock_read(&lock, seq));
	CHECK(six_seq(&lock) == seq);
	six_increment(&lock, SIX_READ);
	six_unlock_read(&lock);
	CHECK(six_seq(&lock) == seq);
	six_unlock_read(&lock);
	task_join(writer);
	six_lock_destroy(&lock);
}

static void a_waiting_writer_lets_only_increments_pass(void **state) { run_in_both_modes(waiting_writer_body); }

struct relay {
	struct six_lock lock;
	uint32_t turn; /* how often a reader came in */
	bool is_written;
};

/* Two readers, neither of which lets go before the other came in again or can't. */
static void read_overlapping(void *arg)
{
	struct relay *r = arg;

	while (!__atomic_load_n(&r->is_written, __ATOMIC_RELAXED)) {
		uint32_t turn;

		six_lock_read(&r->lock);
		turn = __atomic_add_fetch(&r->turn, 1, __ATOMIC_RELAXED);
		while (__atomic_load_n(&r->turn, __ATOMIC_RELAXED) == turn && six_trylock_read(&r->lock)) {
			six_unlock_read(&r->lock);
			sleep_ns(1000);
			if (__atomic_load_n(&r->is_written, __ATOMIC_RELAXED))
				break;
		}
		six_unlock_read(&r->lock);
	}
}

static void starvation_body(void *arg)
{
	struct relay r = { 0 };
	struct task *readers[2];

	six_lock_init(&r.lock, NULL);
	for (unsigned i = 0; i < ARRAY_NR(readers); i++)
		readers[i] = start("reader", read_overlapping, &r);
	while (__atomic_load_n(&r.turn, __ATOMIC_RELAXED) < 3)
		sleep_ns(1000);
	write_in_turn(&r.lock);
	__atomic_store_n(&r.is_written, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < ARRAY_NR(readers); i++)
		task_join(readers[i]);
	six_lock_destroy(&r.lock);
}

static void overlapping_readers_do_not_starve_a_writer(void **state) { run_in_both_modes(starvation_body); }

struct asked {
	struct six_lock *lock;
	unsigned nr;
	bool says_stop;
	bool may_lock;
};

static bool should_stop(void *ctx)
{
	struct asked *a = ctx;

	a->nr++;
	/* Nothing internal is held: it may even use the lock. */
	six_increment(a->lock, SIX_INTENT);
	six_unlock_intent(a->lock);
	return a->says_stop;
}

static bool count_and_stop(void *ctx)
{
	struct asked *a = ctx;

	a->nr++;
	return true;
}

static bool count_and_wait(void *ctx)
{
	struct asked *a = ctx;

	a->nr++;
	__atomic_store_n(&a->may_lock, true, __ATOMIC_RELEASE);
	return false;
}

static void lock_or_wait(void *arg)
{
	struct asked *a = arg;

	CHECK(six_lock_or_stop(a->lock, SIX_INTENT, count_and_wait, a) == 0);
	six_unlock_intent(a->lock);
}

static void stop_body(void *arg)
{
	struct six_lock lock, before;
	struct asked a = { .lock = &lock };
	struct task *waiter;

	six_lock_init(&lock, NULL);
	for (enum six_mode mode = SIX_READ; mode < SIX_MODE_NR; mode++) {
		/* Never asked when the lock is free. */
		if (mode == SIX_WRITE)
			six_lock_intent(&lock);
		CHECK(six_lock_or_stop(&lock, mode, count_and_stop, &a) == 0);
		six_unlock(&lock, mode);
	}
	CHECK(a.nr == 0);

	/* Asked once, and giving up leaves nothing behind. */
	six_lock_read(&lock);
	before = lock;
	a.says_stop = true;
	CHECK(six_lock_or_stop(&lock, SIX_WRITE, should_stop, &a) == -KILN_E_RESTART);
	CHECK(a.nr == 1 && memcmp(&lock, &before, sizeof(lock)) == 0);
	six_unlock_read(&lock);

	waiter = start("waiter", lock_or_wait, &a);
	while (!__atomic_load_n(&a.may_lock, __ATOMIC_ACQUIRE))
		sleep_ns(1000);
	six_unlock_intent(&lock);
	task_join(waiter);
	CHECK(a.nr == 2);
	six_lock_destroy(&lock);
}

static void should_stop_is_asked_once_and_only_before_sleeping(void **state) { run_in_both_modes(stop_body); }

static bool unlock_read_and_wait(void *ctx)
{
	six_unlock_read(ctx);
	return false;
}

static void release_meanwhile_body(void *arg)
{
	struct six_lock lock;

	six_lock_init(&lock, NULL);
	six_lock_intent(&lock);
	six_lock_read(&lock);
	CHECK(six_lock_or_stop(&lock, SIX_WRITE, unlock_read_and_wait, &lock) == 0);
	six_unlock_write(&lock);
	six_unlock_intent(&lock);
	six_lock_destroy(&lock);
}

static void a_release_between_asking_and_sleeping_is_not_missed(void **state)
{
	run_in_both_modes(release_meanwhile_body);
}

/* --- many tasks --- */

enum { WORKER_NR = 4, ROUND_NR = KILN_TSAN ? 60 : 120 };

struct shared {
	struct six_lock lock;
	uint64_t a, b; /* equal but during a write */
	uint64_t write_nr;
	unsigned reading, intending, writing; /* tasks that surely do */
};

struct worker {
	struct shared *shared;
	struct rng rng;
};

static void enter(unsigned *nr) { __atomic_fetch_add(nr, 1, __ATOMIC_RELAXED); }
static void leave(unsigned *nr) { __atomic_fetch_sub(nr, 1, __ATOMIC_RELAXED); }
static unsigned seen(const unsigned *nr) { return __atomic_load_n(nr, __ATOMIC_RELAXED); }

static void pause_sometimes(struct worker *w)
{
	if (rng_below(&w->rng, 4) == 0)
		task_yield();
}

/* With read held. Returns what was read. */
static uint64_t check_while_reading(struct worker *w)
{
	struct shared *s = w->shared;
	uint64_t a = s->a;

	enter(&s->reading);
	pause_sometimes(w);
	CHECK(s->a == a && s->b == a && seen(&s->writing) == 0);
	leave(&s->reading);
	return a;
}

static void read_and_relock(struct worker *w)
{
	struct shared *s = w->shared;
	uint64_t a;
	uint32_t seq;

	if (rng_below(&w->rng, 4) == 0) {
		if (!six_trylock_read(&s->lock))
			return;
	} else {
		six_lock_read(&s->lock);
	}
	a = check_while_reading(w);
	seq = six_seq(&s->lock);
	six_unlock_read(&s->lock);
	pause_sometimes(w);
	if (six_relock_read(&s->lock, seq)) {
		CHECK(check_while_reading(w) == a);
		six_increment(&s->lock, SIX_READ);
		six_unlock_read(&s->lock);
		CHECK(check_while_reading(w) == a);
		six_unlock_read(&s->lock);
	}
}

/* With intent held, which stays. */
static void write_once(struct worker *w)
{
	struct shared *s = w->shared;
	uint64_t a = s->a;

	CHECK(__atomic_fetch_add(&s->intending, 1, __ATOMIC_RELAXED) == 0);
	pause_sometimes(w);
	CHECK(s->a == a && s->b == a);
	if (rng_below(&w->rng, 2) == 0) {
		six_lock_write(&s->lock);
	} else if (six_lock_or_stop(&s->lock, SIX_WRITE, rng_below(&w->rng, 2) ? always : never, NULL)) {
		leave(&s->intending);
		return;
	}
	enter(&s->writing);
	s->a++;
	pause_sometimes(w);
	CHECK(seen(&s->reading) == 0 && seen(&s->writing) == 1 && seen(&s->intending) == 1);
	s->b++;
	s->write_nr++;
	leave(&s->writing);
	six_unlock_write(&s->lock);
	leave(&s->intending);
}

static void intend_and_write(struct worker *w)
{
	struct shared *s = w->shared;
	uint64_t a;

	if (rng_below(&w->rng, 4) == 0) {
		if (!six_trylock_intent(&s->lock))
			return;
	} else {
		six_lock_intent(&s->lock);
	}
	write_once(w);
	six_increment(&s->lock, SIX_INTENT);
	six_unlock_intent(&s->lock);
	a = s->a;
	if (rng_below(&w->rng, 2) == 0) {
		six_unlock_intent(&s->lock);
		return;
	}
	six_downgrade(&s->lock);
	CHECK(check_while_reading(w) == a);
	six_unlock_read(&s->lock);
}

static void read_and_upgrade(struct worker *w)
{
	struct shared *s = w->shared;
	uint64_t a;

	six_lock_read(&s->lock);
	a = check_while_reading(w);
	if (!six_tryupgrade(&s->lock)) {
		CHECK(check_while_reading(w) == a);
		six_unlock_read(&s->lock);
		return;
	}
	CHECK(s->a == a);
	write_once(w);
	six_unlock_intent(&s->lock);
}

static void intend_and_relock(struct worker *w)
{
	struct shared *s = w->shared;
	uint64_t a;
	uint32_t seq;

	six_lock_intent(&s->lock);
	a = s->a;
	seq = six_seq(&s->lock);
	six_unlock_intent(&s->lock);
	pause_sometimes(w);
	if (six_relock_intent(&s->lock, seq)) {
		CHECK(s->a == a);
		write_once(w);
		six_unlock_intent(&s->lock);
	}
}

static void work(void *arg)
{
	static void (*const ways[])(struct worker * w) = { read_and_relock, intend_and_write, read_and_upgrade,
							   intend_and_relock };
	struct worker *w = arg;

	for (int i = 0; i < ROUND_NR; i++)
		ways[rng_below(&w->rng, ARRAY_NR(ways))](w);
}

static void stress_body(void *arg)
{
	struct shared s = { 0 };
	struct worker workers[WORKER_NR];
	struct task *tasks[WORKER_NR];

	six_lock_init(&s.lock, NULL);
	for (unsigned i = 0; i < WORKER_NR; i++) {
		workers[i].shared = &s;
		rng_init(&workers[i].rng, test_seed * WORKER_NR + i);
		tasks[i] = start("worker", work, &workers[i]);
	}
	for (unsigned i = 0; i < WORKER_NR; i++)
		task_join(tasks[i]);
	CHECK(s.a == s.write_nr && s.b == s.write_nr);
	six_lock_read(&s.lock);
	CHECK(six_seq(&s.lock) == 2 * s.write_nr);
	six_unlock_read(&s.lock);
	six_lock_destroy(&s.lock);
}

static void tasks_of_all_modes_keep_out_of_each_others_way(void **state) { run_in_both_modes(stress_body); }

struct object {
	struct six_lock lock;
	unsigned readers_left;
};

static void read_for_the_last_time(void *arg)
{
	struct object *o = arg;

	six_lock_read(&o->lock);
	__atomic_fetch_sub(&o->readers_left, 1, __ATOMIC_RELEASE);
	six_unlock_read(&o->lock);
}

static void free_body(void *arg)
{
	for (int round = 0; round < 10; round++) {
		struct object *o = malloc(sizeof(*o));
		struct task *readers[WORKER_NR];

		CHECK(o);
		six_lock_init(&o->lock, NULL);
		o->readers_left = WORKER_NR;
		for (unsigned i = 0; i < WORKER_NR; i++)
			readers[i] = start("reader", read_for_the_last_time, o);
		/* Once they are inside, nobody comes after them. */
		while (__atomic_load_n(&o->readers_left, __ATOMIC_ACQUIRE))
			task_yield(), sleep_ns(1);
		six_lock_intent(&o->lock);
		six_lock_write(&o->lock);
		six_unlock_write(&o->lock);
		six_unlock_intent(&o->lock);
		six_lock_destroy(&o->lock);
		/* The sanitizers see whoever still touches it. */
		free(o);
		for (unsigned i = 0; i < WORKER_NR; i++)
			task_join(readers[i]);
	}
}

static void an_object_may_be_freed_once_its_lock_was_had_for_write(void **state) { run_in_both_modes(free_body); }

static void many_wait(void *arg)
{
	six_lock_read(arg);
	six_unlock_read(arg);
	write_in_turn(arg);
}

static void queue_body(void *arg)
{
	struct six_lock lock;
	struct task *tasks[20];

	six_lock_init(&lock, NULL);
	six_lock_intent(&lock);
	six_lock_write(&lock);
	for (unsigned i = 0; i < ARRAY_NR(tasks); i++)
		tasks[i] = start("waiter", many_wait, &lock);
	six_unlock_write(&lock);
	six_unlock_intent(&lock);
	for (unsigned i = 0; i < ARRAY_NR(tasks); i++)
		task_join(tasks[i]);
	six_lock_read(&lock);
	CHECK(six_seq(&lock) == 2 * (1 + ARRAY_NR(tasks)));
	six_unlock_read(&lock);
	six_lock_destroy(&lock);
}

static void everybody_in_a_long_queue_gets_a_turn(void **state) { run_in_both_modes(queue_body); }

static void equal_seeds_give_equal_runs(void **state)
{
	for (uint64_t seed = 1; seed < 10; seed++) {
		uint64_t hash = simulate(seed, stress_body, NULL).schedule_hash;

		assert_int_equal(simulate(seed, stress_body, NULL).schedule_hash, hash);
	}
}

/* --- misuse is caught --- */

static struct six_lock misused;

static void unlock_nothing(void *arg) { six_unlock(&misused, *(enum six_mode *)arg); }

static void read_twice_unlock_thrice(void *arg)
{
	six_lock_read(&misused);
	six_increment(&misused, SIX_READ);
	for (int i = 0; i < 3; i++)
		six_unlock_read(&misused);
}

static void write_without_intent(void *arg) { six_lock_write(&misused); }
static void trywrite_without_intent(void *arg) { six_trylock_write(&misused); }
static void intend(void *arg) { six_lock_intent(&misused); }

static void write_with_the_intent_of_another(void *arg)
{
	task_join(start("other", intend, NULL));
	six_lock_write(&misused);
}

static void unlock_intent_of_another(void *arg)
{
	task_join(start("other", intend, NULL));
	six_unlock_intent(&misused);
}

static void intend_twice(void *arg)
{
	six_lock_intent(&misused);
	six_lock_intent(&misused);
}

static void hold_write(void)
{
	six_lock_intent(&misused);
	six_lock_write(&misused);
}

static void write_twice(void *arg)
{
	hold_write();
	six_trylock_write(&misused);
}

static void read_what_is_written(void *arg)
{
	hold_write();
	six_lock_read(&misused);
}

static void drop_intent_while_writing(void *arg)
{
	hold_write();
	six_unlock_intent(&misused);
}

static void downgrade_while_writing(void *arg)
{
	hold_write();
	six_increment(&misused, SIX_INTENT);
	six_downgrade(&misused);
}

static void downgrade_nothing(void *arg) { six_downgrade(&misused); }
static void upgrade_nothing(void *arg) { six_tryupgrade(&misused); }
static void increment_nothing(void *arg) { six_increment(&misused, SIX_READ); }

static void increment_write(void *arg)
{
	hold_write();
	six_increment(&misused, SIX_WRITE);
}

static void relock_write(void *arg)
{
	six_lock_intent(&misused);
	six_relock(&misused, SIX_WRITE, 0);
}

static void relock_what_was_being_written(void *arg) { six_relock_read(&misused, 1); }

static void seq_while_writing(void *arg)
{
	hold_write();
	six_seq(&misused);
}

static void seq_of_nothing(void *arg) { six_seq(&misused); }

static void destroy_while_held(void *arg)
{
	six_lock_read(&misused);
	six_lock_destroy(&misused);
}

static void keep_until_the_end(void *arg) { six_lock_read(&misused); }

static void end_with_a_lock(void *arg) { simulate(1, keep_until_the_end, NULL); }

static void misuse_is_caught(void **state)
{
	static const task_fn misuses[] = {
		read_twice_unlock_thrice,
		write_without_intent,
		trywrite_without_intent,
		write_with_the_intent_of_another,
		unlock_intent_of_another,
		intend_twice,
		write_twice,
		read_what_is_written,
		drop_intent_while_writing,
		downgrade_while_writing,
		downgrade_nothing,
		upgrade_nothing,
		increment_nothing,
		increment_write,
		relock_write,
		relock_what_was_being_written,
		seq_while_writing,
		seq_of_nothing,
		destroy_while_held,
		end_with_a_lock,
	};

	six_lock_init(&misused, NULL);
	for (unsigned i = 0; i < ARRAY_NR(misuses); i++)
		if (!process_dies_in(misuses[i]))
			fail_msg("misuse %u was not caught", i);
}

static void unlock_read_of_nothing(void *arg) { unlock_nothing(&(enum six_mode){ SIX_READ }); }
static void unlock_intent_of_nothing(void *arg) { unlock_nothing(&(enum six_mode){ SIX_INTENT }); }

static void unlock_write_with_intent_only(void *arg)
{
	six_lock_intent(&misused);
	unlock_nothing(&(enum six_mode){ SIX_WRITE });
}

static void unlocking_what_is_not_held_is_caught(void **state)
{
	six_lock_init(&misused, NULL);
	assert_true(process_dies_in(unlock_read_of_nothing));
	assert_true(process_dies_in(unlock_intent_of_nothing));
	assert_true(process_dies_in(unlock_write_with_intent_only));
}

static void what_may_be_done_is_not_caught(void *arg)
{
	hold_write();
	six_increment(&misused, SIX_INTENT);
	six_unlock_intent(&misused);
	six_unlock_write(&misused);
	six_lock_read(&misused);
	six_unlock_read(&misused);
	six_assert_held(&misused, SIX_INTENT);
	CHECK(six_trylock_write(&misused));
	six_assert_held(&misused, SIX_WRITE);
	six_unlock_write(&misused);
	six_unlock_intent(&misused);
	six_lock_destroy(&misused);
}

static void proper_use_is_not_caught(void **state) { run_in_both_modes(what_may_be_done_is_not_caught); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_step_is_the_models),
		cmocka_unit_test(relock_succeeds_only_when_nothing_was_written),
		cmocka_unit_test(a_waiting_writer_lets_only_increments_pass),
		cmocka_unit_test(overlapping_readers_do_not_starve_a_writer),
		cmocka_unit_test(should_stop_is_asked_once_and_only_before_sleeping),
		cmocka_unit_test(a_release_between_asking_and_sleeping_is_not_missed),
		cmocka_unit_test(tasks_of_all_modes_keep_out_of_each_others_way),
		cmocka_unit_test(an_object_may_be_freed_once_its_lock_was_had_for_write),
		cmocka_unit_test(everybody_in_a_long_queue_gets_a_turn),
		cmocka_unit_test(equal_seeds_give_equal_runs),
		cmocka_unit_test(misuse_is_caught),
		cmocka_unit_test(unlocking_what_is_not_held_is_caught),
		cmocka_unit_test(proper_use_is_not_caught),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
