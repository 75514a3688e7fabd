/* Inode values: inode_v3 (29), and the older inode_v2 (23) and inode (8); inode_generation (9). 04 §1. */
#ifndef KILN_FORMAT_INODE_H
#define KILN_FORMAT_INODE_H

#include "format/key_types.h"

enum { INODE_NR_FIRST = 4096, INODE_NR_ROOT = 4096 };

enum inode_flag {
	INODE_SYNC = 1 << 0,
	INODE_IMMUTABLE = 1 << 1,
	INODE_APPEND = 1 << 2,
	INODE_NODUMP = 1 << 3,
	INODE_NOATIME = 1 << 4,
	INODE_SIZE_DIRTY = 1 << 5,
	INODE_SECTORS_DIRTY = 1 << 6,
	INODE_UNLINKED = 1 << 7,
	INODE_BACKPTR_UNTRUSTED = 1 << 8,
	INODE_HAS_CHILD_SNAPSHOT = 1 << 9,
	INODE_CASEFOLD = 1 << 10,
	INODE_31BIT_DIRENT_OFFSET = 1 << 11,
};

/* An option of an inode: stored as value + 1; 0 = not set. Index = bit in fields_set (04 §1.6). */
enum inode_opt {
	INODE_OPT_DATA_CHECKSUM,
	INODE_OPT_COMPRESSION,
	INODE_OPT_PROJECT,
	INODE_OPT_BACKGROUND_COMPRESSION,
	INODE_OPT_DATA_REPLICAS,
	INODE_OPT_PROMOTE_TARGET,
	INODE_OPT_FOREGROUND_TARGET,
	INODE_OPT_BACKGROUND_TARGET,
	INODE_OPT_ERASURE_CODE,
	INODE_OPT_NOCOW,
	INODE_OPT_NR_1_4,
	INODE_OPT_INODES_32BIT = INODE_OPT_NR_1_4,
	INODE_OPT_CASEFOLD,
	INODE_OPT_NR,
};

/* Unpacked inode. Times are in the filesystem's units, relative to its time base (inode_time_decode). */
struct inode {
	uint64_t inum;	   /* from the key */
	uint32_t snapshot; /* from the key */
	uint64_t journal_seq;
	uint64_t hash_seed;
	uint32_t flags;	  /* enum inode_flag, 20 bits */
	uint8_t str_hash; /* enum str_hash_type */
	uint16_t mode;
	uint64_t sectors;
	uint64_t size;
	uint64_t version;
	uint64_t atime, ctime, mtime, otime;
	uint32_t uid, gid;
	uint32_t nlink; /* biased, see inode_nlink() */
	uint32_t generation;
	uint32_t dev;
	uint32_t opts[INODE_OPT_NR]; /* value + 1 */
	uint16_t fields_set;
	uint64_t dir, dir_offset;
	uint32_t subvol, parent_subvol;
	uint32_t depth;
};

/* Decode any of the three inode types. Returns 0 or -KILN_E_INVALID. */
int inode_unpack(struct bkey_ref k, struct inode *inode, struct fault *fault);
/* Encode as inode_v3 value; returns bytes used (a multiple of 8), at most INODE_V3_BYTES_MAX. */
enum { INODE_V3_BYTES_MAX = 48 + 32 * 18 };
size_t inode_pack(const struct inode *inode, uint8_t value[INODE_V3_BYTES_MAX]);

/* st_nlink (04 §1.6). */
uint32_t inode_nlink(const struct inode *inode);
/* Decode bi_dev by the rule of thumb of 04 §1.6. */
void inode_dev(const struct inode *inode, uint32_t *major, uint32_t *minor);

struct inode_time {
	int64_t sec;
	uint32_t nsec;
};
/*
 * Times as the format has them: 64 bits, in units of the filesystem, so with the usual nanoseconds from 1677-09-21 to
 * 2262-04-11. A time outside becomes the nearest that there is.
 */
struct inode_time inode_time_decode(const struct key_context *ctx, uint64_t t);
uint64_t inode_time_encode(const struct key_context *ctx, struct inode_time t);

int inode_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void inode_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
/* Generation number in an inode_generation key. */
uint32_t inode_generation_decode(struct bkey_ref k);
int inode_generation_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void inode_generation_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);

#endif
