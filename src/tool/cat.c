/* kiln cat: file contents to standard output. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tool/pump.h"
#include "tool/tool.h"

static const char usage[] = "usage: kiln cat [OPTIONS] FS PATH...\n"
			    "\n"
			    "Write the contents of files to standard output, one after another.\n"
			    "\n"
			    "Damaged parts are left out by default, and the exit status is then 3. With --zero they "
			    "are written as zeroes, so that\n"
			    "offsets stay right. Either way each damaged range is told on standard error.\n"
			    "\n"
			    "  --zero                  write zeroes in place of damaged parts\n" TOOL_OPEN_USAGE;

struct cat {
	const char *path;
	bool zero_damage;
	uint64_t damaged;
};

static int write_all(const char *data, size_t len)
{
	while (len) {
		ssize_t n = write(STDOUT_FILENO, data, len);
		if (n < 0 && errno == EINTR && !tool_interrupted)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		len -= (size_t)n;
	}
	return tool_interrupted ? -EINTR : 0;
}

static int write_zeroes(uint64_t len)
{
	static const char zeroes[64 << 10];
	int err = 0;

	while (len && !err) {
		size_t n = (size_t)min(len, (uint64_t)sizeof(zeroes));

		err = write_all(zeroes, n);
		len -= n;
	}
	return err;
}

static int take_chunk(void *ctx, const struct pump_chunk *c)
{
	struct cat *cat = ctx;

	if (c->len < 0)
		return (int)c->len;

	uint64_t pos = c->offset, end = c->offset + (uint64_t)c->len;
	for (size_t i = 0; i < c->damage_nr; i++) {
		const struct pump_damage *d = &c->damage[i];

		tool_error("%s: %llu bytes at offset %llu can't be read: %s", cat->path, (unsigned long long)d->len,
			   (unsigned long long)d->offset, strerror(-d->error));
		cat->damaged += d->len;
		int err = pos < d->offset ? write_all((char *)c->data + (pos - c->offset), d->offset - pos) : 0;
		if (!err && cat->zero_damage)
			err = write_zeroes(d->len);
		if (err)
			return err;
		pos = d->offset + d->len;
	}
	if (pos == end)
		return 0;
	return write_all((char *)c->data + (pos - c->offset), end - pos);
}

static int cat_path(kiln_fs *fs, struct pump *pump, const char *path, bool zero_damage)
{
	struct cat cat = { .path = path, .zero_damage = zero_damage };
	struct kiln_stat st;

	int err = kiln_lookup_path(fs, path, KILN_FOLLOW, &st);
	if (!err && !S_ISREG(st.mode)) {
		tool_error("%s: is %s, not a regular file", path,
			   S_ISDIR(st.mode)    ? "a directory"
			   : S_ISCHR(st.mode)  ? "a character device"
			   : S_ISBLK(st.mode)  ? "a block device"
			   : S_ISFIFO(st.mode) ? "a fifo"
			   : S_ISSOCK(st.mode) ? "a socket"
					       : "something else");
		return TOOL_FAILED;
	}
	if (!err)
		err = pump_file(pump, st.node, st.size, false, take_chunk, &cat);
	if (err) {
		/* A reader that went away is no news. */
		if (err != -EPIPE)
			tool_error("%s: %s", path, strerror(-err));
		return err == -EIO ? TOOL_DAMAGE : TOOL_FAILED;
	}
	return cat.damaged ? TOOL_DAMAGE : TOOL_OK;
}

static int cat_run(const struct command *self, int argc, char **argv)
{
	enum { OPT_ZERO = TOOL_OPT_COMMAND };
	static const struct option options[] = { TOOL_OPEN_OPTIONS, { "zero", no_argument, NULL, OPT_ZERO }, { 0 } };
	struct tool_open open = tool_open_defaults();
	bool zero_damage = false;
	int c, status;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		int handled = tool_open_option(self, c, &open, &status);
		if (handled < 0)
			return status;
		if (c == OPT_ZERO)
			zero_damage = true;
	}
	if (argc - optind < 2)
		return tool_usage_error(self, "needs a filesystem and at least one path");

	tool_catch_signals();
	kiln_fs *fs = tool_open_fs(&open, argv[optind], FS_NAMESPACE);
	if (!fs)
		return TOOL_FAILED;

	struct pump *pump = pump_start(fs);
	status = pump ? TOOL_OK : TOOL_FAILED;
	if (!pump)
		tool_error("out of memory");
	for (int i = optind + 1; i < argc && pump && !tool_interrupted; i++) {
		int s = cat_path(fs, pump, argv[i], zero_damage);
		/* A failure outweighs damage. */
		status = s == TOOL_FAILED || status == TOOL_FAILED ? TOOL_FAILED : max(s, status);
	}
	pump_end(pump);
	return tool_close_fs(fs, status);
}

const struct command command_cat = {
	.name = "cat",
	.summary = "write file contents to standard output",
	.usage = usage,
	.run = cat_run,
};
