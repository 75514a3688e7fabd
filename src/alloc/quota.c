/* Rows of quotas: use, limits, and what is promised. See quota.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/quota_internal.h"
#include "base/array.h"
#include "base/clock.h"
#include "format/sb_edit.h"

enum { BUCKETS_MIN = 64 };

int quotas_open(struct btrees *trees, unsigned types, const struct sb_quota *timelimits, struct quotas **quotas)
{
	struct quotas *q = calloc(1, sizeof(*q));

	if (!q)
		return -ENOMEM;
	q->buckets = calloc(BUCKETS_MIN, sizeof(struct quota_row *));
	if (!q->buckets) {
		free(q);
		return -ENOMEM;
	}
	q->trees = trees;
	q->types = types;
	q->bucket_nr = BUCKETS_MIN;
	mutex_init(&q->lock);
	waitq_init(&q->changed);
	job_init(&q->job, "quota scan", "counts what users, groups and projects have");
	for (unsigned type = 0; type < QUOTA_TYPE_NR; type++)
		for (unsigned i = 0; i < QUOTA_COUNTER_NR; i++)
			q->timelimits.timelimit_seconds[type][i] = SB_QUOTA_TIMELIMIT_SECONDS;
	if (timelimits)
		q->timelimits = *timelimits;
	*quotas = q;
	return 0;
}

void quotas_close(struct quotas *q)
{
	if (!q)
		return;
	quotas_stop(q);
	for (size_t i = 0; i < q->bucket_nr; i++)
		while (q->buckets[i]) {
			struct quota_row *row = q->buckets[i];

			q->buckets[i] = row->next;
			free(row);
		}
	free(q->buckets);
	free(q->privileged);
	waitq_destroy(&q->changed);
	mutex_destroy(&q->lock);
	free(q);
}

void quota_owner_of(const struct inode *inode, struct quota_owner *owner)
{
	uint32_t project = inode->opts[INODE_OPT_PROJECT];

	owner->ids[QUOTA_USER] = inode->uid;
	owner->ids[QUOTA_GROUP] = inode->gid;
	owner->ids[QUOTA_PROJECT] = project ? project - 1 : 0;
}

/* --- rows --- */

static struct quota_row **row_bucket(const struct quotas *q, unsigned type, uint32_t id)
{
	uint64_t hash = (((uint64_t)type << 32) + id) * 0x9e3779b97f4a7c15ull;

	return &q->buckets[(hash >> 32) & (q->bucket_nr - 1)];
}

static struct quota_row *row_find(const struct quotas *q, unsigned type, uint32_t id)
{
	struct quota_row *row = *row_bucket(q, type, id);

	while (row && (row->type != type || row->id != id))
		row = row->next;
	return row;
}

/* Twice as many chains. Without memory the old ones just get longer. */
static void buckets_grow(struct quotas *q)
{
	struct quota_row **old = q->buckets;
	size_t old_nr = q->bucket_nr;
	struct quota_row **grown = calloc(old_nr * 2, sizeof(struct quota_row *));

	if (!grown)
		return;
	q->buckets = grown;
	q->bucket_nr = old_nr * 2;
	for (size_t i = 0; i < old_nr; i++)
		while (old[i]) {
			struct quota_row *row = old[i], **bucket = row_bucket(q, row->type, row->id);

			old[i] = row->next;
			row->next = *bucket;
			*bucket = row;
		}
	free(old);
}

struct quota_row *quota_row_get(struct quotas *q, unsigned type, uint32_t id)
{
	struct quota_row *row = row_find(q, type, id);

	if (row)
		return row;
	row = calloc(1, sizeof(*row));
	if (!row)
		return NULL;
	if (q->row_nr >= q->bucket_nr)
		buckets_grow(q);
	struct quota_row **bucket = row_bucket(q, type, id);
	row->type = type;
	row->id = id;
	row->next = *bucket;
	*bucket = row;
	q->row_nr++;
	return row;
}

void quotas_recount(struct quotas *q)
{
	for (size_t i = 0; i < q->bucket_nr; i++)
		for (struct quota_row *row = q->buckets[i]; row; row = row->next)
			memset(row->used, 0, sizeof(row->used));
	q->cursor = 0;
	q->is_partial = false;
	q->recount_nr++;
	q->counted_nr = 0;
	waitq_wake_all(&q->changed);
}

/* --- limits --- */

static uint64_t used_of(const struct quota_row *row, unsigned counter) { return u64_clamp(row->used[counter]); }

uint64_t quota_now_seconds(void) { return clock_realtime_ns() / 1000000000; }

