/* A filesystem's data in memory, for tests (see volume.h). */
#include "volume.h"

#include <errno.h>
#include <lz4.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "base/array.h"
#include "data/compress.h"
#include "format/version.h"

static void report_record(void *ctx, const struct report *report)
{
	struct volume *v = ctx;

	mutex_lock(&v->lock);
	v->reports[report->level]++;
	v->last_id = report->id;
	snprintf(v->last_device, sizeof(v->last_device), "%s", report->device ? report->device : "");
	snprintf(v->last_expected, sizeof(v->last_expected), "%s", report->expected ? report->expected : "");
	snprintf(v->last_found, sizeof(v->last_found), "%s", report->found ? report->found : "");
	assert_non_null(report->position);
	mutex_unlock(&v->lock);
}

void volume_init(struct volume *v, uint64_t seed)
{
	memset(v, 0, sizeof(*v));
	fixture_init(&v->f, seed, 16 << 10, 512);
	v->f.b.keys_per_node = 8;
	v->f.b.has_history = false; /* what it makes up of a key's older versions isn't valid */
	rng_init(&v->rng, seed);
	mutex_init(&v->lock);
	v->sink = (struct report_sink){ .emit = report_record, .ctx = v };
	for (unsigned i = 0; i < VOLUME_DEVS; i++) {
		struct super_member *m = &v->members[i];
		struct device *below;

		v->geometry[i] = (struct member_geometry){ true, VOLUME_BUCKET_SECTORS, 0, 1ull << 40 };
		m->m = (struct member){ .exists = true, .nbuckets = 64, .bucket_sectors = VOLUME_BUCKET_SECTORS };
		snprintf(m->name, sizeof(m->name), "member %u", i);
		assert_int_equal(device_open_memory(m->name, VOLUME_DEV_BYTES, 512, &below), 0);
		assert_int_equal(device_wrap_fault(below, seed + i, &m->dev), 0);
	}
	for (unsigned i = 0; i < sizeof(v->key.bytes); i++)
		v->key.bytes[i] = (uint8_t)i;
	v->f.kctx.members = v->geometry;
	v->f.kctx.member_nr = VOLUME_DEVS;
	v->super = (struct super){
		.member_nr = VOLUME_DEVS,
		.members = v->members,
		.geometry = v->geometry,
		.has_key = true,
		.key = &v->key,
		.reports = &v->sink,
	};
}

static int key_cmp(const void *a, const void *b)
{
	return bpos_cmp(((const struct bkey_ref *)a)->k.p, ((const struct bkey_ref *)b)->k.p);
}

static bool is_ancestor(void *ctx, uint32_t id, uint32_t ancestor)
{
	const struct volume *v = ctx;

	for (const uint32_t *pair = v->ancestors; pair && *pair; pair += 2)
		if (pair[0] == id && pair[1] == ancestor)
			return true;
	return id == ancestor;
}

/* Open what has been built. */
static void trees_open(struct volume *v)
{
	fixture_open(&v->f, 0);
	for (unsigned id = 0; id < BTREE_NR_KNOWN; id++)
		if (v->keys[id].nr)
			fixture_set_root(&v->f, id, &v->roots[id]);
	btrees_set_snapshots(v->f.trees, (struct btree_snapshots){ is_ancestor, v });
	v->super.kctx = v->f.kctx;
	assert_int_equal(data_open(&v->super, v->f.trees, v->memory_bytes, &v->sink, &v->data), 0);
}

void volume_open(struct volume *v, uint64_t memory_bytes)
{
	for (unsigned id = 0; id < BTREE_NR_KNOWN; id++)
		if (v->keys[id].nr) {
			qsort(v->keys[id].refs, v->keys[id].nr, sizeof(*v->keys[id].refs), key_cmp);
			v->roots[id] = tree_build(&v->f.b, id, v->keys[id].refs, v->keys[id].nr);
		}
	v->memory_bytes = memory_bytes;
	trees_open(v);
}

void volume_reopen(struct volume *v)
{
	data_close(v->data);
	btrees_close(v->f.trees);
	v->f.trees = NULL;
	trees_open(v);
}

void volume_free(struct volume *v)
{
	data_close(v->data);
	compress_contexts_free();
	for (unsigned i = 0; i < VOLUME_DEVS; i++)
		device_close(v->members[i].dev);
	for (unsigned id = 0; id < BTREE_NR_KNOWN; id++) {
		for (size_t i = 0; i < v->keys[id].nr; i++)
			free((void *)(uintptr_t)v->keys[id].refs[i].value);
		free(v->keys[id].refs);
	}
	fixture_free(&v->f);
	mutex_destroy(&v->lock);
}

