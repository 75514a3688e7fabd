/* Tasks that change a filesystem, and what they were promised. See workload.h. */
#include "workload.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/sync.h"
#include "base/util.h"
#include "door.h"

enum {
	TASKS_MAX = 8,
	DIRS = 3,
	FILES = 6, /* of each task, as what follows */
	LOGS = 2,
	RECORDS = 8,
	XATTRS = 3,
	OBJECTS = FILES + LOGS + RECORDS + XATTRS,
	STATES_MAX = 768,
	PROMISES_MAX = 16384,
	FILE_BYTES_MAX = 150000,
	LOG_BYTES_MAX = 300000,
	PIECE_BYTES_MAX = 20000,
	XATTR_BYTES_MAX = 300,
	BUFFER_BYTES = LOG_BYTES_MAX + 64,
};

/* An empty log doesn't say which it is. */
static const uint32_t GENERATION_ANY = UINT32_MAX;

enum object_kind { OBJECT_FILE, OBJECT_LOG, OBJECT_RECORD, OBJECT_XATTR };

struct state {
	uint32_t generation; /* 0: it isn't there */
	uint32_t dir;	     /* files */
	uint32_t has_link;   /* files: a second name */
	uint32_t bytes;	     /* logs */
	uint64_t begin_ns;   /* of the call that made it */
	uint64_t end_ns;     /* 0: it hasn't returned */
	uint64_t settled_ns; /* all of it is where its order among others counts: 0: not yet */
};

struct object {
	uint8_t kind; /* enum object_kind */
	uint8_t task, nr;
	uint8_t inode; /* objects of one task with the same number are promised by the same fsync */
	uint32_t generation_last;
	uint32_t states_nr;
	struct state states[STATES_MAX];
};

enum { INODE_ALL = 255 };
struct promise {
	uint64_t begin_ns, end_ns; /* end 0: it hasn't returned */
	uint8_t task, inode;
};

struct workload {
	uint32_t tasks_nr;
	uint64_t began_ns;
	uint32_t promises_nr;
	struct promise promises[PROMISES_MAX];
	struct object objects[TASKS_MAX][OBJECTS];
};

/* What a task, or who reads, works with. */
struct hand {
	struct workload *w;
	struct door door;
	unsigned task;
	struct rng rng;
	uint64_t ops;
	uint64_t promise_one_in; /* of the calls that ask for a promise this many are made */
	int err;
	const char *failed; /* what */
	uint8_t *bytes, *want;
};

static const uint64_t record_bytes[TASKS_MAX] = { 4096, 3000, 700, 4096, 16384, 512, 1000, 8192 };

/* --- names and contents --- */

static size_t dir_name(unsigned dir, char name[32]) { return (size_t)snprintf(name, 32, "dir%u", dir); }

static size_t object_name(const struct object *o, const char *suffix, char name[32])
{
	static const char *const kinds[] = { "file", "log", "records", "records" };
	unsigned nr = o->kind == OBJECT_FILE || o->kind == OBJECT_LOG ? o->nr : 0;

	return (size_t)snprintf(name, 32, "task%u-%s%u%s", o->task, kinds[o->kind], nr, suffix);
}

static int dir_find(kiln_fs *fs, unsigned dir, struct kiln_node *node)
{
	struct kiln_stat st;
	char name[32];
	size_t len = dir_name(dir, name);
	int err = kiln_lookup(fs, kiln_root(fs), name, len, &st);

	*node = st.node;
	return err;
}

static int object_find(kiln_fs *fs, const struct object *o, unsigned dir, const char *suffix, struct kiln_stat *st)
{
	struct kiln_node node;
	char name[32];
	size_t len = object_name(o, suffix, name);
	int err = dir_find(fs, dir, &node);

	return err ? err : kiln_lookup(fs, node, name, len, st);
}

/* Where objects are that don't move. */
static unsigned home_of(const struct object *o) { return (o->task + o->nr) % DIRS * (o->kind == OBJECT_LOG); }

static struct rng contents_rng(const struct object *o, uint32_t generation)
{
	struct rng rng;

