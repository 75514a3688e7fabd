/* Builds filesystem images (see image.h). */
#include "builder/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/array.h"
#include "format/alloc.h"
#include "format/extent.h"
#include "format/file_data.h"
#include "format/jset.h"
#include "format/snapshot.h"
#include "format/str_hash.h"
#include "format/superblock.h"
#include "format/version.h"

enum {
	SB_AREA_SECTORS = 2048, /* reserved for each copy */
	SB_COPIES = 3,
	JOURNAL_BUCKETS = 8,
	JOURNAL_SEQ = 9,
	INLINE_BYTES_MAX = 1024,
	SPARE_BUCKETS = 64,
};
static const uint32_t snapshot_id = UINT32_MAX;

const struct image_options image_options_default = {
	.block_bytes = 4096,
	.node_bytes = 256 << 10,
	.bucket_bytes = 512 << 10,
	.extent_bytes = 64 << 10,
	.metadata_csum = CHECKSUM_CRC32C_NONZERO,
	.data_csum = CHECKSUM_CRC32C,
	.sets_per_node = 1,
	.seed = 1,
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t bucket_sectors(const struct image *image) { return image->options.bucket_bytes / SECTOR_BYTES; }
static uint64_t block_sectors(const struct image *image) { return image->options.block_bytes / SECTOR_BYTES; }

static void write_at(struct image *image, uint64_t sector, const void *bytes, size_t len)
{
	const uint8_t *p = bytes;
	off_t at = (off_t)(sector * SECTOR_BYTES);

	while (len) {
		ssize_t n = pwrite(image->fd, p, len, at);

		if (n < 0)
			die("write");
		p += n;
		at += n;
		len -= (size_t)n;
	}
}

/* @sectors from the bucket that is being filled, or a new one. */
static uint64_t place(struct image *image, uint64_t *next, uint64_t *end, uint64_t sectors)
{
	if (*next + sectors > *end) {
		*next = image->bucket_next++ * bucket_sectors(image);
		*end = *next + bucket_sectors(image);
	}
	uint64_t sector = *next;
	*next += sectors;
	return sector;
}

static void node_place(void *ctx, const void *node, size_t bytes, struct btree_ptr *ptr)
{
	struct image *image = ctx;
	uint64_t sectors = image->options.node_bytes / SECTOR_BYTES;

	ptr->ptr_nr = 1;
	ptr->ptrs[0] =
		(struct extent_ptr){ .sector = place(image, &image->node_sector, &image->node_bucket_end, sectors) };
	image->node_sectors += sectors;
	write_at(image, ptr->ptrs[0].sector, node, bytes);
}

/* --- keys --- */

void image_put_key(struct image *image, unsigned btree_id, struct bpos p, uint32_t size, unsigned type,
		   const void *value, size_t value_bytes)
{
	struct image_keys *keys = &image->keys[btree_id];
	size_t words = div_round_up_u64(value_bytes, 8);
	uint8_t *copy = tree_builder_alloc(&image->trees, max(words * 8, (size_t)8));

	if (value_bytes)
		memcpy(copy, value, value_bytes);
	if (array_grow(&keys->v, &keys->capacity, keys->nr + 1, sizeof(*keys->v)))
		die("memory");
	keys->v[keys->nr++] = (struct bkey_ref){
		.k = { .p = p, .size = size, .type = (uint8_t)type, .value_u64s = (uint8_t)words },
		.value = copy,
	};
}

struct inode image_inode(struct image *image, unsigned mode)
{
	image->inode_nr++;
	return (struct inode){
		.inum = image->inum_next++,
		.snapshot = snapshot_id,
		.journal_seq = 1,
		.hash_seed = rng_u64(&image->rng),
		.str_hash = STR_HASH_SIPHASH,
		.mode = (uint16_t)mode,
		.atime = 1000000000,
		.ctime = 2000000000,
		.mtime = 3000000000,
		.otime = 1000000000,
	};
}

void image_put_inode(struct image *image, const struct inode *inode)
{
	uint8_t value[INODE_V3_BYTES_MAX];
	size_t bytes = inode_pack(inode, value);

	image_put_key(image, BTREE_INODES, BPOS(0, inode->inum, snapshot_id), 0, KEY_INODE_V3, value, bytes);
}

uint64_t image_put_dirent(struct image *image, struct image_dir dir, const void *name, size_t len, unsigned type,
			  uint64_t inum, unsigned probe)
{
	uint8_t value[BKEY_VALUE_U64S_MAX * 8];
	struct dirent d = {
		.type = (uint8_t)type,
		.inum = inum,
		.child_subvol = (uint32_t)inum,
		.parent_subvol = dir.subvol,
		.name = name,
		.name_len = (uint16_t)len,
	};
	size_t bytes = dirent_encode(&d, value, sizeof(value));
	uint64_t slot = str_hash_dirent(STR_HASH_SIPHASH, dir.hash_seed, name, len, 0) + probe;

	if (!bytes) {
		fprintf(stderr, "a name of %zu bytes can't be stored\n", len);
		exit(1);
	}
	image_put_key(image, BTREE_DIRENTS, BPOS(dir.inum, slot, snapshot_id), 0, KEY_DIRENT, value, bytes);
	return slot;
}

void image_put_object(struct image *image, struct image_dir dir, const void *name, size_t len, struct inode *inode)
{
	inode->dir = dir.inum;
	inode->dir_offset = image_put_dirent(image, dir, name, len, inode->mode >> 12, inode->inum, 0);
	image_put_inode(image, inode);
}

static void extent_put(struct image *image, unsigned btree_id, uint64_t inum, uint64_t sector, uint32_t sectors)
{
	size_t bytes = (size_t)sectors * SECTOR_BYTES;
	uint8_t value[64] = { 0 }, *at = value;

	for (size_t i = 0; i < bytes / 8; i++)
		le64_store(image->buf + i * 8,
			   image_file_word(image->options.seed, inum, sector * (SECTOR_BYTES / 8) + i));

	struct extent_ptr ptr = { .sector = place(image, &image->data_sector, &image->data_bucket_end, sectors) };
	struct extent_crc crc = {
		.compressed_sectors = sectors,
		.uncompressed_sectors = sectors,
		.csum_type = (uint8_t)image->options.data_csum,
		.csum = checksum_compute(image->options.data_csum, NULL, (struct nonce){ { 0 } }, image->buf, bytes),
	};
	if (btree_id == BTREE_REFLINK) {
		le64_store(at, 1);
		at += 8;
	}
	if (crc.csum_type)
		at += extent_crc_store(at, &crc) * 8;
	extent_ptr_store(at, &ptr);
	at += 8;
	write_at(image, ptr.sector, image->buf, bytes);
	image->data_sectors += sectors;
	if (btree_id == BTREE_REFLINK)
		image_put_key(image, BTREE_REFLINK, BPOS(0, sector + sectors, 0), sectors, KEY_REFLINK_V, value,
			      (size_t)(at - value));
	else
		image_put_key(image, BTREE_EXTENTS, BPOS(inum, sector + sectors, snapshot_id), sectors, KEY_EXTENT,
			      value, (size_t)(at - value));
}

void image_put_data(struct image *image, unsigned btree_id, uint64_t inum, uint64_t sector, uint64_t sectors)
{
	for (uint64_t end = sector + sectors; sector < end;) {
		uint64_t n = min(end - sector, (uint64_t)image->options.extent_bytes / SECTOR_BYTES);

		extent_put(image, btree_id, inum, sector, (uint32_t)n);
		sector += n;
	}
}

void image_put_reflink(struct image *image, uint64_t inum, uint64_t sector, uint32_t sectors, uint64_t idx)
{
	uint8_t value[16] = { 0 };

	le64_store(value, idx);
	image_put_key(image, BTREE_EXTENTS, BPOS(inum, sector + sectors, snapshot_id), sectors, KEY_REFLINK_P, value,
		      sizeof(value));
}

static void inline_put(struct image *image, uint64_t inum, const void *bytes, size_t len)
{
	image_put_key(image, BTREE_EXTENTS, BPOS(inum, block_sectors(image), snapshot_id),
		      (uint32_t)block_sectors(image), KEY_INLINE_DATA, bytes, len);
}

/* --- objects --- */

struct image_dir image_add_dir(struct image *image, struct image_dir parent, const char *name, unsigned mode)
{
	struct inode inode = image_inode(image, S_IFDIR | (mode & 07777));

	image_put_object(image, parent, name, strlen(name), &inode);
	return (struct image_dir){ inode.inum, inode.hash_seed, parent.subvol };
}

uint64_t image_add_file(struct image *image, struct image_dir parent, const char *name, unsigned mode, uint64_t bytes)
{
	struct inode inode = image_inode(image, S_IFREG | (mode & 07777));

	inode.size = bytes;
	inode.sectors = round_up_u64(bytes, image->options.block_bytes) / SECTOR_BYTES;
	if (bytes && bytes <= min((uint32_t)INLINE_BYTES_MAX, image->options.block_bytes)) {
		uint8_t data[INLINE_BYTES_MAX] = { 0 };

		for (size_t i = 0; i < bytes; i++)
			data[i] = (uint8_t)(image_file_word(image->options.seed, inode.inum, i / 8) >> i % 8 * 8);
		inline_put(image, inode.inum, data, bytes);
	} else {
		image_put_data(image, BTREE_EXTENTS, inode.inum, 0, inode.sectors);
	}
	image_put_object(image, parent, name, strlen(name), &inode);
	return inode.inum;
}

uint64_t image_add_symlink(struct image *image, struct image_dir parent, const char *name, const char *target)
{
	struct inode inode = image_inode(image, S_IFLNK | 0777);

	inode.size = strlen(target);
	inode.sectors = block_sectors(image);
	inline_put(image, inode.inum, target, strlen(target));
	image_put_object(image, parent, name, strlen(name), &inode);
	return inode.inum;
}

uint64_t image_add_special(struct image *image, struct image_dir parent, const char *name, unsigned mode, uint32_t dev)
{
	struct inode inode = image_inode(image, mode);

	inode.dev = dev;
	image_put_object(image, parent, name, strlen(name), &inode);
	return inode.inum;
}

/* --- begin --- */

static void snapshots_put(struct image *image)
{
	uint8_t tree[8] = { 0 }, snapshot[40] = { 0 }, subvol[40] = { 0 };

	le32_store(tree, SUBVOL_ROOT);
	le32_store(tree + 4, snapshot_id);
	image_put_key(image, BTREE_SNAPSHOT_TREES, BPOS(0, 1, 0), 0, KEY_SNAPSHOT_TREE, tree, sizeof(tree));
	le32_store(snapshot, 2);
	le32_store(snapshot + 16, SUBVOL_ROOT);
	le32_store(snapshot + 20, 1);
	image_put_key(image, BTREE_SNAPSHOTS, BPOS(0, snapshot_id, 0), 0, KEY_SNAPSHOT, snapshot, sizeof(snapshot));
	le32_store(subvol + 4, snapshot_id);
	le64_store(subvol + 8, INODE_NR_ROOT);
	image_put_key(image, BTREE_SUBVOLUMES, BPOS(0, SUBVOL_ROOT, 0), 0, KEY_SUBVOLUME, subvol, sizeof(subvol));
}

void image_begin(struct image *image, const char *path, const struct image_options *options, struct image_dir *root)
{
	*image = (struct image){
		.options = *options,
		.inum_next = INODE_NR_ROOT,
		.reflink_next = 1024,
		.subvol_next = SUBVOL_ROOT + 1,
	};
	image->fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0666);
	if (image->fd < 0)
		die(path);
	image->buf = aligned_alloc(4096, round_up_u64(options->extent_bytes, 4096));
	if (!image->buf)
		die("memory");
	rng_init(&image->rng, options->seed);
	for (unsigned i = 0; i < sizeof(image->uuid); i++)
		image->uuid[i] = (uint8_t)rng_u64(&image->rng);

	image->trees = (struct tree_builder){
		.magic = btree_node_magic(image->uuid),
		.version = VERSION_1_4,
		.csum_type = options->metadata_csum,
		.node_bytes = options->node_bytes,
		.block_bytes = options->block_bytes,
		.keys_per_node = options->node_bytes / 16,
		.sets_per_node = options->sets_per_node,
		.place = node_place,
		.ctx = image,
	};
	rng_init(&image->trees.rng, options->seed + 1);

	/* Buckets of the first two superblocks, the journal, and then whatever comes. */
	image->bucket_next = div_round_up_u64(SB_SECTOR + 2 * SB_AREA_SECTORS, bucket_sectors(image)) + JOURNAL_BUCKETS;

	struct inode inode = image_inode(image, S_IFDIR | 0755);
	inode.subvol = SUBVOL_ROOT;
	image_put_inode(image, &inode);
	*root = (struct image_dir){ inode.inum, inode.hash_seed, SUBVOL_ROOT };
	snapshots_put(image);
}

