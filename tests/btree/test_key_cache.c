/*
 * The key cache: what it says counts, nothing that went away comes back, it is bounded, and its pins go when they are
 * asked for. (Against a model, and under threads and fibers: test_txn_model.c. Over crashes: test_crash.c.)
 */
#include "fixture.h"
#include "memory_trees.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/sync.h"
#include "base/util.h"
#include "btree/internal.h"
#include "btree/key_cache.h"
#include "engine/fs.h"
#include "journal/journal.h"

enum { NODE_BYTES = 4096, ID = BTREE_DIRENTS, SNAPSHOT = 9, ANCESTOR = 11, VALUE_U64S_MAX = 40 };

static struct memory_trees m;

static bool is_ancestor(void *ctx, uint32_t id, uint32_t ancestor) { return id == ancestor || ancestor == ANCESTOR; }

static void trees_begin(void **state)
{
	memory_trees_open_at(&m, trees_place_of(state), NODE_BYTES, 0);
	m.snapshots = (struct btree_snapshots){ .is_ancestor = is_ancestor };
	btrees_set_snapshots(m.trees, m.snapshots);
	memory_trees_cache(&m, 1u << ID);
}

/* After opening anew, on disk too. */
static void trees_reopen(void)
{
	memory_trees_reopen(&m);
	btrees_set_snapshots(m.trees, m.snapshots);
}

static uint64_t dirty_nr(void)
{
	struct btrees_write_stats stats;

	btrees_write_stats(m.trees, &stats);
	return stats.cached_keys_dirty;
}

static uint64_t key_nr(void)
{
	struct btrees_write_stats stats;

	btrees_write_stats(m.trees, &stats);
	return stats.cached_keys;
}

static struct bpos pos_of(uint64_t offset, uint32_t snapshot) { return BPOS(1u << 20, offset, snapshot); }

/* One change: a key with @value, of @u64s words; @type KEY_DELETED takes it away. */
struct change {
	struct bpos pos;
	unsigned type, u64s;
	uint64_t value;
	uint64_t seq; /* out */
};

static int change_fn(struct btree_txn *txn, void *ctx)
{
	const struct change *c = ctx;
	uint64_t words[VALUE_U64S_MAX] = { c->value };
	struct bkey k = { .p = c->pos, .type = (uint8_t)c->type, .value_u64s = (uint8_t)c->u64s };

	return btree_txn_put(txn, ID, &k, words, 0);
}

static uint64_t change(struct bpos pos, unsigned type, unsigned u64s, uint64_t value)
{
	struct change c = { pos, type, u64s, value, 0 };
	struct btree_commit_opts opts = { .name = "change", .journal_seq = &c.seq };

	assert_int_equal(btree_txn_run(m.trees, &opts, change_fn, &c), 0);
	return c.seq;
}

static uint64_t set(uint64_t offset, uint64_t value) { return change(pos_of(offset, SNAPSHOT), KEY_COOKIE, 1, value); }

/* What an iterator, a lookup and a transaction find at a position that @snapshot sees: the same. UINT64_MAX: nothing.
 */
struct look {
	struct bpos pos;
	uint64_t value;
};

static int look_fn(struct btree_txn *txn, void *ctx)
{
	struct look *l = ctx;
	struct bkey_ref k;
	int found = btree_txn_get(txn, ID, l->pos, BTREE_GET_VISIBLE, &k);

	l->value = found > 0 ? le64_load(k.value) : UINT64_MAX;
	return found;
}

static uint64_t look(uint64_t offset, uint32_t snapshot)
{
	struct look l = { .pos = pos_of(offset, snapshot) };
	struct bkey_copy copy;
	struct btree_iter it;
	struct bkey_ref k;

	btree_iter_open(&it, m.trees, ID, l.pos, 0, snapshot);
	it.end = l.pos;
	int found = btree_iter_peek(&it, &k);
	assert_true(found >= 0);
	uint64_t value = found ? le64_load(k.value) : UINT64_MAX;
	btree_iter_close(&it);

	assert_int_equal(btree_lookup(m.trees, ID, l.pos, &copy), found);
	assert_true(!found || le64_load(copy.value) == value);
	assert_int_equal(btree_txn_run(m.trees, &(struct btree_commit_opts){ .name = "look" }, look_fn, &l), 0);
	assert_true(l.value == value);
	return value;
}

/* --- */

