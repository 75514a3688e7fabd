/*
 * The changes that a running filesystem makes to its superblocks. Each is one update of all copies (super_write.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mutant.h"
#include "base/secret.h"
#include "super/super_private.h"

enum {
	/* What may not be missing while a filesystem is dirty, and what says so (01 §6.1). */
	FEATURES_DIRTY = 0x63200,
	FEATURES_DIRTY_ONLY = 0x3000,
	FEATURES_FRESH = 0x7ba80,
	COMPAT_CLEAN = 1 << SB_COMPAT_ALLOC_INFO | 1 << SB_COMPAT_ALLOC_METADATA,
	COMPAT_FRESH = 1 << SB_COMPAT_EXTENTS_ABOVE_BTREE_UPDATES_DONE | 1 << SB_COMPAT_BFORMAT_OVERFLOW_DONE,
};

static void word_change(le64 *word, uint64_t set, uint64_t clear) { *word = le64_of((le64_get(*word) | set) & ~clear); }

int super_update(struct super *s)
{
	int err = super_change_begin(s);

	return err ? err : super_change_end(s, 0);
}

void super_lock(struct super *s)
{
	if (s->write)
		mutex_lock(&s->write->lock);
}

void super_lock_release(struct super *s)
{
	if (s->write)
		mutex_unlock(&s->write->lock);
}

/* --- the life of a mount --- */

/*
 * To 1.4 (01 §5). What recovery has to do for it, it does afterwards, and says so with super_mark_recovered(): until
 * then the old version stays noted as the one that is complete.
 */
static void version_raise(struct super *s)
{
	uint16_t version = le16_get(s->sb->version);

	if (version >= VERSION_1_4 ||
	    (version == VERSION(1, 3) && s->options[OPT_VERSION_UPGRADE] == OPTION_VERSION_UPGRADE_NONE))
		return;
	sb_flag_set(s->sb, 5, 0, 16, sb_upgrade_complete(s->sb));
	s->sb->version = le16_of(VERSION_1_4);
	word_change(&s->sb->features[0], FEATURES_FRESH, 0);
	s->kctx.version = VERSION_1_4;
}

int super_mark_dirty(struct super *s)
{
	int err = super_change_begin(s);

	if (err)
		return err;
	if (is_mutant(MUTANT_DIRTY_MARK)) {
		super_lock_release(s);
		return 0;
	}
	version_raise(s);
	sb_flag_set(s->sb, 0, 1, 2, 0);
	word_change(&s->sb->features[0], FEATURES_DIRTY, 0);
	for (unsigned i = 0; i < s->member_nr; i++)
		if (s->members[i].dev)
			sb_member_record(&s->write->master, i)->last_mount = le64_of(clock_realtime_ns() / 1000000000);
	return super_change_end(s, 0);
}

int super_mark_clean(struct super *s, uint64_t journal_seq, const void *tail, unsigned tail_u64s, const void *roots,
		     unsigned roots_u64s)
{
	int err = super_change_begin(s);

	if (err)
		return err;
	err = sb_clean_set(&s->write->master, journal_seq, tail, tail_u64s, roots, roots_u64s);
	sb_flag_set(s->sb, 0, 1, 2, 1);
	word_change(&s->sb->features[0], 0, FEATURES_DIRTY_ONLY);
	word_change(&s->sb->compat[0], COMPAT_CLEAN, 0);
	return super_change_end(s, err);
}

int super_mark_initialized(struct super *s)
{
	int err = super_change_begin(s);

	if (err)
		return err;
	sb_flag_set(s->sb, 0, 0, 1, 1);
	sb_flag_set(s->sb, 0, 1, 2, 0);
	sb_flag_set(s->sb, 5, 0, 16, VERSION_1_4);
	word_change(&s->sb->features[0], FEATURES_DIRTY, 0);
	word_change(&s->sb->compat[0], COMPAT_FRESH, 0);
	return super_change_end(s, 0);
}

static struct sb_ext_disk *ext_ensure(struct super *s)
{
	return (struct sb_ext_disk *)sb_section_ensure(&s->write->master, SB_EXT, SB_EXT_BYTES_1_4 / 8);
}

