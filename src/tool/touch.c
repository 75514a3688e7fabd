/* kiln touch: make empty files, and set times. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "tool/change.h"

static const char usage[] =
	"usage: kiln touch [OPTIONS] FS PATH...\n"
	"\n"
	"Set access and modification times, to now unless another time is given; make files that don't exist.\n"
	"\n"
	"  -a, -m                  only the access, only the modification time\n"
	"  -c                      don't make files\n"
	"  -d TIME                 this time: 2026-01-31, \"2026-01-31 12:00:00.5\", also with T between and Z or\n"
	"                          +01:00 behind, or @SECONDS since 1970\n"
	"  -t [[CC]YY]MMDDhhmm[.ss]\n"
	"                          this time\n"
	"  -r PATH                 the times of that file in the filesystem\n"
	"  -h                      change PATHs that are symlinks themselves\n" TOOL_CHANGE_USAGE;

struct touch {
	bool sets_atime, sets_mtime, makes_none, is_now, follows;
	const char *reference;
	struct kiln_timespec atime, mtime;
};

/* --- times --- */

/* ".5" as nanoseconds; *@text goes behind it. */
static uint32_t fraction_parse(const char **text)
{
	uint32_t nsec = 0, unit = 100000000;

	if (**text != '.' && **text != ',')
		return 0;
	for (++*text; isdigit((unsigned char)**text); ++*text, unit /= 10)
		nsec += unit * (uint32_t)(**text - '0');
	return nsec;
}

static int since_1970_parse(const char *text, struct kiln_timespec *t)
{
	char *end;

	errno = 0;
	t->sec = strtoll(text, &end, 10);
	const char *rest = end;
	t->nsec = fraction_parse(&rest);
	if (end == text || errno || *rest)
		return -EINVAL;
	/* "-1.5" is 1.5 s before 1970. */
	if (*text == '-' && t->nsec) {
		t->sec--;
		t->nsec = 1000000000 - t->nsec;
	}
	return 0;
}

/* Is there such a day? Calls that make a time of it take one too many for the next month's first. */
static bool day_exists(const struct tm *tm)
{
	struct tm day = { .tm_year = tm->tm_year, .tm_mon = tm->tm_mon, .tm_mday = tm->tm_mday };

	timegm(&day);
	return day.tm_mon == tm->tm_mon && day.tm_mday == tm->tm_mday;
}

/* "Z", "+01:00", "-0330"; none: local time. */
static int zone_parse(const char *text, struct tm *tm, int64_t *sec)
{
	int hours, minutes, used = 0;

	text += *text == ' ';
	if (!*text) {
		tm->tm_isdst = -1;
		*sec = mktime(tm);
		return 0;
	}
	*sec = timegm(tm);
	if (!strcmp(text, "Z") || !strcmp(text, "UTC"))
		return 0;
	if ((*text != '+' && *text != '-') ||
	    (sscanf(text + 1, "%2d:%2d%n", &hours, &minutes, &used) != 2 &&
	     sscanf(text + 1, "%2d%2d%n", &hours, &minutes, &used) != 2) ||
	    text[1 + used] || hours > 24 || minutes > 59)
		return -EINVAL;
	int64_t offset = hours * 3600 + minutes * 60;
	*sec += *text == '+' ? -offset : offset;
	return 0;
}

static int date_parse(const char *text, struct kiln_timespec *t)
{
	struct tm tm = { 0 };

	if (*text == '@')
		return since_1970_parse(text + 1, t);
	const char *rest = strptime(text, "%Y-%m-%d", &tm);
	if (!rest || !day_exists(&tm))
		return -EINVAL;
	if (*rest == 'T' || (*rest == ' ' && isdigit((unsigned char)rest[1]))) {
		const char *time = rest + 1;

		rest = strptime(time, "%H:%M:%S", &tm);
		rest = rest ? rest : strptime(time, "%H:%M", &tm);
		if (!rest)
			return -EINVAL;
		t->nsec = fraction_parse(&rest);
	}
	return zone_parse(rest, &tm, &t->sec);
}

/* Two digits; -1 if they aren't. */
static int pair(const char *p)
{
	return isdigit((unsigned char)p[0]) && isdigit((unsigned char)p[1]) ? (p[0] - '0') * 10 + p[1] - '0' : -1;
}

