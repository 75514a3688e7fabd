/*
 * Nodes in memory: the tree backend of btrees that live no longer than the process (see btree.h).
 *
 * Memory comes in chunks of many node slots, which are never given back before the end; slots that became free are on a
 * list and are taken again first. A pointer to a node is device MEMORY_DEV, sector = slot number * node size: slot 0 is
 * left out, so that no node is at sector 0.
 *
 * Chunks are found through a table that never moves, so reading and writing nodes takes no lock. Who reads a node has a
 * pointer to it, so its chunk was there before.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/spill.h"
#include "base/sync.h"
#include "base/util.h"
#include "btree/btree.h"

enum {
	MEMORY_DEV = DEV_NONE - 1,
	CHUNK_BYTES_MIN = 1 << 20,
	CHUNK_NODES_MIN = 16,
	CHUNK_NR_MAX = 1 << 16, /* 64 GiB at least */
};

struct btree_memory {
	struct key_context kctx;
	struct member_geometry members[MEMORY_DEV + 1];
	size_t node_bytes;
	uint32_t chunk_nodes;
	struct spill *chunks; /* CHUNK_NR_MAX of them, the first chunk_nr exist */

	struct mutex lock; /* guards the members below */
	uint32_t chunk_nr;
	uint64_t slot_nr; /* slots of all chunks */
	uint64_t *free;	  /* stack of slots; has room for all */
	uint64_t free_nr;
};

/* Slots that were taken off the free list. */
struct btree_node_reserve {
	unsigned nr;
	uint64_t slots[];
};

int btree_memory_open(const struct key_context *kctx, struct btree_memory **memory)
{
	struct btree_memory *m = calloc(1, sizeof(*m));

	*memory = NULL;
	if (!m)
		return -ENOMEM;
	m->node_bytes = (size_t)kctx->node_sectors * SECTOR_BYTES;
	m->chunk_nodes = (uint32_t)max(CHUNK_BYTES_MIN / m->node_bytes, (size_t)CHUNK_NODES_MIN);
	m->chunks = calloc(CHUNK_NR_MAX, sizeof(*m->chunks));
	if (!m->chunks) {
		free(m);
		return -ENOMEM;
	}
	for (unsigned i = 0; i < min(kctx->member_nr, (unsigned)MEMORY_DEV); i++)
		m->members[i] = kctx->members[i];
	m->members[MEMORY_DEV] = (struct member_geometry){
		.exists = true,
		.bucket_sectors = kctx->node_sectors,
		.first_bucket = 1,
		.bucket_nr = (uint64_t)CHUNK_NR_MAX * m->chunk_nodes + 1,
	};
	m->kctx = *kctx;
	m->kctx.members = m->members;
	m->kctx.member_nr = MEMORY_DEV + 1;
	mutex_init(&m->lock);
	*memory = m;
	return 0;
}

void btree_memory_close(struct btree_memory *m)
{
	if (!m)
		return;
	for (uint32_t i = 0; i < m->chunk_nr; i++)
		spill_free(&m->chunks[i]);
	mutex_destroy(&m->lock);
	free(m->chunks);
	free(m->free);
	free(m);
}

const struct key_context *btree_memory_context(const struct btree_memory *m) { return &m->kctx; }

/* --- slots --- */

static uint64_t slot_sector(const struct btree_memory *m, uint64_t slot) { return (slot + 1) * m->kctx.node_sectors; }

static uint64_t ptr_slot(const struct btree_memory *m, const struct btree_ptr *p)
{
	return p->ptrs[0].sector / m->kctx.node_sectors - 1;
}

static uint8_t *slot_bytes(const struct btree_memory *m, uint64_t slot)
{
	return (uint8_t *)m->chunks[slot / m->chunk_nodes].mem + slot % m->chunk_nodes * m->node_bytes;
}

