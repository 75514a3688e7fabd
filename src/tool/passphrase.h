/* Passphrases: where commands take them from. */
#ifndef KILN_TOOL_PASSPHRASE_H
#define KILN_TOOL_PASSPHRASE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* One line of a file or descriptor, without its newline; of neither: asked for on the terminal, without echo. */
struct passphrase_source {
	const char *file; /* "-" is standard input; NULL: none */
	int fd;		  /* goes before; -1: none */
	/* From passphrase_ask(): */
	int error;     /* what asking or reading failed with; else 0 */
	bool is_empty; /* what was read was an empty line */
};
static inline struct passphrase_source passphrase_source_none(void) { return (struct passphrase_source){ .fd = -1 }; }
static inline bool passphrase_source_is_given(const struct passphrase_source *s) { return s->file || s->fd >= 0; }
/*
 * Opening failed with @err. If that is because there was no passphrase, say why, and what to do. False, with nothing
 * told, if it isn't.
 */
bool passphrase_tell_missing(const struct passphrase_source *s, int err);
bool passphrase_fd_parse(const char *text, int *fd);

/* The callback of kiln_open_options; @ctx: a struct tool_open. */
ssize_t passphrase_ask(void *ctx, const char *uuid, unsigned attempt, char *buf, size_t size);
/*
 * One that is to be set: twice on the terminal. *@len bytes; secret_free(). NULL after a message. @option: "--NAME" of
 * the options that would say it.
 */
char *passphrase_new(const struct passphrase_source *source, const char *option, size_t *len);

#endif
