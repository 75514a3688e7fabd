/*
 * kiln show-super: superblocks, decoded.
 *
 * Works on whatever can be found: members may be missing, the key locked, copies damaged (each bad copy is reported). A
 * single device shows its own superblock; several, the one that counts for the filesystem, the newest. --all shows that
 * of every device that was given or found.
 */
#include <stdlib.h>
#include <string.h>

#include "tool/mounted.h"
#include "tool/raw_text.h"
#include "tool/super_json.h"

static const char usage[] =
	"usage: kiln show-super [OPTIONS] FS\n"
	"\n"
	"Show the superblock: of a single device its own, of several the newest, which counts for the filesystem.\n"
	"Copies that are damaged or differ from each other are told on standard error. Times are UTC.\n"
	"FS may be mounted, and then may be given as the directory, too.\n"
	"\n"
	"  -f, --fields LIST       sections to show, separated by commas, or all (default: members_v2 and errors; "
	"with\n"
	"                          --json all)\n"
	"  --field-only NAME       one section, and nothing else\n"
	"  -l, --layout            where the copies are, too\n"
	"  -a, --all               the superblock of each device\n"
	"  --json                  a JSON object; with --all, an array of them\n" TOOL_OPEN_USAGE;

struct show_super {
	struct raw_output out;
	kiln_fs *fs;
	bool has_layout, is_all, is_json;
	uint32_t sections; /* mask by type; UINT32_MAX: unknown ones, too */
	int only;	   /* this section alone, -1: no */
	int status;
};

static const uint32_t sections_default = 1u << SB_MEMBERS_V2 | 1u << SB_ERRORS | 1u << SB_ERRORS_V2;

static int section_parse(const char *name, size_t len)
{
	for (unsigned type = 0; type < SB_SECTION_NR_KNOWN; type++)
		if (strlen(sb_section_name(type)) == len && !memcmp(sb_section_name(type), name, len))
			return (int)type;
	return -1;
}

/* "members_v2,errors" or "all"; false for unknown names. */
static bool sections_parse(const char *list, uint32_t *mask)
{
	*mask = 0;
	if (!strcmp(list, "all")) {
		*mask = UINT32_MAX;
		return true;
	}
	for (const char *name = list;; name++) {
		size_t len = strcspn(name, ",");
		int type = section_parse(name, len);

		if (type < 0)
			return false;
		*mask |= 1u << type;
		name += len;
		if (!*name)
			return true;
	}
}

static int usage_error_section(const struct command *self, const char *found)
{
	struct strbuf names = strbuf_growing();

	for (unsigned type = 0; type < SB_SECTION_NR_KNOWN; type++)
		strbuf_printf(&names, "%s%s", type ? ", " : "", sb_section_name(type));
	int status = tool_usage_error(self, "'%s' is no section; there are %s", found, strbuf_text(&names));
	strbuf_free(&names);
	return status;
}

static void show_text(struct show_super *s, const struct sb_disk *sb)
{
	if (s->only < 0) {
		sb_to_text(&s->out.text, sb, s->has_layout, s->sections);
	} else {
		const struct sb_section_disk *section = sb_section(sb, (unsigned)s->only);
		if (section)
			sb_section_to_text(&s->out.text, sb, section);
		else
			tool_error("this superblock has no section %s", sb_section_name((unsigned)s->only));
		s->status = section ? s->status : TOOL_FAILED;
	}
	raw_output_flush(&s->out);
}

static json_t *show_json(struct show_super *s, const struct sb_disk *sb, const char *device)
{
	json_t *j = super_json(sb, s->only < 0 ? s->sections : 1u << s->only);

	json_object_set_new(j, "device", tool_json_bytes(device, strlen(device)));
	return j;
}

/* The device whose superblock is to be shown, when one was named; else NULL. */
static const struct super_member *named_member(const struct super *super, const char *fs_arg)
{
	for (unsigned i = 0; i < super->member_nr; i++)
		if (super->members[i].dev && !strcmp(super->members[i].name, fs_arg))
			return &super->members[i];
	return NULL;
}

