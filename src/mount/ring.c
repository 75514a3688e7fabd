/*
 * Requests that come through io_uring.
 *
 * The kernel has a queue of requests for each processor, and puts a request into that of the processor where its sender
 * runs. A thread that serves a queue stays on its processor. So a request and its answer wake nobody elsewhere: what
 * they cost doesn't depend on where the scheduler has put whom, as it does with read(2) (loop.c). And there is one
 * system call for each, which gives the answer to the last one and waits for the next.
 *
 * Each thread has a ring of its own, with one *entry*: a buffer that the kernel puts a request into and takes the
 * answer from. Of the entries of a queue that wait the kernel takes the one that came last, whose memory is in caches.
 * A request that waits for something keeps its thread and its entry, and nothing else: when few of a queue are left
 * that wait, another one is made, as in loop.c. (libfuse's own rings, from 3.18 on, have one thread for each queue, so
 * one fsync would hold up all that is sent from a processor; it has no part in these, and sees requests as if they had
 * been read.)
 *
 * Forgets and interrupts, which have no answers, still are read from the device.
 *
 * With much data to copy, to checksum or to decompress a thread may go to any processor: one goes on sending meanwhile,
 * and several threads do more than one processor could. What such requests start (data/crew.h) isn't bound to one,
 * either.
 *
 * The buffer of an entry is memory only where it was used. What a large request leaves there is given back by a thread
 * that nothing comes to any more.
 *
 * The begin: that the kernel offers it, and that it is accepted, is said in INIT (protocol.c). When it was accepted the
 * kernel holds all requests back until each queue has an entry; so by then threads and rings must be there. If it then
 * refuses an entry after all it goes back to the device by itself.
 *
 * Draining (loop.c): the kernel has a queue of what is to be written back for each processor, too. As long as there is
 * something in it, at least one such request has been given to an entry of the queue, or waits for one. So it was empty
 * when there was an entry that waited, none of its threads had such a request, and none got one until each that waited
 * had come back, as one that had got it before would have come back with it.
 *
 * The end: the kernel gives the entries back when the filesystem is unmounted. Where it isn't, threads that wait are
 * sent a signal, as in loop.c.
 */
#include "mount/ring.h"

#include <errno.h>
#include <liburing.h>
#include <linux/fuse.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "mount/heap.h"
#include "mount/loop.h"
#include "mount/protocol.h"

/* What the kernel calls fuse_uring_cmd, fuse_uring_cmd_req, fuse_uring_req_header: newer than Debian's linux/fuse.h. */
enum { COMMAND_REGISTER = 1, COMMAND_ANSWER_AND_FETCH = 2 };
struct command {
	uint64_t flags;
	uint64_t commit_id;
	uint16_t queue;
	uint8_t padding[6];
};
struct entry_header {
	char in_out[128]; /* a fuse_in_header, or fuse_out_header */
	char op_in[128];  /* what comes first behind it, depending on the operation */
	uint64_t flags;
	uint64_t commit_id;
	uint32_t payload_bytes; /* what comes behind that, or behind the fuse_out_header */
	uint32_t padding;
	uint64_t reserved;
};
_Static_assert(sizeof(struct command) == 24 && sizeof(struct entry_header) == 288, "as the kernel has it");

enum {
	QUEUES_MAX = 256,
	THREADS_MAX = 1024, /* of one queue */
	IDLE_MIN = 2,
	PAGE_BYTES = 4096,
	LARGE_BYTES = 64 << 10,
	SERVING_BYTES_MIN = 64 << 10, /* of the heap; the buffers of reads and writes are others */
	NS_PER_MS = 1000 * 1000,
};
/* The header; the head of a request, in front of what is behind it; that. */
#define BUFFER_BYTES (2 * PAGE_BYTES + REQUEST_BYTES_MAX)

struct ring_thread {
	struct ring_queue *queue;
	struct task *task;
	struct io_uring uring;
	void *buffer;
	struct entry_header *header; /* in the buffer, as is the payload */
	char *payload;
	uint64_t commit_id;
	bool is_answered;
	bool is_anywhere;
	bool has_memory; /* much, in the payload */
	/* Under the lock: */
	pid_t thread;
	bool is_ready, has_ended;
	/* Atomic: */
	bool is_waiting;
	bool is_background;	/* the request that it had last may be one that nobody waits for */
	uint64_t turns;		/* times that it came back from waiting */
	uint64_t background_nr; /* such requests */
	/* For who drains: how they were. */
	uint64_t seen_turns, seen_background_nr;
};

