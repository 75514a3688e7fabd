/*
 * Superblocks as text, laid out as upstream's show-super does it (11 §3): names padded to a column, then the value.
 *
 * Times are UTC. Sections come in their order on disk, each by its function in the table at the end.
 */
#include <inttypes.h>
#include <time.h>

#include "base/strbuf.h"
#include "base/util.h"
#include "format/alloc.h"
#include "format/btrees.h"
#include "format/counter_ids.h"
#include "format/error_ids.h"
#include "format/jset.h"
#include "format/options.h"
#include "format/pass_ids.h"
#include "format/sb_sections.h"

enum { COLUMN = 44, COLUMN_NARROW = 27, COLUMN_DATE = 60, COLUMN_CLEAN = 16, COLUMN_CRYPT = 19 };

/* --- pieces --- */

/* Blanks up to @column of the current line, one at least. */
static void pad_to(struct strbuf *out, size_t line_start, unsigned column)
{
	do
		strbuf_add_char(out, ' ');
	while (out->len > line_start && out->len < line_start + column && !out->truncated);
}

static void name_add(struct strbuf *out, const char *name, unsigned column)
{
	size_t start = out->len;

	strbuf_add(out, name);
	pad_to(out, start, column);
}

static void field_u64(struct strbuf *out, const char *name, uint64_t value)
{
	name_add(out, name, COLUMN);
	strbuf_printf(out, "%" PRIu64 "\n", value);
}

static void field_size(struct strbuf *out, const char *name, uint64_t bytes)
{
	name_add(out, name, COLUMN);
	strbuf_add_size(out, bytes);
	strbuf_add_char(out, '\n');
}

static void field_uuid(struct strbuf *out, const char *name, const uint8_t uuid[16])
{
	name_add(out, name, COLUMN);
	strbuf_add_uuid(out, uuid);
	strbuf_add_char(out, '\n');
}

static void field_bytes(struct strbuf *out, const char *name, const void *text, size_t size)
{
	name_add(out, name, COLUMN);
	strbuf_add_escaped(out, text, strnlen(text, size));
	strbuf_add_char(out, '\n');
}

static void field_version(struct strbuf *out, const char *name, unsigned version)
{
	name_add(out, name, COLUMN);
	version_to_text(out, version);
	strbuf_add_char(out, '\n');
}

/* "Fri Nov 20 18:38:48 2026". Names are ours: strftime()'s would follow the program's locale. */
static void time_add(struct strbuf *out, uint64_t seconds)
{
	static const char days[][4] = { "Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat" };
	static const char months[][4] = { "Jan", "Feb", "Mar", "Apr", "May", "Jun",
					  "Jul", "Aug", "Sep", "Oct", "Nov", "Dec" };
	enum { SECONDS_MAX_BITS = 40 }; /* the year 36812; more would overflow struct tm sooner or later */
	time_t t = (time_t)seconds;
	struct tm tm;

	if (seconds >> SECONDS_MAX_BITS || !gmtime_r(&t, &tm))
		strbuf_printf(out, "%" PRIu64 " s", seconds);
	else
		strbuf_printf(out, "%s %s %2d %02d:%02d:%02d %d", days[tm.tm_wday], months[tm.tm_mon], tm.tm_mday,
			      tm.tm_hour, tm.tm_min, tm.tm_sec, tm.tm_year + 1900);
}

static void field_time(struct strbuf *out, const char *name, uint64_t seconds)
{
	name_add(out, name, COLUMN);
	time_add(out, seconds);
	strbuf_add_char(out, '\n');
}

/* A list "a,b,c". */
static void list_add(struct strbuf *out, bool *is_first, const char *name, unsigned number)
{
	if (!*is_first)
		strbuf_add_char(out, ',');
	*is_first = false;
	if (name)
		strbuf_add(out, name);
	else
		strbuf_printf(out, "%u", number);
}

/* The bits of @words, by name where they have one. */
static void field_bits(struct strbuf *out, const char *name, const uint64_t *words, unsigned word_nr,
		       const char *(*bit_name)(unsigned bit))
{
	bool is_first = true;

	name_add(out, name, COLUMN);
	for (unsigned bit = 0; bit < word_nr * 64; bit++)
		if (words[bit / 64] >> bit % 64 & 1)
			list_add(out, &is_first, bit_name(bit), bit);
	strbuf_add_char(out, '\n');
}

