/* Making a filesystem writable, and clean again. See fs_write.h. */
#include "engine/fs_write.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mutant.h"
#include "data/copygc.h"
#include "data/repair.h"
#include "format/version.h"
#include "namespace/change.h"
#include "recovery/blacklist.h"
#include "recovery/journals.h"
#include "recovery/passes.h"
#include "recovery/upgrade.h"
#include "super/format.h"

/* --- errors --- */

/* Is this the first reason? Nobody waits for space any more. */
static bool shut_down_begin(struct kiln_fs *fs)
{
	bool is_first = !__atomic_exchange_n(&fs->shut_down, -EROFS, __ATOMIC_ACQ_REL);

	if (is_first && fs->allocator)
		allocator_refuse(fs->allocator);
	return is_first;
}

static void shut_down_report(struct kiln_fs *fs, int err, const char *cause)
{
	report_emit(
		&fs->reporter.sink,
		&(struct report){
			.level = REPORT_FATAL,
			.err = err,
			.structure = cause,
			.expected = "to be written",
			.found = error_name(err),
			.advice =
				"The filesystem is read-only from here on. What was synced before is safe. Unmount it, "
				"look at the devices, have `kiln check` say whether it is in order, then mount it "
				"again, which recovers it; with -o ro, if it isn't.",
		});
}

void fs_shut_down(struct kiln_fs *fs, int err, const char *cause)
{
	if (shut_down_begin(fs))
		shut_down_report(fs, err, cause);
}

static void journal_failed(void *ctx, int err) { fs_shut_down(ctx, err, "journal"); }

/*
 * Space in the journal would come from nodes that are written: nobody may go on waiting for it. And no entry may be
 * written that takes what was lost for written, so the journal stops before anybody hears of it.
 */
static void btrees_failed(void *ctx, int err)
{
	struct kiln_fs *fs = ctx;
	bool is_first = shut_down_begin(fs);

	if (fs->journal_writer)
		journal_refuse(fs->journal_writer);
	if (is_first)
		shut_down_report(fs, err, "btree node");
}

/* --- what the rooms need from one another --- */

/* One report of all that failed of a node: which devices, and what there is of it now. */
static void node_copies_lost(struct kiln_fs *fs, const struct btree_ptr *p, const struct device_io *ios,
			     bool is_written)
{
	char expected[32], text[256];
	struct strbuf found = strbuf_fixed(text, sizeof(text));
	unsigned copies = p->ptr_nr;
	int first_err = 0;

	for (unsigned i = 0; i < p->ptr_nr; i++)
		copies -= ios[i].err != 0;
	strbuf_printf(&found, "%u: not on ", copies);
	for (unsigned i = 0; i < p->ptr_nr; i++) {
		if (!ios[i].err)
			continue;
		strbuf_printf(&found, "%s%s (%s)", first_err ? ", " : "", fs->super->members[p->ptrs[i].dev].name,
			      error_name(ios[i].err));
		first_err = first_err ? first_err : ios[i].err;
	}
	snprintf(expected, sizeof(expected), "%u copies written", p->ptr_nr);
	report_emit(&fs->reporter.sink,
		    &(struct report){
			    .level = is_written ? REPORT_RECOVERED : REPORT_DAMAGE,
			    .err = first_err,
			    .structure = "btree node",
			    .expected = p->ptr_nr > 1 ? expected : "1 copy written",
			    .found = text,
			    .advice = is_written ? "Writing goes on with these. Look at the device: nothing makes more "
						   "copies again yet, so if it can't be trusted, copy the data to "
						   "another filesystem while the others work."
						 : "That is less than there must be." });
}

/* How many copies of data of this type the devices that may be written can have. */
static unsigned copies_max(const struct super *s, unsigned data_type)
{
	unsigned nr = 0;

	for (unsigned i = 0; i < s->member_nr; i++) {
		const struct member *m = &s->members[i].m;

		if (super_member_online(s, i) && super_member_state(s, i) == MEMBER_RW &&
		    m->data_allowed >> data_type & 1)
			nr += m->durability;
	}
	return nr;
}

/*
 * What an append would do to a node one of whose devices isn't there: the copy on it lacks the set, and is dropped. Not
 * where space is short: to append takes less.
 */
