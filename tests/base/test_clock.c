/* Clocks, randomness and the reproducible generator. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/util.h"

static void seeding_is_splitmix64(void **state)
{
	/* First outputs of splitmix64 from 1234567. */
	static const uint64_t expected[4] = { 6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
					      4593380528125082431u };
	struct rng r;

	rng_init(&r, 1234567);
	assert_memory_equal(r.s, expected, sizeof(expected));
}

static void generator_is_xoshiro256_starstar(void **state)
{
	static const uint64_t expected[] = { 11520u,
					     0u,
					     1509978240u,
					     1215971899390074240u,
					     1216172134540287360u,
					     607988272756665600u,
					     16172922978634559625u,
					     8476171486693032832u,
					     10595114339597558777u,
					     2904607092377533576u };
	struct rng r = { .s = { 1, 2, 3, 4 } };

	for (unsigned i = 0; i < ARRAY_NR(expected); i++)
		assert_true(rng_u64(&r) == expected[i]);
}

static void below_is_within_its_bound_and_reaches_all_of_it(void **state)
{
	const uint64_t huge = (1ull << 63) + 1;
	unsigned times[7] = { 0 };
	bool is_above_half = false;
	struct rng r;

	rng_init(&r, 42);
	for (int i = 0; i < 7000; i++) {
		uint64_t v = rng_below(&r, 7);

		assert_true(v < 7);
		times[v]++;
	}
	/* 1000 expected of each; the standard deviation is 29. */
	for (unsigned i = 0; i < ARRAY_NR(times); i++)
		assert_in_range(times[i], 800, 1200);

	for (int i = 0; i < 100; i++) {
		uint64_t v = rng_below(&r, huge);

		assert_true(v < huge);
		is_above_half |= v > huge / 2;
		assert_true(rng_below(&r, 1) == 0);
	}
	assert_true(is_above_half);
}

static void system_randomness_fills_exactly_what_was_asked(void **state)
{
	uint8_t a[32], b[32], guarded[10];

	random_bytes(a, sizeof(a));
	random_bytes(b, sizeof(b));
	assert_memory_not_equal(a, b, sizeof(a));
	assert_true(random_u64() != random_u64());

	memset(guarded, 0x55, sizeof(guarded));
	random_bytes(guarded + 1, 0);
	for (unsigned i = 0; i < sizeof(guarded); i++)
		assert_int_equal(guarded[i], 0x55);
	/* 50 draws that all leave a byte as it was, or touch a neighbour: not by chance. */
	bool has_changed[8] = { 0 };
	for (int draw = 0; draw < 50; draw++) {
		random_bytes(guarded + 1, 8);
		assert_int_equal(guarded[0], 0x55);
		assert_int_equal(guarded[9], 0x55);
		for (unsigned i = 0; i < 8; i++)
			has_changed[i] |= guarded[1 + i] != 0x55;
	}
	for (unsigned i = 0; i < 8; i++)
		assert_true(has_changed[i]);
}

static void monotonic_time_does_not_go_back(void **state)
{
	uint64_t last_ns = clock_monotonic_ns();

	for (int i = 0; i < 1000; i++) {
		uint64_t now_ns = clock_monotonic_ns();

		assert_true(now_ns >= last_ns);
		last_ns = now_ns;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(seeding_is_splitmix64),
		cmocka_unit_test(generator_is_xoshiro256_starstar),
		cmocka_unit_test(below_is_within_its_bound_and_reaches_all_of_it),
		cmocka_unit_test(system_randomness_fills_exactly_what_was_asked),
		cmocka_unit_test(monotonic_time_does_not_go_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
