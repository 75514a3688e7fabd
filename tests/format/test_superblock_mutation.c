/*
 * Hostile superblocks: bytes changed at random in valid ones, the checksum made right again. Whatever comes out,
 * checking, reading and printing it stays within the superblock's own bytes (sanitizers see to that) and comes to an
 * end.
 *
 * KILN_TEST_SEED repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/strbuf.h"
#include "base/util.h"
#include "format/options.h"
#include "sb_vector.h"

enum { ROUNDS = 6000, CHANGES_MAX = 8 };

static uint64_t random_state;

static uint64_t random_next(void)
{
	random_state += 0x9e3779b97f4a7c15; /* splitmix64 */
	uint64_t z = random_state;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* A superblock with a section of every type. */
static void base_make(struct sb_buffer *b, unsigned version)
{
	sb_vector_init(b);
	b->sb.version = le16_of((uint16_t)version);
	sb_append(b, "05000000 09000000 1100000000000000 0800000000000000 2a00000000000000 0100000000000000");
	sb_append(b, "03000000 00000000 2a00000000000000 0700000000000000");
	sb_append(b, "03000000 03000000 03 01 00 02 01 00 04 01 00 05 01 00 00 00 00 00");
	sb_append(b, "03000000 07000000 03 01 01 00 02 01 01 00 04 01 00 00 00 00 00 00");
	sb_append(b, "0800000002000000 0000000000000000 0e00030004000000 7cea28e2c1995672 31cbf3ee5727b3f0");
	sb_append(b, "05000000 08000000 0a00000000000000 1200000000000000 1200000000000000 1400000000000000");
	sb_append(b, "050000000c000000 4a000100000000009891006b00000000 d8000100000000009891006b00000000");
	sb_append(b, "0b0000000d000000 20fc3eff05000000 0000000000000000 0000000000000000");
	sb_append(b, "080000000e000000 0504 0000000900000000 0000000000000000 0200 d100 e700"
		     "2704 2088000000000000 0000000000000000 0300 8300 6900 1001 00000000");
	sb_append(b, "03000000 10000000 01010203010101010100000000000000");
	sb_append(b, "03000000 11000000 0101050000004042 0f00003f420f0000");
	sb_append(b, "05000000 0f000000 00000000000000000000000000000000 0a00000000000000 0700000001000000");
	sb_append(b, "06000000 06000000 0000000000000000 3a00000000000000 0100020500000000 0700000000000000"
		     "0000000000000000");
	sb_append_empty(b, SB_QUOTA, 10);
	sb_append_empty(b, SB_COUNTERS, 80);
	uint8_t *s = sb_append_empty(b, SB_DISK_GROUPS, 1 + 3 * 6);
	for (unsigned i = 0; i < 3; i++) {
		s[8 + i * 48] = (uint8_t)('a' + i);
		le64_store(s + 8 + i * 48 + 32, 0x3e | i << 6);
	}
	sb_append_empty(b, 99, 2);
}

/* Half of the changes go to the header and the first bytes of sections, where they hurt most. */
static void mutate(struct sb_disk *sb, size_t bytes)
{
	for (uint64_t n = random_next() % CHANGES_MAX + 1; n; n--) {
		uint64_t r = random_next();
		uint8_t *p = (uint8_t *)sb + 16;
		size_t range = r & 1 ? sizeof(*sb) - 16 : bytes - 16;

		p += (r >> 1) % range;
		switch (r >> 60) {
		case 0: *p = 0xff; break;
		case 1: *p = 0; break;
		case 2: *p = (uint8_t)(*p + 1); break;
		default: *p ^= (uint8_t)(1 << (r >> 57 & 7)); break;
		}
	}
}

