/* FUSE node ids: objects found again by the ids that the kernel holds, and forgotten with its last reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/clock.h"
#include "mount/nodes.h"

static const struct kiln_node root = { .ino = 4096, .subvol = 1 };

static struct kiln_node forgotten;

static bool is_same(struct kiln_node a, struct kiln_node b) { return a.ino == b.ino && a.subvol == b.subvol; }

static void objects_of_the_first_subvolume_are_their_own_ids(void **state)
{
	struct nodes *n = nodes_new(root);
	struct kiln_node found;

	(void)state;
	assert_non_null(n);
	assert_int_equal(nodes_get(n, root), 1);
	assert_true(nodes_find(n, 1, &found) && is_same(found, root));

	struct kiln_node file = { .ino = 123456789, .subvol = 1 };
	assert_int_equal(nodes_get(n, file), file.ino);
	nodes_forget(n, file.ino, 1, &forgotten);
	assert_true(nodes_find(n, file.ino, &found) && is_same(found, file));
	assert_int_equal(nodes_visible_ino(file), file.ino);
	nodes_free(n);
}

static void an_id_lives_as_long_as_the_kernel_refers_to_it(void **state)
{
	struct nodes *n = nodes_new(root);
	struct kiln_node file = { .ino = 4100, .subvol = 2 }, other = { .ino = 4100, .subvol = 3 }, found;

	(void)state;
	uint64_t id = nodes_get(n, file), other_id = nodes_get(n, other);
	assert_true(id && other_id && id != other_id && id != 1);
	assert_int_equal(nodes_get(n, file), id);
	assert_true(nodes_find(n, id, &found) && is_same(found, file));
	assert_true(nodes_find(n, other_id, &found) && is_same(found, other));

	nodes_forget(n, id, 1, &forgotten);
	assert_true(nodes_find(n, id, &found) && is_same(found, file));
	nodes_forget(n, id, 1, &forgotten);
	assert_false(nodes_find(n, id, &found));
	assert_true(nodes_find(n, other_id, &found) && is_same(found, other));
	nodes_free(n);
}

static void the_dead_stay_until_they_are_forgotten(void **state)
{
	struct nodes *n = nodes_new(root);
	struct kiln_node file = { .ino = 4100, .subvol = 1 }, other = { .ino = 4100, .subvol = 2 };

	(void)state;
	assert_false(nodes_mark_dead(n, file));
	uint64_t id = nodes_get(n, file), other_id = nodes_get(n, other);
	nodes_get(n, file);
	assert_true(nodes_mark_dead(n, file));
	assert_false(nodes_mark_dead(n, file));
	assert_int_equal(nodes_usage(n).dead, 1);
	assert_false(nodes_forget(n, other_id, 1, &forgotten));
	assert_false(nodes_forget(n, id, 1, &forgotten));
	assert_int_equal(nodes_id(n, file), id);
	assert_true(nodes_forget(n, id, 1, &forgotten) && is_same(forgotten, file));
	assert_int_equal(nodes_id(n, file), 0);
	assert_int_equal(nodes_usage(n).objects, 0);
	nodes_free(n);
}

static void what_never_had_a_name_is_not_gone(void **state)
{
	struct nodes *n = nodes_new(root);
	struct kiln_node unlinked = { .ino = 4100, .subvol = 1 }, unnamed = { .ino = 4101, .subvol = 1 };

	(void)state;
	nodes_get(n, unlinked);
	assert_false(nodes_is_gone(n, unlinked));
	nodes_mark_dead(n, unlinked);
	assert_true(nodes_is_gone(n, unlinked));
	uint64_t id = nodes_get(n, unnamed);
	nodes_mark_unnamed(n, unnamed);
	assert_false(nodes_is_gone(n, unnamed));
	assert_int_equal(nodes_usage(n).dead, 2);
	assert_true(nodes_forget(n, id, 1, &forgotten) && is_same(forgotten, unnamed));
	/* Its number is used again. */
	nodes_get(n, unnamed);
	nodes_mark_dead(n, unnamed);
	assert_true(nodes_is_gone(n, unnamed));
	nodes_free(n);
}

/* What the kernel makes the server remember. */
static void an_object_costs_at_most_32_bytes(void **state)
{
	enum { OBJECTS = 100000 };
	struct nodes *n = nodes_new(root);
	uint64_t empty = nodes_usage(n).bytes;

	(void)state;
	for (uint64_t i = 0; i < OBJECTS; i++)
		assert_int_equal(nodes_get(n, (struct kiln_node){ .ino = 4097 + i, .subvol = 1 }), 4097 + i);
	struct nodes_usage u = nodes_usage(n);
	assert_int_equal(u.objects, OBJECTS);
	/* Besides a last chunk per shard that isn't full. */
	assert_true(u.bytes - empty <= 32ull * OBJECTS + 16 * 1024 * 24);
	nodes_free(n);
}

