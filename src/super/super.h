/*
 * The superblocks of all member devices of one filesystem, seen as one (01 §9, §10; 12 §4.3).
 *
 * Every given device is opened and its best copy chosen: all copies the layout lists are read, the valid one with the
 * highest seq wins, disagreement is reported. Among devices the newest (seq, write_time) is the master; foreign devices
 * fail the open, stale and split-brain ones are dropped and reported. After that, `members` says for every slot whether
 * it is online, and every other room asks here.
 */
#ifndef KILN_SUPER_SUPER_H
#define KILN_SUPER_SUPER_H

#include "base/log.h"
#include "device/device.h"
#include "format/options.h"
#include "format/sb_edit.h"
#include "format/superblock.h"

struct super_member {
	struct member m;	   /* decoded from the master superblock */
	struct device *dev;	   /* NULL: not online */
	struct sb_disk *sb;	   /* this device's own copy (journal sections are per device); NULL if offline */
	char name[300];		   /* for messages: path, or "device 2 (label hdd.hdd1, missing)" */
	uint64_t checksum_errors;  /* atomic: since open */
	uint64_t suspect_until_ns; /* atomic: super_suspect_copies() */
};

struct super {
	struct sb_disk *sb; /* the master */
	unsigned member_nr; /* slots */
	struct super_member *members;
	struct member_geometry *geometry; /* of each slot, for key validation */
	struct key_context kctx;
	uint64_t options[OPT_NR]; /* effective: table, superblock, mount */
	bool has_key;
	struct crypt_key *key; /* locked memory; NULL while locked or not encrypted */
	bool needs_passphrase; /* encrypted, sealed, not yet unlocked */
	bool is_degraded;      /* a member that should be there is missing */
	bool has_left_out;     /* a device that was named, because of what is on it: it has been told */
	const struct log_sink *log;
	const struct report_sink *reports;
	struct super_write *write; /* NULL: open read-only */
	char write_refused[256];   /* why, although it was to be written; else "" */
};

struct super_open_opts {
	/*
	 * Read-write: devices are opened exclusively, and what can't be written is refused with a report that names the
	 * reason: -KILN_E_UNSUPPORTED for features (reading works), -EROFS for damage.
	 */
	bool is_write;
	/* What can't be written is opened read-only all the same: super_write_unsupported() says why. */
	bool is_readonly_ok;
	bool is_degraded_ok, is_very_degraded_ok;
	bool needs_all;	  /* what is to be done can't be without a member: degraded is no advice */
	bool is_forced;	  /* read although a writer has it open */
	bool is_buffered; /* no O_DIRECT */
	bool is_without_uring;
	bool is_lenient;	       /* tools that only look: accept missing members, locked key */
	bool scan_for_members;	       /* look for members that weren't named among the block devices */
	uint64_t sb_sector;	       /* 0: where it should be */
	const uint64_t *mount_options; /* OPT_NR values, with mount_options_set as mask */
	const bool *mount_options_set;
	/* Tests: devices that are already open, instead of paths; the super owns them from here on. */
	struct device **devices;
	size_t device_nr;
};

/*
 * Open read-only. On success the caller owns *@super. Errors are reported through @reports with what to do, and
 * returned: -ENOENT, -EBUSY, -KILN_E_INVALID, -KILN_E_CHECKSUM, -KILN_E_UNSUPPORTED, -KILN_E_FOREIGN_MEMBER,
 * -ENODEV (members missing: use degraded), ...
 */
int super_open(char *const *paths, size_t path_nr, const struct super_open_opts *opts, const struct log_sink *log,
	       const struct report_sink *reports, struct super **super);
/* Unlock the key of an encrypted filesystem. 0, -KILN_E_BAD_PASSPHRASE, ... Nothing to do when it isn't sealed. */
int super_unlock(struct super *s, const void *passphrase, size_t len);
/* The same with the key that the passphrase makes. */
int super_unlock_key(struct super *s, const struct crypt_key *user_key);
void super_close(struct super *s); /* closes the devices; wipes the key */

/*
 * Read one device's superblock by itself: what show-super prints of a device, whatever state the others are in.
 * *@sb is malloc'ed. Copies that were bad or disagreed are reported.
 */