int super_mark_recovered(struct super *s)
{
	int err = super_change_begin(s);

	if (err)
		return err;
	struct sb_ext_disk *ext = ext_ensure(s);
	if (ext) {
		memset(ext->passes_required, 0, sizeof(ext->passes_required));
		memset(ext->errors_silent, 0, sizeof(ext->errors_silent));
	}
	sb_flag_set(s->sb, 5, 0, 16, le16_get(s->sb->version));
	return super_change_end(s, ext ? 0 : -ENOSPC);
}

/* --- replicas --- */

static unsigned replicas_hash(const struct replicas_entry *e)
{
	uint64_t hash = (uint64_t)e->data_type << 16 | (uint64_t)e->nr_devs << 8 | e->nr_required;

	for (unsigned i = 0; i < e->nr_devs; i++)
		hash = hash * 31 + e->devs[i];
	return (unsigned)(hash * 0x9e3779b97f4a7c15ull >> 58);
}
_Static_assert(SUPER_REPLICAS_HASH == 64, "six bits of hash");

static bool replicas_are_published(struct super *s, const struct replicas_entry *e)
{
	const struct super_replicas *r = __atomic_load_n(&s->write->replicas[replicas_hash(e)], __ATOMIC_ACQUIRE);

	for (; r; r = r->next)
		if (r->entry.data_type == e->data_type && r->entry.nr_devs == e->nr_devs &&
		    r->entry.nr_required == e->nr_required && !memcmp(r->devs, e->devs, e->nr_devs))
			return true;
	return false;
}

int super_replicas_publish(struct super *s, const struct replicas_entry *e)
{
	struct super_replicas **head = &s->write->replicas[replicas_hash(e)];
	struct super_replicas *r = calloc(1, sizeof(*r) + e->nr_devs);

	if (!r)
		return -ENOMEM;
	memcpy(r->devs, e->devs, e->nr_devs);
	r->entry = *e;
	r->entry.devs = r->devs;
	r->next = *head;
	__atomic_store_n(head, r, __ATOMIC_RELEASE);
	return 0;
}

/*
 * Are so many of its devices marked as failed that the others don't hold what it stands for? (Those that don't exist
 * are another matter.) The lock is held.
 */
static bool replicas_are_on_failed(const struct super *s, const struct replicas_entry *e)
{
	unsigned there = 0;

	for (unsigned i = 0; i < e->nr_devs; i++)
		there += e->devs[i] >= s->member_nr || super_member_state(s, e->devs[i]) != MEMBER_FAILED;
	return there < max((unsigned)e->nr_required, 1u);
}

static int replicas_entry_mark(struct super *s, const struct replicas_entry *entry)
{
	if (replicas_are_published(s, entry))
		return 0;

	int err = super_change_begin(s);
	if (err)
		return err;
	/* Who waited for the one that added the same entry finds it here, durable. */
	bool is_new = !sb_replicas_has(s->sb, entry);
	/* Written before the device failed, but only now to be pointed at: what it has got since then is lost. */
	if (is_new && replicas_are_on_failed(s, entry))
		err = -EIO;
	else if (is_new && !is_mutant(MUTANT_REPLICAS_BEFORE_USE))
		err = super_change_publish(s, sb_replicas_add(&s->write->master, entry));
	if (!err && !replicas_are_published(s, entry))
		err = super_replicas_publish(s, entry);
	super_lock_release(s);
	return err;
}

int super_replicas_mark(struct super *s, unsigned data_type, unsigned nr_required, const uint8_t *devs,
			unsigned nr_devs)
{
	uint8_t sorted[UINT8_MAX];

	if (nr_devs > sizeof(sorted))
		return -EINVAL;
	for (unsigned i = 0; i < nr_devs; i++) {
		unsigned at = i;

		for (; at && sorted[at - 1] > devs[i]; at--)
			sorted[at] = sorted[at - 1];
		sorted[at] = devs[i];
	}
	return replicas_entry_mark(
		s, &(struct replicas_entry){ (uint8_t)data_type, (uint8_t)nr_devs, (uint8_t)nr_required, sorted });
}

/* --- others --- */

int super_blacklist_add(struct super *s, uint64_t start, uint64_t end)
{
	if (start >= end)
		return -EINVAL;
	if (is_mutant(MUTANT_BLACKLIST))
		return 0;
	int err = super_change_begin(s);
	return err ? err : super_change_end(s, sb_blacklist_add(&s->write->master, start, end));
}

