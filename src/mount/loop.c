/*
 * Who reads the next request.
 *
 * Several threads wait for requests, all in read(2), and the kernel gives them to each in turn. So whoever has answered
 * one needn't be back before the next is read, and its sender, which asks one thing after the other, finds a thread
 * that waits. What a request costs is mostly waking, of the thread and of the sender, and that depends on where the
 * scheduler puts them: on a processor that sleeps it takes many times as long as on one that is busy. With one thread
 * that waits, sender and thread each wake the other's processor all the time; with some ten that take turns, the last
 * one still ends its work when the next is woken, which then goes to the processor of the sender, as none is idle.
 * (Measured: bench/README.md. One thread that listens, and looks for the next request before it sleeps, makes 0.4 times
 * as many files in a second, one that spins for it 0.7 times, and takes a processor from others.)
 *
 * A request may wait, for a device or for others, and keeps its thread meanwhile. When few are left that read, another
 * is woken or made. A thread that has served its request reads again, unless enough do; then it parks. The one that
 * parked last is woken first: what it used is still in caches. Threads stay until the end; few of those that are parked
 * keep their buffer (a MiB).
 *
 * A thread that finds no memory for its buffer leaves reading to others, and calls none: it wouldn't find any, either.
 * If there are no others it tries again.
 *
 * The end: reading fails for all when the filesystem is unmounted. Where it isn't, each thread that reads is sent a
 * signal, again and again until it has heard it, as one that comes just before read(2) isn't heard.
 *
 * Draining: the kernel has no more than BACKGROUND_MAX requests under way of those that nobody waits for, reads ahead
 * and writes of the page cache; others stand in a queue of its own, first in, first out. So when there is nothing to be
 * read, and fewer than that are being served, that queue is empty, and whatever it was to hand out is being served
 * or done. A thread that has a request already, and hasn't said so yet, is told from one that waits for one by a
 * signal.
 *
 * All state is under one lock, which is held for a few instructions.
 */
#include "mount/loop.h"

#include <errno.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "mount/heap.h"
#include "mount/ring.h"

enum {
	THREADS_MAX = 1024, /* requests that wait for something at once */
	READERS_MAX = 16,
	READERS_MIN = 4,
	BUFFERS_PARKED_MAX = 4,
	NS_PER_S = 1000000000,
	DRAIN_S = 600,
};
static const uint64_t look_again_ns = 1000 * 1000;
static const uint64_t buffer_again_ns = 100 * 1000 * 1000;

struct worker {
	struct loop *loop;
	struct task *task;
	struct fuse_buf buf;
	/* Under the lock: */
	pid_t thread;
	bool is_reading;
	bool is_called; /* to read, where it was parked */
	bool lacks_buffer;
	bool is_background;   /* what it serves may be a request that nobody waits for */
	uint64_t requests_nr; /* times that it came back from reading */
	struct waitq wake;
	struct worker *parked_below;
};

struct loop {
	struct mount_server *server;
	void (*ended)(void *ctx);
	void *ctx;
	struct sigaction signal_before;
	struct task *heap_task;

	struct mutex lock; /* all below */
	bool is_stopping;
	unsigned readers_nr; /* that read, or are about to */
	struct waitq reader_gone;
	struct worker *parked;
	unsigned parked_nr;
	unsigned workers_nr;
	struct worker workers[THREADS_MAX];
	uint64_t requests_nr;
	uint64_t background_done_nr;
	bool is_heap_asleep;
	struct waitq heap_wake;
};

static void worker_run(void *arg);

/* One more reads from now on, if a thread can be had. Under the lock. */
static void reader_call(struct loop *l)
{
	struct worker *w = l->parked;

	if (l->is_stopping)
		return;
	if (w) {
		l->parked = w->parked_below;
		l->parked_nr--;
	} else if (l->workers_nr < THREADS_MAX) {
		w = &l->workers[l->workers_nr];
		w->loop = l;
		waitq_init(&w->wake);
		if (task_start(&w->task, "mount", worker_run, w)) {
			waitq_destroy(&w->wake);
			return;
		}
		l->workers_nr++;
	} else {
		return;
	}
	w->is_called = true;
	l->readers_nr++;
	waitq_wake_one(&w->wake);
}

/* Read, or park until it is called. Under the lock. False: it is time to stop. */
static bool reader_become(struct worker *w)
{
	struct loop *l = w->loop;

	if (w->lacks_buffer && !l->readers_nr && !l->is_stopping)
		waitq_wait_until(&w->wake, &l->lock, clock_monotonic_ns() + buffer_again_ns);
	if (!w->is_called && l->readers_nr < (w->lacks_buffer ? 1 : READERS_MAX)) {
		w->is_called = true;
		l->readers_nr++;
	} else if (!w->is_called) {
		if (l->parked_nr >= BUFFERS_PARKED_MAX) {
			free(w->buf.mem);
			w->buf.mem = NULL;
		}
		w->parked_below = l->parked;
		l->parked = w;
		l->parked_nr++;
		while (!w->is_called && !l->is_stopping)
			waitq_wait(&w->wake, &l->lock);
	}
	return !l->is_stopping;
}

