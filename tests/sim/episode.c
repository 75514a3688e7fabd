/*
 * Episodes: what happens to a filesystem while it is used. See sim.h; what is promised for each is in docs/promises.md.
 *
 * Power goes at a random write; or, exhaustively, at every one: before each write of the workload the whole simulation
 * is forked, the power goes in the child, which recovers, compares, goes on and ends, while the parent waits for it and
 * goes on as if nothing had happened. The same again in the child, as long as it recovers.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "btree/internal.h"
#include "engine/format.h"
#include "engine/fs_write.h"
#include "sim.h"

enum { CUT_SECONDS_MAX = 60, UPDATE_NODES = 2 };

const char *const episode_names[EPISODE_KIND_NR] = {
	[EPISODE_CLEAN] = "clean",
	[EPISODE_CUT] = "cut",
	[EPISODE_READ_ERRORS] = "read-errors",
	[EPISODE_READ_ERRORS_LASTING] = "read-errors-lasting",
	[EPISODE_WRITE_ERRORS] = "write-errors",
	[EPISODE_WRITE_ERRORS_LASTING] = "write-errors-lasting",
	[EPISODE_FLUSH_ERRORS] = "flush-errors",
	[EPISODE_FLUSH_ERRORS_LASTING] = "flush-errors-lasting",
	[EPISODE_SLOW] = "slow",
	[EPISODE_FULL] = "full",
	[EPISODE_NO_MEMORY] = "no-memory",
	[EPISODE_ROT] = "rot",
	[EPISODE_LOST_WRITES] = "lost-writes",
	[EPISODE_MISDIRECTED_WRITES] = "misdirected-writes",
	[EPISODE_VANISH] = "vanish",
	[EPISODE_FOREIGN] = "foreign",
	[EPISODE_ROLLED_BACK] = "rolled-back",
};

static unsigned below(struct sim *s, unsigned bound) { return (unsigned)rng_below(&s->rng, bound); }
static bool one_in(struct sim *s, unsigned n) { return !below(s, n); }

/* --- disks --- */

static void faults_clear(struct sim *s)
{
	for (unsigned i = 0; i < s->disks_nr; i++)
		if (s->faulty[i])
			device_fault_clear(s->faulty[i]);
}

/*
 * The disks are slow but where the journal is, or only there: fsync comes back while data and nodes are still being
 * written, or nodes are while entries aren't.
 */
static void make_parts_slow(struct sim *s)
{
	struct device_fault rule = { .kind = FAULT_LATENCY, .remaining = UINT64_MAX };
	bool is_beginning = one_in(s, 3);

	rule.per_million = 1000000;
	rule.latency_ns = 10000000ull << below(s, 6);
	for (unsigned i = 0; i < s->disks_nr; i++) {
		uint64_t bytes = s->faulty[i] ? s->faulty[i]->size_bytes : 0, limit = bytes >> (2 + below(s, 4));

		rule.begin_bytes = is_beginning ? 0 : limit;
		rule.end_bytes = is_beginning ? limit : bytes;
		rule.op = DEVICE_WRITE;
		if (bytes)
			device_fault_add(s->faulty[i], &rule);
		rule.op = DEVICE_FLUSH;
		if (bytes && is_beginning)
			device_fault_add(s->faulty[i], &rule);
	}
}

/* --- the end of an episode --- */

/* Close cleanly, look at it read-only, go on. */
static int reopen(struct sim *s)
{
	int err = compare_accounts(s);

	if (!err)
		err = error_to_errno(kiln_shutdown(s->fs));
	if (power_is_off(s->power))
		return -EIO;
	if (err)
		return failed(s, "shutdown", error_name(err));
	fs_end(s);
	COUNT(s, reopens, 1);
	err = fs_reopen(s, 0);
	if (!err)
		err = compare_exactly(s);
	if (!err)
		err = check(s);
	if (s->fs)
		fs_end(s);
	if (err || s->has_failed)
		return -EPROTO;
	workload_promise_all(s);
	return fs_reopen(s, KILN_OPEN_WRITE);
}

static void count_cut(struct sim *s, bool is_of_recovery)
{
	struct power_stats stats = power_stats_get(s->power);

	if (is_of_recovery) {
		COUNT(s, recovery_cuts, 1);
		COUNT(s, recovery_cuts_at_risk, stats.at_risk_writes != 0);
	} else {
		COUNT(s, cuts, 1);
		COUNT(s, cuts_at_risk, stats.at_risk_writes != 0);
		if (s->kind == EPISODE_CUT)
			COUNT(s, faults[s->kind], stats.at_risk_writes != 0);
	}
	COUNT(s, torn_writes, stats.torn_writes);
	COUNT(s, lost_writes, stats.lost_writes);
}

static void watch_cuts(struct sim *s);
static void watch_end(struct sim *s);

/*
 * Somebody who syncs again and again, until the power goes right behind that: most likely when the journal has let go
 * of entries, and what they said must be in the btrees; or when an operation or the replacing of a node was half-done
 * before and behind it.
 */
struct syncer {
	struct sim *s;
	struct rng rng;
	bool is_stopping;
	struct task *task;
};

static uint64_t oldest_entry(struct sim *s)
{
	struct journal_usage usage;

	journal_usage(s->fs->journal_writer, &usage);
	return usage.last_seq_ondisk;
}

