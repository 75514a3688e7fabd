/* The public calls about quotas (alloc/quota.h). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/api.h"
#include "format/sb_edit.h"

_Static_assert((int)KILN_QUOTA_USER == (int)QUOTA_USER && (int)KILN_QUOTA_GROUP == (int)QUOTA_GROUP &&
		       (int)KILN_QUOTA_PROJECT == (int)QUOTA_PROJECT,
	       "types are the format's");

static struct quotas *writable_quotas(const kiln_fs *fs)
{
	return fs->is_writable ? allocator_quotas(fs->allocator) : NULL;
}

/* Count all that there is, once: nothing changes. */
static int readonly_quotas(kiln_fs *fs, struct quotas **quotas)
{
	struct sb_quota timelimits;
	struct quotas *q;
	int err = 0;

	mutex_lock(&fs->usage_lock);
	if (!fs->quotas) {
		bool has_timelimits = sb_quota(fs->super->sb, &timelimits);

		err = quotas_open(fs->trees, (1u << QUOTA_TYPE_NR) - 1, has_timelimits ? &timelimits : NULL, &q);
		if (!err) {
			err = quotas_count(q);
			if (err)
				quotas_close(q);
			else
				fs->quotas = q;
		}
	}
	*quotas = fs->quotas;
	mutex_unlock(&fs->usage_lock);
	return err;
}

/* Where the numbers of a type are, all of them. */
static int quotas_of(kiln_fs *fs, unsigned type, struct quotas **quotas)
{
	struct quota_state state;

	if (type >= QUOTA_TYPE_NR)
		return -EINVAL;
	if (!fs->is_writable)
		return readonly_quotas(fs, quotas);
	*quotas = writable_quotas(fs);
	if (!*quotas)
		return -ESRCH;
	quotas_state(*quotas, &state);
	return state.types >> type & 1 ? quotas_wait(*quotas) : -ESRCH;
}

/* What is stored may be more than can be said in bytes: no limit that anybody meets. */
static uint64_t in_units(uint64_t nr, unsigned shift) { return nr > UINT64_MAX >> shift ? UINT64_MAX : nr << shift; }

static void value_fill(struct kiln_quota_value *v, const struct quota_info *info, unsigned counter, unsigned shift)
{
	*v = (struct kiln_quota_value){
		.used = in_units(info->used[counter], shift),
		.soft = in_units(info->limits.limits[counter].soft, shift),
		.hard = in_units(info->limits.limits[counter].hard, shift),
		.grace_end = (int64_t)info->grace_end[counter],
	};
}

static void quota_fill(struct kiln_quota *out, const struct quota_info *info)
{
	*out = (struct kiln_quota){ .type = (enum kiln_quota_type)info->type, .id = info->id };
	value_fill(&out->space, info, QUOTA_SPACE, SECTOR_SHIFT);
	value_fill(&out->inodes, info, QUOTA_INODES, 0);
}

int kiln_quota_get(kiln_fs *fs, enum kiln_quota_type type, uint32_t id, struct kiln_quota *quota)
{
	struct quota_info info;
	struct quotas *q;

	int err = quotas_of(fs, type, &q);
	if (err)
		return error_to_errno(err);
	quotas_get(q, type, id, &info);
	quota_fill(quota, &info);
	return 0;
}

static int rows_tell(struct quotas *q, unsigned type, kiln_quota_fn fn, void *ctx)
{
	struct quota_info *infos = NULL;
	struct kiln_quota quota;
	size_t nr = 0;

	int ret = error_to_errno(quotas_list(q, type, &infos, &nr));
	for (size_t i = 0; i < nr && !ret; i++) {
		quota_fill(&quota, &infos[i]);
		ret = fn(ctx, &quota);
	}
	free(infos);
	return ret;
}

int kiln_quota_list(kiln_fs *fs, enum kiln_quota_type type, kiln_quota_fn fn, void *ctx)
{
	struct quotas *q;
	int err = quotas_of(fs, type, &q);

	return err ? error_to_errno(err) : rows_tell(q, type, fn, ctx);
}

int kiln_quota_count(kiln_fs *fs, enum kiln_quota_type type, kiln_quota_fn fn, void *ctx)
{
	struct quota_state state;
	struct quotas *q;

	if ((unsigned)type >= QUOTA_TYPE_NR)
		return -EINVAL;
	int err = quotas_open(fs->trees, 1u << type, NULL, &q);
	if (err)
		return error_to_errno(err);
	err = error_to_errno(quotas_count(q));
	quotas_state(q, &state);
	__atomic_store_n(&fs->is_quota_count_partial, state.is_partial, __ATOMIC_RELAXED);
	if (!err)
		err = rows_tell(q, type, fn, ctx);
	quotas_close(q);
	return err;
}

