/* What the tests of key values share: keys from hex, a filesystem to check them against, and tables of bad keys. */
#ifndef KILN_TESTS_FORMAT_KEY_TEST_H
#define KILN_TESTS_FORMAT_KEY_TEST_H

#include "format_test.h"

#include "base/strbuf.h"
#include "base/util.h"
#include "format/error_ids.h"
#include "format/key_types.h"
#include "format/version.h"

enum { TEST_MEMBER_NR = 6, TEST_BUCKET_SECTORS = 256, TEST_BUCKET_NR = 2048, TEST_FIRST_BUCKET = 2 };

/* Keys live until the end of the program; each value in a block of its own. */
static struct {
	void **blocks;
	size_t nr;
} test_keys;

static inline int test_keys_free(void **state)
{
	for (size_t i = 0; i < test_keys.nr; i++)
		free(test_keys.blocks[i]);
	free(test_keys.blocks);
	return 0;
}

static inline struct bkey_ref key_of_bytes(unsigned type, struct bpos p, uint32_t size, const void *value, size_t bytes)
{
	assert_int_equal(bytes % 8, 0);

	void **blocks = realloc(test_keys.blocks, (test_keys.nr + 1) * sizeof(*blocks));
	assert_non_null(blocks);
	test_keys.blocks = blocks;
	blocks[test_keys.nr] = exact_copy(value, bytes);
	return (struct bkey_ref){
		.k = { .p = p, .size = size, .type = (uint8_t)type, .value_u64s = (uint8_t)(bytes / 8) },
		.value = blocks[test_keys.nr++],
	};
}

/* The last word is filled up with zeroes, as values are. */
static inline struct bkey_ref key_of_hex(unsigned type, struct bpos p, uint32_t size, const char *hex)
{
	uint8_t value[BKEY_VALUE_U64S_MAX * 8] = { 0 };
	size_t bytes = hex_decode(hex, value, sizeof(value));

	return key_of_bytes(type, p, size, value, round_up_u64(bytes, 8));
}

/* A filesystem of six equal devices; @version 1.4 has 1.4's rules, newer ones the relaxed ones. */
static inline struct key_context test_context(uint32_t version)
{
	static struct member_geometry members[TEST_MEMBER_NR];

	for (unsigned i = 0; i < TEST_MEMBER_NR; i++)
		members[i] = (struct member_geometry){
			.exists = true,
			.bucket_sectors = TEST_BUCKET_SECTORS,
			.first_bucket = TEST_FIRST_BUCKET,
			.bucket_nr = TEST_BUCKET_NR,
		};
	return (struct key_context){
		.version = version,
		.upgrade_complete = version,
		.is_newer = version > VERSION_1_4,
		.block_sectors = 8,
		.node_sectors = TEST_BUCKET_SECTORS,
		.member_nr = TEST_MEMBER_NR,
		.members = members,
		.backpointer_shift = 10,
		.time_precision_ns = 1,
	};
}

static inline void assert_key_valid(struct bkey_ref k, const struct key_context *ctx)
{
	struct fault fault = { 0 };

	if (key_validate_value(k, ctx, &fault))
		fail_msg("type %u: error %u: %s: expected %s, found %s", k.k.type, fault.id, fault.field,
			 fault.expected, fault.found);
}

static inline void assert_key_fault(struct bkey_ref k, const struct key_context *ctx, unsigned id, const char *what)
{
	struct fault fault = { .id = ~0u };
	int err = key_validate_value(k, ctx, &fault);

	if (err != -KILN_E_INVALID || fault.id != id)
		fail_msg("%s: expected error %u, got %d, error %u (%s: expected %s, found %s)", what, id, err, fault.id,
			 fault.field, fault.expected, fault.found);
	assert_true(fault.field[0] && fault.expected[0] && fault.found[0]);
	/* A check must not depend on someone listening. */
	assert_int_equal(key_validate_value(k, ctx, NULL), -KILN_E_INVALID);
}

/* A key that breaks one rule. @newer: what becomes of it in images above 1.4: the same error, another one, or none. */
enum { SAME_WHEN_NEWER = -1, FINE_WHEN_NEWER = -2 };
struct bad_key {
	const char *what;
	unsigned id;
	int newer;
	unsigned type;
	struct bpos p;
	uint32_t size;
	const char *hex;
};

static inline void assert_bad_keys(const struct bad_key *bad, size_t nr)
{
	struct key_context old = test_context(VERSION_1_4), newer = test_context(VERSION_NEWEST_KNOWN);

	for (size_t i = 0; i < nr; i++) {
		struct bkey_ref k = key_of_hex(bad[i].type, bad[i].p, bad[i].size, bad[i].hex);

		assert_key_fault(k, &old, bad[i].id, bad[i].what);
		if (bad[i].newer == FINE_WHEN_NEWER)
			assert_key_valid(k, &newer);
		else
			assert_key_fault(k, &newer,
					 bad[i].newer == SAME_WHEN_NEWER ? bad[i].id : (unsigned)bad[i].newer,
					 bad[i].what);
	}
}

/* The value as text. */
static inline void assert_value_text(struct bkey_ref k, const struct key_context *ctx, const char *expected)
{
	struct strbuf text = strbuf_growing();

	key_type(k.k.type)->to_text(&text, k, ctx);
	assert_string_equal(strbuf_text(&text), expected);
	strbuf_free(&text);
}

#endif