static void the_newest_is_in_the_cache_and_comes_into_the_leaf(void **state)
{
	trees_begin(state);
	set(1, 100); /* makes the key: in its leaf at once */
	assert_int_equal(dirty_nr(), 0);
	for (uint64_t i = 101; i < 110; i++) {
		set(1, i);
		assert_int_equal(dirty_nr(), 1);
		assert_int_equal(look(1, SNAPSHOT), i);
	}
	assert_true(key_cache_flush(m.trees));
	assert_int_equal(dirty_nr(), 0);
	assert_int_equal(look(1, SNAPSHOT), 109);
	set(1, 110);
	trees_reopen();
	assert_int_equal(look(1, SNAPSHOT), 110);
	memory_trees_close(&m);
}

static void a_snapshot_sees_its_own_version(void **state)
{
	trees_begin(state);
	change(pos_of(5, ANCESTOR), KEY_COOKIE, 1, 1);
	change(pos_of(5, ANCESTOR), KEY_COOKIE, 1, 2); /* dirty */
	assert_int_equal(look(5, SNAPSHOT), 2);
	change(pos_of(5, SNAPSHOT), KEY_COOKIE, 1, 3);
	change(pos_of(5, SNAPSHOT), KEY_COOKIE, 1, 4);
	assert_int_equal(dirty_nr(), 2);
	assert_int_equal(look(5, SNAPSHOT), 4);
	assert_int_equal(look(5, ANCESTOR), 2);
	change(pos_of(5, SNAPSHOT), KEY_WHITEOUT, 0, 0);
	assert_true(look(5, SNAPSHOT) == UINT64_MAX);
	change(pos_of(5, SNAPSHOT), KEY_DELETED, 0, 0);
	assert_int_equal(look(5, SNAPSHOT), 2);
	change(pos_of(5, ANCESTOR), KEY_COOKIE, 1, 6);
	trees_reopen();
	assert_int_equal(look(5, SNAPSHOT), 6);
	assert_int_equal(look(5, ANCESTOR), 6);
	memory_trees_close(&m);
}

static void what_went_away_stays_away(void **state)
{
	trees_begin(state);
	for (unsigned type = 0; type < 2; type++) {
		set(7, 1);
		set(7, 2); /* dirty */
		change(pos_of(7, SNAPSHOT), type ? KEY_DELETED : KEY_WHITEOUT, 0, 0);
		assert_int_equal(dirty_nr(), 0);
		assert_true(look(7, SNAPSHOT) == UINT64_MAX);
		assert_false(key_cache_flush(m.trees));
		assert_true(look(7, SNAPSHOT) == UINT64_MAX);
		trees_reopen();
		assert_true(look(7, SNAPSHOT) == UINT64_MAX);
	}
	set(7, 3);
	assert_int_equal(look(7, SNAPSHOT), 3);
	memory_trees_close(&m);
}

/* Leaves are split, and keys in them grow beyond what they have room for, while what counts is elsewhere. */
static void leaves_change_below_it(void **state)
{
	enum { KEYS = 400 };

	trees_begin(state);
	for (uint64_t i = 0; i < KEYS; i += 2)
		set(i, i);
	for (uint64_t i = 0; i < KEYS; i += 2)
		set(i, i + KEYS);
	assert_true(dirty_nr() > 0);
	for (uint64_t i = 1; i < KEYS; i += 2)
		change(pos_of(i, SNAPSHOT), KEY_COOKIE, VALUE_U64S_MAX, i);
	for (uint64_t i = 0; i < KEYS; i += 2)
		change(pos_of(i, SNAPSHOT), KEY_COOKIE, VALUE_U64S_MAX, i + 2 * KEYS);
	for (uint64_t i = 0; i < KEYS; i++)
		assert_int_equal(look(i, SNAPSHOT), i % 2 ? i : i + 2 * KEYS);
	trees_reopen();
	for (uint64_t i = 0; i < KEYS; i++)
		assert_int_equal(look(i, SNAPSHOT), i % 2 ? i : i + 2 * KEYS);
	assert_true(m.stats.splits > KEYS / 10);
	memory_trees_close(&m);
}

