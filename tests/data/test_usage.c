/* Counters of space and inodes, from both places where they are kept; generations. */
#include <errno.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "alloc/gens.h"
#include "alloc/usage.h"
#include "format/version.h"
#include "volume.h"

/* --- sub-entries --- */

/* A journal entry, or anything else that is made of sub-entries. */
struct entry {
	struct jset_disk jset;
	uint8_t payload[4096];
	size_t len;
};

static void entry_add(struct entry *e, unsigned type, unsigned btree_id, const void *payload, size_t bytes)
{
	size_t rounded = round_up_u64(bytes, 8);
	struct jset_entry_disk d = { .u64s = le16_of((uint16_t)(rounded / 8)),
				     .btree_id = (uint8_t)btree_id,
				     .type = (uint8_t)type };

	assert_true(e->len + sizeof(d) + rounded <= sizeof(e->payload));
	memcpy(e->payload + e->len, &d, sizeof(d));
	memset(e->payload + e->len + sizeof(d), 0, rounded);
	memcpy(e->payload + e->len + sizeof(d), payload, bytes);
	e->len += sizeof(d) + rounded;
	e->jset.u64s = le32_of((uint32_t)(e->len / 8));
}

/* Write the entry to device 0, in a bucket where nothing else is, and find it as a scan of the journal does. */
static struct journal_location entry_write(struct volume *v, struct entry *e, unsigned nr)
{
	enum { FIRST_BUCKET = 50 };
	static uint8_t stored[8192] __attribute__((aligned(4096)));
	uint64_t bucket_bytes = (uint64_t)v->members[0].m.bucket_sectors * SECTOR_BYTES;
	struct journal_location at = { .seq = nr + 1, .bucket = FIRST_BUCKET + nr, .is_csum_good = true };

	e->jset.seq = le64_of(at.seq);
	jset_seal(&e->jset, CHECKSUM_CRC32C_NONZERO, NULL);
	at.bytes = (uint32_t)jset_bytes(&e->jset);
	at.hash = checksum_compute(CHECKSUM_XXHASH, NULL, (struct nonce){ 0 }, &e->jset, at.bytes).lo;
	memcpy(stored, &e->jset, at.bytes);
	assert_int_equal(device_write(v->members[0].dev, at.bucket * bucket_bytes, stored, sizeof(stored)), 0);
	return at;
}

static void data_usage_add(struct entry *e, uint64_t sectors, const char *row, size_t row_bytes)
{
	uint8_t payload[32] = { 0 };

	le64_store(payload, sectors);
	memcpy(payload + 8, row, row_bytes);
	entry_add(e, JSET_ENTRY_DATA_USAGE, 0, payload, 8 + row_bytes);
}

static void dev_usage_add(struct entry *e, uint32_t dev, uint64_t sb_buckets, uint64_t journal_buckets)
{
	uint8_t payload[24 + DATA_NR_1_4 * 24] = { 0 };

	le32_store(payload, dev);
	le64_store(payload + 24 + DATA_SB * 24, sb_buckets);
	le64_store(payload + 24 + DATA_JOURNAL * 24, journal_buckets);
	le64_store(payload + 24 + DATA_JOURNAL * 24 + 8, journal_buckets * 256);
	entry_add(e, JSET_ENTRY_DEV_USAGE, 0, payload, sizeof(payload));
}

/* The image of 07 §19.5: one device, 2048 buckets of 256 sectors. */
static void one_device(struct volume *v)
{
	v->super.member_nr = v->f.kctx.member_nr = 1;
	v->members[0].m.nbuckets = 2048;
	v->members[0].m.bucket_sectors = v->geometry[0].bucket_sectors = 256;
	v->f.kctx.node_sectors = 256;
	v->super.options[OPT_GC_RESERVE_PERCENT] = 8;
	v->super.kctx = v->f.kctx;
}

