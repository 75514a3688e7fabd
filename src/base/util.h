/* Small arithmetic helpers and compiler notes that every room uses. */
#ifndef KILN_BASE_UTIL_H
#define KILN_BASE_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define ARRAY_NR(a)			(sizeof(a) / sizeof((a)[0]))
#define PRINTF_LIKE(fmt, args)		__attribute__((format(printf, fmt, args)))
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define min(a, b)                       \
	({                              \
		__typeof__(a) a_ = (a); \
		__typeof__(b) b_ = (b); \
		a_ < b_ ? a_ : b_;      \
	})
#define max(a, b)                       \
	({                              \
		__typeof__(a) a_ = (a); \
		__typeof__(b) b_ = (b); \
		a_ > b_ ? a_ : b_;      \
	})

enum { SECTOR_BYTES = 512, SECTOR_SHIFT = 9 };

static inline uint64_t round_up_u64(uint64_t v, uint64_t unit) { return (v + unit - 1) / unit * unit; }
static inline uint64_t round_down_u64(uint64_t v, uint64_t unit) { return v / unit * unit; }
static inline uint64_t div_round_up_u64(uint64_t v, uint64_t unit) { return v / unit + (v % unit != 0); }
static inline bool is_power_of_2(uint64_t v) { return v && !(v & (v - 1)); }

/*
 * What devices say may be any number, and so may what is made of it: it is added up in 128 bits, and then brought to
 * the nearest number that there is room for.
 */
static inline uint64_t u64_clamp(__int128 v) { return v < 0 ? 0 : v > UINT64_MAX ? UINT64_MAX : (uint64_t)v; }
static inline int64_t i64_clamp(__int128 v)
{
	return v < INT64_MIN ? INT64_MIN : v > INT64_MAX ? INT64_MAX : (int64_t)v;
}

/* Number of bits needed to write @v: 0 for 0, 1 for 1, 64 for 2^64 - 1. */
static inline unsigned bit_length_u64(uint64_t v) { return v ? 64 - (unsigned)__builtin_clzll(v) : 0; }

/* free() at the end of the scope: `CLEANUP_FREE void *p = ...;` */
static inline void cleanup_free(void *p) { free(*(void **)p); }
#define CLEANUP_FREE __attribute__((cleanup(cleanup_free)))

#endif
