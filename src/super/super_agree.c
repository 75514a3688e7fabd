/*
 * Which devices belong together, and are they enough?
 *
 * Every device has its own superblock, and all are written together. So the newest one (seq, then write_time) is the
 * master, and each of the others is compared with what the master knows of it (01 §10.1). The member record holds the
 * seq of the last update that included that device: a device that is newer than this was started without the master,
 * and both went their own ways since (split brain). Such a device must not take part: its blocks aren't what the
 * master's btrees say.
 *
 * A device that is merely behind missed updates and may take part; what it misses isn't referenced on it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/strbuf.h"
#include "format/version.h"
#include "super/super_private.h"

/* Data types of replicas entries (01 §1). */
enum { DATA_TYPE_CACHED = 5 };

static bool sb_written_later(const struct sb_disk *a, const struct sb_disk *b)
{
	if (le64_get(a->seq) != le64_get(b->seq))
		return le64_get(a->seq) > le64_get(b->seq);
	return le64_get(a->write_time) > le64_get(b->write_time);
}

static void report_candidate(const struct report_sink *reports, enum report_level level, int err,
			     const struct super_candidate *x, const char *expected, const char *found,
			     const char *advice)
{
	report_emit(reports, &(struct report){ .level = level,
					       .err = err,
					       .device = x->dev->name,
					       .structure = "superblock",
					       .expected = expected,
					       .found = found,
					       .advice = advice });
}

/* Wrong on the command line: the open fails. A device that was only found by scanning is left out instead. */
static int candidate_refuse(struct super_candidate *x, int err, const struct report_sink *reports, const char *expected,
			    const char *found, const char *advice)
{
	if (x->is_found) {
		x->is_dropped = true;
		return 0;
	}
	report_candidate(reports, REPORT_FATAL, err, x, expected, found, advice);
	return err;
}

static void candidate_drop(struct super_candidate *x, const struct report_sink *reports, const char *expected,
			   const char *found, const char *advice)
{
	x->is_dropped = true;
	if (!x->is_found)
		report_candidate(reports, REPORT_DAMAGE, 0, x, expected, found, advice);
}

/* The rules of 01 §10.1 between the master superblock and the device @x, which may be the master's own. */
static int candidate_check(struct super_candidate *x, const struct super_candidate *master,
			   const struct report_sink *reports)
{
	const struct sb_disk *b = master->sb;
	struct member known, own;
	char expected[400], found[160];

	if (memcmp(x->sb->uuid, b->uuid, sizeof(b->uuid))) {
		struct strbuf want = strbuf_fixed(expected, sizeof(expected)),
			      have = strbuf_fixed(found, sizeof(found));
		/* By what users know them by. */
		strbuf_printf(&want, "%.255s's filesystem ", master->dev->name);
		strbuf_add_uuid(&want, b->user_uuid);
		strbuf_add_uuid(&have, x->sb->user_uuid);
		return candidate_refuse(x, -KILN_E_FOREIGN_MEMBER, reports, expected, found,
					"It belongs to another filesystem: leave it out.");
	}

	if (x->sb->dev_idx < b->nr_devices)
		sb_member(b, x->sb->dev_idx, &known);
	if (x->sb->dev_idx >= b->nr_devices || !known.exists) {
		snprintf(found, sizeof(found), "device %u, which has been removed from the filesystem", x->sb->dev_idx);
		candidate_drop(x, reports, "a member", found, "It is not used; leave it out.");
		return 0;
	}

	if (le16_get(x->sb->block_size) != le16_get(b->block_size)) {
		snprintf(expected, sizeof(expected), "block size of %u sectors", le16_get(b->block_size));
		snprintf(found, sizeof(found), "%u", le16_get(x->sb->block_size));
		return candidate_refuse(x, -KILN_E_INVALID, reports, expected, found, "Leave this device out.");
	}

	sb_member(x->sb, x->sb->dev_idx, &own);
	if (memcmp(own.uuid, known.uuid, sizeof(known.uuid))) {
		snprintf(found, sizeof(found), "a device that once was number %u and has been replaced",
			 x->sb->dev_idx);
		candidate_drop(x, reports, "a member", found, "It is not used; leave it out.");
		return 0;
	}

	if (min(le16_get(b->version), le16_get(x->sb->version)) < VERSION_1_4)
		return 0;

	uint64_t seq = le64_get(x->sb->seq);
	bool is_other_branch = seq == le64_get(b->seq) && le64_get(x->sb->write_time) != le64_get(b->write_time);
	bool is_ahead = known.seq && known.seq < seq;
	if (x->sb != b && (is_other_branch || is_ahead)) {
		snprintf(expected, sizeof(expected), "last written together at seq %" PRIu64, known.seq);
		snprintf(found, sizeof(found), "seq %" PRIu64 ", written without the others (split brain)", seq);
		candidate_drop(
			x, reports, expected, found,
			"It was used alone while the other devices were used without it. It is left out now, and what "
			"was written to it alone can be read by opening it alone with the option very_degraded.");
	}
	return 0;
}

