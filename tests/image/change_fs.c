/*
 * Change a filesystem through the public API, as told on standard input, one command a line; the tests that drive it
 * keep the model (lib/changes.py).
 *
 *	change_fs [--degraded] FS [PASSPHRASE]	(devices with colons)
 *
 * Fields are separated by tabs; paths have \xNN where they aren't plain text. Every command is answered by one line: a
 * number (0, or bytes written), or the name of an error. The first line is "open", or "refused" or an error's name with
 * the reason. At the end of input the filesystem is shut down, and the answer to that is the last line.
 *
 * Reports go to standard error. Exit status: 0 when it opened, the shutdown was clean and nothing worse than
 * information was reported.
 */
#include <errno.h>
#include <inttypes.h>
#include <kiln/kiln.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { FIELDS_MAX = 8, DATA_BYTES_MAX = 64 << 20 };

struct place {
	struct kiln_node dir;
	const char *name;
	size_t len;
};

struct changer {
	kiln_fs *fs;
	char *field[FIELDS_MAX];
	size_t len[FIELDS_MAX];
	unsigned nr;
	bool is_degraded_ok;
	unsigned complaints;
	const char *passphrase;
	char *data;
};

/* --- fields --- */

static size_t unescape(char *text)
{
	char *to = text;

	for (const char *from = text; *from; to++) {
		unsigned byte;

		if (from[0] == '\\' && sscanf(from, "\\x%2x", &byte) == 1) {
			*to = (char)byte;
			from += 4;
		} else {
			*to = *from++;
		}
	}
	*to = 0;
	return (size_t)(to - text);
}

static uint64_t number(const struct changer *c, unsigned i) { return strtoull(c->field[i], NULL, 0); }

static int object_at(struct changer *c, unsigned i, struct kiln_node *node)
{
	struct kiln_stat st;
	int err = kiln_lookup_path(c->fs, c->field[i], 0, &st);

	*node = st.node;
	return err;
}

/* The directory of a path, and the last name. */
static int place_at(struct changer *c, unsigned i, struct place *place)
{
	char *slash = strrchr(c->field[i], '/');
	struct kiln_stat st;
	int err = 0;

	place->dir = kiln_root(c->fs);
	place->name = slash ? slash + 1 : c->field[i];
	place->len = strlen(place->name);
	if (slash) {
		*slash = 0;
		err = kiln_lookup_path(c->fs, c->field[i], KILN_FOLLOW, &st);
		*slash = '/';
		if (!err)
			place->dir = st.node;
	}
	return err;
}

/* --- commands --- */

/* mknod PATH MODE MAJOR MINOR UMASK: anything but symlinks. */
static int64_t do_mknod(struct changer *c)
{
	struct kiln_create attr = { .mode = (uint32_t)number(c, 2),
				    .rdev_major = (uint32_t)number(c, 3),
				    .rdev_minor = (uint32_t)number(c, 4),
				    .umask = (uint32_t)number(c, 5) };
	struct place p;
	int err = place_at(c, 1, &p);

	return err ? err : kiln_create(c->fs, p.dir, p.name, p.len, &attr, NULL);
}

/* symlink PATH TARGET */
static int64_t do_symlink(struct changer *c)
{
	struct kiln_create attr = { .mode = 0777 };
	struct place p;
	int err = place_at(c, 1, &p);

	return err ? err : kiln_symlink(c->fs, p.dir, p.name, p.len, c->field[2], &attr, NULL);
}

/* link OLD NEW */
static int64_t do_link(struct changer *c)
{
	struct kiln_node node;
	struct place p;
	int err = object_at(c, 1, &node);

	if (!err)
		err = place_at(c, 2, &p);
	return err ? err : kiln_link(c->fs, node, p.dir, p.name, p.len);
}

/* unlink PATH FLAGS */
static int64_t do_unlink(struct changer *c)
{
	struct place p;
	int err = place_at(c, 1, &p);

	return err ? err : kiln_unlink(c->fs, p.dir, p.name, p.len, (unsigned)number(c, 2));
}

/* rename FROM TO FLAGS */
static int64_t do_rename(struct changer *c)
{
	struct place from, to;
	int err = place_at(c, 1, &from);

	if (!err)
		err = place_at(c, 2, &to);
	return err ? err
		   : kiln_rename(c->fs, from.dir, from.name, from.len, to.dir, to.name, to.len, (unsigned)number(c, 3));
}

