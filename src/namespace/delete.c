/*
 * The end of inodes that lost their last name (04 §6), and who keeps it off.
 *
 * An object that somebody holds is deleted when it is released the last time; any other at once, by a task in the
 * background. What is small, as most are, goes in one transaction. Of others first go extents, xattrs and leftover
 * dirents, in as many transactions as it takes; then, in one, the inode becomes an inode_generation. Until then it is
 * on the deleted list: a deletion that a crash cut short is taken up again by namespace_delete_dead_inodes().
 *
 * A hold exists while somebody holds the object or its deletion is queued or under way:
 *
 *	count > 0	held
 *	is_dead		it lost its last name: delete it when the count gets to 0
 *			(while is_deleting: its number came back to life and died again, so look again)
 *	is_deleting	queued, or being deleted: it can't get a name any more
 *
 * The task begins a moment after the first is queued, so that it isn't woken for each, nor in the way of who takes
 * names away one after the other; at once, when there are many or somebody waits.
 *
 * The queue is short: when it is full, whoever takes away another last name waits for the task, which deletes one at a
 * time. So does who finds no room, for what is queued gives some (deletions_give_room()). The task itself never does.
 *
 * What is marked dead is only tried: the transactions look for the flag in the inode, so that one which has got a name
 * since is left alone.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/array.h"
#include "base/clock.h"
#include "base/mutant.h"
#include "format/error_ids.h"
#include "namespace/change_internal.h"

struct hold {
	struct hold *next;
	struct object o;
	uint32_t count;
	bool is_dead, is_deleting;
};

enum { HOLD_BUCKETS_MIN = 256, QUEUE_MAX = 8192, QUEUE_MANY = 64 };
static const uint64_t begin_after_ns = 2 * 1000 * 1000;

/* --- the table; all with the lock held --- */

static size_t hold_hash(struct object o)
{
	return (size_t)(((o.inum ^ (uint64_t)o.subvol << 40) * 0x9e3779b97f4a7c15ull) >> 20);
}

static struct hold **hold_find(struct deletions *d, struct object o)
{
	struct hold **at = &d->buckets[hold_hash(o) & (d->bucket_nr - 1)];

	while (*at && ((*at)->o.inum != o.inum || (*at)->o.subvol != o.subvol))
		at = &(*at)->next;
	return at;
}

/* Twice as many buckets when there is more than one hold for each; where memory is short, longer chains do. */
static void holds_grow(struct deletions *d)
{
	size_t nr = d->bucket_nr * 2;
	struct hold **buckets = d->hold_nr < d->bucket_nr ? NULL : calloc(nr, sizeof(struct hold *));

	if (!buckets)
		return;
	for (size_t i = 0; i < d->bucket_nr; i++)
		for (struct hold *h = d->buckets[i], *next; h; h = next) {
			struct hold **to = &buckets[hold_hash(h->o) & (nr - 1)];

			next = h->next;
			h->next = *to;
			*to = h;
		}
	free(d->buckets);
	d->buckets = buckets;
	d->bucket_nr = nr;
}

static struct hold *hold_get(struct deletions *d, struct object o)
{
	struct hold **at = hold_find(d, o);

	if (*at)
		return *at;
	struct hold *h = calloc(1, sizeof(*h));
	if (!h)
		return NULL;
	h->o = o;
	*at = h;
	d->hold_nr++;
	holds_grow(d);
	return h;
}

static void hold_put(struct deletions *d, struct hold *h)
{
	if (h->count || h->is_deleting)
		return;
	struct hold **at = hold_find(d, h->o);

	*at = h->next;
	d->hold_nr--;
	free(h);
}

/* Nobody holds it: have the task delete it. What can't be queued stays on the deleted list until the next scan. */
static void hold_queue(struct deletions *d, struct hold *h)
{
	h->is_dead = false;
	if (d->has_lost_holds || array_grow(&d->queue, &d->queue_capacity, d->queue_nr + 1, sizeof(d->queue[0])))
		return;
	h->is_deleting = true;
	d->queue[d->queue_nr++] = h->o;
	d->queued_nr++;
	size_t nr = d->queue_nr - d->queue_head;
	if (nr == 1 || nr == QUEUE_MANY)
		waitq_wake_all(&d->changed);
}

/*
 * Wait for the task, which hurries then. With the lock held. The first tells it: two who woke each other each time that
 * they wait again would do nothing else.
 */
