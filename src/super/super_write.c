/*
 * Writing the superblocks of a running filesystem: the protocol of 01 §10.
 *
 * The master has nothing that belongs to one device: no journal sections, and its dev_idx, layout and offset mean
 * nothing. An update makes of it a copy for every online member, with what is that member's own, and validates them all
 * before the first is written. Then the primaries of all members are written and flushed, and only then the other
 * copies: whenever power fails, each device has a whole copy of either the old or the new state. That needs other
 * copies that are whole while the primary is written. Those that an update which was cut off, or failed, has torn or
 * left older are made equal to the primary first; one of them that can be written is enough.
 *
 * Before, each primary's seq is read back. If a whole copy has another one than what was last written there, a write
 * got lost or somebody else wrote: nothing may be written then. A copy that is damaged is written anew.
 *
 * A member that was given up (super_member_fail()) isn't written. One on which a write fails drops out of the update.
 * The update has failed, for good, if no member is left, or if the filesystem could not be opened from those that are.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mutant.h"
#include "format/counter_ids.h"
#include "super/super_private.h"

/* An update under way. */
struct super_publish {
	struct super *s;
	struct {
		bool is_written; /* so far nothing failed */
		uint8_t *buf;	 /* the new superblock, in a buffer to write from */
		size_t buf_bytes;
		struct device_io io;
		struct iovec iov;
		uint64_t errors_taken[SUPER_ERROR_KINDS]; /* as below */
	} members[SB_MEMBERS_MAX];
	uint64_t errors_taken[SUPER_ERROR_IDS]; /* what the master counts since: given back if it is undone */
};

static bool is_shared_section(unsigned type)
{
	return type != SB_JOURNAL && type != SB_JOURNAL_V2 && type <= SB_DOWNGRADE;
}

static size_t reserved_bytes(const struct sb_disk *sb) { return (size_t)SECTOR_BYTES << sb->layout.sb_max_size_bits; }

static uint64_t now_seconds(void) { return clock_realtime_ns() / 1000000000; }

static int report_failed(const struct super *s, enum report_level level, int err, const char *device, const char *found,
			 const char *advice)
{
	report_emit(s->reports, &(struct report){ .level = level,
						  .err = err,
						  .device = device,
						  .structure = "superblock",
						  .found = found,
						  .advice = advice });
	return err;
}

static bool member_is_updated(const struct super *s, unsigned i)
{
	return s->members[i].dev && !s->write->members[i].is_given_up;
}

/* --- steps 1 to 3: the master --- */

static void member_errors_now(const struct super *s, unsigned dev, uint64_t now[SUPER_ERROR_KINDS])
{
	const struct super_member *m = &s->members[dev];

	now[SUPER_ERROR_READ] = m->dev ? __atomic_load_n(&m->dev->read_errors, __ATOMIC_RELAXED) : 0;
	now[SUPER_ERROR_WRITE] = m->dev ? __atomic_load_n(&m->dev->write_errors, __ATOMIC_RELAXED) : 0;
	now[SUPER_ERROR_CHECKSUM] = __atomic_load_n(&m->checksum_errors, __ATOMIC_RELAXED);
}

void super_member_errors(const struct super *s, unsigned dev, struct super_errors *errors)
{
	const struct member *m = &s->members[dev].m;

	member_errors_now(s, dev, errors->since_open);
	for (unsigned k = 0; k < SUPER_ERROR_KINDS; k++) {
		errors->total[k] = m->errors[k] - m->errors_at_reset[k];
		if (s->write && s->members[dev].dev)
			errors->total[k] += errors->since_open[k] - s->write->members[dev].errors_before[k];
	}
}

/* Errors that were counted of the member since the last update. */
static void member_errors_take(struct super_publish *p, unsigned i)
{
	struct super *s = p->s;
	uint64_t *taken = p->members[i].errors_taken;
	struct super_write_member *w = &s->write->members[i];
	struct sb_member_disk *m = sb_member_record(&s->write->master, i);
	uint64_t now[SUPER_ERROR_KINDS];

	member_errors_now(s, i, now);
	for (unsigned k = 0; k < SUPER_ERROR_KINDS; k++) {
		taken[k] = now[k] - w->errors_counted[k];
		w->errors_counted[k] = now[k];
		m->errors[k] = le64_of(le64_get(m->errors[k]) + taken[k]);
	}
}

