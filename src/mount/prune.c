/*
 * Bounds on what the kernel makes the server remember.
 *
 * Each object that the kernel refers to is an entry of nodes.c, and it goes on referring to what is no longer used
 * until its memory is short, which may be never. So when there are too many, a task asks the kernel to drop those that
 * aren't in use (FUSE_NOTIFY_PRUNE, from Linux 6.18 on; older ones refuse, and are left alone from then on). It tells
 * them off in the order of the table, which is as good as any: neither side knows what was used when, and what was is
 * looked up again. A directory can go once nothing below it is remembered, so one round may not reach all.
 *
 * The kernel answers with forgets, which come as any other requests do. Nothing waits for this task.
 */
#include "mount/prune.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

enum {
	NOTIFY_PRUNE = 9, /* of enum fuse_notify_code; Debian's header is older */
	BATCH_NR = 512,
	LOOK_NS = 20000000,
	RESTS = 4, /* times what a round took, before the next: all may be in use */
};

struct prune_message {
	struct fuse_out_header header;
	struct {
		uint32_t count, padding;
		uint64_t spare;
	} prune;
	uint64_t ids[BATCH_NR];
};
_Static_assert(sizeof(struct prune_message) == 16 + 16 + 8 * BATCH_NR, "as the kernel has it");

struct pruner {
	struct mount_server *server;
	struct mutex lock;
	struct waitq wake;
	struct task *task;
	bool is_due, is_stopping;
};

/* 0, or a negative errno: -EINVAL or -ENOSYS from kernels that don't know it. */
static int prune(struct mount_server *s, const uint64_t *ids, uint32_t nr)
{
	struct prune_message m = { .prune = { .count = nr } };

	memcpy(m.ids, ids, nr * sizeof(*ids));
	m.header.len = (uint32_t)(sizeof(m) - sizeof(m.ids) + nr * sizeof(*ids));
	m.header.error = NOTIFY_PRUNE;
	return write(fuse_session_fd(s->session), &m, m.header.len) < 0 ? -errno : 0;
}

/* Pause for @ns, less when it is time to stop. Under the lock. */
static void pause_for(struct pruner *p, uint64_t ns)
{
	uint64_t until = clock_monotonic_ns() + ns;

	while (!p->is_stopping && waitq_wait_until(&p->wake, &p->lock, until))
		;
}

/* Once around the table, or until few enough are left. Under the lock, which is let go for each system call. */
static int round_run(struct pruner *p, uint64_t target)
{
	struct nodes *nodes = p->server->nodes;
	uint64_t ids[BATCH_NR], seen = 0, all = nodes_nr(nodes);
	int err = 0;

	while (!p->is_stopping && !err && seen < all && nodes_nr(nodes) > target) {
		uint32_t nr = nodes_next(nodes, ids, BATCH_NR);

		if (!nr)
			break;
		mutex_unlock(&p->lock);
		err = prune(p->server, ids, nr);
		mutex_lock(&p->lock);
		seen += nr;
		/* The kernel is ahead of us: its forgets are still to be served. */
		if (seen % (BATCH_NR * 8) == 0)
			pause_for(p, LOOK_NS);
	}
	return err;
}

static void prune_run(void *arg)
{
	struct pruner *p = arg;
	uint64_t max = p->server->options->remembered_max, target = max - max / 8;
	int err = 0;

	mutex_lock(&p->lock);
	while (!p->is_stopping && err != -EINVAL && err != -ENOSYS) {
		if (!p->is_due) {
			waitq_wait(&p->wake, &p->lock);
			continue;
		}
		uint64_t begin = clock_monotonic_ns();
		err = round_run(p, target);
		pause_for(p, LOOK_NS + (clock_monotonic_ns() - begin) * RESTS);
		__atomic_store_n(&p->is_due, nodes_nr(p->server->nodes) > max, __ATOMIC_RELAXED);
	}
	mutex_unlock(&p->lock);
}

void prune_look(struct mount_server *s)
{
	struct pruner *p = s->pruner;

	if (!p || nodes_nr(s->nodes) <= s->options->remembered_max || __atomic_load_n(&p->is_due, __ATOMIC_RELAXED))
		return;
	mutex_lock(&p->lock);
	__atomic_store_n(&p->is_due, true, __ATOMIC_RELAXED);
	waitq_wake_one(&p->wake);
	mutex_unlock(&p->lock);
}

/* Without it the server works as well, and remembers more. */
void prune_start(struct mount_server *s)
{
	struct pruner *p = s->options->remembered_max ? calloc(1, sizeof(*p)) : NULL;

	if (!p)
		return;
	p->server = s;
	mutex_init_ranked(&p->lock, LOCK_OUTERMOST);
	waitq_init(&p->wake);
	if (task_start(&p->task, "mount-prune", prune_run, p)) {
		waitq_destroy(&p->wake);
		mutex_destroy(&p->lock);
		free(p);
		return;
	}
	s->pruner = p;
}

void prune_stop(struct mount_server *s)
{
	struct pruner *p = s->pruner;

	if (!p)
		return;
	mutex_lock(&p->lock);
	p->is_stopping = true;
	waitq_wake_all(&p->wake);
	mutex_unlock(&p->lock);
	task_join(p->task);
}

void prune_free(struct mount_server *s)
{
	struct pruner *p = s->pruner;

	if (!p)
		return;
	s->pruner = NULL;
	waitq_destroy(&p->wake);
	mutex_destroy(&p->lock);
	free(p);
}
