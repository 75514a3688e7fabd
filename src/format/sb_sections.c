/*
 * Superblock sections, decoded.
 *
 * One group of functions per section: how many, and which is the i-th. A section that is absent counts as empty. All of
 * them look at no byte outside of their section, whatever it says about itself.
 */
#include "format/sb_sections.h"

#include "base/util.h"
#include "format/alloc.h"
#include "format/options.h"

/* --- members --- */

/* Put in a slot's uuid when a device has been removed while keys may still name it (1.27). */
static const uint8_t member_uuid_deleted[16] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
						 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef };
static const uint8_t member_uuid_free[16];

static const char *const member_state_names[MEMBER_STATE_NR] = { "rw", "ro", "failed", "spare" };

const char *member_state_name(unsigned state)
{
	return state < MEMBER_STATE_NR ? member_state_names[state] : "unknown";
}

struct member_array {
	const uint8_t *members;
	size_t stride, nr;
};

static struct member_array members_of(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	const uint8_t *end = (const uint8_t *)s + sb_section_bytes(s);
	struct member_array a = { 0 };

	if (le32_get(s->type) == SB_MEMBERS_V2 && sb_section_bytes(s) >= sizeof(struct sb_members_v2_disk)) {
		const struct sb_members_v2_disk *d = (const struct sb_members_v2_disk *)s;

		a = (struct member_array){ d->members, le16_get(d->member_bytes), 0 };
	} else if (le32_get(s->type) == SB_MEMBERS_V1) {
		a = (struct member_array){ sb_section_payload(s), SB_MEMBER_V1_BYTES, 0 };
	}
	if (a.stride)
		a.nr = min((size_t)(end - a.members) / a.stride, (size_t)sb->nr_devices);
	return a;
}

unsigned sb_members_section_nr(const struct sb_disk *sb, const struct sb_section_disk *s)
{
	return (unsigned)members_of(sb, s).nr;
}

static void member_flags_decode(struct member *m)
{
	unsigned durability = (unsigned)bits_get(m->flags, MEMBER_FLAG_DURABILITY_LO, MEMBER_FLAG_DURABILITY_HI);

	m->state = (uint8_t)bits_get(m->flags, MEMBER_FLAG_STATE_LO, MEMBER_FLAG_STATE_HI);
	m->durability = (uint8_t)(durability ? durability - 1 : 1);
	m->has_discard = m->flags >> MEMBER_FLAG_DISCARD & 1;
	m->is_freespace_initialized = m->flags >> MEMBER_FLAG_FREESPACE_INITIALIZED & 1;
	m->is_resized_on_mount = m->flags >> MEMBER_FLAG_RESIZE_ON_MOUNT & 1;
	m->is_rotational = m->flags >> MEMBER_FLAG_ROTATIONAL & 1;
	m->data_allowed = (uint8_t)bits_get(m->flags, MEMBER_FLAG_DATA_ALLOWED_LO, MEMBER_FLAG_DATA_ALLOWED_HI);
	m->group = (uint16_t)bits_get(m->flags, MEMBER_FLAG_GROUP_LO, MEMBER_FLAG_GROUP_HI);
}

static void member_decode(const struct sb_member_disk *d, struct member *m)
{
	memcpy(m->uuid, d->uuid, sizeof(m->uuid));
	m->is_deleted = !memcmp(d->uuid, member_uuid_deleted, sizeof(d->uuid));
	m->exists = !m->is_deleted && memcmp(d->uuid, member_uuid_free, sizeof(d->uuid));
	m->nbuckets = le64_get(d->nbuckets);
	m->first_bucket = le16_get(d->first_bucket);
	m->bucket_sectors = le16_get(d->bucket_sectors);
	m->last_mount = le64_get(d->last_mount);
	m->flags = le64_get(d->flags);
	for (unsigned i = 0; i < ARRAY_NR(m->iops); i++)
		m->iops[i] = le32_get(d->iops[i]);
	for (unsigned i = 0; i < ARRAY_NR(m->errors); i++) {
		m->errors[i] = le64_get(d->errors[i]);
		m->errors_at_reset[i] = le64_get(d->errors_at_reset[i]);
	}
	m->errors_reset_time = le64_get(d->errors_reset_time);
	m->seq = le64_get(d->seq);
	m->btree_bitmap_shift = d->btree_bitmap_shift;
	m->btree_allocated_bitmap = le64_get(d->btree_allocated_bitmap);
	m->last_journal_bucket = le32_get(d->last_journal_bucket);
	m->last_journal_bucket_offset = le32_get(d->last_journal_bucket_offset);
	m->flush_errors = le64_get(d->flush_errors);
	/* *m was zeroed, so the strings are terminated. */
	memcpy(m->device_name, d->device_name, sizeof(d->device_name));
	memcpy(m->device_model, d->device_model, sizeof(d->device_model));
	memcpy(m->device_serial, d->device_serial, sizeof(d->device_serial));
	memcpy(m->failure_domain, d->failure_domain, sizeof(d->failure_domain));
	member_flags_decode(m);
}

