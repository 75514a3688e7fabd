/*
 * Setting and removing extended attributes: stored ones, ACLs, and the virtual attributes that are an inode's options
 * (04 §1.6, §4; 10 §6; 11 §7.1).
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "data/rebalance.h"
#include "format/options.h"
#include "namespace/change_internal.h"

/* --- stored attributes in transactions --- */

static struct hash_table xattr_table(const struct inode *inode) { return hash_table_of(inode, BTREE_XATTRS, 0); }

int xattr_txn_get(struct btree_txn *txn, const struct inode *inode, uint8_t type, const char *name, struct xattr *x)
{
	struct hash_table t = xattr_table(inode);
	struct hash_name n = { type, name, strlen(name) };
	struct bkey_ref k;
	uint64_t slot;
	int ret = hash_table_find(txn, &t, &n, &slot, &k);

	if (ret > 0)
		return xattr_decode(k, x, NULL) ? -EIO : 1;
	return ret == -ENOSPC ? 0 : ret;
}

/* Put with the flags of setxattr(). */
static int xattr_txn_set(struct btree_txn *txn, const struct inode *inode, const struct xattr *x, unsigned flags)
{
	struct hash_table t = xattr_table(inode);
	struct hash_name n = { x->type, x->name, x->name_len };
	uint8_t value[BKEY_VALUE_U64S_MAX * 8];
	struct bkey_ref old;
	uint64_t slot;
	int ret = hash_table_find(txn, &t, &n, &slot, &old);

	if (ret < 0)
		return ret;
	if (ret ? flags & XATTR_MUST_CREATE : flags & XATTR_MUST_REPLACE)
		return ret ? -EEXIST : -ENODATA;

	struct bkey k = { .p = BPOS(t.inum, slot, t.snapshot), .type = KEY_XATTR };
	k.value_u64s = (uint8_t)(xattr_encode(x, value, sizeof(value)) / 8);
	return k.value_u64s ? btree_txn_put(txn, BTREE_XATTRS, &k, value, 0) : -ERANGE;
}

int xattr_txn_put(struct btree_txn *txn, const struct inode *inode, const struct xattr *x)
{
	return xattr_txn_set(txn, inode, x, 0);
}

/* Take away: 1, 0 when there was none, or an error. */
static int xattr_txn_remove(struct btree_txn *txn, const struct inode *inode, uint8_t type, const void *name,
			    size_t len)
{
	struct hash_table t = xattr_table(inode);
	struct hash_name n = { type, name, len };
	struct bkey_ref k;
	uint64_t slot;
	int ret = hash_table_find(txn, &t, &n, &slot, &k);

	if (ret <= 0)
		return ret == -ENOSPC ? 0 : ret;
	ret = hash_table_delete(txn, &t, slot);
	return ret ? ret : 1;
}

int xattr_txn_delete(struct btree_txn *txn, const struct inode *inode, uint8_t type)
{
	return min(xattr_txn_remove(txn, inode, type, "", 0), 0);
}

/* --- operations --- */

struct xattr_args {
	struct namespace *ns;
	struct object o;
	const char *full_name;
	struct xattr x;
	bool is_removal;
	unsigned flags;
	uint64_t now;
	/* options: the inode's field, and what is to be stored in it */
	unsigned option;
	uint32_t option_stored;
};

/* The inode whose attributes are about to change. */
static int xattr_inode_get(struct btree_txn *txn, struct object o, struct inode *inode)
{
	uint32_t snapshot;
	int err = subvol_txn_snapshot(txn, o.subvol, &snapshot);

	if (!err)
		err = inode_txn_get(txn, o.inum, snapshot, inode);
	return err ? err : inode->flags & (INODE_IMMUTABLE | INODE_APPEND) ? -EPERM : 0;
}

static int stored_change(struct btree_txn *txn, void *ctx)
{
	struct xattr_args *a = ctx;
	struct inode inode;
	int ret = xattr_inode_get(txn, a->o, &inode);

	if (ret)
		return ret;
	if (a->x.type == XATTR_USER && !S_ISREG(inode.mode) && !S_ISDIR(inode.mode))
		return -EPERM;
	if (a->is_removal) {
		ret = xattr_txn_remove(txn, &inode, a->x.type, a->x.name, a->x.name_len);
		ret = ret > 0 ? 0 : ret ? ret : -ENODATA;
	} else {
		ret = change_room_check(a->ns);
		ret = ret ? ret : xattr_txn_set(txn, &inode, &a->x, a->flags);
	}
	if (ret)
		return ret;
	inode.ctime = a->now;
	return inode_txn_put(txn, &inode);
}

/* a->x.value: the ACL in stored form, already checked; without entries it goes away. */
static int acl_change(struct btree_txn *txn, void *ctx)
{
	struct xattr_args *a = ctx;
	struct inode inode;
	bool is_minimal = false, is_removal = a->is_removal;
	int err = xattr_inode_get(txn, a->o, &inode);

	if (err)
		return err;
	if (S_ISLNK(inode.mode))
		return -EOPNOTSUPP;
	if (a->x.type == XATTR_ACL_DEFAULT && !S_ISDIR(inode.mode))
		return is_removal ? 0 : -EACCES;
	if (a->x.type == XATTR_ACL_ACCESS && !is_removal) {
		uint32_t perm = acl_to_mode(a->x.value, a->x.value_len, &is_minimal);

		inode.mode = (uint16_t)((inode.mode & ~0777u) | perm);
		is_removal = is_minimal;
	}
	if (!is_removal)
		err = change_room_check(a->ns);
	if (!err)
		err = is_removal ? xattr_txn_delete(txn, &inode, a->x.type)
				 : xattr_txn_set(txn, &inode, &a->x, a->flags);
	if (err)
		return err;
	inode.ctime = a->now;
	return inode_txn_put(txn, &inode);
}

