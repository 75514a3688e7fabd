/* The rules of changes one by one: hash tables, renames, ACLs, flags, numbers, deletions, limits. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/clock.h"
#include "format/error_ids.h"
#include "format/str_hash.h"
#include "namespace/change_internal.h"
#include "world.h"

enum { SNAPSHOT = UINT32_MAX };

static struct world w;
static char same[8][NAME_LEN + 1]; /* names i and i + 4 have one hash */

static int setup(void **state)
{
	world_open(&w);
	world_colliding_names(-1, 8, same);
	return 0;
}

static int teardown(void **state)
{
	world_check(&w);
	world_close(&w);
	return 0;
}

static struct object make_with(struct object dir, const char *name, const struct create_attr *attr)
{
	struct object o;

	assert_int_equal(namespace_create(w.ns, dir, name, strlen(name), attr, &o, NULL, NULL), 0);
	return o;
}

static struct object make(struct object dir, const char *name, uint32_t mode)
{
	return make_with(dir, name, &(struct create_attr){ .mode = mode });
}

static int drop(struct object dir, const char *name)
{
	return namespace_unlink(w.ns, dir, name, strlen(name), false, NULL, NULL);
}

static int move(struct object dir, const char *from, struct object to_dir, const char *to, unsigned flags)
{
	return namespace_rename(w.ns, dir, from, strlen(from), to_dir, to, strlen(to), flags, NULL);
}

static struct inode inode_of(struct object o)
{
	struct inode inode;

	assert_int_equal(namespace_inode(w.ns, o, &inode), 0);
	return inode;
}

static bool has(struct object dir, const char *name)
{
	struct object o;
	unsigned type;
	int err = namespace_lookup(w.ns, dir, name, strlen(name), &o, &type);

	assert_true(!err || err == -ENOENT);
	return !err;
}

static uint64_t hash_in(struct object dir, const char *name)
{
	struct inode inode = inode_of(dir);

	return str_hash_dirent(inode.str_hash, inode.hash_seed, name, strlen(name), 0);
}

/* --- hash tables --- */

/* The example that 04 §2.2 gives, with four names of one hash. */
static void deleting_leaves_whiteouts_where_they_are_needed(void **state)
{
	char names[16][NAME_LEN + 1];
	struct object dir = make(world_root, "dir", S_IFDIR | 0755);

	world_colliding_names(-1, 16, names);
	const char *a = names[0], *b = names[4], *c = names[8], *d = names[12];
	uint64_t h = hash_in(dir, a);
#define SLOT(n) world_slot_type(&w, BTREE_DIRENTS, dir.inum, h + (n))
	make(dir, a, S_IFREG);
	make(dir, b, S_IFREG);
	make(dir, c, S_IFREG);
	assert_int_equal(SLOT(0), KEY_DIRENT);
	assert_int_equal(SLOT(2), KEY_DIRENT);
	assert_int_equal(drop(dir, c), 0);
	assert_int_equal(SLOT(2), KEY_DELETED);
	make(dir, c, S_IFREG);
	assert_int_equal(drop(dir, a), 0);
	assert_int_equal(SLOT(0), KEY_HASH_WHITEOUT);
	assert_true(has(dir, c) && has(dir, b) && !has(dir, a));
	make(dir, d, S_IFREG);
	assert_int_equal(SLOT(0), KEY_DIRENT);
	assert_int_equal(SLOT(3), KEY_DELETED);
	assert_int_equal(drop(dir, d), 0);
	assert_int_equal(drop(dir, b), 0);
	assert_int_equal(SLOT(0), KEY_HASH_WHITEOUT);
	assert_int_equal(SLOT(1), KEY_HASH_WHITEOUT);
	assert_true(has(dir, c));
	assert_int_equal(drop(dir, c), 0);
	assert_int_equal(SLOT(2), KEY_DELETED);
	assert_int_equal(SLOT(0), KEY_HASH_WHITEOUT);
#undef SLOT
	/* They go with the directory. */
	assert_int_equal(namespace_unlink(w.ns, world_root, "dir", 3, true, NULL, NULL), 0);
	assert_int_equal(namespace_deletions_wait(w.ns), 0);
	assert_int_equal(world_key_nr(&w, BTREE_DIRENTS, dir.inum), 0);
}

static void renaming_along_a_probe_path_takes_the_slot(void **state)
{
	char names[16][NAME_LEN + 1];
	struct object dir = make(world_root, "dir", S_IFDIR | 0755);

	world_colliding_names(-1, 16, names);
	const char *a = names[0], *b = names[4], *c = names[8];
	uint64_t h = hash_in(dir, a);
	struct object file = make(dir, a, S_IFREG);

	/* To the same hash, the next free slot lies behind: the old slot serves. */
	assert_int_equal(move(dir, a, dir, b, 0), 0);
	assert_int_equal(world_slot_type(&w, BTREE_DIRENTS, dir.inum, h), KEY_DIRENT);
	assert_int_equal(world_key_nr(&w, BTREE_DIRENTS, dir.inum), 1);
	assert_true(inode_of(file).dir_offset == h);
	/* Over one behind: the old slot must stay passable. */
	make(dir, c, S_IFREG);
	assert_int_equal(move(dir, b, dir, c, 0), 0);
	assert_int_equal(world_slot_type(&w, BTREE_DIRENTS, dir.inum, h), KEY_HASH_WHITEOUT);
	assert_true(has(dir, c) && !has(dir, b));
	assert_true(inode_of(file).dir_offset == h + 1);
	/* And back to the front, into the whiteout. */
	assert_int_equal(move(dir, c, dir, a, 0), 0);
	assert_true(has(dir, a) && !has(dir, c));
	assert_int_equal(world_key_nr(&w, BTREE_DIRENTS, dir.inum), 1);
}

