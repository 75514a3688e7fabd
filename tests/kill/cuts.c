/*
 * Power cuts on traces of real runs: any state that a loss of power can leave is recovered, and holds what was
 * promised.
 *
 * A process makes a filesystem on image files, with random options, and runs a workload of several threads on it
 * (workload.h), in a few sessions that end cleanly or not, while the trace wrapper records what is written and flushed.
 * Then moments are drawn at random; of what was not flushed at each any subset is lost or torn (replay.h), and the rest
 * is opened: it must recover without a complaint, hold what it should, and be consistent, also after some more work.
 * Each cut is a process of its own, on a private copy of memory.
 *
 *	cuts [--cuts N] [--seed N] [--per-trace N] [--ops N] [--mount] [-v]
 *
 * --mount: the filesystem is mounted, and what is recorded is what its server does for processes that work there. For
 * root, else it is skipped.
 * --per-trace: cuts from one recording, and so with the same options (default 100). --ops: changes of each task in each
 * session (default 150). $KILN_UPSTREAM names upstream's tool: its
 * fsck sees a part of the results. Recordings of threads differ from run to run, so what failed is kept: as it was
 * after the cut.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "device/device.h"
#include "engine/fs.h"
#include "engine/fs_write.h"
#include "mount/mount.h"
#include "replay.h"
#include "workload.h"

enum {
	DISKS_MAX = 3,
	SESSIONS_MAX = 3,
	SECONDS_MAX = 600, /* for one process: a busy machine may leave it waiting */
	UPSTREAM_ONE_IN = 40,
	SKIPPED = 77,
};

struct cuts {
	uint64_t seed, cuts, per_trace, ops;
	bool is_verbose, is_mounted;
	const char *upstream;
	char dir[4000], mountpoint[4096];
	/* Of the trace in hand. */
	struct rng rng;
	unsigned disks_nr, tasks_nr, sessions_nr;
	uint32_t block_bytes;
	bool has_latency;
	char options[512];
	struct workload *work[SESSIONS_MAX];
	struct replay *replay;
	unsigned complaints;
	/* Of all. */
	uint64_t done, promised, at_risk, harmless;
};

static int failed(struct cuts *c, const char *what, const char *detail)
{
	c->complaints++;
	printf("FAILED: %s%s%s\n", what, detail[0] ? ": " : "", detail);
	fflush(stdout);
	return -EPROTO;
}

static void on_report(void *ctx, const struct kiln_report *report)
{
	struct cuts *c = ctx;

	if (report->level >= KILN_REPORT_DAMAGE)
		failed(c, "report", report->text);
	else if (c->is_verbose)
		printf("  report: %s\n", report->text);
}

static void on_log(void *ctx, enum kiln_log_level level, const char *line)
{
	const struct cuts *c = ctx;

	if (c->is_verbose)
		printf("  log %d: %s\n", level, line);
}

static struct kiln_open_options open_options(struct cuts *c, unsigned flags)
{
	return (struct kiln_open_options){ .struct_bytes = sizeof(struct kiln_open_options),
					   .flags = flags,
					   .memory_bytes = KILN_MEMORY_MIN,
					   .ctx = c,
					   .log = on_log,
					   .log_level = KILN_LOG_DEBUG,
					   .report = on_report };
}

