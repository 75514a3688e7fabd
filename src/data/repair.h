/*
 * Read repair: a copy that was found bad by a read, while another one served, is replaced.
 *
 * Readers note what they found in a short list; one task, which data_start_repair() starts, takes from it and moves
 * (move.h): a new copy is written from a good one, then a transaction takes the bad pointer away. Btree nodes are
 * rewritten as a whole. Nothing is written in place. What doesn't fit into the list, or into the space there is, is
 * left for the next read that meets it, so readers never wait for repairs.
 *
 * While users read and write it works half of the time at most.
 *
 * What is found before there is a task, by the reads of recovery, waits in the list.
 */
#ifndef KILN_DATA_REPAIR_H
#define KILN_DATA_REPAIR_H

#include "data/write.h"

struct repair_list;

/* After data_start_write(), and when recovery is done. data_stop_write() ends it. 0, -ENOMEM or -EAGAIN. */
int data_start_repair(struct data *data);
/* Wait until nothing is left to be done. */
void data_repair_wait(struct data *data);
/*
 * A copy of the node at @pos of @level turned out to be bad, with @err, and another served. Any context that may take a
 * lock.
 */
void data_repair_node(struct data *data, unsigned btree_id, unsigned level, struct bpos pos,
		      const struct extent_ptr *ptr, int err);

struct data_repair_stats {
	uint64_t found;		  /* bad copies, each as often as it was met */
	uint64_t extents, nodes;  /* repaired: copies of data, each once; nodes, that were rewritten */
	uint64_t failed, dropped; /* couldn't be repaired; found no place in the list */
	uint64_t pauses;	  /* for users' reads and writes */
};
void data_repair_stats(struct data *data, struct data_repair_stats *stats);

/* --- for the data room --- */

int repair_list_new(struct repair_list **list);
void repair_list_free(struct repair_list *list); /* NULL is allowed */
/* A copy of the extent @k at @ptr is bad. */
void repair_extent(struct data *data, unsigned btree_id, struct bpos pos, const struct extent_ptr *ptr, int err);
const struct job *repair_job(const struct data *data);
/* For data_stop_write(). What is in the list stays there. */
void repair_stop(struct data *data);

#endif
