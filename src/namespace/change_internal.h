/* What the files of the write side share: start and stop, steps of transactions, inode numbers, holds. */
#ifndef KILN_NAMESPACE_CHANGE_INTERNAL_H
#define KILN_NAMESPACE_CHANGE_INTERNAL_H

#include "namespace/change.h"
#include "namespace/internal.h"
#include "namespace/str_hash_table.h"

/* Longest name that is given to a new entry: what system calls allow. The format has room for more. */
enum { NAME_BYTES_MAX = 255 };
enum { SYMLINK_BYTES_MAX = 4095 };
/* User flags (04 §1.2): those that SETATTR_FLAGS changes. */
enum { INODE_USER_FLAGS = INODE_SYNC | INODE_IMMUTABLE | INODE_APPEND | INODE_NODUMP | INODE_NOATIME };

/*
 * A number that an inode under construction has reserved in memory, so that no two get the same. On the stack of who
 * creates.
 */
struct inum_claim {
	struct inum_claim *next;
	uint64_t inum;
	uint32_t generation; /* at least this one for the new inode: the number was used before */
};

/* Where numbers come from (inode_alloc.c). */
struct inum_allocator {
	struct mutex
		lock; /* held while the btree is searched: one search at a time is fast enough, as most look once */
	uint64_t min, max; /* [min, max) */
	uint64_t hint;	   /* where the search goes on */
	uint64_t freed_nr; /* numbers given back since the search began at min */
	struct inum_claim *claims;
};

/* Objects in use, and the ones to be deleted (delete.c). */
struct hold;
struct deletions {
	struct mutex lock;
	struct waitq changed;
	struct task *task;
	struct job job;
	bool (*is_in_use)(void *ctx, struct object o); /* namespace_in_use_set() */
	void *is_in_use_ctx;
	struct hold **buckets; /* chained; bucket_nr is a power of 2 */
	size_t bucket_nr, hold_nr;
	bool has_lost_holds; /* memory ran out for a hold: nothing is deleted in the background any more */
	struct object *queue;
	size_t queue_head, queue_nr, queue_capacity; /* [queue_head, queue_nr) are waiting */
	size_t queue_max;			     /* when more are waiting, who adds to them waits */
	uint64_t queued_nr;			     /* ever */
	_Atomic uint64_t done_nr;		     /* ever; changes with the lock held */
	unsigned waiting_nr;			     /* tasks that wait for something to be deleted */
	int err;				     /* first failure since it was last asked for */
	bool is_stopping;
};

struct namespace_write {
	struct allocator *allocator;
	struct inum_allocator inums;
	struct deletions deletions;
	struct mutex many_lock; /* held over transactions that make many objects; above all other locks */
};

/* --- change.c --- */

/*
 * Run a transaction of the namespace; -EROFS before namespace_start_write(). It is run again when there was no room and
 * deletions have given some, so nothing may be held.
 */
int change_run(struct namespace *ns, const char *name, uint64_t *journal_seq, btree_txn_fn fn, void *args);
/* The same, but the first answer counts: for deletions. */
int change_try(struct namespace *ns, const char *name, uint64_t *journal_seq, btree_txn_fn fn, void *args);
/* For what adds keys: 0, or -ENOSPC when users may have no more space (allocator_key_room()). */
int change_room_check(const struct namespace *ns);
/* Now, in the filesystem's units. */
uint64_t change_time(const struct super *super);
/* Is it a name that a new entry may have? 0, -ENAMETOOLONG, -EINVAL. */
int change_name_check(const char *name, size_t len);
/* Can an object of this type, and with this device number, be made? 0 or -EINVAL. Not for symlinks. */
int change_type_check(uint32_t mode, uint32_t rdev_major, uint32_t rdev_minor);
/* Put the target of a new symlink as one block of inline data, and set the size and sectors of its inode. */
int symlink_target_put(struct btree_txn *txn, const struct namespace *ns, const char *target, size_t len,
		       struct inode *inode);
