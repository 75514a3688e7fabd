/*
 * kiln usage: how full the filesystem is, by type of data and by device.
 *
 * The text has the layout of upstream's `fs usage` (11 §5): columns at fixed places, so that scripts find them. Of a
 * mounted filesystem its server makes the same text.
 */
#include <inttypes.h>
#include <string.h>

#include "tool/mount_control.h"
#include "tool/raw_text.h"
#include "tool/usage.h"

static const char usage[] =
	"usage: kiln usage [OPTIONS] FS\n"
	"\n"
	"Show how space is used: in total, by type of data and the devices it is on, and on each device. Sizes are "
	"bytes.\n"
	"The numbers are the filesystem's own counters, as they stand after recovery; nothing is counted anew.\n"
	"FS may be mounted, and then may be given as the directory, too: its server is asked.\n"
	"\n"
	"  -h, --human             sizes with units (KiB, MiB, ...)\n"
	"  --json                  as a JSON object; sizes are always bytes\n" TOOL_OPEN_USAGE;

/* Columns: left edges of the table, right edges of the numbers. */
enum {
	COLUMN_TOTAL_END = 36,
	COLUMN_REQUIRED = 16,
	COLUMN_DURABILITY = 32,
	COLUMN_DEVICES = 46,
	COLUMN_SIZE_END = 74,
	COLUMN_STEP = 14,
	COLUMN_DATA_END = 36,
	COLUMN_BUCKETS_END = 52,
	COLUMN_FRAGMENTED_END = 66,
};

struct show_usage {
	struct raw_output out;
	const struct super *super;
	struct usage usage;
	bool is_human;
};

/* --- a line with columns --- */

struct line {
	struct strbuf *out;
	size_t start;
};

static struct line line_begin(struct strbuf *out, const char *label)
{
	struct line l = { out, out->len };

	strbuf_add(out, label);
	return l;
}

static void line_pad(struct line l, size_t column)
{
	while (l.out->len - l.start < column && !l.out->truncated)
		strbuf_add_char(l.out, ' ');
}

/* Text that begins at @column, or one blank behind what is there. */
static void line_left(struct line l, size_t column, const char *text)
{
	if (l.out->len - l.start >= column)
		strbuf_add_char(l.out, ' ');
	line_pad(l, column);
	strbuf_add(l.out, text);
}

/* Text that ends before @column, or stands one blank behind what is there. */
static void line_right(struct line l, size_t column, const char *text)
{
	size_t len = strlen(text);

	strbuf_add_char(l.out, ' ');
	line_pad(l, column > len ? column - len : 0);
	strbuf_add(l.out, text);
}

static void line_end(struct line l) { strbuf_add_char(l.out, '\n'); }

static void size_text(const struct show_usage *u, uint64_t sectors, char text[32])
{
	struct strbuf out = strbuf_fixed(text, 32);
	uint64_t bytes = sectors << SECTOR_SHIFT;

	if (u->is_human)
		strbuf_add_size(&out, bytes);
	else
		strbuf_printf(&out, "%" PRIu64, bytes);
}

static void total_line(struct show_usage *u, const char *label, uint64_t sectors)
{
	struct line l = line_begin(&u->out.text, label);
	char text[32];

	size_text(u, sectors, text);
	line_right(l, COLUMN_TOTAL_END, text);
	line_end(l);
}

/* --- totals and replicas --- */

/* Name of a member as tables show it: without directories; its number when it isn't here. */
static void add_device_name(struct strbuf *out, const struct super *s, unsigned dev)
{
	if (!super_member_online(s, dev)) {
		strbuf_printf(out, "%u", dev);
		return;
	}
	const char *slash = strrchr(s->members[dev].name, '/');
	const char *name = slash ? slash + 1 : s->members[dev].name;
	tool_add_printable(out, name, strlen(name));
}

/* Order of the table's parts: metadata, replicated data, erasure coded data, the rest. */
static unsigned row_part(const struct usage_replicas *r)
{
	if (r->data_type != DATA_USER)
		return r->data_type < DATA_USER ? 0 : 3;
	return r->nr_required <= 1 ? 1 : 2;
}

