/*
 * Writing trees out: what a hostile or damaged disk can't do to the machine it is copied to, and what is kept.
 *
 * The test plays the filesystem: the few calls of the public API that extraction makes are here, and the events of the
 * walk are made up.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "tool/extract.h"

/* --- the filesystem that is played --- */

/* Every file's contents: byte i is i % 251. What of it is damaged, the same for all: */
static uint64_t damage_begin, damage_end;
/* The file of which a read raises the stop flag. */
static uint64_t stop_at_ino;
static volatile int stop;

static char content_byte(uint64_t i) { return (char)(i % 251); }

ssize_t kiln_read_rescue(kiln_fs *fs, struct kiln_node node, uint64_t offset, void *buf, size_t len,
			 kiln_damage_fn damage, void *ctx)
{
	uint64_t from = max(offset, damage_begin), to = min(offset + len, damage_end);

	if (node.ino == stop_at_ino)
		__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (size_t i = 0; i < len; i++)
		((char *)buf)[i] = offset + i >= from && offset + i < to ? 0 : content_byte(offset + i);
	if (from < to)
		damage(ctx, from, to - from, -EIO);
	return (ssize_t)len;
}

int64_t kiln_seek_data(kiln_fs *fs, struct kiln_node node, uint64_t offset) { return (int64_t)offset; }
int64_t kiln_seek_hole(kiln_fs *fs, struct kiln_node node, uint64_t offset) { return INT64_MAX; }
int kiln_seek_lost(kiln_fs *fs, struct kiln_node node, uint64_t offset, uint64_t *begin, uint64_t *end)
{
	return -ENXIO;
}

/* Symlinks lead out of the destination. */
static const char link_target[] = "../outside";
ssize_t kiln_readlink(kiln_fs *fs, struct kiln_node node, char *buf, size_t size)
{
	memcpy(buf, link_target, strlen(link_target));
	return (ssize_t)strlen(link_target);
}

ssize_t kiln_listxattr(kiln_fs *fs, struct kiln_node node, char *list, size_t size) { return 0; }
ssize_t kiln_getxattr(kiln_fs *fs, struct kiln_node node, const char *name, void *value, size_t size)
{
	return -ENODATA;
}

/* --- what a test works with: a sandbox with dest and outside in it --- */

struct world {
	char path[64];
	int fd, dest_fd;
	struct extract *x;
	uint64_t next_ino;
	unsigned told[EXTRACT_NOT_KEPT + 1];
	struct extract_report last;
	char last_path[PATH_MAX];
};

static void report(void *ctx, const struct extract_report *r)
{
	struct world *w = ctx;

	w->told[r->trouble]++;
	if (r->trouble == EXTRACT_NOT_KEPT)
		return;
	w->last = *r;
	snprintf(w->last_path, sizeof(w->last_path), "%s", r->path);
}

static int world_setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	const char *tmp = getenv("TMPDIR");

	snprintf(w->path, sizeof(w->path), "%.40s/kiln-test-XXXXXX", tmp ? tmp : "/tmp");
	assert_non_null(mkdtemp(w->path));
	w->fd = open(w->path, O_RDONLY | O_DIRECTORY);
	assert_int_equal(mkdirat(w->fd, "outside", 0755), 0);
	assert_int_equal(mkdirat(w->fd, "dest", 0755), 0);
	w->dest_fd = openat(w->fd, "dest", O_RDONLY | O_DIRECTORY);
	assert_true(w->dest_fd >= 0);
	w->next_ino = 4097;
	damage_begin = damage_end = stop_at_ino = 0;
	stop = 0;
	*state = w;
	return 0;
}

static void world_begin(struct world *w, bool overwrite, bool is_root)
{
	struct extract_options o = {
		.overwrite = overwrite, .is_root = is_root, .stop = &stop, .ctx = w, .report = report
	};

	w->x = extract_start(NULL, w->dest_fd, &o);
	assert_non_null(w->x);
	assert_int_equal(extract_begin(w->x, "/", ""), 0);
}

