/*
 * The checker finds what is wrong, names it rightly, and says nothing of what is right.
 *
 * A table: each row breaks one invariant of a good image made by upstream, and says which errors that must give and no
 * others. Keys are broken by laying others over the btrees, as the journal's lie there; superblocks and counters in
 * memory; nodes, data and copies of superblocks in the unpacked image. Rows with several errors break what several
 * invariants need.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "alloc/quota.h"
#include "builder/image.h"
#include "format/alloc.h"
#include "format/btree_node.h"
#include "format/checksum.h"
#include "format/dirent.h"
#include "format/extent.h"
#include "format/file_data.h"
#include "format/inode.h"
#include "format/jset.h"
#include "format/logged_op.h"
#include "format/quota.h"
#include "format/sb_sections.h"
#include "format/snapshot.h"
#include "format/str_hash.h"
#include "format/xattr.h"
#include "recovery/check.h"

/* --- a filesystem, opened by hand, so that it can be broken in between --- */

struct filesystem {
	struct super *super;
	struct journal_state *journal;
	struct btrees *trees;
	struct usage usage;
	bool has_usage; /* to be used instead of what is stored */
	struct overlay_builder *overlay;
	uint32_t overlay_nr;
	struct quotas *quotas; /* what is counted; NULL: nothing */
	int fd;
	bool is_data; /* check data too */
};

static char folder[] = "/tmp/kiln-check-XXXXXX";
static const char *row_name = "";
static struct filesystem good; /* the image as it is, to look things up in */

static int backend_read(void *ctx, const struct btree_ptr *p, unsigned replica, void *buf, size_t bytes)
{
	struct super *s = ctx;

	return device_read(s->members[p->ptrs[replica].dev].dev, p->ptrs[replica].sector << SECTOR_SHIFT, buf, bytes);
}

static const char *backend_name(void *ctx, unsigned dev) { return "image"; }

static const char *image_path(void)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/image", folder);
	return path;
}

/* With all its members; f->fd is the first one's. */
static void filesystem_open_members(struct filesystem *f, char **paths, unsigned nr)
{
	static const struct report_sink silent = { 0 };
	struct super_open_opts opts = { .is_buffered = true, .is_without_uring = true };
	struct journal_read_opts jopts = { 0 };

	*f = (struct filesystem){ .fd = open(paths[0], O_RDWR) };
	assert_true(f->fd >= 0);
	assert_int_equal(super_open(paths, nr, &opts, NULL, &silent, &f->super), 0);
	assert_int_equal(journal_read(f->super, &jopts, &f->journal), 0);
	f->overlay = overlay_builder_new(false);
}

static void filesystem_open_super(struct filesystem *f, const char *image)
{
	char *path = (char *)image;

	filesystem_open_members(f, &path, 1);
}

static void filesystem_open_trees(struct filesystem *f)
{
	static const struct report_sink silent = { 0 };
	struct super *s = f->super;
	struct btrees_opts opts = {
		.memory_bytes = 16 << 20,
		.kctx = &s->kctx,
		.magic = btree_node_magic(s->sb->uuid),
		.version_min = le16_get(s->sb->version_min),
		.backend = { .read = backend_read, .device_name = backend_name, .ctx = s },
		.reports = &silent,
	};

	assert_int_equal(btrees_open(&opts, &f->trees), 0);
	for (unsigned id = 0; id < BTREE_NR_MAX; id++) {
		const struct btree_root *root = &f->journal->roots[id];
		struct bkey_ref key = { root->key, root->value };

		if (root->exists)
			assert_int_equal(btrees_set_root(f->trees, id, root->level, &key, root->is_damaged), 0);
	}
	assert_int_equal(btrees_set_overlay(f->trees, f->overlay), 0);
	f->overlay = NULL;
}

static void filesystem_close(struct filesystem *f)
{
	quotas_close(f->quotas);
	btrees_close(f->trees);
	if (f->has_usage)
		usage_free(&f->usage);
	overlay_builder_free(f->overlay);
	journal_state_free(f->journal);
	super_close(f->super);
	close(f->fd);
}

/* --- breaking --- */

static void put_version(struct filesystem *f, unsigned btree, struct bpos p, struct bversion version, uint32_t size,
			unsigned type, const void *value, size_t bytes)
{
	struct {
		struct bkey_disk k;
		uint8_t value[BKEY_VALUE_U64S_MAX * 8];
	} key = { 0 };
	size_t u64s = (bytes + 7) / 8;

	bkey_store(
		&key.k,
		&(struct bkey){
			.p = p, .version = version, .size = size, .type = (uint8_t)type, .value_u64s = (uint8_t)u64s });
	key.k.u64s = (uint8_t)(BKEY_U64S + u64s);
	key.k.format = BKEY_FORMAT_UNPACKED;
	if (bytes)
		memcpy(key.value, value, bytes);
	assert_int_equal(overlay_builder_add(f->overlay, btree, 0, 1ull << 40, f->overlay_nr++, &key.k), 0);
}

static void put(struct filesystem *f, unsigned btree, struct bpos p, uint32_t size, unsigned type, const void *value,
		size_t bytes)
{
	put_version(f, btree, p, (struct bversion){ 0 }, size, type, value, bytes);
}

static void put_key(struct filesystem *f, unsigned btree, const struct bkey_copy *k)
{
	put_version(f, btree, k->k.k.p, k->k.k.version, k->k.k.size, k->k.k.type, k->value, bkey_value_bytes(&k->k.k));
}

static void delete (struct filesystem *f, unsigned btree, struct bpos p) { put(f, btree, p, 0, KEY_DELETED, NULL, 0); }

typedef bool (*wanted_fn)(struct bkey_ref k);

/* The first key of the good image that is wanted, from @from on; the test fails without one. */
static struct bkey_copy find_from(unsigned btree, struct bpos from, wanted_fn wanted)
{
	struct bkey_copy copy;
	struct btree_iter it;
	struct bkey_ref k;

	btree_iter_open(&it, good.trees, btree, from, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (;;) {
		if (btree_iter_peek(&it, &k) != 1)
			fail_msg("%s: the image has no such key in btree %s", row_name, btree_name(btree));
		if (!wanted || wanted(k))
			break;
		btree_iter_advance(&it);
	}
	copy.k = k;
	memcpy(copy.value, k.value, bkey_value_bytes(&k.k));
	btree_iter_close(&it);
	copy.k.value = NULL;
	return copy;
}
static struct bkey_copy find(unsigned btree, wanted_fn wanted) { return find_from(btree, POS_MIN, wanted); }
static struct bkey_ref ref(const struct bkey_copy *c) { return (struct bkey_ref){ c->k.k, c->value }; }

/* --- alloc --- */

static struct alloc alloc_of(struct bkey_ref k)
{
	struct alloc a;

	assert_int_equal(alloc_decode(k, &a, NULL), 0);
	return a;
}

static bool is_user_bucket(struct bkey_ref k)
{
	struct alloc a = alloc_of(k);

	return a.data_type == DATA_USER && a.fragmentation_lru && a.dirty_sectors > 8 && a.dirty_sectors < 200;
}
static bool is_sb_bucket(struct bkey_ref k) { return alloc_of(k).data_type == DATA_SB; }

static void put_alloc(struct filesystem *f, struct bpos p, const struct alloc *a)
{
	uint8_t value[ALLOC_V4_BYTES];

	alloc_encode(a, value);
	put(f, BTREE_ALLOC, p, 0, KEY_ALLOC_V4, value, sizeof(value));
}

static struct bpos user_bucket(struct alloc *a)
{
	struct bkey_copy k = find(BTREE_ALLOC, is_user_bucket);

	*a = alloc_of(ref(&k));
	return k.k.k.p;
}

#define ALLOC_ROW(name, change)                  \
	static void name(struct filesystem *f)   \
	{                                        \
		struct alloc a;                  \
		struct bpos p = user_bucket(&a); \
		change;                          \
		put_alloc(f, p, &a);             \
	}
ALLOC_ROW(alloc_sectors, a.dirty_sectors += 8; a.fragmentation_lru += (8ull << 31) / 256)
ALLOC_ROW(alloc_type, a.data_type = DATA_BTREE)
ALLOC_ROW(alloc_cached, a.cached_sectors += 8)
ALLOC_ROW(alloc_stripe_redundancy, a.stripe_redundancy = 1)
ALLOC_ROW(alloc_fragmentation, a.fragmentation_lru = 0)
ALLOC_ROW(alloc_flags, a.flags &= ~(uint32_t)ALLOC_NEED_INC_GEN)
ALLOC_ROW(alloc_seq, a.journal_seq = 1ull << 40)
ALLOC_ROW(alloc_oldest_gen, a.oldest_gen = (uint8_t)(a.gen + 1))
ALLOC_ROW(alloc_io_time, a.io_time[0] = 0)
ALLOC_ROW(alloc_gen_older, a.gen--; a.oldest_gen = a.gen)

static void alloc_missing_bucket(struct filesystem *f)
{
	struct alloc a;

	user_bucket(&a);
	put_alloc(f, BPOS(0, good.super->members[0].m.nbuckets + 5, 0), &(struct alloc){ .flags = 0x1c });
}

static void alloc_sb_key(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_ALLOC, is_sb_bucket);
	struct alloc a = alloc_of(ref(&k));

	a.dirty_sectors -= 8;
	put_alloc(f, k.k.k.p, &a);
}

/* A cached bucket that nothing is known of. */
static void alloc_cached_read_time(struct filesystem *f)
{
	struct bkey_copy free_range = find(BTREE_FREESPACE, NULL);

	put_alloc(f, BPOS(0, free_range.k.k.p.offset - 1, 0),
		  &(struct alloc){ .flags = 0x1f, .data_type = DATA_CACHED, .cached_sectors = 8 });
}

static bool is_frag_lru(struct bkey_ref k) { return k.k.p.inode >> 48 == 0xffff; }
static void lru_missing(struct filesystem *f) { delete (f, BTREE_LRU, find(BTREE_LRU, is_frag_lru).k.k.p); }
static void lru_stray(struct filesystem *f)
{
	put(f, BTREE_LRU, BPOS(0xffffull << 48 | 5, 100, 0), 0, KEY_SET, NULL, 0);
}
static void lru_no_bucket(struct filesystem *f)
{
	put(f, BTREE_LRU, BPOS(5, 1ull << 48 | 100, 0), 0, KEY_SET, NULL, 0);
}

/* --- indexes of buckets --- */

