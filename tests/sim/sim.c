/*
 * A whole filesystem on simulated disks, from one seed.
 *
 * The seed chooses the disks, the options, the operations, the schedule of all tasks (fibers), the times of all I/O and
 * when the power goes. Operations are run one after the other beside a model; at any time the state is the model's.
 * After a power cut it must be the model's after some operation at or behind the last that was promised to be durable,
 * or, where the next one works in parts, with a part of that. Then the workload goes on from there.
 *
 *	sim [--seed N | --seeds FIRST-LAST] [--ops N] [--cuts N] [--export DIR] [--thread] [-v]
 *
 * A failure prints the command that repeats it.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/array.h"
#include "base/fiber.h"
#include "base/util.h"
#include "device/power.h"
#include "engine/format.h"
#include "engine/fs.h"
#include "engine/fs_write.h"
#include "operation.h"

enum { DISKS_MAX = 4, OPS_DEFAULT = 400, SEED_SECONDS_MAX = 120, OPS_UNSEEN_MAX = 5000 };

struct arguments {
	uint64_t seed, seed_last;
	uint64_t ops;
	unsigned cuts; /* power cuts; 0: none, it is closed cleanly now and then */
	const char *export_dir;
	const char *program;
	bool is_thread, is_verbose, is_traced;
};

struct sim {
	const struct arguments *args;
	uint64_t seed;
	struct rng rng;
	/* The filesystem. */
	struct power *power;
	unsigned disks_nr;
	uint32_t block_bytes;
	char options[512];
	kiln_fs *fs;
	/* What it must be. */
	struct operation_limits limits;
	struct model model;
	struct model promised; /* after operation number promised_op */
	uint64_t promised_op;
	struct operation *log; /* operations behind it */
	size_t log_nr, log_capacity;
	uint64_t op_nr;
	bool is_in_doubt; /* the last of the log didn't return: it may have happened */
	/* What was done. */
	uint64_t cuts, cuts_at_risk, reopens, recovery_cuts, no_space;
	bool has_failed;
	bool is_quiet; /* reports don't matter: the power is off */
};

/* --- failing --- */

static int failed(struct sim *s, const char *what, const char *detail)
{
	if (s->has_failed)
		return -EPROTO;
	s->has_failed = true;
	printf("FAILED seed %llu, operation %llu, cut %llu: %s%s%s\n", (unsigned long long)s->seed,
	       (unsigned long long)s->op_nr, (unsigned long long)s->cuts, what, detail[0] ? ": " : "", detail);
	printf("  %u disks, %s\n", s->disks_nr, s->options);
	printf("  repeat: %s --seed %llu --ops %llu --cuts %u%s -v\n", s->args->program, (unsigned long long)s->seed,
	       (unsigned long long)s->args->ops, s->args->cuts, s->args->is_thread ? " --thread" : "");
	fflush(stdout);
	return -EPROTO;
}

static void too_slow(int signal)
{
	static const char text[] = "FAILED: it hangs; the seed is the last that was begun\n";

	(void)signal;
	if (write(1, text, sizeof(text) - 1) < 0)
		_exit(3);
	abort();
}

static void on_report(void *ctx, const struct kiln_report *report)
{
	struct sim *s = ctx;

	if (s->is_quiet || power_is_off(s->power))
		return;
	if (report->level >= KILN_REPORT_DAMAGE)
		failed(s, "report", report->text);
	else if (s->args->is_verbose)
		printf("  report: %s\n", report->text);
}

static void on_log(void *ctx, enum kiln_log_level level, const char *line)
{
	struct sim *s = ctx;

	if (s->args->is_verbose)
		printf("  log %d: %s\n", level, line);
}

/* --- the filesystem --- */

static const char *pick(struct rng *rng, const char *const *from, unsigned nr) { return from[rng_below(rng, nr)]; }

