/* What `kiln format` made. See format_show.h. */
#include "tool/format_show.h"

#include <inttypes.h>
#include <string.h>

#include "format/alloc.h"
#include "tool/raw_text.h"

enum { COLUMN_NR = 7 };

static const unsigned data_types[] = { DATA_JOURNAL, DATA_BTREE, DATA_USER };

static void add_data_allowed(struct strbuf *out, const struct member *m)
{
	bool is_first = true;

	for (size_t i = 0; i < ARRAY_NR(data_types); i++) {
		if (!(m->data_allowed >> data_types[i] & 1))
			continue;
		strbuf_printf(out, "%s%s", is_first ? "" : ",", data_type_name(data_types[i]));
		is_first = false;
	}
}

static uint64_t journal_buckets(const struct sb_disk *sb)
{
	uint64_t sum = 0, start, nr;

	for (unsigned i = 0; sb && i < sb_journal_range_nr(sb); i++) {
		sb_journal_range(sb, i, &start, &nr);
		sum += nr;
	}
	return sum;
}

static uint64_t member_bytes(const struct member *m) { return m->nbuckets * m->bucket_sectors << SECTOR_SHIFT; }

/* --- the table --- */

struct row {
	struct strbuf cells[COLUMN_NR];
};

static void row_fill(struct row *row, const struct super *s, unsigned i)
{
	const struct super_member *member = &s->members[i];
	const struct member *m = &member->m;
	struct strbuf *c = row->cells;

	tool_add_printable(&c[0], member->name, strlen(member->name));
	strbuf_add_size(&c[1], member_bytes(m));
	strbuf_printf(&c[2], "%" PRIu64 " x ", m->nbuckets);
	strbuf_add_size(&c[2], (uint64_t)m->bucket_sectors << SECTOR_SHIFT);
	strbuf_printf(&c[3], "%" PRIu64, journal_buckets(member->sb));
	if (m->group)
		sb_disk_group_path(&c[4], s->sb, m->group - 1u);
	else
		strbuf_add_char(&c[4], '-');
	if (m->durability)
		strbuf_printf(&c[5], "%u", m->durability);
	else
		strbuf_add(&c[5], "0 (cache)");
	add_data_allowed(&c[6], m);
	if (m->has_discard)
		strbuf_add(&c[6], ", discard");
}

static void show_devices(const struct super *s)
{
	static const char *const heads[COLUMN_NR] = { "device", "size",	      "buckets", "journal",
						      "label",	"durability", "holds" };
	struct row *rows = calloc(s->member_nr, sizeof(*rows));
	size_t widths[COLUMN_NR];

	if (!rows)
		return;
	for (unsigned c = 0; c < COLUMN_NR; c++)
		widths[c] = strlen(heads[c]);
	for (unsigned i = 0; i < s->member_nr; i++) {
		for (unsigned c = 0; c < COLUMN_NR; c++)
			rows[i].cells[c] = strbuf_growing();
		row_fill(&rows[i], s, i);
		for (unsigned c = 0; c < COLUMN_NR; c++)
			widths[c] = max(widths[c], rows[i].cells[c].len);
	}

	putchar('\n');
	for (unsigned c = 0; c < COLUMN_NR; c++)
		printf("%s%-*s", c ? "  " : "", c + 1 < COLUMN_NR ? (int)widths[c] : 0, heads[c]);
	putchar('\n');
	for (unsigned i = 0; i < s->member_nr; i++) {
		for (unsigned c = 0; c < COLUMN_NR; c++) {
			/* Numbers are read from the right. */
			bool is_number = c >= 1 && c <= 3;

			printf("%s%*s", c ? "  " : "",
			       c + 1 == COLUMN_NR ? 0
			       : is_number	  ? (int)widths[c]
						  : -(int)widths[c],
			       strbuf_text(&rows[i].cells[c]));
			strbuf_free(&rows[i].cells[c]);
		}
		putchar('\n');
	}
	free(rows);
}

/* Options that aren't what they are by default; sizes have been told. */
static void show_options(const struct super *s)
{
	struct strbuf text = strbuf_growing();

	for (unsigned id = 0; id < OPT_NR; id++) {
		bool in_range;
		uint64_t value = option_from_sb(id, s->sb, &in_range);

		if (!option_is_stored(id) || id == OPT_BLOCK_SIZE || id == OPT_BTREE_NODE_SIZE ||
		    value == option_table[id].initial)
			continue;
		strbuf_printf(&text, "%s%s=", text.len ? ", " : "", option_table[id].name);
		option_to_text(&text, id, value, s->sb);
	}
	if (text.len)
		printf("options: %s\n", strbuf_text(&text));
	strbuf_free(&text);
}

