/* kiln get: files and trees out of a filesystem, with everything about them. The writing is extract.h's. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "tool/extract.h"
#include "tool/tool.h"
#include "tool/tree.h"

static const char usage[] =
	"usage: kiln get [OPTIONS] FS PATH... DEST\n"
	"\n"
	"Copy files, or with -r whole trees, out of a filesystem: contents with their holes, mode, owner, times,\n"
	"extended attributes, ACLs and hardlinks. Subvolumes and snapshots below PATH are entered like directories.\n"
	"DEST is a directory to put them in, or, for one PATH, a new name. `kiln get -r FS / DEST` puts everything\n"
	"into DEST itself.\n"
	"\n"
	"What is damaged doesn't stop it: unreadable parts of files are left zero, each is told, and the exit status\n"
	"is then 3. Owners, device nodes, setuid and setgid bits, trusted.* and security.* attributes need root.\n"
	"\n"
	"Names from the disk never lead outside of DEST: a name such as .. or with a slash in it is written with\n"
	"\\xNN, of two equal names the first is taken, nothing is written through a symlink; each case is told and\n"
	"counts as damage.\n"
	"\n"
	"  -r                      directories and everything below them\n"
	"  -H                      follow PATHs that are symlinks (others are always copied as symlinks)\n"
	"  --overwrite             replace files that exist in DEST; directories that do are entered in any case\n"
	"                          (never through symlinks), and with it get owner, mode and times too\n"
	"  --progress              show progress even if standard error is no terminal\n"
	"  --no-progress           don't show progress\n"
	"  --json                  summary as JSON on standard output\n" TOOL_OPEN_USAGE;

/* How many things of one kind the JSON summary lists. */
enum { LISTED_MAX = 10000 };

struct get {
	struct tool_open open;
	bool is_recursive, follow, overwrite;
	bool has_progress, wants_progress;
	kiln_fs *fs;
	struct extract *x;
	struct progress *progress;
	int dest_fd;
	const char *dest_name; /* new name for a single object; NULL: into the directory under its own */
	json_t *lists;
	bool lists_are_cut;
	bool has_failed, is_damaged; /* besides what the extraction counts */
};

/* How reports appear: their list in the JSON summary. */
static const char *const trouble_lists[] = {
	[EXTRACT_DAMAGED] = "damaged", [EXTRACT_LOST] = "lost",	      [EXTRACT_REFUSED] = "refused",
	[EXTRACT_FAILED] = "failed",   [EXTRACT_SKIPPED] = "skipped", [EXTRACT_NOT_KEPT] = NULL,
};

static void list_add(struct get *g, const struct extract_report *r)
{
	if (!g->open.is_json || !trouble_lists[r->trouble])
		return;
	json_t *list = json_object_get(g->lists, trouble_lists[r->trouble]);
	if (json_array_size(list) >= LISTED_MAX) {
		g->lists_are_cut = true;
		return;
	}
	json_t *item = json_pack("{s:o, s:o}", "path", tool_json_bytes(r->path, strlen(r->path)), "what",
				 tool_json_bytes(r->what, strlen(r->what)));
	if (r->trouble == EXTRACT_DAMAGED) {
		json_object_set_new(item, "offset", json_integer((json_int_t)r->offset));
		json_object_set_new(item, "length", json_integer((json_int_t)r->len));
	}
	if (r->error)
		json_object_set_new(item, "error", json_string(strerror(-r->error)));
	json_array_append_new(list, item);
}

static void report(void *ctx, const struct extract_report *r)
{
	struct get *g = ctx;
	struct strbuf text = strbuf_growing();

	tool_add_printable(&text, r->path, strlen(r->path));
	strbuf_add(&text, ": ");
	if (r->trouble == EXTRACT_DAMAGED)
		strbuf_printf(&text, "%llu bytes at offset %llu ", (unsigned long long)r->len,
			      (unsigned long long)r->offset);
	tool_add_printable(&text, r->what, strlen(r->what));
	if (r->error)
		strbuf_printf(&text, ": %s", strerror(-r->error));
	if (r->trouble == EXTRACT_NOT_KEPT)
		strbuf_add(&text, " (told once; the summary counts them)");
	progress_hide(g->progress);
	tool_error("%s", strbuf_text(&text));
	strbuf_free(&text);
	list_add(g, r);
}