static void freespace_missing(struct filesystem *f) { delete (f, BTREE_FREESPACE, find(BTREE_FREESPACE, NULL).k.k.p); }
static void freespace_used(struct filesystem *f) { put(f, BTREE_FREESPACE, BPOS(0, 1, 0), 1, KEY_SET, NULL, 0); }
static void freespace_outside(struct filesystem *f)
{
	uint64_t nr = good.super->members[0].m.nbuckets;

	put(f, BTREE_FREESPACE, BPOS(0, nr + 5, 0), 2, KEY_SET, NULL, 0);
}
static void freespace_genbits(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_FREESPACE, NULL);

	put(f, BTREE_FREESPACE, BPOS(0, 1ull << 56 | k.k.k.p.offset, 0), 1, KEY_SET, NULL, 0);
}
static void freespace_genbits_none(struct filesystem *f)
{
	put(f, BTREE_FREESPACE, BPOS(0, 20ull << 56 | 50, 0), 1, KEY_SET, NULL, 0);
}
static void freespace_no_device(struct filesystem *f) { put(f, BTREE_FREESPACE, BPOS(9, 50, 0), 1, KEY_SET, NULL, 0); }
/* An empty bucket that was never discarded. */
static void discard_missing(struct filesystem *f)
{
	struct bkey_copy free_range = find(BTREE_FREESPACE, NULL);

	put_alloc(f, BPOS(0, free_range.k.k.p.offset - 1, 0),
		  &(struct alloc){ .flags = 0x1d, .data_type = DATA_NEED_DISCARD });
}
static void discard_stray(struct filesystem *f) { put(f, BTREE_NEED_DISCARD, BPOS(0, 1, 0), 0, KEY_SET, NULL, 0); }
static void discard_outside(struct filesystem *f)
{
	put(f, BTREE_NEED_DISCARD, BPOS(0, 1 << 20, 0), 0, KEY_SET, NULL, 0);
}

static void put_gens(struct filesystem *f, struct bpos p, unsigned i)
{
	uint8_t gens[BUCKET_GENS_PER_KEY] = { 0 };
	struct bkey_copy old;

	if (btree_lookup(good.trees, BTREE_BUCKET_GENS, p, &old) == 1)
		bucket_gens_decode(ref(&old), gens);
	gens[i]++;
	put(f, BTREE_BUCKET_GENS, p, 0, KEY_BUCKET_GENS, gens, sizeof(gens));
}
static void gens_key(struct filesystem *f) { put_gens(f, BPOS(0, 0, 0), 1); }
static void gens_hole(struct filesystem *f)
{
	uint64_t bucket = find(BTREE_FREESPACE, NULL).k.k.p.offset - 1;

	put_gens(f, BPOS(0, bucket / 256, 0), bucket % 256);
}
static void gens_no_device(struct filesystem *f) { put_gens(f, BPOS(9, 0, 0), 1); }
static void gens_outside(struct filesystem *f) { put_gens(f, BPOS(0, 1 << 20, 0), 1); }

/* --- backpointers --- */

static bool is_extent_backpointer(struct bkey_ref k) { return !((const uint8_t *)k.value)[1]; }
static void backpointer_missing(struct filesystem *f)
{
	delete (f, BTREE_BACKPOINTERS, find(BTREE_BACKPOINTERS, is_extent_backpointer).k.k.p);
}
static void backpointer_of_node_missing(struct filesystem *f)
{
	delete (f, BTREE_BACKPOINTERS, find(BTREE_BACKPOINTERS, NULL).k.k.p);
}
/* What follows it in the list of those that must be there is nothing. */
static void backpointer_last_missing(struct filesystem *f)
{
	struct btree_iter it;
	struct bpos last = POS_MIN;
	struct bkey_ref k;

	btree_iter_open(&it, good.trees, BTREE_BACKPOINTERS, POS_MIN, 0, 0);
	for (; btree_iter_peek(&it, &k) == 1; btree_iter_advance(&it))
		last = k.k.p;
	btree_iter_close(&it);
	delete (f, BTREE_BACKPOINTERS, last);
}
static void backpointer_length(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_BACKPOINTERS, is_extent_backpointer);

	k.value[8]++;
	put_key(f, BTREE_BACKPOINTERS, &k);
}
static void backpointer_no_device(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_BACKPOINTERS, is_extent_backpointer);

	k.k.k.p.inode = 9;
	put_key(f, BTREE_BACKPOINTERS, &k);
}

/* --- counters --- */

static void usage_change(struct filesystem *f)
{
	assert_int_equal(usage_read(f->super, good.journal, good.trees, &f->usage), 0);
	f->has_usage = true;
}
static void count_inodes(struct filesystem *f) { f->journal->nr_inodes++; }
static void count_nothing(struct filesystem *f)
{
	usage_change(f);
	f->usage.is_known = false;
}
static void count_reserved(struct filesystem *f) { f->journal->reserved[0] += 8; }
static void count_dev_buckets(struct filesystem *f)
{
	usage_change(f);
	f->usage.devs[0].types[DATA_FREE].buckets++;
}
static void count_dev_sectors(struct filesystem *f)
{
	usage_change(f);
	f->usage.devs[0].types[DATA_USER].sectors++;
}
static void count_dev_fragmented(struct filesystem *f)
{
	usage_change(f);
	f->usage.devs[0].types[DATA_BTREE].fragmented++;
}
static void count_row(struct filesystem *f)
{
	usage_change(f);
	for (size_t i = 0; i < f->usage.replicas_nr; i++)
		if (f->usage.replicas[i].data_type == DATA_USER)
			f->usage.replicas[i].sectors++;
}
static void row_unmarked(struct filesystem *f)
{
	uint8_t *section = (uint8_t *)sb_section(f->super->sb, SB_REPLICAS_V0);
	size_t bytes = sb_section_bytes((void *)section);

	usage_change(f);
	/* Every entry but the journal's turns into one of parity. */
	for (size_t i = sizeof(struct sb_section_disk); i + 2 < bytes && section[i]; i += 2u + section[i + 1])
		if (section[i] == DATA_USER)
			section[i] = DATA_PARITY;
	for (size_t i = 0; i < f->usage.replicas_nr; i++)
		if (f->usage.replicas[i].data_type == DATA_USER)
			f->usage.replicas[i--] = f->usage.replicas[--f->usage.replicas_nr];
}

/* --- inodes --- */

static struct inode inode_of(struct bkey_ref k)
{
	struct inode i = { 0 };

	if (k.k.type == KEY_INODE_V3)
		assert_int_equal(inode_unpack(k, &i, NULL), 0);
	return i;
}
static void put_inode(struct filesystem *f, const struct inode *i)
{
	uint8_t value[INODE_V3_BYTES_MAX];
	size_t bytes = inode_pack(i, value);

	put(f, BTREE_INODES, BPOS(0, i->inum, i->snapshot), 0, KEY_INODE_V3, value, bytes);
}
static bool is_sole(struct bkey_ref k)
{
	struct btree_iter it;
	struct bkey_ref other;
	unsigned nr = 0;

	btree_iter_open(&it, good.trees, BTREE_INODES, BPOS(0, k.k.p.offset, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (; btree_iter_peek(&it, &other) == 1 && other.k.p.offset == k.k.p.offset; btree_iter_advance(&it))
		nr++;
	btree_iter_close(&it);
	return nr == 1;
}
static bool is_file(struct bkey_ref k)
{
	struct inode i = inode_of(k);

	return S_ISREG(i.mode) && i.sectors && !i.nlink && is_sole(k);
}
static bool is_sub_dir(struct bkey_ref k)
{
	struct inode i = inode_of(k);

	return S_ISDIR(i.mode) && !i.subvol && i.inum > 4097;
}
static bool is_empty_dir(struct bkey_ref k) { return inode_of(k).inum == 4097 && S_ISDIR(inode_of(k).mode); }

#define INODE_ROW(name, wanted, change)                          \
	static void name(struct filesystem *f)                   \
	{                                                        \
		struct bkey_copy k = find(BTREE_INODES, wanted); \
		struct inode i = inode_of(ref(&k));              \
		change;                                          \
		put_inode(f, &i);                                \
	}
INODE_ROW(inode_sectors, is_file, i.sectors += 8)
INODE_ROW(inode_sectors_without_extents, is_empty_dir, i.sectors += 8)
INODE_ROW(inode_size, is_file, i.size = 0)
INODE_ROW(inode_links, is_file, i.nlink += 3)
INODE_ROW(inode_dir_nlink, is_sub_dir, i.nlink += 3)
INODE_ROW(inode_empty_dir_nlink, is_empty_dir, i.nlink += 3)
INODE_ROW(inode_dir_size, is_empty_dir, i.size = 5)
INODE_ROW(inode_seq, is_file, i.journal_seq = 1ull << 40)
INODE_ROW(inode_size_dirty, is_file, i.flags |= INODE_SIZE_DIRTY)
INODE_ROW(inode_sectors_dirty, is_file, i.flags |= INODE_SECTORS_DIRTY)
INODE_ROW(inode_unlinked, is_file, i.flags |= INODE_UNLINKED)
INODE_ROW(inode_backpointer, is_file, i.dir_offset++)
INODE_ROW(inode_dir_backpointer_0, is_empty_dir, i.dir = i.dir_offset = 0)
static void inode_missing(struct filesystem *f) { delete (f, BTREE_INODES, find(BTREE_INODES, is_file).k.k.p); }

static struct inode root_inode(void)
{
	struct bkey_copy k;
	struct subvolume sv;

	assert_int_equal(btree_lookup(good.trees, BTREE_SUBVOLUMES, BPOS(0, 1, 0), &k), 1);
	subvolume_decode(ref(&k), &sv);
	k = find_from(BTREE_INODES, BPOS(0, 4096, sv.snapshot), NULL);
	return inode_of(ref(&k));
}
static void root_subvol(struct filesystem *f)
{
	struct inode i = root_inode();

	i.subvol = 77;
	put_inode(f, &i);
}

static void inode_seed(struct filesystem *f)
{
	struct inode i = root_inode();

	/* Another version of the same number, in a snapshot that is there. */
	struct bkey_copy k = find(BTREE_INODES, is_empty_dir);
	struct inode dir = inode_of(ref(&k));

	i = dir;
	i.hash_seed++;
	struct bkey_copy s = find_from(BTREE_SNAPSHOTS, BPOS(0, 0, 0), NULL);
	i.snapshot = (uint32_t)s.k.k.p.offset;
	put_inode(f, &i);
	f->journal->nr_inodes++;
}

static void deleted_live(struct filesystem *f)
{
	put(f, BTREE_DELETED_INODES, find(BTREE_INODES, is_file).k.k.p, 0, KEY_SET, NULL, 0);
}
static void deleted_missing(struct filesystem *f)
{
	put(f, BTREE_DELETED_INODES, BPOS(0, 999999, UINT32_MAX), 0, KEY_SET, NULL, 0);
}

/* --- extents --- */

static void put_reservation(struct filesystem *f, struct bpos p, uint32_t size)
{
	uint8_t value[RESERVATION_BYTES];

	reservation_encode(&(struct reservation){ .nr_replicas = 1 }, value);
	put(f, BTREE_EXTENTS, p, size, KEY_RESERVATION, value, sizeof(value));
	f->journal->reserved[0] += size;
}
static void extent_no_inode(struct filesystem *f) { put_reservation(f, BPOS(999999, 8, UINT32_MAX), 8); }
static void extent_of_dir(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_INODES, is_empty_dir);
	struct inode i = inode_of(ref(&k));

	put_reservation(f, BPOS(i.inum, 8, i.snapshot), 8);
}
/* Nothing else of its file is in another snapshot. */
static bool is_plain_extent(struct bkey_ref k)
{
	if (k.k.type != KEY_EXTENT || k.k.size <= 8)
		return false;
	struct bkey_copy i = find_from(BTREE_INODES, BPOS(0, k.k.p.inode, k.k.p.snapshot), NULL);
	return bpos_eq(i.k.k.p, BPOS(0, k.k.p.inode, k.k.p.snapshot)) && S_ISREG(inode_of(ref(&i)).mode) &&
	       is_sole(ref(&i));
}
static void extent_overlap(struct filesystem *f)
{
	struct bpos p = find(BTREE_EXTENTS, is_plain_extent).k.k.p;
	struct bkey_copy inode = find_from(BTREE_INODES, BPOS(0, p.inode, p.snapshot), NULL);

	p.offset -= 8;
	put_reservation(f, p, 8);
	struct inode i = inode_of(ref(&inode));
	i.sectors += 8;
	put_inode(f, &i);
}
static void extent_unaligned(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_INODES, is_file);
	struct inode i = inode_of(ref(&k));

	put_reservation(f, BPOS(i.inum, 1 << 20, i.snapshot), 3);
	i.sectors += 3;
	put_inode(f, &i);
}
static void extent_inline_long(struct filesystem *f)
{
	static uint8_t bytes[1024];
	struct bkey_copy k = find(BTREE_INODES, is_file);
	struct inode i = inode_of(ref(&k));

	i.size = (1 << 20) + 8 * 512;
	i.sectors += 1;
	put_inode(f, &i);
	put(f, BTREE_EXTENTS, BPOS(i.inum, (2 << 10) + 1, i.snapshot), 1, KEY_INLINE_DATA, bytes, sizeof(bytes));
}
static void key_without_snapshot(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_XATTRS, NULL);

	k.k.k.p.snapshot = 77;
	put_key(f, BTREE_XATTRS, &k);
}

