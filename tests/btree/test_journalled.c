/*
 * Btrees on a device, with a journal: what was flushed survives crashes, whatever was written of the nodes.
 *
 * A crash is that everything in memory goes away, at any moment; the device keeps every write.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/fiber.h"
#include "base/sanitizer.h"
#include "btree/internal.h"
#include "btree/txn.h"
#include "format/version.h"
#include "journal/journal.h"
#include "node_count.h"
#include "super/format.h"

enum {
	NODE_BYTES = 4096,
	NODES_START = 24 << 20,
	ID = BTREE_XATTRS,
	BUFFERED_ID = BTREE_LRU,
	KEYS = 1500,
	ROUNDS = 6,
	TASKS = 3,
	PUTS = 700
};

struct world {
	struct super *super;
	struct device *dev;
	struct journal *j;
	struct journal_state *state;
	struct btrees *trees;
	struct mutex lock;
	uint64_t node_nr; /* ever given out */
	bool is_failed;
	atomic_bool is_stalled; /* nodes aren't written */
	uint64_t sets_appended, splits;
	struct {
		uint64_t value;
		unsigned words;
	} model[KEYS];
};

/* --- nodes on the device; space is never reused --- */

static int device_node_read(void *ctx, const struct btree_ptr *p, unsigned replica, void *buf, size_t bytes)
{
	struct world *w = ctx;

	return device_read(w->dev, p->ptrs[replica].sector * SECTOR_BYTES, buf, bytes);
}

static const char *device_name(void *ctx, unsigned dev) { return "mem"; }

static int reserve(void *ctx, unsigned nr, const struct btree_ptr *replaced, enum watermark watermark,
		   struct btree_node_reserve **r)
{
	*r = (void *)1;
	return 0;
}

static void node_alloc(void *ctx, struct btree_node_reserve *r, struct btree_ptr *p)
{
	struct world *w = ctx;

	mutex_lock(&w->lock);
	p->ptr_nr = 1;
	p->ptrs[0] = (struct extent_ptr){ .sector = (NODES_START + w->node_nr++ * NODE_BYTES) / SECTOR_BYTES };
	mutex_unlock(&w->lock);
}

static void reserve_put(void *ctx, struct btree_node_reserve *r) {}
static void reserve_trim(void *ctx, struct btree_node_reserve *r) {}

static int node_write(void *ctx, const struct btree_ptr *p, const void *buf, size_t offset, size_t bytes,
		      unsigned *failed)
{
	struct world *w = ctx;

	while (atomic_load(&w->is_stalled))
		sleep_ns(1000 * 1000);
	*failed = 0;
	return device_write(w->dev, p->ptrs[0].sector * SECTOR_BYTES + offset, buf, bytes);
}

static void report(void *ctx, const struct report *r)
{
	fprintf(stderr, "report: %s: %s: expected %s, found %s\n", r->structure, r->position, r->expected, r->found);
	if (r->level > REPORT_INFO)
		abort();
}
static const struct report_sink sink = { .emit = report };

/* --- open and crash --- */

static unsigned tail(void *ctx, uint64_t seq, void *at, unsigned max_u64s) { return 0; }
static unsigned tail_max(void *ctx) { return 0; }
static int mark(void *ctx, const uint8_t *devs, unsigned nr)
{
	return super_replicas_mark(((struct world *)ctx)->super, 2, 1, devs, nr);
}
static void flushed(void *ctx, uint64_t seq) {}
static void failed(void *ctx, int err) { ((struct world *)ctx)->is_failed = true; }

static int collect_key(void *ctx, const struct journal_entry *e, uint32_t offset, unsigned btree, unsigned level,
		       const struct bkey_disk *key)
{
	return overlay_builder_add(ctx, btree, level, e->seq, offset, key);
}

