/* See world.h. */
#include "world.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/array.h"
#include "format/str_hash.h"
#include "format/version.h"
#include "super/super_private.h"

enum { NODE_BYTES = 16 << 10, BLOCK_SECTORS = 8 };
/* The first snapshot; later the parent of a leaf for each subvolume. */
enum { SNAPSHOT = UINT32_MAX, LEAF_SNAPSHOT = UINT32_MAX - 1, LEAF_SOURCE = UINT32_MAX - 2 };

const struct object world_root = { SUBVOL_ROOT, INODE_NR_ROOT };

static bool is_inode(unsigned type) { return type == KEY_INODE || type == KEY_INODE_V2 || type == KEY_INODE_V3; }

static bool is_unlinked(const struct bkey_ref *k)
{
	struct inode inode;

	return is_inode(k->k.type) && !inode_unpack(*k, &inode, NULL) && inode.flags & INODE_UNLINKED;
}

/* The part of the inodes' trigger that the namespace relies on (07 §8.6). */
static int trigger(void *ctx, struct btree_txn *txn, const struct btree_update *u)
{
	if (u->btree_id != BTREE_INODES || u->level)
		return 0;
	bool was = is_unlinked(&u->old), is = is_unlinked(&u->new);

	if (was == is)
		return 0;
	return btree_txn_put(txn, BTREE_DELETED_INODES,
			     &(struct bkey){ .p = u->new.k.p, .type = is ? KEY_SET : KEY_DELETED }, NULL, 0);
}

static void commit(void *ctx, struct btree_txn *txn, const struct btree_update *u, uint64_t seq)
{
	struct world *w = ctx;

	if (u->btree_id == BTREE_INODES && !u->level)
		atomic_fetch_add(&w->inode_nr, (int)is_inode(u->new.k.type) - (int)is_inode(u->old.k.type));
}

static void emit(void *ctx, const struct report *r)
{
	struct world *w = ctx;

	if (r->level >= REPORT_DAMAGE)
		print_message("report: %s: %s\n", r->structure, r->found ? r->found : "");
	atomic_fetch_add(&w->reports, 1);
	atomic_store(&w->last_id, r->id);
}

static void failed(void *ctx, int err) { fail_msg("btrees failed: %d", err); }

static void open_super(struct world *w)
{
	w->sink = (struct report_sink){ .emit = emit, .ctx = w };
	w->sb.features[0] = le64_of(1ull << SB_FEATURE_NEW_SIPHASH | 1ull << SB_FEATURE_INLINE_DATA);
	w->kctx = (struct key_context){ .version = VERSION_1_4,
					.block_sectors = BLOCK_SECTORS,
					.node_sectors = NODE_BYTES / SECTOR_BYTES,
					.time_base_ns = 1000000000000000000ull,
					.time_precision_ns = 1 };
	assert_int_equal(btree_memory_open(&w->kctx, &w->memory), 0);
	w->super = (struct super){ .sb = &w->sb, .kctx = *btree_memory_context(w->memory), .reports = &w->sink };
	/* Superblocks that have all features, so that none must be written. */
	w->super.write = calloc(1, sizeof(*w->super.write));
	assert_non_null(w->super.write);
	w->super.write->features_durable = UINT64_MAX;
	for (unsigned id = 0; id < OPT_NR; id++)
		w->super.options[id] = option_table[id].initial;
	w->super.options[OPT_STR_HASH] = 0;
}

static void open_namespace(struct world *w)
{
	assert_int_equal(namespace_open(&w->super, w->trees, w->data, &w->sink, &w->ns), 0);
	assert_int_equal(namespace_start_write(w->ns, NULL), 0);
}

