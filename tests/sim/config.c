/* Which filesystem: disks and options drawn from the seed; opening and closing it. See sim.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "alloc/bucket.h"
#include "base/util.h"
#include "data/copygc.h"
#include "engine/format.h"
#include "engine/fs_write.h"
#include "sim.h"
#include "super/format.h"

/* --- what it says --- */

static bool is_disturbed(const struct sim *s) { return power_is_off(s->power) || s->is_faulty; }

static void on_report(void *ctx, const struct kiln_report *report)
{
	struct sim *s = ctx;

	if (report->level >= KILN_REPORT_DAMAGE)
		s->has_damage_reports = true;
	if (s->args->is_verbose)
		printf("  report: %s\n", report->text);
	if (is_disturbed(s) || s->has_bad_cache)
		return;
	/* Nor is there a copy of data that another one must serve for. */
	bool is_bad_copy = report->error_id_name && !strcmp(report->error_id_name, "data_read_csum_err_recovered");
	if (report->level >= KILN_REPORT_DAMAGE || (is_bad_copy && !s->may_have_bad_copies))
		failed(s, "report", report->text);
}

static void on_log(void *ctx, enum kiln_log_level level, const char *line)
{
	struct sim *s = ctx;

	if (s->args->is_verbose)
		printf("  log %d: %s\n", level, line);
}

static struct kiln_open_options open_options(struct sim *s, unsigned flags)
{
	return (struct kiln_open_options){ .struct_bytes = sizeof(struct kiln_open_options),
					   .flags = flags,
					   .mount_options = s->mount_options,
					   .memory_bytes = KILN_MEMORY_MIN,
					   .ctx = s,
					   .log = on_log,
					   .log_level = KILN_LOG_DEBUG,
					   .report = on_report };
}

/* --- what is counted --- */

void option_count(struct sim *s, const char *option)
{
	/* Of these there are thousands. */
	bool is_delay = !strncmp(option, "journal_flush_delay", 19) || !strncmp(option, "journal_reclaim_delay", 21);
	size_t len = is_delay ? strcspn(option, "=") : strlen(option);

	for (unsigned i = 0; len && i < OPTIONS_MAX; i++) {
		char *text = s->totals->options[i].text;

		if (!s->totals->options[i].nr)
			snprintf(text, sizeof(s->totals->options[i].text), "%.*s", (int)len, option);
		if (strlen(text) != len || memcmp(text, option, len))
			continue;
		COUNT(s, options[i].nr, 1);
		return;
	}
	if (len)
		abort(); /* the report would lack it */
}

/* Each that is given, with its value. */
static void count_options(struct sim *s, const char *options)
{
	char text[512], *rest = text;

	snprintf(text, sizeof(text), "%s", options);
	for (char *one; (one = strsep(&rest, ",")) != NULL;)
		option_count(s, one);
}

/* --- drawing: never twice in one expression, whose order is the compiler's --- */

static unsigned below(struct sim *s, unsigned bound) { return (unsigned)rng_below(&s->rng, bound); }
static bool one_in(struct sim *s, unsigned n) { return !below(s, n); }
static const char *pick(struct sim *s, const char *const *from, unsigned nr) { return from[below(s, nr)]; }

static const char *const checksums[] = { "none", "crc32c", "crc64", "xxhash" };
static const char *const hashes[] = { "crc32c", "crc64", "siphash" };
static const char *const compressions[] = { "lz4", "lz4:9", "gzip", "gzip:1", "zstd", "zstd:6" };

