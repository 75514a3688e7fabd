/* Inodes: vectors of 04 §1.5 and §1.12, the older forms, times, and one bad key for each rule. */
#include "key_test.h"

#include <sys/stat.h>

#include "format/inode.h"

#define REGULAR_FILE                                                                                            \
	"0700000000000000 cfe99116405b7f91 00003015431a0800 0800000000000000 0600000000000000 0000000000000000" \
	"6f45b74b0f00 6f45b74b0f00 6f45b74b0f00 6f45b74b0f00 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00 0940" \
	"ffd493de5eb0fbd826 000000000000"

#define INODE_POS BPOS(0, 4100, UINT32_MAX)

static struct inode unpack(struct bkey_ref k)
{
	struct inode inode;
	struct fault fault;

	if (inode_unpack(k, &inode, &fault))
		fail_msg("%s: expected %s, found %s", fault.field, fault.expected, fault.found);
	return inode;
}

static void a_regular_file_unpacks_to_what_upstream_wrote(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	struct bkey_ref k = key_of_hex(KEY_INODE_V3, INODE_POS, 0, REGULAR_FILE);

	assert_int_equal(bkey_value_bytes(&k.k), 104);
	assert_key_valid(k, &ctx);
	struct inode inode = unpack(k);
	assert_true(inode.inum == 4100);
	assert_int_equal(inode.snapshot, UINT32_MAX);
	assert_true(inode.journal_seq == 7);
	assert_true(inode.hash_seed == 0x917f5b401691e9cf);
	assert_int_equal(inode.flags, 0);
	assert_int_equal(inode.str_hash, 3);
	assert_int_equal(inode.mode, 0100644);
	assert_true(inode.sectors == 8);
	assert_true(inode.size == 6);
	assert_true(inode.atime == 2052962859 && inode.ctime == 2052962859);
	assert_true(inode.mtime == 2052962859 && inode.otime == 2052962859);
	assert_int_equal(inode.nlink, 1);
	assert_int_equal(inode_nlink(&inode), 2);
	assert_true(inode.dir == 4098);
	assert_true(inode.dir_offset == 2799263903335224276);
	assert_int_equal(inode.subvol, 0);
	assert_int_equal(inode.fields_set, 0);

	uint8_t value[INODE_V3_BYTES_MAX];
	assert_int_equal(inode_pack(&inode, value), 104);
	assert_memory_equal(value, k.value, 104);
}

static void inodes_print_as_upstream_does(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);

	assert_value_text(
		key_of_hex(KEY_INODE_V3, INODE_POS, 0, REGULAR_FILE), &ctx,
		"mode=100644 flags= (15300000) journal_seq=7 bi_size=6 bi_sectors=8 bi_version=0 "
		"bi_atime=2052962859 bi_ctime=2052962859 bi_mtime=2052962859 bi_otime=2052962859 bi_uid=0 bi_gid=0 "
		"bi_nlink=1 bi_generation=0 bi_dev=0 bi_data_checksum=0 bi_compression=0 bi_project=0 "
		"bi_background_compression=0 bi_data_replicas=0 bi_promote_target=0 bi_foreground_target=0 "
		"bi_background_target=0 bi_erasure_code=0 bi_fields_set=0 bi_dir=4098 "
		"bi_dir_offset=2799263903335224276 bi_subvol=0 bi_parent_subvol=0 bi_nocow=0");
	assert_value_text(key_of_hex(KEY_INODE_GENERATION, INODE_POS, 0, "0100000000000000"), &ctx, "generation: 1");
}

/* The flag words of 04 §1.12. */
static void flag_words_pack_and_unpack(void **state)
{
	static const struct {
		const char *word;
		struct inode inode;
	} cases[] = {
		{ "80003004431a0800", { .flags = INODE_UNLINKED, .str_hash = 3, .mode = 0100644, .otime = 5 } },
		{ "00003016d31e0400", { .str_hash = 3, .mode = 040755, .subvol = 1 } },
	};

	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		uint8_t value[INODE_V3_BYTES_MAX], word[8];
		size_t bytes = inode_pack(&cases[i].inode, value);

		hex_decode(cases[i].word, word, sizeof(word));
		assert_memory_equal(value + 16, word, 8);

		struct inode inode = unpack(key_of_bytes(KEY_INODE_V3, INODE_POS, 0, value, bytes));
		assert_int_equal(inode.flags, cases[i].inode.flags);
		assert_int_equal(inode.str_hash, 3);
		assert_int_equal(inode.mode, cases[i].inode.mode);
		assert_int_equal(inode.subvol, cases[i].inode.subvol);
		assert_true(inode.otime == cases[i].inode.otime);
	}
}

