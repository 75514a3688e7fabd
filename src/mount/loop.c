/*
 * Who reads the next request.
 *
 * Most requests take less time than waking a thread does, and a program that does one thing after the other has one
 * request out at a time. Threads that all wait for requests would be woken in turn, each of them cold, on whatever
 * processor it slept. So one thread, the *listener*, waits for a request, and then serves it; nobody listens meanwhile,
 * and nobody is woken. Another thread is made the listener, before the request is served,
 *
 * - when its kind waits for a device: fsync and the like; reading and writing data if that took long lately, which it
 *   doesn't where the device is a file that is in memory;
 * - when one more request is there already, unless this one is a forget: these come on their own, together with what
 *   somebody waits for, take no time, and nobody waits for them.
 *
 * Requests of other kinds may wait as well: a lookup reads nodes that aren't in memory. A clock, which ticks only while
 * there are requests, makes another thread the listener when nobody has listened from one tick to the next. So what
 * one request waits for delays others by two ticks at most. Now and then it looks after the heap, too (heap.c).
 *
 * A thread that has served its request listens if nobody does, else it parks. The one that parked last is woken first:
 * what it used is still in caches. Threads are made when none is parked, and stay until the end; those below the top of
 * the stack of parked ones give their buffer (a MiB) back.
 *
 * All state is under one lock, which is held for a few instructions. The descriptor doesn't block: a listener polls it
 * together with the one that tells of the end.
 */
#include "mount/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "mount/heap.h"

enum {
	THREADS_MAX = 256, /* requests that wait for something at once */
	BUFFERS_PARKED_MAX = 16,
	TICKS_IDLE = 100, /* without a request, then the clock stops */
	NS_PER_S = 1000000000,
};
static const uint64_t tick_ns = 1000 * 1000;
static const uint64_t long_ns = 40 * 1000; /* several times what waking a thread takes */

/* Kinds of requests whose time is kept. */
enum timed { TIMED_READ, TIMED_WRITE, TIMED_NR, TIMED_NONE = TIMED_NR };

struct worker {
	struct loop *loop;
	struct task *task;
	struct waitq wake;
	bool is_listener;
	struct worker *parked_below;
	struct fuse_buf buf;
};

struct loop {
	struct fuse_session *session;
	void (*ended)(void *ctx);
	void *ctx;
	int stop_fd; /* readable when it is time to stop */
	struct task *clock_task;
	/* What serving one takes lately; without the lock, as it is an estimate. */
	uint64_t took_ns[TIMED_NR];

	struct mutex lock; /* all below */
	bool is_stopping;
	bool has_listener;
	uint64_t requests_nr;
	bool is_clock_stopped;
	struct waitq clock_wake;
	struct worker *parked;
	unsigned parked_nr;
	unsigned workers_nr;
	struct worker workers[THREADS_MAX];
};

static void worker_run(void *arg);

/* Somebody is to listen from now on, if a thread can be had. Under the lock. */
static void listener_appoint(struct loop *l)
{
	struct worker *w = l->parked;

	if (l->has_listener || l->is_stopping)
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
	w->is_listener = true;
	l->has_listener = true;
	waitq_wake_one(&w->wake);
}

static void stop_begin(struct loop *l)
{
	uint64_t one = 1;

	mutex_lock(&l->lock);
	l->is_stopping = true;
	for (unsigned i = 0; i < l->workers_nr; i++)
		waitq_wake_all(&l->workers[i].wake);
	waitq_wake_all(&l->clock_wake);
	mutex_unlock(&l->lock);
	if (write(l->stop_fd, &one, sizeof(one)) < 0)
		fuse_log(FUSE_LOG_ERR, "can't tell the mount's threads to stop\n");
}

/*
 * Wait for a request. False: there will be none. Who has just been answered isn't as fast as to have sent the next one,
 * so that the first look is one that waits.
 */
static bool request_receive(struct worker *w)
{
	struct loop *l = w->loop;
	struct pollfd fds[2] = { { .fd = fuse_session_fd(l->session), .events = POLLIN },
				 { .fd = l->stop_fd, .events = POLLIN } };

	for (;;) {
		if (poll(fds, ARRAY_NR(fds), -1) > 0 && fds[1].revents)
			return false;
		int n = fuse_session_receive_buf(l->session, &w->buf);
		if (n > 0)
			return true;
		if (n != -EAGAIN && n != -EINTR)
			return false;
	}
}

static enum timed timed_of(const struct fuse_buf *buf)
{
	const struct fuse_in_header *in = buf->mem;

	if ((buf->flags & FUSE_BUF_IS_FD) || buf->size < sizeof(*in))
		return TIMED_NONE;
	return in->opcode == FUSE_READ ? TIMED_READ : in->opcode == FUSE_WRITE ? TIMED_WRITE : TIMED_NONE;
}

static bool may_wait(const struct loop *l, const struct fuse_buf *buf)
{
	const struct fuse_in_header *in = buf->mem;
	enum timed timed = timed_of(buf);

	if (timed != TIMED_NONE)
		return __atomic_load_n(&l->took_ns[timed], __ATOMIC_RELAXED) > long_ns;
	if ((buf->flags & FUSE_BUF_IS_FD) || buf->size < sizeof(*in))
		return true;
	switch (in->opcode) {
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
	case FUSE_FALLOCATE:
	case FUSE_LSEEK:
	case FUSE_COPY_FILE_RANGE:
	case FUSE_IOCTL: return true;
	default: return false;
	}
}

