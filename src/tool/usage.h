/* kiln usage of what is mounted: its server is asked. */
#ifndef KILN_TOOL_USAGE_H
#define KILN_TOOL_USAGE_H

#include <jansson.h>

#include "kiln/kiln.h"

/*
 * Answer {"command": "usage", "json": BOOL, "human": BOOL}, which is about an open filesystem, by any task: @reply gets
 * "usage", the JSON object, or "text". 0 or a negative errno.
 */
int usage_answer(kiln_fs *fs, const json_t *request, json_t *reply);

#endif
