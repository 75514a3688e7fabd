/*
 * Keys: position, size, version, type and a value of whole 64-bit words.
 *
 * Three forms exist. `struct bkey` is the header in memory. `struct bkey_disk` is the *unpacked* form on disk (format
 * 1): 40 bytes, used everywhere outside of btree nodes. Inside nodes most keys are *packed* (format 0): the six fields
 * of the header squeezed into one little-endian integer, as the node's `struct bkey_format` tells.
 *
 * Everything here is pure: bytes in, values out.
 */
#ifndef KILN_FORMAT_BKEY_H
#define KILN_FORMAT_BKEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/le.h"
#include "base/report.h"
#include "format/bpos.h"

struct strbuf;

enum {
	BKEY_U64S = 5,		  /* words of an unpacked key's header */
	BKEY_PACKED_U64S_MAX = 5, /* words of a packed key's header: no valid format needs more (asserted in bkey.c) */
	BKEY_U64S_MAX = 255,	  /* words of a whole key */
	BKEY_VALUE_U64S_MAX = 250,
	BKEY_FORMAT_PACKED = 0,
	BKEY_FORMAT_UNPACKED = 1,
};

struct bversion {
	uint64_t lo;
	uint32_t hi;
};

/* Header of a key, in memory. */
struct bkey {
	struct bpos p;
	struct bversion version;
	uint32_t size;	    /* sectors of an extent (buckets in freespace), else 0 */
	uint8_t type;	    /* enum bkey_type */
	uint8_t value_u64s; /* words of value */
};

/*
 * A key with its value. @value points at value_u64s * 8 bytes at any alignment, in memory that the giver owns: it says
 * how long it lives.
 */
struct bkey_ref {
	struct bkey k;
	const void *value;
};

static inline size_t bkey_value_bytes(const struct bkey *k) { return (size_t)k->value_u64s * 8; }
/* First position an extent covers; not meaningful for other keys. */
static inline uint64_t bkey_start_offset(const struct bkey *k) { return k->p.offset - k->size; }

/* Unpacked key on disk; the value follows. */
struct bkey_disk {
	uint8_t u64s;	/* header and value, 5..255 */
	uint8_t format; /* [0,7) format, [7,8) needs_whiteout: ignored on reading, 0 on disk */
	uint8_t type;
	uint8_t pad;
	le64 version_lo;
	le32 version_hi;
	le32 size;
	struct bpos_disk p;
};
_Static_assert(sizeof(struct bkey_disk) == 40, "unpacked key header is 40 bytes");

/* Fields of a key, in packing order: most significant first. */
enum bkey_field {
	BKEY_FIELD_INODE,
	BKEY_FIELD_OFFSET,
	BKEY_FIELD_SNAPSHOT,
	BKEY_FIELD_SIZE,
	BKEY_FIELD_VERSION_HI,
	BKEY_FIELD_VERSION_LO,
	BKEY_FIELD_NR,
};

struct bkey_format_disk {
	uint8_t key_u64s;
	uint8_t nr_fields;
	uint8_t bits_per_field[BKEY_FIELD_NR];
	le64 field_offset[BKEY_FIELD_NR];
};
_Static_assert(sizeof(struct bkey_format_disk) == 56, "key format is 56 bytes");

/*
 * How a node packs its keys, decoded. Made by bkey_format_load() and bkey_format_finish() only: what comes after
 * @offset is computed there, so that unpacking a field is a load, a shift, a mask and an addition.
 */
struct bkey_format {
	uint8_t key_u64s;
	uint8_t bits[BKEY_FIELD_NR];
	uint64_t offset[BKEY_FIELD_NR];
	uint64_t mask[BKEY_FIELD_NR]; /* 2^bits - 1 */
	uint8_t byte[BKEY_FIELD_NR];  /* where the 8 bytes with the field's low end start ... */
	uint8_t shift[BKEY_FIELD_NR]; /* ... and how far up it lies in them */
	bool has_straddling;	      /* some field goes on into a ninth byte */
	/* The words that positions reach into, most significant first, and the bits; the mask is 0 where they don't. */
	uint8_t pos_byte[3];
	uint64_t pos_mask[3];
};

