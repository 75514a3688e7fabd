/*
 * What extents lack, and requests of scans. See rebalance.h.
 *
 * The btree is a write-buffered one, so what it holds now can't be read in a transaction, and a request can't count one
 * up from the last one. Whatever hasn't been there before does as well: callers give the time.
 */
#include "data/rebalance.h"

#include "base/le.h"
#include "data/write_internal.h"

void rebalance_refresh(const struct data *data, const struct rebalance_aim *aim, bool is_shared, struct extent_value *v)
{
	struct extent_rebalance wanted = aim->wanted;
	uint64_t devs = aim->devs;
	bool is_lacking = false, had = is_shared && v->has_rebalance;

	if (had && v->rebalance.compression)
		wanted.compression = v->rebalance.compression;
	if (had && v->rebalance.target) {
		wanted.target = v->rebalance.target;
		devs = allocator_target_devs(data->writer->allocator, wanted.target);
	}
	unsigned compression = compression_option_type(wanted.compression);
	for (unsigned i = 0; i < v->ptr_nr; i++)
		is_lacking |= extent_ptr_needs_rebalance(&v->ptrs[i], compression, devs ? devs : UINT64_MAX);
	v->has_rebalance = is_lacking || had;
	v->rebalance = wanted;
}

int rebalance_scan_request(struct btree_txn *txn, uint64_t inum, uint64_t nonce)
{
	struct bkey key = { .p = BPOS(inum, UINT64_MAX - 1, UINT32_MAX), .type = KEY_COOKIE, .value_u64s = 1 };
	uint8_t value[8];

	le64_store(value, nonce);
	return btree_txn_put(txn, BTREE_REBALANCE_WORK, &key, value, 0);
}