/* [[CC]YY]MMDDhhmm[.ss], as POSIX has it. */
static int stamp_parse(const char *text, struct kiln_timespec *t)
{
	size_t digits = strspn(text, "0123456789");
	bool has_seconds = text[digits] == '.';
	time_t now = (time_t)(clock_realtime_ns() / 1000000000);
	struct tm tm;

	if ((digits != 8 && digits != 10 && digits != 12) || (has_seconds ? strlen(text + digits) != 3 : text[digits]))
		return -EINVAL;
	localtime_r(&now, &tm);
	int century = digits == 12 ? pair(text) : -1;
	text += digits == 12 ? 2 : 0;
	if (digits >= 10) {
		int year = pair(text);

		text += 2;
		tm.tm_year = century >= 0 ? (century - 19) * 100 + year : year < 69 ? year + 100 : year;
	}
	tm.tm_mon = pair(text) - 1;
	tm.tm_mday = pair(text + 2);
	tm.tm_hour = pair(text + 4);
	tm.tm_min = pair(text + 6);
	tm.tm_sec = has_seconds ? pair(text + 9) : 0;
	if (tm.tm_mon < 0 || tm.tm_mon > 11 || tm.tm_mday < 1 || tm.tm_mday > 31 || tm.tm_hour > 23 || tm.tm_min > 59 ||
	    tm.tm_sec < 0 || tm.tm_sec > 60 || !day_exists(&tm))
		return -EINVAL;
	return zone_parse("", &tm, &t->sec);
}

/* --- files --- */

static int touch_create(struct change *c, const char *path, struct kiln_stat *st)
{
	mode_t mask = umask(0);
	struct kiln_create attr = { .mode = S_IFREG | 0666, .umask = mask, .uid = geteuid(), .gid = getegid() };
	struct change_place place;

	umask(mask);
	int err = change_place(c->fs, path, &place);
	if (!err && place.is_dir)
		err = -ENOENT;
	return err ? err : kiln_create(c->fs, place.dir, place.name, place.len, &attr, st);
}

static int touch_path(struct change *c, void *ctx, const char *path)
{
	struct touch *t = ctx;
	struct kiln_setattr attr = { 0 };
	struct kiln_stat st;

	if (t->reference) {
		int err = kiln_lookup_path(c->fs, t->reference, KILN_FOLLOW, &st);

		if (err) {
			change_failed(c, t->reference, err, NULL);
			c->is_over = true;
			return 0;
		}
		t->atime = st.atime;
		t->mtime = st.mtime;
	}
	int err = kiln_lookup_path(c->fs, path, t->follows ? KILN_FOLLOW : 0, &st);
	bool is_new = err == -ENOENT;
	if (is_new && t->makes_none)
		return 0;
	if (is_new)
		err = touch_create(c, path, &st);
	if (err || (is_new && t->is_now))
		return err;
	attr.atime = t->atime;
	attr.mtime = t->mtime;
	if (t->sets_atime)
		attr.fields |= t->is_now ? KILN_SET_ATIME_NOW : KILN_SET_ATIME;
	if (t->sets_mtime)
		attr.fields |= t->is_now ? KILN_SET_MTIME_NOW : KILN_SET_MTIME;
	return kiln_setattr(c->fs, st.node, &attr, NULL);
}

static int touch_run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS, { 0 } };
	struct change change = { .self = self, .open = tool_open_defaults() };
	struct touch t = { .is_now = true, .follows = true };
	int c, status, err = 0;

	while ((c = getopt_long(argc, argv, "amcd:t:r:h", options, NULL)) != -1) {
		if (tool_open_option(self, c, &change.open, &status) < 0)
			return status;
		t.sets_atime |= c == 'a';
		t.sets_mtime |= c == 'm';
		t.makes_none |= c == 'c';
		t.follows &= c != 'h';
		t.is_now &= c != 'd' && c != 't' && c != 'r';
		t.reference = c == 'r' ? optarg : t.reference;
		if (c == 'd')
			err = date_parse(optarg, &t.mtime);
		else if (c == 't')
			err = stamp_parse(optarg, &t.mtime);
		if (err)
			return tool_usage_error(self, "'%s' is no time", optarg);
		t.atime = t.mtime;
	}
	if (!t.sets_atime && !t.sets_mtime)
		t.sets_atime = t.sets_mtime = true;
	return change_each(&change, argv + optind, argc - optind, touch_path, &t);
}

const struct command command_touch = { "touch", "set times, make empty files", usage, touch_run };
