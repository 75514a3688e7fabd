/*
 * The key cache: keys that change often (inodes, alloc keys), each with a lock of its own, and put into its leaf when
 * the journal wants its space back instead of each time. Here is how they are found and read; key_cache_write.c changes
 * them.
 *
 * What counts of a key, its *entry* says where there is one, and else its leaf. An entry that says something newer than
 * the leaf is *dirty*: it pins the journal since it is, and is on a list of which one task puts keys into their leaves.
 *
 * One rule makes this simple: **which keys there are, leaves say; entries only say what is in them.** An entry stands
 * for a key that its leaf has, of the same type, at the same position, and no whiteout. A commit that makes a key,
 * takes it away or changes its type changes the leaf, and the entry with it. So
 *
 * - whoever looks for keys (iterators, by snapshot too) looks at leaves, and asks here what the key it found says;
 * - an entry at exactly the position that is looked for is what its snapshot sees: nothing can be nearer. No leaf is
 *   looked at then;
 * - nodes are split, merged and rewritten with what they have: it may be old, but it is at its place.
 *
 * Transactions (txn.h) read a leaf of such a btree for which keys it has, and validate that; what keys say they read,
 * lock and validate here, entry by entry. A key that a transaction finds in its leaf comes into the cache by that.
 *
 * Locks. An entry's SIX lock is taken for intent only, after all nodes: whoever has it alone may change the entry.
 * Readers don't lock it. They copy what it says under the lock of its shard, under which it is changed too, and
 * remember its version, which counts the changes. Entries come in while their leaf is locked for read, and go when
 * nobody refers to them and they are clean; a leaf is locked for write when it gets what an entry says. So who has the
 * leaf locked, and finds no entry, has in it what counts.
 *
 * Memory is bounded: beyond keys_max entries others go, and beyond dirty_max dirty ones commits write to leaf and
 * entry. Only entries that transactions under way refer to can exceed it.
 *
 * There is none before the journal has been replayed, since its keys go into leaves. When writing has stopped after an
 * error, dirty entries stay, so that what can still be read is the newest.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "btree/key_cache.h"

enum {
	KEYS_MAX_MIN = 512,
	KEYS_MAX_MAX = 1 << 16,
	KEY_BYTES_TYPICAL = 384, /* an entry, its value, and what the allocator adds */
	MEMORY_SHARE = 32,	 /* that part of the node cache's budget */
	EVICT_LOOKS_MAX = 16,
	VALUE_U64S_SPARE = 4, /* values that grow mostly do so by little */
};

/* --- the table --- */

bool key_cache_is_on(const struct btrees *trees)
{
	return trees->key_cache && atomic_load_explicit(&trees->key_cache->is_on, memory_order_acquire);
}

bool key_cache_has(const struct btrees *trees, unsigned btree_id, unsigned level)
{
	return !level && btree_id < 32 && key_cache_is_on(trees) &&
	       (atomic_load_explicit(&trees->key_cache->btrees, memory_order_relaxed) & 1u << btree_id);
}

static uint64_t id_hash(struct cached_id id)
{
	uint64_t h = (id.pos.offset ^ id.pos.inode << 40 ^ (uint64_t)id.pos.snapshot << 8 ^ id.btree_id) *
		     0x9e3779b97f4a7c15ull;

	return h ^ h >> 29;
}

static struct key_shard *shard_of(struct key_cache *kc, uint64_t hash) { return &kc->shards[hash % KEY_SHARD_NR]; }

static struct hash_bucket *bucket_of(const struct key_cache *kc, struct key_shard *shard, uint64_t hash)
{
	return &shard->buckets[hash / KEY_SHARD_NR & (kc->bucket_nr - 1)];
}

static bool id_eq(struct cached_id a, struct cached_id b) { return a.btree_id == b.btree_id && bpos_eq(a.pos, b.pos); }

/* With a reference, or NULL. The shard's lock is held. */
static struct cached_key *shard_find(const struct key_cache *kc, struct key_shard *shard, uint64_t hash,
				     struct cached_id id)
{
	struct cached_key *e;

	LIST_FOREACH (e, bucket_of(kc, shard, hash), by_hash)
		if (id_eq(e->id, id)) {
			cached_key_get_again(e);
			e->is_used = true;
			return e;
		}
	return NULL;
}

static void entry_free(struct cached_key *e)
{
	six_lock_destroy(&e->lock);
	free(e->value);
	free(e);
}