/* Runs @fn in a process of its own. 0, or -EPROTO after a message. */
static int in_process(struct cuts *c, int (*fn)(struct cuts *c, uint64_t nr), uint64_t nr)
{
	char what[64];
	int status;

	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		alarm(SECONDS_MAX);
		int err = fn(c, nr);
		fflush(stdout);
		_exit(err || c->complaints ? 1 : 0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return failed(c, "fork", strerror(errno));
	if (WIFSIGNALED(status)) {
		snprintf(what, sizeof(what), "signal %d", WTERMSIG(status));
		return failed(c, WTERMSIG(status) == SIGALRM ? "it hangs" : "it crashed", what);
	}
	return status ? -EPROTO : 0;
}

static void disk_path(const struct cuts *c, unsigned disk, char path[4096])
{
	snprintf(path, 4096, "%s/dev%u.img", c->dir, disk);
}

static void trace_path(const struct cuts *c, uint64_t session, unsigned disk, char path[4096])
{
	snprintf(path, 4096, "%s/session%llu.dev%u", c->dir, (unsigned long long)session, disk);
}

/* --- recording --- */

static const char *pick(struct rng *rng, const char *const *from, unsigned nr) { return from[rng_below(rng, nr)]; }

static void draw_options(struct cuts *c, struct kiln_format_device devices[DISKS_MAX])
{
	/* Without checksums a torn write of metadata can't be told from a whole one. */
	static const char *const checksums[] = { "crc32c", "crc64", "xxhash", "none" };
	static const char *const compressions[] = { "none", "none", "lz4", "zstd" };
	static const unsigned node_kib[] = { 8, 16, 32, 64, 128, 256 };
	static const uint64_t bucket_kib[] = { 128, 256, 512 };
	struct rng *rng = &c->rng;
	uint64_t bucket = bucket_kib[rng_below(rng, ARRAY_NR(bucket_kib))];
	unsigned node;

	c->disks_nr = 1 + (unsigned)rng_below(rng, DISKS_MAX);
	c->tasks_nr = 2 + (unsigned)rng_below(rng, 4);
	c->sessions_nr = 1 + (unsigned)rng_below(rng, SESSIONS_MAX);
	c->block_bytes = rng_below(rng, 2) ? 512 : 4096;
	c->has_latency = rng_below(rng, 2);
	do
		node = node_kib[rng_below(rng, ARRAY_NR(node_kib))];
	while (node > bucket || node * 1024 < c->block_bytes * 8);
	unsigned replicas_max = min(c->disks_nr, 2u);
	snprintf(c->options, sizeof(c->options),
		 "block_size=%u,btree_node_size=%uk,metadata_checksum=%s,data_checksum=%s,metadata_replicas=%u,"
		 "data_replicas=%u,compression=%s",
		 c->block_bytes, node, pick(rng, checksums, 3), pick(rng, checksums, 4),
		 1 + (unsigned)rng_below(rng, replicas_max), 1 + (unsigned)rng_below(rng, replicas_max),
		 pick(rng, compressions, ARRAY_NR(compressions)));
	for (unsigned i = 0; i < c->disks_nr; i++)
		devices[i] = (struct kiln_format_device){ .bucket_bytes = bucket << 10,
							  .file_bytes = (64 + rng_below(rng, 80)) << 20,
							  .flags = rng_below(rng, 2) ? KILN_FORMAT_DISCARD : 0 };
}

static int format(struct cuts *c, uint64_t nr)
{
	struct kiln_format_device devices[DISKS_MAX];
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(devices[0]),
					      .flags = KILN_FORMAT_FORCE,
					      .options = c->options,
					      .memory_bytes = KILN_MEMORY_MIN,
					      .ctx = c,
					      .report = on_report };
	char path[DISKS_MAX][4096], why[KILN_ERROR_BYTES];

	rng_init(&c->rng, nr);
	draw_options(c, devices);
	for (unsigned i = 0; i < c->disks_nr; i++) {
		disk_path(c, i, path[i]);
		devices[i].path = path[i];
	}
	return kiln_format(devices, c->disks_nr, &format, NULL, why) ? failed(c, "format", why) : 0;
}

static int device_open_slowly(struct cuts *c, struct device **dev)
{
	static const enum device_op ops[] = { DEVICE_WRITE, DEVICE_WRITE, DEVICE_FLUSH };
	static const uint64_t latency_ns[] = { 50000, 1500000, 400000 };
	int err = device_wrap_fault(*dev, rng_u64(&c->rng), dev);

	for (unsigned i = 0; i < ARRAY_NR(ops) && !err; i++) {
		struct device_fault fault = { .kind = FAULT_LATENCY,
					      .op = ops[i],
					      .per_million = 250000,
					      .latency_ns = latency_ns[i],
					      .remaining = UINT64_MAX };

		err = device_fault_add(*dev, &fault);
	}
	return err;
}