bool fs_node_lacks_copies(void *ctx, const struct btree_ptr *p)
{
	struct kiln_fs *fs = ctx;
	const struct super *s = fs->super;
	unsigned copies = 0, wanted = (unsigned)s->options[OPT_METADATA_REPLICAS];

	for (unsigned i = 0; i < p->ptr_nr; i++)
		if (super_member_online(s, p->ptrs[i].dev))
			copies += s->members[p->ptrs[i].dev].m.durability;
	return copies < wanted && copies < copies_max(s, DATA_BTREE) && !allocator_key_room(fs->allocator) &&
	       !allocator_nodes_are_low(fs->allocator);
}

int fs_node_write(void *ctx, const struct btree_ptr *p, const void *buf, size_t offset, size_t bytes, unsigned *failed)
{
	struct kiln_fs *fs = ctx;
	struct super *s = fs->super;
	struct device_io ios[EXTENT_PTRS_MAX];
	struct iovec iov = { (void *)buf, bytes };
	struct io_group group;
	unsigned online = 0, written = 0; /* durability */
	int first_err = 0;

	*failed = 0;
	io_group_init_for(&group, p->ptr_nr);
	for (unsigned i = 0; i < p->ptr_nr; i++) {
		ios[i] = (struct device_io){ .op = DEVICE_WRITE, .iov = &iov, .iov_nr = 1, .len_bytes = bytes };
		if (!super_member_online(s, p->ptrs[i].dev)) {
			ios[i].err = -ENODEV;
			continue;
		}
		online += s->members[p->ptrs[i].dev].m.durability;
		ios[i].dev = s->members[p->ptrs[i].dev].dev;
		ios[i].offset_bytes = (p->ptrs[i].sector << SECTOR_SHIFT) + offset;
		io_submit(&group, &ios[i]);
	}
	io_group_wait(&group);
	for (unsigned i = 0; i < p->ptr_nr; i++) {
		if (!ios[i].err) {
			written += s->members[p->ptrs[i].dev].m.durability;
			continue;
		}
		*failed |= 1u << i;
		first_err = first_err ? first_err : ios[i].err;
	}
	/* A node that had too few copies before doesn't get worse. */
	unsigned required = min((unsigned)s->options[OPT_METADATA_REPLICAS_REQUIRED], online);
	bool is_written = *failed != (1u << p->ptr_nr) - 1 && written >= required;

	if (first_err)
		node_copies_lost(fs, p, ios, is_written);
	return is_written ? 0 : first_err;
}

static int hook_trigger(void *ctx, struct btree_txn *txn, const struct btree_update *u)
{
	return allocator_trigger(ctx, txn, u);
}
static int hook_prepare(void *ctx, struct btree_txn *txn) { return allocator_prepare(ctx, txn); }
static void hook_commit(void *ctx, struct btree_txn *txn, const struct btree_update *u, uint64_t seq)
{
	/* fsync of a file flushes the journal up to the entry that holds its inode (04 §1.6). */
	if (u->btree_id == BTREE_INODES && !u->level && u->new.k.type == KEY_INODE_V3)
		le64_store(u->new_value, seq);
	allocator_commit(ctx, txn, u, seq);
}
static void hook_committed(void *ctx, struct btree_txn *txn, uint64_t seq) { allocator_committed(ctx, txn, seq); }
static void hook_aborted(void *ctx, struct btree_txn *txn) { allocator_aborted(ctx, txn); }

static int allocator_replicas_mark(void *ctx, const struct usage_replicas *entry)
{
	return super_replicas_mark(ctx, entry->data_type, entry->nr_required, entry->devs, entry->nr_devs);
}