static void draw_format_options(struct sim *s, uint64_t bucket_kib)
{
	static const char *const errors[] = { "continue", "ro", "panic" };
	static const unsigned node_kib[] = { 4, 8, 16, 32, 64, 128, 256 };
	struct strbuf text = strbuf_fixed(s->options, sizeof(s->options));
	unsigned node, extent_kib = 4u << below(s, 9);
	/* Without checksums a torn write of metadata can't be told from a whole one. */
	const char *metadata =
		s->args->kinds == 1u << EPISODE_CLEAN ? pick(s, checksums, 4) : pick(s, checksums + 1, 3);
	const char *data = pick(s, checksums, 4);

	s->has_checksums = metadata != checksums[0];
	s->has_data_checksums = data != checksums[0];
	s->block_bytes = one_in(s, 2) ? 512 : one_in(s, 6) ? 1024u << below(s, 2) : 4096;
	s->block_bytes = min(s->block_bytes, (uint32_t)(bucket_kib << 10) / 8);
	do {
		/* The smaller ones more often: they split. */
		unsigned one = below(s, ARRAY_NR(node_kib)), other = below(s, ARRAY_NR(node_kib));

		node = node_kib[min(one, other)];
	} while (node > bucket_kib || node * 1024 < s->block_bytes * 8);
	s->node_bytes = node << 10;
	s->extent_bytes_max = max(extent_kib << 10, s->block_bytes);
	unsigned replicas_max = min(s->disks_nr - s->has_cache, 3u);
	s->metadata_replicas = 1 + below(s, replicas_max);
	/*
	 * Of a seed that isn't one of these, nothing else changes by it. After a crash copies of what was overwritten
	 * in place may differ, so that what it holds depends on which one is read: nothing that a model could say.
	 */
	s->is_nocow = s->seed % 4 == 1;
	unsigned data_replicas = 1 + below(s, replicas_max);
	s->data_replicas = s->is_nocow ? 1 : data_replicas;
	const char *hash = pick(s, hashes, 3), *on_error = pick(s, errors, ARRAY_NR(errors));
	strbuf_printf(&text,
		      "block_size=%u,btree_node_size=%uk,encoded_extent_max=%uk,metadata_checksum=%s,data_checksum=%s,"
		      "str_hash=%s,metadata_replicas=%u,data_replicas=%u,errors=%s",
		      s->block_bytes, node, max(extent_kib, s->block_bytes / 1024), metadata, data, hash,
		      s->metadata_replicas, s->data_replicas, on_error);
	s->metadata_required = 1;
	if (one_in(s, 3)) {
		s->metadata_required = 1 + below(s, s->metadata_replicas);
		strbuf_printf(&text, ",metadata_replicas_required=%u,data_replicas_required=%u", s->metadata_required,
			      min(1 + below(s, data_replicas), s->data_replicas));
	}
	if (one_in(s, 3)) {
		strbuf_printf(&text, ",inodes_32bit=%u", below(s, 2));
		strbuf_printf(&text, ",shard_inode_numbers=%u", below(s, 2));
	}
	if (one_in(s, 4)) {
		strbuf_printf(&text, ",gc_reserve_percent=%u", 5 + below(s, 16));
		strbuf_printf(&text, ",root_reserve_percent=%u", below(s, 5));
	}
	if (one_in(s, 8))
		strbuf_printf(&text, ",gc_reserve_bytes=%uM", 2 + below(s, 4));
	if (one_in(s, 4))
		strbuf_add(&text, ",inodes_use_key_cache=0");
	s->has_acls = !one_in(s, 8);
	if (!s->has_acls)
		strbuf_add(&text, ",acl=0");
	if (s->has_cache) {
		strbuf_add(&text, ",foreground_target=fast");
	} else if (s->disks_nr > 1 && one_in(s, 4)) {
		strbuf_printf(&text, ",metadata_target=%s", one_in(s, 2) ? "fast" : "slow");
		strbuf_printf(&text, ",foreground_target=%s", one_in(s, 2) ? "fast" : "slow");
	}
	if (s->disks_nr > 1 && one_in(s, 6)) {
		strbuf_printf(&text, ",background_target=%s", one_in(s, 2) ? "fast" : "slow");
		strbuf_printf(&text, ",promote_target=%s", one_in(s, 2) ? "fast" : "slow");
	}
	if (one_in(s, 2))
		strbuf_add(&text, ",usrquota,grpquota,prjquota");
	if (one_in(s, 3))
		strbuf_printf(&text, ",compression=%s", pick(s, compressions, ARRAY_NR(compressions)));
	if (one_in(s, 6))
		strbuf_printf(&text, ",background_compression=%s", pick(s, compressions, ARRAY_NR(compressions)));
	if (s->is_nocow)
		strbuf_add(&text, ",nocow=1");
	s->is_encrypted = s->seed % 3 == 2;
	s->has_checksums |= s->is_encrypted;
	s->has_data_checksums |= s->is_encrypted;
	s->has_data_checksums &= !s->is_nocow;
	if (s->is_encrypted)
		strbuf_printf(&text, ",wide_macs=%u", (unsigned)(s->seed / 3 % 2));
}

