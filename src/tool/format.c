/*
 * kiln format: make a filesystem.
 *
 * Options of the filesystem come from the option table, so the command line is read with a table of long options that
 * is made from it, under the names that stand there and with dashes. Device options hold for all devices behind them.
 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/secret.h"
#include "base/strbuf.h"
#include "engine/format.h"
#include "format/alloc.h"
#include "super/super.h"
#include "tool/format_show.h"
#include "tool/mounted.h"
#include "tool/put.h"
#include "tool/tool.h"

static const char usage[] =
	"usage: kiln format [OPTIONS] [DEVICE OPTIONS] DEV [[DEVICE OPTIONS] DEV ...]\n"
	"\n"
	"Make a bcachefs filesystem on devices or image files. What they held is lost; where something is recognised, "
	"it is\n"
	"overwritten only with --force.\n"
	"\n"
	"  --source DIR            fill it with what is in the directory DIR\n"
	"  -L, --fs-label TEXT     label of the filesystem, up to 32 bytes\n"
	"  -U, --uuid UUID         what it is known by; else a random one\n"
	"  --replicas N            metadata_replicas and data_replicas together\n"
	"  --superblock-size SIZE  room for each superblock (default 1M)\n"
	"  --no-initialize         write superblocks only; the first mount makes the rest\n"
	"  --encrypted             encrypt data and metadata; a passphrase is asked for, twice\n"
	"  --passphrase-file FILE  take it from there (first line; - for standard input)\n"
	"  --passphrase-fd N       the same from an open file descriptor\n"
	"  --no-passphrase         none: the key stands in the superblock, until kiln-set-passphrase(1) changes that\n"
	"  -f, --force             format over what is on the devices: it is lost\n"
	"  -q, --quiet             don't print what was made\n"
	"  --json                  print it as JSON\n"
	"  --memory SIZE           budget for caches and buffers (default 256M, at least 32M)\n"
	"  --buffered              don't use direct I/O\n"
	"  --verbose               say more on standard error\n"
	"  --help                  this text\n"
	"\n"
	"Device options, for all devices behind them:\n"
	"  --size SIZE             make the image file, or let it grow to this size\n"
	"  --fs-size SIZE          use only that much of the device (for the next one only)\n"
	"  --bucket-size SIZE      default: chosen by the size of the devices\n"
	"  -l, --label PATH        label for targets: \"hdd\", or \"hdd.first\", which belongs to hdd\n"
	"  --durability N          how many copies one on it counts for: 0 (a cache), 1 (default), 2\n"
	"  --data-allowed LIST     journal, btree, user; default all\n"
	"  --discard               tell the device which space is free\n"
	"\n"
	"Options of the filesystem, more of which says kiln-options(7); a TARGET is a device named here, or a label:\n";

enum {
	OPTION_SOURCE = TOOL_OPT_COMMAND,
	OPTION_REPLICAS,
	OPTION_SUPERBLOCK_SIZE,
	OPTION_NO_INITIALIZE,
	OPTION_SIZE,
	OPTION_FS_SIZE,
	OPTION_BUCKET_SIZE,
	OPTION_DURABILITY,
	OPTION_DATA_ALLOWED,
	OPTION_DISCARD,
	OPTION_ENCRYPTED,
	OPTION_NO_PASSPHRASE,
	OPTION_VERSION,
	OPTION_TABLE_FIRST, /* and the option's id */
	DEVICES_MAX = 64,
	LONG_OPTIONS_MAX = 40 + 2 * OPT_NR,
	NAME_BYTES = 40,
};