static int open_recorded(struct cuts *c, uint64_t session, struct kiln_fs **fs)
{
	struct kiln_open_options options = open_options(c, KILN_OPEN_WRITE);
	struct device *open[DISKS_MAX];
	char path[4096], why[KILN_ERROR_BYTES] = "";
	int err = 0;

	for (unsigned i = 0; i < c->disks_nr && !err; i++) {
		disk_path(c, i, path);
		err = device_open_file(path, DEVICE_OPEN_WRITE, NULL, &open[i], why);
		if (!err && c->has_latency)
			err = device_open_slowly(c, &open[i]);
		trace_path(c, session, i, path);
		if (!err)
			err = device_wrap_trace(open[i], path, true, &open[i]);
	}
	if (!err)
		err = fs_open(NULL, 0, open, c->disks_nr, &options, FS_NAMESPACE, fs, why);
	if (err)
		return failed(c, "open for recording", why);
	return kiln_write_refused(*fs) ? failed(c, "refused", kiln_write_refused(*fs)) : 0;
}

/* The filesystem of a session, with the history begun anew. */
static int session_open(struct cuts *c, uint64_t session, struct kiln_fs **fs)
{
	struct workload *w = c->work[session];
	struct strbuf why = strbuf_growing();
	int err = open_recorded(c, session, fs);

	if (!err && !session)
		err = workload_prepare(w, *fs);
	if (!err)
		err = workload_find(w, *fs, &why);
	if (err)
		failed(c, "preparing", strbuf_text(&why));
	strbuf_free(&why);
	return err;
}

static int session_close(struct cuts *c, struct kiln_fs *fs, bool is_clean)
{
	if (is_clean && kiln_shutdown(fs))
		return failed(c, "shutdown", "");
	if (!is_clean)
		fs_write_abort(fs);
	kiln_close(fs);
	return 0;
}

static int record(struct cuts *c, uint64_t session)
{
	struct workload *w = c->work[session];
	struct kiln_fs *fs;

	rng_init(&c->rng, c->seed + c->done * SESSIONS_MAX + session);
	if (session_open(c, session, &fs))
		return -EPROTO;
	int err = workload_run(w, fs, rng_u64(&c->rng), c->ops);
	if (err)
		return failed(c, "workload", strerror(-err));
	bool is_clean = rng_below(&c->rng, 2);
	uint64_t begin_ns = clock_monotonic_ns();
	err = session_close(c, fs, is_clean);
	if (!err && is_clean)
		workload_promise_all(w, begin_ns);
	return err;
}

/* --- recording of a mount --- */

static void on_mounted(void *ctx)
{
	const int *ready_fd = ctx;

	if (write(*ready_fd, "", 1) != 1)
		abort();
}

/* A process of its own, until it is unmounted. */
static int serve(struct cuts *c, uint64_t session, bool is_clean, int ready_fd)
{
	struct mount_options options = { .mountpoint = c->mountpoint, .source = "cuts" };
	struct kiln_fs *fs;

	alarm(SECONDS_MAX);
	if (session_open(c, session, &fs))
		return -EPROTO;
	struct mount_server *server = mount_server_new(fs, &options);
	int err = server ? mount_serve(server, on_mounted, &ready_fd) : -ENOMEM;
	if (err)
		return failed(c, "serving", strerror(-err));
	mount_server_free(server);
	return session_close(c, fs, is_clean);
}

static int unmount(const struct cuts *c)
{
	enum { TRIES = 3000, AGAIN_US = 20000 };

	/* Something may look at it for a moment. */
	for (unsigned i = 0; i < TRIES; i++) {
		if (!umount2(c->mountpoint, UMOUNT_NOFOLLOW))
			return 0;
		if (errno != EBUSY)
			break;
		usleep(AGAIN_US);
	}
	return -errno;
}