/* All words, the one chosen in brackets. */
static void words_add(struct strbuf *out, const char *const *words, uint64_t value)
{
	unsigned nr = 0;

	for (; words[nr]; nr++)
		strbuf_printf(out, nr == value ? "[%s] " : "%s ", words[nr]);
	if (value >= nr)
		strbuf_printf(out, "[%" PRIu64 "] ", value);
}

void version_to_text(struct strbuf *out, unsigned version)
{
	const char *name = version_name(version);

	strbuf_printf(out, "%u.%u: %s", VERSION_MAJOR(version), VERSION_MINOR(version),
		      name ? name : "(unknown version)");
}

/* --- header and options --- */

static void sections_list(struct strbuf *out, const struct sb_disk *sb)
{
	bool is_first = true;

	name_add(out, "Sections:", COLUMN);
	for (unsigned type = 0; type < SB_SECTION_NR_KNOWN; type++)
		if (sb_section(sb, type))
			list_add(out, &is_first, sb_section_name(type), type);
	for (const struct sb_section_disk *s = NULL; (s = sb_section_next(sb, s));)
		if (le32_get(s->type) >= SB_SECTION_NR_KNOWN)
			list_add(out, &is_first, NULL, le32_get(s->type));
	strbuf_add_char(out, '\n');
}

static void header_to_text(struct strbuf *out, const struct sb_disk *sb)
{
	uint64_t features[] = { le64_get(sb->features[0]), le64_get(sb->features[1]) };
	uint64_t compat[] = { le64_get(sb->compat[0]), le64_get(sb->compat[1]) };

	field_uuid(out, "External UUID:", sb->user_uuid);
	field_uuid(out, "Internal UUID:", sb->uuid);
	field_uuid(out, "Magic number:", sb->magic);
	field_u64(out, "Device index:", sb->dev_idx);
	field_bytes(out, "Label:", sb->label, sizeof(sb->label));
	field_version(out, "Version:", le16_get(sb->version));
	if (sb_has_feature(sb, SB_FEATURE_INCOMPAT_VERSION_FIELD)) {
		field_version(out, "Incompatible features allowed:", SB_VERSION_INCOMPAT_ALLOWED(sb));
		field_version(out, "Incompatible features in use:", SB_VERSION_INCOMPAT(sb));
	}
	field_version(out, "Version upgrade complete:", (unsigned)sb_flag(sb, 5, 0, 16));
	field_version(out, "Oldest version on disk:", le16_get(sb->version_min));
	field_time(out, "Created:", le64_get(sb->time_base_lo) / 1000000000);
	field_u64(out, "Sequence number:", le64_get(sb->seq));
	field_time(out, "Time of last write:", le64_get(sb->write_time));
	field_u64(out, "Superblock size:", sb_bytes(sb));
	field_u64(out, "Clean:", SB_CLEAN_FLAG(sb));
	field_u64(out, "Devices:", sb->nr_devices);
	sections_list(out, sb);
	field_bits(out, "Features:", features, ARRAY_NR(features), sb_feature_name);
	field_bits(out, "Compat features:", compat, ARRAY_NR(compat), sb_compat_name);
}

static void option_name_add(struct strbuf *out, const char *name)
{
	size_t start = out->len;

	strbuf_printf(out, "  %s:", name);
	pad_to(out, start, COLUMN);
}

/* Values of "errors" are others in images of this version; when exactly they changed (after 1.7) no image tells. */
enum { VERSION_ERRORS_RENUMBERED = VERSION(1, 13) };

static void option_field(struct strbuf *out, const struct sb_disk *sb, enum option_id id)
{
	static const char *const words_errors_newer[] = { "continue", "fix_safe", "panic", "ro", NULL };
	const struct option_def *o = &option_table[id];
	bool in_range;
	uint64_t value = option_from_sb(id, sb, &in_range);

	option_name_add(out, o->name);
	if (id == OPT_ERRORS && le16_get(sb->version) >= VERSION_ERRORS_RENUMBERED)
		words_add(out, words_errors_newer, sb_flag(sb, 0, 8, 12));
	else if (o->type == OPTION_STR)
		words_add(out, o->words, value);
	else
		option_to_text(out, id, value, sb);
	strbuf_add(out, in_range ? "\n" : " (stored value out of range)\n");
}

