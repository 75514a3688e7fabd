/*
 * Block devices: files, real block devices, memory, and wrappers, behind one small table of functions.
 *
 * Every I/O is a `struct device_io`, submitted as part of an `io_group`: what one caller waits for together. The caller
 * submits and reaps on its own thread; no other thread touches its group. Offsets and lengths are bytes. Short reads
 * are errors here (-EIO, with how much came), so a completed request was served whole. An I/O that reaches beyond the
 * end of its device is -EIO too, and so never makes a file grow.
 *
 * A flush covers the writes that were complete when it was submitted, whichever group they belonged to. When one fails,
 * nobody knows which of them are there, and asking again would only seem to tell: a kernel reports it once. So from
 * then on every flush of the device fails, whoever asks, until it is opened anew. Of several at a time any may be the
 * one that is told; so one that went well is given back when all that it overlapped have ended, and fails if one of
 * them did. A group that has flushes gives them back when all of its I/O is done: wait for it, and for nothing else.
 *
 * A group may have I/O to any mix of devices. All file devices share one io_uring per group, borrowed from a pool when
 * the group first needs it and given back when nothing is in flight any more.
 */
#ifndef KILN_DEVICE_DEVICE_H
#define KILN_DEVICE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/log.h"
#include "base/report.h"

struct device;
struct io_group;
struct ring;

enum device_op { DEVICE_READ, DEVICE_WRITE, DEVICE_FLUSH, DEVICE_DISCARD };

struct device_io {
	/* filled in by the caller; must stay in place until the I/O is done */
	enum device_op op;
	struct device *dev;
	uint64_t offset_bytes;
	struct iovec *iov; /* read, write */
	unsigned iov_nr;
	uint64_t len_bytes; /* sum of iov; length for discard */
	/*
	 * A small read, likely to be followed by ones of what lies behind it: may come from the host's page cache,
	 * which reads ahead. Only devices that are open read-only and direct make a difference. Not for reading again
	 * what was found bad.
	 */
	bool may_be_cached;
	void *ctx; /* the caller's */

	/* filled in by the device room */
	int err; /* 0 or negative errno, valid once done */
	bool is_done;
	uint64_t done_bytes; /* how much of a read or write is known to have been served; all of it if err is 0 */
	struct device_io *next, *prev; /* in the group's pending or done list */
	struct device_io *delayed_next;
	struct io_group *group;
	uint64_t submitted_ns;
	uint64_t due_ns;			/* io_done_at() */
	unsigned flush_slot;			/* its bit in flushes_open */
	void (*complete)(struct device_io *io); /* of an I/O that a wrapper made; NULL: goes to the group */
};

struct device_ops {
	const char *kind; /* "file", "block", "memory", "fault", ... */
	/*
	 * Start @io, which io_submit() has checked: inside the device, aligned as the device wants, not a write to a
	 * read-only one. Completion is announced by io_done() or io_done_at(), before submit returns or while the
	 * group's owner is in poll(); always on the owner's thread (in fiber mode: also from fiber_sim_at()). For reads
	 * the buffers may hold up to io_align_bytes more than len_bytes, at the end of the device.
	 */
	void (*submit)(struct device *dev, struct device_io *io);
	/*
	 * Push out what submit() queued for @group, and take what is done. @wait_nr > 0: block until at least that many
	 * I/Os of the group are done, or all that are with this device. Returns false at once if none is.
	 * NULL: submit() calls io_done() or io_done_at() before it returns.
	 */
	bool (*poll)(struct device *dev, struct io_group *group, unsigned wait_nr);
	/* For simulated disks, may be NULL: what no flush has covered yet will be covered by none. */
	void (*cache_lose)(struct device *dev);
	void (*close)(struct device *dev);
};

struct device {
	const struct device_ops *ops;
	char name[256]; /* as the user named it: for messages */
	uint64_t size_bytes;
	uint32_t logical_block_bytes; /* smallest unit and alignment of an I/O on the medium */
	/*
	 * Alignment of offset and length that submit() wants (1 for buffered I/O). Where it is above the block size of
	 * a filesystem, that is read through bounce buffers; to write it, open with DEVICE_OPEN_NO_DIRECT.
	 */
	uint32_t io_align_bytes;
	uint32_t mem_align_bytes; /* alignment of buffers that avoids a bounce copy */
	bool is_readonly;
	bool is_direct;
	bool has_failed_flush;		    /* atomic: no flush succeeds any more */
	uint64_t flushes_begun;		    /* atomic: how many ever were */
	uint64_t flushes_open;		    /* atomic: a bit for each whose end isn't known yet */
	uint64_t read_latency_ns;	    /* atomic: moving average, see device_read_latency() */
	uint64_t read_latency_at_ns;	    /* atomic: when it was that */
	uint64_t read_errors, write_errors; /* since open */
};

