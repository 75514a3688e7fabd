/*
 * Changing a superblock in memory: sections that grow, shrink, come and go, and the few structures in them that a
 * running filesystem updates (01 §8). Checksum, seq and copies are the caller's (super/super_write.c).
 *
 * Every function leaves the superblock as it was when it fails.
 */
#ifndef KILN_FORMAT_SB_EDIT_H
#define KILN_FORMAT_SB_EDIT_H

#include "format/sb_sections.h"

/* A validated superblock, in a buffer of @bytes_max bytes. Its sections move when one of them changes its size. */
struct sb_edit {
	struct sb_disk *sb;
	size_t bytes_max;
};

/*
 * Give the section of @type this size, header included; it is made, at the end, if there is none. What is new is zero.
 * Returns the section, or NULL when the superblock would get larger than its buffer.
 */
struct sb_section_disk *sb_section_resize(struct sb_edit *e, unsigned type, size_t u64s);
/* The section with at least that size: larger ones, from newer versions, stay as they are. */
struct sb_section_disk *sb_section_ensure(struct sb_edit *e, unsigned type, size_t u64s);
/* All sections of @type. */
void sb_section_delete(struct sb_edit *e, unsigned type);

/*
 * See that there is a members_v2 section whose records have at least what 1.4 knows: older images have members_v1 only,
 * or shorter records. 0 or -ENOSPC.
 */
int sb_members_prepare(struct sb_edit *e);
/* A new last member, zeroed, in a superblock with members_v2; its index is the old nr_devices. 0 or -ENOSPC. */
int sb_member_append(struct sb_edit *e);
/* The record of an existing slot: its first SB_MEMBER_BYTES_1_4 bytes may be changed. */
struct sb_member_disk *sb_member_record(const struct sb_edit *e, unsigned idx);
/* Make members_v1 say what members_v2 says. 0 or -ENOSPC. */
int sb_members_v1_update(struct sb_edit *e);

/* The group of the label path "a.b.c", made if need be: *@idx. 0, -EINVAL (no label path), -ENOSPC. */
int sb_disk_group_make(struct sb_edit *e, const char *path, unsigned *idx);

/* Is @entry there? Devices in ascending order. */
bool sb_replicas_has(const struct sb_disk *sb, const struct replicas_entry *entry);
/* Add @entry, which isn't there yet; chooses between the two sections (07 §12.3). 0 or -ENOSPC. */
int sb_replicas_add(struct sb_edit *e, const struct replicas_entry *entry);

/* Blacklist [start, end), which is not empty, and set the feature. 0 or -ENOSPC. */
int sb_blacklist_add(struct sb_edit *e, uint64_t start, uint64_t end);
/* Drop the ranges for which @is_needed, one for each, is false; without any the section and the feature go. */
void sb_blacklist_keep(struct sb_edit *e, const bool *is_needed);

/* Count an error @count more times. 0 or -ENOSPC. */
int sb_errors_add(struct sb_edit *e, unsigned id, uint64_t count, uint64_t time_seconds);

/* Journal buckets of the device whose superblock this is, in ring order. None: no section. 0 or -ENOSPC. */
struct sb_journal_range {
	uint64_t start, nr;
};
int sb_journal_set(struct sb_edit *e, const struct sb_journal_range *ranges, size_t nr);

/* Make the crypt section say this. 0 or -ENOSPC. */
int sb_crypt_set(struct sb_edit *e, const struct sb_crypt *c);

/* The clean section: counters (@tail), then roots, as sub-entries. 0 or -ENOSPC. */
int sb_clean_set(struct sb_edit *e, uint64_t journal_seq, const void *tail, unsigned tail_u64s, const void *roots,
		 unsigned roots_u64s);

/*
 * The quota section; made with the usual grace periods, a week, if there is none (01 §8.8). NULL: no room. And one
 * grace period of it.
 */
enum { SB_QUOTA_TIMELIMIT_SECONDS = 7 * 24 * 3600 };
struct sb_quota_disk *sb_quota_ensure(struct sb_edit *e);
int sb_quota_timelimit_set(struct sb_edit *e, unsigned type, unsigned counter, uint32_t seconds);

/* Flag bits of words, as sb_flag() reads them. */
static inline void sb_flag_set(struct sb_disk *sb, unsigned word, unsigned lo, unsigned hi, uint64_t value)
{
	sb->flags[word] = le64_of(bits_set(le64_get(sb->flags[word]), lo, hi, value));
}

#endif