/* Instead of what it was formatted with, for one mount; nothing that would make it worth less. */
static void draw_other_options(struct sim *s, struct strbuf *text)
{
	unsigned replicas_max = s->disks_nr > 1 && !s->is_restricted ? min(s->disks_nr, 3u) : 0;

	if (one_in(s, 4))
		strbuf_printf(text, ",compression=%s", pick(s, compressions, ARRAY_NR(compressions)));
	if (one_in(s, 4))
		strbuf_printf(text, ",background_compression=%s", pick(s, compressions, ARRAY_NR(compressions)));
	if (one_in(s, 4))
		strbuf_printf(text, ",metadata_checksum=%s", pick(s, checksums + 1, 3));
	if (one_in(s, 4))
		strbuf_printf(text, ",data_checksum=%s", pick(s, checksums + 1, 3));
	if (one_in(s, 4))
		strbuf_printf(text, ",str_hash=%s", pick(s, hashes, ARRAY_NR(hashes)));
	if (one_in(s, 8))
		strbuf_printf(text, ",inodes_32bit=%u", below(s, 2));
	if (one_in(s, 8))
		strbuf_printf(text, ",gc_reserve_percent=%u", 5 + below(s, 16));
	if (one_in(s, 8))
		strbuf_add(text, ",journal_flush_disabled");
	if (one_in(s, 8))
		strbuf_add(text, ",nodiscard");
	if (s->disks_nr > 1 && one_in(s, 8))
		strbuf_printf(text, ",foreground_target=%s", one_in(s, 2) ? "fast" : "slow");
	if (s->disks_nr > 1 && one_in(s, 8))
		strbuf_printf(text, ",metadata_target=%s", one_in(s, 2) ? "fast" : "slow");
	if (replicas_max > s->metadata_replicas && one_in(s, 4))
		strbuf_printf(text, ",metadata_replicas=%u", replicas_max);
	if (replicas_max > s->data_replicas && !s->is_nocow && one_in(s, 4))
		strbuf_printf(text, ",data_replicas=%u", replicas_max);
}

static void draw_mount_options(struct sim *s)
{
	struct strbuf text = strbuf_fixed(s->mount_options, sizeof(s->mount_options));

	strbuf_printf(&text, "journal_flush_delay=%u", one_in(s, 2) ? 1000 : 1 + below(s, 3000));
	strbuf_printf(&text, ",journal_reclaim_delay=%u", one_in(s, 2) ? 100 : below(s, 1000));
	strbuf_printf(&text, ",inline_data=%u", !one_in(s, 4));
	strbuf_printf(&text, ",journal_transaction_names=%u", below(s, 2));
	if (one_in(s, 3))
		draw_other_options(s, &text);
	count_options(s, s->mount_options);
}

