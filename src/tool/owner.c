/* Users and groups as arguments. See owner.h. */
#include "tool/owner.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

static bool number_parse(const char *text, uint32_t *id)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	unsigned long value = strtoul(text, &end, 10);
	if (errno || *end || value >= UINT32_MAX)
		return false;
	*id = (uint32_t)value;
	return true;
}

int owner_parse(const char *text, struct owner *owner)
{
	CLEANUP_FREE char *user = strdup(text);
	char *group = user ? strchr(user, ':') : NULL;

	*owner = (struct owner){ 0 };
	if (!user)
		return -ENOMEM;
	if (group)
		*group++ = 0;
	if (*user) {
		const struct passwd *p = getpwnam(user);

		if (p)
			owner->uid = p->pw_uid;
		else if (!number_parse(user, &owner->uid))
			return -EINVAL;
		owner->has_uid = true;
		if (group && !*group) {
			if (!p)
				return -EINVAL;
			owner->gid = p->pw_gid;
			owner->has_gid = true;
		}
	}
	if (group && *group) {
		const struct group *g = getgrnam(group);

		if (g)
			owner->gid = g->gr_gid;
		else if (!number_parse(group, &owner->gid))
			return -EINVAL;
		owner->has_gid = true;
	}
	return owner->has_uid || owner->has_gid ? 0 : -EINVAL;
}