/*
 * A group of I/Os of one caller. Lives on the caller's stack.
 */
struct io_group {
	struct device_io *done_first, *done_last; /* completed, not yet taken */
	struct device_io *pending_first;	  /* in flight, newest first */
	struct device_io *delayed_first;	  /* served, but done only at due_ns: earliest first */
	unsigned in_flight;
	bool is_sync;	   /* one I/O at a time: a device may serve it without a ring */
	struct ring *ring; /* borrowed by file devices; NULL: not yet */
};

void io_group_init(struct io_group *group);
/*
 * For a caller who submits @nr I/Os and then waits for them. A single one is served while it is submitted: that saves
 * handing it to another thread and back, which costs more than a small I/O itself.
 */
void io_group_init_for(struct io_group *group, unsigned nr);
/*
 * Submit @io as part of @group. Unaligned offsets and lengths (device io_align) and buffers (mem_align) are served
 * through a bounce buffer for reads and are -EINVAL for writes; discards are aligned to logical blocks. Never blocks
 * longer than queueing takes, except on devices without io_uring, which serve the I/O here.
 * I/O may stay queued until io_group_push(), io_group_next() or io_group_wait().
 */
void io_submit(struct io_group *group, struct device_io *io);
/* Start what is queued without waiting for it: for callers that have other work to do first. */
void io_group_push(struct io_group *group);
/* Next completed I/O, waiting for one if needed; NULL when none is in flight any more. */
struct device_io *io_group_next(struct io_group *group);
/* Wait for all; returns the first error among those not taken yet, or 0. */
int io_group_wait(struct io_group *group);

/* --- for implementations of devices; all of these on the thread of the group's owner --- */

/* @io is finished with @err. Neither blocks nor allocates. */
void io_done(struct device_io *io, int err);
/* The same, but let the group's owner see it only at clock_monotonic_ns() @due_ns: simulated latency. */
void io_done_at(struct device_io *io, int err, uint64_t due_ns);
/*
 * For wrappers: pass @child, whose first part is filled in, to the device below on behalf of @parent. When it is done
 * @complete is called, which must io_done() the parent. Without further checks: the parent has passed them.
 */
void io_submit_below(struct device_io *child, struct device_io *parent, void (*complete)(struct device_io *child));

/* One synchronous I/O. Any offset, length and buffer are allowed for reads. */
int device_read(struct device *dev, uint64_t offset_bytes, void *buf, size_t len_bytes);
int device_write(struct device *dev, uint64_t offset_bytes, const void *buf, size_t len_bytes);
int device_flush(struct device *dev);
/* -EOPNOTSUPP where the medium can't. What a discarded range reads as is undefined. */
int device_discard(struct device *dev, uint64_t offset_bytes, uint64_t len_bytes);
/*
 * Zeroes over [@from, @to), in whole blocks and as far as there is something else: image files stay sparse. A flush
 * makes it durable.
 */
int device_wipe(struct device *dev, uint64_t from_bytes, uint64_t to_bytes);
/*
 * How long reads take, in nanoseconds: a moving average, which gets half as large with every few seconds that nothing
 * is read. So a device that isn't read because one read of it was slow is tried again. Reads that fail count as slow
 * ones, the slower the more in a row. 0: not known.
 */
uint64_t device_read_latency(const struct device *dev);
/* Begin anew: what was read up to now says nothing of what will be. */
void device_read_latency_forget(struct device *dev);
void device_close(struct device *dev); /* NULL is allowed; no I/O may be in flight */

/* Buffers aligned for any device; free with io_buffer_free(). NULL when memory is short. */
void *io_buffer_alloc(size_t bytes);
void io_buffer_free(void *buf);

/* --- opening --- */

