/* kiln put: files and trees of this machine, or a tar archive, into a filesystem. The reading is import.h's. */
#include "tool/put.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "tool/change.h"
#include "tool/import.h"
#include "tool/owner.h"

static const char usage[] =
	"usage: kiln put [OPTIONS] FS SRC... PATH\n"
	"\n"
	"Copy files, or with -r whole trees, into a filesystem: contents with their holes, mode, owner, times, "
	"extended\n"
	"attributes, ACLs and hardlinks. PATH is a directory in the filesystem to put them in, or, for one SRC, a new\n"
	"name. What is in a SRC that ends in /. goes into PATH itself. If SRC is -, a tar archive (any kind that\n"
	"libarchive reads) is read from standard input and unpacked in PATH.\n"
	"\n"
	"What can't be read or written is told, and the rest goes on; the exit status is then 1. Interrupted, it "
	"leaves\n"
	"a consistent filesystem with what was copied so far.\n"
	"\n"
	"  -r                      directories and everything below them\n"
	"  -H                      follow SRCs that are symlinks (others are always copied as symlinks)\n"
	"  --overwrite             replace files that exist; directories that do are merged into in any case, and\n"
	"                          get owner, mode and times of the source\n"
	"  --owner USER:GROUP      everything belongs to these, names or numbers\n"
	"  --progress              show progress even if standard error is no terminal\n"
	"  --no-progress           don't show progress\n"
	"  --json                  summary as JSON on standard output\n" TOOL_CHANGE_USAGE;

/* How many failures the JSON summary lists. */
enum { LISTED_MAX = 10000 };

/* --- what put and format --source share --- */

static void import_report(void *ctx, const char *path, int err, const char *what)
{
	struct put_import *p = ctx;
	const char *why = err == -EEXIST && p->options.overwrite
				  ? "exists: directories and other files don't replace one another"
			  : err == -EEXIST ? "exists (--overwrite replaces it, unless either is a directory)"
			  : err		   ? strerror(-err)
					   : what;
	struct strbuf text = strbuf_growing();

	tool_add_printable(&text, path, strlen(path));
	progress_hide(p->progress);
	if (err == -EISDIR && !p->options.is_recursive)
		tool_error("%s: is a directory; -r copies it with all that is in it", strbuf_text(&text));
	else
		tool_error("%s: %s%s%s%s", strbuf_text(&text), what && err ? what : "", what && err ? ": " : "", why,
			   err == -ENOSPC ? "; nothing more is copied" : "");
	if (p->failures && json_array_size(p->failures) < LISTED_MAX)
		json_array_append_new(p->failures, json_pack("{s:o, s:o}", "path", tool_json_bytes(path, strlen(path)),
							     "error", tool_json_bytes(why, strlen(why))));
	strbuf_free(&text);
}

static void import_progressed(void *ctx, uint64_t bytes, uint64_t files)
{
	struct put_import *p = ctx;

	progress_add(p->progress, bytes, files);
}

bool put_import_start(struct put_import *p, kiln_fs *fs, const char *what)
{
	p->options.stop = &tool_interrupted;
	p->options.ctx = p;
	p->options.report = import_report;
	p->options.progress = import_progressed;
	p->failures = json_array();
	p->x = import_start(fs, &p->options, 0);
	if (!p->x) {
		tool_error("out of memory");
		json_decref(p->failures);
		return false;
	}
	p->progress = p->has_progress ? progress_start(what, p->total_bytes, p->wants_progress) : NULL;
	return true;
}

static void count_add(struct strbuf *out, uint64_t n, const char *one, const char *many)
{
	if (n)
		strbuf_printf(out, "%s%llu %s", out->len ? ", " : "", (unsigned long long)n, n == 1 ? one : many);
}

