/*
 * New objects, many in a transaction.
 *
 * What a create costs is mostly the same for one object as for thirty: directory, subvolume and alloc keys are read,
 * checked and journalled once. An object is what it is to be at once, contents and times included, so there is nothing
 * to be changed afterwards. All that one transaction makes is there after a crash, or nothing.
 *
 * Such a transaction conflicts with any other that changes one of its directories. With others of its kind it nearly
 * always would, as who makes many objects makes them in the same places; so they take turns.
 *
 * What fails for one object must not fail for the others: names that exist are passed over, and where a transaction
 * fails as a whole its objects are tried one by one. Contents that the batch doesn't have are written when the object
 * is there.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "namespace/change_internal.h"
#include "namespace/create_many.h"

enum { OBJECTS_MAX = 32 };

struct many_args {
	struct namespace *ns;
	struct new_object *objects;
	size_t nr;
	struct data_batch *data;
	uint64_t now;
	uint64_t hash_seeds[OBJECTS_MAX];
	struct inum_claim claims[OBJECTS_MAX];
};

/* --- the transaction --- */

/* The directory that the last object was put into; written when the next is put into another. */
struct open_dir {
	struct object o;
	struct inode inode;
	struct hash_table table;
	bool is_open, is_changed;
};

static int dir_close(struct btree_txn *txn, struct open_dir *d, uint64_t now)
{
	int err = d->is_changed ? dir_txn_put(txn, &d->inode, now) : 0;

	*d = (struct open_dir){ 0 };
	return err;
}

static int dir_open(struct btree_txn *txn, struct open_dir *d, struct object o, uint64_t now)
{
	uint32_t snapshot;

	if (d->is_open && d->o.inum == o.inum && d->o.subvol == o.subvol)
		return 0;
	int err = dir_close(txn, d, now);
	if (!err)
		err = subvol_txn_snapshot(txn, o.subvol, &snapshot);
	if (!err)
		err = dir_txn_get(txn, o.inum, snapshot, &d->inode);
	if (err)
		return err;
	d->o = o;
	d->table = hash_table_of(&d->inode, BTREE_DIRENTS, o.subvol);
	d->is_open = true;
	return 0;
}

/* The inode of an object, but for what says where its name is. */
static int inode_make(struct btree_txn *txn, const struct many_args *a, size_t i, const struct inode *dir,
		      struct inode *inode)
{
	const struct new_object *n = &a->objects[i];
	const struct key_context *kctx = &a->ns->super->kctx;

	inode_init(a->ns->super, a->now, a->hash_seeds[i], inode);
	int err = change_room_check(a->ns);
	if (!err)
		err = inum_txn_use(txn, &a->claims[i], dir->snapshot, inode);
	if (err)
		return err;
	inode->mode = (uint16_t)n->mode;
	inode->uid = n->uid;
	inode->gid = n->gid;
	if (S_ISCHR(inode->mode) || S_ISBLK(inode->mode))
		inode->dev = n->rdev_major << 20 | n->rdev_minor;
	inode->atime = inode_time_encode(kctx, n->atime);
	inode->mtime = inode_time_encode(kctx, n->mtime);
	inode_opts_inherit(inode, dir);
	return 0;
}

/* What is in it. */
static int contents_put(struct btree_txn *txn, const struct many_args *a, struct new_object *n, struct inode *inode)
{
	if (S_ISLNK(inode->mode))
		return symlink_target_put(txn, a->ns, n->target, n->target_len, inode);
	if (!n->has_contents || n->is_to_be_written)
		return 0;
	int err = data_batch_put(txn, a->data, n->contents, inode);
	n->is_to_be_written = err == -KILN_E_NOT_FOUND_HERE;
	return n->is_to_be_written ? 0 : err;
}

