/*
 * The fiber scheduler: a simulation in one real thread, deterministic from a seed (see base/fiber.h).
 *
 * A fiber runs, waits, or is *runnable*: in one unordered array that schedule_pick() draws from. The fiber that gives
 * up the processor picks the next one itself and switches to it directly. The context that called fiber_sim_run(), here
 * the *scheduler*, gets a turn only for what must happen outside of any fiber: it takes the first event from the timer
 * queue (a callback, or the deadline of a waiting fiber), advancing time when that event lies ahead.
 *
 * Invariants:
 * - a fiber is runnable  <=>  it is in `runnable`; it waits in a list  <=>  wait_list is set; it waits with a deadline
 *   <=>  its timer is in the queue. fiber_make_runnable() ends all waiting at once.
 * - `runnable` and `timers` always have room for every fiber, so waiting and waking never allocate.
 * - every choice comes from `choices` and goes into `schedule_hash`; random bytes of the program come from a generator
 * of their own.
 */
#include "base/fiber.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/array.h"
#include "base/fiber_sched.h"
#include "base/strbuf.h"

enum { STACK_BYTES_DEFAULT = 256 << 10, CPU_NR_DEFAULT = 4 };
static const uint64_t start_realtime_ns_default = 946684800ull * 1000000000; /* 2000-01-01 */
static const uint64_t pause_ns_max = 10000000;

struct fiber_sim {
	struct fiber_sim_opts opts;
	struct rng choices;
	struct rng random;
	uint64_t now_ns;
	uint64_t switches;
	uint64_t schedule_hash;

	struct fiber *current; /* NULL: the scheduler */
	struct fiber_context scheduler;
	struct fiber *ended; /* left for good; whoever runs next frees its stack */
	uint32_t fiber_id_last;
	size_t running_nr; /* fibers that have not ended */

	struct fiber **fibers; /* all, also ended ones that are not joined yet */
	size_t fibers_nr, fibers_capacity;
	struct fiber **runnable;
	size_t runnable_nr, runnable_capacity;
	struct fiber_timer **timers; /* binary heap in [1..timers_nr] */
	size_t timers_nr, timers_capacity;
	size_t callbacks_nr; /* how many of the timers are callbacks */
};

static _Thread_local struct fiber_sim *sim;

static struct fiber *schedule_pick(void);
static void schedule_run(void);
static void schedule_away(void);
static int fibers_reserve(void);
static void fiber_main(void);
static void fiber_free(struct fiber *fiber);
static void fiber_make_runnable(struct fiber *fiber);
static void deadlock_report(void);
static void fibers_abandon(void);
static int timers_reserve(size_t nr);
static void timer_add(struct fiber_timer *timer, uint64_t when_ns);
static void timer_remove(struct fiber_timer *timer);
static void timer_fire_first(void);

/* --- what fiber.h promises --- */

bool fiber_mode(void) { return sim != NULL; }

int fiber_sim_run(const struct fiber_sim_opts *opts, task_fn fn, void *arg, struct fiber_sim_result *result)
{
	struct fiber_sim new_sim = { .opts = *opts };
	struct fiber *first;
	int err;

	assert(!sim);
	if (!new_sim.opts.start_realtime_ns)
		new_sim.opts.start_realtime_ns = start_realtime_ns_default;
	if (!new_sim.opts.stack_bytes)
		new_sim.opts.stack_bytes = STACK_BYTES_DEFAULT;
	if (!new_sim.opts.cpu_nr)
		new_sim.opts.cpu_nr = CPU_NR_DEFAULT;
	rng_init(&new_sim.choices, opts->seed);
	rng_init(&new_sim.random, rng_u64(&new_sim.choices));
	fiber_context_init_thread(&new_sim.scheduler);
	sim = &new_sim;

	err = fiber_start(&first, "main", fn, arg);
	if (!err) {
		schedule_run();
		if (sim->running_nr) {
			err = -EDEADLK;
			deadlock_report();
			fibers_abandon();
		}
	}

	while (sim->fibers_nr)
		fiber_free(sim->fibers[0]);
	while (sim->timers_nr) {
		struct fiber_timer *callback = sim->timers[1];

		timer_remove(callback);
		free(callback);
	}
	free(sim->fibers);
	free(sim->runnable);
	free(sim->timers);
	sim = NULL;
	if (result)
		*result = (struct fiber_sim_result){ .switches = new_sim.switches,
						     .simulated_ns = new_sim.now_ns,
						     .schedule_hash = new_sim.schedule_hash };
	return err;
}

