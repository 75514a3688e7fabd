/* Tests that take seeds (see seeds.h). */
#include "seeds.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/sanitizer.h"

static uint64_t seed_running;

void seeds_run(void (*check)(uint64_t seed), uint64_t nr)
{
	const char *text = getenv("KILN_TEST_SEED");
	uint64_t fixed_nr = text ? 0 : (KILN_SANITIZED ? (nr + 2) / 3 : nr) - 1;
	uint64_t other = text ? strtoull(text, NULL, 0) : random_u64() >> 32;

	print_message("KILN_TEST_SEED=%llu, after 1 to %llu\n", (unsigned long long)other,
		      (unsigned long long)fixed_nr);
	for (uint64_t i = 1; i <= fixed_nr; i++)
		check(seed_running = i);
	check(seed_running = other);
	seed_running = 0;
}

int seeds_teardown(void **state)
{
	if (seed_running)
		fprintf(stderr, "repeat with KILN_TEST_SEED=%llu\n", (unsigned long long)seed_running);
	seed_running = 0;
	return 0;
}
