/* The public call for the checker (recovery/check.h). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/allocator.h"
#include "btree/txn.h"
#include "engine/fs.h"
#include "recovery/check.h"

struct check_call {
	struct kiln_check_options options;
	struct reporter reporter; /* when there is a callback of its own */
};

static int call_progress(void *ctx, const struct check_pass *pass, uint64_t done, uint64_t total, const char *position)
{
	struct check_call *call = ctx;

	return call->options.progress(call->options.ctx, pass->name, done, total, position);
}

/* Bits of the passes that are named; 0: all. */
static int passes_parse(const struct kiln_check_options *options, uint32_t *passes)
{
	const struct check_pass *pass;
	int err = check_passes_parse(options->passes, passes);

	for (unsigned i = 0; !err && !*passes && options->flags & KILN_CHECK_DATA && (pass = check_pass(i)); i++)
		if (pass->id == CHECK_PASS_DATA) /* the last one: with all before it */
			*passes = (2u << i) - 1;
	return err;
}

static void result_add_kind(struct kiln_check_result *out, unsigned id, uint64_t count)
{
	unsigned at = out->kind_nr;

	if (at == KILN_CHECK_KINDS_MAX && out->kinds[--at].count >= count)
		return;
	out->kind_nr = at + 1;
	for (; at && out->kinds[at - 1].count < count; at--)
		out->kinds[at] = out->kinds[at - 1];
	out->kinds[at].id = id;
	out->kinds[at].name = check_error_name(id);
	out->kinds[at].count = count;
}

static void result_fill(struct kiln_check_result *out, const struct check_result *r)
{
	const struct check_pass *pass;

	*out = (struct kiln_check_result){ .errors = r->errors };
	for (unsigned i = 0; (pass = check_pass(i)); i++) {
		out->passes[i].name = pass->name;
		out->passes[i].what = pass->what;
		out->passes[i].state = r->passes[i].is_left_out_newer ? KILN_CHECK_LEFT_OUT
				       : !r->passes[i].was_run	      ? KILN_CHECK_NOT_RUN
				       : r->passes[i].is_partial      ? KILN_CHECK_PARTIAL
								      : KILN_CHECK_DONE;
		out->passes[i].errors = r->passes[i].errors;
		out->passes[i].items = r->passes[i].items;
		out->passes[i].ns = r->passes[i].ns;
		out->pass_nr = i + 1;
	}
	for (unsigned id = 0; id < CHECK_ERROR_NR; id++)
		if (r->counts[id])
			result_add_kind(out, id, r->counts[id]);
}

/*
 * Everything is in the nodes, and the background is paused. To flush may need space, and so somebody in the background:
 * then the pause was lifted, and what he did must be flushed too. Each time less is left.
 */
static int flush_and_pause(kiln_fs *fs)
{
	struct background *background = btrees_background(fs->trees);

	for (;;) {
		int err = btrees_flush_all(fs->trees);

		background_pause(background);
		uint64_t begun_nr = background_begun_nr(background);
		if (!err)
			err = btrees_flush_all(fs->trees);
		if (err || background_begun_nr(background) == begun_nr)
			return err;
		background_resume(background);
	}
}

/*
 * What is in memory only goes to the nodes, and the counters come from where they are kept. The background is paused
 * before they are read, so that they are still those of the keys when these have been counted. (Merges of nodes are
 * waited for by a flush.)
 */
static int settle(kiln_fs *fs, struct check_target *target, struct usage *usage)
{
	int err = flush_and_pause(fs);

	if (!err)
		err = allocator_usage(fs->allocator, usage);
	if (err)
		return err;
	target->usage = usage;
	struct quotas *quotas = allocator_quotas(fs->allocator);
	if (quotas && !quotas_wait(quotas))
		target->quotas = quotas;
	return 0;
}

int kiln_check(kiln_fs *fs, const struct kiln_check_options *given, struct kiln_check_result *out)
{
	struct check_target target = {
		.super = fs->super, .journal = fs->journal, .trees = fs->trees, .is_writable = fs->is_writable
	};
	struct check_call *call = calloc(1, sizeof(*call));
	struct check_result *result = calloc(1, sizeof(*result));
	struct check_opts opts = { 0 };
	struct usage usage;
	int err = -ENOMEM;

	*out = (struct kiln_check_result){ 0 };
	if (!call || !result)
		goto out;
	err = -EINVAL;
	if (given && !given->struct_bytes)
		goto out;
	if (given)
		memcpy(&call->options, given, min(given->struct_bytes, sizeof(call->options)));
	reporter_init(&call->reporter,
		      &(struct kiln_open_options){ .ctx = call->options.ctx, .report = call->options.report });
	opts.memory_bytes = call->options.memory_bytes;
	opts.report_max = call->options.report_max;
	opts.reports = call->options.report ? &call->reporter.sink : &fs->reporter.sink;
	if (call->options.progress) {
		opts.progress = call_progress;
		opts.progress_ctx = call;
	}
	err = passes_parse(&call->options, &opts.passes);
	bool is_paused = !err && fs->is_writable;
	if (is_paused)
		err = settle(fs, &target, &usage);
	if (!err)
		err = check_run(&target, &opts, result);
	if (is_paused)
		background_resume(btrees_background(fs->trees));
	result_fill(out, result);
	if (target.usage)
		usage_free(&usage);
	reporter_destroy(&call->reporter);
out:
	free(result);
	free(call);
	return error_to_errno(err);
}
