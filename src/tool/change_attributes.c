/* kiln chmod, chown, setfattr: commands that change attributes of files. change.h has what they share. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/strbuf.h"
#include "tool/change.h"
#include "tool/mode.h"
#include "tool/owner.h"

/* One file; what a walk does with all of a tree, too. */
typedef int (*apply_fn)(struct change *c, const void *args, const struct kiln_stat *st);

struct apply {
	bool is_recursive, follows;
	apply_fn fn;
	/* Better than strerror(), if anything is added to @why; may be NULL. */
	void (*explain)(const struct change *c, const void *args, int err, struct strbuf *why);
	const void *args;
};

static int apply_failed(struct change *c, const struct apply *a, const char *path, int err)
{
	if (!err || err == -EROFS || err == -ENOSPC)
		return err;
	struct strbuf why = strbuf_growing();

	if (a->explain)
		a->explain(c, a->args, err, &why);
	change_failed(c, path, why.len ? 0 : err, why.len ? strbuf_text(&why) : NULL);
	strbuf_free(&why);
	return 0;
}

static int apply_entry(struct change *c, void *ctx, const struct change_entry *e)
{
	const struct apply *a = ctx;

	return apply_failed(c, a, e->path, a->fn(c, a->args, e->st));
}

static int apply_path(struct change *c, void *ctx, const char *path)
{
	const struct apply *a = ctx;
	struct kiln_stat st;

	int err = kiln_lookup_path(c->fs, path, a->follows ? KILN_FOLLOW : 0, &st);
	if (!err)
		err = apply_failed(c, a, path, a->fn(c, a->args, &st));
	if (!err && a->is_recursive && S_ISDIR(st.mode))
		err = change_tree(c, path, st.node, false, apply_entry, ctx);
	return err;
}

/* --- chmod --- */

static const char chmod_usage[] = "usage: kiln chmod [OPTIONS] MODE FS PATH...\n"
				  "\n"
				  "Change permissions: MODE is octal (644) or symbolic (u+x,go-w,a=rX).\n"
				  "\n"
				  "  -R                      directories and everything below them; symlinks there are "
				  "left out\n" TOOL_CHANGE_USAGE;

static int chmod_file(struct change *c, const void *args, const struct kiln_stat *st)
{
	struct kiln_setattr attr = { .fields = KILN_SET_MODE };

	if (S_ISLNK(st->mode))
		return 0;
	int err = mode_apply(args, st->mode, &attr.mode);
	attr.mode &= 07777;
	return err ? err : kiln_setattr(c->fs, st->node, &attr, NULL);
}

/* A mode such as -w looks like options: it is taken out of their way. */
static char *mode_argument(int *argc, char **argv)
{
	for (int i = 1; i < *argc && strcmp(argv[i], "--"); i++) {
		if (argv[i][0] != '-' || !argv[i][1] || !strchr("rwxXst", argv[i][1]))
			continue;
		char *mode = argv[i];
		memmove(argv + i, argv + i + 1, (size_t)(*argc - i) * sizeof(*argv));
		--*argc;
		return mode;
	}
	return NULL;
}

static int chmod_run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS, { 0 } };
	struct change change = { .self = self, .open = tool_open_defaults() };
	struct apply apply = { .follows = true, .fn = chmod_file };
	char *mode = mode_argument(&argc, argv);
	uint32_t unused;
	int c, status;

	while ((c = getopt_long(argc, argv, "R", options, NULL)) != -1) {
		if (tool_open_option(self, c, &change.open, &status) < 0)
			return status;
		apply.is_recursive |= c == 'R';
	}
	if (!mode && optind < argc)
		mode = argv[optind++];
	if (!mode || argc - optind < 2)
		return tool_usage_error(self, "needs a mode, a filesystem and at least one path");
	if (mode_apply(mode, 0, &unused))
		return tool_usage_error(self, "'%s' is no mode; the order is MODE FS PATH...", mode);
	apply.args = mode;
	return change_each(&change, argv + optind, argc - optind, apply_path, &apply);
}

const struct command command_chmod = { "chmod", "change permissions", chmod_usage, chmod_run };