static void draw_options(struct sim *s, struct kiln_format_device devices[DISKS_MAX])
{
	static const char *const checksums[] = { "none", "crc32c", "crc64", "xxhash" };
	static const char *const hashes[] = { "crc32c", "crc64", "siphash" };
	static const uint64_t bucket_kib[] = { 128, 256, 512 };
	static const unsigned node_kib[] = { 4, 8, 16, 32, 64, 128, 256 };
	unsigned node, extent_kib = 4u << rng_below(&s->rng, 7);
	uint64_t bucket = bucket_kib[rng_below(&s->rng, ARRAY_NR(bucket_kib))];

	s->disks_nr = 1 + (rng_below(&s->rng, 2) ? (unsigned)rng_below(&s->rng, DISKS_MAX) : 0);
	s->block_bytes = rng_below(&s->rng, 2) ? 512 : 4096;
	do
		node = node_kib[rng_below(&s->rng, ARRAY_NR(node_kib))];
	while (node > bucket || node * 1024 < s->block_bytes * 8);
	unsigned replicas_max = min(s->disks_nr, 2u);
	snprintf(s->options, sizeof(s->options),
		 "block_size=%u,btree_node_size=%uk,encoded_extent_max=%uk,metadata_checksum=%s,data_checksum=%s,"
		 "str_hash=%s,metadata_replicas=%u,data_replicas=%u",
		 s->block_bytes, node, extent_kib,
		 /* Without checksums a torn write of metadata can't be told from a whole one. */
		 s->args->cuts ? pick(&s->rng, checksums + 1, 3) : pick(&s->rng, checksums, 4),
		 pick(&s->rng, checksums, 4), pick(&s->rng, hashes, 3), 1 + (unsigned)rng_below(&s->rng, replicas_max),
		 1 + (unsigned)rng_below(&s->rng, replicas_max));
	for (unsigned i = 0; i < s->disks_nr; i++)
		devices[i] = (struct kiln_format_device){ .bucket_bytes = bucket << 10,
							  .flags = rng_below(&s->rng, 2) ? KILN_FORMAT_DISCARD : 0 };
}

static int open_disks(struct sim *s, struct device *open[DISKS_MAX])
{
	int err = 0;

	for (unsigned i = 0; i < s->disks_nr && !err; i++)
		err = power_disk_open(s->power, i, &open[i]);
	return err;
}

static struct kiln_open_options open_options(struct sim *s, unsigned flags)
{
	return (struct kiln_open_options){ .struct_bytes = sizeof(struct kiln_open_options),
					   .flags = flags,
					   .memory_bytes = KILN_MEMORY_MIN,
					   .ctx = s,
					   .log = on_log,
					   .log_level = KILN_LOG_DEBUG,
					   .report = on_report };
}

static int make(struct sim *s)
{
	struct kiln_format_device devices[DISKS_MAX];
	struct kiln_format_options format = { .struct_bytes = sizeof(format), .options = s->options };
	struct kiln_open_options options = open_options(s, KILN_OPEN_WRITE);
	struct device *open[DISKS_MAX];
	char why[KILN_ERROR_BYTES] = "";

	draw_options(s, devices);
	s->power = power_new(rng_u64(&s->rng));
	for (unsigned i = 0; i < s->disks_nr; i++) {
		uint64_t mib = 48 + rng_below(&s->rng, 80);

		if (power_disk_add(s->power, mib << 20, s->block_bytes) < 0)
			return failed(s, "no memory", "");
	}
	int err = open_disks(s, open);
	if (!err)
		err = fs_format_devices(open, devices, s->disks_nr, &format, why);
	if (!err)
		err = fs_initialize(open, s->disks_nr, &options, &s->fs, why);
	return err ? failed(s, "format", why) : 0;
}

