/* What commands share: messages, opening, signals, sizes, JSON. See tool.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <malloc.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/strbuf.h"
#include "device/device.h"
#include "device/scan.h"
#include "tool/mount_control.h"
#include "tool/mounted.h"
#include "tool/tool.h"

volatile int tool_interrupted;
static bool is_in_background;

/* One line to stderr, or to the system log. Lines of several threads don't mix. */
void tool_message(int priority, const char *fmt, va_list args)
{
	if (is_in_background) {
		vsyslog(priority, fmt, args);
		return;
	}
	flockfile(stderr);
	fputs("kiln: ", stderr);
	vfprintf(stderr, fmt, args);
	/* Some messages of libraries end their line themselves. */
	if (!*fmt || fmt[strlen(fmt) - 1] != '\n')
		fputc('\n', stderr);
	funlockfile(stderr);
}

static void message_at(int priority, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void message_at(int priority, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	tool_message(priority, fmt, args);
	va_end(args);
}

void tool_error(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	tool_message(LOG_ERR, fmt, args);
	va_end(args);
}

void tool_option_warn(const char *name, const char *value)
{
	int id = option_id_parse(name);
	uint64_t v = value && strcmp(value, "none"); /* which target it is depends on the filesystem */

	if (id < 0 ||
	    (option_table[id].type != OPTION_TARGET && option_parse((enum option_id)id, value, NULL, &v, NULL)))
		return;
	const char *idle = super_option_idle((enum option_id)id, v);
	if (idle)
		tool_error("warning: %s %s", name, idle);
}

void tool_compression_warn(uint64_t encoded_bytes_max, uint64_t block_bytes)
{
	if (encoded_bytes_max < 2 * block_bytes)
		tool_error("warning: nothing is compressed: with encoded_extent_max=%" PRIu64
			   "k a piece of data is one "
			   "block, which can't become less",
			   encoded_bytes_max >> 10);
}

void tool_log_to_syslog(void)
{
	openlog("kiln", LOG_PID, LOG_DAEMON);
	is_in_background = true;
}

int tool_usage_error(const struct command *self, const char *fmt, ...)
{
	va_list args;

	fprintf(stderr, "kiln %s: ", self->name);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fprintf(stderr, "; try `kiln %s --help`\n", self->name);
	return TOOL_USAGE;
}

static void on_signal(int sig)
{
	(void)sig;
	tool_interrupted = 1;
}

void tool_catch_signals(void)
{
	/* Only once: a second Ctrl-C ends the program the usual way. */
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESETHAND };

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
}

int tool_parse_size(const char *text, uint64_t *bytes)
{
	static const char units[] = "kmgtpe";
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	long double value = strtold(text, &end);
	if (errno || !isfinite(value))
		return -EINVAL;

	const char *unit = *end ? strchr(units, *end | 0x20) : NULL;
	if (unit) {
		value = ldexpl(value, 10 * (int)(unit - units + 1));
		end++;
		if (!strcasecmp(end, "iB"))
			end += 2;
	}
	if (!strcasecmp(end, "B"))
		end++;
	if (*end || value >= 18446744073709551616.0L)
		return -EINVAL;
	*bytes = (uint64_t)value;
	return 0;
}

int tool_open_option(const struct command *self, int c, struct tool_open *open, int *status)
{
	*status = TOOL_USAGE;
	switch (c) {
	case TOOL_OPT_HELP:
		fputs(self->usage, stdout);
		*status = TOOL_OK;
		return -1;
	case TOOL_OPT_PASSPHRASE_FILE: open->passphrase.file = optarg; return 1;
	case TOOL_OPT_PASSPHRASE_FD:
		if (passphrase_fd_parse(optarg, &open->passphrase.fd))
			return 1;
		tool_usage_error(self, "--passphrase-fd takes a number, not '%s'", optarg);
		return -1;
	case TOOL_OPT_DEGRADED: open->flags |= KILN_OPEN_DEGRADED; return 1;
	case TOOL_OPT_VERY_DEGRADED: open->flags |= KILN_OPEN_DEGRADED | KILN_OPEN_VERY_DEGRADED; return 1;
	case TOOL_OPT_FORCE: open->flags |= KILN_OPEN_FORCE; return 1;
	case TOOL_OPT_BUFFERED: open->flags |= KILN_OPEN_BUFFERED; return 1;
	case TOOL_OPT_VERBOSE: open->is_verbose = true; return 1;
	case TOOL_OPT_JSON: open->is_json = true; return 1;
	case TOOL_OPT_MEMORY:
		if (!tool_parse_size(optarg, &open->memory_bytes) && open->memory_bytes >= KILN_MEMORY_MIN)
			return 1;
		tool_usage_error(self, "--memory takes a size of at least 32M, not '%s'", optarg);
		return -1;
	case TOOL_OPT_SB: {
		char *end;

		open->sb_sector = strtoull(optarg, &end, 10);
		if (end != optarg && !*end && open->sb_sector)
			return 1;
		tool_usage_error(self, "--sb takes the number of a sector, not '%s'", optarg);
		return -1;
	}
	case '?': fprintf(stderr, "try `kiln %s --help`\n", self->name); return -1;
	default: return 0;
	}
}

