/* Arithmetic of buckets against the documents' vectors (07 §19). */
#include "../format/hex.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "alloc/internal.h"
#include "format/version.h"

static struct alloc alloc_of(const char *hex)
{
	uint8_t bytes[ALLOC_V4_BYTES];
	struct bkey_ref k = { .k = { .type = KEY_ALLOC_V4, .value_u64s = ALLOC_V4_BYTES / 8 }, .value = bytes };
	struct alloc a;

	assert_int_equal(hex_bytes(hex, bytes, sizeof(bytes)), sizeof(bytes));
	assert_int_equal(alloc_decode(k, &a, NULL), 0);
	return a;
}

static void fragmentation_is_the_share_that_is_used(void **state)
{
	static const char *const images[] = {
		"0600000000000000 1f00000000000400 c800000000000000 0100000000000000 6811000000000000 0000000000000000 "
		"0000006400000000",
		"1901000000000000 1f00000003000400 8000000000000000 b8a1000000000000 c874040000000000 0000000000000000 "
		"0000004000000000",
		"0900000000000000 1f00000000000500 0000000098000000 e024000000000000 a849000000000000 0000000000000000 "
		"0000000000000000",
		"2200000000000000 1d00000001000900 0000000000000000 0100000000000000 0002000000000000 0000000000000000 "
		"0000000000000000",
	};

	for (size_t i = 0; i < ARRAY_NR(images); i++) {
		struct alloc a = alloc_of(images[i]);

		assert_true(bucket_fragmentation(&a, 256) == a.fragmentation_lru);
		assert_int_equal(alloc_data_type(&a, a.data_type), a.data_type);
	}
	struct alloc full = { .data_type = DATA_USER, .dirty_sectors = 300 };
	assert_int_equal(bucket_fragmentation(&full, 256), 0);
	assert_int_equal(bucket_sectors_fragmented(&full, 256), 0);
	full.dirty_sectors = 8;
	assert_int_equal(bucket_sectors_fragmented(&full, 256), 248);
}

static void lru_positions_are_those_of_real_images(void **state)
{
	struct bpos p = bucket_lru_pos(LRU_FRAGMENTATION, 0x74000000, 3, 84);

	assert_true(p.inode == 0xffff000074000000 && p.offset == 0x0003000000000054);
	p = bucket_lru_pos(0, 904, 0, 26);
	assert_true(p.inode == 904 && p.offset == 26);
	p = bucket_lru_pos(1, 1224, 1, 81);
	assert_true(p.inode == 281474976711880 && p.offset == 0x0001000000000051);
}

static void backpointers_are_those_of_real_images(void **state)
{
	struct extent_ptr node = { .sector = 25 * 256 }, user = { .sector = 8256 },
			  stripe = { .sector = 31 * 256 + 128 };

	assert_true(bpos_eq(bucket_backpointer_pos(&node, 0), BPOS(0, 0x640000, 0)));
	assert_int_equal(bucket_backpointer_offset(&node, 0, 256), 0);
	assert_true(bpos_eq(bucket_backpointer_pos(&stripe, 0), BPOS(0, 0x7e0000, 0)));
	assert_int_equal(bucket_backpointer_offset(&stripe, 0, 256), 0x20000);
	assert_true(bpos_eq(bucket_backpointer_pos(&user, 16), BPOS(0, 8454160, 0)));
	assert_int_equal(bucket_backpointer_offset(&user, 16, 256), 65552);

	struct extent_crc crc = { .compressed_sectors = 16,
				  .uncompressed_sectors = 128,
				  .compression = COMPRESSION_ZSTD };
	assert_int_equal(bucket_sectors_of_extent(&crc, 112), 14);
	assert_int_equal(bucket_sectors_of_extent(&crc, 113), 15);
	crc.compression = COMPRESSION_INCOMPRESSIBLE;
	assert_int_equal(bucket_sectors_of_extent(&crc, 112), 112);
}

static void generations_order_free_buckets(void **state)
{
	struct alloc a = { .gen = 3, .oldest_gen = 250 };

	assert_true(bucket_freespace_offset(77, &a) == 77);
	a.gen = 12;
	assert_true(bucket_freespace_offset(77, &a) == (77 | 1ull << 56));
	a.gen = (uint8_t)(250 + 95);
	assert_true(bucket_freespace_offset(77, &a) == (77 | 5ull << 56));
	assert_int_equal(bucket_of_freespace_offset(77 | 5ull << 56), 77);
	assert_int_equal(alloc_data_type(&a, 0), DATA_FREE);
	a.gen++;
	assert_int_equal(alloc_data_type(&a, 0), DATA_NEED_GC_GENS);
}

static void capacity_leaves_what_the_documents_say(void **state)
{
	struct super_member member = { .m = { .exists = true, .nbuckets = 2048, .bucket_sectors = 256 } };
	struct super s = { .member_nr = 1, .members = &member, .kctx = { .node_sectors = 256 } };
	struct alloc_dev d = { .bucket_nr = 2048, .btree_reserve = bucket_btree_reserve(256, 256) };

	s.options[OPT_GC_RESERVE_PERCENT] = 8;
	assert_int_equal(d.btree_reserve, 28);
	assert_int_equal(bucket_btree_reserve(1024, 256), 7);
	assert_int_equal(usage_capacity_sectors(&s), 477696);
	assert_int_equal(alloc_watermark_reserve(&d, WATERMARK_STRIPE), 2 * 32 + 56);
	assert_int_equal(alloc_watermark_reserve(&d, WATERMARK_NORMAL), 32 + 56);
	/* Less than there: who makes nodes waits for copygc, which must still find buckets then. */
	assert_int_equal(alloc_watermark_reserve(&d, WATERMARK_COPYGC), 14);
	assert_int_equal(alloc_watermark_reserve(&d, WATERMARK_BTREE), 28);
	assert_int_equal(alloc_watermark_reserve(&d, WATERMARK_RECLAIM), 0);
}

static void devices_are_used_as_they_have_space(void **state)
{
	uint64_t next[ALLOC_DEVS_MAX] = { 0 }, available[3] = { 1000, 2000, 4000 };
	unsigned used[3] = { 0 };

	for (unsigned i = 0; i < 7000; i++) {
		unsigned dev = 0;

		for (unsigned d = 1; d < 3; d++)
			if (next[d] < next[dev])
				dev = d;
		used[dev]++;
		write_point_stripe(next, UINT64_MAX, dev, available[dev]);
	}
	for (unsigned d = 0; d < 3; d++)
		assert_in_range(used[d], available[d] * 9 / 10, available[d] * 11 / 10);
	next[0] = UINT64_MAX;
	write_point_stripe(next, UINT64_MAX, 0, 0);
	assert_true(next[0] == UINT64_MAX - UINT64_MAX / 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fragmentation_is_the_share_that_is_used),
		cmocka_unit_test(lru_positions_are_those_of_real_images),
		cmocka_unit_test(backpointers_are_those_of_real_images),
		cmocka_unit_test(generations_order_free_buckets),
		cmocka_unit_test(capacity_leaves_what_the_documents_say),
		cmocka_unit_test(devices_are_used_as_they_have_space),
	};

	return cmocka_run_group_tests_name("alloc bucket", tests, NULL, NULL);
}