static int errors_section_update(struct super_publish *p, uint64_t now)
{
	struct super_write *w = p->s->write;
	int err = sb_section_ensure(&w->master, SB_ERRORS, 1) ? 0 : -ENOSPC;

	for (unsigned id = 0; id < SUPER_ERROR_IDS && !err; id++) {
		p->errors_taken[id] = __atomic_exchange_n(&w->errors_pending[id], 0, __ATOMIC_RELAXED);
		if (p->errors_taken[id])
			err = sb_errors_add(&w->master, id, p->errors_taken[id], now);
	}
	return err;
}

/* The master becomes again what it was before: what it has counted is still to be counted. */
static void errors_give_back(struct super_publish *p)
{
	struct super_write *w = p->s->write;

	for (unsigned i = 0; i < p->s->member_nr; i++)
		for (unsigned k = 0; k < SUPER_ERROR_KINDS; k++)
			w->members[i].errors_counted[k] -= p->members[i].errors_taken[k];
	for (unsigned id = 0; id < SUPER_ERROR_IDS; id++)
		__atomic_fetch_add(&w->errors_pending[id], p->errors_taken[id], __ATOMIC_RELAXED);
}

static int master_prepare(struct super_publish *p)
{
	struct super *s = p->s;
	struct super_write *w = s->write;
	struct sb_disk *sb = s->sb;
	uint64_t now = now_seconds(), seq = max(le64_get(sb->seq), w->seq_torn) + 1;

	sb->seq = le64_of(seq);
	sb->write_time = le64_of(now);
	if (memcmp(sb->magic, sb_magic, sizeof(sb_magic)))
		memcpy(sb->magic, sb_magic, sizeof(sb_magic));
	if (__atomic_load_n(&w->has_errors, __ATOMIC_RELAXED))
		sb_flag_set(sb, 0, 60, 61, 1);
	if (__atomic_load_n(&w->has_topology_errors, __ATOMIC_RELAXED))
		sb_flag_set(sb, 0, 61, 62, 1);

	for (unsigned i = 0; i < s->member_nr; i++) {
		if (!s->members[i].dev)
			continue;
		if (!w->members[i].is_given_up)
			sb_member_record(&w->master, i)->seq = le64_of(seq);
		member_errors_take(p, i);
	}
	if (!sb_section_ensure(&w->master, SB_COUNTERS, 1 + COUNTER_NR_1_4) ||
	    !sb_section_ensure(&w->master, SB_DOWNGRADE, 1))
		return -ENOSPC;
	int err = errors_section_update(p, now);
	return err ? err : sb_members_v1_update(&w->master);
}

/* --- steps 4 and 5: copies --- */

static bool section_add(struct sb_edit *out, const struct sb_section_disk *s)
{
	size_t bytes = sb_section_bytes(s), at = sb_bytes(out->sb);

	if (at + bytes > out->bytes_max)
		return false;
	memcpy((uint8_t *)out->sb + at, s, bytes);
	out->sb->u64s = le32_of((uint32_t)(le32_get(out->sb->u64s) + bytes / 8));
	return true;
}

/* What @master says, with what is @own, the member's superblock so far, in the order of its sections. */
static int copy_make(const struct sb_disk *master, const struct sb_disk *own, struct sb_edit *out)
{
	const struct sb_section_disk *s = NULL;
	bool fits = true;

	memcpy(out->sb, master, sizeof(*master));
	out->sb->dev_idx = own->dev_idx;
	out->sb->layout = own->layout;
	out->sb->offset = own->offset;
	memcpy(out->sb->layout.magic, sb_magic, sizeof(sb_magic));
	out->sb->u64s = le32_of(0);

	while (fits && (s = sb_section_next(own, s))) {
		unsigned type = le32_get(s->type);
		const struct sb_section_disk *from = is_shared_section(type) ? sb_section(master, type) : s;

		if (from && s == sb_section(own, type))
			fits = section_add(out, from);
	}
	for (s = NULL; fits && (s = sb_section_next(master, s));) {
		unsigned type = le32_get(s->type);

		if (is_shared_section(type) && s == sb_section(master, type) && !sb_section(own, type))
			fits = section_add(out, s);
	}
	return fits ? 0 : -ENOSPC;
}