static int record_mounted(struct cuts *c, uint64_t session)
{
	struct workload *w = c->work[session];
	int ready[2], status = 0;
	char byte;

	rng_init(&c->rng, c->seed + c->done * SESSIONS_MAX + session);
	bool is_clean = rng_below(&c->rng, 2);
	if (pipe(ready))
		return failed(c, "pipe", strerror(errno));
	fflush(stdout);
	pid_t server = fork();
	if (!server) {
		int err = serve(c, session, is_clean, ready[1]);

		fflush(stdout);
		_exit(err || c->complaints ? 1 : 0);
	}
	close(ready[1]);
	int err = read(ready[0], &byte, 1) == 1 ? 0 : failed(c, "mounting", "");
	if (!err && workload_run_mounted(w, c->mountpoint, rng_u64(&c->rng), c->ops))
		err = failed(c, "workload", "");
	uint64_t begin_ns = clock_monotonic_ns();
	if (!err && unmount(c))
		err = failed(c, "unmounting", strerror(errno));
	if (err)
		kill(server, SIGKILL);
	if (waitpid(server, &status, 0) < 0 || status)
		err = err ? err : failed(c, "server", "it ended with a failure");
	if (!err && is_clean)
		workload_promise_all(w, begin_ns);
	return err;
}

static int record_all(struct cuts *c, uint64_t seed)
{
	struct kiln_format_device devices[DISKS_MAX];
	char paths[DISKS_MAX][4096];
	const char *names[DISKS_MAX];

	rng_init(&c->rng, seed);
	draw_options(c, devices);
	for (unsigned i = 0; i < c->disks_nr; i++) {
		disk_path(c, i, paths[i]);
		names[i] = paths[i];
		unlink(names[i]); /* of the trace before: it may be larger */
	}
	if (in_process(c, format, seed))
		return -EPROTO;
	c->replay = replay_new(names, c->disks_nr, c->block_bytes);
	int err = c->replay ? 0 : -EIO;
	for (unsigned s = 0; s < c->sessions_nr && !err; s++) {
		c->work[s] = workload_new(c->tasks_nr);
		err = in_process(c, c->is_mounted ? record_mounted : record, s);
		for (unsigned i = 0; i < c->disks_nr; i++)
			trace_path(c, s, i, paths[i]);
		if (!err)
			err = replay_add(c->replay, names);
	}
	return err;
}

/* --- after a cut --- */

static int open_cut(struct cuts *c, unsigned flags, struct kiln_fs **fs)
{
	struct kiln_open_options options = open_options(c, flags);
	struct device *open[DISKS_MAX];
	char why[KILN_ERROR_BYTES] = "";
	int err = 0;

	for (unsigned i = 0; i < c->disks_nr && !err; i++)
		err = replay_open(c->replay, i, &open[i]);
	if (!err)
		err = fs_open(NULL, 0, open, c->disks_nr, &options, FS_NAMESPACE, fs, why);
	if (err)
		return failed(c, "open", why);
	if (flags & KILN_OPEN_WRITE && kiln_write_refused(*fs))
		return failed(c, "opened read-only", kiln_write_refused(*fs));
	return 0;
}

/* The history that tells what must be there at @ns; NULL: before anything was promised. */
static struct workload *history_at(const struct cuts *c, uint64_t ns)
{
	struct workload *w = NULL;

	for (unsigned s = 0; s < c->sessions_nr; s++)
		if (workload_began_ns(c->work[s]) <= ns)
			w = c->work[s];
	return w;
}

static int verify(struct cuts *c, struct kiln_fs *fs, uint64_t ns, const char *when)
{
	struct strbuf why = strbuf_growing();
	struct workload *w = history_at(c, ns);
	int err = w ? workload_verify(w, fs, ns, &why) : 0;

	if (err)
		failed(c, when, strbuf_text(&why));
	strbuf_free(&why);
	return err;
}

/* Some more work, on what was recovered, with a history of its own. */
static int go_on(struct cuts *c, struct kiln_fs *fs)
{
	struct strbuf why = strbuf_growing();
	struct workload *w = workload_new(c->tasks_nr);
	int err = workload_find(w, fs, &why);

	if (!err)
		err = workload_run(w, fs, rng_u64(&c->rng), 20);
	if (err)
		failed(c, "going on", why.len ? strbuf_text(&why) : strerror(-err));
	strbuf_free(&why);
	workload_free(w);
	return err;
}

