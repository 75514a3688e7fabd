/* Reading healthy files: every kind of extent, checksum, compression and encryption, at any offset and length. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "volume.h"

enum { FILE_SECTORS = 1200, FILE_BYTES = FILE_SECTORS * SECTOR_BYTES, SEEDS = 30, READS = 60 };

/* A file and what must be found in it. */
struct file_model {
	struct volume v;
	struct data_file file;
	uint8_t bytes[FILE_BYTES];
	bool is_data[FILE_SECTORS];
};

static const unsigned compressions[] = { COMPRESSION_NONE, COMPRESSION_LZ4_OLD, COMPRESSION_GZIP,
					 COMPRESSION_LZ4,  COMPRESSION_ZSTD,	COMPRESSION_INCOMPRESSIBLE };

static struct region_spec spec_random(struct rng *rng)
{
	struct region_spec spec = {
		.csum_type = (unsigned)rng_below(rng, CHECKSUM_TYPE_NR),
		.compression = compressions[rng_below(rng, ARRAY_NR(compressions))],
		.devs = 1u << rng_below(rng, VOLUME_DEVS) | 1u << rng_below(rng, VOLUME_DEVS),
	};

	if (checksum_is_mac(spec.csum_type) && rng_below(rng, 2))
		spec.nonce_sectors = (uint32_t)rng_below(rng, 2000);
	return spec;
}

/* Store a region of which the live part becomes @sectors at @begin of the file or of the reflink btree. */
static void region_random(struct file_model *m, unsigned btree_id, uint64_t begin, uint32_t sectors, uint8_t *live)
{
	struct rng *rng = &m->v.rng;
	uint32_t skip = (uint32_t)rng_below(rng, 2) * (uint32_t)rng_below(rng, 40);
	uint32_t whole = skip + sectors + (uint32_t)rng_below(rng, 2) * (uint32_t)rng_below(rng, 40);
	uint8_t *data = malloc((size_t)whole * SECTOR_BYTES);
	struct region_spec spec = spec_random(rng);

	assert_non_null(data);
	(rng_below(rng, 4) ? fill_text : fill_random)(rng, data, (size_t)whole * SECTOR_BYTES);
	struct stored_region region = volume_region_store(&m->v, &spec, data, whole);
	volume_region_add(&m->v, btree_id, &region, begin, skip, sectors);
	memcpy(live, data + skip * SECTOR_BYTES, (size_t)sectors * SECTOR_BYTES);
	free(data);
}

static void inline_value_random(struct rng *rng, uint32_t sectors, uint8_t *value, size_t *bytes, uint8_t *live)
{
	*bytes = 8 + rng_below(rng, 100) * 8;
	*bytes = min(*bytes, (size_t)sectors * SECTOR_BYTES);
	fill_random(rng, value, *bytes);
	memset(live, 0, (size_t)sectors * SECTOR_BYTES);
	memcpy(live, value, *bytes);
}

/* Indirect extents that lie one behind the other, and a reflink_p that starts somewhere in them. */
static void reflink_random(struct file_model *m, uint64_t *reflink_end, uint64_t begin, uint32_t sectors, uint8_t *live)
{
	struct rng *rng = &m->v.rng;
	uint32_t front = (uint32_t)rng_below(rng, 20), total = front + sectors + (uint32_t)rng_below(rng, 20);
	uint8_t *data = malloc((size_t)total * SECTOR_BYTES), value[1024] = { 2 };
	uint64_t flags = rng_below(rng, 2) << 57;

	assert_non_null(data);
	for (uint32_t pos = 0; pos < total;) {
		uint32_t n = min(1 + (uint32_t)rng_below(rng, 60), total - pos);
		uint8_t *part = data + (size_t)pos * SECTOR_BYTES;

		if (rng_below(rng, 5)) {
			region_random(m, BTREE_REFLINK, *reflink_end + pos, n, part);
		} else {
			struct bkey k = { .p = BPOS(0, *reflink_end + pos + n, 0),
					  .size = n,
					  .type = KEY_INDIRECT_INLINE_DATA };
			size_t bytes;
			inline_value_random(rng, n, value + 8, &bytes, part);
			volume_key_add(&m->v, BTREE_REFLINK, k, value, 8 + bytes);
		}
		pos += n;
	}
	le64_store(value, (*reflink_end + front) | flags);
	le32_store(value + 8, front);
	le32_store(value + 12, total - front - sectors);
	volume_extent_add(&m->v, KEY_REFLINK_P, begin, sectors, value, 16);
	memcpy(live, data + (size_t)front * SECTOR_BYTES, (size_t)sectors * SECTOR_BYTES);
	*reflink_end += total;
	free(data);
}

