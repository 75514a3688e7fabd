/*
 * The ways by which a task changes a filesystem: with calls of the library, or as programs do, at a directory where it
 * is mounted. Objects are told by the name of a directory in the root and a name in that. All calls return 0 or a
 * negative errno.
 *
 * What is written at a mount is in the kernel's page cache first, and with the server for sure when the file has been
 * closed. So files stay open until door_let_go(), and fsync meets what wasn't written back.
 */
#ifndef KILN_TESTS_KILL_DOOR_H
#define KILN_TESTS_KILL_DOOR_H

#include "base/clock.h"
#include "kiln/kiln.h"

struct door {
	kiln_fs *fs; /* NULL: at mountpoint */
	const char *mountpoint;
	struct rng rng; /* in which way it is written at a mount */
	int held_fd;	/* -1: none */
	bool holds_data;
};

struct door door_of_library(kiln_fs *fs);
struct door door_of_mount(const char *mountpoint, uint64_t seed);

int door_create(struct door *d, const char *dir, const char *name, unsigned mode);
int door_write(struct door *d, const char *dir, const char *name, uint64_t offset, const void *bytes, size_t len);
int door_fsync(struct door *d, const char *dir, const char *name);
/* What is open is closed: all that was written is where others see it, and what comes later comes behind it. */
int door_let_go(struct door *d);
int door_unlink(struct door *d, const char *dir, const char *name);
/* @flags: KILN_RENAME_*. */
int door_rename(struct door *d, const char *from_dir, const char *from, const char *to_dir, const char *to,
		unsigned flags);
int door_link(struct door *d, const char *from_dir, const char *from, const char *to_dir, const char *to);
int door_setxattr(struct door *d, const char *dir, const char *name, const char *key, const void *value, size_t len);
int door_removexattr(struct door *d, const char *dir, const char *name, const char *key);
/* -EOPNOTSUPP at a mount: that would write back files of others in the middle of what they do. */
int door_sync(struct door *d);

#endif
