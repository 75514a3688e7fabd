/*
 * Extent values: their entries one by one, and which descriptor applies to which pointer (06 §2.1, §2.2; 12 §8.1).
 *
 * A value is a list of entries of one to three words. An entry's type is the index of the lowest set bit of its first
 * word, so each type has the bits above that for itself. Sizes of types up to 8 are fixed; those of later ones are
 * listed in superblock section 16.
 *
 * A checksum/compression descriptor applies to all pointers behind it until the next one; a stripe pointer to the one
 * pointer behind it; pointers before any descriptor have none. So a walk from front to back that remembers the last
 * descriptor sees everything.
 *
 * extent_decode() is on the path of every read. It checks only what memory safety needs: keys in a node have passed
 * extent_validate().
 */
#include "format/extent.h"

#include "format/error_ids.h"

/* Words of the types that are known here. */
static const uint8_t entry_u64s_known[EXTENT_ENTRY_NR_KNOWN] = {
	[EXTENT_ENTRY_PTR] = 1,	   [EXTENT_ENTRY_CRC32] = 1,	  [EXTENT_ENTRY_CRC64] = 2,
	[EXTENT_ENTRY_CRC128] = 3, [EXTENT_ENTRY_STRIPE_PTR] = 1, [EXTENT_ENTRY_REBALANCE] = 1,
	[EXTENT_ENTRY_FLAGS] = 1,  [EXTENT_ENTRY_RECONCILE] = 1,  [EXTENT_ENTRY_RECONCILE_BP] = 1,
};

enum { ENTRY_TYPES_LISTED = sizeof(((struct key_context *)NULL)->entry_type_u64s) };

int extent_walk_next(struct extent_walk *w, struct extent_entry *entry, struct fault *fault)
{
	size_t left = (size_t)(w->end - w->pos);

	if (left < 8) {
		if (!left)
			return 0;
		return fault_set(fault, ERROR_extent_ptrs_invalid_entry, "extent entries", "whole words", "%zu bytes",
				 left);
	}

	uint64_t word = le64_load(w->pos);
	if (!word)
		return fault_set(fault, ERROR_extent_ptrs_invalid_entry, "extent entry", "a type bit", "a word of 0");

	unsigned type = (unsigned)__builtin_ctzll(word);
	unsigned u64s = 0;
	if (type < EXTENT_ENTRY_NR_KNOWN)
		u64s = entry_u64s_known[type];
	else if (w->entry_u64s && type < ENTRY_TYPES_LISTED)
		u64s = w->entry_u64s[type];
	if (!u64s)
		return fault_set(fault, ERROR_extent_ptrs_invalid_entry, "extent entry type", "one with a known size",
				 "%u", type);
	if (u64s > left / 8)
		return fault_set(fault, ERROR_extent_ptrs_invalid_entry, "extent entry", "an end inside of the value",
				 "type %u with %u words, %zu left", type, u64s, left / 8);

	*entry = (struct extent_entry){ .type = type, .u64s = u64s, .bytes = w->pos };
	w->pos += u64s * 8;
	return 1;
}

bool extent_entries_of(struct bkey_ref k, const uint8_t **begin, const uint8_t **end)
{
	size_t bytes = bkey_value_bytes(&k.k), header = 0;

	switch (k.k.type) {
	case KEY_EXTENT:
	case KEY_BTREE_PTR: break;
	case KEY_REFLINK_V: header = 8; break;
	case KEY_BTREE_PTR_V2: header = BTREE_PTR_V2_HEADER_BYTES; break;
	default: return false;
	}

	static const uint8_t nothing[1];
	const uint8_t *value = k.value && bytes ? k.value : nothing;
	*begin = value + min(header, bytes);
	*end = value + bytes;
	return true;
}

struct extent_ptr extent_ptr_load(const uint8_t *bytes)
{
	uint64_t w = le64_load(bytes);

	return (struct extent_ptr){
		.sector = bits_get(w, 4, 48),
		.dev = (uint8_t)bits_get(w, 48, 56),
		.gen = (uint8_t)bits_get(w, 56, 64),
		.is_cached = bits_get(w, 1, 2),
		.is_unwritten = bits_get(w, 3, 4),
	};
}

void extent_ptr_store(uint8_t *bytes, const struct extent_ptr *p)
{
	uint64_t w = 1ull << EXTENT_ENTRY_PTR;

	w = bits_set(w, 1, 2, p->is_cached);
	w = bits_set(w, 3, 4, p->is_unwritten);
	w = bits_set(w, 4, 48, p->sector);
	w = bits_set(w, 48, 56, p->dev);
	w = bits_set(w, 56, 64, p->gen);
	le64_store(bytes, w);
}

