/* The recovery passes. See passes.h. */
#include "recovery/passes.h"

#include <errno.h>
#include <string.h>

#include "base/mutant.h"
#include "format/logged_op.h"
#include "format/version.h"
#include "recovery/upgrade.h"

/* --- the passes that mounting needs --- */

/* Superblock and journal buckets of every member that is here say so in their alloc keys (07 §11). */
static int mark_device_superblocks(struct recovery *r)
{
	for (unsigned dev = 0; dev < r->super->member_nr; dev++) {
		int err = super_member_online(r->super, dev) ? allocator_mark_device(r->allocator, dev) : 0;

		if (err)
			return err;
	}
	return 0;
}

/* What the journal says goes into the nodes; from here on nothing lies over them. */
static int replay_journal(struct recovery *r)
{
	int err = btrees_replay(r->trees);

	if (!err)
		journal_replay_done(r->journal);
	return err;
}

static int init_freespace(struct recovery *r) { return allocator_freespace_init(r->allocator); }

/* One logged operation, by its number; -ENOENT when there is none at or behind *@nr. Those elsewhere are nobody's. */
static int logged_op_next(struct btrees *trees, uint64_t *nr, struct bkey_copy *op)
{
	struct btree_iter it;
	struct bkey_ref k;

	btree_iter_open(&it, trees, BTREE_LOGGED_OPS, BPOS(0, *nr, 0), 0, 0);
	it.end = BPOS(0, UINT64_MAX, 0);
	int found = btree_iter_peek(&it, &k);
	if (found > 0) {
		*nr = k.k.p.offset;
		op->k = k;
		op->k.value = op->value;
		memcpy(op->value, k.value, bkey_value_bytes(&k.k));
	}
	btree_iter_close(&it);
	return found > 0 ? 0 : found ? found : -ENOENT;
}

/* The snapshot that an operation in a subvolume goes to. 1; 0: there is no such subvolume; or an error. */
static int resume_where(struct recovery *r, uint32_t subvol, uint32_t *snapshot)
{
	struct subvolume sv;
	int err = namespace_subvol(r->ns, subvol, &sv);

	if (err == -ENOENT) {
		log_printf(r->log, LOG_LEVEL_WARNING,
			   "an operation was under way in subvolume %u, which doesn't exist: left alone", subvol);
		return 0;
	}
	*snapshot = err ? 0 : sv.snapshot;
	return err ? err : 1;
}

static int resume_logged_op(struct recovery *r, uint64_t nr, struct bkey_ref k)
{
	uint32_t subvol, snapshot;
	uint64_t inum;

	if (!logged_op_file(k, &subvol, &inum))
		return 0;
	int ret = resume_where(r, subvol, &snapshot);
	return ret <= 0 ? ret : data_resume_op(r->data, nr, snapshot, k);
}

static int resume_logged_ops(struct recovery *r)
{
	struct bkey_copy op;
	uint64_t nr = 0;
	int err;

	if (is_mutant(MUTANT_LOGGED_OPS))
		return 0;
	for (; !(err = logged_op_next(r->trees, &nr, &op)); nr++) {
		err = resume_logged_op(r, nr, op.k);
		if (err || nr == UINT64_MAX)
			return err;
	}
	return err == -ENOENT ? 0 : err;
}

static int delete_dead_inodes(struct recovery *r) { return namespace_delete_dead_inodes(r->ns); }

/* --- the table --- */

