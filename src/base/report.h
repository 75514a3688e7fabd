/*
 * Error codes, faults and error reports.
 *
 * Functions return 0 (or a count) or a negative code: an errno value, or one of the private codes below where the
 * caller must do something different. Private codes never leave the library: error_to_errno() maps them at the doors.
 *
 * A *fault* is what a validate function says about bytes it was shown: which rule, what was expected, what was found.
 * It is a plain struct filled in without allocation, so that `format` can use it. The caller, who knows the device and
 * the position, turns it into an *error report* and hands that to the filesystem's report sink, the one place that
 * decides by policy: log, show to the user, count and note in the superblocks of a filesystem that is open for writing.
 */
#ifndef KILN_BASE_REPORT_H
#define KILN_BASE_REPORT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/util.h"

enum kiln_private_error {
	KILN_E_FIRST = 4096,
	KILN_E_INVALID = KILN_E_FIRST, /* bytes read from a device break a rule of the format; a fault says which */
	KILN_E_CHECKSUM,	       /* stored and computed checksum differ */
	KILN_E_UNSUPPORTED,	       /* valid, but uses a feature that can't be read; a fault says which */
	KILN_E_NO_REPLICA,	       /* every replica failed */
	KILN_E_STALE,		       /* pointer into a bucket that has been reused */
	KILN_E_BAD_PASSPHRASE,
	KILN_E_NEED_PASSPHRASE,
	KILN_E_FOREIGN_MEMBER, /* device belongs to another filesystem */
	KILN_E_NOT_FOUND_HERE, /* no such superblock / section / key; distinct from ENOENT of a path */
	KILN_E_RESTART,	       /* transaction conflict: run it again */
	KILN_E_HOST_FULL,      /* a write failed with ENOSPC or EDQUOT: of what the image lies on */
	KILN_E_LAST,
};

/* The errno value (negative) that a private code stands for at the library's doors; errno codes pass unchanged. */
int error_to_errno(int err);

/* Short name of any code that functions here return: "EIO", "checksum mismatch". Never NULL. */
const char *error_name(int err);

/*
 * What a check found. @id is a persistent error id (format/error_ids.h), or 0 where the format numbers none.
 * Texts are complete without context: "u64s", "at least 5", "3".
 */
struct fault {
	uint32_t id;
	char field[64];
	char expected[96];
	char found[96];
};

/*
 * Fill in @fault (may be NULL) and return -KILN_E_INVALID, so that a check reads
 * `return fault_set(fault, ERROR_bkey_u64s_too_small, "u64s", "at least 5", "%u", k->u64s);`.
 * @expected is plain text; @found_fmt is a printf format.
 */
int fault_set(struct fault *fault, uint32_t id, const char *field, const char *expected, const char *found_fmt, ...)
	PRINTF_LIKE(5, 6);

enum report_level {
	REPORT_INFO,	  /* worth knowing; nothing is wrong */
	REPORT_RECOVERED, /* something is damaged, and another copy served */
	REPORT_DAMAGE,	  /* something can't be read; the rest goes on */
	REPORT_FATAL,	  /* the operation as a whole failed */
};

/*
 * One error report. Strings belong to the caller and live only during the call. Any may be NULL.
 */
struct report {
	enum report_level level;
	uint32_t id;	       /* persistent error id or 0 */
	int err;	       /* negative error code or 0 */
	const char *device;    /* "/dev/sdb", "a.img" */
	const char *structure; /* "btree node", "journal entry", "superblock", "extent" */
	const char *position;  /* "extents level 0 4098:8:4294967295, sector 8960" */
	const char *expected;
	const char *found;
	const char *advice; /* what to do next, a sentence */
	bool is_any_place;  /* a device that fails has many of its like: those of other places needn't be told, too */
};

/* Where reports go. Callable from any thread; must not call back into the filesystem. */
struct report_sink {
	void (*emit)(void *ctx, const struct report *report);
	void *ctx;
};

void report_emit(const struct report_sink *sink, const struct report *report);

/* Report @fault as found at a place. */
void report_fault(const struct report_sink *sink, enum report_level level, const struct fault *fault,
		  const char *device, const char *structure, const char *position);

#endif