struct extent_crc extent_crc_load(unsigned type, const uint8_t *bytes)
{
	uint64_t w = le64_load(bytes);

	switch (type) {
	case EXTENT_ENTRY_CRC32:
		return (struct extent_crc){
			.compressed_sectors = (uint32_t)bits_get(w, 2, 9) + 1,
			.uncompressed_sectors = (uint32_t)bits_get(w, 9, 16) + 1,
			.offset_sectors = (uint32_t)bits_get(w, 16, 23),
			.csum_type = (uint8_t)bits_get(w, 24, 28),
			.compression = (uint8_t)bits_get(w, 28, 32),
			.csum.lo = bits_get(w, 32, 64),
		};
	case EXTENT_ENTRY_CRC64:
		return (struct extent_crc){
			.compressed_sectors = (uint32_t)bits_get(w, 3, 12) + 1,
			.uncompressed_sectors = (uint32_t)bits_get(w, 12, 21) + 1,
			.offset_sectors = (uint32_t)bits_get(w, 21, 30),
			.nonce_sectors = (uint32_t)bits_get(w, 30, 40),
			.csum_type = (uint8_t)bits_get(w, 40, 44),
			.compression = (uint8_t)bits_get(w, 44, 48),
			.csum = { .lo = le64_load(bytes + 8), .hi = bits_get(w, 48, 64) },
		};
	case EXTENT_ENTRY_CRC128:
		return (struct extent_crc){
			.compressed_sectors = (uint32_t)bits_get(w, 4, 17) + 1,
			.uncompressed_sectors = (uint32_t)bits_get(w, 17, 30) + 1,
			.offset_sectors = (uint32_t)bits_get(w, 30, 43),
			.nonce_sectors = (uint32_t)bits_get(w, 43, 56),
			.csum_type = (uint8_t)bits_get(w, 56, 60),
			.compression = (uint8_t)bits_get(w, 60, 64),
			.csum = checksum_load(bytes + 8),
		};
	}
	return (struct extent_crc){ 0 };
}

static int crc32_store(uint8_t *bytes, const struct extent_crc *crc)
{
	uint64_t w = 1ull << EXTENT_ENTRY_CRC32;

	w = bits_set(w, 2, 9, crc->compressed_sectors - 1);
	w = bits_set(w, 9, 16, crc->uncompressed_sectors - 1);
	w = bits_set(w, 16, 23, crc->offset_sectors);
	w = bits_set(w, 24, 28, crc->csum_type);
	w = bits_set(w, 28, 32, crc->compression);
	w = bits_set(w, 32, 64, crc->csum.lo);
	le64_store(bytes, w);
	return entry_u64s_known[EXTENT_ENTRY_CRC32];
}

static int crc64_store(uint8_t *bytes, const struct extent_crc *crc)
{
	uint64_t w = 1ull << EXTENT_ENTRY_CRC64;

	w = bits_set(w, 3, 12, crc->compressed_sectors - 1);
	w = bits_set(w, 12, 21, crc->uncompressed_sectors - 1);
	w = bits_set(w, 21, 30, crc->offset_sectors);
	w = bits_set(w, 30, 40, crc->nonce_sectors);
	w = bits_set(w, 40, 44, crc->csum_type);
	w = bits_set(w, 44, 48, crc->compression);
	w = bits_set(w, 48, 64, crc->csum.hi);
	le64_store(bytes, w);
	le64_store(bytes + 8, crc->csum.lo);
	return entry_u64s_known[EXTENT_ENTRY_CRC64];
}

static int crc128_store(uint8_t *bytes, const struct extent_crc *crc)
{
	uint64_t w = 1ull << EXTENT_ENTRY_CRC128;

	w = bits_set(w, 4, 17, crc->compressed_sectors - 1);
	w = bits_set(w, 17, 30, crc->uncompressed_sectors - 1);
	w = bits_set(w, 30, 43, crc->offset_sectors);
	w = bits_set(w, 43, 56, crc->nonce_sectors);
	w = bits_set(w, 56, 60, crc->csum_type);
	w = bits_set(w, 60, 64, crc->compression);
	le64_store(bytes, w);
	checksum_store(bytes + 8, crc->csum);
	return entry_u64s_known[EXTENT_ENTRY_CRC128];
}