static int journal_replicas_mark(void *ctx, const uint8_t *devs, unsigned dev_nr)
{
	struct kiln_fs *fs = ctx;

	return super_replicas_mark(fs->super, DATA_JOURNAL, 1, devs, dev_nr);
}
int fs_device_leave(struct kiln_fs *fs, unsigned dev)
{
	int err = allocator_device_leave(fs->allocator, dev);

	return err ? err : super_member_fail(fs->super, dev);
}
static int journal_device_lost(void *ctx, unsigned dev) { return fs_device_leave(ctx, dev); }
static unsigned journal_tail(void *ctx, uint64_t seq, void *at, unsigned max_u64s)
{
	struct kiln_fs *fs = ctx;

	return allocator_journal_tail(fs->allocator, seq, at, max_u64s);
}
static unsigned journal_tail_u64s_max(void *ctx)
{
	struct kiln_fs *fs = ctx;

	return allocator_journal_tail_u64s_max(fs->allocator);
}
static void journal_flushed(void *ctx, uint64_t seq)
{
	struct kiln_fs *fs = ctx;

	allocator_journal_flushed(fs->allocator, seq);
}

/* --- what can't be written --- */

static int upgrade_refused(const struct kiln_fs *fs, char why[KILN_ERROR_BYTES])
{
	unsigned version = sb_upgrade_complete(fs->super->sb), pass;
	int err = upgrade_check(fs->super, fs->journal, fs->trees, &fs->reporter.sink, &pass);

	if (err || pass == PASS_ID_NR_MAX)
		return err;
	snprintf(why, KILN_ERROR_BYTES, "upgrading it from %u.%u needs what %s finds to be repaired first",
		 VERSION_MAJOR(version), VERSION_MINOR(version), pass_name(pass));
	return 1;
}

/* The first name is enough: what is damaged elsewhere is met by who looks there. */
static int first_name_stop(void *ctx, const struct kiln_dirent *e) { return e->name[0] != '.'; }

static int root_read(struct kiln_fs *fs)
{
	struct kiln_stat st;
	int err = kiln_stat(fs, kiln_root(fs), &st);

	return err ? err : kiln_readdir(fs, kiln_root(fs), 0, first_name_stop, NULL, NULL, NULL);
}

/* Must there be more copies than there can be? Metadata is in btrees and in the journal. */
static bool copies_are_too_few(const struct super *s, char why[KILN_ERROR_BYTES])
{
	static const struct {
		unsigned data_type;
		enum option_id option;
		const char *what;
	} kinds[] = {
		{ DATA_BTREE, OPT_METADATA_REPLICAS_REQUIRED, "metadata" },
		{ DATA_JOURNAL, OPT_METADATA_REPLICAS_REQUIRED, "metadata" },
		{ DATA_USER, OPT_DATA_REPLICAS_REQUIRED, "data" },
	};

	for (size_t i = 0; i < ARRAY_NR(kinds); i++) {
		unsigned copies = copies_max(s, kinds[i].data_type), required = (unsigned)s->options[kinds[i].option];

		if (copies >= required)
			continue;
		snprintf(why, KILN_ERROR_BYTES,
			 "%s must have %u copies (%s_replicas_required), and the devices that are there can have %u",
			 kinds[i].what, required, kinds[i].what, copies);
		return true;
	}
	return false;
}

int fs_write_refused(struct kiln_fs *fs, char why[KILN_ERROR_BYTES])
{
	const struct super *s = fs->super;

	/* Or an option is in effect whose engine isn't built yet: new data would not be what it asks for. */
	if (super_write_unsupported(s, why) ||
	    super_option_unsupported(OPT_ERASURE_CODE, s->options[OPT_ERASURE_CODE], why))
		return 1;
	if (namespace_fallback(fs->ns)) {
		snprintf(why, KILN_ERROR_BYTES, "part of its metadata is damaged: %s", namespace_fallback(fs->ns));
		return 1;
	}
	int err = root_read(fs);
	if (err == -ENOMEM)
		return err;
	if (err) {
		snprintf(why, KILN_ERROR_BYTES, "its root directory can't be read (%s): repair comes first",
			 strerror(-err));
		return 1;
	}
	if (!fs->journal->was_clean && (fs->journal->missing_nr || fs->journal->rewind_nr)) {
		snprintf(why, KILN_ERROR_BYTES, "its journal is incomplete: repair comes first");
		return 1;
	}
	if (!journal_can_be_written(s)) {
		snprintf(why, KILN_ERROR_BYTES, "no device that is written has a journal, or one that is large enough");
		return 1;
	}
	if (copies_are_too_few(s, why))
		return 1;
	uint64_t bytes, needed;
	if (!journal_entries_fit(s, &bytes, &needed)) {
		snprintf(why, KILN_ERROR_BYTES,
			 "its buckets of %" PRIu64 " KiB are too small for the journal, which needs %" PRIu64 " KiB",
			 bytes >> 10, div_round_up_u64(needed, 1024));
		return 1;
	}
	/* Only who counts everything knows them, and taken as 0 they would be written down as 0. */
	if (!journal_has_counters(fs->journal)) {
		snprintf(why, KILN_ERROR_BYTES, "counters of its space are missing: repair comes first");
		return 1;
	}
	return upgrade_refused(fs, why);
}