/* Everything that a program may ask of a valid superblock. */
static void use(const struct sb_disk *sb)
{
	struct strbuf text = strbuf_growing();
	struct key_context ctx;
	struct sb_crypt crypt;
	struct crypt_key key;
	struct sb_ext ext;
	bool in_range;

	sb_to_text(&text, sb, true, ~0u);
	assert_true(text.len > 1000);
	strbuf_free(&text);

	sb_key_context(sb, true, &ctx);
	sb_ext(sb, &ext);
	for (unsigned id = 0; id < OPT_NR; id++) {
		uint64_t value = option_from_sb(id, sb, &in_range);

		assert_true(!in_range || id == OPT_ENCODED_EXTENT_MAX || id == OPT_JOURNAL_RECLAIM_DELAY ||
			    option_is_valid(id, value));
	}
	for (unsigned i = 0; i < sb_journal_range_nr(sb); i++) {
		struct member m;
		uint64_t start, nr;

		sb_member(sb, sb->dev_idx, &m);
		sb_journal_range(sb, i, &start, &nr);
		assert_true(start && nr && start + nr <= m.nbuckets);
	}
	/* With the usual cost it works, with more it would take long here. */
	if (sb_crypt(sb, &crypt) && crypt.scrypt_log2_n + crypt.scrypt_log2_r + crypt.scrypt_log2_p < 6)
		(void)sb_crypt_unlock(sb, &crypt, "x", 1, &key);
}

static void mutated_superblocks_do_no_harm(void **state)
{
	static const unsigned versions[] = { VERSION_1_4, VERSION(1, 20), VERSION(1, 39) };
	static struct sb_buffer base;
	unsigned accepted = 0, refused = 0;

	for (unsigned round = 0; round < ROUNDS; round++) {
		base_make(&base, versions[round % ARRAY_NR(versions)]);

		size_t bytes = sb_bytes(&base.sb);
		assert_int_equal(sb_validate(&base.sb, false, NULL), 0);
		mutate(&base.sb, bytes);

		/* Not one byte more than the superblock says it has, so that any overrun is seen. */
		struct fault fault = { 0 };
		int err = sb_check_header(&base.sb, &fault);
		if (!err && sb_bytes(&base.sb) <= bytes) {
			CLEANUP_FREE struct sb_disk *sb = malloc(sb_bytes(&base.sb));

			assert_non_null(sb);
			memcpy(sb, &base.sb, sb_bytes(&base.sb));
			sb_seal(sb, random_next() % 2 ? CHECKSUM_CRC32C_NONZERO : CHECKSUM_XXHASH);
			assert_int_equal(sb_verify(sb, &fault), 0);
			err = sb_validate(sb, random_next() % 2, &fault);
			if (!err)
				use(sb);
		}
		assert_true(!err || (fault.field[0] && fault.expected[0]));
		accepted += !err;
		refused += !!err;
	}
	print_message("%u accepted, %u refused\n", accepted, refused);
	assert_true(accepted > ROUNDS / 20 && refused > ROUNDS / 20);
}

/* --- large but well-formed --- */

enum { LARGE_BYTES = 8 << 20 };

/* The vector with one more section of @payload_bytes, all zero, and the reserved size to go with it. */
static struct sb_disk *large_make(unsigned type, size_t payload_bytes)
{
	static struct sb_buffer base;
	struct sb_disk *sb = calloc(1, LARGE_BYTES);
	size_t u64s = 1 + div_round_up_u64(payload_bytes, 8);

	assert_non_null(sb);
	sb_vector_init(&base);
	memcpy(sb, &base, SB_VECTOR_BYTES);
	sb->version = le16_of(VERSION(1, 39));
	sb->layout.sb_max_size_bits = 14;
	sb->layout.nr_superblocks = 1;
	sb->u64s = le32_of((uint32_t)(le32_get(sb->u64s) + u64s));
	assert_true(sb_bytes(sb) <= LARGE_BYTES);
	le32_store((uint8_t *)sb + SB_VECTOR_BYTES, (uint32_t)u64s);
	le32_store((uint8_t *)sb + SB_VECTOR_BYTES + 4, type);
	/* room for many journal buckets */
	le64_store((uint8_t *)sb + 0x310, 1 << 20);
	le64_store((uint8_t *)sb + 0x398, 1 << 20);
	return sb;
}