/* 0, -EIO when the power went, or -EPROTO. */
static int open_fs(struct sim *s, unsigned flags)
{
	struct kiln_open_options options = open_options(s, flags);
	struct device *open[DISKS_MAX];
	char why[KILN_ERROR_BYTES] = "";
	int err = open_disks(s, open);

	if (!err)
		err = fs_open(NULL, 0, open, s->disks_nr, &options, FS_NAMESPACE, &s->fs, why);
	if (err && power_is_off(s->power))
		return -EIO;
	if (err)
		return failed(s, "open", why);
	if (flags & KILN_OPEN_WRITE && kiln_write_refused(s->fs))
		return failed(s, "opened read-only", kiln_write_refused(s->fs));
	return 0;
}

static void close_fs(struct sim *s)
{
	kiln_close(s->fs);
	s->fs = NULL;
}

/* As if the process were killed: nothing more is written. */
static void abort_fs(struct sim *s)
{
	s->is_quiet = true;
	if (s->fs && s->fs->is_writable)
		fs_write_abort(s->fs);
	close_fs(s);
	s->is_quiet = false;
}

/* --- comparing --- */

static int read_model(struct sim *s, struct model *m)
{
	struct strbuf why = strbuf_growing();
	int err = model_read(m, s->fs, &why);

	if (err)
		failed(s, "unreadable", strbuf_text(&why));
	strbuf_free(&why);
	return err ? -EPROTO : 0;
}

static int compare(struct sim *s)
{
	struct strbuf why = strbuf_growing();
	struct model got;
	int err = read_model(s, &got);

	if (!err && !model_equal(&got, &s->model, UINT32_MAX, NULL, &why))
		err = failed(s, "differs from the model", strbuf_text(&why));
	if (!err)
		model_adopt_nodes(&s->model, &got);
	model_free(&got);
	strbuf_free(&why);
	return err;
}

/* Everything up to the last operation is durable. */
static void promise_all(struct sim *s)
{
	model_free(&s->promised);
	model_copy(&s->promised, &s->model);
	s->promised_op = s->op_nr;
	s->log_nr = 0;
	s->is_in_doubt = false;
}

/* Everything up to operation @op_nr is durable. */
static void promise(struct sim *s, uint64_t op_nr)
{
	size_t nr = 0;

	for (; nr < s->log_nr && s->promised_op < op_nr; nr++)
		operation_apply(&s->log[nr], &s->promised, ++s->promised_op);
	memmove(s->log, s->log + nr, (s->log_nr - nr) * sizeof(*s->log));
	s->log_nr -= nr;
}

static bool candidate_fits(const struct sim *s, const struct model *got, const struct model *candidate,
			   const struct operation *next, struct model *after, struct strbuf *why)
{
	unsigned got_id = UINT32_MAX;

	if (model_equal(got, candidate, UINT32_MAX, NULL, why))
		return true;
	if (!next || (next->kind != OP_WRITE && next->kind != OP_PUNCH && next->kind != OP_TRUNCATE) ||
	    !candidate->objects[next->id].exists)
		return false;
	if (!model_equal(got, candidate, next->id, &got_id, NULL) || got_id == UINT32_MAX)
		return false;
	const struct model_object *g = &got->objects[got_id];
	if (!operation_is_partial(next, s->block_bytes, g, &candidate->objects[next->id], &after->objects[next->id]))
		return false;
	/* It goes on with what is there. */
	struct model_object *o = &after->objects[next->id];
	model_resize(o, g->size);
	if (g->size)
		memcpy(o->data, g->data, g->size);
	return true;
}

