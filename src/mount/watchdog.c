/* See watchdog.h. */
#include "mount/watchdog.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/sync.h"
#include "base/util.h"

enum { FIRST_S = 10, PAUSE_S_MAX = 300, NS_PER_S = 1000000000 };

struct watchdog {
	void (*tell)(void *ctx, uint64_t waited_s);
	void *ctx;
	struct task *task;
	struct mutex lock;
	struct waitq over;
	bool is_over;
};

static void watchdog_run(void *arg)
{
	struct watchdog *w = arg;
	uint64_t begin_ns = clock_monotonic_ns(), waited_s = FIRST_S;

	mutex_lock(&w->lock);
	while (!w->is_over) {
		if (waitq_wait_until(&w->over, &w->lock, begin_ns + waited_s * NS_PER_S) || w->is_over)
			continue;
		mutex_unlock(&w->lock);
		w->tell(w->ctx, waited_s);
		/* 10, 20, 40, ... 320, 620: a log isn't filled. */
		waited_s += min(waited_s, (uint64_t)PAUSE_S_MAX);
		mutex_lock(&w->lock);
	}
	mutex_unlock(&w->lock);
}

struct watchdog *watchdog_start(void (*tell)(void *ctx, uint64_t waited_s), void *ctx)
{
	struct watchdog *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->tell = tell;
	w->ctx = ctx;
	mutex_init(&w->lock);
	waitq_init(&w->over);
	if (!task_start(&w->task, "watchdog", watchdog_run, w))
		return w;
	waitq_destroy(&w->over);
	mutex_destroy(&w->lock);
	free(w);
	return NULL;
}

void watchdog_stop(struct watchdog *w)
{
	if (!w)
		return;
	mutex_lock(&w->lock);
	w->is_over = true;
	waitq_wake_all(&w->over);
	mutex_unlock(&w->lock);
	task_join(w->task);
	waitq_destroy(&w->over);
	mutex_destroy(&w->lock);
	free(w);
}