/* --- starting --- */

/*
 * Superblocks, in this order on disk: room for more sequence numbers that were lost; those of this time are never used;
 * then "dirty".
 */
static int mark_dirty(struct kiln_fs *fs)
{
	const struct journal_state *state = fs->journal;
	int err = blacklist_collect(fs->super, fs->trees, state);

	if (!err && state->seq_next > state->seq_flushed + 1)
		err = super_blacklist_add(fs->super, state->seq_flushed + 1, state->seq_next);
	return err ? err : super_mark_dirty(fs->super);
}

static int start_journal(struct kiln_fs *fs)
{
	const struct journal_state *state = fs->journal;
	struct journal_opts opts = {
		.super = fs->super,
		.state = state,
		.seq_next = state->seq_next,
		.seq_pinned = state->was_clean ? state->seq_next : state->seq_last,
		.ops = {
			.tail = journal_tail,
			.tail_u64s_max = journal_tail_u64s_max,
			.replicas_mark = journal_replicas_mark,
			.device_lost = journal_device_lost,
			.flushed = journal_flushed,
			.failed = journal_failed,
			.ctx = fs,
		},
		.reports = &fs->reporter.sink,
	};

	return journal_start(&opts, &fs->journal_writer);
}

static int start_btrees(struct kiln_fs *fs)
{
	const struct super *s = fs->super;
	uint32_t cached_btrees = 1u << BTREE_ALLOC;

	if (s->options[OPT_INODES_USE_KEY_CACHE])
		cached_btrees |= 1u << BTREE_INODES;
	struct btrees_write_opts opts = {
		.journal = fs->journal_writer,
		.cached_btrees = cached_btrees,
		.hooks = {
			.txn_bytes = allocator_txn_bytes(),
			.trigger = hook_trigger,
			.prepare = hook_prepare,
			.commit = hook_commit,
			.committed = hook_committed,
			.aborted = hook_aborted,
			.ctx = fs->allocator,
		},
		.has_txn_names = s->options[OPT_JOURNAL_TRANSACTION_NAMES],
		.csum_type = super_metadata_csum_type(s),
		.version = le16_get(s->sb->version),
		.must_rewrite_old = super_is_encrypted(s) && !fs->journal->was_clean,
		.failed = btrees_failed,
		.ctx = fs,
	};

	return btrees_start_write(fs->trees, &opts);
}

static int open_allocator(struct kiln_fs *fs)
{
	struct allocator_opts opts = {
		.super = fs->super,
		.trees = fs->trees,
		.state = fs->journal,
		.replicas_mark = allocator_replicas_mark,
		.ctx = fs->super,
		.reports = &fs->reporter.sink,
	};

	return allocator_open(&opts, &fs->allocator);
}

static int run_passes(struct kiln_fs *fs)
{
	struct recovery recovery = {
		.super = fs->super,
		.trees = fs->trees,
		.journal = fs->journal_writer,
		.state = fs->journal,
		.allocator = fs->allocator,
		.data = fs->data,
		.ns = fs->ns,
		.reports = &fs->reporter.sink,
		.log = &fs->reporter.log,
		/* The version itself has been raised by now. */
		.requested = recovery_upgrade_passes(sb_upgrade_complete(fs->super->sb)),
	};
	int err = recovery_run(&recovery);

	if (!err && sb_upgrade_complete(fs->super->sb) < le16_get(fs->super->sb->version))
		err = super_mark_recovered(fs->super);
	return err;
}

