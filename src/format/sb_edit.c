/*
 * Superblock sections, changed in place. See sb_edit.h.
 *
 * Sections lie behind one another without gaps, so a change of size moves everything behind it.
 */
#include "format/sb_edit.h"

#include <errno.h>

#include "base/util.h"

static size_t u64s_of(size_t bytes) { return div_round_up_u64(bytes, 8); }

static struct sb_section_disk *section_of(const struct sb_edit *e, unsigned type)
{
	return (struct sb_section_disk *)sb_section(e->sb, type);
}

/* --- sections --- */

struct sb_section_disk *sb_section_resize(struct sb_edit *e, unsigned type, size_t u64s)
{
	struct sb_section_disk *s = section_of(e, type);
	uint8_t *end = (uint8_t *)e->sb + sb_bytes(e->sb);
	size_t old = s ? sb_section_bytes(s) : 0, bytes = u64s * 8;

	if (u64s < 1 || u64s > e->bytes_max / 8 || sb_bytes(e->sb) - old + bytes > e->bytes_max)
		return NULL;
	if (!s)
		s = (struct sb_section_disk *)end;

	uint8_t *behind = (uint8_t *)s + old;
	memmove((uint8_t *)s + bytes, behind, (size_t)(end - behind));
	if (bytes > old)
		memset((uint8_t *)s + old, 0, bytes - old);
	s->u64s = le32_of((uint32_t)u64s);
	s->type = le32_of(type);
	e->sb->u64s = le32_of((uint32_t)(le32_get(e->sb->u64s) - old / 8 + u64s));
	return s;
}

struct sb_section_disk *sb_section_ensure(struct sb_edit *e, unsigned type, size_t u64s)
{
	struct sb_section_disk *s = section_of(e, type);

	return s && sb_section_bytes(s) >= u64s * 8 ? s : sb_section_resize(e, type, u64s);
}

void sb_section_delete(struct sb_edit *e, unsigned type)
{
	struct sb_section_disk *s;

	while ((s = section_of(e, type))) {
		uint8_t *end = (uint8_t *)e->sb + sb_bytes(e->sb), *behind = (uint8_t *)s + sb_section_bytes(s);
		uint32_t u64s = le32_get(s->u64s);

		memmove(s, behind, (size_t)(end - behind));
		e->sb->u64s = le32_of(le32_get(e->sb->u64s) - u64s);
	}
}

/* --- members --- */

static size_t members_v2_bytes(size_t stride, size_t nr) { return sizeof(struct sb_members_v2_disk) + stride * nr; }

int sb_members_prepare(struct sb_edit *e)
{
	struct sb_members_v2_disk *d = (struct sb_members_v2_disk *)section_of(e, SB_MEMBERS_V2);
	const struct sb_section_disk *v1 = section_of(e, SB_MEMBERS_V1);
	size_t nr = e->sb->nr_devices;
	size_t stride = d ? le16_get(d->member_bytes) : 0;

	if (stride >= SB_MEMBER_BYTES_1_4)
		return 0;

	uint8_t *records = calloc(nr, SB_MEMBER_BYTES_1_4);
	if (!records)
		return -ENOMEM;
	for (size_t i = 0; i < nr; i++)
		if (d)
			memcpy(records + i * SB_MEMBER_BYTES_1_4, d->members + i * stride, stride);
		else
			memcpy(records + i * SB_MEMBER_BYTES_1_4, sb_section_payload(v1) + i * SB_MEMBER_V1_BYTES,
			       SB_MEMBER_V1_BYTES);

	d = (struct sb_members_v2_disk *)sb_section_resize(e, SB_MEMBERS_V2,
							   u64s_of(members_v2_bytes(SB_MEMBER_BYTES_1_4, nr)));
	if (d) {
		d->member_bytes = le16_of(SB_MEMBER_BYTES_1_4);
		memcpy(d->members, records, nr * SB_MEMBER_BYTES_1_4);
	}
	free(records);
	return d ? 0 : -ENOSPC;
}

