/* What is bad is told exactly, and read from elsewhere if there is an elsewhere: replicas, stripes. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "format/error_ids.h"
#include "format/stripe.h"
#include "format/version.h"
#include "volume.h"

enum { FILE_SECTORS = 1024, FILE_BYTES = FILE_SECTORS * SECTOR_BYTES };

static const struct data_file whole_file = { VOLUME_INUM, VOLUME_SNAPSHOT, FILE_BYTES };

static void *bytes_alloc(size_t len)
{
	void *p = malloc(len);

	assert_non_null(p);
	return p;
}

/* A file of extents of 1..100 sectors with replicas on @devs; content in @bytes. Fills in where each extent begins. */
static unsigned file_make(struct volume *v, uint8_t *bytes, uint32_t devs, const unsigned *csum_types, unsigned csum_nr,
			  uint32_t *begins, struct stored_region *regions)
{
	unsigned nr = 0;

	for (uint32_t pos = 0; pos < FILE_SECTORS; nr++) {
		uint32_t n = min(1 + (uint32_t)rng_below(&v->rng, 100), FILE_SECTORS - pos);
		static const unsigned compressions[] = { COMPRESSION_NONE, COMPRESSION_LZ4, COMPRESSION_ZSTD };
		struct region_spec spec = {
			.csum_type = csum_types[rng_below(&v->rng, csum_nr)],
			.compression = compressions[rng_below(&v->rng, 3)],
			.devs = devs,
		};

		fill_text(&v->rng, bytes + pos * SECTOR_BYTES, n * SECTOR_BYTES);
		begins[nr] = pos;
		regions[nr] = volume_region_store(v, &spec, bytes + pos * SECTOR_BYTES, n);
		volume_region_add(v, BTREE_EXTENTS, &regions[nr], pos, 0, n);
		pos += n;
	}
	begins[nr] = FILE_SECTORS;
	return nr;
}

static const unsigned csum_types_all[] = { CHECKSUM_CRC32C_NONZERO,
					   CHECKSUM_CRC64_NONZERO,
					   CHECKSUM_CHACHA20_POLY1305_80,
					   CHECKSUM_CHACHA20_POLY1305_128,
					   CHECKSUM_CRC32C,
					   CHECKSUM_CRC64,
					   CHECKSUM_XXHASH };

static void check_one_bad_replica(uint64_t seed)
{
	uint8_t *bytes = bytes_alloc(FILE_BYTES), *buf = bytes_alloc(FILE_BYTES);
	uint32_t begins[FILE_SECTORS + 1];
	struct stored_region *regions = bytes_alloc(FILE_SECTORS * sizeof(*regions));
	struct damage_list damage = { 0 };
	struct data_stats stats;
	struct volume v;

	volume_init(&v, seed);
	file_make(&v, bytes, 1 << 0 | 1 << 3, csum_types_all, ARRAY_NR(csum_types_all), begins, regions);
	volume_fault(&v, seed % 2 ? 0 : 3, seed % 4 < 2 ? FAULT_BITFLIP : FAULT_ERROR, 0, 0, 700000);
	volume_open(&v, 0);
	for (unsigned i = 0; i < 30; i++) {
		uint64_t offset = i ? rng_below(&v.rng, FILE_BYTES) : 0;
		size_t len = i ? 1 + (size_t)rng_below(&v.rng, FILE_BYTES - offset) : FILE_BYTES;

		assert_int_equal(data_read(v.data, &whole_file, offset, buf, len, damage_note, &damage), len);
		assert_memory_equal(buf, bytes + offset, len);
	}
	assert_int_equal(damage.nr, 0);
	data_stats(v.data, &stats);
	assert_true(stats.retries_csum + stats.retries_io > 0);
	assert_int_equal(v.reports[REPORT_RECOVERED], stats.retries_csum + stats.retries_io);
	assert_int_equal(v.reports[REPORT_DAMAGE], 0);
	assert_int_equal(v.last_id,
			 seed % 4 < 2 ? ERROR_data_read_csum_err_recovered : ERROR_data_read_io_err_recovered);
	assert_string_equal(v.last_device, seed % 2 ? "member 0" : "member 3");
	if (seed % 4 < 2)
		assert_string_not_equal(v.last_expected, v.last_found);
	volume_free(&v);
	free(bytes);
	free(buf);
	free(regions);
}

static void another_replica_serves_and_the_bad_one_is_reported(void **state) { seeds_run(check_one_bad_replica, 12); }