static int count_entry(void *ctx, const struct dir_entry *e)
{
	++*(unsigned *)ctx;
	return 0;
}

static void a_directory_holds_thousands_of_names(void **state)
{
	enum { NR = 3000 };
	struct object dir = make(world_root, "big", S_IFDIR | 0755), other = make(world_root, "other", S_IFDIR | 0755);
	char name[32];
	unsigned nr = 0;
	bool at_end;

	for (unsigned i = 0; i < NR; i++) {
		snprintf(name, sizeof(name), "file number %u", i);
		make(dir, name, S_IFREG | 0644);
	}
	assert_int_equal(namespace_readdir(w.ns, dir, 0, count_entry, &nr, &at_end, NULL), 0);
	assert_int_equal(nr, NR + 2);
	world_check(&w);
	for (unsigned i = 0; i < NR; i++) {
		snprintf(name, sizeof(name), "file number %u", i);
		assert_true(has(dir, name));
		if (i % 3)
			assert_int_equal(drop(dir, name), 0);
		else
			assert_int_equal(move(dir, name, other, name, RENAME_NO_REPLACE), 0);
	}
	assert_int_equal(namespace_deletions_wait(w.ns), 0);
	assert_int_equal(namespace_unlink(w.ns, world_root, "other", 5, true, NULL, NULL), -ENOTEMPTY);
	assert_int_equal(namespace_unlink(w.ns, world_root, "big", 3, true, NULL, NULL), 0);
	assert_int_equal(namespace_deletions_wait(w.ns), 0);
	assert_int_equal(atomic_load(&w.inode_nr), 3 + NR / 3);
}

/* --- times, modes, owners --- */

static bool time_is_new(uint64_t t, uint64_t before) { return (int64_t)(t - before) >= 0; }

static void times_change_where_posix_says(void **state)
{
	struct object dir = make(world_root, "dir", S_IFDIR | 0755), file = make(dir, "file", S_IFREG | 0644);
	struct setattr old = { .fields = SETATTR_ATIME | SETATTR_MTIME | SETATTR_CTIME,
			       .atime = { 1100000000, 0 },
			       .mtime = { 1100000000, 5 },
			       .ctime = { 1100000000, 0 } };
	uint64_t past = inode_time_encode(&w.kctx, old.atime), start = change_time(&w.super);
	struct inode inode;

	assert_int_equal(namespace_setattr(w.ns, dir, &old, NULL, NULL), 0);
	assert_int_equal(namespace_setattr(w.ns, file, &old, &inode, NULL), 0);
	assert_true(inode.atime == past && inode.mtime == past + 5 && inode.ctime == past);

	assert_int_equal(namespace_link(w.ns, file, dir, "link", 4, NULL), 0);
	inode = inode_of(file);
	assert_true(time_is_new(inode.ctime, start) && inode.mtime == past + 5);
	inode = inode_of(dir);
	assert_true(time_is_new(inode.ctime, start) && time_is_new(inode.mtime, start) && inode.atime == past);

	assert_int_equal(namespace_setattr(w.ns, file, &old, NULL, NULL), 0);
	assert_int_equal(namespace_setattr(w.ns, dir, &old, NULL, NULL), 0);
	assert_int_equal(drop(dir, "link"), 0);
	assert_true(time_is_new(inode_of(file).ctime, start) && time_is_new(inode_of(dir).mtime, start));

	assert_int_equal(namespace_setattr(w.ns, file, &old, NULL, NULL), 0);
	assert_int_equal(namespace_xattr_set(w.ns, file, "user.a", "b", 1, 0, NULL), 0);
	assert_true(time_is_new(inode_of(file).ctime, start) && inode_of(file).mtime == past + 5);
	assert_true(time_is_new(inode_of(file).otime, start - 1000000000));
	old.fields = SETATTR_BTIME;
	old.btime = old.atime;
	assert_int_equal(namespace_setattr(w.ns, file, &old, NULL, NULL), 0);
	assert_true(inode_of(file).otime == past);
}

static void a_setgid_directory_hands_its_group_down(void **state)
{
	struct create_attr attr = { .mode = S_IFDIR | S_ISGID | 0755, .uid = 1, .gid = 42 };
	struct object dir = make_with(world_root, "dir", &attr);

	attr = (struct create_attr){ .mode = S_IFREG | 0666, .uid = 2, .gid = 3, .umask = 022 };
	struct inode file = inode_of(make_with(dir, "file", &attr));
	attr.mode = S_IFDIR | 0777;
	struct inode sub = inode_of(make_with(dir, "sub", &attr));

	assert_int_equal(file.gid, 42);
	assert_int_equal(file.mode, S_IFREG | 0644);
	assert_int_equal(sub.gid, 42);
	assert_int_equal(sub.mode, S_IFDIR | S_ISGID | 0755);
}

static void a_new_owner_does_not_get_the_setuid_bit(void **state)
{
	struct object file = make(world_root, "file", S_IFREG | 06755);
	struct object locked = make(world_root, "locked", S_IFREG | 06745);
	struct setattr attr = { .fields = SETATTR_UID, .uid = 5 };

	assert_int_equal(namespace_setattr(w.ns, file, &attr, NULL, NULL), 0);
	assert_int_equal(inode_of(file).mode, S_IFREG | 0755);
	assert_int_equal(namespace_setattr(w.ns, locked, &attr, NULL, NULL), 0);
	assert_int_equal(inode_of(locked).mode, S_IFREG | 02745);
}

/* --- ACLs --- */