void format_show(const struct kiln_fs *fs)
{
	const struct super *s = fs->super;
	struct strbuf text = strbuf_growing();
	uint64_t bytes = 0;
	bool in_range;

	for (unsigned i = 0; i < s->member_nr; i++)
		bytes += member_bytes(&s->members[i].m);
	strbuf_printf(&text, "bcachefs %u.%u, ", VERSION_MAJOR(le16_get(s->sb->version)),
		      VERSION_MINOR(le16_get(s->sb->version)));
	strbuf_add_size(&text, bytes);
	strbuf_printf(&text, " on %u device%s, UUID ", s->member_nr, s->member_nr == 1 ? "" : "s");
	strbuf_add_uuid(&text, s->sb->user_uuid);
	if (s->sb->label[0]) {
		strbuf_add(&text, ", label ");
		tool_add_printable(&text, (const char *)s->sb->label,
				   strnlen((const char *)s->sb->label, SB_LABEL_BYTES));
	}
	strbuf_add(&text, "\nblocks of ");
	strbuf_add_size(&text, option_from_sb(OPT_BLOCK_SIZE, s->sb, &in_range));
	strbuf_add(&text, ", btree nodes of ");
	strbuf_add_size(&text, option_from_sb(OPT_BTREE_NODE_SIZE, s->sb, &in_range));
	strbuf_add(&text, ", superblocks of ");
	strbuf_add_size(&text, (uint64_t)SECTOR_BYTES << s->sb->layout.sb_max_size_bits);
	if (s->has_key)
		strbuf_add(&text, s->needs_passphrase ? ", encrypted" : ", encrypted without passphrase");
	if (!SB_INITIALIZED(s->sb))
		strbuf_add(&text, "\nnot initialised: the first mount makes journal and root directory");
	puts(strbuf_text(&text));
	strbuf_free(&text);
	show_options(s);
	show_devices(s);
}

/* --- JSON --- */

static json_t *device_json(const struct super *s, unsigned i)
{
	const struct super_member *member = &s->members[i];
	const struct member *m = &member->m;
	json_t *allowed = json_array(), *label = json_null();

	for (size_t k = 0; k < ARRAY_NR(data_types); k++)
		if (m->data_allowed >> data_types[k] & 1)
			json_array_append_new(allowed, json_string(data_type_name(data_types[k])));
	if (m->group) {
		struct strbuf path = strbuf_growing();

		sb_disk_group_path(&path, s->sb, m->group - 1u);
		json_decref(label);
		label = json_string(strbuf_text(&path));
		strbuf_free(&path);
	}
	return json_pack("{s:i, s:o, s:o, s:I, s:I, s:I, s:I, s:o, s:i, s:b, s:o}", "index", (int)i, "path",
			 tool_json_bytes(member->name, strlen(member->name)), "uuid", raw_json_uuid(m->uuid),
			 "size_bytes", (json_int_t)member_bytes(m), "bucket_bytes",
			 (json_int_t)m->bucket_sectors << SECTOR_SHIFT, "buckets", (json_int_t)m->nbuckets,
			 "journal_buckets", (json_int_t)journal_buckets(member->sb), "label", label, "durability",
			 m->durability, "discard", m->has_discard, "data_allowed", allowed);
}

static json_t *options_json(const struct super *s)
{
	json_t *options = json_object();

	for (unsigned id = 0; id < OPT_NR; id++) {
		const struct option_def *o = &option_table[id];
		bool in_range;
		uint64_t value = option_from_sb(id, s->sb, &in_range);
		struct strbuf text = strbuf_growing();

		if (!option_is_stored(id))
			continue;
		option_to_text(&text, id, value, s->sb);
		json_object_set_new(options, o->name,
				    o->type == OPTION_BOOL   ? json_boolean(value)
				    : o->type == OPTION_UINT ? json_integer((json_int_t)value)
							     : json_string(strbuf_text(&text)));
		strbuf_free(&text);
	}
	return options;
}

json_t *format_json(const struct kiln_fs *fs)
{
	const struct super *s = fs->super;
	json_t *devices = json_array();
	char version[16];

	snprintf(version, sizeof(version), "%u.%u", VERSION_MAJOR(le16_get(s->sb->version)),
		 VERSION_MINOR(le16_get(s->sb->version)));
	for (unsigned i = 0; i < s->member_nr; i++)
		json_array_append_new(devices, device_json(s, i));
	return json_pack("{s:o, s:o, s:s, s:o, s:b, s:I, s:o, s:o}", "uuid", raw_json_uuid(s->sb->user_uuid),
			 "internal_uuid", raw_json_uuid(s->sb->uuid), "version", version, "label",
			 tool_json_bytes(s->sb->label, strnlen((const char *)s->sb->label, SB_LABEL_BYTES)),
			 "is_initialized", SB_INITIALIZED(s->sb), "superblock_bytes",
			 (json_int_t)SECTOR_BYTES << s->sb->layout.sb_max_size_bits, "options", options_json(s),
			 "devices", devices);
}