int super_blacklist_keep(struct super *s, const bool *is_needed)
{
	int err = super_change_begin(s);

	if (err)
		return err;
	sb_blacklist_keep(&s->write->master, is_needed);
	return super_change_end(s, 0);
}

bool super_has_feature(const struct super *s, enum sb_feature feature)
{
	if (!s->write)
		return sb_has_feature(s->sb, feature);
	return __atomic_load_n(&s->write->features_durable, __ATOMIC_ACQUIRE) >> feature & 1;
}

int super_feature_set(struct super *s, enum sb_feature feature)
{
	uint64_t bit = 1ull << feature;

	if (super_has_feature(s, feature))
		return 0;
	int err = super_change_begin(s);
	if (err)
		return err;
	/* Who waited for the one that set it finds it set. */
	if (!super_has_feature(s, feature)) {
		word_change(&s->sb->features[0], bit, 0);
		if (is_mutant(MUTANT_FEATURE_BEFORE_USE))
			__atomic_fetch_or(&s->write->features_durable, bit, __ATOMIC_RELEASE);
		else
			err = super_change_publish(s, 0);
	}
	super_lock_release(s);
	return err;
}

int super_member_flags_set(struct super *s, unsigned dev, unsigned lo, unsigned hi, uint64_t value)
{
	if (dev >= s->member_nr || !s->members[dev].m.exists)
		return -EINVAL;
	int err = super_change_begin(s);
	if (err)
		return err;
	struct sb_member_disk *m = sb_member_record(&s->write->master, dev);
	m->flags = le64_of(bits_set(le64_get(m->flags), lo, hi, value));
	return super_change_end(s, 0);
}

int super_member_fail(struct super *s, unsigned dev)
{
	bool is_there[SB_MEMBERS_MAX] = { 0 };
	int err = super_change_begin(s);

	if (err)
		return err;
	for (unsigned i = 0; i < s->member_nr; i++)
		is_there[i] = i != dev && s->members[i].dev && s->members[i].m.state != MEMBER_FAILED;
	if (super_replicas_are_lost(s, is_there))
		return super_change_end(s, -EROFS);
	struct sb_member_disk *m = sb_member_record(&s->write->master, dev);
	m->flags = le64_of(bits_set(le64_get(m->flags), 0, 4, MEMBER_FAILED));
	s->write->members[dev].is_given_up = true;
	err = super_change_publish(s, 0);
	if (err)
		s->write->members[dev].is_given_up = false;
	super_lock_release(s);
	return err;
}

static bool errors_are_pending(const struct super *s)
{
	struct super_errors errors;
	uint64_t pending = 0;

	for (unsigned i = 0; i < s->member_nr; i++) {
		super_member_errors(s, i, &errors);
		for (unsigned k = 0; k < SUPER_ERROR_KINDS; k++)
			pending |=
				s->members[i].dev ? errors.since_open[k] ^ s->write->members[i].errors_counted[k] : 0;
	}
	for (unsigned id = 0; id < SUPER_ERROR_IDS; id++)
		pending |= __atomic_load_n(&s->write->errors_pending[id], __ATOMIC_RELAXED);
	return pending;
}

int super_errors_update(struct super *s)
{
	int err = super_change_begin(s);

	if (err)
		return err;
	if (errors_are_pending(s)) {
		s->write->is_optional = true;
		err = super_change_publish(s, 0);
		s->write->is_optional = false;
	}
	super_lock_release(s);
	return err;
}

void super_checksum_error_count(struct super *s, unsigned dev)
{
	static const uint64_t SUSPECT_NS = 60000000000;

	if (dev >= s->member_nr)
		return;
	__atomic_fetch_add(&s->members[dev].checksum_errors, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&s->members[dev].suspect_until_ns, clock_monotonic_ns() + SUSPECT_NS, __ATOMIC_RELAXED);
}

int super_journal_set(struct super *s, unsigned dev, const struct sb_journal_range *ranges, size_t nr)
{
	if (!super_member_online(s, dev))
		return -EINVAL;
	int err = super_change_begin(s);
	if (err)
		return err;

	/* This section is the member's own, so it is changed there and not in the master. */
	struct super_write *w = s->write;
	struct sb_edit *copy = &w->members[dev].copy;
	w->saved_copy_of = copy;
	w->saved_copy = malloc(sb_bytes(copy->sb));
	err = -ENOMEM;
	if (w->saved_copy) {
		memcpy(w->saved_copy, copy->sb, sb_bytes(copy->sb));
		err = sb_journal_set(copy, ranges, nr);
	}
	return super_change_end(s, err);
}

