/*
 * What the commands that show raw structures (show-super, list, list-journal, usage) share: output that stops quietly
 * when nobody reads it any more, positions on the command line, and keys as JSON.
 *
 * JSON numbers are what most readers hold in 63 bits, so a number above INT64_MAX is written as a decimal string.
 * Positions, whose fields often are U64_MAX, always are strings "inode:offset:snapshot" of decimal numbers.
 */
#ifndef KILN_TOOL_RAW_TEXT_H
#define KILN_TOOL_RAW_TEXT_H

#include <jansson.h>

#include "base/strbuf.h"
#include "format/key_types.h"
#include "tool/tool.h"

/* Standard output. Build text in @text, then raw_output_flush(). */
struct raw_output {
	struct strbuf text;
	int err; /* of the first write that failed: negative errno */
};

/* Begin; a closed pipe becomes an error instead of a signal, and SIGINT stops (raw_output_is_stopped()). */
void raw_output_begin(struct raw_output *out);
/* Write @out->text and empty it. */
void raw_output_flush(struct raw_output *out);
/* Write a value, freeing it: on one line, or, @is_pretty, indented. NULL counts as "out of memory". */
void raw_output_json(struct raw_output *out, json_t *value, bool is_pretty);
/* Nobody wants more: writing failed, or a signal came. */
static inline bool raw_output_is_stopped(const struct raw_output *out) { return out->err || tool_interrupted; }
/* End: @status, or TOOL_FAILED when not everything was written. Says why unless a pipe was closed or a signal came. */
int raw_output_end(struct raw_output *out, int status);

/*
 * "4096:8:4294967295", "4096:8", "4096"; U64_MAX, U32_MAX for the greatest numbers; POS_MIN, POS_MAX, SPOS_MAX. What is
 * left out is 0 or, @is_end, the greatest number. -EINVAL.
 */
int raw_pos_parse(const char *text, bool is_end, struct bpos *pos);
/* The same without defaults: missing parts are told apart by @part_nr, 1 to 3. */
int raw_pos_parse_parts(const char *text, struct bpos *pos, unsigned *part_nr);

/* A whole number up to @max, decimal or 0x...; -EINVAL. */
int raw_u64_parse(const char *text, uint64_t max, uint64_t *value);
/* For commands that take exactly one filesystem and got none, or several arguments; TOOL_USAGE. */
int raw_usage_fs(const struct command *self);

/* Name of a btree, or its number. */
void raw_add_btree(struct strbuf *out, unsigned btree_id);

json_t *raw_json_u64(uint64_t value);
/* Text as it is; if it isn't UTF-8, bytes above 0x7f become \xNN. */
json_t *raw_json_text(const struct strbuf *text);
json_t *raw_json_uuid(const uint8_t uuid[16]);
json_t *raw_json_pos(struct bpos pos);
json_t *raw_json_btree(unsigned btree_id);
/* {btree, level, pos, size, version, type, value}: @k's value has been validated. */
json_t *raw_json_key(unsigned btree_id, unsigned level, struct bkey_ref k, const struct key_context *ctx);

#endif
