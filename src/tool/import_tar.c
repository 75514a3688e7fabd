/*
 * A tar archive into a filesystem, read with libarchive. See import.h.
 *
 * Entries are made in the order of the archive, by the calling task. Names never lead out of the directory: ".." in
 * one is an error, and symlinks on the way aren't followed. Directories on the way that the archive doesn't tell of are
 * made. Directories get their attributes when everything is unpacked, as unpacking changes their times.
 *
 * libarchive converts names to the locale's character set, and normalises them if that is UTF-8. In the C locale, which
 * the tool keeps, what isn't ASCII can't be converted, and then it hands on the bytes as they are: what is wanted here.
 */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "base/le.h"
#include "base/strbuf.h"
#include "tool/import_private.h"

struct tar_dir {
	struct kiln_node node;
	struct stat st;
	struct tar_dir *next;
};

struct tar {
	struct import *x;
	struct archive *a;
	struct kiln_node dir;
	struct tar_dir *dirs; /* that get their attributes at the end */
	bool has_entries;     /* one was found: it is an archive */
	bool is_broken;	      /* what follows can't be read, and that was told */
	/* The directory that the last entry was in: the next is mostly in the same. */
	struct strbuf last_parent;
	struct kiln_node last_node;
};

/* --- names --- */

/* The next name of a path, "." left out; NULL at the end. */
static const char *next_name(const char **path, size_t *len)
{
	for (;;) {
		const char *name = *path + strspn(*path, "/");

		*len = strcspn(name, "/");
		*path = name + *len;
		if (*len != 1 || *name != '.')
			return *len ? name : NULL;
	}
}

/* The directory @name of @dir, made if it isn't there. */
static int step_into(struct tar *t, struct kiln_node dir, const char *name, size_t len, struct kiln_node *node)
{
	struct kiln_create attr = { .mode = S_IFDIR | 0755, .uid = t->x->options.uid, .gid = t->x->options.gid };
	struct kiln_stat st;

	int err = kiln_lookup(t->x->fs, dir, name, len, &st);
	if (err == -ENOENT)
		err = kiln_create(t->x->fs, dir, name, len, &attr, &st);
	*node = st.node;
	return err ? err : S_ISDIR(st.mode) ? 0 : -ENOTDIR;
}

/*
 * Split a path into the directory that its last name is in, and that name (copied to @name, "" for the archive's own
 * top). Directories on the way are made.
 */
static int path_resolve(struct tar *t, const char *path, struct kiln_node *dir, char name[NAME_MAX + 1])
{
	const char *rest = path, *step, *begin = NULL, *last = NULL;
	size_t len;

	*dir = t->dir;
	*name = 0;
	while ((step = next_name(&rest, &len))) {
		begin = begin ? begin : step;
		last = step;
	}
	if (!last)
		return 0;
	size_t parent_len = (size_t)(last - begin);
	size_t last_len = strcspn(last, "/");
	if (last_len > NAME_MAX)
		return -ENAMETOOLONG;
	if (last_len == 2 && !memcmp(last, "..", 2))
		return -EINVAL;
	memcpy(name, last, last_len);
	name[last_len] = 0;
	if (!parent_len)
		return 0;
	if (t->last_parent.len == parent_len && !memcmp(t->last_parent.text, begin, parent_len)) {
		*dir = t->last_node;
		return 0;
	}
	for (rest = begin; (step = next_name(&rest, &len)) && step < last;) {
		int err = len == 2 && !memcmp(step, "..", 2) ? -EINVAL : step_into(t, *dir, step, len, dir);
		if (err)
			return err;
	}
	strbuf_reset(&t->last_parent);
	strbuf_add_bytes(&t->last_parent, begin, parent_len);
	t->last_node = *dir;
	return 0;
}

/* --- attributes --- */

/* libarchive takes a negative time's fraction for one that counts upwards; in archives it counts away from 0 (POSIX).
 */
static struct timespec time_of(time_t sec, long nsec)
{
	if (sec < 0 && nsec)
		return (struct timespec){ sec - 1, 1000000000 - nsec };
	return (struct timespec){ sec, nsec };
}

