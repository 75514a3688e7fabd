/*
 * Streaming write: one large file, through the library, against what the device itself takes.
 *
 * usage: bench-write IMAGE[:IMAGE...]|memory|library FILE_BYTES WRITE_BYTES OPTIONS [SOURCE]
 *
 * Makes a filesystem in the images (files, replaced), or on a memory device of this process, all of whose pages are
 * there before; writes FILE_BYTES, and prints the seconds that took, kiln_fsync() included, and the seconds that
 * processors were busy with it. OPTIONS are those of kiln_format(), with "encrypted," in front of them, perhaps. The
 * bytes are those of the file SOURCE, again and again; else some that don't repeat.
 *
 * With "library" nothing is written, but a library alone works on the same bytes, in pieces of 64 KiB, as a filesystem
 * has it do: OPTIONS are crc32c, crc64 (ISA-L), xxhash, chacha20_poly1305 (libsodium), lz4, or zstd with zstd's level,
 * zstd:9.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <isa-l.h>
#include <lz4.h>
#include <sodium.h>
#include <xxhash.h>
#include <zstd.h>

#include "base/clock.h"
#include "device/device.h"
#include "engine/format.h"

enum { IMAGES_MAX = 8, UNIT_BYTES = 64 << 10 };

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

/* --- libraries alone --- */

static volatile unsigned sink;
static uint8_t unit[ZSTD_COMPRESSBOUND(UNIT_BYTES)]; /* what comes of one */

static void unit_crc32c(const uint8_t *bytes, size_t len, int level)
{
	sink += crc32_iscsi((unsigned char *)bytes, (int)len, 0);
}

static void unit_crc64(const uint8_t *bytes, size_t len, int level)
{
	sink += (unsigned)crc64_ecma_norm(0, bytes, len);
}

static void unit_xxhash(const uint8_t *bytes, size_t len, int level) { sink += (unsigned)XXH64(bytes, len, 0); }

static void unit_encrypt(const uint8_t *bytes, size_t len, int level)
{
	static const uint8_t key[crypto_stream_chacha20_KEYBYTES], nonce[crypto_stream_chacha20_NONCEBYTES];
	uint8_t mac[crypto_onetimeauth_poly1305_BYTES];

	crypto_stream_chacha20_xor(unit, bytes, len, nonce, key);
	crypto_onetimeauth_poly1305(mac, unit, len, key);
	sink += mac[0];
}

static void unit_lz4(const uint8_t *bytes, size_t len, int level)
{
	sink += (unsigned)LZ4_compress_fast((const char *)bytes, (char *)unit, (int)len, sizeof(unit), 1);
}

static void unit_zstd(const uint8_t *bytes, size_t len, int level)
{
	static ZSTD_CCtx *context;

	if (!context)
		context = ZSTD_createCCtx();
	sink += (unsigned)ZSTD_compressCCtx(context, unit, sizeof(unit), bytes, len, level);
}

typedef void (*unit_fn)(const uint8_t *bytes, size_t len, int level);

static const struct library {
	const char *name;
	unit_fn unit;
} libraries[] = {
	{ "crc32c", unit_crc32c }, { "crc64", unit_crc64 },
	{ "xxhash", unit_xxhash }, { "chacha20_poly1305", unit_encrypt },
	{ "lz4", unit_lz4 },	   { "zstd", unit_zstd },
};

static unit_fn library_find(const char *name, int *level)
{
	size_t len = strcspn(name, ":");

	if (sodium_init() < 0)
		fail("libsodium", -1, "");
	*level = name[len] ? atoi(name + len + 1) : 0;
	for (size_t i = 0; i < ARRAY_NR(libraries); i++)
		if (strlen(libraries[i].name) == len && !strncmp(name, libraries[i].name, len))
			return libraries[i].unit;
	fail(name, -1, "is no library");
	return NULL;
}

/* --- what is measured --- */

struct work {
	kiln_fs *fs; /* NULL: a library alone */
	struct kiln_node file;
	bool is_device; /* a real one */
	unit_fn unit;
	int level;
};

static void piece_work(const struct work *w, uint64_t at, const uint8_t *bytes, size_t len)
{
	if (!w->fs) {
		for (size_t i = 0; i < len; i += UNIT_BYTES)
			w->unit(bytes + i, min(len - i, (size_t)UNIT_BYTES), w->level);
		return;
	}
	ssize_t n = kiln_write(w->fs, w->file, at, bytes, len);
	if (n != (ssize_t)len)
		fail("write", (int)n, "");
}

