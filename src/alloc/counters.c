/*
 * Counters of a filesystem that is being written (07 §12).
 *
 * Triggers add up what a transaction changes, in its memory. Before the commit, replicas entries get their rows, and
 * the superblocks say that they exist; what remains is a record of (counter, delta). The commit changes the values of
 * now, and leaves the record for the journal entry it went into; records of one entry are put together where there is
 * room. When the journal writes entry N, the records of all entries up to N are folded into the base, which is what the
 * entry says. So an entry holds the state after the transactions before and in it, and nothing later.
 *
 * An entry has room for the rows that there were when it was opened, and TAIL_ROWS_SPARE more. Who needs a row beyond
 * closes it before he commits, so what an entry has no room for can't have changed in it: it is empty there.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/internal.h"
#include "base/array.h"
#include "base/clock.h"
#include "base/mutant.h"
#include "format/jset.h"

enum {
	RECORD_SPARE = 64,    /* more deltas than those of the transaction that made it */
	TAIL_ROWS_SPARE = 32, /* rows that can come into use while an entry is open */
};

void counters_init(struct counters *c)
{
	memset(c, 0, sizeof(*c));
	mutex_init_ranked(&c->lock, LOCK_COUNTERS);
}

void counters_destroy(struct counters *c)
{
	while (c->records) {
		struct counter_record *r = c->records;

		c->records = r->next;
		free(r);
	}
	free(c->rows);
	mutex_destroy(&c->lock);
}

/* --- in transactions --- */

size_t allocator_txn_bytes(void) { return sizeof(struct alloc_txn); }

struct alloc_txn *alloc_txn_of(struct btree_txn *txn) { return btree_txn_hook_data(txn); }

int alloc_txn_array_grow(struct btree_txn *txn, void *array, size_t nr, size_t *capacity, size_t elem_size)
{
	void *old, *grown;

	if (nr < *capacity)
		return 0;
	size_t new_max = *capacity ? *capacity * 2 : 8;
	memcpy(&old, array, sizeof(old));
	grown = btree_txn_alloc(txn, new_max * elem_size);
	if (!grown)
		return -ENOMEM;
	if (nr)
		memcpy(grown, old, nr * elem_size);
	memcpy(array, &grown, sizeof(grown));
	*capacity = new_max;
	return 0;
}

int alloc_txn_count(struct btree_txn *txn, unsigned counter, int64_t delta)
{
	struct alloc_txn *t = alloc_txn_of(txn);

	if (!delta)
		return 0;
	for (size_t i = 0; i < t->delta_nr; i++)
		if (t->deltas[i].counter == counter) {
			t->deltas[i].delta += delta;
			return 0;
		}
	if (alloc_txn_array_grow(txn, &t->deltas, t->delta_nr, &t->delta_max, sizeof(*t->deltas)))
		return -ENOMEM;
	t->deltas[t->delta_nr++] = (struct counter_delta){ counter, delta };
	return 0;
}

static bool entries_are_same(const struct usage_replicas *a, const struct usage_replicas *b)
{
	return a->data_type == b->data_type && a->nr_devs == b->nr_devs && a->nr_required == b->nr_required &&
	       !memcmp(a->devs, b->devs, a->nr_devs);
}

int alloc_txn_count_replicas(struct btree_txn *txn, unsigned data_type, unsigned nr_required, const uint8_t *devs,
			     unsigned dev_nr, int64_t sectors)
{
	struct alloc_txn *t = alloc_txn_of(txn);
	struct usage_replicas e = { .data_type = (uint8_t)data_type,
				    .nr_devs = (uint8_t)dev_nr,
				    .nr_required = (uint8_t)nr_required };

	/* In ascending order. */
	for (unsigned i = 0; i < dev_nr; i++) {
		unsigned at = i;

		for (; at && e.devs[at - 1] > devs[i]; at--)
			e.devs[at] = e.devs[at - 1];
		e.devs[at] = devs[i];
	}
	for (size_t i = 0; i < t->row_nr; i++)
		if (entries_are_same(&t->rows[i].entry, &e)) {
			t->rows[i].delta += sectors;
			return 0;
		}
	if (alloc_txn_array_grow(txn, &t->rows, t->row_nr, &t->row_max, sizeof(*t->rows)))
		return -ENOMEM;
	t->rows[t->row_nr++] = (struct alloc_txn_row){ e, sectors };
	return 0;
}