static void draw_device(struct sim *s, unsigned nr, uint64_t bucket_bytes, struct kiln_format_device *device)
{
	bool is_fast = s->has_cache ? is_cache(s, nr) : nr % 2 == 0;

	*device = (struct kiln_format_device){ .bucket_bytes = bucket_bytes,
					       .label = is_fast ? "fast.disk" : "slow.disk" };
	device->flags = one_in(s, 2) ? KILN_FORMAT_DISCARD : 0;
	device->durability = one_in(s, 12) ? 2 : 0;
	s->is_redundant &= device->durability < 2;
	if (nr && s->metadata_replicas == 1 && s->data_replicas == 1 && !s->has_cache && one_in(s, 6))
		device->data_allowed = one_in(s, 2) ? 1 << 2 | 1 << 3 : 1 << 4;
	/* A cache: what is written to it counts for nothing. The others must be enough. */
	bool may_be_cache = nr + 1 == s->disks_nr && max(s->metadata_replicas, s->data_replicas) < s->disks_nr;
	if (is_cache(s, nr) || (may_be_cache && !s->is_restricted && !device->data_allowed && one_in(s, 6))) {
		device->flags |= KILN_FORMAT_CACHE;
		device->durability = 0;
		s->has_cache = true;
	}
	s->is_restricted |= device->data_allowed != 0 || s->has_cache;
}

/* So small that it fills up, and what is in it is taken back: what data can't have, and a few buckets. In MiB. */
static uint64_t draw_cache(struct sim *s, struct kiln_format_device *device)
{
	enum { BUCKETS_MIN = 64, SUPERBLOCKS_BYTES = 3 << 20, SUPERBLOCKS_REST = 4, STEPS = 8 };
	uint32_t bucket = max(s->node_bytes, min(s->node_bytes * 4, 64u << 10));
	uint64_t others = SUPERBLOCKS_BYTES / bucket + SUPERBLOCKS_REST;
	uint64_t mib = 0;

	others += 2 * bucket_btree_reserve(bucket >> SECTOR_SHIFT, s->node_bytes >> SECTOR_SHIFT) + 4 + below(s, 16);
	/* The journal that it gets, although it has no use for one, is a part of it. */
	for (unsigned i = 0; i < STEPS; i++) {
		uint64_t journal = super_journal_bucket_nr((mib << 20) / bucket, bucket >> SECTOR_SHIFT,
							   s->node_bytes >> SECTOR_SHIFT,
							   s->block_bytes >> SECTOR_SHIFT, s->metadata_replicas);

		mib = div_round_up_u64(max(others + journal, (uint64_t)BUCKETS_MIN) * bucket, 1 << 20);
	}
	device->bucket_bytes = bucket;
	return mib;
}

/* --- making --- */

static void count_disks(struct sim *s, uint64_t bucket_kib)
{
	char text[96];

	snprintf(text, sizeof(text), "disks=%u,bucket=%lluk%s%s", s->disks_nr, (unsigned long long)bucket_kib,
		 s->is_encrypted ? ",encrypted" : "",
		 s->has_cache	    ? ",durability=0"
		 : s->is_restricted ? ",data_allowed"
				    : "");
	count_options(s, text);
	count_options(s, s->options);
}

static int open_disks(struct sim *s, struct device *open[DISKS_MAX], unsigned *nr)
{
	int err = 0;

	*nr = 0;
	memory_exempt_begin();
	for (unsigned i = 0; i < s->disks_nr && !err; i++) {
		struct device *dev;

		s->faulty[i] = NULL;
		if (s->disks_missing & 1u << i)
			continue;
		err = power_disk_open(s->power, i, &dev);
		if (!err)
			err = device_wrap_fault(dev, rng_u64(&s->rng), &s->faulty[i]);
		if (!err)
			err = disk_wrap(s->faulty[i], s->args->is_traced, &open[(*nr)++]);
	}
	memory_exempt_end();
	return err;
}

/* Every other filesystem is so small, and so empty, that copygc would have nothing to do. */
static void copygc_make_eager(struct sim *s)
{
	if (s->seed % 2 && s->fs->is_writable)
		copygc_set_eager(s->fs->data);
}