/* What newer versions keep in the flag words. Kiln only shows it. */
static const char *const words_degraded[] = { "ask", "yes", "very", "no", NULL };
static const char *const words_scrub_journal[] = { "unclean", "no", "always", NULL };
static const struct {
	const char *name;
	uint16_t since;
	uint8_t word, lo, hi;
	const char *const *words;
} newer_fields[] = {
	{ "promote_whole_extents", VERSION(1, 11), 0, 63, 64, NULL },
	{ "allocator_stuck_timeout", VERSION(1, 11), 5, 16, 32, NULL },
	{ "shard_inode_numbers_bits", VERSION(1, 18), 6, 0, 4, NULL },
	{ "write_error_timeout", VERSION(1, 25), 6, 4, 14, NULL },
	{ "checksum_err_retry_nr", VERSION(1, 25), 6, 14, 20, NULL },
	{ "degraded", VERSION(1, 28), 6, 20, 22, words_degraded },
	{ "casefold", VERSION(1, 28), 6, 22, 23, NULL },
	{ "rebalance_on_ac_only", VERSION(1, 28), 6, 23, 24, NULL },
	{ "multi_device", VERSION(1, 28), 3, 63, 64, NULL },
	{ "writeback_timeout", VERSION(1, 33), 6, 24, 40, NULL },
	{ "extent_bp_shift", VERSION(1, 35), 6, 40, 48, NULL },
	{ "scrub_recent_journal_entries", VERSION(1, 37), 6, 48, 50, words_scrub_journal },
	{ "ec_max_data_blocks", VERSION(1, 38), 6, 50, 58, NULL },
	{ "move_writes_fua", VERSION(1, 38), 6, 58, 59, NULL },
	{ "dirents_sanitized", VERSION(1, 39), 6, 59, 60, NULL },
};

static void options_to_text(struct strbuf *out, const struct sb_disk *sb)
{
	strbuf_add(out, "\nOptions:\n");
	for (unsigned id = 0; id < OPT_NR; id++)
		if (option_is_stored(id))
			option_field(out, sb, id);

	for (unsigned i = 0; i < ARRAY_NR(newer_fields); i++) {
		if (le16_get(sb->version) < newer_fields[i].since)
			continue;

		uint64_t value = sb_flag(sb, newer_fields[i].word, newer_fields[i].lo, newer_fields[i].hi);
		option_name_add(out, newer_fields[i].name);
		if (newer_fields[i].words)
			words_add(out, newer_fields[i].words, value);
		else
			strbuf_printf(out, "%" PRIu64, value);
		strbuf_add_char(out, '\n');
	}
}

static void layout_to_text(struct strbuf *out, const struct sb_layout_disk *l)
{
	strbuf_add(out, "\nlayout:\n");
	name_add(out, "  Type:", COLUMN_NARROW);
	strbuf_printf(out, "%u\n", l->layout_type);
	name_add(out, "  Superblock max size:", COLUMN_NARROW);
	strbuf_add_size(out, (uint64_t)SECTOR_BYTES << min(l->sb_max_size_bits, (uint8_t)SB_SIZE_BITS_MAX));
	strbuf_add_char(out, '\n');
	name_add(out, "  Nr superblocks:", COLUMN_NARROW);
	strbuf_printf(out, "%u\n", l->nr_superblocks);
	name_add(out, "  Offsets:", COLUMN_NARROW);
	for (unsigned i = 0; i < min((unsigned)l->nr_superblocks, (unsigned)SB_LAYOUT_COPIES_MAX); i++)
		strbuf_printf(out, "%s%" PRIu64, i ? ", " : "", le64_get(l->sb_offset[i]));
	strbuf_add_char(out, '\n');
}

/* --- members --- */

static void data_types_field(struct strbuf *out, const char *name, uint64_t types)
{
	bool is_first = true;

	name_add(out, name, COLUMN);
	for (unsigned type = 0; type < 64; type++)
		if (types >> type & 1)
			list_add(out, &is_first, type < DATA_NR ? data_type_name(type) : NULL, type);
	strbuf_add(out, is_first ? "(none)\n" : "\n");
}

