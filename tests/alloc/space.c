/* An allocator for tests, and the check of all that it derives. See space.h. */
#include "space.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "format/version.h"
#include "super/format.h"

static void report_print(void *ctx, const struct report *r)
{
	struct space *s = ctx;

	__atomic_add_fetch(&s->reports, 1, __ATOMIC_RELAXED);
	fprintf(stderr, "report: %s %s: expected %s, found %s\n", r->structure ? r->structure : "",
		r->position ? r->position : "", r->expected ? r->expected : "", r->found ? r->found : "");
}

static int replicas_mark(void *ctx, const struct usage_replicas *e)
{
	struct space *s = ctx;

	__atomic_add_fetch(&s->replicas_marked, 1, __ATOMIC_RELAXED);
	return super_replicas_mark(s->super, e->data_type, e->nr_required, e->devs, e->nr_devs);
}

/* --- hooks: nodes of the btrees themselves are no concern --- */

static int trigger(void *ctx, struct btree_txn *txn, const struct btree_update *u)
{
	return u->level || u->is_root ? 0 : allocator_trigger(ctx, txn, u);
}
static int prepare(void *ctx, struct btree_txn *txn) { return allocator_prepare(ctx, txn); }
static void commit(void *ctx, struct btree_txn *txn, const struct btree_update *u, uint64_t seq)
{
	allocator_commit(ctx, txn, u, seq);
}
static void committed(void *ctx, struct btree_txn *txn, uint64_t seq) { allocator_committed(ctx, txn, seq); }
static void aborted(void *ctx, struct btree_txn *txn) { allocator_aborted(ctx, txn); }

/* --- opening --- */

static void super_make(struct space *s, const struct space_opts *opts)
{
	struct super_format_device devs[SPACE_DEVS_MAX];
	struct device *devices[SPACE_DEVS_MAX];
	struct super_format_opts format = { 0 };
	uint64_t options[OPT_NR] = { 0 };
	bool set[OPT_NR] = { 0 };
	char why[512];

	for (unsigned i = 0; i < opts->dev_nr; i++) {
		assert_int_equal(device_open_memory("space", opts->dev_bytes, 512, &devices[i]), 0);
		devs[i] = (struct super_format_device){ .dev = devices[i],
							.bucket_bytes = 128 << 10,
							.durability = opts->is_durability_set ? opts->durability[i] : 1,
							.label = opts->label[i],
							.has_discard = true };
	}
	options[OPT_BTREE_NODE_SIZE] = opts->node_bytes ? opts->node_bytes : 64 << 10;
	options[OPT_METADATA_REPLICAS] = opts->metadata_replicas;
	set[OPT_BTREE_NODE_SIZE] = true;
	set[OPT_METADATA_REPLICAS] = opts->metadata_replicas != 0;
	format.options = options;
	format.options_set = set;
	format.superblock_bytes = 64 << 10;
	int err = super_format(devs, opts->dev_nr, &format, why);
	if (err)
		fprintf(stderr, "%s\n", why);
	assert_int_equal(err, 0);
	struct super_open_opts open = { .is_write = true, .devices = devices, .device_nr = opts->dev_nr };
	assert_int_equal(super_open(NULL, 0, &open, NULL, &s->sink, &s->super), 0);
	assert_int_equal(super_journals_init(s->super), 0);
}

static bool no_ancestor(void *ctx, uint32_t id, uint32_t ancestor) { return id == ancestor; }
static bool no_children(void *ctx, uint32_t id) { return false; }

static void trees_make(struct space *s)
{
	struct btrees_opts opts = { .memory_bytes = 64 << 20, .magic = 5, .reports = &s->sink };

	assert_int_equal(btree_memory_open(&s->super->kctx, &s->memory), 0);
	opts.kctx = btree_memory_context(s->memory);
	btree_memory_backend(s->memory, &opts.backend);
	assert_int_equal(btrees_open(&opts, &s->trees), 0);
	btrees_set_snapshots(s->trees,
			     (struct btree_snapshots){ .is_ancestor = no_ancestor, .has_children = no_children });
}

