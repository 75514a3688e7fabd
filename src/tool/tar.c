/*
 * kiln tar: a tree as a tar archive, in the pax format, on standard output.
 *
 * Objects are read ahead in parallel and written in order (inorder.h). Once a header is out, as many bytes as it says
 * follow, whatever can be read of them: what can't is zeroes.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/array.h"
#include "base/strbuf.h"
#include "base/sync.h"
#include "tool/inorder.h"
#include "tool/pax.h"
#include "tool/pump.h"
#include "tool/tool.h"
#include "tool/tree.h"

static const char usage[] =
	"usage: kiln tar [OPTIONS] FS PATH\n"
	"\n"
	"Write a file or a tree to standard output as a tar archive (pax format): contents with their holes, mode,\n"
	"owner, times, extended attributes, ACLs, hardlinks and device nodes. Subvolumes below PATH are entered\n"
	"like directories. For example:\n"
	"\n"
	"  kiln tar disk.img /home | tar -x --xattrs --xattrs-include='*' --acls -C /restored\n"
	"\n"
	"What is damaged doesn't stop it: unreadable parts of files become zeroes, each is told on standard error,\n"
	"and the exit status is then 3. Names that no filesystem allows (.., or with a slash) are written with\n"
	"\\xNN. Sockets are left out.\n"
	"\n" TOOL_OPEN_USAGE;

enum {
	ITEMS_MAX = 32,
	ITEM_BUF_BYTES = 256 << 10,
	OUT_BYTES = 1 << 20,
	/* Fewer bytes of holes than this are written as zeroes. */
	SPARSE_HOLES_MIN = 64 << 10,
	/* Of a file in more pieces, the rest is written with its holes. */
	RANGES_MAX = 1 << 14,
};

/* One object on its way into the archive. */
struct item {
	struct kiln_stat st;
	struct strbuf path, target, records;
	bool is_link; /* another name of what came before */
	bool is_unreadable;
	char *buf;		  /* contents, if they fit */
	struct pax_range *ranges; /* of data; the whole file, if it isn't sparse */
	size_t range_nr, range_capacity;
	bool is_sparse;
	struct pump_damage *damage; /* found while reading ahead */
	size_t damage_nr, damage_capacity;
};

struct tar {
	kiln_fs *fs;
	struct inorder *ring;
	struct pump *pump; /* once the first large file comes */
	struct tree_links *links;
	struct tree_path path;
	struct item items[ITEMS_MAX];
	struct mutex lock; /* over messages and @trouble, which reading ahead gives too */
	uint64_t trouble;

	/* Output, by the walk's task alone. */
	char *out;
	size_t out_len;
	uint64_t written;
	int error; /* the first; nothing is written after it */
	/* The file whose contents are being written. */
	struct item *current;
	size_t range_at;
	uint64_t at;		    /* offset of the next byte; all of the ranges before are written */
	int gap_error;		    /* why bytes are missing */
	struct pump_damage pending; /* the last damaged range, which may go on */
};

static void item_load(void *ctx, void *job);
static void item_write(void *ctx, void *job);

static void complain(struct tar *t, const char *path, int err, const char *what)
{
	struct strbuf text = strbuf_growing();

	tool_add_printable(&text, path, strlen(path));
	mutex_lock(&t->lock);
	tool_error("%s: %s%s%s", strbuf_text(&text), what, err ? ": " : "", err ? strerror(-err) : "");
	t->trouble++;
	mutex_unlock(&t->lock);
	strbuf_free(&text);
}

/* --- output --- */

static void out_flush(struct tar *t)
{
	for (size_t done = 0; done < t->out_len && !t->error;) {
		ssize_t n = write(STDOUT_FILENO, t->out + done, t->out_len - done);
		if (tool_interrupted)
			t->error = -EINTR;
		else if (n < 0 && errno != EINTR)
			t->error = -errno;
		done += (size_t)max(n, (ssize_t)0);
	}
	t->out_len = 0;
}

