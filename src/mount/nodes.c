/*
 * FUSE node ids. See nodes.h.
 *
 * The table is in shards, chosen by the object's hash, each with a lock of its own. A shard has its entries in chunks
 * that never move, a free list through each chunk, and a hash table of their places, chained through them as well. A
 * chunk of which nothing is in use is given up, but for the last one with free places: what the kernel is made to
 * forget (prune.c) goes in the order of the table, so that whole chunks become free.
 */
#include "mount/nodes.h"

#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/sync.h"

enum {
	FUSE_ROOT_NODE = 1,
	SUBVOL_OF_OWN_IDS = 1,
	SHARD_NR = 16,
	SHARD_SHIFT = 32, /* in ids, above the place in the shard */
	CHUNK_ENTRIES = 1024,
	CHAINS_FIRST = 256,
};
static const uint64_t table_bit = 1ull << 63;
static const uint64_t dead_bit = 1ull << 63;
static const uint32_t none = UINT32_MAX;

struct entry {
	uint64_t ino; /* with dead_bit */
	uint32_t subvol;
	uint32_t next;		  /* in the hash chain, or in the free list */
	uint64_t references : 63; /* 0: free */
	uint64_t is_unnamed : 1;  /* never had a name when it was marked dead */
};

struct chunk {
	struct entry *entries; /* NULL: it was given up */
	uint32_t used;
	uint32_t free_first; /* place */
	uint32_t next;	     /* in one of the shard's lists */
};

struct shard {
	struct mutex lock;
	struct chunk *chunks;
	size_t chunk_nr, chunk_capacity, chunk_made_nr; /* the last without those that were given up */
	uint32_t with_free, given_up;			/* lists of chunks: with free places, and without entries */
	uint32_t *chains;
	uint32_t chain_nr; /* a power of two */
	uint32_t used;
	uint32_t dead_nr;
};

struct nodes {
	struct kiln_node root;
	uint64_t nr; /* atomic */
	/* Where nodes_next() goes on. */
	unsigned next_shard;
	uint32_t next_place;
	struct shard shards[SHARD_NR];
};

static uint64_t node_hash(struct kiln_node node)
{
	/* Multiplicative hashing with the odd constants of splitmix64. */
	uint64_t h = node.ino * 0xbf58476d1ce4e5b9 ^ (uint64_t)node.subvol * 0x94d049bb133111eb;

	return h ^ h >> 31;
}

uint64_t nodes_visible_ino(struct kiln_node node)
{
	return node.subvol == SUBVOL_OF_OWN_IDS ? node.ino : node_hash(node) | table_bit;
}

static bool is_root(const struct nodes *n, struct kiln_node node)
{
	return node.ino == n->root.ino && node.subvol == n->root.subvol;
}

static unsigned shard_nr(struct kiln_node node) { return node_hash(node) % SHARD_NR; }

static struct entry *entry_at(const struct shard *s, uint32_t place)
{
	return &s->chunks[place / CHUNK_ENTRIES].entries[place % CHUNK_ENTRIES];
}

/* NULL: nothing is there. */
static struct entry *entry_in_use(const struct shard *s, uint32_t place)
{
	bool is_there = place / CHUNK_ENTRIES < s->chunk_nr && s->chunks[place / CHUNK_ENTRIES].entries;
	struct entry *e = is_there ? entry_at(s, place) : NULL;

	return e && e->references ? e : NULL;
}

static uint32_t place_end(const struct shard *s) { return (uint32_t)s->chunk_nr * CHUNK_ENTRIES; }

static struct kiln_node entry_node(const struct entry *e)
{
	return (struct kiln_node){ .ino = e->ino & ~dead_bit, .subvol = e->subvol };
}

static uint32_t *chain_of(struct shard *s, struct kiln_node node)
{
	return &s->chains[node_hash(node) / SHARD_NR & (s->chain_nr - 1)];
}

/* --- making and freeing --- */

