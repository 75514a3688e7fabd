/*
 * The journal against a model, through power failures, in simulations.
 *
 * A filesystem of superblocks and a journal, and *holders*, which stand for btree nodes: each key that is committed
 * belongs to one. A holder pins the oldest key that isn't written back; writing it back takes a commit of its own, like
 * that of a node's sectors_written, and from then on the key needs no journal, as soon as that commit survives.
 *
 * So after a failure, with F the newest flush entry that is found: a key of an entry above F never happened; any other
 * one is found by reading the journal, or was written back by an entry <= F. What was acknowledged is not above F.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fiber.h"
#include "base/sanitizer.h"
#include "base/sync.h"
#include "format/extent.h"
#include "journal/journal.h"
#include "power_disk.h"
#include "super/format.h"

enum {
	DEVS_MAX = 3,
	KEYS_MAX = 60000,
	HOLDERS = 16,
	COMMITTERS = 4,
	WRITERS = 2,
	SEQS_MAX = 1 << 16, /* in one round */
	ROOTS = 4,	    /* btrees 1 to 4 get roots */
	VALUE_U64S_MAX = 200,
	STUCK_S = 300, /* simulated */
};

struct key {
	uint64_t seq;
	uint64_t written_seq; /* of the entry that says it was written back; 0: none */
	uint8_t holder;
	bool is_lost, is_settled; /* never happened; needs no journal any more */
};

struct holder {
	struct mutex lock;
	struct journal_pin pin, write_pin;
	bool is_wanted, is_writing;
	uint32_t *keys; /* not written back */
	size_t key_nr, key_max;
};

struct shape {
	unsigned dev_nr, replicas;
	unsigned bucket_kib[DEVS_MAX];
	unsigned dev_mib[DEVS_MAX];
	bool has_discard;
	unsigned value_max; /* words */
};

struct world {
	uint64_t seed;
	const struct shape *shape;
	struct rng rng;
	struct power_disk disks[DEVS_MAX];
	struct super *super;
	struct journal *j;
	struct journal_state *state;

	struct key keys[KEYS_MAX];
	uint32_t key_nr, commits_left;
	struct holder holders[HOLDERS];
	uint64_t root_number[ROOTS + 1];  /* of the newest */
	uint64_t root_settled[ROOTS + 1]; /* of the state that was read */
	struct {
		uint64_t seq, number;
		unsigned btree, at;
	} roots[KEYS_MAX]; /* of this round */
	uint32_t root_nr;

	uint64_t seq_start, tail_seq, tail_count, count_settled;
	uint32_t keys_at[SEQS_MAX]; /* of seq_start + i */
	uint64_t acknowledged;
	unsigned running;
	bool is_off, is_ending;
	uint64_t flushes_acknowledged, rounds_off, rounds_clean, asked;
};

/* --- what the journal asks for --- */

static unsigned tail(void *ctx, uint64_t seq, void *at, unsigned max_u64s)
{
	struct world *w = ctx;
	struct jset_entry_disk *e = at;

	assert_true(seq == w->tail_seq + 1 || w->tail_seq == 0);
	assert_true(max_u64s >= 2);
	w->tail_seq = seq;
	w->tail_count += w->keys_at[seq - w->seq_start];
	*e = (struct jset_entry_disk){ .u64s = le16_of(1), .btree_id = 1, .type = JSET_ENTRY_USAGE };
	le64_store(e + 1, w->tail_count);
	return 2;
}

static unsigned tail_max(void *ctx) { return 2; }

static int mark(void *ctx, const uint8_t *devs, unsigned nr)
{
	return super_replicas_mark(((struct world *)ctx)->super, 2, 1, devs, nr);
}

static void acknowledge(struct world *w, uint64_t seq)
{
	if (!w->is_off && seq > w->acknowledged)
		w->acknowledged = seq;
}

static void flushed(void *ctx, uint64_t seq)
{
	acknowledge(ctx, seq);
	((struct world *)ctx)->flushes_acknowledged++;
}

static void failed(void *ctx, int err) { assert_true(((struct world *)ctx)->is_off); }

/* --- holders --- */

static struct world *world_now; /* flush functions get nothing but the pin */