void sb_members_section_get(const struct sb_disk *sb, const struct sb_section_disk *s, unsigned idx, struct member *m)
{
	struct member_array a = members_of(sb, s);
	struct sb_member_disk d = { 0 }; /* what the stride leaves out reads as zero */

	*m = (struct member){ 0 };
	if (idx >= a.nr)
		return;
	memcpy(&d, a.members + idx * a.stride, min(a.stride, sizeof(d)));
	member_decode(&d, m);
}

void sb_member(const struct sb_disk *sb, unsigned idx, struct member *m)
{
	const struct sb_section_disk *s = sb_section(sb, SB_MEMBERS_V2);

	if (!s)
		s = sb_section(sb, SB_MEMBERS_V1);
	if (s)
		sb_members_section_get(sb, s, idx, m);
	else
		*m = (struct member){ 0 };
}

/* --- disk groups --- */

static const struct sb_disk_groups_disk *disk_groups_of(const struct sb_disk *sb)
{
	return (const struct sb_disk_groups_disk *)sb_section(sb, SB_DISK_GROUPS);
}

unsigned sb_disk_group_nr(const struct sb_disk *sb)
{
	const struct sb_disk_groups_disk *d = disk_groups_of(sb);

	return d ? (unsigned)(sb_section_payload_bytes(&d->head) / sizeof(d->groups[0])) : 0;
}

void sb_disk_group(const struct sb_disk *sb, unsigned idx, struct disk_group *g)
{
	const struct sb_disk_group_disk *d = &disk_groups_of(sb)->groups[idx];

	memcpy(g->label, d->label, sizeof(g->label));
	g->is_deleted = bits_get(le64_get(d->flags), 0, 1);
	g->parent = (unsigned)bits_get(le64_get(d->flags), 6, 24);
}

void sb_disk_group_path(struct strbuf *out, const struct sb_disk *sb, unsigned idx)
{
	enum { DEPTH_MAX = 64 }; /* sb_validate() refuses deeper ones, and so cycles */
	struct disk_group path[DEPTH_MAX];
	unsigned nr = sb_disk_group_nr(sb), depth = 0;

	for (unsigned link = idx + 1; link && depth < DEPTH_MAX; link = path[depth++].parent) {
		path[depth].is_deleted = true;
		if (link <= nr)
			sb_disk_group(sb, link - 1, &path[depth]);
		if (path[depth].is_deleted) {
			strbuf_printf(out, "invalid label %u", idx);
			return;
		}
	}
	while (depth--) {
		strbuf_add_escaped(out, path[depth].label, strnlen((const char *)path[depth].label, SB_LABEL_BYTES));
		if (depth)
			strbuf_add_char(out, '.');
	}
}

void sb_target_to_text(struct strbuf *out, const struct sb_disk *sb, unsigned target)
{
	struct member m = { 0 };

	if (target == TARGET_NONE) {
		strbuf_add(out, "none");
	} else if (target < TARGET_GROUP_FIRST) {
		if (sb)
			sb_member(sb, target - TARGET_DEVICE_FIRST, &m);
		strbuf_printf(out, "%sdev %u", sb && !m.exists ? "invalid " : "", target - TARGET_DEVICE_FIRST);
	} else if (sb) {
		sb_disk_group_path(out, sb, target - TARGET_GROUP_FIRST);
	} else {
		strbuf_printf(out, "label %u", target - TARGET_GROUP_FIRST);
	}
}

/* --- replicas --- */

struct replicas_walk sb_replicas_section_walk(const struct sb_section_disk *s)
{
	const uint8_t *start = sb_section_payload(s);

	return (struct replicas_walk){ start, start + sb_section_payload_bytes(s),
				       le32_get(s->type) == SB_REPLICAS_V0 };
}

struct replicas_walk sb_replicas_walk(const struct sb_disk *sb)
{
	const struct sb_section_disk *s = sb_section(sb, SB_REPLICAS);

	if (!s)
		s = sb_section(sb, SB_REPLICAS_V0);
	return s ? sb_replicas_section_walk(s) : (struct replicas_walk){ 0 };
}

