/*
 * The write buffer by itself, between a journal and btrees that only take notes: nothing is lost, the newest of each
 * position is applied, in order, and pins hold what isn't applied yet. (With a filesystem's around it: test_txn.c.)
 */
#include "fixture.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/fiber.h"
#include "base/util.h"
#include "btree/internal.h"

enum { POSITIONS = 400, BTREES = 4, TASKS = 4, PUTS_PER_TASK = 3000, KEYS_MAX = 1024 };

static const unsigned btree_ids[BTREES] = { BTREE_LRU, BTREE_BACKPOINTERS, BTREE_DELETED_INODES, BTREE_REBALANCE_WORK };

/* What there is instead of the journal and of btrees. */
static struct {
	struct mutex lock;
	uint64_t applied[BTREES][POSITIONS]; /* value; 0: deleted, or never put */
	uint64_t latest[BTREES][POSITIONS];
	size_t apply_calls, applied_keys;
	int apply_err;
	uint64_t applied_seq_max;
	struct journal_pin *pin; /* the last one that was added */
	int failed;		 /* what ended writing */
	size_t failed_calls;	 /* apply_calls by then: the flush that was asked for meanwhile tries once more */
} fake;

static struct btrees *trees;

static unsigned tree_idx(unsigned btree_id)
{
	for (unsigned i = 0; i < BTREES; i++)
		if (btree_ids[i] == btree_id)
			return i;
	abort();
}

int btree_apply(struct btrees *t, const struct btree_applied_key *keys, size_t nr)
{
	if (t != trees || !nr)
		abort();
	task_yield();
	mutex_lock(&fake.lock);
	int err = fake.apply_err;
	for (size_t i = 0; !err && i < nr; i++) {
		const struct bkey *k = &keys[i].k.k;

		if (i && (keys[i - 1].btree_id > keys[i].btree_id ||
			  (keys[i - 1].btree_id == keys[i].btree_id && !bpos_lt(keys[i - 1].k.k.p, k->p))))
			abort();
		fake.applied[tree_idx(keys[i].btree_id)][k->p.offset] =
			k->type == KEY_DELETED ? 0 : le64_load(keys[i].k.value);
		fake.applied_seq_max = max(fake.applied_seq_max, keys[i].seq);
	}
	fake.apply_calls++;
	fake.applied_keys += nr;
	mutex_unlock(&fake.lock);
	task_yield();
	return err;
}

void journal_pin_add(struct journal *j, struct journal_pin *pin, uint64_t seq,
		     void (*flush)(struct journal *, struct journal_pin *, uint64_t))
{
	if (!pin->seq || seq < pin->seq)
		pin->seq = seq;
	pin->flush = flush;
	fake.pin = pin;
}

void journal_pin_drop(struct journal *j, struct journal_pin *pin) { pin->seq = 0; }

bool write_may_retry(struct btrees *t, int err, unsigned *tries)
{
	return err == -EIO && !write_error(t) && (*tries)++ < 3;
}

int write_error(struct btrees *t)
{
	mutex_lock(&fake.lock);
	int err = fake.failed;
	mutex_unlock(&fake.lock);
	return err;
}

void write_failed(struct btrees *t, int err)
{
	mutex_lock(&fake.lock);
	fake.failed = err;
	fake.failed_calls = fake.apply_calls;
	mutex_unlock(&fake.lock);
}

/* --- set up --- */

static void set_up(void)
{
	memset(&fake, 0, sizeof(fake));
	mutex_init(&fake.lock);
	trees = calloc(1, sizeof(*trees));
	if (!trees || write_buffer_open(trees, &trees->write_buffer))
		abort();
}

static void tear_down(void)
{
	write_buffer_close(trees->write_buffer);
	free(trees);
	mutex_destroy(&fake.lock);
}

static void fail_applying(int err)
{
	mutex_lock(&fake.lock);
	fake.apply_err = err;
	mutex_unlock(&fake.lock);
}