static bool is_reflink_v(struct bkey_ref k) { return k.k.type == KEY_REFLINK_V; }
static void reflink_count(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_REFLINK, is_reflink_v);

	k.value[0]++;
	put_key(f, BTREE_REFLINK, &k);
}
static bool is_reflink_p(struct bkey_ref k) { return k.k.type == KEY_REFLINK_P; }
static void reflink_nowhere(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_EXTENTS, is_reflink_p);

	k.value[5] = 1; /* idx + 2^40 */
	put_key(f, BTREE_EXTENTS, &k);
}
/* Of a part of a shared extent: what is before it, and behind it, is counted as referred to as well. */
static bool has_back_pad(struct bkey_ref k)
{
	struct reflink_p p;

	return is_reflink_p(k) && !reflink_p_decode(k, &p) && p.back_pad >= 8;
}
static void reflink_back_pad(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_EXTENTS, has_back_pad);
	struct reflink_p p;

	reflink_p_decode(ref(&k), &p);
	p.back_pad -= 8;
	reflink_p_encode(&p, k.value);
	put_key(f, BTREE_EXTENTS, &k);
}
static bool has_front_pad(struct bkey_ref k)
{
	struct reflink_p p;

	return is_reflink_p(k) && !reflink_p_decode(k, &p) && p.front_pad >= 8;
}
static void reflink_front_pad(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_EXTENTS, has_front_pad);
	struct reflink_p p;

	reflink_p_decode(ref(&k), &p);
	p.front_pad -= 8;
	reflink_p_encode(&p, k.value);
	put_key(f, BTREE_EXTENTS, &k);
}
static void rebalance_stray(struct filesystem *f)
{
	put(f, BTREE_REBALANCE_WORK, find(BTREE_EXTENTS, is_plain_extent).k.k.p, 0, KEY_SET, NULL, 0);
}

/* --- names --- */

static struct bkey_copy dirent_of(const struct inode *i)
{
	return find_from(BTREE_DIRENTS, BPOS(i->dir, i->dir_offset, i->snapshot), NULL);
}
static struct bkey_copy file_dirent(void)
{
	struct bkey_copy k = find(BTREE_INODES, is_file);
	struct inode i = inode_of(ref(&k));

	return dirent_of(&i);
}
static void dirent_missing(struct filesystem *f) { delete (f, BTREE_DIRENTS, file_dirent().k.k.p); }
static void put_dirent(struct filesystem *f, struct bpos p, const struct dirent *d)
{
	uint8_t value[1024];
	size_t bytes = dirent_encode(d, value, sizeof(value));

	assert_true(bytes);
	put(f, BTREE_DIRENTS, p, 0, KEY_DIRENT, value, bytes);
}
static void dirent_type(struct filesystem *f)
{
	struct bkey_copy k = file_dirent();
	struct dirent d;

	assert_int_equal(dirent_decode(ref(&k), &d, NULL), 0);
	d.type = DIRENT_TYPE_FIFO;
	put_dirent(f, k.k.k.p, &d);
}
static void dirent_moved(struct filesystem *f)
{
	struct bkey_copy k = file_dirent();
	struct bkey_copy inode = find(BTREE_INODES, is_file);
	struct inode i = inode_of(ref(&inode));

	delete (f, BTREE_DIRENTS, k.k.k.p);
	k.k.k.p.offset += 5;
	put_key(f, BTREE_DIRENTS, &k);
	i.dir_offset += 5;
	put_inode(f, &i);
}
static void dirent_twice(struct filesystem *f)
{
	struct bkey_copy k = file_dirent(), inode = find(BTREE_INODES, is_file);
	struct inode i = inode_of(ref(&inode));

	k.k.k.p.offset++;
	put_key(f, BTREE_DIRENTS, &k);
	i.nlink = 1;
	put_inode(f, &i);
}
/* Another name beside the file's, at its hash, so that only what it names is wrong. */
static void put_name(struct filesystem *f, const char *name, unsigned type, uint64_t inum)
{
	struct bkey_copy k = find(BTREE_INODES, is_file);
	struct inode file = inode_of(ref(&k));
	struct bkey_copy d = find_from(BTREE_INODES, BPOS(0, file.dir, file.snapshot), NULL);
	struct inode dir = inode_of(ref(&d));
	struct dirent e = { .type = (uint8_t)type,
			    .inum = inum,
			    .name = (const uint8_t *)name,
			    .name_len = (uint16_t)strlen(name),
			    .folded = (const uint8_t *)name,
			    .folded_len = (uint16_t)strlen(name) };

	put_dirent(f,
		   BPOS(dir.inum, str_hash_dirent(dir.str_hash, dir.hash_seed, name, strlen(name), 0), file.snapshot),
		   &e);
}
static void dirent_no_target(struct filesystem *f) { put_name(f, "kiln-test", DIRENT_TYPE_REG, 888888); }
static void inode_nlink_0(struct filesystem *f)
{
	put_name(f, "kiln-test", DIRENT_TYPE_REG, find(BTREE_INODES, is_file).k.k.p.offset);
}
static void dirent_no_dir(struct filesystem *f)
{
	struct bkey_copy k = file_dirent();

	k.k.k.p.inode = 999999;
	put_key(f, BTREE_DIRENTS, &k);
}
static bool is_subvol_dirent(struct bkey_ref k)
{
	struct dirent d;

	return k.k.type == KEY_DIRENT && !dirent_decode(k, &d, NULL) && d.type == DIRENT_TYPE_SUBVOL;
}
static void dirent_no_subvol(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_DIRENTS, is_subvol_dirent);
	struct dirent d;
	uint32_t subvol = 9999;

	assert_int_equal(dirent_decode(ref(&k), &d, NULL), 0);
	d.child_subvol = subvol;
	put_dirent(f, k.k.k.p, &d);
}
/* A directory that is in itself. */
static void dir_loop(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_INODES, is_empty_dir);
	struct inode i = inode_of(ref(&k));

	i.dir = i.inum;
	put_inode(f, &i);
}
static bool is_xattr(struct bkey_ref k) { return k.k.type == KEY_XATTR; }
static void xattr_no_inode(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_XATTRS, is_xattr);

	k.k.k.p.inode = 999999;
	put_key(f, BTREE_XATTRS, &k);
}
static void xattr_renamed(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_XATTRS, is_xattr);

	k.value[4] ^= 1; /* first letter of the name: its hash is elsewhere */
	put_key(f, BTREE_XATTRS, &k);
}

/* --- snapshots --- */

static struct snapshot snapshot_of(struct bkey_ref k)
{
	struct snapshot s;

	snapshot_decode(k, &s);
	return s;
}
static bool is_child(struct bkey_ref k) { return snapshot_of(k).parent && snapshot_of(k).is_subvol; }
static bool is_interior(struct bkey_ref k) { return snapshot_of(k).children[0]; }
#define SNAPSHOT_ROW(name, wanted, change)                                               \
	static void name(struct filesystem *f)                                           \
	{                                                                                \
		struct bkey_copy k = find(BTREE_SNAPSHOTS, wanted);                      \
		struct snapshot s = snapshot_of(ref(&k));                                \
		uint8_t value[SNAPSHOT_BYTES];                                           \
		change;                                                                  \
		snapshot_encode(&s, value);                                              \
		put(f, BTREE_SNAPSHOTS, k.k.k.p, 0, KEY_SNAPSHOT, value, sizeof(value)); \
	}
SNAPSHOT_ROW(snapshot_depth, is_child, s.depth += 5)
SNAPSHOT_ROW(snapshot_skip, is_child, s.skip[2] = UINT32_MAX)
SNAPSHOT_ROW(snapshot_tree_missing, is_child, s.tree = 99)
SNAPSHOT_ROW(snapshot_subvol, is_interior, s.subvol = 5)
SNAPSHOT_ROW(snapshot_child_lost, is_interior, s.children[1] = 3)

