/*
 * Comparing a filesystem with the models. See sim.h.
 *
 * After a crash the state of each task is that after some of its operations, no earlier than what was promised; and all
 * tasks' states must be of one moment: there is a journal entry such that exactly what was committed up to it is there.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "alloc/internal.h"
#include "base/util.h"
#include "sim.h"

enum { QUOTA_ROWS_MAX = 64 };

/* It isn't as it must be, unless damage has been told of meanwhile, and may be. */
static void differs(struct sim *s, bool may_be_damaged, const char *what, const struct strbuf *why)
{
	if (!(may_be_damaged && s->has_damage_reports))
		failed(s, what, strbuf_text(why));
}

static int read_shares(struct sim *s, bool may_be_damaged, struct model got[TASKS_MAX])
{
	struct strbuf why = strbuf_growing();
	struct model all;
	int err = model_read(&all, s->fs, &why);

	memset(got, 0, TASKS_MAX * sizeof(*got));
	for (unsigned i = 0; i < s->tasks_nr && !err; i++)
		err = model_share(&got[i], &all, OPERATION_MATE_LETTER, i, s->tasks_nr, &why);
	model_free(&all);
	if (err && !power_is_off(s->power))
		differs(s, may_be_damaged, "unreadable", &why);
	strbuf_free(&why);
	return err ? -EPROTO : 0;
}

static void free_shares(struct model got[TASKS_MAX])
{
	for (unsigned i = 0; i < TASKS_MAX; i++)
		model_free(&got[i]);
}

static int compare_all(struct sim *s, bool may_be_damaged)
{
	struct strbuf why = strbuf_growing();
	struct model got[TASKS_MAX];
	int err = read_shares(s, may_be_damaged, got);

	for (unsigned i = 0; i < s->tasks_nr && !err; i++) {
		if (model_equal(&got[i], &s->tasks[i].model, UINT32_MAX, NULL, NULL, &why)) {
			model_adopt_nodes(&s->tasks[i].model, &got[i]);
		} else {
			differs(s, may_be_damaged, "differs from the model", &why);
			err = -EPROTO;
		}
	}
	free_shares(got);
	strbuf_free(&why);
	return err;
}

int compare_exactly(struct sim *s) { return compare_all(s, false); }

int compare_unless_told(struct sim *s)
{
	int err = compare_all(s, true);

	return s->has_failed ? err : 0;
}

/* --- one task's states --- */

/* States that the log allows: number i is that after i of its operations; between i and i + 1 may be parts of one. */
struct states {
	bool *fits;	    /* [log_nr + 1] */
	bool *fits_partial; /* [log_nr + 1]: a part of operation i */
	bool has_any;
};

static bool is_in_parts(const struct operation *op)
{
	return op->kind == OP_WRITE || op->kind == OP_PUNCH || op->kind == OP_TRUNCATE || op->kind == OP_COPY ||
	       (op->kind == OP_FALLOCATE && op->flags & KILN_FALLOC_ZERO_RANGE);
}

static void apply_logged(const struct logged *l, struct model *m, uint64_t op_nr)
{
	struct operation op = l->op;

	if (l->is_in_doubt)
		op.result = operation_expected(&op, m);
	operation_apply(&op, m, op_nr);
}

static bool is_shift(const struct operation *op)
{
	return op->kind == OP_FALLOCATE && op->flags & (KILN_FALLOC_COLLAPSE_RANGE | KILN_FALLOC_INSERT_RANGE);
}

static bool is_below_floor(void *ctx, const struct model_version *v)
{
	const struct workload *w = ctx;

	for (size_t i = 0; i < w->floors.nr; i++)
		if (w->floors.v[i].id == v->id && v->op_nr < w->floors.v[i].op_nr)
			return true;
	return false;
}

/*
 * Where files are overwritten in place: all that they were since their data was last promised. Where a file's ranges
 * are shifted meanwhile nothing is said: without the shift, what was written behind it is in other places.
 */