/* Two devices for one slot: a device and its copy, or one device under two names. */
static int candidates_check_slots(struct super_candidates *c, const struct report_sink *reports)
{
	struct super_candidate *slot[SB_MEMBERS_MAX] = { 0 };
	int err = 0;

	for (size_t i = 0; i < c->nr && !err; i++) {
		struct super_candidate *x = &c->v[i];
		char found[400];

		if (x->is_dropped)
			continue;
		if (!slot[x->sb->dev_idx]) {
			slot[x->sb->dev_idx] = x;
			continue;
		}
		snprintf(found, sizeof(found), "device %u, which %s is too", x->sb->dev_idx,
			 slot[x->sb->dev_idx]->dev->name);
		err = candidate_refuse(x, -KILN_E_INVALID, reports, "another member", found,
				       "Name each member once, and leave out copies of members.");
	}
	return err;
}

int super_candidates_agree(struct super_candidates *c, const struct report_sink *reports, size_t *master)
{
	size_t best = 0;

	for (size_t i = 0; i < c->nr; i++) {
		c->v[i].is_dropped = false;
		if (sb_written_later(c->v[i].sb, c->v[best].sb))
			best = i;
	}
	*master = best;

	for (size_t i = 0; i < c->nr; i++) {
		int err = candidate_check(&c->v[i], &c->v[best], reports);
		if (err)
			return err;
	}
	if (c->v[best].is_dropped)
		return -KILN_E_INVALID;
	return candidates_check_slots(c, reports);
}

static bool mount_option_is_on(const struct super_open_opts *opts, enum option_id id)
{
	return opts->mount_options_set && opts->mount_options_set[id] && opts->mount_options[id];
}

bool super_accepts_very_degraded(const struct super_open_opts *opts)
{
	return opts->is_very_degraded_ok || opts->is_lenient || mount_option_is_on(opts, OPT_VERY_DEGRADED);
}

bool super_accepts_degraded(const struct super_open_opts *opts)
{
	return opts->is_degraded_ok || mount_option_is_on(opts, OPT_DEGRADED) || super_accepts_very_degraded(opts);
}

bool super_member_is_missing(const struct super *s, unsigned idx)
{
	const struct super_member *m = &s->members[idx];

	return m->m.exists && !m->dev && (m->m.state == MEMBER_RW || m->m.state == MEMBER_RO);
}

/* What one replicas entry says about the devices that are there. */
enum replicas_state { REPLICAS_COMPLETE, REPLICAS_DEGRADED, REPLICAS_LOST };

/*
 * Devices that don't exist (removed, or the placeholder 255 of erasure coding) say nothing: newer versions leave them
 * in entries. So an entry counts only if a member that should be there isn't.
 */
static enum replicas_state replicas_entry_state(const struct super *s, const struct replicas_entry *e,
						const bool *is_there)
{
	unsigned online = 0, offline = 0, failed = 0, exist = 0;

	for (unsigned i = 0; i < e->nr_devs; i++) {
		unsigned dev = e->devs[i];
		if (dev >= s->member_nr || !s->members[dev].m.exists)
			continue;
		exist++;
		failed += s->members[dev].m.state == MEMBER_FAILED;
		if (is_there ? is_there[dev] : s->members[dev].dev != NULL)
			online++;
		else
			offline++;
	}
	if (!offline || failed == exist)
		return REPLICAS_COMPLETE;
	return online < e->nr_required ? REPLICAS_LOST : REPLICAS_DEGRADED;
}

static enum replicas_state super_replicas_state(const struct super *s, const bool *is_there)
{
	struct replicas_walk w = sb_replicas_walk(s->sb);
	struct replicas_entry e;
	enum replicas_state worst = REPLICAS_COMPLETE;

	while (sb_replicas_next(&w, &e, NULL) > 0)
		if (e.data_type != DATA_TYPE_CACHED)
			worst = max(worst, replicas_entry_state(s, &e, is_there));
	return worst;
}

bool super_replicas_are_lost(const struct super *s, const bool *is_there)
{
	return super_replicas_state(s, is_there) == REPLICAS_LOST;
}

