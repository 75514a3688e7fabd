/*
 * The namespace over btrees in memory: what names, attributes, subvolumes and snapshots show, and what stays when parts
 * of the metadata can't be read.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "../btree/fixture.h"
#include "base/array.h"
#include "format/str_hash.h"
#include "namespace/namespace.h"
#include "namespace/snapshots.h"

enum { SNAP_ROOT = UINT32_MAX, DIR_INUM = INODE_NR_ROOT, FIRST_INUM = 5000 };
static const uint64_t hash_seed = 0x1122334455667788;

/* --- a filesystem in the making --- */

struct world {
	struct fixture f;
	struct model models[BTREE_NR_1_4];
	struct super super;
	struct sb_disk sb;
	struct data *data;
	struct namespace *ns;
};

static void world_init(struct world *w, uint64_t seed)
{
	memset(w, 0, sizeof(*w));
	fixture_init(&w->f, seed, 16 << 10, 512);
	w->sb.features[0] = le64_of(1 << SB_FEATURE_NEW_SIPHASH);
}

static void put(struct world *w, unsigned btree_id, unsigned type, struct bpos p, const void *value, size_t bytes)
{
	struct model_key k = { .k = { .p = p, .type = (uint8_t)type, .value_u64s = (uint8_t)((bytes + 7) / 8) } };

	assert_true(bytes <= sizeof(k.value));
	if (bytes)
		memcpy(k.value, value, bytes);
	model_put(&w->models[btree_id], &k);
}

static void put_inode(struct world *w, struct inode inode)
{
	uint8_t value[INODE_V3_BYTES_MAX];

	inode.hash_seed = hash_seed;
	if (!inode.str_hash)
		inode.str_hash = STR_HASH_SIPHASH;
	put(w, BTREE_INODES, KEY_INODE_V3, BPOS(0, inode.inum, inode.snapshot), value, inode_pack(&inode, value));
}

static void put_dirent(struct world *w, uint64_t dir, uint64_t slot, uint32_t snapshot, struct dirent d,
		       const char *name)
{
	uint8_t value[128];

	d.name = d.folded = (const uint8_t *)name;
	d.name_len = d.folded_len = (uint16_t)strlen(name);
	put(w, BTREE_DIRENTS, KEY_DIRENT, BPOS(dir, slot, snapshot), value, dirent_encode(&d, value, sizeof(value)));
}

static void put_snapshot(struct world *w, uint32_t id, uint32_t parent, uint32_t subvol)
{
	uint8_t value[40] = { 0 };

	le32_store(value, subvol ? 2 : 0);
	le32_store(value + 4, parent);
	le32_store(value + 16, subvol);
	le32_store(value + 20, 1);
	put(w, BTREE_SNAPSHOTS, KEY_SNAPSHOT, BPOS(0, id, 0), value, sizeof(value));
}

static void put_subvol(struct world *w, uint32_t id, uint32_t snapshot, uint64_t inum)
{
	uint8_t value[40] = { 0 };

	le32_store(value + 4, snapshot);
	le64_store(value + 8, inum);
	put(w, BTREE_SUBVOLUMES, KEY_SUBVOLUME, BPOS(0, id, 0), value, sizeof(value));
}

/* The least a filesystem has: subvolume 1 with its root directory. */
static void put_basics(struct world *w)
{
	put_snapshot(w, SNAP_ROOT, 0, 1);
	put_subvol(w, SUBVOL_ROOT, SNAP_ROOT, DIR_INUM);
	put_inode(w, (struct inode){
			     .inum = DIR_INUM, .snapshot = SNAP_ROOT, .mode = S_IFDIR | 0755, .subvol = SUBVOL_ROOT });
}