static void holder_flush(struct journal *j, struct journal_pin *pin, uint64_t seq)
{
	struct holder *h = container_of(pin, struct holder, pin);

	assert_true(pin->seq <= seq || !pin->seq);
	h->is_wanted = true;
	world_now->asked++;
}

static void flush_nothing(struct journal *j, struct journal_pin *pin, uint64_t seq) {}

static void holder_add(struct world *w, struct holder *h, uint32_t key)
{
	if (h->key_nr == h->key_max) {
		h->key_max = h->key_max ? h->key_max * 2 : 64;
		h->keys = realloc(h->keys, h->key_max * sizeof(*h->keys));
		assert_non_null(h->keys);
	}
	h->keys[h->key_nr++] = key;
	journal_pin_add(w->j, &h->pin, w->keys[key].seq, holder_flush);
}

/* Room under the holder's lock, as nodes do it: try, else let go and wait. 0, with the lock held, or an error. */
static int lock_and_reserve(struct world *w, struct holder *h, struct journal_res *res, unsigned u64s,
			    enum watermark watermark)
{
	for (;;) {
		mutex_lock(&h->lock);
		int err = journal_res_get(w->j, res, u64s, watermark, JOURNAL_RES_TRY);
		if (!err)
			return 0;
		mutex_unlock(&h->lock);
		if (err == -EAGAIN)
			err = journal_res_wait(w->j, u64s, watermark);
		if (err)
			return err;
	}
}

static void holder_write_back(struct world *w, struct holder *h, struct rng *rng)
{
	struct journal_res res;
	uint64_t seq_max = 0;

	mutex_lock(&h->lock);
	if (h->is_writing || !h->key_nr) {
		h->is_wanted &= h->is_writing;
		mutex_unlock(&h->lock);
		return;
	}
	uint32_t *keys = h->keys;
	size_t nr = h->key_nr;
	h->keys = NULL;
	h->key_nr = h->key_max = 0;
	h->is_writing = true;
	h->is_wanted = false;
	journal_pin_move(w->j, &h->write_pin, &h->pin, flush_nothing);
	mutex_unlock(&h->lock);

	for (size_t i = 0; i < nr; i++)
		seq_max = max(seq_max, w->keys[keys[i]].seq);
	int err = rng_below(rng, 2) ? journal_flush_seq(w->j, seq_max) : 0;
	sleep_ns(rng_below(rng, 3000000));
	if (!err)
		err = lock_and_reserve(w, h, &res, 3, WATERMARK_RECLAIM);
	if (!err) {
		for (size_t i = 0; i < nr; i++)
			w->keys[keys[i]].written_seq = res.seq;
		le64_store(journal_res_add(w->j, &res, JSET_ENTRY_LOG, 0, 1, 1), nr);
		journal_res_put(w->j, &res);
		h->is_writing = false;
		mutex_unlock(&h->lock);
		journal_pin_drop(w->j, &h->write_pin);
	}
	free(keys);
}

static void writer_task(void *arg)
{
	struct world *w = arg;
	struct rng rng;

	rng_init(&rng, rng_u64(&w->rng));
	while (!journal_error(w->j) && !(w->is_ending && !w->running)) {
		struct holder *h = &w->holders[rng_below(&rng, HOLDERS)];

		for (unsigned i = 0; i < HOLDERS && !h->is_wanted; i++)
			h = &w->holders[(h - w->holders + 1) % HOLDERS];
		if (h->is_wanted || !rng_below(&rng, 20))
			holder_write_back(w, h, &rng);
		sleep_ns(rng_below(&rng, 500000));
	}
}

/* --- commits --- */

static void root_add(struct world *w, struct journal_res *res, unsigned btree)
{
	struct btree_ptr p = { .seq = ++w->root_number[btree], .sectors_written = 1, .ptr_nr = 1 };
	uint64_t value[BTREE_PTR_V2_VALUE_U64S_MAX];
	struct bkey k = { .p = SPOS_MAX, .type = KEY_BTREE_PTR_V2 };

	/* The first sector of a bucket in the middle of the device. */
	p.ptrs[0].sector = 64ull * w->shape->bucket_kib[0] * 2;
	k.value_u64s = (uint8_t)btree_ptr_encode(&p, value);
	journal_res_add_key(w->j, res, JSET_ENTRY_BTREE_ROOT, btree, 0, &k, value);
	w->roots[w->root_nr].seq = res->seq;
	w->roots[w->root_nr].at = res->at;
	w->roots[w->root_nr].number = p.seq;
	w->roots[w->root_nr++].btree = btree;
}

