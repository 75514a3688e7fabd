/*
 * What a cache of the keys of inodes and alloc could gain at most: 4 KiB overwritten at random places of files on a
 * memory device, where nothing hides the processor's time, by one task and by two; and what the leaves of these two
 * btrees cost each overwrite.
 *
 * usage: bench-key-cache [OVERWRITES [FILE_MIB]]
 *
 * The calls that touch these leaves are measured where they are made: the linker puts a function in front of each
 * (bench/meson.build), which takes the time if a task of the benchmark calls it for one of the two btrees. In turns,
 * rounds run without taking any time, which gives the rate, and with it. Counted are
 *
 *	lookups	point reads outside of transactions
 *	gets	what transactions read
 *	old	what they read once more of the keys that their puts replace
 *	updates	validating what was read, and putting keys into the leaves: room, key, list of what is dirty, pin
 *	waits	for the locks of these btrees' nodes and roots, whoever holds them
 *	writing	of all other tasks' processor time (the journal's and discards', too) the share that these btrees have
 *		in the words of keys written to nodes meanwhile
 *
 * All of them together are the bound, as if a cache cost nothing: it would have a lookup, a lock and a pin of its own,
 * and what it holds is put into leaves and written in the end.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/sync.h"
#include "btree/internal.h"
#include "device/device.h"
#include "engine/format.h"
#include "engine/fs.h"

enum { PIECE_BYTES = 4096, FILL_BYTES = 1 << 20, TASKS_MAX = 2, ROUNDS = 5 };

enum part { PART_LOOKUP, PART_GET, PART_OLD, PART_UPDATE, PART_WAIT, PART_NR };
static const char *const part_names[PART_NR] = { "lookups", "gets", "old", "updates", "waits" };

/* Of one task. */
struct meter {
	uint64_t ns[PART_NR], calls[PART_NR];
	unsigned depth;	  /* of measured calls within one another: the outermost counts */
	uint64_t wait_ns; /* all waits, to take them off what they are part of */
};

static _Thread_local struct meter *meter; /* NULL: not measured */
static const struct six_class *node_class, *root_class;
/* Words of keys that were written to nodes. */
static atomic_uint_fast64_t words_cached, words_all;
static uint64_t clock_ns; /* what taking the time takes */

static bool is_cached_btree(unsigned btree_id) { return btree_id == BTREE_INODES || btree_id == BTREE_ALLOC; }

static unsigned btree_of_keys(const struct node_keys *keys)
{
	return container_of(keys, struct btree_node, keys)->id.btree_id;
}

/* --- what is put in front of functions of the library --- */

struct measured {
	uint64_t begin_ns, wait_ns;
	bool is_on;
};

static struct measured measure_begin(unsigned btree_id)
{
	struct measured m = { .is_on = meter && is_cached_btree(btree_id) && !meter->depth };

	if (m.is_on) {
		meter->depth++;
		m.wait_ns = meter->wait_ns;
		m.begin_ns = clock_monotonic_ns();
	}
	return m;
}

static void measure_end(const struct measured *m, enum part part)
{
	if (!m->is_on)
		return;
	meter->ns[part] += clock_monotonic_ns() - m->begin_ns - (meter->wait_ns - m->wait_ns);
	meter->calls[part]++;
	meter->depth--;
}

#define MEASURED(part, btree_id, type, name, parameters, arguments) \
	type __real_##name parameters;                              \
	type __wrap_##name parameters;                              \
	type __wrap_##name parameters                               \
	{                                                           \
		struct measured m = measure_begin(btree_id);        \
		type result = __real_##name arguments;              \
                                                                    \
		measure_end(&m, part);                              \
		return result;                                      \
	}
#define MEASURED_VOID(part, btree_id, name, parameters, arguments) \
	void __real_##name parameters;                             \
	void __wrap_##name parameters;                             \
	void __wrap_##name parameters                              \
	{                                                          \
		struct measured m = measure_begin(btree_id);       \
                                                                   \
		__real_##name arguments;                           \
		measure_end(&m, part);                             \
	}

