/*
 * Directories against inodes, in both directions: places of entries, what they name, links, backpointers (04 §11).
 *
 * The first walk goes over directories. What each entry names is written down, sorted by the inode that it names, and
 * merged with a second walk over the inodes: of each version of an inode the entries that it sees are counted. A
 * snapshot that has another key in the slot doesn't see the entry; such snapshots are written down with it.
 *
 * Memory: a check_table, 40 bytes per entry and per key that hides one in a snapshot; the snapshots that hide one
 * entry; that of check_hash.c.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/array.h"
#include "recovery/check_hash.h"

/* inum, directory, slot, snapshot, hiding snapshot (0: the entry itself), type */
enum { RECORD_BYTES = 40, RECORD_HIDER = 28, RECORD_TYPE = 32 };

struct dirents {
	struct check *c;
	struct check_hash hash;
	struct check_table links;
	uint32_t *hiders;
	size_t hider_nr, hider_capacity;
};

/* --- the first walk --- */

static int link_add(struct dirents *d, uint64_t inum, struct bpos p, uint32_t hider, unsigned type)
{
	uint8_t record[RECORD_BYTES] = { 0 };

	check_be64(record, inum);
	check_be64(record + 8, p.inode);
	check_be64(record + 16, p.offset);
	check_be32(record + 24, p.snapshot);
	check_be32(record + RECORD_HIDER, hider);
	record[RECORD_TYPE] = (uint8_t)type;
	return check_table_add(&d->links, record);
}

/* The entry, and those below its snapshot that have something else in the slot: they come before it. */
static int link_add_all(struct dirents *d, struct bpos p, const struct dirent *e)
{
	int err = link_add(d, e->inum, p, 0, e->type);

	for (size_t i = 0; !err && i < d->hash.nr; i++)
		if (d->hash.keys[i].offset == p.offset && d->hash.keys[i].snapshot < p.snapshot &&
		    check_is_ancestor(d->c, d->hash.keys[i].snapshot, p.snapshot))
			err = link_add(d, e->inum, p, d->hash.keys[i].snapshot, 0);
	return err;
}

/* An entry that names a subvolume: these are few, and are looked up. */
static int check_subvol_entry(struct check *c, struct bpos p, const struct dirent *e)
{
	struct bkey_copy found;
	struct subvolume sv;
	struct inode root;

	int n = btree_lookup(c->trees, BTREE_SUBVOLUMES, BPOS(0, e->child_subvol, 0), &found);
	if (n < 0)
		return n == -ENOMEM ? n : 0;
	if (n && found.k.k.type == KEY_SUBVOLUME)
		subvolume_decode(found.k, &sv);
	if (!n || found.k.k.type != KEY_SUBVOLUME || sv.is_unlinked)
		return check_report_pos(c, ERROR_dirent_to_missing_subvol, BTREE_DIRENTS, p, "a subvolume",
					"none of number %u", e->child_subvol);
	n = check_inode_lookup(c, sv.inode, sv.snapshot, &root);
	if (n < 0)
		return n == -ENOMEM ? n : 0;
	if (!n)
		return check_report_pos(c, ERROR_subvol_to_missing_root, BTREE_SUBVOLUMES, BPOS(0, e->child_subvol, 0),
					"a root directory", "none");
	if (root.subvol != e->child_subvol)
		check_report_pos(c, ERROR_subvol_root_wrong_bi_subvol, BTREE_INODES, BPOS(0, sv.inode, root.snapshot),
				 "the subvolume whose root it is", "bi_subvol %u instead of %u", root.subvol,
				 e->child_subvol);
	if (root.parent_subvol != e->parent_subvol)
		check_report_pos(c, ERROR_dirent_d_parent_subvol_wrong, BTREE_DIRENTS, p,
				 "the parent that the root says", "%u instead of %u", e->parent_subvol,
				 root.parent_subvol);
	return 0;
}

static int dirents_begin(void *ctx, struct check_owner *o)
{
	struct dirents *d = ctx;

	for (size_t i = 0; i < o->nr; i++) {
		o->v[i].count = 0;
		o->v[i].is_found = false;
	}
	check_hash_begin(&d->hash, o);
	return 0;
}

static void dirents_seen(void *ctx, struct check_version *v, const struct check_hash_key *k)
{
	v->count += k->is_entry && k->dirent_type == DIRENT_TYPE_DIR;
	v->is_found |= k->is_entry;
}