/* --- end --- */

static int key_cmp(const void *a, const void *b)
{
	return bpos_cmp(((const struct bkey_ref *)a)->k.p, ((const struct bkey_ref *)b)->k.p);
}

/* Superblock sections and sub-entries: bytes that are appended. */
struct bytes {
	uint8_t *v;
	size_t len, capacity;
};

static uint8_t *bytes_add(struct bytes *b, size_t len)
{
	size_t padded = round_up_u64(len, 8);

	if (array_grow(&b->v, &b->capacity, b->len + padded, 1))
		die("memory");
	memset(b->v + b->len, 0, padded);
	b->len += padded;
	return b->v + b->len - padded;
}

static uint8_t *sub_entry_add(struct bytes *b, unsigned type, unsigned btree_id, unsigned level, size_t payload_bytes)
{
	struct jset_entry_disk *e = (struct jset_entry_disk *)bytes_add(b, sizeof(*e) + payload_bytes);

	e->u64s = le16_of((uint16_t)div_round_up_u64(payload_bytes, 8));
	e->btree_id = (uint8_t)btree_id;
	e->level = (uint8_t)level;
	e->type = (uint8_t)type;
	return (uint8_t *)(e + 1);
}

static void roots_add(struct image *image, struct bytes *subs)
{
	for (unsigned id = 0; id < BTREE_NR_1_4; id++) {
		struct image_keys *keys = &image->keys[id];

		if (!keys->nr)
			continue;
		qsort(keys->v, keys->nr, sizeof(*keys->v), key_cmp);
		struct built_root root = tree_build(&image->trees, id, keys->v, keys->nr);
		size_t value_bytes = bkey_value_bytes(&root.key.k);
		struct bkey_disk *d = (struct bkey_disk *)sub_entry_add(subs, JSET_ENTRY_BTREE_ROOT, id, root.level,
									sizeof(*d) + value_bytes);

		bkey_store(d, &root.key.k);
		memcpy(d + 1, root.key.value, value_bytes);
	}
}

