/*
 * Streaming write: one large file, through the library, against what the device itself takes.
 *
 * usage: bench-write IMAGE FILE_BYTES WRITE_BYTES CHECKSUM
 *
 * Makes a filesystem in IMAGE (a file, replaced), writes FILE_BYTES of bytes that don't repeat, and prints the seconds
 * that took, kiln_fsync() included. CHECKSUM is one of the option data_checksum, or "encrypted".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kiln/kiln.h"

static void fail(const char *what, int err, const char *why)
{
	fprintf(stderr, "%s: error %d %s\n", what, err, why);
	exit(1);
}

/* One large file is written from the start. */
static void file_write(kiln_fs *fs, uint64_t file_bytes, size_t write_bytes)
{
	struct kiln_create attr = { .mode = 0644 };
	struct kiln_stat st;
	uint64_t *buf = malloc(write_bytes);

	int err = kiln_create(fs, kiln_root(fs), "f", 1, &attr, &st);
	if (err || !buf)
		fail("create", err, "");
	for (size_t i = 0; i < write_bytes / 8; i++)
		buf[i] = i * 0x9e3779b97f4a7c15ull;
	uint64_t begin_ns = clock_monotonic_ns();
	for (uint64_t at = 0; at < file_bytes; at += write_bytes) {
		buf[0] = at;
		ssize_t n = kiln_write(fs, st.node, at, buf, write_bytes);
		if (n != (ssize_t)write_bytes)
			fail("write", (int)n, "");
	}
	err = kiln_fsync(fs, st.node);
	if (err)
		fail("fsync", err, "");
	printf("%.4f\n", (double)(clock_monotonic_ns() - begin_ns) / 1e9);
	free(buf);
}

int main(int argc, char **argv)
{
	char options[64], why[KILN_ERROR_BYTES] = "";
	kiln_fs *fs;

	if (argc != 5) {
		fprintf(stderr, "usage: bench-write IMAGE FILE_BYTES WRITE_BYTES CHECKSUM\n");
		return 2;
	}
	uint64_t file_bytes = strtoull(argv[2], NULL, 0), write_bytes = strtoull(argv[3], NULL, 0);
	if (!write_bytes || write_bytes % 8 || file_bytes % write_bytes) {
		fprintf(stderr, "FILE_BYTES must be a multiple of WRITE_BYTES, and that of 8\n");
		return 2;
	}
	struct kiln_format_device dev = { .path = argv[1], .file_bytes = file_bytes + file_bytes / 4 + (256 << 20) };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(dev),
					      .flags = KILN_FORMAT_FORCE,
					      .options = options };
	bool is_encrypted = !strcmp(argv[4], "encrypted");
	format.flags |= is_encrypted ? KILN_FORMAT_ENCRYPTED : 0;
	snprintf(options, sizeof(options), "data_checksum=%s", is_encrypted ? "crc32c" : argv[4]);
	int err = kiln_format(&dev, 1, &format, &fs, why);
	if (err)
		fail("format", err, why);
	file_write(fs, file_bytes, write_bytes);
	err = kiln_shutdown(fs);
	kiln_close(fs);
	if (err)
		fail("shutdown", err, "");
	return 0;
}
