/* What the tests of the format share: bytes from hex, and seeds. */
#ifndef KILN_TESTS_FORMAT_TEST_H
#define KILN_TESTS_FORMAT_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"

static inline int hex_digit(char c)
{
	const char *digits = "0123456789abcdef";
	const char *at = c ? strchr(digits, c) : NULL;

	return at ? (int)(at - digits) : -1;
}

/* Decode @hex into @bytes; blanks and anything else that isn't a digit are skipped. Returns the number of bytes. */
static inline size_t hex_decode(const char *hex, void *bytes, size_t size)
{
	uint8_t *out = bytes;
	size_t len = 0;
	int high = -1;

	for (; *hex; hex++) {
		int digit = hex_digit(*hex);

		if (digit < 0)
			continue;
		if (high < 0) {
			high = digit;
			continue;
		}
		assert_true(len < size);
		out[len++] = (uint8_t)(high << 4 | digit);
		high = -1;
	}
	return len;
}

/* A generator with the seed of KILN_TEST_SEED, or a fixed one. It is printed: a failed test's log has it. */
static inline struct rng test_rng(void)
{
	const char *text = getenv("KILN_TEST_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : 1;
	struct rng rng;

	print_message("KILN_TEST_SEED=%llu\n", (unsigned long long)seed);
	rng_init(&rng, seed);
	return rng;
}

/* @len bytes at @bytes in a block of their own, so that a sanitizer sees every access beyond them. free() it. */
static inline void *exact_copy(const void *bytes, size_t len)
{
	void *p = malloc(len ? len : 1);

	assert_non_null(p);
	memcpy(p, bytes, len);
	return p;
}

#endif
