/*
 * The superblock: layout block, header, flag words, sections (01; 12 §4 for newer versions).
 *
 * A superblock is kept as the bytes read from disk, validated; accessors decode from these bytes. Nothing here
 * allocates.
 */
#ifndef KILN_FORMAT_SUPERBLOCK_H
#define KILN_FORMAT_SUPERBLOCK_H

#include "base/le.h"
#include "base/report.h"
#include "base/strbuf.h"
#include "format/checksum.h"
#include "format/key_types.h"
#include "format/version.h"

enum {
	SB_SECTOR = 8, /* primary copy */
	SB_LAYOUT_SECTOR = 7,
	SB_LAYOUT_COPIES_MAX = 61,
	SB_MEMBERS_MAX = 256, /* sizes of tables; nr_devices is at most 64 at 1.4, 255 later */
	SB_DEVICE_NONE = 255, /* "no device" in pointers and replicas entries */
	SB_LABEL_BYTES = 32,
	SB_SIZE_BITS_MAX = 16, /* log2 sectors: 32 MiB */
	SB_MEMBER_BUCKETS_MIN = 64,
};

/* As stored; the old one is accepted too and replaced on writing. */
extern const uint8_t sb_magic[16];
extern const uint8_t sb_magic_old[16];

struct sb_layout_disk {
	uint8_t magic[16];
	uint8_t layout_type;
	uint8_t sb_max_size_bits;
	uint8_t nr_superblocks;
	uint8_t pad[5];
	le64 sb_offset[SB_LAYOUT_COPIES_MAX];
};
_Static_assert(sizeof(struct sb_layout_disk) == 512, "layout is 512 bytes");

struct sb_disk {
	uint8_t csum[16];
	le16 version, version_min;
	le16 pad[2];
	uint8_t magic[16];
	uint8_t uuid[16]; /* internal */
	uint8_t user_uuid[16];
	uint8_t label[SB_LABEL_BYTES];
	le64 offset;
	le64 seq;
	le16 block_size; /* sectors */
	uint8_t dev_idx;
	uint8_t nr_devices;
	le32 u64s;
	le64 time_base_lo;
	le32 time_base_hi;
	le32 time_precision;
	le64 flags[7];
	le64 write_time;
	le64 features[2];
	le64 compat[2];
	struct sb_layout_disk layout;
};
_Static_assert(sizeof(struct sb_disk) == 752, "superblock header is 752 bytes");

enum sb_section_type {
	SB_JOURNAL,
	SB_MEMBERS_V1,
	SB_CRYPT,
	SB_REPLICAS_V0,
	SB_QUOTA,
	SB_DISK_GROUPS,
	SB_CLEAN,
	SB_REPLICAS,
	SB_JOURNAL_SEQ_BLACKLIST,
	SB_JOURNAL_V2,
	SB_COUNTERS,
	SB_MEMBERS_V2,
	SB_ERRORS,
	SB_EXT,
	SB_DOWNGRADE,
	SB_RECOVERY_PASSES,
	SB_EXTENT_TYPE_U64S,
	SB_ERRORS_V2,
	SB_SECTION_NR_KNOWN,
};
/* "members_v2", or NULL. */
const char *sb_section_name(unsigned type);

enum sb_feature {
	SB_FEATURE_LZ4,
	SB_FEATURE_GZIP,
	SB_FEATURE_ZSTD,
	SB_FEATURE_ATOMIC_NLINK,
	SB_FEATURE_EC,
	SB_FEATURE_JOURNAL_SEQ_BLACKLIST_V3,
	SB_FEATURE_REFLINK,
	SB_FEATURE_NEW_SIPHASH,
	SB_FEATURE_INLINE_DATA,
	SB_FEATURE_NEW_EXTENT_OVERWRITE,
	SB_FEATURE_INCOMPRESSIBLE,
	SB_FEATURE_BTREE_PTR_V2,
	SB_FEATURE_EXTENTS_ABOVE_BTREE_UPDATES,
	SB_FEATURE_BTREE_UPDATES_JOURNALLED,
	SB_FEATURE_REFLINK_INLINE_DATA,
	SB_FEATURE_NEW_VARINT,
	SB_FEATURE_JOURNAL_NO_FLUSH,
	SB_FEATURE_ALLOC_V2,
	SB_FEATURE_EXTENTS_ACROSS_BTREE_NODES,
	SB_FEATURE_NR_1_4,
	SB_FEATURE_INCOMPAT_VERSION_FIELD = SB_FEATURE_NR_1_4,
	SB_FEATURE_CASEFOLDING,
	SB_FEATURE_NO_ALLOC_INFO,
	SB_FEATURE_SMALL_IMAGE,
	SB_FEATURE_NO_DEFAULT_SB,
	SB_FEATURE_NR_READABLE,
};
/* "new_siphash"; NULL for unknown bits. */
const char *sb_feature_name(unsigned bit);