/* In the order of the table, as the kernel is made to; besides the index, which stays as large as it was. */
static void what_is_forgotten_takes_no_memory(void **state)
{
	enum { OBJECTS = 200000, LEFT = 1000, BATCH = 512 };
	struct nodes *n = nodes_new(root);
	uint64_t ids[BATCH];

	(void)state;
	for (unsigned round = 0; round < 2; round++) {
		for (uint64_t i = 0; i < OBJECTS; i++)
			assert_int_equal(nodes_get(n, (struct kiln_node){ .ino = 4097 + i, .subvol = 1 }), 4097 + i);
		while (nodes_nr(n) > LEFT) {
			uint32_t nr = nodes_next(n, ids, BATCH);

			assert_true(nr);
			for (uint32_t i = 0; i < nr; i++)
				nodes_forget(n, ids[i], UINT64_MAX, &forgotten);
		}
		struct nodes_usage u = nodes_usage(n);
		assert_in_range(u.objects, 1, LEFT);
		assert_in_range(u.bytes, 1, 8 * OBJECTS + (LEFT / 1024 + 2 * 16) * 1024 * 24 + (64 << 10));
	}
	nodes_free(n);
}

static void what_the_kernel_cannot_hold_is_refused(void **state)
{
	struct nodes *n = nodes_new(root);
	struct kiln_node file = { .ino = 5000, .subvol = 7 }, found;

	(void)state;
	assert_false(nodes_find(n, 1ull << 63, &found));
	assert_false(nodes_find(n, UINT64_MAX, &found));
	nodes_forget(n, 1ull << 63, 1, &forgotten);
	nodes_forget(n, UINT64_MAX, 1, &forgotten);

	/* More is forgotten than was given out: the entry goes, and is not freed twice. */
	uint64_t id = nodes_get(n, file);
	nodes_forget(n, id, 1000, &forgotten);
	nodes_forget(n, id, 1, &forgotten);
	assert_false(nodes_find(n, id, &found));
	uint64_t again = nodes_get(n, file), another = nodes_get(n, (struct kiln_node){ .ino = 5001, .subvol = 7 });
	assert_true(again != another);
	nodes_free(n);
}

static void one_number_in_two_subvolumes_is_two_visible_ones(void **state)
{
	struct kiln_node a = { .ino = 4100, .subvol = 2 }, b = { .ino = 4100, .subvol = 3 };

	(void)state;
	assert_true(nodes_visible_ino(a) != nodes_visible_ino(b));
	assert_true(nodes_visible_ino(a) != a.ino);
	assert_int_equal(nodes_visible_ino(a), nodes_visible_ino(a));
}

/* Random references to many objects, against an array of counts. */
static void the_table_agrees_with_a_model(void **state)
{
	enum { OBJECTS = 5000, STEPS = 200000 };
	static struct {
		uint64_t id, references;
	} model[OBJECTS];
	const char *env = getenv("KILN_TEST_SEED");
	uint64_t seed = env ? strtoull(env, NULL, 0) : 1;
	struct nodes *n = nodes_new(root);
	struct rng rng;

	(void)state;
	rng_init(&rng, seed);
	for (unsigned step = 0; step < STEPS; step++) {
		size_t i = rng_below(&rng, OBJECTS);
		struct kiln_node node = { .ino = 4096 + i % 100, .subvol = 2 + (uint32_t)(i / 100) }, found;
		bool is_known;

		/* First it grows, then it shrinks. */
		if (rng_below(&rng, STEPS) > step) {
			uint64_t id = nodes_get(n, node);
			is_known = id && (!model[i].references || id == model[i].id);
			model[i].id = id;
			model[i].references++;
		} else {
			uint64_t count = model[i].references ? 1 + rng_below(&rng, model[i].references) : 0;
			if (count)
				nodes_forget(n, model[i].id, count, &forgotten);
			model[i].references -= count;
			is_known = true;
		}
		if (model[i].references)
			is_known &= nodes_find(n, model[i].id, &found) && is_same(found, node);
		if (!is_known)
			fail_msg("step %u, object %zu; KILN_TEST_SEED=%llu repeats it", step, i,
				 (unsigned long long)seed);
	}
	for (size_t i = 0; i < OBJECTS; i++) {
		struct kiln_node found;
		if (model[i].references)
			assert_true(nodes_find(n, model[i].id, &found) && found.ino == 4096 + i % 100);
	}
	nodes_free(n);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(objects_of_the_first_subvolume_are_their_own_ids),
		cmocka_unit_test(an_id_lives_as_long_as_the_kernel_refers_to_it),
		cmocka_unit_test(the_dead_stay_until_they_are_forgotten),
		cmocka_unit_test(what_never_had_a_name_is_not_gone),
		cmocka_unit_test(an_object_costs_at_most_32_bytes),
		cmocka_unit_test(what_is_forgotten_takes_no_memory),
		cmocka_unit_test(what_the_kernel_cannot_hold_is_refused),
		cmocka_unit_test(one_number_in_two_subvolumes_is_two_visible_ones),
		cmocka_unit_test(the_table_agrees_with_a_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
