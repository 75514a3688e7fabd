/*
 * The command-line door: what the commands share.
 *
 * One file per command, with its usage text at its head; main.c has the table of them. All commands have one shape:
 * kiln COMMAND [OPTIONS] FS ..., where FS is DEV[:DEV...] or UUID=...
 */
#ifndef KILN_TOOL_TOOL_H
#define KILN_TOOL_TOOL_H

#include <getopt.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/fs.h"
#include "kiln/kiln.h"
#include "tool/passphrase.h"

/* Exit statuses, the same for all commands (documented in kiln(1)). */
enum tool_exit {
	TOOL_OK = 0,
	TOOL_FAILED = 1, /* could not be done; a message says why */
	TOOL_USAGE = 2,	 /* wrong arguments */
	TOOL_DAMAGE = 3, /* done as far as possible, but something could not be read; messages say what */
};

struct command {
	const char *name;
	const char *summary; /* one line for `kiln --help` */
	const char *usage;   /* whole --help text, "usage: kiln NAME ..." first */
	int (*run)(const struct command *self, int argc, char **argv); /* argv[0] is the command's name */
};

extern const struct command command_show_super, command_list, command_list_journal, command_ls, command_stat,
	command_cat, command_get, command_tar, command_usage, command_mount, command_format, command_set_option,
	command_check, command_put, command_mkdir, command_rm, command_mv, command_ln, command_touch, command_chmod,
	command_chown, command_setfattr, command_status, command_sync, command_debug, command_quota,
	command_set_passphrase, command_remove_passphrase;

/* Called by mount(8), under a name that begins with "mount."? Then do what it asks for. */
bool tool_is_mount_helper(const char *program);
int tool_mount_helper(int argc, char **argv);

/* Message to stderr with "kiln: " in front and a newline behind. */
void tool_error(const char *fmt, ...) PRINTF_LIKE(1, 2);
void tool_message(int syslog_priority, const char *fmt, va_list args);
/* Warn if an option is given a value that is kept, but doesn't do what it says yet. @value as users give it, or NULL.
 */
void tool_option_warn(const char *name, const char *value);
/* Compression was asked for: tell if pieces of data are so small that it can gain nothing. */
void tool_compression_warn(uint64_t encoded_bytes_max, uint64_t block_bytes);
/* As tool_error(), with the command's name and a pointer to its --help; returns TOOL_USAGE. */
int tool_usage_error(const struct command *self, const char *fmt, ...) PRINTF_LIKE(2, 3);

/*
 * Options that every command opening a filesystem takes. Put TOOL_OPEN_OPTIONS into the command's `struct option` array
 * and TOOL_OPEN_USAGE into its usage text; hand each option getopt_long() returns to tool_open_option() first.
 */
struct tool_open {
	/*
	 * Fatal reports come back as the reason of a failure, so they aren't told. Of a server they are: set once the
	 * filesystem is open, from the main thread. @fatal may be called by any thread, and doesn't block.
	 */
	void (*fatal)(void *ctx);
	void *fatal_ctx;
	unsigned flags; /* enum kiln_open_flags */
	const char *mount_options;
	struct passphrase_source passphrase;
	uint64_t memory_bytes;
	uint64_t sb_sector; /* 0: where it should be */
	bool is_verbose;
	bool is_quiet; /* warnings aren't told */
	bool is_json;
};
enum {
	TOOL_OPT_PASSPHRASE_FILE = 0x1000,
	TOOL_OPT_PASSPHRASE_FD,
	TOOL_OPT_DEGRADED,
	TOOL_OPT_VERY_DEGRADED,
	TOOL_OPT_FORCE,
	TOOL_OPT_MEMORY,
	TOOL_OPT_BUFFERED,
	TOOL_OPT_JSON,
	TOOL_OPT_HELP,
	TOOL_OPT_VERBOSE,
	TOOL_OPT_SB,
	TOOL_OPT_COMMAND = 0x2000, /* first number for a command's own long options */
};
#define TOOL_OPEN_OPTIONS                                                                                           \
	{ "passphrase-file", required_argument, NULL, TOOL_OPT_PASSPHRASE_FILE },                                   \
		{ "passphrase-fd", required_argument, NULL, TOOL_OPT_PASSPHRASE_FD },                               \
		{ "degraded", no_argument, NULL, TOOL_OPT_DEGRADED },                                               \
		{ "very-degraded", no_argument, NULL, TOOL_OPT_VERY_DEGRADED },                                     \
		{ "force", no_argument, NULL, TOOL_OPT_FORCE },                                                     \
		{ "memory", required_argument, NULL, TOOL_OPT_MEMORY },                                             \
		{ "buffered", no_argument, NULL, TOOL_OPT_BUFFERED },                                               \
		{ "verbose", no_argument, NULL, TOOL_OPT_VERBOSE }, { "sb", required_argument, NULL, TOOL_OPT_SB }, \
	{                                                                                                           \
		"help", no_argument, NULL, TOOL_OPT_HELP                                                            \
	}
