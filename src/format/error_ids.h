/* Persistent error ids (01 appendix A, 12 appendix A): ERROR_<name> for each, and their names. */
#ifndef KILN_FORMAT_ERROR_IDS_H
#define KILN_FORMAT_ERROR_IDS_H

/* The table: X(number, name) for 0..427, in error_ids.inc */
enum error_id {
#define X(nr, name) ERROR_##name = nr,
#include "format/error_ids.inc"
#undef X
	ERROR_ID_NR = 428,
};

/* "btree_node_bad_magic", or NULL. */
const char *error_id_name(unsigned id);

#endif