MEASURED(PART_LOOKUP, btree_id, int, btree_lookup,
	 (struct btrees * trees, unsigned btree_id, struct bpos pos, struct bkey_copy *copy),
	 (trees, btree_id, pos, copy))
MEASURED(PART_GET, btree_id, int, btree_txn_get,
	 (struct btree_txn * txn, unsigned btree_id, struct bpos pos, unsigned flags, struct bkey_ref *k),
	 (txn, btree_id, pos, flags, k))
MEASURED(PART_OLD, it->btree_id, int, btree_iter_peek, (struct btree_iter * it, struct bkey_ref *k), (it, k))
MEASURED(PART_UPDATE, btree_id, uint64_t, txn_range_hash,
	 (const struct btrees *trees, unsigned btree_id, unsigned level, const struct btree_node *leaf, struct bpos min,
	  struct bpos max, uint64_t hash),
	 (trees, btree_id, level, leaf, min, max, hash))
MEASURED(PART_UPDATE, btree_of_keys(keys), int, node_keys_reserve,
	 (struct node_keys * keys, uint32_t key_nr, uint32_t u64s), (keys, key_nr, u64s))
MEASURED_VOID(PART_UPDATE, btree_of_keys(keys), node_keys_set,
	      (struct node_keys * keys, const struct bkey *k, const void *value), (keys, k, value))
MEASURED_VOID(PART_UPDATE, node->id.btree_id, node_set_dirty,
	      (struct btrees * trees, struct btree_node *node, uint64_t seq), (trees, node, seq))

/* All six locks come by here; those that are free cost nothing more than they do. */
void __real_six_lock(struct six_lock *lock, enum six_mode mode);
void __wrap_six_lock(struct six_lock *lock, enum six_mode mode);
void __wrap_six_lock(struct six_lock *lock, enum six_mode mode)
{
	unsigned btree_id = BTREE_NR_MAX;

	if (meter && lock->class == node_class)
		btree_id = container_of(lock, struct btree_node, lock)->id.btree_id;
	else if (meter && lock->class == root_class)
		btree_id = container_of(lock, struct tree_root, lock)->btree_id;
	if (!is_cached_btree(btree_id)) {
		__real_six_lock(lock, mode);
		return;
	}
	if (six_trylock(lock, mode))
		return;
	uint64_t begin = clock_monotonic_ns();
	__real_six_lock(lock, mode);
	uint64_t ns = clock_monotonic_ns() - begin;
	meter->ns[PART_WAIT] += ns;
	meter->wait_ns += ns;
	meter->calls[PART_WAIT]++;
}

static void words_written(const struct node_keys *keys, uint64_t words)
{
	atomic_fetch_add(&words_all, words);
	if (is_cached_btree(btree_of_keys(keys)))
		atomic_fetch_add(&words_cached, words);
}

/* A set was made of what was dirty. */
void __real_node_keys_clean(struct node_keys *keys);
void __wrap_node_keys_clean(struct node_keys *keys);
void __wrap_node_keys_clean(struct node_keys *keys)
{
	words_written(keys, keys->dirty_u64s);
	__real_node_keys_clean(keys);
}

/* A node is made anew. */
void __real_node_keys_append(struct node_keys *keys, const struct bkey *k, const void *value);
void __wrap_node_keys_append(struct node_keys *keys, const struct bkey *k, const void *value);
void __wrap_node_keys_append(struct node_keys *keys, const struct bkey *k, const void *value)
{
	words_written(keys, BKEY_U64S + k->value_u64s);
	__real_node_keys_append(keys, k, value);
}

/* --- overwriting --- */

struct writer {
	kiln_fs *fs;
	struct kiln_node file;
	uint64_t nr, pieces, seed;
	bool is_measured;
	struct meter meter;
	uint64_t processor_ns;
};

