/* Checksums and encryption: vectors of 02 §14.1 and 06 §19.1, §19.6. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <sodium.h>

#include "base/util.h"
#include "format/checksum.h"
#include "hex.h"

enum { PIECE = 4096 };

static const struct nonce no_nonce;

static uint64_t csum(unsigned type, const void *data, size_t len)
{
	struct checksum c = checksum_compute(type, NULL, no_nonce, data, len);

	assert_int_equal(c.hi, 0);
	return c.lo;
}

/* First @len bytes of SHA-256("a0") SHA-256("a1") ... */
static void generate_bytes(const char *name, uint8_t *out, size_t len)
{
	for (size_t i = 0; i * 32 < len; i++) {
		uint8_t digest[32];
		char text[32];
		int n = snprintf(text, sizeof(text), "%s%zu", name, i);

		crypto_hash_sha256(digest, (uint8_t *)text, (unsigned long long)n);
		memcpy(out + i * 32, digest, min((size_t)32, len - i * 32));
	}
}

static void checksums_of_known_inputs(void **state)
{
	static uint8_t zeroes[PIECE], letters[PIECE], generated[PIECE], node[144];

	memset(letters, 'A', sizeof(letters));
	generate_bytes("a", generated, sizeof(generated));
	hex_bytes("7f6809b628715496 0f01000001000000 00000000000000000000000000000000 00000000 ffffffff"
		  "ffffffffffffffff ffffffffffffffff 0000000000000000 0306 404020000000 0000000000000000",
		  node, sizeof(node));
	hex_bytes("216d934c541e3e9f 0000000000000000 01000000 0404 0000", node + 0x78, 24);

	static const struct {
		const void *data;
		size_t len;
		uint64_t crc32c_nonzero, crc64_nonzero, crc32c, crc64, xxhash;
	} vectors[] = {
		{ "", 0, 0, 0, 0, 0, 0xef46db3751d8e999 },
		{ "123456789", 9, 0xe3069283, 0x62ec59e3f1a4f00a, 0x58e3fa20, 0x6c40df5f0b497347, 0x8cb841db40e6ae83 },
		{ zeroes, PIECE, 0x98f94189, 0xa50f57a429cbcb64, 0, 0, 0xac869b6f32d8bbdb },
		{ generated, PIECE, 0x596a0c33, 0x8a89ce76b8df9747, 0xc1934dba, 0x2f8699d291145c23,
		  0x001a943db70944a4 },
		{ node, 144, 0x3851896d, 0x2cf86f2da04e5245, 0x544aa808, 0x0ea6ffd8ed3a597a, 0x9ce4c8028ad1c1bd },
	};

	for (size_t i = 0; i < ARRAY_NR(vectors); i++) {
		assert_int_equal(csum(CHECKSUM_NONE, vectors[i].data, vectors[i].len), 0);
		assert_int_equal(csum(CHECKSUM_CRC32C_NONZERO, vectors[i].data, vectors[i].len),
				 vectors[i].crc32c_nonzero);
		assert_int_equal(csum(CHECKSUM_CRC64_NONZERO, vectors[i].data, vectors[i].len),
				 vectors[i].crc64_nonzero);
		assert_int_equal(csum(CHECKSUM_CRC32C, vectors[i].data, vectors[i].len), vectors[i].crc32c);
		assert_int_equal(csum(CHECKSUM_CRC64, vectors[i].data, vectors[i].len), vectors[i].crc64);
		assert_int_equal(csum(CHECKSUM_XXHASH, vectors[i].data, vectors[i].len), vectors[i].xxhash);
	}
	assert_int_equal(csum(CHECKSUM_CRC32C, letters, PIECE), 0x9d8b1060);
	assert_int_equal(csum(CHECKSUM_CRC64, letters, PIECE), 0x586851ba1437884c);
	assert_int_equal(csum(CHECKSUM_XXHASH, letters, PIECE), 0xe10b3e9d6d2b58c3);
}

static void incremental_equals_one_shot(void **state)
{
	static const unsigned types[] = { CHECKSUM_NONE,   CHECKSUM_CRC32C_NONZERO, CHECKSUM_CRC64_NONZERO,
					  CHECKSUM_CRC32C, CHECKSUM_CRC64,	    CHECKSUM_XXHASH };
	uint8_t data[1000];

	generate_bytes("pieces", data, sizeof(data));
	for (size_t t = 0; t < ARRAY_NR(types); t++)
		for (size_t piece = 1; piece < sizeof(data); piece = piece * 3 + 1) {
			struct checksum_state s;

			checksum_begin(&s, types[t]);
			checksum_update(&s, data, 0);
			for (size_t pos = 0; pos < sizeof(data); pos += piece)
				checksum_update(&s, data + pos, min(piece, sizeof(data) - pos));
			assert_int_equal(checksum_end(&s).lo, csum(types[t], data, sizeof(data)));
		}
}