enum { FEATURE_NONE = 64 };

static unsigned option_feature(enum option_id id, uint64_t value)
{
	static const unsigned by_type[] = { FEATURE_NONE, SB_FEATURE_LZ4, SB_FEATURE_GZIP, SB_FEATURE_ZSTD };

	if (id == OPT_COMPRESSION || id == OPT_BACKGROUND_COMPRESSION)
		return by_type[option_compression_type(value)];
	return id == OPT_ERASURE_CODE && value ? SB_FEATURE_EC : FEATURE_NONE;
}

int super_option_features_set(struct super *s, enum option_id id, uint64_t value)
{
	unsigned feature = option_feature(id, value);

	return feature == FEATURE_NONE ? 0 : super_feature_set(s, (enum sb_feature)feature);
}

int super_option_set(struct super *s, enum option_id id, uint64_t value)
{
	if (id == OPT_BLOCK_SIZE || id == OPT_BTREE_NODE_SIZE || !option_is_stored(id) || !option_is_valid(id, value))
		return -EINVAL;
	int err = super_change_begin(s);
	if (err)
		return err;
	err = option_to_sb(id, s->sb, value);
	unsigned feature = option_feature(id, value);
	if (!err && feature != FEATURE_NONE)
		word_change(&s->sb->features[0], 1ull << feature, 0);
	uint64_t before = s->options[id];
	s->options[id] = value; /* the metadata checksum counts from this update on */
	err = super_change_end(s, err);
	if (err)
		s->options[id] = before;
	return err;
}

static bool has_missing_member(const struct super *s)
{
	for (unsigned i = 0; i < s->member_nr; i++)
		if (s->members[i].m.exists && !s->members[i].dev)
			return true;
	return false;
}

/* What the crypt section is to say. The slow part, so nothing is locked yet; the key itself never changes. */
static int crypt_make(struct super *s, const void *passphrase, size_t len, struct sb_crypt *c)
{
	struct crypt_key *user_key = passphrase ? secret_alloc(sizeof(*user_key)) : NULL;
	int err = passphrase && !user_key ? -ENOMEM : 0;

	if (!err && passphrase) {
		sb_crypt_kdf_choose(c);
		err = sb_crypt_derive(c, passphrase, len, user_key);
	}
	if (!err)
		sb_crypt_seal(s->sb, c, user_key, s->key);
	secret_free(user_key);
	return err;
}

int super_passphrase_set(struct super *s, const void *passphrase, size_t len)
{
	struct sb_crypt c;

	super_lock(s);
	bool has_crypt = sb_crypt(s->sb, &c);
	super_lock_release(s);
	if (!has_crypt || !s->key)
		return -EINVAL;
	if (has_missing_member(s))
		return -ENODEV;
	int err = crypt_make(s, passphrase, len, &c);
	if (!err)
		err = super_change_begin(s);
	if (!err)
		err = super_change_end(s, sb_crypt_set(&s->write->master, &c));
	secret_wipe(&c, sizeof(c));
	return err;
}

int super_quota_ensure(struct super *s)
{
	struct sb_quota q;

	super_lock(s);
	bool is_there = sb_quota(s->sb, &q);
	super_lock_release(s);
	if (is_there)
		return 0;
	int err = super_change_begin(s);
	return err ? err : super_change_end(s, sb_quota_ensure(&s->write->master) ? 0 : -ENOSPC);
}

int super_quota_timelimit_set(struct super *s, unsigned type, unsigned counter, uint32_t seconds)
{
	int err = super_change_begin(s);

	return err ? err : super_change_end(s, sb_quota_timelimit_set(&s->write->master, type, counter, seconds));
}

void super_error_count(struct super *s, unsigned error_id)
{
	if (s->write && error_id < SUPER_ERROR_IDS)
		__atomic_fetch_add(&s->write->errors_pending[error_id], 1, __ATOMIC_RELAXED);
}

void super_error_note(struct super *s, bool is_topology)
{
	if (!s->write)
		return;
	__atomic_store_n(&s->write->has_errors, true, __ATOMIC_RELAXED);
	if (is_topology)
		__atomic_store_n(&s->write->has_topology_errors, true, __ATOMIC_RELAXED);
}