/* A task that is about to shift or cut off what a file holds, which takes several transactions: its operation, or 0. */
static uint64_t operation_in_steps(struct sim *s)
{
	for (unsigned i = 0; i < s->tasks_nr; i++) {
		const struct workload *w = &s->tasks[i];
		const struct logged *last = w->log_nr ? &w->log[w->log_nr - 1] : NULL;

		if (last && last->is_in_doubt && (last->op.kind == OP_FALLOCATE || last->op.kind == OP_TRUNCATE))
			return w->op_nr * TASKS_MAX + i;
	}
	return 0;
}

/* How many updates of interior nodes have been begun, or are over. */
static uint64_t node_updates(struct sim *s, bool are_over)
{
	struct write_state *w = s->fs->trees->write;

	mutex_lock(&w->interior_lock);
	uint64_t nr = are_over ? w->updates_finished : w->updates_submitted;
	mutex_unlock(&w->interior_lock);
	return nr;
}

static void syncer_main(void *arg)
{
	struct syncer *y = arg;
	struct sim *s = y->s;
	/* Of the updates that are under way, and the oldest entry when they were met first. */
	uint64_t oldest = oldest_entry(s), updates = 0, oldest_then = oldest;

	while (!__atomic_load_n(&y->is_stopping, __ATOMIC_ACQUIRE) && !power_is_off(s->power)) {
		sleep_ns(1 + rng_below(&y->rng, 5000000));
		uint64_t in_steps = operation_in_steps(s), before = oldest;
		if (node_updates(s, true) >= updates) {
			updates = node_updates(s, false);
			oldest_then = oldest;
		}
		if (kiln_sync(s->fs))
			continue;
		oldest = oldest_entry(s);
		bool is_updating = node_updates(s, true) < updates;
		bool is_half_done = in_steps && operation_in_steps(s) == in_steps;
		unsigned one_of = 50;
		if (is_updating)
			one_of = oldest != oldest_then ? 1 : 10;
		else if (oldest != before || is_half_done)
			one_of = 3;
		if (rng_below(&y->rng, one_of))
			continue;
		s->is_stopping = true;
		power_cut(s->power);
	}
}

static void syncer_start(struct syncer *y, struct sim *s)
{
	*y = (struct syncer){ .s = s };
	rng_init(&y->rng, rng_u64(&s->rng));
	if (task_start(&y->task, "syncs", syncer_main, y))
		abort();
}

static void syncer_stop(struct syncer *y)
{
	__atomic_store_n(&y->is_stopping, true, __ATOMIC_RELEASE);
	task_join(y->task);
}

/* Before anything has been changed, what is written is what the journal had. */
static int write_back(struct sim *s)
{
	bool is_cut = one_in(s, 2);
	struct syncer y;

	if (is_cut) {
		make_parts_slow(s);
		syncer_start(&y, s);
	}
	int err = btrees_flush_all(s->fs->trees);
	if (is_cut)
		syncer_stop(&y);
	faults_clear(s);
	return err && !power_is_off(s->power) ? failed(s, "nodes can't be written", error_name(err)) : 0;
}

/* Open it for writing, whatever happens on the way, and compare. */
static int recover(struct sim *s)
{
	int err;

	for (;;) {
		bool is_exhaustive = s->args->is_exhaustive && s->depth <= s->args->depth;

		power_restore(s->power);
		if (is_exhaustive)
			watch_cuts(s);
		else if (one_in(s, 3) && !s->args->is_exhaustive)
			power_cut_after(s->power, 1 + below(s, 60));
		err = fs_reopen(s, KILN_OPEN_WRITE);
		if (!err && !s->args->is_exhaustive && one_in(s, 2))
			err = write_back(s);
		watch_end(s);
		if (!err && power_is_off(s->power)) { /* something in the background was cut */
			fs_kill(s);
			err = -EIO;
		}
		if (err != -EIO)
			break;
		count_cut(s, true);
	}
	if (!err)
		power_cut_after(s->power, 0);
	return err ? err : s->has_failed ? -EPROTO : compare_after_crash(s);
}

static bool is_of_writes(enum episode_kind kind)
{
	return kind == EPISODE_WRITE_ERRORS || kind == EPISODE_WRITE_ERRORS_LASTING;
}

/* With nothing but a cache that fails, it goes on, and is shut down. */
static void cache_was_not_missed(struct sim *s, int shutdown_err)
{
	int err = s->fs->shut_down ? s->fs->shut_down : shutdown_err;

	if (err && s->has_bad_cache)
		failed(s, "a cache that failed was missed", error_name(err));
}

/* The devices are well again. Opened anew it is in a state that is allowed; if it was closed cleanly, in that one. */
static int end_faulty(struct sim *s)
{
	bool is_clean = one_in(s, 2);
	int err = s->fs->shut_down ? 0 : compare_reserved(s);

	if (err)
		return err;
	err = is_clean ? error_to_errno(kiln_shutdown(s->fs)) : 0;

	is_clean &= !err;
	s->totals->went_readonly += s->fs->shut_down != 0;
	/* A copy that wasn't written is given up after its node has got its pointers: if that could be committed. */
	if (is_of_writes(s->kind) && s->fs->shut_down)
		s->bad_nodes_max += UPDATE_NODES;
	cache_was_not_missed(s, err);
	memory_fail(0, 0);
	fs_kill(s);
	s->is_faulty = s->has_bad_cache = false;
	if (!is_clean && one_in(s, 3)) {
		power_cut(s->power);
		count_cut(s, false);
		power_restore(s->power);
	}
	/* What failed before it was clean isn't in doubt any more, but whether it happened is: the log says both. */
	(void)is_clean;
	err = s->has_failed ? -EPROTO : fs_reopen(s, KILN_OPEN_WRITE);
	return err ? err : compare_after_crash(s);
}

/* --- power --- */

static void cut_before_write(void *ctx);