static const char *type_name(unsigned type, char buf[24])
{
	if (type < DATA_NR && data_type_name(type))
		return data_type_name(type);
	snprintf(buf, 24, "type %u", type);
	return buf;
}

static void replicas_line(struct show_usage *u, const struct usage_replicas *r)
{
	char text[32], type[24];
	struct strbuf devices = strbuf_growing();

	snprintf(text, sizeof(text), "%s:", type_name(r->data_type, type));
	struct line l = line_begin(&u->out.text, text);
	snprintf(text, sizeof(text), "%u/%u", r->nr_required, r->nr_devs);
	line_left(l, COLUMN_REQUIRED, text);
	snprintf(text, sizeof(text), "%u", usage_row_durability(u->super, r));
	line_left(l, COLUMN_DURABILITY, text);

	strbuf_add_char(&devices, '[');
	for (unsigned i = 0; i < r->nr_devs; i++) {
		if (i)
			strbuf_add_char(&devices, ' ');
		add_device_name(&devices, u->super, r->devs[i]);
	}
	strbuf_add_char(&devices, ']');
	line_left(l, COLUMN_DEVICES, strbuf_text(&devices));
	strbuf_free(&devices);

	size_text(u, r->sectors, text);
	size_t column = COLUMN_SIZE_END;
	while (l.out->len - l.start + 1 + strlen(text) > column)
		column += COLUMN_STEP;
	line_right(l, column, text);
	line_end(l);
}

static void replicas_table(struct show_usage *u)
{
	struct strbuf *out = &u->out.text;

	strbuf_add_char(out, '\n');
	struct line l = line_begin(out, "Data type");
	line_left(l, COLUMN_REQUIRED, "Required/total");
	line_left(l, COLUMN_DURABILITY, "Durability");
	line_left(l, COLUMN_DEVICES, "Devices");
	line_end(l);
	if (u->usage.reserved_sectors) {
		char text[40] = "[] ";

		size_text(u, u->usage.reserved_sectors, text + 3);
		l = line_begin(out, "reserved:");
		line_right(l, COLUMN_DEVICES, text);
		line_end(l);
	}
	for (unsigned part = 0; part < 4; part++)
		for (size_t i = 0; i < u->usage.replicas_nr; i++)
			if (u->usage.replicas[i].sectors && row_part(&u->usage.replicas[i]) == part)
				replicas_line(u, &u->usage.replicas[i]);
}

/* --- devices --- */

static void add_label(struct strbuf *out, const struct super *s, const struct member *m)
{
	if (m->group && m->group <= sb_disk_group_nr(s->sb))
		sb_disk_group_path(out, s->sb, m->group - 1u);
	else
		strbuf_add(out, "(no label)");
}

/* Types whose buckets are empty: what they take is whole buckets. */
static bool type_is_buckets(unsigned type)
{
	return type == DATA_FREE || type == DATA_NEED_DISCARD || type == DATA_NEED_GC_GENS;
}

static uint64_t type_sectors(const struct usage_dev *d, const struct member *m, unsigned type)
{
	return type_is_buckets(type) ? d->types[type].buckets * m->bucket_sectors : d->types[type].sectors;
}

static void device_line(struct show_usage *u, const char *label, uint64_t sectors, uint64_t buckets,
			uint64_t fragmented)
{
	struct line l = line_begin(&u->out.text, label);
	char text[32];

	size_text(u, sectors, text);
	line_right(l, COLUMN_DATA_END, text);
	snprintf(text, sizeof(text), "%" PRIu64, buckets);
	line_right(l, COLUMN_BUCKETS_END, text);
	if (fragmented) {
		size_text(u, fragmented, text);
		line_right(l, COLUMN_FRAGMENTED_END, text);
	}
	line_end(l);
}

static const char *const error_kinds[] = {
	[SUPER_ERROR_READ] = "read", [SUPER_ERROR_WRITE] = "write", [SUPER_ERROR_CHECKSUM] = "checksum"
};