int extent_crc_store(uint8_t *bytes, const struct extent_crc *crc)
{
	static const struct {
		unsigned csum_bytes, sectors_max, nonce_max;
		int (*store)(uint8_t *bytes, const struct extent_crc *crc);
	} forms[] = {
		{ 4, 128, 0, crc32_store },
		{ 10, 512, 1023, crc64_store },
		{ 16, 8192, 8191, crc128_store },
	};

	if (crc->csum_type >= CHECKSUM_TYPE_NR || crc->compression >= COMPRESSION_TYPE_NR || !crc->compressed_sectors ||
	    !crc->uncompressed_sectors)
		return -KILN_E_INVALID;

	for (size_t i = 0; i < ARRAY_NR(forms); i++)
		if (checksum_bytes(crc->csum_type) <= forms[i].csum_bytes &&
		    crc->compressed_sectors <= forms[i].sectors_max &&
		    crc->uncompressed_sectors <= forms[i].sectors_max && crc->offset_sectors < forms[i].sectors_max &&
		    crc->nonce_sectors <= forms[i].nonce_max)
			return forms[i].store(bytes, crc);
	return -KILN_E_INVALID;
}

struct extent_stripe_ptr extent_stripe_ptr_load(const uint8_t *bytes)
{
	uint64_t w = le64_load(bytes);

	return (struct extent_stripe_ptr){
		.block = (uint8_t)bits_get(w, 5, 13),
		.redundancy = (uint8_t)bits_get(w, 13, 17),
		.idx = bits_get(w, 17, 64),
	};
}

void extent_stripe_ptr_store(uint8_t *bytes, const struct extent_stripe_ptr *p)
{
	uint64_t w = 1ull << EXTENT_ENTRY_STRIPE_PTR;

	w = bits_set(w, 5, 13, p->block);
	w = bits_set(w, 13, 17, p->redundancy);
	w = bits_set(w, 17, 64, p->idx);
	le64_store(bytes, w);
}

struct extent_rebalance extent_rebalance_load(const uint8_t *bytes)
{
	uint64_t w = le64_load(bytes);

	return (struct extent_rebalance){
		.target = (uint16_t)bits_get(w, 48, 64),
		.compression = (uint8_t)bits_get(w, 40, 48),
	};
}

void extent_rebalance_store(uint8_t *bytes, const struct extent_rebalance *r)
{
	uint64_t w = 1ull << EXTENT_ENTRY_REBALANCE;

	w = bits_set(w, 40, 48, r->compression);
	w = bits_set(w, 48, 64, r->target);
	le64_store(bytes, w);
}

int extent_decode(struct bkey_ref k, const struct key_context *ctx, struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX],
		  bool *is_poisoned, struct fault *fault)
{
	struct extent_walk w = { .entry_u64s = ctx->entry_type_u64s };
	struct extent_entry entry = { 0 };
	struct extent_ptr_decoded cur = { .crc = extent_crc_of_key(&k.k) };
	int nr = 0, more;

	if (is_poisoned)
		*is_poisoned = false;
	if (!extent_entries_of(k, &w.pos, &w.end))
		return 0;

	while ((more = extent_walk_next(&w, &entry, fault)) > 0)
		switch (entry.type) {
		case EXTENT_ENTRY_PTR:
			if (nr == EXTENT_PTRS_MAX)
				return fault_set(fault, ERROR_extent_ptrs_too_many_ptrs, "pointers", "at most 16",
						 "more");
			ptrs[nr] = cur;
			ptrs[nr++].ptr = extent_ptr_load(entry.bytes);
			cur.has_stripe = false;
			break;
		case EXTENT_ENTRY_CRC32:
		case EXTENT_ENTRY_CRC64:
		case EXTENT_ENTRY_CRC128:
			cur.crc = extent_crc_load(entry.type, entry.bytes);
			cur.has_crc = true;
			break;
		case EXTENT_ENTRY_STRIPE_PTR:
			cur.stripe = extent_stripe_ptr_load(entry.bytes);
			cur.has_stripe = true;
			break;
		case EXTENT_ENTRY_FLAGS:
			if (is_poisoned)
				*is_poisoned = bits_get(le64_load(entry.bytes), 7, 8);
			break;
		default: break; /* what background work a key needs doesn't change what it means */
		}
	return more ? more : nr;
}

const char *compression_name(unsigned type)
{
	static const char *const names[COMPRESSION_TYPE_NR] = {
		[COMPRESSION_NONE] = "none", [COMPRESSION_LZ4_OLD] = "lz4_old",
		[COMPRESSION_GZIP] = "gzip", [COMPRESSION_LZ4] = "lz4",
		[COMPRESSION_ZSTD] = "zstd", [COMPRESSION_INCOMPRESSIBLE] = "incompressible",
	};

	return type < COMPRESSION_TYPE_NR ? names[type] : "unknown";
}