	rng_init(&rng, (uint64_t)generation << 24 | (uint64_t)o->kind << 16 | (uint64_t)o->task << 8 | o->nr);
	return rng;
}

/* Bytes [0, len) of what follows from object and generation, with both at the head. */
static void contents_fill(const struct object *o, uint32_t generation, uint8_t *bytes, size_t len)
{
	struct rng rng = contents_rng(o, generation);
	uint32_t head[2] = { (uint32_t)o->kind << 16 | (uint32_t)o->task << 8 | o->nr, generation };

	for (size_t at = 0; at < len; at += 8) {
		uint64_t v = rng_u64(&rng);

		if (!at)
			memcpy(&v, head, sizeof(v));
		memcpy(bytes + at, &v, min((size_t)8, len - at));
	}
}

static size_t contents_bytes(const struct object *o, uint32_t generation)
{
	struct rng rng = contents_rng(o, ~generation);

	switch (o->kind) {
	case OBJECT_FILE: return 8 + rng_below(&rng, rng_below(&rng, 4) ? 6000 : FILE_BYTES_MAX - 8);
	case OBJECT_RECORD: return record_bytes[o->task];
	default: return 8 + rng_below(&rng, XATTR_BYTES_MAX - 8);
	}
}

static uint32_t head_generation(const uint8_t *bytes)
{
	uint32_t head[2];

	memcpy(head, bytes, sizeof(head));
	return head[1];
}

/* --- history --- */

static struct state state_now(const struct object *o) { return o->states[o->states_nr - 1]; }
static bool has_room(const struct object *o) { return o->states_nr < STATES_MAX; }

/* A call that will make it @next begins. */
static void state_begin(struct object *o, struct state next)
{
	next.begin_ns = clock_monotonic_ns();
	next.end_ns = next.settled_ns = 0;
	o->states[o->states_nr] = next;
	__atomic_store_n(&o->states_nr, o->states_nr + 1, __ATOMIC_RELEASE);
}

static void state_settle(struct object *o)
{
	__atomic_store_n(&o->states[o->states_nr - 1].settled_ns, clock_monotonic_ns(), __ATOMIC_RELEASE);
}

/* It has been made; what the page cache holds of it may still come behind what others do. */
static void state_end(const struct hand *h, struct object *o)
{
	__atomic_store_n(&o->states[o->states_nr - 1].end_ns, clock_monotonic_ns(), __ATOMIC_RELEASE);
	if (!h->door.holds_data)
		state_settle(o);
}

static void promise_add(struct workload *w, unsigned task, unsigned inode, uint64_t begin_ns)
{
	uint32_t nr = __atomic_fetch_add(&w->promises_nr, 1, __ATOMIC_RELAXED);

	if (nr >= PROMISES_MAX)
		return;
	struct promise *p = &w->promises[nr];
	p->task = (uint8_t)task;
	p->inode = (uint8_t)inode;
	p->begin_ns = begin_ns;
	__atomic_store_n(&p->end_ns, clock_monotonic_ns(), __ATOMIC_RELEASE);
}

struct workload *workload_new(unsigned tasks_nr)
{
	struct workload *w = mmap(NULL, sizeof(*w), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (w == MAP_FAILED)
		abort();
	assert(tasks_nr <= TASKS_MAX);
	w->tasks_nr = tasks_nr;
	for (unsigned t = 0; t < tasks_nr; t++)
		for (unsigned i = 0; i < OBJECTS; i++) {
			struct object *o = &w->objects[t][i];

			o->task = (uint8_t)t;
			o->kind = i < FILES		       ? OBJECT_FILE
				  : i < FILES + LOGS	       ? OBJECT_LOG
				  : i < FILES + LOGS + RECORDS ? OBJECT_RECORD
							       : OBJECT_XATTR;
			o->nr = (uint8_t)(i - (o->kind == OBJECT_FILE	  ? 0
					       : o->kind == OBJECT_LOG	  ? FILES
					       : o->kind == OBJECT_RECORD ? FILES + LOGS
									  : FILES + LOGS + RECORDS));
			o->inode = (uint8_t)min(i, (unsigned)FILES + LOGS);
		}
	return w;
}

void workload_free(struct workload *w) { munmap(w, sizeof(*w)); }
uint64_t workload_began_ns(const struct workload *w) { return w->began_ns; }
void workload_promise_all(struct workload *w, uint64_t begin_ns) { promise_add(w, 0, INODE_ALL, begin_ns); }

struct workload_counts workload_count(const struct workload *w)
{
	struct workload_counts counts = { 0 };