enum sb_compat {
	SB_COMPAT_ALLOC_INFO,
	SB_COMPAT_ALLOC_METADATA,
	SB_COMPAT_EXTENTS_ABOVE_BTREE_UPDATES_DONE,
	SB_COMPAT_BFORMAT_OVERFLOW_DONE,
	SB_COMPAT_NR_1_4,
	SB_COMPAT_NO_STALE_PTRS = SB_COMPAT_NR_1_4,
	SB_COMPAT_NR_KNOWN,
};
const char *sb_compat_name(unsigned bit);

/* Total bytes of the copy, from its u64s. */
static inline uint64_t sb_bytes(const struct sb_disk *sb) { return sizeof(*sb) + (uint64_t)le32_get(sb->u64s) * 8; }

/*
 * Flag word fields other than options (those: format/options.h).
 */
static inline uint64_t sb_flag(const struct sb_disk *sb, unsigned word, unsigned lo, unsigned hi)
{
	return bits_get(le64_get(sb->flags[word]), lo, hi);
}
#define SB_INITIALIZED(sb)		((bool)sb_flag(sb, 0, 0, 1))
#define SB_CLEAN_FLAG(sb)		((bool)sb_flag(sb, 0, 1, 2))
#define SB_CSUM_TYPE(sb)		((unsigned)sb_flag(sb, 0, 2, 8))
#define SB_BTREE_NODE_SECTORS(sb)	((uint16_t)sb_flag(sb, 0, 12, 28))
#define SB_HAS_ERRORS(sb)		((bool)sb_flag(sb, 0, 60, 61))
#define SB_HAS_TOPOLOGY_ERRORS(sb)	((bool)sb_flag(sb, 0, 61, 62))
#define SB_BIG_ENDIAN(sb)		((bool)sb_flag(sb, 0, 62, 63))
#define SB_ENCRYPTION_TYPE(sb)		((unsigned)sb_flag(sb, 1, 10, 14))
#define SB_VERSION_INCOMPAT(sb)		((uint16_t)sb_flag(sb, 5, 32, 48))
#define SB_VERSION_INCOMPAT_ALLOWED(sb) ((uint16_t)sb_flag(sb, 5, 48, 64))
/* VERSION_UPGRADE_COMPLETE; 0 on disk means version. */
uint16_t sb_upgrade_complete(const struct sb_disk *sb);
/* Above 1.4: can be read only, by the relaxed rules of 12 §1.4. */
static inline bool sb_is_newer(const struct sb_disk *sb) { return le16_get(sb->version) > VERSION_1_4; }
static inline bool sb_has_feature(const struct sb_disk *sb, unsigned bit)
{
	return bits_get(le64_get(sb->features[bit / 64]), bit % 64, bit % 64 + 1);
}

/* Layout rules (01 §2.1), for sector 7 and the embedded copy alike. */
int sb_layout_validate(const struct sb_layout_disk *l, struct fault *fault);
/*
 * First look at a copy, of which at least sizeof(struct sb_disk) bytes are at hand: magic, versions, size. After it,
 * sb_bytes() is at most 512 << SB_SIZE_BITS_MAX. Returns 0, -KILN_E_INVALID or -KILN_E_UNSUPPORTED.
 */
int sb_check_header(const struct sb_disk *sb, struct fault *fault);
/* Checksum of the whole copy; sb_check_header() has passed and sb_bytes() are at hand. 0 or -KILN_E_CHECKSUM. */
int sb_verify(const struct sb_disk *sb, struct fault *fault);
/* Fill in the checksum with @type. */
void sb_seal(struct sb_disk *sb, unsigned type);
/*
 * Everything else (01 §9.3, relaxed by 12 §1.4 when the version is above 1.4): features, sizes, sections.
 * An option out of range is no error here when @is_readonly: option_from_sb() replaces it by its default. Block and
 * btree node size must be right always. 0, -KILN_E_INVALID or -KILN_E_UNSUPPORTED.
 */
int sb_validate(const struct sb_disk *sb, bool is_readonly, struct fault *fault);