/* Write the btrees and open the namespace over them. @broken: a btree none of whose nodes can be read; -1: all can. */
static void world_open(struct world *w, int broken)
{
	struct built_root roots[BTREE_NR_1_4] = { 0 };

	for (unsigned id = 0; id < BTREE_NR_1_4; id++) {
		struct model *m = &w->models[id];
		struct bkey_ref *refs = calloc(m->nr + 1, sizeof(*refs));
		size_t nodes_before = w->f.node_nr;

		assert_non_null(refs);
		for (size_t i = 0; i < m->nr; i++)
			refs[i] = (struct bkey_ref){ m->keys[i].k, m->keys[i].value };
		if (m->nr)
			roots[id] = tree_build(&w->f.b, id, refs, m->nr);
		for (size_t i = nodes_before; (int)id == broken && i < w->f.node_nr; i++)
			for (unsigned dev = 0; dev < w->f.replicas; dev++)
				w->f.nodes[i].copy[dev][60] ^= 0xff; /* its header */
		free(refs);
	}
	fixture_open(&w->f, 0);
	for (unsigned id = 0; id < BTREE_NR_1_4; id++)
		if (roots[id].key.value)
			fixture_set_root(&w->f, id, &roots[id]);

	w->super = (struct super){ .sb = &w->sb, .kctx = w->f.kctx, .reports = &w->f.sink };
	assert_int_equal(data_open(&w->super, w->f.trees, DATA_MEMORY_MIN, &w->f.sink, &w->data), 0);
	assert_int_equal(namespace_open(&w->super, w->f.trees, w->data, &w->f.sink, &w->ns), 0);
}

static void world_free(struct world *w)
{
	namespace_close(w->ns);
	data_close(w->data);
	fixture_free(&w->f);
	for (unsigned id = 0; id < BTREE_NR_1_4; id++)
		free(w->models[id].keys);
}

static uint64_t slot_of(const char *name)
{
	return str_hash_dirent(STR_HASH_SIPHASH, hash_seed, name, strlen(name), 0);
}

static const struct object root_dir = { SUBVOL_ROOT, DIR_INUM };

static int lookup(struct world *w, struct object dir, const char *name, struct object *found)
{
	unsigned type;

	return namespace_lookup(w->ns, dir, name, strlen(name), found, &type);
}

/* --- snapshots --- */

static void is_ancestor_agrees_with_walking_parents(uint64_t seed)
{
	enum { NR = 200 };
	static uint32_t parent[NR];
	static struct world w;

	world_init(&w, seed);
	for (uint32_t i = 0; i < NR; i++) {
		uint32_t id = SNAP_ROOT - i;
		/* Several trees; a child's id is below its parent's. */
		parent[i] = i < 3 || !rng_below(&w.f.b.rng, 10) ? 0 : SNAP_ROOT - (uint32_t)rng_below(&w.f.b.rng, i);

		uint8_t value[40] = { 0 };
		le32_store(value + 4, parent[i]);
		/* Skip entries: any ancestors, ascending. */
		for (unsigned s = 0; s < 3 && parent[i]; s++) {
			uint32_t a = parent[i];
			for (uint64_t up = rng_below(&w.f.b.rng, 4); up && parent[SNAP_ROOT - a]; up--)
				a = parent[SNAP_ROOT - a];
			le32_store(value + 28 + 4 * s,
				   s && a < le32_load(value + 24 + 4 * s) ? le32_load(value + 24 + 4 * s) : a);
		}
		put(&w, BTREE_SNAPSHOTS, KEY_SNAPSHOT, BPOS(0, id, 0), value, sizeof(value));
	}
	put_subvol(&w, SUBVOL_ROOT, SNAP_ROOT, DIR_INUM);
	world_open(&w, -1);

	struct snapshot_table t;
	assert_int_equal(snapshot_table_read(&t, w.f.trees, NULL), 0);
	assert_int_equal(t.nr, NR);
	for (uint32_t a = 0; a < NR; a++)
		for (uint32_t b = 0; b < NR; b++) {
			uint32_t id = SNAP_ROOT - a;
			while (id && id != SNAP_ROOT - b)
				id = parent[SNAP_ROOT - id];
			assert_int_equal(snapshot_is_ancestor(&t, SNAP_ROOT - a, SNAP_ROOT - b), id != 0);
		}
	assert_false(snapshot_is_ancestor(&t, 5, SNAP_ROOT));
	snapshot_table_free(&t);
	world_free(&w);
}