/* @data NULL: zeroes. */
static void out_add(struct tar *t, const char *data, uint64_t len)
{
	t->written += len;
	while (len && !t->error) {
		size_t n = (size_t)min(len, (uint64_t)(OUT_BYTES - t->out_len));
		if (data)
			memcpy(t->out + t->out_len, data, n);
		else
			memset(t->out + t->out_len, 0, n);
		data = data ? data + n : NULL;
		len -= n;
		t->out_len += n;
		if (t->out_len == OUT_BYTES)
			out_flush(t);
	}
}

/* --- contents --- */

static void damage_flush(struct tar *t)
{
	const struct pump_damage *d = &t->pending;
	char what[96];

	if (!d->len)
		return;
	snprintf(what, sizeof(what), "%llu bytes at offset %llu can't be read", (unsigned long long)d->len,
		 (unsigned long long)d->offset);
	complain(t, strbuf_text(&t->current->path), d->error, what);
	t->pending.len = 0;
}

static void damage_add(struct tar *t, uint64_t offset, uint64_t len, int error)
{
	struct pump_damage *d = &t->pending;

	if (d->len && d->offset + d->len == offset && d->error == error) {
		d->len += len;
		return;
	}
	damage_flush(t);
	*d = (struct pump_damage){ offset, len, error };
}

/* Write what lies before @offset and should be data, but did not come: zeroes. */
static void contents_skip_to(struct tar *t, uint64_t offset)
{
	struct item *o = t->current;

	for (; t->range_at < o->range_nr; t->range_at++) {
		const struct pax_range *r = &o->ranges[t->range_at];
		uint64_t end = r->offset + r->len;

		t->at = max(t->at, r->offset);
		if (offset <= t->at)
			return;
		uint64_t gap = min(offset, end) - t->at;
		if (gap) {
			damage_add(t, t->at, gap, t->gap_error);
			out_add(t, NULL, gap);
			t->at += gap;
		}
		if (t->at < end)
			return;
	}
}

/* Bytes of the current file, in ascending order; what isn't in its ranges is passed over. */
static void contents_add(struct tar *t, uint64_t offset, const char *data, uint64_t len)
{
	struct item *o = t->current;
	uint64_t end = offset + len;

	contents_skip_to(t, offset);
	while (t->range_at < o->range_nr && t->at < end) {
		uint64_t range_end = o->ranges[t->range_at].offset + o->ranges[t->range_at].len;
		uint64_t from = max(t->at, offset), n = min(end, range_end) - from;

		out_add(t, data + (from - offset), n);
		t->at = from + n;
		if (t->at == range_end && ++t->range_at < o->range_nr)
			t->at = o->ranges[t->range_at].offset;
	}
}

static int take_chunk(void *ctx, const struct pump_chunk *c)
{
	struct tar *t = ctx;

	if (c->len < 0) {
		t->gap_error = (int)c->len;
		return t->error;
	}
	/* In a sparse file what is lost counts as a hole; otherwise zeroes stand in for it, and say so. */
	if (c->is_lost && !t->current->is_sparse) {
		t->gap_error = c->damage[0].error;
		contents_skip_to(t, c->offset + (uint64_t)c->len);
		return t->error;
	}
	for (size_t i = 0; i < c->damage_nr; i++)
		damage_add(t, c->damage[i].offset, c->damage[i].len, c->damage[i].error);
	if (!c->is_lost)
		contents_add(t, c->offset, c->data, (uint64_t)c->len);
	return t->error;
}

static void contents_write(struct tar *t, struct item *o)
{
	t->current = o;
	t->range_at = 0;
	t->at = 0;
	t->gap_error = -EIO;
	if (o->st.size <= ITEM_BUF_BYTES) {
		for (size_t i = 0; i < o->damage_nr; i++)
			damage_add(t, o->damage[i].offset, o->damage[i].len, o->damage[i].error);
		contents_add(t, 0, o->buf, o->st.size);
	} else {
		if (!t->pump)
			t->pump = pump_start(t->fs);
		int err = t->pump ? pump_file(t->pump, o->st.node, o->st.size, o->is_sparse, take_chunk, t) : -ENOMEM;
		t->gap_error = err ? err : t->gap_error;
	}
	/* Nothing is damaged only because the archive couldn't be written. */
	if (t->error)
		t->pending.len = 0;
	else
		contents_skip_to(t, UINT64_MAX);
	damage_flush(t);
}

