/*
 * Makes a bcachefs filesystem in an image file, writes a file into it, and reads it back.
 *
 *	cc format_and_write.c $(pkg-config --cflags --libs libkiln) -o format_and_write
 *	./format_and_write new.img
 */
#include <kiln/kiln.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const char name[] = "hello.txt", text[] = "Hello, bcachefs!\n";

static int hello_write(kiln_fs *fs)
{
	const struct kiln_create attr = { .mode = S_IFREG | 0644 };
	struct kiln_stat st;

	int err = kiln_create(fs, kiln_root(fs), name, strlen(name), &attr, &st);
	if (err)
		return err;
	ssize_t n = kiln_write(fs, st.node, 0, text, strlen(text));
	if (n < 0)
		return (int)n;
	return kiln_fsync(fs, st.node); /* from here on it is there, whatever happens */
}

static int hello_read(kiln_fs *fs)
{
	char buf[sizeof(text)];
	struct kiln_stat st;

	int err = kiln_lookup(fs, kiln_root(fs), name, strlen(name), &st);
	if (err)
		return err;
	ssize_t n = kiln_read(fs, st.node, 0, buf, sizeof(buf));
	if (n < 0)
		return (int)n;
	return fwrite(buf, 1, (size_t)n, stdout) == (size_t)n ? 0 : -1;
}

int main(int argc, char **argv)
{
	struct kiln_format_device device = { .path = argv[1], .file_bytes = 64 << 20 };
	const struct kiln_format_options options = { .struct_bytes = sizeof(options),
						     .device_struct_bytes = sizeof(device) };
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;

	if (argc != 2 || kiln_format(&device, 1, &options, &fs, why)) {
		fprintf(stderr, "%s\n", argc != 2 ? "usage: format_and_write IMAGE" : why);
		return 1;
	}
	int err = hello_write(fs);
	if (!err)
		err = hello_read(fs);
	int closed = kiln_shutdown(fs); /* kiln_close() does it too, but can't say how it went */
	kiln_close(fs);
	if (err || closed)
		fprintf(stderr, "%s: %s\n", argv[1], strerror(err ? -err : -closed));
	return err || closed;
}
