/*
 * Space and inode counters (see usage.h).
 *
 * Two sources, by the version that wrote the counters:
 *
 * - Below 1.9: sub-entries of journal entries and of the clean section, absolute values, the last one of each counts
 *   (07 §12.4, 03 §10). The totals among them are in the journal_state already.
 *
 * - From 1.10: the accounting btree. Journal keys of that btree are deltas, so they don't lie over it like other keys;
 *   a counter is its btree key plus the deltas with a newer key version (12 §11.2). Both lists are sorted by position
 *   and walked together.
 *
 * The counters of 1.9 itself are encoded in a way that can't be told apart; they stay unknown.
 */
#include "alloc/usage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/bucket.h"
#include "base/array.h"
#include "format/version.h"

enum {
	REPLICAS_ROWS_MAX = 1 << 13, /* all pairs of 64 devices, for each type of data */
	COUNTERS_MAX = 1 << 17,
	AVAIL_NUM = 64, /* of what is free, that part can be written; the rest is for keys that describe it */
	AVAIL_DEN = 65,
};

static int journal_usage_read(const struct super *s, struct journal_state *journal, struct usage *u);
static int accounting_read(const struct super *s, struct journal_state *journal, struct btrees *trees, struct usage *u);

int usage_read(const struct super *super, struct journal_state *journal, struct btrees *trees, struct usage *usage)
{
	uint32_t version = key_context_layout_version(&super->kctx);
	int err = 0;

	*usage = (struct usage){ .dev_nr = super->member_nr, .capacity_sectors = usage_capacity_sectors(super) };
	usage->devs = calloc(super->member_nr + 1, sizeof(*usage->devs));
	if (!usage->devs)
		return -ENOMEM;

	if (version < VERSION(1, 9))
		err = journal_usage_read(super, journal, usage);
	else if (version >= VERSION(1, 10))
		err = accounting_read(super, journal, trees, usage);
	usage->is_known = usage->is_known && !err;
	if (usage->is_known)
		usage_totals_compute(super, usage);
	usage->available_sectors = usage_available_sectors(usage);

	/* Counters that can't be read are unknown, which is no reason to fail: what is wrong has been reported. */
	if (err != -ENOMEM)
		return 0;
	usage_free(usage);
	return err;
}

void usage_free(struct usage *usage)
{
	free(usage->devs);
	free(usage->replicas);
	usage->devs = NULL;
	usage->replicas = NULL;
	usage->dev_nr = 0;
	usage->replicas_nr = 0;
}

/* --- totals --- */

uint64_t usage_of_reserved(uint64_t sectors) { return u64_clamp((__int128)sectors + div_round_up_u64(sectors, 64)); }

bool usage_type_is_used(unsigned data_type)
{
	return data_type == DATA_BTREE || data_type == DATA_USER || data_type == DATA_PARITY;
}

unsigned usage_row_durability(const struct super *s, const struct usage_replicas *r)
{
	unsigned sum = 0;

	for (unsigned i = 0; i < r->nr_devs; i++)
		if (r->devs[i] < s->member_nr && s->members[r->devs[i]].m.exists)
			sum += s->members[r->devs[i]].m.durability;
	return sum;
}

struct usage_fewer_copies usage_fewer_copies(const struct super *s, const struct usage *u)
{
	struct usage_fewer_copies fewer = { 0, 0 };

	for (size_t i = 0; i < u->replicas_nr; i++) {
		const struct usage_replicas *r = &u->replicas[i];
		bool is_data = r->data_type == DATA_USER;

		if ((!is_data && r->data_type != DATA_BTREE) || r->nr_required > 1 ||
		    usage_row_durability(s, r) >= s->options[is_data ? OPT_DATA_REPLICAS : OPT_METADATA_REPLICAS])
			continue;
		if (is_data)
			fewer.data_sectors = u64_clamp((__int128)fewer.data_sectors + r->sectors);
		else
			fewer.metadata_sectors = u64_clamp((__int128)fewer.metadata_sectors + r->sectors);
	}
	return fewer;
}

void usage_totals_compute(const struct super *s, struct usage *u)
{
	__int128 used = usage_of_reserved(u->reserved_sectors), cached = 0, hidden = 0;

	for (size_t i = 0; i < u->replicas_nr; i++) {
		const struct usage_replicas *r = &u->replicas[i];

		used += usage_type_is_used(r->data_type) ? r->sectors : 0;
		cached += r->data_type == DATA_CACHED ? r->sectors : 0;
	}
	for (unsigned i = 0; i < u->dev_nr; i++)
		hidden += ((__int128)u->devs[i].types[DATA_SB].buckets + u->devs[i].types[DATA_JOURNAL].buckets) *
			  s->geometry[i].bucket_sectors;
	u->used_sectors = u64_clamp(used);
	u->cached_sectors = u64_clamp(cached);
	u->hidden_sectors = u64_clamp(hidden);
}

