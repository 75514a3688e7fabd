/*
 * The tasks of the workload. See sim.h.
 *
 * Each draws its operations from its own model, one generator per operation (seeded by the run, the episode, the task
 * and the number), so that some can be left out without changing what the others are drawn from.
 *
 * All of a task's operations since the last promise are in its log, with the range of journal entries that can hold
 * them: an operation begins to commit no earlier than in the entry that is open when it is called, and no later than in
 * the one that is open when it returns.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/util.h"
#include "sim.h"

static uint64_t journal_seq_now(const struct sim *s)
{
	return s->fs->journal_writer ? journal_seq(s->fs->journal_writer) : 0;
}

/* --- promises --- */

static void promise_all(struct workload *w)
{
	model_free(&w->promised);
	model_copy(&w->promised, &w->model);
	w->promised_op = w->op_nr;
	w->log_nr = 0;
	model_versions_free(&w->doubts);
	model_versions_free(&w->floors);
}

void workload_promise_all(struct sim *s)
{
	for (unsigned i = 0; i < s->tasks_nr; i++)
		promise_all(&s->tasks[i]);
}

/* What has no name any more, and was only held, is gone. */
void workload_closed(struct sim *s)
{
	for (unsigned i = 0; i < s->tasks_nr; i++)
		model_adopt_nodes(&s->tasks[i].model, &s->tasks[i].model);
	workload_promise_all(s);
}

struct settling {
	unsigned id; /* UINT32_MAX: all */
	uint64_t op_nr;
};

static bool is_settled(void *ctx, const struct model_version *v)
{
	const struct settling *s = ctx;

	return (s->id == UINT32_MAX || s->id == v->id) && v->op_nr < s->op_nr;
}

/*
 * Everything up to operation @op_nr is durable; but what is overwritten in place is no part of the journal: of that
 * only the data of object @id is (UINT32_MAX: of all).
 */
static void promise(struct workload *w, uint64_t op_nr, unsigned id)
{
	size_t nr = 0;

	for (; nr < w->log_nr && w->promised_op < op_nr; nr++) {
		const struct operation *op = &w->log[nr].op;

		if (w->s->is_nocow && operation_is_of_content(op) && op->result >= 0 && id != UINT32_MAX &&
		    op->id != id)
			model_version_add(&w->doubts, op->id, w->promised_op, &w->promised.objects[op->id]);
		operation_apply(op, &w->promised, ++w->promised_op);
	}
	model_versions_drop(&w->doubts, is_settled, &(struct settling){ id, id == UINT32_MAX ? op_nr : UINT64_MAX });
	if (!nr)
		return;
	memmove(w->log, w->log + nr, (w->log_nr - nr) * sizeof(*w->log));
	w->log_nr -= nr;
}

/* What the file holds is durable, whether the journal knows of it or not. */
static void promise_contents(struct workload *w, unsigned id)
{
	model_versions_drop(&w->floors, is_settled, &(struct settling){ id, UINT64_MAX });
	model_version_add(&w->floors, id, w->model.objects[id].content_op, NULL);
}

/* --- one operation --- */

static void trace(const struct workload *w, const struct operation *op, uint32_t nr, bool is_before)
{
	struct strbuf text = strbuf_growing();

	operation_to_text(op, &text);
	printf("%s %u/%u/%u: %s\n", is_before ? "begin" : "end", w->s->episode, w->nr, nr, strbuf_text(&text));
	fflush(stdout);
	strbuf_free(&text);
}

/* What sync promises: that of the others which had ended when it was called. */
static void sync_points(struct sim *s, uint64_t points[TASKS_MAX])
{
	for (unsigned i = 0; i < s->tasks_nr; i++)
		points[i] =
			s->tasks[i].op_nr - (s->tasks[i].log_nr && s->tasks[i].log[s->tasks[i].log_nr - 1].is_in_doubt);
}

static void log_add(struct workload *w, const struct logged *l)
{
	if (array_grow(&w->log, &w->log_capacity, w->log_nr + 1, sizeof(*w->log)))
		abort();
	w->log[w->log_nr++] = *l;
	w->op_nr++;
}

/*
 * No space: never for what makes things durable, whatever a device says; nor for what gives some back, and else only
 * where little is left. Several disks may not match.
 */
static bool may_lack_space(struct sim *s, const struct operation *op)
{
	struct kiln_usage u;

	if (op->kind == OP_FSYNC || op->kind == OP_SYNC)
		return false;
	if (s->is_faulty && s->kind != EPISODE_FULL)
		return true;
	if (op->kind == OP_UNLINK || op->kind == OP_RMDIR || op->kind == OP_REMOVEXATTR)
		return false;
	return s->disks_nr > 1 || kiln_usage(s->fs, &u) || u.available < u.capacity / 8;
}

static void operation_ended(struct workload *w, struct logged *l, int err, const uint64_t points[TASKS_MAX],
			    struct strbuf *why)
{
	struct sim *s = w->s;

