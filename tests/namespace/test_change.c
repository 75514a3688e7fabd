/*
 * Everything that changes a namespace, at random, against a tree in memory: the same answers, the same tree, and all
 * relations between keys hold. Half of the names collide in every directory.
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
#include "base/clock.h"
#include "namespace/change_internal.h"
#include "world.h"

/* --- the model --- */

enum { COLLIDING_NR = 12, NAME_NR = 24, XATTR_NR = 10, NODES_MAX = 400, VALUE_MAX = 300 };

struct node;
struct entry {
	const char *name;
	struct node *node;
};
struct attribute {
	const char *name;
	uint8_t value[VALUE_MAX];
	size_t len;
};
struct node {
	struct object o;
	uint32_t mode, uid, gid;
	unsigned names; /* how many lead here */
	struct entry *entries;
	size_t entry_nr, entry_capacity;
	struct node *parent; /* of directories */
	struct attribute attributes[XATTR_NR];
	unsigned attribute_nr;
	char target[VALUE_MAX];
	bool is_held, is_gone;
};

struct play {
	struct world *w;
	struct rng rng;
	struct object top;
	struct node *nodes[NODES_MAX]; /* all that were ever made; the first is the top */
	size_t node_nr;
	const char *names[NAME_NR];
	const char *xattrs[XATTR_NR];
};

static uint64_t below(struct play *p, uint64_t bound) { return rng_below(&p->rng, bound); }

static struct node *node_new(struct play *p, uint32_t mode, struct object o)
{
	struct node *n = calloc(1, sizeof(*n));

	assert_non_null(n);
	n->mode = mode;
	n->o = o;
	assert_true(p->node_nr < NODES_MAX);
	p->nodes[p->node_nr++] = n;
	return n;
}

static struct entry *entry_find(struct node *dir, const char *name)
{
	for (size_t i = 0; i < dir->entry_nr; i++)
		if (!strcmp(dir->entries[i].name, name))
			return &dir->entries[i];
	return NULL;
}

static void entry_add(struct node *dir, const char *name, struct node *node)
{
	assert_int_equal(array_grow(&dir->entries, &dir->entry_capacity, dir->entry_nr + 1, sizeof(struct entry)), 0);
	dir->entries[dir->entry_nr++] = (struct entry){ name, node };
	node->names++;
	if (S_ISDIR(node->mode))
		node->parent = dir;
}

static void entry_remove(struct node *dir, struct entry *e)
{
	struct node *node = e->node;

	*e = dir->entries[--dir->entry_nr];
	node->names--;
	if (!node->names && !node->is_held)
		node->is_gone = true;
}

/* A node that is still there; directories often. */
static struct node *pick(struct play *p, bool want_dir)
{
	for (unsigned i = 0; i < 10000; i++) {
		struct node *n = p->nodes[below(p, p->node_nr)];

		if (!n->is_gone && n->names && (!want_dir || S_ISDIR(n->mode)))
			return n;
	}
	return p->nodes[0];
}

static const char *pick_name(struct play *p) { return p->names[below(p, NAME_NR)]; }

static bool is_below(const struct node *n, const struct node *top)
{
	for (; n; n = n->parent)
		if (n == top)
			return true;
	return false;
}

static unsigned subdir_nr(const struct node *dir)
{
	unsigned nr = 0;

	for (size_t i = 0; i < dir->entry_nr; i++)
		nr += S_ISDIR(dir->entries[i].node->mode) != 0;
	return nr;
}

/* --- operations --- */