static void file_random(struct file_model *m, uint64_t seed)
{
	uint64_t reflink_end = 16;

	memset(m, 0, sizeof(*m));
	volume_init(&m->v, seed);
	struct rng *rng = &m->v.rng;
	for (uint32_t pos = 0; pos < FILE_SECTORS;) {
		uint32_t n = min(1 + (uint32_t)rng_below(rng, 150), FILE_SECTORS - pos);
		uint8_t *live = m->bytes + (size_t)pos * SECTOR_BYTES;
		uint8_t value[1024] = { 0 };
		size_t bytes;
		bool is_data = true;

		switch (rng_below(rng, 8)) {
		case 0: is_data = false; break; /* a hole */
		case 1:
			value[4] = 1;
			volume_extent_add(&m->v, KEY_RESERVATION, pos, n, value, 8);
			is_data = false;
			break;
		case 2:
			extent_ptr_store(value, &(struct extent_ptr){ .sector = 8192, .dev = 2, .is_unwritten = true });
			volume_extent_add(&m->v, KEY_EXTENT, pos, n, value, 8);
			is_data = false;
			break;
		case 3:
			inline_value_random(rng, n, value, &bytes, live);
			volume_extent_add(&m->v, KEY_INLINE_DATA, pos, n, value, bytes);
			break;
		case 4: reflink_random(m, &reflink_end, pos, n, live); break;
		default: region_random(m, BTREE_EXTENTS, pos, n, live);
		}
		for (uint32_t i = pos; i < pos + n; i++)
			m->is_data[i] = is_data;
		pos += n;
	}
	m->file = (struct data_file){ VOLUME_INUM, VOLUME_SNAPSHOT, FILE_BYTES - rng_below(rng, 2000) };
}

/* One read, checked against the model; guard bytes around the buffer must stay. */
static void check_read(struct file_model *m, uint64_t offset, size_t len, unsigned misalign)
{
	struct damage_list damage = { 0 };
	uint64_t size = m->file.size_bytes;
	size_t expected = offset < size ? min(len, (size_t)(size - offset)) : 0;
	uint8_t *buf = io_buffer_alloc(len + misalign + 64);

	assert_non_null(buf);
	memset(buf, 0xa5, len + misalign + 64);
	assert_int_equal(data_read(m->v.data, &m->file, offset, buf + misalign, len, damage_note, &damage), expected);
	if (expected)
		assert_memory_equal(buf + misalign, m->bytes + offset, expected);
	for (size_t i = expected; i < len + 64; i++)
		assert_int_equal(buf[misalign + i], 0xa5);
	for (unsigned i = 0; i < misalign; i++)
		assert_int_equal(buf[i], 0xa5);
	assert_int_equal(damage.nr, 0);
	io_buffer_free(buf);
}

static void check_random_file(uint64_t seed)
{
	struct file_model *m = malloc(sizeof(*m));

	assert_non_null(m);
	file_random(m, seed);
	volume_open(&m->v, DATA_MEMORY_MIN);
	struct rng *rng = &m->v.rng;

	check_read(m, 0, FILE_BYTES, 0);
	for (unsigned i = 0; i < READS; i++) {
		uint64_t offset = rng_below(rng, FILE_BYTES + 1000);
		size_t len = (size_t)rng_below(rng, 1ull << rng_below(rng, 20)) + 1;

		if (rng_below(rng, 2)) {
			offset = round_down_u64(offset, 4096);
			len = round_up_u64(len, 4096);
		}
		check_read(m, offset, len, rng_below(rng, 3) ? 0 : (unsigned)rng_below(rng, 64));
	}
	for (unsigned level = 0; level <= REPORT_FATAL; level++)
		assert_int_equal(m->v.reports[level], 0);
	volume_free(&m->v);
	free(m);
}

static void any_range_of_any_kind_of_extent_reads_right(void **state) { seeds_run(check_random_file, SEEDS); }

static uint64_t expected_seek(const struct file_model *m, uint64_t offset, bool want_data)
{
	for (uint64_t pos = offset; pos < m->file.size_bytes; pos = round_down_u64(pos, SECTOR_BYTES) + SECTOR_BYTES)
		if (m->is_data[pos / SECTOR_BYTES] == want_data)
			return pos;
	return want_data ? UINT64_MAX : m->file.size_bytes;
}