static void progressed(void *ctx, uint64_t bytes, uint64_t files)
{
	struct get *g = ctx;

	progress_add(g->progress, bytes, files);
}

/* --- where it goes --- */

/* Open the destination: the directory itself, or the one that the new name will be in. Returns false after a message.
 */
static bool dest_open(struct get *g, char *dest, bool is_single)
{
	int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;

	g->dest_fd = open(dest, flags);
	if (g->dest_fd >= 0)
		return true;
	if (!is_single || (errno != ENOENT && errno != ENOTDIR)) {
		tool_error("%s: %s", dest, strerror(errno));
		return false;
	}

	size_t len = strlen(dest);
	while (len > 1 && dest[len - 1] == '/' && g->is_recursive)
		dest[--len] = 0;
	if (len && dest[len - 1] == '/') {
		tool_error("%s: no such directory", dest);
		return false;
	}
	g->dest_name = tree_basename(dest);
	CLEANUP_FREE char *copy = strdup(dest);
	const char *parent = copy ? dirname(copy) : NULL;
	g->dest_fd = parent ? open(parent, flags) : -1;
	if (g->dest_fd < 0)
		tool_error("%s: %s", parent ? parent : dest, strerror(parent ? errno : ENOMEM));
	return g->dest_fd >= 0;
}

/* Last component of a path in the filesystem, or "" where that isn't a name: /, a/.., a/. */
static void source_name(struct strbuf *out, const char *path)
{
	size_t end = strlen(path);

	while (end && path[end - 1] == '/')
		end--;
	size_t begin = end;
	while (begin && path[begin - 1] != '/')
		begin--;
	strbuf_add_bytes(out, path + begin, end - begin);
	if (!strcmp(strbuf_text(out), ".") || !strcmp(strbuf_text(out), ".."))
		strbuf_reset(out);
}

/* --- what is got --- */

static int get_found(struct get *g, const char *path, const struct kiln_stat *st)
{
	struct strbuf name = strbuf_growing(), source = strbuf_growing();

	if (g->dest_name)
		strbuf_add(&name, g->dest_name);
	else
		source_name(&name, path);
	strbuf_printf(&source, "%s%s", *path == '/' ? "" : "/", path);

	int err = extract_begin(g->x, strbuf_text(&source), strbuf_text(&name));
	if (!err) {
		int walk_err = kiln_walk(g->fs, st->node, extract_event, g->x);
		err = extract_finish(g->x);
		err = err ? err : walk_err;
	}
	strbuf_free(&name);
	strbuf_free(&source);
	return err;
}

/* Get one PATH. Returns false when there is no point in going on. */
static bool get_path(struct get *g, const char *path)
{
	struct kiln_stat st;
	int err = kiln_lookup_path(g->fs, path, g->follow ? KILN_FOLLOW : 0, &st);

	/* The root is known without its inode, and the walk gets by without it too. */
	if (err == -EIO && g->is_recursive && !path[strspn(path, "/")]) {
		st = (struct kiln_stat){ .node = kiln_root(g->fs) };
		err = 0;
	}
	if (!err && S_ISDIR(st.mode) && !g->is_recursive) {
		tool_error("%s: is a directory; -r gets it with all that is in it", path);
		g->has_failed = true;
		return true;
	}
	if (err == -EIO) {
		report(g, &(struct extract_report){ .trouble = EXTRACT_LOST,
						    .path = path,
						    .error = err,
						    .what = "can't be found through the damage" });
		g->is_damaged = true;
		return true;
	}
	if (err) {
		progress_hide(g->progress);
		tool_error("%s: %s", path, strerror(-err));
		g->has_failed = true;
		return true;
	}
	err = get_found(g, path, &st);
	if (err && err != -EINTR) {
		progress_hide(g->progress);
		tool_error("%s: stopped: %s", path, strerror(-err));
	}
	g->has_failed |= err != 0;
	return !err;
}