static uint64_t processor_ns(int who)
{
	struct rusage r;

	getrusage(who, &r);
	return (uint64_t)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000000000 +
	       (uint64_t)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1000;
}

static void overwrite(void *arg)
{
	struct writer *w = arg;
	uint8_t buf[PIECE_BYTES];
	struct rng rng;

	memset(buf, 0x5a, sizeof(buf));
	rng_init(&rng, w->seed);
	w->meter = (struct meter){ 0 };
	meter = w->is_measured ? &w->meter : NULL;
	for (uint64_t i = 0; i < w->nr; i++) {
		memcpy(buf, &i, sizeof(i));
		if (kiln_write(w->fs, w->file, rng_below(&rng, w->pieces) * PIECE_BYTES, buf, PIECE_BYTES) !=
		    PIECE_BYTES)
			abort();
	}
	meter = NULL;
	w->processor_ns = processor_ns(RUSAGE_THREAD);
}

struct round {
	double ns;				 /* of a task's time, per overwrite */
	double part_ns[PART_NR], calls[PART_NR]; /* per overwrite */
	double others_ns;			 /* of the processor's time, per overwrite */
	double cached_share;			 /* of words written */
};

static struct round run(struct writer *writers, unsigned tasks, uint64_t nr, bool is_measured, uint64_t seed)
{
	struct task *task[TASKS_MAX];
	struct round r = { 0 };
	uint64_t own_ns = 0;

	atomic_store(&words_all, 0);
	atomic_store(&words_cached, 0);
	uint64_t processor_begin = processor_ns(RUSAGE_SELF), begin = clock_monotonic_ns();
	for (unsigned i = 0; i < tasks; i++) {
		writers[i].nr = nr / tasks;
		writers[i].seed = seed * TASKS_MAX + i;
		writers[i].is_measured = is_measured;
		if (task_start(&task[i], "overwriter", overwrite, &writers[i]))
			abort();
	}
	for (unsigned i = 0; i < tasks; i++)
		task_join(task[i]);
	r.ns = (double)(clock_monotonic_ns() - begin) * tasks / (double)nr;
	/* What is dirty is written, for its share; not in the rate. */
	if (kiln_sync(writers[0].fs) || btrees_flush_all(writers[0].fs->trees))
		abort();
	for (unsigned i = 0; i < tasks; i++) {
		const struct meter *m = &writers[i].meter;

		own_ns += writers[i].processor_ns;
		for (unsigned p = 0; p < PART_NR; p++) {
			uint64_t clocks = min(m->calls[p] * clock_ns, m->ns[p]);

			r.part_ns[p] += (double)(m->ns[p] - clocks) / (double)nr;
			r.calls[p] += (double)m->calls[p] / (double)nr;
		}
	}
	r.others_ns = (double)(processor_ns(RUSAGE_SELF) - processor_begin - own_ns) / (double)nr;
	r.cached_share = (double)atomic_load(&words_cached) / (double)max(atomic_load(&words_all), (uint64_t)1);
	return r;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *values)
{
	qsort(values, ROUNDS, sizeof(*values), compare);
	return values[ROUNDS / 2];
}

static double percent(double part_ns, double ns) { return 100 * part_ns / ns; }

