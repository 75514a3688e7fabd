/*
 * Room for btree nodes, set aside before it is needed (07 §13, §14.5).
 *
 * A slot is room for one node on as many devices as metadata has replicas, in open buckets. A job keeps a few of them
 * in a pool, so that interior updates needn't search; the last ones are only for those that free space or journal.
 * Slots that aren't used come back to the pool.
 *
 * What is replaced may have fewer copies: a device is missing, or was when it was written. As long as there is room the
 * new node has all; where buckets are few on so many devices that the others can't hold them, as many as are left, on
 * the same devices if possible. So hardly more is taken than is given back, and a full filesystem can be changed, and
 * emptied, without one of its devices as well as with all.
 *
 * Who changes keys waits, after each commit, until there is room for all nodes that may have to be replaced when what
 * has changed is written back, and for what it takes to move nodes together (allocator_node_room_wait()).
 */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/internal.h"
#include "base/clock.h"

struct btree_node_reserve {
	enum watermark watermark;
	unsigned copies; /* that a node has at least */
	uint64_t devs;	 /* where what is replaced has its copies */
	unsigned nr, used;
	struct alloc_extent slots[];
};

enum { RETRY_NS = 100000000, GAINLESS_NS = 1000000000, SCAN_NS = 1000000000 };

void node_pool_init(struct node_pool *p)
{
	memset(p, 0, sizeof(*p));
	mutex_init_ranked(&p->lock, LOCK_NODE_POOL);
	waitq_init(&p->low);
	atomic_init(&p->room, 0);
	atomic_init(&p->is_room_old, true);
	atomic_init(&p->room_retry_ns, 0);
	atomic_init(&p->waiting_nr, 0);
	atomic_init(&p->is_writeback_starved, false);
	job_init(&p->job, "node reserve", "has places for new nodes at hand");
}

void node_pool_destroy(struct node_pool *p)
{
	waitq_destroy(&p->low);
	mutex_destroy(&p->lock);
}

static uint16_t node_target(const struct allocator *a)
{
	const uint64_t *options = a->super->options;

	return (uint16_t)(options[OPT_METADATA_TARGET] ? options[OPT_METADATA_TARGET] : options[OPT_FOREGROUND_TARGET]);
}

unsigned node_replicas(const struct allocator *a)
{
	return (unsigned)max(a->super->options[OPT_METADATA_REPLICAS], (uint64_t)1);
}

/* Of the devices that have copies of a node, those that are written. */
static uint64_t devs_left(const struct allocator *a, const struct btree_ptr *p)
{
	uint64_t devs = 0;

	for (unsigned i = 0; i < p->ptr_nr; i++)
		if (p->ptrs[i].dev < a->dev_nr)
			devs |= 1ull << p->ptrs[i].dev;
	return devs & write_point_devs(a, DATA_BTREE);
}

static int slot_get(struct allocator *a, uint64_t devs, unsigned replicas, enum watermark watermark,
		    struct alloc_extent *slot)
{
	const uint64_t *options = a->super->options;
	struct alloc_request req = {
		.data_type = DATA_BTREE,
		.watermark = watermark,
		.target = node_target(a),
		.replicas = replicas,
		.dev_exclude = ~devs,
		.replicas_required = (unsigned)max(options[OPT_METADATA_REPLICAS_REQUIRED], (uint64_t)1),
	};
	int err = allocator_extent_get(a, &req, a->super->kctx.node_sectors, slot);

	if (!err)
		allocator_clock_add(a, true, a->super->kctx.node_sectors);
	return err;
}

/* --- one slot --- */

/* Are places of replaced nodes used again, on all devices? */
static bool holes_are_kept(const struct allocator *a)
{
	bool are_kept = true;

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		are_kept &= !a->devs[dev].is_member || node_holes_are_kept(a, dev);
	return are_kept;
}

/* Are nodes replaced so often that these places count as room, like buckets, and not only as the last resort? */
static bool holes_are_room(const struct allocator *a)
{
	return super_node_blocks(a->super) < NODE_BLOCKS_FEW && holes_are_kept(a);
}

/* Which of these devices nodes go to: those of the target, if they are enough. */
static uint64_t node_devs(const struct allocator *a, uint64_t all, unsigned replicas)
{
	uint64_t wanted = all & target_devs(a, node_target(a));

	return devs_durability(a, wanted) >= replicas ? wanted : all;
}