static void watch_cuts(struct sim *s)
{
	s->cut_path[s->depth] = 0;
	power_watch(s->power, cut_before_write, s);
}

static void watch_end(struct sim *s) { power_watch(s->power, NULL, NULL); }

/* The power goes with the write that is about to be made, which is number cut_path[depth] of this depth. */
static void cut_here(struct sim *s)
{
	uint64_t seed = s->seed;

	for (unsigned i = 0; i <= s->depth; i++)
		seed = seed * 0x9e3779b97f4a7c15 + s->cut_path[i];
	watch_end(s);
	power_reseed(s->power, seed);
	power_cut_after(s->power, 1);
	s->depth++;
	s->is_stopping = true;
}

static void cut_before_write(void *ctx)
{
	struct sim *s = ctx;
	uint64_t nr = ++s->cut_path[s->depth];
	int status = 0;

	if (s->args->cut_at_nr) {
		if (s->depth < s->args->cut_at_nr && nr == s->args->cut_at[s->depth])
			cut_here(s);
		return;
	}
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		watchdog(CUT_SECONDS_MAX);
		cut_here(s);
		return;
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		abort();
	watchdog(CUT_SECONDS_MAX); /* for this one to go on */
	if (WIFSIGNALED(status)) {
		char text[64];

		snprintf(text, sizeof(text), "signal %d", WTERMSIG(status));
		s->depth++;
		failed(s, "killed", text);
		s->depth--;
	}
	if (status) {
		s->has_failed = s->is_stopping = true;
		watch_end(s);
	}
}

/* The rule holds on one disk, or on all. Is it one without which nothing is lost? */
static bool fault_rule(struct sim *s, const struct device_fault *rule, bool may_be_all)
{
	unsigned one = may_be_all && one_in(s, 4) ? UINT32_MAX : below(s, s->disks_nr);

	for (unsigned i = 0; i < s->disks_nr; i++)
		if (s->faulty[i] && (one == UINT32_MAX || one == i))
			device_fault_add(s->faulty[i], rule);
	return is_cache(s, one);
}

/* Requests that take their time leave more of them under way when the power goes. */
static void make_slow(struct sim *s, unsigned op_first)
{
	for (unsigned op = op_first; op <= DEVICE_DISCARD; op++) {
		struct device_fault rule = { .kind = FAULT_LATENCY, .op = op, .remaining = UINT64_MAX };

		rule.per_million = 1000 << below(s, 9);
		rule.latency_ns = 1000000ull << below(s, 14);
		fault_rule(s, &rule, true);
	}
}

/* Close it while the power goes, or just before it does: nearly all nodes are written then, and what says that it is
 * clean. */
static int shut_down_cut(struct sim *s)
{
	if (!s->args->is_exhaustive)
		power_cut_after(s->power, 1 + below(s, 60));
	int err = error_to_errno(kiln_shutdown(s->fs));

	if (power_is_off(s->power))
		return 0;
	if (err)
		return failed(s, "shutdown", error_name(err));
	workload_closed(s);
	return 0;
}

static int episode_cut(struct sim *s, uint64_t ops)
{
	bool is_at_shutdown = s->args->is_exhaustive || one_in(s, 3);
	int err = 0;

	bool is_partly_slow = !s->args->is_exhaustive && one_in(s, 2);
	/* It would flush what only fsync has to, of what is overwritten in place. */
	bool has_syncer = is_partly_slow && !is_at_shutdown && !s->is_nocow && !one_in(s, 3);
	struct syncer y;
	if (is_partly_slow)
		make_parts_slow(s);
	else if (!s->args->is_exhaustive && one_in(s, 2))
		make_slow(s, DEVICE_WRITE);
	/* As soon as fsync has promised something: what goes by the journal gets there anyway, a moment later. */
	bool is_by_fsyncs = !is_at_shutdown && !has_syncer && (is_partly_slow || (s->is_nocow && one_in(s, 2)));
	s->cut_after_fsyncs = is_by_fsyncs ? 1 + below(s, 6) : 0;
	if (s->args->is_exhaustive && s->depth == 0)
		watch_cuts(s);
	else if (!s->cut_after_fsyncs && !is_at_shutdown)
		power_cut_after(s->power, 1 + rng_below(&s->rng, 2 + 3 * ops * s->tasks_nr));
	struct operation_limits usual = s->limits;
	if (has_syncer) {
		s->limits.weights[OP_FALLOCATE] *= 5;
		s->limits.weights[OP_TRUNCATE] *= 2;
		s->writes_back_often = true;
		syncer_start(&y, s);
	}
	/* What is overwritten in place, and synced, is what only the flush by fsync makes durable. */
	if (is_by_fsyncs && s->is_nocow) {
		s->limits.weights[OP_WRITE] *= 5;
		s->limits.weights[OP_FSYNC] *= 3;
	}
	workload_run(s, ops);
	if (has_syncer)
		syncer_stop(&y);
	s->writes_back_often = false;
	s->limits = usual;
	if (is_at_shutdown && !power_is_off(s->power) && !s->has_failed)
		err = shut_down_cut(s);
	watch_end(s);
	if (err || s->has_failed)
		return -EPROTO;
	s->cut_after_fsyncs = 0;
	power_cut(s->power);
	count_cut(s, false);
	fs_kill(s);
	err = recover(s);
	/* What was recovered can be gone on with. */
	if (!err && s->args->is_exhaustive) {
		workload_run(s, 3);
		err = s->has_failed ? -EPROTO : reopen(s);
	} else if (!err && one_in(s, 3)) {
		err = reopen(s);
	}
	return err;
}