static const struct option own_options[] = {
	{ "source", required_argument, NULL, OPTION_SOURCE },
	{ "fs_label", required_argument, NULL, 'L' },
	{ "uuid", required_argument, NULL, 'U' },
	{ "replicas", required_argument, NULL, OPTION_REPLICAS },
	{ "superblock_size", required_argument, NULL, OPTION_SUPERBLOCK_SIZE },
	{ "no_initialize", no_argument, NULL, OPTION_NO_INITIALIZE },
	{ "force", no_argument, NULL, 'f' },
	{ "quiet", no_argument, NULL, 'q' },
	{ "json", no_argument, NULL, TOOL_OPT_JSON },
	{ "memory", required_argument, NULL, TOOL_OPT_MEMORY },
	{ "buffered", no_argument, NULL, TOOL_OPT_BUFFERED },
	{ "verbose", no_argument, NULL, TOOL_OPT_VERBOSE },
	{ "help", no_argument, NULL, TOOL_OPT_HELP },
	{ "size", required_argument, NULL, OPTION_SIZE },
	{ "fs_size", required_argument, NULL, OPTION_FS_SIZE },
	{ "bucket_size", required_argument, NULL, OPTION_BUCKET_SIZE },
	{ "bucket", required_argument, NULL, OPTION_BUCKET_SIZE },
	{ "label", required_argument, NULL, 'l' },
	{ "durability", required_argument, NULL, OPTION_DURABILITY },
	{ "data_allowed", required_argument, NULL, OPTION_DATA_ALLOWED },
	{ "discard", no_argument, NULL, OPTION_DISCARD },
	{ "encrypted", no_argument, NULL, OPTION_ENCRYPTED },
	{ "no_passphrase", no_argument, NULL, OPTION_NO_PASSPHRASE },
	{ "passphrase_file", required_argument, NULL, TOOL_OPT_PASSPHRASE_FILE },
	{ "passphrase_fd", required_argument, NULL, TOOL_OPT_PASSPHRASE_FD },
	{ "version", required_argument, NULL, OPTION_VERSION },
};

struct args {
	const struct command *self;
	struct tool_open open;
	struct kiln_format_options opts;
	struct kiln_format_device devices[DEVICES_MAX];
	size_t nr;
	struct kiln_format_device next; /* what the next device will be */
	bool has_device_options;	/* given since the last device */
	struct strbuf options;		/* "name=value,..." */
	uint8_t uuid[16];
	const char *source;
	bool is_quiet, has_no_passphrase, is_nocow, is_compressed;
	uint64_t block_bytes, encoded_bytes_max;
	/* getopt's table, and the names with dashes in it. */
	struct option table[LONG_OPTIONS_MAX];
	char names[LONG_OPTIONS_MAX][NAME_BYTES];
};

/* --- the table of options --- */

/* Under its name, and with dashes instead of underscores if there are any. */
static void table_add(struct args *a, size_t *nr, struct option o)
{
	a->table[(*nr)++] = o;
	if (!strchr(o.name, '_'))
		return;
	char *name = a->names[*nr];
	snprintf(name, NAME_BYTES, "%s", o.name);
	for (char *p = name; *p; p++)
		*p = *p == '_' ? '-' : *p;
	o.name = name;
	a->table[(*nr)++] = o;
}

static void table_make(struct args *a)
{
	size_t nr = 0;

	for (size_t i = 0; i < ARRAY_NR(own_options); i++)
		table_add(a, &nr, own_options[i]);
	for (unsigned id = 0; id < OPT_NR; id++)
		if (option_table[id].where & OPTION_FORMAT)
			table_add(a, &nr,
				  (struct option){ option_table[id].name,
						   option_table[id].type == OPTION_BOOL ? optional_argument
											: required_argument,
						   NULL, OPTION_TABLE_FIRST + (int)id });
	a->table[nr] = (struct option){ 0 };
}

/* What can't be had yet is left out, though its refusal says why. */
static void print_help(void)
{
	enum { HELP_COLUMN = 38 };

	fputs(usage, stdout);
	for (unsigned id = 0; id < OPT_NR; id++) {
		const struct option_def *o = &option_table[id];
		char text[512], why[256];
		struct strbuf line = strbuf_fixed(text, sizeof(text));

		if (!(o->where & OPTION_FORMAT) || super_option_unsupported(id, 1, why))
			continue;
		strbuf_printf(&line, "  --%s%s", o->name, o->type == OPTION_BOOL ? "[=" : "=");
		for (char *p = text; *p; p++)
			*p = *p == '_' ? '-' : *p;
		option_values_to_text(&line, id);
		strbuf_add(&line, o->type == OPTION_BOOL ? "]" : "");
		if (line.len >= HELP_COLUMN)
			strbuf_printf(&line, "\n%*s", HELP_COLUMN, "");
		else
			strbuf_printf(&line, "%*s", HELP_COLUMN - (int)line.len, "");
		strbuf_add(&line, o->help);
		if (o->initial) {
			strbuf_add(&line, " (default ");
			option_default_to_text(&line, id);
			strbuf_add_char(&line, ')');
		}
		puts(text);
	}
}