static const struct model_versions *versions_find(const struct workload *w, struct model_versions *versions)
{
	struct model m;

	if (!w->s->is_nocow)
		return NULL;
	for (size_t i = 0; i < w->doubts.nr; i++) {
		struct model_object o = { .data = w->doubts.v[i].data, .size = w->doubts.v[i].size };

		model_version_add(versions, w->doubts.v[i].id, w->doubts.v[i].op_nr, &o);
	}
	model_copy(&m, &w->promised);
	for (unsigned i = 0; i < m.nr; i++)
		if (m.objects[i].exists && S_ISREG(m.objects[i].mode))
			model_version_add(versions, i, w->promised_op, &m.objects[i]);
	for (size_t i = 0; i < w->log_nr; i++) {
		const struct operation *op = &w->log[i].op;
		bool is_creation = op->kind == OP_CREATE || op->kind == OP_UNNAMED;
		unsigned id = op->id;
		uint64_t op_nr = w->promised_op + i + 1;

		for (unsigned k = 0; is_creation && k <= m.nr; k++)
			if (k == m.nr || !m.objects[k].exists) {
				id = k;
				break;
			}
		apply_logged(&w->log[i], &m, op_nr);
		if (id < m.nr && m.objects[id].exists && (is_creation || operation_is_of_content(op)))
			model_version_add(versions, id, op_nr, is_shift(op) ? NULL : &m.objects[id]);
	}
	model_free(&m);
	model_versions_drop(versions, is_below_floor, (void *)(uintptr_t)w);
	return versions;
}

/* A part of an operation whose data may be anywhere in between. */
static bool partial_versions_fit(const struct model_versions *versions, const struct operation *op,
				 const struct model_object *got, const struct model_object *before,
				 const struct model_object *after)
{
	uint64_t least = min(before->size, after->size), most = max(before->size, after->size);

	return versions && got->size >= least && got->size <= most && model_versions_allow(versions, op->id, got);
}

/* Some of a batch's objects are there, each whole. With @adopt, @before becomes that. */
static bool batch_part_fits(const struct model *got, struct model *before, const struct logged *l, bool adopt)
{
	struct operation op = l->op;
	struct model after;
	bool fits = false;

	for (unsigned nr = 0; !fits && operation_batch_part(&l->op, before, nr, &op.result); nr = (unsigned)op.result) {
		model_copy(&after, before);
		operation_apply(&op, &after, 0);
		fits = model_equal(got, &after, UINT32_MAX, NULL, NULL, NULL);
		if (fits && adopt) {
			model_free(before);
			*before = after;
		} else {
			model_free(&after);
		}
	}
	return fits;
}

/* Is @got what it is with a part of @l done to @before? With @adopt, @before becomes that. */
static bool partial_fits(const struct sim *s, const struct model *got, struct model *before, const struct logged *l,
			 const struct model_versions *versions, bool adopt)
{
	unsigned got_id = UINT32_MAX;
	struct model after;

	if (l->op.kind == OP_BATCH)
		return batch_part_fits(got, before, l, adopt);
	if (!is_in_parts(&l->op) || !before->objects[l->op.id].exists ||
	    !model_equal(got, before, l->op.id, &got_id, versions, NULL) || got_id == UINT32_MAX)
		return false;
	model_copy(&after, before);
	apply_logged(l, &after, 0);
	const struct model_object *g = &got->objects[got_id];
	struct model_object *o = &after.objects[l->op.id];
	bool fits = versions ? partial_versions_fit(versions, &l->op, g, &before->objects[l->op.id], o)
			     : operation_is_partial(&l->op, s->block_bytes, g, &before->objects[l->op.id], o);
	if (fits && adopt) {
		/* It goes on with what is there. */
		model_resize(o, g->size);
		if (g->size)
			memcpy(o->data, g->data, g->size);
		o->has_mtime = false;
		model_free(before);
		*before = after;
	} else {
		model_free(&after);
	}
	return fits;
}

static struct states states_find(const struct sim *s, const struct workload *w, const struct model *got,
				 const struct model_versions *versions, struct strbuf *first_why,
				 struct strbuf *last_why)
{
	struct states st = { calloc(w->log_nr + 1, 1), calloc(w->log_nr + 1, 1), false };
	struct model candidate;

	model_copy(&candidate, &w->promised);
	for (size_t i = 0;; i++) {
		strbuf_reset(last_why);
		st.fits[i] = model_equal(got, &candidate, UINT32_MAX, NULL, versions, i ? last_why : first_why);
		if (i < w->log_nr && !st.fits[i])
			st.fits_partial[i] = partial_fits(s, got, &candidate, &w->log[i], versions, false);
		st.has_any |= st.fits[i] || st.fits_partial[i];
		if (i == w->log_nr)
			break;
		apply_logged(&w->log[i], &candidate, w->promised_op + i + 1);
	}
	model_free(&candidate);
	return st;
}