/* --- errors --- */

static uint64_t faults_fired(struct sim *s)
{
	uint64_t counts[FAULT_KIND_NR], sum = 0;

	for (unsigned i = 0; i < s->disks_nr; i++) {
		if (!s->faulty[i])
			continue;
		device_fault_counts(s->faulty[i], counts);
		for (unsigned k = 0; k < FAULT_KIND_NR; k++)
			sum += counts[k];
	}
	return sum;
}

static int episode_errors(struct sim *s, uint64_t ops, enum device_op op, bool is_lasting)
{
	struct device_fault rule = { .kind = FAULT_ERROR, .op = op, .err = -EIO };

	/* The host of an image is full, say: no more than an error for who lives in it. */
	if (op == DEVICE_WRITE && one_in(s, 2))
		rule.err = -ENOSPC;
	else if (op == DEVICE_READ && one_in(s, 3))
		rule.kind = FAULT_SHORT_READ;
	rule.per_million = is_lasting ? 1000000 : 1000 << below(s, 9);
	rule.remaining = is_lasting ? UINT64_MAX : 1 + below(s, 6);
	workload_run(s, below(s, (unsigned)ops));
	s->has_bad_cache = fault_rule(s, &rule, true);
	s->is_faulty = !s->has_bad_cache;
	workload_run(s, ops);
	COUNT(s, faults[s->kind], faults_fired(s));
	/* What was written meanwhile may have fewer copies; nothing makes more of them again yet. */
	s->is_redundant &= op == DEVICE_READ || s->has_bad_cache || !faults_fired(s);
	if (!is_lasting || one_in(s, 2))
		faults_clear(s);
	return end_faulty(s);
}

static int episode_slow(struct sim *s, uint64_t ops)
{
	make_slow(s, DEVICE_READ);
	workload_run(s, ops);
	COUNT(s, faults[s->kind], faults_fired(s));
	faults_clear(s);
	return s->has_failed ? -EPROTO : reopen(s);
}

static int episode_no_memory(struct sim *s, uint64_t ops)
{
	uint64_t before = memory_failures();
	char why[KILN_ERROR_BYTES] = "";

	s->is_faulty = true;
	memory_fail(rng_u64(&s->rng), 2u << below(s, 11));
	workload_run(s, ops);
	if (one_in(s, 2))
		memory_fail(0, 0);
	int err = end_faulty(s);
	/* Opening it, too. */
	if (!err)
		err = reopen(s);
	for (unsigned i = 0; i < 3 && !err; i++) {
		fs_kill(s);
		s->is_faulty = true;
		memory_fail(rng_u64(&s->rng), 2u << below(s, 11));
		int open_err = fs_try_open(s, one_in(s, 2) ? KILN_OPEN_WRITE : 0, why);
		memory_fail(0, 0);
		if (!open_err)
			fs_kill(s);
		s->is_faulty = false;
		err = fs_reopen(s, KILN_OPEN_WRITE);
		if (!err)
			err = compare_exactly(s);
	}
	COUNT(s, faults[s->kind], memory_failures() - before);
	return err;
}

/*
 * Files without names take nearly all space that there is, so that the workload takes the rest: one whole, then, in
 * turns with it, pieces of another, which often goes again and leaves buckets that are half used.
 */
struct ballast {
	struct kiln_node node[2];
	bool is_held[2];
};

static int ballast_add(struct sim *s, struct ballast *b, unsigned nr, uint64_t at, uint64_t bytes)
{
	static const struct kiln_create attr = { .mode = S_IFREG | 0600 };
	struct kiln_stat st;

	if (!b->is_held[nr]) {
		int err = kiln_create_unnamed(s->fs, kiln_root(s->fs), &attr, &st);
		if (err)
			return err;
		b->node[nr] = st.node;
		b->is_held[nr] = true;
	}
	return kiln_fallocate(s->fs, b->node[nr], 0, at, bytes);
}

static void ballast_release(struct sim *s, struct ballast *b, unsigned nr)
{
	if (b->is_held[nr])
		kiln_release(s->fs, b->node[nr]);
	b->is_held[nr] = false;
}

static void ballast_make(struct sim *s, struct ballast *b)
{
	uint64_t left = rng_below(&s->rng, 8 << 20), pieces = rng_below(&s->rng, 4 << 20);
	uint64_t piece = s->block_bytes << below(s, 7), at = 0;
	struct kiln_usage u;

	if (kiln_usage(s->fs, &u) || u.available <= left + pieces)
		return;
	uint64_t bytes = (u.available - left - pieces) / piece * piece;
	for (uint64_t chunk = 1 << 20; chunk >= piece && at < bytes;) {
		uint64_t now = min(chunk, bytes - at);

		if (!ballast_add(s, b, 0, at, now))
			at += now;
		else
			chunk /= 2;
	}
	for (uint64_t end = at + pieces; at < end && !ballast_add(s, b, at / piece % 2, at, piece);)
		at += piece;
	if (one_in(s, 2))
		ballast_release(s, b, 1);
}

/* Filled up, or nearly: the end of that is a clean one, or not. */
static int end_full(struct sim *s, bool is_cut)
{
	if (s->has_failed)
		return -EPROTO;
	if (is_cut) {
		power_cut(s->power);
		count_cut(s, false);
		fs_kill(s);
		return recover(s);
	}
	return s->fs->shut_down ? end_faulty(s) : reopen(s);
}

/*
 * Filled up, then emptied. Where not even a node finds space any more the filesystem goes read-only; what was promised
 * is there all the same.
 */