static const char acl_access[] = "system.posix_acl_access", acl_default[] = "system.posix_acl_default";

struct acl_entry {
	uint16_t tag, perm;
	uint32_t id;
};
enum { OWNER = 1, USER = 2, OWNING_GROUP = 4, GROUP = 8, MASK = 16, OTHER = 32 };
#define NO_ID UINT32_MAX

static size_t acl_make(uint8_t *out, const struct acl_entry *entries, unsigned nr)
{
	le32_store(out, 2);
	for (unsigned i = 0; i < nr; i++) {
		le16_store(out + 4 + i * 8, entries[i].tag);
		le16_store(out + 6 + i * 8, entries[i].perm);
		le32_store(out + 8 + i * 8, entries[i].id);
	}
	return 4 + (size_t)nr * 8;
}

static int acl_put(struct object o, const char *name, const struct acl_entry *entries, unsigned nr)
{
	uint8_t acl[256];

	return namespace_xattr_set(w.ns, o, name, acl, acl_make(acl, entries, nr), 0, NULL);
}

static void assert_acl(struct object o, const char *name, const struct acl_entry *entries, unsigned nr)
{
	uint8_t expected[256], acl[256];
	size_t len = acl_make(expected, entries, nr);

	assert_int_equal(namespace_xattr_get(w.ns, o, name, acl, sizeof(acl)), len);
	assert_memory_equal(acl, expected, len);
}

static const struct acl_entry extended[] = { { OWNER, 6, NO_ID }, { USER, 7, 1000 },  { OWNING_GROUP, 5, NO_ID },
					     { GROUP, 3, 50 },	  { MASK, 7, NO_ID }, { OTHER, 4, NO_ID } };
static const struct acl_entry minimal[] = { { OWNER, 7, NO_ID }, { OWNING_GROUP, 5, NO_ID }, { OTHER, 1, NO_ID } };

static void an_access_acl_and_the_mode_say_the_same(void **state)
{
	struct object file = make(world_root, "file", S_IFREG | 04600);

	assert_int_equal(acl_put(file, acl_access, extended, 6), 0);
	assert_int_equal(inode_of(file).mode, S_IFREG | 04674);
	assert_acl(file, acl_access, extended, 6);

	struct setattr attr = { .fields = SETATTR_MODE, .mode = 0750 };
	struct acl_entry changed[6];
	assert_int_equal(namespace_setattr(w.ns, file, &attr, NULL, NULL), 0);
	memcpy(changed, extended, sizeof(changed));
	changed[0].perm = 7;
	changed[4].perm = 5;
	changed[5].perm = 0;
	assert_acl(file, acl_access, changed, 6);

	/* One that says no more than a mode isn't stored. */
	assert_int_equal(acl_put(file, acl_access, minimal, 3), 0);
	assert_int_equal(inode_of(file).mode, S_IFREG | 0751);
	assert_int_equal(namespace_xattr_get(w.ns, file, acl_access, NULL, 0), -ENODATA);
	assert_int_equal(acl_put(file, acl_access, extended, 6), 0);
	assert_int_equal(namespace_xattr_remove(w.ns, file, acl_access, NULL), 0);
	assert_int_equal(inode_of(file).mode, S_IFREG | 0674);
	assert_int_equal(world_key_nr(&w, BTREE_XATTRS, file.inum), 0);
}

static void a_default_acl_is_inherited(void **state)
{
	struct object dir = make(world_root, "dir", S_IFDIR | 0755);
	struct create_attr attr = { .mode = S_IFREG | 0640, .umask = 0777 };

	assert_int_equal(acl_put(dir, acl_default, extended, 6), 0);
	struct object file = make_with(dir, "file", &attr);
	attr.mode = S_IFDIR | 0777;
	struct object sub = make_with(dir, "sub", &attr);

	/* The umask doesn't count; what isn't in the mode asked for is taken away. */
	struct acl_entry expected[6];
	memcpy(expected, extended, sizeof(expected));
	expected[4].perm = 4;
	expected[5].perm = 0;
	assert_acl(file, acl_access, expected, 6);
	assert_int_equal(namespace_xattr_get(w.ns, file, acl_default, NULL, 0), -ENODATA);
	assert_int_equal(inode_of(file).mode, S_IFREG | 0640);
	assert_acl(sub, acl_default, extended, 6);
	assert_acl(sub, acl_access, extended, 6);
	assert_int_equal(inode_of(sub).mode, S_IFDIR | 0674);

	assert_int_equal(acl_put(dir, acl_default, minimal, 3), 0);
	attr.mode = S_IFREG | 0666;
	file = make_with(dir, "plain", &attr);
	assert_int_equal(inode_of(file).mode, S_IFREG | 0640);
	assert_int_equal(world_key_nr(&w, BTREE_XATTRS, file.inum), 0);
}

static void acls_that_make_no_sense_are_refused(void **state)
{
	struct object file = make(world_root, "file", S_IFREG | 0600);
	struct object link;
	struct acl_entry bad[6];

	for (unsigned i = 0; i < 6; i++) {
		/* Without one entry: only the group's may be missing. */
		memcpy(bad, extended, sizeof(bad));
		memmove(bad + i, bad + i + 1, sizeof(bad[0]) * (5 - i));
		assert_int_equal(acl_put(file, acl_access, bad, 5), i == 1 || i == 3 ? 0 : -EINVAL);
		memcpy(bad, extended, sizeof(bad));
		bad[i].perm = 8;
		assert_int_equal(acl_put(file, acl_access, bad, 6), -EINVAL);
	}
	memcpy(bad, extended, sizeof(bad));
	bad[0] = extended[5];
	bad[5] = extended[0];
	assert_int_equal(acl_put(file, acl_access, bad, 6), -EINVAL);
	memcpy(bad, extended, sizeof(bad));
	bad[1].id = NO_ID;
	assert_int_equal(acl_put(file, acl_access, bad, 6), -EINVAL);
	assert_int_equal(acl_put(file, acl_default, extended, 6), -EACCES);
	assert_int_equal(namespace_xattr_set(w.ns, file, acl_access, "\2\0\0\0x", 5, 0, NULL), -EINVAL);
	assert_int_equal(
		namespace_symlink(w.ns, world_root, "l", 1, "t", 1, &(struct create_attr){ 0 }, &link, NULL, NULL), 0);
	assert_int_equal(acl_put(link, acl_access, extended, 6), -EOPNOTSUPP);
}

