/* Journal entries: the real ones of 03 §15, the rules of each sub-entry, text, and damage at random. */
#include "jset_vectors.h"

#include "base/strbuf.h"
#include "base/util.h"
#include "format/error_ids.h"
#include "format/jset.h"
#include "format/version.h"

static const struct member_geometry members[] = {
	{ .exists = true, .bucket_sectors = 256, .first_bucket = 1, .bucket_nr = 2048 },
	{ .exists = false },
};

static const struct key_context kctx = {
	.version = VERSION(1, 4),
	.upgrade_complete = VERSION(1, 4),
	.block_sectors = 8,
	.node_sectors = 256,
	.member_nr = ARRAY_NR(members),
	.members = members,
	.backpointer_shift = 10,
	.time_precision_ns = 1,
};

/* --- whole entries --- */

static void minimal_entry_is_sealed_and_verified_with_every_checksum_type(void **state)
{
	(void)state;
	static const struct {
		unsigned type;
		const char *csum;
	} cases[] = {
		{ CHECKSUM_NONE, "0000000000000000 0000000000000000" },
		{ CHECKSUM_CRC32C_NONZERO, "10c6c43e00000000 0000000000000000" },
		{ CHECKSUM_CRC64_NONZERO, "263ac1b2d4fed795 0000000000000000" },
		{ CHECKSUM_XXHASH, "1dc92de0149a99dc 0000000000000000" },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		uint8_t bytes[72], plain[72], csum[16];
		struct jset_disk *j = (struct jset_disk *)bytes;

		assert_int_equal(hex_decode(jset_minimal, bytes, sizeof(bytes)), sizeof(bytes));
		hex_decode(cases[i].csum, csum, sizeof(csum));
		jset_seal(j, cases[i].type, NULL);
		assert_memory_equal(j->csum, csum, sizeof(csum));
		assert_int_equal(jset_csum_type(j), cases[i].type);
		memcpy(plain, bytes, sizeof(plain));
		assert_int_equal(jset_verify(j, NULL, NULL), 0);
		assert_memory_equal(bytes, plain, sizeof(plain));
	}
}

static void minimal_entry_is_encrypted_and_decrypted(void **state)
{
	(void)state;
	uint8_t bytes[72], sealed[72], plain[72];
	struct jset_disk *j = (struct jset_disk *)bytes;
	struct crypt_key key;
	struct fault fault;

	for (unsigned i = 0; i < sizeof(key.bytes); i++)
		key.bytes[i] = (uint8_t)i;
	hex_decode(jset_minimal, bytes, sizeof(bytes));
	memcpy(plain, bytes, sizeof(plain));
	assert_int_equal(hex_decode(jset_minimal_sealed, sealed, sizeof(sealed)), sizeof(sealed));
	jset_seal(j, CHECKSUM_CHACHA20_POLY1305_128, &key);
	assert_memory_equal(bytes, sealed, sizeof(sealed));

	assert_int_equal(jset_verify(j, NULL, &fault), -KILN_E_CHECKSUM);
	assert_int_equal(fault.id, ERROR_jset_unknown_csum);
	assert_int_equal(jset_verify(j, &key, &fault), 0);
	assert_memory_equal(bytes + 44, plain + 44, sizeof(plain) - 44);

	memcpy(bytes, sealed, sizeof(sealed));
	bytes[71] ^= 1;
	assert_int_equal(jset_verify(j, &key, &fault), -KILN_E_CHECKSUM);
	bytes[71] ^= 1;
	assert_memory_equal(bytes, sealed, sizeof(sealed));
}

static void real_encrypted_entry_is_decrypted(void **state)
{
	(void)state;
	uint8_t bytes[96], plain[52];
	struct crypt_key key;

	/* Only its first 96 bytes are at hand, so not its checksum. */
	hex_decode("d150537a4996693975dc9a8bd00737c5 43c471bb5eef1fae 0700000000000000 04040000 04000000 9b000000"
		   "f246703fb956406e22de93c7cda78b91cf3c962f9d5762738af46522e43c6dc1416b5191e6af4f98c9c9bf6359de7b0e"
		   "73bab582",
		   bytes, sizeof(bytes));
	hex_decode("00000000 0700000000000000 0000000000000000 0b00010001000000 0b01120000000000 0000000000000000"
		   "00000000ffffffff",
		   plain, sizeof(plain));
	hex_decode("618254f559dcea1f05860b643147722ac7acaed9f75406df35be88d4d18e8348", key.bytes, sizeof(key.bytes));
	crypt_xor(&key, nonce_journal(7), bytes + 44, sizeof(bytes) - 44);
	assert_memory_equal(bytes + 44, plain, sizeof(plain));
}