/* Which of the states that are allowed is it? The model becomes that one. */
static int compare_after_cut(struct sim *s)
{
	struct strbuf first_why = strbuf_growing(), last_why = strbuf_growing();
	struct model got, candidate, after;
	bool fits = false;
	size_t i;
	int err = read_model(s, &got);

	if (err)
		goto out;
	model_copy(&candidate, &s->promised);
	for (i = 0;; i++) {
		struct operation *next = i < s->log_nr ? &s->log[i] : NULL;

		model_copy(&after, &candidate);
		if (next) {
			if (next->result == -EIO) /* it was under way when the power went */
				next->result = next->kind == OP_WRITE ? (ssize_t)next->len : 0;
			operation_apply(next, &after, s->promised_op + i + 1);
		}
		strbuf_reset(&last_why);
		fits = candidate_fits(s, &got, &candidate, next, &after, i ? &last_why : &first_why);
		if (fits && !model_equal(&got, &candidate, UINT32_MAX, NULL, NULL)) {
			model_free(&candidate);
			candidate = after;
			after = (struct model){ 0 };
		}
		if (fits || !next)
			break;
		model_free(&candidate);
		candidate = after;
	}
	model_free(&after);
	if (fits) {
		if (s->args->is_verbose)
			printf("  recovered to operation %llu of %llu to %llu\n",
			       (unsigned long long)(s->promised_op + i), (unsigned long long)s->promised_op,
			       (unsigned long long)s->op_nr);
		model_free(&s->model);
		s->model = candidate;
		model_adopt_nodes(&s->model, &got);
		promise_all(s);
	} else {
		char what[64];

		model_free(&candidate);
		snprintf(what, sizeof(what), "; as of operation %llu", (unsigned long long)s->op_nr);
		strbuf_add(&first_why, what);
		strbuf_printf(&first_why, ": %s", strbuf_text(&last_why));
		snprintf(what, sizeof(what), "neither the state of operation %llu nor a later one",
			 (unsigned long long)s->promised_op);
		err = failed(s, what, strbuf_text(&first_why));
	}
	model_free(&got);
out:
	strbuf_free(&first_why);
	strbuf_free(&last_why);
	return err;
}

static int check(struct sim *s)
{
	struct kiln_check_options options = {
		.struct_bytes = sizeof(options), .flags = KILN_CHECK_DATA, .ctx = s, .report = on_report
	};
	struct kiln_check_result *result = calloc(1, sizeof(*result));
	int err = kiln_check(s->fs, &options, result);

	if (err)
		failed(s, "check", strerror(-err));
	else if (result->errors)
		err = failed(s, "check", result->kinds[0].name);
	free(result);
	return err ? -EPROTO : 0;
}

/* --- the workload --- */

static int step(struct sim *s)
{
	struct strbuf text = strbuf_growing();
	struct operation op;
	int err;

	/* Time for what happens in the background. */
	if (!s->args->is_thread && !rng_below(&s->rng, 12))
		sleep_ns(rng_below(&s->rng, rng_below(&s->rng, 3) ? 20000000 : 3000000000));
	operation_draw(&op, &s->rng, &s->model, &s->limits);
	if (s->args->is_traced) {
		strbuf_printf(&text, "%llu: ", (unsigned long long)s->op_nr + 1);
		operation_to_text(&op, &text);
		printf("%s\n", strbuf_text(&text));
		fflush(stdout);
		strbuf_reset(&text);
	}
	s->op_nr++;
	err = operation_run(&op, &s->model, s->fs, s->op_nr, &text);
	if (array_grow(&s->log, &s->log_capacity, s->log_nr + 1, sizeof(*s->log)))
		abort();
	s->log[s->log_nr++] = op;
	if (op.result == -ENOSPC)
		s->no_space++;
	if (err == -EPROTO)
		failed(s, "wrong answer", strbuf_text(&text));
	else if (err && !power_is_off(s->power))
		err = failed(s, "error", strerror(-err));
	else if (err || power_is_off(s->power))
		err = -EIO;
	else if (op.kind == OP_SYNC)
		promise(s, s->op_nr);
	else if (op.kind == OP_FSYNC && s->model.objects[op.id].exists)
		promise(s, s->model.objects[op.id].last_op);
	strbuf_free(&text);
	return s->has_failed ? -EPROTO : err;
}