static void play_create(struct play *p)
{
	static const uint32_t types[] = { S_IFREG, S_IFREG, S_IFDIR, S_IFDIR, S_IFIFO, S_IFCHR, S_IFLNK };
	struct node *dir = pick(p, below(p, 20) != 0);
	const char *name = pick_name(p);
	uint32_t type = types[below(p, ARRAY_NR(types))];
	struct create_attr attr = { .mode = type | (uint32_t)below(p, 01000), .uid = (uint32_t)below(p, 3), .gid = 7 };
	char target[VALUE_MAX];
	struct object o;
	struct inode inode;
	int err, expected = !S_ISDIR(dir->mode) ? -ENOTDIR : entry_find(dir, name) ? -EEXIST : 0;

	if (p->node_nr >= NODES_MAX)
		return;
	snprintf(target, sizeof(target), "%0*u", (int)below(p, VALUE_MAX - 2) + 1, 5u);
	if (type == S_IFCHR)
		attr.rdev_major = 259, attr.rdev_minor = 300;
	if (type == S_IFLNK)
		err = namespace_symlink(p->w->ns, dir->o, name, strlen(name), target, strlen(target), &attr, &o, &inode,
					NULL);
	else
		err = namespace_create(p->w->ns, dir->o, name, strlen(name), &attr, &o, &inode, NULL);
	assert_int_equal(err, expected);
	if (err)
		return;
	struct node *n = node_new(p, type == S_IFLNK ? S_IFLNK | 0777 : attr.mode, o);
	n->uid = attr.uid;
	n->gid = dir->mode & S_ISGID ? dir->gid : attr.gid;
	if (S_ISDIR(n->mode))
		n->mode |= dir->mode & S_ISGID;
	if (type == S_IFLNK)
		strcpy(n->target, target);
	assert_int_equal(inode.mode, n->mode);
	entry_add(dir, name, n);
}

static void play_link(struct play *p)
{
	struct node *dir = pick(p, true), *n = pick(p, false);
	const char *name = pick_name(p);
	int expected = S_ISDIR(n->mode) ? -EPERM : entry_find(dir, name) ? -EEXIST : 0;

	assert_int_equal(namespace_link(p->w->ns, n->o, dir->o, name, strlen(name), NULL), expected);
	if (!expected)
		entry_add(dir, name, n);
}

static void play_unlink(struct play *p)
{
	struct node *dir = pick(p, true);
	const char *name = pick_name(p);
	struct entry *e = entry_find(dir, name);
	bool is_dir = e ? (S_ISDIR(e->node->mode) != 0) ^ !below(p, 10) : false;
	struct object removed;
	int expected = 0;

	if (!e)
		expected = -ENOENT;
	else if (is_dir && !S_ISDIR(e->node->mode))
		expected = -ENOTDIR;
	else if (!is_dir && S_ISDIR(e->node->mode))
		expected = -EISDIR;
	else if (e->node->entry_nr)
		expected = -ENOTEMPTY;
	assert_int_equal(namespace_unlink(p->w->ns, dir->o, name, strlen(name), is_dir, &removed, NULL), expected);
	if (expected)
		return;
	assert_true(removed.inum == e->node->o.inum);
	entry_remove(dir, e);
}

static int rename_expected(const struct entry *from, const struct entry *to, struct node *from_dir, struct node *to_dir,
			   unsigned flags)
{
	if (!from)
		return -ENOENT;
	if (to && flags == RENAME_NO_REPLACE)
		return -EEXIST;
	if (!to && flags == RENAME_SWAP)
		return -ENOENT;
	if (to && to->node == from->node)
		return 0;
	if (S_ISDIR(from->node->mode) && is_below(to_dir, from->node))
		return -EINVAL;
	if (!to)
		return 0;
	if (flags == RENAME_SWAP)
		return S_ISDIR(to->node->mode) && is_below(from_dir, to->node) ? -EINVAL : 0;
	if (S_ISDIR(from->node->mode) && !S_ISDIR(to->node->mode))
		return -ENOTDIR;
	if (!S_ISDIR(from->node->mode) && S_ISDIR(to->node->mode))
		return is_below(from_dir, to->node) ? -ENOTEMPTY : -EISDIR;
	return to->node->entry_nr ? -ENOTEMPTY : 0;
}