int sb_member_append(struct sb_edit *e)
{
	struct sb_members_v2_disk *d = (struct sb_members_v2_disk *)section_of(e, SB_MEMBERS_V2);
	size_t stride = d ? le16_get(d->member_bytes) : SB_MEMBER_BYTES_1_4;

	d = (struct sb_members_v2_disk *)sb_section_resize(e, SB_MEMBERS_V2,
							   u64s_of(members_v2_bytes(stride, e->sb->nr_devices + 1u)));
	if (!d)
		return -ENOSPC;
	d->member_bytes = le16_of((uint16_t)stride);
	e->sb->nr_devices++;
	return 0;
}

struct sb_member_disk *sb_member_record(const struct sb_edit *e, unsigned idx)
{
	struct sb_members_v2_disk *d = (struct sb_members_v2_disk *)section_of(e, SB_MEMBERS_V2);

	return (struct sb_member_disk *)(d->members + (size_t)idx * le16_get(d->member_bytes));
}

int sb_members_v1_update(struct sb_edit *e)
{
	unsigned nr = e->sb->nr_devices;
	struct sb_section_disk *v1 =
		sb_section_resize(e, SB_MEMBERS_V1, u64s_of(sizeof(*v1) + nr * SB_MEMBER_V1_BYTES));

	if (!v1)
		return -ENOSPC;
	for (unsigned i = 0; i < nr; i++)
		memcpy((uint8_t *)(v1 + 1) + i * SB_MEMBER_V1_BYTES, sb_member_record(e, i), SB_MEMBER_V1_BYTES);
	return 0;
}

/* --- labels --- */

/* The child of @parent (index + 1) called by the @len bytes at @name: its index, or the number of groups. */
static unsigned disk_group_find(const struct sb_disk *sb, const char *name, size_t len, unsigned parent)
{
	unsigned nr = sb_disk_group_nr(sb);

	for (unsigned i = 0; i < nr; i++) {
		struct disk_group g;

		sb_disk_group(sb, i, &g);
		if (!g.is_deleted && g.parent == parent && strnlen((char *)g.label, SB_LABEL_BYTES) == len &&
		    !memcmp(g.label, name, len))
			return i;
	}
	return nr;
}

static int disk_group_add(struct sb_edit *e, const char *name, size_t len, unsigned parent, unsigned *idx)
{
	unsigned nr = sb_disk_group_nr(e->sb), slot = 0;
	struct disk_group g;

	for (; slot < nr; slot++) {
		sb_disk_group(e->sb, slot, &g);
		if (g.is_deleted)
			break;
	}

	struct sb_disk_groups_disk *d = (struct sb_disk_groups_disk *)section_of(e, SB_DISK_GROUPS);
	if (slot == nr)
		d = (struct sb_disk_groups_disk *)sb_section_resize(
			e, SB_DISK_GROUPS, u64s_of(sizeof(*d) + (nr + 1) * sizeof(d->groups[0])));
	if (!d)
		return -ENOSPC;
	memset(&d->groups[slot], 0, sizeof(d->groups[slot]));
	memcpy(d->groups[slot].label, name, len);
	d->groups[slot].flags = le64_of(0x3e | (uint64_t)parent << 6);
	*idx = slot;
	return 0;
}

int sb_disk_group_make(struct sb_edit *e, const char *path, unsigned *idx)
{
	enum { GROUPS_NAMEABLE = 255 }; /* a member's eight bits hold index + 1 */
	unsigned parent = 0;

	for (const char *p = path;;) {
		size_t len = strcspn(p, ".");

		if (!len || len > SB_LABEL_BYTES)
			return -EINVAL;
		if (!p[len])
			break;
		p += len + 1;
	}
	for (const char *p = path;;) {
		size_t len = strcspn(p, ".");
		unsigned i = disk_group_find(e->sb, p, len, parent);

		if (i == sb_disk_group_nr(e->sb)) {
			int err = disk_group_add(e, p, len, parent, &i);
			if (err)
				return err;
		}
		*idx = i;
		parent = i + 1;
		if (!p[len])
			return i < GROUPS_NAMEABLE ? 0 : -ENOSPC;
		p += len + 1;
	}
}

/* --- replicas --- */