void quota_row_grace_update(struct quotas *q, struct quota_row *row, uint64_t now_seconds)
{
	for (unsigned i = 0; i < QUOTA_COUNTER_NR; i++) {
		uint64_t soft = row->limits.limits[i].soft;

		if (!soft || used_of(row, i) <= soft)
			row->grace_end[i] = 0;
		else if (!row->grace_end[i])
			row->grace_end[i] = now_seconds + q->timelimits.timelimit_seconds[row->type][i];
	}
}

void quota_grace_update_all(struct quotas *q)
{
	uint64_t now = quota_now_seconds();

	for (size_t i = 0; i < q->bucket_nr; i++)
		for (struct quota_row *row = q->buckets[i]; row; row = row->next)
			quota_row_grace_update(q, row, now);
}

/* Most that a row may use now; UINT64_MAX: there is no limit. */
static uint64_t row_limit(const struct quota_row *row, unsigned counter, uint64_t now_seconds)
{
	uint64_t hard = row->limits.limits[counter].hard, soft = row->limits.limits[counter].soft;
	uint64_t limit = hard ? hard : UINT64_MAX;

	if (soft && row->grace_end[counter] && now_seconds >= row->grace_end[counter])
		limit = min(limit, soft);
	return limit;
}

static uint64_t row_room(const struct quota_row *row, unsigned counter, uint64_t now_seconds)
{
	uint64_t limit = row_limit(row, counter, now_seconds),
		 used = u64_clamp(used_of(row, counter) + row->taken[counter]);

	if (limit == UINT64_MAX)
		return limit;
	return limit > used ? limit - used : 0;
}

bool quota_row_allows(const struct quota_row *row, enum quota_counter counter, uint64_t amount, uint64_t now_seconds)
{
	return amount <= row_room(row, counter, now_seconds);
}

bool quotas_are_enforced(const struct quotas *q)
{
	if (!quotas_are_counted(q))
		return false;
	for (size_t i = 0; i < q->privileged_nr; i++)
		if (q->privileged[i] == task_identity())
			return false;
	return true;
}

int quotas_set_privileged(struct quotas *q, bool is_privileged)
{
	const void *self = task_identity();
	int err = 0;

	mutex_lock(&q->lock);
	size_t i = 0;
	while (i < q->privileged_nr && q->privileged[i] != self)
		i++;
	if (!is_privileged && i < q->privileged_nr) {
		q->privileged[i] = q->privileged[--q->privileged_nr];
	} else if (is_privileged && i == q->privileged_nr) {
		err = array_grow(&q->privileged, &q->privileged_capacity, q->privileged_nr + 1, sizeof(*q->privileged));
		if (!err)
			q->privileged[q->privileged_nr++] = self;
	}
	mutex_unlock(&q->lock);
	return err;
}

void quotas_set_timelimits(struct quotas *q, const struct sb_quota *timelimits)
{
	mutex_lock(&q->lock);
	q->timelimits = *timelimits;
	mutex_unlock(&q->lock);
}

static int limits_store_run(struct btree_txn *txn, void *ctx)
{
	const struct quota_limits_change *change = ctx;
	struct bpos pos = BPOS(change->type, change->id, 0);
	struct quota quota = { 0 };
	uint8_t value[QUOTA_BYTES];
	struct bkey_ref k;
	uint64_t any = 0;
	int ret = btree_txn_get(txn, BTREE_QUOTAS, pos, 0, &k);

	if (ret < 0)
		return ret;
	if (ret && k.k.type == KEY_QUOTA)
		quota_decode(k, &quota);
	for (unsigned i = 0; i < QUOTA_COUNTER_NR; i++) {
		if (change->is_set[i][QUOTA_SOFT])
			quota.limits[i].soft = change->limits[i][QUOTA_SOFT];
		if (change->is_set[i][QUOTA_HARD])
			quota.limits[i].hard = change->limits[i][QUOTA_HARD];
		any |= quota.limits[i].soft | quota.limits[i].hard;
	}
	if (!any && !ret)
		return 0;
	quota_encode(&quota, value);
	return btree_txn_put(txn, BTREE_QUOTAS,
			     &(struct bkey){ .p = pos,
					     .type = any ? KEY_QUOTA : KEY_DELETED,
					     .value_u64s = any ? QUOTA_BYTES / 8 : 0 },
			     value, 0);
}

int quota_limits_store(struct btrees *trees, const struct quota_limits_change *change)
{
	struct btree_commit_opts opts = { .name = "quota_limits", .watermark = WATERMARK_NORMAL };

	return btree_txn_run(trees, &opts, limits_store_run, (void *)(uintptr_t)change);
}