static void play_rename(struct play *p)
{
	struct node *from_dir = pick(p, true), *to_dir = below(p, 2) ? from_dir : pick(p, true);
	const char *from = pick_name(p), *to = pick_name(p);
	unsigned flags = (unsigned)below(p, 3);
	struct entry *e = entry_find(from_dir, from), *target = entry_find(to_dir, to);
	int expected = rename_expected(e, target, from_dir, to_dir, flags);

	assert_int_equal(
		namespace_rename(p->w->ns, from_dir->o, from, strlen(from), to_dir->o, to, strlen(to), flags, NULL),
		expected);
	if (expected || (target && target->node == e->node))
		return;
	struct node *n = e->node, *other = target ? target->node : NULL;
	if (flags == RENAME_SWAP) {
		e->node = other;
		target->node = n;
		if (S_ISDIR(n->mode))
			n->parent = to_dir;
		if (S_ISDIR(other->mode))
			other->parent = from_dir;
		return;
	}
	if (target)
		entry_remove(to_dir, target);
	entry_add(to_dir, to, n);
	entry_remove(from_dir, entry_find(from_dir, from));
}

static void play_setattr(struct play *p)
{
	struct node *n = pick(p, false);
	struct setattr attr = { .fields = SETATTR_UID | SETATTR_GID, .uid = (uint32_t)below(p, 5), .gid = 9 };
	struct inode inode;

	if (!S_ISLNK(n->mode)) {
		attr.fields |= SETATTR_MODE;
		attr.mode = (uint32_t)below(p, 010000);
		n->mode = (n->mode & S_IFMT) | attr.mode;
	}
	n->uid = attr.uid;
	n->gid = attr.gid;
	assert_int_equal(namespace_setattr(p->w->ns, n->o, &attr, &inode, NULL), 0);
	assert_int_equal(inode.mode, n->mode);
}

static void play_xattr(struct play *p)
{
	struct node *n = pick(p, false);
	unsigned i = (unsigned)below(p, XATTR_NR), at = 0, flags = (unsigned)below(p, 3);
	uint8_t value[VALUE_MAX];
	size_t len = below(p, VALUE_MAX);
	int expected = 0;

	for (; at < n->attribute_nr && strcmp(n->attributes[at].name, p->xattrs[i]); at++)
		;
	bool exists = at < n->attribute_nr;
	memset(value, (int)below(p, 256), sizeof(value));
	if (!strncmp(p->xattrs[i], "user.", 5) && !S_ISREG(n->mode) && !S_ISDIR(n->mode))
		expected = -EPERM;
	if (!below(p, 3)) {
		if (!expected && !exists)
			expected = -ENODATA;
		assert_int_equal(namespace_xattr_remove(p->w->ns, n->o, p->xattrs[i], NULL), expected);
		if (!expected)
			n->attributes[at] = n->attributes[--n->attribute_nr];
		return;
	}
	if (!expected && exists && flags == XATTR_MUST_CREATE)
		expected = -EEXIST;
	if (!expected && !exists && flags == XATTR_MUST_REPLACE)
		expected = -ENODATA;
	assert_int_equal(namespace_xattr_set(p->w->ns, n->o, p->xattrs[i], value, len, flags, NULL), expected);
	if (expected)
		return;
	n->attribute_nr += !exists;
	n->attributes[at].name = p->xattrs[i];
	n->attributes[at].len = len;
	memcpy(n->attributes[at].value, value, len);
}

/* Hold something while it loses its names, or let go; make files without a name, and name them later. */
static void play_hold(struct play *p)
{
	struct node *n = p->nodes[below(p, p->node_nr)];
	const char *name = pick_name(p);
	struct node *dir = pick(p, true);
	struct create_attr attr = { .mode = S_IFREG | 0600 };
	struct object o;

	if (n->is_held && !n->names && !S_ISDIR(n->mode) && below(p, 2)) {
		int expected = entry_find(dir, name) ? -EEXIST : 0;

		assert_int_equal(namespace_link(p->w->ns, n->o, dir->o, name, strlen(name), NULL), expected);
		if (!expected)
			entry_add(dir, name, n);
	} else if (n->is_held) {
		namespace_release(p->w->ns, n->o);
		n->is_held = false;
		n->is_gone = !n->names;
	} else if (!n->is_gone && below(p, 2)) {
		namespace_hold(p->w->ns, n->o);
		n->is_held = true;
	} else if (p->node_nr < NODES_MAX) {
		assert_int_equal(namespace_create_unnamed(p->w->ns, dir->o, &attr, &o, NULL, NULL), 0);
		n = node_new(p, attr.mode, o);
		n->gid = dir->mode & S_ISGID ? dir->gid : 0;
		n->is_held = true;
	}
}

