/*
 * Superblocks as JSON. See super_json.h.
 *
 * One function per section in a table, as the text form has it; what a section holds is decoded by the accessors of
 * format/superblock.h. Names and numbers both appear where programs may want either.
 */
#include "tool/super_json.h"

#include <string.h>

#include "format/alloc.h"
#include "format/btrees.h"
#include "format/counter_ids.h"
#include "format/error_ids.h"
#include "format/jset.h"
#include "format/options.h"
#include "format/pass_ids.h"
#include "format/sb_sections.h"
#include "tool/raw_text.h"

/* --- pieces --- */

static json_t *version_json(unsigned version)
{
	return json_sprintf("%u.%u", VERSION_MAJOR(version), VERSION_MINOR(version));
}

/* A field of fixed size, terminated or full. */
static json_t *bytes_json(const void *bytes, size_t size) { return tool_json_bytes(bytes, strnlen(bytes, size)); }

static json_t *name_json(const char *name, unsigned number) { return name ? json_string(name) : json_integer(number); }

/* Names, or numbers where there are none, of the bits set. */
static json_t *bits_json(const uint64_t *words, unsigned word_nr, const char *(*bit_name)(unsigned bit))
{
	json_t *array = json_array();

	for (unsigned bit = 0; bit < word_nr * 64; bit++)
		if (words[bit / 64] >> bit % 64 & 1)
			json_array_append_new(array, name_json(bit_name(bit), bit));
	return array;
}

static const char *data_type_bit_name(unsigned type) { return type < DATA_NR ? data_type_name(type) : NULL; }

static json_t *devices_json(const uint8_t *devs, unsigned nr)
{
	json_t *array = json_array();

	for (unsigned i = 0; i < nr; i++)
		json_array_append_new(array, json_integer(devs[i]));
	return array;
}

static void set_u64(json_t *j, const char *name, uint64_t value) { json_object_set_new(j, name, raw_json_u64(value)); }

/* --- sections --- */

static json_t *member_json(const struct sb_disk *sb, unsigned idx, const struct member *m)
{
	static const char *const error_names[] = { "read_errors", "write_errors", "checksum_errors" };
	static const char *const iops_names[] = { "seqread_iops", "seqwrite_iops", "randread_iops", "randwrite_iops" };
	struct strbuf path = strbuf_growing();
	uint64_t data_allowed = m->data_allowed;

	if (m->group && m->group <= sb_disk_group_nr(sb))
		sb_disk_group_path(&path, sb, m->group - 1u);
	json_t *j =
		json_pack("{s:i, s:o, s:o, s:o, s:s, s:o, s:i, s:b, s:b, s:b}", "device_index", (int)idx, "uuid",
			  raw_json_uuid(m->uuid), "label", m->group ? raw_json_text(&path) : json_null(),
			  "bucket_bytes", raw_json_u64((uint64_t)m->bucket_sectors << SECTOR_SHIFT), "state",
			  member_state_name(m->state), "data_allowed", bits_json(&data_allowed, 1, data_type_bit_name),
			  "durability", (int)m->durability, "discard", (int)m->has_discard, "freespace_initialized",
			  (int)m->is_freespace_initialized, "rotational", (int)m->is_rotational);
	strbuf_free(&path);

	set_u64(j, "buckets", m->nbuckets);
	set_u64(j, "first_bucket", m->first_bucket);
	set_u64(j, "bytes", m->nbuckets * m->bucket_sectors * SECTOR_BYTES);
	set_u64(j, "last_mount", m->last_mount);
	set_u64(j, "seq", m->seq);
	for (unsigned i = 0; i < ARRAY_NR(error_names); i++)
		set_u64(j, error_names[i], m->errors[i] - m->errors_at_reset[i]);
	for (unsigned i = 0; i < ARRAY_NR(iops_names); i++)
		set_u64(j, iops_names[i], m->iops[i]);
	if (m->btree_allocated_bitmap) {
		json_object_set_new(j, "btree_bitmap_shift", json_integer(m->btree_bitmap_shift));
		json_object_set_new(j, "btree_allocated_bitmap",
				    json_sprintf("0x%llx", (unsigned long long)m->btree_allocated_bitmap));
	}
	if (m->device_name[0])
		json_object_set_new(j, "device_name", bytes_json(m->device_name, sizeof(m->device_name)));
	if (m->device_model[0])
		json_object_set_new(j, "device_model", bytes_json(m->device_model, sizeof(m->device_model)));
	if (m->device_serial[0])
		json_object_set_new(j, "device_serial", bytes_json(m->device_serial, sizeof(m->device_serial)));
	if (m->failure_domain[0])
		json_object_set_new(j, "failure_domain", bytes_json(m->failure_domain, sizeof(m->failure_domain)));
	return j;
}