/* --- reading ahead --- */

/* Where the file has data. Not sparse if that can't be found out, or isn't worth it. */
static void ranges_find(struct tar *t, struct item *o)
{
	uint64_t size = o->st.size, pos = 0, data_bytes = 0, lost_begin = 0, lost_end = 0;

	o->range_nr = 0;
	while (pos < size && o->st.sectors < div_round_up_u64(size, SECTOR_BYTES)) {
		if (pos >= lost_end && kiln_seek_lost(t->fs, o->st.node, pos, &lost_begin, &lost_end))
			lost_begin = lost_end = UINT64_MAX;
		if (pos >= lost_begin) {
			pos = lost_end;
			continue;
		}
		int64_t data = kiln_seek_data(t->fs, o->st.node, pos);
		int64_t hole = data < 0 ? data : kiln_seek_hole(t->fs, o->st.node, (uint64_t)data);
		bool is_last = o->range_nr == RANGES_MAX - 2;

		if (data == -ENXIO)
			break;
		if (hole <= data || array_grow(&o->ranges, &o->range_capacity, o->range_nr + 2, sizeof(o->ranges[0]))) {
			data_bytes = size;
			break;
		}
		if ((uint64_t)data >= lost_begin) {
			pos = (uint64_t)data;
			continue;
		}
		pos = is_last ? size : min(min((uint64_t)hole, size), lost_begin);
		o->ranges[o->range_nr++] = (struct pax_range){ (uint64_t)data, pos - (uint64_t)data };
		data_bytes += pos - (uint64_t)data;
	}
	bool has_no_holes = !o->range_nr && o->st.sectors >= div_round_up_u64(size, SECTOR_BYTES);
	o->is_sparse = !has_no_holes && size - data_bytes >= SPARSE_HOLES_MIN;
}

static void note_damage(void *ctx, uint64_t offset, uint64_t len, int error)
{
	struct item *o = ctx;

	if (array_grow(&o->damage, &o->damage_capacity, o->damage_nr + 1, sizeof(o->damage[0]))) {
		/* No memory to say which: say all between. */
		if (o->damage_nr)
			o->damage[o->damage_nr - 1].len = offset + len - o->damage[o->damage_nr - 1].offset;
		return;
	}
	o->damage[o->damage_nr++] = (struct pump_damage){ offset, len, error };
}

static void contents_load(struct tar *t, struct item *o)
{
	uint64_t pos = 0;

	while (pos < o->st.size) {
		ssize_t n = kiln_read_rescue(t->fs, o->st.node, pos, o->buf + pos, (size_t)(o->st.size - pos),
					     note_damage, o);
		if (n <= 0) {
			note_damage(o, pos, o->st.size - pos, n ? (int)n : -EIO);
			memset(o->buf + pos, 0, (size_t)(o->st.size - pos));
			return;
		}
		pos += (uint64_t)n;
	}
}

static void file_load(struct tar *t, struct item *o)
{
	ranges_find(t, o);
	if (!o->is_sparse) {
		if (array_grow(&o->ranges, &o->range_capacity, 1, sizeof(o->ranges[0]))) {
			o->is_unreadable = true;
			complain(t, strbuf_text(&o->path), -ENOMEM, "left out");
			return;
		}
		o->ranges[0] = (struct pax_range){ 0, o->st.size };
		o->range_nr = 1;
	} else if (!o->range_nr || o->ranges[o->range_nr - 1].offset + o->ranges[o->range_nr - 1].len < o->st.size) {
		/* GNU tar marks where a file ends in a hole; array_grow() above left room. */
		if (!array_grow(&o->ranges, &o->range_capacity, o->range_nr + 1, sizeof(o->ranges[0])))
			o->ranges[o->range_nr++] = (struct pax_range){ o->st.size, 0 };
	}
	if (o->st.size <= ITEM_BUF_BYTES)
		contents_load(t, o);
}

