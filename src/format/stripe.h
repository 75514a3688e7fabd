/* Erasure-coding stripes: key type stripe (14). 08 §2, 12 §9. */
#ifndef KILN_FORMAT_STRIPE_H
#define KILN_FORMAT_STRIPE_H

#include "format/extent.h"

enum { STRIPE_BLOCKS_MAX = 16 };

struct stripe {
	uint16_t sectors;  /* of each block */
	uint8_t algorithm; /* masked to 4 bits */
	uint8_t nr_blocks, nr_redundant;
	uint8_t csum_granularity_bits;
	uint8_t csum_type;
	struct extent_ptr ptrs[STRIPE_BLOCKS_MAX];
	uint16_t block_sectors[STRIPE_BLOCKS_MAX];
	const uint8_t *csums; /* in the value */
	unsigned csums_per_block;
	unsigned csum_bytes;
};

int stripe_decode(struct bkey_ref k, struct stripe *s, struct fault *fault);
/* Checksum @index (one per 2^csum_granularity_bits sectors) of block @block. */
struct checksum stripe_checksum(const struct stripe *s, unsigned block, unsigned index);
int stripe_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void stripe_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);

#endif
