/*
 * Little-endian integers as they stand on disk.
 *
 * Each type is a byte array in a struct: alignment 1, so that on-disk structures need no packing attributes, and no
 * implicit conversion, so that an on-disk value can't be used as a number by accident. Compilers turn the accessors
 * into single loads and stores.
 */
#ifndef KILN_BASE_LE_H
#define KILN_BASE_LE_H

#include <stdint.h>
#include <string.h>

typedef struct {
	uint8_t b[2];
} le16;
typedef struct {
	uint8_t b[4];
} le32;
typedef struct {
	uint8_t b[8];
} le64;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LE_SWAP16(x) (x)
#define LE_SWAP32(x) (x)
#define LE_SWAP64(x) (x)
#else
#define LE_SWAP16(x) __builtin_bswap16(x)
#define LE_SWAP32(x) __builtin_bswap32(x)
#define LE_SWAP64(x) __builtin_bswap64(x)
#endif

/* Load and store at any address. */
static inline uint16_t le16_load(const void *p)
{
	uint16_t v;
	memcpy(&v, p, sizeof(v));
	return LE_SWAP16(v);
}

static inline uint32_t le32_load(const void *p)
{
	uint32_t v;
	memcpy(&v, p, sizeof(v));
	return LE_SWAP32(v);
}

static inline uint64_t le64_load(const void *p)
{
	uint64_t v;
	memcpy(&v, p, sizeof(v));
	return LE_SWAP64(v);
}

static inline void le16_store(void *p, uint16_t v)
{
	v = LE_SWAP16(v);
	memcpy(p, &v, sizeof(v));
}

static inline void le32_store(void *p, uint32_t v)
{
	v = LE_SWAP32(v);
	memcpy(p, &v, sizeof(v));
}

static inline void le64_store(void *p, uint64_t v)
{
	v = LE_SWAP64(v);
	memcpy(p, &v, sizeof(v));
}

static inline uint16_t le16_get(le16 x) { return le16_load(x.b); }
static inline uint32_t le32_get(le32 x) { return le32_load(x.b); }
static inline uint64_t le64_get(le64 x) { return le64_load(x.b); }

static inline le16 le16_of(uint16_t v)
{
	le16 x;
	le16_store(x.b, v);
	return x;
}
static inline le32 le32_of(uint32_t v)
{
	le32 x;
	le32_store(x.b, v);
	return x;
}
static inline le64 le64_of(uint64_t v)
{
	le64 x;
	le64_store(x.b, v);
	return x;
}

/* Bits [lo, hi) of @word, 0 <= lo < hi <= 64; bit 0 is the least significant. */
static inline uint64_t bits_get(uint64_t word, unsigned lo, unsigned hi)
{
	return (word >> lo) & (~0ull >> (64 - (hi - lo)));
}

/* @word with bits [lo, hi) replaced by the low bits of @value. */
static inline uint64_t bits_set(uint64_t word, unsigned lo, unsigned hi, uint64_t value)
{
	uint64_t mask = (~0ull >> (64 - (hi - lo))) << lo;

	return (word & ~mask) | ((value << lo) & mask);
}

#endif
