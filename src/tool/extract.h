/*
 * Writing a tree from a filesystem into a directory of this machine.
 *
 * What comes from the disk may be hostile; nothing in it can make anything appear outside of the destination:
 *
 * - Everything is made through the descriptor of its directory, by a single safe name (tree_add_safe_name()), and never
 *   through a symlink. Directories above are not looked up by path again.
 * - Files are created, never opened: what exists is refused, or (overwrite) unlinked first. Of what exists, only
 *   directories are entered.
 * - Device nodes, owners, and set-id bits are for root only, set-id bits only where the owner could be set.
 *
 * Events of kiln_walk() go in; objects are made in parallel and finished in order (inorder.h). A directory is 0700
 * until it is left, then gets its own mode, owner, attributes and times.
 */
#ifndef KILN_TOOL_EXTRACT_H
#define KILN_TOOL_EXTRACT_H

#include "kiln/kiln.h"

enum extract_trouble {
	EXTRACT_DAMAGED,  /* bytes of a file that can't be read: zeroes stand there */
	EXTRACT_LOST,	  /* an object, or something about it, can't be read */
	EXTRACT_REFUSED,  /* what no honest filesystem holds: left out, or made under another name */
	EXTRACT_FAILED,	  /* could not be written */
	EXTRACT_SKIPPED,  /* device node: only root can make it */
	EXTRACT_NOT_KEPT, /* told once for each kind of metadata (enum extract_kept) that can't be kept */
};

/* Metadata that may have to be left behind, counted. */
enum extract_kept {
	KEPT_OWNER,
	KEPT_SET_ID,
	KEPT_TIMES,
	KEPT_USER,
	KEPT_TRUSTED,
	KEPT_SECURITY,
	KEPT_ACL,
	KEPT_XATTR_OTHER,
	KEPT_LINK,
	KEPT_NR
};
/* Name for machines: "owner", "set_id_bits", "times", "user_xattrs", ... */
const char *extract_kept_name(enum extract_kept kept);

/* Told from any task, one at a time. Strings live during the call. */
struct extract_report {
	enum extract_trouble trouble;
	const char *path;     /* where it is in the filesystem */
	uint64_t offset, len; /* EXTRACT_DAMAGED */
	int error;	      /* negative errno, or 0 */
	const char *what;     /* words for people; never NULL */
};

struct extract_counts {
	uint64_t files, directories, symlinks, hardlinks, specials;
	uint64_t bytes;				/* of contents written, without holes */
	uint64_t trouble[EXTRACT_NOT_KEPT + 1]; /* reports of each kind */
	uint64_t damaged_files, damaged_bytes;
	uint64_t not_kept[KEPT_NR];
};

struct extract_options {
	bool overwrite;		  /* replace what exists (never a directory); directories get the metadata, too */
	bool is_root;		  /* owners, device nodes, set-id bits, trusted.* and security.* */
	const volatile int *stop; /* becomes non-zero when to stop */
	void *ctx;
	void (*report)(void *ctx, const struct extract_report *report);
	void (*progress)(void *ctx, uint64_t bytes, uint64_t files); /* more of each; from any task, at any time */
};

struct extract;

/* @dest_fd: the directory that everything goes into; stays the caller's. NULL when memory is short. */
struct extract *extract_start(kiln_fs *fs, int dest_fd, const struct extract_options *options);
/*
 * Begin with the tree or object at @source of the filesystem (for reports). It becomes @name in the destination (a
 * single name that the user chose or knows), or with "" the destination itself. 0 or -ENOMEM.
 */
int extract_begin(struct extract *x, const char *source, const char *name);
/* An event of the walk. A kiln_walk_fn; @x is a struct extract. Ends the walk when stopped, or all space is used. */
int extract_event(void *x, const struct kiln_walk_entry *e);
/* Finish what was begun, also after the walk stopped on the way. 0, -EINTR, or what made going on pointless. */
int extract_finish(struct extract *x);
void extract_end(struct extract *x);

/* Valid between extract_finish() and the next extract_begin(). */
const struct extract_counts *extract_counts(const struct extract *x);

#endif