static void target_load(struct tar *t, struct item *o)
{
	char target[PATH_MAX];
	ssize_t len = kiln_readlink(t->fs, o->st.node, target, sizeof(target));

	if (len <= 0 || len >= PATH_MAX) {
		o->is_unreadable = true;
		complain(t, strbuf_text(&o->path), len < 0 ? (int)len : -EINVAL,
			 "the target of the symlink can't be read");
		return;
	}
	strbuf_add_bytes(&o->target, target, (size_t)len);
}

static void xattrs_load(struct tar *t, struct item *o)
{
	enum { VALUE_BYTES_MAX = 64 << 10 };
	ssize_t bytes = kiln_listxattr(t->fs, o->st.node, NULL, 0);
	CLEANUP_FREE char *list = bytes > 0 ? malloc((size_t)bytes + VALUE_BYTES_MAX) : NULL;

	if (bytes > 0)
		bytes = list ? kiln_listxattr(t->fs, o->st.node, list, (size_t)bytes) : -ENOMEM;
	if (bytes < 0)
		complain(t, strbuf_text(&o->path), (int)bytes, "its extended attributes can't be read");
	for (const char *name = list; bytes > 0 && name < list + bytes; name += strlen(name) + 1) {
		/* Options of the inode: virtual, and for bcachefs only. */
		if (!strncmp(name, "bcachefs", strlen("bcachefs")))
			continue;
		ssize_t len = kiln_getxattr(t->fs, o->st.node, name, list + bytes, VALUE_BYTES_MAX);
		int err = len < 0 ? (int)len : pax_add_xattr(&o->records, name, list + bytes, (size_t)len);
		if (err)
			complain(t, strbuf_text(&o->path), err, "one of its extended attributes can't be read");
	}
}

static void item_load(void *ctx, void *job)
{
	struct tar *t = ctx;
	struct item *o = job;

	if (tool_interrupted)
		return;
	xattrs_load(t, o);
	if (S_ISREG(o->st.mode))
		file_load(t, o);
	else if (S_ISLNK(o->st.mode))
		target_load(t, o);
}

/* --- writing objects --- */

static const struct {
	uint32_t mode;
	enum pax_type type;
} types[] = {
	{ S_IFREG, PAX_FILE },	      { S_IFLNK, PAX_SYMLINK },	     { S_IFDIR, PAX_DIRECTORY },
	{ S_IFCHR, PAX_CHAR_DEVICE }, { S_IFBLK, PAX_BLOCK_DEVICE }, { S_IFIFO, PAX_FIFO },
};

static void entry_write(struct tar *t, struct item *o, struct pax_entry *e)
{
	struct strbuf header = strbuf_growing(), map = strbuf_growing();

	e->path = strbuf_text(&o->path);
	e->st = &o->st;
	e->is_sparse = e->type == PAX_FILE && o->is_sparse;
	if (e->is_sparse)
		pax_add_sparse_map(&map, o->ranges, o->range_nr);
	e->stored_bytes = map.len;
	for (size_t i = 0; e->type == PAX_FILE && i < o->range_nr; i++)
		e->stored_bytes += o->ranges[i].len;
	pax_add_header(&header, e, &o->records);
	if (header.truncated || map.truncated || o->records.truncated) {
		/* Nothing of it is out yet. */
		complain(t, strbuf_text(&o->path), -ENOMEM, "left out");
	} else {
		out_add(t, strbuf_text(&header), header.len);
		out_add(t, strbuf_text(&map), map.len);
		if (e->type == PAX_FILE)
			contents_write(t, o);
		out_add(t, NULL, pax_padding(e->stored_bytes));
	}
	strbuf_free(&header);
	strbuf_free(&map);
}

