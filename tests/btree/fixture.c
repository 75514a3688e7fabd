/* Btrees in memory, for tests (see fixture.h). */
#include "fixture.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "base/array.h"
#include "base/clock.h"
#include "device/device.h"
#include "format/version.h"

/* --- backend --- */

static void node_place(void *ctx, const void *node, size_t bytes, struct btree_ptr *ptr)
{
	struct fixture *f = ctx;

	assert_int_equal(array_grow(&f->nodes, &f->node_capacity, f->node_nr + 1, sizeof(*f->nodes)), 0);
	struct stored_node *stored = &f->nodes[f->node_nr++];
	*stored = (struct stored_node){ .bytes = bytes };
	ptr->ptr_nr = f->replicas;
	for (unsigned i = 0; i < f->replicas; i++) {
		stored->copy[i] = malloc(bytes);
		assert_non_null(stored->copy[i]);
		memcpy(stored->copy[i], node, bytes);
		ptr->ptrs[i] = (struct extent_ptr){ .dev = (uint8_t)i, .sector = f->node_nr * FIXTURE_SLOT_SECTORS };
	}
}

size_t fixture_node_idx(const struct btree_ptr *ptr) { return ptr->ptrs[0].sector / FIXTURE_SLOT_SECTORS - 1; }

static int node_read_from_memory(void *ctx, const struct btree_ptr *p, unsigned replica, void *buf, size_t bytes)
{
	struct fixture *f = ctx;
	const struct extent_ptr *ptr = &p->ptrs[replica];
	uint64_t idx = ptr->sector / FIXTURE_SLOT_SECTORS - 1;

	if (ptr->dev >= FIXTURE_DEVS)
		return -ENODEV;
	if (f->dev_err[ptr->dev])
		return f->dev_err[ptr->dev];
	if (ptr->sector % FIXTURE_SLOT_SECTORS || idx >= f->node_nr || !f->nodes[idx].copy[ptr->dev])
		return -EIO;

	unsigned now = atomic_fetch_add(&f->reads_at_once, 1) + 1, seen = atomic_load(&f->reads_at_once_max);
	while (now > seen && !atomic_compare_exchange_weak(&f->reads_at_once_max, &seen, now))
		;
	task_yield();
	atomic_fetch_add(&f->reads, 1);
	memset(buf, 0xa5, bytes);
	memcpy(buf, f->nodes[idx].copy[ptr->dev], min(bytes, f->nodes[idx].bytes));
	atomic_fetch_sub(&f->reads_at_once, 1);
	return 0;
}

static const char *device_name(void *ctx, unsigned dev)
{
	static const char *const names[FIXTURE_DEVS] = { "dev-a", "dev-b" };

	return dev < FIXTURE_DEVS ? names[dev] : "no such device";
}

static void replica_bad(void *ctx, const struct btree_bad_replica *bad)
{
	atomic_fetch_add(&((struct fixture *)ctx)->bad_replicas, 1);
}

static void report_record(void *ctx, const struct report *report)
{
	struct fixture *f = ctx;

	mutex_lock(&f->reports_lock);
	f->reports[report->level]++;
	f->last_id = report->id;
	f->last_err = report->err;
	snprintf(f->last_device, sizeof(f->last_device), "%s", report->device ? report->device : "");
	snprintf(f->last_position, sizeof(f->last_position), "%s", report->position ? report->position : "");
	mutex_unlock(&f->reports_lock);
}

/* --- set up --- */

void fixture_init(struct fixture *f, uint64_t seed, uint32_t node_bytes, uint32_t block_bytes)
{
	memset(f, 0, sizeof(*f));
	for (unsigned i = 0; i < FIXTURE_DEVS; i++)
		f->members[i] = (struct member_geometry){ true, FIXTURE_SLOT_SECTORS, 1, 1ull << 40 };
	f->kctx = (struct key_context){
		.version = VERSION_1_4,
		.upgrade_complete = VERSION_1_4,
		.has_key = true,
		.block_sectors = (uint8_t)(block_bytes / SECTOR_BYTES),
		.node_sectors = (uint16_t)(node_bytes / SECTOR_BYTES),
		.member_nr = FIXTURE_DEVS,
		.members = f->members,
		.backpointer_shift = 10,
		.time_precision_ns = 1,
	};
	f->replicas = 1;
	f->b = (struct tree_builder){
		.magic = 0x96547128b609687f,
		.version = VERSION_1_4,
		.csum_type = CHECKSUM_CRC32C_NONZERO,
		.node_bytes = node_bytes,
		.block_bytes = block_bytes,
		.keys_per_node = 100,
		.sets_per_node = 3,
		.has_history = true,
		.has_narrow_formats = true,
		.place = node_place,
		.ctx = f,
	};
	rng_init(&f->b.rng, seed);
	mutex_init(&f->reports_lock);
	f->sink = (struct report_sink){ .emit = report_record, .ctx = f };
}

struct btree_backend fixture_backend(struct fixture *f)
{
	return (struct btree_backend){
		.read = node_read_from_memory, .device_name = device_name, .replica_bad = replica_bad, .ctx = f
	};
}

void fixture_open(struct fixture *f, uint64_t memory_bytes)
{
	struct btrees_opts opts = {
		.memory_bytes = memory_bytes ? memory_bytes : 256ull << 20,
		.kctx = &f->kctx,
		.magic = f->b.magic,
		.key = f->b.key,
		.backend = fixture_backend(f),
		.reports = &f->sink,
	};

	assert_null(f->trees);
	assert_int_equal(btrees_open(&opts, &f->trees), 0);
	if (f->b.overlay)
		assert_int_equal(btrees_set_overlay(f->trees, f->b.overlay), 0);
	f->b.overlay = NULL;
}