/* One chunk more; its slots become free. The lock is held. */
static int chunk_add(struct btree_memory *m)
{
	uint64_t slot_nr = m->slot_nr + m->chunk_nodes;
	uint64_t *grown;

	if (m->chunk_nr == CHUNK_NR_MAX)
		return -ENOSPC;
	grown = realloc(m->free, slot_nr * sizeof(*grown));
	if (!grown)
		return -ENOSPC;
	m->free = grown;
	if (spill_alloc(&m->chunks[m->chunk_nr], m->chunk_nodes * m->node_bytes, true))
		return -ENOSPC;
	m->chunk_nr++;
	while (slot_nr > m->slot_nr)
		m->free[m->free_nr++] = --slot_nr;
	m->slot_nr += m->chunk_nodes;
	return 0;
}

static int memory_reserve(void *ctx, unsigned nr, const struct btree_ptr *replaced, enum watermark watermark,
			  struct btree_node_reserve **reserve)
{
	struct btree_memory *m = ctx;
	struct btree_node_reserve *r = malloc(sizeof(*r) + nr * sizeof(r->slots[0]));
	int err = 0;

	*reserve = NULL;
	if (!r)
		return -ENOSPC;
	mutex_lock(&m->lock);
	while (!err && m->free_nr < nr)
		err = chunk_add(m);
	for (r->nr = 0; !err && r->nr < nr; r->nr++)
		r->slots[r->nr] = m->free[--m->free_nr];
	mutex_unlock(&m->lock);
	if (err)
		free(r);
	else
		*reserve = r;
	return err;
}

static void memory_node_alloc(void *ctx, struct btree_node_reserve *r, struct btree_ptr *p)
{
	struct btree_memory *m = ctx;

	p->ptr_nr = 1;
	p->ptrs[0] = (struct extent_ptr){ .dev = MEMORY_DEV, .sector = slot_sector(m, r->slots[--r->nr]) };
}

static void memory_reserve_trim(void *ctx, struct btree_node_reserve *r)
{
	struct btree_memory *m = ctx;

	mutex_lock(&m->lock);
	while (r->nr)
		m->free[m->free_nr++] = r->slots[--r->nr];
	mutex_unlock(&m->lock);
}

static void memory_reserve_put(void *ctx, struct btree_node_reserve *r)
{
	if (!r)
		return;
	memory_reserve_trim(ctx, r);
	free(r);
}

static void memory_node_free(void *ctx, const struct btree_ptr *p)
{
	struct btree_memory *m = ctx;

	mutex_lock(&m->lock);
	m->free[m->free_nr++] = ptr_slot(m, p);
	mutex_unlock(&m->lock);
}

/* --- I/O --- */

static int memory_read(void *ctx, const struct btree_ptr *p, unsigned replica, void *buf, size_t bytes)
{
	struct btree_memory *m = ctx;

	if (p->ptrs[replica].dev != MEMORY_DEV)
		return -ENODEV;
	if (bytes > m->node_bytes)
		return -EIO;
	memcpy(buf, slot_bytes(m, ptr_slot(m, p)), bytes);
	return 0;
}

static int memory_write(void *ctx, const struct btree_ptr *p, const void *buf, size_t offset, size_t bytes,
			unsigned *failed)
{
	struct btree_memory *m = ctx;

	*failed = 0;
	if (offset > m->node_bytes || bytes > m->node_bytes - offset)
		return -EIO;
	memcpy(slot_bytes(m, ptr_slot(m, p)) + offset, buf, bytes);
	return 0;
}

static const char *memory_device_name(void *ctx, unsigned dev) { return "memory"; }

void btree_memory_backend(struct btree_memory *memory, struct btree_backend *backend)
{
	*backend = (struct btree_backend){
		.read = memory_read,
		.device_name = memory_device_name,
		.reserve = memory_reserve,
		.node_alloc = memory_node_alloc,
		.reserve_trim = memory_reserve_trim,
		.reserve_put = memory_reserve_put,
		.write = memory_write,
		.node_free = memory_node_free,
		.ctx = memory,
	};
}
