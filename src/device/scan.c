/*
 * Which devices a command line means, and which block devices belong to a filesystem.
 *
 * The scan reads the first bytes of the primary superblock of every block device, only enough to see magic and UUIDs:
 * whether the superblock is any good is for whoever opens it. Devices that others are built upon (the paths of a
 * multipath device, the legs of a mirror) are passed over, since what is on them belongs to the device on top.
 */
#include "device/scan.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "base/util.h"
#include "format/superblock.h"

/* In any case: mount(8) takes the one in capitals for its own, and looks for it with a library that may not know us. */
static const char UUID_PREFIX[] = "UUID=";
enum { UUID_BYTES = 16, UUID_PREFIX_LEN = sizeof(UUID_PREFIX) - 1 };

static int paths_add(struct device_paths *p, const char *path, size_t len);
static int paths_add_list(struct device_paths *p, const char *list);
static size_t list_item_len(const char *list);
static int paths_add_uuid(struct device_paths *p, const char *text, struct strbuf *why);
static bool uuid_parse(const char *text, uint8_t uuid[UUID_BYTES]);
static int scan(const uint8_t uuid[UUID_BYTES], bool external_only, struct device_paths *out);
static bool block_device_has_uuid(const char *path, dev_t number, const uint8_t uuid[UUID_BYTES], bool external_only);
static bool block_device_is_held(const char *name);

void device_paths_free(struct device_paths *p)
{
	for (size_t i = 0; i < p->nr; i++)
		free(p->paths[i]);
	free(p->paths);
	*p = (struct device_paths){ 0 };
}

int device_paths_parse(char *const *args, size_t nr, struct device_paths *out, char why[256])
{
	char ignored[256];
	struct strbuf reason = strbuf_fixed(why ? why : ignored, sizeof(ignored));
	int err = 0;

	*out = (struct device_paths){ 0 };
	for (size_t i = 0; i < nr && !err; i++) {
		bool is_uuid = !strncasecmp(args[i], UUID_PREFIX, UUID_PREFIX_LEN);

		if (is_uuid)
			err = paths_add_uuid(out, args[i] + UUID_PREFIX_LEN, &reason);
		else
			err = paths_add_list(out, args[i]);
	}
	if (!err && !out->nr) {
		strbuf_add(&reason, "No device is named. Name one, or several separated by colons, or UUID=...");
		err = -EINVAL;
	}
	if (err == -ENOMEM)
		strbuf_add(&reason, "Out of memory.");
	if (err)
		device_paths_free(out);
	return err;
}

int device_scan_uuid(const uint8_t uuid[UUID_BYTES], struct device_paths *out)
{
	*out = (struct device_paths){ 0 };
	int err = scan(uuid, false, out);
	if (err)
		device_paths_free(out);
	return err;
}

static int paths_add(struct device_paths *p, const char *path, size_t len)
{
	char **paths = reallocarray(p->paths, p->nr + 1, sizeof(*paths));

	if (!paths)
		return -ENOMEM;
	p->paths = paths;
	paths[p->nr] = strndup(path, len);
	if (!paths[p->nr])
		return -ENOMEM;
	p->nr++;
	return 0;
}

/* Empty parts are ignored. */
static int paths_add_list(struct device_paths *p, const char *list)
{
	int err = 0;

	while (*list && !err) {
		size_t len = list_item_len(list);

		if (len)
			err = paths_add(p, list, len);
		list += len;
		if (*list == ':')
			list++;
	}
	return err;
}

/* Up to a colon, so chosen that the name is the longest that exists; if none does, the first colon. */
static size_t list_item_len(const char *list)
{
	size_t longest = 0;
	char *name = strdup(list);

	for (size_t end = name ? strlen(name) : 0; end && !longest; end--) {
		struct stat st;

		if (list[end] != 0 && list[end] != ':')
			continue;
		name[end] = 0;
		if (!stat(name, &st))
			longest = end;
	}
	free(name);
	return longest ? longest : strcspn(list, ":");
}

