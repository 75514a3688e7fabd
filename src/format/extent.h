/*
 * Extent values: a list of entries (pointers, checksum/compression descriptors, ...), and how descriptors apply to the
 * pointers behind them (06 §2). Used by extent, reflink_v and btree_ptr(_v2) keys.
 */
#ifndef KILN_FORMAT_EXTENT_H
#define KILN_FORMAT_EXTENT_H

#include "format/checksum.h"
#include "format/key_types.h"

enum extent_entry_type {
	EXTENT_ENTRY_PTR,
	EXTENT_ENTRY_CRC32,
	EXTENT_ENTRY_CRC64,
	EXTENT_ENTRY_CRC128,
	EXTENT_ENTRY_STRIPE_PTR,
	EXTENT_ENTRY_REBALANCE,
	EXTENT_ENTRY_FLAGS,
	EXTENT_ENTRY_RECONCILE,
	EXTENT_ENTRY_RECONCILE_BP,
	EXTENT_ENTRY_NR_KNOWN,
};

enum { EXTENT_PTRS_MAX = 16, DEV_NONE = 255 };

enum compression_type {
	COMPRESSION_NONE,
	COMPRESSION_LZ4_OLD,
	COMPRESSION_GZIP,
	COMPRESSION_LZ4,
	COMPRESSION_ZSTD,
	COMPRESSION_INCOMPRESSIBLE,
	COMPRESSION_TYPE_NR,
};

struct extent_ptr {
	uint64_t sector; /* on the device */
	uint8_t dev;
	uint8_t gen;
	bool is_cached;
	bool is_unwritten;
};

/* The same place in the same life of a bucket? */
static inline bool extent_ptr_is_same(const struct extent_ptr *a, const struct extent_ptr *b)
{
	return a->dev == b->dev && a->sector == b->sector && a->gen == b->gen;
}

/* A descriptor: applies to the pointers behind it. All zero sizes equal to the key's: "no descriptor". */
struct extent_crc {
	uint32_t compressed_sectors; /* stored on disk */
	uint32_t uncompressed_sectors;
	uint32_t offset_sectors; /* live data starts here in the uncompressed region */
	uint32_t nonce_sectors;
	uint8_t csum_type;
	uint8_t compression;
	struct checksum csum;
};

struct extent_stripe_ptr {
	uint64_t idx;
	uint8_t block;
	uint8_t redundancy;
};

struct extent_rebalance {
	uint16_t target;
	uint8_t compression; /* option encoding */
};

/* What applies to pointers before any descriptor: the region is the key's own, plain. */
static inline struct extent_crc extent_crc_of_key(const struct bkey *k)
{
	return (struct extent_crc){ .compressed_sectors = k->size, .uncompressed_sectors = k->size };
}

/* A pointer with what applies to it. */
struct extent_ptr_decoded {
	struct extent_ptr ptr;
	struct extent_crc crc;
	bool has_crc; /* false: crc describes the plain key */
	bool has_stripe;
	struct extent_stripe_ptr stripe;
};

/* One raw entry: type, words, and where it stands. */
struct extent_entry {
	unsigned type;
	unsigned u64s;
	const uint8_t *bytes;
};

/*
 * Walk over the entries of a value region. Returns 1 with the next entry, 0 at the end, or -KILN_E_INVALID at a zero
 * word, an unknown type whose size section 16 doesn't tell, or an entry that runs past the end.
 */
struct extent_walk {
	const uint8_t *pos, *end;
	const uint8_t *entry_u64s; /* key_context.entry_type_u64s */
};
int extent_walk_next(struct extent_walk *w, struct extent_entry *entry, struct fault *fault);

/* Where the entry list of @k starts and ends in its value; false when the type has none. */
bool extent_entries_of(struct bkey_ref k, const uint8_t **begin, const uint8_t **end);

struct extent_ptr extent_ptr_load(const uint8_t *bytes);
void extent_ptr_store(uint8_t *bytes, const struct extent_ptr *p);
/* crc32, crc64 or crc128 at @bytes, as @type says. */
struct extent_crc extent_crc_load(unsigned type, const uint8_t *bytes);
/* Smallest entry type that holds @crc (06 §2.3); -KILN_E_INVALID if none does. Writes it, returns its words. */
int extent_crc_store(uint8_t *bytes, const struct extent_crc *crc);
struct extent_stripe_ptr extent_stripe_ptr_load(const uint8_t *bytes);
void extent_stripe_ptr_store(uint8_t *bytes, const struct extent_stripe_ptr *p);
struct extent_rebalance extent_rebalance_load(const uint8_t *bytes);
void extent_rebalance_store(uint8_t *bytes, const struct extent_rebalance *r);