/* No thread is made, woken or begins to read from now on. Under the lock. */
static void stop_begin(struct loop *l)
{
	l->is_stopping = true;
	for (unsigned i = 0; i < l->workers_nr; i++)
		waitq_wake_all(&l->workers[i].wake);
	waitq_wake_all(&l->heap_wake);
}

static void on_come_back(int signal) { (void)signal; }

bool loop_is_background(uint32_t opcode)
{
	return opcode == FUSE_READ || opcode == FUSE_WRITE || opcode == FUSE_RELEASE;
}

void loop_signal_hear(void)
{
	sigset_t come_back;

	sigemptyset(&come_back);
	sigaddset(&come_back, LOOP_SIGNAL);
	sigprocmask(SIG_UNBLOCK, &come_back, NULL);
}

/* Under the lock. */
static void request_count(struct loop *l)
{
	l->requests_nr++;
	if (l->is_heap_asleep)
		waitq_wake_one(&l->heap_wake);
}

static void worker_run(void *arg)
{
	struct worker *w = arg;
	struct loop *l = w->loop;

	loop_signal_hear();
	mutex_lock(&l->lock);
	w->thread = gettid();
	while (reader_become(w)) {
		w->is_reading = true;
		mutex_unlock(&l->lock);
		int n = fuse_session_receive_buf(l->server->session, &w->buf);

		mutex_lock(&l->lock);
		w->is_reading = false;
		w->is_called = false;
		l->readers_nr--;
		request_count(l);
		w->requests_nr++;
		w->is_background = n > 0 && loop_is_background(((struct fuse_in_header *)w->buf.mem)->opcode);
		w->lacks_buffer = n == -ENOMEM;
		bool is_end = n <= 0 && n != -EINTR && n != -EAGAIN && !w->lacks_buffer;
		bool is_first_to_end = is_end && !l->is_stopping;
		if (is_first_to_end)
			stop_begin(l);
		if (l->is_stopping)
			waitq_wake_all(&l->reader_gone);
		else if (l->readers_nr < READERS_MIN && !w->lacks_buffer)
			reader_call(l);
		mutex_unlock(&l->lock);
		if (n > 0)
			fuse_session_process_buf(l->server->session, &w->buf);
		if (is_first_to_end)
			l->ended(l->ctx);
		mutex_lock(&l->lock);
		l->background_done_nr += w->is_background;
		w->is_background = false;
	}
	mutex_unlock(&l->lock);
	free(w->buf.mem);
}

/* Looks after the heap now and then, while there are requests. */
static void heap_run(void *arg)
{
	struct loop *l = arg;
	uint64_t seen_nr = 0, resident_bytes = 0;

	mutex_lock(&l->lock);
	while (!l->is_stopping) {
		l->is_heap_asleep = l->requests_nr == seen_nr;
		if (l->is_heap_asleep) {
			waitq_wait(&l->heap_wake, &l->lock);
			l->is_heap_asleep = false;
		} else {
			seen_nr = l->requests_nr;
			mutex_unlock(&l->lock);
			heap_give_back(&resident_bytes);
			mutex_lock(&l->lock);
		}
		if (!l->is_stopping)
			waitq_wait_until(&l->heap_wake, &l->lock,
					 clock_monotonic_ns() + (uint64_t)HEAP_LOOK_S * NS_PER_S);
	}
	mutex_unlock(&l->lock);
}

/* A request came another way. */
static void request_note(void *ctx)
{
	struct loop *l = ctx;

	mutex_lock(&l->lock);
	request_count(l);
	mutex_unlock(&l->lock);
}

/* Before INIT is read. Without them all goes on as it would where the kernel doesn't have them. */
static void rings_prepare(struct loop *l)
{
	struct mount_server *s = l->server;
	int err = s->options->io_uring == MOUNT_IO_URING_NEVER ? 0 : rings_new(s, request_note, l, &s->rings);

	if (err && s->options->io_uring == MOUNT_IO_URING_WANTED)
		fuse_log(FUSE_LOG_WARNING, "io_uring can't be used for requests: %s", strerror(-err));
}

int loop_start(struct mount_server *s, void (*ended)(void *ctx), void *ctx, struct loop **loop)
{
	struct sigaction come_back = { .sa_handler = on_come_back }; /* it ends read(2): no SA_RESTART */
	struct loop *l = calloc(1, sizeof(*l));

	if (!l)
		return -ENOMEM;
	l->server = s;
	l->ended = ended;
	l->ctx = ctx;
	mutex_init(&l->lock);
	waitq_init(&l->reader_gone);
	waitq_init(&l->heap_wake);
	sigaction(LOOP_SIGNAL, &come_back, &l->signal_before);
	rings_prepare(l);

	mutex_lock(&l->lock);
	while (l->readers_nr < READERS_MAX) {
		unsigned nr = l->readers_nr;
		reader_call(l);
		if (l->readers_nr == nr)
			break;
	}
	int err = l->readers_nr < READERS_MIN ? -EAGAIN : 0;
	mutex_unlock(&l->lock);
	if (!err)
		err = task_start(&l->heap_task, "mount-heap", heap_run, l);
	*loop = l;
	if (err)
		loop_stop(l);
	return err;
}

