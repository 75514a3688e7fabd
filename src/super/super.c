/*
 * Opening the devices of a filesystem, and what the other rooms ask about them.
 *
 * The order: open what was named and read each superblock; find out which devices belong together; look for members
 * that are still missing, if asked to; make the table of members from the master superblock; work out options, key and
 * validation context; and last decide whether enough devices are there. From then on a `struct super` that is
 * only read doesn't change; one that is open for writing is changed by the functions of super_change.c.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/secret.h"
#include "base/strbuf.h"
#include "device/scan.h"
#include "format/version.h"
#include "super/super_private.h"

static void candidate_free(struct super_candidate *x)
{
	device_close(x->dev);
	free(x->sb);
	*x = (struct super_candidate){ 0 };
}

static void candidates_free(struct super_candidates *c)
{
	for (size_t i = 0; i < c->nr; i++)
		candidate_free(&c->v[i]);
	free(c->v);
	*c = (struct super_candidates){ 0 };
}

/* Takes over what @x owns, also on failure. */
static int candidates_add(struct super_candidates *c, struct super_candidate x)
{
	struct super_candidate *v = realloc(c->v, (c->nr + 1) * sizeof(*v));

	if (!v) {
		candidate_free(&x);
		return -ENOMEM;
	}
	c->v = v;
	c->v[c->nr++] = x;
	return 0;
}

static unsigned open_flags(const struct super_open_opts *opts)
{
	unsigned access = opts->is_write ? DEVICE_OPEN_WRITE : opts->is_forced ? DEVICE_OPEN_FORCE : 0;

	return access | (opts->is_buffered ? DEVICE_OPEN_NO_DIRECT : 0) |
	       (opts->is_without_uring ? DEVICE_OPEN_NO_URING : 0);
}

static void report_plain(const struct report_sink *reports, enum report_level level, int err, const char *device,
			 const char *structure, const char *found, const char *advice)
{
	report_emit(reports, &(struct report){ .level = level,
					       .err = err,
					       .device = device,
					       .structure = structure,
					       .found = found,
					       .advice = advice });
}

/*
 * Writes have to be aligned as the device wants them. Where filesystem blocks are smaller than that, the kernel's page
 * cache does it. @path is the device as the user named it.
 */
static int candidate_open_buffered(struct super_candidate *x, const char *path, const struct super_open_opts *opts,
				   const struct log_sink *log, char why[256])
{
	uint32_t align = x->dev->io_align_bytes, block_bytes = (uint32_t)le16_get(x->sb->block_size) << SECTOR_SHIFT;

	if (!opts->is_write || align <= block_bytes)
		return 0;
	log_printf(
		log, LOG_LEVEL_WARNING,
		"%s: its blocks of %u bytes are larger than the filesystem's (%u), so it is written through the page "
		"cache",
		path, align, block_bytes);
	device_close(x->dev);
	x->dev = NULL;
	return device_open_file(path, open_flags(opts) | DEVICE_OPEN_NO_DIRECT, log, &x->dev, why);
}

/*
 * A named device whose superblock can't be read fails the open, unless the user accepts missing members: then the
 * device counts as one. Takes over @dev.
 */
static int candidates_read(struct super_candidates *c, struct device *dev, const char *path,
			   const struct super_open_opts *opts, const struct log_sink *log,
			   const struct report_sink *reports, int *first_err)
{
	struct super_candidate x = { .dev = dev };
	int err = super_read_device(dev, opts->sb_sector, reports, &x.sb);

	if (!err && path) {
		char why[256] = "";

		err = candidate_open_buffered(&x, path, opts, log, why);
		if (err)
			report_plain(reports, REPORT_FATAL, err, NULL, NULL, why[0] ? why : error_name(err), NULL);
	}
	if (!err)
		return candidates_add(c, x);
	candidate_free(&x);
	*first_err = *first_err ? *first_err : err;
	if (err == -ENOMEM || !super_accepts_degraded(opts))
		return err;
	return 0;
}

static int candidates_open(struct super_candidates *c, char *const *paths, size_t path_nr,
			   const struct super_open_opts *opts, const struct log_sink *log,
			   const struct report_sink *reports)
{
	int err = 0, first_err = 0;

	for (size_t i = 0; i < opts->device_nr; i++) {
		if (!err)
			err = candidates_read(c, opts->devices[i], NULL, opts, log, reports, &first_err);
		else
			device_close(opts->devices[i]);
	}
	for (size_t i = 0; i < path_nr && !err; i++) {
		struct device *dev;
		char why[256] = "";

		err = device_open_file(paths[i], open_flags(opts), log, &dev, why);
		if (err)
			report_plain(reports, REPORT_FATAL, err, NULL, NULL, why[0] ? why : error_name(err), NULL);
		else
			err = candidates_read(c, dev, paths[i], opts, log, reports, &first_err);
	}
	if (!err && !c->nr) {
		err = first_err ? first_err : -EINVAL;
		if (!first_err)
			report_plain(reports, REPORT_FATAL, err, NULL, "filesystem", "no device was named", NULL);
	}
	return err;
}

