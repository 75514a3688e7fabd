/* Questions on the terminal, whatever standard input and output are, whose answers aren't shown. */
#ifndef KILN_TOOL_TERMINAL_H
#define KILN_TOOL_TERMINAL_H

#include <stddef.h>
#include <sys/types.h>

/* Close it with close(); -ENOKEY: there is none. */
int terminal_open(void);

/*
 * Ask, and have the answer, without its newline, in @buf: its length; -ENODATA: the input ended instead;
 * -ENAMETOOLONG; -EINTR: a signal came that the caller catches.
 *
 * Echo is off while somebody types, and never longer: signals that would end or stop the process meanwhile act when
 * the terminal is as it was. After a stop the question is asked again.
 */
ssize_t terminal_ask(int tty, const char *question, char *buf, size_t size);

#endif