/* --- options of inodes --- */

static void options_are_inherited_and_guard_links(void **state)
{
	struct object dir = make(world_root, "dir", S_IFDIR | 0755), plain = make(world_root, "plain", S_IFREG | 0644);
	char text[32] = { 0 };

	assert_int_equal(namespace_xattr_set(w.ns, dir, "bcachefs.data_checksum", "xxhash", 6, 0, NULL), 0);
	assert_int_equal(namespace_xattr_set(w.ns, dir, "bcachefs.project", "77", 2, 0, NULL), 0);
	assert_int_equal(namespace_xattr_set(w.ns, dir, "bcachefs.data_checksum", "tar", 3, 0, NULL), -EINVAL);
	assert_int_equal(namespace_xattr_set(w.ns, dir, "bcachefs.nonsense", "1", 1, 0, NULL), -EINVAL);
	/* What files would then need to be written isn't there. */
	assert_int_equal(namespace_xattr_set(w.ns, dir, "bcachefs.erasure_code", "1", 1, 0, NULL), -EOPNOTSUPP);
	assert_int_equal(namespace_xattr_set(w.ns, dir, "bcachefs.erasure_code", "0", 1, 0, NULL), 0);
	assert_int_equal(namespace_xattr_remove(w.ns, dir, "bcachefs.erasure_code", NULL), 0);
	struct object file = make(dir, "file", S_IFREG | 0644), sub = make(dir, "sub", S_IFDIR | 0755);
	assert_int_equal(namespace_xattr_get(w.ns, file, "bcachefs_effective.data_checksum", text, sizeof(text)), 6);
	assert_string_equal(text, "xxhash");
	assert_int_equal(namespace_xattr_get(w.ns, file, "bcachefs.data_checksum", text, sizeof(text)), -ENODATA);
	assert_int_equal(inode_of(file).opts[INODE_OPT_PROJECT], 78);

	/* Directories with other options are a border for links and for directories that move. */
	assert_int_equal(namespace_link(w.ns, plain, dir, "in", 2, NULL), -EXDEV);
	assert_int_equal(move(dir, "sub", world_root, "out", 0), -EXDEV);
	assert_int_equal(move(dir, "file", world_root, "out", 0), 0);
	assert_int_equal(inode_of(file).opts[INODE_OPT_DATA_CHECKSUM], 0);
	assert_int_equal(namespace_xattr_set(w.ns, sub, "bcachefs.data_checksum", "none", 4, 0, NULL), 0);
	assert_int_equal(namespace_xattr_set(w.ns, sub, "bcachefs.project", "0", 1, 0, NULL), 0);
	assert_int_equal(move(dir, "sub", world_root, "sub", 0), 0);
	assert_int_equal(move(world_root, "sub", dir, "sub", 0), 0);
	assert_int_equal(namespace_xattr_remove(w.ns, sub, "bcachefs.project", NULL), 0);
	assert_int_equal(inode_of(sub).opts[INODE_OPT_PROJECT], 78);
	assert_int_equal(namespace_xattr_remove(w.ns, sub, "bcachefs.project", NULL), -ENODATA);
}

/* Requested anew by each change of what is wanted of a file's data in the end, and by nothing else: 06 §12.4. */
static uint64_t scan_request_of(struct object o)
{
	struct bkey_copy copy;

	assert_int_equal(btree_write_buffer_flush(w.trees), 0);
	int found = btree_lookup(w.trees, BTREE_REBALANCE_WORK, BPOS(o.inum, UINT64_MAX - 1, UINT32_MAX), &copy);
	assert_true(found >= 0);
	if (!found)
		return 0;
	assert_int_equal(copy.k.k.type, KEY_COOKIE);
	return le64_load(copy.k.value);
}

static void other_background_options_ask_for_a_scan(void **state)
{
	struct object file = make(world_root, "file", S_IFREG | 0644), dir = make(world_root, "dir", S_IFDIR | 0755);

	assert_int_equal(namespace_xattr_set(w.ns, file, "bcachefs.data_checksum", "xxhash", 6, 0, NULL), 0);
	assert_int_equal(namespace_xattr_set(w.ns, dir, "bcachefs.background_compression", "none", 4, 0, NULL), 0);
	assert_int_equal(scan_request_of(file), 0);
	assert_int_equal(scan_request_of(dir), 0);
	assert_int_equal(namespace_xattr_set(w.ns, file, "bcachefs.background_compression", "none", 4, 0, NULL), 0);
	uint64_t first = scan_request_of(file);
	assert_int_not_equal(first, 0);
	assert_int_equal(namespace_xattr_remove(w.ns, file, "bcachefs.background_compression", NULL), 0);
	assert_int_not_equal(scan_request_of(file), first);
}

/* --- flags, limits --- */