static void data_usage_add(struct bytes *subs, unsigned type, uint64_t sectors)
{
	uint8_t *p = sub_entry_add(subs, JSET_ENTRY_DATA_USAGE, 0, 0, 16);

	le64_store(p, sectors);
	memcpy(p + 8, (uint8_t[]){ (uint8_t)type, 1, 1, 0 }, 4);
}

static void counters_add(struct image *image, struct bytes *subs, uint64_t bucket_nr)
{
	uint64_t sb_buckets = div_round_up_u64(SB_SECTOR + 2 * SB_AREA_SECTORS, bucket_sectors(image)) +
			      div_round_up_u64(SB_AREA_SECTORS, bucket_sectors(image));
	uint64_t node_buckets = div_round_up_u64(image->node_sectors, bucket_sectors(image));
	uint64_t data_buckets = div_round_up_u64(image->data_sectors, bucket_sectors(image));
	const uint64_t types[10][2] = {
		[DATA_FREE] = { bucket_nr - sb_buckets - JOURNAL_BUCKETS - node_buckets - data_buckets, 0 },
		[DATA_SB] = { sb_buckets, SB_SECTOR + SB_COPIES * SB_AREA_SECTORS },
		[DATA_JOURNAL] = { JOURNAL_BUCKETS, JOURNAL_BUCKETS * bucket_sectors(image) },
		[DATA_BTREE] = { node_buckets, image->node_sectors },
		[DATA_USER] = { data_buckets, image->data_sectors },
	};

	le64_store(sub_entry_add(subs, JSET_ENTRY_USAGE, 1, 0, 8), image->inode_nr);
	data_usage_add(subs, DATA_JOURNAL, 0);
	data_usage_add(subs, DATA_BTREE, image->node_sectors);
	data_usage_add(subs, DATA_USER, image->data_sectors);
	uint8_t *p = sub_entry_add(subs, JSET_ENTRY_DEV_USAGE, 0, 0, 24 + sizeof(types) / 2 * 3);
	for (unsigned i = 0; i < ARRAY_NR(types); i++) {
		le64_store(p + 24 + i * 24, types[i][0]);
		le64_store(p + 32 + i * 24, types[i][1]);
		if (i == DATA_BTREE || i == DATA_USER)
			le64_store(p + 40 + i * 24, types[i][0] * bucket_sectors(image) - types[i][1]);
	}
	for (unsigned rw = 0; rw < 2; rw++)
		sub_entry_add(subs, JSET_ENTRY_CLOCK, 0, 0, 16)[0] = (uint8_t)rw;
}

