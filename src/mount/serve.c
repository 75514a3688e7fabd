/*
 * The FUSE server: low-level requests to calls of the public API. See mount.h.
 *
 * Caching choices, all safe because nothing changes underneath:
 * - entry and attribute timeouts without end, negative entries too: a name is looked up once;
 * - no open and no opendir (they answer ENOSYS once, then the kernel stops asking): a file costs no round trips besides
 *   its data; page and directory caches are kept over closes;
 * - readdirplus: names and attributes of a directory come together;
 * - parallel directory operations, asynchronous reads, large requests, symlinks cached in the kernel;
 * - /dev/fuse is cloned per thread, so that requests don't queue at one descriptor.
 */
#define FUSE_USE_VERSION FUSE_MAKE_VERSION(3, 12)

#include <errno.h>
#include <fuse_lowlevel.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#include "base/util.h"
#include "mount/mount.h"
#include "mount/nodes.h"

static const double forever_s = 1e9;
enum {
	READ_BYTES_MAX = 1 << 20,
	NAME_BYTES_MAX = 1024, /* FUSE_NAME_MAX of the kernel */
};

struct server {
	kiln_fs *fs;
	struct nodes *nodes;
};

static struct server *server_of(fuse_req_t req) { return fuse_req_userdata(req); }

static void stat_to_posix(const struct kiln_stat *st, struct stat *out)
{
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
		.st_atim = { st->atime.sec, st->atime.nsec },
		.st_mtim = { st->mtime.sec, st->mtime.nsec },
		.st_ctim = { st->ctime.sec, st->ctime.nsec },
	};
}

/* The object a request is about; replies with an error and returns false when the kernel can't mean one. */
static bool request_node(fuse_req_t req, fuse_ino_t id, struct kiln_node *node)
{
	if (nodes_find(server_of(req)->nodes, id, node))
		return true;
	fuse_reply_err(req, ESTALE);
	return false;
}

/* What the kernel is to remember of an object, with one reference on its id. */
static int entry_fill(struct server *s, const struct kiln_stat *st, struct fuse_entry_param *e)
{
	*e = (struct fuse_entry_param){ .attr_timeout = forever_s,
					.entry_timeout = forever_s,
					.generation = st->generation };
	stat_to_posix(st, &e->attr);
	e->ino = nodes_get(s->nodes, st->node);
	return e->ino ? 0 : -ENOMEM;
}

static void serve_init(void *userdata, struct fuse_conn_info *conn)
{
	static const unsigned wanted[] = { FUSE_CAP_ASYNC_READ,	     FUSE_CAP_PARALLEL_DIROPS,
					   FUSE_CAP_READDIRPLUS,     FUSE_CAP_CACHE_SYMLINKS,
					   FUSE_CAP_NO_OPEN_SUPPORT, FUSE_CAP_NO_OPENDIR_SUPPORT,
					   FUSE_CAP_EXPORT_SUPPORT,  FUSE_CAP_SPLICE_WRITE };

	(void)userdata;
	for (size_t i = 0; i < ARRAY_NR(wanted); i++)
		conn->want |= conn->capable & wanted[i];
	/* All of a directory at once, also for `ls` without -l: its attributes are asked for next, nearly always. */
	conn->want &= ~(unsigned)FUSE_CAP_READDIRPLUS_AUTO;
	conn->max_readahead = READ_BYTES_MAX;
	conn->max_background = 64;
	conn->congestion_threshold = 48;
}

static void serve_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct server *s = server_of(req);
	struct fuse_entry_param e = { .entry_timeout = forever_s };
	struct kiln_node dir;
	struct kiln_stat st;

	if (!request_node(req, parent, &dir))
		return;
	int err = kiln_lookup(s->fs, dir, name, strlen(name), &st);
	if (!err)
		err = entry_fill(s, &st, &e);
	/* An entry with id 0 is "not there", and may be remembered. */
	if (err && err != -ENOENT)
		fuse_reply_err(req, -err);
	else if (fuse_reply_entry(req, &e) && e.ino)
		nodes_forget(s->nodes, e.ino, 1);
}

static void serve_forget(fuse_req_t req, fuse_ino_t id, uint64_t count)
{
	nodes_forget(server_of(req)->nodes, id, count);
	fuse_reply_none(req);
}

static void serve_forget_multi(fuse_req_t req, size_t nr, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < nr; i++)
		nodes_forget(server_of(req)->nodes, forgets[i].ino, forgets[i].nlookup);
	fuse_reply_none(req);
}

static void serve_getattr(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
	struct kiln_node node;
	struct kiln_stat st;
	struct stat out;

	(void)fi;
	if (!request_node(req, id, &node))
		return;
	int err = kiln_stat(server_of(req)->fs, node, &st);
	if (err) {
		fuse_reply_err(req, -err);
		return;
	}
	stat_to_posix(&st, &out);
	fuse_reply_attr(req, &out, forever_s);
}

