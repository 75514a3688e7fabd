/*
 * What the journal writes where: entries byte for byte, copies on several devices, devices that fail, full rings.
 *
 * All in simulations, on disks whose faults a test decides I/O by I/O.
 */
#include <errno.h>
#include <inttypes.h>

#include "../format/jset_vectors.h"
#include "base/fiber.h"
#include "base/sync.h"
#include "format/alloc.h"
#include "journal/journal.h"
#include "power_disk.h"
#include "super/format.h"

enum { DEVS_MAX = 3, KIB = 1024, MIB = 1024 * 1024, MS = 1000000 };

struct fs_opts {
	unsigned dev_nr, replicas, required, csum_option;
	unsigned bucket_kib[DEVS_MAX], durability[DEVS_MAX], dev_mib[DEVS_MAX];
	const char *target;
};

struct fs {
	struct fs_opts opts;
	struct power_disk disks[DEVS_MAX];
	struct super *super;
	struct journal *j;
	struct journal_state *state; /* NULL: the first start */
	struct journal_state fake;   /* what the first start is told */
	uint64_t seq_next;
	const uint8_t *tail;
	unsigned tail_u64s;
	int failed;
	unsigned failed_nr;
	unsigned marks; /* calls of replicas_mark */
	char reports[4096];
	struct report_sink sink;
	/* What disk_fault() does. */
	unsigned bad_dev;
	enum device_op bad_op;
	unsigned bad_skip; /* that many of them are well */
	bool is_bad;
	bool is_lost_allowed; /* a device whose cache can't be flushed may be left */
	uint64_t bytes_read;
};

static unsigned tail(void *ctx, uint64_t seq, void *at, unsigned max_u64s)
{
	struct fs *fs = ctx;

	assert_true(fs->tail_u64s <= max_u64s);
	if (fs->tail_u64s)
		memcpy(at, fs->tail, fs->tail_u64s * 8);
	return fs->tail_u64s;
}
static unsigned tail_max(void *ctx) { return ((struct fs *)ctx)->tail_u64s; }
static int mark(void *ctx, const uint8_t *devs, unsigned nr)
{
	struct fs *fs = ctx;

	for (unsigned i = 1; i < nr; i++)
		assert_true(devs[i - 1] < devs[i]);
	fs->marks++;
	return super_replicas_mark(fs->super, 2, 1, devs, nr);
}
static void failed(void *ctx, int err)
{
	struct fs *fs = ctx;

	fs->failed = err;
	fs->failed_nr++;
}
static void emit(void *ctx, const struct report *r)
{
	struct fs *fs = ctx;
	size_t len = strlen(fs->reports);

	snprintf(fs->reports + len, sizeof(fs->reports) - len, "%s: %s; ", r->expected, r->found);
}

static bool is_in_journal(const struct fs *fs, unsigned dev, uint64_t offset)
{
	uint64_t bucket = offset / (fs->opts.bucket_kib[dev] * KIB);

	for (unsigned i = 0; i < sb_journal_range_nr(fs->super->members[dev].sb); i++) {
		uint64_t start, nr;

		sb_journal_range(fs->super->members[dev].sb, i, &start, &nr);
		if (bucket >= start && bucket - start < nr)
			return true;
	}
	return false;
}

static int disk_fault(void *ctx, const struct device_io *io)
{
	struct fs *fs = ctx;
	unsigned dev = 0;

	if (io->op == DEVICE_READ)
		fs->bytes_read += io->len_bytes;
	if (!fs->is_bad || io->op != fs->bad_op)
		return 0;
	while (io->dev != fs->super->members[dev].dev)
		dev++;
	if (dev != fs->bad_dev)
		return 0;
	if (io->op == DEVICE_WRITE && !is_in_journal(fs, dev, io->offset_bytes))
		return 0;
	if (fs->bad_skip) {
		fs->bad_skip--;
		return 0;
	}
	return -EIO;
}

static void bad_after(struct fs *fs, unsigned dev, enum device_op op, unsigned skip)
{
	fs->bad_dev = dev;
	fs->bad_op = op;
	fs->bad_skip = skip;
	fs->is_bad = true;
}

static void fs_open_super(struct fs *fs)
{
	struct device *devs[DEVS_MAX];

	for (unsigned i = 0; i < fs->opts.dev_nr; i++)
		devs[i] = power_disk_open(&fs->disks[i]);
	assert_int_equal(super_open(NULL, 0,
				    &(struct super_open_opts){
					    .is_write = true,
					    .devices = devs,
					    .device_nr = fs->opts.dev_nr,
				    },
				    NULL, &fs->sink, &fs->super),
			 0);
}