/* Data types that the replicas entries say a device has. */
static uint64_t member_data_types(const struct sb_disk *sb, unsigned idx)
{
	struct replicas_walk w = sb_replicas_walk(sb);
	struct replicas_entry e;
	uint64_t types = 0;

	while (sb_replicas_next(&w, &e, NULL) > 0)
		for (unsigned i = 0; i < e.nr_devs; i++)
			if (e.devs[i] == idx)
				types |= 1ull << e.data_type;
	return types;
}

static void member_label_field(struct strbuf *out, const struct sb_disk *sb, const struct member *m)
{
	name_add(out, "  Label:", COLUMN);
	if (!m->group) {
		strbuf_add(out, "(none)\n");
	} else if (m->group <= sb_disk_group_nr(sb)) {
		sb_disk_group_path(out, sb, m->group - 1u);
		strbuf_printf(out, " (%u)\n", m->group - 1);
	} else {
		strbuf_printf(out, "(bad group %u)\n", m->group - 1);
	}
}

static void member_newer_fields(struct strbuf *out, const struct sb_disk *sb, const struct member *m)
{
	if (le16_get(sb->version) >= VERSION(1, 33))
		field_u64(out, "  Rotational:", m->is_rotational);
	if (le16_get(sb->version) >= VERSION(1, 7)) {
		name_add(out, "  Btree allocated bitmap blocksize:", COLUMN);
		if (m->btree_bitmap_shift < 64 - SECTOR_SHIFT)
			strbuf_add_size(out, 1ull << (m->btree_bitmap_shift + SECTOR_SHIFT));
		else
			strbuf_printf(out, "(invalid shift %u)", m->btree_bitmap_shift);
		strbuf_add_char(out, '\n');
		name_add(out, "  Btree allocated bitmap:", COLUMN);
		for (unsigned i = 64; i--;)
			strbuf_add_char(out, m->btree_allocated_bitmap >> i & 1 ? '1' : '0');
		strbuf_add_char(out, '\n');
	}
}

static void member_device_fields(struct strbuf *out, const struct sb_disk *sb, const struct member *m)
{
	if (le16_get(sb->version) >= VERSION(1, 28))
		field_u64(out, "  Resize on mount:", m->is_resized_on_mount);
	if (le16_get(sb->version) >= VERSION(1, 33)) {
		field_bytes(out, "  Last device name:", m->device_name, sizeof(m->device_name));
		field_bytes(out, "  Last device model:", m->device_model, sizeof(m->device_model));
	}
	if (le16_get(sb->version) >= VERSION(1, 37))
		field_bytes(out, "  Last device serial:", m->device_serial, sizeof(m->device_serial));
	if (m->failure_domain[0])
		field_bytes(out, "  Failure domain:", m->failure_domain, sizeof(m->failure_domain));
}

static void member_to_text(struct strbuf *out, const struct sb_disk *sb, unsigned idx, const struct member *m)
{
	static const char *const error_names[] = { "  read errors:", "  write errors:", "  checksum errors:" };
	static const char *const iops_names[] = { "  seqread iops:", "  seqwrite iops:", "  randread iops:",
						  "  randwrite iops:" };

	field_u64(out, "Device:", idx);
	member_label_field(out, sb, m);
	field_uuid(out, "  UUID:", m->uuid);
	field_size(out, "  Size:", m->nbuckets * m->bucket_sectors * SECTOR_BYTES);
	for (unsigned i = 0; i < ARRAY_NR(error_names); i++)
		field_u64(out, error_names[i], m->errors[i] - m->errors_at_reset[i]);
	for (unsigned i = 0; i < ARRAY_NR(iops_names); i++)
		field_u64(out, iops_names[i], m->iops[i]);
	field_size(out, "  Bucket size:", (uint64_t)m->bucket_sectors * SECTOR_BYTES);
	field_u64(out, "  First bucket:", m->first_bucket);
	field_u64(out, "  Buckets:", m->nbuckets);
	name_add(out, "  Last mount:", COLUMN);
	if (m->last_mount)
		time_add(out, m->last_mount);
	else
		strbuf_add(out, "(never)");
	strbuf_add_char(out, '\n');
	field_u64(out, "  Last superblock write:", m->seq);
	name_add(out, "  State:", COLUMN);
	strbuf_printf(out, "%s\n", member_state_name(m->state));
	data_types_field(out, "  Data allowed:", m->data_allowed);
	data_types_field(out, "  Has data:", member_data_types(sb, idx));
	member_newer_fields(out, sb, m);
	field_u64(out, "  Durability:", m->durability);
	field_u64(out, "  Discard:", m->has_discard);
	field_u64(out, "  Freespace initialized:", m->is_freespace_initialized);
	member_device_fields(out, sb, m);
}

