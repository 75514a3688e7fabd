/* Nodes: the real ones of 02 §14.2 and §14.5, each rule of §9.1 and §9.2, and damage at random. */
#include "format_test.h"

#include "base/strbuf.h"
#include "base/util.h"
#include "format/btree_node.h"
#include "format/error_ids.h"
#include "format/version.h"

enum { NODE_SECTORS = 512, NODE_BYTES = NODE_SECTORS * SECTOR_BYTES, SET_1 = 4096 };

static const uint8_t uuid[16] = { 0x8a, 0x6f, 0x97, 0x0f, 0x50, 0x2d, 0x47, 0x06 };

static const struct key_context kctx = {
	.version = VERSION(1, 4),
	.upgrade_complete = VERSION(1, 4),
	.block_sectors = 8,
	.node_sectors = NODE_SECTORS,
	.backpointer_shift = 10,
	.time_precision_ns = 1,
};

/* What the pointer of 02 §14.2 says. */
static struct btree_node_expect expect_plain(void)
{
	return (struct btree_node_expect){
		.btree_id = BTREE_SNAPSHOT_TREES,
		.level = 0,
		.magic = btree_node_magic(uuid),
		.seq = 0x9f3e1e544c936d21,
		.min_key = POS_MIN,
		.max_key = SPOS_MAX,
		.sectors_written = 16,
		.node_sectors = NODE_SECTORS,
		.block_sectors = 8,
		.version_min = VERSION(1, 4),
	};
}

static const char plain_set_0[] =
	"6d895138000000000000000000000000 7f6809b628715496 0f01000001000000"
	"00000000 0000000000000000 0000000000000000 ffffffff ffffffffffffffff ffffffffffffffff"
	"0000000000000000 0306 404020000000 000000000000000000000000000000000000000000000000"
	"000000000000000000000000000000000000000000000000"
	"216d934c541e3e9f 0000000000000000 01000000 0404 0000";
static const char plain_set_1[] =
	"adf655e0000000000000000000000000 216d934c541e3e9f 0100000000000000 01000800 0404 0400"
	"04001f0000000000 0100000000000000 0000000000000000 01000000ffffffff";

static const char sealed_set_0[] = "72b7f1c36d6fa4872bdafbd484ada97e 69d968563c8e56ba b592cfe02a2153d4"
				   "3257e1c1d2183ffb88fdd3f46da25f5b 41dd815dc42f510657ba44e11939037c"
				   "74b13348e21165228eb3877ec66c7993 1069e0eb4e407c1aa12c0cfbcadb108f"
				   "891911fb1415ab6c7031cb6baab22607 5afe2f32850928267c85b43a941bb507"
				   "04285c858e5cb905 895ed74609e917a0 0000000000000000 04000000 04040000";
static const char sealed_set_1[] =
	"81df5e9c6a3ebef2341a4bdcc8fe9758 895ed74609e917a0 0100000000000000 04000800 04040400"
	"dd6d1385b980696c b27debb0ba915a7c aa107ebda602a962 83549960654a4426";
static const char sealed_key[] = "f6d30731938aac866eafe4b2700252172bbbe94e683edfaa39dec7e3daaf210b";

static uint8_t *node_of(const char *set_0, const char *set_1)
{
	uint8_t *node = calloc(1, NODE_BYTES);

	assert_non_null(node);
	assert_int_equal(hex_decode(set_0, node, SET_1), 160);
	assert_int_equal(hex_decode(set_1, node + SET_1, SET_1), 72);
	return node;
}

struct kept {
	unsigned nr, bad_nr;
	uint32_t bad_ids[8];
	size_t bad_offsets[8];
	struct bkey keys[64];
};

static int keep_key(void *ctx, const void *packed, const struct bkey *k)
{
	struct kept *kept = ctx;

	assert_non_null(packed);
	if (kept->nr < ARRAY_NR(kept->keys))
		kept->keys[kept->nr] = *k;
	kept->nr++;
	return 0;
}

static void count_bad(void *ctx, const struct fault *fault, struct bkey_ref k, size_t offset_bytes)
{
	struct kept *kept = ctx;

	assert_true(fault->id);
	if (kept->bad_nr < ARRAY_NR(kept->bad_ids)) {
		kept->bad_ids[kept->bad_nr] = fault->id;
		kept->bad_offsets[kept->bad_nr] = offset_bytes;
	}
	kept->bad_nr++;
}