/* Some are left to those on whom others wait. */
static bool may_take_holes(struct allocator *a, uint64_t devs, enum watermark watermark)
{
	bool may = holes_are_kept(a);

	for (unsigned dev = 0; dev < a->dev_nr && watermark < WATERMARK_BTREE_COPYGC; dev++)
		may &= !(devs >> dev & 1) || node_holes_nr(a, dev) > NODE_ROOM_MIN;
	return may;
}

/*
 * Holes come where there is no bucket; where nodes are replaced often also first when buckets are low, so that nodes
 * don't take more of them than they need. What waits for the journal is had then as well.
 */
static int slot_find_on(struct allocator *a, uint64_t all, unsigned replicas, enum watermark watermark,
			struct alloc_extent *slot)
{
	uint64_t devs = node_devs(a, all, replicas), waiting_seq = 0;
	bool may_take = may_take_holes(a, devs, watermark);
	bool come_first = may_take && holes_are_room(a) && open_buckets_are_low(a, devs);
	int err = come_first ? node_holes_slot(a, devs, replicas, watermark, slot, &waiting_seq) : -EAGAIN;

	if (err)
		err = slot_get(a, all, replicas, watermark, slot);
	if (err == -EAGAIN && may_take)
		err = node_holes_slot(a, all, replicas, watermark, slot, &waiting_seq);
	if (err == -EAGAIN && waiting_seq && a->journal && !journal_flush_seq(a->journal, waiting_seq))
		err = node_holes_slot(a, all, replicas, watermark, slot, &waiting_seq);
	return err;
}

static int slot_find(struct allocator *a, enum watermark watermark, struct alloc_extent *slot)
{
	return slot_find_on(a, write_point_devs(a, DATA_BTREE), node_replicas(a), watermark, slot);
}

static unsigned slot_copies(const struct allocator *a, const struct alloc_extent *slot)
{
	unsigned durability = 0;

	for (unsigned i = 0; i < slot->ptr_nr; i++)
		durability += a->devs[slot->ptrs[i].dev].durability;
	return durability;
}

