/* Copygc. See copygc.h. */
#include "data/copygc.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "alloc/bucket.h"
#include "data/move.h"
#include "data/write_internal.h"

enum {
	FRAGMENTS_NR = 16,     /* looked at together */
	BACKPOINTERS_NR = 128, /* the same */
	PASS_BUCKETS = 16,     /* emptied in a pass, if that gained a bucket */
	LEFT_ALONE_NR = 64,
	NODE_BUCKETS_JUDGED = 8,
	EVACUATE_TRIES = 3,
	IDLE_FULL_NUM = 7,	   /* what is fuller than this many ... */
	IDLE_FULL_DEN = 8,	   /* ... of these isn't worth moving before somebody waits for space */
	MOVED_PER_WRITTEN = 8,	   /* sectors moved for each that is written, at most, unless somebody waits */
	GAINLESS_WAIT_BUCKETS = 4, /* written before a pass is tried again after one that gained nothing */
};

/* A bucket with something that can't be moved; tried again in its next life. */
struct left_alone {
	unsigned dev;
	uint64_t bucket;
	uint8_t gen;
};

struct copygc {
	struct data *data;
	struct allocator *allocator;
	struct data_mover *mover;
	struct task *task;
	struct job job;
	struct left_alone left_alone[LEFT_ALONE_NR];
	unsigned left_alone_nr; /* ever */
	atomic_bool is_eager;
	struct mutex lock; /* of what follows */
	struct copygc_stats stats;
};

/* --- what it says --- */

/* It waits for the sectors, or 0: it works. */
static void stats_wait(struct copygc *c, uint64_t wait_sectors)
{
	mutex_lock(&c->lock);
	c->stats.wait_bytes = wait_sectors > UINT64_MAX >> SECTOR_SHIFT ? UINT64_MAX : wait_sectors << SECTOR_SHIFT;
	mutex_unlock(&c->lock);
}

void copygc_stats(struct data *data, struct copygc_stats *stats)
{
	struct copygc *c = data->writer ? data->writer->copygc : NULL;

	*stats = (struct copygc_stats){ 0 };
	if (!c)
		return;
	mutex_lock(&c->lock);
	*stats = c->stats;
	mutex_unlock(&c->lock);
}

const struct job *copygc_job(const struct data *data)
{
	return data->writer && data->writer->copygc ? &data->writer->copygc->job : NULL;
}

/* --- one bucket --- */

struct bucket_pass {
	struct copygc *c;
	struct allocator_fragment f;
	struct data_move_stats moved;
	uint64_t nodes;
	bool is_needed; /* somebody waits for space */
	bool is_bad;	/* something in it can't be moved: the rest is */
	int err;	/* that ends it */
};

/* 0 is none. */
static void error_note(struct bucket_pass *b, int err)
{
	bool is_bad = err == -EIO || err == -EOPNOTSUPP || err == -KILN_E_INVALID;

	b->is_bad |= is_bad;
	if (!is_bad && !b->err)
		b->err = err;
}

struct bucket_user {
	uint64_t sector; /* on the device */
	struct backpointer bp;
};