static void task_wait(struct deletions *d)
{
	if (!d->waiting_nr++)
		waitq_wake_all(&d->changed);
	waitq_wait(&d->changed, &d->lock);
	d->waiting_nr--;
}

void namespace_hold(struct namespace *ns, struct object o)
{
	if (!ns->write)
		return;
	struct deletions *d = &ns->write->deletions;

	mutex_lock(&d->lock);
	struct hold *h = hold_get(d, o);
	if (h)
		h->count++;
	else
		d->has_lost_holds = true;
	mutex_unlock(&d->lock);
}

void namespace_release(struct namespace *ns, struct object o)
{
	if (!ns->write)
		return;
	struct deletions *d = &ns->write->deletions;

	mutex_lock(&d->lock);
	struct hold *h = *hold_find(d, o);
	if (h && h->count) {
		h->count--;
		if (!h->count && h->is_dead && !h->is_deleting)
			hold_queue(d, h);
		hold_put(d, h);
	}
	mutex_unlock(&d->lock);
}

void namespace_in_use_set(struct namespace *ns, bool (*is_in_use)(void *ctx, struct object o), void *ctx)
{
	struct deletions *d = &ns->write->deletions;

	d->is_in_use = is_in_use;
	d->is_in_use_ctx = ctx;
}

/*
 * Whoever takes last names away faster than inodes are deleted waits here, so that memory has a bound. What is released
 * isn't held up: it is no more than was held.
 */
static void queue_wait(struct namespace *ns)
{
	struct deletions *d = &ns->write->deletions;

	mutex_lock(&d->lock);
	bool is_full = d->queue_nr - d->queue_head > d->queue_max;
	mutex_unlock(&d->lock);
	if (!is_full)
		return;
	task_may_wait_for(TASK_DELETIONS);
	background_need(btrees_background(ns->trees));
	mutex_lock(&d->lock);
	while (d->queue_nr - d->queue_head > d->queue_max)
		task_wait(d);
	mutex_unlock(&d->lock);
	background_need_end(btrees_background(ns->trees));
}

void deletions_add(struct namespace *ns, struct object o)
{
	struct deletions *d = &ns->write->deletions;

	/* Held while the question is open, so that a release that comes at once finds what it releases. */
	mutex_lock(&d->lock);
	struct hold *h = hold_get(d, o);
	if (h) {
		h->is_dead = true;
		h->count++;
	}
	mutex_unlock(&d->lock);
	if (h && !(d->is_in_use && d->is_in_use(d->is_in_use_ctx, o)))
		namespace_release(ns, o);
	queue_wait(ns);
}

bool deletions_allow_link(struct namespace *ns, struct object o)
{
	struct deletions *d = &ns->write->deletions;

	mutex_lock(&d->lock);
	const struct hold *h = *hold_find(d, o);
	bool is_allowed = h && h->count && !h->is_deleting;
	mutex_unlock(&d->lock);
	return is_allowed;
}

/* --- deleting one inode --- */

struct dead_inode {
	struct data *data;
	uint64_t inum;
	uint32_t subvol; /* whose snapshot it is in; 0: that is known */
	uint32_t snapshot;
	/* of the last run */
	bool is_dead, has_entries;
	bool is_large; /* too much for one transaction */
	int view_err;  /* the subvolume can't be changed */
};

/* Is it there, and without names? */
static int dead_get(struct btree_txn *txn, struct dead_inode *dead, struct inode *inode)
{
	int err = inode_txn_get(txn, dead->inum, dead->snapshot, inode);

	dead->is_dead = !err && inode->flags & INODE_UNLINKED;
	return err == -ENOENT ? 0 : err;
}

static int dead_put_generation(struct btree_txn *txn, const struct dead_inode *dead, const struct inode *inode)
{
	uint8_t value[8] = { 0 };
	int err = data_txn_drop_op(dead->data, txn, inode->inum, inode->snapshot);

	if (err)
		return err;
	le32_store(value, inode->generation + 1);
	return btree_txn_put(txn, BTREE_INODES,
			     &(struct bkey){ .p = BPOS(0, inode->inum, inode->snapshot),
					     .type = KEY_INODE_GENERATION,
					     .value_u64s = sizeof(value) / 8 },
			     value, 0);
}

/* Is there any key of it in a hash table, hash_whiteouts included? 1, 0, or an error. */
static int table_has_keys(struct btree_txn *txn, const struct dead_inode *dead, unsigned btree_id)
{
	struct btree_iter it;
	struct bkey_ref k;

	btree_txn_iter_open(&it, txn, btree_id, BPOS(dead->inum, 0, dead->snapshot), 0, dead->snapshot);
	it.end = BPOS(dead->inum, UINT64_MAX, UINT32_MAX);
	int ret = btree_iter_peek(&it, &k);
	btree_iter_close(&it);
	return ret;
}