static void fs_make(struct fs *fs, const struct fs_opts *opts)
{
	struct super_format_device d[DEVS_MAX];
	uint64_t options[OPT_NR] = { 0 };
	bool is_set[OPT_NR] = { false };
	const char *targets[OPT_NR] = { NULL };
	uint8_t uuid[16] = { 0 };
	char why[512];

	memset(fs, 0, sizeof(*fs));
	fs->opts = *opts;
	fs->sink = (struct report_sink){ .emit = emit, .ctx = fs };
	fs->seq_next = 1;
	for (unsigned i = 0; i < opts->dev_nr; i++) {
		static const char *const labels[] = { "a.one", "a.two", "b.three" };

		if (!fs->opts.bucket_kib[i])
			fs->opts.bucket_kib[i] = 64;
		uint64_t bytes = (opts->dev_mib[i] ? opts->dev_mib[i] : 32ull) * MIB;

		power_disk_init(&fs->disks[i], max(bytes, 128ull * KIB * fs->opts.bucket_kib[i]), i);
		d[i] = (struct super_format_device){ .dev = power_disk_open(&fs->disks[i]),
						     .label = labels[i],
						     .bucket_bytes = fs->opts.bucket_kib[i] * KIB,
						     .durability = opts->durability[i] ? opts->durability[i] : 1 };
	}
	hex_decode("35a1e27837d74ddc", uuid, sizeof(uuid));
	options[OPT_METADATA_REPLICAS] = opts->replicas ? opts->replicas : 1;
	options[OPT_METADATA_REPLICAS_REQUIRED] = opts->required ? opts->required : 1;
	options[OPT_METADATA_CHECKSUM] = opts->csum_option;
	is_set[OPT_METADATA_REPLICAS] = is_set[OPT_METADATA_REPLICAS_REQUIRED] = is_set[OPT_METADATA_CHECKSUM] = true;
	targets[OPT_METADATA_TARGET] = opts->target;
	is_set[OPT_METADATA_TARGET] = opts->target;
	struct super_format_opts o = { .options = options,
				       .options_set = is_set,
				       .targets = targets,
				       .superblock_bytes = 64 * KIB,
				       .uuid = uuid };
	if (super_format(d, opts->dev_nr, &o, why))
		fail_msg("format: %s", why);
	for (unsigned i = 0; i < opts->dev_nr; i++)
		device_close(d[i].dev);
	fs_open_super(fs);
	assert_int_equal(super_journals_init(fs->super), 0);
	assert_int_equal(super_mark_initialized(fs->super), 0);
	for (unsigned i = 0; i < opts->dev_nr; i++) {
		fs->disks[i].fault = disk_fault;
		fs->disks[i].fault_ctx = fs;
	}
}

static int lost(void *ctx, unsigned dev)
{
	struct fs *fs = ctx;

	return fs->is_lost_allowed ? super_member_fail(fs->super, dev) : -EROFS;
}

static int fs_start(struct fs *fs)
{
	const struct journal_state *state = fs->state ? fs->state : &fs->fake;
	struct journal_opts opts = {
		.super = fs->super,
		.state = state,
		.seq_next = fs->state ? state->seq_next : fs->seq_next,
		.seq_pinned = !fs->state	 ? fs->seq_next
			      : state->was_clean ? state->seq_next
						 : state->seq_last,
		.ops = { tail, tail_max, mark, lost, NULL, failed, fs },
		.reports = &fs->sink,
	};

	if (fs->state && state->seq_next > state->seq_flushed + 1)
		assert_int_equal(super_blacklist_add(fs->super, state->seq_flushed + 1, state->seq_next), 0);
	assert_int_equal(super_mark_dirty(fs->super), 0);
	return journal_start(&opts, &fs->j);
}

/* Stop as if the process died, and read what is there. */
static void fs_read_again(struct fs *fs, bool read_all)
{
	if (fs->j) {
		journal_abort(fs->j);
		journal_free(fs->j);
		fs->j = NULL;
	}
	fs->is_bad = false;
	super_close(fs->super);
	fs_open_super(fs);
	journal_state_free(fs->state);
	assert_int_equal(journal_read(fs->super, &(struct journal_read_opts){ .read_all = read_all }, &fs->state), 0);
}

static void fs_free(struct fs *fs)
{
	if (fs->j) {
		journal_abort(fs->j);
		journal_free(fs->j);
	}
	super_close(fs->super);
	journal_state_free(fs->state);
	for (unsigned i = 0; i < fs->opts.dev_nr; i++)
		power_disk_free(&fs->disks[i]);
	free(fs);
}

/* A log sub-entry of @u64s words, all in all. */
static int commit(struct fs *fs, unsigned u64s, enum watermark watermark, unsigned flags, uint64_t *seq)
{
	struct journal_res res;
	int err = journal_res_get(fs->j, &res, u64s, watermark, flags);

	if (err)
		return err;
	memset(journal_res_add(fs->j, &res, JSET_ENTRY_LOG, 0, 1, u64s - 1), 'x', (u64s - 1) * 8);
	if (seq)
		*seq = res.seq;
	journal_res_put(fs->j, &res);
	return 0;
}

static void read_journal_start(struct fs *fs, void *buf, size_t bytes)
{
	uint64_t start, nr;

	sb_journal_range(fs->super->members[0].sb, 0, &start, &nr);
	assert_int_equal(device_read(fs->super->members[0].dev, start * fs->opts.bucket_kib[0] * KIB, buf, bytes), 0);
}

static bool has_journal_replicas(const struct fs *fs, unsigned devs)
{
	struct replicas_walk w = sb_replicas_walk(fs->super->sb);
	struct replicas_entry e;

	while (sb_replicas_next(&w, &e, NULL) > 0) {
		unsigned mask = 0;

		for (unsigned i = 0; i < e.nr_devs; i++)
			mask |= 1u << e.devs[i];
		if (e.data_type == 2 && mask == devs)
			return true;
	}
	return false;
}

/* --- entries --- */

static void the_minimal_entry_is_that_of_the_format_documents(void)
{
	static const char *const csums[] = { "00", "10c6c43e", "263ac1b2d4fed795", "1dc92de0149a99dc" };

	for (unsigned option = 0; option < ARRAY_NR(csums); option++) {
		struct fs *fs = malloc(sizeof(*fs));
		uint8_t expected[512] = { 0 }, found[512];
		struct journal_res res;

		fs_make(fs, &(struct fs_opts){ .dev_nr = 1, .csum_option = option });
		fs->seq_next = 5;
		assert_int_equal(fs_start(fs), 0);
		assert_int_equal(journal_res_get(fs->j, &res, 2, WATERMARK_NORMAL, 0), 0);
		memcpy(journal_res_add(fs->j, &res, JSET_ENTRY_LOG, 0, 1, 1), "kiln\0\0\0", 8);
		journal_res_put(fs->j, &res);
		assert_int_equal(journal_flush(fs->j), 0);
		hex_decode(jset_minimal, expected, sizeof(expected));
		hex_decode(csums[option], expected, sizeof(expected));
		expected[36] = (uint8_t)super_metadata_csum_type(fs->super);
		read_journal_start(fs, found, sizeof(found));
		assert_memory_equal(found, expected, sizeof(found));
		fs_free(fs);
	}
}

