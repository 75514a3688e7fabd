/*
 * Room for btree nodes, set aside before it is needed (07 §13, §14.5).
 *
 * A slot is room for one node on as many devices as metadata has replicas, in open buckets. A job keeps a few of them
 * in a pool, so that interior updates needn't search; the last ones are only for those that free space or journal.
 * Slots that aren't used come back to the pool.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/internal.h"
#include "base/clock.h"

struct btree_node_reserve {
	enum watermark watermark;
	unsigned nr, used;
	struct alloc_extent slots[];
};

enum { RETRY_NS = 100000000 };

void node_pool_init(struct node_pool *p)
{
	memset(p, 0, sizeof(*p));
	mutex_init(&p->lock);
	waitq_init(&p->low);
	job_init(&p->job, "node reserve", "has places for new nodes at hand");
}

void node_pool_destroy(struct node_pool *p)
{
	waitq_destroy(&p->low);
	mutex_destroy(&p->lock);
}

static int slot_get(struct allocator *a, enum watermark watermark, bool can_wait, struct alloc_extent *slot)
{
	const uint64_t *options = a->super->options;
	struct alloc_request req = {
		.data_type = DATA_BTREE,
		.watermark = watermark,
		.target = (uint16_t)(options[OPT_METADATA_TARGET] ? options[OPT_METADATA_TARGET]
								  : options[OPT_FOREGROUND_TARGET]),
		.replicas = (unsigned)max(options[OPT_METADATA_REPLICAS], (uint64_t)1),
		.replicas_required = (unsigned)max(options[OPT_METADATA_REPLICAS_REQUIRED], (uint64_t)1),
		.can_wait = can_wait,
	};
	int err = allocator_extent_get(a, &req, a->super->kctx.node_sectors, slot);

	if (!err)
		allocator_clock_add(a, true, a->super->kctx.node_sectors);
	return err;
}

/* --- the pool --- */

/*
 * What isn't kept is lost in its bucket until that is empty. So where a bucket holds many nodes many are kept.
 */
static unsigned pool_max(const struct allocator *a)
{
	uint32_t nodes_per_bucket = UINT32_MAX;

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		if (a->devs[dev].is_member)
			nodes_per_bucket =
				min(nodes_per_bucket, a->devs[dev].bucket_sectors / a->super->kctx.node_sectors);
	return (unsigned)min(max((uint64_t)nodes_per_bucket * NODE_POOL_BUCKETS, (uint64_t)NODE_POOL_MIN),
			     (uint64_t)NODE_POOL_MAX);
}

static bool pool_take(struct node_pool *p, enum watermark watermark, struct alloc_extent *slot)
{
	unsigned keep = watermark >= WATERMARK_RECLAIM ? 0 : NODE_POOL_RECLAIM;

	mutex_lock(&p->lock);
	bool has = p->nr > keep;
	if (has)
		*slot = p->slots[--p->nr];
	if (p->nr < NODE_POOL_TARGET)
		waitq_wake_one(&p->low);
	mutex_unlock(&p->lock);
	return has;
}

static bool slot_is_writable(struct allocator *a, const struct alloc_extent *slot)
{
	for (unsigned i = 0; i < slot->ptr_nr; i++)
		if (!atomic_load(&a->devs[slot->ptrs[i].dev].is_writable))
			return false;
	return true;
}

static void pool_put(struct allocator *a, struct alloc_extent *slot)
{
	struct node_pool *p = &a->nodes;

	mutex_lock(&p->lock);
	bool is_kept = !p->is_stopping && p->nr < pool_max(a) && slot_is_writable(a, slot);
	if (is_kept)
		p->slots[p->nr++] = *slot;
	mutex_unlock(&p->lock);
	if (!is_kept)
		allocator_extent_put(a, slot);
}