static void flags_forbid_changes(void **state)
{
	struct object dir = make(world_root, "dir", S_IFDIR | 0755), file = make(dir, "file", S_IFREG | 0644);
	struct setattr set = { .fields = SETATTR_FLAGS, .flags = INODE_IMMUTABLE }, clear = { .fields = SETATTR_FLAGS };
	struct setattr mode = { .fields = SETATTR_MODE, .mode = 0600 },
		       now = { .fields = SETATTR_ATIME, .atime_now = true };
	struct create_attr attr = { .mode = S_IFREG };

	assert_int_equal(namespace_setattr(w.ns, file, &set, NULL, NULL), 0);
	assert_int_equal(drop(dir, "file"), -EPERM);
	assert_int_equal(move(dir, "file", world_root, "x", 0), -EPERM);
	make(world_root, "over", S_IFREG);
	assert_int_equal(move(world_root, "over", dir, "file", 0), -EPERM);
	assert_int_equal(namespace_link(w.ns, file, dir, "y", 1, NULL), -EPERM);
	assert_int_equal(namespace_setattr(w.ns, file, &mode, NULL, NULL), -EPERM);
	assert_int_equal(namespace_xattr_set(w.ns, file, "user.a", "", 0, 0, NULL), -EPERM);
	assert_int_equal(namespace_setattr(w.ns, file, &clear, NULL, NULL), 0);
	assert_int_equal(inode_of(file).flags, 0);

	assert_int_equal(namespace_setattr(w.ns, dir, &set, NULL, NULL), 0);
	assert_int_equal(drop(dir, "file"), -EPERM);
	assert_int_equal(namespace_create(w.ns, dir, "new", 3, &attr, NULL, NULL, NULL), -EPERM);
	set.flags = INODE_APPEND | INODE_NODUMP;
	assert_int_equal(namespace_setattr(w.ns, dir, &set, NULL, NULL), 0);
	assert_int_equal(namespace_setattr(w.ns, dir, &now, NULL, NULL), 0);
	assert_int_equal(namespace_setattr(w.ns, dir, &mode, NULL, NULL), -EPERM);
	assert_int_equal(drop(dir, "file"), -EPERM);
	make(dir, "new", S_IFREG);
	assert_int_equal(move(world_root, "dir", world_root, "elsewhere", 0), -EPERM);
	assert_int_equal(move(dir, "new", world_root, "new", 0), -EPERM);
	set.flags = INODE_UNLINKED;
	assert_int_equal(namespace_setattr(w.ns, file, &set, NULL, NULL), -EOPNOTSUPP);
}

static void edit_links_max(struct inode *inode) { inode->nlink = UINT32_MAX - 2; }
static void edit_links_file(struct inode *inode) { inode->nlink = UINT32_MAX - 1; }
static void edit_links_0(struct inode *inode) { inode->nlink = 0; }

static void limits_are_kept(void **state)
{
	struct object dir = make(world_root, "dir", S_IFDIR | 0755), file = make(world_root, "file", S_IFREG);
	struct create_attr attr = { .mode = S_IFDIR | 0700 };
	char name[300], target[1025];
	struct object o;

	memset(name, 'n', sizeof(name));
	memset(target, 't', sizeof(target));
	assert_int_equal(namespace_create(w.ns, dir, name, 256, &attr, NULL, NULL, NULL), -ENAMETOOLONG);
	assert_int_equal(namespace_create(w.ns, dir, name, 255, &attr, NULL, NULL, NULL), 0);
	assert_int_equal(namespace_create(w.ns, dir, "a/b", 3, &attr, NULL, NULL, NULL), -EINVAL);
	assert_int_equal(namespace_create(w.ns, dir, "", 0, &attr, NULL, NULL, NULL), -EINVAL);
	assert_int_equal(namespace_create(w.ns, file, "a", 1, &attr, NULL, NULL, NULL), -ENOTDIR);

	world_inode_edit(&w, dir.inum, edit_links_max);
	assert_int_equal(namespace_create(w.ns, dir, "sub", 3, &attr, NULL, NULL, NULL), -EMLINK);
	attr.mode = S_IFREG;
	assert_int_equal(namespace_create(w.ns, dir, "reg", 3, &attr, NULL, NULL, NULL), 0);
	world_inode_edit(&w, dir.inum, edit_links_0);
	assert_int_equal(namespace_unlink(w.ns, dir, name, 255, true, NULL, NULL), 0);
	world_inode_edit(&w, file.inum, edit_links_file);
	assert_int_equal(namespace_link(w.ns, file, dir, "l", 1, NULL), -EMLINK);
	world_inode_edit(&w, file.inum, edit_links_0);

	assert_int_equal(namespace_symlink(w.ns, dir, "s", 1, "", 0, &attr, NULL, NULL, NULL), -ENOENT);
	assert_int_equal(namespace_symlink(w.ns, dir, "s", 1, target, 1024, &attr, &o, NULL, NULL), 0);
	assert_int_equal(inode_of(o).size, 1024);
	assert_int_equal(inode_of(o).sectors, 8);
	assert_int_equal(namespace_xattr_set(w.ns, file, "user.big", target, sizeof(target), 0, NULL), 0);
	char huge[2000] = { 0 };
	assert_int_equal(namespace_xattr_set(w.ns, file, "user.huge", huge, sizeof(huge), 0, NULL), -ERANGE);
	assert_int_equal(namespace_xattr_set(w.ns, file, "foreign.x", "", 0, 0, NULL), -EOPNOTSUPP);
}

static void edit_readonly(uint8_t value[SUBVOLUME_BYTES], bool is_readonly)
{
	subvolume_encode(
		&(struct subvolume){ .snapshot = SNAPSHOT, .inode = INODE_NR_ROOT, .is_readonly = is_readonly }, value);
}