/* --- chown --- */

static const char chown_usage[] =
	"usage: kiln chown [OPTIONS] USER[:GROUP] FS PATH...\n"
	"\n"
	"Change owners: names of this machine, or numbers. USER: takes the user's own group, :GROUP changes only "
	"that.\n"
	"Setuid and setgid bits of files are cleared.\n"
	"\n"
	"  -R                      directories and everything below them\n"
	"  -h                      change PATHs that are symlinks themselves\n" TOOL_CHANGE_USAGE;

static int chown_file(struct change *c, const void *args, const struct kiln_stat *st)
{
	const struct owner *owner = args;
	struct kiln_setattr attr = { .uid = owner->uid, .gid = owner->gid };

	attr.fields |= owner->has_uid ? KILN_SET_UID : 0;
	attr.fields |= owner->has_gid ? KILN_SET_GID : 0;
	/* Whoever had the rights of the old owner shall not have the new one's. */
	if (S_ISREG(st->mode) && st->mode & 06000) {
		attr.fields |= KILN_SET_MODE;
		attr.mode = st->mode & 07777 & ~(uint32_t)S_ISUID;
		attr.mode &= attr.mode & S_IXGRP ? ~(uint32_t)S_ISGID : ~0u;
	}
	return kiln_setattr(c->fs, st->node, &attr, NULL);
}

static int chown_run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS, { 0 } };
	struct change change = { .self = self, .open = tool_open_defaults() };
	struct apply apply = { .follows = true, .fn = chown_file };
	struct owner owner;
	int c, status;

	while ((c = getopt_long(argc, argv, "Rh", options, NULL)) != -1) {
		if (tool_open_option(self, c, &change.open, &status) < 0)
			return status;
		apply.is_recursive |= c == 'R';
		apply.follows &= c != 'h';
	}
	if (argc - optind < 3)
		return tool_usage_error(self, "needs an owner, a filesystem and at least one path");
	if (owner_parse(argv[optind], &owner))
		return tool_usage_error(self, "there is no owner '%s' here; the order is USER[:GROUP] FS PATH...",
					argv[optind]);
	apply.args = &owner;
	return change_each(&change, argv + optind + 1, argc - optind - 1, apply_path, &apply);
}

const struct command command_chown = { "chown", "change owners", chown_usage, chown_run };

/* --- setfattr --- */

static const char setfattr_usage[] =
	"usage: kiln setfattr [OPTIONS] -n NAME [-v VALUE] FS PATH...\n"
	"       kiln setfattr [OPTIONS] -x NAME FS PATH...\n"
	"\n"
	"Set or remove an extended attribute. VALUE is text, or bytes as 0x... in hexadecimal; none is an empty "
	"value.\n"
	"NAME begins with user., trusted., security. or bcachefs.; bcachefs.OPTION sets an option of a file, or of "
	"what is\n"
	"made in a directory from then on.\n"
	"\n"
	"  -n NAME                 set this attribute\n"
	"  -v VALUE                to this\n"
	"  -x NAME                 remove this attribute\n"
	"  -h                      change PATHs that are symlinks themselves\n" TOOL_CHANGE_USAGE;

struct xattr_args {
	const char *set, *remove;
	uint8_t *value;
	size_t size;
};

static int setfattr_file(struct change *c, const void *args, const struct kiln_stat *st)
{
	const struct xattr_args *x = args;

	return x->set ? kiln_setxattr(c->fs, st->node, x->set, x->value, x->size, 0)
		      : kiln_removexattr(c->fs, st->node, x->remove);
}

