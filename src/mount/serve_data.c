/* Contents of files. See serve.c. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/util.h"
#include "mount/atime.h"
#include "mount/protocol.h"
#include "mount/ring.h"

enum { BUFFER_ALIGNMENT = 4096 };

static void *buffer_take(struct mount_server *s)
{
	void *buf = NULL;

	mutex_lock(&s->buffers_lock);
	if (s->buffers_nr)
		buf = s->buffers[--s->buffers_nr];
	mutex_unlock(&s->buffers_lock);
	return buf ? buf : aligned_alloc(BUFFER_ALIGNMENT, REQUEST_BYTES_MAX);
}

static void buffer_give(struct mount_server *s, void *buf)
{
	mutex_lock(&s->buffers_lock);
	if (buf && s->buffers_nr < BUFFERS_IDLE_MAX) {
		s->buffers[s->buffers_nr++] = buf;
		buf = NULL;
	}
	mutex_unlock(&s->buffers_lock);
	free(buf);
}

static void note_damage(void *ctx, uint64_t offset, uint64_t len, int error)
{
	(void)offset;
	(void)len;
	*(int *)ctx = error;
}

/*
 * Any damage in the range fails the request: a short answer would mean the end of the file. The kernel then asks again
 * page by page, so that only the damaged ones fail.
 */
void serve_read(fuse_req_t req, fuse_ino_t id, size_t size, off_t offset, struct fuse_file_info *fi)
{
	struct mount_server *s = server_of(req);
	struct kiln_node node;
	int damage = 0;

	(void)fi;
	if (!request_node(req, id, &node))
		return;
	void *own = ring_answer_buffer(), *buf = own ? own : buffer_take(s);
	if (!buf) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	size = min(size, (size_t)REQUEST_BYTES_MAX);
	ssize_t n = kiln_read_rescue(s->fs, node, (uint64_t)offset, buf, size, note_damage, &damage);
	if (n >= 0 && !damage)
		atimes_note(s->atimes, node);
	if (n < 0 || damage)
		fuse_reply_err(req, n < 0 ? (int)-n : EIO);
	else
		fuse_reply_buf(req, buf, (size_t)n);
	if (!own)
		buffer_give(s, buf);
}

/* As much as there is room for. */
static ssize_t write_with(struct mount_server *s, struct kiln_node node, const char *buf, size_t size, uint64_t offset,
			  unsigned flags)
{
	struct room_try try = room_try_begin(&s->room);
	size_t done = 0;
	ssize_t n;

	do {
		n = kiln_write_with(s->fs, node, offset + done, buf + done, size - done, flags);
		done += n > 0 ? (size_t)n : 0;
	} while (done < size && room_try_again(&s->room, &try, n < 0 ? (int)n : -ENOSPC));
	return done ? (ssize_t)done : n;
}

/*
 * A write from the page cache: whoever wrote was told "done" long ago, and the kernel has seen to setuid and, where it
 * collects writes, to times. It doesn't look how much of it was written, so all of it must be, or it fails.
 */