/* It is known by number, uuid, label and, from version 1.33 on, by the name that its last device had. */
static void missing_describe(struct strbuf *out, const struct super *s, unsigned idx)
{
	const struct member *m = &s->members[idx].m;

	strbuf_printf(out, "device %u (", idx);
	if (m->group && m->group <= sb_disk_group_nr(s->sb)) {
		strbuf_add(out, "label ");
		sb_disk_group_path(out, s->sb, m->group - 1u);
		strbuf_add(out, ", ");
	}
	if (m->device_name[0]) {
		strbuf_add(out, "last seen as ");
		strbuf_add_escaped(out, m->device_name, strnlen(m->device_name, sizeof(m->device_name)));
		strbuf_add(out, ", ");
	}
	strbuf_add(out, "uuid ");
	strbuf_add_uuid(out, m->uuid);
	strbuf_add_char(out, ')');
}

static bool member_is_away(const struct super *s, unsigned idx)
{
	return s->members[idx].m.exists && !s->members[idx].dev;
}

/* One report, as the reader wants to know at once what else to look for: of all of them, or as many as fit. */
static void refuse_missing(const struct super *s, const char *advice)
{
	/* An error's text has KILN_ERROR_BYTES, with the advice. */
	enum { LIST_BYTES_MAX = 260 };
	char one[160], title[64];
	struct strbuf list = strbuf_growing();
	unsigned away = 0, exist = 0, named = 0;

	for (unsigned i = 0; i < s->member_nr; i++) {
		struct strbuf text = strbuf_fixed(one, sizeof(one));

		exist += s->members[i].m.exists;
		if (!member_is_away(s, i))
			continue;
		away++;
		missing_describe(&text, s, i);
		if (list.len + strlen(one) > LIST_BYTES_MAX)
			continue;
		strbuf_printf(&list, "%s%s", named++ ? ", " : "", one);
	}
	if (named < away)
		strbuf_printf(&list, " and %u more", away - named);
	if (s->has_left_out)
		snprintf(title, sizeof(title), "%u of the filesystem's %u devices can't be used, or %s found", away,
			 exist, away == 1 ? "wasn't" : "weren't");
	else
		snprintf(title, sizeof(title), "%u of the filesystem's %u devices %s given or found", away, exist,
			 away == 1 ? "wasn't" : "weren't");
	report_emit(s->reports, &(struct report){ .level = REPORT_FATAL,
						  .err = -ENODEV,
						  .structure = title,
						  .found = strbuf_text(&list),
						  .advice = advice });
	strbuf_free(&list);
}

static void note_missing(const struct super *s, unsigned idx)
{
	report_emit(s->reports, &(struct report){ .level = REPORT_INFO,
						  .device = s->members[idx].name,
						  .structure = "member of the filesystem",
						  .found = "it wasn't given or found" });
}

static const char *missing_advice(const struct super *s, const struct super_open_opts *opts,
				  enum replicas_state replicas)
{
	bool is_lost = replicas == REPLICAS_LOST;

	if (opts->needs_all)
		return "Name all devices, joined by colons: all of them are changed.";
	if (s->has_left_out && is_lost)
		return "Of those that were named some are left out, as was told. Without them some data has no copy "
		       "left: --very-degraded (mount option very_degraded) opens the rest.";
	if (s->has_left_out)
		return "Of those that were named some are left out, as was told. --degraded (mount option degraded) "
		       "goes on without them, as all that is known to be on them has copies elsewhere.";
	return is_lost ? "Name all devices, joined by colons. Without these some data has no copy left: "
			 "--very-degraded (mount option very_degraded) opens the rest."
		       : "Name all devices, joined by colons; or use --degraded (mount option degraded), as all that "
			 "is known to be on these has copies elsewhere.";
}

int super_check_enough_devices(struct super *s, const struct super_open_opts *opts)
{
	enum replicas_state replicas = super_replicas_state(s, NULL);
	unsigned missing = 0;

	for (unsigned i = 0; i < s->member_nr; i++)
		missing += super_member_is_missing(s, i);
	s->is_degraded = missing || replicas != REPLICAS_COMPLETE;
	if (!s->is_degraded)
		return 0;

	if (replicas == REPLICAS_LOST ? !super_accepts_very_degraded(opts) : !super_accepts_degraded(opts)) {
		refuse_missing(s, missing_advice(s, opts, replicas));
		return -ENODEV;
	}
	for (unsigned i = 0; i < s->member_nr; i++)
		if (member_is_away(s, i))
			note_missing(s, i);
	return 0;
}
