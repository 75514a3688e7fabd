/*
 * The root directory, and ways up to it: every directory's backpointers lead to a subvolume's root, and those to the
 * root of subvolume 1, without loops (04 §11). That backpointers are right is check_dirents' business.
 *
 * All directories are written down in order; then each is climbed from, in its own snapshot, until the root or a
 * directory that is known to be good in that snapshot. A climb of more steps than there are directories is in a loop.
 *
 * Memory: a check_table, 32 bytes per version of a directory, looked up at random; subvolumes are looked up one by one.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "recovery/check_internal.h"

enum dir_state { DIR_UNKNOWN, DIR_GOOD, DIR_BAD };

struct dir {
	uint64_t inum, parent;
	uint32_t snapshot, view, subvol;
	uint8_t state;
};

struct dirs {
	struct check *c;
	struct check_table table;
};

/*
 * What a snapshot sees at a position: 1, copied, 0 nothing, or an error. The checker's own table of snapshots decides:
 * the btrees' may not be there yet.
 */
static int visible_lookup(struct check *c, unsigned btree_id, struct bpos p, struct bkey_copy *copy)
{
	struct btree_iter it;
	struct bkey_ref k;
	int n;

	btree_iter_open(&it, c->trees, btree_id, p, BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(p.inode, p.offset, UINT32_MAX);
	while ((n = btree_iter_peek(&it, &k)) > 0 && !check_is_ancestor(c, p.snapshot, k.k.p.snapshot))
		btree_iter_advance(&it);
	if (n > 0) {
		copy->k.k = k.k;
		copy->k.value = copy->value;
		memcpy(copy->value, k.value, bkey_value_bytes(&k.k));
	}
	btree_iter_close(&it);
	return n;
}

int check_inode_lookup(struct check *c, uint64_t inum, uint32_t snapshot, struct inode *inode)
{
	struct bkey_copy found;
	int n = visible_lookup(c, BTREE_INODES, BPOS(0, inum, snapshot), &found);
	unsigned type = n > 0 ? found.k.k.type : KEY_DELETED;

	if (n <= 0)
		return n;
	if (type != KEY_INODE_V3 && type != KEY_INODE_V2 && type != KEY_INODE)
		return 0;
	return !inode_unpack(found.k, inode, NULL);
}

int check_subvol_lookup(struct check *c, uint32_t id, struct subvolume *sv)
{
	struct bkey_copy found;
	int n = btree_lookup(c->trees, BTREE_SUBVOLUMES, BPOS(0, id, 0), &found);

	if (n <= 0 || found.k.k.type != KEY_SUBVOLUME)
		return n < 0 ? n : 0;
	subvolume_decode(found.k, sv);
	return !sv->is_deleted;
}

/* --- the root --- */

int check_root(struct check *c)
{
	struct bpos p = BPOS(0, INODE_NR_ROOT, 0);
	struct subvolume sv;
	struct inode root;

	if (!check_is_whole(c, CHECK_BTREE(BTREE_INODES) | CHECK_BTREE(BTREE_SUBVOLUMES)))
		return 0;
	int n = check_subvol_lookup(c, SUBVOL_ROOT, &sv);
	if (n < 0)
		return n == -ENOMEM ? n : 0;
	if (!n)
		return check_report_pos(c, ERROR_root_subvol_missing, BTREE_SUBVOLUMES, BPOS(0, SUBVOL_ROOT, 0),
					"the root subvolume", "none");
	p.snapshot = sv.snapshot;
	n = check_inode_lookup(c, INODE_NR_ROOT, sv.snapshot, &root);
	if (n < 0)
		return n == -ENOMEM ? n : 0;
	if (!n || sv.inode != INODE_NR_ROOT)
		return check_report_pos(c, ERROR_root_dir_missing, BTREE_INODES, p, "the root directory", "none");
	if (!S_ISDIR(root.mode))
		check_report_pos(c, ERROR_root_inode_not_dir, BTREE_INODES, p, "a directory", "mode %o", root.mode);
	if (root.subvol != SUBVOL_ROOT)
		check_report_pos(c, root.subvol ? ERROR_inode_bi_subvol_wrong : ERROR_inode_bi_subvol_missing,
				 BTREE_INODES, p, "bi_subvol 1", "%u", root.subvol);
	if (root.dir || root.dir_offset)
		check_report_pos(c, ERROR_inode_wrong_backpointer, BTREE_INODES, p, "no backpointer of the root",
				 "%llu:%llu", (unsigned long long)root.dir, (unsigned long long)root.dir_offset);
	return 0;
}

/* --- roots of subvolumes: the entry that names them, as their parent sees it --- */

static int check_subvol_root(struct check *c, const struct inode *root)
{
	struct bpos p = BPOS(0, root->inum, root->snapshot);
	struct subvolume sv, parent;
	struct bkey_copy found;
	struct dirent e = { 0 };

	if (root->subvol == SUBVOL_ROOT && root->inum == INODE_NR_ROOT)
		return 0;
	int n = check_subvol_lookup(c, root->subvol, &sv);
	if (n < 0)
		return n == -ENOMEM ? n : 0;
	if (n && sv.inode != root->inum)
		check_report_pos(c, ERROR_inode_bi_subvol_wrong, BTREE_INODES, p, "the root of its subvolume",
				 "bi_subvol %u, whose root is %llu", root->subvol, (unsigned long long)sv.inode);
	/* Its deletion has begun (05 §5.3): it has no entry any more. */
	if (n && sv.is_unlinked)
		return 0;
	n = check_subvol_lookup(c, root->parent_subvol, &parent);
	if (n < 0)
		return n == -ENOMEM ? n : 0;
	if (!n)
		return check_report_pos(c, ERROR_dirent_to_missing_parent_subvol, BTREE_INODES, p,
					"a subvolume that it is in", "none of number %u", root->parent_subvol);
	/* What the parent sees at the place the backpointer says. */
	n = visible_lookup(c, BTREE_DIRENTS, BPOS(root->dir, root->dir_offset, parent.snapshot), &found);
	if (n < 0)
		return n == -ENOMEM ? n : 0;
	if (!n || found.k.k.type != KEY_DIRENT || dirent_decode(found.k, &e, NULL) || e.type != DIRENT_TYPE_SUBVOL ||
	    e.child_subvol != root->subvol)
		return check_report_pos(c, ERROR_inode_unreachable, BTREE_INODES, p, "the entry of its subvolume",
					"none at %llu:%llu", (unsigned long long)root->dir,
					(unsigned long long)root->dir_offset);
	return 0;
}

/* --- climbing --- */

static int dirs_begin(void *ctx, struct check_owner *o)
{
	struct dirs *d = ctx;

	for (size_t i = 0; i < o->nr; i++) {
		const struct check_version *v = &o->v[i];
		int err = 0;

		if (v->is_hole || !v->view || !S_ISDIR(v->inode.mode) || v->inode.flags & INODE_UNLINKED)
			continue;
		if (v->inode.subvol)
			err = check_subvol_root(d->c, &v->inode);
		struct dir dir = { .inum = o->inum,
				   .parent = v->inode.dir,
				   .snapshot = v->snapshot,
				   .view = v->view,
				   .subvol = v->inode.subvol };
		if (!err)
			err = check_table_add(&d->table, &dir);
		if (err)
			return err;
	}
	return 0;
}

/* The version of directory @inum that snapshot @s sees. */
static struct dir *dir_find(struct dirs *d, uint64_t inum, uint32_t s)
{
	uint64_t low = 0, high = d->table.nr;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;
		const struct dir *at = check_table_at(&d->table, middle);

		if (at->inum < inum || (at->inum == inum && at->snapshot < s))
			low = middle + 1;
		else
			high = middle;
	}
	for (; low < d->table.nr; low++) {
		struct dir *at = check_table_at(&d->table, low);

		if (at->inum != inum)
			break;
		if (check_is_ancestor(d->c, s, at->snapshot))
			return at;
	}
	return NULL;
}