/* --- free space (07 §12.6); counters.lock is held --- */

/* What superblocks and the journal have of it. */
static __int128 dev_hidden_locked(const struct allocator *a, unsigned dev)
{
	const int64_t *now = a->counters.now;

	return ((__int128)now[counter_dev(dev, DATA_SB, COUNTER_DEV_BUCKETS)] +
		now[counter_dev(dev, DATA_JOURNAL, COUNTER_DEV_BUCKETS)]) *
	       a->devs[dev].bucket_sectors;
}

static uint64_t sectors_available_locked(const struct allocator *a)
{
	const struct counters *c = &a->counters;
	struct usage u = { .capacity_sectors = a->capacity_sectors };
	__int128 used = 0, hidden = 0, reserved = c->online_reserved;

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		hidden += dev_hidden_locked(a, dev);
	for (size_t i = 0; i < c->row_nr; i++)
		used += usage_type_is_used(c->rows[i].entry.data_type) ? c->rows[i].now : 0;
	for (unsigned i = 0; i < 4; i++)
		reserved += u64_clamp(c->now[COUNTER_RESERVED + i]);
	u.hidden_sectors = u64_clamp(hidden);
	u.used_sectors = u64_clamp(max(used, (__int128)0) + usage_of_reserved(u64_clamp(reserved)));
	return usage_available_sectors(&u);
}

/* What counts for data that is written now: none of a cache, nor of what holds metadata alone, nor where it failed. */
static unsigned dev_counts(const struct allocator *a, unsigned dev)
{
	const struct alloc_dev *d = &a->devs[dev];

	return atomic_load(&d->is_writable) && d->data_allowed >> DATA_USER & 1 ? d->durability : 0u;
}

unsigned allocator_data_durability(const struct allocator *a)
{
	unsigned durability = 0;

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		durability += dev_counts(a, dev);
	return durability;
}

/* What may be written on it, promises not counted. */
static uint64_t dev_room_locked(const struct allocator *a, unsigned dev)
{
	static const uint8_t written[] = { DATA_BTREE, DATA_USER, DATA_PARITY, DATA_STRIPE };
	const struct alloc_dev *d = &a->devs[dev];
	const int64_t *now = a->counters.now;
	__int128 taken = dev_hidden_locked(a, dev);

	for (unsigned i = 0; i < ARRAY_NR(written); i++)
		taken += now[counter_dev(dev, written[i], COUNTER_DEV_SECTORS)];
	return d->capacity_sectors - min(u64_clamp(taken), d->capacity_sectors);
}

/*
 * Do the devices have room for all that is promised, and for @sectors more that are @replicas copies of something? No
 * device takes two copies of the same, so of a large one among small ones only a part can be used. Where there are too
 * few devices for so many copies, fewer are made.
 */
static bool copies_fit_locked(const struct allocator *a, uint64_t sectors, unsigned replicas)
{
	const struct counters *c = &a->counters;
	__int128 copied = c->online_reserved / replicas + div_round_up_u64(sectors, replicas), wanted, found = 0;
	unsigned durability = allocator_data_durability(a);

	wanted = copied * min(replicas, durability);
	for (unsigned i = 0; i < 4; i++) {
		uint64_t promised = u64_clamp(c->now[COUNTER_RESERVED + i]) / (i + 1);

		copied += promised;
		wanted += (__int128)promised * min(i + 1, durability);
	}
	uint64_t data = usage_of_reserved(u64_clamp(copied));
	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		unsigned counts = dev_counts(a, dev);

		found += counts ? (__int128)counts * min(data, dev_room_locked(a, dev)) : 0;
	}
	return !durability || found >= usage_of_reserved(u64_clamp(wanted));
}