static void merged_parts_equal_the_whole(void **state)
{
	static const unsigned types[] = { CHECKSUM_NONE, CHECKSUM_CRC32C, CHECKSUM_CRC64 };
	static uint8_t data[70000];
	static const size_t cuts[] = { 0, 1, 7, 8, 4096, 4097, 65535, 65536, 69999, 70000 };

	generate_bytes("merge", data, sizeof(data));
	for (size_t t = 0; t < ARRAY_NR(types); t++)
		for (size_t i = 0; i < ARRAY_NR(cuts); i++) {
			struct checksum a = { .lo = csum(types[t], data, cuts[i]) };
			struct checksum b = { .lo = csum(types[t], data + cuts[i], sizeof(data) - cuts[i]) };
			struct checksum whole = checksum_merge(types[t], a, b, sizeof(data) - cuts[i]);

			assert_int_equal(whole.lo, csum(types[t], data, sizeof(data)));
		}

	struct checksum a = { .lo = 0x9d8b1060 }, b = { .lo = 0xf744198b }, c = { .lo = 0x2da5337d };
	struct checksum ab = checksum_merge(CHECKSUM_CRC32C, a, b, PIECE);
	assert_int_equal(ab.lo, 0x7abdeeae);
	assert_int_equal(checksum_merge(CHECKSUM_CRC32C, ab, c, PIECE).lo, 0x3e5d311f);
	a.lo = 0x586851ba1437884c, b.lo = 0x6867daf7244c18b9;
	assert_int_equal(checksum_merge(CHECKSUM_CRC64, a, b, PIECE).lo, 0x675c1c2c9812ba2f);
}

/* Shifting twice by 2^k bytes is shifting once by 2^(k+1): so every entry of the power tables follows from the first.
 */
static void merge_is_consistent_for_all_lengths(void **state)
{
	static const unsigned types[] = { CHECKSUM_CRC32C, CHECKSUM_CRC64 };
	struct checksum none = { 0 };

	for (size_t t = 0; t < ARRAY_NR(types); t++)
		for (unsigned k = 0; k < 63; k++) {
			struct checksum a = { .lo = 0x9d8b1060 };
			struct checksum once = checksum_merge(types[t], a, none, 1ull << (k + 1));
			struct checksum twice = checksum_merge(types[t], a, none, 1ull << k);

			twice = checksum_merge(types[t], twice, none, 1ull << k);
			assert_int_equal(once.lo, twice.lo);
		}
}

static void assert_nonce(struct nonce n, uint32_t d0, uint32_t d1, uint32_t d2, uint32_t d3)
{
	assert_int_equal(n.d[0], d0);
	assert_int_equal(n.d[1], d1);
	assert_int_equal(n.d[2], d2);
	assert_int_equal(n.d[3], d3);
}

static void assert_encrypts_to(const struct crypt_key *key, struct nonce nonce, const char *cipher, const char *mac)
{
	static uint8_t data[PIECE];
	uint8_t expected[16], stored[16];

	memset(data, 0, sizeof(data));
	crypt_xor(key, nonce, data, sizeof(data));
	assert_int_equal(hex_bytes(cipher, expected, 16), 16);
	assert_memory_equal(data, expected, 16);

	assert_int_equal(hex_bytes(mac, expected, 16), 16);
	checksum_store(stored, checksum_compute(CHECKSUM_CHACHA20_POLY1305_128, key, nonce, data, sizeof(data)));
	assert_memory_equal(stored, expected, 16);
	checksum_store(stored, checksum_compute(CHECKSUM_CHACHA20_POLY1305_80, key, nonce, data, sizeof(data)));
	memset(expected + 10, 0, 6);
	assert_memory_equal(stored, expected, 16);
}