static void members_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	for (unsigned i = 0; i < sb_members_section_nr(sb, s); i++) {
		struct member m;

		sb_members_section_get(sb, s, i, &m);
		if (m.exists)
			member_to_text(out, sb, i, &m);
		else if (m.is_deleted)
			strbuf_printf(out, "Device %u: removed\n", i);
	}
}

/* --- other sections --- */

static void journal_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	bool is_v2 = le32_get(s->type) == SB_JOURNAL_V2;
	size_t size = is_v2 ? sizeof(struct sb_journal_range_disk) : sizeof(le64);

	strbuf_add(out, "Buckets: ");
	for (size_t i = 0; i < sb_section_payload_bytes(s) / size; i++) {
		uint64_t start = le64_load(sb_section_payload(s) + i * size);

		strbuf_printf(out, " %" PRIu64, start);
		if (is_v2)
			strbuf_printf(out, "-%" PRIu64, start + le64_load(sb_section_payload(s) + i * size + 8));
	}
	strbuf_add_char(out, '\n');
}

static void crypt_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	struct sb_crypt c;

	if (!sb_crypt(sb, &c))
		return;
	name_add(out, "KDF:", COLUMN_CRYPT);
	strbuf_printf(out, "%u\n", c.kdf_type);
	name_add(out, "scrypt n:", COLUMN_CRYPT);
	strbuf_printf(out, "%u\n", c.scrypt_log2_n);
	name_add(out, "scrypt r:", COLUMN_CRYPT);
	strbuf_printf(out, "%u\n", c.scrypt_log2_r);
	name_add(out, "scrypt p:", COLUMN_CRYPT);
	strbuf_printf(out, "%u\n", c.scrypt_log2_p);
}

static void replicas_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	struct replicas_walk w = sb_replicas_section_walk(s);
	struct replicas_entry e;
	const char *gap = "";

	for (; sb_replicas_next_raw(&w, &e, NULL) > 0; gap = " ") {
		if (e.data_type < DATA_NR)
			strbuf_printf(out, "%s%s: ", gap, data_type_name(e.data_type));
		else
			strbuf_printf(out, "%stype %u: ", gap, e.data_type);
		if (w.is_v0)
			strbuf_printf(out, "%u [", e.nr_devs);
		else
			strbuf_printf(out, "%u/%u [", e.nr_required, e.nr_devs);
		for (unsigned i = 0; i < e.nr_devs; i++)
			strbuf_printf(out, i ? " %u" : "%u", e.devs[i]);
		strbuf_add_char(out, ']');
	}
	strbuf_add_char(out, '\n');
}

static void quota_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	static const char *const types[] = { "user", "group", "project" }, *const counters[] = { "space", "inodes" };
	struct sb_quota q;

	if (!sb_quota(sb, &q))
		return;
	for (unsigned type = 0; type < ARRAY_NR(types); type++)
		for (unsigned i = 0; i < ARRAY_NR(counters); i++)
			strbuf_printf(out, "%s %s: timelimit %u warnlimit %u\n", types[type], counters[i],
				      q.timelimit_seconds[type][i], q.warnlimit[type][i]);
}

static void disk_groups_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	for (unsigned i = 0; i < sb_disk_group_nr(sb); i++) {
		struct disk_group g;

		sb_disk_group(sb, i, &g);
		strbuf_add(out, i ? " " : "");
		if (g.is_deleted) {
			strbuf_add(out, "[deleted]");
			continue;
		}
		strbuf_printf(out, "[parent %u name ", g.parent);
		strbuf_add_escaped(out, g.label, strnlen((char *)g.label, sizeof(g.label)));
		strbuf_add_char(out, ']');
	}
	strbuf_add_char(out, '\n');
}

