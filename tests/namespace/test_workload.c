/*
 * The simulator's workload over nodes in memory: what it does to names and attributes, without journal and devices, and
 * so without data. Thousands of operations a second, and after each few all relations between keys are looked at.
 * test_change.c does what it can't: names that collide, snapshots, several threads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "../btree/seeds.h"
#include "../sim/operation.h"
#include "engine/fs.h"
#include "namespace/create_many.h"
#include "world.h"

struct run {
	struct world w;
	struct kiln_fs fs; /* as much of one as the calls look at */
	struct model model;
};

static void fs_of_world(struct run *r)
{
	r->fs = (struct kiln_fs){
		.super = &r->w.super, .trees = r->w.trees, .data = r->w.data, .ns = r->w.ns, .is_writable = true
	};
}

static void compare(struct run *r)
{
	struct strbuf why = strbuf_growing();
	struct model got;

	if (model_read(&got, &r->fs, &why) || !model_equal(&got, &r->model, UINT32_MAX, NULL, NULL, &why))
		fail_msg("%s", strbuf_text(&why));
	model_free(&got);
	strbuf_free(&why);
	world_check(&r->w);
}

/* Are there targets only that need no data? */
static bool is_possible(const struct run *r, const struct operation *op)
{
	return op->kind != OP_SYMLINK || op->len <= symlink_inline_bytes_max(&r->w.super);
}

static void limits_make(struct operation_limits *limits)
{
	static const enum operation_kind of_data[] = { OP_WRITE, OP_PUNCH, OP_TRUNCATE, OP_FALLOCATE,
						       OP_COPY,	 OP_FSYNC, OP_SYNC,	OP_BATCH };

	*limits = operation_limits_default;
	limits->mates_nr = 1;
	limits->has_data_checksums = true;
	limits->data_replicas_min = limits->data_replicas_max = 1;
	for (unsigned i = 0; i < ARRAY_NR(of_data); i++)
		limits->weights[of_data[i]] = 0;
}

/* Who held something has gone, and the namespace with what it knew of that. */
static void reopen(struct run *r)
{
	struct model got;
	struct strbuf why = strbuf_growing();

	world_reopen_namespace(&r->w);
	fs_of_world(r);
	assert_int_equal(namespace_delete_dead_inodes(r->w.ns), 0);
	assert_int_equal(model_read(&got, &r->fs, &why), 0);
	model_adopt_nodes(&r->model, &got);
	model_free(&got);
	strbuf_free(&why);
	compare(r);
}

static void run_seed(uint64_t seed)
{
	enum { ROUNDS = 8, CHECKS = 5, OPS = 40 };
	struct strbuf why = strbuf_growing();
	struct run *r = calloc(1, sizeof(*r));
	struct operation_limits limits;
	struct operation op;
	struct rng rng;
	uint64_t op_nr = 0;

	assert_non_null(r);
	rng_init(&rng, seed);
	limits_make(&limits);
	world_open(&r->w);
	fs_of_world(r);
	assert_int_equal(model_read(&r->model, &r->fs, &why), 0);
	for (unsigned round = 0; round < ROUNDS; round++) {
		for (unsigned i = 0; i < CHECKS * OPS; i++) {
			do
				operation_draw(&op, &rng, &r->model, &limits);
			while (!is_possible(r, &op));
			if (operation_run(&op, &r->model, &r->fs, ++op_nr, &why))
				fail_msg("operation %llu: %s", (unsigned long long)op_nr, strbuf_text(&why));
			if (i % OPS == 0)
				compare(r);
		}
		reopen(r);
	}
	model_free(&r->model);
	strbuf_free(&why);
	world_close(&r->w);
	free(r);
}

static void the_workload_of_the_simulator_runs_on_nodes_in_memory(void **state) { seeds_run(run_seed, 6); }

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(the_workload_of_the_simulator_runs_on_nodes_in_memory, seeds_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