static int check_keys(const uint8_t *node, const struct bset_info *set, const struct bkey_format *f,
		      const struct btree_node_expect *expect, struct kept *kept)
{
	struct bset_check check = { .bad = count_bad, .keep = keep_key, .ctx = kept };

	*kept = (struct kept){ 0 };
	int ret = bset_check_keys(node, set, f, expect, &kctx, &check);
	assert_int_equal(ret, kept->bad_nr);
	return ret;
}

/* --- real nodes --- */

static void assert_real_node_reads(uint8_t *node, const struct btree_node_expect *expect)
{
	struct bkey_format f;
	struct bset_info info;
	struct fault fault;
	struct kept kept;

	assert_int_equal(bset_read(node, 0, expect, &f, &info, &fault), 1);
	assert_int_equal(fault.id, 0);
	assert_int_equal(info.keys_offset, 160);
	assert_int_equal(info.keys_u64s, 0);
	assert_int_equal(info.version, VERSION(1, 4));
	assert_int_equal(f.key_u64s, 3);
	assert_int_equal(check_keys(node, &info, &f, expect, &kept), 0);
	assert_int_equal(kept.nr, 0);

	assert_int_equal(bset_read(node, SET_1, expect, &f, &info, &fault), 1);
	assert_int_equal(fault.id, 0);
	assert_int_equal(info.keys_offset, SET_1 + 40);
	assert_int_equal(info.keys_u64s, 4);
	assert_int_equal(info.journal_seq, 1);
	assert_int_equal(check_keys(node, &info, &f, expect, &kept), 0);
	assert_int_equal(kept.nr, 1);
	assert_true(bpos_eq(kept.keys[0].p, BPOS(0, 1, 0)));
	assert_int_equal(kept.keys[0].type, KEY_SNAPSHOT_TREE);

	/* Behind it is room, not a set. */
	assert_int_equal(bset_read(node, 2 * SET_1, expect, &f, &info, &fault), 0);
}

static void real_node_is_read(void **state)
{
	(void)state;
	uint8_t *node = node_of(plain_set_0, plain_set_1);
	struct btree_node_expect expect = expect_plain();

	assert_true(btree_node_magic(uuid) == 0x96547128b609687f);
	assert_real_node_reads(node, &expect);
	free(node);
}

static struct btree_node_expect expect_sealed(const uint8_t *node, struct crypt_key *key)
{
	struct btree_node_expect expect = expect_plain();

	assert_int_equal(hex_decode(sealed_key, key->bytes, sizeof(key->bytes)), 32);
	expect.magic = le64_load(node + 16);
	expect.seq = 0xa017e90946d75e89;
	expect.key = key;
	return expect;
}

static void real_encrypted_node_is_read_and_written(void **state)
{
	(void)state;
	uint8_t *node = node_of(sealed_set_0, sealed_set_1);
	struct crypt_key key;
	struct btree_node_expect expect = expect_sealed(node, &key);
	uint8_t *original = exact_copy(node, NODE_BYTES);
	uint8_t keys[32];

	assert_real_node_reads(node, &expect);
	hex_decode("04001f0000000000 0100000000000000 0000000000000000 01000000ffffffff", keys, sizeof(keys));
	assert_memory_equal(node + SET_1 + 40, keys, sizeof(keys));

	bset_seal(node, 0, CHECKSUM_CHACHA20_POLY1305_128, &key);
	bset_seal(node, SET_1, CHECKSUM_CHACHA20_POLY1305_128, &key);
	assert_memory_equal(node, original, NODE_BYTES);
	free(original);
	free(node);
}

static void encrypted_node_without_a_key_is_refused(void **state)
{
	(void)state;
	uint8_t *node = node_of(sealed_set_0, sealed_set_1);
	struct crypt_key key;
	struct btree_node_expect expect = expect_sealed(node, &key);
	struct bkey_format f;
	struct bset_info info;
	struct fault fault;

	expect.key = NULL;
	assert_int_equal(bset_read(node, 0, &expect, &f, &info, &fault), -KILN_E_INVALID);
	assert_int_equal(fault.id, ERROR_bset_unknown_csum);

	key.bytes[5] ^= 1;
	expect.key = &key;
	assert_int_equal(bset_read(node, 0, &expect, &f, &info, &fault), -KILN_E_CHECKSUM);
	free(node);
}

