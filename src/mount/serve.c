/*
 * The FUSE server: low-level requests to calls of the public API.
 *
 * serve_read.c looks (and atime.c notes that somebody did), serve_change.c changes names and attributes, serve_data.c
 * reads and writes files, session.c mounts, listens to signals and unmounts. A request is answered by the thread that
 * took it, with one call of the library, which does its own locking; there is no lock in here but those of nodes.c and
 * of the list of idle buffers.
 *
 * Caching. Nothing changes the filesystem but through this mount (the devices are locked against other writers), and
 * whatever comes through it the kernel sees. So it may remember everything, and each flag says so once:
 *
 * - entry and attribute timeouts without end, negative entries too: a name is looked up once;
 * - writeback cache: a write is copied to the page cache and done; files are written in large requests, at the latest
 *   when they are closed. Size, mtime and ctime of regular files are then the kernel's, which sends the times by
 *   setattr; so a write from the page cache must leave them, and setuid, alone;
 * - no open, no opendir, no create, no release (they answer ENOSYS once, then the kernel stops asking): a new
 *   file costs a lookup, a mknod, its data, its times, and a flush, by which close() hears what went wrong;
 * - readdirplus: names and attributes of a directory come together;
 * - directories are read, and looked up in, in parallel; symlinks, directories and ACLs are cached by the kernel;
 * - no atomic O_TRUNC: it would come with an open, and there is none;
 * - no automatic invalidation when a file's mtime changes: only the kernel changes it;
 * - no asynchronous direct I/O, so io_submit(2) returns when it is done: before such a write, and not after it, the
 *   kernel drops what the page cache has of the range, so that what somebody reads meanwhile stays, and is old;
 * - the kernel needn't ask before each write whether a file has privileges to lose (HANDLE_KILLPRIV_V2, protocol.c);
 * - the umask comes unapplied (DONT_MASK), because a default ACL replaces it;
 * - requests come through io_uring where the kernel offers it (ring.c): what a small one costs then doesn't depend on
 *   where the scheduler has put whom, which makes up to five times as many in a second; streams are as fast either way;
 * - requests are up to 1 MiB, and the kernel reads 2 MiB ahead (session.c);
 * - data is not spliced: it is copied once either way, while it is checksummed.
 *
 * What libfuse 3.14 doesn't know of the protocol is made to fit in protocol.c.
 *
 * Permissions are checked by the kernel (default_permissions), POSIX ACLs included.
 *
 * What a reply promises: the change is seen by everybody, and after a crash it is there with all before it, or it is
 * gone with all behind it. Durable is what fsync was answered for; the rest follows within the journal's flush delay.
 * Data in the page cache is not even written: an error of writing it back (ENOSPC, EDQUOT, EIO) is told at the
 * next fsync or close (serve_data.c, "Errors of writing back").
 *
 * Files in use. Opening and closing aren't seen. What is seen is the kernel's lookup count: as long as an object is
 * open, the kernel refers to it. The library asks (kiln_in_use_set()) about each object that loses its last name; if
 * the kernel refers to it, it is marked dead in nodes.c and held, until the kernel forgets it: kiln_release() then has
 * it deleted, in the background. That is a moment after unlink(2) has returned, so who is refused for want of room
 * waits for it (room.h). What is still held at the end of the mount is deleted then.
 *
 * What the kernel remembers the server must, too: prune.c sees to that it isn't more than was asked for.
 *
 * Threads: loop.c, ring.c. A request that waits keeps none of the others waiting.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "base/util.h"
#include "mount/atime.h"
#include "mount/loop.h"
#include "mount/prune.h"
#include "mount/session.h"

void stat_to_posix(struct mount_server *s, const struct kiln_stat *st, struct stat *out)
{
	struct kiln_timespec atime = atimes_show(s->atimes, st);

	*out = (struct stat){
		.st_ino = nodes_visible_ino(st->node),
		.st_mode = st->mode,
		.st_nlink = st->nlink,
		.st_uid = st->uid,
		.st_gid = st->gid,
		.st_rdev = makedev(st->rdev_major, st->rdev_minor),
		.st_size = (off_t)min(st->size, (uint64_t)INT64_MAX),
		.st_blksize = (blksize_t)st->block_bytes,
		.st_blocks = (blkcnt_t)st->sectors,
		.st_atim = { atime.sec, atime.nsec },
		.st_mtim = { st->mtime.sec, st->mtime.nsec },
		.st_ctim = { st->ctime.sec, st->ctime.nsec },
	};
}

bool request_node(fuse_req_t req, fuse_ino_t id, struct kiln_node *node)
{
	struct mount_server *s = server_of(req);

	if (!nodes_find(s->nodes, id, node)) {
		fuse_reply_err(req, ESTALE);
		return false;
	}
	/* Without memory to remember it, root is held to limits too. */
	if (s->has_quotas)
		kiln_quota_privileged(s->fs, !fuse_req_ctx(req)->uid);
	return true;
}