/* Is there room for fewer copies in it than others want? */
static bool slot_has_few(const struct allocator *a, const struct alloc_extent *slot)
{
	return slot_copies(a, slot) < min(node_replicas(a), devs_durability(a, write_point_devs(a, DATA_BTREE)));
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

/* All @nr or none. */
static bool pool_take(struct node_pool *p, enum watermark watermark, struct alloc_extent *slots, unsigned nr)
{
	unsigned keep = watermark >= WATERMARK_RECLAIM ? 0 : NODE_POOL_RECLAIM;

	mutex_lock(&p->lock);
	bool has = p->nr >= keep + nr;
	for (unsigned i = 0; has && i < nr; i++)
		slots[i] = p->slots[--p->nr];
	if (p->nr < NODE_POOL_TARGET)
		waitq_wake_one(&p->low);
	mutex_unlock(&p->lock);
	return has;
}

/* Not so on a device that isn't written any more; nor where all else that was in the bucket is gone. */
static bool slot_is_worth_keeping(struct allocator *a, const struct alloc_extent *slot)
{
	for (unsigned i = 0; i < slot->ptr_nr; i++)
		if (!atomic_load(&a->devs[slot->ptrs[i].dev].is_writable) ||
		    open_bucket_was_emptied(a, slot->open_bucket[i]))
			return false;
	return true;
}

/* Buckets with holes that are at hand are open, so copygc doesn't empty them: no more of them than are wanted. */
static bool slot_has_hole(struct allocator *a, const struct alloc_extent *slot)
{
	bool has_hole = false;

	for (unsigned i = 0; i < slot->ptr_nr; i++)
		has_hole |= open_bucket_is_reopened(a, slot->open_bucket[i]);
	return has_hole;
}

static void pool_put(struct allocator *a, struct alloc_extent *slot, unsigned max)
{
	struct node_pool *p = &a->nodes;

	if (slot_has_hole(a, slot))
		max = NODE_POOL_TARGET;
	bool is_worth_it = slot_is_worth_keeping(a, slot), has_few = slot_has_few(a, slot);
	mutex_lock(&p->lock);
	bool is_kept = !p->is_stopping && is_worth_it && (has_few ? p->few_nr < NODE_POOL_FEW : p->nr < max);
	if (is_kept && has_few)
		p->few[p->few_nr++] = *slot;
	else if (is_kept)
		p->slots[p->nr++] = *slot;
	mutex_unlock(&p->lock);
	if (!is_kept)
		node_slot_drop(a, slot);
}

/* One that was given back, with room for @copies or more. */
static bool pool_take_few(struct allocator *a, unsigned copies, struct alloc_extent *slot)
{
	struct node_pool *p = &a->nodes;
	bool has = false;

	mutex_lock(&p->lock);
	for (unsigned i = p->few_nr; i-- && !has;) {
		has = slot_copies(a, &p->few[i]) >= copies;
		if (has) {
			*slot = p->few[i];
			p->few[i] = p->few[--p->few_nr];
		}
	}
	mutex_unlock(&p->lock);
	return has;
}

/* Was there any? */
static bool pool_few_drop(struct allocator *a)
{
	struct alloc_extent slot;
	bool any = false;

	while (pool_take_few(a, 0, &slot)) {
		node_slot_drop(a, &slot);
		any = true;
	}
	return any;
}

/* Is there more than is kept for write-back? */
static bool pool_has_for_all(struct node_pool *p)
{
	mutex_lock(&p->lock);
	bool has = p->nr > NODE_POOL_RECLAIM;
	mutex_unlock(&p->lock);
	return has;
}

static void pool_refill(void *arg)
{
	struct allocator *a = arg;
	struct node_pool *p = &a->nodes;
	uint64_t retry_ns = 0, scan_ns = 0;

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
		if (!slot_find(a, watermark, &slot)) {
			pool_put(a, &slot, pool_max(a));
		} else {
			retry_ns = clock_monotonic_ns() + RETRY_NS;
			/* Not all that are made are remembered. */
			bool is_scan_due = retry_ns >= scan_ns && (watermark == WATERMARK_RECLAIM || holes_are_room(a));
			if (is_scan_due && !node_holes_scan(a))
				scan_ns = clock_monotonic_ns() + SCAN_NS;
		}
		mutex_lock(&p->lock);
	}
	job_stops(&p->job);
	mutex_unlock(&p->lock);
}

/* Those that aren't worth keeping become useless ones. Returns how many stay. */
static unsigned slots_sift(struct allocator *a, struct alloc_extent *slots, unsigned nr, struct alloc_extent *useless,
			   unsigned *useless_nr)
{
	unsigned kept_nr = 0;

	for (unsigned i = 0; i < nr; i++)
		if (slot_is_worth_keeping(a, &slots[i]))
			slots[kept_nr++] = slots[i];
		else
			useless[(*useless_nr)++] = slots[i];
	return kept_nr;
}

void node_pool_sift(struct allocator *a)
{
	struct node_pool *p = &a->nodes;
	struct alloc_extent useless[NODE_POOL_MAX + NODE_POOL_FEW];
	unsigned useless_nr = 0;

	/* All that stays is there for who looks meanwhile. */
	mutex_lock(&p->lock);
	p->nr = slots_sift(a, p->slots, p->nr, useless, &useless_nr);
	p->few_nr = slots_sift(a, p->few, p->few_nr, useless, &useless_nr);
	if (useless_nr)
		waitq_wake_one(&p->low);
	mutex_unlock(&p->lock);
	while (useless_nr)
		node_slot_drop(a, &useless[--useless_nr]);
}

void node_pool_yield(struct allocator *a)
{
	struct node_pool *p = &a->nodes;
	struct alloc_extent slots[NODE_POOL_MAX];
	unsigned nr = 0;

	mutex_lock(&p->lock);
	while (p->nr > NODE_POOL_TARGET)
		slots[nr++] = p->slots[--p->nr];
	mutex_unlock(&p->lock);
	while (nr)
		node_slot_drop(a, &slots[--nr]);
	pool_few_drop(a);
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
	while (pool_take(p, WATERMARK_RECLAIM, &slot, 1))
		node_slot_drop(a, &slot);
	pool_few_drop(a);
}

/* --- reserves --- */