static int commit(struct world *w, struct rng *rng, uint64_t *seq)
{
	struct holder *h = &w->holders[rng_below(rng, HOLDERS)];
	unsigned value_u64s = 1 + (unsigned)rng_below(rng, w->shape->value_max);
	unsigned spare = (unsigned)rng_below(rng, 4);
	unsigned btree = rng_below(rng, 8) ? 0 : 1 + (unsigned)rng_below(rng, ROOTS);
	uint64_t value[VALUE_U64S_MAX] = { 0 };
	struct journal_res res;

	int err = lock_and_reserve(w, h, &res, 6 + value_u64s + spare + (btree ? 20 : 0), WATERMARK_NORMAL);
	if (err)
		return err;
	assert_true(w->key_nr < KEYS_MAX && res.seq - w->seq_start < SEQS_MAX);
	uint32_t i = w->key_nr++;
	struct bkey k = { .p = { .inode = 5, .offset = i, .snapshot = UINT32_MAX },
			  .type = KEY_XATTR,
			  .value_u64s = (uint8_t)value_u64s };
	w->keys[i] = (struct key){ .seq = res.seq, .holder = (uint8_t)(h - w->holders) };
	w->keys_at[res.seq - w->seq_start]++;
	/* xattr: type 0, no name, a value of what is left. */
	le16_store((uint8_t *)value + 2, (uint16_t)(value_u64s * 8 - 4));
	if (btree)
		root_add(w, &res, btree);
	journal_res_add_key(w->j, &res, JSET_ENTRY_BTREE_KEYS, BTREE_XATTRS, 0, &k, value);
	holder_add(w, h, i);
	*seq = res.seq;
	journal_res_put(w->j, &res);
	mutex_unlock(&h->lock);
	return 0;
}

static void committer_task(void *arg)
{
	struct world *w = arg;
	struct rng rng;
	uint64_t seq;
	int err = 0;

	rng_init(&rng, rng_u64(&w->rng));
	while (!err && w->commits_left) {
		w->commits_left--;
		err = commit(w, &rng, &seq);
		if (!err && !rng_below(&rng, 12)) {
			err = journal_flush_seq(w->j, seq);
			if (!err)
				acknowledge(w, seq);
		} else if (!err && !rng_below(&rng, 12)) {
			journal_flush_async(w->j, seq);
		}
		if (!rng_below(&rng, 3))
			sleep_ns(rng_below(&rng, 300000));
		if (!rng_below(&rng, 200))
			sleep_ns(rng_below(&rng, 2000000000)); /* entries are written because time passes */
	}
	if (err)
		assert_true(w->is_off);
	w->running--;
}

static void power_task(void *arg)
{
	struct world *w = arg;
	uint64_t ns = rng_below(&w->rng, 4) ? rng_below(&w->rng, 400000000) : rng_below(&w->rng, 10000000000);

	for (; ns && w->running; ns -= min(ns, (uint64_t)1000000))
		sleep_ns(min(ns, (uint64_t)1000000));
	if (!w->running && rng_below(&w->rng, 2))
		return; /* then it ends by itself */
	w->is_off = true;
	for (unsigned i = 0; i < w->shape->dev_nr; i++)
		power_disk_off(&w->disks[i]);
}

/* A full journal goes on: somebody gets ahead in any @STUCK_S. */
static void watch_task(void *arg)
{
	struct world *w = arg;
	uint32_t before = w->commits_left, same = 0;

	while (w->running && !w->is_off) {
		sleep_ns(1000000000);
		same = before == w->commits_left ? same + 1 : 0;
		before = w->commits_left;
		if (same > STUCK_S) {
			struct journal_usage u;
			journal_usage(w->j, &u);
			fail_msg("stuck: seq %" PRIu64 " flushed %" PRIu64 " last %" PRIu64 " on disk %" PRIu64
				 " free %" PRIu64 " of %" PRIu64,
				 u.seq, u.seq_flushed, u.last_seq, u.last_seq_ondisk, u.buckets_free, u.buckets_total);
		}
	}
}

