/* Mount option strings: "degraded,foreground_target=ssd,noacl" (10 §10). */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/strbuf.h"
#include "engine/fs.h"

/* Options of mount(8) itself and of fstab that mean nothing to the filesystem. */
static const char *const generic_options[] = {
	"defaults", "noatime",	  "relatime", "atime",	    "nodiratime", "diratime",	   "strictatime",
	"lazytime", "nolazytime", "dev",      "nodev",	    "suid",	  "nosuid",	   "exec",
	"noexec",   "auto",	  "noauto",   "user",	    "nouser",	  "users",	   "owner",
	"group",    "nofail",	  "_netdev",  "sync",	    "async",	  "mand",	   "nomand",
	"silent",   "loud",	  "iversion", "noiversion", "norelatime", "nostrictatime",
};

static bool is_generic(const char *name)
{
	for (size_t i = 0; i < ARRAY_NR(generic_options); i++)
		if (!strcmp(name, generic_options[i]))
			return true;
	return !strncmp(name, "x-", 2) || !strncmp(name, "X-", 2) || !strcmp(name, "comment");
}

/* What options of mount(8) are called here, and other short names. */
static const char *long_name(const char *name)
{
	static const char *const names[][2] = { { "quota", "usrquota" },
						{ "ro", "read_only" },
						{ "rw", "noread_only" } };

	for (size_t i = 0; i < ARRAY_NR(names); i++)
		if (!strcmp(name, names[i][0]))
			return names[i][1];
	return name;
}

/* What has nothing yet that does it. The other values of fix_errors repair nothing, either. */
static const char *missing_engine(enum option_id id, uint64_t value)
{
	switch ((unsigned)id) {
	case OPT_FSCK: return value ? "mounting doesn't check; kiln check does" : NULL;
	case OPT_FIX_ERRORS:
		return value == OPTION_FIX_ERRORS_YES || value == OPTION_FIX_ERRORS_ASK
			       ? "nothing can be repaired yet; kiln check says what is wrong"
			       : NULL;
	case OPT_RECONSTRUCT_ALLOC: return value ? "nothing can be repaired yet" : NULL;
	case OPT_NO_DATA_IO: return value ? "file data is always read and written" : NULL;
	default: return NULL;
	}
}

/* One "name", "noname" or "name=value"; @item is writable. */
static int option_apply(char *item, const struct super *s, uint64_t values[OPT_NR], bool is_set[OPT_NR],
			char why[KILN_ERROR_BYTES])
{
	char *equals = strchr(item, '=');
	const char *value = equals ? equals + 1 : NULL;
	if (equals)
		*equals = 0;

	const char *name = long_name(item);
	int id = option_id_parse(name);
	if (id < 0 && !value && !strncmp(name, "no", 2)) {
		id = option_id_parse(name + 2);
		value = "0";
		if (id >= 0 && option_table[id].type != OPTION_BOOL)
			id = -ENOENT;
	}
	if (id < 0 && is_generic(item))
		return 0;
	if (id < 0 || !(option_table[id].where & OPTION_MOUNT)) {
		snprintf(why, KILN_ERROR_BYTES,
			 "%s mount option '%.100s'; the manual pages kiln-mount(1) and kiln-options(7) list them",
			 id < 0 ? "unknown" : "not a", item);
		return -EINVAL;
	}

	char buf[256];
	struct strbuf reason = strbuf_fixed(buf, sizeof(buf));
	if (!s && option_table[id].type == OPTION_TARGET && value)
		return 0;
	if (s ? super_option_parse(s, (enum option_id)id, value, &values[id], &reason)
	      : option_parse((enum option_id)id, value, NULL, &values[id], &reason)) {
		snprintf(why, KILN_ERROR_BYTES, "mount option '%.100s': %s", item, buf);
		return -EINVAL;
	}
	const char *missing = missing_engine((enum option_id)id, values[id]);
	if (missing) {
		snprintf(why, KILN_ERROR_BYTES, "mount option '%.100s' is not supported: %s", item, missing);
		return -EOPNOTSUPP;
	}
	is_set[id] = true;
	return 0;
}

int mount_options_parse(const char *text, const struct super *s, uint64_t values[OPT_NR], bool is_set[OPT_NR],
			char why[KILN_ERROR_BYTES])
{
	CLEANUP_FREE char *copy = text ? strdup(text) : NULL;
	char *save = NULL;

	if (!text)
		return 0;
	if (!copy)
		return -ENOMEM;
	for (char *item = strtok_r(copy, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
		int err = option_apply(item, s, values, is_set, why);
		if (err)
			return err;
	}
	return 0;
}

const char *mount_options_forbid_writing(const uint64_t values[OPT_NR])
{
	static const enum option_id forbidding[] = { OPT_READ_ONLY, OPT_NOCHANGES, OPT_NORECOVERY };

	for (size_t i = 0; i < ARRAY_NR(forbidding); i++)
		if (values[forbidding[i]])
			return option_table[forbidding[i]].name;
	return NULL;
}