/* Skip entries that lead down, at a root, where validation has no parent to compare them with. */
static void walks_up_the_snapshots_end_whatever_they_say(void **state)
{
	static struct world w;

	world_init(&w, 10);
	put_basics(&w);
	uint8_t root[40] = { 0 }, child[40] = { 0 };
	for (unsigned i = 0; i < 3; i++)
		le32_store(root + 28 + 4 * i, 3);
	le32_store(child + 4, 5);
	put(&w, BTREE_SNAPSHOTS, KEY_SNAPSHOT, BPOS(0, 5, 0), root, sizeof(root));
	put(&w, BTREE_SNAPSHOTS, KEY_SNAPSHOT, BPOS(0, 3, 0), child, sizeof(child));
	world_open(&w, -1);

	struct snapshot_table t;
	assert_int_equal(snapshot_table_read(&t, w.f.trees, NULL), 0);
	assert_int_equal(t.nr, 3);
	assert_true(snapshot_is_ancestor(&t, 3, 5));
	assert_false(snapshot_is_ancestor(&t, 3, 10));
	assert_false(snapshot_is_ancestor(&t, 5, SNAP_ROOT));
	snapshot_table_free(&t);
	world_free(&w);
}

static void snapshot_ancestry(void **state) { seeds_run(is_ancestor_agrees_with_walking_parents, 5); }

/* --- directories --- */

static void names_are_found_along_their_probe_chain(void **state)
{
	static struct world w;
	struct object found;

	world_init(&w, 1);
	put_basics(&w);
	/* "here" stands three slots behind its hash: behind a hash_whiteout and another view's subvolume. */
	uint64_t slot = slot_of("here");
	put_dirent(&w, DIR_INUM, slot, SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6001 }, "other");
	put(&w, BTREE_DIRENTS, KEY_HASH_WHITEOUT, BPOS(DIR_INUM, slot + 1, SNAP_ROOT), NULL, 0);
	put_dirent(&w, DIR_INUM, slot + 2, SNAP_ROOT,
		   (struct dirent){ .type = DIRENT_TYPE_SUBVOL, .child_subvol = 7, .parent_subvol = 9 }, "here");
	put_dirent(&w, DIR_INUM, slot + 3, SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6002 }, "here");
	put_dirent(&w, DIR_INUM, slot_of("lost"), SNAP_ROOT,
		   (struct dirent){ .type = DIRENT_TYPE_SUBVOL, .child_subvol = 7, .parent_subvol = 1 }, "lost");
	/* "gone" would stand behind a gap. */
	put_dirent(&w, DIR_INUM, slot_of("gone") + 1, SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6003 }, "gone");
	world_open(&w, -1);

	assert_int_equal(lookup(&w, root_dir, "here", &found), 0);
	assert_int_equal(found.inum, 6002);
	assert_int_equal(lookup(&w, root_dir, "gone", &found), -ENOENT);
	assert_int_equal(lookup(&w, root_dir, "other", &found), -ENOENT);
	assert_int_equal(lookup(&w, root_dir, "lost", &found), -EIO);
	assert_int_equal(lookup(&w, (struct object){ SUBVOL_ROOT, 4242 }, "x", &found), -ENOENT);
	assert_int_equal(lookup(&w, (struct object){ 77, DIR_INUM }, "x", &found), -ENOENT);
	world_free(&w);
}

struct listing {
	char names[600][16];
	size_t nr, stop_after;
	uint64_t cookie;
};

static int list_entry(void *ctx, const struct dir_entry *e)
{
	struct listing *l = ctx;

	assert_true(l->nr < ARRAY_NR(l->names) && e->name_len < sizeof(l->names[0]));
	memcpy(l->names[l->nr], e->name, e->name_len);
	l->names[l->nr++][e->name_len] = 0;
	l->cookie = e->next_cookie;
	return l->nr == l->stop_after;
}