static uint32_t write_unit(const struct device *dev) { return max(dev->logical_block_bytes, dev->io_align_bytes); }

static int member_copy_make(struct super_publish *p, unsigned i)
{
	struct super *s = p->s;
	const struct sb_disk *own = s->members[i].sb;
	uint64_t most = sb_bytes(s->sb) + sb_bytes(own);
	struct fault fault = { 0 };

	p->members[i].buf_bytes = round_up_u64(most, write_unit(s->members[i].dev));
	p->members[i].buf = io_buffer_alloc(p->members[i].buf_bytes);
	if (!p->members[i].buf)
		return -ENOMEM;
	memset(p->members[i].buf, 0, p->members[i].buf_bytes);

	struct sb_edit out = { (struct sb_disk *)p->members[i].buf, min(reserved_bytes(own), p->members[i].buf_bytes) };
	int err = copy_make(s->sb, own, &out);
	if (err)
		return report_failed(s, REPORT_DAMAGE, err, s->members[i].name, "no space in superblock",
				     "What was to be noted there didn't fit; nothing has changed.");
	err = sb_validate(out.sb, false, &fault);
	if (err)
		report_fault(s->reports, REPORT_DAMAGE, &fault, s->members[i].name, "superblock",
			     "about to be written");
	return err;
}

static int copies_make(struct super_publish *p)
{
	for (unsigned i = 0; i < p->s->member_nr; i++) {
		int err = member_is_updated(p->s, i) ? member_copy_make(p, i) : 0;
		if (err)
			return err;
	}
	for (unsigned i = 0; i < p->s->member_nr; i++) {
		const struct sb_disk *next = (struct sb_disk *)p->members[i].buf;

		if (next)
			memcpy(p->s->members[i].sb, next, sb_bytes(next));
		p->members[i].is_written = next != NULL;
	}
	return 0;
}

/* --- step 7: is the device as we left it? --- */

/* What isn't a whole superblock any more tells nothing of who else has written; it is written anew. */
static void primary_is_damaged(struct super *s, unsigned i, const struct fault *fault)
{
	struct super_write_member *w = &s->write->members[i];

	w->is_primary_unknown = true;
	w->has_stale_backups = false; /* there is nothing that they could be made from */
	super_checksum_error_count(s, i);
	report_fault(s->reports, REPORT_RECOVERED, fault, s->members[i].name, "superblock", "the primary copy");
}

static int primary_check(struct super *s, unsigned i)
{
	struct super_write_member *w = &s->write->members[i];
	struct device *dev = s->members[i].dev;
	uint64_t sector = le64_get(s->members[i].sb->layout.sb_offset[0]);
	uint8_t head[4096] __attribute__((aligned(8)));
	const struct sb_disk *sb = (const struct sb_disk *)head;
	struct sb_disk *whole;
	struct fault fault = { 0 };
	char found[160];

	if (w->is_primary_unknown)
		return 0;
	if (device_read(dev, sector << SECTOR_SHIFT, head, sizeof(head)))
		return 0; /* the write will tell */
	if (!memcmp(sb->uuid, s->sb->uuid, sizeof(sb->uuid)) && le64_get(sb->seq) == w->primary_seq)
		return 0;
	int err = super_copy_read(dev, sector, &whole, &fault);
	if (err == -ENOMEM)
		return err;
	if (!whole) {
		primary_is_damaged(s, i, &fault);
		return 0;
	}
	bool is_ours = !memcmp(whole->uuid, s->sb->uuid, sizeof(whole->uuid));
	uint64_t seq = le64_get(whole->seq);
	free(whole);
	snprintf(found, sizeof(found), "seq %" PRIu64 "%s where %" PRIu64 " was: %s", seq,
		 is_ours ? "" : " of another filesystem", w->primary_seq,
		 is_ours && seq < w->primary_seq ? "the device has lost a write" : "somebody else has written it");
	return report_failed(s, REPORT_FATAL, -EROFS, s->members[i].name, found,
			     "Nothing is written any more. Find out what else uses the device, and check the "
			     "filesystem.");
}