int super_read_device(struct device *dev, uint64_t sb_sector, const struct report_sink *reports, struct sb_disk **sb);

/* sb_has_feature() of the filesystem, for those who may run while features are set. */
bool super_has_feature(const struct super *s, enum sb_feature feature);

/* Is what is written encrypted? If it no longer is, old data still may be, and `has_key` says so. */
bool super_is_encrypted(const struct super *s);
/* Checksum type (enum checksum_type) of journal entries and nodes that are written. */
unsigned super_metadata_csum_type(const struct super *s);
/* The same for data, with this value of the option data_checksum; CHECKSUM_TYPE_NR: there is no such value. */
unsigned super_data_csum_type(const struct super *s, uint64_t data_checksum);

/*
 * As option_parse(), and devices are known by the names that they were opened with: for those who change what is
 * written (the superblock, or an opening for writing), where targets are chosen by users.
 */
int super_option_parse(const struct super *s, enum option_id id, const char *text, uint64_t *value, struct strbuf *why);

/*
 * Does this value of an option need something that isn't there yet? Then @why is a sentence that names the option.
 */
bool super_option_unsupported(enum option_id id, uint64_t value, char why[256]);

/*
 * Is this value of an option kept without anything acting on it as its name says? Then the result tells what happens
 * instead, without the option's name. NULL: it does what it says, or is refused.
 */
const char *super_option_idle(enum option_id id, uint64_t value);

/*
 * What keeps the filesystem from being written: the first feature in use that needs something that isn't there yet, as
 * a sentence in @why ("version 1.13 is newer than 1.4"). False if nothing does. Options that a mount chooses
 * (compression, erasure_code) are the caller's to look at.
 */
bool super_write_unsupported(const struct super *s, char why[256]);

/*
 * --- changes; only with is_write. Durable when they return 0; else an error, after which nothing can be written any
 * more, or -ENOSPC ("no space in superblock") or -KILN_E_INVALID (the change broke a rule), which leave everything as
 * it was. All may be called by any thread, none while holding a lock of a room below. Switch points. ---
 *
 * Sections of the master may move meanwhile: whoever looks into them (labels, errors) beside these functions holds
 * super_lock(). Header, flags and `members` stay where they are; whoever may run beside them reads a member's state by
 * super_member_state(), and of the rest what doesn't change while it is open: sizes, durability, what is allowed there.
 */

/* Write all superblocks as they are, with the next seq. */
int super_update(struct super *s);
/*
 * The same if errors have been counted since they were written last; nobody depends on it, so that devices don't take
 * it is told and nothing more: an error leaves everything as it was, and what was counted for the next update.
 */
int super_errors_update(struct super *s);
void super_lock(struct super *s);
void super_lock_release(struct super *s);

/* Before the first write of a mount (01 §12.1). Raises an older version to 1.4. Writes always. */
int super_mark_dirty(struct super *s);
/*
 * The last write: clean section with the journal's last seq, counters (@tail) and roots, as sub-entries in words
 * (03 §7). What was counted and noted before is written too.
 */
int super_mark_clean(struct super *s, uint64_t journal_seq, const void *tail, unsigned tail_u64s, const void *roots,
		     unsigned roots_u64s);
/* Journal, btrees and root directory are there, and durable: the first superblock write of a fresh filesystem. */
int super_mark_initialized(struct super *s);
/* All passes that recovery needed are done: version_upgrade_complete, and nothing is required any more. */
int super_mark_recovered(struct super *s);

/*
 * See that all superblocks have this entry (07 §12.2); @devs in any order, none twice. Nothing but a look into a table
 * when they do.
 */
int super_replicas_mark(struct super *s, unsigned data_type, unsigned nr_required, const uint8_t *devs,
			unsigned nr_devs);
/* Blacklist journal seqs [start, end) (03 §6). */
int super_blacklist_add(struct super *s, uint64_t start, uint64_t end);
/* Drop the ranges for which @is_needed, one for each, is false. */
int super_blacklist_keep(struct super *s, const bool *is_needed);
/* Before the first use of a feature. Nothing but a look when it is set. */
int super_feature_set(struct super *s, enum sb_feature feature);
/* Before the option has effect with this value, which may need features. Nothing but a look when they are set. */
int super_option_features_set(struct super *s, enum option_id id, uint64_t value);
/*
 * Bits [lo, hi) of a member's flags (MEMBER_FLAG_*, format/sb_sections.h): its state, and whether its freespace is
 * initialised. Of others `members` shows what they were at open.
 */
