/*
 * Walking a whole tree, depth first.
 *
 * The walk keeps one frame per directory on the way down, in an array, so its depth is bounded by memory and not by the
 * stack. A frame holds the entries of its directory that are still to come: all of them, sorted, if the directory is
 * small; else a batch at a time in the order on disk, read on from a cookie. What all frames hold together is bounded:
 * when it is much, new frames read small batches.
 */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/array.h"
#include "base/strbuf.h"
#include "kiln/kiln.h"

enum {
	SORTED_ENTRIES_MAX = 4096,
	BATCH_ENTRIES = 256,
	HELD_ENTRIES_MAX = 64 * 1024, /* over all frames; above it, frames read batches */
	DEPTH_MAX = 4096,
};

struct entry {
	struct kiln_node node;
	char *name;
	bool is_dir;
};

struct frame {
	struct kiln_node node;
	struct kiln_stat st;
	size_t path_len; /* of the directory's path in the walk's buffer */
	struct entry *entries;
	size_t nr, capacity, next;
	uint64_t cookie;
	bool at_end;
	int error; /* reading stopped at damage; @cookie is behind it */
};

struct walk {
	kiln_fs *fs;
	kiln_walk_fn fn;
	void *ctx;
	struct strbuf path;
	struct frame *frames;
	size_t depth, capacity;
	size_t held;
	size_t batch_max;
	int err; /* out of memory while collecting */
};