static void it_is_bounded(void **state)
{
	trees_begin(state);
	const struct key_cache *kc = m.trees->key_cache;
	uint64_t keys_max = kc->keys_max * KEY_SHARD_NR;
	uint64_t nr = 3 * keys_max;

	for (unsigned round = 0; round < 2; round++)
		for (uint64_t i = 0; i < nr; i++) {
			set(i, i + round);
			assert_true(dirty_nr() <= kc->dirty_max);
			/* Shards get theirs by chance. */
			assert_true(key_nr() <= keys_max + kc->dirty_max);
		}
	assert_true(key_nr() > keys_max / 2);
	for (uint64_t i = 0; i < nr; i += 101)
		assert_int_equal(look(i, SNAPSHOT), i + 1);
	assert_int_equal(btrees_flush_all(m.trees), 0);
	for (uint64_t i = 0; i < 2 * nr; i++) /* what is clean goes */
		look(i % nr, SNAPSHOT);
	assert_true(key_nr() <= keys_max);
	trees_reopen();
	for (uint64_t i = 0; i < nr; i += 101)
		assert_int_equal(look(i, SNAPSHOT), i + 1);
	memory_trees_close(&m);
}

static void its_pins_go_when_the_journal_wants_it(void **state)
{
	trees_begin(state);
	struct journal *j = m.fs->journal_writer;

	for (uint64_t i = 0; i < 50; i++)
		set(i, i);
	assert_int_equal(btrees_flush_all(m.trees), 0);
	uint64_t seq = set(17, 1);
	assert_int_equal(dirty_nr(), 1);
	assert_true(journal_is_pinned(j, seq));
	set(17, 2);
	assert_int_equal(journal_flush_pins(j, seq, NULL), 0);
	assert_int_equal(dirty_nr(), 0);
	assert_false(journal_is_pinned(j, seq));
	assert_int_equal(look(17, SNAPSHOT), 2);
	memory_trees_close(&m);
}

/* After an error nothing is written any more, but what is read is still the newest. */
static void after_an_error_the_newest_is_read(void **state)
{
	trees_begin(state);
	set(3, 1);
	set(3, 2);
	assert_int_equal(dirty_nr(), 1);
	write_failed(m.trees, -EIO);
	assert_int_equal(look(3, SNAPSHOT), 2);
	btrees_stop_write(m.trees);
	assert_int_equal(look(3, SNAPSHOT), 2);
	btrees_close(m.trees);
	btree_memory_close(m.memory);
}

static atomic_bool is_full;
static int (*reserve)(void *ctx, unsigned nr, const struct btree_ptr *replaced, enum watermark watermark,
		      struct btree_node_reserve **r);

static int reserve_or_not(void *ctx, unsigned nr, const struct btree_ptr *replaced, enum watermark watermark,
			  struct btree_node_reserve **r)
{
	*r = NULL;
	return atomic_load(&is_full) ? -ENOSPC : reserve(ctx, nr, replaced, watermark, r);
}

static void flush_run(void *arg) { key_cache_flush(arg); }

/* More keys than are written at a time have no room for a while. */
static void others_are_written_where_there_is_no_room(void **state)
{
	enum { GROWN = 400, BETWEEN = 300, OTHERS = 10, ALL = GROWN + BETWEEN + OTHERS };
	struct task *flusher;

	trees_begin(state);
	reserve = m.trees->opts.backend.reserve;
	m.trees->opts.backend.reserve = reserve_or_not;
	for (uint64_t i = 0; i < ALL; i++)
		set(i, i);
	for (uint64_t i = 0; i < GROWN; i++)
		change(pos_of(i, SNAPSHOT), KEY_COOKIE, VALUE_U64S_MAX, i + ALL);
	for (uint64_t i = ALL - OTHERS; i < ALL; i++)
		set(i, i + ALL);
	assert_int_equal(dirty_nr(), GROWN + OTHERS);
	atomic_store(&is_full, true);
	assert_int_equal(task_start(&flusher, "flusher", flush_run, m.trees), 0);
	uint64_t begin_ns = clock_monotonic_ns();
	for (uint64_t others = OTHERS; others;) {
		others = 0;
		assert_true(clock_monotonic_ns() - begin_ns < 100000000000);
		mutex_lock(&m.trees->key_cache->lock);
		struct cached_key *e;
		TAILQ_FOREACH (e, &m.trees->key_cache->lists[LIST_WANTED], dirty)
			others += e->id.pos.offset >= GROWN;
		others += !TAILQ_EMPTY(&m.trees->key_cache->lists[LIST_DIRTY]);
		mutex_unlock(&m.trees->key_cache->lock);
		sleep_ns(1000000);
	}
	assert_true(dirty_nr() > 0);
	atomic_store(&is_full, false);
	task_join(flusher);
	assert_int_equal(dirty_nr(), 0);
	m.trees->opts.backend.reserve = reserve;
	trees_reopen();
	for (uint64_t i = 0; i < ALL; i++)
		assert_int_equal(look(i, SNAPSHOT), i < GROWN || i >= ALL - OTHERS ? i + ALL : i);
	memory_trees_close(&m);
}