/* Updates of btrees come before what they are made for (07 §13). */
static enum watermark node_watermark(enum watermark watermark)
{
	if (watermark == WATERMARK_COPYGC)
		return WATERMARK_BTREE_COPYGC;
	return watermark > WATERMARK_BTREE ? watermark : WATERMARK_BTREE;
}

/* What goes beyond @copies, first on other devices than @devs. */
static void slot_trim(struct allocator *a, struct alloc_extent *slot, unsigned copies, uint64_t devs)
{
	for (unsigned pass = 0; pass < 2; pass++)
		for (unsigned i = slot->ptr_nr; i--;) {
			unsigned dev = slot->ptrs[i].dev, durability = a->devs[dev].durability;
			struct alloc_extent rest = { .ptr_nr = 1,
						     .ptrs = { slot->ptrs[i] },
						     .open_bucket = { slot->open_bucket[i] } };

			if ((!pass && devs >> dev & 1) || slot_copies(a, slot) < copies + durability)
				continue;
			slot->ptr_nr--;
			slot->ptrs[i] = slot->ptrs[slot->ptr_nr];
			slot->open_bucket[i] = slot->open_bucket[slot->ptr_nr];
			node_slot_drop(a, &rest);
		}
}

static int slot_take(struct allocator *a, const struct btree_node_reserve *r, struct alloc_extent *slot)
{
	bool has_few = r->copies < node_replicas(a) && allocator_nodes_are_low(a);
	uint64_t all = write_point_devs(a, DATA_BTREE);
	int err = -EAGAIN;

	if (has_few && pool_take_few(a, r->copies, slot))
		return 0;
	if (has_few && devs_durability(a, r->devs & all) >= r->copies)
		err = slot_find_on(a, r->devs & all, r->copies, r->watermark, slot);
	if (has_few && err == -EAGAIN)
		err = slot_find_on(a, all, r->copies, r->watermark, slot);
	if (err != -EAGAIN)
		return err;
	if (!pool_take(&a->nodes, r->watermark, slot, 1))
		return has_few ? -EAGAIN : slot_find(a, r->watermark, slot);
	if (has_few)
		slot_trim(a, slot, r->copies, r->devs);
	return 0;
}

/*
 * As many as are wanted, or none: nobody waits for some while he holds others. What is given back stays at hand: would
 * its buckets be closed, who waits for one would be woken, this one too, to find no more than before.
 */
static int slots_take(struct allocator *a, struct btree_node_reserve *r, unsigned nr)
{
	int err = 0;

	while (!err && r->nr < nr) {
		err = slot_take(a, r, &r->slots[r->nr]);
		if (!err)
			r->nr++;
	}
	while (err && r->nr)
		pool_put(a, &r->slots[--r->nr], NODE_POOL_MAX);
	/* Two who had half each have both given theirs back: neither would be told, and it is enough for one. */
	if (err == -EAGAIN && pool_take(&a->nodes, r->watermark, r->slots, nr)) {
		r->nr = nr;
		err = 0;
	}
	return err;
}

static uint64_t freed_seen(struct allocator *a)
{
	mutex_lock(&a->discards.lock);
	uint64_t seen = a->discards.freed_nr;
	mutex_unlock(&a->discards.lock);
	return seen;
}

/* Write-back doesn't wait, as who makes room may wait for it. */
static void writeback_refused(struct allocator *a)
{
	struct discards *d = &a->discards;

	atomic_store(&a->nodes.is_writeback_starved, true);
	mutex_lock(&d->lock);
	discards_want(d);
	evacuation_want(a, write_point_devs(a, DATA_BTREE));
	mutex_unlock(&d->lock);
}

static int slots_take_writeback(struct allocator *a, struct btree_node_reserve *r, unsigned nr)
{
	int err = slots_take(a, r, nr);

	/* What is at hand for fewer copies may be what all of them lack. */
	if (err == -EAGAIN && pool_few_drop(a))
		err = slots_take(a, r, nr);
	if (err == -EAGAIN) {
		writeback_refused(a);
		return -ENOSPC;
	}
	if (!err)
		atomic_store(&a->nodes.is_writeback_starved, false);
	return err;
}

