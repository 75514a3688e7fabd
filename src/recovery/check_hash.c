/*
 * Hash tables of names: does every entry stand at its hash or behind it, without an empty slot in between, and each
 * name once (04 §2.2)? In the view of every version of the inode that owns the table.
 *
 * Memory: the keys at one slot, at most one per snapshot; and of a run of occupied slots the last 4096 keys, 24 bytes
 * each. Runs are short unless somebody made names that collide.
 */
#include "recovery/check_hash.h"

#include <errno.h>
#include <string.h>

#include "base/array.h"
#include "format/str_hash.h"
#include "format/xattr.h"

enum { RUN_KEYS_MAX = 4096 };

void check_hash_begin(struct check_hash *h, struct check_owner *o)
{
	h->nr = h->run_nr = 0;
	for (size_t i = 0; i < o->nr; i++)
		o->v[i].run_start = o->v[i].run_next = UINT64_MAX;
}

/* FNV-1a (Fowler, Noll, Vo): do two names differ? */
static uint64_t name_hash(unsigned type, const uint8_t *name, size_t len)
{
	uint64_t hash = (0xcbf29ce484222325 ^ type) * 0x100000001b3;

	for (size_t i = 0; i < len; i++)
		hash = (hash ^ name[i]) * 0x100000001b3;
	return hash;
}

/* Slot and identity of a name; false for what isn't an entry, or can't be decoded. */
static bool entry_hash(const struct check_hash *h, const struct inode *owner, struct bkey_ref k, uint64_t *slot,
		       uint64_t *name)
{
	struct dirent d;
	struct xattr x;

	if (h->btree_id == BTREE_DIRENTS && k.k.type == KEY_DIRENT && !dirent_decode(k, &d, NULL)) {
		*slot = str_hash_dirent(owner->str_hash, owner->hash_seed, d.folded, d.folded_len,
					owner->flags & INODE_31BIT_DIRENT_OFFSET);
		*name = name_hash(0, d.name, d.name_len);
		return true;
	}
	if (h->btree_id == BTREE_XATTRS && k.k.type == KEY_XATTR && !xattr_decode(k, &x, NULL)) {
		*slot = str_hash_xattr(owner->str_hash, owner->hash_seed, x.type, x.name, x.name_len);
		*name = name_hash(x.type, x.name, x.name_len);
		return true;
	}
	return false;
}

/* The key of @keys (of one slot, ascending snapshots) that snapshot @s sees. */
static const struct check_hash_key *key_seen(struct check *c, const struct check_hash_key *keys, size_t nr, uint32_t s)
{
	for (size_t i = 0; i < nr; i++)
		if (keys[i].snapshot >= s && check_is_ancestor(c, s, keys[i].snapshot))
			return &keys[i];
	return NULL;
}

/* Is the name of @k, in the view @s, in the run before it? */
static bool is_duplicate(struct check_hash *h, const struct check_hash_key *k, uint32_t s)
{
	for (size_t i = 0; i < h->run_nr;) {
		size_t nr = 1;

		while (i + nr < h->run_nr && h->run[i + nr].offset == h->run[i].offset)
			nr++;
		const struct check_hash_key *seen = h->run[i].offset < k->offset && h->run[i].offset >= k->slot
							    ? key_seen(h->c, &h->run[i], nr, s)
							    : NULL;
		if (seen && seen->is_entry && seen->slot == k->slot && seen->name == k->name)
			return true;
		i += nr;
	}
	return false;
}

static void check_entry(struct check_hash *h, struct check_owner *o, const struct check_version *v,
			const struct check_hash_key *k)
{
	struct bpos p = BPOS(o->inum, k->offset, k->snapshot);

	if (k->slot == k->offset)
		return;
	if (is_duplicate(h, k, v->view))
		check_report_pos(h->c, ERROR_hash_table_key_duplicate, h->btree_id, p, "each name once",
				 "the name twice, in snapshot %u", v->snapshot);
	else if (k->slot > k->offset || k->slot < v->run_start)
		check_report_pos(h->c, ERROR_hash_table_key_wrong_offset, h->btree_id, p,
				 "a place that is found from the name's hash", "hash %llu, in snapshot %u",
				 (unsigned long long)k->slot, v->snapshot);
	else
		return;
	h->is_told = true;
}

/* All keys of a slot are there. */
static void slot_end(struct check_hash *h, struct check_owner *o)
{
	if (!h->nr)
		return;
	h->is_told = false;
	for (size_t i = 0; i < o->nr; i++) {
		struct check_version *v = &o->v[i];
		const struct check_hash_key *k =
			v->is_hole || !v->view ? NULL : key_seen(h->c, h->keys, h->nr, v->view);

		if (!k || !k->is_occupied)
			continue;
		if (v->run_next != k->offset)
			v->run_start = k->offset;
		v->run_next = k->offset + 1;
		if (k->is_entry && !h->is_told)
			check_entry(h, o, v, k);
		if (h->seen)
			h->seen(h->seen_ctx, v, k);
	}
	if (h->run_nr + h->nr > RUN_KEYS_MAX || (h->run_nr && h->run[h->run_nr - 1].offset + 1 != h->keys[0].offset))
		h->run_nr = 0;
	if (!array_grow(&h->run, &h->run_capacity, h->run_nr + h->nr, sizeof(*h->run))) {
		memcpy(h->run + h->run_nr, h->keys, h->nr * sizeof(*h->keys));
		h->run_nr += h->nr;
	}
	h->nr = 0;
}

int check_hash_key(struct check_hash *h, struct check_owner *o, struct bkey_ref k)
{
	struct check_hash_key key = { .offset = k.k.p.offset, .snapshot = k.k.p.snapshot, .type = k.k.type };
	struct check_version *v = check_owner_at(h->c, o, key.snapshot);

	if (h->nr && h->keys[0].offset != key.offset)
		slot_end(h, o);
	key.is_occupied = !key_type_is_whiteout(k.k.type) && k.k.type != KEY_COOKIE;
	key.is_entry = v && entry_hash(h, &v->inode, k, &key.slot, &key.name);
	if (h->btree_id == BTREE_DIRENTS && key.is_entry) {
		struct dirent d;

		dirent_decode(k, &d, NULL);
		key.dirent_type = d.type;
	}
	if (array_grow(&h->keys, &h->capacity, h->nr + 1, sizeof(*h->keys)))
		return -ENOMEM;
	h->keys[h->nr++] = key;
	return 0;
}

bool check_hash_is_seen(const struct check_hash *h)
{
	uint32_t s = h->keys[h->nr - 1].snapshot, view = check_snapshot_view(h->c, s);

	/* In its chain another key may be nearer. */
	for (size_t i = 0; view != s && i + 1 < h->nr; i++)
		if (check_snapshot_view(h->c, h->keys[i].snapshot) == view)
			return false;
	return view;
}

void check_hash_end(struct check_hash *h, struct check_owner *o) { slot_end(h, o); }

void check_hash_free(struct check_hash *h)
{
	free(h->keys);
	free(h->run);
}