static void check_all_replicas_bad(uint64_t seed)
{
	uint8_t *bytes = bytes_alloc(FILE_BYTES), *buf = bytes_alloc(FILE_BYTES);
	uint32_t begins[FILE_SECTORS + 1];
	struct stored_region *regions = bytes_alloc(FILE_SECTORS * sizeof(*regions));
	struct volume v;

	volume_init(&v, seed);
	unsigned nr = file_make(&v, bytes, 3, csum_types_all, ARRAY_NR(csum_types_all), begins, regions);
	unsigned bad = (unsigned)rng_below(&v.rng, nr);
	for (unsigned dev = 0; dev < 2; dev++)
		volume_fault(&v, dev, dev == seed % 2 ? FAULT_BITFLIP : FAULT_ERROR, regions[bad].ptrs[dev].sector,
			     regions[bad].ptrs[dev].sector + 1, 1000000);
	volume_open(&v, 0);
	uint64_t bad_begin = begins[bad] * SECTOR_BYTES, bad_end = begins[bad + 1] * SECTOR_BYTES;
	memset(bytes + bad_begin, 0, bad_end - bad_begin);

	for (unsigned i = 0; i < 20; i++) {
		uint64_t offset = i ? rng_below(&v.rng, FILE_BYTES) : 0;
		size_t len = i ? 1 + (size_t)rng_below(&v.rng, FILE_BYTES - offset) : FILE_BYTES;
		uint64_t begin = max(offset, bad_begin), end = min(offset + len, bad_end);
		struct damage_list damage = { 0 };

		memset(buf, 0xa5, FILE_BYTES);
		assert_int_equal(data_read(v.data, &whole_file, offset, buf, len, damage_note, &damage), len);
		assert_memory_equal(buf, bytes + offset, len);
		assert_int_equal(damage.nr, begin < end);
		if (begin < end) {
			assert_int_equal(damage.ranges[0].offset, begin);
			assert_int_equal(damage.ranges[0].len, end - begin);
		}
	}
	assert_true(v.reports[REPORT_DAMAGE] >= 2);
	assert_int_equal(v.reports[REPORT_RECOVERED], 0);
	volume_free(&v);
	free(bytes);
	free(buf);
	free(regions);
}

static void exactly_the_unreadable_extent_is_damage_and_zero(void **state) { seeds_run(check_all_replicas_bad, 12); }

/* --- without checksums --- */

enum { PLAIN_SECTORS = 3000, PLAIN_BYTES = PLAIN_SECTORS * SECTOR_BYTES, BAD_MAX = 12 };

static const struct data_file plain_file = { VOLUME_INUM, VOLUME_SNAPSHOT, PLAIN_BYTES };

/* Bad sectors of each of two devices that have a copy of the same file, and which of the file's no device can give. */
struct plain_model {
	uint8_t bytes[PLAIN_BYTES], is_bad[2][PLAIN_SECTORS];
};

static bool is_lost(const struct plain_model *m, uint64_t sector)
{
	return m->is_bad[0][sector] && m->is_bad[1][sector];
}

static void plain_make(struct volume *v, struct plain_model *m, uint64_t seed)
{
	struct region_spec spec = { .devs = 3 };

	memset(m->is_bad, 0, sizeof(m->is_bad));
	volume_init(v, seed);
	fill_random(&v->rng, m->bytes, PLAIN_BYTES);
	struct stored_region r = volume_region_store(v, &spec, m->bytes, PLAIN_SECTORS);
	volume_region_add(v, BTREE_EXTENTS, &r, 0, 0, PLAIN_SECTORS);
	for (unsigned i = 0; i < BAD_MAX; i++) {
		uint64_t begin = rng_below(&v->rng, PLAIN_SECTORS), end = begin + 1 + rng_below(&v->rng, 4) / 3 * 20;

		end = min(end, (uint64_t)PLAIN_SECTORS);
		/* Some are bad on both. */
		for (unsigned dev = 0; dev < 2; dev++) {
			if (i % 3 != 2 && i % 3 != dev)
				continue;
			volume_fault(v, dev, FAULT_ERROR, r.ptrs[dev].sector + begin, r.ptrs[dev].sector + end,
				     1000000);
			memset(m->is_bad[dev] + begin, 1, end - begin);
		}
	}
	volume_open(v, 0);
}

/* Read, and see that exactly the sectors that nobody can give are told, and all others are right. */
static void plain_check(struct volume *v, const struct plain_model *m, uint64_t offset, size_t len, uint8_t *buf)
{
	struct damage_list damage = { 0 };
	uint64_t at = offset, end = offset + len;
	unsigned nr = 0;

	memset(buf, 0xa5, len);
	assert_int_equal(data_read(v->data, &plain_file, offset, buf, len, damage_note, &damage), len);
	while (at < end) {
		uint64_t from = at;
		bool lost = is_lost(m, at / SECTOR_BYTES);

		while (at < end && is_lost(m, at / SECTOR_BYTES) == lost)
			at = min(end, (at / SECTOR_BYTES + 1) * SECTOR_BYTES);
		if (!lost) {
			assert_memory_equal(buf + (from - offset), m->bytes + from, at - from);
			continue;
		}
		for (uint64_t i = from; i < at; i++)
			assert_int_equal(buf[i - offset], 0);
		assert_true(nr < damage.nr);
		assert_int_equal(damage.ranges[nr].offset, from);
		assert_int_equal(damage.ranges[nr++].len, at - from);
	}
	assert_int_equal(nr, damage.nr);
}

