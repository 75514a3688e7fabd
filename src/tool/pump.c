/*
 * Read-ahead over files. See pump.h.
 *
 * A ring of slots goes through FREE -> WANTED (the caller says which range) -> BUSY (a task reads) -> READY -> FREE
 * (the caller took it). The caller fills slots from the front, in file order, and empties them from the back; tasks
 * take the oldest WANTED one.
 */
#include "tool/pump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/clock.h"
#include "base/sync.h"
#include "base/util.h"

enum slot_state { SLOT_FREE, SLOT_WANTED, SLOT_BUSY, SLOT_READY };

struct slot {
	enum slot_state state;
	struct kiln_node node;
	size_t want;
	struct pump_chunk chunk;
	size_t damage_capacity;
	bool damage_lost; /* no memory to note damage */
};

struct pump {
	kiln_fs *fs;
	struct mutex lock;
	struct waitq changed;
	bool is_ending;
	uint64_t fill, take; /* slots filled and taken since the start; slot = count % PUMP_CHUNKS_MAX */
	struct slot slots[PUMP_CHUNKS_MAX];
	struct task *tasks[PUMP_CHUNKS_MAX];
	unsigned task_nr;
};

static void note_damage(void *ctx, uint64_t offset, uint64_t len, int error)
{
	struct slot *s = ctx;
	struct pump_chunk *c = &s->chunk;

	if (array_grow(&c->damage, &s->damage_capacity, c->damage_nr + 1, sizeof(c->damage[0]))) {
		s->damage_lost = true;
		return;
	}
	c->damage[c->damage_nr++] = (struct pump_damage){ offset, len, error };
}

/* Oldest slot that waits for a reader. */
static struct slot *slot_wanted(struct pump *p)
{
	for (uint64_t i = p->take; i < p->fill; i++)
		if (p->slots[i % PUMP_CHUNKS_MAX].state == SLOT_WANTED)
			return &p->slots[i % PUMP_CHUNKS_MAX];
	return NULL;
}

static void read_task(void *arg)
{
	struct pump *p = arg;
	struct slot *s;

	mutex_lock(&p->lock);
	while (!p->is_ending) {
		s = slot_wanted(p);
		if (!s) {
			waitq_wait(&p->changed, &p->lock);
			continue;
		}
		s->state = SLOT_BUSY;
		mutex_unlock(&p->lock);

		s->chunk.damage_nr = 0;
		s->damage_lost = false;
		s->chunk.len =
			kiln_read_rescue(p->fs, s->node, s->chunk.offset, s->chunk.data, s->want, note_damage, s);
		if (s->damage_lost)
			s->chunk.len = -ENOMEM;

		mutex_lock(&p->lock);
		s->state = SLOT_READY;
		waitq_wake_all(&p->changed);
	}
	mutex_unlock(&p->lock);
}

struct pump *pump_start(kiln_fs *fs)
{
	struct pump *p = calloc(1, sizeof(*p));
	if (!p)
		return NULL;

	p->fs = fs;
	mutex_init(&p->lock);
	waitq_init(&p->changed);
	for (unsigned i = 0; i < PUMP_CHUNKS_MAX; i++) {
		p->slots[i].chunk.data = aligned_alloc(4096, PUMP_CHUNK_BYTES);
		if (!p->slots[i].chunk.data)
			goto fail;
	}
	/* One more than processors: while all of them verify, one waits for I/O. */
	unsigned want = min(cpu_nr() + 1, (unsigned)PUMP_CHUNKS_MAX);
	for (; p->task_nr < want; p->task_nr++)
		if (task_start(&p->tasks[p->task_nr], "read-ahead", read_task, p))
			break;
	if (p->task_nr)
		return p;
fail:
	pump_end(p);
	return NULL;
}

void pump_end(struct pump *p)
{
	if (!p)
		return;
	mutex_lock(&p->lock);
	p->is_ending = true;
	waitq_wake_all(&p->changed);
	mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->task_nr; i++)
		task_join(p->tasks[i]);
	for (unsigned i = 0; i < PUMP_CHUNKS_MAX; i++) {
		free(p->slots[i].chunk.data);
		free(p->slots[i].chunk.damage);
	}
	waitq_destroy(&p->changed);
	mutex_destroy(&p->lock);
	free(p);
}

/* Position in the file being pumped: the data range that is being filled in. */
struct cursor {
	struct kiln_node node;
	uint64_t size, pos, data_end;
	uint64_t lost_begin, lost_end; /* the next range that can't be read at all; none: both are size */
	bool skip_holes;
};

