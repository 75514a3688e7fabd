/*
 * Transactions: what one has read and put. Nothing can start one yet, so there is nothing to be found.
 */
#include <errno.h>

#include "btree/internal.h"

const struct btree_update *txn_update_find(const struct btree_txn *txn, unsigned btree_id, unsigned level,
					   struct bpos pos)
{
	(void)txn, (void)btree_id, (void)level, (void)pos;
	return NULL;
}

int txn_read_note(struct btree_txn *txn, unsigned btree_id, unsigned level, struct btree_node *leaf,
		  struct bpos min_pos, struct bpos max_pos)
{
	(void)txn, (void)btree_id, (void)level, (void)leaf, (void)min_pos, (void)max_pos;
	return -EOPNOTSUPP;
}
