/*
 * How fast keys are packed, unpacked, compared and searched, in nanoseconds per key.
 *
 * Each is measured next to the least that a machine could do for the same job with the same memory accesses:
 *
 *	unpack	copying as many bytes as an unpacked header has in memory
 *	pack	copying as many bytes as the packed header has
 *	cmp	comparing the top word of each key
 *	search	the same binary search, comparing only the top words
 *	prepare	copying as many bytes as a prepared search position has, which a search needs once
 *
 * All measurements of a repetition are taken one after another before the next repetition starts, so that a machine
 * that changes its pace changes it for all of them. Printed are medians, the 10th and 90th percentile, and the ratio of
 * the medians.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "format/bkey.h"

enum { KEY_NR = 2048, REPETITION_NR = 301 };

static const struct profile {
	const char *name;
	uint8_t type;
	uint8_t value_u64s;
	struct bpos min, step; /* positions: min, min + step, ... */
	uint32_t size;
} profiles[] = {
	{ "extent", 6, 2, { 4096, 128, UINT32_MAX }, { 0, 128, 0 }, 128 },
	{ "dirent", 10, 4, { 4098, 7, UINT32_MAX }, { 0, UINT64_MAX / 2 / KEY_NR, 0 }, 0 },
	{ "inode", 29, 13, { 0, 4096, UINT32_MAX }, { 0, 1, 0 }, 0 },
	{ "alloc", 27, 8, { 0, 1, 0 }, { 0, 1, 0 }, 0 },
	{ "backpointer", 28, 4, { 0, 1 << 20, 0 }, { 0, 8192, 0 }, 0 },
	{ "extents, many files", 6, 2, { 4096, 8, UINT32_MAX }, { 5, 1000, 0 }, 8 },
};

struct workload {
	struct bkey_format format;
	struct bkey keys[KEY_NR];
	uint32_t offset_u64s[KEY_NR];
	uint64_t *words;	       /* the packed keys with room for values */
	struct bpos targets[KEY_NR];   /* to search for, in no order */
	uint64_t target_words[KEY_NR]; /* their top words */
	uint8_t packed[KEY_NR][40];
};

/* What passes find out is added up here, so that it can't be left out. */
static volatile uint64_t sink;

static const uint8_t *workload_key(const struct workload *w, unsigned i)
{
	return (const uint8_t *)(w->words + w->offset_u64s[i]);
}

static uint64_t top_word(const struct workload *w, unsigned i)
{
	return le64_load(workload_key(w, i) + (w->format.key_u64s - 1) * 8);
}

static void workload_init(struct workload *w, const struct profile *p)
{
	struct bkey_format_builder b;
	unsigned at = 0;

	bkey_format_begin(&b);
	for (unsigned i = 0; i < KEY_NR; i++) {
		w->keys[i] = (struct bkey){ .p = { p->min.inode + i / 8 * p->step.inode,
						   p->min.offset + i * p->step.offset, p->min.snapshot },
					    .size = p->size,
					    .type = p->type,
					    .value_u64s = p->value_u64s };
		bkey_format_add_key(&b, &w->keys[i]);
	}
	bkey_format_finish(&b, &w->format);

	w->words = calloc(KEY_NR + 1, (w->format.key_u64s + p->value_u64s + 6) * 8u);
	if (!w->words)
		abort();
	for (unsigned i = 0; i < KEY_NR; i++) {
		w->offset_u64s[i] = at;
		if (!bkey_pack(&w->format, w->words + at, &w->keys[i]))
			abort();
		at += w->format.key_u64s + p->value_u64s;
	}
}

/* New ones for every repetition: processors learn the branches of searches that they see again. */
static void workload_choose_targets(struct workload *w, struct rng *rng)
{
	for (unsigned i = 0; i < KEY_NR; i++) {
		unsigned target = (unsigned)rng_below(rng, KEY_NR);

		w->targets[i] = w->keys[target].p;
		w->target_words[i] = top_word(w, target);
	}
}

/* A barrier that @object is read and written behind: what was stored in it can't be left out. */
#define USE(object) __asm__ volatile("" : "+m"(object))

static void unpack_pass(struct workload *w)
{
	for (unsigned i = 0; i < KEY_NR; i++) {
		const void *value;
		struct bkey k = bkey_unpack(&w->format, workload_key(w, i), &value);

		USE(k);
	}
}

static void unpack_limit(struct workload *w)
{
	for (unsigned i = 0; i < KEY_NR; i++) {
		struct bkey k;

		memcpy(&k, workload_key(w, i), sizeof(k));
		USE(k);
	}
}

static void pack_pass(struct workload *w)
{
	for (unsigned i = 0; i < KEY_NR; i++) {
		bkey_pack(&w->format, w->packed[i], &w->keys[i]);
		USE(w->packed[i]);
	}
}