/* Go the way again, and say of all on it that are in the same snapshot that they are good or bad. */
static void mark_way(struct dirs *d, struct dir *from, enum dir_state state, uint64_t steps)
{
	uint32_t s = from->view;

	for (struct dir *at = from; at && steps--; at = dir_find(d, at->parent, s)) {
		if (at->view == s)
			at->state = (uint8_t)state;
		if (at->subvol)
			break;
	}
}

static void climb(struct dirs *d, struct dir *from)
{
	uint64_t steps = 0;
	struct dir *at = from;

	while (at && !at->subvol && !(at->view == from->view && at->state) && steps <= d->table.nr) {
		at = dir_find(d, at->parent, from->view);
		steps++;
	}
	if (steps > d->table.nr) {
		check_report_pos(d->c, ERROR_dir_loop, BTREE_INODES, BPOS(0, from->inum, from->snapshot),
				 "a way up to the root", "a loop of directories");
		mark_way(d, from, DIR_BAD, steps);
	} else {
		/* A parent that isn't there has been told by check_dirents. */
		mark_way(d, from, at && at->state == DIR_BAD ? DIR_BAD : DIR_GOOD, steps + 1);
	}
}

/* Subvolumes in one another: each leads to subvolume 1. */
static int climb_subvol(void *ctx, struct bkey_ref k)
{
	struct check *c = ctx;
	uint32_t id = (uint32_t)k.k.p.offset;
	struct subvolume sv;
	struct inode root;

	for (unsigned steps = 0; id && id != SUBVOL_ROOT; steps++) {
		int n = check_subvol_lookup(c, id, &sv);

		if (n > 0)
			n = check_inode_lookup(c, sv.inode, sv.snapshot, &root);
		if (n <= 0)
			return n == -ENOMEM ? n : 0;
		id = root.parent_subvol;
		/* They nest no deeper than there are numbers below this one's; a loop shows much earlier. */
		if (steps > 1000 || id == k.k.p.offset)
			return check_report_pos(c, ERROR_subvol_loop, BTREE_SUBVOLUMES, k.k.p,
						"a way up to subvolume 1", "a loop of subvolumes");
	}
	return 0;
}

int check_directory_structure(struct check *c)
{
	static const struct check_by_inode ops = { .begin = dirs_begin };
	const uint64_t needed = CHECK_BTREE(BTREE_INODES) | CHECK_BTREE(BTREE_DIRENTS) | CHECK_BTREE(BTREE_SUBVOLUMES);
	struct dirs d = { .c = c };

	c->total = c->keys[BTREE_INODES] * 2;
	if (!check_is_whole(c, needed))
		return 0;
	check_table_init(&d.table, sizeof(struct dir), c->memory_bytes, c->is_secret);
	int err = check_each_inode(c, BTREE_NR_MAX, &ops, &d);
	for (uint64_t i = 0; !err && i < d.table.nr; i++) {
		struct dir *at = check_table_at(&d.table, i);

		if (at->state == DIR_UNKNOWN && !at->subvol)
			climb(&d, at);
		err = check_step(c, 1, BTREE_INODES, BPOS(0, at->inum, at->snapshot));
	}
	if (!err)
		err = check_keys(c, BTREE_SUBVOLUMES, 0, POS_MIN, SPOS_MAX, climb_subvol, c);
	check_table_free(&d.table);
	return err;
}
