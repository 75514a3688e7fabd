/* Opening the namespace, inodes, symlinks. See namespace.h. */
#include "namespace/namespace.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "namespace/internal.h"

int namespace_open(struct super *super, struct btrees *trees, struct data *data, const struct report_sink *reports,
		   struct namespace **out)
{
	struct namespace *ns = calloc(1, sizeof(*ns));
	int snapshots_err = 0;

	if (!ns)
		return -ENOMEM;
	ns->super = super;
	ns->trees = trees;
	ns->data = data;
	ns->reports = reports;

	enum { SB_CASEFOLD_WORD = 6, SB_CASEFOLD_BIT = 22, SB_DIRENTS_SANITIZED_BIT = 59 };
	ns->may_have_casefold = super->kctx.is_newer;
	ns->has_scrubbed_names = super->kctx.is_newer && sb_flag(super->sb, SB_CASEFOLD_WORD, SB_DIRENTS_SANITIZED_BIT,
								 SB_DIRENTS_SANITIZED_BIT + 1);

	int err = snapshot_table_read(&ns->snapshots, trees, &snapshots_err);
	if (!err) {
		btrees_set_snapshots(
			trees, (struct btree_snapshots){ snapshot_is_ancestor, &ns->snapshots, snapshot_has_children });
		err = subvols_open(ns, snapshots_err);
	}
	if (err) {
		namespace_close(ns);
		return err;
	}
	*out = ns;
	return 0;
}

void namespace_close(struct namespace *ns)
{
	if (!ns)
		return;
	subvols_close(ns);
	snapshot_table_free(&ns->snapshots);
	free(ns);
}

const char *namespace_fallback(const struct namespace *ns) { return ns->fallback[0] ? ns->fallback : NULL; }

int namespace_inode(struct namespace *ns, struct object o, struct inode *inode)
{
	struct bkey_copy copy;
	uint32_t snapshot;

	int err = subvol_snapshot(ns, o.subvol, &snapshot);
	if (err)
		return err;

	int ret = btree_lookup(ns->trees, BTREE_INODES, BPOS(0, o.inum, snapshot), &copy);
	if (ret < 0)
		return ret;
	if (!ret || (copy.k.k.type != KEY_INODE && copy.k.k.type != KEY_INODE_V2 && copy.k.k.type != KEY_INODE_V3))
		return -ENOENT;
	return inode_unpack(copy.k, inode, NULL) ? -EIO : 0;
}

int namespace_data_file(struct namespace *ns, struct object o, const struct inode *inode, struct data_file *file)
{
	*file = (struct data_file){ .inum = o.inum, .size_bytes = inode->size };
	return subvol_snapshot(ns, o.subvol, &file->snapshot);
}

static void note_damage(void *ctx, uint64_t offset_bytes, uint64_t len_bytes, int err)
{
	(void)offset_bytes;
	(void)len_bytes;
	*(int *)ctx = err;
}

ssize_t namespace_readlink(struct namespace *ns, struct object o, char *buf, size_t size)
{
	enum { TARGET_MAX = 4096 };
	char target[TARGET_MAX];
	struct inode inode;
	struct data_file file;

	int err = namespace_inode(ns, o, &inode);
	if (err)
		return err;
	if (!S_ISLNK(inode.mode))
		return -EINVAL;
	err = namespace_data_file(ns, o, &inode, &file);
	if (err)
		return err;

	int damage = 0;
	ssize_t len =
		data_read(ns->data, &file, 0, target, min(inode.size, (uint64_t)sizeof(target)), note_damage, &damage);
	if (len < 0 || damage)
		return len < 0 ? len : damage;

	/* Upstream's FUSE front end counts a terminating NUL (04 §5). */
	size_t n = min(strnlen(target, (size_t)len), size);
	memcpy(buf, target, n);
	return (ssize_t)n;
}
