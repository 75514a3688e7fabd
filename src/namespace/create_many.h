/*
 * New objects, many in a transaction: for those who fill a filesystem (create_many.c).
 */
#ifndef KILN_NAMESPACE_CREATE_MANY_H
#define KILN_NAMESPACE_CREATE_MANY_H

#include "data/write_batch.h"
#include "namespace/change.h"

/*
 * An object as it is to be. Of its directory it inherits the options and nothing else: owner, permissions and times are
 * the ones that are given.
 */
struct new_object {
	struct object dir;
	const char *name;
	size_t len;
	uint32_t mode; /* type and permissions */
	uint32_t uid, gid;
	uint32_t rdev_major, rdev_minor;
	struct inode_time atime, mtime;
	const char *target; /* of a symlink, not longer than symlink_inline_bytes_max() */
	size_t target_len;
	bool has_contents;
	unsigned contents; /* the number of a file in the batch */
	/* results */
	int err; /* -EEXIST, -ENOTDIR, ... */
	struct object created;
	bool is_to_be_written; /* private */
};

/* Longest target of a symlink that is stored within a key. */
size_t symlink_inline_bytes_max(const struct super *super);
/*
 * Make them, and say of each whether it is there. @data (may be NULL) has been written, or could not be; it is reset by
 * the caller. An object whose contents could not be written is there without them, or with a part.
 */
void namespace_create_many(struct namespace *ns, struct new_object *objects, size_t nr, struct data_batch *data,
			   uint64_t *journal_seq);

#endif
