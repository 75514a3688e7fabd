/*
 * Quotas (04 §9): limits are for ids that there can be; and what a filesystem that is open for writing has counted is
 * what a count of all inodes gives. Use itself isn't on disk.
 *
 * Memory: as alloc/quota.h says, once more.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "alloc/quota.h"
#include "recovery/check_internal.h"

static int key_check(void *ctx, struct bkey_ref k)
{
	struct check *c = ctx;

	if (k.k.p.offset > UINT32_MAX)
		check_report_pos(c, CHECK_quota_id_too_large, BTREE_QUOTAS, k.k.p, "an id of 32 bits", "%" PRIu64,
				 k.k.p.offset);
	return 0;
}

static void row_check(struct check *c, const struct quota_info *counted, const struct quota_info *kept)
{
	for (unsigned i = 0; i < QUOTA_COUNTER_NR; i++)
		if (counted->used[i] != kept->used[i])
			check_report_pos(c, CHECK_quota_usage_wrong, BTREE_QUOTAS, BPOS(counted->type, counted->id, 0),
					 i == QUOTA_SPACE ? "the sectors of all inodes" : "the number of all inodes",
					 "%" PRIu64 " instead of %" PRIu64, kept->used[i], counted->used[i]);
}

/* Every row that one of the two has. */
static int type_check(struct check *c, struct quotas *counted, struct quotas *kept, unsigned type)
{
	struct quota_info *a = NULL, *b = NULL, other;
	size_t a_nr, b_nr = 0;
	int err = quotas_list(counted, type, &a, &a_nr);

	if (!err)
		err = quotas_list(kept, type, &b, &b_nr);
	for (size_t i = 0; !err && i < a_nr; i++) {
		quotas_get(kept, type, a[i].id, &other);
		row_check(c, &a[i], &other);
	}
	for (size_t i = 0; !err && i < b_nr; i++) {
		quotas_get(counted, type, b[i].id, &other);
		if (!other.used[QUOTA_INODES])
			row_check(c, &other, &b[i]);
	}
	free(a);
	free(b);
	return err;
}

static int usage_check(struct check *c)
{
	struct quotas *kept = c->t->quotas, *counted;
	struct quota_state state;
	int err = quotas_open(c->trees, (1u << QUOTA_TYPE_NR) - 1, NULL, &counted);

	if (err)
		return err;
	err = quotas_count(counted);
	quotas_state(kept, &state);
	for (unsigned type = 0; !err && type < QUOTA_TYPE_NR; type++)
		if (state.types >> type & 1)
			err = type_check(c, counted, kept, type);
	quotas_close(counted);
	return err;
}

int check_quotas(struct check *c)
{
	int err = check_keys(c, BTREE_QUOTAS, 0, POS_MIN, SPOS_MAX, key_check, c);

	if (err || !c->t->quotas)
		return err;
	return check_is_whole(c, CHECK_BTREE(BTREE_INODES) | CHECK_BTREE(BTREE_SNAPSHOTS) |
					 CHECK_BTREE(BTREE_SUBVOLUMES) | CHECK_BTREE(BTREE_SNAPSHOT_TREES))
		       ? usage_check(c)
		       : 0;
}