/* Of @sectors_max that the totals leave, what the devices can take. */
static uint64_t copies_room_locked(const struct allocator *a, uint64_t sectors_max)
{
	unsigned replicas = (unsigned)max(a->super->options[OPT_DATA_REPLICAS], (uint64_t)1);
	uint64_t low = 0, high = sectors_max, middle = high;

	/* It mostly can. */
	for (; low < high; middle = high - (high - low) / 2)
		if (copies_fit_locked(a, middle, replicas))
			low = middle;
		else
			high = middle - 1;
	return low;
}

/* Promise @sectors more, @replicas copies of something. */
static int reserve_more(struct allocator *a, uint64_t sectors, unsigned replicas, bool is_nofail)
{
	struct counters *c = &a->counters;
	int err = 0;

	mutex_lock(&c->lock);
	if (!is_nofail && sectors &&
	    (sectors > sectors_available_locked(a) || !copies_fit_locked(a, sectors, replicas)))
		err = -ENOSPC;
	else
		c->online_reserved += sectors;
	mutex_unlock(&c->lock);
	return err;
}

int disk_reservation_get(struct allocator *a, struct disk_reservation *r, uint64_t sectors, unsigned replicas,
			 unsigned flags)
{
	r->sectors = 0;
	r->replicas = max(replicas, 1u);
	int err = reserve_more(a, sectors, r->replicas, flags & DISK_RESERVATION_NOFAIL);

	if (!err)
		r->sectors = sectors;
	return err;
}

uint64_t counters_sectors_available(struct allocator *a)
{
	mutex_lock(&a->counters.lock);
	uint64_t sectors = copies_room_locked(a, sectors_available_locked(a));
	mutex_unlock(&a->counters.lock);
	return sectors;
}

void disk_reservation_put(struct allocator *a, struct disk_reservation *r)
{
	mutex_lock(&a->counters.lock);
	a->counters.online_reserved -= min(r->sectors, a->counters.online_reserved);
	mutex_unlock(&a->counters.lock);
	r->sectors = 0;
	if (a->quotas)
		quota_reservation_put(a->quotas, &r->quota);
}

int allocator_quota_reserve(struct allocator *a, struct disk_reservation *r, const struct inode *inode,
			    uint32_t snapshot, uint64_t sectors)
{
	struct quota_owner owner;

	if (!a->quotas)
		return 0;
	quota_owner_of(inode, &owner);
	return quota_reservation_get(a->quotas, &r->quota, &owner, snapshot, sectors);
}

uint64_t allocator_quota_room(struct allocator *a, const struct inode *inode)
{
	struct quota_owner owner;

	if (!a->quotas)
		return UINT64_MAX;
	quota_owner_of(inode, &owner);
	return quota_room(a->quotas, &owner);
}

/* --- before, at and after the commit --- */

/* The row of an entry, made if need be: its counter. Or -ENOMEM. */
static int row_counter(struct counters *c, const struct usage_replicas *e)
{
	int counter = -ENOMEM;

	mutex_lock(&c->lock);
	for (size_t i = 0; i < c->row_nr && counter < 0; i++)
		if (entries_are_same(&c->rows[i].entry, e))
			counter = COUNTER_ROWS + (int)i;
	if (counter < 0 && !array_grow(&c->rows, &c->row_max, c->row_nr + 1, sizeof(*c->rows))) {
		c->rows[c->row_nr] = (struct counter_row){ .entry = *e };
		counter = COUNTER_ROWS + (int)c->row_nr++;
	}
	mutex_unlock(&c->lock);
	return counter;
}

