/*
 * The node cache: nodes in memory, one copy of each, within a budget.
 *
 * Shards, each with a lock, a hash table and a clock: a ring of the shard's nodes and a hand that evicts what nobody
 * holds and nobody used since it last came by. A node is in one of three states:
 *
 *	loading		the task that wanted it first is reading it; the others wait
 *	ready		guarded by its own lock, until it is evicted
 *	failed		no replica could be read; remembered, so that it isn't tried again, and evicted like others. A
 * read that failed for want of memory, or may succeed by now, is tried again by the next task that comes.
 *
 * Budget. What a read can need at most is reserved before it starts and given back, down to what the node takes, when
 * it ends. A task that finds no room evicts; if that isn't enough, it waits for another read under way to end; if there
 * is none, everything in memory is held by somebody, and it goes over the budget. So a task waits only for tasks that
 * have their reservation, and these wait only for devices: there is no deadlock, whatever references the waiting task
 * and others hold. And at most one read at a time goes over the budget.
 *
 * Locks: a shard's, or the budget's; never two at once.
 */
#include <errno.h>
#include <string.h>

#include "btree/internal.h"

enum { BUCKETS_PER_SHARD_MIN = 64, BUCKETS_PER_SHARD_MAX = 1 << 14, NODE_BYTES_TYPICAL = 16 << 10 };

int cache_init(struct cache *c, uint64_t bytes_max, size_t node_bytes)
{
	uint64_t bucket_nr = BUCKETS_PER_SHARD_MIN;

	*c = (struct cache){ .bytes_max = bytes_max, .read_bytes = BTREE_NODE_READ_BYTES(node_bytes) };
	while (bucket_nr < BUCKETS_PER_SHARD_MAX && bucket_nr * CACHE_SHARD_NR * NODE_BYTES_TYPICAL < bytes_max)
		bucket_nr *= 2;
	c->bucket_nr = bucket_nr;

	c->shards = aligned_alloc(_Alignof(struct cache_shard), CACHE_SHARD_NR * sizeof(*c->shards));
	if (!c->shards)
		return -ENOMEM;
	mutex_init(&c->budget_lock);
	waitq_init(&c->read_done);
	bool is_complete = true;
	for (unsigned i = 0; i < CACHE_SHARD_NR; i++) {
		struct cache_shard *shard = &c->shards[i];

		*shard = (struct cache_shard){ .buckets = calloc(bucket_nr, sizeof(*shard->buckets)) };
		is_complete &= shard->buckets != NULL;
		mutex_init(&shard->lock);
		waitq_init(&shard->loaded);
	}
	if (!is_complete) {
		cache_free(c);
		return -ENOMEM;
	}
	return 0;
}

void node_free(struct btree_node *node)
{
	node_keys_free(&node->keys);
	six_lock_destroy(&node->lock);
	free(node);
}

void cache_free(struct cache *c)
{
	if (!c->shards)
		return;
	for (unsigned i = 0; i < CACHE_SHARD_NR; i++) {
		struct cache_shard *shard = &c->shards[i];

		while (shard->node_nr--) {
			struct btree_node *node = shard->hand;

			shard->hand = node->clock_next;
			node_free(node);
		}
		free(shard->buckets);
		waitq_destroy(&shard->loaded);
		mutex_destroy(&shard->lock);
	}
	waitq_destroy(&c->read_done);
	mutex_destroy(&c->budget_lock);
	free(c->shards);
	*c = (struct cache){ 0 };
}

/* --- one shard; its lock is held --- */

/* The same node is at one place at least: replicas may have been given up in between. */
static bool ptrs_overlap(const struct btree_ptr *a, const struct btree_ptr *b)
{
	for (unsigned i = 0; i < a->ptr_nr; i++)
		for (unsigned k = 0; k < b->ptr_nr; k++)
			if (a->ptrs[i].dev == b->ptrs[k].dev && a->ptrs[i].sector == b->ptrs[k].sector)
				return true;
	return false;
}