static int world_teardown(void **state)
{
	struct world *w = *state;

	if (w->x)
		extract_end(w->x);
	close(w->dest_fd);
	close(w->fd);
	/* rm copes with trees deeper than paths are long. */
	char command[128];
	snprintf(command, sizeof(command), "rm -rf '%s'", w->path);
	assert_int_equal(system(command), 0);
	free(w);
	return 0;
}

static struct kiln_stat make_stat(struct world *w, uint32_t mode, uint64_t size)
{
	return (struct kiln_stat){
		.node = { w->next_ino++, 1 },
		.mode = mode,
		.nlink = 1,
		.uid = geteuid(),
		.gid = getegid(),
		.size = size,
		.sectors = (size + 511) / 512,
		.mtime = { 1234567890, 5 },
		.atime = { 1234567891, 6 },
	};
}

static int event(struct world *w, enum kiln_walk_event kind, unsigned depth, const char *name,
		 const struct kiln_stat *st)
{
	/* The path is the walk's own, and of no use here: names may hold slashes. */
	struct kiln_walk_entry e = { .event = kind, .path = name, .name = name, .depth = depth, .st = st };

	return extract_event(w->x, &e);
}

static int enter(struct world *w, unsigned depth, const char *name, uint32_t mode)
{
	struct kiln_stat st = make_stat(w, mode, S_ISREG(mode) ? 10 : 0);

	return event(w, KILN_WALK_ENTER, depth, name, &st);
}

static void leave(struct world *w, unsigned depth)
{
	struct kiln_stat st = make_stat(w, S_IFDIR | 0755, 0);

	assert_int_equal(event(w, KILN_WALK_LEAVE, depth, "", &st), 0);
}

static bool exists(struct world *w, const char *path, struct stat *st)
{
	struct stat unused;

	return !fstatat(w->fd, path, st ? st : &unused, AT_SYMLINK_NOFOLLOW);
}

/* How many things are in the sandbox, itself left out. */
static unsigned counted;
static int count_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	counted++;
	return 0;
}

static unsigned count_below(struct world *w, const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", w->path, name);
	counted = 0;
	assert_int_equal(nftw(path, count_one, 16, FTW_PHYS), 0);
	return counted - 1;
}

/* --- hostile names --- */

static void names_never_lead_outside(void **state)
{
	static const char *const names[] = { "..",    ".",	    "",	   "/",		  "/etc/passwd",
					     "../up", "a/../../up", "a/b", "../outside/x" };
	struct world *w = *state;

	world_begin(w, true, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	for (size_t i = 0; i < ARRAY_NR(names); i++)
		assert_int_equal(enter(w, 1, names[i], S_IFREG | 0644), 0);
	assert_int_equal(enter(w, 1, "dirs", S_IFDIR | 0755), 0);
	for (size_t i = 0; i < ARRAY_NR(names); i++) {
		assert_int_equal(enter(w, 2, names[i], S_IFDIR | 0755), 0);
		assert_int_equal(enter(w, 3, "inside", S_IFREG | 0644), 0);
		leave(w, 2);
	}
	leave(w, 1);
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);

	assert_int_equal(w->told[EXTRACT_REFUSED], 2 * ARRAY_NR(names));
	assert_int_equal(count_below(w, "outside"), 0);
	/* dest, outside, nine files, dirs, nine directories with one file each. */
	assert_int_equal(count_below(w, ""), 2 + 9 + 1 + 18);
	assert_true(exists(w, "dest/\\x2e.", NULL));
	assert_true(exists(w, "dest/\\x00", NULL));
	assert_true(exists(w, "dest/a\\x2f..\\x2f..\\x2fup", NULL));
	assert_true(exists(w, "dest/dirs/\\x2e./inside", NULL));
}

