/*
 * What POSIX sees, write side: every operation of 04 §7 as one transaction (or, for the final deletion of a file, a
 * series that can be interrupted anywhere).
 *
 * All operations: 0 or a negative errno. *@journal_seq (may be NULL): flush the journal up to it, and the change is
 * durable. Snapshots that are read-only: -EROFS. Permissions are the caller's business (the kernel checks them for a
 * mount), but for what is part of an operation's meaning: setgid inheritance, clearing of setuid, ACL inheritance.
 */
#ifndef KILN_NAMESPACE_CHANGE_H
#define KILN_NAMESPACE_CHANGE_H

#include "data/write.h"
#include "namespace/namespace.h"

/* Before it all changes fail with -EROFS. Unlinked inodes are deleted by a task in the background. */
int namespace_start_write(struct namespace *ns, struct allocator *allocator);
/* Finish deletions under way. */
void namespace_stop_write(struct namespace *ns);

/* Who makes a new object, and with what. */
struct create_attr {
	uint32_t mode; /* type and permissions, umask already applied (see umask) */
	uint32_t uid, gid;
	uint32_t rdev_major, rdev_minor;
	/* Permission bits to take away where the directory has no default ACL; applied here, so give mode without it.
	 */
	uint32_t umask;
};

/* Any type but symlink; directories included. */
int namespace_create(struct namespace *ns, struct object dir, const char *name, size_t len,
		     const struct create_attr *attr, struct object *created, struct inode *inode,
		     uint64_t *journal_seq);
/* An inode without a name: held (namespace_hold()) by the caller, deleted when it lets go. */
int namespace_create_unnamed(struct namespace *ns, struct object dir, const struct create_attr *attr,
			     struct object *created, struct inode *inode, uint64_t *journal_seq);
int namespace_symlink(struct namespace *ns, struct object dir, const char *name, size_t len, const char *target,
		      size_t target_len, const struct create_attr *attr, struct object *created, struct inode *inode,
		      uint64_t *journal_seq);
int namespace_link(struct namespace *ns, struct object o, struct object dir, const char *name, size_t len,
		   uint64_t *journal_seq);
/* @is_dir: rmdir. *@removed (may be NULL): the object whose name it was. */
int namespace_unlink(struct namespace *ns, struct object dir, const char *name, size_t len, bool is_dir,
		     struct object *removed, uint64_t *journal_seq);
enum rename_flags { RENAME_OVERWRITE = 0, RENAME_NO_REPLACE = 1, RENAME_SWAP = 2 }; /* as RENAME_* of renameat2() */
int namespace_rename(struct namespace *ns, struct object from_dir, const char *from, size_t from_len,
		     struct object to_dir, const char *to, size_t to_len, unsigned flags, uint64_t *journal_seq);

enum setattr_fields {
	SETATTR_MODE = 1,
	SETATTR_UID = 2,
	SETATTR_GID = 4,
	SETATTR_SIZE = 8,
	SETATTR_ATIME = 16,
	SETATTR_MTIME = 32,
	SETATTR_CTIME = 64,  /* else now */
	SETATTR_FLAGS = 128, /* immutable, append, nodump, noatime, sync */
	SETATTR_BTIME = 256,
};
struct setattr {
	unsigned fields;
	uint32_t mode, uid, gid, flags;
	uint64_t size;
	struct inode_time atime, mtime, ctime, btime;
	bool atime_now, mtime_now;
	bool keeps_ctime;	 /* where it isn't given: not now, but as it is */
	bool has_times_of_write; /* mtime and ctime may be set where writing is all that may be done */
	bool keeps_setid;	 /* a new size leaves setuid and setgid as they are */
};
int namespace_setattr(struct namespace *ns, struct object o, const struct setattr *attr, struct inode *inode,
		      uint64_t *journal_seq);

enum xattr_set_flags { XATTR_MUST_CREATE = 1, XATTR_MUST_REPLACE = 2 };
/* By full name; ACLs in the system calls' form; "bcachefs.NAME" sets an inode option (04 §1.6). */
int namespace_xattr_set(struct namespace *ns, struct object o, const char *name, const void *value, size_t size,
			unsigned flags, uint64_t *journal_seq);
int namespace_xattr_remove(struct namespace *ns, struct object o, const char *name, uint64_t *journal_seq);

/* What a write leaves alone. With WRITE_KEEPS_TIMES it isn't looked whether it appends: who keeps times did that. */
enum namespace_write_flags { WRITE_KEEPS_TIMES = 1, WRITE_KEEPS_SETID = 2 };
/* Write data, with the times and mode changes of a write, but for @flags. */
ssize_t namespace_write(struct namespace *ns, struct object o, uint64_t offset, const void *buf, size_t len,
			unsigned flags, uint64_t *journal_seq);
/*
 * Space of a file, with the times and mode changes of a write: promise it, without or with zeroing what is there, or
 * give it back.
 */
enum fallocate_op {
	FALLOCATE_EXTEND, /* the size grows to the end of the range */
	FALLOCATE_KEEP_SIZE,
	FALLOCATE_ZERO_EXTEND,
	FALLOCATE_ZERO_KEEP_SIZE,
	FALLOCATE_PUNCH,
	FALLOCATE_INSERT,   /* a hole; what is behind it moves up */
	FALLOCATE_COLLAPSE, /* the range goes; what is behind it moves down */
};
int namespace_fallocate(struct namespace *ns, struct object o, enum fallocate_op op, uint64_t offset, uint64_t len,
			bool keeps_setid, uint64_t *journal_seq);

/* Copy a range of a file, with the times and mode changes of a write: data_copy_range(). */
ssize_t namespace_copy_range(struct namespace *ns, struct object from, uint64_t from_offset, struct object to,
			     uint64_t to_offset, uint64_t len, unsigned flags, bool keeps_setid, uint64_t *journal_seq);

/* While held, an object that loses its last name is not deleted. Counted; in memory. */
void namespace_hold(struct namespace *ns, struct object o);
void namespace_release(struct namespace *ns, struct object o);
/*
 * Holds that are somebody else's: @is_in_use is asked about each object that loses its last name, and true means that
 * it is held, until namespace_release(). Called without locks, by whoever takes the name away. NULL: nobody.
 */
void namespace_in_use_set(struct namespace *ns, bool (*is_in_use)(void *ctx, struct object o), void *ctx);
/* Wait until the deletions queued so far are done. */
int namespace_deletions_wait(struct namespace *ns);
/* How many deletions were ever queued, and are done. */
void namespace_deletions_count(struct namespace *ns, uint64_t *queued, uint64_t *done);
/* Add what its background does to @list. */
void namespace_jobs(struct namespace *ns, struct job_list *list);
/* After an unclean mount, and before a clean one ends: delete every inode on the deleted list (04 §6). */
int namespace_delete_dead_inodes(struct namespace *ns);

/* Fresh filesystem: subvolume 1, its snapshot, root directory and lost+found (04 §10, 05 §2.5). */
int namespace_init_fresh(struct btrees *trees, const struct super *super);

#endif
