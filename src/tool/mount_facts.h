/* What a server tells about itself over its control socket. See mount_facts.c. */
#ifndef KILN_TOOL_MOUNT_FACTS_H
#define KILN_TOOL_MOUNT_FACTS_H

#include "base/sync.h"
#include "mount/mount.h"
#include "tool/tool.h"

/* A server as far as its control socket is concerned. */
struct mount_facts_of {
	struct mutex lock; /* over what follows */
	kiln_fs *fs;	   /* NULL: closed, or being closed */
	struct mount_server *server;
	const char *mountpoint, *source;
	char **device_names; /* full paths of the members, by number; NULL: it isn't here */
	bool is_readonly, is_ending;
};

/* Answer a request: control_fn. */
char *mount_facts_answer(void *ctx, const char *request);

#endif