static void of_two_equal_names_the_first_is_taken(void **state)
{
	struct world *w = *state;
	struct stat st;

	world_begin(w, false, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	/* In a directory that we made: nothing in it can have been there before. */
	assert_int_equal(enter(w, 1, "dir", S_IFDIR | 0755), 0);
	assert_int_equal(enter(w, 2, "link", S_IFLNK | 0777), 0);
	assert_int_equal(enter(w, 2, "file", S_IFREG | 0600), 0);
	assert_int_equal(extract_finish(w->x), 0);
	assert_int_equal(w->told[EXTRACT_REFUSED], 0);

	assert_int_equal(extract_begin(w->x, "/", "second"), 0);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	assert_int_equal(enter(w, 1, "link", S_IFLNK | 0777), 0);
	assert_int_equal(enter(w, 1, "sub", S_IFDIR | 0755), 0);
	leave(w, 1);
	/* The ring is empty again after enough others: the symlink exists before the directory of its name comes. */
	for (unsigned i = 0; i < 100; i++) {
		char name[16];

		snprintf(name, sizeof(name), "f%u", i);
		assert_int_equal(enter(w, 1, name, S_IFREG | 0644), 0);
	}
	assert_int_equal(enter(w, 1, "link", S_IFDIR | 0755), KILN_WALK_SKIP);
	assert_int_equal(enter(w, 1, "sub", S_IFDIR | 0755), KILN_WALK_SKIP);
	assert_int_equal(enter(w, 1, "sub", S_IFREG | 0755), 0);
	assert_int_equal(enter(w, 1, "f1", S_IFREG | 0755), 0);
	assert_int_equal(enter(w, 1, "f2", S_IFIFO | 0755), 0);
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);

	assert_int_equal(w->told[EXTRACT_REFUSED], 5);
	assert_int_equal(w->told[EXTRACT_FAILED], 0);
	assert_int_equal(count_below(w, "outside"), 0);
	assert_true(exists(w, "dest/second/link", &st) && S_ISLNK(st.st_mode));
	assert_true(exists(w, "dest/second/f2", &st) && S_ISREG(st.st_mode));
}

static void a_directory_with_two_names_is_taken_once(void **state)
{
	struct world *w = *state;
	struct kiln_stat dir = make_stat(w, S_IFDIR | 0755, 0);

	world_begin(w, false, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	assert_int_equal(event(w, KILN_WALK_ENTER, 1, "a", &dir), 0);
	assert_int_equal(event(w, KILN_WALK_LEAVE, 1, "a", &dir), 0);
	assert_int_equal(event(w, KILN_WALK_ENTER, 1, "b", &dir), KILN_WALK_SKIP);
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);
	assert_int_equal(w->told[EXTRACT_REFUSED], 1);
	assert_string_equal(w->last_path, "/b");
	assert_false(exists(w, "dest/b", NULL));
}

/* --- what exists at the destination --- */

static void symlinks_at_the_destination_are_not_followed(void **state)
{
	struct world *w = *state;
	struct stat st;

	for (int overwrite = 0; overwrite < 2; overwrite++) {
		assert_int_equal(symlinkat("../outside", w->dest_fd, "dir"), 0);
		assert_int_equal(symlinkat("../outside/file", w->dest_fd, "file"), 0);
		world_begin(w, overwrite, false);
		assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
		int ret = enter(w, 1, "dir", S_IFDIR | 0755);
		assert_int_equal(ret, overwrite ? 0 : KILN_WALK_SKIP);
		if (overwrite) {
			assert_int_equal(enter(w, 2, "inside", S_IFREG | 0644), 0);
			leave(w, 1);
		}
		assert_int_equal(enter(w, 1, "file", S_IFREG | 0644), 0);
		leave(w, 0);
		assert_int_equal(extract_finish(w->x), 0);
		extract_end(w->x);
		w->x = NULL;

		assert_int_equal(count_below(w, "outside"), 0);
		assert_int_equal(w->told[EXTRACT_FAILED], 2);
		assert_true(exists(w, "dest/dir", &st) && S_ISLNK(st.st_mode) == !overwrite);
		assert_true(exists(w, "dest/file", &st) && S_ISLNK(st.st_mode) == !overwrite);
		if (!overwrite) {
			unlinkat(w->dest_fd, "dir", 0);
			unlinkat(w->dest_fd, "file", 0);
		}
	}
}