/* Let the transaction that counts in this row be in an entry that has room for it. */
static void row_make_room(struct allocator *a, unsigned row)
{
	struct counters *c = &a->counters;

	if (row < atomic_load(&c->tail_row_nr) + TAIL_ROWS_SPARE || !a->journal)
		return;
	mutex_lock(&c->lock);
	size_t row_nr = c->row_nr;
	mutex_unlock(&c->lock);
	journal_entry_close(a->journal);
	mutex_lock(&c->lock);
	atomic_store(&c->tail_row_nr, max(atomic_load(&c->tail_row_nr), row_nr));
	mutex_unlock(&c->lock);
}

static int prepare_rows(struct allocator *a, struct btree_txn *txn, struct alloc_txn *t)
{
	for (size_t i = 0; i < t->row_nr; i++) {
		int err = a->replicas_mark(a->ctx, &t->rows[i].entry);

		if (err)
			return err;
		int counter = row_counter(&a->counters, &t->rows[i].entry);
		if (counter < 0)
			return counter;
		row_make_room(a, (unsigned)counter - COUNTER_ROWS);
		err = alloc_txn_count(txn, (unsigned)counter, t->rows[i].delta);
		if (err)
			return err;
		if (usage_type_is_used(t->rows[i].entry.data_type))
			t->disk_sectors += t->rows[i].delta;
	}
	return 0;
}

static int prepare_space(struct allocator *a, struct btree_txn *txn, struct alloc_txn *t)
{
	struct disk_reservation *r = btree_txn_opts(txn)->reservation;

	for (size_t i = 0; i < t->delta_nr; i++)
		if (t->deltas[i].counter >= COUNTER_RESERVED && t->deltas[i].counter < COUNTER_DEVS)
			t->disk_sectors += t->deltas[i].delta;
	if (!r || t->disk_sectors <= 0 || (uint64_t)t->disk_sectors <= r->sectors)
		return 0;
	uint64_t missing = (uint64_t)t->disk_sectors - r->sectors;
	int err = reserve_more(a, missing, max(r->replicas, 1u), false);
	if (!err)
		r->sectors += missing;
	return err;
}

int allocator_prepare(struct allocator *a, struct btree_txn *txn)
{
	struct alloc_txn *t = alloc_txn_of(txn);
	int err = prepare_rows(a, txn, t);

	if (!err)
		err = prepare_space(a, txn, t);
	if (!err) {
		const struct disk_reservation *r = btree_txn_opts(txn)->reservation;

		err = quota_prepare(a->quotas, txn, &t->quota, r ? &r->quota : NULL);
	}
	if (err || !t->delta_nr)
		return err;
	struct counter_record *r = malloc(sizeof(*r) + (t->delta_nr + RECORD_SPARE) * sizeof(r->deltas[0]));
	if (!r)
		return -ENOMEM;
	*r = (struct counter_record){ .max = t->delta_nr + RECORD_SPARE };
	for (size_t i = 0; i < t->delta_nr; i++)
		if (t->deltas[i].delta)
			r->deltas[r->nr++] = t->deltas[i];
	t->record = r;
	return 0;
}

static struct counter_delta *record_find(struct counter_record *r, uint32_t counter)
{
	for (size_t i = 0; i < r->nr; i++)
		if (r->deltas[i].counter == counter)
			return &r->deltas[i];
	return NULL;
}

/* Add @from to @to when there is room for all of it. */
static bool record_merge(struct counter_record *to, const struct counter_record *from)
{
	if (to->nr + from->nr > to->max) {
		size_t new_nr = 0;

		for (size_t i = 0; i < from->nr; i++)
			new_nr += !record_find(to, from->deltas[i].counter);
		if (to->nr + new_nr > to->max)
			return false;
	}
	for (size_t i = 0; i < from->nr; i++) {
		struct counter_delta *d = record_find(to, from->deltas[i].counter);

		if (d)
			d->delta += from->deltas[i].delta;
		else
			to->deltas[to->nr++] = from->deltas[i];
	}
	return true;
}

