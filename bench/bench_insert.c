/*
 * Rates at which transactions put keys into btrees: on nodes in memory, and in a whole filesystem on a memory device,
 * with journal and node writes; in ascending and random order; by one task and by two. Beside them the C library's
 * balanced tree (tsearch), which takes the same keys without transactions, locks, order on disk or durability.
 *
 * Usage: bench-insert [keys [keys per transaction]]
 */
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/sync.h"
#include "btree/txn.h"
#include "device/device.h"
#include "engine/format.h"
#include "engine/fs.h"
#include "format/version.h"

enum { TASKS_MAX = 2, VALUE_U64S = 4, PER_INODE = 1000, ID = BTREE_XATTRS };

struct order {
	uint64_t nr;
	bool is_random;
};

/* A permutation of 0 .. nr - 1: the multiplier is prime, and nr not a multiple of it. */
static struct bpos nth_position(const struct order *o, uint64_t i)
{
	uint64_t n = o->is_random ? (uint64_t)((unsigned __int128)i * 2654435761 % o->nr) : i;

	return BPOS(1 << 20 | n / PER_INODE, n % PER_INODE * 8, UINT32_MAX);
}

/* --- transactions --- */

struct inserter {
	struct btrees *trees;
	const struct order *order;
	uint64_t at, end, batch;
};

static int put_batch(struct btree_txn *txn, void *ctx)
{
	const struct inserter *in = ctx;
	uint64_t value[VALUE_U64S] = { 1, 2, 3, 4 };
	int err = 0;

	for (uint64_t i = in->at; i < in->at + in->batch && i < in->end && !err; i++) {
		struct bkey k = { .p = nth_position(in->order, i), .type = KEY_COOKIE, .value_u64s = VALUE_U64S };

		err = btree_txn_put(txn, ID, &k, value, 0);
	}
	return err;
}

static void inserts_run(void *arg)
{
	struct inserter *in = arg;
	const struct btree_commit_opts opts = { .name = "bench" };

	for (; in->at < in->end; in->at += in->batch)
		if (btree_txn_run(in->trees, &opts, put_batch, in))
			abort();
}

static double seconds_of_inserts(struct btrees *trees, const struct order *order, unsigned tasks, uint64_t batch)
{
	struct inserter in[TASKS_MAX];
	struct task *task[TASKS_MAX];
	uint64_t start = clock_monotonic_ns();

	for (unsigned i = 0; i < tasks; i++) {
		in[i] = (struct inserter){ trees, order, order->nr * i / tasks, order->nr * (i + 1) / tasks, batch };
		if (task_start(&task[i], "inserter", inserts_run, &in[i]))
			abort();
	}
	for (unsigned i = 0; i < tasks; i++)
		task_join(task[i]);
	return (double)(clock_monotonic_ns() - start) / 1e9;
}

/* --- where the nodes are --- */

static double in_memory(const struct order *order, unsigned tasks, uint64_t batch)
{
	struct key_context kctx = { .version = VERSION_1_4, .block_sectors = 8, .node_sectors = 512 };
	struct btrees_opts opts = { .memory_bytes = 2ull << 30, .magic = 17 };
	struct btree_memory *memory;
	struct btrees *trees;

	if (btree_memory_open(&kctx, &memory))
		abort();
	opts.kctx = btree_memory_context(memory);
	btree_memory_backend(memory, &opts.backend);
	if (btrees_open(&opts, &trees) || btrees_start_write(trees, &(struct btrees_write_opts){ 0 }))
		abort();
	double seconds = seconds_of_inserts(trees, order, tasks, batch);
	btrees_stop_write(trees);
	btrees_close(trees);
	btree_memory_close(memory);
	return seconds;
}

/* Until everything is on the device and durable. */
static double in_a_filesystem(const struct order *order, unsigned tasks, uint64_t batch)
{
	struct kiln_format_device place = { 0 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format) };
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = KILN_OPEN_WRITE };
	char why[KILN_ERROR_BYTES] = "";
	struct device *dev;
	kiln_fs *fs;

	if (device_open_memory("memory", 4ull << 30, 4096, &dev) || fs_format_devices(&dev, &place, 1, &format, why) ||
	    fs_initialize(&dev, 1, &options, &fs, why)) {
		fprintf(stderr, "format: %s\n", why);
		exit(1);
	}
	uint64_t start = clock_monotonic_ns();
	seconds_of_inserts(fs->trees, order, tasks, batch);
	if (kiln_sync(fs) || btrees_flush_all(fs->trees))
		abort();
	double seconds = (double)(clock_monotonic_ns() - start) / 1e9;
	kiln_shutdown(fs);
	kiln_close(fs);
	return seconds;
}

/* --- the C library --- */

struct keyed {
	struct bpos p;
	uint64_t value[VALUE_U64S];
};

static int entry_cmp(const void *a, const void *b)
{
	return bpos_cmp(((const struct keyed *)a)->p, ((const struct keyed *)b)->p);
}

static double in_a_tsearch(const struct order *order)
{
	uint64_t start = clock_monotonic_ns();
	void *root = NULL;

	for (uint64_t i = 0; i < order->nr; i++) {
		struct keyed *e = malloc(sizeof(*e));

		*e = (struct keyed){ nth_position(order, i), { 1, 2, 3, 4 } };
		if (!tsearch(e, &root, entry_cmp))
			abort();
	}
	double seconds = (double)(clock_monotonic_ns() - start) / 1e9;
	tdestroy(root, free);
	return seconds;
}

static void print(const char *what, const struct order *order, unsigned tasks, double seconds, double peer)
{
	printf("%-16s %-9s %u task%c %10.0f /s per core  %5.0f %% of tsearch's rate\n", what,
	       order->is_random ? "random" : "ascending", tasks, tasks == 1 ? ' ' : 's',
	       (double)order->nr / seconds / tasks, 100 * peer / seconds / tasks);
}

int main(int argc, char **argv)
{
	struct order order = { .nr = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000000 };
	uint64_t batch = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;

	if (!order.nr || !batch)
		return 2;
	printf("%llu keys of %u bytes, %llu per transaction\n", (unsigned long long)order.nr, 40 + VALUE_U64S * 8,
	       (unsigned long long)batch);
	for (int random = 0; random < 2; random++) {
		order.is_random = random;
		double peer = in_a_tsearch(&order);

		print("tsearch", &order, 1, peer, peer);
		for (unsigned tasks = 1; tasks <= TASKS_MAX; tasks++) {
			print("nodes in memory", &order, tasks, in_memory(&order, tasks, batch), peer);
			print("filesystem", &order, tasks, in_a_filesystem(&order, tasks, batch), peer);
		}
	}
	return 0;
}
