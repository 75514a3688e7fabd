/* The budget is kept: what writers and copygc hold at a time counts, and nobody waits for ever for what others hold. */
#include <malloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sanitizer.h"
#include "base/sync.h"
#include "base/util.h"
#include "data/copygc.h"
#include "data/internal.h"
#include "engine/fs.h"
#include "engine/whole.h"

enum {
	WRITERS = 64,
	FILE_BYTES = 2 << 20,
	DEVICE_BYTES = 256 << 20,
	ROUNDS = KILN_SANITIZED ? 8 : 24,
	/* Besides the budget: what is known of each write under way, nodes that are being read and written, the
	   journal. */
	BESIDES_BYTES = 12 << 20,
};

struct writer {
	kiln_fs *fs;
	struct kiln_node node;
	struct rng rng;
	uint8_t *bytes; /* as the file must be */
	struct task *task;
};

static uint64_t heap_bytes(void)
{
	struct mallinfo2 m = mallinfo2();

	return m.uordblks + m.hblkhd;
}

struct watch {
	atomic_bool must_stop;
	uint64_t peak_bytes;
};

static void watch_run(void *arg)
{
	struct watch *w = arg;

	while (!atomic_load(&w->must_stop)) {
		w->peak_bytes = max(w->peak_bytes, heap_bytes());
		sleep_ns(2000000);
	}
}

/* Overwrite pieces of any size, at any offset: up to the whole file. */
static void writer_run(void *arg)
{
	struct writer *w = arg;

	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t len = 1 + rng_below(&w->rng, i % 4 ? 64 << 10 : FILE_BYTES);
		uint64_t at = rng_below(&w->rng, FILE_BYTES - len + 1);
		uint8_t byte = (uint8_t)rng_u64(&w->rng), mask = i % 2 ? 0xff : 0x0f;

		for (uint64_t k = at; k < at + len; k++)
			w->bytes[k] = (uint8_t)((w->bytes[k] * 5 + byte) & mask);
		ssize_t n = kiln_write(w->fs, w->node, at, w->bytes + at, len);
		if (n != (ssize_t)len) {
			fprintf(stderr, "write of %" PRIu64 ": %zd\n", len, n);
			abort();
		}
	}
}

static kiln_fs *fs_make(const char *path, const char *options)
{
	struct kiln_format_device dev = { .path = path, .file_bytes = DEVICE_BYTES };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(dev),
					      .flags = KILN_FORMAT_FORCE,
					      .memory_bytes = KILN_MEMORY_MIN,
					      .options = options };
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;

	if (kiln_format(&dev, 1, &format, &fs, why))
		fail_msg("%s", why);
	return fs;
}

static void writer_begin(struct writer *w, kiln_fs *fs, unsigned nr)
{
	struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_stat st;
	char name[16];
	int len = snprintf(name, sizeof(name), "%u", nr);

	assert_int_equal(kiln_create(fs, kiln_root(fs), name, (size_t)len, &attr, &st), 0);
	w->fs = fs;
	w->node = st.node;
	for (unsigned i = 0; i < FILE_BYTES / 8; i++) {
		uint64_t word = rng_u64(&w->rng);

		memcpy(w->bytes + (size_t)i * 8, &word, 8);
	}
	assert_int_equal(kiln_write(fs, w->node, 0, w->bytes, FILE_BYTES), FILE_BYTES);
}

static void writer_check(struct writer *w, uint8_t *buf)
{
	assert_int_equal(kiln_read(w->fs, w->node, 0, buf, FILE_BYTES), FILE_BYTES);
	assert_memory_equal(buf, w->bytes, FILE_BYTES);
}

static void budget_is_kept(const char *options, bool is_nocow)
{
	struct writer *writers = calloc(WRITERS, sizeof(*writers));
	uint8_t *buf = malloc(FILE_BYTES);
	char path[] = "/dev/shm/kiln-memory-XXXXXX";
	struct watch watch = { .peak_bytes = 0 };
	struct copygc_stats copygc;
	struct task *watcher;

	int fd = mkstemp(path);
	assert_true(fd >= 0);
	close(fd);
	uint64_t seed = seed_print();
	for (unsigned i = 0; i < WRITERS; i++) {
		rng_init(&writers[i].rng, seed + i);
		writers[i].bytes = malloc(FILE_BYTES);
		assert_non_null(writers[i].bytes);
	}
	uint64_t before = heap_bytes();
	kiln_fs *fs = fs_make(path, options);
	copygc_set_eager(fs->data);
	for (unsigned i = 0; i < WRITERS; i++)
		writer_begin(&writers[i], fs, i);
	assert_int_equal(task_start(&watcher, "watch", watch_run, &watch), 0);
	for (unsigned i = 0; i < WRITERS; i++)
		assert_int_equal(task_start(&writers[i].task, "writer", writer_run, &writers[i]), 0);
	for (unsigned i = 0; i < WRITERS; i++)
		task_join(writers[i].task);
	/* It may have got no processor yet. */
	copygc_stats(fs->data, &copygc);
	for (unsigned i = 0; i < 10000 && !copygc.bytes_moved && !is_nocow; i++) {
		sleep_ns(10000000);
		copygc_stats(fs->data, &copygc);
	}
	atomic_store(&watch.must_stop, true);
	task_join(watcher);

	print_message("%s: %" PRIu64 " MiB at most, %" PRIu64 " MiB of %" PRIu64
		      " MiB for writes; copygc moved %" PRIu64 " KiB\n",
		      options, (watch.peak_bytes - before) >> 20, fs->data->writes.bytes_used_peak >> 20,
		      fs->data->writes.bytes_max >> 20, copygc.bytes_moved >> 10);
	assert_true(fs->data->writes.bytes_used_peak <= fs->data->writes.bytes_max);
	assert_true(copygc.bytes_moved > 0 || is_nocow);
	/* Sanitizers have a heap of their own. */
	if (!KILN_SANITIZED)
		assert_true(watch.peak_bytes - before <= KILN_MEMORY_MIN + BESIDES_BYTES);
	for (unsigned i = 0; i < WRITERS; i++)
		writer_check(&writers[i], buf);
	must_be_consistent(fs);
	assert_int_equal(kiln_shutdown(fs), 0);
	kiln_close(fs);
	unlink(path);
	for (unsigned i = 0; i < WRITERS; i++)
		free(writers[i].bytes);
	free(writers);
	free(buf);
}

static void many_writers_and_copygc_keep_the_smallest_budget(void **state)
{
	(void)state;
	budget_is_kept("block_size=4k", false);
	budget_is_kept("block_size=4k,compression=lz4,background_compression=zstd", false);
	budget_is_kept("block_size=4k,nocow=1", true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(many_writers_and_copygc_keep_the_smallest_budget),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
