/*
 * Times of access. The kernel leaves them to the server, which sees only reads that the page cache couldn't serve.
 *
 * A read changes nothing but a table in memory, of objects that were read and when. Who asks for their attributes gets
 * what it says; a task writes it to the inodes half a minute after the first read, earlier when the table is half full,
 * at `kiln sync`, and at the end of the mount. So an object that is read again and again is written once, and a crash
 * loses what was read last.
 *
 * As relatime has it, a read changes atime only if that is not later than mtime and ctime, or a day old. Whether it is
 * shows when the inode is at hand; until then both the first read and the last one are kept: the first one counts, as
 * those behind it find an atime that is new, unless the object was changed in between.
 *
 * The table has sets of a few entries, by the object's number. Where a set is full the thread that reads writes one of
 * them. An entry stays where it is until it has been written, so at any time either the table or the inode tells.
 * Entries are written one after the other, under a lock of their own, which who sets atime otherwise takes, too.
 */
#include "mount/atime.h"

#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/sync.h"
#include "base/util.h"

enum {
	SETS = 128,
	SET_ENTRIES = 8,
	ENTRIES = SETS * SET_ENTRIES,
	WRITE_AFTER_S = 30,
	DAY_S = 86400,
	NS_PER_S = 1000000000,
};

/* An object that was read. */
struct entry {
	struct kiln_node node;
	uint64_t first_ns, last_ns; /* clock_tick_ns(); last 0: there is none */
};

struct atimes {
	kiln_fs *fs;
	enum mount_atime mode; /* atomic */
	struct mutex writing;  /* held while an entry is written */
	struct mutex lock;     /* of what follows */
	struct waitq wake;
	struct entry sets[SETS][SET_ENTRIES];
	unsigned nr; /* of entries; looked at without the lock, too */
	bool is_stopping;
	struct task *task;
};

static void write_from_time_to_time(void *arg);

static enum mount_atime mode_of(const struct atimes *a) { return __atomic_load_n(&a->mode, __ATOMIC_RELAXED); }

struct atimes *atimes_new(kiln_fs *fs, enum mount_atime mode)
{
	struct atimes *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	a->fs = fs;
	a->mode = mode;
	mutex_init_ranked(&a->writing, LOCK_ATIMES);
	mutex_init(&a->lock);
	waitq_init(&a->wake);
	/* Without the task they are written when the table is full, and at the end. */
	if (task_start(&a->task, "mount-atime", write_from_time_to_time, a))
		a->task = NULL;
	return a;
}

void atimes_set_mode(struct atimes *a, enum mount_atime mode)
{
	if (a)
		__atomic_store_n(&a->mode, mode, __ATOMIC_RELAXED);
}

void atimes_stop(struct atimes *a)
{
	if (!a)
		return;
	mutex_lock(&a->lock);
	a->is_stopping = true;
	waitq_wake_all(&a->wake);
	mutex_unlock(&a->lock);
	if (a->task)
		task_join(a->task);
	a->task = NULL;
	atimes_write(a);
}

void atimes_free(struct atimes *a)
{
	if (!a)
		return;
	atimes_stop(a);
	waitq_destroy(&a->wake);
	mutex_destroy(&a->lock);
	mutex_destroy(&a->writing);
	free(a);
}

/* --- the table, under the lock --- */

static struct entry *set_of(struct atimes *a, struct kiln_node node)
{
	return a->sets[(size_t)((node.ino * 0x9e3779b97f4a7c15ull ^ node.subvol) >> 40) % SETS];
}

static bool is_of(const struct entry *e, struct kiln_node node)
{
	return e->last_ns && e->node.ino == node.ino && e->node.subvol == node.subvol;
}

static struct entry *entry_find(struct atimes *a, struct kiln_node node)
{
	struct entry *set = set_of(a, node);

	for (unsigned i = 0; i < SET_ENTRIES; i++)
		if (is_of(&set[i], node))
			return &set[i];
	return NULL;
}

static void entry_remove(struct atimes *a, struct entry *e)
{
	e->last_ns = 0;
	__atomic_store_n(&a->nr, a->nr - 1, __ATOMIC_RELEASE);
}

/* False: there is no place. */
static bool entry_note(struct atimes *a, struct kiln_node node, uint64_t now_ns)
{
	struct entry *set = set_of(a, node), *e = entry_find(a, node);

	if (e) {
		e->last_ns = now_ns;
		return true;
	}
	for (unsigned i = 0; i < SET_ENTRIES && !e; i++)
		if (!set[i].last_ns)
			e = &set[i];
	if (!e)
		return false;
	*e = (struct entry){ node, now_ns, now_ns };
	__atomic_store_n(&a->nr, a->nr + 1, __ATOMIC_RELEASE);
	if (a->nr == 1 || a->nr == ENTRIES / 2)
		waitq_wake_all(&a->wake);
	return true;
}

/* --- what atime is to be --- */

