/*
 * Extensions of libfuse 3.14: requests are looked at when they are read, and rewritten into ones that libfuse hands on.
 *
 * - TMPFILE becomes a CREATE, which otherwise isn't served; its flags hold O_TMPFILE, and its answer is the same.
 * - STATX becomes a GETATTR with a note; its answer, which has the time of birth, is made here.
 * - HANDLE_KILLPRIV_V2 is put into the answer to INIT. Without it the kernel asks for the attribute security.capability
 *   before every single write. With it, a request says whether who writes or truncates may leave a file setuid, and
 *   that becomes a note.
 * - Requests through io_uring are accepted in that answer, too, where they are wanted. They and their answers pass
 *   through here like those that are read and written (ring.c).
 *
 * The structures are those of linux/fuse.h; what is newer than Debian's is repeated here.
 */
#include "mount/protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/util.h"
#include "mount/ring.h"

enum { OPCODE_STATX = 52, INIT_2_OVER_IO_URING = 1 << 9 };

struct statx_time {
	int64_t sec;
	uint32_t nsec;
	int32_t reserved;
};
struct statx_out {
	uint64_t attr_valid_s;
	uint32_t attr_valid_nsec;
	uint32_t flags;
	uint64_t spare[2];
	uint32_t mask, blksize;
	uint64_t attributes;
	uint32_t nlink, uid, gid;
	uint16_t mode, spare_mode;
	uint64_t ino, size, blocks, attributes_mask;
	struct statx_time atime, btime, ctime, mtime;
	uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
	uint64_t spare_end[14];
};
_Static_assert(sizeof(struct statx_out) == 32 + 256, "as the kernel has it");

/* --- requests --- */

void protocol_request(struct mount_server *s, void *request, size_t bytes)
{
	struct fuse_in_header *in = request;
	void *body = in + 1;

	if (bytes < sizeof(*in))
		return;
	bytes -= sizeof(*in);
	if (in->opcode == FUSE_INIT && bytes >= offsetof(struct fuse_init_in, flags2)) {
		const struct fuse_init_in *init = body;

		s->has_killpriv_v2 = init->flags & FUSE_HANDLE_KILLPRIV_V2;
		s->is_io_uring_offered =
			bytes >= sizeof(*init) && init->flags & FUSE_INIT_EXT && init->flags2 & INIT_2_OVER_IO_URING;
		s->init_unique = in->unique;
	} else if (in->opcode == FUSE_WRITE && bytes >= sizeof(struct fuse_write_in)) {
		struct fuse_write_in *w = body;

		w->fh = w->write_flags & FUSE_WRITE_KILL_SUIDGID ? PROTOCOL_KILL_SETID : 0;
	} else if (in->opcode == FUSE_SETATTR && bytes >= sizeof(struct fuse_setattr_in)) {
		struct fuse_setattr_in *set = body;

		set->fh = set->valid & FATTR_KILL_SUIDGID ? PROTOCOL_KILL_SETID : 0;
		set->valid |= FATTR_FH;
	} else if ((in->opcode == FUSE_GETATTR || in->opcode == OPCODE_STATX) &&
		   bytes >= sizeof(struct fuse_getattr_in)) {
		struct fuse_getattr_in *get = body;

		get->fh = in->opcode == OPCODE_STATX ? PROTOCOL_STATX : 0;
		get->getattr_flags |= FUSE_GETATTR_FH;
		in->opcode = FUSE_GETATTR;
	} else if (in->opcode == FUSE_TMPFILE) {
		in->opcode = FUSE_CREATE;
	}
}

static ssize_t read_request(int fd, void *buf, size_t size, void *userdata)
{
	ssize_t n = read(fd, buf, size);

	if (n > 0)
		protocol_request(userdata, buf, (size_t)n);
	return n;
}

/* The answer to INIT: what else is accepted. True: requests through rings, which the kernel then waits for. */
static bool init_accept(const struct mount_server *s, struct fuse_init_out *init, size_t bytes)
{
	bool has_rings = s->rings && s->is_io_uring_offered && bytes >= sizeof(*init);

	if (s->has_killpriv_v2 && bytes >= offsetof(struct fuse_init_out, max_background))
		init->flags |= FUSE_HANDLE_KILLPRIV_V2;
	if (has_rings) {
		init->flags |= FUSE_INIT_EXT;
		init->flags2 |= INIT_2_OVER_IO_URING;
	}
	return has_rings;
}

static ssize_t write_reply(int fd, struct iovec *iov, int count, void *userdata)
{
	struct mount_server *s = userdata;
	const struct fuse_out_header *out = iov[0].iov_base;
	bool has_rings = false;

	if (ring_answer(iov, count))
		return out->len;
	if (out->unique == s->init_unique && out->unique && !out->error && count == 2) {
		s->init_unique = 0;
		has_rings = init_accept(s, iov[1].iov_base, iov[1].iov_len);
	}
	ssize_t n = writev(fd, iov, count);
	if (n > 0 && has_rings)
		rings_start(s->rings, fd);
	return n;
}

int protocol_extend(struct fuse_session *session)
{
	static const struct fuse_custom_io io = { .read = read_request, .writev = write_reply };
	/* The descriptor is a stand-in: mounting replaces it. */
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	int err = fuse_session_custom_io(session, &io, fd);
	close(fd);
	return err < 0 ? -EIO : 0;
}

/* --- answers --- */

static struct statx_time statx_time_of(struct kiln_timespec t) { return (struct statx_time){ t.sec, t.nsec, 0 }; }

void protocol_reply_statx(fuse_req_t req, const struct kiln_stat *st)
{
	enum { FOREVER_S = 1000000000 };
	struct statx_out out = {
		.attr_valid_s = FOREVER_S,
		.mask = STATX_BASIC_STATS | STATX_BTIME,
		.blksize = st->block_bytes,
		.nlink = st->nlink,
		.uid = st->uid,
		.gid = st->gid,
		.mode = (uint16_t)st->mode,
		.ino = nodes_visible_ino(st->node),
		.size = min(st->size, (uint64_t)INT64_MAX),
		.blocks = st->sectors,
		.atime = statx_time_of(st->atime),
		.btime = statx_time_of(st->btime),
		.ctime = statx_time_of(st->ctime),
		.mtime = statx_time_of(st->mtime),
		.rdev_major = st->rdev_major,
		.rdev_minor = st->rdev_minor,
	};

	fuse_reply_buf(req, (const char *)&out, sizeof(out));
}