uint64_t usage_available_sectors(const struct usage *u)
{
	uint64_t taken = u64_clamp((__int128)u->used_sectors + u->hidden_sectors);
	uint64_t free_sectors = u->capacity_sectors - min(u->capacity_sectors, taken);

	return free_sectors / AVAIL_DEN * AVAIL_NUM + free_sectors % AVAIL_DEN * AVAIL_NUM / AVAIL_DEN;
}

/* Without what superblocks have taken of it; 0: it doesn't count. */
static uint64_t member_sectors(const struct super *s, unsigned dev)
{
	const struct member *m = &s->members[dev].m;
	bool is_counted = m->exists && (m->state == MEMBER_RW || m->state == MEMBER_FAILED);

	return is_counted && m->nbuckets >= m->first_bucket ? (m->nbuckets - m->first_bucket) * m->bucket_sectors : 0;
}

/* What the work on its buckets needs. */
static uint64_t member_reserve(const struct super *s, unsigned dev)
{
	const struct member *m = &s->members[dev].m;

	if (!member_sectors(s, dev))
		return 0;
	uint64_t btree_reserve = bucket_btree_reserve(m->bucket_sectors, s->kctx.node_sectors);
	return 2 * (2 * btree_reserve + (m->nbuckets >> 6) + 3) * m->bucket_sectors;
}

/* The same of all members. */
static uint64_t members_sum(const struct super *s, uint64_t *reserves)
{
	uint64_t raw = 0;

	*reserves = 0;
	for (unsigned dev = 0; dev < s->member_nr; dev++) {
		raw += member_sectors(s, dev);
		*reserves += member_reserve(s, dev);
	}
	return raw;
}

/* What options keep from users, of so much. */
static uint64_t gc_reserve(const struct super *s, uint64_t raw)
{
	uint64_t percent = s->options[OPT_GC_RESERVE_PERCENT];

	return s->options[OPT_GC_RESERVE_BYTES] ? s->options[OPT_GC_RESERVE_BYTES] / SECTOR_BYTES
						: raw / 100 * percent + raw % 100 * percent / 100;
}

/*
 * 07 §13, over all writable members, here or not: the counters are those of all, too. So are failed ones, on which
 * nothing is written any more, until they are taken out.
 */
uint64_t usage_capacity_sectors(const struct super *s)
{
	uint64_t reserves, raw = members_sum(s, &reserves);

	return raw - min(raw, max(gc_reserve(s, raw), reserves));
}

uint64_t usage_member_capacity_sectors(const struct super *s, unsigned dev)
{
	uint64_t own = member_sectors(s, dev), share = member_reserve(s, dev), reserves;
	uint64_t raw = members_sum(s, &reserves);

	if (gc_reserve(s, raw) > reserves)
		share = (uint64_t)((unsigned __int128)gc_reserve(s, raw) * own / max(raw, (uint64_t)1));
	return own - min(own, share);
}

/* Order of rows: type, number of devices, required, devices. */
static int replicas_cmp(const struct usage_replicas *a, const struct usage_replicas *b)
{
	_Static_assert(offsetof(struct usage_replicas, devs) + sizeof(a->devs) == USAGE_REPLICAS_NAME_BYTES,
		       "no padding");
	return memcmp(a, b, USAGE_REPLICAS_NAME_BYTES);
}