static void flags_are_taken_apart(void **state)
{
	(void)state;
	struct jset_disk j = { .flags = le32_of(97) };

	assert_int_equal(jset_csum_type(&j), 1);
	assert_true(jset_is_noflush(&j));
	assert_true(jset_has_overwrites(&j));
	assert_false(jset_is_big_endian(&j));
	j.u64s = le32_of(UINT32_MAX);
	assert_true(jset_bytes(&j) == 56 + 8ull * UINT32_MAX);
}

static void unknown_checksums_and_big_endian_entries_are_refused(void **state)
{
	(void)state;
	struct jset_disk *j = jset_real_entry();
	struct fault fault;

	j->flags = le32_of(8);
	assert_int_equal(jset_verify(j, NULL, &fault), -KILN_E_CHECKSUM);
	assert_int_equal(fault.id, ERROR_jset_unknown_csum);
	j->flags = le32_of(0x10);
	assert_int_equal(jset_verify(j, NULL, &fault), -KILN_E_CHECKSUM);
	jset_seal(j, CHECKSUM_CRC32C_NONZERO, NULL);
	assert_int_equal(jset_verify(j, NULL, &fault), -KILN_E_UNSUPPORTED);
	free(j);
}

static void real_entry_says_what_the_document_says(void **state)
{
	(void)state;
	static const struct {
		uint8_t type, btree_id;
	} expected[] = {
		{ JSET_ENTRY_BTREE_KEYS, 0 },
		{ JSET_ENTRY_BTREE_ROOT, BTREE_INODES },
		{ JSET_ENTRY_BTREE_ROOT, BTREE_DIRENTS },
		{ JSET_ENTRY_BTREE_ROOT, BTREE_ALLOC },
		{ JSET_ENTRY_BTREE_ROOT, BTREE_SUBVOLUMES },
		{ JSET_ENTRY_BTREE_ROOT, BTREE_SNAPSHOTS },
		{ JSET_ENTRY_BTREE_ROOT, BTREE_FREESPACE },
		{ JSET_ENTRY_BTREE_ROOT, BTREE_BACKPOINTERS },
		{ JSET_ENTRY_BTREE_ROOT, BTREE_SNAPSHOT_TREES },
		{ JSET_ENTRY_USAGE, 1 },
		{ JSET_ENTRY_USAGE, 2 },
		{ JSET_ENTRY_USAGE, 0 },
		{ JSET_ENTRY_USAGE, 0 },
		{ JSET_ENTRY_USAGE, 0 },
		{ JSET_ENTRY_USAGE, 0 },
		{ JSET_ENTRY_DATA_USAGE, 0 },
		{ JSET_ENTRY_DATA_USAGE, 0 },
		{ JSET_ENTRY_DEV_USAGE, 0 },
		{ JSET_ENTRY_CLOCK, 0 },
		{ JSET_ENTRY_CLOCK, 0 },
	};
	struct jset_disk *j = jset_real_entry();
	uint8_t uuid[16] = { 0x35, 0xa1, 0xe2, 0x78, 0x37, 0xd7, 0x4d, 0xdc };
	const struct jset_entry_disk *e;
	struct fault fault;

	assert_true(le64_get(j->magic) == jset_magic(uuid));
	assert_true(jset_bytes(j) == JSET_REAL_BYTES);
	assert_int_equal(jset_verify(j, NULL, &fault), 0);
	assert_false(jset_is_noflush(j));

	struct jset_walk w = jset_walk_of(j);
	for (size_t i = 0; i < ARRAY_NR(expected); i++) {
		assert_int_equal(jset_walk_next(&w, &e, &fault), 1);
		assert_int_equal(e->type, expected[i].type);
		assert_int_equal(e->btree_id, expected[i].btree_id);
		assert_int_equal(jset_entry_validate(e, &kctx, &fault), 0);

		struct jset_key_walk kw = jset_key_walk_of(e);
		struct bkey_ref k;
		int keys = 0;
		while (jset_key_walk_next(&kw, &k, &fault) == 1) {
			keys++;
			assert_true(bpos_eq(k.k.p, SPOS_MAX));
			assert_int_equal(k.k.type, KEY_BTREE_PTR_V2);
			assert_int_equal(k.k.value_u64s, 6);
			assert_ptr_equal(k.value, jset_entry_payload(e) + 40);
		}
		assert_int_equal(keys, e->type == JSET_ENTRY_BTREE_ROOT);
	}
	assert_int_equal(jset_walk_next(&w, &e, &fault), 0);
	free(j);
}