bool sb_replicas_has(const struct sb_disk *sb, const struct replicas_entry *entry)
{
	struct replicas_walk w = sb_replicas_walk(sb);
	struct replicas_entry e;

	while (sb_replicas_next_raw(&w, &e, NULL) > 0)
		if (e.data_type == entry->data_type && e.nr_devs == entry->nr_devs &&
		    e.nr_required == entry->nr_required && !memcmp(e.devs, entry->devs, e.nr_devs))
			return true;
	return false;
}

static uint8_t *replicas_entry_store(uint8_t *p, const struct replicas_entry *e, bool is_v0)
{
	*p++ = e->data_type;
	*p++ = e->nr_devs;
	if (!is_v0)
		*p++ = e->nr_required;
	memcpy(p, e->devs, e->nr_devs);
	return p + e->nr_devs;
}

int sb_replicas_add(struct sb_edit *e, const struct replicas_entry *entry)
{
	struct replicas_walk w = sb_replicas_walk(e->sb), again = w;
	struct replicas_entry old;
	size_t bytes = 2u + entry->nr_devs, nr = 1;
	bool is_v0 = entry->nr_required == 1;

	while (sb_replicas_next_raw(&w, &old, NULL) > 0) {
		bytes += 2u + old.nr_devs;
		nr++;
		is_v0 = is_v0 && old.nr_required == 1;
	}
	bytes += is_v0 ? 0 : nr;

	uint8_t *all = calloc(1, bytes);
	if (!all)
		return -ENOMEM;
	uint8_t *p = all;
	while (sb_replicas_next_raw(&again, &old, NULL) > 0)
		p = replicas_entry_store(p, &old, is_v0);
	replicas_entry_store(p, entry, is_v0);

	struct sb_section_disk *s =
		sb_section_resize(e, is_v0 ? SB_REPLICAS_V0 : SB_REPLICAS, u64s_of(sizeof(*s) + bytes));
	if (s) {
		memset(s + 1, 0, sb_section_payload_bytes(s));
		memcpy(s + 1, all, bytes);
		sb_section_delete(e, is_v0 ? SB_REPLICAS : SB_REPLICAS_V0);
	}
	free(all);
	return s ? 0 : -ENOSPC;
}

/* --- sequence blacklist --- */

int sb_blacklist_add(struct sb_edit *e, uint64_t start, uint64_t end)
{
	unsigned nr = sb_blacklist_nr(e->sb), first = 0, behind;
	uint64_t s, t;

	/* Ranges [first, behind) touch the new one and become one with it. */
	for (; first < nr; first++) {
		sb_blacklist_range(e->sb, first, &s, &t);
		if (t >= start)
			break;
	}
	for (behind = first; behind < nr; behind++) {
		sb_blacklist_range(e->sb, behind, &s, &t);
		if (s > end)
			break;
		start = min(start, s);
		end = max(end, t);
	}

	struct sb_blacklist_disk *d = (struct sb_blacklist_disk *)section_of(e, SB_JOURNAL_SEQ_BLACKLIST);
	size_t nr_new = nr - (behind - first) + 1u;
	size_t u64s = 1 + 2 * nr_new;

	if (nr_new > nr)
		d = (struct sb_blacklist_disk *)sb_section_resize(e, SB_JOURNAL_SEQ_BLACKLIST, u64s);
	if (!d)
		return -ENOSPC;
	memmove(&d->ranges[first + 1], &d->ranges[behind], (nr - behind) * sizeof(d->ranges[0]));
	d->ranges[first].start = le64_of(start);
	d->ranges[first].end = le64_of(end);
	sb_section_resize(e, SB_JOURNAL_SEQ_BLACKLIST, u64s);
	e->sb->features[0] = le64_of(le64_get(e->sb->features[0]) | 1ull << SB_FEATURE_JOURNAL_SEQ_BLACKLIST_V3);
	return 0;
}

void sb_blacklist_keep(struct sb_edit *e, const bool *is_needed)
{
	struct sb_blacklist_disk *d = (struct sb_blacklist_disk *)section_of(e, SB_JOURNAL_SEQ_BLACKLIST);
	unsigned nr = sb_blacklist_nr(e->sb), kept = 0;

	for (unsigned i = 0; i < nr; i++)
		if (is_needed[i])
			d->ranges[kept++] = d->ranges[i];
	if (kept) {
		sb_section_resize(e, SB_JOURNAL_SEQ_BLACKLIST, 1 + 2 * (size_t)kept);
		return;
	}
	sb_section_delete(e, SB_JOURNAL_SEQ_BLACKLIST);
	e->sb->features[0] = le64_of(le64_get(e->sb->features[0]) & ~(1ull << SB_FEATURE_JOURNAL_SEQ_BLACKLIST_V3));
}

