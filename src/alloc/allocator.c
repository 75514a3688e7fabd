/* The allocator as a whole: opening and stopping it, and which trigger a key has. See allocator.h. */
#include "alloc/allocator.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/internal.h"

/* --- opening --- */

static void devs_read(struct allocator *a)
{
	const struct super *s = a->super;

	a->capacity_sectors = usage_capacity_sectors(s);
	/* Newer versions have more members, and aren't written. */
	assert(s->member_nr <= ALLOC_DEVS_MAX);
	a->dev_nr = s->member_nr;
	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		const struct member *m = &s->members[dev].m;
		struct alloc_dev *d = &a->devs[dev];

		if (!m->exists || !m->bucket_sectors)
			continue;
		d->is_member = true;
		d->first_bucket = m->first_bucket;
		d->bucket_nr = m->nbuckets;
		d->bucket_sectors = m->bucket_sectors;
		d->capacity_sectors = usage_member_capacity_sectors(s, dev);
		atomic_init(&d->is_writable, s->members[dev].dev && m->state == MEMBER_RW);
		d->has_discard = m->has_discard;
		d->data_allowed = m->data_allowed;
		d->durability = m->durability;
		d->group = (uint8_t)m->group;
		d->btree_reserve = bucket_btree_reserve(m->bucket_sectors, s->kctx.node_sectors);
		atomic_init(&d->index, m->is_freespace_initialized ? ALLOC_INDEX_READY : ALLOC_INDEX_NONE);
	}
}

/* A group's devices are those labelled with it or with a group below it (10 §5.1). */
static void groups_read(struct allocator *a)
{
	const struct sb_disk *sb = a->super->sb;

	a->group_nr = min(sb_disk_group_nr(sb), (unsigned)SB_MEMBERS_MAX);
	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		unsigned group = a->devs[dev].group;

		/* No path is longer than there are groups, circles excepted. */
		for (unsigned depth = 0; group && group <= a->group_nr && depth < a->group_nr; depth++) {
			struct disk_group g;

			sb_disk_group(sb, group - 1, &g);
			if (g.is_deleted)
				break;
			a->group_devs[group - 1] |= 1ull << dev;
			group = g.parent;
		}
	}
}

static int quotas_of_options(struct allocator *a)
{
	static const enum option_id options[QUOTA_TYPE_NR] = { OPT_USRQUOTA, OPT_GRPQUOTA, OPT_PRJQUOTA };
	struct sb_quota timelimits;
	unsigned types = 0;

	for (unsigned type = 0; type < QUOTA_TYPE_NR; type++)
		types |= (a->super->options[options[type]] ? 1u : 0u) << type;
	bool has_timelimits = sb_quota(a->super->sb, &timelimits);
	return types ? quotas_open(a->trees, types, has_timelimits ? &timelimits : NULL, &a->quotas) : 0;
}

int allocator_quota_start(struct allocator *a)
{
	if (!a->quotas)
		return 0;
	/* Without room for the section the grace periods are the usual ones. */
	int err = super_quota_ensure(a->super);
	struct usage u = { 0 };

	if (!err || err == -ENOSPC)
		err = allocator_usage(a, &u);
	err = err ? err : quotas_start(a->quotas, u.inodes);
	usage_free(&u);
	return err;
}

struct quotas *allocator_quotas(struct allocator *a) { return a->quotas; }

int allocator_open(const struct allocator_opts *opts, struct allocator **allocator)
{
	struct allocator *a = calloc(1, sizeof(*a));

	if (!a)
		return -ENOMEM;
	a->super = opts->super;
	a->trees = opts->trees;
	a->state = opts->state;
	a->replicas_mark = opts->replicas_mark;
	a->ctx = opts->ctx;
	a->reports = opts->reports;
	a->seq_first = opts->state->seq_next;
	atomic_init(&a->clock[0], opts->state->io_clock[0]);
	atomic_init(&a->clock[1], opts->state->io_clock[1]);
	key_versions_init(&a->versions, opts->state, super_is_encrypted(opts->super));
	counters_init(&a->counters);
	open_buckets_init(&a->open);
	write_points_init(a);
	node_pool_init(&a->nodes);
	discards_init(&a->discards);
	evacuation_init(&a->evacuation);
	readers_init(&a->readers);
	gc_gens_init(&a->gc);
	read_times_init(a);
	devs_read(a);
	groups_read(a);

	int err = counters_read(a);
	if (!err)
		err = bucket_ranges_read(a);
	if (!err)
		err = freespace_init_prepare(a);
	if (!err)
		err = quotas_of_options(a);
	if (err) {
		allocator_close(a);
		return err;
	}
	*allocator = a;
	return 0;
}