static struct inode random_inode(struct rng *rng)
{
	struct inode inode = { .inum = 4100, .snapshot = UINT32_MAX };

	/* Each field is 0, small or anything, so that lists end at every field and numbers have every length. */
#define R(bits) (rng_below(rng, 3) ? rng_u64(rng) >> (64 - (bits)) >> rng_below(rng, (bits)) : 0)
	inode.journal_seq = R(64), inode.hash_seed = R(64), inode.sectors = R(64), inode.size = R(64);
	inode.version = R(64), inode.flags = (uint32_t)R(20), inode.str_hash = (uint8_t)R(2),
	inode.mode = (uint16_t)R(16);
	inode.atime = R(64), inode.ctime = R(64), inode.mtime = R(64), inode.otime = R(64);
	inode.uid = (uint32_t)R(32), inode.gid = (uint32_t)R(32), inode.nlink = (uint32_t)R(32);
	inode.generation = (uint32_t)R(32), inode.dev = (uint32_t)R(32);
	for (unsigned i = 0; i < INODE_OPT_NR; i++)
		inode.opts[i] = (uint32_t)R(8);
	inode.opts[INODE_OPT_PROJECT] = (uint32_t)R(32);
	inode.opts[INODE_OPT_BACKGROUND_TARGET] = (uint32_t)R(16);
	inode.fields_set = (uint16_t)R(16), inode.dir = R(64), inode.dir_offset = R(64);
	inode.subvol = (uint32_t)R(32), inode.parent_subvol = (uint32_t)R(32);
	if (rng_below(rng, 2))
		inode.depth = (uint32_t)R(32);
	else
		inode.opts[INODE_OPT_INODES_32BIT] = inode.opts[INODE_OPT_CASEFOLD] = 0;
#undef R
	return inode;
}

static void assert_inodes_equal(const struct inode *a, const struct inode *b)
{
	assert_true(a->inum == b->inum && a->snapshot == b->snapshot);
	assert_true(a->journal_seq == b->journal_seq && a->hash_seed == b->hash_seed && a->version == b->version);
	assert_true(a->flags == b->flags && a->str_hash == b->str_hash && a->mode == b->mode);
	assert_true(a->sectors == b->sectors && a->size == b->size);
	assert_true(a->atime == b->atime && a->ctime == b->ctime && a->mtime == b->mtime && a->otime == b->otime);
	assert_true(a->uid == b->uid && a->gid == b->gid && a->nlink == b->nlink);
	assert_true(a->generation == b->generation && a->dev == b->dev && a->fields_set == b->fields_set);
	assert_memory_equal(a->opts, b->opts, sizeof(a->opts));
	assert_true(a->dir == b->dir && a->dir_offset == b->dir_offset && a->depth == b->depth);
	assert_true(a->subvol == b->subvol && a->parent_subvol == b->parent_subvol);
}

static void any_inode_survives_packing(void **state)
{
	struct rng rng = test_rng();

	for (unsigned i = 0; i < 3000; i++) {
		struct inode inode = random_inode(&rng);
		uint8_t value[INODE_V3_BYTES_MAX], again[INODE_V3_BYTES_MAX];
		size_t bytes = inode_pack(&inode, value);

		assert_int_equal(bytes % 8, 0);
		assert_true(bytes <= sizeof(value));
		void *exact = exact_copy(value, bytes);
		struct bkey_ref k = { .k = { .p = INODE_POS, .type = KEY_INODE_V3, .value_u64s = (uint8_t)(bytes / 8) },
				      .value = exact };
		struct inode back = unpack(k);
		assert_inodes_equal(&inode, &back);
		assert_int_equal(inode_pack(&back, again), bytes);
		assert_memory_equal(again, value, bytes);
		free(exact);
	}
}

static void every_cut_of_the_fields_is_noticed(void **state)
{
	struct bkey_ref whole = key_of_hex(KEY_INODE_V3, INODE_POS, 0, REGULAR_FILE);
	struct fault fault;
	struct inode inode;

	for (size_t bytes = 0; bytes < 104; bytes += 8)
		assert_int_equal(
			inode_unpack(key_of_bytes(KEY_INODE_V3, INODE_POS, 0, whole.value, bytes), &inode, &fault),
			-KILN_E_INVALID);
}