/* Close cleanly, look at it read-only, go on. */
static int reopen(struct sim *s)
{
	int err = error_to_errno(kiln_shutdown(s->fs));

	if (power_is_off(s->power))
		return -EIO;
	if (err)
		return failed(s, "shutdown", strerror(-err));
	close_fs(s);
	s->reopens++;
	err = open_fs(s, 0);
	if (!err)
		err = compare(s);
	if (!err)
		err = check(s);
	if (s->fs)
		close_fs(s);
	if (err || s->has_failed)
		return -EPROTO;
	promise_all(s);
	return open_fs(s, KILN_OPEN_WRITE);
}

/* What is there without recovery is what recovery leaves. */
static int recover(struct sim *s)
{
	int err;

	for (;;) {
		bool is_cut = !rng_below(&s->rng, 3);

		power_restore(s->power);
		if (is_cut)
			power_cut_after(s->power, 1 + rng_below(&s->rng, 60));
		err = open_fs(s, KILN_OPEN_WRITE);
		if (!err && power_is_off(s->power)) { /* something in the background was cut */
			abort_fs(s);
			err = -EIO;
		}
		if (err != -EIO)
			break;
		s->recovery_cuts++;
	}
	if (!err)
		power_cut_after(s->power, 0);
	return err ? err : s->has_failed ? -EPROTO : compare_after_cut(s);
}

static int run_with_cuts(struct sim *s)
{
	int err = 0;

	for (s->cuts = 0; !err && s->cuts < s->args->cuts;) {
		uint64_t ops = 1 + rng_below(&s->rng, s->args->ops);

		power_cut_after(s->power, 1 + rng_below(&s->rng, 2 + 2 * ops));
		for (uint64_t i = 0; i < ops && !err; i++)
			err = step(s);
		if (!err)
			power_cut(s->power);
		if (err && err != -EIO)
			break;
		s->cuts++;
		s->cuts_at_risk += power_stats_get(s->power).at_risk_writes != 0;
		abort_fs(s);
		err = recover(s);
		if (!err && !rng_below(&s->rng, 3))
			err = reopen(s);
	}
	return err;
}

static int run_clean(struct sim *s)
{
	/* Long runs are looked at now and then. */
	uint64_t rounds = max(1 + rng_below(&s->rng, 4), s->args->ops / OPS_UNSEEN_MAX);
	int err = 0;

	for (uint64_t i = 0; !err && i < s->args->ops; i++) {
		err = step(s);
		if (!err && i % (s->args->ops / rounds + 1) == s->args->ops / rounds)
			err = reopen(s);
	}
	return err;
}

static int export_disks(struct sim *s)
{
	char path[4096];

	for (unsigned i = 0; i < s->disks_nr; i++) {
		struct device *dev;

		snprintf(path, sizeof(path), "%s/seed%llu.dev%u.img", s->args->export_dir, (unsigned long long)s->seed,
			 i);
		FILE *f = fopen(path, "w");
		if (!f || power_disk_open(s->power, i, &dev))
			return failed(s, path, strerror(errno));
		const uint8_t *bytes = power_disk_bytes(s->power, i);
		static const uint8_t zeroes[65536];
		for (uint64_t at = 0; at < dev->size_bytes; at += sizeof(zeroes))
			if (memcmp(bytes + at, zeroes, sizeof(zeroes))) {
				fseeko(f, (off_t)at, SEEK_SET);
				fwrite(bytes + at, 1, sizeof(zeroes), f);
			}
		int err = fflush(f) || ftruncate(fileno(f), (off_t)dev->size_bytes);
		fclose(f);
		device_close(dev);
		if (err)
			return failed(s, path, strerror(errno));
	}
	return 0;
}

static void sim_main(void *arg)
{
	struct sim *s = arg;
	int err = make(s);

	if (!err)
		err = read_model(s, &s->model);
	if (!err) {
		promise_all(s);
		err = s->args->cuts ? run_with_cuts(s) : run_clean(s);
	}
	if (!err)
		err = reopen(s);
	if (s->fs && (err || s->has_failed))
		abort_fs(s);
	else if (s->fs)
		close_fs(s);
	if (s->args->export_dir)
		export_disks(s);
}