static void every_checksum_type_finds_every_flipped_bit(void **state)
{
	(void)state;
	struct crypt_key key = { { 1, 2, 3 } };

	for (unsigned type = 0; type < CHECKSUM_TYPE_NR; type++) {
		uint8_t *node = node_of(plain_set_0, plain_set_1);
		struct btree_node_expect expect = expect_plain();
		struct bkey_format f;
		struct bset_info info;
		struct fault fault;

		expect.key = &key;
		bset_seal(node, SET_1, type, &key);
		for (unsigned bit = 0; type && bit < 72 * 8; bit++) {
			uint8_t *copy = exact_copy(node, NODE_BYTES);

			copy[SET_1 + bit / 8] ^= (uint8_t)(1 << bit % 8);
			assert_int_not_equal(bset_read(copy, SET_1, &expect, &f, &info, &fault), 1);
			free(copy);
			bit += bit < 64 * 8 ? 12 : 0; /* copying half a node takes a while */
		}
		assert_int_equal(bset_read(node, SET_1, &expect, &f, &info, &fault), 1);
		assert_memory_equal(node + SET_1 + 40 + 24, "\x01\0\0\0\xff\xff\xff\xff", 8);
		free(node);
	}
}

/* --- rules of headers --- */

/* A change to a good node that is sealed again, and what reading its set at @offset must then give. */
struct header_case {
	size_t offset; /* of the set */
	size_t at;     /* byte to change */
	uint8_t value;
	int expected;
	uint32_t id;
};

static void broken_headers_are_told_apart(void **state)
{
	(void)state;
	static const struct header_case cases[] = {
		{ 0, 16, 0, -KILN_E_INVALID, ERROR_btree_node_bad_magic },
		{ 0, 136, 0, -KILN_E_INVALID, ERROR_btree_node_bad_seq },
		{ 0, 24, 0x0e, -KILN_E_INVALID, ERROR_btree_node_bad_btree },
		{ 0, 25, 0x03, -KILN_E_INVALID, ERROR_btree_node_bad_btree },
		{ 0, 24, 0x1f, -KILN_E_INVALID, ERROR_btree_node_bad_level },
		{ 0, 32, 1, -KILN_E_INVALID, ERROR_btree_node_bad_min_key },
		{ 0, 71, 0, -KILN_E_INVALID, ERROR_btree_node_bad_max_key },
		{ 0, 80, 4, -KILN_E_INVALID, ERROR_btree_node_bad_format },
		{ 0, 156, 5, 1, ERROR_btree_node_bset_older_than_sb_min }, /* version 1.1 */
		{ 0, 157, 8, -KILN_E_UNSUPPORTED, ERROR_btree_node_unsupported_version },
		{ 0, 157, 0, -KILN_E_UNSUPPORTED, ERROR_btree_node_unsupported_version },
		{ SET_1, SET_1 + 24 + 8, 0x11, -KILN_E_UNSUPPORTED, ERROR_btree_node_unsupported_version },
		{ SET_1, SET_1 + 24 + 8, 0x21, -KILN_E_UNSUPPORTED, ERROR_btree_node_unsupported_version },
		{ SET_1, SET_1 + 24 + 10, 9, 1, ERROR_bset_wrong_sector_offset },
		{ SET_1, SET_1 + 24 + 10, 0, 1, 0 },
		{ SET_1, SET_1 + 16, 0, 0, 0 },
		{ SET_1, SET_1 + 38, 0, 1, ERROR_bset_empty },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		uint8_t *node = node_of(plain_set_0, plain_set_1);
		struct btree_node_expect expect = expect_plain();
		struct bkey_format f;
		struct bset_info info;
		struct fault fault;

		/* 0x04 stays in the version's low byte unless the row says otherwise. */
		node[cases[i].at] = cases[i].value;
		if (cases[i].at == 156)
			node[156] = 1;
		bset_seal(node, cases[i].offset, CHECKSUM_CRC32C_NONZERO, NULL);
		assert_int_equal(bset_read(node, cases[i].offset, &expect, &f, &info, &fault), cases[i].expected);
		assert_int_equal(fault.id, cases[i].id);
		free(node);
	}
}

