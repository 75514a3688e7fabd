/* Opening and closing a filesystem. See fs.h. */
#include "engine/fs.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/secret.h"
#include "base/strbuf.h"
#include "data/repair.h"
#include "device/scan.h"
#include "engine/fs_write.h"

static const uint64_t memory_default = 256ull << 20;

/* How the memory budget is shared out: the node cache gets what the others leave. */
static uint64_t data_memory(uint64_t total) { return max(total / 4, (uint64_t)DATA_MEMORY_MIN); }
static uint64_t cache_memory(uint64_t total) { return total - data_memory(total) - total / 8; }
/* On top of it, and only on unclean filesystems: more entries than this make room for are no ordinary journal. */
static uint64_t journal_index_memory(uint64_t total) { return total / 2; }

/* --- what the btrees need from other rooms --- */

static int backend_read(void *ctx, const struct btree_ptr *p, unsigned replica, void *buf, size_t bytes)
{
	struct super *s = ((struct kiln_fs *)ctx)->super;
	const struct extent_ptr *ptr = &p->ptrs[replica];

	if (!super_member_online(s, ptr->dev))
		return -ENODEV;
	return device_read(s->members[ptr->dev].dev, ptr->sector << SECTOR_SHIFT, buf, bytes);
}

/* Devices that are marked as failed come last, and those that aren't there. */
static unsigned backend_replica_choose(void *ctx, const struct btree_ptr *p, uint32_t tried)
{
	const struct super *s = ((struct kiln_fs *)ctx)->super;
	uint8_t devs[EXTENT_PTRS_MAX];
	uint32_t distrusted = 0;

	for (unsigned i = 0; i < p->ptr_nr; i++) {
		devs[i] = p->ptrs[i].dev;
		if (super_member_online(s, devs[i]) && super_member_state(s, devs[i]) == MEMBER_FAILED)
			distrusted |= 1u << i;
	}
	uint32_t excluded = tried | distrusted;
	uint32_t suspect = super_suspect_copies(s, devs, p->ptr_nr) & ~excluded;
	unsigned i = super_replica_choose(s, devs, p->ptr_nr, suspect ? ~suspect : excluded, random_u64());
	if (i == p->ptr_nr)
		i = super_replica_choose(s, devs, p->ptr_nr, tried, random_u64());
	return i < p->ptr_nr ? i : (unsigned)__builtin_ctz(~tried);
}

static const char *backend_device_name(void *ctx, unsigned dev)
{
	struct super *s = ((struct kiln_fs *)ctx)->super;

	return dev < s->member_nr ? s->members[dev].name : "a device that is no member";
}

/* What can't be read the device has counted. */
static void backend_replica_bad(void *ctx, const struct btree_bad_replica *bad)
{
	struct kiln_fs *fs = ctx;

	if (bad->err == -KILN_E_CHECKSUM)
		super_checksum_error_count(fs->super, bad->ptr.dev);
	if (bad->has_served && fs->data)
		data_repair_node(fs->data, bad->btree_id, bad->level, bad->pos, &bad->ptr, bad->err);
}

static int backend_reserve(void *ctx, unsigned nr, const struct btree_ptr *replaced, enum watermark watermark,
			   struct btree_node_reserve **reserve)
{
	return allocator_node_reserve(((struct kiln_fs *)ctx)->allocator, nr, replaced, watermark, reserve);
}

static bool backend_keeps_copies(void *ctx, const struct btree_node_reserve *reserve, const struct btree_ptr *p)
{
	return allocator_node_keeps_copies(((struct kiln_fs *)ctx)->allocator, reserve, p);
}

static void backend_node_alloc(void *ctx, struct btree_node_reserve *reserve, struct btree_ptr *p)
{
	allocator_node_alloc(((struct kiln_fs *)ctx)->allocator, reserve, p);
}

static void backend_reserve_trim(void *ctx, struct btree_node_reserve *reserve)
{
	allocator_node_reserve_trim(((struct kiln_fs *)ctx)->allocator, reserve);
}

static void backend_room_wait(void *ctx, uint64_t nodes)
{
	allocator_node_room_wait(((struct kiln_fs *)ctx)->allocator, nodes);
}

static void backend_reserve_put(void *ctx, struct btree_node_reserve *reserve)
{
	allocator_node_reserve_put(((struct kiln_fs *)ctx)->allocator, reserve);
}

static bool fs_is_blacklisted(void *ctx, uint64_t journal_seq) { return journal_seq_is_blacklisted(ctx, journal_seq); }

/* --- steps --- */