static void play_one(struct play *p)
{
	static void (*const ops[])(struct play * p) = { play_create, play_create,  play_create, play_link,
							play_unlink, play_unlink,  play_rename, play_rename,
							play_rename, play_setattr, play_xattr,	play_xattr,
							play_hold };

	ops[below(p, ARRAY_NR(ops))](p);
}

/* --- comparing --- */

struct listing {
	struct node *dir;
	size_t found;
};

static int listing_entry(void *ctx, const struct dir_entry *e)
{
	struct listing *l = ctx;
	char name[256] = { 0 };

	if (e->name_len <= 2 && !memcmp(e->name, "..", e->name_len))
		return 0;
	memcpy(name, e->name, e->name_len);
	struct entry *expected = entry_find(l->dir, name);
	if (!expected)
		fail_msg("unexpected name %s", name);
	assert_true(e->object.inum == expected->node->o.inum);
	assert_int_equal(e->type, expected->node->mode >> 12);
	l->found++;
	return 0;
}

static void compare_dir(struct play *p, struct node *dir)
{
	struct listing l = { .dir = dir };
	struct object parent, found;
	unsigned type;
	bool at_end;

	assert_int_equal(namespace_readdir(p->w->ns, dir->o, 0, listing_entry, &l, &at_end, NULL), 0);
	assert_true(at_end);
	assert_int_equal(l.found, dir->entry_nr);
	for (unsigned i = 0; i < NAME_NR; i++) {
		const struct entry *e = entry_find(dir, p->names[i]);
		int err = namespace_lookup(p->w->ns, dir->o, p->names[i], strlen(p->names[i]), &found, &type);

		assert_int_equal(err, e ? 0 : -ENOENT);
		assert_true(err || found.inum == e->node->o.inum);
	}
	if (dir->parent) {
		assert_int_equal(namespace_parent(p->w->ns, dir->o, &parent), 0);
		assert_true(parent.inum == dir->parent->o.inum);
	}
}

static void compare_xattrs(struct play *p, const struct node *n)
{
	uint8_t value[VALUE_MAX];
	size_t list_bytes = 0;

	for (unsigned i = 0; i < n->attribute_nr; i++) {
		const struct attribute *a = &n->attributes[i];

		list_bytes += strlen(a->name) + 1;
		assert_int_equal(namespace_xattr_get(p->w->ns, n->o, a->name, value, sizeof(value)), a->len);
		assert_memory_equal(value, a->value, a->len);
	}
	assert_int_equal(namespace_xattr_list(p->w->ns, n->o, NULL, 0), list_bytes);
}

static void compare_node(struct play *p, struct node *n)
{
	char target[VALUE_MAX];
	struct inode inode;

	if (n->is_gone && (!n->o.inum || namespace_inode(p->w->ns, n->o, &inode) == -ENOENT))
		return;
	/* The number of one that is gone may have been used again, but not by one of its generation. */
	if (n->is_gone) {
		assert_true(inode.generation > 0);
		return;
	}
	assert_int_equal(namespace_inode(p->w->ns, n->o, &inode), 0);
	assert_int_equal(inode.mode, n->mode);
	assert_int_equal(inode.uid, n->uid);
	assert_int_equal(inode.gid, n->gid);
	if (n != p->nodes[0] || S_ISDIR(n->mode))
		assert_int_equal(inode_nlink(&inode), !n->names ? 0 : S_ISDIR(n->mode) ? subdir_nr(n) + 2 : n->names);
	compare_xattrs(p, n);
	if (S_ISLNK(n->mode)) {
		assert_int_equal(namespace_readlink(p->w->ns, n->o, target, sizeof(target)), strlen(n->target));
		assert_memory_equal(target, n->target, strlen(n->target));
	}
	if (S_ISDIR(n->mode) && n->names)
		compare_dir(p, n);
}

static void compare(struct play *p)
{
	assert_int_equal(namespace_deletions_wait(p->w->ns), 0);
	for (size_t i = 0; i < p->node_nr; i++)
		compare_node(p, p->nodes[i]);
}