static void flags_at(uint8_t *node, size_t offset, unsigned type)
{
	struct bset_disk *b = bset_at(node, offset);

	b->flags = le32_of((uint32_t)bits_set(le32_get(b->flags), 0, 4, type));
}

static void unknown_checksums_and_lengths_are_refused_before_checksumming(void **state)
{
	(void)state;
	struct btree_node_expect expect = expect_plain();
	uint8_t *node = node_of(plain_set_0, plain_set_1);
	struct bkey_format f;
	struct bset_info info;
	struct fault fault;

	flags_at(node, SET_1, 8);
	assert_int_equal(bset_read(node, SET_1, &expect, &f, &info, &fault), -KILN_E_INVALID);
	assert_int_equal(fault.id, ERROR_bset_unknown_csum);
	flags_at(node, SET_1, 3);
	assert_int_equal(bset_read(node, SET_1, &expect, &f, &info, &fault), -KILN_E_INVALID);
	assert_int_equal(fault.id, ERROR_bset_unknown_csum);
	free(node);

	/* A node of 17 blocks' sectors, so that the sanitizer sees where it ends. */
	node = node_of(plain_set_0, plain_set_1);
	expect.node_sectors = 9;
	uint8_t *small = exact_copy(node, 9 * SECTOR_BYTES);
	bset_at(small, SET_1)->u64s = le16_of(59);
	bset_seal(small, SET_1, CHECKSUM_XXHASH, NULL);
	assert_int_equal(bset_read(small, SET_1, &expect, &f, &info, &fault), 1);
	bset_at(small, SET_1)->u64s = le16_of(60);
	assert_int_equal(bset_read(small, SET_1, &expect, &f, &info, &fault), -KILN_E_INVALID);
	assert_int_equal(fault.id, ERROR_bset_past_end_of_btree_node);
	assert_int_equal(bset_read(small, 9 * SECTOR_BYTES, &expect, &f, &info, &fault), -KILN_E_INVALID);
	assert_int_equal(fault.id, ERROR_bset_past_end_of_btree_node);
	free(small);
	free(node);
}

static void old_extent_nodes_are_refused(void **state)
{
	(void)state;
	uint8_t *node = node_of(plain_set_0, plain_set_1);
	struct btree_node_expect expect = expect_plain();
	struct btree_node_disk *n = (struct btree_node_disk *)node;
	struct bkey_format f;
	struct bset_info info;
	struct fault fault;

	expect.btree_id = BTREE_EXTENTS;
	n->flags = le64_of(0x0000000100000100);
	bset_seal(node, 0, CHECKSUM_CRC32C_NONZERO, NULL);
	assert_int_equal(bset_read(node, 0, &expect, &f, &info, &fault), 1);
	n->flags = le64_of(0x0000000100000000);
	bset_seal(node, 0, CHECKSUM_CRC32C_NONZERO, NULL);
	assert_int_equal(bset_read(node, 0, &expect, &f, &info, &fault), -KILN_E_UNSUPPORTED);
	assert_int_equal(fault.id, ERROR_btree_node_unsupported_version);
	free(node);
}

static void node_flags_are_taken_apart(void **state)
{
	(void)state;
	assert_int_equal(btree_node_id(0x300), BTREE_DELETED_INODES);
	assert_int_equal(btree_node_id(0x0000000100000110), BTREE_EXTENTS);
	assert_int_equal(btree_node_level(0x0000000100000110), 1);
	assert_int_equal(btree_node_generation(0x0000000100000110), 1);
	assert_true(btree_node_has_new_extent_overwrite(0x110));
	assert_false(btree_node_has_new_extent_overwrite(0x210));
}

/* --- rules of keys --- */

/* A set under construction, in a node of its own without a header: keys start at byte 0. */
struct set_builder {
	uint8_t bytes[4096];
	size_t u64s;
	struct bkey_format format;
};

static void set_begin(struct set_builder *s)
{
	struct bkey_format_builder b;

	*s = (struct set_builder){ 0 };
	bkey_format_begin(&b);
	bkey_format_add_pos(&b, BPOS(0, 0, 0));
	bkey_format_add_pos(&b, BPOS(0, 4000, 0));
	bkey_format_finish(&b, &s->format);
}