static bool candidates_have_slot(const struct super_candidates *c, unsigned dev_idx)
{
	for (size_t i = 0; i < c->nr; i++)
		if (!c->v[i].is_dropped && c->v[i].sb->dev_idx == dev_idx)
			return true;
	return false;
}

static bool candidates_miss_members(const struct super_candidates *c, const struct sb_disk *master)
{
	for (unsigned i = 0; i < master->nr_devices; i++) {
		struct member m;

		sb_member(master, i, &m);
		if (m.exists && !candidates_have_slot(c, i))
			return true;
	}
	return false;
}

/* Look among the block devices for members that weren't named. What doesn't fit there is passed over in silence. */
static int candidates_scan(struct super_candidates *c, const uint8_t uuid[16], const struct super_open_opts *opts,
			   const struct log_sink *log)
{
	static const struct report_sink silent;
	struct device_paths paths = { 0 };
	int err = 0;

	if (device_scan_uuid(uuid, &paths))
		return 0;
	for (size_t i = 0; i < paths.nr && !err; i++) {
		struct super_candidate x = { .is_found = true };

		if (device_open_file(paths.paths[i], open_flags(opts), NULL, &x.dev, NULL))
			continue;
		if (super_read_device(x.dev, 0, &silent, &x.sb) || memcmp(x.sb->uuid, uuid, 16) ||
		    candidates_have_slot(c, x.sb->dev_idx)) {
			candidate_free(&x);
			continue;
		}
		if (candidate_open_buffered(&x, paths.paths[i], opts, log, NULL)) {
			candidate_free(&x);
			continue;
		}
		log_printf(log, LOG_LEVEL_INFO, "found member %u of the filesystem: %s", x.sb->dev_idx, paths.paths[i]);
		err = candidates_add(c, x);
	}
	device_paths_free(&paths);
	return err;
}

static int candidates_gather(struct super_candidates *c, char *const *paths, size_t path_nr,
			     const struct super_open_opts *opts, const struct log_sink *log,
			     const struct report_sink *reports, size_t *master)
{
	int err = candidates_open(c, paths, path_nr, opts, log, reports);

	if (!err)
		err = super_candidates_agree(c, reports, master);
	if (err || !opts->scan_for_members || !candidates_miss_members(c, c->v[*master].sb))
		return err;

	size_t named = c->nr;
	err = candidates_scan(c, c->v[*master].sb->uuid, opts, log);
	if (!err && c->nr > named)
		err = super_candidates_agree(c, reports, master);
	return err;
}

/* How messages call a member that isn't there: by its number and what is known about it. */
static void member_name_missing(struct super_member *m, const struct sb_disk *sb, unsigned idx)
{
	struct strbuf name = strbuf_fixed(m->name, sizeof(m->name));

	strbuf_printf(&name, "device %u (", idx);
	if (m->m.device_name[0]) {
		strbuf_add(&name, "once ");
		strbuf_add_escaped(&name, m->m.device_name, strnlen(m->m.device_name, sizeof(m->m.device_name)));
		strbuf_add(&name, ", ");
	}
	if (m->m.group && m->m.group <= sb_disk_group_nr(sb)) {
		strbuf_add(&name, "label ");
		sb_disk_group_path(&name, sb, m->m.group - 1);
		strbuf_add(&name, ", ");
	}
	strbuf_add(&name, m->m.exists ? "missing)" : "no such member)");
}

uint64_t super_member_bytes(const struct super_member *m)
{
	uint64_t bytes;

	return __builtin_mul_overflow(m->m.nbuckets, (uint64_t)m->m.bucket_sectors << SECTOR_SHIFT, &bytes) ? UINT64_MAX
													    : bytes;
}

/* A device that is shorter than its superblock says was cut off. What is left can be read, so it is. */
static void member_check_size(const struct super *s, const struct super_member *m)
{
	uint64_t bytes = super_member_bytes(m);
	char expected[64], found[64];

	if (m->dev->size_bytes >= bytes)
		return;
	snprintf(expected, sizeof(expected), "at least %" PRIu64 " bytes", bytes);
	snprintf(found, sizeof(found), "%" PRIu64 " bytes", m->dev->size_bytes);
	report_emit(s->reports,
		    &(struct report){ .level = REPORT_DAMAGE,
				      .device = m->name,
				      .structure = "device",
				      .position = "size",
				      .expected = expected,
				      .found = found,
				      .advice = "The device is too small for what it holds: its end is cut off and "
						"can't be read. Copy the data off it." });
}

