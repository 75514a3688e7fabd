/*
 * Write points: streams of allocations, each with an open bucket per replica (07 §14.2, §14.3).
 *
 * Users' writes are spread over the write points by who writes, so that what one writes lies together. Btree nodes have
 * one of their own, and so have moves. Devices are striped by free space: each write point remembers for each device
 * how much it had from it, in parts of what is free there, and takes the one that gave least. What it remembers fades,
 * for those that were to choose from: 07 §14.3 has it fade for all.
 */
#include <errno.h>
#include <string.h>

#include "alloc/internal.h"

void write_points_init(struct allocator *a)
{
	for (unsigned i = 0; i < WRITE_POINTS_NR; i++) {
		memset(&a->points[i], 0, sizeof(a->points[i]));
		mutex_init_ranked(&a->points[i].lock, LOCK_WRITE_POINT);
	}
}

void write_points_destroy(struct allocator *a)
{
	for (unsigned i = 0; i < WRITE_POINTS_NR; i++)
		mutex_destroy(&a->points[i].lock);
}

void write_points_drop(struct allocator *a, bool to_partial)
{
	for (unsigned i = 0; i < WRITE_POINTS_NR; i++) {
		struct write_point *w = &a->points[i];

		/* What copygc took from the last buckets would be used up by those who wait for it. */
		if (to_partial && i == WRITE_POINT_COPYGC)
			continue;
		mutex_lock(&w->lock);
		while (w->open_nr) {
			uint16_t idx = w->open[--w->open_nr];

			if (to_partial)
				open_bucket_put_partial(a, idx);
			else
				open_bucket_put(a, idx);
		}
		mutex_unlock(&w->lock);
	}
}

/* --- devices --- */

void write_point_stripe(uint64_t next[ALLOC_DEVS_MAX], uint64_t devs, unsigned dev, uint64_t available)
{
	uint64_t inc = (1ull << 48) / (available ? available : 1), scale = next[dev] / 4;

	if (__builtin_add_overflow(next[dev], inc, &next[dev]))
		next[dev] = UINT64_MAX;
	for (unsigned i = 0; i < ALLOC_DEVS_MAX; i++)
		if (devs >> i & 1)
			next[i] -= min(next[i], scale);
}

uint64_t target_devs(const struct allocator *a, unsigned target)
{
	uint64_t devs = UINT64_MAX;

	if (target >= TARGET_GROUP_FIRST)
		devs = target - TARGET_GROUP_FIRST < a->group_nr ? a->group_devs[target - TARGET_GROUP_FIRST] : 0;
	else if (target >= TARGET_DEVICE_FIRST)
		devs = target - TARGET_DEVICE_FIRST < a->dev_nr && a->devs[target - TARGET_DEVICE_FIRST].is_member
			       ? 1ull << (target - TARGET_DEVICE_FIRST)
			       : 0;
	return devs ? devs : UINT64_MAX;
}

/* Devices that may hold new data of a type, whatever their durability. */
static uint64_t devs_writable(const struct allocator *a, unsigned data_type)
{
	uint64_t devs = 0;

	for (unsigned dev = 0; dev < a->dev_nr; dev++) {
		if (atomic_load(&a->devs[dev].is_writable) && a->devs[dev].data_allowed >> data_type & 1)
			devs |= 1ull << dev;
	}
	return devs;
}

uint64_t allocator_target_devs(const struct allocator *a, uint16_t target)
{
	uint64_t devs = target ? target_devs(a, target) : UINT64_MAX;

	return devs != UINT64_MAX && devs & devs_writable(a, DATA_USER) ? devs : 0;
}

unsigned devs_durability(const struct allocator *a, uint64_t devs)
{
	unsigned durability = 0;

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		durability += devs >> dev & 1 ? a->devs[dev].durability : 0u;
	return durability;
}

int allocator_device_leave(struct allocator *a, unsigned dev)
{
	unsigned durability = devs_durability(a, devs_writable(a, DATA_BTREE) & ~(1ull << dev));

	if (durability < max(a->super->options[OPT_METADATA_REPLICAS_REQUIRED], (uint64_t)1))
		return -EROFS;
	atomic_store(&a->devs[dev].is_writable, false);
	node_pool_sift(a);
	return 0;
}

/* --- choosing buckets --- */

/* What has been chosen for one request. Each bucket holds a reference, which the write point gets. */
struct choice {
	struct allocator *a;
	const struct alloc_request *req;
	struct write_point *w;
	uint32_t sectors_min;
	unsigned nr, durability;
	uint16_t open[ALLOC_PTRS_MAX];
	uint64_t devs_left; /* may still be chosen */
	bool has_cache;	    /* one of durability 0 has been */
	bool is_short;	    /* some device had no bucket */
	int err;
};

static unsigned dev_durability(const struct allocator *a, unsigned dev) { return a->devs[dev].durability; }

static bool choice_is_done(const struct choice *c)
{
	return c->err || c->durability >= c->req->replicas || c->nr == ALLOC_PTRS_MAX;
}