/* --- sub-entries --- */

/* A sub-entry of @payload's bytes, rounded up to words. */
struct entry_case {
	uint8_t type, btree_id, level;
	const char *payload;
	uint32_t id;	  /* error; 0: valid */
	const char *text; /* NULL: not looked at */
};

static struct jset_entry_disk *entry_of(const struct entry_case *c)
{
	uint8_t bytes[1024] = { 0 };
	struct jset_entry_disk *e = (struct jset_entry_disk *)bytes;
	size_t len = hex_decode(c->payload, bytes + sizeof(*e), sizeof(bytes) - sizeof(*e));
	size_t u64s = (len + 7) / 8;

	*e = (struct jset_entry_disk){
		.u64s = le16_of((uint16_t)u64s),
		.btree_id = c->btree_id,
		.level = c->level,
		.type = c->type,
	};
	return exact_copy(bytes, sizeof(*e) + u64s * 8);
}

#define ROOT_KEY                                                                                 \
	"0b011200 0000000000000000 00000000 00000000 ffffffff ffffffffffffffff ffffffffffffffff" \
	"0000000000000000 1ece16fa6a03ed93 1000000000000000 0000000000000000 0000000000000000 0160020000000000"
#define DELETED_KEY "05010000 0000000000000000 00000000 00000000 ffffffff 0800000000000000 0010000000000000"