static void pool_refill(void *arg)
{
	struct allocator *a = arg;
	struct node_pool *p = &a->nodes;
	uint64_t retry_ns = 0;

	mutex_lock(&p->lock);
	while (!p->is_stopping) {
		if (p->nr >= NODE_POOL_TARGET) {
			job_waits(&p->job, "enough are at hand");
			waitq_wait(&p->low, &p->lock);
			continue;
		}
		if (retry_ns > clock_monotonic_ns()) {
			job_waits(&p->job, "there was no bucket: again in a moment");
			waitq_wait_until(&p->low, &p->lock, retry_ns);
			continue;
		}
		enum watermark watermark = p->nr < NODE_POOL_RECLAIM ? WATERMARK_RECLAIM : WATERMARK_BTREE;
		struct alloc_extent slot;

		job_works(&p->job, "some were taken");
		mutex_unlock(&p->lock);
		if (slot_get(a, watermark, false, &slot))
			retry_ns = clock_monotonic_ns() + RETRY_NS;
		else
			pool_put(a, &slot);
		mutex_lock(&p->lock);
	}
	job_stops(&p->job);
	mutex_unlock(&p->lock);
}

void node_pool_sift(struct allocator *a)
{
	struct node_pool *p = &a->nodes;
	struct alloc_extent slots[NODE_POOL_MAX];

	mutex_lock(&p->lock);
	unsigned nr = p->nr;
	memcpy(slots, p->slots, nr * sizeof(slots[0]));
	p->nr = 0;
	waitq_wake_one(&p->low);
	mutex_unlock(&p->lock);
	while (nr)
		pool_put(a, &slots[--nr]);
}

int node_pool_start(struct allocator *a)
{
	a->nodes.is_stopping = false;
	return task_start(&a->nodes.task, "node-reserve", pool_refill, a);
}

void node_pool_stop(struct allocator *a)
{
	struct node_pool *p = &a->nodes;
	struct alloc_extent slot;

	mutex_lock(&p->lock);
	struct task *task = p->task;
	p->task = NULL;
	p->is_stopping = true;
	waitq_wake_all(&p->low);
	mutex_unlock(&p->lock);
	if (task)
		task_join(task);
	while (pool_take(p, WATERMARK_RECLAIM, &slot))
		allocator_extent_put(a, &slot);
}

/* --- reserves --- */

/* Updates of btrees come before what they are made for (07 §13). */
static enum watermark node_watermark(enum watermark watermark)
{
	if (watermark == WATERMARK_COPYGC)
		return WATERMARK_BTREE_COPYGC;
	return watermark > WATERMARK_BTREE ? watermark : WATERMARK_BTREE;
}

int allocator_node_reserve(struct allocator *a, unsigned nr, enum watermark watermark,
			   struct btree_node_reserve **reserve)
{
	struct btree_node_reserve *r = calloc(1, sizeof(*r) + nr * sizeof(r->slots[0]));
	int err = 0;

	if (!r)
		return -ENOMEM;
	r->watermark = watermark = node_watermark(watermark);
	while (!err && r->nr < nr) {
		if (!pool_take(&a->nodes, watermark, &r->slots[r->nr]))
			err = slot_get(a, watermark, true, &r->slots[r->nr]);
		if (!err)
			r->nr++;
	}
	if (err) {
		allocator_node_reserve_put(a, r);
		return err;
	}
	*reserve = r;
	return 0;
}

void allocator_node_alloc(struct allocator *a, struct btree_node_reserve *reserve, struct btree_ptr *p)
{
	assert(reserve->used < reserve->nr);
	if (reserve->watermark == WATERMARK_BTREE)
		evacuation_written(a, a->super->kctx.node_sectors);
	const struct alloc_extent *slot = &reserve->slots[reserve->used++];
	p->ptr_nr = slot->ptr_nr;
	memcpy(p->ptrs, slot->ptrs, slot->ptr_nr * sizeof(p->ptrs[0]));
}

void allocator_node_reserve_put(struct allocator *a, struct btree_node_reserve *reserve)
{
	for (unsigned i = 0; i < reserve->used; i++)
		allocator_extent_put(a, &reserve->slots[i]);
	for (unsigned i = reserve->used; i < reserve->nr; i++)
		pool_put(a, &reserve->slots[i]);
	free(reserve);
}