static bool is_snap_subvol(struct bkey_ref k)
{
	struct subvolume sv;

	subvolume_decode(k, &sv);
	return sv.is_snapshot;
}
static void subvol_not_snapshot(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_SUBVOLUMES, is_snap_subvol);

	k.value[0] &= ~2;
	put_key(f, BTREE_SUBVOLUMES, &k);
}
static void put_tree(struct filesystem *f, uint64_t tree, unsigned which, uint32_t value)
{
	struct bkey_copy k = find_from(BTREE_SNAPSHOT_TREES, BPOS(0, tree, 0), NULL);

	le32_store(k.value + (size_t)4 * which, value);
	put_key(f, BTREE_SNAPSHOT_TREES, &k);
}
static void tree_no_root(struct filesystem *f) { put_tree(f, 1, 1, 5); }
static void tree_no_subvol(struct filesystem *f) { put_tree(f, 1, 0, 9999); }
static void tree_of_other(struct filesystem *f)
{
	put_tree(f, 1, 0, (uint32_t)find(BTREE_SUBVOLUMES, is_snap_subvol).k.k.p.offset);
}
static void tree_of_snapshot(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_SUBVOLUMES, is_snap_subvol);
	struct subvolume sv;

	subvolume_decode(ref(&k), &sv);
	struct bkey_copy s = find_from(BTREE_SNAPSHOTS, BPOS(0, sv.snapshot, 0), NULL);
	put_tree(f, snapshot_of(ref(&s)).tree, 0, (uint32_t)k.k.k.p.offset);
}
static void root_subvol_missing(struct filesystem *f) { delete (f, BTREE_SUBVOLUMES, BPOS(0, 1, 0)); }
static void op_left(struct filesystem *f)
{
	uint8_t value[LOGGED_OP_TRUNCATE_BYTES];

	logged_op_truncate_encode(&(struct logged_op_truncate){ .subvol = 1, .inum = 4097 }, value);
	put(f, BTREE_LOGGED_OPS, BPOS(0, 1, 0), 0, KEY_LOGGED_OP_TRUNCATE, value, sizeof(value));
}

/* --- superblocks, journal, nodes, data --- */

static void sb_compat(struct filesystem *f)
{
	f->super->sb->compat[0] = le64_of(le64_get(f->super->sb->compat[0]) & ~1ull);
}
static void sb_feature(struct filesystem *f)
{
	f->super->sb->features[0] =
		le64_of(le64_get(f->super->sb->features[0]) & ~(1ull << SB_FEATURE_REFLINK | 1ull << SB_FEATURE_ZSTD));
}
/* Of those that every filesystem of 1.4 has. */
static void sb_feature_of_all(struct filesystem *f)
{
	f->super->sb->features[0] = le64_of(le64_get(f->super->sb->features[0]) & ~(1ull << SB_FEATURE_NEW_SIPHASH));
}
static void clean_seq(struct filesystem *f)
{
	struct sb_clean_disk *clean = (void *)sb_section(f->super->sb, SB_CLEAN);

	clean->journal_seq = le64_of(le64_get(clean->journal_seq) + 1);
}
static void clean_change(struct filesystem *f, unsigned type)
{
	struct sb_clean_disk *clean = (void *)sb_section(f->super->sb, SB_CLEAN);
	struct jset_walk w = { clean->entries, (uint8_t *)clean + sb_section_bytes(&clean->head) };
	const struct jset_entry_disk *e;

	while (jset_walk_next(&w, &e, NULL) > 0)
		if (e->type == type) {
			((uint8_t *)e)[sizeof(*e) + jset_entry_payload_bytes(e) - 8] ^= 1;
			return;
		}
	fail_msg("no such sub-entry");
}
static void clean_counter(struct filesystem *f) { clean_change(f, JSET_ENTRY_USAGE); }
static void clean_root(struct filesystem *f) { clean_change(f, JSET_ENTRY_BTREE_ROOT); }
static void journal_unmarked(struct filesystem *f)
{
	uint8_t *section = (uint8_t *)sb_section(f->super->sb, SB_REPLICAS_V0);
	size_t bytes = sb_section_bytes((void *)section);

	for (size_t i = sizeof(struct sb_section_disk); i + 2 < bytes && section[i]; i += 2u + section[i + 1])
		if (section[i] == DATA_JOURNAL)
			section[i] = DATA_PARITY;
}

/* Change bytes of the image; what was there comes back after the row. */
enum { PATCHES_MAX = 2 };
static struct {
	uint64_t offset;
	uint8_t old[16 << 10];
	size_t bytes;
} patched[PATCHES_MAX];
static unsigned patch_nr;
static void patch(struct filesystem *f, uint64_t offset, const void *bytes, size_t len)
{
	assert_true(patch_nr < PATCHES_MAX && len <= sizeof(patched[0].old));
	patched[patch_nr].offset = offset;
	patched[patch_nr].bytes = len;
	assert_int_equal(pread(f->fd, patched[patch_nr++].old, len, (off_t)offset), len);
	assert_int_equal(pwrite(f->fd, bytes, len, (off_t)offset), len);
}
static void patch_byte(struct filesystem *f, uint64_t offset)
{
	uint8_t byte;

	assert_int_equal(pread(f->fd, &byte, 1, (off_t)offset), 1);
	byte ^= 1;
	patch(f, offset, &byte, 1);
}
static void patch_back(struct filesystem *f)
{
	while (patch_nr) {
		patch_nr--;
		assert_int_equal(
			pwrite(f->fd, patched[patch_nr].old, patched[patch_nr].bytes, (off_t)patched[patch_nr].offset),
			patched[patch_nr].bytes);
	}
}
static void rebalance_missing(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_EXTENTS, is_plain_extent);

	extent_rebalance_store(k.value + bkey_value_bytes(&k.k.k),
			       &(struct extent_rebalance){ .target = 1, .compression = 1 });
	k.k.k.value_u64s++;
	put_key(f, BTREE_EXTENTS, &k);
}

static void sb_copy(struct filesystem *f)
{
	static const uint8_t zeroes[512];

	patch(f, le64_get(f->super->sb->layout.sb_offset[1]) << 9, zeroes, sizeof(zeroes));
}
/* What is looked at is longer than such superblocks are. */
static void sb_small(struct filesystem *f) { f->super->members[0].sb->layout.sb_max_size_bits = 1; }
static void device_too_small(struct filesystem *f) { f->super->members[0].dev->size_bytes -= 4096; }
/* The first copy in the second's place. */
static void sb_copy_of_another(struct filesystem *f)
{
	const struct sb_disk *sb = f->super->members[0].sb;
	size_t bytes = round_up_u64(sb_bytes(sb), 512);
	void *copy = io_buffer_alloc(bytes);

	assert_int_equal(device_read(f->super->members[0].dev, le64_get(sb->layout.sb_offset[0]) << 9, copy, bytes), 0);
	patch(f, le64_get(sb->layout.sb_offset[1]) << 9, copy, bytes);
	io_buffer_free(copy);
}

/* A good second copy, from before the last change. */
static void sb_copy_older(struct filesystem *f)
{
	const struct sb_disk *sb = f->super->members[0].sb;
	size_t bytes = round_up_u64(sb_bytes(sb), 512);
	uint64_t offset = le64_get(sb->layout.sb_offset[1]) << 9;
	struct sb_disk *copy = io_buffer_alloc(bytes);

	assert_int_equal(device_read(f->super->members[0].dev, offset, copy, bytes), 0);
	copy->seq = le64_of(le64_get(copy->seq) - 1);
	sb_seal(copy, CHECKSUM_CRC32C_NONZERO);
	patch(f, offset, copy, bytes);
	io_buffer_free(copy);
}

static void sb_layout_other(struct filesystem *f)
{
	struct sb_layout_disk layout = f->super->members[0].sb->layout;

	layout.nr_superblocks--;
	patch(f, SB_LAYOUT_SECTOR * 512, &layout, sizeof(layout));
}

static void sb_layout(struct filesystem *f)
{
	static const uint8_t zeroes[512];

	patch(f, SB_LAYOUT_SECTOR * 512, zeroes, sizeof(zeroes));
}

static uint64_t root_sector(unsigned btree, unsigned *written)
{
	const struct btree_root *root = &good.journal->roots[btree];
	struct btree_ptr p;

	assert_true(root->exists);
	assert_int_equal(btree_ptr_decode((struct bkey_ref){ root->key, root->value }, &good.super->kctx, &p, NULL), 0);
	*written = p.sectors_written;
	return p.ptrs[0].sector;
}
static void node_damaged(struct filesystem *f)
{
	unsigned written;

	patch_byte(f, root_sector(BTREE_INODES, &written) << 9); /* its checksum */
}
/* A set that nobody said is written: the seq is all that tells. */
static void node_set_behind(struct filesystem *f)
{
	unsigned written;
	uint64_t sector = root_sector(BTREE_XATTRS, &written);
	struct btree_node_disk node;
	struct btree_node_entry_disk set = { 0 };

	assert_true(written < good.super->kctx.node_sectors);
	assert_int_equal(pread(f->fd, &node, sizeof(node), (off_t)(sector << 9)), sizeof(node));
	set.keys.seq = node.keys.seq;
	patch(f, (sector + written) << 9, &set, sizeof(set));
}
static void data_damaged(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_EXTENTS, is_plain_extent);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];

	assert_true(extent_decode(ref(&k), &good.super->kctx, ptrs, NULL, NULL) > 0);
	patch_byte(f, (ptrs[0].ptr.sector << 9) + 100);
	f->is_data = true;
}
static void quota_put(struct filesystem *f, struct bpos p)
{
	uint8_t value[QUOTA_BYTES];

	quota_encode(&(struct quota){ .limits = { [QUOTA_SPACE] = { .hard = 8 } } }, value);
	put(f, BTREE_QUOTAS, p, 0, KEY_QUOTA, value, sizeof(value));
}
static void quota_id(struct filesystem *f) { quota_put(f, BPOS(QUOTA_USER, 1ull << 32, 0)); }
static void nothing(struct filesystem *f) { f->is_data = true; }

/* --- more of the same, room by room --- */

ALLOC_ROW(alloc_stripe, a.stripe = 5)
ALLOC_ROW(alloc_gen_far, a.gen += 100)

static void alloc_key_missing(struct filesystem *f)
{
	struct alloc a;

	delete (f, BTREE_ALLOC, user_bucket(&a));
}