static int paths_add_uuid(struct device_paths *p, const char *text, struct strbuf *why)
{
	uint8_t uuid[UUID_BYTES];
	size_t nr_before = p->nr;

	if (!uuid_parse(text, uuid)) {
		strbuf_add(why, "\"");
		strbuf_add_escaped(why, text, strnlen(text, 64));
		strbuf_add(why, "\" is not a UUID: 32 hexadecimal digits, as 8-4-4-4-12.");
		return -EINVAL;
	}
	int err = scan(uuid, true, p);
	if (!err && p->nr == nr_before) {
		strbuf_add(why, "No block device holds a filesystem with UUID ");
		strbuf_add_uuid(why, uuid);
		strbuf_add(why, geteuid() ? ". Reading block devices needs privileges that this user may lack." : ".");
		err = -ENOENT;
	}
	return err;
}

static bool uuid_parse(const char *text, uint8_t uuid[UUID_BYTES])
{
	static const char digits[] = "0123456789abcdef";
	static const char form[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
	unsigned nibble_nr = 0;

	if (strlen(text) != sizeof(form) - 1)
		return false;
	memset(uuid, 0, UUID_BYTES);
	for (size_t i = 0; form[i]; i++) {
		const char *digit = strchr(digits, tolower((unsigned char)text[i]));

		if (form[i] == '-' && text[i] == '-')
			continue;
		if (form[i] == '-' || !digit)
			return false;
		uuid[nibble_nr / 2] |= (uint8_t)((digit - digits) << (nibble_nr % 2 ? 0 : 4));
		nibble_nr++;
	}
	return true;
}

/* Adds to @out. */
static int scan(const uint8_t uuid[UUID_BYTES], bool external_only, struct device_paths *out)
{
	FILE *partitions = fopen("/proc/partitions", "re");
	char line[512];
	int err = 0;

	if (!partitions)
		return 0; /* no /proc: no block device can be found */
	while (!err && fgets(line, sizeof(line), partitions)) {
		unsigned dev_major, dev_minor;
		char name[256], path[272];

		if (sscanf(line, "%u %u %*u %255s", &dev_major, &dev_minor, name) != 3)
			continue;
		bool is_held = block_device_is_held(name);
		/* The kernel writes ! for a slash in names such as cciss/c0d0. */
		for (char *c = name; *c; c++)
			if (*c == '!')
				*c = '/';
		snprintf(path, sizeof(path), "/dev/%s", name);
		if (!is_held && block_device_has_uuid(path, makedev(dev_major, dev_minor), uuid, external_only))
			err = paths_add(out, path, strlen(path));
	}
	fclose(partitions);
	return err;
}

static bool block_device_has_uuid(const char *path, dev_t number, const uint8_t uuid[UUID_BYTES], bool external_only)
{
	struct sb_disk sb;
	struct stat st;
	bool has_uuid = false;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return false;
	if (!fstat(fd, &st) && S_ISBLK(st.st_mode) && st.st_rdev == number &&
	    pread(fd, &sb, sizeof(sb), SB_SECTOR * SECTOR_BYTES) == (ssize_t)sizeof(sb)) {
		bool has_magic = !memcmp(sb.magic, sb_magic, sizeof(sb.magic)) ||
				 !memcmp(sb.magic, sb_magic_old, sizeof(sb.magic));

		has_uuid = has_magic && (!memcmp(sb.user_uuid, uuid, UUID_BYTES) ||
					 (!external_only && !memcmp(sb.uuid, uuid, UUID_BYTES)));
	}
	close(fd);
	return has_uuid;
}

static bool block_device_is_held(const char *name)
{
	char path[320];
	struct dirent *entry;
	bool is_held = false;

	snprintf(path, sizeof(path), "/sys/class/block/%s/holders", name);
	DIR *dir = opendir(path);
	while (dir && !is_held && (entry = readdir(dir)))
		is_held = entry->d_name[0] != '.';
	if (dir)
		closedir(dir);
	return is_held;
}
