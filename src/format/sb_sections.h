/*
 * Superblock sections as they stand on disk (01 §8, 12 §4.7): for the decoders of this room and for writers of
 * superblocks.
 *
 * Readers use the accessors of format/superblock.h, which know what to make of shorter and longer variants.
 */
#ifndef KILN_FORMAT_SB_SECTIONS_H
#define KILN_FORMAT_SB_SECTIONS_H

#include "format/superblock.h"

/* One member. Older formats end earlier: members_v1 after iops[1], members_v2 after @member_bytes. */
struct sb_member_disk {
	uint8_t uuid[16];
	le64 nbuckets;
	le16 first_bucket;
	le16 bucket_sectors;
	uint8_t btree_bitmap_shift; /* 1.7 */
	uint8_t pad[3];
	le64 last_mount;
	le64 flags;
	le32 iops[4];
	le64 errors[3];
	le64 errors_at_reset[3];
	le64 errors_reset_time;
	le64 seq;
	le64 btree_allocated_bitmap; /* 1.7, from here on */
	le32 last_journal_bucket;    /* 1.9 */
	le32 last_journal_bucket_offset;
	char device_name[16]; /* 1.33; not terminated if full */
	char device_model[64];
	le64 flush_errors; /* 1.37 */
	char device_serial[64];
	char failure_domain[32]; /* 1.39 */
};
_Static_assert(sizeof(struct sb_member_disk) == 328, "member at 1.39");
_Static_assert(offsetof(struct sb_member_disk, flags) == 40, "member flags");
_Static_assert(offsetof(struct sb_member_disk, btree_allocated_bitmap) == 128, "end of the member at 1.4");
_Static_assert(offsetof(struct sb_member_disk, flush_errors) == 224, "end of the member at 1.33");

enum { SB_MEMBER_V1_BYTES = 56, SB_MEMBER_BYTES_1_4 = 128 };

/* Bits of a member's flags. */
enum {
	MEMBER_FLAG_STATE_LO = 0,
	MEMBER_FLAG_STATE_HI = 4,
	MEMBER_FLAG_DISCARD = 14,
	MEMBER_FLAG_DATA_ALLOWED_LO = 15,
	MEMBER_FLAG_DATA_ALLOWED_HI = 20,
	MEMBER_FLAG_GROUP_LO = 20,
	MEMBER_FLAG_GROUP_HI = 28,
	MEMBER_FLAG_DURABILITY_LO = 28,
	MEMBER_FLAG_DURABILITY_HI = 30, /* durability + 1; 0: 1 */
	MEMBER_FLAG_FREESPACE_INITIALIZED = 30,
	MEMBER_FLAG_RESIZE_ON_MOUNT = 31, /* 1.28 */
	MEMBER_FLAG_ROTATIONAL = 32,
	MEMBER_FLAG_ROTATIONAL_SET = 33, /* 1.33 */
	MEMBER_FLAG_INITIALIZED_LO = 34,
	MEMBER_FLAG_INITIALIZED_HI = 38, /* 1.38 */
};

struct sb_members_v1_disk {
	struct sb_section_disk head;
	uint8_t members[]; /* SB_MEMBER_V1_BYTES each */
};

struct sb_members_v2_disk {
	struct sb_section_disk head;
	le16 member_bytes; /* stride */
	uint8_t pad[6];
	uint8_t members[];
};
_Static_assert(sizeof(struct sb_members_v2_disk) == 16, "members_v2 header");

struct sb_journal_disk {
	struct sb_section_disk head;
	le64 buckets[];
};

struct sb_journal_v2_disk {
	struct sb_section_disk head;
	struct sb_journal_range_disk {
		le64 start, nr;
	} ranges[];
};
_Static_assert(sizeof(struct sb_journal_range_disk) == 16, "range of journal buckets");

struct sb_crypt_disk {
	struct sb_section_disk head;
	le64 flags;	    /* [0,4) KDF type */
	le64 kdf_flags;	    /* [0,16) log2 N, [16,32) log2 r, [32,48) log2 p */
	uint8_t sealed[40]; /* "bch**key" and the key */
};
_Static_assert(sizeof(struct sb_crypt_disk) == 64, "crypt section");

struct sb_quota_disk {
	struct sb_section_disk head;
	struct {
		le64 flags;
		struct {
			le32 timelimit, warnlimit;
		} counters[2];
	} types[3];
};
_Static_assert(sizeof(struct sb_quota_disk) == 80, "quota section");

struct sb_disk_groups_disk {
	struct sb_section_disk head;
	struct sb_disk_group_disk {
		uint8_t label[SB_LABEL_BYTES];
		le64 flags; /* [0,1) deleted, [1,6) data allowed, [6,24) parent index + 1 */
		le64 pad;
	} groups[];
};
_Static_assert(sizeof(struct sb_disk_group_disk) == 48, "disk group");

struct sb_clean_disk {
	struct sb_section_disk head;
	le32 flags;
	le16 obsolete[2];
	le64 journal_seq;
	uint8_t entries[]; /* format/jset.h */
};
_Static_assert(sizeof(struct sb_clean_disk) == 24, "clean section header");

struct sb_blacklist_disk {
	struct sb_section_disk head;
	struct {
		le64 start, end;
	} ranges[];
};

struct sb_counters_disk {
	struct sb_section_disk head;
	le64 counters[];
};

struct sb_errors_disk {
	struct sb_section_disk head;
	struct sb_error_disk {
		le64 words[2];
	} errors[];
};

struct sb_ext_disk {
	struct sb_section_disk head;
	le64 passes_required[2];
	le64 errors_silent[8];
	le64 btrees_lost_data;	    /* 1.7 */
	le64 flags;		    /* 1.37 */
	le64 btrees_lost_data_ever; /* 1.39 */
	le64 btrees_clean;
};
_Static_assert(sizeof(struct sb_ext_disk) == 120, "ext section at 1.39");
enum { SB_EXT_BYTES_1_4 = 88 };

struct sb_downgrade_disk {
	le16 version;
	le64 passes[2];
	le16 error_nr; /* that many le16 follow */
};
_Static_assert(sizeof(struct sb_downgrade_disk) == 20, "downgrade entry header");

struct sb_recovery_passes_disk {
	struct sb_section_disk head;
	struct sb_recovery_pass_disk {
		le64 last_run;
		le32 last_runtime;
		le32 flags;
	} passes[];
};
_Static_assert(sizeof(struct sb_recovery_pass_disk) == 16, "recovery pass record");

/* Bytes of a section behind its header. */
static inline const uint8_t *sb_section_payload(const struct sb_section_disk *s) { return (const uint8_t *)(s + 1); }
static inline size_t sb_section_payload_bytes(const struct sb_section_disk *s)
{
	return sb_section_bytes(s) - sizeof(*s);
}

/* Members in a members section, at most the superblock's nr_devices; slot @idx of it. 0 and zeroes for other sections.
 */
unsigned sb_members_section_nr(const struct sb_disk *sb, const struct sb_section_disk *s);
void sb_members_section_get(const struct sb_disk *sb, const struct sb_section_disk *s, unsigned idx, struct member *m);

/* All entries of one replicas section, also those of unknown data types that sb_replicas_next() skips. */
struct replicas_walk sb_replicas_section_walk(const struct sb_section_disk *s);
int sb_replicas_next_raw(struct replicas_walk *w, struct replicas_entry *e, struct fault *fault);

#endif