/* --- single options --- */

static int uuid_parse(const char *text, uint8_t uuid[16])
{
	static const char form[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
	unsigned nibbles = 0;

	if (strlen(text) != sizeof(form) - 1)
		return -EINVAL;
	for (size_t i = 0; form[i]; i++) {
		if (form[i] == '-' ? text[i] != '-' : !isxdigit((unsigned char)text[i]))
			return -EINVAL;
		if (form[i] == '-')
			continue;
		unsigned digit =
			(unsigned)(isdigit((unsigned char)text[i]) ? text[i] - '0' : (text[i] | 0x20) - 'a' + 10);
		uuid[nibbles / 2] = (uint8_t)(nibbles % 2 ? uuid[nibbles / 2] << 4 | digit : digit);
		nibbles++;
	}
	return 0;
}

static int size_option(struct args *a, const char *name, uint64_t *bytes)
{
	if (!tool_parse_size(optarg, bytes) && *bytes)
		return 0;
	return tool_usage_error(a->self, "--%s takes a size, not '%s'", name, optarg);
}

static int data_allowed_option(struct args *a)
{
	static const unsigned types[] = { DATA_JOURNAL, DATA_BTREE, DATA_USER };

	a->next.data_allowed = 0;
	for (const char *p = optarg; *p;) {
		size_t len = strcspn(p, ","), i = 0;

		while (i < ARRAY_NR(types) &&
		       (strlen(data_type_name(types[i])) != len || memcmp(data_type_name(types[i]), p, len)))
			i++;
		if (i == ARRAY_NR(types))
			return tool_usage_error(a->self, "--data-allowed takes journal, btree and user, not '%s'",
						optarg);
		a->next.data_allowed |= 1u << types[i];
		p += len + (p[len] == ',');
	}
	if (!a->next.data_allowed)
		return tool_usage_error(a->self, "--data-allowed needs at least one of journal, btree and user");
	return 0;
}

static int durability_option(struct args *a)
{
	if (strlen(optarg) != 1 || *optarg < '0' || *optarg > '2')
		return tool_usage_error(a->self, "--durability is 0, 1 or 2, not '%s'", optarg);
	a->next.durability = (unsigned)(*optarg - '0');
	a->next.flags &= ~(unsigned)KILN_FORMAT_CACHE;
	if (!a->next.durability)
		a->next.flags |= KILN_FORMAT_CACHE;
	return 0;
}

/* Looked at here, so that a mistake is one of usage; targets are known only when all devices are. */
static int table_option(struct args *a, enum option_id id, const char *value)
{
	const struct option_def *o = &option_table[id];
	char reason[256] = "";
	struct strbuf text = strbuf_fixed(reason, sizeof(reason));
	uint64_t v;

	if (o->type != OPTION_TARGET) {
		if (option_parse(id, value, NULL, &v, &text))
			return tool_usage_error(a->self, "--%s=%s: %s", o->name, value ? value : "", reason);
		if (super_option_unsupported(id, v, reason)) {
			tool_error("%s", reason);
			return TOOL_FAILED;
		}
		a->is_nocow = id == OPT_NOCOW ? v : a->is_nocow;
		a->is_compressed = id == OPT_COMPRESSION ? v : a->is_compressed;
		a->block_bytes = id == OPT_BLOCK_SIZE ? v : a->block_bytes;
		a->encoded_bytes_max = id == OPT_ENCODED_EXTENT_MAX ? v : a->encoded_bytes_max;
	} else if (strchr(value, ',')) {
		return tool_usage_error(a->self, "--%s: a target with a comma can't be named", o->name);
	}
	strbuf_printf(&a->options, "%s%s", a->options.len ? "," : "", o->name);
	if (value)
		strbuf_printf(&a->options, "=%s", value);
	tool_option_warn(o->name, value);
	return 0;
}

static int replicas_option(struct args *a)
{
	int status = table_option(a, OPT_METADATA_REPLICAS, optarg);

	return status ? status : table_option(a, OPT_DATA_REPLICAS, optarg);
}

static int device_arg(struct args *a, const char *path)
{
	if (a->nr == DEVICES_MAX)
		return tool_usage_error(a->self, "at most %u devices are possible", DEVICES_MAX);
	a->next.path = path;
	a->devices[a->nr++] = a->next;
	a->next.size_bytes = 0;
	a->has_device_options = false;
	return 0;
}

/* Options that belong to the devices behind them; -1: none of these. */
static int device_option(struct args *a, int c)
{
	int status = 0;

	switch (c) {
	case OPTION_SIZE: status = size_option(a, "size", &a->next.file_bytes); break;
	case OPTION_FS_SIZE: status = size_option(a, "fs-size", &a->next.size_bytes); break;
	case OPTION_BUCKET_SIZE: status = size_option(a, "bucket-size", &a->next.bucket_bytes); break;
	case OPTION_DURABILITY: status = durability_option(a); break;
	case OPTION_DATA_ALLOWED: status = data_allowed_option(a); break;
	case OPTION_DISCARD: a->next.flags |= KILN_FORMAT_DISCARD; break;
	case 'l': a->next.label = strcmp(optarg, "none") ? optarg : NULL; break;
	default: return -1;
	}
	a->has_device_options = true;
	return status;
}

static int fs_option(struct args *a, int c)
{
	switch (c) {
	case OPTION_SOURCE: a->source = optarg; return 0;
	case OPTION_REPLICAS: return replicas_option(a);
	case OPTION_SUPERBLOCK_SIZE: return size_option(a, "superblock-size", &a->opts.superblock_bytes);
	case OPTION_NO_INITIALIZE: a->opts.flags |= KILN_FORMAT_NO_INITIALIZE; return 0;
	case 'f': a->opts.flags |= KILN_FORMAT_FORCE; return 0;
	case 'q': a->is_quiet = true; return 0;
	case 'L': a->opts.label = optarg; return 0;
	case 'U':
		if (uuid_parse(optarg, a->uuid))
			return tool_usage_error(a->self, "'%s' is no UUID", optarg);
		a->opts.uuid = a->uuid;
		return 0;
	case OPTION_ENCRYPTED: a->opts.flags |= KILN_FORMAT_ENCRYPTED; return 0;
	case OPTION_NO_PASSPHRASE: a->has_no_passphrase = true; return 0;
	case OPTION_VERSION:
		if (!strcmp(optarg, "1.4") || !strcmp(optarg, "1028"))
			return 0;
		tool_error("--version=%s: filesystems are made in format version 1.4 only", optarg);
		return TOOL_FAILED;
	default: return -1;
	}
}

/* --- the command line --- */

static int arg_handle(struct args *a, int c)
{
	int status;

	if (c == 1)
		return device_arg(a, optarg);
	if (c == 'h' || c == TOOL_OPT_HELP) {
		print_help();
		exit(TOOL_OK);
	}
	if (c >= OPTION_TABLE_FIRST)
		return table_option(a, (enum option_id)(c - OPTION_TABLE_FIRST), optarg);
	status = device_option(a, c);
	if (status < 0)
		status = fs_option(a, c);
	if (status >= 0)
		return status;
	return tool_open_option(a->self, c, &a->open, &status) > 0 ? TOOL_OK : status;
}

static int args_parse(struct args *a, int argc, char **argv)
{
	int c, status = 0;

	table_make(a);
	optind = 1;
	while (!status && (c = getopt_long(argc, argv, "-fqhL:U:l:", a->table, NULL)) != -1)
		status = arg_handle(a, c);
	for (int i = optind; i < argc && !status; i++) /* behind "--" */
		status = device_arg(a, argv[i]);
	if (status)
		return status;
	if (!a->nr)
		return tool_usage_error(a->self, "name at least one device");
	if (a->has_device_options)
		return tool_usage_error(a->self,
					"a device option stands behind the last device, where it says nothing");
	if (a->source && a->opts.flags & KILN_FORMAT_NO_INITIALIZE)
		return tool_usage_error(a->self, "--source and --no-initialize contradict each other");
	bool has_passphrase = passphrase_source_is_given(&a->open.passphrase);
	if (has_passphrase && a->has_no_passphrase)
		return tool_usage_error(a->self, "a passphrase and --no-passphrase contradict each other");
	if ((has_passphrase || a->has_no_passphrase) && !(a->opts.flags & KILN_FORMAT_ENCRYPTED))
		return tool_usage_error(a->self, "passphrases are for --encrypted");
	if (a->is_nocow && a->opts.flags & KILN_FORMAT_ENCRYPTED)
		tool_error("warning: with nocow the data of files is not encrypted");
	if (a->is_compressed)
		tool_compression_warn(a->encoded_bytes_max, a->block_bytes);
	return 0;
}

/* --- the work --- */

static int show(struct args *a)
{
	const char *paths[DEVICES_MAX];
	char why[KILN_ERROR_BYTES];
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = KILN_OPEN_NO_SCAN };
	kiln_fs *fs;
	int status = TOOL_OK;

	for (size_t i = 0; i < a->nr; i++)
		paths[i] = a->devices[i].path;
	if (fs_open(paths, a->nr, NULL, 0, &options, FS_SUPER, &fs, why)) {
		tool_error("the filesystem was made, but can't be looked at: %s", why);
		return TOOL_FAILED;
	}
	if (a->open.is_json)
		status = tool_print_json(format_json(fs));
	else
		format_show(fs);
	kiln_close(fs);
	return status;
}

