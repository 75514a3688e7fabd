/*
 * Reading a tree of this machine, or a tar archive, into a filesystem: the other way of extract.h.
 *
 * One task walks and makes directories; several make files, so that reading one overlaps with writing another. Kept:
 * contents with their holes, type, mode, owner, times, extended attributes and ACLs, hardlinks among what is imported.
 * A directory gets its own times when the last of its entries is done.
 *
 * Memory: a queue of IMPORT_QUEUE_MAX files, a buffer and a batch per task, and 48 bytes for each file with several
 * links (archives: for each directory, too).
 */
#ifndef KILN_TOOL_IMPORT_H
#define KILN_TOOL_IMPORT_H

#include "kiln/kiln.h"

enum { IMPORT_QUEUE_MAX = 256, IMPORT_BUFFER_BYTES = 4 << 20 };

struct import_counts {
	uint64_t files, directories, symlinks, hardlinks, specials;
	uint64_t bytes;	 /* of contents, without holes */
	uint64_t failed; /* objects that could not be imported, or not whole */
};

struct import_options {
	bool is_recursive; /* else directories fail with -EISDIR */
	bool overwrite;	   /* replace files that exist; directories that do are merged into in any case */
	bool keeps_owner;  /* else everything belongs to uid, gid */
	uint32_t uid, gid;
	const volatile int *stop; /* becomes non-zero when to stop */
	void *ctx;
	/*
	 * Told from any task, one at a time: what failed. @path is where it came from; @what (may be NULL) says of it;
	 * @err may be 0 if that says all.
	 */
	void (*report)(void *ctx, const char *path, int err, const char *what);
	void (*progress)(void *ctx, uint64_t bytes, uint64_t files); /* more of each; from any task */
};

struct import;

/*
 * @task_nr: how many make files; 0: several for each processor, as they mostly wait for the device. NULL when memory is
 * short.
 */
struct import *import_start(kiln_fs *fs, const struct import_options *options, unsigned task_nr);
/*
 * Import @source, a path of this machine (a symlink is imported as such), as @name in directory @dir; with @name "",
 * what is in directory @source goes into @dir itself, which gets its attributes. Returns when all is done. 0 (what
 * failed was reported and counted), or what made going on pointless, reported too: -EINTR stopped, -ENOSPC, -EROFS,
 * -ENOMEM.
 */
int import_path(struct import *x, const char *source, struct kiln_node dir, const char *name);
/* Import a tar archive (any format and compression that libarchive reads) from a descriptor into @dir; as above. */
int import_tar(struct import *x, int fd, struct kiln_node dir);
const struct import_counts *import_counts(const struct import *x);
void import_end(struct import *x);

#endif