static void a_read_only_subvolume_is_not_changed(void **state)
{
	struct object dir = make(world_root, "dir", S_IFDIR | 0755);
	struct create_attr attr = { .mode = S_IFREG };
	struct setattr mode = { .fields = SETATTR_MODE };
	struct bkey k = { .p = BPOS(0, SUBVOL_ROOT, 0), .type = KEY_SUBVOLUME, .value_u64s = SUBVOLUME_BYTES / 8 };
	uint8_t value[SUBVOLUME_BYTES];

	edit_readonly(value, true);
	world_put(&w, BTREE_SUBVOLUMES, &k, value);
	assert_int_equal(namespace_create(w.ns, dir, "f", 1, &attr, NULL, NULL, NULL), -EROFS);
	assert_int_equal(namespace_create_unnamed(w.ns, dir, &attr, NULL, NULL, NULL), -EROFS);
	assert_int_equal(namespace_unlink(w.ns, world_root, "dir", 3, true, NULL, NULL), -EROFS);
	assert_int_equal(move(world_root, "dir", world_root, "b", 0), -EROFS);
	assert_int_equal(namespace_setattr(w.ns, dir, &mode, NULL, NULL), -EROFS);
	assert_int_equal(namespace_xattr_set(w.ns, dir, "user.a", "", 0, 0, NULL), -EROFS);
	assert_int_equal(namespace_link(w.ns, dir, dir, "l", 1, NULL), -EROFS);
	edit_readonly(value, false);
	world_put(&w, BTREE_SUBVOLUMES, &k, value);
}

/* --- renames --- */

static void directories_do_not_move_below_themselves(void **state)
{
	struct object a = make(world_root, "a", S_IFDIR | 0755), b = make(a, "b", S_IFDIR | 0755),
		      c = make(b, "c", S_IFDIR | 0755);

	assert_int_equal(move(world_root, "a", c, "x", 0), -EINVAL);
	assert_int_equal(move(world_root, "a", a, "x", 0), -EINVAL);
	assert_int_equal(move(b, "c", world_root, "a", 0), -ENOTEMPTY);
	assert_int_equal(move(b, "c", world_root, "a", RENAME_SWAP), -EINVAL);
	make(b, "file", S_IFREG);
	assert_int_equal(move(b, "file", a, "b", 0), -ENOTEMPTY);
	assert_int_equal(move(b, "file", world_root, "a", 0), -ENOTEMPTY);
	assert_int_equal(move(b, "file", b, "c", 0), -EISDIR);
	assert_int_equal(move(b, "c", world_root, "c", 0), 0);
	assert_int_equal(move(world_root, "a", c, "a", 0), 0);
	assert_int_equal(inode_of(c).nlink, 1);
	assert_int_equal(inode_of(world_root).nlink, 2);
	assert_true(inode_of(a).dir == c.inum);
}

static void renaming_onto_another_name_of_the_same_does_nothing(void **state)
{
	struct object file = make(world_root, "one", S_IFREG);

	assert_int_equal(namespace_link(w.ns, file, world_root, "two", 3, NULL), 0);
	assert_int_equal(move(world_root, "one", world_root, "two", 0), 0);
	assert_true(has(world_root, "one") && has(world_root, "two"));
	assert_int_equal(move(world_root, "one", world_root, "two", RENAME_NO_REPLACE), -EEXIST);
	assert_int_equal(move(world_root, "one", world_root, "one", 0), 0);
	assert_int_equal(inode_nlink(&(struct inode){ .nlink = inode_of(file).nlink }), 2);
	assert_int_equal(move(world_root, "one", world_root, "three", 3), -EINVAL);
	assert_int_equal(move((struct object){ 2, 4096 }, "one", world_root, "three", 0), -EXDEV);
}

enum { LEAF_OF_SNAPSHOT = UINT32_MAX - 1 };
static uint64_t subvol_slot;

static int root_edit(struct btree_txn *txn, void *ctx)
{
	struct inode inode;
	int err = inode_txn_get(txn, INODE_NR_ROOT, LEAF_OF_SNAPSHOT, &inode);

	inode.dir = INODE_NR_ROOT;
	inode.dir_offset = subvol_slot;
	inode.parent_subvol = SUBVOL_ROOT;
	return err ? err : inode_txn_put(txn, &inode);
}

/* Name the snapshot in subvolume 1, by a key of the interior snapshot, as if others had been taken since. */
static void name_snapshot(const char *name)
{
	struct dirent d = { .type = DIRENT_TYPE_SUBVOL,
			    .child_subvol = WORLD_SNAPSHOT,
			    .parent_subvol = SUBVOL_ROOT,
			    .name = (const uint8_t *)name,
			    .name_len = (uint16_t)strlen(name) };
	struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };
	struct bkey k = { .type = KEY_DIRENT };
	uint8_t value[64];

	subvol_slot = hash_in(world_root, name);
	k.p = BPOS(INODE_NR_ROOT, subvol_slot, SNAPSHOT);
	k.value_u64s = (uint8_t)(dirent_encode(&d, value, sizeof(value)) / 8);
	world_put(&w, BTREE_DIRENTS, &k, value);
	assert_int_equal(btree_txn_run(w.trees, &opts, root_edit, NULL), 0);
}