	for (unsigned t = 0; t < w->tasks_nr; t++)
		for (unsigned i = 0; i < OBJECTS; i++)
			for (uint32_t s = 1; s < w->objects[t][i].states_nr; s++)
				counts.changes += w->objects[t][i].states[s].end_ns != 0;
	for (uint32_t i = 0; i < min(w->promises_nr, (uint32_t)PROMISES_MAX); i++)
		counts.promises += w->promises[i].end_ns != 0;
	return counts;
}

/* --- changing --- */

#define TRY(h, call)                         \
	do {                                 \
		int err_ = (int)(call);      \
		if (err_ < 0) {              \
			(h)->err = err_;     \
			(h)->failed = #call; \
			return;              \
		}                            \
	} while (0)

static int write_all(struct hand *h, const char *dir, const char *name, uint64_t offset, const uint8_t *bytes,
		     size_t len)
{
	int err = 0;

	while (len && !err) {
		size_t part = min(len, 8 + (size_t)rng_below(&h->rng, 64000));

		err = door_write(&h->door, dir, name, offset, bytes, part);
		offset += part;
		bytes += part;
		len -= part;
	}
	return err;
}

static void object_fsync(struct hand *h, const struct object *o, const char *dir, const char *name)
{
	uint64_t begin_ns = clock_monotonic_ns();

	if (rng_below(&h->rng, h->promise_one_in))
		return;
	TRY(h, door_fsync(&h->door, dir, name));
	promise_add(h->w, o->task, o->inode, begin_ns);
}

/* A new file, renamed over the old one if there is one. */
static void file_replace(struct hand *h, struct object *o)
{
	struct state next = state_now(o);
	char dir[32], name[32], new_name[32];
	bool exists = next.generation != 0;

	object_name(o, "", name);
	object_name(o, ".new", new_name);
	if (!exists)
		next.dir = (uint32_t)rng_below(&h->rng, DIRS);
	dir_name(next.dir, dir);
	next.generation = ++o->generation_last;
	size_t bytes = contents_bytes(o, next.generation);
	contents_fill(o, next.generation, h->bytes, bytes);
	int err = door_unlink(&h->door, dir, new_name); /* left by one that was killed */
	if (err != -ENOENT)
		TRY(h, err);
	TRY(h, door_create(&h->door, dir, new_name, 0644));
	TRY(h, write_all(h, dir, new_name, 0, h->bytes, bytes));
	if (!rng_below(&h->rng, 2 * h->promise_one_in))
		TRY(h, door_fsync(&h->door, dir, new_name));
	TRY(h, door_let_go(&h->door));
	bool is_exchange = exists && !rng_below(&h->rng, 4);
	state_begin(o, next);
	TRY(h, door_rename(&h->door, dir, new_name, dir, name, is_exchange ? KILN_RENAME_EXCHANGE : 0));
	state_end(h, o);
	if (is_exchange)
		TRY(h, door_unlink(&h->door, dir, new_name));
	if (rng_below(&h->rng, 2))
		object_fsync(h, o, dir, name);
}

static void file_unlink(struct hand *h, struct object *o, const char *suffix)
{
	struct state next = state_now(o);
	char dir[32], name[32];

	object_name(o, suffix, name);
	dir_name(suffix[0] ? 0 : next.dir, dir);
	if (suffix[0])
		next.has_link = 0;
	else
		next.generation = next.dir = 0;
	state_begin(o, next);
	TRY(h, door_unlink(&h->door, dir, name));
	state_end(h, o);
}

static void file_move(struct hand *h, struct object *o)
{
	struct state next = state_now(o);
	char from[32], to[32], name[32];

	object_name(o, "", name);
	dir_name(next.dir, from);
	next.dir = (next.dir + 1 + (uint32_t)rng_below(&h->rng, DIRS - 1)) % DIRS;
	dir_name(next.dir, to);
	state_begin(o, next);
	TRY(h, door_rename(&h->door, from, name, to, name, KILN_RENAME_NOREPLACE));
	state_end(h, o);
}

static void file_link(struct hand *h, struct object *o)
{
	struct state next = state_now(o);
	char dir[32], to_dir[32], name[32], link_name[32];

	object_name(o, "", name);
	object_name(o, ".link", link_name);
	dir_name(next.dir, dir);
	dir_name(0, to_dir);
	next.has_link = 1;
	state_begin(o, next);
	TRY(h, door_link(&h->door, dir, name, to_dir, link_name));
	state_end(h, o);
}

static void file_change(struct hand *h, struct object *o)
{
	struct state now = state_now(o);
	uint64_t what = rng_below(&h->rng, 8);
	char dir[32], name[32];

	if (now.generation && what == 0) {
		file_move(h, o);
	} else if (now.generation && what == 1 && !now.has_link) {
		file_link(h, o);
	} else if (now.generation && what == 2 && rng_below(&h->rng, 2)) {
		object_name(o, "", name);
		dir_name(now.dir, dir);
		object_fsync(h, o, dir, name);
	} else if (now.has_link) {
		file_unlink(h, o, ".link");
	} else if (now.generation && what == 3) {
		file_unlink(h, o, "");
	} else {
		file_replace(h, o);
	}
}

static void log_grow(struct hand *h, struct object *o)
{
	struct state next = state_now(o);
	char dir[32], name[32];

	object_name(o, "", name);
	dir_name(home_of(o), dir);
	if (!next.generation) {
		next.generation = ++o->generation_last;
		state_begin(o, next);
		TRY(h, door_create(&h->door, dir, name, 0600));
		state_end(h, o);
	} else if (next.bytes + PIECE_BYTES_MAX > LOG_BYTES_MAX || !rng_below(&h->rng, 40)) {
		next.generation = next.bytes = 0;
		state_begin(o, next);
		TRY(h, door_unlink(&h->door, dir, name));
		state_end(h, o);
	} else {
		size_t piece = 8 + rng_below(&h->rng, rng_below(&h->rng, 3) ? 300 : PIECE_BYTES_MAX - 8);
		uint64_t at = next.bytes;

		next.bytes += (uint32_t)piece;
		contents_fill(o, next.generation, h->bytes, next.bytes);
		state_begin(o, next);
		TRY(h, write_all(h, dir, name, at, h->bytes + at, piece));
		state_end(h, o);
		if (!rng_below(&h->rng, 4))
			object_fsync(h, o, dir, name);
	}
}

static int record_write(struct hand *h, const struct object *o, uint32_t generation, const char *dir, const char *name)
{
	size_t bytes = contents_bytes(o, generation);

	contents_fill(o, generation, h->bytes, bytes);
	return door_write(&h->door, dir, name, o->nr * bytes, h->bytes, bytes);
}

static size_t xattr_name(const struct object *o, char name[32])
{
	return (size_t)snprintf(name, 32, "user.x%u", o->nr);
}

static void record_change(struct hand *h, struct object *o)
{
	struct state next = state_now(o);
	char dir[32], name[32], key[32];

	object_name(o, "", name);
	dir_name(home_of(o), dir);
	bool is_removed = o->kind == OBJECT_XATTR && next.generation && !rng_below(&h->rng, 3);
	next.generation = is_removed ? 0 : ++o->generation_last;
	if (o->kind == OBJECT_RECORD) {
		state_begin(o, next);
		TRY(h, record_write(h, o, next.generation, dir, name));
	} else if (is_removed) {
		xattr_name(o, key);
		state_begin(o, next);
		TRY(h, door_removexattr(&h->door, dir, name, key));
	} else {
		size_t bytes = contents_bytes(o, next.generation);

		xattr_name(o, key);
		contents_fill(o, next.generation, h->bytes, bytes);
		state_begin(o, next);
		TRY(h, door_setxattr(&h->door, dir, name, key, h->bytes, bytes));
	}
	state_end(h, o);
	if (!rng_below(&h->rng, 3))
		object_fsync(h, o, dir, name);
}

static void all_sync(struct hand *h)
{
	uint64_t begin_ns = clock_monotonic_ns();
	int err = door_sync(&h->door);

	if (err == -EOPNOTSUPP)
		return;
	TRY(h, err);
	promise_add(h->w, 0, INODE_ALL, begin_ns);
}

static void hand_step(struct hand *h)
{
	struct object *o = &h->w->objects[h->task][rng_below(&h->rng, OBJECTS)];

	if (!rng_below(&h->rng, 25 * h->promise_one_in))
		all_sync(h);
	if (h->err || !has_room(o))
		return;
	switch (o->kind) {
	case OBJECT_FILE: file_change(h, o); break;
	case OBJECT_LOG: log_grow(h, o); break;
	default: record_change(h, o); break;
	}
	bool is_to_settle = h->door.holds_data && !h->err;
	TRY(h, door_let_go(&h->door));
	if (is_to_settle)
		state_settle(o);
}

static void hand_open(struct hand *h, const struct workload *w, struct door door)
{
	*h = (struct hand){ .w = (struct workload *)w, .door = door };
	h->bytes = malloc(BUFFER_BYTES);
	h->want = malloc(BUFFER_BYTES);
	if (!h->bytes || !h->want)
		abort();
}

static void hand_close(struct hand *h)
{
	free(h->bytes);
	free(h->want);
}

static void hand_task(void *arg)
{
	struct hand *h = arg;

	for (uint64_t i = 0; i < h->ops && !h->err; i++)
		hand_step(h);
	if (h->err)
		printf("task %u: %s: %s\n", h->task, h->failed, strerror(-h->err));
}

static void hand_prepare(struct hand *h, struct workload *w, struct door door, unsigned task, uint64_t seed,
			 uint64_t ops)
{
	struct rng rng;

	hand_open(h, w, door);
	h->task = task;
	h->ops = ops;
	rng_init(&rng, seed);
	h->promise_one_in = 1ull << rng_below(&rng, 5);
	rng_init(&h->rng, seed * TASKS_MAX + task);
}

int workload_run(struct workload *w, kiln_fs *fs, uint64_t seed, uint64_t ops)
{
	struct hand hands[TASKS_MAX];
	struct task *tasks[TASKS_MAX];
	int err = 0;

	for (unsigned t = 0; t < w->tasks_nr; t++) {
		hand_prepare(&hands[t], w, door_of_library(fs), t, seed, ops);
		if (task_start(&tasks[t], "hand", hand_task, &hands[t]))
			abort();
	}
	for (unsigned t = 0; t < w->tasks_nr; t++) {
		task_join(tasks[t]);
		if (!err)
			err = hands[t].err;
		hand_close(&hands[t]);
	}
	return err;
}

int workload_run_mounted(struct workload *w, const char *mountpoint, uint64_t seed, uint64_t ops)
{
	pid_t pids[TASKS_MAX];
	int err = 0, status;

	fflush(stdout);
	for (unsigned t = 0; t < w->tasks_nr; t++) {
		pids[t] = fork();
		if (pids[t] < 0)
			abort();
		if (pids[t])
			continue;
		struct hand h;
		hand_prepare(&h, w, door_of_mount(mountpoint, seed + t), t, seed, ops);
		hand_task(&h);
		fflush(stdout);
		_exit(h.err ? 1 : 0);
	}
	for (unsigned t = 0; t < w->tasks_nr; t++)
		if (waitpid(pids[t], &status, 0) < 0 || status)
			err = -EIO;
	return err;
}

int workload_prepare(const struct workload *w, kiln_fs *fs)
{
	struct kiln_create create = { .mode = S_IFDIR | 0755 };
	struct kiln_node dir;
	char dir_text[32], name[32];
	struct hand h;
	int err = 0;

	for (unsigned d = 0; d < DIRS && !err; d++)
		err = kiln_create(fs, kiln_root(fs), name, dir_name(d, name), &create, NULL);
	if (!err)
		err = dir_find(fs, 0, &dir);
	dir_name(0, dir_text);
	hand_open(&h, w, door_of_library(fs));
	create.mode = 0644;
	for (unsigned t = 0; t < w->tasks_nr && !err; t++) {
		const struct object *records = &w->objects[t][FILES + LOGS];

		err = kiln_create(fs, dir, name, object_name(records, "", name), &create, NULL);
		for (unsigned r = 0; r < RECORDS && !err; r++)
			err = record_write(&h, &records[r], 1, dir_text, name);
	}
	hand_close(&h);
	return err ? err : kiln_sync(fs);
}

/* --- reading --- */

static int wrong(const struct object *o, struct strbuf *why, const char *what, int err)
{
	char name[32];

	object_name(o, "", name);
	strbuf_printf(why, "%s (part %u): %s%s%s", name, o->nr, what, err ? ": " : "", err ? strerror(-err) : "");
	return err ? err : -EPROTO;
}

static int contents_check(struct hand *h, const struct object *o, uint32_t generation, size_t bytes, struct strbuf *why)
{
	contents_fill(o, generation, h->want, bytes);
	for (size_t i = 0; i < bytes; i++)
		if (h->bytes[i] != h->want[i]) {
			char what[96];

			snprintf(what, sizeof(what), "byte %zu of %zu of generation %u is wrong", i, bytes, generation);
			return wrong(o, why, what, 0);
		}
	return 0;
}

static int file_read(struct hand *h, const struct object *o, struct state *now, struct strbuf *why)
{
	struct kiln_stat st = { 0 }, found, linked;
	unsigned names = 0;
	int err;

	for (unsigned d = 0; d < DIRS; d++) {
		err = object_find(h->door.fs, o, d, "", &found);
		if (err && err != -ENOENT)
			return wrong(o, why, "lookup", err);
		if (!err) {
			st = found;
			now->dir = d;
			names++;
		}
	}
	err = object_find(h->door.fs, o, 0, ".link", &linked);
	if (err && err != -ENOENT)
		return wrong(o, why, "lookup of the link", err);
	now->has_link = !err;
	if (names > 1)
		return wrong(o, why, "has a name in two directories", 0);
	if (!names)
		return now->has_link ? wrong(o, why, "only its link is there", 0) : 0;
	if (now->has_link && linked.node.ino != st.node.ino)
		return wrong(o, why, "the link is to something else", 0);
	if (st.nlink != 1 + now->has_link)
		return wrong(o, why, "the number of links is wrong", 0);
	ssize_t n = kiln_read(h->door.fs, st.node, 0, h->bytes, BUFFER_BYTES);
	if (n < 8)
		return wrong(o, why, "contents", n < 0 ? (int)n : 0);
	now->generation = head_generation(h->bytes);
	if ((uint64_t)n != st.size || contents_bytes(o, now->generation) != (size_t)n)
		return wrong(o, why, "has the wrong size", 0);
	return contents_check(h, o, now->generation, (size_t)n, why);
}

static int log_read(struct hand *h, const struct object *o, struct state *now, struct strbuf *why)
{
	struct kiln_stat st;
	int err = object_find(h->door.fs, o, home_of(o), "", &st);

	if (err)
		return err == -ENOENT ? 0 : wrong(o, why, "lookup", err);
	ssize_t n = kiln_read(h->door.fs, st.node, 0, h->bytes, BUFFER_BYTES);
	if (n < 0 || (uint64_t)n != st.size)
		return wrong(o, why, "contents", n < 0 ? (int)n : 0);
	if (n && n < 8)
		return wrong(o, why, "is shorter than what is written at once", 0);
	now->generation = n ? head_generation(h->bytes) : GENERATION_ANY;
	now->bytes = (uint32_t)n;
	return n ? contents_check(h, o, now->generation, (size_t)n, why) : 0;
}

static int record_read(struct hand *h, const struct object *o, struct state *now, struct strbuf *why)
{
	struct kiln_stat st;
	char name[32];
	int err = object_find(h->door.fs, o, home_of(o), "", &st);
	ssize_t n;

	if (err)
		return wrong(o, why, "lookup", err);
	if (o->kind == OBJECT_RECORD) {
		size_t bytes = record_bytes[o->task];

		n = kiln_read(h->door.fs, st.node, o->nr * bytes, h->bytes, bytes);
	} else {
		xattr_name(o, name);
		n = kiln_getxattr(h->door.fs, st.node, name, h->bytes, BUFFER_BYTES);
		if (n == -ENODATA)
			return 0;
	}
	if (n < 8)
		return wrong(o, why, "contents", n < 0 ? (int)n : 0);
	now->generation = head_generation(h->bytes);
	if (contents_bytes(o, now->generation) != (size_t)n)
		return wrong(o, why, "has the wrong size", 0);
	return contents_check(h, o, now->generation, (size_t)n, why);
}

static int object_read(struct hand *h, const struct object *o, struct state *now, struct strbuf *why)
{
	*now = (struct state){ 0 };
	switch (o->kind) {
	case OBJECT_FILE: return file_read(h, o, now, why);
	case OBJECT_LOG: return log_read(h, o, now, why);
	default: return record_read(h, o, now, why);
	}
}

int workload_find(struct workload *w, kiln_fs *fs, struct strbuf *why)
{
	struct hand h;
	int err = 0;

	hand_open(&h, w, door_of_library(fs));
	for (unsigned t = 0; t < w->tasks_nr && !err; t++)
		for (unsigned i = 0; i < OBJECTS && !err; i++) {
			struct object *o = &w->objects[t][i];

			err = object_read(&h, o, &o->states[0], why);
			if (o->states[0].generation == GENERATION_ANY)
				o->states[0].generation = o->generation_last + 1;
			o->states[0].end_ns = 1;
			o->states_nr = 1;
			o->generation_last = max(o->generation_last, o->states[0].generation);
		}
	hand_close(&h);
	w->promises_nr = 0;
	w->began_ns = clock_monotonic_ns();
	return err;
}

/* --- what must be there --- */

/* A state, or a part of its last piece, fits what was found if the crash was between these times. */
struct span {
	uint64_t begin_ns, end_ns;
};

/* When the last call began that promised @o and returned before @crash_ns. */
static uint64_t promised_ns(const struct workload *w, const struct object *o, uint64_t crash_ns)
{
	uint64_t ns = 1;

	for (uint32_t i = 0; i < min(w->promises_nr, (uint32_t)PROMISES_MAX); i++) {
		const struct promise *p = &w->promises[i];

		if (p->end_ns && p->end_ns <= crash_ns && p->begin_ns > ns &&
		    (p->inode == INODE_ALL || (p->inode == o->inode && p->task == o->task)))
			ns = p->begin_ns;
	}
	return ns;
}

/* The times that @found, at or behind state @oldest, can be of. Their number. */
static unsigned spans_find(const struct object *o, const struct state *found, uint32_t oldest, uint64_t crash_ns,
			   struct span *spans)
{
	unsigned nr = 0;