int sb_replicas_next_raw(struct replicas_walk *w, struct replicas_entry *e, struct fault *fault)
{
	size_t left = (size_t)(w->end - w->pos), header_bytes = w->is_v0 ? 2 : 3;

	if (!left || !w->pos[0])
		return 0;
	if (left < header_bytes || left - header_bytes < w->pos[1])
		return fault_set(fault, 0, "replicas entry", "to end within the section", "%zu bytes left", left);

	*e = (struct replicas_entry){ w->pos[0], w->pos[1], w->is_v0 ? 1 : w->pos[2], w->pos + header_bytes };
	w->pos += header_bytes + e->nr_devs;
	return 1;
}

int sb_replicas_next(struct replicas_walk *w, struct replicas_entry *e, struct fault *fault)
{
	int more;

	while ((more = sb_replicas_next_raw(w, e, fault)) > 0 && e->data_type >= DATA_NR)
		;
	return more;
}

/* --- journal buckets --- */

unsigned sb_journal_range_nr(const struct sb_disk *sb)
{
	const struct sb_section_disk *s = sb_section(sb, SB_JOURNAL_V2);

	if (s)
		return (unsigned)(sb_section_payload_bytes(s) / sizeof(struct sb_journal_range_disk));
	s = sb_section(sb, SB_JOURNAL);
	return s ? (unsigned)(sb_section_payload_bytes(s) / sizeof(le64)) : 0;
}

void sb_journal_range(const struct sb_disk *sb, unsigned i, uint64_t *start, uint64_t *nr)
{
	const struct sb_journal_v2_disk *ranges = (const struct sb_journal_v2_disk *)sb_section(sb, SB_JOURNAL_V2);

	if (ranges) {
		*start = le64_get(ranges->ranges[i].start);
		*nr = le64_get(ranges->ranges[i].nr);
	} else {
		*start = le64_get(((const struct sb_journal_disk *)sb_section(sb, SB_JOURNAL))->buckets[i]);
		*nr = 1;
	}
}

/* --- sequence blacklist --- */

static const struct sb_blacklist_disk *blacklist_of(const struct sb_disk *sb)
{
	return (const struct sb_blacklist_disk *)sb_section(sb, SB_JOURNAL_SEQ_BLACKLIST);
}

unsigned sb_blacklist_nr(const struct sb_disk *sb)
{
	const struct sb_blacklist_disk *d = blacklist_of(sb);

	return d ? (unsigned)(sb_section_payload_bytes(&d->head) / sizeof(d->ranges[0])) : 0;
}

void sb_blacklist_range(const struct sb_disk *sb, unsigned i, uint64_t *start, uint64_t *end)
{
	const struct sb_blacklist_disk *d = blacklist_of(sb);

	*start = le64_get(d->ranges[i].start);
	*end = le64_get(d->ranges[i].end);
}

/* --- clean --- */

bool sb_clean(const struct sb_disk *sb, uint64_t *journal_seq, const uint8_t **begin, const uint8_t **end)
{
	const struct sb_clean_disk *d = (const struct sb_clean_disk *)sb_section(sb, SB_CLEAN);

	if (!d || sb_section_bytes(&d->head) < sizeof(*d))
		return false;
	*journal_seq = le64_get(d->journal_seq);
	*begin = d->entries;
	*end = (const uint8_t *)d + sb_section_bytes(&d->head);
	return true;
}

/* --- counters --- */

unsigned sb_counter_nr(const struct sb_disk *sb)
{
	const struct sb_section_disk *s = sb_section(sb, SB_COUNTERS);

	return s ? (unsigned)(sb_section_payload_bytes(s) / sizeof(le64)) : 0;
}

uint64_t sb_counter(const struct sb_disk *sb, unsigned idx)
{
	if (idx >= sb_counter_nr(sb))
		return 0;
	return le64_get(((const struct sb_counters_disk *)sb_section(sb, SB_COUNTERS))->counters[idx]);
}

/* --- errors --- */

unsigned sb_error_nr(const struct sb_disk *sb, unsigned type)
{
	const struct sb_section_disk *s = sb_section(sb, type);

	return s ? (unsigned)(sb_section_payload_bytes(s) / sizeof(struct sb_error_disk)) : 0;
}