bool request_is_of_group(fuse_req_t req, gid_t gid)
{
	gid_t groups[NGROUPS_MAX];
	int nr = fuse_req_getgroups(req, NGROUPS_MAX, groups);

	for (int i = 0; i < nr && i < NGROUPS_MAX; i++)
		if (groups[i] == gid)
			return true;
	return fuse_req_ctx(req)->gid == gid;
}

static bool fs_has_quotas(kiln_fs *fs)
{
	static const enum kiln_quota_type types[] = { KILN_QUOTA_USER, KILN_QUOTA_GROUP, KILN_QUOTA_PROJECT };
	struct kiln_quota_info info;
	bool has_quotas = false;

	for (size_t i = 0; i < ARRAY_NR(types); i++)
		has_quotas |= !kiln_quota_info(fs, types[i], &info) && info.is_enabled;
	return has_quotas;
}

int entry_fill(struct mount_server *s, const struct kiln_stat *st, struct fuse_entry_param *e)
{
	*e = (struct fuse_entry_param){ .attr_timeout = SERVER_FOREVER_S,
					.entry_timeout = SERVER_FOREVER_S,
					.generation = st->generation };
	stat_to_posix(s, st, &e->attr);
	e->ino = nodes_get(s->nodes, st->node);
	prune_look(s);
	return e->ino ? 0 : -ENOMEM;
}

void reply_entry(fuse_req_t req, int err, const struct kiln_stat *st)
{
	struct mount_server *s = server_of(req);
	struct fuse_entry_param e;

	if (!err)
		err = entry_fill(s, st, &e);
	if (err)
		fuse_reply_err(req, -err);
	else if (fuse_reply_entry(req, &e))
		server_forget(s, e.ino, 1);
}

void reply_attr(fuse_req_t req, int err, const struct kiln_stat *st)
{
	struct stat out;

	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	stat_to_posix(server_of(req), st, &out);
	fuse_reply_attr(req, &out, SERVER_FOREVER_S);
}

void server_forget(struct mount_server *s, uint64_t id, uint64_t count)
{
	struct kiln_node node;

	if (!nodes_forget(s->nodes, id, count, &node))
		return;
	atimes_forget(s->atimes, node);
	/* Who gets its number is another. */
	failure_take(s, node);
	kiln_release(s->fs, node);
	room_released(&s->room, node);
}

void server_forget_attributes(struct mount_server *s, uint64_t id)
{
	/* An offset below zero: attributes only. What it doesn't know it can't have cached. */
	fuse_lowlevel_notify_inval_inode(s->session, id, -1, 0);
}

static bool is_in_use(void *ctx, struct kiln_node node)
{
	struct mount_server *s = ctx;

	/* The kernel may forget it as soon as it is marked. */
	room_expect(&s->room, node);
	bool is_in_use = nodes_mark_dead(s->nodes, node);
	if (!is_in_use)
		room_released(&s->room, node);
	return is_in_use;
}

static void serve_init(void *userdata, struct fuse_conn_info *conn)
{
	static const unsigned wanted = FUSE_CAP_ASYNC_READ | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_READDIRPLUS |
				       FUSE_CAP_CACHE_SYMLINKS | FUSE_CAP_NO_OPEN_SUPPORT |
				       FUSE_CAP_NO_OPENDIR_SUPPORT | FUSE_CAP_EXPORT_SUPPORT | FUSE_CAP_DONT_MASK;
	/* Some of these are the library's defaults. Attributes of a directory's entries are wanted nearly always. */
	static const unsigned unwanted = FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_ATOMIC_O_TRUNC |
					 FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_ASYNC_DIO | FUSE_CAP_SPLICE_READ |
					 FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE;
	const struct mount_server *s = userdata;

	conn->want = (conn->want | wanted) & ~unwanted;
	if (s->options->has_acls)
		conn->want |= FUSE_CAP_POSIX_ACL;
	/* With quotas whoever writes must hear at once that he may not. */
	if (!s->options->is_readonly && !s->has_quotas)
		conn->want |= FUSE_CAP_WRITEBACK_CACHE;
	conn->want &= conn->capable;
	conn->max_write = REQUEST_BYTES_MAX;
	conn->max_readahead = READ_AHEAD_BYTES;
	/* What reads ahead and writes back waits in the kernel beyond that: each takes up to two MiB here. */
	conn->max_background = BACKGROUND_MAX;
	conn->congestion_threshold = 12;
}

