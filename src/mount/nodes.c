/*
 * FUSE node ids. See nodes.h.
 *
 * The table is an array of entries with a free list through it, and a hash table of indexes (chained through the
 * entries) to find an object's entry again.
 */
#include "mount/nodes.h"

#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/sync.h"

enum { FUSE_ROOT_NODE = 1, SUBVOL_OF_OWN_IDS = 1 };
static const uint64_t table_bit = 1ull << 63;
static const uint32_t none = UINT32_MAX;

struct entry {
	struct kiln_node node;
	uint64_t references; /* 0: free */
	uint32_t next;	     /* in the hash chain, or in the free list */
};

struct nodes {
	struct kiln_node root;
	struct mutex lock;
	struct entry *entries;
	size_t nr, capacity;
	uint32_t free_first;
	uint32_t *chains;
	uint32_t chain_nr; /* a power of two */
	size_t used;
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

static uint32_t *chain_of(struct nodes *n, struct kiln_node node)
{
	return &n->chains[node_hash(node) & (n->chain_nr - 1)];
}

/* Twice as many chains. Staying with the old ones is only slower, so failure is no error. */
static void chains_grow(struct nodes *n)
{
	uint32_t nr = n->chain_nr * 2;
	uint32_t *chains = malloc(nr * sizeof(*chains));

	if (!chains)
		return;
	memset(chains, 0xff, nr * sizeof(*chains));
	free(n->chains);
	n->chains = chains;
	n->chain_nr = nr;
	for (uint32_t i = 0; i < n->nr; i++) {
		if (!n->entries[i].references)
			continue;
		uint32_t *chain = chain_of(n, n->entries[i].node);
		n->entries[i].next = *chain;
		*chain = i;
	}
}

struct nodes *nodes_new(struct kiln_node root)
{
	enum { CHAINS_FIRST = 1024 };
	struct nodes *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	n->chains = malloc(CHAINS_FIRST * sizeof(*n->chains));
	if (!n->chains) {
		free(n);
		return NULL;
	}
	memset(n->chains, 0xff, CHAINS_FIRST * sizeof(*n->chains));
	n->chain_nr = CHAINS_FIRST;
	n->root = root;
	n->free_first = none;
	mutex_init(&n->lock);
	return n;
}

void nodes_free(struct nodes *n)
{
	if (!n)
		return;
	mutex_destroy(&n->lock);
	free(n->entries);
	free(n->chains);
	free(n);
}

/* Index of the entry of @node, made if there is none; none when memory is short. */
static uint32_t entry_get(struct nodes *n, struct kiln_node node)
{
	for (uint32_t i = *chain_of(n, node); i != none; i = n->entries[i].next)
		if (n->entries[i].node.ino == node.ino && n->entries[i].node.subvol == node.subvol)
			return i;

	uint32_t idx = n->free_first;
	if (idx != none) {
		n->free_first = n->entries[idx].next;
	} else {
		if (n->nr == none || array_grow(&n->entries, &n->capacity, n->nr + 1, sizeof(n->entries[0])))
			return none;
		idx = (uint32_t)n->nr++;
	}
	uint32_t *chain = chain_of(n, node);
	n->entries[idx] = (struct entry){ .node = node, .next = *chain };
	*chain = idx;
	n->used++;
	return idx;
}

uint64_t nodes_get(struct nodes *n, struct kiln_node node)
{
	if (node.ino == n->root.ino && node.subvol == n->root.subvol)
		return FUSE_ROOT_NODE;
	if (node.subvol == SUBVOL_OF_OWN_IDS)
		return node.ino;

	mutex_lock(&n->lock);
	uint32_t idx = entry_get(n, node);
	if (idx != none)
		n->entries[idx].references++;
	if (n->used > n->chain_nr)
		chains_grow(n);
	mutex_unlock(&n->lock);
	return idx == none ? 0 : table_bit | idx;
}

void nodes_forget(struct nodes *n, uint64_t id, uint64_t count)
{
	if (!(id & table_bit))
		return;

	uint32_t idx = (uint32_t)id;
	mutex_lock(&n->lock);
	if (idx < n->nr && n->entries[idx].references) {
		struct entry *e = &n->entries[idx];

		e->references -= count < e->references ? count : e->references;
		if (!e->references) {
			uint32_t *link = chain_of(n, e->node);
			while (*link != idx)
				link = &n->entries[*link].next;
			*link = e->next;
			e->next = n->free_first;
			n->free_first = idx;
			n->used--;
		}
	}
	mutex_unlock(&n->lock);
}

bool nodes_find(struct nodes *n, uint64_t id, struct kiln_node *node)
{
	if (id == FUSE_ROOT_NODE) {
		*node = n->root;
		return true;
	}
	if (!(id & table_bit)) {
		*node = (struct kiln_node){ .ino = id, .subvol = SUBVOL_OF_OWN_IDS };
		return true;
	}

	uint32_t idx = (uint32_t)id;
	mutex_lock(&n->lock);
	bool found = idx < n->nr && n->entries[idx].references;
	if (found)
		*node = n->entries[idx].node;
	mutex_unlock(&n->lock);
	return found;
}
