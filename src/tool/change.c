/* What the commands that change a filesystem share. See change.h; mounted filesystems are mounted.c's. */
#include "tool/change.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/strbuf.h"
#include "tool/mounted.h"

/* --- opening and closing --- */

bool change_open(struct change *c, const char *fs_arg)
{
	if (c->open.flags & KILN_OPEN_FORCE) {
		tool_error("what another process is using can't be changed, not even by force");
		return false;
	}
	if (mounted_tell(fs_arg))
		return false;
	tool_catch_signals();
	c->open.flags |= KILN_OPEN_WRITE;
	c->fs = tool_open_fs(&c->open, fs_arg, FS_NAMESPACE);
	if (!c->fs)
		return false;
	if (kiln_write_refused(c->fs)) {
		tool_error("%s can only be read: %s", fs_arg, kiln_write_refused(c->fs));
		kiln_close(c->fs);
		c->fs = NULL;
		return false;
	}
	/* Limits hold once everything is counted, and a command would be done before that. */
	int err = kiln_quota_wait(c->fs);
	if (err)
		tool_error("quotas can't be counted, so limits don't hold: %s", strerror(-err));
	return true;
}

int change_close(struct change *c)
{
	int status = c->has_failed || tool_interrupted ? TOOL_FAILED : TOOL_OK;

	int err = kiln_shutdown(c->fs);
	if (err) {
		tool_error("the filesystem could not be closed cleanly: %s; it is recovered when it is opened next",
			   strerror(-err));
		status = TOOL_FAILED;
	}
	return tool_close_fs(c->fs, status);
}

int change_each(struct change *c, char **args, int nr, change_path_fn fn, void *ctx)
{
	int i = 1;

	if (nr < 2)
		return tool_usage_error(c->self, "needs a filesystem and at least one path");
	if (!change_open(c, args[0]))
		return TOOL_FAILED;
	for (; i < nr && !tool_interrupted && !c->is_over; i++) {
		int err = fn(c, ctx, args[i]);

		if (err && err != -EINTR)
			change_failed(c, args[i], err, NULL);
		/* Neither gets better with the next path. */
		if (err == -EROFS || err == -ENOSPC)
			break;
	}
	if (tool_interrupted)
		tool_error("interrupted; %d of %d paths done", i - 1, nr - 1);
	return change_close(c);
}

void change_failed(struct change *c, const char *path, int err, const char *what)
{
	struct strbuf text = strbuf_growing();

	tool_add_printable(&text, path, strlen(path));
	tool_error("%s: %s%s%s", *path ? strbuf_text(&text) : "''", what ? what : "", what && err ? ": " : "",
		   !err		   ? ""
		   : err == -EBUSY ? "has no name that could be changed: it is the root or ends in . or .."
				   : strerror(-err));
	strbuf_free(&text);
	c->has_failed = true;
}

/* --- paths --- */

const char *change_last_name(const char *path, size_t *len)
{
	size_t end = strlen(path);

	while (end && path[end - 1] == '/')
		end--;
	size_t begin = end;
	while (begin && path[begin - 1] != '/')
		begin--;
	*len = end - begin;
	if ((*len == 1 && path[begin] == '.') || (*len == 2 && !memcmp(path + begin, "..", 2)))
		*len = 0;
	return path + begin;
}

int change_place(kiln_fs *fs, const char *path, struct change_place *place)
{
	struct kiln_stat st;

	*place = (struct change_place){ 0 };
	place->name = change_last_name(path, &place->len);
	if (!place->len)
		return *path ? -EBUSY : -ENOENT;
	place->is_dir = place->name[place->len] == '/';

	CLEANUP_FREE char *parent = strndup(path, (size_t)(place->name - path));
	if (!parent)
		return -ENOMEM;
	int err = kiln_lookup_path(fs, parent, KILN_FOLLOW, &st);
	if (!err && !S_ISDIR(st.mode))
		err = -ENOTDIR;
	place->dir = st.node;
	return err;
}

int change_new_place(kiln_fs *fs, const char *path, bool is_for_dir, struct change_place *place)
{
	struct kiln_stat st;

	int err = change_place(fs, path, place);
	if (err || is_for_dir || !place->is_dir)
		return err;
	return kiln_lookup_path(fs, path, KILN_FOLLOW, &st);
}

int change_target(kiln_fs *fs, const char *source, const char *dest, bool must_be_dir, bool is_for_dir,
		  struct change_place *place)
{
	struct kiln_stat st;

