/*
 * The checker: are all invariants of a filesystem kept?
 *
 * It reads only, and works on a filesystem that is open: through the journal's keys after an unclean shutdown, or
 * read-write, while nothing changes (check_target says what the caller sees to). What it finds goes to a report sink,
 * each with a persistent error id (format/error_ids.h) or one of its own, where the format has none.
 *
 * It is made of passes, named and numbered as those of recovery, each for one family of invariants. They only look, and
 * say what is wrong at which key, so that one that repairs can be put in the place of each later. Every pass streams
 * through the btrees in order of keys. Where two orders meet, one is sorted outside of memory (check_table.h) or the
 * work is done in several sweeps over ranges, so memory is bounded by check_opts.memory_bytes plus what is stated at
 * the head of each file.
 *
 * A btree with unreadable nodes is reported, and comparisons that need all of it are left out: all they could say is
 * that something is missing.
 */
#ifndef KILN_RECOVERY_CHECK_H
#define KILN_RECOVERY_CHECK_H

#include "alloc/usage.h"
#include "btree/btree.h"
#include "format/error_ids.h"
#include "format/pass_ids.h"
#include "journal/journal_read.h"
#include "super/super.h"

/* Errors that have no persistent id. */
enum check_error {
	CHECK_ERROR_FIRST = 1000,
#define X(name, text) CHECK_##name,
#include "recovery/check_errors.inc"
#undef X
	CHECK_ERROR_END,
};
enum { CHECK_ERROR_NR = CHECK_ERROR_END };
/* "inode_wrong_nlink"; of the checker's own errors too. Never NULL. */
const char *check_error_name(unsigned id);

/* Passes that recovery doesn't have; their ids are never stored. */
enum check_pass_id {
	CHECK_PASS_SUPER = PASS_ID_NR_MAX,
	CHECK_PASS_JOURNAL,
	CHECK_PASS_QUOTAS,
	CHECK_PASS_DATA,
};

struct check_pass {
	unsigned id;	     /* enum pass_id or check_pass_id */
	const char *name;    /* as users choose it */
	const char *what;    /* what it looks at, for the table of results */
	bool is_optional;    /* only when asked for */
	bool is_valid_newer; /* also for versions above 1.4 */
	const char *advice;
};
/* Row @i in the order in which they run; NULL at the end. */
const struct check_pass *check_pass(unsigned i);

enum { CHECK_PASSES_MAX = 32 };

/* The passes that @names (their names, separated by commas; NULL: none) says, a bit for each row. 0 or -EINVAL. */
int check_passes_parse(const char *names, uint32_t *passes);

struct quotas;
/* What is checked: super, journal and trees always, the others where there is something. */
struct check_target {
	const struct super *super;
	struct journal_state *journal;
	struct btrees *trees;
	/*
	 * Counters. NULL: those that the journal or the clean section has; when is_writable these are old, and none are
	 * compared.
	 */
	const struct usage *usage;
	uint64_t journal_seq_next; /* no seq at or above it can be; 0: as the journal says */
	/*
	 * Open read-write: what the devices say of a clean shutdown isn't looked at. No update is under way, the write
	 * buffer is empty, and no node waits to be written for the first time.
	 */
	bool is_writable;
	struct quotas *quotas; /* what has been counted of owners, all of it; NULL: it isn't compared */
};

struct check_opts {
	uint64_t memory_bytes;		   /* of tables; 0: 64 MiB. At least 1 MiB */
	uint32_t passes;		   /* bit per row of the table; 0: all that aren't optional */
	uint64_t report_max;		   /* of each error this many are reported, the others counted; 0: all */
	const struct report_sink *reports; /* NULL: what is found is only counted */
	/*
	 * Called every now and then. @total 0: unknown. @position: where it is. Non-zero stops the check, and is
	 * returned by check_run(). May be NULL.
	 */
	int (*progress)(void *ctx, const struct check_pass *pass, uint64_t done, uint64_t total, const char *position);
	void *progress_ctx;
};

struct check_result {
	uint64_t counts[CHECK_ERROR_NR]; /* by error id */
	uint64_t errors;		 /* all of them */
	uint64_t btrees_damaged;	 /* bit per btree that couldn't be read whole */
	struct check_pass_result {
		bool was_run;
		bool is_left_out_newer; /* the version is above 1.4 */
		bool is_partial;	/* something it needs is damaged: it could not compare all */
		uint64_t errors, items; /* items: keys, or sectors of data */
		uint64_t ns;
	} passes[CHECK_PASSES_MAX];
};

/* 0 when all passes ran, whatever they found; -ENOMEM, -EINVAL (memory), or what the progress callback returned. */
int check_run(const struct check_target *target, const struct check_opts *opts, struct check_result *result);

#endif
