/*
 * Values in the extents btree that need no pointers: reservation (7), inline_data (17), error (2); cookie (3) of the
 * rebalance_work btree; damage (38), which tells of files that lost something. 06 §3, 12 §8.5, §13.
 */
#ifndef KILN_FORMAT_FILE_DATA_H
#define KILN_FORMAT_FILE_DATA_H

#include "format/key_types.h"

/* Space without a place: reads as zeroes. */
struct reservation {
	uint32_t generation;
	uint8_t nr_replicas;
};
enum { RESERVATION_BYTES = 8 };
void reservation_decode(struct bkey_ref k, struct reservation *r);
void reservation_encode(const struct reservation *r, uint8_t value[RESERVATION_BYTES]);

/*
 * The bytes that an inline_data or indirect_inline_data key holds; the rest of the key reads as zeroes. Returns their
 * number; @bytes points into the value.
 */
size_t inline_data_bytes(struct bkey_ref k, const uint8_t **bytes);

/* Why data is lost, of keys of type error (1.34); 0: unknown. */
uint8_t error_key_reason(struct bkey_ref k);

uint64_t cookie_decode(struct bkey_ref k);

/* One kind of error that hit a file. Times in seconds. */
struct damage_entry {
	uint16_t error_id;
	uint32_t count;
	uint64_t last_sec, first_sec;
};
enum { DAMAGE_ENTRY_BYTES = 16 };
/* Entry @index; false behind the last. */
bool damage_entry_decode(struct bkey_ref k, unsigned index, struct damage_entry *e);

int error_key_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void error_key_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
int reservation_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void reservation_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
void inline_data_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
void cookie_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
int damage_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void damage_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);

#endif