static ssize_t write_back(struct mount_server *s, struct kiln_node node, const char *buf, size_t size, uint64_t offset)
{
	unsigned flags = KILN_WRITE_KEEP_SETID | (s->has_quotas ? 0 : KILN_WRITE_KEEP_TIMES);
	size_t done = 0;

	while (done < size) {
		ssize_t n = write_with(s, node, buf + done, size - done, offset + done, flags);
		if (n <= 0)
			return n ? n : -EIO;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

/*
 * Errors of writing back. The kernel tells them at fsync, and at close unless somebody else asked first: setting a
 * file's times takes the error away, and `mv` and `cp -p` do that before they close, without minding the answer. So it
 * is kept here as well, for the close; an fsync that gets as far as here has told it before.
 */
static bool is_of(const struct failed_file *failed, struct kiln_node node)
{
	return failed->node.ino == node.ino && failed->node.subvol == node.subvol;
}

static void failure_note(struct mount_server *s, struct kiln_node node, int error)
{
	mutex_lock(&s->failed_lock);
	size_t i = 0;
	while (i < s->failed_nr && !is_of(&s->failed[i], node))
		i++;
	struct failed_file *failed = i < s->failed_nr ? s->failed : reallocarray(s->failed, i + 1, sizeof(*failed));
	if (failed) {
		s->failed = failed;
		s->failed[i] = (struct failed_file){ node, error };
		__atomic_store_n(&s->failed_nr, max(s->failed_nr, i + 1), __ATOMIC_RELEASE);
	}
	mutex_unlock(&s->failed_lock);
}

int failure_take(struct mount_server *s, struct kiln_node node)
{
	int error = 0;

	if (!__atomic_load_n(&s->failed_nr, __ATOMIC_ACQUIRE))
		return 0;
	mutex_lock(&s->failed_lock);
	for (size_t i = 0; i < s->failed_nr && !error; i++) {
		if (!is_of(&s->failed[i], node))
			continue;
		error = s->failed[i].error;
		s->failed[i] = s->failed[s->failed_nr - 1];
		__atomic_store_n(&s->failed_nr, s->failed_nr - 1, __ATOMIC_RELEASE);
	}
	mutex_unlock(&s->failed_lock);
	return error;
}

/*
 * A write that takes setuid or setgid away: the kernel, which leaves that to us, goes on with the mode that it knows,
 * and would run the file with its owner's power. So it is told to ask again, before it hears that the write is done.
 */
static bool takes_setid(kiln_fs *fs, struct kiln_node node, unsigned flags)
{
	struct kiln_stat st;

	return !(flags & KILN_WRITE_KEEP_SETID) && !kiln_stat(fs, node, &st) && st.mode & (S_ISUID | S_ISGID);
}

void serve_write(fuse_req_t req, fuse_ino_t id, const char *buf, size_t size, off_t offset, struct fuse_file_info *fi)
{
	kiln_fs *fs = server_of(req)->fs;
	struct kiln_node node;

	if (!request_node(req, id, &node))
		return;
	unsigned flags = fi->fh & PROTOCOL_KILL_SETID ? 0 : KILN_WRITE_KEEP_SETID;
	bool is_mode_changed = !fi->writepage && takes_setid(fs, node, flags);
	/* Pages come from the kernel, whoever wrote to them. */
	if (fi->writepage && server_of(req)->has_quotas)
		kiln_quota_privileged(fs, false);
	__atomic_fetch_add(&server_of(req)->writes_nr, 1, __ATOMIC_RELAXED);
	ssize_t n = fi->writepage ? write_back(server_of(req), node, buf, size, (uint64_t)offset)
				  : write_with(server_of(req), node, buf, size, (uint64_t)offset, flags);
	__atomic_fetch_sub(&server_of(req)->writes_nr, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&server_of(req)->written_bytes, (uint64_t)max(n, (ssize_t)0), __ATOMIC_RELAXED);
	if (n < 0 && fi->writepage)
		failure_note(server_of(req), node, (int)-n);
	if (is_mode_changed)
		server_forget_attributes(server_of(req), id);
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_write(req, (size_t)n);
}

/* A close. What was written has been written back before. */
void serve_flush(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
	struct kiln_node node;

	(void)fi;
	/* The kernel then doesn't ask again. */
	if (server_of(req)->options->is_readonly)
		fuse_reply_err(req, ENOSYS);
	else if (request_node(req, id, &node)) {
		if (nodes_is_dead(server_of(req)->nodes, node))
			room_expect(&server_of(req)->room, node);
		fuse_reply_err(req, failure_take(server_of(req), node));
	}
}

void serve_fsync(fuse_req_t req, fuse_ino_t id, int is_datasync, struct fuse_file_info *fi)
{
	struct kiln_node node;

	(void)is_datasync; /* the size is all that datasync could leave out, and it is in the same journal entry */
	(void)fi;
	if (!request_node(req, id, &node))
		return;
	failure_take(server_of(req), node);
	fuse_reply_err(req, -kiln_fsync(server_of(req)->fs, node));
}

/*
 * Where data is, is asked of us, but what was written lately is in the page cache and nobody else knows of it. So the
 * cache is emptied first, which writes it back. No lock on pages is held by who asks.
 *
 * The kernel returns from that when threads of ours have served the writes. So that these find one, only so many seek
 * at a time; what others ask waits in a list without a thread, until one of those is done with its own. A request from
 * a ring (ring.c) must be answered by the thread that got it, so there the kernel is told that no more can be asked:
 * from then on it takes all of each file for data, which is never wrong.
 */
struct seek {
	struct seek *next;
	fuse_req_t req;
	fuse_ino_t id;
	struct kiln_node node;
	off_t offset;
	int whence;
};

static void seek_serve(struct mount_server *s, const struct seek *k)
{
	if (!s->options->is_readonly)
		fuse_lowlevel_notify_inval_inode(s->session, k->id, 0, 0);
	int64_t found = k->whence == SEEK_DATA	 ? kiln_seek_data(s->fs, k->node, (uint64_t)k->offset)
			: k->whence == SEEK_HOLE ? kiln_seek_hole(s->fs, k->node, (uint64_t)k->offset)
						 : -EINVAL;
	if (found < 0)
		fuse_reply_err(k->req, (int)-found);
	else
		fuse_reply_lseek(k->req, found);
}

/* True: this thread serves it now. False: it waits in the list, or was refused. */
static bool seek_begin(struct mount_server *s, const struct seek *k)
{
	bool is_of_ring = ring_answer_buffer();
	struct seek *waiting = NULL;

	mutex_lock(&s->seeks_lock);
	bool is_now = s->seeks_nr < SEEKS_MAX;
	if (is_now)
		s->seeks_nr++;
	else if (!is_of_ring && (waiting = malloc(sizeof(*waiting)))) {
		*waiting = *k;
		*(s->seeks_last ? &s->seeks_last->next : &s->seeks_first) = waiting;
		s->seeks_last = waiting;
	}
	mutex_unlock(&s->seeks_lock);
	if (!is_now && !waiting)
		fuse_reply_err(k->req, is_of_ring ? ENOSYS : ENOMEM);
	return is_now;
}

/* The next one that waits; NULL: there is none, and this thread is done. */
static struct seek *seek_next(struct mount_server *s)
{
	mutex_lock(&s->seeks_lock);
	struct seek *k = s->seeks_first;
	if (k)
		s->seeks_first = k->next;
	else
		s->seeks_nr--;
	if (!s->seeks_first)
		s->seeks_last = NULL;
	mutex_unlock(&s->seeks_lock);
	return k;
}

void serve_lseek(fuse_req_t req, fuse_ino_t id, off_t offset, int whence, struct fuse_file_info *fi)
{
	struct seek k = { .req = req, .id = id, .offset = offset, .whence = whence }, *next;
	struct mount_server *s = server_of(req);

	(void)fi;
	if (!request_node(req, id, &k.node))
		return;
	if (!seek_begin(s, &k))
		return;
	seek_serve(s, &k);
	while ((next = seek_next(s))) {
		seek_serve(s, next);
		free(next);
	}
}

/* --- what takes setuid and setgid away, besides writing --- */

/*
 * Somebody is about to change a file's space, or to copy into it. A request to write says whether he may leave it
 * setuid or setgid; these don't, although the kernel leaves it to us just so. So the kernel's rule is kept here: root
 * may, of others setuid is taken, and setgid if it gives power, or they aren't of the group. 0 or a negative errno.
 */
static int setid_take(fuse_req_t req, fuse_ino_t id, struct kiln_node node)
{
	kiln_fs *fs = server_of(req)->fs;
	struct kiln_stat st;

	if (!fuse_req_ctx(req)->uid || kiln_stat(fs, node, &st))
		return 0;
	unsigned lost = st.mode & S_ISUID;
	if (st.mode & S_ISGID && (st.mode & S_IXGRP || !request_is_of_group(req, st.gid)))
		lost |= S_ISGID;
	if (!lost)
		return 0;
	int err = kiln_setattr(fs, node, &(struct kiln_setattr){ .fields = KILN_SET_MODE, .mode = st.mode & ~lost },
			       NULL);
	server_forget_attributes(server_of(req), id);
	return err;
}

void serve_fallocate(fuse_req_t req, fuse_ino_t id, int mode, off_t offset, off_t len, struct fuse_file_info *fi)
{
	_Static_assert(KILN_FALLOC_KEEP_SIZE == FALLOC_FL_KEEP_SIZE && KILN_FALLOC_PUNCH_HOLE == FALLOC_FL_PUNCH_HOLE &&
			       KILN_FALLOC_ZERO_RANGE == FALLOC_FL_ZERO_RANGE,
		       "the numbers of fallocate()");
	struct kiln_node node;

	(void)fi;
	if (!request_node(req, id, &node))
		return;
	struct mount_server *s = server_of(req);
	struct room_try try = room_try_begin(&s->room);
	int err = setid_take(req, id, node);
	if (!err)
		do
			err = kiln_fallocate(s->fs, node, (unsigned)mode | KILN_FALLOC_KEEP_SETID, (uint64_t)offset,
					     (uint64_t)len);
		while (room_try_again(&s->room, &try, err));
	fuse_reply_err(req, -err);
}

/* The kernel has written back what it had cached of both ranges. */
void serve_copy_file_range(fuse_req_t req, fuse_ino_t from_id, off_t from_offset, struct fuse_file_info *from_fi,
			   fuse_ino_t to_id, off_t to_offset, struct fuse_file_info *to_fi, size_t len, int flags)
{
	struct kiln_node from, to;

	(void)from_fi;
	(void)to_fi;
	(void)flags; /* none are known */
	if (!request_node(req, from_id, &from) || !request_node(req, to_id, &to))
		return;
	/* The answer has 32 bits. */
	len = min(len, (size_t)UINT32_MAX & ~(size_t)0xffff);
	struct mount_server *s = server_of(req);
	struct room_try try = room_try_begin(&s->room);
	ssize_t n = setid_take(req, to_id, to);
	if (!n)
		do
			n = kiln_copy_range(s->fs, from, (uint64_t)from_offset, to, (uint64_t)to_offset, len,
					    KILN_COPY_KEEP_SETID);
		while (n < 0 && room_try_again(&s->room, &try, (int)n));
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_write(req, (size_t)n);
}
