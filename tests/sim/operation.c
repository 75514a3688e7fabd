/* Operations on a filesystem. See operation.h. */
#include "operation.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "acl.h"
#include "base/util.h"

enum { XATTR_BYTES_MAX = 900 };

static const char *const kind_names[OP_KIND_NR] = {
	[OP_CREATE] = "create",	    [OP_SYMLINK] = "symlink",	  [OP_UNNAMED] = "unnamed",
	[OP_LINK] = "link",	    [OP_UNLINK] = "unlink",	  [OP_RMDIR] = "rmdir",
	[OP_RENAME] = "rename",	    [OP_WRITE] = "write",	  [OP_PUNCH] = "punch",
	[OP_TRUNCATE] = "truncate", [OP_FALLOCATE] = "fallocate", [OP_COPY] = "copy",
	[OP_SETATTR] = "setattr",   [OP_SETXATTR] = "setxattr",	  [OP_REMOVEXATTR] = "removexattr",
	[OP_SETACL] = "setacl",	    [OP_HOLD] = "hold",		  [OP_RELEASE] = "release",
	[OP_FSYNC] = "fsync",	    [OP_SYNC] = "sync",		  [OP_READ] = "read",
	[OP_LIST] = "list",	    [OP_BATCH] = "batch",	  [OP_SETOPTION] = "setoption",
	[OP_WAIT] = "wait",
};

const struct operation_limits operation_limits_default = {
	.files_max = 150,
	.file_bytes_max = 1 << 20,
	.total_bytes_max = 6 << 20,
	.weights = {
		[OP_CREATE] = 16, [OP_SYMLINK] = 3, [OP_UNNAMED] = 1,	[OP_LINK] = 5,	   [OP_UNLINK] = 10,
		[OP_RMDIR] = 3,	  [OP_RENAME] = 9,  [OP_WRITE] = 30,	[OP_PUNCH] = 5,	   [OP_TRUNCATE] = 7,
		[OP_SETATTR] = 5, [OP_SETXATTR] = 5, [OP_REMOVEXATTR] = 2, [OP_HOLD] = 1,  [OP_RELEASE] = 2,
		[OP_FSYNC] = 4,	  [OP_SYNC] = 2,    [OP_READ] = 8,	[OP_LIST] = 2,
		[OP_FALLOCATE] = 12, [OP_COPY] = 8, [OP_SETACL] = 4,	[OP_BATCH] = 5,
		[OP_SETOPTION] = 3, [OP_WAIT] = 1,
	},
};

/* --- drawing --- */

typedef bool (*object_filter)(const struct model_object *o);
static bool is_dir(const struct model_object *o) { return o->exists && S_ISDIR(o->mode); }
static bool is_file(const struct model_object *o) { return o->exists && S_ISREG(o->mode); }
static bool is_no_dir(const struct model_object *o) { return o->exists && !S_ISDIR(o->mode); }
static bool is_any(const struct model_object *o) { return o->exists; }
static bool is_held(const struct model_object *o) { return o->exists && o->held; }
static bool has_xattr(const struct model_object *o)
{
	for (unsigned i = 0; i < MODEL_XATTRS_MAX; i++)
		if (o->xattrs[i].name[0])
			return o->exists;
	return false;
}

/* UINT32_MAX: there is none. */
static unsigned draw_object(struct rng *rng, const struct model *m, object_filter filter)
{
	unsigned found = UINT32_MAX, nr = 0;

	for (unsigned i = 0; i < m->nr; i++)
		if (filter(&m->objects[i]) && !rng_below(rng, ++nr))
			found = i;
	return found;
}

static void draw_name(struct rng *rng, const struct operation_limits *limits, unsigned dir, char name[256])
{
	unsigned len = rng_below(rng, 16) ? 1 : 200;
	char mate[2] = { dir == MODEL_ROOT ? (char)(OPERATION_MATE_LETTER + limits->mate) : 0, 0 };

	/* Few different ones, so that they meet. */
	char letter = (char)('a' + rng_below(rng, 26));
	snprintf(name, 256, "%s%c%llu", mate, letter, (unsigned long long)rng_below(rng, 30));
	if (len > 1) {
		size_t at = strlen(name);

		memset(name + at, 'x', len);
		name[at + len] = 0;
	}
}

/* A name in some directory; false: all are empty. */
static bool draw_entry(struct rng *rng, const struct model *m, bool want_dir, unsigned *dir, char name[256],
		       unsigned *id)
{
	unsigned nr = 0;

	for (unsigned i = 0; i < m->nr; i++)
		for (size_t k = 0; is_dir(&m->objects[i]) && k < m->objects[i].entries_nr; k++) {
			const struct model_entry *e = &m->objects[i].entries[k];

			if (S_ISDIR(m->objects[e->id].mode) != want_dir || rng_below(rng, ++nr))
				continue;
			*dir = i;
			*id = e->id;
			snprintf(name, 256, "%s", e->name);
		}
	return nr;
}

static uint64_t total_bytes(const struct model *m)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < m->nr; i++)
		bytes += m->objects[i].size;
	return bytes;
}

static uint64_t objects_nr(const struct model *m)
{
	uint64_t nr = 0;

	for (unsigned i = 0; i < m->nr; i++)
		nr += m->objects[i].exists;
	return nr;
}

/* A size or offset: all magnitudes, often on a boundary. */
static uint64_t draw_bytes(struct rng *rng, uint64_t max_bytes)
{
	unsigned bits = (unsigned)rng_below(rng, bit_length_u64(max_bytes) + 1);
	uint64_t bytes = bits ? rng_u64(rng) >> (64 - bits) : 0;

	switch (rng_below(rng, 4)) {
	case 0: bytes = round_down_u64(bytes, 4096); break;
	case 1: bytes = round_down_u64(bytes, 512); break;
	default: break;
	}
	return min(bytes, max_bytes);
}

/* Setgid directories hand on their group; of files such bits come and go by rules of their own (test_change_rules.c).
 */
static uint32_t draw_dir_bits(struct rng *rng) { return rng_below(rng, 4) ? 0 : (uint32_t)rng_below(rng, 4) << 9; }

static void draw_creation(struct operation *op, struct rng *rng, const struct model *m,
			  const struct operation_limits *limits)
{
	static const uint32_t types[] = { S_IFREG, S_IFREG, S_IFREG,  S_IFREG, S_IFREG, S_IFDIR,
					  S_IFDIR, S_IFIFO, S_IFSOCK, S_IFBLK, S_IFCHR };

	op->dir = draw_object(rng, m, is_dir);
	draw_name(rng, limits, op->dir, op->name);
	op->mode = types[rng_below(rng, ARRAY_NR(types))];
	op->mode |= (uint32_t)rng_below(rng, 01000);
	if (S_ISDIR(op->mode))
		op->mode |= draw_dir_bits(rng);
	op->umask = rng_below(rng, 2) ? 027 : 0;
	op->uid = (uint32_t)rng_below(rng, 3) * 1000;
	op->gid = (uint32_t)rng_below(rng, 3) * 1000;
	if (op->kind == OP_CREATE && (S_ISBLK(op->mode) || S_ISCHR(op->mode))) {
		op->rdev_major = 1 + (uint32_t)rng_below(rng, 255);
		op->rdev_minor = (uint32_t)rng_below(rng, 256);
	}
	if (op->kind == OP_UNNAMED)
		op->mode = S_IFREG | 0600;
	op->len = 1 + (rng_below(rng, 4) ? rng_below(rng, 60) : rng_below(rng, 1000));
}