/* Of a device that has had none nothing is said. */
static void device_errors(struct show_usage *u, unsigned dev)
{
	struct super_errors errors;
	unsigned nr = 0;

	super_member_errors(u->super, dev, &errors);
	for (unsigned k = 0; k < SUPER_ERROR_KINDS; k++)
		if (errors.total[k])
			strbuf_printf(&u->out.text, "%s%" PRIu64 " %s", nr++ ? ", " : "  errors: ", errors.total[k],
				      error_kinds[k]);
	if (nr)
		strbuf_add_char(&u->out.text, '\n');
}

static void device_block(struct show_usage *u, unsigned dev)
{
	const struct member *m = &u->super->members[dev].m;
	const struct usage_dev *d = &u->usage.devs[dev];
	struct strbuf label = strbuf_growing(), name = strbuf_growing();

	add_label(&label, u->super, m);
	strbuf_printf(&label, " (device %u):", dev);
	if (super_member_online(u->super, dev))
		add_device_name(&name, u->super, dev);
	else
		strbuf_add(&name, "(device not found)");

	strbuf_add_char(&u->out.text, '\n');
	struct line l = line_begin(&u->out.text, strbuf_text(&label));
	line_right(l, COLUMN_DATA_END, strbuf_text(&name));
	line_right(l, COLUMN_BUCKETS_END, member_state_name(m->state));
	line_end(l);
	strbuf_free(&label);
	strbuf_free(&name);

	l = line_begin(&u->out.text, "");
	line_right(l, COLUMN_DATA_END, "data");
	line_right(l, COLUMN_BUCKETS_END, "buckets");
	line_right(l, COLUMN_FRAGMENTED_END, "fragmented");
	line_end(l);
	for (unsigned type = 0; d->is_known && type < DATA_NR; type++) {
		bool is_newer_type = type >= DATA_NR_1_4;
		char text[32], buf[24];

		if (is_newer_type && !d->types[type].buckets && !d->types[type].sectors)
			continue;
		snprintf(text, sizeof(text), "  %s:", type_name(type, buf));
		device_line(u, text, type_sectors(d, m, type), d->types[type].buckets,
			    type_is_buckets(type) ? 0 : d->types[type].fragmented);
	}
	device_line(u, "  capacity:", m->nbuckets * m->bucket_sectors, m->nbuckets, 0);
	device_errors(u, dev);
}

/* Order of the blocks: label, then name, then index. */
static int device_cmp(const void *pa, const void *pb, void *ctx)
{
	const struct super *s = ctx;
	const unsigned *a = pa, *b = pb;
	struct strbuf la = strbuf_growing(), lb = strbuf_growing();

	add_label(&la, s, &s->members[*a].m);
	add_label(&lb, s, &s->members[*b].m);
	int cmp = strcmp(strbuf_text(&la), strbuf_text(&lb));
	strbuf_free(&la);
	strbuf_free(&lb);
	if (!cmp)
		cmp = strcmp(s->members[*a].name, s->members[*b].name);
	return cmp ? cmp : *a < *b ? -1 : *a > *b;
}

static void device_blocks(struct show_usage *u)
{
	unsigned order[SB_MEMBERS_MAX], nr = 0;

	for (unsigned dev = 0; dev < u->super->member_nr; dev++)
		if (u->super->members[dev].m.exists)
			order[nr++] = dev;
	qsort_r(order, nr, sizeof(order[0]), device_cmp, (void *)u->super);
	for (unsigned i = 0; i < nr; i++)
		device_block(u, order[i]);
}

static void show_text(struct show_usage *u)
{
	struct strbuf *out = &u->out.text;

	strbuf_add(out, "Filesystem: ");
	strbuf_add_uuid(out, u->super->sb->user_uuid);
	strbuf_add_char(out, '\n');
	total_line(u, "Size:", u->usage.capacity_sectors);
	if (u->usage.is_known) {
		total_line(u, "Used:", u->usage.hidden_sectors + u->usage.used_sectors);
		total_line(u, "Online reserved:", 0);
		struct line l = line_begin(out, "Inodes:");
		char text[32];
		snprintf(text, sizeof(text), "%" PRIu64, u->usage.inodes);
		line_right(l, COLUMN_TOTAL_END, text);
		line_end(l);
		replicas_table(u);
	}
	device_blocks(u);
}

