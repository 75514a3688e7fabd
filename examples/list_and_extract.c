/*
 * Lists the root directory of a bcachefs filesystem, or writes one file of it to standard output.
 *
 *	cc list_and_extract.c $(pkg-config --cflags --libs libkiln) -o list_and_extract
 *	./list_and_extract disk.img
 *	./list_and_extract disk.img /etc/fstab
 */
#include <kiln/kiln.h>
#include <stdio.h>
#include <string.h>

static int print_name(void *ctx, const struct kiln_dirent *entry)
{
	(void)ctx;
	return puts(entry->name) == EOF;
}

static int extract(kiln_fs *fs, const char *path)
{
	static char buf[1 << 20];
	struct kiln_stat st;
	ssize_t n;

	int err = kiln_lookup_path(fs, path, KILN_FOLLOW, &st);
	for (uint64_t offset = 0; !err && (n = kiln_read(fs, st.node, offset, buf, sizeof(buf))); offset += (uint64_t)n)
		err = n < 0 ? (int)n : fwrite(buf, 1, (size_t)n, stdout) != (size_t)n ? -1 : 0;
	if (err)
		fprintf(stderr, "%s: %s\n", path, strerror(-err));
	return err;
}

int main(int argc, char **argv)
{
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;

	if (argc < 2 || kiln_open((const char *const *)&argv[1], 1, NULL, &fs, why)) {
		fprintf(stderr, "%s\n", argc < 2 ? "usage: list_and_extract DEVICE [PATH]" : why);
		return 1;
	}
	int err = argc > 2 ? extract(fs, argv[2]) : kiln_readdir(fs, kiln_root(fs), 0, print_name, NULL, NULL, NULL);
	kiln_close(fs);
	return err != 0;
}
