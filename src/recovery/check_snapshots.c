/*
 * Snapshots, their trees, and subvolumes: all that they say of one another (05 §7). And operations that weren't
 * finished.
 *
 * Memory: the snapshot table.
 */
#include <errno.h>

#include "recovery/check_internal.h"

static int tree_lookup(struct check *c, uint32_t id, struct snapshot_tree *t)
{
	struct bkey_copy found;
	int n = btree_lookup(c->trees, BTREE_SNAPSHOT_TREES, BPOS(0, id, 0), &found);

	if (n <= 0 || found.k.k.type != KEY_SNAPSHOT_TREE)
		return n < 0 ? n : 0;
	snapshot_tree_decode(found.k, t);
	return 1;
}

/* A btree that can't be read is told elsewhere; without memory there is no going on. */
static int lookup_failed(int n) { return n == -ENOMEM ? n : 0; }

static const struct snapshot *snapshot_of(struct check *c, uint32_t id)
{
	return id ? snapshot_table_find(&c->snapshots, id) : NULL;
}

/* --- trees --- */

static int check_tree(void *ctx, struct bkey_ref k)
{
	struct check *c = ctx;
	struct snapshot_tree t;
	struct subvolume sv;

	if (k.k.type != KEY_SNAPSHOT_TREE)
		return 0;
	snapshot_tree_decode(k, &t);
	const struct snapshot *root = snapshot_of(c, t.root_snapshot);
	if (!root || root->parent || root->tree != k.k.p.offset)
		return check_report_pos(c, ERROR_snapshot_tree_to_missing_snapshot, BTREE_SNAPSHOT_TREES, k.k.p,
					"a root snapshot that is in this tree", "%u", t.root_snapshot);
	/* All of it waits for its deletion; its subvolumes are gone. */
	if (!check_snapshot_view(c, t.root_snapshot))
		return 0;
	int n = check_subvol_lookup(c, t.master_subvol, &sv);
	if (n < 0)
		return lookup_failed(n);
	if (!n)
		return check_report_pos(c, ERROR_snapshot_tree_to_missing_subvol, BTREE_SNAPSHOT_TREES, k.k.p,
					"a subvolume", "none of number %u", t.master_subvol);
	if (!check_is_ancestor(c, sv.snapshot, t.root_snapshot))
		return check_report_pos(c, ERROR_snapshot_tree_to_wrong_subvol, BTREE_SNAPSHOT_TREES, k.k.p,
					"a subvolume of this tree", "%u, which is in another", t.master_subvol);
	if (sv.is_snapshot)
		return check_report_pos(c, ERROR_snapshot_tree_to_snapshot_subvol, BTREE_SNAPSHOT_TREES, k.k.p,
					"a subvolume that is no snapshot", "%u, which is one", t.master_subvol);
	return 0;
}

int check_snapshot_trees(struct check *c)
{
	if (!check_is_whole(c, CHECK_BTREE(BTREE_SNAPSHOTS) | CHECK_BTREE(BTREE_SUBVOLUMES)))
		return 0;
	return check_keys(c, BTREE_SNAPSHOT_TREES, 0, POS_MIN, SPOS_MAX, check_tree, c);
}

/* --- nodes --- */

static void check_edges(struct check *c, struct bpos p, uint32_t id, const struct snapshot *s)
{
	const struct snapshot *parent = snapshot_of(c, s->parent);

	if (s->parent && (!parent || (parent->children[0] != id && parent->children[1] != id)))
		check_report_pos(c, ERROR_snapshot_edge_bad, BTREE_SNAPSHOTS, p, "a parent that has it as child",
				 parent ? "%u, which has others" : "no snapshot %u", s->parent);
	for (unsigned i = 0; i < 2; i++) {
		const struct snapshot *child = snapshot_of(c, s->children[i]);

		if (s->children[i] && (!child || child->parent != id))
			check_report_pos(c, ERROR_snapshot_edge_bad, BTREE_SNAPSHOTS, p,
					 "children that have it as parent",
					 child ? "%u, which has another" : "no snapshot %u", s->children[i]);
	}
}

static int check_node_subvol(struct check *c, struct bpos p, uint32_t id, const struct snapshot *s)
{
	struct subvolume sv;

	if (!s->is_subvol || s->will_delete)
		return !s->subvol ? 0
				  : check_report_pos(c, ERROR_snapshot_should_not_have_subvol, BTREE_SNAPSHOTS, p,
						     "no subvolume", "%u", s->subvol);
	int n = check_subvol_lookup(c, s->subvol, &sv);
	if (n < 0)
		return lookup_failed(n);
	if (!n || sv.snapshot != id)
		return check_report_pos(c, ERROR_snapshot_subvol_backref_wrong, BTREE_SNAPSHOTS, p,
					"a subvolume that is in this snapshot", "%u", s->subvol);
	if (s->children[0] || s->children[1])
		return check_report_pos(c, ERROR_subvol_snapshot_not_leaf, BTREE_SNAPSHOTS, p,
					"no snapshots below a subvolume's", "%u", s->children[0]);
	return 0;
}

