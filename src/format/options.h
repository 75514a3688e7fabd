/*
 * Options: one table with everything about each (10 §2). Values are uint64_t in the option's own unit (bytes, ms, ...).
 */
#ifndef KILN_FORMAT_OPTIONS_H
#define KILN_FORMAT_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/report.h"

struct sb_disk;
struct strbuf;

enum option_id {
	OPT_BLOCK_SIZE,
	OPT_BTREE_NODE_SIZE,
	OPT_ERRORS,
	OPT_METADATA_REPLICAS,
	OPT_DATA_REPLICAS,
	OPT_METADATA_REPLICAS_REQUIRED,
	OPT_DATA_REPLICAS_REQUIRED,
	OPT_ENCODED_EXTENT_MAX,
	OPT_METADATA_CHECKSUM,
	OPT_DATA_CHECKSUM,
	OPT_COMPRESSION,
	OPT_BACKGROUND_COMPRESSION,
	OPT_STR_HASH,
	OPT_METADATA_TARGET,
	OPT_FOREGROUND_TARGET,
	OPT_BACKGROUND_TARGET,
	OPT_PROMOTE_TARGET,
	OPT_ERASURE_CODE,
	OPT_INODES_32BIT,
	OPT_SHARD_INODE_NUMBERS,
	OPT_INODES_USE_KEY_CACHE,
	OPT_BTREE_NODE_MEM_PTR_OPTIMIZATION,
	OPT_GC_RESERVE_PERCENT,
	OPT_GC_RESERVE_BYTES,
	OPT_ROOT_RESERVE_PERCENT,
	OPT_WIDE_MACS,
	OPT_INLINE_DATA,
	OPT_ACL,
	OPT_USRQUOTA,
	OPT_GRPQUOTA,
	OPT_PRJQUOTA,
	OPT_DEGRADED,
	OPT_VERY_DEGRADED,
	OPT_DISCARD,
	OPT_VERBOSE,
	OPT_JOURNAL_FLUSH_DELAY,
	OPT_JOURNAL_FLUSH_DISABLED,
	OPT_JOURNAL_RECLAIM_DELAY,
	OPT_MOVE_BYTES_IN_FLIGHT,
	OPT_MOVE_IOS_IN_FLIGHT,
	OPT_FSCK,
	OPT_FIX_ERRORS,
	OPT_RATELIMIT_ERRORS,
	OPT_NOCHANGES,
	OPT_NORECOVERY,
	OPT_KEEP_JOURNAL,
	OPT_READ_ENTIRE_JOURNAL,
	OPT_READ_JOURNAL_ONLY,
	OPT_JOURNAL_TRANSACTION_NAMES,
	OPT_NOEXCL,
	OPT_DIRECT_IO,
	OPT_SB,
	OPT_READ_ONLY,
	OPT_NOSTART,
	OPT_RECONSTRUCT_ALLOC,
	OPT_VERSION_UPGRADE,
	OPT_BUCKETS_NOUSE,
	OPT_STDIO,
	OPT_PROJECT,
	OPT_NOCOW,
	OPT_NOCOW_ENABLED,
	OPT_NO_DATA_IO,
	OPT_FS_SIZE,
	OPT_BUCKET,
	OPT_DURABILITY,
	OPT_BTREE_NODE_PREFETCH,
	OPT_NR,
};

enum option_type { OPTION_BOOL, OPTION_UINT, OPTION_STR, OPTION_COMPRESSION, OPTION_TARGET, OPTION_FIX_ERRORS };
enum option_where { OPTION_FORMAT = 1, OPTION_MOUNT = 2, OPTION_RUNTIME = 4, OPTION_INODE = 8, OPTION_DEVICE = 16 };

struct option_def {
	const char *name;
	enum option_type type;
	unsigned where;				 /* enum option_where, or'ed; 0 internal */
	uint64_t min, max;			 /* inclusive */
	uint64_t initial;			 /* default */
	const char *const *words;		 /* OPTION_STR, OPTION_FIX_ERRORS: NULL-terminated */
	bool is_human;				 /* accepts and prints size suffixes */
	bool is_power_of_2, is_sectors, is_log2; /* constraints, and how the superblock stores it */
	struct {
		int8_t word;
		uint8_t lo, hi;
	} sb; /* word -1: not stored; -2: block_size of the header */
	struct {
		int8_t word;
		uint8_t lo, hi;
	} sb_high; /* compression: high bits; word -1 none */
	const char *help;
};
extern const struct option_def option_table[OPT_NR];
enum { OPTION_SB_NONE = -1, OPTION_SB_BLOCK_SIZE = -2 };
/* True if superblocks hold the option. */
static inline bool option_is_stored(enum option_id id) { return option_table[id].sb.word != OPTION_SB_NONE; }

/* Values of OPT_ERRORS, and what OPT_COMPRESSION and OPT_BACKGROUND_COMPRESSION are made of: type | level << 4. */
enum { OPTION_ERRORS_CONTINUE, OPTION_ERRORS_RO, OPTION_ERRORS_PANIC };
enum { OPTION_COMPRESSION_NONE, OPTION_COMPRESSION_LZ4, OPTION_COMPRESSION_GZIP, OPTION_COMPRESSION_ZSTD };
enum { OPTION_FIX_ERRORS_EXIT, OPTION_FIX_ERRORS_YES, OPTION_FIX_ERRORS_NO, OPTION_FIX_ERRORS_ASK };
enum { OPTION_VERSION_UPGRADE_COMPATIBLE, OPTION_VERSION_UPGRADE_INCOMPATIBLE, OPTION_VERSION_UPGRADE_NONE };
static inline unsigned option_compression_type(uint64_t value) { return value & 0xf; }
static inline unsigned option_compression_level(uint64_t value) { return value >> 4 & 0xf; }

/* Targets (10 §5.1): 0 none, then devices, then disk groups. */
enum { TARGET_NONE = 0, TARGET_DEVICE_FIRST = 1, TARGET_GROUP_FIRST = 257, TARGET_BITS = 12 };

/* -ENOENT for unknown names. */
int option_id_parse(const char *name);
/* Is @value one that the option may have? */
bool option_is_valid(enum option_id id, uint64_t value);
/*
 * Parse a value (10 §3, §5); targets need @sb (may be NULL: then only "none" is accepted). @text NULL: the option was
 * given without a value. -EINVAL with @why (may be NULL) filled in.
 */
int option_parse(enum option_id id, const char *text, const struct sb_disk *sb, uint64_t *value, struct strbuf *why);
void option_to_text(struct strbuf *out, enum option_id id, uint64_t value, const struct sb_disk *sb);
/*
 * For help texts and manual pages: the values that can be given ("none|lz4", "4k-1M"; "N", "SIZE" where only the type
 * bounds them), and the default as it would be given.
 */
void option_values_to_text(struct strbuf *out, enum option_id id);
void option_default_to_text(struct strbuf *out, enum option_id id);
/* Value stored in the superblock, or the default for options that aren't stored or are out of range (*@in_range false).
 */
uint64_t option_from_sb(enum option_id id, const struct sb_disk *sb, bool *in_range);
/* Store into flag words (and block_size). Returns -EINVAL for values out of range and for options that aren't stored.
 */
int option_to_sb(enum option_id id, struct sb_disk *sb, uint64_t value);

#endif
