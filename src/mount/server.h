/* What the files of the FUSE server share. See serve.c for how it works. */
#ifndef KILN_MOUNT_SERVER_H
#define KILN_MOUNT_SERVER_H

#define FUSE_USE_VERSION FUSE_MAKE_VERSION(3, 12)

/* Seconds that the kernel may remember names and attributes: as long as it likes. */
#define SERVER_FOREVER_S 1e9

#include <fuse_lowlevel.h>
#include <sys/stat.h>

#include "base/sync.h"
#include "kiln/kiln.h"
#include "mount/mount.h"
#include "mount/nodes.h"
#include "mount/room.h"

enum {
	REQUEST_BYTES_MAX = 1 << 20, /* of data in one read or write */
	READ_AHEAD_BYTES = 2 << 20,
	BACKGROUND_MAX = 16, /* requests of the page cache that the kernel has under way */
	BUFFERS_IDLE_MAX = 16,
	SEEKS_MAX = 16, /* at a time (serve_data.c) */
};

/* A file of which not all that was written could be written back, and nobody has been told yet. */
struct failed_file {
	struct kiln_node node;
	int error;
};

struct mount_server {
	kiln_fs *fs;
	struct nodes *nodes;
	struct room room;
	const struct mount_options *options;
	struct fuse_session *session;
	struct loop *loop;     /* once it serves; atomic */
	struct pruner *pruner; /* prune.c; NULL: none */
	/* protocol.c: of the first request; the kernel sends no other before it is answered. */
	bool has_killpriv_v2;
	bool is_io_uring_offered;
	uint64_t init_unique;
	struct rings *rings; /* loop.c, ring.c; NULL: requests are only read */
	bool has_failed;     /* mount_server_failed() was called; atomic */
	/* For who watches how it ends; atomic. */
	unsigned writes_nr; /* under way */
	uint64_t written_bytes;
	bool has_quotas; /* some type is counted, so limits may hold */
	/* Buffers of REQUEST_BYTES_MAX for reading, kept so that their pages needn't be made again. */
	struct mutex buffers_lock;
	void *buffers[BUFFERS_IDLE_MAX];
	unsigned buffers_nr;
	struct mutex seeks_lock;
	unsigned seeks_nr;
	struct seek *seeks_first, *seeks_last; /* that wait, without a thread */
	struct mutex failed_lock;
	struct failed_file *failed;
	size_t failed_nr;      /* looked at without the lock, too */
	struct atimes *atimes; /* NULL: reading doesn't change them */
	bool keeps_diratime;   /* atomic */
};

static inline struct mount_server *server_of(fuse_req_t req) { return fuse_req_userdata(req); }

/*
 * The object a request is about; from here on this thread is held to quotas, or not, as who asks. Replies with an
 * error and returns false when the kernel can't mean one.
 */
bool request_node(fuse_req_t req, fuse_ino_t id, struct kiln_node *node);
/* Is who asks of a group? */
bool request_is_of_group(fuse_req_t req, gid_t gid);
void stat_to_posix(struct mount_server *s, const struct kiln_stat *st, struct stat *out);
/* What the kernel is to remember of an object, with one reference on its id. */
int entry_fill(struct mount_server *s, const struct kiln_stat *st, struct fuse_entry_param *e);
/* Answer with an entry of @st, or with @err. */
void reply_entry(fuse_req_t req, int err, const struct kiln_stat *st);
void reply_attr(fuse_req_t req, int err, const struct kiln_stat *st);
/* serve_data.c: the error of writing back that is to be told of @node, which it then has been; or 0. */
int failure_take(struct mount_server *s, struct kiln_node node);
/* The kernel forgets references that it had, or never got. */
void server_forget(struct mount_server *s, uint64_t id, uint64_t count);

/* Have the kernel ask again for the attributes of an object. It waits for nothing. */
void server_forget_attributes(struct mount_server *s, uint64_t id);

/* Handlers, by file. See fuse_lowlevel.h. */

/* --- serve_read.c: looking, without changing --- */
void serve_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void serve_forget(fuse_req_t req, fuse_ino_t id, uint64_t count);
void serve_forget_multi(fuse_req_t req, size_t nr, struct fuse_forget_data *forgets);
void serve_getattr(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi);
void serve_readlink(fuse_req_t req, fuse_ino_t id);
void serve_readdir(fuse_req_t req, fuse_ino_t id, size_t size, off_t cookie, struct fuse_file_info *fi);
void serve_readdirplus(fuse_req_t req, fuse_ino_t id, size_t size, off_t cookie, struct fuse_file_info *fi);
void serve_getxattr(fuse_req_t req, fuse_ino_t id, const char *name, size_t size);
void serve_listxattr(fuse_req_t req, fuse_ino_t id, size_t size);
void serve_statfs(fuse_req_t req, fuse_ino_t id);

/* --- serve_change.c: names and attributes --- */
void serve_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t dev);
void serve_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi);
void serve_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void serve_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
void serve_link(fuse_req_t req, fuse_ino_t id, fuse_ino_t parent, const char *name);
void serve_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void serve_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void serve_rename(fuse_req_t req, fuse_ino_t from_parent, const char *from, fuse_ino_t to_parent, const char *to,
		  unsigned flags);
void serve_setattr(fuse_req_t req, fuse_ino_t id, struct stat *attr, int to_set, struct fuse_file_info *fi);
void serve_ioctl(fuse_req_t req, fuse_ino_t id, unsigned cmd, void *arg, struct fuse_file_info *fi, unsigned flags,
		 const void *in_buf, size_t in_bytes, size_t out_bytes);
void serve_setxattr(fuse_req_t req, fuse_ino_t id, const char *name, const char *value, size_t size, int flags);
void serve_removexattr(fuse_req_t req, fuse_ino_t id, const char *name);

/* --- serve_data.c: contents of files --- */
void serve_read(fuse_req_t req, fuse_ino_t id, size_t size, off_t offset, struct fuse_file_info *fi);
void serve_write(fuse_req_t req, fuse_ino_t id, const char *buf, size_t size, off_t offset, struct fuse_file_info *fi);
void serve_flush(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi);
void serve_fsync(fuse_req_t req, fuse_ino_t id, int is_datasync, struct fuse_file_info *fi);
void serve_lseek(fuse_req_t req, fuse_ino_t id, off_t offset, int whence, struct fuse_file_info *fi);
void serve_fallocate(fuse_req_t req, fuse_ino_t id, int mode, off_t offset, off_t len, struct fuse_file_info *fi);
void serve_copy_file_range(fuse_req_t req, fuse_ino_t from_id, off_t from_offset, struct fuse_file_info *from_fi,
			   fuse_ino_t to_id, off_t to_offset, struct fuse_file_info *to_fi, size_t len, int flags);

#endif