/* Put @value (0: delete) as a commit does. */
static int put(unsigned tree, uint64_t offset, uint64_t value, uint64_t seq, uint32_t order)
{
	struct bkey k = { .p = BPOS(0, offset, 0), .type = value ? KEY_COOKIE : KEY_DELETED, .value_u64s = value != 0 };
	unsigned u64s = BKEY_U64S + k.value_u64s;
	/* One more is reserved than used, as when a transaction puts less than it might. */
	int err = write_buffer_reserve(trees, 2, 2 * u64s, WATERMARK_NORMAL);

	if (err)
		return err;
	write_buffer_add(trees, btree_ids[tree], &k, &value, seq, order);
	write_buffer_unreserve(trees, 1, u64s);
	return 0;
}

static void assert_applied_is_latest(void) { assert_memory_equal(fake.applied, fake.latest, sizeof(fake.applied)); }

/* --- tests --- */

static void the_newest_of_each_position_is_applied(void **state)
{
	set_up();
	assert_int_equal(put(0, 7, 1, 10, 5), 0);
	assert_int_equal(put(0, 7, 2, 11, 3), 0);
	assert_int_equal(put(0, 7, 3, 11, 1), 0); /* added later, but before it in the journal */
	assert_int_equal(put(1, 7, 4, 11, 9), 0);
	assert_int_equal(put(1, 8, 5, 9, 0), 0);
	assert_int_equal(put(1, 8, 0, 12, 0), 0);
	assert_int_equal(fake.apply_calls, 0);
	assert_int_equal(write_buffer_key_nr(trees->write_buffer), 6);
	assert_int_equal(btree_write_buffer_flush(trees), 0);
	assert_int_equal(write_buffer_key_nr(trees->write_buffer), 0);
	assert_int_equal(fake.applied[0][7], 2);
	assert_int_equal(fake.applied[1][7], 4);
	assert_int_equal(fake.applied[1][8], 0);
	assert_int_equal(fake.applied_keys, 3);
	assert_int_equal(btree_write_buffer_flush(trees), 0);
	assert_int_equal(fake.apply_calls, 1);
	tear_down();
}

static void a_failed_flush_can_be_repeated(void **state)
{
	set_up();
	assert_int_equal(put(0, 1, 11, 1, 0), 0);
	fail_applying(-ENOMEM);
	assert_int_equal(btree_write_buffer_flush(trees), -ENOMEM);
	assert_int_equal(put(0, 1, 12, 2, 0), 0);
	assert_int_equal(put(0, 2, 13, 2, 1), 0);
	assert_int_equal(btree_write_buffer_flush(trees), -ENOMEM);
	fail_applying(0);
	assert_int_equal(btree_write_buffer_flush(trees), 0);
	assert_int_equal(fake.applied[0][1], 12);
	assert_int_equal(fake.applied[0][2], 13);
	assert_int_equal(write_buffer_key_nr(trees->write_buffer), 0);
	tear_down();
}

/* The journal wants room, and applying fails: how often that was tried before it ended with @failed. */
static size_t tries_until(int err, int failed)
{
	set_up();
	fail_applying(err);
	assert_int_equal(put(0, 1, 11, 1, 0), 0);
	size_t calls = 0;
	for (unsigned i = 0; i < 100000 && (write_error(trees) != failed || calls < 4); i++) {
		fake.pin->flush(NULL, fake.pin, 1);
		sleep_ns(1000000);
		mutex_lock(&fake.lock);
		calls = fake.failed ? fake.failed_calls : fake.apply_calls;
		mutex_unlock(&fake.lock);
	}
	assert_int_equal(write_error(trees), failed);
	tear_down();
	return calls;
}