static int episode_full(struct sim *s, uint64_t ops)
{
	struct operation_limits usual = s->limits;
	uint64_t before = s->totals->no_space;
	struct ballast ballast = { 0 };
	bool is_cut = one_in(s, 3);

	s->limits.total_bytes_max = s->limits.file_bytes_max = 24 << 20;
	s->limits.weights[OP_WRITE] *= 8;
	s->is_faulty = true;
	ballast_make(s, &ballast);
	if (is_cut)
		power_cut_after(s->power, 1 + rng_below(&s->rng, 2 + 6 * ops * s->tasks_nr));
	workload_run(s, ops * 2);
	s->is_faulty = false;
	COUNT(s, faults[s->kind], s->totals->no_space - before);
	int err = end_full(s, is_cut);
	s->limits = usual;
	s->limits.weights[OP_UNLINK] *= 20;
	s->limits.weights[OP_TRUNCATE] *= 10;
	s->is_faulty = true;
	if (!err) {
		ballast = (struct ballast){ 0 };
		ballast_make(s, &ballast);
		workload_run(s, ops);
	}
	if (!err && one_in(s, 2)) {
		/* All of it goes at once, while others go on. */
		ballast_release(s, &ballast, 0);
		workload_run(s, ops);
	}
	s->is_faulty = false;
	s->limits = usual;
	return err ? err : end_full(s, false);
}

/* --- what is on the disks changes --- */

enum { ROT_MAX = 32, ROT_BYTES = 512 };

struct rot {
	unsigned disk;
	uint64_t at;
	uint8_t before[ROT_BYTES], after[ROT_BYTES];
};

static uint64_t disk_bytes(struct sim *s, unsigned nr)
{
	struct device *dev;
	uint64_t bytes = 0;

	if (!power_disk_open(s->power, nr, &dev)) {
		bytes = dev->size_bytes;
		device_close(dev);
	}
	return bytes;
}

/* Of the same range of keys, and newer? */
static bool node_replaces(const struct btree_node_disk *node, const struct btree_node_disk *old)
{
	uint64_t flags = le64_get(node->flags), flags_old = le64_get(old->flags);

	return btree_node_id(flags) == btree_node_id(flags_old) &&
	       btree_node_level(flags) == btree_node_level(flags_old) &&
	       !memcmp(&node->min_key, &old->min_key, sizeof(node->min_key)) &&
	       btree_node_generation(flags) > btree_node_generation(flags_old);
}

/*
 * A block in the first set of a btree node that most likely is in use, half of the time of those that hold what users
 * see; or any block if no node is found.
 */
static uint64_t block_of_a_node(struct sim *s, const uint8_t *bytes, uint64_t blocks)
{
	enum { SET_BLOCKS = 8 };
	uint64_t first = rng_below(&s->rng, blocks), inside = rng_below(&s->rng, SET_BLOCKS);
	unsigned wanted = one_in(s, 2) ? below(s, BTREE_XATTRS + 1) : UINT32_MAX;
	const struct btree_node_disk *found = NULL;

	for (uint64_t i = 0; i + SET_BLOCKS <= blocks; i++) {
		const struct btree_node_disk *node =
			(const void *)(bytes + (first + i) % (blocks - SET_BLOCKS) * ROT_BYTES);

		if (le64_get(node->magic) == s->node_magic &&
		    (wanted == UINT32_MAX || btree_node_id(le64_get(node->flags)) == wanted) &&
		    (!found || node_replaces(node, found)))
			found = node;
	}
	return found ? (uint64_t)((const uint8_t *)found - bytes) + inside * ROT_BYTES : first * ROT_BYTES;
}

/* Damage a block that something is in. Most of what is on a disk is data or free: half of the time, a node. */
static void rot_make(struct sim *s, struct rot *r, unsigned disk)
{
	enum { NODE_TRIES = 50 };
	static const uint8_t nothing[ROT_BYTES];
	uint8_t *bytes = power_disk_bytes(s->power, disk);
	uint64_t blocks = disk_bytes(s, disk) / ROT_BYTES;
	bool is_node = one_in(s, 2);

	r->disk = disk;
	for (unsigned i = 0; i < 20000; i++) {
		/* It may have no nodes: a cache, for one. To look at all of it takes long. */
		is_node &= i < NODE_TRIES;
		r->at = is_node ? block_of_a_node(s, bytes, blocks) : rng_below(&s->rng, blocks) * ROT_BYTES;
		if (memcmp(bytes + r->at, nothing, ROT_BYTES))
			break;
	}
	memcpy(r->before, bytes + r->at, ROT_BYTES);
	if (one_in(s, 3))
		memset(bytes + r->at, (int)below(s, 256), ROT_BYTES);
	else {
		unsigned at = below(s, ROT_BYTES);

		bytes[r->at + at] ^= (uint8_t)(1u << below(s, 8));
	}
	memcpy(r->after, bytes + r->at, ROT_BYTES);
}

/* Heal what hasn't been overwritten meanwhile. */
static void rot_undo(struct sim *s, const struct rot *r)
{
	uint8_t *at = power_disk_bytes(s->power, r->disk) + r->at;

	if (!memcmp(at, r->after, ROT_BYTES))
		memcpy(at, r->before, ROT_BYTES);
}

static void disks_settle(struct sim *s)
{
	for (unsigned i = 0; i < s->disks_nr; i++)
		power_disk_settle(s->power, i);
}