static void put_free(struct filesystem *f, uint64_t start, uint64_t end)
{
	put(f, BTREE_FREESPACE, BPOS(0, end, 0), (uint32_t)(end - start), KEY_SET, NULL, 0);
}
static void freespace_split(struct filesystem *f)
{
	struct bkey k = find(BTREE_FREESPACE, NULL).k.k;
	uint64_t start = bkey_start_offset(&k), end = k.p.offset;

	assert_true(end - start > 2);
	put_free(f, start, start + 1);
	put_free(f, start + 1, end);
}
/* A free bucket that has a key of its own, and is left out of the range. */
static void freespace_key_missing(struct filesystem *f)
{
	struct bkey k = find(BTREE_FREESPACE, NULL).k.k;
	uint64_t start = bkey_start_offset(&k), end = k.p.offset;

	put_alloc(f, BPOS(0, end - 1, 0), &(struct alloc){ .data_type = DATA_FREE });
	delete (f, BTREE_FREESPACE, k.p);
	put_free(f, start, end - 1);
}
static void gens_behind_end(struct filesystem *f)
{
	uint64_t nr = good.super->members[0].m.nbuckets;

	put_gens(f, BPOS(0, nr / BUCKET_GENS_PER_KEY, 0), nr % BUCKET_GENS_PER_KEY);
}

static void extent_version_newer(struct filesystem *f)
{
	f->journal->key_version = 5;
	struct bkey_copy k = find(BTREE_EXTENTS, is_plain_extent);
	k.k.k.version.lo = 6;
	put_key(f, BTREE_EXTENTS, &k);
}
static void extent_region_large(struct filesystem *f) { f->super->kctx.encoded_extent_max_sectors = 8; }

static bool is_btree_bucket(struct bkey_ref k) { return alloc_of(k).data_type == DATA_BTREE; }
/* Data where a btree node is. */
static void extent_in_btree_bucket(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_EXTENTS, is_plain_extent), bucket = find(BTREE_ALLOC, is_btree_bucket);
	uint64_t sector = bucket.k.k.p.offset * good.super->members[0].m.bucket_sectors;
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];

	assert_true(extent_decode(ref(&k), &good.super->kctx, ptrs, NULL, NULL) == 1);
	size_t at = bkey_value_bytes(&k.k.k) - 8;
	struct extent_ptr ptr = ptrs[0].ptr;
	ptr.sector = sector;
	ptr.gen = alloc_of(ref(&bucket)).gen;
	extent_ptr_store(k.value + at, &ptr);
	put_key(f, BTREE_EXTENTS, &k);
}

static bool is_shared_file(struct bkey_ref k)
{
	struct bkey_copy s;

	if (!is_file(k) || btree_lookup(good.trees, BTREE_SNAPSHOTS, BPOS(0, k.k.p.snapshot, 0), &s) != 1)
		return false;
	return snapshot_of(ref(&s)).children[0];
}
/* Of a file that is as it was before the snapshot. */
static void extent_below_inode(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_INODES, is_shared_file);
	struct bkey_copy s = find_from(BTREE_SNAPSHOTS, BPOS(0, k.k.k.p.snapshot, 0), NULL);

	put_reservation(f, BPOS(k.k.k.p.offset, 1 << 20, snapshot_of(ref(&s)).children[0]), 8);
}

static void inode_dirty_unclean(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_INODES, is_file);
	struct inode i = inode_of(ref(&k));

	usage_change(f); /* as it is, not as the journal of an unclean one would say */
	f->journal->was_clean = false;
	i.flags |= INODE_SIZE_DIRTY;
	put_inode(f, &i);
}
static bool is_full_dir(struct bkey_ref k)
{
	struct inode i = inode_of(k);

	return is_sub_dir(k) && is_sole(k) && !i.nlink &&
	       find_from(BTREE_DIRENTS, BPOS(i.inum, 0, 0), NULL).k.k.p.inode == i.inum;
}
INODE_ROW(inode_full_dir_unlinked, is_full_dir, i.flags |= INODE_UNLINKED)

#define ROOT_ROW(name, change)                 \
	static void name(struct filesystem *f) \
	{                                      \
		struct inode i = root_inode(); \
		change;                        \
		put_inode(f, &i);              \
	}
ROOT_ROW(root_without_subvol, i.subvol = 0)
ROOT_ROW(root_is_file, i.mode = S_IFREG | 0755)
ROOT_ROW(root_backpointer, i.dir = i.inum; i.dir_offset = 5)
static void root_missing(struct filesystem *f)
{
	struct inode i = root_inode();

	delete (f, BTREE_INODES, BPOS(0, i.inum, i.snapshot));
}

static void dir_twice(struct filesystem *f) { put_name(f, "kiln-test", DIRENT_TYPE_DIR, 4097); }
static void dirent_in_file(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_INODES, is_file);
	struct inode file = inode_of(ref(&k));
	static const char name[] = "kiln-test";
	struct dirent e = { .type = DIRENT_TYPE_REG,
			    .inum = file.inum,
			    .name = (const uint8_t *)name,
			    .name_len = 9,
			    .folded = (const uint8_t *)name,
			    .folded_len = 9 };

	put_dirent(f, BPOS(file.inum, str_hash_dirent(file.str_hash, file.hash_seed, name, 9, 0), file.snapshot), &e);
}
/* Written out: what makes entries makes none so long. */
static void dirent_long(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_INODES, is_file);
	struct inode file = inode_of(ref(&k));
	struct bkey_copy d = find_from(BTREE_INODES, BPOS(0, file.dir, file.snapshot), NULL);
	struct inode dir = inode_of(ref(&d));
	uint8_t value[9 + 519] = { 0 };

	le64_store(value, file.inum);
	value[8] = DIRENT_TYPE_REG;
	memset(value + 9, 'n', 515);
	put(f, BTREE_DIRENTS,
	    BPOS(dir.inum, str_hash_dirent(dir.str_hash, dir.hash_seed, (const char *)value + 9, 515, 0),
		 file.snapshot),
	    0, KEY_DIRENT, value, sizeof(value));
	file.nlink++;
	put_inode(f, &file);
}
static void dirent_other_parent(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_DIRENTS, is_subvol_dirent);
	struct dirent d;

	assert_int_equal(dirent_decode(ref(&k), &d, NULL), 0);
	d.parent_subvol += 7;
	put_dirent(f, k.k.k.p, &d);
}

static bool is_leaf(struct bkey_ref k) { return snapshot_of(k).is_subvol && !snapshot_of(k).children[0]; }
SNAPSHOT_ROW(snapshot_of_subvol_divided, is_leaf, s.children[0] = (uint32_t)k.k.k.p.offset - 1)

static bool is_other_subvol(struct bkey_ref k) { return k.k.p.offset != 1; }
#define SUBVOL_ROW(name, change)                                                           \
	static void name(struct filesystem *f)                                             \
	{                                                                                  \
		struct bkey_copy k = find(BTREE_SUBVOLUMES, is_other_subvol);              \
		struct subvolume sv;                                                       \
		uint8_t value[SUBVOLUME_BYTES];                                            \
		subvolume_decode(ref(&k), &sv);                                            \
		change;                                                                    \
		subvolume_encode(&sv, value);                                              \
		put(f, BTREE_SUBVOLUMES, k.k.k.p, 0, KEY_SUBVOLUME, value, sizeof(value)); \
	}
SUBVOL_ROW(subvol_without_snapshot, sv.snapshot = 9999)
SUBVOL_ROW(subvol_without_root, sv.inode = 888888)

static bool is_subvol_root(struct bkey_ref k) { return inode_of(k).subvol > 1 && is_sole(k); }
INODE_ROW(subvol_root_of_other, is_subvol_root, i.subvol += 70)
INODE_ROW(subvol_in_itself, is_subvol_root, i.parent_subvol = i.subvol)

/* Its deletion has begun: nothing names it any more. */
static void subvol_unlinked(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_INODES, is_subvol_root), subvol;
	struct inode root = inode_of(ref(&k));
	struct subvolume sv;
	uint8_t value[SUBVOLUME_BYTES];

	assert_int_equal(btree_lookup(good.trees, BTREE_SUBVOLUMES, BPOS(0, root.subvol, 0), &subvol), 1);
	subvolume_decode(subvol.k, &sv);
	sv.is_unlinked = true;
	subvolume_encode(&sv, value);
	put(f, BTREE_SUBVOLUMES, subvol.k.k.p, 0, KEY_SUBVOLUME, value, sizeof(value));
	delete (f, BTREE_DIRENTS, find_from(BTREE_DIRENTS, BPOS(root.dir, root.dir_offset, 0), NULL).k.k.p);
	root.dir = root.dir_offset = 0;
	put_inode(f, &root);
}
/* It was the only one of its tree, which waits for its deletion now. */
static bool is_sole_subvol_root(struct bkey_ref k)
{
	struct bkey_copy s;

	assert_int_equal(btree_lookup(good.trees, BTREE_SNAPSHOTS, BPOS(0, k.k.p.snapshot, 0), &s), 1);
	return is_subvol_root(k) && !snapshot_of(ref(&s)).parent && !snapshot_of(ref(&s)).children[0];
}
static void tree_dead(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_INODES, is_sole_subvol_root), snapshot;
	struct inode root = inode_of(ref(&k));
	uint8_t value[SNAPSHOT_BYTES];

	assert_int_equal(btree_lookup(good.trees, BTREE_SNAPSHOTS, BPOS(0, root.snapshot, 0), &snapshot), 1);
	struct snapshot s = snapshot_of(snapshot.k);
	s.will_delete = true;
	s.is_subvol = false;
	s.subvol = 0;
	snapshot_encode(&s, value);
	put(f, BTREE_SNAPSHOTS, snapshot.k.k.p, 0, KEY_SNAPSHOT, value, sizeof(value));
	delete (f, BTREE_SUBVOLUMES, BPOS(0, root.subvol, 0));
	delete (f, BTREE_DIRENTS, find_from(BTREE_DIRENTS, BPOS(root.dir, root.dir_offset, 0), NULL).k.k.p);
}
/* What a name leads to is in a tree of snapshots that those who see the name aren't in. */
static void dirent_to_other_tree(struct filesystem *f)
{
	put_name(f, "kiln-test", DIRENT_TYPE_REG, find(BTREE_INODES, is_sole_subvol_root).k.k.p.offset);
}
/* A directory that says it is the root of a subvolume, which has one. */
static void subvol_root_twice(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_INODES, is_empty_dir), r = find(BTREE_INODES, is_subvol_root);
	struct inode i = inode_of(ref(&k)), root = inode_of(ref(&r));

	i.subvol = root.subvol;
	i.parent_subvol = root.parent_subvol;
	i.dir = root.dir;
	i.dir_offset = root.dir_offset;
	put_inode(f, &i);
}

