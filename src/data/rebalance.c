/*
 * Requests of scans. See rebalance.h.
 *
 * The btree is a write-buffered one, so what it holds now can't be read in a transaction, and a request can't count one
 * up from the last one. Whatever hasn't been there before does as well: callers give the time.
 */
#include "data/rebalance.h"

#include "base/le.h"

int rebalance_scan_request(struct btree_txn *txn, uint64_t inum, uint64_t nonce)
{
	struct bkey key = { .p = BPOS(inum, UINT64_MAX - 1, UINT32_MAX), .type = KEY_COOKIE, .value_u64s = 1 };
	uint8_t value[8];

	le64_store(value, nonce);
	return btree_txn_put(txn, BTREE_REBALANCE_WORK, &key, value, 0);
}
