/* kiln stat: everything about an object: inode, attributes, options. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "tool/listing.h"
#include "tool/pax.h"
#include "tool/tool.h"

static const char usage[] =
	"usage: kiln stat [OPTIONS] FS PATH...\n"
	"\n"
	"Show everything the filesystem knows about files: type, size, times, owner, extended attributes and options.\n"
	"Symlinks are shown themselves, unless the path ends in a slash.\n"
	"\n"
	"  --json                  as a JSON array\n" TOOL_OPEN_USAGE;

/* Call @fn for each extended attribute; its value is NULL when it can't be read. */
static int for_each_xattr(kiln_fs *fs, struct kiln_node node,
			  void (*fn)(void *ctx, const char *name, const char *value, ssize_t len), void *ctx)
{
	enum { VALUE_BYTES_MAX = 1 << 16 };
	static const char *const prefixes[] = { "bcachefs", "bcachefs_effective" };
	ssize_t size = kiln_listxattr(fs, node, NULL, 0);
	if (size < 0)
		return (int)size;

	CLEANUP_FREE char *list = malloc((size_t)size + 1);
	CLEANUP_FREE char *value = malloc(VALUE_BYTES_MAX);
	if (!list || !value)
		return -ENOMEM;
	if (size)
		size = kiln_listxattr(fs, node, list, (size_t)size);
	for (const char *name = list; size > 0 && name < list + size; name += strlen(name) + 1) {
		ssize_t len = kiln_getxattr(fs, node, name, value, VALUE_BYTES_MAX);
		fn(ctx, name, len < 0 ? NULL : value, len);
	}
	for (unsigned id = 0; id < OPT_NR; id++) {
		char name[64];

		if (!(option_table[id].where & OPTION_INODE))
			continue;
		/* What is its own, then what counts, which it may have inherited. */
		for (unsigned i = 0; i < ARRAY_NR(prefixes); i++) {
			snprintf(name, sizeof(name), "%s.%s", prefixes[i], option_table[id].name);
			ssize_t len = kiln_getxattr(fs, node, name, value, VALUE_BYTES_MAX);
			if (len >= 0)
				fn(ctx, name, value, len);
		}
	}
	return min((int)size, 0);
}

static void xattr_json(void *ctx, const char *name, const char *value, ssize_t len)
{
	struct strbuf text = strbuf_growing();

	tool_add_printable(&text, name, strlen(name));
	json_object_set_new(ctx, strbuf_text(&text), value ? tool_json_bytes(value, (size_t)len) : json_null());
	strbuf_free(&text);
}

static void value_add(struct strbuf *out, const char *name, const char *value, size_t len)
{
	struct strbuf acl = strbuf_growing();

	if (!strncmp(name, "system.posix_acl_", strlen("system.posix_acl_")) &&
	    !pax_acl_text(&acl, (const uint8_t *)value, len))
		strbuf_add(out, strbuf_text(&acl));
	else
		tool_add_printable(out, value, len);
	strbuf_free(&acl);
}

static void xattr_print(void *ctx, const char *name, const char *value, ssize_t len)
{
	struct strbuf text = strbuf_growing();

	(void)ctx;
	tool_add_printable(&text, name, strlen(name));
	strbuf_add(&text, value ? "=\"" : ": ");
	if (value)
		value_add(&text, name, value, (size_t)len);
	strbuf_add(&text, value ? "\"" : strerror((int)-len));
	printf("   Xattr: %s\n", strbuf_text(&text));
	strbuf_free(&text);
}

static void print_time(const char *label, struct kiln_timespec t)
{
	char buf[80];
	struct strbuf text = strbuf_fixed(buf, sizeof(buf));

	listing_time(&text, t);
	printf("%s%s\n", label, buf);
}

static int print_text(kiln_fs *fs, const char *path, const struct kiln_stat *st)
{
	struct strbuf text = strbuf_growing();
	char mode[11];

	tool_add_printable(&text, path, strlen(path));
	if (S_ISLNK(st->mode)) {
		char target[PATH_MAX];
		ssize_t len = kiln_readlink(fs, st->node, target, sizeof(target));

		strbuf_add(&text, " -> ");
		tool_add_printable(&text, target, (size_t)max(len, (ssize_t)0));
	}
	printf("    File: %s\n", strbuf_text(&text));
	strbuf_free(&text);

	listing_mode(mode, st->mode);
	printf("    Size: %llu  Sectors: %llu  Block: %u  %s%s%s\n", (unsigned long long)st->size,
	       (unsigned long long)st->sectors, st->block_bytes, listing_type(st->mode),
	       st->is_subvol_root ? ", root of a subvolume" : "", st->is_readonly ? ", in a read-only snapshot" : "");
	printf("   Inode: %llu  Subvolume: %u  Links: %u  Generation: %u\n", (unsigned long long)st->node.ino,
	       st->node.subvol, st->nlink, st->generation);
	if (S_ISCHR(st->mode) || S_ISBLK(st->mode))
		printf("  Device: %u,%u\n", st->rdev_major, st->rdev_minor);
	printf("    Mode: (%04o/%s)  Uid: %u  Gid: %u\n", st->mode & 07777, mode, st->uid, st->gid);
	print_time("  Access: ", st->atime);
	print_time("  Modify: ", st->mtime);
	print_time("  Change: ", st->ctime);
	print_time("   Birth: ", st->btime);
	return for_each_xattr(fs, st->node, xattr_print, NULL);
}

static int add_json(kiln_fs *fs, const char *path, const struct kiln_stat *st, json_t *array)
{
	json_t *j = listing_stat_json(st), *xattrs = json_object();

	json_object_set_new(j, "path", tool_json_bytes(path, strlen(path)));
	if (S_ISLNK(st->mode)) {
		char target[PATH_MAX];
		ssize_t len = kiln_readlink(fs, st->node, target, sizeof(target));

		if (len >= 0)
			json_object_set_new(j, "target", tool_json_bytes(target, (size_t)len));
	}
	int err = for_each_xattr(fs, st->node, xattr_json, xattrs);
	json_object_set_new(j, "xattrs", xattrs);
	json_array_append_new(array, j);
	return err;
}

static int stat_run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS,
						 { "json", no_argument, NULL, TOOL_OPT_JSON },
						 { 0 } };
	struct tool_open open = tool_open_defaults();
	int c, status;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
		if (tool_open_option(self, c, &open, &status) < 0)
			return status;
	if (argc - optind < 2)
		return tool_usage_error(self, "needs a filesystem and at least one path");

	kiln_fs *fs = tool_open_fs(&open, argv[optind], FS_NAMESPACE);
	if (!fs)
		return TOOL_FAILED;

	json_t *array = open.is_json ? json_array() : NULL;
	status = TOOL_OK;
	for (int i = optind + 1; i < argc; i++) {
		struct kiln_stat st;
		int err = kiln_lookup_path(fs, argv[i], 0, &st);

		if (!err)
			err = array ? add_json(fs, argv[i], &st, array) : print_text(fs, argv[i], &st);
		if (err) {
			tool_error("%s: %s", argv[i], strerror(-err));
			status = err == -EIO && status != TOOL_FAILED ? TOOL_DAMAGE : TOOL_FAILED;
		}
	}
	if (array && tool_print_json(array) != TOOL_OK)
		status = TOOL_FAILED;
	return tool_close_fs(fs, status);
}

const struct command command_stat = {
	.name = "stat",
	.summary = "show everything about files",
	.usage = usage,
	.run = stat_run,
};