/* The task goes on from state @at. */
static void state_adopt(const struct sim *s, struct workload *w, const struct model *got,
			const struct model_versions *versions, size_t at, bool is_partial)
{
	struct model m;

	model_copy(&m, &w->promised);
	for (size_t i = 0; i < at; i++)
		apply_logged(&w->log[i], &m, w->promised_op + i + 1);
	if (is_partial)
		partial_fits(s, got, &m, &w->log[at], versions, true);
	model_free(&w->model);
	w->model = m;
	model_adopt_nodes(&w->model, got);
	if (versions)
		model_adopt_contents(&w->model, got);
}

/* --- all tasks at one moment --- */

/* May state @at be the task's when all of the journal up to @seq is there, and nothing behind it? */
static bool state_is_of(const struct workload *w, size_t at, bool is_partial, uint64_t seq)
{
	if (at && w->log[at - 1].seq_begin > seq)
		return false;
	if (is_partial)
		return w->log[at].seq_begin <= seq && w->log[at].seq_end > seq;
	return at == w->log_nr || w->log[at].seq_end > seq;
}

static bool task_has_state(const struct workload *w, const struct states *st, uint64_t seq, size_t *at,
			   bool *is_partial)
{
	for (*at = 0; *at <= w->log_nr; ++*at) {
		*is_partial = false;
		if (st->fits[*at] && state_is_of(w, *at, false, seq))
			return true;
		*is_partial = true;
		if (st->fits_partial[*at] && state_is_of(w, *at, true, seq))
			return true;
	}
	return false;
}

static bool tasks_have_states(const struct sim *s, const struct states *st, uint64_t seq, size_t *at, bool *is_partial)
{
	for (unsigned i = 0; i < s->tasks_nr; i++)
		if (!task_has_state(&s->tasks[i], &st[i], seq, &at[i], &is_partial[i]))
			return false;
	return true;
}

/* Only where an operation begins does what is allowed change from one entry to the next in a way that helps. */
static bool moment_find(const struct sim *s, const struct states *st, size_t *at, bool *is_partial)
{
	if (tasks_have_states(s, st, 0, at, is_partial))
		return true;
	for (unsigned i = 0; i < s->tasks_nr; i++)
		for (size_t k = 0; k < s->tasks[i].log_nr; k++)
			if (tasks_have_states(s, st, s->tasks[i].log[k].seq_begin, at, is_partial))
				return true;
	return false;
}

static int no_moment(struct sim *s, const struct states *st)
{
	struct strbuf text = strbuf_growing();

	for (unsigned i = 0; i < s->tasks_nr; i++) {
		const struct workload *w = &s->tasks[i];

		strbuf_printf(&text, "%stask %u is at", i ? "; " : "", i);
		for (size_t k = 0; k <= w->log_nr; k++)
			if (st[i].fits[k] || st[i].fits_partial[k])
				strbuf_printf(&text, " %llu%s (entries %lld to %lld)",
					      (unsigned long long)(w->promised_op + k),
					      st[i].fits_partial[k] ? " and a part" : "",
					      k ? (long long)w->log[k - 1].seq_begin : 0,
					      k < w->log_nr ? (long long)w->log[k].seq_end - 1 : -1);
	}
	failed(s, "tasks recovered to different moments", strbuf_text(&text));
	strbuf_free(&text);
	return -EPROTO;
}