void nodes_free(struct nodes *n)
{
	if (!n)
		return;
	for (unsigned i = 0; i < SHARD_NR; i++) {
		struct shard *s = &n->shards[i];

		for (size_t c = 0; c < s->chunk_nr; c++)
			free(s->chunks[c].entries);
		free(s->chunks);
		free(s->chains);
		mutex_destroy(&s->lock);
	}
	free(n);
}

struct nodes *nodes_new(struct kiln_node root)
{
	struct nodes *n = calloc(1, sizeof(*n));
	bool has_memory = n;

	if (!n)
		return NULL;
	n->root = root;
	for (unsigned i = 0; i < SHARD_NR; i++) {
		struct shard *s = &n->shards[i];

		mutex_init(&s->lock);
		s->with_free = s->given_up = none;
		s->chain_nr = CHAINS_FIRST;
		s->chains = malloc(CHAINS_FIRST * sizeof(*s->chains));
		if (s->chains)
			memset(s->chains, 0xff, CHAINS_FIRST * sizeof(*s->chains));
		has_memory = has_memory && s->chains;
	}
	if (!has_memory) {
		nodes_free(n);
		return NULL;
	}
	return n;
}

/* --- entries; all with the shard's lock held --- */

static uint32_t entry_find(struct shard *s, struct kiln_node node)
{
	uint32_t place = *chain_of(s, node);

	while (place != none) {
		const struct entry *e = entry_at(s, place);

		if ((e->ino & ~dead_bit) == node.ino && e->subvol == node.subvol)
			break;
		place = e->next;
	}
	return place;
}

/* Twice as many chains. Staying with the old ones is only slower, so failure is no error. */
static void chains_grow(struct shard *s)
{
	uint32_t nr = s->chain_nr * 2;
	uint32_t *chains = malloc(nr * sizeof(*chains));

	if (!chains)
		return;
	memset(chains, 0xff, nr * sizeof(*chains));
	free(s->chains);
	s->chains = chains;
	s->chain_nr = nr;
	for (uint32_t i = 0; i < place_end(s); i++) {
		struct entry *e = entry_in_use(s, i);

		if (!e)
			continue;
		uint32_t *chain = chain_of(s, entry_node(e));
		e->next = *chain;
		*chain = i;
	}
}

/* A chunk of free places, at the head of the list of those. False when memory is short. */
static bool chunk_make(struct shard *s)
{
	uint32_t nr = s->given_up;
	struct entry *entries = malloc(CHUNK_ENTRIES * sizeof(*entries));

	if (!entries ||
	    (nr == none && (s->chunk_nr == none / CHUNK_ENTRIES ||
			    array_grow(&s->chunks, &s->chunk_capacity, s->chunk_nr + 1, sizeof(s->chunks[0]))))) {
		free(entries);
		return false;
	}
	if (nr == none)
		nr = (uint32_t)s->chunk_nr++;
	else
		s->given_up = s->chunks[nr].next;
	for (uint32_t i = 0; i < CHUNK_ENTRIES; i++)
		entries[i] = (struct entry){ .next = i + 1 < CHUNK_ENTRIES ? nr * CHUNK_ENTRIES + i + 1 : none };
	s->chunks[nr] = (struct chunk){ entries, 0, nr * CHUNK_ENTRIES, s->with_free };
	s->with_free = nr;
	s->chunk_made_nr++;
	return true;
}

/* A free place, or none when memory is short. */
static uint32_t place_take(struct shard *s)
{
	if (s->with_free == none && !chunk_make(s))
		return none;

	struct chunk *c = &s->chunks[s->with_free];
	uint32_t place = c->free_first;

	c->used++;
	c->free_first = entry_at(s, place)->next;
	if (c->free_first == none)
		s->with_free = c->next;
	return place;
}