/* --- from one round to the next --- */

static void world_open(struct world *w)
{
	struct device *devs[DEVS_MAX];

	for (unsigned i = 0; i < w->shape->dev_nr; i++)
		devs[i] = power_disk_open(&w->disks[i]);
	assert_int_equal(super_open(NULL, 0,
				    &(struct super_open_opts){
					    .is_write = true,
					    .devices = devs,
					    .device_nr = w->shape->dev_nr,
				    },
				    NULL, NULL, &w->super),
			 0);
}

static void world_make(struct world *w)
{
	struct super_format_device d[DEVS_MAX];
	uint64_t options[OPT_NR] = { 0 };
	bool is_set[OPT_NR] = { false };
	char why[512];

	for (unsigned i = 0; i < w->shape->dev_nr; i++) {
		power_disk_init(&w->disks[i], (uint64_t)w->shape->dev_mib[i] << 20, rng_u64(&w->rng));
		d[i] = (struct super_format_device){ .dev = power_disk_open(&w->disks[i]),
						     .bucket_bytes = w->shape->bucket_kib[i] << 10,
						     .durability = 1,
						     .has_discard = w->shape->has_discard };
	}
	options[OPT_METADATA_REPLICAS] = w->shape->replicas;
	is_set[OPT_METADATA_REPLICAS] = true;
	struct super_format_opts opts = { .options = options, .options_set = is_set, .superblock_bytes = 64 << 10 };
	if (super_format(d, w->shape->dev_nr, &opts, why))
		fail_msg("format: %s", why);
	for (unsigned i = 0; i < w->shape->dev_nr; i++)
		device_close(d[i].dev);
	world_open(w);
	assert_int_equal(super_journals_init(w->super), 0);
	for (unsigned i = 0; i < HOLDERS; i++)
		mutex_init_ranked(&w->holders[i].lock, LOCK_UNORDERED);
}

static void journal_open(struct world *w)
{
	static const struct journal_state nothing;
	const struct journal_state *state = w->state;
	struct journal_opts opts = {
		.super = w->super,
		.state = state ? state : &nothing,
		.seq_next = state ? state->seq_next : 1,
		.seq_pinned = !state		 ? 1
			      : state->was_clean ? state->seq_next
						 : state->seq_last,
		.ops = { tail, tail_max, mark, NULL, flushed, failed, w },
	};

	if (state && state->seq_next > state->seq_flushed + 1)
		assert_int_equal(super_blacklist_add(w->super, state->seq_flushed + 1, state->seq_next), 0);
	assert_int_equal(super_mark_dirty(w->super), 0);
	w->tail_seq = 0;
	w->seq_start = opts.seq_next;
	w->root_nr = 0;
	memset(w->keys_at, 0, sizeof(w->keys_at));
	w->tail_count = w->count_settled;
	assert_int_equal(journal_start(&opts, &w->j), 0);
	assert_int_equal(journal_seq(w->j), opts.seq_next);
	/* What is to be replayed goes to the holders. */
	for (uint32_t i = 0; i < w->key_nr; i++)
		if (!w->keys[i].is_lost && !w->keys[i].is_settled)
			holder_add(w, &w->holders[w->keys[i].holder], i);
	journal_replay_done(w->j);
}

static int found_key(void *ctx, const struct journal_entry *e, uint32_t offset, unsigned btree, unsigned level,
		     const struct bkey_disk *key)
{
	uint8_t *is_found = ctx;
	uint64_t i = bpos_load(&key->p).offset;

	assert_int_equal(btree, BTREE_XATTRS);
	assert_true(i < KEYS_MAX);
	is_found[i] = 1;
	return 0;
}