void world_open(struct world *w)
{
	memset(w, 0, sizeof(*w));
	open_super(w);
	struct btrees_opts opts = {
		.memory_bytes = 64 << 20,
		.kctx = &w->super.kctx,
		.reports = &w->sink,
	};
	struct btrees_write_opts write_opts = {
		.hooks = { .trigger = trigger, .commit = commit, .ctx = w },
		.csum_type = CHECKSUM_CRC32C_NONZERO,
		.version = VERSION_1_4,
		.failed = failed,
		.ctx = w,
	};

	btree_memory_backend(w->memory, &opts.backend);
	assert_int_equal(btrees_open(&opts, &w->trees), 0);
	assert_int_equal(btrees_start_write(w->trees, &write_opts), 0);
	assert_int_equal(namespace_init_fresh(w->trees, &w->super), 0);
	assert_int_equal(data_open(&w->super, w->trees, DATA_MEMORY_MIN, &w->sink, &w->data), 0);
	open_namespace(w);
}

void world_close(struct world *w)
{
	namespace_stop_write(w->ns);
	namespace_close(w->ns);
	data_close(w->data);
	assert_int_equal(btrees_flush_all(w->trees), 0);
	btrees_stop_write(w->trees);
	btrees_close(w->trees);
	btree_memory_close(w->memory);
	free(w->super.write);
}

void world_reopen_namespace(struct world *w)
{
	namespace_stop_write(w->ns);
	namespace_close(w->ns);
	open_namespace(w);
}

static void put_snapshot(struct world *w, uint32_t id, const struct snapshot *s)
{
	struct bkey k = { .p = BPOS(0, id, 0), .type = KEY_SNAPSHOT, .value_u64s = SNAPSHOT_BYTES / 8 };
	uint8_t value[SNAPSHOT_BYTES];

	snapshot_encode(s, value);
	world_put(w, BTREE_SNAPSHOTS, &k, value);
}

static void put_subvol(struct world *w, uint32_t id, const struct subvolume *s)
{
	struct bkey k = { .p = BPOS(0, id, 0), .type = KEY_SUBVOLUME, .value_u64s = SUBVOLUME_BYTES / 8 };
	uint8_t value[SUBVOLUME_BYTES];

	subvolume_encode(s, value);
	world_put(w, BTREE_SUBVOLUMES, &k, value);
}

static int put_snapshot_root(struct btree_txn *txn, void *ctx)
{
	struct inode inode;
	int err = inode_txn_get(txn, INODE_NR_ROOT, LEAF_SNAPSHOT, &inode);

	inode.subvol = WORLD_SNAPSHOT;
	return err ? err : inode_txn_put(txn, &inode);
}

void world_take_snapshot(struct world *w)
{
	struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };
	struct snapshot leaf = { .is_subvol = true, .parent = SNAPSHOT, .tree = 1, .depth = 1 };

	for (unsigned i = 0; i < 3; i++)
		leaf.skip[i] = SNAPSHOT;
	put_snapshot(w, SNAPSHOT, &(struct snapshot){ .children = { LEAF_SNAPSHOT, LEAF_SOURCE }, .tree = 1 });
	leaf.subvol = WORLD_SNAPSHOT;
	put_snapshot(w, LEAF_SNAPSHOT, &leaf);
	leaf.subvol = SUBVOL_ROOT;
	put_snapshot(w, LEAF_SOURCE, &leaf);
	put_subvol(w, SUBVOL_ROOT, &(struct subvolume){ .snapshot = LEAF_SOURCE, .inode = INODE_NR_ROOT });
	put_subvol(w, WORLD_SNAPSHOT,
		   &(struct subvolume){ .snapshot = LEAF_SNAPSHOT,
					.inode = INODE_NR_ROOT,
					.is_snapshot = true,
					.creation_parent = SUBVOL_ROOT });
	w->has_snapshot = true;
	world_reopen_namespace(w);
	assert_int_equal(btree_txn_run(w->trees, &opts, put_snapshot_root, NULL), 0);
}

/* --- names that collide --- */

static uint32_t hash_of(int type, const char *name)
{
	return (uint32_t)(type < 0 ? str_hash_dirent(STR_HASH_CRC32C, 0, name, NAME_LEN, 0)
				   : str_hash_xattr(STR_HASH_CRC32C, 0, (uint8_t)type, name, NAME_LEN));
}

/*
 * Set the last four bytes of @name so that its hash is @target: what each of their bits does to the hash is a vector,
 * and the right sum of them is found by elimination.
 */