static void an_entry_is_completed_as_that_of_the_format_documents(void)
{
	struct jset_disk *real = jset_real_entry();
	struct jset_walk walk = jset_walk_of(real);
	struct fs *fs = malloc(sizeof(*fs));
	const struct jset_entry_disk *e;
	uint8_t found[3 * 512];
	struct journal_res res;

	fs_make(fs, &(struct fs_opts){ .dev_nr = 1, .csum_option = 1 });
	while (jset_walk_next(&walk, &e, NULL) > 0) {
		if (e->type == JSET_ENTRY_BTREE_ROOT) {
			struct btree_root *root = &fs->fake.roots[e->btree_id];
			struct jset_key_walk keys = jset_key_walk_of(e);
			struct bkey_ref k;

			assert_int_equal(jset_key_walk_next(&keys, &k, NULL), 1);
			*root = (struct btree_root){ .exists = true, .level = e->level, .key = k.k };
			memcpy(root->value, k.value, bkey_value_bytes(&k.k));
		} else if (!fs->tail && le16_get(e->u64s)) {
			fs->tail = (const uint8_t *)e;
			fs->tail_u64s = (unsigned)(((const uint8_t *)real + jset_bytes(real) - fs->tail) / 8);
		}
	}
	fs->seq_next = 6;
	assert_int_equal(fs_start(fs), 0);
	/* A word that wasn't used. */
	assert_int_equal(journal_res_get(fs->j, &res, 1, WATERMARK_NORMAL, 0), 0);
	journal_res_put(fs->j, &res);
	assert_int_equal(journal_flush(fs->j), 0);
	read_journal_start(fs, found, sizeof(found));
	assert_memory_equal(found, real, JSET_REAL_BYTES);
	for (size_t i = JSET_REAL_BYTES; i < sizeof(found); i++)
		assert_int_equal(found[i], 0);
	fs_free(fs);
	free(real);
}

static void what_a_reader_would_refuse_is_not_written(void)
{
	struct fs *fs = malloc(sizeof(*fs));
	struct journal_res res;

	fs_make(fs, &(struct fs_opts){ .dev_nr = 1 });
	assert_int_equal(fs_start(fs), 0);
	assert_int_equal(journal_res_get(fs->j, &res, 3, WATERMARK_NORMAL, 0), 0);
	memset(journal_res_add(fs->j, &res, JSET_ENTRY_CLOCK, 0, 0, 2), 0xff, 16);
	journal_res_put(fs->j, &res);
	assert_int_equal(journal_flush(fs->j), -KILN_E_INVALID);
	assert_int_equal(fs->failed, -KILN_E_INVALID);
	assert_true(fs->reports[0]);
	fs_free(fs);
}

static void flush_of_an_entry_written_noflush_is_prompt(void)
{
	struct fs *fs = malloc(sizeof(*fs));
	struct journal_usage usage;
	uint64_t seq = 0, first = 0;

	fs_make(fs, &(struct fs_opts){ .dev_nr = 1, .bucket_kib = { 1024 } });
	assert_int_equal(fs_start(fs), 0);
	assert_int_equal(commit(fs, 10, WATERMARK_NORMAL, 0, &first), 0);
	assert_int_equal(journal_flush(fs->j), 0);
	/* Full entries, which nobody waits for. */
	while (seq < first + 4)
		assert_int_equal(commit(fs, 500, WATERMARK_NORMAL, 0, &seq), 0);
	for (unsigned i = 0; i < 100; i++) {
		journal_usage(fs->j, &usage);
		if (usage.entries_written >= 3)
			break;
		sleep_ns(MS);
	}
	assert_true(usage.entries_written >= 3);
	assert_int_equal(usage.flushes, 1);
	uint64_t begin = clock_monotonic_ns();
	assert_int_equal(journal_flush_seq(fs->j, first + 2), 0);
	assert_true(clock_monotonic_ns() - begin < 100 * MS);
	assert_true(journal_seq_flushed(fs->j) >= first + 2);
	/* And entries have grown. */
	fs_read_again(fs, true);
	bool has_noflush = false;
	for (size_t i = 0; i < fs->state->entry_nr; i++)
		has_noflush |= fs->state->entries[i].locations[0].is_noflush;
	assert_true(has_noflush);
	fs_free(fs);
}

/* Nobody waits, and the entry is written all the same. */
static void what_is_committed_is_durable_after_the_flush_delay(void)
{
	struct fs *fs = malloc(sizeof(*fs));
	uint64_t seq = 0;

	fs_make(fs, &(struct fs_opts){ .dev_nr = 1 });
	assert_int_equal(fs_start(fs), 0);
	assert_int_equal(commit(fs, 10, WATERMARK_NORMAL, 0, &seq), 0);
	sleep_ns(2200ull * MS);
	assert_int_equal(journal_seq_flushed(fs->j), seq);
	fs_free(fs);
}

static void more_than_an_entry_can_hold_is_refused(void)
{
	struct fs *fs = malloc(sizeof(*fs));
	uint64_t seq = 0;

	fs_make(fs, &(struct fs_opts){ .dev_nr = 2, .bucket_kib = { 1024, 256 } });
	assert_int_equal(fs_start(fs), 0);
	assert_int_equal(commit(fs, 2, WATERMARK_NORMAL, 0, NULL), 0);
	assert_int_equal(commit(fs, 256 * KIB / 8, WATERMARK_NORMAL, 0, NULL), -E2BIG);
	assert_int_equal(commit(fs, 256 * KIB / 8, WATERMARK_NORMAL, JOURNAL_RES_TRY, NULL), -E2BIG);
	/* What is just possible is. */
	assert_int_equal(commit(fs, 31000, WATERMARK_NORMAL, 0, &seq), 0);
	assert_int_equal(journal_flush_seq(fs->j, seq), 0);
	fs_free(fs);
}

/* --- several devices --- */