static void subvolumes_are_renamed_by_whoever_names_them(void **state)
{
	struct object dir = make(world_root, "dir", S_IFDIR | 0755), empty = make(world_root, "empty", S_IFDIR | 0755),
		      found;
	struct bkey_copy copy;
	struct inode inode;
	unsigned type;

	world_take_snapshot(&w);
	name_snapshot(same[0]);
	assert_true(has(world_root, same[0]));
	assert_false(has((struct object){ WORLD_SNAPSHOT, INODE_NR_ROOT }, same[0]));
	assert_int_equal(namespace_unlink(w.ns, world_root, same[0], NAME_LEN, true, NULL, NULL), -EOPNOTSUPP);
	assert_int_equal(drop(world_root, same[0]), -EISDIR);
	assert_int_equal(move(world_root, same[0], world_root, "dir", RENAME_SWAP), -EOPNOTSUPP);
	assert_int_equal(move(world_root, "dir", world_root, same[0], 0), -EOPNOTSUPP);
	uint32_t nlink = inode_of(world_root).nlink;

	/* To a name of the same hash, then away, then over an empty directory. */
	const char *names[] = { same[0], same[4], "elsewhere", "empty" };
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(move(world_root, names[i], world_root, names[i + 1], 0), 0);
		assert_false(has(world_root, names[i]));
		assert_int_equal(namespace_lookup(w.ns, world_root, names[i + 1], strlen(names[i + 1]), &found, &type),
				 0);
		assert_true(found.subvol == WORLD_SNAPSHOT && found.inum == INODE_NR_ROOT);
		inode = inode_of(found);
		assert_true(btree_lookup(w.trees, BTREE_DIRENTS, BPOS(inode.dir, inode.dir_offset, UINT32_MAX - 2),
					 &copy) > 0);
		/* What the snapshot inherited is gone too. */
		assert_true(btree_lookup(w.trees, BTREE_DIRENTS, BPOS(INODE_NR_ROOT, subvol_slot, LEAF_OF_SNAPSHOT),
					 &copy) > 0);
		assert_int_equal(copy.k.k.type, KEY_HASH_WHITEOUT);
	}
	assert_int_equal(inode_of(world_root).nlink, nlink - 1);
	assert_int_equal(move(world_root, "empty", dir, "in", 0), 0);
	assert_int_equal(namespace_lookup(w.ns, dir, "in", 2, &found, &type), 0);
	assert_int_equal(inode_of(dir).nlink, 0);
	assert_true(inode_of(found).dir == dir.inum);
	assert_int_equal(namespace_deletions_wait(w.ns), 0);
	assert_int_equal(namespace_inode(w.ns, empty, &inode), -ENOENT);
}

/* --- deletion, numbers --- */

static void what_is_held_stays_until_it_is_released(void **state)
{
	struct object file = make(world_root, "file", S_IFREG);
	struct inode inode;

	assert_int_equal(namespace_xattr_set(w.ns, file, "user.a", "b", 1, 0, NULL), 0);
	namespace_hold(w.ns, file);
	namespace_hold(w.ns, file);
	assert_int_equal(drop(world_root, "file"), 0);
	assert_int_equal(namespace_deletions_wait(w.ns), 0);
	inode = inode_of(file);
	assert_int_equal(inode_nlink(&inode), 0);
	namespace_release(w.ns, file);
	assert_int_equal(namespace_deletions_wait(w.ns), 0);
	assert_int_equal(world_key_nr(&w, BTREE_XATTRS, file.inum), 1);
	/* Without a name it can get one, as long as it is held. */
	assert_int_equal(namespace_link(w.ns, file, world_root, "again", 5, NULL), 0);
	namespace_release(w.ns, file);
	assert_int_equal(namespace_deletions_wait(w.ns), 0);
	assert_int_equal(namespace_inode(w.ns, file, &inode), 0);
	assert_int_equal(drop(world_root, "again"), 0);
	assert_int_equal(namespace_deletions_wait(w.ns), 0);
	assert_int_equal(namespace_inode(w.ns, file, &inode), -ENOENT);
	assert_int_equal(world_key_nr(&w, BTREE_XATTRS, file.inum), 0);
	assert_int_equal(namespace_link(w.ns, file, world_root, "again", 5, NULL), -ENOENT);
}

static void the_deleted_list_survives_a_crash(void **state)
{
	enum { NR = 600 };
	struct create_attr attr = { .mode = S_IFREG };
	struct object o, dir = make(world_root, "dir", S_IFDIR | 0755);
	struct inode inode;

	for (unsigned i = 0; i < NR; i++) {
		assert_int_equal(namespace_create_unnamed(w.ns, world_root, &attr, &o, NULL, NULL), 0);
		assert_int_equal(namespace_xattr_set(w.ns, o, "user.a", "b", 1, 0, NULL), 0);
	}
	namespace_hold(w.ns, dir);
	assert_int_equal(namespace_unlink(w.ns, world_root, "dir", 3, true, NULL, NULL), 0);
	world_check(&w);
	world_reopen_namespace(&w);
	assert_int_equal(namespace_inode(w.ns, dir, &inode), 0);
	assert_int_equal(namespace_delete_dead_inodes(w.ns), 0);
	assert_int_equal(namespace_inode(w.ns, dir, &inode), -ENOENT);
	assert_int_equal(namespace_inode(w.ns, o, &inode), -ENOENT);
	assert_int_equal(atomic_load(&w.inode_nr), 2);
}