static void check_plain_blocks(uint64_t seed)
{
	struct plain_model *m = bytes_alloc(sizeof(*m));
	uint8_t *buf = bytes_alloc(PLAIN_BYTES + 8);
	struct volume v;

	plain_make(&v, m, seed);
	plain_check(&v, m, 0, PLAIN_BYTES, buf);
	assert_true(v.reports[REPORT_DAMAGE] > 0);
	for (unsigned i = 0; i < 30; i++) {
		uint64_t offset = rng_below(&v.rng, PLAIN_BYTES);

		plain_check(&v, m, offset, 1 + (size_t)rng_below(&v.rng, PLAIN_BYTES - offset),
			    buf + rng_below(&v.rng, 8));
	}
	assert_true(v.reports[REPORT_RECOVERED] > 0);
	volume_free(&v);
	free(m);
	free(buf);
}

static void without_checksums_exactly_the_unreadable_blocks_are_damage(void **state)
{
	seeds_run(check_plain_blocks, 20);
}

/* Reads beyond those that a healthy file takes, for one bad place of @sectors on both devices. */
static uint64_t reads_for(uint64_t begin, uint64_t sectors, uint64_t *damaged_bytes)
{
	struct region_spec spec = { .devs = 3 };
	uint8_t *bytes = bytes_alloc(PLAIN_BYTES);
	struct data_stats before, after;
	struct volume v;

	volume_init(&v, 1);
	fill_random(&v.rng, bytes, PLAIN_BYTES);
	struct stored_region r = volume_region_store(&v, &spec, bytes, PLAIN_SECTORS);
	volume_region_add(&v, BTREE_EXTENTS, &r, 0, 0, PLAIN_SECTORS);
	volume_open(&v, 0);
	assert_int_equal(data_read(v.data, &plain_file, 0, bytes, PLAIN_BYTES, NULL, NULL), PLAIN_BYTES);
	data_stats(v.data, &before);
	for (unsigned dev = 0; dev < 2; dev++)
		volume_fault(&v, dev, FAULT_ERROR, r.ptrs[dev].sector + begin, r.ptrs[dev].sector + begin + sectors,
			     1000000);
	assert_int_equal(data_read(v.data, &plain_file, 0, bytes, PLAIN_BYTES, NULL, NULL), PLAIN_BYTES);
	data_stats(v.data, &after);
	*damaged_bytes = after.damaged_bytes;
	/* Each that failed was counted. */
	assert_true(after.retries_io > 0);
	volume_free(&v);
	free(bytes);
	return after.ios - 2 * before.ios;
}

static void a_dying_disk_is_asked_a_bounded_number_of_times(void **state)
{
	enum { LOG = 11 }; /* parts of a MiB, down to a sector */
	uint64_t damaged;

	/* A bad place costs what finding it takes. */
	assert_true(reads_for(777, 1, &damaged) <= 2 * 3 * LOG);
	assert_int_equal(damaged, SECTOR_BYTES);
	/* A whole MiB without a good block: each block once, besides. */
	assert_true(reads_for(0, 2048, &damaged) <= 2 * (2048 + LOG));
	assert_int_equal(damaged, 2048 * SECTOR_BYTES);
}

/* An extent whose key breaks a rule is not a hole. */
static void an_extent_with_a_bad_key_is_damage(void **state)
{
	enum { SECTORS = 16, LEN = SECTORS * SECTOR_BYTES };
	static const struct data_file file = { VOLUME_INUM, VOLUME_SNAPSHOT, 3 * LEN };
	uint8_t bytes[3 * LEN], buf[3 * LEN];
	struct region_spec spec = { .csum_type = CHECKSUM_CRC32C, .devs = 1 };
	struct damage_list damage = { 0 };
	struct volume v;
	uint64_t found;

	volume_init(&v, 1);
	fill_text(&v.rng, bytes, sizeof(bytes));
	for (unsigned i = 0; i < 3; i++) {
		struct stored_region r = volume_region_store(&v, &spec, bytes + i * LEN, SECTORS);
		if (i == 1)
			volume_extent_add(&v, KEY_EXTENT, i * SECTORS, SECTORS, NULL, 0); /* no pointer */
		else
			volume_region_add(&v, BTREE_EXTENTS, &r, i * SECTORS, 0, SECTORS);
	}
	volume_open(&v, 0);
	memset(bytes + LEN, 0, LEN);

	assert_int_equal(data_read(v.data, &file, 0, buf, sizeof(buf), damage_note, &damage), sizeof(buf));
	assert_memory_equal(buf, bytes, sizeof(buf));
	assert_int_equal(damage.nr, 1);
	assert_int_equal(damage.ranges[0].offset, LEN);
	assert_int_equal(damage.ranges[0].len, LEN);
	assert_int_equal(data_seek(v.data, &file, LEN, true, &found), 0);
	assert_int_equal(found, LEN);
	volume_free(&v);
}