/* --- opening --- */

void tool_print_report(void *ctx, const struct kiln_report *r)
{
	static const char *const words[] = { "note", "recovered", "damaged", "failed" };
	const struct tool_open *open_opts = ctx;

	void (*fatal)(void *ctx) = __atomic_load_n(&open_opts->fatal, __ATOMIC_ACQUIRE);
	if ((r->level == KILN_REPORT_FATAL && !fatal) || (r->level == KILN_REPORT_INFO && !open_opts->is_verbose))
		return;
	message_at(r->level == KILN_REPORT_INFO	   ? LOG_NOTICE
		   : r->level == KILN_REPORT_FATAL ? LOG_CRIT
						   : LOG_WARNING,
		   "%s: %s", words[r->level], r->text);
	if (r->level == KILN_REPORT_FATAL)
		fatal(open_opts->fatal_ctx);
}

void tool_print_log(void *ctx, enum kiln_log_level level, const char *line)
{
	(void)ctx;
	message_at(level == KILN_LOG_ERROR ? LOG_ERR : level == KILN_LOG_WARNING ? LOG_WARNING : LOG_INFO, "%s", line);
}

/* Is it a directory, mostly where the filesystem is mounted? False, with nothing told, if it isn't. */
static bool directory_tell(const char *fs_arg)
{
	struct mounted *list;
	struct stat st;

	if (!mounted_is_dead(fs_arg) && (stat(fs_arg, &st) || !S_ISDIR(st.st_mode)))
		return false;
	size_t nr = mounted_list(&list);
	const struct mounted *m = mounted_find(list, nr, fs_arg);
	if (m && mounted_is_dead(m->mount_point))
		mounted_tell_dead(m->mount_point);
	else if (m)
		tool_error("%s is where %s is mounted: use it there (`kiln status` and df tell of it), or unmount it "
			   "and name the device",
			   fs_arg, m->source);
	else
		tool_error("%s is a directory: name the device or image that the filesystem is on", fs_arg);
	mounted_free(list, nr);
	return true;
}

/* What is in use can be read by force, but not changed. Helpers of mount(8) take no such option. */
static const char *force_advice(const struct tool_open *o)
{
	bool can_be_forced = !(o->flags & KILN_OPEN_WRITE) && !tool_is_mount_helper(program_invocation_name);

	return can_be_forced ? " --force reads it anyway, while it changes: what is read may not fit together." : "";
}

/* Who names a device twice meets himself. */
static bool twice_tell(const char *fs_arg)
{
	struct device_paths paths;
	bool is_told = false;

	if (device_paths_parse((char *const *)&fs_arg, 1, &paths, NULL))
		return false;
	for (size_t i = 0; i < paths.nr && !is_told; i++)
		for (size_t k = i + 1; k < paths.nr && !is_told; k++) {
			is_told = device_is_same(paths.paths[i], paths.paths[k]);
			if (is_told)
				tool_error("%s is named twice", paths.paths[k]);
		}
	device_paths_free(&paths);
	return is_told;
}

/* One line of why, and what to do. */
static void tell_not_opened(const struct tool_open *o, const char *fs_arg, int err, const char *why)
{
	/* What is mounted is told by where, rather than by its server. */
	if (!directory_tell(fs_arg) && !(err == -EBUSY && (mounted_tell(fs_arg) || twice_tell(fs_arg))) &&
	    !passphrase_tell_missing(&o->passphrase, err))
		tool_error("can't open the filesystem: %s%s", why, err == -EBUSY ? force_advice(o) : "");
}

/*
 * What a thread frees stays with the part of the heap that it has, so a heap of many parts takes several times of what
 * is in use. Who says how much memory there is gets one part for each of these.
 */
