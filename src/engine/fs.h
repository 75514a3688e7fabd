/*
 * The filesystem object: the rooms put together. Internal; the public API is include/kiln/kiln.h.
 *
 * Opening goes through the rooms in order: devices and superblocks, key, journal, btrees with the journal's keys over
 * them, data, namespace. Each step only reads. Commands that look at raw structures stop at the step they need.
 */
#ifndef KILN_ENGINE_FS_H
#define KILN_ENGINE_FS_H

#include "alloc/allocator.h"
#include "alloc/usage.h"
#include "base/sync.h"
#include "data/data.h"
#include "journal/journal.h"
#include "journal/journal_read.h"
#include "kiln/kiln.h"
#include "namespace/namespace.h"
#include "super/super.h"

struct reporter_told {
	uint64_t hash;
	uint32_t at_seconds, times_since;
};

/*
 * Where reports and log lines go: counted, and told to the user. What was told in the last minute (same text, whatever
 * the place if it is_any_place) is only counted, as far as a fixed table remembers; when it comes again after that, it
 * is told again, and how often it was.
 *
 * While a filesystem is open for writing, errors are counted in its superblocks. They are written for that a moment
 * after the first one, by a task; while there are more, once a minute.
 */
struct reporter {
	struct report_sink sink;
	struct log_sink log;
	void *ctx; /* the user's */
	void (*user_report)(void *ctx, const struct kiln_report *report);
	void (*user_log)(void *ctx, enum kiln_log_level level, const char *line);
	struct super *counting; /* if it is open for writing: errors are counted in its superblocks (09 §2.2); atomic */
	struct mutex lock;
	uint64_t counts[4];		 /* by level, as told */
	struct reporter_told told[2048]; /* at hash % 2048 */
	struct waitq errors_changed;
	bool has_errors, is_stopping; /* some may not be in the superblocks yet; the task is to end */
	struct task *errors_task;
	struct job errors_job;
	char last[KILN_ERROR_BYTES]; /* text of the gravest last report, for kiln_open()'s @why */
	enum report_level last_level;
};

void reporter_init(struct reporter *r, const struct kiln_open_options *options);
void reporter_destroy(struct reporter *r);
/* From here on, until stopped, the superblocks of @super are written for what is counted. 0, -EAGAIN or -ENOMEM. */
int reporter_count_start(struct reporter *r, struct super *super);
void reporter_count_stop(struct reporter *r);
/* Text of the gravest last report, or "", and its level. */
enum report_level reporter_last(struct reporter *r, char text[KILN_ERROR_BYTES]);

/* How far to open. */
enum fs_depth {
	FS_ALL_SUPERS, /* as FS_SUPER, for what needs all members */
	FS_SUPER,      /* superblocks only; members may be missing, the key may stay locked */
	FS_JOURNAL,    /* and every journal entry that can be found, the key unlocked */
	FS_BTREES,     /* and the btrees */
	FS_NAMESPACE,  /* all */
};

struct kiln_fs {
	struct reporter reporter;
	struct super *super;
	struct journal_state *journal;
	struct btrees *trees;
	struct data *data;
	struct namespace *ns;
	/* Read-write only (fs_write.h). */
	bool is_writable;
	struct journal *journal_writer;
	struct allocator *allocator;
	const char *stop_step;		      /* what fs_write_stop() is at; atomic, NULL before it begins */
	int shut_down;			      /* 0, or the error that changes get since writing became unsafe; atomic */
	char write_refused[KILN_ERROR_BYTES]; /* why it is read-only although it was to be written; "" */
	bool (*is_in_use)(void *ctx, struct kiln_node node); /* kiln_in_use_set() */
	void *is_in_use_ctx;
	/* Where nothing is written, what was counted once stays true; and counting can mean reading the whole journal.
	 */
	struct mutex usage_lock;
	bool has_usage;
	struct kiln_usage usage;
	struct quotas *quotas;	     /* counted when somebody asked, under usage_lock; read-only */
	bool is_quota_count_partial; /* the last one for a call that asked (kiln_quota_count()); atomic */
};

/*
 * As kiln_open(), to a given depth; members of *@fs behind it are NULL. @why is filled in on failure.
 * @args: paths, "a:b:c", "UUID=...". @devices: instead of them, open devices that the filesystem owns from here on
 * (tests); NULL otherwise.
 */
int fs_open(const char *const *args, size_t arg_nr, struct device **devices, size_t device_nr,
	    const struct kiln_open_options *options, enum fs_depth depth, struct kiln_fs **fs,
	    char why[KILN_ERROR_BYTES]);

/* The last steps of opening. @memory_bytes: the whole budget, 0 the usual one. */
int fs_open_namespace(struct kiln_fs *fs, uint64_t memory_bytes);

/*
 * Changing the passphrase of a filesystem that is open for writing to FS_ALL_SUPERS: the key is unlocked, as opening
 * does it otherwise; then super_passphrase_set(). Negative errno with @why: -EINVAL it isn't encrypted.
 */
int fs_passphrase_unlock(struct kiln_fs *fs, const struct kiln_open_options *options, char why[KILN_ERROR_BYTES]);
int fs_passphrase_set(struct kiln_fs *fs, const char *passphrase, size_t bytes, char why[KILN_ERROR_BYTES]);
/* May a new one be so long? 0, or -EINVAL with @why. */
int fs_passphrase_check(size_t bytes, char why[KILN_ERROR_BYTES]);

/* An error code in words that can stand alone, where nothing says more. */
const char *fs_error_text(int err);

/*
 * Parse a mount option string (10 §10) into @values and @is_set. "ro" and "rw" are values of read_only; other generic
 * options of mount (noatime, ...) are passed over; unknown ones, and ones that aren't mount options, are -EINVAL with
 * @why. Targets are devices and labels of @s; where it is NULL, because they aren't known yet, they are passed over.
 */
int mount_options_parse(const char *text, const struct super *s, uint64_t values[OPT_NR], bool is_set[OPT_NR],
			char why[KILN_ERROR_BYTES]);
/* The name of an option among them with which nothing may be written; NULL: there is none. */
const char *mount_options_forbid_writing(const uint64_t values[OPT_NR]);

#endif
