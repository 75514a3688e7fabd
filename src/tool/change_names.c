/* kiln mkdir, rm, mv, ln: commands that change names in a filesystem. Each is a few calls; change.h has the rest. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "tool/change.h"
#include "tool/mode.h"

/* --- mkdir --- */

static const char mkdir_usage[] =
	"usage: kiln mkdir [OPTIONS] FS PATH...\n"
	"\n"
	"Make directories, which belong to the caller.\n"
	"\n"
	"  -p                      make missing ones on the way too; fine if PATH exists\n"
	"  -m MODE                 permissions, octal or as for chmod (default 777 less umask)\n" TOOL_CHANGE_USAGE;

struct mkdir_args {
	bool makes_parents;
	uint32_t mode, umask;
};

static int make_directory(kiln_fs *fs, struct kiln_node dir, const char *name, size_t len, uint32_t mode, uint32_t mask,
			  struct kiln_stat *st)
{
	struct kiln_create attr = { .mode = S_IFDIR | mode, .umask = mask, .uid = geteuid(), .gid = getegid() };

	return kiln_create(fs, dir, name, len, &attr, st);
}

/* Names of a path one by one, made where they are missing. */
static int make_path(kiln_fs *fs, const struct mkdir_args *args, const char *path)
{
	struct kiln_stat st;

	for (const char *end = path; *end;) {
		size_t len;

		end += strspn(end, "/");
		end += strcspn(end, "/");
		CLEANUP_FREE char *so_far = strndup(path, (size_t)(end - path));
		bool is_last = !end[strspn(end, "/")];
		if (!so_far)
			return -ENOMEM;
		int err = kiln_lookup_path(fs, so_far, KILN_FOLLOW, &st);
		if (err == -ENOENT) {
			struct change_place place;

			err = change_place(fs, so_far, &place);
			/* A symlink that leads nowhere is in the way. */
			change_last_name(so_far, &len);
			if (!err)
				err = make_directory(fs, place.dir, place.name, place.len, is_last ? args->mode : 0777,
						     is_last ? args->umask : args->umask & ~0300u, &st);
		}
		if (!err && !S_ISDIR(st.mode))
			err = is_last ? -EEXIST : -ENOTDIR;
		if (err)
			return err;
	}
	return *path ? 0 : -ENOENT;
}

static int mkdir_path(struct change *c, void *ctx, const char *path)
{
	const struct mkdir_args *args = ctx;
	struct change_place place;

	if (args->makes_parents)
		return make_path(c->fs, args, path);
	int err = change_place(c->fs, path, &place);
	if (err == -EBUSY)
		err = -EEXIST; /* "/" and the like */
	return err ? err : make_directory(c->fs, place.dir, place.name, place.len, args->mode, args->umask, NULL);
}

static int mkdir_run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS, { 0 } };
	struct change change = { .self = self, .open = tool_open_defaults() };
	struct mkdir_args args = { .mode = 0777 };
	int c, status;

	args.umask = (uint32_t)umask(0);
	umask((mode_t)args.umask);
	while ((c = getopt_long(argc, argv, "pm:", options, NULL)) != -1) {
		if (tool_open_option(self, c, &change.open, &status) < 0)
			return status;
		args.makes_parents |= c == 'p';
		if (c == 'm') {
			if (mode_apply(optarg, S_IFDIR | 0777, &args.mode))
				return tool_usage_error(self, "'%s' is no mode", optarg);
			args.mode &= 07777;
			args.umask = 0;
		}
	}
	return change_each(&change, argv + optind, argc - optind, mkdir_path, &args);
}

const struct command command_mkdir = { "mkdir", "make directories", mkdir_usage, mkdir_run };

/* --- rm --- */

static const char rm_usage[] = "usage: kiln rm [OPTIONS] FS PATH...\n"
			       "\n"
			       "Remove files and, with -r, directories with all that is in them. Subvolumes are left.\n"
			       "\n"
			       "  -r                      directories too\n"
			       "  -f                      fine if PATH doesn't exist\n" TOOL_CHANGE_USAGE;

struct rm_args {
	bool is_recursive, is_forced;
};

static int remove_entry(struct change *c, void *ctx, const struct change_entry *e)
{
	int err = kiln_unlink(c->fs, e->dir, e->name, e->len, S_ISDIR(e->st->mode) ? KILN_UNLINK_DIR : 0);

	(void)ctx;
	/* What could not be removed was told, and so were the directories that it is in. */
	if (err && err != -EROFS) {
		change_failed(c, e->path, err, NULL);
		err = 0;
	}
	return err;
}