void sb_error(const struct sb_disk *sb, unsigned type, unsigned idx, struct sb_error *e)
{
	const struct sb_errors_disk *d = (const struct sb_errors_disk *)sb_section(sb, type);
	uint64_t w0 = le64_get(d->errors[idx].words[0]), w1 = le64_get(d->errors[idx].words[1]);

	e->id = (unsigned)bits_get(w0, 0, 16);
	if (type == SB_ERRORS_V2) {
		e->count = bits_get(w0, 16, 48);
		e->last_time = bits_get(w0, 48, 64) | bits_get(w1, 0, 24) << 16;
		e->first_time = bits_get(w1, 24, 64);
	} else {
		e->count = bits_get(w0, 16, 64);
		e->last_time = w1;
		e->first_time = 0;
	}
}

/* --- ext --- */

void sb_ext(const struct sb_disk *sb, struct sb_ext *e)
{
	const struct sb_section_disk *s = sb_section(sb, SB_EXT);
	struct sb_ext_disk d = { 0 };

	if (s)
		memcpy(&d, s, min(sb_section_bytes(s), sizeof(d)));
	for (unsigned i = 0; i < ARRAY_NR(e->passes_required); i++)
		e->passes_required[i] = le64_get(d.passes_required[i]);
	for (unsigned i = 0; i < ARRAY_NR(e->errors_silent); i++)
		e->errors_silent[i] = le64_get(d.errors_silent[i]);
	e->btrees_lost_data = le64_get(d.btrees_lost_data);
	e->btrees_lost_data_ever = le64_get(d.btrees_lost_data_ever);
	e->btrees_clean = le64_get(d.btrees_clean);
	e->flags = le64_get(d.flags);
}

/* --- downgrade --- */

struct sb_downgrade_walk sb_downgrade_walk(const struct sb_disk *sb)
{
	const struct sb_section_disk *s = sb_section(sb, SB_DOWNGRADE);

	if (!s)
		return (struct sb_downgrade_walk){ 0 };
	return (struct sb_downgrade_walk){ sb_section_payload(s), sb_section_payload(s) + sb_section_payload_bytes(s) };
}

int sb_downgrade_next(struct sb_downgrade_walk *w, struct sb_downgrade *d, struct fault *fault)
{
	const struct sb_downgrade_disk *entry = (const struct sb_downgrade_disk *)w->pos;
	size_t left = (size_t)(w->end - w->pos);

	/* An entry that would end exactly with the section isn't one: what remains is padding. */
	if (left <= sizeof(*entry))
		return 0;

	unsigned error_nr = le16_get(entry->error_nr);
	if ((left - sizeof(*entry)) / sizeof(le16) < error_nr)
		return fault_set(fault, 0, "downgrade nr_errors", "to end within the section", "%u", error_nr);

	*d = (struct sb_downgrade){ le16_get(entry->version),
				    { le64_get(entry->passes[0]), le64_get(entry->passes[1]) },
				    error_nr,
				    w->pos + sizeof(*entry) };
	w->pos += sizeof(*entry) + error_nr * sizeof(le16);
	return 1;
}

/* --- recovery_passes --- */

unsigned sb_recovery_pass_nr(const struct sb_disk *sb)
{
	const struct sb_section_disk *s = sb_section(sb, SB_RECOVERY_PASSES);

	return s ? (unsigned)(sb_section_payload_bytes(s) / sizeof(struct sb_recovery_pass_disk)) : 0;
}

void sb_recovery_pass(const struct sb_disk *sb, unsigned id, struct sb_recovery_pass *p)
{
	*p = (struct sb_recovery_pass){ 0 };
	if (id >= sb_recovery_pass_nr(sb))
		return;

	const struct sb_recovery_pass_disk *d =
		&((const struct sb_recovery_passes_disk *)sb_section(sb, SB_RECOVERY_PASSES))->passes[id];
	p->last_run = le64_get(d->last_run);
	p->last_runtime = le32_get(d->last_runtime);
	p->is_not_ratelimited = le32_get(d->flags) & 1;
}

/* --- quota --- */

bool sb_quota(const struct sb_disk *sb, struct sb_quota *q)
{
	const struct sb_quota_disk *d = (const struct sb_quota_disk *)sb_section(sb, SB_QUOTA);

	if (!d || sb_section_bytes(&d->head) < sizeof(*d))
		return false;
	for (unsigned type = 0; type < ARRAY_NR(d->types); type++)
		for (unsigned i = 0; i < ARRAY_NR(d->types[type].counters); i++) {
			q->timelimit_seconds[type][i] = le32_get(d->types[type].counters[i].timelimit);
			q->warnlimit[type][i] = le32_get(d->types[type].counters[i].warnlimit);
		}
	return true;
}
