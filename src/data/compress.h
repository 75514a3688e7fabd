/* Stored regions, compressed and back (06 §7): lz4, gzip, zstd with bcachefs' framing. */
#ifndef KILN_DATA_COMPRESS_H
#define KILN_DATA_COMPRESS_H

#include <stddef.h>

/*
 * Compress @src_len bytes to at most @dst_max: *@len of them. @option: algorithm and level (06
 * §7.1), a valid one with an algorithm. 0, -ENOBUFS when that is too little room, -ENOMEM.
 */
int compress_region(unsigned option, const void *src, size_t src_len, void *dst, size_t dst_max, size_t *len);
/* The same to whole blocks, at most @dst_max bytes of them, the last one padded with zeroes. *@len: of the blocks. */
int compress_to_blocks(unsigned option, const void *src, size_t src_len, void *dst, size_t dst_max, size_t block_bytes,
		       size_t *len);
/*
 * Decompress a region of @src_len stored bytes to exactly @dst_len bytes. 0, -EIO when the data doesn't decode to that,
 * -ENOMEM. @type: enum compression_type, a compressed one; others are -EIO. Nothing outside of the two buffers is
 * touched, whatever the bytes; after an error the content of @dst is undefined.
 *
 * Contexts of the codecs are kept from call to call. Callable from any thread.
 */
int decompress_region(unsigned type, const void *src, size_t src_len, void *dst, size_t dst_len);
/* Free the contexts kept; those in use now come back later. */
void compress_contexts_free(void);

#endif