static void what_exists_is_kept_unless_told_otherwise(void **state)
{
	struct world *w = *state;
	struct stat st;
	int fd = openat(w->dest_fd, "file", O_CREAT | O_WRONLY, 0640);

	assert_int_equal(write(fd, "mine", 4), 4);
	close(fd);
	assert_int_equal(mkdirat(w->dest_fd, "dir", 0711), 0);
	assert_int_equal(mkdirat(w->dest_fd, "other", 0711), 0);

	world_begin(w, false, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0700), 0);
	assert_int_equal(enter(w, 1, "file", S_IFREG | 0604), 0);
	assert_int_equal(enter(w, 1, "dir", S_IFDIR | 0705), 0);
	assert_int_equal(enter(w, 2, "new", S_IFREG | 0604), 0);
	leave(w, 1);
	assert_int_equal(enter(w, 1, "other", S_IFREG | 0604), 0);
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);
	extract_end(w->x);
	assert_int_equal(w->told[EXTRACT_FAILED], 2);
	assert_true(exists(w, "dest/file", &st) && st.st_size == 4 && (st.st_mode & 07777) == 0640);
	/* Directories are entered in any case. */
	assert_true(exists(w, "dest/dir/new", &st) && st.st_size == 10 && (st.st_mode & 07777) == 0604);
	assert_true(exists(w, "dest/dir", &st) && (st.st_mode & 07777) == 0711);
	assert_true(exists(w, "dest", &st) && (st.st_mode & 07777) == 0755);

	world_begin(w, true, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	assert_int_equal(enter(w, 1, "file", S_IFREG | 0604), 0);
	assert_int_equal(enter(w, 1, "dir", S_IFDIR | 0705), 0);
	leave(w, 1);
	assert_int_equal(enter(w, 1, "other", S_IFREG | 0604), 0);
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);
	assert_int_equal(w->told[EXTRACT_FAILED], 3);
	assert_true(exists(w, "dest/file", &st) && st.st_size == 10 && (st.st_mode & 07777) == 0604);
	/* A directory is never replaced by a file, only merged with a directory. */
	assert_true(exists(w, "dest/other", &st) && S_ISDIR(st.st_mode));
	assert_true(exists(w, "dest/dir", &st) && (st.st_mode & 07777) == 0705);
}

static void a_file_that_was_there_never_becomes_a_hardlink(void **state)
{
	struct world *w = *state;
	struct kiln_stat file = make_stat(w, S_IFREG | 0644, 10);
	struct stat mine, a, b;
	int fd = openat(w->dest_fd, "a", O_CREAT | O_WRONLY, 0600);

	close(fd);
	file.nlink = 3;
	world_begin(w, false, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	assert_int_equal(event(w, KILN_WALK_ENTER, 1, "a", &file), 0);
	assert_int_equal(event(w, KILN_WALK_ENTER, 1, "b", &file), 0);
	assert_int_equal(event(w, KILN_WALK_ENTER, 1, "c", &file), 0);
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);
	assert_int_equal(w->told[EXTRACT_FAILED], 1);
	assert_true(exists(w, "dest/a", &mine) && mine.st_size == 0 && mine.st_nlink == 1);
	/* The others are links of each other. */
	assert_true(exists(w, "dest/b", &a) && exists(w, "dest/c", &b));
	assert_true(a.st_ino == b.st_ino && a.st_nlink == 2 && a.st_size == 10);
}