	for (uint32_t i = oldest; i < o->states_nr && o->states[i].begin_ns <= crash_ns; i++) {
		const struct state *s = &o->states[i], *next = i + 1 < o->states_nr ? s + 1 : NULL;
		bool is_same = (s->generation == found->generation ||
				(s->generation && found->generation == GENERATION_ANY)) &&
			       s->dir == found->dir && s->has_link == found->has_link && s->bytes == found->bytes;
		bool is_between = o->kind == OBJECT_LOG && next && s->generation == found->generation &&
				  next->generation == found->generation && s->bytes < found->bytes &&
				  found->bytes < next->bytes;

		if (is_same || is_between)
			spans[nr++] = (struct span){ is_same ? s->begin_ns : next->begin_ns,
						     next && next->settled_ns ? next->settled_ns : UINT64_MAX };
	}
	return nr;
}

static uint32_t oldest_allowed(const struct object *o, uint64_t promised)
{
	uint32_t i = o->states_nr - 1;

	while (i && (!o->states[i].end_ns || o->states[i].end_ns > promised))
		i--;
	return i;
}

static void state_to_text(const struct state *s, struct strbuf *out)
{
	strbuf_printf(out, "generation %u in dir%u, %u bytes%s (%llu..%llu)", s->generation, s->dir, s->bytes,
		      s->has_link ? ", linked" : "", (unsigned long long)s->begin_ns, (unsigned long long)s->end_ns);
}

static int tell_mismatch(const struct object *o, const struct state *found, uint32_t oldest, uint64_t crash_ns,
			 struct strbuf *why)
{
	wrong(o, why, "is ", 0);
	state_to_text(found, why);
	strbuf_printf(why, "; at %llu it must be one of:", (unsigned long long)crash_ns);
	for (uint32_t i = oldest; i < o->states_nr && i < oldest + 6; i++) {
		strbuf_add(why, "\n    ");
		state_to_text(&o->states[i], why);
	}
	return -EPROTO;
}

/* Is there a moment that all spans of some object, for all objects, have in common? It begins where one of them does.
 */
static bool has_moment(struct span (*spans)[STATES_MAX], const unsigned *spans_nr, unsigned objects_nr, uint64_t at,
		       unsigned *missed)
{
	for (unsigned i = 0; i < objects_nr; i++) {
		unsigned k = 0;

		while (k < spans_nr[i] && (spans[i][k].begin_ns > at || spans[i][k].end_ns < at))
			k++;
		if (k == spans_nr[i]) {
			*missed = i;
			return false;
		}
	}
	return true;
}

static int moment_find(const struct workload *w, struct span (*spans)[STATES_MAX], const unsigned *spans_nr,
		       struct strbuf *why)
{
	unsigned objects_nr = w->tasks_nr * OBJECTS, missed = 0, last = 0;
	uint64_t latest = 0;

