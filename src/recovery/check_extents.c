/*
 * Extents against inodes, and what must hold within one (06 §16, 04 §11).
 *
 * The btrees of inodes and extents are walked side by side. Keys at one end offset, one in each of some snapshots, are
 * looked at together: of each version of the inode it is then known which of them it sees.
 *
 * Memory: the keys at one offset, at most one per snapshot.
 */
#include <errno.h>
#include <sys/stat.h>

#include "base/array.h"
#include "recovery/check_internal.h"

/* What is remembered of the keys at one offset. */
struct extent_version {
	uint32_t snapshot, view, size;
	uint8_t type;
	bool may_be_past_end; /* reservations, unwritten space */
};

struct extents {
	struct check *c;
	uint64_t offset; /* end of the keys in the group */
	struct extent_version *group;
	size_t nr, capacity;
};

/* --- one key --- */

static bool type_counts(unsigned type)
{
	return type == KEY_EXTENT || type == KEY_RESERVATION || type == KEY_REFLINK_P || type == KEY_INLINE_DATA ||
	       type == KEY_ERROR;
}

/* The first bit of each is what a reader must know about. */
static void note_features(struct check *c, struct bkey_ref k, const struct extent_ptr_decoded *ptrs, int nr)
{
	static const uint8_t of_compression[COMPRESSION_TYPE_NR] = {
		[COMPRESSION_LZ4_OLD] = 1 + SB_FEATURE_LZ4,
		[COMPRESSION_GZIP] = 1 + SB_FEATURE_GZIP,
		[COMPRESSION_LZ4] = 1 + SB_FEATURE_LZ4,
		[COMPRESSION_ZSTD] = 1 + SB_FEATURE_ZSTD,
	};

	switch (k.k.type) {
	case KEY_REFLINK_P:
	case KEY_REFLINK_V: c->features_used |= 1u << SB_FEATURE_REFLINK; break;
	case KEY_INLINE_DATA: c->features_used |= 1u << SB_FEATURE_INLINE_DATA; break;
	case KEY_INDIRECT_INLINE_DATA: c->features_used |= 1u << SB_FEATURE_REFLINK_INLINE_DATA; break;
	default: break;
	}
	for (int i = 0; i < nr; i++) {
		if (ptrs[i].has_stripe)
			c->features_used |= 1u << SB_FEATURE_EC;
		if (ptrs[i].crc.compression < COMPRESSION_TYPE_NR && of_compression[ptrs[i].crc.compression])
			c->features_used |= 1u << (of_compression[ptrs[i].crc.compression] - 1);
	}
}

void check_features(struct check *c)
{
	for (unsigned bit = 0; bit < SB_FEATURE_NR_1_4; bit++)
		if (c->features_used >> bit & 1 && !sb_has_feature(c->super->sb, bit) &&
		    !(c->features_told >> bit & 1)) {
			bool is_compression = bit <= SB_FEATURE_ZSTD;

			c->features_told |= 1u << bit;
			check_report(
				c, is_compression ? ERROR_compression_type_not_marked_in_sb : CHECK_feature_not_marked,
				NULL, "superblock", "features", "what is in use to be marked", "not %s",
				sb_feature_name(bit));
		}
}

static void check_alignment(struct check *c, unsigned btree_id, struct bkey_ref k,
			    const struct extent_ptr_decoded *ptrs, int nr)
{
	uint64_t all = k.k.p.offset | k.k.size;

	/* What a compressed region holds, and how far into it, may be anything that is made of blocks. */
	for (int i = 0; i < nr; i++)
		all |= ptrs[i].ptr.sector | ptrs[i].crc.compressed_sectors | ptrs[i].crc.offset_sectors;
	if (all % c->kctx->block_sectors)
		check_report_pos(c, CHECK_extent_unaligned, btree_id, k.k.p, "a multiple of the block size",
				 "size %u, or a pointer", k.k.size);
	for (int i = 0; i < nr; i++) {
		const struct extent_crc *crc = &ptrs[i].crc;

		if ((crc->csum_type || compression_is_compressed(crc->compression)) &&
		    crc->uncompressed_sectors > c->kctx->encoded_extent_max_sectors &&
		    c->kctx->encoded_extent_max_sectors) {
			check_report_pos(c, CHECK_extent_encoded_too_large, btree_id, k.k.p,
					 "regions up to encoded_extent_max", "%u sectors", crc->uncompressed_sectors);
			break;
		}
	}
}

/* All that can be said of a key by itself. */
void check_extent_key(struct check *c, unsigned btree_id, struct bkey_ref k, bool *is_unwritten)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	bool has_ptrs = k.k.type == KEY_EXTENT || k.k.type == KEY_REFLINK_V;
	int nr = has_ptrs ? extent_decode(k, c->kctx, ptrs, NULL, NULL) : 0;
	const uint8_t *bytes;

	*is_unwritten = nr > 0 && ptrs[0].ptr.is_unwritten;
	if (nr < 0)
		return;
	check_alignment(c, btree_id, k, ptrs, nr);
	note_features(c, k, ptrs, nr);
	if ((k.k.type == KEY_INLINE_DATA || k.k.type == KEY_INDIRECT_INLINE_DATA) &&
	    inline_data_bytes(k, &bytes) > ((uint64_t)k.k.size << SECTOR_SHIFT))
		check_report_pos(c, CHECK_inline_data_too_long, btree_id, k.k.p, "at most the key's sectors",
				 "%zu bytes in %u sectors", inline_data_bytes(k, &bytes), k.k.size);
}

/* --- the keys at one offset --- */