static int dirents_key(void *ctx, struct check_owner *o, struct bkey_ref k)
{
	struct dirents *d = ctx;
	struct dirent e;
	int err = check_hash_key(&d->hash, o, k);

	if (err || k.k.type != KEY_DIRENT || !check_hash_is_seen(&d->hash))
		return err;
	const struct check_version *v = check_owner_at(d->c, o, k.k.p.snapshot);
	if (!v)
		return check_report_pos(d->c, ERROR_dirent_in_missing_dir_inode, BTREE_DIRENTS, k.k.p, "a directory",
					"no inode");
	if (!S_ISDIR(v->inode.mode))
		return check_report_pos(d->c, ERROR_dirent_in_non_dir_inode, BTREE_DIRENTS, k.k.p, "a directory",
					"mode %o", v->inode.mode);
	if (dirent_decode(k, &e, NULL))
		return 0;
	if (e.name_len > DIRENT_NAME_MAX)
		check_report_pos(d->c, CHECK_dirent_name_too_long, BTREE_DIRENTS, k.k.p, "at most 512 bytes", "%u",
				 e.name_len);
	return e.type == DIRENT_TYPE_SUBVOL ? check_subvol_entry(d->c, k.k.p, &e) : link_add_all(d, k.k.p, &e);
}

static int dirents_end(void *ctx, struct check_owner *o)
{
	struct dirents *d = ctx;

	check_hash_end(&d->hash, o);
	for (size_t i = 0; i < o->nr; i++) {
		const struct check_version *v = &o->v[i];
		struct bpos p = BPOS(0, o->inum, v->snapshot);

		if (v->is_hole || !v->view || !S_ISDIR(v->inode.mode))
			continue;
		if (v->inode.flags & INODE_UNLINKED && v->is_found)
			check_report_pos(d->c, ERROR_inode_dir_unlinked_but_not_empty, BTREE_INODES, p,
					 "an empty directory where it is unlinked", "entries");
		else if (!(v->inode.flags & INODE_UNLINKED) && v->count != v->inode.nlink)
			check_report_pos(d->c, ERROR_inode_dir_wrong_nlink, BTREE_INODES, p,
					 "the number of directories in it", "nlink %u instead of %u", v->inode.nlink,
					 v->count);
	}
	return 0;
}

/* --- the second walk --- */

static struct bpos record_pos(const uint8_t *r)
{
	return BPOS(check_be64_get(r + 8), check_be64_get(r + 16), check_be32_get(r + 24));
}

/* Take the entry at the head of the table, and what hides it. */
static int link_take(struct dirents *d, struct bpos *p, unsigned *type)
{
	const uint8_t *r = check_table_peek(&d->links);
	uint64_t inum = check_be64_get(r);

	*p = record_pos(r);
	*type = r[RECORD_TYPE];
	d->hider_nr = 0;
	for (check_table_next(&d->links); (r = check_table_peek(&d->links)); check_table_next(&d->links)) {
		if (check_be64_get(r) != inum || !check_be32_get(r + RECORD_HIDER) || !bpos_eq(record_pos(r), *p))
			return 0;
		if (array_grow(&d->hiders, &d->hider_capacity, d->hider_nr + 1, sizeof(*d->hiders)))
			return -ENOMEM;
		d->hiders[d->hider_nr++] = check_be32_get(r + RECORD_HIDER);
	}
	return 0;
}

static bool link_is_seen(const struct dirents *d, struct bpos p, uint32_t s)
{
	if (!check_is_ancestor(d->c, s, p.snapshot))
		return false;
	for (size_t i = 0; i < d->hider_nr; i++)
		if (check_is_ancestor(d->c, s, d->hiders[i]))
			return false;
	return true;
}

static int report_no_target(struct dirents *d, struct bpos p, uint64_t inum)
{
	return check_report_pos(d->c, ERROR_dirent_to_missing_inode, BTREE_DIRENTS, p, "an inode",
				"none of number %llu", (unsigned long long)inum);
}

static void count_link(struct dirents *d, struct check_owner *o, struct bpos p, unsigned type)
{
	const struct check_version *own = check_owner_at(d->c, o, p.snapshot);
	bool is_told = false, has_target = own;

	for (size_t i = 0; i < o->nr; i++) {
		struct check_version *v = &o->v[i];
		bool is_seen = !v->is_hole && v->view && link_is_seen(d, p, v->view);
		unsigned is = v->inode.subvol ? DIRENT_TYPE_SUBVOL : v->inode.mode >> 12;

		if (!is_seen && v != own)
			continue;
		has_target = true;
		if (is_seen) {
			v->count++;
			v->is_found |= v->inode.dir == p.inode && v->inode.dir_offset == p.offset;
		}
		if (is != type && !is_told && v->view) {
			is_told = true;
			check_report_pos(d->c, ERROR_dirent_d_type_wrong, BTREE_DIRENTS, p, "the type of its inode",
					 "type %u instead of %u", type, is);
		}
	}
	if (!has_target)
		report_no_target(d, p, o->inum);
}

