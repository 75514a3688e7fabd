/*
 * Contents of many new files, written at once.
 *
 * A write of its own for each small file costs the device, and whoever waits for it, more than all the rest of making
 * the file. So contents are laid behind one another in one buffer, which gets space in one go and is written in as few
 * I/Os as the pieces of that space allow. Then the keys are known but for their inode, and are put by whatever
 * transactions make the files. As always, no key is put before what it points at has been written.
 *
 * A batch is its caller's memory: some 1.1 MiB, however long it is kept, which no budget counts. What its contents are
 * compressed or encrypted to, while they are written, comes from the data room's.
 *
 * Life of a batch: data_batch_add() until it is full, data_batch_write(), data_batch_put() in transactions,
 * data_batch_reset(). One task at a time uses it.
 */
#ifndef KILN_DATA_WRITE_BATCH_H
#define KILN_DATA_WRITE_BATCH_H

#include "data/write.h"

struct data_batch;

enum { DATA_BATCH_BYTES = 1 << 20, DATA_BATCH_FILES_MAX = 256 };

/* NULL: no memory, or the filesystem isn't open for writing. */
struct data_batch *data_batch_new(struct data *data);
void data_batch_free(struct data_batch *b); /* NULL is allowed */
/*
 * Add a file with @bytes of contents, more than 0. *@room is where they go, at any time before data_batch_write();
 * *@file is its number. -ENOBUFS: there is no room now; in an empty batch, there never is.
 */
int data_batch_add(struct data_batch *b, size_t bytes, void **room, unsigned *file);
/* Take back the last one. */
void data_batch_drop_last(struct data_batch *b);
/* Write it all and wait. 0, or an error: then nothing can be put, but the contents are still in their rooms. */
int data_batch_write(struct data_batch *b);
/* The contents of a file, until the batch is reset. */
const void *data_batch_contents(const struct data_batch *b, unsigned file, size_t *bytes);
/* How many keys data_batch_put() will put. */
unsigned data_batch_key_nr(const struct data_batch *b, unsigned file);
/*
 * Put the keys of a file, and set the size and sectors of its inode, which is new and has the number already; putting
 * the inode is the caller's. -KILN_E_NOT_FOUND_HERE: it can't be done this way (there was no space for all of the
 * batch, or the inode has options that ask for something else), and nothing was put: write this file by itself.
 */
int data_batch_put(struct btree_txn *txn, const struct data_batch *b, unsigned file, struct inode *inode);
/* Of the transactions that put: btree_commit_opts.reservation. */
struct disk_reservation *data_batch_reservation(struct data_batch *b);
/* All transactions are over: empty again. */
void data_batch_reset(struct data_batch *b);

#endif