static void keys_check(struct world *w, const uint8_t *is_found)
{
	uint64_t F = w->state->seq_flushed;

	for (uint32_t i = 0; i < w->key_nr; i++) {
		struct key *k = &w->keys[i];

		if (k->is_lost || k->is_settled) {
			if (k->is_lost && is_found[i])
				fail_msg("key %u, which was lost, is back", i);
			continue;
		}
		if (k->seq > F) {
			if (is_found[i])
				fail_msg("key %u of entry %" PRIu64 " above F = %" PRIu64, i, k->seq, F);
			k->is_lost = true;
		} else if (k->written_seq && k->written_seq <= F) {
			k->is_settled = true;
		} else if (!is_found[i] || w->state->was_clean) {
			fail_msg("key %u of entry %" PRIu64 " is missing: replay %" PRIu64 "-%" PRIu64
				 ", written back in %" PRIu64,
				 i, k->seq, w->state->seq_last, F, k->written_seq);
		} else {
			k->written_seq = 0;
		}
	}
}

/* Roots and counters are those of entry F. */
static void state_check(struct world *w)
{
	uint64_t F = w->state->seq_flushed, count = w->count_settled;

	for (uint64_t s = w->seq_start; s <= F; s++)
		count += w->keys_at[s - w->seq_start];
	assert_int_equal(w->state->nr_inodes, count);
	w->count_settled = count;
	for (unsigned b = 1; b <= ROOTS; b++) {
		uint64_t seq = 0;
		unsigned at = 0;

		for (uint32_t i = 0; i < w->root_nr; i++) {
			uint64_t s = w->roots[i].seq;

			if (w->roots[i].btree != b || s > F || s < seq || (s == seq && w->roots[i].at < at))
				continue;
			seq = s;
			at = w->roots[i].at;
			w->root_settled[b] = w->roots[i].number;
		}
	}
	for (unsigned b = 1; b <= ROOTS; b++) {
		const struct btree_root *root = &w->state->roots[b];
		assert_int_equal(root->exists, w->root_settled[b] != 0);
		if (root->exists)
			assert_int_equal(le64_load(root->value + 8), w->root_settled[b]);
	}
}

static void world_recover(struct world *w)
{
	uint8_t *is_found = calloc(KEYS_MAX, 1);

	world_open(w);
	journal_state_free(w->state);
	assert_int_equal(journal_read(w->super, &(struct journal_read_opts){ 0 }, &w->state), 0);
	assert_int_equal(w->state->missing_nr, 0);
	assert_false(w->state->is_from_stale_clean);
	if (w->state->seq_flushed < w->acknowledged)
		fail_msg("entry %" PRIu64 " was acknowledged, but %" PRIu64 " is the newest", w->acknowledged,
			 w->state->seq_flushed);
	assert_true(w->state->seq_last <= w->state->seq_flushed);
	assert_int_equal(journal_for_each_key(w->state, found_key, is_found), 0);
	keys_check(w, is_found);
	state_check(w);
	free(is_found);
}

static void holders_forget(struct world *w)
{
	for (unsigned i = 0; i < HOLDERS; i++) {
		struct holder *h = &w->holders[i];

		journal_pin_drop(w->j, &h->pin);
		journal_pin_drop(w->j, &h->write_pin);
		h->key_nr = 0;
		h->is_wanted = h->is_writing = false;
	}
}

static void end_cleanly(struct world *w)
{
	unsigned tail_u64s, roots_u64s;
	uint64_t seq;
	int err = 0;

	for (unsigned i = 0; i < HOLDERS; i++)
		holder_write_back(w, &w->holders[i], &w->rng);
	err = journal_stop_clean(w->j, &seq);
	if (!err) {
		const void *tail_words = journal_last_tail(w->j, &tail_u64s);
		const void *roots = journal_last_roots(w->j, &roots_u64s);
		err = super_mark_clean(w->super, seq, tail_words, tail_u64s, roots, roots_u64s);
	}
	assert_int_equal(err, 0);
	w->rounds_clean++;
}

static void one_round(struct world *w)
{
	struct task *tasks[COMMITTERS + WRITERS + 2];
	unsigned nr = 0;

	journal_open(w);
	w->is_off = w->is_ending = false;
	w->running = COMMITTERS;
	w->commits_left = 1 + (uint32_t)rng_below(&w->rng, 2000);
	for (unsigned i = 0; i < COMMITTERS; i++)
		assert_int_equal(task_start(&tasks[nr++], "committer", committer_task, w), 0);
	for (unsigned i = 0; i < WRITERS; i++)
		assert_int_equal(task_start(&tasks[nr++], "writer", writer_task, w), 0);
	assert_int_equal(task_start(&tasks[nr++], "power", power_task, w), 0);
	assert_int_equal(task_start(&tasks[nr++], "watch", watch_task, w), 0);
	w->is_ending = true;
	while (nr)
		task_join(tasks[--nr]);

	if (w->is_off)
		w->rounds_off++;
	else
		end_cleanly(w);
	holders_forget(w);
	journal_abort(w->j);
	journal_free(w->j);
	super_close(w->super);
	for (unsigned i = 0; i < w->shape->dev_nr; i++)
		power_disk_on(&w->disks[i]);
	world_recover(w);
}