/* With an ACL that has a mask, it is the group's permissions; libarchive says the owning group's own there. */
static mode_t mode_of(struct archive_entry *e)
{
	mode_t mode = archive_entry_mode(e);
	int type, perm, tag, id;
	const char *name;

	archive_entry_acl_reset(e, ARCHIVE_ENTRY_ACL_TYPE_ACCESS);
	while (archive_entry_acl_next(e, ARCHIVE_ENTRY_ACL_TYPE_ACCESS, &type, &perm, &tag, &id, &name) == ARCHIVE_OK)
		if (tag == ARCHIVE_ENTRY_ACL_MASK)
			mode = (mode & ~(mode_t)070) | (mode_t)(perm & 7) << 3;
	return mode & S_IFMT ? mode : mode | S_IFREG;
}

static struct stat stat_of(struct archive_entry *e)
{
	struct stat st = {
		.st_mode = mode_of(e),
		.st_uid = (uid_t)archive_entry_uid(e),
		.st_gid = (gid_t)archive_entry_gid(e),
		.st_rdev = makedev(archive_entry_rdevmajor(e), archive_entry_rdevminor(e)),
		.st_size = archive_entry_size(e),
		.st_mtim = time_of(archive_entry_mtime(e), archive_entry_mtime_nsec(e)),
	};

	st.st_atim = st.st_mtim;
	if (archive_entry_atime_is_set(e))
		st.st_atim = time_of(archive_entry_atime(e), archive_entry_atime_nsec(e));
	return st;
}

/* ACLs in the system calls' form: a version, then (tag, permissions, id) by tag and id. */
struct acl_entry {
	uint16_t tag, perm;
	uint32_t id;
};
enum { ACL_ENTRIES_MAX = 4096, ACL_ENTRY_BYTES = 8, ACL_HEADER_BYTES = 4, ACL_VERSION = 2 };

static int acl_entry_compare(const void *a, const void *b)
{
	const struct acl_entry *l = a, *r = b;

	return l->tag != r->tag ? (l->tag < r->tag ? -1 : 1) : l->id != r->id ? (l->id < r->id ? -1 : 1) : 0;
}

static uint16_t acl_tag(int tag)
{
	switch (tag) {
	case ARCHIVE_ENTRY_ACL_USER_OBJ: return 0x01;
	case ARCHIVE_ENTRY_ACL_USER: return 0x02;
	case ARCHIVE_ENTRY_ACL_GROUP_OBJ: return 0x04;
	case ARCHIVE_ENTRY_ACL_GROUP: return 0x08;
	case ARCHIVE_ENTRY_ACL_MASK: return 0x10;
	default: return 0x20;
	}
}

/* Numbers are taken as such; a name is one of this machine. */
static uint32_t acl_id(int tag, int id, const char *name)
{
	const struct passwd *user = tag == ARCHIVE_ENTRY_ACL_USER && id < 0 && name ? getpwnam(name) : NULL;
	const struct group *group = tag == ARCHIVE_ENTRY_ACL_GROUP && id < 0 && name ? getgrnam(name) : NULL;

	return user ? user->pw_uid : group ? group->gr_gid : (uint32_t)id;
}

static int acl_set(struct tar *t, struct archive_entry *e, int type, const char *name, struct kiln_node node)
{
	int nr = archive_entry_acl_reset(e, type), tag, perm, id, entry_type;
	const char *id_name;

	if (nr <= 0 || nr > ACL_ENTRIES_MAX)
		return nr > 0 ? -E2BIG : 0;
	/* The entries of the mode are told besides those that were counted. */
	CLEANUP_FREE struct acl_entry *entries = calloc((size_t)nr + 4, sizeof(*entries));
	CLEANUP_FREE uint8_t *value = calloc((size_t)nr + 5, ACL_ENTRY_BYTES);
	if (!entries || !value)
		return -ENOMEM;
	size_t used = 0;
	while (used < (size_t)nr + 4 &&
	       archive_entry_acl_next(e, type, &entry_type, &perm, &tag, &id, &id_name) == ARCHIVE_OK) {
		bool has_id = tag == ARCHIVE_ENTRY_ACL_USER || tag == ARCHIVE_ENTRY_ACL_GROUP;

		entries[used++] = (struct acl_entry){ acl_tag(tag), (uint16_t)(perm & 7),
						      has_id ? acl_id(tag, id, id_name) : UINT32_MAX };
	}
	qsort(entries, used, sizeof(*entries), acl_entry_compare);
	le32_store(value, ACL_VERSION);
	for (size_t i = 0; i < used; i++) {
		uint8_t *p = value + ACL_HEADER_BYTES + i * ACL_ENTRY_BYTES;

		le16_store(p, entries[i].tag);
		le16_store(p + 2, entries[i].perm);
		le32_store(p + 4, entries[i].id);
	}
	return kiln_setxattr(t->x->fs, node, name, value, ACL_HEADER_BYTES + used * ACL_ENTRY_BYTES, 0);
}

