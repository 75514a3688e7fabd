/*
 * Locks between processes: open-file-description locks (fcntl F_OFD_SETLK), advisory, on a whole file or on what a loop
 * device is of one (loop.c).
 *
 * They belong to the open file and not to the process, so they hold between two openers in one process too, and vanish
 * with the process however it ends. Their price: the kernel doesn't tell who holds one. But /proc/PID/fdinfo/FD of the
 * holder shows it, in a line like
 *
 *	lock:	1: OFDLCK  ADVISORY  WRITE -1 fe:00:10952925 0 EOF
 *
 * with device and inode number, so a search through the processes that we may look at finds it. This is only done for
 * the message, and only opens files of /proc: stat() of what others have open might wait for a dead network server.
 */
#include "device/file_lock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

struct lock_holder {
	long process; /* 0: not found */
	char command[32];
};

static void holder_describe(int fd, const char *path, bool is_writer, struct strbuf *why);
static struct lock_holder holder_find(int fd, bool writers_only);
static bool process_holds(int proc, const char *process, const struct stat *file, bool writers_only);
static bool fdinfo_shows_lock(int fdinfo_dir, const char *fd_name, const struct stat *file, bool writers_only);
static void process_command(int proc, const char *process, char command[32]);
static bool is_number(const char *text);

int file_lock(int fd, const char *path, struct file_range range, bool is_writer, struct strbuf *why)
{
	struct flock lock = { .l_type = is_writer ? F_WRLCK : F_RDLCK,
			      .l_whence = SEEK_SET,
			      .l_start = (off_t)range.begin_bytes,
			      .l_len = (off_t)range.len_bytes };

	if (!fcntl(fd, F_OFD_SETLK, &lock))
		return 0;
	if (errno == EAGAIN || errno == EACCES) {
		holder_describe(fd, path, is_writer, why);
		return -EBUSY;
	}
	int err = -errno;
	strbuf_printf(why, "%s: cannot lock it: %s", path, strerror(-err));
	return err;
}

bool file_lock_is_held(int fd, const char *path, bool is_writer, struct strbuf *why)
{
	struct flock lock = { .l_type = is_writer ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET };

	if (fcntl(fd, F_OFD_GETLK, &lock) || lock.l_type == F_UNLCK)
		return false;
	holder_describe(fd, path, is_writer, why);
	return true;
}

static void holder_describe(int fd, const char *path, bool is_writer, struct strbuf *why)
{
	struct lock_holder holder = holder_find(fd, !is_writer);

	strbuf_printf(why, "%s is being %s by ", path, is_writer ? "used" : "written");
	if (holder.process == getpid())
		strbuf_add(why, "this process already");
	else if (holder.process)
		strbuf_printf(why, "%s (process %ld)", holder.command, holder.process);
	else
		strbuf_add(why, "another process");
	strbuf_add(why, is_writer ? ". Wait until that ends, or unmount it." : ". Wait until that ends.");
}

static struct lock_holder holder_find(int fd, bool writers_only)
{
	struct lock_holder holder = { 0 };
	struct stat file;
	struct dirent *entry;
	DIR *dir = opendir("/proc");

	if (dir && !fstat(fd, &file))
		while (!holder.process && (entry = readdir(dir))) {
			if (!is_number(entry->d_name) || !process_holds(dirfd(dir), entry->d_name, &file, writers_only))
				continue;
			holder.process = strtol(entry->d_name, NULL, 10);
			process_command(dirfd(dir), entry->d_name, holder.command);
		}
	if (dir)
		closedir(dir);
	return holder;
}

static bool process_holds(int proc, const char *process, const struct stat *file, bool writers_only)
{
	char path[64];
	struct dirent *entry;
	bool found = false;

	snprintf(path, sizeof(path), "%.20s/fdinfo", process);
	int fd = openat(proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	if (!dir) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	while (!found && (entry = readdir(dir)))
		found = is_number(entry->d_name) && fdinfo_shows_lock(dirfd(dir), entry->d_name, file, writers_only);
	closedir(dir);
	return found;
}

static bool fdinfo_shows_lock(int fdinfo_dir, const char *fd_name, const struct stat *file, bool writers_only)
{
	int fd = openat(fdinfo_dir, fd_name, O_RDONLY | O_CLOEXEC);
	FILE *info = fd >= 0 ? fdopen(fd, "r") : NULL;
	char line[256];
	bool found = false;

	if (!info) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	while (!found && fgets(line, sizeof(line), info)) {
		char mode[16];
		unsigned dev_major, dev_minor;
		unsigned long long inode;

		found = sscanf(line, "lock: %*s OFDLCK %*s %15s %*s %x:%x:%llu", mode, &dev_major, &dev_minor,
			       &inode) == 4 &&
			inode == file->st_ino && dev_major == major(file->st_dev) && dev_minor == minor(file->st_dev) &&
			(!writers_only || !strcmp(mode, "WRITE"));
	}
	fclose(info);
	return found;
}

static void process_command(int proc, const char *process, char command[32])
{
	char path[64];

	snprintf(command, 32, "a program");
	snprintf(path, sizeof(path), "%.20s/comm", process);
	int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	char name[32];
	ssize_t n = read(fd, name, sizeof(name) - 1);
	close(fd);
	if (n > 1) {
		name[n] = 0;
		name[strcspn(name, "\n")] = 0;
		/* A process names itself: nothing that a terminal would obey gets into the message. */
		struct strbuf shown = strbuf_fixed(command, 32);
		strbuf_add_escaped(&shown, name, strlen(name));
	}
}

static bool is_number(const char *text) { return *text && !text[strspn(text, "0123456789")]; }