/* The member whose superblock is the master. */
static const struct super_member *master_member(const struct super *super)
{
	return &super->members[super->sb->dev_idx];
}

static void show_one(struct show_super *s, const char *fs_arg)
{
	const struct super_member *m = named_member(s->fs->super, fs_arg);
	const struct sb_disk *sb = m ? m->sb : s->fs->super->sb;

	if (s->is_json)
		raw_output_json(&s->out, show_json(s, sb, (m ? m : master_member(s->fs->super))->name), true);
	else
		show_text(s, sb);
}

static void show_all(struct show_super *s)
{
	json_t *array = s->is_json ? json_array() : NULL;
	bool is_first = true;

	for (unsigned i = 0; i < s->fs->super->member_nr && !raw_output_is_stopped(&s->out); i++) {
		const struct super_member *m = &s->fs->super->members[i];

		if (!m->dev)
			continue;
		if (array) {
			json_array_append_new(array, show_json(s, m->sb, m->name));
			continue;
		}
		strbuf_printf(&s->out.text, "%s==== device %u: ", is_first ? "" : "\n", i);
		tool_add_printable(&s->out.text, m->name, strlen(m->name));
		strbuf_add_char(&s->out.text, '\n');
		show_text(s, m->sb);
		is_first = false;
	}
	if (array)
		raw_output_json(&s->out, array, true);
}

/*
 * The devices of what is mounted, NULL when it isn't. A superblock is read while its server may write it: it is whole
 * or its checksum is wrong, and then another copy is read.
 */
static char *mounted_devices_at(const char *fs_arg)
{
	struct mounted *list;
	size_t nr = mounted_list(&list);
	const struct mounted *m = mounted_find(list, nr, fs_arg);
	char *devices = m ? strdup(m->source) : NULL;

	mounted_free(list, nr);
	return devices;
}

static int show_super_run(const struct command *self, int argc, char **argv)
{
	enum { OPT_FIELD_ONLY = TOOL_OPT_COMMAND };
	static const struct option options[] = { TOOL_OPEN_OPTIONS,
						 { "json", no_argument, NULL, TOOL_OPT_JSON },
						 { "fields", required_argument, NULL, 'f' },
						 { "field-only", required_argument, NULL, OPT_FIELD_ONLY },
						 { "layout", no_argument, NULL, 'l' },
						 { "all", no_argument, NULL, 'a' },
						 { 0 } };
	struct tool_open open = tool_open_defaults();
	struct show_super s = { .only = -1 };
	bool has_fields = false;
	const char *fs_arg;
	int c, status;

	while ((c = getopt_long(argc, argv, "f:la", options, NULL)) != -1) {
		if (tool_open_option(self, c, &open, &status) < 0)
			return status;
		s.has_layout |= c == 'l';
		s.is_all |= c == 'a';
		has_fields |= c == 'f';
		if (c == 'f' && !sections_parse(optarg, &s.sections))
			return usage_error_section(self, optarg);
		if (c == OPT_FIELD_ONLY && (s.only = section_parse(optarg, strlen(optarg))) < 0)
			return usage_error_section(self, optarg);
	}
	if (argc - optind != 1)
		return raw_usage_fs(self);

	s.is_json = open.is_json;
	if (!has_fields)
		s.sections = s.is_json ? UINT32_MAX : sections_default;
	raw_output_begin(&s.out);
	CLEANUP_FREE char *mounted = mounted_devices_at(argv[optind]);
	if (mounted) {
		open.flags |= KILN_OPEN_FORCE;
		open.is_quiet = true;
	}
	fs_arg = mounted && mounted_may_be_directory(argv[optind]) ? mounted : argv[optind];
	s.fs = tool_open_fs(&open, fs_arg, FS_SUPER);
	if (!s.fs)
		return raw_output_end(&s.out, TOOL_FAILED);
	if (s.is_all)
		show_all(&s);
	else
		show_one(&s, fs_arg);
	return tool_close_fs(s.fs, raw_output_end(&s.out, s.status));
}

const struct command command_show_super = {
	.name = "show-super",
	.summary = "show superblocks",
	.usage = usage,
	.run = show_super_run,
};