/* --- step 8: the writes --- */

static void member_failed(struct super_publish *p, unsigned i, int err, const char *what)
{
	p->members[i].is_written = false;
	report_failed(p->s, REPORT_DAMAGE, err, p->s->members[i].name, what,
		      "The device missed an update; the others go on without it.");
}

/* What @primary says, to all other copies of a member. @nr: how many have it now. Returns the first error. */
static int backups_write(struct super *s, unsigned i, const struct sb_disk *primary, unsigned *nr)
{
	struct device *dev = s->members[i].dev;
	size_t bytes = round_up_u64(sb_bytes(primary), write_unit(dev));
	struct sb_disk *buf = io_buffer_alloc(bytes);
	int first_err = 0;

	*nr = 0;
	if (!buf)
		return -ENOMEM;
	memset(buf, 0, bytes);
	memcpy(buf, primary, sb_bytes(primary));
	for (unsigned copy = 1; copy < buf->layout.nr_superblocks; copy++) {
		buf->offset = buf->layout.sb_offset[copy];
		sb_seal(buf, super_sb_csum_type(s->options[OPT_METADATA_CHECKSUM]));
		int err = device_write(dev, le64_get(buf->offset) << SECTOR_SHIFT, buf, bytes);

		*nr += !err;
		first_err = first_err ? first_err : err;
	}
	io_buffer_free(buf);
	int err = device_flush(dev);
	if (err)
		*nr = 0;
	return first_err ? first_err : err;
}

/* With one of them equal to the primary, that may be written. */
static void backups_renew(struct super_publish *p, unsigned i)
{
	struct super *s = p->s;
	struct super_write_member *w = &s->write->members[i];
	struct sb_disk *primary;
	unsigned nr = 0;
	int err = super_copy_read(s->members[i].dev, le64_get(s->members[i].sb->layout.sb_offset[0]), &primary, NULL);

	if (err && err != -ENOMEM) {
		w->is_primary_unknown = true;
		w->has_stale_backups = false; /* there is nothing that they could be made from */
	} else {
		err = err ? err : backups_write(s, i, primary, &nr);
		w->has_stale_backups = err != 0;
		if (!nr)
			member_failed(p, i, err, "a copy can't be written");
	}
	free(primary);
}

static void stale_backups_renew(struct super_publish *p)
{
	for (unsigned i = 0; i < p->s->member_nr; i++)
		if (p->members[i].is_written && p->s->write->members[i].has_stale_backups)
			backups_renew(p, i);
}

/* The primary was flushed before others are written: they are older than it then. */
static void copy_failed(struct super_publish *p, unsigned i, unsigned copy, int err, const char *what)
{
	struct super_write_member *w = &p->s->write->members[i];

	member_failed(p, i, err, what);
	w->is_primary_unknown = !copy;
	w->has_stale_backups = copy != 0;
	if (copy)
		w->primary_seq = le64_get(p->s->sb->seq);
}

/* One I/O for copy @copy to every member for which that makes sense; members where it fails drop out. */
static void members_io(struct super_publish *p, enum device_op op, unsigned copy, const char *what)
{
	struct io_group group;

	io_group_init_for(&group, p->s->member_nr);
	for (unsigned i = 0; i < p->s->member_nr; i++) {
		struct sb_disk *sb = (struct sb_disk *)p->members[i].buf;
		struct device *dev = p->s->members[i].dev;

		if (!p->members[i].is_written || (op == DEVICE_WRITE && copy >= sb->layout.nr_superblocks))
			continue;
		p->members[i].io = (struct device_io){ .op = op, .dev = dev, .ctx = &p->members[i] };
		if (op == DEVICE_WRITE) {
			size_t bytes = round_up_u64(sb_bytes(sb), write_unit(dev));

			sb->offset = sb->layout.sb_offset[copy];
			sb_seal(sb, super_sb_csum_type(p->s->options[OPT_METADATA_CHECKSUM]));
			p->members[i].iov = (struct iovec){ sb, bytes };
			p->members[i].io.offset_bytes = le64_get(sb->offset) << SECTOR_SHIFT;
			p->members[i].io.iov = &p->members[i].iov;
			p->members[i].io.iov_nr = 1;
			p->members[i].io.len_bytes = bytes;
		}
		io_submit(&group, &p->members[i].io);
	}
	for (struct device_io *io; (io = io_group_next(&group));)
		for (unsigned i = 0; io->err && i < p->s->member_nr; i++)
			if (io == &p->members[i].io)
				copy_failed(p, i, copy, io->err, what);
}