/* Numbers of entries with copies on exactly these devices. */
static unsigned entries_on(const struct fs *fs, unsigned devs)
{
	unsigned nr = 0;

	for (size_t i = 0; i < fs->state->entry_nr; i++) {
		unsigned mask = 0;

		for (unsigned l = 0; l < fs->state->entries[i].location_nr; l++)
			mask |= 1u << fs->state->entries[i].locations[l].dev;
		nr += mask == devs;
	}
	return nr;
}

static void commits_flushed(struct fs *fs, unsigned nr, unsigned u64s)
{
	for (unsigned i = 0; i < nr; i++) {
		assert_int_equal(commit(fs, u64s, WATERMARK_NORMAL, 0, NULL), 0);
		assert_int_equal(journal_flush(fs->j), 0);
	}
}

static void copies_go_where_they_should(void)
{
	static const struct {
		struct fs_opts opts;
		unsigned devs; /* of every entry; 0: all have one copy, and each device gets some */
	} cases[] = {
		{ { .dev_nr = 2, .replicas = 2, .bucket_kib = { 64, 256 } }, 3 },
		{ { .dev_nr = 2, .replicas = 1 }, 0 },
		{ { .dev_nr = 2, .replicas = 2, .durability = { 1, 2 }, .bucket_kib = { 64, 1024 } }, 2 },
		{ { .dev_nr = 3, .replicas = 2, .target = "a" }, 3 },
		{ { .dev_nr = 3, .replicas = 1, .target = "b.three" }, 4 },
	};

	for (unsigned i = 0; i < ARRAY_NR(cases); i++) {
		struct fs *fs = malloc(sizeof(*fs));

		fs_make(fs, &cases[i].opts);
		assert_int_equal(fs_start(fs), 0);
		commits_flushed(fs, 60, 100);
		fs_read_again(fs, true);
		assert_true(fs->state->entry_nr > 20);
		if (cases[i].devs) {
			assert_int_equal(entries_on(fs, cases[i].devs), fs->state->entry_nr);
			assert_true(has_journal_replicas(fs, cases[i].devs));
		} else {
			assert_true(entries_on(fs, 1) > 10);
			assert_int_equal(entries_on(fs, 1) + entries_on(fs, 2), fs->state->entry_nr);
		}
		fs_free(fs);
	}
}

static void a_device_that_fails_a_copy_drops_out(void)
{
	/* A write; the flush behind it, the one before it being well; the one before it. */
	static const struct {
		enum device_op op;
		unsigned skip;
	} kinds[] = { { DEVICE_WRITE, 0 }, { DEVICE_FLUSH, 1 }, { DEVICE_FLUSH, 0 } };

	for (unsigned kind = 0; kind < ARRAY_NR(kinds); kind++) {
		struct fs *fs = malloc(sizeof(*fs));
		uint64_t seq = 0;

		fs_make(fs, &(struct fs_opts){ .dev_nr = 2, .replicas = 2 });
		assert_int_equal(fs_start(fs), 0);
		commits_flushed(fs, 3, 10);
		fs->is_lost_allowed = true;
		bad_after(fs, 1, kinds[kind].op, kinds[kind].skip);
		assert_int_equal(commit(fs, 10, WATERMARK_NORMAL, 0, &seq), 0);
		assert_int_equal(journal_flush_seq(fs->j, seq), 0);
		assert_non_null(strstr(fs->reports, kind ? "a flush of its cache" : "a journal entry written"));
		assert_int_equal(fs->failed, 0);
		assert_int_equal(fs->super->members[1].m.state, kind ? MEMBER_FAILED : MEMBER_RW);
		fs->is_bad = false;
		commits_flushed(fs, 3, 10);
		fs_read_again(fs, true);
		assert_int_equal(fs->state->seq_flushed, seq + 3);
		/* What a failed device has isn't looked at. */
		assert_int_equal(fs->super->members[1].m.state, kind ? MEMBER_FAILED : MEMBER_RW);
		assert_int_equal(entries_on(fs, 1), kind ? fs->state->entry_nr : 4);
		assert_true(has_journal_replicas(fs, 1));
		fs_free(fs);
	}
}

/* The kernel tells of what it lost once, and that once may be when superblocks are flushed. */
static void a_flush_that_failed_for_superblocks_failed_for_entries_too(void)
{
	for (unsigned is_lost_allowed = 0; is_lost_allowed < 2; is_lost_allowed++) {
		struct fs *fs = malloc(sizeof(*fs));
		uint64_t seq = 0;

		fs_make(fs, &(struct fs_opts){ .dev_nr = 2, .replicas = 2 });
		assert_int_equal(fs_start(fs), 0);
		commits_flushed(fs, 3, 10);
		fs->is_lost_allowed = is_lost_allowed;
		assert_int_equal(commit(fs, 10, WATERMARK_NORMAL, 0, &seq), 0);
		bad_after(fs, 1, DEVICE_FLUSH, 0);
		assert_int_equal(super_update(fs->super), 0);
		fs->is_bad = false;
		assert_int_equal(journal_flush_seq(fs->j, seq), is_lost_allowed ? 0 : -EIO);
		assert_int_equal(fs->super->members[1].m.state, is_lost_allowed ? MEMBER_FAILED : MEMBER_RW);
		fs_free(fs);
	}
}

