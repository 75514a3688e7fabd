/* See passphrase.h. */
#include "tool/passphrase.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/report.h"
#include "base/secret.h"
#include "tool/terminal.h"
#include "tool/tool.h"

enum { ATTEMPTS_MAX = 3 };

bool passphrase_fd_parse(const char *text, int *fd)
{
	char *end;
	long value = strtol(text, &end, 10);

	if (end == text || *end || value < 0 || value > INT32_MAX)
		return false;
	*fd = (int)value;
	return true;
}

/*
 * First line of @fd into @buf, without its newline; -ENODATA: there is nothing. Byte by byte: what follows may be
 * another one's.
 */
static ssize_t read_line(int fd, char *buf, size_t size)
{
	char beyond; /* the newline of the longest line that has room */
	size_t len = 0;

	while (len <= size) {
		char *byte = len < size ? buf + len : &beyond;
		ssize_t n = read(fd, byte, 1);

		if (n < 0 && errno == EINTR && !tool_interrupted)
			continue;
		if (n < 0 || (!n && !len))
			return n ? -errno : -ENODATA;
		if (!n || *byte == '\n')
			return (ssize_t)len;
		len++;
	}
	return -ENAMETOOLONG;
}

static ssize_t read_file(const char *path, char *buf, size_t size)
{
	if (!strcmp(path, "-"))
		return read_line(STDIN_FILENO, buf, size);

	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t len = read_line(fd, buf, size);
	close(fd);
	return len;
}

static ssize_t read_source(const struct passphrase_source *s, char *buf, size_t size)
{
	return s->fd >= 0 ? read_line(s->fd, buf, size) : read_file(s->file, buf, size);
}

/* Why there is none. @what: which one; @option: "--NAME" of the options that would say it. */
static void source_tell(const struct passphrase_source *s, const char *what, const char *option, int err)
{
	const char *from = !s->file || s->fd >= 0 ? NULL : !strcmp(s->file, "-") ? "standard input" : s->file;
	const char *why = err == -ENAMETOOLONG ? "its first line is too long"
			  : err == -ENODATA    ? "it is at its end: there is no line to read"
					       : strerror(-err);

	if (s->fd >= 0)
		tool_error("can't read the %s from descriptor %d: %s", what, s->fd, why);
	else if (from)
		tool_error("can't read the %s from %s: %s", what, from, why);
	else if (err == -EINTR)
		tool_error("interrupted");
	else if (err == -ENODATA)
		tool_error("the %s was not typed: the input ended", what);
	else if (err == -ENAMETOOLONG)
		tool_error("the %s is too long", what);
	else if (err == -ENOKEY && tool_is_mount_helper(program_invocation_name))
		tool_error(
			"the %s is needed, and there is no terminal to ask on: the mount option passphrase_file names "
			"a file with one",
			what);
	else if (err == -ENOKEY)
		tool_error("the %s is needed, and there is no terminal to ask on: %s-file or %s-fd names one", what,
			   option, option);
	else
		tool_error("can't read the %s from the terminal: %s", what, strerror(-err));
}

bool passphrase_tell_missing(const struct passphrase_source *s, int err)
{
	if (s->error)
		source_tell(s, "passphrase of the encrypted filesystem", "--passphrase", s->error);
	else if (err == -EKEYREJECTED && s->is_empty)
		tool_error("wrong passphrase: the first line of what it was read from is empty");
	return s->error || (err == -EKEYREJECTED && s->is_empty);
}

static ssize_t ask_on_terminal(const char *uuid, unsigned attempt, char *buf, size_t size)
{
	char question[80];
	int tty = terminal_open();

	if (tty < 0)
		return tty;
	if (attempt)
		dprintf(tty, "Wrong passphrase.\n");
	snprintf(question, sizeof(question), "Passphrase for the filesystem %s", uuid);
	ssize_t len = terminal_ask(tty, question, buf, size);
	close(tty);
	return len;
}

ssize_t passphrase_ask(void *ctx, const char *uuid, unsigned attempt, char *buf, size_t size)
{
	struct passphrase_source *source = &((struct tool_open *)ctx)->passphrase;

	bool is_given = passphrase_source_is_given(source);
	ssize_t len = -EKEYREJECTED;

	/* A file says the same every time: no second attempt. */
	if (is_given && !attempt)
		len = read_source(source, buf, size);
	else if (!is_given && attempt < ATTEMPTS_MAX)
		len = ask_on_terminal(uuid, attempt, buf, size);
	source->error = len < 0 && len != -EKEYREJECTED ? (int)len : 0;
	source->is_empty |= is_given && !len;
	return len;
}

/* --- new ones --- */

/* Nobody sees what is typed, so it is typed twice. */
static ssize_t new_on_terminal(char *buf, char *again, size_t size)
{
	int tty = terminal_open();
	ssize_t len = tty;

	for (unsigned attempt = 0; tty >= 0; attempt++) {
		len = terminal_ask(tty, "New passphrase", buf, size);
		if (len <= 0)
			break;
		ssize_t again_len = terminal_ask(tty, "The same again", again, size);
		if (again_len == len && !memcmp(buf, again, (size_t)len))
			break;
		len = again_len < 0 ? again_len : -EKEYREJECTED;
		if (again_len < 0 || attempt + 1 == ATTEMPTS_MAX)
			break;
		dprintf(tty, "These were two different ones.\n");
	}
	if (tty >= 0)
		close(tty);
	return len;
}

char *passphrase_new(const struct passphrase_source *source, const char *option, size_t *len)
{
	char *buf = secret_alloc(KILN_PASSPHRASE_BYTES_MAX), *again = secret_alloc(KILN_PASSPHRASE_BYTES_MAX);
	ssize_t n = -ENOMEM;

	if (buf && again)
		n = passphrase_source_is_given(source) ? read_source(source, buf, KILN_PASSPHRASE_BYTES_MAX)
						       : new_on_terminal(buf, again, KILN_PASSPHRASE_BYTES_MAX);
	secret_free(again);
	if (n > 0) {
		*len = (size_t)n;
		return buf;
	}
	secret_free(buf);
	if (!n)
		tool_error("an empty passphrase protects nothing");
	else if (n == -EKEYREJECTED)
		tool_error("the passphrase was typed in two different ways");
	else
		source_tell(source, "new passphrase", option, (int)n);
	return NULL;
}