static void counters_apply(struct counters *c, const struct counter_record *r, bool is_base)
{
	for (size_t i = 0; i < r->nr; i++) {
		uint32_t n = r->deltas[i].counter;
		int64_t *counter;

		if (n < COUNTER_ROWS)
			counter = is_base ? &c->base[n] : &c->now[n];
		else
			counter = is_base ? &c->rows[n - COUNTER_ROWS].base : &c->rows[n - COUNTER_ROWS].now;
		*counter = i64_clamp((__int128)*counter + r->deltas[i].delta);
	}
}

/* A transaction's record belongs to the counters from here on. Returns one to be freed, or NULL. */
static struct counter_record *record_commit(struct counters *c, struct counter_record *r, uint64_t seq)
{
	counters_apply(c, r, false);
	if (!seq) { /* without journal */
		counters_apply(c, r, true);
		return r;
	}
	for (struct counter_record *other = c->records; other; other = other->next)
		if (other->seq == seq && record_merge(other, r))
			return r;
	r->seq = seq;
	r->next = c->records;
	c->records = r;
	return NULL;
}

void allocator_committed(struct allocator *a, struct btree_txn *txn, uint64_t seq)
{
	struct alloc_txn *t = alloc_txn_of(txn);
	struct disk_reservation *r = btree_txn_opts(txn)->reservation;
	struct counters *c = &a->counters;
	struct counter_record *unused = NULL;

	if (t->record) {
		mutex_lock(&c->lock);
		unused = record_commit(c, t->record, seq);
		if (r && t->disk_sectors > 0) {
			uint64_t consumed = min((uint64_t)t->disk_sectors, r->sectors);

			r->sectors -= consumed;
			c->online_reserved -= min(consumed, c->online_reserved);
		}
		mutex_unlock(&c->lock);
		t->record = NULL;
		free(unused);
	}
	alloc_txn_holes_commit(a, t, seq);
	quota_committed(a->quotas, &t->quota, r ? &r->quota : NULL);
	freespace_init_leave(a, t);
	if (t->has_need_discard || t->has_cached)
		discards_kick(a);
	if (t->has_need_gc_gens)
		gc_gens_kick(a, true);
	if (t->has_freed)
		discards_freed(a);
}

void allocator_aborted(struct allocator *a, struct btree_txn *txn)
{
	struct alloc_txn *t = alloc_txn_of(txn);

	if (!t)
		return;
	free(t->record);
	t->record = NULL;
	if (t->quota.has_taken)
		quota_aborted(a->quotas, &t->quota);
	freespace_init_leave(a, t);
}

/* --- the tail of journal entries (07 §12.4, 03 §3.2) --- */

static uint8_t *entry_put(uint8_t *at, unsigned type, unsigned id, unsigned level, const void *payload, size_t bytes)
{
	size_t padded = (size_t)round_up_u64(bytes, 8);
	struct jset_entry_disk e = { .u64s = le16_of((uint16_t)(padded / 8)),
				     .btree_id = (uint8_t)id,
				     .level = (uint8_t)level,
				     .type = (uint8_t)type };

	memcpy(at, &e, sizeof(e));
	memset(at + sizeof(e), 0, padded);
	memcpy(at + sizeof(e), payload, bytes);
	return at + sizeof(e) + padded;
}

static uint8_t *usage_put(uint8_t *at, unsigned id, unsigned level, int64_t value)
{
	le64 v = le64_of((uint64_t)max(value, (int64_t)0));

	return entry_put(at, JSET_ENTRY_USAGE, id, level, &v, sizeof(v));
}

enum {
	USAGE_RESERVED, /* btree_id of usage entries */
	USAGE_INODES,
	USAGE_KEY_VERSION,
	ROW_BYTES_MAX = JSET_DATA_USAGE_BYTES + sizeof(((struct usage_replicas *)0)->devs),
};
_Static_assert(JSET_DEV_USAGE_BYTES == 24 + DATA_NR_1_4 * COUNTER_DEV_NR * 8, "all counters of a device");