json_t *put_import_end(struct put_import *p, bool is_verbose)
{
	const struct import_counts *c = import_counts(p->x);
	struct strbuf text = strbuf_growing();

	progress_end(p->progress);
	p->has_failed = c->failed != 0 || tool_interrupted;
	count_add(&text, c->files, "file", "files");
	count_add(&text, c->directories, "directory", "directories");
	count_add(&text, c->symlinks, "symlink", "symlinks");
	count_add(&text, c->hardlinks, "hardlink", "hardlinks");
	count_add(&text, c->specials, "special file", "special files");
	if (text.len)
		strbuf_add(&text, ", ");
	strbuf_add_size(&text, c->bytes);
	if (c->failed)
		strbuf_printf(&text, "; %llu failed", (unsigned long long)c->failed);
	if (p->has_failed || is_verbose)
		tool_error("%scopied %s", tool_interrupted ? "interrupted; " : "", strbuf_text(&text));
	strbuf_free(&text);

	json_t *summary = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:b, s:b}", "files", (json_int_t)c->files,
				    "directories", (json_int_t)c->directories, "symlinks", (json_int_t)c->symlinks,
				    "hardlinks", (json_int_t)c->hardlinks, "specials", (json_int_t)c->specials, "bytes",
				    (json_int_t)c->bytes, "failed", p->failures, "lists_are_cut",
				    c->failed > LISTED_MAX, "interrupted", tool_interrupted != 0);
	import_end(p->x);
	return summary;
}

/* --- put --- */

struct put {
	struct change change;
	struct put_import import;
	bool follow;
	char **sources;
	int source_nr;
	const char *dest;
	struct kiln_node dir;  /* where they go */
	const char *dest_name; /* new name for a single object; NULL: into the directory under its own */
};

static bool is_directory(const struct put *p, const char *source)
{
	struct stat st;
	size_t len;

	/* Another name for a directory that has none of its own: "dir/." */
	change_last_name(source, &len);
	return !len || (!(p->follow ? stat(source, &st) : lstat(source, &st)) && S_ISDIR(st.st_mode));
}

/* Where things go. False after a message. */
static bool dest_find(struct put *p)
{
	struct change_place place;
	struct kiln_stat st;
	size_t len;

	int err = *p->dest ? kiln_lookup_path(p->change.fs, p->dest, KILN_FOLLOW, &st) : -ENOENT;
	if (!err && S_ISDIR(st.mode)) {
		p->dir = st.node;
		return true;
	}
	change_last_name(p->sources[0], &len);
	if (!err && (p->source_nr > 1 || !len || !strcmp(p->sources[0], "-")))
		err = -ENOTDIR;
	if (err == -ENOENT && p->source_nr == 1 && strcmp(p->sources[0], "-"))
		err = 0;
	if (!err)
		err = change_new_place(p->change.fs, p->dest, is_directory(p, p->sources[0]), &place);
	if (err) {
		change_failed(&p->change, p->dest, err, NULL);
		return false;
	}
	p->dir = place.dir;
	p->dest_name = place.name;
	return true;
}

/* A new directory for what is in a SRC that ends in "/.". */
static int dest_make(struct put *p, const char *name)
{
	struct kiln_create attr = { .mode = S_IFDIR | 0755 };
	struct kiln_stat st;

	int err = kiln_create(p->change.fs, p->dir, name, strlen(name), &attr, &st);
	if (!err)
		p->dir = st.node;
	return err;
}

static int put_source(struct put *p, const char *source)
{
	CLEANUP_FREE char *followed = NULL;
	size_t len;

	if (!strcmp(source, "-"))
		return import_tar(p->import.x, STDIN_FILENO, p->dir);
	const char *last = change_last_name(source, &len);
	CLEANUP_FREE char *own = strndup(last, len);
	CLEANUP_FREE char *name = p->dest_name ? strndup(p->dest_name, strcspn(p->dest_name, "/")) : NULL;
	if (!own || (p->dest_name && !name))
		return -ENOMEM;
	if (!len && !p->import.options.is_recursive) {
		import_report(&p->import, source, -EISDIR, NULL);
		p->change.has_failed = true;
		return 0;
	}
	if (!len) {
		int err = name ? dest_make(p, name) : 0;
		if (err) {
			change_failed(&p->change, p->dest, err, NULL);
			return 0;
		}
		return import_path(p->import.x, source, p->dir, "");
	}
	if (p->follow) {
		followed = realpath(source, NULL);
		source = followed ? followed : source;
	}
	return import_path(p->import.x, source, p->dir, name ? name : own);
}