static int check(struct cuts *c, struct kiln_fs *fs)
{
	struct kiln_check_options options = {
		.struct_bytes = sizeof(options), .flags = KILN_CHECK_DATA, .ctx = c, .report = on_report
	};
	struct kiln_check_result *result = calloc(1, sizeof(*result));
	int err = kiln_check(fs, &options, result);

	if (err || result->errors)
		err = failed(c, "check", err ? strerror(-err) : result->kinds[0].name);
	free(result);
	return err;
}

static int export_disks(struct cuts *c, const char *prefix)
{
	char path[4096];
	int err = 0;

	for (unsigned i = 0; i < c->disks_nr && !err; i++) {
		snprintf(path, sizeof(path), "%s/%s.dev%u.img", c->dir, prefix, i);
		err = replay_export(c->replay, i, path);
	}
	return err ? failed(c, "export", strerror(-err)) : 0;
}

static int judge(struct cuts *c)
{
	char command[16384];
	int at = snprintf(command, sizeof(command), "timeout 500 '%s' fsck -n", c->upstream);

	if (export_disks(c, "judged"))
		return -EPROTO;
	for (unsigned i = 0; i < c->disks_nr; i++)
		at += snprintf(command + at, sizeof(command) - (size_t)at, " '%s/judged.dev%u.img'", c->dir, i);
	snprintf(command + at, sizeof(command) - (size_t)at, " </dev/null >'%s/judged.log' 2>&1", c->dir);
	return system(command) ? failed(c, "upstream's fsck", command) : 0;
}

/* In a process of its own: the time is at the cut, the power isn't off yet. */
static int cut(struct cuts *c, uint64_t ns)
{
	bool has_history = history_at(c, ns) != NULL;
	struct kiln_fs *fs;

	rng_init(&c->rng, c->seed ^ ns);
	if (replay_cut(c->replay, &c->rng))
		return -EPROTO;
	/* What is there without recovery is what recovery leaves. */
	if (!rng_below(&c->rng, 4)) {
		if (open_cut(c, 0, &fs) || verify(c, fs, ns, "before recovery"))
			return -EPROTO;
		kiln_close(fs);
	}
	if (open_cut(c, KILN_OPEN_WRITE, &fs) || verify(c, fs, ns, "after recovery"))
		return -EPROTO;
	bool goes_on = has_history && !rng_below(&c->rng, 4);
	if (goes_on && go_on(c, fs))
		return -EPROTO;
	if (kiln_shutdown(fs))
		return failed(c, "shutdown", "");
	kiln_close(fs);
	if (open_cut(c, 0, &fs) || (!goes_on && verify(c, fs, ns, "after a clean shutdown")) || check(c, fs))
		return -EPROTO;
	kiln_close(fs);
	return c->upstream && !rng_below(&c->rng, UPSTREAM_ONE_IN) ? judge(c) : 0;
}

/* The same cut again, for somebody to look at. */
static int keep(struct cuts *c, uint64_t ns)
{
	rng_init(&c->rng, c->seed ^ ns);
	return replay_cut(c->replay, &c->rng) || export_disks(c, "cut") ? -EPROTO : 0;
}

/* --- all of it --- */

static int ns_compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static int trace_cut(struct cuts *c, uint64_t nr)
{
	uint64_t *ns = calloc(nr, sizeof(*ns));
	struct replay_counts counts = replay_count(c->replay);
	uint64_t i;
	int err = 0;

	rng_init(&c->rng, c->seed + c->done);
	for (i = 0; i < nr; i++)
		ns[i] = replay_moment(c->replay, &c->rng);
	qsort(ns, nr, sizeof(*ns), ns_compare);
	for (i = 0; i < nr && !err; i++) {
		replay_advance(c->replay, ns[i]);
		uint64_t at_risk = replay_count(c->replay).at_risk;
		c->at_risk += at_risk;
		c->harmless += !at_risk;
		err = in_process(c, cut, ns[i]);
		if (err) {
			in_process(c, keep, ns[i]);
			printf("  cut %llu of %llu of this trace, at %llu ns\n", (unsigned long long)i + 1,
			       (unsigned long long)nr, (unsigned long long)ns[i]);
		}
	}
	printf("%llu cuts of %llu writes and %llu flushes; %u sessions of %u tasks on %u disks%s%s, %s\n",
	       (unsigned long long)i, (unsigned long long)counts.writes, (unsigned long long)counts.flushes,
	       c->sessions_nr, c->tasks_nr, c->disks_nr, c->has_latency ? ", slow" : "",
	       c->is_mounted ? ", mounted" : "", c->options);
	c->done += i;
	free(ns);
	return err;
}

