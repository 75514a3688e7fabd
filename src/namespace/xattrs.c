/*
 * Extended attributes: stored ones by hash, ACLs converted to the form of the system calls, and the virtual attributes
 * that show an inode's options (04 §4, 10 §6, 11 §7.1).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/strbuf.h"
#include "format/options.h"
#include "format/str_hash.h"
#include "namespace/internal.h"

static const char prefix_own[] = "bcachefs.", prefix_effective[] = "bcachefs_effective.";

/* Option behind each inode option, in the order of their bits. */
static const enum option_id inode_options[INODE_OPT_NR_1_4] = {
	[INODE_OPT_DATA_CHECKSUM] = OPT_DATA_CHECKSUM,
	[INODE_OPT_COMPRESSION] = OPT_COMPRESSION,
	[INODE_OPT_PROJECT] = OPT_PROJECT,
	[INODE_OPT_BACKGROUND_COMPRESSION] = OPT_BACKGROUND_COMPRESSION,
	[INODE_OPT_DATA_REPLICAS] = OPT_DATA_REPLICAS,
	[INODE_OPT_PROMOTE_TARGET] = OPT_PROMOTE_TARGET,
	[INODE_OPT_FOREGROUND_TARGET] = OPT_FOREGROUND_TARGET,
	[INODE_OPT_BACKGROUND_TARGET] = OPT_BACKGROUND_TARGET,
	[INODE_OPT_ERASURE_CODE] = OPT_ERASURE_CODE,
	[INODE_OPT_NOCOW] = OPT_NOCOW,
};

/* Is option @i of the inode set on itself, or (@effective) set at all? */
static bool option_is_shown(const struct inode *inode, unsigned i, bool effective)
{
	return inode->opts[i] && (effective || inode->fields_set & 1u << i);
}

/* Copy @len bytes the way getxattr does: the length needed for size 0, -ERANGE when it doesn't fit. */
static ssize_t value_copy(const void *value, size_t len, void *out, size_t size)
{
	if (!size)
		return (ssize_t)len;
	if (len > size)
		return -ERANGE;
	memcpy(out, value, len);
	return (ssize_t)len;
}

int inode_option_find(const char *name)
{
	for (unsigned i = 0; i < ARRAY_NR(inode_options); i++)
		if (!strcmp(name, option_table[inode_options[i]].name))
			return (int)i;
	return -EINVAL;
}

enum option_id inode_option_id(unsigned inode_opt) { return inode_options[inode_opt]; }

static ssize_t option_get(struct namespace *ns, const struct inode *inode, const char *name, bool effective,
			  void *value, size_t size)
{
	char buf[128];
	struct strbuf text = strbuf_fixed(buf, sizeof(buf));

	int i = inode_option_find(name);

	if (i < 0)
		return i;
	if (!option_is_shown(inode, (unsigned)i, effective))
		return -ENODATA;
	super_lock(ns->super); /* labels */
	option_to_text(&text, inode_options[i], inode->opts[i] - 1, ns->super->sb);
	super_lock_release(ns->super);
	return value_copy(buf, text.len, value, size);
}

/* The attribute in the user's form. */
static ssize_t stored_copy(const struct xattr *x, void *value, size_t size)
{
	if (x->type == XATTR_ACL_ACCESS || x->type == XATTR_ACL_DEFAULT)
		return acl_to_user(x->value, x->value_len, value, size);
	return value_copy(x->value, x->value_len, value, size);
}

static ssize_t stored_get(struct namespace *ns, struct object o, const struct inode *inode, uint32_t snapshot,
			  const char *full_name, void *value, size_t size)
{
	const char *name;
	uint8_t type;
	ssize_t ret = xattr_name_parse(full_name, &type, &name);

	if (ret)
		return ret;
	size_t len = strlen(name);
	if (len > UINT8_MAX)
		return -ENODATA; /* longer than any stored name */
	uint64_t slot = str_hash_xattr(inode->str_hash, inode->hash_seed, type, name, len);
	struct btree_iter it;
	struct bkey_ref k;
	ssize_t found = -ENODATA;

	btree_iter_open(&it, ns->trees, BTREE_XATTRS, BPOS(o.inum, slot, snapshot), 0, snapshot);
	it.end = BPOS(o.inum, UINT64_MAX, UINT32_MAX);
	while ((ret = btree_iter_peek(&it, &k)) > 0 && k.k.p.offset == slot++ &&
	       (k.k.type == KEY_XATTR || k.k.type == KEY_HASH_WHITEOUT)) {
		struct xattr x;

		if (k.k.type == KEY_XATTR && !xattr_decode(k, &x, NULL) && x.type == type && x.name_len == len &&
		    !memcmp(x.name, name, len)) {
			found = stored_copy(&x, value, size);
			break;
		}
		btree_iter_advance(&it);
	}
	if (ret < 0 && !(it.damage_min.inode == o.inum && it.damage_min.offset > slot))
		found = ret;
	btree_iter_close(&it);
	return found;
}

ssize_t namespace_xattr_get(struct namespace *ns, struct object o, const char *name, void *value, size_t size)
{
	struct inode inode;
	uint32_t snapshot;

	int err = namespace_inode(ns, o, &inode);
	if (!err)
		err = subvol_snapshot(ns, o.subvol, &snapshot);
	if (err)
		return err;

	if (!strncmp(name, prefix_own, sizeof(prefix_own) - 1))
		return option_get(ns, &inode, name + sizeof(prefix_own) - 1, false, value, size);
	if (!strncmp(name, prefix_effective, sizeof(prefix_effective) - 1))
		return option_get(ns, &inode, name + sizeof(prefix_effective) - 1, true, value, size);
	return stored_get(ns, o, &inode, snapshot, name, value, size);
}

/* The list under construction: counts on when it is full, so that the size needed is known. */
struct name_list {
	char *out;
	size_t size, len;
};

static void name_list_add(struct name_list *l, const char *prefix, const void *name, size_t name_len)
{
	size_t prefix_len = strlen(prefix), need = prefix_len + name_len + 1;

	if (l->len + need <= l->size) {
		memcpy(l->out + l->len, prefix, prefix_len);
		memcpy(l->out + l->len + prefix_len, name, name_len);
		l->out[l->len + need - 1] = 0;
	}
	l->len += need;
}

static int list_stored(struct namespace *ns, struct object o, uint32_t snapshot, struct name_list *list)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_iter_open(&it, ns->trees, BTREE_XATTRS, BPOS(o.inum, 0, snapshot), 0, snapshot);
	it.end = BPOS(o.inum, UINT64_MAX, UINT32_MAX);
	while ((ret = btree_iter_peek(&it, &k)) > 0) {
		struct xattr x;

		if (k.k.type == KEY_XATTR && !xattr_decode(k, &x, NULL) && xattr_prefix(x.type))
			name_list_add(list, xattr_prefix(x.type), x.name, x.name_len);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return ret;
}

ssize_t namespace_xattr_list(struct namespace *ns, struct object o, char *out, size_t size)
{
	struct name_list list = { .out = out, .size = size };
	uint32_t snapshot;

	int err = subvol_snapshot(ns, o.subvol, &snapshot);
	if (!err)
		err = list_stored(ns, o, snapshot, &list);
	if (err)
		return err;
	return size && list.len > size ? -ERANGE : (ssize_t)list.len;
}