static void default_acls_of_the_destination_are_not_inherited(void **state)
{
	/* user::rwx, user:1000:rwx, group::r-x, mask::rwx, other::r-x */
	static const uint8_t acl[] = { 2, 0,   0,   0,	 1,   0,   7,  0, 255, 255, 255, 255, 2,   0,  7,
				       0, 232, 3,   0,	 0,   4,   0,  5, 0,   255, 255, 255, 255, 16, 0,
				       7, 0,   255, 255, 255, 255, 32, 0, 5,   0,   255, 255, 255, 255 };
	struct world *w = *state;
	struct stat st;

	if (fsetxattr(w->dest_fd, "system.posix_acl_default", acl, sizeof(acl), 0))
		skip();
	world_begin(w, false, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	assert_int_equal(enter(w, 1, "file", S_IFREG | 0640), 0);
	assert_int_equal(enter(w, 1, "dir", S_IFDIR | 0750), 0);
	assert_int_equal(enter(w, 2, "inner", S_IFREG | 0640), 0);
	leave(w, 1);
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);
	static const char *const paths[] = { "dest/file", "dest/dir", "dest/dir/inner" };
	for (size_t i = 0; i < ARRAY_NR(paths); i++) {
		char path[PATH_MAX];

		snprintf(path, sizeof(path), "%s/%s", w->path, paths[i]);
		assert_int_equal(getxattr(path, "system.posix_acl_access", NULL, 0), -1);
		assert_int_equal(getxattr(path, "system.posix_acl_default", NULL, 0), -1);
		assert_true(exists(w, paths[i], &st));
		assert_int_equal(st.st_mode & 0777, S_ISDIR(st.st_mode) ? 0750 : 0640);
	}
}

/* --- who may do what --- */

static void without_root_there_are_no_devices_and_no_set_id_bits(void **state)
{
	struct world *w = *state;
	struct kiln_stat foreign = make_stat(w, S_IFREG | 04755, 10);
	struct stat st;

	foreign.uid = geteuid() + 1;
	world_begin(w, false, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	assert_int_equal(enter(w, 1, "null", S_IFCHR | 0666), 0);
	assert_int_equal(enter(w, 1, "disk", S_IFBLK | 0666), 0);
	assert_int_equal(event(w, KILN_WALK_ENTER, 1, "setuid", &foreign), 0);
	assert_int_equal(enter(w, 1, "setgid", S_IFDIR | 02775), 0);
	leave(w, 1);
	assert_int_equal(enter(w, 1, "fifo", S_IFIFO | 0640), 0);
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);

	const struct extract_counts *c = extract_counts(w->x);
	assert_int_equal(w->told[EXTRACT_SKIPPED], 2);
	assert_int_equal(c->not_kept[KEPT_OWNER], 1);
	assert_int_equal(c->not_kept[KEPT_SET_ID], 2);
	assert_false(exists(w, "dest/null", NULL) || exists(w, "dest/disk", NULL));
	assert_true(exists(w, "dest/setuid", &st) && (st.st_mode & 07777) == 0755 && st.st_uid == geteuid());
	assert_true(exists(w, "dest/setgid", &st) && (st.st_mode & 07000) == 0);
	assert_true(exists(w, "dest/fifo", &st) && S_ISFIFO(st.st_mode) && (st.st_mode & 07777) == 0640);
	assert_int_equal(st.st_mtim.tv_sec, 1234567890);
	assert_int_equal(st.st_mtim.tv_nsec, 5);
}

static void unknown_types_and_times_are_no_trouble(void **state)
{
	struct world *w = *state;
	struct kiln_stat odd = make_stat(w, S_IFREG | 0644, 10);

	odd.mtime = (struct kiln_timespec){ INT64_MIN, UINT32_MAX };
	odd.atime = (struct kiln_timespec){ INT64_MAX, 0x3fffffff };
	world_begin(w, false, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	assert_int_equal(enter(w, 1, "whiteout", 0160000), 0);
	assert_int_equal(event(w, KILN_WALK_ENTER, 1, "odd", &odd), 0);
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);
	assert_int_equal(w->told[EXTRACT_REFUSED], 1);
	assert_true(exists(w, "dest/odd", NULL));
	assert_false(exists(w, "dest/whiteout", NULL));
}

/* --- bounds --- */