static void trace_end(struct cuts *c)
{
	for (unsigned s = 0; s < c->sessions_nr; s++)
		if (c->work[s]) {
			c->promised += workload_count(c->work[s]).promises;
			workload_free(c->work[s]);
			c->work[s] = NULL;
		}
	if (c->replay)
		replay_free(c->replay);
	c->replay = NULL;
}

static int run(struct cuts *c)
{
	int err = 0;

	while (c->done < c->cuts && !err) {
		uint64_t nr = min(c->per_trace, c->cuts - c->done);

		err = record_all(c, c->seed + c->done);
		if (!err)
			err = trace_cut(c, nr);
		trace_end(c);
	}
	return err;
}

static void dir_remove(const struct cuts *c)
{
	char command[4096];

	snprintf(command, sizeof(command), "rm -rf '%s'", c->dir);
	if (system(command))
		printf("%s is left\n", c->dir);
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "cuts", required_argument, NULL, 'c' },
						 { "seed", required_argument, NULL, 's' },
						 { "per-trace", required_argument, NULL, 'p' },
						 { "ops", required_argument, NULL, 'o' },
						 { "mount", no_argument, NULL, 'm' },
						 { "verbose", no_argument, NULL, 'v' },
						 { NULL, 0, NULL, 0 } };
	struct cuts c = { .seed = random_u64() >> 16, .cuts = 100, .per_trace = 100, .ops = 150 };
	const char *temporary = getenv("TMPDIR");
	int option;

	while ((option = getopt_long(argc, argv, "v", options, NULL)) != -1)
		switch (option) {
		case 'c': c.cuts = strtoull(optarg, NULL, 0); break;
		case 's': c.seed = strtoull(optarg, NULL, 0); break;
		case 'p': c.per_trace = strtoull(optarg, NULL, 0); break;
		case 'o': c.ops = strtoull(optarg, NULL, 0); break;
		case 'm': c.is_mounted = true; break;
		case 'v': c.is_verbose = true; break;
		default: fprintf(stderr, "usage: see the head of cuts.c\n"); return 2;
		}
	if (c.is_mounted && (geteuid() || access("/dev/fuse", R_OK | W_OK))) {
		printf("MOUNT NOT TESTED: needs root and /dev/fuse\n");
		return SKIPPED;
	}
	c.upstream = getenv("KILN_UPSTREAM");
	snprintf(c.dir, sizeof(c.dir), "%s/kiln-cuts-XXXXXX", temporary ? temporary : "/tmp");
	if (!mkdtemp(c.dir)) {
		perror(c.dir);
		return 2;
	}
	snprintf(c.mountpoint, sizeof(c.mountpoint), "%s/mnt", c.dir);
	if (mkdir(c.mountpoint, 0700)) {
		perror(c.mountpoint);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("seed %llu\n", (unsigned long long)c.seed);
	int err = run(&c);
	if (c.is_mounted && err)
		umount2(c.mountpoint, MNT_DETACH);
	printf("%llu cuts (%llu with nothing at risk), %llu writes at risk, %llu promises\n",
	       (unsigned long long)c.done, (unsigned long long)c.harmless, (unsigned long long)c.at_risk,
	       (unsigned long long)c.promised);
	if (err)
		printf("FAILED; repeat: %s%s --cuts %llu --seed %llu --per-trace %llu --ops %llu\n  all of it is in "
		       "%s\n",
		       argv[0], c.is_mounted ? " --mount" : "", (unsigned long long)c.cuts, (unsigned long long)c.seed,
		       (unsigned long long)c.per_trace, (unsigned long long)c.ops, c.dir);
	else
		dir_remove(&c);
	return err ? 1 : 0;
}
