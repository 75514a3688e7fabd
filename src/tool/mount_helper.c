/*
 * The tool as mount(8)'s helper: installed as mount.kiln and mount.fuse.kiln, it is called for entries of fstab with
 * the type "kiln" or "fuse.kiln", as
 *
 *	mount.kiln SOURCE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]
 *
 * and does what `kiln mount -o OPTIONS SOURCE DIRECTORY` does; or, with the option remount, has the kernel change what
 * is its own affair: read-only or not, and what may be done with devices, programs and setuid there; and the server
 * what is its: which reads change times of access. What is mounted already is shown at the other directory as well, by
 * the same server, as kernels do it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/util.h"
#include "tool/mount_control.h"
#include "tool/mounted.h"
#include "tool/tool.h"

bool tool_is_mount_helper(const char *program)
{
	const char *base = strrchr(program, '/');

	return !strncmp(base ? base + 1 : program, "mount.", 6);
}

/* --- remounting --- */

static bool has_word(const char *list, const char *word)
{
	size_t len = strlen(word);

	for (const char *at = list; at; at = strchr(at, ',')) {
		at += *at == ',';
		if (!strncmp(at, word, len) && (!at[len] || at[len] == ','))
			return true;
	}
	return false;
}

static const struct {
	const char *set, *clear;
	unsigned long told, flag; /* in statvfs(), and for mount() */
} remount_words[] = {
	{ "ro", "rw", ST_RDONLY, MS_RDONLY },		{ "nosuid", "suid", ST_NOSUID, MS_NOSUID },
	{ "nodev", "dev", ST_NODEV, MS_NODEV },		{ "noexec", "exec", ST_NOEXEC, MS_NOEXEC },
	{ "noatime", "atime", ST_NOATIME, MS_NOATIME }, { "nodiratime", "diratime", ST_NODIRATIME, MS_NODIRATIME },
	{ "relatime", "", ST_RELATIME, MS_RELATIME },
};

/* The flags as they are, and what @options, whose last word counts, changes about them. */
static int remount_flags(const char *directory, char *options, unsigned long *flags)
{
	struct statvfs st;
	char *save = NULL;

	if (statvfs(directory, &st))
		return -errno;
	*flags = MS_REMOUNT;
	for (size_t i = 0; i < ARRAY_NR(remount_words); i++)
		*flags |= st.f_flag & remount_words[i].told ? remount_words[i].flag : 0;
	for (char *word = strtok_r(options, ",", &save); word; word = strtok_r(NULL, ",", &save))
		for (size_t i = 0; i < ARRAY_NR(remount_words); i++) {
			if (!strcmp(word, remount_words[i].set))
				*flags |= remount_words[i].flag;
			else if (!strcmp(word, remount_words[i].clear))
				*flags &= ~remount_words[i].flag;
		}
	return 0;
}

/* One that serves read-only has opened the devices so. */
static bool can_server_write(const char *directory)
{
	json_t *replies = mount_control_ask(directory, "status");
	const json_t *server;
	bool can = false;
	size_t i;

	/* One that was unmounted lazily there may not have ended yet. */
	json_array_foreach(replies, i, server) can |=
		!json_is_true(json_object_get(server, "is_readonly")) &&
		!strcmp(json_string_value(json_object_get(server, "state")), "serving");
	json_decref(replies);
	return can;
}

/*
 * What is asked of times of access. Before the word "remount" mount(8) puts what the mount table has, which doesn't
 * know strictatime: of that only what differs from the table was asked for.
 */
struct remount_times {
	const char *atime; /* NULL: as it is */
	bool is_told_of_dirs, keeps_diratime;
};

static struct remount_times remount_times_of(const char *options, unsigned long table)
{
	static const char *const words[] = { "noatime", "relatime", "strictatime", "nodiratime", "diratime" };
	const bool is_as_table[] = { table & ST_NOATIME, table & ST_RELATIME, !(table & (ST_NOATIME | ST_RELATIME)),
				     table & ST_NODIRATIME, !(table & ST_NODIRATIME) };
	struct remount_times t = { 0 };
	bool is_asked = false;

	for (const char *at = options; *at; at += *at == ',') {
		size_t len = strcspn(at, ",");

		is_asked |= len == strlen("remount") && !strncmp(at, "remount", len);
		for (unsigned i = 0; i < ARRAY_NR(words); i++) {
			if (strncmp(at, words[i], len) || words[i][len] || (!is_asked && is_as_table[i]))
				continue;
			if (i < 3) {
				t.atime = words[i];
			} else {
				t.is_told_of_dirs = true;
				t.keeps_diratime = i == 3;
			}
		}
		at += len;
	}
	return t;
}

/* The last word counts, in the table too. */
static unsigned long atime_flags(const struct remount_times *t, unsigned long flags)
{
	if (!t->atime)
		return flags;
	flags &= ~(unsigned long)(MS_NOATIME | MS_RELATIME | MS_STRICTATIME);
	return flags | (!strcmp(t->atime, "noatime")	? MS_NOATIME
			: !strcmp(t->atime, "relatime") ? MS_RELATIME
							: MS_STRICTATIME);
}