static bool draw_batch(struct operation *op, struct rng *rng, const struct model *m,
		       const struct operation_limits *limits)
{
	draw_creation(op, rng, m, limits);
	op->count = 1 + (unsigned)rng_below(rng, OPERATION_BATCH_MAX);
	op->mode &= 0777;
	op->data_seed = rng_u64(rng);
	op->mtime.sec = (int64_t)rng_below(rng, 4000000000u);
	op->len = draw_bytes(rng, limits->batch_bytes_max);
	return objects_nr(m) + op->count <= limits->files_max && total_bytes(m) < limits->total_bytes_max;
}

static bool draw_rename(struct operation *op, struct rng *rng, const struct model *m,
			const struct operation_limits *limits)
{
	unsigned other;

	op->flags = (unsigned)rng_below(rng, 3);
	op->dir2 = draw_object(rng, m, is_dir);
	draw_name(rng, limits, op->dir2, op->name2);
	/* Often onto something. */
	if (rng_below(rng, 2) && !draw_entry(rng, m, rng_below(rng, 2), &op->dir2, op->name2, &other))
		return false;
	return draw_entry(rng, m, !rng_below(rng, 3), &op->dir, op->name, &op->id);
}

/* How large the file may become. */
static uint64_t size_max(const struct model *m, const struct model_object *o, const struct operation_limits *limits)
{
	uint64_t room = limits->total_bytes_max - min(limits->total_bytes_max, total_bytes(m));

	return min(limits->file_bytes_max, o->size + room);
}

static bool draw_content(struct operation *op, struct rng *rng, const struct model *m,
			 const struct operation_limits *limits)
{
	op->id = draw_object(rng, m, is_file);
	if (op->id == UINT32_MAX)
		return false;
	const struct model_object *o = &m->objects[op->id];
	uint64_t max_bytes = size_max(m, o, limits);

	op->data_seed = rng_u64(rng);
	switch (rng_below(rng, 4)) {
	case 0: op->offset = o->size; break;
	case 1: op->offset = draw_bytes(rng, max_bytes); break;
	default: op->offset = draw_bytes(rng, o->size); break;
	}
	op->offset = min(op->offset, max_bytes);
	if (op->kind == OP_TRUNCATE)
		return true;
	if (op->kind == OP_READ) {
		op->len = draw_bytes(rng, max_bytes + 1000);
		return true;
	}
	op->len = max(draw_bytes(rng, limits->file_bytes_max / 2), (uint64_t)(op->kind == OP_PUNCH));
	if (op->kind == OP_WRITE) {
		op->len = min(op->len, max_bytes - op->offset);
		op->flags = rng_below(rng, limits->is_nocow ? 4 : 2) ? KILN_WRITE_KEEP_TIMES : 0;
		op->may_be_unknown = op->flags && limits->is_nocow;
		/* What only overwrites changes no key. */
		if (op->may_be_unknown && op->offset < o->size)
			op->len = min(op->len, o->size - op->offset);
	}
	return true;
}

/* In place, what counts is to sync what has just been written, before anything else flushes its device. */
static unsigned draw_to_sync(struct rng *rng, const struct model *m, const struct operation_limits *limits)
{
	unsigned id = draw_object(rng, m, is_any);

	for (unsigned i = 0; limits->is_nocow && i < m->nr; i++)
		if (is_file(&m->objects[i]) && m->objects[i].content_op > m->objects[id].content_op)
			id = i;
	return id;
}

static bool draw_fallocate(struct operation *op, struct rng *rng, const struct model *m,
			   const struct operation_limits *limits)
{
	enum { BLOCK = 4096 }; /* a multiple of any that is used */
	static const unsigned modes[] = { 0,
					  KILN_FALLOC_KEEP_SIZE,
					  KILN_FALLOC_ZERO_RANGE,
					  KILN_FALLOC_ZERO_RANGE | KILN_FALLOC_KEEP_SIZE,
					  KILN_FALLOC_COLLAPSE_RANGE,
					  KILN_FALLOC_COLLAPSE_RANGE,
					  KILN_FALLOC_INSERT_RANGE,
					  KILN_FALLOC_INSERT_RANGE };

	if (!draw_content(op, rng, m, limits))
		return false;
	uint64_t size = m->objects[op->id].size, max_bytes = size_max(m, &m->objects[op->id], limits);
	op->flags = modes[rng_below(rng, sizeof(modes) / sizeof(modes[0]))];
	switch (op->flags) {
	case KILN_FALLOC_COLLAPSE_RANGE:
		op->offset = round_down_u64(op->offset, BLOCK);
		op->len = round_down_u64(min(op->len, size / 2), BLOCK);
		return op->len && op->offset + op->len < size;
	case KILN_FALLOC_INSERT_RANGE:
		op->offset = round_down_u64(op->offset, BLOCK);
		op->len = round_down_u64(min(op->len, max_bytes - min(size, max_bytes)), BLOCK);
		return op->len && op->offset < size;
	default: /* what is promised behind the end isn't in the model's total */
		op->len = min(op->len, op->flags & KILN_FALLOC_KEEP_SIZE ? (uint64_t)64 << 10 : max_bytes - op->offset);
		return op->len;
	}
}

static bool draw_copy(struct operation *op, struct rng *rng, const struct model *m,
		      const struct operation_limits *limits)
{
	enum { BLOCK = 4096 };

	op->id2 = draw_object(rng, m, is_file);
	if (op->id2 == UINT32_MAX || !draw_content(op, rng, m, limits))
		return false;
	op->offset2 = draw_bytes(rng, m->objects[op->id2].size);
	if (rng_below(rng, 3)) {
		op->offset = round_down_u64(op->offset, BLOCK);
		op->offset2 = round_down_u64(op->offset2, BLOCK);
	}
	op->len = min(op->len, size_max(m, &m->objects[op->id], limits) - op->offset);
	op->flags = rng_below(rng, 4) ? 0 : KILN_COPY_SHARE;
	if (op->flags && rng_below(rng, 2))
		op->len = round_down_u64(op->len, BLOCK);
	return op->len &&
	       (op->id != op->id2 || op->offset >= op->offset2 + op->len || op->offset2 >= op->offset + op->len);
}

