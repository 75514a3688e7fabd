/*
 * Mount points, from /proc/self/mountinfo (proc(5)). The source of a bcachefs mount is the list of its devices, with
 * colons, or what the mount was asked for by; it is compared by the files and devices that the names stand for.
 */
#include "tool/mounted.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "device/device.h"
#include "device/scan.h"
#include "mount/mountinfo.h"
#include "tool/tool.h"

static void mounted_free_one(struct mounted *m);

static bool is_ours(const char *type)
{
	return !strcmp(type, "fuse.kiln") || !strcmp(type, "bcachefs") || !strcmp(type, "fuse.bcachefs") ||
	       !strcmp(type, "fuseblk.kiln");
}

bool mounted_lists_meet(const char *a, const char *b)
{
	CLEANUP_FREE char *a_copy = strdup(a);
	char *a_rest = a_copy, *a_name;

	if (!strcmp(a, b) || device_is_same(a, b))
		return true;
	while (a_rest && (a_name = strsep(&a_rest, ":"))) {
		CLEANUP_FREE char *b_copy = strdup(b);
		char *b_rest = b_copy, *b_name;

		while (b_rest && (b_name = strsep(&b_rest, ":")))
			if (device_is_same(a_name, b_name))
				return true;
	}
	return false;
}

/* --- the mount table --- */

/* A line of mountinfo, changed by it; what is in @mount is of the line. False: it isn't one. */
static bool line_parse(char *line, struct mounted *mount)
{
	char *fields[6] = { 0 }, *rest = line;

	line[strcspn(line, "\n")] = 0;
	for (unsigned i = 0; i < ARRAY_NR(fields) && rest; i++)
		fields[i] = strsep(&rest, " ");
	char *behind = rest ? strstr(rest, "- ") : NULL;
	if (!fields[5] || !behind)
		return false;
	behind += 2;
	char *type = strsep(&behind, " ");
	char *source = behind ? strsep(&behind, " ") : NULL;
	const char *user = behind ? strstr(behind, "user_id=") : NULL;
	const char *group = behind ? strstr(behind, "group_id=") : NULL;
	if (!source)
		return false;
	mountinfo_unescape(source);
	mountinfo_unescape(fields[4]);
	*mount = (struct mounted){ .mount_point = fields[4],
				   .source = source,
				   .device = fields[2],
				   .is_kiln = !strcmp(type, "fuse.kiln") || !strcmp(type, "fuseblk.kiln"),
				   .is_ours = is_ours(type),
				   .is_whole = !strcmp(fields[3], "/"),
				   .user = user ? (uid_t)strtoul(user + strlen("user_id="), NULL, 10) : 0,
				   .group = group ? (gid_t)strtoul(group + strlen("group_id="), NULL, 10) : 0 };
	return true;
}

/* A copy behind the @nr of @list. False when memory is short. */
static bool list_add(struct mounted **list, size_t nr, const struct mounted *mount)
{
	struct mounted *longer = reallocarray(*list, nr + 1, sizeof(*longer));

	if (!longer)
		return false;
	*list = longer;
	longer[nr] = *mount;
	longer[nr].mount_point = strdup(mount->mount_point);
	longer[nr].source = strdup(mount->source);
	longer[nr].device = strdup(mount->device);
	if (longer[nr].mount_point && longer[nr].source && longer[nr].device)
		return true;
	mounted_free_one(&longer[nr]);
	return false;
}

size_t mounted_list(struct mounted **list)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	struct mounted mount;
	char *line = NULL;
	size_t size = 0, nr = 0;

	*list = NULL;
	if (!f)
		return 0;
	while (getline(&line, &size, f) > 0)
		if (line_parse(line, &mount) && list_add(list, nr, &mount))
			nr++;
	free(line);
	fclose(f);
	return nr;
}

static void mounted_free_one(struct mounted *m)
{
	free(m->mount_point);
	free(m->source);
	free(m->device);
}

void mounted_free(struct mounted *list, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		mounted_free_one(&list[i]);
	free(list);
}

/* --- what is meant --- */

bool mounted_is_believed(const struct mounted *m)
{
	CLEANUP_FREE char *copy = strdup(m->source);
	char *rest = copy, *name;
	struct stat st;

	if (!m->user || m->user == geteuid())
		return true;
	while (rest && (name = strsep(&rest, ":")))
		if (stat(name, &st) || st.st_uid != m->user)
			return false;
	return copy;
}

char *mounted_devices(const char *fs_arg)
{
	struct strbuf list = strbuf_growing();
	struct device_paths paths;

	if (strncasecmp(fs_arg, "UUID=", strlen("UUID=")))
		return strdup(fs_arg);
	if (device_paths_parse((char *const *)&fs_arg, 1, &paths, NULL))
		return NULL;
	for (size_t i = 0; i < paths.nr; i++)
		strbuf_printf(&list, "%s%s", i ? ":" : "", paths.paths[i]);
	device_paths_free(&paths);
	char *text = strdup(strbuf_text(&list));
	strbuf_free(&list);
	return text;
}

/* Full path of @path, or, where a server doesn't answer any more, of what is above it and does. To be freed. */
static char *path_above(const char *path)
{
	CLEANUP_FREE char *rest = strdup(path);
	char *found = rest ? realpath(rest, NULL) : NULL;

	while (rest && !found && errno != ENOENT) {
		char *slash = strrchr(rest, '/');

		if (!slash)
			return realpath(".", NULL);
		slash[slash == rest] = 0;
		found = realpath(rest, NULL);
		if (slash == rest)
			break;
	}
	return found;
}

static bool is_in(const char *path, const char *directory)
{
	size_t len = strlen(directory);

	return !strncmp(path, directory, len) && (!path[len] || path[len] == '/' || len == 1);
}