static size_t row_bytes(const struct usage_replicas *e) { return JSET_DATA_USAGE_BYTES + (size_t)e->nr_devs; }

static uint8_t *row_put(uint8_t *at, const struct counter_row *row)
{
	uint8_t payload[ROW_BYTES_MAX];

	le64_store(payload, (uint64_t)max(row->base, (int64_t)0));
	payload[8] = row->entry.data_type;
	payload[9] = row->entry.nr_devs;
	payload[10] = row->entry.nr_required;
	memcpy(payload + 11, row->entry.devs, row->entry.nr_devs);
	return entry_put(at, JSET_ENTRY_DATA_USAGE, 0, 0, payload, row_bytes(&row->entry));
}

static uint8_t *dev_put(uint8_t *at, const struct counters *c, unsigned dev)
{
	uint8_t payload[JSET_DEV_USAGE_BYTES] = { 0 }, *p = payload + 24;

	le32_store(payload, dev);
	for (unsigned type = 0; type < DATA_NR_1_4; type++)
		for (unsigned what = 0; what < COUNTER_DEV_NR; what++, p += 8)
			le64_store(p, (uint64_t)max(c->base[counter_dev(dev, type, what)], (int64_t)0));
	return entry_put(at, JSET_ENTRY_DEV_USAGE, 0, 0, payload, sizeof(payload));
}

static uint8_t *clock_put(uint8_t *at, struct allocator *a, unsigned rw)
{
	uint8_t payload[16] = { (uint8_t)rw };

	le64_store(payload + 8, atomic_load(&a->clock[rw]));
	return entry_put(at, JSET_ENTRY_CLOCK, 0, 0, payload, sizeof(payload));
}

static void records_fold(struct counters *c, uint64_t seq)
{
	for (struct counter_record **link = &c->records; *link;) {
		struct counter_record *r = *link;

		if (r->seq > seq) {
			link = &r->next;
			continue;
		}
		counters_apply(c, r, true);
		*link = r->next;
		free(r);
	}
}

static unsigned dev_u64s(const struct allocator *a)
{
	unsigned nr = 0;

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		nr += a->devs[dev].is_member;
	return nr * JSET_DEV_USAGE_U64S;
}

unsigned allocator_journal_tail(struct allocator *a, uint64_t seq, void *at, unsigned max_u64s)
{
	struct counters *c = &a->counters;
	uint8_t *p = at;

	if (is_mutant(MUTANT_COUNTERS))
		sleep_ns(1000000);
	mutex_lock(&c->lock);
	records_fold(c, is_mutant(MUTANT_COUNTERS) ? UINT64_MAX : seq);
	p = usage_put(p, USAGE_INODES, 0, c->base[COUNTER_INODES]);
	p = usage_put(p, USAGE_KEY_VERSION, 0, (int64_t)key_versions_in_entry(&a->versions));
	for (unsigned i = 0; i < 4; i++)
		p = usage_put(p, USAGE_RESERVED, i, c->base[COUNTER_RESERVED + i]);
	size_t left = (max_u64s - JSET_USAGE_U64S - dev_u64s(a)) * 8;
	for (size_t i = 0; i < c->row_nr; i++) {
		size_t bytes = 8 + (size_t)round_up_u64(row_bytes(&c->rows[i].entry), 8);

		/* Rows are in order of coming: those that have no room are empty in this entry. */
		if (bytes > left) {
			assert(!c->rows[i].base);
			continue;
		}
		left -= bytes;
		p = row_put(p, &c->rows[i]);
	}
	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		if (a->devs[dev].is_member)
			p = dev_put(p, c, dev);
	mutex_unlock(&c->lock);
	p = clock_put(p, a, 0);
	p = clock_put(p, a, 1);
	return (unsigned)((size_t)(p - (uint8_t *)at) / 8);
}

