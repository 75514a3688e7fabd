/*
 * Memory that was freed is given back to the system.
 *
 * Btree nodes come and go, of many sizes, and are freed by whichever thread needs room. The C library keeps what is
 * free between those in use, in each part of its heap: after a million files were read, as much again as half of what
 * was in use. So when the process has grown, and much of what it has is free, it is told to let go of it.
 */
#include "mount/heap.h"

#include <malloc.h>
#include <stdio.h>
#include <unistd.h>

enum { FREE_BYTES_MIN = 16 << 20, GROWN_BYTES_MIN = 8 << 20 };

static uint64_t resident_now(void)
{
	unsigned long long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (f && fscanf(f, "%*u %llu", &pages) != 1)
		pages = 0;
	if (f)
		fclose(f);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

void heap_give_back(uint64_t *resident_bytes)
{
#ifdef __GLIBC__
	if (resident_now() < *resident_bytes + GROWN_BYTES_MIN || mallinfo2().fordblks < FREE_BYTES_MIN)
		return;
	malloc_trim(0);
	*resident_bytes = resident_now();
#else
	(void)resident_bytes;
#endif
}