/* 06 §4.2, §10: a bucket that was reused holds something else. Where there is a checksum, that tells. */
static void stale_pointers_without_checksum_are_not_read(void **state)
{
	enum { SECTORS = 16, LEN = SECTORS * SECTOR_BYTES };
	static const struct data_file file = { VOLUME_INUM, VOLUME_SNAPSHOT, 2 * LEN };
	uint8_t gens[256] = { 0 }, bytes[2 * LEN], buf[2 * LEN];
	struct damage_list damage = { 0 };
	struct volume v;

	volume_init(&v, 2);
	fill_random(&v.rng, bytes, sizeof(bytes));
	for (unsigned i = 0; i < 2; i++) {
		struct region_spec spec = { .csum_type = i ? CHECKSUM_CRC32C : CHECKSUM_NONE, .devs = 1 };
		struct stored_region r = volume_region_store(&v, &spec, bytes + i * LEN, SECTORS);

		volume_region_add(&v, BTREE_EXTENTS, &r, i * SECTORS, 0, SECTORS);
		gens[r.ptrs[0].sector / VOLUME_BUCKET_SECTORS] = 1;
	}
	volume_key_add(&v, BTREE_BUCKET_GENS, (struct bkey){ .p = BPOS(0, 0, 0), .type = KEY_BUCKET_GENS }, gens,
		       sizeof(gens));
	volume_open(&v, 0);
	memset(bytes, 0, LEN);

	assert_int_equal(data_read(v.data, &file, 0, buf, sizeof(buf), damage_note, &damage), sizeof(buf));
	assert_memory_equal(buf, bytes, sizeof(buf));
	assert_int_equal(damage.nr, 1);
	assert_int_equal(damage.ranges[0].offset, 0);
	assert_int_equal(damage.ranges[0].len, LEN);
	assert_int_equal(v.last_id, ERROR_stale_dirty_ptr);
	volume_free(&v);
}

static void check_single(void (*add)(struct volume *v), uint32_t version, int expected_damage)
{
	enum { LEN = 16 * SECTOR_BYTES };
	struct data_file file = { VOLUME_INUM, VOLUME_SNAPSHOT, LEN };
	uint8_t buf[LEN], zeroes[LEN] = { 0 };
	struct damage_list damage = { 0 };
	struct volume v;

	volume_init(&v, 5);
	v.f.kctx.version = v.f.kctx.upgrade_complete = version;
	v.f.kctx.is_newer = version > VERSION_1_4;
	add(&v);
	volume_open(&v, 0);
	memset(buf, 0xa5, sizeof(buf));
	assert_int_equal(data_read(v.data, &file, 0, buf, LEN, damage_note, &damage), LEN);
	assert_memory_equal(buf, zeroes, LEN);
	assert_int_equal(damage.nr, expected_damage);
	assert_int_equal(v.reports[REPORT_DAMAGE] > 0, expected_damage);
	if (expected_damage) {
		assert_int_equal(damage.ranges[0].offset, 0);
		assert_int_equal(damage.ranges[0].len, LEN);
	}
	volume_free(&v);
}

static void add_error(struct volume *v) { volume_extent_add(v, KEY_ERROR, 0, 16, NULL, 0); }

static void add_reflink_to_nothing(struct volume *v)
{
	uint8_t value[16] = { 100 };

	volume_extent_add(v, KEY_REFLINK_P, 0, 16, value, 16);
}

static void add_reflink_to_error(struct volume *v)
{
	struct bkey k = { .p = BPOS(0, 200, 0), .size = 150, .type = KEY_ERROR };

	add_reflink_to_nothing(v);
	volume_key_add(v, BTREE_REFLINK, k, NULL, 0);
}

static void add_unknown_type(struct volume *v) { volume_extent_add(v, 200, 0, 16, NULL, 0); }

static void add_poisoned(struct volume *v)
{
	uint8_t data[16 * SECTOR_BYTES], value[24];
	struct stored_region r =
		volume_region_store(v, &(struct region_spec){ .devs = 1 }, memset(data, 'x', sizeof(data)), 16);

	le64_store(value, 1 << 6 | 1 << 7);
	memcpy(value + 8, r.value, r.value_bytes);
	volume_extent_add(v, KEY_EXTENT, 0, 16, value, 8 + r.value_bytes);
}

static void add_on_missing_devices(struct volume *v)
{
	uint8_t value[16];

	extent_ptr_store(value, &(struct extent_ptr){ .dev = 200, .sector = 100 });
	extent_ptr_store(value + 8, &(struct extent_ptr){ .dev = DEV_NONE, .sector = 100 });
	volume_extent_add(v, KEY_EXTENT, 0, 16, value, 16);
}

static void add_cached_on_missing_device(struct volume *v)
{
	uint8_t value[8];

	extent_ptr_store(value, &(struct extent_ptr){ .dev = 200, .sector = 100, .is_cached = true });
	volume_extent_add(v, KEY_EXTENT, 0, 16, value, 8);
}

static void what_is_known_to_be_lost_is_damage(void **state)
{
	check_single(add_error, VERSION_1_4, 1);
	check_single(add_reflink_to_nothing, VERSION_1_4, 1);
	check_single(add_reflink_to_error, VERSION_NEWEST_KNOWN, 1);
	check_single(add_unknown_type, VERSION_NEWEST_KNOWN, 1);
	check_single(add_poisoned, VERSION_NEWEST_KNOWN, 1);
	check_single(add_on_missing_devices, VERSION_NEWEST_KNOWN, 1);
	check_single(add_cached_on_missing_device, VERSION_NEWEST_KNOWN, 0);
}