static void item_write(void *ctx, void *job)
{
	struct tar *t = ctx;
	struct item *o = job;
	struct pax_entry e = { 0 };
	struct strbuf first = strbuf_growing();

	for (size_t i = 0; i < ARRAY_NR(types); i++)
		if ((o->st.mode & S_IFMT) == types[i].mode)
			e.type = types[i].type;
	if (t->error || tool_interrupted || o->is_unreadable)
		return;
	if (!e.type) {
		complain(t, strbuf_text(&o->path), -EINVAL, "unknown type of file; left out");
		return;
	}
	if (o->is_link && tree_links_take(t->links, o->st.node, &first)) {
		e.type = PAX_HARDLINK;
		e.link = strbuf_text(&first);
	} else if (o->is_link) {
		/* More names than it says to have: a file of its own. */
		item_load(t, o);
	}
	if (e.type == PAX_SYMLINK)
		e.link = strbuf_text(&o->target);
	if (!o->is_unreadable)
		entry_write(t, o, &e);
	strbuf_free(&first);
}

/* --- the walk --- */

static int item_submit(struct tar *t, const struct kiln_stat *st)
{
	struct item *o = inorder_next(t->ring);
	bool has_links = st->nlink > 1 && !S_ISDIR(st->mode);

	o->st = *st;
	o->is_unreadable = o->is_sparse = false;
	o->range_nr = o->damage_nr = 0;
	strbuf_reset(&o->path);
	strbuf_free(&o->records); /* may have become large */
	strbuf_reset(&o->target);
	strbuf_add_bytes(&o->path, strbuf_text(&t->path.text), t->path.text.len);
	if (S_ISDIR(st->mode))
		strbuf_add_char(&o->path, '/');
	o->is_link = has_links && tree_links_known(t->links, st->node);
	if (o->path.truncated || (has_links && !o->is_link && tree_links_add(t->links, st, strbuf_text(&o->path))))
		return -ENOMEM;
	inorder_submit(t->ring, !o->is_link);
	return 0;
}

static int walk_error(struct tar *t, const struct kiln_walk_entry *e)
{
	bool is_inside = tree_error_is_inside(&t->path, e);

	if (is_inside)
		tree_path_to_open(&t->path);
	else if (tree_path_set(&t->path, e->depth, e->name) < 0)
		return -ENOMEM;
	complain(t, strbuf_text(&t->path.text), e->error,
		 is_inside ? "entries of this directory can't be read" : "can't be read");
	return 0;
}

static int walk_entry(void *ctx, const struct kiln_walk_entry *e)
{
	struct tar *t = ctx;

	if (t->error || tool_interrupted)
		return t->error ? t->error : -EINTR;
	if (e->event == KILN_WALK_LEAVE) {
		tree_path_close(&t->path);
		return 0;
	}
	if (e->event == KILN_WALK_ERROR)
		return walk_error(t, e);

	int ret = tree_path_set(&t->path, e->depth, e->name);
	if (ret < 0)
		return ret;
	const char *path = strbuf_text(&t->path.text);
	if (ret)
		complain(t, path, 0, "no filesystem allows its name; written with what is forbidden as \\xNN");
	if (S_ISSOCK(e->st->mode)) {
		tool_error("%s: a socket, which tar archives can't hold; left out", path);
		return 0;
	}
	if (S_ISDIR(e->st->mode) && tree_links_dir_again(t->links, e->st->node)) {
		complain(t, path, -ELOOP, "a second name of a directory; left out");
		return KILN_WALK_SKIP;
	}
	ret = item_submit(t, e->st);
	return ret || !S_ISDIR(e->st->mode) ? ret : tree_path_open(&t->path);
}

/* Name of the tree in the archive: the last component of its path, "." for the root. */
static int path_begin(struct tar *t, const char *path)
{
	CLEANUP_FREE char *copy = strdup(path);
	size_t len = copy ? strlen(copy) : 0;

	if (!copy)
		return -ENOMEM;
	while (len && copy[len - 1] == '/')
		copy[--len] = 0;
	const char *name = tree_basename(copy);
	return tree_path_init(&t->path, !*name || !strcmp(name, "..") ? "." : name);
}

