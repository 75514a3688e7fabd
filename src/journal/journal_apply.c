/*
 * What entries say besides keys: btree roots, counters and clocks; and the keys themselves, for the overlay.
 *
 * Entries and the superblock's clean section consist of the same sub-entries, so one function takes over both. Later
 * ones replace earlier ones. A sub-entry that breaks a rule is reported and left out; an unusable root is remembered as
 * damaged, because a btree whose root can't be found is not the same as one that doesn't exist.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/strbuf.h"
#include "format/version.h"
#include "journal/journal_private.h"

/* Kinds of usage sub-entries, in the field btree_id (03 §3.2). */
enum usage_kind { USAGE_RESERVED, USAGE_INODES, USAGE_KEY_VERSION };

/* A root is a pointer to a node of level n, so the rules of keys in level n + 1 hold. */
static int root_decode(const struct journal_state *state, const struct jset_entry_disk *e, struct btree_root *root,
		       struct fault *fault)
{
	struct jset_key_walk w = jset_key_walk_of(e);
	struct bkey_ref k, second;

	int ret = jset_key_walk_next(&w, &k, fault);
	if (ret > 0 && jset_key_walk_next(&w, &second, NULL) != 0)
		ret = 0;
	if (ret < 0)
		return ret;
	if (!ret)
		return fault_set(fault, ERROR_journal_entry_btree_root_bad_size, "btree_root", "exactly one key", "%s",
				 "none, or several");
	if (e->btree_id < BTREE_NR_KNOWN) {
		if (e->level > BTREE_LEVEL_MAX)
			return fault_set(fault, ERROR_btree_root_bkey_invalid, "level", "at most 3", "%u", e->level);
		if (k.k.type != KEY_BTREE_PTR_V2)
			return fault_set(fault, ERROR_btree_root_bkey_invalid, "type", "btree_ptr_v2", "%u", k.k.type);
		ret = key_validate(k, e->btree_id, e->level + 1, &state->super->kctx, fault);
		if (ret)
			return ret;
	}
	root->key = k.k;
	memcpy(root->value, k.value, bkey_value_bytes(&k.k));
	return 0;
}

static void root_apply(struct journal_state *state, const struct jset_entry_disk *e, const char *where)
{
	struct fault fault = { 0 };
	char position[160];

	if (e->btree_id >= BTREE_NR_MAX)
		return;
	struct btree_root *root = &state->roots[e->btree_id];
	*root = (struct btree_root){ .exists = true, .level = e->level };
	if (!root_decode(state, e, root, &fault))
		return;
	root->is_damaged = true;
	if (!fault.id)
		fault.id = ERROR_btree_root_bkey_invalid;
	const char *name = btree_name(e->btree_id);
	snprintf(position, sizeof(position), "root of btree %u (%s), %s", e->btree_id, name ? name : "unknown", where);
	report_fault(state->super->reports, REPORT_DAMAGE, &fault, NULL, "journal", position);
}

static void usage_apply(struct journal_state *state, const struct jset_entry_disk *e)
{
	uint64_t v = le64_load(jset_entry_payload(e));

	if (e->btree_id == USAGE_KEY_VERSION) {
		state->key_version = v;
		state->has_key_version = true;
	}
	/* From 1.9 on counters are keys; what an older version left in this form is out of date (12 §5.1). */
	if (state->super->kctx.upgrade_complete >= VERSION(1, 9))
		return;
	if (e->btree_id == USAGE_INODES) {
		state->nr_inodes = v;
		state->has_usage = true;
	} else if (e->btree_id == USAGE_RESERVED && e->level < ARRAY_NR(state->reserved)) {
		state->reserved[e->level] = v;
		state->has_reserved |= 1u << e->level;
	}
}

/* What it says is for whoever wants to know (alloc/usage.h). */
static void dev_usage_note(struct journal_state *state, const struct jset_entry_disk *e)
{
	struct jset_dev_usage u;

	if (!jset_dev_usage_decode(e, &u, NULL) && u.dev < 64)
		state->has_dev_usage |= 1ull << u.dev;
}

bool journal_has_counters(const struct journal_state *state)
{
	const struct super *s = state->super;
	bool has_all = state->has_usage && state->has_key_version &&
		       state->has_reserved == (1u << ARRAY_NR(state->reserved)) - 1;

	for (unsigned i = 0; i < min(s->member_nr, 64u); i++)
		if (s->members[i].m.exists && s->members[i].m.bucket_sectors)
			has_all &= state->has_dev_usage >> i & 1;
	return has_all;
}