/* Bytes that there will be to copy, as an estimate; 0 unknown. */
static uint64_t total_bytes(struct get *g, char **paths, int nr)
{
	struct kiln_usage u;
	uint64_t total = 0;

	for (int i = 0; i < nr; i++) {
		struct kiln_stat st;

		if (kiln_lookup_path(g->fs, paths[i], g->follow ? KILN_FOLLOW : 0, &st))
			continue;
		struct kiln_node root = kiln_root(g->fs);
		if (st.node.ino == root.ino && st.node.subvol == root.subvol)
			total += !kiln_usage(g->fs, &u) && u.is_known ? u.used : 0;
		else if (S_ISDIR(st.mode))
			return 0;
		else
			total += min(st.size, st.sectors * SECTOR_BYTES);
	}
	return total;
}

/* --- the end --- */

static void count_add(struct strbuf *out, uint64_t n, const char *one, const char *many)
{
	if (n)
		strbuf_printf(out, "%s%llu %s", out->len ? ", " : "", (unsigned long long)n, n == 1 ? one : many);
}

static void summary_print(struct get *g, const struct extract_counts *c)
{
	struct strbuf got = strbuf_growing(), trouble = strbuf_growing();

	count_add(&got, c->files, "file", "files");
	count_add(&got, c->directories, "directory", "directories");
	count_add(&got, c->symlinks, "symlink", "symlinks");
	count_add(&got, c->hardlinks, "hardlink", "hardlinks");
	count_add(&got, c->specials, "special file", "special files");
	if (got.len)
		strbuf_add(&got, ", ");
	strbuf_add_size(&got, c->bytes);

	count_add(&trouble, c->damaged_files, "file damaged", "files damaged");
	if (c->damaged_bytes) {
		strbuf_add(&trouble, " (");
		strbuf_add_size(&trouble, c->damaged_bytes);
		strbuf_add_char(&trouble, ')');
	}
	count_add(&trouble, c->trouble[EXTRACT_LOST], "thing not readable", "things not readable");
	count_add(&trouble, c->trouble[EXTRACT_REFUSED], "name refused or changed", "names refused or changed");
	count_add(&trouble, c->trouble[EXTRACT_FAILED], "not written", "not written");
	count_add(&trouble, c->trouble[EXTRACT_SKIPPED], "device node skipped", "device nodes skipped");
	for (unsigned i = 0; i < KEPT_NR; i++)
		if (c->not_kept[i])
			strbuf_printf(&trouble, "%s%s not kept: %llu", trouble.len ? ", " : "", extract_kept_name(i),
				      (unsigned long long)c->not_kept[i]);

	if (trouble.len || tool_interrupted || g->open.is_verbose)
		tool_error("%s%s%s%s", tool_interrupted ? "interrupted; got " : "got ", strbuf_text(&got),
			   trouble.len ? "; " : "", strbuf_text(&trouble));
	strbuf_free(&got);
	strbuf_free(&trouble);
}

static int summary_json(struct get *g, const struct extract_counts *c)
{
	json_t *j = g->lists, *not_kept = json_object();

	for (unsigned i = 0; i < KEPT_NR; i++)
		if (c->not_kept[i])
			json_object_set_new(not_kept, extract_kept_name(i), json_integer((json_int_t)c->not_kept[i]));
	json_t *counts =
		json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:b, s:b}", "files", (json_int_t)c->files,
			  "directories", (json_int_t)c->directories, "symlinks", (json_int_t)c->symlinks, "hardlinks",
			  (json_int_t)c->hardlinks, "specials", (json_int_t)c->specials, "bytes", (json_int_t)c->bytes,
			  "damaged_files", (json_int_t)c->damaged_files, "damaged_bytes", (json_int_t)c->damaged_bytes,
			  "not_kept", not_kept, "lists_are_cut", g->lists_are_cut, "interrupted", tool_interrupted);
	json_object_update(j, counts);
	json_decref(counts);
	g->lists = NULL;
	return tool_print_json(j);
}