void cached_key_put(struct cached_key *e)
{
	if (e && atomic_fetch_sub_explicit(&e->refs, 1, memory_order_acq_rel) == 1)
		entry_free(e);
}

void cached_key_get_again(struct cached_key *e) { atomic_fetch_add_explicit(&e->refs, 1, memory_order_relaxed); }

void entry_remove(struct key_shard *shard, struct cached_key *e)
{
	LIST_REMOVE(e, by_hash);
	TAILQ_REMOVE(&shard->clock, e, clock);
	shard->key_nr--;
}

/* Turn the clock until there is room for one entry more, but not for long. */
static void shard_evict(const struct key_cache *kc, struct key_shard *shard)
{
	for (unsigned i = 0; i < EVICT_LOOKS_MAX && shard->key_nr >= kc->keys_max; i++) {
		struct cached_key *e = TAILQ_FIRST(&shard->clock);

		/* With the lock held nobody can get the first reference beside the table's. */
		if (!e->is_used && atomic_load_explicit(&e->refs, memory_order_acquire) == 1) {
			entry_remove(shard, e);
			entry_free(e);
			continue;
		}
		e->is_used = false;
		TAILQ_REMOVE(&shard->clock, e, clock);
		TAILQ_INSERT_TAIL(&shard->clock, e, clock);
	}
}

struct six_lock *cached_key_lock(struct cached_key *e) { return &e->lock; }
bool cached_key_is_retired(const struct cached_key *e) { return e->is_retired; }
uint32_t cached_key_version(const struct cached_key *e) { return e->version; }

struct cached_id cached_key_id_of_lock(const struct six_lock *lock)
{
	return container_of(lock, struct cached_key, lock)->id;
}

struct cached_id cached_key_id(const struct cached_key *e) { return e->id; }

/* --- reading --- */

/* The shard's lock is held, and one reference @read's. */
static void entry_copy(struct cached_key *e, struct bkey_ref *k, uint64_t *value, struct cached_read *read)
{
	k->k = e->k;
	k->value = value;
	if (e->k.value_u64s)
		memcpy(value, e->value, bkey_value_bytes(&e->k));
	if (read)
		*read = (struct cached_read){ .key = e, .version = e->version };
	else
		cached_key_put(e);
}

bool key_cache_read(struct btrees *trees, unsigned btree_id, struct bpos pos, struct bkey_ref *k, uint64_t *value,
		    struct cached_read *read)
{
	if (!key_cache_has(trees, btree_id, 0))
		return false;
	struct key_cache *kc = trees->key_cache;
	struct cached_id id = { pos, btree_id };
	uint64_t hash = id_hash(id);
	struct key_shard *shard = shard_of(kc, hash);

	mutex_lock(&shard->lock);
	struct cached_key *e = shard_find(kc, shard, hash, id);
	if (e)
		entry_copy(e, k, value, read);
	mutex_unlock(&shard->lock);
	return e;
}

static struct cached_key *entry_new(struct key_cache *kc, struct cached_id id, const struct bkey_ref *k)
{
	unsigned value_max = k->k.value_u64s + (unsigned)VALUE_U64S_SPARE;
	struct cached_key *e = malloc(sizeof(*e));
	uint64_t *value = malloc(value_max * sizeof(*value));

	if (!e || !value) {
		free(e);
		free(value);
		return NULL;
	}
	*e = (struct cached_key){ .id = id, .cache = kc, .k = k->k, .value = value, .value_max = value_max };
	cached_lock_init(&e->lock);
	atomic_init(&e->refs, 2);
	if (k->k.value_u64s)
		memcpy(value, k->value, bkey_value_bytes(&k->k));
	return e;
}

int key_cache_enter(struct btrees *trees, unsigned btree_id, struct bkey_ref *k, uint64_t *value,
		    struct cached_read *read)
{
	struct key_cache *kc = trees->key_cache;
	struct cached_id id = { k->k.p, btree_id };
	uint64_t hash = id_hash(id);
	struct key_shard *shard = shard_of(kc, hash);

	*read = (struct cached_read){ 0 };
	if (key_type_is_whiteout(k->k.type))
		return 0;
	mutex_lock(&shard->lock);
	struct cached_key *e = shard_find(kc, shard, hash, id);
	if (!e) {
		shard_evict(kc, shard);
		e = entry_new(kc, id, k);
		if (e) {
			LIST_INSERT_HEAD(bucket_of(kc, shard, hash), e, by_hash);
			TAILQ_INSERT_TAIL(&shard->clock, e, clock);
			shard->key_nr++;
		}
	}
	if (e)
		entry_copy(e, k, value, read);
	mutex_unlock(&shard->lock);
	return e ? 0 : -ENOMEM;
}