/* Have the server keep to it. False after a message. */
static bool remount_times_tell(const char *directory, const struct remount_times *t)
{
	if (!t->atime && !t->is_told_of_dirs)
		return true;
	json_t *request = json_object();
	pid_t server;

	json_object_set_new(request, "command", json_string("remount"));
	if (t->atime)
		json_object_set_new(request, "atime", json_string(t->atime));
	if (t->is_told_of_dirs)
		json_object_set_new(request, "diratime", json_boolean(!t->keeps_diratime));
	bool is_found = mount_control_find(directory, &server) == MOUNT_CONTROL_FOUND;
	json_t *reply = is_found ? mount_control_request(server, request) : NULL;
	bool is_told = json_is_true(json_object_get(reply, "ok"));
	if (!is_told)
		tool_error("%s: its server doesn't answer, so times of access are kept as before: `kiln status %s`",
			   directory, directory);
	json_decref(reply);
	json_decref(request);
	return is_told;
}

static int remount(const char *directory, char *options)
{
	struct statvfs st;
	unsigned long flags = 0;

	int err = statvfs(directory, &st) ? -errno : 0;
	struct remount_times times = err ? (struct remount_times){ 0 } : remount_times_of(options, st.f_flag);
	if (!err)
		err = remount_flags(directory, options, &flags);
	flags = atime_flags(&times, flags);
	if (!err && !(flags & MS_RDONLY) && !can_server_write(directory)) {
		tool_error("%s is served read-only: unmount it, then mount it for writing", directory);
		return TOOL_FAILED;
	}
	if (!err && mount(NULL, directory, NULL, flags, NULL))
		err = -errno;
	if (err)
		tool_error("can't remount %s: %s", directory, strerror(-err));
	return err || !remount_times_tell(directory, &times) ? TOOL_FAILED : TOOL_OK;
}

/* --- a second place --- */

/* The mount at @at, once more at @directory. Of @options only those of the place count. */
static int show_at(const char *at, const char *directory, const char *options)
{
	static const struct {
		const char *word;
		uint64_t attr;
	} words[] = { { "ro", MOUNT_ATTR_RDONLY },
		      { "nosuid", MOUNT_ATTR_NOSUID },
		      { "nodev", MOUNT_ATTR_NODEV },
		      { "noexec", MOUNT_ATTR_NOEXEC } };
	struct mount_attr attr = { .propagation = MS_PRIVATE };

	for (size_t i = 0; i < ARRAY_NR(words); i++)
		*(has_word(options, words[i].word) ? &attr.attr_set : &attr.attr_clr) |= words[i].attr;
	int fd = open_tree(AT_FDCWD, at, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	bool is_shown = fd >= 0 && !mount_setattr(fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)) &&
			!move_mount(fd, "", AT_FDCWD, directory, MOVE_MOUNT_F_EMPTY_PATH);
	int err = is_shown ? 0 : errno;
	if (fd >= 0)
		close(fd);
	if (!err)
		return TOOL_OK;
	tool_error("can't show at %s what is mounted at %s: %s", directory, at, strerror(err));
	return TOOL_FAILED;
}

static int mount_again(const char *at, const char *directory, const char *options)
{
	if (!has_word(options, "ro") && !can_server_write(at)) {
		tool_error("it is served read-only at %s: unmount it there, then mount it for writing", at);
		return TOOL_FAILED;
	}
	return show_at(at, directory, options);
}

/* --- the command line --- */

/* Exit statuses of mount(8). */
static int helper_status(int status)
{
	enum { MOUNT_USAGE = 1, MOUNT_FAILED = 32 };

	return status == TOOL_OK ? 0 : status == TOOL_USAGE ? MOUNT_USAGE : MOUNT_FAILED;
}

int tool_mount_helper(int argc, char **argv)
{
	char title[] = "kiln mount", flag[] = "-o", none[] = "rw", separator[] = "--";
	char *options = none;
	bool is_fake = false;
	int c;

	/* -s: unknown options are the sloppy caller's affair; -n: mtab is no file any more; -v, -N, -t: nothing to do.
	 */
	while ((c = getopt(argc, argv, "sfnvN:o:t:")) != -1) {
		if (c == '?')
			return helper_status(TOOL_USAGE);
		if (c == 'o')
			options = optarg;
		is_fake |= c == 'f';
	}
	if (argc - optind != 2) {
		tool_error("as a helper of mount(8) it needs a filesystem and a directory");
		return helper_status(TOOL_USAGE);
	}
	if (is_fake)
		return TOOL_OK;
	if (has_word(options, "remount"))
		return helper_status(remount(argv[optind + 1], options));
	CLEANUP_FREE char *devices = mounted_devices(argv[optind]);
	CLEANUP_FREE char *directory = realpath(argv[optind + 1], NULL);
	CLEANUP_FREE char *at = devices ? mounted_whole_at(devices) : NULL;
	bool is_there = at && directory && mounted_is_at(devices, directory);
	if (at && directory && !is_there)
		return helper_status(mount_again(at, directory, options));
	/* What is named by its device `mount -a` sees itself in the mount table. */
	if (is_there && strcmp(devices, argv[optind]))
		return TOOL_OK;
	char *mount_argv[] = { title, flag, options, separator, argv[optind], argv[optind + 1], NULL };
	optind = 0;
	return helper_status(command_mount.run(&command_mount, ARRAY_NR(mount_argv) - 1, mount_argv));
}