/* Find the next range that is lost as a whole: it is told in one piece, not read chunk by chunk. */
static int cursor_find_lost(struct pump *p, struct cursor *c)
{
	int err = kiln_seek_lost(p->fs, c->node, c->pos, &c->lost_begin, &c->lost_end);

	if (err)
		c->lost_begin = c->lost_end = c->size;
	return err == -ENXIO ? 0 : err;
}

/* Move the cursor to the next byte to read. 1: there is one; 0: the end; or an error. */
static int cursor_advance(struct pump *p, struct cursor *c)
{
	if (c->pos >= c->size)
		return 0;
	if (c->pos < c->data_end)
		return 1;
	if (!c->skip_holes) {
		c->data_end = c->size;
		return 1;
	}

	int64_t data = kiln_seek_data(p->fs, c->node, c->pos);
	if (data == -ENXIO)
		return 0;
	int64_t hole = data < 0 ? data : kiln_seek_hole(p->fs, c->node, (uint64_t)data);
	if (hole < 0)
		return (int)hole;
	c->pos = (uint64_t)data;
	c->data_end = min((uint64_t)hole, c->size);
	return c->pos < c->data_end;
}

/* A slot for the next chunk of data. */
static void fill_wanted(struct cursor *c, struct slot *s)
{
	/* End chunks at multiples of their size, so that they meet extents where the writer's I/O did. */
	uint64_t end = min(min(round_up_u64(c->pos + 1, PUMP_CHUNK_BYTES), c->data_end), c->lost_begin);

	s->want = (size_t)(end - c->pos);
	s->state = SLOT_WANTED;
	c->pos = end;
}

/* A slot that needs no reading: the range is lost. @p->lock is held. */
static int fill_lost(struct pump *p, struct cursor *c, struct slot *s)
{
	uint64_t end = min(c->lost_end, c->size);

	s->chunk.damage_nr = 0;
	s->damage_lost = false;
	note_damage(s, c->pos, end - c->pos, -EIO);
	if (s->damage_lost)
		return -ENOMEM;
	s->chunk.len = (int64_t)(end - c->pos);
	s->state = SLOT_READY;
	c->pos = end;
	mutex_unlock(&p->lock);
	int err = cursor_find_lost(p, c);
	mutex_lock(&p->lock);
	return err;
}

/* Ask for as many chunks as there are free slots. @p->lock is held. */
static int fill_slots(struct pump *p, struct cursor *c)
{
	int ret = 0;

	while (p->fill - p->take < PUMP_CHUNKS_MAX) {
		mutex_unlock(&p->lock);
		ret = cursor_advance(p, c);
		mutex_lock(&p->lock);
		if (ret <= 0)
			break;

		struct slot *s = &p->slots[p->fill % PUMP_CHUNKS_MAX];
		s->node = c->node;
		s->chunk.offset = c->pos;
		s->chunk.is_lost = c->pos >= c->lost_begin;
		if (s->chunk.is_lost)
			ret = fill_lost(p, c, s);
		else
			fill_wanted(c, s);
		if (ret < 0)
			break;
		p->fill++;
		waitq_wake_all(&p->changed);
	}
	return min(ret, 0);
}

int pump_file(struct pump *p, struct kiln_node node, uint64_t size, bool skip_holes, pump_take_fn take, void *ctx)
{
	/* No file is longer than offsets can say; the rest of one that claims to be is left out. */
	struct cursor c = { .node = node,
			    .size = min(size, (uint64_t)INT64_MAX - PUMP_CHUNK_BYTES),
			    .skip_holes = skip_holes };
	int ret = size ? cursor_find_lost(p, &c) : 0;

	mutex_lock(&p->lock);
	for (;;) {
		if (!ret)
			ret = fill_slots(p, &c);
		if (p->take == p->fill)
			break;

		struct slot *s = &p->slots[p->take % PUMP_CHUNKS_MAX];
		while (s->state != SLOT_READY && !(ret && s->state == SLOT_WANTED))
			waitq_wait(&p->changed, &p->lock);
		if (!ret) {
			mutex_unlock(&p->lock);
			ret = take(ctx, &s->chunk);
			mutex_lock(&p->lock);
		}
		s->state = SLOT_FREE;
		p->take++;
	}
	mutex_unlock(&p->lock);
	return ret;
}