static void fields_of_later_writers_are_ignored(void **state)
{
	struct key_context ctx = test_context(VERSION_NEWEST_KNOWN);
	/* 28 fields: the 24 of 1.4 (all but one 0), depth 3, inodes_32bit 1, casefold 2, one that isn't known. */
	struct bkey_ref k = key_of_hex(
		KEY_INODE_V3, INODE_POS, 0,
		"0000000000000000 0000000000000000 0000301cd31e0400 0000000000000000 0000000000000000 0000000000000000"
		"0000 0000 0000 0000 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 06 02 04 0a");

	assert_key_valid(k, &ctx);
	struct inode inode = unpack(k);
	assert_int_equal(inode.mode, 040755);
	assert_int_equal(inode.depth, 3);
	assert_int_equal(inode.opts[INODE_OPT_INODES_32BIT], 1);
	assert_int_equal(inode.opts[INODE_OPT_CASEFOLD], 2);
}

/* Fields as in inode_v3, with bi_size 6 and bi_sectors 8 behind the times. */
#define OLD_FIELDS "02 00 04 00 06 00 08 00 0c 10 14 18"

static void older_forms_unpack(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);
	/* nr_fields 8, hash type 2; mode 0100600 */
	struct bkey_ref v2 = key_of_hex(KEY_INODE_V2, INODE_POS, 0,
					"0900000000000000 1122334455667788 0000200800000000 8081" OLD_FIELDS
					"00000000 000000000000");
	struct bkey_ref v1 =
		key_of_hex(KEY_INODE, INODE_POS, 0, "1122334455667788 00002088 8081" OLD_FIELDS "000000000000");

	assert_key_valid(v2, &ctx);
	assert_key_valid(v1, &ctx);
	for (unsigned i = 0; i < 2; i++) {
		struct inode inode = unpack(i ? v1 : v2);

		assert_true(inode.journal_seq == (i ? 0 : 9));
		assert_true(inode.hash_seed == 0x8877665544332211);
		assert_int_equal(inode.str_hash, 2);
		assert_int_equal(inode.mode, 0100600);
		assert_true(inode.atime == 1 && inode.ctime == 2 && inode.mtime == 3 && inode.otime == 4);
		assert_true(inode.size == 6 && inode.sectors == 8);
		assert_int_equal(inode.uid, 10);
		assert_int_equal(inode.gid, 12);
	}
}

static void times_convert_both_ways(void **state)
{
	struct key_context ctx = test_context(VERSION_1_4);

	ctx.time_base_ns = 1795198733724247639;
	assert_true(inode_time_encode(&ctx, (struct inode_time){ .sec = 978307200 }) == 17629852539985303977ull);
	struct inode_time t = inode_time_decode(&ctx, 17629852539985303977ull);
	assert_true(t.sec == 978307200 && t.nsec == 0);

	static const uint32_t precisions[] = { 1, 1000, 333, 1000000000 };
	static const struct inode_time times[] = {
		{ 0, 0 }, { -1, 999000000 }, { -5000000000, 1000 }, { 1795198733, 5000 }
	};
	for (size_t p = 0; p < ARRAY_NR(precisions); p++)
		for (size_t i = 0; i < ARRAY_NR(times); i++) {
			/* Units that don't divide a second, or are whole seconds, lose what is smaller. */
			ctx.time_precision_ns = precisions[p];
			t = inode_time_decode(&ctx, inode_time_encode(&ctx, times[i]));
			if (precisions[p] == 333)
				continue;
			assert_true(t.sec == times[i].sec);
			assert_int_equal(t.nsec, times[i].nsec / precisions[p] * precisions[p]);
		}
	/* What can't be said becomes the nearest that can. */
	ctx.time_precision_ns = 1;
	t = inode_time_decode(&ctx, inode_time_encode(&ctx, (struct inode_time){ .sec = 16725225600 }));
	assert_true(t.sec == 9223372036 && t.nsec == 854775807);
	t = inode_time_decode(&ctx, inode_time_encode(&ctx, (struct inode_time){ .sec = INT64_MIN, .nsec = 1 }));
	assert_true(t.sec == -9223372037 && t.nsec == 145224192);
	ctx.time_precision_ns = 0;
	t = inode_time_decode(&ctx, UINT64_MAX);
	assert_true(t.nsec < 1000000000);
}