/* Mount options that forbid writing weigh more than the flag that asks for it. */
static void writing_forbid(struct kiln_fs *fs, struct kiln_open_options *options, const uint64_t values[OPT_NR])
{
	const char *forbidding = mount_options_forbid_writing(values);

	if (!forbidding || !(options->flags & KILN_OPEN_WRITE))
		return;
	options->flags &= ~(unsigned)KILN_OPEN_WRITE;
	snprintf(fs->write_refused, sizeof(fs->write_refused), "the mount option %s forbids writing", forbidding);
}

/* What was passed over while the superblocks weren't known. Reading has no use for targets. */
static int set_targets(struct super *s, const char *mount_options, char why[KILN_ERROR_BYTES])
{
	uint64_t values[OPT_NR] = { 0 };
	bool is_set[OPT_NR] = { false };
	int err = mount_options_parse(mount_options, s, values, is_set, why);

	for (unsigned id = 0; id < OPT_NR && !err; id++)
		if (is_set[id] && option_table[id].type == OPTION_TARGET)
			s->options[id] = values[id];
	return err;
}

/* KILN_OPEN_WRITE is taken out of @options where the mount options forbid it. */
static int open_super(struct kiln_fs *fs, const char *const *args, size_t arg_nr, struct device **devices,
		      size_t device_nr, struct kiln_open_options *options, enum fs_depth depth,
		      char why[KILN_ERROR_BYTES])
{
	uint64_t values[OPT_NR] = { 0 };
	bool is_set[OPT_NR] = { false };
	struct device_paths paths = { 0 };

	int err = mount_options_parse(options->mount_options, NULL, values, is_set, why);
	if (!err && !devices)
		err = device_paths_parse((char *const *)args, arg_nr, &paths, why);
	if (err) {
		for (size_t i = 0; devices && i < device_nr; i++)
			device_close(devices[i]);
		return err;
	}
	writing_forbid(fs, options, values);

	struct super_open_opts opts = {
		.is_write = options->flags & KILN_OPEN_WRITE,
		.is_readonly_ok = depth == FS_NAMESPACE,
		.is_degraded_ok = options->flags & KILN_OPEN_DEGRADED || values[OPT_DEGRADED],
		.is_very_degraded_ok = options->flags & KILN_OPEN_VERY_DEGRADED || values[OPT_VERY_DEGRADED],
		.needs_all = depth == FS_ALL_SUPERS,
		.is_forced = options->flags & KILN_OPEN_FORCE,
		.is_buffered = options->flags & KILN_OPEN_BUFFERED || (is_set[OPT_DIRECT_IO] && !values[OPT_DIRECT_IO]),
		.is_without_uring = options->flags & KILN_OPEN_NO_URING,
		.is_lenient = depth == FS_SUPER && !(options->flags & KILN_OPEN_WRITE),
		.scan_for_members = !(options->flags & KILN_OPEN_NO_SCAN) && !devices,
		.sb_sector = options->sb_sector ? options->sb_sector
			     : is_set[OPT_SB]	? values[OPT_SB]
						: 0,
		.mount_options = values,
		.mount_options_set = is_set,
		.devices = devices,
		.device_nr = device_nr,
	};
	err = super_open(paths.paths, paths.nr, &opts, &fs->reporter.log, &fs->reporter.sink, &fs->super);
	device_paths_free(&paths);
	if (!err)
		__atomic_store_n(&fs->reporter.counting, fs->super, __ATOMIC_RELEASE);
	return !err && fs->super->write ? set_targets(fs->super, options->mount_options, why) : err;
}

/* Ask for the passphrase until it fits or the user gives up. */
static int unlock(struct kiln_fs *fs, const struct kiln_open_options *options)
{
	char uuid[40];
	struct strbuf text = strbuf_fixed(uuid, sizeof(uuid));
	int err = -KILN_E_NEED_PASSPHRASE;

	strbuf_add_uuid(&text, fs->super->sb->user_uuid);
	if (options->key) {
		_Static_assert(KILN_KEY_BYTES == sizeof(struct crypt_key), "a key of ChaCha20");
		err = super_unlock_key(fs->super, (const struct crypt_key *)options->key);
		if (err && err != -KILN_E_BAD_PASSPHRASE)
			return err;
	}
	if (!fs->super->needs_passphrase || !options->passphrase)
		return err;

	char *buf = secret_alloc(KILN_PASSPHRASE_BYTES_MAX);
	if (!buf)
		return -ENOMEM;
	for (unsigned attempt = 0; fs->super->needs_passphrase; attempt++) {
		ssize_t len = options->passphrase(options->ctx, uuid, attempt, buf, KILN_PASSPHRASE_BYTES_MAX);

		/* When the user gives up after wrong ones, "wrong passphrase" is what happened. */
		if (len < 0)
			err = attempt ? err : len == -ENOKEY ? -KILN_E_NEED_PASSPHRASE : (int)len;
		else
			err = super_unlock(fs->super, buf, (size_t)min(len, (ssize_t)KILN_PASSPHRASE_BYTES_MAX));
		secret_wipe(buf, KILN_PASSPHRASE_BYTES_MAX);
		if (len < 0 || (err && err != -KILN_E_BAD_PASSPHRASE))
			break;
	}
	secret_free(buf);
	return fs->super->needs_passphrase ? err : 0;
}