/*
 * All pointers of @k with what applies to them, in value order (06 §2.2), at most EXTENT_PTRS_MAX.
 * @is_poisoned (may be NULL): a flags entry says that the data was found corrupt.
 * Returns their number or -KILN_E_INVALID.
 */
int extent_decode(struct bkey_ref k, const struct key_context *ctx, struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX],
		  bool *is_poisoned, struct fault *fault);

static inline bool compression_is_compressed(unsigned type)
{
	return type >= COMPRESSION_LZ4_OLD && type <= COMPRESSION_ZSTD;
}
const char *compression_name(unsigned type);
/* Compression as an option (06 §7.1): low nibble algorithm 0..3, high nibble level, no level without algorithm. */
static inline bool compression_option_is_valid(unsigned option)
{
	unsigned algorithm = option & 15, level = option >> 4;

	return level < 16 && (algorithm ? algorithm < 4 : !level);
}
/* What data is compressed to as a (valid) option asks for it. */
static inline uint8_t compression_option_type(unsigned option)
{
	static const uint8_t types[] = { COMPRESSION_NONE, COMPRESSION_LZ4, COMPRESSION_GZIP, COMPRESSION_ZSTD };

	return types[option & 3];
}

/* The option, with the level that is usual, that asks for what data of @type is compressed to. */
static inline unsigned compression_type_option(unsigned type)
{
	return type == COMPRESSION_ZSTD	  ? 3
	       : type == COMPRESSION_GZIP ? 2
					  : type == COMPRESSION_LZ4 || type == COMPRESSION_LZ4_OLD;
}

/*
 * Isn't what the pointer leads to as it is wanted in the end (06 §12.1): compressed to @compression, which may be
 * COMPRESSION_NONE for no matter how, on one of @devs, a bit each? Cached copies and promised space need nothing.
 */
static inline bool extent_ptr_needs_rebalance(const struct extent_ptr_decoded *p, unsigned compression, uint64_t devs)
{
	bool is_other =
		compression && p->crc.compression != compression && p->crc.compression != COMPRESSION_INCOMPRESSIBLE;
	bool is_elsewhere = p->ptr.dev < 64 && !(devs >> p->ptr.dev & 1);

	return !p->ptr.is_cached && !p->ptr.is_unwritten && (is_other || is_elsewhere);
}

/* Bucket generations compare with wrap (06 §4.2): > 0 when a is newer. */
static inline int gen_cmp(uint8_t a, uint8_t b) { return (int8_t)(a - b); }

/*
 * btree_ptr_v2: pointer to a btree node. (btree_ptr, type 5, isn't read: images at 1.0 and above hold none.)
 */
struct btree_ptr {
	uint64_t seq;
	uint16_t sectors_written;
	bool is_range_updated;
	struct bpos min_key;
	unsigned ptr_nr;
	struct extent_ptr ptrs[EXTENT_PTRS_MAX];
};
enum { BTREE_PTR_V2_HEADER_BYTES = 40 };
int btree_ptr_decode(struct bkey_ref k, const struct key_context *ctx, struct btree_ptr *p, struct fault *fault);
enum { BTREE_PTR_V2_VALUE_U64S_MAX = BTREE_PTR_V2_HEADER_BYTES / 8 + EXTENT_PTRS_MAX };
/* The value, in BTREE_PTR_V2_VALUE_U64S_MAX words at most. Returns its words. */
unsigned btree_ptr_encode(const struct btree_ptr *p, void *value);

/* Devices that a key already points at. */
struct dev_set {
	uint64_t bits[4];
};
/*
 * One pointer, with @sectors stored behind it, against the geometry of its device, and that no other pointer of the key
 * is on the same device: rules 142 to 146 of 06 §2.4. In images above 1.4 a pointer without a device is ignored.
 */
int extent_ptr_validate(const struct extent_ptr *p, uint64_t sectors, const struct key_context *ctx,
			struct dev_set *seen, struct fault *fault);
/* "0:36:8": device, bucket, sector in the bucket; "7:?:9000" where the device isn't there. */
void extent_ptr_location_to_text(struct strbuf *out, const struct extent_ptr *p, const struct key_context *ctx);

struct reflink_p {
	uint64_t idx; /* masked to 56 bits (12 §8.5) */
	uint32_t front_pad, back_pad;
	bool is_error; /* bit 56: the indirect extent was missing when checked */
};
int reflink_p_decode(struct bkey_ref k, struct reflink_p *p);
enum { REFLINK_P_BYTES = 16 };
void reflink_p_encode(const struct reflink_p *p, uint8_t value[REFLINK_P_BYTES]);

struct reflink_v {
	uint64_t refcount;
};
struct reflink_v reflink_v_decode(struct bkey_ref k); /* indirect_inline_data too */

int extent_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void extent_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
int btree_ptr_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void btree_ptr_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
int reflink_p_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void reflink_p_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
void reflink_v_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
void indirect_inline_data_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);

#endif