static void copies_write(struct super_publish *p)
{
	unsigned copies_max = 0;

	for (unsigned i = 0; i < p->s->member_nr; i++)
		if (p->members[i].buf)
			copies_max =
				max(copies_max, (unsigned)((struct sb_disk *)p->members[i].buf)->layout.nr_superblocks);
	for (unsigned copy = 0; copy < copies_max; copy++) {
		members_io(p, DEVICE_WRITE, copy, "a copy can't be written");
		if (!copy && !is_mutant(MUTANT_SUPER_BACKUPS))
			members_io(p, DEVICE_FLUSH, 0, "the primary copy can't be flushed");
	}
	members_io(p, DEVICE_FLUSH, 1, "copies can't be flushed");
}

/* --- step 9: was that enough? --- */

static int result_check(struct super_publish *p)
{
	struct super *s = p->s;
	bool is_there[SB_MEMBERS_MAX] = { 0 };
	unsigned written = 0;

	for (unsigned i = 0; i < s->member_nr; i++) {
		struct super_write_member *w = &s->write->members[i];

		is_there[i] = p->members[i].is_written;
		if (!is_there[i])
			continue;
		written++;
		w->primary_seq = le64_get(s->sb->seq);
		w->is_primary_unknown = w->has_stale_backups = false;
	}
	if (written && (!super_replicas_are_lost(s, is_there) || s->write->is_very_degraded_ok))
		return 0;
	return report_failed(s, s->write->is_optional ? REPORT_DAMAGE : REPORT_FATAL, -EIO, NULL,
			     written ? "too few devices could be written to open the filesystem from them"
				     : "no device could be written",
			     s->write->is_optional ? "It was to note errors only, and the next one does."
						   : "Nothing is written any more.");
}

/* What others read without lock isn't written, but for the state (super.h). */
static void members_refresh(struct super *s)
{
	for (unsigned i = 0; i < s->member_nr; i++) {
		struct member *now = &s->members[i].m, m;

		sb_member(s->sb, i, &m);
		__atomic_store_n(&now->state, m.state, __ATOMIC_RELAXED);
		now->is_freespace_initialized = m.is_freespace_initialized;
		now->flags = m.flags;
		now->last_mount = m.last_mount;
		now->seq = m.seq;
	}
}

static void publish_free(struct super_publish *p)
{
	for (unsigned i = 0; i < p->s->member_nr; i++)
		io_buffer_free(p->members[i].buf);
	free(p);
}

/* *@is_final: it failed after something may have been written. */
static int publish(struct super *s, bool *is_final)
{
	struct super_publish *p = calloc(1, sizeof(*p));
	int err = -ENOMEM;

	*is_final = false;
	if (!p)
		return err;
	p->s = s;
	err = master_prepare(p);
	if (!err)
		err = copies_make(p);
	if (err)
		goto out;
	members_refresh(s);
	if (!SB_INITIALIZED(s->sb))
		goto out;

	for (unsigned i = 0; i < s->member_nr && !err; i++)
		err = member_is_updated(s, i) ? primary_check(s, i) : 0;
	*is_final = err != -ENOMEM; /* nothing has been written yet */
	if (err)
		goto out;
	stale_backups_renew(p);
	copies_write(p);
	err = result_check(p);
	if (err && s->write->is_optional) {
		/* As after a crash in its midst: what is there of it stays behind the next one. */
		s->write->seq_torn = max(s->write->seq_torn, le64_get(s->sb->seq));
		*is_final = false;
	}
out:
	if (err && !*is_final)
		errors_give_back(p);
	publish_free(p);
	return err;
}

/* --- changes --- */