static void failures_that_are_final(void)
{
	static const struct {
		struct fs_opts opts;
		unsigned dev;
		enum device_op op;
		unsigned skip;
	} cases[] = {
		/* The only copy, the flush behind it, the flush of any device before it. */
		{ { .dev_nr = 1 }, 0, DEVICE_WRITE, 0 },
		{ { .dev_nr = 1 }, 0, DEVICE_FLUSH, 1 },
		{ { .dev_nr = 2, .replicas = 2 }, 1, DEVICE_FLUSH, 0 },
		{ { .dev_nr = 3, .replicas = 1, .target = "a.one" }, 2, DEVICE_FLUSH, 0 },
		/* Fewer copies than are required. */
		{ { .dev_nr = 2, .replicas = 2, .required = 2 }, 1, DEVICE_WRITE, 0 },
	};

	for (unsigned i = 0; i < ARRAY_NR(cases); i++) {
		struct fs *fs = malloc(sizeof(*fs));
		uint64_t seq = 0, before;

		fs_make(fs, &cases[i].opts);
		assert_int_equal(fs_start(fs), 0);
		commits_flushed(fs, 2, 10);
		before = journal_seq_flushed(fs->j);
		bad_after(fs, cases[i].dev, cases[i].op, cases[i].skip);
		assert_int_equal(commit(fs, 10, WATERMARK_NORMAL, 0, &seq), 0);
		assert_int_equal(journal_flush_seq(fs->j, seq), -EIO);
		assert_int_equal(journal_error(fs->j), -EIO);
		assert_int_equal(journal_seq_flushed(fs->j), before);
		assert_int_equal(fs->failed, -EIO);
		/* A flush that works afterwards makes nothing good. */
		fs->is_bad = false;
		assert_int_equal(commit(fs, 10, WATERMARK_RECLAIM, 0, NULL), -EROFS);
		assert_int_equal(journal_res_wait(fs->j, 10, WATERMARK_RECLAIM), -EROFS);
		assert_int_equal(journal_flush(fs->j), -EIO);
		assert_int_equal(fs->failed_nr, 1);
		fs_free(fs);
	}
}

/* --- full rings --- */

struct one_pin {
	struct fs *fs;
	struct journal_pin pin;
	unsigned asked;
	bool may_go;
};

static void pin_asked(struct journal *j, struct journal_pin *pin, uint64_t seq)
{
	struct one_pin *p = container_of(pin, struct one_pin, pin);

	p->asked++;
	if (p->may_go)
		journal_pin_drop(j, pin);
}

/* Pin the entry that comes next. Its seq. */
static uint64_t pin_next(struct fs *fs, struct one_pin *pin)
{
	struct journal_res res;

	assert_int_equal(journal_res_get(fs->j, &res, 10, WATERMARK_NORMAL, 0), 0);
	uint64_t seq = res.seq;
	journal_pin_add(fs->j, &pin->pin, seq, pin_asked);
	journal_res_put(fs->j, &res);
	return seq;
}

/* Commit until there is no room. Returns how often. */
static unsigned fill(struct fs *fs, enum watermark watermark, unsigned u64s)
{
	unsigned nr = 0;
	int err;

	for (unsigned waits = 0; waits < 100;) {
		err = commit(fs, u64s, watermark, JOURNAL_RES_TRY, NULL);
		if (!err) {
			nr++;
			waits = 0;
			assert_true(nr < 1000000);
			continue;
		}
		assert_int_equal(err, -EAGAIN);
		/* Buffers may be under way. */
		waits++;
		sleep_ns(5 * MS);
	}
	return nr;
}

static void a_full_ring_waits_for_pins_and_goes_on(void)
{
	static const struct fs_opts shapes[] = {
		{ .dev_nr = 1 },
		{ .dev_nr = 1, .bucket_kib = { 256 } },
		{ .dev_nr = 2, .replicas = 2, .bucket_kib = { 64, 128 } },
		{ .dev_nr = 2, .replicas = 1 },
	};

	for (unsigned i = 0; i < 2 * ARRAY_NR(shapes); i++) {
		struct fs *fs = malloc(sizeof(*fs));
		struct one_pin pin = { .fs = fs };
		struct journal_usage usage;
		bool is_dropped_by_reclaim = i >= ARRAY_NR(shapes);

		fs_make(fs, &shapes[i % ARRAY_NR(shapes)]);
		assert_int_equal(fs_start(fs), 0);
		pin_next(fs, &pin);
		unsigned normal = fill(fs, WATERMARK_NORMAL, 1000);
		journal_usage(fs->j, &usage);
		assert_true(usage.is_space_low);
		assert_true(usage.buckets_free >= 1);
		assert_true(pin.asked);
		/* Reclaim gets in, until there is the one in hand left. */
		unsigned reclaim = fill(fs, WATERMARK_RECLAIM, 1000);
		assert_true(normal && reclaim);
		journal_usage(fs->j, &usage);
		assert_int_equal(usage.buckets_free, 1);
		assert_int_equal(usage.last_seq_ondisk, pin.pin.seq);

		if (is_dropped_by_reclaim)
			pin.may_go = true;
		else
			journal_pin_drop(fs->j, &pin.pin);
		uint64_t begin = clock_monotonic_ns();
		assert_int_equal(commit(fs, 1000, WATERMARK_NORMAL, 0, NULL), 0);
		assert_true(clock_monotonic_ns() - begin < 200 * MS);
		/* Twice around. */
		for (unsigned n = 0; n < 2 * (normal + reclaim); n++)
			assert_int_equal(commit(fs, 1000, WATERMARK_NORMAL, 0, NULL), 0);
		assert_int_equal(journal_flush(fs->j), 0);
		fs_read_again(fs, false);
		assert_int_equal(fs->state->missing_nr, 0);
		fs_free(fs);
	}
}

