/*
 * The journal's write side: what was flushed is read back, what was pinned stays, a full journal goes on.
 *
 * Filesystems in memory with nothing but superblocks and a journal. A "crash" is closing without the last entry; the
 * devices here keep every write, so what a power cut does to unflushed ones is the simulator's business.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/fiber.h"
#include "journal/journal.h"
#include "super/format.h"

enum { DEVS_MAX = 2, KEYS_MAX = 20000, PINS_MAX = 64 };

struct world {
	struct super *super;
	struct journal *j;
	struct journal_state *state;
	uint64_t seq_next; /* without state; 0: 1 */
	uint64_t tail_seq; /* newest that the tail was asked for */
	unsigned flushed_calls;
	int failed;
	/* What was committed: key i says i; its seq. */
	uint64_t seq_of[KEYS_MAX];
	uint64_t key_nr;
};

static unsigned tail(void *ctx, uint64_t seq, void *at, unsigned max_u64s)
{
	struct world *w = ctx;
	struct jset_entry_disk *e = at;

	/* In seq order, each once. */
	assert_true(seq > w->tail_seq);
	w->tail_seq = seq;
	assert_true(max_u64s >= 2);
	*e = (struct jset_entry_disk){ .u64s = le16_of(1), .btree_id = 1, .type = JSET_ENTRY_USAGE };
	le64_store(e + 1, seq);
	return 2;
}
static unsigned tail_max(void *ctx) { return 2; }
static int mark(void *ctx, const uint8_t *devs, unsigned nr)
{
	struct world *w = ctx;

	return super_replicas_mark(w->super, 2, 1, devs, nr);
}
static void flushed(void *ctx, uint64_t seq) { ((struct world *)ctx)->flushed_calls++; }
static void failed(void *ctx, int err) { ((struct world *)ctx)->failed = err; }

static void nothing_flushed(struct journal *j, struct journal_pin *pin, uint64_t seq) {}

static void journal_open(struct world *w)
{
	struct journal_opts opts = {
		.super = w->super,
		.state = w->state,
		.seq_next = w->state ? w->state->seq_next : max(w->seq_next, (uint64_t)1),
		.seq_pinned = w->state && !w->state->was_clean ? w->state->seq_last
			      : w->state		       ? w->state->seq_next
							       : 1,
		.ops = { tail, tail_max, mark, NULL, flushed, failed, w },
	};
	static const struct journal_state nothing;

	if (!w->state)
		opts.state = &nothing;
	w->tail_seq = 0;
	assert_int_equal(super_mark_dirty(w->super), 0);
	assert_int_equal(journal_start(&opts, &w->j), 0);
}

/* A new filesystem of @dev_nr memory devices; its devices are given back on closing. */
static void world_make(struct world *w, struct device **devs, unsigned dev_nr, unsigned replicas, unsigned bucket_kib)
{
	struct super_format_device d[DEVS_MAX];
	uint64_t options[OPT_NR] = { 0 };
	bool is_set[OPT_NR] = { false };
	char why[512];

	memset(w, 0, sizeof(*w));
	for (unsigned i = 0; i < dev_nr; i++) {
		assert_int_equal(device_open_memory("mem", 64ull << 20, 512, &devs[i]), 0);
		d[i] = (struct super_format_device){ .dev = devs[i],
						     .bucket_bytes = bucket_kib << 10,
						     .durability = 1 };
	}
	options[OPT_METADATA_REPLICAS] = replicas;
	is_set[OPT_METADATA_REPLICAS] = true;
	struct super_format_opts opts = { .options = options, .options_set = is_set };
	if (super_format(d, dev_nr, &opts, why))
		fail_msg("format: %s", why);
	assert_int_equal(super_open(NULL, 0,
				    &(struct super_open_opts){ .is_write = true, .devices = devs, .device_nr = dev_nr },
				    NULL, NULL, &w->super),
			 0);
	assert_int_equal(super_journals_init(w->super), 0);
	assert_int_equal(super_mark_initialized(w->super), 0);
	journal_open(w);
}

static void world_close(struct world *w)
{
	journal_state_free(w->state);
	super_close(w->super);
}

/* Commit key number w->key_nr++, with @u64s words of value. */
static int commit(struct world *w, unsigned u64s, enum watermark watermark, unsigned flags)
{
	uint64_t value[64] = { 0 };
	struct journal_res res;
	struct bkey k = { .p = { .inode = 5, .offset = w->key_nr, .snapshot = UINT32_MAX },
			  .type = KEY_XATTR,
			  .value_u64s = (uint8_t)u64s };

	/* xattr: type 0, no name, a value of what is left. */
	le16_store((uint8_t *)value + 2, (uint16_t)(u64s * 8 - 4));
	int err = journal_res_get(w->j, &res, journal_key_u64s(&k) + 3, watermark, flags);
	if (err)
		return err;
	assert_true(w->key_nr < KEYS_MAX);
	w->seq_of[w->key_nr++] = res.seq;
	journal_res_add_key(w->j, &res, JSET_ENTRY_BTREE_KEYS, BTREE_XATTRS, 0, &k, value);
	journal_res_put(w->j, &res);
	return 0;
}