static bool is_in_leaf(struct bkey_ref k)
{
	struct bkey_copy s;

	assert_int_equal(btree_lookup(good.trees, BTREE_SNAPSHOTS, BPOS(0, k.k.p.snapshot, 0), &s), 1);
	return snapshot_of(ref(&s)).is_subvol;
}
static bool is_file_in_leaf(struct bkey_ref k) { return is_file(k) && is_in_leaf(k); }
static void move_to_snapshot(struct filesystem *f, unsigned btree, struct bkey_copy k, uint32_t snapshot)
{
	delete (f, btree, k.k.k.p);
	k.k.k.p.snapshot = snapshot;
	put_key(f, btree, &k);
}
/*
 * Deletions have left a chain of two snapshots, which is being made one: some of the inodes are in the lower one by
 * now, while what belongs to them is not; and of one there is a version that nothing sees.
 */
static void snapshot_chain(struct filesystem *f)
{
	struct bkey_copy file = find(BTREE_INODES, is_file_in_leaf), k;
	uint32_t upper = file.k.k.p.snapshot, lower = find(BTREE_SNAPSHOTS, NULL).k.k.p.offset - 1;
	uint8_t value[SNAPSHOT_BYTES], subvol_value[SUBVOLUME_BYTES];
	struct subvolume sv;

	assert_int_equal(btree_lookup(good.trees, BTREE_SNAPSHOTS, BPOS(0, upper, 0), &k), 1);
	struct snapshot above = snapshot_of(k.k), below = above;
	below.parent = upper;
	below.depth++;
	for (unsigned i = 0; i < 3; i++)
		below.skip[i] = upper;
	above.is_subvol = false;
	above.subvol = 0;
	above.children[0] = lower;
	snapshot_encode(&above, value);
	put(f, BTREE_SNAPSHOTS, BPOS(0, upper, 0), 0, KEY_SNAPSHOT, value, sizeof(value));
	snapshot_encode(&below, value);
	put(f, BTREE_SNAPSHOTS, BPOS(0, lower, 0), 0, KEY_SNAPSHOT, value, sizeof(value));
	assert_int_equal(btree_lookup(good.trees, BTREE_SUBVOLUMES, BPOS(0, below.subvol, 0), &k), 1);
	subvolume_decode(k.k, &sv);
	sv.snapshot = lower;
	subvolume_encode(&sv, subvol_value);
	put(f, BTREE_SUBVOLUMES, k.k.k.p, 0, KEY_SUBVOLUME, subvol_value, sizeof(subvol_value));

	move_to_snapshot(f, BTREE_INODES, file, lower);
	struct inode i = inode_of(ref(&file));
	k = find_from(BTREE_INODES, BPOS(0, i.dir, upper), NULL);
	assert_true(k.k.k.p.offset == i.dir && k.k.k.p.snapshot == upper);
	struct inode dir = inode_of(ref(&k));
	dir.nlink += 7;
	put_inode(f, &dir);
	dir.nlink -= 7;
	dir.snapshot = lower;
	put_inode(f, &dir);
	f->journal->nr_inodes++;
}

static void sb_dirty(struct filesystem *f)
{
	struct sb_disk *sb = f->super->sb;

	sb->flags[0] = le64_of(le64_get(sb->flags[0]) & ~2ull);
	sb->features[0] = le64_of(le64_get(sb->features[0]) & ~(1ull << SB_FEATURE_BTREE_UPDATES_JOURNALLED));
}

/* Change a node's header or its last set, and seal that again: it is a good one that says something else. */
static void patch_node(struct filesystem *f, unsigned btree, void (*change)(struct bset_disk *last))
{
	unsigned written;
	uint64_t sector = root_sector(btree, &written);
	size_t bytes = (size_t)written << SECTOR_SHIFT, offset = 0, last = 0;
	uint8_t *node = calloc(1, bytes);

	assert_non_null(node);
	assert_int_equal(pread(f->fd, node, bytes, (off_t)(sector << SECTOR_SHIFT)), bytes);
	while (offset < bytes) {
		struct bset_disk *set = (void *)bset_at(node, offset);
		size_t head = (size_t)((uint8_t *)(set + 1) - (node + offset));

		last = offset;
		offset = round_up_u64(offset + head + 8ull * le16_get(set->u64s),
				      (uint64_t)good.super->kctx.block_sectors << SECTOR_SHIFT);
	}
	struct bset_disk *set = (void *)bset_at(node, last);
	change(set);
	assert_true((uint8_t *)(set + 1) + 8ul * le16_get(set->u64s) <= node + bytes);
	bset_seal(node, last, bset_csum_type(set), NULL);
	patch(f, (sector << SECTOR_SHIFT) + last, node + last, bytes - last);
	free(node);
}
static void seq_far(struct bset_disk *set) { set->journal_seq = le64_of(1ull << 40); }
static void node_seq_in_future(struct filesystem *f) { patch_node(f, BTREE_XATTRS, seq_far); }

/* --- stripes: put into an image that has none --- */

static struct extent_ptr free_bucket(unsigned sector)
{
	uint64_t size = good.super->members[0].m.bucket_sectors;

	return (struct extent_ptr){ .sector = (find(BTREE_FREESPACE, NULL).k.k.p.offset - 1) * size + sector };
}
/* Of two blocks: one where @data is, and its @parity. The checksums are of nothing. */
static void put_stripe_with(struct filesystem *f, unsigned nr, const struct extent_ptr *data, struct extent_ptr parity,
			    unsigned sectors, unsigned csum_type, unsigned live)
{
	uint64_t size = good.super->members[0].m.bucket_sectors;
	size_t at = 24 + 2 * checksum_bytes(csum_type);
	struct extent_ptr block = *data;
	uint8_t value[64] = { 0 };

	block.sector -= block.sector % size;
	le16_store(value, (uint16_t)sectors);
	value[3] = 2;
	value[4] = 1;
	value[5] = 15;
	value[6] = (uint8_t)csum_type;
	extent_ptr_store(value + 8, &block);
	extent_ptr_store(value + 16, &parity);
	le16_store(value + at, (uint16_t)live);
	put(f, BTREE_STRIPES, BPOS(0, nr, 0), 0, KEY_STRIPE, value, at + 4);
	f->is_data = true;
}
static void put_stripe_nr(struct filesystem *f, unsigned nr, const struct extent_ptr *data, unsigned sectors,
			  unsigned csum_type, unsigned live)
{
	put_stripe_with(f, nr, data, free_bucket(0), sectors, csum_type, live);
}
static void put_stripe(struct filesystem *f, const struct extent_ptr *data, unsigned sectors, unsigned csum_type,
		       unsigned live)
{
	put_stripe_nr(f, 5, data, sectors, csum_type, live);
}
/* An extent becomes one of block 0 of stripe 5. */
static struct extent_ptr put_stripe_ptr(struct filesystem *f, unsigned redundancy, unsigned *sectors)
{
	struct bkey_copy k = find(BTREE_EXTENTS, is_plain_extent);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	size_t at = bkey_value_bytes(&k.k.k) - 8;

	assert_int_equal(extent_decode(ref(&k), &good.super->kctx, ptrs, NULL, NULL), 1);
	memcpy(k.value + at + 8, k.value + at, 8);
	extent_stripe_ptr_store(k.value + at,
				&(struct extent_stripe_ptr){ .idx = 5, .redundancy = (uint8_t)redundancy });
	k.k.k.value_u64s++;
	put_key(f, BTREE_EXTENTS, &k);
	*sectors = k.k.k.size;
	return ptrs[0].ptr;
}
static void stripe_put(struct filesystem *f, unsigned redundancy, unsigned less, unsigned csum_type, unsigned more)
{
	unsigned live;
	struct extent_ptr p = put_stripe_ptr(f, redundancy, &live);

	put_stripe(f, &p, good.super->members[0].m.bucket_sectors - less, csum_type, live + more);
}
static void stripe_redundancy(struct filesystem *f) { stripe_put(f, 3, 0, 0, 0); }
static void stripe_sectors(struct filesystem *f) { stripe_put(f, 1, 8, 0, 0); }
static void stripe_count(struct filesystem *f) { stripe_put(f, 1, 0, 0, 1); }
static void stripe_parity(struct filesystem *f) { stripe_put(f, 1, 0, 0, 0); }
static void stripe_block(struct filesystem *f) { stripe_put(f, 1, 0, CHECKSUM_CRC32C, 0); }
static void stripe_missing(struct filesystem *f)
{
	unsigned live;

	put_stripe_ptr(f, 1, &live);
}
static void stripe_of_another(struct filesystem *f)
{
	unsigned live;
	struct extent_ptr p = put_stripe_ptr(f, 1, &live);

	put_stripe(f, &p, good.super->members[0].m.bucket_sectors, 0, live);
	put_stripe_nr(f, 4, &p, good.super->members[0].m.bucket_sectors, 0, 0);
}
/* Its parity begins in the midst of a bucket. */
static void stripe_unaligned(struct filesystem *f)
{
	unsigned live;
	struct extent_ptr p = put_stripe_ptr(f, 1, &live);

	put_stripe_with(f, 5, &p, free_bucket(8), good.super->members[0].m.bucket_sectors - 8, 0, live);
}
/* Both parities of a single block are that block: the first is where the block itself is, the second isn't one. */
static void stripe_second_parity(struct filesystem *f)
{
	unsigned live;
	uint64_t size = good.super->members[0].m.bucket_sectors;
	struct extent_ptr block = put_stripe_ptr(f, 2, &live), other = free_bucket(0);
	uint8_t value[40] = { 0 };

	block.sector -= block.sector % size;
	le16_store(value, (uint16_t)size);
	value[3] = 3;
	value[4] = 2;
	value[5] = 15;
	extent_ptr_store(value + 8, &block);
	extent_ptr_store(value + 16, &block);
	extent_ptr_store(value + 24, &other);
	le16_store(value + 32, (uint16_t)live);
	put(f, BTREE_STRIPES, BPOS(0, 5, 0), 0, KEY_STRIPE, value, sizeof(value));
	f->is_data = true;
}
static void stripe_stale(struct filesystem *f)
{
	unsigned live;
	struct extent_ptr p = put_stripe_ptr(f, 1, &live);

	p.gen--;
	put_stripe(f, &p, good.super->members[0].m.bucket_sectors, 0, live);
}
static void stripe_elsewhere(struct filesystem *f)
{
	unsigned live;
	struct extent_ptr p = put_stripe_ptr(f, 1, &live);

	p.sector += 2ull * good.super->members[0].m.bucket_sectors;
	put_stripe(f, &p, good.super->members[0].m.bucket_sectors, 0, 0);
}

/* --- more of nodes --- */