/* --- draining --- */

/* A request that a thread reads or serves: its number there; 0: none. */
typedef uint64_t requests[THREADS_MAX];

/* Call the threads that still read what @reading has; NULL: that read. Under the lock. False: there are none. */
static bool readers_signal(struct loop *l, const uint64_t *reading)
{
	bool is_one_reading = false;

	for (unsigned i = 0; i < l->workers_nr; i++) {
		const struct worker *w = &l->workers[i];

		if (!w->is_reading || (reading && w->requests_nr + 1 != reading[i]))
			continue;
		is_one_reading = true;
		tgkill(getpid(), w->thread, LOOP_SIGNAL);
	}
	return is_one_reading;
}

/* Have the threads come back that were reading, as @reading has them. False: it is time to stop. */
static bool readers_come_back(struct loop *l, const requests reading)
{
	mutex_lock(&l->lock);
	while (!l->is_stopping && readers_signal(l, reading))
		waitq_wait_until(&l->reader_gone, &l->lock, clock_monotonic_ns() + look_again_ns);
	bool is_stopping = l->is_stopping;
	mutex_unlock(&l->lock);
	return !is_stopping;
}

/*
 * What is being served that the kernel may have begun by itself. False: it may have more of that, or it is time to
 * stop.
 */
static bool background_see(struct loop *l, requests serving)
{
	struct pollfd kernel = { .fd = fuse_session_fd(l->server->session), .events = POLLIN };
	requests reading = { 0 };

	mutex_lock(&l->lock);
	uint64_t done_nr = l->background_done_nr;
	bool is_all_read = !l->is_stopping && !poll(&kernel, 1, 0);
	for (unsigned i = 0; i < l->workers_nr; i++)
		reading[i] = l->workers[i].is_reading ? l->workers[i].requests_nr + 1 : 0;
	mutex_unlock(&l->lock);
	if (!is_all_read || !readers_come_back(l, reading))
		return false;

	mutex_lock(&l->lock);
	uint64_t nr = l->background_done_nr - done_nr;
	for (unsigned i = 0; i < THREADS_MAX; i++) {
		serving[i] = l->workers[i].is_background ? l->workers[i].requests_nr : 0;
		nr += l->workers[i].is_background;
	}
	mutex_unlock(&l->lock);
	return nr < BACKGROUND_MAX;
}

static bool is_served(struct loop *l, const requests serving)
{
	bool is_one_left = false;

	mutex_lock(&l->lock);
	for (unsigned i = 0; i < THREADS_MAX; i++)
		is_one_left |= serving[i] && l->workers[i].is_background && l->workers[i].requests_nr == serving[i];
	mutex_unlock(&l->lock);
	return !is_one_left;
}

static bool is_stopping(struct loop *l)
{
	mutex_lock(&l->lock);
	bool is_stopping = l->is_stopping;
	mutex_unlock(&l->lock);
	return is_stopping;
}

int loop_drain(struct loop *l)
{
	uint64_t until = clock_monotonic_ns() + (uint64_t)DRAIN_S * NS_PER_S;
	bool is_seen = false;
	requests serving;

	if (!l)
		return 0;
	int err = l->server->rings ? rings_drain(l->server->rings, until) : 0;
	if (err)
		return err;
	for (;;) {
		is_seen = is_seen || background_see(l, serving);
		if (is_seen && is_served(l, serving))
			return 0;
		if (is_stopping(l))
			return -ESHUTDOWN;
		if (clock_monotonic_ns() > until)
			return -ETIMEDOUT;
		sleep_ns(look_again_ns);
	}
}

/* --- the end --- */

void loop_stop(struct loop *l)
{
	rings_stop(l->server->rings);
	mutex_lock(&l->lock);
	stop_begin(l);
	while (readers_signal(l, NULL))
		waitq_wait_until(&l->reader_gone, &l->lock, clock_monotonic_ns() + look_again_ns);
	mutex_unlock(&l->lock);
	/* No thread makes another one when it is time to stop. */
	for (unsigned i = 0; i < l->workers_nr; i++) {
		task_join(l->workers[i].task);
		waitq_destroy(&l->workers[i].wake);
	}
	if (l->heap_task)
		task_join(l->heap_task);
	sigaction(LOOP_SIGNAL, &l->signal_before, NULL);
}

void loop_free(struct loop *l)
{
	if (!l)
		return;
	rings_free(l->server->rings);
	l->server->rings = NULL;
	waitq_destroy(&l->reader_gone);
	waitq_destroy(&l->heap_wake);
	mutex_destroy(&l->lock);
	free(l);
}