/* --- unreadable btree nodes --- */

/* Which leaf to damage: the one that @skip others come before. */
struct leaf_choice {
	struct fixture *f;
	unsigned skip;
	struct btree_node_info found;
};

static int leaf_damage(void *ctx, const struct btree_node_info *info, int err)
{
	struct leaf_choice *choice = ctx;

	if (info->level || choice->skip--)
		return 0;
	choice->found = *info;
	choice->f->nodes[fixture_node_idx(&info->ptr)].copy[0][100] ^= 0x10;
	return 1;
}

/*
 * Extents of 16 sectors with holes between them. Where a leaf is lost, nothing is known between the last extent before
 * it and its end.
 */
static void check_damaged_leaf(uint64_t seed)
{
	enum { SECTORS = 16, STEP_BYTES = SECTORS * SECTOR_BYTES };
	uint8_t *bytes = bytes_alloc(FILE_BYTES), *buf = bytes_alloc(FILE_BYTES);
	struct damage_list damage = { 0 };
	struct volume v;

	volume_init(&v, seed);
	memset(bytes, 0, FILE_BYTES);
	for (uint64_t pos = 0; pos < FILE_SECTORS; pos += 2 * SECTORS) {
		struct region_spec spec = { .csum_type = CHECKSUM_CRC32C, .devs = 1 };

		fill_text(&v.rng, bytes + pos * SECTOR_BYTES, STEP_BYTES);
		struct stored_region r = volume_region_store(&v, &spec, bytes + pos * SECTOR_BYTES, SECTORS);
		volume_region_add(&v, BTREE_EXTENTS, &r, pos, 0, SECTORS);
	}
	volume_open(&v, 0);
	struct leaf_choice choice = { .f = &v.f, .skip = (unsigned)seed % 3 };
	assert_int_equal(btree_nodes_walk(v.f.trees, BTREE_EXTENTS, leaf_damage, &choice), 1);
	volume_reopen(&v);

	/* Ends of extents are odd multiples of SECTORS; the last one before the leaf is the last below its min_key. */
	uint64_t begin = 0, end = FILE_BYTES;
	if (choice.found.min_key.inode == VOLUME_INUM)
		begin = ((choice.found.min_key.offset - 1 + SECTORS) / (2 * SECTORS) * 2 * SECTORS - SECTORS) *
			SECTOR_BYTES;
	if (choice.found.max_key.inode == VOLUME_INUM)
		end = choice.found.max_key.offset * SECTOR_BYTES;
	memset(bytes + begin, 0, end - begin);

	memset(buf, 0xa5, FILE_BYTES);
	assert_int_equal(data_read(v.data, &whole_file, 0, buf, FILE_BYTES, damage_note, &damage), FILE_BYTES);
	assert_memory_equal(buf, bytes, FILE_BYTES);
	assert_int_equal(damage.nr, 1);
	assert_int_equal(damage.ranges[0].offset, begin);
	assert_int_equal(damage.ranges[0].len, end - begin);

	/* What can't be looked up counts as data. */
	uint64_t found;
	assert_int_equal(data_seek(v.data, &whole_file, begin + 1, true, &found), 0);
	assert_int_equal(found, begin + 1);

	/* It is told in one piece, from wherever it is asked for. */
	uint64_t lost_begin, lost_end;
	assert_int_equal(data_seek_lost(v.data, &whole_file, 0, &lost_begin, &lost_end), 0);
	assert_int_equal(lost_begin, begin);
	assert_int_equal(lost_end, end);
	assert_int_equal(data_seek_lost(v.data, &whole_file, begin + 1, &lost_begin, &lost_end), 0);
	assert_int_equal(lost_begin, begin + 1);
	assert_int_equal(data_seek_lost(v.data, &whole_file, end, &lost_begin, &lost_end), -ENXIO);
	volume_free(&v);
	free(bytes);
	free(buf);
}

static void an_unreadable_leaf_loses_what_ends_in_it(void **state) { seeds_run(check_damaged_leaf, 6); }

/* --- stripes --- */

enum { BLOCK_SECTORS = 64, BLOCK_BYTES = BLOCK_SECTORS * SECTOR_BYTES };

static uint8_t times_two(uint8_t b) { return (uint8_t)(b << 1 ^ (b & 0x80 ? 0x1d : 0)); }

/* P and Q of @nr data blocks, by Horner's rule as 08 §4 has it. */
static void parity_compute(uint8_t *const *blocks, unsigned nr, size_t len, uint8_t *p, uint8_t *q)
{
	for (size_t i = 0; i < len; i++) {
		p[i] = q[i] = blocks[nr - 1][i];
		for (unsigned b = nr - 1; b--;) {
			p[i] ^= blocks[b][i];
			q[i] = times_two(q[i]) ^ blocks[b][i];
		}
	}
}