static int members_fill(struct super *s, struct super_candidates *c)
{
	s->member_nr = s->sb->nr_devices;
	s->members = calloc(s->member_nr, sizeof(*s->members));
	s->geometry = calloc(s->member_nr, sizeof(*s->geometry));
	if (!s->members || !s->geometry)
		return -ENOMEM;

	sb_member_geometry(s->sb, s->geometry);
	for (unsigned i = 0; i < s->member_nr; i++) {
		struct super_member *m = &s->members[i];

		sb_member(s->sb, i, &m->m);
		member_name_missing(m, s->sb, i);
	}
	for (size_t i = 0; i < c->nr; i++) {
		struct super_candidate *x = &c->v[i];
		s->has_left_out |= x->is_dropped && x->dev && !x->is_found;
		if (x->is_dropped)
			continue;
		struct super_member *m = &s->members[x->sb->dev_idx];
		m->dev = x->dev;
		m->sb = x->sb;
		snprintf(m->name, sizeof(m->name), "%s", x->dev->name);
		/* A device that has slept takes seconds for the first read, which is that of its superblock. */
		device_read_latency_forget(m->dev);
		*x = (struct super_candidate){ .is_dropped = true };
		member_check_size(s, m);
	}
	return 0;
}

/*
 * Effective options: the table's default, what the superblock stores, what the mount says; each overrides the one
 * before. A stored value out of range is one that a newer version knows, or damage: the default serves.
 */
static void options_fill(struct super *s, const struct super_open_opts *opts)
{
	for (unsigned id = 0; id < OPT_NR; id++) {
		bool in_range = true;

		s->options[id] = option_from_sb(id, s->sb, &in_range);
		if (!in_range)
			report_emit(s->reports, &(struct report){ .level = REPORT_INFO,
								  .structure = "superblock",
								  .position = option_table[id].name,
								  .expected = "an option in range",
								  .found = "a value that isn't known",
								  .advice = "The option's default is used." });
		if (opts->mount_options_set && opts->mount_options_set[id])
			s->options[id] = opts->mount_options[id];
	}
	/* Delays of 0 were never meant: old superblocks have them where nothing was stored (01 §9.3). */
	if (!s->options[OPT_JOURNAL_FLUSH_DELAY])
		s->options[OPT_JOURNAL_FLUSH_DELAY] = 1000;
	if (!s->options[OPT_JOURNAL_RECLAIM_DELAY])
		s->options[OPT_JOURNAL_RECLAIM_DELAY] = 1000;
}

int super_option_parse(const struct super *s, enum option_id id, const char *text, uint64_t *value, struct strbuf *why)
{
	bool is_target = option_table[id].type == OPTION_TARGET && text;

	for (unsigned i = 0; is_target && i < s->member_nr; i++)
		if (super_member_online(s, i) && !strcmp(s->members[i].name, text)) {
			*value = TARGET_DEVICE_FIRST + i;
			return 0;
		}
	return option_parse(id, text, s->sb, value, why);
}

/* With @user_key, or, where that is NULL, with the passphrase that makes it. */
static int key_load(struct super *s, const struct crypt_key *user_key, const void *passphrase, size_t len)
{
	struct sb_crypt crypt;

	if (!sb_crypt(s->sb, &crypt))
		return -KILN_E_INVALID;
	struct crypt_key *key = secret_alloc(sizeof(*key));
	if (!key)
		return -ENOMEM;
	int err = user_key ? sb_crypt_open(s->sb, &crypt, user_key, key)
			   : sb_crypt_unlock(s->sb, &crypt, passphrase, len, key);
	if (err) {
		secret_free(key);
		return err;
	}
	s->key = key;
	s->needs_passphrase = false;
	return 0;
}