int compare_after_crash(struct sim *s)
{
	struct strbuf first_why = strbuf_growing(), last_why = strbuf_growing();
	struct states st[TASKS_MAX] = { 0 };
	struct model_versions lists[TASKS_MAX] = { 0 };
	const struct model_versions *versions[TASKS_MAX] = { 0 };
	struct model got[TASKS_MAX];
	size_t at[TASKS_MAX] = { 0 };
	bool is_partial[TASKS_MAX] = { false };
	s->is_after_crash = true;
	int err = read_shares(s, false, got);
	s->is_after_crash = false;

	for (unsigned i = 0; i < s->tasks_nr && !err; i++) {
		struct workload *w = &s->tasks[i];

		versions[i] = versions_find(w, &lists[i]);
		st[i] = states_find(s, w, &got[i], versions[i], &first_why, &last_why);
		if (st[i].has_any)
			continue;
		strbuf_printf(&first_why, "; as of operation %llu: %s", (unsigned long long)w->op_nr,
			      strbuf_text(&last_why));
		char what[96];
		snprintf(what, sizeof(what), "task %u: neither the state of operation %llu nor a later one", i,
			 (unsigned long long)w->promised_op);
		err = failed(s, what, strbuf_text(&first_why));
	}
	if (!err && !moment_find(s, st, at, is_partial))
		err = no_moment(s, st);
	for (unsigned i = 0; i < s->tasks_nr && !err; i++) {
		struct workload *w = &s->tasks[i];

		if (s->args->is_verbose)
			printf("  task %u recovered to operation %llu%s of %llu to %llu\n", i,
			       (unsigned long long)(w->promised_op + at[i]), is_partial[i] ? " and a part" : "",
			       (unsigned long long)w->promised_op, (unsigned long long)w->op_nr);
		state_adopt(s, w, &got[i], versions[i], at[i], is_partial[i]);
	}
	if (!err)
		workload_promise_all(s);
	for (unsigned i = 0; i < s->tasks_nr; i++) {
		free(st[i].fits);
		free(st[i].fits_partial);
		model_versions_free(&lists[i]);
	}
	free_shares(got);
	strbuf_free(&first_why);
	strbuf_free(&last_why);
	return err;
}

/* --- damaged --- */

struct damaged {
	struct sim *s;
	struct workload *w;
	int err;
};

static int damaged_wrong(struct damaged *d, const char *path, const char *what)
{
	char text[320];

	snprintf(text, sizeof(text), "%.250s: %s", path, what);
	return d->err = failed(d->s, "damage was read as if it were right", text);
}

/* Bytes that can be read are as they were written, or zero where that can't be told apart by anything but them. */
static void damaged_contents(struct damaged *d, const char *path, const struct model_object *o, struct kiln_node node)
{
	uint8_t *bytes = malloc(4096);

	for (uint64_t at = 0; at < o->size && !d->err; at += 4096) {
		size_t len = (size_t)min(o->size - at, (uint64_t)4096);
		ssize_t n = kiln_read(d->s->fs, node, at, bytes, len);

		if (n < 0)
			COUNT(d->s, unreadable_objects, 1);
		else if (memcmp(bytes, o->data + at, (size_t)n))
			damaged_wrong(d, path, "contents");
		else if ((size_t)n < len && kiln_read(d->s->fs, node, at + (size_t)n, bytes, 1) >= 0)
			damaged_wrong(d, path, "short without an error");
	}
	free(bytes);
}

static bool is_damage(int err) { return err == -EIO || err == -ENOMEM; }

static void damaged_object(struct damaged *d, const char *path, unsigned id, struct kiln_node node);

static void damaged_entries(struct damaged *d, const char *path, unsigned id, struct kiln_node node)
{
	const struct model_object *o = &d->w->model.objects[id];
	char below[4096];

	for (size_t i = 0; i < o->entries_nr && !d->err; i++) {
		const struct model_entry *e = &o->entries[i];
		struct kiln_stat st;
		int err = kiln_lookup(d->s->fs, node, e->name, strlen(e->name), &st);

		snprintf(below, sizeof(below), "%s/%s", path, e->name);
		if (err && !is_damage(err))
			damaged_wrong(d, below, error_name(err));
		else if (err)
			COUNT(d->s, unreadable_objects, 1);
		else
			damaged_object(d, below, e->id, st.node);
	}
}

static void damaged_object(struct damaged *d, const char *path, unsigned id, struct kiln_node node)
{
	const struct model_object *o = &d->w->model.objects[id];
	struct kiln_stat st;
	int err = kiln_stat(d->s->fs, node, &st);

	if (err) {
		if (!is_damage(err))
			damaged_wrong(d, path, error_name(err));
		COUNT(d->s, unreadable_objects, 1);
		return;
	}
	if (id != MODEL_ROOT && (st.mode != o->mode || st.uid != o->uid || (S_ISREG(o->mode) && st.size != o->size))) {
		damaged_wrong(d, path, "attributes");
		return;
	}
	COUNT(d->s, objects_beside, 1);
	if (S_ISDIR(o->mode))
		damaged_entries(d, path, id, node);
	else if (S_ISREG(o->mode))
		damaged_contents(d, path, o, node);
}

int compare_damaged(struct sim *s)
{
	struct damaged d = { .s = s };

	for (unsigned i = 0; i < s->tasks_nr && !d.err; i++) {
		d.w = &s->tasks[i];
		damaged_object(&d, "", MODEL_ROOT, kiln_root(s->fs));
	}
	return d.err;
}