struct seen {
	uint8_t *has;
	uint64_t nr;
};
static int see(void *ctx, const struct journal_entry *e, uint32_t offset, unsigned btree, unsigned level,
	       const struct bkey_disk *key)
{
	struct seen *seen = ctx;
	uint64_t i = bpos_load(&key->p).offset;

	(void)e, (void)offset, (void)level;
	assert_int_equal(btree, BTREE_XATTRS);
	assert_true(i < KEYS_MAX);
	seen->has[i] = 1;
	seen->nr++;
	return 0;
}

/* Read the journal as after a crash: all keys with seq in [from, to] are there. */
static void check_read_back(struct world *w, uint64_t from, uint64_t to)
{
	struct journal_read_opts opts = { 0 };
	struct seen seen = { .has = calloc(KEYS_MAX, 1) };

	journal_state_free(w->state);
	assert_int_equal(journal_read(w->super, &opts, &w->state), 0);
	assert_false(w->state->was_clean);
	assert_int_equal(w->state->missing_nr, 0);
	assert_true(w->state->seq_flushed >= to);
	assert_true(w->state->seq_last <= from);
	assert_int_equal(w->state->nr_inodes, w->state->seq_flushed); /* what the tail says */
	assert_int_equal(journal_for_each_key(w->state, see, &seen), 0);
	for (uint64_t i = 0; i < w->key_nr; i++)
		if (w->seq_of[i] >= from && w->seq_of[i] <= w->state->seq_flushed && !seen.has[i])
			fail_msg("key %llu of seq %llu is missing (replay %llu-%llu)", (unsigned long long)i,
				 (unsigned long long)w->seq_of[i], (unsigned long long)w->state->seq_last,
				 (unsigned long long)w->state->seq_flushed);
	free(seen.has);
}

static void what_was_flushed_is_read_back(void **unused)
{
	struct device *devs[DEVS_MAX];
	struct world *w = malloc(sizeof(*w));
	struct journal_pin pin = { 0 };

	(void)unused;
	world_make(w, devs, 1, 1, 128);
	assert_int_equal(commit(w, 4, WATERMARK_NORMAL, 0), 0);
	journal_pin_add(w->j, &pin, w->seq_of[0], NULL);
	for (unsigned i = 0; i < 500; i++) {
		assert_int_equal(commit(w, 1 + i % 50, WATERMARK_NORMAL, 0), 0);
		if (i % 50 == 0)
			assert_int_equal(journal_flush(w->j), 0);
	}
	assert_int_equal(journal_flush(w->j), 0);
	assert_int_equal(journal_seq_flushed(w->j), w->seq_of[w->key_nr - 1]);
	journal_abort(w->j);
	assert_true(w->flushed_calls >= 10);
	journal_free(w->j);
	check_read_back(w, w->seq_of[0], w->seq_of[w->key_nr - 1]);
	world_close(w);
	free(w);
}

static void a_clean_shutdown_leaves_an_empty_entry(void **unused)
{
	struct device *devs[DEVS_MAX];
	struct world *w = malloc(sizeof(*w));
	unsigned roots, tail_u64s;
	uint64_t seq;

	(void)unused;
	world_make(w, devs, 1, 1, 128);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(commit(w, 4, WATERMARK_NORMAL, 0), 0);
	assert_int_equal(journal_stop_clean(w->j, &seq), 0);
	const void *tail_words = journal_last_tail(w->j, &tail_u64s);
	const void *root_words = journal_last_roots(w->j, &roots);
	assert_int_equal(tail_u64s, 2);
	assert_int_equal(super_mark_clean(w->super, seq, tail_words, tail_u64s, root_words, roots), 0);
	journal_free(w->j);
	assert_int_equal(journal_read(w->super, &(struct journal_read_opts){ .read_all = true }, &w->state), 0);
	assert_true(w->state->was_clean);
	assert_int_equal(w->state->seq_flushed, seq);
	struct journal_entry *last = &w->state->entries[w->state->entry_nr - 1];
	assert_int_equal(last->seq, seq);
	assert_int_equal(last->locations[0].last_seq, seq);
	/* And on from there: the next entry lies behind it. */
	journal_open(w);
	assert_int_equal(commit(w, 4, WATERMARK_NORMAL, 0), 0);
	assert_true(w->seq_of[w->key_nr - 1] > seq);
	assert_int_equal(journal_flush(w->j), 0);
	journal_abort(w->j);
	journal_free(w->j);
	check_read_back(w, w->seq_of[w->key_nr - 1], w->seq_of[w->key_nr - 1]);
	world_close(w);
	free(w);
}

