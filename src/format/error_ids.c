/* Names of the persistent error ids. */
#include "format/error_ids.h"

#include <stddef.h>

static const char *const error_names[ERROR_ID_NR] = {
#define X(nr, name) [nr] = #name,
#include "format/error_ids.inc"
#undef X
};

const char *error_id_name(unsigned id) { return id < ERROR_ID_NR ? error_names[id] : NULL; }