static int tar_tree(struct tar *t, const char *path)
{
	struct kiln_stat st;
	int err = kiln_lookup_path(t->fs, path, 0, &st);

	/* The root is known without its inode, and the walk gets by without it too. */
	if (err == -EIO && !path[strspn(path, "/")]) {
		st = (struct kiln_stat){ .node = kiln_root(t->fs) };
		err = 0;
	}
	if (!err)
		err = path_begin(t, path);
	if (!err) {
		int walk_err = kiln_walk(t->fs, st.node, walk_entry, t);

		inorder_drain(t->ring);
		err = walk_err;
	}
	if (!err && !t->error) {
		/* Two empty blocks are the end, and archives are whole records. */
		out_add(t, NULL, 2 * PAX_BLOCK_BYTES);
		out_add(t, NULL, round_up_u64(t->written, PAX_RECORD_BYTES) - t->written);
		out_flush(t);
	}
	err = t->error ? t->error : err;
	/* A reader that went away, and Ctrl-C, are no news. */
	if (err && err != -EPIPE && err != -EINTR)
		tool_error("%s: %s", t->error ? "can't write the archive" : path, strerror(-err));
	if (err || tool_interrupted)
		return TOOL_FAILED;
	return t->trouble ? TOOL_DAMAGE : TOOL_OK;
}

static void tar_end(struct tar *t)
{
	inorder_end(t->ring);
	pump_end(t->pump);
	tree_links_free(t->links);
	tree_path_free(&t->path);
	for (size_t i = 0; i < ITEMS_MAX; i++) {
		struct item *o = &t->items[i];

		strbuf_free(&o->path);
		strbuf_free(&o->target);
		strbuf_free(&o->records);
		free(o->buf);
		free(o->ranges);
		free(o->damage);
	}
	mutex_destroy(&t->lock);
	free(t->out);
	free(t);
}

static struct tar *tar_start(kiln_fs *fs)
{
	struct tar *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->fs = fs;
	mutex_init(&t->lock);
	t->links = tree_links_new(TREE_LINK_BYTES_MAX);
	t->out = malloc(OUT_BYTES);
	bool is_ok = t->links && t->out;
	for (size_t i = 0; i < ITEMS_MAX; i++) {
		struct item *o = &t->items[i];

		o->path = o->target = o->records = strbuf_growing();
		o->buf = aligned_alloc(4096, ITEM_BUF_BYTES);
		is_ok &= o->buf != NULL;
	}
	if (is_ok)
		t->ring = inorder_start(t->items, ITEMS_MAX, sizeof(t->items[0]), item_load, item_write, t);
	if (t->ring)
		return t;
	tar_end(t);
	return NULL;
}

static int tar_run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS, { 0 } };
	struct tool_open open = tool_open_defaults();
	int c, status;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
		if (tool_open_option(self, c, &open, &status) < 0)
			return status;
	if (argc - optind != 2)
		return tool_usage_error(self, "needs a filesystem and a path");
	if (isatty(STDOUT_FILENO))
		return tool_usage_error(self, "doesn't write an archive to a terminal");

	tool_catch_signals();
	signal(SIGPIPE, SIG_IGN);
	fcntl(STDOUT_FILENO, F_SETPIPE_SZ, OUT_BYTES);
	kiln_fs *fs = tool_open_fs(&open, argv[optind], FS_NAMESPACE);
	if (!fs)
		return TOOL_FAILED;
	struct tar *t = tar_start(fs);
	if (!t)
		tool_error("out of memory");
	status = t ? tar_tree(t, argv[optind + 1]) : TOOL_FAILED;
	if (t)
		tar_end(t);
	return tool_close_fs(fs, status);
}

const struct command command_tar = {
	.name = "tar",
	.summary = "write a tree as a tar archive",
	.usage = usage,
	.run = tar_run,
};
