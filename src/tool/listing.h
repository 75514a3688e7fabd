/* How ls, stat and tar show objects: modes, times, types. */
#ifndef KILN_TOOL_LISTING_H
#define KILN_TOOL_LISTING_H

#include <jansson.h>

#include "base/strbuf.h"
#include "kiln/kiln.h"

/* "drwxr-xr-t" for a st_mode. */
void listing_mode(char text[11], uint32_t mode);
/* "file", "dir", "symlink", "fifo", "chr", "blk", "sock", "unknown". */
const char *listing_type(uint32_t mode);
/* "2026-11-21 09:18:51.123456789 +0000" in the local time zone. */
void listing_time(struct strbuf *out, struct kiln_timespec t);
/* Everything in a kiln_stat as a JSON object, without a name. */
json_t *listing_stat_json(const struct kiln_stat *st);

#endif
