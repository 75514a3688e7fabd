/*
 * kiln set-option: change options that are stored in a filesystem.
 *
 * Only the superblocks are written, so it works on filesystems that weren't unmounted cleanly, too, and nothing is
 * recovered by it. All options are looked at before the first is stored; each is one update of the superblocks.
 */
#include <errno.h>
#include <string.h>

#include "base/strbuf.h"
#include "tool/tool.h"

static const char usage[] = "usage: kiln set-option [OPTIONS] FS NAME=VALUE...\n"
			    "\n"
			    "Change options that are stored in the filesystem; what files have of their own stays. "
			    "Targets are a member's device\n"
			    "as it is named in FS, or a label. `kiln show-super FS` shows what is stored, and\n"
			    "kiln-options(7) lists all options.\n"
			    "\n" TOOL_CHANGE_USAGE;

enum { SETTINGS_MAX = OPT_NR };

struct setting {
	enum option_id id;
	uint64_t value;
};

static int setting_parse(const struct command *self, const struct super *s, const char *arg, struct setting *setting)
{
	CLEANUP_FREE char *name = strdup(arg);
	char reason[256] = "";
	struct strbuf why = strbuf_fixed(reason, sizeof(reason));

	if (!name)
		return TOOL_FAILED;
	char *value = strchr(name, '=');
	if (value)
		*value++ = 0;
	for (char *p = name; *p; p++)
		*p = *p == '-' ? '_' : *p;

	int id = option_id_parse(name);
	if (id < 0)
		return tool_usage_error(self, "there is no option '%s'", name);
	if (!(option_table[id].where & OPTION_MOUNT))
		return tool_usage_error(self, "%s can't be changed once a filesystem is made", name);
	if (!option_is_stored((enum option_id)id))
		return tool_usage_error(self, "%s isn't stored in a filesystem: it is one of mounting", name);
	setting->id = (enum option_id)id;
	if (super_option_parse(s, setting->id, value, &setting->value, &why))
		return tool_usage_error(self, "%s: %s", arg, reason);
	if (super_option_unsupported(setting->id, setting->value, reason)) {
		tool_error("%s", reason);
		return TOOL_FAILED;
	}
	tool_option_warn(name, value);
	return TOOL_OK;
}

/* Copies that can't be made are no error: devices may be added, and until then as many are made as there can be. */
static void warn_of_replicas(struct super *s, enum option_id id, unsigned wanted)
{
	unsigned data_type = id == OPT_DATA_REPLICAS ? DATA_USER : DATA_BTREE, devices = 0, possible = 0;

	for (unsigned i = 0; i < s->member_nr; i++) {
		const struct member *m = &s->members[i].m;

		if (!m->exists || super_member_state(s, i) != MEMBER_RW || !(m->data_allowed >> data_type & 1))
			continue;
		devices++;
		possible += m->durability;
	}
	if (wanted > possible)
		tool_error("warning: %s: %u copies can't be made on %u device%s; until there are more, %u %s",
			   option_table[id].name, wanted, devices, devices == 1 ? "" : "s", possible,
			   possible == 1 ? "is" : "are");
}

static int settings_store(struct super *s, const struct setting *settings, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		int err = super_option_set(s, settings[i].id, settings[i].value);

		if (err) {
			tool_error("%s can't be stored: %s", option_table[settings[i].id].name, error_name(err));
			return TOOL_FAILED;
		}
		if (settings[i].id == OPT_NOCOW && settings[i].value && super_is_encrypted(s))
			tool_error("warning: with nocow the data of files is not encrypted");
		if (settings[i].id == OPT_COMPRESSION && settings[i].value)
			tool_compression_warn(s->options[OPT_ENCODED_EXTENT_MAX],
					      (uint64_t)s->kctx.block_sectors << SECTOR_SHIFT);
		if (settings[i].id == OPT_DATA_REPLICAS || settings[i].id == OPT_METADATA_REPLICAS)
			warn_of_replicas(s, settings[i].id, (unsigned)settings[i].value);
	}
	return TOOL_OK;
}

static int run_with(const struct command *self, struct tool_open *open, char **args, size_t nr)
{
	struct setting settings[SETTINGS_MAX];
	int status = TOOL_OK;

	if (nr < 2)
		return tool_usage_error(self, "name a filesystem, and options as NAME=VALUE");
	if (nr - 1 > SETTINGS_MAX)
		return tool_usage_error(self, "at most %u options at a time", SETTINGS_MAX);
	if (open->flags & KILN_OPEN_FORCE)
		return tool_usage_error(self, "what another process is using can't be changed, not even by force");

	open->flags |= KILN_OPEN_WRITE;
	kiln_fs *fs = tool_open_fs(open, args[0], FS_SUPER);
	if (!fs)
		return TOOL_FAILED;
	if (!SB_INITIALIZED(fs->super->sb)) {
		tool_error("%s isn't initialised: give the options when it is made", args[0]);
		status = TOOL_FAILED;
	}
	for (size_t i = 1; i < nr && !status; i++)
		status = setting_parse(self, fs->super, args[i], &settings[i - 1]);
	if (!status)
		status = settings_store(fs->super, settings, nr - 1);
	return tool_close_fs(fs, status);
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS, { 0 } };
	struct tool_open open = tool_open_defaults();
	int c, status;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
		if (tool_open_option(self, c, &open, &status) < 0)
			return status;
	return run_with(self, &open, argv + optind, (size_t)(argc - optind));
}

const struct command command_set_option = { "set-option", "change options stored in a filesystem", usage, run };