/* @inherited: @node was made in a directory that hands on an ACL, which is not the archive's. */
static int attributes_set(struct tar *t, struct archive_entry *e, struct kiln_node node, bool inherited)
{
	static const struct {
		const char *name;
		int type;
	} acls[] = {
		{ "system.posix_acl_access", ARCHIVE_ENTRY_ACL_TYPE_ACCESS },
		{ "system.posix_acl_default", ARCHIVE_ENTRY_ACL_TYPE_DEFAULT },
	};
	const char *name;
	const void *value;
	size_t size;
	int first_err = inherited ? import_acls_drop(t->x, node) : 0;

	archive_entry_xattr_reset(e);
	while (archive_entry_xattr_next(e, &name, &value, &size) == ARCHIVE_OK) {
		int err = import_xattr_is_left_out(name) ? 0 : kiln_setxattr(t->x->fs, node, name, value, size, 0);
		first_err = first_err ? first_err : err;
	}
	for (size_t i = 0; i < ARRAY_NR(acls); i++) {
		/* Some archives have them as attributes too, and those leave no doubt about who is meant. */
		int err = kiln_getxattr(t->x->fs, node, acls[i].name, NULL, 0) > 0
				  ? 0
				  : acl_set(t, e, acls[i].type, acls[i].name, node);
		first_err = first_err ? first_err : err;
	}
	return first_err;
}

/* --- entries --- */

/* Contents: pieces of libarchive's, put together to large ones. *@end: where the last byte went. */
static int contents_copy(struct tar *t, struct kiln_node node, uint64_t *bytes, off_t *end)
{
	char *buf = t->x->walk_buffer;
	size_t held = 0;
	off_t held_at = 0;
	int err = 0;

	while (!err) {
		const void *piece;
		size_t len;
		la_int64_t at;
		int ret = archive_read_data_block(t->a, &piece, &len, &at);

		err = import_stopped(t->x);
		if (err || ret == ARCHIVE_EOF)
			break;
		if (ret < ARCHIVE_WARN) {
			t->is_broken = true;
			break;
		}
		for (size_t done = 0; done < len && !err;) {
			if (held && (held == IMPORT_BUFFER_BYTES || held_at + (off_t)held != at + (off_t)done)) {
				err = import_write(t->x, node, held_at, buf, held);
				held = 0;
				continue;
			}
			held_at = held ? held_at : at + (off_t)done;
			size_t n = min(len - done, (size_t)IMPORT_BUFFER_BYTES - held);
			memcpy(buf + held, (const char *)piece + done, n);
			held += n;
			done += n;
			*bytes += n;
			*end = held_at + (off_t)held;
		}
	}
	return err ? err : held ? import_write(t->x, node, held_at, buf, held) : 0;
}

/* Say why libarchive can't go on, in the contents of the entry @entry or (NULL) between entries. */
static int archive_failed(struct tar *t, const char *entry)
{
	const char *path = entry ? entry : "the archive";
	const char *text = archive_error_string(t->a);
	int nr = archive_errno(t->a);

	if (text && strcasestr(text, "truncated"))
		return import_failed(t->x, path, 0,
				     entry ? "the archive ends in the middle of it" : "ends in the middle");
	/* Numbers of what is wrong with the archive: -1, and this one. Its message says more. */
	bool is_of_format = nr == -1 || nr == EILSEQ;
	if (is_of_format && !t->has_entries)
		return import_failed(t->x, path, 0, "is no tar archive");
	return import_failed(t->x, path, is_of_format && text ? 0 : nr > 0 ? -nr : -EIO, text);
}