int super_change_begin(struct super *s)
{
	struct super_write *w = s->write;

	mutex_lock(&w->lock);
	if (w->err) {
		int err = w->err;
		mutex_unlock(&w->lock);
		return err;
	}
	memcpy(w->saved, s->sb, sb_bytes(s->sb));
	return 0;
}

int super_change_publish(struct super *s, int err)
{
	struct super_write *w = s->write;
	bool is_final = false;

	if (!err)
		err = publish(s, &is_final);
	if (err && is_final) {
		w->err = err;
	} else if (err) {
		memcpy(s->sb, w->saved, sb_bytes(w->saved));
		if (w->saved_copy)
			memcpy(w->saved_copy_of->sb, w->saved_copy, sb_bytes(w->saved_copy));
	} else {
		__atomic_store_n(&w->features_durable, le64_get(s->sb->features[0]), __ATOMIC_RELEASE);
	}
	free(w->saved_copy);
	w->saved_copy = NULL;
	return err;
}

int super_change_end(struct super *s, int err)
{
	err = super_change_publish(s, err);
	mutex_unlock(&s->write->lock);
	return err;
}

/* --- opening and closing --- */

static const uint8_t csum_types[] = { CHECKSUM_NONE, CHECKSUM_CRC32C_NONZERO, CHECKSUM_CRC64_NONZERO, CHECKSUM_XXHASH };

bool super_is_encrypted(const struct super *s) { return SB_ENCRYPTION_TYPE(s->sb) != 0; }

unsigned super_metadata_csum_type(const struct super *s)
{
	return super_is_encrypted(s) ? (unsigned)CHECKSUM_CHACHA20_POLY1305_128
				     : csum_types[s->options[OPT_METADATA_CHECKSUM]];
}

unsigned super_data_csum_type(const struct super *s, uint64_t data_checksum)
{
	static const uint8_t types[] = { CHECKSUM_NONE, CHECKSUM_CRC32C, CHECKSUM_CRC64, CHECKSUM_XXHASH };

	if (!super_is_encrypted(s))
		return data_checksum < ARRAY_NR(types) ? types[data_checksum] : (unsigned)CHECKSUM_TYPE_NR;
	return s->options[OPT_WIDE_MACS] ? CHECKSUM_CHACHA20_POLY1305_128 : CHECKSUM_CHACHA20_POLY1305_80;
}

unsigned super_sb_csum_type(uint64_t metadata_checksum)
{
	return metadata_checksum ? csum_types[metadata_checksum] : (unsigned)CHECKSUM_CRC32C_NONZERO;
}

bool super_option_unsupported(enum option_id id, uint64_t value, char why[256])
{
	if (id != OPT_ERASURE_CODE || !value)
		return false;
	snprintf(why, 256, "%s: erasure coded data can be read but not written yet", option_table[id].name);
	return true;
}

const char *super_option_idle(enum option_id id, uint64_t value)
{
	switch ((unsigned)id) {
	case OPT_PROMOTE_TARGET:
		return value ? "is kept, but no cached copies of what is read are made in this version" : NULL;
	case OPT_BACKGROUND_TARGET:
		return value ? "is kept, but in this version only what is moved to make room goes there" : NULL;
	case OPT_BACKGROUND_COMPRESSION:
		return value ? "is kept, but in this version only what is moved to make room is compressed later"
			     : NULL;
	case OPT_ERRORS: return value != OPTION_ERRORS_RO ? "is kept, but the filesystem goes read-only instead" : NULL;
	case OPT_ROOT_RESERVE_PERCENT: return value ? "is kept, but in this version all space is everybody's" : NULL;
	case OPT_JOURNAL_FLUSH_DISABLED:
		return value ? "is kept, but fsync and sync flush the journal all the same" : NULL;
	default: return NULL;
	}
}