/* Rings differ in size: what is wanted on two of them waits for the smaller of these. */
static void copies_are_not_left_out_for_a_full_ring(void)
{
	static const struct {
		struct fs_opts opts;
		unsigned devs; /* of every entry; 0: of two that may be any */
	} cases[] = {
		{ { .dev_nr = 2, .replicas = 2, .dev_mib = { 32, 512 } }, 3 },
		{ { .dev_nr = 2, .replicas = 2, .required = 2, .dev_mib = { 512, 32 } }, 3 },
		{ { .dev_nr = 3, .replicas = 2, .dev_mib = { 32, 512, 64 } }, 0 },
		{ { .dev_nr = 3, .replicas = 3, .dev_mib = { 32, 512, 64 } }, 7 },
		{ { .dev_nr = 2, .replicas = 3, .durability = { 2, 1 }, .dev_mib = { 512, 32 } }, 3 },
	};

	for (unsigned i = 0; i < ARRAY_NR(cases); i++) {
		struct fs *fs = malloc(sizeof(*fs));
		struct one_pin pin = { .fs = fs };
		struct journal_usage usage;

		fs_make(fs, &cases[i].opts);
		assert_int_equal(fs_start(fs), 0);
		pin_next(fs, &pin);
		unsigned normal = fill(fs, WATERMARK_NORMAL, 1000), reclaim = fill(fs, WATERMARK_RECLAIM, 1000);
		assert_true(normal && reclaim);
		journal_usage(fs->j, &usage);
		assert_true(usage.is_space_low);
		assert_int_equal(usage.buckets_free, 1);
		journal_pin_drop(fs->j, &pin.pin);
		for (unsigned n = 0; n < 2 * (normal + reclaim); n++)
			assert_int_equal(commit(fs, 1000, WATERMARK_NORMAL, 0, NULL), 0);
		assert_int_equal(journal_flush(fs->j), 0);
		fs_read_again(fs, true);
		assert_true(fs->state->entry_nr > 20);
		for (size_t n = 0; n < fs->state->entry_nr; n++) {
			const struct journal_entry *e = &fs->state->entries[n];

			/* Of those that are no longer needed, copies have been overwritten. */
			if (e->seq >= fs->state->seq_last && !cases[i].devs)
				assert_int_equal(e->location_nr, 2);
			else if (e->seq >= fs->state->seq_last)
				assert_int_equal(e->location_nr, (unsigned)__builtin_popcount(cases[i].devs));
		}
		fs_free(fs);
	}
}

/* The newest entry on a device, as if power had gone while the one after it was written: only its head is there. */
static void tear_next(struct fs *fs, unsigned dev)
{
	const struct journal_location *newest = NULL;
	uint64_t bucket_bytes = fs->opts.bucket_kib[dev] * KIB, start, nr;
	uint8_t sector[512];

	for (size_t i = 0; i < fs->state->entry_nr; i++)
		for (unsigned l = 0; l < fs->state->entries[i].location_nr; l++)
			if (fs->state->entries[i].locations[l].dev == dev)
				newest = &fs->state->entries[i].locations[l];
	assert_non_null(newest);
	struct device *disk = fs->super->members[dev].dev;
	assert_int_equal(device_read(disk, newest->bucket * bucket_bytes + newest->offset_sectors * 512ull, sector,
				     sizeof(sector)),
			 0);
	le64_store(sector + offsetof(struct jset_disk, seq), newest->seq + 1);
	assert_int_equal(sb_journal_range_nr(fs->super->members[dev].sb), 1);
	sb_journal_range(fs->super->members[dev].sb, 0, &start, &nr);
	uint64_t bucket = start + (newest->ring_idx + 1) % nr;
	assert_int_equal(device_write(disk, bucket * bucket_bytes, sector, sizeof(sector)), 0);
}

/* A crash while the last free bucket of a full ring is begun. */
static void what_was_torn_in_the_last_bucket_takes_no_space(void)
{
	static const struct fs_opts cases[] = {
		{ .dev_nr = 1, .csum_option = 1 },
		{ .dev_nr = 2, .csum_option = 1, .replicas = 2 },
		{ .dev_nr = 2, .csum_option = 1, .replicas = 2, .dev_mib = { 512, 32 } },
	};

	for (unsigned i = 0; i < ARRAY_NR(cases); i++) {
		struct fs *fs = malloc(sizeof(*fs));
		struct one_pin pin = { .fs = fs };
		uint64_t seq = 0;

		fs_make(fs, &cases[i]);
		assert_int_equal(fs_start(fs), 0);
		uint64_t pinned = pin_next(fs, &pin);
		fill(fs, WATERMARK_RECLAIM, 1000);
		assert_int_equal(journal_flush(fs->j), 0);
		fs_read_again(fs, true);
		for (unsigned d = 0; d < cases[i].dev_nr; d++)
			tear_next(fs, d);
		fs_read_again(fs, true);
		assert_int_equal(fs->state->seq_last, pinned);

		assert_int_equal(fs_start(fs), 0);
		assert_int_equal(commit(fs, 10, WATERMARK_RECLAIM, JOURNAL_RES_TRY, &seq), 0);
		assert_int_equal(journal_flush_seq(fs->j, seq), 0);
		fs_read_again(fs, true);
		assert_int_equal(fs->state->seq_last, pinned);
		assert_int_equal(fs->state->seq_flushed, seq);
		assert_int_equal(fs->state->missing_nr, 0);
		assert_int_equal(fs->state->entries[fs->state->entry_nr - 1].location_nr, cases[i].dev_nr);
		fs_free(fs);
	}
}

/* A crash with a full ring: the next mount can still write. */
static void a_full_ring_can_be_started(void)
{
	struct fs *fs = malloc(sizeof(*fs));
	struct one_pin pin = { .fs = fs };
	uint64_t seq = 0;

	fs_make(fs, &(struct fs_opts){ .dev_nr = 1 });
	assert_int_equal(fs_start(fs), 0);
	uint64_t pinned = pin_next(fs, &pin);
	fill(fs, WATERMARK_RECLAIM, 1000);
	assert_int_equal(journal_flush(fs->j), 0);
	fs_read_again(fs, false);
	assert_int_equal(fs->state->seq_last, pinned);

	assert_int_equal(fs_start(fs), 0);
	assert_int_equal(commit(fs, 10, WATERMARK_RECLAIM, 0, &seq), 0);
	assert_int_equal(journal_flush_seq(fs->j, seq), 0);
	fs_read_again(fs, false);
	assert_int_equal(fs->state->seq_last, pinned);
	assert_int_equal(fs->state->seq_flushed, seq);
	assert_int_equal(fs->state->missing_nr, 0);

	/* Once everything is replayed there is room for all. */
	assert_int_equal(fs_start(fs), 0);
	journal_replay_done(fs->j);
	commits_flushed(fs, 200, 1000);
	fs_read_again(fs, false);
	assert_int_equal(fs->state->missing_nr, 0);
	assert_true(fs->state->seq_last > seq);
	fs_free(fs);
}

