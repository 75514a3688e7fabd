/*
 * Editing extent values: trimming, joining, pointers (06 §5).
 *
 * Trimming works on the entries where they stand. Everything else takes the value apart into its pointers, each with
 * what applies to it, changes those, and puts a value together again: consecutive pointers with equal descriptors share
 * one, so a descriptor that nobody uses any more goes by itself.
 */
#include <assert.h>
#include <string.h>

#include "base/util.h"
#include "format/key_edit.h"

/* --- taking apart and putting together --- */

static size_t entries_offset(const struct bkey *k) { return k->type == KEY_REFLINK_V ? 8 : 0; }

int extent_value_load(struct extent_value *v, struct bkey_ref k, const struct key_context *ctx)
{
	struct extent_walk w = { .entry_u64s = ctx->entry_type_u64s };
	struct extent_entry entry;
	int more;

	*v = (struct extent_value){ 0 };
	if (!extent_entries_of(k, &w.pos, &w.end))
		return -KILN_E_INVALID;
	while ((more = extent_walk_next(&w, &entry, NULL)) > 0) {
		if (entry.type > EXTENT_ENTRY_REBALANCE)
			return -KILN_E_UNSUPPORTED;
		if (entry.type == EXTENT_ENTRY_REBALANCE) {
			v->has_rebalance = true;
			v->rebalance = extent_rebalance_load(entry.bytes);
		}
	}
	int nr = more ? more : extent_decode(k, ctx, v->ptrs, NULL, NULL);
	v->ptr_nr = (unsigned)max(nr, 0);
	return min(nr, 0);
}

static bool crc_eq(const struct extent_crc *a, const struct extent_crc *b)
{
	return a->compressed_sectors == b->compressed_sectors && a->uncompressed_sectors == b->uncompressed_sectors &&
	       a->offset_sectors == b->offset_sectors && a->nonce_sectors == b->nonce_sectors &&
	       a->csum_type == b->csum_type && a->compression == b->compression && checksum_eq(a->csum, b->csum);
}

/* Does the descriptor say no more than that the key's own range is stored, plain? */
static bool crc_is_plain(const struct extent_crc *crc, const struct bkey *k)
{
	struct extent_crc plain = extent_crc_of_key(k);

	return crc_eq(crc, &plain);
}

int extent_value_store(const struct extent_value *v, struct key_buf *b)
{
	uint8_t *at = b->value + entries_offset(&b->k);
	const struct extent_crc *crc = NULL;

	for (unsigned i = 0; i < v->ptr_nr; i++) {
		const struct extent_ptr_decoded *p = &v->ptrs[i];
		/* A descriptor applies to all that follow, so only before the first one it can be left out. */
		bool has_crc = p->has_crc && (crc || !crc_is_plain(&p->crc, &b->k));

		assert(has_crc || !crc);
		if (has_crc && (!crc || !crc_eq(crc, &p->crc))) {
			int u64s = extent_crc_store(at, &p->crc);

			if (u64s < 0)
				return u64s;
			at += u64s * 8;
			crc = &p->crc;
		}
		if (p->has_stripe) {
			extent_stripe_ptr_store(at, &p->stripe);
			at += 8;
		}
		extent_ptr_store(at, &p->ptr);
		at += 8;
	}
	if (v->has_rebalance) {
		extent_rebalance_store(at, &v->rebalance);
		at += 8;
	}
	b->k.value_u64s = (uint8_t)((size_t)(at - b->value) / 8);
	return 0;
}

/* --- trimming --- */

static unsigned crc_offset_shift(unsigned entry_type, unsigned *bits)
{
	switch (entry_type) {
	case EXTENT_ENTRY_CRC32: *bits = 7; return 16;
	case EXTENT_ENTRY_CRC64: *bits = 9; return 21;
	case EXTENT_ENTRY_CRC128: *bits = 13; return 30;
	default: *bits = 0; return 0;
	}
}

/* The range starts later in what is stored: the descriptor says where, or where there is none the pointer does. */
void extent_cut_front(struct key_buf *b, uint32_t sectors, const struct key_context *ctx)
{
	uint8_t *base = b->value + entries_offset(&b->k);
	struct extent_walk w = { .pos = base,
				 .end = b->value + bkey_value_bytes(&b->k),
				 .entry_u64s = ctx->entry_type_u64s };
	struct extent_entry entry;
	bool has_crc = false;

	while (extent_walk_next(&w, &entry, NULL) > 0) {
		uint8_t *at = base + (entry.bytes - base);
		unsigned bits, shift = crc_offset_shift(entry.type, &bits);

		if (shift) {
			uint64_t word = le64_load(at);
			uint64_t offset = bits_get(word, shift, shift + bits) + sectors;

			le64_store(at, bits_set(word, shift, shift + bits, offset));
			has_crc = true;
		} else if (entry.type == EXTENT_ENTRY_PTR && !has_crc) {
			struct extent_ptr p = extent_ptr_load(at);

			p.sector += sectors;
			extent_ptr_store(at, &p);
		}
	}
}

