/*
 * POSIX ACLs (04 §4.1): the form in xattr values, and that of the system calls.
 *
 * Both are a version and then entries of tag and permissions. Stored entries have an id only if their tag needs one,
 * and the version is 1; the entries of the system calls always have an id, and the version is 2.
 */
#include "format/acl.h"

#include <errno.h>

#include "base/le.h"
#include "base/strbuf.h"
#include "format/xattr.h"

enum {
	ACL_VERSION_STORED = 1,
	ACL_VERSION_USER = 2,
	ACL_HEADER_BYTES = 4,
	ACL_USER_ENTRY_BYTES = 8,
	ACL_BYTES_MAX = 65536 /* no attribute is longer */
};
#define ACL_ID_NONE UINT32_MAX

struct acl_entry {
	uint16_t tag, perm;
	uint32_t id;
};

static const struct acl_tag {
	uint16_t tag;
	const char *name;
	const char *id_name; /* NULL: the tag has no id */
} tags[] = {
	{ 0x01, "user_obj", NULL }, { 0x02, "user", "uid" }, { 0x04, "group_obj", NULL },
	{ 0x08, "group", "gid" },   { 0x10, "mask", NULL },  { 0x20, "other", NULL },
};

static const struct acl_tag *tag_find(uint16_t tag)
{
	for (size_t i = 0; i < ARRAY_NR(tags); i++)
		if (tags[i].tag == tag)
			return &tags[i];
	return NULL;
}

/* Read one stored entry at @p. Returns its length, or -EINVAL. */
static int stored_entry_load(const uint8_t *p, size_t left, struct acl_entry *e)
{
	if (left < 4)
		return -EINVAL;
	*e = (struct acl_entry){ .tag = le16_load(p), .perm = le16_load(p + 2), .id = ACL_ID_NONE };

	const struct acl_tag *tag = tag_find(e->tag);
	if (!tag || (tag->id_name && left < 8))
		return -EINVAL;
	if (!tag->id_name)
		return 4;
	e->id = le32_load(p + 4);
	return 8;
}

int acl_to_user(const void *stored, size_t len, void *out, size_t size)
{
	const uint8_t *p = stored, *end = p + len;
	uint8_t *to = out;
	size_t used = ACL_HEADER_BYTES;

	if (len < ACL_HEADER_BYTES || len > ACL_BYTES_MAX || le32_load(p) != ACL_VERSION_STORED)
		return -EINVAL;
	if (size >= used)
		le32_store(to, ACL_VERSION_USER);

	for (p += ACL_HEADER_BYTES; p < end;) {
		struct acl_entry e;
		int n = stored_entry_load(p, (size_t)(end - p), &e);

		if (n < 0)
			return n;
		p += n;
		if (size >= used + ACL_USER_ENTRY_BYTES) {
			le16_store(to + used, e.tag);
			le16_store(to + used + 2, e.perm);
			le32_store(to + used + 4, e.id);
		}
		used += ACL_USER_ENTRY_BYTES;
	}
	return size && size < used ? -ERANGE : (int)used;
}

int acl_from_user(const void *user, size_t len, void *out, size_t size)
{
	const uint8_t *p = user, *end = p + len;
	uint8_t *to = out;
	size_t used = ACL_HEADER_BYTES;

	if (len < ACL_HEADER_BYTES || len > ACL_BYTES_MAX || le32_load(p) != ACL_VERSION_USER ||
	    (len - ACL_HEADER_BYTES) % ACL_USER_ENTRY_BYTES)
		return -EINVAL;
	if (size >= used)
		le32_store(to, ACL_VERSION_STORED);

	for (p += ACL_HEADER_BYTES; p < end; p += ACL_USER_ENTRY_BYTES) {
		uint16_t tag_nr = le16_load(p);
		const struct acl_tag *tag = tag_find(tag_nr);
		size_t n = tag && tag->id_name ? 8 : 4;

		if (!tag)
			return -EINVAL;
		if (size >= used + n)
			memcpy(to + used, p, n);
		used += n;
	}
	return size && size < used ? -ERANGE : (int)used;
}

void acl_to_text(struct strbuf *out, const void *stored, size_t len)
{
	const uint8_t *p = stored, *end = p + len;

	if (len < ACL_HEADER_BYTES || le32_load(p) != ACL_VERSION_STORED) {
		strbuf_add(out, " (invalid)");
		return;
	}
	for (p += ACL_HEADER_BYTES; p < end;) {
		struct acl_entry e;
		int n = stored_entry_load(p, (size_t)(end - p), &e);

		if (n < 0) {
			strbuf_add(out, " (invalid)");
			return;
		}
		const struct acl_tag *tag = tag_find(e.tag);
		if (tag->id_name)
			strbuf_printf(out, " %s %s %u %u", tag->name, tag->id_name, e.id, e.perm);
		else
			strbuf_printf(out, " %s %u", tag->name, e.perm);
		p += n;
	}
}