/* --- where a mount begins --- */

static void newer_entries_than_the_clean_section_says_are_not_overtaken(void)
{
	struct fs *fs = malloc(sizeof(*fs));
	uint64_t seq, newest;
	uint8_t *superblocks = malloc(32 * MIB);

	fs_make(fs, &(struct fs_opts){ .dev_nr = 1 });
	assert_int_equal(fs_start(fs), 0);
	commits_flushed(fs, 2, 10);
	assert_int_equal(journal_stop_clean(fs->j, &seq), 0);
	assert_int_equal(super_mark_clean(fs->super, seq, NULL, 0, NULL, 0), 0);
	fs_read_again(fs, false);
	assert_true(fs->state->was_clean);
	device_read(fs->disks[0].content, 0, superblocks, 32 * MIB);
	assert_int_equal(fs_start(fs), 0);
	commits_flushed(fs, 3, 10);
	newest = journal_seq_flushed(fs->j);
	assert_int_equal(newest, seq + 3);

	/* All but the journal goes back to where it was. */
	journal_abort(fs->j);
	journal_free(fs->j);
	fs->j = NULL;
	for (uint64_t at = 0; at < 32 * MIB; at += 64 * KIB)
		if (!is_in_journal(fs, 0, at))
			device_write(fs->disks[0].content, at, superblocks + at, 64 * KIB);
	free(superblocks);
	fs_read_again(fs, false);
	assert_true(fs->state->was_clean);
	assert_int_equal(fs->state->seq_next, seq + 1);
	assert_int_equal(fs_start(fs), 0);
	assert_int_equal(journal_seq(fs->j), newest + 1);
	commits_flushed(fs, 1, 10);
	fs_read_again(fs, false);
	assert_int_equal(fs->state->seq_flushed, newest + 1);
	assert_int_equal(fs->state->seq_last, newest + 1);
	assert_int_equal(fs->state->missing_nr, 0);
	fs_free(fs);
}

/* After a clean shutdown only the heads of buckets and one bucket are looked at, and a damaged one isn't believed. */
static void a_clean_start_reads_little(void)
{
	for (unsigned is_damaged = 0; is_damaged < 2; is_damaged++) {
		struct fs *fs = malloc(sizeof(*fs));
		uint8_t sector[512];
		uint64_t seq, at = 0;

		fs_make(fs, &(struct fs_opts){ .dev_nr = 1, .bucket_kib = { 256 } });
		assert_int_equal(fs_start(fs), 0);
		commits_flushed(fs, 300, 800);
		assert_int_equal(journal_stop_clean(fs->j, &seq), 0);
		assert_int_equal(super_mark_clean(fs->super, seq, NULL, 0, NULL, 0), 0);
		fs_read_again(fs, true);
		struct journal_entry *last = &fs->state->entries[fs->state->entry_nr - 1];
		assert_int_equal(last->seq, seq);
		at = last->locations[0].bucket * 256 * KIB;
		if (is_damaged) {
			device_read(fs->disks[0].content, at, sector, sizeof(sector));
			sector[100] ^= 1;
			device_write(fs->disks[0].content, at, sector, sizeof(sector));
		}
		fs_read_again(fs, false);
		assert_true(fs->state->was_clean);
		fs->bytes_read = 0;
		assert_int_equal(fs_start(fs), 0);
		assert_true(fs->bytes_read <= (is_damaged ? 3 : 2) * 256 * KIB);
		commits_flushed(fs, 1, 10);
		fs_read_again(fs, true);
		assert_int_equal(fs->state->seq_flushed, seq + 1);
		struct journal_entry *first = &fs->state->entries[fs->state->entry_nr - 1];
		assert_int_equal(first->seq, seq + 1);
		fs_free(fs);
	}
}

static void a_journal_that_cannot_be_written_is_refused(void)
{
	struct fs *fs = malloc(sizeof(*fs));
	struct seq_range blacklist = { 5, 900 };

	/* Nothing that is blacklisted is used. */
	fs_make(fs, &(struct fs_opts){ .dev_nr = 1 });
	fs->fake.blacklist = &blacklist;
	fs->fake.blacklist_nr = 1;
	assert_int_equal(fs_start(fs), 0);
	assert_int_equal(journal_seq(fs->j), 900);
	journal_abort(fs->j);
	journal_free(fs->j);
	fs->j = NULL;

	blacklist.end = UINT64_MAX;
	assert_int_equal(fs_start(fs), -KILN_E_INVALID);
	/* No device may have it. */
	fs->fake.blacklist_nr = 0;
	fs->super->members[0].m.data_allowed = 0;
	assert_int_equal(fs_start(fs), -ENOSPC);
	fs_free(fs);
}

/* --- shutting down --- */

static void a_clean_stop_refuses_what_is_not_done(void)
{
	struct fs *fs = malloc(sizeof(*fs));
	struct journal_res res;
	uint64_t flushed;
	struct one_pin pins[3] = { 0 };

	fs_make(fs, &(struct fs_opts){ .dev_nr = 1 });
	assert_int_equal(fs_start(fs), 0);
	for (unsigned i = 0; i < ARRAY_NR(pins); i++) {
		pins[i].may_go = true;
		assert_int_equal(journal_res_get(fs->j, &res, 4, WATERMARK_NORMAL, 0), 0);
		journal_pin_add(fs->j, &pins[i].pin, res.seq, pin_asked);
		journal_res_put(fs->j, &res);
		assert_int_equal(journal_flush(fs->j), 0);
	}
	assert_true(journal_is_pinned(fs->j, pins[0].pin.seq));
	assert_false(journal_is_pinned(fs->j, pins[0].pin.seq - 1));
	/* Those up to a seq only. */
	assert_int_equal(journal_flush_pins(fs->j, pins[1].pin.seq, &flushed), 0);
	assert_int_equal(flushed, 2);
	assert_true(pins[2].pin.seq && !pins[2].asked);
	/* Moving keeps the older one. */
	struct journal_pin other = { 0 };
	uint64_t seq = pins[2].pin.seq;
	journal_pin_move(fs->j, &other, &pins[2].pin, pin_asked);
	assert_int_equal(other.seq, seq);
	assert_int_equal(pins[2].pin.seq, 0);
	journal_pin_drop(fs->j, &pins[2].pin);
	journal_pin_drop(fs->j, &other);
	assert_int_equal(journal_stop_clean(fs->j, &seq), 0);
	assert_int_equal(journal_seq_flushed(fs->j), seq);
	fs_free(fs);
}

