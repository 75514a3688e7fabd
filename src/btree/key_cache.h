/* What the two files of the key cache share: see key_cache.c. */
#ifndef KILN_BTREE_KEY_CACHE_H
#define KILN_BTREE_KEY_CACHE_H

#include <sys/queue.h>

#include "btree/internal.h"

enum { KEY_SHARD_NR = 16 };

enum key_list { LIST_NONE, LIST_DIRTY, LIST_WANTED, LIST_NR };

struct cached_key {
	struct cached_id id;
	struct key_cache *cache;
	struct six_lock lock;
	atomic_uint refs; /* one is the table's */
	/* Changed with intent and the shard's lock, so either is enough to look. */
	struct bkey k;
	uint64_t *value;
	unsigned value_max;
	uint32_t version;
	bool is_retired; /* there is no such key any more, or of another type */
	/* guarded by intent */
	bool is_dirty; /* on a list, which has a reference */
	uint64_t seq;  /* of the newest change */
	struct journal_pin pin;
	/* guarded by the shard's lock */
	bool is_used; /* since the clock's hand passed */
	LIST_ENTRY(cached_key) by_hash;
	TAILQ_ENTRY(cached_key) clock;
	/* guarded by the cache's lock */
	enum key_list list;
	TAILQ_ENTRY(cached_key) dirty;
};

LIST_HEAD(hash_bucket, cached_key);
TAILQ_HEAD(key_queue, cached_key);

struct key_shard {
	struct mutex lock;
	struct hash_bucket *buckets;
	struct key_queue clock; /* the hand is at its head */
	size_t key_nr;
} __attribute__((aligned(64)));

struct key_cache {
	struct btrees *trees;
	atomic_uint btrees; /* mask; tests add to it */
	atomic_bool is_on;
	struct key_shard *shards;
	size_t bucket_nr, keys_max, dirty_max; /* buckets and keys per shard */
	atomic_size_t dirty_nr;		       /* changed under `lock` */

	struct mutex lock; /* guards the members below */
	struct waitq work, done;
	struct key_queue lists[LIST_NR]; /* the longest dirty first */
	size_t wanted_nr;
	bool is_busy, is_stopping;
	struct task *task;
	struct job job;
	struct room_hope hope; /* the task's */
};

/* Lock the shard of @e, under which readers look at it. */
struct key_shard *entry_shard_lock(struct cached_key *e);
/* There is no such entry any more. The shard is locked. */
void entry_remove(struct key_shard *shard, struct cached_key *e);

#endif
