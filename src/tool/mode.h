/* Permissions as arguments of commands. */
#ifndef KILN_TOOL_MODE_H
#define KILN_TOOL_MODE_H

#include <stdint.h>

/*
 * Apply what @text says, octal ("644") or symbolic ("u+x,go=rX,a-w", as chmod(1); umask plays no part) to @old, a whole
 * st_mode. *@mode: the type of @old and the new permissions. -EINVAL.
 */
int mode_apply(const char *text, uint32_t old, uint32_t *mode);

#endif