int allocator_start(struct allocator *a, struct journal *journal)
{
	a->journal = journal;
	int err = bucket_ranges_read(a);
	if (err)
		return err;
	atomic_store(&a->is_started, true);
	err = node_pool_start(a);
	if (!err)
		err = discards_start(a);
	if (!err)
		err = gc_gens_start(a);
	if (err)
		allocator_stop(a);
	return err;
}

void allocator_quiesce(struct allocator *a)
{
	if (a->quotas)
		quotas_stop(a->quotas);
	gc_gens_stop(a);
	node_pool_stop(a);
	write_points_drop(a, false);
	open_buckets_drop_partial(a, 0, 0);
	discards_rest(a);
}

bool allocator_stirred(struct allocator *a) { return discards_stirred(a); }

void allocator_stop(struct allocator *a)
{
	atomic_store(&a->is_started, false);
	if (a->quotas)
		quotas_stop(a->quotas);
	gc_gens_stop(a);
	node_pool_stop(a);
	discards_stop(a);
	write_points_drop(a, false);
	open_buckets_drop_partial(a, 0, 0);
}

void allocator_close(struct allocator *a)
{
	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		free(a->devs[dev].ranges);
		free(a->devs[dev].unindexed);
	}
	quotas_close(a->quotas);
	read_times_destroy(a);
	gc_gens_destroy(&a->gc);
	evacuation_destroy(&a->evacuation);
	discards_destroy(&a->discards);
	readers_destroy(&a->readers);
	node_pool_destroy(&a->nodes);
	write_points_destroy(a);
	open_buckets_destroy(&a->open);
	counters_destroy(&a->counters);
	key_versions_destroy(&a->versions);
	free(a);
}

void allocator_stats(struct allocator *a, struct allocator_stats *stats)
{
	mutex_lock(&a->open.lock);
	*stats = (struct allocator_stats){ .buckets_opened = a->open.opened,
					   .open_buckets = a->open.nr,
					   .holes_taken = a->open.holes.taken };
	mutex_unlock(&a->open.lock);
	stats->buckets_freed = atomic_load(&a->buckets_freed);
	stats->discards = atomic_load(&a->discards_done);
	stats->waits_for_journal = atomic_load(&a->journal_waits);
}

void allocator_jobs(struct allocator *a, struct job_list *list)
{
	job_list_add(list, &a->nodes.job);
	job_list_add(list, &a->discards.job);
	job_list_add(list, &a->gc.job);
	if (a->quotas)
		job_list_add(list, quotas_job(a->quotas));
}

void alloc_task_result(struct allocator *a, const char *work, int err, int *told)
{
	bool is_told_elsewhere = err == -EROFS || err == -ECANCELED || (a->journal && journal_error(a->journal));
	bool is_news = err < 0 && err != -ENOMEM && err != -ENOSPC && !is_told_elsewhere && err != *told;

	*told = min(err, 0);
	if (is_news)
		report_emit(
			a->reports,
			&(struct report){
				.level = REPORT_DAMAGE,
				.err = err,
				.structure = "allocation",
				.position = work,
				.found = error_name(err),
				.advice = "Space that was given up may not become free. `kiln check` tells more." });
}

/* --- hooks --- */

int allocator_trigger(struct allocator *a, struct btree_txn *txn, const struct btree_update *u)
{
	int err;

	if (u->level || u->is_root)
		return trigger_pointers(a, txn, u);
	err = quota_trigger(a->quotas, txn, &alloc_txn_of(txn)->quota, u);
	if (err)
		return err;
	switch (u->btree_id) {
	case BTREE_ALLOC: return trigger_alloc(a, txn, u);
	case BTREE_INODES: return trigger_inode(a, txn, u);
	case BTREE_REFLINK: return trigger_pointers(a, txn, u);
	case BTREE_EXTENTS:
		/* What old and new key don't have in common, the others pass over. */
		err = trigger_pointers(a, txn, u);
		if (!err)
			err = trigger_reservation(a, txn, u);
		return err ? err : trigger_reflink_p(a, txn, u);
	default: return 0;
	}
}

void allocator_commit(struct allocator *a, struct btree_txn *txn, const struct btree_update *u, uint64_t seq)
{
	if (u->btree_id == BTREE_ALLOC && !u->level && !u->is_root)
		commit_alloc(a, txn, u, seq);
	gc_gens_commit(a, u);
}