/* --- playing --- */

static char colliding[COLLIDING_NR][NAME_LEN + 1];
static char colliding_xattrs[XATTR_NR][NAME_LEN + 6];
static char long_name[256];

static void names_init(void)
{
	char names[XATTR_NR][NAME_LEN + 1];

	world_colliding_names(-1, COLLIDING_NR, colliding);
	world_colliding_names(XATTR_USER, XATTR_NR, names);
	for (unsigned i = 0; i < XATTR_NR; i++) {
		memcpy(colliding_xattrs[i], "user.", 5);
		memcpy(colliding_xattrs[i] + 5, names[i], NAME_LEN + 1);
	}
	memset(long_name, 'l', sizeof(long_name) - 1);
}

static int setup(void **state)
{
	names_init();
	return 0;
}

static void play_init(struct play *p, struct world *w, uint64_t seed, struct object top)
{
	static const char *const plain[] = { "a",	 "b",		"c",  "dd", "e.txt", "some name",
					     "\xff\xfe", "lost+found2", "x1", "x2", "x3" };
	static const char *const plain_xattrs[] = { "user.a", "user.attribute1", "security.selinux", "trusted.t" };

	*p = (struct play){ .w = w, .top = top };
	rng_init(&p->rng, seed);
	for (unsigned i = 0; i < NAME_NR; i++)
		p->names[i] = i < COLLIDING_NR			   ? colliding[i]
			      : i - COLLIDING_NR < ARRAY_NR(plain) ? plain[i - COLLIDING_NR]
								   : long_name;
	for (unsigned i = 0; i < XATTR_NR; i++)
		p->xattrs[i] = i < ARRAY_NR(plain_xattrs) ? plain_xattrs[i] : colliding_xattrs[i];
	struct node *n = node_new(p, S_IFDIR | 0755, top);
	n->names = 1;
}

static void play_free(struct play *p)
{
	for (size_t i = 0; i < p->node_nr; i++) {
		free(p->nodes[i]->entries);
		free(p->nodes[i]);
	}
}

static struct object top_make(struct world *w, const char *name)
{
	struct object top;

	assert_int_equal(namespace_create(w->ns, world_root, name, strlen(name),
					  &(struct create_attr){ .mode = S_IFDIR | 0755 }, &top, NULL, NULL),
			 0);
	return top;
}

static void release_all(struct play *p)
{
	for (size_t i = 0; i < p->node_nr; i++)
		if (p->nodes[i]->is_held) {
			namespace_release(p->w->ns, p->nodes[i]->o);
			p->nodes[i]->is_held = false;
			p->nodes[i]->is_gone |= !p->nodes[i]->names;
		}
	assert_int_equal(namespace_deletions_wait(p->w->ns), 0);
}

/* What is left, and everything below, goes away. */
static void play_clean_up(struct play *p)
{
	release_all(p);
	for (bool is_again = true; is_again;) {
		is_again = false;
		for (size_t i = 0; i < p->node_nr; i++) {
			struct node *dir = p->nodes[i];

			for (size_t j = dir->is_gone ? 0 : dir->entry_nr; j--;) {
				struct entry *e = &dir->entries[j];

				is_again = true;
				if (e->node->entry_nr)
					continue;
				assert_int_equal(namespace_unlink(p->w->ns, dir->o, e->name, strlen(e->name),
								  S_ISDIR(e->node->mode), NULL, NULL),
						 0);
				entry_remove(dir, e);
			}
		}
	}
}

static void check_random_changes(uint64_t seed)
{
	struct world w;
	struct play p;

	world_open(&w);
	play_init(&p, &w, seed, top_make(&w, "top"));
	for (unsigned batch = 0; batch < 60; batch++) {
		for (unsigned i = 0; i < 40; i++)
			play_one(&p);
		compare(&p);
		world_check(&w);
	}
	play_clean_up(&p);
	compare(&p);
	world_check(&w);
	/* Root, lost+found and the top are all that is left: nothing leaked. */
	assert_int_equal(atomic_load(&w.inode_nr), 3);
	assert_int_equal(world_key_nr(&w, BTREE_DIRENTS, INODE_NR_ROOT), 2);
	play_free(&p);
	world_close(&w);
}