static const struct recovery_pass passes[] = {
	{ PASS_ALLOC_READ, RECOVERY_ALWAYS, NULL },		  /* allocator_open() */
	{ PASS_STRIPES_READ, RECOVERY_ALWAYS, NULL },		  /* filesystems with stripes open read-only */
	{ PASS_INITIALIZE_SUBVOLUMES, RECOVERY_ON_DEMAND, NULL }, /* only for versions below 1.0, which aren't read */
	{ PASS_SNAPSHOTS_READ, RECOVERY_ALWAYS, NULL },		  /* namespace_open() */
	{ PASS_CHECK_TOPOLOGY, RECOVERY_ON_DEMAND, NULL },
	{ PASS_CHECK_ALLOCATIONS, RECOVERY_CHECK, NULL },
	/* Upstream marks before replay, over the journal's keys. Behind it the same keys are in the nodes. */
	{ PASS_FS_JOURNAL_ALLOC, RECOVERY_ALWAYS, NULL }, /* one without a journal isn't written */
	{ PASS_SET_MAY_GO_RW, RECOVERY_ALWAYS, NULL },	  /* fs_write_start() */
	{ PASS_JOURNAL_REPLAY, RECOVERY_ALWAYS, replay_journal },
	{ PASS_TRANS_MARK_DEV_SBS, RECOVERY_ALWAYS, mark_device_superblocks },
	{ PASS_CHECK_ALLOC_INFO, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_LRUS, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_BTREE_BACKPOINTERS, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_BACKPOINTERS_TO_EXTENTS, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_EXTENTS_TO_BACKPOINTERS, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_ALLOC_TO_LRU_REFS, RECOVERY_CHECK, NULL },
	{ PASS_FS_FREESPACE_INIT, RECOVERY_ALWAYS, init_freespace },
	{ PASS_BUCKET_GENS_INIT, RECOVERY_ON_DEMAND, NULL }, /* only for versions below 1.0 */
	{ PASS_CHECK_SNAPSHOT_TREES, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_SNAPSHOTS, RECOVERY_CHECK, upgrade_snapshots },
	{ PASS_CHECK_SUBVOLS, RECOVERY_CHECK, NULL },
	{ PASS_DELETE_DEAD_SNAPSHOTS, RECOVERY_CHECK, NULL },
	{ PASS_FS_UPGRADE_FOR_SUBVOLUMES, RECOVERY_ON_DEMAND, NULL }, /* only for versions below 1.0 */
	{ PASS_RESUME_LOGGED_OPS, RECOVERY_ALWAYS, resume_logged_ops },
	{ PASS_CHECK_INODES, RECOVERY_CHECK, upgrade_deleted_inodes },
	{ PASS_CHECK_EXTENTS, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_INDIRECT_EXTENTS, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_DIRENTS, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_XATTRS, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_ROOT, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_DIRECTORY_STRUCTURE, RECOVERY_CHECK, NULL },
	{ PASS_CHECK_NLINKS, RECOVERY_CHECK, NULL },
	/* Upstream does it after unclean shutdowns only, and so leaves what an older crash left (04 §6). */
	{ PASS_DELETE_DEAD_INODES, RECOVERY_ALWAYS, delete_dead_inodes },
	{ PASS_FIX_REFLINK_P, RECOVERY_ON_DEMAND, NULL }, /* only for versions below 1.0 */
	{ PASS_SET_FS_NEEDS_REBALANCE, RECOVERY_ON_DEMAND, upgrade_rebalance_work },
};

const struct recovery_pass *recovery_pass(unsigned id)
{
	for (size_t i = 0; i < ARRAY_NR(passes); i++)
		if (passes[i].id == id)
			return &passes[i];
	return NULL;
}

int recovery_run(struct recovery *r)
{
	for (size_t i = 0; i < ARRAY_NR(passes); i++) {
		const struct recovery_pass *pass = &passes[i];
		bool is_needed = pass->when == RECOVERY_ALWAYS || r->requested >> pass->id & 1;
		int err = is_needed && pass->run ? pass->run(r) : 0;

		if (err) {
			log_printf(r->log, LOG_LEVEL_ERROR, "recovery pass %s failed: %s", pass_name(pass->id),
				   error_name(err));
			return err;
		}
	}
	return 0;
}

uint64_t recovery_upgrade_passes(unsigned from)
{
	static const struct {
		unsigned version;
		enum pass_id pass;
	} upgrades[] = {
		{ VERSION(1, 1), PASS_CHECK_SNAPSHOTS },
		{ VERSION(1, 2), PASS_CHECK_INODES },
		{ VERSION(1, 3), PASS_SET_FS_NEEDS_REBALANCE },
	};
	uint64_t required = 0;

	for (size_t i = 0; i < ARRAY_NR(upgrades); i++)
		if (from < upgrades[i].version)
			required |= 1ull << upgrades[i].pass;
	return required;
}