static int rm_path(struct change *c, void *ctx, const char *path)
{
	const struct rm_args *args = ctx;
	struct change_place place;
	struct kiln_stat st;

	int err = change_place(c->fs, path, &place);
	if (!err)
		err = kiln_lookup(c->fs, place.dir, place.name, place.len, &st);
	if (err == -ENOENT && args->is_forced)
		return 0;
	if (!err && place.is_dir && !S_ISDIR(st.mode))
		err = -ENOTDIR;
	if (!err && S_ISDIR(st.mode) && !args->is_recursive) {
		change_failed(c, path, 0, "is a directory; -r removes it with all that is in it");
		return 0;
	}
	if (!err && S_ISDIR(st.mode))
		err = change_tree(c, path, st.node, true, remove_entry, NULL);
	if (err)
		return err;
	return kiln_unlink(c->fs, place.dir, place.name, place.len, S_ISDIR(st.mode) ? KILN_UNLINK_DIR : 0);
}

static int rm_run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS, { 0 } };
	struct change change = { .self = self, .open = tool_open_defaults() };
	struct rm_args args = { 0 };
	int c, status;

	while ((c = getopt_long(argc, argv, "rRf", options, NULL)) != -1) {
		if (tool_open_option(self, c, &change.open, &status) < 0)
			return status;
		args.is_recursive |= c == 'r' || c == 'R';
		args.is_forced |= c == 'f';
	}
	return change_each(&change, argv + optind, argc - optind, rm_path, &args);
}

const struct command command_rm = { "rm", "remove files and trees", rm_usage, rm_run };

/* --- what mv and ln share --- */

static const char other_subvolume[] =
	"is in another subvolume than where it shall go. Copy it there (kiln get, kiln put)";

/* The destination as a whole is wrong, and will be so for all sources. */
static int dest_failed(struct change *c, const char *dest, int err)
{
	change_failed(c, dest, err, NULL);
	c->is_over = true;
	return 0;
}

/* --- mv --- */

static const char mv_usage[] = "usage: kiln mv [OPTIONS] FS SOURCE... DEST\n"
			       "\n"
			       "Rename, or move into the directory DEST, within the filesystem.\n"
			       "\n"
			       "  -n                      don't replace what exists\n"
			       "  -T                      DEST is the new name, even if it is a directory\n"
			       "  --exchange              swap two names\n" TOOL_CHANGE_USAGE;

struct mv_args {
	unsigned flags;
	bool is_new_name; /* DEST is no directory to move into */
	int source_nr;
	const char *dest;
};

static int mv_path(struct change *c, void *ctx, const char *path)
{
	const struct mv_args *args = ctx;
	struct change_place from, to;
	struct kiln_stat st;

	int err = change_place(c->fs, path, &from);
	if (!err)
		err = kiln_lookup(c->fs, from.dir, from.name, from.len, &st);
	if (!err && from.is_dir && !S_ISDIR(st.mode))
		err = -ENOTDIR;
	if (err)
		return err;
	err = args->is_new_name ? change_new_place(c->fs, args->dest, S_ISDIR(st.mode), &to)
				: change_target(c->fs, path, args->dest, args->source_nr > 1, S_ISDIR(st.mode), &to);
	if (err)
		return dest_failed(c, args->dest, err);
	err = kiln_rename(c->fs, from.dir, from.name, from.len, to.dir, to.name, to.len, args->flags);
	switch (err) {
	case -EINVAL:
		if (args->flags == (KILN_RENAME_NOREPLACE | KILN_RENAME_EXCHANGE))
			return err;
		change_failed(c, path, 0, "can't be moved into itself");
		return 0;
	case -EXDEV:
		change_failed(c, path, 0,
			      from.dir.subvol != to.dir.subvol
				      ? other_subvolume
				      : "can't be moved there: that directory hands on other options than it has. Copy "
					"it (kiln get, kiln put), or give both directories the same (kiln setfattr)");
		return 0;
	/* The source was there a moment ago. */
	case -ENOENT:
	case -EEXIST:
	case -ENOTEMPTY:
	case -EISDIR:
	case -ENOTDIR:
	case -ENAMETOOLONG: change_failed_at(c, args->dest, &to, err); return 0;
	default: return err;
	}
}

static int mv_run(const struct command *self, int argc, char **argv)
{
	enum { OPT_EXCHANGE = TOOL_OPT_COMMAND };
	static const struct option options[] = { TOOL_OPEN_OPTIONS,
						 { "exchange", no_argument, NULL, OPT_EXCHANGE },
						 { 0 } };
	struct change change = { .self = self, .open = tool_open_defaults() };
	struct mv_args args = { 0 };
	int c, status;

	while ((c = getopt_long(argc, argv, "nT", options, NULL)) != -1) {
		if (tool_open_option(self, c, &change.open, &status) < 0)
			return status;
		args.flags |= c == 'n' ? KILN_RENAME_NOREPLACE : c == OPT_EXCHANGE ? KILN_RENAME_EXCHANGE : 0;
		args.is_new_name |= c == 'T' || c == OPT_EXCHANGE;
	}
	args.source_nr = argc - optind - 2;
	if (args.source_nr < 1)
		return tool_usage_error(self, "needs a filesystem, at least one path and where it shall go");
	if (args.is_new_name && args.source_nr > 1)
		return tool_usage_error(self, "only one path can get a new name");
	args.dest = argv[argc - 1];
	return change_each(&change, argv + optind, argc - optind - 1, mv_path, &args);
}

