/*
 * Rates of the btree's read side on a tree in memory: loading nodes, iterating, seeking, looking up, with and without
 * snapshots and journal keys, by one task and by several.
 *
 * Usage: bench-btree [keys]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/sync.h"
#include "btree/tree_builder.h"
#include "format/version.h"

enum { NODE_BYTES = 256 << 10, BLOCK_BYTES = 4096, SLOT_SECTORS = NODE_BYTES / SECTOR_BYTES, TASKS_MAX = 4 };

struct stored {
	uint8_t *bytes;
	size_t size;
};

static struct stored *nodes;
static size_t node_nr;

static void node_place(void *ctx, const void *node, size_t bytes, struct btree_ptr *ptr)
{
	nodes = realloc(nodes, (node_nr + 1) * sizeof(*nodes));
	nodes[node_nr] = (struct stored){ malloc(bytes), bytes };
	memcpy(nodes[node_nr++].bytes, node, bytes);
	ptr->ptr_nr = 1;
	ptr->ptrs[0] = (struct extent_ptr){ .sector = node_nr * SLOT_SECTORS };
}

static int node_read(void *ctx, const struct btree_ptr *p, unsigned replica, void *buf, size_t bytes)
{
	memcpy(buf, nodes[p->ptrs[0].sector / SLOT_SECTORS - 1].bytes, bytes);
	return 0;
}

static const char *device_name(void *ctx, unsigned dev) { return "memory"; }

static bool is_ancestor(void *ctx, uint32_t id, uint32_t ancestor) { return id == ancestor; }

static void rate_print(const char *what, uint64_t nr, uint64_t start_ns)
{
	uint64_t ns = clock_monotonic_ns() - start_ns;

	printf("%-44s %12.0f /s %8.1f ns\n", what, (double)nr * 1e9 / (double)ns, (double)ns / (double)nr);
}

static uint64_t iterate_all(struct btrees *trees, unsigned btree_id, unsigned flags)
{
	struct btree_iter it;
	struct bkey_ref k;
	uint64_t nr = 0;

	btree_iter_open(&it, trees, btree_id, POS_MIN, flags, UINT32_MAX);
	for (; btree_iter_peek(&it, &k) == 1; btree_iter_advance(&it))
		nr++;
	btree_iter_close(&it);
	return nr;
}

struct looker {
	struct btrees *trees;
	uint64_t seed, keys, lookups;
};

static void lookups_run(void *arg)
{
	struct looker *l = arg;
	struct rng rng;
	uint64_t found = 0;

	rng_init(&rng, l->seed);
	for (uint64_t i = 0; i < l->lookups; i++) {
		uint64_t n = rng_below(&rng, l->keys);
		struct bkey_copy copy;

		found += (uint64_t)btree_lookup(l->trees, BTREE_XATTRS, BPOS(4096 + n / 1000, n % 1000 * 8, UINT32_MAX),
						&copy);
	}
	if (found != l->lookups)
		abort();
}

static void bench_lookups(struct btrees *trees, uint64_t keys, unsigned tasks)
{
	struct looker lookers[TASKS_MAX];
	struct task *task[TASKS_MAX];
	char what[64];
	uint64_t start = clock_monotonic_ns();

	for (unsigned i = 0; i < tasks; i++) {
		lookers[i] = (struct looker){ trees, i, keys, 500000 };
		if (task_start(&task[i], "looker", lookups_run, &lookers[i]))
			abort();
	}
	for (unsigned i = 0; i < tasks; i++)
		task_join(task[i]);
	snprintf(what, sizeof(what), "random lookups, %u task%s", tasks, tasks == 1 ? "" : "s");
	rate_print(what, tasks * 500000ull, start);
}

static void bench_iteration(struct btrees *trees)
{
	uint64_t start = clock_monotonic_ns();
	uint64_t nr = iterate_all(trees, BTREE_XATTRS, BTREE_ITER_ALL_SNAPSHOTS);

	rate_print("first iteration, keys (reads all nodes)", nr, start);
	start = clock_monotonic_ns();
	rate_print("iteration, keys", iterate_all(trees, BTREE_XATTRS, BTREE_ITER_ALL_SNAPSHOTS), start);
	start = clock_monotonic_ns();
	rate_print("iteration in a snapshot, keys", iterate_all(trees, BTREE_XATTRS, 0), start);
}

int main(int argc, char **argv)
{
	uint64_t nr = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000000;
	struct member_geometry member = { true, SLOT_SECTORS, 1, 1ull << 40 };
	struct key_context kctx = {
		.version = VERSION_1_4,
		.block_sectors = BLOCK_BYTES / SECTOR_BYTES,
		.node_sectors = SLOT_SECTORS,
		.member_nr = 1,
		.members = &member,
	};
	struct tree_builder b = {
		.version = VERSION_1_4,
		.csum_type = CHECKSUM_CRC32C_NONZERO,
		.node_bytes = NODE_BYTES,
		.block_bytes = BLOCK_BYTES,
		.keys_per_node = 8000,
		.sets_per_node = 3,
		.place = node_place,
	};
	uint64_t value[4] = { 1, 2, 3, 4 };
	struct bkey_ref *keys = calloc(nr, sizeof(*keys));
	struct btrees *trees;

	rng_init(&b.rng, 1);
	for (uint64_t i = 0; i < nr; i++)
		keys[i] = (struct bkey_ref){
			.k = { .p = BPOS(4096 + i / 1000, i % 1000 * 8, UINT32_MAX),
			       .type = KEY_COOKIE,
			       .value_u64s = 4 },
			.value = value,
		};
	struct built_root root = tree_build(&b, BTREE_XATTRS, keys, nr);
	struct btrees_opts opts = {
		.memory_bytes = 4ull << 30,
		.kctx = &kctx,
		.backend = { .read = node_read, .device_name = device_name },
	};
	if (btrees_open(&opts, &trees))
		abort();
	btrees_set_root(trees, BTREE_XATTRS, root.level, &root.key, false);
	btrees_set_snapshots(trees, (struct btree_snapshots){ .is_ancestor = is_ancestor });

	printf("%llu keys, %zu nodes of %u KiB, depth %u\n", (unsigned long long)nr, node_nr, NODE_BYTES >> 10,
	       root.level + 1);
	bench_iteration(trees);
	for (unsigned tasks = 1; tasks <= TASKS_MAX; tasks *= 2)
		bench_lookups(trees, nr, tasks);

	btrees_close(trees);
	tree_builder_free(&b);
	free(keys);
	for (size_t i = 0; i < node_nr; i++)
		free(nodes[i].bytes);
	free(nodes);
	return 0;
}
