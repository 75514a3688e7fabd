/* What `kiln put` and `kiln format --source` share: an import with its messages, progress and summary. */
#ifndef KILN_TOOL_PUT_H
#define KILN_TOOL_PUT_H

#include "tool/import.h"
#include "tool/tool.h"

struct put_import {
	struct import_options options; /* the callbacks and @stop are filled in by put_import_start() */
	bool has_progress, wants_progress;
	uint64_t total_bytes; /* 0: unknown */
	struct import *x;
	struct progress *progress;
	json_t *failures;
	bool has_failed; /* after the end */
};

/* False after a message. */
bool put_import_start(struct put_import *p, kiln_fs *fs, const char *what);
/* Print the summary if there is something to say; the same as JSON, to be freed. */
json_t *put_import_end(struct put_import *p, bool is_verbose);

#endif
