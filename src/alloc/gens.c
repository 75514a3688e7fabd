/* Bucket generations, read side (see gens.h). */
#include "alloc/gens.h"

#include "format/alloc.h"

int bucket_gen_lookup(struct btrees *trees, unsigned dev, uint64_t bucket, uint8_t *gen)
{
	struct bkey_copy found;
	unsigned i = bucket % BUCKET_GENS_PER_KEY;
	int n = btree_lookup(trees, BTREE_BUCKET_GENS, BPOS(dev, bucket / BUCKET_GENS_PER_KEY, 0), &found);

	if (n < 0)
		return n;
	if (n && found.k.k.type == KEY_BUCKET_GENS && i < bkey_value_bytes(&found.k.k)) {
		*gen = ((const uint8_t *)found.k.value)[i];
		return 1;
	}
	/* A bucket whose 256 neighbours were never reused has no key here. */
	*gen = 0;
	if (btree_root_level(trees, BTREE_BUCKET_GENS) >= 0)
		return 1;

	/* None at all: generations are all 0, not copied yet (upgraded filesystems), or stripped with the alloc btree.
	 */
	n = btree_lookup(trees, BTREE_ALLOC, BPOS(dev, bucket, 0), &found);
	if (n < 0)
		return n;
	if (!n)
		return btree_root_level(trees, BTREE_ALLOC) >= 0;

	struct alloc a;
	n = alloc_decode(found.k, &a, NULL);
	if (n < 0)
		return n;
	*gen = a.gen;
	return 1;
}