static int slots_take_waiting(struct allocator *a, struct btree_node_reserve *r, unsigned nr)
{
	bool may_move = r->watermark == WATERMARK_BTREE; /* moving itself takes nodes with another one */
	bool has_hope = true;
	int err;

	task_may_wait_for(may_move ? TASK_COPYGC : TASK_DISCARD);
	atomic_fetch_add(&a->nodes.waiting_nr, 1);
	for (;;) {
		uint64_t seen = freed_seen(a);

		err = slots_take(a, r, nr);
		if (err != -EAGAIN || !has_hope)
			break;
		has_hope = discards_wait(a, seen, write_point_devs(a, DATA_BTREE), may_move);
	}
	atomic_fetch_sub(&a->nodes.waiting_nr, 1);
	return err == -EAGAIN ? discards_wait_error(a) : err;
}

/* Fewer than there should be only where what is replaced has fewer, but never fewer than are required. */
static void reserve_set_copies(const struct allocator *a, struct btree_node_reserve *r,
			       const struct btree_ptr *replaced)
{
	uint64_t required = a->super->options[OPT_METADATA_REPLICAS_REQUIRED];
	unsigned left = node_replicas(a);

	if (replaced) {
		r->devs = devs_left(a, replaced);
		left = devs_durability(a, r->devs);
	}
	r->copies = min(max(left, max((unsigned)required, 1u)), node_replicas(a));
	if (replaced && left < r->copies)
		r->devs = write_point_devs(a, DATA_BTREE);
}

bool allocator_node_keeps_copies(const struct allocator *a, const struct btree_node_reserve *reserve,
				 const struct btree_ptr *p)
{
	return min(devs_durability(a, devs_left(a, p)), node_replicas(a)) <= reserve->copies;
}

int allocator_node_reserve(struct allocator *a, unsigned nr, const struct btree_ptr *replaced, enum watermark watermark,
			   struct btree_node_reserve **reserve)
{
	struct btree_node_reserve *r = calloc(1, sizeof(*r) + nr * sizeof(r->slots[0]));

	if (!r)
		return -ENOMEM;
	r->watermark = node_watermark(watermark);
	reserve_set_copies(a, r, replaced);
	int err = r->watermark == WATERMARK_RECLAIM ? slots_take_writeback(a, r, nr) : slots_take_waiting(a, r, nr);
	if (err) {
		free(r);
		return err;
	}
	r->copies = UINT_MAX;
	for (unsigned i = 0; i < nr; i++)
		r->copies = min(r->copies, slot_copies(a, &r->slots[i]));
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

void allocator_node_reserve_trim(struct allocator *a, struct btree_node_reserve *reserve)
{
	bool any = reserve->nr > reserve->used;

	while (reserve->nr > reserve->used)
		pool_put(a, &reserve->slots[--reserve->nr], pool_max(a));
	/* Others wait for buckets; they may have these places. */
	if (any && atomic_load(&a->nodes.waiting_nr) && pool_has_for_all(&a->nodes))
		discards_freed(a);
}

void allocator_node_reserve_put(struct allocator *a, struct btree_node_reserve *reserve)
{
	allocator_node_reserve_trim(a, reserve);
	for (unsigned i = 0; i < reserve->used; i++)
		allocator_extent_put(a, &reserve->slots[i]);
	free(reserve);
}

/* --- when there is little --- */

static uint64_t slots_free(struct allocator *a, unsigned dev)
{
	uint64_t per_bucket = a->devs[dev].bucket_sectors / a->super->kctx.node_sectors;
	uint64_t holes = holes_are_room(a) ? node_holes_nr(a, dev) : 0;

	return holes + open_buckets_available(a, dev, WATERMARK_RECLAIM) * per_bucket;
}

/* How many nodes fit into free buckets of @devs, and holes that count, each on as many as it takes. */
static uint64_t room_of(struct allocator *a, uint64_t devs)
{
	uint64_t slots[ALLOC_DEVS_MAX] = { 0 }, low = 0, high = 0, durability = 0;

	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		if (!(devs >> dev & 1))
			continue;
		slots[dev] = slots_free(a, dev);
		high += slots[dev] * a->devs[dev].durability;
		durability += a->devs[dev].durability;
	}
	uint64_t replicas = min((uint64_t)node_replicas(a), durability);
	while (replicas && low < high) {
		uint64_t nr = low + (high - low + 1) / 2, copies = 0;

		for (unsigned dev = 0; dev < a->dev_nr; dev++)
			copies += min(slots[dev], nr) * a->devs[dev].durability;
		if (copies >= nr * replicas)
			low = nr;
		else
			high = nr - 1;
	}
	return low;
}

