/* What the commands that show raw structures share. See raw_text.h. */
#include "tool/raw_text.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>

/* --- output --- */

void raw_output_begin(struct raw_output *out)
{
	*out = (struct raw_output){ .text = strbuf_growing() };
	signal(SIGPIPE, SIG_IGN);
	tool_catch_signals();
}

static void write_bytes(struct raw_output *out, const char *bytes, size_t len)
{
	if (!out->err && len && fwrite(bytes, 1, len, stdout) != len)
		out->err = errno ? -errno : -EIO;
}

void raw_output_flush(struct raw_output *out)
{
	if (out->text.truncated && !out->err)
		out->err = -ENOMEM;
	write_bytes(out, strbuf_text(&out->text), out->text.len);
	strbuf_reset(&out->text);
}

void raw_output_json(struct raw_output *out, json_t *value, bool is_pretty)
{
	char *text = value ? json_dumps(value, (is_pretty ? JSON_INDENT(2) : JSON_COMPACT) | JSON_ENCODE_ANY) : NULL;

	json_decref(value);
	if (text) {
		write_bytes(out, text, strlen(text));
		write_bytes(out, "\n", 1);
	} else if (!out->err) {
		out->err = -ENOMEM;
	}
	free(text);
}

int raw_output_end(struct raw_output *out, int status)
{
	raw_output_flush(out);
	if (fflush(stdout) && !out->err)
		out->err = -errno;
	strbuf_free(&out->text);
	if (out->err && out->err != -EPIPE)
		tool_error("can't write the output: %s", strerror(-out->err));
	return raw_output_is_stopped(out) ? TOOL_FAILED : status;
}

/* --- positions --- */

/* One number up to @max at *@text, which moves behind it. */
static int number_parse(const char **text, uint64_t max, const char *max_name, uint64_t *value)
{
	size_t name_len = strlen(max_name);

	if (!strncmp(*text, max_name, name_len)) {
		*text += name_len;
		*value = max;
		return 0;
	}
	if (**text < '0' || **text > '9')
		return -EINVAL;

	char *end;
	errno = 0;
	unsigned long long v = strtoull(*text, &end, !strncmp(*text, "0x", 2) ? 16 : 10);
	if (errno || v > max)
		return -EINVAL;
	*text = end;
	*value = v;
	return 0;
}

int raw_pos_parse_parts(const char *text, struct bpos *pos, unsigned *part_nr)
{
	static const struct {
		const char *name;
		struct bpos pos;
	} names[] = {
		{ "POS_MIN", POS_MIN },
		{ "POS_MAX", POS_MAX },
		{ "SPOS_MAX", SPOS_MAX },
	};
	uint64_t parts[3] = { 0 };
	unsigned nr = 0;

	for (size_t i = 0; i < ARRAY_NR(names); i++)
		if (!strcmp(text, names[i].name)) {
			*pos = names[i].pos;
			*part_nr = 3;
			return 0;
		}
	for (;; text++) {
		bool is_snapshot = nr == 2;
		if (number_parse(&text, is_snapshot ? UINT32_MAX : UINT64_MAX, is_snapshot ? "U32_MAX" : "U64_MAX",
				 &parts[nr]))
			return -EINVAL;
		nr++;
		if (nr == ARRAY_NR(parts) || *text != ':')
			break;
	}
	if (*text)
		return -EINVAL;
	*pos = BPOS(parts[0], parts[1], (uint32_t)parts[2]);
	*part_nr = nr;
	return 0;
}

int raw_pos_parse(const char *text, bool is_end, struct bpos *pos)
{
	unsigned part_nr;
	int err = raw_pos_parse_parts(text, pos, &part_nr);

	if (!err && is_end && part_nr < 2)
		pos->offset = UINT64_MAX;
	if (!err && is_end && part_nr < 3)
		pos->snapshot = UINT32_MAX;
	return err;
}

int raw_u64_parse(const char *text, uint64_t max, uint64_t *value)
{
	return number_parse(&text, max, max == UINT32_MAX ? "U32_MAX" : "U64_MAX", value) || *text ? -EINVAL : 0;
}

int raw_usage_fs(const struct command *self)
{
	return tool_usage_error(self, "needs one filesystem (DEV:DEV... if it has several devices)");
}

/* --- text and JSON --- */

void raw_add_btree(struct strbuf *out, unsigned btree_id)
{
	if (btree_name(btree_id))
		strbuf_add(out, btree_name(btree_id));
	else
		strbuf_printf(out, "%u", btree_id);
}

json_t *raw_json_u64(uint64_t value)
{
	return value <= INT64_MAX ? json_integer((json_int_t)value) : json_sprintf("%" PRIu64, value);
}

json_t *raw_json_text(const struct strbuf *text)
{
	json_t *value = json_stringn(strbuf_text(text), text->len);
	if (value)
		return value;

	struct strbuf escaped = strbuf_growing();
	for (size_t i = 0; i < text->len; i++)
		if ((uint8_t)text->text[i] < 0x80)
			strbuf_add_char(&escaped, text->text[i]);
		else
			strbuf_printf(&escaped, "\\x%02x", (uint8_t)text->text[i]);
	value = json_stringn(strbuf_text(&escaped), escaped.len);
	strbuf_free(&escaped);
	return value;
}

json_t *raw_json_uuid(const uint8_t uuid[16])
{
	char buf[40];
	struct strbuf text = strbuf_fixed(buf, sizeof(buf));

	strbuf_add_uuid(&text, uuid);
	return json_string(buf);
}

json_t *raw_json_pos(struct bpos pos)
{
	return json_sprintf("%" PRIu64 ":%" PRIu64 ":%" PRIu32, pos.inode, pos.offset, pos.snapshot);
}

json_t *raw_json_btree(unsigned btree_id)
{
	return btree_name(btree_id) ? json_string(btree_name(btree_id)) : json_integer(btree_id);
}

json_t *raw_json_key(unsigned btree_id, unsigned level, struct bkey_ref k, const struct key_context *ctx)
{
	const struct key_type *type = key_type(k.k.type);
	json_t *version = k.k.version.hi ? json_sprintf("%" PRIu32 ":%" PRIu64, k.k.version.hi, k.k.version.lo)
					 : raw_json_u64(k.k.version.lo);
	struct strbuf value = strbuf_growing();

	if (type && type->to_text)
		type->to_text(&value, k, ctx);
	json_t *j =
		json_pack("{s:o, s:i, s:o, s:I, s:o, s:o, s:o}", "btree", raw_json_btree(btree_id), "level", (int)level,
			  "pos", raw_json_pos(k.k.p), "size", (json_int_t)k.k.size, "version", version, "type",
			  type ? json_string(type->name) : json_integer(k.k.type), "value", raw_json_text(&value));
	strbuf_free(&value);
	return j;
}