static void place_give(struct shard *s, uint32_t place)
{
	uint32_t nr = place / CHUNK_ENTRIES, *link = &s->with_free;
	struct chunk *c = &s->chunks[nr];

	if (c->free_first == none) {
		c->next = s->with_free;
		s->with_free = nr;
	}
	entry_at(s, place)->next = c->free_first;
	c->free_first = place;
	if (--c->used || (s->with_free == nr && c->next == none))
		return;
	while (*link != nr)
		link = &s->chunks[*link].next;
	*link = c->next;
	free(c->entries);
	c->entries = NULL;
	c->next = s->given_up;
	s->given_up = nr;
	s->chunk_made_nr--;
}

static uint32_t entry_make(struct shard *s, struct kiln_node node)
{
	uint32_t place = place_take(s);

	if (place == none)
		return none;
	uint32_t *chain = chain_of(s, node);
	*entry_at(s, place) = (struct entry){ .ino = node.ino, .subvol = node.subvol, .next = *chain };
	*chain = place;
	s->used++;
	return place;
}

static void entry_free(struct shard *s, uint32_t place)
{
	struct entry *e = entry_at(s, place);
	uint32_t *link = chain_of(s, entry_node(e));

	while (*link != place)
		link = &entry_at(s, *link)->next;
	*link = e->next;
	e->references = 0;
	s->used--;
	s->dead_nr -= !!(e->ino & dead_bit);
	place_give(s, place);
}

/* --- for callers --- */

static uint64_t id_of(struct kiln_node node, unsigned shard, uint32_t place)
{
	return node.subvol == SUBVOL_OF_OWN_IDS ? node.ino : table_bit | (uint64_t)shard << SHARD_SHIFT | place;
}

uint64_t nodes_get(struct nodes *n, struct kiln_node node)
{
	if (is_root(n, node))
		return FUSE_ROOT_NODE;

	unsigned shard = shard_nr(node);
	struct shard *s = &n->shards[shard];

	mutex_lock(&s->lock);
	uint32_t place = entry_find(s, node);
	if (place == none)
		place = entry_make(s, node);
	if (place != none) {
		entry_at(s, place)->references++;
		if (s->used > s->chain_nr)
			chains_grow(s);
	}
	bool is_new = place != none && entry_at(s, place)->references == 1;
	mutex_unlock(&s->lock);
	if (is_new)
		__atomic_add_fetch(&n->nr, 1, __ATOMIC_RELAXED);
	return place == none ? 0 : id_of(node, shard, place);
}

/* The shard, locked, and the place in it of an id that the kernel holds; NULL for one that it can't hold. */
static struct shard *id_lock(struct nodes *n, uint64_t id, uint32_t *place)
{
	struct kiln_node own = { .ino = id, .subvol = SUBVOL_OF_OWN_IDS };
	bool is_in_table = id & table_bit;
	uint64_t shard = is_in_table ? (id & ~table_bit) >> SHARD_SHIFT : shard_nr(own);

	if (shard >= SHARD_NR)
		return NULL;
	struct shard *s = &n->shards[shard];
	mutex_lock(&s->lock);
	*place = is_in_table ? (uint32_t)id : entry_find(s, own);
	if (entry_in_use(s, *place))
		return s;
	mutex_unlock(&s->lock);
	return NULL;
}

bool nodes_forget(struct nodes *n, uint64_t id, uint64_t count, struct kiln_node *node)
{
	uint32_t place;
	bool is_dead = false;
	struct shard *s = id == FUSE_ROOT_NODE ? NULL : id_lock(n, id, &place);

	if (!s)
		return false;
	struct entry *e = entry_at(s, place);
	e->references -= count < e->references ? count : (uint64_t)e->references;
	if (!e->references) {
		is_dead = e->ino & dead_bit;
		*node = entry_node(e);
		entry_free(s, place);
		__atomic_sub_fetch(&n->nr, 1, __ATOMIC_RELAXED);
	}
	mutex_unlock(&s->lock);
	return is_dead;
}

bool nodes_find(struct nodes *n, uint64_t id, struct kiln_node *node)
{
	uint32_t place;

	if (id == FUSE_ROOT_NODE) {
		*node = n->root;
		return true;
	}
	if (!(id & table_bit)) {
		*node = (struct kiln_node){ .ino = id, .subvol = SUBVOL_OF_OWN_IDS };
		return true;
	}
	struct shard *s = id_lock(n, id, &place);
	if (!s)
		return false;
	*node = entry_node(entry_at(s, place));
	mutex_unlock(&s->lock);
	return true;
}