static bool node_ptr_eq(const struct node_ptr *a, const struct node_ptr *b)
{
	return a->btree_id == b->btree_id && a->level == b->level && a->ptr.seq == b->ptr.seq &&
	       a->ptr.is_range_updated == b->ptr.is_range_updated && bpos_eq(a->ptr.min_key, b->ptr.min_key) &&
	       bpos_eq(a->max_key, b->max_key) && ptrs_overlap(&a->ptr, &b->ptr);
}

uint64_t node_ptr_hash(const struct node_ptr *p)
{
	const uint64_t words[] = { p->ptr.seq, (uint64_t)p->btree_id << 8 | p->level, p->max_key.inode,
				   p->max_key.offset, p->max_key.snapshot };
	uint64_t h = 0;

	/* The finalizer of splitmix64 over each word. */
	for (unsigned i = 0; i < ARRAY_NR(words); i++) {
		h = (h ^ words[i]) + 0x9e3779b97f4a7c15ull;
		h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
		h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
		h ^= h >> 31;
	}
	return h;
}

static struct cache_shard *shard_of(struct cache *c, const struct node_ptr *p)
{
	return &c->shards[node_ptr_hash(p) % CACHE_SHARD_NR];
}

static struct btree_node **bucket_of(const struct cache *c, struct cache_shard *shard, uint64_t hash)
{
	return &shard->buckets[hash / CACHE_SHARD_NR & (c->bucket_nr - 1)];
}

static struct btree_node *shard_find(struct btree_node *node, const struct node_ptr *p)
{
	while (node && !node_ptr_eq(&node->id, p))
		node = node->hash_next;
	return node;
}

static void shard_insert(struct cache_shard *shard, struct btree_node **bucket, struct btree_node *node)
{
	node->hash_next = *bucket;
	*bucket = node;
	if (shard->hand) {
		/* Just behind the hand: it comes by last. */
		node->clock_next = shard->hand;
		node->clock_prev = shard->hand->clock_prev;
		node->clock_prev->clock_next = node->clock_next->clock_prev = node;
	} else {
		shard->hand = node->clock_next = node->clock_prev = node;
	}
	shard->node_nr++;
}

static void shard_remove(const struct cache *c, struct cache_shard *shard, struct btree_node *node)
{
	struct btree_node **link = bucket_of(c, shard, node_ptr_hash(&node->id));

	while (*link != node)
		link = &(*link)->hash_next;
	*link = node->hash_next;
	node->clock_prev->clock_next = node->clock_next;
	node->clock_next->clock_prev = node->clock_prev;
	if (shard->hand == node)
		shard->hand = --shard->node_nr ? node->clock_next : NULL;
	else
		shard->node_nr--;
}

/* Turn the clock once around at most, until @bytes are free. Returns the bytes freed. */
static uint64_t shard_evict(struct cache *c, struct cache_shard *shard, uint64_t bytes)
{
	uint64_t freed = 0;

	for (size_t left = shard->node_nr; left && freed < bytes; left--) {
		struct btree_node *node = shard->hand;

		if (!node)
			break;
		shard->hand = node->clock_next;
		if (node->state == NODE_LOADING || atomic_load_explicit(&node->refs, memory_order_acquire))
			continue;
		if (node->is_used) {
			node->is_used = false;
			continue;
		}
		freed += node->bytes;
		shard_remove(c, shard, node);
		node_free(node);
		atomic_fetch_add_explicit(&c->evictions, 1, memory_order_relaxed);
	}
	return freed;
}

/* --- budget --- */