/* --- random, in a simulation --- */

struct sim {
	uint64_t seed;
	unsigned dev_nr, replicas, bucket_kib;
};

static struct journal_pin pins[PINS_MAX];

static void pin_ask(struct journal *j, struct journal_pin *pin, uint64_t seq)
{
	(void)seq;
	journal_pin_drop(j, pin);
}

struct crew {
	struct world *w;
	uint64_t seed;
	unsigned first, commits;
};

/* Commits and pins, until reclaim asks for the pins; sometimes wants durability. */
static void crew_task(void *arg)
{
	struct crew *c = arg;
	struct rng rng;

	rng_init(&rng, c->seed);
	for (unsigned i = 0; i < c->commits; i++) {
		struct journal_pin *pin = &pins[c->first + rng_below(&rng, PINS_MAX / 4)];
		uint64_t seq;

		/* What has no pin need not be replayed: pin the newest of each. */
		struct journal_res res;
		assert_int_equal(journal_res_get(c->w->j, &res, 40, WATERMARK_NORMAL, JOURNAL_RES_TRY) == -EAGAIN
					 ? journal_res_wait(c->w->j, 40, WATERMARK_NORMAL)
					 : (journal_pin_add(c->w->j, pin, res.seq, pin_ask), seq = res.seq,
					    journal_res_put(c->w->j, &res), 0),
				 0);
		if (!rng_below(&rng, 10))
			assert_int_equal(journal_flush(c->w->j), 0);
		if (!rng_below(&rng, 4))
			sleep_ns(rng_below(&rng, 3000000));
		(void)seq;
	}
	for (unsigned k = 0; k < PINS_MAX / 4; k++)
		journal_pin_drop(c->w->j, &pins[c->first + k]);
}

static void sim_main(void *arg)
{
	const struct sim *sim = arg;
	struct device *devs[DEVS_MAX];
	struct world *w = malloc(sizeof(*w));
	struct task *tasks[4];
	struct crew crew[4];
	struct journal_usage usage;

	memset(pins, 0, sizeof(pins));
	world_make(w, devs, sim->dev_nr, sim->replicas, sim->bucket_kib);
	for (unsigned i = 0; i < 4; i++) {
		crew[i] =
			(struct crew){ .w = w, .seed = sim->seed * 4 + i, .first = i * PINS_MAX / 4, .commits = 2000 };
		assert_int_equal(task_start(&tasks[i], "crew", crew_task, &crew[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++)
		task_join(tasks[i]);
	journal_usage(w->j, &usage);
	/* The ring went round. */
	assert_true(usage.bytes_written > (uint64_t)usage.buckets_total * sim->bucket_kib << 10);
	assert_int_equal(journal_flush(w->j), 0);
	uint64_t seq_flushed = journal_seq_flushed(w->j);
	journal_abort(w->j);
	journal_free(w->j);
	check_read_back(w, seq_flushed, seq_flushed);
	world_close(w);
	free(w);
}

static void rings_go_round_with_pins_in_a_simulation(void **unused)
{
	static const struct {
		unsigned dev_nr, replicas, bucket_kib;
	} shapes[] = { { 1, 1, 64 }, { 2, 1, 64 }, { 2, 2, 128 } };

	(void)unused;
	for (unsigned i = 0; i < ARRAY_NR(shapes); i++) {
		struct sim sim = { 1 + i, shapes[i].dev_nr, shapes[i].replicas, shapes[i].bucket_kib };

		print_message("seed %llu\n", (unsigned long long)sim.seed);
		assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = sim.seed }, sim_main, &sim, NULL), 0);
	}
}

struct waiter {
	struct journal *j;
	bool gives_back, is_done;
};

static void waiter_task(void *arg)
{
	struct waiter *a = arg;
	struct journal_res res;

	if (a->gives_back) {
		assert_int_equal(journal_res_wait(a->j, 4, WATERMARK_NORMAL), 0);
	} else {
		assert_int_equal(journal_res_get(a->j, &res, 4, WATERMARK_NORMAL, 0), 0);
		journal_res_put(a->j, &res);
	}
	a->is_done = true;
}