static int sub_entry_apply(struct journal_state *state, const struct jset_entry_disk *e, const char *where)
{
	const uint8_t *payload = jset_entry_payload(e);
	size_t bytes = jset_entry_payload_bytes(e);

	switch (e->type) {
	case JSET_ENTRY_BTREE_ROOT: root_apply(state, e, where); return 0;
	case JSET_ENTRY_USAGE:
		if (bytes >= 8)
			usage_apply(state, e);
		return 0;
	case JSET_ENTRY_DEV_USAGE: dev_usage_note(state, e); return 0;
	case JSET_ENTRY_CLOCK:
		if (bytes >= 16 && payload[0] < ARRAY_NR(state->io_clock))
			state->io_clock[payload[0]] = le64_load(payload + 8);
		return 0;
	case JSET_ENTRY_BLACKLIST:
		if (bytes != 8 || le64_load(payload) == UINT64_MAX)
			return 0;
		return journal_blacklist_append(state, le64_load(payload), le64_load(payload) + 1);
	case JSET_ENTRY_BLACKLIST_V2:
		if (bytes != 16 || le64_load(payload + 8) == UINT64_MAX)
			return 0;
		return journal_blacklist_append(state, le64_load(payload), le64_load(payload + 8) + 1);
	default: return 0;
	}
}

int journal_apply(struct journal_state *state, struct jset_walk walk, const char *where)
{
	const struct jset_entry_disk *e;
	struct fault fault = { 0 };
	int ret, err = 0;

	while (!err && (ret = jset_walk_next(&walk, &e, &fault)) > 0) {
		/* Roots are judged with their key, and damaged ones remembered. */
		if (e->type != JSET_ENTRY_BTREE_ROOT && jset_entry_validate(e, &state->super->kctx, &fault)) {
			report_fault(state->super->reports, REPORT_DAMAGE, &fault, NULL, "journal", where);
			fault = (struct fault){ 0 };
			continue;
		}
		err = sub_entry_apply(state, e, where);
	}
	if (!err && ret < 0)
		report_fault(state->super->reports, REPORT_DAMAGE, &fault, NULL, "journal", where);
	return err;
}

/* --- keys --- */

typedef int (*key_fn)(void *ctx, const struct journal_entry *e, uint32_t offset_words, unsigned btree_id,
		      unsigned level, const struct bkey_disk *key);

struct key_walk {
	const struct journal_state *state;
	const struct journal_entry *entry;
	const struct jset_disk *jset;
	uint8_t type; /* sub-entries that count: new keys, or the old ones in their place */
	bool (*wants)(const struct jset_entry_disk *e); /* NULL: all */
	bool is_reversed; /* the oldest key of a position wins, over everything not reversed */
	key_fn fn;
	void *ctx;
};

static void report_bad_key(const struct key_walk *kw, const struct jset_entry_disk *sub, const struct fault *fault)
{
	const char *name = btree_name(sub->btree_id);
	char position[128];

	snprintf(position, sizeof(position), "entry %" PRIu64 ", key of btree %u (%s) level %u", kw->entry->seq,
		 sub->btree_id, name ? name : "unknown", sub->level);
	report_fault(kw->state->super->reports, REPORT_DAMAGE, fault, NULL, "journal entry", position);
}

/* Hand out a key. In reversed order seq and offset count backwards from the top, above any real entry. */
static int key_emit(const struct key_walk *kw, const struct jset_entry_disk *sub, const struct bkey_disk *key)
{
	uint32_t offset = (uint32_t)(((const uint8_t *)key - (const uint8_t *)kw->jset) / 8);

	if (!kw->is_reversed)
		return kw->fn(kw->ctx, kw->entry, offset, sub->btree_id, sub->level, key);

	struct journal_entry order = *kw->entry;
	order.seq = UINT64_MAX - order.seq;
	return kw->fn(kw->ctx, &order, UINT32_MAX - offset, sub->btree_id, sub->level, key);
}

static int keys_walk_sub_entry(const struct key_walk *kw, const struct jset_entry_disk *sub)
{
	struct jset_key_walk w = jset_key_walk_of(sub);
	struct fault fault = { 0 };
	struct bkey_ref k;
	int ret;

	while ((ret = jset_key_walk_next(&w, &k, &fault)) != 0) {
		if (ret < 0) { /* the walk goes on behind it, if it can */
			report_bad_key(kw, sub, &fault);
			continue;
		}
		if (key_validate(k, sub->btree_id, sub->level, &kw->state->super->kctx, &fault)) {
			fault.id = ERROR_journal_entry_bkey_invalid;
			report_bad_key(kw, sub, &fault);
			fault = (struct fault){ 0 };
			continue;
		}
		/* Unpacked keys only: the header stands in front of the value. */
		const uint8_t *header = (const uint8_t *)k.value - sizeof(struct bkey_disk);
		ret = key_emit(kw, sub, (const struct bkey_disk *)header);
		if (ret)
			return ret;
	}
	return 0;
}