static void dead_inodes_of_interior_snapshots_are_deleted_in_the_leaves(void **state)
{
	struct create_attr attr = { .mode = S_IFREG };
	struct object dead, file = make(world_root, "file", S_IFREG);
	struct inode inode;
	struct bkey_copy copy;

	assert_int_equal(namespace_create_unnamed(w.ns, world_root, &attr, &dead, NULL, NULL), 0);
	assert_int_equal(namespace_xattr_set(w.ns, dead, "user.a", "b", 1, 0, NULL), 0);
	world_take_snapshot(&w);
	struct object in_snapshot = { WORLD_SNAPSHOT, dead.inum };
	assert_int_equal(namespace_inode(w.ns, dead, &inode), 0);
	assert_int_equal(namespace_inode(w.ns, in_snapshot, &inode), 0);
	assert_int_equal(namespace_delete_dead_inodes(w.ns), 0);
	assert_int_equal(namespace_inode(w.ns, dead, &inode), -ENOENT);
	assert_int_equal(namespace_inode(w.ns, in_snapshot, &inode), -ENOENT);
	/* It stays where it was, but not on the list. */
	assert_true(btree_lookup(w.trees, BTREE_INODES, BPOS(0, dead.inum, SNAPSHOT), &copy) > 0);
	assert_int_equal(inode_unpack(copy.k, &inode, NULL), 0);
	assert_false(inode.flags & INODE_UNLINKED);
	assert_true(has(world_root, "file"));
	assert_int_equal(namespace_inode(w.ns, (struct object){ WORLD_SNAPSHOT, file.inum }, &inode), 0);
}

static void wrong_entries_of_the_deleted_list_are_dropped(void **state)
{
	struct object file = make(world_root, "file", S_IFREG), dir = make(world_root, "dir", S_IFDIR | 0755);
	struct bkey k = { .type = KEY_SET };

	make(dir, "in", S_IFREG);
	k.p = BPOS(0, file.inum, SNAPSHOT);
	world_put(&w, BTREE_DELETED_INODES, &k, NULL);
	assert_int_equal(namespace_delete_dead_inodes(w.ns), 0);
	assert_int_equal(atomic_load(&w.last_id), ERROR_deleted_inode_not_unlinked);
	k.p = BPOS(0, 999999, SNAPSHOT);
	world_put(&w, BTREE_DELETED_INODES, &k, NULL);
	assert_int_equal(namespace_delete_dead_inodes(w.ns), 0);
	assert_int_equal(atomic_load(&w.last_id), ERROR_deleted_inode_missing);
	assert_int_equal(atomic_load(&w.reports), 2);
	atomic_store(&w.reports, 0);
	assert_true(has(world_root, "file") && has(dir, "in"));
}

static void numbers_are_used_again_with_another_generation(void **state)
{
	enum { ROUNDS = 14000, KEPT = 20 };
	uint64_t max_inum = 0;
	bool was_reused = false;

	for (unsigned i = 0; i < KEPT; i++) {
		char name[16];

		snprintf(name, sizeof(name), "kept%u", i);
		make(world_root, name, S_IFREG);
	}
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct object o = make(world_root, "file", S_IFREG);

		was_reused |= inode_of(o).generation > 0;
		max_inum = max(max_inum, o.inum);
		assert_int_equal(drop(world_root, "file"), 0);
		if (i % 64 == 0)
			assert_int_equal(namespace_deletions_wait(w.ns), 0);
	}
	assert_true(was_reused);
	assert_true(max_inum < INODE_NR_FIRST + 3 * 4096);
}

static void symlinks_and_nodes_are_what_was_asked_for(void **state)
{
	struct object link, dev;
	struct create_attr attr = { .mode = S_IFBLK | 0600, .rdev_major = 259, .rdev_minor = 300 };
	struct inode inode;
	char target[64];
	uint32_t major, minor;

	assert_int_equal(namespace_symlink(w.ns, world_root, "l", 1, "../some/where", 13, &attr, &link, &inode, NULL),
			 0);
	assert_int_equal(inode.mode, S_IFLNK | 0777);
	assert_int_equal(namespace_readlink(w.ns, link, target, sizeof(target)), 13);
	assert_memory_equal(target, "../some/where", 13);
	dev = make_with(world_root, "dev", &attr);
	inode = inode_of(dev);
	assert_int_equal(inode.dev, 259u << 20 | 300);
	inode_dev(&inode, &major, &minor);
	assert_true(major == 259 && minor == 300);
	assert_int_equal(drop(world_root, "l"), 0);
	assert_int_equal(namespace_deletions_wait(w.ns), 0);
	assert_int_equal(world_key_nr(&w, BTREE_EXTENTS, link.inum), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(deleting_leaves_whiteouts_where_they_are_needed),
		TEST(renaming_along_a_probe_path_takes_the_slot),
		TEST(a_directory_holds_thousands_of_names),
		TEST(times_change_where_posix_says),
		TEST(a_setgid_directory_hands_its_group_down),
		TEST(a_new_owner_does_not_get_the_setuid_bit),
		TEST(an_access_acl_and_the_mode_say_the_same),
		TEST(a_default_acl_is_inherited),
		TEST(acls_that_make_no_sense_are_refused),
		TEST(options_are_inherited_and_guard_links),
		TEST(other_background_options_ask_for_a_scan),
		TEST(flags_forbid_changes),
		TEST(limits_are_kept),
		TEST(a_read_only_subvolume_is_not_changed),
		TEST(directories_do_not_move_below_themselves),
		TEST(renaming_onto_another_name_of_the_same_does_nothing),
		TEST(subvolumes_are_renamed_by_whoever_names_them),
		TEST(what_is_held_stays_until_it_is_released),
		TEST(the_deleted_list_survives_a_crash),
		TEST(dead_inodes_of_interior_snapshots_are_deleted_in_the_leaves),
		TEST(wrong_entries_of_the_deleted_list_are_dropped),
		TEST(numbers_are_used_again_with_another_generation),
		TEST(symlinks_and_nodes_are_what_was_asked_for),
	};
#undef TEST

	return cmocka_run_group_tests_name("namespace rules", tests, NULL, NULL);
}