	l->seq_end = l->is_in_doubt ? UINT64_MAX : journal_seq_now(s);
	w->log[w->log_nr - 1] = *l;
	if (l->op.result == -ENOSPC)
		COUNT(s, no_space, 1);
	if (l->op.result == -ENOSPC && !power_is_off(s->power) && !may_lack_space(s, &l->op)) {
		operation_to_text(&l->op, why);
		failed(s, "no space where there is some", strbuf_text(why));
	} else if (err == -EPROTO) {
		failed(s, "wrong answer", strbuf_text(why));
	} else if (err && !power_is_off(s->power) && !s->is_faulty && !(err == -EROFS && data_is_refused(s))) {
		operation_to_text(&l->op, why);
		failed(s, "error", strbuf_text(why));
	} else if (!err && !power_is_off(s->power) && l->op.kind == OP_SYNC) {
		for (unsigned i = 0; i < s->tasks_nr; i++)
			promise(&s->tasks[i], points[i], UINT32_MAX);
		promise(w, w->op_nr, UINT32_MAX);
	} else if (!err && !power_is_off(s->power) && l->op.kind == OP_FSYNC && w->model.objects[l->op.id].exists) {
		promise(w, w->model.objects[l->op.id].last_op, l->op.id);
		if (s->is_nocow)
			promise_contents(w, l->op.id);
		if (s->cut_after_fsyncs && !--s->cut_after_fsyncs) {
			s->is_stopping = true;
			power_cut(s->power);
		}
	}
	if (err)
		COUNT(s, failed_ops, 1);
}

/* A file of a batch whose contents can't be written has a part of them, which no model knows. */
static bool contents_may_fail(struct sim *s)
{
	struct kiln_usage u;

	return s->is_faulty || s->fs->super->options[OPT_DATA_REPLICAS] > 1 || kiln_usage(s->fs, &u) ||
	       u.available < u.capacity / 4;
}

static void step(struct workload *w, uint32_t nr)
{
	struct sim *s = w->s;
	struct strbuf why = strbuf_growing();
	struct operation_limits limits = s->limits;
	uint64_t points[TASKS_MAX];
	struct logged l = { 0 };

	/* Time for what happens in the background. */
	if (!rng_below(&w->rng, 12))
		sleep_ns(rng_below(&w->rng, rng_below(&w->rng, 3) ? 20000000 : 3000000000));
	/* As when the journal is short of space, which what these workloads write rarely makes it. */
	if (!rng_below(&w->rng, s->writes_back_often ? 6 : 30) && s->fs->is_writable)
		btrees_flush_all(s->fs->trees);
	limits.mate = w->nr;
	limits.mates_nr = s->tasks_nr;
	if (contents_may_fail(s))
		limits.batch_bytes_max = 0;
	operation_draw(&l.op, &w->rng, &w->model, &limits);
	if (s->args->is_traced)
		trace(w, &l.op, nr, true);
	sync_points(s, points);
	l.seq_begin = journal_seq_now(s);
	l.seq_end = UINT64_MAX;
	l.is_in_doubt = true;
	l.op.result = -EIO;
	log_add(w, &l);
	s->op_nr++;
	COUNT(s, ops, 1);
	int err = operation_run(&l.op, &w->model, s->fs, w->op_nr, &why);
	l.is_in_doubt = err != 0 || power_is_off(s->power);
	operation_ended(w, &l, err, points, &why);
	if (s->args->is_traced)
		trace(w, &l.op, nr, false);
	w->has_stopped = l.is_in_doubt || s->has_failed;
	strbuf_free(&why);
}

/* --- tasks --- */

void workload_remember(struct sim *s, struct step_id id)
{
	if (s->totals->steps_nr < KEEP_MAX && s->args->is_single)
		s->totals->steps[s->totals->steps_nr++] = id;
}

struct task_run {
	struct workload *w;
	uint64_t ops;
};

static void task_main(void *arg)
{
	struct task_run *run = arg;
	struct workload *w = run->w;
	struct sim *s = w->s;

	for (uint32_t nr = 0; nr < run->ops && !w->has_stopped && !s->is_stopping && !s->has_failed; nr++) {
		struct step_id id = { s->episode, w->nr, nr };

		if (!is_kept(s->args, id))
			continue;
		workload_remember(s, id);
		rng_init(&w->rng,
			 s->seed * 0x9e3779b97f4a7c15 ^ (uint64_t)id.episode << 40 ^ (uint64_t)id.task << 32 ^ nr);
		step(w, nr);
	}
}

void workload_run(struct sim *s, uint64_t ops)
{
	struct task_run runs[TASKS_MAX];

	s->is_stopping = false;
	for (unsigned i = 0; i < s->tasks_nr; i++) {
		struct workload *w = &s->tasks[i];
		char name[16];

		runs[i] = (struct task_run){ w, ops };
		/* Whether the last one happened shows when it is opened anew. */
		w->has_stopped = w->log_nr && w->log[w->log_nr - 1].is_in_doubt;
		w->task = NULL;
		snprintf(name, sizeof(name), "workload %u", i);
		memory_exempt_begin();
		if (i && task_start(&w->task, name, task_main, &runs[i]))
			abort();
		memory_exempt_end();
	}
	task_main(&runs[0]);
	for (unsigned i = 1; i < s->tasks_nr; i++)
		task_join(s->tasks[i].task);
}

int workload_init(struct sim *s)
{
	struct strbuf why = strbuf_growing();
	struct model all;
	int err = model_read(&all, s->fs, &why);

	for (unsigned i = 0; i < s->tasks_nr; i++) {
		s->tasks[i].s = s;
		s->tasks[i].nr = i;
		if (!err)
			err = model_share(&s->tasks[i].model, &all, OPERATION_MATE_LETTER, i, s->tasks_nr, &why);
	}
	model_free(&all);
	if (err)
		failed(s, "unreadable", strbuf_text(&why));
	else
		workload_promise_all(s);
	strbuf_free(&why);
	return err ? -EPROTO : 0;
}

void workload_free(struct sim *s)
{
	for (unsigned i = 0; i < s->tasks_nr; i++) {
		model_free(&s->tasks[i].model);
		model_free(&s->tasks[i].promised);
		free(s->tasks[i].log);
		model_versions_free(&s->tasks[i].doubts);
		model_versions_free(&s->tasks[i].floors);
	}
}
