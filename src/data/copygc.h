/*
 * Copygc: data and nodes in buckets that are used in part move together, so that buckets become empty (07 §16).
 *
 * One task, with its own share of the last free buckets (WATERMARK_COPYGC) and its own stream of allocations. It works
 * when what is fragmented is more than half of what is available, and whenever somebody can't get a bucket: then until
 * there is one, or nothing can be gained any more. The emptiest buckets go first. What a bucket holds its backpointers
 * say; moving it is move.h's work, nodes are rewritten.
 */
#ifndef KILN_DATA_COPYGC_H
#define KILN_DATA_COPYGC_H

#include "data/write.h"

/* After data_start_write(), and when recovery is done. data_stop_write() ends it. 0, -ENOMEM or -EAGAIN. */
int data_start_copygc(struct data *data);

struct copygc_stats {
	/* Waiting: it goes on when so much has been written; UINT64_MAX: not before it is needed. Working: 0. */
	uint64_t wait_bytes;
	bool has_gained; /* the last pass */
	uint64_t passes, passes_needed, passes_gainless;
	uint64_t buckets_emptied, buckets_left_alone; /* left alone: something in them can't be read */
	uint64_t bytes_moved, extents_moved, nodes_rewritten;
	uint64_t extents_changed; /* were others by the time they had been copied */
};
void copygc_stats(struct data *data, struct copygc_stats *stats);

/* For tests: move whatever is fragmented, however much is available. */
void copygc_set_eager(struct data *data);
/* NULL: it isn't running. */
const struct job *copygc_job(const struct data *data);
/* For data_stop_write(). */
void copygc_stop(struct data *data);

#endif
