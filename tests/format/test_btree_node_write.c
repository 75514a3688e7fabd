/* Writing nodes: the real ones of 02 §14 come out byte for byte, and what is written reads back. */
#include "format_test.h"

#include "base/util.h"
#include "format/btree_node_write.h"
#include "format/extent.h"
#include "format/version.h"

enum { BLOCK = 4096 };

static const uint8_t uuid[16] = { 0x8a, 0x6f, 0x97, 0x0f, 0x50, 0x2d, 0x47, 0x06 };

static struct bkey_format format_of_bounds(struct bpos min_key, struct bpos max_key)
{
	struct bkey_format f;

	btree_node_format_choose(NULL, 0, min_key, max_key, SIZE_MAX, &f, NULL);
	return f;
}

static void snapshot_trees_write(uint8_t *set_0, uint8_t *set_1, struct bset_seal_opts opts)
{
	struct btree_node_header h = {
		.btree_id = BTREE_SNAPSHOT_TREES,
		.generation = 1,
		.magic = btree_node_magic(uuid),
		.min_key = POS_MIN,
		.max_key = SPOS_MAX,
		.format = format_of_bounds(POS_MIN, SPOS_MAX),
	};
	struct bset_writer w;

	memset(set_0, 0xaa, BLOCK);
	memset(set_1, 0xaa, BLOCK);
	bset_writer_begin(&w, set_0, 0, BLOCK, &h.format);
	btree_node_header_store(set_0, &h);
	assert_int_equal(bset_writer_finish(&w, &opts), BLOCK);

	uint8_t value[8];
	hex_decode("01000000ffffffff", value, sizeof(value));
	struct bkey k = { .p = BPOS(0, 1, 0), .type = KEY_SNAPSHOT_TREE, .value_u64s = 1 };
	opts.journal_seq = 1;
	bset_writer_begin(&w, set_1, 4096, BLOCK, &h.format);
	assert_true(bset_writer_add(&w, &k, value));
	assert_int_equal(bset_writer_finish(&w, &opts), BLOCK);
}

static void assert_bytes(const uint8_t *bytes, const char *hex)
{
	uint8_t expected[BLOCK] = { 0 };

	hex_decode(hex, expected, sizeof(expected));
	assert_memory_equal(bytes, expected, sizeof(expected));
}

static void a_real_node_comes_out_byte_for_byte(void **state)
{
	struct bset_seal_opts opts = {
		.seq = 0x9f3e1e544c936d21,
		.version = VERSION_1_4,
		.csum_type = CHECKSUM_CRC32C_NONZERO,
		.block_bytes = BLOCK,
	};
	uint8_t set_0[BLOCK], set_1[BLOCK];

	snapshot_trees_write(set_0, set_1, opts);
	assert_bytes(set_0, "6d895138000000000000000000000000 7f6809b628715496 0f01000001000000"
			    "00000000 0000000000000000 0000000000000000 ffffffff ffffffffffffffff ffffffffffffffff"
			    "0000000000000000 0306 404020000000 000000000000000000000000000000000000000000000000"
			    "000000000000000000000000000000000000000000000000"
			    "216d934c541e3e9f 0000000000000000 01000000 0404 0000");
	assert_bytes(set_1, "adf655e0000000000000000000000000 216d934c541e3e9f 0100000000000000 01000800 0404 0400"
			    "04001f0000000000 0100000000000000 0000000000000000 01000000ffffffff");
}

static void an_appended_set_is_encrypted_as_in_the_real_one(void **state)
{
	struct crypt_key key;
	struct bset_seal_opts opts = {
		.seq = 0xa017e90946d75e89,
		.version = VERSION_1_4,
		.csum_type = CHECKSUM_CHACHA20_POLY1305_128,
		.key = &key,
		.block_bytes = BLOCK,
	};
	uint8_t set_0[BLOCK], set_1[BLOCK];

	hex_decode("f6d30731938aac866eafe4b2700252172bbbe94e683edfaa39dec7e3daaf210b", key.bytes, sizeof(key.bytes));
	snapshot_trees_write(set_0, set_1, opts);
	assert_bytes(set_1, "81df5e9c6a3ebef2341a4bdcc8fe9758 895ed74609e917a0 0100000000000000 04000800 04040400"
			    "dd6d1385b980696c b27debb0ba915a7c aa107ebda602a962 83549960654a4426");
}

