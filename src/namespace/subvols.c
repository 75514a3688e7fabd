/*
 * Subvolumes: which snapshot and which root directory a subvolume id means, and what to show when their keys can't be
 * read (namespace.h, "Fallback views").
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/array.h"
#include "namespace/internal.h"

static int rebuilt_cmp(const void *va, const void *vb)
{
	const struct rebuilt_subvol *a = va, *b = vb;

	if (a->id != b->id)
		return a->id < b->id ? -1 : 1;
	return a->sv.snapshot < b->sv.snapshot ? -1 : a->sv.snapshot > b->sv.snapshot;
}

/* First rebuilt subvolume with an id of at least @id, or rebuilt_nr. */
static size_t rebuilt_lower_bound(const struct namespace *ns, uint32_t id)
{
	size_t lo = 0, hi = ns->rebuilt_nr;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (ns->rebuilt[mid].id < id)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static struct rebuilt_subvol *rebuilt_find(struct namespace *ns, uint32_t id)
{
	size_t i = rebuilt_lower_bound(ns, id);

	return i < ns->rebuilt_nr && ns->rebuilt[i].id == id ? &ns->rebuilt[i] : NULL;
}

/* Append one; whoever adds sorts afterwards. */
static int rebuilt_add(struct namespace *ns, uint32_t id, uint32_t snapshot, uint64_t inum)
{
	int err = array_grow(&ns->rebuilt, &ns->rebuilt_capacity, ns->rebuilt_nr + 1, sizeof(ns->rebuilt[0]));
	if (err)
		return err;
	ns->rebuilt[ns->rebuilt_nr++] = (struct rebuilt_subvol){ id, { .snapshot = snapshot, .inode = inum } };
	return 0;
}

static void rebuilt_sort(struct namespace *ns)
{
	if (ns->rebuilt_nr)
		qsort(ns->rebuilt, ns->rebuilt_nr, sizeof(ns->rebuilt[0]), rebuilt_cmp);
}

/* Subvolume as its key says: 1 found, 0 not there, or an error. */
static int subvol_lookup(struct namespace *ns, uint32_t id, struct subvolume *sv)
{
	struct bkey_copy copy;
	int ret = btree_lookup(ns->trees, BTREE_SUBVOLUMES, BPOS(0, id, 0), &copy);

	if (ret <= 0)
		return ret;
	if (copy.k.k.type != KEY_SUBVOLUME)
		return 0;
	subvolume_decode(copy.k, sv);
	return !sv->is_deleted;
}

/* Every subvolume that a snapshot node names and whose own key can't be read. */
static int rebuild_from_snapshots(struct namespace *ns)
{
	for (size_t i = 0; i < ns->snapshots.nr; i++) {
		const struct snapshot_entry *e = &ns->snapshots.entries[i];

		if (!e->s.is_subvol || !e->s.subvol)
			continue;
		int err = rebuilt_add(ns, e->s.subvol, e->id, e->s.subvol == SUBVOL_ROOT ? INODE_NR_ROOT : 0);
		if (err)
			return err;
	}
	rebuilt_sort(ns);

	/* Where several snapshots name one subvolume, the lowest id is the youngest. */
	size_t kept = 0;
	for (size_t i = 0; i < ns->rebuilt_nr; i++) {
		struct rebuilt_subvol r = ns->rebuilt[i];
		struct subvolume sv;

		if ((!kept || ns->rebuilt[kept - 1].id != r.id) && subvol_lookup(ns, r.id, &sv) <= 0)
			ns->rebuilt[kept++] = r;
	}
	ns->rebuilt_nr = kept;
	return 0;
}

/* Take the root inode of a rebuilt subvolume from @inode, if it says that it is one. */
static void rebuilt_set_root(struct namespace *ns, const struct inode *inode)
{
	struct rebuilt_subvol *r = inode->subvol ? rebuilt_find(ns, inode->subvol) : NULL;

	if (r && !r->sv.inode && snapshot_is_ancestor(&ns->snapshots, r->sv.snapshot, inode->snapshot))
		r->sv.inode = inode->inum;
}

/* Find the root directories of rebuilt subvolumes: the inodes that name them in bi_subvol. */
static int rebuild_roots(struct namespace *ns)
{
	bool is_missing = false;
	for (size_t i = 0; i < ns->rebuilt_nr; i++)
		is_missing |= !ns->rebuilt[i].sv.inode;
	if (!is_missing)
		return 0;

	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_iter_open(&it, ns->trees, BTREE_INODES, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	while ((ret = btree_iter_peek(&it, &k))) {
		struct inode inode;

		if (ret == -ENOMEM)
			break;
		if (ret < 0) {
			btree_iter_skip_damage(&it);
			continue;
		}
		if (!inode_unpack(k, &inode, NULL))
			rebuilt_set_root(ns, &inode);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return ret;
}

/* Neither subvolumes nor snapshots: subvolume 1 is whatever its root directory is stored in. */
static int rebuild_root_subvol(struct namespace *ns)
{
	struct btree_iter it;
	struct bkey_ref k;
	uint32_t snapshot = UINT32_MAX;
	int ret;

	btree_iter_open(&it, ns->trees, BTREE_INODES, BPOS(0, INODE_NR_ROOT, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(0, INODE_NR_ROOT, UINT32_MAX);
	while ((ret = btree_iter_peek(&it, &k)) > 0) {
		struct inode inode;

		if (!inode_unpack(k, &inode, NULL) && inode.subvol == SUBVOL_ROOT) {
			snapshot = inode.snapshot;
			break;
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	ret = ret == -ENOMEM ? ret : rebuilt_add(ns, SUBVOL_ROOT, snapshot, INODE_NR_ROOT);
	rebuilt_sort(ns);
	return ret;
}

/* Read every subvolume once, to know whether all can be read. */
static int subvols_scan(struct namespace *ns, int *err_out)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_iter_open(&it, ns->trees, BTREE_SUBVOLUMES, POS_MIN, 0, 0);
	while ((ret = btree_iter_peek(&it, &k))) {
		if (ret == -ENOMEM)
			break;
		if (ret < 0) {
			ns->subvols_incomplete = true;
			*err_out = ret;
			btree_iter_skip_damage(&it);
			continue;
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return ret;
}

static void fallback_describe(struct namespace *ns, int snapshots_err, int subvols_err)
{
	if (snapshots_err && subvols_err)
		snprintf(ns->fallback, sizeof(ns->fallback),
			 "the subvolumes and snapshots btrees can't be read: only subvolume 1 is shown, rebuilt from "
			 "its root "
			 "directory; of files changed since a snapshot an older version may be shown");
	else if (snapshots_err)
		snprintf(ns->fallback, sizeof(ns->fallback),
			 "the snapshots btree can't be read: where snapshots were taken, another snapshot's version of "
			 "a file "
			 "may be shown");
	else if (subvols_err)
		snprintf(
			ns->fallback, sizeof(ns->fallback),
			"the subvolumes btree can't be read: subvolumes are rebuilt from the snapshots that name them, "
			"read-only flags and creation times are lost");
	else
		return;

	report_emit(
		ns->reports,
		&(struct report){ .level = REPORT_DAMAGE,
				  .err = snapshots_err ? snapshots_err : subvols_err,
				  .structure = "namespace",
				  .found = ns->fallback,
				  .advice = "Copy what you need to another filesystem and compare it with a backup." });
}

int subvols_open(struct namespace *ns, int snapshots_err)
{
	int subvols_err = 0, err = subvols_scan(ns, &subvols_err);
	if (err < 0)
		return err;

	if (ns->subvols_incomplete && !snapshots_err) {
		err = rebuild_from_snapshots(ns);
		if (!err)
			err = rebuild_roots(ns);
		if (err)
			return err;
	}

	int ret = subvol_lookup(ns, SUBVOL_ROOT, &ns->root_subvol);
	if (ret == -ENOMEM)
		return ret;
	if (ret <= 0) {
		if (!subvols_err)
			subvols_err = -ENOENT;
		if (!rebuilt_find(ns, SUBVOL_ROOT)) {
			err = rebuild_root_subvol(ns);
			if (err)
				return err;
		}
		ns->root_subvol = rebuilt_find(ns, SUBVOL_ROOT)->sv;
	}
	fallback_describe(ns, snapshots_err, subvols_err);
	return 0;
}

void subvols_close(struct namespace *ns) { free(ns->rebuilt); }

int namespace_subvol(struct namespace *ns, uint32_t id, struct subvolume *sv)
{
	if (id == SUBVOL_ROOT) {
		*sv = ns->root_subvol;
		return 0;
	}

	int ret = subvol_lookup(ns, id, sv);
	if (ret > 0)
		return 0;

	const struct rebuilt_subvol *r = rebuilt_find(ns, id);
	if (!r)
		return ret ? ret : -ENOENT;
	*sv = r->sv;
	return 0;
}

int namespace_subvol_next(struct namespace *ns, uint32_t id, uint32_t *found, struct subvolume *sv)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret;
	bool has = false;

	btree_iter_open(&it, ns->trees, BTREE_SUBVOLUMES, BPOS(0, id, 0), 0, 0);
	while ((ret = btree_iter_peek(&it, &k)) && ret != -ENOMEM) {
		if (ret < 0) {
			btree_iter_skip_damage(&it);
			continue;
		}
		if (k.k.p.inode || k.k.p.offset > UINT32_MAX)
			break;
		if (k.k.type == KEY_SUBVOLUME) {
			subvolume_decode(k, sv);
			*found = (uint32_t)k.k.p.offset;
			has = !sv->is_deleted;
			if (has)
				break;
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	if (ret == -ENOMEM)
		return ret;

	size_t i = rebuilt_lower_bound(ns, id);
	if (i < ns->rebuilt_nr && (!has || ns->rebuilt[i].id < *found)) {
		*found = ns->rebuilt[i].id;
		*sv = ns->rebuilt[i].sv;
		return 0;
	}
	return has ? 0 : -ENOENT;
}

int subvol_snapshot(struct namespace *ns, uint32_t subvol, uint32_t *snapshot)
{
	struct subvolume sv;
	int err = namespace_subvol(ns, subvol, &sv);

	if (!err)
		*snapshot = sv.snapshot;
	return err;
}

int namespace_subvol_root(struct namespace *ns, uint32_t subvol, struct object *root)
{
	struct subvolume sv;
	int err = namespace_subvol(ns, subvol, &sv);

	if (!err)
		*root = (struct object){ subvol, sv.inode };
	return err;
}