static int keys_walk_entry(const struct key_walk *kw)
{
	struct jset_walk w = jset_walk_of(kw->jset);
	const struct jset_entry_disk *sub;
	int ret = 0;

	while (!ret && jset_walk_next(&w, &sub, NULL) > 0)
		if (sub->type == kw->type && sub->btree_id < BTREE_NR_MAX && (!kw->wants || kw->wants(sub)) &&
		    !jset_entry_validate(sub, &kw->state->super->kctx, NULL))
			ret = keys_walk_sub_entry(kw, sub);
	return ret;
}

/* --- unfinished rewinds (12 §5.3) --- */

/* Btrees whose keys a rewind doesn't undo: they are derived from the others, and repaired afterwards. */
static bool btree_is_kept_by_rewind(unsigned id)
{
	switch (id) {
	case BTREE_ALLOC:
	case BTREE_LRU:
	case BTREE_FREESPACE:
	case BTREE_NEED_DISCARD:
	case BTREE_BACKPOINTERS:
	case BTREE_BUCKET_GENS:
	case BTREE_REBALANCE_WORK:
	case BTREE_ACCOUNTING:
	case BTREE_RECONCILE_HIPRI:
	case BTREE_RECONCILE_PENDING:
	case BTREE_RECONCILE_SCAN:
	case BTREE_STRIPE_BACKPOINTERS: return true;
	default: return false;
	}
}

static bool sub_entry_is_undone(const struct jset_entry_disk *e)
{
	return e->level == 0 && !btree_is_kept_by_rewind(e->btree_id);
}

static bool sub_entry_is_kept(const struct jset_entry_disk *e) { return !sub_entry_is_undone(e); }

bool journal_seq_is_rewound(const struct journal_state *state, uint64_t seq)
{
	for (size_t i = 0; i < state->rewind_nr; i++)
		if (seq >= state->rewinds[i].start && seq < state->rewinds[i].end)
			return true;
	return false;
}

static int rewind_add(struct journal_state *state, uint64_t from, uint64_t to)
{
	enum { REWINDS_MAX = 16 }; /* somebody asked for each of them, and none was finished */

	if (state->rewind_nr == REWINDS_MAX) {
		journal_report(state, REPORT_FATAL, 0, "unfinished rewinds", "a few at most", "more than 16", NULL);
		return -KILN_E_UNSUPPORTED;
	}
	struct seq_range *grown = realloc(state->rewinds, (state->rewind_nr + 1) * sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	state->rewinds = grown;
	state->rewinds[state->rewind_nr++] = (struct seq_range){ to + 1, from + 1 };
	return 0;
}

int journal_rewinds_find(struct journal_state *state, const struct jset_disk *jset)
{
	struct jset_walk w = jset_walk_of(jset);
	const struct jset_entry_disk *e;
	int err = 0;

	while (!err && jset_walk_next(&w, &e, NULL) > 0) {
		if (e->type != JSET_ENTRY_REWIND || jset_entry_payload_bytes(e) < 16)
			continue;
		uint64_t from = le64_load(jset_entry_payload(e)), to = le64_load(jset_entry_payload(e) + 8);
		if (to < from && from <= state->seq_flushed)
			err = rewind_add(state, from, to);
	}
	return err;
}

/* Keys of an entry: the new ones if it is replayed, and the old ones if it is undone. */
static int keys_walk(struct key_walk kw, bool is_rewound)
{
	int ret = 0;

	if (!kw.entry->is_ignored) {
		kw.type = JSET_ENTRY_BTREE_KEYS;
		kw.wants = is_rewound ? sub_entry_is_kept : NULL;
		ret = keys_walk_entry(&kw);
	}
	if (is_rewound && !ret) {
		kw.type = JSET_ENTRY_OVERWRITE;
		kw.wants = sub_entry_is_undone;
		kw.is_reversed = true;
		ret = keys_walk_entry(&kw);
	}
	return ret;
}

int journal_for_each_key(struct journal_state *state,
			 int (*fn)(void *ctx, const struct journal_entry *e, uint32_t offset_words, unsigned btree_id,
				   unsigned level, const struct bkey_disk *key),
			 void *ctx)
{
	struct journal_reader *reader;
	int ret = journal_reader_open(state, &reader);

	for (size_t i = 0; !ret && i < state->entry_nr; i++) {
		struct journal_entry *e = &state->entries[i];
		bool is_rewound = !e->is_blacklisted && journal_seq_is_rewound(state, e->seq);
		struct key_walk kw = { .state = state, .entry = e, .fn = fn, .ctx = ctx };

		if (!e->is_csum_good || (e->is_ignored && !is_rewound))
			continue;
		ret = journal_entry_load(reader, e, &kw.jset);
		if (!ret && e->is_csum_good)
			ret = keys_walk(kw, is_rewound);
	}
	journal_reader_close(reader);
	return ret;
}