static uint8_t *section_add(struct bytes *b, unsigned type, size_t payload_bytes)
{
	uint8_t *p = bytes_add(b, 8 + payload_bytes);

	le32_store(p, (uint32_t)div_round_up_u64(8 + payload_bytes, 8));
	le32_store(p + 4, type);
	return p + 8;
}

static void member_fill(const struct image *image, uint8_t m[128], uint64_t bucket_nr)
{
	memset(m, 0, 128);
	memset(m, 0xa5, 16);
	le64_store(m + 16, bucket_nr);
	le16_store(m + 26, (uint16_t)bucket_sectors(image));
	le64_store(m + 40, 0x600e0000);
	le64_store(m + 120, 7);
}

/* Number of a checksum type as an option of the superblock. */
static uint64_t csum_option(unsigned type)
{
	switch (type) {
	case CHECKSUM_CRC32C:
	case CHECKSUM_CRC32C_NONZERO: return 1;
	case CHECKSUM_CRC64:
	case CHECKSUM_CRC64_NONZERO: return 2;
	case CHECKSUM_XXHASH: return 3;
	default: return 0;
	}
}

static void header_fill(const struct image *image, struct sb_disk *sb, uint64_t bucket_nr)
{
	const struct image_options *o = &image->options;
	uint64_t flags0 = 0x0111000080000103ull | (uint64_t)(o->node_bytes / SECTOR_BYTES) << 12 |
			  csum_option(o->metadata_csum) << 40 | csum_option(o->data_csum) << 44;
	uint64_t flags1 = bits_set(0x111c102, 14, 20, (uint64_t)bit_length_u64(o->extent_bytes / SECTOR_BYTES) - 1);
	const uint64_t flags[7] = { flags0, flags1, 0, 0xfa30000000, 0x100000064, VERSION_1_4, 0 };

	sb->version = sb->version_min = le16_of(VERSION_1_4);
	memcpy(sb->magic, sb_magic, 16);
	memcpy(sb->uuid, image->uuid, 16);
	memcpy(sb->user_uuid, image->uuid, 16);
	sb->user_uuid[0] ^= 0xff;
	memcpy(sb->label, "built", 5);
	sb->seq = le64_of(7);
	sb->block_size = le16_of((uint16_t)block_sectors(image));
	sb->nr_devices = 1;
	sb->time_base_lo = le64_of(1700000000ull * 1000000000);
	sb->time_precision = le32_of(1);
	sb->write_time = le64_of(1700000000);
	for (unsigned i = 0; i < 7; i++)
		sb->flags[i] = le64_of(flags[i]);
	/* Of a clean one, plus reflink and inline data. */
	sb->features[0] = le64_of(0x78a80 | 1 << SB_FEATURE_REFLINK | 1 << SB_FEATURE_INLINE_DATA);
	sb->compat[0] = le64_of(0xf);

	memcpy(sb->layout.magic, sb_magic, 16);
	sb->layout.sb_max_size_bits = 11;
	sb->layout.nr_superblocks = SB_COPIES;
	sb->layout.sb_offset[0] = le64_of(SB_SECTOR);
	sb->layout.sb_offset[1] = le64_of(SB_SECTOR + SB_AREA_SECTORS);
	sb->layout.sb_offset[2] =
		le64_of(round_down_u64(bucket_nr * bucket_sectors(image) - SB_AREA_SECTORS, bucket_sectors(image)));
}