static void reading_on_from_a_cookie_gives_every_entry_once(uint64_t seed)
{
	enum { NR = 300 };
	static struct world w;
	static struct listing all, parts;
	bool at_end;

	world_init(&w, seed);
	put_basics(&w);
	for (unsigned i = 0; i < NR; i++) {
		char name[16];
		snprintf(name, sizeof(name), "f%u", i);
		put_dirent(&w, DIR_INUM, slot_of(name), SNAP_ROOT, (struct dirent){ .type = 8, .inum = FIRST_INUM + i },
			   name);
	}
	world_open(&w, -1);

	all = parts = (struct listing){ 0 };
	assert_int_equal(namespace_readdir(w.ns, root_dir, 0, list_entry, &all, &at_end, NULL), 0);
	assert_true(at_end);
	assert_int_equal(all.nr, NR + 2);
	assert_string_equal(all.names[0], ".");
	assert_string_equal(all.names[1], "..");
	do {
		parts.stop_after = parts.nr + 1 + rng_below(&w.f.b.rng, 40);
		assert_int_equal(namespace_readdir(w.ns, root_dir, parts.cookie, list_entry, &parts, &at_end, NULL), 0);
	} while (!at_end);
	assert_int_equal(parts.nr, all.nr);
	assert_memory_equal(parts.names, all.names, sizeof(all.names));

	for (unsigned i = 0; i < NR; i++) {
		char name[16];
		struct object found;
		snprintf(name, sizeof(name), "f%u", i);
		assert_int_equal(lookup(&w, root_dir, name, &found), 0);
		assert_int_equal(found.inum, FIRST_INUM + i);
	}
	world_free(&w);
}

static void directory_cookies(void **state) { seeds_run(reading_on_from_a_cookie_gives_every_entry_once, 5); }

static void a_damaged_directory_is_an_error_and_not_empty(void **state)
{
	static struct world w;
	static struct listing l;
	struct object found;
	bool at_end;

	world_init(&w, 3);
	put_basics(&w);
	put_dirent(&w, DIR_INUM, slot_of("a"), SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6000 }, "a");
	world_open(&w, BTREE_DIRENTS);
	assert_int_equal(lookup(&w, root_dir, "a", &found), -EIO);
	assert_int_equal(lookup(&w, root_dir, "b", &found), -EIO);
	assert_int_equal(namespace_readdir(w.ns, root_dir, 0, list_entry, &l, &at_end, NULL), -EIO);
	assert_false(at_end);
	world_free(&w);
}

/* An entry that breaks a rule: the rest is there, and that something isn't is told. */
static void an_entry_with_a_bad_key_is_an_error_and_the_rest_is_read(void **state)
{
	static struct world w;
	static struct listing l;
	struct object found;
	uint64_t resume;
	bool at_end;

	world_init(&w, 11);
	put_basics(&w);
	put_dirent(&w, DIR_INUM, 100, SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6000 }, "first");
	put_dirent(&w, DIR_INUM, 200, SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6001 }, "sla/sh");
	put_dirent(&w, DIR_INUM, 300, SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6002 }, "last");
	put_dirent(&w, DIR_INUM, slot_of("bad"), SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6003 }, "b/d");
	put_dirent(&w, DIR_INUM, slot_of("good"), SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6004 }, "good");
	world_open(&w, -1);

	l = (struct listing){ 0 };
	assert_int_equal(namespace_readdir(w.ns, root_dir, 2, list_entry, &l, &at_end, &resume), -EIO);
	assert_false(at_end);
	assert_int_equal(l.nr, 1);
	assert_int_equal(resume, 201);
	l.stop_after = 2;
	assert_int_equal(namespace_readdir(w.ns, root_dir, resume, list_entry, &l, &at_end, &resume), 0);
	assert_string_equal(l.names[1], "last");
	assert_int_equal(lookup(&w, root_dir, "bad", &found), -EIO);
	assert_int_equal(lookup(&w, root_dir, "good", &found), 0);
	assert_int_equal(lookup(&w, root_dir, "other", &found), -ENOENT);
	world_free(&w);
}

