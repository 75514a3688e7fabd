/* Clocks, randomness and the number of processors: injected in fiber mode, the system's in thread mode. */
#ifndef KILN_BASE_CLOCK_H
#define KILN_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

uint64_t clock_monotonic_ns(void);
/* Nanoseconds since 1970-01-01 UTC. */
uint64_t clock_realtime_ns(void);
/*
 * The same as of the last tick, some milliseconds ago at most: the kernel takes files' times from this clock. With the
 * finer one, what a mount makes would look newer than what the kernel writes to just after.
 */
uint64_t clock_tick_ns(void);
/* Switch point. */
void sleep_ns(uint64_t ns);

/* Bytes nobody can predict (keys, uuids, node sequence numbers); from the simulation's seed in fiber mode. */
void random_bytes(void *buf, size_t len);
uint64_t random_u64(void);

/* Processors this process may use, at least 1. */
unsigned cpu_nr(void);

/* Reproducible generator for tests and simulations: xoshiro256**, seeded through splitmix64 (Blackman and Vigna). */
struct rng {
	uint64_t s[4];
};
void rng_init(struct rng *r, uint64_t seed);
uint64_t rng_u64(struct rng *r);
/* Uniform in [0, bound), bound > 0. */
uint64_t rng_below(struct rng *r, uint64_t bound);

#endif