static void clean_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	const struct sb_clean_disk *d = (const struct sb_clean_disk *)s;
	const struct jset_entry_disk *entry;
	struct member_geometry members[SB_MEMBERS_MAX];
	struct key_context ctx;
	struct jset_walk w;
	uint64_t journal_seq;

	if (!sb_clean(sb, &journal_seq, &w.pos, &w.end))
		return;
	name_add(out, "flags:", COLUMN_CLEAN);
	strbuf_printf(out, "%u\n", le32_get(d->flags));
	name_add(out, "journal_seq:", COLUMN_CLEAN);
	strbuf_printf(out, "%" PRIu64 "\n", journal_seq);

	sb_key_context(sb, SB_ENCRYPTION_TYPE(sb) != 0, &ctx);
	sb_member_geometry(sb, members);
	ctx.members = members;
	ctx.member_nr = sb->nr_devices;
	while (jset_walk_next(&w, &entry, NULL) > 0) {
		if (!le16_get(entry->u64s))
			continue; /* padding */
		jset_entry_to_text(out, entry, &ctx);
		if (out->len && out->text[out->len - 1] != '\n')
			strbuf_add_char(out, '\n');
	}
}

static void blacklist_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	for (unsigned i = 0; i < sb_blacklist_nr(sb); i++) {
		uint64_t start, end;

		sb_blacklist_range(sb, i, &start, &end);
		strbuf_printf(out, "%s%" PRIu64 "-%" PRIu64, i ? " " : "", start, end);
	}
	strbuf_add_char(out, '\n');
}

static void counters_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	const struct sb_counters_disk *d = (const struct sb_counters_disk *)s;

	for (unsigned i = 0; i < sb_counter_nr(sb); i++) {
		const char *name = counter_name(i, le16_get(sb->version));
		char number[32];
		struct strbuf text = strbuf_fixed(number, sizeof(number));

		strbuf_printf(&text, "counter %u", i);
		field_u64(out, name ? name : number, le64_get(d->counters[i]));
	}
}

static void errors_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	unsigned type = le32_get(s->type);

	for (unsigned i = 0; i < sb_error_nr(sb, type); i++) {
		struct sb_error e;
		size_t start = out->len;

		sb_error(sb, type, i, &e);
		if (error_id_name(e.id))
			strbuf_add(out, error_id_name(e.id));
		else
			strbuf_printf(out, "error %u", e.id);
		pad_to(out, start, COLUMN);
		strbuf_printf(out, "%" PRIu64, e.count);
		pad_to(out, start, COLUMN_DATE);
		time_add(out, e.last_time);
		strbuf_add_char(out, '\n');
	}
}

static void ext_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	struct sb_ext e;

	sb_ext(sb, &e);
	field_bits(out, "Recovery passes required:", e.passes_required, ARRAY_NR(e.passes_required), pass_name);
	field_bits(out, "Errors to silently fix:", e.errors_silent, ARRAY_NR(e.errors_silent), error_id_name);
	if (sb_section_bytes(s) > offsetof(struct sb_ext_disk, btrees_lost_data))
		field_bits(out, "Btrees with missing data:", &e.btrees_lost_data, 1, btree_name);
	if (sb_section_bytes(s) > offsetof(struct sb_ext_disk, btrees_lost_data_ever)) {
		field_bits(out, "Btrees that have ever lost data:", &e.btrees_lost_data_ever, 1, btree_name);
		field_bits(out, "Btrees validated clean:", &e.btrees_clean, 1, btree_name);
	}
}

static void downgrade_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	struct sb_downgrade_walk w = sb_downgrade_walk(sb);
	struct sb_downgrade d;

	while (sb_downgrade_next(&w, &d, NULL) > 0) {
		bool is_first = true;

		field_version(out, "version:", d.version);
		field_bits(out, "recovery passes:", d.passes, ARRAY_NR(d.passes), pass_name);
		name_add(out, "errors:", COLUMN);
		for (unsigned i = 0; i < d.error_nr; i++) {
			unsigned id = le16_load(d.errors + i * sizeof(le16));

			list_add(out, &is_first, error_id_name(id), id);
		}
		strbuf_add_char(out, '\n');
	}
}