/* Bytes that there will be to copy; 0: unknown, trees aren't counted beforehand. */
static uint64_t total_bytes(const struct put *p)
{
	uint64_t total = 0;

	for (int i = 0; i < p->source_nr; i++) {
		struct stat st;
		bool is_tar = !strcmp(p->sources[i], "-");

		if (is_tar || lstat(p->sources[i], &st) || S_ISDIR(st.st_mode))
			return 0;
		total += S_ISREG(st.st_mode) ? (uint64_t)min(st.st_size, st.st_blocks * 512) : 0;
	}
	return total;
}

static int put_all(struct put *p)
{
	struct change *c = &p->change;
	json_t *summary = NULL;

	if (!dest_find(p))
		return change_close(c);
	p->import.total_bytes = total_bytes(p);
	if (put_import_start(&p->import, c->fs, "put")) {
		for (int i = 0; i < p->source_nr && !put_source(p, p->sources[i]); i++)
			;
		summary = put_import_end(&p->import, c->open.is_verbose);
		c->has_failed |= p->import.has_failed;
		/* Without it what is there in part would count as being there. */
		if (tool_interrupted)
			tool_error("files that were being copied may be there in part: `kiln put --overwrite` goes on");
	} else {
		c->has_failed = true;
	}
	int status = change_close(c);
	if (c->open.is_json && summary)
		status = tool_print_json(json_incref(summary)) == TOOL_OK ? status : TOOL_FAILED;
	json_decref(summary);
	return status;
}

static int put_run(const struct command *self, int argc, char **argv)
{
	enum { OPT_OVERWRITE = TOOL_OPT_COMMAND, OPT_PROGRESS, OPT_NO_PROGRESS, OPT_OWNER };
	static const struct option options[] = {
		TOOL_OPEN_OPTIONS,
		{ "json", no_argument, NULL, TOOL_OPT_JSON },
		{ "overwrite", no_argument, NULL, OPT_OVERWRITE },
		{ "owner", required_argument, NULL, OPT_OWNER },
		{ "progress", no_argument, NULL, OPT_PROGRESS },
		{ "no-progress", no_argument, NULL, OPT_NO_PROGRESS },
		{ 0 },
	};
	struct put p = { .change = { .self = self, .open = tool_open_defaults() },
			 .import = { .has_progress = true, .options = { .keeps_owner = true } } };
	struct import_options *import = &p.import.options;
	int c, status;

	while ((c = getopt_long(argc, argv, "rH", options, NULL)) != -1) {
		if (tool_open_option(self, c, &p.change.open, &status) < 0)
			return status;
		import->is_recursive |= c == 'r';
		p.follow |= c == 'H';
		import->overwrite |= c == OPT_OVERWRITE;
		p.import.wants_progress |= c == OPT_PROGRESS;
		p.import.has_progress &= c != OPT_NO_PROGRESS;
		if (c == OPT_OWNER) {
			struct owner owner;

			if (owner_parse(optarg, &owner) || !owner.has_uid || !owner.has_gid)
				return tool_usage_error(self, "--owner takes USER:GROUP, not '%s'", optarg);
			import->keeps_owner = false;
			import->uid = owner.uid;
			import->gid = owner.gid;
		}
	}
	p.source_nr = argc - optind - 2;
	if (p.source_nr < 1)
		return tool_usage_error(self, "needs a filesystem, at least one source and a path");
	p.sources = argv + optind + 1;
	p.dest = argv[argc - 1];
	return change_open(&p.change, argv[optind]) ? put_all(&p) : TOOL_FAILED;
}

const struct command command_put = { "put", "copy files and trees in", usage, put_run };
