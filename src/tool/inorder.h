/*
 * Jobs worked on in parallel and finished in order.
 *
 * Reading many small files is a matter of waiting, and of verifying and writing, for each: several tasks work ahead.
 * What must happen in order (a directory's times after its last entry, a tar stream) is done by the caller's own task,
 * as each job reaches the front. Memory is bounded: there is a fixed number of jobs, which are used again and again.
 */
#ifndef KILN_TOOL_INORDER_H
#define KILN_TOOL_INORDER_H

#include <stdbool.h>
#include <stddef.h>

struct inorder;

/*
 * @jobs: an array of @nr jobs of @job_bytes each, which the caller owns. @work is called from any task, for several
 * jobs at once; @finish from the task that calls inorder_next() and inorder_drain(), for one after the other in the
 * order they were submitted. NULL when memory is short.
 */
struct inorder *inorder_start(void *jobs, size_t nr, size_t job_bytes, void (*work)(void *ctx, void *job),
			      void (*finish)(void *ctx, void *job), void *ctx);
/* All jobs must be finished: inorder_drain() first. */
void inorder_end(struct inorder *o);

/* A job that is free to be filled in; if none is, the oldest is waited for and finished. */
void *inorder_next(struct inorder *o);
/* Submit the job that inorder_next() returned. @has_work: false if there is only something to finish. */
void inorder_submit(struct inorder *o, bool has_work);
/* Wait for all jobs and finish them. */
void inorder_drain(struct inorder *o);

#endif
