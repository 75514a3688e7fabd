/* Memory that can go to a file. See spill.h. */
#include "base/spill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* A file on disk without a name, with room for @bytes; -1: none. Writing to a mapping must not meet a full disk. */
static int disk_file_open(size_t bytes)
{
	const char *dir = getenv("TMPDIR");

	int fd = open(dir && *dir ? dir : "/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
	if (fd >= 0 && fallocate(fd, 0, 0, (off_t)bytes)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static int memory_file_open(size_t bytes)
{
	int fd = memfd_create("kiln-spill", MFD_CLOEXEC);

	if (fd >= 0 && ftruncate(fd, (off_t)bytes)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

int spill_alloc(struct spill *spill, size_t bytes, bool is_secret)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, fd = -1;

	*spill = (struct spill){ 0 };
	if (!bytes)
		return 0;
	if (bytes > SPILL_MEMORY_MAX) {
		fd = is_secret ? -1 : disk_file_open(bytes);
		if (fd < 0)
			fd = memory_file_open(bytes);
		if (fd < 0)
			return -ENOMEM;
		flags = MAP_SHARED;
	}
	void *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (fd >= 0)
		close(fd);
	if (mem == MAP_FAILED)
		return -ENOMEM;
	*spill = (struct spill){ mem, bytes };
	return 0;
}

void spill_free(struct spill *spill)
{
	if (spill->mem)
		munmap(spill->mem, spill->bytes);
	*spill = (struct spill){ 0 };
}
