/*
 * Mutations that know what on-disk structures are made of: little-endian integers, at places that are multiples of
 * their size, with interesting values, and lists of 64-bit words that can be moved around. Half of the time libFuzzer's
 * own mutations are used instead, which learn from the comparisons of the program.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

static uint64_t interesting(struct rng *rng, uint64_t old, unsigned bits)
{
	switch (rng_below(rng, 8)) {
	case 0: return 0;
	case 1: return UINT64_MAX;
	case 2: return 1ull << rng_below(rng, bits);
	case 3: return (1ull << rng_below(rng, bits)) - 1;
	case 4: return old ^ 1ull << rng_below(rng, bits);
	case 5: return old + rng_below(rng, 17) - 8;
	case 6: return rng_below(rng, 300);
	default: return rng_u64(rng);
	}
}

static void field_change(struct rng *rng, uint8_t *data, size_t size)
{
	unsigned bytes = 1u << rng_below(rng, 4);

	if (size < bytes)
		return;
	/* Half of the time aligned as in a file that starts with a structure, else anywhere: there are headers before.
	 */
	size_t at = rng_below(rng, size - bytes + 1);
	if (rng_below(rng, 2))
		at -= at % bytes;
	uint64_t v = 0;
	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)data[at + i] << 8 * i;
	v = interesting(rng, v, bytes * 8);
	for (unsigned i = 0; i < bytes; i++)
		data[at + i] = (uint8_t)(v >> 8 * i);
}

/* Copy words over others, as they are found one after another in lists of keys and entries. */
static void words_copy(struct rng *rng, uint8_t *data, size_t size)
{
	if (size < 16)
		return;
	size_t len = 8 * (1 + rng_below(rng, min(size / 8, (size_t)16)));
	size_t from = rng_below(rng, size - len + 1), to = rng_below(rng, size - len + 1);

	memmove(data + to, data + from, len);
}

static size_t words_remove(struct rng *rng, uint8_t *data, size_t size)
{
	if (size < 16)
		return size;
	size_t len = 8 * (1 + rng_below(rng, min(size / 8 - 1, (size_t)8)));
	size_t at = rng_below(rng, size - len + 1);

	memmove(data + at, data + at + len, size - at - len);
	return size - len;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	struct rng rng;

	rng_init(&rng, seed);
	if (rng_below(&rng, 2))
		return LLVMFuzzerMutate(data, size, max_size);
	for (uint64_t nr = 1 + rng_below(&rng, 4); nr; nr--) {
		uint64_t what = rng_below(&rng, 10);

		if (what < 7)
			field_change(&rng, data, size);
		else if (what < 9)
			words_copy(&rng, data, size);
		else
			size = words_remove(&rng, data, size);
	}
	return size;
}