/* Try to free @bytes: two rounds, since the first may only take the marks off. Returns whether any were. */
static bool cache_evict(struct cache *c, uint64_t bytes)
{
	unsigned start = atomic_fetch_add_explicit(&c->evict_shard, 1, memory_order_relaxed);
	uint64_t freed = 0;

	for (unsigned i = 0; i < 2 * CACHE_SHARD_NR && freed < bytes; i++) {
		struct cache_shard *shard = &c->shards[(start + i) % CACHE_SHARD_NR];

		mutex_lock(&shard->lock);
		freed += shard_evict(c, shard, bytes - freed);
		mutex_unlock(&shard->lock);
	}
	mutex_lock(&c->budget_lock);
	c->bytes -= freed;
	mutex_unlock(&c->budget_lock);
	return freed > 0;
}

static void read_begin(struct cache *c)
{
	mutex_lock(&c->budget_lock);
	while (c->bytes + c->read_bytes > c->bytes_max) {
		uint64_t missing = c->bytes + c->read_bytes - c->bytes_max;

		mutex_unlock(&c->budget_lock);
		bool is_freed = cache_evict(c, missing);
		mutex_lock(&c->budget_lock);
		if (is_freed)
			continue;
		if (!c->reads)
			break;
		waitq_wait(&c->read_done, &c->budget_lock);
	}
	c->bytes += c->read_bytes;
	c->reads++;
	mutex_unlock(&c->budget_lock);
}

static void read_end(struct cache *c, size_t bytes)
{
	mutex_lock(&c->budget_lock);
	c->bytes -= c->read_bytes - bytes;
	c->reads--;
	waitq_wake_all(&c->read_done);
	mutex_unlock(&c->budget_lock);
}

void cache_recharge(struct btrees *trees, struct btree_node *node)
{
	struct cache *c = &trees->cache;
	size_t bytes = sizeof(*node) + node_keys_bytes(&node->keys);

	if (bytes == node->bytes)
		return;
	mutex_lock(&c->budget_lock);
	c->bytes += bytes;
	c->bytes -= node->bytes;
	mutex_unlock(&c->budget_lock);
	node->bytes = bytes;
}

void cache_set_ptr(struct btrees *trees, struct btree_node *node, const struct btree_ptr *ptr)
{
	struct cache_shard *shard = shard_of(&trees->cache, &node->id);

	mutex_lock(&shard->lock);
	node->id.ptr.sectors_written = ptr->sectors_written;
	/* What makes the node's identity is read without its lock, so it isn't written when it is the same. */
	if (node->id.ptr.ptr_nr != ptr->ptr_nr) {
		node->id.ptr.ptr_nr = ptr->ptr_nr;
		memcpy(node->id.ptr.ptrs, ptr->ptrs, sizeof(ptr->ptrs));
	}
	mutex_unlock(&shard->lock);
}

void cache_shrink(struct btrees *trees)
{
	struct cache *c = &trees->cache;

	mutex_lock(&c->budget_lock);
	uint64_t over = c->bytes > c->bytes_max ? c->bytes - c->bytes_max : 0;
	mutex_unlock(&c->budget_lock);
	if (over)
		cache_evict(c, over);
}

/* --- getting a node --- */

struct btree_node *node_new(struct btrees *trees, const struct node_ptr *p)
{
	struct btree_node *node = malloc(sizeof(*node));

	if (!node)
		return NULL;
	*node = (struct btree_node){ .id = *p, .trees = trees, .state = NODE_LOADING };
	node_lock_init(node);
	return node;
}

struct btree_node *node_ref(struct btrees *trees, const struct node_ptr *p, bool *must_load)
{
	struct cache *c = &trees->cache;
	struct cache_shard *shard = shard_of(c, p);
	struct btree_node **bucket = bucket_of(c, shard, node_ptr_hash(p));

	*must_load = false;
	mutex_lock(&shard->lock);
	struct btree_node *node = shard_find(*bucket, p);
	if (!node) {
		node = node_new(trees, p);
		if (!node)
			goto out;
		shard_insert(shard, bucket, node);
		*must_load = true;
	} else if (node->state == NODE_FAILED && node->may_retry) {
		node->state = NODE_LOADING;
		*must_load = true;
	}
	atomic_fetch_add_explicit(&node->refs, 1, memory_order_relaxed);
	node->is_used = true;
out:
	mutex_unlock(&shard->lock);
	return node;
}