static struct kiln_timespec draw_time(struct rng *rng)
{
	struct kiln_timespec t = { .sec = (int64_t)rng_below(rng, 4000000000u) };

	t.nsec = (uint32_t)rng_below(rng, 1000000000);
	return t;
}

static bool draw_attributes(struct operation *op, struct rng *rng, const struct model *m,
			    const struct operation_limits *limits)
{
	op->id = draw_object(rng, m, op->kind == OP_REMOVEXATTR ? has_xattr : is_any);
	if (op->id == UINT32_MAX || (op->id == MODEL_ROOT && limits->mate))
		return false;
	op->mode = (uint32_t)rng_below(rng, 01000);
	/* What is made in the root directory would be others' business. */
	if (S_ISDIR(m->objects[op->id].mode) && op->id != MODEL_ROOT)
		op->mode |= draw_dir_bits(rng);
	op->uid = (uint32_t)rng_below(rng, 3) * 1000;
	op->gid = (uint32_t)rng_below(rng, 3) * 1000;
	op->fields = (unsigned)rng_u64(rng) & (KILN_SET_MODE | KILN_SET_UID | KILN_SET_GID | KILN_SET_MTIME |
					       KILN_SET_ATIME | KILN_SET_BTIME | KILN_SET_FLAGS);
	op->attr_flags = (uint32_t)rng_u64(rng) & (FS_SYNC_FL | FS_NODUMP_FL | FS_NOATIME_FL);
	op->mtime = draw_time(rng);
	op->atime = draw_time(rng);
	op->btime = draw_time(rng);
	if (op->id == MODEL_ROOT && limits->mates_nr > 1) /* the others change it, too */
		op->fields &= ~(unsigned)KILN_SET_MTIME;
	if (S_ISLNK(m->objects[op->id].mode))
		op->fields &= ~(unsigned)KILN_SET_MODE;
	op->xattr = (unsigned)rng_below(rng, op->kind == OP_REMOVEXATTR ? MODEL_XATTRS_MAX : MODEL_XATTRS_USER);
	op->data_seed = rng_u64(rng);
	op->len = rng_below(rng, 4) ? rng_below(rng, 40) : rng_below(rng, XATTR_BYTES_MAX);
	op->flags = op->kind == OP_SETXATTR && !rng_below(rng, 3) ? 1 + (unsigned)rng_below(rng, 2) : 0;
	if (op->kind == OP_SETXATTR)
		return S_ISREG(m->objects[op->id].mode) || S_ISDIR(m->objects[op->id].mode);
	return op->kind == OP_SETATTR || m->objects[op->id].xattrs[op->xattr].name[0];
}

static bool draw_acl(struct operation *op, struct rng *rng, const struct model *m,
		     const struct operation_limits *limits)
{
	op->id = draw_object(rng, m, rng_below(rng, 2) ? is_dir : is_any);
	op->xattr = rng_below(rng, 2) ? MODEL_XATTR_ACL_ACCESS : MODEL_XATTR_ACL_DEFAULT;
	op->data_seed = rng_u64(rng);
	/* What all inherit from it none of them could know. */
	return op->id != MODEL_ROOT || limits->mates_nr == 1 || (!limits->mate && op->xattr == MODEL_XATTR_ACL_ACCESS);
}

/* @flags is the number of the value. */
const char *operation_option(const struct operation *op)
{
	static const char *const compressions[] = { "none", "lz4", "lz4:3", "gzip", "zstd", "zstd:2" };
	static const char *const checksums[] = { "crc32c", "crc64", "xxhash", "none" };
	static const char *const numbers[] = { "0", "1", "2", "3" };
	static const char *const targets[] = { "fast", "slow" };

	switch (op->xattr) {
	case MODEL_XATTR_DATA_CHECKSUM: return checksums[op->flags];
	case MODEL_XATTR_COMPRESSION:
	case MODEL_XATTR_BACKGROUND_COMPRESSION: return compressions[op->flags];
	case MODEL_XATTR_FOREGROUND_TARGET:
	case MODEL_XATTR_BACKGROUND_TARGET: return targets[op->flags];
	default: return numbers[op->flags];
	}
}

static bool draw_option(struct operation *op, struct rng *rng, const struct model *m,
			const struct operation_limits *limits)
{
	unsigned replicas = limits->data_replicas_max - limits->data_replicas_min + 1;

	op->id = draw_object(rng, m, is_file);
	op->xattr = MODEL_XATTR_OPTIONS + (unsigned)rng_below(rng, MODEL_XATTRS_MAX - MODEL_XATTR_OPTIONS);
	switch (op->xattr) {
	case MODEL_XATTR_DATA_CHECKSUM: op->flags = (unsigned)rng_below(rng, limits->has_data_checksums ? 3 : 4); break;
	case MODEL_XATTR_COMPRESSION:
	case MODEL_XATTR_BACKGROUND_COMPRESSION: op->flags = (unsigned)rng_below(rng, 6); break;
	case MODEL_XATTR_DATA_REPLICAS:
		op->flags = limits->data_replicas_min + (unsigned)rng_below(rng, replicas);
		break;
	case MODEL_XATTR_PROJECT: op->flags = (unsigned)rng_below(rng, 4); break;
	default: op->flags = (unsigned)rng_below(rng, 2); break;
	}
	bool is_target = op->xattr == MODEL_XATTR_FOREGROUND_TARGET || op->xattr == MODEL_XATTR_BACKGROUND_TARGET;
	return op->id != UINT32_MAX && (limits->has_targets || !is_target) &&
	       (limits->is_nocow || op->xattr != MODEL_XATTR_NOCOW);
}

static bool try_draw(struct operation *op, struct rng *rng, const struct model *m,
		     const struct operation_limits *limits)
{
	switch (op->kind) {
	case OP_CREATE:
	case OP_SYMLINK:
	case OP_UNNAMED: draw_creation(op, rng, m, limits); return objects_nr(m) < limits->files_max;
	case OP_LINK:
		op->dir = draw_object(rng, m, is_dir);
		draw_name(rng, limits, op->dir, op->name);
		op->id = draw_object(rng, m, is_no_dir);
		return op->id != UINT32_MAX;
	case OP_UNLINK: return draw_entry(rng, m, false, &op->dir, op->name, &op->id);
	case OP_RMDIR: return draw_entry(rng, m, true, &op->dir, op->name, &op->id);
	case OP_RENAME: return draw_rename(op, rng, m, limits);
	case OP_WRITE:
	case OP_PUNCH:
	case OP_READ:
	case OP_TRUNCATE: return draw_content(op, rng, m, limits);
	case OP_FALLOCATE: return draw_fallocate(op, rng, m, limits);
	case OP_COPY: return draw_copy(op, rng, m, limits);
	case OP_SETATTR:
	case OP_SETXATTR:
	case OP_REMOVEXATTR: return draw_attributes(op, rng, m, limits);
	case OP_SETACL: return draw_acl(op, rng, m, limits);
	case OP_SETOPTION: return draw_option(op, rng, m, limits);
	case OP_BATCH: return draw_batch(op, rng, m, limits);
	case OP_HOLD: op->id = draw_object(rng, m, is_file); return op->id != UINT32_MAX;
	case OP_RELEASE: op->id = draw_object(rng, m, is_held); return op->id != UINT32_MAX;
	case OP_FSYNC: op->id = draw_to_sync(rng, m, limits); return true;
	case OP_LIST: op->id = draw_object(rng, m, is_dir); return true;
	default: return true;
	}
}