void fixture_set_root(struct fixture *f, unsigned btree_id, const struct built_root *root)
{
	assert_int_equal(btrees_set_root(f->trees, btree_id, root->level, &root->key, false), 0);
}

void fixture_build(struct fixture *f, unsigned btree_id, const struct bkey_ref *keys, size_t nr)
{
	struct built_root root = tree_build(&f->b, btree_id, keys, nr);

	fixture_open(f, 0);
	fixture_set_root(f, btree_id, &root);
}

void fixture_free(struct fixture *f)
{
	btrees_close(f->trees);
	for (size_t i = 0; i < f->node_nr; i++)
		for (unsigned d = 0; d < FIXTURE_DEVS; d++)
			free(f->nodes[i].copy[d]);
	free(f->nodes);
	tree_builder_free(&f->b);
	mutex_destroy(&f->reports_lock);
}

void fixture_reseal(struct fixture *f, size_t node_idx, size_t offset)
{
	for (unsigned d = 0; d < f->replicas; d++)
		bset_seal(f->nodes[node_idx].copy[d], offset, f->b.csum_type, f->b.key);
}

/* --- model --- */

size_t model_find(const struct model *m, struct bpos p)
{
	size_t begin = 0, nr = m->nr;

	while (nr) {
		size_t half = nr / 2;

		if (bpos_lt(m->keys[begin + half].k.p, p)) {
			begin += half + 1;
			nr -= half + 1;
		} else {
			nr = half;
		}
	}
	return begin;
}

void model_put(struct model *m, const struct model_key *k)
{
	size_t i = model_find(m, k->k.p);

	if (i == m->nr || !bpos_eq(m->keys[i].k.p, k->k.p)) {
		assert_int_equal(array_grow(&m->keys, &m->capacity, m->nr + 1, sizeof(*m->keys)), 0);
		memmove(m->keys + i + 1, m->keys + i, (m->nr - i) * sizeof(*m->keys));
		m->nr++;
	}
	m->keys[i] = *k;
}

void model_delete(struct model *m, struct bpos p)
{
	size_t i = model_find(m, p);

	if (i < m->nr && bpos_eq(m->keys[i].k.p, p)) {
		m->nr--;
		memmove(m->keys + i, m->keys + i + 1, (m->nr - i) * sizeof(*m->keys));
	}
}

struct bkey_ref model_ref(const struct model_key *k) { return (struct bkey_ref){ .k = k->k, .value = k->value }; }

struct bkey_ref *model_refs(const struct model *m)
{
	struct bkey_ref *refs = calloc(m->nr + 1, sizeof(*refs));

	assert_non_null(refs);
	for (size_t i = 0; i < m->nr; i++)
		refs[i] = model_ref(&m->keys[i]);
	return refs;
}

void model_free(struct model *m)
{
	free(m->keys);
	*m = (struct model){ 0 };
}

struct model_key random_key(struct rng *rng, unsigned btree_id, uint64_t inode_nr, uint64_t offset_nr,
			    uint32_t snapshot_nr)
{
	enum { INODE_FIRST = 4096, COOKIE_U64S_MIN = 1 };
	unsigned flags = btree_flags(btree_id);
	struct model_key k = { .k = { .type = KEY_COOKIE } };

	k.k.p = BPOS(INODE_FIRST + rng_below(rng, inode_nr), 1 + rng_below(rng, offset_nr), 0);
	if (flags & (BTREE_HAS_SNAPSHOTS | BTREE_HAS_SNAPSHOT_FIELD))
		k.k.p.snapshot = UINT32_MAX - (uint32_t)rng_below(rng, snapshot_nr);
	if (flags & BTREE_IS_EXTENTS)
		k.k.size = 1;
	k.k.value_u64s = (uint8_t)(COOKIE_U64S_MIN + rng_below(rng, MODEL_VALUE_U64S_MAX - COOKIE_U64S_MIN));
	for (unsigned i = 0; i < k.k.value_u64s; i++)
		k.value[i] = rng_u64(rng);
	return k;
}

void assert_key_equal(const struct bkey_ref *k, const struct model_key *expected)
{
	assert_true(bpos_eq(k->k.p, expected->k.p));
	assert_int_equal(k->k.type, expected->k.type);
	assert_int_equal(k->k.size, expected->k.size);
	assert_int_equal(k->k.value_u64s, expected->k.value_u64s);
	if (k->k.value_u64s)
		assert_memory_equal(k->value, expected->value, bkey_value_bytes(&k->k));
}

void random_overlay(struct fixture *f, unsigned btree_id, struct model *m, unsigned changes, uint64_t inode_nr,
		    uint64_t offset_nr, uint32_t snapshot_nr)
{
	struct rng *rng = &f->b.rng;

	for (unsigned i = 0; i < changes; i++) {
		struct model_key k = random_key(rng, btree_id, inode_nr, offset_nr, snapshot_nr), old = k;
		uint64_t seq = 100 + i / 8;
		uint32_t offset = i % 8;

		if (m->nr && rng_below(rng, 2))
			k.k.p = old.k.p = m->keys[rng_below(rng, m->nr)].k.p;
		old.value[0] ^= 1;
		struct bkey_ref ref = model_ref(&old);
		if (rng_below(rng, 4) == 0)
			tree_overlay_add(&f->b, btree_id, 0, seq - 50, UINT32_MAX, &ref);
		if (rng_below(rng, 3)) {
			model_put(m, &k);
		} else {
			model_delete(m, k.k.p);
			k = (struct model_key){ .k = { .p = k.k.p, .type = KEY_DELETED } };
		}
		ref = model_ref(&k);
		tree_overlay_add(&f->b, btree_id, 0, seq, offset, &ref);
	}
}