/* A tree deeper than paths can be long, with few descriptors. Every directory gets its metadata. */
static void depth_is_bounded_by_nothing(void **state)
{
	enum { DEPTH = 600 };
	struct world *w = *state;
	struct rlimit old, few;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	few = old;
	few.rlim_cur = 256;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	world_begin(w, false, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	for (unsigned i = 1; i <= DEPTH; i++) {
		assert_int_equal(enter(w, i, "directory", S_IFDIR | 0750), 0);
		assert_int_equal(enter(w, i + 1, "before", S_IFREG | 0644), 0);
	}
	for (unsigned i = DEPTH; i; i--) {
		assert_int_equal(enter(w, i + 1, "behind", S_IFREG | 0644), 0);
		leave(w, i);
	}
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(extract_counts(w->x)->files, 2 * DEPTH);
	assert_int_equal(extract_counts(w->x)->directories, DEPTH + 1);

	int fd = dup(w->dest_fd);
	for (unsigned i = 1; i <= DEPTH; i++) {
		struct stat st;
		int below = openat(fd, "directory", O_RDONLY | O_DIRECTORY);

		assert_true(below >= 0);
		close(fd);
		fd = below;
		assert_int_equal(fstat(fd, &st), 0);
		assert_int_equal(st.st_mode & 07777, 0750);
		assert_int_equal(fstatat(fd, "before", &st, 0), 0);
		assert_int_equal(fstatat(fd, "behind", &st, 0), 0);
	}
	close(fd);
}

static void hardlinks_are_found_deep_down_and_after_their_number(void **state)
{
	struct world *w = *state;
	struct kiln_stat file = make_stat(w, S_IFREG | 0644, 10);
	struct stat first, second, third;

	/* It says to have two names, and has three: the third becomes a file of its own. */
	file.nlink = 2;
	world_begin(w, false, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	assert_int_equal(enter(w, 1, "a", S_IFDIR | 0755), 0);
	assert_int_equal(enter(w, 2, "b", S_IFDIR | 0755), 0);
	assert_int_equal(event(w, KILN_WALK_ENTER, 3, "one", &file), 0);
	leave(w, 2);
	leave(w, 1);
	assert_int_equal(event(w, KILN_WALK_ENTER, 1, "two", &file), 0);
	assert_int_equal(event(w, KILN_WALK_ENTER, 1, "three", &file), 0);
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);
	assert_true(exists(w, "dest/a/b/one", &first) && exists(w, "dest/two", &second) &&
		    exists(w, "dest/three", &third));
	assert_int_equal(first.st_ino, second.st_ino);
	assert_int_not_equal(first.st_ino, third.st_ino);
	assert_int_equal(third.st_size, 10);
}

/* --- contents --- */

static void file_check(struct world *w, const char *path, uint64_t size, uint64_t from, uint64_t to)
{
	int fd = openat(w->fd, path, O_RDONLY);
	char *buf = malloc(size);

	assert_int_equal(pread(fd, buf, size, 0), size);
	for (uint64_t i = 0; i < size; i++)
		assert_int_equal(buf[i], i >= from && i < to ? 0 : content_byte(i));
	assert_int_equal(lseek(fd, 0, SEEK_END), size);
	free(buf);
	close(fd);
}

static void damage_is_told_once_and_the_rest_is_kept(void **state)
{
	/* Small ones are read at once, large ones in chunks, which the damage crosses. */
	static const uint64_t sizes[] = { 200000, 5000000 };
	struct world *w = *state;

	damage_begin = 100000;
	damage_end = 4200000;
	for (size_t i = 0; i < ARRAY_NR(sizes); i++) {
		uint64_t end = min(sizes[i], damage_end);
		struct kiln_stat file = make_stat(w, S_IFREG | 0644, sizes[i]);

		world_begin(w, true, false);
		assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
		assert_int_equal(event(w, KILN_WALK_ENTER, 1, "file", &file), 0);
		leave(w, 0);
		assert_int_equal(extract_finish(w->x), 0);
		assert_int_equal(w->told[EXTRACT_DAMAGED], i + 1);
		assert_string_equal(w->last_path, "/file");
		assert_int_equal(w->last.offset, damage_begin);
		assert_int_equal(w->last.len, end - damage_begin);
		assert_int_equal(extract_counts(w->x)->damaged_files, 1);
		assert_int_equal(extract_counts(w->x)->damaged_bytes, end - damage_begin);
		assert_int_equal(extract_counts(w->x)->files, 1);
		file_check(w, "dest/file", sizes[i], damage_begin, end);
		extract_end(w->x);
		w->x = NULL;
	}
}

static void a_file_that_is_stopped_is_removed(void **state)
{
	struct world *w = *state;
	struct kiln_stat file = make_stat(w, S_IFREG | 0644, 50000000);
	struct stat st;

	stop_at_ino = file.node.ino;
	world_begin(w, false, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	assert_int_equal(enter(w, 1, "dir", S_IFDIR | 0751), 0);
	assert_int_equal(enter(w, 2, "complete", S_IFREG | 0644), 0);
	assert_int_equal(event(w, KILN_WALK_ENTER, 2, "file", &file), 0);
	assert_int_equal(extract_finish(w->x), -EINTR);
	assert_false(exists(w, "dest/dir/file", NULL));
	assert_true(exists(w, "dest/dir/complete", &st) && st.st_size == 10);
	/* What is there looks as it should. */
	assert_true(exists(w, "dest/dir", &st) && (st.st_mode & 07777) == 0751);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), -EINTR);
}