/* 08 §17. */
static void parity_of_the_document(void **state)
{
	uint8_t d[4][4] = { { 0x01, 0x02, 0x80, 0xff },
			    { 0x10, 0x20, 0x40, 0x80 },
			    { 0xde, 0xad, 0xbe, 0xef },
			    { 0x00, 0x01, 0x02, 0x03 } };
	uint8_t *blocks[4] = { d[0], d[1], d[2], d[3] }, p[4], q[4];

	parity_compute(blocks, 4, 4, p, q);
	assert_memory_equal(p, ((uint8_t[]){ 0xcf, 0x8e, 0x7c, 0x93 }), 4);
	assert_memory_equal(q, ((uint8_t[]){ 0x7e, 0xc4, 0xd2, 0x61 }), 4);
}

/* A file whose extents are in the data blocks of one stripe; block i is on device i. */
struct striped_file {
	struct volume v;
	unsigned data_nr, redundant_nr, csum_type;
	bool is_dev_none; /* pointers of the first block say "no device" */
	uint8_t bytes[4 * BLOCK_BYTES];
	uint64_t len_bytes;
	struct {
		uint64_t begin_bytes, end_bytes;
		unsigned block;
	} extents[64];
	unsigned extent_nr;
};

/* Turn crc, ptr into crc, stripe_ptr, ptr. */
static void stripe_ptr_insert(struct striped_file *s, struct stored_region *r, unsigned block)
{
	uint8_t *at = r->value + r->value_bytes - 8;

	memmove(at + 8, at, 8);
	extent_stripe_ptr_store(at, &(struct extent_stripe_ptr){ .idx = 7,
								 .block = (uint8_t)block,
								 .redundancy = (uint8_t)s->redundant_nr });
	if (s->is_dev_none && !block)
		at[8 + 6] = DEV_NONE;
	r->value_bytes += 8;
}

static void stripe_add(struct striped_file *s, uint64_t first_sector)
{
	struct volume *v = &s->v;
	unsigned nr = s->data_nr + s->redundant_nr, bits = (unsigned)rng_below(&v->rng, 9);
	unsigned csums = (BLOCK_SECTORS + (1u << bits) - 1) >> bits, csum_size = checksum_bytes(s->csum_type);
	uint8_t *blocks[VOLUME_DEVS], value[BKEY_VALUE_U64S_MAX * 8] = { 0 };

	for (; 8 + nr * (8 + csums * csum_size + 2) > sizeof(value); bits++)
		csums = (BLOCK_SECTORS + (2u << bits) - 1) >> (bits + 1);
	for (unsigned i = 0; i < VOLUME_DEVS; i++)
		blocks[i] = bytes_alloc(BLOCK_BYTES);
	for (unsigned i = 0; i < s->data_nr; i++)
		assert_int_equal(device_read(v->members[i].dev, first_sector * SECTOR_BYTES, blocks[i], BLOCK_BYTES),
				 0);
	parity_compute(blocks, s->data_nr, BLOCK_BYTES, blocks[s->data_nr], blocks[s->data_nr + 1]);
	for (unsigned i = s->data_nr; i < nr; i++)
		assert_int_equal(device_write(v->members[i].dev, first_sector * SECTOR_BYTES, blocks[i], BLOCK_BYTES),
				 0);

	le16_store(value, BLOCK_SECTORS);
	value[2] = 0x30; /* hints of newer versions */
	value[3] = (uint8_t)nr;
	value[4] = (uint8_t)s->redundant_nr;
	value[5] = (uint8_t)bits;
	value[6] = (uint8_t)s->csum_type;
	uint8_t *at = value + 8;
	for (unsigned i = 0; i < nr; i++, at += 8)
		extent_ptr_store(at, &(struct extent_ptr){ .dev = (uint8_t)i, .sector = first_sector });
	for (unsigned i = 0; i < nr; i++)
		for (unsigned j = 0; j < csums; j++, at += csum_size) {
			size_t begin = (size_t)j * SECTOR_BYTES << bits;
			size_t end = min(begin + ((size_t)SECTOR_BYTES << bits), (size_t)BLOCK_BYTES);
			struct checksum c = checksum_compute(s->csum_type, NULL, (struct nonce){ 0 }, blocks[i] + begin,
							     end - begin);
			uint8_t bytes[16];
			checksum_store(bytes, c);
			memcpy(at, bytes, csum_size);
		}
	volume_key_add(v, BTREE_STRIPES, (struct bkey){ .p = BPOS(0, 7, 0), .type = KEY_STRIPE }, value,
		       (size_t)(at - value) + nr * 2);
	for (unsigned i = 0; i < VOLUME_DEVS; i++)
		free(blocks[i]);
}

static struct striped_file *striped_file_make(uint64_t seed)
{
	static const unsigned stripe_csums[] = { CHECKSUM_CRC32C, CHECKSUM_NONE, CHECKSUM_XXHASH,
						 CHECKSUM_CRC64_NONZERO };
	struct striped_file *s = bytes_alloc(sizeof(*s));