struct ring_queue {
	struct rings *rings;
	unsigned nr;
	cpu_set_t here;	  /* its processor; all of ours, where it is off or isn't ours */
	unsigned idle_nr; /* threads that wait, or are about to; atomic */
	/* Under the lock: */
	unsigned threads_nr;
	struct ring_thread *threads[THREADS_MAX];
};

struct rings {
	struct mount_server *server;
	void (*noted)(void *ctx);
	void *ctx;
	int fd;
	cpu_set_t anywhere;
	bool is_stopping; /* changed under the lock, looked at without */
	struct mutex lock;
	bool is_started;
	struct waitq changed;
	struct mutex drain_lock; /* before the lock */
	unsigned queues_nr;
	struct ring_queue queues[];
};

/* The thread that this is, while it serves a request. */
static _Thread_local struct ring_thread *serving;

static bool is_stopping(const struct rings *r) { return __atomic_load_n(&r->is_stopping, __ATOMIC_ACQUIRE); }

/* --- a request --- */

bool ring_answer(const struct iovec *iov, int count)
{
	struct fuse_out_header out;
	struct ring_thread *t = serving;
	size_t bytes = 0;

	/* One with 0 is no answer: the kernel is told something. */
	memcpy(&out, iov[0].iov_base, sizeof(out));
	if (!t || !out.unique)
		return false;
	for (int i = 1; i < count; i++) {
		if (iov[i].iov_len > REQUEST_BYTES_MAX - bytes) {
			out.error = -EIO;
			bytes = 0;
			break;
		}
		if (iov[i].iov_base != t->payload + bytes)
			memcpy(t->payload + bytes, iov[i].iov_base, iov[i].iov_len);
		bytes += iov[i].iov_len;
	}
	memcpy(t->header->in_out, &out, sizeof(out));
	t->header->payload_bytes = (uint32_t)bytes;
	t->is_answered = true;
	return true;
}

void *ring_answer_buffer(void) { return serving ? serving->payload : NULL; }

static void answer_error(uint64_t unique)
{
	struct fuse_out_header out = { .len = sizeof(out), .error = -EIO, .unique = unique };

	ring_answer(&(struct iovec){ &out, sizeof(out) }, 1);
}

/* Its head is put in front of what is behind it, so that it lies there as it would have been read. */
static void request_serve(struct ring_thread *t)
{
	struct mount_server *s = t->queue->rings->server;
	struct fuse_in_header in;

	memcpy(&in, t->header->in_out, sizeof(in));
	size_t op_bytes = in.len - sizeof(in) - t->header->payload_bytes;
	t->commit_id = t->header->commit_id;
	t->is_answered = false;
	serving = t;
	if (op_bytes <= sizeof(t->header->op_in)) {
		char *request = t->payload - op_bytes - sizeof(in);

		memcpy(request, &in, sizeof(in));
		memcpy(request + sizeof(in), t->header->op_in, op_bytes);
		protocol_request(s, request, in.len);
		fuse_session_process_buf(s->session, &(struct fuse_buf){ .mem = request, .size = in.len });
	}
	/* None is left unanswered; whoever sent it would wait forever. */
	if (!t->is_answered)
		answer_error(in.unique);
	serving = NULL;
}

/* --- a thread --- */

static void command_prepare(struct ring_thread *t, uint32_t op, const struct iovec parts[2])
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&t->uring);
	struct command c = { .commit_id = t->commit_id, .queue = (uint16_t)t->queue->nr };

	/* There is room: one is made at a time. */
	if (!sqe)
		abort();
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, t->queue->rings->fd, parts, parts ? 2 : 0, 0);
	sqe->cmd_op = op;
	memcpy(sqe->cmd, &c, sizeof(c));
}

static void thread_place(const cpu_set_t *where) { sched_setaffinity(0, sizeof(*where), where); }

/* It stays so, as the next request that comes to it is likely to be such a one, too. */
static void thread_place_for(struct ring_thread *t, bool is_large)
{
	if (t->is_anywhere != is_large)
		thread_place(is_large ? &t->queue->rings->anywhere : &t->queue->here);
	t->is_anywhere = is_large;
	t->has_memory |= is_large;
}

static bool request_is_large(const struct ring_thread *t)
{
	struct fuse_in_header in;
	struct fuse_read_in read;

	memcpy(&in, t->header->in_out, sizeof(in));
	memcpy(&read, t->header->op_in, sizeof(read));
	return t->header->payload_bytes >= LARGE_BYTES || (in.opcode == FUSE_READ && read.size >= LARGE_BYTES);
}