static void choose(struct choice *c, uint16_t idx)
{
	unsigned dev = c->a->open.buckets[idx].dev;

	c->open[c->nr++] = idx;
	c->devs_left &= ~(1ull << dev);
	c->durability += dev_durability(c->a, dev);
	c->has_cache |= !dev_durability(c->a, dev);
}

static bool dev_fits(const struct choice *c, unsigned dev, uint64_t devs)
{
	return c->devs_left & devs & 1ull << dev && (dev_durability(c->a, dev) || !c->has_cache);
}

/* Buckets that the write point has already. What is full is let go. */
static void choose_own(struct choice *c, uint64_t devs)
{
	struct write_point *w = c->w;

	for (unsigned i = 0; i < w->open_nr;) {
		struct open_bucket *b = &c->a->open.buckets[w->open[i]];
		bool is_full = b->sectors_free < c->sectors_min, is_other = b->data_type != c->req->data_type;

		if (!is_full && !is_other && (choice_is_done(c) || !dev_fits(c, b->dev, devs))) {
			i++;
			continue;
		}
		uint16_t idx = w->open[i];
		memmove(&w->open[i], &w->open[i + 1], (--w->open_nr - i) * sizeof(w->open[0]));
		if (is_full)
			open_bucket_put(c->a, idx);
		else if (is_other)
			open_bucket_put_partial(c->a, idx);
		else
			choose(c, idx);
	}
}

/* The device that gave this write point least; -1 when none is left. */
static int dev_next(const struct choice *c, uint64_t devs)
{
	int best = -1;

	for (unsigned dev = 0; dev < c->a->dev_nr; dev++)
		if (dev_fits(c, dev, devs) && (best < 0 || c->w->next[dev] < c->w->next[best]))
			best = (int)dev;
	return best;
}

static void choose_from_devs(struct choice *c, uint64_t devs)
{
	const uint64_t all = devs;
	int dev;

	while (!choice_is_done(c) && (dev = dev_next(c, devs)) >= 0) {
		uint16_t idx = open_bucket_take_partial(c->a, c->req->data_type, 1ull << dev, c->sectors_min);
		int err = idx == OPEN_BUCKET_NONE
				  ? open_bucket_new(c->a, (unsigned)dev, c->req->data_type, c->req->watermark, &idx)
				  : 0;

		if (!err) {
			choose(c, idx);
			write_point_stripe(c->w->next, all, (unsigned)dev,
					   alloc_dev_available(c->a, (unsigned)dev, WATERMARK_NORMAL));
			continue;
		}
		/* A cache without room is no reason to wait. */
		devs &= ~(1ull << dev);
		if (err == -ENOSPC)
			c->is_short |= dev_durability(c->a, (unsigned)dev) > 0;
		else
			c->err = err;
	}
}

/* Give back buckets that aren't needed for the durability that is wanted. */
static void choice_drop_surplus(struct choice *c)
{
	for (unsigned i = 0; i < c->nr;) {
		unsigned durability = dev_durability(c->a, c->a->open.buckets[c->open[i]].dev);

		if (!durability || c->durability < c->req->replicas + durability) {
			i++;
			continue;
		}
		c->durability -= durability;
		open_bucket_put_partial(c->a, c->open[i]);
		memmove(&c->open[i], &c->open[i + 1], (--c->nr - i) * sizeof(c->open[0]));
	}
}

/* 0, -EROFS: there aren't enough devices; -ENOSPC: not enough room on them now; or an error. */
static int choice_make(struct choice *c)
{
	const struct alloc_request *req = c->req;
	uint64_t devs = devs_writable(c->a, req->data_type), durable = 0, wanted = target_devs(c->a, req->target);
	unsigned required = max(req->replicas_required, 1u);

	for (unsigned dev = 0; dev < c->a->dev_nr; dev++)
		if (dev_durability(c->a, dev))
			durable |= 1ull << dev;
	/* A device of durability 0 must have been asked for, and holds nothing but data. */
	uint64_t first = devs & wanted;
	if (wanted == UINT64_MAX || req->data_type != DATA_USER || req->is_without_caches)
		first &= durable;
	c->devs_left = devs & ~req->dev_exclude;
	choose_own(c, first);
	choose_from_devs(c, first);
	if (!choice_is_done(c) && wanted != UINT64_MAX) {
		choose_own(c, devs & durable);
		choose_from_devs(c, devs & durable);
	}
	choice_drop_surplus(c);
	if (c->err)
		return c->err;
	if (c->durability >= req->replicas || (c->durability >= required && !c->is_short))
		return 0;
	return c->is_short ? -ENOSPC : -EROFS;
}

/* --- what the caller gets --- */

