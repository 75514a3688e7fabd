/* Looking at a filesystem, without changing it. See serve.c. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/util.h"
#include "format/options.h"
#include "mount/atime.h"
#include "mount/protocol.h"

enum {
	NAME_BYTES_LISTED_MAX = 1024, /* FUSE_NAME_MAX of the kernel */
	NAME_BYTES_MAX = 255,	      /* of new names; those on disk may be longer */
};

void serve_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct kiln_node dir;
	struct kiln_stat st;

	if (!request_node(req, parent, &dir))
		return;
	/* "." of anything, not only of directories, is asked for where a handle leads to what the kernel has forgotten.
	 */
	int err = strcmp(name, ".") ? kiln_lookup(server_of(req)->fs, dir, name, strlen(name), &st)
				    : kiln_stat(server_of(req)->fs, dir, &st);
	if (err == -ENOENT && strlen(name) > NAME_BYTES_MAX)
		err = -ENAMETOOLONG;
	/* An entry with id 0 is "not there", and may be remembered. */
	if (err == -ENOENT)
		fuse_reply_entry(req, &(struct fuse_entry_param){ .entry_timeout = SERVER_FOREVER_S });
	else
		reply_entry(req, err, &st);
}

void serve_forget(fuse_req_t req, fuse_ino_t id, uint64_t count)
{
	server_forget(server_of(req), id, count);
	fuse_reply_none(req);
}

void serve_forget_multi(fuse_req_t req, size_t nr, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < nr; i++)
		server_forget(server_of(req), forgets[i].ino, forgets[i].nlookup);
	fuse_reply_none(req);
}

void serve_getattr(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
	struct kiln_node node;
	struct kiln_stat st;

	if (!request_node(req, id, &node))
		return;
	int err = kiln_stat(server_of(req)->fs, node, &st);
	if (!err && fi && fi->fh == PROTOCOL_STATX) {
		st.atime = atimes_show(server_of(req)->atimes, &st);
		protocol_reply_statx(req, &st);
	} else {
		reply_attr(req, err, &st);
	}
}

void serve_readlink(fuse_req_t req, fuse_ino_t id)
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
	atimes_note(server_of(req)->atimes, node);
	fuse_reply_readlink(req, target);
}

/* --- directories --- */

struct dir_reply {
	fuse_req_t req;
	struct mount_server *server;
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
	if (d->name_len > NAME_BYTES_LISTED_MAX)
		return 0;

	if (!r->is_plus) {
		need = fuse_add_direntry(r->req, r->buf + r->used, r->size - r->used, d->name, &e.attr,
					 (off_t)d->next_cookie);
	} else {
		struct kiln_stat st;

		/* An entry whose inode can't be read is listed without attributes: asking for it gives the error. */
		if (!is_dot && !kiln_stat(r->server->fs, d->node, &st) && entry_fill(r->server, &st, &e))
			return -ENOMEM;
		need = fuse_add_direntry_plus(r->req, r->buf + r->used, r->size - r->used, d->name, &e,
					      (off_t)d->next_cookie);
		if (need > r->size - r->used && e.ino)
			server_forget(r->server, e.ino, 1);
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
	if (!cookie && !err && !__atomic_load_n(&r.server->keeps_diratime, __ATOMIC_RELAXED))
		atimes_note(r.server->atimes, node);
	/* What came before the damage is given first; the next request then starts at it and fails. */
	if (err && !r.used)
		fuse_reply_err(req, -err);
	else
		fuse_reply_buf(req, r.buf, r.used);
	free(r.buf);
}

void serve_readdir(fuse_req_t req, fuse_ino_t id, size_t size, off_t cookie, struct fuse_file_info *fi)
{
	(void)fi;
	read_directory(req, id, size, cookie, false);
}

void serve_readdirplus(fuse_req_t req, fuse_ino_t id, size_t size, off_t cookie, struct fuse_file_info *fi)
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

void serve_getxattr(fuse_req_t req, fuse_ino_t id, const char *name, size_t size)
{
	CLEANUP_FREE char *buf = size ? malloc(size) : NULL;
	struct kiln_node node;

	if (!request_node(req, id, &node))
		return;
	reply_xattr(req, buf, size && !buf ? -ENOMEM : kiln_getxattr(server_of(req)->fs, node, name, buf, size), size);
}

/*
 * Names of the options that are set, as upstream lists them (11 §7.1): bcachefs.NAME where that is on the object
 * itself, bcachefs_effective.NAME also where it comes from a directory above. Counts on when @list is full. Its new
 * length.
 */
static size_t list_options(kiln_fs *fs, struct kiln_node node, char *list, size_t size, size_t len)
{
	static const char *const prefixes[] = { "bcachefs_effective", "bcachefs" };
	char name[64];

	for (unsigned id = 0; id < OPT_NR; id++) {
		/* What isn't effective isn't its own, either. */
		for (size_t i = 0; i < ARRAY_NR(prefixes) && option_table[id].where & OPTION_INODE; i++) {
			size_t need =
				(size_t)snprintf(name, sizeof(name), "%s.%s", prefixes[i], option_table[id].name) + 1;

			if (kiln_getxattr(fs, node, name, NULL, 0) < 0)
				break;
			if (len + need <= size)
				memcpy(list + len, name, need);
			len += need;
		}
	}
	return len;
}

void serve_listxattr(fuse_req_t req, fuse_ino_t id, size_t size)
{
	CLEANUP_FREE char *buf = size ? malloc(size) : NULL;
	kiln_fs *fs = server_of(req)->fs;
	struct kiln_node node;

	if (!request_node(req, id, &node))
		return;
	ssize_t n = size && !buf ? -ENOMEM : kiln_listxattr(fs, node, buf, size);
	if (n >= 0)
		n = (ssize_t)list_options(fs, node, buf, size, (size_t)n);
	reply_xattr(req, buf, size && n > (ssize_t)size ? -ERANGE : n, size);
}

void serve_statfs(fuse_req_t req, fuse_ino_t id)
{
	struct kiln_usage u;

	(void)id;
	int err = kiln_usage(server_of(req)->fs, &u);
	if (err) {
		fuse_reply_err(req, -err);
		return;
	}

	/*
	 * Inodes are made as they are needed, of the space that is free: as many as could be if each took a block.
	 */
	uint64_t capacity = u.capacity - min(u.hidden, u.capacity), used = u.is_known ? min(u.used, capacity) : 0;
	uint64_t free = (capacity - used) / u.block_bytes;
	uint64_t available = u.is_known ? u.available / u.block_bytes : free;
	bool is_readonly = server_of(req)->options->is_readonly;
	struct statvfs st = {
		.f_bsize = u.block_bytes,
		.f_frsize = u.block_bytes,
		.f_blocks = capacity / u.block_bytes,
		.f_bfree = free,
		.f_bavail = available,
		.f_files = u.inodes + (is_readonly ? 0 : free),
		.f_ffree = is_readonly ? 0 : free,
		.f_favail = is_readonly ? 0 : free,
		.f_namemax = NAME_BYTES_MAX,
		.f_flag = is_readonly ? ST_RDONLY : 0,
	};
	fuse_reply_statfs(req, &st);
}
