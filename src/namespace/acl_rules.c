/*
 * What POSIX ACLs mean for modes (04 §4.1; POSIX 1003.1e draft 17, §23.1): pure functions over the stored form.
 *
 * The permission bits of owner and others are those of their entries. The group's bits are those of the mask where
 * there is one, else of the owning group's entry. An ACL that has no more than these three entries says nothing that
 * the mode doesn't say.
 */
#include <errno.h>

#include "base/le.h"
#include "namespace/change_internal.h"

enum {
	ACL_TAG_OWNER = 0x01,
	ACL_TAG_USER = 0x02,
	ACL_TAG_OWNING_GROUP = 0x04,
	ACL_TAG_GROUP = 0x08,
	ACL_TAG_MASK = 0x10,
	ACL_TAG_OTHER = 0x20,
	ACL_HEADER_BYTES = 4,
	PERM_ALL = 7,
};

struct acl_cursor {
	uint8_t *at; /* the entry */
	size_t left; /* bytes from there */
};

static bool tag_has_id(uint16_t tag) { return tag == ACL_TAG_USER || tag == ACL_TAG_GROUP; }

/* Entries of a stored ACL, one after the other: false at the end, also at one that is cut off. */
static bool acl_next(struct acl_cursor *c, uint16_t *tag)
{
	if (c->left < 4)
		return false;
	*tag = le16_load(c->at);
	return c->left >= (tag_has_id(*tag) ? 8u : 4u);
}

static void acl_advance(struct acl_cursor *c, uint16_t tag)
{
	size_t bytes = tag_has_id(tag) ? 8 : 4;

	c->at += bytes;
	c->left -= bytes;
}

static uint16_t acl_perm(const struct acl_cursor *c) { return le16_load(c->at + 2); }
static void acl_set_perm(struct acl_cursor *c, uint32_t perm) { le16_store(c->at + 2, (uint16_t)(perm & PERM_ALL)); }

static struct acl_cursor acl_first(const uint8_t *acl, size_t len)
{
	if (len < ACL_HEADER_BYTES)
		return (struct acl_cursor){ 0 };
	return (struct acl_cursor){ (uint8_t *)acl + ACL_HEADER_BYTES, len - ACL_HEADER_BYTES };
}

static bool acl_has(const uint8_t *acl, size_t len, uint16_t tags)
{
	uint16_t tag;

	for (struct acl_cursor c = acl_first(acl, len); acl_next(&c, &tag); acl_advance(&c, tag))
		if (tag & tags)
			return true;
	return false;
}

int acl_check(const uint8_t *acl, size_t len)
{
	struct acl_cursor c = acl_first(acl, len);
	unsigned seen = 0;
	uint16_t tag;

	if (!c.left)
		return 0;
	while (acl_next(&c, &tag)) {
		/* In ascending order of tags; only entries with ids may repeat. */
		if (acl_perm(&c) & ~PERM_ALL || seen >= (unsigned)tag << (tag_has_id(tag) ? 1 : 0))
			return -EINVAL;
		if (tag_has_id(tag) && le32_load(c.at + 4) == UINT32_MAX)
			return -EINVAL;
		seen |= tag;
		acl_advance(&c, tag);
	}
	unsigned needed = ACL_TAG_OWNER | ACL_TAG_OWNING_GROUP | ACL_TAG_OTHER;
	if (seen & (ACL_TAG_USER | ACL_TAG_GROUP))
		needed |= ACL_TAG_MASK;
	return c.left || (seen & needed) != needed ? -EINVAL : 0;
}

/* Which of the mode's bits an entry stands for: shift, or -1. */
static int tag_mode_shift(uint16_t tag, bool has_mask)
{
	switch (tag) {
	case ACL_TAG_OWNER: return 6;
	case ACL_TAG_OWNING_GROUP: return has_mask ? -1 : 3;
	case ACL_TAG_MASK: return 3;
	case ACL_TAG_OTHER: return 0;
	}
	return -1;
}

static bool acl_is_minimal(const uint8_t *acl, size_t len)
{
	return !acl_has(acl, len, ACL_TAG_USER | ACL_TAG_GROUP | ACL_TAG_MASK);
}

uint32_t acl_to_mode(const uint8_t *acl, size_t len, bool *is_minimal)
{
	bool has_mask = acl_has(acl, len, ACL_TAG_MASK);
	uint32_t mode = 0;
	uint16_t tag;

	for (struct acl_cursor c = acl_first(acl, len); acl_next(&c, &tag); acl_advance(&c, tag)) {
		int shift = tag_mode_shift(tag, has_mask);

		if (shift >= 0)
			mode |= (uint32_t)(acl_perm(&c) & PERM_ALL) << shift;
	}
	*is_minimal = acl_is_minimal(acl, len);
	return mode;
}

void acl_set_mode(uint8_t *acl, size_t len, uint32_t mode)
{
	bool has_mask = acl_has(acl, len, ACL_TAG_MASK);
	uint16_t tag;

	for (struct acl_cursor c = acl_first(acl, len); acl_next(&c, &tag); acl_advance(&c, tag)) {
		int shift = tag_mode_shift(tag, has_mask);

		if (shift >= 0)
			acl_set_perm(&c, mode >> shift);
	}
}

uint32_t acl_inherit(uint8_t *acl, size_t len, uint32_t mode, bool *is_minimal)
{
	bool has_mask = acl_has(acl, len, ACL_TAG_MASK);
	uint16_t tag;

	for (struct acl_cursor c = acl_first(acl, len); acl_next(&c, &tag); acl_advance(&c, tag)) {
		int shift = tag_mode_shift(tag, has_mask);

		if (shift < 0)
			continue;
		/* Nobody gets what either the creator or the directory doesn't give. */
		uint32_t perm = acl_perm(&c) & mode >> shift & PERM_ALL;

		acl_set_perm(&c, perm);
		mode = (mode & ~((uint32_t)PERM_ALL << shift)) | perm << shift;
	}
	*is_minimal = acl_is_minimal(acl, len);
	return mode;
}