/* --- JSON --- */

static json_t *sectors_json(uint64_t sectors) { return raw_json_u64(sectors << SECTOR_SHIFT); }

static json_t *replicas_json(const struct show_usage *u)
{
	json_t *array = json_array();

	for (size_t i = 0; i < u->usage.replicas_nr; i++) {
		const struct usage_replicas *r = &u->usage.replicas[i];
		json_t *devices = json_array();
		char type[24];

		for (unsigned d = 0; d < r->nr_devs; d++)
			json_array_append_new(devices, json_integer(r->devs[d]));
		json_array_append_new(array, json_pack("{s:s, s:i, s:i, s:o, s:o}", "data_type",
						       type_name(r->data_type, type), "required", (int)r->nr_required,
						       "durability", (int)usage_row_durability(u->super, r), "devices",
						       devices, "bytes", sectors_json(r->sectors)));
	}
	return array;
}

static json_t *device_json(const struct show_usage *u, unsigned dev)
{
	const struct super_member *m = &u->super->members[dev];
	const struct usage_dev *d = &u->usage.devs[dev];
	struct strbuf label = strbuf_growing();
	json_t *types = json_object();
	struct super_errors errors;

	for (unsigned type = 0; d->is_known && type < DATA_NR; type++)
		json_object_set_new(types, data_type_name(type),
				    json_pack("{s:o, s:o, s:o}", "bytes", sectors_json(type_sectors(d, &m->m, type)),
					      "buckets", raw_json_u64(d->types[type].buckets), "fragmented",
					      sectors_json(d->types[type].fragmented)));
	add_label(&label, u->super, &m->m);
	json_t *j = json_pack("{s:i, s:o, s:o, s:s, s:i, s:o, s:o, s:o}", "device", (int)dev, "label",
			      m->m.group ? raw_json_text(&label) : json_null(), "path",
			      m->dev ? tool_json_bytes(m->name, strlen(m->name)) : json_null(), "state",
			      member_state_name(m->m.state), "durability", (int)m->m.durability, "bucket_bytes",
			      sectors_json(m->m.bucket_sectors), "buckets", raw_json_u64(m->m.nbuckets), "capacity",
			      sectors_json(m->m.nbuckets * m->m.bucket_sectors));
	json_t *counts = json_object();
	super_member_errors(u->super, dev, &errors);
	for (unsigned k = 0; k < SUPER_ERROR_KINDS; k++)
		json_object_set_new(counts, error_kinds[k], raw_json_u64(errors.total[k]));
	json_object_set_new(j, "errors", counts);
	if (d->is_known)
		json_object_set(j, "types", types);
	json_decref(types);
	strbuf_free(&label);
	return j;
}

static json_t *usage_json(const struct show_usage *u)
{
	json_t *devices = json_array();
	json_t *j = json_pack("{s:o, s:b, s:o}", "uuid", raw_json_uuid(u->super->sb->user_uuid), "is_known",
			      (int)u->usage.is_known, "capacity", sectors_json(u->usage.capacity_sectors));

	if (u->usage.is_known) {
		json_object_set_new(j, "used", sectors_json(u->usage.hidden_sectors + u->usage.used_sectors));
		json_object_set_new(j, "hidden", sectors_json(u->usage.hidden_sectors));
		json_object_set_new(j, "cached", sectors_json(u->usage.cached_sectors));
		json_object_set_new(j, "reserved", sectors_json(u->usage.reserved_sectors));
		json_object_set_new(j, "inodes", raw_json_u64(u->usage.inodes));
		json_object_set_new(j, "replicas", replicas_json(u));
	}
	for (unsigned dev = 0; dev < u->super->member_nr; dev++)
		if (u->super->members[dev].m.exists)
			json_array_append_new(devices, device_json(u, dev));
	json_object_set_new(j, "devices", devices);
	return j;
}

/* --- of what is open, here or elsewhere --- */

static int usage_count(struct show_usage *u, kiln_fs *fs)
{
	u->super = fs->super;
	return fs->is_writable ? allocator_usage(fs->allocator, &u->usage)
			       : usage_read(fs->super, fs->journal, fs->trees, &u->usage);
}