static void name_solve(int type, char *name, uint32_t target)
{
	uint32_t reduced[32] = { 0 }, combination[32] = { 0 };

	memset(name + NAME_LEN - 4, 0, 4);
	uint32_t rest = hash_of(type, name) ^ target;
	for (unsigned bit = 0; bit < 32; bit++) {
		char *byte = &name[NAME_LEN - 4 + bit / 8];

		*byte = (char)(1u << bit % 8);
		uint32_t v = hash_of(type, name) ^ rest ^ target, c = 1u << bit;
		*byte = 0;
		for (unsigned i = 32; i-- && v;) {
			if (!(v >> i & 1))
				continue;
			if (!reduced[i]) {
				reduced[i] = v;
				combination[i] = c;
				break;
			}
			v ^= reduced[i];
			c ^= combination[i];
		}
	}
	uint32_t bits = 0;
	for (unsigned i = 32; i--;)
		if (rest >> i & 1) {
			rest ^= reduced[i];
			bits ^= combination[i];
		}
	memcpy(name + NAME_LEN - 4, &bits, 4);
	assert_true(hash_of(type, name) == target);
}

void world_colliding_names(int type, unsigned nr, char (*names)[NAME_LEN + 1])
{
	unsigned attempt = 0;

	for (unsigned i = 0; i < nr; attempt++) {
		char name[NAME_LEN + 1];

		snprintf(name, sizeof(name), "same%04u....", attempt % 10000);
		name_solve(type, name, 0x12345678 ^ (i & 3));
		bool is_good = true;
		for (unsigned j = NAME_LEN - 4; j < NAME_LEN; j++)
			is_good &= name[j] && name[j] != '/';
		if (is_good)
			memcpy(names[i++], name, sizeof(name));
	}
}

/* --- looking at keys --- */

unsigned world_slot_type(struct world *w, unsigned btree_id, uint64_t inum, uint64_t slot)
{
	struct bkey_copy copy;
	int ret = btree_lookup(w->trees, btree_id, BPOS(inum, slot, SNAPSHOT), &copy);

	assert_true(ret >= 0);
	return ret ? copy.k.k.type : KEY_DELETED;
}

unsigned world_key_nr(struct world *w, unsigned btree_id, uint64_t inum)
{
	struct btree_iter it;
	struct bkey_ref k;
	unsigned nr = 0;
	int ret;

	btree_iter_open(&it, w->trees, btree_id, BPOS(inum, 0, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = BPOS(inum, UINT64_MAX, UINT32_MAX);
	for (; (ret = btree_iter_peek(&it, &k)) > 0; btree_iter_advance(&it))
		nr++;
	btree_iter_close(&it);
	assert_int_equal(ret, 0);
	return nr;
}

struct edit_args {
	uint64_t inum;
	void (*edit)(struct inode *inode);
};

static int edit_run(struct btree_txn *txn, void *ctx)
{
	struct edit_args *a = ctx;
	struct inode inode;
	int err = inode_txn_get(txn, a->inum, SNAPSHOT, &inode);

	if (err)
		return err;
	a->edit(&inode);
	return inode_txn_put(txn, &inode);
}

void world_inode_edit(struct world *w, uint64_t inum, void (*edit)(struct inode *inode))
{
	struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };

	assert_int_equal(btree_txn_run(w->trees, &opts, edit_run, &(struct edit_args){ inum, edit }), 0);
}

struct put_args {
	unsigned btree_id;
	const struct bkey *k;
	const void *value;
};

static int put_run(struct btree_txn *txn, void *ctx)
{
	struct put_args *a = ctx;

	return btree_txn_put(txn, a->btree_id, a->k, a->value, 0);
}

void world_put(struct world *w, unsigned btree_id, const struct bkey *k, const void *value)
{
	struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };

	assert_int_equal(btree_txn_run(w->trees, &opts, put_run, &(struct put_args){ btree_id, k, value }), 0);
}

/* --- invariants --- */

/* What the dirents say of an inode. */
struct links {
	uint64_t inum;
	unsigned names, subdirs;
};
struct census {
	struct world *w;
	uint32_t snapshot;    /* whose view it is */
	struct inode *inodes; /* ascending */
	struct links *links;  /* of the same index */
	size_t nr, capacity, links_capacity;
};

