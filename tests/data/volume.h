/*
 * A filesystem's data in memory, for tests: devices with faults on demand, stripes, files made of every kind of extent,
 * and the bytes that must be read.
 *
 * Make a volume, add keys with the functions below, open it, read.
 */
#ifndef KILN_TESTS_DATA_VOLUME_H
#define KILN_TESTS_DATA_VOLUME_H

#include "../btree/fixture.h"
#include "data/data.h"
#include "device/device.h"

enum {
	VOLUME_DEVS = 6,
	VOLUME_BUCKET_SECTORS = 8192,
	VOLUME_DEV_BYTES = 256 << 20, /* sparse */
	VOLUME_INUM = 4098,
	VOLUME_SNAPSHOT = UINT32_MAX,
};

struct volume_keys {
	struct bkey_ref *refs;
	size_t nr, capacity;
};

struct volume {
	struct fixture f; /* btrees and their reports */
	struct member_geometry geometry[VOLUME_DEVS];
	struct super_member members[VOLUME_DEVS];
	struct super super;
	struct crypt_key key;
	struct volume_keys keys[BTREE_NR_KNOWN];
	uint64_t next_bucket[VOLUME_DEVS];
	struct rng rng;
	uint64_t next_version;
	uint32_t *ancestors; /* pairs (id, ancestor), ended by 0; NULL: all are their own */
	struct built_root roots[BTREE_NR_KNOWN];
	uint64_t memory_bytes;
	struct data *data;
	/* Reports of the data room. */
	struct mutex lock;
	unsigned reports[REPORT_FATAL + 1];
	uint32_t last_id;
	char last_device[64], last_expected[128], last_found[128];
	struct report_sink sink;
};

void volume_init(struct volume *v, uint64_t seed);
/* Build the btrees of all keys added, and open. @memory_bytes of the data room. */
void volume_open(struct volume *v, uint64_t memory_bytes);
/* Close and open again: nothing is in memory then. */
void volume_reopen(struct volume *v);
void volume_free(struct volume *v);

/* Key with a copy of @value (rounded up to words). */
void volume_key_add(struct volume *v, unsigned btree_id, struct bkey k, const void *value, size_t bytes);

/* How a region is stored. */
struct region_spec {
	unsigned csum_type;
	unsigned compression;
	uint32_t nonce_sectors;
	uint32_t devs;	      /* mask: a replica on each */
	uint32_t cached_devs; /* which of these are cached */
};
/* A region on devices, as an extent's entries. */
struct stored_region {
	uint8_t value[256];
	size_t value_bytes;
	struct bversion version;
	struct extent_crc crc;
	unsigned ptr_nr;
	struct extent_ptr ptrs[VOLUME_DEVS];
};
/* Store @data; if it doesn't get smaller it is stored as incompressible. */
struct stored_region volume_region_store(struct volume *v, const struct region_spec *spec, const uint8_t *data,
					 uint32_t sectors);
/* Compress with bcachefs' framing; bytes used, 0 if they don't fit into @size. */
size_t region_compress(unsigned type, const uint8_t *src, size_t len, uint8_t *dst, size_t size);
/*
 * The key of a region of which sectors [@skip, @skip + @sectors) are live, at @begin of the file (or of the reflink
 * btree).
 */
void volume_region_add(struct volume *v, unsigned btree_id, const struct stored_region *region, uint64_t begin,
		       uint32_t skip, uint32_t sectors);
/* Extents key without pointers: @type and value. */
void volume_extent_add(struct volume *v, unsigned type, uint64_t begin, uint32_t sectors, const void *value,
		       size_t bytes);

/* Faults of one device: @per_million of its reads of [@begin, @end) sectors (0, 0: all). */
void volume_fault(struct volume *v, unsigned dev, enum device_fault_kind kind, uint64_t begin, uint64_t end,
		  uint32_t per_million);
/* Take a device away, or (with NULL) nothing. Returns it, to be given back with volume_attach(). */
struct device *volume_detach(struct volume *v, unsigned dev);
void volume_attach(struct volume *v, unsigned dev, struct device *device);

/* Bytes that compress well, of any seed. */
void fill_text(struct rng *rng, uint8_t *buf, size_t len);
void fill_random(struct rng *rng, uint8_t *buf, size_t len);

/* Damage that a read told of. */
struct damage_list {
	struct {
		uint64_t offset, len;
	} ranges[64];
	unsigned nr;
};
void damage_note(void *ctx, uint64_t offset_bytes, uint64_t len_bytes, int err);

#endif
