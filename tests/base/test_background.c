/* Work in the background is paused whole, and goes on. */
#include "both_modes.h"

#include <stdatomic.h>

#include "base/background.h"

enum { WORKER_NR = 3, PIECES = 30, PAUSES = 8 };

struct world {
	struct background background;
	struct job job; /* of all workers */
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
		background_enter(&w->background, &w->job, "there are pieces");
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

static void piece(void *arg)
{
	struct world *w = arg;

	background_enter(&w->background, &w->job, "there are pieces");
	background_leave(&w->background);
	job_stops(&w->job);
}

/* What others see of a job on its way. */
static void look_body(void *arg)
{
	struct world w = { 0 };
	const char *because;

	(void)arg;
	background_init(&w.background);
	job_init(&w.job, "pieces", "does them");
	CHECK(job_look(&w.job, &because) == JOB_STOPPED && !*because);
	background_pause(&w.background);
	struct task *task = start("task", piece, &w);
	while (job_look(&w.job, &because) != JOB_WAITING)
		task_yield();
	CHECK(strstr(because, "quiet") && !w.job.turns);
	background_resume(&w.background);
	enum job_state state;
	while ((state = job_look(&w.job, &because)) != JOB_STOPPED) {
		CHECK(!strcmp(because, "there are pieces") == (state == JOB_WORKING));
		task_yield();
	}
	task_join(task);
	CHECK(w.job.turns == 1);
	background_destroy(&w.background);
}

static void how_far_a_job_is_is_told_while_it_works(void **state)
{
	struct job job = { 0 };
	uint64_t done, of;
	const char *unit;

	(void)state;
	job_init(&job, "pieces", "does them");
	assert_false(job_progress_look(&job, &unit, &done, &of));
	job_works(&job, "there are pieces");
	assert_false(job_progress_look(&job, &unit, &done, &of));
	job_progress(&job, "pieces", 3, 10);
	assert_true(job_progress_look(&job, &unit, &done, &of));
	assert_string_equal(unit, "pieces");
	assert_true(done == 3 && of == 10);
	job_waits(&job, "all are done");
	assert_false(job_progress_look(&job, &unit, &done, &of));
	job_works(&job, "there are more");
	assert_false(job_progress_look(&job, &unit, &done, &of));
}

struct pieces {
	struct job job;
	atomic_bool is_over;
};

static void large_and_small_pieces(void *arg)
{
	struct pieces *p = arg;

	while (!atomic_load(&p->is_over))
		for (unsigned i = 0; i < 2; i++) {
			job_works(&p->job, "there are pieces");
			job_progress(&p->job, "pieces", i ? 0 : 100, i ? 1 : 200);
		}
}

static void how_far_it_is_belongs_to_one_piece(void **state)
{
	enum { LOOKS = KILN_SANITIZED ? 300000 : 3000000 };
	struct pieces p = { 0 };
	uint64_t done, of;
	const char *unit;

	(void)state;
	job_init(&p.job, "pieces", "does them");
	struct task *task = start("task", large_and_small_pieces, &p);
	for (unsigned i = 0; i < LOOKS; i++)
		CHECK(!job_progress_look(&p.job, &unit, &done, &of) || done < of);
	atomic_store(&p.is_over, true);
	task_join(task);
}

static void a_job_says_why_it_works_and_waits(void **state) { run_in_both_modes(look_body); }

static void nothing_is_done_while_it_is_paused(void **state) { run_in_both_modes(pause_body); }

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(nothing_is_done_while_it_is_paused),
					    cmocka_unit_test(a_job_says_why_it_works_and_waits),
					    cmocka_unit_test(how_far_a_job_is_is_told_while_it_works),
					    cmocka_unit_test(how_far_it_is_belongs_to_one_piece) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
