/* kiln ls: names in directories. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "tool/listing.h"
#include "tool/tool.h"

static const char usage[] =
	"usage: kiln ls [OPTIONS] FS [PATH...]\n"
	"\n"
	"List directories (default: the root), or the files named. Bytes that can't be shown appear as \\xNN.\n"
	"\n"
	"  -l                      mode, links, owner, size, time; targets of symlinks\n"
	"  -R                      directories and everything below them\n"
	"  -a                      also . and ..\n"
	"  -i                      inode numbers (SUBVOLUME:INODE outside of subvolume 1)\n"
	"  --json                  one JSON object per entry and line, all fields\n" TOOL_OPEN_USAGE;

struct ls {
	kiln_fs *fs;
	bool is_long, is_recursive, is_all, has_inodes, is_json;
	bool is_damaged, has_failed;
};

static void complain(struct ls *ls, const char *path, int err)
{
	tool_error("%s: %s", *path ? path : "/", strerror(-err));
	if (err == -EIO || err == -ELOOP)
		ls->is_damaged = true;
	else
		ls->has_failed = true;
}

static int print_json(struct ls *ls, const char *path, const struct kiln_stat *st)
{
	json_t *j = listing_stat_json(st);

	json_object_set_new(j, "path", tool_json_bytes(path, strlen(path)));
	if (S_ISLNK(st->mode)) {
		char target[PATH_MAX];
		ssize_t len = kiln_readlink(ls->fs, st->node, target, sizeof(target));

		if (len >= 0)
			json_object_set_new(j, "target", tool_json_bytes(target, (size_t)len));
	}
	int err = json_dumpf(j, stdout, JSON_COMPACT);
	json_decref(j);
	return err || putchar('\n') == EOF ? -EIO : 0;
}

static void add_long(struct strbuf *line, const struct kiln_stat *st)
{
	char mode[11];

	listing_mode(mode, st->mode);
	strbuf_printf(line, "%s %3u %5u %5u ", mode, st->nlink, st->uid, st->gid);
	if (S_ISCHR(st->mode) || S_ISBLK(st->mode)) {
		char rdev[32];

		snprintf(rdev, sizeof(rdev), "%u,%u", st->rdev_major, st->rdev_minor);
		strbuf_printf(line, "%12s ", rdev);
	} else {
		strbuf_printf(line, "%12llu ", (unsigned long long)st->size);
	}
	listing_time(line, st->mtime);
	strbuf_add_char(line, ' ');
}

static int print_entry(struct ls *ls, const char *shown, const char *path, const struct kiln_stat *st)
{
	if (ls->is_json)
		return print_json(ls, path, st);

	struct strbuf line = strbuf_growing();
	if (ls->has_inodes && st->node.subvol != 1)
		strbuf_printf(&line, "%u:%llu ", st->node.subvol, (unsigned long long)st->node.ino);
	else if (ls->has_inodes)
		strbuf_printf(&line, "%llu ", (unsigned long long)st->node.ino);
	if (ls->is_long)
		add_long(&line, st);
	tool_add_printable(&line, shown, strlen(shown));
	if (ls->is_long && S_ISLNK(st->mode)) {
		char target[PATH_MAX];
		ssize_t len = kiln_readlink(ls->fs, st->node, target, sizeof(target));

		strbuf_add(&line, " -> ");
		if (len >= 0)
			tool_add_printable(&line, target, (size_t)len);
		else
			complain(ls, path, (int)len);
	}
	int err = puts(strbuf_text(&line)) == EOF ? -EIO : 0;
	strbuf_free(&line);
	return err;
}

/* --- one directory, or a tree, by way of kiln_walk() --- */

struct ls_walk {
	struct ls *ls;
	const char *top; /* as the user named it */
};

/* Where a walked path stands below what the user named. */
static void path_below(struct strbuf *out, const char *top, const char *path)
{
	strbuf_add(out, top);
	if (*path && out->len && out->text[out->len - 1] != '/')
		strbuf_add_char(out, '/');
	strbuf_add(out, path);
}

