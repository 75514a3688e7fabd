/*
 * Merging: nodes that deletions have left with little are joined with a neighbour, so that a btree shrinks with what is
 * in it.
 *
 * Whoever has written a node, or made a new one, says so here (merge_want()). If it has become small enough, its place
 * goes into a queue, and one task, the *merger*, tries to join it with one of its neighbours (interior.c), waiting for
 * other interior updates as long as it takes. A place is a btree, a level and a position, so the node there may be
 * another by then, or gone; what is there counts. What a merge makes is looked at in its turn, and so is the parent,
 * which has a pointer less, and below two parents that became one the children that became neighbours: so merges go on
 * for as long as they can, along a level, up and down the tree. Trees don't get
 * lower: a root that has one child left stays (02 §12.2).
 *
 * Hysteresis. Two nodes are joined when what they make leaves two thirds free (nodes_are_small() in interior.c), while
 * a node is split when it is full, into pieces that are together more than that. A node that didn't fit to its
 * neighbours is tried again only when it has become smaller by a step (a STEP_PART-th of a node), or empty.
 *
 * Invariant, when the merger is at rest: of two neighbours below one parent that together would leave two thirds and
 * two steps free, none has been written since without being tried.
 *
 * The queue is bounded. Of a btree that had more, all leaves are looked at, one after another, when the queue is empty.
 */
#include <errno.h>
#include <stdlib.h>

#include "btree/internal.h"

enum { QUEUE_NR = 1024, STEP_PART = 24 };

struct merge_place {
	unsigned btree_id, level;
	struct bpos pos;
};

struct merger {
	struct btrees *trees;
	struct mutex lock; /* guards the members below */
	struct waitq work; /* for the task */
	struct waitq rest; /* it has nothing to do */
	struct merge_place queue[QUEUE_NR];
	unsigned first, nr;
	/* Btrees whose leaves must be looked at, each from a position on. */
	bool is_scanned[BTREE_NR_MAX];
	struct bpos scan_pos[BTREE_NR_MAX];
	bool is_busy, is_stopping;
	struct task *task;
	struct job job;
};

/* --- what is wanted --- */

static void place_add(struct merger *m, unsigned btree_id, unsigned level, struct bpos pos)
{
	mutex_lock(&m->lock);
	if (m->nr < QUEUE_NR) {
		m->queue[(m->first + m->nr++) % QUEUE_NR] = (struct merge_place){ btree_id, level, pos };
	} else if (!level) {
		m->is_scanned[btree_id] = true;
		m->scan_pos[btree_id] = POS_MIN;
	}
	waitq_wake_all(&m->work);
	mutex_unlock(&m->lock);
}

void merge_want(struct btrees *trees, struct btree_node *node)
{
	uint32_t u64s = node->keys.live_u64s, u64s_max = node_u64s_max(trees), tried = node->merge_u64s;

	if (!trees->merger || u64s > u64s_max / 3) {
		node->merge_u64s = 0;
	} else if (tried && u64s + 1 >= tried) {
		node->merge_u64s = u64s + 1;
	} else if (!tried || !u64s || u64s + 1 + u64s_max / STEP_PART <= tried) {
		node->merge_u64s = u64s + 1;
		place_add(trees->merger, node->id.btree_id, node->id.level, node->id.max_key);
	}
}

/* --- the task --- */

/* The next place to look at. The lock is held. */
static bool place_take(struct merger *m, struct merge_place *place)
{
	if (m->nr) {
		*place = m->queue[m->first];
		m->first = (m->first + 1) % QUEUE_NR;
		m->nr--;
		return true;
	}
	for (unsigned id = 0; id < BTREE_NR_MAX; id++)
		if (m->is_scanned[id]) {
			*place = (struct merge_place){ .btree_id = id, .pos = m->scan_pos[id] };
			return true;
		}
	return false;
}

/* A leaf up to @max has been looked at. */
static void scan_advance(struct merger *m, unsigned btree_id, struct bpos pos, struct bpos max)
{
	mutex_lock(&m->lock);
	/* Unless it has begun anew meanwhile. */
	if (m->is_scanned[btree_id] && bpos_eq(m->scan_pos[btree_id], pos)) {
		m->is_scanned[btree_id] = !bpos_eq(max, SPOS_MAX);
		if (m->is_scanned[btree_id])
			m->scan_pos[btree_id] = bpos_successor(max);
	}
	mutex_unlock(&m->lock);
}

