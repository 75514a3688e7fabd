/*
 * Checksums and encryption: all types of 02 §6 / 06 §6, and the nonces of 06 §8.4.
 *
 * CRCs come from ISA-L, XXH64 from libxxhash, ChaCha20 and Poly1305 from libsodium. Nothing here keeps state.
 */
#ifndef KILN_FORMAT_CHECKSUM_H
#define KILN_FORMAT_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/le.h"

enum checksum_type {
	CHECKSUM_NONE,
	CHECKSUM_CRC32C_NONZERO,
	CHECKSUM_CRC64_NONZERO,
	CHECKSUM_CHACHA20_POLY1305_80,
	CHECKSUM_CHACHA20_POLY1305_128,
	CHECKSUM_CRC32C,
	CHECKSUM_CRC64,
	CHECKSUM_XXHASH,
	CHECKSUM_TYPE_NR,
};

/* 16 bytes as stored; types shorter than that are zero padded. */
struct checksum {
	uint64_t lo, hi;
};

struct nonce {
	uint32_t d[4];
};

struct crypt_key {
	uint8_t bytes[32];
};

const char *checksum_name(unsigned type);
/* Bytes a type uses (0, 4, 8, 10, 16); 0 for unknown types. */
unsigned checksum_bytes(unsigned type);
static inline bool checksum_is_mac(unsigned type)
{
	return type == CHECKSUM_CHACHA20_POLY1305_80 || type == CHECKSUM_CHACHA20_POLY1305_128;
}

/*
 * Checksum of @len bytes. @key and @nonce are used by the MAC types only (@key must then be there).
 * @type < CHECKSUM_TYPE_NR.
 */
struct checksum checksum_compute(unsigned type, const struct crypt_key *key, struct nonce nonce, const void *data,
				 size_t len);

/*
 * Incremental form, for types other than MACs (and MACs through checksum_compute only): update a state over pieces.
 */
struct checksum_state {
	unsigned type;
	uint64_t value;
	uint8_t hash[88] __attribute__((aligned(8))); /* XXH64 state; its size is asserted in checksum.c */
};
void checksum_begin(struct checksum_state *s, unsigned type);
void checksum_update(struct checksum_state *s, const void *data, size_t len);
struct checksum checksum_end(struct checksum_state *s);

/* csum(a || b) from csum(a), csum(b) and the length of b; types 0, 5, 6 only. */
struct checksum checksum_merge(unsigned type, struct checksum a, struct checksum b, uint64_t b_len);

static inline bool checksum_eq(struct checksum a, struct checksum b) { return a.lo == b.lo && a.hi == b.hi; }
static inline struct checksum checksum_load(const void *p)
{
	return (struct checksum){ le64_load(p), le64_load((const uint8_t *)p + 8) };
}
static inline void checksum_store(void *p, struct checksum c)
{
	le64_store(p, c.lo);
	le64_store((uint8_t *)p + 8, c.hi);
}

/* XOR @len bytes with the ChaCha20 key stream that starts at @nonce (encrypt = decrypt). */
void crypt_xor(const struct crypt_key *key, struct nonce nonce, void *data, size_t len);
/*
 * What writers call: no part of a key stream may ever cover two plaintexts, nor one nonce's MAC two messages, whatever
 * crashes and failed writes come between. @to and @from are the same or don't overlap. crypt_mac() is
 * checksum_compute() of a MAC type, for what is about to be written. Both show what they are given to crypt_watch().
 */
void crypt_encrypt(const struct crypt_key *key, struct nonce nonce, void *to, const void *from, size_t len);
struct checksum crypt_mac(unsigned type, const struct crypt_key *key, struct nonce nonce, const void *data, size_t len);
/*
 * Defined by test programs only, to hold the writers to that: @plain is to be covered by the key stream at @nonce, or,
 * where bit 31 of d[3] is set, is the message of a MAC. Called by any thread.
 */
extern void crypt_watch(const struct crypt_key *key, struct nonce nonce, const void *plain, size_t len)
	__attribute__((weak));
/* d[0] += bytes / 64; @bytes a multiple of 64. */
struct nonce nonce_add(struct nonce nonce, uint64_t bytes);
/* Nonces by structure. Sizes in sectors; @compression counts only if it really compresses (types 1-4). */
struct nonce nonce_extent(uint32_t uncompressed_sectors, uint32_t nonce_sectors, unsigned compression,
			  uint64_t version_lo, uint32_t version_hi);
struct nonce nonce_btree(uint32_t offset_bytes, uint64_t seq, uint64_t journal_seq);
struct nonce nonce_journal(uint64_t seq);

#endif