static int overlay_collect_key(void *ctx, const struct journal_entry *e, uint32_t offset_words, unsigned btree_id,
			       unsigned level, const struct bkey_disk *key)
{
	if (btree_id == BTREE_ACCOUNTING && key->type == KEY_ACCOUNTING)
		return 0; /* deltas, not values: usage_read() adds them up */
	return overlay_builder_add(ctx, btree_id, level, e->seq, offset_words, key);
}

static int set_overlay(struct kiln_fs *fs)
{
	struct overlay_builder *builder = overlay_builder_new(fs->super->has_key);

	int err = builder ? journal_for_each_key(fs->journal, overlay_collect_key, builder) : -ENOMEM;
	if (err) {
		overlay_builder_free(builder);
		return err;
	}
	return btrees_set_overlay(fs->trees, builder);
}

static int set_roots(struct kiln_fs *fs)
{
	for (unsigned id = 0; id < BTREE_NR_MAX; id++) {
		const struct btree_root *root = &fs->journal->roots[id];
		struct bkey_ref key = { root->key, root->value };

		if (!root->exists)
			continue;
		int err = btrees_set_root(fs->trees, id, root->level, root->is_damaged ? NULL : &key, root->is_damaged);
		if (err)
			return err;
	}
	return 0;
}

static int open_btrees(struct kiln_fs *fs, uint64_t memory_bytes)
{
	struct super *s = fs->super;
	struct btrees_opts opts = {
		.memory_bytes = cache_memory(memory_bytes),
		.kctx = &s->kctx,
		.magic = btree_node_magic(s->sb->uuid),
		.version_min = le16_get(s->sb->version_min),
		.key = s->key,
		.backend = {
			.read = backend_read,
			.replica_choose = backend_replica_choose,
			.device_name = backend_device_name,
			.replica_bad = backend_replica_bad,
			.reserve = backend_reserve,
			.keeps_copies = backend_keeps_copies,
			.node_alloc = backend_node_alloc,
			.reserve_trim = backend_reserve_trim,
			.reserve_put = backend_reserve_put,
			.write = fs_node_write,
			.room_wait = backend_room_wait,
			.lacks_copies = fs_node_lacks_copies,
			.ctx = fs,
		},
		.reports = &fs->reporter.sink,
		.is_blacklisted = fs_is_blacklisted,
		.blacklist_ctx = fs->journal,
	};
	int err = btrees_open(&opts, &fs->trees);
	if (!err)
		err = set_roots(fs);
	return err || fs->journal->was_clean ? err : set_overlay(fs);
}

static int open_steps(struct kiln_fs *fs, const struct kiln_open_options *options, enum fs_depth depth)
{
	uint64_t memory_bytes = options->memory_bytes ? options->memory_bytes : memory_default;
	int err = 0;

	if (depth >= FS_JOURNAL && fs->super->needs_passphrase)
		err = unlock(fs, options);
	if (!err && depth >= FS_JOURNAL)
		err = journal_read(
			fs->super,
			&(struct journal_read_opts){ .read_all = depth == FS_JOURNAL,
						     .memory_max_bytes = journal_index_memory(memory_bytes) },
			&fs->journal);
	if (!err && depth >= FS_BTREES)
		err = open_btrees(fs, memory_bytes);
	if (!err && depth >= FS_NAMESPACE)
		err = fs_open_namespace(fs, memory_bytes);
	return err;
}

int fs_open_namespace(struct kiln_fs *fs, uint64_t memory_bytes)
{
	uint64_t bytes = memory_bytes ? memory_bytes : memory_default;
	int err = data_open(fs->super, fs->trees, data_memory(bytes), &fs->reporter.sink, &fs->data);

	return err ? err : namespace_open(fs->super, fs->trees, fs->data, &fs->reporter.sink, &fs->ns);
}