struct sb_section_disk {
	le32 u64s; /* header included */
	le32 type;
};
static inline size_t sb_section_bytes(const struct sb_section_disk *s) { return (size_t)le32_get(s->u64s) * 8; }
/* First section of @type, or NULL. The superblock has been validated. */
const struct sb_section_disk *sb_section(const struct sb_disk *sb, unsigned type);
/* Section after @prev (NULL: the first), or NULL. */
const struct sb_section_disk *sb_section_next(const struct sb_disk *sb, const struct sb_section_disk *prev);

/* --- members (01 §8.1, 12 §4.4) --- */

enum member_state { MEMBER_RW, MEMBER_RO, MEMBER_FAILED, MEMBER_SPARE, MEMBER_STATE_NR };
const char *member_state_name(unsigned state);

struct member {
	uint8_t uuid[16];
	bool exists; /* false: free slot, or deleted (1.27) */
	uint64_t nbuckets;
	uint16_t first_bucket, bucket_sectors;
	uint64_t last_mount;
	uint64_t flags;
	uint32_t iops[4];
	uint64_t errors[3], errors_at_reset[3], errors_reset_time; /* read, write, checksum */
	uint64_t seq;
	uint8_t btree_bitmap_shift; /* 1.7 */
	uint64_t btree_allocated_bitmap;
	uint32_t last_journal_bucket, last_journal_bucket_offset; /* 1.9 */
	char device_name[17], device_model[65];			  /* 1.33 */
	uint64_t flush_errors;					  /* 1.37 */
	char device_serial[65];
	char failure_domain[33]; /* 1.39 */
	/* from flags */
	uint8_t state, durability;
	bool has_discard, is_freespace_initialized;
	bool is_deleted; /* 1.27: keys may still name the slot */
	bool is_resized_on_mount, is_rotational;
	uint8_t data_allowed; /* bit = data type */
	uint16_t group;	      /* disk group index + 1, 0 none */
};
/* Member slot @idx; from members_v2, else members_v1. Slots beyond nr_devices don't exist. */
void sb_member(const struct sb_disk *sb, unsigned idx, struct member *m);

/* --- disk groups (labels) --- */

struct disk_group {
	uint8_t label[SB_LABEL_BYTES];
	bool is_deleted;
	unsigned parent; /* group index + 1, 0 top level */
};
unsigned sb_disk_group_nr(const struct sb_disk *sb);
void sb_disk_group(const struct sb_disk *sb, unsigned idx, struct disk_group *g);
/* Full path "ssd.fast" of a group. */
void sb_disk_group_path(struct strbuf *out, const struct sb_disk *sb, unsigned idx);
/* "none", "dev 2", "ssd.fast" for a target number (10 §5.1). */
void sb_target_to_text(struct strbuf *out, const struct sb_disk *sb, unsigned target);

/* --- replicas --- */

struct replicas_entry {
	uint8_t data_type, nr_devs, nr_required;
	const uint8_t *devs;
};
struct replicas_walk {
	const uint8_t *pos, *end;
	bool is_v0;
};
struct replicas_walk sb_replicas_walk(const struct sb_disk *sb);
/* 1 with the next entry, 0 at the end, -KILN_E_INVALID. Entries of unknown data types (12 §4.5) are passed over. */
int sb_replicas_next(struct replicas_walk *w, struct replicas_entry *e, struct fault *fault);

/* --- journal buckets of this device, in ring order --- */

unsigned sb_journal_range_nr(const struct sb_disk *sb);
/* Range @i of consecutive buckets (the legacy section counts one bucket a range). */
void sb_journal_range(const struct sb_disk *sb, unsigned i, uint64_t *start, uint64_t *nr);

/* --- sequence blacklist --- */

unsigned sb_blacklist_nr(const struct sb_disk *sb);
void sb_blacklist_range(const struct sb_disk *sb, unsigned i, uint64_t *start, uint64_t *end); /* [start, end) */

/* --- crypt --- */

struct sb_crypt {
	unsigned kdf_type;
	unsigned scrypt_log2_n, scrypt_log2_r, scrypt_log2_p;
	bool is_sealed;	    /* the key is wrapped with a passphrase */
	uint8_t sealed[40]; /* magic and key as stored */
};
bool sb_crypt(const struct sb_disk *sb, struct sb_crypt *c);
/*
 * Unwrap the filesystem key. @passphrase without newline; ignored when the key isn't sealed. Memory for scrypt (16 MiB
 * at the usual parameters) is libsodium's. 0, -KILN_E_BAD_PASSPHRASE, -KILN_E_UNSUPPORTED (kdf), -EINVAL (absurd
 * parameters: hostile input), -ENOMEM.
 */