static uint64_t ns_of(struct kiln_timespec t) { return t.sec < 0 ? 0 : (uint64_t)t.sec * NS_PER_S + t.nsec; }

/* 0: as it is. */
static uint64_t due_ns(const struct atimes *a, const struct kiln_stat *st, const struct entry *e)
{
	enum { FS_NOATIME_FL = 0x80 };
	uint64_t atime = ns_of(st->atime), changed = max(ns_of(st->mtime), ns_of(st->ctime));
	bool is_strict = mode_of(a) == MOUNT_STRICTATIME;
	uint64_t ns = e->first_ns > changed && !is_strict ? e->first_ns : e->last_ns;
	bool is_old = atime <= changed || ns - atime >= (uint64_t)DAY_S * NS_PER_S;

	if (st->is_readonly || st->flags & FS_NOATIME_FL || ns <= atime)
		return 0;
	return is_strict || is_old ? ns : 0;
}

static struct kiln_timespec timespec_of_ns(uint64_t ns)
{
	return (struct kiln_timespec){ .sec = (int64_t)(ns / NS_PER_S), .nsec = (uint32_t)(ns % NS_PER_S) };
}

struct kiln_timespec atimes_show(struct atimes *a, const struct kiln_stat *st)
{
	uint64_t ns = 0;

	if (!a || !__atomic_load_n(&a->nr, __ATOMIC_ACQUIRE))
		return st->atime;
	mutex_lock(&a->lock);
	const struct entry *e = entry_find(a, st->node);
	if (e)
		ns = due_ns(a, st, e);
	mutex_unlock(&a->lock);
	return ns ? timespec_of_ns(ns) : st->atime;
}

/* --- writing --- */

static void entry_write(struct atimes *a, struct entry *e)
{
	struct kiln_stat st;

	mutex_lock(&a->writing);
	mutex_lock(&a->lock);
	struct entry now = *e;
	mutex_unlock(&a->lock);
	if (now.last_ns && !kiln_stat(a->fs, now.node, &st)) {
		uint64_t ns = due_ns(a, &st, &now);

		/* What can't be written is lost: nobody waits for it. */
		if (ns)
			kiln_setattr(a->fs, now.node,
				     &(struct kiln_setattr){ .fields = KILN_SET_ATIME | KILN_SET_KEEP_CTIME,
							     .atime = timespec_of_ns(ns) },
				     NULL);
	}
	mutex_lock(&a->lock);
	if (now.last_ns && is_of(e, now.node) && e->last_ns == now.last_ns)
		entry_remove(a, e);
	else if (is_of(e, now.node))
		e->first_ns = e->last_ns; /* read again meanwhile */
	mutex_unlock(&a->lock);
	mutex_unlock(&a->writing);
}

void atimes_write(struct atimes *a)
{
	if (!a)
		return;
	for (unsigned i = 0; i < ENTRIES && __atomic_load_n(&a->nr, __ATOMIC_ACQUIRE); i++)
		entry_write(a, &a->sets[i / SET_ENTRIES][i % SET_ENTRIES]);
}

static void write_from_time_to_time(void *arg)
{
	struct atimes *a = arg;

	mutex_lock(&a->lock);
	while (!a->is_stopping) {
		if (!a->nr) {
			waitq_wait(&a->wake, &a->lock);
			continue;
		}
		uint64_t until = clock_monotonic_ns() + (uint64_t)WRITE_AFTER_S * NS_PER_S;
		while (!a->is_stopping && a->nr && a->nr < ENTRIES / 2 && waitq_wait_until(&a->wake, &a->lock, until))
			;
		mutex_unlock(&a->lock);
		atimes_write(a);
		mutex_lock(&a->lock);
	}
	mutex_unlock(&a->lock);
}

/* --- from requests --- */

void atimes_note(struct atimes *a, struct kiln_node node)
{
	uint64_t now_ns = clock_tick_ns();

	if (!a || mode_of(a) == MOUNT_NOATIME)
		return;
	mutex_lock(&a->lock);
	bool is_noted = entry_note(a, node, now_ns);
	mutex_unlock(&a->lock);
	if (is_noted)
		return;
	entry_write(a, &set_of(a, node)[now_ns % SET_ENTRIES]);
	mutex_lock(&a->lock);
	/* If others were faster, it is as if it hadn't been read. */
	entry_note(a, node, now_ns);
	mutex_unlock(&a->lock);
}

void atimes_forget(struct atimes *a, struct kiln_node node)
{
	struct entry *e;

	if (!a || !__atomic_load_n(&a->nr, __ATOMIC_ACQUIRE))
		return;
	mutex_lock(&a->lock);
	e = entry_find(a, node);
	mutex_unlock(&a->lock);
	if (!e)
		return;
	mutex_lock(&a->writing);
	mutex_lock(&a->lock);
	e = entry_find(a, node);
	if (e)
		entry_remove(a, e);
	mutex_unlock(&a->lock);
	mutex_unlock(&a->writing);
}
