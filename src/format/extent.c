/*
 * Extents: the rules that their pointers and descriptors must follow (06 §2.4; 12 §8), and their text.
 */
#include "format/extent.h"

#include <inttypes.h>

#include "format/error_ids.h"
#include "format/value.h"

int extent_ptr_validate(const struct extent_ptr *p, uint64_t sectors, const struct key_context *ctx,
			struct dev_set *seen, struct fault *fault)
{
	const struct member_geometry *m = key_context_member(ctx, p->dev);

	if (!m) {
		if (ctx->is_newer)
			return 0;
		return fault_set(fault, ERROR_ptr_to_invalid_device, "device of pointer", "a member", "%u", p->dev);
	}

	uint64_t *bits = &seen->bits[p->dev / 64], bit = 1ull << p->dev % 64;
	if (*bits & bit)
		return fault_set(fault, ERROR_ptr_to_duplicate_device, "device of pointer", "one pointer per device",
				 "second pointer to device %u", p->dev);
	*bits |= bit;

	uint64_t bucket = p->sector / m->bucket_sectors, offset = p->sector % m->bucket_sectors;
	if (bucket >= m->bucket_nr)
		return fault_set(fault, ERROR_ptr_after_last_bucket, "bucket of pointer", "less than the device's",
				 "%" PRIu64 " of %" PRIu64, bucket, m->bucket_nr);
	if (bucket < m->first_bucket)
		return fault_set(fault, ERROR_ptr_before_first_bucket, "bucket of pointer", "at least the first one",
				 "%" PRIu64 ", first %u", bucket, m->first_bucket);
	if (offset + sectors > m->bucket_sectors)
		return fault_set(fault, ERROR_ptr_spans_multiple_buckets, "pointer", "an end inside of its bucket",
				 "sectors %" PRIu64 " to %" PRIu64 " of %u", offset, offset + sectors,
				 m->bucket_sectors);
	return 0;
}

/* State of a check from front to back. */
struct extent_check {
	struct bkey_ref k;
	const struct key_context *ctx;
	struct fault *fault;
	struct dev_set seen;
	struct extent_crc crc;
	bool crc_waits, stripe_waits; /* for the pointer they apply to */
	bool has_encrypted;
	uint32_t encrypted_start; /* offset + nonce of the first encrypted descriptor */
	unsigned entry_nr, ptr_nr, unwritten_nr;
};

static int check_ptr(struct extent_check *c, const uint8_t *bytes)
{
	struct extent_ptr p = extent_ptr_load(bytes);
	int err = extent_ptr_validate(&p, c->crc.compressed_sectors, c->ctx, &c->seen, c->fault);

	if (err)
		return err;
	if (c->stripe_waits && p.is_cached)
		return fault_set(c->fault, ERROR_ptr_cached_and_erasure_coded, "pointer", "cached or erasure coded",
				 "both");
	if (p.is_unwritten && c->k.k.type != KEY_EXTENT)
		return fault_set(c->fault, ERROR_extent_ptrs_unwritten, "pointer", "written", "unwritten");
	if (++c->ptr_nr > EXTENT_PTRS_MAX)
		return fault_set(c->fault, ERROR_extent_ptrs_too_many_ptrs, "pointers", "at most 16", "more");
	c->unwritten_nr += p.is_unwritten;
	c->crc_waits = c->stripe_waits = false;
	return 0;
}