/* All of it, if that isn't much; else nothing, and is_large. */
static int dead_delete_small(struct btree_txn *txn, void *ctx)
{
	struct dead_inode *dead = ctx;
	struct inode inode;
	int ret;

	dead->is_dead = dead->has_entries = dead->is_large = false;
	dead->view_err = dead->subvol ? subvol_txn_snapshot(txn, dead->subvol, &dead->snapshot) : 0;
	if (dead->view_err)
		return dead->view_err;
	ret = dead_get(txn, dead, &inode);
	if (ret || !dead->is_dead)
		return ret;
	ret = S_ISDIR(inode.mode) ? dir_txn_has_entries(txn, &inode) : 0;
	dead->has_entries = ret > 0;
	if (ret)
		return min(ret, 0);
	ret = table_has_keys(txn, dead, BTREE_XATTRS);
	if (!ret)
		ret = table_has_keys(txn, dead, BTREE_DIRENTS);
	if (!ret)
		ret = data_txn_delete_extents(
			txn, &(struct data_write_target){ .inum = dead->inum, .snapshot = dead->snapshot });
	dead->is_large = ret > 0;
	if (dead->is_large)
		return -E2BIG; /* with what was put already */
	return ret ? ret : dead_put_generation(txn, dead, &inode);
}

struct clear_args {
	const struct dead_inode *dead;
	unsigned btree_id;
	uint64_t from;
	/* of the last run */
	uint64_t next;
	bool is_done;
};