int super_member_flags_set(struct super *s, unsigned dev, unsigned lo, unsigned hi, uint64_t value);
/*
 * An online member can't be relied on any more: its state becomes "failed" in the superblocks of the others, and its
 * own isn't written again. -EROFS, and nothing has changed: without it data would be lost.
 */
int super_member_fail(struct super *s, unsigned dev);
/* Journal buckets of one online member, in ring order. */
int super_journal_set(struct super *s, unsigned dev, const struct sb_journal_range *ranges, size_t nr);
/* Store an option for good, and let it be in effect. -EINVAL for those that aren't stored or out of range. */
int super_option_set(struct super *s, enum option_id id, uint64_t value);
/*
 * Wrap the key of an encrypted filesystem, which is unlocked, with this passphrase; NULL: let it stand in clear. On
 * each device a crash leaves the old passphrase or the new one. -EINVAL: it isn't encrypted. -ENODEV: a member is
 * missing, whose superblock would go on opening with the old one.
 */
int super_passphrase_set(struct super *s, const void *passphrase, size_t len);

/* See that there is a quota section (01 §8.8). Nothing but a look when there is one. */
int super_quota_ensure(struct super *s);
/* Grace period of a quota type (user, group, project) and counter (space, inodes). */
int super_quota_timelimit_set(struct super *s, unsigned type, unsigned counter, uint32_t seconds);

/* Count an error for the errors section; written with the next update. Any context; no switch point. */
void super_error_count(struct super *s, unsigned error_id);
/* What a member had stored had a wrong checksum: counted for it, written with the next update. The same. */
void super_checksum_error_count(struct super *s, unsigned dev);
/*
 * What went wrong with a member, by kind: since it was opened; and since its counters were reset, as its superblocks
 * say or, open for writing, will say after the next update.
 */
enum super_error_kind { SUPER_ERROR_READ, SUPER_ERROR_WRITE, SUPER_ERROR_CHECKSUM, SUPER_ERROR_KINDS };
struct super_errors {
	uint64_t since_open[SUPER_ERROR_KINDS], total[SUPER_ERROR_KINDS];
};
void super_member_errors(const struct super *s, unsigned dev, struct super_errors *errors);
/* An inconsistency was found and not repaired: noted with the next update. Any context; no switch point. */
void super_error_note(struct super *s, bool is_topology);

/* What its device must hold at least: one that is smaller was cut off. */
uint64_t super_member_bytes(const struct super_member *m);

/*
 * How many blocks a btree node has. Those of few are full again after some two writes, and what replacing one changes
 * is in such nodes, too; many are enough that this comes to an end by itself.
 */
enum { NODE_BLOCKS_FEW = 16, NODE_BLOCKS_MANY = 32 };
static inline unsigned super_node_blocks(const struct super *s) { return s->kctx.node_sectors / s->kctx.block_sectors; }

static inline bool super_member_online(const struct super *s, unsigned dev)
{
	return dev < s->member_nr && s->members[dev].dev;
}

/*
 * Which of @nr copies, a bit for each, are on devices where a checksum was wrong in the last minute. There may be more
 * of that, so what can be verified is read from there rather than from others: then bad copies are met at once, while
 * there are good ones to replace them by.
 */
uint32_t super_suspect_copies(const struct super *s, const uint8_t *devs, unsigned nr);

/*
 * Which of @nr copies, on @devs, to read: any that isn't in the mask @excluded and whose device is there, the more
 * often the faster that has been of late. So all share the work, and bad copies are met whichever they are. @random
 * decides. @nr: there is none.
 */
unsigned super_replica_choose(const struct super *s, const uint8_t *devs, unsigned nr, uint32_t excluded,
			      uint64_t random);

/* MEMBER_RW and its like: the one thing of a member in use that may change at any time. */
static inline unsigned super_member_state(const struct super *s, unsigned dev)
{
	return __atomic_load_n(&s->members[dev].m.state, __ATOMIC_RELAXED);
}

#endif