	for (unsigned i = 0; i < objects_nr; i++)
		for (unsigned k = 0; k < spans_nr[i]; k++)
			if (has_moment(spans, spans_nr, objects_nr, spans[i][k].begin_ns, &missed))
				return 0;
	/* The latest of all that is there must have come without something earlier. */
	for (unsigned i = 0; i < objects_nr; i++)
		if (spans[i][0].begin_ns > latest) {
			latest = spans[i][0].begin_ns;
			last = i;
		}
	has_moment(spans, spans_nr, objects_nr, latest, &missed);
	wrong(&w->objects[last / OBJECTS][last % OBJECTS], why, "is there without something earlier of ", 0);
	return wrong(&w->objects[missed / OBJECTS][missed % OBJECTS], why, "which is older", 0);
}

int workload_verify(const struct workload *w, kiln_fs *fs, uint64_t crash_ns, struct strbuf *why)
{
	struct span(*spans)[STATES_MAX] = malloc(sizeof(*spans) * TASKS_MAX * OBJECTS);
	unsigned spans_nr[TASKS_MAX * OBJECTS];
	struct state found;
	struct hand h;
	int err = 0;

	hand_open(&h, w, door_of_library(fs));
	for (unsigned i = 0; i < w->tasks_nr * OBJECTS && !err; i++) {
		const struct object *o = &w->objects[i / OBJECTS][i % OBJECTS];

		err = object_read(&h, o, &found, why);
		if (err)
			break;
		uint32_t oldest = oldest_allowed(o, promised_ns(w, o, crash_ns));
		spans_nr[i] = spans_find(o, &found, oldest, crash_ns, spans[i]);
		if (!spans_nr[i])
			err = tell_mismatch(o, &found, oldest, crash_ns, why);
	}
	if (!err)
		err = moment_find(w, spans, spans_nr, why);
	hand_close(&h);
	free(spans);
	return err;
}