static int start_steps(struct kiln_fs *fs)
{
	bool has_grown = false;
	int err = open_allocator(fs);

	if (!err)
		err = mark_dirty(fs);
	if (!err)
		err = start_journal(fs);
	if (!err)
		err = journals_grow(fs->super, fs->journal_writer, fs->allocator, &fs->reporter.log, &has_grown);
	if (!err)
		err = start_btrees(fs);
	if (!err)
		err = allocator_start(fs->allocator, fs->journal_writer);
	if (!err)
		err = data_start_write(fs->data, fs->allocator, fs->journal_writer);
	if (!err)
		err = namespace_start_write(fs->ns, fs->allocator);
	if (!err)
		err = run_passes(fs);
	if (!err && has_grown)
		err = journal_flush(fs->journal_writer);
	if (!err)
		err = blacklist_outgrow(fs->super, fs->journal_writer, fs->journal);
	if (!err)
		err = data_start_copygc(fs->data);
	if (!err)
		err = data_start_repair(fs->data);
	if (!err)
		err = allocator_quota_start(fs->allocator);
	return err;
}

/* After the steps: writable from here on, or given up, with @reason unless @why has a better one. */
static int start_end(struct kiln_fs *fs, int err, const char *reason, char why[KILN_ERROR_BYTES])
{
	if (!err)
		err = reporter_count_start(&fs->reporter, fs->super);
	if (err) {
		if (!why[0])
			snprintf(why, KILN_ERROR_BYTES, "%s", reason);
		fs_write_abort(fs);
		return err;
	}
	if (fs->super->is_degraded)
		log_printf(&fs->reporter.log, LOG_LEVEL_WARNING,
			   "a device is missing: what is written now may have fewer copies than it should, and nothing "
			   "makes more of them later yet. `ro` leaves everything as it is");
	fs->is_writable = true;
	return 0;
}

int fs_write_start(struct kiln_fs *fs, char why[KILN_ERROR_BYTES])
{
	char last[KILN_ERROR_BYTES];
	int err = start_steps(fs);
	enum report_level level = reporter_last(&fs->reporter, last);

	return start_end(fs, err, last[0] && level >= REPORT_DAMAGE ? last : fs_error_text(err), why);
}

/* --- the first time (07 §17.1) --- */

/* What recovery does for others: every bucket that is in use says so, and all others are free. */
static int fresh_space(struct kiln_fs *fs)
{
	int err = 0;

	for (unsigned dev = 0; dev < fs->super->member_nr && !err; dev++)
		if (super_member_online(fs->super, dev))
			err = allocator_mark_device(fs->allocator, dev);
	return err ? err : allocator_freespace_init(fs->allocator);
}

/* The superblocks stay as formatting wrote them until everything else is durable. */
static int fresh_steps(struct kiln_fs *fs)
{
	int err = super_journals_init(fs->super);

	if (!err)
		err = open_allocator(fs);
	if (!err)
		err = allocator_init_fresh(fs->allocator);
	if (!err)
		err = super_mark_dirty(fs->super);
	if (!err)
		err = start_journal(fs);
	if (!err)
		err = start_btrees(fs);
	if (!err)
		err = allocator_start(fs->allocator, fs->journal_writer);
	if (!err)
		err = fresh_space(fs);
	if (!err)
		err = namespace_init_fresh(fs->trees, fs->super);
	if (!err)
		err = journal_flush(fs->journal_writer);
	return err ? err : super_mark_initialized(fs->super);
}

int fs_write_start_fresh(struct kiln_fs *fs, uint64_t memory_bytes, char why[KILN_ERROR_BYTES])
{
	int err = fresh_steps(fs);

	if (!err)
		err = fs_open_namespace(fs, memory_bytes);
	if (!err)
		err = data_start_write(fs->data, fs->allocator, fs->journal_writer);
	if (!err)
		err = namespace_start_write(fs->ns, fs->allocator);
	if (!err)
		err = data_start_copygc(fs->data);
	if (!err)
		err = data_start_repair(fs->data);
	if (!err)
		err = allocator_quota_start(fs->allocator);
	return start_end(fs, err, err == -ENOSPC ? SUPER_FORMAT_TOO_SMALL : fs_error_text(err), why);
}

/* --- stopping --- */