const struct command command_mv = { "mv", "rename and move", mv_usage, mv_run };

/* --- ln --- */

static const char ln_usage[] =
	"usage: kiln ln [OPTIONS] FS TARGET... PATH\n"
	"\n"
	"Give files another name, or with -s make symlinks with the text TARGET. PATH is the new name,\n"
	"or a directory to make the last names of the TARGETs in.\n"
	"\n"
	"  -s                      symlinks\n"
	"  -f                      replace a file that has the name already\n" TOOL_CHANGE_USAGE;

struct ln_args {
	bool is_symbolic, is_forced;
	int target_nr;
	const char *dest;
};

/* 0, told, or an error: of the new name if *@is_of_place, else of @target. */
static int link_make(struct change *c, const struct ln_args *args, const char *target, const struct change_place *to,
		     bool *is_of_place)
{
	struct kiln_create attr = { .mode = S_IFLNK | 0777, .uid = geteuid(), .gid = getegid() };
	struct change_place from;
	struct kiln_stat st;

	*is_of_place = args->is_symbolic && *target;
	if (args->is_symbolic)
		return kiln_symlink(c->fs, to->dir, to->name, to->len, target, &attr, NULL);
	int err = change_place(c->fs, target, &from);
	if (!err)
		err = kiln_lookup(c->fs, from.dir, from.name, from.len, &st);
	if (!err && S_ISDIR(st.mode)) {
		change_failed(c, target, 0, "is a directory, which can have one name only; -s makes a symlink");
		return 0;
	}
	if (err)
		return err;
	err = kiln_link(c->fs, st.node, to->dir, to->name, to->len);
	if (err == -EXDEV) {
		change_failed(c, target, 0,
			      st.node.subvol != to->dir.subvol
				      ? other_subvolume
				      : "can't have a name there: that directory hands on other options than the file "
					"has. Copy it (kiln get, kiln put), make a symlink (-s), or give both the same "
					"(kiln setfattr)");
		return 0;
	}
	*is_of_place = err == -EEXIST || err == -ENAMETOOLONG;
	return err;
}

static int link_failed(struct change *c, const struct ln_args *args, const struct change_place *to, int err,
		       bool is_of_place)
{
	if (!err || !is_of_place || err == -ENOSPC || err == -EROFS)
		return err;
	change_failed_at(c, args->dest, to, err);
	return 0;
}

static int ln_path(struct change *c, void *ctx, const char *target)
{
	const struct ln_args *args = ctx;
	struct change_place to = { 0 };
	struct kiln_stat old, st;
	bool is_of_place;

	int err = change_target(c->fs, target, args->dest, args->target_nr > 1, false, &to);
	if (err == -EBUSY && to.into)
		return err;
	if (err)
		return dest_failed(c, args->dest, err);
	err = link_make(c, args, target, &to, &is_of_place);
	if (err != -EEXIST || !args->is_forced)
		return link_failed(c, args, &to, err, is_of_place);
	err = kiln_lookup(c->fs, to.dir, to.name, to.len, &old);
	/* Another name of the same file stays what it is: it may be the last one. */
	if (!err && !args->is_symbolic && !kiln_lookup_path(c->fs, target, 0, &st) && st.node.ino == old.node.ino &&
	    st.node.subvol == old.node.subvol)
		return 0;
	if (!err)
		err = kiln_unlink(c->fs, to.dir, to.name, to.len, 0);
	if (err)
		return link_failed(c, args, &to, err, true);
	err = link_make(c, args, target, &to, &is_of_place);
	return link_failed(c, args, &to, err, is_of_place);
}

static int ln_run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS, { 0 } };
	struct change change = { .self = self, .open = tool_open_defaults() };
	struct ln_args args = { 0 };
	int c, status;

	while ((c = getopt_long(argc, argv, "sf", options, NULL)) != -1) {
		if (tool_open_option(self, c, &change.open, &status) < 0)
			return status;
		args.is_symbolic |= c == 's';
		args.is_forced |= c == 'f';
	}
	args.target_nr = argc - optind - 2;
	if (args.target_nr < 1)
		return tool_usage_error(self, "needs a filesystem, at least one target and a path");
	args.dest = argv[argc - 1];
	return change_each(&change, argv + optind, argc - optind - 1, ln_path, &args);
}

const struct command command_ln = { "ln", "make hardlinks and symlinks", ln_usage, ln_run };