static void no_seq(struct bset_disk *set) { set->journal_seq = le64_of(0); }
static void node_seq_missing(struct filesystem *f) { patch_node(f, BTREE_LRU, no_seq); }
/* Two keys of one length in a row: the second becomes the first. */
static void first_twice(struct bset_disk *set)
{
	uint8_t *k = (uint8_t *)(set + 1), *end = k + 8ul * le16_get(set->u64s);
	uint8_t *next = k + 8ul * *k;

	for (; next < end && *next != *k; next += 8ul * *next)
		k = next;
	assert_true(next < end);
	memcpy(next, k, 8ul * *k);
}
static void node_key_twice(struct filesystem *f) { patch_node(f, BTREE_LRU, first_twice); }
static void other_type(struct bset_disk *set) { ((struct bkey_disk *)(set + 1))->type = KEY_HASH_WHITEOUT; }
static void node_key_type(struct filesystem *f) { patch_node(f, BTREE_LRU, other_type); }
/* A cached pointer that the oldest generation of its bucket says can't be. */
static void extent_older_than_oldest(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_EXTENTS, is_plain_extent);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];

	assert_int_equal(extent_decode(ref(&k), &good.super->kctx, ptrs, NULL, NULL), 1);
	ptrs[0].ptr.gen--;
	ptrs[0].ptr.is_cached = true;
	extent_ptr_store(k.value + bkey_value_bytes(&k.k.k) - 8, &ptrs[0].ptr);
	put_key(f, BTREE_EXTENTS, &k);
}
static void bucket_overflow(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_EXTENTS, is_plain_extent);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	uint8_t value[8];

	assert_int_equal(extent_decode(ref(&k), &good.super->kctx, ptrs, NULL, NULL), 1);
	extent_ptr_store(value, &ptrs[0].ptr);
	put(f, BTREE_EXTENTS, BPOS(k.k.k.p.inode, 1ull << 33, k.k.k.p.snapshot), UINT32_MAX, KEY_EXTENT, value, 8);
}
ALLOC_ROW(alloc_gen_newer, a.gen++)

/* A value longer than any can be: so is what a key of a short header says, in a set that it fills. */
static void value_too_long(struct bset_disk *set)
{
	struct bkey_disk *k = (void *)(set + 1);

	assert_int_equal(k->format & 0x7f, BKEY_FORMAT_PACKED);
	k->u64s = UINT8_MAX;
	set->u64s = le16_of(UINT8_MAX);
}
static void node_value_long(struct filesystem *f) { patch_node(f, BTREE_LRU, value_too_long); }
/* What stands where the last set should be is of an earlier user of the bucket. */
static void other_seq(struct bset_disk *set) { set->seq = le64_of(le64_get(set->seq) ^ 1); }
static void node_set_missing(struct filesystem *f) { patch_node(f, BTREE_LRU, other_seq); }

/* From here on the member's device fails to read these bytes. */
static void make_unreadable(struct filesystem *f, unsigned member, uint64_t offset, size_t bytes)
{
	struct super_member *m = &f->super->members[member];
	struct device_fault fault = { .kind = FAULT_ERROR,
				      .op = DEVICE_READ,
				      .begin_bytes = offset,
				      .end_bytes = offset + bytes,
				      .per_million = 1000000,
				      .err = -EIO,
				      .remaining = UINT64_MAX };
	struct device *dev;

	assert_int_equal(device_wrap_fault(m->dev, 1, &dev), 0);
	assert_int_equal(device_fault_add(dev, &fault), 0);
	m->dev = dev;
}
static void node_unreadable(struct filesystem *f)
{
	unsigned written;

	make_unreadable(f, 0, root_sector(BTREE_XATTRS, &written) << SECTOR_SHIFT, SECTOR_BYTES);
}

static void sb_copy_unreadable(struct filesystem *f)
{
	make_unreadable(f, 0, le64_get(f->super->members[0].sb->layout.sb_offset[1]) << SECTOR_SHIFT, SECTOR_BYTES);
}
static void data_unreadable(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_EXTENTS, is_plain_extent);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];

	assert_int_equal(extent_decode(ref(&k), &good.super->kctx, ptrs, NULL, NULL), 1);
	make_unreadable(f, 0, ptrs[0].ptr.sector << SECTOR_SHIFT, SECTOR_BYTES);
	f->is_data = true;
}
static bool is_stored_as_it_is(struct bkey_ref k)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];

	return is_plain_extent(k) && extent_decode(k, &good.super->kctx, ptrs, NULL, NULL) == 1 &&
	       !compression_is_compressed(ptrs[0].crc.compression) && ptrs[0].crc.compressed_sectors == k.k.size;
}
/* Without its checksum: what the device says is all that is known of it. */
static void data_without_checksum_unreadable(struct filesystem *f)
{
	struct bkey_copy k = find(BTREE_EXTENTS, is_stored_as_it_is);
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];

	assert_int_equal(extent_decode(ref(&k), &good.super->kctx, ptrs, NULL, NULL), 1);
	k.k.k.value_u64s = 1;
	extent_ptr_store(k.value, &ptrs[0].ptr);
	put_key(f, BTREE_EXTENTS, &k);
	make_unreadable(f, 0, ptrs[0].ptr.sector << SECTOR_SHIFT, SECTOR_BYTES);
	f->is_data = true;
}

/* A root that is one in every way, but doesn't begin or end where btrees do. */
static struct btree_root *xattrs_root(struct filesystem *f) { return &f->journal->roots[BTREE_XATTRS]; }
static void root_min_key(struct filesystem *f)
{
	struct btree_root *root = xattrs_root(f);
	struct btree_ptr p;

	assert_int_equal(btree_ptr_decode((struct bkey_ref){ root->key, root->value }, &f->super->kctx, &p, NULL), 0);
	p.min_key.inode = 1;
	btree_ptr_encode(&p, root->value);
}
static void root_max_key(struct filesystem *f) { xattrs_root(f)->key.p.inode--; }

/* --- more of the journal --- */

/* As it says now, after it or the superblock was changed. */
static void journal_read_again(struct filesystem *f, bool read_all)
{
	struct journal_read_opts opts = { .read_all = read_all };

	journal_state_free(f->journal);
	assert_int_equal(journal_read(f->super, &opts, &f->journal), 0);
}
static uint64_t entry_offset(struct filesystem *f, const struct journal_entry *e)
{
	const struct journal_location *at = &e->locations[0];

	return (at->bucket * f->super->members[at->dev].m.bucket_sectors + at->offset_sectors) << SECTOR_SHIFT;
}
/* Seal an entry again that says something else. */
static void entry_set_last_seq(struct filesystem *f, const struct journal_entry *e, uint64_t last_seq)
{
	size_t bytes = e->locations[0].bytes;
	struct jset_disk *j = malloc(bytes);

	assert_non_null(j);
	assert_int_equal(pread(f->fd, j, bytes, (off_t)entry_offset(f, e)), bytes);
	j->last_seq = le64_of(last_seq);
	jset_seal(j, jset_csum_type(j), NULL);
	patch(f, entry_offset(f, e), j, sizeof(*j));
	free(j);
}
static void journal_last_seq(struct filesystem *f)
{
	const struct journal_entry *before = NULL, *e;

	journal_read_again(f, true);
	for (e = f->journal->entries; e < f->journal->entries + f->journal->entry_nr; e++) {
		if (!e->is_csum_good || e->is_blacklisted || e->locations[0].is_noflush)
			continue;
		if (before && before->locations[0].last_seq > 1)
			break;
		before = e;
	}
	assert_true(e < f->journal->entries + f->journal->entry_nr);
	entry_set_last_seq(f, e, before->locations[0].last_seq - 1);
	journal_read_again(f, false);
}
/* The marks without which a journal may not be replayed; they are taken away in a clean shutdown. */
static void mark_replayable(struct filesystem *f)
{
	struct sb_disk *sb = f->super->sb;

	sb->features[0] = le64_of(le64_get(sb->features[0]) | 1ull << SB_FEATURE_EXTENTS_ABOVE_BTREE_UPDATES |
				  1ull << SB_FEATURE_BTREE_UPDATES_JOURNALLED);
}
/* Unclean, and of what would be replayed the entry before the last is damaged. */
static void journal_hole(struct filesystem *f)
{
	struct sb_disk *sb = f->super->sb;

	journal_read_again(f, true);
	assert_true(f->journal->entry_nr >= 3);
	const struct journal_entry *last = &f->journal->entries[f->journal->entry_nr - 1];
	assert_true(!last->locations[0].is_noflush && last[-2].seq == last->seq - 2);
	entry_set_last_seq(f, last, last->seq - 2);
	patch_byte(f, entry_offset(f, last - 1)); /* its checksum */
	sb->flags[0] = le64_of(le64_get(sb->flags[0]) & ~2ull);
	mark_replayable(f);
	journal_read_again(f, false);
}
/* Clean, and yet the last entry says that the one before it must be replayed. */
static void clean_not_empty(struct filesystem *f)
{
	journal_read_again(f, true);
	const struct journal_entry *last = &f->journal->entries[f->journal->entry_nr - 1];
	assert_false(last->locations[0].is_noflush);
	entry_set_last_seq(f, last, last->seq - 1);
	journal_read_again(f, false);
}
/* Marked as clean by somebody who didn't write down what that means: so it isn't. */
static void clean_missing(struct filesystem *f)
{
	struct sb_section_disk *clean = (void *)sb_section(f->super->sb, SB_CLEAN);

	clean->type = le32_of(SB_SECTION_NR_KNOWN + 1);
	mark_replayable(f);
	journal_read_again(f, false);
	assert_false(f->journal->was_clean);
}

/* Counted before somebody changed an inode behind its back. */
static void quota_usage(struct filesystem *f)
{
	assert_int_equal(quotas_open(good.trees, 1u << QUOTA_USER, NULL, &f->quotas), 0);
	assert_int_equal(quotas_count(f->quotas), 0);
	inode_sectors(f);
}

/* --- the table --- */

enum { ERRORS_MAX = 20, END = -1 };
#define E(name) ERROR_##name
#define O(name) CHECK_##name
/* A stripe in an image without: what it does to the buckets, and to the counters of its extent. */
#define STRIPE                                                                                                      \
	E(fs_usage_replicas_wrong), E(dev_usage_buckets_wrong), E(dev_usage_sectors_wrong),                         \
		E(alloc_key_data_type_wrong), E(alloc_key_dirty_sectors_wrong), E(alloc_key_stripe_wrong),          \
		E(alloc_key_stripe_redundancy_wrong), E(backpointer_to_missing_ptr), E(ptr_to_missing_backpointer), \
		O(feature_not_marked), E(ptr_to_missing_replicas_entry)