/* Add a key with @value_u64s words of zeroes for a value; packed where it fits. Returns its first byte. */
static uint8_t *set_add(struct set_builder *s, struct bpos p, uint8_t type, uint8_t value_u64s, uint32_t size)
{
	struct bkey k = { .p = p, .type = type, .value_u64s = value_u64s, .size = size };
	uint8_t *at = s->bytes + s->u64s * 8;

	if (!bkey_pack(&s->format, at, &k))
		bkey_store((struct bkey_disk *)at, &k);
	s->u64s += at[0];
	return at;
}

static int set_check(const struct set_builder *s, const struct btree_node_expect *expect, struct kept *kept)
{
	struct bset_info info = { .keys_u64s = s->u64s };
	uint8_t *exact = exact_copy(s->bytes, s->u64s * 8);
	int ret = check_keys(exact, &info, &s->format, expect, kept);

	free(exact);
	return ret;
}

static struct btree_node_expect expect_set(void)
{
	struct btree_node_expect expect = expect_plain();

	expect.btree_id = BTREE_NEED_DISCARD;
	expect.min_key = BPOS(0, 10, 0);
	expect.max_key = BPOS(0, 1ull << 40, 0);
	return expect;
}

static void bad_keys_are_left_out_and_the_rest_is_kept(void **state)
{
	(void)state;
	struct btree_node_expect expect = expect_set();
	struct set_builder s;
	struct kept kept;

	set_begin(&s);
	set_add(&s, BPOS(0, 10, 0), KEY_SET, 0, 0);
	set_add(&s, BPOS(0, 9, 0), KEY_SET, 0, 0);  /* below the node */
	set_add(&s, BPOS(0, 11, 1), KEY_SET, 0, 0); /* snapshot where there is none */
	set_add(&s, BPOS(0, 12, 0), KEY_SET, 0, 7); /* size */
	set_add(&s, BPOS(0, 13, 0), KEY_SET, 0, 0);
	set_add(&s, BPOS(0, 12, 0), KEY_SET, 0, 0);	   /* out of order */
	set_add(&s, BPOS(0, 13, 0), KEY_DELETED, 0, 0);	   /* deletes what this set has */
	set_add(&s, BPOS(0, 14, 0), KEY_SET, 1, 0);	   /* value where there is none */
	set_add(&s, BPOS(0, 15, 0), KEY_SET, 0, 0)[1] = 5; /* format */
	set_add(&s, BPOS(0, 1ull << 40, 0), KEY_SET, 0, 0);
	set_add(&s, BPOS(0, (1ull << 40) + 1, 0), KEY_SET, 0, 0); /* above the node */

	static const uint32_t ids[] = {
		ERROR_bkey_before_start_of_btree_node, ERROR_bkey_snapshot_nonzero,	   ERROR_bkey_size_nonzero,
		ERROR_btree_node_bkey_out_of_order,    ERROR_btree_node_bkey_out_of_order, ERROR_bkey_val_size_nonzero,
		ERROR_btree_node_bkey_bad_format,      ERROR_bkey_after_end_of_btree_node,
	};
	assert_int_equal(set_check(&s, &expect, &kept), ARRAY_NR(ids));
	assert_memory_equal(kept.bad_ids, ids, sizeof(ids));
	assert_int_equal(kept.nr, 3);
	assert_int_equal(kept.keys[0].p.offset, 10);
	assert_int_equal(kept.keys[1].p.offset, 13);
	assert_true(kept.keys[2].p.offset == 1ull << 40);
}

static void equal_positions_are_kept_unless_a_deletion_follows_a_live_key(void **state)
{
	(void)state;
	struct btree_node_expect expect = expect_set();
	struct set_builder s;
	struct kept kept;

	set_begin(&s);
	set_add(&s, BPOS(0, 10, 0), KEY_DELETED, 0, 0);
	set_add(&s, BPOS(0, 10, 0), KEY_SET, 0, 0);
	set_add(&s, BPOS(0, 10, 0), KEY_SET, 0, 0);
	assert_int_equal(set_check(&s, &expect, &kept), 0);
	assert_int_equal(kept.nr, 3);
}

static void keys_out_of_an_updated_range_are_no_errors(void **state)
{
	(void)state;
	struct btree_node_expect expect = expect_set();
	struct set_builder s;
	struct kept kept;

	expect.is_range_updated = true;
	set_begin(&s);
	set_add(&s, BPOS(0, 3, 0), KEY_SET, 0, 0);
	set_add(&s, BPOS(0, 10, 0), KEY_SET, 0, 0);
	set_add(&s, BPOS(0, 1ull << 41, 0), KEY_SET, 0, 0);
	assert_int_equal(set_check(&s, &expect, &kept), 0);
	assert_int_equal(kept.nr, 1);
	assert_int_equal(kept.keys[0].p.offset, 10);
}

