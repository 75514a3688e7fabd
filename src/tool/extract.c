/*
 * From events of a walk to objects at the destination. See extract.h.
 *
 * The walk's task makes directories, and submits everything else to the ring (inorder.h), where objects are made in
 * parallel. A directory's last job, STEP_LEAVE, sets its metadata and closes it; since jobs are finished in order, all
 * of its entries exist by then. The same order lets the second name of a file wait for the first.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/array.h"
#include "tool/extract_private.h"

/* Of so many directories on the way down, the descriptors stay open. */
enum { FRAMES_OPEN_MAX = 128 };

static void item_work(void *ctx, void *job);
static void item_finish(void *ctx, void *job);
static int frame_push(struct extract *x, struct frame f);
static int frame_leave(struct extract *x);

/* --- beginning and ending --- */

struct extract *extract_start(kiln_fs *fs, int dest_fd, const struct extract_options *options)
{
	struct extract *x = calloc(1, sizeof(*x));

	if (!x)
		return NULL;
	*x = (struct extract){ .fs = fs, .o = *options, .source = strbuf_growing() };
	mutex_init(&x->lock);
	x->links = tree_links_new(TREE_LINK_BYTES_MAX);
	bool is_ok = x->links;
	for (size_t i = 0; i < ITEMS_MAX; i++) {
		x->items[i].path = strbuf_growing();
		x->items[i].buf = aligned_alloc(4096, ITEM_BUF_BYTES);
		is_ok &= x->items[i].buf != NULL;
	}
	if (is_ok)
		x->ring = inorder_start(x->items, ITEMS_MAX, sizeof(x->items[0]), item_work, item_finish, x);
	struct frame f = { .fd = x->ring ? fcntl(dest_fd, F_DUPFD_CLOEXEC, 0) : -1 };
	if (f.fd >= 0 && !frame_push(x, f))
		return x;
	if (f.fd >= 0)
		close(f.fd);
	extract_end(x);
	return NULL;
}

void extract_end(struct extract *x)
{
	inorder_end(x->ring);
	pump_end(x->pump);
	if (x->frame_nr)
		close(x->frames[0].fd);
	free(x->frames);
	tree_links_free(x->links);
	for (size_t i = 0; i < ITEMS_MAX; i++) {
		strbuf_free(&x->items[i].path);
		free(x->items[i].buf);
		free(x->items[i].read_damage);
	}
	strbuf_free(&x->source);
	mutex_destroy(&x->lock);
	free(x);
}

int extract_begin(struct extract *x, const char *source, const char *name)
{
	strbuf_reset(&x->source);
	strbuf_add(&x->source, source);
	while (x->source.len && x->source.text[x->source.len - 1] == '/')
		x->source.text[--x->source.len] = 0;
	x->top_len = strlen(name);
	tree_links_dirs_reset(x->links);
	return x->source.truncated ? -ENOMEM : tree_path_init(&x->path, name);
}

int extract_finish(struct extract *x)
{
	/* Stopped on the way: what was entered gets its metadata all the same. */
	while (x->frame_nr > 1 && !frame_leave(x))
		;
	inorder_drain(x->ring);
	for (; x->frame_nr > 1; x->frame_nr--)
		if (x->frames[x->frame_nr - 1].fd >= 0)
			close(x->frames[x->frame_nr - 1].fd);
	tree_path_free(&x->path);
	return extract_is_interrupted(x) ? -EINTR : x->fatal;
}

const struct extract_counts *extract_counts(const struct extract *x) { return &x->counts; }

/* --- telling --- */

static const struct {
	const char *name, *text;
} kept_kinds[KEPT_NR] = {
	[KEPT_OWNER] = { "owner", "its owner is not kept" },
	[KEPT_SET_ID] = { "set_id_bits", "its set-id bits are not kept without its owner" },
	[KEPT_TIMES] = { "times", "its times can't be set" },
	[KEPT_USER] = { "user_xattrs", "its user.* attributes are not kept" },
	[KEPT_TRUSTED] = { "trusted_xattrs", "its trusted.* attributes are not kept" },
	[KEPT_SECURITY] = { "security_xattrs", "its security.* attributes are not kept" },
	[KEPT_ACL] = { "acls", "its access control list is not kept" },
	[KEPT_XATTR_OTHER] = { "other_xattrs", "its other extended attributes are not kept" },
	[KEPT_LINK] = { "hardlinks", "can't be another name of the same file and became a copy" },
};