static const struct row {
	const char *name;
	void (*break_it)(struct filesystem *f);
	int errors[ERRORS_MAX];
} rows[] = {
#include "rows.inc"
};

/* What a user is told says what, where, and what should have been there. */
static void report_must_be_whole(void *ctx, const struct report *r)
{
	if (getenv("KILN_TEST_ROW"))
		print_message("%s, %s %s: expected %s, found %s\n", r->device ? r->device : "no device", r->structure,
			      r->position, r->expected, r->found);
	if (!r->structure || !*r->structure || !r->position || !*r->position || !r->expected || !*r->expected ||
	    !r->found || !*r->found)
		fail_msg("%s: a report without some part", row_name);
}

/* Were exactly the errors found that the row says? */
static bool check_row(const struct row *row)
{
	static struct check_result r;
	static const struct report_sink whole = { .emit = report_must_be_whole };
	struct filesystem f;
	unsigned data_pass = 0;

	while (check_pass(data_pass)->id != CHECK_PASS_DATA)
		data_pass++;
	row_name = row->name;
	filesystem_open_super(&f, image_path());
	row->break_it(&f);
	filesystem_open_trees(&f);
	struct check_target target = {
		.super = f.super,
		.journal = f.journal,
		.trees = f.trees,
		.usage = f.has_usage ? &f.usage : NULL,
		.quotas = f.quotas,
	};
	struct check_opts opts = { .memory_bytes = 1 << 20,
				   .reports = &whole,
				   .passes = f.is_data ? (2u << data_pass) - 1 : 0 };
	int err = check_run(&target, &opts, &r);
	patch_back(&f);
	filesystem_close(&f);
	assert_int_equal(err, 0);

	bool is_good = true;
	for (unsigned id = 0; id < CHECK_ERROR_NR; id++) {
		bool is_wanted = false;

		for (unsigned i = 0; i < ERRORS_MAX && row->errors[i] != END; i++)
			is_wanted |= row->errors[i] == (int)id;
		if (is_wanted != (r.counts[id] != 0)) {
			print_error("%s: %s %s (%llu)\n", row->name, is_wanted ? "missed" : "also found",
				    check_error_name(id), (unsigned long long)r.counts[id]);
			is_good = false;
		}
	}
	return is_good;
}

static void each_broken_invariant_is_named(void **state)
{
	const char *only = getenv("KILN_TEST_ROW");
	unsigned bad = 0;

	(void)state;
	for (size_t i = 0; i < ARRAY_NR(rows); i++)
		if (!only || !strcmp(only, rows[i].name))
			bad += !check_row(&rows[i]);
	if (bad)
		fail_msg("%u rows; KILN_TEST_ROW=NAME runs one", bad);
}

/* --- the topology pass alone --- */

static struct check_result topology_check(struct filesystem *f, const struct report_sink *reports)
{
	static struct check_result r;
	struct check_target target = { .super = f->super, .journal = f->journal, .trees = f->trees };
	struct check_opts opts = { .reports = reports };
	unsigned pass = 0;

	while (check_pass(pass)->id != PASS_CHECK_TOPOLOGY)
		pass++;
	opts.passes = 1u << pass;
	assert_int_equal(check_run(&target, &opts, &r), 0);
	return r;
}

/* An image of the builder's whose inodes are in a root with children. */
enum { CHILDREN_MAX = 64 };
struct levels {
	char path[128];
	struct bpos children[CHILDREN_MAX];
	uint64_t sectors[CHILDREN_MAX];
	unsigned nr;
};

static void levels_build(struct levels *l)
{
	struct image_options options = image_options_default;
	struct image_dir root;
	struct image image;
	struct filesystem f;
	struct btree_iter it;
	struct bkey_ref k;
	char name[32];

	snprintf(l->path, sizeof(l->path), "%s/levels", folder);
	options.node_bytes = 16 << 10;
	image_begin(&image, l->path, &options, &root);
	for (unsigned i = 0; i < 1000; i++) {
		snprintf(name, sizeof(name), "f%u", i);
		image_add_file(&image, root, name, 0644, 100);
	}
	image_finish(&image);

	filesystem_open_super(&f, l->path);
	filesystem_open_trees(&f);
	assert_int_equal(btree_root_level(f.trees, BTREE_INODES), 1);
	btree_iter_open_level(&it, f.trees, BTREE_INODES, 1, POS_MIN);
	for (l->nr = 0; btree_iter_peek(&it, &k) == 1; l->nr++, btree_iter_advance(&it)) {
		struct btree_ptr p;

		assert_true(l->nr < CHILDREN_MAX);
		assert_int_equal(btree_ptr_decode(k, &f.super->kctx, &p, NULL), 0);
		l->children[l->nr] = k.k.p;
		l->sectors[l->nr] = p.ptrs[0].sector;
	}
	btree_iter_close(&it);
	filesystem_close(&f);
	assert_true(l->nr >= 3);
}

/* What is said when the root lost its children from @first to before @end. */
static struct check_result levels_check_without(const struct levels *l, unsigned first, unsigned end)
{
	static const struct report_sink whole = { .emit = report_must_be_whole };
	struct bkey_disk gone;
	struct filesystem f;

	filesystem_open_super(&f, l->path);
	for (unsigned i = first; i < end; i++) {
		bkey_store(&gone, &(struct bkey){ .p = l->children[i], .type = KEY_DELETED });
		assert_int_equal(overlay_builder_add(f.overlay, BTREE_INODES, 1, 1ull << 40, i, &gone), 0);
	}
	filesystem_open_trees(&f);
	struct check_result r = topology_check(&f, &whole);
	filesystem_close(&f);
	return r;
}

static void children_must_make_up_their_parent(void **state)
{
	static const struct report_sink whole = { .emit = report_must_be_whole };
	struct filesystem f;
	struct levels l;

	(void)state;
	row_name = "levels";
	levels_build(&l);
	assert_int_equal(levels_check_without(&l, 0, 0).errors, 0);
	assert_int_equal(levels_check_without(&l, 1, 2).counts[ERROR_btree_node_topology_bad_min_key], 1);
	assert_int_equal(levels_check_without(&l, l.nr - 1, l.nr).counts[ERROR_btree_node_topology_bad_max_key], 1);
	struct check_result r = levels_check_without(&l, 0, l.nr);
	assert_int_equal(r.counts[ERROR_btree_node_topology_interior_node_empty], 1);
	assert_int_equal(r.errors, 1);

	/* A child that is there, but damaged: it is told of, and has its place. */
	filesystem_open_super(&f, l.path);
	filesystem_open_trees(&f);
	patch_byte(&f, l.sectors[1] << SECTOR_SHIFT); /* its checksum */
	r = topology_check(&f, &whole);
	patch_back(&f);
	filesystem_close(&f);
	assert_int_equal(r.counts[ERROR_btree_node_read_error], 1);
	assert_int_equal(r.counts[ERROR_bset_bad_csum], 1);
	assert_int_equal(r.errors, 2);
}

static void image_unpack(const char *name, const char *path)
{
	char file[] = __FILE__, command[1024];

	snprintf(command, sizeof(command), "zstd -dqf --sparse --long=31 '%s/../images/%s.img.zst' -o '%s'",
		 dirname(file), name, path);
	assert_int_equal(system(command), 0);
}

/* Whose device it was, and where, of the last report. */
struct told {
	char device[160], position[160];
};
static void tell(void *ctx, const struct report *r)
{
	struct told *told = ctx;

	report_must_be_whole(NULL, r);
	snprintf(told->device, sizeof(told->device), "%s", r->device ? r->device : "");
	snprintf(told->position, sizeof(told->position), "%s", r->position);
}

/* Readers are content with the first good one; the other may be what is left tomorrow. */
static void each_replica_of_a_node_is_read(void **state)
{
	char paths[2][128], sector[32], *members[2] = { paths[0], paths[1] };
	struct told told;
	struct report_sink sink = { .emit = tell, .ctx = &told };

	(void)state;
	row_name = "replicas";
	for (unsigned i = 0; i < 2; i++) {
		char name[64];

		snprintf(name, sizeof(name), "small-zstd-replicas2.dev%u", i);
		snprintf(paths[i], sizeof(paths[i]), "%s/dev%u", folder, i);
		image_unpack(name, paths[i]);
	}
	for (unsigned i = 0; i < 2; i++) {
		struct filesystem f;
		struct btree_ptr p;

		filesystem_open_members(&f, members, 2);
		filesystem_open_trees(&f);
		const struct btree_root *root = &f.journal->roots[BTREE_INODES];
		assert_int_equal(
			btree_ptr_decode((struct bkey_ref){ root->key, root->value }, &f.super->kctx, &p, NULL), 0);
		assert_int_equal(p.ptr_nr, 2);
		make_unreadable(&f, p.ptrs[i].dev, p.ptrs[i].sector << SECTOR_SHIFT, SECTOR_BYTES);
		struct check_result r = topology_check(&f, &sink);
		assert_int_equal(r.counts[CHECK_node_replica_damaged], 1);
		assert_int_equal(r.errors, 1);
		assert_string_equal(told.device, f.super->members[p.ptrs[i].dev].name);
		snprintf(sector, sizeof(sector), "sector %llu", (unsigned long long)p.ptrs[i].sector);
		assert_non_null(strstr(told.position, sector));
		filesystem_close(&f);
	}
}

static int stop_at_once(void *ctx, const struct check_pass *pass, uint64_t done, uint64_t total, const char *position)
{
	return -EINTR;
}

static void it_stops_when_told(void **state)
{
	static struct check_result r;
	struct check_target target = { .super = good.super, .journal = good.journal, .trees = good.trees };
	struct check_opts opts = { .progress = stop_at_once };

	(void)state;
	assert_int_equal(check_run(&target, &opts, &r), -EINTR);
}

static int setup(void **state)
{
	(void)state;
	if (!mkdtemp(folder))
		return -1;
	if (system("command -v zstd >/dev/null")) {
		print_message("SKIPPED: no zstd\n");
		exit(0);
	}
	image_unpack("v1.4-snapshots", image_path());
	filesystem_open_super(&good, image_path());
	filesystem_open_trees(&good);
	return 0;
}

static int teardown(void **state)
{
	char command[64];

	(void)state;
	filesystem_close(&good);
	snprintf(command, sizeof(command), "rm -rf '%s'", folder);
	return system(command);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_broken_invariant_is_named),
		cmocka_unit_test(children_must_make_up_their_parent),
		cmocka_unit_test(each_replica_of_a_node_is_read),
		cmocka_unit_test(it_stops_when_told),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