static void extent_fill(struct choice *c, uint32_t sectors_max, struct alloc_extent *e)
{
	struct allocator *a = c->a;
	uint32_t block = a->super->kctx.block_sectors;
	uint32_t sectors = sectors_max;

	for (unsigned i = 0; i < c->nr; i++)
		sectors = min(sectors, a->open.buckets[c->open[i]].sectors_free);
	if (c->req->data_type != DATA_BTREE)
		sectors = (uint32_t)round_down_u64(sectors, block);
	*e = (struct alloc_extent){ .ptr_nr = c->nr, .sectors = sectors };
	for (unsigned i = 0; i < c->nr; i++) {
		struct open_bucket *b = &a->open.buckets[c->open[i]];

		e->ptrs[i] = (struct extent_ptr){
			.sector = (b->bucket + 1) * a->devs[b->dev].bucket_sectors - b->sectors_free,
			.dev = b->dev,
			.gen = b->gen,
			.is_cached = !dev_durability(a, b->dev),
		};
		b->sectors_free -= sectors;
		e->open_bucket[i] = c->open[i];
		open_bucket_get(a, c->open[i]);
	}
}

/* What was chosen is what the write point goes on with; what it held besides, others may have. */
static void choice_keep(struct choice *c)
{
	struct write_point *w = c->w;

	while (w->open_nr)
		open_bucket_put_partial(c->a, w->open[--w->open_nr]);
	for (unsigned i = 0; i < c->nr; i++)
		w->open[w->open_nr++] = c->open[i];
}

static struct write_point *point_of(struct allocator *a, const struct alloc_request *req)
{
	if (req->data_type == DATA_BTREE)
		return &a->points[WRITE_POINT_BTREE];
	if (req->watermark == WATERMARK_COPYGC)
		return &a->points[WRITE_POINT_COPYGC];
	if (req->watermark == WATERMARK_STRIPE)
		return &a->points[WRITE_POINT_MOVE];
	return &a->points[(req->writer * 0x9e3779b97f4a7c15ull >> 32) % WRITE_POINTS_USER];
}

static int extent_try(struct allocator *a, const struct alloc_request *req, uint32_t sectors_min, uint32_t sectors_max,
		      struct alloc_extent *e)
{
	struct choice c = { .a = a, .req = req, .w = point_of(a, req), .sectors_min = sectors_min };

	mutex_lock(&c.w->lock);
	int err = choice_make(&c);
	if (!err)
		extent_fill(&c, sectors_max, e);
	choice_keep(&c);
	mutex_unlock(&c.w->lock);
	return err;
}

uint64_t write_point_devs(const struct allocator *a, unsigned data_type)
{
	uint64_t devs = devs_writable(a, data_type);

	for (unsigned dev = 0; dev < a->dev_nr; dev++)
		if (!dev_durability(a, dev))
			devs &= ~(1ull << dev);
	return devs;
}

/*
 * Is data to be moved away for a request? Not for one that moving, or what it waits for, makes: those live on what
 * others leave them.
 */
static bool may_evacuate(const struct alloc_request *req)
{
	return req->watermark < WATERMARK_COPYGC || req->watermark == WATERMARK_BTREE;
}

int allocator_extent_get(struct allocator *a, const struct alloc_request *req, uint32_t sectors_max,
			 struct alloc_extent *e)
{
	/* A node is one piece; data is in blocks. */
	uint32_t sectors_min =
		req->data_type == DATA_BTREE ? sectors_max : max(req->sectors_min, a->super->kctx.block_sectors);
	bool has_dropped = false, has_yielded = false;

	*e = (struct alloc_extent){ 0 };
	for (;;) {
		if (!atomic_load(&a->is_started))
			return -EROFS;
		mutex_lock(&a->discards.lock);
		uint64_t seen = a->discards.freed_nr;
		bool is_stopping = req->watermark == WATERMARK_COPYGC && a->evacuation.is_stopping;
		mutex_unlock(&a->discards.lock);
		if (is_stopping)
			return -ENOSPC;

		int err = extent_try(a, req, sectors_min, sectors_max, e);
		if (!err && req->data_type == DATA_USER && req->watermark == WATERMARK_NORMAL)
			evacuation_written(a, e->sectors);
		if (err != -ENOSPC)
			return err;
		if (!has_dropped) {
			/* What other write points sit on is better used than refused. */
			write_points_drop(a, true);
			has_dropped = true;
			continue;
		}
		/* Nor is what is left in buckets of another type of use, or too little for this one. (Nodes need it.)
		 */
		open_buckets_drop_partial(a, req->data_type, sectors_min);
		/* Once: who wants nodes may take the same ones again, and give them back. */
		if (!has_yielded && req->data_type != DATA_BTREE) {
			node_pool_yield(a);
			has_yielded = true;
			continue;
		}
		if (!req->can_wait) {
			discards_kick(a);
			return -EAGAIN;
		}
		if (!discards_wait(a, seen, write_point_devs(a, req->data_type) & ~req->dev_exclude, may_evacuate(req)))
			return discards_wait_error(a);
		has_dropped = false;
	}
}

void allocator_extent_put(struct allocator *a, struct alloc_extent *e)
{
	for (unsigned i = 0; i < e->ptr_nr; i++)
		open_bucket_put(a, e->open_bucket[i]);
	*e = (struct alloc_extent){ 0 };
}