static int check_crc(struct extent_check *c, unsigned type, const uint8_t *bytes)
{
	struct extent_crc crc = extent_crc_load(type, bytes);

	if ((uint64_t)crc.offset_sectors + c->k.k.size > crc.uncompressed_sectors)
		return fault_set(c->fault, ERROR_ptr_crc_uncompressed_size_too_small, "uncompressed size of descriptor",
				 "at least offset and key size", "%u, offset %u, key size %u", crc.uncompressed_sectors,
				 crc.offset_sectors, c->k.k.size);
	if (crc.csum_type >= CHECKSUM_TYPE_NR || (checksum_is_mac(crc.csum_type) && !c->ctx->has_key))
		return fault_set(c->fault, ERROR_ptr_crc_csum_type_unknown, "checksum type of descriptor",
				 c->ctx->has_key ? "0 to 7" : "0 to 7, not 3 or 4 without encryption", "%u",
				 crc.csum_type);
	if (crc.compression >= COMPRESSION_TYPE_NR)
		return fault_set(c->fault, ERROR_ptr_crc_compression_type_unknown, "compression type of descriptor",
				 "0 to 5", "%u", crc.compression);
	if (c->crc_waits)
		return fault_set(c->fault, ERROR_ptr_crc_redundant, "descriptor", "followed by a pointer",
				 "followed by a descriptor");
	if (checksum_is_mac(crc.csum_type)) {
		/* The key stream runs over the unencoded extent: every copy must agree where in it the key starts. */
		uint32_t start = crc.offset_sectors + crc.nonce_sectors;

		if (c->has_encrypted && start != c->encrypted_start)
			return fault_set(c->fault, ERROR_ptr_crc_nonce_mismatch, "offset + nonce of descriptor",
					 "equal in all encrypted ones", "%u and %u", c->encrypted_start, start);
		c->has_encrypted = true;
		c->encrypted_start = start;
	}
	c->crc = crc;
	c->crc_waits = true;
	return 0;
}

static int check_entry(struct extent_check *c, const struct extent_entry *entry)
{
	c->entry_nr++;
	if (entry->type > EXTENT_ENTRY_REBALANCE && !c->ctx->is_newer)
		return fault_set(c->fault, ERROR_extent_ptrs_invalid_entry, "extent entry type", "0 to 5", "%u",
				 entry->type);

	switch (entry->type) {
	case EXTENT_ENTRY_PTR: return check_ptr(c, entry->bytes);
	case EXTENT_ENTRY_CRC32:
	case EXTENT_ENTRY_CRC64:
	case EXTENT_ENTRY_CRC128: return check_crc(c, entry->type, entry->bytes);
	case EXTENT_ENTRY_STRIPE_PTR:
		if (c->stripe_waits)
			return fault_set(c->fault, ERROR_ptr_stripe_redundant, "stripe pointer",
					 "followed by a pointer", "followed by a stripe pointer");
		c->stripe_waits = true;
		return 0;
	case EXTENT_ENTRY_REBALANCE: {
		struct extent_rebalance r = extent_rebalance_load(entry->bytes);

		if (!c->ctx->is_newer && !compression_option_is_valid(r.compression))
			return fault_set(c->fault, 0, "compression of rebalance entry", "a valid option", "0x%02x",
					 r.compression);
		return 0;
	}
	case EXTENT_ENTRY_FLAGS:
		if (c->entry_nr != 1)
			return fault_set(c->fault, ERROR_extent_flags_not_at_start, "flags entry", "first", "entry %u",
					 c->entry_nr);
		return 0;
	}
	return 0;
}

/* Rules that hold when all entries have been seen. */
static int check_end(const struct extent_check *c)
{
	if (!c->ptr_nr)
		return fault_set(c->fault, ERROR_extent_ptrs_no_ptrs, "pointers", "at least 1", "0");
	if (c->unwritten_nr && c->unwritten_nr != c->ptr_nr)
		return fault_set(c->fault, ERROR_extent_ptrs_written_and_unwritten, "unwritten pointers", "all or none",
				 "%u of %u", c->unwritten_nr, c->ptr_nr);
	if (c->crc_waits)
		return fault_set(c->fault, ERROR_extent_ptrs_redundant_crc, "descriptor", "followed by a pointer",
				 "the end");
	if (c->stripe_waits)
		return fault_set(c->fault, ERROR_extent_ptrs_redundant_stripe, "stripe pointer",
				 "followed by a pointer", "the end");
	return 0;
}

/*
 * An entry of unknown size ends what can be checked. Above 1.4 the key is kept all the same: dropped it would read as a
 * hole, kept it fails in extent_decode() and reads as an error.
 */
static bool ends_in_unknown_entry(const struct extent_walk *w)
{
	uint64_t word = w->end - w->pos >= 8 ? le64_load(w->pos) : 0;

	return word && __builtin_ctzll(word) >= EXTENT_ENTRY_NR_KNOWN;
}

int extent_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	struct extent_check c = { .k = k, .ctx = ctx, .fault = fault, .crc = extent_crc_of_key(&k.k) };
	struct extent_walk w = { .entry_u64s = ctx->entry_type_u64s };
	struct extent_entry entry;
	int more;

	if (!extent_entries_of(k, &w.pos, &w.end))
		return 0;
	while ((more = extent_walk_next(&w, &entry, fault)) > 0) {
		int err = check_entry(&c, &entry);

		if (err)
			return err;
	}
	if (more)
		return ctx->is_newer && ends_in_unknown_entry(&w) ? 0 : more;
	return check_end(&c);
}

