/* Growth of dynamic arrays: a pointer, a capacity and a count, which the owner keeps under names of his own. */
#ifndef KILN_BASE_ARRAY_H
#define KILN_BASE_ARRAY_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/*
 * Make room for at least @needed elements of @elem_size bytes. @array is the address of the array's pointer (any object
 * pointer type, NULL when empty; free it with free()), @capacity how many elements it has room for. New room is not
 * zeroed; capacity at least doubles, so that appending n elements costs O(n).
 *
 *	if (array_grow(&nodes, &nodes_capacity, nodes_nr + 1, sizeof(*nodes)))
 *		return -ENOMEM;
 *	nodes[nodes_nr++] = node;
 *
 * Returns 0 or -ENOMEM, also when the size in bytes can't be expressed; then nothing has changed.
 */
static inline int array_grow(void *array, size_t *capacity, size_t needed, size_t elem_size)
{
	enum { CAPACITY_MIN = 8 };
	size_t bytes, new_capacity;
	void *old, *grown;

	if (needed <= *capacity)
		return 0;
	if (__builtin_mul_overflow(*capacity, 2, &new_capacity) || new_capacity < needed)
		new_capacity = needed;
	if (new_capacity < CAPACITY_MIN)
		new_capacity = CAPACITY_MIN;
	if (__builtin_mul_overflow(new_capacity, elem_size, &bytes) || bytes > PTRDIFF_MAX)
		return -ENOMEM;

	/* Through memcpy: @array is a `T **` for any T, and a void ** may not alias it. */
	memcpy(&old, array, sizeof(old));
	grown = realloc(old, bytes);
	if (!grown)
		return -ENOMEM;
	memcpy(array, &grown, sizeof(grown));
	*capacity = new_capacity;
	return 0;
}

#endif