static int walk_entry(void *ctx, const struct kiln_walk_entry *e)
{
	struct ls_walk *w = ctx;
	struct ls *ls = w->ls;
	struct strbuf path = strbuf_growing();
	int ret = 0;

	path_below(&path, w->top, e->path);
	if (tool_interrupted)
		ret = -EINTR;
	else if (e->event == KILN_WALK_ERROR)
		complain(ls, strbuf_text(&path), e->error);
	else if (e->event == KILN_WALK_ENTER && (e->depth || !S_ISDIR(e->st->mode)))
		ret = print_entry(ls, ls->is_recursive || !e->depth ? strbuf_text(&path) : e->name, strbuf_text(&path),
				  e->st);
	if (!ret && e->event == KILN_WALK_ENTER && e->depth && !ls->is_recursive)
		ret = KILN_WALK_SKIP;
	strbuf_free(&path);
	return ret;
}

static void print_dots(struct ls *ls, const char *top, struct kiln_node dir)
{
	struct kiln_stat st;

	for (unsigned len = 1; len <= 2; len++) {
		struct strbuf path = strbuf_growing();

		path_below(&path, top, len == 1 ? "." : "..");
		int err = kiln_lookup(ls->fs, dir, "..", len, &st);
		if (err)
			complain(ls, strbuf_text(&path), err);
		else
			print_entry(ls, len == 1 ? "." : "..", strbuf_text(&path), &st);
		strbuf_free(&path);
	}
}

static void ls_path(struct ls *ls, const char *path, bool has_heading)
{
	struct ls_walk w = { ls, path };
	struct kiln_stat st;

	int err = kiln_lookup_path(ls->fs, path, 0, &st);
	if (!err && S_ISLNK(st.mode) && !ls->is_long)
		err = kiln_lookup_path(ls->fs, path, KILN_FOLLOW, &st);
	/* The root is known without its inode, and the walk gets by without it too. */
	if (err == -EIO && !path[strspn(path, "/")]) {
		complain(ls, path, err);
		st = (struct kiln_stat){ .node = kiln_root(ls->fs), .mode = S_IFDIR };
		err = 0;
	}
	if (err) {
		complain(ls, path, err);
		return;
	}
	if (has_heading && S_ISDIR(st.mode) && !ls->is_recursive && !ls->is_json) {
		struct strbuf text = strbuf_growing();

		tool_add_printable(&text, path, strlen(path));
		printf("%s:\n", strbuf_text(&text));
		strbuf_free(&text);
	}
	if (ls->is_all && S_ISDIR(st.mode))
		print_dots(ls, path, st.node);
	err = kiln_walk(ls->fs, st.node, walk_entry, &w);
	if (err && !ferror(stdout))
		complain(ls, path, err);
}

static int ls_run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS,
						 { "json", no_argument, NULL, TOOL_OPT_JSON },
						 { 0 } };
	struct tool_open open = tool_open_defaults();
	struct ls ls = { 0 };
	int c, status;

	while ((c = getopt_long(argc, argv, "lRai", options, NULL)) != -1) {
		if (tool_open_option(self, c, &open, &status) < 0)
			return status;
		ls.is_long |= c == 'l';
		ls.is_recursive |= c == 'R';
		ls.is_all |= c == 'a';
		ls.has_inodes |= c == 'i';
	}
	ls.is_json = open.is_json;
	if (argc - optind < 1)
		return tool_usage_error(self, "needs a filesystem");

	tool_catch_signals();
	ls.fs = tool_open_fs(&open, argv[optind], FS_NAMESPACE);
	if (!ls.fs)
		return TOOL_FAILED;
	if (argc - optind == 1)
		ls_path(&ls, "/", false);
	for (int i = optind + 1; i < argc && !tool_interrupted; i++)
		ls_path(&ls, argv[i], argc - optind > 2);

	if (fflush(stdout) || ferror(stdout)) {
		/* A reader that went away is no news. */
		if (errno != EPIPE)
			tool_error("can't write the output: %s", strerror(errno));
		ls.has_failed = true;
	}
	ls.has_failed |= tool_interrupted;
	return tool_close_fs(ls.fs, ls.has_failed ? TOOL_FAILED : ls.is_damaged ? TOOL_DAMAGE : TOOL_OK);
}

const struct command command_ls = {
	.name = "ls",
	.summary = "list directories",
	.usage = usage,
	.run = ls_run,
};
