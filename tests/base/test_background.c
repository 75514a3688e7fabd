/* Work in the background is paused whole, and goes on. */
#include "both_modes.h"

#include "base/background.h"

enum { WORKER_NR = 3, PIECES = 30, PAUSES = 8 };

struct world {
	struct background background;
	struct mutex lock;
	unsigned inside, done;
};

static void count(struct world *w, unsigned *what, int by)
{
	mutex_lock(&w->lock);
	*what += (unsigned)by;
	mutex_unlock(&w->lock);
}

static void work(void *arg)
{
	struct world *w = arg;

	for (int i = 0; i < PIECES; i++) {
		background_enter(&w->background);
		count(w, &w->inside, 1);
		task_yield();
		count(w, &w->inside, -1);
		count(w, &w->done, 1);
		background_leave(&w->background);
	}
}

static void pause_now_and_then(void *arg)
{
	struct world *w = arg;

	for (int i = 0; i < PAUSES; i++) {
		background_pause(&w->background);
		mutex_lock(&w->lock);
		unsigned done = w->done;

		CHECK(!w->inside);
		mutex_unlock(&w->lock);
		task_yield();
		mutex_lock(&w->lock);
		CHECK(!w->inside && w->done == done);
		mutex_unlock(&w->lock);
		background_resume(&w->background);
		task_yield();
	}
}

static void pause_body(void *arg)
{
	struct world w = { 0 };
	struct task *tasks[WORKER_NR + 2];

	(void)arg;
	background_init(&w.background);
	mutex_init(&w.lock);
	for (int i = 0; i < WORKER_NR + 2; i++)
		tasks[i] = start("task", i < WORKER_NR ? work : pause_now_and_then, &w);
	for (int i = 0; i < WORKER_NR + 2; i++)
		task_join(tasks[i]);
	CHECK(w.done == WORKER_NR * PIECES);
	mutex_destroy(&w.lock);
	background_destroy(&w.background);
}

static void nothing_is_done_while_it_is_paused(void **state) { run_in_both_modes(pause_body); }

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(nothing_is_done_while_it_is_paused) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