static void superblocks_write(struct image *image, uint64_t bucket_nr, const struct bytes *clean)
{
	struct bytes b = { 0 };
	uint8_t member[128];

	bytes_add(&b, sizeof(struct sb_disk));
	member_fill(image, member, bucket_nr);
	uint8_t *p = section_add(&b, SB_MEMBERS_V2, 8 + sizeof(member));
	le16_store(p, sizeof(member));
	memcpy(p + 8, member, sizeof(member));
	memcpy(section_add(&b, SB_MEMBERS_V1, 56), member, 56);
	p = section_add(&b, SB_JOURNAL_V2, 16);
	le64_store(p, div_round_up_u64(SB_SECTOR + 2 * SB_AREA_SECTORS, bucket_sectors(image)));
	le64_store(p + 8, JOURNAL_BUCKETS);
	memcpy(section_add(&b, SB_REPLICAS_V0, 9), (uint8_t[]){ DATA_BTREE, 1, 0, DATA_JOURNAL, 1, 0, DATA_USER, 1, 0 },
	       9);
	section_add(&b, SB_ERRORS, 0);
	section_add(&b, SB_DOWNGRADE, 0);
	p = section_add(&b, SB_CLEAN, 16 + clean->len);
	le64_store(p + 8, JOURNAL_SEQ);
	memcpy(p + 16, clean->v, clean->len);

	struct sb_disk *sb = (struct sb_disk *)b.v;
	header_fill(image, sb, bucket_nr);
	sb->u64s = le32_of((uint32_t)((b.len - sizeof(*sb)) / 8));
	write_at(image, SB_LAYOUT_SECTOR, &sb->layout, sizeof(sb->layout));
	for (unsigned i = 0; i < SB_COPIES; i++) {
		sb->offset = sb->layout.sb_offset[i];
		sb_seal(sb, CHECKSUM_CRC32C_NONZERO);
		write_at(image, le64_get(sb->offset), sb, b.len);
	}
	free(b.v);
}