/* Everything that can be read is right; with copies on other disks, everything can be; what can't is told of. */
static int look_at_damage(struct sim *s, bool has_copies, bool may_lose_disk)
{
	char why[KILN_ERROR_BYTES] = "";

	s->has_damage_reports = false;
	int err = fs_try_open(s, 0, why);
	/* A disk none of whose superblocks is left is as good as gone. */
	if (err && has_copies && may_lose_disk)
		err = fs_try_open(s, KILN_OPEN_DEGRADED, why);
	if (err)
		return has_copies ? failed(s, "not opened, although there are copies", why) : 0;
	if (has_copies)
		err = compare_exactly(s);
	else
		err = s->has_data_checksums ? compare_damaged(s) : 0;
	if (!err && !has_copies && s->has_data_checksums)
		err = compare_unless_told(s);
	fs_end(s);
	return err;
}

static int close_cleanly(struct sim *s)
{
	int err = compare_accounts(s);

	if (!err)
		err = error_to_errno(kiln_shutdown(s->fs));
	fs_end(s);
	if (err)
		return failed(s, "shutdown", error_name(err));
	disks_settle(s);
	workload_closed(s);
	return 0;
}

/* It is opened as it is, holds what it must, and can be gone on with. Then it is closed. */
static int go_on(struct sim *s, uint64_t ops)
{
	int err = fs_reopen(s, KILN_OPEN_WRITE);

	if (!err)
		err = compare_after_crash(s);
	if (err)
		return err;
	workload_run(s, ops);
	return s->has_failed ? -EPROTO : close_cleanly(s);
}

/* Nothing is wrong with the disks any more: it holds what it must, and the run goes on. */
static int come_back(struct sim *s)
{
	int err = fs_reopen(s, KILN_OPEN_WRITE);

	if (!err)
		err = compare_after_crash(s);
	return err ? err : reopen(s);
}

/* One at a time: where several are, one of them is told of anyway. */
static int look_at_single_rots(struct sim *s, unsigned disk, bool has_copies)
{
	enum { SINGLE_NR = 6 };
	struct rot rot;
	int err = 0;

	for (unsigned i = 0; i < SINGLE_NR && !err; i++) {
		rot_make(s, &rot, disk);
		COUNT(s, faults[s->kind], 1);
		err = look_at_damage(s, has_copies, false);
		rot_undo(s, &rot);
	}
	return err;
}

static int episode_rot(struct sim *s, uint64_t ops)
{
	unsigned nr = 1u << below(s, 6); /* in the order of the declarations */
	unsigned disk = below(s, s->disks_nr);
	bool has_copies = s->is_redundant || is_cache(s, disk);
	struct rot rots[ROT_MAX];

	workload_run(s, ops);
	int err = s->has_failed ? -EPROTO : close_cleanly(s);
	if (err)
		return err;
	s->is_faulty = true;
	err = look_at_single_rots(s, disk, has_copies);
	for (unsigned i = 0; i < nr; i++)
		rot_make(s, &rots[i], disk);
	COUNT(s, faults[s->kind], nr);
	if (!err)
		err = look_at_damage(s, has_copies, true);
	char why[KILN_ERROR_BYTES] = "";
	bool is_open = !err && !fs_try_open(s, KILN_OPEN_WRITE, why);
	if (is_open && s->fs->is_writable) {
		workload_run(s, ops);
		if (one_in(s, 2))
			kiln_shutdown(s->fs);
	}
	if (is_open)
		fs_kill(s);
	disks_settle(s);
	for (unsigned i = nr; i--;)
		rot_undo(s, &rots[i]);
	s->is_faulty = false;
	return err ? err : come_back(s);
}

/* What was written wrongly stays there: nothing can follow. */
static int episode_bad_writes(struct sim *s, uint64_t ops, enum device_fault_kind kind)
{
	struct device_fault rule = { .kind = kind, .op = DEVICE_WRITE };

	rule.per_million = 2000 << below(s, 8);
	rule.remaining = 1 + below(s, 4);
	s->is_faulty = true;
	bool has_copies = fault_rule(s, &rule, false) || s->is_redundant;
	workload_run(s, ops);
	COUNT(s, faults[s->kind], faults_fired(s));
	bool has_fired = faults_fired(s) != 0;
	bool is_known = !s->has_failed;
	for (unsigned i = 0; i < s->tasks_nr; i++)
		is_known &= !s->tasks[i].has_stopped;
	faults_clear(s);
	is_known &= !error_to_errno(kiln_shutdown(s->fs));
	fs_kill(s);
	disks_settle(s);
	if (is_known)
		workload_closed(s);
	int err = is_known ? look_at_damage(s, has_copies || !has_fired, false) : 0;
	s->is_over = true;
	return err;
}

/* --- devices that come and go --- */

static int episode_vanish(struct sim *s, uint64_t ops)
{
	unsigned disk = below(s, s->disks_nr);
	struct device_fault rule = {
		.kind = FAULT_ERROR, .err = -EIO, .per_million = 1000000, .remaining = UINT64_MAX
	};

	workload_run(s, below(s, (unsigned)ops));
	s->has_bad_cache = is_cache(s, disk);
	s->is_faulty = !s->has_bad_cache;
	for (unsigned op = DEVICE_READ; op <= DEVICE_DISCARD; op++) {
		rule.op = op;
		device_fault_add(s->faulty[disk], &rule);
	}
	workload_run(s, ops);
	COUNT(s, faults[s->kind], 1);
	cache_was_not_missed(s, one_in(s, 2) ? error_to_errno(kiln_shutdown(s->fs)) : 0);
	s->totals->went_readonly += s->fs->shut_down != 0;
	fs_kill(s);
	s->is_faulty = s->has_bad_cache = false;
	if (one_in(s, 2)) {
		power_cut(s->power);
		count_cut(s, false);
		power_restore(s->power);
	}
	int err = s->has_failed ? -EPROTO : 0;
	if (!err && (is_cache(s, disk) || (s->is_redundant && s->metadata_required + s->has_cache < s->disks_nr))) {
		/* Without it everything is there, and can be gone on with. */
		s->disks_missing = 1u << disk;
		err = go_on(s, ops);
		s->disks_missing = 0;
	}
	s->is_redundant &= is_cache(s, disk);
	/* It is back, as it was. */
	return err ? err : come_back(s);
}

