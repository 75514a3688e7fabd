/*
 * Changes of the namespace: start and stop, and the steps that the operations are made of. See change.h.
 *
 * Every operation reads what it needs inside its transaction, the subvolume's snapshot first, and is ready to be run
 * again; so its arguments hold what was given, and results that the last run has set.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "namespace/change_internal.h"

int namespace_start_write(struct namespace *ns, struct allocator *allocator)
{
	/* A view that was put together from what is left isn't one to write to. */
	if (ns->fallback[0] || ns->snapshots.is_incomplete)
		return -EROFS;

	struct namespace_write *write = calloc(1, sizeof(*write));
	if (!write)
		return -ENOMEM;
	write->allocator = allocator;
	inum_allocator_init(&write->inums, ns->super);
	mutex_init_ranked(&write->many_lock, LOCK_BATCHES);
	ns->write = write;

	int err = deletions_start(ns);
	if (err) {
		mutex_destroy(&write->many_lock);
		inum_allocator_destroy(&write->inums);
		ns->write = NULL;
		free(write);
	}
	return err;
}

void namespace_stop_write(struct namespace *ns)
{
	struct namespace_write *write = ns->write;

	if (!write)
		return;
	deletions_stop(ns);
	ns->write = NULL;
	mutex_destroy(&write->many_lock);
	inum_allocator_destroy(&write->inums);
	free(write);
}

int change_run(struct namespace *ns, const char *name, uint64_t *journal_seq, btree_txn_fn fn, void *args)
{
	struct room_wait room = deletions_room_begin(ns);
	int err;

	do {
		err = change_try(ns, name, journal_seq, fn, args);
	} while (deletions_give_room(ns, err, &room));
	return err;
}

int change_try(struct namespace *ns, const char *name, uint64_t *journal_seq, btree_txn_fn fn, void *args)
{
	if (!ns->write)
		return -EROFS;
	struct btree_commit_opts opts = {
		.name = name,
		.watermark = WATERMARK_NORMAL,
		.journal_seq = journal_seq,
	};
	return btree_txn_run(ns->trees, &opts, fn, args);
}

int change_room_check(const struct namespace *ns)
{
	/* Tests do without space. */
	return ns->write->allocator ? allocator_key_room(ns->write->allocator) : 0;
}

uint64_t change_time(const struct super *super)
{
	enum { NSEC_PER_SEC = 1000000000 };
	uint64_t now = clock_tick_ns();

	return inode_time_encode(&super->kctx, (struct inode_time){ .sec = (int64_t)(now / NSEC_PER_SEC),
								    .nsec = (uint32_t)(now % NSEC_PER_SEC) });
}

int change_name_check(const char *name, size_t len)
{
	bool is_dots = (len == 1 || len == 2) && !memcmp(name, "..", len);

	if (!len || is_dots || memchr(name, 0, len) || memchr(name, '/', len))
		return -EINVAL;
	return len > NAME_BYTES_MAX ? -ENAMETOOLONG : 0;
}

int subvol_txn_get(struct btree_txn *txn, uint32_t subvol, struct subvolume *sv)
{
	struct bkey_ref k;
	int ret = btree_txn_get(txn, BTREE_SUBVOLUMES, BPOS(0, subvol, 0), 0, &k);

	if (ret < 0)
		return ret;
	if (!ret || k.k.type != KEY_SUBVOLUME)
		return -ENOENT;
	subvolume_decode(k, sv);
	return sv->is_deleted || sv->is_unlinked ? -ENOENT : 0;
}

int subvol_txn_snapshot(struct btree_txn *txn, uint32_t subvol, uint32_t *snapshot)
{
	struct subvolume sv;
	int err = subvol_txn_get(txn, subvol, &sv);

	if (err)
		return err;
	*snapshot = sv.snapshot;
	return sv.is_readonly ? -EROFS : 0;
}

int dir_txn_get(struct btree_txn *txn, uint64_t inum, uint32_t snapshot, struct inode *dir)
{
	int err = inode_txn_get(txn, inum, snapshot, dir);

	if (err)
		return err;
	if (!S_ISDIR(dir->mode))
		return -ENOTDIR;
	if (dir->flags & INODE_UNLINKED)
		return -ENOENT;
	if (dir->flags & INODE_CASEFOLD)
		return -EOPNOTSUPP;
	return dir->flags & INODE_IMMUTABLE ? -EPERM : 0;
}

int dir_txn_put(struct btree_txn *txn, struct inode *dir, uint64_t now)
{
	dir->mtime = dir->ctime = now;
	return inode_txn_put(txn, dir);
}

int dir_txn_has_entries(struct btree_txn *txn, const struct inode *dir)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_txn_iter_open(&it, txn, BTREE_DIRENTS, BPOS(dir->inum, 0, dir->snapshot), 0, dir->snapshot);
	it.end = BPOS(dir->inum, UINT64_MAX, UINT32_MAX);
	while ((ret = btree_iter_peek(&it, &k)) > 0) {
		if (k.k.type == KEY_DIRENT)
			break;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return ret;
}

int dirent_txn_put(struct btree_txn *txn, const struct hash_table *t, uint64_t slot, const struct dirent *d)
{
	enum { DIRENT_BYTES_MAX = 9 + DIRENT_NAME_MAX + 7 };
	uint8_t value[DIRENT_BYTES_MAX];
	struct bkey k = { .p = BPOS(t->inum, slot, t->snapshot), .type = KEY_DIRENT };

	k.value_u64s = (uint8_t)(dirent_encode(d, value, sizeof(value)) / 8);
	return k.value_u64s ? btree_txn_put(txn, BTREE_DIRENTS, &k, value, 0) : -ENAMETOOLONG;
}

int inode_link_add(struct inode *inode)
{
	uint32_t bias = S_ISDIR(inode->mode) ? 2 : 1;

	if (inode->flags & INODE_UNLINKED) {
		inode->flags &= ~(uint32_t)INODE_UNLINKED;
		return 0;
	}
	if (inode->nlink >= UINT32_MAX - bias)
		return -EMLINK;
	inode->nlink++;
	return 0;
}

int inode_link_drop(struct inode *inode)
{
	if (inode->flags & INODE_UNLINKED)
		return -EIO;
	/* What counts for a directory are its entries, and it has none when it goes. */
	if (S_ISDIR(inode->mode))
		inode->nlink = 0;
	if (inode->nlink)
		inode->nlink--;
	else
		inode->flags |= INODE_UNLINKED;
	return 0;
}

bool inode_opts_inherit(struct inode *inode, const struct inode *dir)
{
	bool has_changed = false;

	for (unsigned i = 0; i < INODE_OPT_NR_1_4; i++) {
		if (inode->fields_set & 1u << i || inode->opts[i] == dir->opts[i])
			continue;
		inode->opts[i] = dir->opts[i];
		has_changed = true;
	}
	return has_changed;
}

uint8_t inode_dirent_type(const struct inode *inode) { return (uint8_t)((inode->mode & S_IFMT) >> 12); }