static void heap_limit(uint64_t memory_bytes)
{
	enum { BYTES_PER_PART = 16 << 20, PARTS_MAX = 1024 };

	if (!memory_bytes)
		return;
#ifdef M_ARENA_MAX
	mallopt(M_ARENA_MAX, (int)min(max(memory_bytes / BYTES_PER_PART, (uint64_t)1), (uint64_t)PARTS_MAX));
#endif
}

bool tool_wait_ending(const char *fs_arg, struct tool_ending *e)
{
	enum { ENDING_LOOK_NS = 50000000 };

	if (tool_interrupted || e->has_ended)
		return false;
	e->has_ended = !mount_control_is_ending(fs_arg);
	if (!e->has_ended && !e->is_told)
		tool_error("waiting for the last mount of %s to end", fs_arg);
	e->is_told |= !e->has_ended;
	sleep_ns(ENDING_LOOK_NS);
	return true;
}

kiln_fs *tool_open_fs(const struct tool_open *open_opts, const char *fs_arg, enum fs_depth depth)
{
	struct tool_ending ending = { 0 };
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;
	struct kiln_open_options options = {
		.struct_bytes = sizeof(options),
		.flags = open_opts->flags,
		.mount_options = open_opts->mount_options,
		.memory_bytes = open_opts->memory_bytes,
		.sb_sector = open_opts->sb_sector,
		.ctx = (void *)open_opts,
		.log = tool_print_log,
		.log_level = open_opts->is_verbose ? KILN_LOG_INFO
			     : open_opts->is_quiet ? KILN_LOG_ERROR
						   : KILN_LOG_WARNING,
		.report = tool_print_report,
		.passphrase = passphrase_ask,
	};

	heap_limit(open_opts->memory_bytes);
	int err;
	do {
		err = fs_open(&fs_arg, 1, NULL, 0, &options, depth, &fs, why);
	} while (err == -EBUSY && tool_wait_ending(fs_arg, &ending));
	if (err) {
		tell_not_opened(open_opts, fs_arg, err, why);
		return NULL;
	}
	if (depth == FS_NAMESPACE && kiln_fallback(fs))
		tool_error("what follows is a fallback view: %s", kiln_fallback(fs));
	return fs;
}

int tool_close_fs(kiln_fs *fs, int status)
{
	uint64_t counts[4];

	kiln_report_counts(fs, counts);
	if (status == TOOL_OK && counts[KILN_REPORT_DAMAGE])
		status = TOOL_DAMAGE;
	kiln_close(fs);
	return status;
}

/* --- text and JSON --- */

/* Length of the well-formed UTF-8 sequence of a printable character at @p, or 0. */
static size_t utf8_printable(const unsigned char *p, size_t len)
{
	if (p[0] >= 0x20 && p[0] < 0x7f)
		return 1;
	size_t n = p[0] >= 0xf0 && p[0] <= 0xf4 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 0;
	if (!n || p[0] > 0xf4 || len < n)
		return 0;

	uint32_t c = p[0] & (0xff >> (n + 1));
	for (size_t i = 1; i < n; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3f);
	}
	static const uint32_t smallest[] = { 0, 0, 0x80, 0x800, 0x10000 };
	bool is_surrogate = c >= 0xd800 && c < 0xe000;
	return c >= smallest[n] && c >= 0xa0 && c <= 0x10ffff && !is_surrogate ? n : 0;
}

void tool_add_printable(struct strbuf *out, const char *bytes, size_t len)
{
	const unsigned char *p = (const unsigned char *)bytes;

	for (size_t i = 0; i < len;) {
		size_t n = p[i] == '\\' ? 0 : utf8_printable(p + i, len - i);
		if (n)
			strbuf_add_bytes(out, p + i, n);
		else
			strbuf_printf(out, "\\x%02x", p[i]);
		i += max(n, (size_t)1);
	}
}

json_t *tool_json_bytes(const void *bytes, size_t len)
{
	struct strbuf text = strbuf_growing();

	tool_add_printable(&text, bytes, len);
	json_t *value = json_string(strbuf_text(&text));
	strbuf_free(&text);
	return value;
}

int tool_print_json(json_t *value)
{
	int err = value ? json_dumpf(value, stdout, JSON_INDENT(2)) : -1;

	json_decref(value);
	if (!err && (putchar('\n') == EOF || fflush(stdout)))
		err = -1;
	if (err)
		tool_error("can't write the output: %s", strerror(errno));
	return err ? TOOL_FAILED : TOOL_OK;
}