static void header_flags_say_what_the_header_is_of(void **state)
{
	struct btree_node_header h = { .btree_id = BTREE_DELETED_INODES, .generation = 1 };
	struct btree_node_disk d;

	btree_node_header_store(&d, &h);
	assert_true(le64_get(d.flags) == 0x0000000100000300);
	h = (struct btree_node_header){ .btree_id = BTREE_EXTENTS, .level = 1, .generation = 1 };
	btree_node_header_store(&d, &h);
	assert_true(le64_get(d.flags) == 0x0000000100000110);
	h.generation = 0x12345678;
	btree_node_header_store(&d, &h);
	assert_int_equal(btree_node_generation(le64_get(d.flags)), 0x12345678);
}

static void a_full_set_takes_no_more(void **state)
{
	struct bkey_format f = format_of_bounds(POS_MIN, SPOS_MAX);
	struct bkey k = { .p = BPOS(0, 1, 0), .type = KEY_SET };
	size_t bytes = sizeof(struct btree_node_entry_disk) + 7 * 8;
	uint8_t *set = malloc(bytes);
	struct bset_writer w;

	assert_non_null(set);
	bset_writer_begin(&w, set, 4096, bytes, &f);
	assert_true(bset_writer_add(&w, &k, NULL));
	assert_true(bset_writer_add(&w, &k, NULL));
	assert_false(bset_writer_add(&w, &k, NULL));
	k.size = 8; /* doesn't pack: 5 words */
	assert_false(bset_writer_add(&w, &k, NULL));
	assert_int_equal(w.u64s, 6);
	free(set);
}

struct collected {
	struct bkey keys[512];
	unsigned nr;
};

static int collect(void *ctx, const void *packed, const struct bkey *k)
{
	struct collected *c = ctx;

	c->keys[c->nr++] = *k;
	return 0;
}

/* Words of keys, packed in a format of their own, and an index of them. */
struct heap {
	uint64_t words[4096];
	uint32_t offset[512];
	struct bkey keys[512];
	struct bkey_format format;
	uint32_t nr, u64s;
};

static void heap_fill(struct heap *h, struct rng *rng, unsigned nr, struct bpos first, uint64_t step)
{
	h->format = format_of_bounds(first, BPOS(first.inode, first.offset + step * nr / 2, UINT32_MAX));
	h->nr = h->u64s = 0;
	for (unsigned i = 0; i < nr; i++) {
		struct bkey k = { .p = first, .type = KEY_COOKIE, .value_u64s = 1, .size = 1 + (i & 7) };
		uint8_t *at = (uint8_t *)(h->words + h->u64s);

		k.p.offset += (i + 1) * step;
		k.p.snapshot = UINT32_MAX - (uint32_t)rng_below(rng, 4);
		h->keys[h->nr] = k;
		h->offset[h->nr++] = h->u64s;
		if (!bkey_pack(&h->format, at, &k))
			bkey_store((struct bkey_disk *)at, &k);
		h->u64s += at[0];
		h->words[h->u64s - 1] = i;
	}
}

static struct bkey_array heap_array(const struct heap *h)
{
	return (struct bkey_array){ &h->format, h->words, h->offset, h->nr };
}

