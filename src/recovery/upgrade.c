/* Upgrades from older versions. See upgrade.h. */
#include "recovery/upgrade.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "data/rebalance.h"
#include "format/inode.h"
#include "format/snapshot.h"
#include "namespace/snapshots.h"
#include "recovery/check.h"

/* What one transaction puts. */
struct upgrade_put {
	unsigned btree_id;
	struct bkey key;
	uint8_t value[SNAPSHOT_BYTES];
};

static int put_run(struct btree_txn *txn, void *ctx)
{
	const struct upgrade_put *put = ctx;

	return btree_txn_put(txn, put->btree_id, &put->key, put->value, 0);
}

static int put(struct recovery *r, struct upgrade_put *put)
{
	struct btree_commit_opts opts = { .name = "upgrade", .watermark = WATERMARK_NORMAL };

	return btree_txn_run(r->trees, &opts, put_run, put);
}

/* --- what it builds upon --- */

/* What the checker has for a pass, as check_opts.passes names it. */
static uint32_t check_pass_bit(unsigned id)
{
	uint32_t bits = 0;

	for (unsigned i = 0; check_pass(i); i++)
		bits |= check_pass(i)->id == id ? 1u << i : 0;
	return bits;
}

int upgrade_check(const struct super *super, struct journal_state *journal, struct btrees *trees,
		  const struct report_sink *reports, unsigned *pass)
{
	static const enum pass_id looking[] = { PASS_CHECK_SNAPSHOTS, PASS_CHECK_INODES };
	uint64_t wanted = recovery_upgrade_passes(sb_upgrade_complete(super->sb));
	/* What a clean shutdown would not have left is done by passes that follow the upgrade. */
	struct check_target target = { .super = super, .journal = journal, .trees = trees, .is_writable = true };
	struct check_result *result = calloc(1, sizeof(*result));
	int err = result ? 0 : -ENOMEM;

	*pass = PASS_ID_NR_MAX;
	for (size_t i = 0; i < ARRAY_NR(looking) && !err && *pass == PASS_ID_NR_MAX; i++) {
		if (!(wanted >> looking[i] & 1))
			continue;
		struct check_opts opts = { .passes = check_pass_bit(looking[i]), .reports = reports };
		err = check_run(&target, &opts, result);
		if (!err && (result->errors || result->btrees_damaged))
			*pass = looking[i];
	}
	free(result);
	return err;
}

/* --- snapshots --- */

/* 05 §2.4: ancestors other than the root, at random distances, unless the root is the only one. */
static void skip_list_make(const struct snapshot_table *t, struct snapshot *s)
{
	memset(s->skip, 0, sizeof(s->skip));
	for (unsigned i = 0; s->parent && i < 3; i++) {
		uint64_t up = s->depth > 2 ? random_u64() % (s->depth - 1) : 0;
		uint32_t id = s->parent;

		for (; up; up--)
			id = snapshot_table_find(t, id)->parent;
		unsigned at = i;
		for (; at && s->skip[at - 1] > id; at--)
			s->skip[at] = s->skip[at - 1];
		s->skip[at] = id;
	}
}

static bool skip_list_is_good(const struct snapshot_table *t, const struct snapshot *s)
{
	for (unsigned i = 0; i < 3; i++) {
		uint32_t id = s->parent;

		if (!s->parent && !s->skip[i])
			continue;
		while (id && id != s->skip[i])
			id = snapshot_table_find(t, id)->parent;
		if (!id)
			return false;
	}
	return true;
}

/* Does the way up, where ids grow, lead to a root? */
static bool has_all_ancestors(const struct snapshot_table *t, const struct snapshot *s)
{
	while (s && s->parent)
		s = snapshot_table_find(t, s->parent);
	return s;
}

static int snapshot_upgrade(struct recovery *r, const struct snapshot_table *t, struct snapshot_entry *e)
{
	const struct snapshot *parent = e->s.parent ? snapshot_table_find(t, e->s.parent) : NULL;
	uint32_t depth = parent ? parent->depth + 1 : 0;
	struct upgrade_put change = {
		.btree_id = BTREE_SNAPSHOTS,
		.key = { .p = BPOS(0, e->id, 0), .type = KEY_SNAPSHOT, .value_u64s = SNAPSHOT_BYTES / 8 }
	};

	if (!has_all_ancestors(t, &e->s)) /* for repair */
		return 0;
	if (e->s.depth == depth && skip_list_is_good(t, &e->s))
		return 0;
	e->s.depth = depth;
	skip_list_make(t, &e->s);
	snapshot_encode(&e->s, change.value);
	return put(r, &change);
}

int upgrade_snapshots(struct recovery *r)
{
	struct snapshot_table t = { 0 };
	int damage = 0, err = snapshot_table_read(&t, r->trees, &damage);

	/* Ancestors have greater ids. */
	for (size_t i = t.nr; i-- && !err && !damage;)
		err = snapshot_upgrade(r, &t, &t.entries[i]);
	snapshot_table_free(&t);
	return err ? err : damage;
}

/* --- inodes --- */

static bool is_unlinked(struct bkey_ref k)
{
	bool is_inode = k.k.type == KEY_INODE || k.k.type == KEY_INODE_V2 || k.k.type == KEY_INODE_V3;
	struct inode inode;

	return is_inode && !inode_unpack(k, &inode, NULL) && inode.flags & INODE_UNLINKED;
}

/* Positions of some unlinked inodes from @from on; how many. */
static int unlinked_find(struct btrees *trees, struct bpos from, struct bpos *found, int max)
{
	struct btree_iter it;
	struct bkey_ref k;
	int nr = 0, ret;

	btree_iter_open(&it, trees, BTREE_INODES, from, BTREE_ITER_ALL_SNAPSHOTS, 0);
	while (nr < max && (ret = btree_iter_peek(&it, &k)) > 0) {
		if (is_unlinked(k))
			found[nr++] = k.k.p;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return nr < max && ret < 0 ? ret : nr;
}

int upgrade_deleted_inodes(struct recovery *r)
{
	enum { BATCH = 64 };
	struct bpos found[BATCH], from = POS_MIN;
	int nr, err = 0;

	do {
		nr = unlinked_find(r->trees, from, found, BATCH);
		for (int i = 0; i < nr && !err; i++) {
			struct upgrade_put change = { .btree_id = BTREE_DELETED_INODES,
						      .key = { .p = found[i], .type = KEY_SET } };

			err = put(r, &change);
			from = bpos_successor(found[i]);
		}
	} while (nr == BATCH && !err);
	return nr < 0 ? nr : err;
}

/* --- rebalance_work --- */

/* 06 §12.4: the scan of everything. */
static int scan_request_run(struct btree_txn *txn, void *ctx)
{
	return rebalance_scan_request(txn, 0, clock_realtime_ns());
}

int upgrade_rebalance_work(struct recovery *r)
{
	struct btree_commit_opts opts = { .name = "upgrade", .watermark = WATERMARK_NORMAL };

	if (!r->super->options[OPT_BACKGROUND_COMPRESSION] && !r->super->options[OPT_BACKGROUND_TARGET])
		return 0;
	return btree_txn_run(r->trees, &opts, scan_request_run, NULL);
}