static void check_links(struct check *c, const struct check_version *v, struct bpos p)
{
	const struct inode *i = &v->inode;
	bool is_dir = S_ISDIR(i->mode);

	if (i->flags & INODE_UNLINKED) {
		if (v->count)
			check_report_pos(c, ERROR_inode_unlinked_but_has_dirent, BTREE_INODES, p, "no name",
					 "%u of an unlinked inode", v->count);
		return;
	}
	if (!v->count)
		check_report_pos(c, ERROR_inode_unreachable, BTREE_INODES, p, "a name", "none");
	else if (is_dir && v->count > 1)
		check_report_pos(c, ERROR_inode_dir_multiple_links, BTREE_INODES, p, "one name of a directory", "%u",
				 v->count);
	else if (!is_dir && !i->nlink && v->count > 1)
		check_report_pos(c, ERROR_inode_multiple_links_but_nlink_0, BTREE_INODES, p, "one name", "%u",
				 v->count);
	else if (!is_dir && i->nlink + 1ull != v->count)
		check_report_pos(c, ERROR_inode_wrong_nlink, BTREE_INODES, p, "the number of its names",
				 "%llu instead of %u", i->nlink + 1ull, v->count);
	if (!v->count || v->is_found)
		return;
	if (i->dir || i->dir_offset)
		check_report_pos(c, ERROR_inode_wrong_backpointer, BTREE_INODES, p, "one of its names",
				 "backpointer %llu:%llu", (unsigned long long)i->dir,
				 (unsigned long long)i->dir_offset);
	else if (is_dir)
		check_report_pos(c, ERROR_inode_dir_missing_backpointer, BTREE_INODES, p, "a backpointer to its name",
				 "none");
}

static int links_begin(void *ctx, struct check_owner *o)
{
	struct dirents *d = ctx;
	const uint8_t *r;
	unsigned type;
	struct bpos p;

	for (size_t i = 0; i < o->nr; i++) {
		o->v[i].count = 0;
		o->v[i].is_found = false;
	}
	while ((r = check_table_peek(&d->links)) && check_be64_get(r) <= o->inum) {
		uint64_t inum = check_be64_get(r);
		int err = link_take(d, &p, &type);

		if (err)
			return err;
		if (inum < o->inum)
			report_no_target(d, p, inum);
		else
			count_link(d, o, p, type);
	}
	for (size_t i = 0; i < o->nr; i++)
		if (!o->v[i].is_hole && o->v[i].view && !o->v[i].inode.subvol)
			check_links(d->c, &o->v[i], BPOS(0, o->inum, o->v[i].snapshot));
	return 0;
}

static int links_rest(struct dirents *d)
{
	const uint8_t *r;
	unsigned type;
	struct bpos p;
	int err = 0;

	while (!err && (r = check_table_peek(&d->links))) {
		uint64_t inum = check_be64_get(r);

		err = link_take(d, &p, &type);
		if (!err)
			report_no_target(d, p, inum);
	}
	return err;
}

int check_dirents(struct check *c)
{
	static const struct check_by_inode dirents_ops = { .begin = dirents_begin,
							   .key = dirents_key,
							   .end = dirents_end };
	static const struct check_by_inode links_ops = { .begin = links_begin };
	struct dirents d = { .c = c };

	c->total = 2 * c->keys[BTREE_INODES] + c->keys[BTREE_DIRENTS];
	if (!check_is_whole(c, CHECK_BTREE(BTREE_INODES) | CHECK_BTREE(BTREE_DIRENTS)))
		return 0;
	d.hash = (struct check_hash){ .c = c, .btree_id = BTREE_DIRENTS, .seen = dirents_seen };
	check_table_init(&d.links, RECORD_BYTES, c->memory_bytes, c->is_secret);
	int err = check_each_inode(c, BTREE_DIRENTS, &dirents_ops, &d);
	if (!err && check_is_whole(c, CHECK_BTREE(BTREE_INODES) | CHECK_BTREE(BTREE_DIRENTS))) {
		err = check_table_sort(&d.links);
		if (!err)
			err = check_each_inode(c, BTREE_NR_MAX, &links_ops, &d);
		if (!err)
			err = links_rest(&d);
	}
	check_table_free(&d.links);
	check_hash_free(&d.hash);
	free(d.hiders);
	return err;
}
