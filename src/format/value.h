/*
 * Helpers for code that reads key values.
 *
 * Values written by older versions are shorter than the structure, those of newer ones longer: a decoder copies what it
 * knows and takes the rest as zero, so it needs no bounds of its own.
 */
#ifndef KILN_FORMAT_VALUE_H
#define KILN_FORMAT_VALUE_H

#include <string.h>

#include "base/strbuf.h"
#include "format/bkey.h"

/* The first @size bytes of a value; bytes that it doesn't have are zero. */
static inline void value_load(void *dst, size_t size, struct bkey_ref k)
{
	size_t len = min(size, bkey_value_bytes(&k.k));

	if (len)
		memcpy(dst, k.value, len);
	if (len < size)
		memset((uint8_t *)dst + len, 0, size - len);
}

/*
 * Names and attribute values for people: UTF-8 as it stands; control characters, backslashes and whatever isn't UTF-8
 * as \xNN, so that bytes from a foreign image can't steer the terminal.
 */
void value_add_name(struct strbuf *out, const uint8_t *name, size_t len);

#endif