static void a_file_that_cannot_be_written_is_removed_and_told(void **state)
{
	struct world *w = *state;
	struct kiln_stat file = make_stat(w, S_IFREG | 0644, 5000000);
	struct rlimit old, small;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	small = old;
	small.rlim_cur = 3000000;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	world_begin(w, false, false);
	assert_int_equal(enter(w, 0, "", S_IFDIR | 0755), 0);
	assert_int_equal(event(w, KILN_WALK_ENTER, 1, "file", &file), 0);
	assert_int_equal(enter(w, 1, "next", S_IFREG | 0644), 0);
	leave(w, 0);
	assert_int_equal(extract_finish(w->x), 0);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(w->told[EXTRACT_FAILED], 1);
	assert_int_equal(w->last.error, -EFBIG);
	assert_false(exists(w, "dest/file", NULL));
	assert_true(exists(w, "dest/next", NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(names_never_lead_outside, world_setup, world_teardown),
		cmocka_unit_test_setup_teardown(of_two_equal_names_the_first_is_taken, world_setup, world_teardown),
		cmocka_unit_test_setup_teardown(a_directory_with_two_names_is_taken_once, world_setup, world_teardown),
		cmocka_unit_test_setup_teardown(symlinks_at_the_destination_are_not_followed, world_setup,
						world_teardown),
		cmocka_unit_test_setup_teardown(what_exists_is_kept_unless_told_otherwise, world_setup, world_teardown),
		cmocka_unit_test_setup_teardown(a_file_that_was_there_never_becomes_a_hardlink, world_setup,
						world_teardown),
		cmocka_unit_test_setup_teardown(default_acls_of_the_destination_are_not_inherited, world_setup,
						world_teardown),
		cmocka_unit_test_setup_teardown(without_root_there_are_no_devices_and_no_set_id_bits, world_setup,
						world_teardown),
		cmocka_unit_test_setup_teardown(unknown_types_and_times_are_no_trouble, world_setup, world_teardown),
		cmocka_unit_test_setup_teardown(depth_is_bounded_by_nothing, world_setup, world_teardown),
		cmocka_unit_test_setup_teardown(hardlinks_are_found_deep_down_and_after_their_number, world_setup,
						world_teardown),
		cmocka_unit_test_setup_teardown(damage_is_told_once_and_the_rest_is_kept, world_setup, world_teardown),
		cmocka_unit_test_setup_teardown(a_file_that_is_stopped_is_removed, world_setup, world_teardown),
		cmocka_unit_test_setup_teardown(a_file_that_cannot_be_written_is_removed_and_told, world_setup,
						world_teardown),
	};

	signal(SIGXFSZ, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