/* Make something else of a disk: another filesystem of the same kind, or noise. */
static int foreign_make(struct sim *s, unsigned disk)
{
	enum { FILESYSTEM_BYTES_MIN = 20 << 20 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format), .options = "block_size=4k" };
	struct kiln_format_device device = { .bucket_bytes = 128 << 10 };
	struct device *dev;
	char why[KILN_ERROR_BYTES] = "";
	uint8_t *bytes = power_disk_bytes(s->power, disk);
	uint64_t size = disk_bytes(s, disk);

	if (one_in(s, 3) || size < FILESYSTEM_BYTES_MIN) {
		for (uint64_t at = 0; at < size; at += 4096)
			for (unsigned i = 0; i < 64; i++)
				bytes[at + i] = (uint8_t)(at / 4096 * 31 + i);
		return 0;
	}
	int err = power_disk_open(s->power, disk, &dev);
	if (!err)
		err = fs_format_devices(&dev, &device, 1, &format, why);
	device_close(dev);
	power_disk_settle(s->power, disk);
	return err ? failed(s, "format of the foreign disk", why) : 0;
}

static int episode_foreign(struct sim *s, uint64_t ops)
{
	unsigned disk = below(s, s->disks_nr);
	uint64_t size = disk_bytes(s, disk);
	uint8_t *own = malloc(size), *foreign = malloc(size);
	char why[KILN_ERROR_BYTES] = "";

	if (!own || !foreign)
		abort();
	workload_run(s, ops);
	int err = s->has_failed ? -EPROTO : close_cleanly(s);
	if (err)
		goto out;
	memcpy(own, power_disk_bytes(s->power, disk), size);
	err = foreign_make(s, disk);
	memcpy(foreign, power_disk_bytes(s->power, disk), size);
	COUNT(s, faults[s->kind], 1);
	s->is_faulty = true;
	/* With it: it is never taken for the one that was there. Alone it is one that writing would begin. */
	unsigned flags = s->disks_nr > 1 ? KILN_OPEN_WRITE : 0;
	bool is_open = !err && !fs_try_open(s, flags | (one_in(s, 2) ? KILN_OPEN_DEGRADED : 0), why);
	if (is_open && s->disks_nr == 1)
		err = failed(s, "another filesystem was opened as this one", "");
	if (is_open && !err && s->fs->is_writable && s->is_redundant) {
		workload_run(s, ops);
		s->is_redundant = false; /* there was one disk less for copies */
	}
	if (is_open && !err)
		kiln_shutdown(s->fs);
	if (is_open)
		fs_kill(s);
	s->is_faulty = false;
	disks_settle(s);
	if (!err && memcmp(foreign, power_disk_bytes(s->power, disk), size))
		err = failed(s, "another filesystem's device was written to", "");
	memcpy(power_disk_bytes(s->power, disk), own, size);
	if (!err)
		err = come_back(s);
out:
	free(own);
	free(foreign);
	return err;
}

/*
 * A disk as it was a while ago. Where there are checksums what it holds isn't taken for new, and copies on others
 * serve. With copies of everything it can be gone on with, too, after a crash as well; but not if it is encrypted:
 * whoever rolls back and writes then uses nonces again.
 */
static int episode_rolled_back(struct sim *s, uint64_t ops)
{
	unsigned disk = below(s, s->disks_nr);
	bool is_crashed = s->is_redundant && one_in(s, 2);
	uint64_t size = disk_bytes(s, disk);
	uint8_t *before = malloc(size), *after = malloc(size);
	uint8_t *bytes = power_disk_bytes(s->power, disk);

	if (!before || !after)
		abort();
	workload_run(s, 1 + below(s, (unsigned)ops));
	int err = s->has_failed ? -EPROTO : close_cleanly(s);
	memcpy(before, bytes, size);
	if (!err)
		err = fs_reopen(s, KILN_OPEN_WRITE);
	if (!err)
		workload_run(s, ops);
	if (!err && is_crashed)
		fs_kill(s);
	else if (!err)
		err = s->has_failed ? -EPROTO : close_cleanly(s);
	if (err)
		goto out;
	disks_settle(s);
	memcpy(after, bytes, size);
	memcpy(bytes, before, size);
	COUNT(s, faults[s->kind], 1);
	s->is_faulty = true;
	if (!is_crashed)
		err = look_at_damage(s, s->is_redundant || is_cache(s, disk), false);
	if (!err && s->is_redundant && !s->is_encrypted) {
		err = go_on(s, ops);
		if (!err)
			err = look_at_damage(s, true, false);
		/* What nobody read is old still. */
		s->is_over = true;
	} else if (!err) {
		memcpy(bytes, after, size);
		s->is_faulty = false;
		err = come_back(s);
	}
	s->is_faulty = false;
out:
	free(before);
	free(after);
	return err;
}

/* --- the run --- */