static int get_status(const struct get *g, const struct extract_counts *c)
{
	if (g->has_failed || tool_interrupted || c->trouble[EXTRACT_FAILED])
		return TOOL_FAILED;
	if (g->is_damaged || c->trouble[EXTRACT_DAMAGED] || c->trouble[EXTRACT_LOST] || c->trouble[EXTRACT_REFUSED])
		return TOOL_DAMAGE;
	return TOOL_OK;
}

/* With the filesystem and the destination open. */
static int get_all(struct get *g, char **paths, int nr)
{
	struct extract_options options = {
		.overwrite = g->overwrite,
		.is_root = geteuid() == 0,
		.stop = &tool_interrupted,
		.ctx = g,
		.report = report,
		.progress = progressed,
	};

	g->x = extract_start(g->fs, g->dest_fd, &options);
	if (!g->x) {
		tool_error("out of memory");
		return TOOL_FAILED;
	}
	g->lists = json_object();
	for (size_t i = 0; i < ARRAY_NR(trouble_lists); i++)
		if (trouble_lists[i])
			json_object_set_new(g->lists, trouble_lists[i], json_array());
	if (g->has_progress)
		g->progress = progress_start("get", total_bytes(g, paths, nr), g->wants_progress);

	for (int i = 0; i < nr && get_path(g, paths[i]); i++)
		;
	progress_end(g->progress);
	g->progress = NULL;

	summary_print(g, extract_counts(g->x));
	int status = get_status(g, extract_counts(g->x));
	if (g->open.is_json && summary_json(g, extract_counts(g->x)) != TOOL_OK)
		status = TOOL_FAILED;
	json_decref(g->lists);
	extract_end(g->x);
	return status;
}

static int get_run(const struct command *self, int argc, char **argv)
{
	enum { OPT_OVERWRITE = TOOL_OPT_COMMAND, OPT_PROGRESS, OPT_NO_PROGRESS };
	static const struct option options[] = {
		TOOL_OPEN_OPTIONS,
		{ "json", no_argument, NULL, TOOL_OPT_JSON },
		{ "overwrite", no_argument, NULL, OPT_OVERWRITE },
		{ "progress", no_argument, NULL, OPT_PROGRESS },
		{ "no-progress", no_argument, NULL, OPT_NO_PROGRESS },
		{ 0 },
	};
	struct get g = { .open = tool_open_defaults(), .has_progress = true, .dest_fd = -1 };
	int c, status;

	while ((c = getopt_long(argc, argv, "rH", options, NULL)) != -1) {
		if (tool_open_option(self, c, &g.open, &status) < 0)
			return status;
		g.is_recursive |= c == 'r';
		g.follow |= c == 'H';
		g.overwrite |= c == OPT_OVERWRITE;
		g.wants_progress |= c == OPT_PROGRESS;
		g.has_progress &= c != OPT_NO_PROGRESS;
	}
	int nr = argc - optind - 2;
	if (nr < 1)
		return tool_usage_error(self, "needs a filesystem, at least one path and a destination");

	tool_catch_signals();
	/* A file longer than allowed is an error of that file. */
	signal(SIGXFSZ, SIG_IGN);
	/* Nothing is anybody else's before it has its own mode. */
	umask(077);
	if (!dest_open(&g, argv[argc - 1], nr == 1))
		return TOOL_FAILED;
	g.fs = tool_open_fs(&g.open, argv[optind], FS_NAMESPACE);
	status = g.fs ? tool_close_fs(g.fs, get_all(&g, argv + optind + 1, nr)) : TOOL_FAILED;
	close(g.dest_fd);
	return status;
}

const struct command command_get = {
	.name = "get",
	.summary = "copy files and trees out",
	.usage = usage,
	.run = get_run,
};