/* Those on which less than @nodes fit. */
static uint64_t devs_with_less(struct allocator *a, uint64_t devs, uint64_t nodes)
{
	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		if (devs >> dev & 1 && slots_free(a, dev) >= nodes)
			devs &= ~(1ull << dev);
	return devs;
}

/* What is known of it: counted again when a bucket has been taken since. */
static uint64_t room_count(struct allocator *a, uint64_t devs)
{
	struct node_pool *p = &a->nodes;

	if (atomic_exchange(&p->is_room_old, false))
		atomic_store(&p->room, room_of(a, devs));
	return atomic_load(&p->room);
}

/*
 * Who causes nodes to be written back waits, after his commit, until there is room for them, and for what moving takes:
 * write-back itself can wait for nobody, as it is what copygc needs.
 *
 * How much is that? Where a node has a bucket of its own, each that is replaced, and what that changes in its turn,
 * takes a new bucket before the old one can be had. Where nodes have few blocks their old places can be had at once
 * (node_holes.c), so room is needed for what is under way, and for as many more nodes as there may be when those that
 * have become full are replaced by two. Elsewhere holes are what copygc and write-back go on with if that wasn't
 * enough: moving changes keys, too, and more nodes may be written back for it than have become free.
 *
 * With few blocks moving can go on without gaining anything: nodes that are moved are replaced, too. So he waits only
 * as long as there is more room each time.
 */
void allocator_node_room_wait(struct allocator *a, uint64_t nodes)
{
	enum { GAINLESS_MAX = 4 }; /* looks */
	struct node_pool *p = &a->nodes;
	uint64_t most = 0;
	bool has_hope = true;

	nodes = NODE_ROOM_MIN + (holes_are_room(a) ? nodes / 2 : nodes + nodes / 2);
	if (!atomic_load_explicit(&p->is_room_old, memory_order_relaxed) &&
	    atomic_load_explicit(&p->room, memory_order_relaxed) >= nodes)
		return;
	if (holes_are_room(a) && clock_monotonic_ns() < atomic_load(&p->room_retry_ns))
		return;
	uint64_t devs = write_point_devs(a, DATA_BTREE);
	for (unsigned gainless = 0; has_hope && room_count(a, devs) < nodes;) {
		mutex_lock(&a->discards.lock);
		uint64_t seen = a->discards.freed_nr;
		has_hope = a->evacuation.has_mover;
		mutex_unlock(&a->discards.lock);
		/* What was known may be from before something became free. */
		atomic_store(&p->is_room_old, true);
		uint64_t room = room_count(a, devs);
		if (room >= nodes)
			return;
		gainless = room > most ? 0 : gainless + 1;
		most = max(most, room);
		has_hope = has_hope && (gainless < GAINLESS_MAX || !holes_are_room(a)) &&
			   discards_wait(a, seen, devs_with_less(a, devs, nodes), true);
		atomic_store(&p->is_room_old, true);
	}
	/* Moving gains nothing: it is tried again when one more bucket has been taken. */
	if (!has_hope) {
		atomic_store(&p->room, UINT64_MAX);
		atomic_store(&p->is_room_old, false);
		atomic_store(&p->room_retry_ns, clock_monotonic_ns() + GAINLESS_NS);
	}
}

bool allocator_nodes_are_low(struct allocator *a)
{
	uint64_t devs = write_point_devs(a, DATA_BTREE), roomy = devs;

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		if (open_buckets_are_low(a, devs & 1ull << dev))
			roomy &= ~(1ull << dev);
	return devs_durability(a, roomy) < min(node_replicas(a), devs_durability(a, devs));
}

int allocator_key_room(struct allocator *a)
{
	if (!counters_sectors_available(a))
		return -ENOSPC;
	if (!holes_are_room(a) || clock_monotonic_ns() >= atomic_load(&a->nodes.room_retry_ns))
		return 0;
	/* Moving gains no places for nodes, and only what is kept for who makes room is left. */
	return room_of(a, write_point_devs(a, DATA_BTREE)) < NODE_ROOM_MIN / 2 ? -ENOSPC : 0;
}