static void link_counts_and_devices_are_as_stat_shows_them(void **state)
{
	uint32_t major, minor;

	assert_int_equal(inode_nlink(&(struct inode){ .mode = S_IFREG }), 1);
	assert_int_equal(inode_nlink(&(struct inode){ .mode = S_IFDIR, .nlink = 3 }), 5);
	assert_int_equal(inode_nlink(&(struct inode){ .mode = S_IFREG, .flags = INODE_UNLINKED }), 0);
	assert_int_equal(inode_nlink(&(struct inode){ .mode = S_IFDIR, .nlink = UINT32_MAX }), UINT32_MAX);

	inode_dev(&(struct inode){ .dev = 0x1030012c }, &major, &minor);
	assert_int_equal(major, 259);
	assert_int_equal(minor, 300);
	inode_dev(&(struct inode){ .dev = 0x11032c }, &major, &minor); /* user-space form of 259:300 */
	assert_int_equal(major, 259);
	assert_int_equal(minor, 300);
	inode_dev(&(struct inode){ .dev = 0x0801 }, &major, &minor); /* user-space form of 8:1 */
	assert_int_equal(major, 8);
	assert_int_equal(minor, 1);
}

/* Fixed part with a flags word, no seeds, sizes or times, then the variable fields. */
#define FIXED(word)   "0000000000000000 0000000000000000" word "0000000000000000 0000000000000000 0000000000000000"
#define TIMES_UID_GID "0000000000000000 0000"

static const struct bad_key bad_keys[] = {
	{ "position inode", 191, SAME_WHEN_NEWER, KEY_INODE_V3, BPOS(1, 4100, 1), 0, FIXED("0000300003000800") },
	{ "position inode of generation", 191, SAME_WHEN_NEWER, KEY_INODE_GENERATION, BPOS(1, 4100, 1), 0,
	  "0100000000000000" },
	{ "reserved number", 192, SAME_WHEN_NEWER, KEY_INODE_V3, BPOS(0, 4095, 1), 0, FIXED("0000300003000800") },
	{ "fields missing", 193, SAME_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0, FIXED("0000300103000800") },
	{ "time with a high part", 193, SAME_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0,
	  FIXED("0000300103000800") "0202000000000000" },
	{ "uid of 33 bits", 193, SAME_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0,
	  FIXED("0000300503000800") "0000000000000000 0f00000020000000" },
	{ "old number encoding", 193, SAME_WHEN_NEWER, KEY_INODE, INODE_POS, 0, "1122334455667788 00002000 8081 0000" },
	{ "hash type 4", 194, SAME_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0, FIXED("0000400003000800") },
	{ "fields start at 5", 195, SAME_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0, FIXED("0000308002000800") },
	{ "fields start past the value", 195, SAME_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0, FIXED("0000308003000800") },
	{ "unlinked with links", 198, SAME_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0,
	  FIXED("80003007031a0800") TIMES_UID_GID "02" },
	{ "checksum option 5", 199, FINE_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0,
	  FIXED("0000300a03000800") TIMES_UID_GID "00 00 00 0a" },
	{ "compression type 4", 200, FINE_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0,
	  FIXED("0000300b03000800") TIMES_UID_GID "00 00 00 00 0a" },
	{ "level without compression", 200, FINE_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0,
	  FIXED("0000300b03000800") TIMES_UID_GID "00 00 00 00 22" },
	{ "background compression type 15", 200, FINE_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0,
	  FIXED("0000300d03000800") TIMES_UID_GID "00 00 00 00 00 00 20" },
	{ "subvolume root that is a file", 201, SAME_WHEN_NEWER, KEY_INODE_V3, INODE_POS, 0,
	  FIXED("0000301603000800") "0000000000000000 0000000000000000000000000000000000 02" },
};

static void each_rule_is_enforced(void **state) { assert_bad_keys(bad_keys, ARRAY_NR(bad_keys)); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_regular_file_unpacks_to_what_upstream_wrote),
		cmocka_unit_test(inodes_print_as_upstream_does),
		cmocka_unit_test(flag_words_pack_and_unpack),
		cmocka_unit_test(any_inode_survives_packing),
		cmocka_unit_test(every_cut_of_the_fields_is_noticed),
		cmocka_unit_test(fields_of_later_writers_are_ignored),
		cmocka_unit_test(older_forms_unpack),
		cmocka_unit_test(times_convert_both_ways),
		cmocka_unit_test(link_counts_and_devices_are_as_stat_shows_them),
		cmocka_unit_test(each_rule_is_enforced),
	};

	return cmocka_run_group_tests_name("inode", tests, NULL, test_keys_free);
}