int usage_answer(kiln_fs *fs, const json_t *request, json_t *reply)
{
	struct show_usage u = { .out.text = strbuf_growing(),
				.is_human = json_is_true(json_object_get(request, "human")) };
	int err = usage_count(&u, fs);

	if (!err) {
		json_object_set_new(reply, "is_known", json_boolean(u.usage.is_known));
		if (json_is_true(json_object_get(request, "json"))) {
			json_object_set_new(reply, "usage", usage_json(&u));
		} else {
			show_text(&u);
			json_object_set_new(reply, "text", raw_json_text(&u.out.text));
		}
		usage_free(&u.usage);
	}
	strbuf_free(&u.out.text);
	return err;
}

static void warn_unknown(bool is_known)
{
	if (!is_known)
		tool_error("this filesystem has no counters that can be read: only sizes are shown");
}

/* Of a mounted one, as its server tells it. */
static int show_served(struct show_usage *u, pid_t server, bool is_json)
{
	json_t *request =
		json_pack("{s:s, s:b, s:b}", "command", "usage", "json", (int)is_json, "human", (int)u->is_human);
	json_t *reply = mount_control_request(server, request);
	bool is_told = json_is_true(json_object_get(reply, "ok"));

	if (is_told) {
		warn_unknown(json_is_true(json_object_get(reply, "is_known")));
		if (is_json) {
			raw_output_json(&u->out, json_incref(json_object_get(reply, "usage")), true);
		} else {
			strbuf_add(&u->out.text, json_string_value(json_object_get(reply, "text")));
			raw_output_flush(&u->out);
		}
	} else {
		const char *why = json_string_value(json_object_get(reply, "error"));

		tool_error("the server says: %s", why ? why : "nothing, it has ended meanwhile");
	}
	json_decref(reply);
	json_decref(request);
	return is_told ? TOOL_OK : TOOL_FAILED;
}

static int show_opened(struct show_usage *u, kiln_fs *fs, bool is_json)
{
	int err = usage_count(u, fs);

	if (err) {
		tool_error("can't read the counters: %s", error_name(err));
		return TOOL_FAILED;
	}
	warn_unknown(u->usage.is_known);
	if (is_json) {
		raw_output_json(&u->out, usage_json(u), true);
	} else {
		show_text(u);
		raw_output_flush(&u->out);
	}
	usage_free(&u->usage);
	return TOOL_OK;
}

/* --- the command --- */

static int usage_run(const struct command *self, int argc, char **argv)
{
	static const struct option options[] = { TOOL_OPEN_OPTIONS,
						 { "json", no_argument, NULL, TOOL_OPT_JSON },
						 { "human", no_argument, NULL, 'h' },
						 { "human-readable", no_argument, NULL, 'h' },
						 { 0 } };
	struct tool_open open = tool_open_defaults();
	struct show_usage u = { 0 };
	int c, status;

	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (tool_open_option(self, c, &open, &status) < 0)
			return status;
		u.is_human |= c == 'h';
	}
	if (argc - optind != 1)
		return raw_usage_fs(self);

	raw_output_begin(&u.out);
	pid_t server;
	switch (open.flags & KILN_OPEN_FORCE ? MOUNT_CONTROL_NONE : mount_control_find(argv[optind], &server)) {
	case MOUNT_CONTROL_STUCK: return raw_output_end(&u.out, TOOL_FAILED);
	case MOUNT_CONTROL_FOUND: return raw_output_end(&u.out, show_served(&u, server, open.is_json));
	case MOUNT_CONTROL_NONE: break;
	}
	kiln_fs *fs = tool_open_fs(&open, argv[optind], FS_BTREES);
	if (!fs)
		return raw_output_end(&u.out, TOOL_FAILED);
	status = show_opened(&u, fs, open.is_json);
	return tool_close_fs(fs, raw_output_end(&u.out, status));
}

const struct command command_usage = {
	.name = "usage",
	.summary = "show how space is used",
	.usage = usage,
	.run = usage_run,
};