static void trees_start(struct space *s)
{
	struct btrees_write_opts opts = {
		.hooks = { .txn_bytes = allocator_txn_bytes(),
			   .trigger = trigger,
			   .prepare = prepare,
			   .commit = commit,
			   .committed = committed,
			   .aborted = aborted,
			   .ctx = s->allocator },
		.csum_type = CHECKSUM_CRC32C_NONZERO,
		.version = VERSION_1_4,
	};

	assert_int_equal(btrees_start_write(s->trees, &opts), 0);
}

void space_open(struct space *s, const struct space_opts *opts)
{
	memset(s, 0, sizeof(*s));
	mutex_init(&s->lock);
	s->dev_nr = opts->dev_nr;
	s->sink = (struct report_sink){ .emit = report_print, .ctx = s };
	super_make(s, opts);
	trees_make(s);
	s->state = (struct journal_state){ .was_clean = true, .seq_next = 1, .super = s->super };
	struct allocator_opts alloc = { .super = s->super,
					.trees = s->trees,
					.state = &s->state,
					.replicas_mark = replicas_mark,
					.ctx = s,
					.reports = &s->sink };
	assert_int_equal(allocator_open(&alloc, &s->allocator), 0);
	assert_int_equal(allocator_init_fresh(s->allocator), 0);
	trees_start(s);
	assert_int_equal(allocator_start(s->allocator, NULL), 0);
	for (unsigned dev = 0; dev < s->dev_nr; dev++)
		assert_int_equal(allocator_mark_device(s->allocator, dev), 0);
	if (!opts->is_freespace_late)
		assert_int_equal(allocator_freespace_init(s->allocator), 0);
}

void space_close(struct space *s)
{
	allocator_quiesce(s->allocator);
	assert_int_equal(btrees_flush_all(s->trees), 0);
	allocator_stop(s->allocator);
	btrees_stop_write(s->trees);
	allocator_close(s->allocator);
	btrees_close(s->trees);
	btree_memory_close(s->memory);
	super_close(s->super);
	mutex_destroy(&s->lock);
	assert_int_equal(s->reports, 0);
}

void space_run(struct space *s, btree_txn_fn fn, void *ctx, struct disk_reservation *r)
{
	struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL, .reservation = r };

	assert_int_equal(btree_txn_run(s->trees, &opts, fn, ctx), 0);
}

/* --- the check --- */

struct expected_bucket {
	uint64_t dirty, cached;
	unsigned type;
};

struct expected_row {
	uint8_t data_type, nr_devs, devs[16];
	int64_t sectors;
};

struct checker {
	struct space *s;
	struct expected_bucket *buckets[SPACE_DEVS_MAX];
	uint64_t backpointers;
	struct expected_row rows[256];
	unsigned row_nr;
	int64_t inodes, reserved[4];
	int64_t counters[COUNTER_ROWS];
};

static bool has_key(struct checker *c, unsigned btree_id, struct bpos pos, struct bkey_copy *copy)
{
	int found = btree_lookup(c->s->trees, btree_id, pos, copy);

	assert_true(found >= 0);
	return found;
}

static bool is_covered(struct checker *c, struct bpos pos)
{
	struct btree_iter it;
	struct bkey_ref k;

	btree_iter_open(&it, c->s->trees, BTREE_FREESPACE, BPOS(pos.inode, pos.offset + 1, 0), BTREE_ITER_ALL_SNAPSHOTS,
			0);
	int found = btree_iter_peek(&it, &k);
	bool covered = found > 0 && k.k.p.inode == pos.inode && bkey_start_offset(&k.k) <= pos.offset;
	btree_iter_close(&it);
	return covered;
}

static void row_add(struct checker *c, unsigned data_type, uint8_t *devs, unsigned nr, int64_t sectors)
{
	unsigned i;

	for (unsigned a = 0; a < nr; a++)
		for (unsigned b = a + 1; b < nr; b++)
			if (devs[b] < devs[a]) {
				uint8_t t = devs[a];
				devs[a] = devs[b];
				devs[b] = t;
			}
	for (i = 0; i < c->row_nr; i++)
		if (c->rows[i].data_type == data_type && c->rows[i].nr_devs == nr && !memcmp(c->rows[i].devs, devs, nr))
			break;
	if (i == c->row_nr) {
		c->row_nr++;
		c->rows[i].data_type = (uint8_t)data_type;
		c->rows[i].nr_devs = (uint8_t)nr;
		memcpy(c->rows[i].devs, devs, nr);
	}
	c->rows[i].sectors += sectors;
}