static int object_make(struct btree_txn *txn, const struct many_args *a, size_t i, struct open_dir *d)
{
	struct new_object *n = &a->objects[i];
	struct bkey_ref old;
	struct inode inode;
	uint64_t slot;

	int ret = dir_open(txn, d, n->dir, a->now);
	if (ret)
		return ret;
	ret = hash_table_find(txn, &d->table, &(struct hash_name){ 0, n->name, n->len }, &slot, &old);
	n->err = ret > 0 ? -EEXIST : 0;
	if (ret)
		return min(ret, 0);
	ret = inode_make(txn, a, i, &d->inode, &inode);
	if (!ret)
		ret = contents_put(txn, a, n, &inode);
	if (ret)
		return ret;
	struct dirent dirent = { .type = inode_dirent_type(&inode),
				 .inum = inode.inum,
				 .name = (const uint8_t *)n->name,
				 .name_len = (uint16_t)n->len };
	ret = dirent_txn_put(txn, &d->table, slot, &dirent);
	if (!ret && S_ISDIR(inode.mode))
		ret = inode_link_add(&d->inode);
	if (ret)
		return ret;
	inode.dir = d->inode.inum;
	inode.dir_offset = slot;
	d->is_changed = true;
	n->created = (struct object){ n->dir.subvol, inode.inum };
	return inode_txn_put(txn, &inode);
}

static int many_run(struct btree_txn *txn, void *ctx)
{
	struct many_args *a = ctx;
	struct open_dir d = { 0 };
	int err = 0;

	for (size_t i = 0; i < a->nr && !err; i++)
		err = object_make(txn, a, i, &d);
	return err ? err : dir_close(txn, &d, a->now);
}

/* --- running it --- */

static int many_run_once(struct many_args *a, uint64_t *journal_seq)
{
	struct btree_commit_opts opts = { .name = "create_many",
					  .watermark = WATERMARK_NORMAL,
					  .journal_seq = journal_seq,
					  .reservation = a->data ? data_batch_reservation(a->data) : NULL };
	size_t claimed = 0;
	int err = 0;

	while (claimed < a->nr && !err) {
		err = inum_claim(a->ns, &a->claims[claimed]);
		claimed += !err;
	}
	if (!err)
		err = btree_txn_run(a->ns->trees, &opts, many_run, a);
	while (claimed)
		inum_unclaim(a->ns, &a->claims[--claimed]);
	return err;
}

/* Make @nr objects in one transaction; if it fails, each in one of its own. */
static void group_make(struct namespace *ns, struct new_object *objects, size_t nr, struct data_batch *data,
		       uint64_t *journal_seq)
{
	struct many_args a = { .ns = ns, .objects = objects, .nr = nr, .data = data, .now = change_time(ns->super) };
	int err;

	random_bytes(a.hash_seeds, nr * sizeof(a.hash_seeds[0]));
	do {
		err = many_run_once(&a, journal_seq);
	} while (err == -KILN_E_NOT_FOUND_HERE);
	if (err && nr == 1)
		objects->err = err;
	for (size_t i = 0; err && nr > 1 && i < nr; i++)
		group_make(ns, &objects[i], 1, data, journal_seq);
}

/* What wasn't made for want of room is tried again once deletions have given some, which is waited for without lock. */
static void group_make_with_room(struct namespace *ns, struct new_object *objects, size_t nr, struct data_batch *data,
				 uint64_t *journal_seq)
{
	struct mutex *lock = &ns->write->many_lock;
	struct room_wait room = deletions_room_begin(ns);

	mutex_lock(lock);
	group_make(ns, objects, nr, data, journal_seq);
	mutex_unlock(lock);
	for (size_t i = 0; i < nr; i++)
		while (deletions_give_room(ns, objects[i].err, &room)) {
			mutex_lock(lock);
			objects[i].err = 0;
			group_make(ns, &objects[i], 1, data, journal_seq);
			mutex_unlock(lock);
		}
}

/*
 * About how many words of a journal entry an object takes, with what follows from it. An extent brings a backpointer
 * for each replica, and may be the only one of a bucket.
 */