static const struct entry_case entry_cases[] = {
	{ JSET_ENTRY_BTREE_KEYS, 0, 0, "", 0, "" },
	{ JSET_ENTRY_BTREE_KEYS, 0, 0, DELETED_KEY, 0,
	  "btree_keys: btree=extents l=0 u64s 5 type deleted 4096:8:U32_MAX len 0 ver 0" },
	{ JSET_ENTRY_OVERWRITE, 2, 1, DELETED_KEY DELETED_KEY, 0,
	  "overwrite: btree=dirents l=1 u64s 5 type deleted 4096:8:U32_MAX len 0 ver 0\n"
	  "overwrite: btree=dirents l=1 u64s 5 type deleted 4096:8:U32_MAX len 0 ver 0" },
	{ JSET_ENTRY_BTREE_KEYS, 0, 4, DELETED_KEY, ERROR_journal_entry_bkey_invalid, NULL },
	{ JSET_ENTRY_BTREE_KEYS, 0, 4, "", 0, "" },
	{ JSET_ENTRY_BTREE_KEYS, 99, 0, "0000000000000000", 0,
	  "btree_keys: btree=99 l=0 (bad key: key, u64s 0 words, 1 are left)" },
	{ JSET_ENTRY_BTREE_ROOT, 1, 0, ROOT_KEY, 0,
	  "btree_root: btree=inodes l=0 u64s 11 type btree_ptr_v2 SPOS_MAX len 0 ver 0: seq 93ed036afa16ce1e written "
	  "16 "
	  "min_key POS_MIN durability: 1 ptr: 0:38:0 gen 0" },
	{ JSET_ENTRY_BTREE_ROOT, 1, 0, "", ERROR_journal_entry_btree_root_bad_size,
	  "btree_root: btree=inodes l=0 (no key)" },
	{ JSET_ENTRY_BTREE_ROOT, 1, 0, ROOT_KEY DELETED_KEY, ERROR_journal_entry_btree_root_bad_size, NULL },
	{ JSET_ENTRY_BTREE_ROOT, 1, 4, ROOT_KEY, ERROR_journal_entry_btree_root_bad_size, NULL },
	{ JSET_ENTRY_BTREE_ROOT, 62, 0, ROOT_KEY, 0, NULL },
	{ JSET_ENTRY_BTREE_ROOT, 63, 0, "", 0, NULL },
	{ JSET_ENTRY_BLACKLIST, 0, 0, "0700000000000000", 0, "blacklist: seq=7" },
	{ JSET_ENTRY_BLACKLIST, 0, 0, "", ERROR_journal_entry_blacklist_bad_size, NULL },
	{ JSET_ENTRY_BLACKLIST, 0, 0, "0700000000000000 00", ERROR_journal_entry_blacklist_bad_size, NULL },
	{ JSET_ENTRY_BLACKLIST_V2, 0, 0, "0700000000000000 0900000000000000", 0, "blacklist_v2: start=7 end=9" },
	{ JSET_ENTRY_BLACKLIST_V2, 0, 0, "0700000000000000 0700000000000000", 0, "blacklist_v2: start=7 end=7" },
	{ JSET_ENTRY_BLACKLIST_V2, 0, 0, "0700000000000000 0600000000000000",
	  ERROR_journal_entry_blacklist_v2_start_past_end, NULL },
	{ JSET_ENTRY_BLACKLIST_V2, 0, 0, "0700000000000000", ERROR_journal_entry_blacklist_v2_bad_size, NULL },
	{ JSET_ENTRY_USAGE, 1, 0, "0200000000000000", 0, "usage: type=inodes v=2" },
	{ JSET_ENTRY_USAGE, 0, 3, "0300000000000000", 0, "usage: type=reserved v=3" },
	{ JSET_ENTRY_USAGE, 2, 0, "0000000000000000", 0, "usage: type=key_version v=0" },
	{ JSET_ENTRY_USAGE, 9, 0, "0000000000000000", 0, "usage: type=9 v=0" },
	{ JSET_ENTRY_USAGE, 1, 0, "", ERROR_journal_entry_usage_bad_size, "usage: u64s=0" },
	{ JSET_ENTRY_DATA_USAGE, 0, 0, "0008000000000000 0301010000000000", 0, "data_usage: btree: 1/1 [0]=2048" },
	{ JSET_ENTRY_DATA_USAGE, 0, 0, "0008000000000000 0302010000000000", 0, "data_usage: btree: 1/2 [0 0]=2048" },
	{ JSET_ENTRY_DATA_USAGE, 0, 0, "0008000000000000 0301010100000000", ERROR_journal_entry_data_usage_bad_size,
	  NULL },
	{ JSET_ENTRY_DATA_USAGE, 0, 0, "0008000000000000 0300010000000000", ERROR_journal_entry_data_usage_bad_size,
	  NULL },
	{ JSET_ENTRY_DATA_USAGE, 0, 0, "0008000000000000 0302020000000000", ERROR_journal_entry_data_usage_bad_size,
	  NULL },
	{ JSET_ENTRY_DATA_USAGE, 0, 0, "0008000000000000 0306010000000000", ERROR_journal_entry_data_usage_bad_size,
	  NULL },
	{ JSET_ENTRY_DATA_USAGE, 0, 0, "0008000000000000", ERROR_journal_entry_data_usage_bad_size,
	  "data_usage: u64s=1" },
	{ JSET_ENTRY_CLOCK, 0, 0, "0000000000000000 a803000000000000", 0, "clock: read=936" },
	{ JSET_ENTRY_CLOCK, 0, 0, "0100000000000000 0008000000000000", 0, "clock: write=2048" },
	{ JSET_ENTRY_CLOCK, 0, 0, "0200000000000000 0008000000000000", ERROR_journal_entry_clock_bad_rw, NULL },
	{ JSET_ENTRY_CLOCK, 0, 0, "0100000000000000", ERROR_journal_entry_clock_bad_size, NULL },
	{ JSET_ENTRY_DEV_USAGE, 0, 0,
	  "0000000000000000 0000000000000000 0000000000000000 cf07000000000000 0000000000000000 0000000000000000"
	  "1900000000000000 0818000000000000 f800000000000000",
	  0, "dev_usage: dev=0 free: buckets=1999 sectors=0 fragmented=0 sb: buckets=25 sectors=6152 fragmented=248" },
	{ JSET_ENTRY_DEV_USAGE, 0, 0, "0000000000000000 0000000000000000 0000000000000000", 0, "dev_usage: dev=0" },
	{ JSET_ENTRY_DEV_USAGE, 0, 0, "0000000000000000 0000000000000000", ERROR_journal_entry_dev_usage_bad_size,
	  NULL },
	{ JSET_ENTRY_DEV_USAGE, 0, 0, "0100000000000000 0000000000000000 0000000000000000",
	  ERROR_journal_entry_dev_usage_bad_dev, NULL },
	{ JSET_ENTRY_DEV_USAGE, 0, 0, "ffffffff00000000 0000000000000000 0000000000000000",
	  ERROR_journal_entry_dev_usage_bad_dev, NULL },
	{ JSET_ENTRY_DEV_USAGE, 0, 0, "0000000001000000 0000000000000000 0000000000000000",
	  ERROR_journal_entry_dev_usage_bad_pad, NULL },
	{ JSET_ENTRY_LOG, 0, 1, "6b696c6e00000000", 0, "log: kiln" },
	{ JSET_ENTRY_LOG, 0, 1, "6b696c6e6b696c6e", 0, "log: kilnkiln" },
	{ JSET_ENTRY_LOG, 0, 0, "", 0, "log: " },
	{ JSET_ENTRY_LOG, 0, 0, "0a1b", 0, "log: \\x0a\\x1b" },
	{ JSET_ENTRY_DATETIME, 0, 0, "00f0536500000000", 0, "datetime: Tue Nov 14 22:09:04 2023" },
	{ JSET_ENTRY_DATETIME, 0, 0, "ffffffffffffff7f", 0, "datetime: 9223372036854775807" },
	{ JSET_ENTRY_DATETIME, 0, 0, "", 0, "datetime: u64s=0" },
	{ JSET_ENTRY_LOG_BKEY, 0, 0, DELETED_KEY, 0,
	  "log_bkey: btree=extents l=0 u64s 5 type deleted 4096:8:U32_MAX len 0 ver 0" },
	{ JSET_ENTRY_REWIND_LIMIT, 0, 0, "0100000000000000", 0, "rewind_limit: seq 1" },
	{ JSET_ENTRY_REWIND, 0, 0, "0900000000000000 0700000000000000", 0, "rewind: from 9 to 7" },
	{ JSET_ENTRY_REWIND, 0, 0, "0900000000000000", ERROR_journal_entry_rewind_bad_size, NULL },
	{ JSET_ENTRY_PRIO_PTRS, 0, 0, "00", 0, "prio_ptrs: u64s=1" },
	{ 77, 0, 0, "0000000000000000 00", 0, "unknown type 77: u64s=2" },
};