static int entry_cmp(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static void frame_clear(struct walk *w, struct frame *f)
{
	for (size_t i = f->next; i < f->nr; i++)
		free(f->entries[i].name);
	w->held -= f->nr - f->next;
	f->nr = f->next = 0;
}

static int collect(void *ctx, const struct kiln_dirent *d)
{
	struct walk *w = ctx;
	struct frame *f = &w->frames[w->depth - 1];

	if (f->nr == w->batch_max)
		return 1;
	f->cookie = d->next_cookie;
	if (!strcmp(d->name, ".") || !strcmp(d->name, ".."))
		return 0;

	w->err = array_grow(&f->entries, &f->capacity, f->nr + 1, sizeof(f->entries[0]));
	char *name = w->err ? NULL : strdup(d->name);
	if (!name) {
		w->err = -ENOMEM;
		return 1;
	}
	f->entries[f->nr++] = (struct entry){ d->node, name, d->type == DT_DIR };
	w->held++;
	return 0;
}

/* Read the next entries of the innermost directory. */
static int frame_fill(struct walk *w)
{
	struct frame *f = &w->frames[w->depth - 1];
	bool is_first = !f->cookie;

	frame_clear(w, f);
	w->batch_max = is_first && w->held < HELD_ENTRIES_MAX ? SORTED_ENTRIES_MAX : BATCH_ENTRIES;
	uint64_t resume = UINT64_MAX;
	f->error = kiln_readdir(w->fs, f->node, f->cookie, collect, w, &f->at_end, &resume);
	if (w->err)
		return w->err;
	if (f->error) {
		/* Go on behind the damage; where that isn't possible the directory ends here. */
		f->at_end = resume == UINT64_MAX || resume <= f->cookie;
		f->cookie = resume;
	}
	if (is_first && f->at_end && f->nr)
		qsort(f->entries, f->nr, sizeof(f->entries[0]), entry_cmp);
	return 0;
}

static int walk_call(struct walk *w, enum kiln_walk_event event, size_t name_at, unsigned depth, int error,
		     const struct kiln_stat *st)
{
	const char *path = strbuf_text(&w->path);

	return w->fn(w->ctx, &(struct kiln_walk_entry){ .event = event,
							.path = path,
							.name = path + name_at,
							.depth = depth,
							.error = error,
							.st = st });
}

static void path_cut(struct walk *w, size_t len)
{
	w->path.len = len;
	if (w->path.text)
		w->path.text[len] = 0;
}

/* Is the directory one that the walk is inside of already? */
static bool is_loop(const struct walk *w, struct kiln_node node)
{
	for (size_t i = 0; i < w->depth; i++)
		if (w->frames[i].node.ino == node.ino && w->frames[i].node.subvol == node.subvol)
			return true;
	return false;
}

/*
 * Visit the object the path names. Directories become the innermost frame: one whose inode can't be read too, if the
 * entry that leads to it says that it is one. Its entries are elsewhere and may be whole.
 */
static int visit(struct walk *w, struct kiln_node node, bool is_dir, size_t name_at)
{
	struct kiln_stat st;
	unsigned depth = (unsigned)w->depth;

	int err = kiln_stat(w->fs, node, &st);
	if (err) {
		int ret = walk_call(w, KILN_WALK_ERROR, name_at, depth, err == -ENOENT ? -EIO : err, NULL);
		if (ret || !is_dir || err != -EIO)
			return ret;
		st = (struct kiln_stat){ .node = node, .mode = S_IFDIR | 0700, .nlink = 2 };
	}
	if (S_ISDIR(st.mode) && (is_loop(w, node) || w->depth == DEPTH_MAX))
		return walk_call(w, KILN_WALK_ERROR, name_at, depth, w->depth == DEPTH_MAX ? -ENAMETOOLONG : -ELOOP,
				 &st);

	int ret = walk_call(w, KILN_WALK_ENTER, name_at, depth, 0, &st);
	if (ret || !S_ISDIR(st.mode))
		return ret;

	err = array_grow(&w->frames, &w->capacity, w->depth + 1, sizeof(w->frames[0]));
	if (err)
		return err;
	w->frames[w->depth++] = (struct frame){ .node = node, .st = st, .path_len = w->path.len };
	return 0;
}

/* Where the last component of the path starts. */
static size_t name_start(const struct walk *w)
{
	const char *path = strbuf_text(&w->path), *slash = strrchr(path, '/');

	return slash ? (size_t)(slash + 1 - path) : 0;
}

/* Go on with the innermost directory: its next entry, its damage, or its end. */
static int walk_step(struct walk *w)
{
	struct frame *f = &w->frames[w->depth - 1];
	int ret;

	path_cut(w, f->path_len);
	if (f->next < f->nr) {
		struct entry e = f->entries[f->next++];
		w->held--;
		if (w->path.len)
			strbuf_add_char(&w->path, '/');
		size_t name_at = w->path.len;
		strbuf_add(&w->path, e.name);
		free(e.name);
		ret = w->path.truncated ? -ENOMEM : visit(w, e.node, e.is_dir, name_at);
		return ret == KILN_WALK_SKIP ? 0 : ret;
	}

	if (f->error) {
		ret = walk_call(w, KILN_WALK_ERROR, name_start(w), (unsigned)w->depth - 1, f->error, &f->st);
		f->error = 0;
		if (ret < 0)
			return ret;
	}
	if (!f->at_end)
		return frame_fill(w);

	ret = walk_call(w, KILN_WALK_LEAVE, name_start(w), (unsigned)w->depth - 1, 0, &f->st);
	free(f->entries);
	w->depth--;
	return min(ret, 0);
}

int kiln_walk(kiln_fs *fs, struct kiln_node top, kiln_walk_fn fn, void *ctx)
{
	struct walk w = { .fs = fs, .fn = fn, .ctx = ctx, .path = strbuf_growing() };

	struct kiln_node root = kiln_root(fs);
	bool is_root = top.ino == root.ino && top.subvol == root.subvol;

	int ret = visit(&w, top, is_root, 0);
	while (w.depth && ret >= 0)
		ret = walk_step(&w);

	while (w.depth) {
		struct frame *f = &w.frames[--w.depth];
		frame_clear(&w, f);
		free(f->entries);
	}
	free(w.frames);
	strbuf_free(&w.path);
	return min(ret, 0);
}