static uint8_t *large_payload(struct sb_disk *sb) { return (uint8_t *)sb + SB_VECTOR_BYTES + 8; }

static int large_validate(struct sb_disk *sb)
{
	assert_int_equal(sb_check_header(sb, NULL), 0);
	return sb_validate(sb, true, NULL);
}

/*
 * Where entries are compared with each other, their number is bounded; the largest number that passes takes a moment.
 * Quadratic work on all that fits a superblock would run into the test's time limit.
 */
static void journal_of_many_ranges_is_bounded(void **state)
{
	enum { RANGES_MAX = 16384 };

	for (unsigned nr = RANGES_MAX; nr <= RANGES_MAX + 1; nr++) {
		CLEANUP_FREE struct sb_disk *sb = large_make(SB_JOURNAL_V2, nr * 16);

		for (unsigned i = 0; i < nr; i++) {
			le64_store(large_payload(sb) + i * 16, 1 + 2 * i);
			le64_store(large_payload(sb) + i * 16 + 8, 1);
		}
		assert_int_equal(large_validate(sb), nr > RANGES_MAX ? -KILN_E_INVALID : 0);
	}
}

static void many_disk_groups_are_bounded(void **state)
{
	enum { GROUPS_MAX = 4096 };

	for (unsigned nr = GROUPS_MAX; nr <= GROUPS_MAX + 1; nr++) {
		CLEANUP_FREE struct sb_disk *sb = large_make(SB_DISK_GROUPS, nr * 48);

		for (unsigned i = 0; i < nr; i++)
			snprintf((char *)large_payload(sb) + i * 48, 32, "label-with-a-long-name-%u", i);
		assert_int_equal(large_validate(sb), nr > GROUPS_MAX ? -KILN_E_INVALID : 0);
	}
}

static void many_replicas_entries_are_read(void **state)
{
	enum { ENTRIES = 1 << 20 };
	CLEANUP_FREE struct sb_disk *sb = large_make(SB_REPLICAS_V0, ENTRIES * 5);
	struct replicas_entry e;
	unsigned nr = 0;

	for (unsigned i = 0; i < ENTRIES; i++) {
		uint8_t *p = large_payload(sb) + i * 5;

		/* three of the devices 0..254, ascending */
		p[0] = 4, p[1] = 3;
		p[2] = (uint8_t)(i % 80), p[3] = (uint8_t)(80 + i / 80 % 80), p[4] = (uint8_t)(160 + i / 6400 % 95);
	}
	assert_int_equal(large_validate(sb), 0);
	struct replicas_walk w = sb_replicas_walk(sb);
	while (sb_replicas_next(&w, &e, NULL) > 0)
		nr++;
	assert_int_equal(nr, ENTRIES);
}

static void many_sections_are_refused(void **state)
{
	CLEANUP_FREE struct sb_disk *sb = large_make(99, 8 * 1024);

	for (unsigned i = 0; i <= 1024; i++)
		le32_store((uint8_t *)sb + SB_VECTOR_BYTES + i * 8, 1);
	assert_int_equal(large_validate(sb), -KILN_E_INVALID);
}

static int seed_set(void **state)
{
	const char *text = getenv("KILN_TEST_SEED");

	random_state = text ? strtoull(text, NULL, 0) : 0x6b696c6e;
	print_message("KILN_TEST_SEED=%#llx\n", (unsigned long long)random_state);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mutated_superblocks_do_no_harm), cmocka_unit_test(journal_of_many_ranges_is_bounded),
		cmocka_unit_test(many_disk_groups_are_bounded),	  cmocka_unit_test(many_replicas_entries_are_read),
		cmocka_unit_test(many_sections_are_refused),
	};

	return cmocka_run_group_tests(tests, seed_set, NULL);
}