static struct links *census_find(struct census *c, uint64_t inum, struct inode **inode)
{
	size_t lo = 0, hi = c->nr;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (c->inodes[mid].inum < inum)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo == c->nr || c->inodes[lo].inum != inum)
		return NULL;
	*inode = &c->inodes[lo];
	return &c->links[lo];
}

static void census_take(struct census *c)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_iter_open(&it, c->w->trees, BTREE_INODES, POS_MIN, 0, c->snapshot);
	for (; (ret = btree_iter_peek(&it, &k)) > 0; btree_iter_advance(&it)) {
		assert_true(k.k.p.inode == 0 && k.k.p.offset >= INODE_NR_FIRST);
		if (k.k.type == KEY_INODE_GENERATION)
			continue;
		assert_int_equal(array_grow(&c->inodes, &c->capacity, c->nr + 1, sizeof(*c->inodes)), 0);
		assert_int_equal(array_grow(&c->links, &c->links_capacity, c->nr + 1, sizeof(*c->links)), 0);
		assert_int_equal(inode_unpack(k, &c->inodes[c->nr], NULL), 0);
		c->links[c->nr++] = (struct links){ .inum = k.k.p.offset };
	}
	btree_iter_close(&it);
	assert_int_equal(ret, 0);
}

/* A walk along a hash table's keys: entries must be reachable from their hash without a gap. */
struct run {
	uint64_t inum, begin, next; /* slots [begin, next) are full */
};

static void run_add(struct run *r, struct bpos p, uint64_t hash)
{
	if (r->inum != p.inode || r->next != p.offset)
		*r = (struct run){ p.inode, p.offset, p.offset };
	r->next = p.offset + 1;
	if (hash != UINT64_MAX && (hash > p.offset || hash < r->begin))
		fail_msg("entry at %llu:%llu with hash %llu, run begins at %llu", (unsigned long long)p.inode,
			 (unsigned long long)p.offset, (unsigned long long)hash, (unsigned long long)r->begin);
}

static void check_dirent(struct census *c, struct bkey_ref k, struct run *r)
{
	struct inode *dir = NULL, *inode = NULL;
	struct links *dir_links = census_find(c, k.k.p.inode, &dir), *links;
	struct dirent d;

	assert_non_null(dir_links);
	assert_true(S_ISDIR(dir->mode));
	if (k.k.type == KEY_HASH_WHITEOUT) {
		run_add(r, k.k.p, UINT64_MAX);
		return;
	}
	assert_int_equal(k.k.type, KEY_DIRENT);
	assert_int_equal(dirent_decode(k, &d, NULL), 0);
	run_add(r, k.k.p, str_hash_dirent(dir->str_hash, dir->hash_seed, d.name, d.name_len, 0));
	if (d.type == DIRENT_TYPE_SUBVOL)
		return;
	links = census_find(c, d.inum, &inode);
	assert_non_null(links);
	assert_int_equal(d.type, (inode->mode & S_IFMT) >> 12);
	assert_false(inode->flags & INODE_UNLINKED);
	links->names++;
	dir_links->subdirs += d.type == DIRENT_TYPE_DIR;
	/* A file's other names may have gone, the one that it points back at among them. */
	if (S_ISDIR(inode->mode) || (!inode->nlink && inode->dir))
		assert_true(inode->dir == k.k.p.inode && inode->dir_offset == k.k.p.offset);
}

static void check_xattr(struct census *c, struct bkey_ref k, struct run *r)
{
	struct inode *inode = NULL;
	struct xattr x;

	assert_non_null(census_find(c, k.k.p.inode, &inode));
	if (k.k.type == KEY_HASH_WHITEOUT) {
		run_add(r, k.k.p, UINT64_MAX);
		return;
	}
	assert_int_equal(xattr_decode(k, &x, NULL), 0);
	run_add(r, k.k.p, str_hash_xattr(inode->str_hash, inode->hash_seed, x.type, x.name, x.name_len));
}