static json_t *members_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	json_t *array = json_array();

	for (unsigned i = 0; i < sb_members_section_nr(sb, s); i++) {
		struct member m;

		sb_members_section_get(sb, s, i, &m);
		if (m.exists)
			json_array_append_new(array, member_json(sb, i, &m));
		else if (m.is_deleted)
			json_array_append_new(array, json_pack("{s:i, s:b}", "device_index", (int)i, "removed", 1));
	}
	return array;
}

static json_t *journal_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	bool is_v2 = le32_get(s->type) == SB_JOURNAL_V2;
	size_t size = is_v2 ? sizeof(struct sb_journal_range_disk) : sizeof(le64);
	json_t *array = json_array();

	for (size_t i = 0; i < sb_section_payload_bytes(s) / size; i++) {
		const uint8_t *p = sb_section_payload(s) + i * size;

		json_array_append_new(array, json_pack("{s:o, s:o}", "first_bucket", raw_json_u64(le64_load(p)),
						       "buckets", raw_json_u64(is_v2 ? le64_load(p + 8) : 1)));
	}
	return array;
}

static json_t *crypt_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	struct sb_crypt c;

	if (!sb_crypt(sb, &c))
		return json_null();
	return json_pack("{s:I, s:I, s:I, s:I, s:b}", "kdf", (json_int_t)c.kdf_type, "scrypt_log2_n",
			 (json_int_t)c.scrypt_log2_n, "scrypt_log2_r", (json_int_t)c.scrypt_log2_r, "scrypt_log2_p",
			 (json_int_t)c.scrypt_log2_p, "has_passphrase", (int)c.is_sealed);
}

static json_t *replicas_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	struct replicas_walk w = sb_replicas_section_walk(s);
	struct replicas_entry e;
	json_t *array = json_array();

	while (sb_replicas_next_raw(&w, &e, NULL) > 0) {
		json_t *j =
			json_pack("{s:o, s:o}", "data_type", name_json(data_type_bit_name(e.data_type), e.data_type),
				  "devices", devices_json(e.devs, e.nr_devs));
		if (!w.is_v0)
			json_object_set_new(j, "required", json_integer(e.nr_required));
		json_array_append_new(array, j);
	}
	return array;
}

static json_t *quota_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	static const char *const types[] = { "user", "group", "project" }, *const counters[] = { "space", "inodes" };
	struct sb_quota q;
	json_t *j = json_object();

	for (unsigned type = 0; sb_quota(sb, &q) && type < ARRAY_NR(types); type++) {
		json_t *by_counter = json_object();

		for (unsigned i = 0; i < ARRAY_NR(counters); i++)
			json_object_set_new(by_counter, counters[i],
					    json_pack("{s:I, s:I}", "timelimit",
						      (json_int_t)q.timelimit_seconds[type][i], "warnlimit",
						      (json_int_t)q.warnlimit[type][i]));
		json_object_set_new(j, types[type], by_counter);
	}
	return j;
}

static json_t *disk_groups_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	json_t *array = json_array();

	for (unsigned i = 0; i < sb_disk_group_nr(sb); i++) {
		struct strbuf path = strbuf_growing();
		struct disk_group g;

		sb_disk_group(sb, i, &g);
		if (!g.is_deleted) {
			sb_disk_group_path(&path, sb, i);
			json_array_append_new(array, json_pack("{s:i, s:o, s:o}", "index", (int)i, "name",
							       bytes_json(g.label, sizeof(g.label)), "path",
							       raw_json_text(&path)));
		}
		strbuf_free(&path);
	}
	return array;
}

