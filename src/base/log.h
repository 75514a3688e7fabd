/* Log messages: one line each, to a callback of the library's user. */
#ifndef KILN_BASE_LOG_H
#define KILN_BASE_LOG_H

#include "base/util.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* @line has no newline at its end and lives only during the call. Callable from any thread. */
struct log_sink {
	void (*write)(void *ctx, enum log_level level, const char *line);
	void *ctx;
	enum log_level level_max; /* less important ones are not formatted at all */
};

/* @sink NULL, or without a callback: nothing happens. */
void log_printf(const struct log_sink *sink, enum log_level level, const char *fmt, ...) PRINTF_LIKE(3, 4);

#endif
