/* Tests that take seeds. */
#ifndef KILN_TESTS_BTREE_SEEDS_H
#define KILN_TESTS_BTREE_SEEDS_H

#include <stdint.h>

/*
 * Run @check with @nr seeds, 1 to @nr - 1 and a random one, which is printed; or only with KILN_TEST_SEED from the
 * environment. Fewer with sanitizers. Tests that use it end with seeds_teardown(), which tells the seed that failed.
 */
void seeds_run(void (*check)(uint64_t seed), uint64_t nr);
int seeds_teardown(void **state);

#endif