/* A sentence for the user about why opening failed. */
static void describe_failure(struct kiln_fs *fs, int err, char why[KILN_ERROR_BYTES])
{
	if (why[0])
		return;
	if (err == -KILN_E_NEED_PASSPHRASE)
		snprintf(why, KILN_ERROR_BYTES, "the filesystem is encrypted: a passphrase is needed");
	else if (err == -KILN_E_BAD_PASSPHRASE)
		snprintf(why, KILN_ERROR_BYTES, "wrong passphrase");
	else if (fs && fs->reporter.last[0] && fs->reporter.last_level >= REPORT_DAMAGE)
		snprintf(why, KILN_ERROR_BYTES, "%s", fs->reporter.last);
	else
		snprintf(why, KILN_ERROR_BYTES, "%s", fs_error_text(err));
}

/* Nothing has been written but superblocks: no journal to read, no roots. */
static int open_fresh_steps(struct kiln_fs *fs, const struct kiln_open_options *options)
{
	uint64_t memory_bytes = options->memory_bytes ? options->memory_bytes : memory_default;

	fs->journal = calloc(1, sizeof(*fs->journal));
	if (!fs->journal)
		return -ENOMEM;
	fs->journal->super = fs->super;
	fs->journal->was_clean = true;
	fs->journal->seq_next = 1;
	return open_btrees(fs, memory_bytes);
}

/* Superblocks alone aren't opened for reading in place of writing. */
static int insist_on_writing(const struct kiln_fs *fs, char why[KILN_ERROR_BYTES])
{
	if (!fs->write_refused[0])
		return 0;
	snprintf(why, KILN_ERROR_BYTES, "%s", fs->write_refused);
	return -EINVAL;
}

static int open_and_recover(struct kiln_fs *fs, const struct kiln_open_options *options, enum fs_depth depth,
			    char why[KILN_ERROR_BYTES])
{
	int err = open_steps(fs, options, depth);

	if (err || depth != FS_NAMESPACE || !(options->flags & KILN_OPEN_WRITE))
		return err;
	int ret = fs_write_refused(fs, fs->write_refused);
	if (ret)
		return min(ret, 0);
	return fs_write_start(fs, why);
}

/* The first opening for writing of a filesystem that consists of superblocks makes the rest. */
static bool is_to_be_initialized(const struct kiln_fs *fs, const struct kiln_open_options *options, enum fs_depth depth)
{
	char why_unused[256];

	return depth == FS_NAMESPACE && options->flags & KILN_OPEN_WRITE && !SB_INITIALIZED(fs->super->sb) &&
	       !super_write_unsupported(fs->super, why_unused);
}

static int open_and_initialize(struct kiln_fs *fs, const struct kiln_open_options *options, char why[KILN_ERROR_BYTES])
{
	int err = 0;

	if (fs->super->is_degraded) {
		snprintf(why, KILN_ERROR_BYTES, "it has never been started, and a device is missing: name all of them");
		return -ENODEV;
	}
	if (fs->super->needs_passphrase)
		err = unlock(fs, options);
	if (!err)
		err = open_fresh_steps(fs, options);
	return err ? err : fs_write_start_fresh(fs, options->memory_bytes, why);
}

static int open_refuse(struct kiln_fs *fs, struct device **devices, size_t device_nr, int err)
{
	for (size_t i = 0; devices && i < device_nr; i++)
		device_close(devices[i]);
	free(fs);
	return err;
}

int fs_open(const char *const *args, size_t arg_nr, struct device **devices, size_t device_nr,
	    const struct kiln_open_options *given, enum fs_depth depth, struct kiln_fs **out,
	    char why[KILN_ERROR_BYTES])
{
	struct kiln_open_options options = { 0 };
	char why_unused[KILN_ERROR_BYTES];
	struct kiln_fs *fs = calloc(1, sizeof(*fs));

	if (!why)
		why = why_unused;
	why[0] = 0;
	if (given && !given->struct_bytes) {
		snprintf(why, KILN_ERROR_BYTES, "kiln_open_options.struct_bytes isn't set: no option would count");
		return open_refuse(fs, devices, device_nr, -EINVAL);
	}
	if (given)
		memcpy(&options, given, min(given->struct_bytes, sizeof(options)));
	if (options.memory_bytes && options.memory_bytes < KILN_MEMORY_MIN) {
		snprintf(why, KILN_ERROR_BYTES, "a memory budget of at least %llu MiB is needed",
			 KILN_MEMORY_MIN >> 20);
		return open_refuse(fs, devices, device_nr, -EINVAL);
	}
	if (!fs) {
		describe_failure(NULL, -ENOMEM, why);
		return open_refuse(NULL, devices, device_nr, -ENOMEM);
	}

	reporter_init(&fs->reporter, &options);
	mutex_init_ranked(&fs->usage_lock, LOCK_USAGE);
	int err = open_super(fs, args, arg_nr, devices, device_nr, &options, depth, why);
	if (!err && depth != FS_NAMESPACE)
		err = insist_on_writing(fs, why);
	if (!err && is_to_be_initialized(fs, &options, depth))
		err = open_and_initialize(fs, &options, why);
	else if (!err)
		err = open_and_recover(fs, &options, depth, why);
	if (err) {
		describe_failure(fs, err, why);
		kiln_close(fs);
		/* What a path names turned out not to be usable: another thing than an I/O error while it is in use. */
		return err == -KILN_E_INVALID || err == -KILN_E_CHECKSUM ? -EUCLEAN : error_to_errno(err);
	}
	*out = fs;
	return 0;
}