static json_t *clean_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	const struct jset_entry_disk *entry;
	struct member_geometry members[SB_MEMBERS_MAX];
	struct key_context ctx;
	struct jset_walk w;
	uint64_t journal_seq;
	json_t *array = json_array();

	if (!sb_clean(sb, &journal_seq, &w.pos, &w.end)) {
		json_decref(array);
		return json_null();
	}
	sb_key_context(sb, SB_ENCRYPTION_TYPE(sb) != 0, &ctx);
	sb_member_geometry(sb, members);
	ctx.members = members;
	ctx.member_nr = sb->nr_devices;
	while (jset_walk_next(&w, &entry, NULL) > 0) {
		struct strbuf text = strbuf_growing();

		jset_entry_to_text(&text, entry, &ctx);
		if (le16_get(entry->u64s) && text.len)
			json_array_append_new(array,
					      json_pack("{s:o, s:o}", "entry",
							name_json(jset_entry_type_name(entry->type), entry->type),
							"text", raw_json_text(&text)));
		strbuf_free(&text);
	}
	return json_pack("{s:o, s:o}", "journal_seq", raw_json_u64(journal_seq), "entries", array);
}

static json_t *blacklist_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	json_t *array = json_array();

	for (unsigned i = 0; i < sb_blacklist_nr(sb); i++) {
		uint64_t start, end;

		sb_blacklist_range(sb, i, &start, &end);
		json_array_append_new(array,
				      json_pack("{s:o, s:o}", "start", raw_json_u64(start), "end", raw_json_u64(end)));
	}
	return array;
}

static json_t *counters_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	json_t *j = json_object();

	for (unsigned i = 0; i < sb_counter_nr(sb); i++) {
		const char *name = counter_name(i, le16_get(sb->version));
		char number[32];

		snprintf(number, sizeof(number), "%u", i);
		set_u64(j, name ? name : number, sb_counter(sb, i));
	}
	return j;
}

static json_t *errors_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	unsigned type = le32_get(s->type);
	json_t *array = json_array();

	for (unsigned i = 0; i < sb_error_nr(sb, type); i++) {
		struct sb_error e;

		sb_error(sb, type, i, &e);
		json_t *j = json_pack("{s:I, s:o, s:o, s:o}", "id", (json_int_t)e.id, "name",
				      name_json(error_id_name(e.id), e.id), "count", raw_json_u64(e.count), "last_time",
				      raw_json_u64(e.last_time));
		if (e.first_time)
			set_u64(j, "first_time", e.first_time);
		json_array_append_new(array, j);
	}
	return array;
}

static json_t *ext_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	struct sb_ext e;

	sb_ext(sb, &e);
	return json_pack("{s:o, s:o, s:o, s:o, s:o}", "recovery_passes_required",
			 bits_json(e.passes_required, ARRAY_NR(e.passes_required), pass_name), "errors_silent",
			 bits_json(e.errors_silent, ARRAY_NR(e.errors_silent), error_id_name), "btrees_lost_data",
			 bits_json(&e.btrees_lost_data, 1, btree_name), "btrees_lost_data_ever",
			 bits_json(&e.btrees_lost_data_ever, 1, btree_name), "btrees_clean",
			 bits_json(&e.btrees_clean, 1, btree_name));
}

static json_t *downgrade_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	struct sb_downgrade_walk w = sb_downgrade_walk(sb);
	struct sb_downgrade d;
	json_t *array = json_array();

	while (sb_downgrade_next(&w, &d, NULL) > 0) {
		json_t *errors = json_array();

		for (unsigned i = 0; i < d.error_nr; i++) {
			unsigned id = le16_load(d.errors + i * sizeof(le16));
			json_array_append_new(errors, name_json(error_id_name(id), id));
		}
		json_array_append_new(
			array, json_pack("{s:o, s:o, s:o}", "version", version_json(d.version), "recovery_passes",
					 bits_json(d.passes, ARRAY_NR(d.passes), pass_name), "errors", errors));
	}
	return array;
}