/* --- merging --- */

static bool ptrs_are_alike(const struct extent_ptr_decoded *l, const struct extent_ptr_decoded *r,
			   const struct key_context *ctx)
{
	const struct member_geometry *m = key_context_member(ctx, l->ptr.dev);

	if (!m || l->ptr.dev != r->ptr.dev || l->ptr.gen != r->ptr.gen || l->ptr.is_cached != r->ptr.is_cached ||
	    l->ptr.is_unwritten != r->ptr.is_unwritten || l->has_crc != r->has_crc || l->has_stripe != r->has_stripe)
		return false;
	if (l->has_stripe && (l->stripe.idx != r->stripe.idx || l->stripe.block != r->stripe.block ||
			      l->stripe.redundancy != r->stripe.redundancy))
		return false;
	return l->ptr.sector / m->bucket_sectors == r->ptr.sector / m->bucket_sectors;
}

/*
 * Sector offsets of a compressed region are those of what it decompresses to, so two regions can look contiguous by
 * arithmetic that have nothing to do with each other.
 */
static bool is_same_region(const struct extent_ptr_decoded *l, const struct extent_ptr_decoded *r)
{
	struct extent_crc crc = r->crc;

	crc.offset_sectors = l->crc.offset_sectors;
	return l->ptr.sector == r->ptr.sector && crc_eq(&l->crc, &crc);
}

/* Can the two regions be described by one checksum? */
static bool regions_can_be_joined(const struct extent_crc *l, uint32_t l_size, const struct extent_crc *r,
				  const struct key_context *ctx)
{
	static const bool is_linear[CHECKSUM_TYPE_NR] = {
		[CHECKSUM_NONE] = true, [CHECKSUM_CRC32C] = true, [CHECKSUM_CRC64] = true
	};

	return l->csum_type == r->csum_type && l->csum_type < CHECKSUM_TYPE_NR && is_linear[l->csum_type] &&
	       !compression_is_compressed(l->compression) && l->offset_sectors + l_size == l->compressed_sectors &&
	       !r->offset_sectors &&
	       (!l->csum_type || l->uncompressed_sectors + r->uncompressed_sectors <= ctx->encoded_extent_max_sectors);
}

/* Rules A, B, C of 06 §5.3, for one pair of pointers. @l becomes the pointer of the whole. */
static bool ptr_merge(struct extent_ptr_decoded *l, uint32_t l_size, const struct extent_ptr_decoded *r,
		      uint32_t r_size, const struct key_context *ctx)
{
	if (!ptrs_are_alike(l, r, ctx) || l->crc.compression != r->crc.compression ||
	    l->crc.nonce_sectors != r->crc.nonce_sectors ||
	    l->ptr.sector + l->crc.offset_sectors + l_size != r->ptr.sector + r->crc.offset_sectors)
		return false;
	if (compression_is_compressed(l->crc.compression) && !is_same_region(l, r))
		return false;
	if (checksum_is_mac(l->crc.csum_type) || checksum_is_mac(r->crc.csum_type)) {
		/* Where in the key stream the second half starts must follow from the first one's. */
		if (l->crc.csum_type != r->crc.csum_type || l->crc.offset_sectors + l_size != r->crc.offset_sectors)
			return false;
	}

	if ((uint64_t)l->crc.offset_sectors + l_size + r_size <= l->crc.uncompressed_sectors)
		return true;
	if (l_size <= r->crc.offset_sectors) {
		l->ptr = r->ptr;
		l->crc = r->crc;
		l->crc.offset_sectors -= l_size;
		return true;
	}
	if (!regions_can_be_joined(&l->crc, l_size, &r->crc, ctx))
		return false;
	l->crc.csum = checksum_merge(l->crc.csum_type, l->crc.csum, r->crc.csum,
				     (uint64_t)r->crc.compressed_sectors * SECTOR_BYTES);
	l->crc.uncompressed_sectors += r->crc.uncompressed_sectors;
	l->crc.compressed_sectors += r->crc.compressed_sectors;
	return true;
}

