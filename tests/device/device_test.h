/* What the tests of devices share: the kinds of device, temporary files, seeds, bytes to recognise. */
#ifndef KILN_TESTS_DEVICE_TEST_H
#define KILN_TESTS_DEVICE_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "device/device.h"

/* A device of one kind, fresh, all zero. A kind that can't work on this machine is skipped, loudly. */
struct device_kind {
	const char *name;
	unsigned file_flags; /* DEVICE_OPEN_*, for those on a file */
	bool needs_uring;
	uint32_t memory_block_bytes; /* not 0: on memory */
	bool is_traced, is_faulty;
};

extern const struct device_kind device_kinds[];
extern const unsigned device_kind_nr;

/* NULL after skipping. */
struct device *kind_open(const struct device_kind *kind, uint64_t size_bytes);

/* Whether the kernel lets this process use io_uring. */
bool uring_is_allowed(void);
/* Says on stderr what isn't tested and why; returns to cmocka. */
void skip_loudly(const char *what, const char *why);

/* A directory for this program's files under $TMPDIR, removed with all in it at exit. */
const char *temp_dir(void);
/* Path in it; valid for the next 7 calls. */
const char *temp_path(const char *name);
void temp_file_create(const char *path, uint64_t size_bytes);

/*
 * A loop device on a new file of @size_bytes; it lives while the returned descriptor is open. Sets @path. Where loop
 * devices can't be made the test is skipped, loudly.
 */
int loop_open(uint64_t size_bytes, uint32_t logical_block_bytes, char path[64]);

/*
 * Run @fn(@arg) in a child process; returns whether it returned true. For what can't be undone in this process. @fn
 * must not use cmocka.
 */
bool child_succeeds(bool (*fn)(void *arg), void *arg);

/* $KILN_TEST_SEED, or one by the clock; printed at the end, to repeat a failure. */
uint64_t test_seed(void);

void buffer_fill_random(struct rng *rng, void *buf, size_t bytes);
/* A buffer of @bytes whose address is @skew_bytes off the best alignment; free what *@base gets. */
uint8_t *buffer_skewed(size_t bytes, size_t skew_bytes, void **base);

#endif
