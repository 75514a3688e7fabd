/* See terminal.h. */
#include "tool/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <termios.h>
#include <unistd.h>

#include "base/util.h"

/* What would leave the terminal as it is. */
static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP };

static volatile sig_atomic_t caught;

static void on_signal(int sig) { caught = sig; }

/* A terminal without echo, and what is to be restored. Signals are blocked but for waiting. */
struct quiet {
	int tty;
	bool has_echo;
	struct termios old;
	sigset_t mask;
	struct sigaction actions[ARRAY_NR(signals)];
};

/* What is typed before the question is no answer to it. */
static void quiet_begin(struct quiet *q, int tty)
{
	struct sigaction note = { .sa_handler = on_signal };
	sigset_t blocked;

	caught = 0;
	q->tty = tty;
	sigemptyset(&blocked);
	for (size_t i = 0; i < ARRAY_NR(signals); i++)
		sigaddset(&blocked, signals[i]);
	sigprocmask(SIG_BLOCK, &blocked, &q->mask);
	for (size_t i = 0; i < ARRAY_NR(signals); i++) {
		sigaction(signals[i], NULL, &q->actions[i]);
		if (q->actions[i].sa_handler != SIG_IGN)
			sigaction(signals[i], &note, NULL);
	}
	q->has_echo = !tcgetattr(tty, &q->old);
	if (q->has_echo) {
		struct termios quiet = q->old;

		quiet.c_lflag &= ~(tcflag_t)ECHO;
		tcsetattr(tty, TCSAFLUSH, &quiet);
	}
}

/* A signal that was caught comes again, to whom it was meant for. */
static void quiet_end(struct quiet *q)
{
	sigset_t stops;

	/* Who lost the foreground by the signal may restore the terminal all the same. */
	sigemptyset(&stops);
	sigaddset(&stops, SIGTTOU);
	sigprocmask(SIG_BLOCK, &stops, NULL);
	if (q->has_echo)
		tcsetattr(q->tty, TCSAFLUSH, &q->old);
	dprintf(q->tty, "\n");
	for (size_t i = 0; i < ARRAY_NR(signals); i++)
		sigaction(signals[i], &q->actions[i], NULL);
	sigprocmask(SIG_SETMASK, &q->mask, NULL);
	if (caught)
		raise(caught);
}

/* One byte; 0 at the end of input. */
static ssize_t byte_read(const struct quiet *q, char *byte)
{
	struct pollfd ready = { .fd = q->tty, .events = POLLIN };

	while (ppoll(&ready, 1, NULL, &q->mask) < 0)
		if (errno != EINTR || caught)
			return -errno;
	ssize_t n = read(q->tty, byte, 1);
	return n < 0 ? -errno : n;
}

static ssize_t line_read(const struct quiet *q, char *buf, size_t size)
{
	char beyond; /* the newline of the longest answer that has room */

	for (size_t len = 0; len <= size; len++) {
		char *byte = len < size ? buf + len : &beyond;
		ssize_t n = byte_read(q, byte);

		if (n < 0 || (!n && !len))
			return n ? n : -ENODATA;
		if (!n || *byte == '\n')
			return (ssize_t)len;
	}
	return -ENAMETOOLONG;
}

int terminal_open(void)
{
	int tty = open("/dev/tty", O_RDWR | O_CLOEXEC);

	return tty < 0 ? -ENOKEY : tty;
}

ssize_t terminal_ask(int tty, const char *question, char *buf, size_t size)
{
	ssize_t len;

	do {
		struct quiet q;

		quiet_begin(&q, tty);
		dprintf(tty, "%s: ", question);
		len = line_read(&q, buf, size);
		quiet_end(&q);
	} while (len == -EINTR && caught == SIGTSTP);
	return len;
}