void operation_draw(struct operation *op, struct rng *rng, const struct model *m, const struct operation_limits *limits)
{
	unsigned total = 0;

	for (unsigned i = 0; i < OP_KIND_NR; i++)
		total += limits->weights[i];
	do {
		unsigned at = (unsigned)rng_below(rng, total), kind = 0;

		while (at >= limits->weights[kind])
			at -= limits->weights[kind++];
		*op = (struct operation){ .kind = kind };
	} while (!try_draw(op, rng, m, limits));
}

/* --- data --- */

static void fill(uint8_t *to, uint64_t len, uint64_t seed)
{
	struct rng rng;

	rng_init(&rng, seed);
	for (uint64_t i = 0; i < len; i += 8) {
		/* Some of it compresses. */
		uint64_t v = rng_u64(&rng) & (seed & 1 ? UINT64_MAX : 0x0303030303030303);

		memcpy(to + i, &v, min(len - i, (uint64_t)8));
	}
}

static void *filled(uint64_t len, uint64_t seed)
{
	uint8_t *bytes = malloc(len + 1);

	if (!bytes)
		abort();
	fill(bytes, len, seed);
	return bytes;
}

void *operation_bytes(const struct operation *op) { return filled(op->len, op->data_seed); }

/* To read @len bytes to, of which @want are right, and are hardly so where nothing was read. */
static void *unread(uint64_t len, uint64_t want)
{
	uint8_t *bytes = malloc(len + 1);

	if (!bytes)
		abort();
	memset(bytes, 0xa5, want);
	return bytes;
}

size_t operation_acl(const struct operation *op, uint8_t *value)
{
	struct rng rng;

	rng_init(&rng, op->data_seed);
	return acl_draw(&rng, value);
}

void operation_target(const struct operation *op, char target[1024])
{
	memset(target, 't', op->len);
	snprintf(target, 1024, "%.*llx", 1, (unsigned long long)op->len % 16);
	memset(target + 1, 't', op->len - 1);
	target[op->len] = 0;
}

/* --- on the model: what must come of it --- */

static bool is_below(const struct model *m, unsigned id, unsigned top)
{
	for (; id != MODEL_ROOT; id = m->objects[id].parent)
		if (id == top)
			return true;
	return top == MODEL_ROOT;
}

/* EXDEV where more than one answer is right. */
static int expect_rename(const struct operation *op, struct model *m)
{
	struct model_entry *from = model_entry_find(m, op->dir, op->name);
	struct model_entry *to = model_entry_find(m, op->dir2, op->name2);

	if (!from)
		return -ENOENT;
	bool from_dir = S_ISDIR(m->objects[from->id].mode), to_dir = to && S_ISDIR(m->objects[to->id].mode);
	if (op->flags == KILN_RENAME_NOREPLACE && to)
		return from_dir && is_below(m, op->dir2, from->id) ? -EXDEV : -EEXIST;
	if (op->flags == KILN_RENAME_EXCHANGE && !to)
		return -ENOENT;
	if (from == to)
		return 0;
	bool is_loop = (from_dir && is_below(m, op->dir2, from->id)) ||
		       (op->flags == KILN_RENAME_EXCHANGE && to_dir && is_below(m, op->dir, to->id));
	bool has_type_clash = to && op->flags != KILN_RENAME_EXCHANGE && from_dir != to_dir;
	bool is_full = to_dir && op->flags != KILN_RENAME_EXCHANGE && m->objects[to->id].entries_nr;
	if (is_loop + has_type_clash + is_full > 1)
		return -EXDEV;
	if (is_loop)
		return -EINVAL;
	if (has_type_clash)
		return from_dir ? -ENOTDIR : -EISDIR;
	return is_full ? -ENOTEMPTY : 0;
}

static int expect_fallocate(const struct operation *op, const struct model_object *o)
{
	if (op->flags == KILN_FALLOC_COLLAPSE_RANGE)
		return op->offset + op->len < o->size ? 0 : -EINVAL;
	if (op->flags == KILN_FALLOC_INSERT_RANGE)
		return op->offset < o->size ? 0 : -EINVAL;
	return 0;
}

/* The bytes that a copy has. */
static uint64_t copy_bytes(const struct operation *op, const struct model *m)
{
	const struct model_object *from = &m->objects[op->id2];

	return op->offset2 < from->size ? min(op->len, from->size - op->offset2) : 0;
}

/* Must it be possible to share what is copied? */
static bool is_shareable(const struct operation *op, const struct model *m)
{
	enum { BLOCK = 4096 };

	return !((op->offset | op->offset2 | op->len) % BLOCK) && copy_bytes(op, m) == op->len;
}

static int expect_xattr(const struct operation *op, const struct model_object *o)
{
	bool exists = o->xattrs[op->xattr].name[0];

	if (op->flags & KILN_XATTR_CREATE && exists)
		return -EEXIST;
	return op->flags & KILN_XATTR_REPLACE && !exists ? -ENODATA : 0;
}

static int expect(const struct operation *op, struct model *m)
{
	uint8_t acl[ACL_BYTES_MAX];
	struct model_entry *e;

	switch (op->kind) {
	case OP_SETXATTR: return expect_xattr(op, &m->objects[op->id]);
	case OP_FALLOCATE: return expect_fallocate(op, &m->objects[op->id]);
	case OP_SETACL: return acl_expect(&m->objects[op->id], op->xattr, acl, operation_acl(op, acl));
	case OP_CREATE:
	case OP_SYMLINK: return model_entry_find(m, op->dir, op->name) ? -EEXIST : 0;
	case OP_LINK:
		if (model_entry_find(m, op->dir, op->name))
			return m->objects[op->id].nlink ? -EEXIST : -EXDEV;
		return 0;
	case OP_UNLINK:
	case OP_RMDIR:
		e = model_entry_find(m, op->dir, op->name);
		if (!e)
			return -ENOENT;
		return op->kind == OP_RMDIR && m->objects[e->id].entries_nr ? -ENOTEMPTY : 0;
	case OP_RENAME: return expect_rename(op, m);
	default: return 0;
	}
}