void extent_ptr_location_to_text(struct strbuf *out, const struct extent_ptr *p, const struct key_context *ctx)
{
	const struct member_geometry *m = key_context_member(ctx, p->dev);

	if (m)
		strbuf_printf(out, "%u:%" PRIu64 ":%u", p->dev, p->sector / m->bucket_sectors,
			      (unsigned)(p->sector % m->bucket_sectors));
	else
		strbuf_printf(out, "%u:?:%" PRIu64, p->dev, p->sector);
}

static unsigned durability_of(struct bkey_ref k, const struct key_context *ctx)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	int nr = extent_decode(k, ctx, ptrs, NULL, NULL);
	unsigned sum = 0;

	for (int i = 0; i < nr; i++) {
		const struct member_geometry *m = key_context_member(ctx, ptrs[i].ptr.dev);

		if (ptrs[i].ptr.is_cached)
			continue;
		if (ptrs[i].has_stripe)
			sum += ptrs[i].stripe.redundancy + 1u;
		else if (m)
			sum += m->durability_stored ? m->durability_stored - 1u : 1;
	}
	return sum;
}

static void entry_to_text(struct strbuf *out, const struct extent_entry *entry, const struct key_context *ctx)
{
	switch (entry->type) {
	case EXTENT_ENTRY_PTR: {
		struct extent_ptr p = extent_ptr_load(entry->bytes);

		strbuf_add(out, " ptr: ");
		extent_ptr_location_to_text(out, &p, ctx);
		strbuf_printf(out, " gen %u%s%s", p.gen, p.is_cached ? " cached" : "",
			      p.is_unwritten ? " unwritten" : "");
		return;
	}
	case EXTENT_ENTRY_CRC32:
	case EXTENT_ENTRY_CRC64:
	case EXTENT_ENTRY_CRC128: {
		struct extent_crc c = extent_crc_load(entry->type, entry->bytes);

		strbuf_printf(out, " crc: c_size %u size %u offset %u nonce %u csum ", c.compressed_sectors,
			      c.uncompressed_sectors, c.offset_sectors, c.nonce_sectors);
		if (c.csum_type < CHECKSUM_TYPE_NR)
			strbuf_add(out, checksum_name(c.csum_type));
		else
			strbuf_printf(out, "%u", c.csum_type);
		strbuf_printf(out, " compress %s", compression_name(c.compression));
		return;
	}
	case EXTENT_ENTRY_STRIPE_PTR: {
		struct extent_stripe_ptr s = extent_stripe_ptr_load(entry->bytes);

		strbuf_printf(out, " ec: idx %" PRIu64 " block %u", s.idx, s.block);
		return;
	}
	case EXTENT_ENTRY_REBALANCE: {
		struct extent_rebalance r = extent_rebalance_load(entry->bytes);

		strbuf_printf(out, " rebalance: target %u compression 0x%02x", r.target, r.compression);
		return;
	}
	case EXTENT_ENTRY_FLAGS:
		strbuf_printf(out, " flags:%s", bits_get(le64_load(entry->bytes), 7, 8) ? " poisoned" : "");
		return;
	case EXTENT_ENTRY_RECONCILE: strbuf_printf(out, " reconcile: %016" PRIx64, le64_load(entry->bytes)); return;
	case EXTENT_ENTRY_RECONCILE_BP:
		strbuf_printf(out, " reconcile_bp: idx %" PRIu64, bits_get(le64_load(entry->bytes), 9, 64));
		return;
	}
	strbuf_printf(out, " entry type %u", entry->type);
}

void extent_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct extent_walk w = { .entry_u64s = ctx->entry_type_u64s };
	struct extent_entry entry;
	int more;

	if (!extent_entries_of(k, &w.pos, &w.end))
		return;
	strbuf_printf(out, "durability: %u", durability_of(k, ctx));
	while ((more = extent_walk_next(&w, &entry, NULL)) > 0)
		entry_to_text(out, &entry, ctx);
	if (more)
		strbuf_add(out, " (invalid entry)");
}
