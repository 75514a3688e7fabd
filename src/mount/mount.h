/*
 * The FUSE door: a filesystem that is open read-only, served at a mount point.
 *
 * Everything served is immutable for as long as the mount lives (the devices are locked against writers), so the kernel
 * is told to cache names, attributes, pages, directories and symlinks without limit, and asks once.
 */
#ifndef KILN_MOUNT_MOUNT_H
#define KILN_MOUNT_MOUNT_H

#include <stdbool.h>

#include "kiln/kiln.h"

struct mount_options {
	const char *mountpoint;
	const char *source;	  /* shown in the mount table */
	bool allow_other;	  /* users besides the one who mounts */
	const char *fuse_options; /* further options for FUSE, comma separated, or NULL */
	bool is_debug;		  /* log every request */
};

/*
 * Mount @fs and serve it until it is unmounted or the process gets SIGINT, SIGTERM or SIGHUP. @mounted is called once
 * the mount is in place, before the first request is served: the place to tell the caller and go to the background.
 * Returns 0 after a clean unmount, or a negative errno (having told why on stderr).
 */
int mount_serve(kiln_fs *fs, const struct mount_options *options, void (*mounted)(void *ctx), void *ctx);

#endif
