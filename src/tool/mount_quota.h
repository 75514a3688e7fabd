/*
 * Quotas of a mounted filesystem, over its server's control socket: the calls of kiln.h, for a filesystem that another
 * process has open.
 *
 * A request is {"command": "quota", "action": ACTION, "type": 0 to 2, ...}. Actions:
 *
 *	info	the answer has "types", of each what struct kiln_quota_info says
 *
 *	list	"rows": a line for each id, as "ID SPACE SOFT HARD INODES SOFT HARD", in bytes; or, while the scan
 *		goes on, "counting": {"done": ..., "of": ...}
 *
 *	set	"id", "fields" and "limits" as in struct kiln_quota_limits
 *
 *	grace	"periods": seconds, of space and inodes
 *
 *	commit	what was set is durable when this has been answered
 */
#ifndef KILN_TOOL_MOUNT_QUOTA_H
#define KILN_TOOL_MOUNT_QUOTA_H

#include <jansson.h>
#include <sys/types.h>

#include "kiln/kiln.h"
#include "tool/mount_control.h"

/* --- who asks --- */

struct mount_quota {
	pid_t server;
	json_t *replies[3];	    /* to "list", by type */
	char why[KILN_ERROR_BYTES]; /* the last call failed */
};

/* As mount_control_find(). */
enum mount_control_found mount_quota_find(struct mount_quota *m, const char *fs_arg);
void mount_quota_done(struct mount_quota *m);

/* 0, or a negative errno with m->why. */
int mount_quota_info(struct mount_quota *m, enum kiln_quota_type type, struct kiln_quota_info *info);
/* Waits for the scan, and says so. -EINTR: interrupted. What @fn returns is returned. */
int mount_quota_list(struct mount_quota *m, enum kiln_quota_type type, kiln_quota_fn fn, void *ctx);
/* The same for one id. Type by type, all is of the moment when one was first asked for. */
int mount_quota_get(struct mount_quota *m, enum kiln_quota_type type, uint32_t id, struct kiln_quota *quota);
int mount_quota_set(struct mount_quota *m, enum kiln_quota_type type, uint32_t id,
		    const struct kiln_quota_limits *limits);
int mount_quota_set_grace(struct mount_quota *m, enum kiln_quota_type type, uint32_t space_seconds,
			  uint32_t inodes_seconds);
/* What was set is durable. */
int mount_quota_commit(struct mount_quota *m);

/* --- who is asked --- */

/* Adds to @reply: 0, or a negative errno, with "error" in it where there is more to say. */
int mount_quota_answer(kiln_fs *fs, const json_t *request, json_t *reply);

#endif