static void world_open(struct world *w)
{
	static const struct journal_state nothing;
	struct journal_state *state = w->state;
	struct btrees_opts opts = {
		.memory_bytes = BTREE_CACHE_BYTES_MIN(NODE_BYTES) * 6,
		.kctx = &w->super->kctx,
		.magic = btree_node_magic(w->super->sb->uuid),
		.reports = &sink,
		.backend = { .read = device_node_read,
			     .device_name = device_name,
			     .reserve = reserve,
			     .node_alloc = node_alloc,
			     .reserve_trim = reserve_trim,
			     .reserve_put = reserve_put,
			     .write = node_write,
			     .ctx = w },
	};

	assert_int_equal(btrees_open(&opts, &w->trees), 0);
	if (state) {
		struct overlay_builder *builder = overlay_builder_new(false);

		for (unsigned id = 0; id < BTREE_NR_MAX; id++) {
			struct bkey_ref key = { state->roots[id].key, state->roots[id].value };

			if (state->roots[id].exists)
				assert_int_equal(btrees_set_root(w->trees, id, state->roots[id].level, &key, false), 0);
		}
		assert_int_equal(journal_for_each_key(state, collect_key, builder), 0);
		assert_int_equal(btrees_set_overlay(w->trees, builder), 0);
		if (state->seq_flushed + 1 < state->seq_next)
			assert_int_equal(super_blacklist_add(w->super, state->seq_flushed + 1, state->seq_next), 0);
	}
	struct journal_opts jopts = {
		.super = w->super,
		.state = state ? state : &nothing,
		.seq_next = state ? state->seq_next : 1,
		.seq_pinned = state ? state->seq_last : 1,
		.ops = { tail, tail_max, mark, NULL, flushed, failed, w },
	};
	assert_int_equal(super_mark_dirty(w->super), 0);
	assert_int_equal(journal_start(&jopts, &w->j), 0);
	assert_int_equal(btrees_start_write(w->trees, &(struct btrees_write_opts){ .journal = w->j,
										   .has_txn_names = true,
										   .cached_btrees = 1u << ID,
										   .csum_type = CHECKSUM_CRC32C_NONZERO,
										   .version = VERSION_1_4,
										   .failed = failed,
										   .ctx = w }),
			 0);
}

static void world_crash(struct world *w)
{
	struct btrees_write_stats stats;

	assert_false(w->is_failed);
	btrees_write_stats(w->trees, &stats);
	w->sets_appended += stats.sets_appended;
	w->splits += stats.splits;
	journal_abort(w->j);
	atomic_store(&w->is_stalled, false);
	btrees_stop_write(w->trees);
	btrees_close(w->trees);
	journal_free(w->j);
	w->is_failed = false; /* by the abort, in the middle of whatever was going on */
	journal_state_free(w->state);
	assert_int_equal(journal_read(w->super, &(struct journal_read_opts){ 0 }, &w->state), 0);
	assert_int_equal(w->state->missing_nr, 0);
}

static void world_make(struct world *w)
{
	struct super_format_device d = { .bucket_bytes = 64 << 10, .durability = 1 };
	uint64_t options[OPT_NR] = { 0 };
	bool is_set[OPT_NR] = { false };
	char why[512];

	memset(w, 0, sizeof(*w));
	mutex_init(&w->lock);
	assert_int_equal(device_open_memory("mem", 512ull << 20, 512, &d.dev), 0);
	w->dev = d.dev;
	options[OPT_BTREE_NODE_SIZE] = NODE_BYTES;
	options[OPT_BLOCK_SIZE] = 512;
	is_set[OPT_BTREE_NODE_SIZE] = is_set[OPT_BLOCK_SIZE] = true;
	if (super_format(&d, 1, &(struct super_format_opts){ .options = options, .options_set = is_set }, why))
		fail_msg("format: %s", why);
	struct super_open_opts open = { .is_write = true, .devices = &w->dev, .device_nr = 1 };
	assert_int_equal(super_open(NULL, 0, &open, NULL, NULL, &w->super), 0);
	assert_int_equal(super_journals_init(w->super), 0);
	assert_int_equal(super_mark_initialized(w->super), 0);
}

/* --- putting and looking --- */

struct put {
	uint64_t at, value;
	unsigned words;
};

static int put_unbuffered_txn(struct btree_txn *txn, void *ctx)
{
	const struct put *p = ctx;
	struct bkey k = { .p = BPOS(1, p->at, UINT32_MAX), .type = p->words ? KEY_COOKIE : KEY_DELETED };
	uint64_t value[BKEY_VALUE_U64S_MAX];

	k.value_u64s = (uint8_t)p->words;
	for (unsigned i = 0; i < p->words; i++)
		value[i] = p->value + i;
	return btree_txn_put(txn, ID, &k, value, 0);
}

static int put_txn(struct btree_txn *txn, void *ctx)
{
	const struct put *p = ctx;
	struct bkey set = { .p = BPOS(1, p->at, 0), .type = p->words ? KEY_SET : KEY_DELETED };
	int err = put_unbuffered_txn(txn, ctx);

	/* Says the same, in a btree that is write-buffered. */
	return err ? err : btree_txn_put(txn, BUFFERED_ID, &set, NULL, 0);
}