static void check_random_seeks(uint64_t seed)
{
	struct file_model *m = malloc(sizeof(*m));

	assert_non_null(m);
	file_random(m, seed);
	volume_open(&m->v, 0);
	for (unsigned i = 0; i < 200; i++) {
		uint64_t offset = rng_below(&m->v.rng, m->file.size_bytes), found;
		bool want_data = i & 1;
		uint64_t expected = expected_seek(m, offset, want_data);
		int err = data_seek(m->v.data, &m->file, offset, want_data, &found);

		assert_int_equal(err, expected == UINT64_MAX ? -ENXIO : 0);
		if (!err)
			assert_int_equal(found, expected);
	}
	uint64_t found;
	assert_int_equal(data_seek(m->v.data, &m->file, m->file.size_bytes, true, &found), -ENXIO);
	assert_int_equal(data_seek(m->v.data, &m->file, UINT64_MAX, false, &found), -ENXIO);
	volume_free(&m->v);
	free(m);
}

static void seek_tells_data_from_holes(void **state) { seeds_run(check_random_seeks, SEEDS); }

/* 06 §19.2: T0, as upstream stored it. Skipped where the compressor makes other bytes. */
static void regions_of_upstream_read_right(void **state)
{
	static const struct {
		unsigned type;
		uint8_t value[16];
	} vectors[] = {
		{ COMPRESSION_GZIP, { 0x3e, 0xfe, 0x00, 0x25, 0x2a, 0xe0, 0x04, 0xe8, 0x01, 0x0d, 0x02 } },
		{ COMPRESSION_LZ4, { 0x5e, 0xfe, 0x00, 0x35, 0x6c, 0xfa, 0xad, 0xf9, 0x01, 0x0d, 0x02 } },
		{ COMPRESSION_ZSTD, { 0x1e, 0xfe, 0x00, 0x45, 0x0e, 0x3b, 0x5b, 0x96, 0x01, 0x0d, 0x02 } },
	};
	enum { T0_BYTES = 65536 };
	uint8_t *t0 = malloc(2 * T0_BYTES), *region = malloc(T0_BYTES), *buf = malloc(T0_BYTES);
	size_t text = 0;

	for (unsigned i = 0; text < T0_BYTES; i++)
		text += (size_t)sprintf((char *)t0 + text, "line %06u of compressible text\n", i);
	for (unsigned i = 0; i < ARRAY_NR(vectors); i++) {
		struct extent_crc crc = extent_crc_load(EXTENT_ENTRY_CRC32, vectors[i].value);
		struct extent_ptr ptr = extent_ptr_load(vectors[i].value + 8);
		struct volume v;

		volume_init(&v, 1);
		for (unsigned dev = 0; dev < VOLUME_DEVS; dev++)
			v.members[dev].m.bucket_sectors = v.geometry[dev].bucket_sectors = 256;
		assert_true(region_compress(vectors[i].type, t0, T0_BYTES, region, T0_BYTES) > 0);
		size_t stored = crc.compressed_sectors * SECTOR_BYTES;
		if (!checksum_eq(checksum_compute(crc.csum_type, NULL, (struct nonce){ 0 }, region, stored), crc.csum))
			skip();
		assert_int_equal(device_write(v.members[0].dev, ptr.sector * SECTOR_BYTES, region, stored), 0);
		volume_extent_add(&v, KEY_EXTENT, 0, T0_BYTES / SECTOR_BYTES, vectors[i].value, 16);
		volume_open(&v, 0);

		struct data_file file = { VOLUME_INUM, VOLUME_SNAPSHOT, T0_BYTES };
		assert_int_equal(data_read(v.data, &file, 0, buf, T0_BYTES, NULL, NULL), T0_BYTES);
		assert_memory_equal(buf, t0, T0_BYTES);
		assert_int_equal(data_read(v.data, &file, 777, buf, 1000, NULL, NULL), 1000);
		assert_memory_equal(buf, t0 + 777, 1000);
		volume_free(&v);
	}
	free(t0);
	free(region);
	free(buf);
}

