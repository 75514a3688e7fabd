/*
 * Builds filesystem images without a running filesystem, for tests and benchmarks: clean ones, at format 1.4, on one
 * device, of any size, valid for readers.
 *
 * Objects are added in any order; image_finish() sorts the keys, writes the btrees, the superblocks, the clean section
 * and a last journal entry. What only a writer needs (allocation keys, backpointers, free space) is left out: the image
 * can be mounted read-only, and fsck would have much to rebuild.
 *
 * Nothing stops the caller from adding what can't be: that is what hostile images are made of.
 */
#ifndef KILN_TESTS_BUILDER_IMAGE_H
#define KILN_TESTS_BUILDER_IMAGE_H

#include "base/clock.h"
#include "btree/tree_builder.h"
#include "format/dirent.h"
#include "format/inode.h"

struct image_options {
	uint32_t block_bytes, node_bytes, bucket_bytes, extent_bytes;
	unsigned metadata_csum, data_csum; /* enum checksum_type */
	unsigned sets_per_node;
	uint64_t seed;
};

struct image_keys {
	struct bkey_ref *v;
	size_t nr, capacity;
};

struct image {
	struct image_options options;
	int fd;
	uint8_t uuid[16];
	struct rng rng;
	struct tree_builder trees;
	struct image_keys keys[BTREE_NR_1_4];
	uint64_t bucket_next;	  /* first unused bucket */
	uint64_t data_sector;	  /* where the next extent goes, */
	uint64_t data_bucket_end; /* and where its bucket ends */
	uint64_t node_sector, node_bucket_end;
	uint64_t inum_next, reflink_next;
	uint64_t inode_nr, data_sectors, node_sectors;
	uint32_t subvol_next;
	uint8_t *buf; /* one extent */
};

extern const struct image_options image_options_default;

/* A directory that things are put in: its number and the seed of its hash. */
struct image_dir {
	uint64_t inum, hash_seed;
	uint32_t subvol;
};

/* Ends the program on errors, as everything here does. The root directory is *@root. */
void image_begin(struct image *image, const char *path, const struct image_options *options, struct image_dir *root);
void image_finish(struct image *image);

/* --- the usual --- */

/* @mode with type and permissions. Returns the inode number. */
struct image_dir image_add_dir(struct image *image, struct image_dir parent, const char *name, unsigned mode);
/*
 * A file of @bytes bytes. The little-endian 64-bit word at offset 8 * i is image_file_word(); small files are stored
 * inline where they fit.
 */
uint64_t image_add_file(struct image *image, struct image_dir parent, const char *name, unsigned mode, uint64_t bytes);
uint64_t image_add_symlink(struct image *image, struct image_dir parent, const char *name, const char *target);
/* Device nodes, sockets, pipes. */
uint64_t image_add_special(struct image *image, struct image_dir parent, const char *name, unsigned mode, uint32_t dev);

static inline uint64_t image_file_word(uint64_t seed, uint64_t inum, uint64_t i)
{
	return (seed + 1) * 0x9e3779b97f4a7c15ull ^ inum << 40 ^ i;
}

/* --- pieces --- */

/* An inode alone, with the defaults that a file has; change it and hand it to image_put_inode(). */
struct inode image_inode(struct image *image, unsigned mode);
void image_put_inode(struct image *image, const struct inode *inode);
/*
 * A dirent alone; its slot is the hash, plus @probe for names that are there already. Returns the slot. @inum is a
 * subvolume's number for DIRENT_TYPE_SUBVOL.
 */
uint64_t image_put_dirent(struct image *image, struct image_dir dir, const void *name, size_t len, unsigned type,
			  uint64_t inum, unsigned probe);
/* Inode and dirent that belong together; fills in the backpointer. */
void image_put_object(struct image *image, struct image_dir dir, const void *name, size_t len, struct inode *inode);
/* Any key; the value is copied. */
void image_put_key(struct image *image, unsigned btree_id, struct bpos p, uint32_t size, unsigned type,
		   const void *value, size_t value_bytes);
/* Data extents of @inum for @sectors sectors from @sector of the file; @btree_id reflink: indirect ones. */
void image_put_data(struct image *image, unsigned btree_id, uint64_t inum, uint64_t sector, uint64_t sectors);
/* A range of the file that refers to indirect extents. */
void image_put_reflink(struct image *image, uint64_t inum, uint64_t sector, uint32_t sectors, uint64_t idx);

#endif