/*
 * Give the last answer, and wait. The kernel puts a request into the buffer only then, so what is there may be given
 * back when it has been waited for in vain.
 */
static int wait_once(struct ring_thread *t, struct io_uring_cqe **cqe)
{
	struct __kernel_timespec limit = { .tv_sec = HEAP_LOOK_S };
	int err = t->has_memory ? io_uring_submit_and_wait_timeout(&t->uring, cqe, 1, &limit, NULL)
				: io_uring_submit_and_wait(&t->uring, 1);

	if (!io_uring_peek_cqe(&t->uring, cqe))
		return 0;
	if (err == -ETIME) {
		madvise(t->payload, REQUEST_BYTES_MAX, MADV_DONTNEED);
		t->has_memory = false;
	}
	return err == -ETIME || err == -EINTR || err >= 0 ? -EAGAIN : err;
}

/* What comes of it is seen by who drains before it sees that the thread came back. */
static void turn_end(struct ring_thread *t, bool has_request)
{
	struct fuse_in_header in;

	memcpy(&in, t->header->in_out, sizeof(in));
	bool is_background = has_request && loop_is_background(in.opcode);
	__atomic_store_n(&t->is_background, is_background, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&t->background_nr, is_background, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&t->turns, 1, __ATOMIC_SEQ_CST);
}

/* Until the kernel has put a request into the entry: 0. Or an error of the command; -ECANCELED: it is time to stop. */
static int request_wait(struct ring_thread *t)
{
	struct io_uring_cqe *cqe;
	int res = -ECANCELED;

	__atomic_store_n(&t->is_waiting, true, __ATOMIC_SEQ_CST);
	while (!is_stopping(t->queue->rings)) {
		int err = wait_once(t, &cqe);

		turn_end(t, !err && !cqe->res);
		if (err == -EAGAIN)
			continue;
		res = err ? err : cqe->res;
		if (!err)
			io_uring_cqe_seen(&t->uring, cqe);
		break;
	}
	__atomic_store_n(&t->is_waiting, false, __ATOMIC_SEQ_CST);
	return res;
}

static void thread_add(struct ring_queue *q);

static void thread_serve(struct ring_thread *t)
{
	struct iovec parts[2] = { { t->header, sizeof(*t->header) }, { t->payload, REQUEST_BYTES_MAX } };
	struct ring_queue *q = t->queue;
	struct rings *r = q->rings;
	int err;

	command_prepare(t, COMMAND_REGISTER, parts);
	while (!(err = request_wait(t))) {
		bool is_large = request_is_large(t);
		unsigned idle_nr = __atomic_sub_fetch(&q->idle_nr, 1, __ATOMIC_RELAXED);

		if (idle_nr < IDLE_MIN) {
			mutex_lock(&r->lock);
			thread_add(q);
			mutex_unlock(&r->lock);
		}
		r->noted(r->ctx);
		thread_place_for(t, is_large);
		request_serve(t);
		command_prepare(t, COMMAND_ANSWER_AND_FETCH, NULL);
		__atomic_add_fetch(&q->idle_nr, 1, __ATOMIC_RELAXED);
	}
	/* -EOPNOTSUPP: it was switched off since the kernel offered it. */
	if (err != -ECANCELED && err != -ENOTCONN && err != -ECONNABORTED && err != -EOPNOTSUPP)
		fuse_log(FUSE_LOG_ERR, "a thread takes no more requests from io_uring: %s", strerror(-err));
}

