/*
 * Mount points, from /proc/self/mountinfo (proc(5)). The source of a bcachefs mount is the list of its devices, with
 * colons, or what the mount was asked for by; it is compared by the files and devices that the names stand for.
 */
#include "tool/mounted.h"

#include <blkid.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "base/util.h"
#include "device/device.h"
#include "mount/mountinfo.h"
#include "tool/tool.h"

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

struct mount_line {
	const char *device, *root, *mount_point, *type, *source;
};

/* A line of mountinfo, changed by it. False: of another kind of filesystem. */
static bool line_parse(char *line, struct mount_line *mount)
{
	char *fields[5] = { 0 }, *rest = line;

	line[strcspn(line, "\n")] = 0;
	for (unsigned i = 0; i < 5 && rest; i++)
		fields[i] = strsep(&rest, " ");
	char *behind = rest ? strstr(rest, " - ") : NULL;
	if (!fields[4] || !behind)
		return false;
	behind += 3;
	char *type = strsep(&behind, " ");
	char *source = behind ? strsep(&behind, " ") : NULL;
	if (!source || !is_ours(type))
		return false;
	mountinfo_unescape(source);
	mountinfo_unescape(fields[4]);
	*mount = (struct mount_line){ fields[2], fields[3], fields[4], type, source };
	return true;
}

/* What @fn says of the first mount that it doesn't return NULL for. */
static char *mount_find(char *(*fn)(const struct mount_line *mount, const void *what), const void *what)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL, *found = NULL;
	struct mount_line mount;
	size_t size = 0;

	if (!f)
		return NULL;
	while (!found && getline(&line, &size, f) > 0)
		if (line_parse(line, &mount))
			found = fn(&mount, what);
	free(line);
	fclose(f);
	return found;
}

static char *mount_point_of(const struct mount_line *mount, const void *devices)
{
	return mounted_lists_meet(devices, mount->source) ? strdup(mount->mount_point) : NULL;
}

char *mounted_at(const char *fs_arg)
{
	CLEANUP_FREE char *device = strchr(fs_arg, '=') ? blkid_evaluate_spec(fs_arg, NULL) : NULL;

	return mount_find(mount_point_of, device ? device : fs_arg);
}

/* The servers of others aren't asked: one may not answer. */
static char *whole_at(const struct mount_line *mount, const void *devices)
{
	struct stat st;
	char device[sizeof("4294967295:4294967295")];

	if (strcmp(mount->type, "fuse.kiln") || strcmp(mount->root, "/") ||
	    !mounted_lists_meet(devices, mount->source) || mounted_is_dead(mount->mount_point) ||
	    stat(mount->mount_point, &st))
		return NULL;
	/* Something else may be mounted there since. */
	snprintf(device, sizeof(device), "%u:%u", major(st.st_dev), minor(st.st_dev));
	return strcmp(device, mount->device) ? NULL : strdup(mount->mount_point);
}

char *mounted_whole_at(const char *fs_arg)
{
	CLEANUP_FREE char *device = strchr(fs_arg, '=') ? blkid_evaluate_spec(fs_arg, NULL) : NULL;

	return mount_find(whole_at, device ? device : fs_arg);
}

static char *source_of(const struct mount_line *mount, const void *mount_point)
{
	return !strcmp(mount->mount_point, mount_point) ? strdup(mount->source) : NULL;
}

char *mounted_source(const char *directory)
{
	CLEANUP_FREE char *path = realpath(directory, NULL);

	return mount_find(source_of, path ? path : directory);
}

static char *itself(const struct mount_line *mount, const void *what)
{
	const struct mount_line *m = what;
	bool is_it = !strcmp(mount->mount_point, m->mount_point) && mounted_lists_meet(mount->source, m->source);

	return is_it ? strdup(mount->mount_point) : NULL;
}

bool mounted_is_at(const char *devices, const char *directory)
{
	CLEANUP_FREE char *found =
		mount_find(itself, &(struct mount_line){ .mount_point = directory, .source = devices });

	return found;
}

bool mounted_is_dead(const char *path)
{
	struct statfs st;

	/*
	 * What stat() tells the kernel remembers. The other errors are a moment's, of one whose requests came through
	 * io_uring.
	 */
	return statfs(path, &st) && (errno == ENOTCONN || errno == ECONNABORTED || errno == ECANCELED);
}

bool mounted_tell(const char *fs_arg)
{
	CLEANUP_FREE char *mount_point = mounted_at(fs_arg);
	struct strbuf at = strbuf_growing();

	if (!mount_point)
		return false;
	tool_add_printable(&at, mount_point, strlen(mount_point));
	tool_error("%s is mounted at %s%s `umount %s` first", fs_arg, strbuf_text(&at),
		   mounted_is_dead(mount_point) ? ", by a server that is gone:" : ": use it there, or",
		   strbuf_text(&at));
	strbuf_free(&at);
	return true;
}
