/*
 * What POSIX sees, read side: subvolumes and snapshots resolved, inodes, directories, xattrs, symlinks.
 *
 * An object is a pair (subvolume, inode number): the same number occurs in every snapshot of a tree. A subvolume means
 * one snapshot id, looked up once per operation; below that, iterators filter by snapshot.
 *
 * *Fallback views.* Where the subvolumes or snapshots btree can't be read, the namespace still opens, and says so
 * (is_fallback): without subvolumes, a subvolume is rebuilt from the snapshot node that names it and the inode whose
 * bi_subvol says it is its root; without snapshots, of all versions of a key with a snapshot id not below the
 * subvolume's the one with the lowest id is shown, which is exact as long as no snapshot branched off, and may show
 * versions of a sibling otherwise.
 */
#ifndef KILN_NAMESPACE_NAMESPACE_H
#define KILN_NAMESPACE_NAMESPACE_H

#include "btree/btree.h"
#include "data/data.h"
#include "format/dirent.h"
#include "format/inode.h"
#include "format/snapshot.h"
#include "format/xattr.h"
#include "super/super.h"

struct namespace;

struct object {
	uint32_t subvol;
	uint64_t inum;
};

int namespace_open(struct super *super, struct btrees *trees, struct data *data, const struct report_sink *reports,
		   struct namespace **ns);
void namespace_close(struct namespace *ns);
/* Why the view is a fallback ("the subvolumes btree can't be read: ..."), or NULL. */
const char *namespace_fallback(const struct namespace *ns);

/* Root directory of a subvolume; subvolume 1 is the filesystem's root. -ENOENT, or an error. */
int namespace_subvol_root(struct namespace *ns, uint32_t subvol, struct object *root);
/* Subvolume @id as stored (or rebuilt). -ENOENT. */
int namespace_subvol(struct namespace *ns, uint32_t id, struct subvolume *sv);
/* Subvolumes in ascending order of ids: the first with id >= @id; -ENOENT at the end. */
int namespace_subvol_next(struct namespace *ns, uint32_t id, uint32_t *found, struct subvolume *sv);

/* The inode, in the view of its subvolume. -ENOENT: none there. -EIO: its node can't be read. */
int namespace_inode(struct namespace *ns, struct object o, struct inode *inode);

/*
 * Look a name up by hash (04 §2.2), case-insensitively in casefolded directories (12 §7.4). *@type is a DT_* value or
 * DT_DIR for subvolumes. -ENOENT; -EIO when part of the directory that could hold the name can't be read; -ENOTDIR is
 * the caller's to check.
 */
int namespace_lookup(struct namespace *ns, struct object dir, const char *name, size_t len, struct object *found,
		     unsigned *type);

/* ".." of a directory; the root's is itself. */
int namespace_parent(struct namespace *ns, struct object dir, struct object *parent);

struct dir_entry {
	const char *name; /* not terminated; may hold anything but NUL: untrusted */
	size_t name_len;
	unsigned type; /* DT_* */
	struct object object;
	uint64_t next_cookie; /* where to go on behind this entry */
};

/*
 * Entries of a directory from @cookie (0: the start; "." and ".." come first, with cookies 0 and 1) in slot order, to
 * @fn until it returns non-zero (which is then returned, unless positive: 0). Reaches the end: 0, *@at_end true.
 * A part that can't be read: -EIO after everything before it was given, *@resume_cookie (may be NULL) the cookie behind
 * the damage, so that the caller can go on with the rest.
 */
typedef int (*dir_entry_fn)(void *ctx, const struct dir_entry *entry);
int namespace_readdir(struct namespace *ns, struct object dir, uint64_t cookie, dir_entry_fn fn, void *ctx,
		      bool *at_end, uint64_t *resume_cookie);

/* Target of a symlink: bytes written (at most @size, not terminated), or an error. Stops at the first NUL. */
ssize_t namespace_readlink(struct namespace *ns, struct object o, char *buf, size_t size);

/*
 * An attribute by full name ("user.foo", "system.posix_acl_access" in the system calls' form; "bcachefs.NAME" and
 * "bcachefs_effective.NAME" are computed). Bytes, -ENODATA, -ERANGE; @size 0: bytes needed.
 */
ssize_t namespace_xattr_get(struct namespace *ns, struct object o, const char *name, void *value, size_t size);
/*
 * Names, each terminated by NUL, as listxattr gives them. @size 0: bytes needed. Computed attributes aren't listed: who
 * copies a file with all its attributes would fail to set them elsewhere.
 */
ssize_t namespace_xattr_list(struct namespace *ns, struct object o, char *list, size_t size);

/* What data_read() needs for this inode. */
int namespace_data_file(struct namespace *ns, struct object o, const struct inode *inode, struct data_file *file);

#endif
