/*
 * Memory for what may become large but isn't needed at once: a byte array that the kernel can write out to a file
 * instead of keeping it in memory.
 *
 * Up to SPILL_MEMORY_MAX bytes it is ordinary memory. Beyond, it is mapped from a file that has no name any more, in
 * $TMPDIR (or /var/tmp), whose room is reserved first; where there is none, or not enough room, from a memory file,
 * which can go to swap at least. What must not be written down in the clear is never put in a file on disk.
 */
#ifndef KILN_BASE_SPILL_H
#define KILN_BASE_SPILL_H

#include <stdbool.h>
#include <stddef.h>

enum { SPILL_MEMORY_MAX = 16 << 20 };

struct spill {
	void *mem; /* NULL: empty */
	size_t bytes;
};

/*
 * @bytes of zeroes; none for 0. Where the file is on disk is nobody's business but the kernel's: it is gone when the
 * mapping is. @is_secret: not on disk. 0 or -ENOMEM.
 */
int spill_alloc(struct spill *spill, size_t bytes, bool is_secret);
void spill_free(struct spill *spill);

#endif
