/*
 * Crashes: what was durable in the journal is all there afterwards, and nothing else, wherever the btrees stood with
 * writing nodes, splitting, and applying the write buffer.
 *
 * The journal is one of this test: entries in memory, some of them durable. A crash keeps the nodes as they had been
 * written and the durable entries from the oldest that was pinned when the last one was closed: just what recovery
 * would have. Everything runs in fibers, which switch inside of no function of this journal but those that may wait.
 */
#include "fixture.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/array.h"
#include "base/clock.h"
#include "base/fiber.h"
#include "base/util.h"
#include "btree/txn.h"
#include "format/jset.h"
#include "format/version.h"

enum {
	NODE_BYTES = 4096,
	ENTRY_U64S = 8192,
	WRITERS = 3,
	POSITIONS = 600, /* of each writer and btree */
	PINNED_MAX = 25, /* entries, until reclaim gets to work */
};

static const unsigned btree_ids[] = { BTREE_QUOTAS, BTREE_DIRENTS, BTREE_REBALANCE_WORK };

static uint64_t test_seed;

/* Tasks can't use cmocka's assertions, which unwind. */
#define CHECK(condition)                                    \
	do {                                                \
		if (!(condition))                           \
			check_failed(__LINE__, #condition); \
	} while (0)

static _Noreturn void check_failed(int line, const char *condition)
{
	fprintf(stderr, "%s:%d: not true: %s; repeat with KILN_TEST_SEED=%llu\n", __FILE__, line, condition,
		(unsigned long long)test_seed);
	abort();
}

/* --- the journal --- */

struct fake_entry {
	uint64_t words[ENTRY_U64S];
	unsigned used, reservations;
	uint64_t oldest_pinned; /* when it was closed */
};

static struct {
	struct fake_entry **entries; /* entry i has seq i + 1; the last one is open */
	size_t nr, capacity;
	uint64_t flushed;
	struct journal_pin *pins;
	struct rng rng;
	bool is_crashed; /* nothing becomes durable any more */
	bool is_over;	 /* for the tasks */
} fake;

static void entry_open(void)
{
	CHECK(!array_grow(&fake.entries, &fake.capacity, fake.nr + 1, sizeof(struct fake_entry *)));
	fake.entries[fake.nr] = calloc(1, sizeof(struct fake_entry));
	CHECK(fake.entries[fake.nr]);
	fake.nr++;
}

static uint64_t oldest_pinned(void)
{
	uint64_t oldest = fake.nr;

	for (const struct journal_pin *p = fake.pins; p; p = p->next)
		oldest = min(oldest, p->seq);
	return oldest;
}

static void entry_close(void)
{
	fake.entries[fake.nr - 1]->oldest_pinned = oldest_pinned();
	entry_open();
}

uint64_t journal_seq(const struct journal *j) { return fake.nr; }

int journal_res_get(struct journal *j, struct journal_res *res, unsigned u64s, enum watermark watermark, unsigned flags)
{
	CHECK(u64s <= ENTRY_U64S);
	if ((flags & JOURNAL_RES_TRY) && rng_below(&fake.rng, 20) == 0)
		return -EAGAIN;
	if (fake.entries[fake.nr - 1]->used + u64s > ENTRY_U64S || rng_below(&fake.rng, 12) == 0)
		entry_close();
	struct fake_entry *e = fake.entries[fake.nr - 1];
	*res = (struct journal_res){ .seq = fake.nr, .at = e->used, .u64s = u64s };
	e->used += u64s;
	e->reservations++;
	return 0;
}

int journal_res_wait(struct journal *j, unsigned u64s, enum watermark watermark)
{
	task_yield();
	return 0;
}

void *journal_res_add(struct journal *j, struct journal_res *res, unsigned type, unsigned btree_id, unsigned level,
		      unsigned payload_u64s)
{
	struct jset_entry_disk d = {
		.u64s = le16_of((uint16_t)payload_u64s),
		.btree_id = (uint8_t)btree_id,
		.level = (uint8_t)level,
		.type = (uint8_t)type,
	};
	uint64_t *at = fake.entries[res->seq - 1]->words + res->at + res->used;

	CHECK(res->used + 1 + payload_u64s <= res->u64s);
	memcpy(at, &d, sizeof(d));
	res->used += 1 + payload_u64s;
	return at + 1;
}

void journal_res_add_key(struct journal *j, struct journal_res *res, unsigned type, unsigned btree_id, unsigned level,
			 const struct bkey *k, const void *value)
{
	uint8_t *at = journal_res_add(j, res, type, btree_id, level, (unsigned)BKEY_U64S + k->value_u64s);

	bkey_store((struct bkey_disk *)at, k);
	if (k->value_u64s)
		memcpy(at + sizeof(struct bkey_disk), value, bkey_value_bytes(k));
}

void journal_res_put(struct journal *j, struct journal_res *res) { fake.entries[res->seq - 1]->reservations--; }

int journal_flush_seq(struct journal *j, uint64_t seq)
{
	if (fake.flushed >= seq)
		return 0;
	if (fake.nr <= seq)
		entry_close();
	for (uint64_t s = fake.flushed; s < seq; s++)
		while (fake.entries[s]->reservations)
			sleep_ns(1000);
	sleep_ns(rng_below(&fake.rng, 100000));
	if (!fake.is_crashed)
		fake.flushed = max(fake.flushed, seq);
	return 0;
}

void journal_pin_add(struct journal *j, struct journal_pin *pin, uint64_t seq,
		     void (*flush)(struct journal *, struct journal_pin *, uint64_t))
{
	CHECK(seq && seq <= fake.nr && seq >= fake.entries[fake.nr > 1 ? fake.nr - 2 : 0]->oldest_pinned);
	if (pin->seq) {
		pin->seq = min(pin->seq, seq);
		return;
	}
	*pin = (struct journal_pin){ .seq = seq, .flush = flush, .next = fake.pins };
	if (pin->next)
		pin->next->prev = pin;
	fake.pins = pin;
}

void journal_pin_drop(struct journal *j, struct journal_pin *pin)
{
	if (!pin->seq)
		return;
	if (pin->prev)
		pin->prev->next = pin->next;
	else
		fake.pins = pin->next;
	if (pin->next)
		pin->next->prev = pin->prev;
	*pin = (struct journal_pin){ 0 };
}

void journal_pin_move(struct journal *j, struct journal_pin *to, struct journal_pin *from,
		      void (*flush)(struct journal *, struct journal_pin *, uint64_t))
{
	uint64_t seq = from->seq;

	journal_pin_drop(j, from);
	if (seq)
		journal_pin_add(j, to, seq, flush);
}

static void reclaim_run(void *arg)
{
	while (!fake.is_over) {
		struct journal_pin *oldest = NULL;

		for (struct journal_pin *p = fake.pins; p; p = p->next)
			if (!oldest || p->seq < oldest->seq)
				oldest = p;
		if (oldest && oldest->seq + PINNED_MAX < fake.nr)
			oldest->flush(NULL, oldest, oldest->seq);
		sleep_ns(20000);
	}
}

static void flusher_run(void *arg)
{
	while (!fake.is_over) {
		journal_flush_seq(NULL, fake.nr);
		sleep_ns(rng_below(&fake.rng, 3000000));
	}
}

/* --- the disk --- */

static struct btree_memory *memory;
static struct btree_backend memory_backend;

/* All nodes there have ever been, and what they held at the crash: who still runs then reads what it writes. */
static struct disk_node {
	struct btree_ptr ptr;
	uint8_t bytes[NODE_BYTES];
} * nodes;
static size_t node_nr, node_capacity;

static void disk_alloc(void *ctx, struct btree_node_reserve *reserve, struct btree_ptr *p)
{
	memory_backend.node_alloc(ctx, reserve, p);
	CHECK(!array_grow(&nodes, &node_capacity, node_nr + 1, sizeof(*nodes)));
	nodes[node_nr++].ptr = *p;
}

static int disk_write(void *ctx, const struct btree_ptr *p, const void *buf, size_t offset, size_t bytes,
		      unsigned *failed)
{
	sleep_ns(rng_below(&fake.rng, 50000));
	return memory_backend.write(ctx, p, buf, offset, bytes, failed);
}

static void disk_save(void)
{
	for (size_t i = 0; i < node_nr; i++)
		CHECK(!memory_backend.read(memory_backend.ctx, &nodes[i].ptr, 0, nodes[i].bytes, NODE_BYTES));
}

static void disk_restore(size_t nr)
{
	unsigned failed;

	for (size_t i = 0; i < nr; i++)
		CHECK(!memory_backend.write(memory_backend.ctx, &nodes[i].ptr, nodes[i].bytes, 0, NODE_BYTES, &failed));
}

static const struct key_context kctx = {
	.version = VERSION_1_4,
	.upgrade_complete = VERSION_1_4,
	.block_sectors = 1,
	.node_sectors = NODE_BYTES / SECTOR_BYTES,
	.backpointer_shift = 10,
	.time_precision_ns = 1,
};

static unsigned report_nr;

static void report_count(void *ctx, const struct report *r)
{
	fprintf(stderr, "report: %s: expected %s, found %s\n", r->position ? r->position : "",
		r->expected ? r->expected : "", r->found ? r->found : "");
	report_nr++;
}

static const struct report_sink sink = { .emit = report_count };

static struct btrees *trees_open(void)
{
	struct btrees_opts opts = {
		.memory_bytes = BTREE_CACHE_BYTES_MIN(NODE_BYTES) + (test_seed % 3) * (128 << 10),
		.kctx = btree_memory_context(memory),
		.magic = 7,
		.backend = memory_backend,
		.reports = &sink,
	};
	struct btrees *trees;

	opts.backend.write = disk_write;
	opts.backend.node_alloc = disk_alloc;
	opts.backend.node_free = NULL;
	CHECK(!btrees_open(&opts, &trees));
	return trees;
}

/* --- what is put --- */

/* Every put, with where in the journal it is. */
struct op {
	uint64_t seq;
	unsigned tree;
	uint64_t offset, value; /* value 0: deleted */
};

struct writer {
	struct btrees *trees;
	unsigned nr;
	struct op *ops;
	size_t op_nr, op_capacity;
};

struct puts {
	struct op ops[6];
	unsigned nr;
};

static struct bpos op_pos(const struct op *op)
{
	bool has_snapshot = btree_flags(btree_ids[op->tree]) & (BTREE_HAS_SNAPSHOTS | BTREE_HAS_SNAPSHOT_FIELD);

	return BPOS(1 + op->offset % 3, op->offset, has_snapshot ? UINT32_MAX : 0);
}

static int puts_fn(struct btree_txn *txn, void *ctx)
{
	const struct puts *p = ctx;
	int err = 0;

	for (unsigned i = 0; !err && i < p->nr; i++) {
		const struct op *op = &p->ops[i];
		struct bkey k = { .p = op_pos(op) };
		uint64_t value[8] = { op->value };

		if (op->value) {
			k.type = KEY_COOKIE;
			k.value_u64s = 1 + op->value % 8;
		}
		err = btree_txn_put(txn, btree_ids[op->tree], &k, value, 0);
	}
	return err;
}

static void writer_run(void *arg)
{
	struct writer *w = arg;
	struct rng rng;

	rng_init(&rng, test_seed * 16 + w->nr);
	while (!fake.is_over) {
		struct puts p = { .nr = 1 + (unsigned)rng_below(&rng, ARRAY_NR(p.ops)) };
		uint64_t seq = 0;

		for (unsigned i = 0; i < p.nr; i++)
			p.ops[i] = (struct op){
				.tree = (unsigned)rng_below(&rng, ARRAY_NR(btree_ids)),
				.offset = 1 + rng_below(&rng, POSITIONS) * WRITERS + w->nr,
				.value = rng_below(&rng, 4) ? rng_u64(&rng) | 1 : 0,
			};
		CHECK(!btree_txn_run(w->trees, &(struct btree_commit_opts){ .name = "put", .journal_seq = &seq },
				     puts_fn, &p));
		CHECK(seq);
		CHECK(!array_grow(&w->ops, &w->op_capacity, w->op_nr + p.nr, sizeof(*w->ops)));
		for (unsigned i = 0; i < p.nr; i++) {
			w->ops[w->op_nr] = p.ops[i];
			w->ops[w->op_nr++].seq = seq;
		}
		if (rng_below(&rng, 200) == 0)
			CHECK(!btree_write_buffer_flush(w->trees));
		if (rng_below(&rng, 4) == 0)
			sleep_ns(rng_below(&rng, 20000));
	}
}

/* --- after the crash --- */

static uint64_t expected[ARRAY_NR(btree_ids)][POSITIONS * WRITERS + WRITERS + 1];

static void expect(const struct writer *writers, uint64_t seq_max)
{
	memset(expected, 0, sizeof(expected));
	for (unsigned w = 0; w < WRITERS; w++)
		for (size_t i = 0; i < writers[w].op_nr; i++) {
			const struct op *op = &writers[w].ops[i];

			if (op->seq <= seq_max)
				expected[op->tree][op->offset] = op->value;
		}
}

static void compare(struct btrees *trees)
{
	for (unsigned t = 0; t < ARRAY_NR(btree_ids); t++) {
		uint64_t found[ARRAY_NR(expected[0])] = { 0 };
		struct btree_iter it;
		struct bkey_ref k;
		int ret;

		btree_iter_open(&it, trees, btree_ids[t], POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
		while ((ret = btree_iter_peek(&it, &k)) > 0) {
			CHECK(k.k.p.offset < ARRAY_NR(found));
			found[k.k.p.offset] = le64_load(k.value);
			btree_iter_advance(&it);
		}
		btree_iter_close(&it);
		CHECK(!ret);
		for (unsigned i = 0; i < ARRAY_NR(found); i++)
			CHECK(found[i] == expected[t][i]);
	}
	CHECK(!report_nr);
}

/* Roots are those of the newest durable entry, whatever is pinned; keys those of the pinned ones. */
static void entry_recover(struct btrees *trees, struct overlay_builder *overlay, uint64_t seq, bool is_pinned)
{
	const struct fake_entry *e = fake.entries[seq - 1];
	uint32_t order = 0;

	for (unsigned at = 0; at < e->used;) {
		const struct jset_entry_disk *d = (const struct jset_entry_disk *)&e->words[at];
		struct jset_key_walk w = jset_key_walk_of(d);
		struct bkey_ref k;

		while (jset_key_walk_next(&w, &k, NULL) > 0) {
			const struct bkey_disk *key = (const struct bkey_disk *)jset_entry_payload(d);

			if (d->type == JSET_ENTRY_BTREE_ROOT)
				CHECK(!btrees_set_root(trees, d->btree_id, d->level, &k, false));
			else if (d->type == JSET_ENTRY_BTREE_KEYS && is_pinned)
				CHECK(!overlay_builder_add(overlay, d->btree_id, d->level, seq, order++, key));
		}
		at += 1 + le16_get(d->u64s);
	}
}

/* Both with and without the key cache. */
static uint32_t cached_btrees(void) { return test_seed % 3 ? 1u << BTREE_QUOTAS | 1u << BTREE_DIRENTS : 0; }

static void recover(const struct writer *writers)
{
	const struct btrees_write_opts write_opts = { .cached_btrees = cached_btrees(),
						      .csum_type = CHECKSUM_XXHASH,
						      .version = VERSION_1_4 };
	struct overlay_builder *overlay = overlay_builder_new(false);
	uint64_t flushed = fake.flushed;
	struct btrees *trees = trees_open();

	CHECK(overlay);
	fake.is_crashed = false;
	expect(writers, flushed);
	for (uint64_t seq = 1; seq <= flushed; seq++)
		entry_recover(trees, overlay, seq, seq >= fake.entries[flushed - 1]->oldest_pinned);
	CHECK(!btrees_set_overlay(trees, overlay));
	compare(trees);

	CHECK(!btrees_start_write(trees, &write_opts));
	CHECK(!btrees_replay(trees));
	compare(trees);
	CHECK(!btrees_flush_all(trees));
	compare(trees);
	btrees_stop_write(trees);
	btrees_close(trees);
}

static void life(void *arg)
{
	struct btrees_write_opts write_opts = {
		.journal = (struct journal *)&fake,
		.has_txn_names = test_seed % 2,
		.cached_btrees = cached_btrees(),
		.csum_type = CHECKSUM_CRC32C_NONZERO,
		.version = VERSION_1_4,
	};
	struct writer writers[WRITERS] = { 0 };
	struct task *tasks[WRITERS + 2];
	struct btrees *trees;

	CHECK(!btree_memory_open(&kctx, &memory));
	btree_memory_backend(memory, &memory_backend);
	entry_open();
	trees = trees_open();
	CHECK(!btrees_start_write(trees, &write_opts));
	for (unsigned i = 0; i < WRITERS; i++) {
		writers[i] = (struct writer){ .trees = trees, .nr = i };
		CHECK(!task_start(&tasks[i], "writer", writer_run, &writers[i]));
	}
	CHECK(!task_start(&tasks[WRITERS], "reclaim", reclaim_run, NULL));
	CHECK(!task_start(&tasks[WRITERS + 1], "flusher", flusher_run, NULL));

	sleep_ns(1000000 + rng_below(&fake.rng, 60000000));
	while (!fake.flushed)
		sleep_ns(1000000);
	fake.is_crashed = fake.is_over = true;
	disk_save();
	size_t saved_nr = node_nr;
	for (unsigned i = 0; i < ARRAY_NR(tasks); i++)
		task_join(tasks[i]);
	btrees_stop_write(trees);
	btrees_close(trees);
	CHECK(!report_nr);

	disk_restore(saved_nr);
	recover(writers);
	for (unsigned i = 0; i < WRITERS; i++)
		free(writers[i].ops);
	for (size_t i = 0; i < fake.nr; i++)
		free(fake.entries[i]);
	free(fake.entries);
	free(nodes);
	nodes = NULL;
	node_nr = node_capacity = 0;
	btree_memory_close(memory);
}

static void crash_seed(uint64_t seed)
{
	test_seed = seed;
	report_nr = 0;
	memset(&fake, 0, sizeof(fake));
	rng_init(&fake.rng, seed);
	assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, life, NULL, NULL), 0);
}

static void what_was_durable_survives_a_crash(void **state) { seeds_run(crash_seed, 20); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(what_was_durable_survives_a_crash, seeds_teardown),
	};

	return cmocka_run_group_tests_name("btree crashes", tests, NULL, NULL);
}
