/*
 * How fast the read path verifies checksums and the write path encrypts, next to the libraries alone on the same bytes:
 * ISA-L's CRC-32C; libsodium's ChaCha20 and Poly1305.
 *
 * Units of 64 KiB: once a single unit again and again, which stays in the processor's caches, and once many of
 * them, which come from memory. Both sides take turns within each repetition; printed are medians, the 10th and 90th
 * percentile, and the ratio of the medians.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <isa-l.h>
#include <sodium.h>

#include "base/clock.h"
#include "base/util.h"
#include "data/data.h"

enum { UNIT_BYTES = 64 << 10, UNIT_NR = 2048, REPETITION_NR = 51 };

static uint8_t *units;
static struct extent_crc crcs[UNIT_NR];
static volatile unsigned sink;

static void unit_verify(unsigned i)
{
	static const struct super super; /* only keys are looked for there */
	static const struct bversion no_version;

	if (!data_region_verify(&super, &crcs[i], no_version, units + (size_t)i * UNIT_BYTES, UNIT_BYTES))
		abort();
}

static void unit_isal(unsigned i)
{
	sink += crc32_iscsi(units + (size_t)i * UNIT_BYTES, UNIT_BYTES, 0) == crcs[i].csum.lo;
}

/* As the write path has it: to another place, then the MAC over what is stored. */
static uint8_t *encrypted;

static void unit_encrypt(unsigned i)
{
	static const struct crypt_key key;
	struct nonce nonce = nonce_extent(UNIT_BYTES / SECTOR_BYTES, 0, COMPRESSION_NONE, i, 0);

	crypt_encrypt(&key, nonce, encrypted, units + (size_t)i * UNIT_BYTES, UNIT_BYTES);
	sink += crypt_mac(CHECKSUM_CHACHA20_POLY1305_80, &key, nonce, encrypted, UNIT_BYTES).lo == 1;
}

static void unit_sodium(unsigned i)
{
	static const uint8_t key[crypto_stream_chacha20_KEYBYTES], nonce[crypto_stream_chacha20_NONCEBYTES];
	uint8_t mac[crypto_onetimeauth_poly1305_BYTES];

	crypto_stream_chacha20_xor(encrypted, units + (size_t)i * UNIT_BYTES, UNIT_BYTES, nonce, key);
	crypto_onetimeauth_poly1305(mac, encrypted, UNIT_BYTES, key);
	sink += mac[0] == 1;
}

static double measure(void (*fn)(unsigned i), unsigned nr, unsigned distinct)
{
	uint64_t start = clock_monotonic_ns();

	for (unsigned i = 0; i < nr; i++)
		fn(i % distinct);
	return (double)nr * UNIT_BYTES / (double)(clock_monotonic_ns() - start);
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

typedef void (*unit_fn)(unsigned i);

static void compare(const char *what, unit_fn unit, const char *library, unit_fn unit_alone, unsigned nr,
		    unsigned distinct)
{
	static double ours[REPETITION_NR], limit[REPETITION_NR];

	for (unsigned i = 0; i < REPETITION_NR; i++) {
		/* Neither is always first. */
		if (i & 1)
			limit[i] = measure(unit_alone, nr, distinct);
		ours[i] = measure(unit, nr, distinct);
		if (!(i & 1))
			limit[i] = measure(unit_alone, nr, distinct);
	}
	qsort(ours, REPETITION_NR, sizeof(double), compare_doubles);
	qsort(limit, REPETITION_NR, sizeof(double), compare_doubles);
	printf("%-22s %6.2f GB/s (%.2f..%.2f), %s alone %6.2f GB/s (%.2f..%.2f): %.1f %%\n", what,
	       ours[REPETITION_NR / 2], ours[REPETITION_NR / 10], ours[REPETITION_NR * 9 / 10], library,
	       limit[REPETITION_NR / 2], limit[REPETITION_NR / 10], limit[REPETITION_NR * 9 / 10],
	       100 * ours[REPETITION_NR / 2] / limit[REPETITION_NR / 2]);
}

int main(void)
{
	struct rng rng;

	units = aligned_alloc(4096, (size_t)UNIT_NR * UNIT_BYTES);
	if (!units)
		abort();
	rng_init(&rng, 1);
	for (size_t i = 0; i < (size_t)UNIT_NR * UNIT_BYTES / 8; i++)
		le64_store(units + i * 8, rng_u64(&rng));
	for (unsigned i = 0; i < UNIT_NR; i++)
		crcs[i] = (struct extent_crc){
			.compressed_sectors = UNIT_BYTES / SECTOR_BYTES,
			.uncompressed_sectors = UNIT_BYTES / SECTOR_BYTES,
			.csum_type = CHECKSUM_CRC32C,
			.csum.lo = crc32_iscsi(units + (size_t)i * UNIT_BYTES, UNIT_BYTES, 0),
		};
	encrypted = aligned_alloc(4096, UNIT_BYTES);
	if (!encrypted || sodium_init() < 0)
		abort();
	compare("crc32c, one unit", unit_verify, "ISA-L", unit_isal, 200, 1);
	compare("crc32c, from memory", unit_verify, "ISA-L", unit_isal, UNIT_NR, UNIT_NR);
	compare("encrypted, one unit", unit_encrypt, "libsodium", unit_sodium, 20, 1);
	compare("encrypted, from memory", unit_encrypt, "libsodium", unit_sodium, UNIT_NR / 16, UNIT_NR / 16);
	free(encrypted);
	free(units);
	return 0;
}
