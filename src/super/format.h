/*
 * Making a filesystem: its superblocks (01 §11, §12 step 1). What lies in it (journal, btrees, root directory) is made
 * by whoever opens it first; until then its superblocks say that it isn't initialised.
 *
 * Initialising, in order (07 §17.1, 01 §12 step 2): super_open() for writing; super_journals_init(); the journal starts
 * at seq 1; allocator_init_fresh(), allocator_mark_device() and allocator_freespace_init(); namespace_init_fresh();
 * journal_flush(); super_mark_initialized(), which is the first time that the superblocks are written; and then a clean
 * shutdown, or on with it. A crash on the way leaves what super_format() made.
 */
#ifndef KILN_SUPER_FORMAT_H
#define KILN_SUPER_FORMAT_H

#include "super/super.h"

/* What users are told of devices that can't hold a filesystem. */
#define SUPER_FORMAT_ENOUGH    "With the usual options a device of 10 MiB is enough."
#define SUPER_FORMAT_TOO_SMALL "The devices are too small for a filesystem. " SUPER_FORMAT_ENOUGH

struct super_format_device {
	struct device *dev;    /* open for writing; stays the caller's */
	const char *label;     /* path "ssd.fast"; NULL: none */
	uint64_t size_bytes;   /* of the filesystem on it; 0: all of the device */
	uint64_t bucket_bytes; /* 0: chosen from the sizes of all devices */
	unsigned durability;   /* 0 (a cache) to 2 */
	uint8_t data_allowed;  /* bit = data type; 0: journal, btree and user */
	bool has_discard;
};

struct super_format_opts {
	/* OPT_NR values of the format-time options that were given, and which were. Targets: see below. */
	const uint64_t *options;
	const bool *options_set;
	/* OPT_NR names of targets, for options of that kind: NULL, "none", the name of a device, or a label. */
	const char *const *targets;
	const char *label;	   /* up to 32 bytes; NULL: none */
	const uint8_t *user_uuid;  /* 16 bytes; NULL: random */
	uint64_t superblock_bytes; /* room for each copy: a power of two, 64 KiB to 32 MiB; 0: 1 MiB */
	/*
	 * Encrypted: the key is made here, and wrapped with what @passphrase_len bytes of passphrase make, which is
	 * left in *@user_key; without passphrase (NULL) it stands in the superblock.
	 */
	bool is_encrypted;
	const void *passphrase;
	size_t passphrase_len;
	struct crypt_key *user_key;
	/* For images that are the same each time: NULL or 0 else. */
	const uint8_t *uuid;
	const uint8_t (*member_uuids)[16];
	uint64_t time_ns;
};

/*
 * Write the superblocks of a new filesystem over @devs, and zeroes where others keep theirs: at the start of each
 * device, around its copies, and at its end. Whatever was on the devices is lost.
 *
 * @devs is filled in with what was chosen (sizes in bytes, bucket sizes, data types). -EINVAL, -ENOSPC and others with
 * a sentence in @why; then nothing has been written or, after an I/O error, superblocks have been wiped.
 */
int super_format(struct super_format_device *devs, size_t nr, const struct super_format_opts *opts, char why[512]);

/*
 * For failures afterwards: take the superblocks away again, as well as that goes. What the device held before is lost.
 */
void super_format_undo(struct device *dev);

/* Number of journal buckets that a new device gets (03 §1). */
uint64_t super_journal_bucket_nr(uint64_t nbuckets, unsigned bucket_sectors, unsigned node_sectors,
				 unsigned block_sectors, unsigned replicas);
/*
 * What an entry of the journal may have to hold, in bytes: what is in each (03 §5.1) with @row_u64s words for rows of
 * usage, and the largest transaction that can't be done in smaller parts, which replaces a path of btree nodes. Buckets
 * that entries go to must be at least as large.
 */
uint64_t super_journal_entry_bytes(unsigned device_nr, unsigned replicas, uint64_t row_u64s);
/* The same for what @s has now; it grows with each new set of devices that data is on. */
uint64_t super_journal_entry_bytes_now(const struct super *s);
/*
 * With fewer journal buckets on this device, writing nodes back can come to a standstill: what a new device gets if
 * nodes have few blocks; 0 if any number does.
 */
uint64_t super_journal_bucket_min(const struct super *s, unsigned dev);
/* Does a superblock copy, or what lies before the first, touch this bucket of the device? Bucket 0 always counts. */
bool super_bucket_has_superblock(const struct sb_layout_disk *layout, unsigned bucket_sectors, uint64_t bucket);
/*
 * Give every online member that has no journal one, in the lowest buckets without superblock: for new filesystems and
 * devices, where these buckets are free. 0, -ENOSPC (the device is too small), or an error of super_journal_set().
 */
int super_journals_init(struct super *s);

#endif