void volume_key_add(struct volume *v, unsigned btree_id, struct bkey k, const void *value, size_t bytes)
{
	struct volume_keys *keys = &v->keys[btree_id];
	size_t rounded = round_up_u64(bytes, 8);
	uint8_t *copy = calloc(1, rounded + 8);

	assert_non_null(copy);
	if (bytes)
		memcpy(copy, value, bytes);
	k.value_u64s = (uint8_t)(rounded / 8);
	assert_int_equal(array_grow(&keys->refs, &keys->capacity, keys->nr + 1, sizeof(*keys->refs)), 0);
	keys->refs[keys->nr++] = (struct bkey_ref){ k, copy };
}

/* --- regions --- */

size_t region_compress(unsigned type, const uint8_t *src, size_t len, uint8_t *dst, size_t size)
{
	size_t bytes = 0;

	memset(dst, 0, size);
	if (type == COMPRESSION_LZ4 || type == COMPRESSION_LZ4_OLD) {
		int n = LZ4_compress_default((const char *)src, (char *)dst, (int)len, (int)size);
		bytes = n > 0 ? (size_t)n : 0;
	} else if (type == COMPRESSION_GZIP) {
		z_stream z = { 0 };
		assert_int_equal(deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY), Z_OK);
		z.next_in = (Bytef *)(uintptr_t)src;
		z.avail_in = (uInt)len;
		z.next_out = dst;
		z.avail_out = (uInt)size;
		bytes = deflate(&z, Z_FINISH) == Z_STREAM_END ? size - z.avail_out : 0;
		deflateEnd(&z);
	} else if (type == COMPRESSION_ZSTD && size > 4) {
		size_t n = ZSTD_compress(dst + 4, size - 4, src, len, 3);
		if (!ZSTD_isError(n)) {
			le32_store(dst, (uint32_t)n);
			bytes = n + 4;
		}
	}
	if (!bytes)
		return 0;
	memset(dst + bytes, 0, size - bytes);
	return bytes;
}

/* Space for a region that crosses no bucket. Sector 0 isn't used. */
static uint64_t sectors_allocate(struct volume *v, unsigned dev, uint32_t sectors)
{
	uint64_t *next = &v->next_bucket[dev];

	if (!*next || *next % VOLUME_BUCKET_SECTORS + sectors > VOLUME_BUCKET_SECTORS)
		*next = (*next / VOLUME_BUCKET_SECTORS + 1) * VOLUME_BUCKET_SECTORS;
	*next += sectors;
	assert_true(*next * SECTOR_BYTES <= VOLUME_DEV_BYTES);
	return *next - sectors;
}

struct stored_region volume_region_store(struct volume *v, const struct region_spec *spec, const uint8_t *data,
					 uint32_t sectors)
{
	size_t len = (size_t)sectors * SECTOR_BYTES, stored_len = len;
	uint8_t *stored = malloc(len);
	struct stored_region r = { .crc = { .uncompressed_sectors = sectors,
					    .csum_type = (uint8_t)spec->csum_type,
					    .compression = (uint8_t)spec->compression,
					    .nonce_sectors = spec->nonce_sectors } };

	assert_non_null(stored);
	memcpy(stored, data, len);
	if (compression_is_compressed(spec->compression)) {
		size_t n = len > SECTOR_BYTES ? region_compress(spec->compression, data, len, stored, len) : 0;
		stored_len = round_up_u64(n, SECTOR_BYTES);
		if (!n || stored_len >= len) {
			memcpy(stored, data, len);
			stored_len = len;
			r.crc.compression = COMPRESSION_INCOMPRESSIBLE;
		}
	}
	r.crc.compressed_sectors = (uint32_t)(stored_len / SECTOR_BYTES);
	if (checksum_is_mac(spec->csum_type))
		r.version = (struct bversion){ .lo = ++v->next_version };

	struct nonce nonce = nonce_extent(sectors, r.crc.nonce_sectors, r.crc.compression, r.version.lo, r.version.hi);
	if (checksum_is_mac(spec->csum_type))
		crypt_xor(&v->key, nonce, stored, stored_len);
	r.crc.csum = checksum_compute(spec->csum_type, &v->key, nonce, stored, stored_len);

	if (spec->csum_type || r.crc.compression || r.crc.nonce_sectors) {
		int u64s = extent_crc_store(r.value, &r.crc);
		assert_true(u64s > 0);
		r.value_bytes = (size_t)u64s * 8;
	}
	for (unsigned dev = 0; dev < VOLUME_DEVS; dev++) {
		if (!(spec->devs & 1u << dev))
			continue;
		struct extent_ptr *p = &r.ptrs[r.ptr_nr++];
		*p = (struct extent_ptr){ .dev = (uint8_t)dev, .is_cached = spec->cached_devs >> dev & 1 };
		p->sector = sectors_allocate(v, dev, r.crc.compressed_sectors);
		assert_int_equal(device_write(v->members[dev].dev, p->sector * SECTOR_BYTES, stored, stored_len), 0);
		extent_ptr_store(r.value + r.value_bytes, p);
		r.value_bytes += 8;
	}
	free(stored);
	return r;
}

