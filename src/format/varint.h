/* Variable-length integers of inode fields (04 §1.4): 1 to 9 bytes. */
#ifndef KILN_FORMAT_VARINT_H
#define KILN_FORMAT_VARINT_H

#include <stddef.h>
#include <stdint.h>

/* Minimal encoding; returns bytes written, at most 9. */
size_t varint_encode(uint8_t out[9], uint64_t v);
/* Returns bytes consumed, or -KILN_E_INVALID when @len bytes don't hold a whole one. */
int varint_decode(const uint8_t *in, size_t len, uint64_t *v);

#endif
