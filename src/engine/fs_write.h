/*
 * Read-write: how an open filesystem becomes writable, and clean again.
 *
 * Starting goes through what recovery needs, in the order of durability (03 §10): blacklist and "dirty" in the
 * superblocks, the journal behind what it holds, btrees, allocator, the passes, then users. Stopping is the reverse:
 * deletions end, everything is written back, the last journal entry is empty, and the superblocks say "clean".
 *
 * After an error that makes writing unsafe the filesystem is *shut down*: nothing is written any more, changes fail
 * with -EROFS, reading goes on. It stays dirty, and the next start replays the journal.
 */
#ifndef KILN_ENGINE_FS_WRITE_H
#define KILN_ENGINE_FS_WRITE_H

#include "engine/fs.h"

/*
 * Make @fs, opened to FS_NAMESPACE on devices that are open for writing, writable. 0, or an error with @why; then it
 * must be closed (nothing may be written, and reading may see what recovery left half done in memory).
 */
int fs_write_start(struct kiln_fs *fs, char why[KILN_ERROR_BYTES]);
/*
 * Make @fs, of which there are superblocks, an empty journal and btrees without roots, a filesystem with a journal, its
 * first keys, root directory and lost+found, open for writing. Errors as above: the superblocks then still say that
 * nothing is initialised.
 */
int fs_write_start_fresh(struct kiln_fs *fs, uint64_t memory_bytes, char why[KILN_ERROR_BYTES]);
/*
 * A clean shutdown. 0, or the error that kept it from being clean: then nothing that was acknowledged is lost, and the
 * next start recovers. In either case nothing is written afterwards.
 */
int fs_write_stop(struct kiln_fs *fs);
/* Stop as if power were cut: tests and the simulator. */
void fs_write_abort(struct kiln_fs *fs);
/*
 * Is there something that keeps a filesystem that reads fine from being written? 1, and @why is a sentence; 0; or an
 * error. Nothing has been written then.
 */
int fs_write_refused(struct kiln_fs *fs, char why[KILN_ERROR_BYTES]);
/* No more writes, for good; told to the user once. */
void fs_shut_down(struct kiln_fs *fs, int err, const char *cause);

/*
 * A device lost what it was given: go on without it, for good. An error, and nothing has changed: there is something
 * that only it has.
 */
int fs_device_leave(struct kiln_fs *fs, unsigned dev);

/* btree_backend.lacks_copies */
bool fs_node_lacks_copies(void *ctx, const struct btree_ptr *p);
/* btree_backend.write: all replicas at once, waiting for all. */
int fs_node_write(void *ctx, const struct btree_ptr *p, const void *buf, size_t offset, size_t bytes, unsigned *failed);

/* All that goes on in the background of a filesystem that is open for writing; none of one that isn't. */
void fs_jobs(struct kiln_fs *fs, struct job_list *list);

#endif