static void serve_no_open(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
	(void)id;
	(void)fi;
	fuse_reply_err(req, ENOSYS);
}

static const struct fuse_lowlevel_ops serve_ops = {
	.init = serve_init,
	.lookup = serve_lookup,
	.forget = serve_forget,
	.forget_multi = serve_forget_multi,
	.getattr = serve_getattr,
	.setattr = serve_setattr,
	.readlink = serve_readlink,
	.mknod = serve_mknod,
	.create = serve_create,
	.mkdir = serve_mkdir,
	.symlink = serve_symlink,
	.link = serve_link,
	.unlink = serve_unlink,
	.rmdir = serve_rmdir,
	.rename = serve_rename,
	.open = serve_no_open,
	.opendir = serve_no_open,
	.read = serve_read,
	.write = serve_write,
	.flush = serve_flush,
	.fsync = serve_fsync,
	.fsyncdir = serve_fsync,
	.lseek = serve_lseek,
	.fallocate = serve_fallocate,
	.copy_file_range = serve_copy_file_range,
	.readdir = serve_readdir,
	.readdirplus = serve_readdirplus,
	.getxattr = serve_getxattr,
	.listxattr = serve_listxattr,
	.setxattr = serve_setxattr,
	.ioctl = serve_ioctl,
	.removexattr = serve_removexattr,
	.statfs = serve_statfs,
};

struct mount_server *mount_server_new(kiln_fs *fs, const struct mount_options *options)
{
	struct mount_server *s = calloc(1, sizeof(*s));
	struct nodes *nodes = nodes_new(kiln_root(fs));

	if (!s || !nodes) {
		free(s);
		nodes_free(nodes);
		return NULL;
	}
	s->fs = fs;
	s->nodes = nodes;
	s->options = options;
	s->has_quotas = fs_has_quotas(fs);
	/* Without memory for it, times of access stay as they are. */
	if (!options->is_readonly)
		s->atimes = atimes_new(fs, options->atime);
	s->keeps_diratime = options->keeps_diratime;
	room_init(&s->room);
	mutex_init(&s->buffers_lock);
	mutex_init(&s->failed_lock);
	mutex_init(&s->seeks_lock);
	return s;
}

void mount_server_free(struct mount_server *s)
{
	while (s->buffers_nr)
		free(s->buffers[--s->buffers_nr]);
	room_destroy(&s->room);
	mutex_destroy(&s->buffers_lock);
	mutex_destroy(&s->failed_lock);
	mutex_destroy(&s->seeks_lock);
	atimes_free(s->atimes);
	loop_free(s->loop);
	free(s->failed);
	nodes_free(s->nodes);
	free(s);
}

int mount_serve(struct mount_server *s, void (*mounted)(void *ctx), void *ctx)
{
	kiln_in_use_set(s->fs, is_in_use, s);
	int err = session_run(s, &serve_ops, sizeof(serve_ops), mounted, ctx);
	atimes_stop(s->atimes);
	kiln_in_use_set(s->fs, NULL, NULL);
	return err;
}

int mount_server_sync(struct mount_server *s)
{
	int drain_err = loop_drain(__atomic_load_n(&s->loop, __ATOMIC_ACQUIRE));
	atimes_write(s->atimes);
	int err = kiln_sync(s->fs);
	return err ? err : drain_err;
}

void mount_server_atime_set(struct mount_server *s, const enum mount_atime *atime, const bool *keeps_diratime)
{
	if (atime)
		atimes_set_mode(s->atimes, *atime);
	if (keeps_diratime)
		__atomic_store_n(&s->keeps_diratime, *keeps_diratime, __ATOMIC_RELAXED);
}

void mount_server_failed(struct mount_server *s)
{
	/* In this order: session_run() looks for it when it can be told. */
	__atomic_store_n(&s->has_failed, true, __ATOMIC_SEQ_CST);
	session_failed();
}

struct mount_kernel_facts mount_kernel_facts(struct mount_server *s)
{
	struct nodes_usage u = nodes_usage(s->nodes);

	return (struct mount_kernel_facts){ .objects = u.objects, .dead = u.dead, .bytes = u.bytes };
}