static void work_measure(const struct work *w, uint64_t file_bytes, size_t write_bytes, const char *source)
{
	size_t bytes;
	uint8_t *contents = contents_make(source, write_bytes, &bytes);

	/* Buffers that nobody has touched yet are no part of it either. */
	if (!w->is_device)
		piece_work(w, 0, contents, write_bytes);
	uint64_t begin_ns = clock_monotonic_ns();
	double begin = processor_seconds();

	for (uint64_t at = 0; at < file_bytes; at += write_bytes) {
		if (!source)
			memcpy(contents, &at, sizeof(at));
		piece_work(w, at, contents + at % bytes, write_bytes);
	}
	int err = w->fs ? kiln_fsync(w->fs, w->file) : 0;
	if (err)
		fail("fsync", err, "");
	printf("%.4f %.4f\n", (double)(clock_monotonic_ns() - begin_ns) / 1e9, processor_seconds() - begin);
	free(contents);
}

/* --- filesystems --- */

/* Pages of memory that nobody has touched cost more than what a write does with them; a disk has no such thing. */
static void device_visit(struct device *dev)
{
	enum { PIECE_BYTES = 1 << 20 };
	void *buf = io_buffer_alloc(PIECE_BYTES);
	int err = buf ? 0 : -1;

	for (uint64_t at = 0; at < dev->size_bytes && !err; at += PIECE_BYTES) {
		err = device_read(dev, at, buf, PIECE_BYTES);
		if (!err)
			err = device_write(dev, at, buf, PIECE_BYTES);
	}
	io_buffer_free(buf);
	if (err)
		fail("memory", err, "");
}

static kiln_fs *fs_in_memory(uint64_t bytes, const struct kiln_format_options *format)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = KILN_OPEN_WRITE };
	struct kiln_format_device place = { 0 };
	char why[KILN_ERROR_BYTES] = "";
	struct device *dev;
	kiln_fs *fs;

	int err = device_open_memory("memory", bytes, 4096, &dev);
	if (!err)
		err = fs_format_devices(&dev, &place, 1, format, why);
	if (err)
		fail("format", err, why);
	device_visit(dev);
	err = fs_initialize(&dev, 1, &options, &fs, why);
	if (err)
		fail("format", err, why);
	return fs;
}

static kiln_fs *fs_in_images(char *paths, uint64_t bytes, const struct kiln_format_options *format)
{
	struct kiln_format_device devs[IMAGES_MAX] = { 0 };
	char why[KILN_ERROR_BYTES] = "";
	size_t nr = 0;
	kiln_fs *fs;

	for (char *path = strtok(paths, ":"); path && nr < IMAGES_MAX; path = strtok(NULL, ":"))
		devs[nr++] = (struct kiln_format_device){ .path = path, .file_bytes = bytes };
	int err = kiln_format(devs, nr, format, &fs, why);
	if (err)
		fail("format", err, why);
	return fs;
}

static void file_make(struct work *w)
{
	struct kiln_create attr = { .mode = 0644 };
	struct kiln_stat st;
	int err = kiln_create(w->fs, kiln_root(w->fs), "f", 1, &attr, &st);

	if (err)
		fail("create", err, "");
	w->file = st.node;
}

static void fs_close(kiln_fs *fs)
{
	int err = kiln_shutdown(fs);

	kiln_close(fs);
	if (err)
		fail("shutdown", err, "");
}

int main(int argc, char **argv)
{
	static const char encrypted[] = "encrypted,";
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(struct kiln_format_device),
					      .flags = KILN_FORMAT_FORCE };
	struct work w = { 0 };

	if (argc != 5 && argc != 6) {
		fprintf(stderr,
			"usage: bench-write IMAGE[:IMAGE...]|memory|library FILE_BYTES WRITE_BYTES OPTIONS [SOURCE]\n");
		return 2;
	}
	uint64_t file_bytes = strtoull(argv[2], NULL, 0), write_bytes = strtoull(argv[3], NULL, 0);
	if (!write_bytes || write_bytes % 8 || file_bytes % write_bytes) {
		fprintf(stderr, "FILE_BYTES must be a multiple of WRITE_BYTES, and that of 8\n");
		return 2;
	}
	format.options = argv[4];
	if (!strncmp(argv[4], encrypted, sizeof(encrypted) - 1)) {
		format.flags |= KILN_FORMAT_ENCRYPTED;
		format.options += sizeof(encrypted) - 1;
	}
	uint64_t bytes = round_up_u64(file_bytes + file_bytes / 4 + (256 << 20), 1 << 20);
	if (!strcmp(argv[1], "memory"))
		w.fs = fs_in_memory(bytes, &format);
	else if (strcmp(argv[1], "library") != 0) {
		w.is_device = true;
		w.fs = fs_in_images(argv[1], bytes, &format);
	} else
		w.unit = library_find(argv[4], &w.level);
	if (w.fs)
		file_make(&w);
	work_measure(&w, file_bytes, write_bytes, argc == 6 ? argv[5] : NULL);
	if (w.fs)
		fs_close(w.fs);
	return 0;
}