static void counters_below_1_9_are_the_last_ones_of_the_journal(void **state)
{
	struct entry entries[3] = { 0 };
	struct journal_location at[3];
	struct journal_entry found[3];
	struct usage u;
	struct volume v;

	volume_init(&v, 1);
	one_device(&v);
	data_usage_add(&entries[0], 999, "\3\1\1\0", 4);
	data_usage_add(&entries[0], 50, "\5\1\1\0", 4);
	dev_usage_add(&entries[0], 0, 1, 1);
	data_usage_add(&entries[1], 2048, "\3\1\1\0", 4);
	data_usage_add(&entries[1], 0, "\2\1\1\0", 4);
	dev_usage_add(&entries[1], 0, 25, 16);
	dev_usage_add(&entries[1], 77, 1000, 1000);	    /* no such device */
	data_usage_add(&entries[1], 5000, "\3\100\1\0", 4); /* more devices than the payload has */
	data_usage_add(&entries[2], 7777, "\3\1\1\0", 4);
	for (unsigned i = 0; i < 3; i++) {
		at[i] = entry_write(&v, &entries[i], i);
		found[i] = (struct journal_entry){
			.locations = &at[i], .location_nr = 1, .is_csum_good = true, .is_ignored = i == 2
		};
	}
	struct journal_state journal = {
		.has_usage = true, .nr_inodes = 2, .entries = found, .entry_nr = 3, .super = &v.super
	};

	assert_int_equal(usage_read(&v.super, &journal, NULL, &u), 0);
	assert_true(u.is_known);
	assert_int_equal(u.capacity_sectors, 477696);
	assert_int_equal(u.hidden_sectors, 10496);
	assert_int_equal(u.used_sectors, 2048);
	assert_int_equal(u.cached_sectors, 50);
	assert_int_equal(u.reserved_sectors, 0);
	assert_int_equal(u.inodes, 2);
	assert_int_equal(u.replicas_nr, 3);
	assert_true(u.devs[0].is_known);
	assert_int_equal(u.devs[0].types[DATA_JOURNAL].sectors, 4096);
	usage_free(&u);

	/* Reservations take some more than what they hold. */
	journal.reserved[1] = 130;
	assert_int_equal(usage_read(&v.super, &journal, NULL, &u), 0);
	assert_int_equal(u.reserved_sectors, 130);
	assert_int_equal(u.used_sectors, 2048 + 130 + 3);
	usage_free(&u);

	/* What claims more than all is all; nothing is free then. */
	journal.reserved[0] = journal.reserved[1] = INT64_MAX;
	journal.reserved[2] = UINT64_MAX;
	assert_int_equal(usage_read(&v.super, &journal, NULL, &u), 0);
	assert_true(u.reserved_sectors == UINT64_MAX);
	assert_true(u.used_sectors == UINT64_MAX);
	assert_int_equal(u.available_sectors, 0);
	usage_free(&u);

	journal.has_usage = false;
	assert_int_equal(usage_read(&v.super, &journal, NULL, &u), 0);
	assert_false(u.is_known);
	usage_free(&u);
	volume_free(&v);
}

/* --- the accounting btree --- */

static void accounting_key(struct volume *v, const uint8_t *name, size_t name_bytes, uint64_t version,
			   const int64_t *counters, unsigned nr, struct bkey *k, uint8_t *value)
{
	uint8_t full[20] = { 0 };

	memcpy(full, name, name_bytes);
	*k = (struct bkey){ .p = accounting_pos(&v->f.kctx, full),
			    .version = { .lo = version },
			    .type = KEY_ACCOUNTING,
			    .value_u64s = (uint8_t)nr };
	for (unsigned i = 0; i < nr; i++)
		le64_store(value + i * 8, (uint64_t)counters[i]);
}

static void accounting_add(struct volume *v, const char *name, size_t name_bytes, uint64_t version, int64_t a,
			   int64_t b)
{
	int64_t counters[2] = { a, b };
	uint8_t value[16];
	struct bkey k;

	accounting_key(v, (const uint8_t *)name, name_bytes, version, counters, 2, &k, value);
	volume_key_add(v, BTREE_ACCOUNTING, k, value, sizeof(value));
}

static void delta_add(struct volume *v, struct entry *e, const char *name, size_t name_bytes, uint64_t version,
		      int64_t a, int64_t b)
{
	struct {
		struct bkey_disk d;
		uint8_t value[16];
	} key;
	int64_t counters[2] = { a, b };
	struct bkey k;

	accounting_key(v, (const uint8_t *)name, name_bytes, version, counters, 2, &k, key.value);
	bkey_store(&key.d, &k);
	entry_add(e, JSET_ENTRY_BTREE_KEYS, BTREE_ACCOUNTING, &key, sizeof(key));
}