static void pack_limit(struct workload *w)
{
	for (unsigned i = 0; i < KEY_NR; i++) {
		const uint8_t *src = (const uint8_t *)&w->keys[i];

		for (unsigned word = 0; word < w->format.key_u64s; word++)
			le64_store(w->packed[i] + word * 8, le64_load(src + word * 8));
		USE(w->packed[i]);
	}
}

static void cmp_pass(struct workload *w)
{
	struct bkey_search s;
	int sum = 0;

	bkey_search_init(&s, &w->format, w->targets[0]);
	for (unsigned i = 0; i < KEY_NR; i++)
		sum += bkey_search_cmp(&s, workload_key(w, i));
	sink += (unsigned)sum;
}

static void cmp_limit(struct workload *w)
{
	int sum = 0;

	for (unsigned i = 0; i < KEY_NR; i++) {
		uint64_t word = top_word(w, i);

		sum += (word > w->target_words[0]) - (word < w->target_words[0]);
		__asm__ volatile("" : "+r"(sum));
	}
	sink += (unsigned)sum;
}

static void search_pass(struct workload *w)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < KEY_NR; i++) {
		struct bkey_search s;

		bkey_search_init(&s, &w->format, w->targets[i]);
		sum += bkey_search_first(&s, w->words, w->offset_u64s, KEY_NR);
	}
	sink += sum;
}

static void search_limit(struct workload *w)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < KEY_NR; i++) {
		unsigned first = 0;

		for (unsigned nr = KEY_NR; nr;) {
			unsigned half = (nr + 1) / 2;

			first += half & -(unsigned)(top_word(w, first + half - 1) < w->target_words[i]);
			nr -= half;
		}
		sum += first;
	}
	sink += sum;
}

static void prepare_pass(struct workload *w)
{
	for (unsigned i = 0; i < KEY_NR; i++) {
		struct bkey_search s;

		bkey_search_init(&s, &w->format, w->targets[i]);
		USE(s);
	}
}

static void prepare_limit(struct workload *w)
{
	static struct bkey_search source;

	for (unsigned i = 0; i < KEY_NR; i++) {
		struct bkey_search s;

		memcpy(&s, &source, sizeof(s));
		USE(s);
	}
}

static const struct operation {
	const char *name;
	void (*pass)(struct workload *w), (*limit)(struct workload *w);
} operations[] = {
	{ "unpack", unpack_pass, unpack_limit }, { "pack", pack_pass, pack_limit },
	{ "cmp", cmp_pass, cmp_limit },		 { "prepare", prepare_pass, prepare_limit },
	{ "search", search_pass, search_limit },
};

static double measure(void (*pass)(struct workload *w), struct workload *w)
{
	uint64_t start = clock_monotonic_ns();

	pass(w);
	return (double)(clock_monotonic_ns() - start) / KEY_NR;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

struct samples {
	double ns[2][REPETITION_NR]; /* of the operation and of its limit */
};

static void samples_print(struct samples *s, const char *profile, const char *operation)
{
	for (unsigned i = 0; i < 2; i++)
		qsort(s->ns[i], REPETITION_NR, sizeof(double), compare_doubles);

	double median = s->ns[0][REPETITION_NR / 2], limit = s->ns[1][REPETITION_NR / 2];
	printf("%-20s %-8s %8.2f %8.2f %8.2f %8.2f %8.2f\n", profile, operation, median, s->ns[0][REPETITION_NR / 10],
	       s->ns[0][REPETITION_NR * 9 / 10], limit, median / limit);
}

int main(void)
{
	static struct workload workloads[ARRAY_NR(profiles)];
	static struct samples samples[ARRAY_NR(profiles)][ARRAY_NR(operations)];
	struct rng rng;

	rng_init(&rng, 1);
	for (unsigned p = 0; p < ARRAY_NR(profiles); p++)
		workload_init(&workloads[p], &profiles[p]);
	for (unsigned i = 0; i < REPETITION_NR; i++)
		for (unsigned p = 0; p < ARRAY_NR(profiles); p++) {
			workload_choose_targets(&workloads[p], &rng);
			for (unsigned o = 0; o < ARRAY_NR(operations); o++) {
				samples[p][o].ns[0][i] = measure(operations[o].pass, &workloads[p]);
				samples[p][o].ns[1][i] = measure(operations[o].limit, &workloads[p]);
			}
		}

	printf("ns per key, of %d\n%-20s %-8s %8s %8s %8s %8s %8s\n", KEY_NR, "format", "", "median", "p10", "p90",
	       "limit", "ratio");
	for (unsigned p = 0; p < ARRAY_NR(profiles); p++)
		for (unsigned o = 0; o < ARRAY_NR(operations); o++)
			samples_print(&samples[p][o], profiles[p].name, operations[o].name);
	for (unsigned p = 0; p < ARRAY_NR(profiles); p++)
		free(workloads[p].words);
	return 0;
}