/* A subvolume, read in the transaction. -ENOENT, also for one that is being deleted. */
int subvol_txn_get(struct btree_txn *txn, uint32_t subvol, struct subvolume *sv);
/* The snapshot that changes of @subvol go to, read in the transaction. -EROFS: a read-only snapshot. -ENOENT. */
int subvol_txn_snapshot(struct btree_txn *txn, uint32_t subvol, uint32_t *snapshot);
/* A directory whose entries are about to change. -ENOTDIR; -ENOENT for one that was removed; -EPERM: immutable. */
int dir_txn_get(struct btree_txn *txn, uint64_t inum, uint32_t snapshot, struct inode *dir);
/* New times of a directory whose entries changed, and put. */
int dir_txn_put(struct btree_txn *txn, struct inode *dir, uint64_t now);
/* Is there a dirent in it, of any view? 1, 0, or an error. */
int dir_txn_has_entries(struct btree_txn *txn, const struct inode *dir);
int dirent_txn_put(struct btree_txn *txn, const struct hash_table *t, uint64_t slot, const struct dirent *d);
/* One more name; -EMLINK. One less: sets the flag when it was the last; -EIO when there was none. */
int inode_link_add(struct inode *inode);
int inode_link_drop(struct inode *inode);
/* Take over the options of @dir that aren't the inode's own (10 §6 rule 4). True: something changed. */
bool inode_opts_inherit(struct inode *inode, const struct inode *dir);
uint8_t inode_dirent_type(const struct inode *inode);

/* --- setattr.c --- */

/* A regular file whose data may be changed: its inode, and where the change goes. -EISDIR, -EINVAL, -EROFS. */
int change_file_get(struct namespace *ns, struct object o, struct inode *inode, struct data_write_target *file);

/* --- inode_alloc.c --- */

void inum_allocator_init(struct inum_allocator *a, const struct super *super);
void inum_allocator_destroy(struct inum_allocator *a);
/* Find a number that nothing uses, and reserve it. 0, -ENOSPC, or an error. */
int inum_claim(struct namespace *ns, struct inum_claim *claim);
void inum_unclaim(struct namespace *ns, struct inum_claim *claim);
/*
 * In the transaction: set number, snapshot and generation of a new inode. -KILN_E_NOT_FOUND_HERE: it was taken in the
 * meantime after all; claim another.
 */
int inum_txn_use(struct btree_txn *txn, const struct inum_claim *claim, uint32_t snapshot, struct inode *inode);
void inum_freed(struct namespace *ns);
/* Fields of an inode that don't depend on its directory: times, hash. */
void inode_init(const struct super *super, uint64_t now, uint64_t hash_seed, struct inode *inode);

/* --- xattr_change.c --- */

/* The stored value of an xattr: 1 found, 0, or an error. *@x points into memory of the transaction. */
int xattr_txn_get(struct btree_txn *txn, const struct inode *inode, uint8_t type, const char *name, struct xattr *x);
/* Put, whether there is one or not. And take away, where there may be none (types without names: ACLs). */
int xattr_txn_put(struct btree_txn *txn, const struct inode *inode, const struct xattr *x);
int xattr_txn_delete(struct btree_txn *txn, const struct inode *inode, uint8_t type);

/* --- acl_rules.c: pure functions over ACLs in the stored form --- */

enum { ACL_STORED_BYTES_MAX = BKEY_VALUE_U64S_MAX * 8 };
/* Are the entries such that they make sense: one of each that must be, in order? 0 or -EINVAL. No entries: 0. */
int acl_check(const uint8_t *acl, size_t len);
/* Permission bits that an access ACL means. *@is_minimal: they say all that it says, so it isn't stored. */
uint32_t acl_to_mode(const uint8_t *acl, size_t len, bool *is_minimal);
/* chmod: make the ACL say what @mode says. */
void acl_set_mode(uint8_t *acl, size_t len, uint32_t mode);
/*
 * An inode is created with @mode in a directory with this default ACL: make it the access ACL of the new inode, and
 * return the mode that results. *@is_minimal as above.
 */
uint32_t acl_inherit(uint8_t *acl, size_t len, uint32_t mode, bool *is_minimal);

/* --- delete.c --- */

int deletions_start(struct namespace *ns);
void deletions_stop(struct namespace *ns);
/* The object lost its last name: delete it, now or when nobody holds it any more. */
void deletions_add(struct namespace *ns, struct object o);
/*
 * Room that is coming: what was unlinked but isn't deleted yet. Who may be refused for want of room says when he
 * begins, and asks when it failed with @err whether to try again. True: something has been deleted since he began, or
 * was asked for the last time; it has been waited for, with nothing held. False: no such error, or all that is queued
 * is deleted (for quotas: that was queued when it failed the first time), and the answer is final.
 */
struct room_wait {
	uint64_t done, target; /* deletions, of all ever: done when it was tried; to be done before it is given up */
};
struct room_wait deletions_room_begin(struct namespace *ns);
bool deletions_give_room(struct namespace *ns, int err, struct room_wait *w);
/* May an inode without names get one? Only when somebody holds it and it isn't being deleted already. */
bool deletions_allow_link(struct namespace *ns, struct object o);

#endif
