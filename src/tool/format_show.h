/* What `kiln format` made: as a table for people, or JSON. */
#ifndef KILN_TOOL_FORMAT_SHOW_H
#define KILN_TOOL_FORMAT_SHOW_H

#include "tool/tool.h"

/* Print what the superblocks of @fs (opened to any depth) say. */
void format_show(const struct kiln_fs *fs);
json_t *format_json(const struct kiln_fs *fs);

#endif