/* The first entry of a filesystem, without which there is nothing to recover. */
static void first_entry(struct world *w)
{
	struct rng rng;
	uint64_t seq;

	rng_init(&rng, w->seed);
	journal_open(w);
	assert_int_equal(super_mark_initialized(w->super), 0);
	assert_int_equal(commit(w, &rng, &seq), 0);
	assert_int_equal(journal_flush(w->j), 0);
	w->acknowledged = seq;
	holders_forget(w);
	journal_abort(w->j);
	journal_free(w->j);
	super_close(w->super);
	world_recover(w);
}

static void world_run(void *arg)
{
	struct world *w = world_now = arg;

	rng_init(&w->rng, w->seed);
	world_make(w);
	first_entry(w);
	for (unsigned round = 0; round < (KILN_SANITIZED ? 4 : 12); round++)
		one_round(w);
	journal_state_free(w->state);
	super_close(w->super);
	for (unsigned i = 0; i < w->shape->dev_nr; i++)
		power_disk_free(&w->disks[i]);
	for (unsigned i = 0; i < HOLDERS; i++) {
		free(w->holders[i].keys);
		mutex_destroy(&w->holders[i].lock);
	}
}

/* --- the tests --- */

static const struct shape shapes[] = {
	{ 1, 1, { 64 }, { 32 }, false, 40 },
	{ 1, 1, { 64 }, { 32 }, true, VALUE_U64S_MAX },
	{ 1, 1, { 256 }, { 64 }, true, VALUE_U64S_MAX },
	{ 2, 1, { 64, 64 }, { 32, 32 }, false, VALUE_U64S_MAX },
	{ 2, 2, { 64, 128 }, { 32, 64 }, true, VALUE_U64S_MAX },
	{ 3, 2, { 64, 64, 256 }, { 32, 256, 64 }, true, 100 },
	{ 2, 2, { 64, 64 }, { 32, 512 }, false, VALUE_U64S_MAX },
};

static bool seed_run(uint64_t seed, const struct shape *shape)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	w->seed = seed;
	w->shape = shape;
	print_message("KILN_TEST_SEED=%" PRIu64 " (shape %zu)\n", seed, (size_t)(shape - shapes));
	int err = fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, world_run, w, NULL);
	assert_int_equal(err, 0);
	print_message("  %u keys, %" PRIu64 " flushes, %" PRIu64 " failures, %" PRIu64 " clean, %" PRIu64
		      " pins asked for\n",
		      w->key_nr, w->flushes_acknowledged, w->rounds_off, w->rounds_clean, w->asked);
	bool has_all = w->rounds_off && w->rounds_clean && w->asked;
	free(w);
	return has_all;
}

static void nothing_acknowledged_is_lost_when_power_fails(void **state)
{
	const char *env = getenv("KILN_TEST_SEED"), *runs = getenv("KILN_TEST_RUNS");
	uint64_t seed = env ? strtoull(env, NULL, 0) : random_u64() >> 1;
	unsigned nr = env ? 1 : runs ? (unsigned)strtoul(runs, NULL, 0) : ARRAY_NR(shapes);
	bool has_all = env;

	(void)state;
	/* Each shape with a seed that is always the same, and with others. */
	for (unsigned i = 0; !env && i < ARRAY_NR(shapes); i++)
		has_all |= seed_run(i, &shapes[i]);
	for (unsigned i = 0; i < nr; i++)
		has_all |= seed_run(seed + i, &shapes[(seed + i) % ARRAY_NR(shapes)]);
	assert_true(has_all);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(nothing_acknowledged_is_lost_when_power_fails) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