const char *extract_kept_name(enum extract_kept kept) { return kept_kinds[kept].name; }

bool extract_is_stopped(struct extract *x)
{
	mutex_lock(&x->lock);
	bool is_stopped = x->fatal || extract_is_interrupted(x);
	mutex_unlock(&x->lock);
	return is_stopped;
}

/* Call the user's report function with @path (below the destination) as it is in the filesystem. @x->lock is held. */
static void tell(struct extract *x, const char *path, struct extract_report *r)
{
	struct strbuf text = strbuf_growing();
	const char *below = path + min(x->top_len, strlen(path));

	strbuf_add(&text, strbuf_text(&x->source));
	if (*below && *below != '/')
		strbuf_add_char(&text, '/');
	strbuf_add(&text, below);
	if (!text.len)
		strbuf_add(&text, "/");
	r->path = strbuf_text(&text);
	x->counts.trouble[r->trouble]++;
	x->o.report(x->o.ctx, r);
	strbuf_free(&text);
}

void extract_tell(struct extract *x, const char *path, enum extract_trouble trouble, int error, const char *fmt, ...)
{
	char what[512];
	struct strbuf text = strbuf_fixed(what, sizeof(what));
	struct extract_report r = { .trouble = trouble, .error = error, .what = what };
	va_list args;

	va_start(args, fmt);
	strbuf_vprintf(&text, fmt, args);
	va_end(args);
	mutex_lock(&x->lock);
	tell(x, path, &r);
	if (trouble == EXTRACT_FAILED && (error == -ENOSPC || error == -EDQUOT || error == -EROFS || error == -EIO))
		x->fatal = error;
	mutex_unlock(&x->lock);
}

void extract_tell_damage(struct extract *x, const char *path, const struct pump_damage *damage)
{
	struct extract_report r = { .trouble = EXTRACT_DAMAGED,
				    .offset = damage->offset,
				    .len = damage->len,
				    .error = damage->error,
				    .what = "can't be read" };

	mutex_lock(&x->lock);
	tell(x, path, &r);
	mutex_unlock(&x->lock);
}

void extract_not_kept(struct extract *x, const char *path, enum extract_kept kept, int error)
{
	struct extract_report r = { .trouble = EXTRACT_NOT_KEPT, .error = error, .what = kept_kinds[kept].text };

	mutex_lock(&x->lock);
	if (!x->counts.not_kept[kept]++)
		tell(x, path, &r);
	mutex_unlock(&x->lock);
}

/* --- directories on the way down --- */

static int frame_push(struct extract *x, struct frame f)
{
	if (array_grow(&x->frames, &x->frame_capacity, x->frame_nr + 1, sizeof(x->frames[0])))
		return -ENOMEM;
	f.gives_acl = f.gives_acl || (!f.is_ours && fgetxattr(f.fd, "system.posix_acl_default", NULL, 0) > 0);
	x->frames[x->frame_nr++] = f;
	return 0;
}

/* Deep down, close a directory far above. The destination itself stays open. */
static int frame_close_far(struct extract *x)
{
	struct stat st;

	if (x->frame_nr <= FRAMES_OPEN_MAX)
		return 0;
	struct frame *f = &x->frames[x->frame_nr - FRAMES_OPEN_MAX];
	if (f->fd < 0)
		return 0;
	/* Objects under way may still be made in it. */
	inorder_drain(x->ring);
	if (fstat(f->fd, &st))
		return -errno;
	f->dev = st.st_dev;
	f->ino = st.st_ino;
	close(f->fd);
	f->fd = -1;
	return 0;
}