static void serve_readlink(fuse_req_t req, fuse_ino_t id)
{
	char target[PATH_MAX + 1];
	struct kiln_node node;

	if (!request_node(req, id, &node))
		return;
	ssize_t len = kiln_readlink(server_of(req)->fs, node, target, PATH_MAX);
	if (len < 0) {
		fuse_reply_err(req, (int)-len);
		return;
	}
	target[len] = 0;
	fuse_reply_readlink(req, target);
}

static void serve_no_open(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
	(void)id;
	(void)fi;
	fuse_reply_err(req, ENOSYS);
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
static void serve_read(fuse_req_t req, fuse_ino_t id, size_t size, off_t offset, struct fuse_file_info *fi)
{
	struct kiln_node node;
	int damage = 0;

	(void)fi;
	if (!request_node(req, id, &node))
		return;
	void *buf = aligned_alloc(4096, round_up_u64(max(size, (size_t)1), 4096));
	if (!buf) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	ssize_t n = kiln_read_rescue(server_of(req)->fs, node, (uint64_t)offset, buf, size, note_damage, &damage);
	if (n < 0 || damage)
		fuse_reply_err(req, n < 0 ? (int)-n : EIO);
	else
		fuse_reply_buf(req, buf, (size_t)n);
	free(buf);
}

static void serve_lseek(fuse_req_t req, fuse_ino_t id, off_t offset, int whence, struct fuse_file_info *fi)
{
	struct kiln_node node;

	(void)fi;
	if (!request_node(req, id, &node))
		return;
	int64_t found = whence == SEEK_DATA   ? kiln_seek_data(server_of(req)->fs, node, (uint64_t)offset)
			: whence == SEEK_HOLE ? kiln_seek_hole(server_of(req)->fs, node, (uint64_t)offset)
					      : -EINVAL;
	if (found < 0)
		fuse_reply_err(req, (int)-found);
	else
		fuse_reply_lseek(req, found);
}

/* --- directories --- */

struct dir_reply {
	fuse_req_t req;
	struct server *server;
	bool is_plus;
	char *buf;
	size_t size, used;
};

static int dir_add(void *ctx, const struct kiln_dirent *d)
{
	struct dir_reply *r = ctx;
	struct fuse_entry_param e = { .attr.st_ino = nodes_visible_ino(d->node), .attr.st_mode = d->type << 12 };
	bool is_dot = !strcmp(d->name, ".") || !strcmp(d->name, "..");
	size_t need;

	/* A longer name would make the kernel refuse the whole reply. No valid one is. */
	if (d->name_len > NAME_BYTES_MAX)
		return 0;

	if (!r->is_plus) {
		need = fuse_add_direntry(r->req, r->buf + r->used, r->size - r->used, d->name, &e.attr,
					 (off_t)d->next_cookie);
	} else {
		struct kiln_stat st;

		/* An entry whose inode can't be read is listed without attributes: asking for it gives the error. */
		if (!is_dot && !kiln_stat(r->server->fs, d->node, &st) && entry_fill(r->server, &st, &e))
			return -1;
		need = fuse_add_direntry_plus(r->req, r->buf + r->used, r->size - r->used, d->name, &e,
					      (off_t)d->next_cookie);
		if (need > r->size - r->used && e.ino)
			nodes_forget(r->server->nodes, e.ino, 1);
	}
	if (need > r->size - r->used)
		return 1;
	r->used += need;
	return 0;
}

static void read_directory(fuse_req_t req, fuse_ino_t id, size_t size, off_t cookie, bool is_plus)
{
	struct dir_reply r = { .req = req, .server = server_of(req), .is_plus = is_plus, .size = size };
	struct kiln_node node;

	if (!request_node(req, id, &node))
		return;
	r.buf = malloc(size);
	if (!r.buf) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	int err = kiln_readdir(r.server->fs, node, (uint64_t)cookie, dir_add, &r, NULL, NULL);
	/* What came before the damage is given first; the next request then starts at it and fails. */
	if (err && !r.used)
		fuse_reply_err(req, -err);
	else
		fuse_reply_buf(req, r.buf, r.used);
	free(r.buf);
}

static void serve_readdir(fuse_req_t req, fuse_ino_t id, size_t size, off_t cookie, struct fuse_file_info *fi)
{
	(void)fi;
	read_directory(req, id, size, cookie, false);
}

static void serve_readdirplus(fuse_req_t req, fuse_ino_t id, size_t size, off_t cookie, struct fuse_file_info *fi)
{
	(void)fi;
	read_directory(req, id, size, cookie, true);
}

/* --- attributes, facts --- */

/* Reply to getxattr or listxattr: @n bytes in @buf, or, when @size is 0, that many would be needed. */
static void reply_xattr(fuse_req_t req, const char *buf, ssize_t n, size_t size)
{
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else if (!size)
		fuse_reply_xattr(req, (size_t)n);
	else
		fuse_reply_buf(req, buf, (size_t)n);
}

static void serve_getxattr(fuse_req_t req, fuse_ino_t id, const char *name, size_t size)
{
	CLEANUP_FREE char *buf = size ? malloc(size) : NULL;
	struct kiln_node node;

	if (!request_node(req, id, &node))
		return;
	reply_xattr(req, buf, size && !buf ? -ENOMEM : kiln_getxattr(server_of(req)->fs, node, name, buf, size), size);
}

static void serve_listxattr(fuse_req_t req, fuse_ino_t id, size_t size)
{
	CLEANUP_FREE char *buf = size ? malloc(size) : NULL;
	struct kiln_node node;

	if (!request_node(req, id, &node))
		return;
	reply_xattr(req, buf, size && !buf ? -ENOMEM : kiln_listxattr(server_of(req)->fs, node, buf, size), size);
}

static void serve_statfs(fuse_req_t req, fuse_ino_t id)
{
	struct kiln_usage u;

	(void)id;
	int err = kiln_usage(server_of(req)->fs, &u);
	if (err) {
		fuse_reply_err(req, -err);
		return;
	}

	/* As if it could be written: "100% used" would only alarm. */
	uint64_t used = u.is_known ? min(u.used, u.capacity) : 0;
	struct statvfs st = {
		.f_bsize = u.block_bytes,
		.f_frsize = u.block_bytes,
		.f_blocks = u.capacity / u.block_bytes,
		.f_bfree = (u.capacity - used) / u.block_bytes,
		.f_bavail = (u.capacity - used) / u.block_bytes,
		.f_files = u.inodes,
		.f_namemax = 512,
		.f_flag = ST_RDONLY,
	};
	fuse_reply_statfs(req, &st);
}

static const struct fuse_lowlevel_ops serve_ops = {
	.init = serve_init,
	.lookup = serve_lookup,
	.forget = serve_forget,
	.forget_multi = serve_forget_multi,
	.getattr = serve_getattr,
	.readlink = serve_readlink,
	.open = serve_no_open,
	.opendir = serve_no_open,
	.read = serve_read,
	.lseek = serve_lseek,
	.readdir = serve_readdir,
	.readdirplus = serve_readdirplus,
	.getxattr = serve_getxattr,
	.listxattr = serve_listxattr,
	.statfs = serve_statfs,
};

/* --- the session --- */

static int add_option(struct fuse_args *args, const char *fmt, const char *value)
{
	CLEANUP_FREE char *text = NULL;

	if (asprintf(&text, fmt, value) < 0) {
		text = NULL;
		return -ENOMEM;
	}
	return fuse_opt_add_arg(args, "-o") || fuse_opt_add_arg(args, text) ? -ENOMEM : 0;
}

static int build_args(struct fuse_args *args, const struct mount_options *o)
{
	int err = fuse_opt_add_arg(args, "kiln") ? -ENOMEM : 0;

	if (!err)
		err = add_option(args, "ro,default_permissions,subtype=kiln%s", o->allow_other ? ",allow_other" : "");
	/* A comma in the source would end the option: FUSE wants it escaped. */
	CLEANUP_FREE char *source = calloc(2, strlen(o->source) + 1);
	if (!source)
		return -ENOMEM;
	char *to = source;
	for (const char *from = o->source; *from; from++) {
		if (*from == ',' || *from == '\\')
			*to++ = '\\';
		*to++ = *from;
	}
	if (!err)
		err = add_option(args, "fsname=%s", source);
	if (!err && o->fuse_options && *o->fuse_options)
		err = add_option(args, "%s", o->fuse_options);
	if (!err && o->is_debug)
		err = fuse_opt_add_arg(args, "-d") ? -ENOMEM : 0;
	return err;
}

static int run_session(struct fuse_session *session, const struct mount_options *options, void (*mounted)(void *ctx),
		       void *ctx)
{
	if (fuse_set_signal_handlers(session))
		return -EIO;
	if (fuse_session_mount(session, options->mountpoint)) {
		fuse_remove_signal_handlers(session);
		return -EIO;
	}
	mounted(ctx);

	struct fuse_loop_config *config = fuse_loop_cfg_create();
	int ret = -ENOMEM;
	if (config) {
		fuse_loop_cfg_set_clone_fd(config, 1);
		fuse_loop_cfg_set_idle_threads(config, 16);
		ret = fuse_session_loop_mt(session, config);
		fuse_loop_cfg_destroy(config);
	}
	fuse_session_unmount(session);
	fuse_remove_signal_handlers(session);
	/* Positive: the signal that ended it, which is a clean end. */
	return min(ret, 0);
}

int mount_serve(kiln_fs *fs, const struct mount_options *options, void (*mounted)(void *ctx), void *ctx)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	struct server server = { .fs = fs, .nodes = nodes_new(kiln_root(fs)) };
	int err = server.nodes ? build_args(&args, options) : -ENOMEM;

	if (!err) {
		struct fuse_session *session = fuse_session_new(&args, &serve_ops, sizeof(serve_ops), &server);

		err = session ? run_session(session, options, mounted, ctx) : -EINVAL;
		if (session)
			fuse_session_destroy(session);
	}
	fuse_opt_free_args(&args);
	nodes_free(server.nodes);
	return err;
}
