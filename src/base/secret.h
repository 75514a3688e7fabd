/* Memory for keys and passphrases: not swapped out, not in core dumps, between guard pages, wiped when freed. */
#ifndef KILN_BASE_SECRET_H
#define KILN_BASE_SECRET_H

#include <stddef.h>

/*
 * @len zero bytes, aligned for any type. NULL when memory is short. Locking in memory is best effort: a process without
 * the right to lock still gets its memory.
 */
void *secret_alloc(size_t len);
/* Wipe and free; NULL is allowed. */
void secret_free(void *secret);
/* Zero @len bytes in a way that the compiler may not leave out. */
void secret_wipe(void *secret, size_t len);

#endif