static void each_type_has_its_rules_and_text(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_NR(entry_cases); i++) {
		struct jset_entry_disk *e = entry_of(&entry_cases[i]);
		struct strbuf out = strbuf_growing();
		struct fault fault = { 0 };

		assert_int_equal(jset_entry_validate(e, &kctx, &fault), entry_cases[i].id ? -KILN_E_INVALID : 0);
		assert_int_equal(fault.id, entry_cases[i].id);
		jset_entry_to_text(&out, e, &kctx);
		if (entry_cases[i].text)
			assert_string_equal(strbuf_text(&out), entry_cases[i].text);
		strbuf_free(&out);
		free(e);
	}
}

static void newer_filesystems_may_name_removed_devices(void **state)
{
	(void)state;
	const struct entry_case c = { JSET_ENTRY_DATA_USAGE, 0, 0, "0008000000000000 0b02010ff0000000", 0, NULL };
	struct key_context newer = kctx;
	struct jset_entry_disk *e = entry_of(&c);

	assert_int_equal(jset_entry_validate(e, &kctx, NULL), -KILN_E_INVALID);
	newer.is_newer = true;
	assert_int_equal(jset_entry_validate(e, &newer, NULL), 0);
	free(e);
}

static void counters_are_decoded(void **state)
{
	(void)state;
	struct jset_disk *j = jset_real_entry();
	const struct jset_entry_disk *data = (const struct jset_entry_disk *)((uint8_t *)j + 0x3a0);
	const struct jset_entry_disk *dev = (const struct jset_entry_disk *)((uint8_t *)j + 0x3d0);
	struct jset_data_usage du;
	struct jset_dev_usage u;

	assert_int_equal(jset_data_usage_decode(data, &du, NULL), 0);
	assert_true(du.sectors == 2048);
	assert_int_equal(du.data_type, 3);
	assert_int_equal(du.nr_devs, 1);
	assert_int_equal(du.nr_required, 1);
	assert_int_equal(du.devs[0], 0);

	assert_int_equal(jset_dev_usage_decode(dev, &u, NULL), 0);
	assert_int_equal(u.dev, 0);
	assert_int_equal(u.type_nr, 10);
	assert_int_equal(u.types[0].buckets, 1999);
	assert_int_equal(u.types[1].sectors, 6152);
	assert_int_equal(u.types[1].fragmented, 248);
	assert_int_equal(u.types[3].buckets, 8);
	assert_int_equal(u.types[15].buckets, 0);
	free(j);

	/* More types than anybody knows. */
	uint8_t *many = calloc(1, 8 + 24 + 20 * 24 + 8);
	assert_non_null(many);
	((struct jset_entry_disk *)many)->u64s = le16_of(3 + 60 + 1);
	assert_int_equal(jset_dev_usage_decode((struct jset_entry_disk *)many, &u, NULL), 0);
	assert_int_equal(u.type_nr, 16);
	free(many);
}

