/*
 * Streaming write: one large file, through the library, against what the device itself takes.
 *
 * usage: bench-write IMAGE[:IMAGE...] FILE_BYTES WRITE_BYTES OPTIONS [SOURCE]
 *
 * Makes a filesystem in the images (files, replaced), writes FILE_BYTES, and prints the seconds that took, kiln_fsync()
 * included, and the seconds that processors were busy with it. OPTIONS are those of kiln_format(), with "encrypted"
 * in front of them, perhaps. The bytes are those of the file SOURCE, again and again; else some that don't repeat.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "kiln/kiln.h"

enum { IMAGES_MAX = 8 };

static void fail(const char *what, int err, const char *why)
{
	fprintf(stderr, "%s: error %d %s\n", what, err, why);
	exit(1);
}

static double processor_seconds(void)
{
	struct rusage r;

	getrusage(RUSAGE_SELF, &r);
	return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
	       (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

/*
 * What the kernel has filled, this process may not have mapped yet. In a virtual machine that can cost more, a page,
 * than to compress it; what this is compared with is warm.
 */
static void pages_visit(const uint8_t *bytes, size_t len)
{
	enum { STEP = 4096 };

	for (size_t i = 0; i < len; i += STEP)
		(void)*(const volatile uint8_t *)(bytes + i);
}

/* What is written: *@bytes, whole writes. */
static uint8_t *contents_make(const char *source, size_t write_bytes, size_t *bytes)
{
	FILE *f = source ? fopen(source, "r") : NULL;

	if (source && (!f || fseek(f, 0, SEEK_END)))
		fail(source, -1, "can't be read");
	*bytes = f ? (size_t)ftell(f) / write_bytes * write_bytes : write_bytes;
	uint8_t *contents = malloc(*bytes);
	if (!*bytes || !contents)
		fail("contents", -1, "");
	if (f) {
		rewind(f);
		if (fread(contents, 1, *bytes, f) != *bytes)
			fail(source, -1, "can't be read");
		fclose(f);
	}
	for (size_t i = 0; !f && i < *bytes / 8; i++)
		((uint64_t *)contents)[i] = i * 0x9e3779b97f4a7c15ull;
	pages_visit(contents, *bytes);
	return contents;
}

static void file_write(kiln_fs *fs, uint64_t file_bytes, size_t write_bytes, const char *source)
{
	struct kiln_create attr = { .mode = 0644 };
	struct kiln_stat st;
	size_t bytes;
	uint8_t *contents = contents_make(source, write_bytes, &bytes);

	int err = kiln_create(fs, kiln_root(fs), "f", 1, &attr, &st);
	if (err)
		fail("create", err, "");
	uint64_t begin_ns = clock_monotonic_ns();
	double begin = processor_seconds();
	for (uint64_t at = 0; at < file_bytes; at += write_bytes) {
		if (!source)
			memcpy(contents, &at, sizeof(at));
		ssize_t n = kiln_write(fs, st.node, at, contents + at % bytes, write_bytes);
		if (n != (ssize_t)write_bytes)
			fail("write", (int)n, "");
	}
	err = kiln_fsync(fs, st.node);
	if (err)
		fail("fsync", err, "");
	printf("%.4f %.4f\n", (double)(clock_monotonic_ns() - begin_ns) / 1e9, processor_seconds() - begin);
	free(contents);
}

int main(int argc, char **argv)
{
	static const char encrypted[] = "encrypted,";
	struct kiln_format_device devs[IMAGES_MAX] = { 0 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(devs[0]),
					      .flags = KILN_FORMAT_FORCE };
	char why[KILN_ERROR_BYTES] = "";
	size_t nr = 0;
	kiln_fs *fs;

	if (argc != 5 && argc != 6) {
		fprintf(stderr, "usage: bench-write IMAGE[:IMAGE...] FILE_BYTES WRITE_BYTES OPTIONS [SOURCE]\n");
		return 2;
	}
	uint64_t file_bytes = strtoull(argv[2], NULL, 0), write_bytes = strtoull(argv[3], NULL, 0);
	if (!write_bytes || write_bytes % 8 || file_bytes % write_bytes) {
		fprintf(stderr, "FILE_BYTES must be a multiple of WRITE_BYTES, and that of 8\n");
		return 2;
	}
	for (char *path = strtok(argv[1], ":"); path && nr < IMAGES_MAX; path = strtok(NULL, ":"))
		devs[nr++] = (struct kiln_format_device){ .path = path,
							  .file_bytes = file_bytes + file_bytes / 4 + (256 << 20) };
	format.options = argv[4];
	if (!strncmp(argv[4], encrypted, sizeof(encrypted) - 1)) {
		format.flags |= KILN_FORMAT_ENCRYPTED;
		format.options += sizeof(encrypted) - 1;
	}
	int err = kiln_format(devs, nr, &format, &fs, why);
	if (err)
		fail("format", err, why);
	file_write(fs, file_bytes, write_bytes, argc == 6 ? argv[5] : NULL);
	err = kiln_shutdown(fs);
	kiln_close(fs);
	if (err)
		fail("shutdown", err, "");
	return 0;
}
