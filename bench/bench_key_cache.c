/*
 * What the key cache gains: 4 KiB overwritten at random places of files on a memory device, where nothing hides the
 * processor's time, by one task and by two, each in a file of its own.
 *
 * usage: bench-key-cache [OVERWRITES [FILE_MIB]]
 *
 * There are two filesystems, one of which never begins to cache keys: the linker puts a function in front of
 * key_cache_begin() (bench/meson.build). They take turns.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/sync.h"
#include "btree/internal.h"
#include "device/device.h"
#include "engine/format.h"
#include "engine/fs.h"

enum { PIECE_BYTES = 4096, FILL_BYTES = 1 << 20, TASKS_MAX = 2, ROUNDS = 5 };

static bool is_cached;

void __real_key_cache_begin(struct btrees *trees);
void __wrap_key_cache_begin(struct btrees *trees);
void __wrap_key_cache_begin(struct btrees *trees)
{
	if (is_cached)
		__real_key_cache_begin(trees);
}

/* --- overwriting --- */

struct writer {
	kiln_fs *fs;
	struct kiln_node file;
	uint64_t nr, pieces, seed;
};

static void overwrite(void *arg)
{
	struct writer *w = arg;
	uint8_t buf[PIECE_BYTES];
	struct rng rng;

	memset(buf, 0x5a, sizeof(buf));
	rng_init(&rng, w->seed);
	for (uint64_t i = 0; i < w->nr; i++) {
		memcpy(buf, &i, sizeof(i));
		if (kiln_write(w->fs, w->file, rng_below(&rng, w->pieces) * PIECE_BYTES, buf, PIECE_BYTES) !=
		    PIECE_BYTES)
			abort();
	}
}

/* Overwrites per second. */
static double run(struct writer *writers, unsigned tasks, uint64_t nr, uint64_t seed)
{
	struct task *task[TASKS_MAX];
	uint64_t begin = clock_monotonic_ns();

	for (unsigned i = 0; i < tasks; i++) {
		writers[i].nr = nr / tasks;
		writers[i].seed = seed * TASKS_MAX + i;
		if (task_start(&task[i], "overwriter", overwrite, &writers[i]))
			abort();
	}
	for (unsigned i = 0; i < tasks; i++)
		task_join(task[i]);
	double rate = 1e9 * (double)nr / (double)(clock_monotonic_ns() - begin);
	/* So that the next round begins like this one. */
	if (kiln_sync(writers[0].fs) || btrees_flush_all(writers[0].fs->trees))
		abort();
	return rate;
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

static void measure(struct writer writers[2][TASKS_MAX], unsigned tasks, uint64_t nr)
{
	double rates[2][ROUNDS], gains[ROUNDS];

	for (unsigned i = 0; i < ROUNDS; i++) {
		for (unsigned cached = 0; cached < 2; cached++)
			rates[cached][i] = run(writers[cached], tasks, nr, 2 * i + cached);
		gains[i] = rates[1][i] / rates[0][i];
	}
	double gain = median(gains), with = median(rates[1]), without = median(rates[0]);
	printf("%u task%s: %.0f overwrites/s (%.0f..%.0f) with the cache, %.0f (%.0f..%.0f) without: %.2f times as "
	       "many "
	       "(%.2f..%.2f)\n",
	       tasks, tasks == 1 ? "" : "s", with, rates[1][0], rates[1][ROUNDS - 1], without, rates[0][0],
	       rates[0][ROUNDS - 1], gain, gains[0], gains[ROUNDS - 1]);
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

static void fs_make(struct writer *writers, uint64_t nr, uint64_t bytes)
{
	struct kiln_format_device place = { 0 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format) };
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = KILN_OPEN_WRITE };
	char why[KILN_ERROR_BYTES] = "";
	struct device *dev;
	kiln_fs *fs;

	/* Room for all that is overwritten: copygc rests. */
	if (device_open_memory("memory", TASKS_MAX * (bytes + ROUNDS * nr * PIECE_BYTES) + (1ull << 30), 4096, &dev) ||
	    fs_format_devices(&dev, &place, 1, &format, why) || fs_initialize(&dev, 1, &options, &fs, why)) {
		fprintf(stderr, "format: %s\n", why);
		exit(1);
	}
	for (unsigned i = 0; i < TASKS_MAX; i++)
		file_make(&writers[i], fs, i, bytes);
}

int main(int argc, char **argv)
{
	uint64_t nr = argc > 1 ? strtoull(argv[1], NULL, 0) : 60000;
	uint64_t bytes = (argc > 2 ? strtoull(argv[2], NULL, 0) : 256) << 20;
	struct writer writers[2][TASKS_MAX];

	if (nr < TASKS_MAX || !bytes)
		return 2;
	for (unsigned cached = 0; cached < 2; cached++) {
		is_cached = cached;
		fs_make(writers[cached], nr, bytes);
	}
	printf("%llu overwrites of %u KiB in files of %llu MiB, a task each; medians of %u rounds\n",
	       (unsigned long long)nr, PIECE_BYTES >> 10, (unsigned long long)bytes >> 20, ROUNDS);
	for (unsigned tasks = 1; tasks <= TASKS_MAX; tasks++)
		measure(writers, tasks, nr);
	for (unsigned cached = 0; cached < 2; cached++) {
		kiln_shutdown(writers[cached][0].fs);
		kiln_close(writers[cached][0].fs);
	}
	return 0;
}