static void unusable_keys_are_told_apart(void **state)
{
	(void)state;
	static const struct {
		const char *payload;
		int returns[4];
		uint32_t id;
	} cases[] = {
		{ DELETED_KEY DELETED_KEY, { 1, 1, 0 }, 0 },
		{ "0001000000000000" DELETED_KEY, { -KILN_E_INVALID, 0 }, ERROR_journal_entry_bkey_u64s_0 },
		{ DELETED_KEY "0501000000000000", { 1, -KILN_E_INVALID, 0 }, ERROR_journal_entry_bkey_past_end },
		{ "0100000000000000" DELETED_KEY, { -KILN_E_INVALID, 1, 0 }, ERROR_journal_entry_bkey_bad_format },
		{ "0102000000000000" DELETED_KEY, { -KILN_E_INVALID, 1, 0 }, ERROR_journal_entry_bkey_bad_format },
		{ "0101000000000000" DELETED_KEY, { -KILN_E_INVALID, 1, 0 }, ERROR_bkey_u64s_too_small },
		{ "05810000 0000000000000000 00000000 00000000 ffffffff 0800000000000000 0010000000000000",
		  { 1, 0 },
		  0 },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		const struct entry_case c = { JSET_ENTRY_BTREE_KEYS, 0, 0, cases[i].payload, 0, NULL };
		struct jset_entry_disk *e = entry_of(&c);
		struct jset_key_walk w = jset_key_walk_of(e);
		struct fault fault = { 0 };
		struct bkey_ref k;
		unsigned step = 0;

		do
			assert_int_equal(jset_key_walk_next(&w, &k, &fault), cases[i].returns[step]);
		while (cases[i].returns[step++]);
		assert_int_equal(fault.id, cases[i].id);
		free(e);
	}
}

static void sub_entry_past_the_end_ends_the_walk(void **state)
{
	(void)state;
	struct jset_disk *j = jset_real_entry();
	struct jset_entry_disk *last = (struct jset_entry_disk *)((uint8_t *)j + 0x4f8);
	struct jset_walk w;
	const struct jset_entry_disk *e;
	struct fault fault;
	int nr = 0, ret;

	last->u64s = le16_of(3);
	w = jset_walk_of(j);
	while ((ret = jset_walk_next(&w, &e, &fault)) == 1)
		nr++;
	assert_int_equal(ret, -KILN_E_INVALID);
	assert_int_equal(fault.id, ERROR_journal_entry_past_jset_end);
	assert_int_equal(nr, 19);
	assert_int_equal(jset_walk_next(&w, &e, &fault), 0);
	free(j);
}

/* --- damage at random --- */