static unsigned object_u64s(const struct super *super, const struct new_object *o, const struct data_batch *data)
{
	enum { OBJECT_U64S = 80, EXTENT_U64S = 12, REPLICA_U64S = 16, BUCKET_U64S = 64 };
	unsigned replicas = max((unsigned)super->options[OPT_DATA_REPLICAS], 1u);

	if (!o->has_contents || o->is_to_be_written)
		return OBJECT_U64S;
	return OBJECT_U64S +
	       data_batch_key_nr(data, o->contents) * (EXTENT_U64S + replicas * (REPLICA_U64S + (unsigned)BUCKET_U64S));
}

/* What a transaction may take: it fits into any entry, as buckets aren't smaller than nodes, and mostly into a node. */
static unsigned group_u64s_max(const struct super *super) { return super->kctx.node_sectors * SECTOR_BYTES / 8 / 2; }

/* How many of the objects go into the next transaction. */
static size_t group_size(const struct super *super, const struct new_object *objects, size_t nr,
			 const struct data_batch *data)
{
	unsigned u64s = 0;
	size_t n = 0;

	for (; n < min(nr, (size_t)OBJECTS_MAX); n++) {
		u64s += object_u64s(super, &objects[n], data);
		if (n && u64s > group_u64s_max(super))
			break;
	}
	return n;
}

static int object_check(const struct new_object *n, const struct super *super)
{
	int err = change_name_check(n->name, n->len);

	if (err)
		return err;
	if (!S_ISLNK(n->mode))
		return change_type_check(n->mode, n->rdev_major, n->rdev_minor);
	return n->target_len && n->target_len <= symlink_inline_bytes_max(super) && !memchr(n->target, 0, n->target_len)
		       ? 0
		       : -EINVAL;
}

/* Contents that the transaction couldn't put. The object is there, and has everything else. */
static int contents_write(struct namespace *ns, const struct new_object *n, const struct data_batch *data,
			  uint64_t *journal_seq)
{
	struct setattr attr = { .fields = SETATTR_MODE | SETATTR_ATIME | SETATTR_MTIME,
				.mode = n->mode & 07777,
				.atime = n->atime,
				.mtime = n->mtime };
	size_t bytes;
	const void *contents = data_batch_contents(data, n->contents, &bytes);
	ssize_t written = namespace_write(ns, n->created, 0, contents, bytes, 0, journal_seq);

	if (written < 0 || (size_t)written < bytes)
		return written < 0 ? (int)written : -ENOSPC;
	return namespace_setattr(ns, n->created, &attr, NULL, journal_seq);
}

void namespace_create_many(struct namespace *ns, struct new_object *objects, size_t nr, struct data_batch *data,
			   uint64_t *journal_seq)
{
	size_t done = 0;

	for (size_t i = 0; i < nr; i++) {
		objects[i].is_to_be_written = false;
		objects[i].is_to_be_written = object_u64s(ns->super, &objects[i], data) > group_u64s_max(ns->super) &&
					      objects[i].has_contents;
		objects[i].err = ns->write ? object_check(&objects[i], ns->super) : -EROFS;
	}
	for (size_t i = 0; i < nr; i++)
		if (!objects[i].err && S_ISLNK(objects[i].mode))
			objects[i].err = super_feature_set(ns->super, SB_FEATURE_INLINE_DATA);
	while (done < nr) {
		/* What can't be made stays out of the groups. */
		if (objects[done].err) {
			done++;
			continue;
		}
		size_t good = 1;
		while (done + good < nr && !objects[done + good].err)
			good++;
		size_t n = group_size(ns->super, &objects[done], good, data);
		group_make_with_room(ns, &objects[done], n, data, journal_seq);
		done += n;
	}
	for (size_t i = 0; i < nr; i++)
		if (!objects[i].err && objects[i].is_to_be_written)
			objects[i].err = contents_write(ns, &objects[i], data, journal_seq);
}