int sb_crypt_unlock(const struct sb_disk *sb, const struct sb_crypt *c, const void *passphrase, size_t len,
		    struct crypt_key *key);
/* The two steps of it: the key that the passphrase makes (a kernel keeps that one in its keyring), and what it opens.
 */
int sb_crypt_derive(const struct sb_crypt *c, const void *passphrase, size_t len, struct crypt_key *user_key);
int sb_crypt_open(const struct sb_disk *sb, const struct sb_crypt *c, const struct crypt_key *user_key,
		  struct crypt_key *key);
/* See that @c's parameters are at least the usual ones: before a new passphrase is derived. */
void sb_crypt_kdf_choose(struct sb_crypt *c);
/* Wrap @key; with @user_key NULL, have it stand there in clear. */
void sb_crypt_seal(const struct sb_disk *sb, struct sb_crypt *c, const struct crypt_key *user_key,
		   const struct crypt_key *key);

/* --- clean section: journal sequence and sub-entries (walk them with format/jset.h) --- */

bool sb_clean(const struct sb_disk *sb, uint64_t *journal_seq, const uint8_t **begin, const uint8_t **end);

/* --- counters, errors, ext, downgrade, recovery_passes, quota --- */

unsigned sb_counter_nr(const struct sb_disk *sb);
/* 0 for counters that aren't stored. Names: format/counter_ids.h */
uint64_t sb_counter(const struct sb_disk *sb, unsigned idx);

struct sb_error {
	unsigned id;
	uint64_t count;
	uint64_t first_time, last_time; /* seconds; first_time is known in errors_v2 only, else 0 */
};
/* Errors that have been counted; @type is SB_ERRORS or SB_ERRORS_V2 (1.39). */
unsigned sb_error_nr(const struct sb_disk *sb, unsigned type);
void sb_error(const struct sb_disk *sb, unsigned type, unsigned idx, struct sb_error *e);

/* What the next recovery must do. All zero when the section is absent. */
struct sb_ext {
	uint64_t passes_required[2]; /* bit = enum pass_id */
	uint64_t errors_silent[8];   /* bit = enum error_id */
	/* Bitmaps of btrees, from newer versions. */
	uint64_t btrees_lost_data, btrees_lost_data_ever, btrees_clean;
	uint64_t flags;
};
void sb_ext(const struct sb_disk *sb, struct sb_ext *e);

/* What an older implementation must do when it takes over. */
struct sb_downgrade {
	unsigned version;
	uint64_t passes[2];
	unsigned error_nr;
	const uint8_t *errors; /* le16 each */
};
struct sb_downgrade_walk {
	const uint8_t *pos, *end;
};
struct sb_downgrade_walk sb_downgrade_walk(const struct sb_disk *sb);
/* 1 with the next entry, 0 at the end, -KILN_E_INVALID. */
int sb_downgrade_next(struct sb_downgrade_walk *w, struct sb_downgrade *d, struct fault *fault);

struct sb_recovery_pass {
	uint64_t last_run; /* seconds, 0 never */
	uint32_t last_runtime;
	bool is_not_ratelimited;
};
unsigned sb_recovery_pass_nr(const struct sb_disk *sb);
void sb_recovery_pass(const struct sb_disk *sb, unsigned id, struct sb_recovery_pass *p);

/* Grace periods by quota type (user, group, project) and counter (space, inodes). */
struct sb_quota {
	uint32_t timelimit_seconds[3][2], warnlimit[3][2];
};
bool sb_quota(const struct sb_disk *sb, struct sb_quota *q);

/* Context for key validation, geometry of members excepted (the caller fills in members, member_nr). */
void sb_key_context(const struct sb_disk *sb, bool has_key, struct key_context *ctx);
/* That geometry, of all nr_devices slots. */
void sb_member_geometry(const struct sb_disk *sb, struct member_geometry *members);

/* --- printing --- */

/* Names for versions: "1.4: member_seq". */
void version_to_text(struct strbuf *out, unsigned version);
/* Fields of a section, one a line, indented. Unknown types: size only. */
void sb_section_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s);
/* Whole superblock as 11's show-super prints it. @with_layout, @sections: bit mask by type, ~0 all. */
void sb_to_text(struct strbuf *out, const struct sb_disk *sb, bool with_layout, uint32_t sections);

#endif