static int thread_prepare(struct ring_thread *t)
{
	enum { ENTRIES = 2 };

	t->buffer = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (t->buffer == MAP_FAILED) {
		t->buffer = NULL;
		return -ENOMEM;
	}
	t->header = t->buffer;
	t->payload = (char *)t->buffer + BUFFER_BYTES - REQUEST_BYTES_MAX;
	/* The kernel would go on giving requests to one that has no memory to serve them. */
	void *some = malloc(SERVING_BYTES_MIN);
	free(some);
	if (!some)
		return -ENOMEM;
	thread_place(&t->queue->here);
	return io_uring_queue_init(ENTRIES, &t->uring,
				   IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
}

static void thread_run(void *arg)
{
	struct ring_thread *t = arg;
	struct rings *r = t->queue->rings;
	int err = thread_prepare(t);

	loop_signal_hear();
	mutex_lock(&r->lock);
	t->thread = gettid();
	t->is_ready = !err;
	t->has_ended = err;
	waitq_wake_all(&r->changed);
	while (!err && !r->is_started && !is_stopping(r))
		waitq_wait(&r->changed, &r->lock);
	mutex_unlock(&r->lock);
	if (!err) {
		thread_serve(t);
		io_uring_queue_exit(&t->uring);
	}
	__atomic_sub_fetch(&t->queue->idle_nr, 1, __ATOMIC_RELAXED);
	if (t->buffer)
		munmap(t->buffer, BUFFER_BYTES);
	mutex_lock(&r->lock);
	t->has_ended = true;
	waitq_wake_all(&r->changed);
	mutex_unlock(&r->lock);
}

/* One more, if it can be had. Under the lock. */
static void thread_add(struct ring_queue *q)
{
	struct ring_thread *t = is_stopping(q->rings) || q->threads_nr == THREADS_MAX ? NULL : calloc(1, sizeof(*t));

	if (!t)
		return;
	t->queue = q;
	if (task_start(&t->task, "mount-ring", thread_run, t)) {
		free(t);
		return;
	}
	__atomic_add_fetch(&q->idle_nr, 1, __ATOMIC_RELAXED);
	q->threads[q->threads_nr++] = t;
}

/* --- all of them --- */

static void queue_init(struct rings *r, unsigned nr)
{
	struct ring_queue *q = &r->queues[nr];

	q->rings = r;
	q->nr = nr;
	q->here = r->anywhere;
	if (!CPU_ISSET(nr, &r->anywhere))
		return;
	CPU_ZERO(&q->here);
	CPU_SET(nr, &q->here);
}

/* Processors that there may be: the kernel wants an entry in the queue of each. 0: unknown, or too many. */
static unsigned processors_possible(void)
{
	FILE *f = fopen("/sys/devices/system/cpu/possible", "re");
	unsigned first = 1, last;
	char end = 0;

	if (!f)
		return 0;
	/* "0-7", or "0"; or with gaps, which is given up. */
	int nr = fscanf(f, "%u-%u%c", &first, &last, &end);
	if (nr == 1) {
		last = first;
		end = (char)fgetc(f);
	}
	fclose(f);
	return nr < 1 || first || end != '\n' || last >= QUEUES_MAX ? 0 : last + 1;
}

static bool is_enabled_in_kernel(void)
{
	FILE *f = fopen("/sys/module/fuse/parameters/enable_uring", "re");
	bool is_enabled = f && fgetc(f) == 'Y';

	if (f)
		fclose(f);
	return is_enabled;
}

int rings_new(struct mount_server *s, void (*noted)(void *ctx), void *ctx, struct rings **rings)
{
	unsigned queues_nr = is_enabled_in_kernel() ? processors_possible() : 0;
	struct rings *r = calloc(1, sizeof(*r) + queues_nr * sizeof(r->queues[0]));

	if (!queues_nr || !r) {
		free(r);
		return queues_nr ? -ENOMEM : -EOPNOTSUPP;
	}
	r->server = s;
	r->noted = noted;
	r->ctx = ctx;
	mutex_init_ranked(&r->drain_lock, LOCK_DRAIN);
	mutex_init(&r->lock);
	waitq_init(&r->changed);
	r->queues_nr = queues_nr;
	bool is_whole = !sched_getaffinity(0, sizeof(r->anywhere), &r->anywhere);
	mutex_lock(&r->lock);
	for (unsigned i = 0; i < queues_nr && is_whole; i++) {
		struct ring_queue *q = &r->queues[i];

		queue_init(r, i);
		for (unsigned k = 0; k < IDLE_MIN; k++)
			thread_add(q);
		is_whole = q->threads_nr == IDLE_MIN;
		for (unsigned k = 0; k < q->threads_nr; k++) {
			while (!q->threads[k]->is_ready && !q->threads[k]->has_ended)
				waitq_wait(&r->changed, &r->lock);
			is_whole &= q->threads[k]->is_ready;
		}
	}
	mutex_unlock(&r->lock);
	if (!is_whole) {
		rings_stop(r);
		rings_free(r);
		return -EOPNOTSUPP;
	}
	*rings = r;
	return 0;
}

void rings_start(struct rings *r, int fd)
{
	mutex_lock(&r->lock);
	r->fd = fd;
	r->is_started = true;
	waitq_wake_all(&r->changed);
	mutex_unlock(&r->lock);
}

/* --- draining --- */

/* Those that wait, and haven't come back since they were seen, are called. Under the lock. True: there are none. */
static bool threads_are_back(struct rings *r)
{
	bool is_over = true;

	for (unsigned i = 0; i < r->queues_nr; i++) {
		for (unsigned k = 0; k < r->queues[i].threads_nr; k++) {
			struct ring_thread *t = r->queues[i].threads[k];

			if (t->has_ended || !__atomic_load_n(&t->is_waiting, __ATOMIC_SEQ_CST) ||
			    __atomic_load_n(&t->turns, __ATOMIC_SEQ_CST) != t->seen_turns)
				continue;
			is_over = false;
			tgkill(getpid(), t->thread, LOOP_SIGNAL);
		}
	}
	return is_over;
}

/* Has the queue an entry that waits, and had no background request since it was seen? Under the lock. */
static bool queue_was_quiet(const struct ring_queue *q)
{
	bool has_entry = false;

	for (unsigned k = 0; k < q->threads_nr; k++) {
		const struct ring_thread *t = q->threads[k];

		if (__atomic_load_n(&t->is_background, __ATOMIC_SEQ_CST) ||
		    __atomic_load_n(&t->background_nr, __ATOMIC_SEQ_CST) != t->seen_background_nr)
			return false;
		has_entry |= __atomic_load_n(&t->is_waiting, __ATOMIC_SEQ_CST);
	}
	return has_entry;
}

/* See how the threads are, and have all of them come back. True: the kernel had nothing that it was to write back. */
static bool is_drained(struct rings *r)
{
	bool is_drained = true;

	mutex_lock(&r->lock);
	for (unsigned i = 0; i < r->queues_nr; i++) {
		for (unsigned k = 0; k < r->queues[i].threads_nr; k++) {
			struct ring_thread *t = r->queues[i].threads[k];

			is_drained &= !__atomic_load_n(&t->is_background, __ATOMIC_SEQ_CST);
			t->seen_background_nr = __atomic_load_n(&t->background_nr, __ATOMIC_SEQ_CST);
			t->seen_turns = __atomic_load_n(&t->turns, __ATOMIC_SEQ_CST);
		}
	}
	while (!is_stopping(r) && !threads_are_back(r))
		waitq_wait_until(&r->changed, &r->lock, clock_monotonic_ns() + NS_PER_MS);
	for (unsigned i = 0; i < r->queues_nr; i++)
		is_drained &= queue_was_quiet(&r->queues[i]);
	mutex_unlock(&r->lock);
	return is_drained;
}

int rings_drain(struct rings *r, uint64_t until_ns)
{
	int err = 0;

	mutex_lock(&r->lock);
	bool is_started = r->is_started;
	mutex_unlock(&r->lock);
	if (!is_started)
		return 0;
	mutex_lock(&r->drain_lock);
	while (!is_drained(r) && !err) {
		err = is_stopping(r) ? -ESHUTDOWN : clock_monotonic_ns() > until_ns ? -ETIMEDOUT : 0;
		sleep_ns(NS_PER_MS);
	}
	mutex_unlock(&r->drain_lock);
	return err;
}

/* --- the end --- */

/* Those that wait for a request are sent a signal. Under the lock. True: all have ended. */
static bool threads_call_to_end(struct rings *r)
{
	bool is_over = true;

	for (unsigned i = 0; i < r->queues_nr; i++) {
		for (unsigned k = 0; k < r->queues[i].threads_nr; k++) {
			struct ring_thread *t = r->queues[i].threads[k];

			if (t->has_ended)
				continue;
			is_over = false;
			if (__atomic_load_n(&t->is_waiting, __ATOMIC_SEQ_CST))
				tgkill(getpid(), t->thread, LOOP_SIGNAL);
		}
	}
	return is_over;
}

void rings_stop(struct rings *r)
{
	if (!r)
		return;
	mutex_lock(&r->lock);
	__atomic_store_n(&r->is_stopping, true, __ATOMIC_SEQ_CST);
	waitq_wake_all(&r->changed);
	while (!threads_call_to_end(r))
		waitq_wait_until(&r->changed, &r->lock, clock_monotonic_ns() + NS_PER_MS);
	mutex_unlock(&r->lock);
	for (unsigned i = 0; i < r->queues_nr; i++)
		for (unsigned k = 0; k < r->queues[i].threads_nr; k++)
			task_join(r->queues[i].threads[k]->task);
}

void rings_free(struct rings *r)
{
	if (!r)
		return;
	for (unsigned i = 0; i < r->queues_nr; i++)
		for (unsigned k = 0; k < r->queues[i].threads_nr; k++)
			free(r->queues[i].threads[k]);
	waitq_destroy(&r->changed);
	mutex_destroy(&r->lock);
	mutex_destroy(&r->drain_lock);
	free(r);
}