/* The smallest bucket that entries may go to counts, and what is needed grows with each set of devices. */
static void buckets_must_hold_the_largest_entry(void)
{
	enum { SMALL = 2 };
	struct fs *fs = calloc(1, sizeof(*fs));
	uint64_t bytes, needed, needed_before;
	uint8_t devs[] = { 0, 1 };

	fs_make(fs, &(struct fs_opts){ .dev_nr = 3, .replicas = 2, .bucket_kib = { 64, 128, 64 } });
	struct super_member *m = fs->super->members;
	assert_true(journal_entries_fit(fs->super, &bytes, &needed));
	assert_int_equal(bytes, 64 * KIB);
	assert_true(needed > 0 && needed <= bytes);

	uint32_t least = (uint32_t)div_round_up_u64(needed, SECTOR_BYTES);
	m[SMALL].m.bucket_sectors = (uint16_t)least;
	assert_true(journal_entries_fit(fs->super, &bytes, &needed));
	assert_int_equal(bytes, least * SECTOR_BYTES);
	m[SMALL].m.bucket_sectors = (uint16_t)(least - 1);
	assert_false(journal_entries_fit(fs->super, &bytes, &needed));
	assert_int_equal(bytes, (least - 1) * SECTOR_BYTES);
	assert_int_equal(div_round_up_u64(needed, SECTOR_BYTES), least);

	/* No entry goes to a device that counts for no copy. */
	m[SMALL].m.durability = 0;
	assert_true(journal_entries_fit(fs->super, &bytes, &needed));
	assert_int_equal(bytes, 64 * KIB);
	needed_before = needed;
	assert_int_equal(super_replicas_mark(fs->super, DATA_USER, 1, devs, 2), 0);
	assert_true(journal_entries_fit(fs->super, &bytes, &needed));
	/* A header, the sectors, and 3 bytes besides the devices: 3 words. */
	assert_int_equal(needed, needed_before + 24);
	assert_int_equal(super_replicas_mark(fs->super, DATA_USER, 1, devs, 2), 0);
	journal_entries_fit(fs->super, &bytes, &needed);
	assert_int_equal(needed, needed_before + 24);
	fs_free(fs);
}

/* --- in simulations --- */

static void sim_task(void *fn) { ((void (*)(void))fn)(); }

#define SIMULATED(name)                                                                                     \
	static void name##_simulated(void **state)                                                          \
	{                                                                                                   \
		struct rng rng = test_rng();                                                                \
		assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = rng_u64(&rng) }, sim_task, \
					       (void *)name, NULL),                                         \
				 0);                                                                        \
	}
#define TEST(name) cmocka_unit_test(name##_simulated)

SIMULATED(the_minimal_entry_is_that_of_the_format_documents)
SIMULATED(an_entry_is_completed_as_that_of_the_format_documents)
SIMULATED(what_a_reader_would_refuse_is_not_written)
SIMULATED(flush_of_an_entry_written_noflush_is_prompt)
SIMULATED(what_is_committed_is_durable_after_the_flush_delay)
SIMULATED(more_than_an_entry_can_hold_is_refused)
SIMULATED(copies_go_where_they_should)
SIMULATED(a_device_that_fails_a_copy_drops_out)
SIMULATED(a_flush_that_failed_for_superblocks_failed_for_entries_too)
SIMULATED(failures_that_are_final)
SIMULATED(a_full_ring_waits_for_pins_and_goes_on)
SIMULATED(copies_are_not_left_out_for_a_full_ring)
SIMULATED(a_full_ring_can_be_started)
SIMULATED(what_was_torn_in_the_last_bucket_takes_no_space)
SIMULATED(newer_entries_than_the_clean_section_says_are_not_overtaken)
SIMULATED(a_clean_start_reads_little)
SIMULATED(a_journal_that_cannot_be_written_is_refused)
SIMULATED(a_clean_stop_refuses_what_is_not_done)
SIMULATED(buckets_must_hold_the_largest_entry)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(the_minimal_entry_is_that_of_the_format_documents),
		TEST(an_entry_is_completed_as_that_of_the_format_documents),
		TEST(what_a_reader_would_refuse_is_not_written),
		TEST(flush_of_an_entry_written_noflush_is_prompt),
		TEST(what_is_committed_is_durable_after_the_flush_delay),
		TEST(more_than_an_entry_can_hold_is_refused),
		TEST(copies_go_where_they_should),
		TEST(a_device_that_fails_a_copy_drops_out),
		TEST(a_flush_that_failed_for_superblocks_failed_for_entries_too),
		TEST(failures_that_are_final),
		TEST(a_full_ring_waits_for_pins_and_goes_on),
		TEST(copies_are_not_left_out_for_a_full_ring),
		TEST(a_full_ring_can_be_started),
		TEST(what_was_torn_in_the_last_bucket_takes_no_space),
		TEST(newer_entries_than_the_clean_section_says_are_not_overtaken),
		TEST(a_clean_start_reads_little),
		TEST(a_journal_that_cannot_be_written_is_refused),
		TEST(a_clean_stop_refuses_what_is_not_done),
		TEST(buckets_must_hold_the_largest_entry),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
