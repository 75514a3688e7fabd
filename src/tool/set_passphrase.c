/*
 * kiln set-passphrase, kiln remove-passphrase: what an encrypted filesystem is opened with.
 *
 * The key that everything is encrypted with never changes; it stands in the superblocks, wrapped with the passphrase or
 * as it is. Only superblocks are written, so nothing is recovered by it.
 */
#include <errno.h>
#include <string.h>

#include "base/secret.h"
#include "base/strbuf.h"
#include "tool/mounted.h"
#include "tool/tool.h"

static const char usage_set[] =
	"usage: kiln set-passphrase [OPTIONS] FS\n"
	"\n"
	"Change the passphrase of an encrypted filesystem, or give one to a filesystem that was made without. The old "
	"one is\n"
	"asked for if there is one, then the new one twice. All devices must be there, and nobody may be using it.\n"
	"\n"
	"  --new-passphrase-file FILE  the new one (first line; - for standard input)\n"
	"  --new-passphrase-fd N       the same from an open file descriptor\n" TOOL_CHANGE_USAGE;

static const char usage_remove[] = "usage: kiln remove-passphrase [OPTIONS] FS\n"
				   "\n"
				   "Have an encrypted filesystem open without passphrase. It stays encrypted, but the "
				   "key then stands in its superblocks\n"
				   "for all to read. All devices must be there, and nobody may be using it.\n"
				   "\n" TOOL_CHANGE_USAGE;

enum { OPTION_NEW_FILE = TOOL_OPT_COMMAND, OPTION_NEW_FD };

/* Open and unlocked; NULL after a message. */
static kiln_fs *open_unlocked(struct tool_open *open, const char *fs_arg)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .ctx = open,
					     .passphrase = passphrase_ask };
	char why[KILN_ERROR_BYTES] = "";
	kiln_fs *fs = NULL;

	if (!mounted_tell(fs_arg))
		fs = tool_open_fs(open, fs_arg, FS_ALL_SUPERS);
	int err = fs ? fs_passphrase_unlock(fs, &options, why) : 0;
	if (err) {
		if (!passphrase_tell_missing(&open->passphrase, err))
			tool_error("%s", why);
		kiln_close(fs);
		fs = NULL;
	}
	return fs;
}

static int run_with(struct tool_open *open, const char *fs_arg, const struct passphrase_source *source)
{
	char why[KILN_ERROR_BYTES] = "";
	size_t len = 0;
	kiln_fs *fs = open_unlocked(open, fs_arg);

	if (!fs)
		return TOOL_FAILED;
	char *passphrase = source ? passphrase_new(source, "--new-passphrase", &len) : NULL;
	int status = source && !passphrase ? TOOL_FAILED : TOOL_OK;
	if (!status && fs_passphrase_set(fs, passphrase, len, why)) {
		tool_error("%s", why);
		status = TOOL_FAILED;
	}
	secret_free(passphrase);
	return tool_close_fs(fs, status);
}

static int run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { { "new-passphrase-file", required_argument, NULL, OPTION_NEW_FILE },
						 { "new-passphrase-fd", required_argument, NULL, OPTION_NEW_FD },
						 TOOL_OPEN_OPTIONS,
						 { 0 } };
	static const struct option options_remove[] = { TOOL_OPEN_OPTIONS, { 0 } };
	bool is_set = self == &command_set_passphrase;
	struct passphrase_source source = passphrase_source_none();
	struct tool_open open = tool_open_defaults();
	int c, status;

	while ((c = getopt_long(argc, argv, "", is_set ? options : options_remove, NULL)) != -1) {
		if (c == OPTION_NEW_FILE)
			source.file = optarg;
		else if (c == OPTION_NEW_FD && !passphrase_fd_parse(optarg, &source.fd))
			return tool_usage_error(self, "--new-passphrase-fd takes a number, not '%s'", optarg);
		else if (tool_open_option(self, c, &open, &status) < 0)
			return status;
	}
	if (argc - optind != 1)
		return tool_usage_error(self, "name one filesystem");
	if (open.flags & KILN_OPEN_FORCE)
		return tool_usage_error(self, "what another process is using can't be changed, not even by force");
	open.flags |= KILN_OPEN_WRITE;
	return run_with(&open, argv[optind], is_set ? &source : NULL);
}

const struct command command_set_passphrase = { "set-passphrase", "change the passphrase of an encrypted filesystem",
						usage_set, run };
const struct command command_remove_passphrase = { "remove-passphrase",
						   "have an encrypted filesystem open without passphrase", usage_remove,
						   run };
