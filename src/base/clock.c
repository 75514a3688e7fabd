/* Clocks, randomness, processors (see base/clock.h). */
#include "base/clock.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/fiber_sched.h"
#include "base/util.h"

static const uint64_t second_ns = 1000000000;

static uint64_t clock_read(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * second_ns + (uint64_t)now.tv_nsec;
}

uint64_t clock_monotonic_ns(void) { return fiber_mode() ? fiber_monotonic_ns() : clock_read(CLOCK_MONOTONIC); }

uint64_t clock_realtime_ns(void) { return fiber_mode() ? fiber_realtime_ns() : clock_read(CLOCK_REALTIME); }

uint64_t clock_tick_ns(void) { return fiber_mode() ? fiber_realtime_ns() : clock_read(CLOCK_REALTIME_COARSE); }

void sleep_ns(uint64_t ns)
{
	uint64_t until_ns;
	struct timespec until;

	task_may_wait(NULL);
	if (__builtin_add_overflow(clock_monotonic_ns(), ns, &until_ns))
		until_ns = UINT64_MAX;
	if (fiber_mode()) {
		fiber_wait(NULL, FIBER_WAIT_SLEEP, NULL, until_ns);
		return;
	}
	until.tv_sec = (time_t)(until_ns / second_ns);
	until.tv_nsec = (long)(until_ns % second_ns);
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

void random_bytes(void *buf, size_t len)
{
	uint8_t *out = buf;
	uint64_t word;
	ssize_t got;

	if (fiber_mode()) {
		for (size_t n; len; out += n, len -= n) {
			n = min(len, sizeof(word));
			word = rng_u64(fiber_random());
			memcpy(out, &word, n);
		}
		return;
	}
	while (len) {
		got = getrandom(out, len, 0);
		if (got > 0) {
			out += got;
			len -= (size_t)got;
		} else if (errno != EINTR) {
			abort(); /* there is no second-best source for keys */
		}
	}
}

uint64_t random_u64(void)
{
	uint64_t v;

	random_bytes(&v, sizeof(v));
	return v;
}

unsigned cpu_nr(void)
{
	cpu_set_t allowed;
	long online;

	if (fiber_mode())
		return fiber_cpu_nr();
	if (!sched_getaffinity(0, sizeof(allowed), &allowed))
		return max((unsigned)CPU_COUNT(&allowed), 1u);
	/* More processors than the set has bits. */
	online = sysconf(_SC_NPROCESSORS_ONLN);
	return online > 0 ? (unsigned)online : 1;
}

/* --- xoshiro256** and splitmix64, by Blackman and Vigna (prng.di.unimi.it) --- */

static uint64_t splitmix64(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static uint64_t rotate_left(uint64_t v, unsigned bits) { return v << bits | v >> (64 - bits); }

void rng_init(struct rng *r, uint64_t seed)
{
	for (unsigned i = 0; i < ARRAY_NR(r->s); i++)
		r->s[i] = splitmix64(&seed);
}

uint64_t rng_u64(struct rng *r)
{
	uint64_t result = rotate_left(r->s[1] * 5, 7) * 9;
	uint64_t t = r->s[1] << 17;

	r->s[2] ^= r->s[0];
	r->s[3] ^= r->s[1];
	r->s[1] ^= r->s[2];
	r->s[0] ^= r->s[3];
	r->s[2] ^= t;
	r->s[3] = rotate_left(r->s[3], 45);
	return result;
}

uint64_t rng_below(struct rng *r, uint64_t bound)
{
	uint64_t reject_below, v;

	assert(bound);
	/* 2^64 is rarely a multiple of @bound: leave out the incomplete first round, 2^64 mod @bound values. */
	reject_below = -bound % bound;
	do
		v = rng_u64(r);
	while (v < reject_below);
	return v % bound;
}