static void apply_rename(const struct operation *op, struct model *m, uint64_t op_nr)
{
	unsigned from = model_entry_find(m, op->dir, op->name)->id;
	struct model_entry *to = model_entry_find(m, op->dir2, op->name2);
	unsigned old = to ? to->id : UINT32_MAX;

	if (from == old && op->flags != KILN_RENAME_EXCHANGE)
		return; /* two names of one file, or the same: nothing happens */
	if (op->dir == op->dir2 && !strcmp(op->name, op->name2))
		return;
	model_entry_remove(m, op->dir, op->name);
	if (to)
		model_entry_remove(m, op->dir2, op->name2);
	model_entry_add(m, op->dir2, op->name2, from);
	m->objects[from].last_op = op_nr;
	if (op->flags == KILN_RENAME_EXCHANGE) {
		model_entry_add(m, op->dir, op->name, old);
		m->objects[old].last_op = op_nr;
	} else if (to) {
		m->objects[old].last_op = op_nr;
		model_object_drop(m, old);
	}
	m->objects[op->dir].last_op = m->objects[op->dir2].last_op = op_nr;
}

static void apply_creation(const struct operation *op, struct model *m, uint64_t op_nr)
{
	unsigned id = model_object_new(m, op->kind == OP_SYMLINK ? S_IFLNK | 0777 : op->mode);
	struct model_object *o = &m->objects[id];
	char target[1024];

	o->uid = op->uid;
	o->gid = op->gid;
	o->rdev_major = op->rdev_major;
	o->rdev_minor = op->rdev_minor;
	o->last_op = op_nr;
	if (m->objects[op->dir].mode & S_ISGID) {
		o->gid = m->objects[op->dir].gid;
		o->mode |= S_ISDIR(o->mode) ? S_ISGID : 0;
	}
	acl_inherit_from(o, &m->objects[op->dir], op->umask);
	if (op->kind == OP_SYMLINK) {
		operation_target(op, target);
		model_resize(o, op->len);
		memcpy(o->data, target, op->len);
	}
	if (op->kind == OP_UNNAMED) {
		o->nlink = 0;
		o->held = 1;
		return;
	}
	model_entry_add(m, op->dir, op->name, id);
	m->objects[op->dir].last_op = op_nr;
}

/* --- batches: number @i of it --- */

static uint32_t batch_mode(const struct operation *op, unsigned i)
{
	static const uint32_t types[] = { S_IFREG, S_IFREG, S_IFREG, S_IFDIR, S_IFLNK, S_IFIFO };
	uint32_t type = types[(op->data_seed >> 8 * i & 0xff) % ARRAY_NR(types)];

	return type | (type == S_IFLNK ? 0777 : op->mode);
}

static uint64_t batch_bytes(const struct operation *op, unsigned i)
{
	return S_ISREG(batch_mode(op, i)) ? op->len >> 2 * i : S_ISLNK(batch_mode(op, i)) ? 20 + i : 0;
}

static void batch_name(const struct operation *op, unsigned i, char name[256])
{
	snprintf(name, 256, "%.250s.%c", op->name, (char)('a' + i));
}

/* Those whose names are free. */
static ssize_t batch_expected(const struct operation *op, struct model *m)
{
	ssize_t result = 0;
	char name[256];

	for (unsigned i = 0; i < op->count; i++) {
		batch_name(op, i, name);
		if (!model_entry_find(m, op->dir, name))
			result |= 1 << i;
	}
	return result;
}

static void batch_contents(const struct operation *op, unsigned i, uint8_t *bytes)
{
	uint64_t len = batch_bytes(op, i);

	if (S_ISLNK(batch_mode(op, i)))
		memset(bytes, 't', len);
	else
		fill(bytes, len, op->data_seed + i);
}

static void apply_batch(const struct operation *op, struct model *m, uint64_t op_nr)
{
	char name[256];

	for (unsigned i = 0; i < op->count; i++) {
		if (!(op->result >> i & 1))
			continue;
		unsigned id = model_object_new(m, batch_mode(op, i));
		struct model_object *o = &m->objects[id];

		o->uid = op->uid;
		o->gid = op->gid;
		o->last_op = o->content_op = op_nr;
		o->has_mtime = o->has_atime = true;
		o->mtime = op->mtime;
		o->atime = op->atime;
		model_resize(o, batch_bytes(op, i));
		if (o->size)
			batch_contents(op, i, o->data);
		batch_name(op, i, name);
		model_entry_add(m, op->dir, name, id);
		m->objects[op->dir].last_op = op_nr;
	}
}

bool operation_batch_part(const struct operation *op, struct model *m, unsigned nr, ssize_t *result)
{
	ssize_t all = batch_expected(op, m);

	*result = nr + 1;
	while (*result < all && *result & ~all)
		++*result;
	return *result < all;
}

static void apply_content(const struct operation *op, struct model_object *o)
{
	uint64_t done = op->kind == OP_WRITE ? (uint64_t)op->result : op->len;

	if (op->kind != OP_WRITE || done)
		o->has_mtime = false;
	if (op->kind == OP_TRUNCATE) {
		model_resize(o, op->offset);
	} else if (op->kind == OP_PUNCH) {
		if (op->offset < o->size)
			memset(o->data + op->offset, 0, min(op->len, o->size - op->offset));
	} else if (done) {
		uint8_t *bytes = filled(op->len, op->data_seed);

		if (op->offset + done > o->size)
			model_resize(o, op->offset + done);
		memcpy(o->data + op->offset, bytes, done);
		free(bytes);
	}
}

static void apply_fallocate(const struct operation *op, struct model_object *o)
{
	uint64_t end = op->offset + op->len;

	o->has_mtime = false;
	switch (op->flags) {
	case KILN_FALLOC_COLLAPSE_RANGE:
		memmove(o->data + op->offset, o->data + end, o->size - end);
		model_resize(o, o->size - op->len);
		break;
	case KILN_FALLOC_INSERT_RANGE:
		model_resize(o, o->size + op->len);
		memmove(o->data + end, o->data + op->offset, o->size - end);
		memset(o->data + op->offset, 0, op->len);
		break;
	default:
		if (!(op->flags & KILN_FALLOC_KEEP_SIZE) && end > o->size)
			model_resize(o, end);
		if (op->flags & KILN_FALLOC_ZERO_RANGE && op->offset < o->size)
			memset(o->data + op->offset, 0, min(op->len, o->size - op->offset));
		break;
	}
}

static void apply_copy(const struct operation *op, struct model *m)
{
	struct model_object *o = &m->objects[op->id], *from = &m->objects[op->id2];
	uint64_t len = min((uint64_t)op->result, copy_bytes(op, m));

	if (!len)
		return;
	o->has_mtime = false;
	if (op->offset + len > o->size)
		model_resize(o, op->offset + len);
	memmove(o->data + op->offset, from->data + op->offset2, len);
}

static void apply_xattr(const struct operation *op, struct model_object *o)
{
	struct model_xattr *x = &o->xattrs[op->xattr];

	free(x->value);
	*x = (struct model_xattr){ 0 };
	if (op->kind == OP_REMOVEXATTR)
		return;
	model_xattr_name(op->xattr, x->name);
	if (op->kind == OP_SETOPTION) {
		x->size = strlen(operation_option(op));
		x->value = (uint8_t *)strdup(operation_option(op));
		return;
	}
	x->size = op->len;
	x->value = filled(op->len, op->data_seed);
}