#define TOOL_OPEN_USAGE_DEVICES                                                                                \
	"  --passphrase-file FILE  passphrase of an encrypted filesystem (first line; - for standard input)\n" \
	"  --passphrase-fd N       the same from an open file descriptor\n"                                    \
	"  --degraded              go on with devices missing, as long as all data is there\n"                 \
	"  --very-degraded         go on even if data is missing\n"
#define TOOL_OPEN_USAGE_GENERAL                                                                              \
	"  --memory SIZE           budget for caches and buffers (default 256M, at least 32M)\n"             \
	"  --buffered              don't use direct I/O\n"                                                   \
	"  --sb SECTOR             take the superblock from there (default 8, or wherever a good copy is)\n" \
	"  --verbose               say more on standard error\n"                                             \
	"  --help                  this text\n"
#define TOOL_OPEN_USAGE         \
	TOOL_OPEN_USAGE_DEVICES \
	"  --force                 read although another process is writing it\n" TOOL_OPEN_USAGE_GENERAL
/* Of commands that change something, which can't be forced. */
#define TOOL_CHANGE_USAGE TOOL_OPEN_USAGE_DEVICES TOOL_OPEN_USAGE_GENERAL

static inline struct tool_open tool_open_defaults(void)
{
	return (struct tool_open){ .passphrase = passphrase_source_none() };
}
/*
 * Handle option @c of getopt_long(). Returns 0: not one of ours; 1: handled; -1: stop, *@status is the exit status
 * (help was printed, or the option is wrong).
 */
int tool_open_option(const struct command *self, int c, struct tool_open *open, int *status);

/*
 * Open the filesystem named @fs_arg to @depth. Reports go to stderr as they come, each once; how many of each level is
 * in fs->reporter. Prints the reason and returns NULL on failure.
 */
kiln_fs *tool_open_fs(const struct tool_open *open, const char *fs_arg, enum fs_depth depth);
/*
 * Umount returns before the server has written everything back: should what was -EBUSY be tried again? After a while,
 * then, and once more when no server answers, as it may just have ended. @fs_arg: DEV[:DEV...] or UUID=...
 */
struct tool_ending {
	bool has_ended, is_told;
};
bool tool_wait_ending(const char *fs_arg, struct tool_ending *ending);
/* The callbacks for opening, for other calls of the library; @ctx: a struct tool_open. */
void tool_print_report(void *ctx, const struct kiln_report *report);
void tool_print_log(void *ctx, enum kiln_log_level level, const char *line);
/* Close; @status, raised to TOOL_DAMAGE when damage was reported and @status is TOOL_OK. */
int tool_close_fs(kiln_fs *fs, int status);

/* Print a JSON value to stdout, indented, and free it. Returns TOOL_OK, or TOOL_FAILED when writing fails. */
int tool_print_json(json_t *value);
/* JSON string of bytes that may not be UTF-8: those are escaped \xNN (and a backslash doubled) as in listings. */
json_t *tool_json_bytes(const void *bytes, size_t len);
/* Bytes as text for people: control characters and invalid UTF-8 as \xNN. Growing strbuf or fixed. */
void tool_add_printable(struct strbuf *out, const char *bytes, size_t len);

/* Size with a unit: "64k", "1.5M", "2GiB", plain bytes. -EINVAL. */
int tool_parse_size(const char *text, uint64_t *bytes);

/*
 * Progress of long work: a bar with rate and ETA on a terminal, nothing elsewhere unless forced. Thread-safe.
 */
struct progress;
struct progress *progress_start(const char *what, uint64_t total_bytes, bool is_forced); /* total 0: unknown */
void progress_add(struct progress *p, uint64_t bytes, uint64_t files);
/* Clear the bar so that a message can be printed; it comes back by itself. NULL is allowed everywhere. */
void progress_hide(struct progress *p);
void progress_end(struct progress *p);

/* From here on messages and reports go to the system log: the process has left its terminal. */
void tool_log_to_syslog(void);

/* Set by SIGINT and SIGTERM once tool_catch_signals() was called: long work should stop and clean up. */
extern volatile int tool_interrupted;
void tool_catch_signals(void);

#endif