/* Else users would wait for space in the journal for ever. */
static void what_cannot_be_applied_is_the_end_of_writing(void **state)
{
	assert_int_equal(tries_until(-EIO, -EIO), 4);
	/* There may be space, or memory, later. */
	assert_true(tries_until(-ENOSPC, 0) >= 4);
	assert_true(tries_until(-ENOMEM, 0) >= 4);
}

static void a_full_buffer_is_flushed_by_who_wants_room(void **state)
{
	set_up();
	for (unsigned i = 0; i < 10 * KEYS_MAX; i++) {
		assert_int_equal(put(i % BTREES, i % POSITIONS, i + 1, 1 + i / 100, i % 100), 0);
		assert_true(write_buffer_key_nr(trees->write_buffer) <= 2 * KEYS_MAX);
	}
	assert_int_equal(btree_write_buffer_flush(trees), 0);
	fail_applying(-EROFS);
	int err = 0;
	for (unsigned i = 0; !err && i < 4 * KEYS_MAX; i++)
		err = put(0, i % POSITIONS, 1, 1000, i);
	assert_int_equal(err, -EROFS);
	/* Reclaim gets room whatever there is. */
	assert_int_equal(write_buffer_reserve(trees, 3 * KEYS_MAX, 18 * KEYS_MAX, WATERMARK_RECLAIM), 0);
	write_buffer_unreserve(trees, 3 * KEYS_MAX, 18 * KEYS_MAX);
	tear_down();
}

/* Each task has positions of its own, as transactions that put at one position are kept apart by a node's lock. */
struct putter {
	unsigned nr;
	uint64_t seed;
};

static uint64_t next_seq;

static void putter_run(void *arg)
{
	const struct putter *p = arg;
	struct rng rng;

	rng_init(&rng, p->seed + p->nr);
	for (unsigned i = 0; i < PUTS_PER_TASK; i++) {
		unsigned tree = (unsigned)rng_below(&rng, BTREES);
		uint64_t offset = rng_below(&rng, POSITIONS / TASKS) * TASKS + p->nr;
		uint64_t value = rng_below(&rng, 3) ? rng_u64(&rng) | 1 : 0;
		uint64_t seq = __atomic_add_fetch(&next_seq, 1, __ATOMIC_RELAXED);

		if (put(tree, offset, value, seq, 0))
			abort();
		fake.latest[tree][offset] = value;
		if (rng_below(&rng, 500) == 0 && btree_write_buffer_flush(trees))
			abort();
	}
}

static void putters_run(void *arg)
{
	struct putter putters[TASKS];
	struct task *tasks[TASKS];

	next_seq = 0;
	set_up();
	for (unsigned i = 0; i < TASKS; i++) {
		putters[i] = (struct putter){ i, *(uint64_t *)arg };
		if (task_start(&tasks[i], "putter", putter_run, &putters[i]))
			abort();
	}
	for (unsigned i = 0; i < TASKS; i++)
		task_join(tasks[i]);
	if (btree_write_buffer_flush(trees))
		abort();
	tear_down();
}

static void tasks_lose_nothing_seed(uint64_t seed)
{
	assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, putters_run, &seed, NULL), 0);
	assert_applied_is_latest();
	assert_true(fake.applied_seq_max <= next_seq);
}

static void fibers_lose_nothing(void **state) { seeds_run(tasks_lose_nothing_seed, 10); }

static void threads_lose_nothing(void **state)
{
	uint64_t seed = 1;

	putters_run(&seed);
	assert_applied_is_latest();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_newest_of_each_position_is_applied),
		cmocka_unit_test(a_failed_flush_can_be_repeated),
		cmocka_unit_test(what_cannot_be_applied_is_the_end_of_writing),
		cmocka_unit_test(a_full_buffer_is_flushed_by_who_wants_room),
		cmocka_unit_test_teardown(fibers_lose_nothing, seeds_teardown),
		cmocka_unit_test(threads_lose_nothing),
	};

	return cmocka_run_group_tests_name("write buffer", tests, NULL, NULL);
}