unsigned allocator_journal_tail_u64s_max(struct allocator *a)
{
	size_t u64s = JSET_USAGE_U64S + dev_u64s(a);

	/* Called when an entry is to be opened: with what row_make_room() says, it will have room. */
	mutex_lock(&a->counters.lock);
	for (size_t i = 0; i < a->counters.row_nr; i++)
		u64s += 1 + (size_t)div_round_up_u64(row_bytes(&a->counters.rows[i].entry), 8);
	mutex_unlock(&a->counters.lock);
	return (unsigned)(u64s + TAIL_ROWS_SPARE * (1 + div_round_up_u64(ROW_BYTES_MAX, 8)));
}

/* --- reading, and what is known now --- */

static int row_add(struct counters *c, const struct usage_replicas *e, uint64_t sectors)
{
	struct usage_replicas key = { .data_type = e->data_type, .nr_devs = e->nr_devs, .nr_required = e->nr_required };

	memcpy(key.devs, e->devs, e->nr_devs);
	int counter = row_counter(c, &key);
	if (counter < 0)
		return counter;
	c->rows[counter - COUNTER_ROWS].now = c->rows[counter - COUNTER_ROWS].base = i64_clamp(sectors);
	return 0;
}

/* What superblocks know and no journal entry has counted, like entries of journals: rows with nothing in them. */
static int rows_of_super(struct allocator *a)
{
	struct replicas_walk w = sb_replicas_walk(a->super->sb);
	struct replicas_entry e;
	int err = 0;

	while (!err && sb_replicas_next(&w, &e, NULL) > 0) {
		struct usage_replicas key = { .data_type = e.data_type,
					      .nr_devs = e.nr_devs,
					      .nr_required = e.nr_required };

		if (e.nr_devs > ARRAY_NR(key.devs))
			continue;
		memcpy(key.devs, e.devs, e.nr_devs);
		err = min(row_counter(&a->counters, &key), 0);
	}
	return err;
}

/* Those that aren't known are 0, which is for allocator_init_fresh(); nobody writes another one without counters. */
int counters_read(struct allocator *a)
{
	struct counters *c = &a->counters;
	struct usage u;
	int err = usage_read(a->super, a->state, a->trees, &u);

	if (err)
		return err;
	c->now[COUNTER_INODES] = i64_clamp(a->state->nr_inodes);
	for (unsigned i = 0; i < 4; i++)
		c->now[COUNTER_RESERVED + i] = i64_clamp(a->state->reserved[i]);
	for (unsigned dev = 0; dev < min(u.dev_nr, a->dev_nr); dev++)
		for (unsigned type = 0; type < DATA_NR_1_4; type++) {
			c->now[counter_dev(dev, type, COUNTER_DEV_BUCKETS)] =
				i64_clamp(min(u.devs[dev].types[type].buckets, a->devs[dev].bucket_nr));
			c->now[counter_dev(dev, type, COUNTER_DEV_SECTORS)] =
				i64_clamp(u.devs[dev].types[type].sectors);
			c->now[counter_dev(dev, type, COUNTER_DEV_FRAGMENTED)] =
				i64_clamp(u.devs[dev].types[type].fragmented);
		}
	memcpy(c->base, c->now, sizeof(c->base));
	for (size_t i = 0; !err && i < u.replicas_nr; i++)
		err = row_add(c, &u.replicas[i], u.replicas[i].sectors);
	usage_free(&u);
	if (!err)
		err = rows_of_super(a);
	atomic_store(&c->tail_row_nr, c->row_nr);
	return err;
}

int allocator_init_fresh(struct allocator *a)
{
	struct counters *c = &a->counters;

	mutex_lock(&c->lock);
	memset(c->now, 0, sizeof(c->now));
	for (size_t i = 0; i < c->row_nr; i++)
		c->rows[i].now = c->rows[i].base = 0;
	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		if (a->devs[dev].is_member)
			c->now[counter_dev(dev, DATA_FREE, COUNTER_DEV_BUCKETS)] =
				(int64_t)(a->devs[dev].bucket_nr - a->devs[dev].first_bucket);
	memcpy(c->base, c->now, sizeof(c->base));
	mutex_unlock(&c->lock);
	return 0;
}