/* bcachefs.OPTION: options that files have, and their values. */
static void option_explain(const struct change *c, const struct xattr_args *x, const char *name, struct strbuf *why)
{
	int id = option_id_parse(name);
	char unsupported[256];
	uint64_t value;

	if (id < 0 || !(option_table[id].where & OPTION_INODE)) {
		strbuf_printf(why, "files have no option '%s'; there are", name);
		for (unsigned i = 0, nr = 0; i < OPT_NR; i++)
			if (option_table[i].where & OPTION_INODE)
				strbuf_printf(why, "%s %s", nr++ ? "," : "", option_table[i].name);
		return;
	}
	CLEANUP_FREE char *text = x->set ? strndup((const char *)x->value, x->size) : NULL;
	if (!text)
		return;
	strbuf_printf(why, "%s=%s: ", name, text);
	if (!option_parse((enum option_id)id, text, c->fs->super->sb, &value, why)) {
		strbuf_reset(why);
		if (super_option_unsupported((enum option_id)id, value, unsupported))
			strbuf_add(why, unsupported);
	}
}

static void setfattr_explain(const struct change *c, const void *args, int err, struct strbuf *why)
{
	static const char *const namespaces[] = {
		"user.", "trusted.", "security.", "bcachefs.", "system.posix_acl_access", "system.posix_acl_default"
	};
	const struct xattr_args *x = args;
	const char *name = x->set ? x->set : x->remove;
	bool is_known = false;

	for (size_t i = 0; i < ARRAY_NR(namespaces); i++)
		is_known |= !strncmp(name, namespaces[i], strlen(namespaces[i])) &&
			    (name[strlen(namespaces[i])] || !strncmp(name, "system.", 7));
	if (err == -ENODATA)
		strbuf_add(why, "has no such attribute");
	else if (err == -ERANGE || err == -E2BIG)
		strbuf_add(why, "the name or the value is too long");
	else if (err != -EOPNOTSUPP && err != -EINVAL)
		return;
	else if (!is_known)
		strbuf_printf(why,
			      "'%s' is no attribute: names begin with user., trusted., security. or bcachefs., or are "
			      "system.posix_acl_access and system.posix_acl_default",
			      name);
	else if (!strncmp(name, "bcachefs.", 9))
		option_explain(c, x, name + 9, why);
	else if (!strncmp(name, "system.", 7))
		strbuf_add(why, "the value is no access list");
}

static int hex_digit(char c)
{
	const char *at = c ? strchr("0123456789abcdef", c | 0x20) : NULL;

	return c >= '0' && c <= '9' ? c - '0' : at ? (int)(at - "0123456789abcdef") : -1;
}

/* @value has room for the text itself. */
static int value_parse(const char *text, uint8_t *value, size_t *size)
{
	*size = 0;
	if (strncmp(text, "0x", 2) && strncmp(text, "0X", 2)) {
		*size = strlen(text);
		memcpy(value, text, *size);
		return 0;
	}
	for (text += 2; *text; text += 2) {
		int high = hex_digit(text[0]), low = high < 0 ? -1 : hex_digit(text[1]);

		if (low < 0)
			return -EINVAL;
		value[(*size)++] = (uint8_t)(high << 4 | low);
	}
	return 0;
}

static int setfattr_run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS, { 0 } };
	struct change change = { .self = self, .open = tool_open_defaults() };
	struct xattr_args args = { 0 };
	struct apply apply = { .follows = true, .fn = setfattr_file, .explain = setfattr_explain, .args = &args };
	const char *text = "";
	int c, status;

	while ((c = getopt_long(argc, argv, "n:v:x:h", options, NULL)) != -1) {
		if (tool_open_option(self, c, &change.open, &status) < 0)
			return status;
		args.set = c == 'n' ? optarg : args.set;
		args.remove = c == 'x' ? optarg : args.remove;
		text = c == 'v' ? optarg : text;
		apply.follows &= c != 'h';
	}
	if (!args.set == !args.remove)
		return tool_usage_error(self, "needs either -n or -x");
	CLEANUP_FREE uint8_t *value = malloc(strlen(text) + 1);
	if (!value || value_parse(text, value, &args.size))
		return tool_usage_error(self, "'%s' is no value", text);
	args.value = value;
	if (args.set && !strncmp(args.set, "bcachefs.", 9))
		tool_option_warn(args.set + 9, text);
	return change_each(&change, argv + optind, argc - optind, apply_path, &apply);
}

const struct command command_setfattr = { "setfattr", "set and remove extended attributes", setfattr_usage,
					  setfattr_run };