/* --- what is kept in memory --- */

struct quota_rows {
	struct kiln_quota rows[QUOTA_ROWS_MAX];
	unsigned nr;
};

static int quota_row_add(void *ctx, const struct kiln_quota *quota)
{
	struct quota_rows *r = ctx;

	if (r->nr == QUOTA_ROWS_MAX)
		return -E2BIG;
	r->rows[r->nr++] = *quota;
	return 0;
}

static int quotas_differ(struct sim *s, unsigned type, const struct kiln_quota *q, const struct kiln_quota *counted)
{
	char text[160];

	snprintf(text, sizeof(text), "type %u, id %u: %llu bytes and %llu inodes, should be %llu and %llu", type, q->id,
		 (unsigned long long)q->space.used, (unsigned long long)q->inodes.used,
		 (unsigned long long)counted->space.used, (unsigned long long)counted->inodes.used);
	return failed(s, "quotas", text);
}

static int quotas_compare(struct sim *s)
{
	struct quota_rows *kept = calloc(2, sizeof(*kept)), *counted = kept + 1;
	int err = kept ? kiln_quota_wait(s->fs) : -ENOMEM;

	for (unsigned type = KILN_QUOTA_USER; type <= KILN_QUOTA_PROJECT && !err; type++) {
		static const struct kiln_quota none;
		struct kiln_quota_info info;

		kept->nr = counted->nr = 0;
		err = kiln_quota_info(s->fs, type, &info);
		if (err || !info.is_enabled)
			continue;
		err = kiln_quota_list(s->fs, type, quota_row_add, kept);
		if (!err)
			err = kiln_quota_count(s->fs, type, quota_row_add, counted);
		for (unsigned i = 0; i < max(kept->nr, counted->nr) && !err; i++) {
			const struct kiln_quota *k = i < kept->nr ? &kept->rows[i] : &none;
			const struct kiln_quota *c = i < counted->nr ? &counted->rows[i] : &none;

			if (k->id != c->id || k->space.used != c->space.used || k->inodes.used != c->inodes.used)
				err = quotas_differ(s, type, k, c);
		}
	}
	free(kept);
	return err;
}

int compare_reserved(struct sim *s)
{
	const uint64_t *sectors = &s->fs->allocator->counters.online_reserved;
	char text[48];

	/* Moves have some while they are under way. */
	for (unsigned i = 0; i < 1000 && *sectors && !power_is_off(s->power); i++)
		sleep_ns(10000000);
	snprintf(text, sizeof(text), "%llu sectors", (unsigned long long)*sectors);
	return *sectors ? failed(s, "what was reserved isn't given back", text) : 0;
}

int compare_accounts(struct sim *s)
{
	/* What has lost its name goes in the background. */
	int err = kiln_deletions_wait(s->fs);

	if (!err)
		err = quotas_compare(s);
	if (!err)
		err = compare_reserved(s);
	if (err && err != -EPROTO && !power_is_off(s->power))
		failed(s, "accounts", error_name(err));
	return err;
}

/* --- invariants --- */

struct checking {
	struct sim *s;
	char first[300];
	uint64_t expected;
};

static void on_check_report(void *ctx, const struct kiln_report *report)
{
	struct checking *c = ctx;
	const char *name = report->error_id_name ? report->error_id_name : "";

	if (c->expected < c->s->bad_nodes_max && !strncmp(name, "btree_node_", 11))
		c->expected++;
	else if (!c->first[0])
		snprintf(c->first, sizeof(c->first), "%s", report->text);
	if (c->s->args->is_verbose)
		printf("  check: %s\n", report->text);
}

int check(struct sim *s)
{
	struct checking c = { .s = s };
	struct kiln_check_options options = {
		.struct_bytes = sizeof(options), .flags = KILN_CHECK_DATA, .ctx = &c, .report = on_check_report
	};
	struct kiln_check_result *result = calloc(1, sizeof(*result));
	int err = kiln_check(s->fs, &options, result);

	COUNT(s, checks, 1);
	if (power_is_off(s->power))
		err = -EIO;
	else if (err)
		err = failed(s, "check", error_name(err));
	else if (result->errors > c.expected)
		err = failed(s, "check", c.first);
	free(result);
	return err ? -EPROTO : 0;
}