/* Decode and validate (02 §2.3). Returns 0 or -KILN_E_INVALID. */
int bkey_format_load(struct bkey_format *f, const struct bkey_format_disk *d, struct fault *fault);
void bkey_format_store(struct bkey_format_disk *d, const struct bkey_format *f);
void bkey_format_to_text(struct strbuf *out, const struct bkey_format *f);

/* Choose a format for a set of keys (02 §2.4): begin, add every key and the node's bounds, finish. */
struct bkey_format_builder {
	uint64_t min[BKEY_FIELD_NR], max[BKEY_FIELD_NR];
};
void bkey_format_begin(struct bkey_format_builder *b);
void bkey_format_add_key(struct bkey_format_builder *b, const struct bkey *k);
void bkey_format_add_pos(struct bkey_format_builder *b, struct bpos p);
void bkey_format_finish(const struct bkey_format_builder *b, struct bkey_format *f);

/* Header of the unpacked key at @d. @d->u64s has been checked to be at least 5. */
struct bkey bkey_load(const struct bkey_disk *d);
void bkey_store(struct bkey_disk *d, const struct bkey *k);

/*
 * Unpack the packed or unpacked key at @src (first byte: u64s), whose words have been checked to lie in memory and to
 * cover the header. Returns the header; the value starts at *@value.
 */
struct bkey bkey_unpack(const struct bkey_format *f, const void *src, const void **value);
/* Position alone, cheaper. */
struct bpos bkey_unpack_pos(const struct bkey_format *f, const void *src);

/*
 * Pack the header of @k into @dst (f->key_u64s words, spare bits 0). Returns false, and leaves @dst alone, when a field
 * doesn't fit.
 */
bool bkey_pack(const struct bkey_format *f, void *dst, const struct bkey *k);

/*
 * Check words, format and header length of the key at @src, of which @avail_u64s words may be read (>= 1). After that
 * it may be unpacked. Returns its u64s, or -KILN_E_INVALID with errors 54, 55, 56, 81 of 02 §9.2.
 */
int bkey_check_frame(const struct bkey_format *f, const void *src, size_t avail_u64s, struct fault *fault);

/*
 * Compare the position of the key at @src with @p, without unpacking more than needed: -1, 0, 1.
 */
int bkey_cmp_pos(const struct bkey_format *f, const void *src, struct bpos p);

/*
 * A search position prepared for one format, so that keys compare by the top bits of their integers (02 §2.2), without
 * being unpacked. A position that doesn't pack is replaced by the nearest one that does; a key at that one is then
 * known to lie before or after the position looked for (@tie). So every comparison is decided by these bits alone.
 */
struct bkey_search_target {
	uint64_t word[3], mask[3]; /* as of bkey_format */
	uint8_t byte[3];
	int8_t tie; /* result when all those bits are equal */
};
struct bkey_search {
	struct bpos pos;
	bool is_exact;			     /* pos packs without loss */
	struct bkey_search_target target[2]; /* for keys packed in the format, and unpacked ones */
};
void bkey_search_init(struct bkey_search *s, const struct bkey_format *f, struct bpos pos);
/* Position of the key at @src, packed in the format that @s was prepared for or unpacked, against it: -1, 0, 1. */
int bkey_search_cmp(const struct bkey_search *s, const void *src);
/*
 * Among @nr keys in ascending order, packed and unpacked ones mixed, the first that lies at or after the search
 * position; @nr if there is none. Key i starts at word @offset_u64s[i] of @keys.
 */
unsigned bkey_search_first(const struct bkey_search *s, const void *keys, const uint32_t *offset_u64s, unsigned nr);

/*
 * Key header rules that hold for a btree and level (02 §4, §9.2): size, snapshot, POS_MAX.
 * Value rules are the key type's (format/key_types.h).
 */
int bkey_validate(const struct bkey *k, unsigned btree_id, unsigned level, struct fault *fault);

/*
 * "u64s 7 type dirent 4096:1234:U32_MAX len 0 ver 0" as 11 §8 gives it, without the value; u64s are those of the
 * unpacked form. A version above 2^64 reads "HI:LO".
 */
void bkey_to_text(struct strbuf *out, const struct bkey *k);

#endif
