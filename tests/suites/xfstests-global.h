/* Stands in for xfstests' src/global.h, for the programs of its ltp/ that need no XFS. */
#ifndef KILN_XFSTESTS_GLOBAL_H
#define KILN_XFSTESTS_GLOBAL_H

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <libgen.h>
#include <limits.h>
#include <linux/falloc.h>
#include <malloc.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Of xfs/xfs.h, as far as fsx uses it; fsstress needs all of it (xfslibs-dev). */
#ifdef HAVE_XFS_XFS_H
#include <xfs/xfs.h>
#else
#include <linux/fs.h>
typedef int64_t xfs_off_t;
#endif

/* For divisors of any size. */
static inline unsigned long long rounddown_64(unsigned long long x, unsigned int y) { return x / y * y; }
static inline unsigned long long roundup_64(unsigned long long x, unsigned int y) { return rounddown_64(x + y - 1, y); }

#endif
