/*
 * The FUSE door: an open filesystem, served at a mount point. How, and what that promises, is told in serve.c.
 */
#ifndef KILN_MOUNT_MOUNT_H
#define KILN_MOUNT_MOUNT_H

#include <stdbool.h>
#include <stdint.h>

#include "kiln/kiln.h"

enum mount_atime { MOUNT_RELATIME, MOUNT_NOATIME, MOUNT_STRICTATIME };

/* Requests come through it where the kernel offers that; the same, and a warning where it doesn't; they don't. */
enum mount_io_uring { MOUNT_IO_URING_OFFERED, MOUNT_IO_URING_WANTED, MOUNT_IO_URING_NEVER };

struct mount_options {
	const char *mountpoint;
	const char *source; /* shown in the mount table */
	bool is_readonly;   /* nothing can be changed; needed where the filesystem isn't open for writing */
	bool has_acls;	    /* POSIX ACLs count */
	bool allow_other;   /* users besides the one who mounts */
	enum mount_atime atime;
	enum mount_io_uring io_uring;
	bool keeps_diratime;	  /* reading directories doesn't change it */
	uint64_t remembered_max;  /* objects that the kernel may make the server remember; 0: any number */
	const char *fuse_options; /* further options for FUSE, comma separated, or NULL */
	bool is_debug;		  /* log every request */
};

struct mount_server;

/* Make the server of @fs, and free it. @options must live as long. NULL when memory is short. */
struct mount_server *mount_server_new(kiln_fs *fs, const struct mount_options *options);
void mount_server_free(struct mount_server *server);

/*
 * Mount and serve until it is unmounted or the process gets SIGINT, SIGTERM or SIGHUP. @mounted is called once
 * the mount is in place and has threads that serve it: the place to tell the caller and go to the background.
 * Returns 0 after a clean unmount, or a negative errno (having told why on stderr): -ECANCELED where FUSE has refused,
 * and has said why itself.
 */
int mount_serve(struct mount_server *server, void (*mounted)(void *ctx), void *ctx);

/*
 * Make all that the server was given durable, and what the kernel had begun to write back (syncfs(2)) when it was
 * called. As long as the server and its filesystem are there.
 */
int mount_server_sync(struct mount_server *server);

/* Which reads change times of access from now on; NULL: as it is. As long as the server is there. */
void mount_server_atime_set(struct mount_server *server, const enum mount_atime *atime, const bool *keeps_diratime);

/*
 * Nothing can be changed any more: have the mount table say so, as soon as the kernel lets it, that is when no file is
 * open for writing. From any thread, while mount_serve() runs or not. Only root can; for others the table stays.
 */
void mount_server_failed(struct mount_server *server);

/* What the kernel makes the server remember, at any time between new and free. */
struct mount_kernel_facts {
	uint64_t objects; /* that the kernel refers to */
	uint64_t dead;	  /* of them, without a name */
	uint64_t bytes;	  /* that they take here */
};
struct mount_kernel_facts mount_kernel_facts(struct mount_server *server);

#endif