/* Do with an entry all that can be done. Returns the number of sub-entries walked. */
static unsigned use_everything(const struct jset_disk *j, const struct key_context *ctx)
{
	struct jset_walk w = jset_walk_of(j);
	const struct jset_entry_disk *e;
	struct fault fault;
	unsigned nr = 0;

	while (jset_walk_next(&w, &e, &fault) == 1) {
		struct jset_key_walk kw = jset_key_walk_of(e);
		struct bkey_ref k;
		struct strbuf out = strbuf_growing();
		int ret;

		nr++;
		(void)jset_entry_validate(e, ctx, &fault);
		while ((ret = jset_key_walk_next(&kw, &k, &fault)))
			if (ret > 0)
				(void)key_validate(k, e->btree_id, e->level, ctx, &fault);
		jset_entry_to_text(&out, e, ctx);
		strbuf_free(&out);
	}
	return nr;
}

static void damaged_entries_are_walked_within_bounds(void **state)
{
	(void)state;
	static const uint8_t key_types[] = {
		KEY_DIRENT, KEY_INODE_V3, KEY_EXTENT, KEY_XATTR, KEY_ALLOC_V4, KEY_STRIPE
	};
	struct rng r = test_rng();
	struct jset_disk *real = jset_real_entry();

	assert_int_equal(use_everything(real, &kctx), 20);
	for (unsigned round = 0; round < 8000; round++) {
		size_t len = sizeof(*real) + 8 * (1 + rng_below(&r, (JSET_REAL_BYTES - sizeof(*real)) / 8));
		struct jset_disk *j = exact_copy(real, len);
		uint8_t *area = (uint8_t *)(j + 1);
		size_t area_len = len - sizeof(*j);
		struct key_context ctx = kctx;

		ctx.is_newer = rng_below(&r, 2);
		j->u64s = le32_of((uint32_t)(area_len / 8));
		for (uint64_t n = rng_below(&r, 12); n > 0; n--)
			area[rng_below(&r, area_len)] = (uint8_t)rng_u64(&r);
		/* Bytes where types and lengths are, with values that mean something. */
		for (uint64_t n = rng_below(&r, 6); n > 0; n--) {
			uint8_t *word = area + rng_below(&r, area_len / 8) * 8;

			switch (rng_below(&r, 4)) {
			case 0: word[0] = (uint8_t)rng_below(&r, 20); break;
			case 1: word[4] = (uint8_t)rng_below(&r, JSET_ENTRY_NR_KNOWN + 1); break;
			case 2: word[2] = key_types[rng_below(&r, ARRAY_NR(key_types))]; break;
			case 3: word[2] = (uint8_t)rng_below(&r, KEY_TYPE_NR + 1); break;
			}
		}
		assert_true(use_everything(j, &ctx) <= area_len / 8);
		free(j);
	}
	free(real);
}

static void every_flipped_bit_is_found(void **state)
{
	(void)state;
	struct jset_disk *real = jset_real_entry();

	for (size_t bit = 0; bit < JSET_REAL_BYTES * 8; bit++) {
		struct jset_disk *j = exact_copy(real, JSET_REAL_BYTES);
		struct fault fault;

		((uint8_t *)j)[bit / 8] ^= (uint8_t)(1 << bit % 8);
		if (jset_bytes(j) <= JSET_REAL_BYTES)
			assert_int_equal(jset_verify(j, NULL, &fault), -KILN_E_CHECKSUM);
		free(j);
	}
	free(real);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(minimal_entry_is_sealed_and_verified_with_every_checksum_type),
		cmocka_unit_test(minimal_entry_is_encrypted_and_decrypted),
		cmocka_unit_test(real_encrypted_entry_is_decrypted),
		cmocka_unit_test(flags_are_taken_apart),
		cmocka_unit_test(unknown_checksums_and_big_endian_entries_are_refused),
		cmocka_unit_test(real_entry_says_what_the_document_says),
		cmocka_unit_test(each_type_has_its_rules_and_text),
		cmocka_unit_test(newer_filesystems_may_name_removed_devices),
		cmocka_unit_test(counters_are_decoded),
		cmocka_unit_test(unusable_keys_are_told_apart),
		cmocka_unit_test(sub_entry_past_the_end_ends_the_walk),
		cmocka_unit_test(damaged_entries_are_walked_within_bounds),
		cmocka_unit_test(every_flipped_bit_is_found),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