static int hardlink_make(struct tar *t, const char *target, struct kiln_node dir, const char *name)
{
	char target_name[NAME_MAX + 1];
	struct kiln_node target_dir;
	struct kiln_stat st;

	int err = path_resolve(t, target, &target_dir, target_name);
	if (!err)
		err = kiln_lookup(t->x->fs, target_dir, target_name, strlen(target_name), &st);
	if (!err)
		err = import_make_link(t->x, st.node, dir, name);
	if (!err)
		import_count_hardlink(t->x);
	return err;
}

static int directory_note(struct tar *t, struct kiln_node node, const struct stat *st)
{
	struct tar_dir *d = malloc(sizeof(*d));

	if (!d)
		return -ENOMEM;
	*d = (struct tar_dir){ node, *st, t->dirs };
	t->dirs = d;
	return 0;
}

static int object_make(struct tar *t, struct archive_entry *e, struct kiln_node dir, const char *name)
{
	struct stat st = stat_of(e);
	struct kiln_node node = dir;
	uint64_t bytes = 0;
	off_t end = 0;

	if (!*name && !S_ISDIR(st.st_mode))
		return -EINVAL;
	const char *target = S_ISLNK(st.st_mode) ? archive_entry_symlink(e) : NULL;
	if (S_ISLNK(st.st_mode) && !target)
		return -EILSEQ;
	int err = *name ? import_make(t->x, dir, name, &st, target, &node) : 0;
	if (!err && S_ISREG(st.st_mode))
		err = contents_copy(t, node, &bytes, &end);
	/* Its first part is all that there is of it: neither it nor its size is made up. */
	if (err || t->is_broken)
		return err;
	int attr_err = attributes_set(t, e, node, *name && import_hands_on_acl(t->x, dir));
	err = S_ISDIR(st.st_mode) ? directory_note(t, node, &st)
				  : import_set_attributes(t->x, node, &st,
							  S_ISREG(st.st_mode) && end != st.st_size ? st.st_size : -1);
	if (!err && *name)
		import_count(t->x, st.st_mode, bytes);
	return err ? err : attr_err;
}

static int entry_make(struct tar *t, struct archive_entry *e)
{
	const char *path = archive_entry_pathname(e), *target = archive_entry_hardlink(e);
	char name[NAME_MAX + 1];
	struct kiln_node dir;

	if (!path)
		return import_failed(t->x, "an entry of the archive", -EILSEQ, "its name");
	int err = path_resolve(t, path, &dir, name);
	if (!err)
		err = target ? hardlink_make(t, target, dir, name) : object_make(t, e, dir, name);
	if (err)
		return import_failed(t->x, path, err, NULL);
	return t->is_broken ? archive_failed(t, path) : 0;
}

static int directories_finish(struct tar *t, int err)
{
	while (t->dirs) {
		struct tar_dir *d = t->dirs;
		int attr_err = err ? 0 : import_set_attributes(t->x, d->node, &d->st, -1);

		if (attr_err)
			err = import_failed(t->x, "a directory", attr_err, "its times and mode");
		t->dirs = d->next;
		free(d);
	}
	return err;
}

/* Go over the archive. */
static int entries_make(struct tar *t)
{
	int err = 0;

	while (!err && !t->is_broken) {
		struct archive_entry *e;
		int ret = archive_read_next_header(t->a, &e);

		err = import_stopped(t->x);
		if (err || ret == ARCHIVE_EOF)
			break;
		if (ret < ARCHIVE_WARN) {
			/* What follows can't be trusted. */
			err = archive_failed(t, NULL);
			break;
		}
		t->has_entries = true;
		err = entry_make(t, e);
	}
	return err;
}

int import_tar(struct import *x, int fd, struct kiln_node dir)
{
	enum { BLOCK_BYTES = 1 << 20 };
	struct tar t = { .x = x, .dir = dir, .a = archive_read_new(), .last_parent = strbuf_growing() };
	int err = 0;

	if (!t.a)
		err = import_failed(x, "the archive", -ENOMEM, NULL);
	if (!err) {
		archive_read_support_format_tar(t.a);
		archive_read_support_filter_all(t.a);
		if (archive_read_open_fd(t.a, fd, BLOCK_BYTES) == ARCHIVE_OK)
			err = entries_make(&t);
		else
			err = archive_failed(&t, NULL);
	}
	err = directories_finish(&t, err);
	strbuf_free(&t.last_parent);
	if (t.a)
		archive_read_free(t.a);
	return err;
}
