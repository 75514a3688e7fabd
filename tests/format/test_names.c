/* Small pure pieces: varints (04 §1.4), name hashes (04 §2.1), names of versions, errors, passes and counters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/report.h"
#include "base/util.h"
#include "format/counter_ids.h"
#include "format/error_ids.h"
#include "format/pass_ids.h"
#include "format/str_hash.h"
#include "format/varint.h"
#include "format/version.h"
#include "hex.h"

static void varints_of_the_document(void **state)
{
	static const struct {
		uint64_t value;
		const char *hex;
	} vectors[] = {
		{ 0, "00" },
		{ 1, "02" },
		{ 127, "fe" },
		{ 128, "0102" },
		{ 4096, "0140" },
		{ 16384, "030002" },
		{ UINT32_MAX, "efffffff1f" },
		{ 1ull << 55, "7f00000000000080" },
		{ 17629852539985303977u, "ffa99957687ad1a9f4" },
		{ 0x11032c, "631988" },
		{ 0x1030012c, "8f25000602" },
	};

	for (size_t i = 0; i < ARRAY_NR(vectors); i++) {
		uint8_t expected[9], encoded[9];
		size_t len = hex_bytes(vectors[i].hex, expected, sizeof(expected));
		uint64_t decoded;

		assert_int_equal(varint_encode(encoded, vectors[i].value), len);
		assert_memory_equal(encoded, expected, len);
		assert_int_equal(varint_decode(encoded, len, &decoded), (int)len);
		assert_int_equal(decoded, vectors[i].value);
	}
}

static void varints_survive_a_round_trip_at_every_length(void **state)
{
	for (unsigned bits = 0; bits <= 64; bits++)
		for (int around = -1; around <= 1; around++) {
			uint64_t value = (bits < 64 ? 1ull << bits : 0) + (uint64_t)around, decoded;
			uint8_t encoded[9];
			size_t len = varint_encode(encoded, value);

			assert_int_equal(varint_decode(encoded, len, &decoded), (int)len);
			assert_int_equal(decoded, value);
			assert_int_equal(len, value >> 56 ? 9 : max((bit_length_u64(value) + 6) / 7, 1u));
			/* Every prefix is too short. */
			for (size_t cut = 0; cut < len; cut++)
				assert_int_equal(varint_decode(encoded, cut, &decoded), -KILN_E_INVALID);
		}
}

static void hashes_of_the_document(void **state)
{
	enum { DIRENT = -1 };
	static const struct {
		int x_type;
		const char *name;
		uint64_t hashes[STR_HASH_NR];
	} vectors[] = {
		{ DIRENT, "hello.txt", { 0x9b0f6093, 0x19d81c7d642dc3ef, 0x0b71be6944dc5c47, 0x7e3067f38e06672a } },
		{ DIRENT, "a", { 0x087fc519, 0x0a412e91048b8df8, 0x73082e405552d88a, 0x6a6d9f0917291861 } },
		{ 0, "foo", { 0x95a390f5, 0x6d3e42c18a9d6872, 0x230d91edb9fa182e, 0x298c5ea291ea82ed } },
		{ 1, "", { 0x69b9567b, 0x017ed764615c1880, 0x1d7665fea48259df, 0x289f8676f7a90e78 } },
		{ 4, "selinux", { 0x8f3c72bc, 0x5c04cfb34a13cd00, 0x0a7c61e0089407ef, 0x5c82ed649dfeafd8 } },
		{ 0, "abcdefgh", { 0xecc859e3, 0x461173b6efaac246, 0x29c578c94b8d5932, 0x4e9953159ea4be03 } },
		{ 4, "capability", { 0x0a88f942, 0x582f4f5d7fd1cef0, 0x7802860e8589ab4b, 0x2466ab059165143f } },
		{ 3, "overlay.opaque", { 0x414c9efc, 0x0dbd1adf80f828dc, 0x50f6cbbd412dcfd4, 0x1fba04c9a093bf89 } },
	};
	const uint64_t seed = 0x1122334455667788;

	for (size_t i = 0; i < ARRAY_NR(vectors); i++)
		for (unsigned type = 0; type < STR_HASH_NR; type++) {
			const char *name = vectors[i].name;
			uint64_t hash =
				vectors[i].x_type == DIRENT
					? str_hash_dirent(type, seed, name, strlen(name), false)
					: str_hash_xattr(type, seed, (uint8_t)vectors[i].x_type, name, strlen(name));

			assert_int_equal(hash, vectors[i].hashes[type]);
		}
}