/* Some of the keys of a hash table, hash_whiteouts included. */
static int clear_run(struct btree_txn *txn, void *ctx)
{
	enum { KEYS_MAX = 64 };
	struct clear_args *a = ctx;
	struct bpos found[KEYS_MAX];
	unsigned nr = 0;
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_txn_iter_open(&it, txn, a->btree_id, BPOS(a->dead->inum, a->from, a->dead->snapshot), 0,
			    a->dead->snapshot);
	it.end = BPOS(a->dead->inum, UINT64_MAX, UINT32_MAX);
	while ((ret = btree_iter_peek(&it, &k)) > 0 && nr < KEYS_MAX) {
		found[nr++] = BPOS(k.k.p.inode, k.k.p.offset, a->dead->snapshot);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	a->is_done = !ret;
	a->next = nr ? found[nr - 1].offset + 1 : a->from;
	for (unsigned i = 0; ret >= 0 && i < nr; i++)
		ret = min(btree_txn_delete_visible(txn, a->btree_id, found[i]), 0);
	return min(ret, 0);
}

static int table_clear(struct namespace *ns, const struct dead_inode *dead, unsigned btree_id)
{
	struct clear_args a = { .dead = dead, .btree_id = btree_id };
	int err;

	do {
		err = change_try(ns, "delete_names", NULL, clear_run, &a);
		a.from = a.next;
	} while (!err && !a.is_done);
	return err;
}

/* The inode itself. */
static int dead_finish(struct btree_txn *txn, void *ctx)
{
	struct dead_inode *dead = ctx;
	struct inode inode;
	int err = dead_get(txn, dead, &inode);

	return err || !dead->is_dead ? err : dead_put_generation(txn, dead, &inode);
}

static int dead_delete_large(struct namespace *ns, struct dead_inode *dead)
{
	int err = data_delete_extents(
		ns->data, &(struct data_write_target){ .inum = dead->inum, .snapshot = dead->snapshot }, NULL);

	if (!err)
		err = table_clear(ns, dead, BTREE_XATTRS);
	if (!err)
		err = table_clear(ns, dead, BTREE_DIRENTS);
	return err ? err : change_try(ns, "delete_inode", NULL, dead_finish, dead);
}

static int dead_delete(struct namespace *ns, struct dead_inode *dead)
{
	int err = change_try(ns, "delete_inode", NULL, dead_delete_small, dead);

	if (dead->is_large)
		err = dead_delete_large(ns, dead);
	/* A directory that still has entries is damage: what is in it must not be lost. */
	if (!err && dead->is_dead && !dead->has_entries)
		inum_freed(ns);
	return err;
}

/* --- the task --- */

static int object_delete(struct namespace *ns, struct object o)
{
	struct dead_inode dead = { .data = ns->data, .inum = o.inum, .subvol = o.subvol };
	int err = dead_delete(ns, &dead);

	/* A subvolume that is gone or became read-only takes its dead with it, or keeps them for the next scan. */
	return err && (dead.view_err == -ENOENT || dead.view_err == -EROFS) ? 0 : err;
}

/* The oldest in the queue. The part in front of it is given up when it is half of the whole. */
static struct object queue_pop(struct deletions *d)
{
	struct object o = d->queue[d->queue_head++];

	if (d->queue_head * 2 >= d->queue_nr) {
		d->queue_nr -= d->queue_head;
		memmove(d->queue, d->queue + d->queue_head, d->queue_nr * sizeof(d->queue[0]));
		d->queue_head = 0;
	}
	return o;
}

/* Until something is to be deleted, and a moment longer. With the lock held. */
static void queue_await(struct deletions *d)
{
	if (d->queue_head < d->queue_nr)
		return;
	job_waits(&d->job, d->has_lost_holds ? "it has lost track of what is in use, for want of memory"
					     : "nothing is to be deleted");
	while (d->queue_head == d->queue_nr && !d->is_stopping)
		waitq_wait(&d->changed, &d->lock);
	uint64_t until = clock_monotonic_ns() + begin_after_ns;
	while (!d->is_stopping && !d->waiting_nr && d->queue_nr - d->queue_head < QUEUE_MANY &&
	       waitq_wait_until(&d->changed, &d->lock, until))
		;
}

static void deletion_task(void *arg)
{
	struct namespace *ns = arg;
	struct deletions *d = &ns->write->deletions;
	uint64_t done = 0; /* since there was nothing to do */

	task_rank_set(TASK_DELETIONS);
	mutex_lock(&d->lock);
	for (;;) {
		done = d->queue_head < d->queue_nr ? done : 0;
		queue_await(d);
		if (d->queue_head == d->queue_nr)
			break;
		uint64_t of = done + d->queue_nr - d->queue_head;
		struct object o = queue_pop(d);

		mutex_unlock(&d->lock);
		background_enter(btrees_background(ns->trees), &d->job,
				 "what nobody uses any more has lost its last name");
		job_progress(&d->job, "objects", done++, of);
		int err = object_delete(ns, o);
		background_leave(btrees_background(ns->trees));
		mutex_lock(&d->lock);
		if (err && !d->err)
			d->err = err;
		atomic_fetch_add(&d->done_nr, 1);
		struct hold *h = *hold_find(d, o);
		assert(h); /* it is there as long as is_deleting is set */
		h->is_deleting = false;
		if (h->is_dead && !h->count)
			hold_queue(d, h);
		hold_put(d, h);
		waitq_wake_all(&d->changed);
	}
	job_stops(&d->job);
	mutex_unlock(&d->lock);
}

void namespace_jobs(struct namespace *ns, struct job_list *list)
{
	if (ns->write)
		job_list_add(list, &ns->write->deletions.job);
}

int deletions_start(struct namespace *ns)
{
	struct deletions *d = &ns->write->deletions;

	d->buckets = calloc(HOLD_BUCKETS_MIN, sizeof(struct hold *));
	if (!d->buckets)
		return -ENOMEM;
	d->bucket_nr = HOLD_BUCKETS_MIN;
	d->queue_max = QUEUE_MAX;
	job_init(&d->job, "deletions", "frees the space and the inodes of what was deleted");
	mutex_init(&d->lock);
	waitq_init(&d->changed);
	int err = task_start(&d->task, "kiln-delete", deletion_task, ns);
	if (err) {
		waitq_destroy(&d->changed);
		mutex_destroy(&d->lock);
		free(d->buckets);
	}
	return err;
}

void deletions_stop(struct namespace *ns)
{
	struct deletions *d = &ns->write->deletions;

	mutex_lock(&d->lock);
	d->is_stopping = true;
	waitq_wake_all(&d->changed);
	mutex_unlock(&d->lock);
	task_join(d->task);
	for (size_t i = 0; i < d->bucket_nr; i++)
		for (struct hold *h = d->buckets[i], *next; h; h = next) {
			next = h->next;
			free(h);
		}
	free(d->buckets);
	free(d->queue);
	waitq_destroy(&d->changed);
	mutex_destroy(&d->lock);
}

int namespace_deletions_wait(struct namespace *ns)
{
	if (!ns->write)
		return 0;
	struct deletions *d = &ns->write->deletions;

	task_may_wait_for(TASK_DELETIONS);
	mutex_lock(&d->lock);
	uint64_t target = d->queued_nr;
	while (d->done_nr < target)
		task_wait(d);
	int err = d->err;
	d->err = 0;
	mutex_unlock(&d->lock);
	return err;
}

struct room_wait deletions_room_begin(struct namespace *ns)
{
	return (struct room_wait){ .done = ns->write ? atomic_load(&ns->write->deletions.done_nr) : 0 };
}

bool deletions_give_room(struct namespace *ns, int err, struct room_wait *w)
{
	if ((err != -ENOSPC && err != -EDQUOT) || !ns->write)
		return false;
	struct deletions *d = &ns->write->deletions;

	task_may_wait_for(TASK_DELETIONS);
	background_need(btrees_background(ns->trees));
	mutex_lock(&d->lock);
	/*
	 * What gave room may have been taken by somebody who has unlinked as much since. A quota is hardly anybody
	 * else's, and deletions of others mustn't hold up its answer for ever.
	 */
	if (!w->target || err == -ENOSPC)
		w->target = d->queued_nr;
	bool gives_room = w->done < w->target;
	while (d->done_nr == w->done && gives_room)
		task_wait(d);
	w->done = d->done_nr;
	mutex_unlock(&d->lock);
	background_need_end(btrees_background(ns->trees));
	return gives_room;
}

void namespace_deletions_count(struct namespace *ns, uint64_t *queued, uint64_t *done)
{
	*queued = *done = 0;
	if (!ns->write)
		return;
	struct deletions *d = &ns->write->deletions;

	mutex_lock(&d->lock);
	*queued = d->queued_nr;
	*done = d->done_nr;
	mutex_unlock(&d->lock);
}

/* --- the deleted list --- */

enum list_error { LIST_OK, LIST_FOREIGN, LIST_MISSING, LIST_IS_DIR, LIST_NOT_UNLINKED, LIST_HAS_CHILDREN };

struct listed {
	const struct snapshot_table *snapshots;
	struct bpos pos;
	enum list_error state; /* result */
	/* where inodes of interior snapshots are copied to */
	uint32_t leaves_from, leaves_next;
	bool is_done;
};

/* What an entry of the list stands for; entries that stand for nothing are dropped. */
static int listed_look(struct btree_txn *txn, void *ctx)
{
	struct listed *l = ctx;
	struct bkey_ref k;
	struct inode inode;
	int ret = btree_txn_get(txn, BTREE_INODES, l->pos, 0, &k);

	if (ret < 0)
		return ret;
	bool is_inode = ret && (k.k.type == KEY_INODE || k.k.type == KEY_INODE_V2 || k.k.type == KEY_INODE_V3);
	if (is_inode && inode_unpack(k, &inode, NULL))
		return -EIO;
	l->state = LIST_OK;
	if (!is_inode) {
		l->state = LIST_MISSING;
	} else if (!(inode.flags & INODE_UNLINKED)) {
		l->state = LIST_NOT_UNLINKED;
	} else if (S_ISDIR(inode.mode)) {
		ret = dir_txn_has_entries(txn, &inode);
		if (ret < 0)
			return ret;
		l->state = ret ? LIST_IS_DIR : LIST_OK;
	}
	/* A snapshot that isn't there is for repair. */
	if (!snapshot_table_find(l->snapshots, l->pos.snapshot)) {
		l->state = LIST_FOREIGN;
		return 0;
	}
	if (l->state != LIST_OK)
		return btree_txn_put(txn, BTREE_DELETED_INODES, &(struct bkey){ .p = l->pos, .type = KEY_DELETED },
				     NULL, 0);
	if (snapshot_has_children((void *)l->snapshots, l->pos.snapshot))
		l->state = LIST_HAS_CHILDREN;
	return 0;
}

static void listed_report(struct namespace *ns, const struct listed *l)
{
	static const struct {
		uint32_t id;
		const char *found;
	} texts[] = {
		[LIST_MISSING] = { ERROR_deleted_inode_missing, "no inode" },
		[LIST_IS_DIR] = { ERROR_deleted_inode_is_dir, "a directory with entries" },
		[LIST_NOT_UNLINKED] = { ERROR_deleted_inode_not_unlinked, "an inode with names" },
	};
	char position[64];

	snprintf(position, sizeof(position), "deleted_inodes %" PRIu64 ":%u", l->pos.offset, l->pos.snapshot);
	report_emit(ns->reports, &(struct report){
					 .level = REPORT_RECOVERED,
					 .id = texts[l->state].id,
					 .structure = "deleted inode",
					 .position = position,
					 .expected = "an inode without names",
					 .found = texts[l->state].found,
				 });
}

/*
 * An inode that is dead in a snapshot with children (05 §5.5): each leaf that still sees it gets a copy, dead as well,
 * some leaves at a time; then this one lives again, seen by nobody.
 */
static int listed_hand_down(struct btree_txn *txn, void *ctx)
{
	enum { LEAVES_MAX = 32 };
	struct listed *l = ctx;
	struct inode inode;
	struct bkey_ref k;
	unsigned nr = 0;
	int ret = inode_txn_get(txn, l->pos.offset, l->pos.snapshot, &inode);

	l->is_done = true;
	if (ret)
		return ret == -ENOENT ? 0 : ret;
	for (size_t i = 0; i < l->snapshots->nr; i++) {
		uint32_t id = l->snapshots->entries[i].id;

		if (id < l->leaves_from || id >= l->pos.snapshot || snapshot_has_children((void *)l->snapshots, id) ||
		    !snapshot_is_ancestor((void *)l->snapshots, id, l->pos.snapshot))
			continue;
		if (nr++ == LEAVES_MAX) {
			l->leaves_next = id;
			l->is_done = false;
			return 0;
		}
		ret = btree_txn_get(txn, BTREE_INODES, BPOS(0, l->pos.offset, id), BTREE_GET_VISIBLE, &k);
		if (ret < 0)
			return ret;
		struct inode copy = inode;
		copy.snapshot = id;
		if (ret && k.k.p.snapshot == l->pos.snapshot && (ret = inode_txn_put(txn, &copy)))
			return ret;
	}
	inode.flags &= ~(uint32_t)INODE_UNLINKED;
	return inode_txn_put(txn, &inode);
}

/* One entry of the list. 1: it was handed down, the list has new entries; 0, or an error. */
static int listed_process(struct namespace *ns, struct bpos pos)
{
	struct listed l = { .snapshots = &ns->snapshots, .pos = pos };
	int err = change_try(ns, "deleted_list", NULL, listed_look, &l);

	if (err)
		return err;
	if (l.state == LIST_HAS_CHILDREN) {
		do {
			err = change_try(ns, "deleted_list", NULL, listed_hand_down, &l);
			l.leaves_from = l.leaves_next;
		} while (!err && !l.is_done);
		return err ? err : 1;
	}
	if (l.state == LIST_FOREIGN)
		return 0;
	if (l.state != LIST_OK) {
		listed_report(ns, &l);
		return 0;
	}
	struct dead_inode dead = { .data = ns->data, .inum = pos.offset, .snapshot = pos.snapshot };
	return dead_delete(ns, &dead);
}

/* Process some entries from *@from on, and set it behind them. *@is_end: there are no more. As listed_process(). */
static int list_process_some(struct namespace *ns, struct bpos *from, bool *is_end)
{
	enum { BATCH = 256 };
	struct bpos found[BATCH];
	unsigned nr = 0;
	struct btree_iter it;
	struct bkey_ref k;
	int ret = btree_write_buffer_flush(ns->trees), handed_down = 0;

	if (ret)
		return ret;
	btree_iter_open(&it, ns->trees, BTREE_DELETED_INODES, *from, BTREE_ITER_ALL_SNAPSHOTS, 0);
	while ((ret = btree_iter_peek(&it, &k)) > 0 && nr < BATCH) {
		found[nr++] = k.k.p;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	*is_end = !ret;
	if (nr)
		*from = bpos_successor(found[nr - 1]);
	for (unsigned i = 0; ret >= 0 && i < nr; i++) {
		ret = listed_process(ns, found[i]);
		handed_down |= ret > 0;
	}
	return ret < 0 ? ret : handed_down;
}

int namespace_delete_dead_inodes(struct namespace *ns)
{
	if (!ns->write)
		return -EROFS;
	if (is_mutant(MUTANT_DEAD_INODES))
		return 0;
	int err = 0;

	/* What failed in the background is on the list still, and tried again. */
	namespace_deletions_wait(ns);
	/* Handing down goes to leaves, so a second scan finds only what can be deleted. */
	for (bool is_again = true; !err && is_again;) {
		struct bpos from = POS_MIN;

		is_again = false;
		for (bool is_end = false; !err && !is_end;) {
			int ret = list_process_some(ns, &from, &is_end);

			err = min(ret, 0);
			is_again |= ret > 0;
		}
	}
	return err;
}
