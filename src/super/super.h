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
#include "format/superblock.h"

struct super_member {
	struct member m;    /* decoded from the master superblock */
	struct device *dev; /* NULL: not online */
	struct sb_disk *sb; /* this device's own copy (journal sections are per device); NULL if offline */
	char name[300];	    /* for messages: path, or "device 2 (label hdd.hdd1, missing)" */
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
	const struct log_sink *log;
	const struct report_sink *reports;
};

struct super_open_opts {
	bool is_degraded_ok, is_very_degraded_ok;
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
void super_close(struct super *s); /* closes the devices; wipes the key */

/*
 * Read one device's superblock by itself: what show-super prints of a device, whatever state the others are in.
 * *@sb is malloc'ed. Copies that were bad or disagreed are reported.
 */
int super_read_device(struct device *dev, uint64_t sb_sector, const struct report_sink *reports, struct sb_disk **sb);

static inline bool super_member_online(const struct super *s, unsigned dev)
{
	return dev < s->member_nr && s->members[dev].dev;
}

#endif