void volume_region_add(struct volume *v, unsigned btree_id, const struct stored_region *region, uint64_t begin,
		       uint32_t skip, uint32_t sectors)
{
	bool is_reflink = btree_id == BTREE_REFLINK, has_crc = region->value_bytes > region->ptr_nr * 8u;
	struct bkey k = {
		.p = is_reflink ? BPOS(0, begin + sectors, 0) : BPOS(VOLUME_INUM, begin + sectors, VOLUME_SNAPSHOT),
		.version = region->version,
		.size = sectors,
		.type = is_reflink ? KEY_REFLINK_V : KEY_EXTENT,
	};
	uint8_t value[8 + sizeof(region->value)] = { 1 };
	uint8_t *entries = value + (is_reflink ? 8 : 0), *pos = entries;

	/* Trimming moves the descriptor's offset, or the pointers if there is none (06 §5.1). */
	if (has_crc) {
		struct extent_crc crc = region->crc;
		crc.offset_sectors += skip;
		pos += extent_crc_store(pos, &crc) * 8;
	}
	for (unsigned i = 0; i < region->ptr_nr; i++, pos += 8) {
		struct extent_ptr p = region->ptrs[i];
		p.sector += has_crc ? 0 : skip;
		extent_ptr_store(pos, &p);
	}
	volume_key_add(v, btree_id, k, value, (size_t)(pos - value));
}

void volume_extent_add(struct volume *v, unsigned type, uint64_t begin, uint32_t sectors, const void *value,
		       size_t bytes)
{
	struct bkey k = { .p = BPOS(VOLUME_INUM, begin + sectors, VOLUME_SNAPSHOT),
			  .size = sectors,
			  .type = (uint8_t)type };

	volume_key_add(v, BTREE_EXTENTS, k, value, bytes);
}

/* --- faults --- */

void volume_fault(struct volume *v, unsigned dev, enum device_fault_kind kind, uint64_t begin, uint64_t end,
		  uint32_t per_million)
{
	struct device_fault fault = {
		.kind = kind,
		.op = DEVICE_READ,
		.begin_bytes = begin * SECTOR_BYTES,
		.end_bytes = end * SECTOR_BYTES,
		.per_million = per_million,
		.err = -EIO,
		.remaining = UINT64_MAX,
	};

	assert_int_equal(device_fault_add(v->members[dev].dev, &fault), 0);
}

struct device *volume_detach(struct volume *v, unsigned dev)
{
	struct device *device = v->members[dev].dev;

	v->members[dev].dev = NULL;
	return device;
}

void volume_attach(struct volume *v, unsigned dev, struct device *device) { v->members[dev].dev = device; }

/* --- content --- */

void fill_text(struct rng *rng, uint8_t *buf, size_t len)
{
	uint64_t nr = rng_below(rng, 1000000);

	for (size_t pos = 0; pos < len;) {
		char line[64];
		int n = snprintf(line, sizeof(line), "line %06llu of compressible text\n",
				 (unsigned long long)nr++ % 1000000);
		size_t part = min((size_t)n, len - pos);
		memcpy(buf + pos, line, part);
		pos += part;
	}
}

void fill_random(struct rng *rng, uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)rng_u64(rng);
}

void damage_note(void *ctx, uint64_t offset_bytes, uint64_t len_bytes, int err)
{
	struct damage_list *list = ctx;

	assert_true(err < 0 && err > -4096);
	assert_true(list->nr < ARRAY_NR(list->ranges));
	if (list->nr)
		assert_true(offset_bytes >= list->ranges[list->nr - 1].offset + list->ranges[list->nr - 1].len);
	list->ranges[list->nr].offset = offset_bytes;
	list->ranges[list->nr++].len = len_bytes;
}