	memset(s, 0, sizeof(*s));
	volume_init(&s->v, seed);
	s->redundant_nr = 1 + seed % 2;
	s->data_nr = 2 + (unsigned)rng_below(&s->v.rng, 3);
	s->csum_type = stripe_csums[rng_below(&s->v.rng, ARRAY_NR(stripe_csums))];
	s->is_dev_none = seed % 3 == 0;
	s->v.f.kctx.version = s->v.f.kctx.upgrade_complete = VERSION_NEWEST_KNOWN;
	s->v.f.kctx.is_newer = true;
	for (unsigned block = 0; block < s->data_nr; block++)
		for (uint32_t used = 0; used < BLOCK_SECTORS - 20;) {
			uint32_t n = 1 + (uint32_t)rng_below(&s->v.rng, 20);
			struct region_spec spec = { .csum_type = csum_types_all[rng_below(&s->v.rng, 7)],
						    .devs = 1u << block };
			uint8_t *at = s->bytes + s->len_bytes;

			if (rng_below(&s->v.rng, 2))
				spec.compression = COMPRESSION_LZ4;
			fill_text(&s->v.rng, at, n * SECTOR_BYTES);
			struct stored_region r = volume_region_store(&s->v, &spec, at, n);
			stripe_ptr_insert(s, &r, block);
			struct bkey k = { .p = BPOS(VOLUME_INUM, s->len_bytes / SECTOR_BYTES + n, VOLUME_SNAPSHOT),
					  .version = r.version,
					  .size = n,
					  .type = KEY_EXTENT };
			volume_key_add(&s->v, BTREE_EXTENTS, k, r.value, r.value_bytes);
			s->extents[s->extent_nr].begin_bytes = s->len_bytes;
			s->extents[s->extent_nr].end_bytes = s->len_bytes += n * SECTOR_BYTES;
			s->extents[s->extent_nr++].block = block;
			used += r.crc.compressed_sectors;
			if (s->len_bytes + 20 * SECTOR_BYTES > (block + 1) * BLOCK_BYTES)
				break;
		}
	stripe_add(s, VOLUME_BUCKET_SECTORS);
	volume_open(&s->v, 0);
	return s;
}

/* Read all of it with devices @bad (a mask) failing: detached, or with @kind of fault. */
static void check_stripe_read(struct striped_file *s, uint32_t bad, bool is_detached, enum device_fault_kind kind)
{
	unsigned lost = (unsigned)__builtin_popcount(bad | (s->is_dev_none ? 1 : 0));
	bool is_readable = lost <= s->redundant_nr;
	struct data_file file = { VOLUME_INUM, VOLUME_SNAPSHOT, s->len_bytes };
	struct device *detached[VOLUME_DEVS] = { NULL };
	struct damage_list damage = { 0 };
	uint8_t *buf = bytes_alloc(s->len_bytes), *expected = bytes_alloc(s->len_bytes);
	uint64_t damaged = 0, told = 0;

	/* A block that was given up is still there: only reading it again would show that. */
	if (s->is_dev_none && !(bad & 1))
		bad |= 1;
	for (unsigned dev = 0; dev < VOLUME_DEVS; dev++) {
		if (!(bad & 1u << dev))
			continue;
		if (is_detached)
			detached[dev] = volume_detach(&s->v, dev);
		else
			volume_fault(&s->v, dev, kind, 0, 0, 1000000);
	}
	memcpy(expected, s->bytes, s->len_bytes);
	for (unsigned i = 0; i < s->extent_nr; i++)
		if (!is_readable && bad & 1u << s->extents[i].block) {
			uint64_t len = s->extents[i].end_bytes - s->extents[i].begin_bytes;
			memset(expected + s->extents[i].begin_bytes, 0, len);
			damaged += len;
		}

	memset(buf, 0xa5, s->len_bytes);
	assert_int_equal(data_read(s->v.data, &file, 0, buf, s->len_bytes, damage_note, &damage), s->len_bytes);
	assert_memory_equal(buf, expected, s->len_bytes);
	for (unsigned i = 0; i < damage.nr; i++)
		told += damage.ranges[i].len;
	assert_int_equal(told, damaged);

	for (unsigned dev = 0; dev < VOLUME_DEVS; dev++) {
		if (detached[dev])
			volume_attach(&s->v, dev, detached[dev]);
		device_fault_clear(s->v.members[dev].dev);
	}
	free(buf);
	free(expected);
}

static void check_stripes(uint64_t seed)
{
	struct striped_file *s = striped_file_make(seed);
	unsigned nr = s->data_nr + s->redundant_nr;

	for (uint32_t bad = 0; bad < 1u << nr; bad++) {
		if (__builtin_popcount(bad) > 3)
			continue;
		check_stripe_read(s, bad, true, FAULT_ERROR);
		check_stripe_read(s, bad, false, FAULT_ERROR);
		/* Without checksums of its own a stripe can't tell which of two wrong blocks to leave out. */
		if (s->csum_type)
			check_stripe_read(s, bad, false, FAULT_BITFLIP);
	}
	struct data_stats stats;
	data_stats(s->v.data, &stats);
	assert_true(stats.reconstructed > 0);
	volume_free(&s->v);
	free(s);
}