static void apply_attributes(const struct operation *op, struct model_object *o)
{
	if (op->fields & KILN_SET_MODE)
		o->mode = (o->mode & S_IFMT) | op->mode;
	if (op->fields & KILN_SET_MODE)
		acl_mode_changed(o);
	if (op->fields & KILN_SET_UID)
		o->uid = op->uid;
	if (op->fields & KILN_SET_GID)
		o->gid = op->gid;
	if (op->fields & KILN_SET_FLAGS)
		o->flags = op->attr_flags;
	if (op->fields & KILN_SET_MTIME) {
		o->has_mtime = true;
		o->mtime = op->mtime;
	}
	if (op->fields & KILN_SET_ATIME) {
		o->has_atime = true;
		o->atime = op->atime;
	}
	if (op->fields & KILN_SET_BTIME) {
		o->has_btime = true;
		o->btime = op->btime;
	}
}

bool operation_is_of_content(const struct operation *op)
{
	return op->kind == OP_WRITE || op->kind == OP_PUNCH || op->kind == OP_TRUNCATE || op->kind == OP_FALLOCATE ||
	       op->kind == OP_COPY;
}

void operation_apply(const struct operation *op, struct model *m, uint64_t op_nr)
{
	struct model_object *o = &m->objects[op->id];
	uint8_t acl[ACL_BYTES_MAX];

	if (op->result < 0)
		return;
	switch (op->kind) {
	case OP_CREATE:
	case OP_SYMLINK:
	case OP_UNNAMED: apply_creation(op, m, op_nr); return;
	case OP_BATCH: apply_batch(op, m, op_nr); return;
	case OP_LINK:
		model_entry_add(m, op->dir, op->name, op->id);
		o->nlink++;
		m->objects[op->dir].last_op = op_nr;
		break;
	case OP_UNLINK:
	case OP_RMDIR:
		o->last_op = m->objects[op->dir].last_op = op_nr;
		model_entry_remove(m, op->dir, op->name);
		model_object_drop(m, op->id);
		return;
	case OP_RENAME: apply_rename(op, m, op_nr); return;
	case OP_WRITE:
	case OP_PUNCH:
	case OP_TRUNCATE:
		apply_content(op, o);
		if (op->kind == OP_WRITE && !op->result)
			return; /* nothing that fsync could promise */
		o->content_op = op_nr;
		if (op->may_be_unknown)
			return;
		break;
	case OP_FALLOCATE:
		apply_fallocate(op, o);
		o->content_op = op_nr;
		break;
	case OP_COPY:
		apply_copy(op, m);
		if (!op->result)
			return;
		o->content_op = op_nr;
		break;
	case OP_SETATTR:
		apply_attributes(op, o);
		if (!op->fields)
			return;
		break;
	case OP_SETXATTR:
	case OP_SETOPTION:
	case OP_REMOVEXATTR: apply_xattr(op, o); break;
	case OP_SETACL:
		if (op->xattr == MODEL_XATTR_ACL_DEFAULT && !S_ISDIR(o->mode))
			return; /* there was none to take away: nothing that fsync could promise */
		acl_apply(o, op->xattr, acl, operation_acl(op, acl));
		break;
	case OP_HOLD: o->held++; return;
	case OP_RELEASE:
		if (o->held && !--o->held && !o->nlink)
			model_object_free(m, op->id);
		return;
	default: return;
	}
	o->last_op = op_nr;
}

/* --- on the filesystem --- */

/* What is said to be a hole has nothing in it; it ends, and data does, within the file. 0 is right. */
static ssize_t run_seek(const struct operation *op, const struct model_object *o, kiln_fs *fs)
{
	int64_t data = kiln_seek_data(fs, o->node, op->offset), hole = kiln_seek_hole(fs, o->node, op->offset);

	if (data == -ENXIO)
		data = (int64_t)o->size;
	if (hole == -ENXIO)
		return op->offset >= o->size ? 0 : 2;
	if (data < 0 || hole < 0)
		return (ssize_t)min(data, hole);
	for (uint64_t at = op->offset; at < o->size && at < (uint64_t)data; at++)
		if (o->data[at])
			return 3;
	return (uint64_t)data > max(o->size, op->offset) || (uint64_t)hole > o->size ? 4 : 0;
}

/* How much of what is read is not as it should be: 0 is right. */
static ssize_t run_read(const struct operation *op, const struct model_object *o, kiln_fs *fs)
{
	ssize_t want = op->offset < o->size ? (ssize_t)min(op->len, o->size - op->offset) : 0;
	CLEANUP_FREE uint8_t *bytes = unread(op->len, (uint64_t)want);
	ssize_t n = kiln_read(fs, o->node, op->offset, bytes, op->len);

	if (n < 0)
		return n;
	if (n > want || (n && memcmp(bytes, o->data + op->offset, (size_t)n)))
		return 1;
	return n < want ? -EIO : run_seek(op, o, fs); /* short where something can't be read */
}

struct listing {
	const struct operation *op;
	struct model *m;
	ssize_t found, odd;
};

static int list_entry(void *ctx, const struct kiln_dirent *entry)
{
	struct listing *l = ctx;

	if (!strcmp(entry->name, ".") || !strcmp(entry->name, ".."))
		return 0;
	/* In the shared root directory the others' names come and go. */
	const struct model_entry *e = model_entry_find(l->m, l->op->id, entry->name);
	if (e && l->m->objects[e->id].node.ino == entry->node.ino)
		l->found++;
	else if (e || l->op->id != MODEL_ROOT)
		l->odd++;
	return 0;
}

/* The same for the entries of a directory. */
static ssize_t run_list(const struct operation *op, struct model *m, kiln_fs *fs)
{
	struct listing l = { .op = op, .m = m };
	int err = kiln_readdir(fs, m->objects[op->id].node, 0, list_entry, &l, NULL, NULL);

	return err ? err : l.odd + (ssize_t)m->objects[op->id].entries_nr - l.found;
}

struct batch_run {
	ssize_t made;
	int err; /* the gravest */
	struct kiln_node nodes[OPERATION_BATCH_MAX];
};

static void batch_object_made(void *ctx, const struct kiln_new *object, int error, struct kiln_node node)
{
	struct batch_run *run = ctx;
	unsigned i = (unsigned)(uintptr_t)object->ctx;

	if (!error)
		run->made |= 1 << i;
	else if (error != -EEXIST && (!run->err || run->err == -ENOSPC))
		run->err = error;
	run->nodes[i] = node;
}