static void crowd_main(void *arg)
{
	static struct journal_res held[2000];
	struct device *devs[DEVS_MAX];
	struct world *w = malloc(sizeof(*w));
	struct waiter waiters[4];
	struct task *tasks[4];
	unsigned nr = 0;
	int err;

	world_make(w, devs, 1, 1, 64);
	while (!(err = journal_res_get(w->j, &held[nr], 4, WATERMARK_NORMAL, JOURNAL_RES_TRY)))
		assert_true(++nr < ARRAY_NR(held));
	assert_int_equal(err, -EAGAIN);
	assert_int_equal(held[nr - 1].seq, held[0].seq);
	for (unsigned i = 0; i < ARRAY_NR(waiters); i++) {
		waiters[i] = (struct waiter){ .j = w->j, .gives_back = i % 2 };
		assert_int_equal(task_start(&tasks[i], "waiter", waiter_task, &waiters[i]), 0);
	}
	sleep_ns(1000000);
	/* One place for them all, each after the other; the entry isn't due for long. */
	journal_res_put(w->j, &held[--nr]);
	sleep_ns(1000000);
	for (unsigned i = 0; i < ARRAY_NR(waiters); i++)
		assert_true(waiters[i].is_done);
	while (nr)
		journal_res_put(w->j, &held[--nr]);
	for (unsigned i = 0; i < ARRAY_NR(waiters); i++)
		task_join(tasks[i]);
	journal_abort(w->j);
	journal_free(w->j);
	world_close(w);
	free(w);
}

/* What is pinned can't be written back: who would make room is told, instead of waiting for ever. */
static void standstill_main(void *arg)
{
	struct journal_pin pin = { 0 };
	struct device *devs[DEVS_MAX];
	struct world *w = arg;
	int err = 0;

	world_make(w, devs, 1, 1, 128);
	assert_int_equal(commit(w, 1, WATERMARK_RECLAIM, 0), 0);
	journal_pin_add(w->j, &pin, w->seq_of[0], nothing_flushed);
	uint64_t begin = clock_monotonic_ns();
	while (!err)
		err = commit(w, 60, WATERMARK_RECLAIM, 0);
	uint64_t took_ns = clock_monotonic_ns() - begin;
	if (err != -EROFS || w->failed != -ENOSPC || took_ns < 120000000000 || took_ns > 240000000000)
		abort();
	journal_pin_drop(w->j, &pin);
	journal_abort(w->j);
	journal_free(w->j);
	world_close(w);
}

static void a_ring_that_stands_still_is_given_up(void **unused)
{
	struct world *w = malloc(sizeof(*w));

	(void)unused;
	assert_non_null(w);
	assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = 1 }, standstill_main, w, NULL), 0);
	free(w);
}

/* In bounded memory: those that are far back are pinned as long as one of them is. */
static void any_number_of_entries_can_be_replayed(void **unused)
{
	struct journal_pin old = { 0 }, young = { 0 };
	struct device *devs[DEVS_MAX];
	struct journal_usage u;
	struct world *w = malloc(sizeof(*w));

	(void)unused;
	world_make(w, devs, 1, 1, 128);
	journal_abort(w->j);
	journal_free(w->j);
	w->seq_next = 100000000;
	journal_open(w);
	assert_true(journal_is_pinned(w->j, 1));
	journal_pin_add(w->j, &old, 12345, NULL);
	journal_pin_add(w->j, &young, w->seq_next - 5, NULL);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(commit(w, 1, WATERMARK_RECLAIM, 0), 0);
		assert_int_equal(journal_flush(w->j), 0);
		journal_usage(w->j, &u);
		assert_true(u.last_seq_ondisk == (i < 2 ? 1 : w->seq_next - 5));
		if (!i)
			journal_replay_done(w->j);
		assert_int_equal(journal_is_pinned(w->j, 1000), i < 2);
		if (i == 1)
			journal_pin_drop(w->j, &old);
	}
	journal_pin_drop(w->j, &young);
	assert_false(journal_is_pinned(w->j, w->seq_next - 1));
	journal_abort(w->j);
	journal_free(w->j);
	world_close(w);
	free(w);
}

static void who_cannot_be_counted_goes_on_when_one_is_gone(void **unused)
{
	(void)unused;
	for (uint64_t seed = 1; seed <= 10; seed++)
		assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, crowd_main, NULL, NULL), 0);
}

static void threads_share_the_open_entry(void **unused)
{
	struct sim sim = { .seed = 9, .dev_nr = 1, .replicas = 1, .bucket_kib = 64 };

	(void)unused;
	sim_main(&sim);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_flushed_is_read_back),
		cmocka_unit_test(a_clean_shutdown_leaves_an_empty_entry),
		cmocka_unit_test(rings_go_round_with_pins_in_a_simulation),
		cmocka_unit_test(a_ring_that_stands_still_is_given_up),
		cmocka_unit_test(any_number_of_entries_can_be_replayed),
		cmocka_unit_test(who_cannot_be_counted_goes_on_when_one_is_gone),
		cmocka_unit_test(threads_share_the_open_entry),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
