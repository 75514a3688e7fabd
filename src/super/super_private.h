/* Private to the super room: devices as they are opened, before it is known which of them count. */
#ifndef KILN_SUPER_SUPER_PRIVATE_H
#define KILN_SUPER_SUPER_PRIVATE_H

#include "base/sync.h"
#include "format/sb_edit.h"
#include "super/super.h"

/* A device that was given or found, with its best superblock copy. */
struct super_candidate {
	struct device *dev;
	struct sb_disk *sb;
	bool is_found;	 /* by scanning, not named by the user: problems with it are no errors */
	bool is_dropped; /* doesn't take part: stale, split brain, removed */
};

struct super_candidates {
	struct super_candidate *v;
	size_t nr;
};

/*
 * Find out which candidates belong together (01 §10.1). Sets is_dropped, reports every disagreement; *@master is the
 * index of the device whose superblock counts. May be called again after candidates were added.
 */
int super_candidates_agree(struct super_candidates *c, const struct report_sink *reports, size_t *master);

/* What the user accepts: members missing, and data missing with them. */
bool super_accepts_degraded(const struct super_open_opts *opts);
bool super_accepts_very_degraded(const struct super_open_opts *opts);

/* Members that should be there and aren't (01 §10.2, 10 §8). */
bool super_member_is_missing(const struct super *s, unsigned idx);

/* Would data be lost if only the members were there for which @is_there, by slot, is true? */
bool super_replicas_are_lost(const struct super *s, const bool *is_there);

/*
 * Are enough devices online? 0, or -ENODEV with reports that name what is missing and say which option would help.
 * Sets s->is_degraded.
 */
int super_check_enough_devices(struct super *s, const struct super_open_opts *opts);

/*
 * Read and check one copy. An intact copy that needs something unknown is handed out too, with -KILN_E_UNSUPPORTED: it
 * may be the newest, and an older one that looks readable must not win over it.
 */
int super_copy_read(struct device *dev, uint64_t sector, struct sb_disk **copy, struct fault *fault);

/* --- writing (super_write.c) --- */

enum { SUPER_REPLICAS_HASH = 64, SUPER_ERROR_IDS = 512 };

struct super_write_member {
	struct sb_edit copy;	 /* the member's own superblock, with all the room it has */
	uint64_t primary_seq;	 /* what its primary copy must say: as last read or written */
	bool is_primary_unknown; /* damaged, or its last write failed */
	bool has_stale_backups;	 /* the primary is good, and another copy isn't, or is older */
	/* Of the errors since it was opened: how many there were before it was written to, and the superblock has. */
	uint64_t errors_before[SUPER_ERROR_KINDS], errors_counted[SUPER_ERROR_KINDS];
	bool is_given_up; /* it isn't written any more: super_member_fail() */
};

/* A replicas entry that is durable in all superblocks. Only ever added. */
struct super_replicas {
	struct super_replicas *next;
	struct replicas_entry entry;
	uint8_t devs[];
};

struct super_write {
	struct mutex lock; /* over all changes of the master, their I/O included */
	struct sb_edit master;
	struct sb_disk *saved;	    /* the master before the change under way */
	struct sb_disk *saved_copy; /* a member's copy before it, if that is changed too */
	struct sb_edit *saved_copy_of;
	int err; /* a failed update is final */
	/*
	 * Newest seq of a primary that was torn by a crash: it isn't used again. Else the rest of that update could be
	 * made whole by the next one, torn in its turn, and pass for an update without the others.
	 */
	uint64_t seq_torn;
	bool is_very_degraded_ok;
	bool is_optional; /* the update under way: that it fails isn't final */
	struct super_write_member *members;
	struct super_replicas *replicas[SUPER_REPLICAS_HASH]; /* read without lock */
	uint64_t errors_pending[SUPER_ERROR_IDS];	      /* atomic: counted, not yet in the errors section */
	uint64_t features_durable;			      /* atomic */
	bool has_errors, has_topology_errors;		      /* atomic */
};

/* The last part of opening read-write: may it be written, and the state for it. Reports why not. */
int super_write_open(struct super *s, const struct super_open_opts *opts);
/*
 * Checksum type of superblocks, for this value of the option metadata_checksum: never none. Any type may be read
 * whatever the option says, and a copy that was torn by a crash must be told from a whole one: its seq may be new while
 * its member records are old, and then the device looks as if it had been used without the others.
 */
unsigned super_sb_csum_type(uint64_t metadata_checksum);
void super_write_close(struct super *s);
/* Add to the table of what is durable; under the lock. 0 or -ENOMEM. */
int super_replicas_publish(struct super *s, const struct replicas_entry *e);

/*
 * Around a change of s->write->master: lock it, and remember how it was. super_change_begin() returns an error, without
 * the lock, when the superblock can't be written any more. super_change_end() undoes the change if @err says that it
 * failed, else publishes it (01 §10); then unlocks. Returns @err or what went wrong.
 */
int super_change_begin(struct super *s);
int super_change_end(struct super *s, int err);
/* The same without unlocking: super_lock_release() follows. */
int super_change_publish(struct super *s, int err);

#endif