struct putter {
	struct world *w;
	uint64_t seed;
	unsigned nr; /* keys at = nr modulo TASKS are this one's */
};

static void put_task(void *arg)
{
	const struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };
	struct putter *t = arg;
	struct rng rng;

	rng_init(&rng, t->seed);
	for (unsigned i = 0; i < PUTS; i++) {
		uint64_t at = rng_below(&rng, KEYS / TASKS) * TASKS + t->nr;
		unsigned words = rng_below(&rng, 3) ? 1 + (unsigned)rng_below(&rng, 12) : 0;
		struct put p = { at, rng_u64(&rng), words };

		if (btree_txn_run(t->w->trees, &opts, put_txn, &p))
			abort();
		t->w->model[at].value = p.value;
		t->w->model[at].words = words;
		if (!rng_below(&rng, 200))
			journal_flush(t->w->j);
	}
}

/* @is_replayed: what the write buffer has can be applied. */
static void check(struct world *w, bool is_replayed)
{
	struct btree_iter it;
	struct bkey_ref k;

	if (is_replayed)
		assert_int_equal(btree_write_buffer_flush(w->trees), 0);
	btree_iter_open(&it, w->trees, BUFFERED_ID, POS_MIN, 0, 0);
	for (unsigned i = 0; i < KEYS; i++) {
		if (!w->model[i].words)
			continue;
		assert_int_equal(btree_iter_peek(&it, &k), 1);
		assert_int_equal(k.k.p.offset, i);
		btree_iter_advance(&it);
	}
	assert_int_equal(btree_iter_peek(&it, &k), 0);
	btree_iter_close(&it);

	btree_iter_open(&it, w->trees, ID, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (unsigned i = 0; i < KEYS; i++) {
		if (!w->model[i].words)
			continue;
		assert_int_equal(btree_iter_peek(&it, &k), 1);
		assert_int_equal(k.k.p.offset, i);
		assert_int_equal(k.k.value_u64s, w->model[i].words);
		for (unsigned n = 0; n < w->model[i].words; n++)
			assert_true(le64_load((const uint8_t *)k.value + (size_t)n * 8) == w->model[i].value + n);
		btree_iter_advance(&it);
	}
	assert_int_equal(btree_iter_peek(&it, &k), 0);
	btree_iter_close(&it);
}

static void rounds(void *arg)
{
	uint64_t seed = *(const uint64_t *)arg;
	struct world *w = calloc(1, sizeof(*w));
	struct task *tasks[TASKS];
	struct putter putters[TASKS];
	struct rng rng;

	rng_init(&rng, seed);
	world_make(w);
	world_open(w);
	for (unsigned round = 0; round < ROUNDS; round++) {
		for (unsigned i = 0; i < TASKS; i++) {
			putters[i] = (struct putter){ w, rng_u64(&rng), i };
			assert_int_equal(task_start(&tasks[i], "put", put_task, &putters[i]), 0);
		}
		for (unsigned i = 0; i < TASKS; i++)
			task_join(tasks[i]);
		check(w, true);
		if (!rng_below(&rng, 3))
			assert_int_equal(btrees_flush_all(w->trees), 0);
		assert_int_equal(journal_flush(w->j), 0);
		world_crash(w);
		world_open(w);
		check(w, false);
		if (!rng_below(&rng, 3)) { /* crash before replay */
			world_crash(w);
			world_open(w);
			check(w, false);
		}
		assert_int_equal(btrees_replay(w->trees), 0);
		journal_replay_done(w->j);
		check(w, true);
	}
	world_crash(w);
	assert_true(w->sets_appended > 0 && w->splits > 0);
	journal_state_free(w->state);
	super_close(w->super);
	mutex_destroy(&w->lock);
	free(w);
}

/* --- replay --- */

/* A key of twelve words in an entry of its own. */
static void put_flushed(struct world *w, uint64_t at)
{
	const struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };
	struct put p = { at, at, 12 };

	assert_int_equal(btree_txn_run(w->trees, &opts, put_unbuffered_txn, &p), 0);
	assert_int_equal(journal_flush(w->j), 0);
}