static json_t *recovery_passes_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	json_t *array = json_array();

	for (unsigned id = 0; id < sb_recovery_pass_nr(sb); id++) {
		struct sb_recovery_pass p;

		sb_recovery_pass(sb, id, &p);
		if (p.last_run)
			json_array_append_new(array,
					      json_pack("{s:o, s:o, s:I, s:b}", "pass", name_json(pass_name(id), id),
							"last_run", raw_json_u64(p.last_run), "last_runtime",
							(json_int_t)p.last_runtime, "no_ratelimit",
							(int)p.is_not_ratelimited));
	}
	return array;
}

static json_t *extent_type_u64s_json(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	const uint8_t *sizes = sb_section_payload(s);
	json_t *array = json_array();

	for (unsigned i = 0; i < sb_section_payload_bytes(s) && sizes[i]; i++)
		json_array_append_new(array, json_integer(sizes[i]));
	return array;
}

static json_t *(*const section_functions[SB_SECTION_NR_KNOWN])(const struct sb_disk *sb,
							       const struct sb_section_disk *s) = {
	[SB_JOURNAL] = journal_json,
	[SB_MEMBERS_V1] = members_json,
	[SB_CRYPT] = crypt_json,
	[SB_REPLICAS_V0] = replicas_json,
	[SB_QUOTA] = quota_json,
	[SB_DISK_GROUPS] = disk_groups_json,
	[SB_CLEAN] = clean_json,
	[SB_REPLICAS] = replicas_json,
	[SB_JOURNAL_SEQ_BLACKLIST] = blacklist_json,
	[SB_JOURNAL_V2] = journal_json,
	[SB_COUNTERS] = counters_json,
	[SB_MEMBERS_V2] = members_json,
	[SB_ERRORS] = errors_json,
	[SB_EXT] = ext_json,
	[SB_DOWNGRADE] = downgrade_json,
	[SB_RECOVERY_PASSES] = recovery_passes_json,
	[SB_EXTENT_TYPE_U64S] = extent_type_u64s_json,
	[SB_ERRORS_V2] = errors_json,
};

static json_t *sections_json(const struct sb_disk *sb, uint32_t mask)
{
	json_t *j = json_object();

	for (const struct sb_section_disk *s = NULL; (s = sb_section_next(sb, s));) {
		uint32_t type = le32_get(s->type);
		char number[16];

		if (type < SB_SECTION_NR_KNOWN && mask >> type & 1 && s == sb_section(sb, type)) {
			json_object_set_new(j, sb_section_name(type), section_functions[type](sb, s));
		} else if (type >= SB_SECTION_NR_KNOWN && mask == UINT32_MAX) {
			snprintf(number, sizeof(number), "%u", type);
			json_object_set_new(j, number, json_pack("{s:I}", "bytes", (json_int_t)sb_section_bytes(s)));
		}
	}
	return j;
}

/* --- header --- */

static json_t *option_json(const struct sb_disk *sb, enum option_id id)
{
	/* Renumbered in newer versions, as in the text form (format/sb_text.c). */
	static const char *const words_errors_newer[] = { "continue", "fix_safe", "panic", "ro" };
	const struct option_def *o = &option_table[id];
	bool in_range;
	uint64_t value = option_from_sb(id, sb, &in_range);
	struct strbuf text = strbuf_growing();

	if (id == OPT_ERRORS && le16_get(sb->version) >= VERSION(1, 13)) {
		value = sb_flag(sb, 0, 8, 12);
		return name_json(value < ARRAY_NR(words_errors_newer) ? words_errors_newer[value] : NULL,
				 (unsigned)value);
	}
	if (o->type == OPTION_BOOL)
		return json_boolean(value);
	if (o->type == OPTION_UINT)
		return raw_json_u64(value);
	option_to_text(&text, id, value, sb);
	json_t *j = raw_json_text(&text);
	strbuf_free(&text);
	return j;
}