/* The same as the operation's result, or an error that says nothing of what was made. */
static ssize_t run_batch(const struct operation *op, struct model *m, kiln_fs *fs, struct batch_run *run)
{
	char names[OPERATION_BATCH_MAX][256], targets[OPERATION_BATCH_MAX][64] = { 0 };
	ssize_t expected = batch_expected(op, m);
	kiln_batch *batch = kiln_batch_new(fs);
	int err = batch ? 0 : -ENOMEM;

	for (unsigned i = 0; i < op->count && !err; i++) {
		struct kiln_new new = { .dir = m->objects[op->dir].node,
					.name = names[i],
					.mode = batch_mode(op, i),
					.uid = op->uid,
					.gid = op->gid,
					.atime = op->atime,
					.mtime = op->mtime,
					.size = batch_bytes(op, i),
					.target = targets[i],
					.ctx = (void *)(uintptr_t)i };
		void *contents = NULL;

		batch_name(op, i, names[i]);
		new.len = strlen(names[i]);
		if (S_ISLNK(new.mode))
			batch_contents(op, i, (uint8_t *)targets[i]);
		err = kiln_batch_add(batch, &new, &contents);
		if (!err && contents)
			batch_contents(op, i, contents);
		/* Targets that no inode takes are for kiln_symlink(). */
		if (err == -EFBIG && S_ISLNK(new.mode)) {
			expected &= ~((ssize_t)1 << i);
			err = 0;
		}
	}
	if (!err)
		kiln_batch_write(batch, batch_object_made, run);
	kiln_batch_free(batch);
	if (err || (run->err && run->err != -ENOSPC))
		return err ? err : run->err;
	if (run->made == expected)
		return run->made;
	return run->err && !(run->made & ~expected) ? run->made ? run->made : run->err : -EPROTO;
}

static ssize_t run_on_fs(const struct operation *op, struct model *m, kiln_fs *fs, struct kiln_stat *st)
{
	struct kiln_node node = m->objects[op->id].node, dir = m->objects[op->dir].node;
	struct kiln_create create = { op->mode, op->umask, op->uid, op->gid, op->rdev_major, op->rdev_minor };
	struct kiln_setattr set = { .fields = op->fields,
				    .mode = op->mode,
				    .uid = op->uid,
				    .gid = op->gid,
				    .flags = op->attr_flags,
				    .mtime = op->mtime,
				    .atime = op->atime,
				    .btime = op->btime };
	char target[1024], attribute[MODEL_XATTR_NAME_BYTES];
	uint8_t acl[ACL_BYTES_MAX];
	CLEANUP_FREE void *bytes =
		op->kind == OP_WRITE || op->kind == OP_SETXATTR ? filled(op->len, op->data_seed) : NULL;

	model_xattr_name(op->xattr, attribute);
	switch (op->kind) {
	case OP_CREATE: return kiln_create(fs, dir, op->name, strlen(op->name), &create, st);
	case OP_SYMLINK:
		operation_target(op, target);
		return kiln_symlink(fs, dir, op->name, strlen(op->name), target, &create, st);
	case OP_UNNAMED: return kiln_create_unnamed(fs, dir, &create, st);
	case OP_LINK: return kiln_link(fs, node, dir, op->name, strlen(op->name));
	case OP_UNLINK: return kiln_unlink(fs, dir, op->name, strlen(op->name), 0);
	case OP_RMDIR: return kiln_unlink(fs, dir, op->name, strlen(op->name), KILN_UNLINK_DIR);
	case OP_RENAME:
		return kiln_rename(fs, dir, op->name, strlen(op->name), m->objects[op->dir2].node, op->name2,
				   strlen(op->name2), op->flags);
	case OP_WRITE: return kiln_write_with(fs, node, op->offset, bytes, op->len, op->flags);
	case OP_PUNCH: return kiln_punch(fs, node, op->offset, op->len);
	case OP_FALLOCATE: return kiln_fallocate(fs, node, op->flags, op->offset, op->len);
	case OP_COPY:
		return kiln_copy_range(fs, m->objects[op->id2].node, op->offset2, node, op->offset, op->len, op->flags);
	case OP_TRUNCATE:
		set = (struct kiln_setattr){ .fields = KILN_SET_SIZE, .size = op->offset };
		return kiln_setattr(fs, node, &set, NULL);
	case OP_SETATTR: return kiln_setattr(fs, node, &set, NULL);
	case OP_SETXATTR: return kiln_setxattr(fs, node, attribute, bytes, op->len, op->flags);
	case OP_SETOPTION:
		return kiln_setxattr(fs, node, attribute, operation_option(op), strlen(operation_option(op)), 0);
	case OP_REMOVEXATTR: return kiln_removexattr(fs, node, attribute);
	case OP_SETACL: return kiln_setxattr(fs, node, attribute, acl, operation_acl(op, acl), 0);
	case OP_HOLD: return kiln_hold(fs, node);
	case OP_RELEASE: kiln_release(fs, node); return 0;
	case OP_FSYNC: return kiln_fsync(fs, node);
	case OP_SYNC: return kiln_sync(fs);
	case OP_WAIT: return kiln_deletions_wait(fs);
	case OP_READ: return run_read(op, &m->objects[op->id], fs);
	case OP_LIST: return run_list(op, m, fs);
	default: return 0;
	}
}

/*
 * A hole, or a range of zeroes, that lacked space for one of its partial blocks may have the others and the whole ones:
 * compressed data gives nothing back for these. Then that is what was done.
 */
static void punched_in_part(struct operation *op, const struct model_object *o, kiln_fs *fs)
{
	uint64_t len = op->offset < o->size ? min(op->len, o->size - op->offset) : 0, begin = len, end = 0;
	CLEANUP_FREE uint8_t *bytes = unread(len, len);

	if (kiln_read(fs, o->node, op->offset, bytes, len) != (ssize_t)len)
		return;
	for (uint64_t i = 0; i < len; i++)
		if (bytes[i] != o->data[op->offset + i]) {
			begin = min(begin, i);
			end = i + 1;
		}
	if (begin >= end)
		return;
	op->offset += begin;
	op->len = end - begin;
	op->result = 0;
}

static bool is_right(const struct operation *op, struct model *m, int expected)
{
	if (op->result == -ENOSPC || (expected == -EXDEV && (op->result < 0 || op->kind == OP_LINK)))
		return true;
	switch (op->kind) {
	case OP_WRITE: return op->result >= 0 && (uint64_t)op->result <= op->len;
	case OP_COPY:
		if (op->result == -EINVAL)
			return op->flags & KILN_COPY_SHARE && !is_shareable(op, m);
		return op->result >= 0 && (uint64_t)op->result <= copy_bytes(op, m);
	case OP_BATCH: return op->result >= 0;
	default: return op->result == expected;
	}
}

