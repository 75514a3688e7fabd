/* Hash of names: slots of dirents and xattrs (04 §2.1). */
#ifndef KILN_FORMAT_STR_HASH_H
#define KILN_FORMAT_STR_HASH_H

#include <stddef.h>
#include <stdint.h>

enum str_hash_type { STR_HASH_CRC32C, STR_HASH_CRC64, STR_HASH_SIPHASH_OLD, STR_HASH_SIPHASH, STR_HASH_NR };

enum { STR_HASH_XATTR_NAME_MAX = 255 };

/* Slot of a dirent's name (the folded one in casefolded directories); @is_31bit: the directory has inode flag 11. */
uint64_t str_hash_dirent(enum str_hash_type type, uint64_t seed, const void *name, size_t len, int is_31bit);
/*
 * Slot of an xattr; includes upstream's deviation for types 2 and 3, which must be reproduced.
 * @len at most STR_HASH_XATTR_NAME_MAX, all that an xattr's value can hold.
 */
uint64_t str_hash_xattr(enum str_hash_type type, uint64_t seed, uint8_t x_type, const void *name, size_t len);

#endif
