/* Log messages (see base/log.h). */
#include "base/log.h"

#include <stdarg.h>

#include "base/strbuf.h"

enum { LOG_LINE_BYTES_MAX = 1024 };

void log_printf(const struct log_sink *sink, enum log_level level, const char *fmt, ...)
{
	/* On the stack: what is told most urgently is that memory is short. */
	char text[LOG_LINE_BYTES_MAX];
	struct strbuf line = strbuf_fixed(text, sizeof(text));
	va_list args;

	if (!sink || !sink->write || level > sink->level_max)
		return;

	va_start(args, fmt);
	strbuf_vprintf(&line, fmt, args);
	va_end(args);

	/* One message is one line, whatever names from a device or a user were printed into it. */
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = ' ';
	sink->write(sink->ctx, level, text);
}