static void nonsense_length_ends_the_set(void **state)
{
	(void)state;
	static const uint8_t lengths[] = { 0, 3, 255 };

	for (size_t i = 0; i < ARRAY_NR(lengths); i++) {
		struct btree_node_expect expect = expect_set();
		struct set_builder s;
		struct kept kept;

		set_begin(&s);
		set_add(&s, BPOS(0, 10, 0), KEY_SET, 0, 0);
		uint8_t *key = set_add(&s, BPOS(0, 11, 0), KEY_SET, 0, 0);
		set_add(&s, BPOS(0, 12, 0), KEY_SET, 0, 0);
		key[0] = lengths[i];
		assert_int_equal(set_check(&s, &expect, &kept), 1);
		assert_int_equal(kept.nr, 1);
		assert_int_equal(kept.bad_offsets[0], key - s.bytes);
		assert_int_equal(kept.bad_ids[0],
				 lengths[i] ? ERROR_btree_node_bkey_past_bset_end : ERROR_bkey_u64s_too_small);
	}
}

static int refuse_second(void *ctx, const void *packed, const struct bkey *k)
{
	unsigned *calls = ctx;

	return ++*calls == 2 ? -77 : 0;
}

static void walk_ends_when_the_receiver_says_so(void **state)
{
	(void)state;
	struct btree_node_expect expect = expect_set();
	struct set_builder s;
	unsigned calls = 0;
	struct bset_check check = { .keep = refuse_second, .ctx = &calls };

	set_begin(&s);
	for (unsigned i = 0; i < 5; i++)
		set_add(&s, BPOS(0, 10 + i, 0), KEY_SET, 0, 0);
	struct bset_info info = { .keys_u64s = s.u64s };
	assert_int_equal(bset_check_keys(s.bytes, &info, &s.format, &expect, &kctx, &check), -77);
	assert_int_equal(calls, 2);
}

/* --- damage at random --- */

struct order_ctx {
	const struct btree_node_expect *expect;
	bool any;
	struct bpos last;
};

static int keep_in_order(void *ctx, const void *packed, const struct bkey *k)
{
	struct order_ctx *o = ctx;

	assert_false(bpos_lt(k->p, o->expect->min_key) || bpos_lt(o->expect->max_key, k->p));
	assert_false(o->any && bpos_lt(k->p, o->last));
	o->any = true;
	o->last = k->p;
	return 0;
}

/* Keys with values of several types, zeroes mostly, in ascending order. */
static void set_fill(struct set_builder *s, struct rng *r)
{
	static const uint8_t types[] = { KEY_DELETED,	   KEY_SET,	    KEY_EXTENT,	     KEY_INODE_V3,
					 KEY_DIRENT,	   KEY_XATTR,	    KEY_ALLOC_V4,    KEY_STRIPE,
					 KEY_BTREE_PTR_V2, KEY_REFLINK_V,   KEY_BUCKET_GENS, KEY_SNAPSHOT,
					 KEY_INLINE_DATA,  KEY_BACKPOINTER, KEY_ALLOC_V3,    KEY_INODE_V2,
					 KEY_ACCOUNTING,   KEY_QUOTA };

	set_begin(s);
	for (uint64_t offset = 0; s->u64s < 350; offset += 1 + rng_below(r, 3)) {
		uint8_t value_u64s = (uint8_t)rng_below(r, 40);
		struct bpos p = BPOS(rng_below(r, 10) ? 0 : offset, offset, 0);
		uint8_t *at = set_add(s, p, types[rng_below(r, ARRAY_NR(types))], value_u64s, 0);

		for (uint8_t *v = s->bytes + s->u64s * 8 - value_u64s * 8; v < s->bytes + s->u64s * 8; v++)
			*v = rng_below(r, 3) ? 0 : (uint8_t)rng_u64(r);
		assert_true(at[0]);
	}
}