/* 05 §4.3: pieces of an ancestor under a nearer extent. The nearer one wins, wherever the read begins and ends. */
static void nearer_snapshot_wins_where_extents_overlap(void **state)
{
	enum { NEAR = 10, FAR = 20, SECTORS = 64 };
	static uint32_t ancestors[] = { NEAR, FAR, 0 };
	static const struct {
		uint32_t begin, end, snapshot;
	} extents[] = { { 0, 8, FAR }, { 8, 16, FAR }, { 16, 24, NEAR }, { 20, 30, FAR }, { 4, 64, NEAR } };
	/* Whose bytes are expected in each range: index of the extent. */
	static const struct {
		uint32_t begin, end;
		unsigned extent;
	} expected[] = { { 0, 4, 0 }, { 4, 16, 4 }, { 16, 24, 2 }, { 24, 64, 4 } };
	uint8_t content[SECTORS * SECTOR_BYTES], buf[SECTORS * SECTOR_BYTES];
	struct volume v;

	volume_init(&v, 3);
	v.ancestors = ancestors;
	for (unsigned i = 0; i < ARRAY_NR(extents); i++) {
		struct region_spec spec = { .csum_type = CHECKSUM_CRC32C, .devs = 1 };
		uint32_t sectors = extents[i].end - extents[i].begin;

		memset(buf, 'A' + (int)i, sizeof(buf));
		struct stored_region r = volume_region_store(&v, &spec, buf, sectors);
		struct bkey k = { .p = BPOS(VOLUME_INUM, extents[i].end, extents[i].snapshot),
				  .size = sectors,
				  .type = KEY_EXTENT };
		volume_key_add(&v, BTREE_EXTENTS, k, r.value, r.value_bytes);
	}
	for (unsigned i = 0; i < ARRAY_NR(expected); i++)
		memset(content + expected[i].begin * SECTOR_BYTES, 'A' + (int)expected[i].extent,
		       (expected[i].end - expected[i].begin) * SECTOR_BYTES);
	volume_open(&v, 0);

	struct data_file file = { VOLUME_INUM, NEAR, sizeof(content) };
	for (uint32_t begin = 0; begin < SECTORS; begin++)
		for (uint32_t end = begin + 1; end <= SECTORS; end += 3) {
			size_t len = (end - begin) * SECTOR_BYTES;
			assert_int_equal(data_read(v.data, &file, begin * SECTOR_BYTES, buf, len, NULL, NULL), len);
			assert_memory_equal(buf, content + begin * SECTOR_BYTES, len);
		}
	volume_free(&v);
}

/* A cached copy counts only while its bucket has the generation of the pointer. */
static void stale_cached_copies_are_not_read(void **state)
{
	enum { SECTORS = 16, LEN = SECTORS * SECTOR_BYTES };
	uint8_t gens[256] = { 0 }, old[LEN], new[LEN], buf[LEN];
	struct region_spec spec = { .devs = 3, .cached_devs = 2 };
	struct volume v;

	volume_init(&v, 4);
	fill_random(&v.rng, old, LEN);
	struct stored_region both = volume_region_store(&v, &spec, old, SECTORS);
	spec.devs = 2;
	struct stored_region only_cached = volume_region_store(&v, &spec, old, SECTORS);
	volume_region_add(&v, BTREE_EXTENTS, &both, 0, 0, SECTORS);
	volume_region_add(&v, BTREE_EXTENTS, &only_cached, SECTORS, 0, SECTORS);
	gens[both.ptrs[1].sector / VOLUME_BUCKET_SECTORS] = 1;
	volume_key_add(&v, BTREE_BUCKET_GENS, (struct bkey){ .p = BPOS(1, 0, 0), .type = KEY_BUCKET_GENS }, gens,
		       sizeof(gens));
	/* The bucket was reused. */
	fill_random(&v.rng, new, LEN);
	assert_int_equal(device_write(v.members[1].dev, both.ptrs[1].sector * SECTOR_BYTES, new, LEN), 0);
	assert_int_equal(device_write(v.members[1].dev, only_cached.ptrs[0].sector * SECTOR_BYTES, new, LEN), 0);
	volume_open(&v, 0);

	struct data_file file = { VOLUME_INUM, VOLUME_SNAPSHOT, 2 * LEN };
	struct damage_list damage = { 0 };
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(data_read(v.data, &file, 0, buf, LEN, damage_note, &damage), LEN);
		assert_memory_equal(buf, old, LEN);
	}
	/* Nothing else is left of the other: as good as a hole. */
	memset(new, 0, LEN);
	assert_int_equal(data_read(v.data, &file, LEN, buf, LEN, damage_note, &damage), LEN);
	assert_memory_equal(buf, new, LEN);
	assert_int_equal(damage.nr, 0);
	volume_free(&v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(any_range_of_any_kind_of_extent_reads_right, seeds_teardown),
		cmocka_unit_test_teardown(seek_tells_data_from_holes, seeds_teardown),
		cmocka_unit_test(regions_of_upstream_read_right),
		cmocka_unit_test(nearer_snapshot_wins_where_extents_overlap),
		cmocka_unit_test(stale_cached_copies_are_not_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
