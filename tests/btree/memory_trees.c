/* Btrees that can be written. See memory_trees.h. */
#include "memory_trees.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "btree/internal.h"
#include "btree/key_cache.h"
#include "engine/fs.h"
#include "format/version.h"

static void report_print(void *ctx, const struct report *r)
{
	struct memory_trees *m = ctx;

	__atomic_add_fetch(&m->reports, 1, __ATOMIC_RELAXED);
	fprintf(stderr, "report: %s %s: expected %s, found %s\n", r->structure ? r->structure : "",
		r->position ? r->position : "", r->expected ? r->expected : "", r->found ? r->found : "");
}

/* --- on disk --- */

static void fs_report(void *ctx, const struct kiln_report *report)
{
	struct memory_trees *m = ctx;

	if (report->level == KILN_REPORT_INFO)
		return;
	__atomic_add_fetch(&m->reports, 1, __ATOMIC_RELAXED);
	fprintf(stderr, "report: %s\n", report->text);
}

/* These are cached besides. */
static void cache_also(struct memory_trees *m)
{
	if (m->cached_btrees)
		m->trees->key_cache->btrees |= m->cached_btrees;
}

static void disk_open(struct memory_trees *m)
{
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_WRITE,
					     .memory_bytes = m->memory_bytes,
					     .ctx = m,
					     .report = fs_report };
	const char *path = m->path;
	char why[KILN_ERROR_BYTES];

	if (kiln_open(&path, 1, &options, &m->fs, why))
		fail_msg("%s", why);
	assert_null(kiln_write_refused(m->fs));
	m->trees = m->fs->trees;
	cache_also(m);
}

static void disk_close(struct memory_trees *m)
{
	assert_int_equal(kiln_shutdown(m->fs), 0);
	kiln_close(m->fs);
}

void memory_trees_open_on_disk(struct memory_trees *m, uint32_t node_bytes, uint64_t memory_bytes)
{
	char options[64], why[KILN_ERROR_BYTES];
	struct kiln_format_device dev = { .path = m->path,
					  .file_bytes = 256 << 20,
					  .bucket_bytes = TREES_BUCKET_SECTORS * SECTOR_BYTES };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(dev),
					      .options = options,
					      .flags = KILN_FORMAT_FORCE };

	memset(m, 0, sizeof(*m));
	m->memory_bytes = memory_bytes;
	snprintf(options, sizeof(options), "block_size=512,btree_node_size=%u", node_bytes);
	strcpy(m->path, "/tmp/kiln-trees-XXXXXX");
	int fd = mkstemp(m->path);
	assert_true(fd >= 0);
	close(fd);
	if (kiln_format(&dev, 1, &format, NULL, why))
		fail_msg("%s", why);
	disk_open(m);
}

/* --- in memory --- */

static void trees_open(struct memory_trees *m)
{
	struct btrees_opts opts = { .memory_bytes = m->memory_bytes, .magic = 7, .reports = &m->sink };

	opts.kctx = btree_memory_context(m->memory);
	btree_memory_backend(m->memory, &opts.backend);
	assert_int_equal(btrees_open(&opts, &m->trees), 0);
	btrees_set_snapshots(m->trees, m->snapshots);
}

static void trees_start(struct memory_trees *m)
{
	struct btrees_write_opts opts = { .cached_btrees = m->cached_btrees,
					  .csum_type = CHECKSUM_CRC32C_NONZERO,
					  .version = VERSION_1_4 };

	assert_int_equal(btrees_start_write(m->trees, &opts), 0);
}

void memory_trees_open(struct memory_trees *m, uint32_t node_bytes, uint64_t memory_bytes)
{
	memset(m, 0, sizeof(*m));
	m->member = (struct member_geometry){
		.exists = true, .bucket_sectors = TREES_BUCKET_SECTORS, .first_bucket = 1, .bucket_nr = 1ull << 32
	};
	m->kctx = (struct key_context){
		.version = VERSION_1_4,
		.upgrade_complete = VERSION_1_4,
		.block_sectors = 1,
		.node_sectors = (uint16_t)(node_bytes / SECTOR_BYTES),
		.encoded_extent_max_sectors = 128,
		.member_nr = 1,
		.members = &m->member,
		.backpointer_shift = 10,
		.time_precision_ns = 1,
	};
	m->memory_bytes = memory_bytes ? memory_bytes : 256u << 20;
	m->sink = (struct report_sink){ .emit = report_print, .ctx = m };
	assert_int_equal(btree_memory_open(&m->kctx, &m->memory), 0);
	trees_open(m);
	trees_start(m);
}

void memory_trees_open_at(struct memory_trees *m, enum trees_place place, uint32_t node_bytes, uint64_t memory_bytes)
{
	if (place == TREES_ON_DISK)
		memory_trees_open_on_disk(m, node_bytes, memory_bytes);
	else
		memory_trees_open(m, node_bytes, memory_bytes);
}

void memory_trees_cache(struct memory_trees *m, uint32_t btrees)
{
	m->cached_btrees = btrees;
	if (m->fs || !btrees) {
		cache_also(m);
		return;
	}
	assert_int_equal(key_cache_open(m->trees, btrees), 0);
	assert_int_equal(key_cache_start(m->trees), 0);
	key_cache_begin(m->trees);
}

/* Roots are nowhere but in the trees: there is no journal. */
static void root_copy(struct btrees *to, const struct btrees *from, unsigned btree_id)
{
	const struct tree_root *root = &from->roots[btree_id];
	uint64_t value[BTREE_PTR_V2_VALUE_U64S_MAX];
	struct bkey_ref k = { .k = { .p = SPOS_MAX, .type = KEY_BTREE_PTR_V2 }, .value = value };

	if (!root->exists)
		return;
	k.k.value_u64s = (uint8_t)btree_ptr_encode(&root->ptr.ptr, value);
	assert_int_equal(btrees_set_root(to, btree_id, root->ptr.level, &k, false), 0);
}

static void stats_add(struct memory_trees *m)
{
	struct btrees_write_stats s;

	btrees_write_stats(m->trees, &s);
	m->stats.commits += s.commits;
	m->stats.restarts += s.restarts;
	m->stats.splits += s.splits;
	m->stats.merges += s.merges;
	m->stats.rewrites += s.rewrites;
	m->stats.roots_raised += s.roots_raised;
	m->stats.sets_appended += s.sets_appended;
}

void memory_trees_reopen(struct memory_trees *m)
{
	struct btrees *old = m->trees;

	assert_int_equal(btrees_flush_all(old), 0);
	stats_add(m);
	if (m->fs) {
		disk_close(m);
		disk_open(m);
		return;
	}
	btrees_stop_write(old);
	trees_open(m);
	for (unsigned i = 0; i < BTREE_NR_MAX; i++)
		root_copy(m->trees, old, i);
	btrees_close(old);
	trees_start(m);
}

void memory_trees_close(struct memory_trees *m)
{
	assert_int_equal(btrees_flush_all(m->trees), 0);
	stats_add(m);
	if (m->fs) {
		disk_close(m);
		unlink(m->path);
		assert_int_equal(m->reports, 0);
		return;
	}
	btrees_stop_write(m->trees);
	btrees_close(m->trees);
	btree_memory_close(m->memory);
	assert_int_equal(m->reports, 0);
}