int kiln_open(const char *const *devices, size_t nr, const struct kiln_open_options *options, kiln_fs **fs,
	      char why[KILN_ERROR_BYTES])
{
	return fs_open(devices, nr, NULL, 0, options, FS_NAMESPACE, fs, why);
}

int fs_passphrase_unlock(struct kiln_fs *fs, const struct kiln_open_options *options, char why[KILN_ERROR_BYTES])
{
	struct super *s = fs->super;
	int err = 0;

	if (!s->has_key) {
		snprintf(why, KILN_ERROR_BYTES, "the filesystem isn't encrypted: that is decided when it is made");
		err = -EINVAL;
	} else if (!SB_INITIALIZED(s->sb)) {
		/* Superblocks of these are only written when everything else is there. */
		snprintf(why, KILN_ERROR_BYTES, "the filesystem isn't initialised: that comes first");
		err = -EINVAL;
	} else if (s->needs_passphrase) {
		err = unlock(fs, options);
	}
	if (err)
		describe_failure(fs, err, why);
	return error_to_errno(err);
}

int fs_passphrase_check(size_t bytes, char why[KILN_ERROR_BYTES])
{
	if (bytes <= KILN_PASSPHRASE_BYTES_MAX)
		return 0;
	snprintf(why, KILN_ERROR_BYTES, "a passphrase has at most %d bytes", KILN_PASSPHRASE_BYTES_MAX);
	return -EINVAL;
}

int fs_passphrase_set(struct kiln_fs *fs, const char *passphrase, size_t bytes, char why[KILN_ERROR_BYTES])
{
	int err = fs_passphrase_check(bytes, why);

	if (!err)
		err = super_passphrase_set(fs->super, passphrase, bytes);
	if (err == -ENODEV)
		snprintf(why, KILN_ERROR_BYTES,
			 "a device of the filesystem is missing, and would go on opening with the old passphrase");
	if (err)
		describe_failure(fs, err, why);
	return error_to_errno(err);
}

int kiln_passphrase_set(const char *const *devices, size_t nr, const struct kiln_open_options *options,
			const char *passphrase, size_t passphrase_bytes, char why[KILN_ERROR_BYTES])
{
	struct kiln_open_options opts = { .struct_bytes = sizeof(opts) };
	char why_unused[KILN_ERROR_BYTES];
	struct kiln_fs *fs;

	if (!why)
		why = why_unused;
	if (options && options->struct_bytes)
		memcpy(&opts, options, min(options->struct_bytes, sizeof(opts)));
	opts.struct_bytes = sizeof(opts);
	opts.flags |= KILN_OPEN_WRITE;
	int err = fs_open(devices, nr, NULL, 0, &opts, FS_ALL_SUPERS, &fs, why);
	if (err)
		return err;
	err = fs_passphrase_unlock(fs, &opts, why);
	if (!err)
		err = fs_passphrase_set(fs, passphrase, passphrase_bytes, why);
	kiln_close(fs);
	return err;
}

int kiln_shutdown(kiln_fs *fs) { return fs->is_writable ? error_to_errno(fs_write_stop(fs)) : 0; }

const char *kiln_write_refused(kiln_fs *fs) { return fs->write_refused[0] ? fs->write_refused : NULL; }

void kiln_close(kiln_fs *fs)
{
	if (!fs)
		return;
	kiln_shutdown(fs);
	quotas_close(fs->quotas);
	namespace_close(fs->ns);
	data_close(fs->data);
	btrees_close(fs->trees);
	journal_state_free(fs->journal);
	super_close(fs->super);
	reporter_destroy(&fs->reporter);
	mutex_destroy(&fs->usage_lock);
	free(fs);
}