/* --- errors --- */

int sb_errors_add(struct sb_edit *e, unsigned id, uint64_t count, uint64_t time_seconds)
{
	unsigned nr = sb_error_nr(e->sb, SB_ERRORS), i = 0;
	struct sb_errors_disk *d = (struct sb_errors_disk *)section_of(e, SB_ERRORS);
	uint64_t old = 0;

	while (i < nr && bits_get(le64_get(d->errors[i].words[0]), 0, 16) < id)
		i++;
	if (i < nr && bits_get(le64_get(d->errors[i].words[0]), 0, 16) == id) {
		old = bits_get(le64_get(d->errors[i].words[0]), 16, 64);
	} else {
		d = (struct sb_errors_disk *)sb_section_resize(e, SB_ERRORS, 1 + 2 * (nr + 1ull));
		if (!d)
			return -ENOSPC;
		memmove(&d->errors[i + 1], &d->errors[i], (nr - i) * sizeof(d->errors[0]));
	}
	d->errors[i].words[0] = le64_of(bits_set(id, 16, 64, min(old + count, (1ull << 48) - 1)));
	d->errors[i].words[1] = le64_of(time_seconds);
	return 0;
}

/* --- journal buckets, clean --- */

int sb_journal_set(struct sb_edit *e, const struct sb_journal_range *ranges, size_t nr)
{
	struct sb_journal_v2_disk *d = NULL;

	if (nr) {
		d = (struct sb_journal_v2_disk *)sb_section_resize(e, SB_JOURNAL_V2, 1 + 2 * nr);
		if (!d)
			return -ENOSPC;
	} else {
		sb_section_delete(e, SB_JOURNAL_V2);
	}
	for (size_t i = 0; i < nr; i++) {
		d->ranges[i].start = le64_of(ranges[i].start);
		d->ranges[i].nr = le64_of(ranges[i].nr);
	}
	sb_section_delete(e, SB_JOURNAL);
	return 0;
}

int sb_clean_set(struct sb_edit *e, uint64_t journal_seq, const void *tail, unsigned tail_u64s, const void *roots,
		 unsigned roots_u64s)
{
	size_t u64s = sizeof(struct sb_clean_disk) / 8 + tail_u64s + roots_u64s;
	struct sb_clean_disk *d = (struct sb_clean_disk *)sb_section_resize(e, SB_CLEAN, u64s);

	if (!d)
		return -ENOSPC;
	d->flags = le32_of(0);
	memset(d->obsolete, 0, sizeof(d->obsolete));
	d->journal_seq = le64_of(journal_seq);
	if (tail_u64s)
		memcpy(d->entries, tail, tail_u64s * 8ull);
	if (roots_u64s)
		memcpy(d->entries + tail_u64s * 8ull, roots, roots_u64s * 8ull);
	return 0;
}

/* --- quotas --- */

struct sb_quota_disk *sb_quota_ensure(struct sb_edit *e)
{
	bool is_new = !section_of(e, SB_QUOTA);
	struct sb_quota_disk *q =
		(struct sb_quota_disk *)sb_section_ensure(e, SB_QUOTA, u64s_of(sizeof(struct sb_quota_disk)));

	for (unsigned type = 0; q && is_new && type < ARRAY_NR(q->types); type++)
		for (unsigned i = 0; i < ARRAY_NR(q->types[type].counters); i++)
			q->types[type].counters[i].timelimit = le32_of(SB_QUOTA_TIMELIMIT_SECONDS);
	return q;
}

int sb_quota_timelimit_set(struct sb_edit *e, unsigned type, unsigned counter, uint32_t seconds)
{
	struct sb_quota_disk *q = sb_quota_ensure(e);

	if (!q)
		return -ENOSPC;
	q->types[type].counters[counter].timelimit = le32_of(seconds);
	return 0;
}
