/* Superblocks as JSON. */
#ifndef KILN_TOOL_SUPER_JSON_H
#define KILN_TOOL_SUPER_JSON_H

#include <jansson.h>

#include "format/superblock.h"

/*
 * All of a validated superblock: header, options, layout, and the sections in the mask @sections (bit = type;
 * UINT32_MAX: unknown ones, too) by name under "sections". Times are seconds since 1970, sizes bytes.
 */
json_t *super_json(const struct sb_disk *sb, uint32_t sections);

#endif