static void request_serve(struct worker *w)
{
	struct loop *l = w->loop;
	enum timed timed = timed_of(&w->buf);
	uint64_t begin_ns = timed == TIMED_NONE ? 0 : clock_monotonic_ns();

	fuse_session_process_buf(l->session, &w->buf);
	if (timed == TIMED_NONE)
		return;
	uint64_t took_ns = clock_monotonic_ns() - begin_ns;
	uint64_t before_ns = __atomic_load_n(&l->took_ns[timed], __ATOMIC_RELAXED);
	__atomic_store_n(&l->took_ns[timed], before_ns - before_ns / 8 + took_ns / 8, __ATOMIC_RELAXED);
}

static bool is_forget(const struct fuse_buf *buf)
{
	const struct fuse_in_header *in = buf->mem;

	return in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET;
}

static bool is_another_there(struct loop *l)
{
	struct pollfd fd = { .fd = fuse_session_fd(l->session), .events = POLLIN };

	return poll(&fd, 1, 0) > 0;
}

/* Park until this thread is to listen. Under the lock. False: it is time to stop. */
static bool listener_become(struct worker *w)
{
	struct loop *l = w->loop;

	if (!w->is_listener && !l->has_listener) {
		w->is_listener = true;
		l->has_listener = true;
	} else if (!w->is_listener) {
		if (l->parked_nr >= BUFFERS_PARKED_MAX) {
			free(w->buf.mem);
			w->buf.mem = NULL;
		}
		w->parked_below = l->parked;
		l->parked = w;
		l->parked_nr++;
		while (!w->is_listener && !l->is_stopping)
			waitq_wait(&w->wake, &l->lock);
	}
	return !l->is_stopping;
}

static void worker_run(void *arg)
{
	struct worker *w = arg;
	struct loop *l = w->loop;

	mutex_lock(&l->lock);
	while (listener_become(w)) {
		mutex_unlock(&l->lock);
		bool is_there = request_receive(w);
		bool is_other_wanted =
			is_there && (may_wait(l, &w->buf) || (!is_forget(&w->buf) && is_another_there(l)));

		mutex_lock(&l->lock);
		w->is_listener = false;
		l->has_listener = false;
		l->requests_nr++;
		if (is_other_wanted)
			listener_appoint(l);
		if (l->is_clock_stopped)
			waitq_wake_one(&l->clock_wake);
		bool is_first_to_end = !is_there && !l->is_stopping;
		mutex_unlock(&l->lock);
		if (is_there)
			request_serve(w);
		else
			stop_begin(l);
		if (is_first_to_end)
			l->ended(l->ctx);
		mutex_lock(&l->lock);
	}
	mutex_unlock(&l->lock);
	free(w->buf.mem);
}

static void clock_run(void *arg)
{
	struct loop *l = arg;
	uint64_t seen_nr = 0, heap_look_ns = 0, resident_bytes = 0;
	unsigned idle = 0;

	mutex_lock(&l->lock);
	while (!l->is_stopping) {
		if (clock_monotonic_ns() >= heap_look_ns) {
			mutex_unlock(&l->lock);
			heap_give_back(&resident_bytes);
			heap_look_ns = clock_monotonic_ns() + (uint64_t)HEAP_LOOK_S * NS_PER_S;
			mutex_lock(&l->lock);
		}
		idle = l->requests_nr == seen_nr && l->has_listener ? idle + 1 : 0;
		if (l->requests_nr == seen_nr)
			listener_appoint(l);
		seen_nr = l->requests_nr;
		if (idle < TICKS_IDLE) {
			waitq_wait_until(&l->clock_wake, &l->lock, clock_monotonic_ns() + tick_ns);
		} else {
			l->is_clock_stopped = true;
			waitq_wait(&l->clock_wake, &l->lock);
			l->is_clock_stopped = false;
			idle = 0;
		}
	}
	mutex_unlock(&l->lock);
}

int loop_start(struct fuse_session *session, void (*ended)(void *ctx), void *ctx, struct loop **loop)
{
	struct loop *l = calloc(1, sizeof(*l));
	int fd = fuse_session_fd(session);
	int flags = fcntl(fd, F_GETFL);

	if (!l)
		return -ENOMEM;
	l->session = session;
	l->ended = ended;
	l->ctx = ctx;
	l->stop_fd = eventfd(0, EFD_CLOEXEC);
	mutex_init(&l->lock);
	waitq_init(&l->clock_wake);
	int err = l->stop_fd < 0 || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ? -errno : 0;
	if (!err) {
		mutex_lock(&l->lock);
		listener_appoint(l);
		err = l->has_listener ? 0 : -EAGAIN;
		mutex_unlock(&l->lock);
	}
	if (!err)
		err = task_start(&l->clock_task, "mount-clock", clock_run, l);
	if (err) {
		loop_stop(l);
		return err;
	}
	*loop = l;
	return 0;
}

void loop_stop(struct loop *l)
{
	stop_begin(l);
	/* No thread makes another one when it is time to stop. */
	for (unsigned i = 0; i < l->workers_nr; i++) {
		task_join(l->workers[i].task);
		waitq_destroy(&l->workers[i].wake);
	}
	if (l->clock_task)
		task_join(l->clock_task);
	waitq_destroy(&l->clock_wake);
	mutex_destroy(&l->lock);
	if (l->stop_fd >= 0)
		close(l->stop_fd);
	free(l);
}