/*
 * The disks are full of what another filesystem left: one that was made in the same way, so that what is old lies where
 * new nodes, entries and superblocks will.
 */
static int others_leave_traces(struct sim *s, const struct kiln_format_device *devices)
{
	enum { FILES = 12, FILE_BYTES = 300 << 10 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format), .options = s->options };
	struct kiln_open_options options = open_options(s, KILN_OPEN_WRITE);
	struct kiln_create attr = { .mode = 0644 };
	struct device *open[DISKS_MAX];
	char why[KILN_ERROR_BYTES] = "", name[16];
	unsigned nr;
	CLEANUP_FREE uint8_t *bytes = malloc(FILE_BYTES);
	int err = bytes ? open_disks(s, open, &nr) : -ENOMEM;

	if (!err)
		err = fs_format_devices(open, devices, s->disks_nr, &format, why);
	if (!err)
		err = fs_initialize(open, s->disks_nr, &options, &s->fs, why);
	for (unsigned i = 0; i < FILES && !err; i++) {
		struct kiln_stat st;

		snprintf(name, sizeof(name), "old%u", i);
		for (size_t k = 0; k < FILE_BYTES; k++)
			bytes[k] = (uint8_t)(k / 512 + i);
		err = kiln_create(s->fs, kiln_root(s->fs), name, strlen(name), &attr, &st);
		ssize_t written = err ? err : kiln_write(s->fs, st.node, 0, bytes, FILE_BYTES);
		if (written < 0)
			err = (int)written;
		/* In more than one set of the nodes, and in many entries. */
		if (!err)
			err = i % 4 ? kiln_fsync(s->fs, st.node) : btrees_flush_all(s->fs->trees);
	}
	if (err && err != -ENOSPC) /* some are small */
		return failed(s, "another filesystem", why[0] ? why : error_name(err));
	if (one_in(s, 2))
		fs_end(s);
	else
		fs_kill(s);
	for (unsigned i = 0; i < s->disks_nr; i++)
		power_disk_settle(s->power, i);
	count_options(s, "traces of another filesystem");
	return 0;
}

int config_make(struct sim *s)
{
	static const uint64_t bucket_kib[] = { 128, 256, 512, 128, 256, 512, 64 };
	struct kiln_format_device devices[DISKS_MAX];
	struct kiln_format_options format = { .struct_bytes = sizeof(format), .options = s->options };
	struct device *open[DISKS_MAX];
	char why[KILN_ERROR_BYTES] = "";
	uint64_t bucket = bucket_kib[below(s, ARRAY_NR(bucket_kib))];
	bool is_small = one_in(s, 6);
	unsigned nr;

	s->disks_nr = 1 + (one_in(s, 2) ? below(s, DISKS_MAX) : 0);
	/* Of a seed that isn't one of these nothing changes by it. Data that is overwritten in place isn't cached. */
	s->has_cache = s->seed % 5 == 3 && s->seed % 4 != 1;
	if (s->has_cache)
		s->disks_nr = max(s->disks_nr, 2 + below(s, DISKS_MAX - 1));
	/* The smallest that hold an entry of the journal; of others, again, nothing changes. */
	if (s->seed % 16 == 10)
		bucket = s->disks_nr == 1 ? 16 : 32;
	draw_format_options(s, bucket);
	s->is_redundant = s->metadata_replicas > 1 && s->data_replicas > 1;
	s->power = power_new(rng_u64(&s->rng));
	for (unsigned i = 0; i < s->disks_nr; i++) {
		uint64_t mib = is_small ? 34 + below(s, 16) : 48 + below(s, 80);
		bool is_small_cache = is_cache(s, i);

		draw_device(s, i, bucket << 10, &devices[i]);
		if (is_small_cache)
			mib = draw_cache(s, &devices[i]);
		if (power_disk_add(s->power, mib << 20, s->block_bytes == 4096 && !one_in(s, 4) ? 4096 : 512) < 0)
			return failed(s, "no memory", "");
	}
	/* The key stands in the superblock: to make it of a passphrase takes longer than the whole run. */
	format.flags = s->is_encrypted ? KILN_FORMAT_ENCRYPTED : 0;
	draw_mount_options(s);
	int err = one_in(s, 4) ? others_leave_traces(s, devices) : 0;
	nonces_begin(s);
	if (!err)
		err = open_disks(s, open, &nr);
	if (!err)
		err = fs_format_devices(open, devices, s->disks_nr, &format, why);
	struct kiln_open_options options = open_options(s, KILN_OPEN_WRITE);
	if (!err)
		err = fs_initialize(open, s->disks_nr, &options, &s->fs, why);
	if (!err) {
		s->node_magic = btree_node_magic(s->fs->super->sb->uuid);
		copygc_make_eager(s);
	}
	count_disks(s, bucket);
	return err ? failed(s, "format", why) : 0;
}