int64_t counters_dev_buckets(struct counters *c, unsigned dev, unsigned type)
{
	mutex_lock(&c->lock);
	int64_t nr = c->now[counter_dev(dev, type, COUNTER_DEV_BUCKETS)];
	mutex_unlock(&c->lock);
	return max(nr, (int64_t)0);
}

uint64_t counters_dev_fragmented(struct counters *c, unsigned dev)
{
	mutex_lock(&c->lock);
	__int128 sectors = (__int128)c->now[counter_dev(dev, DATA_BTREE, COUNTER_DEV_FRAGMENTED)] +
			   c->now[counter_dev(dev, DATA_USER, COUNTER_DEV_FRAGMENTED)];
	mutex_unlock(&c->lock);
	return u64_clamp(sectors);
}

static void usage_fill(struct allocator *a, struct usage *u)
{
	struct counters *c = &a->counters;

	u->inodes = u64_clamp(c->now[COUNTER_INODES]);
	__int128 reserved = c->online_reserved;
	for (unsigned i = 0; i < 4; i++)
		reserved += u64_clamp(c->now[COUNTER_RESERVED + i]);
	u->reserved_sectors = u64_clamp(reserved);
	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		u->devs[dev].is_known = a->devs[dev].is_member;
		for (unsigned type = 0; type < DATA_NR_1_4; type++) {
			const int64_t *now = &c->now[counter_dev(dev, type, 0)];

			u->devs[dev].types[type].buckets = u64_clamp(now[COUNTER_DEV_BUCKETS]);
			u->devs[dev].types[type].sectors = u64_clamp(now[COUNTER_DEV_SECTORS]);
			u->devs[dev].types[type].fragmented = u64_clamp(now[COUNTER_DEV_FRAGMENTED]);
		}
	}
	for (size_t i = 0; i < c->row_nr; i++) {
		u->replicas[i] = c->rows[i].entry;
		u->replicas[i].sectors = u64_clamp(c->rows[i].now);
	}
	u->replicas_nr = c->row_nr;
}

int allocator_usage(struct allocator *a, struct usage *usage)
{
	struct counters *c = &a->counters;

	*usage = (struct usage){ .is_known = true, .dev_nr = a->dev_nr, .capacity_sectors = a->capacity_sectors };
	mutex_lock(&c->lock);
	usage->devs = calloc(a->dev_nr + 1, sizeof(*usage->devs));
	usage->replicas = calloc(c->row_nr + 1, sizeof(*usage->replicas));
	bool has_memory = usage->devs && usage->replicas;
	if (has_memory)
		usage_fill(a, usage);
	mutex_unlock(&c->lock);
	if (!has_memory) {
		usage_free(usage);
		return -ENOMEM;
	}
	usage_totals_compute(a->super, usage);
	mutex_lock(&c->lock);
	usage->available_sectors = copies_room_locked(a, usage_available_sectors(usage));
	mutex_unlock(&c->lock);
	return 0;
}

uint64_t allocator_clock(struct allocator *a)
{
	return atomic_load_explicit(&a->clock[0], memory_order_relaxed) +
	       atomic_load_explicit(&a->clock[1], memory_order_relaxed);
}

void allocator_clock_add(struct allocator *a, bool is_write, uint64_t sectors)
{
	enum { LOOK_SHIFT = 16 }; /* every 32 MiB somebody looks whether there is something to do */
	uint64_t before = atomic_fetch_add_explicit(&a->clock[is_write], sectors, memory_order_relaxed);

	if (is_write && before >> LOOK_SHIFT != (before + sectors) >> LOOK_SHIFT)
		gc_gens_kick(a, false);
}
