/*
 * What an uncontended SIX lock costs, in nanoseconds per pair of lock and unlock, on one thread.
 *
 * Measured next to it are an atomic increment and decrement, which is the least that a lock counting its readers can
 * cost, and the system's locks. All measurements of a repetition are taken one after another before the next repetition
 * starts, so that a machine that changes its pace changes it for all of them. Printed are the median, the 10th and 90th
 * percentile, and the ratio of the medians to that of the atomic pair.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/six.h"
#include "base/sync.h"
#include "base/util.h"

enum { PAIR_NR = 4096, REPETITION_NR = 301 };

static struct six_lock six;
static struct mutex mutex;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static uint64_t counter;
static uint32_t seq;

static void atomic_pair(void)
{
	__atomic_fetch_add(&counter, 1, __ATOMIC_ACQUIRE);
	__atomic_fetch_sub(&counter, 1, __ATOMIC_RELEASE);
}

static void six_read(void)
{
	six_lock_read(&six);
	six_unlock_read(&six);
}

static void six_try_read(void)
{
	if (six_trylock_read(&six))
		six_unlock_read(&six);
}

static void six_relock_of_read(void)
{
	if (six_relock_read(&six, seq))
		six_unlock_read(&six);
}

static void six_intent(void)
{
	six_lock_intent(&six);
	six_unlock_intent(&six);
}

static void six_intent_and_write(void)
{
	six_lock_intent(&six);
	six_lock_write(&six);
	six_unlock_write(&six);
	six_unlock_intent(&six);
}

static void rwlock_read(void)
{
	pthread_rwlock_rdlock(&rwlock);
	pthread_rwlock_unlock(&rwlock);
}

static void rwlock_write(void)
{
	pthread_rwlock_wrlock(&rwlock);
	pthread_rwlock_unlock(&rwlock);
}

static void mutex_pair(void)
{
	mutex_lock(&mutex);
	mutex_unlock(&mutex);
}

static const struct {
	const char *name;
	void (*pair)(void);
} pairs[] = {
	{ "atomic add, subtract", atomic_pair },
	{ "six relock read", six_relock_of_read },
	{ "six read", six_read },
	{ "six trylock read", six_try_read },
	{ "six intent", six_intent },
	{ "six intent and write", six_intent_and_write },
	{ "pthread_rwlock read", rwlock_read },
	{ "pthread_rwlock write", rwlock_write },
	{ "base mutex", mutex_pair },
};

static double measure(void (*pair)(void))
{
	uint64_t start;

	six_lock_read(&six);
	seq = six_seq(&six);
	six_unlock_read(&six);
	start = clock_monotonic_ns();
	for (unsigned i = 0; i < PAIR_NR; i++)
		pair();
	return (double)(clock_monotonic_ns() - start) / PAIR_NR;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(void)
{
	static double ns[ARRAY_NR(pairs)][REPETITION_NR];

	six_lock_init(&six, NULL);
	mutex_init(&mutex);
	for (unsigned i = 0; i < REPETITION_NR; i++)
		for (unsigned p = 0; p < ARRAY_NR(pairs); p++)
			ns[p][i] = measure(pairs[p].pair);

	printf("ns per pair\n%-22s %8s %8s %8s %8s\n", "", "median", "p10", "p90", "ratio");
	for (unsigned p = 0; p < ARRAY_NR(pairs); p++) {
		qsort(ns[p], REPETITION_NR, sizeof(double), compare_doubles);
		printf("%-22s %8.2f %8.2f %8.2f %8.2f\n", pairs[p].name, ns[p][REPETITION_NR / 2],
		       ns[p][REPETITION_NR / 10], ns[p][REPETITION_NR * 9 / 10],
		       ns[p][REPETITION_NR / 2] / ns[0][REPETITION_NR / 2]);
	}
	mutex_destroy(&mutex);
	six_lock_destroy(&six);
	return 0;
}
