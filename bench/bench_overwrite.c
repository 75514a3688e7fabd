/*
 * Random overwrites of a file through whatever filesystem it is in.
 *
 * usage: bench-overwrite FILE PIECE_BYTES NR SYNC_EVERY
 *
 * Writes NR pieces to random places of FILE, aligned, with fdatasync() after each SYNC_EVERY of them and at the end.
 * Prints the seconds that took.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	struct rng rng;
	struct stat st;

	if (argc != 5) {
		fprintf(stderr, "usage: bench-overwrite FILE PIECE_BYTES NR SYNC_EVERY\n");
		return 2;
	}
	size_t piece = strtoull(argv[2], NULL, 0);
	uint64_t nr = strtoull(argv[3], NULL, 0), sync_every = strtoull(argv[4], NULL, 0);
	uint8_t *buf = malloc(piece);
	int fd = open(argv[1], O_RDWR);
	if (fd < 0 || fstat(fd, &st) || !buf || !piece || !sync_every || (uint64_t)st.st_size < piece)
		fail(argv[1]);
	rng_init(&rng, 1);
	for (size_t i = 0; i < piece; i++)
		buf[i] = (uint8_t)rng_u64(&rng);
	uint64_t begin_ns = clock_monotonic_ns();
	for (uint64_t i = 0; i < nr; i++) {
		uint64_t at = rng_below(&rng, (uint64_t)st.st_size / piece) * piece;

		memcpy(buf, &i, min(sizeof(i), piece));
		if (pwrite(fd, buf, piece, (off_t)at) != (ssize_t)piece)
			fail("pwrite");
		if ((i + 1) % sync_every == 0 && fdatasync(fd))
			fail("fdatasync");
	}
	if (fdatasync(fd))
		fail("fdatasync");
	printf("%.4f\n", (double)(clock_monotonic_ns() - begin_ns) / 1e9);
	close(fd);
	free(buf);
	return 0;
}
