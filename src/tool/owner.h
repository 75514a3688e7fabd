/* Users and groups as arguments of commands. */
#ifndef KILN_TOOL_OWNER_H
#define KILN_TOOL_OWNER_H

#include <stdbool.h>
#include <stdint.h>

struct owner {
	bool has_uid, has_gid;
	uint32_t uid, gid;
};
/* "USER", "USER:GROUP", ":GROUP", "USER:" (with the user's own group): names of this machine, or numbers. -EINVAL. */
int owner_parse(const char *text, struct owner *owner);

#endif