/* A key that isn't sealed is loaded at once; for the others somebody must call super_unlock(). */
static int key_fill(struct super *s, const struct super_open_opts *opts)
{
	struct sb_crypt crypt;
	bool has_crypt = sb_crypt(s->sb, &crypt);

	/* Where encryption was turned off, what was written before still needs the key (06 §8). */
	s->has_key = has_crypt || SB_ENCRYPTION_TYPE(s->sb);
	if (!s->has_key)
		return 0;

	int err = -KILN_E_INVALID;
	if (has_crypt) {
		s->needs_passphrase = crypt.is_sealed;
		err = crypt.is_sealed ? 0 : key_load(s, NULL, NULL, 0);
	}
	if (err && err != -ENOMEM) {
		report_plain(s->reports, opts->is_lenient ? REPORT_DAMAGE : REPORT_FATAL, err, NULL, "superblock",
			     "encrypted, and its key can't be used",
			     "Try another copy of the superblock: --sb names its sector.");
		s->needs_passphrase = true;
		return opts->is_lenient ? 0 : err;
	}
	return err;
}

/* What can't be read at all was refused with the superblock itself; the rest is tried (12 §1.1). */
static void version_note(const struct super *s)
{
	unsigned version = le16_get(s->sb->version);

	if (version > VERSION_NEWEST_KNOWN)
		log_printf(s->log, LOG_LEVEL_WARNING,
			   "filesystem version %u.%u is newer than %u.%u, the newest one known", VERSION_MAJOR(version),
			   VERSION_MINOR(version), VERSION_MAJOR(VERSION_NEWEST_KNOWN),
			   VERSION_MINOR(VERSION_NEWEST_KNOWN));
}

int super_open(char *const *paths, size_t path_nr, const struct super_open_opts *opts, const struct log_sink *log,
	       const struct report_sink *reports, struct super **super)
{
	struct super_candidates c = { 0 };
	size_t master = 0;
	struct super *s = calloc(1, sizeof(*s));

	*super = NULL;
	if (!s) {
		for (size_t i = 0; i < opts->device_nr; i++)
			device_close(opts->devices[i]);
		return -ENOMEM;
	}
	s->log = log;
	s->reports = reports;

	int err = candidates_gather(&c, paths, path_nr, opts, log, reports, &master);
	if (err)
		goto out;

	err = -ENOMEM;
	s->sb = malloc(sb_bytes(c.v[master].sb));
	if (!s->sb)
		goto out;
	memcpy(s->sb, c.v[master].sb, sb_bytes(c.v[master].sb));

	version_note(s);
	err = members_fill(s, &c);
	if (!err)
		err = key_fill(s, opts);
	if (err)
		goto out;

	options_fill(s, opts);
	sb_key_context(s->sb, s->has_key, &s->kctx);
	s->kctx.members = s->geometry;
	s->kctx.member_nr = s->member_nr;
	err = super_check_enough_devices(s, opts);
	if (!err && opts->is_write)
		err = super_write_open(s, opts);
out:
	candidates_free(&c);
	if (err)
		super_close(s);
	else
		*super = s;
	return err;
}

int super_unlock(struct super *s, const void *passphrase, size_t len)
{
	return s->needs_passphrase ? key_load(s, NULL, passphrase, len) : 0;
}

int super_unlock_key(struct super *s, const struct crypt_key *user_key)
{
	return s->needs_passphrase ? key_load(s, user_key, NULL, 0) : 0;
}

void super_close(struct super *s)
{
	if (!s)
		return;
	super_write_close(s);
	for (unsigned i = 0; s->members && i < s->member_nr; i++) {
		device_close(s->members[i].dev);
		free(s->members[i].sb);
	}
	secret_free(s->key);
	free(s->members);
	free(s->geometry);
	free(s->sb);
	free(s);
}

/* --- which copy to read --- */

uint32_t super_suspect_copies(const struct super *s, const uint8_t *devs, unsigned nr)
{
	uint32_t mask = 0;

	for (unsigned i = 0; i < nr; i++) {
		uint64_t until = super_member_online(s, devs[i])
					 ? __atomic_load_n(&s->members[devs[i]].suspect_until_ns, __ATOMIC_RELAXED)
					 : 0;

		mask |= (uint32_t)(until && clock_monotonic_ns() < until) << i;
	}
	return mask;
}

unsigned super_replica_choose(const struct super *s, const uint8_t *devs, unsigned nr, uint32_t excluded,
			      uint64_t random)
{
	uint64_t weights[32], sum = 0;
	unsigned i = 0;

	assert(nr <= ARRAY_NR(weights));
	for (unsigned k = 0; k < nr; k++) {
		const struct device *dev =
			super_member_online(s, devs[k]) && !(excluded >> k & 1) ? s->members[devs[k]].dev : NULL;

		weights[k] = dev ? (1ull << 40) / (device_read_latency(dev) + 1024) + 1 : 0;
		sum += weights[k];
	}
	if (!sum)
		return nr;
	for (random %= sum; random >= weights[i]; i++)
		random -= weights[i];
	return i;
}