static void keys_are_repacked_into_a_format_of_their_own(void **state)
{
	enum { KEYS = 200, NODE = 16384 };
	static struct heap h;
	static uint8_t node[NODE];
	struct rng rng = test_rng();
	struct key_context kctx = { .version = VERSION_1_4, .node_sectors = NODE / SECTOR_BYTES, .block_sectors = 8 };
	struct bpos max_key = BPOS(4100, UINT64_MAX, UINT32_MAX);

	heap_fill(&h, &rng, KEYS, BPOS(4100, 1000, 0), 8);

	struct bkey_array array = heap_array(&h);
	struct btree_node_header header = {
		.btree_id = BTREE_EXTENTS, .magic = 7, .min_key = BPOS(4100, 0, 0), .max_key = max_key
	};
	size_t u64s;
	btree_node_format_choose(&array, 1, header.min_key, max_key, SIZE_MAX, &header.format, &u64s);

	struct bset_writer w;
	bset_writer_begin(&w, node, 0, NODE, &header.format);
	btree_node_header_store(node, &header);
	for (unsigned i = 0; i < h.nr; i++)
		assert_true(bset_writer_copy(&w, &h.format, h.words + h.offset[i]));
	assert_int_equal(w.u64s, u64s);
	struct bset_seal_opts opts = { .seq = 9, .version = VERSION_1_4, .csum_type = 7, .block_bytes = BLOCK };
	size_t bytes = bset_writer_finish(&w, &opts);

	struct btree_node_expect expect = {
		.btree_id = BTREE_EXTENTS,
		.magic = 7,
		.seq = 9,
		.min_key = header.min_key,
		.max_key = max_key,
		.sectors_written = (uint16_t)(bytes / SECTOR_BYTES),
		.node_sectors = NODE / SECTOR_BYTES,
		.block_sectors = 8,
	};
	struct bkey_format f;
	struct bset_info info;
	struct fault fault;
	static struct collected c;
	struct bset_check check = { .keep = collect, .ctx = &c };
	c.nr = 0;
	assert_int_equal(bset_read(node, 0, &expect, &f, &info, &fault), 1);
	assert_int_equal(fault.id, 0);
	assert_true(bkey_format_eq(&f, &header.format));
	assert_int_equal(bset_check_keys(node, &info, &f, &expect, &kctx, &check), 0);
	assert_int_equal(c.nr, KEYS);
	for (unsigned i = 0; i < KEYS; i++)
		assert_true(bpos_eq(c.keys[i].p, h.keys[i].p) && c.keys[i].size == h.keys[i].size);
}

static void a_format_that_takes_more_room_is_not_chosen(void **state)
{
	static struct heap h;
	struct rng rng = test_rng();
	struct bkey_format f;
	size_t u64s, with_new;

	heap_fill(&h, &rng, 10, BPOS(4100, 1000, 0), 8);
	struct bkey_array array = heap_array(&h);
	btree_node_format_choose(&array, 1, POS_MIN, SPOS_MAX, SIZE_MAX, &f, &with_new);
	assert_false(bkey_format_eq(&f, &h.format));
	btree_node_format_choose(&array, 1, POS_MIN, SPOS_MAX, with_new, &f, &u64s);
	assert_false(bkey_format_eq(&f, &h.format));
	assert_int_equal(u64s, with_new);
	btree_node_format_choose(&array, 1, POS_MIN, SPOS_MAX, with_new - 1, &f, &u64s);
	assert_true(bkey_format_eq(&f, &h.format));
	assert_int_equal(u64s, h.u64s);
}

static void node_pointers_encode_to_the_bytes_they_came_from(void **state)
{
	static const char hex[] = "0000000000000000 3203ae67bcbde976 2000 0000 00000000 0900000000000000"
				  "2013000000000000 01481c0000000000 01e0010000000103";
	uint8_t value[BKEY_VALUE_U64S_MAX * 8], out[BTREE_PTR_V2_VALUE_U64S_MAX * 8];
	size_t bytes = hex_decode(hex, value, sizeof(value));
	struct bkey_ref k = { .k = { .type = KEY_BTREE_PTR_V2, .value_u64s = (uint8_t)(bytes / 8) }, .value = value };
	struct key_context kctx = { .version = VERSION_1_4 };
	struct btree_ptr p;

	assert_int_equal(btree_ptr_decode(k, &kctx, &p, NULL), 0);
	assert_int_equal(p.ptr_nr, 2);
	assert_int_equal(btree_ptr_encode(&p, out), bytes / 8);
	assert_memory_equal(out, value, bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_real_node_comes_out_byte_for_byte),
		cmocka_unit_test(an_appended_set_is_encrypted_as_in_the_real_one),
		cmocka_unit_test(header_flags_say_what_the_header_is_of),
		cmocka_unit_test(a_full_set_takes_no_more),
		cmocka_unit_test(keys_are_repacked_into_a_format_of_their_own),
		cmocka_unit_test(a_format_that_takes_more_room_is_not_chosen),
		cmocka_unit_test(node_pointers_encode_to_the_bytes_they_came_from),
	};

	return cmocka_run_group_tests_name("btree node, writing", tests, NULL, NULL);
}
