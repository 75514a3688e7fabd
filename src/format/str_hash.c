/*
 * Hash of names.
 *
 * A hash is made over a seed (the directory's, or the xattr owner's) and a message: a dirent's name, or an xattr's type
 * byte and name. The CRCs take the seed as leading input, SipHash as its key.
 */
#include "format/str_hash.h"

#include <assert.h>
#include <isa-l.h>
#include <sodium.h>

#include "base/le.h"
#include "base/util.h"

/* Cookies 0 and 1 are "." and ".." in a directory. */
enum { STR_HASH_DIRENT_MIN = 2 };

/* Neither CRC is inverted at the end. ISA-L inverts its 64-bit register on entry and exit, hence the 0 and the ~. */
static uint64_t hash_crc32c(const uint8_t seed[8], const void *message, size_t len)
{
	uint32_t crc = crc32_iscsi((unsigned char *)seed, 8, ~0u);

	return len ? crc32_iscsi((unsigned char *)message, (int)len, crc) : crc;
}

static uint64_t hash_crc64(const uint8_t seed[8], const void *message, size_t len)
{
	uint64_t inverted = crc64_ecma_norm(0, seed, 8);

	return ~(len ? crc64_ecma_norm(inverted, message, len) : inverted) >> 1;
}

static uint64_t hash_siphash(const uint8_t key[crypto_shorthash_siphash24_KEYBYTES], const void *message, size_t len)
{
	uint8_t out[crypto_shorthash_siphash24_BYTES];

	crypto_shorthash_siphash24(out, message, len, key);
	return le64_load(out) >> 1;
}

static uint64_t str_hash_message(enum str_hash_type type, uint64_t seed_value, const void *message, size_t len)
{
	uint8_t seed[8], digest[crypto_hash_sha256_BYTES];
	uint8_t key[crypto_shorthash_siphash24_KEYBYTES] = { 0 };

	le64_store(seed, seed_value);
	switch (type) {
	case STR_HASH_CRC32C: return hash_crc32c(seed, message, len);
	case STR_HASH_CRC64: return hash_crc64(seed, message, len);
	case STR_HASH_SIPHASH_OLD:
		crypto_hash_sha256(digest, seed, sizeof(seed));
		return hash_siphash(digest, message, len);
	default: memcpy(key, seed, sizeof(seed)); return hash_siphash(key, message, len);
	}
}

uint64_t str_hash_dirent(enum str_hash_type type, uint64_t seed, const void *name, size_t len, int is_31bit)
{
	uint64_t hash = str_hash_message(type, seed, name, len);

	if (is_31bit)
		hash &= 0x7fffffff;
	return max(hash, (uint64_t)STR_HASH_DIRENT_MIN);
}

/*
 * Upstream feeds SipHash the type byte and then the name in two steps, and its buffering goes wrong when the second
 * step is long enough to fill a block: the last, incomplete block starts with the type byte again, followed by the rest
 * of the name without its last byte. The result is the standard hash of a message of the same length with that ending.
 */
static void xattr_message_apply_deviation(uint8_t *message, size_t len)
{
	size_t rest = len % 8;

	if (len <= 7 || !rest)
		return;

	uint8_t *last = message + len - rest;
	memmove(last + 1, last, rest - 1);
	last[0] = message[0];
}

uint64_t str_hash_xattr(enum str_hash_type type, uint64_t seed, uint8_t x_type, const void *name, size_t len)
{
	uint8_t message[1 + STR_HASH_XATTR_NAME_MAX];

	assert(len <= STR_HASH_XATTR_NAME_MAX);
	message[0] = x_type;
	if (len)
		memcpy(message + 1, name, len);
	if (type == STR_HASH_SIPHASH || type == STR_HASH_SIPHASH_OLD)
		xattr_message_apply_deviation(message, len + 1);
	return str_hash_message(type, seed, message, len + 1);
}
