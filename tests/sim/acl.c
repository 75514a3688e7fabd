/* POSIX ACLs of the model. See acl.h. */
#include "acl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/le.h"
#include "base/util.h"

enum {
	OWNER = 1,
	USER = 2,
	OWNING_GROUP = 4,
	GROUP = 8,
	MASK = 16,
	OTHER = 32,
	HEADER_BYTES = 4,
	ENTRY_BYTES = 8,
	VERSION = 2
};

struct entry {
	uint16_t tag, perm;
	uint32_t id;
};

static size_t entries_nr(size_t bytes) { return (bytes - HEADER_BYTES) / ENTRY_BYTES; }

static struct entry entry_load(const uint8_t *value, size_t i)
{
	const uint8_t *at = value + HEADER_BYTES + i * ENTRY_BYTES;

	return (struct entry){ le16_load(at), le16_load(at + 2), le32_load(at + 4) };
}

static void entry_store(uint8_t *value, size_t i, struct entry e)
{
	uint8_t *at = value + HEADER_BYTES + i * ENTRY_BYTES;

	le16_store(at, e.tag);
	le16_store(at + 2, e.perm);
	le32_store(at + 4, e.id);
}

/* --- what it means --- */

/* How many entries have one of these tags? */
static size_t count(const uint8_t *value, size_t bytes, unsigned tags)
{
	size_t nr = 0;

	for (size_t i = 0; i < entries_nr(bytes); i++)
		nr += (entry_load(value, i).tag & tags) != 0;
	return nr;
}

/* Where in a mode an entry's bits are; -1: nowhere. */
static int shift_of(const uint8_t *value, size_t bytes, uint16_t tag)
{
	uint16_t group = count(value, bytes, MASK) ? MASK : OWNING_GROUP;

	return tag == OWNER ? 6 : tag == group ? 3 : tag == OTHER ? 0 : -1;
}

static uint32_t mode_of(const uint8_t *value, size_t bytes)
{
	uint32_t mode = 0;

	for (size_t i = 0; i < entries_nr(bytes); i++) {
		struct entry e = entry_load(value, i);
		int shift = shift_of(value, bytes, e.tag);

		mode |= shift < 0 ? 0 : (uint32_t)e.perm << shift;
	}
	return mode;
}

static void mode_to(uint8_t *value, size_t bytes, uint32_t mode)
{
	for (size_t i = 0; i < entries_nr(bytes); i++) {
		struct entry e = entry_load(value, i);
		int shift = shift_of(value, bytes, e.tag);

		if (shift >= 0)
			e.perm = mode >> shift & 7;
		entry_store(value, i, e);
	}
}

static bool is_valid(const uint8_t *value, size_t bytes)
{
	bool is_named = count(value, bytes, USER | GROUP);
	uint16_t last = 0;

	for (size_t i = 0; i < entries_nr(bytes); i++) {
		struct entry e = entry_load(value, i);

		if (e.tag < last || e.perm > 7 || (e.tag & (USER | GROUP) && e.id == UINT32_MAX))
			return false;
		last = e.tag;
	}
	return count(value, bytes, OWNER) == 1 && count(value, bytes, OWNING_GROUP) == 1 &&
	       count(value, bytes, OTHER) == 1 && count(value, bytes, MASK) <= 1 &&
	       (!is_named || count(value, bytes, MASK));
}

/* Nothing that the mode doesn't say: such a one isn't stored. */
static bool is_minimal(size_t bytes) { return entries_nr(bytes) == 3; }

/* --- objects --- */

static void store(struct model_object *o, unsigned xattr, const uint8_t *value, size_t bytes)
{
	struct model_xattr *x = &o->xattrs[xattr];

	free(x->value);
	*x = (struct model_xattr){ .size = bytes };
	if (!bytes)
		return;
	model_xattr_name(xattr, x->name);
	x->value = malloc(bytes);
	if (!x->value)
		abort();
	memcpy(x->value, value, bytes);
}

int acl_expect(const struct model_object *o, unsigned xattr, const uint8_t *value, size_t bytes)
{
	bool is_empty = !entries_nr(bytes);

	if (!is_empty && !is_valid(value, bytes))
		return -EINVAL;
	if (S_ISLNK(o->mode))
		return -EOPNOTSUPP;
	return xattr == MODEL_XATTR_ACL_DEFAULT && !S_ISDIR(o->mode) && !is_empty ? -EACCES : 0;
}

void acl_apply(struct model_object *o, unsigned xattr, const uint8_t *value, size_t bytes)
{
	bool is_access = xattr == MODEL_XATTR_ACL_ACCESS;

	if (!entries_nr(bytes)) {
		store(o, xattr, NULL, 0);
		return;
	}
	if (is_access)
		o->mode = (o->mode & ~0777u) | mode_of(value, bytes);
	store(o, xattr, value, is_access && is_minimal(bytes) ? 0 : bytes);
}

void acl_mode_changed(struct model_object *o)
{
	struct model_xattr *x = &o->xattrs[MODEL_XATTR_ACL_ACCESS];

	if (x->name[0])
		mode_to(x->value, x->size, o->mode);
}

void acl_inherit_from(struct model_object *o, const struct model_object *dir, uint32_t umask)
{
	const struct model_xattr *x = &dir->xattrs[MODEL_XATTR_ACL_DEFAULT];

	if (S_ISLNK(o->mode))
		return;
	if (!x->name[0]) {
		o->mode &= ~umask;
		return;
	}
	if (S_ISDIR(o->mode))
		store(o, MODEL_XATTR_ACL_DEFAULT, x->value, x->size);
	o->mode &= ~0777u | mode_of(x->value, x->size);
	if (is_minimal(x->size))
		return;
	store(o, MODEL_XATTR_ACL_ACCESS, x->value, x->size);
	acl_mode_changed(o);
}

/* --- drawing --- */

static void spoil(struct rng *rng, uint8_t *value, size_t *bytes)
{
	size_t nr = entries_nr(*bytes), i = rng_below(rng, nr);
	struct entry e = entry_load(value, i);

	switch (rng_below(rng, 4)) {
	case 0: *bytes = HEADER_BYTES; return;
	case 1: *bytes -= ENTRY_BYTES; return;
	case 2: e.perm = 8; break;
	default: e.tag = OTHER; break;
	}
	entry_store(value, i, e);
}

size_t acl_draw(struct rng *rng, uint8_t value[ACL_BYTES_MAX])
{
	enum { NAMED_MAX = 10 };
	size_t users = rng_below(rng, 2) ? rng_below(rng, NAMED_MAX) : 0;
	size_t groups = rng_below(rng, 2) ? rng_below(rng, NAMED_MAX) : 0;
	bool has_mask = users || groups || !rng_below(rng, 4);
	const struct {
		uint16_t tag;
		size_t nr;
	} parts[] = { { OWNER, 1 },	 { USER, users },    { OWNING_GROUP, 1 },
		      { GROUP, groups }, { MASK, has_mask }, { OTHER, 1 } };
	size_t at = 0;

	le32_store(value, VERSION);
	for (size_t i = 0; i < ARRAY_NR(parts); i++)
		for (size_t k = 0; k < parts[i].nr; k++)
			entry_store(value, at++,
				    (struct entry){ parts[i].tag, (uint16_t)rng_below(rng, 8),
						    parts[i].tag & (USER | GROUP) ? (uint32_t)rng_below(rng, 70000)
										  : UINT32_MAX });
	size_t bytes = HEADER_BYTES + at * ENTRY_BYTES;
	if (!rng_below(rng, 8))
		spoil(rng, value, &bytes);
	return bytes;
}