enum device_open_flags {
	DEVICE_OPEN_WRITE = 1,	   /* exclusive; else read-only with a shared lock */
	DEVICE_OPEN_FORCE = 2,	   /* read although another process is writing */
	DEVICE_OPEN_NO_DIRECT = 4, /* buffered I/O */
	DEVICE_OPEN_NO_URING = 8,  /* the fallback (pread/pwrite); also chosen where io_uring is forbidden */
};

/*
 * Open a file or block device. Locks: advisory whole-file lock on the inode, shared for readers and exclusive for
 * writers, plus O_EXCL for writers of block devices. A loop device and the file behind it are one. A reader meeting a
 * writer, or a writer meeting anybody, gets -EBUSY. On every error @why (may be NULL) becomes a sentence that names the
 * device and, for -EBUSY, the other process if it can be found, and what to do. -ENOTBLK: neither a file nor a block
 * device.
 */
int device_open_file(const char *path, unsigned flags, const struct log_sink *log, struct device **dev, char why[256]);

/* Do two paths lead to the same file or block device, or to loop devices of the same bytes? */
bool device_is_same(const char *a, const char *b);

/*
 * Image files for formatting (prepare.c). device_file_make() makes the file or lets it grow to @bytes, sparse; one that
 * is larger, in use, or no regular file is an error with a sentence in @why. device_file_restore() puts back what was
 * there before: for failures afterwards.
 */
struct device_file_change {
	bool was_made, has_grown;
	uint64_t bytes_before;
};
int device_file_make(const char *path, uint64_t bytes, struct device_file_change *change, char why[256]);
void device_file_restore(const char *path, const struct device_file_change *change);

/*
 * Does the device hold something that would be overwritten: a filesystem, a partition table, ...? 1 with @what ("ext4
 * filesystem labelled \"home\""), 0, or an error.
 */
int device_signature_find(const char *path, char what[128]);

/*
 * A device in memory, all zero, sparse (memfd). @logical_block_bytes 512 or 4096, which is also the alignment it wants
 * of I/O, as strict as a real device. @size_bytes is a multiple of it.
 */
int device_open_memory(const char *name, uint64_t size_bytes, uint32_t logical_block_bytes, struct device **dev);

/* --- wrappers: each owns the device below and closes it --- */

/*
 * Writes one line for each completed I/O to @path: time, op, offset, length, result (the format is in trace.c). With
 * @with_data what is written also goes to `@path.data`. Files of that name are replaced. On error @below stays open.
 */
int device_wrap_trace(struct device *below, const char *path, bool with_data, struct device **dev);

/*
 * Fault injection. The first rule, in the order they were added, that matches an I/O, isn't used up and wins its throw
 * of the dice applies; at most one applies to an I/O. Throws come from the seed.
 */
enum device_fault_kind {
	FAULT_ERROR,
	FAULT_BITFLIP,
	FAULT_LATENCY,
	FAULT_SHORT_READ,
	FAULT_LOST_WRITE,	 /* says that it was written, and it wasn't */
	FAULT_MISDIRECTED_WRITE, /* the same, and something else was overwritten */
	FAULT_KIND_NR,
};
enum { FAULT_RULES_MAX = 64 };
struct device_fault {
	enum device_fault_kind kind;
	enum device_op op;		 /* the one that the kind is about, if it is about one */
	uint64_t begin_bytes, end_bytes; /* range of the device it applies to, not for flushes; end 0: all */
	uint32_t per_million;		 /* chance per I/O; 1000000: always */
	uint64_t latency_ns;
	int err;	    /* FAULT_ERROR: negative errno; the device below doesn't see the I/O, but loses its cache */
	uint64_t remaining; /* times it fires; UINT64_MAX: for ever */
};
/* On error @below stays open. */
int device_wrap_fault(struct device *below, uint64_t seed, struct device **dev);
/*
 * Add a rule while the device is in use. A bit flip hits one bit, inside the rule's range, of the data read. A short
 * read is -EIO with done_bytes set, and what lies behind is overwritten with 0x5a.
 * -EINVAL for a rule that makes no sense, -ENOSPC when there are FAULT_RULES_MAX.
 */
int device_fault_add(struct device *fault_dev, const struct device_fault *fault);
void device_fault_clear(struct device *fault_dev);
/* How often each kind has fired, by enum device_fault_kind. */
void device_fault_counts(struct device *fault_dev, uint64_t counts[FAULT_KIND_NR]);

#endif