static void measure(struct writer *writers, unsigned tasks, uint64_t nr)
{
	double ns[ROUNDS], part[PART_NR][ROUNDS], calls[PART_NR] = { 0 }, writing[ROUNDS], sum = 0;

	for (unsigned i = 0; i < ROUNDS; i++) {
		ns[i] = run(writers, tasks, nr, false, 2 * i).ns;
		struct round r = run(writers, tasks, nr, true, 2 * i + 1);

		for (unsigned p = 0; p < PART_NR; p++) {
			part[p][i] = r.part_ns[p];
			calls[p] = r.calls[p];
		}
		writing[i] = r.others_ns * r.cached_share;
	}
	double all = median(ns);
	printf("%u task%s: %.0f overwrites/s (%.0f..%.0f), %.2f us of a task each\n", tasks, tasks == 1 ? "" : "s",
	       tasks * 1e9 / all, tasks * 1e9 / ns[ROUNDS - 1], tasks * 1e9 / ns[0], all / 1e3);
	for (unsigned p = 0; p < PART_NR; p++) {
		double each = median(part[p]);

		printf("  %-8s %6.3f us, %4.1f %% of it, in %.2f calls\n", part_names[p], each / 1e3,
		       percent(each, all), calls[p]);
		sum += each;
	}
	double written = median(writing);
	printf("  %-8s %6.3f us of other tasks, %4.1f %%\n", "writing", written / 1e3, percent(written, all));
	printf("  a key cache gains at most %.1f %%; %.1f %% if writing is in nobody's way\n",
	       100 * (sum + written) / (all - sum - written), 100 * sum / (all - sum));
}

/* --- a filesystem --- */

static void file_make(struct writer *w, kiln_fs *fs, unsigned nr, uint64_t bytes)
{
	struct kiln_create attr = { .mode = S_IFREG | 0600 };
	uint8_t *buf = calloc(1, FILL_BYTES);
	struct kiln_stat st;
	char name[16];
	size_t len = (size_t)snprintf(name, sizeof(name), "file%u", nr);

	if (!buf || kiln_create(fs, kiln_root(fs), name, len, &attr, &st))
		abort();
	for (uint64_t at = 0; at < bytes; at += FILL_BYTES)
		if (kiln_write(fs, st.node, at, buf, FILL_BYTES) != FILL_BYTES)
			abort();
	free(buf);
	*w = (struct writer){ .fs = fs, .file = st.node, .pieces = bytes / PIECE_BYTES };
}

static void classes_learn(const struct btrees *trees)
{
	struct btree_node *node = calloc(1, sizeof(*node));

	if (!node)
		abort();
	node_lock_init(node);
	node_class = node->lock.class;
	root_class = trees->roots[BTREE_INODES].lock.class;
	six_lock_destroy(&node->lock);
	free(node);
}

static uint64_t clock_measure(void)
{
	enum { NR = 1000000 };
	uint64_t begin = clock_monotonic_ns();

	for (unsigned i = 0; i < NR; i++)
		clock_monotonic_ns();
	return (clock_monotonic_ns() - begin) / NR;
}

int main(int argc, char **argv)
{
	uint64_t nr = argc > 1 ? strtoull(argv[1], NULL, 0) : 60000;
	uint64_t bytes = (argc > 2 ? strtoull(argv[2], NULL, 0) : 256) << 20;
	struct kiln_format_device place = { 0 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format) };
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = KILN_OPEN_WRITE };
	struct writer writers[TASKS_MAX];
	char why[KILN_ERROR_BYTES] = "";
	struct device *dev;
	kiln_fs *fs;

	if (nr < TASKS_MAX || !bytes)
		return 2;
	/* Room for all that is overwritten: copygc rests. */
	if (device_open_memory("memory", TASKS_MAX * bytes + 2 * TASKS_MAX * ROUNDS * nr * PIECE_BYTES + (1ull << 30),
			       4096, &dev) ||
	    fs_format_devices(&dev, &place, 1, &format, why) || fs_initialize(&dev, 1, &options, &fs, why)) {
		fprintf(stderr, "format: %s\n", why);
		return 1;
	}
	classes_learn(fs->trees);
	clock_ns = clock_measure();
	for (unsigned i = 0; i < TASKS_MAX; i++)
		file_make(&writers[i], fs, i, bytes);
	printf("%llu overwrites of %u KiB in files of %llu MiB, a task each; medians of %u rounds\n",
	       (unsigned long long)nr, PIECE_BYTES >> 10, (unsigned long long)bytes >> 20, ROUNDS);
	for (unsigned tasks = 1; tasks <= TASKS_MAX; tasks++)
		measure(writers, tasks, nr);
	kiln_shutdown(fs);
	kiln_close(fs);
	return 0;
}