static void check_flushed(struct world *w, uint64_t nr)
{
	struct btree_iter it;
	struct bkey_ref k;

	btree_iter_open(&it, w->trees, ID, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (uint64_t at = 0; at < nr; at++) {
		assert_int_equal(btree_iter_peek(&it, &k), 1);
		assert_int_equal(k.k.p.offset, at);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
}

/*
 * A leaf that replay splits takes along the keys that the journal has for it. They stay in the journal until the new
 * nodes can be reached, which may take longer than replay.
 */
static void what_replay_splits_stays_in_the_journal(void **state)
{
	enum { ON_DISK = 20, IN_JOURNAL = 20 };
	struct world *w = calloc(1, sizeof(*w));

	world_make(w);
	world_open(w);
	for (unsigned i = 0; i < ON_DISK; i++)
		put_flushed(w, i);
	assert_int_equal(btrees_flush_all(w->trees), 0);
	atomic_store(&w->is_stalled, true);
	/* From the end: what the leaf has no room for is in older entries than what it takes before it is split. */
	for (unsigned i = IN_JOURNAL; i--;)
		put_flushed(w, ON_DISK + i);
	world_crash(w);

	world_open(w);
	atomic_store(&w->is_stalled, true);
	assert_int_equal(btrees_replay(w->trees), 0);
	journal_replay_done(w->j);
	put_flushed(w, 0);
	world_crash(w);

	world_open(w);
	check_flushed(w, ON_DISK + IN_JOURNAL);
	world_crash(w);
	assert_true(w->splits > 0);
	journal_state_free(w->state);
	super_close(w->super);
	mutex_destroy(&w->lock);
	free(w);
}

/* --- shrinking --- */

enum { SHRINK_KEYS = KEYS, SHRINK_ROUNDS = KILN_TSAN ? 1 : 3 };

/* Every key once, some tasks at a time: all put, or nearly all deleted, or the rest of them. */
struct sweeper {
	struct world *w;
	unsigned nr;
	enum { SWEEP_PUT, SWEEP_THIN, SWEEP_EMPTY } kind;
};

static void sweep_task(void *arg)
{
	const struct btree_commit_opts opts = { .name = "sweep", .watermark = WATERMARK_NORMAL };
	struct sweeper *t = arg;

	for (uint64_t i = t->nr; i < SHRINK_KEYS; i += TASKS) {
		/* Not in order, and where the tasks are is far from each other. */
		uint64_t at = i * 7919 % SHRINK_KEYS;
		struct put p = { at, i, t->kind == SWEEP_PUT ? 8 : 0 };

		if (t->kind == SWEEP_THIN && at % 50 == 7)
			continue;
		if (btree_txn_run(t->w->trees, &opts, put_txn, &p))
			abort();
		t->w->model[at].value = p.value;
		t->w->model[at].words = p.words;
	}
}

static void sweep(struct world *w, int kind, struct node_count *c, struct node_count *buffered)
{
	struct task *tasks[TASKS];
	struct sweeper sweepers[TASKS];

	for (unsigned i = 0; i < TASKS; i++) {
		sweepers[i] = (struct sweeper){ w, i, kind };
		assert_int_equal(task_start(&tasks[i], "sweep", sweep_task, &sweepers[i]), 0);
	}
	for (unsigned i = 0; i < TASKS; i++)
		task_join(tasks[i]);
	assert_int_equal(btrees_flush_all(w->trees), 0);
	node_count(w->trees, ID, c);
	node_count(w->trees, BUFFERED_ID, buffered);
}

static void shrink(void *arg)
{
	struct world *w = calloc(1, sizeof(*w));
	struct node_count full, some, none, buffered;

	(void)arg;
	world_make(w);
	world_open(w);
	for (unsigned round = 0; round < SHRINK_ROUNDS; round++) {
		sweep(w, SWEEP_PUT, &full, &buffered);
		assert_true(full.leaves > 30);
		sweep(w, SWEEP_THIN, &some, &buffered);
		assert_int_equal(some.mergeable + buffered.mergeable, 0);
		assert_true(some.leaves < full.leaves / 4);
		sweep(w, SWEEP_EMPTY, &none, &buffered);
		assert_int_equal(none.nodes, none.levels);
		assert_int_equal(buffered.nodes, buffered.levels);
		check(w, true);
	}
	world_crash(w);
	world_open(w);
	check(w, false);
	world_crash(w);
	journal_state_free(w->state);
	super_close(w->super);
	mutex_destroy(&w->lock);
	free(w);
}

static void a_btree_shrinks_with_what_is_in_it(void **state) { shrink(NULL); }

static uint64_t seed_get(void)
{
	const char *env = getenv("KILN_TEST_SEED");
	uint64_t seed = env ? strtoull(env, NULL, 0) : random_u64();

	print_message("KILN_TEST_SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

/* --- more than an entry can hold --- */

/* What is deleted takes room in entries, but none in nodes: some 100 bytes each. */
enum { BATCH_KEYS = 1024 };

struct batch {
	unsigned at, to, runs;
	bool is_whole; /* it can't be made smaller */
};

static int batch_txn(struct btree_txn *txn, void *ctx)
{
	struct batch *b = ctx;
	int err = 0;

	b->runs++;
	b->to = b->is_whole ? b->at + BATCH_KEYS : min(b->at + btree_txn_batch(txn, BATCH_KEYS), (unsigned)BATCH_KEYS);
	for (unsigned i = b->at; i < b->to && !err; i++)
		err = put_unbuffered_txn(txn, &(struct put){ i, i, 0 });
	return err;
}

static void batches_become_as_small_as_an_entry(void **state)
{
	static const struct btree_commit_opts opts = { .name = "batch", .watermark = WATERMARK_NORMAL };
	struct batch b = { 0 }, whole = { .is_whole = true };
	struct world *w = calloc(1, sizeof(*w));

	world_make(w);
	world_open(w);
	while (b.at < BATCH_KEYS) {
		assert_int_equal(btree_txn_run(w->trees, &opts, batch_txn, &b), 0);
		assert_true(b.to > b.at && b.to - b.at < BATCH_KEYS);
		b.at = b.to;
	}
	/* Run once: it would be no smaller. */
	assert_int_equal(btree_txn_run(w->trees, &opts, batch_txn, &whole), -E2BIG);
	assert_int_equal(whole.runs, 1);
	assert_int_equal(journal_flush(w->j), 0);
	world_crash(w);
	journal_state_free(w->state);
	super_close(w->super);
	mutex_destroy(&w->lock);
	free(w);
}

static void crashes_lose_nothing_that_was_flushed(void **state)
{
	uint64_t seed = seed_get();

	rounds(&seed);
}

static void crashes_lose_nothing_in_a_simulation(void **state)
{
	uint64_t seed = seed_get();

	assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, rounds, &seed, NULL), 0);
}

static void a_btree_shrinks_in_a_simulation(void **state)
{
	assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed_get() }, shrink, NULL, NULL), 0);
}