/* The deviation's visible effect: of long names the last byte doesn't count. */
static void xattr_siphash_ignores_the_last_byte_of_long_names(void **state)
{
	uint64_t first = str_hash_xattr(STR_HASH_SIPHASH, 7, 0, "user.attribute1", 15);

	/* 16 bytes with the type: whole blocks, so no deviation */
	assert_int_not_equal(first, str_hash_xattr(STR_HASH_SIPHASH, 7, 0, "user.attribute2", 15));
	first = str_hash_xattr(STR_HASH_SIPHASH, 7, 0, "attribute1", 10);
	assert_int_equal(first, str_hash_xattr(STR_HASH_SIPHASH, 7, 0, "attribute2", 10));
	assert_int_not_equal(first, str_hash_xattr(STR_HASH_CRC32C, 7, 0, "attribute2", 10));
}

static void dirent_hash_of_31_bits_is_cut(void **state)
{
	uint64_t whole = str_hash_dirent(STR_HASH_SIPHASH, 9, "name", 4, false);

	assert_int_equal(str_hash_dirent(STR_HASH_SIPHASH, 9, "name", 4, true), whole & 0x7fffffff);
}

static void versions_have_their_names(void **state)
{
	assert_string_equal(version_name(VERSION_1_4), "member_seq");
	assert_string_equal(version_name(0x404), "member_seq");
	assert_string_equal(version_name(VERSION(0, 10)), "bkey_renumber");
	assert_string_equal(version_name(VERSION(0, 29)), "snapshot_trees");
	assert_string_equal(version_name(VERSION(1, 39)), "per_dev_fragmentation_lru");
	assert_null(version_name(VERSION(0, 9)));
	assert_null(version_name(VERSION(0, 30)));
	assert_null(version_name(VERSION(1, 40)));
	assert_null(version_name(VERSION(2, 0)));
	for (unsigned minor = 0; minor <= 39; minor++)
		assert_non_null(version_name(VERSION(1, minor)));
}

static void ids_have_their_names(void **state)
{
	for (unsigned id = 0; id < ERROR_ID_NR; id++)
		assert_non_null(error_id_name(id));
	assert_null(error_id_name(ERROR_ID_NR));
	assert_string_equal(error_id_name(244), "unlinked_inode_not_on_deleted_list");
	assert_int_equal(ERROR_btree_node_bad_magic, 32);

	for (unsigned id = 0; id < PASS_ID_NR_KNOWN; id++)
		assert_non_null(pass_name(id));
	assert_null(pass_name(PASS_ID_NR_KNOWN));
	assert_string_equal(pass_name(PASS_CHECK_INODES), "check_inodes");
	assert_int_equal(PASS_SET_FS_NEEDS_REBALANCE, 34);

	for (unsigned i = 0; i < COUNTER_NR_1_4; i++)
		assert_non_null(counter_name(i, VERSION_1_4));
	assert_string_equal(counter_name(32, VERSION_1_4), "read_split");
	assert_string_equal(counter_name(32, VERSION(1, 39)), "data_read_retry");
	assert_string_equal(counter_name(78, VERSION_1_4), "write_buffer_flush_sync");
	assert_null(counter_name(COUNTER_NR_KNOWN, VERSION_1_4));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(varints_of_the_document),
		cmocka_unit_test(varints_survive_a_round_trip_at_every_length),
		cmocka_unit_test(hashes_of_the_document),
		cmocka_unit_test(xattr_siphash_ignores_the_last_byte_of_long_names),
		cmocka_unit_test(dirent_hash_of_31_bits_is_cut),
		cmocka_unit_test(versions_have_their_names),
		cmocka_unit_test(ids_have_their_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