bool extent_merge(struct key_buf *left, struct bkey_ref right, const struct key_context *ctx)
{
	struct extent_value l, r;
	struct key_buf joined = { .k = left->k };

	if (extent_value_load(&l, key_buf_ref(left), ctx) || extent_value_load(&r, right, ctx))
		return false;
	if (l.ptr_nr != r.ptr_nr || l.has_rebalance != r.has_rebalance ||
	    (l.has_rebalance &&
	     (l.rebalance.target != r.rebalance.target || l.rebalance.compression != r.rebalance.compression)))
		return false;
	for (unsigned i = 0; i < l.ptr_nr; i++)
		if (!ptr_merge(&l.ptrs[i], left->k.size, &r.ptrs[i], right.k.size, ctx))
			return false;

	joined.k.size += right.k.size;
	if (extent_value_store(&l, &joined))
		return false;
	memcpy(left->value, joined.value, bkey_value_bytes(&joined.k));
	left->k.value_u64s = joined.k.value_u64s;
	return true;
}

/* --- pointers --- */

int key_ptr_add(struct key_buf *b, const struct extent_ptr_decoded *ptr, const struct key_context *ctx)
{
	struct extent_value v;
	int err = extent_value_load(&v, key_buf_ref(b), ctx);
	unsigned at;

	if (err)
		return err;
	if (v.ptr_nr == EXTENT_PTRS_MAX)
		return -KILN_E_INVALID;

	struct extent_ptr_decoded added = *ptr;
	added.has_crc &= !crc_is_plain(&added.crc, &b->k);
	if (!added.has_crc) {
		at = 0;
	} else {
		for (at = 0; at < v.ptr_nr; at++)
			if (v.ptrs[at].has_crc && crc_eq(&v.ptrs[at].crc, &added.crc))
				break;
	}
	memmove(v.ptrs + at + 1, v.ptrs + at, (v.ptr_nr - at) * sizeof(v.ptrs[0]));
	v.ptrs[at] = added;
	v.ptr_nr++;
	return extent_value_store(&v, b);
}

int key_ptrs_drop(struct key_buf *b, uint32_t mask, const struct key_context *ctx)
{
	struct extent_value v;
	int err = extent_value_load(&v, key_buf_ref(b), ctx);
	unsigned kept = 0, dirty_before = 0, dirty_kept = 0;

	if (err)
		return err;
	for (unsigned i = 0; i < v.ptr_nr; i++) {
		dirty_before += !v.ptrs[i].ptr.is_cached;
		if (mask >> i & 1)
			continue;
		dirty_kept += !v.ptrs[i].ptr.is_cached;
		v.ptrs[kept++] = v.ptrs[i];
	}
	if (kept == v.ptr_nr)
		return 0;
	v.ptr_nr = kept;

	if (dirty_before && !dirty_kept) {
		b->k.type = KEY_ERROR;
		b->k.value_u64s = 0;
		return 0;
	}
	if (!kept) {
		b->k = (struct bkey){ .p = b->k.p, .type = KEY_DELETED };
		return 0;
	}
	return extent_value_store(&v, b);
}

int key_ptrs_set_cached(struct key_buf *b, uint32_t mask, const struct key_context *ctx)
{
	struct extent_value v;
	int err = extent_value_load(&v, key_buf_ref(b), ctx);

	if (err)
		return err;
	for (unsigned i = 0; i < v.ptr_nr; i++)
		if (mask >> i & 1) {
			v.ptrs[i].ptr.is_cached = true;
			v.ptrs[i].has_stripe = false;
		}
	return extent_value_store(&v, b);
}

int key_ptrs_normalise(struct key_buf *b, bool (*is_stale)(void *arg, const struct extent_ptr *ptr), void *arg,
		       const struct key_context *ctx)
{
	struct extent_value v;
	int err = extent_value_load(&v, key_buf_ref(b), ctx);
	uint32_t stale = 0;

	if (err)
		return err;
	for (unsigned i = 0; i < v.ptr_nr; i++)
		if (v.ptrs[i].ptr.is_cached && is_stale(arg, &v.ptrs[i].ptr))
			stale |= 1u << i;
	return key_ptrs_drop(b, stale, ctx);
}

int key_rebalance_set(struct key_buf *b, const struct extent_rebalance *r, const struct key_context *ctx)
{
	struct extent_value v;
	int err = extent_value_load(&v, key_buf_ref(b), ctx);

	if (err)
		return err;
	v.has_rebalance = r;
	if (r)
		v.rebalance = *r;
	return extent_value_store(&v, b);
}