/* No cookie leads back to the start. */
static void the_last_slot_ends_a_directory(void **state)
{
	static struct world w;
	static struct listing l;
	bool at_end;

	world_init(&w, 12);
	put_basics(&w);
	put_dirent(&w, DIR_INUM, UINT64_MAX, SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6000 }, "last");
	world_open(&w, -1);

	l = (struct listing){ .stop_after = 3 };
	assert_int_equal(namespace_readdir(w.ns, root_dir, 0, list_entry, &l, &at_end, NULL), 0);
	assert_int_equal(l.nr, 3);
	assert_false(at_end);
	l.stop_after = 0;
	assert_int_equal(namespace_readdir(w.ns, root_dir, l.cookie, list_entry, &l, &at_end, NULL), 0);
	assert_true(at_end);
	assert_int_equal(l.nr, 3);
	world_free(&w);
}

/* A snapshot sees its own version of what changed, the ancestor's of what didn't, and nothing of what was deleted. */
static void snapshots_see_their_own_versions(void **state)
{
	enum { SNAP_A = SNAP_ROOT - 1, SNAP_B = SNAP_ROOT - 2 };
	static struct world w;
	struct object found, dir = { 2, DIR_INUM };
	struct inode inode;

	world_init(&w, 4);
	put_snapshot(&w, SNAP_ROOT, 0, 0);
	put_snapshot(&w, SNAP_A, SNAP_ROOT, 1);
	put_snapshot(&w, SNAP_B, SNAP_ROOT, 2);
	put_subvol(&w, 1, SNAP_A, DIR_INUM);
	put_subvol(&w, 2, SNAP_B, DIR_INUM);
	put_inode(&w, (struct inode){ .inum = DIR_INUM, .snapshot = SNAP_ROOT, .mode = S_IFDIR | 0755, .subvol = 1 });
	put_inode(&w, (struct inode){ .inum = 6000, .snapshot = SNAP_ROOT, .mode = S_IFREG | 0600, .size = 1 });
	put_inode(&w, (struct inode){ .inum = 6000, .snapshot = SNAP_B, .mode = S_IFREG | 0600, .size = 2 });
	put_dirent(&w, DIR_INUM, slot_of("kept"), SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6000 }, "kept");
	put_dirent(&w, DIR_INUM, slot_of("deleted"), SNAP_ROOT, (struct dirent){ .type = 8, .inum = 6001 }, "deleted");
	put(&w, BTREE_DIRENTS, KEY_WHITEOUT, BPOS(DIR_INUM, slot_of("deleted"), SNAP_B), NULL, 0);
	put_dirent(&w, DIR_INUM, slot_of("new"), SNAP_B, (struct dirent){ .type = 8, .inum = 6002 }, "new");
	world_open(&w, -1);

	assert_int_equal(lookup(&w, root_dir, "deleted", &found), 0);
	assert_int_equal(lookup(&w, dir, "deleted", &found), -ENOENT);
	assert_int_equal(lookup(&w, root_dir, "new", &found), -ENOENT);
	assert_int_equal(lookup(&w, dir, "new", &found), 0);
	assert_int_equal(lookup(&w, dir, "kept", &found), 0);
	assert_int_equal(found.subvol, 2);
	assert_int_equal(namespace_inode(w.ns, found, &inode), 0);
	assert_int_equal(inode.size, 2);
	assert_int_equal(namespace_inode(w.ns, (struct object){ 1, 6000 }, &inode), 0);
	assert_int_equal(inode.size, 1);
	world_free(&w);
}

/* --- attributes --- */

static void put_xattr(struct world *w, uint64_t inum, uint64_t slot, uint8_t type, const char *name, const char *value)
{
	uint8_t buf[128];
	struct xattr x = { .type = type,
			   .name = (const uint8_t *)name,
			   .name_len = (uint8_t)strlen(name),
			   .value = (const uint8_t *)value,
			   .value_len = (uint16_t)strlen(value) };

	put(w, BTREE_XATTRS, KEY_XATTR, BPOS(inum, slot, SNAP_ROOT), buf, xattr_encode(&x, buf, sizeof(buf)));
}

