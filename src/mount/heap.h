/* Memory that was freed is given back to the system. See heap.c. */
#ifndef KILN_MOUNT_HEAP_H
#define KILN_MOUNT_HEAP_H

#include <stdint.h>

/* How often to call it, while there is work. */
enum { HEAP_LOOK_S = 2 };

/* @resident_bytes: 0 at first, then what it left there. Takes milliseconds where there is much to give back. */
void heap_give_back(uint64_t *resident_bytes);

#endif
