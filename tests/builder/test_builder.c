/*
 * Images from the builder, read back through the library: what was put in is there, and nothing else is, whatever the
 * sizes of blocks, nodes and extents.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "builder/image.h"
#include "kiln/kiln.h"

static char image_path[64];

static int path_make(void **state)
{
	snprintf(image_path, sizeof(image_path), "/tmp/kiln-builder-XXXXXX");
	int fd = mkstemp(image_path);

	return fd < 0 ? -1 : close(fd);
}

static int path_remove(void **state) { return unlink(image_path); }

static void fail_on_report(void *ctx, const struct kiln_report *report) { fail_msg("%s", report->text); }

static kiln_fs *must_open(void)
{
	struct kiln_open_options options = {
		.struct_bytes = sizeof(options),
		.flags = KILN_OPEN_NO_SCAN,
		.report = fail_on_report,
	};
	const char *devices[] = { image_path };
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;

	if (kiln_open(devices, 1, &options, &fs, why))
		fail_msg("%s", why);
	return fs;
}

struct count {
	kiln_fs *fs;
	uint64_t seed, files, dirs, bytes;
};

static void file_check(struct count *c, const struct kiln_stat *st)
{
	uint8_t *buf = malloc(st->size + 8);

	assert_non_null(buf);
	assert_int_equal(kiln_read(c->fs, st->node, 0, buf, st->size + 8), (ssize_t)st->size);
	for (uint64_t i = 0; i < st->size; i++)
		if (buf[i] != (uint8_t)(image_file_word(c->seed, st->node.ino, i / 8) >> i % 8 * 8))
			fail_msg("inode %llu byte %llu", (unsigned long long)st->node.ino, (unsigned long long)i);
	free(buf);
}

static int count_entry(void *ctx, const struct kiln_walk_entry *entry)
{
	struct count *c = ctx;

	assert_int_not_equal(entry->event, KILN_WALK_ERROR);
	if (entry->event != KILN_WALK_ENTER)
		return 0;
	if (S_ISDIR(entry->st->mode)) {
		c->dirs++;
		return 0;
	}
	c->files++;
	c->bytes += entry->st->size;
	file_check(c, entry->st);
	return 0;
}

static void built_and_read_back(const struct image_options *options, unsigned files, unsigned dirs, uint64_t bytes_max)
{
	struct image image;
	struct image_dir root, *d = calloc(dirs + 1, sizeof(*d));
	struct rng rng;
	char name[32];
	uint64_t bytes = 0;

	rng_init(&rng, options->seed);
	image_begin(&image, image_path, options, &root);
	d[0] = root;
	for (unsigned i = 0; i < dirs; i++) {
		snprintf(name, sizeof(name), "dir%u", i);
		d[i + 1] = image_add_dir(&image, d[i / 3], name, 0755);
	}
	for (unsigned i = 0; i < files; i++) {
		uint64_t size = rng_below(&rng, bytes_max + 1);

		snprintf(name, sizeof(name), "file%u", i);
		image_add_file(&image, d[rng_below(&rng, dirs + 1)], name, 0644, size);
		bytes += size;
	}
	image_finish(&image);
	free(d);

	kiln_fs *fs = must_open();
	struct count c = { .fs = fs, .seed = options->seed };
	assert_int_equal(kiln_walk(fs, kiln_root(fs), count_entry, &c), 0);
	assert_int_equal(c.files, files);
	assert_int_equal(c.dirs, dirs + 1);
	assert_int_equal(c.bytes, bytes);
	struct kiln_usage usage;
	assert_int_equal(kiln_usage(fs, &usage), 0);
	assert_true(usage.is_known && usage.is_clean);
	assert_int_equal(usage.inodes, files + dirs + 1);
	kiln_close(fs);
}

static void usual_sizes(void **state) { built_and_read_back(&image_options_default, 2000, 100, 20000); }

static void smallest_sizes_and_deep_trees(void **state)
{
	struct image_options o = image_options_default;

	o.block_bytes = 512;
	o.node_bytes = 4096;
	o.bucket_bytes = 128 << 10;
	o.extent_bytes = 4096;
	o.sets_per_node = 3;
	built_and_read_back(&o, 2000, 300, 9000);
}

static void every_checksum_type(void **state)
{
	static const unsigned types[][2] = { { CHECKSUM_NONE, CHECKSUM_NONE },
					     { CHECKSUM_CRC64_NONZERO, CHECKSUM_CRC64 },
					     { CHECKSUM_XXHASH, CHECKSUM_XXHASH } };

	for (size_t i = 0; i < ARRAY_NR(types); i++) {
		struct image_options o = image_options_default;

		o.metadata_csum = types[i][0];
		o.data_csum = types[i][1];
		o.seed = i + 2;
		built_and_read_back(&o, 50, 5, 200000);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(usual_sizes, path_make, path_remove),
		cmocka_unit_test_setup_teardown(smallest_sizes_and_deep_trees, path_make, path_remove),
		cmocka_unit_test_setup_teardown(every_checksum_type, path_make, path_remove),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