static void backpointer_check(struct checker *c, const struct extent_ptr *ptr, uint32_t crc_offset, unsigned btree_id,
			      unsigned level, unsigned type, uint32_t sectors, struct bpos pos)
{
	uint32_t bucket_sectors = c->s->super->members[ptr->dev].m.bucket_sectors;
	uint64_t offset = (ptr->sector % bucket_sectors << 10) + crc_offset;
	struct backpointer want = { .btree_id = (uint8_t)btree_id,
				    .level = (uint8_t)level,
				    .data_type = (uint8_t)type,
				    .bucket_offset = offset,
				    .bucket_sectors = sectors,
				    .pos = pos };
	uint8_t value[BACKPOINTER_BYTES];
	struct bkey_copy found;

	backpointer_encode(&want, value);
	assert_true(has_key(c, BTREE_BACKPOINTERS,
			    BPOS(ptr->dev, (ptr->sector / bucket_sectors * bucket_sectors << 10) + offset, 0), &found));
	assert_int_equal(found.k.k.type, KEY_BACKPOINTER);
	assert_memory_equal(found.value, value, BACKPOINTER_BYTES);
	c->backpointers++;
}

static void key_count(struct checker *c, struct bkey_ref k, unsigned btree_id)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	uint8_t devs[EXTENT_PTRS_MAX];
	unsigned dev_nr = 0;
	int64_t dirty = 0;

	if (k.k.type == KEY_RESERVATION) {
		unsigned replicas = ((const uint8_t *)k.value)[4];
		c->reserved[min(replicas, 4u) - 1] += (int64_t)k.k.size * replicas;
	}
	if (k.k.type != KEY_EXTENT && k.k.type != KEY_REFLINK_V)
		return;
	int nr = extent_decode(k, &c->s->super->kctx, ptrs, NULL, NULL);
	assert_true(nr > 0);
	for (int i = 0; i < nr; i++) {
		const struct extent_ptr *p = &ptrs[i].ptr;
		const struct extent_crc *crc = &ptrs[i].crc;
		uint64_t bucket = p->sector / c->s->super->members[p->dev].m.bucket_sectors;
		uint64_t n = k.k.size;
		struct alloc v;

		if (compression_is_compressed(crc->compression))
			n = (n * crc->compressed_sectors + crc->uncompressed_sectors - 1) / crc->uncompressed_sectors;
		assert_int_equal(alloc_key_lookup(c->s->allocator, p->dev, bucket, &v), 0);
		struct expected_bucket *b = &c->buckets[p->dev][bucket];
		if (p->is_cached) {
			if (v.gen != p->gen)
				continue;
			b->cached += n;
			if (b->type != DATA_USER)
				b->type = DATA_CACHED;
			uint8_t dev = p->dev;
			row_add(c, DATA_CACHED, &dev, 1, (int64_t)n);
			continue;
		}
		assert_int_equal(v.gen, p->gen);
		b->dirty += n;
		assert_true(b->type != DATA_BTREE);
		b->type = DATA_USER;
		backpointer_check(c, p, ptrs[i].has_crc ? crc->offset_sectors : 0, btree_id, 0, DATA_USER, (uint32_t)n,
				  k.k.p);
		devs[dev_nr++] = p->dev;
		dirty += (int64_t)n;
	}
	if (dev_nr)
		row_add(c, DATA_USER, devs, dev_nr, dirty);
}