static int run_seed(const struct arguments *args, uint64_t seed)
{
	struct sim *s = calloc(1, sizeof(*s));
	struct fiber_sim_opts opts = { .seed = seed };
	struct fiber_sim_result result = { 0 };
	int err = 0;

	s->args = args;
	s->seed = seed;
	s->limits = operation_limits_default;
	rng_init(&s->rng, seed);
	if (args->is_thread)
		sim_main(s);
	else
		err = fiber_sim_run(&opts, sim_main, s, &result);
	if (err)
		failed(s, "the simulation", strerror(-err));
	bool has_failed = s->has_failed;
	if (!has_failed)
		printf("seed %llu: %llu operations, %llu reopens, %llu cuts (%llu at risk), %llu of recovery, %llu "
		       "without space, %u disks, %.1f s\n",
		       (unsigned long long)seed, (unsigned long long)s->op_nr, (unsigned long long)s->reopens,
		       (unsigned long long)s->cuts, (unsigned long long)s->cuts_at_risk,
		       (unsigned long long)s->recovery_cuts, (unsigned long long)s->no_space, s->disks_nr,
		       (double)result.simulated_ns / 1e9);
	if (!err) {
		model_free(&s->model);
		model_free(&s->promised);
		free(s->log);
		power_free(s->power);
		free(s);
	}
	return has_failed;
}

/* Each in a process of its own: one that crashes doesn't keep the others from running. */
static int run_seeds(const struct arguments *args)
{
	int failed_nr = 0;

	for (uint64_t seed = args->seed; seed <= args->seed_last; seed++) {
		int status = 0;
		fflush(stdout);
		pid_t pid = fork();

		if (!pid) {
			alarm(SEED_SECONDS_MAX);
			exit(run_seed(args, seed));
		}
		if (pid < 0 || waitpid(pid, &status, 0) < 0)
			return 2;
		if (WIFSIGNALED(status))
			printf("FAILED seed %llu: killed by signal %d\n  repeat: %s --seed %llu --ops %llu --cuts %u\n",
			       (unsigned long long)seed, WTERMSIG(status), args->program, (unsigned long long)seed,
			       (unsigned long long)args->ops, args->cuts);
		failed_nr += status != 0;
	}
	if (failed_nr)
		printf("%d of %llu seeds failed\n", failed_nr, (unsigned long long)(args->seed_last - args->seed + 1));
	return failed_nr != 0;
}

static void parse_seeds(struct arguments *args, const char *text)
{
	char *end;

	args->seed = args->seed_last = strtoull(text, &end, 0);
	if (*end == '-')
		args->seed_last = strtoull(end + 1, NULL, 0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seed", required_argument, NULL, 's' },
		{ "seeds", required_argument, NULL, 's' },
		{ "ops", required_argument, NULL, 'o' },
		{ "cuts", required_argument, NULL, 'c' },
		{ "export", required_argument, NULL, 'e' },
		{ "thread", no_argument, NULL, 't' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "trace", no_argument, NULL, 'T' },
		{ NULL, 0, NULL, 0 },
	};
	struct arguments args = { .seed = 1, .seed_last = 1, .ops = OPS_DEFAULT, .program = argv[0] };
	int c;

	signal(SIGALRM, too_slow);
	while ((c = getopt_long(argc, argv, "v", options, NULL)) != -1)
		switch (c) {
		case 's': parse_seeds(&args, optarg); break;
		case 'o': args.ops = strtoull(optarg, NULL, 0); break;
		case 'c': args.cuts = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'e': args.export_dir = optarg; break;
		case 't': args.is_thread = true; break;
		case 'v': args.is_verbose = true; break;
		case 'T': args.is_traced = true; break;
		default: fprintf(stderr, "usage: see the head of sim.c\n"); return 2;
		}
	return args.seed == args.seed_last ? run_seed(&args, args.seed) : run_seeds(&args);
}