bool mounted_may_be_directory(const char *path)
{
	struct statx st;

	/* It may be of a server that doesn't answer. */
	return statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE, &st) || S_ISDIR(st.stx_mode);
}

/* The mount that a directory is in; NULL when @path is none, or it isn't ours. */
static const struct mounted *mounted_above(const struct mounted *list, size_t nr, const char *path)
{
	CLEANUP_FREE char *above = path_above(path);
	const struct mounted *found = NULL;

	if (!above || !mounted_may_be_directory(path))
		return NULL;
	/* Of several at the same place the last one is seen. */
	for (size_t i = 0; i < nr; i++)
		if (is_in(above, list[i].mount_point) &&
		    (!found || strlen(list[i].mount_point) >= strlen(found->mount_point)))
			found = &list[i];
	return found && found->is_ours ? found : NULL;
}

static bool has_devices(const struct mounted *mount, const char *devices)
{
	return mount->is_ours && mounted_is_believed(mount) && mounted_lists_meet(devices, mount->source);
}

/* The first mount of the devices that @fs_arg names for which @fits is true, or NULL. */
static const struct mounted *find_by_devices(const struct mounted *list, size_t nr, const char *fs_arg,
					     bool (*fits)(const struct mounted *mount, const char *devices))
{
	CLEANUP_FREE char *devices = mounted_devices(fs_arg);

	for (size_t i = 0; i < nr && devices; i++)
		if (fits(&list[i], devices))
			return &list[i];
	return NULL;
}

static char *at_by_devices(const char *fs_arg, bool (*fits)(const struct mounted *mount, const char *devices))
{
	struct mounted *list;
	size_t nr = mounted_list(&list);
	const struct mounted *found = find_by_devices(list, nr, fs_arg, fits);
	char *at = found ? strdup(found->mount_point) : NULL;

	mounted_free(list, nr);
	return at;
}

const struct mounted *mounted_find(const struct mounted *list, size_t nr, const char *which)
{
	const struct mounted *found = find_by_devices(list, nr, which, has_devices);

	return found ? found : mounted_above(list, nr, which);
}

char *mounted_at(const char *fs_arg) { return at_by_devices(fs_arg, has_devices); }

/* The servers of others aren't asked: one may not answer. */
static bool is_whole_at(const struct mounted *mount, const char *devices)
{
	struct stat st;
	char device[sizeof("4294967295:4294967295")];

	if (!mount->is_kiln || !mount->is_whole || mount->user != geteuid() ||
	    !mounted_lists_meet(devices, mount->source) || mounted_is_dead(mount->mount_point) ||
	    stat(mount->mount_point, &st))
		return false;
	/* Something else may be mounted there since. */
	snprintf(device, sizeof(device), "%u:%u", major(st.st_dev), minor(st.st_dev));
	return !strcmp(device, mount->device);
}

char *mounted_whole_at(const char *fs_arg) { return at_by_devices(fs_arg, is_whole_at); }

bool mounted_is_at(const char *devices, const char *directory)
{
	struct mounted *list;
	size_t nr = mounted_list(&list);
	bool is_it = false;

	/* The last one there is what is seen. */
	for (size_t i = 0; i < nr; i++)
		if (!strcmp(list[i].mount_point, directory))
			is_it = list[i].is_ours && mounted_lists_meet(list[i].source, devices);
	mounted_free(list, nr);
	return is_it;
}

/* --- telling --- */

/* What stat() tells the kernel remembers. The other errors are a moment's, of one whose requests came through io_uring.
 */
static bool statfs_fails_as_dead(const char *path)
{
	struct statfs st;

	return statfs(path, &st) && (errno == ENOTCONN || errno == ECONNABORTED || errno == ECANCELED);
}

/* By a child, as one that lives may not answer. */
bool mounted_is_dead(const char *path)
{
	enum { PATIENCE_MS = 2000, LOOK_NS = 1000000 };
	pid_t child = fork();
	int status = 0;

	if (child < 0)
		return false;
	if (!child)
		_exit(statfs_fails_as_dead(path));
	for (unsigned i = 0; i < PATIENCE_MS; i++) {
		if (waitpid(child, &status, WNOHANG))
			return WIFEXITED(status) && WEXITSTATUS(status) == 1;
		sleep_ns(LOOK_NS);
	}
	/* Who waits for what a server has taken can't be killed, and is left to init. */
	kill(child, SIGKILL);
	waitpid(child, &status, WNOHANG);
	return false;
}

void mounted_tell_dead(const char *path)
{
	struct strbuf at = strbuf_growing();

	tool_add_printable(&at, path, strlen(path));
	tool_error(
		"%s is what is left of a mount whose server is gone: `umount %s` first; if it is in use, end who uses "
		"it (`fuser -m %s` tells), or `umount -l %s`",
		strbuf_text(&at), strbuf_text(&at), strbuf_text(&at), strbuf_text(&at));
	strbuf_free(&at);
}

bool mounted_tell(const char *fs_arg)
{
	CLEANUP_FREE char *mount_point = mounted_at(fs_arg);
	struct strbuf at = strbuf_growing();

	if (!mount_point)
		return false;
	tool_add_printable(&at, mount_point, strlen(mount_point));
	if (mounted_is_dead(mount_point))
		tool_error("%s is mounted at %s, by a server that is gone: `umount %s` first; if it is in use, end who "
			   "uses it (`fuser -m %s` tells), or `umount -l %s`",
			   fs_arg, strbuf_text(&at), strbuf_text(&at), strbuf_text(&at), strbuf_text(&at));
	else
		tool_error("%s is mounted at %s: use it there, or `umount %s` first", fs_arg, strbuf_text(&at),
			   strbuf_text(&at));
	strbuf_free(&at);
	return true;
}