static void recovery_passes_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	size_t start = out->len;

	name_add(out, "Pass", COLUMN);
	strbuf_add(out, "Last run");
	pad_to(out, start, COLUMN + 26);
	strbuf_add(out, "Last runtime\n");
	for (unsigned id = 0; id < sb_recovery_pass_nr(sb); id++) {
		struct sb_recovery_pass p;

		sb_recovery_pass(sb, id, &p);
		if (!p.last_run)
			continue;
		start = out->len;
		if (pass_name(id))
			strbuf_add(out, pass_name(id));
		else
			strbuf_printf(out, "pass %u", id);
		pad_to(out, start, COLUMN);
		time_add(out, p.last_run);
		pad_to(out, start, COLUMN + 26);
		strbuf_printf(out, "%u%s\n", p.last_runtime, p.is_not_ratelimited ? " (no ratelimit)" : "");
	}
}

static void extent_type_u64s_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	static const char *const names[] = { "ptr",	     "crc32", "crc64",	   "crc128",	  "stripe_ptr",
					     "rebalance_v1", "flags", "reconcile", "reconcile_bp" };
	const uint8_t *sizes = sb_section_payload(s);

	for (unsigned i = 0; i < sb_section_payload_bytes(s) && sizes[i]; i++) {
		size_t start = out->len;

		if (i < ARRAY_NR(names))
			strbuf_printf(out, "%s:", names[i]);
		else
			strbuf_printf(out, "type %u:", i);
		pad_to(out, start, COLUMN);
		strbuf_printf(out, "%u\n", sizes[i]);
	}
}

static void (*const section_printers[SB_SECTION_NR_KNOWN])(struct strbuf *out, const struct sb_disk *sb,
							   const struct sb_section_disk *s) = {
	[SB_JOURNAL] = journal_to_text,
	[SB_MEMBERS_V1] = members_to_text,
	[SB_CRYPT] = crypt_to_text,
	[SB_REPLICAS_V0] = replicas_to_text,
	[SB_QUOTA] = quota_to_text,
	[SB_DISK_GROUPS] = disk_groups_to_text,
	[SB_CLEAN] = clean_to_text,
	[SB_REPLICAS] = replicas_to_text,
	[SB_JOURNAL_SEQ_BLACKLIST] = blacklist_to_text,
	[SB_JOURNAL_V2] = journal_to_text,
	[SB_COUNTERS] = counters_to_text,
	[SB_MEMBERS_V2] = members_to_text,
	[SB_ERRORS] = errors_to_text,
	[SB_EXT] = ext_to_text,
	[SB_DOWNGRADE] = downgrade_to_text,
	[SB_RECOVERY_PASSES] = recovery_passes_to_text,
	[SB_EXTENT_TYPE_U64S] = extent_type_u64s_to_text,
	[SB_ERRORS_V2] = errors_to_text,
};

void sb_section_to_text(struct strbuf *out, const struct sb_disk *sb, const struct sb_section_disk *s)
{
	uint32_t type = le32_get(s->type);

	if (type >= SB_SECTION_NR_KNOWN)
		strbuf_printf(out, "(unknown section, %zu bytes)\n", sb_section_bytes(s));
	else if (s != sb_section(sb, type))
		strbuf_add(out, "(ignored: not the first section of this type)\n");
	else
		section_printers[type](out, sb, s);
}

/* --- all of it --- */

void sb_to_text(struct strbuf *out, const struct sb_disk *sb, bool with_layout, uint32_t sections)
{
	header_to_text(out, sb);
	options_to_text(out, sb);
	if (with_layout)
		layout_to_text(out, &sb->layout);

	for (const struct sb_section_disk *s = NULL; (s = sb_section_next(sb, s));) {
		uint32_t type = le32_get(s->type);
		const char *name = sb_section_name(type);

		/* Unknown types have no bit of their own: they belong to "all". */
		if (type < SB_SECTION_NR_KNOWN ? !(sections >> type & 1) : sections != UINT32_MAX)
			continue;
		if (name)
			strbuf_printf(out, "\n%s (size %zu):\n", name, sb_section_bytes(s));
		else
			strbuf_printf(out, "\nsection %u (size %zu):\n", type, sb_section_bytes(s));
		sb_section_to_text(out, sb, s);
	}
}