	/* An empty path is no other name of the root. */
	int err = *dest ? kiln_lookup_path(fs, dest, KILN_FOLLOW, &st) : -ENOENT;
	if (!err && S_ISDIR(st.mode)) {
		*place = (struct change_place){ .dir = st.node, .into = dest };
		place->name = change_last_name(source, &place->len);
		return place->len ? 0 : -EBUSY;
	}
	if (err && err != -ENOENT)
		return err;
	if (must_be_dir)
		return err ? err : -ENOTDIR;
	return change_new_place(fs, dest, is_for_dir, place);
}

void change_failed_at(struct change *c, const char *dest, const struct change_place *place, int err)
{
	struct strbuf path = strbuf_growing();

	if (place->into) {
		strbuf_printf(&path, "%s%s", place->into, place->into[strlen(place->into) - 1] == '/' ? "" : "/");
		strbuf_add_bytes(&path, place->name, place->len);
	} else {
		strbuf_add(&path, dest);
	}
	change_failed(c, strbuf_text(&path), err, NULL);
	strbuf_free(&path);
}

/* --- trees --- */

/* What is known of a directory's entries: read in batches, so that changes don't disturb the reading. */
struct batch {
	struct {
		char *name;
		size_t len;
	} entries[256];
	unsigned nr;
	uint64_t next_cookie;
	bool is_short_of_memory;
};

static int batch_add(void *ctx, const struct kiln_dirent *e)
{
	struct batch *b = ctx;
	bool is_dots = !strcmp(e->name, ".") || !strcmp(e->name, "..");

	if (!is_dots) {
		b->entries[b->nr].name = strdup(e->name);
		b->entries[b->nr].len = e->name_len;
		b->is_short_of_memory = !b->entries[b->nr].name;
		if (b->is_short_of_memory)
			return 1;
		b->nr++;
	}
	b->next_cookie = e->next_cookie;
	return b->nr == ARRAY_NR(b->entries);
}

struct tree_walk {
	struct change *c;
	bool post;
	change_tree_fn fn;
	void *ctx;
	struct strbuf path;
};

static int tree_dir(struct tree_walk *w, struct kiln_node dir);

static int tree_entry(struct tree_walk *w, struct kiln_node dir, const char *name, size_t len)
{
	size_t path_len = w->path.len;
	struct kiln_stat st;

	strbuf_add_char(&w->path, '/');
	strbuf_add_bytes(&w->path, name, len);
	int err = kiln_lookup(w->c->fs, dir, name, len, &st);
	struct change_entry entry = { dir, name, len, strbuf_text(&w->path), &st };
	if (err) {
		change_failed(w->c, entry.path, err, NULL);
		err = 0;
	} else {
		if (!w->post)
			err = w->fn(w->c, w->ctx, &entry);
		if (!err && S_ISDIR(st.mode))
			err = tree_dir(w, st.node);
		entry.path = strbuf_text(&w->path);
		if (!err && w->post)
			err = w->fn(w->c, w->ctx, &entry);
	}
	w->path.len = path_len;
	w->path.text[path_len] = 0;
	return err;
}

static int tree_dir(struct tree_walk *w, struct kiln_node dir)
{
	CLEANUP_FREE struct batch *b = calloc(1, sizeof(*b));
	bool at_end = false;
	int err = b ? 0 : -ENOMEM;

	while (!err && !at_end) {
		b->nr = 0;
		err = kiln_readdir(w->c->fs, dir, b->next_cookie, batch_add, b, &at_end, NULL);
		if (err) {
			change_failed(w->c, strbuf_text(&w->path), err, NULL);
			at_end = true;
			err = 0;
		}
		for (unsigned i = 0; i < b->nr; i++) {
			if (!err)
				err = tool_interrupted ? -EINTR
						       : tree_entry(w, dir, b->entries[i].name, b->entries[i].len);
			free(b->entries[i].name);
		}
		if (!err && b->is_short_of_memory)
			err = -ENOMEM;
	}
	return err;
}

int change_tree(struct change *c, const char *path, struct kiln_node top, bool post, change_tree_fn fn, void *ctx)
{
	struct tree_walk w = { .c = c, .post = post, .fn = fn, .ctx = ctx, .path = strbuf_growing() };
	size_t len = strlen(path);

	while (len && path[len - 1] == '/')
		len--;
	strbuf_add_bytes(&w.path, path, len);
	int err = tree_dir(&w, top);
	strbuf_free(&w.path);
	return err;
}