void fiber_sim_at(uint64_t when_ns, task_fn fn, void *arg)
{
	struct fiber_timer *timer = calloc(1, sizeof(*timer));

	assert(sim);
	if (!timer || timers_reserve(sim->fibers_nr + sim->callbacks_nr + 1))
		abort();
	timer->fn = fn;
	timer->arg = arg;
	sim->callbacks_nr++;
	timer_add(timer, when_ns);
}

/* --- for the other files of base --- */

struct fiber *fiber_current(void) { return sim->current; }

struct fiber *fiber_current_may_wait(void)
{
	assert(sim->current); /* a callback must not wait */
	return sim->current;
}

uint64_t fiber_choose(uint64_t bound) { return rng_below(&sim->choices, bound); }
struct rng *fiber_random(void) { return &sim->random; }
uint64_t fiber_monotonic_ns(void) { return sim->now_ns; }
uint64_t fiber_realtime_ns(void) { return sim->opts.start_realtime_ns + sim->now_ns; }
unsigned fiber_cpu_nr(void) { return sim->opts.cpu_nr; }

int fiber_start(struct fiber **fiber, const char *name, task_fn fn, void *arg)
{
	struct fiber *new_fiber;

	/* Starting a task is a switch point; only the first one is started by the scheduler. */
	assert(sim->current || !sim->fibers_nr);
	new_fiber = calloc(1, sizeof(*new_fiber));
	if (!new_fiber)
		return -ENOMEM;
	task_init(&new_fiber->task, name, fn, arg);
	if (fibers_reserve() ||
	    fiber_context_init(&new_fiber->context, sim->opts.stack_bytes, new_fiber->task.name, fiber_main)) {
		free(new_fiber);
		return -ENOMEM;
	}
	new_fiber->id = ++sim->fiber_id_last;
	new_fiber->deadline.fiber = new_fiber;
	new_fiber->position = sim->fibers_nr;
	sim->fibers[sim->fibers_nr++] = new_fiber;
	sim->running_nr++;
	fiber_make_runnable(new_fiber);
	*fiber = new_fiber;
	return 0;
}

void fiber_join(struct fiber *fiber)
{
	assert(fiber != fiber_current_may_wait());
	fiber_yield();
	if (!fiber->has_ended) {
		assert(!fiber->joiners.nr);
		fiber_wait(&fiber->joiners, FIBER_WAIT_TASK, fiber, UINT64_MAX);
	}
	fiber_free(fiber);
}

void fiber_yield(void)
{
	uint32_t one_in = sim->opts.pause_one_in;

	if (one_in && !rng_below(&sim->choices, one_in)) {
		fiber_wait(NULL, FIBER_WAIT_SLEEP, NULL, sim->now_ns + rng_below(&sim->choices, pause_ns_max));
		return;
	}
	fiber_make_runnable(fiber_current_may_wait());
	schedule_away();
}

bool fiber_wait(struct fiber_list *list, enum fiber_wait wait, const void *object, uint64_t deadline_ns)
{
	struct fiber *self = fiber_current_may_wait();

	self->wait = wait;
	self->wait_object = object;
	self->has_timed_out = false;
	if (list) {
		self->wait_list = list;
		self->wait_prev = list->last;
		self->wait_next = NULL;
		*(list->last ? &list->last->wait_next : &list->first) = self;
		list->last = self;
		list->nr++;
	}
	if (deadline_ns != UINT64_MAX)
		timer_add(&self->deadline, deadline_ns);
	schedule_away();
	return !self->has_timed_out;
}

void fiber_wake_one(struct fiber_list *list)
{
	struct fiber *fiber = list->first;

	if (!fiber)
		return;
	for (uint64_t skip = fiber_choose(list->nr); skip; skip--)
		fiber = fiber->wait_next;
	fiber_make_runnable(fiber);
}

void fiber_wake_all(struct fiber_list *list)
{
	while (list->first)
		fiber_make_runnable(list->first);
}

/* --- scheduling --- */

static void hash_decision(uint64_t decision)
{
	uint64_t h = (sim->schedule_hash ^ decision) * 0x9e3779b97f4a7c15;

	sim->schedule_hash = h ^ h >> 32;
}

/*
 * Decide who runs next and make it current: a runnable fiber, or NULL for the scheduler, whose turn it is when no fiber
 * can run, and one time in n when events are due.
 */