static void any_blocks_up_to_the_redundancy_may_be_missing(void **state) { seeds_run(check_stripes, 18); }

/* --- hostile keys --- */

/*
 * Keys as no check has seen them (the journal's are laid over the nodes unchecked here): random changes of good ones.
 * Reading must end, tell about what it can't read, and touch nothing else; what memory checkers find is found here.
 */
static void check_hostile_keys(uint64_t seed)
{
	uint8_t *bytes = bytes_alloc(FILE_BYTES), *buf = bytes_alloc(FILE_BYTES + 64);
	uint32_t begins[FILE_SECTORS + 1];
	struct stored_region *regions = bytes_alloc(FILE_SECTORS * sizeof(*regions));
	struct striped_file *s = striped_file_make(seed);
	struct volume v;

	/* Stripes too: a key of the striped file per extent. */
	volume_init(&v, seed);
	v.f.kctx.is_newer = true;
	file_make(&v, bytes, 3, csum_types_all, ARRAY_NR(csum_types_all), begins, regions);
	struct volume_keys *keys = &v.keys[BTREE_EXTENTS];
	for (size_t i = 0; i < keys->nr; i++) {
		struct bkey_ref k = keys->refs[i];
		uint8_t value[64] = { 0 };

		if (rng_below(&v.rng, 3) == 0)
			k = s->v.keys[BTREE_EXTENTS].refs[i % s->v.keys[BTREE_EXTENTS].nr];
		size_t len = min(bkey_value_bytes(&k.k), sizeof(value));
		memcpy(value, k.value, len);
		k.k.p = keys->refs[i].k.p;
		k.value = value;
		for (uint64_t n = 1 + rng_below(&v.rng, 6); n; n--)
			value[rng_below(&v.rng, max(len, (size_t)1))] ^= (uint8_t)(1 << rng_below(&v.rng, 8));
		if (rng_below(&v.rng, 8) == 0)
			k.k.size = (uint32_t)rng_u64(&v.rng);
		if (rng_below(&v.rng, 8) == 0)
			k.k.type = (uint8_t)rng_below(&v.rng, KEY_TYPE_NR);
		if (rng_below(&v.rng, 8) == 0)
			k.k.value_u64s = (uint8_t)rng_below(&v.rng, len / 8 + 1);
		tree_overlay_add(&v.f.b, BTREE_EXTENTS, 0, 1, (uint32_t)i, &k);
	}
	uint8_t stripe[BKEY_VALUE_U64S_MAX * 8];
	struct bkey_ref stripe_key = s->v.keys[BTREE_STRIPES].refs[0];
	memcpy(stripe, stripe_key.value, bkey_value_bytes(&stripe_key.k));
	stripe[rng_below(&v.rng, 16)] ^= (uint8_t)(1 << rng_below(&v.rng, 8));
	stripe_key.value = stripe;
	tree_overlay_add(&v.f.b, BTREE_STRIPES, 0, 1, 0, &stripe_key);
	volume_open(&v, 0);

	struct data_file file = { VOLUME_INUM, VOLUME_SNAPSHOT, FILE_BYTES };
	for (unsigned i = 0; i < 10; i++) {
		uint64_t offset = i ? rng_below(&v.rng, FILE_BYTES) : 0;
		size_t len = i ? 1 + (size_t)rng_below(&v.rng, FILE_BYTES - offset) : FILE_BYTES;

		memset(buf, 0xa5, FILE_BYTES + 64);
		assert_int_equal(data_read(v.data, &file, offset, buf, len, NULL, NULL), len);
		for (unsigned n = 0; n < 64; n++)
			assert_int_equal(buf[len + n], 0xa5);
		uint64_t found;
		int err = data_seek(v.data, &file, offset, i & 1, &found);
		assert_true(err == -ENXIO || (!err && found >= offset && found <= FILE_BYTES));
	}
	volume_free(&s->v);
	volume_free(&v);
	free(s);
	free(bytes);
	free(buf);
	free(regions);
}

static void hostile_keys_do_no_harm(void **state) { seeds_run(check_hostile_keys, 60); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(another_replica_serves_and_the_bad_one_is_reported, seeds_teardown),
		cmocka_unit_test_teardown(exactly_the_unreadable_extent_is_damage_and_zero, seeds_teardown),
		cmocka_unit_test_teardown(without_checksums_exactly_the_unreadable_blocks_are_damage, seeds_teardown),
		cmocka_unit_test(a_dying_disk_is_asked_a_bounded_number_of_times),
		cmocka_unit_test(an_extent_with_a_bad_key_is_damage),
		cmocka_unit_test(stale_pointers_without_checksum_are_not_read),
		cmocka_unit_test(what_is_known_to_be_lost_is_damage),
		cmocka_unit_test_teardown(an_unreadable_leaf_loses_what_ends_in_it, seeds_teardown),
		cmocka_unit_test(parity_of_the_document),
		cmocka_unit_test_teardown(any_blocks_up_to_the_redundancy_may_be_missing, seeds_teardown),
		cmocka_unit_test_teardown(hostile_keys_do_no_harm, seeds_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