/* Whoever isn't root mounts it for themselves: what is root's they couldn't use. */
static int own(kiln_fs *fs)
{
	struct kiln_setattr attr = { .fields = KILN_SET_UID | KILN_SET_GID, .uid = geteuid(), .gid = getegid() };
	int err = kiln_setattr(fs, kiln_root(fs), &attr, NULL);

	if (err)
		tool_error("the root directory couldn't be made yours: %s", strerror(-err));
	return err ? TOOL_FAILED : TOOL_OK;
}

/* It may be so small that what is kept free leaves nothing for files. */
static void warn_full(const struct args *a)
{
	const char *paths[DEVICES_MAX];
	char why[KILN_ERROR_BYTES];
	struct kiln_open_options options = { .struct_bytes = sizeof(options), .flags = KILN_OPEN_NO_SCAN };
	struct kiln_usage u;
	kiln_fs *fs;

	for (size_t i = 0; i < a->nr; i++)
		paths[i] = a->devices[i].path;
	if (fs_open(paths, a->nr, NULL, 0, &options, FS_BTREES, &fs, why))
		return;
	if (!kiln_usage(fs, &u) && u.is_known && !u.available)
		tool_error(
			"warning: no file can be written to it: it is so small that metadata, and what is kept free to "
			"move data, take all of it. Make it larger, or its buckets smaller (--bucket-size)");
	kiln_close(fs);
}