static uint32_t first_leaf_u64s(void)
{
	struct tree_place place;

	assert_int_equal(tree_descend(m.trees, ID, 0, pos_of(0, SNAPSHOT), &place), 1);
	uint32_t u64s = place.node->keys.live_u64s;
	six_unlock_read(&place.node->lock);
	node_put(place.node);
	return u64s;
}

/* There is none for another key. */
static void what_does_not_grow_needs_no_room(void **state)
{
	uint64_t nr = 0;

	trees_begin(state);
	do
		set(nr++, 1);
	while (first_leaf_u64s() + BKEY_U64S + 1 <= node_u64s_max(m.trees));
	for (uint64_t i = 0; i < nr; i++)
		set(i, 2);
	assert_int_equal(dirty_nr(), nr);
	reserve = m.trees->opts.backend.reserve;
	m.trees->opts.backend.reserve = reserve_or_not;
	atomic_store(&is_full, true);
	key_cache_flush(m.trees);
	atomic_store(&is_full, false);
	m.trees->opts.backend.reserve = reserve;
	assert_int_equal(dirty_nr(), 0);
	trees_reopen();
	for (uint64_t i = 0; i < nr; i++)
		assert_int_equal(look(i, SNAPSHOT), 2);
	memory_trees_close(&m);
}

static void set_run(void *arg) { set(11, *(uint64_t *)arg); }

/* Somebody read the key, and it came into the cache by that, between a commit's look at the cache and its write. */
static void it_begins_amid_a_commit(void **state)
{
	uint64_t value[BKEY_VALUE_U64S_MAX], new_value = 2;
	struct cached_read read;
	struct tree_place place;
	struct task *writer;

	memory_trees_open_at(&m, trees_place_of(state), NODE_BYTES, 0);
	m.snapshots = (struct btree_snapshots){ .is_ancestor = is_ancestor };
	btrees_set_snapshots(m.trees, m.snapshots);
	assert_int_equal(key_cache_open(m.trees, 1u << ID), 0);
	assert_int_equal(key_cache_start(m.trees), 0);
	set(11, 1);
	assert_int_equal(tree_descend(m.trees, ID, 0, pos_of(11, SNAPSHOT), &place), 1);
	assert_int_equal(task_start(&writer, "writer", set_run, &new_value), 0);
	/* No reader gets in any more when it waits for write. */
	while (six_trylock_read(&place.node->lock)) {
		six_unlock_read(&place.node->lock);
		task_yield();
	}
	key_cache_begin(m.trees);
	struct bkey_ref k = node_keys_get(&place.node->keys, 0);
	assert_int_equal(key_cache_enter(m.trees, ID, &k, value, &read), 0);
	cached_key_put(read.key);
	six_unlock_read(&place.node->lock);
	node_put(place.node);
	task_join(writer);
	assert_int_equal(look(11, SNAPSHOT), 2);
	memory_trees_close(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TREES_TESTS(the_newest_is_in_the_cache_and_comes_into_the_leaf, NULL),
		TREES_TESTS(a_snapshot_sees_its_own_version, NULL),
		TREES_TESTS(what_went_away_stays_away, NULL),
		TREES_TESTS(leaves_change_below_it, NULL),
		TREES_TEST_IN_MEMORY(it_is_bounded, NULL),
		TREES_TEST_ON_DISK(its_pins_go_when_the_journal_wants_it, NULL),
		TREES_TEST_IN_MEMORY(after_an_error_the_newest_is_read, NULL),
		TREES_TEST_IN_MEMORY(others_are_written_where_there_is_no_room, NULL),
		TREES_TEST_IN_MEMORY(what_does_not_grow_needs_no_room, NULL),
		TREES_TEST_IN_MEMORY(it_begins_amid_a_commit, NULL),
	};

	return cmocka_run_group_tests_name("key cache", tests, NULL, NULL);
}
