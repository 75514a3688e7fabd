/*
 * Directories: lookup by hash and reading in slot order (04 §2.2, §3.2; 12 §7.3-7.4).
 *
 * A directory is an open-addressing hash table over its slots: a name stands at its hash or in the slots behind it that
 * were taken. Dirents of subvolumes belong to the view of one parent subvolume and are invisible in others.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <utf8proc.h>

#include "format/str_hash.h"
#include "namespace/internal.h"

/* d_type of a directory; <dirent.h> has it, and a struct of the same name as ours. */
enum { DT_DIR = S_IFDIR >> 12 };

enum { COOKIE_DOT = 0, COOKIE_DOT_DOT = 1, COOKIE_FIRST = 2 };
/* Behind everything: hashes have 63 bits at most, so in a sound directory nothing stands in the last slot. */
static const uint64_t cookie_end = UINT64_MAX;

static uint64_t cookie_behind(uint64_t slot) { return slot < cookie_end ? slot + 1 : cookie_end; }

static bool dirent_is_visible(const struct dirent *d, uint32_t subvol)
{
	return d->type != DIRENT_TYPE_SUBVOL || d->parent_subvol == subvol;
}

/* What a dirent of a directory in @subvol names. */
static int dirent_target(struct namespace *ns, const struct dirent *d, uint32_t subvol, struct object *target,
			 unsigned *type)
{
	*type = d->type;
	*target = (struct object){ subvol, d->inum };
	if (d->type != DIRENT_TYPE_SUBVOL)
		return 0;

	*type = DT_DIR;
	int err = namespace_subvol_root(ns, d->child_subvol, target);
	return err == -ENOENT ? -EIO : err; /* the name is there: that it leads nowhere is damage */
}

int name_fold(const char *name, size_t len, char **folded, size_t *folded_len)
{
	utf8proc_uint8_t *out = NULL;
	utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)name, (utf8proc_ssize_t)len, &out,
					  UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_CASEFOLD | UTF8PROC_IGNORE);

	if (n < 0)
		return n == UTF8PROC_ERROR_NOMEM ? -ENOMEM : -EINVAL;
	*folded = (char *)out;
	*folded_len = (size_t)n;
	return 0;
}

/* One search for a name. */
struct search {
	struct object dir;
	const char *name; /* as asked for */
	size_t len;
	const char *folded; /* what stands in `folded` of dirents; equal to name in ordinary directories */
	size_t folded_len;
};

static bool search_matches(const struct search *s, const struct dirent *d)
{
	if (!dirent_is_visible(d, s->dir.subvol))
		return false;
	if (d->is_casefolded)
		return d->folded_len == s->folded_len && !memcmp(d->folded, s->folded, s->folded_len);
	return d->name_len == s->len && !memcmp(d->name, s->name, s->len);
}

/* Probe from the name's hash. Returns 1 with the dirent's target, 0 when it isn't there, or an error. */
static int search_by_hash(struct namespace *ns, const struct search *s, const struct inode *dir, uint32_t snapshot,
			  struct object *found, unsigned *type)
{
	uint64_t slot = str_hash_dirent(dir->str_hash, dir->hash_seed, s->folded, s->folded_len,
					dir->flags & INODE_31BIT_DIRENT_OFFSET);
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_iter_open(&it, ns->trees, BTREE_DIRENTS, BPOS(s->dir.inum, slot, snapshot), 0, snapshot);
	it.end = BPOS(s->dir.inum, UINT64_MAX, UINT32_MAX);
	while ((ret = btree_iter_peek(&it, &k)) > 0) {
		struct dirent d;

		if (k.k.p.offset != slot++) {
			ret = 0;
			break;
		}
		/* Upstream stops at an invisible entry; going on finds what it would miss in snapshots (04 §2.2). */
		if (k.k.type == KEY_DIRENT && !dirent_decode(k, &d, NULL) && search_matches(s, &d)) {
			ret = dirent_target(ns, &d, s->dir.subvol, found, type);
			ret = ret ? ret : 1;
			break;
		}
		if (k.k.type != KEY_DIRENT && k.k.type != KEY_HASH_WHITEOUT) {
			ret = 0;
			break;
		}
		btree_iter_advance(&it);
	}
	/* Damage that begins behind a gap in the chain can't hide the name. */
	if (ret < 0 && it.damage_min.inode == s->dir.inum && it.damage_min.offset > slot)
		ret = 0;
	btree_iter_close(&it);
	return ret;
}