static void damaged_keys_are_walked_within_bounds(void **state)
{
	(void)state;
	struct rng r = test_rng();

	for (unsigned round = 0; round < 4000; round++) {
		struct btree_node_expect expect = expect_set();
		struct set_builder s;
		struct order_ctx order = { .expect = &expect };
		struct bset_check check = { .keep = keep_in_order, .ctx = &order };
		struct bset_info info = { 0 };

		set_fill(&s, &r);
		expect.btree_id = (unsigned)rng_below(&r, BTREE_NR_KNOWN + 2);
		expect.level = (unsigned)rng_below(&r, 2);
		expect.min_key = POS_MIN;
		info.keys_u64s = rng_below(&r, s.u64s + 1);
		for (uint64_t n = rng_below(&r, 20); n > 0; n--)
			s.bytes[rng_below(&r, s.u64s * 8)] = (uint8_t)rng_u64(&r);

		uint8_t *exact = exact_copy(s.bytes, info.keys_u64s * 8);
		int bad = bset_check_keys(exact, &info, &s.format, &expect, &kctx, &check);
		assert_true(bad >= 0 && (size_t)bad <= info.keys_u64s);
		free(exact);
	}
}

static void damaged_nodes_are_read_within_bounds(void **state)
{
	(void)state;
	enum { SECTORS = 9 };
	struct rng r = test_rng();
	uint8_t *node = node_of(plain_set_0, plain_set_1);
	unsigned read_nr = 0, refused_nr = 0;

	for (unsigned round = 0; round < 6000; round++) {
		struct btree_node_expect expect = expect_plain();
		struct crypt_key key = { { 9 } };
		uint8_t *copy = exact_copy(node, SECTORS * SECTOR_BYTES);
		size_t offset = rng_below(&r, 2) ? SET_1 : 0;
		struct order_ctx order = { .expect = &expect };
		struct bset_check check = { .keep = keep_in_order, .ctx = &order };
		struct bkey_format f;
		struct bset_info info;
		struct fault fault;

		expect.node_sectors = SECTORS;
		expect.key = rng_below(&r, 2) ? &key : NULL;
		expect.is_range_updated = rng_below(&r, 2);
		/* The format of set 0 that set 1 is read with. */
		assert_int_equal(bkey_format_load(&f, &((struct btree_node_disk *)copy)->format, &fault), 0);
		for (uint64_t n = 1 + rng_below(&r, 3); n > 0; n--)
			copy[offset + 16 + rng_below(&r, offset ? 56 : 150)] = (uint8_t)rng_u64(&r);
		/* Half of them with a checksum that agrees with the damage, if there is an end to compute it to. */
		unsigned type = (unsigned)rng_below(&r, CHECKSUM_TYPE_NR);
		if (rng_below(&r, 2) && (expect.key || !checksum_is_mac(type)) &&
		    le16_get(bset_at(copy, offset)->u64s) <= 40)
			bset_seal(copy, offset, type, expect.key);

		int ret = bset_read(copy, offset, &expect, &f, &info, &fault);
		if (ret == 1) {
			read_nr++;
			assert_true(bset_check_keys(copy, &info, &f, &expect, &kctx, &check) >= 0);
		} else {
			refused_nr++;
			assert_true(ret <= 0);
			assert_true(!ret || fault.id);
		}
		free(copy);
	}
	assert_true(read_nr > 500 && refused_nr > 500);
	free(node);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(real_node_is_read),
		cmocka_unit_test(real_encrypted_node_is_read_and_written),
		cmocka_unit_test(encrypted_node_without_a_key_is_refused),
		cmocka_unit_test(every_checksum_type_finds_every_flipped_bit),
		cmocka_unit_test(broken_headers_are_told_apart),
		cmocka_unit_test(unknown_checksums_and_lengths_are_refused_before_checksumming),
		cmocka_unit_test(old_extent_nodes_are_refused),
		cmocka_unit_test(node_flags_are_taken_apart),
		cmocka_unit_test(bad_keys_are_left_out_and_the_rest_is_kept),
		cmocka_unit_test(equal_positions_are_kept_unless_a_deletion_follows_a_live_key),
		cmocka_unit_test(keys_out_of_an_updated_range_are_no_errors),
		cmocka_unit_test(nonsense_length_ends_the_set),
		cmocka_unit_test(walk_ends_when_the_receiver_says_so),
		cmocka_unit_test(damaged_keys_are_walked_within_bounds),
		cmocka_unit_test(damaged_nodes_are_read_within_bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