static void check_accounting(unsigned version)
{
	struct entry entry = { 0 };
	struct usage u;
	struct volume v;

	volume_init(&v, 1);
	v.f.kctx.version = VERSION_NEWEST_KNOWN;
	v.f.kctx.upgrade_complete = version;
	v.f.kctx.is_newer = true;
	v.members[1].m.bucket_sectors = 100;
	accounting_add(&v, "\0", 1, 50, 10, 0);
	accounting_add(&v, "\1\2", 2, 50, 64, 0);
	accounting_add(&v, "\2\3\1\1\0", 5, 50, 7680, 0);
	accounting_add(&v, "\2\4\2\1\0\1", 6, 50, 1000, 0);
	accounting_add(&v, "\2\5\1\1\3", 5, 50, 33, 0);
	accounting_add(&v, "\3\1\1", 3, 50, 5, 500);
	accounting_add(&v, "\10\1\2\3", 4, 50, 1 << 20, 0); /* of a file: not wanted */
	/* Deltas count if they are newer than the key; a counter may be in the journal only. */
	delta_add(&v, &entry, "\0", 1, 49, 1000, 0);
	delta_add(&v, &entry, "\0", 1, 50, 1000, 0);
	delta_add(&v, &entry, "\0", 1, 51, 3, 0);
	delta_add(&v, &entry, "\0", 1, 52, -1, 0);
	delta_add(&v, &entry, "\2\6\3\2\0\1\2", 7, 60, 128, 0);
	delta_add(&v, &entry, "\2\4\2\1\0\1", 6, 60, -1000, 0);
	delta_add(&v, &entry, "\3\1\2", 3, 60, 2, 200);
	volume_open(&v, 0);
	v.super.geometry[1].bucket_sectors = 100; /* as the member says */
	struct journal_location at = entry_write(&v, &entry, 0);
	struct journal_entry found = { .locations = &at, .location_nr = 1, .is_csum_good = true };
	struct journal_state journal = { .entries = &found, .entry_nr = 1, .super = &v.super };

	assert_int_equal(usage_read(&v.super, &journal, v.f.trees, &u), 0);
	assert_true(u.is_known);
	assert_int_equal(u.inodes, 12);
	assert_int_equal(u.reserved_sectors, 128);
	assert_int_equal(u.used_sectors, 7680 + 128 + (128 + 2));
	assert_int_equal(u.cached_sectors, 33);
	assert_int_equal(u.hidden_sectors, (5 + 2) * 100);
	assert_int_equal(u.devs[1].types[DATA_SB].sectors, 500);
	assert_int_equal(u.replicas_nr, 3); /* the one that became 0 is none any more */
	usage_free(&u);

	/* Cleanly shut down: what is in old journal entries doesn't count. */
	journal.was_clean = true;
	assert_int_equal(usage_read(&v.super, &journal, v.f.trees, &u), 0);
	assert_int_equal(u.inodes, 10);
	assert_int_equal(u.replicas_nr, 3);
	usage_free(&u);
	volume_free(&v);
}

static void counters_from_1_10_are_the_btree_and_newer_deltas(void **state)
{
	check_accounting(VERSION(1, 10));
	check_accounting(VERSION(1, 13));
	check_accounting(VERSION(1, 15));
	check_accounting(VERSION_NEWEST_KNOWN);
}

static void counters_that_cannot_be_read_are_unknown(void **state)
{
	struct journal_state journal = { .was_clean = true };
	struct usage u;
	struct volume v;

	/* Stripped: no accounting btree. */
	volume_init(&v, 1);
	v.f.kctx.version = v.f.kctx.upgrade_complete = VERSION_NEWEST_KNOWN;
	volume_open(&v, 0);
	assert_int_equal(usage_read(&v.super, &journal, v.f.trees, &u), 0);
	assert_false(u.is_known);
	usage_free(&u);
	/* The encoding of 1.9. */
	v.super.kctx.upgrade_complete = VERSION(1, 9);
	assert_int_equal(usage_read(&v.super, &journal, v.f.trees, &u), 0);
	assert_false(u.is_known);
	assert_true(u.capacity_sectors > 0);
	usage_free(&u);
	volume_free(&v);
}

/* --- generations --- */

static void generations_come_from_bucket_gens_or_alloc_or_are_unknown(void **state)
{
	uint8_t gens[256] = { [3] = 9 }, alloc[56] = { [12] = 5 }, gen;
	struct volume v;

	volume_init(&v, 1);
	volume_key_add(&v, BTREE_BUCKET_GENS, (struct bkey){ .p = BPOS(1, 2, 0), .type = KEY_BUCKET_GENS }, gens, 256);
	volume_open(&v, 0);
	assert_int_equal(bucket_gen_lookup(v.f.trees, 1, 2 * 256 + 3, &gen), 1);
	assert_int_equal(gen, 9);
	assert_int_equal(bucket_gen_lookup(v.f.trees, 1, 2 * 256 + 4, &gen), 1);
	assert_int_equal(gen, 0);
	assert_int_equal(bucket_gen_lookup(v.f.trees, 0, 3, &gen), 1);
	assert_int_equal(gen, 0);
	volume_free(&v);

	volume_init(&v, 1);
	volume_key_add(&v, BTREE_ALLOC, (struct bkey){ .p = BPOS(1, 7, 0), .type = KEY_ALLOC_V4 }, alloc, 56);
	volume_open(&v, 0);
	assert_int_equal(bucket_gen_lookup(v.f.trees, 1, 7, &gen), 1);
	assert_int_equal(gen, 5);
	assert_int_equal(bucket_gen_lookup(v.f.trees, 1, 8, &gen), 1);
	assert_int_equal(gen, 0);
	volume_free(&v);

	volume_init(&v, 1);
	volume_open(&v, 0);
	assert_int_equal(bucket_gen_lookup(v.f.trees, 1, 7, &gen), 0);
	volume_free(&v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(counters_below_1_9_are_the_last_ones_of_the_journal),
		cmocka_unit_test(counters_from_1_10_are_the_btree_and_newer_deltas),
		cmocka_unit_test(counters_that_cannot_be_read_are_unknown),
		cmocka_unit_test(generations_come_from_bucket_gens_or_alloc_or_are_unknown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