/* The last entry that a clean shutdown writes: everything that the clean section says, and no keys. */
static void journal_write(struct image *image, const struct bytes *subs)
{
	struct jset_disk *j = calloc(1, sizeof(*j) + subs->len);

	if (!j)
		die("memory");
	j->magic = le64_of(jset_magic(image->uuid));
	j->seq = j->last_seq = le64_of(JOURNAL_SEQ);
	j->version = le32_of(VERSION_1_4);
	j->u64s = le32_of((uint32_t)(subs->len / 8));
	memcpy(j + 1, subs->v, subs->len);
	jset_seal(j, image->options.metadata_csum, NULL);
	write_at(image,
		 div_round_up_u64(SB_SECTOR + 2 * SB_AREA_SECTORS, bucket_sectors(image)) * bucket_sectors(image), j,
		 sizeof(*j) + subs->len);
	free(j);
}

void image_finish(struct image *image)
{
	struct bytes roots = { 0 }, subs = { 0 };

	roots_add(image, &roots);
	uint64_t bucket_nr =
		image->bucket_next + div_round_up_u64(SB_AREA_SECTORS, bucket_sectors(image)) + SPARE_BUCKETS;
	if (ftruncate(image->fd, (off_t)(bucket_nr * image->options.bucket_bytes)))
		die("truncate");
	counters_add(image, &subs, bucket_nr);
	memcpy(bytes_add(&subs, roots.len), roots.v, roots.len);
	journal_write(image, &subs);
	superblocks_write(image, bucket_nr, &subs);

	if (close(image->fd))
		die("close");
	for (unsigned id = 0; id < BTREE_NR_1_4; id++)
		free(image->keys[id].v);
	tree_builder_free(&image->trees);
	free(roots.v);
	free(subs.v);
	free(image->buf);
}