/* write PATH OFFSET BYTES, followed by so many bytes */
static int64_t do_write(struct changer *c)
{
	size_t len = (size_t)number(c, 3);
	struct kiln_node node;

	if (len > DATA_BYTES_MAX || fread(c->data, 1, len, stdin) != len)
		return -EINVAL;
	int err = object_at(c, 1, &node);
	return err ? err : kiln_write(c->fs, node, number(c, 2), c->data, len);
}

/* setattr PATH FIELDS MODE UID GID SIZE MTIME_SEC */
static int64_t do_setattr(struct changer *c)
{
	struct kiln_setattr attr = {
		.fields = (unsigned)number(c, 2),
		.mode = (uint32_t)number(c, 3),
		.uid = (uint32_t)number(c, 4),
		.gid = (uint32_t)number(c, 5),
		.size = number(c, 6),
		.mtime.sec = (int64_t)number(c, 7),
	};
	struct kiln_node node;
	int err = object_at(c, 1, &node);

	return err ? err : kiln_setattr(c->fs, node, &attr, NULL);
}

/* punch PATH OFFSET BYTES */
static int64_t do_punch(struct changer *c)
{
	struct kiln_node node;
	int err = object_at(c, 1, &node);

	return err ? err : kiln_punch(c->fs, node, number(c, 2), number(c, 3));
}

/* fallocate PATH MODE OFFSET BYTES */
static int64_t do_fallocate(struct changer *c)
{
	struct kiln_node node;
	int err = object_at(c, 1, &node);

	return err ? err : kiln_fallocate(c->fs, node, (unsigned)number(c, 2), number(c, 3), number(c, 4));
}

/* copy FROM OFFSET TO OFFSET BYTES FLAGS */
static int64_t do_copy(struct changer *c)
{
	struct kiln_node from, to;
	int err = object_at(c, 1, &from);

	if (!err)
		err = object_at(c, 3, &to);
	return err ? err
		   : kiln_copy_range(c->fs, from, number(c, 2), to, number(c, 4), number(c, 5), (unsigned)number(c, 6));
}

/* setxattr PATH NAME VALUE, removexattr PATH NAME */
static int64_t do_setxattr(struct changer *c)
{
	struct kiln_node node;
	int err = object_at(c, 1, &node);

	return err ? err : kiln_setxattr(c->fs, node, c->field[2], c->field[3], c->len[3], 0);
}

static int64_t do_removexattr(struct changer *c)
{
	struct kiln_node node;
	int err = object_at(c, 1, &node);

	return err ? err : kiln_removexattr(c->fs, node, c->field[2]);
}

static int64_t do_fsync(struct changer *c)
{
	struct kiln_node node;
	int err = object_at(c, 1, &node);

	return err ? err : kiln_fsync(c->fs, node);
}

static int64_t do_sync(struct changer *c) { return kiln_sync(c->fs); }

/* What was deleted has given back its space. */
static int64_t do_settle(struct changer *c)
{
	int err = kiln_deletions_wait(c->fs);

	return err ? err : kiln_sync(c->fs);
}

static int64_t do_used(struct changer *c)
{
	struct kiln_usage u;
	int err = kiln_usage(c->fs, &u);

	return err ? err : (int64_t)u.used;
}

static int64_t do_inodes(struct changer *c)
{
	struct kiln_usage u;
	int err = kiln_usage(c->fs, &u);

	return err ? err : (int64_t)u.inodes;
}

/* fill DIR FIRST MAX BYTES: files of so many bytes, named by number, until space runs out. How many there are then. */
static int64_t do_fill(struct changer *c)
{
	uint64_t first = number(c, 2), max = number(c, 3), bytes = number(c, 4), i;
	struct kiln_create attr = { .mode = 0644 };
	struct kiln_node dir;
	int64_t err = object_at(c, 1, &dir);

	if (err || bytes > DATA_BYTES_MAX)
		return err ? err : -EINVAL;
	memset(c->data, 0x5a, bytes);
	for (i = first; i < first + max && !err; i++) {
		struct kiln_stat st;
		char name[32];
		size_t len = (size_t)snprintf(name, sizeof(name), "file-%" PRIu64, i);

		err = kiln_create(c->fs, dir, name, len, &attr, &st);
		if (err)
			break;
		for (uint64_t at = 0; at < bytes && err >= 0; at += err > 0 ? (uint64_t)err : 0)
			err = kiln_write(c->fs, st.node, at, c->data, bytes - at);
		err = err < 0 ? err : 0;
	}
	return err && err != -ENOSPC ? err : (int64_t)(i - first);
}