static void random_changes_do_what_a_tree_in_memory_does(void **state) { seeds_run(check_random_changes, 6); }

/* --- snapshots --- */

static struct node *node_of(const struct play *p, uint64_t inum)
{
	for (size_t i = 0; i < p->node_nr; i++)
		if (p->nodes[i]->o.inum == inum && !p->nodes[i]->is_gone)
			return p->nodes[i];
	return NULL;
}

/* The same tree, in another subvolume. */
static void play_copy(struct play *to, const struct play *from, uint32_t subvol)
{
	*to = *from;
	to->node_nr = 0;
	for (size_t i = 0; i < from->node_nr; i++) {
		struct node *n = from->nodes[i];

		if (n->is_gone)
			continue;
		struct node *copy = node_new(to, n->mode, (struct object){ subvol, n->o.inum });
		struct object o = copy->o;
		*copy = *n;
		copy->o = o;
		copy->entries = NULL;
		copy->entry_nr = copy->entry_capacity = 0;
	}
	for (size_t i = 0; i < to->node_nr; i++) {
		struct node *copy = to->nodes[i];
		const struct node *n = node_of(from, copy->o.inum);

		if (n->parent)
			copy->parent = node_of(to, n->parent->o.inum);
		for (size_t j = 0; j < n->entry_nr; j++) {
			struct node *target = node_of(to, n->entries[j].node->o.inum);

			entry_add(copy, n->entries[j].name, target);
			target->names--; /* it was copied */
		}
	}
}

static void check_snapshot(uint64_t seed)
{
	struct world w;
	struct play p, snapshot;

	world_open(&w);
	play_init(&p, &w, seed, top_make(&w, "top"));
	for (unsigned i = 0; i < 600; i++)
		play_one(&p);
	release_all(&p);
	world_take_snapshot(&w);
	play_copy(&snapshot, &p, WORLD_SNAPSHOT);
	compare(&snapshot);
	for (unsigned batch = 0; batch < 25; batch++) {
		for (unsigned i = 0; i < 40; i++)
			play_one(i & 1 ? &p : &snapshot);
		compare(&p);
		compare(&snapshot);
		world_check(&w);
	}
	play_clean_up(&p);
	compare(&p);
	compare(&snapshot);
	play_clean_up(&snapshot);
	compare(&snapshot);
	world_check(&w);
	play_free(&p);
	play_free(&snapshot);
	world_close(&w);
}

static void snapshots_do_not_see_each_others_changes(void **state) { seeds_run(check_snapshot, 6); }

/* --- many at once --- */

enum { THREADS = 4 };

struct player {
	struct play p;
	struct object shared;
	unsigned nr;
	struct task *task;
};

/* Its own tree, and now and then names in a directory that all share. */
static void player_run(void *arg)
{
	struct player *player = arg;
	struct play *p = &player->p;
	struct create_attr attr = { .mode = S_IFREG | 0644 };

	for (unsigned i = 0; i < 250; i++) {
		const char *name = pick_name(p), *other = pick_name(p);
		int err = 0;

		play_one(p);
		switch (below(p, 4)) {
		case 0:
			err = namespace_create(p->w->ns, player->shared, name, strlen(name), &attr, NULL, NULL, NULL);
			break;
		case 1: err = namespace_unlink(p->w->ns, player->shared, name, strlen(name), false, NULL, NULL); break;
		case 2:
			err = namespace_rename(p->w->ns, player->shared, name, strlen(name), player->shared, other,
					       strlen(other), (unsigned)below(p, 3), NULL);
			break;
		}
		if (err && err != -EEXIST && err != -ENOENT)
			fail_msg("error %d", err);
	}
}

static void check_players(uint64_t seed)
{
	struct world w;
	struct player *players = calloc(THREADS, sizeof(*players));
	struct object shared;

	assert_non_null(players);
	world_open(&w);
	shared = top_make(&w, "shared");
	for (unsigned i = 0; i < THREADS; i++) {
		char name[8];

		snprintf(name, sizeof(name), "own%u", i);
		players[i].shared = shared;
		play_init(&players[i].p, &w, seed * THREADS + i, top_make(&w, name));
	}
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(task_start(&players[i].task, "player", player_run, &players[i]), 0);
	for (unsigned i = 0; i < THREADS; i++)
		task_join(players[i].task);
	for (unsigned i = 0; i < THREADS; i++) {
		compare(&players[i].p);
		play_free(&players[i].p);
	}
	world_check(&w);
	free(players);
	world_close(&w);
}

