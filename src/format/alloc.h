/*
 * Allocation keys: alloc_v4 (27) and older forms, backpointer (28), bucket_gens (30), lru, accounting (34). 07, 12
 * §10-11.
 */
#ifndef KILN_FORMAT_ALLOC_H
#define KILN_FORMAT_ALLOC_H

#include "format/key_types.h"

enum data_type {
	DATA_FREE,
	DATA_SB,
	DATA_JOURNAL,
	DATA_BTREE,
	DATA_USER,
	DATA_CACHED,
	DATA_PARITY,
	DATA_STRIPE,
	DATA_NEED_GC_GENS,
	DATA_NEED_DISCARD,
	DATA_NR_1_4,
	DATA_UNSTRIPED = DATA_NR_1_4,
	DATA_MULTIPLE,
	DATA_NR,
};
const char *data_type_name(unsigned type);

struct alloc {
	uint64_t journal_seq;
	uint32_t flags;
	uint8_t gen, oldest_gen, data_type, stripe_redundancy;
	uint32_t dirty_sectors, cached_sectors;
	uint64_t io_time[2];
	uint32_t stripe; /* from 1.35: number of stripes that use the bucket */
	uint32_t external_backpointers;
	uint64_t fragmentation_lru; /* from 1.14: journal seq at which the bucket became empty */
	uint32_t stripe_sectors;    /* 1.8 and above */
};
enum alloc_flags { ALLOC_NEED_DISCARD = 1, ALLOC_NEED_INC_GEN = 2 };
/*
 * alloc_v4 (27) or alloc_v3 (24). The forms before (12, 20), which no filesystem at 1.0 or above was written with, are
 * refused with -KILN_E_UNSUPPORTED.
 */
int alloc_decode(struct bkey_ref k, struct alloc *a, struct fault *fault);

struct backpointer {
	uint8_t btree_id, level, data_type;
	uint8_t bucket_gen;	/* 1.14 and above */
	uint64_t bucket_offset; /* below 1.14 */
	uint32_t bucket_sectors;
	struct bpos pos;
};
void backpointer_decode(struct bkey_ref k, const struct key_context *ctx, struct backpointer *b);

/* Encode as 1.4 writes it (bucket_offset). */
enum { BACKPOINTER_BYTES = 32 };
void backpointer_encode(const struct backpointer *b, uint8_t value[BACKPOINTER_BYTES]);

enum { BUCKET_GENS_PER_KEY = 256 };

/* All generation numbers of a key; missing ones are 0. */
void bucket_gens_decode(struct bkey_ref k, uint8_t gens[BUCKET_GENS_PER_KEY]);

/* Which type a bucket with these counts has, if @type is the type of data in it (07 §2.1). */
unsigned alloc_data_type(const struct alloc *a, unsigned type);
/* Encode as alloc_v4 value of 56 bytes, as 1.4 writes it. */
enum { ALLOC_V4_BYTES = 56 };
void alloc_encode(const struct alloc *a, uint8_t value[ALLOC_V4_BYTES]);

/* Accounting (btree 20): the position names the counter. */
enum accounting_type {
	ACCOUNTING_NR_INODES,
	ACCOUNTING_PERSISTENT_RESERVED,
	ACCOUNTING_REPLICAS,
	ACCOUNTING_DEV_DATA_TYPE,
	ACCOUNTING_COMPRESSION,
	ACCOUNTING_SNAPSHOT,
	ACCOUNTING_BTREE,
	ACCOUNTING_REBALANCE_WORK,
	ACCOUNTING_INUM,
	ACCOUNTING_RECONCILE_WORK,
	ACCOUNTING_DEV_LEAVING,
	ACCOUNTING_TYPE_NR,
};
struct accounting {
	uint8_t name[20]; /* packed struct: byte 0 the type, then its fields */
	unsigned counter_nr;
	int64_t counters[3];
};
/* -KILN_E_UNSUPPORTED for the encoding of 1.9, which can't be told apart. */
int accounting_decode(struct bkey_ref k, const struct key_context *ctx, struct accounting *a);
/* First position of a counter type, for scanning (1.15 and above: types sort first). */
struct bpos accounting_pos(const struct key_context *ctx, const uint8_t name[20]);

int alloc_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void alloc_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
int backpointer_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void backpointer_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
int bucket_gens_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void bucket_gens_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
int lru_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void lru_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
void accounting_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);

#endif