/* --- errors --- */

struct failure {
	struct btrees *trees;
	atomic_bool is_failing, may_refuse, has_returned;
};

static void failed_slowly(void *ctx, int err)
{
	struct failure *f = ctx;

	atomic_store(&f->is_failing, true);
	while (!atomic_load(&f->may_refuse))
		sleep_ns(1000 * 1000);
}

static void fail_first(void *arg)
{
	struct failure *f = arg;

	write_failed(f->trees, -EIO);
}

static void fail_second(void *arg)
{
	struct failure *f = arg;

	write_failed(f->trees, -EIO);
	atomic_store(&f->has_returned, true);
}

/* Else it drops pins while the journal still writes entries. */
static void who_fails_second_waits_until_the_journal_is_refused(void **state)
{
	struct failure f = { 0 };
	struct task *first, *second;
	struct world w;

	(void)state;
	world_make(&w);
	world_open(&w);
	assert_int_equal(
		btree_txn_run(w.trees, &(struct btree_commit_opts){ 0 }, put_txn, &(struct put){ .at = 1, .words = 1 }),
		0);
	assert_int_equal(journal_flush(w.j), 0);
	f.trees = w.trees;
	w.trees->write_opts.failed = failed_slowly;
	w.trees->write_opts.ctx = &f;
	assert_int_equal(task_start(&first, "first", fail_first, &f), 0);
	while (!atomic_load(&f.is_failing))
		sleep_ns(1000 * 1000);
	assert_int_equal(task_start(&second, "second", fail_second, &f), 0);
	sleep_ns(20 * 1000 * 1000);
	assert_false(atomic_load(&f.has_returned));
	atomic_store(&f.may_refuse, true);
	task_join(first);
	task_join(second);
	assert_true(atomic_load(&f.has_returned));
	world_crash(&w);
	journal_state_free(w.state);
	super_close(w.super);
	mutex_destroy(&w.lock);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_fails_second_waits_until_the_journal_is_refused),
		cmocka_unit_test(batches_become_as_small_as_an_entry),
		cmocka_unit_test(what_replay_splits_stays_in_the_journal),
		cmocka_unit_test(a_btree_shrinks_with_what_is_in_it),
		cmocka_unit_test(a_btree_shrinks_in_a_simulation),
		cmocka_unit_test(crashes_lose_nothing_that_was_flushed),
		cmocka_unit_test(crashes_lose_nothing_in_a_simulation),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