/* What `kiln put -r SOURCE/. /` does, on the filesystem that kiln_format() leaves open. */
static int import_source(struct args *a, kiln_fs *fs)
{
	struct put_import p = { .has_progress = !a->is_quiet,
				/* There is nothing but lost+found, and no option that asks for it. */
				.options = { .is_recursive = true, .keeps_owner = true, .overwrite = true } };
	int status = TOOL_FAILED;

	if (put_import_start(&p, fs, "format")) {
		import_path(p.x, a->source, kiln_root(fs), "");
		json_decref(put_import_end(&p, a->open.is_verbose));
		status = p.has_failed ? TOOL_FAILED : TOOL_OK;
	}
	return status;
}

/* What is to be in it from the start; then it is closed. */
static int fill(struct args *a, kiln_fs *fs)
{
	tool_catch_signals();
	int status = geteuid() ? own(fs) : TOOL_OK;
	if (!status && a->source)
		status = import_source(a, fs);
	int err = kiln_shutdown(fs);
	if (err) {
		tool_error("the new filesystem could not be closed cleanly: %s", strerror(-err));
		status = TOOL_FAILED;
	}
	kiln_close(fs);
	return status;
}

static int failed(const struct args *a, int err, const char *why)
{
	bool is_told = false;

	for (size_t i = 0; err == -EBUSY && i < a->nr; i++)
		is_told |= mounted_tell(a->devices[i].path);
	if (!is_told)
		tool_error("%s%s", why, err == -EEXIST ? "; --force formats over it, and what it holds is lost" : "");
	return TOOL_FAILED;
}