/* Compare with every entry: for names whose hash can't be relied on. */
static int search_by_iteration(struct namespace *ns, const struct search *s, uint32_t snapshot, struct object *found,
			       unsigned *type)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_iter_open(&it, ns->trees, BTREE_DIRENTS, BPOS(s->dir.inum, 0, snapshot), 0, snapshot);
	it.end = BPOS(s->dir.inum, UINT64_MAX, UINT32_MAX);
	while ((ret = btree_iter_peek(&it, &k)) > 0) {
		struct dirent d;

		if (k.k.type == KEY_DIRENT && !dirent_decode(k, &d, NULL) && dirent_is_visible(&d, s->dir.subvol) &&
		    (search_matches(s, &d) || (d.name_len == s->len && !memcmp(d.name, s->name, s->len)))) {
			ret = dirent_target(ns, &d, s->dir.subvol, found, type);
			ret = ret ? ret : 1;
			break;
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return ret;
}

/* A directory is casefolded if its first dirent is (12 §7.4). 1, 0, or an error. */
static int directory_is_casefolded(struct namespace *ns, struct object dir, uint32_t snapshot)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_iter_open(&it, ns->trees, BTREE_DIRENTS, BPOS(dir.inum, 0, snapshot), 0, snapshot);
	it.end = BPOS(dir.inum, UINT64_MAX, UINT32_MAX);
	while ((ret = btree_iter_peek(&it, &k)) > 0) {
		struct dirent d;

		if (k.k.type == KEY_DIRENT && !dirent_decode(k, &d, NULL)) {
			ret = d.is_casefolded;
			break;
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return ret;
}

static bool name_is_ascii(const char *name, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (name[i] & 0x80)
			return false;
	return true;
}

/*
 * Lookup in a casefolded directory. The fold tables at hand may be of another Unicode version than the 12.1 of the
 * format: where a name isn't ASCII, what the hash doesn't find is looked for by iteration.
 */
static int search_casefolded(struct namespace *ns, struct search *s, const struct inode *dir, uint32_t snapshot,
			     struct object *found, unsigned *type)
{
	CLEANUP_FREE char *folded = NULL;

	int ret = name_fold(s->name, s->len, &folded, &s->folded_len);
	if (ret == -EINVAL)
		return 0; /* not UTF-8: no such name can be there */
	if (ret)
		return ret;

	s->folded = folded;
	ret = search_by_hash(ns, s, dir, snapshot, found, type);
	if (!ret && !name_is_ascii(s->name, s->len))
		ret = search_by_iteration(ns, s, snapshot, found, type);
	return ret;
}

int namespace_lookup(struct namespace *ns, struct object dir, const char *name, size_t len, struct object *found,
		     unsigned *type)
{
	struct search s = { .dir = dir, .name = name, .len = len, .folded = name, .folded_len = len };
	struct inode inode;
	uint32_t snapshot;

	int ret = subvol_snapshot(ns, dir.subvol, &snapshot);
	if (ret)
		return ret;
	/* The hash's seed is in the directory's inode: without it every name must be looked at. */
	ret = namespace_inode(ns, dir, &inode);
	bool has_hash = !ret && !ns->has_scrubbed_names;
	if (ret && ret != -EIO)
		return ret;

	if (!ret && ns->may_have_casefold && inode.flags & INODE_CASEFOLD)
		ret = directory_is_casefolded(ns, dir, snapshot);
	if (ret < 0 && has_hash)
		return ret;

	if (!has_hash)
		ret = search_by_iteration(ns, &s, snapshot, found, type);
	else if (ret)
		ret = search_casefolded(ns, &s, &inode, snapshot, found, type);
	else
		ret = search_by_hash(ns, &s, &inode, snapshot, found, type);
	return ret < 0 ? ret : ret ? 0 : -ENOENT;
}

int namespace_parent(struct namespace *ns, struct object dir, struct object *parent)
{
	struct inode inode;
	int err = namespace_inode(ns, dir, &inode);

	if (err)
		return err;
	if (!inode.dir)
		*parent = dir; /* the root */
	else
		*parent = (struct object){ inode.subvol && inode.parent_subvol ? inode.parent_subvol : dir.subvol,
					   inode.dir };
	return 0;
}

/* "." and "..": @fn's answer, or an error. */
static int emit_dots(struct namespace *ns, struct object dir, uint64_t *cookie, dir_entry_fn fn, void *ctx)
{
	int ret = 0;

	if (*cookie == COOKIE_DOT) {
		ret = fn(ctx, &(struct dir_entry){ ".", 1, DT_DIR, dir, COOKIE_DOT_DOT });
		*cookie = COOKIE_DOT_DOT;
	}
	if (!ret && *cookie == COOKIE_DOT_DOT) {
		struct object parent;

		if (namespace_parent(ns, dir, &parent))
			parent = dir;
		ret = fn(ctx, &(struct dir_entry){ "..", 2, DT_DIR, parent, COOKIE_FIRST });
		*cookie = COOKIE_FIRST;
	}
	return ret;
}

static int emit_dirent(struct namespace *ns, struct bkey_ref k, uint32_t subvol, dir_entry_fn fn, void *ctx)
{
	struct dirent d;

	if (k.k.type != KEY_DIRENT || dirent_decode(k, &d, NULL) || !dirent_is_visible(&d, subvol))
		return 0;

	struct dir_entry e = { .name = (const char *)d.name,
			       .name_len = d.name_len,
			       .next_cookie = cookie_behind(k.k.p.offset) };
	/* A subvolume that can't be found is listed all the same, with an object that can't be opened. */
	if (dirent_target(ns, &d, subvol, &e.object, &e.type))
		e.object = (struct object){ d.child_subvol, 0 };
	return fn(ctx, &e);
}

int namespace_readdir(struct namespace *ns, struct object dir, uint64_t cookie, dir_entry_fn fn, void *ctx,
		      bool *at_end, uint64_t *resume_cookie)
{
	struct btree_iter it;
	struct bkey_ref k;
	uint32_t snapshot;

	*at_end = false;
	int ret = subvol_snapshot(ns, dir.subvol, &snapshot);
	if (!ret)
		ret = emit_dots(ns, dir, &cookie, fn, ctx);
	if (ret)
		return min(ret, 0);
	if (cookie == cookie_end) {
		*at_end = true;
		return 0;
	}

	btree_iter_open(&it, ns->trees, BTREE_DIRENTS, BPOS(dir.inum, cookie, snapshot), 0, snapshot);
	it.end = BPOS(dir.inum, UINT64_MAX, UINT32_MAX);
	while ((ret = btree_iter_peek(&it, &k)) > 0) {
		ret = emit_dirent(ns, k, dir.subvol, fn, ctx);
		if (ret)
			break;
		btree_iter_advance(&it);
	}
	if (!ret)
		*at_end = true;
	else if (ret < 0 && resume_cookie)
		*resume_cookie = it.damage_max.inode == dir.inum ? cookie_behind(it.damage_max.offset) : cookie_end;
	btree_iter_close(&it);
	return min(ret, 0);
}