/* Open a directory again from the one below it. It must still be the same one. */
static int frame_reopen(struct frame *f, int below_fd)
{
	struct stat st;

	f->fd = openat(below_fd, "..", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (f->fd < 0 || fstat(f->fd, &st))
		return -errno;
	return st.st_dev == f->dev && st.st_ino == f->ino ? 0 : -ESTALE;
}

/* Make or merge the directory that @o names: its descriptor, or a negative errno after telling. */
static int directory_make(struct extract *x, struct item *o, bool *is_ours)
{
	const char *path = strbuf_text(&o->path), *name = tree_basename(path);
	int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

	*is_ours = !mkdirat(o->dir_fd, name, 0700);
	if (!*is_ours && errno == EEXIST) {
		int fd = o->dir_is_ours ? -1 : openat(o->dir_fd, name, flags);
		if (fd >= 0)
			return fd;
		int err = item_make_room(x, o);
		if (err)
			return err;
		*is_ours = !mkdirat(o->dir_fd, name, 0700);
	}
	int fd = *is_ours ? openat(o->dir_fd, name, flags) : -1;
	if (fd >= 0)
		return fd;
	int err = -errno;
	extract_tell(x, path, EXTRACT_FAILED, err, "the directory can't be made");
	return err;
}

/* Enter a directory. KILN_WALK_SKIP if it can't be. */
static int directory_enter(struct extract *x, const struct kiln_stat *st)
{
	struct frame *above = &x->frames[x->frame_nr - 1], f = { .st = *st };
	struct item o = { .st = *st,
			  .path = x->path.text,
			  .dir_fd = above->fd,
			  .dir_is_ours = above->is_ours,
			  .dir_gives_acl = above->gives_acl };

	if (tree_links_dir_again(x->links, st->node)) {
		extract_tell(x, strbuf_text(&o.path), EXTRACT_REFUSED, -ELOOP,
			     "a second name of a directory; left out");
		return KILN_WALK_SKIP;
	}
	/* With no name, the tree's top is the destination itself. */
	f.fd = *strbuf_text(&o.path) ? directory_make(x, &o, &f.is_ours) : fcntl(above->fd, F_DUPFD_CLOEXEC, 0);
	if (f.fd < 0)
		return KILN_WALK_SKIP;
	f.gives_acl = f.is_ours && above->gives_acl;
	int err = frame_push(x, f);
	if (err) {
		close(f.fd);
		return err;
	}
	err = tree_path_open(&x->path);
	return err ? err : frame_close_far(x);
}

/* --- objects --- */

/* The next free job, for the object that the path is at, in the innermost directory. NULL: out of memory. */
static struct item *item_next(struct extract *x, enum item_step step, const struct kiln_stat *st,
			      const struct frame *dir)
{
	struct item *o = inorder_next(x->ring);

	o->step = step;
	o->st = *st;
	o->dir_fd = dir->fd;
	o->dir_is_ours = dir->is_ours;
	o->dir_gives_acl = dir->gives_acl;
	strbuf_reset(&o->path);
	strbuf_add_bytes(&o->path, strbuf_text(&x->path.text), x->path.text.len);
	return o->path.truncated ? NULL : o;
}

/* The innermost directory is complete. */
static int frame_leave(struct extract *x)
{
	struct frame f = x->frames[x->frame_nr - 1], *above = &x->frames[x->frame_nr - 2];
	int err = above->fd < 0 ? frame_reopen(above, f.fd) : 0;

	if (err) {
		extract_tell(x, strbuf_text(&x->path.text), EXTRACT_FAILED, -EIO, "the way back up is gone: %s",
			     strerror(-err));
		return err;
	}
	if (x->path.depth == x->frame_nr - 1)
		tree_path_close(&x->path);
	struct item *o = item_next(x, STEP_LEAVE, &f.st, above);
	if (!o)
		return -ENOMEM;
	o->own_fd = f.fd;
	o->keeps_metadata = !f.is_ours && !x->o.overwrite;
	inorder_submit(x->ring, false);
	x->frame_nr--;
	return 0;
}

static int item_enter(struct extract *x, const struct kiln_stat *st)
{
	bool has_links = st->nlink > 1;
	enum item_step step = S_ISREG(st->mode) && st->size > ITEM_BUF_BYTES ? STEP_MAKE_LARGE : STEP_MAKE;

	if (has_links && tree_links_known(x->links, st->node))
		step = STEP_LINK;
	struct item *o = item_next(x, step, st, &x->frames[x->frame_nr - 1]);
	if (!o)
		return -ENOMEM;
	if (has_links && step != STEP_LINK && tree_links_add(x->links, st, strbuf_text(&o->path)))
		return -ENOMEM;
	inorder_submit(x->ring, step == STEP_MAKE);
	return 0;
}

static int walk_error(struct extract *x, const struct kiln_walk_entry *e)
{
	if (tree_error_is_inside(&x->path, e)) {
		tree_path_to_open(&x->path);
		extract_tell(x, strbuf_text(&x->path.text), EXTRACT_LOST, e->error,
			     "entries of this directory can't be read");
		return 0;
	}
	int ret = tree_path_set(&x->path, e->depth, e->name);
	if (ret < 0)
		return ret;
	extract_tell(x, strbuf_text(&x->path.text), EXTRACT_LOST, e->error, "can't be read");
	return 0;
}

int extract_event(void *ctx, const struct kiln_walk_entry *e)
{
	struct extract *x = ctx;

	if (extract_is_stopped(x))
		return extract_is_interrupted(x) ? -EINTR : x->fatal;
	if (e->event == KILN_WALK_ERROR)
		return walk_error(x, e);
	if (e->event == KILN_WALK_LEAVE)
		return frame_leave(x);

	int ret = tree_path_set(&x->path, e->depth, e->name);
	if (ret < 0)
		return ret;
	if (ret)
		extract_tell(x, strbuf_text(&x->path.text), EXTRACT_REFUSED, -EINVAL,
			     "no filesystem allows its name; written with what is forbidden as \\xNN");
	return S_ISDIR(e->st->mode) ? directory_enter(x, e->st) : item_enter(x, e->st);
}

/* --- links --- */

/* Directory of an object made before, by its path: never through anything but directories. A descriptor or -errno. */
static int directory_of(struct extract *x, const char *path)
{
	CLEANUP_FREE char *copy = strdup(path);
	int fd = copy ? fcntl(x->frames[0].fd, F_DUPFD_CLOEXEC, 0) : -1;
	char *name = copy, *slash;

	while (fd >= 0 && (slash = strchr(name, '/'))) {
		*slash = 0;
		int below = openat(fd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		int err = errno;
		close(fd);
		errno = err;
		fd = below;
		name = slash + 1;
	}
	return fd < 0 ? -errno : fd;
}

static int link_make(struct extract *x, struct item *o, const char *first)
{
	int from_fd = directory_of(x, first);
	const char *name = tree_basename(strbuf_text(&o->path));

	if (from_fd < 0)
		return from_fd;
	int ret = linkat(from_fd, tree_basename(first), o->dir_fd, name, 0) ? -errno : 0;
	if (ret == -EEXIST) {
		ret = item_make_room(x, o);
		if (!ret)
			ret = linkat(from_fd, tree_basename(first), o->dir_fd, name, 0) ? -errno : 0;
	}
	close(from_fd);
	return ret;
}

/* One more name of something made before, or, where that isn't possible, one more copy. */
static void item_link(struct extract *x, struct item *o)
{
	struct strbuf first = strbuf_growing();

	if (extract_is_stopped(x))
		return;
	if (tree_links_take(x->links, o->st.node, &first)) {
		int err = link_make(x, o, strbuf_text(&first));
		strbuf_free(&first);
		if (!err || err == -EEXIST) {
			mutex_lock(&x->lock);
			x->counts.hardlinks += !err;
			mutex_unlock(&x->lock);
			return;
		}
		extract_not_kept(x, strbuf_text(&o->path), KEPT_LINK, err);
		tree_links_forget(x->links, o->st.node);
	}
	item_make(x, o);
	if (o->is_made && tree_links_add(x->links, &o->st, strbuf_text(&o->path)))
		extract_not_kept(x, strbuf_text(&o->path), KEPT_LINK, -ENOMEM);
}

/* --- the ring's two calls --- */

static void item_work(void *ctx, void *job) { item_make(ctx, job); }

static void item_finish(void *ctx, void *job)
{
	struct extract *x = ctx;
	struct item *o = job;

	switch (o->step) {
	case STEP_LINK: item_link(x, o); return;
	case STEP_LEAVE:
		item_finish_directory(x, o);
		mutex_lock(&x->lock);
		x->counts.directories++;
		mutex_unlock(&x->lock);
		return;
	case STEP_MAKE_LARGE: item_make(x, o); break;
	case STEP_MAKE: break;
	}
	/* Further names of what could not be made don't find it, and try by themselves. */
	if (!o->is_made && o->st.nlink > 1)
		tree_links_forget(x->links, o->st.node);
}
