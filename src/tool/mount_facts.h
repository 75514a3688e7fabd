/* What a server tells about itself over its control socket. See mount_facts.c. */
#ifndef KILN_TOOL_MOUNT_FACTS_H
#define KILN_TOOL_MOUNT_FACTS_H

#include "base/sync.h"
#include "mount/mount.h"
#include "tool/tool.h"

/* A server as far as its control socket is concerned. */
struct mount_facts_of {
	kiln_fs *fs;
	struct mount_server *server;
	const char *mountpoint, *source;
	char **device_names; /* full paths of the members, by number; NULL: it isn't here */
	bool is_readonly;
	char uuid[sizeof("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")]; /* that of the filesystem which users see */
	struct mutex lock;					   /* of what follows */
	bool is_ending;
	unsigned asking_nr; /* requests for which filesystem and server stay */
	struct waitq asked;
};

/* The first ones, up to is_readonly, are the caller's to fill in before. */
void mount_facts_init(struct mount_facts_of *f);
void mount_facts_destroy(struct mount_facts_of *f);
/* Who it is, for control_start(): malloced, NULL when memory is short. */
char *mount_facts_about(const struct mount_facts_of *f);
/* Answer a request: control_fn. */
char *mount_facts_answer(void *ctx, const char *request);
/* From here on only that it is ending is told. Waits for what is being told; then filesystem and server may go. */
void mount_facts_end(struct mount_facts_of *f);

#endif
