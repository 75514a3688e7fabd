/*
 * What rebalance is to do (06 §12). Extents say what they lack (rebalance_refresh(), write_internal.h), and their
 * trigger puts them into the list of work; here, that everything in a file, or all of the filesystem, be looked at anew
 * because what is wanted of it has changed.
 *
 * Nothing works these requests off yet; they are kept for whoever does.
 */
#ifndef KILN_DATA_REBALANCE_H
#define KILN_DATA_REBALANCE_H

#include "btree/txn.h"

/*
 * In a transaction: a scan of inode @inum, 0: of everything. @nonce tells this request from every earlier one, as who
 * has done a scan only takes the request back that he saw. 0, or what btree_txn_put() fails with.
 */
int rebalance_scan_request(struct btree_txn *txn, uint64_t inum, uint64_t nonce);

#endif