static struct fiber *schedule_pick(void)
{
	bool event_is_due = sim->timers_nr && sim->timers[1]->when_ns <= sim->now_ns;
	size_t choices_nr = sim->runnable_nr + event_is_due;
	size_t choice = choices_nr > 1 ? fiber_choose(choices_nr) : 0;

	if (choice >= sim->runnable_nr) {
		sim->current = NULL;
		return NULL;
	}
	sim->current = sim->runnable[choice];
	sim->runnable[choice] = sim->runnable[--sim->runnable_nr];
	sim->switches++;
	hash_decision(sim->current->id);
	return sim->current;
}

/* Whoever has just got the processor from a fiber that ended frees its stack. */
static void ended_reap(void)
{
	if (sim->ended)
		fiber_context_destroy(&sim->ended->context);
	sim->ended = NULL;
}

/* The scheduler: returns when nothing can happen any more. */
static void schedule_run(void)
{
	while (sim->running_nr) {
		struct fiber *next = schedule_pick();

		if (next) {
			/* Comes back when a fiber's pick gives the scheduler a turn. */
			fiber_context_switch(&sim->scheduler, &next->context);
			ended_reap();
			if (!sim->running_nr)
				break;
		}
		if (!sim->timers_nr)
			break;
		timer_fire_first();
	}
}

/* The current fiber, which is runnable or waits by now, gives up the processor; returns when it is its turn again. */
static void schedule_away(void)
{
	struct fiber *self = sim->current;
	struct fiber *next = schedule_pick();

	if (next == self)
		return;
	fiber_context_switch(&self->context, next ? &next->context : &sim->scheduler);
	ended_reap();
	if (self->is_abandoned) {
		sim->ended = self;
		fiber_context_exit(&self->context, &sim->scheduler);
	}
}

/* --- life of a fiber --- */

static void fiber_main(void)
{
	struct fiber *self = sim->current;
	struct fiber *next;

	fiber_context_arrived(&self->context);
	ended_reap();

	self->task.fn(self->task.arg);

	assert(!self->locks.nr && !self->locks.unnamed_nr);
	self->has_ended = true;
	sim->running_nr--;
	fiber_wake_all(&self->joiners);
	sim->ended = self;
	next = schedule_pick();
	fiber_context_exit(&self->context, next ? &next->context : &sim->scheduler);
}

/* End whatever @fiber waits in and for. */
static void fiber_make_runnable(struct fiber *fiber)
{
	struct fiber_list *list = fiber->wait_list;

	if (list) {
		*(fiber->wait_prev ? &fiber->wait_prev->wait_next : &list->first) = fiber->wait_next;
		*(fiber->wait_next ? &fiber->wait_next->wait_prev : &list->last) = fiber->wait_prev;
		list->nr--;
	}
	if (fiber->deadline.position)
		timer_remove(&fiber->deadline);
	fiber->wait = FIBER_WAIT_NONE;
	fiber->wait_object = NULL;
	fiber->wait_list = NULL;
	fiber->wait_prev = fiber->wait_next = NULL;
	sim->runnable[sim->runnable_nr++] = fiber;
}

/* The stack is gone already. */
static void fiber_free(struct fiber *fiber)
{
	struct fiber *last = sim->fibers[--sim->fibers_nr];

	sim->fibers[fiber->position] = last;
	last->position = fiber->position;
	free(fiber);
}

static int fibers_reserve(void)
{
	size_t nr = sim->fibers_nr + 1;

	if (array_grow(&sim->fibers, &sim->fibers_capacity, nr, sizeof(*sim->fibers)) ||
	    array_grow(&sim->runnable, &sim->runnable_capacity, nr, sizeof(*sim->runnable)))
		return -ENOMEM;
	return timers_reserve(nr + sim->callbacks_nr);
}

/* --- deadlock --- */