static void attributes_with_equal_hashes_are_told_apart(void **state)
{
	static struct world w;
	struct object o = { SUBVOL_ROOT, 6000 };
	char buf[64];

	world_init(&w, 5);
	put_basics(&w);
	put_inode(&w, (struct inode){ .inum = 6000,
				      .snapshot = SNAP_ROOT,
				      .mode = S_IFREG | 0644,
				      .opts[INODE_OPT_COMPRESSION] = 1 + 0x53,
				      .fields_set = 1 << INODE_OPT_COMPRESSION,
				      .opts[INODE_OPT_DATA_REPLICAS] = 1 + 2 });
	/* The last byte of these names doesn't count in their hash (04 §2.1). */
	uint64_t slot = str_hash_xattr(STR_HASH_SIPHASH, hash_seed, XATTR_USER, "attribute1", 10);
	assert_int_equal(slot, str_hash_xattr(STR_HASH_SIPHASH, hash_seed, XATTR_USER, "attribute3", 10));
	put_xattr(&w, 6000, slot, XATTR_USER, "attribute1", "one");
	put_xattr(&w, 6000, slot + 1, XATTR_TRUSTED, "attribute2", "wrong name space");
	put_xattr(&w, 6000, slot + 2, XATTR_USER, "attribute3", "three");
	world_open(&w, -1);

	assert_int_equal(namespace_xattr_get(w.ns, o, "user.attribute1", buf, sizeof(buf)), 3);
	assert_memory_equal(buf, "one", 3);
	assert_int_equal(namespace_xattr_get(w.ns, o, "user.attribute3", buf, 0), 5);
	assert_int_equal(namespace_xattr_get(w.ns, o, "user.attribute3", buf, 4), -ERANGE);
	assert_int_equal(namespace_xattr_get(w.ns, o, "user.attribute2", buf, sizeof(buf)), -ENODATA);
	assert_int_equal(namespace_xattr_get(w.ns, o, "foreign.attribute", buf, sizeof(buf)), -EOPNOTSUPP);

	static const char names[] = "user.attribute1\0trusted.attribute2\0user.attribute3";
	assert_int_equal(namespace_xattr_list(w.ns, o, buf, 0), sizeof(names));
	assert_int_equal(namespace_xattr_list(w.ns, o, buf, sizeof(names) - 1), -ERANGE);
	assert_int_equal(namespace_xattr_list(w.ns, o, buf, sizeof(buf)), sizeof(names));
	assert_memory_equal(buf, names, sizeof(names));

	assert_int_equal(namespace_xattr_get(w.ns, o, "bcachefs.compression", buf, sizeof(buf)), 6);
	assert_memory_equal(buf, "zstd:5", 6);
	assert_int_equal(namespace_xattr_get(w.ns, o, "bcachefs.data_replicas", buf, sizeof(buf)), -ENODATA);
	assert_int_equal(namespace_xattr_get(w.ns, o, "bcachefs_effective.data_replicas", buf, sizeof(buf)), 1);
	assert_int_equal(namespace_xattr_get(w.ns, o, "bcachefs.no_such_option", buf, sizeof(buf)), -EINVAL);
	world_free(&w);
}

/* --- symlinks --- */

static void a_link_target_ends_at_its_first_nul(void **state)
{
	static struct world w;
	char buf[64];
	struct model_key k = {
		.k = { .p = BPOS(6000, 8, SNAP_ROOT), .type = KEY_INLINE_DATA, .size = 8, .value_u64s = 1 }
	};

	world_init(&w, 6);
	put_basics(&w);
	put_inode(&w, (struct inode){ .inum = 6000, .snapshot = SNAP_ROOT, .mode = S_IFLNK | 0777, .size = 5 });
	memcpy(k.value, "a/b\0", 4);
	model_put(&w.models[BTREE_EXTENTS], &k);
	world_open(&w, -1);

	assert_int_equal(namespace_readlink(w.ns, (struct object){ SUBVOL_ROOT, 6000 }, buf, sizeof(buf)), 3);
	assert_memory_equal(buf, "a/b", 3);
	assert_int_equal(namespace_readlink(w.ns, (struct object){ SUBVOL_ROOT, 6000 }, buf, 2), 2);
	assert_int_equal(namespace_readlink(w.ns, root_dir, buf, sizeof(buf)), -EINVAL);
	world_free(&w);
}

