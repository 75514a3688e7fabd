/*
 * Runs a fuzz target over files and folders of them: regression tests, and looking at a finding.
 *
 * Usage: replay-NAME FILE|FOLDER...
 */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int file_replay(const char *path)
{
	FILE *f = fopen(path, "rb");
	struct stat st;

	if (!f || fstat(fileno(f), &st)) {
		perror(path);
		return 1;
	}
	/* Exactly as large as the file: a byte too far is seen. */
	size_t size = (size_t)st.st_size;
	uint8_t *data = malloc(size ? size : 1);
	bool is_read = data && fread(data, 1, size, f) == size;
	fclose(f);
	if (is_read)
		LLVMFuzzerTestOneInput(data, size);
	else
		perror(path);
	free(data);
	return !is_read;
}

static int path_replay(const char *path, unsigned *nr)
{
	struct dirent *entry;
	DIR *dir = opendir(path);
	int status = 0;

	if (!dir) {
		++*nr;
		/* Said before, as nothing can be said after a crash. */
		if (getenv("KILN_FUZZ_VERBOSE"))
			fprintf(stderr, "%s\n", path);
		return file_replay(path);
	}
	while ((entry = readdir(dir))) {
		char below[4096];

		if (entry->d_name[0] == '.')
			continue;
		snprintf(below, sizeof(below), "%s/%s", path, entry->d_name);
		status |= path_replay(below, nr);
	}
	closedir(dir);
	return status;
}

int main(int argc, char **argv)
{
	unsigned nr = 0;
	int status = 0;

	for (int i = 1; i < argc; i++)
		status |= path_replay(argv[i], &nr);
	printf("%u inputs\n", nr);
	/* A corpus that isn't found is no success. */
	return status || !nr;
}