static void see(struct extents *e, struct check_owner *o, struct check_version *v, const struct extent_version *x,
		bool *is_told_past, bool *is_told_overlap)
{
	struct bpos p = BPOS(o->inum, e->offset, x->snapshot);
	uint64_t start = e->offset - x->size, block = e->c->kctx->block_sectors;
	/* A size near 2^64 is nonsense that the rounding mustn't wrap. */
	uint64_t size = min(v->inode.size, (uint64_t)INT64_MAX),
		 end = round_up_u64(size, block << SECTOR_SHIFT) >> SECTOR_SHIFT;

	if (v->end > start && !*is_told_overlap) {
		*is_told_overlap = true;
		check_report_pos(e->c, ERROR_extent_overlapping, BTREE_EXTENTS, p, "a start behind what is before it",
				 "start %llu, in snapshot %u something ends at %llu", (unsigned long long)start,
				 v->snapshot, (unsigned long long)v->end);
	}
	if (e->offset > end && !x->may_be_past_end && !(v->inode.flags & INODE_SIZE_DIRTY) && !*is_told_past) {
		*is_told_past = true;
		check_report_pos(e->c, ERROR_extent_past_end_of_inode, BTREE_EXTENTS, p, "an end within the file",
				 "in snapshot %u the file has %llu sectors", v->snapshot, (unsigned long long)end);
	}
	v->end = max(v->end, e->offset);
	v->sum += type_counts(x->type) ? x->size : 0;
}

static void group_end(struct extents *e, struct check_owner *o)
{
	bool is_told_past = false, is_told_overlap = false;

	for (size_t i = 0; e->nr && i < o->nr; i++) {
		struct check_version *v = &o->v[i];
		const struct extent_version *seen = NULL;

		for (size_t j = 0; !v->is_hole && v->view && !seen && j < e->nr; j++)
			if (e->group[j].snapshot >= v->view && check_is_ancestor(e->c, v->view, e->group[j].snapshot))
				seen = &e->group[j];
		if (seen && seen->size)
			see(e, o, v, seen, &is_told_past, &is_told_overlap);
	}
	e->nr = 0;
}

/* --- walking --- */

static int extents_begin(void *ctx, struct check_owner *o)
{
	struct extents *e = ctx;

	e->nr = 0;
	for (size_t i = 0; i < o->nr; i++)
		o->v[i].sum = o->v[i].end = 0;
	return 0;
}

/* Does anything see a key at the offset of the group? In its chain another may be nearer. */
static bool is_seen(const struct extents *e, const struct extent_version *x)
{
	for (size_t i = 0; x->view != x->snapshot && i < e->nr; i++)
		if (e->group[i].view == x->view)
			return false;
	return x->view;
}

static int extents_key(void *ctx, struct check_owner *o, struct bkey_ref k)
{
	struct extents *e = ctx;
	struct extent_version x = { .snapshot = k.k.p.snapshot,
				    .view = check_snapshot_view(e->c, k.k.p.snapshot),
				    .size = k.k.size,
				    .type = k.k.type };
	struct check_version *v;

	if (e->nr && e->offset != k.k.p.offset)
		group_end(e, o);
	e->offset = k.k.p.offset;
	if (!key_type_is_whiteout(k.k.type) && k.k.type != KEY_COOKIE && is_seen(e, &x)) {
		check_extent_key(e->c, BTREE_EXTENTS, k, &x.may_be_past_end);
		x.may_be_past_end |= k.k.type == KEY_RESERVATION;
		v = check_owner_at(e->c, o, x.snapshot);
		if (!v)
			return check_report_pos(e->c, ERROR_extent_in_missing_inode, BTREE_EXTENTS, k.k.p,
						"an inode of its number", "none");
		if (!S_ISREG(v->inode.mode) && !S_ISLNK(v->inode.mode))
			return check_report_pos(e->c, ERROR_extent_in_non_reg_inode, BTREE_EXTENTS, k.k.p,
						"a file or symbolic link", "mode %o", v->inode.mode);
		if (v->view != x.view)
			check_report_pos(e->c, CHECK_extent_without_inode_version, BTREE_EXTENTS, k.k.p,
					 "an inode key in its snapshot", "the nearest in snapshot %u", v->snapshot);
	}
	if (array_grow(&e->group, &e->capacity, e->nr + 1, sizeof(*e->group)))
		return -ENOMEM;
	e->group[e->nr++] = x;
	return 0;
}

static int extents_end(void *ctx, struct check_owner *o)
{
	struct extents *e = ctx;

	group_end(e, o);
	for (size_t i = 0; i < o->nr; i++) {
		const struct check_version *v = &o->v[i];

		if (!v->is_hole && v->view && !(v->inode.flags & INODE_SECTORS_DIRTY) && v->sum != v->inode.sectors &&
		    check_is_whole(e->c, CHECK_BTREE(BTREE_EXTENTS)))
			check_report_pos(e->c, ERROR_inode_i_sectors_wrong, BTREE_INODES, BPOS(0, o->inum, v->snapshot),
					 "the sectors of its extents", "%llu instead of %llu",
					 (unsigned long long)v->inode.sectors, (unsigned long long)v->sum);
	}
	return 0;
}

int check_extents(struct check *c)
{
	static const struct check_by_inode ops = { .begin = extents_begin, .key = extents_key, .end = extents_end };
	struct extents e = { .c = c };

	c->total = c->keys[BTREE_INODES] + c->keys[BTREE_EXTENTS];
	if (!check_is_whole(c, CHECK_BTREE(BTREE_INODES)))
		return 0;
	int err = check_each_inode(c, BTREE_EXTENTS, &ops, &e);
	free(e.group);
	if (!err)
		check_features(c);
	return err;
}