/* As others do, who open it, when its last server is still writing back. */
static int make(struct args *a, kiln_fs **fs, char why[KILN_ERROR_BYTES])
{
	struct strbuf list = strbuf_growing();
	struct tool_ending ending = { 0 };
	int err;

	for (size_t i = 0; i < a->nr; i++)
		strbuf_printf(&list, "%s%s", i ? ":" : "", a->devices[i].path);
	do {
		err = kiln_format(a->devices, a->nr, &a->opts, fs, why);
	} while (err == -EBUSY && tool_wait_ending(strbuf_text(&list), &ending));
	strbuf_free(&list);
	return err;
}

static int run_with(struct args *a)
{
	char why[KILN_ERROR_BYTES];

	bool must_fill = a->source || (geteuid() && !(a->opts.flags & KILN_FORMAT_NO_INITIALIZE));
	kiln_fs *fs = NULL;
	struct stat st;

	if (a->source && (stat(a->source, &st) || !S_ISDIR(st.st_mode))) {
		tool_error("%s: %s", a->source, strerror(stat(a->source, &st) ? errno : ENOTDIR));
		return TOOL_FAILED;
	}
	a->opts.options = strbuf_text(&a->options);
	a->opts.memory_bytes = a->open.memory_bytes;
	a->opts.flags |= a->open.flags & KILN_OPEN_BUFFERED ? KILN_FORMAT_BUFFERED : 0;
	a->opts.ctx = &a->open;
	a->opts.log = tool_print_log;
	a->opts.log_level = a->open.is_verbose ? KILN_LOG_INFO : KILN_LOG_WARNING;
	a->opts.report = tool_print_report;
	/* Nobody is asked for a passphrase in vain. */
	char *passphrase = NULL;
	int err = fs_format_look(a->devices, a->nr, a->opts.flags & KILN_FORMAT_FORCE, why);
	if (!err && a->opts.flags & KILN_FORMAT_ENCRYPTED && !a->has_no_passphrase) {
		passphrase = passphrase_new(&a->open.passphrase, "--passphrase", &a->opts.passphrase_bytes);
		if (!passphrase)
			return TOOL_FAILED;
		a->opts.passphrase = passphrase;
	}
	if (!err)
		err = make(a, must_fill ? &fs : NULL, why);
	secret_free(passphrase);
	if (err)
		return failed(a, err, why);
	int status = must_fill ? fill(a, fs) : TOOL_OK;
	if (status && a->source)
		tool_error("the filesystem was made, but doesn't hold all of %s", a->source);
	if (!status && !(a->opts.flags & (KILN_FORMAT_ENCRYPTED | KILN_FORMAT_NO_INITIALIZE)))
		warn_full(a);
	return status || a->is_quiet ? status : show(a);
}

static int run(const struct command *self, int argc, char **argv)
{
	struct args *a = calloc(1, sizeof(*a));

	if (!a) {
		tool_error("out of memory");
		return TOOL_FAILED;
	}
	a->self = self;
	a->open = tool_open_defaults();
	a->opts.struct_bytes = sizeof(a->opts);
	a->opts.device_struct_bytes = sizeof(a->devices[0]);
	a->options = strbuf_growing();
	a->block_bytes = option_table[OPT_BLOCK_SIZE].initial;
	a->encoded_bytes_max = option_table[OPT_ENCODED_EXTENT_MAX].initial;
	int status = args_parse(a, argc, argv);
	if (!status)
		status = run_with(a);
	strbuf_free(&a->options);
	free(a);
	return status;
}

const struct command command_format = { "format", "make a filesystem", usage, run };