static void check_keys(struct census *c, unsigned btree_id,
		       void (*check)(struct census *c, struct bkey_ref k, struct run *r))
{
	struct run run = { 0 };
	struct btree_iter it;
	struct bkey_ref k;
	int ret;

	btree_iter_open(&it, c->w->trees, btree_id, POS_MIN, 0, c->snapshot);
	for (; (ret = btree_iter_peek(&it, &k)) > 0; btree_iter_advance(&it))
		check(c, k, &run);
	btree_iter_close(&it);
	assert_int_equal(ret, 0);
}

static void check_extent(struct census *c, struct bkey_ref k, struct run *r)
{
	struct inode *inode = NULL;

	assert_non_null(census_find(c, k.k.p.inode, &inode));
	assert_true(S_ISLNK(inode->mode) || S_ISREG(inode->mode));
}

static void check_inode(struct census *c, const struct inode *inode, const struct links *links)
{
	struct bkey_copy copy;
	struct dirent d;

	if (inode->flags & INODE_UNLINKED) {
		assert_int_equal(links->names, 0);
		assert_int_equal(inode->nlink, 0);
		return;
	}
	assert_int_equal(inode_nlink(inode), S_ISDIR(inode->mode) ? links->subdirs + 2 : links->names);
	if (inode->inum == INODE_NR_ROOT)
		return;
	assert_true(links->names >= 1);
	assert_true(!S_ISDIR(inode->mode) || links->names == 1);
	if (!inode->dir && !inode->dir_offset && !S_ISDIR(inode->mode))
		return;
	assert_true(btree_lookup(c->w->trees, BTREE_DIRENTS, BPOS(inode->dir, inode->dir_offset, c->snapshot), &copy) >
		    0);
	assert_int_equal(copy.k.k.type, KEY_DIRENT);
	assert_int_equal(dirent_decode(copy.k, &d, NULL), 0);
	assert_true(d.inum == inode->inum);
}

static void check_view(struct world *w, uint32_t snapshot)
{
	struct census c = { .w = w, .snapshot = snapshot };

	census_take(&c);
	check_keys(&c, BTREE_DIRENTS, check_dirent);
	check_keys(&c, BTREE_XATTRS, check_xattr);
	check_keys(&c, BTREE_EXTENTS, check_extent);
	for (size_t i = 0; i < c.nr; i++)
		check_inode(&c, &c.inodes[i], &c.links[i]);
	free(c.inodes);
	free(c.links);
}

/* The deleted list has exactly the positions of inodes without names; the counter is right. */
static void check_exact_keys(struct world *w)
{
	unsigned inode_nr = 0, listed_nr = 0, unlinked_nr = 0;
	struct btree_iter it;
	struct bkey_copy copy;
	struct bkey_ref k;
	int ret;

	btree_iter_open(&it, w->trees, BTREE_INODES, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (; (ret = btree_iter_peek(&it, &k)) > 0; btree_iter_advance(&it)) {
		inode_nr += is_inode(k.k.type);
		if (!is_unlinked(&k))
			continue;
		unlinked_nr++;
		assert_true(btree_lookup(w->trees, BTREE_DELETED_INODES, k.k.p, &copy) > 0);
	}
	btree_iter_close(&it);
	assert_int_equal(ret, 0);
	assert_int_equal(inode_nr, atomic_load(&w->inode_nr));

	btree_iter_open(&it, w->trees, BTREE_DELETED_INODES, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (; (ret = btree_iter_peek(&it, &k)) > 0; btree_iter_advance(&it)) {
		assert_int_equal(k.k.type, KEY_SET);
		listed_nr++;
	}
	btree_iter_close(&it);
	assert_int_equal(ret, 0);
	assert_int_equal(listed_nr, unlinked_nr);
}

void world_check(struct world *w)
{
	/* Deletions under way would change what is looked at. */
	assert_int_equal(namespace_deletions_wait(w->ns), 0);
	assert_int_equal(btree_write_buffer_flush(w->trees), 0);
	check_exact_keys(w);
	check_view(w, w->has_snapshot ? LEAF_SOURCE : SNAPSHOT);
	if (w->has_snapshot)
		check_view(w, LEAF_SNAPSHOT);
	assert_int_equal(atomic_load(&w->reports), 0);
}