/* --- changing; the entry is locked for intent --- */

/* Lock the shard of @e, under which readers look at it. */
struct key_shard *entry_shard_lock(struct cached_key *e)
{
	struct key_shard *shard = shard_of(e->cache, id_hash(e->id));

	mutex_lock(&shard->lock);
	return shard;
}

int cached_key_reserve(struct cached_key *e, unsigned value_u64s)
{
	if (value_u64s <= e->value_max)
		return 0;
	unsigned value_max = value_u64s + (unsigned)VALUE_U64S_SPARE;
	uint64_t *value = malloc(value_max * sizeof(*value));

	if (!value)
		return -ENOMEM;
	if (e->k.value_u64s)
		memcpy(value, e->value, bkey_value_bytes(&e->k));
	struct key_shard *shard = entry_shard_lock(e);
	free(e->value);
	e->value = value;
	e->value_max = value_max;
	mutex_unlock(&shard->lock);
	return 0;
}

/* --- beginning and end --- */

static int shards_init(struct key_cache *kc)
{
	bool is_complete = true;

	kc->shards = aligned_alloc(_Alignof(struct key_shard), KEY_SHARD_NR * sizeof(*kc->shards));
	if (!kc->shards)
		return -ENOMEM;
	for (unsigned i = 0; i < KEY_SHARD_NR; i++) {
		struct key_shard *shard = &kc->shards[i];

		*shard = (struct key_shard){ .buckets = calloc(kc->bucket_nr, sizeof(*shard->buckets)) };
		is_complete &= shard->buckets != NULL;
		mutex_init(&shard->lock);
		TAILQ_INIT(&shard->clock);
	}
	return is_complete ? 0 : -ENOMEM;
}

int key_cache_open(struct btrees *trees, uint32_t btrees)
{
	struct key_cache *kc = calloc(1, sizeof(*kc));
	uint64_t keys_max = trees->opts.memory_bytes / MEMORY_SHARE / KEY_BYTES_TYPICAL;

	if (!kc)
		return -ENOMEM;
	keys_max = min(max(keys_max, (uint64_t)KEYS_MAX_MIN), (uint64_t)KEYS_MAX_MAX);
	kc->trees = trees;
	atomic_init(&kc->btrees, btrees);
	kc->keys_max = (size_t)keys_max / KEY_SHARD_NR;
	kc->dirty_max = (size_t)keys_max / 2;
	for (kc->bucket_nr = 1; kc->bucket_nr < kc->keys_max; kc->bucket_nr *= 2)
		;
	mutex_init(&kc->lock);
	waitq_init(&kc->work);
	waitq_init(&kc->done);
	for (unsigned i = 0; i < LIST_NR; i++)
		TAILQ_INIT(&kc->lists[i]);
	job_init(&kc->job, "key cache",
		 "puts inodes and alloc keys into their btrees that so far only the journal has");
	trees->key_cache = kc;
	int err = shards_init(kc);
	if (err)
		key_cache_close(trees);
	return err;
}

uint64_t key_cache_key_nr(struct key_cache *kc)
{
	uint64_t nr = 0;

	for (unsigned i = 0; i < KEY_SHARD_NR; i++) {
		mutex_lock(&kc->shards[i].lock);
		nr += kc->shards[i].key_nr;
		mutex_unlock(&kc->shards[i].lock);
	}
	return nr;
}

void key_cache_begin(struct btrees *trees)
{
	if (trees->key_cache)
		atomic_store_explicit(&trees->key_cache->is_on, true, memory_order_release);
}

void key_cache_close(struct btrees *trees)
{
	struct key_cache *kc = trees->key_cache;
	struct cached_key *e;

	if (!kc)
		return;
	assert(!kc->task);
	for (unsigned i = 0; kc->shards && i < KEY_SHARD_NR; i++) {
		struct key_shard *shard = &kc->shards[i];

		while ((e = TAILQ_FIRST(&shard->clock))) {
			entry_remove(shard, e);
			entry_free(e); /* whatever list it is on */
		}
		free(shard->buckets);
		mutex_destroy(&shard->lock);
	}
	free(kc->shards);
	waitq_destroy(&kc->done);
	waitq_destroy(&kc->work);
	mutex_destroy(&kc->lock);
	free(kc);
	trees->key_cache = NULL;
}