/* --- opening and closing --- */

static int open_with(struct sim *s, const struct kiln_open_options *options, char why[KILN_ERROR_BYTES])
{
	struct device *open[DISKS_MAX];
	unsigned nr;
	int err = open_disks(s, open, &nr);

	if (!err)
		err = fs_open(NULL, 0, open, nr, options, FS_NAMESPACE, &s->fs, why);
	if (!err)
		copygc_make_eager(s);
	return err;
}

int fs_try_open(struct sim *s, unsigned flags, char why[KILN_ERROR_BYTES])
{
	if (flags & KILN_OPEN_WRITE && one_in(s, 2))
		draw_mount_options(s);
	struct kiln_open_options options = open_options(s, flags);

	return open_with(s, &options, why);
}

bool data_is_refused(const struct sim *s)
{
	const struct super *super = s->fs->super;
	unsigned durability = 0;

	for (unsigned i = 0; i < super->member_nr; i++)
		if (super->members[i].dev && super_member_state(super, i) == MEMBER_RW &&
		    super->members[i].m.data_allowed >> DATA_USER & 1)
			durability += super->members[i].m.durability;
	return durability < super->options[OPT_DATA_REPLICAS_REQUIRED];
}

/* It is read-only because of that: go on with what there is. */
static int open_with_less(struct sim *s, unsigned flags, char why[KILN_ERROR_BYTES])
{
	struct kiln_open_options options = open_options(s, flags);
	char mount_options[600];

	fs_end(s);
	snprintf(mount_options, sizeof(mount_options), "%s%sdata_replicas_required=1", s->mount_options,
		 s->mount_options[0] ? "," : "");
	options.mount_options = mount_options;
	return open_with(s, &options, why);
}

int fs_reopen(struct sim *s, unsigned flags)
{
	char why[KILN_ERROR_BYTES] = "";

	flags |= s->disks_missing ? KILN_OPEN_DEGRADED : 0;
	int err = fs_try_open(s, flags, why);

	if (!err && flags & KILN_OPEN_WRITE && kiln_write_refused(s->fs) && data_is_refused(s))
		err = open_with_less(s, flags, why);
	if (err && power_is_off(s->power))
		return -EIO;
	if (err)
		return failed(s, "open", why[0] ? why : error_name(err));
	if (flags & KILN_OPEN_WRITE && kiln_write_refused(s->fs))
		return failed(s, "opened read-only", kiln_write_refused(s->fs));
	return 0;
}

void fs_end(struct sim *s)
{
	kiln_close(s->fs);
	s->fs = NULL;
}

void fs_kill(struct sim *s)
{
	bool was_faulty = s->is_faulty;

	s->is_faulty = true;
	if (s->fs && s->fs->is_writable)
		fs_write_abort(s->fs);
	if (s->fs)
		fs_end(s);
	s->is_faulty = was_faulty;
}