/* The next users of the bucket at or behind *@pos. Their number, or an error. */
static int users_read(struct bucket_pass *b, struct bpos *pos, struct bucket_user users[BACKPOINTERS_NR])
{
	struct btrees *trees = b->c->data->trees;
	uint64_t end = (b->f.bucket + 1) * b->f.bucket_sectors << BACKPOINTER_SHIFT;
	struct btree_iter it;
	struct bkey_ref k;
	int found = 0, nr = 0;

	btree_iter_open(&it, trees, BTREE_BACKPOINTERS, *pos, BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(b->f.dev, end - 1, UINT32_MAX);
	while (nr < BACKPOINTERS_NR && (found = btree_iter_peek(&it, &k)) > 0) {
		*pos = bpos_successor(k.k.p);
		if (k.k.type == KEY_BACKPOINTER) {
			users[nr].sector = k.k.p.offset >> BACKPOINTER_SHIFT;
			backpointer_decode(k, &b->c->data->super->kctx, &users[nr++].bp);
		}
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return found < 0 ? found : nr;
}

/* Which pointers of a key lead into the bucket; cached ones don't count. */
static uint32_t pointers_into(const struct bucket_pass *b, struct bkey_ref k)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	uint32_t mask = 0;

	if (k.k.type != KEY_EXTENT && k.k.type != KEY_REFLINK_V)
		return 0;
	int nr = extent_decode(k, &b->c->data->super->kctx, ptrs, NULL, NULL);
	for (int i = 0; i < nr; i++) {
		const struct extent_ptr *p = &ptrs[i].ptr;

		if (!p->is_cached && p->dev == b->f.dev && p->gen == b->f.gen &&
		    p->sector / b->f.bucket_sectors == b->f.bucket)
			mask |= 1u << i;
	}
	return mask;
}

static int batch_run(struct bucket_pass *b)
{
	int err = data_mover_run(b->c->mover, &b->moved);

	allocator_evacuator_progress(b->c->allocator);
	return err;
}

static void extent_move(struct bucket_pass *b, const struct backpointer *bp)
{
	struct data_move move = { .watermark = WATERMARK_COPYGC,
				  .is_to_background = true,
				  .is_form_kept = b->is_needed };
	uint64_t from = 0; /* what is before it has been tried */
	struct bkey_copy copy;

	for (;;) {
		int err = btree_lookup(b->c->data->trees, bp->btree_id, bp->pos, &copy);

		if (err <= 0) {
			error_note(b, err);
			return;
		}
		if (!bpos_eq(copy.k.k.p, bp->pos) || bkey_start_offset(&copy.k.k) < from ||
		    !(move.rewrite = pointers_into(b, copy.k)))
			return; /* it is another key by now */
		err = data_mover_add(b->c->mover, bp->btree_id, copy.k, &move);
		if (err != -ENOBUFS && err != 1) {
			error_note(b, err);
			return;
		}
		if (err == 1)
			from = bkey_start_offset(&copy.k.k) + 1;
		error_note(b, batch_run(b));
		data_mover_begin(b->c->mover);
	}
}

static void node_move(struct bucket_pass *b, const struct bucket_user *user)
{
	const struct extent_ptr at = { .dev = (uint8_t)b->f.dev, .sector = user->sector };
	int err = btree_node_rewrite(b->c->data->trees, user->bp.btree_id, user->bp.level - 1u, user->bp.pos, &at);

	b->nodes += !err;
	error_note(b, err == -ENOENT ? 0 : err);
	allocator_evacuator_progress(b->c->allocator);
}

/* Move what is in a bucket, as far as its backpointers are in their btree. */
static void bucket_evacuate_once(struct bucket_pass *b, struct bucket_user users[BACKPOINTERS_NR])
{
	struct bpos pos = BPOS(b->f.dev, b->f.bucket * b->f.bucket_sectors << BACKPOINTER_SHIFT, 0);
	int nr = 0;

	while (!b->err && (nr = users_read(b, &pos, users)) > 0) {
		data_mover_begin(b->c->mover);
		for (int i = 0; i < nr; i++)
			if (!users[i].bp.level)
				extent_move(b, &users[i].bp);
		error_note(b, batch_run(b));
		for (int i = 0; i < nr && !b->err; i++)
			if (users[i].bp.level)
				node_move(b, &users[i]);
		if (allocator_evacuator_is_stopping(b->c->allocator))
			return;
	}
	if (nr < 0)
		error_note(b, nr);
}

/* All of it: also what is trimmed meanwhile, and then has other backpointers. */
static void bucket_evacuate(struct bucket_pass *b, struct bucket_user users[BACKPOINTERS_NR])
{
	for (unsigned i = 0; i < EVACUATE_TRIES; i++) {
		bucket_evacuate_once(b, users);
		if (!b->err)
			error_note(b, allocator_fragment_update(b->c->allocator, &b->f));
		/* Nodes leave their old places a little later. */
		if (b->err || b->is_bad || !b->f.sectors || b->f.data_type == DATA_BTREE ||
		    allocator_evacuator_is_stopping(b->c->allocator))
			return;
		error_note(b, btree_write_buffer_flush(b->c->data->trees));
	}
}

/* --- a pass --- */

static bool is_left_alone(const struct copygc *c, const struct allocator_fragment *f)
{
	for (unsigned i = 0; i < min(c->left_alone_nr, (unsigned)LEFT_ALONE_NR); i++)
		if (c->left_alone[i].dev == f->dev && c->left_alone[i].bucket == f->bucket &&
		    c->left_alone[i].gen == f->gen)
			return true;
	return false;
}

static void leave_alone(struct copygc *c, const struct allocator_fragment *f)
{
	c->left_alone[c->left_alone_nr++ % LEFT_ALONE_NR] =
		(struct left_alone){ .dev = f->dev, .bucket = f->bucket, .gen = f->gen };
}

struct pass {
	struct copygc *c;
	uint64_t devs;
	bool is_needed;
	int64_t gained;	      /* sectors, by moving data */
	uint64_t moved;	      /* the same */
	unsigned emptied;     /* buckets, some with nodes */
	bool has_nodes;	      /* some were rewritten */
	bool is_out_of_space; /* for data: only nodes are moved from here on */
	uint64_t level, node_buckets;
	bool are_nodes_gainless; /* moving them costs as many as it frees: only data is */
	bool was_disturbed;	 /* others changed what was moved: the next pass may do better */
	int err;		 /* that ends it */
	struct bucket_user users[BACKPOINTERS_NR];
};

static void pass_bucket(struct pass *p, const struct allocator_fragment *f)
{
	struct copygc *c = p->c;
	struct bucket_pass b = { .c = c, .f = *f, .is_needed = p->is_needed };

	bucket_evacuate(&b, p->users);
	uint64_t node_sectors = b.nodes * c->data->super->kctx.node_sectors;
	bool is_btree = f->data_type == DATA_BTREE;
	bool is_empty = !b.err && (is_btree ? b.nodes && !b.is_bad : !b.f.sectors);
	bool is_bad = b.is_bad && (is_btree || b.f.sectors);

	/* What moving nodes gains is seen by the level alone: more of them may be rewritten because of it. */
	if (!is_btree)
		p->gained += (is_empty ? (int64_t)f->bucket_sectors : 0) - (int64_t)b.moved.sectors_written;
	p->emptied += is_empty;
	p->has_nodes |= b.nodes != 0;
	p->moved += b.moved.sectors_written + node_sectors;
	p->was_disturbed |= b.moved.keys_changed || (!is_empty && !is_bad && !b.err && b.moved.keys_moved);
	is_bad |= !is_empty && !b.err && !b.nodes && !b.moved.keys_moved && !b.moved.keys_changed;
	p->is_out_of_space |= b.err == -ENOSPC;
	if (is_bad)
		leave_alone(c, f);
	if (b.err != -ENOSPC)
		p->err = b.err;

	job_progress(&c->job, "buckets emptied", p->emptied, 0);
	mutex_lock(&c->lock);
	c->stats.buckets_emptied += is_empty;
	c->stats.buckets_left_alone += is_bad;
	c->stats.bytes_moved += (b.moved.sectors_written + node_sectors) << SECTOR_SHIFT;
	c->stats.extents_moved += b.moved.keys_moved;
	c->stats.extents_changed += b.moved.keys_changed;
	c->stats.nodes_rewritten += b.nodes;
	mutex_unlock(&c->lock);
}

static bool is_passed_over(const struct pass *p, const struct allocator_fragment *f)
{
	return (f->data_type == DATA_BTREE ? p->are_nodes_gainless : p->is_out_of_space) || is_left_alone(p->c, f);
}

/*
 * A node that is moved changes what describes its buckets, in nodes that may have to be replaced for that. Where nodes
 * have few blocks this can go on and on: it is looked at now and then whether it gains anything. Not where they have
 * more: with two copies, say, a bucket's worth of other places is needed to empty one that is half full, and what is
 * gained is seen when the second copies, too, have been moved together.
 */
static void nodes_judge(struct pass *p, const struct allocator_fragment *f)
{
	if (super_node_blocks(p->c->data->super) >= NODE_BLOCKS_FEW)
		return;
	if (f->data_type != DATA_BTREE || ++p->node_buckets % NODE_BUCKETS_JUDGED)
		return;
	btree_rewrites_settle(p->c->data->trees);
	uint64_t level = allocator_evacuation_level(p->c->allocator, p->devs);
	p->are_nodes_gainless = level <= p->level;
	p->level = max(p->level, level);
}

static bool pass_is_over(const struct pass *p, const struct allocator_fragment *f)
{
	if (p->err || allocator_evacuator_is_stopping(p->c->allocator))
		return true;
	if (!p->is_needed && (uint64_t)f->sectors * IDLE_FULL_DEN > (uint64_t)f->bucket_sectors * IDLE_FULL_NUM)
		return true;
	return p->emptied >= PASS_BUCKETS && p->gained >= (int64_t)f->bucket_sectors;
}

/* Whether buckets were gained, or might be by another. */
static bool pass_run(struct pass *p)
{
	struct allocator_fragment fragments[FRAGMENTS_NR];
	struct bpos pos = POS_MIN;
	uint64_t level = p->level = allocator_evacuation_level(p->c->allocator, p->devs);
	bool is_over = false;
	int nr = 0;

	p->err = btree_write_buffer_flush(p->c->data->trees);
	while (!p->err && !is_over &&
	       (nr = allocator_fragments_next(p->c->allocator, p->devs, &pos, fragments, FRAGMENTS_NR)) > 0)
		for (int i = 0; i < nr && !is_over; i++) {
			is_over = pass_is_over(p, &fragments[i]);
			if (is_over || is_passed_over(p, &fragments[i]))
				continue;
			pass_bucket(p, &fragments[i]);
			nodes_judge(p, &fragments[i]);
		}
	if (p->has_nodes)
		btree_rewrites_settle(p->c->data->trees);
	return p->gained > 0 || (p->was_disturbed && !p->err) ||
	       allocator_evacuation_level(p->c->allocator, p->devs) > level;
}

/* --- the task --- */

/* Users' sectors to be written before the next pass, unless somebody needs one. */
static uint64_t next_wait(struct copygc *c, const struct pass *p, bool has_gained)
{
	const struct super *s = c->data->super;
	uint64_t devs, sectors = allocator_evacuation_due(c->allocator, atomic_load(&c->is_eager), &devs),
		       bucket_sectors = 0;

	if (sectors)
		return sectors;
	for (unsigned dev = 0; dev < s->member_nr && dev < 64; dev++)
		if (devs >> dev & 1)
			bucket_sectors = max(bucket_sectors, (uint64_t)s->members[dev].m.bucket_sectors);
	return has_gained ? max(p->moved / MOVED_PER_WRITTEN, (uint64_t)1) : GAINLESS_WAIT_BUCKETS * bucket_sectors;
}

static void copygc_task(void *arg)
{
	struct copygc *c = arg;
	struct pass *p = calloc(1, sizeof(*p));
	uint64_t wait = 0, needed_devs, due_devs;

	task_rank_set(TASK_COPYGC);
	while (p && allocator_evacuator_wait(c->allocator, wait, &needed_devs)) {
		allocator_evacuation_due(c->allocator, atomic_load(&c->is_eager), &due_devs);
		*p = (struct pass){ .c = c, .devs = needed_devs | due_devs, .is_needed = needed_devs };
		stats_wait(c, 0);
		background_enter(btrees_background(c->data->trees), &c->job,
				 p->is_needed ? "somebody waits for space" : "too much is fragmented");
		bool has_gained = p->devs && pass_run(p);
		background_leave(btrees_background(c->data->trees));
		wait = next_wait(c, p, has_gained);
		mutex_lock(&c->lock);
		c->stats.passes += p->devs != 0;
		c->stats.passes_needed += p->is_needed;
		c->stats.passes_gainless += p->devs && !has_gained;
		c->stats.has_gained = has_gained;
		mutex_unlock(&c->lock);
		stats_wait(c, wait);
		job_waits(&c->job, wait == UINT64_MAX ? "nothing is fragmented" : "not enough is fragmented yet");
		allocator_evacuator_done(c->allocator, has_gained);
	}
	job_stops(&c->job);
	free(p);
}

void copygc_set_eager(struct data *data)
{
	struct copygc *c = data->writer ? data->writer->copygc : NULL;

	if (c)
		atomic_store(&c->is_eager, true);
}

int data_start_copygc(struct data *data)
{
	struct copygc *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->data = data;
	c->allocator = data->writer->allocator;
	mutex_init(&c->lock);
	job_init(&c->job, "copygc", "moves data together, so that the space between it can be used again");
	c->mover = data_mover_new(data, &data->moves);
	data->writer->copygc = c;
	allocator_evacuator_start(c->allocator);
	int err = c->mover ? task_start(&c->task, "copygc", copygc_task, c) : -ENOMEM;
	if (err)
		copygc_stop(data);
	return err;
}

void copygc_stop(struct data *data)
{
	struct copygc *c = data->writer->copygc;

	if (!c)
		return;
	allocator_evacuator_stop(c->allocator);
	if (c->task)
		task_join(c->task);
	data->writer->copygc = NULL;
	data_mover_free(c->mover);
	mutex_destroy(&c->lock);
	free(c);
}