static int check_node_tree(struct check *c, struct bpos p, uint32_t id, const struct snapshot *s)
{
	struct snapshot_tree t;
	int n = tree_lookup(c, s->tree, &t);

	if (n < 0)
		return lookup_failed(n);
	if (!n || !check_is_ancestor(c, id, t.root_snapshot))
		return check_report_pos(c, ERROR_snapshot_to_bad_snapshot_tree, BTREE_SNAPSHOTS, p,
					"the tree that its root is of", "%u", s->tree);
	return 0;
}

/* Depth and skip list came with 1.1: upgrading makes them. */
static bool has_ways_up(const struct check *c) { return sb_upgrade_complete(c->super->sb) >= VERSION(1, 1); }

static int check_node(void *ctx, struct bkey_ref k)
{
	struct check *c = ctx;
	uint32_t id = (uint32_t)k.k.p.offset, depth = 0;
	struct snapshot s;

	if (k.k.type != KEY_SNAPSHOT)
		return 0;
	snapshot_decode(k, &s);
	check_edges(c, k.k.p, id, &s);
	int err = check_node_subvol(c, k.k.p, id, &s);
	if (!err && check_is_whole(c, CHECK_BTREE(BTREE_SNAPSHOT_TREES)))
		err = check_node_tree(c, k.k.p, id, &s);
	if (err || !has_ways_up(c))
		return err;
	/* Parents in the table are above their children, so this ends. */
	for (const struct snapshot *at = snapshot_of(c, s.parent); at; at = snapshot_of(c, at->parent))
		depth++;
	if (s.depth != depth)
		check_report_pos(c, ERROR_snapshot_bad_depth, BTREE_SNAPSHOTS, k.k.p, "the number of its ancestors",
				 "depth %u instead of %u", s.depth, depth);
	for (unsigned i = 0; i < 3; i++) {
		bool is_good = s.parent ? s.skip[i] && s.skip[i] != id && check_is_ancestor(c, s.parent, s.skip[i])
					: !s.skip[i];

		if (!is_good) {
			check_report_pos(c, ERROR_snapshot_bad_skiplist, BTREE_SNAPSHOTS, k.k.p,
					 s.parent ? "ancestors in the skip list" : "an empty skip list of a root", "%u",
					 s.skip[i]);
			break;
		}
	}
	return 0;
}

int check_snapshots(struct check *c)
{
	if (!check_is_whole(c, CHECK_BTREE(BTREE_SNAPSHOTS) | CHECK_BTREE(BTREE_SUBVOLUMES)))
		return 0;
	return check_keys(c, BTREE_SNAPSHOTS, 0, POS_MIN, SPOS_MAX, check_node, c);
}

/* --- subvolumes --- */

static int check_subvol(void *ctx, struct bkey_ref k)
{
	struct check *c = ctx;
	struct snapshot_tree t;
	struct subvolume sv;
	struct inode root;

	if (k.k.type != KEY_SUBVOLUME)
		return 0;
	subvolume_decode(k, &sv);
	const struct snapshot *s = snapshot_of(c, sv.snapshot);
	if (!s || s->subvol != k.k.p.offset)
		return check_report_pos(c, ERROR_subvol_snapshot_bad, BTREE_SUBVOLUMES, k.k.p,
					"a snapshot that leads back here", "%u", sv.snapshot);
	int n = tree_lookup(c, s->tree, &t);
	if (n < 0)
		return lookup_failed(n);
	if (n && !sv.is_snapshot && !sv.is_unlinked && t.master_subvol != k.k.p.offset)
		check_report_pos(c, ERROR_subvol_not_master_and_not_snapshot, BTREE_SUBVOLUMES, k.k.p,
				 "to be a snapshot, or the master of its tree", "neither");
	if (!check_is_whole(c, CHECK_BTREE(BTREE_INODES)))
		return 0;
	n = check_inode_lookup(c, sv.inode, sv.snapshot, &root);
	if (n < 0)
		return lookup_failed(n);
	/* Subvolume 1 is check_root's. */
	if (!n && k.k.p.offset != SUBVOL_ROOT)
		check_report_pos(c, ERROR_subvol_to_missing_root, BTREE_SUBVOLUMES, k.k.p, "a root directory", "none");
	return 0;
}

int check_subvols(struct check *c)
{
	if (!check_is_whole(c, CHECK_BTREE(BTREE_SNAPSHOTS) | CHECK_BTREE(BTREE_SUBVOLUMES) |
				       CHECK_BTREE(BTREE_SNAPSHOT_TREES)))
		return 0;
	return check_keys(c, BTREE_SUBVOLUMES, 0, POS_MIN, SPOS_MAX, check_subvol, c);
}

/* --- operations --- */

static int check_op(void *ctx, struct bkey_ref k)
{
	struct check *c = ctx;

	return check_report_pos(c, ERROR_logged_op_but_clean, BTREE_LOGGED_OPS, k.k.p,
				"no unfinished operation when clean", "one of type %u", k.k.type);
}

int check_logged_ops(struct check *c)
{
	if (!c->t->journal->was_clean || c->t->is_writable)
		return 0;
	return check_keys(c, BTREE_LOGGED_OPS, 0, POS_MIN, SPOS_MAX, check_op, c);
}