static json_t *options_json(const struct sb_disk *sb)
{
	json_t *j = json_object();

	for (unsigned id = 0; id < OPT_NR; id++)
		if (option_is_stored(id))
			json_object_set_new(j, option_table[id].name, option_json(sb, id));
	return j;
}

static json_t *layout_json(const struct sb_layout_disk *l)
{
	json_t *sectors = json_array();

	for (unsigned i = 0; i < l->nr_superblocks && i < SB_LAYOUT_COPIES_MAX; i++)
		json_array_append_new(sectors, raw_json_u64(le64_get(l->sb_offset[i])));
	return json_pack("{s:i, s:I, s:o}", "type", (int)l->layout_type, "bytes_max",
			 (json_int_t)SECTOR_BYTES << min(l->sb_max_size_bits, (uint8_t)SB_SIZE_BITS_MAX), "sectors",
			 sectors);
}

json_t *super_json(const struct sb_disk *sb, uint32_t sections)
{
	uint64_t features[] = { le64_get(sb->features[0]), le64_get(sb->features[1]) };
	uint64_t compat[] = { le64_get(sb->compat[0]), le64_get(sb->compat[1]) };
	unsigned version = le16_get(sb->version);
	json_t *j = json_pack(
		"{s:o, s:o, s:o, s:i, s:o, s:o, s:o, s:o, s:o}", "external_uuid", raw_json_uuid(sb->user_uuid),
		"internal_uuid", raw_json_uuid(sb->uuid), "magic", raw_json_uuid(sb->magic), "device_index",
		(int)sb->dev_idx, "label", bytes_json(sb->label, sizeof(sb->label)), "version", version_json(version),
		"version_name", name_json(version_name(version), version), "version_upgrade_complete",
		version_json((unsigned)sb_flag(sb, 5, 0, 16)), "version_min", version_json(le16_get(sb->version_min)));

	if (sb_has_feature(sb, SB_FEATURE_INCOMPAT_VERSION_FIELD)) {
		json_object_set_new(j, "version_incompat_allowed", version_json(SB_VERSION_INCOMPAT_ALLOWED(sb)));
		json_object_set_new(j, "version_incompat_in_use", version_json(SB_VERSION_INCOMPAT(sb)));
	}
	set_u64(j, "created", le64_get(sb->time_base_lo) / 1000000000);
	set_u64(j, "seq", le64_get(sb->seq));
	set_u64(j, "write_time", le64_get(sb->write_time));
	set_u64(j, "bytes", sb_bytes(sb));
	set_u64(j, "devices", sb->nr_devices);
	set_u64(j, "block_bytes", (uint64_t)le16_get(sb->block_size) << SECTOR_SHIFT);
	set_u64(j, "btree_node_bytes", (uint64_t)SB_BTREE_NODE_SECTORS(sb) << SECTOR_SHIFT);
	json_object_set_new(j, "initialized", json_boolean(SB_INITIALIZED(sb)));
	json_object_set_new(j, "clean", json_boolean(SB_CLEAN_FLAG(sb)));
	json_object_set_new(j, "encrypted", json_boolean(SB_ENCRYPTION_TYPE(sb)));
	json_object_set_new(j, "has_errors", json_boolean(SB_HAS_ERRORS(sb)));
	json_object_set_new(j, "has_topology_errors", json_boolean(SB_HAS_TOPOLOGY_ERRORS(sb)));
	json_object_set_new(j, "checksum_type", name_json(checksum_name(SB_CSUM_TYPE(sb)), SB_CSUM_TYPE(sb)));
	json_object_set_new(j, "features", bits_json(features, ARRAY_NR(features), sb_feature_name));
	json_object_set_new(j, "compat_features", bits_json(compat, ARRAY_NR(compat), sb_compat_name));
	json_object_set_new(j, "options", options_json(sb));
	json_object_set_new(j, "layout", layout_json(&sb->layout));
	json_object_set_new(j, "sections", sections_json(sb, sections));
	return j;
}
