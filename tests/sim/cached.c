/* How much is done with cached copies of data, seen by the linker's --wrap where the engine's rooms call one another.
 */
#include "alloc/allocator.h"
#include "alloc/internal.h"
#include "sim.h"

int __real_allocator_extent_get(struct allocator *a, const struct alloc_request *req, uint32_t sectors_max,
				struct alloc_extent *e);
void __real_allocator_cached_read(struct allocator *a, const struct extent_ptr *ptr);
int __real_discards_txn_run(struct allocator *a, const char *name, btree_txn_fn fn, void *ctx);
int __real_alloc_key_put(struct btree_txn *txn, unsigned dev, uint64_t bucket, struct alloc *value, unsigned flags);
int __wrap_alloc_key_put(struct btree_txn *txn, unsigned dev, uint64_t bucket, struct alloc *value, unsigned flags);
int __wrap_allocator_extent_get(struct allocator *a, const struct alloc_request *req, uint32_t sectors_max,
				struct alloc_extent *e);
void __wrap_allocator_cached_read(struct allocator *a, const struct extent_ptr *ptr);
int __wrap_discards_txn_run(struct allocator *a, const char *name, btree_txn_fn fn, void *ctx);

static struct sim *watched;
static bool has_put; /* a key whose bucket is taken back: one task does that */

void cached_watch(struct sim *s) { watched = s; }

int __wrap_allocator_extent_get(struct allocator *a, const struct alloc_request *req, uint32_t sectors_max,
				struct alloc_extent *e)
{
	int err = __real_allocator_extent_get(a, req, sectors_max, e);

	for (unsigned i = 0; !err && i < e->ptr_nr; i++)
		if (e->ptrs[i].is_cached)
			COUNT(watched, cached_made, 1);
	return err;
}

void __wrap_allocator_cached_read(struct allocator *a, const struct extent_ptr *ptr)
{
	COUNT(watched, cached_read, 1);
	if (watched->is_after_crash)
		COUNT(watched, cached_read_after_crash, 1);
	__real_allocator_cached_read(a, ptr);
}

int __wrap_alloc_key_put(struct btree_txn *txn, unsigned dev, uint64_t bucket, struct alloc *value, unsigned flags)
{
	has_put |= flags & BTREE_PUT_HOOK_FLAG;
	return __real_alloc_key_put(txn, dev, bucket, value, flags);
}

int __wrap_discards_txn_run(struct allocator *a, const char *name, btree_txn_fn fn, void *ctx)
{
	has_put = false;
	int err = __real_discards_txn_run(a, name, fn, ctx);
	if (!err && has_put)
		COUNT(watched, cached_taken_back, 1);
	return err;
}
