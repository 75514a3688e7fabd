/*
 * kiln: the command-line tool. Finds the command and hands over; see tool.h for what commands share.
 */
#include <stdio.h>
#include <string.h>

#include "tool/tool.h"

static const struct command *const commands[] = {
	&command_format,
	&command_show_super,
	&command_list,
	&command_list_journal,
	&command_ls,
	&command_stat,
	&command_cat,
	&command_get,
	&command_tar,
	&command_usage,
	&command_mount,
	&command_set_option,
	&command_check,
	&command_put,
	&command_mkdir,
	&command_rm,
	&command_mv,
	&command_ln,
	&command_touch,
	&command_chmod,
	&command_chown,
	&command_setfattr,
	&command_status,
	&command_sync,
	&command_debug,
	&command_quota,
	&command_set_passphrase,
	&command_remove_passphrase,
};

static void print_help(FILE *out)
{
	fputs("usage: kiln COMMAND [OPTIONS] FS ...\n"
	      "\n"
	      "Kiln makes, reads and changes bcachefs filesystems without a kernel module.\n"
	      "FS is a device or image, all devices of a filesystem joined by colons (DEV:DEV:...), or UUID=...\n"
	      "\n",
	      out);
	for (size_t i = 0; i < ARRAY_NR(commands); i++)
		fprintf(out, "  %-17s %s\n", commands[i]->name, commands[i]->summary);
	fputs("\n`kiln COMMAND --help` says more; kiln(1) has examples and the exit statuses.\n", out);
}

int main(int argc, char **argv)
{
	if (argc && tool_is_mount_helper(argv[0]))
		return tool_mount_helper(argc, argv);
	if (argc < 2) {
		print_help(stderr);
		return TOOL_USAGE;
	}
	bool is_help = !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help");
	if (is_help && argc < 3) {
		print_help(stdout);
		return TOOL_OK;
	}
	if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "version")) {
		printf("kiln %s\n", kiln_version());
		return TOOL_OK;
	}
	const char *name = argv[is_help ? 2 : 1];
	for (size_t i = 0; i < ARRAY_NR(commands); i++) {
		if (strcmp(name, commands[i]->name))
			continue;
		/* What getopt_long() calls us in its messages. */
		char title[32], help[] = "--help";
		snprintf(title, sizeof(title), "kiln %s", name);
		argv[1] = title;
		if (is_help)
			argv[2] = help;
		return commands[i]->run(commands[i], (is_help ? 3 : argc) - 1, argv + 1);
	}
	tool_error("'%s' is no kiln command; `kiln --help` lists them", name);
	/* mount(8) hands what it has no helper for to mount.fuse, and that to the program that the type names. */
	if (*name == '/' && argc > 3)
		tool_error("for mount(8) it needs the links /sbin/mount.kiln and /sbin/mount.fuse.kiln: kiln-mount(1) "
			   "says "
			   "how");
	return TOOL_USAGE;
}