static int acl_set(struct xattr_args *a, const void *value, size_t size, uint64_t *journal_seq)
{
	enum { ACL_EMPTY_BYTES = 4 };
	uint8_t stored[ACL_STORED_BYTES_MAX];

	if (!a->ns->super->options[OPT_ACL])
		return -EOPNOTSUPP;
	if (!a->is_removal) {
		int len = acl_from_user(value, size, stored, sizeof(stored));

		if (len < 0)
			return len;
		if (acl_check(stored, (size_t)len))
			return -EINVAL;
		a->x.value = stored;
		a->x.value_len = (uint16_t)len;
		a->is_removal = len <= ACL_EMPTY_BYTES;
	}
	return change_run(a->ns, "xattr_acl", journal_seq, acl_change, a);
}

/* --- options --- */

static int option_change(struct btree_txn *txn, void *ctx)
{
	struct xattr_args *a = ctx;
	struct inode inode, parent = { 0 };
	uint32_t snapshot;
	int err = xattr_inode_get(txn, a->o, &inode);

	/* Without a value of its own it has its directory's; the root has none. */
	if (!err && a->is_removal && inode.dir) {
		err = subvol_txn_snapshot(txn, inode.subvol && inode.parent_subvol ? inode.parent_subvol : a->o.subvol,
					  &snapshot);
		if (!err || err == -EROFS)
			err = inode_txn_get(txn, inode.dir, snapshot, &parent);
	}
	if (err)
		return err;
	if (a->is_removal && !(inode.fields_set & 1u << a->option))
		return -ENODATA;
	if (!a->is_removal && (err = change_room_check(a->ns)))
		return err;

	inode.opts[a->option] = a->is_removal ? parent.opts[a->option] : a->option_stored;
	inode.fields_set = (uint16_t)(inode.fields_set & ~(1u << a->option));
	if (!a->is_removal)
		inode.fields_set = (uint16_t)(inode.fields_set | 1u << a->option);
	inode.ctime = a->now;
	err = inode_txn_put(txn, &inode);
	bool is_of_stored = a->option == INODE_OPT_BACKGROUND_TARGET || a->option == INODE_OPT_BACKGROUND_COMPRESSION;
	if (err || !is_of_stored || !S_ISREG(inode.mode))
		return err;
	/* Not the time of change: each request is to be another number. */
	return rebalance_scan_request(txn, inode.inum, clock_realtime_ns());
}

static int option_set(struct xattr_args *a, const char *name, const void *value, size_t size, uint64_t *journal_seq)
{
	enum { TEXT_BYTES_MAX = 256 };
	char text[TEXT_BYTES_MAX], why_unused[256];
	uint64_t v;
	int option = inode_option_find(name);

	if (option < 0)
		return option;
	enum option_id id = inode_option_id((unsigned)option);
	a->option = (unsigned)option;
	if (!a->is_removal) {
		if (size >= sizeof(text))
			return -ERANGE;
		memcpy(text, value, size);
		text[size] = 0;
		super_lock(a->ns->super); /* labels */
		int err = option_parse(id, text, a->ns->super->sb, &v, NULL);
		super_lock_release(a->ns->super);
		if (err)
			return err;
		/* Files that ask for what isn't there couldn't be written. */
		if (super_option_unsupported(id, v, why_unused))
			return -EOPNOTSUPP;
		err = super_option_features_set(a->ns->super, id, v);
		if (err)
			return err;
		a->option_stored = (uint32_t)v + 1;
	}
	return change_run(a->ns, "xattr_option", journal_seq, option_change, a);
}

/* --- by full name --- */

static int xattr_change(struct xattr_args *a, const void *value, size_t size, uint64_t *journal_seq)
{
	static const char prefix_own[] = "bcachefs.", prefix_effective[] = "bcachefs_effective.";
	const char *name;

	a->now = change_time(a->ns->super);
	if (!strncmp(a->full_name, prefix_own, sizeof(prefix_own) - 1))
		return option_set(a, a->full_name + sizeof(prefix_own) - 1, value, size, journal_seq);
	if (!strncmp(a->full_name, prefix_effective, sizeof(prefix_effective) - 1))
		return option_set(a, a->full_name + sizeof(prefix_effective) - 1, value, size, journal_seq);

	int err = xattr_name_parse(a->full_name, &a->x.type, &name);
	if (err)
		return err;
	if (strlen(name) > UINT8_MAX || size > BKEY_VALUE_U64S_MAX * 8)
		return -ERANGE;
	a->x.name = (const uint8_t *)name;
	a->x.name_len = (uint8_t)strlen(name);
	if (a->x.type == XATTR_ACL_ACCESS || a->x.type == XATTR_ACL_DEFAULT)
		return acl_set(a, value, size, journal_seq);
	a->x.value = value;
	a->x.value_len = (uint16_t)size;
	return change_run(a->ns, "xattr", journal_seq, stored_change, a);
}

int namespace_xattr_set(struct namespace *ns, struct object o, const char *name, const void *value, size_t size,
			unsigned flags, uint64_t *journal_seq)
{
	if (flags & ~(unsigned)(XATTR_MUST_CREATE | XATTR_MUST_REPLACE))
		return -EINVAL;
	return xattr_change(&(struct xattr_args){ .ns = ns, .o = o, .full_name = name, .flags = flags }, value, size,
			    journal_seq);
}

int namespace_xattr_remove(struct namespace *ns, struct object o, const char *name, uint64_t *journal_seq)
{
	return xattr_change(&(struct xattr_args){ .ns = ns, .o = o, .full_name = name, .is_removal = true }, NULL, 0,
			    journal_seq);
}