static void nodes_learn(const struct operation *op, struct model *m, const struct kiln_stat *st,
			const struct batch_run *batch)
{
	char name[256];

	if ((op->kind == OP_CREATE || op->kind == OP_SYMLINK || op->kind == OP_UNNAMED) && !op->result)
		m->objects[op->new_id].node = st->node;
	for (unsigned i = 0; op->kind == OP_BATCH && op->result > 0 && i < op->count; i++) {
		batch_name(op, i, name);
		if (op->result >> i & 1)
			m->objects[model_entry_find(m, op->dir, name)->id].node = batch->nodes[i];
	}
}

struct by_library {
	kiln_fs *fs;
	struct kiln_stat st;
	struct batch_run batch;
};

static ssize_t run_by_library(void *ctx, struct operation *op, struct model *m)
{
	struct by_library *by = ctx;

	op->result = op->kind == OP_BATCH ? run_batch(op, m, by->fs, &by->batch) : run_on_fs(op, m, by->fs, &by->st);
	bool is_zeroed = op->kind == OP_FALLOCATE && op->flags & KILN_FALLOC_ZERO_RANGE;
	if ((op->kind == OP_PUNCH || is_zeroed) && op->result == -ENOSPC)
		punched_in_part(op, &m->objects[op->id], by->fs);
	return op->result;
}

int operation_run(struct operation *op, struct model *m, kiln_fs *fs, uint64_t op_nr, struct strbuf *why)
{
	struct by_library by = { .fs = fs };
	int err = operation_run_by(op, m, run_by_library, &by, op_nr, why);

	if (!err)
		nodes_learn(op, m, &by.st, &by.batch);
	return err;
}

int operation_run_by(struct operation *op, struct model *m, operation_fn run, void *ctx, uint64_t op_nr,
		     struct strbuf *why)
{
	int expected = expect(op, m);

	op->result = run(ctx, op, m);
	if (op->result == -EIO || op->result == -EROFS || op->result == -ENOMEM)
		return (int)op->result;
	if (!is_right(op, m, expected)) {
		operation_to_text(op, why);
		strbuf_printf(why, ": the model says %d", expected);
		return -EPROTO;
	}
	if (op->kind == OP_CREATE || op->kind == OP_SYMLINK || op->kind == OP_UNNAMED)
		for (op->new_id = 0; op->new_id < m->nr && m->objects[op->new_id].exists;)
			op->new_id++;
	operation_apply(op, m, op_nr);
	return 0;
}

ssize_t operation_expected(const struct operation *op, struct model *m)
{
	int err = expect(op, m);

	if (op->kind == OP_COPY)
		return (ssize_t)copy_bytes(op, m);
	if (op->kind == OP_BATCH)
		return batch_expected(op, m);
	return err ? err : op->kind == OP_WRITE ? (ssize_t)op->len : 0;
}

/* --- crashes in the middle --- */

/* The block where the new size lies is zeroed behind it before anything else (04 §7). */
static bool truncation_is_partial(const struct operation *op, uint32_t block_bytes, const struct model_object *got,
				  const struct model_object *before)
{
	uint64_t end = min(round_up_u64(op->offset, block_bytes), before->size);

	if (got->size != before->size)
		return false;
	for (uint64_t at = 0; at < got->size; at++)
		if (got->data[at] != (at >= op->offset && at < end ? 0 : before->data[at]))
			return false;
	return true;
}

/* Where the last, partial block of a hole begins if that is zeroed already: before what lies between. Else the end. */
static uint64_t punch_tail(const struct operation *op, uint32_t block_bytes, const struct model_object *got,
			   const struct model_object *after)
{
	uint64_t begin = max(round_down_u64(op->offset + op->len, block_bytes), op->offset);

	for (uint64_t at = begin; at < got->size && at < after->size; at++)
		if (got->data[at] != after->data[at])
			return got->size;
	return min(begin, got->size);
}

/* A copy is made from the front, but a hole in it from its ends. */
static bool copy_is_partial(const struct model_object *got, const struct model_object *before,
			    const struct model_object *after)
{
	if (got->size < before->size || got->size > after->size)
		return false;
	for (uint64_t at = 0; at < got->size; at++)
		if (got->data[at] != after->data[at] && got->data[at] != (at < before->size ? before->data[at] : 0))
			return false;
	return true;
}

bool operation_is_partial(const struct operation *op, uint32_t block_bytes, const struct model_object *got,
			  const struct model_object *before, const struct model_object *after)
{
	uint64_t at = 0, end = got->size;

	if (op->kind == OP_TRUNCATE)
		return truncation_is_partial(op, block_bytes, got, before);
	if (op->kind == OP_COPY)
		return copy_is_partial(got, before, after);
	bool is_zeroing = op->kind == OP_FALLOCATE && op->flags & KILN_FALLOC_ZERO_RANGE;
	if (op->kind != OP_WRITE && op->kind != OP_PUNCH && !is_zeroing)
		return false;
	if (got->size < before->size || got->size > after->size)
		return false;
	if (op->kind == OP_PUNCH || is_zeroing)
		end = punch_tail(op, block_bytes, got, after);
	while (at < end && at < after->size && got->data[at] == after->data[at])
		at++;
	/* Behind the part that was done it is as before; a write that grew the file in a hole left zeroes. */
	for (; at < end; at++)
		if (got->data[at] != (at < before->size ? before->data[at] : 0))
			return false;
	return true;
}

void operation_to_text(const struct operation *op, struct strbuf *out)
{
	strbuf_printf(out, "%s", kind_names[op->kind]);
	if (op->name[0])
		strbuf_printf(out, " %u/%.12s", op->dir, op->name);
	if (op->name2[0])
		strbuf_printf(out, " -> %u/%.12s flags %u", op->dir2, op->name2, op->flags);
	strbuf_printf(out, " object %u", op->id);
	if (op->kind == OP_WRITE || op->kind == OP_PUNCH || op->kind == OP_TRUNCATE || op->kind == OP_READ ||
	    op->kind == OP_FALLOCATE || op->kind == OP_COPY)
		strbuf_printf(out, " at %llu +%llu", (unsigned long long)op->offset, (unsigned long long)op->len);
	if (op->kind == OP_FALLOCATE || (op->kind == OP_WRITE && op->flags))
		strbuf_printf(out, " mode %u", op->flags);
	if (op->kind == OP_COPY)
		strbuf_printf(out, " from object %u at %llu", op->id2, (unsigned long long)op->offset2);
	if (op->kind == OP_SETATTR)
		strbuf_printf(out, " fields %x mode %o owner %u:%u", op->fields, op->mode, op->uid, op->gid);
	if (op->kind == OP_SETXATTR || op->kind == OP_REMOVEXATTR || op->kind == OP_SETACL)
		strbuf_printf(out, " attribute %u", op->xattr);
	if (op->kind == OP_SETOPTION)
		strbuf_printf(out, " option %u to %s", op->xattr - MODEL_XATTR_OPTIONS, operation_option(op));
	if (op->kind == OP_BATCH)
		strbuf_printf(out, " of %u, the largest %llu bytes", op->count, (unsigned long long)op->len);
	strbuf_printf(out, " = %zd", op->result);
}