static int episode_run(struct sim *s, uint64_t ops)
{
	switch (s->kind) {
	case EPISODE_CLEAN: workload_run(s, ops); return s->has_failed ? -EPROTO : reopen(s);
	case EPISODE_CUT: return episode_cut(s, ops);
	case EPISODE_READ_ERRORS: return episode_errors(s, ops, DEVICE_READ, false);
	case EPISODE_READ_ERRORS_LASTING: return episode_errors(s, ops, DEVICE_READ, true);
	case EPISODE_WRITE_ERRORS: return episode_errors(s, ops, DEVICE_WRITE, false);
	case EPISODE_WRITE_ERRORS_LASTING: return episode_errors(s, ops, DEVICE_WRITE, true);
	case EPISODE_FLUSH_ERRORS: return episode_errors(s, ops, DEVICE_FLUSH, false);
	case EPISODE_FLUSH_ERRORS_LASTING: return episode_errors(s, ops, DEVICE_FLUSH, true);
	case EPISODE_SLOW: return episode_slow(s, ops);
	case EPISODE_FULL: return episode_full(s, ops);
	case EPISODE_NO_MEMORY: return episode_no_memory(s, ops);
	case EPISODE_ROT: return episode_rot(s, ops);
	case EPISODE_LOST_WRITES: return episode_bad_writes(s, ops, FAULT_LOST_WRITE);
	case EPISODE_MISDIRECTED_WRITES: return episode_bad_writes(s, ops, FAULT_MISDIRECTED_WRITE);
	case EPISODE_VANISH: return episode_vanish(s, ops);
	case EPISODE_FOREIGN: return episode_foreign(s, ops);
	case EPISODE_ROLLED_BACK: return episode_rolled_back(s, ops);
	default: abort();
	}
}

/* Wrong bytes of data that has no checksum can't be told from right ones. */
static bool is_undetectable(const struct sim *s, unsigned kind)
{
	return (!s->has_data_checksums && (kind == EPISODE_ROT || kind == EPISODE_LOST_WRITES ||
					   kind == EPISODE_MISDIRECTED_WRITES || kind == EPISODE_ROLLED_BACK)) ||
	       (kind == EPISODE_ROLLED_BACK && s->disks_nr == 1);
}

/* Where what a device was told to write isn't there, or what it holds is old. */
static bool leaves_bad_copies(enum episode_kind kind)
{
	return is_of_writes(kind) || kind == EPISODE_FLUSH_ERRORS || kind == EPISODE_FLUSH_ERRORS_LASTING ||
	       kind == EPISODE_LOST_WRITES || kind == EPISODE_MISDIRECTED_WRITES || kind == EPISODE_VANISH ||
	       kind == EPISODE_ROLLED_BACK;
}

static enum episode_kind kind_draw(struct sim *s)
{
	unsigned kind;

	/* Power is lost more often than anything else. */
	if (s->args->kinds & 1u << EPISODE_CUT && one_in(s, 3))
		return EPISODE_CUT;
	do
		kind = below(s, EPISODE_KIND_NR);
	while (!(s->args->kinds >> kind & 1));
	return is_undetectable(s, kind) ? EPISODE_CLEAN : kind;
}

static void limits_make(struct sim *s)
{
	struct operation_limits *l = &s->limits;

	*l = operation_limits_default;
	l->is_nocow = s->is_nocow;
	l->has_data_checksums = s->has_data_checksums;
	l->has_targets = s->disks_nr > 1;
	l->data_replicas_min = s->data_replicas;
	l->data_replicas_max = s->is_nocow || s->is_restricted ? s->data_replicas : min(s->disks_nr, 3u);
	l->batch_bytes_max = s->node_bytes < 16 << 10 ? 0 : min(s->extent_bytes_max, 64u << 10);
	if (!s->has_acls)
		l->weights[OP_SETACL] = 0;
	/* What a file held that is made with its contents is nothing that could be in place. */
	if (s->is_nocow)
		l->weights[OP_BATCH] = 0;
}

int episodes_run(struct sim *s)
{
	int err = config_make(s);

	s->tasks_nr = 1 + below(s, s->args->tasks_max);
	limits_make(s);
	if (s->is_nocow) {
		/* Few other reasons to flush, and much that has to be. */
		s->tasks_nr = s->seed / 4 % 4 ? 1 : s->tasks_nr;
		s->limits.weights[OP_FSYNC] *= 6;
		s->limits.weights[OP_WRITE] *= 3;
	}
	char tasks[16];
	snprintf(tasks, sizeof(tasks), "tasks=%u", s->tasks_nr);
	option_count(s, tasks);
	s->limits.total_bytes_max /= s->tasks_nr;
	s->limits.files_max /= s->tasks_nr;
	if (!err)
		err = workload_init(s);
	for (s->episode = 0; !err && !s->is_over && s->episode < s->args->episodes; s->episode++) {
		rng_init(&s->rng, s->seed ^ (s->episode + 1) * 0xd1342543de82ef95);
		s->kind = kind_draw(s);
		if (!is_kept(s->args, (struct step_id){ s->episode, 0, UINT32_MAX }))
			continue;
		workload_remember(s, (struct step_id){ s->episode, 0, UINT32_MAX });
		if (s->args->is_traced)
			printf("episode %u: %s\n", s->episode, episode_names[s->kind]);
		COUNT(s, episodes[s->kind], 1);
		s->may_have_bad_copies |= leaves_bad_copies(s->kind);
		if (!s->args->is_traced)
			watchdog(CUT_SECONDS_MAX);
		err = episode_run(s, 1 + rng_below(&s->rng, s->args->ops));
	}
	if (s->fs && !err && !s->has_failed)
		err = reopen(s);
	if (s->fs && (err || s->has_failed))
		fs_kill(s);
	else if (s->fs)
		fs_end(s);
	return err || s->has_failed ? -EPROTO : 0;
}
