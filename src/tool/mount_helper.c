/*
 * The tool as mount(8)'s helper: installed as mount.kiln and mount.fuse.kiln, it is called for entries of fstab with
 * the type "kiln" or "fuse.kiln", as
 *
 *	mount.kiln SOURCE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]
 *
 * and does what `kiln mount -o OPTIONS SOURCE DIRECTORY` does.
 */
#include <string.h>

#include "tool/tool.h"

bool tool_is_mount_helper(const char *program)
{
	const char *base = strrchr(program, '/');

	return !strncmp(base ? base + 1 : program, "mount.", 6);
}

/* Exit statuses of mount(8). */
static int helper_status(int status)
{
	enum { MOUNT_USAGE = 1, MOUNT_FAILED = 32 };

	return status == TOOL_OK ? 0 : status == TOOL_USAGE ? MOUNT_USAGE : MOUNT_FAILED;
}

int tool_mount_helper(int argc, char **argv)
{
	char title[] = "kiln mount", flag[] = "-o", none[] = "rw", separator[] = "--";
	char *options = none;
	bool is_fake = false;
	int c;

	/* -s: unknown options are the sloppy caller's affair; -n: mtab is no file any more; -v, -N, -t: nothing to do.
	 */
	while ((c = getopt(argc, argv, "sfnvN:o:t:")) != -1) {
		if (c == '?')
			return helper_status(TOOL_USAGE);
		if (c == 'o')
			options = optarg;
		is_fake |= c == 'f';
	}
	if (argc - optind != 2) {
		tool_error("as a helper of mount(8) it needs a filesystem and a directory");
		return helper_status(TOOL_USAGE);
	}
	if (is_fake)
		return TOOL_OK;
	char *mount_argv[] = { title, flag, options, separator, argv[optind], argv[optind + 1], NULL };
	optind = 0;
	return helper_status(command_mount.run(&command_mount, ARRAY_NR(mount_argv) - 1, mount_argv));
}