/* It couldn't be merged for now: the next time it is written, it is tried again. */
static void node_set_untried(struct btree_node *node)
{
	six_lock_intent(&node->lock);
	six_lock_write(&node->lock);
	node->merge_u64s = 0;
	six_unlock_write(&node->lock);
	six_unlock_intent(&node->lock);
}

/* What were the edges of @node, which has been merged with a neighbour: children there have got one, too. */
static void edges_add(struct merger *m, const struct btree_node *node)
{
	const struct node_ptr *id = &node->id;

	place_add(m, id->btree_id, id->level - 1, id->max_key);
	if (!bpos_eq(id->ptr.min_key, POS_MIN))
		place_add(m, id->btree_id, id->level - 1, bpos_predecessor(id->ptr.min_key));
}

static const char has_work[] = "nodes have become small";

static bool journal_has_time(struct btrees *trees)
{
	job_waits(&trees->merger->job, "the journal must have space for everybody");
	int err = interior_journal_wait(trees, WATERMARK_NORMAL);
	job_works(&trees->merger->job, has_work);
	return !err;
}

/*
 * Errors keep a node from being merged now, which does no harm; where nothing can be written any more, others find out.
 * Returns the end of the node that is there, or of what can't be read.
 */
static struct bpos place_merge(struct btrees *trees, const struct merge_place *at)
{
	struct tree_place place;

	if (write_error(trees))
		return SPOS_MAX;
	int ret = tree_descend(trees, at->btree_id, at->level, at->pos, &place);
	if (ret <= 0)
		return ret ? place.max : SPOS_MAX;
	six_unlock_read(tree_leaf_lock(trees, at->btree_id, place.node));
	if (!place.node)
		return SPOS_MAX;
	if (interior_can_merge(trees, place.node) && journal_has_time(trees)) {
		if (interior_replace(trees, place.node, INTERIOR_MERGE, WATERMARK_BTREE, true))
			node_set_untried(place.node);
		else if (at->level)
			edges_add(trees->merger, place.node);
	}
	node_put(place.node);
	return place.max;
}

static void merger_task(void *arg)
{
	struct merger *m = arg;
	struct merge_place place;

	mutex_lock(&m->lock);
	while (!m->is_stopping) {
		bool is_scan = !m->nr;

		if (!place_take(m, &place)) {
			m->is_busy = false;
			waitq_wake_all(&m->rest);
			job_waits(&m->job, "no node has become small");
			waitq_wait(&m->work, &m->lock);
			continue;
		}
		m->is_busy = true;
		job_works(&m->job, has_work);
		mutex_unlock(&m->lock);
		struct bpos max = place_merge(m->trees, &place);
		if (is_scan)
			scan_advance(m, place.btree_id, place.pos, max);
		mutex_lock(&m->lock);
	}
	m->is_busy = false;
	waitq_wake_all(&m->rest);
	job_stops(&m->job);
	mutex_unlock(&m->lock);
}

const struct job *merger_job(const struct merger *m) { return &m->job; }

/* --- starting, waiting, stopping --- */

int merger_open(struct btrees *trees, struct merger **out)
{
	struct merger *m = calloc(1, sizeof(*m));

	if (!m)
		return -ENOMEM;
	m->trees = trees;
	mutex_init(&m->lock);
	waitq_init(&m->work);
	waitq_init(&m->rest);
	job_init(&m->job, "node merging", "makes one node of two that have little in them");
	int err = task_start(&m->task, "btree-merger", merger_task, m);
	if (err) {
		merger_close(m);
		return err;
	}
	*out = m;
	return 0;
}

void merger_stop(struct merger *m)
{
	if (!m || !m->task)
		return;
	mutex_lock(&m->lock);
	m->is_stopping = true;
	waitq_wake_all(&m->work);
	mutex_unlock(&m->lock);
	task_join(m->task);
	m->task = NULL;
}

void merger_close(struct merger *m)
{
	if (!m)
		return;
	merger_stop(m);
	waitq_destroy(&m->rest);
	waitq_destroy(&m->work);
	mutex_destroy(&m->lock);
	free(m);
}

static bool merger_has_work(const struct merger *m)
{
	bool has_work = m->nr || m->is_busy;

	for (unsigned id = 0; id < BTREE_NR_MAX; id++)
		has_work |= m->is_scanned[id];
	return has_work;
}

bool merger_flush(struct merger *m)
{
	mutex_lock(&m->lock);
	bool any = merger_has_work(m);
	while (merger_has_work(m) && !m->is_stopping)
		waitq_wait(&m->rest, &m->lock);
	mutex_unlock(&m->lock);
	return any;
}