/* Set the row for these devices, which are padded with zeroes. -E2BIG when there are absurdly many. */
static int replicas_set(struct usage *u, size_t *capacity, const struct usage_replicas *row)
{
	size_t low = 0, high = u->replicas_nr;

	while (low < high) {
		size_t middle = (low + high) / 2;
		if (replicas_cmp(&u->replicas[middle], row) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < u->replicas_nr && !replicas_cmp(&u->replicas[low], row)) {
		u->replicas[low].sectors = row->sectors;
		return 0;
	}
	if (u->replicas_nr == REPLICAS_ROWS_MAX)
		return -E2BIG;
	if (array_grow(&u->replicas, capacity, u->replicas_nr + 1, sizeof(*u->replicas)))
		return -ENOMEM;
	memmove(&u->replicas[low + 1], &u->replicas[low], (u->replicas_nr - low) * sizeof(*u->replicas));
	u->replicas[low] = *row;
	u->replicas_nr++;
	return 0;
}

/* --- below 1.9: sub-entries --- */

/* Take over the counters of one entry, or of the clean section. Those that break the rules are ignored (07 §12.4). */
static int sub_entries_apply(const struct super *s, struct jset_walk walk, struct usage *u, size_t *capacity)
{
	const struct jset_entry_disk *e;
	struct jset_data_usage data;
	struct jset_dev_usage dev;

	while (jset_walk_next(&walk, &e, NULL) > 0) {
		if (jset_entry_validate(e, &s->kctx, NULL))
			continue;
		if (e->type == JSET_ENTRY_DATA_USAGE && !jset_data_usage_decode(e, &data, NULL)) {
			struct usage_replicas row = {
				.data_type = data.data_type,
				.nr_devs = data.nr_devs,
				.nr_required = data.nr_required,
				.sectors = data.sectors,
			};
			if (data.nr_devs > ARRAY_NR(row.devs))
				continue;
			memcpy(row.devs, data.devs, data.nr_devs);
			int err = replicas_set(u, capacity, &row);
			if (err)
				return err;
		} else if (e->type == JSET_ENTRY_DEV_USAGE && !jset_dev_usage_decode(e, &dev, NULL) &&
			   dev.dev < u->dev_nr) {
			u->devs[dev.dev] = (struct usage_dev){ .is_known = true };
			for (unsigned i = 0; i < min(dev.type_nr, (unsigned)DATA_NR); i++) {
				u->devs[dev.dev].types[i].buckets = dev.types[i].buckets;
				u->devs[dev.dev].types[i].sectors = dev.types[i].sectors;
				u->devs[dev.dev].types[i].fragmented = dev.types[i].fragmented;
			}
		}
	}
	return 0;
}

struct entry_walk {
	const struct super *super;
	struct usage *usage;
	size_t capacity; /* of its rows */
};

static int entry_apply(void *ctx, const struct journal_entry *e, const struct jset_disk *jset)
{
	struct entry_walk *w = ctx;

	return sub_entries_apply(w->super, jset_walk_of(jset), w->usage, &w->capacity);
}

static int journal_usage_read(const struct super *s, struct journal_state *journal, struct usage *u)
{
	struct entry_walk walk = { .super = s, .usage = u };
	const uint8_t *begin, *end;
	uint64_t seq;
	int err = 0;

	if (!journal->has_usage)
		return 0;
	u->is_known = true;
	u->inodes = journal->nr_inodes;
	for (unsigned i = 0; i < ARRAY_NR(journal->reserved); i++)
		u->reserved_sectors = u64_clamp((__int128)u->reserved_sectors + journal->reserved[i]);

	if ((journal->was_clean || journal->is_from_stale_clean) && sb_clean(s->sb, &seq, &begin, &end))
		err = sub_entries_apply(s, (struct jset_walk){ begin, end }, u, &walk.capacity);
	if (err || (journal->was_clean && !journal->is_from_stale_clean))
		return err;
	return journal_for_each_entry(journal, entry_apply, &walk);
}

/* --- from 1.10: the accounting btree --- */

struct counter {
	struct bpos p;
	struct bversion version;
	struct accounting a;
};

struct counters {
	struct counter *array;
	size_t nr, capacity;
	const struct key_context *kctx;
};

static int version_cmp(struct bversion a, struct bversion b)
{
	if (a.hi != b.hi)
		return a.hi < b.hi ? -1 : 1;
	return a.lo < b.lo ? -1 : a.lo > b.lo;
}

static int counter_cmp(const void *a, const void *b)
{
	const struct counter *x = a, *y = b;
	int cmp = bpos_cmp(x->p, y->p);

	return cmp ? cmp : version_cmp(x->version, y->version);
}

/* Only the types up to here are counters of space. */
static bool counter_is_wanted(const struct accounting *a) { return a->name[0] <= ACCOUNTING_DEV_DATA_TYPE; }

static int counter_add(struct counters *c, struct bkey_ref k)
{
	struct counter new = { .p = k.k.p, .version = k.k.version };

	if (k.k.type != KEY_ACCOUNTING || accounting_decode(k, c->kctx, &new.a) || !counter_is_wanted(&new.a))
		return 0;
	if (c->nr == COUNTERS_MAX)
		return -E2BIG;
	if (array_grow(&c->array, &c->capacity, c->nr + 1, sizeof(*c->array)))
		return -ENOMEM;
	c->array[c->nr++] = new;
	return 0;
}

static int delta_add(void *ctx, const struct journal_entry *e, uint32_t offset_words, unsigned btree_id, unsigned level,
		     const struct bkey_disk *key)
{
	if (btree_id != BTREE_ACCOUNTING || level)
		return 0;
	return counter_add(ctx, (struct bkey_ref){ bkey_load(key), key + 1 });
}

/* All counters of the btree, in order. */
static int base_read(struct btrees *trees, struct counters *base)
{
	struct btree_iter it;
	struct bkey_ref k;
	int n, err = 0;

	btree_iter_open(&it, trees, BTREE_ACCOUNTING, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	/* From 1.15 the wanted types come first; before, they are mixed with all others. */
	if (key_context_layout_version(base->kctx) >= VERSION(1, 15)) {
		uint8_t behind[sizeof(((struct accounting *)0)->name)] = { ACCOUNTING_DEV_DATA_TYPE + 1 };
		it.end = bpos_predecessor(accounting_pos(base->kctx, behind));
	}
	while (!err && (n = btree_iter_peek(&it, &k)) != 0) {
		err = n < 0 ? n : counter_add(base, k);
		if (!err)
			btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return err;
}

static int counter_apply(struct usage *u, size_t *capacity, const uint8_t *name, const int64_t sums[3])
{
	uint64_t values[3];
	struct usage_replicas row = { .data_type = name[1], .nr_devs = name[2], .nr_required = name[3] };

	for (unsigned i = 0; i < ARRAY_NR(values); i++)
		values[i] = sums[i] > 0 ? (uint64_t)sums[i] : 0;
	switch (name[0]) {
	case ACCOUNTING_NR_INODES: u->inodes = values[0]; return 0;
	case ACCOUNTING_PERSISTENT_RESERVED:
		u->reserved_sectors = u64_clamp(u->reserved_sectors + (__int128)values[0] * name[1]);
		return 0;
	case ACCOUNTING_REPLICAS:
		if (row.nr_devs > ARRAY_NR(row.devs) || !values[0])
			return 0;
		memcpy(row.devs, name + 4, row.nr_devs);
		row.sectors = values[0];
		return replicas_set(u, capacity, &row);
	case ACCOUNTING_DEV_DATA_TYPE:
		if (name[1] >= u->dev_nr || name[2] >= DATA_NR)
			return 0;
		u->devs[name[1]].is_known = true;
		u->devs[name[1]].types[name[2]].buckets = values[0];
		u->devs[name[1]].types[name[2]].sectors = values[1];
		u->devs[name[1]].types[name[2]].fragmented = values[2];
		return 0;
	default: return 0;
	}
}

/* Each counter is its btree key, if there is one, and the deltas that the key doesn't include yet. */
static int counters_merge(const struct counters *base, const struct counters *deltas, struct usage *u)
{
	size_t i = 0, j = 0, capacity = 0;
	int err = 0;

	while (!err && (i < base->nr || j < deltas->nr)) {
		bool is_base = i < base->nr && (j == deltas->nr || bpos_le(base->array[i].p, deltas->array[j].p));
		struct counter sum = is_base ? base->array[i++] : deltas->array[j];

		if (!is_base) {
			sum.version = (struct bversion){ 0 };
			memset(sum.a.counters, 0, sizeof(sum.a.counters));
		}
		for (; j < deltas->nr && bpos_eq(deltas->array[j].p, sum.p); j++) {
			if (version_cmp(deltas->array[j].version, sum.version) <= 0)
				continue;
			/* Unsigned: hostile values may wrap. */
			for (unsigned n = 0; n < ARRAY_NR(sum.a.counters); n++)
				sum.a.counters[n] = (int64_t)((uint64_t)sum.a.counters[n] +
							      (uint64_t)deltas->array[j].a.counters[n]);
		}
		err = counter_apply(u, &capacity, sum.a.name, sum.a.counters);
	}
	return err;
}

static int accounting_read(const struct super *s, struct journal_state *journal, struct btrees *trees, struct usage *u)
{
	struct counters base = { .kctx = &s->kctx }, deltas = { .kctx = &s->kctx };
	int err = base_read(trees, &base);

	if (!err && (!journal->was_clean || journal->is_from_stale_clean))
		err = journal_for_each_key(journal, delta_add, &deltas);
	if (!err && (base.nr || deltas.nr)) {
		if (deltas.nr)
			qsort(deltas.array, deltas.nr, sizeof(*deltas.array), counter_cmp);
		err = counters_merge(&base, &deltas, u);
		u->is_known = true;
	}
	free(base.array);
	free(deltas.array);
	return err;
}