static void changes_at_once_are_those_of_some_order(void **state) { seeds_run(check_players, 2); }

/* --- directories across each other --- */

struct mover {
	struct world *w;
	struct object dirs[2];
	unsigned nr;
	struct task *task;
};

/* One moves a below b while the other moves b below a: at most one may. */
static void mover_run(void *arg)
{
	struct mover *m = arg;
	const char *from = m->nr ? "b" : "a";
	struct object target = m->dirs[!m->nr];

	for (unsigned i = 0; i < 100; i++) {
		int err = namespace_rename(m->w->ns, world_root, from, 1, target, "in", 2, 0, NULL);

		if (!err)
			err = namespace_rename(m->w->ns, target, "in", 2, world_root, from, 1, 0, NULL);
		else if (err == -EINVAL)
			err = 0;
		assert_int_equal(err, 0);
	}
}

static void directories_never_become_a_loop(void **state)
{
	struct world w;
	struct mover movers[2];

	world_open(&w);
	for (unsigned i = 0; i < 2; i++)
		movers[0].dirs[i] = movers[1].dirs[i] = top_make(&w, i ? "b" : "a");
	for (unsigned i = 0; i < 2; i++) {
		movers[i].w = &w;
		movers[i].nr = i;
		assert_int_equal(task_start(&movers[i].task, "mover", mover_run, &movers[i]), 0);
	}
	for (unsigned i = 0; i < 2; i++)
		task_join(movers[i].task);
	world_check(&w);
	world_close(&w);
}

/* --- more unlinked than are deleted --- */

/* The task is paused, so that only who needs it lets it go on. */
static void few_deletions_wait_in_memory(void **state)
{
	enum { FILES = 300, WAITING_MAX = 20 };
	struct create_attr attr = { .mode = S_IFREG | 0644 };
	uint64_t queued, done;
	struct world w;
	char name[16];

	(void)state;
	world_open(&w);
	struct deletions *d = &w.ns->write->deletions;
	assert_int_equal(d->queue_max, 8192);
	d->queue_max = WAITING_MAX;
	for (unsigned i = 0; i < FILES; i++) {
		int len = snprintf(name, sizeof(name), "file%u", i);
		assert_int_equal(namespace_create(w.ns, world_root, name, (size_t)len, &attr, NULL, NULL, NULL), 0);
	}
	background_pause(btrees_background(w.trees));
	for (unsigned i = 0; i < FILES; i++) {
		int len = snprintf(name, sizeof(name), "file%u", i);
		assert_int_equal(namespace_unlink(w.ns, world_root, name, (size_t)len, false, NULL, NULL), 0);
		namespace_deletions_count(w.ns, &queued, &done);
		assert_in_range(queued - done, 0, WAITING_MAX + 1); /* with the one that it is at */
		mutex_lock(&d->lock);
		size_t hold_nr = d->hold_nr;
		mutex_unlock(&d->lock);
		assert_in_range(hold_nr, 0, WAITING_MAX + 1);
	}
	assert_int_equal(queued, FILES);
	background_resume(btrees_background(w.trees));
	assert_int_equal(namespace_deletions_wait(w.ns), 0);
	assert_int_equal(d->hold_nr, 0);
	world_check(&w);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(random_changes_do_what_a_tree_in_memory_does, seeds_teardown),
		cmocka_unit_test_teardown(snapshots_do_not_see_each_others_changes, seeds_teardown),
		cmocka_unit_test_teardown(changes_at_once_are_those_of_some_order, seeds_teardown),
		cmocka_unit_test(directories_never_become_a_loop),
		cmocka_unit_test(few_deletions_wait_in_memory),
	};

	return cmocka_run_group_tests_name("namespace changes", tests, setup, NULL);
}