/* --- fallback views --- */

static void put_two_subvols(struct world *w)
{
	put_basics(w);
	put_snapshot(w, SNAP_ROOT - 1, 0, 2);
	put_subvol(w, 2, SNAP_ROOT - 1, 6000);
	put_inode(w, (struct inode){ .inum = 6000, .snapshot = SNAP_ROOT - 1, .mode = S_IFDIR | 0755, .subvol = 2 });
	put_dirent(w, 6000, slot_of("in"), SNAP_ROOT - 1, (struct dirent){ .type = 8, .inum = 6001 }, "in");
	put_dirent(w, DIR_INUM, slot_of("sub"), SNAP_ROOT,
		   (struct dirent){ .type = DIRENT_TYPE_SUBVOL, .child_subvol = 2, .parent_subvol = 1 }, "sub");
}

static void without_the_subvolumes_btree_they_are_rebuilt(void **state)
{
	static struct world w;
	struct object found;

	world_init(&w, 7);
	put_two_subvols(&w);
	world_open(&w, BTREE_SUBVOLUMES);
	assert_non_null(namespace_fallback(w.ns));
	assert_int_equal(lookup(&w, root_dir, "sub", &found), 0);
	assert_int_equal(found.subvol, 2);
	assert_int_equal(found.inum, 6000);
	assert_int_equal(lookup(&w, found, "in", &found), 0);

	uint32_t id = 0;
	struct subvolume sv;
	assert_int_equal(namespace_subvol_next(w.ns, 0, &id, &sv), 0);
	assert_int_equal(id, 1);
	assert_int_equal(namespace_subvol_next(w.ns, 2, &id, &sv), 0);
	assert_int_equal(id, 2);
	assert_int_equal(namespace_subvol_next(w.ns, 3, &id, &sv), -ENOENT);
	world_free(&w);
}

static void without_the_snapshots_btree_ids_decide(void **state)
{
	static struct world w;
	struct object found;

	world_init(&w, 8);
	put_two_subvols(&w);
	world_open(&w, BTREE_SNAPSHOTS);
	assert_non_null(namespace_fallback(w.ns));
	assert_int_equal(lookup(&w, root_dir, "sub", &found), 0);
	assert_int_equal(lookup(&w, found, "in", &found), 0);
	assert_int_equal(found.inum, 6001);
	world_free(&w);
}

static void an_intact_filesystem_shows_no_fallback(void **state)
{
	static struct world w;

	world_init(&w, 9);
	put_two_subvols(&w);
	world_open(&w, -1);
	assert_null(namespace_fallback(w.ns));
	assert_int_equal(w.f.reports[REPORT_DAMAGE], 0);
	world_free(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(snapshot_ancestry, seeds_teardown),
		cmocka_unit_test(names_are_found_along_their_probe_chain),
		cmocka_unit_test_teardown(directory_cookies, seeds_teardown),
		cmocka_unit_test(walks_up_the_snapshots_end_whatever_they_say),
		cmocka_unit_test(a_damaged_directory_is_an_error_and_not_empty),
		cmocka_unit_test(an_entry_with_a_bad_key_is_an_error_and_the_rest_is_read),
		cmocka_unit_test(the_last_slot_ends_a_directory),
		cmocka_unit_test(snapshots_see_their_own_versions),
		cmocka_unit_test(attributes_with_equal_hashes_are_told_apart),
		cmocka_unit_test(a_link_target_ends_at_its_first_nul),
		cmocka_unit_test(without_the_subvolumes_btree_they_are_rebuilt),
		cmocka_unit_test(without_the_snapshots_btree_ids_decide),
		cmocka_unit_test(an_intact_filesystem_shows_no_fallback),
	};

	return cmocka_run_group_tests_name("namespace", tests, NULL, NULL);
}