/* --- promises --- */

int quota_reservation_get(struct quotas *q, struct quota_reservation *r, const struct quota_owner *owner,
			  uint32_t snapshot, uint64_t sectors)
{
	uint64_t now = quota_now_seconds();
	struct quota_view view;
	int err = quota_view_get(q->trees, NULL, snapshot, &view);

	*r = (struct quota_reservation){ 0 };
	if (err || view.master != snapshot)
		return err;
	mutex_lock(&q->lock);
	bool is_enforced = quotas_are_enforced(q);
	for (unsigned type = 0; type < QUOTA_TYPE_NR && !err; type++) {
		if (!quota_is_counted(q, type))
			continue;
		r->rows[type] = quota_row_get(q, type, owner->ids[type]);
		if (!r->rows[type])
			err = -ENOMEM;
		else if (is_enforced && !quota_row_allows(r->rows[type], QUOTA_SPACE, sectors, now))
			err = -EDQUOT;
	}
	for (unsigned type = 0; type < QUOTA_TYPE_NR && !err; type++)
		if (r->rows[type])
			r->rows[type]->taken[QUOTA_SPACE] += sectors;
	mutex_unlock(&q->lock);
	if (err)
		*r = (struct quota_reservation){ 0 };
	else
		r->sectors = sectors;
	return err;
}

void quota_reservation_put(struct quotas *q, struct quota_reservation *r)
{
	if (!r->sectors)
		return;
	mutex_lock(&q->lock);
	for (unsigned type = 0; type < QUOTA_TYPE_NR; type++)
		if (r->rows[type])
			r->rows[type]->taken[QUOTA_SPACE] -= r->sectors;
	mutex_unlock(&q->lock);
	*r = (struct quota_reservation){ 0 };
}

uint64_t quota_room(struct quotas *q, const struct quota_owner *owner)
{
	uint64_t now = quota_now_seconds(), room = UINT64_MAX;

	mutex_lock(&q->lock);
	for (unsigned type = 0; type < QUOTA_TYPE_NR && quotas_are_enforced(q); type++) {
		const struct quota_row *row = row_find(q, type, owner->ids[type]);

		if (row && quota_is_counted(q, type))
			room = min(room, row_room(row, QUOTA_SPACE, now));
	}
	mutex_unlock(&q->lock);
	return room;
}

/* --- looking --- */

static void info_fill(const struct quota_row *row, struct quota_info *info)
{
	*info = (struct quota_info){ .type = row->type, .id = row->id, .limits = row->limits };
	for (unsigned i = 0; i < QUOTA_COUNTER_NR; i++) {
		info->used[i] = used_of(row, i);
		info->grace_end[i] = row->grace_end[i];
	}
}

void quotas_state(struct quotas *q, struct quota_state *state)
{
	mutex_lock(&q->lock);
	*state = (struct quota_state){
		.types = q->types,
		.is_counted = quotas_are_counted(q),
		.is_partial = q->is_partial,
		.cursor = q->cursor,
		.timelimits = q->timelimits,
	};
	mutex_unlock(&q->lock);
}

void quotas_get(struct quotas *q, unsigned type, uint32_t id, struct quota_info *info)
{
	*info = (struct quota_info){ .type = type, .id = id };
	mutex_lock(&q->lock);
	const struct quota_row *row = row_find(q, type, id);
	if (row)
		info_fill(row, info);
	mutex_unlock(&q->lock);
}

static int info_cmp(const void *va, const void *vb)
{
	const struct quota_info *a = va, *b = vb;

	return (a->id > b->id) - (a->id < b->id);
}

static bool row_says_something(const struct quota_row *row)
{
	uint64_t any = used_of(row, QUOTA_SPACE) | used_of(row, QUOTA_INODES);

	for (unsigned i = 0; i < QUOTA_COUNTER_NR; i++)
		any |= row->limits.limits[i].hard | row->limits.limits[i].soft;
	return any;
}

int quotas_list(struct quotas *q, unsigned type, struct quota_info **infos, size_t *nr)
{
	*nr = 0;
	mutex_lock(&q->lock);
	*infos = calloc(q->row_nr + 1, sizeof(**infos));
	for (size_t i = 0; *infos && i < q->bucket_nr; i++)
		for (const struct quota_row *row = q->buckets[i]; row; row = row->next)
			if (row->type == type && row_says_something(row))
				info_fill(row, &(*infos)[(*nr)++]);
	mutex_unlock(&q->lock);
	if (!*infos)
		return -ENOMEM;
	qsort(*infos, *nr, sizeof(**infos), info_cmp);
	return 0;
}