static void stop_step_set(struct kiln_fs *fs, const char *step)
{
	__atomic_store_n(&fs->stop_step, step, __ATOMIC_RELEASE);
}

/* After this everything that was committed is in btree nodes on disk, and the journal isn't needed any more. */
static int write_back_all(struct kiln_fs *fs)
{
	/* Whoever holds objects still can't use them any more; a clean filesystem has no unlinked inode (04 §6). */
	stop_step_set(fs, "deleting files that were in use");
	int err = namespace_delete_dead_inodes(fs->ns);

	namespace_stop_write(fs->ns);
	/* What can't be finished isn't clean; all else is written back. */
	stop_step_set(fs, "finishing what was stopped half way");
	int unfinished = err ? 0 : data_finish_ops(fs->data);
	if (!err) {
		stop_step_set(fs, "replacing bad copies");
		data_repair_wait(fs->data);
	}
	/* While copygc can make room for what that takes; then little is left. */
	stop_step_set(fs, "writing btree nodes");
	if (!err)
		err = btrees_flush_all(fs->trees);
	stop_step_set(fs, "finishing what was being written");
	data_stop_write(fs->data);
	/* What became empty can be discarded only behind a flush, and discarding changes keys again: settle that first.
	 */
	if (!err)
		err = journal_flush(fs->journal_writer);
	stop_step_set(fs, "letting the allocator come to rest");
	allocator_quiesce(fs->allocator);
	stop_step_set(fs, "writing the last btree nodes");
	if (!err)
		do
			err = btrees_flush_all(fs->trees);
		while (!err && allocator_stirred(fs->allocator));
	if (!err)
		err = unfinished;
	return err ? err : __atomic_load_n(&fs->shut_down, __ATOMIC_ACQUIRE);
}

/* @seq: of the journal's last entry. */
static int clean_section_write(struct kiln_fs *fs, uint64_t seq)
{
	unsigned tail_u64s, roots_u64s;
	const void *tail = journal_last_tail(fs->journal_writer, &tail_u64s);
	const void *roots = journal_last_roots(fs->journal_writer, &roots_u64s);

	return super_mark_clean(fs->super, seq, tail, tail_u64s, roots, roots_u64s);
}

static int mark_clean(struct kiln_fs *fs)
{
	uint64_t seq;
	int err = journal_stop_clean(fs->journal_writer, &seq);

	return err ? err : clean_section_write(fs, seq);
}

static void free_all(struct kiln_fs *fs)
{
	reporter_count_stop(&fs->reporter);
	if (fs->journal_writer)
		btrees_stop_write(fs->trees);
	if (fs->allocator)
		allocator_close(fs->allocator);
	if (fs->journal_writer)
		journal_free(fs->journal_writer);
	fs->allocator = NULL;
	fs->journal_writer = NULL;
	fs->is_writable = false;
}

int fs_write_stop(struct kiln_fs *fs)
{
	if (is_mutant(MUTANT_CLEAN_FLAG) && !journal_flush(fs->journal_writer))
		clean_section_write(fs, journal_seq_flushed(fs->journal_writer));

	int err = write_back_all(fs);

	stop_step_set(fs, "marking it clean");
	allocator_stop(fs->allocator);
	if (!err)
		err = mark_clean(fs);
	if (err)
		journal_abort(fs->journal_writer);
	free_all(fs);
	return err;
}

void fs_write_abort(struct kiln_fs *fs)
{
	shut_down_begin(fs);
	if (fs->journal_writer)
		journal_abort(fs->journal_writer);
	if (fs->data)
		data_stop_write(fs->data);
	if (fs->ns)
		namespace_stop_write(fs->ns);
	if (fs->allocator)
		allocator_stop(fs->allocator);
	free_all(fs);
}

void fs_jobs(struct kiln_fs *fs, struct job_list *list)
{
	*list = (struct job_list){ 0 };
	if (!fs->is_writable)
		return;
	journal_jobs(fs->journal_writer, list);
	btrees_jobs(fs->trees, list);
	allocator_jobs(fs->allocator, list);
	data_jobs(fs->data, list);
	namespace_jobs(fs->ns, list);
	job_list_add(list, &fs->reporter.errors_job);
}