uint64_t nodes_id(struct nodes *n, struct kiln_node node)
{
	if (is_root(n, node))
		return FUSE_ROOT_NODE;

	unsigned shard = shard_nr(node);
	struct shard *s = &n->shards[shard];

	mutex_lock(&s->lock);
	uint32_t place = entry_find(s, node);
	mutex_unlock(&s->lock);
	return place == none ? 0 : id_of(node, shard, place);
}

uint64_t nodes_nr(const struct nodes *n) { return __atomic_load_n(&n->nr, __ATOMIC_RELAXED); }

uint32_t nodes_next(struct nodes *n, uint64_t *ids, uint32_t max)
{
	uint32_t nr = 0;

	for (unsigned looked = 0; looked <= SHARD_NR && nr < max; looked++) {
		struct shard *s = &n->shards[n->next_shard];

		mutex_lock(&s->lock);
		for (; n->next_place < place_end(s) && nr < max; n->next_place++) {
			const struct entry *e = entry_in_use(s, n->next_place);

			if (e && !(e->ino & dead_bit))
				ids[nr++] = id_of(entry_node(e), n->next_shard, n->next_place);
		}
		bool is_end = n->next_place >= place_end(s);
		mutex_unlock(&s->lock);
		if (is_end) {
			n->next_shard = (n->next_shard + 1) % SHARD_NR;
			n->next_place = 0;
		}
	}
	return nr;
}

bool nodes_mark_dead(struct nodes *n, struct kiln_node node)
{
	struct shard *s = &n->shards[shard_nr(node)];

	mutex_lock(&s->lock);
	uint32_t place = entry_find(s, node);
	struct entry *e = place == none ? NULL : entry_at(s, place);
	bool is_new = e && !(e->ino & dead_bit);
	if (is_new) {
		e->ino |= dead_bit;
		s->dead_nr++;
	}
	mutex_unlock(&s->lock);
	return is_new;
}

void nodes_mark_unnamed(struct nodes *n, struct kiln_node node)
{
	struct shard *s = &n->shards[shard_nr(node)];

	nodes_mark_dead(n, node);
	mutex_lock(&s->lock);
	uint32_t place = entry_find(s, node);
	if (place != none)
		entry_at(s, place)->is_unnamed = true;
	mutex_unlock(&s->lock);
}

static bool is_dead(struct nodes *n, struct kiln_node node, bool *is_unnamed)
{
	struct shard *s = &n->shards[shard_nr(node)];

	mutex_lock(&s->lock);
	uint32_t place = entry_find(s, node);
	bool is_dead = place != none && entry_at(s, place)->ino & dead_bit;
	*is_unnamed = is_dead && entry_at(s, place)->is_unnamed;
	mutex_unlock(&s->lock);
	return is_dead;
}

bool nodes_is_dead(struct nodes *n, struct kiln_node node)
{
	bool is_unnamed;

	return is_dead(n, node, &is_unnamed);
}

bool nodes_is_gone(struct nodes *n, struct kiln_node node)
{
	bool is_unnamed;

	return is_dead(n, node, &is_unnamed) && !is_unnamed;
}

struct nodes_usage nodes_usage(struct nodes *n)
{
	struct nodes_usage u = { .bytes = sizeof(*n) };

	for (unsigned i = 0; i < SHARD_NR; i++) {
		struct shard *s = &n->shards[i];

		mutex_lock(&s->lock);
		u.objects += s->used;
		u.dead += s->dead_nr;
		u.bytes += s->chunk_made_nr * CHUNK_ENTRIES * sizeof(struct entry) + s->chain_nr * sizeof(*s->chains) +
			   s->chunk_capacity * sizeof(s->chunks[0]);
		mutex_unlock(&s->lock);
	}
	return u;
}
