/*
 * Allocations that fail: malloc() and its kin as the whole program calls them, by the linker's --wrap.
 *
 * Whether one fails comes from a seed, so a run is reproducible. What belongs to the simulation itself is exempt.
 */
#include <errno.h>
#include <stdlib.h>

#include "sim.h"

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t nr, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
int __real_posix_memalign(void **p, size_t align, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t nr, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
int __wrap_posix_memalign(void **p, size_t align, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);

static struct {
	unsigned one_in;
	unsigned exempt;
	struct rng rng;
	uint64_t failures;
} memory;

void memory_fail(uint64_t seed, unsigned one_in)
{
	rng_init(&memory.rng, seed);
	memory.one_in = one_in;
}

uint64_t memory_failures(void) { return memory.failures; }
void memory_exempt_begin(void) { memory.exempt++; }
void memory_exempt_end(void) { memory.exempt--; }

static bool fails(void)
{
	if (!memory.one_in || memory.exempt || rng_below(&memory.rng, memory.one_in))
		return false;
	memory.failures++;
	errno = ENOMEM;
	return true;
}

void *__wrap_malloc(size_t bytes) { return fails() ? NULL : __real_malloc(bytes); }
void *__wrap_calloc(size_t nr, size_t bytes) { return fails() ? NULL : __real_calloc(nr, bytes); }
void *__wrap_realloc(void *p, size_t bytes) { return fails() ? NULL : __real_realloc(p, bytes); }
int __wrap_posix_memalign(void **p, size_t align, size_t bytes)
{
	return fails() ? ENOMEM : __real_posix_memalign(p, align, bytes);
}
void *__wrap_aligned_alloc(size_t align, size_t bytes) { return fails() ? NULL : __real_aligned_alloc(align, bytes); }