static void wait_to_text(struct strbuf *out, const struct fiber *fiber)
{
	switch (fiber->wait) {
	case FIBER_WAIT_NONE: break;
	case FIBER_WAIT_MUTEX: {
		const struct mutex *m = fiber->wait_object;

		strbuf_printf(out, "mutex %p", (const void *)m);
		if (m->owner)
			strbuf_printf(out, ", held by fiber %u '%s'", m->owner->id, m->owner->task.name);
		break;
	}
	case FIBER_WAIT_WAITQ: strbuf_printf(out, "a wake-up in wait queue %p", fiber->wait_object); break;
	case FIBER_WAIT_COUNTDOWN: {
		const struct countdown *c = fiber->wait_object;

		strbuf_printf(out, "countdown %p, which is at %u", (const void *)c, c->count);
		break;
	}
	case FIBER_WAIT_TASK: {
		const struct fiber *other = fiber->wait_object;

		strbuf_printf(out, "the end of fiber %u '%s'", other->id, other->task.name);
		break;
	}
	case FIBER_WAIT_SLEEP: strbuf_add(out, "the end of time"); break;
	}
}

static void log_to_stderr(void *ctx, enum log_level level, const char *line) { fprintf(stderr, "%s\n", line); }

static void deadlock_report(void)
{
	static const struct log_sink standard_error = { .write = log_to_stderr, .level_max = LOG_LEVEL_DEBUG };
	const struct log_sink *log = sim->opts.log ? sim->opts.log : &standard_error;

	log_printf(log, LOG_LEVEL_ERROR,
		   "deadlock at simulated time %llu ns, seed %llu:", (unsigned long long)sim->now_ns,
		   (unsigned long long)sim->opts.seed);
	for (size_t i = 0; i < sim->fibers_nr; i++) {
		const struct fiber *fiber = sim->fibers[i];
		char text[128];
		struct strbuf what = strbuf_fixed(text, sizeof(text));

		if (fiber->has_ended)
			continue;
		wait_to_text(&what, fiber);
		log_printf(log, LOG_LEVEL_ERROR, "fiber %u '%s' waits for %s", fiber->id, fiber->task.name,
			   strbuf_text(&what));
	}
}

/*
 * Free the stacks of the fibers that a deadlock left over. Each is switched to a last time, to leave from where it
 * stands: what the sanitizers keep for a context can only be freed from inside it.
 */
static void fibers_abandon(void)
{
	for (size_t i = 0; i < sim->fibers_nr; i++) {
		struct fiber *fiber = sim->fibers[i];

		if (fiber->has_ended)
			continue;
		fiber->is_abandoned = true;
		sim->current = fiber;
		fiber_context_switch(&sim->scheduler, &fiber->context);
		ended_reap();
	}
	sim->current = NULL;
}

/* --- timers: a binary heap, earliest first --- */

static int timers_reserve(size_t nr)
{
	return array_grow(&sim->timers, &sim->timers_capacity, nr + 1, sizeof(*sim->timers));
}

static bool timer_is_before(const struct fiber_timer *a, const struct fiber_timer *b)
{
	return a->when_ns != b->when_ns ? a->when_ns < b->when_ns : a->order < b->order;
}

static void timer_place(struct fiber_timer *timer, size_t position)
{
	sim->timers[position] = timer;
	timer->position = position;
}

/* Let @timer find its place from @position, where there is a hole. */
static void timer_settle(struct fiber_timer *timer, size_t position)
{
	size_t child;

	for (; position > 1 && timer_is_before(timer, sim->timers[position / 2]); position /= 2)
		timer_place(sim->timers[position / 2], position);
	for (; (child = position * 2) <= sim->timers_nr; position = child) {
		if (child < sim->timers_nr && timer_is_before(sim->timers[child + 1], sim->timers[child]))
			child++;
		if (!timer_is_before(sim->timers[child], timer))
			break;
		timer_place(sim->timers[child], position);
	}
	timer_place(timer, position);
}

static void timer_add(struct fiber_timer *timer, uint64_t when_ns)
{
	timer->when_ns = when_ns;
	timer->order = rng_u64(&sim->choices);
	sim->timers_nr++;
	timer_settle(timer, sim->timers_nr);
}

static void timer_remove(struct fiber_timer *timer)
{
	size_t hole = timer->position;
	struct fiber_timer *last = sim->timers[sim->timers_nr--];

	timer->position = 0;
	if (last != timer)
		timer_settle(last, hole);
}

/* Time moves to the first event, and it happens. */
static void timer_fire_first(void)
{
	struct fiber_timer *timer = sim->timers[1];

	sim->now_ns = max(sim->now_ns, timer->when_ns);
	hash_decision(sim->now_ns);
	if (timer->fiber) {
		timer->fiber->has_timed_out = true;
		fiber_make_runnable(timer->fiber);
		return;
	}
	timer_remove(timer);
	sim->callbacks_nr--;
	timer->fn(timer->arg);
	free(timer);
}