static int node_load_here(struct btrees *trees, struct cache_shard *shard, struct btree_node *node)
{
	struct node_keys keys = { 0 };
	uint32_t generation = 0;
	size_t old_bytes = node->bytes;

	read_begin(&trees->cache);
	int err = node_read(trees, &node->id, &keys, &generation);
	size_t bytes = sizeof(*node) + node_keys_bytes(&keys);

	mutex_lock(&shard->lock);
	node->keys = keys;
	node->generation = generation;
	/* What is read ends with a set, and these are made of blocks. */
	node->log_sectors = (uint32_t)round_up_u64(node->id.ptr.sectors_written, trees->opts.kctx->block_sectors);
	node->err = err;
	node->may_retry = err == -ENOMEM;
	node->bytes = bytes;
	node->state = err ? NODE_FAILED : NODE_READY;
	waitq_wake_all(&shard->loaded);
	mutex_unlock(&shard->lock);
	read_end(&trees->cache, bytes - old_bytes);
	return err;
}

int node_load(struct btrees *trees, struct btree_node *node, bool must_load)
{
	struct cache *c = &trees->cache;
	struct cache_shard *shard = shard_of(c, &node->id);
	int err;

	atomic_fetch_add_explicit(must_load ? &c->misses : &c->hits, 1, memory_order_relaxed);
	if (must_load) {
		err = node_load_here(trees, shard, node);
	} else {
		mutex_lock(&shard->lock);
		while (node->state == NODE_LOADING)
			waitq_wait(&shard->loaded, &shard->lock);
		err = node->state == NODE_FAILED ? node->err : 0;
		mutex_unlock(&shard->lock);
	}
	if (err)
		node_put(node);
	return err;
}

void cache_forget_failures(struct btrees *trees)
{
	for (unsigned i = 0; i < CACHE_SHARD_NR; i++) {
		struct cache_shard *shard = &trees->cache.shards[i];

		mutex_lock(&shard->lock);
		struct btree_node *node = shard->hand;
		for (size_t k = 0; k < shard->node_nr; k++, node = node->clock_next)
			node->may_retry = true;
		mutex_unlock(&shard->lock);
	}
}

void cache_insert(struct btrees *trees, struct btree_node *node)
{
	struct cache *c = &trees->cache;
	struct cache_shard *shard = shard_of(c, &node->id);

	node->state = NODE_READY;
	node->is_used = true;
	atomic_store_explicit(&node->refs, 1, memory_order_relaxed);
	cache_recharge(trees, node);
	mutex_lock(&shard->lock);
	shard_insert(shard, bucket_of(c, shard, node_ptr_hash(&node->id)), node);
	mutex_unlock(&shard->lock);
}

void node_put(struct btree_node *node)
{
	if (node)
		atomic_fetch_sub_explicit(&node->refs, 1, memory_order_release);
}

void btrees_usage(struct btrees *trees, struct btrees_usage *usage)
{
	struct cache *c = &trees->cache;

	*usage = (struct btrees_usage){
		.hits = atomic_load_explicit(&c->hits, memory_order_relaxed),
		.misses = atomic_load_explicit(&c->misses, memory_order_relaxed),
		.evictions = atomic_load_explicit(&c->evictions, memory_order_relaxed),
		.read_retries = atomic_load_explicit(&c->read_retries, memory_order_relaxed),
	};
	for (unsigned i = 0; i < CACHE_SHARD_NR; i++) {
		mutex_lock(&c->shards[i].lock);
		usage->nodes += c->shards[i].node_nr;
		mutex_unlock(&c->shards[i].lock);
	}
	mutex_lock(&c->budget_lock);
	usage->cache_bytes = c->bytes;
	usage->cache_bytes_max = c->bytes_max;
	mutex_unlock(&c->budget_lock);
}