static void keys_count(struct checker *c, unsigned btree_id)
{
	struct btree_iter it;
	struct bkey_ref k;
	int found;

	btree_iter_open(&it, c->s->trees, btree_id, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	while ((found = btree_iter_peek(&it, &k)) > 0) {
		if (btree_id == BTREE_INODES)
			c->inodes += k.k.type == KEY_INODE_V3;
		else
			key_count(c, k, btree_id);
		btree_iter_advance(&it);
	}
	assert_int_equal(found, 0);
	btree_iter_close(&it);
}

static void nodes_count(struct checker *c)
{
	uint32_t n = c->s->super->kctx.node_sectors;

	for (unsigned i = 0; i < SPACE_NODES_MAX; i++) {
		const struct space_node *node = &c->s->nodes[i];
		uint8_t devs[EXTENT_PTRS_MAX];

		if (!node->exists)
			continue;
		for (unsigned r = 0; r < node->ptr.ptr_nr; r++) {
			const struct extent_ptr *p = &node->ptr.ptrs[r];
			uint64_t bucket = p->sector / c->s->super->members[p->dev].m.bucket_sectors;

			c->buckets[p->dev][bucket].dirty += n;
			assert_true(c->buckets[p->dev][bucket].type != DATA_USER);
			c->buckets[p->dev][bucket].type = DATA_BTREE;
			backpointer_check(c, p, 0, BTREE_XATTRS, 1, DATA_BTREE, n, node->pos);
			devs[r] = p->dev;
		}
		row_add(c, DATA_BTREE, devs, node->ptr.ptr_nr, (int64_t)n * node->ptr.ptr_nr);
	}
}

static bool index_is_initialized(struct checker *c, unsigned dev)
{
	return atomic_load(&c->s->allocator->devs[dev].index) == ALLOC_INDEX_READY;
}

/* What superblock and journal buckets hold comes from the layout, not from keys. */
static bool is_metadata(const struct alloc *v) { return v->data_type == DATA_SB || v->data_type == DATA_JOURNAL; }

static void bucket_check(struct checker *c, unsigned dev, uint64_t bucket, uint64_t lru_nr[2], uint64_t index_nr[2])
{
	uint32_t bucket_sectors = c->s->super->members[dev].m.bucket_sectors;
	const struct expected_bucket *e = &c->buckets[dev][bucket];
	struct bkey_copy copy;
	struct alloc v;

	assert_int_equal(alloc_key_lookup(c->s->allocator, dev, bucket, &v), 0);
	assert_int_equal(is_metadata(&v), bucket_is_reserved(c->s->allocator, dev, bucket));
	if (!is_metadata(&v)) {
		assert_int_equal(v.dirty_sectors, e->dirty);
		assert_int_equal(v.cached_sectors, e->cached);
		assert_int_equal(v.data_type, alloc_data_type(&v, e->dirty ? e->type : DATA_FREE));
	}
	if (!bucket_type_is_empty(v.data_type))
		assert_int_equal(v.flags & 3, 3);

	bool is_free = v.data_type == DATA_FREE && index_is_initialized(c, dev);
	bool is_discard = v.data_type == DATA_NEED_DISCARD && index_is_initialized(c, dev);
	uint64_t genbits = (uint64_t)((uint8_t)(v.gen - v.oldest_gen) >> 4) << 56;
	assert_int_equal(is_covered(c, BPOS(dev, bucket | genbits, 0)), is_free);
	assert_int_equal(has_key(c, BTREE_NEED_DISCARD, BPOS(dev, bucket, 0), &copy), is_discard);
	index_nr[0] += is_free;
	index_nr[1] += is_discard;

	uint8_t gen = 0;
	if (has_key(c, BTREE_BUCKET_GENS, BPOS(dev, bucket >> 8, 0), &copy))
		gen = copy.value[bucket & 0xff];
	assert_int_equal(gen, v.gen);

	if (v.data_type == DATA_CACHED) {
		assert_true(v.io_time[0] != 0);
		assert_true(has_key(c, BTREE_LRU,
				    BPOS((uint64_t)dev << 48 | v.io_time[0], (uint64_t)dev << 48 | bucket, 0), &copy));
		lru_nr[0]++;
	}
	uint64_t frag = 0;
	if ((v.data_type == DATA_BTREE || v.data_type == DATA_USER) && v.dirty_sectors < bucket_sectors)
		frag = ((uint64_t)v.dirty_sectors << 31) / bucket_sectors;
	assert_int_equal(v.fragmentation_lru, frag);
	if (frag) {
		assert_true(
			has_key(c, BTREE_LRU, BPOS(0xffffull << 48 | frag, (uint64_t)dev << 48 | bucket, 0), &copy));
		lru_nr[1]++;
	}

	c->counters[counter_dev(dev, v.data_type, COUNTER_DEV_BUCKETS)]++;
	if (v.data_type != DATA_CACHED)
		c->counters[counter_dev(dev, v.data_type, COUNTER_DEV_SECTORS)] += v.dirty_sectors;
	c->counters[counter_dev(dev, DATA_CACHED, COUNTER_DEV_SECTORS)] += v.cached_sectors;
	if (v.dirty_sectors && v.dirty_sectors < bucket_sectors)
		c->counters[counter_dev(dev, v.data_type, COUNTER_DEV_FRAGMENTED)] += bucket_sectors - v.dirty_sectors;
}

static uint64_t size_of(struct space *s, unsigned btree_id)
{
	struct btree_iter it;
	struct bkey_ref k;
	uint64_t nr = 0;

	btree_iter_open(&it, s->trees, btree_id, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	while (btree_iter_peek(&it, &k) > 0) {
		nr += k.k.size ? k.k.size : 1;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return nr;
}

static void counters_check(struct checker *c)
{
	struct counters *have = &c->s->allocator->counters;

	c->counters[COUNTER_INODES] = c->inodes;
	for (unsigned i = 0; i < 4; i++)
		c->counters[COUNTER_RESERVED + i] = c->reserved[i];
	for (unsigned i = 0; i < COUNTER_ROWS; i++) {
		if (have->now[i] != c->counters[i])
			fprintf(stderr, "counter %u\n", i);
		assert_int_equal(have->now[i], c->counters[i]);
		assert_int_equal(have->base[i], c->counters[i]);
	}
	for (size_t i = 0; i < have->row_nr; i++) {
		const struct usage_replicas *e = &have->rows[i].entry;
		int64_t want = 0;

		for (unsigned j = 0; j < c->row_nr; j++)
			if (c->rows[j].data_type == e->data_type && c->rows[j].nr_devs == e->nr_devs &&
			    !memcmp(c->rows[j].devs, e->devs, e->nr_devs)) {
				want = c->rows[j].sectors;
				c->rows[j].sectors = 0;
			}
		assert_int_equal(have->rows[i].now, want);
		assert_int_equal(have->rows[i].base, want);
	}
	for (unsigned j = 0; j < c->row_nr; j++)
		assert_int_equal(c->rows[j].sectors, 0);
}

void space_check(struct space *s)
{
	struct checker *c = calloc(1, sizeof(*c));
	uint64_t lru_nr[2] = { 0 }, index_nr[2] = { 0 };

	discards_stop(s->allocator);
	assert_int_equal(btree_write_buffer_flush(s->trees), 0);
	c->s = s;
	for (unsigned dev = 0; dev < s->dev_nr; dev++)
		c->buckets[dev] = calloc(s->super->members[dev].m.nbuckets, sizeof(*c->buckets[dev]));
	keys_count(c, BTREE_EXTENTS);
	keys_count(c, BTREE_REFLINK);
	keys_count(c, BTREE_INODES);
	nodes_count(c);
	for (unsigned dev = 0; dev < s->dev_nr; dev++)
		for (uint64_t b = 0; b < s->super->members[dev].m.nbuckets; b++)
			bucket_check(c, dev, b, lru_nr, index_nr);
	assert_int_equal(size_of(s, BTREE_LRU), lru_nr[0] + lru_nr[1]);
	assert_int_equal(size_of(s, BTREE_FREESPACE), index_nr[0]);
	assert_int_equal(size_of(s, BTREE_NEED_DISCARD), index_nr[1]);
	assert_int_equal(size_of(s, BTREE_BACKPOINTERS), c->backpointers);
	counters_check(c);
	for (unsigned dev = 0; dev < s->dev_nr; dev++)
		free(c->buckets[dev]);
	free(c);
	assert_int_equal(s->reports, 0);
	assert_int_equal(discards_start(s->allocator), 0);
}
