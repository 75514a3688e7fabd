/*
 * What tests of a whole filesystem in a file have in common: opening it, checking it, and the seed that random ones
 * draw from.
 */
#ifndef KILN_TESTS_ENGINE_WHOLE_H
#define KILN_TESTS_ENGINE_WHOLE_H

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/clock.h"
#include "kiln/kiln.h"

/* $KILN_TEST_SEED, else another each time. It is printed. */
static inline uint64_t seed_print(void)
{
	const char *text = getenv("KILN_TEST_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : random_u64();

	print_message("KILN_TEST_SEED=%" PRIu64 "\n", seed);
	return seed;
}

static inline kiln_fs *must_open_all(const char *const *paths, unsigned nr, unsigned flags)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = flags };
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;

	if (kiln_open(paths, nr, &options, &fs, why))
		fail_msg("%s", why);
	if (flags & KILN_OPEN_WRITE)
		assert_null(kiln_write_refused(fs));
	return fs;
}

static inline kiln_fs *must_open(const char *path, unsigned flags) { return must_open_all(&path, 1, flags); }

/* The checker, with all data read, finds nothing. */
static inline void must_be_consistent(kiln_fs *fs)
{
	struct kiln_check_options options = { .struct_bytes = sizeof(options), .flags = KILN_CHECK_DATA };
	struct kiln_check_result *result = calloc(1, sizeof(*result));

	assert_int_equal(kiln_check(fs, &options, result), 0);
	for (unsigned i = 0; i < result->kind_nr; i++)
		print_error("%" PRIu64 " x %s\n", result->kinds[i].count, result->kinds[i].name);
	assert_int_equal(result->errors, 0);
	free(result);
}

#endif