bool super_write_unsupported(const struct super *s, char why[256])
{
	unsigned version = le16_get(s->sb->version);
	struct strbuf text = strbuf_fixed(why, 256);
	struct sb_ext ext;

	if (s->write_refused[0]) {
		strbuf_add(&text, s->write_refused);
		return true;
	}
	sb_ext(s->sb, &ext);
	if (version > VERSION_1_4)
		strbuf_printf(&text, "its version, %u.%u, is newer than 1.4", VERSION_MAJOR(version),
			      VERSION_MINOR(version));
	else if (sb_has_feature(s->sb, SB_FEATURE_EC))
		strbuf_add(&text, "it may hold erasure coded stripes (feature ec)");
	else if (SB_HAS_TOPOLOGY_ERRORS(s->sb))
		strbuf_add(&text, "its btrees have errors that must be repaired first");
	else if (ext.passes_required[0] || ext.passes_required[1])
		strbuf_printf(&text, "it needs repair first (recovery passes %#" PRIx64 ")", ext.passes_required[0]);
	return text.len != 0;
}

/* Keeps the reason; super_write_open() reports it unless reading is enough. */
static int write_refuse(struct super *s, int err, const char *device, const char *found)
{
	struct strbuf text = strbuf_fixed(s->write_refused, sizeof(s->write_refused));

	if (device)
		strbuf_printf(&text, "%s: ", device);
	strbuf_add(&text, found);
	return err;
}

/* Note the seq of a primary that is no good, if it can be that of an update of this filesystem which was cut off. */
static void torn_seq_note(struct super *s, const struct super_member *m)
{
	enum { CUT_OFF_MAX = 1024 }; /* one after the other; beyond that it's damage */
	uint8_t head[4096] __attribute__((aligned(8)));
	const struct sb_disk *sb = (const struct sb_disk *)head;

	if (device_read(m->dev, le64_get(m->sb->layout.sb_offset[0]) << SECTOR_SHIFT, head, sizeof(head)) ||
	    memcmp(sb->uuid, s->sb->uuid, sizeof(sb->uuid)))
		return;
	uint64_t seq = le64_get(sb->seq);
	if (seq > le64_get(s->sb->seq) && seq - le64_get(s->sb->seq) <= CUT_OFF_MAX)
		s->write->seq_torn = max(s->write->seq_torn, seq);
}

static int stale_backups_look(struct super *s, unsigned i)
{
	const struct super_member *m = &s->members[i];
	struct super_write_member *w = &s->write->members[i];

	for (unsigned copy = 1; copy < m->sb->layout.nr_superblocks && !w->has_stale_backups; copy++) {
		struct sb_disk *sb;
		int err = super_copy_read(m->dev, le64_get(m->sb->layout.sb_offset[copy]), &sb, NULL);

		if (err == -ENOMEM)
			return err;
		w->has_stale_backups = err || le64_get(sb->seq) != w->primary_seq;
		free(sb);
	}
	return 0;
}

/* What the primary copy says. One that is damaged will be overwritten; one that is whole must be the copy in use. */
static int primary_read(struct super *s, unsigned i)
{
	const struct super_member *m = &s->members[i];
	struct super_write_member *w = &s->write->members[i];
	struct sb_disk *primary;
	char found[128];
	int err = super_copy_read(m->dev, le64_get(m->sb->layout.sb_offset[0]), &primary, NULL);

	if (err == -ENOMEM)
		return err;
	if (err && !primary) {
		w->is_primary_unknown = true;
		torn_seq_note(s, m);
		return 0;
	}
	w->primary_seq = le64_get(primary->seq);
	bool is_same =
		!memcmp(primary->uuid, s->sb->uuid, sizeof(primary->uuid)) && w->primary_seq == le64_get(m->sb->seq);
	free(primary);
	if (is_same)
		return stale_backups_look(s, i);
	snprintf(found, sizeof(found), "its primary superblock has seq %" PRIu64 ", and another copy %" PRIu64,
		 w->primary_seq, le64_get(m->sb->seq));
	return write_refuse(s, -EROFS, m->name, found);
}