static int may_change(const kiln_fs *fs)
{
	return fs->is_writable ? __atomic_load_n(&fs->shut_down, __ATOMIC_ACQUIRE) : -EROFS;
}

static void limit_set(struct quota_limits_change *change, unsigned counter, unsigned which, bool is_set, uint64_t limit)
{
	change->is_set[counter][which] = is_set;
	change->limits[counter][which] = limit;
}

static uint64_t sectors_of(uint64_t bytes) { return (bytes >> SECTOR_SHIFT) + (bytes & (SECTOR_BYTES - 1) ? 1 : 0); }

int kiln_quota_set(kiln_fs *fs, enum kiln_quota_type type, uint32_t id, const struct kiln_quota_limits *limits)
{
	const unsigned all =
		KILN_QUOTA_SPACE_SOFT | KILN_QUOTA_SPACE_HARD | KILN_QUOTA_INODES_SOFT | KILN_QUOTA_INODES_HARD;
	struct quota_limits_change change = { .type = type, .id = id };
	unsigned fields = limits->fields;

	int err = may_change(fs);
	if (!err && ((unsigned)type >= QUOTA_TYPE_NR || fields & ~all))
		err = -EINVAL;
	if (!err)
		err = super_quota_ensure(fs->super);
	if (err)
		return error_to_errno(err);
	limit_set(&change, QUOTA_SPACE, QUOTA_SOFT, fields & KILN_QUOTA_SPACE_SOFT, sectors_of(limits->space_soft));
	limit_set(&change, QUOTA_SPACE, QUOTA_HARD, fields & KILN_QUOTA_SPACE_HARD, sectors_of(limits->space_hard));
	limit_set(&change, QUOTA_INODES, QUOTA_SOFT, fields & KILN_QUOTA_INODES_SOFT, limits->inodes_soft);
	limit_set(&change, QUOTA_INODES, QUOTA_HARD, fields & KILN_QUOTA_INODES_HARD, limits->inodes_hard);
	return error_to_errno(quota_limits_store(fs->trees, &change));
}

int kiln_quota_info(kiln_fs *fs, enum kiln_quota_type type, struct kiln_quota_info *info)
{
	static const enum option_id options[QUOTA_TYPE_NR] = { OPT_USRQUOTA, OPT_GRPQUOTA, OPT_PRJQUOTA };
	struct quotas *q = writable_quotas(fs);
	struct quota_state state = { 0 };
	struct sb_quota stored;

	if ((unsigned)type >= QUOTA_TYPE_NR)
		return -EINVAL;
	super_lock(fs->super);
	bool is_stored = sb_quota(fs->super->sb, &stored);
	super_lock_release(fs->super);
	mutex_lock(&fs->usage_lock);
	q = q ? q : fs->quotas;
	if (q)
		quotas_state(q, &state);
	mutex_unlock(&fs->usage_lock);
	*info = (struct kiln_quota_info){
		.is_enabled = fs->super->options[options[type]],
		.is_counted = state.is_counted && state.types >> type & 1,
		.is_partial = state.is_partial || __atomic_load_n(&fs->is_quota_count_partial, __ATOMIC_RELAXED),
		.space_grace = is_stored ? stored.timelimit_seconds[type][QUOTA_SPACE] : SB_QUOTA_TIMELIMIT_SECONDS,
		.inodes_grace = is_stored ? stored.timelimit_seconds[type][QUOTA_INODES] : SB_QUOTA_TIMELIMIT_SECONDS,
	};
	return 0;
}

int kiln_quota_set_grace(kiln_fs *fs, enum kiln_quota_type type, uint32_t space_seconds, uint32_t inodes_seconds)
{
	struct sb_quota stored;

	int err = may_change(fs);
	if (!err && (unsigned)type >= QUOTA_TYPE_NR)
		err = -EINVAL;
	if (!err)
		err = super_quota_timelimit_set(fs->super, type, QUOTA_SPACE, space_seconds);
	if (!err)
		err = super_quota_timelimit_set(fs->super, type, QUOTA_INODES, inodes_seconds);
	if (err)
		return error_to_errno(err);
	super_lock(fs->super);
	bool is_stored = sb_quota(fs->super->sb, &stored);
	super_lock_release(fs->super);
	if (is_stored && writable_quotas(fs))
		quotas_set_timelimits(writable_quotas(fs), &stored);
	return 0;
}

int kiln_quota_wait(kiln_fs *fs)
{
	struct quotas *q = writable_quotas(fs);

	return q ? error_to_errno(quotas_wait(q)) : 0;
}

int kiln_quota_privileged(kiln_fs *fs, bool is_privileged)
{
	struct quotas *q = writable_quotas(fs);

	return q ? error_to_errno(quotas_set_privileged(q, is_privileged)) : 0;
}