/* empty DIR FIRST END: remove the files so numbered that exist. How many there were. */
static int64_t do_empty(struct changer *c)
{
	uint64_t first = number(c, 2), end = number(c, 3);
	struct kiln_node dir;
	int64_t err = object_at(c, 1, &dir), nr = 0;

	for (uint64_t i = first; i < end && !err; i++) {
		char name[32];
		size_t len = (size_t)snprintf(name, sizeof(name), "file-%" PRIu64, i);

		err = kiln_unlink(c->fs, dir, name, len, 0);
		nr += !err;
		err = err == -ENOENT ? 0 : err;
	}
	return err ? err : nr;
}

static const struct command {
	const char *name;
	unsigned fields;
	int64_t (*run)(struct changer *c);
} commands[] = {
	{ "mknod", 6, do_mknod },     { "symlink", 3, do_symlink },   { "link", 3, do_link },
	{ "unlink", 3, do_unlink },   { "rename", 4, do_rename },     { "write", 4, do_write },
	{ "setattr", 8, do_setattr }, { "punch", 4, do_punch },	      { "fallocate", 5, do_fallocate },
	{ "copy", 7, do_copy },	      { "setxattr", 4, do_setxattr }, { "removexattr", 3, do_removexattr },
	{ "fsync", 2, do_fsync },     { "sync", 1, do_sync },	      { "settle", 1, do_settle },
	{ "used", 1, do_used },	      { "inodes", 1, do_inodes },     { "fill", 5, do_fill },
	{ "empty", 4, do_empty },
};

/* --- the program --- */

static void note_report(void *ctx, const struct kiln_report *report)
{
	struct changer *c = ctx;

	/* Where a device is missing, so are its copies. */
	c->complaints += report->level > (c->is_degraded_ok ? KILN_REPORT_RECOVERED : KILN_REPORT_INFO);
	fprintf(stderr, "%s\n", report->text);
}

static ssize_t give_passphrase(void *ctx, const char *uuid, unsigned attempt, char *buf, size_t size)
{
	struct changer *c = ctx;

	(void)uuid;
	return c->passphrase && !attempt ? snprintf(buf, size, "%s", c->passphrase) : -ENOKEY;
}

static void answer(int64_t result)
{
	if (result < 0)
		printf("%s\n", strerrorname_np((int)-result));
	else
		printf("%" PRId64 "\n", result);
	fflush(stdout);
}

static int64_t obey(struct changer *c, char *line)
{
	c->nr = 0;
	for (char *field; c->nr < FIELDS_MAX && (field = strsep(&line, "\t"));)
		c->field[c->nr++] = field;
	for (unsigned i = 0; i < c->nr; i++)
		c->len[i] = unescape(c->field[i]);
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(c->field[0], commands[i].name))
			return c->nr == commands[i].fields ? commands[i].run(c) : -EINVAL;
	return -ENOSYS;
}

int main(int argc, char **argv)
{
	static struct changer c;
	c.is_degraded_ok = argc > 1 && !strcmp(argv[1], "--degraded");
	argc -= c.is_degraded_ok;
	argv += c.is_degraded_ok;
	const char *device = argc > 1 ? argv[1] : NULL;
	struct kiln_open_options options = {
		.struct_bytes = sizeof(options),
		.flags = KILN_OPEN_WRITE | KILN_OPEN_NO_SCAN | (c.is_degraded_ok ? KILN_OPEN_DEGRADED : 0),
		.memory_bytes = 64 << 20,
		.ctx = &c,
		.report = note_report,
		.passphrase = give_passphrase,
	};
	char why[KILN_ERROR_BYTES], *line = NULL;
	size_t room = 0;

	c.passphrase = argc > 2 ? argv[2] : NULL;
	c.data = malloc(DATA_BYTES_MAX);
	if (!device || !c.data)
		return 2;
	int err = kiln_open(&device, 1, &options, &c.fs, why);
	if (err || kiln_write_refused(c.fs)) {
		printf("%s\t%s\n", err ? strerrorname_np(-err) : "refused", err ? why : kiln_write_refused(c.fs));
		kiln_close(err ? NULL : c.fs);
		return 1;
	}
	puts("open");
	fflush(stdout);
	for (ssize_t len; (len = getline(&line, &room, stdin)) > 0;) {
		line[len - 1] = 0;
		answer(obey(&c, line));
	}
	err = kiln_shutdown(c.fs);
	answer(err);
	kiln_close(c.fs);
	free(line);
	free(c.data);
	return err || c.complaints ? 1 : 0;
}