static void nonces_and_macs_of_every_structure(void **state)
{
	const uint64_t lo = 0x1122334455667788;
	const uint32_t hi = 0x99aa;
	struct crypt_key key;
	struct nonce n;

	for (unsigned i = 0; i < 32; i++)
		key.bytes[i] = (uint8_t)i;

	n = nonce_extent(8, 0, 0, lo, hi);
	assert_nonce(n, 0, 0x55667788, 0x11223344, 0x100099aa);
	assert_encrypts_to(&key, n, "fc756dbbc9877cf290aeb3fbfda81e91", "7e71f95f822ab28fbf23362e6e934fcc");
	n = nonce_extent(8, 40, 5, lo, hi);
	assert_nonce(n, 0x140, 0x55667788, 0x11223344, 0x100099aa);
	assert_encrypts_to(&key, n, "4db0efe4111e8eebcdf47576b3c74bed", "9a66afd669aead798db5861689bddc09");
	n = nonce_extent(128, 0, 4, lo, hi);
	assert_nonce(n, 0x20000000, 0x55667788, 0x11223344, 0x140099aa);
	assert_encrypts_to(&key, n, "d921913b350b54ccca387d60c2623d3d", "a22bc3f1dbaf5befe3839c53f3a2c1aa");
	n = nonce_extent(128, 8, 3, lo, hi);
	assert_nonce(n, 0x20000040, 0x55667788, 0x11223344, 0x130099aa);
	assert_encrypts_to(&key, n, "340cb7b282604421614d96b69247caba", "755d95c3dfd7b0dd439ced443a25c42e");
	n = nonce_journal(0x0102030405060708);
	assert_nonce(n, 0, 0x05060708, 0x01020304, 0x30000000);
	assert_encrypts_to(&key, n, "938f814bb2bdcab93266aef4aa152d9d", "d6c47f5d35114575f21ef8bfc53a585d");
	n = nonce_btree(4096, 0xa1a2a3a4a5a6a7a8, 5);
	assert_nonce(n, 0x1000, 0xa5a6a7a8, 0xa1a2a3a4, 0x20000005);
	assert_encrypts_to(&key, n, "1a384c861b2e92072c791d4dce7cf744", "35a0035d50dfdb2af10d46079d20adf4");
}

static void extent_of_a_real_filesystem(void **state)
{
	static uint8_t data[PIECE];
	struct crypt_key key;
	uint8_t expected[16], stored[16];
	struct nonce n = nonce_extent(8, 0, 0, 1, 0);

	hex_bytes("af568bc58d83e68422192f9132188f72faab17d32deca9ff33ef99aa0a858f61", key.bytes, sizeof(key.bytes));
	generate_bytes("a", data, sizeof(data));
	assert_nonce(n, 0, 1, 0, 0x10000000);

	crypt_xor(&key, n, data, sizeof(data));
	hex_bytes("2bfd9a7e36a7d79ce7fd5e2ff4f605f0", expected, 16);
	assert_memory_equal(data, expected, 16);
	hex_bytes("9841498fd94c4fdd7ec893d6fc1d4ced", expected, 16);
	checksum_store(stored, checksum_compute(CHECKSUM_CHACHA20_POLY1305_128, &key, n, data, sizeof(data)));
	assert_memory_equal(stored, expected, 16);
	assert_nonce(nonce_extent(128, 0, 4, 4, 0), 0x20000000, 4, 0, 0x14000000);
}

/* An extent can be decrypted from the middle: the stream advances by a block of 64 bytes. */
static void key_stream_can_start_at_any_block(void **state)
{
	struct crypt_key key = { { 1, 2, 3 } };
	struct nonce n = nonce_extent(16, 3, 0, 42, 0);
	uint8_t whole[1024] = { 0 }, part[512] = { 0 };

	crypt_xor(&key, n, whole, sizeof(whole));
	crypt_xor(&key, nonce_add(n, 512), part, sizeof(part));
	assert_memory_equal(whole + 512, part, sizeof(part));
}

static void sizes_and_names_of_types(void **state)
{
	static const unsigned sizes[CHECKSUM_TYPE_NR] = { 0, 4, 8, 10, 16, 4, 8, 8 };

	for (unsigned type = 0; type < CHECKSUM_TYPE_NR; type++)
		assert_int_equal(checksum_bytes(type), sizes[type]);
	assert_int_equal(checksum_bytes(8), 0);
	assert_string_equal(checksum_name(CHECKSUM_CHACHA20_POLY1305_80), "chacha20_poly1305_80");
	assert_string_equal(checksum_name(99), "unknown");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(checksums_of_known_inputs),
		cmocka_unit_test(incremental_equals_one_shot),
		cmocka_unit_test(merged_parts_equal_the_whole),
		cmocka_unit_test(merge_is_consistent_for_all_lengths),
		cmocka_unit_test(nonces_and_macs_of_every_structure),
		cmocka_unit_test(extent_of_a_real_filesystem),
		cmocka_unit_test(key_stream_can_start_at_any_block),
		cmocka_unit_test(sizes_and_names_of_types),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