/* May this member be written, and its superblock grow in place? */
static int member_write_open(struct super *s, unsigned i)
{
	struct super_member *m = &s->members[i];
	struct super_write_member *w = &s->write->members[i];
	size_t room = reserved_bytes(m->sb);
	struct fault fault = { 0 };

	if (m->dev->is_readonly)
		return write_refuse(s, -EROFS, m->name, "the device is read-only");
	if (m->dev->size_bytes < super_member_bytes(m))
		return write_refuse(s, -EROFS, m->name, "the device is smaller than what it should hold");
	if (room % write_unit(m->dev) || room < sb_bytes(m->sb))
		return write_refuse(s, -EROFS, m->name, "its superblocks have less room than a block of the device");
	if (sb_validate(m->sb, false, &fault)) {
		char found[256];

		snprintf(found, sizeof(found), "%s in its superblock is %s", fault.field, fault.found);
		return write_refuse(s, -EROFS, m->name, found);
	}
	/* Entries, nodes and data begin where buckets do, and end in whole blocks. */
	if (m->m.bucket_sectors % le16_get(m->sb->block_size))
		return write_refuse(s, -EROFS, m->name, "its buckets don't consist of whole blocks");

	struct sb_disk *sb = calloc(1, room);
	if (!sb)
		return -ENOMEM;
	memcpy(sb, m->sb, sb_bytes(m->sb));
	free(m->sb);
	m->sb = sb;
	w->copy = (struct sb_edit){ sb, room };
	member_errors_now(s, i, w->errors_before);
	memcpy(w->errors_counted, w->errors_before, sizeof(w->errors_counted));
	return primary_read(s, i);
}

static int master_write_open(struct super *s, size_t room)
{
	struct super_write *w = s->write;
	struct sb_disk *sb = calloc(1, room);

	w->saved = calloc(1, room);
	if (!sb || !w->saved) {
		free(sb);
		return -ENOMEM;
	}
	memcpy(sb, s->sb, sb_bytes(s->sb));
	free(s->sb);
	s->sb = sb;
	w->master = (struct sb_edit){ sb, room };
	sb_section_delete(&w->master, SB_JOURNAL);
	sb_section_delete(&w->master, SB_JOURNAL_V2);
	return sb_members_prepare(&w->master);
}

/* The entries that all superblocks have already. */
static int replicas_load(struct super *s)
{
	struct replicas_walk walk = sb_replicas_walk(s->sb);
	struct replicas_entry e;

	while (sb_replicas_next(&walk, &e, NULL) > 0) {
		int err = super_replicas_publish(s, &e);
		if (err)
			return err;
	}
	return 0;
}

static int write_open_steps(struct super *s, const struct super_open_opts *opts)
{
	char why[256];
	size_t room = sb_bytes(s->sb);
	int err = 0;

	if (super_write_unsupported(s, why))
		return write_refuse(s, -KILN_E_UNSUPPORTED, NULL, why);
	s->write = calloc(1, sizeof(*s->write));
	if (!s->write)
		return -ENOMEM;
	mutex_init_ranked(&s->write->lock, LOCK_SUPERS);
	s->write->is_very_degraded_ok = super_accepts_very_degraded(opts);
	s->write->members = calloc(s->member_nr, sizeof(*s->write->members));
	if (!s->write->members)
		return -ENOMEM;

	for (unsigned i = 0; i < s->member_nr && !err; i++) {
		if (!s->members[i].dev)
			continue;
		err = member_write_open(s, i);
		if (!err)
			room = max(room, s->write->members[i].copy.bytes_max);
	}
	if (!err)
		err = master_write_open(s, room);
	s->write->features_durable = le64_get(s->sb->features[0]);
	return err ? err : replicas_load(s);
}

int super_write_open(struct super *s, const struct super_open_opts *opts)
{
	int err = write_open_steps(s, opts);

	if (err != -KILN_E_UNSUPPORTED && err != -EROFS)
		return err;
	super_write_close(s);
	if (opts->is_readonly_ok)
		return 0;
	report_emit(s->reports, &(struct report){ .level = REPORT_FATAL,
						  .err = err,
						  .structure = "filesystem",
						  .expected = "one that can be written",
						  .found = s->write_refused,
						  .advice = "Open it read-only." });
	return err;
}

void super_write_close(struct super *s)
{
	struct super_write *w = s->write;

	if (!w)
		return;
	for (unsigned i = 0; i < SUPER_REPLICAS_HASH; i++)
		for (struct super_replicas *r = w->replicas[i], *next; r; r = next) {
			next = r->next;
			free(r);
		}
	mutex_destroy(&w->lock);
	free(w->members);
	free(w->saved);
	free(w);
	s->write = NULL;
}
